//! One request on an upstream's connection: the head as it goes up, the body beside the answer, until the
//! answer's head is there.
//!
//! The answer is read while the body is still written: an upstream may answer before it has read all, and one
//! that does not read at all would otherwise wait for us as we for it.

use std::future::poll_fn;
use std::io::Write;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::body::Progress;
use super::client::Informed;
use super::context::Routed;
use super::request::Request;
use super::worker::Worker;
use crate::http1::connection::{Connection, ReadError};
use crate::http1::encode;
use crate::http1::field::Name;
use crate::http1::head::{Framing, Limits, Method, ResponseHead, Version};
use crate::policy::breaker::Permit;
use crate::policy::deadline;
use crate::policy::mode::Mode;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Effect;
use crate::timer::Timer;
use crate::tls::error::refusal;
use crate::transport::UNIX_PEER;
use crate::upstream::Host;
use crate::upstream::endpoint::Endpoint;

/// Bounds of a response's head. Not configurable: larger ones are no answers of a sane service.
const RESPONSE_LIMITS: Limits = Limits { max_size: 256 << 10, max_fields: 256 };

/// How long a probe of the breaker may take until it moves on: queue, connect, a piece of its upload. From when it
/// has gone up it may take what an attempt may.
pub const LEASE: Duration = Duration::from_secs(60);

/// How long an attempt may take.
#[derive(Clone, Default)]
pub struct Clock {
    /// Whether the configured times cut; in shadow what they would have cut is counted. The caller's deadline cuts
    /// in any case.
    pub mode: Mode,
    /// Making a connection.
    pub connect: Option<Duration>,
    /// The attempt's timeout, from when its body has gone up.
    pub attempt: Option<Duration>,
    /// The same, were it not for the rest of the request's time.
    pub whole_attempt: Option<Duration>,
    /// When `timeout.request` ends; moves on while a body flows.
    pub request: Option<Instant>,
    /// When the caller's deadline ends.
    pub caller: Option<Instant>,
    /// How long a body may stand still.
    pub idle: Option<Duration>,
    /// When the request had gone up, once it has.
    pub sent: Option<Instant>,
}

impl Clock {
    /// When the request must have its answer.
    pub fn end(&self) -> Option<Instant> {
        self.cuts(self.request).into_iter().chain(self.caller).min()
    }

    /// A configured time, if it cuts.
    pub fn cuts<T>(&self, time: Option<T>) -> Option<T> {
        time.filter(|_| self.mode == Mode::Enforce)
    }

    /// What an attempt that begins at `now` may take.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let end = self.end().map(|end| end.saturating_duration_since(now));
        self.cuts(self.attempt).into_iter().chain(end).min()
    }

    /// Which of the request's own bounds has passed at `now`.
    pub fn over(&self, now: Instant) -> Option<Reason> {
        let over = |instant: Option<Instant>| instant.is_some_and(|instant| instant <= now);
        if over(self.caller) {
            Some(Reason::DeadlineExceeded)
        } else {
            over(self.request).then_some(Reason::RequestTimeout)
        }
    }
}

/// Why no answer's head came.
pub struct Unanswered {
    /// Why.
    pub error: Error,
    /// Whether the endpoint surely has not processed the request: no byte of it can have been read.
    pub unprocessed: bool,
    /// Whether anything of an answer had come.
    pub begun: bool,
}

/// What an attempt adds to the request's head.
pub struct Up {
    /// Counts own attempts from 1.
    pub attempt: u32,
    /// What the upstream is told of the time that is left.
    pub left: Option<Duration>,
    /// The client goes on with its body already, so the upstream is not asked whether it should.
    pub told_to_continue: bool,
}

