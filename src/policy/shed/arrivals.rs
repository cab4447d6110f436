//! What arrives, by level: the last second, from which a share becomes a cut-off.
//!
//! Counters that all workers add to; a request costs one relaxed addition to one of 512, so two workers seldom meet.
//! They are emptied each half second, and the half second before counts too, unless the last one alone has 2,000
//! requests (DAGOR's window: 1 s, or 2,000 requests).

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::level::LEVELS;

const LEN: usize = LEVELS as usize;
/// As many requests tell enough.
const ENOUGH: u64 = 2000;

/// Requests by level since the last look. 2 KiB.
#[derive(Debug)]
pub struct Arrivals(Box<[AtomicU32; LEN]>);

/// What counts at a look.
#[derive(Debug)]
pub struct Window {
    /// By level.
    counts: Box<[u32; LEN]>,
    /// Those of the half second before.
    before: Box<[u32; LEN]>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| AtomicU32::new(0))))
    }
}

impl Default for Window {
    fn default() -> Self {
        Self { counts: Box::new([0; LEN]), before: Box::new([0; LEN]) }
    }
}

impl Arrivals {
    /// Counts `count` requests of a level below `LEVELS`.
    pub fn add(&self, level: u16, count: u32) {
        self.0[usize::from(level)].fetch_add(count, Relaxed);
    }
}

impl Window {
    /// Takes over what has arrived since the last look.
    pub fn turn(&mut self, arrivals: &Arrivals) {
        let mut total = 0;
        for ((count, before), arrived) in self.counts.iter_mut().zip(&mut *self.before).zip(&*arrivals.0) {
            let arrived = arrived.swap(0, Relaxed);
            total += u64::from(arrived);
            (*count, *before) = (arrived.saturating_add(*before), arrived);
        }
        if total >= ENOUGH {
            self.counts.copy_from_slice(&*self.before);
        }
    }

    /// The level from which on at most `share` of the requests lie; `None` where none came.
    ///
    /// At most: a caller that is more than the wanted share by itself is kept. Levels at which nobody came are shed
    /// with those below them, so that no less important request passes.
    pub fn cutoff(&self, share: f64) -> Option<u16> {
        let total: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let allowed = (share * total as f64) as u64;
        let mut shed = 0;
        let kept = (0..LEVELS).rev().find(|level| {
            shed += u64::from(self.counts[usize::from(*level)]);
            shed > allowed
        });
        kept.map(|kept| kept + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Why, levels with their counts, the share, and the cut-off.
    type Case<'a> = (&'a str, &'a [(u16, u32)], f64, Option<u16>);

    fn window(arrived: &[(u16, u32)]) -> Window {
        let (arrivals, mut window) = (Arrivals::default(), Window::default());
        arrived.iter().for_each(|(level, count)| arrivals.add(*level, *count));
        window.turn(&arrivals);
        window
    }

    #[test]
    fn a_share_is_cut_off_from_below() {
        #[rustfmt::skip]
        let cases: &[Case] = &[
            // why                                      level and count             share   cut-off
            ("nobody came",                             &[],                        0.5,    None),
            ("nothing is shed",                         &[(10, 5), (500, 5)],       0.0,    Some(501)),
            ("the lower half",                          &[(10, 5), (500, 5)],       0.5,    Some(11)),
            ("not quite the lower half",                &[(10, 5), (500, 5)],       0.49,   Some(501)),
            ("one caller alone is kept",                &[(10, 100)],               0.95,   Some(11)),
            ("nine of ten levels",                      &[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1)], 0.9, Some(1)),
        ];
        for (why, arrived, share, cutoff) in cases {
            assert_eq!(window(arrived).cutoff(*share), *cutoff, "{why}");
        }
    }

    #[test]
    fn a_second_counts_or_two_thousand_requests() {
        let (arrivals, mut window) = (Arrivals::default(), Window::default());
        let mut half = |level, count| {
            arrivals.add(level, count);
            window.turn(&arrivals);
            window.counts.iter().sum::<u32>()
        };
        assert_eq!(half(1, 100), 100);
        assert_eq!(half(2, 200), 300, "with the half second before");
        assert_eq!(half(3, 50), 250, "which is forgotten then");
        assert_eq!(half(4, 1999), 2049, "not quite enough by itself");
        assert_eq!(half(4, 2000), 2000, "enough");
        assert_eq!(half(5, 1), 2001);
    }

    proptest! {
        /// Never more than the wanted share is shed, and never so little that the next level would have fitted too.
        #[test]
        fn a_cutoff_sheds_as_much_as_fits(arrived in prop::collection::vec((0..LEVELS, 1u32..50), 1..80), share in 0.0..0.95f64) {
            let window = window(&arrived);
            let total: u32 = arrived.iter().map(|(_, count)| count).sum();
            let cutoff = window.cutoff(share).expect("somebody came");
            let from = |cutoff: u16| arrived.iter().filter(|(level, _)| *level >= cutoff).map(|(_, count)| count).sum::<u32>();
            prop_assert!(cutoff > 0);
            prop_assert!(f64::from(from(cutoff)) <= share * f64::from(total) + 1e-9);
            prop_assert!(f64::from(from(cutoff - 1)) > share * f64::from(total) - 1e-9);
        }
    }
}
