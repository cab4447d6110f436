//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::mode::Mode;
use crate::policy::queue;
use crate::units::{Ratio, Span};

/// `[upstream.NAME.concurrency]`: how many attempts may be in flight.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// The limit. Default `{ kind = "fixed", max = 1000 }`.
    pub limit: Limit,
    /// Who waits for a slot. Default `{ size = 100, timeout = "500ms", order = "fifo" }`.
    pub queue: queue::Settings,
    /// A body that runs longer is a stream and gives its slot back. Default `"5s"`.
    pub stream_after: Span,
}

/// `limit`: where the number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Limit {
    /// The number in the configuration.
    Fixed {
        /// Attempts in flight; from 1 to 1,000,000.
        max: u32,
    },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            limit: Limit::default(),
            queue: queue::Settings::default(),
            stream_after: Span::from_secs(5),
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Limit::Fixed { max: 1000 }
    }
}
