//! What of gRPC the path must know: the status of a call, where its messages begin, and how one is ended.
//!
//! A call's kind is written nowhere on the wire. It is taken for unary until it shows otherwise: its client still sends
//! when the answer begins, or a second message of the answer begins, or no deadline bounds it and no answer has begun for
//! `stream_after`, since many servers send a stream's head with its first message. Then it is a stream, gives its slot
//! back and counts under `connections.max_streams`. Messages are counted, never held.

use std::time::Instant;

use super::answer::percent_encoded;
use crate::http1::field::{Fields, Name};
use crate::http1::head::ResponseHead;
use crate::policy::failure::{Classifier, Verdict};
use crate::reason::Error;
use crate::telemetry::metrics::{AttemptOutcome, RequestOutcome};

/// A call on its way, from its answer's head on.
pub struct Call {
    /// When its caller's deadline ends, which bounds all of it.
    pub deadline: Option<Instant>,
    /// Its status, once that is known.
    pub status: Option<u8>,
    /// Whether the answer is one of gRPC, which owes a status.
    pub owes_status: bool,
    /// What has come of its answer.
    pub messages: Messages,
}

/// Counts the messages of a body: each has five bytes in front, a flag and its length.
#[derive(Default)]
pub struct Messages {
    /// How many have begun.
    begun: u32,
    /// Bytes of the one at hand that are still to come.
    left: u32,
    /// How much of the five bytes has come, and the length as far as they say it.
    prefix: (u8, u32),
}

impl Call {
    /// The call that this head answers; its trailers may have come too.
    pub fn new(head: &ResponseHead, status: Option<u8>, deadline: Option<Instant>) -> Self {
        let is_grpc = head.fields.get(Name::ContentType).is_some_and(super::context::is_grpc);
        let owes_status = is_grpc && head.status == 200 && !head.fields.has(Name::GrpcStatus);
        Self { deadline, status, owes_status, messages: Messages::default() }
    }
}

impl Messages {
    /// These bytes come next. Whether a second message has begun among them.
    pub fn follow(&mut self, mut bytes: &[u8]) -> bool {
        let before = self.begun;
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let size = bytes.len().min(self.left as usize);
                self.left -= size as u32;
                bytes = &bytes[size..];
                continue;
            }
            let (seen, length) = self.prefix;
            if seen == 0 {
                self.begun = self.begun.saturating_add(1);
            }
            let length = length << 8 | u32::from(*first);
            // The flag is the first of them, and no part of the length.
            self.prefix = if seen == 0 { (1, 0) } else { (seen + 1, length) };
            if seen == 4 {
                (self.left, self.prefix) = (length, (0, 0));
            }
            bytes = rest;
        }
        before < 2 && self.begun >= 2
    }
}

/// The code in a `grpc-status`.
pub fn status(value: &[u8]) -> Option<u8> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// What an attempt with this status came to: an upstream's failure counts as a 5xx, what is its caller's as a 4xx.
pub fn attempt_outcome(code: u8, classifier: &Classifier) -> AttemptOutcome {
    match classifier.grpc(code) {
        _ if code == 0 => AttemptOutcome::Ok,
        Verdict::Failure => AttemptOutcome::ServerError,
        _ => AttemptOutcome::ClientError,
    }
}

/// The same of a request.
pub fn request_outcome(code: u8, classifier: &Classifier) -> RequestOutcome {
    match classifier.grpc(code) {
        _ if code == 0 => RequestOutcome::Ok,
        Verdict::Failure => RequestOutcome::ServerError,
        _ => RequestOutcome::ClientError,
    }
}

/// The trailers that end a call whose upstream has not ended it.
pub fn trailers(error: &Error) -> Fields {
    let reason = error.reason;
    let detail = if error.detail.is_empty() { reason.title() } else { &error.detail };
    let message = percent_encoded(&format!("{}: {detail}", reason.label()));
    let mut fields = Fields::default();
    let mut push = |known: Name, value: &[u8]| fields.push(known, known.text().as_bytes(), value);
    push(Name::GrpcStatus, error.grpc().to_string().as_bytes());
    push(Name::GrpcMessage, message.as_bytes());
    fields
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a body is cut into pieces, the second message is seen in the piece in which it begins.
        #[test]
        fn messages_are_counted_in_any_pieces(
            sizes in proptest::collection::vec(0usize..20, 0..5),
            cut in 1usize..9,
        ) {
            let mut body = Vec::new();
            for size in &sizes {
                body.extend_from_slice(&[0, 0, 0, 0, *size as u8]);
                body.resize(body.len() + size, 7);
            }
            let mut messages = Messages::default();
            let seen: Vec<bool> = body.chunks(cut).map(|piece| messages.follow(piece)).collect();
            let seen = seen.iter().position(|seen| *seen);
            prop_assert_eq!(messages.begun as usize, sizes.len());
            let second = (sizes.len() >= 2).then(|| (5 + sizes[0]) / cut);
            prop_assert_eq!(seen, second);
        }
    }

    #[test]
    fn a_calls_end_says_why() {
        let error = Error::new(crate::reason::Reason::UpstreamReset, "it broke\noff");
        let fields = trailers(&error);
        assert_eq!(fields.get(Name::GrpcStatus), Some(&b"14"[..]));
        assert_eq!(fields.get(Name::GrpcMessage), Some(&b"upstream_reset: it broke%0Aoff"[..]));
    }
}
