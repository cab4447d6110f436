//! What the workers of a process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::life::Life;
use super::snapshot::Snapshot;
use crate::policy::shed::Health;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Limit, Metrics};

/// What the workers of a process share.
pub struct Shared {
    /// All series.
    pub metrics: Arc<Metrics>,
    /// Where the access log goes.
    pub access_log: AccessLog,
    /// The configuration in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Whether the process serves, drains or refuses.
    pub life: Life,
    /// This process among those that a request passes: 16 hexadecimal digits, drawn at start.
    pub id: String,
    /// Replay and response buffers of all requests together.
    pub buffered: Buffered,
    /// All memory together.
    pub memory: Memory,
    workers: Box<[Activity]>,
    start: Instant,
}

/// What a worker has going on: written by that worker alone.
#[derive(Default)]
#[repr(align(128))]
struct Activity {
    requests: AtomicUsize,
    /// Milliseconds from the start to its last sign of life.
    heartbeat: AtomicU64,
    /// Microseconds by which its event loop is late.
    lag: AtomicU64,
}

/// The memory of the process, as somebody reads it now and then.
#[derive(Default)]
pub struct Memory {
    bytes: AtomicU64,
    /// The share of the cgroup's limit, as the bits of a number.
    share: AtomicU64,
}

/// The memory of replay and response buffers, all requests together.
pub struct Buffered {
    bytes: AtomicU64,
    max: AtomicU64,
}

/// A part of [`Buffered`], until dropped.
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Shared {
    /// For `workers` workers, with `max_buffer` bytes for replay and response buffers, and nothing to serve
    /// yet.
    pub fn new(metrics: Arc<Metrics>, access_log: AccessLog, workers: usize, max_buffer: u64) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            access_log,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            life: Life::default(),
            id: format!("{:016x}", fastrand::u64(..)),
            buffered: Buffered { bytes: AtomicU64::new(0), max: AtomicU64::new(max_buffer) },
            memory: Memory::default(),
            workers: (0..workers).map(|_| Activity::default()).collect(),
            start: Instant::now(),
        })
    }

    /// Requests without a complete answer.
    pub fn requests_in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.requests.load(Relaxed)).sum()
    }

    /// The longest that any worker has shown no sign of life.
    pub fn longest_silence(&self, now: Instant) -> Duration {
        let oldest = self.workers.iter().map(|worker| worker.heartbeat.load(Relaxed)).min().unwrap_or(0);
        now.saturating_duration_since(self.start + Duration::from_millis(oldest))
    }

    /// `worker` lives.
    pub(super) fn beat(&self, worker: usize, now: Instant) {
        self.workers[worker].heartbeat.store(self.millis(now), Relaxed);
    }

    /// `worker`'s event loop is late by `lag`.
    pub(super) fn lags(&self, worker: usize, lag: Duration) {
        self.workers[worker].lag.store(lag.as_micros() as u64, Relaxed);
    }

    /// How the process does: its memory, and the worker that is latest.
    pub fn health(&self) -> Health {
        let lag = self.workers.iter().map(|worker| worker.lag.load(Relaxed)).max().unwrap_or(0);
        Health {
            memory: self.memory.bytes.load(Relaxed),
            memory_share: f64::from_bits(self.memory.share.load(Relaxed)),
            lag: Duration::from_micros(lag),
        }
    }

    pub(super) fn request_began(&self, worker: usize) {
        let activity = &self.workers[worker];
        activity.requests.store(activity.requests.load(Relaxed) + 1, Relaxed);
    }

    pub(super) fn request_ended(&self, worker: usize) {
        let activity = &self.workers[worker];
        activity.requests.store(activity.requests.load(Relaxed) - 1, Relaxed);
    }

    /// `bytes` of the memory for buffers; none where `max_buffer` is reached, which is counted.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut reservation = Reservation { shared: Arc::clone(self), bytes: 0 };
        reservation.grow(bytes).then_some(reservation)
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }
}

impl Memory {
    /// The process uses this many bytes, and this `share` of its cgroup's limit is used; 0: there is none.
    pub fn set(&self, bytes: u64, share: f64) {
        self.bytes.store(bytes, Relaxed);
        self.share.store(share.to_bits(), Relaxed);
    }
}

impl Buffered {
    /// Changes the bound; what is reserved stays.
    pub fn set_max(&self, max: u64) {
        self.max.store(max, Relaxed);
    }

    /// Bytes reserved at the moment.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Reservation {
    /// How much is reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `bytes` more; false where `max_buffer` is reached, which is counted.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let Buffered { bytes: total, max } = &self.shared.buffered;
        if total.fetch_add(bytes, Relaxed) + bytes > max.load(Relaxed) {
            total.fetch_sub(bytes, Relaxed);
            self.shared.metrics.limit_reached(Limit::MaxBuffer).inc();
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.buffered.bytes.fetch_sub(self.bytes, Relaxed);
    }
}
