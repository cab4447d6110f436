//! Outlier ejection: takes out of service the endpoint that is worse than its peers, and brings it back.
//!
//! One for each upstream, shared by all workers. Not here: the upstream as a whole (`policy::breaker`), checks of our
//! own (`health`), which endpoint is next (`balance`).
//!
//! ```text
//! in service --worse than its peers--> ejected --time over--> one live probe --good--> in service, slow start
//!                                         ^---------------------failed--'
//! ```
//!
//! Three rules, each against the median of the peers of the same priority, since what all of them suffer is nobody's
//! fault:
//!
//! - *Failures in a row*: as many as would happen by chance once in a million where the peers' failure ratio is r,
//!   n = ln(1e-6) / ln r, at least `consecutive_failures`. A fixed five would eject somebody in most brownouts of 20 %.
//!   A peer's last outcomes count beside its window, which still remembers how things were: where all die at once
//!   nobody is ejected, and few where all begin to fail now and then. Where balancing has left the peers little to show, the endpoint's own past counts as well.
//! - *Failure ratio* of the window: for the endpoint that fails every other request, which never fails in a row. What
//!   chance would do is asked here too: of twenty requests, and of the peers' twenty, a ratio is only a guess.
//! - *Slow*: grey failure, the endpoint whose health check is green and whose traffic crawls. Twice in a row its
//!   median is a multiple of its peers'; each of its laps is held against the slowest lap that each peer had meanwhile, so
//!   that it does not matter whose lap ends first when all become slow together.
//!
//! Rejected: a distance in standard deviations (Envoy, gRPC A50): with five endpoints no score exceeds 2, and two bad
//! ones hide each other.
//!
//! **At most `max_ejected`** of a priority, rounded down; but one where endpoints of another priority are in service,
//! who are there for just that. One endpoint of the upstream always stays. So a single one is never ejected: that is the
//! breaker's job. Judged where it is counted: no timer that sees it late. Counting is atomic
//! (`traffic`); the mutex is taken only where an endpoint looks bad, four times a second for the latencies, and to begin
//! and to end a probe: a verdict must see the others that are out, or two threads would eject the last two.
//!
//! **The time out** is `eject_for.base`, doubled with each ejection up to `max`, +-20 %: sidecars of a fleet should not
//! come back at once. Good service of `max` halves it again. Then one live request probes, one that may be sent
//! again if it fails. After a probe that fails the next comes when the endpoint has been out for a fifth longer: the
//! probes grow rare as the outage grows old, and who was gone for fifteen seconds does not stay out for sixteen more, as
//! by doubling. Where no such request comes, any may probe after as long again: else an upstream that is only posted to
//! would never get its endpoint back.
//!
//! In shadow all is decided, counted and logged, and the endpoint stays in service; its time ends by itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::endpoint::{Endpoint, InFlight};
use super::standing::{Out, nanos};
use super::traffic::{BUCKETS, Tally};
use crate::policy::mode::Mode;
use crate::telemetry::metrics::Ejection as Why;
use crate::units::{Ratio, Span, span_within, within};

/// `[upstream.NAME.outlier]`: when an endpoint that is worse than its peers is taken out of service.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced; the others may still go to what is ejected. Default 1.0.
    pub rollout: Ratio,
    /// Failures in a row that eject; more while its peers fail too. From 1 to 64. Default 5.
    #[serde(deserialize_with = "within::<_, 1, 64>")]
    #[schemars(range(min = 1, max = 64))]
    pub consecutive_failures: u32,
    /// The share of failures that ejects, if it is 0.3 above its peers'.
    /// Default `{ threshold = 0.5, min_requests = 20, window = "5s" }`.
    pub failure_ratio: FailureRatio,
    /// How much slower than its peers it must be, and 20 ms more. Default `{ factor = 4.0, min_requests = 20 }`.
    pub slow: Slow,
    /// How long it stays out: `base` the first time, doubled each time up to `max`.
    /// Default `{ base = "2s", max = "1m" }`.
    pub eject_for: EjectFor,
    /// The share of the endpoints of a priority that may be out at once, rounded down. Default 0.5.
    pub max_ejected: Ratio,
}

