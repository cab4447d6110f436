//! Metrics: what happened, as numbers that Prometheus reads.
//!
//! Every metric is declared once, in `page`, and every series is resolved at load: the path holds handles and names no
//! string. What a worker counts for each request lies in that worker's own shard ([`super::cells`] says why) and is
//! summed at the scrape; what is rare or one for the process is shared.
//!
//! **A series lives as long as its handle.** Whoever holds the `Arc` of an upstream, a route, a listener or an
//! endpoint (a snapshot, a request that still uses it) keeps its series; when the last one is gone, they go: an
//! upstream's with the next scrape, an endpoint's five minutes later. So a reload carries counts over by asking for
//! the same name before it lets the old snapshot go, and nobody has to say what left.
//!
//! **Bounds.** Label values come from the configuration or from fixed lists, except for endpoints (names resolve to
//! anything): 1,000 of them have series of their own, further ones share `endpoint="other"`.
//!
//! All series exist from load on, at zero, but those with a `code` or an `endpoint`, which begin with their first
//! event; so does a series whose reason does not occur in ordinary life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::cells::{
    Counter, DURATIONS, Distribution, Gauge, Histogram, Layout, LocalGauge, OVERHEAD, SharedCounter,
};
pub use super::labels::{
    AttemptOutcome, BreakerState, ConnectResult, Effect, Ejection, FaultKind, HandshakeResult, Limit,
    Refused, RequestOutcome, Substitute, Winner, Words,
};
use super::labels::{CODES, code_index};
use crate::reason::Reason;

mod page;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How many endpoints have series of their own.
const MAX_ENDPOINTS: usize = 1000;

/// How long an endpoint's series stay after it left: long enough for the last counts to be scraped.
const ENDPOINT_STAYS: Duration = Duration::from_secs(300);

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    workers: usize,
    version: String,
    commit: String,
    words: Words,
    overhead: Box<[OverheadShard]>,
    limits: [SharedCounter; Limit::ALL.len()],
    panics: SharedCounter,
    log_dropped: Arc<SharedCounter>,
    config: ConfigMetrics,
    certificates: CertificateMetrics,
    /// Requests that no route took: `upstream=""`.
    unrouted: Arc<UpstreamMetrics>,
    series: Mutex<AllSeries>,
}

/// What is told of the certificates that are shown to peers.
#[derive(Debug, Default)]
struct CertificateMetrics {
    renewed: SharedCounter,
    failed: SharedCounter,
    /// By file: seconds from 1970 to the end of its validity.
    expiry: Mutex<BTreeMap<String, i64>>,
}

/// What is told of the configuration.
#[derive(Debug)]
struct ConfigMetrics {
    succeeded: SharedCounter,
    failed: SharedCounter,
    state: Mutex<ConfigState>,
}

#[derive(Debug)]
struct ConfigState {
    digest: String,
    last_succeeded: bool,
    loaded_at: SystemTime,
}

