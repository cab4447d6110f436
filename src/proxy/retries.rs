//! What a request has behind it, and whether another attempt follows: `policy::retry` and `policy::budget` asked for
//! one request, in the order of its attempts.
//!
//! Not here: the loop that makes them (`exchange`), and the attempts themselves (`attempt`).

use std::time::{Duration, Instant};

use super::attempt::{Failed, Turn};
use super::context::{Context, Routed};
use super::queue::Slot;
use super::request::Request;
use super::response::{FromUpstream, is_from_outrigger, retry_after};
use super::send::Clock;
use super::words;
use super::worker::Worker;
use crate::http1::field::Name;
use crate::policy::backoff::{self, Pushback};
use crate::policy::budget::Paid;
use crate::policy::failure::Verdict;
use crate::policy::mode::Mode;
use crate::policy::retry::{self, Cause, Decision, Skip};
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Effect;

/// What an attempt came to.
pub enum Attempted {
    /// An answer, good or bad.
    Answered(Box<FromUpstream>),
    /// None.
    Failed(Failed),
}

impl Attempted {
    /// Whether it is an answer that the client should get while another is on its way.
    pub fn is_good(&self, routed: &Routed) -> bool {
        let Attempted::Answered(answer) = self else { return false };
        let is_retried = |cause| routed.target().rules.retries_on(cause);
        let is_one = !matches!(answer.verdict(), Verdict::Failure | Verdict::Ignored);
        is_one && !answer_cause(answer).is_some_and(is_retried)
    }

    /// It failed at `now`, and may be replaced: what it held comes back.
    pub fn put_aside(&mut self, now: Instant) {
        // Its slot is dropped.
        let _ = self.release(now);
    }

    fn release(&mut self, now: Instant) -> Option<Slot> {
        match self {
            Attempted::Answered(answer) => answer.put_aside(now),
            Attempted::Failed(failed) => failed.slot.take(),
        }
    }

    /// What of two failures is told, if nothing better follows: an answer before none, the first before its hedge.
    pub fn better(first: (Self, Instant), hedge: (Self, Instant)) -> (Self, Instant) {
        let now = first.1.max(hedge.1);
        match (first.0, hedge.0) {
            (Attempted::Failed(_), hedge @ Attempted::Answered(_)) => (hedge, now),
            (Attempted::Failed(mut first), Attempted::Failed(hedge)) => {
                first.unprocessed &= hedge.unprocessed;
                (Attempted::Failed(first), now)
            }
            (first, _) => (first, now),
        }
    }
}

/// The attempt's end is the request's.
///
/// # Errors
/// Why there is no answer.
pub fn finish(attempted: Attempted, request: &mut Request, now: Instant) -> Result<Box<FromUpstream>, Error> {
    match attempted {
        Attempted::Answered(mut answer) => {
            answer.begin(now)?;
            answer.tell(&mut request.record);
            Ok(answer)
        }
        Attempted::Failed(failed) => Err(failed.error),
    }
}

/// What a request has behind it, and what may still follow.
pub struct Retries<'a> {
    routed: &'a Routed,
    mode: Mode,
    /// Whether timeouts cut.
    timeouts: Mode,
    /// Attempts so far.
    made: u32,
    /// Endpoints that have failed this request.
    tried: Vec<u64>,
    /// Whether the last of them was not even reached.
    unreached: bool,
    /// Where the attempt at hand goes.
    endpoint: u64,
    /// What the attempt at hand was paid with.
    paid: Option<Paid>,
    /// What the attempt at hand is a retry for.
    cause: Option<Cause>,
    /// Whether one of the attempts was a hedge.
    is_hedged: bool,
    /// Whether the attempt at hand has lost against its hedge.
    is_beaten: bool,
    free_used: bool,
    all_unprocessed: bool,
    /// The slot of an attempt that another follows at once.
    slot: Option<Slot>,
    /// The wait before.
    waited: Duration,
    /// When `timeout.request` ends.
    end: Option<Instant>,
}

impl<'a> Retries<'a> {
    /// Nothing is behind it.
    pub fn new(routed: &'a Routed, request: &Request) -> Self {
        let target = routed.target();
        let context = &request.context;
        // A quiet gRPC stream looks like a slow call, so those are bounded only where somebody says so.
        let bounded =
            target.timeout.mode != Mode::Off && (!context.grpc || target.timeout.request_is_written);
        Self {
            routed,
            mode: target.retry.mode.of(target.retry.rollout, context.hash),
            timeouts: target.timeout.mode.of(target.timeout.rollout, context.hash),
            made: 0,
            tried: Vec::new(),
            unreached: false,
            endpoint: 0,
            paid: None,
            cause: None,
            is_hedged: false,
            is_beaten: false,
            free_used: false,
            all_unprocessed: true,
            slot: None,
            waited: Duration::ZERO,
            end: bounded.then(|| context.since + *target.timeout.request),
        }
    }

