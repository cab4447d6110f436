use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::policy::start;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Instant {
    start() + ms(millis)
}

fn settings(max: u32, size: u32, timeout: u64) -> Settings {
    Settings {
        limit: limit::Settings::Fixed { max },
        queue: queue::Settings { size, timeout: Span::from_millis(timeout), ..queue::Settings::default() },
        ..Settings::default()
    }
}

fn gate(max: u32, size: u32) -> Gate {
    Gate::new(&settings(max, size, 500), start(), 1)
}

const FAR: u64 = 3_600_000;

fn asked(now: Instant, deadline: Instant) -> Ask {
    Ask { now, deadline: Some(deadline), priority: Priority::Normal, may_queue: true, p50: None }
}

impl Gate {
    /// Enters with an hour left and nothing known of the upstream.
    fn ask(&mut self, millis: u64) -> Entry {
        self.come(at(millis), at(FAR), None)
    }

    fn come(&mut self, now: Instant, deadline: Instant, p50: Option<Duration>) -> Entry {
        self.enter(&Ask { p50, ..asked(now, deadline) })
    }

    fn wait_in(&mut self, millis: u64) -> Ticket {
        match self.ask(millis) {
            Entry::Queued { ticket, evicted: None } => ticket,
            other => panic!("a place in the queue, not {other:?}"),
        }
    }

    /// A slot comes back, of an attempt that has shown nothing.
    fn back(&mut self, millis: u64) -> Leave {
        self.leave(at(millis), None, None)
    }
}

fn reason(entry: Entry) -> Option<Reason> {
    if let Entry::Rejected { reason, .. } = entry { Some(reason) } else { None }
}

#[test]
fn slots_come_first_then_places_then_nothing() {
    let mut gate = gate(2, 1);
    assert_eq!([gate.ask(0), gate.ask(0)], [Entry::Slot, Entry::Slot]);
    let first = gate.wait_in(0);
    assert_eq!(reason(gate.ask(0)), Some(Reason::QueueFull));
    assert_eq!((gate.in_flight(), gate.limit(), gate.depth()), (2, 2, 1));
    assert_eq!(gate.back(10), Leave { next: Some(first), skipped: vec![] });
    assert_eq!((gate.in_flight(), gate.depth()), (2, 0), "the slot went over");
}

#[test]
fn who_may_not_queue_does_not() {
    let mut no_queue = gate(1, 0);
    assert_eq!(no_queue.ask(0), Entry::Slot);
    assert_eq!(reason(no_queue.ask(0)), Some(Reason::ConcurrencyLimited));

    let mut gate = gate(1, 10);
    assert_eq!(gate.ask(0), Entry::Slot);
    let retry = gate.enter(&Ask { may_queue: false, ..asked(at(0), at(FAR)) });
    assert_eq!(reason(retry), Some(Reason::ConcurrencyLimited));
}

/// A full gate whose slots come back each 10 ms, the last just now (at 100 ms), with four waiting since then.
fn busy() -> Gate {
    let mut gate = gate(1, 100);
    assert_eq!(gate.ask(0), Entry::Slot);
    for n in 1..=10 {
        let _ = gate.wait_in(n * 10);
        assert!(gate.back(n * 10).next.is_some());
    }
    (0..4).for_each(|_| _ = gate.wait_in(100));
    gate
}

#[test]
fn who_cannot_be_served_in_time_is_refused_at_entry() {
    // The fifth place comes up in 50 ms.
    let cases = [
        // why                                       at   deadline  p50    refused, to wait for
        ("enough time", 100, 200, None, None),
        ("no time after the wait", 100, 150, None, Some(50)),
        ("5 ms after the wait will do", 100, 155, None, None),
        ("half of them need longer", 100, 200, Some(60), Some(50)),
        ("no slot came for 20 ms: a hiccup", 120, 200, None, None),
        ("no slot came for 40 ms: the pace is what exceeds a hiccup", 140, 240, None, Some(100)),
        ("it has stood for 99 ms", 199, 800, None, None),
        ("it has stood for 100 ms, and no slot came", 200, 800, None, Some(400)),
        ("then half of p50 is short enough", 200, 1500, Some(800), None),
    ];
    for (why, now, deadline, p50, refused) in cases {
        let mut gate = busy();
        // Somebody asks each 5 ms, so that a silence is seen to be one.
        (100..now).step_by(5).for_each(|millis| gate.settle(at(millis)));
        let entry = gate.come(at(now), at(deadline), p50.map(ms));
        match refused {
            None => assert!(matches!(entry, Entry::Queued { .. }), "{why}: {entry:?}"),
            Some(wait) => assert_eq!(
                entry,
                Entry::Rejected { reason: Reason::QueueFull, retry_after: Some(ms(wait)) },
                "{why}"
            ),
        }
    }
}

