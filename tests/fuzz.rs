//! The fuzz targets as ordinary tests: each runs on a corpus and on inputs that are mutated from it.
//!
//! Each run takes another seed; a failure prints it with the input. `FUZZ_SEED` runs that one again, and
//! `FUZZ_ITERATIONS` runs longer. The same targets stand ready for cargo-fuzz in `tests/fuzz`:
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz request`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[path = "fuzz/body.rs"]
pub mod body;
#[path = "fuzz/corpus.rs"]
pub mod corpus;
#[path = "fuzz/heads.rs"]
pub mod heads;
#[path = "fuzz/mutate.rs"]
pub mod mutate;
#[path = "fuzz/pieces.rs"]
pub mod pieces;
#[path = "fuzz/proxy_protocol.rs"]
pub mod proxy_protocol;
#[path = "fuzz/request.rs"]
pub mod request;
#[path = "fuzz/response.rs"]
pub mod response;

/// Runs `target` on the corpus as it is and on what becomes of it, each behind random bytes that steer the target.
fn hunt(target: fn(&[u8]), corpus: &[&[u8]]) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let iterations = number("FUZZ_ITERATIONS").unwrap_or(100_000);
    let mut rng = fastrand::Rng::with_seed(seed);
    for iteration in 0..iterations {
        let input = match corpus.get(iteration as usize) {
            Some(entry) => entry.to_vec(),
            None => mutate::mutated(corpus, &mut rng),
        };
        let data = [&[rng.u8(..), rng.u8(..)], input.as_slice()].concat();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&data))) {
            eprintln!("FUZZ_SEED={seed}, iteration {iteration}, input {}", data.escape_ascii());
            resume_unwind(panic);
        }
    }
}

#[test]
fn any_bytes_as_a_request() {
    hunt(request::request, corpus::REQUESTS);
}

#[test]
fn any_bytes_as_a_response() {
    hunt(response::response, corpus::RESPONSES);
}

#[test]
fn any_bytes_as_a_body() {
    hunt(body::body, corpus::BODIES);
}

#[test]
fn any_bytes_as_a_proxy_header() {
    hunt(proxy_protocol::proxy_protocol, corpus::PROXY_HEADERS);
}
