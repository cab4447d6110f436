//! The policies of one upstream with their state, and how their modes are carried out.
//!
//! One chain for each upstream and process. A reload builds a new chain that takes the state over by name: an
//! open breaker stays open, whoever is in flight stays counted.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::policy::breaker::{Breaker, StateKind};
use crate::policy::budget::Budget;
use crate::policy::deadline::Feasibility;
use crate::policy::failure::Classifier;
use crate::policy::fault::{Endpoints, Fault};
use crate::policy::hedge::Hedge;
use crate::policy::latency::Latency;
use crate::policy::mode::Mode;
use crate::policy::rate_limit::{Limit, Limits};
use crate::policy::shed::level::LEVELS;
use crate::policy::shed::{Change, Health, Shedding};
use crate::reason::Error;
use crate::telemetry::metrics::{BreakerState, Effect, Metrics, UpstreamShard};
use crate::upstream::standing::{Out, Standing};
use crate::upstream::{Settings, Upstream};

use super::coalesce::Coalescer;
use super::fault::{Faults, Place};
use super::queue::Gate;
use super::store::Store;

/// The policies of one upstream.
pub struct Chain {
    /// Who can answer, and what is in force.
    pub upstream: Upstream,
    /// How much each key may have in a time.
    pub rate_limits: Limits,
    /// Whether to send at all.
    pub breaker: Arc<Breaker>,
    /// How many may be sent at once.
    pub gate: Arc<Gate>,
    /// Who is refused first, where that is wanted.
    pub shed: Option<Arc<Shedding>>,
    /// How many retries there may be.
    pub budget: Arc<Budget>,
    /// What is known of hedges.
    pub hedge: Arc<Hedge>,
    /// How long attempts took of late.
    pub latency: Arc<Latency>,
    /// Whether an attempt can still be in time.
    pub feasibility: Arc<Feasibility>,
    /// What a failure is.
    pub classifier: Classifier,
    /// Answers for the time when it cannot answer.
    pub store: Arc<Store>,
    /// Who asks the same of it at the moment.
    pub coalescer: Arc<Coalescer>,
    /// What is done to requests on purpose.
    pub faults: Arc<Faults>,
    /// Of those, what the configuration says for requests whose route says nothing of it.
    pub fault: Option<Arc<Fault>>,
}

impl Chain {
    /// The chain of the upstream `name`, with the state of `previous`, one of the same name.
    pub fn new(name: &str, settings: &Settings, previous: Option<&Chain>, metrics: &Arc<Metrics>) -> Self {
        let now = Instant::now();
        let gate =
            previous.map_or_else(|| Gate::new(&settings.concurrency, now), |old| Arc::clone(&old.gate));
        gate.update(&settings.concurrency, now);
        let upstream =
            Upstream::new(name, settings.clone(), previous.map(|previous| &previous.upstream), metrics);
        upstream.metrics.set_breaker_mode(word(settings.breaker.mode));
        let breaker = match previous {
            Some(previous) => Arc::clone(&previous.breaker),
            None => {
                let series = Arc::clone(&upstream.metrics);
                let name = name.to_owned();
                Arc::new(Breaker::new(&settings.breaker, now).observe(Box::new(move |moved| {
                    series.breaker_moved(series_state(moved.to));
                    tracing::warn!(
                        upstream = name,
                        from = series_state(moved.from).label(),
                        to = series_state(moved.to).label(),
                        failures = moved.failures,
                        counted = moved.counted,
                        open_for_ms = moved.open_for.map(|open_for| open_for.as_millis() as u64),
                        "breaker {}",
                        series_state(moved.to).label()
                    );
                })))
            }
        };
        breaker.update(&settings.breaker, now);
        let budget = previous.map_or_else(
            || Arc::new(Budget::new(&settings.retry.budget, now)),
            |old| Arc::clone(&old.budget),
        );
        budget.update(&settings.retry.budget, now);
        let faults = previous.map_or_else(|| Faults::new(name), |old| Arc::clone(&old.faults));
        faults.begin();
        Self {
            rate_limits: Limits::new(
                &settings.rate_limit,
                previous.map(|previous| &previous.rate_limits),
                now,
            ),
            breaker,
            gate,
            shed: settings.shed.as_ref().map(|_| {
                let known = previous.and_then(|previous| previous.shed.as_ref());
                known.map_or_else(|| Arc::new(Shedding::new(now, seconds())), Arc::clone)
            }),
            budget,
            hedge: previous.map_or_else(|| Arc::new(Hedge::new(now)), |old| Arc::clone(&old.hedge)),
            latency: previous.map_or_else(|| Arc::new(Latency::new(now)), |old| Arc::clone(&old.latency)),
            feasibility: previous
                .map_or_else(|| Arc::new(Feasibility::new(now)), |old| Arc::clone(&old.feasibility)),
            classifier: Classifier::new(&settings.failure),
            store: previous.map_or_else(|| Arc::new(Store::new(metrics)), |old| Arc::clone(&old.store)),
            coalescer: previous
                .map_or_else(|| Arc::new(Coalescer::new(metrics, now)), |old| Arc::clone(&old.coalescer)),
            fault: faults.written(&Place::Upstream, &settings.fault, now),
            faults,
            upstream,
        }
    }