#[test]
fn a_wait_longer_than_the_timeout_is_refused_at_entry() {
    let mut gate = busy();
    gate.update(&settings(1, 100, 40));
    assert_eq!(reason(gate.ask(100)), Some(Reason::QueueFull));
}

#[test]
fn before_any_slot_came_back_the_wait_follows_littles_law() {
    let mut gate = gate(10, 100);
    (0..10).for_each(|_| assert_eq!(gate.ask(0), Entry::Slot));
    let entry = gate.come(at(0), at(1), Some(ms(200)));
    assert_eq!(entry, Entry::Rejected { reason: Reason::QueueFull, retry_after: Some(ms(20)) });
}

#[test]
fn a_queue_that_was_empty_in_between_does_not_stand() {
    let mut gate = busy();
    for n in 0..4 {
        assert!(gate.back(110 + n * 10).next.is_some());
    }
    (0..4).for_each(|_| _ = gate.wait_in(150));
    assert!(matches!(gate.come(at(220), at(1000), None), Entry::Queued { .. }), "it stands since 150 ms");
}

#[test]
fn whoever_is_next_is_not_refused_because_others_stand() {
    let asked = asked(at(230), at(1000));
    let mut gate = busy();
    assert_eq!(reason(gate.enter(&asked)), Some(Reason::QueueFull), "four of its kind stand since 100 ms");
    let critical = gate.enter(&Ask { priority: Priority::Critical, ..asked });
    let Entry::Queued { ticket, evicted: None } = critical else { panic!("{critical:?}") };
    assert_eq!(gate.back(231).next, Some(ticket));
}

/// A gate with a learnt limit of 4, all of it taken at 0.
fn learnt() -> Gate {
    let limit = limit::Settings::Gradient { initial: 4, min: 4, max: 4 };
    let mut gate = Gate::new(&Settings { limit, ..settings(4, 10, 500) }, start(), 1);
    (0..4).for_each(|_| assert_eq!(gate.ask(0), Entry::Slot));
    gate
}

fn served(began: u64, millis: u64) -> Option<Sample> {
    Some(Sample { began: at(began), latency: ms(millis - began), lesson: Lesson::Served })
}

#[test]
fn what_was_given_up_keeps_its_slot_until_a_later_attempt_is_answered() {
    let mut gate = learnt();
    let waits = gate.wait_in(1);
    assert_eq!(gate.give_up_on(at(10), at(5), None, None), Leave::default(), "it is still worked on");
    // Answers to what was sent before it say nothing of it: each frees its own slot alone.
    assert_eq!(gate.leave(at(11), served(4, 11), None).next, Some(waits));
    assert_eq!((gate.in_flight(), gate.depth()), (4, 0));
    let (first, second) = (gate.wait_in(12), gate.wait_in(12));
    assert_eq!(gate.leave(at(13), served(6, 13), None).next, Some(first));
    assert_eq!(gate.grant(at(13), None).next, Some(second), "the slot of what was given up");
    assert_eq!(gate.in_flight(), 4);
}

#[test]
fn what_was_given_up_keeps_its_slot_for_a_quarter_of_a_second_at_most() {
    let mut gate = learnt();
    (0..4).for_each(|_| assert!(gate.give_up_on(at(200), at(0), None, None).is_empty()));
    let waits = gate.wait_in(300);
    gate.settle(at(449));
    assert_eq!((gate.in_flight(), gate.grant(at(449), None)), (4, Leave::default()));
    gate.settle(at(450));
    assert_eq!((gate.in_flight(), gate.grant(at(450), None).next), (0, Some(waits)));
    assert_eq!(gate.ask(700), Entry::Slot, "and whoever comes looks too");
}

#[test]
fn what_a_fast_upstream_was_to_do_it_has_done_soon() {
    let mut gate = learnt();
    assert!(gate.give_up_on(at(100), at(0), None, None).is_empty(), "this one had its time");
    assert!(gate.give_up_on(at(100), at(97), None, None).is_empty());
    gate.settle(at(105));
    assert_eq!(gate.in_flight(), 4);
    gate.settle(at(106));
    assert_eq!(gate.in_flight(), 3, "twice as long as it had had");
}

