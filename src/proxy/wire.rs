//! What a request goes up on: a connection of HTTP/1.1 that it has for itself, or a stream of HTTP/2.
//!
//! Both ways in the words of the path: the head has been queued, then there is room for pieces of the body, an
//! answer's head, pieces of its body, trailers. An enum for the same reason as `Transport`: two kinds, both known, and
//! HTTP/1.1 pays a comparison for it.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::http1::connection::{BodyReader, Connection, ReadError};
use crate::http1::encode;
use crate::http1::field::Fields;
use crate::http1::head::{Framing, Limits, ResponseHead};
use crate::reason::{Error, Reason};
use crate::tls::error::refusal;
use crate::upstream::http2::Lease;
use crate::upstream::pool::ToEndpoint;
use crate::upstream::stream::{Broken, Stream};

/// Bounds of a response's head. Not configurable: larger ones are no answers of a sane service.
const RESPONSE_LIMITS: Limits = Limits { max_size: 256 << 10, max_fields: 256 };

/// Bytes of a body that may be queued towards an upstream that does not take them.
pub const QUEUED: usize = 64 << 10;

/// What one attempt goes up on.
pub enum Wire {
    /// A connection of its own.
    Http1(Http1),
    /// One stream of many on a connection.
    Http2(Box<Http2>),
}

/// A connection of HTTP/1.1.
pub struct Http1 {
    connection: Box<ToEndpoint>,
    reader: BodyReader,
    /// Bytes of the answer's head that have been looked at.
    scanned: usize,
    /// Bytes that were queued when the request had not begun to go out.
    queued: usize,
    request_is_head: bool,
}

/// A stream of HTTP/2.
pub struct Http2 {
    stream: Stream,
    lease: Lease,
}

/// A piece of a body.
pub enum Piece<'a> {
    /// Where it was read.
    Borrowed(&'a [u8]),
    /// One that needs no copy to be kept.
    Shared(Bytes),
}

/// Why no answer's head came.
pub struct Unanswered {
    /// Why.
    pub error: Error,
    /// Whether the endpoint surely has not processed the request: no byte of it can have been read, or it said so.
    pub unprocessed: bool,
    /// Whether anything of an answer had come, and be it that there will be none.
    pub begun: bool,
    /// Whether the endpoint closes the connection, as it does in ordinary life, and has not begun with the request.
    pub left_behind: bool,
}

impl Wire {
    /// The connection on which the request's head is queued.
    pub fn http1(connection: Box<ToEndpoint>, request_is_head: bool) -> Self {
        let (queued, reader) = (connection.wire.unwritten(), BodyReader::new(Framing::None));
        Wire::Http1(Http1 { connection, reader, scanned: 0, queued, request_is_head })
    }

    /// The stream that the request's head has opened.
    pub fn http2(stream: Stream, lease: Lease) -> Self {
        Wire::Http2(Box::new(Http2 { stream, lease }))
    }

    /// Whether it had been idle after it had served others: then the endpoint may have closed it just now.
    pub fn is_reused(&self) -> bool {
        match self {
            Wire::Http1(one) => one.connection.reused,
            Wire::Http2(two) => two.lease.may_be_stale(),
        }
    }

