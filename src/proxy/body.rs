//! A request's body: read from the client as the upstream takes it, and kept as far as it may be sent again.
//!
//! Never held whole beyond the replay buffer (`retry.request_buffer`, all requests together
//! `server.max_buffer`): what exceeds it goes on to the upstream and cannot be sent a second time.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::RecvStream;

use super::client::Client;
use super::meter::Meter;
use super::shared::{Reservation, Shared};
use super::wire::{Piece, QUEUED, Wire};
use crate::http1::connection::{BodyReader, ReadError};
use crate::http1::field::Fields;
use crate::http1::head::Framing;
use crate::policy::retry::Skip;
use crate::reason::{Error, Reason};
use crate::upstream::stream::fields;

/// How the memory of the replay buffer is reserved.
const STEP: u64 = 16 << 10;

/// A request's body.
pub struct Body {
    source: Source,
    framing: Framing,
    trailers: Option<Fields>,
    /// Bytes read from the client.
    pub bytes: u64,
    /// Counts what flows, where a rate limit wants to know.
    pub meter: Option<Box<Meter>>,
    max: Option<u64>,
    replay: Replay,
}

enum Source {
    /// All is read.
    Ended,
    Http1(Rc<Client>, BodyReader),
    /// With the piece at hand.
    Http2(RecvStream, Bytes),
}

/// The bytes that were read, for another attempt.
struct Replay {
    kept: Vec<u8>,
    bound: u64,
    reservation: Option<Reservation>,
    /// Why there cannot be another.
    lost: Option<Skip>,
}

/// How far one attempt has come with the body.
#[derive(Default)]
pub struct Progress {
    /// Bytes of the body that this attempt has taken.
    taken: u64,
    /// All is queued.
    ended: bool,
    /// The upstream takes no more: its answer may have come all the same.
    pub refused: bool,
}

impl Body {
    /// No body.
    pub fn none() -> Self {
        Self::new(Source::Ended, Framing::None, None)
    }