    /// The next attempt.
    ///
    /// # Errors
    /// [`Reason::DeadlineExceeded`] or [`Reason::RequestTimeout`] where it could not end in time.
    pub fn turn(
        &mut self,
        worker: &Worker,
        request: &Request,
        routed: &'a Routed,
    ) -> Result<Turn<'_>, Error> {
        let target = routed.target();
        let now = if self.made == 0 { request.context.since } else { Instant::now() };
        let clock = self.clock(&request.context, now);
        if let Some(end) = clock.end() {
            let left = end.saturating_duration_since(now);
            if !target.chain.feasibility.check(now, left, target.chain.latency.p50(now)) {
                let reason = match request.context.deadline {
                    Some(deadline) if deadline <= end => Reason::DeadlineExceeded,
                    _ => Reason::RequestTimeout,
                };
                if self.made == 0 {
                    self.shard(worker).rejected(reason, Effect::Enforced).inc();
                }
                return Err(Error::new(reason, "too little time is left for an attempt"));
            }
        }
        Ok(Turn {
            number: self.made + 1,
            tried: &self.tried,
            unreached: self.unreached,
            slot: self.slot.take(),
            clock,
            now,
        })
    }

    /// How long another attempt may take that begins at `now`.
    pub fn clock(&self, context: &Context, now: Instant) -> Clock {
        let target = self.routed.target();
        let timeout = &target.timeout;
        let enabled = timeout.mode != Mode::Off;
        let mut clock = Clock {
            mode: self.timeouts,
            connect: enabled.then_some(*timeout.connect),
            attempt: None,
            whole_attempt: None,
            request: self.end.map(|end| end + context.stood_still),
            caller: context.deadline,
            idle: enabled.then_some(*timeout.idle),
            quiet: (enabled && context.grpc).then_some(*timeout.stream_idle),
            ..Clock::default()
        };
        if enabled && (!context.grpc || self.end.is_some() || timeout.attempt.is_some()) {
            let left = clock.request.map_or(Duration::MAX, |end| end.saturating_duration_since(now));
            let may_follow = self.mode == Mode::Enforce && self.made + 1 < target.rules.attempts();
            clock.attempt = Some(timeout.attempt_timeout(left, may_follow));
            clock.whole_attempt = Some(timeout.attempt_timeout(*timeout.request, may_follow));
        }
        clock
    }

    /// Attempts so far, the one at hand included.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Whether one of the attempts was a hedge.
    pub fn is_hedged(&self) -> bool {
        self.is_hedged
    }

    /// The endpoints that have failed this request.
    pub fn tried(&self) -> &[u64] {
        &self.tried
    }

    /// A hedge was sent beside the attempt at hand, and has won or failed or was cancelled.
    pub fn hedged(&mut self, has_won: bool, failed: Option<(u64, bool)>) {
        self.made += 1;
        self.is_hedged = true;
        self.is_beaten = has_won;
        if let Some((endpoint, unprocessed)) = failed {
            self.tried.push(endpoint);
            self.all_unprocessed &= unprocessed;
        }
    }

    /// The attempt is sent.
    pub fn begin(&mut self, worker: &Worker, endpoint: u64) {
        self.made += 1;
        self.endpoint = endpoint;
        if let Some(cause) = self.cause.take() {
            self.shard(worker).retries(words::cause(cause)).inc();
        }
    }

    /// Whether another attempt follows, and after which wait.
    pub fn after(
        &mut self,
        worker: &Worker,
        request: &Request,
        attempted: &mut Attempted,
        now: Instant,
    ) -> Option<Duration> {
        let target = self.routed.target();
        let (cause, unprocessed) = match attempted {
            Attempted::Answered(answer) => (answer_cause(answer), false),
            Attempted::Failed(failed) => (Some(Cause::Reason(failed.error.reason)), failed.unprocessed),
        };
        let Some(cause) = cause else {
            self.succeeded();
            return None;
        };
        self.paid = None;
        self.tried.push(self.endpoint);
        self.all_unprocessed &= unprocessed;
        self.unreached = matches!(cause, Cause::Reason(Reason::ConnectError | Reason::TlsError));
        let (retry_after, pushback_never) = match attempted {
            Attempted::Answered(answer) => pushback(answer),
            Attempted::Failed(_) => (None, false),
        };
        let endpoints = target.chain.upstream.endpoints();
        let grpc_path = request.context.grpc.then(|| request.head.path_and_query());
        let has_key = request.head.fields.has(Name::IdempotencyKey);
        let failed = retry::Failed {
            cause,
            unprocessed,
            method_ok: target.rules.method_allows(request.head.method_text(), has_key, grpc_path),
            replayable: request.body.is_replayable(),
            attempt: self.made,
            caller_attempt: request.context.caller_attempt,
            retry_after,
            pushback_never,
            left: self.left(&request.context, now),
            other_endpoint: endpoints.balance.has_untried(&self.tried, self.unreached),
            endpoints: endpoints.usable.len() as u32,
            all_unprocessed: self.all_unprocessed,
            free_used: self.free_used,
        };
        if self.mode == Mode::Off {
            return None;
        }
        let (pays, at_once) = match retry::decide(&target.rules, &failed) {
            Decision::Answer => return None,
            Decision::Skip(skip) => return self.skip(worker, Some(skip)),
            Decision::Retry { pays, at_once } => (pays, at_once),
        };
        if self.mode == Mode::Shadow {
            return self.skip(worker, None);
        }
        let settings = &target.retry.backoff;
        let number = self.made - 1;
        let wait = if at_once {
            Duration::ZERO
        } else {
            // Added, or everybody would be back in the instant that the upstream named.
            backoff::wait(settings, number, self.waited, worker.draw()) + retry_after.unwrap_or_default()
        };
        if wait >= failed.left {
            return self.skip(worker, Some(Skip::Deadline));
        }
        if pays {
            match target.chain.budget.withdraw(now) {
                Ok(paid) => self.paid = Some(paid),
                Err(skip) => return self.skip(worker, Some(skip)),
            }
        } else {
            self.free_used |= !failed.other_endpoint;
        }
        self.cause = Some(cause);
        self.waited = wait;
        // A failed attempt gives its slot back before its back-off; one that is followed at once passes it on.
        self.slot = attempted.release(now);
        match &mut self.slot {
            Some(slot) if wait.is_zero() => slot.goes_on(),
            slot => *slot = None,
        }
        Some(wait)
    }

    /// The attempt at hand was good, or its hedge.
    fn succeeded(&mut self) {
        let is_first = self.made - u32::from(self.is_hedged) == 1;
        match self.paid.take() {
            // What the hedge took comes back by itself.
            _ if self.is_beaten => {}
            Some(paid) => paid.refund(),
            None if is_first => self.routed.target().chain.budget.first_succeeded(),
            None => {}
        }
    }

    /// No attempt follows though one was due.
    fn skip(&self, worker: &Worker, skip: Option<Skip>) -> Option<Duration> {
        self.shard(worker).retries_skipped(words::skip(skip)).inc();
        None
    }

    /// An attempt was refused: the last one's end is passed on, or the refusal where there was none.
    ///
    /// # Errors
    /// The refusal, or why the last one has no answer.
    pub fn give_up(
        &mut self,
        worker: &Worker,
        last: Option<Attempted>,
        request: &mut Request,
        refused: (Skip, Error),
    ) -> Result<Box<FromUpstream>, Error> {
        match last {
            None => Err(refused.1),
            Some(last) => {
                self.skip(worker, Some(refused.0));
                finish(last, request, Instant::now())
            }
        }
    }

    /// What is left of the request's time.
    pub fn left(&self, context: &Context, now: Instant) -> Duration {
        let end = self.end.filter(|_| self.timeouts == Mode::Enforce);
        let end = end.map(|end| end + context.stood_still);
        let end = end.into_iter().chain(context.deadline).min();
        end.map_or(Duration::MAX, |end| end.saturating_duration_since(now))
    }

    fn shard(&self, worker: &Worker) -> &'a crate::telemetry::metrics::UpstreamShard {
        self.routed.target().chain.upstream.metrics.shard(worker.index)
    }
}

impl Drop for Retries<'_> {
    /// A retry that was paid for and never sent, for want of a slot or of its client, takes nothing.
    fn drop(&mut self) {
        if let Some(paid) = self.paid.take().filter(|_| self.cause.is_some()) {
            paid.unsent();
        }
    }
}

/// What a retry of this answer would be for; none: it is good.
fn answer_cause(answer: &FromUpstream) -> Option<Cause> {
    if let Some(code) = answer.grpc_status() {
        return (code != 0).then_some(Cause::Grpc(code));
    }
    let is_bad = answer.verdict() != Verdict::Success || answer.head.status >= 400;
    is_bad.then_some(Cause::Status(answer.head.status))
}

/// When the upstream may be asked again, and whether it asked not to be.
fn pushback(answer: &FromUpstream) -> (Option<Duration>, bool) {
    let fields = &answer.head.fields;
    // Another Outrigger's refusal is an overload that a retry would add to.
    let refused = is_from_outrigger(fields);
    if let Some(value) = answer.says(Name::GrpcRetryPushbackMs) {
        return match backoff::parse_pushback(value) {
            Pushback::After(after) => (Some(after), refused),
            Pushback::Never => (None, true),
        };
    }
    (retry_after(fields), refused)
}
