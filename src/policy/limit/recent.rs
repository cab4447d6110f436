//! What the last few attempts took.
//!
//! `latency` remembers ten seconds, and is right about an upstream that does not change. One that has become eight times
//! slower a moment ago answers so seldom that it goes on showing the old p50 for most of those ten seconds, and whoever
//! waits for a slot would be sent without the time that it takes. Thirty-two attempts are as long as they last.

use std::time::{Duration, Instant};

/// How many are remembered, and after how many more it is looked at anew.
const MEMORY: usize = 32;
const LOOK: usize = 8;
/// What was seen longer ago than this says nothing of now.
const FRESH: Duration = Duration::from_secs(10);

/// The last latencies.
#[derive(Debug)]
pub(super) struct Recent {
    micros: [u32; MEMORY],
    /// How many came, ever.
    seen: usize,
    p50: Duration,
    p90: Duration,
    last: Instant,
}

impl Recent {
    pub(super) fn new(now: Instant) -> Self {
        Self { micros: [0; MEMORY], seen: 0, p50: Duration::ZERO, p90: Duration::ZERO, last: now }
    }

    pub(super) fn took(&mut self, now: Instant, latency: Duration) {
        if now.saturating_duration_since(self.last) > FRESH {
            self.seen = 0;
        }
        self.last = now;
        self.micros[self.seen % MEMORY] = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.seen += 1;
        if self.seen.is_multiple_of(LOOK) {
            let count = self.seen.min(MEMORY);
            let mut micros = self.micros;
            let mut nth = |nth: usize| {
                let (_, found, _) = micros[..count].select_nth_unstable(nth);
                Duration::from_micros((*found).into())
            };
            (self.p50, self.p90) = (nth(count / 2), nth(count * 9 / 10));
        }
        if self.seen == 2 * MEMORY {
            self.seen = MEMORY;
        }
    }

    /// Half of them took at most this long; none: too few.
    pub(super) fn p50(&self) -> Option<Duration> {
        (self.seen >= LOOK).then_some(self.p50)
    }

    /// Nine of ten took at most this long.
    pub(super) fn p90(&self, now: Instant) -> Option<Duration> {
        let is_fresh = now.saturating_duration_since(self.last) <= FRESH;
        (is_fresh && self.seen >= LOOK).then_some(self.p90)
    }
}
