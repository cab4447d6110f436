//! HTTP/1 clients: a head after the other from the connection, an answer after the other to it.
//!
//! A request is served while its client is watched: one that leaves takes its attempt with it. What cannot be
//! framed without doubt is answered once and nothing behind it is read as a request.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answer::Answer;
use super::body::Body;
use super::client::Client;
use super::context::{Context, Peer, Routed};
use super::exchange::{exchange, refuse};
use super::life::Stage;
use super::listener::Direction;
use super::record::Record;
use super::request::Request;
use super::response::{FromUpstream, Response};
use super::snapshot::Held;
use super::tunnel::{Broke, Flow};
use super::worker::Worker;
use crate::http1::connection::Connection;
use crate::http1::encode;
use crate::http1::field::Name;
use crate::http1::head::{Framing, Limits, Method, Parsed, RequestHead, Version};
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Limit;
use crate::timer::Timer;

/// Pieces up to this size are written together with what is queued.
const TOGETHER: usize = 16 << 10;
/// How long a connection that is closed with unread bytes is still read, so that its client sees the answer and
/// not a reset.
const LINGER: Duration = Duration::from_secs(1);
/// The largest piece of a body that is written at once.
const PIECE: usize = 64 << 10;
/// How long an answer of our own waits for a client that takes nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a client that nothing is read from is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The most bytes that are read then.
const LINGER_BYTES: usize = 1 << 20;

/// What comes next on a connection.
enum Next {
    Request(RequestHead),
    Refused(RequestHead, Error),
    /// Nothing: the client has left, or is not wanted any more.
    End,
}

/// Whether the connection serves another request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Another,
    Close,
    /// At once, and not to be taken for a clean end.
    Reset,
}

/// Serves one connection to its end. `snapshot` has its listener.
pub async fn serve(worker: &Rc<Worker>, client: Rc<Client>, peer: &Peer, mut snapshot: Held) {
    let timer = worker.timer();
    let mut now = Instant::now();
    loop {
        let next = next(worker, &client, &timer, peer, &snapshot, now).await;
        let current = worker.snapshot();
        if peer.listener_in(&current).is_some() {
            snapshot = current;
        }
        // Boxed, so that an idle connection is small.
        let then = match next {
            Next::End => return client.connection.borrow_mut().say_goodbye(),
            Next::Request(head) => {
                let one = One { worker, client: &client, peer, snapshot: &snapshot };
                Box::pin(one.serve(head)).await
            }
            Next::Refused(head, error) => {
                let one = One { worker, client: &client, peer, snapshot: &snapshot };
                Box::pin(one.refuse(head, error)).await
            }
        };
        match then {
            (Then::Another, at) => now = at,
            (Then::Close, _) => return linger(&client, &timer).await,
            (Then::Reset, _) => return client.connection.borrow().reset_when_dropped(),
        }
    }
}

/// Waits for the head of the next request.
async fn next(
    worker: &Worker,
    client: &Client,
    timer: &Timer,
    peer: &Peer,
    snapshot: &Held,
    now: Instant,
) -> Next {
    let Some(index) = peer.listener_in(snapshot) else { return Next::End };
    let limits = &snapshot.listener_at(index).settings.limits;
    let parse_limits =
        Limits { max_size: limits.max_header_size.bytes() as usize, max_fields: limits.max_headers as usize };
    let mut head: Option<RequestHead> = None;
    let mut scanned = 0;
    let mut has_begun = false;
    client.connection.borrow_mut().rest();
    timer.arm(now + *limits.idle_timeout);
    let next = poll_fn(|cx| {
        let mut connection = client.connection.borrow_mut();
        loop {
            if !connection.input().is_empty() {
                let head = head.get_or_insert_with(|| worker.request_head());
                match head.parse(connection.input(), &mut scanned, &parse_limits) {
                    // An empty line behind a request is not yet the beginning of another.
                    Ok(Parsed::Partial)
                        if !has_begun
                            && connection.input().iter().any(|byte| !matches!(byte, b'\r' | b'\n')) =>
                    {
                        has_begun = true;
                        timer.arm(Instant::now() + *limits.header_timeout);
                    }
                    Ok(Parsed::Partial) => {}
                    Ok(Parsed::Head { size }) => {
                        connection.consume(size);
                        return Poll::Ready(Ok(true));
                    }
                    Err(refusal) => {
                        if refusal.reason == Reason::HeaderTooLarge {
                            let is_large = connection.input().len() >= parse_limits.max_size;
                            let limit = if is_large { Limit::MaxHeaderSize } else { Limit::MaxHeaders };
                            worker.shared.metrics.limit_reached(limit).inc();
                        }
                        return Poll::Ready(Err(Error::new(refusal.reason, refusal.detail)));
                    }
                }
            }
            match connection.poll_fill(cx, usize::MAX) {
                Poll::Ready(Ok(size)) if size > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Ok(false)),
                Poll::Pending => break,
            }
        }
        if timer.poll(cx).is_ready() {
            if !has_begun {
                worker.shared.metrics.limit_reached(Limit::IdleTimeout).inc();
                return Poll::Ready(Ok(false));
            }
            worker.shared.metrics.limit_reached(Limit::HeaderTimeout).inc();
            return Poll::Ready(Err(Reason::HeaderTimeout.into()));
        }
        // Woken by a reload or a drain: an idle connection to a listener that is gone ends here.
        let is_gone = || peer.listener_in(&worker.snapshot()).is_none();
        if connection.input().is_empty() && (worker.shared.life.stage() == Stage::Refusing || is_gone()) {
            return Poll::Ready(Ok(false));
        }
        Poll::Pending
    })
    .await;
    timer.disarm();
    match (next, head) {
        (Ok(true), Some(head)) => Next::Request(head),
        (Err(error), Some(head)) => Next::Refused(head, error),
        _ => Next::End,
    }
}

