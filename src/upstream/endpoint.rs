//! One address of an upstream: where it is, and what this process has going on with it.
//!
//! Shared by all workers. Its counters are single atomics, since balancing must see every worker's requests; a
//! request touches them twice. Not here: which endpoint is next (`balance`), idle connections (`pool`).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::health::Check;
use super::load::Load;
use super::standing::{Standing, nanos};
use super::traffic::Traffic;
use crate::telemetry::metrics::EndpointMetrics;
use crate::tls::client::Client;
use crate::transport::unix_path;
use crate::units::within;

/// An entry of `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Where it listens.
    pub address: Address,
    /// Its share of the requests, against its peers'; from 1 to 1000. Default 1.
    pub weight: u32,
    /// Those with the lowest take the requests while enough of them are healthy. From 0 to 9. Default 0.
    pub priority: u8,
}

/// Where an endpoint is, as the configuration or discovery writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Address {
    /// `host:port`; an IPv6 address stands in brackets.
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// From 1 to 65535; 0 for the name of a service (SRV), which says the ports itself.
        port: u16,
    },
    /// `unix:/path`: a Unix socket.
    Unix(PathBuf),
}

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Socket {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// One address of an upstream.
pub struct Endpoint {
    /// Unlike any other endpoint's of this process.
    pub id: u64,
    /// As the configuration writes it.
    pub address: Address,
    /// Where it is.
    pub socket: Socket,
    /// The same host under addresses of its other family, for a connect that races them (RFC 8305).
    others: ArcSwap<Vec<SocketAddr>>,
    /// Whether it has left its upstream's list.
    is_gone: AtomicBool,
    /// Whether it settled for HTTP/1.1 in its last handshake of TLS.
    settled_for_http1: AtomicBool,
    /// The address as `Host` has it.
    pub host: Box<str>,
    /// Its name in metrics and log: the socket.
    pub label: Arc<str>,
    /// Its series.
    pub metrics: Arc<EndpointMetrics>,
    /// Makes the TLS connections to it, where it speaks TLS. Another one makes another endpoint: its connections would
    /// not be what is wanted now.
    pub tls: Option<Arc<Client>>,
    /// Whether it may take requests.
    pub standing: Standing,
    /// How loaded it looks, and what is in flight there.
    pub load: Load,
    /// What its requests have shown.
    pub traffic: Traffic,
    /// What its health checks have shown.
    pub check: Check,
    /// When it last failed, in [`nanos`]; 0: it never did.
    failed_at: AtomicU64,
    /// Whether IPv4 led to it last, of its addresses.
    by_ipv4: AtomicBool,
}

/// An attempt in flight at an endpoint, until released or dropped.
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    /// The era of its traffic in which it began.
    era: u32,
    is_counted: bool,
    has_head: bool,
    is_stream: bool,
}

impl Endpoint {
    /// The endpoint at `socket`, for which the configuration says `address`.
    pub fn new(address: Address, socket: Socket, metrics: Arc<EndpointMetrics>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: IDS.fetch_add(1, Relaxed),
            host: address.authority().into(),
            address,
            label: socket.to_string().into(),
            socket,
            others: ArcSwap::default(),
            is_gone: AtomicBool::new(false),
            settled_for_http1: AtomicBool::new(false),
            metrics,
            tls: None,
            standing: Standing::new(Instant::now()),
            load: Load::default(),
            traffic: Traffic::default(),
            check: Check::default(),
            failed_at: AtomicU64::new(0),
            by_ipv4: AtomicBool::new(false),
        }
    }

    /// The same host under addresses of its other family, the first to try first; empty where there are none.
    pub fn others(&self) -> Guard<Arc<Vec<SocketAddr>>> {
        self.others.load()
    }

    /// Discovery found it under these addresses too.
    pub(super) fn set_others(&self, others: Vec<SocketAddr>) {
        if **self.others.load() != others {
            self.others.store(Arc::new(others));
        }
    }

    /// Whether IPv6 is to be tried first, of its addresses: unless IPv4 led to it last.
    pub(super) fn is_reached_by_ipv6(&self) -> bool {
        !self.by_ipv4.load(Relaxed)
    }

    /// This of its addresses led to it.
    pub(super) fn reached_by(&self, address: SocketAddr) {
        self.by_ipv4.store(address.is_ipv4(), Relaxed);
    }

    /// Whether it has left its upstream's list: it gets no new requests, those that run finish, and connections to it
    /// are not kept.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    /// It has left its upstream's list, or come back to it.
    pub(super) fn set_gone(&self, is_gone: bool) {
        self.is_gone.store(is_gone, Relaxed);
    }

    /// The same, spoken to in TLS if there is a client for it.
    pub fn over(self, tls: Option<Arc<Client>>) -> Self {
        Self { tls, ..self }
    }

    /// Whether connections to it are made by `tls`, or without TLS.
    pub fn is_over(&self, tls: Option<&Arc<Client>>) -> bool {
        match (&self.tls, tls) {
            (None, None) => true,
            (Some(mine), Some(tls)) => Arc::ptr_eq(mine, tls),
            _ => false,
        }
    }

    /// The name that it is asked for and must have in TLS; that of a Unix socket is on this host.
    pub fn server_name(&self) -> &str {
        match &self.address {
            Address::Tcp { host, .. } => host,
            Address::Unix(_) => "localhost",
        }
    }

    /// Whether it settled for HTTP/1.1 in its last handshake of TLS: then each request needs a connection of its own.
    pub fn settled_for_http1(&self) -> bool {
        self.settled_for_http1.load(Relaxed)
    }

    /// A handshake of TLS has settled on HTTP/1.1, or on HTTP/2.
    pub(super) fn settle(&self, is_http2: bool) {
        if self.settled_for_http1() == is_http2 {
            self.settled_for_http1.store(!is_http2, Relaxed);
        }
    }

    /// Counts an attempt in flight from `now` on.
    pub fn enter(self: &Arc<Self>, now: Instant) -> InFlight {
        self.load.enter(nanos(now));
        InFlight {
            endpoint: Arc::clone(self),
            era: self.traffic.era(),
            is_counted: true,
            has_head: false,
            is_stream: false,
        }
    }

    /// How long ago it has last done its work, up to 50 ms more.
    pub fn silence(&self, now: Instant) -> Duration {
        Duration::from_nanos(nanos(now).saturating_sub(self.traffic.succeeded_at()))
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    /// An attempt there failed at `now`.
    pub fn failed(&self, now: Instant) {
        self.failed_at.fetch_max(nanos(now).max(1), Relaxed);
    }

    /// Grows with the instant of its last failure; 0: it never failed.
    pub fn last_failure(&self) -> u64 {
        self.failed_at.load(Relaxed)
    }
}

