//! Circuit breaker: stops sending to an upstream that keeps failing, and finds out when it is back.
//!
//! One for each upstream, shared by all workers. Not here: single endpoints (`upstream::outlier`).
//!
//! ```text
//! Closed --ratio reached--> Open --`open_for` over--> HalfOpen --probes succeed--> Ramping --steps--> Closed
//!                            ^  '---a connect probe succeeds---^|                     |
//!                            '---------one probe fails----------'---a step fails------'
//! ```
//!
//! Why a ratio: an upstream that fails every second request never fails twice in a row. Why exact buckets: in a
//! moving average a burst of failures weighs too little. Why probes are leases: a breaker whose probe never comes
//! back stays half-open for ever (resilience4j#935); here a dropped one returns its place, and one that outlives
//! its attempt's timeout counts as failed. Why a ramp: a fleet of sidecars that all close at once knocks down what
//! has just come up. Why jitter: they should not even probe at once.
//!
//! `graded` has no states: it rejects the share p = (n - 2a)/(n + 1) of requests, n asked in the window, own
//! rejections included, a of them well (SRE book, "Handling Overload"), at most 95 %. It settles where the capacity
//! is, while the binary one swings between nothing and all; but each request that it lets through to a dead
//! upstream costs a timeout.
//!
//! What passed before the last transition says nothing about now: its outcome is ignored. Nor does anything that
//! the classifier (`failure`) ignores count, neither for the window nor for a probe.

mod window;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::window::Window;
use self::window::{Counts, Entry, Outcomes, Tally, Thresholds};
use super::failure::Verdict;
use super::mode::Mode;
use crate::units::{Ratio, Span, within};

/// `[upstream.NAME.breaker]`: when to stop sending to an upstream that keeps failing.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// `binary` opens and closes; `graded` rejects a share (as in the SRE book). Default `binary`.
    pub kind: Kind,
    /// Which outcomes count. Default `{ kind = "time", size = "10s" }`.
    pub window: Window,
    /// Outcomes in the window below which it never opens; of a window that holds fewer, all. From 1 to
    /// 1,000,000. Default 20.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: u32,
    /// The ratio of failures at which it opens. Default 0.5.
    pub failure_ratio: Ratio,
    /// A success that takes longer than this is slow. Default: none is.
    pub slow_request: Option<Span>,
    /// The ratio of slow requests at which it opens. Default 1.0.
    pub slow_ratio: Ratio,
    /// How long it stays open: `base` the first time, doubled each time up to `max`.
    /// Default `{ base = "1s", max = "30s" }`.
    pub open_for: OpenFor,
    /// Probes let through at once when it is half-open, and good answers that it takes. From 1 to 100.
    /// Default 5.
    #[serde(deserialize_with = "within::<_, 1, 100>")]
    #[schemars(range(min = 1, max = 100))]
    pub half_open_requests: u32,
}

/// The kind of breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Open or closed.
    #[default]
    Binary,
    /// Rejects the share that fails.
    Graded,
}

/// `open_for`: how long the breaker stays open.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OpenFor {
    /// The first time. Default `"1s"`.
    pub base: Span,
    /// The longest, before the jitter of 20 % that every time has. Default `"30s"`.
    pub max: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            kind: Kind::Binary,
            window: Window::default(),
            min_requests: 20,
            failure_ratio: Ratio::new(0.5),
            slow_request: None,
            slow_ratio: Ratio::ONE,
            open_for: OpenFor::default(),
            half_open_requests: 5,
        }
    }
}

impl Default for OpenFor {
    fn default() -> Self {
        Self { base: Span::from_secs(1), max: Span::from_secs(30) }
    }
}

impl Settings {
    fn thresholds(&self) -> Thresholds {
        Thresholds { failures: self.failure_ratio, slow: self.slow_ratio }
    }

