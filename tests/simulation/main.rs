//! The limits of `policy::limit` under made-up time: the real gate, queue, breaker, retries and their budget before a
//! modelled upstream. Every claim about a limiter is a row here, and its curve is in `curves/` (text and SVG).
//!
//! - `world`: clients, sidecars and their events. Poisson arrivals, open loop; all that a run may vary is in `Run`.
//! - `upstream`: workers that work on for callers that have left.
//! - `record`, `curve`: what a run showed; the snapshots.
//! - `gradient`, `healthy`, `kinds`, `together`, `always`: the rows.
//!
//! What it is not: a network, a scheduler. What a sidecar costs and what
//! real sockets add is in `benches/failing`.

mod always;
mod chance;
mod curve;
mod gradient;
mod healthy;
mod kinds;
mod record;
mod together;
mod upstream;
mod world;

use outrigger::policy::limit::Settings;

use crate::record::Record;
use crate::world::Run;

const DEFAULT: Settings = Settings::Gradient { initial: 20, min: 4, max: 1000 };

/// Runs it, and holds the curve to the one in the tree.
fn curve(name: &str, run: &Run) -> Record {
    let record = run.go();
    curve::compare(name, &record);
    record
}

/// Asserts that a measured value lies where it should, and shows it if not.
macro_rules! holds {
    ($value:expr, $($relation:tt)+) => {{
        let value = $value;
        assert!(value $($relation)+, "{} is {value}, not {}", stringify!($value), stringify!($($relation)+));
    }};
}
use holds;
