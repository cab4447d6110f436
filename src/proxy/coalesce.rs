//! Identical requests in flight share one answer: one of them leads and asks the upstream, the others follow.
//!
//! One table for each upstream and process: those who share are on any worker, so what is shared are bytes, complete.
//! The invariant: of those who ask the same, one is with the upstream. How that may end for the followers:
//!
//! - the leader's answer is for everybody: they get it, each after a look at what it depends on (`Vary`). Those who
//!   want another one share theirs, and for some time it is known beforehand who they are;
//! - it is not (`Set-Cookie`, `private`, an event stream, too large), or its body takes too long behind its head (see
//!   [`tee::patience`](super::tee::patience)): each goes by itself, through all policies, and for a while nobody who
//!   asks this waits for others at all, or one slow private answer would hold up all who want their own;
//! - its answer is bad and something may stand in for it: they look for that at once, and those who find nothing share
//!   the next answer, as it is;
//! - the leader failed: they fail with it. To ask again for each would be the stampede that this is there to prevent;
//! - its answer broke off behind the head, where no retry could follow, or its client takes it too slowly: the one who
//!   waits longest leads. If that one does no better, the others fail with it, or each goes by itself;
//! - the leader's client left, or what it failed for or was answered concerns itself alone (its time, its rate, its
//!   class, a fault): the one who waits longest leads;
//! - the leader leads for longer than an attempt may take: a follower takes over, and the others wait for that one. An
//!   answer that the old leader gets after all is theirs too;
//! - a follower's own time is up: it fails by itself.
//!
//! A request that may have changed something ends the flight for those who come after it, who must not get an answer
//! from before it. Rejected: handing the answer on piece by piece as it comes (a slow client that leads would slow
//! down all others, and an answer that breaks off would have to break off for all).

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::mem::{replace, take};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::kept::Kept;
use crate::reason::Error;
use crate::telemetry::metrics::{Limit, Metrics};
use crate::timer::Timer;

/// Those who wait for one leader; beyond it requests go by themselves, which is counted.
pub const FOLLOWERS: usize = 1000;
/// For how long those who ask what could not be shared go by themselves.
const APART_FOR: Duration = Duration::from_secs(10);
/// Questions that are remembered as such; more take each other's places.
const APART: usize = 1024;
/// URLs of which it is remembered by what their answers differ; with more, all are forgotten.
const VARYING: usize = 1024;

/// Names of headers.
pub type Names = Arc<[Box<[u8]>]>;

/// Who asks the same of one upstream at the moment.
pub struct Coalescer {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
    /// What could not be shared of late: half of a question's hash, and until when, in seconds since `start`.
    apart: OnceLock<Box<[AtomicU64]>>,
    /// By a URL's hash, the headers by which its answers have differed of late. Two URLs that share a place only tell
    /// apart more than they need to.
    varying: OnceLock<Mutex<HashMap<u64, Names>>>,
    hasher: foldhash::quality::RandomState,
    start: Instant,
}

#[derive(Default)]
struct Inner {
    /// By URL, then by headers: the flight that further requests join.
    open: HashMap<Box<[u8]>, Vec<Open>>,
    flights: HashMap<u64, Flight>,
    /// The next number of a flight or a ticket.
    next: u64,
}

/// A flight that further requests join.
struct Open {
    headers: Box<[u8]>,
    variant: Box<[u8]>,
    flight: u64,
}

struct Flight {
    question: Question,
    /// Who leads.
    leader: u64,
    /// Since when.
    since: Instant,
    /// Whether a leader has given up after its answer had begun.
    was_passed_on: bool,
    /// By ticket: who waits longest comes first.
    waiting: BTreeMap<u64, oneshot::Sender<Told>>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The URL.
    pub url: Box<[u8]>,
    /// The headers of `fallback.key`.
    pub headers: Box<[u8]>,
    /// The headers by which answers are known to differ.
    pub variant: Box<[u8]>,
}

/// What a request is among those who ask the same.
pub enum Role {
    /// It asks the upstream, for all.
    Leads(Lead),
    /// It waits for the leader.
    Follows(Place),
    /// It goes by itself.
    Apart,
}

/// What a follower is told.
pub enum Told {
    /// The answer; whether it suits is for the follower to say.
    Answer(Arc<Kept>),
    /// The leader failed.
    Failed(Error),
    /// The leader got a bad answer with this status, whose body nobody kept.
    Bad(u16),
    /// It leads now.
    Leads(Lead),
    /// It goes by itself.
    Apart,
    /// Its own time is up.
    TimeUp,
}

/// The leader's duty to the others. Dropped without a word, the next one leads.
#[must_use = "others wait for what it has to tell"]
pub struct Lead {
    coalescer: Arc<Coalescer>,
    flight: u64,
    ticket: u64,
    is_over: bool,
}

/// A follower's place, until dropped.
pub struct Place {
    coalescer: Arc<Coalescer>,
    flight: u64,
    ticket: u64,
    told: oneshot::Receiver<Told>,
}

