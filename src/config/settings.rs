//! What a whole configuration says, once its layers are merged.
//!
//! The settings of a policy, a listener or an upstream live with what they set; here they are put together, and
//! beside them stand the two tables that are nobody else's: the process and its admin API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::proxy::listener;
use crate::units::{Size, Span, within};
use crate::{telemetry, upstream};

/// A whole configuration, layers merged: what stands here is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Config {
    /// `[server]`.
    pub server: Server,
    /// `[admin]`.
    pub admin: Admin,
    /// `[telemetry]`.
    pub telemetry: telemetry::Settings,
    /// `[[listener]]`; at least one.
    pub listener: Vec<listener::Settings>,
    /// `[upstream.NAME]`, by name.
    pub upstream: BTreeMap<String, upstream::Settings>,
}

/// `[server]`: the process as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Worker threads; 0: one for each core that the cgroup allows, at most 4. From 0 to 64. Default 0.
    #[serde(deserialize_with = "within::<_, 0, 64>")]
    #[schemars(range(min = 0, max = 64))]
    pub workers: u32,
    /// From SIGTERM to the end of everything. Default `"20s"`.
    pub drain_timeout: Span,
    /// How long connections that have gone over to another protocol (WebSocket) are left alone while draining: from
    /// `/drain` on for ingress, from SIGTERM on for egress. Default `"10s"`.
    pub upgrade_drain_timeout: Span,
    /// Client connections; beyond it accepting stops. From 1 to 1,000,000. Default 10000.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: u32,
    /// All replay and response buffers together; beyond it requests pass unbuffered. Default `"32MiB"`.
    pub max_buffer: Size,
    /// Reload when the file changes. Default true.
    pub watch: bool,
    /// `ip:port` of the service whose egress this is: draining waits until it is gone. Default: none.
    #[serde(deserialize_with = "some_address")]
    pub service: Option<SocketAddr>,
}

/// `[admin]`: the admin HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// `ip:port` of the admin API. Default `"127.0.0.1:9900"`.
    #[serde(deserialize_with = "listener::address")]
    pub address: SocketAddr,
    /// `ip:port` that serves only `/metrics`, `/livez` and `/readyz`. Default: none.
    #[serde(deserialize_with = "some_address")]
    pub metrics_address: Option<SocketAddr>,
    /// A file with the bearer token that everything else needs on an address that is not loopback.
    /// Default: none.
    pub token_file: Option<PathBuf>,
    /// Upstreams without which the sidecar is not ready. Default `[]`.
    pub ready_requires: Vec<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            workers: 0,
            drain_timeout: Span::from_secs(20),
            upgrade_drain_timeout: Span::from_secs(10),
            max_connections: 10_000,
            max_buffer: Size::from_bytes(32 << 20),
            watch: true,
            service: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 9900)),
            metrics_address: None,
            token_file: None,
            ready_requires: Vec::new(),
        }
    }
}

fn some_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    listener::address(deserializer).map(Some)
}
