//! What an endpoint's own traffic has shown of it: failures in a row, the share of failures in a window, and how
//! long its answers take.
//!
//! Counted on the path by all workers, in atomics: an outcome costs two or three additions, and nobody waits. What is
//! worked out from it, by one thread at a time, stands in [`Past`]. Not here: what counts as a failure
//! (`policy::failure`), and what follows (`outlier`).
//!
//! The window is a ring of buckets, each one word with its time, its outcomes and its failures: so whoever enters a
//! new bucket empties it in the same step. Latencies are a coarse histogram, eight steps to each doubling: a median that
//! errs by 6 % is good enough to be compared with a multiple of another.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Outcomes that [`Traffic::recent`] looks at.
const RECENT: u32 = 8;

/// Buckets of the window.
pub const BUCKETS: u64 = 10;

/// A bucket's word: its number in 24 bits, outcomes and failures in 20 bits each.
const COUNT_BITS: u32 = 20;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const NUMBER: u64 = (1 << 24) - 1;
/// A bucket with so many outcomes counts no more: short of all bits, since several may add at once.
const FULL: u64 = COUNT - 4096;

/// Steps to each doubling of a latency.
const STEPS: usize = 8;
/// Steps in all: up to 2^26 us (67 s); what took longer counts as that.
const LEN: usize = (26 - 3) * STEPS + STEPS;

/// What an endpoint's traffic has shown. Some 1 KiB.
#[derive(Debug)]
pub struct Traffic {
    /// The last 64 outcomes, a bit each, the newest the lowest: whether it failed.
    last: AtomicU64,
    /// Answers that `took` has counted.
    answers: AtomicU32,
    /// When it last did its work, in `standing::nanos`; 0: never.
    succeeded_at: AtomicU64,
    window: [AtomicU64; BUCKETS as usize],
    took: [AtomicU32; LEN],
    /// Rises when it goes out, is probed, and comes back.
    era: AtomicU32,
    /// Whether a probe of it is on its way.
    pub is_probed: AtomicBool,
    /// Until when it is not judged, in nanoseconds: a verdict that was just refused would be refused again.
    pub quiet_until: AtomicU64,
    past: Mutex<Past>,
}

/// Outcomes of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All that count.
    pub requests: u64,
    /// Failures among them.
    pub failures: u64,
}

impl Tally {
    /// The share of failures; none without outcomes.
    pub fn ratio(self) -> Option<f64> {
        (self.requests > 0).then(|| self.failures as f64 / self.requests as f64)
    }
}

/// Laps that are remembered.
const LAPS: usize = 8;

/// What was worked out from an endpoint's traffic.
#[derive(Debug, Default)]
pub struct Past {
    /// The last stretches of time whose latencies were worked out, the newest first.
    laps: [Lap; LAPS],
    /// Slow laps in a row.
    pub slow_laps: u32,
    /// How often it was ejected, less what good service has made up for: the exponent of the next time.
    pub ejections: u32,
    /// When it last came back, in `standing::nanos`.
    pub returned_at: u64,
}

/// A stretch of time with enough answers.
#[derive(Clone, Copy, Debug, Default)]
struct Lap {
    /// When it ended, in `standing::nanos`; 0: there was none.
    ended: u64,
    /// What half of its answers needed at most.
    p50: Duration,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            last: AtomicU64::new(0),
            answers: AtomicU32::new(0),
            succeeded_at: AtomicU64::new(0),
            window: std::array::from_fn(|_| AtomicU64::new(0)),
            took: std::array::from_fn(|_| AtomicU32::new(0)),
            era: AtomicU32::new(0),
            is_probed: AtomicBool::new(false),
            quiet_until: AtomicU64::new(0),
            past: Mutex::default(),
        }
    }
}

impl Traffic {
    /// Counts a success at `now` (nanoseconds), in the bucket of this number.
    pub fn succeeded(&self, now: u64, bucket: u64) {
        self.count(bucket, 1 << COUNT_BITS);
        self.remember(0);
        if now.saturating_sub(self.succeeded_at.load(Relaxed)) > SUCCESS_STEP {
            self.succeeded_at.fetch_max(now, Relaxed);
        }
    }

    /// Counts a failure in the bucket of this number. How many there are in a row, up to 64.
    pub fn failed(&self, bucket: u64) -> u32 {
        self.count(bucket, 1 << COUNT_BITS | 1);
        self.remember(1).trailing_ones()
    }

