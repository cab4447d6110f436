//! The answers that Outrigger makes itself: one place, so that status, problem body, `Proxy-Status`, metric and
//! log say the same word.
//!
//! `application/problem+json` (RFC 9457) with `Proxy-Status` (RFC 9209) and `Retry-After`; for gRPC requests a
//! Trailers-Only answer with the matching `grpc-status`. What the answer quotes from the request is its id alone.

use std::time::Duration;

use bytes::Bytes;

use crate::http1::field::{Fields, Name};
use crate::reason::{Error, Reason};

/// An answer that Outrigger made, or that it has as a whole.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// All fields but those of framing.
    pub fields: Fields,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The answer to the request with this id.
    pub fn new(error: &Error, grpc: bool, request_id: &[u8]) -> Self {
        let reason = error.reason;
        let mut fields = Fields::default();
        let detail = if error.detail.is_empty() { reason.title() } else { &error.detail };
        let proxy_status =
            format!("outrigger; error={}; details=\"{}\"", reason.proxy_status(), reason.label());
        let mut push = |known: Name, value: &[u8]| fields.push(known, known.text().as_bytes(), value);
        if grpc {
            push(Name::ContentType, b"application/grpc");
            push(Name::GrpcStatus, error.grpc().to_string().as_bytes());
            push(Name::GrpcMessage, percent_encoded(&format!("{}: {detail}", reason.label())).as_bytes());
            if let Some(after) = error.retry_after {
                push(
                    Name::GrpcRetryPushbackMs,
                    after.as_micros().div_ceil(1000).max(1).to_string().as_bytes(),
                );
            }
        } else {
            push(Name::ContentType, b"application/problem+json");
            if let Some(after) = error.retry_after {
                push(Name::RetryAfter, whole_seconds(after).to_string().as_bytes());
            }
        }
        push(Name::XRequestId, request_id);
        if reason == Reason::MethodNotAllowed {
            fields.push(Name::Other, b"allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH");
        }
        fields.push(Name::Other, b"proxy-status", proxy_status.as_bytes());
        if let Some(quota) = &error.quota {
            fields.push(Name::Other, b"ratelimit-policy", quota.policy.as_bytes());
            fields.push(Name::Other, b"ratelimit", quota.state.as_bytes());
        }
        let body = if grpc {
            Vec::new()
        } else {
            serde_json::json!({
                "type": "about:blank",
                "title": reason.title(),
                "status": error.status(),
                "detail": detail,
                "reason": reason.label(),
                "request_id": String::from_utf8_lossy(request_id),
            })
            .to_string()
            .into_bytes()
        };
        Self { status: if grpc { 200 } else { error.status() }, fields, body: body.into() }
    }
}

/// `Retry-After` is never 0: that would ask for an immediate retry.
pub fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

/// `grpc-message` takes printable ASCII but `%`.
pub fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_word_stands_in_body_and_proxy_status() {
        for reason in Reason::ALL {
            let answer = Answer::new(&reason.into(), false, b"id-1");
            let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("the body is JSON");
            assert_eq!(answer.status, reason.status());
            assert_eq!(body["reason"], reason.label());
            assert_eq!(body["status"], reason.status());
            assert_eq!(body["request_id"], "id-1");
            let proxy_status = answer.fields.find(b"proxy-status").next().expect("there is one");
            assert!(String::from_utf8_lossy(proxy_status).contains(reason.label()));
        }
    }

    #[test]
    fn grpc_gets_its_status_in_the_head() {
        let error = Error::new(Reason::BreakerOpen, "50 % of 20 failed")
            .retry_after(Some(Duration::from_millis(1500)));
        let answer = Answer::new(&error, true, b"id-1");
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(answer.fields.get(Name::GrpcStatus), Some(&b"14"[..]));
        assert_eq!(answer.fields.get(Name::GrpcMessage), Some(&b"breaker_open: 50 %25 of 20 failed"[..]));
        assert_eq!(answer.fields.get(Name::GrpcRetryPushbackMs), Some(&b"1500"[..]));
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_nothing() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (30_000, 30)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }
}
