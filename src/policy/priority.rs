//! Priority: how much a request matters when not all can be served.
//!
//! Four classes, the criticalities of Google's SRE book (ch. 21) by other names. A caller's class is passed on
//! unchanged through all hops, so that a whole call tree is kept or shed together. Not here: what a class is worth
//! (`queue`, `shed`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much a request matters. The least comes last, so `Critical < Low`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Refused last: without it the user's whole task fails.
    Critical,
    /// More than usual.
    High,
    /// What says nothing else.
    #[default]
    Normal,
    /// Refused first: somebody will come again, or nobody is waiting.
    Low,
}

impl Priority {
    /// All classes, the most important first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Its place in [`Priority::ALL`]: 0 is the most important.
    pub const fn rank(self) -> usize {
        self as usize
    }

    /// The word in configuration, header and log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// What `x-priority` says; case makes no difference. `None`: it names no class.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        Self::ALL.into_iter().find(|class| value.eq_ignore_ascii_case(class.label().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_by_its_word() {
        for (why, value, class) in [
            ("as written", "critical", Some(Priority::Critical)),
            ("in any case", "HIGH", Some(Priority::High)),
            ("with space around it", " normal ", Some(Priority::Normal)),
            ("the last", "low", Some(Priority::Low)),
            ("no class", "urgent", None),
            ("nothing", "", None),
        ] {
            assert_eq!(Priority::parse(value.as_bytes()), class, "{why}");
        }
    }

    #[test]
    fn ranks_are_places() {
        for (place, class) in Priority::ALL.into_iter().enumerate() {
            assert_eq!(class.rank(), place, "{}", class.label());
        }
    }
}
