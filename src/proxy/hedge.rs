//! A hedge on its way: a second sending of a request beside an attempt that is slow. The first good answer wins, the
//! other attempt is cancelled: dropping it resets its stream, or closes its connection of HTTP/1.1, and gives back what
//! it held.
//!
//! When one is due and whether it is sent is `policy::hedge`. Here an attempt and its hedge are polled together, in the
//! request's own task. The hedge is an attempt like any other, with a copy of the request: it is admitted by breaker and
//! limit (a free slot, no queue), counted, and judged; only interim answers of it are left out. What is decided:
//!
//! - One that fails waits for the other. Where both have, the request goes on as after any failed attempt, with both
//!   endpoints tried and both attempts counted.
//! - A request gets one hedge, whichever of its attempts is slow, and with it no more attempts than `retry.attempts`
//!   (two, where that is one).
//! - It goes to another endpoint that is in service. Where there is but one, it goes to that: behind one address, as of a
//!   service in Kubernetes, there may be many, and it lands on another connection. Where there are not, hedges do not
//!   win, and stop.
//! - A hedge is optional load, so what only shadows a refusal refuses it.
//! - In shadow, all is asked but nothing taken from the limit and the retries; what would have been sent is counted.
//!
//! PERF: off costs a branch. Waiting for the delay is one of tokio's timers for each request, exact to a millisecond;
//! the wheel's 20 ms would be longer than most delays. Only a hedge that is due allocates.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use super::attempt::{self, Admitted, Failed, Turn};
use super::client::Informed;
use super::context::{Context, Routed};
use super::race::Race;
use super::record::Record;
use super::request::Request;
use super::response::FromUpstream;
use super::retries::{Attempted, Retries};
use super::words;
use super::worker::Worker;
use crate::policy::failure::Verdict;
use crate::policy::hedge::{Due, Paid, Skip};
use crate::policy::mode::Mode;
use crate::reason::Reason;
use crate::telemetry::metrics::{UpstreamShard, Winner};
use crate::timer::Timer;

/// What serves a request.
pub struct Serving<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// Where it goes.
    pub routed: &'a Routed,
    /// The request's timer.
    pub timer: &'a Timer,
    /// Who gets interim answers.
    pub client: Option<&'a dyn Informed>,
}

/// An attempt that may be hedged.
pub struct Plan {
    mode: Mode,
    began: Instant,
    /// When a hedge is due; none: too little is known for that.
    at: Option<Instant>,
}

/// What an attempt came to together with its hedge, where it got one.
pub struct Sent {
    /// The answer that won, or the better of two failures.
    pub attempted: Attempted,
    /// When it was known.
    pub now: Instant,
    /// The hedge.
    pub hedged: Option<Hedged>,
}

/// A hedge that was sent.
pub struct Hedged {
    /// Whose answer the request got.
    winner: Winner,
    /// What it came to, if it came to anything.
    end: Option<HedgeEnd>,
}

/// What a hedge came to by itself.
struct HedgeEnd {
    /// Where it went.
    endpoint: u64,
    /// Whether the endpoint surely has not processed it.
    unprocessed: bool,
    /// The copy of the request that went there.
    copy: Box<Request>,
}

/// What an attempt came to, and when that was known.
type Ended = (Attempted, Instant);

/// What became of a hedge that was paid for.
enum Beside {
    Ended(Box<Ended>, HedgeEnd),
    NotSent(Skip),
}

/// A hedge on its way.
struct Running<'a> {
    attempt: Pin<Box<dyn Future<Output = Beside> + 'a>>,
    bill: Bill<'a>,
}

/// What a hedge costs. Dropped, its client has left, and nobody won.
struct Bill<'a> {
    shard: &'a UpstreamShard,
    paid: Option<Paid>,
}

