//! Shedding: refuses the least important requests of an upstream that gets more than it can serve.
//!
//! One for each upstream, shared by all workers. The concurrency limit finds out that there is too much, and its queue
//! serves who matters most first; but it refuses whoever comes at the wrong moment, so of a session of ten calls hardly
//! one comes through whole. Shedding refuses before that, always the same callers, in an order:
//!
//! request -> level (`level`: class and caller) -> counted (`arrivals`) -> below the cut-off? passes, else `load_shed`
//! each 500 ms: what the gate shows -> wanted share (`share`) -> its percentile of the last second's levels: the cut-off
//!
//! The cut-off is one number that all workers load, so in one tick nothing passes that matters less than what is shed.
//! Asking costs a load, a comparison and an addition. Nothing waits here, and there is no task: the workers' rounds call
//! [`Shed::tick`], with or without traffic.
//!
//! Beside it, the process's own need (`strain`), and what an Outrigger as upstream says of its cut-off (`source`).
//!
//! Rejected: shedding at random (kills sessions of k calls with (1-p)^k); a cut-off by CPU (a sidecar's says nothing of
//! its upstream); partitions of the limit by class (`Netflix`), which bind only once the limit is full; a single level
//! for each class, which sheds all of it or nothing.

pub mod arrivals;
pub mod level;
pub mod share;
pub mod source;
pub mod strain;

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use self::arrivals::{Arrivals, Window};
use self::level::LEVELS;
use self::share::{Seen, Share};
use self::source::{Source, reported};
use self::strain::Strain;
use crate::policy::key::Key;
use crate::policy::mode::Mode;
use crate::units::{OrNone, Ratio, Size, Span};

/// `[upstream.NAME.shed]`: who is refused first when there is too much.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`, where the table is written.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// Whose requests live or die together: `header:NAME`, `cookie:NAME`, `path` or `client_ip`. Default: each request
    /// for itself.
    pub caller: Option<Key>,
    /// How much memory may be used before `low` is shed, then `normal`: a ratio of the cgroup's limit (nothing where
    /// there is none), a size of this process, or `"none"`. Default 0.9.
    pub memory: Memory,
    /// How late its event loop may be before it does the same, or `"none"`. Default `"50ms"`.
    pub lag: OrNone<Span>,
}

/// A bound of memory.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Memory {
    /// There is none.
    None,
    /// A ratio of the cgroup's limit.
    Share(Ratio),
    /// Bytes.
    Size(Size),
}

/// A bound of memory as it is written.
#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "a ratio such as 0.9, a size such as \"64MiB\", or \"none\" is needed")]
enum Written {
    Number(f64),
    Text(String),
}

impl TryFrom<Written> for Memory {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(share) if share > 0.0 => Ratio::try_from(share).map(Memory::Share),
            Written::Number(share) => {
                Err(format!("{share} is no memory at all; give a ratio such as 0.9, or \"none\""))
            }
            Written::Text(text) if text == "none" => Ok(Memory::None),
            Written::Text(text) if text.parse::<f64>().is_ok() => {
                Self::try_from(Written::Number(text.parse().unwrap_or_default()))
            }
            Written::Text(text) => match text.parse::<Size>() {
                Ok(size) if size.bytes() > 0 => Ok(Memory::Size(size)),
                Ok(_) => {
                    Err(format!("{text:?} is no memory at all; give a size such as \"64MiB\", or \"none\""))
                }
                Err(error) => Err(format!("{error}, a ratio such as 0.9, or \"none\"")),
            },
        }
    }
}

impl From<Memory> for Written {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::None => Written::Text("none".to_owned()),
            Memory::Share(share) => Written::Number(share.get()),
            Memory::Size(size) => Written::Text(size.to_string()),
        }
    }
}

impl JsonSchema for Memory {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Memory".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "number", "exclusiveMinimum": 0, "maximum": 1 },
            generator.subschema_for::<Size>(),
            { "const": "none" },
        ] })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            caller: None,
            memory: Memory::Share(Ratio::new(0.9)),
            lag: OrNone(Some(Span::from_millis(50))),
        }
    }
}

/// How often the cut-off is moved.
pub const TICK: Duration = Duration::from_millis(500);

/// Ticks without shedding until it is over: what begins again within 5 s goes on.
const QUIET: u32 = 10;