/// `failure_ratio`: the share of failures that ejects.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailureRatio {
    /// The ratio. Default 0.5.
    pub threshold: Ratio,
    /// Requests in the window below which it is not judged. From 1 to 1,000,000. Default 20.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: u32,
    /// Which outcomes count. From `"1s"` to `"1m"`. Default `"5s"`.
    #[serde(deserialize_with = "span_within::<_, 1000, 60_000>")]
    pub window: Span,
}

/// `slow`: how much slower than its peers an endpoint must be.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Slow {
    /// Its median against its peers'. From 1.5 to 1000. Default 4.0.
    #[serde(deserialize_with = "factor")]
    #[schemars(range(min = 1.5, max = 1000.0))]
    pub factor: f64,
    /// Answers that it takes to know a median. From 5 to 1,000,000. Default 20.
    #[serde(deserialize_with = "within::<_, 5, 1_000_000>")]
    #[schemars(range(min = 5, max = 1_000_000))]
    pub min_requests: u32,
}

/// `eject_for`: how long an endpoint stays out.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EjectFor {
    /// The first time. Default `"2s"`.
    pub base: Span,
    /// The longest, before the jitter of 20 % that every time has. Default `"1m"`.
    pub max: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            consecutive_failures: 5,
            failure_ratio: FailureRatio::default(),
            slow: Slow::default(),
            eject_for: EjectFor::default(),
            max_ejected: Ratio::new(0.5),
        }
    }
}

impl Default for FailureRatio {
    fn default() -> Self {
        Self { threshold: Ratio::new(0.5), min_requests: 20, window: Span::from_secs(5) }
    }
}

impl Default for Slow {
    fn default() -> Self {
        Self { factor: 4.0, min_requests: 20 }
    }
}

impl Default for EjectFor {
    fn default() -> Self {
        Self { base: Span::from_secs(2), max: Span::from_secs(60) }
    }
}

impl Settings {
    /// How many of `count` endpoints of a priority may be out at once.
    pub fn most(&self, count: usize) -> usize {
        // The last bit of a product must not decide: 0.29 of 100 are 29.
        (self.max_ejected.get() * count as f64 + 1e-9) as usize
    }
}

fn factor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let factor = f64::deserialize(deserializer)?;
    (1.5..=1000.0).contains(&factor).then_some(factor).ok_or_else(|| {
        serde::de::Error::custom(format!("{factor} is out of range; give a number from 1.5 to 1000"))
    })
}

/// An endpoint among those of its upstream.
#[derive(Clone)]
pub struct Peer {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Only those of the same priority are compared.
    pub priority: u8,
}

/// What an attempt showed of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It did its work.
    Success,
    /// It failed.
    Failure,
    /// Nothing.
    Nothing,
}

/// An endpoint that is out.
#[derive(Clone)]
pub struct Ejection {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Why.
    pub why: Why,
    /// What it was judged by.
    pub numbers: Numbers,
    /// Whether it is out indeed, or in shadow.
    pub enforced: bool,
    /// Since when.
    pub since: Instant,
    /// When its time is over.
    pub until: Instant,
    /// The time of it, jitter included.
    pub lasts: Duration,
    /// Probes that failed since.
    pub failed_probes: u32,
    /// The live probe that is on its way: since when.
    probing: Option<Instant>,
}

/// The numbers that an ejection was judged by; those that played no part are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Numbers {
    /// Failures in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
    /// The share of failures in the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Requests in the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// The peers' median share of failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers_ratio: Option<f64>,
    /// What half of its answers needed at most, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// The peers' median of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers_p50_ms: Option<f64>,
}

/// What happened to an endpoint, for log and metric.
#[derive(Clone)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When.
    pub at: Instant,
    /// How it was ejected.
    pub ejection: Ejection,
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was taken out; after a probe that failed, again.
    Ejected,
    /// Its probe succeeded, its health check did, or in shadow its time is over.
    Returned,
}

/// The outlier ejection of one upstream. A reload makes a new one that goes on with the state of the old.
pub struct Outlier {
    /// Which of the configurations it belongs to.
    generation: u64,
    settings: Settings,
    /// Nanoseconds of a bucket of the window.
    bucket: u64,
    state: Arc<State>,
}

struct State {
    /// When the latencies are looked at next, in nanoseconds.
    next_look: AtomicU64,
    /// When the first ejection's time is over; `u64::MAX` without one.
    due: AtomicU64,
    /// The same for requests that cannot be sent again, which probe only where no other came.
    overdue: AtomicU64,
    /// Counts configurations: who holds an earlier one knows an earlier list, and judges nobody by it.
    generation: AtomicU64,
    /// How many are out.
    ejected: AtomicUsize,
    turn: Mutex<Turn>,
}