impl Serving<'_> {
    /// Whether and when the attempt that is sent next may be hedged.
    pub fn plan(&self, request: &Request, retries: &Retries<'_>) -> Option<Plan> {
        let is_off = self.routed.target().hedge.mode == Mode::Off;
        if is_off || retries.is_hedged() { None } else { self.consider(request, retries) }
    }

    fn consider(&self, request: &Request, retries: &Retries<'_>) -> Option<Plan> {
        let target = self.routed.target();
        let (settings, hedge) = (&target.hedge, &target.chain.hedge);
        let Request { head, context, .. } = request;
        if retries.made() == 1 {
            hedge.deposit(settings.budget);
        }
        let grpc_path = context.grpc.then(|| head.path_and_query());
        let skip = if context.upgrade || !target.rules.may_hedge(head.method_text(), grpc_path) {
            Some(Skip::Method)
        } else if target.retry.respect_caller_retries && context.caller_attempt > 0 {
            Some(Skip::CallerRetries)
        } else {
            (retries.made() >= target.rules.attempts().max(2)).then_some(Skip::Attempts)
        };
        if let Some(skip) = skip {
            self.skip(Some(skip));
            return None;
        }
        let began = Instant::now();
        let delay = hedge.delay(began, settings);
        if delay.is_none() {
            self.skip(Some(Skip::Samples));
        }
        let mode = settings.mode.of(settings.rollout, context.hash);
        Some(Plan { mode, began, at: delay.map(|delay| began + delay) })
    }

    /// Sends an attempt, and a hedge beside it where `plan` comes to that.
    pub async fn send(
        &self,
        admitted: Admitted,
        request: &mut Request,
        plan: Option<Plan>,
        retries: &Retries<'_>,
    ) -> Sent {
        let Self { worker, routed, timer, client } = *self;
        // Each has its own: what is told of the first is not to be overwritten by the other.
        let (race, beside) = (Race::default(), Race::default());
        let endpoint = admitted.endpoint_id();
        let with = (client, plan.is_some().then_some(&race));
        let mut attempt = pin!(admitted.send(worker, routed, request, timer, with));
        let Some(plan) = plan else {
            let (attempted, now) = ended(attempt.await);
            return Sent { attempted, now, hedged: None };
        };
        let mut delay = pin!(plan.at.map(|at| tokio::time::sleep_until(at.into())));
        let (mut first, mut hedge): (Option<Ended>, Option<(Ended, HedgeEnd)>) = (None, None);
        let mut running: Option<Running<'_>> = None;
        let mut bill = None;
        poll_fn(|cx| {
            if first.is_none() {
                let mut polled = attempt.as_mut().poll(cx);
                if polled.is_pending() && is_over(delay.as_mut(), cx) {
                    delay.set(None);
                    race.is_due();
                    polled = attempt.as_mut().poll(cx);
                    let copy = race.take_copy().filter(|_| polled.is_pending());
                    running = copy.and_then(|copy| self.beside(copy, endpoint, &plan, (&beside, retries)));
                }
                if let Poll::Ready(result) = polled {
                    first = Some(ended(result)).inspect(|end| self.learn(&plan, &race, end));
                }
            }
            let is_good = |end: &Option<Ended>| end.as_ref().is_some_and(|(end, _)| end.is_good(routed));
            if let Some(Running { attempt, .. }) = &mut running
                && !is_good(&first)
                && let Poll::Ready(end) = attempt.as_mut().poll(cx)
            {
                let paid = running.take().map(|running| running.bill);
                match end {
                    Beside::Ended(end, about) => {
                        hedge = Some((*end, about));
                        bill = paid;
                    }
                    Beside::NotSent(skip) => {
                        self.skip(Some(skip));
                        paid.into_iter().for_each(Bill::cancel);
                    }
                }
            }
            let hedge_is_good = hedge.as_ref().is_some_and(|((end, _), _)| end.is_good(routed));
            if is_good(&first) || hedge_is_good || first.is_some() && running.is_none() {
                return Poll::Ready(());
            }
            // It failed, and waits for the other: nobody else has to wait for what it held.
            let ends = first.as_mut().into_iter().chain(hedge.as_mut().map(|(end, _)| end));
            ends.for_each(|(end, now)| end.put_aside(*now));
            Poll::Pending
        })
        .await;

        race.decide();
        beside.decide();
        let now = Instant::now();
        if first.is_none() {
            // It lost.
            self.routed.target().chain.hedge.record(now, plan.age(&race, now));
        }
        let bill = bill.or(running.map(|running| running.bill));
        settle(first, hedge, bill, routed)
    }

    /// A hedge of the request `copy`, beside an attempt at `endpoint`.
    fn beside<'s>(
        &'s self,
        copy: Result<Box<Request>, Skip>,
        endpoint: u64,
        plan: &Plan,
        (race, retries): (&'s Race, &Retries<'_>),
    ) -> Option<Running<'s>> {
        let Self { worker, routed, .. } = *self;
        let chain = &routed.target().chain;
        let now = Instant::now();
        let is_only = chain.upstream.endpoints().usable.len() == 1;
        let mut tried = retries.tried().to_vec();
        tried.push(endpoint);
        let paid = match &copy {
            Ok(copy) => self.pay(retries, (&copy.context, &tried), now),
            Err(skip) => Err(*skip),
        };
        let (mut copy, paid) = match (copy, paid) {
            (Ok(_), Ok(paid)) if plan.mode == Mode::Shadow => {
                paid.shadowed();
                self.skip(None);
                return None;
            }
            (Ok(copy), Ok(paid)) => (copy, paid),
            (Err(skip), _) | (_, Err(skip)) => {
                self.skip(Some(skip));
                return None;
            }
        };
        let (number, clock) = (retries.made() + 1, retries.clock(&copy.context, now));
        let attempt = async move {
            let timer = worker.timer();
            let turn = Turn { number, tried: &tried, unreached: false, slot: None, clock, now };
            let admitted = match attempt::admit(worker, routed, &mut copy, turn, &timer).await {
                Ok(admitted) => admitted,
                Err(refusal) => return Beside::NotSent(of_refusal(refusal.reason)),
            };
            let endpoint = admitted.endpoint_id();
            if tried.contains(&endpoint) && !is_only {
                return Beside::NotSent(Skip::Endpoint);
            }
            let end = ended(admitted.send(worker, routed, &mut copy, &timer, (None, Some(race))).await);
            let unprocessed = matches!(&end.0, Attempted::Failed(failed) if failed.unprocessed);
            Beside::Ended(Box::new(end), HedgeEnd { endpoint, unprocessed, copy })
        };
        let bill = Bill { shard: self.shard(), paid: Some(paid) };
        Some(Running { attempt: Box::pin(attempt), bill })
    }

    /// Pays for a hedge of a request that has tried these endpoints, if nothing speaks against it.
    fn pay(
        &self,
        retries: &Retries<'_>,
        (context, tried): (&Context, &[u64]),
        now: Instant,
    ) -> Result<Paid, Skip> {
        let target = self.routed.target();
        let chain = &target.chain;
        let endpoints = chain.upstream.endpoints();
        let (in_flight, limit, waiting) = chain.gate.counts();
        let due = Due {
            left: retries.left(context, now),
            is_closed: chain.breaker.is_closed(),
            has_slot: in_flight < limit && waiting == 0,
            has_endpoint: endpoints.usable.len() == 1 || endpoints.balance.has_untried(tried, false),
        };
        chain.hedge.admit(now, &target.hedge, &due, &chain.budget)
    }

    /// Learns from the end of an attempt that is no hedge.
    fn learn(&self, plan: &Plan, race: &Race, (end, now): &Ended) {
        let tells = match end {
            Attempted::Answered(answer) => answer.verdict() == Verdict::Success,
            Attempted::Failed(failed) => failed.error.reason == Reason::AttemptTimeout,
        };
        if tells {
            self.routed.target().chain.hedge.record(*now, plan.age(race, *now));
        }
    }

    /// A hedge is not sent; none: it is shadowed.
    fn skip(&self, skip: Option<Skip>) {
        self.shard().hedges_skipped(words::hedge_skip(skip)).inc();
    }

    fn shard(&self) -> &UpstreamShard {
        self.routed.target().chain.upstream.metrics.shard(self.worker.index)
    }
}

