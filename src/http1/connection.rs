//! The thin shell around the codec: one connection with its buffers, for both roles.
//!
//! Reads and writes, and nothing else: what the bytes mean is the codec's affair, who waits how long is the
//! caller's. Buffers come from a list of the worker and go back to it while a connection idles, so an idle
//! connection costs its socket and little more; they grow for bodies, since fewer system calls cost less (a MiB in
//! pieces of 8, 64, 128, 256 KiB: 650, 290, 255, 235 us of CPU). The largest are few: a thousand slow clients must
//! not cost a thousand of them.
//!
//! Protocols of a library (HTTP/2) use it as tokio's reader and writer, what has been read before included.
//!
//! Everything else here is a `poll` function: a request reads from one side and writes to the other in one task, and
//! its client may leave meanwhile.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::{Broken, Decoder, Piece};
use super::head::{Framing, Limits, Parsed, Refusal, ResponseHead};
use crate::transport::Transport;

/// A buffer for heads and small bodies.
const SMALL: usize = 8 << 10;
/// A buffer for bodies that fill a small one.
const MEDIUM: usize = 64 << 10;
/// A buffer for bodies that fill a medium one.
const LARGE: usize = 256 << 10;
/// Large buffers that a worker has in use; further bodies do with medium ones.
const LARGE_IN_USE: usize = 32;
/// Free small buffers that a worker keeps: beyond it they are freed.
const KEPT: usize = 64;
/// Free medium and large buffers that it keeps, of each.
const KEPT_LARGE: usize = 8;
/// A piece up to this size is copied behind what is still to be written; a larger one is written from where it
/// stands (one flat write is cheaper than `writev` for a head and a small body).
const COPIED: usize = 16 << 10;

/// The free buffers of a worker.
#[derive(Default)]
pub struct Buffers {
    small: RefCell<Vec<Box<[u8]>>>,
    medium: RefCell<Vec<Box<[u8]>>>,
    large_in_use: Cell<usize>,
    large: RefCell<Vec<Box<[u8]>>>,
    output: RefCell<Vec<Vec<u8>>>,
}

/// A connection and what is read but not used, and queued but not written.
pub struct Connection {
    stream: Transport,
    buffers: Rc<Buffers>,
    /// Empty while nothing is read.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last read filled the buffer: a body is coming that wants a larger one.
    filled: bool,
    ended: bool,
    /// What the stream ended with, if that was an error.
    failure: Option<io::Error>,
    output: Vec<u8>,
    written: usize,
}

/// Why a message could not be read on.
#[derive(Debug)]
pub enum ReadError {
    /// The peer closed, or broke off.
    Closed,
    /// What came is not HTTP/1.1.
    Refused(Refusal),
}

/// Reads one message's body from a connection, piece by piece.
pub struct BodyReader {
    decoder: Decoder,
    /// Payload at the front of the connection's input that is not used yet.
    ready: usize,
}

impl Buffers {
    fn take(&self, size: usize) -> Box<[u8]> {
        let list = match size {
            SMALL => self.small.borrow_mut().pop(),
            MEDIUM => self.medium.borrow_mut().pop(),
            LARGE => {
                self.large_in_use.set(self.large_in_use.get() + 1);
                self.large.borrow_mut().pop()
            }
            _ => None,
        };
        list.unwrap_or_else(|| vec![0; size].into_boxed_slice())
    }

    /// The size for a body that has filled a buffer of `size`.
    fn larger(&self, size: usize) -> usize {
        match size {
            ..MEDIUM => MEDIUM,
            MEDIUM if self.large_in_use.get() < LARGE_IN_USE => LARGE,
            _ => size,
        }
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let (list, kept) = match buffer.len() {
            SMALL => (&self.small, KEPT),
            MEDIUM => (&self.medium, KEPT_LARGE),
            LARGE => {
                self.large_in_use.set(self.large_in_use.get() - 1);
                (&self.large, KEPT_LARGE)
            }
            _ => return,
        };
        let mut list = list.borrow_mut();
        if list.len() < kept {
            list.push(buffer);
        }
    }
}

