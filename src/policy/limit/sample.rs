//! What a limit learns from: one attempt at a time.

use std::time::{Duration, Instant};

/// What an attempt that held a slot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was sent.
    pub began: Instant,
    /// From then to the head of its answer, or to its failure.
    pub latency: Duration,
    /// What that says.
    pub lesson: Lesson,
}

/// What an attempt's end says of the upstream. An attempt that was given up for its caller's sake (the client left, its
/// deadline came before the attempt could show anything) is none: its slot only leaves, since the
/// upstream did not say a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// It did work; its latency counts.
    Served,
    /// It has too much to do: a timeout that is evidence, a 503 with Retry-After or from an Outrigger.
    Overloaded,
    /// An answer that is one caller's matter (429, RESOURCE_EXHAUSTED), or another failure: that it came is all it
    /// says.
    Nothing,
}
