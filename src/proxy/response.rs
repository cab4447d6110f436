//! The answer to a request: one that Outrigger made, or one that comes from an upstream and is passed on piece
//! by piece.
//!
//! The upstream's answer holds what its attempt took: connection, slot, breaker permit, its place among the
//! endpoint's requests. All of it comes back when the body has ended, when it broke, or when it is dropped
//! because the client left. Where the exchange becomes a stream (`text/event-stream`, or a body that runs longer
//! than `stream_after`) the slot comes back at once and the stream is counted apart.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::answer::Answer;
use super::body::{Body, Progress};
use super::context::Routed;
use super::queue::Slot;
use super::shared::Reservation;
use super::words;
use super::worker::Worker;
use crate::http1::connection::{BodyReader, Connection, ReadError};
use crate::http1::field::{Fields, Name};
use crate::http1::head::{Framing, ResponseHead};
use crate::policy::backoff;
use crate::policy::breaker::{Outcome, Permit};
use crate::policy::failure::Verdict;
use crate::policy::mode::Mode;
use crate::policy::retry::{Cause, Skip};
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::{AttemptOutcome, Effect, Limit};
use crate::timer::Timer;
use crate::upstream::Observed;
use crate::upstream::endpoint::InFlight;
use crate::upstream::pool::ToEndpoint;

/// The answer to a request.
pub enum Response {
    /// Outrigger made it.
    Own(Answer),
    /// It comes from an upstream.
    Upstream(Box<FromUpstream>),
}

/// What an attempt holds until its answer has ended.
pub struct Hold {
    /// Owes the breaker its outcome.
    pub permit: Option<Permit>,
    /// Its place in the concurrency limit.
    pub slot: Option<Slot>,
    /// Its place among the endpoint's requests.
    pub in_flight: InFlight,
    /// What the breaker will be told.
    pub outcome: Outcome,
    /// What the metrics will be told; none: they have been.
    pub counted_as: Option<AttemptOutcome>,
    /// How long a bad answer asked to be left alone.
    pub retry_after: Duration,
    /// Whether the upstream has been told how the attempt ended.
    pub is_observed: bool,
}

/// An answer's head, and what it came over.
pub struct Arrived {
    /// The connection, behind the head.
    pub connection: Box<ToEndpoint>,
    /// The head.
    pub head: ResponseHead,
    /// How far the request's body has come, where it still flows.
    pub upload: Option<Progress>,
}

/// An answer that comes from an upstream.
pub struct FromUpstream {
    /// Its head.
    pub head: ResponseHead,
    /// Gone once the answer has ended.
    connection: Option<Box<ToEndpoint>>,
    reader: BodyReader,
    /// How far the request's body has come, while it still flows.
    upload: Option<Progress>,
    hold: Hold,
    routed: Routed,
    worker: Rc<Worker>,
    timer: Timer,
    head_at: Instant,
    moved_at: Instant,
    waiting: bool,
    /// Whether it ever stood still: then the time of its end must be read from the clock.
    has_waited: bool,
    mode: Mode,
    /// Its head goes to the client: nothing can take its place any more.
    is_final: bool,
    /// gRPC and event streams wait `stream_idle` from the start.
    is_quiet: bool,
    is_stream: bool,
    /// The memory of a small answer that was waited for.
    buffered: Option<Reservation>,
}

impl Hold {
    /// Tells breaker and metrics what the attempt came to, and gives the slot back.
    pub fn settle(&mut self, worker: &Worker, routed: &Routed, now: Instant, verdict: Verdict) {
        if let Some(permit) = self.permit.take() {
            permit.record(now, Outcome { verdict, ..self.outcome });
        }
        if !std::mem::replace(&mut self.is_observed, true) {
            let (latency, retry_after) = (self.outcome.latency, self.retry_after);
            let observed = Observed::End { verdict, latency, connect: false, retry_after };
            routed.target().chain.upstream.observe(&self.in_flight, now, observed);
        }
        if let Some(outcome) = self.counted_as.take() {
            let shard = routed.target().chain.upstream.metrics.shard(worker.index);
            shard.attempts(outcome).inc();
            self.in_flight.endpoint().metrics.shard(worker.index).attempts(outcome).inc();
        }
        if let Some(slot) = self.slot.take() {
            slot.leave(now);
        }
    }

    fn is_settled(&self) -> bool {
        self.permit.is_none() && self.slot.is_none() && self.counted_as.is_none()
    }
}