/// One request of a connection.
struct One<'a> {
    worker: &'a Rc<Worker>,
    client: &'a Rc<Client>,
    peer: &'a Peer,
    snapshot: &'a Held,
}

impl One<'_> {
    /// Whether the listener still has it. Asked when the answer goes out: a reload may have come meanwhile.
    fn is_wanted(&self) -> bool {
        let current = self.worker.snapshot();
        Rc::ptr_eq(&current, self.snapshot) || self.peer.listener_in(&current).is_some()
    }

    /// The listener's place in the snapshot.
    fn listener(&self) -> usize {
        self.peer.listener_in(self.snapshot).unwrap_or_default()
    }

    async fn serve(&self, head: RequestHead) -> (Then, Instant) {
        let arrived = Instant::now();
        let worker = self.worker;
        let index = self.listener();
        let listener = self.snapshot.listener_at(index);
        let limits = &listener.settings.limits;
        let (context, checked) = Context::read(worker, listener, &head, self.peer, false, arrived);
        let max_body = limits.max_body.map(|size| size.bytes());
        let body = Body::http1(self.client, head.framing, max_body);
        self.client.begin(!body.is_read(), head.version == Version::Http11);
        let checked = checked.and_then(|()| match (head.framing, max_body) {
            (Framing::Length(length), Some(max)) if length > max => {
                Err(Error::new(Reason::BodyTooLarge, "Content-Length is larger than limits.max_body"))
            }
            _ => Ok(()),
        });
        let routed =
            checked.and_then(|()| Routed::find(self.snapshot, index, (&head, &context), worker.draw_bits()));
        let record = Record::begin(worker, Rc::clone(self.snapshot), index, arrived);
        let mut request = Request::new(worker, head, body, context, record);

        let response = {
            let mut exchange = pin!(exchange(worker, &mut request, routed, Some(&**self.client)));
            let look = worker.timer();
            poll_fn(|cx| match exchange.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => self.poll_left(cx, &look, limits.half_close).map(|()| None),
            })
            .await
        };
        match response {
            Some(response) => self.answer(&mut request, response, limits.half_close).await,
            None => (Then::Close, arrived),
        }
    }

    /// Answers what could not be read as a request.
    async fn refuse(&self, mut head: RequestHead, error: Error) -> (Then, Instant) {
        let arrived = Instant::now();
        let index = self.listener();
        let listener = self.snapshot.listener_at(index);
        head.clear();
        head.keep_alive = false;
        let (context, _) = Context::read(self.worker, listener, &head, self.peer, false, arrived);
        let record = Record::begin(self.worker, Rc::clone(self.snapshot), index, arrived);
        let mut request = Request::new(self.worker, head, Body::none(), context, record);
        let answer = refuse(&mut request, error);
        self.answer(&mut request, Response::Own(answer), false).await
    }

    /// Ready once the client has left, as [`Client::poll_left`]; where that does not show by itself it is looked at
    /// every now and then.
    fn poll_left(&self, cx: &mut TaskContext<'_>, look: &Timer, half_close: bool) -> Poll<()> {
        if self.client.poll_left(cx, half_close).is_ready() {
            return Poll::Ready(());
        }
        if !self.client.needs_looking_at() {
            return Poll::Pending;
        }
        if look.is_armed() {
            if look.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.client.connection.borrow().is_broken() {
                return Poll::Ready(());
            }
        }
        look.arm(Instant::now() + LOOK);
        look.poll(cx)
    }

    /// Writes the answer.
    async fn answer(&self, request: &mut Request, response: Response, half_close: bool) -> (Then, Instant) {
        if request.record.reason == Some(Reason::ClientDisconnected) {
            return (Then::Close, Instant::now());
        }
        if matches!(response, Response::Own(_)) {
            request.body.skip_what_is_there();
        }
        let now = Instant::now();
        let mut then = match request.head.keep_alive
            && self.is_wanted()
            && !self.client.body_open.get()
            && self.worker.shared.life.stage() == Stage::Serving
        {
            true => Then::Another,
            false => Then::Close,
        };
        let written = match response {
            Response::Own(answer) => {
                request.record.head_out(answer.status, now);
                let body =
                    if request.head.method == Method::Head { Bytes::new() } else { answer.body.clone() };
                queue_answer(&mut self.client.connection.borrow_mut(), request, &answer, then);
                self.write_whole(request, &body).await
            }
            Response::Upstream(answer) if answer.switches() => {
                request.record.head_out(answer.head.status, now);
                queue_switch(&mut self.client.connection.borrow_mut(), &answer);
                let end = self.tunnel(request, answer).await;
                request.finish(end);
                return (Then::Close, end);
            }
            Response::Upstream(answer) => {
                request.record.head_out(answer.head.status, now);
                let framing =
                    queue_head(&mut self.client.connection.borrow_mut(), request, &answer, &mut then);
                self.relay(request, answer, framing, half_close).await
            }
        };
        match written {
            Ok(end) => {
                let end = end.unwrap_or(now);
                request.finish(end);
                (then, end)
            }
            Err(Cut(then)) => (then, now),
        }
    }

    /// Writes what is queued, and `body` behind it, as the client takes it; ready with the time if that took any.
    async fn write_whole(&self, request: &mut Request, mut body: &[u8]) -> Result<Option<Instant>, Cut> {
        if body.len() <= TOGETHER {
            self.client.connection.borrow_mut().output().extend_from_slice(body);
            request.passed_on(body.len());
            return self.flush().await;
        }
        let patience = request.record.routed.as_ref().map(|routed| *routed.target().timeout.idle);
        let timer = self.worker.timer();
        while !body.is_empty() {
            timer.disarm();
            let written = poll_fn(|cx| {
                match self.client.connection.borrow_mut().poll_write(cx, &body[..body.len().min(PIECE)]) {
                    Poll::Ready(written) => Poll::Ready(written.map_err(|_| Reason::ClientDisconnected)),
                    Poll::Pending => {
                        if !timer.is_armed() {
                            timer.arm(Instant::now() + patience.unwrap_or(PATIENCE));
                        }
                        timer.poll(cx).map(|()| Err(Reason::ClientStalled))
                    }
                }
            })
            .await;
            let written = written.map_err(|reason| {
                request.record.reason = Some(reason);
                Cut(Then::Close)
            })?;
            request.passed_on(written);
            body = &body[written..];
        }
        self.flush().await.map(|end| end.or_else(|| Some(Instant::now())))
    }

    /// Writes what is queued; ready with the time if that took any.
    async fn flush(&self) -> Result<Option<Instant>, Cut> {
        let timer = self.worker.timer();
        let limit = PATIENCE;
        let mut waited = false;
        let flushed = poll_fn(|cx| match self.client.poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_| Cut(Then::Close))),
            Poll::Pending => {
                if !std::mem::replace(&mut waited, true) {
                    timer.arm(Instant::now() + limit);
                }
                timer.poll(cx).map(|()| Err(Cut(Then::Close)))
            }
        })
        .await;
        flushed.map(|()| waited.then(Instant::now))
    }

    /// Passes an upstream's body on; ready with the time if that took any.
    async fn relay(
        &self,
        request: &mut Request,
        mut answer: Box<FromUpstream>,
        framing: Framing,
        half_close: bool,
    ) -> Result<Option<Instant>, Cut> {
        let mut relay = Relay { announced: 0, ended: false, waited: false };
        let look = self.worker.timer();
        let relayed = poll_fn(|cx| {
            let relayed = relay.poll(cx, self.client, request, &mut answer, framing);
            if relayed.is_pending() {
                relay.waited = true;
                if !relay.ended && self.poll_left(cx, &look, half_close).is_ready() {
                    return Poll::Ready(Err(Reason::ClientDisconnected));
                }
            }
            relayed
        })
        .await;
        answer.tell(&mut request.record);
        match relayed {
            Ok(()) => Ok(relay.waited.then(Instant::now)),
            Err(reason) => {
                request.record.reason = Some(reason);
                Err(Cut(if framing == Framing::UntilClose { Then::Reset } else { Then::Close }))
            }
        }
    }

    /// Passes bytes both ways in whatever protocol client and upstream have agreed on, until both have ended, one
    /// broke off, nothing flowed for `stream_idle` or nobody took it for `idle`, or the process leaves.
    async fn tunnel(&self, request: &mut Request, mut answer: Box<FromUpstream>) -> Instant {
        let routed = request.record.routed.as_ref();
        let times =
            routed.map(|routed| (*routed.target().timeout.idle, *routed.target().timeout.stream_idle));
        let direction = self.snapshot.listener_at(self.listener()).settings.direction;
        let (mut up, mut down) = (Flow::default(), Flow::default());
        let mut moved = (0, Instant::now());
        let mut meter = request.body.meter.take();
        let timer = self.worker.timer();
        let reason = poll_fn(|cx| {
            let Some(upstream) = answer.switched() else { return Poll::Ready(None) };
            let mut client = self.client.connection.borrow_mut();
            let ended = match (up.poll(cx, &mut client, upstream), down.poll(cx, upstream, &mut client)) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(None),
                (Poll::Ready(Err(Broke::From)), _) | (_, Poll::Ready(Err(Broke::To))) => {
                    Some(Reason::ClientDisconnected)
                }
                // Where the client has ended already, that is what the upstream's end comes from.
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) if client.has_ended() => {
                    Some(Reason::ClientDisconnected)
                }
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Some(Reason::UpstreamReset),
                _ => None,
            };
            if ended.is_some() {
                return Poll::Ready(ended);
            }
            let bytes = up.bytes + down.bytes;
            if bytes != moved.0 {
                if let Some(meter) = &mut meter {
                    meter.flow(bytes - moved.0);
                }
                moved = (bytes, Instant::now());
            }
            let (side, is_blocked) = match (down.is_blocked, up.is_blocked) {
                (true, _) => (Reason::ClientStalled, true),
                (false, is_blocked) => (Reason::UpstreamStalled, is_blocked),
            };
            loop {
                let now = Instant::now();
                if self.worker.shared.life.has_ended_upgrades(direction == Direction::Ingress) {
                    return Poll::Ready(Some(Reason::Draining));
                }
                let until = times
                    .filter(|_| answer.is_timed())
                    .map(|(idle, stream_idle)| moved.1 + if is_blocked { idle } else { stream_idle });
                if until.is_some_and(|until| until <= now) {
                    if answer.gives_up(side) {
                        return Poll::Ready(Some(side));
                    }
                    continue;
                }
                let drains = self.worker.shared.life.stage() != Stage::Serving;
                match until.into_iter().chain(drains.then_some(now + LOOK)).min() {
                    Some(next) => timer.arm(next),
                    None => timer.disarm(),
                }
                if timer.poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
        answer.let_go_of_switched(reason);
        if let Some(meter) = &mut meter {
            meter.flow(up.bytes + down.bytes - moved.0);
        }
        request.record.is_stream = true;
        request.record.reason = reason;
        request.record.bytes_out = down.bytes;
        request.body.bytes = up.bytes;
        Instant::now()
    }
}

