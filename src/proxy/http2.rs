//! HTTP/2 clients, by hyper: each stream becomes a request of the one kind that the path knows.
//!
//! What HTTP/1.1 could not say without doubt is refused before it is written (`RequestHead::build`), so nothing
//! can be smuggled to an upstream.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::answer::Answer;
use super::body::Body;
use super::context::{Context, Peer, Routed};
use super::exchange::exchange;
use super::life::Stage;
use super::panics::survive;
use super::record::Record;
use super::request::Request;
use super::response::{FromUpstream, Response};
use super::shared::Shared;
use super::snapshot::Held;
use super::worker::Worker;
use crate::http1::connection::Connection;
use crate::http1::field::Fields;
use crate::http1::head::{Framing, RequestHead};
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Limit;

/// Room that hyper is given above our own bound on heads, which answers with a reason where hyper's would not.
const HEADER_ROOM: u32 = 64 << 10;
/// How often a connection with open streams looks after them at least.
const LOOK: Duration = Duration::from_secs(1);
/// The largest piece of a body that becomes a frame's data.
const PIECE: usize = 64 << 10;

/// What the streams of a connection tell it.
struct Streams {
    open: Cell<usize>,
    /// When the last one ended.
    idle_since: Cell<Instant>,
    bodies: RefCell<Vec<std::rc::Weak<RefCell<Relay>>>>,
    /// When the client's last body was cut because it takes nothing.
    cut: Cell<Option<Instant>>,
}