/// Everything that comes and goes with the configuration.
#[derive(Debug, Default)]
struct AllSeries {
    upstreams: BTreeMap<String, Arc<UpstreamMetrics>>,
    routes: BTreeMap<RouteName, Arc<RouteMetrics>>,
    listeners: BTreeMap<String, Arc<ListenerMetrics>>,
    endpoints: BTreeMap<EndpointName, Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct RouteName {
    listener: String,
    route: String,
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct EndpointName {
    upstream: String,
    endpoint: String,
}

#[derive(Debug)]
struct Endpoint {
    metrics: Arc<EndpointMetrics>,
    /// When nobody held its handle any more.
    left: Option<Instant>,
}

/// One worker's part of the overhead. Two cache lines of its own, as every shard: workers never write to one line.
#[derive(Debug)]
#[repr(align(128))]
struct OverheadShard(Histogram);

/// The metrics of an upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    shards: Box<[UpstreamShard]>,
    /// Where the breaker stands; [`UpstreamMetrics::breaker_moved`] sets it.
    breaker_state: Gauge,
    breaker_transitions: [SharedCounter; BreakerState::ALL.len()],
    /// The breaker's mode, a label of its state.
    breaker_mode: Mutex<&'static str>,
    /// How many attempts may be in flight.
    pub concurrency_limit: Gauge,
    /// How many attempts are in flight.
    pub concurrency_in_flight: Gauge,
    /// From which level on requests are shed.
    pub shed_cutoff: Gauge,
    /// Exchanges without a foreseeable end.
    pub streams: Gauge,
    /// How many requests wait for a slot.
    pub queue_depth: Gauge,
    /// Copies of requests that were sent to it.
    pub mirrored: SharedCounter,
    /// Milliseconds since DNS last gave a definite answer, for the name for which that is longest ago; below 0: it is
    /// not asked.
    pub dns_age: Gauge,
    /// Look-ups that failed, and files of endpoints that could not be taken.
    pub discovery_failures: SharedCounter,
}

/// One worker's part of an upstream's metrics.
#[derive(Debug)]
#[repr(align(128))]
pub struct UpstreamShard {
    request_duration: [Histogram; RequestOutcome::ALL.len()],
    /// From a request's head in to its response's end; streams apart.
    pub response_duration: Histogram,
    /// From sending a request to the response's head, or to the failure.
    pub attempt_duration: Histogram,
    /// How long queued requests waited, in vain or not.
    pub queue_wait: Histogram,
    attempts: [Counter; AttemptOutcome::COUNT],
    retries: Box<[Counter]>,
    retries_skipped: Box<[Counter]>,
    hedges: [Counter; Winner::ALL.len()],
    hedges_skipped: Box<[Counter]>,
    rejected: [[Counter; Effect::ALL.len()]; Reason::ALL.len()],
    connects: [Counter; ConnectResult::ALL.len()],
    fallbacks: [[Counter; Effect::ALL.len()]; Substitute::ALL.len()],
    /// Requests that got the answer to another one that asked the same.
    pub coalesced: Counter,
    faults: [Counter; FaultKind::ALL.len()],
}

/// The metrics of a route.
#[derive(Debug)]
pub struct RouteMetrics {
    shards: Box<[RouteShard]>,
}

/// One worker's part of a route's metrics.
#[derive(Debug)]
#[repr(align(128))]
pub struct RouteShard {
    requests: [[Counter; RequestOutcome::ALL.len()]; CODES.len()],
}

/// The metrics of an endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    shards: Box<[EndpointShard]>,
    /// Whether it is in service: 1 or 0; [`UNTOLD`] before anybody said.
    healthy: Gauge,
    ejections: [SharedCounter; Ejection::ALL.len()],
}

/// One worker's part of an endpoint's metrics.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EndpointShard {
    attempts: [Counter; AttemptOutcome::COUNT],
    /// This worker's connections that carry an exchange.
    pub connections_active: LocalGauge,
    /// This worker's connections that wait for one.
    pub connections_idle: LocalGauge,
}

/// The metrics of a listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Connections from clients.
    pub connections: Gauge,
    refused: [SharedCounter; Refused::ALL.len()],
    /// Where they speak TLS.
    handshakes: OnceLock<[SharedCounter; HandshakeResult::ALL.len()]>,
}

impl Metrics {
    /// Metrics for `workers` workers of the given build; `words` are what the policies call things.
    pub fn new(workers: usize, version: &str, commit: &str, words: Words) -> Arc<Metrics> {
        Arc::new(Metrics {
            workers,
            version: version.to_owned(),
            commit: commit.to_owned(),
            overhead: (0..workers).map(|_| OverheadShard(Histogram::new(&OVERHEAD))).collect(),
            limits: std::array::from_fn(|_| SharedCounter::default()),
            panics: SharedCounter::default(),
            log_dropped: Arc::default(),
            config: ConfigMetrics {
                succeeded: SharedCounter::default(),
                failed: SharedCounter::default(),
                state: Mutex::new(ConfigState {
                    digest: String::new(),
                    last_succeeded: true,
                    loaded_at: SystemTime::now(),
                }),
            },
            certificates: CertificateMetrics::default(),
            unrouted: Arc::new(UpstreamMetrics::new(workers, &words)),
            series: Mutex::default(),
            words,
        })
    }