/// How the process itself does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Health {
    /// Bytes of memory that the process uses; 0: not known.
    pub memory: u64,
    /// What of its cgroup's limit is used, by whoever is in it; 0: there is none.
    pub memory_share: f64,
    /// How late the event loop is.
    pub lag: Duration,
}

impl Settings {
    /// Where the process stands: 1 and more is beyond a bound.
    fn pressure(&self, health: &Health) -> f64 {
        let of = |value: f64, bound: f64| if bound > 0.0 { value / bound } else { 0.0 };
        let memory = match self.memory {
            Memory::None => 0.0,
            Memory::Share(share) => of(health.memory_share, share.get()),
            Memory::Size(size) => of(health.memory as f64, size.bytes() as f64),
        };
        let lag = self.lag.map_or(0.0, |bound| of(health.lag.as_secs_f64(), bound.as_secs_f64()));
        memory.max(lag)
    }
}

/// Which requests of one upstream are shed. One for the process.
pub struct Shed {
    /// Levels from this one on are shed: both reasons together.
    cutoff: AtomicU16,
    /// Levels from this one on are shed for the process's own sake.
    own: AtomicU16,
    /// Levels from this one on may have been shed before they came here, by whoever was told the cut-off.
    told: AtomicU16,
    /// Seconds since 1970, as of the last tick.
    seconds: AtomicU64,
    arrivals: Arrivals,
    /// Requests since the last tick that completed, that were refused for want of a slot, that were only shadowed.
    completed: AtomicU32,
    refused: AtomicU32,
    passed: AtomicU32,
    /// Requests shed since shedding began.
    shed: AtomicU32,
    /// When it is worth to come back, in milliseconds.
    retry_after: AtomicU32,
    /// Held by the one who moves the cut-off; nobody waits for it.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: Instant,
    share: Share,
    strain: Strain,
    window: Window,
    /// The cut-off without the process's own need.
    cutoff: u16,
    /// Since when anything is shed, and for how many ticks nothing has been.
    episode: Option<(Instant, u32)>,
}

/// A request that is shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether this process sheds for its own sake.
    pub own: bool,
    /// When it is worth to come back.
    pub retry_after: Duration,
}

/// Shedding began or ended, for the log: so it ends only when nothing was shed for 5 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// It began.
    Began {
        /// The wanted share.
        share: f64,
        /// Levels from this one on are shed.
        cutoff: u16,
        /// Whether this process sheds for its own sake.
        own: bool,
    },
    /// It has ended.
    Ended {
        /// How long it lasted.
        after: Duration,
        /// How many requests were shed, or would have been.
        shed: u32,
    },
}

/// What the admin API shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct View {
    /// The share of requests that is to be shed.
    pub share: f64,
    /// Levels from this one on are shed; 512: none.
    pub cutoff: u16,
    /// The same for the process's own sake alone.
    pub own_cutoff: u16,
    /// Levels of the upstream's own cut-off, where that is an Outrigger and says so.
    pub source_cutoff: u16,
}

/// What sheds requests of one upstream.
#[derive(Debug)]
pub struct Shedding {
    /// What is found out here.
    pub own: Shed,
    /// What the upstream says.
    pub source: Source,
}

impl Shedding {
    /// Sheds nothing. `seconds`: since 1970.
    pub fn new(now: Instant, seconds: u64) -> Self {
        Self { own: Shed::new(now, seconds), source: Source::default() }
    }

    /// What the admin API shows of it.
    pub fn view(&self) -> View {
        let Shed { state, cutoff, own, .. } = &self.own;
        View {
            share: state.lock().unwrap_or_else(PoisonError::into_inner).share.get(),
            cutoff: cutoff.load(Relaxed),
            own_cutoff: own.load(Relaxed),
            source_cutoff: self.source.cutoff(),
        }
    }
}

impl Shed {
    /// Sheds nothing. `seconds`: since 1970.
    pub fn new(now: Instant, seconds: u64) -> Self {
        Self {
            cutoff: AtomicU16::new(LEVELS),
            own: AtomicU16::new(LEVELS),
            told: AtomicU16::new(LEVELS),
            seconds: AtomicU64::new(seconds),
            arrivals: Arrivals::default(),
            completed: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            passed: AtomicU32::new(0),
            shed: AtomicU32::new(0),
            retry_after: AtomicU32::new(0),
            state: Mutex::new(State {
                next: now + TICK,
                share: Share::default(),
                strain: Strain::default(),
                window: Window::default(),
                cutoff: LEVELS,
                episode: None,
            }),
        }
    }

