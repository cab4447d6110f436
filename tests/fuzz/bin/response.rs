//! The target `response` for cargo-fuzz.
#![no_main]

#[path = "../heads.rs"]
mod heads;
#[path = "../pieces.rs"]
mod pieces;
#[path = "../response.rs"]
mod response;

libfuzzer_sys::fuzz_target!(|data: &[u8]| response::response(data));
