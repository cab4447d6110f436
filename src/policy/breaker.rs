//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::mode::Mode;
use crate::units::{Ratio, Span};

/// `[upstream.NAME.breaker]`: when to stop sending to an upstream that keeps failing.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// `binary` opens and closes; `graded` rejects a share (as in the SRE book). Default `binary`.
    pub kind: Kind,
    /// Which outcomes count. Default `{ kind = "time", size = "10s" }`.
    pub window: Window,
    /// Outcomes in the window below which it never opens; at least 1. Default 20.
    pub min_requests: u32,
    /// The ratio of failures at which it opens. Default 0.5.
    pub failure_ratio: Ratio,
    /// A success slower than this is slow. Default: none is.
    pub slow_request: Option<Span>,
    /// The ratio of slow requests at which it opens. Default 1.0.
    pub slow_ratio: Ratio,
    /// How long it stays open: `base` the first time, doubled each time up to `max`.
    /// Default `{ base = "1s", max = "30s" }`.
    pub open_for: OpenFor,
    /// Probes let through at once when it is half-open, and good answers that it takes; from 1 to 100.
    /// Default 5.
    pub half_open_requests: u32,
}

/// The kind of breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Open or closed.
    #[default]
    Binary,
    /// Rejects the share that fails.
    Graded,
}

/// `window`: which outcomes count.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Window {
    /// Those of the last `size`, from 1 s to 10 m, in ten buckets.
    Time {
        /// How far back.
        size: Span,
    },
    /// The last `size` of them, from 1 to 10,000.
    Count {
        /// How many.
        size: u32,
    },
}

/// `open_for`: how long the breaker stays open.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OpenFor {
    /// The first time. Default `"1s"`.
    pub base: Span,
    /// The longest. Default `"30s"`.
    pub max: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            kind: Kind::Binary,
            window: Window::default(),
            min_requests: 20,
            failure_ratio: Ratio::new(0.5),
            slow_request: None,
            slow_ratio: Ratio::ONE,
            open_for: OpenFor::default(),
            half_open_requests: 5,
        }
    }
}

impl Default for Window {
    fn default() -> Self {
        Window::Time { size: Span::from_secs(10) }
    }
}

impl Default for OpenFor {
    fn default() -> Self {
        Self { base: Span::from_secs(1), max: Span::from_secs(30) }
    }
}
