//! Metrics, the access log, the log of events.
//!
//! - [`metrics`]: what is counted, for whom, and the page that Prometheus reads.
//! - [`cells`]: the counters and histograms underneath, which cost a worker a nanosecond or two.
//! - [`access_log`]: one line for each request, written by hand in batches.
//! - [`log`]: the log of events, behind the `tracing` macros.
//!
//! Nothing here waits for a disk, a pipe or a scrape on a worker's time. Not here: what the policies' words mean;
//! they come in from above.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Ratio;

pub mod access_log;
pub mod cells;
mod exposition;
pub mod labels;
pub mod log;
pub mod metrics;
mod process;
mod spool;
mod timestamp;

/// `[telemetry]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The log of events, on stderr. Default `{ level = "info", format = "auto" }`.
    pub log: LogSettings,
    /// One line for each request. Default `{ path = "stdout", only = "failures", sample = 0.0 }`.
    pub access_log: AccessLogSettings,
}

/// `log`: the log of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`. Default `info`.
    pub level: Level,
    /// `auto` (text on a terminal, else JSON), `text` or `json`. Default `auto`.
    pub format: Format,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the usual words
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// `access_log`: one line for each request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLogSettings {
    /// `stdout`, `stderr` or a file. Default `stdout`.
    pub path: String,
    /// `all`, `failures` or `off`. Default `failures`.
    pub only: Only,
    /// The ratio of the other requests that get a line too. Default 0.0.
    pub sample: Ratio,
}

impl Format {
    /// What `auto` means for lines that go to something that is a terminal, or is not.
    fn resolve(self, is_terminal: bool) -> Format {
        match self {
            Format::Auto if is_terminal => Format::Text,
            Format::Auto => Format::Json,
            format => format,
        }
    }
}

/// Which requests get a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    /// Every request.
    All,
    /// Those that failed, were rejected or were retried.
    #[default]
    Failures,
    /// None.
    Off,
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self { path: "stdout".to_owned(), only: Only::Failures, sample: Ratio::new(0.0) }
    }
}