    /// What counts of an outcome; `None`: nothing.
    fn entry(&self, outcome: &Outcome) -> Option<Entry> {
        let failed = outcome.connect_timeout || outcome.verdict == Verdict::Failure;
        let succeeded = outcome.verdict == Verdict::Success && !failed;
        let slow = succeeded && self.slow_request.is_some_and(|limit| outcome.latency > *limit);
        let connect_timeout = outcome.connect_timeout;
        (failed || succeeded).then_some(Entry { failed, slow, connect_timeout, rejected: false })
    }
}

/// An outcome's effect on the breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// What the attempt says about the upstream.
    pub verdict: Verdict,
    /// From its start to the response's head.
    pub latency: Duration,
    /// The endpoint it went to, by its place among the upstream's.
    pub endpoint: u32,
    /// How many endpoints are usable: of several, at least two must hold failures, or the one is ejected instead.
    pub endpoints: u32,
    /// The connect ran into its timeout: a failure, whatever the verdict.
    pub connect_timeout: bool,
}

/// A request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// When it is worth to come back, where that is known.
    pub retry_after: Option<Duration>,
}

/// Where a breaker stands, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateKind {
    /// All pass.
    Closed,
    /// Probes pass.
    HalfOpen,
    /// A share passes: after the probes, and in a graded breaker that rejects.
    Ramping,
    /// None passes.
    Open,
}

/// A change of state, for metrics and log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// Rises with each transition: an observer that is told of two by two threads keeps the higher.
    pub sequence: u64,
    /// The state before.
    pub from: StateKind,
    /// The state after.
    pub to: StateKind,
    /// The failures that were counted when it happened.
    pub failures: u32,
    /// The outcomes that were counted.
    pub counted: u32,
    /// How long it will be open, jitter included.
    pub open_for: Option<Duration>,
}

/// What the admin API shows of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct View {
    /// Where it stands.
    pub state: StateKind,
    /// Outcomes that count now: in the window, or of the ramp's step.
    pub counted: u32,
    /// Failures among them.
    pub failures: u32,
    /// Slow successes among them.
    pub slow: u32,
    /// Their ratio; 0 without outcomes.
    pub failure_ratio: f64,
    /// The share of requests that pass.
    pub admitted: f64,
    /// Open times since it last worked for long.
    pub trips: u32,
    /// Seconds until it probes, while it is open.
    pub open_for_seconds: Option<f64>,
}

/// A bare connect that may be tried while the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectProbe {
    epoch: u64,
}

/// Is told of transitions, outside the lock.
pub type Observer = Box<dyn Fn(Transition) + Send + Sync>;

/// The breaker of one upstream: a mutex around `Machine`, and one word of it to be read without.
pub struct Breaker {
    machine: Mutex<Machine>,
    /// PERF: what `admit` must know while all pass: the machine's epoch times two, plus one if all pass. Written
    /// under the lock only.
    free: AtomicU64,
    observer: Option<Observer>,
}

/// An admitted attempt. `record` consumes it, so never twice; dropped without (the client left), it counts as
/// cancelled: a probe goes back, and nothing is learnt.
#[derive(Debug)]
#[must_use = "owes the breaker its outcome"]
pub struct Permit {
    breaker: Arc<Breaker>,
    pass: Pass,
    /// From 0 to 1: jitter for a trip that its outcome causes.
    draw: f64,
}

impl Breaker {
    /// A closed breaker that has seen nothing.
    pub fn new(settings: &Settings, now: Instant) -> Breaker {
        let machine = Machine::new(settings, now);
        Breaker { free: AtomicU64::new(machine.free()), machine: Mutex::new(machine), observer: None }
    }

    /// The same, telling `observer` of its transitions.
    #[must_use]
    pub fn observe(self, observer: Observer) -> Breaker {
        Breaker { observer: Some(observer), ..self }
    }

    /// Takes over changed settings. The state stays; a window of another kind or size begins empty.
    pub fn update(&self, settings: &Settings, now: Instant) {
        self.with(|machine| ((), machine.update(settings, now)));
    }

