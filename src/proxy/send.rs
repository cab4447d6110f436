//! One request on its way up: its head is queued, its body goes beside the answer, until the answer's head is there.
//!
//! The answer is read while the body is still written: an upstream may answer before it has read all, and one
//! that does not read at all would otherwise wait for us as we for it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::body::Progress;
use super::client::Informed;
use super::context::Routed;
use super::race::Race;
use super::request::Request;
use super::wire::{Unanswered, Wire};
use super::worker::Worker;
use crate::http1::head::ResponseHead;
use crate::policy::breaker::Permit;
use crate::policy::mode::Mode;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Effect;
use crate::timer::Timer;

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
    /// When the request had gone up, once it has.
    pub sent: Option<Instant>,
    /// How long an injected fault held it back before: that counts as the upstream's time.
    pub delayed: Duration,
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
    pub permit: Option<&'a Permit>,
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
        &self,
        wire: &mut Wire,
        request: &mut Request,
        progress: &mut Progress,
        clock: &mut Clock,
        (answer, started): (&mut ResponseHead, Instant),
    ) -> Result<(), Unanswered> {
        let mut sent = false;
        // How far the body was at the last look, and when that was.
        let mut moved = (usize::MAX, started);
        poll_fn(|cx| {
            if let Some(race) = self.race {
                race.look(request);
            }
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
                            if let Some(race) = self.race {
                                race.went_up(now - clock.delayed);
                            }
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
                                    let idle = clock.patience(wire.is_blocked());
                                    arm(self.timer, [idle.map(|idle| moved.1 + idle), clock.caller]);
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
                            // The client may have been told to go on: then its body is waited for.
                            moved = (usize::MAX - 1, Instant::now());
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
                let error = elapsed(clock, sent || self.waits_for_word(request, progress), wire);
                if clock.mode == Mode::Enforce || error.reason == Reason::DeadlineExceeded {
                    return Poll::Ready(Err(Unanswered::of(error, false)));
                }
                // A shadow timeout counts what it would have cut, once, and lets go.
                let shard = self.routed.target().chain.upstream.metrics.shard(self.worker.index);
                shard.rejected(error.reason, Effect::Shadowed).inc();
                let Clock { caller, sent, delayed, .. } = *clock;
                *clock = Clock { mode: Mode::Off, caller, sent, delayed, ..Clock::default() };
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

impl Clock {
    /// Arms `timer` for an attempt whose body has gone up at `now`.
    fn arm(&self, timer: &Timer, now: Instant) {
        let quiet = self.quiet.filter(|_| self.request.is_none());
        let attempt = self.attempt.or(quiet);
        arm(timer, [attempt.map(|attempt| now + attempt), self.request, self.caller]);
    }

    /// How long a body may stand still, because its upstream takes no more or because its client sends no more.
    fn patience(&self, upstream_is_full: bool) -> Option<Duration> {
        if upstream_is_full { self.idle } else { self.quiet.or(self.idle) }
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
fn elapsed(clock: &Clock, sent: bool, wire: &Wire) -> Error {
    match clock.over(Instant::now()) {
        Some(Reason::DeadlineExceeded) => Reason::DeadlineExceeded.into(),
        _ if !sent => {
            let stalled = if wire.is_blocked() { Reason::UpstreamStalled } else { Reason::ClientStalled };
            Error::new(stalled, "the request's body made no progress for timeout.idle")
        }
        Some(reason) => reason.into(),
        None if clock.attempt.is_none() && clock.quiet.is_some() => Reason::UpstreamStalled.into(),
        None => Reason::AttemptTimeout.into(),
    }
}
