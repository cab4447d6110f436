//! The limit of open files: raised at start, and `server.max_connections` held against it.
//!
//! A client connection takes one descriptor, and its request a second one towards an upstream. A sidecar that
//! runs out of them accepts nobody and reaches nobody; so what the limit does not allow is not promised.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors for everything else: sockets that listen, logs, epoll, the admin API, the file watch.
const OWN: u64 = 128;

/// Raises the soft limit of open files to the hard one. Returns what is in force; `None` is no limit.
///
/// Programs that use `select` break with a high limit, which is why the soft one is low; this one does not.
pub(super) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// How many client connections are taken: `max_connections`, or what `limit` allows, with a warning.
pub(super) fn connections(limit: Option<u64>, config: &Config) -> usize {
    let upstreams = config.upstream.values().map(|upstream| upstream.connections);
    let demand = Demand {
        clients: config.server.max_connections.into(),
        upstreams: upstreams.map(|bounds| u64::from(bounds.max) + u64::from(bounds.max_streams)).sum(),
    };
    let allowed = demand.allowed(limit);
    if let (true, Some(limit)) = (allowed < demand.clients, limit) {
        tracing::warn!(
            limit,
            "the limit of open files allows {allowed} client connections, not the {} of server.max_connections; \
             raise it to {} (`ulimit -n`, LimitNOFILE=, or the container's) or set server.max_connections = {allowed}",
            demand.clients,
            demand.files(),
        );
    }
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

/// Connections that the configuration allows.
#[derive(Clone, Copy, Debug)]
struct Demand {
    /// With clients.
    clients: u64,
    /// With all upstreams together.
    upstreams: u64,
}

impl Demand {
    /// The descriptors for all of it. No client needs more than one upstream connection at a time (one of HTTP/2
    /// may, and is bounded by the upstreams' own bounds).
    fn files(self) -> u64 {
        self.clients + self.upstreams.min(self.clients) + OWN
    }

    /// How many client connections `limit` descriptors allow; at least one.
    fn allowed(self, limit: Option<u64>) -> u64 {
        let Some(limit) = limit.filter(|limit| *limit < self.files()) else { return self.clients };
        let ours = limit.saturating_sub(OWN);
        (ours - self.upstreams.min(ours / 2)).clamp(1, self.clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_bounds_client_connections() {
        #[rustfmt::skip]
        let cases = [
            // why                                           limit            clients  upstreams  allowed
            ("no limit allows all",                          None,            10_000,  2_024,     10_000),
            ("plenty",                                       Some(1_048_576), 10_000,  2_024,     10_000),
            ("just enough",                                  Some(12_152),    10_000,  2_024,     10_000),
            ("one too few",                                  Some(12_151),    10_000,  2_024,     9_999),
            ("upstreams that no client can use do not count", Some(20_128),   10_000,  99_000,    10_000),
            ("a small machine serves fewer, both ways",      Some(1_024),     10_000,  2_024,     448),
            ("never none at all",                            Some(10),        10_000,  2_024,     1),
        ];
        for (why, limit, clients, upstreams, allowed) in cases {
            assert_eq!(Demand { clients, upstreams }.allowed(limit), allowed, "{why}");
        }
    }
}
