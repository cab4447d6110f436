//! The task that keeps one upstream's endpoints as discovery says. Off the workers; ended by being dropped.
//!
//! It holds no state of its own: what is known lies with the upstream (`known`), so that a task that starts with the
//! next snapshot goes on where this one was ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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

/// What a file lists, or why it cannot be read.
type List = Result<Vec<endpoint::Settings>, String>;

/// What was asked for and has come.
enum Came {
    Answer(Question, Answer),
    List(List),
}

/// Keeps `upstream`'s endpoints as discovery says, until a look-up panics. `changed` tells that its file may have
/// changed; `first` is dropped when everything was asked once.
pub async fn keep<T>(upstream: &Upstream, resolvers: &Arc<Resolvers>, changed: &Notify, first: T) {
    let (server, file) = {
        let known = upstream.known();
        (known.settings().server(), known.settings().path().map(Path::to_owned))
    };
    let (mut first, mut asking, mut lookups) = (Some(first), BTreeSet::new(), JoinSet::new());
    // What happened to the file while nobody watched it, nobody told.
    let mut is_reading = file.clone().map(|file| lookups.spawn_blocking(|| read(file))).is_some();
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
            Some(came) = lookups.join_next(), if !lookups.is_empty() => match came {
                Ok(Came::Answer(question, answer)) => {
                    asking.remove(&question);
                    take(upstream, &question, answer);
                }
                Ok(Came::List(list)) => {
                    is_reading = false;
                    take_list(upstream, list);
                }
                // Whoever started this starts it again.
                Err(_) => return,
            },
            () = sleep_until(next.into()) => {}
            // A file system that hangs is waited for here, and holds up no name.
            () = changed.notified(), if !is_reading => {
                is_reading = file.clone().map(|file| lookups.spawn_blocking(|| read(file))).is_some();
            }
        }
    }
}

/// Asks all that `known`, of the upstream `name`, has not asked yet, and reads its file, until everything has an answer
/// of some kind. What came is learnt as it comes: whoever has waited for long enough drops this and finds it in `known`.
pub async fn first_answers(name: &str, known: &mut Known, resolvers: &Arc<Resolvers>) {
    let server = known.settings().server();
    let (mut asked, mut lookups) = (BTreeSet::new(), JoinSet::new());
    if let (true, Some(file)) = (known.wants_list(), known.settings().path().map(Path::to_owned)) {
        lookups.spawn_blocking(|| read(file));
    }
    loop {
        for question in known.names().unasked() {
            if asked.insert(question.clone()) {
                lookups.spawn(ask(Arc::clone(resolvers), server, question));
            }
        }
        match lookups.join_next().await {
            Some(Ok(Came::Answer(question, answer))) => {
                let told = known.answer(&question, answer, (Instant::now(), fastrand::f64()));
                tell(name, &question, told);
            }
            Some(Ok(Came::List(list))) => tell_list(name, known.list(list, Instant::now())),
            // The upstream's own task finds out again.
            Some(Err(_)) => {}
            None => return,
        }
    }
}

async fn ask(resolvers: Arc<Resolvers>, server: Option<SocketAddr>, question: Question) -> Came {
    let answer = resolvers.ask(server, &question).await;
    Came::Answer(question, answer)
}

fn read(file: PathBuf) -> Came {
    Came::List(list::read(&file))
}

fn take_list(upstream: &Upstream, list: List) {
    if list.is_err() {
        upstream.metrics.discovery_failures.inc();
    }
    let mut known = upstream.known();
    tell_list(&upstream.name, known.list(list, Instant::now()));
    put_in_force(upstream, known);
}

fn take(upstream: &Upstream, question: &Question, answer: Answer) {
    if matches!(answer, Answer::Failed(_)) {
        upstream.metrics.discovery_failures.inc();
    }
    let mut known = upstream.known();
    tell(&upstream.name, question, known.answer(question, answer, (Instant::now(), fastrand::f64())));
    put_in_force(upstream, known);
}

fn tell(upstream: &str, name: &Question, told: Told) {
    match told {
        Told::Nothing => {}
        Told::Fails { why, keeps } => tracing::warn!(
            upstream,
            %name,
            reason = "dns_error",
            kept_last_answer = keeps,
            "name does not resolve: {why}"
        ),
        Told::Recovered => tracing::info!(upstream, %name, "name resolves again"),
    }
}

fn tell_list(upstream: &str, told: Told) {
    match told {
        Told::Nothing => {}
        Told::Fails { why, keeps } => {
            let then = if keeps { "the last good list stays" } else { "there is no list yet" };
            tracing::warn!(upstream, "endpoints of the file are not taken, {then}: {why}");
        }
        Told::Recovered => tracing::info!(upstream, "the file of endpoints is good again"),
    }
}

fn put_in_force(upstream: &Upstream, mut known: MutexGuard<'_, Known>) {
    let Some(composed) = known.compose_changed() else { return };
    drop(known);
    if composed.left_out > 0 {
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