    /// Ready with how much of a piece of `wanted` bytes may be queued, at least a byte of it; none: the upstream takes
    /// no more.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Option<usize>> {
        match self {
            Wire::Http1(_) => Poll::Ready(Some(wanted.min(QUEUED))),
            Wire::Http2(two) => two.stream.poll_room(cx, wanted),
        }
    }

    /// Whether more may be queued before what is queued has been written.
    pub fn has_room(&self) -> bool {
        match self {
            Wire::Http1(one) => one.connection.wire.unwritten() < QUEUED,
            Wire::Http2(_) => true,
        }
    }

    /// Queues a piece of the body, for which there is room; the last one if it `ends` there. False where the upstream
    /// takes no more.
    pub fn queue(&mut self, framing: Framing, piece: Piece<'_>, ends: bool) -> bool {
        match self {
            Wire::Http1(one) => {
                let out = one.connection.wire.output();
                let piece = piece.as_slice();
                if framing == Framing::Chunked {
                    encode::chunk(out, piece.len());
                    out.extend_from_slice(piece);
                    out.extend_from_slice(encode::CHUNK_END);
                    if ends {
                        encode::last_chunk(out, None);
                    }
                } else {
                    out.extend_from_slice(piece);
                }
                true
            }
            Wire::Http2(two) => two.stream.send(piece.into_bytes(), ends),
        }
    }

    /// Queues the end of the body. False where the upstream takes no more.
    pub fn queue_end(&mut self, framing: Framing, trailers: Option<&Fields>) -> bool {
        match self {
            Wire::Http1(one) => {
                if framing == Framing::Chunked {
                    encode::last_chunk(one.connection.wire.output(), trailers);
                }
                true
            }
            Wire::Http2(two) => two.stream.send_end(trailers),
        }
    }

    /// Writes what is queued. Ready with whether the upstream still takes it. What is queued on HTTP/2 is written by
    /// its session.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self {
            Wire::Http1(one) => one.connection.wire.poll_flush(cx).map(|flushed| flushed.is_ok()),
            Wire::Http2(_) => Poll::Ready(true),
        }
    }

    /// Bytes that are queued and not written, as far as that is known here.
    pub fn unwritten(&self) -> usize {
        match self {
            Wire::Http1(one) => one.connection.wire.unwritten(),
            Wire::Http2(_) => 0,
        }
    }

    /// Whether the upstream has no room for what waits here.
    pub fn is_blocked(&self) -> bool {
        match self {
            Wire::Http1(one) => one.connection.wire.unwritten() > 0,
            Wire::Http2(two) => two.stream.is_blocked(),
        }
    }

    /// Ready with the head of the answer, an interim or the final one. `taken`: bytes of the body that are queued.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        taken: u64,
    ) -> Poll<Result<(), Unanswered>> {
        match self {
            Wire::Http1(one) => one.poll_head(cx, head, taken),
            Wire::Http2(two) => match two.stream.poll_head(cx, head, &RESPONSE_LIMITS) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                Poll::Ready(Err(broken)) => Poll::Ready(Err(broken.into())),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    /// Ready with the size of [`Wire::data`]; 0: the answer has ended.
    ///
    /// # Errors
    /// Why it will not be complete.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        match self {
            Wire::Http1(one) => match ready!(one.reader.poll_data(cx, &mut one.connection.wire)) {
                Ok(size) => Poll::Ready(Ok(size)),
                Err(ReadError::Closed) => Poll::Ready(Err(closed_in_body())),
                Err(ReadError::Refused(refusal)) => {
                    Poll::Ready(Err(Error::new(Reason::ProtocolError, refusal.detail)))
                }
            },
            Wire::Http2(two) => two.stream.poll_data(cx).map_err(|broken| broken.error),
        }
    }

    /// Ready with whether `size` bytes of the answer's body, which has as many, stand in one piece.
    ///
    /// # Errors
    /// Why it will not be complete.
    pub fn poll_gather(&mut self, cx: &mut Context<'_>, size: u64) -> Poll<Result<bool, Error>> {
        match self {
            Wire::Http1(one) => {
                while (one.connection.wire.input().len() as u64) < size {
                    match ready!(one.connection.wire.poll_fill(cx, usize::MAX)) {
                        Ok(1..) => {}
                        _ => return Poll::Ready(Err(closed_in_body())),
                    }
                }
                Poll::Ready(Ok(true))
            }
            Wire::Http2(two) => two.stream.poll_gather(cx, size as usize).map_err(|broken| broken.error),
        }
    }

    /// The piece of the answer's body at hand.
    pub fn data(&self) -> &[u8] {
        match self {
            Wire::Http1(one) => one.connection.wire.input(),
            Wire::Http2(two) => two.stream.data(),
        }
    }

    /// `size` bytes of the piece are used.
    pub fn consume(&mut self, size: usize) {
        match self {
            Wire::Http1(one) => one.reader.consume(&mut one.connection.wire, size),
            Wire::Http2(two) => two.stream.consume(size),
        }
    }

    /// Takes `size` bytes of the piece; what came by HTTP/2 is not copied.
    pub fn take(&mut self, size: usize) -> Bytes {
        match self {
            Wire::Http1(one) => {
                let piece = Bytes::copy_from_slice(&one.connection.wire.input()[..size]);
                one.reader.consume(&mut one.connection.wire, size);
                piece
            }
            Wire::Http2(two) => two.stream.take(size),
        }
    }

    /// Payload that is still to be used, where the head said how much.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Wire::Http1(one) => one.reader.remaining(),
            Wire::Http2(two) => two.stream.remaining(),
        }
    }

    /// Whether the answer ends behind these `size` bytes, as far as that is known beforehand.
    pub fn is_last(&self, size: usize) -> bool {
        match self {
            Wire::Http1(one) => one.reader.remaining() == Some(size as u64),
            Wire::Http2(two) => two.stream.is_last(size),
        }
    }

    /// Whether the answer has been read to its end.
    pub fn is_done(&self) -> bool {
        match self {
            Wire::Http1(one) => one.reader.is_done(),
            Wire::Http2(two) => two.stream.is_done(),
        }
    }

    /// What followed the answer's body.
    pub fn trailers(&self) -> Option<&Fields> {
        match self {
            Wire::Http1(one) => one.reader.decoder().trailers(),
            Wire::Http2(two) => two.stream.trailers(),
        }
    }

    /// The exchange has no foreseeable end; false where there are `max_streams` of those.
    pub fn become_stream(&mut self, max_streams: u32) -> bool {
        match self {
            Wire::Http1(one) => one.connection.counted.become_stream(max_streams),
            Wire::Http2(two) => two.lease.become_stream(max_streams),
        }
    }

    /// Whether the client takes nothing of what is there.
    pub fn set_stalled(&mut self, is_stalled: bool) {
        if let Wire::Http2(two) = self {
            two.lease.set_stalled(is_stalled);
        }
    }

    /// The connection that goes on in another protocol, which HTTP/2 knows no way to.
    pub fn switched(&mut self) -> Option<&mut Connection> {
        match self {
            Wire::Http1(one) => Some(&mut one.connection.wire),
            Wire::Http2(_) => None,
        }
    }

    /// It had served others before, and its endpoint had closed it all the same.
    pub fn was_stale(&self) {
        if let Wire::Http1(one) = self {
            one.connection.was_stale();
        }
    }

    /// The connection, if it is one that may go back to the pool.
    pub fn into_connection(self) -> Option<Box<ToEndpoint>> {
        match self {
            Wire::Http1(one) => Some(one.connection),
            Wire::Http2(_) => None,
        }
    }
}

