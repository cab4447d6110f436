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

use bytes::Bytes;

use super::answer::Answer;
use super::body::{Body, Progress};
use super::context::Routed;
use super::fault::{Passes, Shape};
use super::grpc::{self, Call};
use super::queue::Slot;
use super::record::Record;
use super::shared::Reservation;
use super::tee::Tee;
use super::wire::Wire;
use super::words;
use super::worker::Worker;
use crate::http1::connection::Connection;
use crate::http1::field::{Fields, Name};
use crate::http1::head::{Framing, ResponseHead};
use crate::policy::backoff;
use crate::policy::breaker::{Outcome, Permit};
use crate::policy::failure::Verdict;
use crate::policy::limit::Lesson;
use crate::policy::mode::Mode;
use crate::policy::retry::{Cause, Skip};
use crate::policy::timeout::is_late;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::{AttemptOutcome, Effect, FaultKind, Limit};
use crate::timer::Timer;
use crate::upstream::Observed;
use crate::upstream::endpoint::InFlight;

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
    /// What it came over, behind the head; `None`: nothing follows, since it did not come from anywhere.
    pub wire: Option<Wire>,
    /// The head.
    pub head: ResponseHead,
    /// How far the request's body has come, where it still flows.
    pub upload: Option<Progress>,
    /// What an injected fault does to its body.
    pub shape: Option<Box<Shape>>,
    /// Its status and gRPC code, where an injected fault answers in the upstream's place.
    pub abort: Option<(u16, u8)>,
}

impl Arrived {
    /// What came over `wire`. `upload`: how far the request's body has come, where it still flows.
    pub fn over(wire: Wire, head: ResponseHead, upload: Option<Progress>) -> Self {
        Self { wire: Some(wire), head, upload, shape: None, abort: None }
    }

    /// The answer of an injected fault, with its status, and its code if it is one of gRPC.
    pub fn aborted(mut head: ResponseHead, (status, code): (u16, u8), grpc: bool) -> Self {
        head.status = if grpc { 200 } else { status };
        if grpc {
            let mut push =
                |known: Name, value: &[u8]| head.fields.push(known, known.text().as_bytes(), value);
            push(Name::ContentType, b"application/grpc");
            push(Name::GrpcStatus, code.to_string().as_bytes());
        }
        Self { wire: None, head, upload: None, shape: None, abort: Some((status, code)) }
    }

    /// The status of the call of gRPC that it answers, if it has come: in the head, or in trailers right behind it.
    pub fn grpc_status(&mut self) -> Option<u8> {
        if let Some(status) = self.head.fields.get(Name::GrpcStatus) {
            return Some(status_or_unknown(status));
        }
        let nobody = &mut Context::from_waker(Waker::noop());
        let wire = self.wire.as_mut()?;
        match wire.poll_data(nobody) {
            Poll::Ready(Ok(0)) => wire.trailers()?.get(Name::GrpcStatus).map(status_or_unknown),
            _ => None,
        }
    }
}

/// The gRPC status of what says nothing better.
const UNKNOWN: u8 = 2;

fn status_or_unknown(value: &[u8]) -> u8 {
    grpc::status(value).unwrap_or(UNKNOWN)
}

/// An answer that comes from an upstream.
pub struct FromUpstream {
    /// Its head.
    pub head: ResponseHead,
    /// Gone once the answer has ended.
    wire: Option<Wire>,
    /// What followed the body, once it has ended.
    trailers: Option<Fields>,
    /// How far the request's body has come, while it still flows.
    upload: Option<Progress>,
    hold: Hold,
    routed: Routed,
    worker: Rc<Worker>,
    timer: Timer,
    head_at: Instant,
    moved_at: Instant,
    waiting: bool,
    /// Whether it was its upstream that it waited for when it last waited.
    for_upstream: bool,
    /// Whether it ever stood still: then the time of its end must be read from the clock.
    has_waited: bool,
    mode: Mode,
    /// Its head goes to the client: nothing can take its place any more.
    is_final: bool,
    /// What is known of the call of gRPC that it answers.
    call: Option<Call>,
    /// Why the message was ended before its end, where its end could still say so.
    ended_for: Option<Reason>,
    /// gRPC and event streams wait `stream_idle` from the start.
    is_quiet: bool,
    is_stream: bool,
    /// The memory of a small answer that was waited for.
    buffered: Option<Reservation>,
    /// The copy that is made of it on its way.
    tee: Option<Box<Tee>>,
    /// What an injected fault does to its body.
    shape: Option<Box<Shape>>,
    /// Its status and gRPC code, where an injected fault answers in the upstream's place.
    abort: Option<(u16, u8)>,
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

