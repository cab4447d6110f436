//! Where a concurrency limit comes from: a number in the configuration, or one that is learnt from what attempts
//! show.
//!
//! Nobody knows the right number, and it changes with every deploy. What every attempt shows is how long it took,
//! whether the upstream called itself overloaded, and how many were in flight beside it; each kind makes a limit of
//! that. Pure: a [`Limiter`] is told what happens and when, and says how many may be in flight. Not here: who gets a
//! slot (`concurrency`), who waits for one (`queue`).

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Span, within};

/// `limit`: where the number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Settings {
    /// Found from the latency: as many as the upstream works on without a queue of its own.
    Gradient {
        /// Where it begins. From 1 to 1,000,000. Default 20.
        #[serde(default = "initial", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        initial: u32,
        /// It never gets below. From 1 to 1,000,000. Default 4.
        #[serde(default = "min", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        min: u32,
        /// It never gets above. From 1 to 1,000,000. Default 1000.
        #[serde(default = "max", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        max: u32,
    },
    /// One more with every answer while it is used, a tenth less with every sign of overload.
    Aimd {
        /// Where it begins. From 1 to 1,000,000. Default 20.
        #[serde(default = "initial", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        initial: u32,
        /// It never gets below. From 1 to 1,000,000. Default 4.
        #[serde(default = "min", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        min: u32,
        /// It never gets above. From 1 to 1,000,000. Default 1000.
        #[serde(default = "max", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        max: u32,
        /// An answer that takes longer is a sign of overload. It should be far below the timeout. Default: none is.
        #[serde(default)]
        latency: Option<Span>,
    },
    /// Found from how much of the latency is queue (TCP Vegas).
    Vegas {
        /// Where it begins. From 1 to 1,000,000. Default 20.
        #[serde(default = "initial", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        initial: u32,
        /// It never gets below. From 1 to 1,000,000. Default 4.
        #[serde(default = "min", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        min: u32,
        /// It never gets above. From 1 to 1,000,000. Default 1000.
        #[serde(default = "max", deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        max: u32,
    },
    /// The number in the configuration.
    Fixed {
        /// Attempts in flight. From 1 to 1,000,000.
        #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
        #[schemars(range(min = 1, max = 1_000_000))]
        max: u32,
    },
}

fn initial() -> u32 {
    20
}

fn min() -> u32 {
    4
}

fn max() -> u32 {
    1000
}

impl Settings {
    /// What it never gets above.
    pub fn max(&self) -> u32 {
        match *self {
            Settings::Gradient { max, .. }
            | Settings::Aimd { max, .. }
            | Settings::Vegas { max, .. }
            | Settings::Fixed { max } => max,
        }
    }

    /// `min` and `initial`; none where it does not move.
    pub fn start(&self) -> Option<(u32, u32)> {
        match *self {
            Settings::Gradient { initial, min, .. }
            | Settings::Aimd { initial, min, .. }
            | Settings::Vegas { initial, min, .. } => Some((min, initial)),
            Settings::Fixed { .. } => None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings::Gradient { initial: initial(), min: min(), max: max() }
    }
}

/// What an attempt that held a slot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was sent.
    pub began: Instant,
    /// From then to the head of its answer, or to its failure.
    pub latency: Duration,
    /// What that says.
    pub lesson: Lesson,
}

/// What an attempt's end says of the upstream. An attempt that was given up for its caller's sake (the client left, its
/// deadline came before the attempt could show anything) is none: its slot only [leaves](Limiter::left), since the
/// upstream did not say a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// It did work; its latency counts.
    Served,
    /// It has too much to do: a timeout that is evidence, a 503 with Retry-After or from an Outrigger.
    Overloaded,
    /// An answer that is one caller's matter (429, RESOURCE_EXHAUSTED), or another failure: that it came is all it
    /// says.
    Nothing,
}

/// The limit of one upstream. Owned by its gate.
#[derive(Debug)]
pub struct Limiter {
    limit: u32,
}

impl Limiter {
    /// At its beginning. `seed`: sidecars that differ in it do not probe in step.
    pub fn new(settings: &Settings, _now: Instant, _seed: u64) -> Self {
        Self {
            limit: settings
                .start()
                .map_or(settings.max(), |(min, initial)| initial.max(min).min(settings.max())),
        }
    }

    /// Takes over changed settings. What was learnt stays, within the new bounds; another kind begins there.
    pub fn update(&mut self, settings: &Settings) {
        self.limit =
            settings.start().map_or(settings.max(), |(min, _)| self.limit.max(min).min(settings.max()));
    }

    /// How many may be in flight.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether one more may be sent while `in_flight` are under way.
    pub fn admits(&mut self, _now: Instant, in_flight: u32) -> bool {
        in_flight < self.limit
    }

    /// One more was sent; `in_flight` counts it.
    pub fn entered(&mut self, _now: Instant, _in_flight: u32) {}

    /// Somebody finds no slot: refused, or queued.
    pub fn saturated(&mut self, _now: Instant) {}

    /// The head of an answer came, or the attempt failed. Before or together with [`Limiter::left`].
    pub fn answered(&mut self, _now: Instant, _in_flight: u32, _sample: Sample) {}

    /// A slot came back, by the end of a body or as a stream; `in_flight` counts it no more.
    pub fn left(&mut self, _now: Instant, _in_flight: u32) {}
}