    /// How many workers write them.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The series of an upstream; the same ones for the same name. The empty name is that of unrouted requests.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        if name.is_empty() {
            return self.unrouted.clone();
        }
        let new = || Arc::new(UpstreamMetrics::new(self.workers, &self.words));
        self.series().upstreams.entry(name.to_owned()).or_insert_with(new).clone()
    }

    /// The series of requests that no route took.
    pub fn unrouted(&self) -> &UpstreamMetrics {
        &self.unrouted
    }

    /// The series of a route; the same ones for the same names. Requests that no route took have an empty route
    /// and an empty upstream.
    pub fn route(&self, listener: &str, route: &str, upstream: &str) -> Arc<RouteMetrics> {
        let name = RouteName {
            listener: listener.to_owned(),
            route: route.to_owned(),
            upstream: upstream.to_owned(),
        };
        let new = || Arc::new(RouteMetrics { shards: shards(self.workers, RouteShard::new) });
        self.series().routes.entry(name).or_insert_with(new).clone()
    }

    /// The series of a listener; the same ones for the same name.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        self.series().listeners.entry(name.to_owned()).or_default().clone()
    }

    /// The series of an endpoint; the same ones for the same names. Beyond 1,000 endpoints the upstream's further
    /// ones share `endpoint="other"`.
    pub fn endpoint(&self, upstream: &str, endpoint: &str) -> Arc<EndpointMetrics> {
        let mut series = self.series();
        series.forget_endpoints(Instant::now());
        let mut name = EndpointName { upstream: upstream.to_owned(), endpoint: endpoint.to_owned() };
        if !series.endpoints.contains_key(&name) && series.endpoints.len() >= MAX_ENDPOINTS {
            self.limit_reached(Limit::EndpointSeries).inc();
            name.endpoint = "other".to_owned();
        }
        let new = || {
            let metrics = Arc::new(EndpointMetrics::new(self.workers));
            Endpoint { metrics, left: None }
        };
        let entry = series.endpoints.entry(name).or_insert_with(new);
        entry.left = None;
        entry.metrics.clone()
    }

    /// How often a bound was reached.
    pub fn limit_reached(&self, limit: Limit) -> &SharedCounter {
        &self.limits[limit as usize]
    }

    /// What Outrigger itself adds to a request on this worker.
    pub fn overhead(&self, worker: usize) -> &Histogram {
        &self.overhead[worker].0
    }

    /// How many panics there were.
    pub fn panics(&self) -> &SharedCounter {
        &self.panics
    }

    /// How many lines the logs lost, for those who write them.
    pub fn log_dropped(&self) -> &Arc<SharedCounter> {
        &self.log_dropped
    }

    /// The configuration in force is now the one with this digest, loaded at `now`.
    pub fn set_config(&self, digest: &str, now: SystemTime) {
        let mut state = lock(&self.config.state);
        digest.clone_into(&mut state.digest);
        state.loaded_at = now;
    }

    /// A reload ended. One that succeeded is followed by [`Metrics::set_config`].
    pub fn reloaded(&self, succeeded: bool) {
        let counter = if succeeded { &self.config.succeeded } else { &self.config.failed };
        counter.inc();
        lock(&self.config.state).last_succeeded = succeeded;
    }

    /// These are the certificates that are shown to peers: their files, and until when they are valid, in seconds from
    /// 1970.
    pub fn set_certificates(&self, expiry: BTreeMap<String, i64>) {
        *lock(&self.certificates.expiry) = expiry;
    }

    /// Changed files with certificates were read again, well or not.
    pub fn certificates_read(&self, succeeded: bool) {
        let CertificateMetrics { renewed, failed, .. } = &self.certificates;
        if succeeded { renewed.inc() } else { failed.inc() }
    }

    fn series(&self) -> MutexGuard<'_, AllSeries> {
        lock(&self.series)
    }
}

