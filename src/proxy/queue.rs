//! Slots of an upstream's concurrency limit, and who waits for one: the shell that holds the wakers.
//!
//! What is decided is decided in `policy::concurrency`; here a waiting request is a future, and a slot is a value that
//! goes back when dropped, to the next in the queue, whichever worker that waits on. One mutex for each
//! upstream: it is held for some ten nanoseconds twice a request. What an attempt has shown goes with its slot, so that
//! it costs no third time; where the slot is kept for longer than the answer's head took, it is told before
//! ([`Slot::answers`]).

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::policy::concurrency::{Ask, Entry, Gate as Decisions, Leave, Settings};
use crate::policy::limit::{LOOK, Sample};
use crate::policy::queue::Ticket;
use crate::reason::{Error, Reason};
use crate::timer::Timer;

/// An upstream's concurrency limit with its queue. One for the process.
pub struct Gate(Mutex<Inner>);

struct Inner {
    decisions: Decisions,
    waiting: Waiting,
}

/// Those that wait, or were called and have not heard it yet. Entries are used again, so nothing is allocated once as
/// many have waited as ever will.
#[derive(Default)]
struct Waiting {
    entries: Vec<State>,
    free: Vec<usize>,
    /// Whose entry it is that has a place in the queue, by the number of that place.
    by_place: Vec<usize>,
}

enum State {
    /// Not polled yet, or polled with this waker.
    Waits(Option<Waker>),
    /// Its wait is over.
    Over(End),
    /// Nobody's.
    Free,
}

/// How a wait ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// A slot is its own.
    Called,
    /// It could not be served in time any more.
    Skipped,
    /// It made room for somebody who matters more.
    Evicted,
}

/// Who is to be woken once the lock is given back. Mostly nobody or one, which allocates nothing.
#[derive(Default)]
struct Wakers {
    first: Option<Waker>,
    more: Vec<Waker>,
}

/// One of the limit's slots, until dropped.
#[must_use = "a slot is held by keeping it"]
pub struct Slot {
    gate: Arc<Gate>,
    /// The upstream's usual latency, for whoever is next.
    p50: Option<Duration>,
    /// What the attempt has shown and the limit has not been told.
    sample: Option<Sample>,
    left_at: Option<Instant>,
    /// When the attempt was sent that was given up without an answer.
    given_up: Option<Instant>,
    /// Its body flows, and the limit has been told of its head.
    is_answering: bool,
    /// It is others' while the attempt waits for its client.
    is_lent: bool,
}

/// A place in the queue, until dropped.
struct Place {
    gate: Arc<Gate>,
    ticket: Ticket,
    /// Its entry among those that wait; none: the wait is over, and whoever waited knows.
    entry: Option<usize>,
}

impl Gate {
    /// A limit with nobody in flight.
    pub fn new(settings: &Settings, now: Instant) -> Arc<Self> {
        // Sidecars that start together draw apart, so that they do not try their limits in step.
        let decisions = Decisions::new(settings, now, fastrand::u64(..));
        Arc::new(Self(Mutex::new(Inner { decisions, waiting: Waiting::default() })))
    }

    /// New settings; whoever is in flight or waits stays.
    pub fn update(&self, settings: &Settings, now: Instant) {
        self.with(|inner, wakers| {
            inner.decisions.update(settings);
            inner.grant(now, None, wakers);
        });
    }

    /// Attempts in flight, the limit, and how many wait.
    pub fn counts(&self) -> (u32, u32, usize) {
        let mut inner = self.lock();
        inner.decisions.settle(Instant::now());
        (inner.decisions.in_flight(), inner.decisions.limit(), inner.decisions.depth())
    }

    /// A slot at once, whether `ask` may wait or not.
    ///
    /// # Errors
    /// [`Reason::ConcurrencyLimited`] where none is free.
    pub fn try_enter(self: &Arc<Self>, ask: Ask) -> Result<Slot, Error> {
        match self.ask(Ask { may_queue: false, ..ask }) {
            Ok(None) => Ok(self.slot(&ask)),
            Ok(Some(place)) => {
                drop(place);
                Err(Reason::ConcurrencyLimited.into())
            }
            Err(error) => Err(error),
        }
    }

