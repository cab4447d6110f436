//! Whether the process serves, drains or refuses: one word that every connection looks at before it answers.
//!
//! Not here: when it changes (`runtime::drain`).

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

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
pub struct Life {
    stage: AtomicU8,
    ingress_upgrades_ended: AtomicBool,
    egress_upgrades_ended: AtomicBool,
}

impl Life {
    /// How far the process has come.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Relaxed) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Refusing,
        }
    }

    /// Answers tell their clients to go elsewhere from now on.
    pub fn drain(&self) {
        self.stage.fetch_max(Stage::Draining as u8, Relaxed);
    }

    /// Connections that go on in another protocol end: those that came from outside, or those that go there.
    pub fn end_upgrades(&self, ingress: bool) {
        self.upgrades_ended(ingress).store(true, Relaxed);
    }

    /// Whether they are to end.
    pub fn has_ended_upgrades(&self, ingress: bool) -> bool {
        self.upgrades_ended(ingress).load(Relaxed)
    }

    fn upgrades_ended(&self, ingress: bool) -> &AtomicBool {
        if ingress { &self.ingress_upgrades_ended } else { &self.egress_upgrades_ended }
    }

    /// Requests are refused from now on.
    pub fn refuse(&self) {
        self.stage.fetch_max(Stage::Refusing as u8, Relaxed);
    }
}
