//! The connection below h2: what h2 reads is watched, what it writes is gathered and written once a round.
//!
//! h2 flushes for every DATA frame. Here that means nothing: what it writes is appended to the connection's output
//! and goes out when all streams that were ready have had their turn, so that the answers of many streams take one
//! system call. Beyond `GATHERED` it writes at once, and stays pending where the socket takes no more.
//!
//! What a client does not take is bounded: `GATHERED` here and [`HANDED`] in h2, for all streams of the connection
//! together; a stream that has more waits until the socket has taken what was handed over.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::shared::Shared;
use super::guard::{Guard, Reset, Verdict};
use crate::http1::connection::Connection;
use crate::telemetry::metrics::Limit;

/// Bytes that are gathered before they are written.
const GATHERED: usize = 64 << 10;
/// Bytes of bodies that may be handed to h2 before the socket has taken them.
pub const HANDED: usize = 256 << 10;
/// The most that is read and thrown away at the end.
const LINGER_BYTES: usize = 1 << 20;

/// A client's connection, shared by h2, which speaks over it, and those who look after it.
pub struct Line {
    shared: Arc<Shared>,
    connection: RefCell<Connection>,
    guard: RefCell<Guard>,
    /// Whether anything came since the last look.
    heard: Cell<bool>,
    /// Whether anything was taken since the last look.
    took: Cell<bool>,
    handed: Cell<usize>,
    /// h2 could not write all that it has.
    stuck: Cell<bool>,
    /// Streams that wait for the socket.
    waiting: RefCell<Vec<Waker>>,
    /// The sending side is closed, and so many bytes may still be read.
    lingers: Cell<Option<usize>>,
}

/// The line as h2 sees it.
pub struct Wire(pub Rc<Line>);

impl Line {
    /// The line over a connection that begins at `now`.
    pub fn new(connection: Connection, shared: Arc<Shared>, now: Instant) -> Rc<Self> {
        Rc::new(Self {
            shared,
            connection: RefCell::new(connection),
            guard: RefCell::new(Guard::new(now)),
            heard: Cell::new(false),
            took: Cell::new(false),
            handed: Cell::new(0),
            stuck: Cell::new(false),
            waiting: RefCell::default(),
            lingers: Cell::new(None),
        })
    }

    /// Writes what is gathered. Ready when the socket has taken all of it; then tells whether h2 has more.
    ///
    /// # Errors
    /// As the socket's.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        ready!(self.poll_write_out(cx))?;
        if self.stuck.take() {
            return Poll::Ready(Ok(true));
        }
        self.connection.borrow_mut().rest();
        self.handed.set(0);
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
        Poll::Ready(Ok(false))
    }

    fn poll_write_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut connection = self.connection.borrow_mut();
        let queued = connection.unwritten();
        if queued == 0 {
            return Poll::Ready(Ok(()));
        }
        let flushed = connection.poll_flush(cx);
        if connection.unwritten() < queued {
            self.took.set(true);
        }
        flushed
    }

    /// Whether something waits for the socket to take it.
    pub fn is_blocked(&self) -> bool {
        self.connection.borrow().unwritten() > 0
    }

    /// Bytes of a body that may be handed to h2 now; 0: the stream is woken when there is room.
    pub fn room(&self, cx: &Context<'_>) -> usize {
        let room = HANDED.saturating_sub(self.handed.get());
        if room == 0 {
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
        }
        room
    }

    /// So many bytes are handed to h2.
    pub fn hand(&self, size: usize) {
        self.handed.set(self.handed.get() + size);
    }

    /// Whether anything came since this was asked last.
    pub fn has_heard(&self) -> bool {
        self.heard.take()
    }

    /// Whether the client took anything since this was asked last.
    pub fn has_taken(&self) -> bool {
        self.took.take()
    }

    /// Whether the client has begun to say something.
    pub fn has_begun(&self) -> bool {
        self.heard.get()
    }

    /// Why the connection has to end, if it has to.
    pub fn verdict(&self) -> Option<Verdict> {
        self.guard.borrow().verdict()
    }

    /// Whether a head has begun to come and is not complete.
    pub fn is_within_head(&self) -> bool {
        self.guard.borrow().is_within_head()
    }

    /// A stream was reset right after it had begun.
    pub fn reset_early(&self, reset: Reset) {
        self.guard.borrow_mut().reset_early(reset, Instant::now);
    }

    /// Whether all is said, and only what still comes is read.
    pub fn lingers(&self) -> bool {
        self.lingers.get().is_some()
    }

    /// Reads on for a while behind the end of the sending side: bytes that come after a close would be answered with
    /// a reset, and that could reach the client before it has read what was said to it.
    fn poll_linger(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut connection = self.connection.borrow_mut();
        loop {
            let size = connection.input().len();
            connection.consume(size);
            let left = self.lingers.get().unwrap_or_default().saturating_sub(size);
            self.lingers.set(Some(left));
            match connection.poll_fill(cx, usize::MAX) {
                Poll::Ready(Ok(1..)) if left > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let line = &self.0;
        let mut guard = line.guard.borrow_mut();
        // Behind a verdict nothing is heard any more; who looks after the line sees it at once.
        if guard.verdict().is_some() {
            return Poll::Pending;
        }
        let before = out.filled().len();
        ready!(Pin::new(&mut *line.connection.borrow_mut()).poll_read(cx, out))?;
        line.heard.set(true);
        guard.came(&out.filled()[before..], Instant::now);
        if guard.verdict().is_some() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let line = &self.0;
        let queued = line.connection.borrow().unwritten();
        if queued > 0 && queued + bytes.len() > GATHERED {
            line.stuck.set(true);
            ready!(line.poll_write_out(cx))?;
            line.stuck.set(false);
        }
        line.connection.borrow_mut().output().extend_from_slice(bytes);
        let refused = line.guard.borrow_mut().goes(bytes, Instant::now);
        if refused > 0 {
            line.shared.metrics.limit_reached(Limit::MaxStreams).add(refused.into());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// See the module: whoever polls h2 writes what is gathered, afterwards.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = &self.0;
        if !line.lingers() {
            ready!(line.poll_write_out(cx))?;
            ready!(line.connection.borrow_mut().poll_shutdown(cx))?;
            line.lingers.set(Some(LINGER_BYTES));
        }
        line.poll_linger(cx).map(Ok)
    }
}