    /// Asks for an attempt that will take at most `lease` from now: a probe that has not come back by then counts as
    /// failed. `draw` is uniform in [0, 1).
    ///
    /// # Errors
    /// A rejection: it is open, or has let enough through for now.
    pub fn admit(self: &Arc<Self>, now: Instant, draw: f64, lease: Duration) -> Result<Permit, Rejection> {
        let free = self.free.load(Relaxed);
        let (pass, draw) = match free & 1 {
            1 => (Pass { epoch: free >> 1, lease: None }, draw),
            _ => self.with(|machine| machine.admit(now, draw, lease))?,
        };
        Ok(Permit { breaker: Arc::clone(self), pass, draw })
    }

    /// Whether all pass. One relaxed load.
    pub fn is_closed(&self) -> bool {
        self.free.load(Relaxed) & 1 == 1
    }

    /// Whether it is time for a bare connect: while open after connect timeouts, one each 100 ms +-20 %. Its
    /// success ends the open time at once; its failure need not be told.
    pub fn wants_connect_probe(&self, now: Instant, draw: f64) -> Option<ConnectProbe> {
        if self.is_closed() {
            return None;
        }
        self.with(|machine| (machine.wants_connect_probe(now, draw), None))
    }

    /// The bare connect succeeded.
    pub fn connect_probe_succeeded(&self, probe: ConnectProbe) {
        self.with(|machine| ((), machine.connect_probe_succeeded(probe)));
    }

    /// What it looks like now.
    pub fn view(&self, now: Instant) -> View {
        self.with(|machine| (machine.view(now), None))
    }

    /// Runs `step` under the lock, and tells the observer outside of it. A panic elsewhere leaves only counts
    /// behind, so a poisoned lock is as good as any.
    fn with<T>(&self, step: impl FnOnce(&mut Machine) -> (T, Option<Transition>)) -> T {
        let mut machine: MutexGuard<'_, Machine> =
            self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, transition) = step(&mut machine);
        if machine.free() != self.free.load(Relaxed) {
            self.free.store(machine.free(), Relaxed);
        }
        drop(machine);
        if let (Some(transition), Some(observer)) = (transition, &self.observer) {
            observer(transition);
        }
        answer
    }
}

impl std::fmt::Debug for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breaker").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Permit {
    /// Settles it.
    pub fn record(mut self, now: Instant, outcome: Outcome) {
        let lease = self.pass.lease.take();
        let pass = Pass { lease, ..self.pass };
        self.breaker.with(|machine| ((), machine.record(now, pass, &outcome, self.draw)));
    }

    /// A probe's lease starts anew: for an attempt whose time starts anew (it stands still while the request's body
    /// flows), or whose head has come while its body goes on. Costs nothing where it is no probe.
    pub fn renew(&self, now: Instant, lease: Duration) {
        if let Some(number) = self.pass.lease {
            self.breaker
                .with(|machine| (machine.renew(self.pass.epoch, number, now + lease.min(*Span::MAX)), None));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(number) = self.pass.lease {
            self.breaker.with(|machine| (machine.give_back(self.pass.epoch, number), None));
        }
    }
}

/// What an attempt was admitted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    /// The machine's epoch at that time.
    epoch: u64,
    /// The probe's place, where it is one.
    lease: Option<u64>,
}

/// The share that each step of the ramp admits; after the last one all pass.
const RAMP: [f64; 4] = [0.1, 0.2, 0.4, 0.8];
/// A step of the ramp lasts this long, or this many outcomes.
const STEP: Duration = Duration::from_secs(1);
const STEP_OUTCOMES: u32 = 20;
/// With fewer outcomes a step is not judged; they count in the next one too.
const STEP_LEAST: u32 = 5;
/// Below this rate of requests, or after less than this time, probes alone close it: at two requests a second a
/// ramp would refuse most traffic for minutes after the recovery.
const RAMP_RATE: f64 = 10.0;
const RAMP_AFTER: Duration = Duration::from_secs(10);
const CONNECT_PROBE_EACH: Duration = Duration::from_millis(100);
/// How far a drawn time may be from what it should be, either way.
const JITTER: f64 = 0.2;
/// The graded kind rejects what exceeds this multiple of the successes, and never more than this share.
const GRADED_K: u32 = 2;
const GRADED_CAP: f64 = 0.95;

