//! One sending of a request. Each policy is asked in the order in which it stands here, and only here:
//!
//! breaker -> concurrency: slot or queue -> endpoint -> fault -> pool or connect -> wire -> classify.
//!
//! What can refuse cheaply comes first, what holds a resource comes last. Only a first attempt may queue: a
//! retry that waits takes the place of a request that has not been served at all.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::body::Progress;
use super::chain::{Chain, carry_out};
use super::client::Informed;
use super::context::Routed;
use super::fault::Injection;
use super::grpc::{self, Call};
use super::open::{CONNECT_TIMEOUT, Open, Opening};
use super::queue::Slot;
use super::race::Race;
use super::request::Request;
use super::response::{self, Arrived, FromUpstream, Hold, WHOLE_WITHIN, is_outriggers, retry_after};
use super::send::{self, Clock, Sending};
use super::shed;
use super::upward::Up;
use super::wire::Unanswered;
use super::worker::Worker;
use crate::http1::field::Name;
use crate::policy::breaker::{Outcome, Permit};
use crate::policy::concurrency::Ask as Entering;
use crate::policy::failure::Verdict;
use crate::policy::fault::{Asked, End, Ruling};
use crate::policy::limit::{Lesson, Sample};
use crate::policy::mode::Mode;
use crate::policy::timeout;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::{AttemptOutcome, Effect, FaultKind, Limit};
use crate::timer::Timer;
use crate::upstream::endpoint::InFlight;
use crate::upstream::{Ask, Observed};

/// Which attempt it is, and what its predecessors left.
pub struct Turn<'a> {
    /// Counts from 1.
    pub number: u32,
    /// The endpoints that this request has tried.
    pub tried: &'a [u64],
    /// Whether the last one was not even reached.
    pub unreached: bool,
    /// The slot of the attempt before, where this one follows at once.
    pub slot: Option<Slot>,
    /// How long this attempt may take, and until when.
    pub clock: Clock,
    /// Now.
    pub now: Instant,
}

/// An attempt that may be sent.
pub struct Admitted {
    permit: Option<Permit>,
    slot: Option<Slot>,
    in_flight: InFlight,
    /// Endpoints there are, and those of them that are in service; two stand for more.
    endpoints: (u32, u32),
    clock: Clock,
    number: u32,
}

/// An attempt that is sent and has no outcome. Dropped without, another has won its race, which says nothing of it but
/// that it took longer than this; or its client has left: that is counted, and where it left later than answers take
/// while nobody got one, it is the upstream's failure.
struct Pending<'a> {
    worker: &'a Worker,
    routed: &'a Routed,
    started: Instant,
    race: Option<&'a Race>,
    /// None once there is an outcome.
    admitted: Option<Admitted>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(admitted) = self.admitted.take() {
            let now = Instant::now();
            let latency = admitted.latency(self.started, now);
            if self.race.is_some_and(Race::is_decided) {
                return admitted.overtaken(self.worker, self.routed, latency, now);
            }
            let left = Unanswered::of(Reason::ClientDisconnected.into(), false);
            admitted.fail(self.worker, self.routed, left, (latency, now));
        }
    }
}

/// An attempt without an answer.
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Whether the endpoint surely has not processed it.
    pub unprocessed: bool,
    /// Its slot, for an attempt that follows at once.
    pub slot: Option<Slot>,
}

