//! Hedges: a second sending of a request beside one that is slow, to cut the tail (Dean, Barroso: "The Tail at Scale").
//! The first good answer wins, the other attempt is cancelled.
//!
//! **When.** After a percentile of what this upstream shows, or a fixed time. Of a percentile, never earlier than the
//! budget can pay for: at `budget = 0.03` three requests in a hundred may be hedged, so they should be the slowest three
//! (p97), not those of the slowest five that come first. And where an upstream is slow now and then, and else quick, it
//! waits on until four of five that still wait are really slow (`WORTH`): most of those that are a little late are
//! there before their hedge could be. (2 % slower by 300 ms, the others all alike: 2.5 % are hedged, not 5 %.)
//!
//! **What the percentile is of.** Attempts that are no hedges themselves, each with the time to its head; one that lost
//! against its hedge with its age when it was cancelled. It lost after the delay, so whatever its latency would have
//! been, it counts above the delay: the share of attempts that are slower than the delay is exact, and hedges breed no
//! hedges. Rejected: to count hedges too (after Finagle). A hedge is seen whole only where it is fast enough to win, so
//! they pull the percentile down.
//!
//! **What it may cost.** Three gates: a budget of its own, and the two of the retries (`budget`), for both are load that
//! nobody asked for. Its own is filled by first attempts and starts empty, so hedges <= `budget` x first attempts from
//! the beginning; what a calm stretch leaves over is kept up to [`BURST`]. A hedge that wins gives the retries' yield gate
//! back what it took, as a retry that succeeds does; one that loses or fails does not.
//!
//! **When not** ([`Skip`]). Under saturation, a hedge takes what a first attempt needs. Where there is no tail: not
//! even one in ten of the requests that are slower than the delay takes 1.3 x p50. (Not p95 against p50: where 2 % are
//! thirty times slower, p95 is that of the fast ones.) Where hedges do not help: fewer than one in ten of the last
//! fifty won; then one each ten seconds finds out whether they do again.
//!
//! **Whom.** What retries may send twice by its method, less what changes something: a PUT whose first sending lost is
//! perhaps still on its way when its client, which has its answer, sends the next one.
//!
//! One for each upstream, shared by all workers and by all routes, whatever they say of it: atomics, and a mutex that
//! only hedges touch.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::histogram::{Counts, Histogram};
use super::mode::Mode;
use super::{budget, deadline, retry, words};
use crate::units::{Ratio, Span};

/// `[upstream.NAME.hedge]`: a second sending beside a slow one.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `off`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// When a request that has no answer is sent a second time: a percentile of what this upstream shows, from `"p50"` to
    /// `"p99.9"`, at the earliest; or a length of time. Default `"p95"`.
    pub after: After,
    /// Hedges allowed for each first attempt. Default 0.05.
    pub budget: Ratio,
}

/// `after`: when a hedge is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum After {
    /// After what so many of a thousand attempts need at most; from 500 to 999.
    Permille(u16),
    /// After this time.
    Time(Span),
}

impl Default for Settings {
    fn default() -> Self {
        Self { mode: Mode::Off, rollout: Ratio::ONE, after: After::Permille(950), budget: Ratio::new(0.05) }
    }
}

/// Why a hedge was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The method changes something, or must not be sent twice; or the request asks for another protocol.
    Method,
    /// The caller sends it again by itself.
    CallerRetries,
    /// All attempts were made.
    Attempts,
    /// Too little was seen of the upstream to know when it is slow.
    Samples,
    /// The body has not come yet, or is larger than `retry.request_buffer`.
    Body,
    /// `server.max_buffer` is used up.
    BufferMemory,
    /// Less time is left than half of the attempts need.
    Deadline,
    /// The breaker is not closed.
    Breaker,
    /// No slot is free, or somebody waits for one.
    Saturated,
    /// There is no other endpoint in service.
    Endpoint,
    /// Slow attempts take hardly longer than the others.
    Spread,
    /// Hedges did not help of late.
    Wins,
    /// There are enough hedges already.
    Budget,
    /// Retries and hedges add enough load already (`retry.budget`: the cap).
    RetryBudget,
    /// Retries and hedges do not help at the moment (`retry.budget`: the yield gate).
    RetryYield,
}

impl Skip {
    /// All of them, in the order of their indices.
    #[rustfmt::skip]
    pub const ALL: [Skip; 15] = {
        use Skip::*;
        [
            Method, CallerRetries, Attempts, Samples, Body, BufferMemory, Deadline, Breaker, Saturated, Endpoint,
            Spread, Wins, Budget, RetryBudget, RetryYield,
        ]
    };

