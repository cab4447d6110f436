//! How long an upstream's successful attempts take to the response's head: p50 and p99 of the last ten seconds.
//!
//! A log-linear histogram (as HdrHistogram has it): 16 steps to each doubling, so a quantile errs by at most 3 %.
//! Why not a moving average: one slow answer in a hundred moves it, and says nothing of what half of them need.
//!
//! Lock-free and shared by all workers. Time is cut into five slices of 2 s, so that the last 8 to 10 s count; a slice is
//! emptied by whoever enters it first while the others still write to the one before, so no sample is lost, and a
//! few may land a slice late. Quantiles are computed each 100 ms at most, so reading one is a load.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Steps to each doubling.
const STEPS: usize = 16;
/// Steps in all: up to 2^26 us (67 s); what took longer counts as that.
pub(super) const LEN: usize = (26 - 4) * STEPS + STEPS;
/// Slices that count, the one that is filled included.
const SLICES: usize = 5;
const SLICE_MICROS: u64 = 2_000_000;
const REFRESH_MICROS: u64 = 100_000;
/// With fewer samples nothing is known.
const MIN_SAMPLES: u64 = 10;
const UNKNOWN: u64 = u64::MAX;
/// The time in which `usual_p99` at most doubles.
const DOUBLING_MICROS: f64 = 60e6;

/// The latencies of one upstream. Some 7 KiB, whatever comes.
#[derive(Debug)]
pub struct Latency {
    start: Instant,
    slices: [Box<[AtomicU32; LEN]>; SLICES],
    /// The slice that is filled.
    current: AtomicUsize,
    /// When the next slice begins, in microseconds since `start`.
    next_slice: AtomicU64,
    /// When quantiles are computed anew.
    next_refresh: AtomicU64,
    p50: AtomicU64,
    p99: AtomicU64,
    usual_p99: AtomicU64,
    /// When it was last computed.
    usual_at: AtomicU64,
    /// Held by the one that empties a slice or computes; nobody waits for it.
    turn: Mutex<()>,
}

impl Latency {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            slices: std::array::from_fn(|_| Box::new(std::array::from_fn(|_| AtomicU32::new(0)))),
            current: AtomicUsize::new(0),
            next_slice: AtomicU64::new(SLICE_MICROS),
            next_refresh: AtomicU64::new(0),
            p50: AtomicU64::new(UNKNOWN),
            p99: AtomicU64::new(UNKNOWN),
            usual_p99: AtomicU64::new(UNKNOWN),
            usual_at: AtomicU64::new(0),
            turn: Mutex::new(()),
        }
    }

    /// Counts an attempt that succeeded at `now`.
    pub fn record(&self, now: Instant, latency: Duration) {
        let now = self.micros(now);
        if now >= self.next_slice.load(Relaxed) {
            self.turn_slices(now);
        }
        self.slices[self.current.load(Relaxed)][step_of(latency)].fetch_add(1, Relaxed);
    }

    /// What half of the last ten seconds' attempts needed at most; `None` below ten samples.
    pub fn p50(&self, now: Instant) -> Option<Duration> {
        self.refresh(now);
        known(self.p50.load(Relaxed))
    }

    /// What 99 of 100 of them needed at most; `None` below ten samples.
    pub fn p99(&self, now: Instant) -> Option<Duration> {
        self.refresh(now);
        known(self.p99.load(Relaxed))
    }

    /// The p99 of good times: it follows p99 down at once, up by at most a doubling each minute, and stays where it
    /// is while nothing succeeds. `None`: never known.
    ///
    /// For `timeout::is_evidence`: an upstream that slows down under overload raises its own p99 in the seconds
    /// before all of its answers come too late, and measured by that none of its timeouts would say anything.
    pub fn usual_p99(&self, now: Instant) -> Option<Duration> {
        self.refresh(now);
        known(self.usual_p99.load(Relaxed))
    }

    fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_micros() as u64
    }

    fn refresh(&self, now: Instant) {
        let now = self.micros(now);
        if now >= self.next_refresh.load(Relaxed) {
            self.compute(now);
        }
    }

    #[cold]
    fn turn_slices(&self, now: u64) {
        let Ok(_turn) = self.turn.try_lock() else { return };
        let next = self.next_slice.load(Relaxed);
        if now < next {
            return;
        }
        let passed = (now - next) / SLICE_MICROS + 1;
        let mut current = self.current.load(Relaxed);
        for _ in 0..passed.min(SLICES as u64) {
            current = (current + 1) % SLICES;
            self.slices[current].iter().for_each(|count| count.store(0, Relaxed));
        }
        self.current.store(current, Relaxed);
        self.next_slice.store(next + passed * SLICE_MICROS, Relaxed);
    }

    #[cold]
    fn compute(&self, now: u64) {
        self.turn_slices(now);
        let Ok(_turn) = self.turn.try_lock() else { return };
        let mut counts = [0u64; LEN];
        for slice in &self.slices {
            counts
                .iter_mut()
                .zip(slice.iter())
                .for_each(|(sum, count)| *sum += u64::from(count.load(Relaxed)));
        }
        let total = counts.iter().sum();
        let known = total >= MIN_SAMPLES;
        let at = |percent| if known { quantile(&counts, total, percent) } else { UNKNOWN };
        let (p50, p99) = (at(50), at(99));
        self.p50.store(p50, Relaxed);
        self.p99.store(p99, Relaxed);
        if known {
            let since = now.saturating_sub(self.usual_at.swap(now, Relaxed));
            let usual = self.usual_p99.load(Relaxed) as f64 * 2f64.powf(since as f64 / DOUBLING_MICROS);
            // An unknown one is the largest number, and gives way.
            self.usual_p99.store(p99.min(usual as u64), Relaxed);
        }
        self.next_refresh.store(now + REFRESH_MICROS, Relaxed);
    }
}

