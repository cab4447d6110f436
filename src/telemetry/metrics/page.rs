//! The page that is scraped: every metric's name, labels and meaning, and how its number is summed up.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{
    AttemptOutcome, BreakerState, ConfigState, ConnectResult, Effect, Ejection, EndpointMetrics, FaultKind,
    HandshakeResult, Limit, Metrics, Refused, RequestOutcome, RouteName, Substitute, UNTOLD, UpstreamMetrics,
    Winner, lock,
};
use crate::reason::Reason;
use crate::telemetry::cells::{DURATIONS, Distribution, OVERHEAD};
use crate::telemetry::exposition::{Family, Kind, Page, Series};
use crate::telemetry::labels::CODES;
use crate::telemetry::process::Process;

/// Declares the families.
macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(static $constant: Family =
            Family { name: $name, help: $help, labels: &[$($label),*], kind: Kind::$kind };)*
        #[cfg(test)]
        pub(super) static FAMILIES: &[&Family] = &[$(&$constant),*];
    };
}

#[rustfmt::skip]
families! {
    REQUESTS = Counter "outrigger_requests_total" ["listener", "route", "upstream", "code", "outcome"] "Requests, by what the client got.";
    REQUEST_DURATION = Histogram "outrigger_request_duration_seconds" ["upstream", "outcome"] "From a request's head in to its response's head out.";
    RESPONSE_DURATION = Histogram "outrigger_response_duration_seconds" ["upstream"] "From a request's head in to its response's end; streams apart.";
    ATTEMPTS = Counter "outrigger_attempts_total" ["upstream", "outcome"] "Sendings of requests to an upstream, by what came back.";
    ATTEMPT_DURATION = Histogram "outrigger_attempt_duration_seconds" ["upstream"] "From sending a request to the response's head, or to the failure.";
    ENDPOINT_ATTEMPTS = Counter "outrigger_endpoint_attempts_total" ["upstream", "endpoint", "outcome"] "Sendings of requests to an endpoint, by what came back.";
    ENDPOINT_HEALTHY = Gauge "outrigger_endpoint_healthy" ["upstream", "endpoint"] "Whether an endpoint takes requests: 1, or 0 while it is ejected or fails its health check.";
    ENDPOINT_EJECTIONS = Counter "outrigger_endpoint_ejections_total" ["upstream", "endpoint", "reason"] "How often an endpoint was taken out of service, or would have been in shadow.";
    RETRIES = Counter "outrigger_retries_total" ["upstream", "reason"] "Retries, by what the attempt before failed with.";
    RETRIES_SKIPPED = Counter "outrigger_retries_skipped_total" ["upstream", "reason"] "Retries that were not made, by why.";
    HEDGES = Counter "outrigger_hedges_total" ["upstream", "winner"] "Hedges, sent beside an attempt that was slow, by whose answer the request got.";
    HEDGES_SKIPPED = Counter "outrigger_hedges_skipped_total" ["upstream", "reason"] "Hedges that were not sent, by why; requests that could have none for their method, or before enough was known, included.";
    MIRRORED = Counter "outrigger_mirrored_total" ["upstream"] "Copies of requests that were sent to an upstream as shadow traffic.";
    FALLBACKS = Counter "outrigger_fallbacks_total" ["upstream", "kind", "mode"] "Failures in whose place the client got something else (enforce) or would have got it (shadow).";
    COALESCED = Counter "outrigger_coalesced_total" ["upstream"] "Requests that got the answer to another one that asked the same.";
    BREAKER_STATE = Gauge "outrigger_breaker_state" ["upstream", "mode"] "Where the circuit breaker stands: 0 closed, 1 half-open or ramping, 2 open.";
    BREAKER_TRANSITIONS = Counter "outrigger_breaker_transitions_total" ["upstream", "to"] "Transitions of the circuit breaker, by the new state.";
    CONCURRENCY_LIMIT = Gauge "outrigger_concurrency_limit" ["upstream"] "How many attempts may be in flight.";
    CONCURRENCY_IN_FLIGHT = Gauge "outrigger_concurrency_in_flight" ["upstream"] "How many attempts are in flight.";
    SHED_CUTOFF = Gauge "outrigger_shed_cutoff" ["upstream"] "The level from which on requests are shed, of 512: 128 each for critical, high, normal and low; 512: none is.";
    STREAMS = Gauge "outrigger_streams" ["upstream"] "Exchanges without a foreseeable end.";
    QUEUE_DEPTH = Gauge "outrigger_queue_depth" ["upstream"] "How many requests wait for a slot.";
    QUEUE_WAIT = Histogram "outrigger_queue_wait_seconds" ["upstream"] "How long queued requests waited, in vain or not.";
    REJECTED = Counter "outrigger_rejected_total" ["upstream", "reason", "mode"] "Requests that Outrigger refused (enforce) or would have refused (shadow).";
    LIMIT_REACHED = Counter "outrigger_limit_reached_total" ["what"] "How often a bound was reached.";
    UPSTREAM_CONNECTIONS = Gauge "outrigger_upstream_connections" ["upstream", "endpoint", "state"] "Connections to an endpoint.";
    UPSTREAM_CONNECTS = Counter "outrigger_upstream_connects_total" ["upstream", "result"] "Attempts to connect to an endpoint, by what they came to.";
    DNS_AGE = Gauge "outrigger_dns_age_seconds" ["upstream"] "Time since DNS last gave a definite answer, for the name of the upstream for which that is longest ago.";
    DISCOVERY_FAILURES = Counter "outrigger_discovery_failures_total" ["upstream"] "Look-ups of names that failed, and files of endpoints that could not be taken.";
    FAULTS = Counter "outrigger_faults_injected_total" ["upstream", "kind"] "Faults that were injected on purpose, as if the upstream had done it.";
    CLIENT_CONNECTIONS = Gauge "outrigger_client_connections" ["listener"] "Connections from clients.";
    CLIENT_CONNECTIONS_REFUSED = Counter "outrigger_client_connections_refused_total" ["listener", "reason"] "Connections from clients that were closed before they could ask for anything.";
    CLIENT_HANDSHAKES = Counter "outrigger_client_handshakes_total" ["listener", "result"] "TLS handshakes of clients, by what they came to.";
    CERTIFICATE_EXPIRY = Gauge "outrigger_certificate_expiry_timestamp_seconds" ["name"] "Until when a certificate that is shown to peers is valid, in seconds since 1970, by its file.";
    CERTIFICATE_RELOADS = Counter "outrigger_certificate_reloads_total" ["result"] "Readings of certificates whose files had changed.";
    CONFIG_RELOADS = Counter "outrigger_config_reloads_total" ["result"] "Reloads of the configuration.";
    CONFIG_INFO = Gauge "outrigger_config_info" ["digest"] "The configuration in force; always 1.";
    CONFIG_LAST_RELOAD = Gauge "outrigger_config_last_reload_successful" [] "Whether the last reload succeeded; 1 before the first.";
    CONFIG_LAST_SUCCESS = Gauge "outrigger_config_last_reload_success_timestamp_seconds" [] "When the configuration in force was loaded, in seconds since 1970.";
    BUILD_INFO = Gauge "outrigger_build_info" ["version", "commit"] "What runs; always 1.";
    LOG_DROPPED = Counter "outrigger_log_dropped_total" [] "Lines of the log and the access log that could not be written in time.";
    PANICS = Counter "outrigger_panics_total" [] "Panics; each cost one connection.";
    OVERHEAD_SECONDS = Histogram "outrigger_overhead_seconds" [] "What Outrigger itself adds to a request: head in to first byte up, plus head back to head out, less queue and back-off.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" [] "User and system CPU time.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" [] "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [] "The limit on open file descriptors.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [] "Virtual memory.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" [] "Resident memory.";
    PROCESS_START = Gauge "process_start_time_seconds" [] "When the process started, in seconds since 1970.";
    PROCESS_THREADS = Gauge "process_threads" [] "Threads.";
}

