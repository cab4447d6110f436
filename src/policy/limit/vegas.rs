//! `vegas`: keeps a small queue in the upstream, after TCP Vegas as Netflix's concurrency-limits has it.
//!
//! The queue is what part of the latency is above the base: L x (1 - base / p50). Below log10 L it grows by six times
//! that, below three times that by one, above six times that it shrinks by one, and refusals or a doubled latency cost
//! it a tenth. In windows, not for each sample: the lowest of all samples is that of the cheapest request, against which
//! all others seem to queue. The base is the lowest p50, and each 30 s it is found anew at half the limit; taken
//! where the limit is it would climb with the queue.

use std::time::{Duration, Instant};

use super::bounds::{Bounds, Dice};
use super::sample::Sample;
use super::window::{Seen, Window};

const WINDOW: [(u32, Duration); 2] = [(30, Duration::from_millis(100)), (10, Duration::from_secs(1))];
const RENEW: f64 = 30.0;
const REFUSED: f64 = 0.05;

/// The state of a `vegas` limit.
#[derive(Debug)]
pub(super) struct Vegas {
    limit: f64,
    base: Option<f64>,
    window: Window,
    /// The base is found anew at this limit.
    renews: Option<f64>,
    renew_at: Instant,
    dice: Dice,
}

impl Vegas {
    pub(super) fn new(initial: f64, now: Instant, mut dice: Dice) -> Self {
        // The first base is found as soon as the limit is used.
        let renew_at = now + Duration::from_secs_f64(dice.draw());
        Self { limit: initial, base: None, window: Window::new(now), renews: None, renew_at, dice }
    }

    pub(super) fn limit(&self) -> f64 {
        self.renews.unwrap_or(self.limit)
    }

    pub(super) fn clamp(&mut self, bounds: &Bounds) {
        self.limit = bounds.clamp(self.limit);
        self.renews = self.renews.map(|limit| bounds.clamp(limit));
    }

    pub(super) fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    pub(super) fn forget(&mut self, now: Instant) {
        self.window.clear(now, now);
    }

    pub(super) fn answered(&mut self, now: Instant, sample: &Sample, bounds: &Bounds) {
        self.window.answered(now, sample, Duration::from_secs_f64(self.base.unwrap_or(0.0)));
        let (ended, length) = self.window.size(now);
        if !WINDOW.iter().any(|(enough, shortest)| ended >= *enough && length >= *shortest) {
            return;
        }
        let Some(seen) = self.window.seen(now) else { return };
        self.window.clear(now, self.window.from());
        if self.renews.take().is_some() {
            if !seen.cut_off {
                self.base = Some(seen.latency);
            }
            self.window.clear(now, now);
        } else if seen.saturated {
            self.follow(now, &seen, bounds);
        } else if !seen.cut_off {
            // The upstream's own time, where half of the slots are free.
            let base = self.base.unwrap_or(seen.latency);
            let follows = seen.latency < base || seen.mean < self.limit / 2.0;
            self.base = Some(if follows { base + 0.3 * (seen.latency - base) } else { base });
        }
    }

    fn follow(&mut self, now: Instant, seen: &Seen, bounds: &Bounds) {
        if now >= self.renew_at {
            self.renew_at = now + Duration::from_secs_f64(RENEW * (0.8 + 0.4 * self.dice.draw()));
            self.renews = Some(bounds.clamp(self.limit / 2.0));
            return self.window.clear(now, now);
        }
        let base = self.base.unwrap_or(seen.latency).min(seen.latency);
        self.base = Some(base);
        let queue = self.limit * (1.0 - base / seen.latency);
        let unit = self.limit.log10().max(1.0);
        let next = match queue {
            _ if seen.cut_off || seen.refused > REFUSED || seen.latency >= 2.0 * base => self.limit * 0.9,
            few if few <= unit => self.limit + 6.0 * unit,
            some if some < 3.0 * unit => self.limit + unit,
            many if many > 6.0 * unit => self.limit - unit,
            _ => self.limit,
        };
        self.limit = bounds.clamp(next);
    }
}
