//! The chain that a routed request would pass, with all that is in force, and what that comes to at worst.

use std::time::Duration;

use serde::Serialize;

use super::target::{Target, reaches};
use crate::config::{Layer, Loaded};
use crate::policy::fault;
use crate::policy::mode::Mode;
use crate::policy::retry::BackoffSettings;
use crate::policy::{backoff, deadline, fallback, hedge, retry, timeout};
use crate::proxy::listener;
use crate::proxy::route::{self, Route};
use crate::units::Ratio;
use crate::upstream::{self, Host};

/// A step of the chain.
#[derive(Debug, Serialize)]
pub(super) struct Policy {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<String>,
    pub(super) values: Vec<InForce>,
}

/// A value that is in force.
#[derive(Debug, Serialize)]
pub(super) struct InForce {
    pub(super) key: String,
    pub(super) value: String,
    /// Where it comes from: `built in`, or the table and the line that say so.
    pub(super) from: String,
}

/// What a request comes to at worst.
#[derive(Debug, Serialize)]
pub(super) struct WorstCase {
    /// From the request's head to the response's; `None`: nothing bounds it.
    pub(super) latency_ms: Option<u64>,
    pub(super) latency: Vec<String>,
    pub(super) attempts: u32,
    pub(super) attempts_why: Vec<String>,
}

/// The way of a request that a route has taken.
pub(super) struct Way<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) listener: &'a listener::Settings,
    /// The listener's path in the file.
    pub(super) base: &'a str,
    pub(super) route: &'a route::Settings,
    /// Where the route leads, or the heaviest part of its split.
    pub(super) arm: &'a route::Arm,
    /// The route's path in the file.
    pub(super) path: String,
    pub(super) upstream: &'a upstream::Settings,
}

