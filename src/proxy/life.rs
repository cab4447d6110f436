//! Whether the process serves, drains or refuses: one word that every connection looks at before it answers.
//!
//! Not here: when it changes (`runtime::drain`).

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// How far the process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// As usual.
    Serving,
    /// Requests are served, and every answer tells its client to go elsewhere next time.
    Draining,
    /// `drain_timeout` has passed: requests are answered with `draining`.
    Refusing,
}

/// The stage of the process; only ever moves on.
#[derive(Debug, Default)]
pub struct Life(AtomicU8);

impl Life {
    /// How far the process has come.
    pub fn stage(&self) -> Stage {
        match self.0.load(Relaxed) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Refusing,
        }
    }

    /// Answers tell their clients to go elsewhere from now on.
    pub fn drain(&self) {
        self.0.fetch_max(Stage::Draining as u8, Relaxed);
    }

    /// Requests are refused from now on.
    pub fn refuse(&self) {
        self.0.fetch_max(Stage::Refusing as u8, Relaxed);
    }
}