    /// What there is of endpoints for a fault, which must not add to a failure. New ones that wait for their first check
    /// have shown no failure.
    pub fn endpoints_for_fault(&self) -> Endpoints {
        let endpoints = self.upstream.endpoints();
        let is_healthy =
            |standing: &Standing| !standing.is_out(Out::Ejected) && !standing.is_out(Out::Unhealthy);
        let healthy = endpoints.usable.iter().filter(|choice| is_healthy(&choice.endpoint.standing)).count();
        Endpoints { all: endpoints.usable.len() + endpoints.unresolved.len(), healthy }
    }

    /// Looks, now and then, whether more or less must be shed; mostly it is not time to.
    pub fn look_after_shedding(&self, now: Instant, health: impl FnOnce() -> Health) {
        let (Some(shedding), Some(settings)) = (&self.shed, &self.upstream.settings.shed) else { return };
        let upstream = &*self.upstream.name;
        match shedding.own.tick((now, seconds()), settings, || self.gate.counts(), health) {
            None => {}
            Some(Change::Began { share, cutoff, own }) => {
                let mode = word(settings.mode);
                let why = if own { "this process is short of memory or time" } else { "too much arrives" };
                tracing::warn!(upstream, mode, share, cutoff, "load shedding begins: {why}");
            }
            Some(Change::Ended { after, shed }) => {
                let seconds = after.as_secs_f64();
                tracing::info!(upstream, seconds, shed, "load shedding has ended");
            }
        }
    }

    /// Puts the present counts into the gauges, for a scrape.
    pub fn refresh_gauges(&self) {
        let (in_flight, limit, waiting) = self.gate.counts();
        let metrics = &self.upstream.metrics;
        metrics.concurrency_in_flight.set(in_flight.into());
        metrics.concurrency_limit.set(limit.into());
        metrics.queue_depth.set(waiting as i64);
        let cutoff = self.shed.as_ref().map_or(LEVELS, |shedding| shedding.own.cutoff());
        metrics.shed_cutoff.set(cutoff.into());
        metrics.streams.set(self.upstream.counts.streams().into());
        for choice in &self.upstream.endpoints().usable {
            choice.endpoint.metrics.set_healthy(choice.endpoint.standing.is_in_service());
        }
        let age = self.upstream.known().age(Instant::now());
        metrics.dns_age.set(age.map_or(-1, |age| age.as_millis() as i64));
        metrics.breaker_stands(series_state(self.breaker.view(Instant::now()).state));
    }