/// What changes only by whoever holds the turn.
struct Turn {
    ejected: Vec<Ejection>,
    random: fastrand::Rng,
}

/// How often latencies are looked at: twice that is the least time in which a slow endpoint is found, so that the
/// second of a user's patience is not over.
const LOOK: Duration = Duration::from_millis(250);
/// A lap that has not seen enough answers by then begins anew: its first answers are too old to say anything.
const LONGEST_LAP: Duration = Duration::from_secs(60);
/// How much slower than its peers an endpoint must be besides the factor.
const SLOWER_BY: Duration = Duration::from_millis(20);
/// Slow laps in a row that eject.
const SLOW_LAPS: u32 = 2;
/// How far above its peers' an endpoint's share of failures must be.
const ABOVE_PEERS: f64 = 0.3;
/// What chance may do: ln 1e-6.
const CHANCE: f64 = -13.815_510_557_964_274;
/// Where less was seen of the peers, they may fail and not have shown it: an endpoint's own past counts too.
const FEW: u64 = 40;
/// A peer with so many failures in a row fails now.
const RUN_OF_PEER: u32 = 3;
/// How long nobody is judged after a verdict was refused.
const QUIET: Duration = Duration::from_millis(5);
/// A probe without an outcome for so long is given up: another may go.
const LEASE: Duration = Duration::from_secs(30);
/// How far a drawn time may be from what it should be, either way.
const JITTER: f64 = 0.2;
/// No doubling beyond this: 2^32 of the shortest time are two months.
const MOST_DOUBLINGS: u32 = 32;

impl Outlier {
    /// With the state of `previous`, the one of the same upstream before a reload; `seed` is for the jitter.
    pub fn new(settings: &Settings, previous: Option<&Outlier>, seed: u64) -> Self {
        let state = || State {
            next_look: AtomicU64::new(0),
            due: AtomicU64::new(u64::MAX),
            overdue: AtomicU64::new(u64::MAX),
            generation: AtomicU64::new(0),
            ejected: AtomicUsize::new(0),
            turn: Mutex::new(Turn { ejected: Vec::new(), random: fastrand::Rng::with_seed(seed) }),
        };
        let state = previous.map_or_else(|| Arc::new(state()), |previous| Arc::clone(&previous.state));
        Self {
            generation: state.generation.fetch_add(1, Relaxed) + 1,
            bucket: (settings.failure_ratio.window.as_nanos() as u64 / BUCKETS).max(1),
            state,
            settings: settings.clone(),
        }
    }

    /// The endpoints are `peers` now, or the settings are new: what the bound no longer allows, and what is out by
    /// another mode, comes back.
    pub fn adopt(&self, peers: &[Peer], now: Instant) -> Vec<Event> {
        let mut turn = self.turn();
        let mut events = Vec::new();
        turn.ejected.retain(|ejection| peers.iter().any(|peer| peer.endpoint.id == ejection.endpoint.id));
        let enforced = self.settings.mode == Mode::Enforce;
        for peer in peers {
            let other_mode = turn.of(&peer.endpoint).is_some_and(|ejection| ejection.enforced != enforced);
            if other_mode || self.settings.mode == Mode::Off {
                events.extend(turn.bring_back(&peer.endpoint, now));
            }
        }
        self.keep_bound(&mut turn, peers, now, &mut events);
        self.set_due(&turn);
        events
    }

    /// The head of a good answer to `attempt` came after `latency`.
    pub fn took(&self, attempt: &InFlight, latency: Duration) {
        if self.settings.mode != Mode::Off && !attempt.is_outdated() {
            attempt.endpoint().traffic.took(latency);
        }
    }

    /// The answer to `attempt` has become a stream: if it is a probe, that is its outcome; else its end will be.
    pub fn streams(
        &self,
        attempt: &InFlight,
        now: Instant,
        shown: Shown,
        peers: impl Fn() -> Vec<Peer>,
    ) -> Option<Event> {
        let endpoint = attempt.endpoint();
        let is_probe = !attempt.is_outdated() && endpoint.traffic.is_probed.load(Relaxed);
        if is_probe { self.probed(endpoint, now, shown, Duration::ZERO, &peers()) } else { None }
    }