impl FromUpstream {
    /// The answer that has arrived at `now`. `mode`: whether timeouts cut its body.
    pub fn new(
        worker: &Rc<Worker>,
        routed: &Routed,
        arrived: Arrived,
        hold: Hold,
        mode: Mode,
        now: Instant,
    ) -> Self {
        Self {
            reader: BodyReader::new(arrived.head.framing),
            head: arrived.head,
            connection: Some(arrived.connection),
            upload: arrived.upload,
            hold,
            routed: routed.clone(),
            worker: Rc::clone(worker),
            timer: worker.timer(),
            head_at: now,
            moved_at: now,
            waiting: false,
            has_waited: false,
            mode,
            is_final: false,
            is_quiet: false,
            is_stream: false,
            buffered: None,
        }
    }

    /// The answer is the one that the client gets. Event streams and other protocols are streams from here on.
    ///
    /// # Errors
    /// [`Reason::ConcurrencyLimited`] where `connections.max_streams` is reached.
    pub fn begin(&mut self, grpc: bool, now: Instant) -> Result<(), Error> {
        let switches = self.switches();
        let is_events = self.head.fields.get(Name::ContentType).is_some_and(is_event_stream);
        self.is_quiet = grpc || is_events;
        self.is_final = true;
        let is_stream = switches || is_events && self.head.framing != Framing::None;
        if is_stream && !self.become_stream(now) {
            let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
            shard.rejected(Reason::ConcurrencyLimited, Effect::Enforced).inc();
            return Err(Error::new(Reason::ConcurrencyLimited, "connections.max_streams is reached"));
        }
        Ok(())
    }

    /// Whether the connection goes on in another protocol.
    pub fn switches(&self) -> bool {
        self.head.status == 101
    }

    /// The connection that goes on in another protocol, behind the answer's head.
    pub fn switched(&mut self) -> Option<&mut Connection> {
        let switches = self.switches();
        self.connection.as_mut().filter(|_| switches).map(|connection| &mut connection.wire)
    }

    /// The other protocol is over; `reason`: why, if it did not end by itself.
    pub fn let_go_of_switched(&mut self, reason: Option<Reason>) {
        let verdict = match reason {
            Some(Reason::UpstreamReset) => Verdict::Failure,
            _ => self.verdict(),
        };
        self.let_go(verdict, reason);
    }

    /// Whether the exchange has become a stream.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// The verdict on the answer's head.
    pub fn verdict(&self) -> Verdict {
        self.hold.outcome.verdict
    }

    /// Gives slot and permit back before the body has ended, and keeps the answer: another attempt may follow.
    pub fn put_aside(&mut self, now: Instant) -> Option<Slot> {
        let slot = self.hold.slot.take();
        self.hold.in_flight.release();
        let verdict = self.hold.outcome.verdict;
        self.hold.settle(&self.worker, &self.routed, now, verdict);
        if matches!(self.head.framing, Framing::None | Framing::Length(0)) {
            // Nothing of it is still to come: its connection serves others meanwhile.
            self.end_if_complete();
        }
        slot
    }

