//! From the endpoints that the configuration writes to addresses that can be connected.
//!
//! Addresses need no look-up. Names are looked up by the system's resolver at load, on reload and every 30 s,
//! off the workers. Each address of a name is an endpoint of its own; where a name has IPv4 and IPv6 addresses
//! the IPv4 ones are used (most services listen on one family, and a refused connect would cost every other
//! request). A look-up that fails keeps the last answer; a name that never resolved leaves the upstream without
//! that endpoint and stops nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use super::endpoint::{Address, Socket};
use super::{Upstream, compose};

/// How often names are looked up.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// The longest that a look-up may take before the last answer is kept.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a look-up came to: addresses, at least one, or why there are none.
pub type Answer = Result<Vec<SocketAddr>, String>;

/// Looks up the names among `upstream`'s endpoints and puts the answers in force. Never on a worker.
pub async fn refresh(upstream: &Upstream) {
    for entry in &upstream.settings.endpoints {
        if entry.address.name().is_some() {
            let answer = look_up(&entry.address).await;
            take(upstream, &entry.address, answer);
        }
    }
}

/// Asks the system's resolver. Never on a worker.
pub async fn look_up(name: &Address) -> Answer {
    let Some(name) = name.name() else { return Err("it is no name".to_owned()) };
    let lookup = tokio::net::lookup_host(name);
    match tokio::time::timeout(TIMEOUT, lookup).await {
        Ok(Ok(sockets)) => Some(sockets.collect::<Vec<_>>())
            .filter(|sockets| !sockets.is_empty())
            .ok_or_else(|| "it has no addresses".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

/// Puts the answer for one of `upstream`'s names in force; without addresses the last answer stays.
pub fn take(upstream: &Upstream, name: &Address, answer: Answer) {
    let entries = &upstream.settings.endpoints;
    if !entries.iter().any(|entry| entry.address == *name) {
        return;
    }
    let known = upstream.endpoints.load_full();
    if let Err(why) = &answer {
        let was_resolved = known.usable.iter().any(|choice| choice.endpoint.address == *name);
        tracing::warn!(
            upstream = &*upstream.name,
            %name,
            reason = "dns_error",
            kept_last_answer = was_resolved,
            "name does not resolve: {why}"
        );
    }
    let (found, unresolved) = compose(entries, &known, Some((name, answer.map(usable))));
    upstream.set_endpoints(found, unresolved);
}

fn usable(mut sockets: Vec<SocketAddr>) -> Vec<Socket> {
    if sockets.iter().any(SocketAddr::is_ipv4) {
        sockets.retain(SocketAddr::is_ipv4);
    }
    sockets.sort_unstable();
    sockets.dedup();
    sockets.into_iter().map(Socket::Tcp).collect()
}
