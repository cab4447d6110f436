//! Where clients connect, whom of them to believe, and how much they may send.
//!
//! Not here: the sockets (`runtime`), the connections (`proxy::connection`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::route;
use crate::tls::server;
use crate::transport::unix_path;
use crate::units::{OrNone, Size, Span, within};

/// `[[listener]]`: where clients connect. `direction` has decided `trust` and `forwarded` where they are not
/// written.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its name in metrics and log. Default: the address.
    #[serde(default, deserialize_with = "some_name")]
    pub name: Option<String>,
    /// `ip:port` to listen on, port 0: any free one; or `unix:/path`, a socket that clients on this machine share.
    pub address: Address,
    /// `egress`: the service calls out. `ingress`: the world calls the service. Default `egress`.
    #[serde(default)]
    pub direction: Direction,
    /// Whose control headers are obeyed: `"all"`, `"none"` or a list of networks.
    /// Default `"all"`, for ingress `"none"`.
    #[serde(default)]
    pub trust: Option<Trust>,
    /// Whether `X-Forwarded-*` and `Via` are added: `"on"` or `"off"`. Default `"off"`, for ingress `"on"`.
    #[serde(default)]
    pub forwarded: Option<Forwarded>,
    /// What clients may speak: `auto`, `http1` or `http2`. Default `auto`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether each connection begins with a header of the PROXY protocol, version 1 or 2, that says whose it is; one
    /// without is closed. Whoever can reach the listener can then say that it is anybody. Default false.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Clients speak TLS: `cert` and `key`, `client_ca`, `certificates`. Default: clear text.
    #[serde(default)]
    pub tls: Option<server::Settings>,
    /// Bounds of what a client may send. Default `{ header_timeout = "10s", idle_timeout = "5m",
    /// max_header_size = "64KiB", max_headers = 128, max_body = "none", max_streams = 128, half_close = false }`.
    #[serde(default)]
    pub limits: Limits,
    /// From top to bottom; the first that matches takes the request.
    #[serde(default)]
    pub route: Vec<route::Settings>,
    /// The upstream of what no route takes. Default: none, such requests get `no_route`.
    #[serde(default)]
    pub upstream: Option<String>,
}

/// `address`: where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// `direction`: who calls whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The service calls out.
    #[default]
    Egress,
    /// The world calls the service.
    Ingress,
}

/// `forwarded`: whether `X-Forwarded-*` and `Via` are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Forwarded {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// `protocol`: what clients may speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Either: told apart by the first bytes, in TLS by the handshake (ALPN).
    #[default]
    Auto,
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// HTTP/2: with prior knowledge, or settled in the handshake of TLS.
    Http2,
}

impl Protocol {
    /// What clients may choose by ALPN, the preferred one first.
    pub fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Auto => &[b"h2", b"http/1.1", b"http/1.0"],
            Protocol::Http1 => &[b"http/1.1", b"http/1.0"],
            Protocol::Http2 => &[b"h2"],
        }
    }
}

/// `trust`: whose control headers (priority, deadline, retry, request id) are obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Everybody's.
    All,
    /// Nobody's.
    None,
    /// Those of peers in these networks.
    Networks(Vec<Network>),
}

/// An IP network, written `"10.0.0.0/8"`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// `limits`: bounds of what a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// From the first byte of a head to its last. Default `"10s"`.
    pub header_timeout: Span,
    /// Between requests; then the connection ends silently. Default `"5m"`.
    pub idle_timeout: Span,
    /// The largest head. From `"1KiB"` to `"1MiB"`. Default `"64KiB"`.
    #[serde(deserialize_with = "header_size")]
    pub max_header_size: Size,
    /// The most fields in a head. From 1 to 1000. Default 128.
    #[serde(deserialize_with = "within::<_, 1, 1000>")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_headers: u32,
    /// The largest request body, or `"none"`. Default `"none"`.
    pub max_body: OrNone<Size>,
    /// Requests at the same time on one HTTP/2 connection. From 1 to 10,000. Default 128.
    #[serde(deserialize_with = "within::<_, 1, 10_000>")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_streams: u32,
    /// A client that has closed its sending side still gets its answer. Default false: it has left.
    pub half_close: bool,
}

