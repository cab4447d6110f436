//! Where numbers are counted: cells that cost a worker a nanosecond or two.
//!
//! Two kinds. **Single-writer** cells ([`Counter`], [`LocalGauge`], [`Histogram`]) belong to one worker: an update
//! is a plain load and a plain store, without a locked instruction; a scrape sums the workers' cells and may run
//! at any moment. **Shared** cells ([`SharedCounter`], [`Gauge`]) take updates from every thread and are for what
//! is rare or one for the process.
//!
//! INVARIANT: only the worker that a shard belongs to writes to its single-writer cells. Two writers would lose
//! counts, never more: nothing here is unsafe.
//!
//! Rejected: the prometheus crate's own counters and histograms (70 ns for a request's eight updates, against 6)
//! and thread-locals that are flushed (a scrape would see them late).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A count that only its worker raises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A worker's part of a number that goes up and down. Only the sum over the workers means anything: what one
/// worker took, another may give back.
#[derive(Debug, Default)]
pub struct LocalGauge(AtomicI64);

impl LocalGauge {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// One less.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// `n` more, or less.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// This worker's part.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A count that any thread raises.
#[derive(Debug, Default)]
pub struct SharedCounter(AtomicU64);

impl SharedCounter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that any thread sets, raises or lowers.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// From now on `value`.
    #[inline]
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// One less.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// `n` more, or less.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// How many buckets a histogram has at most, the one without an upper bound included.
const MAX_BUCKETS: usize = 16;

/// The upper bounds of a histogram's buckets, with a table that finds a bucket in one step.
///
/// Bounds are at least a factor of two apart, so that no octave (the numbers between two powers of two) holds
/// more than one: the octave says which bound to compare with.
#[derive(Debug)]
pub struct Layout {
    /// Ascending, in nanoseconds; then `u64::MAX`.
    bounds: [u64; MAX_BUCKETS],
    /// How many bounds there are.
    len: usize,
    /// For each octave, how many bounds lie below it.
    below: [u8; 64],
}

impl Layout {
    /// Buckets up to each of `micros` microseconds, and one for all that is longer.
    const fn of_micros<const N: usize>(micros: [u64; N]) -> Self {
        assert!(N < MAX_BUCKETS, "one bucket is without a bound");
        let mut layout = Self { bounds: [u64::MAX; MAX_BUCKETS], len: N, below: [0; 64] };
        let mut index = 0;
        while index < N {
            layout.bounds[index] = micros[index] * 1000;
            assert!(
                index == 0 || layout.bounds[index] >= 2 * layout.bounds[index - 1],
                "one bound an octave"
            );
            index += 1;
        }
        let mut octave = 0;
        let mut below = 0;
        while octave < 64 {
            // A bound that is a power of two would still be its own octave's.
            while below < N && layout.bounds[below] < 1 << octave {
                below += 1;
            }
            layout.below[octave] = below as u8;
            octave += 1;
        }
        layout
    }

    /// The bucket that `nanos` falls into: the first whose bound is not below it.
    #[inline]
    fn bucket(&self, nanos: u64) -> usize {
        let octave = 63 - (nanos | 1).leading_zeros() as usize;
        let candidate = usize::from(self.below[octave]) % MAX_BUCKETS;
        candidate + usize::from(nanos > self.bounds[candidate])
    }

    /// The bounds in seconds, the infinite one left out.
    pub fn bounds(&self) -> impl Iterator<Item = f64> {
        self.bounds[..self.len].iter().map(|nanos| (nanos / 1000) as f64 / 1e6)
    }
}

/// Requests, attempts, waits: 1 ms to 30 s.
pub static DURATIONS: Layout = Layout::of_micros([
    1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
]);

/// What Outrigger itself adds: 10 us to 50 ms.
pub static OVERHEAD: Layout =
    Layout::of_micros([10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000]);

/// How long things took, by bucket. Only its worker observes.
#[derive(Debug)]
pub struct Histogram {
    layout: &'static Layout,
    buckets: [Counter; MAX_BUCKETS],
    /// In nanoseconds: enough for 584 years.
    sum: Counter,
}

impl Histogram {
    /// An empty one.
    pub fn new(layout: &'static Layout) -> Self {
        Self { layout, buckets: Default::default(), sum: Counter::default() }
    }

    /// Counts one that took `duration`.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // The remainder only tells the compiler that the index is in range.
        self.buckets[self.layout.bucket(nanos) % MAX_BUCKETS].inc();
        self.sum.add(nanos);
    }

    /// What was observed so far.
    pub fn read(&self) -> Distribution {
        Distribution {
            layout: self.layout,
            buckets: std::array::from_fn(|index| self.buckets[index].get()),
            sum: u128::from(self.sum.get()),
        }
    }
}

/// What one or several histograms of the same layout have seen.
#[derive(Clone, Debug)]
pub struct Distribution {
    layout: &'static Layout,
    buckets: [u64; MAX_BUCKETS],
    sum: u128,
}

impl Distribution {
    /// Nothing seen.
    pub fn empty(layout: &'static Layout) -> Self {
        Self { layout, buckets: [0; MAX_BUCKETS], sum: 0 }
    }

    /// Both together; they have one layout.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        debug_assert!(std::ptr::eq(self.layout, other.layout), "bounds differ");
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum += other.sum;
        self
    }

    /// Each bound in seconds, with how many took at most that long.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.layout.bounds().zip(self.buckets).scan(0, |seen, (bound, count)| {
            *seen += count;
            Some((bound, *seen))
        })
    }

    /// How many were observed.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long all of them took, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bucket as the definition has it.
    fn bucket_by_search(layout: &Layout, nanos: u64) -> usize {
        layout.bounds[..layout.len].iter().take_while(|bound| nanos > **bound).count()
    }

    proptest! {
        /// The table finds the bucket that a search finds, at and around every bound and everywhere else.
        #[test]
        fn a_bucket_is_found_in_one_step(shift in 0u32..64, noise in any::<u64>()) {
            for layout in [&DURATIONS, &OVERHEAD] {
                let around = layout.bounds.iter().flat_map(|b| [b.saturating_sub(1), *b, b.saturating_add(1)]);
                for nanos in around.chain([noise, noise >> shift, 1 << shift, (1 << shift) - 1]) {
                    prop_assert_eq!(layout.bucket(nanos), bucket_by_search(layout, nanos), "{}", nanos);
                }
            }
        }
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::new(&DURATIONS);
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_micros(1001));
        histogram.observe(Duration::from_secs(3600));
        let seen = histogram.read();
        let cumulative: Vec<_> = seen.cumulative().collect();
        assert_eq!(cumulative[0], (0.001, 1));
        assert_eq!(cumulative[1], (0.0025, 2));
        assert_eq!(cumulative.last(), Some(&(30.0, 2)), "an hour is beyond every bound");
        assert_eq!((seen.count(), seen.sum_seconds()), (3, 3_600.002_001));
        assert_eq!(seen.clone().plus(&seen).count(), 6);
    }
}