impl Way<'_> {
    fn timeout(&self) -> &timeout::Settings {
        self.arm.timeout.as_ref().unwrap_or(&self.upstream.timeout)
    }

    fn fallback(&self) -> &fallback::Settings {
        self.arm.fallback.as_ref().unwrap_or(&self.upstream.fallback)
    }

    fn retry(&self) -> &retry::Settings {
        self.arm.retry.as_ref().unwrap_or(&self.upstream.retry)
    }

    fn hedge(&self) -> &hedge::Settings {
        self.arm.hedge.as_ref().unwrap_or(&self.upstream.hedge)
    }

    fn fault(&self) -> &fault::Settings {
        self.arm.fault.as_ref().unwrap_or(&self.upstream.fault)
    }

    /// The request line and the Host that go up.
    pub(super) fn goes_up(&self, target: &Target<'_>) -> String {
        let mut path = Vec::new();
        Route::new(self.route).rewritten(target.path_and_query.as_bytes(), &mut path);
        let host = match (&self.route.rewrite.host, &self.upstream.host) {
            (Some(host), _) | (None, Host::Name(host)) => host.clone(),
            (None, Host::Keep) => target.host.clone(),
            (None, Host::Endpoint) => "the endpoint's address".to_owned(),
            (None, Host::Auto) => {
                let (host, port) = target.host.rsplit_once(':').unwrap_or((&target.host, "80"));
                let host = if host == "localhost" { "127.0.0.1" } else { host.trim_matches(['[', ']']) };
                let own = host.parse().ok().zip(port.parse().ok());
                if own.is_some_and(|(ip, port)| reaches(&self.listener.address, ip, port)) {
                    "the endpoint's address".to_owned()
                } else {
                    target.host.clone()
                }
            }
        };
        format!("{} {}, Host: {host}", target.method, String::from_utf8_lossy(&path))
    }

    /// The chain in its fixed order (`proxy::exchange`, `proxy::attempt`).
    pub(super) fn chain(&self) -> Vec<Policy> {
        let upstream = self.upstream;
        let path = |key: &str| format!("upstream.{}.{key}", self.arm.upstream);
        let routed = |own: bool, key: &str| if own { format!("{}.{key}", self.path) } else { path(key) };
        let (timeout, retry, hedge) = (self.timeout(), self.retry(), self.hedge());
        let (breaker, concurrency) = (&upstream.breaker, &upstream.concurrency);
        let mut timeouts = self.values(&routed(self.route.timeout.is_some(), "timeout"), timeout);
        if timeout.attempt.is_none() {
            let half = if retry.attempts > 1 {
                "half of request while a retry may follow, else what is left"
            } else {
                "request"
            };
            timeouts.push(InForce {
                key: "attempt".to_owned(),
                value: half.to_owned(),
                from: "built in".to_owned(),
            });
        }
        let mut breaker_values = self.values(&path("breaker"), breaker);
        if breaker.slow_request.is_none() {
            breaker_values.push(InForce {
                key: "slow_request".to_owned(),
                value: "none is slow".to_owned(),
                from: "built in".to_owned(),
            });
        }
        let tls = upstream
            .tls
            .iter()
            .map(|tls| self.step("tls", "on each new connection", None, self.values(&path("tls"), tls)));
        let mut way = vec![
            self.step(
                "limits",
                "what the client may send",
                None,
                self.values(&format!("{}.limits", self.base), &self.listener.limits),
            ),
            self.step(
                "timeout",
                "runs from the request's head on, around all that follows",
                Some((timeout.mode, timeout.rollout)),
                timeouts,
            ),
        ];
        way.extend(self.rate_limits());
        way.extend(upstream.shed.as_ref().map(|shed| {
            let what = "once for a request: in overload the least important are refused first";
            self.step("shed", what, Some((shed.mode, shed.rollout)), self.values(&path("shed"), shed))
        }));
        way.extend([
            self.step(
                "retry",
                "budget and back-off, before each attempt but the first",
                Some((retry.mode, retry.rollout)),
                self.values(&routed(self.route.retry.is_some(), "retry"), retry),
            ),
            self.step(
                "hedge",
                "a second sending beside an attempt that is slow, once a request",
                Some((hedge.mode, hedge.rollout)),
                self.values(&routed(self.route.hedge.is_some(), "hedge"), hedge),
            ),
            self.step(
                "breaker",
                "asked for each attempt",
                Some((breaker.mode, breaker.rollout)),
                breaker_values,
            ),
            self.step(
                "concurrency",
                "a slot for each attempt; the first may queue",
                Some((concurrency.mode, concurrency.rollout)),
                self.values(&path("concurrency"), concurrency),
            ),
            self.step("balance", "which endpoint", None, self.values(&path("balance"), &upstream.balance)),
            self.step(
                "outlier",
                "which endpoints are out because their traffic is worse than their peers'",
                Some((upstream.outlier.mode, upstream.outlier.rollout)),
                self.values(&path("outlier"), &upstream.outlier),
            ),
            self.step(
                "health",
                "which endpoints are out because their checks fail",
                Some((upstream.health.mode, Ratio::ONE)),
                self.values(&path("health"), &upstream.health),
            ),
            self.step(
                "fault",
                "what is done on purpose, as if the upstream did it",
                Some((if self.fault().is_on() { Mode::Enforce } else { Mode::Off }, Ratio::ONE)),
                self.values(&routed(self.route.fault.is_some(), "fault"), self.fault()),
            ),
            self.step(
                "connections",
                "an idle connection, or a new one",
                None,
                self.values(&path("connections"), &upstream.connections),
            ),
        ]);
        way.extend(tls);
        way.push(self.step(
            "failure",
            "what the outcome means to all of them",
            None,
            self.values(&path("failure"), &upstream.failure),
        ));
        let fallback = self.fallback();
        if fallback.is_on() {
            way.push(self.step(
                "fallback",
                "what the client gets if all that came to nothing: stale, then upstream, then response",
                Some((fallback.mode, fallback.rollout)),
                self.values(&routed(self.route.fallback.is_some(), "fallback"), fallback),
            ));
        }
        way
    }

    fn rate_limits(&self) -> Vec<Policy> {
        let limits = self.upstream.rate_limit.iter().enumerate().map(|(index, limit)| {
            let path = format!("upstream.{}.rate_limit[{index}]", self.arm.upstream);
            let mut values = self.values(&path, limit);
            let mut built_in = |key: &str, value: String| {
                values.push(InForce { key: key.to_owned(), value, from: "built in".to_owned() });
            };
            if limit.burst.is_none() {
                built_in("burst", limit.burst().to_string());
            }
            if limit.key.is_none() {
                built_in("key", "all requests share one".to_owned());
            }
            let what = "asked once, before all that follows; all of them before any is charged";
            self.step("rate_limit", what, Some((limit.mode, limit.rollout)), values)
        });
        limits.collect()
    }

    fn step(
        &self,
        name: &'static str,
        what: &'static str,
        mode: Option<(Mode, Ratio)>,
        values: Vec<InForce>,
    ) -> Policy {
        Policy { name, what, mode: mode.map(|(mode, rollout)| mode_in_words(mode, rollout)), values }
    }

    /// Every value of `settings`, which stand at `path`, and where each comes from.
    fn values(&self, path: &str, settings: &impl Serialize) -> Vec<InForce> {
        let value = toml::Value::try_from(settings).expect("settings are tables, lists, strings and numbers");
        let mut values = Vec::new();
        self.flatten(path, "", &value, &mut values);
        values
    }

    fn flatten(&self, path: &str, key: &str, value: &toml::Value, values: &mut Vec<InForce>) {
        if let toml::Value::Table(table) = value {
            for (inner, value) in table {
                let key = if key.is_empty() { inner.clone() } else { format!("{key}.{inner}") };
                self.flatten(path, &key, value, values);
            }
            return;
        }
        let origin = self.loaded.origins.get(&format!("{path}.{key}"));
        values.push(InForce {
            key: key.to_owned(),
            value: if origin.is_some_and(|origin| origin.secret) {
                "***".to_owned()
            } else {
                value.to_string()
            },
            from: match origin {
                None => "built in".to_owned(),
                Some(origin) => {
                    let (owner, table) = path.rsplit_once('.').unwrap_or(("", path));
                    let table = table.split('[').next().unwrap_or(table);
                    let place = match origin.layer {
                        Layer::Defaults => format!("[defaults.{table}]"),
                        Layer::Route => format!("route {:?}", self.route.name),
                        Layer::Written if owner == self.base => "[[listener]]".to_owned(),
                        Layer::Written => format!("[upstream.{}]", self.arm.upstream),
                    };
                    format!("{place} line {}", origin.line)
                }
            },
        });
    }

    /// What the request comes to at worst.
    pub(super) fn worst_case(&self, target: &Target<'_>) -> WorstCase {
        let (mut attempts, mut attempts_why) = self.attempts(target);
        let (latency, latency_why) = self.latency(target, attempts);
        if let Some((with_hedge, why)) = self.hedged(target) {
            attempts = attempts.max(with_hedge);
            attempts_why.push(why);
        }
        WorstCase {
            latency_ms: latency.map(|latency| latency.as_millis() as u64),
            latency: latency_why,
            attempts,
            attempts_why,
        }
    }

    fn attempts(&self, target: &Target<'_>) -> (u32, Vec<String>) {
        let retry = self.retry();
        let mut why = Vec::new();
        match retry.mode {
            Mode::Off => return (1, vec!["retry.mode is \"off\"".to_owned()]),
            Mode::Shadow => {
                return (1, vec!["retry.mode is \"shadow\": retries are counted, not sent".to_owned()]);
            }
            Mode::Enforce if retry.attempts == 1 => return (1, vec!["retry.attempts is 1".to_owned()]),
            Mode::Enforce if self.caller_retries(target) => {
                return (
                    1,
                    vec![
                        "the caller retries itself (x-retry-attempt), and retry.respect_caller_retries"
                            .to_owned(),
                    ],
                );
            }
            Mode::Enforce => {}
        }
        why.push(format!("retry.attempts is {}, the first included", retry.attempts));
        let rules = retry::Rules::new(retry);
        let grpc_path = self.is_grpc(target).then_some(target.path_and_query.as_bytes());
        let key = target.header("idempotency-key").is_some();
        if !rules.method_allows(target.method.as_bytes(), key, grpc_path) {
            let what = if grpc_path.is_some() {
                "this gRPC method is not in retry.grpc_methods"
            } else {
                "the method is not in retry.methods"
            };
            why.push(format!(
                "{what}: only what was surely not processed is sent again, so the upstream works on it once"
            ));
        }
        if let Some(other) = self.elsewhere() {
            why.push(format!(
                "if they fail, fallback.upstream sends it to {other:?} besides, within its limits"
            ));
        }
        why.push(format!(
            "over all requests, retries that pay add at most {} of the load, or {} a second (retry.budget)",
            percent(retry.budget.ratio.get()),
            retry.budget.min_per_second
        ));
        (retry.attempts, why)
    }

    /// How many attempts a hedge comes to at least, where hedges are asked for, and why.
    fn hedged(&self, target: &Target<'_>) -> Option<(u32, String)> {
        let (hedge, retry) = (self.hedge(), self.retry());
        let grpc_path = self.is_grpc(target).then_some(target.path_and_query.as_bytes());
        match hedge.mode {
            Mode::Off => None,
            Mode::Shadow => Some((1, "hedge.mode is \"shadow\": hedges are counted, not sent".to_owned())),
            Mode::Enforce if self.caller_retries(target) => {
                Some((1, "no hedge: the caller sends it again itself".to_owned()))
            }
            Mode::Enforce if !retry::Rules::new(retry).may_hedge(target.method.as_bytes(), grpc_path) => {
                Some((
                    1,
                    "no hedge: only what is safe, and may be sent twice by its method, gets one".to_owned(),
                ))
            }
            Mode::Enforce => Some((
                2,
                format!(
                    "one of them may be a hedge; over all requests, hedges add at most {} of the load (hedge.budget)",
                    percent(hedge.budget.get())
                ),
            )),
        }
    }

    /// The upstream that stands in for this one.
    fn elsewhere(&self) -> Option<&String> {
        self.fallback().upstream.as_ref().filter(|_| self.fallback().mode == Mode::Enforce)
    }

    fn caller_retries(&self, target: &Target<'_>) -> bool {
        let trusted = self.listener.trust() != listener::Trust::None;
        let again = target.header("x-retry-attempt").and_then(|value| value.parse::<u32>().ok());
        again.unwrap_or(0) > 0 && trusted && self.retry().respect_caller_retries
    }

    fn is_grpc(&self, target: &Target<'_>) -> bool {
        target.header("content-type").is_some_and(|value| value.starts_with("application/grpc"))
    }

    fn latency(&self, target: &Target<'_>, attempts: u32) -> (Option<Duration>, Vec<String>) {
        let timeout = self.timeout();
        let trusted = self.listener.trust() != listener::Trust::None;
        let grpc = self.is_grpc(target);
        let by_caller = [
            target
                .header("grpc-timeout")
                .and_then(|value| deadline::parse_grpc_timeout(value.as_bytes()).ok()),
            target
                .header("x-request-timeout-ms")
                .filter(|_| trusted)
                .and_then(|value| deadline::parse_millis(value.as_bytes())),
        ];
        let by_caller = by_caller.into_iter().flatten().min();
        let is_enforced =
            |timeout: &timeout::Settings| timeout.mode == Mode::Enforce && timeout.rollout == Ratio::ONE;
        let enforced = is_enforced(timeout);
        let applies = enforced && (!grpc || timeout.request_is_written);
        let bound = match (applies.then_some(*timeout.request), by_caller) {
            (Some(request), Some(caller)) => Some(request.min(caller)),
            (one, other) => one.or(other),
        };
        let Some(bound) = bound else {
            let why = if grpc && enforced {
                format!(
                    "nothing bounds a gRPC call but its grpc-timeout, as long as timeout.request is not written; without progress it ends after timeout.stream_idle ({})",
                    timeout.stream_idle
                )
            } else {
                format!("timeout is {}: nothing bounds it", mode_in_words(timeout.mode, timeout.rollout))
            };
            return (None, vec![why]);
        };
        let mut why = vec![match by_caller {
            Some(caller) if caller == bound && (!applies || caller < *timeout.request) => {
                format!("the caller's deadline ({caller:?}) bounds queue, back-off and all attempts together")
            }
            _ => format!(
                "timeout.request ({}) bounds queue, back-off and all attempts together",
                timeout.request
            ),
        }];
        let queue = &self.upstream.concurrency.queue;
        let wait = if queue.size > 0 { (*queue.timeout).min(bound) } else { Duration::ZERO };
        let attempt = timeout.attempt_timeout(bound, attempts > 1);
        let pauses = longest_pauses(&self.retry().backoff, attempts - 1);
        let sum = wait + attempt * attempts + pauses;
        let parts = format!(
            "{wait:?} in the queue + {attempts} x {attempt:?} for attempts + {pauses:?} of back-off = {sum:?}"
        );
        why.push(if timeout.attempt.is_some() && sum < bound {
            format!("{parts}; a Retry-After of the upstream may stretch that, never beyond the bound")
        } else {
            format!("it is not reached earlier: {parts}")
        });
        why.push(format!("the clock stands still while the request's body is coming (then timeout.idle, {}); the response's body has timeout.idle too", timeout.idle));
        let other = self.elsewhere();
        let Some((other, settings)) =
            other.and_then(|other| Some((other, self.loaded.config.upstream.get(other)?)))
        else {
            return (Some(bound), why);
        };
        let timeout = &settings.timeout;
        let applies = is_enforced(timeout) && (!grpc || timeout.request_is_written);
        why.push(if applies {
            format!(
                "if that fails, fallback.upstream {other:?} has its own timeout.request ({})",
                timeout.request
            )
        } else {
            format!("if that fails, fallback.upstream {other:?} has no timeout.request that bounds it")
        });
        let both = applies.then(|| bound + *timeout.request);
        (both.into_iter().chain(by_caller).min(), why)
    }
}

/// The longest that the first `count` pauses can be together.
fn longest_pauses(settings: &BackoffSettings, count: u32) -> Duration {
    let mut previous = Duration::ZERO;
    (0..count)
        .map(|retry| {
            previous = backoff::wait(settings, retry, previous, 1.0);
            previous
        })
        .sum()
}

fn mode_in_words(mode: Mode, rollout: Ratio) -> String {
    match mode {
        Mode::Enforce if rollout == Ratio::ONE => "enforced".to_owned(),
        Mode::Enforce => format!("enforced for {} of requests, the rest shadowed", percent(rollout.get())),
        Mode::Shadow => "shadow: decides, counts and logs, lets pass".to_owned(),
        Mode::Off => "off: not asked".to_owned(),
    }
}

fn percent(ratio: f64) -> String {
    format!("{} %", (ratio * 10_000.0).round() / 100.0)
}