/// Reads the address of a listening socket of TCP.
///
/// # Errors
/// What is not `ip:port`, with the cure.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_address(&text).map_err(serde::de::Error::custom)
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let bare_port = text.strip_prefix(':').unwrap_or(text);
        let cure = match text.rsplit_once(':') {
            _ if bare_port.parse::<u16>().is_ok() => {
                format!("write the address too: \"127.0.0.1:{bare_port}\"")
            }
            Some(("localhost", port)) => format!("write \"127.0.0.1:{port}\""),
            Some(("*" | "", port)) => format!("write \"0.0.0.0:{port}\""),
            None if text.parse::<IpAddr>().is_ok() => "add a port, such as \"127.0.0.1:8080\"".to_owned(),
            _ => "write \"ip:port\", such as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
        };
        format!("{text:?} is not an address to listen on; {cure}")
    })
}

impl Address {
    /// The address of TCP, where it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = match text.strip_prefix("unix:") {
            Some(path) => unix_path(path).map(Address::Unix),
            None => parse_address(&text).map(Address::Tcp),
        };
        parsed.map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Address {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ListenerAddress".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "ip:port, or unix:/path" })
    }
}

fn some_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    route::check_name(&name).map_err(serde::de::Error::custom)?;
    Ok(Some(name))
}

fn header_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
    let size = Size::deserialize(deserializer)?;
    if !((1 << 10)..=(1 << 20)).contains(&size.bytes()) {
        let error = format!("a head of {size} is out of range; give a size from \"1KiB\" to \"1MiB\"");
        return Err(serde::de::Error::custom(error));
    }
    Ok(size)
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Span::from_secs(10),
            idle_timeout: Span::from_secs(300),
            max_header_size: Size::from_bytes(64 << 10),
            max_headers: 128,
            max_body: OrNone(None),
            max_streams: 128,
            half_close: false,
        }
    }
}

impl Settings {
    /// The listener's name in metrics and log.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.to_string())
    }

    /// Whether a connection that was let in by `before` would be let in as it is.
    pub fn would_let_in(&self, before: &Self) -> bool {
        let tls = match (&self.tls, &before.tls) {
            (None, None) => true,
            (Some(tls), Some(before)) => tls.asks_no_more_than(before),
            _ => false,
        };
        tls && self.proxy_protocol == before.proxy_protocol
    }

    /// Whose control headers are obeyed.
    pub fn trust(&self) -> Trust {
        match (&self.trust, self.direction) {
            (Some(trust), _) => trust.clone(),
            (None, Direction::Egress) => Trust::All,
            (None, Direction::Ingress) => Trust::None,
        }
    }

    /// Whether `X-Forwarded-*` and `Via` are added.
    pub fn forwarded(&self) -> bool {
        match self.forwarded {
            Some(forwarded) => forwarded == Forwarded::On,
            None => self.direction == Direction::Ingress,
        }
    }
}

impl Trust {
    /// Whether `peer`'s control headers are obeyed.
    pub fn holds(&self, peer: IpAddr) -> bool {
        match self {
            Trust::All => true,
            Trust::None => false,
            Trust::Networks(networks) => networks.iter().any(|network| network.contains(peer)),
        }
    }
}

impl Network {
    /// Whether `ip` lies in it. An IPv4 address written as IPv6 counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let host_bits = |width: u32| width - u32::from(self.bits);
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                (u32::from(net) ^ u32::from(ip)).checked_shr(host_bits(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                (u128::from(net) ^ u128::from(ip)).checked_shr(host_bits(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let wrong = || format!("{text:?} is not a network; write an address or \"10.0.0.0/8\"");
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), |bits| bits.parse::<u8>().map_err(|_| wrong()))?;
        (bits <= width).then_some(Self { address, bits }).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl<'de> Deserialize<'de> for Trust {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Trust;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"all\", \"none\" or a list of networks such as [\"10.0.0.0/8\"]")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Trust, E> {
                match text {
                    "all" => Ok(Trust::All),
                    "none" => Ok(Trust::None),
                    _ => text.parse().map(|network| Trust::Networks(vec![network])).map_err(E::custom),
                }
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Trust, A::Error> {
                let mut networks = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    networks.push(text.parse().map_err(serde::de::Error::custom)?);
                }
                Ok(Trust::Networks(networks))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Trust {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Trust::All => serializer.serialize_str("all"),
            Trust::None => serializer.serialize_str("none"),
            Trust::Networks(networks) => serializer.collect_seq(networks.iter().map(Network::to_string)),
        }
    }
}

impl JsonSchema for Trust {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Trust".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "description": "all, none, or one network" },
            { "type": "array", "items": { "type": "string" }, "description": "networks such as 10.0.0.0/8" },
        ]})
    }
}
