//! The HTTP/1 connection of a client, shared by those who read a request's body from it and those who write its
//! response to it. Both run in one task, so a cell is lock enough.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll};

use crate::http1::connection::Connection;
use crate::http1::encode;
use crate::http1::field::Name;
use crate::http1::head::ResponseHead;

/// Who gets the interim answers (1xx) to a request.
pub trait Informed {
    /// Queues an interim answer; a second 100 is left out, since attempts after the first get one too.
    fn inform(&self, head: &ResponseHead);

    /// Ready while there is room for more to be queued.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whether the client has been told to go on with its body.
    fn was_told_to_continue(&self) -> bool;

    /// Writes what is queued, as far as the client takes it now.
    fn push(&self, cx: &mut Context<'_>);
}

/// Bytes that a client may send ahead of the request that is being served.
const AHEAD: usize = 64 << 10;

/// The HTTP/1 connection of a client.
pub struct Client {
    /// The bytes.
    pub connection: RefCell<Connection>,
    /// Whether a request body is still to be read from it.
    pub body_open: Cell<bool>,
    /// Whether the client takes interim responses: not before HTTP/1.1.
    pub takes_interim: Cell<bool>,
    /// Whether it has been told to go on with its body.
    told_to_continue: Cell<bool>,
}

impl Client {
    /// The client at the other end of `connection`.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection: RefCell::new(connection),
            body_open: Cell::new(false),
            takes_interim: Cell::new(false),
            told_to_continue: Cell::new(false),
        }
    }

    /// A request begins.
    pub fn begin(&self, has_body: bool, takes_interim: bool) {
        self.body_open.set(has_body);
        self.takes_interim.set(takes_interim);
        self.told_to_continue.set(false);
    }

    /// Writes what is queued.
    ///
    /// # Errors
    /// As the socket's.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.borrow_mut().poll_flush(cx)
    }

    /// Whether an end of the client would not show by itself, since enough is read ahead. Then it has to be looked
    /// at from time to time.
    pub fn needs_looking_at(&self) -> bool {
        self.is_blind(&self.connection.borrow())
    }

    fn is_blind(&self, connection: &Connection) -> bool {
        connection.input().len() >= AHEAD
    }

    /// Ready once the client has left: it closed or broke off. Reads ahead to see that. A client that closed only its sending side is still there if `half_close`.
    pub fn poll_left(&self, cx: &mut Context<'_>, half_close: bool) -> Poll<()> {
        let mut connection = self.connection.borrow_mut();
        if half_close && connection.has_ended() {
            return Poll::Pending;
        }
        if self.is_blind(&connection) {
            return Poll::Pending;
        }
        loop {
            match connection.poll_fill(cx, AHEAD) {
                Poll::Ready(Ok(0)) if half_close => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                // It may be of the body that somebody waits for.
                Poll::Ready(Ok(_)) if self.body_open.get() => cx.waker().wake_by_ref(),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Informed for Client {
    fn inform(&self, head: &ResponseHead) {
        let again = head.status == 100 && self.told_to_continue.replace(true);
        if !self.takes_interim.get() || again {
            return;
        }
        let mut connection = self.connection.borrow_mut();
        let out = connection.output();
        encode::status_line(out, head.status, head.reason_phrase());
        head.fields.write(out, |field| {
            !field.known.is_hop_by_hop()
                && field.known != Name::XOutriggerCutoff
                && !head.is_connection_option(field.name)
        });
        encode::end(out);
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut connection = self.connection.borrow_mut();
        // A client that has left is noticed where it is watched.
        if connection.unwritten() < AHEAD || connection.poll_flush(cx).is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn was_told_to_continue(&self) -> bool {
        self.told_to_continue.get()
    }

    fn push(&self, cx: &mut Context<'_>) {
        // What cannot be written yet goes before the final head.
        let _ = self.poll_flush(cx);
    }
}
