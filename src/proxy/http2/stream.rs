//! One stream: a request of the one kind that the path knows, its exchange, and the answer's way to the client.
//!
//! The client is watched all the while: a reset cancels the attempt at once. What the client's windows do not allow
//! is not handed to h2, so a client that takes nothing is seen here, by the same clock that sees it in HTTP/1, and
//! the exchange may become a stream meanwhile.
//!
//! How a stream ends: an answer of its own length ends it; a request that is still coming then is stopped with
//! NO_ERROR (RFC 9113 §8.1, by h2). An answer that cannot be completed is reset, INTERNAL_ERROR where the upstream
//! failed and CANCEL where we gave up on the client. REFUSED_STREAM comes from h2 alone, for streams that were never
//! begun.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};

use super::super::answer::Answer;
use super::super::body::Body;
use super::super::client::Informed;
use super::super::context::{Context, Peer, Routed};
use super::super::exchange::exchange;
use super::super::listener::Limits;
use super::super::record::Record;
use super::super::request::Request;
use super::super::response::{FromUpstream, Response};
use super::super::snapshot::Held;
use super::super::worker::Worker;
use super::guard::{RAPID, who_reset};
use super::head;
use super::line::Line;
use crate::http1::head::{Framing, Method, ResponseHead};
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Limit;

/// The largest piece of a body that is handed to h2 at once.
const PIECE: usize = 64 << 10;
/// Interim answers to a request that are sent whether the client takes them or not; further ones wait for the socket.
const INTERIM: u32 = 4;
/// What each counts as, of what may be handed to h2.
const INTERIM_SIZE: usize = 1 << 10;
/// How long an answer of our own to what no route takes waits for a client that takes nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// The streams of a connection, and what they share.
pub struct Streams {
    worker: Rc<Worker>,
    peer: Peer,
    line: Rc<Line>,
    /// The last snapshot that had the listener, and where in it.
    known: RefCell<(Held, usize)>,
    gone: Cell<bool>,
    open: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// A stream, counted until dropped.
struct Counted<'a>(&'a Streams);

/// The client of a stream before its answer.
struct Client<'a> {
    respond: RefCell<SendResponse<Bytes>>,
    line: &'a Line,
    told_to_continue: Cell<bool>,
    interim: Cell<u32>,
}

/// The client of a stream behind the head of its answer.
struct Taker<'a> {
    stream: SendStream<Bytes>,
    line: &'a Line,
}

/// The client has left the stream, or the connection is over.
struct Left;

