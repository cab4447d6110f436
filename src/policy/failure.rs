//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[upstream.NAME.failure]`: what is an upstream's fault, for all policies alike.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Statuses that are failures: a status (`"503"`), a class (`"5xx"`), or one taken out again (`"!501"`).
    /// Default `["5xx", "!501", "!505"]`.
    pub status: Vec<String>,
    /// gRPC statuses that are failures. Default `["UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"]`.
    pub grpc: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            status: ["5xx", "!501", "!505"].map(String::from).to_vec(),
            grpc: ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"].map(String::from).to_vec(),
        }
    }
}