    /// Counts how long a good answer took.
    pub fn took(&self, latency: Duration) {
        self.took[step_of(latency)].fetch_add(1, Relaxed);
        self.answers.fetch_add(1, Relaxed);
    }

    /// Failures in a row, up to 64.
    pub fn run(&self) -> u32 {
        self.last.load(Relaxed).trailing_ones()
    }

    /// The share of failures among the last `RECENT` outcomes. It knows at once what the window will have forgotten
    /// in seconds: how things went before.
    pub fn recent(&self) -> f64 {
        f64::from((self.last.load(Relaxed) & ((1 << RECENT) - 1)).count_ones()) / f64::from(RECENT)
    }

    /// Adds an outcome to the last ones, and gives them.
    fn remember(&self, failed: u64) -> u64 {
        let add = |last| Some(last << 1 | failed);
        // It always adds one.
        self.last.fetch_update(Relaxed, Relaxed, add).map_or(failed, |last| last << 1 | failed)
    }

    /// When it last did its work, in nanoseconds and up to [`SUCCESS_STEP`] early; 0: never.
    pub fn succeeded_at(&self) -> u64 {
        self.succeeded_at.load(Relaxed)
    }

    /// What the window holds whose newest bucket has this number.
    pub fn tally(&self, bucket: u64) -> Tally {
        self.window.iter().map(|word| word.load(Relaxed)).fold(Tally::default(), |sum, word| {
            let age = bucket.wrapping_sub(word >> (2 * COUNT_BITS)) & NUMBER;
            // One that another thread has just begun is `-1` old.
            let counts = age < BUCKETS || age == NUMBER;
            let outcomes = if counts { word } else { 0 };
            Tally {
                requests: sum.requests + (outcomes >> COUNT_BITS & COUNT),
                failures: sum.failures + (outcomes & COUNT),
            }
        })
    }

    /// Good answers since the last lap.
    pub fn answers(&self) -> u32 {
        self.answers.load(Relaxed)
    }

    /// Ends the lap at `now`: what half of its answers needed at most, and when it had begun. None without answers.
    pub fn end_lap(&self, now: u64) -> Option<(Duration, u64)> {
        self.answers.store(0, Relaxed);
        let counts: [u32; LEN] = std::array::from_fn(|step| self.took[step].swap(0, Relaxed));
        let total: u64 = counts.iter().copied().map(u64::from).sum();
        let mut seen = 0;
        let step = counts.iter().position(|count| {
            seen += u64::from(*count);
            seen > 0 && seen * 2 >= total
        })?;
        let p50 = middle_of(step);
        let mut past = self.past();
        let began = past.laps[0].ended.max(past.returned_at);
        past.laps.rotate_right(1);
        past.laps[0] = Lap { ended: now, p50 };
        Some((p50, began))
    }

    /// When the lap at hand began, in nanoseconds.
    pub fn lap_began(&self) -> u64 {
        let past = self.past();
        past.laps[0].ended.max(past.returned_at)
    }

    /// The slowest lap's p50 of those that ended after `since`; none if none did.
    pub fn slowest_since(&self, since: u64) -> Option<Duration> {
        let past = self.past();
        past.laps.iter().filter(|lap| lap.ended > since).map(|lap| lap.p50).max()
    }

    /// The era at hand: what was asked in an earlier one says nothing about now.
    pub fn era(&self) -> u32 {
        self.era.load(Relaxed)
    }

    /// Another era begins.
    pub fn begin_era(&self) {
        self.era.fetch_add(1, Relaxed);
    }

    /// Forgets what was counted: it says nothing about what comes now.
    pub fn begin_anew(&self, now: u64) {
        self.begin_era();
        self.last.store(0, Relaxed);
        self.answers.store(0, Relaxed);
        self.quiet_until.store(0, Relaxed);
        self.window.iter().for_each(|word| word.store(0, Relaxed));
        self.took.iter().for_each(|count| count.store(0, Relaxed));
        let mut past = self.past();
        (past.laps, past.slow_laps, past.returned_at) = (Default::default(), 0, now);
    }