    /// The body that follows a head on an HTTP/1 connection. More than `max` bytes are refused.
    pub fn http1(client: &Rc<Client>, framing: Framing, max: Option<u64>) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::new(Source::Ended, framing, max),
            _ => Self::new(Source::Http1(Rc::clone(client), BodyReader::new(framing)), framing, max),
        }
    }

    /// The body of an HTTP/2 stream.
    pub fn http2(incoming: RecvStream, framing: Framing, max: Option<u64>) -> Self {
        match framing {
            Framing::None => Self::new(Source::Ended, framing, max),
            _ => Self::new(Source::Http2(incoming, Bytes::new()), framing, max),
        }
    }

    fn new(source: Source, framing: Framing, max: Option<u64>) -> Self {
        let replay = Replay { kept: Vec::new(), bound: 0, reservation: None, lost: None };
        Self { source, framing, trailers: None, bytes: 0, meter: None, max, replay }
    }

    /// The same body once more, if all of it has been read and kept.
    pub fn copy(&self, shared: &Arc<Shared>) -> Option<Self> {
        if !self.is_read() || self.replay.lost.is_some() {
            return None;
        }
        let mut copy = Self::new(Source::Ended, self.framing, None);
        if !self.replay.kept.is_empty() {
            copy.replay.reservation = Some(shared.reserve(self.replay.kept.len() as u64)?);
            copy.replay.kept = self.replay.kept.clone();
            copy.bytes = self.bytes;
        }
        copy.trailers = self.trailers.clone();
        Some(copy)
    }

    /// How it is framed towards the upstream.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Keeps up to `bound` bytes for another attempt.
    pub fn keep(&mut self, bound: u64) {
        self.replay.bound = bound;
    }

    /// Whether it could be sent again from its beginning.
    ///
    /// # Errors
    /// Why not.
    pub fn is_replayable(&self) -> Result<(), Skip> {
        self.replay.lost.map_or(Ok(()), Err)
    }

    /// Whether it is known before it has come that it could be sent again: one that is too large to be kept, or may
    /// turn out to be, can not.
    pub fn is_surely_replayable(&self) -> bool {
        let fits = match self.framing {
            Framing::None => true,
            Framing::Length(length) => length <= self.replay.bound,
            Framing::Chunked | Framing::UntilClose => false,
        };
        fits && self.replay.lost.is_none()
    }

    /// Whether all of it has been read from the client.
    pub fn is_read(&self) -> bool {
        matches!(self.source, Source::Ended)
    }

    /// Reads what of the body has come already and forgets it: a small body that nobody wants need not cost its
    /// connection.
    pub fn skip_what_is_there(&mut self) {
        let Source::Http1(client, reader) = &mut self.source else { return };
        let nobody = &mut Context::from_waker(Waker::noop());
        let mut connection = client.connection.borrow_mut();
        let mut skipped = 0;
        while skipped <= QUEUED {
            match reader.poll_data(nobody, &mut connection) {
                Poll::Ready(Ok(size @ 1..)) => {
                    reader.consume(&mut connection, size);
                    skipped += size;
                }
                _ => break,
            }
        }
        if reader.is_done() {
            client.body_open.set(false);
            drop(connection);
            self.source = Source::Ended;
        }
    }

    /// Moves the body on, from the client to the upstream behind what is queued there. Ready when all is written.
    ///
    /// # Errors
    /// What the client did wrong. An upstream that takes no more shows in `progress`.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Arc<Shared>,
        progress: &mut Progress,
        wire: &mut Wire,
    ) -> Poll<Result<(), Error>> {
        loop {
            let mut waits = false;
            while !progress.ended && !progress.refused && wire.has_room() {
                if self.poll_piece(cx, shared, progress, wire)?.is_pending() {
                    waits = true;
                    break;
                }
            }
            if progress.refused {
                return Poll::Ready(Ok(()));
            }
            match ready!(wire.poll_flush(cx)) {
                true if progress.ended => return Poll::Ready(Ok(())),
                true if waits => return Poll::Pending,
                true => {}
                false => progress.refused = true,
            }
        }
    }

    /// Queues the next piece, or the end. Pending while the client has sent nothing, or the upstream has no room.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Arc<Shared>,
        progress: &mut Progress,
        wire: &mut Wire,
    ) -> Result<Poll<()>, Error> {
        let Self { source, framing, trailers, bytes, meter, max, replay } = self;
        let mut go = Going { wire, progress, framing: *framing };
        let kept = replay.kept.get(go.progress.taken as usize..).unwrap_or_default();
        if !kept.is_empty() {
            let Poll::Ready(room) = go.poll_room(cx, kept.len()) else { return Ok(Poll::Pending) };
            go.queue(Piece::Borrowed(&kept[..room]), false);
            return Ok(Poll::Ready(()));
        }
        let mut read = |piece: &[u8]| {
            *bytes += piece.len() as u64;
            if let Some(meter) = meter {
                meter.flow(piece.len() as u64);
            }
            if max.is_some_and(|max| *bytes > max) {
                return Err(Error::new(Reason::BodyTooLarge, "the body is larger than limits.max_body"));
            }
            replay.push(piece, shared);
            Ok(())
        };
        match source {
            Source::Ended => go.end(trailers.as_ref()),
            Source::Http1(client, reader) => {
                let mut connection = client.connection.borrow_mut();
                match reader.poll_data(cx, &mut connection) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(Ok(0)) => *trailers = reader.decoder().trailers().cloned(),
                    Poll::Ready(Ok(size)) => {
                        let Poll::Ready(size) = go.poll_room(cx, size) else { return Ok(Poll::Pending) };
                        let piece = &connection.input()[..size];
                        read(piece)?;
                        go.queue(Piece::Borrowed(piece), reader.remaining() == Some(size as u64));
                        reader.consume(&mut connection, size);
                    }
                    Poll::Ready(Err(ReadError::Closed)) => return Err(Reason::ClientDisconnected.into()),
                    Poll::Ready(Err(ReadError::Refused(refusal))) => {
                        return Err(Error::new(Reason::BadRequest, refusal.detail));
                    }
                }
                if reader.is_done() {
                    *trailers = reader.decoder().trailers().cloned();
                    client.body_open.set(false);
                    drop(connection);
                    *source = Source::Ended;
                }
            }
            Source::Http2(stream, piece) => {
                if piece.is_empty() {
                    match stream.poll_data(cx) {
                        Poll::Pending => return Ok(Poll::Pending),
                        Poll::Ready(Some(Ok(data))) => *piece = data,
                        Poll::Ready(Some(Err(_))) => return Err(Reason::ClientDisconnected.into()),
                        Poll::Ready(None) => match stream.poll_trailers(cx) {
                            Poll::Pending => return Ok(Poll::Pending),
                            Poll::Ready(Err(_)) => return Err(Reason::ClientDisconnected.into()),
                            Poll::Ready(Ok(map)) => {
                                *trailers = map.map(|map| fields(&map));
                                *source = Source::Ended;
                            }
                        },
                    }
                    return Ok(Poll::Ready(()));
                }
                let Poll::Ready(size) = go.poll_room(cx, piece.len().min(QUEUED)) else {
                    return Ok(Poll::Pending);
                };
                let taken = piece.split_to(size);
                read(&taken)?;
                let ends = piece.is_empty() && stream.is_end_stream();
                go.queue(Piece::Shared(taken), ends);
                // The client may send as much again. That errs where the stream is over.
                let _ = stream.flow_control().release_capacity(size);
                if ends {
                    *source = Source::Ended;
                }
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// A body on its way up.
struct Going<'a> {
    wire: &'a mut Wire,
    progress: &'a mut Progress,
    framing: Framing,
}

impl Going<'_> {
    /// Ready with how much of `size` bytes goes up now; all of it where nobody takes it any more.
    fn poll_room(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<usize> {
        let room = ready!(self.wire.poll_room(cx, size));
        self.progress.refused |= room.is_none();
        Poll::Ready(room.unwrap_or(size))
    }

    /// Queues a piece; the body's last if it `ends` there.
    fn queue(&mut self, piece: Piece<'_>, ends: bool) {
        self.progress.taken += piece.size() as u64;
        self.progress.refused |= !self.wire.queue(self.framing, piece, ends);
        self.progress.ended |= ends;
    }

    fn end(&mut self, trailers: Option<&Fields>) {
        self.progress.refused |= !self.wire.queue_end(self.framing, trailers);
        self.progress.ended = true;
    }
}

impl Progress {
    /// At the body's beginning.
    pub fn new(body: &Body) -> Self {
        Self {
            ended: body.is_read() && body.framing != Framing::Chunked && body.bytes == 0,
            ..Self::default()
        }
    }

    /// Bytes of the body that this attempt has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether all of the body has been queued.
    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Replay {
    /// Keeps a piece, unless it is one too many: then all is given up.
    fn push(&mut self, piece: &[u8], shared: &Arc<Shared>) {
        if self.lost.is_some() {
            return;
        }
        let size = (self.kept.len() + piece.len()) as u64;
        let lost = if size > self.bound {
            Some(Skip::BodyTooLarge)
        } else {
            (!self.reserve(size, shared)).then_some(Skip::BufferMemory)
        };
        match lost {
            None => self.kept.extend_from_slice(piece),
            Some(_) => {
                self.lost = lost;
                self.kept = Vec::new();
                self.reservation = None;
            }
        }
    }

    fn reserve(&mut self, size: u64, shared: &Arc<Shared>) -> bool {
        let steps = size.next_multiple_of(STEP);
        match &mut self.reservation {
            Some(reservation) => {
                let held = reservation.bytes();
                steps <= held || reservation.grow(steps - held)
            }
            None => {
                self.reservation = shared.reserve(steps);
                self.reservation.is_some()
            }
        }
    }
}
