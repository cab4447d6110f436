//! One request on its way up: its head is queued, its body goes beside the answer, until the answer's head is there.
//!
//! The answer is read while the body is still written: an upstream may answer before it has read all, and one
//! that does not read at all would otherwise wait for us as we for it.
//!
//! While the body's next piece is its client's to send, nothing of that time is the upstream's: the attempt lends its slot
//! ([`PATIENCE`]), and its latency and what its end says count from the last piece.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::body::Progress;
use super::client::Informed;
use super::context::Routed;
use super::queue::Slot;
use super::race::Race;
use super::request::Request;
use super::wire::{Unanswered, Wire};
use super::worker::Worker;
use crate::http1::head::ResponseHead;
use crate::policy::breaker::Permit;
use crate::policy::concurrency::PATIENCE;
use crate::policy::failure::Verdict;
use crate::policy::mode::Mode;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::{Effect, Limit};
use crate::timer::Timer;
use crate::upstream::Observed;
use crate::upstream::endpoint::InFlight;

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
    /// How long a call of gRPC may say nothing where nothing else bounds it.
    pub quiet: Option<Duration>,
    /// When a call of gRPC that nothing else bounds is a stream, though no head of an answer has come.
    pub turns: Option<Instant>,
    /// The body, since it did not go up at once.
    pub upload: Option<Upload>,
    /// When the request had gone up, once it has.
    pub sent: Option<Instant>,
    /// How long an injected fault held it back before: that counts as the upstream's time.
    pub delayed: Duration,
}

/// A body that is on its way up.
#[derive(Clone, Copy)]
pub struct Upload {
    /// How far it is: bytes taken, and bytes of them that are not written.
    mark: (u64, usize),
    /// When it last moved on.
    moved: Instant,
    awaits: Awaits,
    /// When it has waited for its client for so long that the slot is lent.
    lends: Option<Instant>,
}

/// What a body on its way up waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// That its client sends more.
    Client,
    /// That its upstream takes more.
    Room,
    /// Its upstream's word to go on, as the client does (`Expect: 100-continue`).
    Word,
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

    /// What of the caller's own deadline is left at `now`.
    pub fn caller_left(&self, now: Instant) -> Option<Duration> {
        self.caller.map(|end| end.saturating_duration_since(now))
    }

    /// Since when the upstream has had all that has come of the request; none: it has nothing yet.
    pub fn up_since(&self) -> Option<Instant> {
        self.sent.or(self.upload.map(|upload| upload.moved))
    }

    /// Whether it is the client that holds the attempt up.
    pub fn awaits_client(&self) -> bool {
        self.awaits() == Some(Awaits::Client)
    }

    fn awaits(&self) -> Option<Awaits> {
        self.upload.filter(|_| self.sent.is_none()).map(|upload| upload.awaits)
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
    pub permit: &'a mut Option<Permit>,
    /// Its place in the concurrency limit.
    pub slot: &'a mut Option<Slot>,
    /// Its place among the endpoint's requests.
    pub in_flight: &'a mut InFlight,
    /// Where it may be hedged, or is the hedge.
    pub race: Option<&'a Race>,
}

