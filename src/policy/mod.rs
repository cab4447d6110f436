//! The state machines of resilience: pure and synchronous. Time, randomness and outcomes are parameters; a
//! state and an answer come out. Not here: anything that waits, reads or sends (`proxy`, `upstream`).
//!
//! Where a policy is one for the whole process, its type is a thin shell around the pure machine: a mutex that
//! is held for some ten nanoseconds, which no number of workers that a sidecar has can make a bottleneck.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod concurrency;
pub mod condition;
pub mod deadline;
pub mod failure;
pub mod fallback;
pub mod fault;
pub mod freshness;
pub mod hedge;
mod histogram;
pub mod key;
pub mod latency;
pub mod limit;
pub mod mode;
pub mod priority;
pub mod queue;
pub mod rate_limit;
pub mod retry;
pub mod shed;
pub mod timeout;
mod words;

/// The first instant of made-up time: any will do, if it is always the same one.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "std offers no other way to get an instant")]
fn start() -> std::time::Instant {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *START.get_or_init(std::time::Instant::now)
}

#[cfg(test)]
mod tests;
