//! What an attempt and whoever watches it for a hedge tell each other.
//!
//! An attempt has its request for itself, so only the attempt can copy it for a hedge, between two steps of its own. It
//! does so when it is told that a hedge is due, unless the head of its answer is there by then: what hangs behind a head
//! is not sent again.

use std::cell::Cell;
use std::time::Instant;

use super::request::Request;
use crate::policy::hedge::Skip;

/// What one of two attempts side by side tells, and is told.
#[derive(Default)]
pub struct Race {
    /// A copy of the request is wanted.
    is_due: Cell<bool>,
    copy: Cell<Option<Result<Box<Request>, Skip>>>,
    sent: Cell<Option<Instant>>,
    is_decided: Cell<bool>,
}

impl Race {
    /// A hedge is due: the attempt that has the request is to copy it, in its next step.
    pub fn is_due(&self) {
        self.is_due.set(true);
    }

    /// The copy that it made, or why it could not; none where it has its head already.
    pub fn take_copy(&self) -> Option<Result<Box<Request>, Skip>> {
        self.is_due.set(false);
        self.copy.take()
    }

    /// A step of an attempt that has the request and no head yet.
    pub fn look(&self, request: &Request) {
        if self.is_due.take() {
            self.copy.set(Some(copy(request)));
        }
    }

    /// The attempt has gone up as a whole at `now`.
    pub fn went_up(&self, now: Instant) {
        self.sent.set(Some(now));
    }

    /// When the attempt had gone up.
    pub fn sent(&self) -> Option<Instant> {
        self.sent.get()
    }

    /// One of the two has won: the other is cancelled because of that.
    pub fn decide(&self) {
        self.is_decided.set(true);
    }

    /// Whether one has won.
    pub fn is_decided(&self) -> bool {
        self.is_decided.get()
    }
}

#[cold]
fn copy(request: &Request) -> Result<Box<Request>, Skip> {
    if !request.body.is_read() || request.body.is_replayable().is_err() {
        return Err(Skip::Body);
    }
    request.copy().map(Box::new).ok_or(Skip::BufferMemory)
}
