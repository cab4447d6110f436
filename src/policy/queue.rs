//! The queue before a concurrency limit: who waits for a slot, in which order, and for whom it is too late.
//!
//! Pure: it orders and decides, and the shell that holds the wakers (`proxy`) does what it says. A queue smooths
//! bursts; one that always stands only makes everybody late. So (after Facebook's variant of CoDel, "Fail at
//! Scale"): once it has stood for 100 ms, a newcomer enters only if its wait will be short. What stands for a newcomer is
//! its class and those above: the others make it wait for nobody. And it knows deadlines:
//! who cannot be served in time is refused at entry, and who cannot finish any more is skipped at exit. Who has none
//! (gRPC without `grpc-timeout`) has time enough for any answer, and waits no longer than `timeout`.
//!
//! | order            | who is next                                              | a full queue                     |
//! |------------------|----------------------------------------------------------|----------------------------------|
//! | `priority`       | the first of the highest class; each eighth time whoever has waited longest | evicts the last of the lowest class below the newcomer's |
//! | `lifo_when_full` | the first; once the queue has stood for 100 ms, the last  | refuses                          |
//! | `fifo`           | the first                                                | refuses                          |
//!
//! Why each eighth: a class that is strictly last would wait for ever behind one that alone is too much, and its
//! clients would only learn that by their timeouts. Why last in, first out: where a queue stands, who came first is
//! who will give up first, so serving them serves nobody; but a proxy sees its clients leave, so it gains less here
//! than where it was found, and is no default.
//!
//! **The wait** that a newcomer is told, and judged by, is the places ahead of its class by the pace at which slots
//! come back, less the part of that pace that more important newcomers take meanwhile.
//!
//! Every operation is O(1) (`places`), but for those who are skipped: each of them once.

mod places;

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::places::{LISTS, Places};
use crate::policy::priority::Priority;
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
    /// Who is next: `priority`, `lifo_when_full` or `fifo`. Default `priority`.
    pub order: Order,
}

/// The order of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The most important first, then who came first; each eighth time who has waited longest.
    #[default]
    Priority,
    /// Who came first; once the queue has stood for 100 ms, who came last. Then waits end after half of what an attempt
    /// takes, or 5 ms.
    LifoWhenFull,
    /// Who came first goes first.
    Fifo,
}

impl Default for Settings {
    fn default() -> Self {
        Self { size: 100, timeout: Span::from_millis(500), order: Order::default() }
    }
}

/// Once the queue has stood for this long without being empty, it is no burst.
const STANDS: Duration = Duration::from_millis(100);
/// The wait that a newcomer to a standing queue may have, at least; else half of what an attempt takes. Twice that was too
/// much for clients that say nothing of their deadline: 12 in flight and as much again in the queue took 270 ms of
/// their 250.
const SHORT: Duration = Duration::from_millis(20);
/// The wait that there is where the last one goes first, at least.
const SHORT_LIFO: Duration = Duration::from_millis(5);
/// What an attempt needs, where its upstream has not shown it.
const UNKNOWN_NEED: Duration = Duration::from_millis(5);
/// One in so many that are served is whoever has waited longest.
const AGEING: u32 = 8;
/// What more important newcomers take is averaged over about so many that are served.
const MEMORY: f32 = 64.0;
/// What was seen longer ago than this says nothing of now.
const FRESH: Duration = Duration::from_secs(10);

/// A place in the queue. Whoever holds one is told when a slot is theirs, or calls `Gate::give_up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    number: u64,
    place: u32,
    until: Instant,
}

impl Ticket {
    /// When the wait ends in vain: `queue.timeout`, or the request's deadline.
    pub fn until(self) -> Instant {
        self.until
    }

    /// The number of its place: no two that wait have the same, and all are below the most that ever waited at once.
    pub fn place(self) -> usize {
        self.place as usize
    }
}

/// What a waiting request needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) priority: Priority,
    /// The end of its time; `None`: there is none.
    pub(super) deadline: Option<Instant>,
    /// What an attempt takes, so that less is not enough: nine of ten of the last ones took no longer, or half of them
    /// where too few were seen. `None`: not known.
    pub(super) time: Option<Duration>,
}

/// How fast slots come back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// From one slot to the next; `None`: not known.
    pub(super) interval: Option<Duration>,
    /// How long none has come back.
    pub(super) silence: Duration,
}

