//! One HTTP/2 stream to an endpoint: a request and its answer, as HTTP/1.1 would have said them.
//!
//! What the path needs of a stream and nothing more: the answer's head, data as it stands in the frame, room for data
//! of one's own, trailers, and what an end means. Flow control follows use: what the client has taken gives the peer
//! room for as much more, so a client that does not read holds the endpoint up and nobody's memory; and room is asked
//! for data that is there, since what a quiet stream has reserved of the connection's window no other can use. Not
//! here: which connection the stream is on (`http2`).
//!
//! Dropped before its end, it is cancelled (RST_STREAM) at once.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};

use crate::http1::field::{Fields, Name};
use crate::http1::head::{Framing, Limits, ResponseHead};
use crate::reason::{Error, Reason};

/// A request on its way, and its answer.
pub struct Stream {
    send: SendStream<Bytes>,
    answer: Answer,
    request_is_head: bool,
    /// Data that has come and is not used.
    piece: Bytes,
    trailers: Option<Fields>,
    /// What of a body of known length is not used yet.
    remaining: Option<u64>,
    /// The end of the answer has come.
    ended: bool,
    /// The endpoint has no room for what waits here.
    blocked: bool,
}

enum Answer {
    Head(ResponseFuture),
    Body(RecvStream),
}

/// Why a stream ended before its answer did.
#[derive(Debug)]
pub struct Broken {
    /// Why.
    pub error: Error,
    /// Whether the endpoint surely has not processed the request.
    pub unprocessed: bool,
    /// Whether the endpoint closes the connection and has not begun with this stream.
    pub left_behind: bool,
    /// Whether the connection broke off, without a word about this stream.
    pub connection_broke: bool,
}

impl Stream {
    /// The stream that `send_request` gave.
    pub fn new(answer: ResponseFuture, send: SendStream<Bytes>, request_is_head: bool) -> Self {
        Self {
            send,
            answer: Answer::Head(answer),
            request_is_head,
            piece: Bytes::new(),
            trailers: None,
            remaining: None,
            ended: false,
            blocked: false,
        }
    }

    /// Ready with the answer's head in `head`: that of an interim answer, or of the final one.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        limits: &Limits,
    ) -> Poll<Result<(), Broken>> {
        let Answer::Head(answer) = &mut self.answer else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
            let (parts, ()) = interim.map_err(|error| Broken::of(&error))?.into_parts();
            return Poll::Ready(build(head, &parts, false, self.request_is_head, limits));
        }
        let (parts, body) =
            ready!(std::pin::Pin::new(answer).poll(cx)).map_err(|error| Broken::of(&error))?.into_parts();
        let ends = body.is_end_stream();
        build(head, &parts, ends, self.request_is_head, limits)?;
        self.ended = ends || head.framing == Framing::None;
        self.remaining = match head.framing {
            Framing::Length(length) => Some(length),
            Framing::None => Some(0),
            Framing::Chunked | Framing::UntilClose => None,
        };
        self.answer = Answer::Body(body);
        Poll::Ready(Ok(()))
    }

    /// Ready with the size of [`Stream::data`]; 0: the answer has ended.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        loop {
            if !self.piece.is_empty() {
                return Poll::Ready(Ok(self.piece.len()));
            }
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            match ready!(self.poll_next(cx))? {
                Some(piece) => self.piece = piece,
                None => self.ended = true,
            }
        }
    }

    /// The next frame's data; none at the end, with which the trailers are there.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        let Answer::Body(body) = &mut self.answer else { return Poll::Ready(Ok(None)) };
        match ready!(body.poll_data(cx)) {
            Some(Ok(piece)) => Poll::Ready(Ok(Some(piece))),
            Some(Err(error)) => Poll::Ready(Err(Broken::of(&error))),
            None => {
                let trailers = ready!(body.poll_trailers(cx)).map_err(|error| Broken::of(&error))?;
                self.trailers = trailers.as_ref().map(fields);
                Poll::Ready(Ok(None))
            }
        }
    }

    /// Ready with true once `size` bytes of data stand in one piece; with false where the answer ends before.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn poll_gather(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<Result<bool, Broken>> {
        while self.piece.len() < size && !self.ended {
            match ready!(self.poll_next(cx))? {
                Some(piece) if self.piece.is_empty() => self.piece = piece,
                Some(piece) => {
                    let mut joined = BytesMut::with_capacity(size.max(self.piece.len() + piece.len()));
                    joined.extend_from_slice(&self.piece);
                    joined.extend_from_slice(&piece);
                    self.piece = joined.freeze();
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(Ok(self.piece.len() >= size))
    }

    /// The data that has come and is not used.
    pub fn data(&self) -> &[u8] {
        &self.piece
    }

    /// `size` bytes of the data are used.
    pub fn consume(&mut self, size: usize) {
        self.piece.advance(size);
        self.release(size);
    }

    /// Takes `size` bytes of the data, without copying them.
    pub fn take(&mut self, size: usize) -> Bytes {
        let piece = self.piece.split_to(size);
        self.release(size);
        piece
    }

    fn release(&mut self, size: usize) {
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(size as u64));
        if let Answer::Body(body) = &mut self.answer {
            // Fails for more than has come, which the piece's size rules out.
            let _ = body.flow_control().release_capacity(size);
        }
    }

    /// Whether the answer ends behind these `size` bytes of data, without trailers.
    pub fn is_last(&self, size: usize) -> bool {
        let is_over = || match &self.answer {
            Answer::Head(_) => false,
            Answer::Body(body) => self.ended || body.is_end_stream(),
        };
        self.piece.len() == size && self.trailers.is_none() && is_over()
    }

    /// Whether the answer has been read to its end.
    pub fn is_done(&self) -> bool {
        self.ended && self.piece.is_empty()
    }

    /// Payload that is still to be used, where the head said how much.
    pub fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    /// What followed the data.
    pub fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }

    /// Ready with how much of `wanted` bytes may be sent now, at least one; none: the endpoint takes no more.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Option<usize>> {
        let mut room = self.send.capacity();
        if room == 0 {
            self.send.reserve_capacity(wanted);
            room = self.send.capacity();
        }
        if room == 0 {
            self.blocked = true;
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(granted)) => room = granted,
                None | Some(Err(_)) => return Poll::Ready(None),
            }
        }
        self.blocked = false;
        Poll::Ready(Some(room.min(wanted)))
    }

    /// Whether data waits for the endpoint to have room.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends data, for which there is room; false where the endpoint takes no more.
    pub fn send(&mut self, data: Bytes, ends: bool) -> bool {
        self.send.send_data(data, ends).is_ok()
    }

    /// Ends the request with these trailers; false where the endpoint takes no more.
    pub fn send_end(&mut self, trailers: Option<&Fields>) -> bool {
        match trailers.filter(|trailers| !trailers.is_empty()) {
            None => self.send(Bytes::new(), true),
            Some(trailers) => self.send.send_trailers(map(trailers)).is_ok(),
        }
    }
}

