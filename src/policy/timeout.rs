//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::mode::Mode;
use crate::units::{Ratio, Span};

/// `[upstream.NAME.timeout]`: how long each part of a request may take.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// Making a connection to an endpoint. Default `"1s"`.
    pub connect: Span,
    /// All attempts together, to the response's head. Default `"15s"`.
    pub request: Span,
    /// One attempt, to the response's head. Default: half of `request` while a retry may follow, else what is
    /// left of it.
    pub attempt: Option<Span>,
    /// Without progress of a body, in either direction. Default `"30s"`.
    pub idle: Span,
    /// The same for streams: `text/event-stream`, gRPC, and a body that became a stream by `stream_after`.
    /// Default `"1h"`.
    pub stream_idle: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            connect: Span::from_secs(1),
            request: Span::from_secs(15),
            attempt: None,
            idle: Span::from_secs(30),
            stream_idle: Span::from_secs(3600),
        }
    }
}
