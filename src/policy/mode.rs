//! Off, shadow, enforce: whether a policy's decision is carried out for one request.
//!
//! Handled once, around all policies: a policy itself does not know its mode. It has one state, fed by all
//! outcomes, whatever the mode is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Ratio;

/// What a policy may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It decides, and its decision holds.
    #[default]
    Enforce,
    /// It decides, counts and logs, and the request passes.
    Shadow,
    /// It is not asked.
    Off,
}

impl Mode {
    /// The mode for one request: of an enforced policy, requests beyond `rollout` are shadowed. `request` is a
    /// hash of the request's id, so that one request fares alike in all its attempts.
    pub fn of(self, rollout: Ratio, request: u64) -> Mode {
        let share = (request >> 11) as f64 / (1u64 << 53) as f64;
        match self {
            Mode::Enforce if share >= rollout.get() => Mode::Shadow,
            mode => mode,
        }
    }
}
