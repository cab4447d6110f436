//! The target `proxy_protocol` for cargo-fuzz.
#![no_main]

#[path = "../pieces.rs"]
mod pieces;
#[path = "../proxy_protocol.rs"]
mod proxy_protocol;

libfuzzer_sys::fuzz_target!(|data: &[u8]| proxy_protocol::proxy_protocol(data));
