//! The task that keeps one upstream's endpoints as discovery says. Off the workers; ended by being dropped.
//!
//! It holds no state of its own: what is known lies with the upstream (`known`), so that a task that starts with the
//! next snapshot goes on where this one was ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::known::Known;
use super::list;
use super::names::{Answer, Question, Told};
use super::resolver::Resolvers;
use crate::telemetry::metrics::Limit;
use crate::upstream::Upstream;
use crate::upstream::endpoint;

/// Where nothing is due; then something else wakes the task.
const NOTHING: Duration = Duration::from_secs(3600);

/// What a look-up gave, and when.
type Answered = (Question, Answer);

/// Keeps `upstream`'s endpoints as discovery says, until a look-up panics. `changed` tells that its file may have
/// changed; `first` is dropped when everything was asked once.
pub async fn keep<T>(upstream: &Upstream, resolvers: &Arc<Resolvers>, changed: &Notify, first: T) {
    let server = upstream.known().settings().server();
    let (mut first, mut asking, mut lookups) = (Some(first), BTreeSet::new(), JoinSet::new());
    // What happened to the file while nobody watched it, nobody told.
    read_list(upstream).await;
    loop {
        let (due, next) = {
            let (known, now) = (upstream.known(), Instant::now());
            let due = known.names().due(now, &asking);
            asking.extend(due.iter().cloned());
            (due, known.names().next(&asking).unwrap_or(now + NOTHING))
        };
        for question in due {
            lookups.spawn(ask(Arc::clone(resolvers), server, question));
        }
        if first.is_some() && !upstream.known().is_new() {
            first = None;
        }
        tokio::select! {
            Some(answered) = lookups.join_next(), if !lookups.is_empty() => {
                let Ok((question, answer)) = answered else { return };
                asking.remove(&question);
                take(upstream, &question, answer);
            }
            () = sleep_until(next.into()) => {}
            () = changed.notified() => read_list(upstream).await,
        }
    }
}

/// Asks all that `known` has not asked yet, and reads its file, until everything has an answer of some kind. What came
/// is learnt as it comes: whoever has waited for long enough drops this and finds it in `known`.
pub async fn first_answers(known: &mut Known, resolvers: &Arc<Resolvers>) {
    if let (true, Some(path)) = (known.wants_list(), known.settings().path()) {
        let path = path.to_owned();
        let list = tokio::task::spawn_blocking(move || list::read(&path)).await;
        known.list(list.unwrap_or_else(|_| Err("reading it panicked".to_owned())), Instant::now());
    }
    let server = known.settings().server();
    let (mut asked, mut lookups) = (BTreeSet::new(), JoinSet::new());
    loop {
        for question in known.names().unasked() {
            if asked.insert(question.clone()) {
                lookups.spawn(ask(Arc::clone(resolvers), server, question));
            }
        }
        let Some(Ok((question, answer))) = lookups.join_next().await else { return };
        known.answer(&question, answer, (Instant::now(), fastrand::f64()));
    }
}

async fn ask(resolvers: Arc<Resolvers>, server: Option<SocketAddr>, question: Question) -> Answered {
    let answer = resolvers.ask(server, &question).await;
    (question, answer)
}

/// Reads the upstream's file, if it has one, on a thread that may wait for it.
async fn read_list(upstream: &Upstream) {
    let path = upstream.known().settings().path().map(std::borrow::ToOwned::to_owned);
    let Some(path) = path else { return };
    let list = tokio::task::spawn_blocking(move || list::read(&path)).await;
    let list =
        list.unwrap_or_else(|_| Err("reading it panicked; this is a bug, please report it".to_owned()));
    take_list(upstream, list);
}

fn take_list(upstream: &Upstream, list: Result<Vec<endpoint::Settings>, String>) {
    let failed = list.is_err();
    let mut known = upstream.known();
    let told = known.list(list, Instant::now());
    if failed {
        upstream.metrics.discovery_failures.inc();
    }
    match told {
        Told::Nothing => {}
        Told::Fails { why, keeps } => {
            let then = if keeps { "the last good list stays" } else { "there is no list yet" };
            tracing::warn!(upstream = &*upstream.name, "endpoints of the file are not taken, {then}: {why}");
        }
        Told::Recovered => tracing::info!(upstream = &*upstream.name, "the file of endpoints is good again"),
    }
    put_in_force(upstream, known);
}

fn take(upstream: &Upstream, question: &Question, answer: Answer) {
    let failed = matches!(answer, Answer::Failed(_));
    let mut known = upstream.known();
    let told = known.answer(question, answer, (Instant::now(), fastrand::f64()));
    if failed {
        upstream.metrics.discovery_failures.inc();
    }
    match told {
        Told::Nothing => {}
        Told::Fails { why, keeps } => tracing::warn!(
            upstream = &*upstream.name,
            name = %question,
            reason = "dns_error",
            kept_last_answer = keeps,
            "name does not resolve: {why}"
        ),
        Told::Recovered => {
            tracing::info!(upstream = &*upstream.name, name = %question, "name resolves again");
        }
    }
    put_in_force(upstream, known);
}

fn put_in_force(upstream: &Upstream, known: MutexGuard<'_, Known>) {
    let composed = known.compose();
    drop(known);
    if composed.left_out > 0 && upstream.endpoints().usable.len() < composed.found.len() {
        upstream.registry.limit_reached(Limit::Endpoints).inc();
        tracing::warn!(
            upstream = &*upstream.name,
            left_out = composed.left_out,
            "more endpoints than an upstream may have ({}); the rest is left out",
            super::MAX_ENDPOINTS
        );
    }
    upstream.set_endpoints(composed.found, composed.unresolved);
}