/// The breaker itself: a function of what it is told. Times may run backwards a little, as they do where several
/// threads read the clock before they take the lock.
#[derive(Debug)]
struct Machine {
    settings: Settings,
    state: State,
    /// Rises with each transition.
    epoch: u64,
    /// Outcomes while closed.
    window: Outcomes,
    /// Open times since it was last closed for `open_for.max`.
    trips: u32,
    /// Usable endpoints, when last heard of.
    endpoints: u32,
    closed_since: Instant,
}

/// Where the breaker stands. A state's data lives in its variant.
#[derive(Debug)]
enum State {
    Closed,
    /// The graded kind, rejecting a share; closed again at `judge_at` if it is none by then.
    Grading {
        share: f64,
        judge_at: Instant,
    },
    Open {
        until: Instant,
        outage: Outage,
        /// When the next bare connect may be tried; `None`: it did not open for connect timeouts.
        connect_at: Option<Instant>,
    },
    HalfOpen {
        outage: Outage,
        probes: Probes,
        tally: Tally,
    },
    Ramping {
        outage: Outage,
        step: usize,
        since: Instant,
        tally: Tally,
    },
}

/// The time since the breaker was last closed.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    /// Requests that asked.
    asked: u32,
}

/// Probes in flight.
#[derive(Debug, Default)]
struct Probes {
    /// The number and the expiry of each; at most `half_open_requests`.
    leases: Vec<(u64, Instant)>,
    next_number: u64,
}

impl Machine {
    fn new(settings: &Settings, now: Instant) -> Self {
        Self {
            window: Outcomes::new(settings.window, now),
            settings: settings.clone(),
            state: State::Closed,
            epoch: 0,
            trips: 0,
            endpoints: 1,
            closed_since: now,
        }
    }

    fn update(&mut self, settings: &Settings, now: Instant) -> Option<Transition> {
        let other_kind = settings.kind != self.settings.kind;
        self.settings = settings.clone();
        if settings.window != self.window.extent() {
            self.window = Outcomes::new(settings.window, now);
        }
        if let State::Open { until, .. } = &mut self.state {
            *until = (*until).min(now + settings.open_for.max.mul_f64(1.0 + JITTER));
        }
        (other_kind && self.kind() != StateKind::Closed).then(|| self.close(now, Counts::default()))
    }

    fn free(&self) -> u64 {
        self.epoch << 1 | u64::from(matches!(self.state, State::Closed))
    }

    fn kind(&self) -> StateKind {
        match self.state {
            State::Closed => StateKind::Closed,
            State::Open { .. } => StateKind::Open,
            State::HalfOpen { .. } => StateKind::HalfOpen,
            State::Ramping { .. } | State::Grading { .. } => StateKind::Ramping,
        }
    }

    /// The answer to a request, with what is left of its `draw`, and the transition that its asking caused.
    fn admit(
        &mut self,
        now: Instant,
        draw: f64,
        lease: Duration,
    ) -> (Result<(Pass, f64), Rejection>, Option<Transition>) {
        let transition = self.catch_up(now, draw);
        let answer = match &mut self.state {
            State::Closed => Ok((None, draw)),
            State::Open { until, outage, .. } => {
                outage.asked = outage.asked.saturating_add(1);
                Err(Some(until.saturating_duration_since(now)))
            }
            State::HalfOpen { outage, probes, tally } => {
                outage.asked = outage.asked.saturating_add(1);
                let good = tally.counts.total - tally.counts.failures;
                if good + (probes.leases.len() as u32) < self.settings.half_open_requests {
                    Ok((Some(probes.lend(now + lease.min(*Span::MAX))), draw))
                } else {
                    Err(None)
                }
            }
            State::Ramping { outage, step, since, .. } => {
                outage.asked = outage.asked.saturating_add(1);
                let share = RAMP[*step];
                if draw < share {
                    Ok((None, draw / share))
                } else {
                    Err(Some((*since + STEP).saturating_duration_since(now)))
                }
            }
            State::Grading { share, .. } if draw < *share => {
                let rejected = Entry { rejected: true, ..Entry::default() };
                self.window.add(now, rejected, 0);
                Err(None)
            }
            State::Grading { .. } => Ok((None, draw)),
        };
        let epoch = self.epoch;
        let answer = answer
            .map(|(lease, draw)| (Pass { epoch, lease }, draw))
            .map_err(|retry_after| Rejection { retry_after });
        (answer, transition)
    }

