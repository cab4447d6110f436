//! The retry budget: how much load retries may add. Two gates, and a retry must pass both.
//!
//! **Cap** (after Finagle's retry budget): in any window, retries <= `min_per_second` x window + `ratio` x first
//! attempts. It bounds what retries add when a part of the requests fails.
//!
//! **Yield** (after AWS's standard mode): fifty tokens; a retry takes one and gives it back when it succeeds, and a
//! first attempt that succeeds adds a tenth. It closes when retries do not help: without it, the cap's floor alone
//! lets every small sidecar of a fleet treble its load in a full outage. Closed, it lets one retry through each
//! ten seconds, to find out.
//!
//! Rejected: Envoy's bound on retries in flight, which allows more the slower the upstream gets; gRPC's throttle,
//! which is off for good as soon as one in eleven attempts fails; costs in whole tokens, in which 0.7 acts as 1.
//!
//! One for each upstream, shared by all workers: a mutex around the cap (held for some nanoseconds), an atomic for
//! the tokens.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::retry::{BudgetSettings, Skip};

/// Tokens are counted in tenths.
const TOKEN: u32 = 10;
const FULL: u32 = 50 * TOKEN;
const FIRST_SUCCESS: u32 = 1;
/// With no token left, one retry in this time.
const TRICKLE: Duration = Duration::from_secs(10);
/// Ten buckets for the window and one that is filled.
const BUCKETS: usize = 11;

/// The retry budget of one upstream.
#[derive(Debug)]
pub struct Budget {
    cap: Mutex<Cap>,
    /// The yield gate's tokens, in tenths.
    tokens: AtomicU32,
}

/// A retry that is paid for. It is kept when dropped: the retry failed.
#[derive(Debug)]
#[must_use = "a retry that succeeded gives back what it took"]
pub struct Paid {
    budget: Arc<Budget>,
    /// What it took from the yield gate; a trickled retry takes nothing.
    taken: u32,
    /// The bucket that counts it.
    bucket: u64,
}

/// What the admin API shows of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct View {
    /// Retries that the cap would allow now.
    pub allowed: f64,
    /// First attempts in the window.
    pub firsts: u64,
    /// Retries in the window.
    pub retries: u64,
    /// Tokens of the yield gate, from 0 to 50.
    pub tokens: f64,
}

/// The window of first attempts and retries.
#[derive(Debug)]
struct Cap {
    settings: BudgetSettings,
    bucket_length: Duration,
    buckets: [Bucket; BUCKETS],
    /// The number of the bucket that is filled; it stands at this modulo [`BUCKETS`].
    current: u64,
    /// When the next bucket begins.
    next: Instant,
    firsts: u64,
    retries: u64,
    last_retry: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    firsts: u64,
    retries: u64,
}

impl Budget {
    /// A budget that has seen nothing: its floor is there, and all its tokens.
    pub fn new(settings: &BudgetSettings, now: Instant) -> Self {
        Self { cap: Mutex::new(Cap::new(settings, now)), tokens: AtomicU32::new(FULL) }
    }

    /// Takes over changed settings. What was learnt stays, unless the window's length changed.
    pub fn update(&self, settings: &BudgetSettings, now: Instant) {
        let mut cap = self.cap();
        if cap.settings.window == settings.window {
            cap.settings = *settings;
        } else {
            // The numbers of buckets go on, so that what old retries hold is none of the new ones.
            let current = cap.current + BUCKETS as u64;
            *cap = Cap { last_retry: cap.last_retry, current, ..Cap::new(settings, now) };
        }
    }

    /// Counts a first attempt.
    pub fn deposit(&self, now: Instant) {
        let mut cap = self.cap();
        cap.turn(now);
        cap.count(|bucket| &mut bucket.firsts, |cap| &mut cap.firsts);
    }

    /// Counts a first attempt that succeeded.
    pub fn first_succeeded(&self) {
        self.give(FIRST_SUCCESS);
    }

