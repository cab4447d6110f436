//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[upstream.NAME.balance]`: which endpoint is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `least_request`: of two drawn at random the one with fewer requests in flight for its weight.
    /// Default `least_request`.
    pub kind: Kind,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Of two drawn at random the one with fewer requests in flight for its weight.
    #[default]
    LeastRequest,
}
