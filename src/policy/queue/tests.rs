use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::policy::start;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Instant {
    start() + ms(millis)
}

fn queue(order: Order, size: u32) -> Queue {
    Queue::new(&Settings { order, size, timeout: Span::from_millis(500) })
}

const FAR: u64 = 3_600_000;

/// Slots come back each so many milliseconds, the last one just now.
fn pace(interval: u64) -> Pace {
    Pace { interval: Some(ms(interval)), silence: Duration::ZERO }
}

fn need(priority: Priority) -> Need {
    Need { priority, deadline: Some(at(FAR)), time: None }
}

impl Queue {
    /// Joins while nothing is known of the pace.
    fn come(&mut self, millis: u64, priority: Priority) -> Result<Joined, Refused> {
        self.join(at(millis), need(priority), Pace::default())
    }

    fn place(&mut self, millis: u64, priority: Priority) -> Ticket {
        self.come(millis, priority).expect("a place").ticket
    }

    fn serves(&mut self, millis: u64) -> Option<Ticket> {
        let mut skipped = Vec::new();
        let next = self.pop(at(millis), None, &mut skipped);
        assert_eq!(skipped, [], "nobody is late");
        next
    }
}

use Priority::{Critical, High, Low, Normal};

#[test]
fn the_most_important_go_first_and_alike_ones_in_their_order() {
    let mut queue = queue(Order::Priority, 10);
    let places = [Low, Normal, Critical, Normal, High].map(|priority| queue.place(0, priority));
    let served: Vec<_> = std::iter::from_fn(|| queue.serves(1)).collect();
    assert_eq!(served, [places[2], places[4], places[1], places[3], places[0]]);
}

#[test]
fn each_eighth_is_the_one_that_has_waited_longest() {
    let mut queue = queue(Order::Priority, 100);
    let low: Vec<_> = (0..3).map(|_| queue.place(0, Low)).collect();
    let served: Vec<_> = (0..24)
        .map(|_| {
            queue.place(1, Critical);
            queue.serves(1)
        })
        .collect();
    let places: Vec<_> = low.iter().map(|low| served.iter().position(|one| *one == Some(*low))).collect();
    assert_eq!(places, [Some(7), Some(15), Some(23)]);
}

#[test]
fn who_matters_more_takes_the_place_of_the_last_of_those_that_matter_least() {
    let mut queue = queue(Order::Priority, 3);
    let [first, _, last] = [Low, Normal, Low].map(|priority| queue.place(0, priority));
    let cases = [
        ("nobody is below", Low, Err(Refused::Full)),
        ("the youngest of the lowest", Normal, Ok(Some(last))),
        ("the other one of them", Critical, Ok(Some(first))),
        ("alike ones stay", Normal, Err(Refused::Full)),
    ];
    for (why, priority, expected) in cases {
        let joined = queue.come(1, priority);
        assert_eq!(joined.map(|joined| joined.evicted), expected, "{why}");
        assert_eq!(queue.depth(), 3, "{why}");
    }
    assert!(!queue.remove(last), "it has left");
}

/// A gRPC call without `grpc-timeout`, say: no answer is too late for it, and nothing but the queue's timeout ends its
/// wait.
#[test]
fn who_has_no_deadline_has_time_for_any_answer() {
    let slow = Some(ms(800));
    let need = |deadline| Need { deadline, time: slow, ..need(Normal) };
    for order in [Order::Priority, Order::Fifo, Order::LifoWhenFull] {
        let mut queue = queue(order, 10);
        assert_eq!(queue.join(at(0), need(Some(at(500))), pace(10)), Err(Refused::Full), "no time left");
        let ticket = queue.join(at(0), need(None), pace(10)).expect("a place").ticket;
        let until = if order == Order::LifoWhenFull { 400 } else { 500 };
        assert_eq!(ticket.until(), at(until), "{order:?}: `timeout` bounds the wait");
        let mut skipped = Vec::new();
        assert_eq!(queue.pop(at(until), slow, &mut skipped), Some(ticket), "{order:?}");
        assert_eq!(
            queue.join(at(500), need(None), pace(501)),
            Err(Refused::Full),
            "{order:?}: waits too long"
        );
    }
}