impl Streams {
    /// No stream yet, on a connection whose listener is at `index` of `snapshot`.
    pub fn new(worker: Rc<Worker>, peer: Peer, line: Rc<Line>, (snapshot, index): (Held, usize)) -> Self {
        Self {
            worker,
            peer,
            line,
            known: RefCell::new((snapshot, index)),
            gone: Cell::new(false),
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        }
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// When the last one ended.
    pub fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    /// Whether a reload has taken the listener away, or it would not let this client in any more, as far as the last stream saw; or, with `look`, now.
    pub fn is_gone(&self, look: bool) -> bool {
        if look {
            self.known();
        }
        self.gone.get()
    }

    /// The configuration in force, and where the listener is in it; where it is gone, the last that had it.
    fn known(&self) -> (Held, usize) {
        let current = self.worker.snapshot();
        let mut known = self.known.borrow_mut();
        if !Rc::ptr_eq(&current, &known.0) {
            let index = self.peer.listener_in(&current);
            self.gone.set(index.is_none());
            if let Some(index) = index {
                *known = (current, index);
            }
        }
        (Rc::clone(&known.0), known.1)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let open = self.0.open.get() - 1;
        self.0.open.set(open);
        if open == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

/// Serves one stream.
pub async fn serve(
    streams: Rc<Streams>,
    incoming: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    streams.open.set(streams.open.get() + 1);
    let _counted = Counted(&streams);
    let line = &*streams.line;
    // Reset before it was looked at: nothing has begun that would be worth a line in the log.
    if let Poll::Ready(reset) = respond.poll_reset(&mut TaskContext::from_waker(std::task::Waker::noop())) {
        if let Ok(reason) = reset {
            line.reset_early(who_reset(reason.into()));
        }
        return;
    }
    let arrived = Instant::now();
    let worker = &streams.worker;
    let (snapshot, index) = streams.known();
    let (mut request, routed) = begin(worker, &streams.peer, (snapshot, index), incoming, arrived);

    let client = Client {
        respond: RefCell::new(respond),
        line,
        told_to_continue: Cell::new(false),
        interim: Cell::new(0),
    };
    let response = {
        let mut exchange = pin!(exchange(worker, &mut request, routed, Some(&client)));
        poll_fn(|cx| match exchange.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => client.poll_left(cx, arrived).map(|Left| None),
        })
        .await
    };
    let Some(response) = response else { return };
    let respond = client.respond.into_inner();
    match response {
        Response::Own(answer) => own(worker, &mut request, respond, line, answer).await,
        Response::Upstream(answer) => upstream(&mut request, respond, line, answer, arrived).await,
    }
}

/// Makes the request of an incoming stream, and finds where it goes.
fn begin(
    worker: &Rc<Worker>,
    peer: &Peer,
    (snapshot, index): (Held, usize),
    incoming: http::Request<RecvStream>,
    arrived: Instant,
) -> (Request, Result<Routed, Error>) {
    let listener = snapshot.listener_at(index);
    let limits = &listener.settings.limits;
    let (parts, stream) = incoming.into_parts();
    let mut head = worker.request_head();
    let bounded = bound(worker, limits, &parts).and_then(|()| head::translate(&mut head, &parts, &stream));
    if bounded.is_err() {
        head.clear();
    }
    let (context, checked) = Context::read(worker, listener, &head, peer, true, arrived);
    let max_body = limits.max_body.map(|size| size.bytes());
    let checked = bounded.and(checked).and_then(|()| match (head.framing, max_body) {
        (Framing::Length(length), Some(max)) if length > max => {
            Err(Error::new(Reason::BodyTooLarge, "Content-Length is larger than limits.max_body"))
        }
        _ => Ok(()),
    });
    let routed = checked.and_then(|()| Routed::find(&snapshot, index, (&head, &context), worker.draw_bits()));
    let body = Body::http2(stream, head.framing, max_body);
    let record = Record::begin(worker, Rc::clone(&snapshot), index, arrived);
    (Request::new(worker, head, body, context, record), routed)
}

/// The bounds on a head, which h2 would answer without a reason.
fn bound(worker: &Worker, limits: &Limits, parts: &http::request::Parts) -> Result<(), Error> {
    let (limit, detail) = if parts.headers.len() > limits.max_headers as usize {
        (Limit::MaxHeaders, "more fields than limits.max_headers")
    } else if head::size(parts) as u64 > limits.max_header_size.bytes() {
        (Limit::MaxHeaderSize, "larger than limits.max_header_size")
    } else {
        return Ok(());
    };
    worker.shared.metrics.limit_reached(limit).inc();
    Err(Error::new(Reason::HeaderTooLarge, detail))
}

/// Sends an answer of our own.
async fn own(
    worker: &Worker,
    request: &mut Request,
    mut respond: SendResponse<Bytes>,
    line: &Line,
    answer: Answer,
) {
    let now = Instant::now();
    let mut fields = head::fields(&answer.fields, |_| false);
    if !answer.body.is_empty() {
        fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(answer.body.len()));
    }
    let body = match request.head.method {
        Method::Head => Bytes::new(),
        _ => answer.body,
    };
    request.record.head_out(answer.status, now);
    let head = head::response(answer.status, fields);
    let sent = match respond.send_response(head, body.is_empty()) {
        Ok(stream) => send_whole(worker, request, Taker { stream, line }, body).await,
        Err(_) => Err(Reason::ClientDisconnected),
    };
    match sent {
        Ok(()) => request.finish(now),
        Err(reason) => request.record.reason = Some(reason),
    }
}

/// Sends a body that is there as a whole.
async fn send_whole(
    worker: &Worker,
    request: &mut Request,
    mut taker: Taker<'_>,
    mut body: Bytes,
) -> Result<(), Reason> {
    let timer = worker.timer();
    let patience = request.record.routed.as_ref().map(|routed| *routed.target().timeout.idle);
    while !body.is_empty() {
        timer.disarm();
        let room = poll_fn(|cx| match taker.poll_room(cx, body.len()) {
            Poll::Ready(room) => Poll::Ready(room.map_err(|Left| Reason::ClientDisconnected)),
            Poll::Pending => {
                if !timer.is_armed() {
                    timer.arm(Instant::now() + patience.unwrap_or(PATIENCE));
                }
                timer.poll(cx).map(|()| Err(Reason::ClientStalled))
            }
        })
        .await;
        let room = room.inspect_err(|_| taker.stream.send_reset(h2::Reason::CANCEL))?;
        let piece = body.split_to(room);
        request.passed_on(room);
        taker.send(piece, body.is_empty()).map_err(|Left| Reason::ClientDisconnected)?;
    }
    Ok(())
}

/// Passes an upstream's answer on.
async fn upstream(
    request: &mut Request,
    mut respond: SendResponse<Bytes>,
    line: &Line,
    mut answer: Box<FromUpstream>,
    arrived: Instant,
) {
    let now = Instant::now();
    request.record.head_out(answer.head.status, now);
    let ends = answer.is_bodiless();
    let head = head::response(answer.head.status, head::of_upstream(&answer.head));
    let Ok(stream) = respond.send_response(head, ends) else {
        request.record.reason = Some(Reason::ClientDisconnected);
        return;
    };
    let mut taker = Taker { stream, line };
    let mut relay = Relay { ended: ends, waited: false };
    let relayed = poll_fn(|cx| {
        let relayed = relay.poll(cx, &mut taker, request, &mut answer);
        if relayed.is_pending() {
            relay.waited = true;
            return taker.poll_left(cx, arrived).map(|Left| Err(Reason::ClientDisconnected));
        }
        relayed
    })
    .await;
    answer.tell(&mut request.record);
    match relayed {
        Ok(()) => request.finish(if relay.waited { Instant::now() } else { now }),
        Err(Reason::ClientDisconnected) => request.record.reason = Some(Reason::ClientDisconnected),
        Err(reason) => {
            request.record.reason = Some(reason);
            // The stream may end with its message only where that is complete.
            taker.stream.send_reset(match reason {
                Reason::ClientStalled => h2::Reason::CANCEL,
                _ => h2::Reason::INTERNAL_ERROR,
            });
            request.finish(Instant::now());
        }
    }
}

/// How far a body has been passed on.
struct Relay {
    /// The stream has been ended.
    ended: bool,
    /// It took time.
    waited: bool,
}

impl Relay {
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        taker: &mut Taker<'_>,
        request: &mut Request,
        answer: &mut FromUpstream,
    ) -> Poll<Result<(), Reason>> {
        loop {
            // The rest of the request's body moves on here, whether the client takes its answer or not.
            let size = match ready!(answer.poll_data(cx, &mut request.body)) {
                Ok(size) => size,
                Err(_) if self.ended => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error.reason)),
            };
            if size == 0 {
                if self.ended {
                    return Poll::Ready(Ok(()));
                }
                let ended = match answer.trailers() {
                    Some(trailers) => taker.stream.send_trailers(head::fields(trailers, |_| false)),
                    None => taker.stream.send_data(Bytes::new(), true),
                };
                return Poll::Ready(ended.map_err(|_| Reason::ClientDisconnected));
            }
            let room = match taker.poll_room(cx, size.min(PIECE)) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(Left)) => return Poll::Ready(Err(Reason::ClientDisconnected)),
                Poll::Pending => return answer.poll_client_stalled(cx).map(|error| Err(error.reason)),
            };
            self.ended = answer.is_last(room);
            if taker.send(answer.take(room), self.ended).is_err() {
                return Poll::Ready(Err(Reason::ClientDisconnected));
            }
            request.passed_on(room);
        }
    }
}