/// Reasons for which a policy refuses a request of its upstream: their series exist from load on, in both modes.
const POLICY_REJECTIONS: [Reason; 11] = [
    Reason::RateLimited,
    Reason::LoadShed,
    Reason::BreakerOpen,
    Reason::ConcurrencyLimited,
    Reason::QueueFull,
    Reason::QueueTimeout,
    Reason::NoHealthyEndpoint,
    Reason::DeadlineExceeded,
    Reason::AttemptTimeout,
    Reason::RequestTimeout,
    Reason::Draining,
];

/// Reasons for which a request is refused before it has an upstream; there is no shadow of these.
const UNROUTED_REJECTIONS: [Reason; 8] = [
    Reason::NoRoute,
    Reason::BadRequest,
    Reason::HeaderTimeout,
    Reason::HeaderTooLarge,
    Reason::BodyTooLarge,
    Reason::MethodNotAllowed,
    Reason::LoopDetected,
    Reason::Draining,
];

impl Metrics {
    /// The page in the Prometheus text format ([`super::CONTENT_TYPE`]). Off the workers: it takes some
    /// milliseconds where there are hundreds of upstreams.
    pub fn render(&self) -> String {
        let (upstreams, routes, listeners, endpoints) = {
            let mut series = self.series();
            series.forget(Instant::now());
            let endpoints = series.endpoints.iter();
            (
                series.upstreams.clone(),
                series.routes.clone(),
                series.listeners.clone(),
                endpoints
                    .map(|(name, endpoint)| (name.clone(), endpoint.metrics.clone(), endpoint.left.is_none()))
                    .collect::<Vec<_>>(),
            )
        };
        let mut page = Page::default();

        let mut requests = REQUESTS.series();
        for (name, route) in &routes {
            let RouteName { listener, route: route_name, upstream } = name;
            for (code, word) in CODES.iter().enumerate() {
                for outcome in RequestOutcome::ALL {
                    let cells = route.shards.iter().map(|shard| &shard.requests[code][outcome as usize]);
                    let count = cells.map(|cell| cell.get()).sum::<u64>();
                    if count > 0 {
                        requests
                            .value(&[listener, route_name, upstream, word, outcome.label()], count as f64);
                    }
                }
            }
        }
        page.push(requests);

        self.push_upstreams(&mut page, upstreams.iter().map(|(name, upstream)| (name.as_str(), &**upstream)));
        let endpoints = endpoints.iter();
        push_endpoints(
            &mut page,
            endpoints.map(|(name, metrics, stays)| (&*name.upstream, &*name.endpoint, &**metrics, *stays)),
        );

        let mut connections = CLIENT_CONNECTIONS.series();
        let mut handshakes = CLIENT_HANDSHAKES.series();
        for (name, listener) in &listeners {
            connections.value(&[name], listener.connections.get() as f64);
            for (count, result) in listener.handshakes.get().into_iter().flatten().zip(HandshakeResult::ALL) {
                handshakes.value(&[name, result.label()], count.get() as f64);
            }
        }
        page.push(connections);
        page.push(handshakes);
        let mut refused = CLIENT_CONNECTIONS_REFUSED.series();
        for (name, listener) in &listeners {
            for reason in Refused::ALL {
                refused.value(&[name, reason.label()], listener.refused(reason).get() as f64);
            }
        }
        page.push(refused);

        self.push_process_wide(&mut page);
        push_process(&mut page);
        page.text()
    }

