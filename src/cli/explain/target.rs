//! The request that is asked about, as routes see it.

use std::net::IpAddr;

use crate::proxy::listener::Address;
use crate::proxy::route::{self, Match, Request, Route, normal_path};

/// What of the request routes look at.
pub(super) struct Target<'a> {
    pub(super) method: &'a str,
    /// The Host that the client sends.
    pub(super) host: String,
    pub(super) path_and_query: &'a str,
    /// Names in lower case.
    pub(super) headers: &'a [(String, String)],
}

impl Target<'_> {
    /// The value of the first header of this name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a route of these conditions takes it.
    fn takes(&self, matches: Match) -> bool {
        let route = Route::new(&route::Settings { matches, ..route::Settings::any("") });
        route.matches(&Request {
            method: self.method.as_bytes(),
            host: self.host.as_bytes(),
            normal_path: &normal_path(self.path_and_query.as_bytes()),
            has_header: &|name, value| {
                self.headers.iter().any(|(known, found)| known.eq_ignore_ascii_case(name) && found == value)
            },
        })
    }

    /// What keeps a route from taking it: each condition is asked by itself.
    pub(super) fn differs(&self, wanted: &Match) -> Vec<String> {
        let any = Match::default;
        let mut differs = Vec::new();
        if !self.takes(Match { host: wanted.host.clone(), ..any() }) {
            differs.push(format!("host is not {}", wanted.host.as_deref().unwrap_or_default()));
        }
        if !self.takes(Match { path_prefix: wanted.path_prefix.clone(), ..any() }) {
            let prefix = wanted.path_prefix.as_deref().unwrap_or_default();
            differs.push(format!("path is not below {prefix}"));
        }
        if !self.takes(Match { methods: wanted.methods.clone(), ..any() }) {
            differs.push(format!("method is not {}", wanted.methods.join(" or ")));
        }
        for (name, value) in &wanted.headers {
            if !self.takes(Match { headers: [(name.clone(), value.clone())].into(), ..any() }) {
                differs.push(format!("header {name} is not {value:?}"));
            }
        }
        differs
    }
}

/// Whether a client that connects to this address and port reaches the listener at `address`; one at a Unix socket
/// says that it asks this host.
pub(super) fn reaches(address: &Address, ip: IpAddr, port: u16) -> bool {
    match address {
        Address::Tcp(address) => {
            address.port() == port && (address.ip() == ip || address.ip().is_unspecified())
        }
        Address::Unix(_) => ip.is_loopback(),
    }
}
