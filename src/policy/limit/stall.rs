//! A stall: nothing comes back any more. What is sent into one is work for nobody.
//!
//! While at least four attempts wait for their heads and no answer has come for five times what 99 of 100 take (50 ms at
//! least), one attempt is let through each 100 ms, until one is answered. A limit alone would let a full set in, and
//! another one whenever they time out. It is no sign of a limit that is too high, so nothing is learnt from it.
//!
//! Whoever times out looks too: where all slots are taken nobody asks for one, and they all time out together.
//!
//! Whoever finds the silence is the first of those that are let through: in an upstream that only has little to do beside
//! a few long polls it is answered at once, and nobody has waited. Bodies that flow are answers, however long they take.

use std::time::{Duration, Instant};

use crate::policy::histogram::{LEN, first_of, step_of};

/// Fewer in flight say nothing by their silence.
const ENOUGH: u32 = 4;
const SHORTEST: Duration = Duration::from_millis(50);
/// Times what 99 of 100 take.
const PATIENCE: u32 = 5;
/// From one that is let through to the next.
pub(super) const PROBE: Duration = Duration::from_millis(100);
/// Latencies that are remembered; then the older ones count half.
const MEMORY: u32 = 1024;
/// Whether anything comes back.
#[derive(Debug)]
pub(super) struct Stall {
    /// Since when enough are unanswered and no answer came.
    silent: Option<Instant>,
    /// While nothing comes back: when the next attempt is let through.
    next: Option<Instant>,
    counts: [u16; LEN],
    counted: u32,
    /// How long a silence may last; none: not known yet.
    patience: Option<Duration>,
}

impl Stall {
    pub(super) fn new() -> Self {
        Self { silent: None, next: None, counts: [0; LEN], counted: 0, patience: None }
    }

    /// Nothing comes back.
    pub(super) fn stands(&self) -> bool {
        self.next.is_some()
    }

    /// Whether an attempt may be sent into what may be a stall. `p50`: of the last few, which is above the p99 where the
    /// upstream has just become slow.
    pub(super) fn admits(&mut self, now: Instant, p50: Option<Duration>) -> bool {
        match self.next {
            Some(next) => now >= next,
            None => {
                self.next = self.is_too_long(now, p50).then(|| now + PROBE);
                true
            }
        }
    }

    /// Whether the silence is.
    fn is_too_long(&self, now: Instant, p50: Option<Duration>) -> bool {
        let (Some(silent), Some(patience)) = (self.silent, self.patience) else { return false };
        let lasts = now.saturating_duration_since(silent);
        lasts >= patience && p50.is_none_or(|p50| lasts >= p50 * PATIENCE)
    }

    /// An attempt was sent; `unanswered` counts it.
    pub(super) fn entered(&mut self, now: Instant, unanswered: u32) {
        if let Some(next) = &mut self.next {
            *next = now + PROBE;
        }
        if unanswered >= ENOUGH {
            self.silent.get_or_insert(now);
        }
    }

    /// An answer came, which `unanswered` still counts. True: that ends a stall.
    pub(super) fn ended(&mut self, now: Instant, unanswered: u32) -> bool {
        self.silent = (unanswered > ENOUGH).then_some(now);
        self.next.take().is_some()
    }

    /// An attempt has failed without an answer. `p50`: of those before it.
    pub(super) fn failed(&mut self, now: Instant, p50: Option<Duration>) {
        if self.next.is_none() && self.is_too_long(now, p50) {
            self.next = Some(now);
        }
    }

    /// A slot came back, with or without an answer.
    pub(super) fn left(&mut self, unanswered: u32) {
        if unanswered < ENOUGH {
            self.silent = None;
        }
    }

    /// How long an answer took.
    pub(super) fn took(&mut self, latency: Duration) {
        self.counts[step_of(latency)] += 1;
        self.counted += 1;
        if self.counted.is_multiple_of(64) {
            self.learn();
        }
    }

    fn learn(&mut self) {
        let rank = self.counted.div_ceil(100);
        let mut above = 0;
        let step = self.counts.iter().rposition(|count| {
            above += u32::from(*count);
            above >= rank
        });
        let p99 = Duration::from_micros(first_of(step.unwrap_or(LEN - 1) + 1));
        self.patience = Some(SHORTEST.max(p99 * PATIENCE));
        if self.counted >= MEMORY {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.counted = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
    }
}