    /// Does what the time that has passed brings; at most one transition.
    fn catch_up(&mut self, now: Instant, draw: f64) -> Option<Transition> {
        match &mut self.state {
            State::Open { until, outage, .. } if now >= *until => {
                let outage = *outage;
                Some(self.probe(outage))
            }
            State::HalfOpen { outage, probes, tally } if probes.expired(now) => {
                let outage = *outage;
                tally.counts.add(Entry { failed: true, ..Entry::default() });
                let counts = tally.counts;
                Some(self.open(now, draw, Some(outage), counts))
            }
            State::Ramping { .. } => self.climb(now, draw),
            State::Grading { .. } => self.grade(now),
            _ => None,
        }
    }

    fn record(&mut self, now: Instant, pass: Pass, outcome: &Outcome, draw: f64) -> Option<Transition> {
        let binary = self.settings.kind == Kind::Binary;
        if binary && pass.epoch != self.epoch {
            return None;
        }
        self.endpoints = outcome.endpoints;
        let entry = self.settings.entry(outcome);
        if !binary {
            self.window.add(now, entry?, outcome.endpoint);
            return self.grade(now);
        }
        if !matches!(self.state, State::Closed) {
            return self.record_recovery(now, pass, outcome, draw);
        }
        let least = self.window.least(self.settings.min_requests);
        let tally = self.window.add(now, entry?, outcome.endpoint);
        if tally.counts.total < least || !tally.is_bad(self.settings.thresholds(), outcome.endpoints) {
            return None;
        }
        let counts = tally.counts;
        Some(self.open(now, draw, None, counts))
    }

    /// An outcome while half-open or ramping.
    #[cold]
    fn record_recovery(
        &mut self,
        now: Instant,
        pass: Pass,
        outcome: &Outcome,
        draw: f64,
    ) -> Option<Transition> {
        let entry = self.settings.entry(outcome);
        match &mut self.state {
            State::HalfOpen { outage, probes, tally } => {
                probes.take_back(pass.lease?);
                let throttled = outcome.verdict == Verdict::Throttled;
                tally.add(entry.or(throttled.then(Entry::default))?, outcome.endpoint);
                let (outage, tally) = (*outage, *tally);
                self.judge_probes(now, draw, outage, &tally)
            }
            State::Ramping { .. } => {
                if let Some(transition) = self.climb(now, draw) {
                    return Some(transition);
                }
                let State::Ramping { tally, .. } = &mut self.state else { return None };
                tally.add(entry?, outcome.endpoint);
                if tally.counts.total < STEP_OUTCOMES { None } else { self.step(now, draw, now) }
            }
            State::Closed | State::Open { .. } | State::Grading { .. } => None,
        }
    }

