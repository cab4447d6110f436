//! Retries: which failed attempts are followed by another, and why the others are not.
//!
//! Safe by proof, for every method: what surely was not processed (a connect that failed, a pooled connection that
//! was closed before a byte was written). It costs the upstream nothing, so it pays no budget and, where there is
//! another endpoint, waits no back-off. Safe by method: what is idempotent (RFC 9110 §9.2.2), or carries an
//! `Idempotency-Key` where the upstream is known to honour it. Never: once a byte of the answer went out.
//!
//! Here is the decision alone. Not here: how much load retries may add (`budget`), the wait before one (`backoff`),
//! which endpoint is next (`upstream::balance`), whether the time that is left suffices (`deadline`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::failure::{GrpcSet, GrpcStatus, StatusPattern, StatusSet, grpc_name};
use super::mode::Mode;
use super::{deadline, words};
use crate::reason::Reason;
use crate::units::{Ratio, Size, Span, span_within, within};

/// `[upstream.NAME.retry]`: which failed attempts are followed by another.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// Attempts in all, the first included. From 1 to 20. Default 4.
    #[serde(deserialize_with = "within::<_, 1, 20>")]
    #[schemars(range(min = 1, max = 20))]
    pub attempts: u32,
    /// What is followed by a retry: reasons, statuses and classes of them, `grpc:STATUS`. Default `["connect_error", "tls_error",
    /// "upstream_reset", "attempt_timeout", "500", "502", "503", "504", "grpc:UNAVAILABLE"]`.
    pub on: Vec<Trigger>,
    /// Methods whose requests may be sent twice. What was surely not processed is retried for every method.
    /// Default `["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]`.
    pub methods: Vec<MethodName>,
    /// gRPC methods that may be sent twice: `"pkg.Service/Method"`, `"pkg.Service/Get*"`. Default `[]`.
    pub grpc_methods: Vec<GrpcMethods>,
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
    /// Retries a second that are allowed however few the first attempts. From 0 to 10,000. Default 2.
    #[serde(deserialize_with = "within::<_, 0, 10_000>")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_per_second: u32,
    /// How long a first attempt's deposit lasts. From 1 s to 60 s. Default `"10s"`.
    #[serde(deserialize_with = "span_within::<_, 1000, 60_000>")]
    pub window: Span,
}

impl Default for Settings {
    fn default() -> Self {
        use Reason::{AttemptTimeout, ConnectError, TlsError, UpstreamReset};
        let reasons = [ConnectError, TlsError, UpstreamReset, AttemptTimeout].map(Trigger::Reason);
        let statuses = [500, 502, 503, 504].map(|status| Trigger::Status(StatusPattern::Status(status)));
        let unavailable = Trigger::Grpc(GrpcStatus::UNAVAILABLE);
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            attempts: 4,
            on: [&reasons[..], &statuses[..], &[unavailable]].concat(),
            methods: ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"].map(|name| MethodName(name.into())).to_vec(),
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

/// What a retry may follow: a word of `on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Trigger {
    /// An attempt that ended without an answer, for this reason.
    Reason(Reason),
    /// An answer with such a status.
    Status(StatusPattern),
    /// An answer with this gRPC status.
    Grpc(GrpcStatus),
}

/// The reasons for which an attempt can end without an answer.
const REASONS: [Reason; 7] = [
    Reason::ConnectError,
    Reason::DnsError,
    Reason::TlsError,
    Reason::UpstreamReset,
    Reason::ProtocolError,
    Reason::AttemptTimeout,
    Reason::UpstreamStalled,
];

/// A method: a token (RFC 9110 §5.6.2), in upper case where it is a method that everybody knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MethodName(Box<str>);

/// The methods that everybody knows.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

/// A gRPC method, `pkg.Service/Method`, or all that begin alike, `pkg.Service/Get*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrpcMethods {
    /// Without the star.
    prefix: Box<str>,
    /// It ended in a star.
    all: bool,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It ended without an answer.
    Reason(Reason),
    /// An answer with this status.
    Status(u16),
    /// An answer with this gRPC status.
    Grpc(u8),
}