impl Plan {
    /// How long the attempt has run by `now`: from when it had gone up, since what its client took is not the upstream's.
    fn age(&self, race: &Race, now: Instant) -> Duration {
        now.saturating_duration_since(race.sent().unwrap_or(self.began))
    }
}

impl Hedged {
    /// Tells what has become of the request.
    pub fn tell(&self, record: &mut Record) {
        record.attempts += 1;
        record.hedge = Some(self.winner);
        if let (Winner::Hedge, Some(end)) = (self.winner, &self.end) {
            let copy = &end.copy.record;
            record.endpoint.clone_from(&copy.endpoint);
            record.answered = copy.answered;
        }
    }

    /// Whether it won.
    pub fn has_won(&self) -> bool {
        self.winner == Winner::Hedge
    }

    /// Where it failed, and whether it surely was not processed there.
    pub fn failed(&self) -> Option<(u64, bool)> {
        self.end.as_ref().filter(|_| !self.has_won()).map(|end| (end.endpoint, end.unprocessed))
    }
}

impl Bill<'_> {
    fn settle(mut self, winner: Winner) {
        self.shard.hedges(winner).inc();
        if let Some(paid) = self.paid.take() {
            paid.settle(winner == Winner::Hedge);
        }
    }

    fn cancel(mut self) {
        if let Some(paid) = self.paid.take() {
            paid.unsent();
        }
    }
}