    /// A slot, at once or after waiting in the queue; not beyond the deadline, nor beyond the queue's timeout.
    /// `waited` is called with the time in the queue, served or not. Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`Reason::ConcurrencyLimited`], [`Reason::QueueFull`], [`Reason::QueueTimeout`].
    pub async fn enter(
        self: &Arc<Self>,
        ask: Ask,
        timer: &Timer,
        waited: impl FnOnce(Duration),
    ) -> Result<Slot, Error> {
        let Some(place) = self.ask(Ask { may_queue: true, ..ask })? else { return Ok(self.slot(&ask)) };
        let until = place.ticket.until();
        let mut wait = pin!(place.wait());
        let end = loop {
            // Time alone frees slots, of what was given up and in a stall, and somebody has to look.
            let look = Instant::now() + LOOK;
            match timer.within(look.min(until), wait.as_mut()).await {
                Err(_) if look < until => self.with(|inner, wakers| {
                    let now = Instant::now();
                    inner.decisions.settle(now);
                    inner.grant(now, ask.p50, wakers);
                }),
                end => break end,
            }
        };
        waited(ask.now.elapsed());
        let reason = match end {
            Ok(End::Called) => return Ok(self.slot(&ask)),
            Ok(End::Evicted) => Reason::QueueFull,
            Ok(End::Skipped) | Err(_) => Reason::QueueTimeout,
        };
        let wait = self.lock().decisions.wait(Instant::now(), ask.priority, ask.p50);
        Err(Error::from(reason).retry_after(wait))
    }

    /// A slot (none) or a place in the queue.
    fn ask(self: &Arc<Self>, ask: Ask) -> Result<Option<Place>, Error> {
        // PERF: mostly there is a slot.
        let mut inner = self.lock();
        let entry = inner.decisions.enter(&ask);
        if entry == Entry::Slot {
            return Ok(None);
        }
        let mut wakers = Wakers::default();
        let answer = match entry {
            Entry::Queued { ticket, evicted } => {
                // First: the place may be that of whoever is evicted.
                if let Some(evicted) = evicted {
                    inner.waiting.end(evicted, End::Evicted, &mut wakers);
                }
                let entry = Some(inner.waiting.begin(ticket));
                Ok(Some(Place { gate: Arc::clone(self), ticket, entry }))
            }
            Entry::Rejected { reason, retry_after } => Err(Error::from(reason).retry_after(retry_after)),
            Entry::Slot => Ok(None),
        };
        inner.grant(ask.now, ask.p50, &mut wakers);
        drop(inner);
        wakers.wake();
        answer
    }

    fn slot(self: &Arc<Self>, ask: &Ask) -> Slot {
        Slot {
            gate: Arc::clone(self),
            p50: ask.p50,
            sample: None,
            left_at: None,
            given_up: None,
            is_answering: false,
            is_lent: false,
        }
    }

    /// A slot has come free at `now`.
    fn leave(&self, now: Instant, sample: Option<Sample>, p50: Option<Duration>) {
        self.with(|inner, wakers| {
            let left = inner.decisions.leave(now, sample, p50);
            if !left.is_empty() {
                inner.tell(left, wakers);
                inner.grant(now, p50, wakers);
            }
        });
    }

    /// Does what may let others in, and wakes them.
    fn with(&self, act: impl FnOnce(&mut Inner, &mut Wakers)) {
        let mut wakers = Wakers::default();
        let mut inner = self.lock();
        act(&mut inner, &mut wakers);
        drop(inner);
        wakers.wake();
    }

    /// A panic elsewhere leaves counts that are right: each change is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Hands out all slots that are free.
    fn grant(&mut self, now: Instant, p50: Option<Duration>, wakers: &mut Wakers) {
        loop {
            let leave = self.decisions.grant(now, p50);
            if leave.is_empty() {
                break;
            }
            self.tell(leave, wakers);
        }
    }

    fn tell(&mut self, leave: Leave, wakers: &mut Wakers) {
        for ticket in leave.skipped {
            self.waiting.end(ticket, End::Skipped, wakers);
        }
        if let Some(ticket) = leave.next {
            self.waiting.end(ticket, End::Called, wakers);
        }
    }
}

