//! The head of a request as it goes up: what of the client's is passed on, and what an attempt adds.
//!
//! Decided once for both ways: a `Sink` takes the fields as HTTP/1.1's lines or as HTTP/2's map.

use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::context::Routed;
use super::fault;
use super::request::Request;
use super::send::Clock;
use super::worker::Worker;
use crate::http1::encode;
use crate::http1::field::{Field, Fields, Name};
use crate::http1::head::{Framing, Version};
use crate::policy::deadline;
use crate::reason::{Error, Reason};
use crate::transport::UNIX_PEER;
use crate::upstream::Host;
use crate::upstream::endpoint::Endpoint;

/// What an attempt adds to the request's head.
#[derive(Clone, Copy)]
pub struct Up {
    /// Counts own attempts from 1.
    attempt: u32,
    /// The client goes on with its body already, so the upstream is not asked whether it should.
    told_to_continue: bool,
    /// What the attempt may take.
    left: Option<Duration>,
    /// What its caller gave it. In gRPC a deadline bounds a whole call, streams included, and our own times no more than
    /// a head: the upstream would end a stream that nothing here ends.
    caller_left: Option<Duration>,
}

impl Up {
    /// What the attempt `attempt`, from 1, adds. `told_to_continue`: the client goes on with its body already.
    pub fn new(attempt: u32, told_to_continue: bool) -> Self {
        Self { attempt, told_to_continue, left: None, caller_left: None }
    }

    /// The upstream is told what `clock` leaves at `now`.
    pub fn set_left(&mut self, clock: &Clock, now: Instant) {
        self.left = clock.left(now);
        self.caller_left = clock.caller_left(now);
    }
}

/// Queues the head as HTTP/1.1.
pub fn queue(
    out: &mut Vec<u8>,
    request: &Request,
    routed: &Routed,
    endpoint: &Endpoint,
    worker: &Worker,
    up: &Up,
) {
    let head = &request.head;
    out.extend_from_slice(head.method_text());
    out.push(b' ');
    routed.target().route.rewritten(head.path_and_query(), out);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    write_host(out, request, routed, endpoint);
    out.extend_from_slice(b"\r\n");
    let takes_trailers = |te: &[u8]| te.eq_ignore_ascii_case(b"trailers");
    if head.fields.has(Name::Te) && head.fields.get(Name::Te).is_some_and(takes_trailers) {
        // TE is a hop-by-hop field, so this hop must name it too (RFC 9110 §10.1.4).
        out.extend_from_slice(b"connection: te\r\n");
    }
    if request.context.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
        head.fields.all(Name::Upgrade).for_each(|protocols| encode::field(out, b"upgrade", protocols));
    }
    if request.body.framing() == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    fields(&mut Lines(out), request, routed, worker, up);
    encode::end(out);
}

/// The head as HTTP/2.
///
/// # Errors
/// [`Reason::BadRequest`] where the target holds what HTTP/2's library takes for no path or authority.
pub fn build(
    request: &Request,
    routed: &Routed,
    endpoint: &Endpoint,
    worker: &Worker,
    up: &Up,
) -> Result<http::Request<()>, Error> {
    let head = &request.head;
    let refused = |detail: &'static str| move |_| Error::new(Reason::BadRequest, detail);
    let mut text = Vec::with_capacity(128);
    routed.target().route.rewritten(head.path_and_query(), &mut text);
    let path_end = text.len();
    write_host(&mut text, request, routed, endpoint);
    let text = Bytes::from(text);
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if endpoint.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
    let path = PathAndQuery::from_maybe_shared(text.slice(..path_end));
    parts.path_and_query = Some(path.map_err(refused("the path cannot be said in HTTP/2"))?);
    let authority = Authority::from_maybe_shared(text.slice(path_end..));
    parts.authority = Some(authority.map_err(refused("the authority cannot be said in HTTP/2"))?);
    let mut up_head = http::Request::new(());
    *up_head.uri_mut() =
        http::Uri::from_parts(parts).map_err(|_| Error::new(Reason::BadRequest, "malformed target"))?;
    *up_head.version_mut() = http::Version::HTTP_2;
    *up_head.method_mut() = http::Method::from_bytes(head.method_text())
        .map_err(|_| Error::new(Reason::BadRequest, "malformed method"))?;
    let mut map = Map { headers: HeaderMap::with_capacity(head.fields.len() + 8), text: Vec::new() };
    fields(&mut map, request, routed, worker, up);
    *up_head.headers_mut() = map.headers;
    Ok(up_head)
}

