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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_an_enforced_policy_is_rolled_out_in_part() {
        let cases = [
            // why                                  mode           rollout  request   in force
            ("in force for all", Mode::Enforce, 1.0, u64::MAX, Mode::Enforce),
            ("in force for none", Mode::Enforce, 0.0, 0, Mode::Shadow),
            ("the first half of all hashes", Mode::Enforce, 0.5, u64::MAX / 2 - 4096, Mode::Enforce),
            ("the second half", Mode::Enforce, 0.5, u64::MAX / 2 + 4096, Mode::Shadow),
            ("shadow stays shadow", Mode::Shadow, 1.0, 0, Mode::Shadow),
            ("off stays off", Mode::Off, 1.0, 0, Mode::Off),
        ];
        for (why, mode, rollout, request, in_force) in cases {
            assert_eq!(mode.of(Ratio::new(rollout), request), in_force, "{why}");
        }
    }

    proptest! {
        /// Widening a rollout never takes a request out of it.
        #[test]
        fn a_wider_rollout_holds_the_narrower_one(a in 0.0..1.0f64, b in 0.0..1.0f64, request: u64) {
            let (narrow, wide) = (Ratio::new(a.min(b)), Ratio::new(a.max(b)));
            if Mode::Enforce.of(narrow, request) == Mode::Enforce {
                prop_assert_eq!(Mode::Enforce.of(wide, request), Mode::Enforce);
            }
        }
    }
}
