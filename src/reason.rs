//! Why Outrigger answered a request itself: one enum and its one table.
//!
//! The same word stands in the response, the metric and the log. Every other room asks here for a reason's
//! label, status or gRPC code; nobody keeps a second list. Not here: the words for the outcome of an attempt
//! that an upstream did answer (`telemetry::metrics`).

use std::time::Duration;

/// Why Outrigger made the answer, or ended the message, itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No route matches and the listener names no upstream.
    NoRoute,
    /// One of the upstream's rate limits has no token left for the request.
    RateLimited,
    /// Its priority lies below the cut-off, or the sidecar itself is short of memory or time.
    LoadShed,
    /// The upstream's circuit breaker is open.
    BreakerOpen,
    /// No slot and no queue, or a bound on connections or streams is reached.
    ConcurrencyLimited,
    /// No place in the queue, or the wait could not have ended in time.
    QueueFull,
    /// Waited in the queue in vain.
    QueueTimeout,
    /// The upstream has no endpoint that can be used.
    NoHealthyEndpoint,
    /// The sidecar is leaving, and `drain_timeout` has passed.
    Draining,
    /// No connection to the endpoint could be made.
    ConnectError,
    /// The endpoint's name does not resolve.
    DnsError,
    /// The TLS handshake with the endpoint failed.
    TlsError,
    /// The endpoint broke the connection off.
    UpstreamReset,
    /// The endpoint does not speak HTTP as RFC 9112 has it.
    ProtocolError,
    /// The last attempt ran into its own timeout.
    AttemptTimeout,
    /// The configured `timeout.request` has passed.
    RequestTimeout,
    /// The caller's own deadline has passed, or cannot be met any more.
    DeadlineExceeded,
    /// The client made no progress for `timeout.idle`.
    ClientStalled,
    /// The upstream made no progress for `timeout.idle` or `timeout.stream_idle`.
    UpstreamStalled,
    /// A fault that the configuration, or whoever operates the sidecar, asked for.
    FaultInjected,
    /// The request is malformed or ambiguous.
    BadRequest,
    /// The request's head did not come within `limits.header_timeout`.
    HeaderTimeout,
    /// The request's body is larger than `limits.max_body`.
    BodyTooLarge,
    /// The request's head is larger than `limits.max_header_size` or has more than `limits.max_headers` fields.
    HeaderTooLarge,
    /// CONNECT or TRACE.
    MethodNotAllowed,
    /// The request has passed this process already, or too many others.
    LoopDetected,
    /// The client left before its answer was complete. In metrics and log only.
    ClientDisconnected,
}

/// A gRPC status code (the numbers are gRPC's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the names are gRPC's
pub enum Grpc {
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Internal = 13,
    Unimplemented = 12,
    Unavailable = 14,
}