impl Broken {
    /// What this error of the library says of the stream that met it.
    pub fn of(error: &h2::Error) -> Self {
        let reset = |detail: String| Error::new(Reason::UpstreamReset, detail);
        let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if error.is_remote() && error.is_go_away() {
            // RFC 9113 §6.8: a stream meets the peer's GOAWAY only where its id is above the last one that the peer
            // will process. The others go on.
            let error =
                reset("the endpoint closes its connection and has not begun with the request".to_owned());
            return Self { error, unprocessed: true, left_behind: true, connection_broke: false };
        }
        let connection_broke = error.reason().is_none();
        let unprocessed = error.is_remote() && error.is_reset() && is_refused;
        let error = match error.reason() {
            Some(h2::Reason::HTTP_1_1_REQUIRED) if error.is_remote() => {
                Error::new(Reason::ProtocolError, "the endpoint wants HTTP/1.1 for this request")
            }
            Some(reason) if error.is_remote() => {
                reset(format!("the endpoint reset the stream: {}", name(reason)))
            }
            Some(reason) => {
                let detail = format!("the endpoint broke the rules of HTTP/2: {}", name(reason));
                Error::new(Reason::ProtocolError, detail)
            }
            None => reset("the connection broke off".to_owned()),
        };
        Self { error, unprocessed, left_behind: false, connection_broke }
    }
}

/// The name of an error code (RFC 9113 §7).
fn name(reason: h2::Reason) -> String {
    format!("{reason:?}")
}

/// A head of HTTP/2 as one of HTTP/1.1.
fn build(
    head: &mut ResponseHead,
    parts: &http::response::Parts,
    ends: bool,
    request_is_head: bool,
    limits: &Limits,
) -> Result<(), Broken> {
    let refused = |detail: &'static str| Broken {
        error: Error::new(Reason::ProtocolError, detail),
        unprocessed: false,
        left_behind: false,
        connection_broke: false,
    };
    if parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused("the endpoint switches protocols, which HTTP/2 cannot"));
    }
    if parts.headers.len() > limits.max_fields {
        return Err(refused("too many fields"));
    }
    let fields = parts.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    head.build(parts.status.as_u16(), fields, ends, request_is_head)
        .map_err(|refusal| refused(refusal.detail))
}

/// Trailers of HTTP/2 as fields, without those that could mean something about the framing.
pub fn fields(map: &http::HeaderMap) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in map {
        let known = Name::of(name.as_str().as_bytes());
        if !known.is_hop_by_hop() && !matches!(known, Name::ContentLength | Name::Host) {
            fields.push(known, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    fields
}

/// Fields as HTTP/2 has them; they have been checked by a codec.
fn map(fields: &Fields) -> http::HeaderMap {
    let mut map = http::HeaderMap::with_capacity(fields.len());
    for field in fields.iter().filter(|field| !field.known.is_hop_by_hop()) {
        let name = http::HeaderName::from_bytes(field.name);
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_bytes(field.value)) {
            map.append(name, value);
        }
    }
    map
}