    /// Tells the concurrency limit what the head has shown, where the body takes longer.
    fn tell_limit(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.answers();
        }
    }

    fn is_settled(&self) -> bool {
        self.permit.is_none() && self.slot.is_none() && self.counted_as.is_none()
    }
}

impl FromUpstream {
    /// The answer that has arrived at `now`, to a call of gRPC or another request. `mode`: whether timeouts cut its
    /// body.
    pub fn new(
        worker: &Rc<Worker>,
        routed: &Routed,
        (arrived, call): (Arrived, Option<Call>),
        hold: Hold,
        mode: Mode,
        now: Instant,
    ) -> Self {
        // A call may have become one before its head.
        let is_stream = hold.in_flight.is_stream();
        Self {
            // What goes on in another protocol has no body.
            shape: arrived.shape.filter(|_| arrived.head.status != 101),
            abort: arrived.abort,
            head: arrived.head,
            wire: arrived.wire,
            trailers: None,
            upload: arrived.upload,
            hold,
            routed: routed.clone(),
            worker: Rc::clone(worker),
            timer: worker.timer(),
            head_at: now,
            moved_at: now,
            waiting: false,
            for_upstream: false,
            has_waited: false,
            mode,
            is_final: false,
            call,
            ended_for: None,
            is_quiet: false,
            is_stream,
            buffered: None,
            tee: None,
        }
    }

    /// The whole body, where all of it has come.
    pub fn whole(&self) -> Option<&[u8]> {
        // What an injected fault does to it has not been done yet.
        let wire = self.wire.as_ref().filter(|_| self.shape.is_none())?;
        if wire.is_done() {
            return Some(&[]);
        }
        let length = usize::try_from(wire.remaining()?).ok()?;
        wire.data().get(..length)
    }

    /// How long its head took, from when the request had gone up.
    pub fn latency(&self) -> Duration {
        self.hold.outcome.latency
    }

    /// A copy of its body is made on its way to the client.
    pub fn copy_to(&mut self, tee: Tee) {
        self.tee = Some(Box::new(tee));
    }

    /// The answer is the one that the client gets. Event streams and other protocols are streams from here on.
    ///
    /// # Errors
    /// [`Reason::ConcurrencyLimited`] where `connections.max_streams` is reached.
    pub fn begin(&mut self, now: Instant) -> Result<(), Error> {
        let switches = self.switches();
        let is_events = self.head.fields.get(Name::ContentType).is_some_and(is_event_stream);
        self.is_quiet = self.call.is_some() || is_events;
        self.is_final = true;
        let is_stream = switches || is_events && self.head.framing != Framing::None;
        if is_stream && !self.become_stream(now) {
            let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
            shard.rejected(Reason::ConcurrencyLimited, Effect::Enforced).inc();
            return Err(Error::new(Reason::ConcurrencyLimited, "connections.max_streams is reached"));
        }
        if self.call.is_some() && self.upload.is_some() && !self.is_bodiless() {
            // No room for it: it keeps its slot.
            self.become_stream(now);
        }
        Ok(())
    }

    /// What the client is told in place of it, where an injected fault has answered.
    pub fn injected(&self) -> Option<Error> {
        let error = Error::new(Reason::FaultInjected, "a fault answers in place of the upstream");
        self.abort.map(|answers_as| Error { answers_as: Some(answers_as), ..error })
    }