/// Asks the policies whether this attempt may be sent, and takes what it needs.
///
/// # Errors
/// [`Reason::BreakerOpen`], [`Reason::ConcurrencyLimited`], [`Reason::QueueFull`], [`Reason::QueueTimeout`],
/// [`Reason::NoHealthyEndpoint`], [`Reason::DnsError`].
pub async fn admit(
    worker: &Worker,
    routed: &Routed,
    request: &mut Request,
    turn: Turn<'_>,
    timer: &Timer,
) -> Result<Admitted, Error> {
    let chain = &*routed.target().chain;
    let settings = &chain.upstream.settings;
    let shard = chain.upstream.metrics.shard(worker.index);
    let mut now = turn.now; // one reading for all admissions
    let is_retry = turn.number > 1;

    let mode = settings.breaker.mode.of(settings.breaker.rollout, request.context.hash);
    let permit = match mode {
        Mode::Off => None,
        mode => {
            let admitted = chain.breaker.admit(now, worker.draw(), send::LEASE);
            carry_out(
                admitted
                    .map_err(|rejection| Error::from(Reason::BreakerOpen).retry_after(rejection.retry_after)),
                mode,
                is_retry,
                shard,
            )?
        }
    };

    let mode = settings.concurrency.mode.of(settings.concurrency.rollout, request.context.hash);
    let slot = match (mode, turn.slot) {
        (Mode::Off, _) => None,
        (_, Some(kept)) => Some(kept),
        (mode, None) => {
            let p50 = chain.latency.p50(now);
            let deadline = turn.clock.end();
            let priority = routed.priority(&request.context);
            let ask = Entering { now, deadline, priority, may_queue: !is_retry, p50 };
            let entered = if ask.may_queue && mode == Mode::Enforce {
                let queue = &mut request.record.queue;
                let waited = |waited| {
                    *queue += waited;
                    now += waited;
                    shard.queue_wait.observe(waited);
                };
                chain.gate.enter(ask, timer, waited).await
            } else {
                chain.gate.try_enter(ask)
            };
            carry_out(entered, mode, is_retry, shard)?
        }
    };

    let key = settings.balance.key();
    let key = key.and_then(|key| request.context.hash_of(&request.head, key, &routed.listener().trust));
    // The breaker's own probes ask whether the upstream is back, not whether one that failed is.
    let is_closed = permit.is_none() || chain.breaker.is_closed();
    let may_probe =
        !is_retry && is_closed && chain.upstream.awaits_probe(now) && may_be_sent_again(routed, request);
    let outlier = &settings.outlier;
    let heeds_ejections = outlier.mode.of(outlier.rollout, request.context.hash) == Mode::Enforce;
    let draw = worker.draw_bits();
    let ask =
        Ask { tried: turn.tried, draw, key, now, may_probe, heeds_ejections, unreached: turn.unreached };
    let endpoints = chain.upstream.endpoints();
    let Some(endpoint) = chain.upstream.choose(&ask) else {
        let refusal = match endpoints.unresolved.first() {
            Some((name, why)) => Error::new(Reason::DnsError, format!("{name} does not resolve: {why}")),
            None => Reason::NoHealthyEndpoint.into(),
        };
        if !is_retry {
            shard.rejected(refusal.reason, Effect::Enforced).inc();
        }
        return Err(refusal);
    };
    Ok(Admitted {
        permit,
        slot,
        in_flight: endpoint.enter(now),
        endpoints: (endpoints.usable.len().min(2) as u32, endpoints.in_service()),
        clock: turn.clock,
        number: turn.number,
    })
}

/// Whether another attempt may follow if this one fails.
fn may_be_sent_again(routed: &Routed, request: &Request) -> bool {
    let target = routed.target();
    let grpc_path = request.context.grpc.then(|| request.head.path_and_query());
    let has_key = request.head.fields.has(Name::IdempotencyKey);
    target.retry.mode == Mode::Enforce
        && target.retry.attempts > 1
        && target.rules.method_allows(request.head.method_text(), has_key, grpc_path)
        && request.body.is_replayable().is_ok()
}

impl Admitted {
    /// The endpoint's id.
    pub fn endpoint_id(&self) -> u64 {
        self.in_flight.endpoint().id
    }