    /// What `/upstreams` tells of it.
    pub fn view(&self, now: Instant) -> serde_json::Value {
        let (in_flight, limit, waiting) = self.gate.counts();
        let endpoints = self.upstream.endpoints();
        let usable = endpoints.usable.iter().map(|choice| self.upstream.view(choice, now));
        let unresolved = endpoints.unresolved.iter().map(|(address, why)| {
            serde_json::json!({ "address": address.to_string(), "health": "unresolved", "reason": "dns_error", "detail": why })
        });
        let ((answers, bytes), (leaders, followers)) = (self.store.counts(), self.coalescer.counts());
        serde_json::json!({
            "endpoints": usable.chain(unresolved).collect::<Vec<_>>(),
            "discovery": self.upstream.known().view(now),
            "rate_limits": self.rate_limits.iter().map(|limit: &Limit| limit.view(now)).collect::<Vec<_>>(),
            "breaker": self.breaker.view(now),
            "concurrency": { "in_flight": in_flight, "limit": limit, "queued": waiting },
            "shed": self.shed.as_ref().map(|shedding| shedding.view()),
            "connections": self.upstream.counts.connections(),
            "streams": self.upstream.counts.streams(),
            "retry_budget": self.budget.view(now),
            "fallback": {
                "kept": { "answers": answers, "bytes": bytes },
                "coalescing": { "leaders": leaders, "followers": followers },
            },
            "hedge": self.hedge.view(now),
            "latency": {
                "p50_ms": self.latency.p50(now).map(|p50| p50.as_secs_f64() * 1000.0),
                "p99_ms": self.latency.p99(now).map(|p99| p99.as_secs_f64() * 1000.0),
            },
        })
    }

    /// Whether a request sent now could be answered, in words; the first word is `ok` if so.
    pub fn health(&self, now: Instant) -> (bool, String) {
        let endpoints = self.upstream.endpoints();
        if endpoints.usable.is_empty() {
            let known = self.upstream.known();
            let why = endpoints.unresolved.first().map(|(_, why)| why.as_str());
            let why = why.or(known.list_error()).unwrap_or("it has none");
            return (false, format!("no usable endpoint: {why}"));
        }
        if endpoints.in_service() == 0 {
            let count =
                |out| endpoints.usable.iter().filter(|choice| choice.endpoint.standing.is_out(out)).count();
            let counts = Out::ALL.map(|out| (count(out), out.word()));
            let counts = counts.iter().filter(|(count, _)| *count > 0);
            let counts = counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ");
            return (
                false,
                format!("no usable endpoint: all {} are out of service ({counts})", endpoints.usable.len()),
            );
        }
        match series_state(self.breaker.view(now).state) {
            BreakerState::Open => (false, "breaker open".to_owned()),
            state => (true, format!("ok, breaker {}", state.label())),
        }
    }
}

/// Carries out what a policy has decided, as its mode for this request says: enforced, a refusal is the
/// answer; in shadow the request passes without. It is counted if the request is refused by it: a retry that is
/// refused is only one that is not made.
///
/// # Errors
/// The refusal, if it is enforced.
pub fn carry_out<T>(
    decided: Result<T, Error>,
    mode: Mode,
    is_retry: bool,
    metrics: &UpstreamShard,
) -> Result<Option<T>, Error> {
    let refusal = match decided {
        Ok(granted) => return Ok(Some(granted)),
        Err(refusal) => refusal,
    };
    let effect = if mode == Mode::Enforce { Effect::Enforced } else { Effect::Shadowed };
    if !is_retry {
        metrics.rejected(refusal.reason, effect).inc();
    }
    if mode == Mode::Enforce { Err(refusal) } else { Ok(None) }
}

/// Seconds since 1970.
fn seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
        Mode::Off => "off",
    }
}

const fn series_state(state: StateKind) -> BreakerState {
    match state {
        StateKind::Closed => BreakerState::Closed,
        StateKind::HalfOpen => BreakerState::HalfOpen,
        StateKind::Ramping => BreakerState::Ramping,
        StateKind::Open => BreakerState::Open,
    }
}
