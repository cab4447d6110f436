//! The demo's Outrigger: the real one, on real sockets, from a configuration that everybody can read.

use std::net::SocketAddr;

use super::policies::Policies;
use crate::runtime::Owner;
use crate::{config, runtime};

/// Ports of listener and admin API, where nobody else has them.
const USUAL_PORTS: (u16, u16) = (8080, 9900);
/// The system finds some.
const ANY_PORTS: (u16, u16) = (0, 0);

/// A running Outrigger in front of the replicas.
pub(super) struct Sidecar {
    /// Where its clients connect.
    pub(super) listener: SocketAddr,
    /// Where its `/metrics` are.
    pub(super) admin: SocketAddr,
    /// What it was started with.
    pub(super) config: String,
    replicas: Vec<SocketAddr>,
    running: runtime::Running,
}

impl Sidecar {
    /// Starts it; it serves when this returns. On the usual ports, or on any if one of them is taken.
    pub(super) async fn start(replicas: Vec<SocketAddr>) -> Result<Sidecar, String> {
        match Self::start_on(USUAL_PORTS, &replicas).await {
            Ok(sidecar) => Ok(sidecar),
            Err(_) => Self::start_on(ANY_PORTS, &replicas).await,
        }
    }

    async fn start_on(ports: (u16, u16), replicas: &[SocketAddr]) -> Result<Sidecar, String> {
        let config = configuration(replicas, ports);
        let loaded =
            config::parse(&config, "demo.toml", &|_| None).map_err(|problems| problems.one_line())?;
        // It waits while it starts, so it gets a thread of its own.
        let running = tokio::task::spawn_blocking(|| runtime::start(loaded, None, Owner::Other))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let listener = running.listeners().first().and_then(|(_, address)| address.tcp());
        let listener = listener.expect("the configuration has one of TCP");
        let admin = running.admin();
        Ok(Sidecar { listener, admin, config, replicas: replicas.to_vec(), running })
    }

    /// What its policies have done so far.
    pub(super) fn policies(&self) -> Policies {
        Policies::read(&self.running.metrics(), &self.replicas)
    }

    /// Ends it at once.
    pub(super) async fn stop(self) {
        let stop = || self.running.stop();
        let _ = tokio::task::spawn_blocking(stop).await; // a panic there has been reported
    }
}

/// Times that fit a service that answers in 40 ms and a story that is told in half a minute.
fn configuration(replicas: &[SocketAddr], (listener, admin): (u16, u16)) -> String {
    let endpoints: Vec<_> = replicas.iter().map(|address| format!("\"{address}\"")).collect();
    let endpoints = endpoints.join(", ");
    format!(
        r#"[[listener]]
address = "127.0.0.1:{listener}"
upstream = "payments"

[upstream.payments]
endpoints = [{endpoints}]
timeout = {{ connect = "200ms", attempt = "400ms", request = "900ms" }}
concurrency.limit = {{ kind = "fixed", max = 24 }} # they work on 18 at once
breaker.window = {{ kind = "time", size = "1s" }}
breaker.open_for = {{ base = "500ms", max = "500ms" }}

[server]
workers = 1
[admin]
address = "127.0.0.1:{admin}"
[telemetry]
log = {{ level = "error" }}
access_log = {{ only = "off" }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_valid_and_gives_no_warning() {
        let replicas = [9101, 9102, 9103].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let loaded = config::parse(&configuration(&replicas, ANY_PORTS), "demo.toml", &|_| None);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    }
}