    /// Whether the status of a call of gRPC is still to come.
    fn owes_status(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.owes_status)
    }

    /// The status of the call of gRPC that it answers, once that is known.
    pub fn grpc_status(&self) -> Option<u8> {
        self.call.as_ref()?.status
    }

    /// A field of the head, or of the trailers where they have come.
    pub fn says(&self, name: Name) -> Option<&[u8]> {
        let trailers = || self.wire.as_ref()?.trailers()?.get(name);
        self.head.fields.get(name).or_else(trailers)
    }

    /// Whether it has no foreseeable end.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Tells what has become of the answer so far.
    pub fn tell(&self, record: &mut Record) {
        record.is_stream = self.is_stream;
        let classifier = &self.routed.target().chain.classifier;
        record.grpc = self.grpc_status().map(|code| grpc::request_outcome(code, classifier));
        record.reason = record.reason.or(self.ended_for);
    }

    /// Whether the connection goes on in another protocol.
    pub fn switches(&self) -> bool {
        self.head.status == 101
    }

    /// The connection that goes on in another protocol, behind the answer's head.
    pub fn switched(&mut self) -> Option<&mut Connection> {
        let switches = self.switches();
        self.wire.as_mut().filter(|_| switches).and_then(Wire::switched)
    }

    /// The other protocol is over; `reason`: why, if it did not end by itself.
    pub fn let_go_of_switched(&mut self, reason: Option<Reason>) {
        let verdict = match reason {
            Some(Reason::UpstreamReset) => Verdict::Failure,
            _ => self.verdict(),
        };
        self.let_go(verdict, reason);
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

    /// Waits until the whole body stands in one piece, if it is one of up to `bound` bytes whose length is known; ready
    /// with false where it is not.
    ///
    /// # Errors
    /// As [`FromUpstream::poll_data`].
    pub fn poll_whole(&mut self, cx: &mut Context<'_>, bound: u64) -> Poll<Result<bool, Error>> {
        let Some(wire) = &mut self.wire else { return Poll::Ready(Ok(true)) };
        let Some(remaining) = wire.remaining().filter(|remaining| *remaining <= bound) else {
            return Poll::Ready(Ok(wire.is_done()));
        };
        let Poll::Ready(gathered) = wire.poll_gather(cx, remaining) else {
            self.hold.tell_limit();
            return Poll::Pending;
        };
        match gathered {
            Ok(is_whole) => match self.shape.as_ref().map(|shape| shape.poll_whole(cx, remaining)) {
                Some(Poll::Pending) => {
                    self.hold.tell_limit();
                    Poll::Pending
                }
                Some(Poll::Ready(Passes::Nothing)) => Poll::Ready(Err(self.truncated())),
                Some(Poll::Ready(_)) | None => Poll::Ready(Ok(is_whole)),
            },
            Err(error) => Poll::Ready(Err(self.broken(error))),
        }
    }

    /// Takes the memory that the whole body will need; false where `server.max_buffer` is reached.
    pub fn reserve(&mut self) -> bool {
        self.buffered = self.worker.shared.reserve(self.remaining().unwrap_or_default());
        self.buffered.is_some()
    }

    fn remaining(&self) -> Option<u64> {
        self.wire.as_ref().and_then(Wire::remaining)
    }

    /// Ready with the size of [`FromUpstream::data`]; 0: the answer has ended. The rest of the request's `body`
    /// is sent meanwhile.
    ///
    /// # Errors
    /// Why the answer will not be complete.
    pub fn poll_data(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Poll<Result<usize, Error>> {
        let Some(wire) = &mut self.wire else { return Poll::Ready(Ok(0)) };
        let mut still = Reason::UpstreamStalled;
        if let Some(progress) = &mut self.upload {
            let before = (progress.taken(), wire.unwritten());
            match body.poll_send(cx, &self.worker.shared, progress, wire) {
                Poll::Ready(Ok(())) => self.upload = None,
                Poll::Ready(Err(error)) => return Poll::Ready(self.cut(error)),
                Poll::Pending if before != (progress.taken(), wire.unwritten()) => {
                    self.waiting = false;
                    wire.set_stalled(false);
                }
                // Who does not read, or does not send, holds the exchange up.
                Poll::Pending if !wire.is_blocked() => still = Reason::ClientStalled,
                Poll::Pending => {}
            }
        }
        match wire.poll_data(cx) {
            Poll::Ready(Ok(0)) => {
                self.end(body);
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Ok(size)) if self.shape.is_none() => Poll::Ready(Ok(size)),
            Poll::Ready(Ok(size)) => self.poll_shaped(cx, size),
            Poll::Ready(Err(error)) => Poll::Ready(self.cut(error)),
            Poll::Pending => {
                let may_be_quiet = self.upload.is_none() || !wire.is_blocked();
                match self.poll_patience(cx, still, may_be_quiet) {
                    Poll::Ready(error) => Poll::Ready(self.cut(error)),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    /// What of a piece of `size` bytes an injected fault lets pass.
    #[cold]
    fn poll_shaped(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<Result<usize, Error>> {
        match self.shape.as_ref().map_or(Poll::Ready(Passes::All), |shape| shape.poll_piece(cx, size)) {
            Poll::Ready(Passes::Some(size)) => Poll::Ready(Ok(size)),
            Poll::Ready(Passes::All) => {
                self.shape = None;
                Poll::Ready(Ok(size))
            }
            Poll::Ready(Passes::Nothing) => {
                let error = self.truncated();
                Poll::Ready(self.end_without(error))
            }
            Poll::Pending => match self.poll_patience(cx, Reason::UpstreamStalled, true) {
                Poll::Ready(error) => Poll::Ready(self.cut(error)),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    /// An injected fault breaks the body off.
    fn truncated(&mut self) -> Error {
        self.routed
            .target()
            .chain
            .upstream
            .metrics
            .shard(self.worker.index)
            .faults(FaultKind::Truncate)
            .inc();
        self.broken(Error::new(Reason::UpstreamReset, "a fault breaks the body off").injected())
    }

    /// The piece that [`FromUpstream::poll_data`] has announced.
    pub fn data(&self, size: usize) -> &[u8] {
        self.wire.as_ref().map_or(&[], |wire| &wire.data()[..size])
    }

    /// Whether the body ends behind these `size` bytes, as far as its framing tells beforehand.
    pub fn is_last(&self, size: usize) -> bool {
        !self.owes_status() && self.wire.as_ref().is_some_and(|wire| wire.is_last(size))
    }

    /// `size` bytes of the piece are passed on.
    pub fn consume(&mut self, size: usize) {
        self.follow(size);
        self.pass(size);
        if let Some(wire) = &mut self.wire {
            wire.consume(size);
        }
        self.moved();
    }

    /// Takes `size` bytes of the piece, to be passed on; what came by HTTP/2 is not copied.
    pub fn take(&mut self, size: usize) -> Bytes {
        self.follow(size);
        self.pass(size);
        let piece = self.wire.as_mut().map_or_else(Bytes::new, |wire| wire.take(size));
        self.moved();
        piece
    }

    fn pass(&mut self, size: usize) {
        if let Some(shape) = &mut self.shape {
            shape.passed(size);
        }
    }

    /// A call whose second message begins is a stream. What is copied is copied here.
    fn follow(&mut self, size: usize) {
        if let (Some(tee), Some(wire)) = (&mut self.tee, &self.wire)
            && !tee.push(&wire.data()[..size])
        {
            self.tee = None;
        }
        if let (Some(call), Some(wire)) = (&mut self.call, &self.wire)
            && !self.is_stream
            && call.messages.follow(&wire.data()[..size])
        {
            // No room for it: it keeps its slot, until `stream_after`.
            self.become_stream(Instant::now());
        }
    }

    fn moved(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.moved_at = Instant::now();
            if let Some(wire) = &mut self.wire {
                wire.set_stalled(false);
            }
        }
    }

    /// What followed the body.
    pub fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }

    /// Whether nothing follows the head.
    pub fn is_bodiless(&self) -> bool {
        matches!(self.head.framing, Framing::None | Framing::Length(0)) && !self.owes_status()
    }

    /// The client takes nothing at the moment. Ready with the error once that lasts too long.
    pub fn poll_client_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Some(wire) = &mut self.wire {
            wire.set_stalled(true);
        }
        if let Some(tee) = &self.tee {
            tee.is_held_up();
        }
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
        self.hold.tell_limit();
        self.for_upstream = side == Reason::UpstreamStalled;
        if !std::mem::replace(&mut self.waiting, true) {
            self.moved_at = Instant::now();
        }
        loop {
            let quiet = self.is_quiet
                || self.is_stream && self.head.framing == Framing::Chunked
                || self.is_stream && self.head.framing == Framing::UntilClose;
            let patience = if quiet && may_be_quiet { stream_idle } else { idle };
            let gives_up = self.is_timed().then(|| self.moved_at + patience);
            let turns = (!self.is_stream).then(|| self.head_at + stream_after);
            let deadline = self.call.as_ref().and_then(|call| call.deadline);
            match gives_up.into_iter().chain(turns).chain(deadline).min() {
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
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Poll::Ready(Reason::DeadlineExceeded.into());
            }
            if gives_up.is_some_and(|gives_up| gives_up <= now) && self.gives_up(side) {
                return Poll::Ready(side.into());
            }
        }
    }

    /// Whether timeouts bound it.
    pub fn is_timed(&self) -> bool {
        self.mode != Mode::Off
    }

    /// It stood still for too long because of `side`: whether that ends it. In shadow it is counted, once.
    pub fn gives_up(&mut self, side: Reason) -> bool {
        if self.mode == Mode::Enforce {
            return true;
        }
        if std::mem::replace(&mut self.mode, Mode::Off) == Mode::Shadow {
            let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
            shard.rejected(side, Effect::Shadowed).inc();
        }
        false
    }

    fn become_stream(&mut self, now: Instant) -> bool {
        let Some(wire) = &mut self.wire else { return true };
        let max = self.routed.target().chain.upstream.settings.connections.max_streams;
        if !wire.become_stream(max) {
            self.worker.shared.metrics.limit_reached(Limit::UpstreamStreams).inc();
            return false;
        }
        self.is_stream = true;
        self.hold.in_flight.becomes_stream();
        if let Some(shape) = &mut self.shape {
            shape.becomes_stream();
        }
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
        let Some(wire) = self.wire.take() else { return };
        self.shape = None;
        self.trailers = wire.trailers().cloned();
        if let Some(tee) = self.tee.take() {
            tee.end();
        }
        let verdict = self.call_ended().unwrap_or(self.hold.outcome.verdict);
        self.hold.settle(&self.worker, &self.routed, now, verdict);
        let sent_all = self.upload.is_none() && body.is_read() && !self.switches();
        if sent_all
            && self.head.keep_alive
            && self.head.framing != Framing::UntilClose
            && let Some(connection) = wire.into_connection()
        {
            if let Some(value) = self.head.fields.get(Name::KeepAlive) {
                connection.told_keep_alive(value);
            }
            let settings = &self.routed.target().chain.upstream.settings.connections;
            self.worker.pool.give_back(connection, settings, now);
        }
    }

    /// What the end of a call says, where it is one whose status was still to come. One that should have and has none
    /// gets one.
    fn call_ended(&mut self) -> Option<Verdict> {
        let call = self.call.as_mut().filter(|call| call.owes_status)?;
        let classifier = &self.routed.target().chain.classifier;
        let said = self.trailers.as_ref().and_then(|trailers| trailers.get(Name::GrpcStatus));
        let (verdict, counted_as) = match said.map(status_or_unknown) {
            Some(code) => {
                call.status = Some(code);
                (classifier.grpc(code), grpc::attempt_outcome(code, classifier))
            }
            None => {
                let error = Error::new(Reason::ProtocolError, "the answer ended without a grpc-status");
                self.ended_for = Some(error.reason);
                self.trailers = Some(grpc::trailers(&error));
                (Verdict::Failure, AttemptOutcome::Reason(error.reason))
            }
        };
        self.hold.counted_as = self.hold.counted_as.map(|_| counted_as);
        Some(verdict)
    }

    /// The answer will not be complete. A call of gRPC is told so by its end; of others the message is cut.
    fn cut(&mut self, error: Error) -> Result<usize, Error> {
        let error = self.broken(error);
        self.end_without(error)
    }

    /// The same of an answer that has been let go of.
    fn end_without(&mut self, error: Error) -> Result<usize, Error> {
        if !self.is_final {
            return Err(error);
        }
        let error = error.told();
        if !self.owes_status() {
            return Err(error);
        }
        self.ended_for = Some(error.reason);
        self.trailers = Some(grpc::trailers(&error));
        Ok(0)
    }

    /// The answer will not be complete.
    fn broken(&mut self, error: Error) -> Error {
        if let Some(tee) = self.tee.take() {
            tee.broke(&error);
        }
        let target = self.routed.target();
        if self.is_final && target.rules.retries_on(Cause::Reason(error.reason)) {
            let shard = target.chain.upstream.metrics.shard(self.worker.index);
            shard.retries_skipped(words::skip(Some(Skip::HeadSent))).inc();
        }
        // Behind its head a call is not late: quiet streams live until their deadline, and end well so.
        let evidence = error.reason != Reason::DeadlineExceeded;
        let verdict = target.chain.classifier.reason(error.reason, evidence);
        let verdict = if error.reason == Reason::ClientDisconnected { Verdict::Ignored } else { verdict };
        self.let_go(verdict, Some(error.told_reason()));
        error
    }

    /// The client has left. Where the body hung for long by then, that says as much of its upstream as a head that did
    /// not come, whatever others get: a head tells only that bodies may follow. Only where the body's length is known,
    /// since others may be quiet.
    fn left(&mut self) {
        let now = Instant::now();
        let hangs = self.is_final && self.waiting && self.for_upstream && self.wire.is_some();
        let may_be_quiet =
            self.is_stream || self.is_quiet || !matches!(self.head.framing, Framing::Length(_));
        let chain = &self.routed.target().chain;
        let hung = now.saturating_duration_since(self.moved_at);
        if hangs && !may_be_quiet && is_late(hung, chain.latency.usual_p99(now)) {
            let verdict = chain.classifier.reason(Reason::ClientDisconnected, true);
            self.let_go(verdict, Some(Reason::ClientDisconnected));
        } else {
            self.hold.settle(&self.worker, &self.routed, now, self.hold.outcome.verdict);
        }
    }

    fn let_go(&mut self, verdict: Verdict, reason: Option<Reason>) {
        if let (Some(reason), Some(_)) = (reason, self.hold.counted_as) {
            self.hold.counted_as = Some(AttemptOutcome::Reason(reason));
        }
        self.hold.settle(&self.worker, &self.routed, Instant::now(), verdict);
        (self.wire, self.shape) = (None, None);
    }
}

impl FromUpstream {
    /// Reads on to the end where all of it has come: that costs nothing, and saves the connection.
    fn end_if_complete(&mut self) {
        let is_complete = self.wire.as_ref().is_some_and(|wire| {
            let there = wire.data().len() as u64;
            wire.is_done() || wire.remaining().is_some_and(|remaining| remaining <= there)
        });
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
        self.end_if_complete();
        if !self.hold.is_settled() {
            self.left();
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

/// What an answer's head says of the upstream to its concurrency limit. `grpc`: the call's status, where it has come.
pub fn lesson(head: &ResponseHead, grpc: Option<u8>, verdict: Verdict) -> Lesson {
    const RESOURCE_EXHAUSTED: u8 = 8;
    const UNAVAILABLE: u8 = 14;
    let fields = &head.fields;
    let is_refusal = match (grpc, head.status) {
        (Some(RESOURCE_EXHAUSTED), _) | (None, 429) => return Lesson::Nothing,
        // One class's matter: whoever sheds serves the others.
        _ if verdict == Verdict::Throttled => return Lesson::Nothing,
        (Some(UNAVAILABLE), _) => fields.has(Name::GrpcRetryPushbackMs) || is_from_outrigger(fields),
        (None, 503) => fields.has(Name::RetryAfter) || is_from_outrigger(fields),
        _ => false,
    };
    match verdict {
        _ if is_refusal => Lesson::Overloaded,
        Verdict::Success => Lesson::Served,
        // It may have done no work.
        Verdict::Failure | Verdict::Throttled | Verdict::Ignored => Lesson::Nothing,
    }
}

/// Whether another Outrigger made the answer.
pub fn is_from_outrigger(fields: &Fields) -> bool {
    fields.find(b"proxy-status").any(|value| value.starts_with(b"outrigger; error="))
}

/// Whether another Outrigger made the answer for this reason, which concerns its caller and says nothing of how others
/// would fare.
pub fn is_outriggers(head: &ResponseHead, reason: Reason) -> bool {
    // PERF: few answers have one of these.
    let may_be = head.status == reason.status() || head.fields.has(Name::GrpcStatus);
    let says = |value: &[u8]| {
        let value = value.strip_suffix(b"\"").and_then(|value| value.strip_suffix(reason.label().as_bytes()));
        value.is_some_and(|value| value.starts_with(b"outrigger; error=") && value.ends_with(b"; details=\""))
    };
    may_be && head.fields.find(b"proxy-status").any(says)
}

/// How long an answer asks to be left alone.
pub fn retry_after(fields: &Fields) -> Option<Duration> {
    let value = fields.get(Name::RetryAfter)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    backoff::parse_retry_after(value, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_work_teaches_its_latency_and_what_is_overloaded_says_so() {
        use Lesson::{Nothing, Overloaded, Served};
        use Verdict::{Failure, Success, Throttled};
        let (retry_after, pushback) = (("retry-after", "1"), ("grpc-retry-pushback-ms", "100"));
        let outrigger = ("proxy-status", "outrigger; error=connection_limit_reached; details=\"queue_full\"");
        let other = ("proxy-status", "squid; error=connection_timeout");
        let none = ("x-none", "");
        let cases = [
            // why                                       status gRPC      verdict    field      lesson
            ("an answer", 200, None, Success, none, Served),
            ("no is an answer", 404, None, Success, none, Served),
            ("a call", 200, Some(0), Success, none, Served),
            ("a call whose status is to come", 200, None, Success, none, Served),
            ("a failure may have done nothing", 500, None, Failure, none, Nothing),
            ("so may a 503", 503, None, Failure, none, Nothing),
            ("unless it says when to come back", 503, None, Failure, retry_after, Overloaded),
            ("whatever a failure is here", 503, None, Success, retry_after, Overloaded),
            ("or is another Outrigger's", 503, None, Failure, outrigger, Overloaded),
            ("not any proxy's", 503, None, Failure, other, Nothing),
            ("a 500 of an Outrigger is none", 502, None, Failure, outrigger, Nothing),
            ("which sheds some, for the others", 503, None, Throttled, outrigger, Nothing),
            ("one caller asks too much", 429, None, Throttled, retry_after, Nothing),
            ("even if that counts as a failure", 429, None, Failure, outrigger, Nothing),
            ("the same of a call", 200, Some(8), Throttled, pushback, Nothing),
            ("a call is refused", 200, Some(14), Failure, none, Nothing),
            ("and told when to come back", 200, Some(14), Failure, pushback, Overloaded),
            ("or by another Outrigger", 200, Some(14), Failure, outrigger, Overloaded),
        ];
        for (why, status, grpc, verdict, (name, value), expected) in cases {
            let mut head = ResponseHead::default();
            head.status = status;
            let known =
                [Name::RetryAfter, Name::GrpcRetryPushbackMs].into_iter().find(|known| known.text() == name);
            head.fields.push(known.unwrap_or(Name::Other), name.as_bytes(), value.as_bytes());
            assert_eq!(lesson(&head, grpc, verdict), expected, "{why}");
        }
    }

    #[test]
    fn another_outriggers_reason_is_known_by_its_word() {
        let exceeded = "outrigger; error=http_response_timeout; details=\"deadline_exceeded\"";
        let cases = [
            // why                                status proxy-status                             is it
            ("its caller's time was over", 504, exceeded, true),
            ("in a call's words", 200, exceeded, true),
            (
                "its own time was over",
                504,
                "outrigger; error=http_response_timeout; details=\"request_timeout\"",
                false,
            ),
            (
                "another proxy's",
                504,
                "squid; error=http_response_timeout; details=\"deadline_exceeded\"",
                false,
            ),
            ("not the whole word", 504, "outrigger; error=x; details=\"not_deadline_exceeded\"", false),
            ("not such an answer", 503, exceeded, false),
        ];
        for (why, status, value, expected) in cases {
            let mut head = ResponseHead::default();
            head.status = status;
            head.fields.push(Name::Other, b"proxy-status", value.as_bytes());
            if status == 200 {
                head.fields.push(Name::GrpcStatus, b"grpc-status", b"4");
            }
            assert_eq!(is_outriggers(&head, Reason::DeadlineExceeded), expected, "{why}");
        }
    }
}
