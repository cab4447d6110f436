//! The target `request` for cargo-fuzz.
#![no_main]

#[path = "../heads.rs"]
mod heads;
#[path = "../pieces.rs"]
mod pieces;
#[path = "../request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|data: &[u8]| request::request(data));
