//! Keeps the names of endpoints resolved: at load, after a reload, and every 30 s; off the workers.
//!
//! How a name becomes addresses is `upstream::resolve`'s affair. Upstreams are looked up side by side: one slow
//! zone does not hold up the others.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::process::Process;
use crate::upstream::resolve;

/// The longest that readiness waits for the first answers.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Looks names up for ever; `now` asks for it before its time, as a reload does.
pub(super) async fn keep_resolved(process: Arc<Process>, now: Arc<Notify>) {
    loop {
        let mut lookups = JoinSet::new();
        for (_, chain) in process.shared.snapshot.load().chains() {
            if chain.upstream.has_names() {
                let upstream = chain.upstream.clone();
                lookups.spawn(async move { resolve::refresh(&upstream).await });
            }
        }
        let all = async { while lookups.join_next().await.is_some() {} };
        if !process.are_names_settled() {
            let late = timeout(PATIENCE, all).await.is_err();
            process.names_settled.store(true, Relaxed);
            if late {
                tracing::warn!("not all names are resolved after {} s; serving without them", PATIENCE.as_secs());
            }
            // Those that are late still come in.
            lookups.detach_all();
        } else {
            all.await;
        }
        // The answer does not matter: either it is time, or somebody asked.
        let _ = timeout(resolve::INTERVAL, now.notified()).await;
    }
}