#[test]
fn others_than_priority_evict_nobody() {
    for order in [Order::Fifo, Order::LifoWhenFull] {
        let mut queue = queue(order, 2);
        let first = queue.place(0, Low);
        let _ = queue.place(0, Normal);
        assert_eq!(queue.come(0, Critical), Err(Refused::Full));
        assert_eq!(queue.serves(1), Some(first), "{order:?}: priority counts for nothing");
    }
}

#[test]
fn the_last_goes_first_once_the_queue_has_stood() {
    let mut queue = queue(Order::LifoWhenFull, 10);
    let places = [0, 40, 96, 99].map(|millis| queue.place(millis, Normal));
    assert_eq!(queue.serves(99), Some(places[0]));
    assert_eq!(queue.serves(99), Some(places[1]));
    let last = queue.place(101, Normal);
    assert_eq!(queue.serves(101), Some(last));
    // The others have waited for what a wait may take: 100 ms for the burst that it might have been.
    let mut skipped = Vec::new();
    assert_eq!(queue.pop(at(105), None, &mut skipped), None);
    assert_eq!(skipped, places[2..]);
    assert_eq!(queue.depth(), 0);
}

#[test]
fn waits_are_short_where_the_last_goes_first() {
    let cases = [
        // why                                   joins  need       until
        ("a burst may last", 0, None, 100),
        ("the same for whoever is late in it", 98, None, 103),
        ("5 ms at least", 200, Some(2), 205),
        ("half of what an attempt takes", 200, Some(30), 215),
        ("never beyond the timeout", 200, Some(4000), 700),
    ];
    for (why, joins, time, until) in cases {
        let mut queue = queue(Order::LifoWhenFull, 10);
        queue.place(0, Normal);
        let need = Need { time: time.map(ms), ..need(Normal) };
        let joined = queue.join(at(joins), need, Pace::default()).expect("a place");
        assert_eq!(joined.ticket.until(), at(until), "{why}");
    }
}

#[test]
fn a_wait_is_the_places_ahead_of_ones_class_by_the_pace() {
    let mut queue = queue(Order::Priority, 100);
    for priority in [Critical, Normal, Normal, Low, Low, Low] {
        queue.place(0, priority);
    }
    let pace = pace(10);
    let cases = [(Critical, 20), (High, 20), (Normal, 40), (Low, 70)];
    for (priority, wait) in cases {
        assert_eq!(queue.wait(at(0), priority, pace), Some(ms(wait)), "{priority:?}");
    }
    assert_eq!(queue.wait(at(0), Critical, Pace::default()), None, "nothing is known");
}

#[test]
fn what_more_important_newcomers_take_makes_the_others_wait_longer() {
    let mut queue = queue(Order::Priority, 1000);
    // Half of the pace goes to critical ones that come meanwhile.
    for n in 0..1000 {
        let priority = if n % 2 == 0 { Critical } else { Low };
        queue.place(n, priority);
        queue.serves(n);
    }
    queue.place(1000, Low);
    let wait = |priority, now| queue.wait(at(now), priority, pace(10)).expect("a pace");
    assert!((ms(35)..ms(45)).contains(&wait(Low, 1000)), "twice 20 ms: {:?}", wait(Low, 1000));
    assert_eq!(wait(Critical, 1000), ms(10));
    assert_eq!(wait(Low, 1000 + 10_000), ms(20), "forgotten");
}

#[test]
fn nothing_comes_sooner_to_a_queue_that_stands_than_the_last_slot_was_long_ago() {
    let mut queue = queue(Order::Priority, 100);
    queue.place(0, Normal);
    let pace = |now| Pace { silence: ms(now), ..pace(1) };
    let cases = [(50, 2), (99, 2), (100, 100), (250, 250)];
    for (now, wait) in cases {
        assert_eq!(queue.wait(at(now), Normal, pace(now)), Some(ms(wait)), "at {now} ms");
    }
}

