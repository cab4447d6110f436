//! The words that metrics and log use for what happened, besides the reasons (`crate::reason`).
//!
//! Each is an enum whose place in its list is the place of its series, so that the path names a series without a
//! string. Words that belong to a policy come from it, as [`Words`]: telemetry does not know the policies.

use crate::reason::Reason;

/// What a request came to, for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The upstream answered, with a status below 400.
    Ok,
    /// The upstream answered with a 4xx, or the client's request was refused for what it is.
    ClientError,
    /// The upstream answered with a 5xx.
    ServerError,
    /// A policy refused it; nothing was sent, or nothing more.
    Rejected,
    /// Outrigger answered because the upstream did not, or the message was cut.
    Failed,
    /// The client left.
    Cancelled,
}

impl RequestOutcome {
    /// All outcomes.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::ClientError, Self::ServerError, Self::Rejected, Self::Failed, Self::Cancelled];

    /// The word in metric and log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// What an answer that came from the upstream means.
    pub const fn of_status(status: u16) -> Self {
        match status {
            ..400 => Self::Ok,
            400..500 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

/// What one sending of a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A status below 400.
    Ok,
    /// A 4xx.
    ClientError,
    /// A 5xx.
    ServerError,
    /// Cancelled, since the attempt beside it, its hedge or the one that it is the hedge of, was faster.
    Overtaken,
    /// No answer, for this reason.
    Reason(Reason),
}

impl AttemptOutcome {
    /// How many there are.
    pub(super) const COUNT: usize = 4 + Reason::ALL.len();

    /// What an answer with `status` is.
    pub const fn of_status(status: u16) -> Self {
        match status {
            ..400 => Self::Ok,
            400..500 => Self::ClientError,
            _ => Self::ServerError,
        }
    }

    /// The word in the metric.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Overtaken => "overtaken",
            Self::Reason(reason) => reason.label(),
        }
    }

    /// The place of its series.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Ok => 0,
            Self::ClientError => 1,
            Self::ServerError => 2,
            Self::Overtaken => 3,
            Self::Reason(reason) => 4 + reason.index(),
        }
    }

    /// All of them, by index.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Self::Ok, Self::ClientError, Self::ServerError, Self::Overtaken]
            .into_iter()
            .chain(Reason::ALL.into_iter().map(Self::Reason))
    }

    /// Whether attempts come to this in ordinary life, so that its series exists from load on.
    pub(super) const fn is_usual(self) -> bool {
        match self {
            Self::Ok | Self::ClientError | Self::ServerError | Self::Overtaken => true,
            Self::Reason(reason) => matches!(
                reason,
                Reason::ConnectError
                    | Reason::DnsError
                    | Reason::TlsError
                    | Reason::UpstreamReset
                    | Reason::ProtocolError
                    | Reason::AttemptTimeout
                    | Reason::RequestTimeout
                    | Reason::DeadlineExceeded
                    | Reason::ClientStalled
                    | Reason::UpstreamStalled
                    | Reason::ClientDisconnected
            ),
        }
    }
}

/// Whose answer a request got that was hedged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// That of the attempt that was slow.
    First,
    /// The hedge's.
    Hedge,
    /// Neither's: both failed, or the client left before.
    None,
}

impl Winner {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::First, Self::Hedge, Self::None];

    /// The word in metric and log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Hedge => "hedge",
            Self::None => "none",
        }
    }
}

/// Whether a policy's refusal was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request was refused.
    Enforced,
    /// It was only counted, and the request passed.
    Shadowed,
}

impl Effect {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Enforced, Self::Shadowed];

    /// The word in the metric's `mode`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Enforced => "enforce",
            Self::Shadowed => "shadow",
        }
    }
}

/// What a client got in place of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Substitute {
    /// The last good answer.
    Stale,
    /// The answer of another upstream.
    Upstream,
    /// A fixed answer.
    Response,
}

impl Substitute {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stale, Self::Upstream, Self::Response];

    /// The word in the metric's `kind` and in the log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Upstream => "upstream",
            Self::Response => "response",
        }
    }
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // explained in policy::breaker
pub enum BreakerState {
    Closed,
    HalfOpen,
    Ramping,
    Open,
}