impl Waiting {
    /// Somebody has taken a place.
    fn begin(&mut self, ticket: Ticket) -> usize {
        let entry = self.free.pop().unwrap_or_else(|| {
            self.entries.push(State::Free);
            self.entries.len() - 1
        });
        self.entries[entry] = State::Waits(None);
        if self.by_place.len() <= ticket.place() {
            self.by_place.resize(ticket.place() + 1, 0);
        }
        self.by_place[ticket.place()] = entry;
        entry
    }

    /// Who has the place `ticket` waits no more. INVARIANT: it has just lost it, so the place is still its own here.
    fn end(&mut self, ticket: Ticket, end: End, wakers: &mut Wakers) {
        let state = &mut self.entries[self.by_place[ticket.place()]];
        debug_assert!(matches!(state, State::Waits(_)));
        if let State::Waits(waker) = std::mem::replace(state, State::Over(end)) {
            wakers.add(waker);
        }
    }

    /// Ready with how the wait has ended; then the entry is free.
    fn poll(&mut self, entry: usize, cx: &Context<'_>) -> Poll<End> {
        match &mut self.entries[entry] {
            State::Over(end) => {
                let end = *end;
                self.forget(entry);
                Poll::Ready(end)
            }
            State::Waits(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Free => unreachable!("whoever waits has an entry"),
        }
    }

    fn forget(&mut self, entry: usize) -> State {
        self.free.push(entry);
        std::mem::replace(&mut self.entries[entry], State::Free)
    }
}

impl Wakers {
    fn add(&mut self, waker: Option<Waker>) {
        match &self.first {
            None => self.first = waker,
            Some(_) => self.more.extend(waker),
        }
    }