/// Why a retry was not made. A reason for each failed attempt that is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Retries add enough load already (`budget`: the cap).
    Budget,
    /// Retries do not help at the moment (`budget`: the yield gate).
    Yield,
    /// No free slot.
    Concurrency,
    /// The request's body is larger than `request_buffer`.
    BodyTooLarge,
    /// `server.max_buffer` is used up.
    BufferMemory,
    /// Too little time is left.
    Deadline,
    /// The method must not be sent twice.
    Method,
    /// The caller retries by itself.
    CallerRetries,
    /// The upstream asked not to, or not so soon.
    Pushback,
    /// The breaker refuses.
    Breaker,
    /// All attempts were made, or every endpoint has refused.
    Attempts,
    /// A byte of the answer went out.
    HeadSent,
}

impl Skip {
    /// All of them, in the order of their indices.
    #[rustfmt::skip]
    pub const ALL: [Skip; 12] = {
        use Skip::*;
        [
            Budget, Yield, Concurrency, BodyTooLarge, BufferMemory, Deadline, Method, CallerRetries, Pushback,
            Breaker, Attempts, HeadSent,
        ]
    };

    /// Its word in the metric.
    pub const fn label(self) -> &'static str {
        match self {
            Skip::Budget => "budget",
            Skip::Yield => "yield",
            Skip::Concurrency => "concurrency",
            Skip::BodyTooLarge => "body_too_large",
            Skip::BufferMemory => "buffer_memory",
            Skip::Deadline => "deadline",
            Skip::Method => "method",
            Skip::CallerRetries => "caller_retries",
            Skip::Pushback => "pushback",
            Skip::Breaker => "breaker",
            Skip::Attempts => "attempts",
            Skip::HeadSent => "head_sent",
        }
    }

    /// Its place in [`Skip::ALL`], for tables of series.
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl Cause {
    /// Its word in metrics: a reason, a status, or the name of a gRPC status.
    pub fn label(self) -> Cow<'static, str> {
        match self {
            Cause::Reason(reason) => reason.label().into(),
            Cause::Status(status) => status.to_string().into(),
            Cause::Grpc(code) => grpc_name(code).into(),
        }
    }
}

/// Compiled [`Settings`].
#[derive(Clone, Debug)]
pub struct Rules {
    attempts: u32,
    reasons: u32,
    statuses: StatusSet,
    grpc: GrpcSet,
    methods: Box<[MethodName]>,
    grpc_methods: Box<[GrpcMethods]>,
    idempotency_key: bool,
    respect_caller_retries: bool,
}

const _: () = assert!(Reason::ALL.len() <= 32, "Rules::reasons has a bit for each reason");

impl Rules {
    /// The rules that `settings` ask for.
    pub fn new(settings: &Settings) -> Self {
        let on = || settings.on.iter().copied();
        Self {
            attempts: settings.attempts,
            reasons: on().fold(0, |set, trigger| match trigger {
                Trigger::Reason(reason) => set | 1 << reason.index(),
                _ => set,
            }),
            statuses: on()
                .filter_map(
                    |trigger| if let Trigger::Status(pattern) = trigger { Some(pattern) } else { None },
                )
                .collect(),
            grpc: on()
                .filter_map(
                    |trigger| if let Trigger::Grpc(status) = trigger { Some(status.code()) } else { None },
                )
                .collect(),
            methods: settings.methods.clone().into(),
            grpc_methods: settings.grpc_methods.clone().into(),
            idempotency_key: settings.idempotency_key,
            respect_caller_retries: settings.respect_caller_retries,
        }
    }

    /// Attempts in all, the first included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether `on` names this cause.
    pub fn retries_on(&self, cause: Cause) -> bool {
        match cause {
            Cause::Reason(reason) => self.reasons >> reason.index() & 1 == 1,
            Cause::Status(status) => self.statuses.contains(status),
            Cause::Grpc(code) => self.grpc.contains(code),
        }
    }