impl Sending<'_> {
    /// Sends what is queued and the request's body, and waits for the head of the answer. Interim answers go to
    /// the client; `answer` becomes its head. Begins now.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn send(
        mut self,
        wire: &mut Wire,
        request: &mut Request,
        progress: &mut Progress,
        clock: &mut Clock,
        (answer, started): (&mut ResponseHead, Instant),
    ) -> Result<(), Unanswered> {
        (clock.sent, clock.upload) = (None, None);
        let is_unbounded = request.context.grpc && clock.left(started).is_none();
        clock.turns = is_unbounded.then(|| started + self.stream_after());
        let result = poll_fn(|cx| {
            if let Some(race) = self.race {
                race.look(request);
            }
            loop {
                if clock.sent.is_none() {
                    match request.body.poll_send(cx, &self.worker.shared, progress, wire) {
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Unanswered::of(error, false))),
                        Poll::Ready(Ok(())) => {
                            // The attempt's time runs from here; the request's stood still while its body flowed.
                            let mut now = started;
                            if let Some(upload) = &mut clock.upload {
                                now = Instant::now();
                                upload.lends = None;
                                self.slot.iter_mut().for_each(|slot| slot.take_back(now));
                                clock.request = clock.request.map(|request| request + (now - started));
                                request.context.stood_still += now - started;
                            }
                            clock.sent = Some(now);
                            if let Some(race) = self.race {
                                race.went_up(now - clock.delayed);
                            }
                            clock.arm(self.timer, now);
                            if let Some(permit) = &self.permit {
                                let request = *self.routed.target().timeout.request;
                                permit.renew(now, clock.attempt.unwrap_or(request));
                            }
                        }
                        Poll::Pending => {
                            let mark = (progress.taken(), wire.unwritten());
                            let awaits = match self.waits_for_word(request, progress) {
                                true => Awaits::Word,
                                false if wire.is_blocked() => Awaits::Room,
                                false => Awaits::Client,
                            };
                            if clock.upload.is_none_or(|at| (at.mark, at.awaits) != (mark, awaits)) {
                                self.moved(clock, mark, awaits);
                                clock.arm(self.timer, started);
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
                match wire.poll_head(cx, answer, progress.taken()) {
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
                            // The client may have been told to go on: then its body is waited for anew.
                            clock.upload.iter_mut().for_each(|upload| upload.mark.0 = u64::MAX);
                            client.push(cx);
                        }
                        continue;
                    }
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(unanswered)) => return Poll::Ready(Err(unanswered)),
                    Poll::Pending => {}
                }
                if self.timer.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if self.lets_go(clock, wire) {
                    clock.arm(self.timer, started);
                    continue;
                }
                let error = elapsed(clock);
                if clock.mode == Mode::Enforce || error.reason == Reason::DeadlineExceeded {
                    return Poll::Ready(Err(Unanswered::of(error, false)));
                }
                // A shadow timeout counts what it would have cut, once, and lets go.
                let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
                shard.rejected(error.reason, Effect::Shadowed).inc();
                let Clock { caller, turns, upload, sent, delayed, .. } = *clock;
                *clock = Clock { mode: Mode::Off, caller, turns, upload, sent, delayed, ..Clock::default() };
                clock.arm(self.timer, started);
            }
        })
        .await;
        if let (Ok(()), Some(_), Some(slot)) = (&result, clock.upload, &mut self.slot) {
            // The upstream answers before it has all.
            slot.take_back(Instant::now());
        }
        result
    }

    /// The body has moved on, or waits for somebody else than before.
    fn moved(&mut self, clock: &mut Clock, mark: (u64, usize), awaits: Awaits) {
        let moved = Instant::now();
        if let Some(permit) = &self.permit {
            permit.renew(moved, LEASE);
        }
        if let (Awaits::Room, Some(slot)) = (awaits, &mut *self.slot) {
            // Now it is the upstream that makes it take long.
            slot.take_back(moved);
        }
        let holds = awaits == Awaits::Client && self.slot.as_ref().is_some_and(|slot| !slot.is_lent());
        let before = clock.upload.and_then(|upload| upload.lends);
        // From when its client was first waited for: pieces that come one by one do not prolong it.
        let lends = holds.then(|| before.unwrap_or(moved + PATIENCE));
        clock.upload = Some(Upload { mark, moved, awaits, lends });
    }

    /// Gives the slot to others where the time for that has come. Whether it had: then it was not the attempt's time that
    /// was up.
    fn lets_go(&mut self, clock: &mut Clock, wire: &mut Wire) -> bool {
        let now = Instant::now();
        let lends = clock.upload.as_mut().and_then(|upload| upload.lends.take_if(|lends| *lends <= now));
        if let Some(lends) = lends {
            self.slot.iter_mut().for_each(|slot| slot.lend(now, now - lends + PATIENCE));
            return true;
        }
        if clock.turns.take_if(|turns| *turns <= now).is_some() {
            if !self.become_stream(wire, now) {
                // No room for it: it keeps its slot, and asks again when as much time has passed.
                clock.turns = Some(now + self.stream_after());
            }
            return true;
        }
        false
    }

    /// A call that nothing bounds has no head for so long that it may be a stream without a message yet. It may as well be
    /// one that its upstream has forgotten: the breaker learns nothing of it.
    fn become_stream(&mut self, wire: &mut Wire, now: Instant) -> bool {
        let upstream = &self.routed.target().chain.upstream;
        if !wire.become_stream(upstream.settings.connections.max_streams) {
            self.worker.shared.metrics.limit_reached(Limit::UpstreamStreams).inc();
            return false;
        }
        self.in_flight.becomes_stream();
        upstream.observe(self.in_flight, now, Observed::Streams { verdict: Verdict::Ignored });
        (*self.permit, *self.slot) = (None, None);
        true
    }

    fn stream_after(&self) -> Duration {
        *self.routed.target().chain.upstream.settings.concurrency.stream_after
    }

    /// Whether the client waits with its body for the upstream's word: then the upstream's time runs.
    fn waits_for_word(&self, request: &Request, progress: &Progress) -> bool {
        let told = self.client.is_none_or(|client| client.was_told_to_continue());
        request.head.expect_continue && !told && progress.taken() == 0
    }
}

impl Clock {
    /// Arms `timer` for what ends first of the times of an attempt, which began at `started`.
    fn arm(&self, timer: &Timer, started: Instant) {
        let [own, other] = match self.upload.filter(|_| self.sent.is_none()) {
            Some(Upload { awaits: Awaits::Room, moved, .. }) => [self.idle.map(|idle| moved + idle), None],
            Some(Upload { awaits: Awaits::Client, moved, lends, .. }) => {
                [self.quiet.or(self.idle).map(|idle| moved + idle), lends]
            }
            Some(Upload { awaits: Awaits::Word, .. }) | None => {
                let quiet = self.quiet.filter(|_| self.request.is_none());
                let from = self.sent.unwrap_or(started);
                [self.attempt.or(quiet).map(|attempt| from + attempt), self.request]
            }
        };
        match [own, other, self.caller, self.turns].into_iter().flatten().min() {
            Some(first) => timer.arm(first),
            None => timer.disarm(),
        }
    }
}

/// Which timeout it was.
fn elapsed(clock: &Clock) -> Error {
    let stalled = |stalled| Error::new(stalled, "the request's body made no progress for timeout.idle");
    match (clock.over(Instant::now()), clock.awaits()) {
        (Some(Reason::DeadlineExceeded), _) => Reason::DeadlineExceeded.into(),
        (_, Some(Awaits::Client)) => stalled(Reason::ClientStalled),
        (_, Some(Awaits::Room)) => stalled(Reason::UpstreamStalled),
        (Some(reason), _) => reason.into(),
        _ if clock.attempt.is_none() && clock.quiet.is_some() => Reason::UpstreamStalled.into(),
        _ => Reason::AttemptTimeout.into(),
    }
}
