//! settings only so far
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::mode::Mode;
use crate::units::{Ratio, Size, Span};

/// `[upstream.NAME.retry]`: which failed attempts are followed by another.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// Attempts in all, the first included. From 1 to 20. Default 4.
    pub attempts: u32,
    /// What is followed by a retry: reasons, statuses, `grpc:STATUS`. Default `["connect_error", "tls_error",
    /// "upstream_reset", "attempt_timeout", "500", "502", "503", "504", "grpc:UNAVAILABLE"]`.
    pub on: Vec<String>,
    /// Methods whose requests may be sent twice. What was surely not processed is retried for every method.
    /// Default `["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]`.
    pub methods: Vec<String>,
    /// gRPC methods that may be sent twice: `"pkg.Service/Method"`, `"pkg.Service/Get*"`. Default `[]`.
    pub grpc_methods: Vec<String>,
    /// This upstream honours `Idempotency-Key`: requests that carry one count as idempotent. Default false.
    pub idempotency_key: bool,
    /// The wait before a retry. Default `{ base = "25ms", max = "1s", jitter = "full" }`.
    pub backoff: BackoffSettings,
    /// How much load retries may add. Default `{ ratio = 0.25, min_per_second = 2, window = "10s" }`.
    pub budget: BudgetSettings,
    /// A request with `x-retry-attempt` above 0 is not retried here. Default true.
    pub respect_caller_retries: bool,
    /// A request body up to this size can be sent again. Default `"64KiB"`.
    pub request_buffer: Size,
    /// A response up to this size is checked whole before its head goes out; `"0B"`: off. Default `"16KiB"`.
    pub response_buffer: Size,
}

/// `backoff`: the wait before retry number n is drawn from `base` times 2^n, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackoffSettings {
    /// The first wait, before jitter. Default `"25ms"`.
    pub base: Span,
    /// The longest wait. Default `"1s"`.
    pub max: Span,
    /// `full`, `equal`, `decorrelated` or `none`. Default `full`.
    pub jitter: Jitter,
}

/// How the wait is drawn (after AWS's "Exponential Backoff And Jitter").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    /// Anything from nothing to the whole wait.
    #[default]
    Full,
    /// Half of it fixed, half random.
    Equal,
    /// From `base` to three times the wait before.
    Decorrelated,
    /// The whole wait.
    None,
}

/// `budget`: how much load retries may add (after Finagle's retry budget).
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetSettings {
    /// Retries allowed for each first attempt. Default 0.25.
    pub ratio: Ratio,
    /// Retries a second that are allowed however few the first attempts. Default 2.
    pub min_per_second: u32,
    /// How long a first attempt's deposit lasts; from 1 s to 60 s. Default `"10s"`.
    pub window: Span,
}

impl Default for Settings {
    fn default() -> Self {
        let on = [
            "connect_error",
            "tls_error",
            "upstream_reset",
            "attempt_timeout",
            "500",
            "502",
            "503",
            "504",
            "grpc:UNAVAILABLE",
        ];
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            attempts: 4,
            on: on.map(String::from).to_vec(),
            methods: ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"].map(String::from).to_vec(),
            grpc_methods: Vec::new(),
            idempotency_key: false,
            backoff: BackoffSettings::default(),
            budget: BudgetSettings::default(),
            respect_caller_retries: true,
            request_buffer: Size::from_bytes(64 << 10),
            response_buffer: Size::from_bytes(16 << 10),
        }
    }
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self { base: Span::from_millis(25), max: Span::from_secs(1), jitter: Jitter::Full }
    }
}

impl Default for BudgetSettings {
    fn default() -> Self {
        Self { ratio: Ratio::new(0.25), min_per_second: 2, window: Span::from_secs(10) }
    }
}
