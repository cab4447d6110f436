//! One request's way: accept, route, the chain, attempts, bodies, the response.
//!
//! Start reading at [`exchange`] (a request) and [`attempt`] (one sending of it).

pub mod activity;
pub mod answer;
pub mod attempt;
pub mod body;
pub mod chain;
pub mod client;
pub mod coalesce;
pub mod connection;
pub mod context;
pub mod exchange;
pub mod fallback;
pub mod fault;
pub mod grpc;
pub mod hedge;
pub mod http1;
pub mod http2;
pub mod kept;
pub mod life;
pub mod listener;
pub mod meter;
pub mod mirror;
pub mod open;
pub mod panics;
pub mod queue;
pub mod race;
pub mod rate_limit;
pub mod record;
pub mod request;
pub mod response;
pub mod retries;
pub mod route;
pub mod send;
pub mod shared;
pub mod shed;
pub mod snapshot;
pub mod store;
pub mod tee;
pub mod tunnel;
pub mod upward;
pub mod wire;
pub mod words;
pub mod worker;