impl UpstreamMetrics {
    fn new(workers: usize, words: &Words) -> Self {
        Self {
            shards: shards(workers, || UpstreamShard::new(words)),
            breaker_state: Gauge::default(),
            breaker_transitions: Default::default(),
            breaker_mode: Mutex::new(Effect::Enforced.label()),
            concurrency_limit: Gauge::default(),
            concurrency_in_flight: Gauge::default(),
            shed_cutoff: Gauge::default(),
            streams: Gauge::default(),
            queue_depth: Gauge::default(),
            mirrored: SharedCounter::default(),
            dns_age: {
                let gauge = Gauge::default();
                gauge.set(-1);
                gauge
            },
            discovery_failures: SharedCounter::default(),
        }
    }

    /// `worker`'s part.
    #[inline]
    pub fn shard(&self, worker: usize) -> &UpstreamShard {
        &self.shards[worker]
    }

    /// The breaker has gone over to `to`.
    pub fn breaker_moved(&self, to: BreakerState) {
        self.breaker_transitions[to as usize].inc();
        self.breaker_stands(to);
    }

    /// Where the breaker stands, without a transition: asked before a scrape, since two transitions in a row may be
    /// told in the wrong order.
    pub fn breaker_stands(&self, state: BreakerState) {
        self.breaker_state.set(state.number());
    }

    /// The breaker's mode, as the configuration has it: `enforce`, `shadow` or `off`.
    pub fn set_breaker_mode(&self, mode: &'static str) {
        *lock(&self.breaker_mode) = mode;
    }

    fn sum(&self, cell: impl Fn(&UpstreamShard) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| cell(shard).get()).sum()
    }

    fn merged(&self, layout: &'static Layout, of: impl Fn(&UpstreamShard) -> &Histogram) -> Distribution {
        self.shards.iter().fold(Distribution::empty(layout), |sum, shard| sum.plus(&of(shard).read()))
    }
}

impl UpstreamShard {
    fn new(words: &Words) -> Self {
        let counters = |words: &[&str]| words.iter().map(|_| Counter::default()).collect();
        Self {
            request_duration: std::array::from_fn(|_| Histogram::new(&DURATIONS)),
            response_duration: Histogram::new(&DURATIONS),
            attempt_duration: Histogram::new(&DURATIONS),
            queue_wait: Histogram::new(&DURATIONS),
            attempts: Default::default(),
            retries: counters(&words.retries),
            retries_skipped: counters(&words.retries_skipped),
            hedges: Default::default(),
            hedges_skipped: counters(&words.hedges_skipped),
            rejected: Default::default(),
            connects: Default::default(),
            fallbacks: Default::default(),
            coalesced: Counter::default(),
            faults: Default::default(),
        }
    }

    /// From a request's head in to its response's head out.
    #[inline]
    pub fn request_duration(&self, outcome: RequestOutcome) -> &Histogram {
        &self.request_duration[outcome as usize]
    }

    /// Attempts that came to `outcome`.
    #[inline]
    pub fn attempts(&self, outcome: AttemptOutcome) -> &Counter {
        &self.attempts[outcome.index()]
    }

    /// Retries for the cause at this place of [`Words::retries`].
    #[inline]
    pub fn retries(&self, cause: usize) -> &Counter {
        &self.retries[cause]
    }

    /// Retries not made, for the cause at this place of [`Words::retries_skipped`].
    #[inline]
    pub fn retries_skipped(&self, cause: usize) -> &Counter {
        &self.retries_skipped[cause]
    }

    /// Hedges, by whose answer the request got.
    #[inline]
    pub fn hedges(&self, winner: Winner) -> &Counter {
        &self.hedges[winner as usize]
    }

    /// Hedges not sent, for the cause at this place of [`Words::hedges_skipped`].
    #[inline]
    pub fn hedges_skipped(&self, cause: usize) -> &Counter {
        &self.hedges_skipped[cause]
    }

    /// Requests that were refused, or would have been.
    #[inline]
    pub fn rejected(&self, reason: Reason, effect: Effect) -> &Counter {
        &self.rejected[reason.index()][effect as usize]
    }