/// Serves one connection to its end.
pub async fn serve(worker: Rc<Worker>, connection: Connection, peer: Peer) {
    let snapshot = worker.snapshot();
    let Some(index) = snapshot.listener(&peer.listener) else { return };
    let limits = snapshot.listener_at(index).settings.limits;
    let streams = Rc::new(Streams {
        open: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        bodies: RefCell::default(),
        cut: Cell::new(None),
    });
    let known = Rc::new(RefCell::new(snapshot));
    let service = {
        let (worker, peer, streams) = (Rc::clone(&worker), peer.clone(), Rc::clone(&streams));
        service_fn(move |request| {
            let stream = Stream::begin(&streams);
            let (worker, peer, known) = (Rc::clone(&worker), peer.clone(), Rc::clone(&known));
            async move { one(worker, peer, &known, request, stream).await }
        })
    };
    let max_header_size = limits.max_header_size.bytes() as u32;
    let mut server = hyper::server::conn::http2::Builder::new(Local(Arc::clone(&worker.shared)));
    server
        .auto_date_header(false)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(max_header_size.saturating_mul(2).saturating_add(HEADER_ROOM));
    let mut connection = pin!(server.serve_connection(TokioIo::new(connection), service));
    let timer = worker.timer();
    let mut leaving = false;
    poll_fn(|cx| {
        // How a client breaks off is its own affair.
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let is_gone = || worker.snapshot().listener(&peer.listener).is_none();
        if !leaving && (worker.shared.life.stage() != Stage::Serving || is_gone()) {
            leaving = true;
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        let now = Instant::now();
        if streams.open.get() == 0 {
            let until = streams.idle_since.get() + *limits.idle_timeout;
            if until <= now {
                if !leaving {
                    worker.shared.metrics.limit_reached(Limit::IdleTimeout).inc();
                }
                return Poll::Ready(());
            }
            timer.arm(until);
        } else if streams.is_dead(now, *limits.idle_timeout) {
            // It takes nothing, not even the end of what was cut.
            return Poll::Ready(());
        } else {
            // A body may fill the client's window without this task being woken: so look again in any case.
            timer.arm(streams.end_stalled(now).unwrap_or(now + LOOK));
        }
        // Armed for what is looked at above: look again.
        if timer.poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

impl Streams {
    /// Ends bodies that their client has not taken for `timeout.idle`, since hyper asks for nothing while a client
    /// takes nothing. Returns when to look again.
    fn end_stalled(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        self.bodies.borrow_mut().retain(|body| {
            let Some(body) = body.upgrade() else { return false };
            let mut body = body.borrow_mut();
            let Some(until) = body.stalls_at() else { return body.answer.is_some() };
            if until <= now {
                body.end_stalled();
                self.cut.set(Some(now));
                return false;
            }
            next = Some(next.map_or(until, |next: Instant| next.min(until)));
            true
        });
        next
    }
}

impl Streams {
    /// Whether the client has taken nothing since its last body was cut, for the `idle` time of a connection.
    fn is_dead(&self, now: Instant, idle: Duration) -> bool {
        self.bodies.borrow().is_empty()
            && self.cut.get().is_some_and(|cut| now.saturating_duration_since(cut) >= idle)
    }
}

/// A stream, counted until dropped.
struct Stream {
    streams: Rc<Streams>,
}

impl Stream {
    fn begin(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self { streams: Rc::clone(streams) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.open.set(self.streams.open.get() - 1);
        if self.streams.open.get() == 0 {
            self.streams.idle_since.set(Instant::now());
        }
    }
}

/// Serves one stream.
async fn one(
    worker: Rc<Worker>,
    peer: Peer,
    known: &RefCell<Held>,
    incoming: http::Request<Incoming>,
    stream: Stream,
) -> Result<http::Response<Outgoing>, Infallible> {
    let arrived = Instant::now();
    let current = worker.snapshot();
    if current.listener(&peer.listener).is_some() {
        *known.borrow_mut() = current;
    }
    let snapshot = Rc::clone(&known.borrow());
    let index = snapshot.listener(&peer.listener).unwrap_or_default();
    let listener = snapshot.listener_at(index);
    let limits = &listener.settings.limits;
    let (parts, incoming) = incoming.into_parts();
    let mut head = worker.request_head();
    let translated = translate(&mut head, &parts, &incoming);
    let bounded = translated.and_then(|()| bound(&worker, limits, &parts));
    if bounded.is_err() {
        head.clear();
    }
    let (context, checked) = Context::read(&worker, listener, &head, &peer, true, arrived);
    let max_body = limits.max_body.map(|size| size.bytes());
    let checked = bounded.and(checked).and_then(|()| match (head.framing, max_body) {
        (Framing::Length(length), Some(max)) if length > max => {
            Err(Error::new(Reason::BodyTooLarge, "Content-Length is larger than limits.max_body"))
        }
        _ => Ok(()),
    });
    let routed = checked.and_then(|()| Routed::find(&snapshot, index, &head, worker.draw_bits()));
    let body = Body::http2(incoming, head.framing, max_body);
    let record = Record::begin(&worker, Rc::clone(&snapshot), index, arrived);
    let mut request = Request::new(&worker, head, body, context, record);
    let response = Box::pin(exchange(&worker, &mut request, routed, None)).await;
    Ok(respond(request, response, stream))
}

/// The bounds on a head, which hyper would answer without a reason.
fn bound(
    worker: &Worker,
    limits: &super::listener::Limits,
    parts: &http::request::Parts,
) -> Result<(), Error> {
    // As HTTP/2 counts a list of fields (RFC 9113 §6.5.2); method and scheme are short.
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    let size = fields.sum::<usize>() + path + authority;
    let (limit, detail) = if parts.headers.len() > limits.max_headers as usize {
        (Limit::MaxHeaders, "more fields than limits.max_headers")
    } else if size as u64 > limits.max_header_size.bytes() {
        (Limit::MaxHeaderSize, "larger than limits.max_header_size")
    } else {
        return Ok(());
    };
    worker.shared.metrics.limit_reached(limit).inc();
    Err(Error::new(Reason::HeaderTooLarge, detail))
}

/// The head as HTTP/1.1 would have said it.
fn translate(head: &mut RequestHead, parts: &http::request::Parts, body: &Incoming) -> Result<(), Error> {
    let framing = match parts.headers.get(http::header::CONTENT_LENGTH) {
        Some(value) => {
            let length = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length = length.and_then(|text| text.parse().ok());
            Framing::Length(length.ok_or_else(|| Error::new(Reason::BadRequest, "malformed Content-Length"))?)
        }
        None if body.is_end_stream() => Framing::None,
        None => Framing::Chunked,
    };
    let host = parts.headers.get(http::header::HOST).map(http::HeaderValue::as_bytes);
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(host), Some(authority)) = (host, authority)
        && !host.eq_ignore_ascii_case(authority)
    {
        return Err(Error::new(Reason::BadRequest, ":authority and Host differ"));
    }
    let authority = authority.or(host).unwrap_or_default();
    let path = match parts.uri.path_and_query() {
        Some(path) => path.as_str(),
        None if parts.method == http::Method::CONNECT => {
            return Err(Error::new(Reason::MethodNotAllowed, "CONNECT and TRACE are not proxied"));
        }
        None => "/",
    };
    let refused = |refusal: crate::http1::head::Refusal| Error::new(refusal.reason, refusal.detail);
    head.build(parts.method.as_str().as_bytes(), path.as_bytes(), authority, framing).map_err(refused)?;
    // Cookies may come in crumbs; HTTP/1.1 has them in one field (RFC 9113 §8.2.3).
    let mut cookies = Vec::new();
    for (name, value) in &parts.headers {
        if name == http::header::COOKIE {
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes());
            continue;
        }
        head.build_field(name.as_str().as_bytes(), value.as_bytes()).map_err(refused)?;
    }
    if !cookies.is_empty() {
        head.build_field(b"cookie", &cookies).map_err(refused)?;
    }
    Ok(())
}

/// The answer as hyper takes it.
fn respond(mut request: Request, response: Response, stream: Stream) -> http::Response<Outgoing> {
    let now = Instant::now();
    let (status, fields, answer) = match response {
        Response::Own(Answer { status, fields, body, .. }) => {
            let is_head = request.head.method == crate::http1::head::Method::Head;
            let body = if is_head { Bytes::new() } else { Bytes::from(body) };
            request.record.bytes_out = body.len() as u64;
            let mut headers = http::HeaderMap::with_capacity(fields.len() + 1);
            copy_fields(&mut headers, &fields, |_| false);
            (status, headers, Some(Source::Own(body)))
        }
        Response::Upstream(answer) => {
            let head = &answer.head;
            let mut headers = http::HeaderMap::with_capacity(head.fields.len());
            copy_fields(&mut headers, &head.fields, |name| head.is_connection_option(name));
            (head.status, headers, Some(Source::Upstream(answer)))
        }
    };
    request.record.head_out(status, now);
    let streams = Rc::clone(&stream.streams);
    let relay = Rc::new(RefCell::new(Relay { request, answer, stream, handed: None }));
    streams.bodies.borrow_mut().push(Rc::downgrade(&relay));
    let mut response = http::Response::new(Outgoing(relay));
    // A status above 599 is no status, but hyper takes all of three digits.
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_GATEWAY);
    *response.headers_mut() = fields;
    response
}

/// Copies what may stand in HTTP/2; names and values have been checked by the codec.
fn copy_fields(headers: &mut http::HeaderMap, fields: &Fields, is_option: impl Fn(&[u8]) -> bool) {
    for field in fields.iter() {
        if field.known.is_hop_by_hop() || is_option(field.name) {
            continue;
        }
        let name = http::HeaderName::from_bytes(field.name);
        let value = http::HeaderValue::from_bytes(field.value);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
}

/// The body of an answer on its way to the client.
struct Outgoing(Rc<RefCell<Relay>>);

/// What is behind it.
struct Relay {
    request: Request,
    /// Gone once the answer has ended.
    answer: Option<Source>,
    stream: Stream,
    /// When the client was handed the last piece and has not asked for another.
    handed: Option<Instant>,
}

enum Source {
    Own(Bytes),
    Upstream(Box<FromUpstream>),
    /// It was cut while the client took nothing, which is told as soon as it does.
    Cut(Reason),
}

impl Relay {
    fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.handed = None;
        self.stream.streams.cut.set(None);
        match &mut self.answer {
            None => Poll::Ready(None),
            Some(Source::Cut(reason)) => {
                let reason = *reason;
                self.answer = None;
                Poll::Ready(Some(Err(Broken(reason))))
            }
            Some(Source::Own(body)) => {
                let body = std::mem::take(body);
                self.end(None);
                Poll::Ready((!body.is_empty()).then(|| Ok(Frame::data(body))))
            }
            Some(Source::Upstream(answer)) => match answer.poll_data(cx, &mut self.request.body) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => {
                    self.end(Some(error.reason));
                    Poll::Ready(Some(Err(Broken(error.reason))))
                }
                Poll::Ready(Ok(0)) => {
                    let trailers = answer.trailers().map(|fields| {
                        let mut trailers = http::HeaderMap::with_capacity(fields.len());
                        copy_fields(&mut trailers, fields, |_| false);
                        trailers
                    });
                    self.end(None);
                    Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
                }
                Poll::Ready(Ok(size)) => {
                    let size = size.min(PIECE);
                    let piece = Bytes::copy_from_slice(answer.data(size));
                    answer.consume(size);
                    self.request.record.bytes_out += size as u64;
                    self.handed = Some(Instant::now());
                    Poll::Ready(Some(Ok(Frame::data(piece))))
                }
            },
        }
    }

    /// The answer has ended, well or not.
    fn end(&mut self, reason: Option<Reason>) {
        if let Some(Source::Upstream(answer)) = &self.answer {
            self.request.record.is_stream = answer.is_stream();
        }
        self.answer = None;
        if reason.is_some() {
            self.request.record.reason = reason;
        }
        self.request.finish(Instant::now());
    }

    /// When the client will have taken nothing for too long.
    fn stalls_at(&self) -> Option<Instant> {
        let routed = self.request.record.routed.as_ref()?;
        let Some(Source::Own(_) | Source::Upstream(_)) = &self.answer else { return None };
        Some(self.handed? + *routed.target().timeout.idle)
    }

    fn end_stalled(&mut self) {
        self.end(Some(Reason::ClientStalled));
        self.answer = Some(Source::Cut(Reason::ClientStalled));
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.0.borrow_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0.borrow().answer {
            None => true,
            Some(Source::Own(body)) => body.is_empty(),
            Some(Source::Upstream(answer)) => answer.head.framing == Framing::None,
            Some(Source::Cut(_)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.borrow().answer {
            Some(Source::Own(body)) => SizeHint::with_exact(body.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

/// The answer's message is cut.
#[derive(Debug)]
pub struct Broken(Reason);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.label())
    }
}

impl std::error::Error for Broken {}

/// Starts hyper's tasks on this worker.
#[derive(Clone)]
struct Local(Arc<Shared>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_local(async move { survive(future, shared.metrics.panics()).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::field::Name;

    #[test]
    fn fields_of_the_connection_do_not_reach_http2() {
        let mut fields = Fields::default();
        for (name, value) in
            [("connection", "x-private"), ("x-private", "1"), ("keep-alive", "5"), ("etag", "a")]
        {
            fields.push(Name::of(name.as_bytes()), name.as_bytes(), value.as_bytes());
        }
        let mut headers = http::HeaderMap::new();
        copy_fields(&mut headers, &fields, |name| name == b"x-private");
        assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["etag"]);
    }
}