impl Connection {
    /// A connection over `stream`, with buffers of `buffers`.
    pub fn new(stream: impl Into<Transport>, buffers: Rc<Buffers>) -> Self {
        Self {
            stream: stream.into(),
            buffers,
            input: Box::default(),
            start: 0,
            end: 0,
            filled: false,
            ended: false,
            failure: None,
            output: Vec::new(),
            written: 0,
        }
    }

    /// What carries it.
    pub fn stream(&self) -> &Transport {
        &self.stream
    }

    /// What is read and not used.
    pub fn input(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    /// Whether the peer has closed its sending side.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The error that reading ended with, if it did.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// The first `size` bytes of the input are used.
    pub fn consume(&mut self, size: usize) {
        debug_assert!(size <= self.end - self.start);
        self.start += size;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once. Ready with 0 when the peer has closed its sending side. Grows the buffer where a body has
    /// filled it, up to `bound` bytes of unused input; beyond it nothing is read, and it stays pending.
    ///
    /// # Errors
    /// As the socket's; all of it is then in [`Connection::failure`].
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, bound: usize) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.end - self.start >= bound.max(1) {
            return Poll::Pending;
        }
        self.make_room();
        let mut space = ReadBuf::new(&mut self.input[self.end..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut space) {
            Poll::Ready(Ok(())) => {
                let size = space.filled().len();
                self.end += size;
                self.filled = self.end == self.input.len();
                self.ended = size == 0;
                Poll::Ready(Ok(size))
            }
            Poll::Ready(Err(error)) => {
                self.ended = true;
                let kind = error.kind();
                self.failure = Some(error);
                Poll::Ready(Err(kind.into()))
            }
            Poll::Pending => {
                self.rest_input();
                Poll::Pending
            }
        }
    }

    /// Room for at least one byte behind the input.
    fn make_room(&mut self) {
        let used = self.end - self.start;
        if self.input.is_empty() {
            self.input = self.buffers.take(SMALL);
        } else if used == 0 && self.filled && self.buffers.larger(self.input.len()) > self.input.len() {
            let larger = self.buffers.take(self.buffers.larger(self.input.len()));
            self.buffers.give_back(std::mem::replace(&mut self.input, larger));
        } else if self.end == self.input.len() {
            if used < self.input.len() / 2 && self.input.len() >= MEDIUM {
                self.input.copy_within(self.start..self.end, 0);
            } else {
                let size = if self.input.len() < MEDIUM { MEDIUM } else { self.input.len() * 2 };
                let mut larger = self.buffers.take(size);
                larger[..used].copy_from_slice(&self.input[self.start..self.end]);
                self.buffers.give_back(std::mem::replace(&mut self.input, larger));
            }
            (self.start, self.end) = (0, used);
        }
    }

    fn rest_input(&mut self) {
        if self.start == self.end && !self.input.is_empty() {
            self.buffers.give_back(std::mem::take(&mut self.input));
            (self.start, self.end) = (0, 0);
        }
    }

    /// Hands the buffers back: the connection idles.
    pub fn rest(&mut self) {
        self.rest_input();
        if self.output.capacity() > 0 && self.output.len() == self.written {
            let mut output = std::mem::take(&mut self.output);
            self.written = 0;
            let mut list = self.buffers.output.borrow_mut();
            if list.len() < KEPT && output.capacity() <= MEDIUM {
                output.clear();
                list.push(output);
            }
        }
    }

    /// Where to append what is to be written next.
    pub fn output(&mut self) -> &mut Vec<u8> {
        if self.output.capacity() == 0 {
            self.output = self.buffers.output.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(1024));
        }
        // A peer that takes a little at a time must not make the written part grow for ever.
        if self.written > self.output.len() / 2 {
            self.output.drain(..self.written);
            self.written = 0;
        }
        &mut self.output
    }

    /// Bytes that are queued and not written; what TLS holds of them counts as one, since its size is its own affair.
    pub fn unwritten(&self) -> usize {
        self.queued() + usize::from(self.stream.holds_unwritten())
    }

    fn queued(&self) -> usize {
        self.output.len() - self.written
    }