    /// What was worked out so far. Off the path: held for moments.
    pub fn past(&self) -> MutexGuard<'_, Past> {
        // A panic while it was held leaves numbers that are still good.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, bucket: u64, outcome: u64) {
        let slot = &self.window[(bucket % BUCKETS) as usize];
        let stamp = (bucket & NUMBER) << (2 * COUNT_BITS);
        let word = slot.load(Relaxed);
        if word & !(COUNT << COUNT_BITS | COUNT) == stamp {
            if word >> COUNT_BITS & COUNT < FULL {
                slot.fetch_add(outcome, Relaxed);
            }
            return;
        }
        let enter = |word: u64| {
            let age = bucket.wrapping_sub(word >> (2 * COUNT_BITS)) & NUMBER;
            match age {
                0 => Some(word + outcome),
                // Another thread is a window ahead, this one was held up for that long.
                age if age > NUMBER - 2 * BUCKETS && word >> COUNT_BITS & COUNT > 0 => None,
                _ => Some(stamp | outcome),
            }
        };
        // It errs only for what comes too late to count.
        let _ = slot.fetch_update(Relaxed, Relaxed, enter);
    }
}

/// How exactly the last success is known, in nanoseconds.
pub const SUCCESS_STEP: u64 = 50_000_000;

/// The step that counts `latency`: microseconds below 8 have their own, then 8 to each doubling.
fn step_of(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let doublings = micros.ilog2() as usize - 3;
    (doublings * STEPS + (micros >> doublings) as usize).min(LEN - 1)
}

/// The middle of a step.
fn middle_of(step: usize) -> Duration {
    let micros = match step.checked_sub(STEPS) {
        None => step as u64,
        Some(above) => {
            let doublings = above / STEPS;
            let first = ((step % STEPS + STEPS) as u64) << doublings;
            first + (1 << doublings) / 2
        }
    };
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_success_ends_a_run_of_failures() {
        let traffic = Traffic::default();
        assert_eq!((traffic.failed(0), traffic.failed(0)), (1, 2));
        traffic.succeeded(1, 0);
        assert_eq!(traffic.failed(1), 1);
    }

    #[test]
    fn a_bucket_counts_no_more_than_it_can_hold() {
        let traffic = Traffic::default();
        for _ in 0..COUNT + 10 {
            traffic.failed(7);
        }
        let Tally { requests, failures } = traffic.tally(7);
        assert_eq!(requests, failures, "nothing has run over");
    }

    #[test]
    fn a_lap_knows_its_median_and_when_it_began() {
        let traffic = Traffic::default();
        assert_eq!(traffic.end_lap(10), None, "no answer, no lap");
        for millis in [5, 5, 6, 300, 400] {
            traffic.took(Duration::from_millis(millis));
        }
        let (p50, began) = traffic.end_lap(20).expect("there were answers");
        assert!((5.5..6.5).contains(&(p50.as_secs_f64() * 1000.0)), "{p50:?}");
        assert_eq!((began, traffic.lap_began()), (0, 20));
        assert_eq!((traffic.slowest_since(19), traffic.slowest_since(20)), (Some(p50), None));
    }

    proptest! {
        /// Against a list of all outcomes.
        #[test]
        fn the_window_holds_the_last_buckets(
            outcomes in prop::collection::vec((0u64..40, any::<bool>()), 0..200),
            start in (NUMBER - 20)..NUMBER,
        ) {
            let mut outcomes = outcomes;
            outcomes.sort_unstable_by_key(|(bucket, _)| *bucket);
            let traffic = Traffic::default();
            for (count, (bucket, failed)) in outcomes.iter().enumerate() {
                let now = start + bucket;
                if *failed { traffic.failed(now); } else { traffic.succeeded(0, now); }
                let held = outcomes[..=count].iter().filter(|(other, _)| bucket - other < BUCKETS);
                let failures = held.clone().filter(|(_, failed)| *failed).count() as u64;
                let expected = Tally { requests: held.count() as u64, failures };
                prop_assert_eq!(traffic.tally(now), expected);
            }
        }

        #[test]
        fn a_median_errs_by_seven_percent_at_most(millis in prop::collection::vec(1u64..60_000, 1..50)) {
            let traffic = Traffic::default();
            let mut sorted = millis.clone();
            sorted.sort_unstable();
            millis.iter().for_each(|millis| traffic.took(Duration::from_millis(*millis)));
            let (found, _) = traffic.end_lap(1).expect("there are answers");
            let exact = sorted[sorted.len().div_ceil(2) - 1] as f64;
            prop_assert!((found.as_secs_f64() * 1000.0 - exact).abs() <= exact * 0.07, "{found:?} for {exact}");
        }
    }
}
