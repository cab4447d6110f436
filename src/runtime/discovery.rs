//! Keeps the endpoints of all upstreams as discovery says: a task for each that changes by itself, on the background's
//! thread.
//!
//! The tasks belong to a snapshot: the next one ends them and starts its own, which go on with what was known. What a
//! task does is `upstream::discovery`'s affair.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::process::Process;
use super::watch::Watch;
use crate::config::Config;
use crate::proxy::chain::Chain;
use crate::upstream::discovery::keep;
use crate::upstream::discovery::known::Known;
use crate::upstream::discovery::resolver::Resolvers;

/// The longest that readiness, or a reload, waits for the first answers.
const PATIENCE: Duration = Duration::from_secs(2);

/// How soon a task that ended by mistake is started again.
const RESTART: Duration = Duration::from_secs(1);

/// What discovery needs of the process.
pub(super) struct Discovery {
    resolvers: Arc<Resolvers>,
    /// Another snapshot is in force.
    changed: Notify,
    /// Ends the tasks that run.
    running: Mutex<Vec<AbortHandle>>,
}

/// An upstream that a reload brings, or changes, and what is known of it already.
pub(super) type Prepared = (String, Known);

impl Discovery {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { resolvers: Resolvers::new(), changed: Notify::new(), running: Mutex::default() })
    }

    /// Ends all tasks: the snapshot that they work for is about to be replaced, and nothing that comes in later may
    /// change what its successor takes over. [`Discovery::snapshot_changed`] has to follow.
    pub(super) fn stop(&self) {
        self.running().iter().for_each(AbortHandle::abort);
    }

    /// Another snapshot is in force.
    pub(super) fn snapshot_changed(&self) {
        self.changed.notify_one();
    }

    /// Runs the tasks of whatever snapshot is in force, for ever. `settled` is told when everything was asked once, or
    /// waited for long enough.
    pub(super) async fn keep(self: Arc<Self>, process: Arc<Process>, settled: std_mpsc::Sender<()>) {
        let (first, mut all_asked) = mpsc::channel::<()>(1);
        let mut tasks = self.start(&process, &first);
        drop(first);
        // Nobody sends: it ends when each task has dropped its end.
        if timeout(PATIENCE, all_asked.recv()).await.is_err() {
            let seconds = PATIENCE.as_secs();
            tracing::warn!("not all names are resolved after {seconds} s; serving without them");
        }
        process.names_settled.store(true, Relaxed);
        // It errs only when nobody waits.
        let _ = settled.send(());
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if !ended.is_err_and(|error| error.is_cancelled()) {
                        sleep(RESTART).await;
                    }
                }
            }
            drop(tasks);
            tasks = self.start(&process, &());
        }
    }

    fn start<T: Clone + Send + 'static>(&self, process: &Process, first: &T) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut running = self.running();
        running.clear();
        for (_, chain) in process.shared.snapshot.load().chains() {
            if chain.upstream.known().changes() {
                let task = keep(Arc::clone(chain), Arc::clone(&self.resolvers), first.clone());
                running.push(tasks.spawn(task));
            }
        }
        tasks
    }

    fn running(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for what `config` brings that is not known yet, so that a reload does not send requests to where nobody
    /// is known. What has no answer in time is asked for again after the reload.
    pub(super) async fn look_up_new(&self, process: &Process, config: &Config) -> Vec<Prepared> {
        let snapshot = process.shared.snapshot.load_full();
        let now = Instant::now();
        let mut prepared = Vec::new();
        for (name, upstream) in &config.upstream {
            let previous = snapshot.chain(name).map(|chain| chain.upstream.known());
            let known = Known::new(&upstream.discovery, &upstream.endpoints, previous.as_deref(), now);
            if known.is_new() {
                prepared.push((name.clone(), known));
            }
        }
        let mut lookups = JoinSet::new();
        for (name, mut known) in prepared {
            let resolvers = Arc::clone(&self.resolvers);
            lookups.spawn(async move {
                // What came in time is what there is.
                let _ = timeout(PATIENCE, keep::first_answers(&name, &mut known, &resolvers)).await;
                (name, known)
            });
        }
        lookups.join_all().await
    }
}

/// Keeps one upstream's endpoints, with a watch on its file if it has one.
async fn keep<T>(chain: Arc<Chain>, resolvers: Arc<Resolvers>, first: T) {
    let changed = Arc::new(Notify::new());
    let path = chain.upstream.known().settings().path().map(std::borrow::ToOwned::to_owned);
    let watch = path.and_then(|path| {
        let changed = Arc::clone(&changed);
        Watch::start_unread(vec![path.clone()], move || changed.notify_one())
            .inspect_err(
                |error| tracing::warn!(%error, "a file of endpoints is not watched; reload with SIGHUP"),
            )
            .ok()
    });
    keep::keep(&chain.upstream, &resolvers, &changed, first).await;
    drop(watch);
}