/// Queues the request's head as it goes up.
pub fn queue_head(
    out: &mut Vec<u8>,
    request: &Request,
    routed: &Routed,
    endpoint: &Endpoint,
    worker: &Worker,
    up: &Up,
) {
    let head = &request.head;
    let context = &request.context;
    let target = routed.target();
    out.extend_from_slice(head.method_text());
    out.push(b' ');
    target.route.rewritten(head.path_and_query(), out);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    write_host(out, request, routed, endpoint);
    out.extend_from_slice(b"\r\n");

    let forwarded = routed.listener().forwarded;
    let mut envoy_deadline = false;
    let mut grpc_deadline = false;
    head.fields.write(out, |field| {
        let goes_up = match field.known {
            Name::Other => true,
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
            Name::XPriority => context.trusted,
            Name::XForwardedFor | Name::XForwardedProto | Name::XForwardedHost => !forwarded,
            Name::Via => !forwarded,
            Name::XOutriggerPath => false,
            Name::Expect => !up.told_to_continue,
            _ => true,
        };
        goes_up && (field.known == Name::Te || !head.is_connection_option(field.name))
    });
    if head.fields.has(Name::Te)
        && head.fields.get(Name::Te).is_some_and(|te| te.eq_ignore_ascii_case(b"trailers"))
    {
        // TE is a hop-by-hop field, so this hop must name it too (RFC 9110 §10.1.4).
        out.extend_from_slice(b"connection: te\r\n");
    }
    if context.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
        head.fields.all(Name::Upgrade).for_each(|protocols| encode::field(out, b"upgrade", protocols));
    }
    match request.body.framing() {
        Framing::Length(length) => number(out, b"content-length: ", length),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
    encode::field(out, b"x-request-id", request.id());
    if let Some(left) = up.left {
        let millis = left.as_millis() as u64;
        if !context.grpc {
            number(out, b"x-request-timeout-ms: ", millis);
        }
        if envoy_deadline {
            number(out, b"x-envoy-expected-rq-timeout-ms: ", millis);
        }
        if grpc_deadline {
            out.extend_from_slice(b"grpc-timeout: ");
            deadline::write_grpc_timeout(left, out);
            out.extend_from_slice(b"\r\n");
        }
    }
    let sent_before = context.caller_attempt.saturating_add(up.attempt - 1);
    if sent_before > 0 {
        number(out, b"x-retry-attempt: ", sent_before.into());
    }
    out.extend_from_slice(b"x-outrigger-path: ");
    for path in head.fields.all(Name::XOutriggerPath) {
        out.extend_from_slice(path);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(worker.shared.id.as_bytes());
    out.extend_from_slice(b"\r\n");
    if forwarded {
        write_forwarded(out, request);
    }
    encode::end(out);
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

fn write_forwarded(out: &mut Vec<u8>, request: &Request) {
    let (head, context) = (&request.head, &request.context);
    let kept = |name: Name| context.trusted.then(|| head.fields.all(name)).into_iter().flatten();
    out.extend_from_slice(b"x-forwarded-for: ");
    for entry in kept(Name::XForwardedFor) {
        out.extend_from_slice(entry);
        out.extend_from_slice(b", ");
    }
    let _ = write!(out, "{}\r\n", context.peer.ip().to_canonical());
    let proto = kept(Name::XForwardedProto).next().unwrap_or(if context.tls { b"https" } else { b"http" });
    encode::field(out, b"x-forwarded-proto", proto);
    let host = kept(Name::XForwardedHost).next().unwrap_or(head.authority());
    if !host.is_empty() {
        encode::field(out, b"x-forwarded-host", host);
    }
    out.extend_from_slice(b"via: ");
    for entry in head.fields.all(Name::Via) {
        out.extend_from_slice(entry);
        out.extend_from_slice(b", ");
    }
    let version: &[u8] = match (context.http2, head.version) {
        (true, _) => b"2",
        (false, Version::Http11) => b"1.1",
        (false, Version::Http10) => b"1.0",
    };
    out.extend_from_slice(version);
    out.extend_from_slice(b" outrigger\r\n");
}

fn number(out: &mut Vec<u8>, name: &[u8], value: u64) {
    out.extend_from_slice(name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What sending needs besides the request and its connection.
pub struct Sending<'a> {
    /// The worker.
    pub worker: &'a Worker,
    /// The request's timer.
    pub timer: &'a Timer,
    /// Who gets interim answers.
    pub client: Option<&'a dyn Informed>,
    /// Where it goes.
    pub routed: &'a Routed,
    /// The breaker's permit, whose lease runs from when the request has gone up.
    pub permit: Option<&'a Permit>,
}

impl Sending<'_> {
    /// Sends what is queued and the request's body, and waits for the head of the answer. Interim answers go to
    /// the client; `answer` becomes its head. Begins now.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn send(
        &self,
        wire: &mut Connection,
        request: &mut Request,
        progress: &mut Progress,
        clock: &mut Clock,
        (answer, started): (&mut ResponseHead, Instant),
    ) -> Result<(), Unanswered> {
        let queued = wire.unwritten();
        let is_head = request.head.method == Method::Head;
        let mut scanned = 0;
        let mut sent = false;
        // How far the body was at the last look, and when that was.
        let mut moved = (usize::MAX, started);
        poll_fn(|cx| {
            loop {
                if !sent {
                    match request.body.poll_send(cx, &self.worker.shared, progress, wire) {
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Unanswered::of(error, false))),
                        Poll::Ready(Ok(())) => {
                            sent = true;
                            // The attempt's time runs from here; the request's stood still while its body flowed.
                            let mut now = started;
                            if moved.0 != usize::MAX {
                                now = Instant::now();
                                clock.request = clock.request.map(|request| request + (now - started));
                                request.context.stood_still += now - started;
                            }
                            clock.sent = Some(now);
                            clock.arm(self.timer, now);
                            if let Some(permit) = self.permit {
                                let request = *self.routed.target().timeout.request;
                                permit.renew(now, clock.attempt.unwrap_or(request));
                            }
                        }
                        Poll::Pending => {
                            let mark = progress.taken() as usize ^ wire.unwritten() << 32;
                            if mark != moved.0 {
                                moved = (mark, Instant::now());
                                if let Some(permit) = self.permit {
                                    permit.renew(moved.1, LEASE);
                                }
                                if self.waits_for_word(request, progress) {
                                    clock.arm(self.timer, started);
                                } else {
                                    arm(self.timer, [clock.idle.map(|idle| moved.1 + idle), clock.caller]);
                                }
                            }
                        }
                    }
                }
                // Interim answers wait here for a client that does not read them.
                if self.client.is_some_and(|client| client.poll_room(cx).is_pending()) {
                    if self.timer.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    return Poll::Ready(Err(Unanswered::of(Reason::ClientStalled.into(), true)));
                }
                match wire.poll_response_head(cx, answer, &mut scanned, is_head, &RESPONSE_LIMITS) {
                    Poll::Ready(Ok(())) if answer.status == 101 && request.context.upgrade => {
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Ok(())) if answer.status == 101 => {
                        let error =
                            Error::new(Reason::ProtocolError, "the upstream switches protocols unasked");
                        return Poll::Ready(Err(Unanswered::of(error, true)));
                    }
                    Poll::Ready(Ok(())) if answer.status < 200 => {
                        if let Some(client) = self.client {
                            client.inform(answer);
                            // The client may have been told to go on: then its body is waited for.
                            moved = (usize::MAX - 1, Instant::now());
                            client.push(cx);
                        }
                        continue;
                    }
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(ReadError::Refused(refusal))) => {
                        let error = Error::new(Reason::ProtocolError, refusal.detail);
                        return Poll::Ready(Err(Unanswered::of(error, true)));
                    }
                    Poll::Ready(Err(ReadError::Closed)) => {
                        if let Some(why) = wire.failure().and_then(refusal) {
                            let error = Error::new(Reason::TlsError, why);
                            return Poll::Ready(Err(Unanswered { error, unprocessed: true, begun: false }));
                        }
                        let begun = !wire.input().is_empty();
                        let detail = if begun {
                            "closed in the head of its answer"
                        } else {
                            "closed without an answer"
                        };
                        let error = Error::new(Reason::UpstreamReset, detail);
                        // Where not even the first byte could be written, nobody can have read one.
                        let unprocessed = wire.unwritten() == queued && progress.taken() == 0;
                        return Poll::Ready(Err(Unanswered { error, unprocessed, begun }));
                    }
                    Poll::Pending => {}
                }
                if self.timer.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let error = elapsed(clock, sent || self.waits_for_word(request, progress), wire);
                if clock.mode == Mode::Enforce || error.reason == Reason::DeadlineExceeded {
                    return Poll::Ready(Err(Unanswered::of(error, false)));
                }
                // A shadow timeout counts what it would have cut, once, and lets go.
                let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
                shard.rejected(error.reason, Effect::Shadowed).inc();
                *clock =
                    Clock { mode: Mode::Off, caller: clock.caller, sent: clock.sent, ..Clock::default() };
                clock.arm(self.timer, started);
            }
        })
        .await
    }

    /// Whether the client waits with its body for the upstream's word: then the upstream's time runs.
    fn waits_for_word(&self, request: &Request, progress: &Progress) -> bool {
        let told = self.client.is_none_or(|client| client.was_told_to_continue());
        request.head.expect_continue && !told && progress.taken() == 0
    }
}

impl Unanswered {
    /// No answer, because of `error`.
    pub fn of(error: Error, begun: bool) -> Self {
        Self { error, unprocessed: false, begun }
    }
}

impl Clock {
    /// Arms `timer` for an attempt whose body has gone up at `now`.
    fn arm(&self, timer: &Timer, now: Instant) {
        arm(timer, [self.attempt.map(|attempt| now + attempt), self.request, self.caller]);
    }
}

/// Arms for the first of these instants; for none, not at all.
fn arm<const N: usize>(timer: &Timer, instants: [Option<Instant>; N]) {
    match instants.into_iter().flatten().min() {
        Some(first) => timer.arm(first),
        None => timer.disarm(),
    }
}

/// Which timeout it was.
fn elapsed(clock: &Clock, sent: bool, wire: &Connection) -> Error {
    match clock.over(Instant::now()) {
        Some(Reason::DeadlineExceeded) => Reason::DeadlineExceeded.into(),
        _ if !sent => {
            let stalled = if wire.unwritten() > 0 { Reason::UpstreamStalled } else { Reason::ClientStalled };
            Error::new(stalled, "the request's body made no progress for timeout.idle")
        }
        Some(reason) => reason.into(),
        None => Reason::AttemptTimeout.into(),
    }
}
