//! The target `response` for cargo-fuzz.
#![no_main]

#[path = "../response.rs"]
mod response;
#[path = "../pieces.rs"]
mod pieces;
#[path = "../request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|data: &[u8]| response::response(data));
