//! Who can answer and how to reach them: endpoints, balancing, pools, discovery.
//!
//! Not here: whether a request may be sent at all (`policy`, asked by `proxy`).

pub mod balance;
mod changes;
pub mod checkup;
mod connect;
pub mod counts;
pub mod discovery;
pub mod endpoint;
pub mod health;
pub mod http2;
pub mod keep_alive;
pub mod load;
pub mod maglev;
pub mod outlier;
pub mod ping;
pub mod pool;
pub mod share;
pub mod standing;
pub mod stream;
pub mod traffic;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::balance::{Tables, Want, Weighted};
use self::counts::Counts;
use self::discovery::Found;
use self::discovery::known::Known;
use self::endpoint::{Address, Endpoint, InFlight, Socket};
use self::outlier::{Outlier, Peer, Shown};
use self::pool::Wanted;
use self::standing::{Out, nanos};
use crate::policy::failure::Verdict;
use crate::policy::mode::Mode;
use crate::policy::{
    breaker, concurrency, failure, fallback, fault, hedge, rate_limit, retry, shed, timeout,
};
use crate::telemetry::metrics::{Metrics, UpstreamMetrics};
use crate::tls::client::{self, Client};
use crate::transport::proxy_protocol::{Ends, Introduction, Version};

/// `[upstream.NAME]`: a service that requests go to. The layers are merged: what stands here is in force.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Who can answer: `"host:port"`, `"ip:port"`, or `{ address = "…", weight = 2 }`. At least one, unless
    /// `discovery` brings them.
    pub endpoints: Vec<endpoint::Settings>,
    /// Where endpoints come from besides: `none`, `dns`, `dns_srv` or `file`. Default
    /// `{ kind = "dns", refresh = "auto" }`.
    pub discovery: discovery::Settings,
    /// How to speak with them: `http1`, `http2`, or `auto` (TLS: as ALPN settles; clear text: gRPC by HTTP/2, the rest by
    /// HTTP/1.1). Default `auto`.
    pub protocol: Protocol,
    /// The version of the PROXY protocol, `v1` or `v2`, whose header tells an endpoint at the beginning of each
    /// connection which client it is for; such a connection serves that client alone. Default: none is sent.
    pub proxy_protocol: Option<Version>,
    /// Speak TLS: `{}`, or with `ca`, `server_name`, `cert`, `key`, `san`. Default: clear text.
    pub tls: Option<client::Settings>,
    /// The Host sent up: `auto`, `keep`, `endpoint`, or a name. Default `auto`.
    pub host: Host,
    /// Bounds of the connections. Default `{ max = 1024, idle_timeout = "auto", max_age = "none",
    /// max_requests = 0, max_streams = 1000 }`.
    pub connections: pool::Settings,
    /// What is an upstream's fault.
    pub failure: failure::Settings,
    /// How long each part may take.
    pub timeout: timeout::Settings,
    /// Which failed attempts are followed by another.
    pub retry: retry::Settings,
    /// A second sending beside a slow one.
    pub hedge: hedge::Settings,
    /// How much each key may have in a time; together with those of `[[defaults.rate_limit]]`, by name. Default `[]`.
    pub rate_limit: Vec<rate_limit::Settings>,
    /// When to stop sending.
    pub breaker: breaker::Settings,
    /// How many attempts may be in flight.
    pub concurrency: concurrency::Settings,
    /// Who is refused first when there is too much. Default: nobody.
    pub shed: Option<shed::Settings>,
    /// Which endpoint is next.
    pub balance: balance::Settings,
    /// When an endpoint that is worse than its peers is taken out of service.
    pub outlier: outlier::Settings,
    /// Checks of endpoints whose traffic says nothing.
    pub health: health::Settings,
    /// What clients get in place of a failure.
    pub fallback: fallback::Settings,
    /// What is done to requests on purpose, as if this upstream did it.
    pub fault: fault::Settings,
}

/// A service that requests go to, with who can answer at the moment. One for the process.
pub struct Upstream {
    /// Its name in configuration, metrics and log.
    pub name: Arc<str>,
    /// What is in force.
    pub settings: Settings,
    /// Its series.
    pub metrics: Arc<UpstreamMetrics>,
    registry: Arc<Metrics>,
    endpoints: ArcSwap<Endpoints>,
    /// What discovery knows of it.
    known: Mutex<Known>,
    /// What all workers together hold of it.
    pub counts: Arc<Counts>,
    tls: Option<Arc<Client>>,
    /// Who is worse than its peers.
    outlier: Outlier,
}