impl BreakerState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Closed, Self::HalfOpen, Self::Ramping, Self::Open];

    /// The word in the metric's `to`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Ramping => "ramping",
            Self::Open => "open",
        }
    }

    /// The number that stands for it in `outrigger_breaker_state`.
    pub const fn number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen | Self::Ramping => 1,
            Self::Open => 2,
        }
    }
}

/// Why an endpoint was taken out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// Too large a share of failures.
    FailureRatio,
    /// Its answers take much longer than its peers'.
    Slow,
    /// An answer of it asked for that.
    ImmediateFail,
    /// The live probe that should have brought it back failed: it stays out.
    ProbeFailed,
    /// Its health check fails.
    HealthCheck,
}

impl Ejection {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ConsecutiveFailures,
        Self::FailureRatio,
        Self::Slow,
        Self::ImmediateFail,
        Self::ProbeFailed,
        Self::HealthCheck,
    ];

    /// The word in the metric's `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailureRatio => "failure_ratio",
            Self::Slow => "slow",
            Self::ImmediateFail => "immediate_fail",
            Self::ProbeFailed => "probe_failed",
            Self::HealthCheck => "health_check",
        }
    }
}

/// What a fault that was injected did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It held the request back.
    Delay,
    /// It answered in place of the upstream.
    Abort,
    /// It broke off in place of the upstream.
    Reset,
    /// It broke the answer's body off.
    Truncate,
    /// It held the answer back.
    SlowFirstByte,
    /// It let the answer's body crawl.
    Bandwidth,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Delay, Self::Abort, Self::Reset, Self::Truncate, Self::SlowFirstByte, Self::Bandwidth];

    /// The word in the metric's `kind`: the key of the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Reset => "reset",
            Self::Truncate => "truncate",
            Self::SlowFirstByte => "slow_first_byte",
            Self::Bandwidth => "bandwidth",
        }
    }
}

/// What connecting to an endpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectResult {
    /// There is a connection.
    Ok,
    /// Nobody listens there.
    Refused,
    /// `timeout.connect` passed.
    Timeout,
    /// Anything else: no route to it, no descriptor left, the TLS handshake.
    Error,
}

impl ConnectResult {
    /// All results.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Refused, Self::Timeout, Self::Error];

    /// The word in the metric's `result`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// Why a client's connection was closed before it could ask for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not begin with a header of the PROXY protocol.
    ProxyProtocolMissing,
    /// The header breaks the protocol's rules.
    ProxyProtocolMalformed,
    /// The header was not complete within `limits.header_timeout`.
    ProxyProtocolTimeout,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::ProxyProtocolMissing, Self::ProxyProtocolMalformed, Self::ProxyProtocolTimeout];

    /// The word in the metric's `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ProxyProtocolMissing => "proxy_protocol_missing",
            Self::ProxyProtocolMalformed => "proxy_protocol_malformed",
            Self::ProxyProtocolTimeout => "proxy_protocol_timeout",
        }
    }
}

/// What a client's TLS handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeResult {
    /// A new session.
    Ok,
    /// The client went on with an earlier session.
    Resumed,
    /// `limits.header_timeout` passed.
    Timeout,
    /// No common ground, a certificate that was refused on either side, no TLS at all.
    Error,
    /// The client left without a word, as one does that only looks whether the port is open.
    Left,
}

impl HandshakeResult {
    /// All results.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Resumed, Self::Timeout, Self::Error, Self::Left];

    /// The word in the metric's `result`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Resumed => "resumed",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::Left => "left",
        }
    }
}

