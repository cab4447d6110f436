//! The limit of open files: raised at start, and `server.max_connections` held against it.
//!
//! A client connection takes one descriptor, and its request a second one towards an upstream. A sidecar that
//! runs out of them accepts nobody and reaches nobody; so what the limit does not allow is not promised.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
pub(super) fn bounded(limit: Option<u64>, max_connections: u32) -> usize {
    let allowed = allowed(limit, max_connections);
    if let (Some(allowed), Some(limit)) = (allowed, limit) {
        let needed = u64::from(max_connections) * 2 + OWN;
        tracing::warn!(
            limit,
            "the limit of open files allows {allowed} client connections, not the {max_connections} of \
             server.max_connections; raise it to {needed} (`ulimit -n`, LimitNOFILE=, or the container's) or set \
             server.max_connections = {allowed}"
        );
    }
    allowed.unwrap_or(max_connections) as usize
}

/// How many client connections `limit` descriptors allow, if that is fewer than `max_connections`.
fn allowed(limit: Option<u64>, max_connections: u32) -> Option<u32> {
    let affordable = limit?.saturating_sub(OWN) / 2;
    let affordable = u32::try_from(affordable).unwrap_or(u32::MAX).max(1);
    (affordable < max_connections).then_some(affordable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_connection_needs_two_descriptors() {
        let cases = [
            // why                                limit           asked   allowed
            ("no limit allows all", None, 10_000, None),
            ("plenty", Some(1_048_576), 10_000, None),
            ("just enough", Some(20_128), 10_000, None),
            ("one too few", Some(20_127), 10_000, Some(9_999)),
            ("a small machine still serves", Some(1_024), 10_000, Some(448)),
            ("never none at all", Some(10), 10_000, Some(1)),
        ];
        for (why, limit, asked, expected) in cases {
            assert_eq!(allowed(limit, asked), expected, "{why}");
        }
    }
}
