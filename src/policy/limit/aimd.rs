//! `aimd`: one more for each round of answers while the limit is used, a tenth less for a sign of overload, as TCP does it.
//!
//! A sign is a refusal, a timeout, or an answer that took longer than `latency`; without that, a limit rises until the
//! upstream times out, so it should be far below the timeout. A round is as many answers as the limit allows at once. Only
//! attempts that were sent after the last cut count: all those that were in flight say the same again. Until the
//! first sign it grows by one for each answer, which doubles it each round.

use std::time::{Duration, Instant};

use super::bounds::Bounds;
use super::sample::{Lesson, Sample};

const CUT: f64 = 0.9;

/// The state of an `aimd` limit.
#[derive(Debug)]
pub(super) struct Aimd {
    limit: f64,
    latency: Option<Duration>,
    /// When it was cut last.
    cut: Option<Instant>,
    /// Up to when it is used: somebody has found no slot.
    wanted: bool,
}

impl Aimd {
    pub(super) fn new(initial: f64, latency: Option<Duration>) -> Self {
        Self { limit: initial, latency, cut: None, wanted: false }
    }

    pub(super) fn limit(&self) -> f64 {
        self.limit
    }

    pub(super) fn update(&mut self, latency: Option<Duration>, bounds: &Bounds) {
        self.latency = latency;
        self.limit = bounds.clamp(self.limit);
    }

    /// Somebody found no slot, or took the last one.
    pub(super) fn saturated(&mut self) {
        self.wanted = true;
    }

    pub(super) fn answered(&mut self, now: Instant, in_flight: u32, sample: &Sample, bounds: &Bounds) {
        let counts = self.cut.is_none_or(|cut| sample.began >= cut);
        let slow = self.latency.is_some_and(|latency| sample.latency > latency);
        match sample.lesson {
            Lesson::Served if !slow => {
                if self.wanted {
                    let more = if self.cut.is_none() { 1.0 } else { 1.0 / self.limit };
                    self.limit = bounds.clamp(self.limit + more);
                }
                self.wanted &= f64::from(in_flight) >= self.limit / 2.0;
            }
            // Where it was not used, the limit is not what was too much.
            Lesson::Served | Lesson::Overloaded if counts && self.wanted => {
                self.limit = bounds.clamp(self.limit * CUT);
                self.cut = Some(now);
            }
            _ => {}
        }
    }
}