/// The message is cut: how the connection ends.
struct Cut(Then);

/// How far a body has been passed on.
struct Relay {
    /// Bytes of the chunk at hand that are not passed on yet.
    announced: usize,
    ended: bool,
    waited: bool,
}

impl Relay {
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        client: &Client,
        request: &mut Request,
        answer: &mut FromUpstream,
        framing: Framing,
    ) -> Poll<Result<(), Reason>> {
        loop {
            if self.ended {
                return match client.poll_flush(cx) {
                    Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_| Reason::ClientDisconnected)),
                    Poll::Pending => answer.poll_client_stalled(cx).map(|error| Err(error.reason)),
                };
            }
            let size = match answer.poll_data(cx, &mut request.body) {
                Poll::Ready(Ok(size)) => size,
                Poll::Ready(Err(error)) => {
                    // What came before the break goes out; the end of the message does not.
                    let _ = client.poll_flush(cx);
                    return Poll::Ready(Err(error.reason));
                }
                Poll::Pending => {
                    return match client.poll_flush(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(Reason::ClientDisconnected)),
                        _ => Poll::Pending,
                    };
                }
            };
            let mut connection = client.connection.borrow_mut();
            if size == 0 {
                if framing == Framing::Chunked {
                    encode::last_chunk(connection.output(), answer.trailers());
                }
                self.ended = true;
                continue;
            }
            let is_chunked = framing == Framing::Chunked;
            if is_chunked && self.announced == 0 {
                self.announced = size;
                encode::chunk(connection.output(), size);
            }
            let size = if is_chunked { size.min(self.announced) } else { size };
            let taken = if connection.unwritten() + size <= TOGETHER {
                connection.output().extend_from_slice(answer.data(size));
                size
            } else {
                match connection.poll_write(cx, answer.data(size)) {
                    Poll::Ready(Ok(taken)) => taken,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientDisconnected)),
                    Poll::Pending => return answer.poll_client_stalled(cx).map(|error| Err(error.reason)),
                }
            };
            request.passed_on(taken);
            answer.consume(taken);
            if is_chunked {
                self.announced -= taken;
                if self.announced == 0 {
                    connection.output().extend_from_slice(encode::CHUNK_END);
                }
            }
        }
    }
}

