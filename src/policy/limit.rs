//! Where a concurrency limit comes from: a number in the configuration, or one that is learnt from what attempts
//! show.
//!
//! Nobody knows the right number, and it changes with every deploy. What every attempt shows is how long it took,
//! whether the upstream called itself overloaded, and how many were in flight beside it; each kind makes a limit of
//! that. Pure: a [`Limiter`] is told what happens and when, and says how many may be in flight. Not here: who gets a
//! slot (`concurrency`), who waits for one (`queue`).

mod aimd;
mod bounds;
mod gradient;
mod harmless;
mod recent;
mod sample;
mod stall;
mod vegas;
mod window;

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::aimd::Aimd;
use self::bounds::{Bounds, Dice};
use self::gradient::Gradient;
use self::recent::Recent;
pub use self::sample::{Lesson, Sample};
use self::stall::Stall;
use self::vegas::Vegas;
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

/// How often somebody has to look whether more may be let through where nothing else happens: an upstream that is silent
/// gets one attempt each time.
pub const LOOK: Duration = stall::PROBE;

/// The limit of one upstream. Owned by its gate.
#[derive(Debug)]
pub struct Limiter {
    kind: Kind,
    bounds: Bounds,
    stall: Stall,
    recent: Recent,
    /// When the last stall was over.
    stalled: Option<Instant>,
    /// When an attempt was sent last.
    latest: Instant,
    /// Attempts in flight whose heads have come.
    answering: u32,
    dice: Dice,
}

#[derive(Debug)]
enum Kind {
    Fixed,
    Gradient(Box<Gradient>),
    Aimd(Aimd),
    Vegas(Box<Vegas>),
}

/// Where nothing was sent for so long, what was learnt is of another time: it may have been of another upstream, and a
/// base that is too low would strangle this one.
const SILENCE: Duration = Duration::from_secs(5);
/// A stall that follows another one within this time is the limit's fault, where all slots are taken. Where they are not, it is
/// that few are answered beside many that take long, as polls do.
const AGAIN: Duration = Duration::from_secs(2);

impl Limiter {
    /// At its beginning. `seed`: sidecars that differ in it do not probe in step.
    pub fn new(settings: &Settings, now: Instant, seed: u64) -> Self {
        let (bounds, dice) = (bounds(settings), Dice::new(seed));
        let kind = Kind::new(settings, &bounds, now, dice);
        let (stall, recent) = (Stall::new(), Recent::new(now));
        Self { kind, bounds, stall, recent, stalled: None, latest: now, answering: 0, dice }
    }

    /// Takes over changed settings. What was learnt stays, within the new bounds; another kind begins anew.
    pub fn update(&mut self, settings: &Settings) {
        self.bounds = bounds(settings);
        let bounds = self.bounds;
        match (&mut self.kind, settings) {
            (Kind::Fixed, Settings::Fixed { .. }) => {}
            (Kind::Gradient(gradient), Settings::Gradient { .. }) => gradient.clamp(&bounds),
            (Kind::Aimd(aimd), Settings::Aimd { latency, .. }) => {
                aimd.update(latency.map(|span| *span), &bounds);
            }
            (Kind::Vegas(vegas), Settings::Vegas { .. }) => vegas.clamp(&bounds),
            (kind, _) => *kind = Kind::new(settings, &bounds, self.latest, self.dice),
        }
    }

    /// How many may be in flight.
    pub fn limit(&self) -> u32 {
        let limit = match &self.kind {
            Kind::Fixed => self.bounds.max,
            Kind::Gradient(gradient) => gradient.limit(),
            Kind::Aimd(aimd) => aimd.limit(),
            Kind::Vegas(vegas) => vegas.limit(),
        };
        // INVARIANT: min and max are whole numbers, and every kind stays within them.
        limit.round() as u32
    }

    /// What nine of ten of the last attempts took at most: whoever has less time left had better not be sent. None: not
    /// known.
    pub fn need(&self, now: Instant) -> Option<Duration> {
        self.recent.p90(now)
    }

    /// Whether one more may be sent while `in_flight` are under way.
    pub fn admits(&mut self, now: Instant, in_flight: u32) -> bool {
        in_flight < self.limit() && self.stall.admits(now, self.recent.p50())
    }

