//! Who can answer: from what the configuration writes to addresses that can be connected.
//!
//! Entries of `endpoints` that are addresses stand for themselves. Names are asked of DNS (`dns`, the default); an
//! SRV name says hosts, ports, weights and priorities (`dns_srv`); a file lists entries of the same form (`file`),
//! and names in any of them are looked up too. What is written and what is discovered add up.
//!
//! - `names` knows what each name's answers were, and decides when it is asked next and what an answer changes;
//!   `known` makes the list of endpoints of it. Both are pure: time, answers and randomness are parameters.
//! - `resolver` asks DNS, `list` reads the file; `keep` is the task that does so for one upstream, off the workers.
//!
//! **What is known stays until something better is known.** A look-up that fails (a timeout, SERVFAIL, no network)
//! changes nothing but the age that metric and `/upstreams` show. An answer that says that there is nothing (NXDOMAIN,
//! NODATA, an SRV record with the target `.`) empties the list when a second look-up, a second later, says so too:
//! name servers that start or are cut off from their data say it by mistake. A file that cannot be read or has a
//! mistake leaves the last good list in force.
//!
//! **Two families are one host.** A name with IPv4 and IPv6 addresses has as many endpoints as the family with more
//! of them (IPv6 where they are equal, RFC 8305 §4); each has an address of the other family beside it, which the
//! connect races against its own. Which belong together, DNS does not say: both are sorted and paired in that order.
//! Rejected: an endpoint for each address (a host without one family would fail half of the requests until it is
//! ejected, and weigh twice if both work), and IPv4 alone.
//!
//! **Bounds**: 1,000 endpoints an upstream; 64 look-ups in flight for each name server; an answer is at most what a DNS
//! message holds (64 KiB), a file 1 MiB.

pub mod keep;
pub mod known;
mod list;
pub mod names;
pub mod resolver;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::endpoint::{Address, Socket};
use crate::units::Span;

/// The most endpoints that an upstream has; further ones are left out.
pub const MAX_ENDPOINTS: usize = 1000;

/// `discovery`: where endpoints come from, besides those that are written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Settings {
    /// From nowhere: `endpoints` has addresses only.
    None {},
    /// Names in `endpoints` are looked up (A and AAAA).
    Dns {
        /// How often: `"auto"`, before the answer's TTL ends (at most every second, at least every 5 m), or a time
        /// from 1 s to 1 h.
        #[serde(default)]
        refresh: Refresh,
        /// `ip:port` of the name server to ask. Without: those of /etc/resolv.conf, behind /etc/hosts, with search
        /// domains.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<SocketAddr>,
    },
    /// A name of DNS says hosts and ports (SRV).
    DnsSrv {
        /// The SRV name, such as `"_http._tcp.payments.internal"`. Its weights count in proportion, its priorities by
        /// rank.
        name: Name,
        /// How often: `"auto"`, before the answer's TTL ends (at most every second, at least every 5 m), or a time
        /// from 1 s to 1 h.
        #[serde(default)]
        refresh: Refresh,
        /// `ip:port` of the name server to ask. Without: those of /etc/resolv.conf, behind /etc/hosts, with search
        /// domains.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<SocketAddr>,
    },
    /// A file lists them, and is watched.
    File {
        /// The file: TOML (`endpoints = ["host:port", { address = "…", weight = 2 }]`) or JSON
        /// (`{ "endpoints": […] }`).
        path: PathBuf,
        /// How often names in it are looked up: `"auto"`, before the answer's TTL ends (at most every second, at least
        /// every 5 m), or a time from 1 s to 1 h.
        #[serde(default)]
        refresh: Refresh,
        /// `ip:port` of the name server to ask for names in it. Without: those of /etc/resolv.conf, behind /etc/hosts,
        /// with search domains.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<SocketAddr>,
    },
}

/// `refresh`: how often names are looked up; none: as their TTL says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Refresh(pub Option<Span>);

/// A name of DNS that is no host's: it may begin with underscores.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// An endpoint as discovery found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the configuration or discovery writes it.
    pub address: Address,
    /// What is connected to.
    pub socket: Socket,
    /// The same host under addresses of its other family, the first to try first.
    pub others: Vec<SocketAddr>,
    /// From 1 to 1000.
    pub weight: u32,
    /// From 0 to 9; the lowest first.
    pub priority: u8,
}

impl Settings {
    /// How often names are looked up.
    pub fn refresh(&self) -> Refresh {
        match self {
            Settings::None {} => Refresh::default(),
            Settings::Dns { refresh, .. }
            | Settings::DnsSrv { refresh, .. }
            | Settings::File { refresh, .. } => *refresh,
        }
    }

    /// The name server to ask, where the configuration names one.
    pub fn server(&self) -> Option<SocketAddr> {
        match self {
            Settings::None {} => None,
            Settings::Dns { server, .. }
            | Settings::DnsSrv { server, .. }
            | Settings::File { server, .. } => *server,
        }
    }

    /// The file that lists them, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Settings::File { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The word of `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Settings::None {} => "none",
            Settings::Dns { .. } => "dns",
            Settings::DnsSrv { .. } => "dns_srv",
            Settings::File { .. } => "file",
        }
    }

    /// Where endpoints come from besides those that are written, in words.
    pub fn source(&self) -> Option<String> {
        match self {
            Settings::None {} | Settings::Dns { .. } => None,
            Settings::DnsSrv { name, .. } => Some(format!("those of the SRV name {}", name.as_str())),
            Settings::File { path, .. } => Some(format!("those of the file {}", path.display())),
        }
    }

    /// Whether there are endpoints besides those that are written.
    pub const fn brings_endpoints(&self) -> bool {
        matches!(self, Settings::DnsSrv { .. } | Settings::File { .. })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings::Dns { refresh: Refresh::default(), server: None }
    }
}

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(&text);
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(fits);
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(format!(
                "{text:?} is not a name of DNS; give one such as \"_http._tcp.payments.internal\""
            ));
        }
        Ok(Self(text))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl TryFrom<String> for Refresh {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(None));
        }
        let span = text.parse::<Span>().map_err(|error| format!("{error}, or \"auto\""))?;
        if !(Span::from_secs(1)..=Span::from_secs(3600)).contains(&span) {
            return Err(format!(
                "\"{span}\" is out of range; give a time from \"1s\" to \"1h\", or \"auto\""
            ));
        }
        Ok(Self(Some(span)))
    }
}

impl From<Refresh> for String {
    fn from(refresh: Refresh) -> String {
        refresh.0.map_or_else(|| "auto".to_owned(), |span| span.to_string())
    }
}

impl JsonSchema for Refresh {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Refresh".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "auto" }, generator.subschema_for::<Span>()] })
    }
}

impl JsonSchema for Name {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DnsName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "a name of DNS" })
    }
}
