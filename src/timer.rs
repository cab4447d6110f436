//! The coarse timer wheel of a worker: timeouts that almost never fire, at the price of a store each.
//!
//! A request arms half a dozen timeouts and disarms them all again. So arming an armed timer only writes its
//! new instant: the entry stays in the slot where it is, and moves on when that slot comes up. Timers come from
//! a free list and go back to it, entries that still stand in a slot included.
//!
//! For timeouts alone: they end up to two ticks (40 ms) late, never early. What needs an exact instant (the
//! back-off before a retry) uses tokio's timers. Rejected: tokio's timers for all (six times the instructions
//! for a request).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How far apart two looks at the wheel are.
pub const TICK: Duration = Duration::from_millis(20);

/// Slots of the wheel: ten seconds. What lies further ahead waits in the last slot and moves on from there.
const SLOTS: u64 = 512;

/// The instant of a timer that is not armed.
const NEVER: u64 = u64::MAX;

/// A worker's timer wheel. Not shared between threads.
pub struct Wheel {
    start: Instant,
    /// Ticks since `start` that have been served.
    served: Cell<u64>,
    slots: RefCell<Vec<Vec<Rc<Entry>>>>,
    free: RefCell<Vec<Rc<Entry>>>,
    /// The tick for which the driver sleeps; `NEVER`: until woken.
    sleeping_until: Cell<u64>,
    driver: RefCell<Option<Waker>>,
}

struct Entry {
    /// The tick at which it ends.
    due: Cell<u64>,
    /// The tick of the slot in which it stands; `NEVER`: in none.
    queued: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

/// One timer, to be armed as often as needed. Goes back to the wheel when dropped.
pub struct Timer {
    wheel: Rc<Wheel>,
    entry: Rc<Entry>,
}

/// The time was up first.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl Wheel {
    /// An empty wheel. Nothing ends unless somebody runs [`Wheel::drive`].
    pub fn new(start: Instant) -> Rc<Self> {
        Rc::new(Self {
            start,
            served: Cell::new(0),
            slots: RefCell::new((0..SLOTS).map(|_| Vec::new()).collect()),
            free: RefCell::default(),
            sleeping_until: Cell::new(NEVER),
            driver: RefCell::default(),
        })
    }

    /// A timer that is not armed.
    pub fn timer(self: &Rc<Self>) -> Timer {
        let entry = self.free.borrow_mut().pop().unwrap_or_else(|| {
            Rc::new(Entry { due: Cell::new(NEVER), queued: Cell::new(NEVER), waker: RefCell::default() })
        });
        Timer { wheel: Rc::clone(self), entry }
    }

