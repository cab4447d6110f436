//! What makes up one running sidecar. Held by all that changes it or tells of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::accept::Gate;
use super::sockets::Open;
use super::workers::Workers;
use crate::config::Loaded;
use crate::proxy::shared::Shared;
use crate::telemetry::log::LogGuard;

/// One running sidecar.
pub(super) struct Process {
    /// What the workers share.
    pub(super) shared: Arc<Shared>,
    /// The threads that serve.
    pub(super) workers: Workers,
    /// The bound on client connections.
    pub(super) gate: Arc<Gate>,
    /// What of `max_connections` the limit of open files allows.
    pub(super) files_limit: Option<u64>,
    /// The configuration in force.
    pub(super) loaded: ArcSwap<Loaded>,
    /// The file it came from; none where there is no file to reload.
    pub(super) file: Option<PathBuf>,
    /// The listeners that are open, in the configuration's order.
    open: Mutex<Vec<Open>>,
    /// The log of events.
    pub(super) log: LogGuard,
    /// Whether each name was looked up once, or waited for long enough.
    pub(super) names_settled: AtomicBool,
    /// Whether it drains and all ingress listeners have ended.
    pub(super) drained: AtomicBool,
}

impl Process {
    pub(super) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        gate: Arc<Gate>,
        loaded: Loaded,
        file: Option<PathBuf>,
        log: LogGuard,
        files_limit: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            workers,
            gate,
            files_limit,
            loaded: ArcSwap::from_pointee(loaded),
            file,
            open: Mutex::default(),
            log,
            names_settled: AtomicBool::new(false),
            drained: AtomicBool::new(false),
        })
    }

    /// The listeners that are open. Held only for moments, and never while waiting.
    pub(super) fn open(&self) -> MutexGuard<'_, Vec<Open>> {
        // A panic while it was held leaves a list that is still true.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether names were looked up.
    pub(super) fn are_names_settled(&self) -> bool {
        self.names_settled.load(Relaxed)
    }

    /// Ends listeners: they stop accepting, and leave the snapshot, so that their connections finish and go.
    pub(super) fn end_listeners(&self, places: &[usize]) {
        let mut open = self.open();
        for place in places.iter().rev() {
            let ended = open.remove(*place);
            tracing::info!(listener = &*ended.name, address = %ended.address, "listener ended");
            self.workers.close(ended.id);
        }
        let before = self.shared.snapshot.load();
        let snapshot = before.with_listeners(|listener| open.iter().any(|open| *open.name == *listener.name));
        self.shared.snapshot.store(Arc::new(snapshot));
    }
}