/// Who can answer at the moment.
#[derive(Default)]
pub struct Endpoints {
    /// Those that have an address.
    pub usable: Vec<Weighted>,
    /// Names without an address, and why. An SRV name has port 0.
    pub unresolved: Vec<(Address, String)>,
    /// The tables by which one is picked.
    pub balance: Tables,
}

/// What a request asks for when it needs an endpoint.
pub struct Ask<'a> {
    /// The ids of the endpoints that this request has tried.
    pub tried: &'a [u64],
    /// A random number.
    pub draw: u64,
    /// The hash of its key, where `balance.kind` is `hash` and it has one.
    pub key: Option<u64>,
    /// Now.
    pub now: Instant,
    /// Whether it is a first attempt that can be sent again: it may probe an endpoint that was ejected.
    pub may_probe: bool,
    /// Whether ejections are enforced for it (`outlier.rollout`).
    pub heeds_ejections: bool,
    /// The endpoint that was tried last was not even reached.
    pub unreached: bool,
}

/// What an attempt shows of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The head of an answer came.
    Head {
        /// What it means by itself; its body may still break off.
        verdict: Verdict,
        /// From when the request had gone up.
        latency: Duration,
    },
    /// The attempt is over: its answer has ended or broke off, or none came.
    End {
        /// What it came to.
        verdict: Verdict,
        /// From when the request had gone up to the head, or to the failure.
        latency: Duration,
        /// Whether no connection could be made.
        connect: bool,
        /// How long the answer, a failure, asked to be left alone.
        retry_after: Duration,
    },
    /// The attempt was cancelled, since another of the same request was faster.
    Overtaken {
        /// From when the request had gone up: its head would have taken longer.
        age: Duration,
    },
    /// The answer has become a stream; how it ends is told then.
    Streams {
        /// What its head means.
        verdict: Verdict,
    },
}

impl Endpoints {
    /// How many are in service, as far as two: more than one is all that the breaker asks.
    pub fn in_service(&self) -> u32 {
        self.usable.iter().filter(|choice| choice.endpoint.standing.is_in_service()).take(2).count() as u32
    }
}

impl Upstream {
    /// The endpoint for the next attempt; none where the list is empty.
    pub fn choose(&self, ask: &Ask<'_>) -> Option<Arc<Endpoint>> {
        let probed = self.outlier.probe(ask.now, ask.may_probe, || self.peers());
        let unheeded = || {
            if ask.heeds_ejections || !self.outlier.has_ejected() {
                None
            } else {
                self.ejected_by_chance(ask)
            }
        };
        probed.or_else(unheeded).or_else(|| self.pick(ask))
    }

    /// For a request that goes on as if nobody were ejected: an ejected endpoint in as many cases as its weight says.
    #[cold]
    fn ejected_by_chance(&self, ask: &Ask<'_>) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints();
        let total: u64 = endpoints.usable.iter().map(|choice| u64::from(choice.weight)).sum();
        let mut place = ((u128::from(ask.draw.rotate_left(32)) * u128::from(total)) >> 64) as u64;
        let drawn = endpoints.usable.iter().find(|choice| {
            let found = place < u64::from(choice.weight);
            place = place.wrapping_sub(choice.weight.into());
            found
        })?;
        let Endpoint { standing, id, .. } = &*drawn.endpoint;
        let only_ejected = standing.is_out(Out::Ejected) && !standing.is_out(Out::Unhealthy);
        (only_ejected && !ask.tried.contains(id)).then(|| Arc::clone(&drawn.endpoint))
    }

    /// The same, but never an ejected endpoint whose probe this would be: for what is no request.
    pub fn pick(&self, ask: &Ask<'_>) -> Option<Arc<Endpoint>> {
        let want = Want {
            tried: ask.tried,
            draw: ask.draw,
            key: ask.key,
            now: nanos(ask.now),
            unreached: ask.unreached,
        };
        self.endpoints().balance.pick(&want).map(Arc::clone)
    }