    /// Writes what is queued. Ready when all is.
    ///
    /// # Errors
    /// As the socket's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.output.len() {
            let size = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output[self.written..]))?;
            if size == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += size;
        }
        self.output.clear();
        self.written = 0;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Writes what is queued and then `piece`; ready with how much of `piece` is taken, at least a byte of it.
    /// What is taken may still be queued.
    ///
    /// # Errors
    /// As the socket's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let queued = self.queued();
            if queued > 0 && queued + piece.len() <= COPIED {
                self.output().extend_from_slice(piece);
                return match self.poll_flush(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Ready(Ok(piece.len())),
                };
            }
            let stream = Pin::new(&mut self.stream);
            let size = ready!(if queued == 0 {
                stream.poll_write(cx, piece)
            } else {
                let pieces = [IoSlice::new(&self.output[self.written..]), IoSlice::new(piece)];
                stream.poll_write_vectored(cx, &pieces)
            })?;
            if size == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if size < queued {
                self.written += size;
                continue;
            }
            self.output.clear();
            self.written = 0;
            if size > queued {
                return Poll::Ready(Ok(size - queued));
            }
        }
    }

    /// Writes several pieces at once, past the queue, which must be empty.
    ///
    /// # Errors
    /// As the socket's.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.queued(), 0);
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    /// Closes the sending side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Nothing more is said: tells a peer in TLS so, as far as that needs no waiting. It would have to take an end without
    /// a word for a cut; the end of a connection in clear text speaks for itself.
    pub fn say_goodbye(&mut self) {
        if self.stream.is_tls() {
            // One that cannot be told now does not listen.
            let _ = self.poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Makes the end of this connection a reset: the peer must not take it for a clean end.
    pub fn reset_when_dropped(&self) {
        // An error leaves an ordinary end: nothing better can be had.
        let _ = self.stream.socket().set_linger(Some(std::time::Duration::ZERO));
    }

    /// Whether the peer has broken the connection off, whatever it has sent before.
    pub fn is_broken(&self) -> bool {
        !matches!(self.stream.socket().take_error(), Ok(None))
    }

    /// Whether the peer is still there and has sent nothing unasked, as far as the runtime has heard; with
    /// `ask`, as the kernel knows it (one system call).
    pub fn is_reusable(&mut self, ask: bool) -> bool {
        if self.ended || self.start != self.end || self.unwritten() > 0 {
            return false;
        }
        if ask {
            return self.stream.is_silent();
        }
        self.poll_fill(&mut Context::from_waker(Waker::noop()), 1).is_pending()
    }

    /// Reads the head of a response into `head`. `scanned` is 0 at first and belongs to this head.
    ///
    /// # Errors
    /// [`ReadError`]; whether anything of the head had come shows in [`Connection::input`].
    pub fn poll_response_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        scanned: &mut usize,
        request_is_head: bool,
        limits: &Limits,
    ) -> Poll<Result<(), ReadError>> {
        loop {
            if self.start < self.end {
                let input = &self.input[self.start..self.end];
                match head.parse(input, scanned, request_is_head, limits).map_err(ReadError::Refused)? {
                    Parsed::Head { size } => {
                        self.consume(size);
                        *scanned = 0;
                        return Poll::Ready(Ok(()));
                    }
                    Parsed::Partial => {}
                }
            }
            match ready!(self.poll_fill(cx, usize::MAX)) {
                Ok(size) if size > 0 => {}
                _ => return Poll::Ready(Err(ReadError::Closed)),
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input().is_empty() {
            // PERF: who has a buffer of its own needs none of ours.
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let size = self.input().len().min(out.remaining());
        out.put_slice(&self.input()[..size]);
        self.consume(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Connection::poll_write(&mut self, cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Connection::poll_write_vectored(&mut self, cx, pieces)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Connection::poll_flush(&mut self, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Connection::poll_shutdown(&mut self, cx)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        (self.start, self.end) = (0, 0);
        self.written = self.output.len();
        self.rest();
    }
}

impl BodyReader {
    /// Reads a body framed like this.
    pub fn new(framing: Framing) -> Self {
        Self { decoder: Decoder::new(framing), ready: 0 }
    }

    /// Ready with the size of the payload that stands at the front of the connection's input; 0: the message
    /// has ended.
    ///
    /// # Errors
    /// [`ReadError`] where the peer breaks off in the message, or breaks its framing.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<usize, ReadError>> {
        loop {
            if self.ready > 0 {
                return Poll::Ready(Ok(self.ready));
            }
            if self.decoder.is_done() {
                return Poll::Ready(Ok(0));
            }
            if !connection.input().is_empty() {
                match self.decoder.next(connection.input()).map_err(refused)? {
                    Piece::Data { skip, len } => {
                        connection.consume(skip);
                        self.ready = len;
                        continue;
                    }
                    Piece::End { skip } => {
                        connection.consume(skip);
                        return Poll::Ready(Ok(0));
                    }
                    Piece::More { skip } => connection.consume(skip),
                }
            }
            match ready!(connection.poll_fill(cx, usize::MAX)) {
                Ok(size) if size > 0 => {}
                Ok(_) => {
                    return Poll::Ready(self.decoder.at_eof().map(|()| 0).map_err(|_| ReadError::Closed));
                }
                Err(_) => return Poll::Ready(Err(ReadError::Closed)),
            }
        }
    }

    /// `size` bytes of the payload at the front of the connection's input are used.
    pub fn consume(&mut self, connection: &mut Connection, size: usize) {
        connection.consume(size);
        self.ready -= size;
    }

    /// Whether the message has been read to its end.
    pub fn is_done(&self) -> bool {
        self.ready == 0 && self.decoder.is_done()
    }

    /// The decoder: what remains, and the trailers.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Payload that is known to come still, where the framing says how much: that of a `Content-Length`.
    pub fn remaining(&self) -> Option<u64> {
        self.decoder.remaining().map(|remaining| remaining + self.ready as u64)
    }
}

fn refused(Broken(detail): Broken) -> ReadError {
    ReadError::Refused(Refusal { reason: crate::reason::Reason::ProtocolError, detail })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Connection::new(near.expect("it connects"), Rc::default()), far.expect("it accepts").0)
    }

    #[tokio::test]
    async fn what_is_written_makes_room_though_never_all_is() {
        let (mut near, mut far) = pair().await;
        let flush = |near: &mut Connection| near.poll_flush(&mut Context::from_waker(Waker::noop()));
        // Until the sockets hold no more.
        loop {
            near.output().extend_from_slice(&[b'x'; LARGE]);
            if flush(&mut near).is_pending() {
                break;
            }
        }
        let mut some = vec![0; LARGE / 4];
        let mut taken = 0;
        while taken < 64 * LARGE {
            if near.unwritten() < LARGE {
                near.output().extend_from_slice(&[b'x'; LARGE / 2]);
            }
            tokio::select! {
                read = far.read(&mut some) => taken += read.expect("it is open"),
                flushed = std::future::poll_fn(|cx| near.poll_flush(cx)) => flushed.expect("it is open"),
            }
            assert!(near.output.len() <= 4 * LARGE, "{} bytes are kept", near.output.len());
        }
    }

    #[tokio::test]
    async fn a_resting_connection_holds_no_buffers() {
        let (mut near, mut far) = pair().await;
        tokio::io::AsyncWriteExt::write_all(&mut far, b"hello").await.expect("it is open");
        let size = std::future::poll_fn(|cx| near.poll_fill(cx, usize::MAX)).await.expect("it is open");
        assert_eq!((size, near.input()), (5, &b"hello"[..]));
        near.output().extend_from_slice(b"hello");
        std::future::poll_fn(|cx| near.poll_flush(cx)).await.expect("it is open");
        near.consume(5);
        near.rest();
        assert_eq!((near.input.len(), near.output.capacity()), (0, 0));
        assert!(near.is_reusable(false) && near.is_reusable(true));
        drop(far);
        let Transport::Tcp(stream) = &near.stream else { unreachable!("it is TCP") };
        std::future::poll_fn(|cx| stream.poll_read_ready(cx)).await.expect("the end comes");
        assert!(!near.is_reusable(true), "the kernel knows it is closed");
    }
}