/// A bound that was reached, or a thing ignored because it was beyond one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `server.max_connections`: accepting stopped.
    MaxConnections,
    /// `server.max_buffer`: a body passed unbuffered.
    MaxBuffer,
    /// `limits.max_header_size`, of a request.
    MaxHeaderSize,
    /// `limits.max_headers`, of a request.
    MaxHeaders,
    /// `limits.max_body`.
    MaxBody,
    /// `limits.max_streams` of an HTTP/2 client.
    MaxStreams,
    /// `limits.header_timeout`.
    HeaderTimeout,
    /// `limits.idle_timeout`: an idle client connection was ended.
    IdleTimeout,
    /// `connections.max` of an upstream.
    UpstreamConnections,
    /// `connections.max_streams` of an upstream.
    UpstreamStreams,
    /// A response's head larger than what is taken from an upstream.
    ResponseHeaderSize,
    /// A caller's deadline that could not be read, and was ignored.
    DeadlineUnreadable,
    /// A caller's `x-priority` that names no class, and was ignored.
    PriorityUnreadable,
    /// The cap on endpoints with series of their own.
    EndpointSeries,
    /// Connections to the admin address.
    AdminConnections,
    /// Descriptors: accepting failed for want of one.
    OpenFiles,
    /// A request that was not mirrored, since its body was not kept.
    MirrorBody,
    /// A request that was not mirrored, since too many are already.
    Mirrors,
    /// More endpoints than an upstream may have: some are left out.
    Endpoints,
    /// A request without a bucket of its own in a rate limit: its key is missing or too long, or `max_keys` is reached.
    RateLimitKeys,
    /// `max_active` of a fault: a request was spared.
    ActiveFaults,
    /// Streams that an HTTP/2 client reset as soon as it had begun them.
    Http2Resets,
    /// Streams that an HTTP/2 client broke, so that they had to be reset.
    Http2StreamErrors,
    /// A head of an HTTP/2 client far beyond its bound, or in too many pieces.
    Http2Headers,
    /// PING frames of an HTTP/2 client.
    Http2Pings,
    /// SETTINGS frames of an HTTP/2 client.
    Http2Settings,
    /// PRIORITY frames of an HTTP/2 client.
    Http2Priorities,
    /// WINDOW_UPDATE frames of an HTTP/2 client.
    Http2WindowUpdates,
    /// Frames of an HTTP/2 client with nothing in them.
    Http2EmptyFrames,
    /// Small DATA frames of an HTTP/2 client that nobody has read yet, or empty ones.
    Http2SmallFrames,
    /// Frames of an HTTP/2 client that say nothing to a server.
    Http2OtherFrames,
    /// An HTTP/2 client with open streams that did not answer a PING.
    Http2PingTimeout,
    /// An HTTP/2 client that took nothing of what is written to it.
    Http2WriteTimeout,
    /// `fallback.stale.max_size`: kept answers went for others, or an answer was not kept.
    StaleStore,
    /// An answer larger than one may be in the store.
    StaleAnswer,
    /// Requests that wait for the answer to one like them.
    Followers,
    /// An answer too large to be shared.
    SharedAnswer,
}

impl Limit {
    /// All of them.
    #[rustfmt::skip]
    pub const ALL: [Self; 37] = {
        use Limit::*;
        [
            MaxConnections, MaxBuffer, MaxHeaderSize, MaxHeaders, MaxBody, MaxStreams, HeaderTimeout, IdleTimeout,
            UpstreamConnections, UpstreamStreams, ResponseHeaderSize, DeadlineUnreadable, PriorityUnreadable,
            EndpointSeries, AdminConnections, OpenFiles, MirrorBody, Mirrors, Endpoints, RateLimitKeys, ActiveFaults, Http2Resets, Http2StreamErrors, Http2Headers,
            Http2Pings, Http2Settings, Http2Priorities, Http2WindowUpdates, Http2EmptyFrames, Http2SmallFrames,
            Http2OtherFrames, Http2PingTimeout, Http2WriteTimeout, StaleStore, StaleAnswer, Followers, SharedAnswer,
        ]
    };

    /// The word in the metric's `what`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::MaxConnections => "max_connections",
            Self::MaxBuffer => "max_buffer",
            Self::MaxHeaderSize => "max_header_size",
            Self::MaxHeaders => "max_headers",
            Self::MaxBody => "max_body",
            Self::MaxStreams => "max_streams",
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::UpstreamConnections => "upstream_connections",
            Self::UpstreamStreams => "upstream_streams",
            Self::ResponseHeaderSize => "response_header_size",
            Self::DeadlineUnreadable => "deadline_unreadable",
            Self::PriorityUnreadable => "priority_unreadable",
            Self::EndpointSeries => "endpoint_series",
            Self::AdminConnections => "admin_connections",
            Self::OpenFiles => "open_files",
            Self::MirrorBody => "mirror_body",
            Self::Mirrors => "mirrors",
            Self::Endpoints => "endpoints",
            Self::RateLimitKeys => "rate_limit_keys",
            Self::ActiveFaults => "active_faults",
            Self::Http2Resets => "http2_resets",
            Self::Http2StreamErrors => "http2_stream_errors",
            Self::Http2Headers => "http2_headers",
            Self::Http2Pings => "http2_pings",
            Self::Http2Settings => "http2_settings",
            Self::Http2Priorities => "http2_priorities",
            Self::Http2WindowUpdates => "http2_window_updates",
            Self::Http2EmptyFrames => "http2_empty_frames",
            Self::Http2SmallFrames => "http2_small_frames",
            Self::Http2OtherFrames => "http2_other_frames",
            Self::Http2PingTimeout => "http2_ping_timeout",
            Self::Http2WriteTimeout => "http2_write_timeout",
            Self::StaleStore => "stale_store",
            Self::StaleAnswer => "stale_answer",
            Self::Followers => "followers",
            Self::SharedAnswer => "shared_answer",
        }
    }
}

