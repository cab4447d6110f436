//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{OrNone, Span, within};

/// `connections`: bounds of an upstream's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Connections in all, without those that streams hold. From 1 to 1,000,000. Default 1024.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: u32,
    /// How long an idle connection is kept. Default `"4s"`.
    pub idle_timeout: Span,
    /// How long a connection is used at all, or `"none"`. Default `"none"`.
    pub max_age: OrNone<Span>,
    /// Requests that a connection serves; 0: any number. Default 0.
    pub max_requests: u32,
    /// Streams at the same time. From 1 to 1,000,000. Default 1000.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_streams: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max: 1024,
            idle_timeout: Span::from_secs(4),
            max_age: OrNone(None),
            max_requests: 0,
            max_streams: 1000,
        }
    }
}