#[test]
fn a_limit_that_somebody_wrote_is_for_attempts_so_their_slots_come_back_at_once() {
    let mut gate = gate(1, 10);
    assert_eq!(gate.ask(0), Entry::Slot);
    let waits = gate.wait_in(1);
    assert_eq!(gate.give_up_on(at(2), at(0), None, None).next, Some(waits));
}

#[test]
fn who_gives_up_does_not_make_the_queue_look_fast() {
    let mut gate = learnt();
    (0..4).for_each(|_| _ = gate.wait_in(0));
    for n in 1..=4 {
        let _ = gate.leave(at(n * 10), served(0, n * 10), None);
    }
    (0..4).for_each(|_| _ = gate.give_up_on(at(41), at(30), None, None));
    assert_eq!(gate.wait(at(45), Priority::Normal, None), Some(ms(10)), "as fast as answers were");
    (45..=90).step_by(5).for_each(|millis| gate.settle(at(millis)));
    assert_eq!(gate.wait(at(90), Priority::Normal, None), Some(ms(30)), "and nothing was answered since");
}

#[test]
fn a_process_that_stood_still_has_seen_no_silence() {
    let mut gate = busy();
    gate.settle(at(100));
    let entry = gate.come(at(160), at(260), None);
    assert!(matches!(entry, Entry::Queued { .. }), "what came back meanwhile is not read yet: {entry:?}");
}

#[test]
fn who_cannot_make_it_any_more_is_skipped_at_exit() {
    let mut gate = gate(1, 10);
    assert_eq!(gate.ask(0), Entry::Slot);
    let mut enter = |deadline| match gate.come(at(0), at(deadline), Some(ms(20))) {
        Entry::Queued { ticket, .. } => ticket,
        other => panic!("a place in the queue, not {other:?}"),
    };
    let (late, tight, fine) = (enter(50), enter(119), enter(120));
    assert_eq!(
        gate.leave(at(100), None, Some(ms(20))),
        Leave { next: Some(fine), skipped: vec![late, tight] }
    );
}

#[test]
fn nobody_waits_longer_than_the_timeout_or_their_own_time() {
    let mut gate = gate(1, 10);
    assert_eq!(gate.ask(0), Entry::Slot);
    assert_eq!(gate.wait_in(7).until(), at(507));
    let hasty = gate.come(at(7), at(300), None);
    assert!(matches!(hasty, Entry::Queued { ticket, .. } if ticket.until() == at(300)));
}

#[test]
fn who_leaves_frees_their_place_at_once() {
    let mut gate = gate(1, 2);
    assert_eq!(gate.ask(0), Entry::Slot);
    let (first, second) = (gate.wait_in(0), gate.wait_in(0));
    assert!(gate.give_up(first));
    assert!(!gate.give_up(first), "it has left");
    let third = gate.wait_in(0);
    assert_eq!(gate.back(1).next, Some(second));
    assert!(!gate.give_up(second), "it has a slot, and must leave");
    assert_eq!(gate.back(1).next, Some(third));
    assert_eq!(gate.back(1).next, None);
    assert_eq!((gate.in_flight(), gate.depth()), (0, 0));
}

#[test]
fn a_reload_keeps_slots_and_places() {
    let mut gate = gate(2, 10);
    let _ = (gate.ask(0), gate.ask(0));
    let (first, second) = (gate.wait_in(0), gate.wait_in(0));
    gate.update(&settings(4, 1, 500));
    assert_eq!(gate.grant(at(1), None).next, Some(first));
    assert_eq!(gate.grant(at(1), None).next, Some(second));
    assert_eq!(gate.grant(at(1), None), Leave::default());
    gate.update(&settings(1, 1, 500));
    let third = gate.wait_in(1);
    for _ in 0..3 {
        assert_eq!(gate.back(2).next, None, "still above the limit");
    }
    assert_eq!(gate.back(2).next, Some(third));
}

