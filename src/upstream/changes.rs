//! Endpoints that go out of service and come back: carried out, and told to log, metrics and `/upstreams`.
//!
//! Who decides stands elsewhere: `outlier` by what traffic shows, `health` by what checks do. Here is what both lead
//! to, with the numbers that caused it.

use std::time::Instant;

use serde_json::{Value, json};

use super::balance::Weighted;
use super::checkup::{self, Manner};
use super::endpoint::{Endpoint, InFlight};
use super::health::{Known, Turned, Verdict};
use super::outlier::{self, EventKind};
use super::standing::{self, Out};
use super::{Protocol, Upstream};
use crate::policy::mode::Mode;
use crate::telemetry::metrics::Ejection;
use crate::transport::proxy_protocol::Introduction;

impl Upstream {
    /// An answer to `attempt` said that its endpoint should get no more requests (`x-outrigger-immediate-fail`).
    pub fn immediate_fail(&self, attempt: &InFlight, now: Instant) {
        if self.settings.outlier.mode != Mode::Off {
            self.tell(self.outlier.immediate_fail(attempt, now, &self.peers()).as_slice());
        } else if self.is_checked()
            && let Some(turned) = attempt.endpoint().check.gives_up(now)
        {
            self.check_turned(attempt.endpoint(), turned, now);
        }
    }

    /// Whether its endpoints are checked.
    pub fn is_checked(&self) -> bool {
        self.settings.health.mode != Mode::Off
    }

    /// Whether a check of `endpoint` should begin now: then [`Upstream::check`] must follow. `draw` is from 0 to 1.
    pub fn begins_check(&self, endpoint: &Endpoint, now: Instant, draw: f64) -> bool {
        endpoint.check.begins(&self.settings.health, known(endpoint), now, draw)
    }

    /// Checks `endpoint`, and does what follows from it. Never on a worker.
    pub async fn check(&self, endpoint: &Endpoint) {
        let settings = &self.settings.health;
        let introduction = self.settings.proxy_protocol.map(|version| Introduction { version, ends: None });
        let manner = Manner { http2: self.settings.protocol == Protocol::Http2, introduction };
        let result = checkup::check(endpoint, settings, manner).await;
        let now = Instant::now();
        let turned = endpoint.check.ended(settings, result, known(endpoint), now, fastrand::f64());
        if settings.mode == Mode::Enforce && endpoint.check.view().passes > 0 {
            endpoint.standing.set(Out::Unchecked, false, now);
        }
        if let Some(turned) = turned {
            self.check_turned(endpoint, turned, now);
        }
    }

    /// The checks of `endpoint` say something else than before.
    fn check_turned(&self, endpoint: &Endpoint, turned: Turned, now: Instant) {
        let mode = self.settings.health.mode;
        let enforced = mode == Mode::Enforce;
        let last = endpoint.check.view().last;
        let why = last.and_then(|(_, result)| result.err()).unwrap_or_default();
        let (upstream, label) = (&*self.name, &*endpoint.label);
        match turned.to {
            Verdict::Failing => {
                endpoint.metrics.ejections(Ejection::HealthCheck).inc();
                if enforced {
                    endpoint.standing.set(Out::Unhealthy, true, now);
                    endpoint.standing.set(Out::Unchecked, false, now);
                }
                let reason = Ejection::HealthCheck.label();
                let mode = if enforced { "enforce" } else { "shadow" };
                tracing::warn!(
                    upstream,
                    endpoint = label,
                    reason,
                    mode,
                    "endpoint fails its health check: {why}"
                );
            }
            Verdict::Passing if turned.from == Verdict::Failing => {
                endpoint.standing.set(Out::Unhealthy, false, now);
                let mode = if enforced { "enforce" } else { "shadow" };
                tracing::info!(upstream, endpoint = label, mode, "endpoint passes its health check");
                if enforced {
                    self.tell(self.outlier.check_recovered(endpoint, now).as_slice());
                }
            }
            Verdict::Passing | Verdict::Unknown => {}
        }
    }