    /// What the probes so far come to. Of several endpoints one may be rotten alone, as while closed; but as many
    /// failures as good answers would have sufficed are enough, whichever it was.
    fn judge_probes(&mut self, now: Instant, draw: f64, outage: Outage, tally: &Tally) -> Option<Transition> {
        let wanted = self.settings.half_open_requests;
        let counts = tally.counts;
        let good = counts.total - counts.failures;
        let failed = counts.failures > 0
            && (self.endpoints <= 1 || counts.failures >= wanted || tally.failures_are_spread());
        let slow = good >= wanted && tally.is_slow(self.settings.thresholds());
        if failed || slow {
            return Some(self.open(now, draw, Some(outage), counts));
        }
        if good < wanted {
            return None;
        }
        let dark = now.saturating_duration_since(outage.since);
        if dark < RAMP_AFTER || f64::from(outage.asked) < RAMP_RATE * dark.as_secs_f64() {
            return Some(self.close(now, counts));
        }
        let state = State::Ramping { outage, step: 0, since: now, tally: Tally::default() };
        Some(self.transit(state, counts, None))
    }

    /// Ends the steps of the ramp whose time is over.
    fn climb(&mut self, now: Instant, draw: f64) -> Option<Transition> {
        while let State::Ramping { since, .. } = self.state {
            let end = since + STEP;
            if now < end {
                return None;
            }
            if let Some(transition) = self.step(now, draw, end) {
                return Some(transition);
            }
        }
        None
    }

    /// Ends a step of the ramp; the next begins at `next`.
    fn step(&mut self, now: Instant, draw: f64, next: Instant) -> Option<Transition> {
        let State::Ramping { outage, step, since, tally } = &mut self.state else { return None };
        let (outage, counts) = (*outage, tally.counts);
        let judged = counts.total >= STEP_LEAST.min(self.window.least(self.settings.min_requests));
        if judged && tally.is_bad(self.settings.thresholds(), self.endpoints) {
            return Some(self.open(now, draw, Some(outage), counts));
        }
        if judged {
            *tally = Tally::default();
        }
        (*step, *since) = (*step + 1, next);
        (*step == RAMP.len()).then(|| self.close(now, counts))
    }

    /// Computes the share that a graded breaker rejects.
    fn grade(&mut self, now: Instant) -> Option<Transition> {
        let least = self.window.least(self.settings.min_requests);
        let tally = self.window.tally(now);
        let counts = tally.counts;
        let good = counts.total - counts.failures - counts.slow - counts.rejected;
        let excess = f64::from(counts.total) - f64::from(GRADED_K) * f64::from(good);
        let spread = self.endpoints <= 1 || tally.failures_are_spread() || counts.slow > 0;
        let share = if counts.total >= least && spread {
            (excess / f64::from(counts.total + 1)).clamp(0.0, GRADED_CAP)
        } else {
            0.0
        };
        // It goes back to closed a second after it last rejected anything: else it would flap with each outcome.
        match &mut self.state {
            State::Grading { share: before, judge_at } if share > 0.0 => {
                (*before, *judge_at) = (share, now + STEP);
                None
            }
            State::Grading { judge_at, .. } if now >= *judge_at => Some(self.close_graded(now, counts)),
            State::Grading { share: before, .. } => {
                *before = 0.0;
                None
            }
            _ if share > 0.0 => {
                Some(self.transit(State::Grading { share, judge_at: now + STEP }, counts, None))
            }
            _ => None,
        }
    }

    fn wants_connect_probe(&mut self, now: Instant, draw: f64) -> Option<ConnectProbe> {
        let State::Open { connect_at: Some(at), until, .. } = &mut self.state else { return None };
        if now < *at || now >= *until {
            return None;
        }
        *at = now + jittered(CONNECT_PROBE_EACH, draw);
        Some(ConnectProbe { epoch: self.epoch })
    }

    fn connect_probe_succeeded(&mut self, probe: ConnectProbe) -> Option<Transition> {
        match self.state {
            State::Open { outage, connect_at: Some(_), .. } if probe.epoch == self.epoch => {
                Some(self.probe(outage))
            }
            _ => None,
        }
    }

    fn give_back(&mut self, epoch: u64, number: u64) {
        if let State::HalfOpen { probes, .. } = &mut self.state
            && epoch == self.epoch
        {
            probes.take_back(number);
        }
    }

    fn renew(&mut self, epoch: u64, number: u64, expiry: Instant) {
        if let State::HalfOpen { probes, .. } = &mut self.state
            && epoch == self.epoch
        {
            probes.renew(number, expiry);
        }
    }

