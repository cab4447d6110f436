//! The admin HTTP API: how it goes, what runs, and a few buttons.
//!
//! - `control`: what the API asks of whoever runs the proxy; this room knows no runtime.
//! - `guard`: who may ask: addresses, tokens, `Host` and `Origin`.
//! - `faults`: what a fault is that somebody sends.
//! - `endpoints`: the pages, one line each, and what they answer.
//! - `server`: connections, and their bounds.
//!
//! It runs on a thread of its own and speaks hyper's HTTP/1: nothing here is on a request's way through the proxy,
//! and a worker that is stuck does not keep `/livez` from saying so.

mod control;
mod endpoints;
mod faults;
mod guard;
mod server;

pub use control::{Control, Readiness, Reload};
pub use guard::Scope;
pub use server::serve;

#[cfg(test)]
mod tests;