    /// Its word in the metric.
    pub const fn label(self) -> &'static str {
        match self {
            Skip::Method => "method",
            Skip::CallerRetries => "caller_retries",
            Skip::Attempts => "attempts",
            Skip::Samples => "samples",
            Skip::Body => "body",
            Skip::BufferMemory => "buffer_memory",
            Skip::Deadline => "deadline",
            Skip::Breaker => "breaker",
            Skip::Saturated => "saturated",
            Skip::Endpoint => "endpoint",
            Skip::Spread => "spread",
            Skip::Wins => "wins",
            Skip::Budget => "budget",
            Skip::RetryBudget => "retry_budget",
            Skip::RetryYield => "retry_yield",
        }
    }

    /// Its place in [`Skip::ALL`], for tables of series.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A first attempt's part of a hedge is `budget` of this.
const TOKEN: u64 = 1_000_000_000;
/// So many hedges may be saved up.
pub const BURST: u64 = 20;
/// With fewer samples nothing is known.
const MIN_SAMPLES: u64 = 50;
/// Slices of 6 s that count, the one that is filled included: the last 24 to 30 s.
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_secs(6);
/// The percentiles that are worked out: from p50 to p99.9, in thousandths.
const LOWEST: u16 = 500;
const HIGHEST: u16 = 999;
const PLACES: usize = (HIGHEST - LOWEST + 1) as usize;
/// So many of those that are slower than the delay should take half of p50 longer than it, if that can be had by
/// waiting. Half, since one that loses against its hedge is known by no more than the delay and its hedge's latency.
const WORTH: (usize, usize) = (4, 5);
/// A hedge before that is as good as two sendings at once.
const SHORTEST: Duration = Duration::from_millis(1);
/// Below this, times p50, what is slow is hardly slower.
const SPREAD: f64 = 1.3;
/// The hedges that are looked at, and how many of them must have won.
const LOOKED_AT: u32 = 50;
const MUST_WIN: u32 = 5;
/// Where hedges do not help, one in this time.
const TEST_EACH: Duration = Duration::from_secs(10);

/// What is known of the hedges of one upstream. Some 10 KiB, whatever comes.
#[derive(Debug)]
pub struct Hedge {
    seen: Histogram<SLICES>,
    /// How many samples there were at the last look.
    samples: AtomicU64,
    /// From [`LOWEST`] to [`HIGHEST`], in microseconds; up to 6 % too high, so that no more attempts are slower than such a
    /// delay than it says.
    percentiles: Box<[AtomicU32; PLACES]>,
    /// For each of them, how long to wait: as long, or longer where that is worth it.
    delays: Box<[AtomicU32; PLACES]>,
    /// Hedges that may be sent, in parts of [`TOKEN`].
    tokens: AtomicU64,
    wins: Mutex<Wins>,
}

/// The last hedges, a bit each, the newest the lowest: whether it won.
#[derive(Debug, Default)]
struct Wins {
    last: u64,
    /// How many are known, up to [`LOOKED_AT`].
    known: u32,
    /// When the last one was let through although they did not help.
    tested: Option<Instant>,
}

/// How things stand when a hedge is due.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// What is left of the request's time.
    pub left: Duration,
    /// Whether the breaker is closed.
    pub is_closed: bool,
    /// Whether there is a free slot, and nobody waits for one.
    pub has_slot: bool,
    /// Whether there is somewhere to send it.
    pub has_endpoint: bool,
}

/// A hedge that is paid for. Dropped, it was sent and nobody knows what it would have come to: its client left.
#[derive(Debug)]
#[must_use = "whether it won decides about the next ones"]
pub struct Paid {
    hedge: Arc<Hedge>,
    retry: budget::Paid,
}

/// What the admin API shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct View {
    /// What half of the attempts of the last 30 s needed at most, in milliseconds.
    pub p50_ms: Option<f64>,
    /// What 95 of 100 of them needed at most.
    pub p95_ms: Option<f64>,
    /// Attempts of the last 30 s.
    pub samples: u64,
    /// Hedges that its budget allows now.
    pub allowed: f64,
    /// How many of the last hedges are known, up to 50.
    pub last: u32,
    /// How many of them won.
    pub won: u32,
}

impl Hedge {
    /// Nothing is known yet, and nothing is paid for.
    pub fn new(now: Instant) -> Self {
        Self {
            seen: Histogram::new(now, SLICE),
            samples: AtomicU64::new(0),
            percentiles: Box::new(std::array::from_fn(|_| AtomicU32::new(0))),
            delays: Box::new(std::array::from_fn(|_| AtomicU32::new(0))),
            tokens: AtomicU64::new(0),
            wins: Mutex::default(),
        }
    }