/// Queues the head of an answer of our own.
fn queue_answer(connection: &mut Connection, request: &Request, answer: &Answer, then: Then) {
    let out = connection.output();
    encode::status_line(out, answer.status, b"");
    for field in answer.fields.iter() {
        encode::field(out, field.name, field.value);
    }
    // RFC 9110 §8.6: there is none where there can be no body.
    if !matches!(answer.status, 204 | 304) {
        encode::field(out, b"content-length", itoa::Buffer::new().format(answer.body.len()).as_bytes());
    }
    queue_connection(out, request, then);
    encode::end(out);
}

/// Queues the head by which an upstream agrees to another protocol.
fn queue_switch(connection: &mut Connection, answer: &FromUpstream) {
    let (out, head) = (connection.output(), &answer.head);
    encode::status_line(out, head.status, head.reason_phrase());
    out.extend_from_slice(b"connection: upgrade\r\n");
    head.fields.write(out, |field| {
        field.known == Name::Upgrade || !field.known.is_hop_by_hop() && !head.is_connection_option(field.name)
    });
    encode::end(out);
}

/// Queues the head of an upstream's answer and returns how its body is framed towards this client.
fn queue_head(
    connection: &mut Connection,
    request: &Request,
    answer: &FromUpstream,
    then: &mut Then,
) -> Framing {
    let out = connection.output();
    let head = &answer.head;
    let framing = match (head.framing, request.head.version) {
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
        (framing, _) => framing,
    };
    encode::status_line(out, head.status, head.reason_phrase());
    head.fields.write(out, |field| !field.known.is_hop_by_hop() && !head.is_connection_option(field.name));
    match framing {
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::UntilClose => *then = Then::Close,
        // HTTP/2 need not say that nothing follows, HTTP/1.1 must.
        Framing::Length(0) if !head.fields.has(Name::ContentLength) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Framing::None | Framing::Length(_) => {}
    }
    queue_connection(out, request, *then);
    encode::end(out);
    framing
}