#[test]
fn who_waits_for_its_client_lends_its_slot_and_takes_one_without_asking() {
    let mut gate = gate(1, 10);
    assert_eq!(gate.ask(0), Entry::Slot);
    let waits = gate.wait_in(10);
    assert_eq!(gate.lend(at(50), ms(50), None).next, Some(waits));
    gate.take_back(at(60));
    assert_eq!(gate.in_flight(), 2, "the upstream has both");
    let next = gate.wait_in(60);
    assert!(gate.back(70).is_empty(), "still all that may be");
    assert_eq!(gate.back(80).next, Some(next));
    assert!(gate.lend(at(90), ms(10), None).is_empty());
    assert_eq!((gate.in_flight(), gate.depth()), (0, 0), "it ended while it was lent");
}

#[test]
fn who_waits_for_its_client_is_no_silence_of_the_upstream() {
    let mut gate = known(100);
    for n in 0..8 {
        assert_eq!(gate.ask(2000), Entry::Slot);
        let _ = gate.lend(at(2050), ms(50), None);
        assert_eq!(gate.ask(3000 + n), Entry::Slot);
        let _ = gate.leave(at(3000 + n), served(3000 + n, 3000 + n), None);
    }
    assert_eq!(gate.in_flight(), 0);
}

/// What may happen to a gate.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    /// With so much time left.
    Enter(u64, bool),
    Leave,
    /// So many milliseconds after it was entered, perhaps.
    Lend(u64),
    TakeBack,
    GiveUp(usize),
    Update(u32, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u64..100).prop_map(Step::Pass),
        6 => (1u64..3000, prop::bool::weighted(0.9)).prop_map(|(left, may_queue)| Step::Enter(left, may_queue)),
        4 => Just(Step::Leave),
        2 => (0u64..100).prop_map(Step::Lend),
        1 => Just(Step::TakeBack),
        1 => any::<usize>().prop_map(Step::GiveUp),
        1 => (1u32..6, 0u32..6).prop_map(|(max, size)| Step::Update(max, size)),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// Against two lists: no slot leaks, none is given beyond the limit, nobody overtakes, and the queue is no
    /// longer than it may be. What was lent is taken back whatever the limit says.
    #[test]
    fn slots_and_places_are_kept_like_two_lists(
        (max, size, is_learnt) in (1u32..6, 0u32..6, any::<bool>()),
        p50 in prop::option::of(1u64..50),
        steps in steps(),
    ) {
        let p50 = p50.map(ms);
        let settings = |max, size| {
            let limit = limit::Settings::Gradient { initial: max, min: max, max };
            let fixed = settings(max, size, 500);
            if is_learnt { Settings { limit, ..fixed } } else { fixed }
        };
        let mut gate = Gate::new(&settings(max, size), start(), 1);
        let mut lent = 0u32;
        let (mut now, mut slots, mut waiting) = (start(), 0u32, VecDeque::<(Ticket, Instant)>::new());
        let (mut limit, mut places) = (max, size as usize);
        for step in steps {
            let mut granted = Vec::new();
            match step {
                Step::Pass(millis) => now += ms(millis),
                Step::Enter(left, may_queue) => {
                    let deadline = now + ms(left);
                    match gate.enter(&Ask { may_queue, p50, ..asked(now, deadline) }) {
                        Entry::Slot => {
                            prop_assert!(waiting.is_empty(), "a newcomer overtook");
                            slots += 1;
                            prop_assert!(slots <= limit);
                        }
                        Entry::Queued { ticket, evicted } => {
                            prop_assert!(evicted.is_none(), "all matter alike");
                            prop_assert!(may_queue && ticket.until() <= deadline.min(now + ms(500)));
                            waiting.push_back((ticket, deadline));
                            prop_assert!(waiting.len() <= places);
                        }
                        Entry::Rejected { .. } => prop_assert!(slots >= limit || !waiting.is_empty()),
                    }
                }
                Step::Leave if slots > 0 => {
                    slots -= 1;
                    granted.push(gate.leave(now, None, p50));
                }
                Step::Lend(held) if slots > 0 => {
                    (slots, lent) = (slots - 1, lent + 1);
                    granted.push(gate.lend(now, ms(held), p50));
                }
                Step::TakeBack if lent > 0 => {
                    (slots, lent) = (slots + 1, lent - 1);
                    gate.take_back(now);
                }
                Step::Leave | Step::Lend(_) | Step::TakeBack => {}
                Step::GiveUp(n) if !waiting.is_empty() => {
                    let (ticket, _) = waiting.remove(n % waiting.len()).expect("it is within");
                    prop_assert!(gate.give_up(ticket));
                }
                Step::GiveUp(_) => {}
                Step::Update(max, size) => {
                    (limit, places) = (max, size as usize);
                    gate.update(&settings(max, size));
                    granted.extend(std::iter::from_fn(|| Some(gate.grant(now, p50)).filter(|leave| !leave.is_empty())));
                }
            }
            for leave in granted {
                let (skipped, next) = (leave.skipped, leave.next);
                for ticket in skipped {
                    let (first, deadline) = waiting.pop_front().expect("somebody waited");
                    prop_assert_eq!(first, ticket);
                    prop_assert!(now > ticket.until() || deadline.saturating_duration_since(now) < p50.unwrap_or(ms(5)));
                }
                if let Some(ticket) = next {
                    prop_assert_eq!(waiting.pop_front().map(|(first, _)| first), Some(ticket));
                    slots += 1;
                    prop_assert!(slots <= limit);
                } else {
                    prop_assert!(waiting.is_empty() || slots >= limit, "a slot is free and somebody waits");
                }
            }
            prop_assert_eq!((gate.in_flight(), gate.depth()), (slots, waiting.len()));
        }
    }
}