/// A row of the table: label, status, gRPC code, the token of RFC 9209 for `Proxy-Status`, title.
struct Row(&'static str, u16, Grpc, &'static str, &'static str);

impl Reason {
    /// All reasons, in the order of their discriminants.
    #[rustfmt::skip]
    pub const ALL: [Reason; 27] = {
        use Reason::*;
        [
            NoRoute, RateLimited, LoadShed, BreakerOpen, ConcurrencyLimited, QueueFull, QueueTimeout,
            NoHealthyEndpoint, Draining, ConnectError, DnsError, TlsError, UpstreamReset, ProtocolError,
            AttemptTimeout, RequestTimeout, DeadlineExceeded, ClientStalled, UpstreamStalled, FaultInjected,
            BadRequest, HeaderTimeout, BodyTooLarge, HeaderTooLarge, MethodNotAllowed, LoopDetected,
            ClientDisconnected,
        ]
    };

    /// The only place that knows what a reason means outside.
    #[rustfmt::skip]
    const fn row(self) -> Row {
        use Grpc::*;
        match self {
            Reason::NoRoute            => Row("no_route",            404, Unimplemented,     "destination_not_found",         "No route matches this request"),
            Reason::RateLimited        => Row("rate_limited",        429, ResourceExhausted, "http_request_denied",           "A rate limit is reached"),
            Reason::LoadShed           => Row("load_shed",           503, Unavailable,       "destination_unavailable",       "The request was shed: others are more important while load is too high"),
            Reason::BreakerOpen        => Row("breaker_open",        503, Unavailable,       "destination_unavailable",       "The upstream's circuit breaker is open"),
            Reason::ConcurrencyLimited => Row("concurrency_limited", 503, Unavailable,       "connection_limit_reached",      "The upstream's concurrency limit is reached"),
            Reason::QueueFull          => Row("queue_full",          503, Unavailable,       "connection_limit_reached",      "The upstream's queue has no place that could be served in time"),
            Reason::QueueTimeout       => Row("queue_timeout",       503, Unavailable,       "connection_limit_reached",      "The request waited for a slot in vain"),
            Reason::NoHealthyEndpoint  => Row("no_healthy_endpoint", 503, Unavailable,       "destination_unavailable",       "The upstream has no usable endpoint"),
            Reason::Draining           => Row("draining",            503, Unavailable,       "proxy_internal_response",       "The proxy is shutting down"),
            Reason::ConnectError       => Row("connect_error",       502, Unavailable,       "connection_refused",            "The upstream could not be connected"),
            Reason::DnsError           => Row("dns_error",           502, Unavailable,       "dns_error",                     "The upstream's name does not resolve"),
            Reason::TlsError           => Row("tls_error",           502, Unavailable,       "tls_protocol_error",            "The TLS handshake with the upstream failed"),
            Reason::UpstreamReset      => Row("upstream_reset",      502, Unavailable,       "connection_terminated",         "The upstream broke the connection off"),
            Reason::ProtocolError      => Row("protocol_error",      502, Unavailable,       "http_protocol_error",           "The upstream's answer is not valid HTTP"),
            Reason::AttemptTimeout     => Row("attempt_timeout",     504, DeadlineExceeded,  "http_response_timeout",         "The upstream did not answer within the attempt's timeout"),
            Reason::RequestTimeout     => Row("request_timeout",     504, DeadlineExceeded,  "http_response_timeout",         "The request's timeout has passed"),
            Reason::DeadlineExceeded   => Row("deadline_exceeded",   504, DeadlineExceeded,  "http_response_timeout",         "The caller's deadline has passed or cannot be met"),
            Reason::ClientStalled      => Row("client_stalled",      408, Cancelled,         "http_request_error",            "The client made no progress"),
            Reason::UpstreamStalled    => Row("upstream_stalled",    504, DeadlineExceeded,  "connection_read_timeout",       "The upstream made no progress"),
            Reason::FaultInjected      => Row("fault_injected",      503, Unavailable,       "proxy_internal_response",       "A fault was injected on purpose"),
            Reason::BadRequest         => Row("bad_request",         400, Internal,          "http_request_error",            "The request is malformed"),
            Reason::HeaderTimeout      => Row("header_timeout",      408, Unavailable,       "http_request_error",            "The request's head did not come in time"),
            Reason::BodyTooLarge       => Row("body_too_large",      413, ResourceExhausted, "http_request_error",            "The request's body is too large"),
            Reason::HeaderTooLarge     => Row("header_too_large",    431, ResourceExhausted, "http_request_error",            "The request's header is too large"),
            Reason::MethodNotAllowed   => Row("method_not_allowed",  405, Unimplemented,     "http_request_denied",           "This method is not proxied"),
            Reason::LoopDetected       => Row("loop_detected",       508, Internal,          "proxy_loop_detected",           "The request has come round in a loop"),
            Reason::ClientDisconnected => Row("client_disconnected", 499, Cancelled,         "http_request_error",            "The client left"),
        }
    }

    /// The word for this reason in response, metric and log.
    pub const fn label(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status of the answer.
    pub const fn status(self) -> u16 {
        self.row().1
    }

    /// The gRPC status of the answer to a gRPC request.
    pub const fn grpc(self) -> Grpc {
        self.row().2
    }

    /// The error token for `Proxy-Status` (RFC 9209 §2.3).
    pub const fn proxy_status(self) -> &'static str {
        self.row().3
    }

    /// One sentence for a person, without a full stop.
    pub const fn title(self) -> &'static str {
        self.row().4
    }

    /// The reason's place in [`Reason::ALL`], for tables of series.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A reason with what is known besides: the error that every fallible step of a request's way returns.
#[derive(Clone, Debug)]
pub struct Error {
    /// The reason.
    pub reason: Reason,
    /// When the caller may come back, where that is known.
    pub retry_after: Option<Duration>,
    /// What exactly happened, for the log and the problem body's `detail`. Empty: the title says it all.
    pub detail: std::borrow::Cow<'static, str>,
    /// Which rate limits there are and how they stand, where one of them is the reason.
    pub quota: Option<Box<Quota>>,
    /// It did not happen by itself: the policies see `reason`, as if the upstream had done it, and the client is told
    /// [`Reason::FaultInjected`] ([`Error::told`]).
    pub is_injected: bool,
    /// The answer's status and gRPC code, where they are not the reason's own.
    pub answers_as: Option<(u16, u8)>,
}

/// What the fields of draft-ietf-httpapi-ratelimit-headers say.
#[derive(Clone, Debug, Default)]
pub struct Quota {
    /// `RateLimit-Policy`: the limits.
    pub policy: String,
    /// `RateLimit`: how they stand.
    pub state: String,
}

impl Error {
    /// `reason` with a detail for log and answer.
    pub fn new(reason: Reason, detail: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), ..Self::from(reason) }
    }

    /// The same, brought about by an injected fault.
    #[must_use]
    pub fn injected(self) -> Self {
        Self { is_injected: true, ..self }
    }

    /// The reason that client, metrics and log are told.
    pub const fn told_reason(&self) -> Reason {
        if self.is_injected { Reason::FaultInjected } else { self.reason }
    }

    /// The same as client, metrics and log are told it: what was injected says so, with the status it had anyway.
    #[must_use]
    pub fn told(self) -> Self {
        if !self.is_injected {
            return self;
        }
        Self {
            answers_as: Some((self.status(), self.grpc())),
            reason: Reason::FaultInjected,
            is_injected: false,
            ..self
        }
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        self.answers_as.map_or(self.reason.status(), |(status, _)| status)
    }

    /// The gRPC code of the answer to a gRPC request.
    pub fn grpc(&self) -> u8 {
        self.answers_as.map_or(self.reason.grpc() as u8, |(_, grpc)| grpc)
    }

    /// The same, telling when to come back.
    #[must_use]
    pub fn retry_after(self, after: Option<Duration>) -> Self {
        Self { retry_after: after, ..self }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            retry_after: None,
            detail: std::borrow::Cow::Borrowed(""),
            is_injected: false,
            answers_as: None,
            quota: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_holds_every_reason_at_its_index() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index, "{}", reason.label());
        }
        assert_eq!(Reason::ALL.last(), Some(&Reason::ClientDisconnected));
    }

    #[test]
    fn labels_are_unique_and_fit_a_metric() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::ALL.len());
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