impl Client<'_> {
    /// Ready once the client has reset the stream that began at `arrived`, or left.
    fn poll_left(&self, cx: &mut TaskContext<'_>, arrived: Instant) -> Poll<Left> {
        let reset = ready!(self.respond.borrow_mut().poll_reset(cx));
        Poll::Ready(left(self.line, reset, arrived))
    }
}

impl Informed for Client<'_> {
    fn inform(&self, head: &ResponseHead) {
        let again = head.status == 100 && self.told_to_continue.replace(true);
        if again {
            return;
        }
        // A client that has left is noticed where it is watched.
        let interim = head::response(head.status, head::of_upstream(head));
        let _ = self.respond.borrow_mut().send_informational(interim);
        self.line.hand(INTERIM_SIZE);
        self.interim.set(self.interim.get() + 1);
    }

    fn poll_room(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if self.interim.get() < INTERIM || self.line.room(cx) > 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn was_told_to_continue(&self) -> bool {
        self.told_to_continue.get()
    }

    fn push(&self, _: &mut TaskContext<'_>) {
        // h2 has been told, and writes in its turn.
    }
}

impl Taker<'_> {
    /// Ready once the client has reset the stream that began at `arrived`, or left.
    fn poll_left(&mut self, cx: &mut TaskContext<'_>, arrived: Instant) -> Poll<Left> {
        let reset = ready!(self.stream.poll_reset(cx));
        Poll::Ready(left(self.line, reset, arrived))
    }

    /// Ready with how many of `wanted` bytes the client takes now, at least one.
    fn poll_room(&mut self, cx: &mut TaskContext<'_>, wanted: usize) -> Poll<Result<usize, Left>> {
        let room = self.line.room(cx).min(wanted);
        if room == 0 {
            return Poll::Pending;
        }
        self.stream.reserve_capacity(room);
        loop {
            match self.stream.capacity() {
                0 => {}
                capacity => return Poll::Ready(Ok(capacity.min(room))),
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Left)),
            }
        }
    }

    fn send(&mut self, piece: Bytes, ends: bool) -> Result<(), Left> {
        self.line.hand(piece.len());
        self.stream.send_data(piece, ends).map_err(|_| Left)
    }
}

/// The stream that began at `arrived` was reset, or its connection has ended.
fn left(line: &Line, reset: Result<h2::Reason, h2::Error>, arrived: Instant) -> Left {
    if let Ok(reason) = reset
        && arrived.elapsed() < RAPID
    {
        line.reset_early(who_reset(reason.into()));
    }
    Left
}