    /// Writes what happened to endpoints to log and metrics.
    pub(super) fn tell(&self, events: &[outlier::Event]) {
        for event in events {
            let outlier::Ejection { endpoint, why, numbers, lasts, since, enforced, .. } = &event.ejection;
            let mode = if *enforced { "enforce" } else { "shadow" };
            match event.kind {
                EventKind::Ejected => {
                    endpoint.metrics.ejections(*why).inc();
                    tracing::warn!(
                        upstream = &*self.name,
                        endpoint = &*endpoint.label,
                        reason = why.label(),
                        mode,
                        for_ms = lasts.as_millis() as u64,
                        consecutive = numbers.consecutive,
                        ratio = numbers.ratio,
                        requests = numbers.requests,
                        peers_ratio = numbers.peers_ratio,
                        p50_ms = numbers.p50_ms,
                        peers_p50_ms = numbers.peers_p50_ms,
                        "endpoint ejected"
                    );
                }
                EventKind::Returned => tracing::info!(
                    upstream = &*self.name,
                    endpoint = &*endpoint.label,
                    reason = why.label(),
                    mode,
                    after_ms = event.at.saturating_duration_since(*since).as_millis() as u64,
                    "endpoint back in service"
                ),
            }
        }
    }

    /// What `/upstreams` tells of an endpoint.
    pub fn view(&self, choice: &Weighted, now: Instant) -> Value {
        let endpoint = &*choice.endpoint;
        let since = now.saturating_duration_since(standing::instant(endpoint.standing.in_service_since()));
        let (at, window) = (standing::nanos(now), self.settings.balance.slow_start_nanos());
        let in_service_since = endpoint.standing.in_service_since();
        let latency = endpoint.load.latency(at, in_service_since);
        let health = Out::ALL.into_iter().find(|out| endpoint.standing.is_out(*out));
        let mut view = json!({
            "address": endpoint.address.to_string(),
            "endpoint": &*endpoint.label,
            "weight": choice.weight,
            "priority": choice.priority,
            "ewma_ms": latency.map(|seconds| f64::from(seconds) * 1000.0),
            "slow_start": endpoint.load.ramp(at, in_service_since, window),
            "in_flight": endpoint.in_flight(),
            "health": health.map_or("usable", Out::word),
            "since_seconds": seconds(since),
        });
        if let Some(ejection) = self.outlier.ejection(endpoint) {
            view["ejection"] = json!({
                "reason": ejection.why.label(),
                "mode": if ejection.enforced { "enforce" } else { "shadow" },
                "for_seconds": seconds(ejection.lasts),
                "since_seconds": seconds(now.saturating_duration_since(ejection.since)),
                "left_seconds": seconds(ejection.until.saturating_duration_since(now)),
                "failed_probes": ejection.failed_probes,
                "numbers": ejection.numbers,
            });
        }
        if self.is_checked() {
            let check = endpoint.check.view();
            let last = check.last.as_ref().map(|(at, result)| {
                json!({
                    "passed": result.is_ok(),
                    "detail": result.as_ref().err(),
                    "seconds_ago": seconds(now.saturating_duration_since(*at)),
                })
            });
            view["check"] = json!({
                "verdict": check.verdict,
                "passes": check.passes,
                "failures": check.failures,
                "last": last,
            });
        }
        view
    }
}

/// For people: milliseconds are enough.
fn seconds(time: std::time::Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

fn known(endpoint: &Endpoint) -> Known {
    let succeeded_at = endpoint.traffic.succeeded_at();
    Known {
        succeeded_at: (succeeded_at > 0).then(|| standing::instant(succeeded_at)),
        is_out: !endpoint.standing.is_in_service(),
        is_unchecked: endpoint.standing.is_out(Out::Unchecked),
    }
}