/// What an overloaded upstream's clients saw.
#[derive(Debug, Default)]
struct Seen {
    served: u32,
    in_time: u32,
    rejected: u32,
    timed_out: u32,
    longest_wait: Duration,
}

/// Twice as many requests as 20 slots can do in 50 ms each, for 20 s; each has `patience`.
fn overload(patience: Duration) -> Seen {
    let mut gate = Gate::new(&settings(20, 100, 500), start(), 1);
    let mut draws = fastrand::Rng::with_seed(3);
    let (mut seen, mut now) = (Seen::default(), start());
    let mut in_service: Vec<(Instant, Instant)> = Vec::new(); // ends, deadline
    let mut waiting: VecDeque<(Ticket, Instant, Instant)> = VecDeque::new(); // came, deadline
    let p50 = Some(ms(50));
    let mut next_arrival = now;
    while now < at(20_000) {
        let done =
            in_service.iter().enumerate().min_by_key(|(_, (ends, _))| *ends).map(|(n, (ends, _))| (n, *ends));
        let service = |draws: &mut fastrand::Rng| ms(50).mul_f64(0.5 + draws.f64());
        match done {
            Some((n, ends)) if ends <= next_arrival => {
                now = ends;
                let (_, deadline) = in_service.swap_remove(n);
                seen.served += 1;
                seen.in_time += u32::from(now <= deadline);
                let leave = gate.leave(now, None, p50);
                for _ in leave.skipped {
                    waiting.pop_front();
                    seen.timed_out += 1;
                }
                if leave.next.is_some() {
                    let (_, came, deadline) = waiting.pop_front().expect("first come, first served");
                    seen.longest_wait = seen.longest_wait.max(now - came);
                    in_service.push((now + service(&mut draws), deadline));
                }
            }
            _ => {
                now = next_arrival;
                // Poisson, 800 a second.
                next_arrival += Duration::from_secs_f64(-(1.0 - draws.f64()).ln() / 800.0);
                let deadline = now + patience;
                match gate.come(now, deadline, p50) {
                    Entry::Slot => in_service.push((now + service(&mut draws), deadline)),
                    Entry::Queued { ticket, .. } => waiting.push_back((ticket, now, deadline)),
                    Entry::Rejected { retry_after, .. } => {
                        assert!(retry_after.is_some(), "who is refused is told when to come back");
                        seen.rejected += 1;
                    }
                }
            }
        }
    }
    seen
}

#[test]
fn at_twice_the_capacity_those_who_are_served_meet_their_deadlines() {
    for patience in [ms(250), ms(500), ms(1000)] {
        let seen = overload(patience);
        assert!(f64::from(seen.in_time) >= 0.99 * f64::from(seen.served), "{patience:?}: {seen:?}");
        // 400 a second are possible.
        assert!(seen.served >= 20 * 380, "{patience:?}: {seen:?}");
        assert!(seen.rejected > 100 * seen.timed_out, "refused at entry, not after a wait: {seen:?}");
    }
}

#[test]
fn a_standing_queue_keeps_waits_short() {
    let seen = overload(ms(1000));
    assert!(seen.longest_wait <= ms(300), "{seen:?}");
}