#[test]
fn what_stands_below_ones_class_refuses_nobody() {
    let mut queue = queue(Order::Priority, 100);
    let low = queue.place(0, Low);
    let high = [150, 160, 170].map(|now| queue.place(now, High));
    // Each case is a newcomer that is not let in, or leaves again.
    let mut comes = |now, priority| {
        let joined = queue.join(at(now), need(priority), pace(10));
        joined.map(|joined| queue.remove(joined.ticket)).is_ok()
    };
    let cases = [
        // why                                            at   priority  enters
        ("four before it, one of them since 180 ms", 180, Low, false),
        ("the same for the class between", 180, Normal, true),
        ("three of its own, since 30 ms", 180, High, true),
        ("since 99 ms", 249, High, true),
        ("they stand too", 250, High, false),
        ("and for those below", 250, Normal, false),
        ("nobody is before it", 250, Critical, true),
    ];
    for (why, now, priority, enters) in cases {
        assert_eq!(comes(now, priority), enters, "{why}");
    }
    assert_eq!(queue.serves(251), Some(high[0]));
    assert!(queue.remove(high[1]) && queue.remove(high[2]));
    (0..3).for_each(|_| _ = queue.place(252, High));
    let late = queue.join(at(260), need(High), pace(10));
    assert!(late.is_ok(), "none of them waited for a moment");
    assert!(queue.remove(low));
}

#[test]
fn a_reload_with_another_order_keeps_everybody() {
    let mut queue = queue(Order::Priority, 100);
    let places = [Low, Normal, Critical].map(|priority| queue.place(0, priority));
    queue.update(&Settings { order: Order::Fifo, size: 1, ..Settings::default() });
    assert_eq!(queue.come(0, Critical), Err(Refused::Full));
    assert_eq!([queue.serves(1), queue.serves(1), queue.serves(1)].map(Option::unwrap), places);
}

/// With 100,000 places each operation costs what it costs with a hundred, generously: misses of the cache cost
/// something, but a step that looked at all would cost a thousand times as much.
#[test]
#[expect(clippy::disallowed_methods, reason = "how long it really takes")]
fn a_long_queue_costs_no_more_than_a_short_one() {
    let run = |length: u32| {
        let mut queue = queue(Order::Priority, length);
        let mut tickets: Vec<_> =
            (0..length).map(|n| queue.place(0, Priority::ALL[1 + n as usize % 3])).collect();
        let mut draws = fastrand::Rng::with_seed(1);
        let begun = Instant::now();
        for n in 0..100_000 {
            // Somebody is evicted or refused, leaves from the middle, is served; and somebody comes.
            match n % 3 {
                0 => drop(queue.come(1, High)),
                1 => drop(queue.remove(tickets.swap_remove(draws.usize(..tickets.len())))),
                _ => drop(queue.serves(1)),
            }
            tickets.extend(queue.come(1, Low).map(|joined| joined.ticket));
        }
        begun.elapsed()
    };
    let (short, long) = (run(100), run(100_000));
    assert!(long < short * 30 + ms(50), "100 places: {short:?}, 100,000: {long:?}");
}

/// What may happen to a queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    /// Of this class, with so much time left.
    Join(usize, u64),
    Pop,
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u64..60).prop_map(Step::Pass),
        6 => (0usize..4, 1u64..3000).prop_map(|(class, left)| Step::Join(class, left)),
        4 => Just(Step::Pop),
        1 => any::<usize>().prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..300)
}

/// One list in order of arrival, searched from end to end.
#[derive(Default)]
struct Model {
    waiting: Vec<(Priority, Ticket, Instant)>,
    since: Option<Instant>,
    served: u32,
}

impl Model {
    fn stands(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now - since >= ms(100))
    }

    /// Who is next in `order`.
    fn next(&self, order: Order, now: Instant) -> Option<usize> {
        let all = 0..self.waiting.len();
        match order {
            Order::Priority if self.served % 8 == 7 => all.min(),
            Order::Priority => all.min_by_key(|place| (self.waiting[*place].0, *place)),
            Order::LifoWhenFull if self.stands(now) => all.max(),
            Order::LifoWhenFull | Order::Fifo => all.min(),
        }
    }

    fn leave(&mut self, place: usize) -> (Priority, Ticket, Instant) {
        let left = self.waiting.remove(place);
        if self.waiting.is_empty() {
            self.since = None;
        }
        left
    }
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Priority), Just(Order::LifoWhenFull), Just(Order::Fifo)]
}

