//! Many futures inside one task, each woken by itself: the streams of an HTTP/2 connection beside the connection.
//!
//! A stream that has its answer queues it at the connection, which then writes the answers of all streams that were
//! ready, in one go and without another turn of the scheduler. Rejected: a task for each stream (a place in the
//! runtime's list, a handle, and a turn between stream and connection, for each request); `FuturesUnordered`, which
//! wakes its task for every future that wakes another within it.
//!
//! Wakers may be called from any thread, since a queue's places are given back by other workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::telemetry::cells::SharedCounter;

/// The place of the connection itself, which is no future of these.
const CONNECTION: usize = 0;

/// Places that are kept while nothing runs, without the room of their futures: an idle connection shall be small.
const KEPT: usize = 4;

/// The futures of a task, all of one kind.
pub struct Tasks<F> {
    /// Those of the futures begin behind [`CONNECTION`].
    places: Vec<Place<F>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    /// Whose turn it is; empty between turns.
    turn: Vec<usize>,
}

/// PERF: its memory is that of the next future too; a stream's is too large for what the allocator has at hand.
struct Place<F> {
    /// The connection has none.
    future: Option<Pin<Box<Option<F>>>>,
    wakeup: Arc<Wakeup>,
    waker: Waker,
}

/// Who wants to be polled.
#[derive(Default)]
struct Ready(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    places: Vec<usize>,
    /// The task waits to be woken.
    sleeps: bool,
    task: Option<Waker>,
}

/// Wakes one place.
struct Wakeup {
    place: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that could panic runs while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, AcqRel) {
            return;
        }
        let mut waiting = self.ready.lock();
        waiting.places.push(self.place);
        if std::mem::take(&mut waiting.sleeps)
            && let Some(task) = &waiting.task
        {
            task.wake_by_ref();
        }
    }
}

impl<F: Future<Output = ()>> Default for Tasks<F> {
    /// No future yet. The connection is ready.
    fn default() -> Self {
        let mut tasks =
            Self { places: Vec::new(), free: Vec::new(), ready: Arc::default(), turn: Vec::new() };
        tasks.add_place();
        tasks.places[CONNECTION].waker.wake_by_ref();
        tasks
    }
}

impl<F: Future<Output = ()>> Tasks<F> {
    /// Wakes the connection.
    pub fn connection_waker(&self) -> Waker {
        self.places[CONNECTION].waker.clone()
    }

