//! How long each part of a request may take, and whether an attempt that was cut off says something.
//!
//! Arithmetic only. Not here: the timers themselves (`timer`), the caller's own deadline (`deadline`).

use std::time::Duration;

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
    /// Whether the file says `request`, in any layer: to gRPC calls it applies only then, since many servers
    /// send a stream's head with its first message. (Of `attempt`, that it is there says the same.)
    #[serde(skip)]
    pub request_is_written: bool,
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
            request_is_written: false,
        }
    }
}

impl Settings {
    /// How long one attempt may take, to the response's head: `attempt`, or half of `request` while a retry may
    /// follow; never more than is `left` of the request.
    pub fn attempt_timeout(&self, left: Duration, retry_may_follow: bool) -> Duration {
        match self.attempt {
            Some(attempt) => left.min(*attempt),
            None if retry_may_follow => left.min(*self.request / 2),
            None => left,
        }
    }
}

/// Whether an attempt that was cut off after `ran`, by a timeout or because its client left, says something about
/// its upstream, or its endpoint: only if it had its whole configured `attempt` timeout, or ran much longer than
/// answers take while no other one came either.
///
/// Otherwise one caller with a tiny deadline would open the breaker for all, or those who poll for long and leave, who
/// look up while they type: what is slow about them is their route. `silence` is how long ago the last good answer came
/// to anybody. Who is dead or stalled answers nobody; who is well may have nobody to answer for a moment, so a short
/// silence says nothing: where others ask three times a second, one in twenty is longer than `SILENT`. That it is noticed
/// so much later costs little, since a breaker's window is ten times as long.
pub fn is_evidence(ran: Duration, attempt: Duration, p99: Option<Duration>, silence: Duration) -> bool {
    const SILENT: Duration = Duration::from_secs(1);
    ran >= attempt || is_late(ran, p99) && silence >= ran.max(SILENT)
}

/// Whether `ran` is much longer than answers take. `p99` is that of good times (`Latency::usual_p99`), as far as it is
/// known: a dead upstream shows none, and one that dies shows a bad one.
pub fn is_late(ran: Duration, p99: Option<Duration>) -> bool {
    const AT_LEAST: Duration = Duration::from_millis(100);
    p99.is_some_and(|p99| ran > (p99 * 3).max(AT_LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_gets_its_timeout_but_never_more_than_is_left() {
        let unwritten = Settings { request: Span::from_secs(10), ..Settings::default() };
        let written = Settings { attempt: Some(Span::from_secs(2)), ..unwritten.clone() };
        let cases = [
            // why                                        settings    left    retry   timeout
            ("half of `request` while a retry may follow", &unwritten, 10_000, true, 5000),
            ("less is left than that half", &unwritten, 3000, true, 3000),
            ("the last attempt gets all that is left", &unwritten, 8000, false, 8000),
            ("as written", &written, 10_000, true, 2000),
            ("as written, though it is the last", &written, 10_000, false, 2000),
            ("less is left than what is written", &written, 500, true, 500),
        ];
        for (why, settings, left, retry_may_follow, timeout) in cases {
            let answer = settings.attempt_timeout(Duration::from_millis(left), retry_may_follow);
            assert_eq!(answer, Duration::from_millis(timeout), "{why}");
        }
    }

    #[test]
    fn an_early_end_is_no_evidence() {
        let cases = [
            // why                                          ran   p99        silence evidence
            ("it had its whole timeout", 5000, None, 9000, true),
            ("that is enough, whatever others get", 5000, Some(1), 0, true),
            ("a caller's tiny deadline, nothing known", 4000, None, 9000, false),
            ("it ran much longer than answers take", 400, Some(100), 1000, true),
            ("it ran as long as slow answers do", 300, Some(100), 9000, false),
            ("fast upstream: 100 ms are always granted", 90, Some(1), 9000, false),
            ("fast upstream: more than that is late", 101, Some(1), 1000, true),
            ("somebody else was answered meanwhile", 3000, Some(1), 2990, false),
            ("nobody was, for as long as it ran", 3000, Some(1), 3000, true),
            ("it may be that nobody else has asked", 400, Some(1), 900, false),
        ];
        for (why, ran, p99, silence, evidence) in cases {
            let [ran, silence] = [ran, silence].map(Duration::from_millis);
            let p99 = p99.map(Duration::from_millis);
            assert_eq!(is_evidence(ran, Duration::from_secs(5), p99, silence), evidence, "{why}");
        }
    }
}