fn known(micros: u64) -> Option<Duration> {
    (micros != UNKNOWN).then(|| Duration::from_micros(micros))
}

/// The step that counts `latency`: microseconds below 16 have their own, then 16 to each doubling.
pub(super) fn step_of(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
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

/// The middle of the step in which `percent` of all samples are reached.
fn quantile(counts: &[u64; LEN], total: u64, percent: u64) -> u64 {
    let rank = (total * percent).div_ceil(100);
    let mut seen = 0;
    let step = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    });
    middle_of(step.unwrap_or(LEN - 1))
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
    fn below_ten_samples_nothing_is_known() {
        let (now, latency) = (start(), Latency::new(start()));
        for _ in 0..9 {
            latency.record(now, ms(20));
        }
        assert_eq!(latency.p50(now), None);
        latency.record(now, ms(20));
        let p50 = latency.p50(now + ms(100)).expect("ten samples");
        assert!((ms(19)..ms(21)).contains(&p50), "{p50:?}");
    }

    #[test]
    fn what_is_ten_seconds_old_is_forgotten_but_what_was_usual() {
        let (now, latency) = (start(), Latency::new(start()));
        (0..100).for_each(|_| latency.record(now, ms(20)));
        assert!(latency.p50(now + ms(7900)).is_some());
        assert_eq!(latency.p50(now + ms(10_100)), None);
        assert_eq!(latency.p99(now + ms(10_200)), None);
        let usual = latency.usual_p99(now + ms(600_000)).expect("the last one known");
        assert!((ms(19)..ms(21)).contains(&usual), "{usual:?}");
    }

    #[test]
    fn what_is_usual_rises_slowly_and_falls_at_once() {
        let (mut now, latency) = (start(), Latency::new(start()));
        let mut run = |seconds, millis| {
            for _ in 0..seconds * 10 {
                now += ms(100);
                (0..10).for_each(|_| latency.record(now, ms(millis)));
                latency.p50(now);
            }
            latency.usual_p99(now).expect("many samples")
        };
        let cases = [
            // why                            seconds  millis  usual
            ("what it is", 10, 20, 19..21),
            ("a second of slowness", 1, 500, 19..21),
            ("a minute of it", 59, 500, 38..42),
            ("five minutes of it", 240, 500, 485..515),
            ("fast again", 12, 20, 19..21),
        ];
        for (why, seconds, millis, expected) in cases {
            let usual = run(seconds, millis);
            assert!((ms(expected.start)..ms(expected.end)).contains(&usual), "{why}: {usual:?}");
        }
    }

    #[test]
    fn quantiles_follow_within_ten_seconds() {
        let (now, latency) = (start(), Latency::new(start()));
        (0..2000).for_each(|n| latency.record(now + ms(n * 10), ms(if n < 1000 { 10 } else { 100 })));
        let p50 = latency.p50(now + ms(20_000)).expect("many samples");
        assert!((ms(97)..ms(103)).contains(&p50), "{p50:?}");
    }

    #[test]
    fn any_latency_has_a_step_and_the_longest_ones_the_last() {
        assert_eq!(step_of(Duration::ZERO), 0);
        assert_eq!(step_of(Duration::from_secs(67)), LEN - 1);
        assert_eq!(step_of(Duration::MAX), LEN - 1);
    }

    #[test]
    fn workers_that_record_at_once_lose_nothing() {
        let (now, latency) = (start(), Latency::new(start()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| latency.record(now + ms(n / 2), ms(5))));
            }
        });
        let counted: u32 =
            latency.slices.iter().flat_map(|slice| slice.iter()).map(|n| n.load(Relaxed)).sum();
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
            let (now, latency) = (start(), Latency::new(start()));
            micros.iter().for_each(|sample| latency.record(now, Duration::from_micros(*sample)));
            micros.sort_unstable();
            let exact = |percent: usize| micros[(micros.len() * percent).div_ceil(100) - 1] as f64;
            let later = now + ms(100);
            for (found, exact) in [(latency.p50(later), exact(50)), (latency.p99(later), exact(99))] {
                let found = found.expect("at least ten samples").as_micros() as f64;
                prop_assert!((found - exact).abs() <= exact * 0.032 + 1.0, "{found} for {exact}");
            }
        }
    }
}