impl Coalescer {
    /// Nobody asks anything.
    pub fn new(metrics: &Arc<Metrics>, start: Instant) -> Self {
        Self {
            inner: Mutex::default(),
            metrics: Arc::clone(metrics),
            apart: OnceLock::new(),
            varying: OnceLock::new(),
            hasher: foldhash::quality::RandomState::default(),
            start,
        }
    }

    /// Joins those who ask the same at `now`, or is the first of them.
    pub fn join(self: &Arc<Self>, question: &Question, now: Instant) -> Role {
        if self.is_apart(question, now) {
            return Role::Apart;
        }
        let mut inner = self.lock();
        let ticket = inner.number();
        let open = inner.open.get(&*question.url).and_then(|open| {
            let is_same = |open: &&Open| open.headers == question.headers && open.variant == question.variant;
            open.iter().find(is_same).map(|open| open.flight)
        });
        if let Some(id) = open
            && let Some(flight) = inner.flights.get_mut(&id)
        {
            if flight.waiting.len() >= FOLLOWERS {
                drop(inner);
                self.metrics.limit_reached(Limit::Followers).inc();
                return Role::Apart;
            }
            let (teller, told) = oneshot::channel();
            flight.waiting.insert(ticket, teller);
            return Role::Follows(Place { coalescer: Arc::clone(self), flight: id, ticket, told });
        }
        let id = inner.number();
        let flight = Flight {
            question: question.clone(),
            leader: ticket,
            since: now,
            was_passed_on: false,
            waiting: BTreeMap::new(),
        };
        inner.flights.insert(id, flight);
        let (headers, variant) = (question.headers.clone(), question.variant.clone());
        let open = Open { headers, variant, flight: id };
        inner.open.entry(question.url.clone()).or_default().push(open);
        Role::Leads(Lead { coalescer: Arc::clone(self), flight: id, ticket, is_over: false })
    }

    /// Who asks for `url` from now on asks anew: what those in flight get may hold no more.
    pub fn part(&self, url: &[u8]) {
        self.lock().open.remove(url);
    }

    /// By which headers of the requests the answers at `url` differ, as far as that is known.
    pub fn varies_by(&self, url: &[u8]) -> Option<Names> {
        let varying = self.varying.get()?.lock().unwrap_or_else(PoisonError::into_inner);
        varying.get(&self.hasher.hash_one(url)).map(Arc::clone)
    }

    /// An answer at `url` says that it depends on these headers.
    pub fn varies(&self, url: &[u8], names: &[Box<[u8]>]) {
        if names.is_empty() && self.varying.get().is_none() {
            return;
        }
        let varying = self.varying.get_or_init(Mutex::default);
        let mut varying = varying.lock().unwrap_or_else(PoisonError::into_inner);
        let url = self.hasher.hash_one(url);
        if names.is_empty() {
            varying.remove(&url);
        } else if varying.get(&url).is_none_or(|known| **known != *names) {
            if varying.len() >= VARYING {
                varying.clear();
            }
            varying.insert(url, names.into());
        }
    }

    /// Requests that lead, and that follow.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.flights.len(), inner.flights.values().map(|flight| flight.waiting.len()).sum())
    }

    fn is_apart(&self, question: &Question, now: Instant) -> bool {
        let Some(apart) = self.apart.get() else { return false };
        let (place, half) = self.place(question);
        let known = apart[place].load(Relaxed);
        known >> 32 == half && (known & u64::from(u32::MAX)) > self.seconds(now)
    }

    fn set_apart(&self, question: &Question, now: Instant) {
        let apart = self.apart.get_or_init(|| (0..APART).map(|_| AtomicU64::new(0)).collect());
        let (place, half) = self.place(question);
        apart[place].store(half << 32 | self.seconds(now + APART_FOR) & u64::from(u32::MAX), Relaxed);
    }

    /// Where a question is remembered, whatever its variant, and by what.
    fn place(&self, question: &Question) -> (usize, u64) {
        let hash = self.hasher.hash_one((&question.url, &question.headers));
        (hash as usize % APART, hash >> 32)
    }

    fn seconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_secs()
    }

    /// A panic elsewhere leaves a table that is right: each change is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Ends a flight; who waited for it.
    fn end(&mut self, id: u64) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        if let Some(open) = self.open.get_mut(&*flight.question.url) {
            open.retain(|open| open.flight != id);
            if open.is_empty() {
                self.open.remove(&*flight.question.url);
            }
        }
        Some(flight)
    }
}

impl Lead {
    /// The answer is for everybody.
    pub fn share(self, answer: Arc<Kept>) {
        self.tell_all(true, || Told::Answer(Arc::clone(&answer)));
    }

