//! Stories: the real binary between clients and upstreams that do right and wrong, byte by byte, on loopback.
//!
//! One program, so that the harness is compiled and linked once; a file for each capability.
//! `cargo test --test stories retries::` runs one of them.

pub mod support;

mod bad_upstream;
mod breaker;
mod http2;
mod malformed;
mod path;
mod retries;
