//! How long things took of late: a histogram over a window of time that moves on.
//!
//! Log-linear (as HdrHistogram has it): 16 steps to each doubling, so a quantile errs by at most 3 %.
//!
//! Lock-free and shared by all workers. Time is cut into slices; a slice is emptied by whoever enters it first while
//! the others still write to the one before, so no sample is lost, and a few may land a slice late. What is worked
//! out from it is worked out each 100 ms at most, by one thread; the others read what it left behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Steps to each doubling.
const STEPS: usize = 16;
/// Steps in all: up to 2^26 us (67 s); what took longer counts as that.
pub(super) const LEN: usize = (26 - 4) * STEPS + STEPS;
const REFRESH_MICROS: u64 = 100_000;

/// Lengths of time of the last `SLICES` slices, the one that is filled included. 1.5 KiB for each, whatever comes.
#[derive(Debug)]
pub(super) struct Histogram<const SLICES: usize> {
    start: Instant,
    slice_micros: u64,
    slices: [Box<[AtomicU32; LEN]>; SLICES],
    /// The slice that is filled.
    current: AtomicUsize,
    /// When the next slice begins, in microseconds since `start`.
    next_slice: AtomicU64,
    /// When it is looked at again.
    next_refresh: AtomicU64,
    /// Held by the one that empties a slice or computes; nobody waits for it.
    turn: Mutex<()>,
}

/// All of them, as they stood at one moment.
pub(super) struct Counts {
    steps: [u64; LEN],
    /// How many they are.
    pub(super) total: u64,
}

impl<const SLICES: usize> Histogram<SLICES> {
    /// Nothing was seen yet.
    pub(super) fn new(now: Instant, slice: Duration) -> Self {
        let slice_micros = slice.as_micros() as u64;
        Self {
            start: now,
            slice_micros,
            slices: std::array::from_fn(|_| Box::new(std::array::from_fn(|_| AtomicU32::new(0)))),
            current: AtomicUsize::new(0),
            next_slice: AtomicU64::new(slice_micros),
            next_refresh: AtomicU64::new(0),
            turn: Mutex::new(()),
        }
    }

    /// Counts one that ended at `now`.
    pub(super) fn record(&self, now: Instant, took: Duration) {
        let now = self.micros(now);
        if now >= self.next_slice.load(Relaxed) {
            self.turn_slices(now);
        }
        self.slices[self.current.load(Relaxed)][step_of(took)].fetch_add(1, Relaxed);
    }

    /// Gives the counts to `work_out`, with the microseconds since the start, if that was not done of late.
    pub(super) fn refresh(&self, now: Instant, work_out: impl FnOnce(u64, &Counts)) {
        let now = self.micros(now);
        if now >= self.next_refresh.load(Relaxed) {
            self.compute(now, work_out);
        }
    }

    /// Microseconds to `now` from its start; 0 before it.
    pub(super) fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_micros() as u64
    }

    #[cold]
    fn turn_slices(&self, now: u64) {
        let Ok(_turn) = self.turn.try_lock() else { return };
        let next = self.next_slice.load(Relaxed);
        if now < next {
            return;
        }
        let passed = (now - next) / self.slice_micros + 1;
        let mut current = self.current.load(Relaxed);
        for _ in 0..passed.min(SLICES as u64) {
            current = (current + 1) % SLICES;
            self.slices[current].iter().for_each(|count| count.store(0, Relaxed));
        }
        self.current.store(current, Relaxed);
        self.next_slice.store(next + passed * self.slice_micros, Relaxed);
    }

    #[cold]
    fn compute(&self, now: u64, work_out: impl FnOnce(u64, &Counts)) {
        self.turn_slices(now);
        let Ok(_turn) = self.turn.try_lock() else { return };
        let mut steps = [0u64; LEN];
        for slice in &self.slices {
            let counts = slice.iter().map(|count| u64::from(count.load(Relaxed)));
            steps.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        work_out(now, &Counts { total: steps.iter().sum(), steps });
        self.next_refresh.store(now + REFRESH_MICROS, Relaxed);
    }
}

impl Counts {
    /// What so many of a thousand need at most, in microseconds, for each of `permilles`, which ascend: the middle of the
    /// step in which they are reached.
    pub(super) fn quantiles(&self, permilles: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
        self.steps_of(permilles).map(middle_of)
    }

    /// The same, never too low: the end of that step.
    pub(super) fn bounds(&self, permilles: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
        self.steps_of(permilles).map(|step| first_of(step + 1))
    }

    fn steps_of(&self, permilles: impl Iterator<Item = u64>) -> impl Iterator<Item = usize> {
        let (mut step, mut seen) = (0, self.steps[0]);
        permilles.map(move |permille| {
            let rank = (self.total * permille).div_ceil(1000);
            while seen < rank && step + 1 < LEN {
                step += 1;
                seen += self.steps[step];
            }
            step
        })
    }
}

/// The step that counts `took`: microseconds below 16 have their own, then 16 to each doubling.
pub(super) fn step_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let doublings = micros.ilog2() as usize - 4;
    ((doublings * STEPS) + (micros >> doublings) as usize).min(LEN - 1)
}

/// The middle of a step, in microseconds.
fn middle_of(step: usize) -> u64 {
    let first = first_of(step);
    first + (first_of(step + 1) - first) / 2
}

/// Where a step begins, in microseconds.
pub(super) fn first_of(step: usize) -> u64 {
    if step < STEPS {
        return step as u64;
    }
    let doublings = step / STEPS - 1;
    ((step % STEPS + STEPS) as u64) << doublings
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::start;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn any_length_has_a_step_and_the_longest_ones_the_last() {
        assert_eq!(step_of(Duration::ZERO), 0);
        assert_eq!(step_of(Duration::from_secs(67)), LEN - 1);
        assert_eq!(step_of(Duration::MAX), LEN - 1);
    }

    #[test]
    fn workers_that_record_at_once_lose_nothing() {
        let (now, seen) = (start(), Histogram::<5>::new(start(), ms(2000)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| seen.record(now + ms(n / 2), ms(5))));
            }
        });
        let counted: u32 = seen.slices.iter().flat_map(|slice| slice.iter()).map(|n| n.load(Relaxed)).sum();
        assert_eq!(counted, 40_000);
    }

    proptest! {
        /// The middle of a step is within 3.2 % (or half a microsecond's rounding) of whatever it counts.
        #[test]
        fn a_step_stands_for_what_it_counts(micros in 0u64..67_000_000) {
            let middle = middle_of(step_of(Duration::from_micros(micros)));
            prop_assert!(middle.abs_diff(micros) as f64 <= micros as f64 * 0.032 + 0.5, "{micros} as {middle}");
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_samples(mut micros in proptest::collection::vec(1u64..20_000_000, 10..400)) {
            let (now, seen) = (start(), Histogram::<3>::new(start(), ms(2000)));
            micros.iter().for_each(|sample| seen.record(now, Duration::from_micros(*sample)));
            micros.sort_unstable();
            let permilles = [1, 500, 501, 950, 990, 999, 1000];
            let mut found = Vec::new();
            seen.refresh(now, |_, counts| found.extend(counts.quantiles(permilles.into_iter())));
            for (permille, found) in permilles.into_iter().zip(found) {
                let exact = micros[(micros.len() * permille as usize).div_ceil(1000) - 1] as f64;
                prop_assert!((found as f64 - exact).abs() <= exact * 0.032 + 1.0, "{found} for {exact} at {permille}");
            }
        }
    }
}