    /// Seconds since 1970, for [`level::level`]; not older than a tick.
    pub fn seconds(&self) -> u64 {
        self.seconds.load(Relaxed)
    }

    /// Levels from this one on are shed.
    pub fn cutoff(&self) -> u16 {
        self.cutoff.load(Relaxed)
    }

    /// Asks for a request of this level, and counts it.
    ///
    /// # Errors
    /// [`Refusal`] where it is to be shed.
    pub fn admit(&self, level: u16) -> Result<(), Refusal> {
        self.arrivals.add(level, 1);
        if level < self.cutoff.load(Relaxed) {
            return Ok(());
        }
        self.shed.fetch_add(1, Relaxed);
        let own = level >= self.own.load(Relaxed);
        let retry_after = Duration::from_millis(self.retry_after.load(Relaxed).into());
        Err(Refusal { own, retry_after: retry_after.max(TICK) })
    }

    /// A request that came here brings what its source says to have shed before it. It is believed as far as it can be
    /// true (`source`): of what our cut-off sheds.
    pub fn shed_at_the_source(&self, report: &[u8]) {
        let told = self.told.load(Relaxed);
        if told < LEVELS {
            let believed = reported(report).filter(|(level, _)| *level >= told);
            believed.for_each(|(level, count)| self.arrivals.add(level, count));
        }
    }

    /// A request that was to be shed has passed: in shadow.
    pub fn passed(&self) {
        self.passed.fetch_add(1, Relaxed);
    }

    /// A request that passed has completed, well or not.
    pub fn completed(&self) {
        self.completed.fetch_add(1, Relaxed);
    }

    /// A request that passed was refused for want of a slot.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Moves the cut-off if it is time to; `gate` shows who is in flight, the limit, and who waits. `seconds`: since
    /// 1970.
    pub fn tick(
        &self,
        (now, seconds): (Instant, u64),
        settings: &Settings,
        gate: impl FnOnce() -> (u32, u32, usize),
        health: impl FnOnce() -> Health,
    ) -> Option<Change> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        if now < state.next {
            return None;
        }
        state.next = now + TICK;
        self.seconds.store(seconds, Relaxed);
        let (in_flight, limit, waiting) = gate();
        let seen = Seen {
            completed: self.completed.swap(0, Relaxed),
            refused: self.refused.swap(0, Relaxed),
            passed: self.passed.swap(0, Relaxed),
            waiting: waiting as u32,
            in_flight,
            limit,
        };
        state.window.turn(&self.arrivals);
        (state.share, state.strain) = match settings.mode {
            Mode::Off => Default::default(),
            _ => (state.share.step(&seen), state.strain.step(settings.pressure(&health()))),
        };
        let own = state.strain.cutoff();
        let wanted = state.share.get();
        // Where nobody came, nothing says where the share would lie: it stays where it is, and soon goes back.
        state.cutoff =
            if wanted > 0.0 { state.window.cutoff(wanted).unwrap_or(state.cutoff) } else { LEVELS };
        let cutoff = own.min(state.cutoff);
        let back = TICK * state.share.steps_to_rest();
        self.retry_after.store(back.as_millis() as u32, Relaxed);
        self.own.store(own, Relaxed);
        // What was shed by the cut-off before this one may be on its way yet.
        let before = self.cutoff.swap(cutoff, Relaxed);
        self.told.store(if cutoff < LEVELS { cutoff.min(before) } else { LEVELS }, Relaxed);
        match (&mut state.episode, cutoff < LEVELS) {
            (None, true) => {
                state.episode = Some((now, 0));
                Some(Change::Began { share: wanted, cutoff, own: own < LEVELS })
            }
            (Some((_, quiet)), true) => {
                *quiet = 0;
                None
            }
            (Some((since, quiet)), false) if *quiet >= QUIET => {
                let after = now.saturating_duration_since(*since).saturating_sub(TICK * QUIET);
                state.episode = None;
                Some(Change::Ended { after, shed: self.shed.swap(0, Relaxed) })
            }
            (Some((_, quiet)), false) => {
                *quiet += 1;
                None
            }
            (None, false) => None,
        }
    }
}

impl fmt::Debug for Shed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shed").field("cutoff", &self.cutoff).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
