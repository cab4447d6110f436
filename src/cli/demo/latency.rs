//! A histogram of latencies: what `p50`, `p99` and `worst` of the demo are read from.
//!
//! Buckets are logarithmic with linear steps between (as in HdrHistogram): 32 to each doubling, so that a
//! quantile is at most 1/32 above the truth, in 3 KiB however many requests there are. Not here: the
//! histograms of `/metrics` (`telemetry`), whose few fixed buckets Prometheus sums up.

use std::time::Duration;

/// Linear steps in each doubling, as a power of two.
const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
/// The longest latency that is told apart: 2^27 µs, more than two minutes.
const TOP_BITS: u32 = 27;
const BUCKETS: usize = (TOP_BITS - STEP_BITS + 1) as usize * STEPS;

/// Latencies in buckets of microseconds.
#[derive(Clone)]
pub(super) struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    total: u64,
    worst: Duration,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, worst: Duration::ZERO }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.counts[bucket(latency)] += 1;
        self.total += 1;
        self.worst = self.worst.max(latency);
    }

    /// Adds what `other` has counted.
    pub(super) fn add(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine += theirs;
        }
        self.total += other.total;
        self.worst = self.worst.max(other.worst);
    }

    /// The latency that a share of `quantile` (0 to 1) of the requests did not exceed: the upper end of the
    /// bucket in which it lies. `None` when nothing was recorded.
    pub(super) fn quantile(&self, quantile: f64) -> Option<Duration> {
        let rank = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(upper_end(index).min(self.worst));
            }
        }
        None
    }

    /// The longest latency, exactly. `None` when nothing was recorded.
    pub(super) fn worst(&self) -> Option<Duration> {
        (self.total > 0).then_some(self.worst)
    }
}

/// The bucket of a latency: below 32 µs each microsecond has its own, above each doubling has 32.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).min((1 << TOP_BITS) - 1);
    let doublings = (u64::BITS - micros.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (doublings as usize * STEPS) + (micros >> doublings) as usize
}

/// The longest latency that falls into the bucket.
fn upper_end(index: usize) -> Duration {
    let doublings = (index / STEPS).saturating_sub(1);
    let step = index - doublings * STEPS;
    Duration::from_micros((((step + 1) as u64) << doublings) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_a_known_row() {
        let mut row = Histogram::new();
        for millis in 1..=100 {
            row.record(Duration::from_millis(millis));
        }
        let cases = [
            // why                       quantile  at least  at most (ms)
            ("the median", 0.5, 50.0, 52.0),
            ("one in a hundred is above", 0.99, 99.0, 102.1),
            ("all", 1.0, 100.0, 100.0),
            ("nothing is the first", 0.0, 1.0, 1.04),
        ];
        for (why, quantile, least, most) in cases {
            let millis = row.quantile(quantile).expect(why).as_secs_f64() * 1e3;
            assert!((least..=most).contains(&millis), "{why}: {millis} ms");
        }
        assert_eq!(row.worst(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn an_empty_row_has_no_quantile() {
        assert_eq!(Histogram::new().quantile(0.5), None);
        assert_eq!(Histogram::new().worst(), None);
    }

    #[test]
    fn a_sum_is_as_if_all_had_been_recorded_in_one() {
        let (mut one, mut other, mut both) = (Histogram::new(), Histogram::new(), Histogram::new());
        for micros in [3, 700, 40_000] {
            one.record(Duration::from_micros(micros));
            both.record(Duration::from_micros(micros));
        }
        for micros in [90, 2_000_000] {
            other.record(Duration::from_micros(micros));
            both.record(Duration::from_micros(micros));
        }
        one.add(&other);
        for quantile in [0.0, 0.3, 0.5, 0.9, 1.0] {
            assert_eq!(one.quantile(quantile), both.quantile(quantile), "{quantile}");
        }
    }

    proptest! {
        /// Against a sorted list: never below the truth, and at most 1/32 above it.
        #[test]
        fn a_quantile_is_close_above_the_truth(
            micros in prop::collection::vec(0u64..100_000_000, 1..200),
            quantile in 0.0..=1.0f64,
        ) {
            let mut row = Histogram::new();
            for micros in &micros {
                row.record(Duration::from_micros(*micros));
            }
            let mut sorted = micros;
            sorted.sort_unstable();
            let rank = ((sorted.len() as f64 * quantile).ceil() as usize).max(1);
            let truth = sorted[rank - 1];
            let told = row.quantile(quantile).expect("not empty").as_micros() as u64;
            prop_assert!(told >= truth && told - truth <= truth / 32, "{told} for {truth}");
        }
    }
}