    /// One more was sent; `in_flight` counts it.
    pub fn entered(&mut self, now: Instant, in_flight: u32) {
        if let Kind::Gradient(gradient) = &mut self.kind
            && in_flight == 1
            && now.saturating_duration_since(self.latest) >= SILENCE
        {
            **gradient = Gradient::new(gradient.limit().max(self.bounds.initial), now, self.dice);
        }
        self.latest = now;
        let unanswered = in_flight - self.answering;
        self.stall.entered(now, unanswered);
        let limit = self.limit();
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.window().entered(now, in_flight, unanswered, limit),
            Kind::Vegas(vegas) => vegas.window().entered(now, in_flight, unanswered, limit),
            Kind::Aimd(aimd) if in_flight >= limit => aimd.saturated(),
            Kind::Aimd(_) | Kind::Fixed => {}
        }
    }

    /// Somebody finds no slot: refused, or queued.
    pub fn saturated(&mut self, _now: Instant) {
        // In a stall nobody does, whatever the limit is.
        if self.stall.stands() {
            return;
        }
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.window().saturated(),
            Kind::Vegas(vegas) => vegas.window().saturated(),
            Kind::Aimd(aimd) => aimd.saturated(),
            Kind::Fixed => {}
        }
    }

    /// The head of an answer came, or the attempt failed; `in_flight` still counts it. Before or together with
    /// [`Limiter::left`].
    pub fn answered(&mut self, now: Instant, in_flight: u32, sample: Sample) {
        if sample.lesson == Lesson::Overloaded {
            self.stall.failed(now, self.recent.p50());
        }
        match sample.lesson {
            Lesson::Served => {
                self.stall.took(sample.latency);
                self.recent.took(now, sample.latency);
            }
            // It would have taken longer still.
            Lesson::Overloaded if self.recent.p50().is_some_and(|p50| sample.latency > p50) => {
                self.recent.took(now, sample.latency);
            }
            Lesson::Overloaded | Lesson::Nothing => {}
        }
        if sample.lesson != Lesson::Overloaded && self.stall.ended(now, in_flight - self.answering) {
            let is_full = in_flight >= self.limit();
            let again = self.stalled.replace(now).is_some_and(|last| is_full && sample.began < last + AGAIN);
            return self.forget(now, again);
        }
        if self.stall.stands() {
            return;
        }
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.answered(now, &sample, &self.bounds),
            Kind::Aimd(aimd) => aimd.answered(now, in_flight, &sample, &self.bounds),
            Kind::Vegas(vegas) => vegas.answered(now, &sample, &self.bounds),
            Kind::Fixed => {}
        }
    }

    /// What was answered last keeps its slot while its body flows.
    pub fn body_begins(&mut self) {
        self.answering += 1;
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.window().body_begins(),
            Kind::Vegas(vegas) => vegas.window().body_begins(),
            Kind::Aimd(_) | Kind::Fixed => {}
        }
    }

    /// Such a body has ended; its slot follows.
    pub fn body_ends(&mut self) {
        self.answering -= 1;
    }

    /// A slot came back, by the end of a body or as a stream; `in_flight` counts it no more.
    pub fn left(&mut self, now: Instant, in_flight: u32) {
        let unanswered = in_flight - self.answering;
        self.stall.left(unanswered);
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.window().left(now, in_flight, unanswered),
            Kind::Vegas(vegas) => vegas.window().left(now, in_flight, unanswered),
            Kind::Aimd(_) | Kind::Fixed => {}
        }
    }

    /// An attempt that has held its slot for `held` waits for its client, and lends the slot; `in_flight` counts it no
    /// more.
    pub fn lent(&mut self, now: Instant, in_flight: u32, held: Duration) {
        let unanswered = in_flight - self.answering;
        self.stall.left(unanswered);
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.window().lent(now, in_flight, unanswered, held),
            Kind::Vegas(vegas) => vegas.window().lent(now, in_flight, unanswered, held),
            Kind::Aimd(_) | Kind::Fixed => {}
        }
    }

    /// A stall is over: what it did to the latencies is no lesson.
    fn forget(&mut self, now: Instant, again: bool) {
        match &mut self.kind {
            Kind::Gradient(gradient) => gradient.forget(now, again, &self.bounds),
            Kind::Vegas(vegas) => vegas.forget(now),
            Kind::Aimd(_) | Kind::Fixed => {}
        }
    }
}

impl Kind {
    fn new(settings: &Settings, bounds: &Bounds, now: Instant, dice: Dice) -> Self {
        let initial = bounds.initial;
        match settings {
            Settings::Gradient { .. } => Kind::Gradient(Box::new(Gradient::new(initial, now, dice))),
            Settings::Aimd { latency, .. } => Kind::Aimd(Aimd::new(initial, latency.map(|span| *span))),
            Settings::Vegas { .. } => Kind::Vegas(Box::new(Vegas::new(initial, now, dice))),
            Settings::Fixed { .. } => Kind::Fixed,
        }
    }
}

fn bounds(settings: &Settings) -> Bounds {
    let max = f64::from(settings.max());
    let (min, initial) = settings.start().map_or((max, max), |(min, initial)| (min.into(), initial.into()));
    let bounds = Bounds { initial, min: min.min(max), max };
    Bounds { initial: bounds.clamp(initial), ..bounds }
}