    /// Whether such a request may be sent twice. `grpc_path`: the path of a gRPC request, whose method is always
    /// POST and says nothing.
    pub fn method_allows(&self, method: &[u8], has_idempotency_key: bool, grpc_path: Option<&[u8]>) -> bool {
        (self.idempotency_key && has_idempotency_key)
            || match grpc_path {
                Some(path) => self.grpc_methods.iter().any(|methods| methods.hold(path)),
                None => self.methods.iter().any(|allowed| allowed.0.as_bytes() == method),
            }
    }
}

/// A failed attempt, as far as a retry depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    /// Why it failed.
    pub cause: Cause,
    /// The upstream surely did not process it.
    pub unprocessed: bool,
    /// [`Rules::method_allows`] the request to be sent twice.
    pub method_ok: bool,
    /// Whether the request can be sent again, and why not.
    pub replayable: Result<(), Skip>,
    /// Attempts made so far, this one included.
    pub attempt: u32,
    /// What the caller said about its own retries (`x-retry-attempt`).
    pub caller_attempt: u32,
    /// When the upstream may be asked again, where it said so.
    pub retry_after: Option<Duration>,
    /// The upstream asked not to be asked again, or the answer is another Outrigger's refusal.
    pub pushback_never: bool,
    /// What is left of the request's time.
    pub left: Duration,
    /// There is a usable endpoint that this request has not tried.
    pub other_endpoint: bool,
    /// The upstream's usable endpoints.
    pub endpoints: u32,
    /// Every attempt of this request so far was surely not processed.
    pub all_unprocessed: bool,
    /// This request has had its one free retry without another endpoint.
    pub free_used: bool,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another attempt.
    Retry {
        /// It must be paid from the budget.
        pays: bool,
        /// It waits no back-off.
        at_once: bool,
    },
    /// None, though this is what retries are for: pass the failure on and count why.
    Skip(Skip),
    /// None: this is an answer.
    Answer,
}

/// Decides what follows a failed attempt. What is asked after this: time (`deadline::Feasibility`), the budget
/// (where it pays), breaker and slot.
pub fn decide(rules: &Rules, failed: &Failed) -> Decision {
    // A connection that was closed before a byte was written says nothing of the upstream: sending once more on a
    // fresh one is a new connect, not a retry, and needs no permission. Else idle connections would become errors.
    let stale = failed.unprocessed && failed.cause == Cause::Reason(Reason::UpstreamReset);
    let reconnects = stale && !failed.free_used;
    if !reconnects {
        if !rules.retries_on(failed.cause) {
            return Decision::Answer;
        }
        if rules.respect_caller_retries && failed.caller_attempt > 0 {
            return Decision::Skip(Skip::CallerRetries);
        }
        if failed.attempt >= rules.attempts {
            return Decision::Skip(Skip::Attempts);
        }
    }
    if !failed.unprocessed && !failed.method_ok {
        return Decision::Skip(Skip::Method);
    }
    if let Err(skip) = failed.replayable {
        return Decision::Skip(skip);
    }
    if failed.pushback_never || failed.retry_after.is_some_and(|after| after > failed.left) {
        return Decision::Skip(Skip::Pushback);
    }
    if failed.left < deadline::Feasibility::LEAST {
        return Decision::Skip(Skip::Deadline);
    }
    match failed {
        Failed { unprocessed: false, .. } => Decision::Retry { pays: true, at_once: false },
        _ if reconnects => Decision::Retry { pays: false, at_once: true },
        Failed { other_endpoint: true, .. } => Decision::Retry { pays: false, at_once: true },
        Failed { endpoints: 0..=1, free_used, .. } => Decision::Retry { pays: *free_used, at_once: false },
        // Each of several endpoints has refused it: asking them again is load without hope.
        Failed { all_unprocessed: true, .. } => Decision::Skip(Skip::Attempts),
        _ => Decision::Retry { pays: true, at_once: false },
    }
}

