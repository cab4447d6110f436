//! What a listener has going on: requests in flight, and when the last one came. Draining asks for it.
//!
//! One cell for each worker, written by that worker alone: two plain stores for a request. A sum over the cells may
//! miss what happens while it is made; whoever asks looks again a moment later.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a listener has going on. Carried over by name when the configuration is reloaded.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    workers: Box<[Cell]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell {
    in_flight: AtomicUsize,
    /// Milliseconds from the start to the arrival of its last request, and one; 0: none came.
    last_request: AtomicU64,
}

impl Activity {
    /// Nothing going on, for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { start: Instant::now(), workers: (0..workers).map(|_| Cell::default()).collect() }
    }

    /// Requests without a complete answer.
    pub fn in_flight(&self) -> usize {
        self.workers.iter().map(|cell| cell.in_flight.load(Relaxed)).sum()
    }

    /// When the last request came, if one ever did.
    pub fn last_request(&self) -> Option<Instant> {
        let last = self.workers.iter().map(|cell| cell.last_request.load(Relaxed)).max()?;
        Some(self.start + Duration::from_millis(last.checked_sub(1)?))
    }

    /// A request came to `worker`.
    pub(super) fn began(&self, worker: usize, now: Instant) {
        let cell = &self.workers[worker];
        cell.in_flight.store(cell.in_flight.load(Relaxed) + 1, Relaxed);
        let millis = now.saturating_duration_since(self.start).as_millis() as u64;
        cell.last_request.store(millis + 1, Relaxed);
    }

    /// A request of `worker`'s is over.
    pub(super) fn ended(&self, worker: usize) {
        let cell = &self.workers[worker];
        cell.in_flight.store(cell.in_flight.load(Relaxed) - 1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_workers_and_knows_the_last_request() {
        let activity = Activity::new(2);
        assert_eq!((activity.in_flight(), activity.last_request()), (0, None));

        let later = activity.start + Duration::from_millis(7);
        activity.began(0, activity.start);
        activity.began(1, later);
        assert_eq!((activity.in_flight(), activity.last_request()), (2, Some(later)));

        activity.ended(0);
        assert_eq!((activity.in_flight(), activity.last_request()), (1, Some(later)));
    }
}