    /// The task is polled: nobody needs to wake it until [`Tasks::sleep`].
    pub fn begin(&self, cx: &Context<'_>) {
        let mut waiting = self.ready.lock();
        waiting.sleeps = false;
        if !waiting.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            waiting.task = Some(cx.waker().clone());
        }
    }

    /// Waits to be woken, unless somebody is ready already: then it is false.
    pub fn sleep(&self) -> bool {
        let mut waiting = self.ready.lock();
        waiting.sleeps = waiting.places.is_empty();
        waiting.sleeps
    }

    /// Starts `future` in the next turn.
    pub fn start(&mut self, future: F) {
        if self.free.is_empty() {
            let place = self.add_place();
            self.free.push(place);
        }
        let Some(place) = self.free.pop() else { return };
        let Place { future: room, waker, .. } = &mut self.places[place];
        match room {
            Some(room) => room.as_mut().set(Some(future)),
            None => *room = Some(Box::pin(Some(future))),
        }
        waker.wake_by_ref();
    }

    /// Polls every future that is ready now. Returns whether the connection wants to be polled. A future that panics
    /// has ended, which counts in `panics`.
    pub fn turn(&mut self, panics: &SharedCounter) -> bool {
        let mut turn = std::mem::take(&mut self.turn);
        std::mem::swap(&mut turn, &mut self.ready.lock().places);
        let mut connection = false;
        for place in turn.drain(..) {
            // A place may be gone, or somebody else's, by the time that its waker is used.
            let Some(Place { future, wakeup, waker }) = self.places.get_mut(place) else { continue };
            wakeup.queued.store(false, std::sync::atomic::Ordering::Release);
            if place == CONNECTION {
                connection = true;
                continue;
            }
            let Some(room) = future else { continue };
            let Some(running) = room.as_mut().as_pin_mut() else { continue };
            let mut cx = Context::from_waker(waker);
            // Whatever a panic left half done belongs to the future, and is never looked at again.
            let polled = catch_unwind(AssertUnwindSafe(|| running.poll(&mut cx)));
            if polled.is_err() {
                panics.inc();
            }
            if !matches!(polled, Ok(Poll::Pending)) {
                room.as_mut().set(None);
                self.free.push(place);
            }
        }
        self.turn = turn;
        connection
    }

    /// Gives back the room of futures that have ended, if none runs.
    pub fn rest(&mut self) {
        if self.free.len() + 1 != self.places.len() {
            return;
        }
        if self.places.len() > 1 + KEPT {
            self.places.truncate(1);
            self.places.shrink_to_fit();
            (self.free, self.turn) = (Vec::new(), Vec::new());
            self.ready.lock().places.shrink_to(KEPT);
        }
        self.places.iter_mut().for_each(|place| place.future = None);
    }

    fn add_place(&mut self) -> usize {
        let place = self.places.len();
        let wakeup =
            Arc::new(Wakeup { place, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        let waker = Waker::from(Arc::clone(&wakeup));
        self.places.push(Place { future: None, wakeup, waker });
        place
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    type Left = Rc<RefCell<Option<Waker>>>;

    /// A future that waits to be woken `times` times, where its waker is left, and how often it is polled.
    fn waits(times: usize) -> (Left, Rc<Cell<usize>>, impl Future<Output = ()>) {
        let (waker, polls) = (Left::default(), Rc::new(Cell::new(0)));
        let future = {
            let (waker, polls) = (Rc::clone(&waker), Rc::clone(&polls));
            poll_fn(move |cx| {
                *waker.borrow_mut() = Some(cx.waker().clone());
                polls.set(polls.get() + 1);
                if polls.get() > times { Poll::Ready(()) } else { Poll::Pending }
            })
        };
        (waker, polls, future)
    }

    #[test]
    fn who_is_woken_is_polled_and_nobody_else() {
        let woken = Arc::new(Woken::default());
        let task = Waker::from(Arc::clone(&woken));
        let panics = SharedCounter::default();
        let mut tasks = Tasks::<Pin<Box<dyn Future<Output = ()>>>>::default();
        tasks.begin(&Context::from_waker(&task));
        assert!(tasks.turn(&panics), "the connection is ready at first");
        let (first, first_polls, future) = waits(1);
        tasks.start(Box::pin(future));
        let (_second, second_polls, future) = waits(1);
        tasks.start(Box::pin(future));
        assert!(!tasks.sleep(), "two wait for their turn");
        assert!(!tasks.turn(&panics));
        assert!(tasks.sleep());
        assert_eq!(woken.0.load(Relaxed), 0, "all happened within the task");

        let waker = first.borrow().clone().expect("it was polled");
        waker.wake_by_ref();
        waker.wake();
        assert_eq!(woken.0.load(Relaxed), 1, "once");
        tasks.begin(&Context::from_waker(&task));
        assert!(!tasks.turn(&panics));
        assert_eq!((first_polls.get(), second_polls.get()), (2, 1));
        assert!(tasks.sleep());
        tasks.connection_waker().wake();
        assert_eq!(woken.0.load(Relaxed), 2);
        assert!(tasks.turn(&panics), "the connection is woken like the others");
    }

    #[test]
    fn a_future_that_wakes_itself_waits_for_the_next_turn() {
        let panics = SharedCounter::default();
        let mut tasks = Tasks::<Pin<Box<dyn Future<Output = ()>>>>::default();
        tasks.turn(&panics);
        let polls = Rc::new(Cell::new(0));
        let counted = Rc::clone(&polls);
        tasks.start(Box::pin(poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        })));
        for turn in 1..4 {
            tasks.turn(&panics);
            assert_eq!(polls.get(), turn);
            assert!(!tasks.sleep());
        }
    }

    #[test]
    fn a_panic_ends_one_future_and_is_counted() {
        let panics = SharedCounter::default();
        let mut tasks = Tasks::<Pin<Box<dyn Future<Output = ()>>>>::default();
        let held = Rc::new(());
        let kept = Rc::clone(&held);
        tasks.start(Box::pin(async move {
            let _held = held;
            panic!("a bug");
        }));
        let (_waker, polls, future) = waits(0);
        tasks.start(Box::pin(future));
        tasks.turn(&panics);
        assert_eq!((panics.get(), polls.get(), Rc::strong_count(&kept)), (1, 1, 1));
    }

    #[test]
    fn places_are_used_again_and_given_back() {
        let panics = SharedCounter::default();
        let mut tasks = Tasks::<Pin<Box<dyn Future<Output = ()>>>>::default();
        let mut wakers = Vec::new();
        for _ in 0..3 {
            for _ in 0..100 {
                let (waker, _, future) = waits(1);
                tasks.start(Box::pin(future));
                wakers.push(waker);
            }
            tasks.turn(&panics);
            assert_eq!(tasks.places.len(), 101);
            tasks.rest();
            assert_eq!(tasks.places.len(), 101, "all of them run");
            wakers.iter().for_each(|waker| waker.borrow().as_ref().expect("polled").wake_by_ref());
            tasks.turn(&panics);
            tasks.rest();
            assert_eq!(tasks.places.len(), 1);
        }
        // Wakers of what has ended wake nobody.
        wakers.iter().for_each(|waker| waker.borrow().as_ref().expect("polled").wake_by_ref());
        tasks.turn(&panics);
    }
}