impl FromStr for Trigger {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("grpc:") {
            return name.parse().map(Trigger::Grpc);
        }
        if let Some(reason) = REASONS.into_iter().find(|reason| reason.label() == text) {
            return Ok(Trigger::Reason(reason));
        }
        if text.trim_start_matches('!').starts_with(|c: char| c.is_ascii_digit()) {
            return text.parse().map(Trigger::Status);
        }
        if text.parse::<GrpcStatus>().is_ok() {
            return Err(format!("{text:?} is a gRPC status; write \"grpc:{text}\""));
        }
        if Reason::ALL.iter().any(|reason| reason.label() == text) {
            let labels: Vec<_> = REASONS.iter().map(|reason| reason.label()).collect();
            return Err(format!(
                "no attempt fails with {text:?}; the reasons to retry on are {}",
                labels.join(", ")
            ));
        }
        let what = "a reason, a status (\"503\", \"5xx\") or a gRPC status (\"grpc:UNAVAILABLE\")";
        Err(words::unknown(text, what, REASONS.iter().map(|reason| reason.label())))
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Reason(reason) => f.write_str(reason.label()),
            Trigger::Status(pattern) => pattern.fmt(f),
            Trigger::Grpc(status) => write!(f, "grpc:{status}"),
        }
    }
}

impl FromStr for MethodName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_token) {
            return Err(format!("{text:?} is not a method; write a word such as \"GET\""));
        }
        match METHODS.iter().find(|known| known.eq_ignore_ascii_case(text) && **known != text) {
            Some(known) => Err(format!("methods are told apart by case; {text:?} should be {known:?}")),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl GrpcMethods {
    /// Whether `path` (`/pkg.Service/Method`) is one of them.
    fn hold(&self, path: &[u8]) -> bool {
        path.strip_prefix(b"/")
            .and_then(|path| path.strip_prefix(self.prefix.as_bytes()))
            .is_some_and(|rest| rest.is_empty() || (self.all && !rest.contains(&b'/')))
    }
}

impl FromStr for GrpcMethods {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = |part: &str, dots: bool| {
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || (dots && byte == b'.'))
        };
        let (prefix, all) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        match prefix.split_once('/') {
            Some((service, method))
                if !service.is_empty()
                    && name(service, true)
                    && name(method, false)
                    && (all || !method.is_empty()) =>
            {
                Ok(Self { prefix: prefix.into(), all })
            }
            Some(("", rest)) if rest.contains('/') => {
                Err(format!("{text:?} begins with a slash; write {:?}", &text[1..]))
            }
            _ => Err(format!(
                "{text:?} is not a gRPC method; write \"pkg.Service/Method\", or \"pkg.Service/Get*\" for all \
                 that begin so"
            )),
        }
    }
}

impl fmt::Display for GrpcMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, if self.all { "*" } else { "" })
    }
}

words::as_text!(Trigger);
words::as_text!(MethodName);
words::as_text!(GrpcMethods);

impl JsonSchema for Trigger {
    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut words: Vec<_> = REASONS.iter().map(|reason| reason.label().to_owned()).collect();
        words.extend((1..=16).map(|code| format!("grpc:{}", grpc_name(code))));
        let status = generator.subschema_for::<StatusPattern>();
        json_schema!({
            "anyOf": [{ "enum": words }, status],
            "description": "a reason, a status (\"503\", \"5xx\"), or a gRPC status (\"grpc:UNAVAILABLE\")"
        })
    }
}

impl JsonSchema for MethodName {
    fn schema_name() -> Cow<'static, str> {
        "Method".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "description": "a method, such as \"GET\"" })
    }
}

impl JsonSchema for GrpcMethods {
    fn schema_name() -> Cow<'static, str> {
        "GrpcMethods".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^([\w.]+/(\w+|\w*\*)|.*\$\{.*)$",
            "description": "\"pkg.Service/Method\", or \"pkg.Service/Get*\" for all that begin so"
        })
    }
}

#[cfg(test)]
mod tests;
