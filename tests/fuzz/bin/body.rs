//! The target `body` for cargo-fuzz.
#![no_main]

#[path = "../body.rs"]
mod body;
#[path = "../pieces.rs"]
mod pieces;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::body(data));