    /// Learns from an attempt at an endpoint. Each tells of its end once; of its head only if one came.
    pub fn observe(&self, attempt: &InFlight, now: Instant, observed: Observed) {
        let (load, at) = (&attempt.endpoint().load, nanos(now));
        let shown = |verdict| match verdict {
            Verdict::Failure => Shown::Failure,
            Verdict::Success => Shown::Success,
            Verdict::Throttled | Verdict::Ignored => Shown::Nothing,
        };
        match observed {
            Observed::Head { verdict: Verdict::Success, latency } => {
                load.sample(at, latency);
                self.outlier.took(attempt, latency);
            }
            Observed::Head { .. } => {}
            Observed::Overtaken { age } => {
                if load.overtaken(at, age) {
                    self.outlier.took(attempt, age);
                }
                self.tell(&self.outlier.observe(attempt, now, Shown::Nothing, age, || self.peers()));
            }
            Observed::Streams { verdict } => {
                if verdict == Verdict::Success {
                    load.succeeded(at);
                }
                self.tell(self.outlier.streams(attempt, now, shown(verdict), || self.peers()).as_slice());
            }
            Observed::End { verdict, latency, connect, retry_after } => {
                let shown = if connect { Shown::Failure } else { shown(verdict) };
                match shown {
                    Shown::Failure => {
                        attempt.endpoint().failed(now);
                        load.failed(at, latency, retry_after);
                    }
                    Shown::Success => load.succeeded(at),
                    Shown::Nothing => {}
                }
                self.tell(&self.outlier.observe(attempt, now, shown, latency, || self.peers()));
            }
        }
    }

    /// Whether an ejected endpoint waits for a live probe ([`Ask::may_probe`]).
    pub fn awaits_probe(&self, now: Instant) -> bool {
        self.outlier.is_due(now)
    }

    fn peers(&self) -> Vec<Peer> {
        let of =
            |choice: &Weighted| Peer { endpoint: Arc::clone(&choice.endpoint), priority: choice.priority };
        self.endpoints().usable.iter().map(of).collect()
    }

    /// The upstream `name`. Of `previous`, one of the same name, it takes over the endpoints that stay and all
    /// counts, and what discovery knows. What is not known waits for its first look-up (`discovery::keep`).
    pub fn new(name: &str, settings: Settings, previous: Option<&Upstream>, registry: &Arc<Metrics>) -> Self {
        let upstream = Self {
            name: name.into(),
            metrics: registry.upstream(name),
            registry: Arc::clone(registry),
            endpoints: ArcSwap::default(),
            known: Mutex::new({
                let previous = previous.map(Upstream::known);
                Known::new(&settings.discovery, &settings.endpoints, previous.as_deref(), Instant::now())
            }),
            outlier: Outlier::new(
                &settings.outlier,
                previous.map(|previous| &previous.outlier),
                fastrand::u64(..),
            ),
            counts: previous.map(|previous| Arc::clone(&previous.counts)).unwrap_or_default(),
            tls: tls(&settings, previous),
            settings,
        };
        let known = previous.map(|previous| previous.endpoints.load_full()).unwrap_or_default();
        let composed = upstream.known().compose();
        upstream.replace(&known, composed.found, composed.unresolved);
        upstream
    }

    /// Who can answer at the moment.
    pub fn endpoints(&self) -> Guard<Arc<Endpoints>> {
        self.endpoints.load()
    }

    /// What discovery knows of it.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Discovery has learnt something before the upstream came into force.
    pub fn take_over(&self, known: Known) {
        let composed = known.compose();
        *self.known() = known;
        self.set_endpoints(composed.found, composed.unresolved);
    }

    /// A connection to `endpoint`, one of its own, for the client at one of these `ends`, or for nobody's request.
    pub fn wanted<'a>(&'a self, endpoint: &'a Arc<Endpoint>, ends: Option<Ends>) -> Wanted<'a> {
        let Settings { connections, timeout, proxy_protocol, .. } = &self.settings;
        Wanted {
            endpoint,
            counts: &self.counts,
            limits: connections,
            within: *timeout.connect,
            introduction: proxy_protocol.map(|version| Introduction { version, ends }),
            only_http1: false,
        }
    }

    /// The configuration does not have it any more: its idle connections are closed.
    pub fn leave(&self) {
        self.endpoints().usable.iter().for_each(|choice| choice.endpoint.set_gone(true));
    }