    /// Sends the request and waits for its answer's head, and for the whole answer where it is small. Tells when
    /// the head came, or the attempt failed. `race`: where there is another beside it, or may be.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn send(
        self,
        worker: &Rc<Worker>,
        routed: &Routed,
        request: &mut Request,
        timer: &Timer,
        (client, race): (Option<&dyn Informed>, Option<&Race>),
    ) -> Result<(Box<FromUpstream>, Instant), (Failed, Instant)> {
        let chain = &*routed.target().chain;
        let started = Instant::now();
        request.record.attempts += 1;
        request.record.endpoint = Some(Arc::clone(self.in_flight.endpoint()));
        request.record.sent.get_or_insert(started);

        let mut pending = Pending { worker, routed, started, race, admitted: Some(self) };
        let admitted = pending.admitted.as_mut().expect("it has just been put there");
        let by = (timer, client, race);
        let result = match injected(worker, routed, request, started) {
            None => admitted.exchange(worker, routed, request, by, started).await,
            Some(fault) => Box::pin(admitted.suffer(fault, worker, routed, request, by, started)).await,
        };
        let admitted = pending.admitted.take().expect("it is taken here alone");

        let now = Instant::now();
        let latency = admitted.latency(started, now);
        chain.upstream.metrics.shard(worker.index).attempt_duration.observe(latency);
        request.record.answered = Some(now);
        match result {
            Ok(mut arrived) => {
                let is_abort = arrived.abort.is_some();
                let status = if request.context.grpc { arrived.grpc_status() } else { None };
                shed::hear(chain, &mut arrived.head.fields, now);
                let head = &arrived.head;
                let (verdict, counted_as) = match status {
                    Some(code) => {
                        (chain.classifier.grpc(code), grpc::attempt_outcome(code, &chain.classifier))
                    }
                    None => (chain.classifier.status(head.status), AttemptOutcome::of_status(head.status)),
                };
                let (verdict, counted_as) = if is_outriggers(head, Reason::LoadShed) {
                    // One class's matter, as a 429 is one caller's.
                    (Verdict::Throttled, counted_as)
                } else if is_outriggers(head, Reason::DeadlineExceeded) {
                    admitted.given_up_there(chain, latency, now)
                } else {
                    (verdict, counted_as)
                };
                // What became a stream before its head had nothing to say: that is no latency.
                if !admitted.in_flight.is_stream() {
                    if verdict == Verdict::Success {
                        chain.latency.record(now, latency);
                    }
                    chain.upstream.observe(&admitted.in_flight, now, Observed::Head { verdict, latency });
                }
                let retry_after = match verdict {
                    Verdict::Failure => retry_after(&head.fields).unwrap_or_default(),
                    _ => Duration::ZERO,
                };
                let outcome = admitted.outcome(verdict, latency);
                let lesson = response::lesson(head, status, verdict);
                let sample = Sample { began: now - latency, latency, lesson };
                if head.fields.get(Name::XOutriggerImmediateFail).is_some_and(|value| value == b"true") {
                    chain.upstream.immediate_fail(&admitted.in_flight, now);
                }
                let deadline = request.context.deadline;
                let call = request.context.grpc.then(|| Call::new(head, status, deadline));
                let Self { permit, mut slot, mut in_flight, clock, .. } = admitted;
                in_flight.answered(now);
                if let Some(slot) = &mut slot {
                    slot.shows(sample);
                }
                if let Some(permit) = &permit {
                    // A probe's head came in time; its body has until it is a stream, which settles the permit.
                    permit.renew(now, *chain.upstream.settings.concurrency.stream_after * 2);
                }
                let counted_as =
                    Some(if is_abort { AttemptOutcome::Reason(Reason::FaultInjected) } else { counted_as });
                let hold =
                    Hold { permit, slot, in_flight, outcome, counted_as, retry_after, is_observed: false };
                let mode = clock.mode;
                let mut answer =
                    Box::new(FromUpstream::new(worker, routed, (arrived, call), hold, mode, now));
                let waited = whole(&mut answer, request, routed, timer).await;
                if matches!(waited, Ok(true)) {
                    request.record.answered = Some(Instant::now());
                }
                match waited {
                    Ok(_) => Ok((answer, now)),
                    Err(error) => Err((Failed { error, unprocessed: false, slot: None }, now)),
                }
            }
            Err(unanswered) => Err((admitted.fail(worker, routed, unanswered, (latency, now)), now)),
        }
    }

    /// Tells the balancer and the metrics of an attempt that another has overtaken after `age`. Breaker and limits learn
    /// nothing of it.
    #[cold]
    fn overtaken(self, worker: &Worker, routed: &Routed, age: Duration, now: Instant) {
        let chain = &*routed.target().chain;
        chain.upstream.observe(&self.in_flight, now, Observed::Overtaken { age });
        chain.upstream.metrics.shard(worker.index).attempts(AttemptOutcome::Overtaken).inc();
        self.in_flight.endpoint().metrics.shard(worker.index).attempts(AttemptOutcome::Overtaken).inc();
    }

    /// Tells policies and metrics of an attempt without an answer, which took `latency` and ended at `now`.
    fn fail(
        mut self,
        worker: &Worker,
        routed: &Routed,
        unanswered: Unanswered,
        (latency, now): (Duration, Instant),
    ) -> Failed {
        let chain = &*routed.target().chain;
        let Unanswered { error, unprocessed, .. } = unanswered;
        let is_connect = error.reason == Reason::ConnectError;
        let connect_timeout = is_connect && error.detail == CONNECT_TIMEOUT;
        let evidence = self.is_evidence(chain, (latency, now), chain.latency.silence(now));
        let verdict = chain.classifier.reason(error.reason, evidence);
        // An endpoint may hang alone, while its peers answer.
        let of_endpoint = self.is_evidence(chain, (latency, now), self.in_flight.endpoint().silence(now));
        let of_endpoint = chain.classifier.reason(error.reason, of_endpoint);
        let outcome = Outcome { connect_timeout, ..self.outcome(verdict, latency) };
        let unreached = is_connect || error.reason == Reason::TlsError;
        let retry_after = Duration::ZERO;
        let observed = Observed::End { verdict: of_endpoint, latency, connect: unreached, retry_after };
        chain.upstream.observe(&self.in_flight, now, observed);
        if let Some(permit) = self.permit.take().filter(|_| verdict != Verdict::Ignored || connect_timeout) {
            permit.record(now, outcome);
        }
        let counted_as = AttemptOutcome::Reason(error.told_reason());
        if error.reason == Reason::ConcurrencyLimited && self.number == 1 {
            chain.upstream.metrics.shard(worker.index).rejected(error.reason, Effect::Enforced).inc();
        }
        chain.upstream.metrics.shard(worker.index).attempts(counted_as).inc();
        self.in_flight.endpoint().metrics.shard(worker.index).attempts(counted_as).inc();
        // Who is overloaded answers others, so for the limit what comes late is late whatever they get.
        let late = self.is_evidence(chain, (latency, now), Duration::MAX);
        let lesson = match error.reason {
            Reason::AttemptTimeout | Reason::RequestTimeout | Reason::DeadlineExceeded if late => {
                Some(Lesson::Overloaded)
            }
            Reason::ConnectError if !connect_timeout => Some(Lesson::Nothing),
            Reason::TlsError | Reason::UpstreamReset | Reason::ProtocolError => Some(Lesson::Nothing),
            // It was given up before the upstream said a word.
            _ => None,
        };
        if let (Some(slot), Some(lesson)) = (&mut self.slot, lesson) {
            slot.shows(Sample { began: now - latency, latency, lesson });
        }
        let is_given_up = matches!(
            error.reason,
            Reason::AttemptTimeout
                | Reason::RequestTimeout
                | Reason::DeadlineExceeded
                | Reason::ClientDisconnected
        );
        if let (true, Some(slot), Some(sent)) = (is_given_up, &mut self.slot, self.clock.sent) {
            slot.gives_up(sent);
        }
        // A slot that is lent is nobody's: another attempt has to ask for one.
        let slot = self.slot.take().filter(|slot| !slot.is_lent());
        Failed { error, unprocessed, slot }
    }

    /// What an attempt comes to that another Outrigger has given up, since the time was over that it was given: the same as
    /// if it had been given up here, an instant later. Its answer is passed on.
    #[cold]
    fn given_up_there(&self, chain: &Chain, latency: Duration, now: Instant) -> (Verdict, AttemptOutcome) {
        // That time goes up in whole milliseconds, and so ends there a little before.
        const EARLY: Duration = Duration::from_millis(2);
        let reason = Reason::DeadlineExceeded;
        let evidence = self.is_evidence(chain, (latency + EARLY, now), chain.latency.silence(now));
        (chain.classifier.reason(reason, evidence), AttemptOutcome::Reason(reason))
    }

    /// Whether it says something that the attempt was cut off at `now`, after `ran`, where nobody has had a good answer
    /// for `silence`.
    fn is_evidence(&self, chain: &Chain, (ran, now): (Duration, Instant), silence: Duration) -> bool {
        // What is cut short by the rest of a request's time has not had its whole time.
        let allowed = self.clock.whole_attempt.unwrap_or(Duration::MAX);
        // Nor is it the upstream's fault that its client sends no more, or that a stream has nothing to say.
        let is_its_turn = !self.clock.awaits_client() && !self.in_flight.is_stream();
        is_its_turn && timeout::is_evidence(ran, allowed, chain.latency.usual_p99(now), silence)
    }

    /// The same as [`Admitted::exchange`], with an injected fault: what it takes and comes to looks like its upstream's
    /// doing to all who learn from it.
    async fn suffer(
        &mut self,
        fault: Injection,
        worker: &Rc<Worker>,
        routed: &Routed,
        request: &mut Request,
        by: (&Timer, Option<&dyn Informed>, Option<&Race>),
        started: Instant,
    ) -> Result<Arrived, Unanswered> {
        let shard = routed.target().chain.upstream.metrics.shard(worker.index);
        // A hedge may become due while it waits.
        let look = |request: &Request| by.2.into_iter().for_each(|race| race.look(request));
        let mut up = started;
        if let Some(delay) = fault.plan.delay {
            shard.faults(FaultKind::Delay).inc();
            if let Some(permit) = &self.permit {
                permit.renew(started, delay + send::LEASE);
            }
            let in_time = fault.hold(started, delay, self.until(started), || look(request)).await;
            up = Instant::now();
            if !in_time {
                return Err(self.too_late(up));
            }
            self.clock.delayed = up - started;
            self.clock.attempt = self.clock.attempt.map(|attempt| attempt.saturating_sub(self.clock.delayed));
        }
        match fault.plan.end {
            Some(End::Abort(status, code)) => {
                shard.faults(FaultKind::Abort).inc();
                let head = worker.response_head();
                return Ok(Arrived::aborted(head, (status, code), request.context.grpc));
            }
            Some(End::Reset) => {
                shard.faults(FaultKind::Reset).inc();
                let error = Error::new(Reason::UpstreamReset, "a fault breaks off in place of the upstream");
                return Err(Unanswered::of(error.injected(), false));
            }
            None => {}
        }
        let mut arrived = self.exchange(worker, routed, request, by, up).await?;
        if let Some(slow) = fault.plan.slow_first_byte {
            shard.faults(FaultKind::SlowFirstByte).inc();
            let until = self.until(self.clock.sent.unwrap_or(up));
            if !fault.hold(Instant::now(), slow, until, || look(request)).await {
                worker.reuse_response_head(arrived.head);
                return Err(self.too_late(Instant::now()));
            }
        }
        if fault.plan.bandwidth.is_some() {
            shard.faults(FaultKind::Bandwidth).inc();
        }
        arrived.shape = fault.shape(Instant::now(), || worker.timer());
        Ok(arrived)
    }

    /// Until when an answer must have come to an attempt that began at `from`.
    fn until(&self, from: Instant) -> Option<Instant> {
        let attempt = self.clock.cuts(self.clock.attempt).map(|attempt| from + attempt);
        attempt.into_iter().chain(self.clock.end()).min()
    }

    /// Which of its times has passed.
    fn too_late(&self, now: Instant) -> Unanswered {
        Unanswered::of(self.clock.over(now).unwrap_or(Reason::AttemptTimeout).into(), false)
    }

    /// How long the upstream has taken, or has seemed to. What its client took to send the request is not its latency.
    fn latency(&self, started: Instant, now: Instant) -> Duration {
        match self.clock.up_since() {
            Some(since) => now - since + self.clock.delayed,
            None => now - started,
        }
    }

    /// On what is open to the endpoint, or on a new connection. One that the endpoint closed in that very moment is
    /// replaced, once, for what may be sent twice (RFC 9112 §9.3.1) or has been left behind (RFC 9113 §6.8): that is no
    /// retry, nobody has failed.
    async fn exchange(
        &mut self,
        worker: &Rc<Worker>,
        routed: &Routed,
        request: &mut Request,
        (timer, client, race): (&Timer, Option<&dyn Informed>, Option<&Race>),
        started: Instant,
    ) -> Result<Arrived, Unanswered> {
        let head = &request.head;
        let grpc_path = request.context.grpc.then(|| head.path_and_query());
        let has_key = head.fields.has(Name::IdempotencyKey);
        let may_resend = routed.target().rules.method_allows(head.method_text(), has_key, grpc_path);
        let careful = !(may_resend && request.body.is_surely_replayable());
        let endpoint = Arc::clone(self.in_flight.endpoint());
        let mut replaced = false;
        loop {
            let told = client.is_some_and(|client| client.was_told_to_continue());
            let mut progress = Progress::new(&request.body);
            let up = Up::new(self.number, told);
            let open = Open { up, careful, fresh: replaced, ends: progress.has_ended() };
            let opening = Opening { worker, routed, endpoint: &endpoint, clock: &self.clock, timer };
            let (mut wire, now) = {
                let mut opened = pin!(opening.open(request, open, started));
                poll_fn(|cx| {
                    if let Some(race) = race {
                        race.look(request);
                    }
                    opened.as_mut().poll(cx)
                })
                .await?
            };
            let mut head = worker.response_head();
            let Self { permit, slot, in_flight, clock, .. } = &mut *self;
            let sending = Sending { worker, timer, client, routed, permit, slot, in_flight, race };
            let sent = sending.send(&mut wire, request, &mut progress, clock, (&mut head, now)).await;
            match sent {
                Ok(()) => {
                    let flows = !progress.has_ended() || wire.unwritten() > 0;
                    let upload = flows.then_some(progress);
                    return Ok(Arrived::over(wire, head, upload));
                }
                Err(unanswered) => {
                    worker.reuse_response_head(head);
                    let stale = wire.is_reused()
                        && !unanswered.begun
                        && unanswered.error.reason == Reason::UpstreamReset;
                    if stale {
                        wire.was_stale();
                    }
                    let in_vain = stale && (may_resend || unanswered.unprocessed) || unanswered.left_behind;
                    if in_vain && !replaced && request.body.is_replayable().is_ok() {
                        replaced = true;
                        continue;
                    }
                    return Err(unanswered);
                }
            }
        }
    }

    fn outcome(&self, verdict: Verdict, latency: Duration) -> Outcome {
        let (all, in_service) = self.endpoints;
        // What fails alone while others are in service is ejected; what fails as the last one is the upstream.
        let is_last = in_service == 1 && self.in_flight.endpoint().standing.is_in_service();
        Outcome {
            verdict,
            latency,
            endpoint: self.endpoint_id() as u32,
            endpoints: if is_last && verdict == Verdict::Failure { 1 } else { all },
            connect_timeout: false,
        }
    }
}