/// HTTP/1.1 keeps connections unless told otherwise, HTTP/1.0 the other way round.
fn queue_connection(out: &mut Vec<u8>, request: &Request, then: Then) {
    match (then, request.head.version) {
        (Then::Close | Then::Reset, _) => out.extend_from_slice(b"connection: close\r\n"),
        (Then::Another, Version::Http10) => out.extend_from_slice(b"connection: keep-alive\r\n"),
        (Then::Another, Version::Http11) => {}
    }
}

/// Closes the sending side and reads on for a while: bytes that come after a close would be answered with a
/// reset, and that could reach the client before it has read its answer.
async fn linger(client: &Client, timer: &Timer) {
    let mut left = LINGER_BYTES;
    let read = poll_fn(|cx| {
        let mut connection = client.connection.borrow_mut();
        if connection.has_ended() || connection.poll_shutdown(cx).is_pending() {
            return Poll::Ready(());
        }
        loop {
            let size = connection.input().len();
            connection.consume(size);
            left = left.saturating_sub(size);
            match connection.poll_fill(cx, usize::MAX) {
                Poll::Ready(Ok(1..)) if left > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    // Either way the connection ends now.
    let _ = timer.within(Instant::now() + LINGER, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_fields_are_known_by_name() {
        for name in ["connection", "keep-alive", "transfer-encoding", "te", "upgrade", "proxy-connection"] {
            assert!(Name::of(name.as_bytes()).is_hop_by_hop(), "{name}");
        }
    }
}