    /// What is counted for each upstream.
    fn push_upstreams<'a>(
        &'a self,
        page: &mut Page,
        named: impl Iterator<Item = (&'a str, &'a UpstreamMetrics)> + Clone,
    ) {
        let with_unrouted = || std::iter::once(("", &*self.unrouted)).chain(named.clone());
        let each = |family: &'static Family, add: &dyn Fn(&mut Series, &str, &UpstreamMetrics)| {
            let mut series = family.series();
            named.clone().for_each(|(name, upstream)| add(&mut series, name, upstream));
            series
        };

        let mut durations = REQUEST_DURATION.series();
        let mut rejected = REJECTED.series();
        for (name, upstream) in with_unrouted() {
            for outcome in RequestOutcome::ALL {
                let seen = upstream.merged(&DURATIONS, |shard| shard.request_duration(outcome));
                durations.distribution(&[name, outcome.label()], &seen);
            }
            for reason in Reason::ALL {
                for effect in Effect::ALL {
                    let count = upstream.sum(|shard| shard.rejected(reason, effect));
                    if count > 0 || rejects(name, reason, effect) {
                        rejected.value(&[name, reason.label(), effect.label()], count as f64);
                    }
                }
            }
        }
        page.push(durations);
        page.push(each(&RESPONSE_DURATION, &|series, name, upstream| {
            series.distribution(&[name], &upstream.merged(&DURATIONS, |shard| &shard.response_duration));
        }));
        page.push(rejected);

        page.push(each(&ATTEMPTS, &|series, name, upstream| {
            for outcome in AttemptOutcome::all() {
                let count = upstream.sum(|shard| shard.attempts(outcome));
                if count > 0 || outcome.is_usual() {
                    series.value(&[name, outcome.label()], count as f64);
                }
            }
        }));
        page.push(each(&ATTEMPT_DURATION, &|series, name, upstream| {
            series.distribution(&[name], &upstream.merged(&DURATIONS, |shard| &shard.attempt_duration));
        }));
        page.push(each(&RETRIES, &|series, name, upstream| {
            for (index, word) in self.words.retries.iter().enumerate() {
                series.value(&[name, word], upstream.sum(|shard| shard.retries(index)) as f64);
            }
        }));
        page.push(each(&RETRIES_SKIPPED, &|series, name, upstream| {
            for (index, word) in self.words.retries_skipped.iter().enumerate() {
                series.value(&[name, word], upstream.sum(|shard| shard.retries_skipped(index)) as f64);
            }
        }));
        page.push(each(&HEDGES, &|series, name, upstream| {
            for winner in Winner::ALL {
                series.value(&[name, winner.label()], upstream.sum(|shard| shard.hedges(winner)) as f64);
            }
        }));
        page.push(each(&HEDGES_SKIPPED, &|series, name, upstream| {
            for (index, word) in self.words.hedges_skipped.iter().enumerate() {
                series.value(&[name, word], upstream.sum(|shard| shard.hedges_skipped(index)) as f64);
            }
        }));
        page.push(each(&MIRRORED, &|series, name, upstream| {
            series.value(&[name], upstream.mirrored.get() as f64);
        }));
        page.push(each(&FALLBACKS, &|series, name, upstream| {
            for kind in Substitute::ALL {
                for effect in Effect::ALL {
                    let count = upstream.sum(|shard| shard.fallbacks(kind, effect));
                    series.value(&[name, kind.label(), effect.label()], count as f64);
                }
            }
        }));
        page.push(each(&COALESCED, &|series, name, upstream| {
            series.value(&[name], upstream.sum(|shard| &shard.coalesced) as f64);
        }));
        page.push(each(&BREAKER_STATE, &|series, name, upstream| {
            series.value(&[name, *lock(&upstream.breaker_mode)], upstream.breaker_state.get() as f64);
        }));
        page.push(each(&BREAKER_TRANSITIONS, &|series, name, upstream| {
            for to in BreakerState::ALL {
                let count = upstream.breaker_transitions[to as usize].get();
                series.value(&[name, to.label()], count as f64);
            }
        }));
        page.push(each(&CONCURRENCY_LIMIT, &|series, name, upstream| {
            series.value(&[name], upstream.concurrency_limit.get() as f64);
        }));
        page.push(each(&CONCURRENCY_IN_FLIGHT, &|series, name, upstream| {
            series.value(&[name], upstream.concurrency_in_flight.get() as f64);
        }));
        page.push(each(&SHED_CUTOFF, &|series, name, upstream| {
            series.value(&[name], upstream.shed_cutoff.get() as f64);
        }));
        page.push(each(&STREAMS, &|series, name, upstream| {
            series.value(&[name], upstream.streams.get() as f64);
        }));
        page.push(each(&QUEUE_DEPTH, &|series, name, upstream| {
            series.value(&[name], upstream.queue_depth.get() as f64);
        }));
        page.push(each(&QUEUE_WAIT, &|series, name, upstream| {
            series.distribution(&[name], &upstream.merged(&DURATIONS, |shard| &shard.queue_wait));
        }));
        page.push(each(&DNS_AGE, &|series, name, upstream| {
            let millis = upstream.dns_age.get();
            if millis >= 0 {
                series.value(&[name], millis as f64 / 1000.0);
            }
        }));
        page.push(each(&DISCOVERY_FAILURES, &|series, name, upstream| {
            series.value(&[name], upstream.discovery_failures.get() as f64);
        }));
        page.push(each(&UPSTREAM_CONNECTS, &|series, name, upstream| {
            for result in ConnectResult::ALL {
                series.value(&[name, result.label()], upstream.sum(|shard| shard.connects(result)) as f64);
            }
        }));
        page.push(each(&FAULTS, &|series, name, upstream| {
            for kind in FaultKind::ALL {
                series.value(&[name, kind.label()], upstream.sum(|shard| shard.faults(kind)) as f64);
            }
        }));
    }

    /// What there is once for the process, besides what the kernel knows.
    fn push_process_wide(&self, page: &mut Page) {
        let mut limits = LIMIT_REACHED.series();
        for limit in Limit::ALL {
            limits.value(&[limit.label()], self.limit_reached(limit).get() as f64);
        }
        page.push(limits);

        let mut expiry = CERTIFICATE_EXPIRY.series();
        for (name, seconds) in &*lock(&self.certificates.expiry) {
            expiry.value(&[name], *seconds as f64);
        }
        page.push(expiry);
        let mut reloads = CERTIFICATE_RELOADS.series();
        reloads.value(&["success"], self.certificates.renewed.get() as f64);
        reloads.value(&["failure"], self.certificates.failed.get() as f64);
        page.push(reloads);

        let mut reloads = CONFIG_RELOADS.series();
        reloads.value(&["success"], self.config.succeeded.get() as f64);
        reloads.value(&["failure"], self.config.failed.get() as f64);
        page.push(reloads);
        let ConfigState { digest, last_succeeded, loaded_at } = &*lock(&self.config.state);
        let mut info = CONFIG_INFO.series();
        info.value(&[digest], 1.0);
        page.push(info);
        push_one(page, &CONFIG_LAST_RELOAD, f64::from(u8::from(*last_succeeded)));
        push_one(page, &CONFIG_LAST_SUCCESS, seconds_since_1970(*loaded_at));

        let mut build = BUILD_INFO.series();
        build.value(&[&self.version, &self.commit], 1.0);
        page.push(build);
        push_one(page, &LOG_DROPPED, self.log_dropped.get() as f64);
        push_one(page, &PANICS, self.panics.get() as f64);

        let shards = self.overhead.iter().map(|shard| shard.0.read());
        let mut overhead = OVERHEAD_SECONDS.series();
        overhead
            .distribution(&[], &shards.fold(Distribution::empty(&OVERHEAD), |sum, shard| sum.plus(&shard)));
        page.push(overhead);
    }
}

