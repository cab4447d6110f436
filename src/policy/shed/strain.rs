//! The process's own need: memory that runs out, or an event loop that is late.
//!
//! Then the least important class is shed at once, the next one if that does not help within two seconds, and never
//! more: the upstream may be well, and a sidecar that refuses all protects nobody. Each class comes back after a second
//! of ease.

use super::level;
use crate::policy::priority::Priority;

/// Steps of need after which the second class goes: 2 s.
const WORSENS: u8 = 4;
/// Steps of ease after which a class comes back: 1 s.
const EASES: u8 = 2;
/// Ease begins below this part of the bound: what hovers about it does not flap.
const EASE: f64 = 0.9;

/// How the process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// How many classes are shed: 0, 1 or 2.
    classes: u8,
    /// Steps of need in a row since that changed.
    need: u8,
    /// Steps of ease in a row since that changed.
    ease: u8,
}

impl Strain {
    /// The state after a step in which what is bounded stood at `pressure` times its bound.
    pub fn step(self, pressure: f64) -> Self {
        let Self { classes, .. } = self;
        let changed = |classes| Self { classes, need: 0, ease: 0 };
        if pressure >= 1.0 {
            return match self.need.saturating_add(1) {
                _ if classes == 0 => changed(1),
                WORSENS.. if classes == 1 => changed(2),
                need => Self { classes, need, ease: 0 },
            };
        }
        match self.ease + 1 {
            _ if pressure >= EASE || classes == 0 => changed(classes),
            EASES.. => changed(classes - 1),
            ease => Self { classes, need: 0, ease },
        }
    }

    /// Levels from this one on are shed.
    pub fn cutoff(self) -> u16 {
        match self.classes {
            0 => level::LEVELS,
            1 => level::first_of(Priority::Low),
            _ => level::first_of(Priority::Normal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_go_one_by_one_and_come_back_one_by_one() {
        let cases: &[(&str, &[f64], u16)] = &[
            // why                                  pressure, step by step                       cut-off
            ("no need", &[0.0, 0.99, 0.5], 512),
            ("need sheds what matters least", &[1.0], 384),
            ("for a while that is all", &[3.0, 3.0, 3.0, 3.0], 384),
            ("it did not help", &[3.0, 3.0, 3.0, 3.0, 3.0], 256),
            ("nothing else is ever shed", &[9.0; 100], 256),
            ("need that stops and begins again", &[1.0, 1.0, 1.0, 0.95, 1.0, 1.0, 1.0], 384),
            ("just below the bound is no ease", &[1.0, 0.95, 0.95, 0.95], 384),
            ("one step of ease is not enough", &[1.0, 0.5], 384),
            ("ease", &[1.0, 0.5, 0.5], 512),
            ("each class by itself", &[2.0, 2.0, 2.0, 2.0, 2.0, 0.5, 0.5], 384),
            ("all is well again", &[2.0, 2.0, 2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.5], 512),
        ];
        for (why, pressures, cutoff) in cases {
            let strain = pressures.iter().fold(Strain::default(), |strain, pressure| strain.step(*pressure));
            assert_eq!(strain.cutoff(), *cutoff, "{why}");
        }
    }
}