    /// Failures in whose place the client got something else, or would have.
    #[inline]
    pub fn fallbacks(&self, kind: Substitute, effect: Effect) -> &Counter {
        &self.fallbacks[kind as usize][effect as usize]
    }

    /// Attempts to connect.
    #[inline]
    pub fn connects(&self, result: ConnectResult) -> &Counter {
        &self.connects[result as usize]
    }

    /// Attempts to which a fault was done.
    #[inline]
    pub fn faults(&self, kind: FaultKind) -> &Counter {
        &self.faults[kind as usize]
    }
}

impl ListenerMetrics {
    /// Connections that were closed before they could ask for anything.
    pub fn refused(&self, reason: Refused) -> &SharedCounter {
        &self.refused[reason as usize]
    }

    /// Clients speak TLS here: the series of their handshakes exist from now on.
    pub fn expect_handshakes(&self) {
        self.handshakes.get_or_init(Default::default);
    }

    /// A client's handshake came to `result`.
    pub fn handshake(&self, result: HandshakeResult) {
        self.handshakes.get_or_init(Default::default)[result as usize].inc();
    }
}

impl RouteMetrics {
    /// `worker`'s part.
    #[inline]
    pub fn shard(&self, worker: usize) -> &RouteShard {
        &self.shards[worker]
    }
}

impl RouteShard {
    fn new() -> Self {
        Self { requests: std::array::from_fn(|_| Default::default()) }
    }

    /// Requests that got `status` and came to `outcome`.
    #[inline]
    pub fn requests(&self, status: u16, outcome: RequestOutcome) -> &Counter {
        &self.requests[code_index(status)][outcome as usize]
    }
}

/// What [`EndpointMetrics::healthy`] holds before anybody said.
const UNTOLD: i64 = -1;

impl EndpointMetrics {
    fn new(workers: usize) -> Self {
        let healthy = Gauge::default();
        healthy.set(UNTOLD);
        Self { shards: shards(workers, EndpointShard::default), healthy, ejections: Default::default() }
    }

    /// Whether it is in service: asked before a scrape.
    pub fn set_healthy(&self, is_in_service: bool) {
        self.healthy.set(is_in_service.into());
    }

    /// How often it was taken out of service for this.
    pub fn ejections(&self, why: Ejection) -> &SharedCounter {
        &self.ejections[why as usize]
    }

    /// `worker`'s part.
    #[inline]
    pub fn shard(&self, worker: usize) -> &EndpointShard {
        &self.shards[worker]
    }

    fn attempts(&self, outcome: AttemptOutcome) -> u64 {
        self.shards.iter().map(|shard| shard.attempts(outcome).get()).sum()
    }
}

impl EndpointShard {
    /// Attempts that came to `outcome`.
    #[inline]
    pub fn attempts(&self, outcome: AttemptOutcome) -> &Counter {
        &self.attempts[outcome.index()]
    }
}

impl AllSeries {
    /// Lets go what nobody holds any more; for what was scraped or will not be.
    fn forget(&mut self, now: Instant) {
        self.upstreams.retain(|_, metrics| Arc::strong_count(metrics) > 1);
        self.routes.retain(|_, metrics| Arc::strong_count(metrics) > 1);
        self.listeners.retain(|_, metrics| Arc::strong_count(metrics) > 1);
        self.forget_endpoints(now);
    }

    fn forget_endpoints(&mut self, now: Instant) {
        self.endpoints.retain(|_, endpoint| {
            if Arc::strong_count(&endpoint.metrics) > 1 {
                endpoint.left = None;
                return true;
            }
            now.saturating_duration_since(*endpoint.left.get_or_insert(now)) < ENDPOINT_STAYS
        });
    }
}

/// One for each worker.
fn shards<T>(workers: usize, new: impl Fn() -> T) -> Box<[T]> {
    (0..workers).map(|_| new()).collect()
}

/// The lock, whether or not somebody panicked while holding it: numbers are never half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