/// Whether requests are refused for `reason` in ordinary life, so that its series exists from load on.
fn rejects(upstream: &str, reason: Reason, effect: Effect) -> bool {
    match upstream {
        "" => effect == Effect::Enforced && UNROUTED_REJECTIONS.contains(&reason),
        _ => POLICY_REJECTIONS.contains(&reason),
    }
}

/// What is counted for each endpoint; one with nothing to tell yet is left out. Whether it is healthy is told of those
/// that are still there.
fn push_endpoints<'a>(
    page: &mut Page,
    endpoints: impl Iterator<Item = (&'a str, &'a str, &'a EndpointMetrics, bool)>,
) {
    let mut attempts = ENDPOINT_ATTEMPTS.series();
    let mut connections = UPSTREAM_CONNECTIONS.series();
    let mut healthy = ENDPOINT_HEALTHY.series();
    let mut ejections = ENDPOINT_EJECTIONS.series();
    for (upstream, endpoint, metrics, stays) in endpoints {
        let is_healthy = metrics.healthy.get();
        if stays && is_healthy != UNTOLD {
            healthy.value(&[upstream, endpoint], is_healthy as f64);
        }
        for why in Ejection::ALL {
            let count = metrics.ejections(why).get();
            if count > 0 {
                ejections.value(&[upstream, endpoint, why.label()], count as f64);
            }
        }
        let mut seen = false;
        for outcome in AttemptOutcome::all() {
            let count = metrics.attempts(outcome);
            if count > 0 {
                seen = true;
                attempts.value(&[upstream, endpoint, outcome.label()], count as f64);
            }
        }
        let active: i64 = metrics.shards.iter().map(|shard| shard.connections_active.get()).sum();
        let idle: i64 = metrics.shards.iter().map(|shard| shard.connections_idle.get()).sum();
        if seen || active != 0 || idle != 0 {
            connections.value(&[upstream, endpoint, "active"], active as f64);
            connections.value(&[upstream, endpoint, "idle"], idle as f64);
        }
    }
    page.push(attempts);
    page.push(healthy);
    page.push(ejections);
    page.push(connections);
}

/// What the kernel knows.
fn push_process(page: &mut Page) {
    let Some(process) = Process::read() else { return };
    push_one(page, &PROCESS_CPU, process.cpu_seconds);
    push_one(page, &PROCESS_OPEN_FDS, process.open_fds as f64);
    push_one(page, &PROCESS_MAX_FDS, process.max_fds);
    push_one(page, &PROCESS_VIRTUAL, process.virtual_bytes as f64);
    push_one(page, &PROCESS_RESIDENT, process.resident_bytes as f64);
    push_one(page, &PROCESS_START, process.start_seconds);
    push_one(page, &PROCESS_THREADS, process.threads as f64);
}

/// A family with a single series, without labels.
fn push_one(page: &mut Page, family: &'static Family, number: f64) {
    let mut series = family.series();
    series.value(&[], number);
    page.push(series);
}

fn seconds_since_1970(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
