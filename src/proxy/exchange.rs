//! A request, from its complete head to the head of its answer.
//!
//! context -> route -> rate limit -> shed -> attempts: [ budget, back-off, hedge ] x [ breaker -> concurrency -> endpoint ->
//! wire ] -> fallback if it failed -> answer.
//!
//! The order is the same for everyone. Retries stand around the attempts, so that every attempt is admitted,
//! counted and judged by itself: breaker, limits and balancing learn from attempts, users' metrics from requests.

use std::pin::pin;
use std::rc::Rc;

use super::answer::Answer;
use super::attempt;
use super::client::Informed;
use super::context::Routed;
use super::fallback;
use super::hedge::{Sent, Serving};
use super::life::Stage;
use super::mirror;
use super::panics::survive;
use super::rate_limit;
use super::request::Request;
use super::response::{FromUpstream, Response};
use super::retries::{Attempted, Retries, finish};
use super::shed;
use super::worker::Worker;
use crate::policy::retry::Skip;
use crate::reason::{Error, Reason};

/// Serves a request: from an upstream, or by an answer of our own. `routed`: where it goes, or why nowhere; `client`
/// gets interim answers.
pub async fn exchange(
    worker: &Rc<Worker>,
    request: &mut Request,
    routed: Result<Routed, Error>,
    client: Option<&dyn Informed>,
) -> Response {
    let mirrored = routed.as_ref().ok().and_then(|routed| mirror::wanted(worker, request, routed));
    let is_whole = request.body.is_read();
    if let Some(routed) = mirrored.clone().filter(|_| is_whole) {
        shadow(worker, request, routed);
    }
    let served = match routed {
        Ok(routed) if routed.target().fallback.is_some() => {
            let serve = async |request: &mut Request, routed| admitted(worker, request, routed, client).await;
            // Boxed, so that requests without one are no larger for it.
            Box::pin(fallback::answer(worker, request, routed, serve)).await
        }
        Ok(routed) => serve(worker, request, routed, client).await.map(Response::Upstream),
        Err(error) => Err(error),
    };
    if let Some(routed) = mirrored.filter(|_| !is_whole) {
        shadow(worker, request, routed);
    }
    let mut response = match served {
        // It was the upstream's answer for all who asked; the client learns the truth.
        Ok(Response::Upstream(answer)) => match answer.injected() {
            Some(error) => Response::Own(refuse(request, error)),
            None => Response::Upstream(answer),
        },
        Ok(own) => own,
        Err(error) => Response::Own(refuse(request, error)),
    };
    shed::tell(request, &mut response);
    response
}

/// The answer to a request that is not served by an upstream.
pub fn refuse(request: &mut Request, error: Error) -> Answer {
    let error = error.told();
    request.record.reason = Some(error.reason);
    Answer::new(&error, request.context.grpc, request.id())
}

/// Sends a copy of the request on a way of its own.
fn shadow(worker: &Rc<Worker>, request: &Request, routed: Routed) {
    let Some(copy) = mirror::copy(worker, request, &routed) else { return };
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        survive(pin!(send_copy(&worker, copy, routed)), worker.shared.metrics.panics()).await;
    });
}

async fn send_copy(worker: &Rc<Worker>, mut copy: mirror::Copy, routed: Routed) {
    if let Ok(answer) = serve(worker, &mut copy.request, routed, None).await {
        mirror::throw_away(answer, &mut copy.request).await;
    }
}

/// Asks what is asked once for a request, and makes its attempts.
async fn serve(
    worker: &Rc<Worker>,
    request: &mut Request,
    routed: Routed,
    client: Option<&dyn Informed>,
) -> Result<Box<FromUpstream>, Error> {
    request.record.routed = Some(routed.clone());
    rate_limit::admit(worker, &routed, request)?; // rate_limited
    admitted(worker, request, routed, client).await
}

/// The same of a request that the rate limits let pass: those with a fallback ask them before they share an answer.
async fn admitted(
    worker: &Rc<Worker>,
    request: &mut Request,
    routed: Routed,
    client: Option<&dyn Informed>,
) -> Result<Box<FromUpstream>, Error> {
    request.record.routed = Some(routed.clone());
    if worker.shared.life.stage() == Stage::Refusing {
        return Err(Reason::Draining.into());
    }
    let admitted = shed::admit(worker, request, &routed)?; // load_shed
    let served = attempts(worker, request, &routed, client).await;
    admitted.settle(request, &served);
    served
}

/// The request's attempts, until one is good enough or none may follow.
async fn attempts(
    worker: &Rc<Worker>,
    request: &mut Request,
    routed: &Routed,
    client: Option<&dyn Informed>,
) -> Result<Box<FromUpstream>, Error> {
    let target = routed.target();
    let timer = worker.timer();
    let serving = Serving { worker, routed, timer: &timer, client };
    let mut retries = Retries::new(routed, request);
    request.body.keep(target.retry.request_buffer.bytes());
    target.chain.budget.deposit(request.context.arrived);

    // What is passed on where no further attempt is made.
    let mut last: Option<Attempted> = None;
    loop {
        let turn = match retries.turn(worker, request, routed) {
            Ok(turn) => turn,
            Err(error) => return retries.give_up(worker, last, request, (Skip::Deadline, error)),
        };
        let admitted = match attempt::admit(worker, routed, request, turn, &timer).await {
            Ok(admitted) => admitted,
            Err(error) => {
                let skip =
                    if error.reason == Reason::BreakerOpen { Skip::Breaker } else { Skip::Concurrency };
                return retries.give_up(worker, last, request, (skip, error));
            }
        };
        retries.begin(worker, admitted.endpoint_id());
        drop(last.take());
        let plan = serving.plan(request, &retries);
        let Sent { mut attempted, now, hedged } = serving.send(admitted, request, plan, &retries).await;
        if let Some(hedged) = hedged {
            hedged.tell(&mut request.record);
            retries.hedged(hedged.has_won(), hedged.failed());
        }
        match retries.after(worker, request, &mut attempted, now) {
            Some(wait) => {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                last = Some(attempted);
            }
            None => return finish(attempted, request, now),
        }
    }
}
