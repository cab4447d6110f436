//! Outrigger: a resilience sidecar. Clients point at its local port; every request runs through the policy
//! chain of the upstream it goes to.
//!
//! The rooms, from the top; each uses only what stands below it:
//!
//! - [`cli`]: one file for each subcommand.
//! - [`runtime`]: workers, listening sockets, reload, signals, drain.
//! - [`admin`]: the admin HTTP API; gets a `Control` handle and knows no runtime.
//! - [`config`]: TOML text to checked values: assembles the rooms' settings, diagnostics, lint, schema.
//! - [`proxy`]: one request's way: accept, route, the chain, attempts, bodies, the response. Start reading at
//!   `proxy/exchange.rs`.
//! - [`upstream`]: who can answer and how to reach them: endpoints, balancing, pools, names.
//! - [`tls`]: TLS in both roles: certificates from files, the handshake, and what was wrong with which certificate.
//! - [`http1`]: HTTP/1.1 on the wire, both roles: bytes in, messages out; knows no policy and no route.
//! - [`policy`]: the state machines: pure, synchronous; time and randomness are parameters.
//! - [`telemetry`]: metrics, access log, the log of events.
//! - [`transport`]: the stream of bytes below a protocol: TCP or a Unix socket, in clear text or in TLS; and the PROXY
//!   protocol, which says whose it is.
//! - [`timer`]: the coarse timer wheel of a worker.
//! - [`reason`]: why Outrigger answered itself.
//! - [`units`]: durations, sizes and ratios as the configuration writes them.

pub mod admin;
pub mod cli;
pub mod config;
pub mod http1;
pub mod policy;
pub mod proxy;
pub mod reason;
pub mod runtime;
pub mod telemetry;
pub mod timer;
pub mod tls;
pub mod transport;
pub mod units;
pub mod upstream;
