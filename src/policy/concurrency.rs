//! Concurrency limit: how many attempts may be in flight to one upstream, and who is next.
//!
//! A slot belongs to an attempt, from its start to the end of its body (or until it becomes a stream). Only a first
//! attempt may wait for one. [`Gate`] is pure; the shell around it, one for each upstream and the whole process,
//! is a mutex and the wakers (`proxy`).
//!
//! Where the limit comes from: `limit`.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::limit;
use crate::policy::mode::Mode;
use crate::policy::queue::{self, Need, Queue, Refused, Ticket};
use crate::reason::Reason;
use crate::units::{Ratio, Span};

/// `[upstream.NAME.concurrency]`: how many attempts may be in flight.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// The limit. Default `{ kind = "fixed", max = 1000 }`.
    pub limit: limit::Settings,
    /// Who waits for a slot. Default `{ size = 100, timeout = "500ms", order = "fifo" }`.
    pub queue: queue::Settings,
    /// A body that runs longer is a stream and gives its slot back. Default `"5s"`.
    pub stream_after: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            limit: limit::Settings::default(),
            queue: queue::Settings::default(),
            stream_after: Span::from_secs(5),
        }
    }
}

/// The limit of one upstream and the queue before it.
#[derive(Debug)]
pub struct Gate {
    limit: u32,
    in_flight: u32,
    queue: Queue,
    departures: Departures,
}

/// What came of asking for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a slot must be given back"]
pub enum Entry {
    /// A slot: owes a [`Gate::leave`].
    Slot,
    /// A place in the queue.
    Queued(Ticket),
    /// Neither.
    Rejected {
        /// `concurrency_limited` or `queue_full`.
        reason: Reason,
        /// When it is worth to come back, where that can be told.
        retry_after: Option<Duration>,
    },
}

/// What follows from a slot that came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "those that it names wait for an answer"]
pub struct Leave {
    /// Whose the slot is now: owes a [`Gate::leave`].
    pub next: Option<Ticket>,
    /// Who stood before them and cannot make it any more: `queue_timeout`. Mostly empty, which costs nothing.
    pub skipped: Vec<Ticket>,
}

impl Gate {
    /// Nothing is in flight.
    pub fn new(settings: &Settings) -> Self {
        Self {
            limit: settings.limit.max(),
            in_flight: 0,
            queue: Queue::new(&settings.queue),
            departures: Departures::default(),
        }
    }

    /// Takes over changed settings. What is in flight stays; a raised limit is handed on by [`Gate::grant`].
    pub fn update(&mut self, settings: &Settings) {
        self.limit = settings.limit.max();
        self.queue.update(&settings.queue);
    }

    /// Asks for a slot. `p50`: what half of the attempts take, as far as it is known.
    pub fn enter(
        &mut self,
        now: Instant,
        deadline: Instant,
        may_queue: bool,
        p50: Option<Duration>,
    ) -> Entry {
        if self.in_flight < self.limit && self.queue.depth() == 0 {
            self.in_flight += 1;
            if self.in_flight == self.limit {
                self.departures.saturated(now);
            }
            return Entry::Slot;
        }
        let wait = self.wait(now, p50);
        let refused = match may_queue {
            true => self.queue.join(now, Need { deadline, p50 }, wait),
            false => Err(Refused::NoQueue),
        };
        match refused {
            Ok(ticket) => Entry::Queued(ticket),
            Err(Refused::NoQueue) => {
                Entry::Rejected { reason: Reason::ConcurrencyLimited, retry_after: wait }
            }
            Err(Refused::Full) => Entry::Rejected { reason: Reason::QueueFull, retry_after: wait },
        }
    }

    /// Gives a slot back.
    pub fn leave(&mut self, now: Instant, p50: Option<Duration>) -> Leave {
        if self.in_flight >= self.limit {
            self.departures.departed(now);
        }
        self.in_flight -= 1;
        self.grant(now, p50)
    }

    /// Hands a free slot to whoever is next. After an update, until it names nobody.
    pub fn grant(&mut self, now: Instant, p50: Option<Duration>) -> Leave {
        let mut leave = Leave::default();
        // PERF: mostly nobody waits.
        if self.in_flight < self.limit && self.queue.depth() > 0 {
            leave.next = self.queue.pop(now, p50, &mut leave.skipped);
            self.in_flight += u32::from(leave.next.is_some());
        }
        leave
    }

    /// Frees the place of a request that waits no more. False: it had left the queue already, skipped or with a
    /// slot; whose the slot is must [`Gate::leave`].
    pub fn give_up(&mut self, ticket: Ticket) -> bool {
        self.queue.remove(ticket)
    }

    /// Slots that are taken; above the limit only after the limit was lowered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Slots in all.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Places that are taken.
    pub fn depth(&self) -> usize {
        self.queue.depth()
    }

    /// How long a newcomer would wait for a slot. Before slots were seen to come back while all were taken, by
    /// Little's law.
    fn wait(&self, now: Instant, p50: Option<Duration>) -> Option<Duration> {
        let interval = self.departures.interval(now).or_else(|| Some(p50?.div_f64(f64::from(self.limit))))?;
        Some(interval.saturating_mul(self.queue.depth() as u32 + 1))
    }
}

/// How fast slots come back while all are taken: only then is it the upstream's pace, and not the callers'.
#[derive(Debug, Default)]
struct Departures {
    /// The mean time from one to the next, and over how many; none: not seen yet.
    interval: Duration,
    seen: u32,
    /// The last one, or when the last slot was taken.
    last: Option<Instant>,
}

impl Departures {
    /// The mean is over about this many.
    const MEMORY: u32 = 32;
    /// What was seen longer ago than this says nothing of now.
    const FRESH: Duration = Duration::from_secs(10);

    fn saturated(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) >= Self::FRESH) {
            self.seen = 0;
        }
        self.last = Some(now);
    }

    fn departed(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let passed = now.saturating_duration_since(last);
            self.interval = (self.interval * self.seen + passed) / (self.seen + 1);
            self.seen = (self.seen + 1).min(Self::MEMORY);
        }
    }

    fn interval(&self, now: Instant) -> Option<Duration> {
        let last = self.last?;
        (self.seen > 0 && now.saturating_duration_since(last) < Self::FRESH).then_some(self.interval)
    }
}

#[cfg(test)]
mod tests;