    fn wake(self) {
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
}

impl Place {
    /// How the wait ends. A slot that came is its owner's from then on.
    async fn wait(mut self) -> End {
        poll_fn(|cx| {
            let Some(entry) = self.entry else { return Poll::Pending };
            let end = self.gate.lock().waiting.poll(entry, cx);
            if end.is_ready() {
                self.entry = None;
            }
            end
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let state = {
            let mut inner = self.gate.lock();
            let state = inner.waiting.forget(entry);
            if matches!(state, State::Waits(_)) {
                inner.decisions.give_up(self.ticket);
            }
            state
        };
        if matches!(state, State::Over(End::Called)) {
            self.gate.leave(Instant::now(), None, None);
        }
    }
}

impl Slot {
    /// The attempt has shown this; the limit is told with the slot's return, or by [`Slot::answers`].
    pub fn shows(&mut self, sample: Sample) {
        self.given_up = None;
        self.sample = Some(sample);
    }

    /// The attempt, sent at `sent`, was given up without an answer: what it asked for may still be worked on.
    pub fn gives_up(&mut self, sent: Instant) {
        self.given_up = Some(sent);
    }

    /// Tells the limit what the attempt's head has shown: its body takes longer.
    pub fn answers(&mut self) {
        self.is_answering |= self.tell(Decisions::answered);
    }

    /// Another attempt follows at once, and has it from here.
    pub fn goes_on(&mut self) {
        self.tell(Decisions::shown);
        if std::mem::take(&mut self.is_answering) {
            self.gate.lock().decisions.body_ends();
        }
    }

    /// Whether there was something to tell.
    fn tell(&mut self, how: fn(&mut Decisions, Instant, Sample)) -> bool {
        let Some(sample) = self.sample.take() else { return false };
        let now = Instant::now();
        self.gate.with(|inner, wakers| {
            how(&mut inner.decisions, now, sample);
            inner.grant(now, self.p50, wakers);
        });
        true
    }

    /// The attempt waits for its client, as it has done for `held`: others may have the slot until it is taken back.
    pub fn lend(&mut self, now: Instant, held: Duration) {
        if !std::mem::replace(&mut self.is_lent, true) {
            self.gate.with(|inner, wakers| {
                let leave = inner.decisions.lend(now, held, self.p50);
                inner.tell(leave, wakers);
                inner.grant(now, self.p50, wakers);
            });
        }
    }

    /// The attempt waits for its upstream alone, from `now` on. Does nothing where it is not lent.
    pub fn take_back(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_lent) {
            self.gate.lock().decisions.take_back(now);
        }
    }

    /// Whether it is lent.
    pub fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Gives it back at `now`; dropping it does the same and reads the clock.
    pub fn leave(mut self, now: Instant) {
        self.left_at = Some(now);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.is_lent {
            return;
        }
        let (now, sample) = (self.left_at.unwrap_or_else(Instant::now), self.sample.take());
        if self.is_answering {
            self.gate.lock().decisions.body_ends();
        }
        match self.given_up {
            None => self.gate.leave(now, sample, self.p50),
            Some(sent) => self.gate.with(|inner, wakers| {
                let left = inner.decisions.give_up_on(now, sent, sample, self.p50);
                inner.tell(left, wakers);
                inner.grant(now, self.p50, wakers);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::policy::limit;
    use crate::policy::priority::Priority;
    use crate::timer::Wheel;

    fn gate(max: u32) -> Arc<Gate> {
        let limit = limit::Settings::Fixed { max };
        Gate::new(&Settings { limit, ..Settings::default() }, Instant::now())
    }

    fn ask() -> Ask {
        let now = Instant::now();
        let deadline = Some(now + Duration::from_secs(60));
        Ask { now, deadline, priority: Priority::Normal, may_queue: true, p50: None }
    }

    #[test]
    fn whoever_leaves_as_they_are_called_passes_the_slot_on() {
        let gate = gate(1);
        let wheel = Wheel::new(Instant::now());
        let slot = gate.try_enter(ask()).expect("a slot");
        let nobody = &mut Context::from_waker(Waker::noop());
        let (first_timer, second_timer) = (wheel.timer(), wheel.timer());
        let mut first = Box::pin(gate.enter(ask(), &first_timer, |_| ()));
        let mut second = pin!(gate.enter(ask(), &second_timer, |_| ()));
        assert!(first.as_mut().poll(nobody).is_pending() && second.as_mut().poll(nobody).is_pending());
        assert_eq!(gate.counts(), (1, 1, 2));

        drop(slot);
        assert_eq!(gate.counts(), (1, 1, 1), "it is the first one's");
        drop(first);
        assert_eq!(gate.counts(), (1, 1, 0), "and now the second one's");
        let Poll::Ready(Ok(slot)) = second.as_mut().poll(nobody) else { panic!("it has been called") };
        drop(slot);
        assert_eq!(gate.counts(), (0, 1, 0));
    }

    #[test]
    fn what_is_lent_is_the_next_ones_and_is_taken_back_beyond_the_limit() {
        let gate = gate(1);
        let wheel = Wheel::new(Instant::now());
        let (mut uploads, nobody) =
            (gate.try_enter(ask()).expect("a slot"), &mut Context::from_waker(Waker::noop()));
        let timer = wheel.timer();
        let mut next = pin!(gate.enter(ask(), &timer, |_| ()));
        assert!(next.as_mut().poll(nobody).is_pending());

        (0..2).for_each(|_| uploads.lend(Instant::now(), Duration::from_millis(50)));
        let Poll::Ready(Ok(slot)) = next.as_mut().poll(nobody) else { panic!("it has been called") };
        assert_eq!(gate.counts(), (1, 1, 0));
        (0..2).for_each(|_| uploads.take_back(Instant::now()));
        assert_eq!(gate.counts(), (2, 1, 0), "the upstream has both");
        drop(slot);
        assert!(gate.try_enter(ask()).is_err(), "there is none");
        uploads.lend(Instant::now(), Duration::from_millis(50));
        drop(uploads);
        assert_eq!(gate.counts(), (0, 1, 0), "what is lent does not come back twice");
    }

    #[test]
    fn a_place_that_is_used_again_is_another_ones() {
        let gate = gate(1);
        let wheel = Wheel::new(Instant::now());
        let slot = gate.try_enter(ask()).expect("a slot");
        let nobody = &mut Context::from_waker(Waker::noop());
        let timers: Vec<_> = (0..3).map(|_| wheel.timer()).collect();
        let mut called = pin!(gate.enter(ask(), &timers[0], |_| ()));
        assert!(called.as_mut().poll(nobody).is_pending());
        drop(slot);
        // The one that was called has not heard it, and its place is free.
        let mut next = pin!(gate.enter(ask(), &timers[1], |_| ()));
        assert!(next.as_mut().poll(nobody).is_pending());
        let Poll::Ready(Ok(slot)) = called.as_mut().poll(nobody) else { panic!("it has been called") };
        assert!(next.as_mut().poll(nobody).is_pending(), "that was not its call");
        drop(slot);
        assert!(next.as_mut().poll(nobody).is_ready());
    }
}