/// A gate that knows its upstream: 64 answers of 10 ms each, the last one a second before `at(2000)`.
fn known(max: u32) -> Gate {
    let mut gate = gate(max, 10);
    for n in 0..64 {
        assert_eq!(gate.ask(n * 10), Entry::Slot);
        let _ = gate.leave(at(n * 10 + 10), served(n * 10, n * 10 + 10), None);
    }
    gate
}

#[test]
fn into_a_silent_upstream_one_is_let_through_each_100_ms() {
    let mut gate = known(100);
    (0..4).for_each(|_| assert_eq!(gate.ask(2000), Entry::Slot));
    assert_eq!(gate.ask(2040), Entry::Slot, "no silence yet");
    assert_eq!(gate.ask(2060), Entry::Slot, "whoever finds it goes to see");
    let waits = gate.wait_in(2061);
    assert!(gate.grant(at(2100), None).is_empty());
    assert_eq!(gate.grant(at(2161), None).next, Some(waits), "the next one to see");

    let (first, second) = (gate.wait_in(2162), gate.wait_in(2163));
    assert_eq!(gate.leave(at(2170), served(2161, 2170), None).next, Some(first), "an answer: it is over");
    assert_eq!(gate.grant(at(2170), None).next, Some(second));
}

#[test]
fn beside_a_few_that_take_long_nobody_waits() {
    let mut gate = known(100);
    (0..4).for_each(|_| assert_eq!(gate.ask(2000), Entry::Slot));
    for n in 0..20 {
        let asked = 2200 + n * 300;
        assert_eq!(gate.ask(asked), Entry::Slot, "{n}");
        let _ = gate.leave(at(asked + 10), served(asked, asked + 10), None);
    }
}

#[test]
fn bodies_that_flow_are_no_silence() {
    let mut gate = known(100);
    (0..8).for_each(|_| {
        assert_eq!(gate.ask(2000), Entry::Slot);
        gate.answered(at(2010), served(2000, 2010).expect("a sample"));
    });
    (0..8).for_each(|n| assert_eq!(gate.ask(3000 + n), Entry::Slot, "{n}"));
    for n in 0..8 {
        gate.body_ends();
        let _ = gate.back(3010 + n);
    }
    assert_eq!(gate.in_flight(), 8);
}

/// The upstream does 800 a second, and twice as many ask: what `critical` and `high` ask for together it can do, less
/// the eighth for who has waited longest.
#[test]
fn who_matters_is_not_refused_for_a_queue_of_those_who_matter_less() {
    const WORK: Duration = Duration::from_millis(10);
    const RATES: [f64; 4] = [200.0, 350.0, 800.0, 200.0];
    let mut draws = fastrand::Rng::with_seed(7);
    let mut wait = |rate: f64| Duration::from_secs_f64(-(1.0 - draws.f64()).ln() / rate);
    let mut gate = gate(8, 100);
    let mut next = RATES.map(|rate| start() + wait(rate));
    let mut ends: VecDeque<Instant> = VecDeque::new();
    let mut waiting: Vec<Ticket> = Vec::new();
    let (mut asked_for, mut refused) = ([0u32; 4], [0u32; 4]);
    loop {
        let class = (0..4).min_by_key(|class| next[*class]).expect("there are four");
        let now = next[class];
        if now > at(30_000) {
            break;
        }
        if let Some(end) = ends.front().copied().filter(|end| *end <= now) {
            ends.pop_front();
            waiting.retain(|ticket| ticket.until() >= end || !gate.give_up(*ticket));
            let leave = gate.leave(end, None, Some(WORK));
            waiting.retain(|ticket| Some(*ticket) != leave.next && !leave.skipped.contains(ticket));
            ends.extend(leave.next.map(|_| end + WORK));
            continue;
        }
        next[class] = now + wait(RATES[class]);
        let priority = Priority::ALL[class];
        let ask = Ask { now, deadline: None, priority, may_queue: true, p50: Some(WORK) };
        asked_for[class] += 1;
        match gate.enter(&ask) {
            Entry::Slot => ends.push_back(now + WORK),
            Entry::Queued { ticket, evicted } => {
                waiting.retain(|waits| Some(*waits) != evicted);
                waiting.push(ticket);
            }
            Entry::Rejected { .. } => refused[class] += 1,
        }
    }
    assert_eq!(refused[..2], [0, 0], "{refused:?} of {asked_for:?}");
}