    /// `attempt` is over; `latency` is that of its answer's head, or of its failure. What happens by that, for log and
    /// metric; `peers` are all endpoints of the upstream.
    pub fn observe(
        &self,
        attempt: &InFlight,
        now: Instant,
        shown: Shown,
        latency: Duration,
        peers: impl Fn() -> Vec<Peer>,
    ) -> Vec<Event> {
        let endpoint = attempt.endpoint();
        let at = nanos(now);
        if attempt.is_outdated() {
            return Vec::new();
        }
        if endpoint.standing.is_out(Out::Ejected) {
            let is_probe = endpoint.traffic.is_probed.load(Relaxed);
            let event = is_probe.then(|| self.probed(endpoint, now, shown, latency, &peers())).flatten();
            return event.into_iter().collect();
        }
        match shown {
            Shown::Success => endpoint.traffic.succeeded(at, at / self.bucket),
            Shown::Failure if self.settings.mode != Mode::Off => {
                let run = endpoint.traffic.failed(at / self.bucket);
                if let Some(event) = self.suspect(endpoint, run, now, &peers) {
                    return vec![event];
                }
            }
            Shown::Failure | Shown::Nothing => {}
        }
        let looks = self.settings.mode != Mode::Off && at >= self.state.next_look.load(Relaxed);
        if looks { self.look(now, &peers()) } else { Vec::new() }
    }

    /// An answer to `attempt` asked that its endpoint be taken out at once (`x-outrigger-immediate-fail`).
    pub fn immediate_fail(&self, attempt: &InFlight, now: Instant, peers: &[Peer]) -> Option<Event> {
        if self.settings.mode == Mode::Off || attempt.is_outdated() {
            return None;
        }
        let (endpoint, mut turn) = (attempt.endpoint(), self.turn());
        if endpoint.traffic.is_probed.swap(false, Relaxed) {
            let event = self.eject_again(&mut turn, endpoint, now);
            self.set_due(&turn);
            return event;
        }
        self.eject(&mut turn, endpoint, peers, now, (Why::ImmediateFail, Numbers::default()))
    }

    /// The endpoint whose time is over and that the request at hand may probe; claimed for it. `may_resend`: the
    /// request can be sent again if that fails. One relaxed load where nobody is due.
    pub fn probe(
        &self,
        now: Instant,
        may_resend: bool,
        peers: impl Fn() -> Vec<Peer>,
    ) -> Option<Arc<Endpoint>> {
        let due = if may_resend { &self.state.due } else { &self.state.overdue };
        if nanos(now) < due.load(Relaxed) || self.is_superseded() {
            return None;
        }
        self.claim(now, may_resend, &peers())
    }

    /// Whether any endpoint is out. One relaxed load.
    pub fn has_ejected(&self) -> bool {
        self.state.ejected.load(Relaxed) > 0
    }

    /// Whether an endpoint waits for a probe. One relaxed load.
    pub fn is_due(&self, now: Instant) -> bool {
        nanos(now) >= self.state.due.load(Relaxed)
    }

    /// The health check of `endpoint` passes after it had failed: so it saw what traffic saw, and it is over.
    pub fn check_recovered(&self, endpoint: &Endpoint, now: Instant) -> Option<Event> {
        let mut turn = self.turn();
        let event = turn.bring_back(endpoint, now);
        self.set_due(&turn);
        event
    }

    /// How `endpoint` is ejected, if it is.
    pub fn ejection(&self, endpoint: &Endpoint) -> Option<Ejection> {
        self.turn().of(endpoint).cloned()
    }

