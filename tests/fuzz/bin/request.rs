//! The target `request` for cargo-fuzz.
#![no_main]

#[path = "../request.rs"]
mod request;
#[path = "../pieces.rs"]
mod pieces;

libfuzzer_sys::fuzz_target!(|data: &[u8]| request::request(data));
