//! How many in flight can do no harm: as many as an upstream that serves so many in a second would make wait for 5 ms.
//!
//! Little's law turned round. Whoever serves 40,000 in a second has worked off any queue of 200 within 5 ms, and nobody
//! feels that; but to find 200 from 20 by experiments takes a second, in which a burst is refused for nothing. So
//! this needs no experiment and no base: it is counted, within milliseconds. Where sidecars share an upstream each counts what it
//! got itself, so all of them together make nobody wait for longer.
//!
//! An upstream that refuses has a limit of its own, which this must not run into: then it is none.

use std::time::{Duration, Instant};

use super::sample::{Lesson, Sample};

/// A wait that is not worth a refusal; what is faster is told from it by a scheduler, a timer or this process.
pub(super) const AT_ONCE: Duration = Duration::from_millis(5);
/// It is counted anew with so many answers, or more where they take less than [`AT_ONCE`] together.
const ENOUGH: u32 = 64;
/// One in so many refusals and timeouts is bad luck.
const BAD: u32 = 20;

/// Counts answers.
#[derive(Debug)]
pub(super) struct Harmless {
    since: Instant,
    served: u32,
    bad: u32,
    limit: f64,
}

impl Harmless {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, served: 0, bad: 0, limit: 0.0 }
    }

    /// So many in flight do no harm. 0: nothing is known.
    pub(super) fn limit(&self) -> f64 {
        self.limit
    }

    /// An attempt has ended. True: it was counted anew.
    pub(super) fn answered(&mut self, now: Instant, sample: &Sample) -> bool {
        match sample.lesson {
            Lesson::Served => self.served += 1,
            Lesson::Overloaded => self.bad += 1,
            Lesson::Nothing => {}
        }
        // PERF: mostly the first condition ends it.
        if !(self.served + self.bad).is_multiple_of(ENOUGH) || sample.lesson == Lesson::Nothing {
            return false;
        }
        let passed = now.saturating_duration_since(self.since);
        if passed < AT_ONCE {
            return false;
        }
        let is_well = self.bad * BAD <= self.served;
        let rate = f64::from(self.served) / passed.as_secs_f64();
        let limit = if is_well { rate * AT_ONCE.as_secs_f64() } else { 0.0 };
        *self = Self { limit, ..Self::new(now) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::start;

    /// Counts so many ends, each so many microseconds after the last; one in `refuses` is a refusal.
    fn after(ends: u64, micros: u64, refuses: u64) -> Harmless {
        let mut harmless = Harmless::new(start());
        for end in 1..=ends {
            let now = start() + Duration::from_micros(end * micros);
            let lesson = if end % refuses == 0 { Lesson::Overloaded } else { Lesson::Served };
            harmless.answered(now, &Sample { began: start(), latency: AT_ONCE, lesson });
        }
        harmless
    }

    #[test]
    fn it_is_what_is_worked_off_within_5_ms() {
        let never = u64::MAX;
        let cases = [
            // why                                             ends  micros  refuses  limit
            ("40,000 in a second", 640, 25, never, 200.0),
            ("800 in a second", 64, 1250, never, 4.0),
            ("too few to tell", 63, 1250, never, 0.0),
            ("in too short a time to tell", 64, 25, never, 0.0),
            ("one in 32 refused is bad luck", 640, 25, 32, 193.75),
            ("one in 16 is its own limit", 640, 25, 16, 0.0),
        ];
        for (why, ends, micros, refuses, limit) in cases {
            let counted = after(ends, micros, refuses).limit();
            assert!((counted - limit).abs() < 0.5, "{why}: {counted}");
        }
    }
}