    /// Those of `found` are who can answer from now on, in this order; `unresolved` are the names without an address,
    /// and why. An endpoint of the same address and socket stays the same one, with its connections and all that was
    /// learnt of it; one that vanished gets no new requests and finishes those that it has. One caller at a time.
    pub fn set_endpoints(&self, found: Vec<Found>, unresolved: Vec<(Address, String)>) {
        let known = self.endpoints.load_full();
        let Changes { added, removed } = self.replace(&known, found, unresolved);
        if !added.is_empty() || !removed.is_empty() {
            tracing::info!(
                upstream = &*self.name,
                added = some_of(&added),
                removed = some_of(&removed),
                "endpoints changed: {} more, {} less, {} in all",
                added.len(),
                removed.len(),
                self.endpoints().usable.len()
            );
        }
    }

    /// Puts another list in the place of `known`, an earlier one of this upstream or of the one before a reload.
    fn replace(&self, known: &Endpoints, found: Vec<Found>, unresolved: Vec<(Address, String)>) -> Changes {
        let mut changes = Changes::default();
        let of_known: HashMap<(&Address, &Socket), &Arc<Endpoint>> = known
            .usable
            .iter()
            .map(|Weighted { endpoint, .. }| ((&endpoint.address, &endpoint.socket), endpoint))
            .collect();
        let mut usable: Vec<Weighted> = Vec::with_capacity(found.len());
        let now = Instant::now();
        // Where nobody has answered yet nobody is a newcomer.
        let is_start = !known.usable.iter().any(|choice| choice.endpoint.load.is_known());
        let enforced = self.settings.health.mode == Mode::Enforce;
        let same = |found: &Found| {
            let same = of_known.get(&(&found.address, &found.socket)).copied();
            same.filter(|endpoint| endpoint.is_over(self.tls.as_ref()))
        };
        let serves_meanwhile =
            |found: &Found| same(found).is_some_and(|endpoint| endpoint.standing.is_in_service());
        // A new endpoint waits for its first check where others serve meanwhile.
        let waits = enforced && found.iter().any(serves_meanwhile);
        for found in found {
            let endpoint = same(&found).map(Arc::clone).unwrap_or_else(|| {
                let metrics = self.registry.endpoint(&self.name, &found.socket.to_string());
                let endpoint = Endpoint::new(found.address, found.socket, metrics).over(self.tls.clone());
                let endpoint = Arc::new(endpoint);
                endpoint.standing.set(Out::Unchecked, waits, now);
                if is_start {
                    endpoint.load.start_warm(endpoint.standing.in_service_since());
                }
                changes.added.push(Arc::clone(&endpoint.label));
                endpoint
            });
            if !enforced {
                endpoint.standing.set(Out::Unhealthy, false, now);
                endpoint.standing.set(Out::Unchecked, false, now);
            }
            if !self.is_checked() {
                endpoint.check.forget();
            }
            endpoint.set_others(found.others);
            endpoint.set_gone(false);
            usable.push(Weighted { endpoint, weight: found.weight, priority: found.priority });
        }
        let stay: HashSet<u64> = usable.iter().map(|choice| choice.endpoint.id).collect();
        for Weighted { endpoint, .. } in
            known.usable.iter().filter(|choice| !stay.contains(&choice.endpoint.id))
        {
            endpoint.set_gone(true);
            changes.removed.push(Arc::clone(&endpoint.label));
        }
        let balance = Tables::new(&self.settings.balance, &usable, self.settings.capacity());
        self.endpoints.store(Arc::new(Endpoints { usable, unresolved, balance }));
        self.tell(&self.outlier.adopt(&self.peers(), now));
        changes
    }
}

impl Settings {
    /// The most attempts that may be in flight, streams apart; [`u32::MAX`] where nothing bounds them.
    fn capacity(&self) -> u32 {
        let max = self.concurrency.limit.max();
        let by_connections = if self.shares_connections() { u32::MAX } else { self.connections.max };
        if self.concurrency.mode == Mode::Enforce { max.min(by_connections) } else { by_connections }
    }

    /// Whether attempts may share a connection, as they do over HTTP/2: then `connections.max` is no bound for them.
    pub fn shares_connections(&self) -> bool {
        match self.protocol {
            Protocol::Http1 => false,
            Protocol::Auto => self.tls.is_some(),
            Protocol::Http2 => true,
        }
    }
}

/// What another list changed: the endpoints' labels.
#[derive(Default)]
struct Changes {
    added: Vec<Arc<str>>,
    removed: Vec<Arc<str>>,
}