proptest! {
    /// Against one list that is searched from end to end: who is next (strictly by class, each eighth the oldest of
    /// all), who is evicted, who is skipped; nobody gets lost, nobody waits beyond their time and is served, and the
    /// queue is never longer than it may be.
    #[test]
    fn places_are_kept_like_one_list(order in orders(), size in 1u32..8, time in prop::option::of(1u64..50), steps in steps()) {
        let time = time.map(ms);
        let need = time.unwrap_or(UNKNOWN_NEED);
        let (mut queue, mut model, mut now) = (queue(order, size), Model::default(), start());
        for step in steps {
            match step {
                Step::Pass(millis) => now += ms(millis),
                Step::Join(class, left) => {
                    let (priority, deadline) = (Priority::ALL[class], now + ms(left));
                    let joined = queue.join(now, Need { priority, deadline: Some(deadline), time }, Pace::default());
                    let lower = (0..model.waiting.len())
                        .filter(|place| order == Order::Priority && model.waiting[*place].0 > priority)
                        .max_by_key(|place| (model.waiting[*place].0, *place));
                    let is_full = model.waiting.len() == size as usize;
                    match joined {
                        Err(refused) => {
                            prop_assert_eq!(refused, Refused::Full);
                            prop_assert!(ms(left) < need || is_full && lower.is_none());
                        }
                        Ok(Joined { ticket, evicted }) => {
                            prop_assert!(ms(left) >= need);
                            prop_assert!(ticket.until() <= deadline.min(now + ms(500)));
                            let since = *model.since.get_or_insert(now);
                            let expected = lower.filter(|_| is_full).map(|place| model.waiting.remove(place).1);
                            prop_assert_eq!(evicted, expected);
                            if order == Order::LifoWhenFull {
                                let short = ms(5).max(time.unwrap_or_default() / 2);
                                prop_assert!(ticket.until() <= (now + short).max(since + ms(100)));
                            }
                            model.waiting.push((priority, ticket, deadline));
                        }
                    }
                }
                Step::Pop => {
                    let mut skipped = Vec::new();
                    let next = queue.pop(now, time, &mut skipped);
                    let mut skipped = skipped.into_iter();
                    if order == Order::LifoWhenFull && model.stands(now) {
                        while model.waiting.first().is_some_and(|(_, ticket, _)| now > ticket.until()) {
                            prop_assert_eq!(skipped.next(), Some(model.leave(0).1));
                        }
                    }
                    // Who is skipped does not change whose turn it is.
                    let stood = model.since;
                    let served = loop {
                        let Some(place) = model.next(order, now) else { break None };
                        let (_, ticket, deadline) = model.leave(place);
                        if now <= ticket.until() && deadline - now.min(deadline) >= need {
                            break Some(ticket);
                        }
                        prop_assert_eq!(skipped.next(), Some(ticket));
                        model.since = model.since.and(stood);
                    };
                    prop_assert_eq!(skipped.next(), None);
                    prop_assert_eq!(next, served);
                    model.served += u32::from(served.is_some());
                }
                Step::Remove(n) if !model.waiting.is_empty() => {
                    let (_, ticket, _) = model.leave(n % model.waiting.len());
                    prop_assert!(queue.remove(ticket));
                    prop_assert!(!queue.remove(ticket), "its place is free at once, and not its own any more");
                }
                Step::Remove(_) => {}
            }
            prop_assert_eq!(queue.depth(), model.waiting.len());
            prop_assert!(queue.depth() <= size as usize);
        }
    }

    /// Of any eight that are served one after the other, one is whoever had waited longest.
    #[test]
    fn the_oldest_get_an_eighth(classes in prop::collection::vec(0usize..4, 50..300)) {
        let mut queue = queue(Order::Priority, 1000);
        let mut waiting: Vec<Ticket> = Vec::new();
        let mut since_oldest = 0;
        for (n, class) in classes.into_iter().enumerate() {
            waiting.push(queue.place(0, Priority::ALL[class]));
            if n >= 20 {
                let served = queue.serves(1).expect("many wait");
                let place = waiting.iter().position(|ticket| *ticket == served).expect("it waited");
                waiting.remove(place);
                since_oldest = if place == 0 { 0 } else { since_oldest + 1 };
                prop_assert!(since_oldest < 8);
            }
        }
    }
}