    /// Whether a reload has put another in its place, and only requests that began before it hold this one.
    fn is_superseded(&self) -> bool {
        self.state.generation.load(Relaxed) != self.generation
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        // A panic while it was held leaves a list that is still true.
        self.state.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges an endpoint that has just failed, the `run`th time in a row.
    fn suspect(
        &self,
        endpoint: &Endpoint,
        run: u32,
        now: Instant,
        peers: impl Fn() -> Vec<Peer>,
    ) -> Option<Event> {
        let at = nanos(now);
        let by_run = run >= self.settings.consecutive_failures;
        let FailureRatio { threshold, min_requests, .. } = self.settings.failure_ratio;
        let own = endpoint.traffic.tally(at / self.bucket);
        let ratio = own.ratio().unwrap_or(0.0);
        let by_ratio = own.requests >= u64::from(min_requests) && ratio >= threshold.get();
        if !(by_run || by_ratio) || at < endpoint.traffic.quiet_until.load(Relaxed) {
            return None;
        }
        self.judge(endpoint, (run, by_run), (own, by_ratio), now, &peers())
    }

    #[cold]
    fn judge(
        &self,
        endpoint: &Endpoint,
        (run, by_run): (u32, bool),
        (own, by_ratio): (Tally, bool),
        now: Instant,
        peers: &[Peer],
    ) -> Option<Event> {
        if self.is_superseded() {
            return None;
        }
        let mut turn = self.turn();
        let bucket = nanos(now) / self.bucket;
        let priority = priority_of(endpoint, peers)?;
        let others = || {
            let others =
                peers.iter().filter(|peer| peer.priority == priority && peer.endpoint.id != endpoint.id);
            others.filter(|peer| !turn.is_ejected(&peer.endpoint)).map(|peer| &peer.endpoint)
        };
        let mut tallies: Vec<(Tally, f64)> =
            others().map(|peer| (peer.traffic.tally(bucket), of_late(peer))).collect();
        // Who stands by counts as good until it has shown otherwise: it is there for when a whole priority fails.
        let stand_by = peers.iter().filter(|peer| peer.priority != priority);
        let stand_by = stand_by.filter(|peer| peer.endpoint.standing.is_in_service());
        tallies.extend(stand_by.map(|peer| {
            let tally = peer.endpoint.traffic.tally(bucket);
            (Tally { requests: tally.requests.max(1), ..tally }, of_late(&peer.endpoint))
        }));
        let seen: u64 = tallies.iter().map(|(tally, _)| tally.requests).sum();
        let of_now = tallies.iter().filter_map(|(tally, late)| Some(tally.ratio()?.max(*late)));
        let of_now = median(of_now);
        let of_window = median(tallies.iter().filter_map(|(tally, _)| tally.ratio())).unwrap_or(0.0);
        let ratio = own.ratio().unwrap_or(0.0);
        let numbers = |peers_ratio| Numbers {
            consecutive: Some(run),
            ratio: Some(round(ratio)),
            requests: Some(own.requests),
            peers_ratio: Some(round(peers_ratio)),
            ..Numbers::default()
        };
        let of_now = of_now.unwrap_or(0.0);
        let least = self.settings.consecutive_failures;
        let mut needed = needed_in_a_row(least, of_now, seen);
        if seen < FEW {
            let earlier = Tally {
                requests: own.requests.saturating_sub(run.into()),
                failures: own.failures.saturating_sub(run.into()),
            };
            needed = needed.max(needed_in_a_row(least, earlier.ratio().unwrap_or(0.0), earlier.requests));
        }
        let verdict = if by_run && run >= needed {
            Some((Why::ConsecutiveFailures, numbers(of_now)))
        } else if by_ratio && ratio >= of_window + ABOVE_PEERS && is_no_chance(own, of_window, seen) {
            Some((Why::FailureRatio, numbers(of_window)))
        } else {
            None
        };
        let event = verdict.and_then(|verdict| self.eject(&mut turn, endpoint, peers, now, verdict));
        if event.is_none() {
            endpoint.traffic.quiet_until.store(nanos(now + QUIET), Relaxed);
        }
        event
    }

    /// Ends the laps of endpoints that have seen enough answers, and judges them by their latencies; ends what is over
    /// in shadow.
    #[cold]
    fn look(&self, now: Instant, peers: &[Peer]) -> Vec<Event> {
        if self.is_superseded() {
            return Vec::new();
        }
        let Ok(mut turn) = self.state.turn.try_lock() else { return Vec::new() };
        let at = nanos(now);
        if at < self.state.next_look.load(Relaxed) {
            return Vec::new();
        }
        self.state.next_look.store(nanos(now + LOOK), Relaxed);
        let mut events = Vec::new();
        for peer in peers {
            let over = |ejection: &Ejection| !ejection.enforced && ejection.until <= now;
            if turn.of(&peer.endpoint).is_some_and(over) {
                events.extend(turn.bring_back(&peer.endpoint, now));
            }
        }
        let mut ended: Vec<(&Peer, Duration, u64)> = Vec::new();
        for peer in peers.iter().filter(|peer| !turn.is_ejected(&peer.endpoint)) {
            let traffic = &peer.endpoint.traffic;
            if traffic.answers() >= self.settings.slow.min_requests {
                let is_stale = at.saturating_sub(traffic.lap_began()) > LONGEST_LAP.as_nanos() as u64;
                let lap = traffic.end_lap(at);
                ended.extend(lap.filter(|_| !is_stale).map(|(p50, began)| (peer, p50, began)));
            }
        }
        for (peer, p50, began) in ended {
            let others = peers.iter().filter(|other| {
                other.priority == peer.priority
                    && other.endpoint.id != peer.endpoint.id
                    && !turn.is_ejected(&other.endpoint)
            });
            let others: Vec<f64> = others
                .filter_map(|other| other.endpoint.traffic.slowest_since(began))
                .map(|p50| p50.as_secs_f64())
                .collect();
            if others.len() < 2 {
                continue;
            }
            let peers_p50 = Duration::from_secs_f64(median(others.into_iter()).unwrap_or(0.0));
            let slow_laps = {
                let mut past = peer.endpoint.traffic.past();
                past.slow_laps = if self.is_slow(p50, peers_p50) { past.slow_laps + 1 } else { 0 };
                past.slow_laps
            };
            if slow_laps >= SLOW_LAPS {
                let millis = |time: Duration| Some(round(time.as_secs_f64() * 1000.0));
                let numbers =
                    Numbers { p50_ms: millis(p50), peers_p50_ms: millis(peers_p50), ..Numbers::default() };
                events.extend(self.eject(&mut turn, &peer.endpoint, peers, now, (Why::Slow, numbers)));
            }
        }
        self.keep_bound(&mut turn, peers, now, &mut events);
        events
    }

    fn is_slow(&self, p50: Duration, peers_p50: Duration) -> bool {
        p50 >= peers_p50.mul_f64(self.settings.slow.factor) && p50 >= peers_p50 + SLOWER_BY
    }

    /// Takes `endpoint` out, if the bound allows it.
    fn eject(
        &self,
        turn: &mut Turn,
        endpoint: &Endpoint,
        peers: &[Peer],
        now: Instant,
        (why, numbers): (Why, Numbers),
    ) -> Option<Event> {
        let priority = priority_of(endpoint, peers)?;
        let of_priority = peers.iter().filter(|peer| peer.priority == priority);
        let (count, out) = of_priority.fold((0, 0), |(count, out), peer| {
            (count + 1, out + usize::from(turn.is_ejected(&peer.endpoint)))
        });
        let stays = |peer: &&Peer| {
            let other = &peer.endpoint;
            other.id != endpoint.id && other.standing.is_in_service() && !turn.is_ejected(other)
        };
        let most = self.most(turn, peers, priority, count);
        if turn.is_ejected(endpoint) || out >= most || !peers.iter().any(|peer| stays(&peer)) {
            return None;
        }
        let ejections = {
            let mut past = endpoint.traffic.past();
            let EjectFor { max, .. } = self.settings.eject_for;
            let made_up = nanos(now).saturating_sub(past.returned_at) / (max.as_nanos() as u64).max(1);
            past.ejections = past.ejections.saturating_sub(u32::try_from(made_up).unwrap_or(u32::MAX));
            past.ejections = (past.ejections + 1).min(MOST_DOUBLINGS);
            past.ejections
        };
        let lasts = self.draw_time(turn, ejections - 1);
        let enforced = self.settings.mode == Mode::Enforce;
        let ejection = Ejection {
            endpoint: Arc::clone(&peers.iter().find(|peer| peer.endpoint.id == endpoint.id)?.endpoint),
            why,
            numbers,
            enforced,
            since: now,
            until: now + lasts,
            lasts,
            failed_probes: 0,
            probing: None,
        };
        turn.ejected.push(ejection.clone());
        if enforced {
            endpoint.traffic.begin_era();
            endpoint.standing.set(Out::Ejected, true, now);
        }
        self.set_due(turn);
        Some(Event { kind: EventKind::Ejected, at: now, ejection })
    }

    fn draw_time(&self, turn: &mut Turn, doublings: u32) -> Duration {
        let EjectFor { base, max } = self.settings.eject_for;
        let doubled = base.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
        doubled.min(*max).mul_f64(turn.jitter())
    }

    #[cold]
    fn claim(&self, now: Instant, may_resend: bool, peers: &[Peer]) -> Option<Arc<Endpoint>> {
        let mut turn = self.turn();
        let found = peers.iter().find_map(|peer| {
            let fails_check = peer.endpoint.standing.is_out(Out::Unhealthy);
            let ejection =
                turn.ejected.iter_mut().find(|ejection| ejection.endpoint.id == peer.endpoint.id)?;
            let overdue = now >= ejection.until + ejection.lasts;
            let claims = !fails_check && ejection.next_probe() <= now && (may_resend || overdue);
            claims.then(|| {
                ejection.probing = Some(now);
                peer.endpoint.traffic.begin_era();
                peer.endpoint.traffic.is_probed.store(true, Relaxed);
                Arc::clone(&peer.endpoint)
            })
        });
        self.set_due(&turn);
        found
    }

    /// The outcome of the probe of `endpoint`.
    #[cold]
    fn probed(
        &self,
        endpoint: &Endpoint,
        now: Instant,
        shown: Shown,
        latency: Duration,
        peers: &[Peer],
    ) -> Option<Event> {
        let mut turn = self.turn();
        let ejection = turn.ejected.iter_mut().find(|ejection| ejection.endpoint.id == endpoint.id);
        let ejection = ejection.filter(|ejection| ejection.probing.is_some())?;
        endpoint.traffic.is_probed.store(false, Relaxed);
        ejection.probing = None;
        let priority = priority_of(endpoint, peers);
        let others = peers
            .iter()
            .filter(|peer| Some(peer.priority) == priority && peer.endpoint.id != endpoint.id)
            .filter_map(|peer| peer.endpoint.traffic.slowest_since(0));
        let usual = median(others.map(|p50| p50.as_secs_f64())).map(Duration::from_secs_f64);
        // One answer is held against a median only where that was the fault: some requests are slow by nature.
        let was_slow = ejection.why == Why::Slow;
        let crawls = was_slow && usual.is_some_and(|usual| self.is_slow(latency, usual));
        let event = match shown {
            Shown::Nothing => None,
            Shown::Success if !crawls => turn.bring_back(endpoint, now),
            Shown::Success | Shown::Failure => self.eject_again(&mut turn, endpoint, now),
        };
        self.set_due(&turn);
        event
    }

    /// The probe of `endpoint` has failed.
    fn eject_again(&self, turn: &mut Turn, endpoint: &Endpoint, now: Instant) -> Option<Event> {
        let failed_probes = turn.of(endpoint)?.failed_probes + 1;
        let EjectFor { base, max } = self.settings.eject_for;
        let out_for = now.saturating_duration_since(turn.of(endpoint)?.since);
        let lasts = (out_for / 5).clamp(*base, *max).mul_f64(turn.jitter());
        let ejection = turn.ejected.iter_mut().find(|ejection| ejection.endpoint.id == endpoint.id)?;
        (ejection.until, ejection.lasts, ejection.failed_probes) = (now + lasts, lasts, failed_probes);
        ejection.probing = None;
        let again = Ejection { why: Why::ProbeFailed, ..ejection.clone() };
        Some(Event { kind: EventKind::Ejected, at: now, ejection: again })
    }

    /// How many of the `count` endpoints of a priority may be out.
    fn most(&self, turn: &Turn, peers: &[Peer], priority: u8, count: usize) -> usize {
        let stands_by = peers.iter().any(|peer| {
            peer.priority != priority
                && peer.endpoint.standing.is_in_service()
                && !turn.is_ejected(&peer.endpoint)
        });
        self.settings.most(count).max(usize::from(stands_by))
    }

    /// Brings back what the bound no longer allows, those first that have been out the longest.
    fn keep_bound(&self, turn: &mut Turn, peers: &[Peer], now: Instant, events: &mut Vec<Event>) {
        if turn.ejected.is_empty() {
            return;
        }
        for priority in 0..=peers.iter().map(|peer| peer.priority).max().unwrap_or(0) {
            let of_priority: Vec<&Peer> = peers.iter().filter(|peer| peer.priority == priority).collect();
            let mut out: Vec<(Instant, &Peer)> =
                of_priority.iter().filter_map(|peer| Some((turn.of(&peer.endpoint)?.since, *peer))).collect();
            out.sort_by_key(|(since, _)| *since);
            let most = self.most(turn, peers, priority, of_priority.len());
            let excess = out.len().saturating_sub(most);
            for (_, peer) in &out[..excess] {
                events.extend(turn.bring_back(&peer.endpoint, now));
            }
        }
        if !peers.iter().any(|peer| !turn.is_ejected(&peer.endpoint)) {
            let first = turn.ejected.iter().min_by_key(|ejection| ejection.since);
            let first = first.map(|ejection| Arc::clone(&ejection.endpoint));
            events.extend(first.and_then(|first| turn.bring_back(&first, now)));
        }
    }

    fn set_due(&self, turn: &Turn) {
        let waits = |ejection: &&Ejection| {
            let endpoint = &ejection.endpoint;
            ejection.enforced && !endpoint.is_gone() && !endpoint.standing.is_out(Out::Unhealthy)
        };
        let first = |at: fn(&Ejection) -> Instant| {
            let first = turn.ejected.iter().filter(waits).map(at).min();
            first.map_or(u64::MAX, nanos)
        };
        self.state.due.store(first(Ejection::next_probe), Relaxed);
        self.state.overdue.store(first(|one| one.next_probe().max(one.until + one.lasts)), Relaxed);
        self.state.ejected.store(turn.ejected.len(), Relaxed);
    }
}

impl Turn {
    /// A factor around 1.
    fn jitter(&mut self) -> f64 {
        1.0 - JITTER + 2.0 * JITTER * self.random.f64()
    }