/// The first few of them, for a line of the log.
fn some_of(labels: &[Arc<str>]) -> String {
    let shown = labels.iter().take(10).map(|label| &**label).collect::<Vec<_>>().join(" ");
    if labels.len() > 10 { format!("{shown} …") } else { shown }
}

/// Who makes the TLS connections: the client of `previous`, unless the settings say something else. What their files
/// hold is new to it.
fn tls(settings: &Settings, previous: Option<&Upstream>) -> Option<Arc<Client>> {
    let (wanted, protocols) = (settings.tls.as_ref()?, settings.protocol.alpn());
    let known = previous.and_then(|previous| Some((previous.tls.as_ref()?, previous.settings.tls.as_ref()?)));
    match known {
        Some((client, before)) if client.serves(wanted, protocols) => {
            if before != wanted {
                client.renew(wanted);
            }
            Some(Arc::clone(client))
        }
        _ => Some(Arc::new(Client::new(wanted, protocols))),
    }
}

/// `protocol`: how to speak with endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TLS: as ALPN settles. Clear text: gRPC by HTTP/2, the rest by HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2; in clear text from the first byte ("prior knowledge").
    Http2,
}

/// How one request goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By HTTP/1.1.
    Http1,
    /// By HTTP/2.
    Http2,
    /// By what the endpoint settles for in the handshake of TLS.
    Settled,
}

impl Protocol {
    /// What is offered by ALPN, the preferred one first.
    pub fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Auto => &[b"h2", b"http/1.1"],
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Http2 => &[b"h2"],
        }
    }

    /// How a request goes up, over TLS or not. `grpc`: whether it is gRPC, which needs HTTP/2; `upgrade`: whether it asks
    /// for another protocol, which only HTTP/1.1 can switch to.
    pub const fn way(self, tls: bool, grpc: bool, upgrade: bool) -> Way {
        match self {
            Protocol::Auto if upgrade => Way::Http1,
            Protocol::Auto if tls => Way::Settled,
            Protocol::Auto if grpc => Way::Http2,
            Protocol::Auto | Protocol::Http1 => Way::Http1,
            Protocol::Http2 => Way::Http2,
        }
    }
}

/// `host`: the Host sent up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// The endpoint's name if the client asked for the listener's own address, else what the client sent.
    #[default]
    Auto,
    /// What the client sent.
    Keep,
    /// The endpoint's address as the configuration writes it.
    Endpoint,
    /// This name.
    Name(String),
}

impl TryFrom<String> for Host {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Host::Auto),
            "keep" => Ok(Host::Keep),
            "endpoint" => Ok(Host::Endpoint),
            _ => check_authority(&text).map(|()| Host::Name(text)),
        }
    }
}

/// Checks a host as it stands in a Host field: a name or an address, with a port or without.
///
/// # Errors
/// What is not such a host, with the cure.
pub fn check_authority(text: &str) -> Result<(), String> {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let ip = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let host_fits = match ip {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(fits),
    };
    if text.len() > 255 || !host_fits || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("{text:?} is not a host; give a name such as \"payments.internal\""));
    }
    Ok(())
}

impl From<Host> for String {
    fn from(host: Host) -> String {
        match host {
            Host::Auto => "auto".into(),
            Host::Keep => "keep".into(),
            Host::Endpoint => "endpoint".into(),
            Host::Name(name) => name,
        }
    }
}

impl JsonSchema for Host {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Host".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "`auto`, `keep`, `endpoint`, or a name" })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_bounds_attempts_is_what_each_of_them_needs() {
        let cases = [
            ("as it is", json!({}), 1000),
            ("each has a connection", json!({ "connections": { "max": 16 } }), 16),
            (
                "over HTTP/2 they share them",
                json!({ "connections": { "max": 16 }, "protocol": "http2" }),
                1000,
            ),
            ("nothing does", json!({ "concurrency": { "mode": "off" }, "protocol": "http2" }), u32::MAX),
            (
                "only connections do",
                json!({ "concurrency": { "mode": "shadow" }, "connections": { "max": 16 } }),
                16,
            ),
        ];
        for (why, settings, expected) in cases {
            let settings: Settings =
                serde_json::from_value(settings).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(settings.capacity(), expected, "{why}");
        }
    }
}