/// What an injected fault does to an attempt that begins at `now`.
fn injected(worker: &Worker, routed: &Routed, request: &Request, now: Instant) -> Option<Injection> {
    let target = routed.target();
    // PERF: mostly there is none.
    if !target.chain.faults.are_any() {
        return None;
    }
    let head = &request.head;
    let asked = Asked {
        priority: routed.priority(&request.context),
        is_trusted: request.context.trusted,
        method: head.method_text(),
        has_header: &|name, value| head.fields.find(name.as_bytes()).any(|found| found == value.as_bytes()),
    };
    let endpoints = target.chain.endpoints_for_fault();
    match target.chain.faults.rule(target.fault.as_ref(), (now, endpoints), &asked, || worker.draw()) {
        Ruling::Inject(plan, active) => Some(Injection { plan, active }),
        Ruling::Full => {
            worker.shared.metrics.limit_reached(Limit::ActiveFaults).inc();
            None
        }
        Ruling::NotMeant | Ruling::Spared => None,
    }
}

/// Waits for the whole of a small answer, so that one that breaks off can still be replaced. Whether that took
/// time.
async fn whole(
    answer: &mut FromUpstream,
    request: &mut Request,
    routed: &Routed,
    timer: &Timer,
) -> Result<bool, Error> {
    let bound = routed.target().retry.response_buffer.bytes();
    if bound == 0 || request.context.grpc {
        return Ok(false);
    }
    let mut waits = false;
    poll_fn(|cx| match answer.poll_whole(cx, bound) {
        Poll::Ready(result) => Poll::Ready(result.map(|_| waits)),
        Poll::Pending => {
            if !std::mem::replace(&mut waits, true) {
                if !answer.reserve() {
                    return Poll::Ready(Ok(false));
                }
                timer.arm(Instant::now() + WHOLE_WITHIN);
            }
            timer.poll(cx).map(|()| Ok(true))
        }
    })
    .await
}