    /// Waits until the whole body stands in the connection's buffer, if it is one of up to `bound` bytes whose
    /// length is known; ready with false where it is not.
    ///
    /// # Errors
    /// As [`FromUpstream::poll_data`].
    pub fn poll_whole(&mut self, cx: &mut Context<'_>, bound: u64) -> Poll<Result<bool, Error>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(true)) };
        let Some(remaining) = self.reader.remaining().filter(|remaining| *remaining <= bound) else {
            return Poll::Ready(Ok(self.reader.is_done()));
        };
        while (connection.wire.input().len() as u64) < remaining {
            match connection.wire.poll_fill(cx, usize::MAX) {
                Poll::Ready(Ok(size)) if size > 0 => {}
                Poll::Ready(_) => {
                    let error = Error::new(Reason::UpstreamReset, "closed in the body of its answer");
                    return Poll::Ready(Err(self.broken(error)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Takes the memory that the whole body will need; false where `server.max_buffer` is reached.
    pub fn reserve(&mut self) -> bool {
        self.buffered = self.worker.shared.reserve(self.reader.remaining().unwrap_or_default());
        self.buffered.is_some()
    }

    /// Ready with the size of [`FromUpstream::data`]; 0: the answer has ended. The rest of the request's `body`
    /// is sent meanwhile.
    ///
    /// # Errors
    /// Why the answer will not be complete.
    pub fn poll_data(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Poll<Result<usize, Error>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(0)) };
        let mut still = Reason::UpstreamStalled;
        if let Some(progress) = &mut self.upload {
            let before = (progress.taken(), connection.wire.unwritten());
            match body.poll_send(cx, &self.worker.shared, progress, &mut connection.wire) {
                Poll::Ready(Ok(())) => self.upload = None,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                Poll::Pending if before != (progress.taken(), connection.wire.unwritten()) => {
                    self.waiting = false;
                }
                // Who does not read, or does not send, holds the exchange up.
                Poll::Pending if connection.wire.unwritten() == 0 => still = Reason::ClientStalled,
                Poll::Pending => {}
            }
        }
        match self.reader.poll_data(cx, &mut connection.wire) {
            Poll::Ready(Ok(0)) => {
                self.end(body);
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Ok(size)) => Poll::Ready(Ok(size)),
            Poll::Ready(Err(ReadError::Closed)) => {
                let error = Error::new(Reason::UpstreamReset, "closed in the body of its answer");
                Poll::Ready(Err(self.broken(error)))
            }
            Poll::Ready(Err(ReadError::Refused(refusal))) => {
                let error = Error::new(Reason::ProtocolError, refusal.detail);
                Poll::Ready(Err(self.broken(error)))
            }
            Poll::Pending => match self.poll_patience(cx, still, true) {
                Poll::Ready(error) => Poll::Ready(Err(self.broken(error))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    /// The piece that [`FromUpstream::poll_data`] has announced.
    pub fn data(&self, size: usize) -> &[u8] {
        self.connection.as_ref().map_or(&[], |connection| &connection.wire.input()[..size])
    }

    /// Whether the body ends behind these `size` bytes, as far as its framing tells beforehand.
    pub fn is_last(&self, size: usize) -> bool {
        self.reader.remaining() == Some(size as u64)
    }

    /// `size` bytes of the piece are passed on.
    pub fn consume(&mut self, size: usize) {
        if let Some(connection) = &mut self.connection {
            self.reader.consume(&mut connection.wire, size);
        }
        if std::mem::take(&mut self.waiting) {
            self.moved_at = Instant::now();
        }
    }

    /// What followed the body.
    pub fn trailers(&self) -> Option<&Fields> {
        self.reader.decoder().trailers()
    }

    /// The client takes nothing at the moment. Ready with the error once that lasts too long.
    pub fn poll_client_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let stalled = self.poll_patience(cx, Reason::ClientStalled, false);
        if stalled.is_ready() {
            self.let_go(Verdict::Success, None);
        }
        stalled
    }

    /// Waits with a body that stands still because of `side`, and sees it become a stream. `may_be_quiet`: streams
    /// may, but for a client that does not read.
    fn poll_patience(&mut self, cx: &mut Context<'_>, side: Reason, may_be_quiet: bool) -> Poll<Error> {
        let target = self.routed.target();
        let (idle, stream_idle) = (*target.timeout.idle, *target.timeout.stream_idle);
        let stream_after = *target.chain.upstream.settings.concurrency.stream_after;
        self.has_waited = true;
        if !std::mem::replace(&mut self.waiting, true) {
            self.moved_at = Instant::now();
        }
        loop {
            let quiet = self.is_quiet
                || self.is_stream && self.head.framing == Framing::Chunked
                || self.is_stream && self.head.framing == Framing::UntilClose;
            let patience = if quiet && may_be_quiet { stream_idle } else { idle };
            let gives_up = (self.mode != Mode::Off).then(|| self.moved_at + patience);
            let turns = (!self.is_stream).then(|| self.head_at + stream_after);
            match gives_up.into_iter().chain(turns).min() {
                Some(next) => self.timer.arm(next),
                None => self.timer.disarm(),
            }
            if self.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if turns.is_some_and(|turns| turns <= now) && !self.become_stream(now) {
                // No room for a stream: it keeps its slot, and asks again when as much time has passed.
                self.head_at = now;
            }
            if gives_up.is_some_and(|gives_up| gives_up <= now) {
                if self.mode == Mode::Enforce {
                    return Poll::Ready(side.into());
                }
                let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
                shard.rejected(side, Effect::Shadowed).inc();
                self.mode = Mode::Off;
            }
        }
    }

    fn become_stream(&mut self, now: Instant) -> bool {
        let Some(connection) = &mut self.connection else { return true };
        let max = self.routed.target().chain.upstream.settings.connections.max_streams;
        if !connection.counted.become_stream(max) {
            self.worker.shared.metrics.limit_reached(Limit::UpstreamStreams).inc();
            return false;
        }
        self.is_stream = true;
        // Its head was what the breaker asked about; the metrics wait for its end, and so does what is said of its
        // endpoint: a stream may break off.
        let counted_as = self.hold.counted_as.take();
        let verdict = self.hold.outcome.verdict;
        let is_observed = std::mem::replace(&mut self.hold.is_observed, true);
        if !is_observed {
            let upstream = &self.routed.target().chain.upstream;
            upstream.observe(&self.hold.in_flight, now, Observed::Streams { verdict });
        }
        self.hold.settle(&self.worker, &self.routed, now, verdict);
        (self.hold.counted_as, self.hold.is_observed) = (counted_as, is_observed);
        true
    }

    /// The answer has ended: its connection goes back to the pool.
    fn end(&mut self, body: &Body) {
        let now = if self.has_waited { Instant::now() } else { self.moved_at };
        let grpc = self.trailers().and_then(|trailers| grpc_status(trailers.get(Name::GrpcStatus)?));
        let classifier = &self.routed.target().chain.classifier;
        let verdict = grpc.map_or(self.hold.outcome.verdict, |code| classifier.grpc(code));
        self.hold.settle(&self.worker, &self.routed, now, verdict);
        let Some(connection) = self.connection.take() else { return };
        let sent_all = self.upload.is_none() && body.is_read() && !self.switches();
        if sent_all && self.head.keep_alive && self.head.framing != Framing::UntilClose {
            if let Some(value) = self.head.fields.get(Name::KeepAlive) {
                connection.told_keep_alive(value);
            }
            let settings = &self.routed.target().chain.upstream.settings.connections;
            self.worker.pool.give_back(connection, settings, now);
        }
    }

    /// The answer will not be complete.
    fn broken(&mut self, error: Error) -> Error {
        let target = self.routed.target();
        if self.is_final && target.rules.retries_on(Cause::Reason(error.reason)) {
            let shard = target.chain.upstream.metrics.shard(self.worker.index);
            shard.retries_skipped(words::skip(Some(Skip::HeadSent))).inc();
        }
        let verdict = target.chain.classifier.reason(error.reason, true);
        let verdict = if error.reason == Reason::ClientDisconnected { Verdict::Ignored } else { verdict };
        self.let_go(verdict, Some(error.reason));
        error
    }

    fn let_go(&mut self, verdict: Verdict, reason: Option<Reason>) {
        if let (Some(reason), Some(_)) = (reason, self.hold.counted_as) {
            self.hold.counted_as = Some(AttemptOutcome::Reason(reason));
        }
        self.hold.settle(&self.worker, &self.routed, Instant::now(), verdict);
        self.connection = None;
    }
}

impl FromUpstream {
    /// Reads on to the end where all of it has come: that costs nothing, and saves the connection.
    fn end_if_complete(&mut self) {
        let there = self.connection.as_ref().map_or(0, |connection| connection.wire.input().len() as u64);
        let is_complete =
            self.reader.is_done() || self.reader.remaining().is_some_and(|remaining| remaining <= there);
        if self.upload.is_none() && is_complete {
            let nobody = &mut Context::from_waker(Waker::noop());
            while let Poll::Ready(Ok(size @ 1..)) = self.poll_data(nobody, &mut Body::none()) {
                self.consume(size);
            }
        }
    }
}

impl Drop for FromUpstream {
    /// The client left, or another attempt took the answer's place.
    fn drop(&mut self) {
        let verdict = self.hold.outcome.verdict;
        self.end_if_complete();
        if !self.hold.is_settled() {
            self.hold.settle(&self.worker, &self.routed, Instant::now(), verdict);
        }
        self.worker.reuse_response_head(std::mem::take(&mut self.head));
    }
}

/// How long a whole answer is waited for before its head goes out.
pub const WHOLE_WITHIN: Duration = Duration::from_millis(100);

fn is_event_stream(content_type: &[u8]) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    content_type.get(..EVENTS.len()).is_some_and(|start| start.eq_ignore_ascii_case(EVENTS))
}

/// The code in a `grpc-status`.
pub fn grpc_status(value: &[u8]) -> Option<u8> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// How long an answer asks to be left alone.
pub fn retry_after(fields: &Fields) -> Option<Duration> {
    let value = fields.get(Name::RetryAfter)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    backoff::parse_retry_after(value, now)
}
