//! Slots of an upstream's concurrency limit, and who waits for one: the shell that holds the wakers.
//!
//! What is decided is decided in `policy::concurrency`; here a waiting request is a future, and a slot is a value that
//! goes back when dropped, to the next in the queue, whichever worker that waits on. One mutex for each
//! upstream: it is held for some ten nanoseconds twice a request.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::policy::concurrency::{Entry, Gate as Decisions, Leave, Settings};
use crate::policy::queue::Ticket;
use crate::reason::{Error, Reason};
use crate::timer::Timer;

/// An upstream's concurrency limit with its queue. One for the process.
pub struct Gate(Mutex<Inner>);

struct Inner {
    decisions: Decisions,
    waiting: BTreeMap<Ticket, Waiting>,
}

enum Waiting {
    /// Not polled yet, or polled with this waker.
    Still(Option<Waker>),
    /// A slot is its own.
    Called,
    /// It could not be served in time any more.
    Skipped,
}

/// One of the limit's slots, until dropped.
#[must_use = "a slot is held by keeping it"]
pub struct Slot {
    gate: Arc<Gate>,
    /// The upstream's usual latency, for whoever is next.
    p50: Option<Duration>,
    left_at: Option<Instant>,
}

/// A place in the queue, until dropped.
struct Place {
    gate: Arc<Gate>,
    ticket: Ticket,
}

impl Gate {
    /// A limit with nobody in flight.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner { decisions: Decisions::new(settings), waiting: BTreeMap::new() })))
    }

    /// New settings; whoever is in flight or waits stays.
    pub fn update(&self, settings: &Settings) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.lock();
            inner.decisions.update(settings);
            loop {
                let granted = inner.decisions.grant(Instant::now(), None);
                if granted.next.is_none() && granted.skipped.is_empty() {
                    break;
                }
                inner.tell(granted, &mut wakers);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Attempts in flight, the limit, and how many wait.
    pub fn counts(&self) -> (u32, u32, usize) {
        let inner = self.lock();
        (inner.decisions.in_flight(), inner.decisions.limit(), inner.decisions.depth())
    }

    /// A slot at once.
    ///
    /// # Errors
    /// [`Reason::ConcurrencyLimited`] where none is free.
    pub fn try_enter(self: &Arc<Self>, now: Instant, p50: Option<Duration>) -> Result<Slot, Error> {
        let entry = self.lock().decisions.enter(now, now, false, p50);
        match entry {
            Entry::Slot => Ok(Slot { gate: Arc::clone(self), p50, left_at: None }),
            Entry::Queued(ticket) => {
                drop(Place { gate: Arc::clone(self), ticket });
                Err(Reason::ConcurrencyLimited.into())
            }
            Entry::Rejected { reason, retry_after } => Err(Error::from(reason).retry_after(retry_after)),
        }
    }

    /// A slot, at once or after waiting in the queue; not beyond `deadline`, nor beyond the queue's timeout.
    /// `waited` is called with the time in the queue, served or not. Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`Reason::ConcurrencyLimited`], [`Reason::QueueFull`], [`Reason::QueueTimeout`].
    pub async fn enter(
        self: &Arc<Self>,
        now: Instant,
        deadline: Instant,
        p50: Option<Duration>,
        timer: &Timer,
        waited: impl FnOnce(Duration),
    ) -> Result<Slot, Error> {
        let entry = {
            let mut inner = self.lock();
            let entry = inner.decisions.enter(now, deadline, true, p50);
            if let Entry::Queued(ticket) = &entry {
                inner.waiting.insert(*ticket, Waiting::Still(None));
            }
            entry
        };
        match entry {
            Entry::Slot => Ok(Slot { gate: Arc::clone(self), p50, left_at: None }),
            Entry::Rejected { reason, retry_after } => Err(Error::from(reason).retry_after(retry_after)),
            Entry::Queued(ticket) => {
                let place = Place { gate: Arc::clone(self), ticket };
                let called = timer.within(ticket.until(), place.wait()).await;
                waited(now.elapsed());
                match called {
                    Ok(true) => Ok(Slot { gate: Arc::clone(self), p50, left_at: None }),
                    Ok(false) | Err(_) => Err(Reason::QueueTimeout.into()),
                }
            }
        }
    }

    /// A slot has come free at `now`.
    fn leave(&self, now: Instant, p50: Option<Duration>) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.lock();
            let left = inner.decisions.leave(now, p50);
            inner.tell(left, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A panic elsewhere leaves counts that are right: each change is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&mut self, leave: Leave, wakers: &mut Vec<Waker>) {
        for ticket in leave.skipped {
            wakers.extend(self.settle(ticket, Waiting::Skipped));
        }
        if let Some(ticket) = leave.next {
            wakers.extend(self.settle(ticket, Waiting::Called));
        }
    }

    fn settle(&mut self, ticket: Ticket, end: Waiting) -> Option<Waker> {
        match self.waiting.insert(ticket, end) {
            Some(Waiting::Still(waker)) => waker,
            _ => None,
        }
    }
}

impl Place {
    /// Whether a slot came.
    async fn wait(&self) -> bool {
        poll_fn(|cx| match self.gate.lock().waiting.get_mut(&self.ticket) {
            Some(Waiting::Still(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Waiting::Called) => Poll::Ready(true),
            Some(Waiting::Skipped) | None => Poll::Ready(false),
        })
        .await;
        // Taken out, so that dropping the place leaves the slot with its new owner.
        matches!(self.gate.lock().waiting.remove(&self.ticket), Some(Waiting::Called))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let end = {
            let mut inner = self.gate.lock();
            let end = inner.waiting.remove(&self.ticket);
            if matches!(end, Some(Waiting::Still(_))) {
                inner.decisions.give_up(self.ticket);
            }
            end
        };
        if matches!(end, Some(Waiting::Called)) {
            self.gate.leave(Instant::now(), None);
        }
    }
}

impl Slot {
    /// Gives it back at `now`; dropping it does the same and reads the clock.
    pub fn leave(mut self, now: Instant) {
        self.left_at = Some(now);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.leave(self.left_at.unwrap_or_else(Instant::now), self.p50);
    }
}