impl Drop for Bill<'_> {
    fn drop(&mut self) {
        if self.paid.is_some() {
            self.shard.hedges(Winner::None).inc();
        }
    }
}

/// Who has won, of an attempt and the hedge that was paid with `bill`. None of either: it lost.
fn settle(
    first: Option<Ended>,
    hedge: Option<(Ended, HedgeEnd)>,
    bill: Option<Bill<'_>>,
    routed: &Routed,
) -> Sent {
    let is_good = |end: &Ended| end.0.is_good(routed);
    let (hedge, end) = hedge.unzip();
    let (winner, (attempted, now)) = match (first, hedge) {
        (Some(first), None) => (Winner::First, first),
        (Some(first), Some(_)) if is_good(&first) => (Winner::First, first),
        (None, Some(hedge)) => (Winner::Hedge, hedge),
        (Some(_), Some(hedge)) if is_good(&hedge) => (Winner::Hedge, hedge),
        (Some(first), Some(hedge)) => (Winner::None, Attempted::better(first, hedge)),
        (None, None) => unreachable!("one of them has ended"),
    };
    let hedged = bill.map(|bill| {
        bill.settle(winner);
        Hedged { winner, end }
    });
    Sent { attempted, now, hedged }
}

fn ended(result: Result<(Box<FromUpstream>, Instant), (Failed, Instant)>) -> Ended {
    match result {
        Ok((answer, now)) => (Attempted::Answered(answer), now),
        Err((failed, now)) => (Attempted::Failed(failed), now),
    }
}

/// Whether the delay is over; once.
fn is_over(delay: Pin<&mut Option<tokio::time::Sleep>>, cx: &mut TaskContext<'_>) -> bool {
    delay.as_pin_mut().is_some_and(|delay| delay.poll(cx).is_ready())
}

/// Why a hedge that was paid for was not admitted: things have changed since just now.
fn of_refusal(reason: Reason) -> Skip {
    match reason {
        Reason::BreakerOpen => Skip::Breaker,
        Reason::NoHealthyEndpoint | Reason::DnsError => Skip::Endpoint,
        _ => Skip::Saturated,
    }
}
