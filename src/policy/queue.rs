//! The queue before a concurrency limit: who waits for a slot, in which order, and for whom it is too late.
//!
//! Pure: it orders and decides, and the shell that holds the wakers (`proxy`) does what it says. A queue smooths
//! bursts; one that always stands only makes everybody late. So (after Facebook's variant of CoDel, "Fail at
//! Scale"): once it has stood for 100 ms, a newcomer enters only if its wait will be short. And it knows deadlines:
//! who cannot be served in time is refused at entry, and who cannot finish any more is skipped at exit.
//!
//! First come, first served. Rejected for now: last in, first out, which gains little where a proxy sees clients
//! leave.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Span, within};

/// `queue`: who waits for a slot, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Places; 0: nobody waits. From 0 to 100,000. Default 100.
    #[serde(deserialize_with = "within::<_, 0, 100_000>")]
    #[schemars(range(min = 0, max = 100_000))]
    pub size: u32,
    /// The longest wait. Default `"500ms"`.
    pub timeout: Span,
    /// Who is next: `fifo`. Default `fifo`.
    pub order: Order,
}

/// The order of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Who came first goes first.
    #[default]
    Fifo,
}

impl Default for Settings {
    fn default() -> Self {
        Self { size: 100, timeout: Span::from_millis(500), order: Order::Fifo }
    }
}

/// Once the queue has stood for this long without being empty, it is no burst.
const STANDS: Duration = Duration::from_millis(100);
/// The wait that a newcomer to a standing queue may have, at least.
const SHORT: Duration = Duration::from_millis(20);
/// What an attempt needs, where its upstream has not shown it.
const UNKNOWN_NEED: Duration = Duration::from_millis(5);

/// A place in the queue. Whoever holds one is told when a slot is theirs, or calls `Gate::give_up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    number: u64,
    until: Instant,
}

impl Ticket {
    /// When the wait ends in vain: `queue.timeout`, or the request's deadline.
    pub fn until(self) -> Instant {
        self.until
    }
}

/// What a waiting request needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// The end of its time.
    pub(super) deadline: Instant,
    /// What half of the attempts take; `None`: not known.
    pub(super) p50: Option<Duration>,
}

/// Places in order of arrival. At most as many as the settings say.
#[derive(Debug)]
pub(super) struct Queue {
    settings: Settings,
    waiting: VecDeque<Waiting>,
    next_number: u64,
    /// Since when it has not been empty.
    standing_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    deadline: Instant,
}

/// Why a newcomer finds no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are no places at all.
    NoQueue,
    /// All are taken, or the wait would be too long.
    Full,
}

impl Queue {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { settings: *settings, waiting: VecDeque::new(), next_number: 0, standing_since: None }
    }

    /// Takes over changed settings: whoever waits keeps their place and their time.
    pub(super) fn update(&mut self, settings: &Settings) {
        self.settings = *settings;
    }

    pub(super) fn depth(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the last place. `wait`: how long until a slot comes to it, as far as that can be told.
    pub(super) fn join(
        &mut self,
        now: Instant,
        need: Need,
        wait: Option<Duration>,
    ) -> Result<Ticket, Refused> {
        if self.settings.size == 0 {
            return Err(Refused::NoQueue);
        }
        let wait = wait.unwrap_or_default();
        let left = need.deadline.saturating_duration_since(now);
        let p50 = need.p50.unwrap_or_default();
        let stands = self.standing_since.is_some_and(|since| now.saturating_duration_since(since) >= STANDS);
        if self.waiting.len() >= self.settings.size as usize
            || wait > *self.settings.timeout
            || wait + need.p50.unwrap_or(UNKNOWN_NEED) > left
            || (stands && wait > SHORT.max(p50 * 2))
        {
            return Err(Refused::Full);
        }
        let until = need.deadline.min(now + *self.settings.timeout);
        let ticket = Ticket { number: self.next_number, until };
        self.next_number += 1;
        self.waiting.push_back(Waiting { ticket, deadline: need.deadline });
        self.standing_since.get_or_insert(now);
        debug_assert!(self.waiting.len() <= self.settings.size as usize);
        Ok(ticket)
    }

    /// Takes the first who can still make it, and puts into `skipped` who stood before them and cannot.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        p50: Option<Duration>,
        skipped: &mut Vec<Ticket>,
    ) -> Option<Ticket> {
        let need = p50.unwrap_or(UNKNOWN_NEED);
        let mut next = None;
        while let Some(first) = self.waiting.pop_front() {
            if now <= first.ticket.until && first.deadline.saturating_duration_since(now) >= need {
                next = Some(first.ticket);
                break;
            }
            skipped.push(first.ticket);
        }
        self.left();
        next
    }

    /// Frees a place; false: it is not in the queue any more.
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        // Numbers rise from front to back.
        let place = self.waiting.binary_search_by_key(&ticket.number, |waiting| waiting.ticket.number);
        let found = place.is_ok_and(|place| self.waiting.remove(place).is_some());
        self.left();
        found
    }

    fn left(&mut self) {
        if self.waiting.is_empty() {
            self.standing_since = None;
        }
    }
}