    /// Counts a first attempt, where `budget` allows so many hedges for each.
    pub fn deposit(&self, budget: Ratio) {
        // PERF: in good times it is full, and this is one load.
        if self.tokens.load(Relaxed) < BURST * TOKEN {
            self.give((budget.get() * TOKEN as f64).round() as u64);
        }
    }

    /// Counts an attempt that is no hedge: that its head came at `now` after `took`, or that it was cut off without one.
    pub fn record(&self, now: Instant, took: Duration) {
        self.seen.record(now, took);
    }

    /// After which time without an answer a hedge is due; `None`: nothing is known.
    pub fn delay(&self, now: Instant, settings: &Settings) -> Option<Duration> {
        match settings.after {
            After::Time(time) => Some(*time),
            After::Permille(_) => {
                self.known(now, &self.delays, settings.permille()).map(|delay| delay.max(SHORTEST))
            }
        }
    }

    /// Pays for a hedge that is due.
    ///
    /// # Errors
    /// Why it is not to be sent.
    pub fn admit(
        self: &Arc<Self>,
        now: Instant,
        settings: &Settings,
        due: &Due,
        retries: &Arc<budget::Budget>,
    ) -> Result<Paid, Skip> {
        let p50 = self.percentile(now, LOWEST);
        if due.left < p50.unwrap_or_default().max(deadline::Feasibility::LEAST) {
            return Err(Skip::Deadline);
        }
        if !due.is_closed {
            return Err(Skip::Breaker);
        }
        if !due.has_slot {
            return Err(Skip::Saturated);
        }
        if !due.has_endpoint {
            return Err(Skip::Endpoint);
        }
        // Who waits for a time that was written has taken it.
        let slow = self.percentile(now, settings.slow()).map(|slow| match settings.after {
            After::Time(time) => slow.max(*time),
            After::Permille(_) => slow,
        });
        if slow.zip(p50).is_some_and(|(slow, p50)| slow < p50.mul_f64(SPREAD)) {
            return Err(Skip::Spread);
        }
        let mut wins = self.wins();
        let is_test = !wins.help();
        if is_test && wins.tested.is_some_and(|last| now.saturating_duration_since(last) < TEST_EACH) {
            return Err(Skip::Wins);
        }
        let less = |tokens: u64| tokens.checked_sub(TOKEN);
        self.tokens.fetch_update(Relaxed, Relaxed, less).map_err(|_| Skip::Budget)?;
        let retry = retries.withdraw(now).map_err(|skip| {
            self.give(TOKEN);
            if skip == retry::Skip::Yield { Skip::RetryYield } else { Skip::RetryBudget }
        })?;
        if is_test {
            wins.tested = Some(now);
        }
        Ok(Paid { hedge: Arc::clone(self), retry })
    }

    /// What it looks like now.
    pub fn view(&self, now: Instant) -> View {
        let millis = |permille| self.percentile(now, permille).map(|micros| micros.as_secs_f64() * 1000.0);
        let (p50_ms, p95_ms) = (millis(LOWEST), millis(950));
        let wins = self.wins();
        View {
            p50_ms,
            p95_ms,
            samples: self.samples.load(Relaxed),
            allowed: self.tokens.load(Relaxed) as f64 / TOKEN as f64,
            last: wins.known,
            won: wins.won(),
        }
    }

    fn percentile(&self, now: Instant, permille: u16) -> Option<Duration> {
        self.known(now, &self.percentiles, permille)
    }

    fn known(&self, now: Instant, micros: &[AtomicU32; PLACES], permille: u16) -> Option<Duration> {
        self.seen.refresh(now, |_, counts| self.work_out(counts));
        let place = usize::from(permille.clamp(LOWEST, HIGHEST) - LOWEST);
        let known = self.samples.load(Relaxed) >= MIN_SAMPLES;
        known.then(|| Duration::from_micros(micros[place].load(Relaxed).into()))
    }

    fn work_out(&self, counts: &Counts) {
        let mut all = [0; PLACES];
        let bounds = counts.bounds((LOWEST..=HIGHEST).map(u64::from));
        all.iter_mut().zip(bounds).for_each(|(place, micros)| *place = micros as u32);
        let store = |cells: &[AtomicU32; PLACES], micros: &[u32; PLACES]| {
            cells.iter().zip(micros).for_each(|(cell, micros)| cell.store(*micros, Relaxed));
        };
        store(&self.percentiles, &all);
        store(&self.delays, &worthwhile(&all));
        self.samples.store(counts.total, Relaxed);
    }

    fn give(&self, part: u64) {
        let more = |tokens: u64| Some((tokens + part).min(BURST * TOKEN));
        self.tokens.fetch_update(Relaxed, Relaxed, more).expect("`more` always gives a value");
    }

