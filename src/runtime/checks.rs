//! Keeps the time of active health checks: looks whose turn it is, and asks them; off the workers.
//!
//! Who is asked and what follows is `upstream`'s affair. A check is a task that ends within its timeout, so a snapshot
//! that is gone has none soon; at most [`AT_ONCE`] run, and who finds no place is asked a moment later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::process::Process;

/// How often it is looked whose turn it is, where any upstream is checked, and where none is.
const LOOK: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_millis(500);

/// Checks at the same time, of all upstreams together.
const AT_ONCE: usize = 64;

/// Checks endpoints for ever.
pub(super) async fn keep_checked(process: Arc<Process>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let snapshot = process.shared.snapshot.load_full();
        let mut any = false;
        for (_, chain) in snapshot.chains().filter(|(_, chain)| chain.upstream.is_checked()) {
            any = true;
            for choice in &chain.upstream.endpoints().usable {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { break };
                let endpoint = &choice.endpoint;
                if chain.upstream.begins_check(endpoint, Instant::now(), fastrand::f64()) {
                    let (chain, endpoint) = (Arc::clone(chain), Arc::clone(endpoint));
                    tokio::spawn(async move {
                        chain.upstream.check(&endpoint).await;
                        drop(place);
                    });
                }
            }
        }
        drop(snapshot);
        tokio::time::sleep(if any { LOOK } else { IDLE }).await;
    }
}