/// A field that is added; its name in both forms.
struct Added {
    line: &'static [u8],
    name: HeaderName,
}

/// Declares fields that are added.
macro_rules! added {
    ($($constant:ident = $name:literal,)*) => {
        $(static $constant: Added = Added {
            line: concat!($name, ": ").as_bytes(),
            name: HeaderName::from_static($name),
        };)*
    };
}

added! {
    CONTENT_LENGTH = "content-length",
    X_REQUEST_ID = "x-request-id",
    X_REQUEST_TIMEOUT_MS = "x-request-timeout-ms",
    X_ENVOY_TIMEOUT = "x-envoy-expected-rq-timeout-ms",
    GRPC_TIMEOUT = "grpc-timeout",
    X_RETRY_ATTEMPT = "x-retry-attempt",
    X_OUTRIGGER_PATH = "x-outrigger-path",
    X_OUTRIGGER_SHED = "x-outrigger-shed",
    X_PRIORITY = "x-priority",
    X_FORWARDED_FOR = "x-forwarded-for",
    X_FORWARDED_PROTO = "x-forwarded-proto",
    X_FORWARDED_HOST = "x-forwarded-host",
    VIA = "via",
}

/// Where the fields of a head go.
trait Sink {
    /// Takes those of `fields` that `keep` wants.
    fn copy(&mut self, fields: &Fields, keep: impl FnMut(&Field<'_>) -> bool);

    /// Takes a field more, whose value `write` appends.
    fn add(&mut self, added: &Added, write: impl FnOnce(&mut Vec<u8>));
}

/// The lines of a head of HTTP/1.1.
struct Lines<'a>(&'a mut Vec<u8>);

impl Sink for Lines<'_> {
    fn copy(&mut self, fields: &Fields, keep: impl FnMut(&Field<'_>) -> bool) {
        fields.write(self.0, keep);
    }

    fn add(&mut self, added: &Added, write: impl FnOnce(&mut Vec<u8>)) {
        self.0.extend_from_slice(added.line);
        write(self.0);
        self.0.extend_from_slice(b"\r\n");
    }
}

/// The fields of HTTP/2.
struct Map {
    headers: HeaderMap,
    /// The value at hand.
    text: Vec<u8>,
}

impl Sink for Map {
    fn copy(&mut self, fields: &Fields, mut keep: impl FnMut(&Field<'_>) -> bool) {
        for field in fields.iter().filter(|field| keep(field)) {
            // Both have been checked by the codec that read them.
            let name = HeaderName::from_bytes(field.name);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
                self.headers.append(name, value);
            }
        }
    }