    /// A panic elsewhere leaves only bits behind, so a poisoned lock is as good as any.
    fn wins(&self) -> MutexGuard<'_, Wins> {
        self.wins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For each percentile how long to wait: as long, or until [`WORTH`] of those that are slower are really slow.
fn worthwhile(percentiles: &[u32; PLACES]) -> [u32; PLACES] {
    let mut delays = *percentiles;
    let (mut next, mut really_slow) = (None, PLACES);
    // From the slowest on: how many are really slow only grows.
    for place in (0..PLACES).rev() {
        let late = percentiles[place].saturating_add(percentiles[0] / 2);
        while really_slow > 0 && percentiles[really_slow - 1] > late {
            really_slow -= 1;
        }
        if (PLACES - really_slow) * WORTH.1 >= (PLACES - place) * WORTH.0 {
            next = Some(percentiles[place]);
        }
        delays[place] = next.unwrap_or(percentiles[place]);
    }
    delays
}

impl Paid {
    /// It was sent, and an answer is on its way to the client: its own, if it `won`, or that of the attempt beside it;
    /// or both have failed.
    pub fn settle(self, won: bool) {
        self.hedge.wins().push(won);
        if won {
            self.retry.refund();
        }
    }

    /// It would have been sent, if it were not for the shadow: its own budget pays, the retries do not.
    pub fn shadowed(self) {
        self.retry.unsent();
    }

    /// It was not sent after all: nothing was taken.
    pub fn unsent(self) {
        self.hedge.give(TOKEN);
        self.retry.unsent();
    }
}

impl Wins {
    fn push(&mut self, won: bool) {
        self.last = self.last << 1 | u64::from(won);
        self.known = (self.known + 1).min(LOOKED_AT);
    }

    fn won(&self) -> u32 {
        (self.last & ((1 << LOOKED_AT) - 1)).count_ones()
    }

    /// Whether hedges help, or not enough of them are known.
    fn help(&self) -> bool {
        self.known < LOOKED_AT || self.won() >= MUST_WIN
    }
}

impl Settings {
    /// The percentile after which a hedge is due, in thousandths: `after`, but none earlier than the budget can pay for.
    pub fn permille(&self) -> u16 {
        let paid = ((1.0 - self.budget.get()) * 1000.0).round() as u16;
        match self.after {
            After::Permille(after) => after.max(paid.min(HIGHEST)),
            After::Time(_) => paid.clamp(LOWEST, HIGHEST),
        }
    }

    /// What nine of ten take less than, of those that are slower than the delay, in thousandths.
    fn slow(&self) -> u16 {
        (1000 - (1000 - self.permille()) / 10).min(HIGHEST)
    }
}

/// Methods that are not safe (RFC 9110 §9.2.1): they change something, so they are never hedged.
pub const UNSAFE: [&str; 6] = ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE"];

impl retry::Rules {
    /// Whether such a request may be hedged. `grpc_path` as for [`retry::Rules::method_allows`]. An `Idempotency-Key` does
    /// not help: of two that come at once, an upstream refuses one or lets it wait.
    pub fn may_hedge(&self, method: &[u8], grpc_path: Option<&[u8]>) -> bool {
        let is_safe = || UNSAFE.iter().all(|known| known.as_bytes() != method);
        (grpc_path.is_some() || is_safe()) && self.method_allows(method, false, grpc_path)
    }
}

impl FromStr for After {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(number) = text.strip_prefix('p') else {
            return text.parse().map(After::Time).map_err(|_| {
                format!(
                    "{text:?} is neither a percentile nor a length of time; write one such as \"p95\" or \"50ms\""
                )
            });
        };
        let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, count| {
            let are_digits = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|_| are_digits)
        };
        match (digits(whole, 2), digits(tenth, 1)) {
            (Some(whole @ 50..), Some(tenth)) => Ok(After::Permille(whole * 10 + tenth)),
            _ => Err(format!(
                "{text:?} is not a percentile; write one from \"p50\" to \"p99.9\", such as \"p95\""
            )),
        }
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            After::Permille(permille) if permille.is_multiple_of(10) => write!(f, "p{}", permille / 10),
            After::Permille(permille) => write!(f, "p{}.{}", permille / 10, permille % 10),
            After::Time(time) => time.fmt(f),
        }
    }
}

words::as_text!(After);

impl JsonSchema for After {
    fn schema_name() -> Cow<'static, str> {
        "HedgeAfter".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(p[5-9]\d(\.\d)?|\d+(ms|s|m|h|d)|.*\$\{.*)$",
            "description": "a percentile, such as \"p95\", or a length of time, such as \"50ms\""
        })
    }
}

#[cfg(test)]
mod tests;