impl InFlight {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The head of its answer came at `now`.
    pub fn answered(&mut self, now: Instant) {
        if self.is_counted && !std::mem::replace(&mut self.has_head, true) {
            self.endpoint.load.answered(nanos(now));
        }
    }

    /// Its answer has become a stream.
    pub fn becomes_stream(&mut self) {
        if self.is_counted && !std::mem::replace(&mut self.is_stream, true) {
            self.endpoint.load.stream_began();
        }
    }

    /// Whether it has become a stream.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Whether its endpoint has gone out of service, was probed, or came back since it began: then its outcome says
    /// nothing about now.
    pub fn is_outdated(&self) -> bool {
        self.era != self.endpoint.traffic.era()
    }

    /// The attempt is over, though its answer is kept.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            self.endpoint.load.leave(self.has_head);
            if self.is_stream {
                self.endpoint.load.stream_ended();
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.release();
    }
}

impl Address {
    /// What is connected to, where that needs no look-up.
    pub fn socket(&self) -> Option<Socket> {
        match self {
            Address::Tcp { host, port } => {
                host.parse::<IpAddr>().ok().map(|ip| Socket::Tcp(SocketAddr::new(ip, *port)))
            }
            Address::Unix(path) => Some(Socket::Unix(path.clone())),
        }
    }

    /// The name and port to look up, where it has a name.
    pub fn name(&self) -> Option<(&str, u16)> {
        match self {
            Address::Tcp { host, port } if host.parse::<IpAddr>().is_err() => Some((host, *port)),
            _ => None,
        }
    }

    /// The address as `Host` has it; a Unix socket is on this host.
    pub fn authority(&self) -> String {
        match self {
            // The dot at the end of a whole name is DNS's, not HTTP's.
            Address::Tcp { host, port } if host.ends_with('.') => {
                format!("{}:{port}", host.trim_end_matches('.'))
            }
            Address::Tcp { .. } => self.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { host, port: 0 } => f.write_str(host),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl std::fmt::Display for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Socket::Tcp(address) => address.fmt(f),
            Socket::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

impl std::str::FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Address::Unix);
        }
        let wrong =
            |why: &str| format!("{text:?} is not an address: {why}; write \"host:port\" or \"[ipv6]:port\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| wrong("the port is not a number from 1 to 65535"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ip) if ip.parse::<std::net::Ipv6Addr>().is_ok() => ip,
            Some(_) => return Err(wrong("what stands in brackets is no IPv6 address")),
            None => host,
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() || host.is_empty() {
            return Err(wrong("the host is missing or has a stray colon"));
        }
        if !host.contains(':') && !host.bytes().all(name) {
            return Err(wrong("the host has a character that no name has"));
        }
        Ok(Address::Tcp { host: host.to_owned(), port })
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            address: String,
            #[serde(default = "one", deserialize_with = "within::<_, 1, 1000>")]
            weight: u32,
            #[serde(default, deserialize_with = "within::<_, 0, 9>")]
            priority: u32,
        }
        const fn one() -> u32 {
            1
        }
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = Table;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"host:port\" or a table with `address`, `weight` and `priority`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Table, E> {
                Ok(Table { address: text.to_owned(), weight: 1, priority: 0 })
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Table, A::Error> {
                Table::deserialize(serde::de::value::MapAccessDeserializer::new(map))
            }
        }
        let table = deserializer.deserialize_any(Either)?;
        let address = table.address.parse().map_err(serde::de::Error::custom)?;
        Ok(Self { address, weight: table.weight, priority: table.priority as u8 })
    }
}

impl JsonSchema for Settings {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "description": "host:port" },
            {
                "type": "object",
                "properties": { "address": { "type": "string" }, "weight": { "type": "integer", "minimum": 1, "maximum": 1000 }, "priority": { "type": "integer", "minimum": 0, "maximum": 9 } },
                "required": ["address"],
                "additionalProperties": false
            },
        ]})
    }
}