    /// The answer is for its own client alone, or not there in time: nobody who asks this waits for others until some
    /// time after `now`.
    pub fn keep(self, now: Instant) {
        let question = {
            let inner = self.coalescer.lock();
            inner.flights.get(&self.flight).map(|flight| flight.question.clone())
        };
        if let Some(question) = question {
            self.coalescer.set_apart(&question, now);
        }
        self.tell_all(true, || Told::Apart);
    }

    /// There is no answer.
    pub fn fail(self, error: &Error) {
        self.tell_all(false, || Told::Failed(error.clone()));
    }

    /// There is a bad answer with this status, whose body nobody keeps.
    pub fn fail_with(self, status: u16) {
        self.tell_all(false, || Told::Bad(status));
    }

    /// The answer has broken off, though its client has the head: the next one leads. The second time all fail with it.
    pub fn break_off(self, error: &Error) {
        if !self.is_first_to_pass_on() {
            self.fail(error);
        }
    }

    /// Its client is too slow for all others: the next one leads. The second time each goes by itself.
    pub fn pass_on(self) {
        if !self.is_first_to_pass_on() {
            self.tell_all(false, || Told::Apart);
        }
    }

    /// Whether it is the first of its flight that is dropped after its answer had begun: all together must not wait for
    /// one after the other.
    fn is_first_to_pass_on(&self) -> bool {
        let mut inner = self.coalescer.lock();
        let flight = inner.flights.get_mut(&self.flight).filter(|flight| flight.leader == self.ticket);
        flight.is_some_and(|flight| !replace(&mut flight.was_passed_on, true))
    }

    /// What a leader that was replaced has to say counts only where it `is_for_all`, whoever leads.
    fn tell_all(mut self, is_for_all: bool, told: impl Fn() -> Told) {
        self.is_over = true;
        let waiting = {
            let mut inner = self.coalescer.lock();
            match inner.flights.get_mut(&self.flight) {
                Some(flight) if flight.leader == self.ticket => {
                    inner.end(self.flight).map(|flight| flight.waiting).unwrap_or_default()
                }
                Some(flight) if is_for_all => take(&mut flight.waiting),
                _ => return,
            }
        };
        for teller in waiting.into_values() {
            // Who has left needs no answer.
            let _ = teller.send(told());
        }
    }
}

impl Drop for Lead {
    /// The one who waits longest leads.
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let next = {
            let mut inner = self.coalescer.lock();
            let Some(flight) =
                inner.flights.get_mut(&self.flight).filter(|flight| flight.leader == self.ticket)
            else {
                return;
            };
            let Some((ticket, teller)) = flight.waiting.pop_first() else {
                inner.end(self.flight);
                return;
            };
            flight.leader = ticket;
            flight.since = Instant::now();
            let coalescer = Arc::clone(&self.coalescer);
            (teller, Lead { coalescer, flight: self.flight, ticket, is_over: false })
        };
        // One who has left meanwhile drops what it is told, and so the one behind it leads.
        let _ = next.0.send(Told::Leads(next.1));
    }
}

impl Place {
    /// Waits for the leader, which may lead for as long as an `attempt` takes; not beyond `end`.
    pub async fn wait(mut self, timer: &Timer, attempt: Duration, end: Option<Instant>) -> Told {
        loop {
            let until = self.leads_since().and_then(|since| since.checked_add(attempt));
            let Some(until) = until.map(|until| end.map_or(until, |end| end.min(until))) else {
                // Told, or about to be: whoever tells has taken it out and is on its way.
                return (&mut self.told).await.unwrap_or(Told::Apart);
            };
            if let Ok(told) = timer.within(until, &mut self.told).await {
                return told.unwrap_or(Told::Apart);
            }
            let now = Instant::now();
            if end.is_some_and(|end| end <= now) {
                return Told::TimeUp;
            }
            if let Some(lead) = self.take_over(now, attempt) {
                return Told::Leads(lead);
            }
        }
    }

    /// Since when the leader leads; none: everything has been told.
    fn leads_since(&self) -> Option<Instant> {
        let inner = self.coalescer.lock();
        let flight = inner.flights.get(&self.flight)?;
        flight.waiting.contains_key(&self.ticket).then_some(flight.since)
    }

    /// Leads in place of one that has been at it for too long.
    fn take_over(&self, now: Instant, attempt: Duration) -> Option<Lead> {
        let mut inner = self.coalescer.lock();
        let flight = inner.flights.get_mut(&self.flight)?;
        if flight.since + attempt > now {
            return None;
        }
        flight.waiting.remove(&self.ticket)?;
        flight.leader = self.ticket;
        flight.since = now;
        let coalescer = Arc::clone(&self.coalescer);
        Some(Lead { coalescer, flight: self.flight, ticket: self.ticket, is_over: false })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.coalescer.lock();
        if let Some(flight) = inner.flights.get_mut(&self.flight) {
            flight.waiting.remove(&self.ticket);
        }
        // What it was told, and did not hear, falls with the channel; if it was to lead, the next one does.
    }
}

#[cfg(test)]
mod tests;