/// Who waits. At most as many as the settings say.
#[derive(Debug)]
pub(super) struct Queue {
    settings: Settings,
    places: Places<Waiting>,
    next_number: u64,
    /// For each class, since when somebody of it or above has waited all the time.
    standing_since: [Option<Instant>; LISTS],
    /// Served since the last one that had waited longest.
    served: u32,
    /// For each class, what part of those that are served is above it.
    above: [f32; LISTS],
    /// When the last one was served.
    served_at: Option<Instant>,
}

/// Who waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    /// The end of its time; `None`: there is none.
    deadline: Option<Instant>,
}

/// A newcomer has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) ticket: Ticket,
    /// Who had to make room.
    pub(super) evicted: Option<Ticket>,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The first of the highest class.
    First,
    /// Who came first of all.
    Oldest,
    /// Who came last of all.
    Youngest,
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
        Self {
            settings: *settings,
            places: Places::default(),
            next_number: 0,
            standing_since: [None; LISTS],
            served: 0,
            above: [0.0; LISTS],
            served_at: None,
        }
    }

    /// Takes over changed settings: whoever waits keeps their place, their class and their time.
    pub(super) fn update(&mut self, settings: &Settings) {
        self.settings = *settings;
    }

    pub(super) fn depth(&self) -> usize {
        self.places.len()
    }

    /// How long a newcomer would wait, as far as that can be told.
    pub(super) fn wait(&self, now: Instant, priority: Priority, pace: Pace) -> Option<Duration> {
        let interval = pace.interval?;
        let ahead = self.ahead(now, priority);
        let above = match self.settings.order {
            Order::Priority => self.taken_above(now, priority.rank()),
            Order::LifoWhenFull | Order::Fifo => 0.0,
        };
        let wait = interval.saturating_mul(ahead as u32 + 1);
        let wait = if above > 0.0 { wait.div_f64(f64::from(1.0 - above)) } else { wait };
        // Where nothing has come back for a while, nothing suggests that it will sooner.
        let stood = self.stood(now, LISTS - 1);
        Some(if stood >= STANDS { wait.max(pace.silence.min(stood)) } else { wait })
    }

    /// How many are served before a newcomer.
    fn ahead(&self, now: Instant, priority: Priority) -> usize {
        match self.settings.order {
            Order::Priority => (0..=priority.rank()).map(|list| self.places.len_of(list)).sum(),
            Order::LifoWhenFull if self.stands(now) => 0,
            Order::LifoWhenFull | Order::Fifo => self.places.len(),
        }
    }

    /// Takes a place.
    pub(super) fn join(&mut self, now: Instant, need: Need, pace: Pace) -> Result<Joined, Refused> {
        if self.settings.size == 0 {
            return Err(Refused::NoQueue);
        }
        let wait = self.wait(now, need.priority, pace).unwrap_or_default();
        let half = need.time.unwrap_or_default() / 2;
        // Whoever is next makes nobody else wait.
        let is_next = self.ahead(now, need.priority) == 0;
        let (list, last_ahead) = match self.settings.order {
            Order::Priority => (need.priority.rank(), need.priority.rank()),
            Order::LifoWhenFull | Order::Fifo => (0, LISTS - 1),
        };
        let stands = self.stood(now, last_ahead) >= STANDS;
        if wait > *self.settings.timeout
            || !has_time(now, need.deadline, wait + need.time.unwrap_or(UNKNOWN_NEED))
            || (stands && !is_next && wait > SHORT.max(half))
        {
            return Err(Refused::Full);
        }
        let is_full = self.places.len() >= self.settings.size as usize;
        let evicted = if is_full { Some(self.evict(need.priority).ok_or(Refused::Full)?) } else { None };
        for since in &mut self.standing_since[list..] {
            since.get_or_insert(now);
        }
        let longest = now + *self.settings.timeout;
        let mut until = need.deadline.map_or(longest, |deadline| deadline.min(longest));
        if self.settings.order == Order::LifoWhenFull {
            // Who waits keeps the queue from being empty, so when it will have stood is known.
            let stands_at = now - self.stood(now, LISTS - 1) + STANDS;
            until = until.min((now + SHORT_LIFO.max(half)).max(stands_at));
        }
        let number = self.next_number;
        self.next_number += 1;
        let deadline = need.deadline;
        let waiting = |place| Waiting { ticket: Ticket { number, place, until }, deadline };
        let ticket = self.places.push(list, number, waiting).ticket;
        debug_assert!(is_full || self.places.len() <= self.settings.size as usize);
        Ok(Joined { ticket, evicted })
    }

    /// Takes the next who can still make it if an attempt takes `need`, and puts into `skipped` who stood before them and cannot.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        need: Option<Duration>,
        skipped: &mut Vec<Ticket>,
    ) -> Option<Ticket> {
        let need = need.unwrap_or(UNKNOWN_NEED);
        let turn = self.turn(now);
        if turn == Turn::Youngest {
            // Nobody comes back to those who were first, so they are let go of here.
            while let Some((_, first)) = self.next(Turn::Oldest).filter(|(_, first)| now > first.ticket.until)
            {
                skipped.push(first.ticket);
                self.take_out(first.ticket);
            }
        }
        let mut next = None;
        while let Some((list, Waiting { ticket, deadline })) = self.next(turn) {
            self.take_out(ticket);
            if now <= ticket.until && has_time(now, deadline, need) {
                self.serve(now, list, turn);
                next = Some(ticket);
                break;
            }
            skipped.push(ticket);
        }
        self.left();
        next
    }

    /// Frees a place; false: it is not in the queue any more.
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        let found = self.take_out(ticket);
        self.left();
        found
    }

    fn turn(&self, now: Instant) -> Turn {
        match self.settings.order {
            Order::Priority if self.served + 1 < AGEING => Turn::First,
            Order::LifoWhenFull if self.stands(now) => Turn::Youngest,
            Order::Priority | Order::LifoWhenFull | Order::Fifo => Turn::Oldest,
        }
    }

    /// Whose turn it is, and in which list they stand.
    fn next(&self, turn: Turn) -> Option<(usize, Waiting)> {
        let mut firsts = (0..LISTS).filter_map(|list| Some((list, self.places.first(list)?)));
        match turn {
            Turn::First => firsts.next(),
            Turn::Oldest => firsts.min_by_key(|(_, waiting)| waiting.ticket.number),
            Turn::Youngest => (0..LISTS)
                .filter_map(|list| Some((list, self.places.last(list)?)))
                .max_by_key(|(_, waiting)| waiting.ticket.number),
        }
    }

    /// Somebody of `list` gets a slot.
    fn serve(&mut self, now: Instant, list: usize, turn: Turn) {
        self.served = if turn == Turn::First { self.served + 1 } else { 0 };
        let is_fresh = self.served_at.replace(now).is_some_and(|last| is_fresh(now, last));
        for (rank, above) in self.above.iter_mut().enumerate() {
            let before = if is_fresh { *above } else { 0.0 };
            *above = before + (f32::from(u8::from(list < rank)) - before) / MEMORY;
        }
    }

    /// The part of the pace that more important newcomers than those of `rank` take. Ageing leaves them something.
    fn taken_above(&self, now: Instant, rank: usize) -> f32 {
        const MOST: f32 = 1.0 - 1.0 / AGEING as f32;
        let is_fresh = self.served_at.is_some_and(|last| is_fresh(now, last));
        if is_fresh { self.above[rank].min(MOST) } else { 0.0 }
    }

    /// Takes the last place of the lowest class below `priority`.
    fn evict(&mut self, priority: Priority) -> Option<Ticket> {
        if self.settings.order != Order::Priority {
            return None;
        }
        let lower = (priority.rank() + 1..LISTS).rev();
        let evicted = lower.filter_map(|list| self.places.last(list)).next()?.ticket;
        self.take_out(evicted);
        Some(evicted)
    }

    fn take_out(&mut self, ticket: Ticket) -> bool {
        self.places.remove(ticket.number, ticket.place).is_some()
    }

    fn stands(&self, now: Instant) -> bool {
        self.stood(now, LISTS - 1) >= STANDS
    }

    /// For how long somebody of `list` or above has waited all the time.
    fn stood(&self, now: Instant, list: usize) -> Duration {
        self.standing_since[list].map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Somebody may have left.
    fn left(&mut self) {
        for list in 0..LISTS {
            if self.places.len_of(list) > 0 {
                break;
            }
            self.standing_since[list] = None;
        }
    }
}

/// Whether something that takes so long from `now` on would be over in time.
fn has_time(now: Instant, deadline: Option<Instant>, takes: Duration) -> bool {
    deadline.is_none_or(|deadline| deadline.saturating_duration_since(now) >= takes)
}

fn is_fresh(now: Instant, last: Instant) -> bool {
    now.saturating_duration_since(last) < FRESH
}

#[cfg(test)]
mod tests;