/// The words that policies give to their series. A path asks for a series by the place of its word.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// What a retry was for: the `reason` of `outrigger_retries_total`.
    pub retries: Vec<&'static str>,
    /// Why a retry was not made: the `reason` of `outrigger_retries_skipped_total`.
    pub retries_skipped: Vec<&'static str>,
    /// Why a hedge was not sent: the `reason` of `outrigger_hedges_skipped_total`.
    pub hedges_skipped: Vec<&'static str>,
}

/// The statuses that `outrigger_requests_total` tells apart, ascending; the last stands for all others.
#[rustfmt::skip]
pub(super) const CODES: [&str; 48] = [
    "101", "200", "201", "202", "203", "204", "206", "301", "302", "303", "304", "307", "308", "400", "401",
    "402", "403", "404", "405", "406", "408", "409", "410", "411", "412", "413", "414", "415", "416", "417",
    "421", "422", "425", "426", "428", "429", "431", "451", "499", "500", "501", "502", "503", "504", "505",
    "507", "508", "other",
];

/// The place of each status from 100 to 599 in [`CODES`].
static CODE_INDEX: [u8; 500] = {
    let mut table = [(CODES.len() - 1) as u8; 500];
    let mut index = 0;
    while index < CODES.len() - 1 {
        let digits = CODES[index].as_bytes();
        let code = (digits[0] - b'0') as usize * 100
            + (digits[1] - b'0') as usize * 10
            + (digits[2] - b'0') as usize;
        table[code - 100] = index as u8;
        index += 1;
    }
    table
};

/// The place of `status` in [`CODES`].
#[inline]
pub(super) fn code_index(status: u16) -> usize {
    let place = CODE_INDEX.get(usize::from(status).wrapping_sub(100));
    place.map_or(CODES.len() - 1, |index| usize::from(*index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_place() {
        for status in 0..=u16::MAX {
            let word = CODES[code_index(status)];
            assert!(word == "other" || word == status.to_string(), "{status} is counted as {word}");
        }
        for reason in Reason::ALL {
            assert_ne!(CODES[code_index(reason.status())], "other", "{}", reason.label());
        }
    }

    #[test]
    fn the_place_of_a_word_is_its_number() {
        assert!(RequestOutcome::ALL.iter().enumerate().all(|(index, outcome)| *outcome as usize == index));
        assert!(BreakerState::ALL.iter().enumerate().all(|(index, state)| *state as usize == index));
        assert!(ConnectResult::ALL.iter().enumerate().all(|(index, result)| *result as usize == index));
        assert!(Refused::ALL.iter().enumerate().all(|(index, reason)| *reason as usize == index));
        assert!(HandshakeResult::ALL.iter().enumerate().all(|(index, result)| *result as usize == index));
        assert!(Substitute::ALL.iter().enumerate().all(|(index, kind)| *kind as usize == index));
        assert!(FaultKind::ALL.iter().enumerate().all(|(index, kind)| *kind as usize == index));
        assert!(Ejection::ALL.iter().enumerate().all(|(index, why)| *why as usize == index));
        assert!(Effect::ALL.iter().enumerate().all(|(index, effect)| *effect as usize == index));
        assert!(Limit::ALL.iter().enumerate().all(|(index, limit)| *limit as usize == index));
        assert!(AttemptOutcome::all().enumerate().all(|(index, outcome)| outcome.index() == index));
        assert_eq!(AttemptOutcome::all().count(), AttemptOutcome::COUNT);
    }
}
