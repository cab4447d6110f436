//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Span;

/// `queue`: who waits for a slot, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Places; 0: nobody waits. Up to 100,000. Default 100.
    pub size: u32,
    /// The longest wait. Default `"500ms"`.
    pub timeout: Span,
    /// Who is next: `fifo`. Default `fifo`.
    pub order: Order,
}

/// The order of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Who came first goes first.
    #[default]
    Fifo,
}

impl Default for Settings {
    fn default() -> Self {
        Self { size: 100, timeout: Span::from_millis(500), order: Order::Fifo }
    }
}