    /// To open, for twice as long as the last time unless it had worked for long.
    fn open(&mut self, now: Instant, draw: f64, outage: Option<Outage>, counts: Counts) -> Transition {
        let OpenFor { base, max } = self.settings.open_for;
        if self.kind() == StateKind::Closed && now.saturating_duration_since(self.closed_since) >= *max {
            self.trips = 0;
        }
        let doubled = base.saturating_mul(1u32.checked_shl(self.trips).unwrap_or(u32::MAX));
        let open_for = jittered(doubled.min(*max), draw);
        self.trips = self.trips.saturating_add(1);
        let state = State::Open {
            until: now + open_for,
            outage: outage.unwrap_or(Outage { since: now, asked: 0 }),
            connect_at: (counts.connect_timeouts * 2 >= counts.failures && counts.connect_timeouts > 0)
                .then(|| now + jittered(CONNECT_PROBE_EACH, draw)),
        };
        self.window.clear(now);
        self.transit(state, counts, Some(open_for))
    }

    /// To half-open.
    fn probe(&mut self, outage: Outage) -> Transition {
        let state = State::HalfOpen { outage, probes: Probes::default(), tally: Tally::default() };
        self.transit(state, Counts::default(), None)
    }

    /// To closed: what was counted before says nothing about now.
    fn close(&mut self, now: Instant, counts: Counts) -> Transition {
        self.window.clear(now);
        self.closed_since = now;
        self.transit(State::Closed, counts, None)
    }

    /// To closed, in the graded kind: its window goes on.
    fn close_graded(&mut self, now: Instant, counts: Counts) -> Transition {
        self.closed_since = now;
        self.transit(State::Closed, counts, None)
    }

    fn transit(&mut self, state: State, counts: Counts, open_for: Option<Duration>) -> Transition {
        let from = self.kind();
        self.state = state;
        self.epoch += 1;
        let Counts { failures, total: counted, .. } = counts;
        Transition { sequence: self.epoch, from, to: self.kind(), failures, counted, open_for }
    }

    fn view(&mut self, now: Instant) -> View {
        let (admitted, open_for) = match &self.state {
            State::Closed => (1.0, None),
            State::Open { until, .. } => (0.0, Some(until.saturating_duration_since(now).as_secs_f64())),
            State::HalfOpen { .. } => (0.0, None),
            State::Ramping { step, .. } => (RAMP[*step], None),
            State::Grading { share, .. } => (1.0 - share, None),
        };
        let counts = match &self.state {
            State::HalfOpen { tally, .. } | State::Ramping { tally, .. } => tally.counts,
            _ => self.window.tally(now).counts,
        };
        let counted = counts.total - counts.rejected;
        View {
            state: self.kind(),
            counted,
            failures: counts.failures,
            slow: counts.slow,
            failure_ratio: f64::from(counts.failures) / f64::from(counted.max(1)),
            admitted,
            trips: self.trips,
            open_for_seconds: open_for,
        }
    }
}

impl Probes {
    /// Lends a place until `expiry`.
    fn lend(&mut self, expiry: Instant) -> u64 {
        self.next_number += 1;
        self.leases.push((self.next_number, expiry));
        self.next_number
    }

    fn take_back(&mut self, number: u64) {
        self.leases.retain(|(lent, _)| *lent != number);
    }

    fn renew(&mut self, number: u64, until: Instant) {
        self.leases.iter_mut().filter(|(lent, _)| *lent == number).for_each(|(_, expiry)| *expiry = until);
    }

    fn expired(&self, now: Instant) -> bool {
        self.leases.iter().any(|(_, expiry)| now >= *expiry)
    }
}

/// `time`, drawn from 20 % less to 20 % more.
fn jittered(time: Duration, draw: f64) -> Duration {
    time.mul_f64(1.0 - JITTER + 2.0 * JITTER * draw)
}

#[cfg(test)]
mod tests;
