//! Stories: the real binary between clients and upstreams that do right and wrong, byte by byte, on loopback.
//!
//! One program, so that the harness is compiled and linked once; a file for each capability.
//! `cargo test --test stories retries::` runs one of them.

pub mod support;

mod answers;
mod bad_upstream;
mod balance;
mod breaker;
mod client_leaves;
mod coalescing;
mod concurrency;
mod connections;
mod discovery;
mod drain;
mod everything_at_once;
mod failing_replicas;
mod fallback;
mod faults;
mod grpc;
mod health;
mod hedging;
mod http2;
mod http2_abuse;
mod http2_upstream;
mod ingress;
mod life;
mod malformed;
mod modes;
mod outlier;
mod path;
mod pool;
mod proxy_protocol;
mod queue;
mod rate_limit;
mod real_components;
mod reload;
mod retries;
mod shedding;
mod split_and_mirror;
mod steps;
mod timeouts;
mod tls;
mod unix_sockets;
mod upgrades;