    fn of(&self, endpoint: &Endpoint) -> Option<&Ejection> {
        self.ejected.iter().find(|ejection| ejection.endpoint.id == endpoint.id)
    }

    fn is_ejected(&self, endpoint: &Endpoint) -> bool {
        self.of(endpoint).is_some()
    }

    /// Ends the ejection of `endpoint`, if it is ejected.
    fn bring_back(&mut self, endpoint: &Endpoint, now: Instant) -> Option<Event> {
        let place = self.ejected.iter().position(|ejection| ejection.endpoint.id == endpoint.id)?;
        let ejection = self.ejected.swap_remove(place);
        endpoint.traffic.is_probed.store(false, Relaxed);
        endpoint.traffic.begin_anew(nanos(now));
        endpoint.standing.set(Out::Ejected, false, now);
        Some(Event { kind: EventKind::Returned, at: now, ejection })
    }
}

impl Ejection {
    /// When it may be probed, unless its health check fails.
    fn next_probe(&self) -> Instant {
        self.probing.map_or(self.until, |since| since + LEASE)
    }
}

/// How many failures in a row eject, where `ratio` of the peers' `seen` requests failed: as many as chance brings once
/// in a million; `least` where none failed, and never where all did. What was seen is only a sample: its upper end
/// counts.
fn needed_in_a_row(least: u32, ratio: f64, seen: u64) -> u32 {
    let upper = ratio + 2.0 * (ratio * (1.0 - ratio) / seen.max(1) as f64).sqrt();
    match upper {
        upper if upper <= 0.0 => least,
        upper if upper >= 1.0 => u32::MAX,
        upper => least.max((CHANCE / upper.ln()).ceil() as u32),
    }
}

/// Whether the failures in `own` are more than chance would bring, where `ratio` of the peers' `seen` requests failed:
/// the likelihood of two shares against that of one for all (a G-test), since the peers' share is a sample too.
fn is_no_chance(own: Tally, ratio: f64, seen: u64) -> bool {
    let (share, requests, seen) = (own.ratio().unwrap_or(0.0), own.requests as f64, seen as f64);
    let of_all = (own.failures as f64 + ratio * seen) / (requests + seen).max(1.0);
    let part = |share: f64, of: f64| if share > 0.0 { share * (share / of).ln() } else { 0.0 };
    let differs = |share: f64| part(share, of_all) + part(1.0 - share, 1.0 - of_all);
    share > ratio && requests * differs(share) + seen * differs(ratio) >= -CHANCE
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// For people: four places are enough.
fn round(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0
}

/// The share of failures that an endpoint shows now, whatever its window remembers.
fn of_late(endpoint: &Arc<Endpoint>) -> f64 {
    if endpoint.traffic.run() >= RUN_OF_PEER { 1.0 } else { endpoint.traffic.recent() }
}

fn priority_of(endpoint: &Endpoint, peers: &[Peer]) -> Option<u8> {
    peers.iter().find(|peer| peer.endpoint.id == endpoint.id).map(|peer| peer.priority)
}

#[cfg(test)]
mod tests;
