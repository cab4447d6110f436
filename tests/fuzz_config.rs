//! The configuration's fuzz target as an ordinary test: on the example files, and on what becomes of them when
//! pieces are cut out, doubled, swapped and overwritten.
//!
//! `FUZZ_SEED` runs a seed again, `FUZZ_ITERATIONS` runs longer.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[path = "fuzz/config.rs"]
pub mod config;

const CORPUS: [&str; 2] =
    [include_str!("../config/reference.toml"), include_str!("../config/outrigger.toml")];

/// Bytes that mean something in TOML.
const TELLING: &[u8] = b"[]{}=\"'#.,\n -+_09eax${}:\\\t\r\0\xc3\xa9";

#[test]
fn any_bytes_as_a_configuration() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    for iteration in 0..number("FUZZ_ITERATIONS").unwrap_or(500) {
        let mut data = vec![rng.u8(..), rng.u8(..)];
        data.extend(mutated(CORPUS[rng.usize(..CORPUS.len())].as_bytes(), &mut rng));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| config::config(&data))) {
            eprintln!("FUZZ_SEED={seed}, iteration {iteration}, input {}", data.escape_ascii());
            resume_unwind(panic);
        }
    }
}

/// `text` without its comments now and then, and with a few changes.
fn mutated(text: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut text = text.to_vec();
    for _ in 0..rng.usize(..6) {
        let from = rng.usize(..=text.len());
        let to = (from + rng.usize(..60)).min(text.len());
        match rng.u8(..5) {
            0 => drop(text.drain(from..to)),
            1 => {
                let piece = text[from..to].to_vec();
                let at = rng.usize(..=text.len());
                drop(text.splice(at..at, piece));
            }
            2 => drop(text.splice(from..from, [TELLING[rng.usize(..TELLING.len())]])),
            3 => {
                text[from..to].iter_mut().take(3).for_each(|byte| *byte = TELLING[rng.usize(..TELLING.len())])
            }
            _ => text.truncate(text.len() - rng.usize(..=text.len() / 4)),
        }
    }
    text
}
