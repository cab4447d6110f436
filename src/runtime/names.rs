//! Keeps the names of endpoints resolved: at load, after a reload, and every 30 s; off the workers.
//!
//! How a name becomes addresses is `upstream::resolve`'s affair. Upstreams are looked up side by side: one slow
//! zone does not hold up the others.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::process::Process;
use crate::config::Config;
use crate::upstream::endpoint::Address;
use crate::upstream::resolve::{self, Answer};

/// The longest that readiness waits for the first answers.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Looks names up for ever; `now` asks for it before its time, as a reload does. `settled` is told when every
/// name was looked up once, or waited for long enough.
pub(super) async fn keep_resolved(process: Arc<Process>, now: Arc<Notify>, settled: mpsc::Sender<()>) {
    if timeout(PATIENCE, look_up_all(&process)).await.is_err() {
        let seconds = PATIENCE.as_secs();
        tracing::warn!("not all names are resolved after {seconds} s; serving without them");
        now.notify_one();
    }
    process.names_settled.store(true, Relaxed);
    // It errs only when nobody waits.
    let _ = settled.send(());
    loop {
        // The answer does not matter: either it is time, or somebody asked.
        let _ = timeout(resolve::INTERVAL, now.notified()).await;
        look_up_all(&process).await;
    }
}

/// Looks up the names that `config` brings, so that a reload does not send requests to endpoints that are not known
/// yet. What has no answer in time is looked up again after the reload.
pub(super) async fn look_up_new(process: &Process, config: &Config) -> Vec<(Address, Answer)> {
    let snapshot = process.shared.snapshot.load_full();
    let mut lookups = JoinSet::new();
    let mut asked = BTreeSet::new();
    for (name, upstream) in &config.upstream {
        let known = snapshot.chain(name).map(|chain| Arc::clone(&chain.upstream.endpoints()));
        for entry in upstream.endpoints.iter().filter(|entry| entry.address.name().is_some()) {
            let is_known = known.as_ref().is_some_and(|known| {
                known.usable.iter().any(|choice| choice.endpoint.address == entry.address)
            });
            if !is_known && asked.insert(entry.address.clone()) {
                let name = entry.address.clone();
                lookups.spawn(async move {
                    let answer = resolve::look_up(&name).await;
                    (name, answer)
                });
            }
        }
    }
    let mut answers = Vec::new();
    // Those that came in time are what there is.
    let _ = timeout(PATIENCE, async {
        while let Some(Ok(answer)) = lookups.join_next().await {
            answers.push(answer);
        }
    })
    .await;
    answers
}

async fn look_up_all(process: &Process) {
    let mut lookups = JoinSet::new();
    for (_, chain) in process.shared.snapshot.load().chains() {
        if chain.upstream.has_names() {
            let chain = chain.clone();
            lookups.spawn(async move { resolve::refresh(&chain.upstream).await });
        }
    }
    while lookups.join_next().await.is_some() {}
}