    fn add(&mut self, added: &Added, write: impl FnOnce(&mut Vec<u8>)) {
        self.text.clear();
        write(&mut self.text);
        if let Ok(value) = HeaderValue::from_bytes(&self.text) {
            self.headers.append(added.name.clone(), value);
        }
    }
}

/// The fields: the client's that go on, then what is added.
fn fields(sink: &mut impl Sink, request: &Request, routed: &Routed, worker: &Worker, up: &Up) {
    let head = &request.head;
    let context = &request.context;
    let forwarded = routed.listener().forwarded;
    let mut envoy_deadline = false;
    let mut grpc_deadline = false;
    sink.copy(&head.fields, |field| {
        let goes_up = match field.known {
            // What asks for faults is obeyed further up too, where this sidecar is trusted.
            Name::Other => context.trusted || !fault::is_field(field.name),
            known if known.is_hop_by_hop() => {
                known == Name::Te && field.value.eq_ignore_ascii_case(b"trailers")
            }
            Name::Host | Name::ContentLength => false,
            Name::XRequestId | Name::XRequestTimeoutMs | Name::XRetryAttempt => false,
            Name::XEnvoyExpectedRqTimeoutMs => {
                envoy_deadline |= context.trusted;
                false
            }
            Name::GrpcTimeout => {
                grpc_deadline = true;
                false
            }
            Name::XPriority | Name::XOutriggerShed => false,
            Name::XForwardedFor | Name::XForwardedProto | Name::XForwardedHost => !forwarded,
            Name::Via => !forwarded,
            Name::XOutriggerPath => false,
            Name::Expect => !up.told_to_continue,
            _ => true,
        };
        goes_up && (field.known == Name::Te || !head.is_connection_option(field.name))
    });
    if let Framing::Length(length) = request.body.framing() {
        sink.add(&CONTENT_LENGTH, |out| number(out, length));
    }
    sink.add(&X_REQUEST_ID, |out| out.extend_from_slice(request.id()));
    if let Some(left) = if context.grpc { up.caller_left } else { up.left } {
        let millis = left.as_millis() as u64;
        if !context.grpc {
            sink.add(&X_REQUEST_TIMEOUT_MS, |out| number(out, millis));
        }
        if envoy_deadline {
            sink.add(&X_ENVOY_TIMEOUT, |out| number(out, millis));
        }
    }
    if let Some(left) = up.caller_left.filter(|_| grpc_deadline) {
        sink.add(&GRPC_TIMEOUT, |out| deadline::write_grpc_timeout(left, out));
    }
    let sent_before = context.caller_attempt.saturating_add(up.attempt - 1);
    if sent_before > 0 {
        sink.add(&X_RETRY_ATTEMPT, |out| number(out, sent_before.into()));
    }
    if let Some(priority) = routed.said_priority(context) {
        sink.add(&X_PRIORITY, |out| out.extend_from_slice(priority.label().as_bytes()));
    }
    if let Some(report) = routed.target().chain.shed.as_ref().and_then(|shedding| shedding.source.report()) {
        sink.add(&X_OUTRIGGER_SHED, |out| out.extend_from_slice(report.as_bytes()));
    }
    sink.add(&X_OUTRIGGER_PATH, |out| {
        list(out, head.fields.all(Name::XOutriggerPath));
        out.extend_from_slice(worker.shared.id.as_bytes());
    });
    if forwarded {
        add_forwarded(sink, request);
    }
}

fn add_forwarded(sink: &mut impl Sink, request: &Request) {
    let (head, context) = (&request.head, &request.context);
    let kept = |name: Name| context.trusted.then(|| head.fields.all(name)).into_iter().flatten();
    sink.add(&X_FORWARDED_FOR, |out| {
        list(out, kept(Name::XForwardedFor));
        let _ = write!(out, "{}", context.peer.ip().to_canonical());
    });
    let proto = kept(Name::XForwardedProto).next().unwrap_or(if context.tls { b"https" } else { b"http" });
    sink.add(&X_FORWARDED_PROTO, |out| out.extend_from_slice(proto));
    let host = kept(Name::XForwardedHost).next().unwrap_or(head.authority());
    if !host.is_empty() {
        sink.add(&X_FORWARDED_HOST, |out| out.extend_from_slice(host));
    }
    sink.add(&VIA, |out| {
        list(out, head.fields.all(Name::Via));
        let version: &[u8] = match (context.http2, head.version) {
            (true, _) => b"2",
            (false, Version::Http11) => b"1.1",
            (false, Version::Http10) => b"1.0",
        };
        out.extend_from_slice(version);
        out.extend_from_slice(b" outrigger");
    });
}

/// Appends the entries of a list that more follows.
fn list<'a>(out: &mut Vec<u8>, entries: impl Iterator<Item = &'a [u8]>) {
    for entry in entries {
        out.extend_from_slice(entry);
        out.extend_from_slice(b", ");
    }
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn write_host(out: &mut Vec<u8>, request: &Request, routed: &Routed, endpoint: &Endpoint) {
    let target = routed.target();
    if let Some(host) = &target.route.settings.rewrite.host {
        return out.extend_from_slice(host.as_bytes());
    }
    let authority = request.head.authority();
    match &target.chain.upstream.settings.host {
        Host::Name(name) => out.extend_from_slice(name.as_bytes()),
        Host::Keep if !authority.is_empty() => out.extend_from_slice(authority),
        Host::Auto if !authority.is_empty() && !is_own_address(authority, request) => {
            out.extend_from_slice(authority);
        }
        _ => out.extend_from_slice(endpoint.host.as_bytes()),
    }
}

/// Whether the client asked for the listener's own address, as one does that knows nothing but the sidecar.
fn is_own_address(authority: &[u8], request: &Request) -> bool {
    let local = request.context.local;
    let host = request.head.host();
    let port =
        authority.get(host.len() + 1..).and_then(|port| std::str::from_utf8(port).ok()?.parse::<u16>().ok());
    let default = if request.context.tls { 443 } else { 80 };
    // Clients at a Unix socket give whatever port comes to their mind.
    if port.unwrap_or(default) != local.port() && local != UNIX_PEER {
        return false;
    }
    let host = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host);
    let ip = std::str::from_utf8(host).ok().and_then(|host| host.parse::<std::net::IpAddr>().ok());
    host.eq_ignore_ascii_case(b"localhost")
        || ip.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified() || ip == local.ip().to_canonical())
}
