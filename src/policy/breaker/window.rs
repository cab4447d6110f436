//! Which outcomes count: those of the last ten seconds, or the last hundred. Exact: an outcome counts fully until it
//! leaves, so that failures bunched or spread give the same verdict.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Ratio, Span, span_within, within};

/// `window`: which outcomes count.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Window {
    /// Those of the last `size`, in ten buckets.
    Time {
        /// How far back. From 1 s to 10 m.
        #[serde(deserialize_with = "span_within::<_, 1000, 600_000>")]
        size: Span,
    },
    /// The last `size` of them.
    Count {
        /// How many. From 1 to 10,000.
        #[serde(deserialize_with = "within::<_, 1, 10_000>")]
        #[schemars(range(min = 1, max = 10_000))]
        size: u32,
    },
}

impl Default for Window {
    fn default() -> Self {
        Window::Time { size: Span::from_secs(10) }
    }
}

/// The buckets of a window of time.
const BUCKETS: usize = 10;

/// One outcome, as far as it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) failed: bool,
    pub(super) slow: bool,
    pub(super) connect_timeout: bool,
    /// Not an outcome: a request that was rejected.
    pub(super) rejected: bool,
}

/// Outcomes, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) total: u32,
    pub(super) failures: u32,
    pub(super) slow: u32,
    pub(super) connect_timeouts: u32,
    /// Included in `total`.
    pub(super) rejected: u32,
}

impl Counts {
    pub(super) fn add(&mut self, entry: Entry) {
        self.total += 1;
        self.failures += u32::from(entry.failed);
        self.slow += u32::from(entry.slow);
        self.connect_timeouts += u32::from(entry.connect_timeout);
        self.rejected += u32::from(entry.rejected);
    }

    fn subtract(&mut self, other: Counts) {
        self.total -= other.total;
        self.failures -= other.failures;
        self.slow -= other.slow;
        self.connect_timeouts -= other.connect_timeouts;
        self.rejected -= other.rejected;
    }
}

/// The ratios at which outcomes are bad.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    pub(super) failures: Ratio,
    pub(super) slow: Ratio,
}

/// Counts, and whether the bad ones all came from one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    failing: Run,
    slow: Run,
}

/// The endpoint of the last bad outcome, and how many in a row (among the bad ones) it has had.
///
/// The window's bad outcomes are the last ones that were counted, so they all came from one endpoint exactly if
/// its run is as long as they are many: no set of endpoints need be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    endpoint: u32,
    length: u32,
}

impl Run {
    fn add(&mut self, endpoint: u32) {
        if self.endpoint != endpoint {
            *self = Run { endpoint, length: 0 };
        }
        self.length = self.length.saturating_add(1);
    }
}

impl Tally {
    pub(super) fn add(&mut self, entry: Entry, endpoint: u32) {
        self.counts.add(entry);
        if entry.failed {
            self.failing.add(endpoint);
        }
        if entry.slow {
            self.slow.add(endpoint);
        }
    }

    /// Whether so many outcomes are bad that the breaker should open. `endpoints`: how many are usable; of several,
    /// at least two must be bad, since a single one is ejected instead.
    pub(super) fn is_bad(&self, thresholds: Thresholds, endpoints: u32) -> bool {
        let Counts { total, failures, slow, .. } = self.counts;
        (reached(failures, thresholds.failures, total) && (endpoints <= 1 || self.failures_are_spread()))
            || (self.is_slow(thresholds) && (endpoints <= 1 || self.slow.length < slow))
    }

    /// Whether the ratio of slow outcomes is reached.
    pub(super) fn is_slow(&self, thresholds: Thresholds) -> bool {
        reached(self.counts.slow, thresholds.slow, self.counts.total)
    }

    /// Whether at least two endpoints hold failures.
    pub(super) fn failures_are_spread(&self) -> bool {
        self.failing.length < self.counts.failures
    }
}

/// Whether so many of `total` are bad; never without a bad one. The last bit of a product must not decide: 3 of 10
/// reach 0.3.
fn reached(bad: u32, ratio: Ratio, total: u32) -> bool {
    bad > 0 && f64::from(bad) >= ratio.get() * f64::from(total) - 1e-9
}

/// The outcomes that count.
#[derive(Debug)]
pub(super) struct Outcomes {
    extent: Window,
    tally: Tally,
    ring: Ring,
}

#[derive(Debug)]
enum Ring {
    Time {
        buckets: [Counts; BUCKETS],
        current: usize,
        length: Duration,
        /// When the next bucket begins.
        next: Instant,
    },
    Count {
        /// The last outcomes, the oldest at `next` once all are there.
        entries: Vec<Entry>,
        next: usize,
        size: usize,
    },
}

impl Outcomes {
    pub(super) fn new(extent: Window, now: Instant) -> Self {
        let ring = match extent {
            Window::Time { size } => {
                let length = *size / BUCKETS as u32;
                Ring::Time { buckets: [Counts::default(); BUCKETS], current: 0, length, next: now + length }
            }
            Window::Count { size } => {
                Ring::Count { entries: Vec::with_capacity(size as usize), next: 0, size: size as usize }
            }
        };
        Self { extent, tally: Tally::default(), ring }
    }

    pub(super) fn extent(&self) -> Window {
        self.extent
    }

    /// Forgets all.
    pub(super) fn clear(&mut self, now: Instant) {
        *self = Outcomes::new(self.extent, now);
    }

    /// What counts at `now`.
    pub(super) fn tally(&mut self, now: Instant) -> &Tally {
        self.turn(now);
        &self.tally
    }

    /// The outcomes below which nothing is judged: a window that holds fewer than `wanted` is judged when it is
    /// full, or it never would be.
    pub(super) fn least(&self, wanted: u32) -> u32 {
        match self.ring {
            Ring::Time { .. } => wanted,
            Ring::Count { size, .. } => wanted.min(size as u32),
        }
    }

    /// Counts an outcome.
    pub(super) fn add(&mut self, now: Instant, entry: Entry, endpoint: u32) -> &Tally {
        self.turn(now);
        match &mut self.ring {
            Ring::Time { buckets, current, .. } => buckets[*current].add(entry),
            Ring::Count { entries, size, .. } if entries.len() < *size => entries.push(entry),
            Ring::Count { entries, next, size } => {
                let mut oldest = Counts::default();
                oldest.add(std::mem::replace(&mut entries[*next], entry));
                *next = (*next + 1) % *size;
                self.tally.counts.subtract(oldest);
            }
        }
        self.tally.add(entry, endpoint);
        &self.tally
    }

    /// Drops what is too old.
    fn turn(&mut self, now: Instant) {
        if let Ring::Time { next, .. } = self.ring
            && now >= next
        {
            self.begin_bucket(now);
        }
    }

    /// PERF: apart, since it happens once a second, not with each outcome.
    #[cold]
    fn begin_bucket(&mut self, now: Instant) {
        let Ring::Time { buckets, current, length, next } = &mut self.ring else { return };
        let passed = now.saturating_duration_since(*next).as_nanos() / length.as_nanos() + 1;
        for _ in 0..passed.min(BUCKETS as u128) {
            *current = (*current + 1) % BUCKETS;
            self.tally.counts.subtract(std::mem::take(&mut buckets[*current]));
        }
        *next = if passed <= BUCKETS as u128 { *next + *length * passed as u32 } else { now + *length };
    }
}