    /// Pays for a retry.
    ///
    /// # Errors
    /// [`Skip::Budget`] or [`Skip::Yield`]: the gate that is closed.
    pub fn withdraw(self: &Arc<Self>, now: Instant) -> Result<Paid, Skip> {
        let mut cap = self.cap();
        cap.turn(now);
        if cap.allowed() < 1.0 {
            return Err(Skip::Budget);
        }
        let taken = match self.tokens.fetch_update(Relaxed, Relaxed, |tokens| tokens.checked_sub(TOKEN)) {
            Ok(_) => TOKEN,
            Err(_) if cap.last_retry.is_none_or(|last| now.saturating_duration_since(last) >= TRICKLE) => 0,
            Err(_) => return Err(Skip::Yield),
        };
        cap.count(|bucket| &mut bucket.retries, |cap| &mut cap.retries);
        cap.last_retry = Some(now);
        Ok(Paid { taken, bucket: cap.current, budget: Arc::clone(self) })
    }

    /// What it looks like now.
    pub fn view(&self, now: Instant) -> View {
        let mut cap = self.cap();
        cap.turn(now);
        View {
            allowed: cap.allowed().max(0.0),
            firsts: cap.firsts,
            retries: cap.retries,
            tokens: f64::from(self.tokens.load(Relaxed)) / f64::from(TOKEN),
        }
    }

    fn give(&self, tenths: u32) {
        // PERF: in good times the gate is full, and this is one load.
        if self.tokens.load(Relaxed) < FULL {
            let more = |tokens: u32| Some((tokens + tenths).min(FULL));
            self.tokens.fetch_update(Relaxed, Relaxed, more).expect("`more` always gives a value");
        }
    }

    /// A panic elsewhere leaves only counts behind, so a poisoned lock is as good as any.
    fn cap(&self) -> MutexGuard<'_, Cap> {
        self.cap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Paid {
    /// The retry succeeded: retries help. The cap keeps what it counted, since the load was there.
    pub fn refund(self) {
        self.budget.give(TOKEN);
    }

    /// The retry was not sent after all (no slot, the client left during the back-off): nothing was taken.
    pub fn unsent(self) {
        self.budget.give(self.taken);
        self.budget.cap().uncount(self.bucket);
    }
}

impl Cap {
    fn new(settings: &BudgetSettings, now: Instant) -> Self {
        let bucket_length = *settings.window / (BUCKETS as u32 - 1);
        Self {
            settings: *settings,
            bucket_length,
            buckets: [Bucket::default(); BUCKETS],
            current: 0,
            next: now + bucket_length,
            firsts: 0,
            retries: 0,
            last_retry: None,
        }
    }

    /// How many more retries the window allows; below 1: none.
    fn allowed(&self) -> f64 {
        let floor = f64::from(self.settings.min_per_second) * self.settings.window.as_secs_f64();
        let ratio = self.settings.ratio.get() * self.firsts as f64;
        // Ten times 0.1 is 1, whatever the last bit says.
        floor + ratio - self.retries as f64 + 1e-9
    }

    fn turn(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        let passed = now.duration_since(self.next).as_nanos() / self.bucket_length.as_nanos() + 1;
        for _ in 0..passed.min(BUCKETS as u128) {
            self.current += 1;
            let oldest = std::mem::take(&mut self.buckets[self.current as usize % BUCKETS]);
            self.firsts -= oldest.firsts;
            self.retries -= oldest.retries;
        }
        self.next = if passed <= BUCKETS as u128 {
            self.next + self.bucket_length * passed as u32
        } else {
            now + self.bucket_length
        };
    }

    fn count(&mut self, of: fn(&mut Bucket) -> &mut u64, sum: fn(&mut Cap) -> &mut u64) {
        *of(&mut self.buckets[self.current as usize % BUCKETS]) += 1;
        *sum(self) += 1;
    }

    fn uncount(&mut self, bucket: u64) {
        if self.current - bucket < BUCKETS as u64 {
            self.buckets[bucket as usize % BUCKETS].retries -= 1;
            self.retries -= 1;
        }
    }
}

#[cfg(test)]
mod tests;