impl Http1 {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        taken: u64,
    ) -> Poll<Result<(), Unanswered>> {
        let wire = &mut self.connection.wire;
        match ready!(wire.poll_response_head(
            cx,
            head,
            &mut self.scanned,
            self.request_is_head,
            &RESPONSE_LIMITS
        )) {
            Ok(()) => {
                self.reader = BodyReader::new(head.framing);
                Poll::Ready(Ok(()))
            }
            Err(ReadError::Refused(refusal)) => {
                let error = Error::new(Reason::ProtocolError, refusal.detail);
                Poll::Ready(Err(Unanswered::of(error, true)))
            }
            Err(ReadError::Closed) => {
                if let Some(why) = wire.failure().and_then(refusal) {
                    let error = Error::new(Reason::TlsError, why);
                    // One that has served before has been accepted long ago: it may have read the request.
                    return Poll::Ready(Err(Unanswered {
                        unprocessed: !self.connection.reused,
                        ..Unanswered::of(error, false)
                    }));
                }
                let begun = !wire.input().is_empty();
                let detail =
                    if begun { "closed in the head of its answer" } else { "closed without an answer" };
                let error = Error::new(Reason::UpstreamReset, detail);
                // Where not even the first byte could be written, nobody can have read one.
                let unprocessed = wire.unwritten() == self.queued && taken == 0;
                Poll::Ready(Err(Unanswered { error, unprocessed, begun, left_behind: false }))
            }
        }
    }
}

impl Unanswered {
    /// No answer, because of `error`.
    pub fn of(error: Error, begun: bool) -> Self {
        Self { error, unprocessed: false, begun, left_behind: false }
    }
}

impl Piece<'_> {
    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.as_slice().len()
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Borrowed(piece) => piece,
            Piece::Shared(piece) => piece,
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Piece::Borrowed(piece) => Bytes::copy_from_slice(piece),
            Piece::Shared(piece) => piece,
        }
    }
}

impl From<Broken> for Unanswered {
    fn from(broken: Broken) -> Self {
        let Broken { error, unprocessed, left_behind, connection_broke } = broken;
        Unanswered { error, unprocessed, begun: !connection_broke, left_behind }
    }
}

fn closed_in_body() -> Error {
    Error::new(Reason::UpstreamReset, "closed in the body of its answer")
}