    /// Wakes every task that waits for a timer, without ending any: whoever waits looks again at what else it
    /// depends on (a reload, a drain).
    pub fn wake_all(&self) {
        let slots = self.slots.borrow();
        let wakers: Vec<Waker> =
            slots.iter().flatten().filter_map(|entry| entry.waker.borrow().clone()).collect();
        drop(slots);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Serves the wheel for ever: sleeps until the next occupied slot, and not at all while all are empty.
    pub async fn drive(self: Rc<Self>) {
        loop {
            match self.next_occupied() {
                Some(tick) => {
                    self.sleeping_until.set(tick);
                    let at = self.start + TICK * u32::try_from(tick).unwrap_or(u32::MAX);
                    let sleep = tokio::time::sleep_until(at.into());
                    tokio::pin!(sleep);
                    // Woken by an earlier timer, too: then look again.
                    poll_fn(|cx| {
                        *self.driver.borrow_mut() = Some(cx.waker().clone());
                        if self.sleeping_until.get() < tick {
                            Poll::Ready(())
                        } else {
                            sleep.as_mut().poll(cx)
                        }
                    })
                    .await;
                }
                None => {
                    self.sleeping_until.set(NEVER);
                    poll_fn(|cx| {
                        *self.driver.borrow_mut() = Some(cx.waker().clone());
                        if self.sleeping_until.get() < NEVER { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
            }
            self.advance(Instant::now());
        }
    }

    /// Ends all timers that are due at `now`.
    fn advance(&self, now: Instant) {
        let now = self.floor(now);
        let from = self.served.get();
        self.served.set(now.max(from));
        // One round looks at every slot; more would only look at them again.
        for tick in from + 1..=now.min(from + SLOTS) {
            let entries = std::mem::take(&mut self.slots.borrow_mut()[(tick % SLOTS) as usize]);
            for entry in entries {
                entry.queued.set(NEVER);
                let due = entry.due.get();
                if due <= now {
                    if let Some(waker) = entry.waker.borrow_mut().take() {
                        waker.wake();
                    }
                } else if due != NEVER {
                    self.enqueue(&entry, due);
                }
            }
        }
    }

    fn next_occupied(&self) -> Option<u64> {
        let slots = self.slots.borrow();
        let next = self.served.get() + 1;
        (next..next + SLOTS).find(|tick| !slots[(tick % SLOTS) as usize].is_empty())
    }

    fn enqueue(&self, entry: &Rc<Entry>, due: u64) {
        let served = self.served.get();
        let tick = due.clamp(served + 1, served + SLOTS - 1);
        entry.queued.set(tick);
        self.slots.borrow_mut()[(tick % SLOTS) as usize].push(Rc::clone(entry));
        if tick < self.sleeping_until.get() {
            self.sleeping_until.set(tick);
            if let Some(driver) = self.driver.borrow_mut().take() {
                driver.wake();
            }
        }
    }

    /// Whole ticks from the start to `at`.
    fn floor(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as u64
    }
}

impl Timer {
    /// Ends at `at`, whatever it was armed for before. Cheap when it is armed already for an earlier instant.
    pub fn arm(&self, at: Instant) {
        let due = self.wheel.floor(at) + 1;
        self.entry.due.set(due);
        if self.entry.queued.get() > due {
            // In no slot, or in one that comes too late.
            if self.entry.queued.get() != NEVER {
                self.leave_slot();
            }
            self.wheel.enqueue(&self.entry, due);
        }
    }

    /// Never ends, until armed again.
    pub fn disarm(&self) {
        self.entry.due.set(NEVER);
    }

    /// Whether it is armed, or has ended and was not armed again.
    pub fn is_armed(&self) -> bool {
        self.entry.due.get() != NEVER
    }

    /// Ready once the armed instant has passed.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.entry.due.get();
        if due <= self.wheel.served.get() {
            return Poll::Ready(());
        }
        let mut waker = self.entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// `future`'s output, unless `at` passes first.
    ///
    /// # Errors
    /// [`Elapsed`] if it does.
    pub async fn within<T>(&self, at: Instant, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        self.arm(at);
        tokio::pin!(future);
        let result = poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll(cx).map(|()| Err(Elapsed)),
        })
        .await;
        self.disarm();
        result
    }

    fn leave_slot(&self) {
        let slot = (self.entry.queued.get() % SLOTS) as usize;
        self.wheel.slots.borrow_mut()[slot].retain(|entry| !Rc::ptr_eq(entry, &self.entry));
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
        *self.entry.waker.borrow_mut() = None;
        self.wheel.free.borrow_mut().push(Rc::clone(&self.entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(timer: &Timer) -> bool {
        timer.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_timer_ends_after_its_instant_and_within_two_ticks() {
        let start = Instant::now();
        for millis in [0, 1, 19, 20, 21, 500, 10_239, 10_240, 60_000, 300_000] {
            let wheel = Wheel::new(start);
            let timer = wheel.timer();
            let at = start + Duration::from_millis(millis);
            timer.arm(at);
            let mut now = start;
            while !ready(&timer) {
                now += Duration::from_millis(7);
                wheel.advance(now);
                assert!(now < at + 2 * TICK + Duration::from_millis(7), "{millis} ms ends late");
            }
            assert!(now >= at, "{millis} ms ends early");
        }
    }

    #[test]
    fn the_last_instant_armed_is_the_one_that_counts() {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        let timer = wheel.timer();
        timer.arm(start + Duration::from_secs(1));
        timer.arm(start + Duration::from_secs(5));
        wheel.advance(start + Duration::from_secs(2));
        assert!(!ready(&timer), "put off");
        timer.arm(start + Duration::from_secs(3));
        wheel.advance(start + Duration::from_secs(4));
        assert!(ready(&timer), "brought forward");
        timer.disarm();
        wheel.advance(start + Duration::from_secs(60));
        assert!(!ready(&timer), "disarmed");
    }

    #[test]
    fn timers_are_used_again_and_stand_in_one_slot_at_most() {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        for round in 0..10_000 {
            let timer = wheel.timer();
            timer.arm(start + Duration::from_millis(round));
            timer.arm(start + Duration::from_millis(round / 2));
        }
        assert_eq!(wheel.free.borrow().len(), 1);
        assert!(wheel.slots.borrow().iter().map(Vec::len).sum::<usize>() <= 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_driver_wakes_whoever_waits() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let wheel = Wheel::new(Instant::now());
                let driver = tokio::task::spawn_local(Rc::clone(&wheel).drive());
                let timer = wheel.timer();
                let at = Instant::now() + Duration::from_millis(30);
                assert_eq!(timer.within(at, std::future::pending::<()>()).await, Err(Elapsed));
                assert_eq!(timer.within(at + Duration::from_secs(60), async { 7 }).await, Ok(7));
                driver.abort();
            })
            .await;
    }
}
