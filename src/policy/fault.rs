//! Fault injection: what is done to some requests on purpose, as if their upstream had done it, and when that ends.
//!
//! A fault proves that retries, breaker and fallbacks do what their configuration promises, and is the one policy that
//! only ever hurts. So it is hemmed in, and every guard is on unless somebody writes otherwise:
//!
//! - It hits at most a fifth of the requests, or those that carry a header which a trusted caller has set; `critical`
//!   ones only where they are named. A configuration that says otherwise without `allow_wide` is refused.
//! - At most `max_active` requests are under it at once. Each holds an [`Active`], which goes back when dropped: a count
//!   that leaks when a client leaves would end the fault unseen (envoyproxy/envoy#11504), and one that a whole stream
//!   holds would do so too (#14762). So a stream that crawls counts only until it is one.
//! - It ends by itself, and at once where of several endpoints fewer than two healthy ones are left: what was meant to
//!   show how a failure is survived must not become the one that is not. What has stopped stays so until it is written
//!   anew: nobody is looking any more.
//!
//! Pure: time, draws and what is known of the endpoints go in. Not here: the waiting and breaking itself
//! (`proxy::fault`), and the burn rate of an objective as one more reason to stop.

pub mod settings;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use self::settings::{
    Abort, Asked, Bandwidth, Delay, End, Match, Plan, Reset, Settings, Switch, Truncate, WIDE,
};

/// A fault in force. One for the process: its counts are those of all workers.
#[derive(Debug)]
pub struct Fault {
    settings: Settings,
    until: Instant,
    active: AtomicU32,
    /// Attempts that it was for.
    matched: AtomicU64,
    /// Attempts to which something was done.
    injected: AtomicU64,
    /// Whether its upstream ever had several endpoints.
    had_several: AtomicBool,
    stopped: OnceLock<(Stop, Instant)>,
}

/// What there is of an upstream's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// All of them.
    pub all: usize,
    /// Those that neither their traffic nor their check has put out of service.
    pub healthy: usize,
}

/// Why a fault has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its time is over.
    Time,
    /// Of several endpoints fewer than two healthy ones are left.
    Endpoints,
    /// Somebody switched it off.
    Switched,
    /// Another one was put in its place.
    Replaced,
    /// The configuration does not have it any more.
    Removed,
}

/// What a fault does to one attempt.
#[derive(Debug)]
pub enum Ruling {
    /// It is not for this request, or it has ended: another may be.
    NotMeant,
    /// It is, and the draw has spared it.
    Spared,
    /// It would, if there were not `max_active` already.
    Full,
    /// This.
    Inject(Plan, Active),
}

/// A request under a fault, until dropped or let go of.
#[derive(Debug)]
#[must_use = "it counts as long as it is kept"]
pub struct Active {
    fault: Arc<Fault>,
    counts: bool,
}

impl Fault {
    /// A fault that begins at `now`.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            until: now + *settings.lasts,
            settings,
            active: AtomicU32::new(0),
            matched: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            had_several: AtomicBool::new(false),
            stopped: OnceLock::new(),
        }
    }

    /// What it does to an attempt of `request`. `draw` gives random numbers from 0 to 1, 1 excluded.
    pub fn rule(self: &Arc<Self>, now: Instant, request: &Asked<'_>, draw: impl FnMut() -> f64) -> Ruling {
        if self.is_over(now) || !self.settings.matches.holds(request) {
            return Ruling::NotMeant;
        }
        self.matched.fetch_add(1, Relaxed);
        let Some(plan) = self.settings.draw(draw) else { return Ruling::Spared };
        let enter = |active: u32| (active < self.settings.max_active).then_some(active + 1);
        if self.active.fetch_update(Relaxed, Relaxed, enter).is_err() {
            return Ruling::Full;
        }
        self.injected.fetch_add(1, Relaxed);
        Ruling::Inject(plan, Active { fault: Arc::clone(self), counts: true })
    }

    /// Why it must stop now, if it must; it has not yet.
    pub fn must_stop(&self, now: Instant, endpoints: Endpoints) -> Option<Stop> {
        if endpoints.all > 1 {
            self.had_several.store(true, Relaxed);
        }
        if self.stopped.get().is_some() {
            None
        } else if now >= self.until {
            Some(Stop::Time)
        } else {
            (self.had_several.load(Relaxed) && endpoints.healthy < 2).then_some(Stop::Endpoints)
        }
    }

    /// It stops. False: it had stopped before, and stays so for that reason.
    pub fn stop(&self, why: Stop, now: Instant) -> bool {
        self.stopped.set((why, now)).is_ok()
    }

    /// Whether it has ended, noticed or not.
    pub fn is_over(&self, now: Instant) -> bool {
        self.stopped.get().is_some() || now >= self.until
    }

    /// Why it has stopped, and when.
    pub fn stopped(&self) -> Option<(Stop, Instant)> {
        self.stopped.get().copied()
    }

    /// What it was asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How long it still lasts if nothing stops it.
    pub fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    /// Requests that are under it.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Attempts that it was for, and those of them to which something was done.
    pub fn counts(&self) -> (u64, u64) {
        (self.matched.load(Relaxed), self.injected.load(Relaxed))
    }
}

impl Stop {
    /// In words, for log and admin API.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Time => "its time is over",
            Self::Endpoints => "fewer than two of several endpoints are healthy",
            Self::Switched => "switched off by the admin API",
            Self::Replaced => "another one was put in its place",
            Self::Removed => "the configuration does not have it any more",
        }
    }
}

impl Active {
    /// Whether its fault has ended: what still waits or crawls for it goes on as usual.
    pub fn is_over(&self, now: Instant) -> bool {
        self.fault.is_over(now)
    }

    /// It counts no more, and is still told when its fault ends: it has become a stream, which may go on for as long as
    /// the fault does.
    pub fn let_go(&mut self) {
        if std::mem::replace(&mut self.counts, false) {
            self.fault.active.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// How a body crawls: pieces of a twentieth of a second each, so that it never stands still for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    rate: u64,
    began: Instant,
}

impl Pace {
    /// `rate` bytes in a second, at least one, from `began` on.
    pub fn new(rate: u64, began: Instant) -> Self {
        Self { rate: rate.max(1), began }
    }

    /// How many bytes may have passed at `now`, the first piece included.
    pub fn allowed(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_micros();
        (u128::from(self.rate) * passed / 1_000_000).min(u128::from(u64::MAX - self.rate)) as u64
            + self.piece()
    }

    /// When the next piece may pass, if `passed` bytes have.
    pub fn next(&self, passed: u64) -> Instant {
        self.began + Duration::from_secs_f64(passed.max(1) as f64 / self.rate as f64)
    }

    fn piece(&self) -> u64 {
        (self.rate / 20).max(1)
    }
}

#[cfg(test)]
mod tests;
