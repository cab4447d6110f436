//! The rules one by one, what must always hold, and three replicas before the faults that an upstream has: made-up
//! time, 600 requests a second.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;
use crate::policy::failure::Verdict;
use crate::telemetry::metrics::{Metrics, Words};
use crate::upstream::standing::instant;
use crate::upstream::{Ask, Observed, Upstream};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Endpoints of one upstream, of these priorities.
fn endpoints(priorities: &[u8]) -> Vec<Peer> {
    let metrics = Metrics::new(1, "", "", Words::default());
    let made = |(number, priority): (usize, &u8)| {
        let address: crate::upstream::endpoint::Address =
            format!("10.0.0.{number}:80").parse().expect("an address");
        let socket = address.socket().expect("it needs no look-up");
        let endpoint = Endpoint::new(address, socket, metrics.endpoint("app", &number.to_string()));
        Peer { endpoint: Arc::new(endpoint), priority: *priority }
    };
    priorities.iter().enumerate().map(made).collect()
}

/// The outlier ejection of some endpoints, and a clock.
struct Bench {
    outlier: Outlier,
    peers: Vec<Peer>,
    now: Instant,
    events: Vec<Event>,
}

impl Bench {
    fn new(settings: &Settings, priorities: &[u8]) -> Self {
        // Nobody has come back before it began.
        let now = Instant::now() + Duration::from_secs(1);
        let outlier = Outlier::new(settings, None, 7);
        Self { outlier, peers: endpoints(priorities), now, events: Vec::new() }
    }

    fn of(count: usize) -> Self {
        Self::new(&Settings::default(), &vec![0; count])
    }

    fn shows(&mut self, endpoint: usize, shown: Shown) {
        self.shows_after(endpoint, shown, ms(5));
    }

    fn shows_after(&mut self, endpoint: usize, shown: Shown, latency: Duration) {
        let attempt = self.peers[endpoint].endpoint.enter(self.now);
        if shown == Shown::Success {
            self.outlier.took(&attempt, latency);
        }
        let events = self.outlier.observe(&attempt, self.now, shown, latency, || self.peers.clone());
        self.events.extend(events);
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
    }

    fn is_out(&self, endpoint: usize) -> bool {
        self.peers[endpoint].endpoint.standing.is_out(Out::Ejected)
    }

    fn out(&self) -> Vec<usize> {
        (0..self.peers.len()).filter(|endpoint| self.is_out(*endpoint)).collect()
    }

    fn until(&self, endpoint: usize) -> Instant {
        self.outlier.ejection(&self.peers[endpoint].endpoint).expect("it is ejected").until
    }

    /// The place of the endpoint that a request may probe now.
    fn probes(&self, may_resend: bool) -> Option<usize> {
        let probed = self.outlier.probe(self.now, may_resend, || self.peers.clone())?;
        self.peers.iter().position(|peer| peer.endpoint.id == probed.id)
    }
}

#[test]
fn so_many_failures_in_a_row_are_no_chance() {
    let many = u64::MAX;
    let cases = [
        // why                           ratio  seen  needed
        ("the peers do not fail", 0.0, many, 5),
        ("once in a hundred", 0.01, many, 5),
        ("a brownout of 20 %", 0.2, many, 9),
        ("the same, of which little was seen", 0.2, 20, 15),
        ("every other request", 0.5, many, 20),
        ("all of them", 1.0, many, u32::MAX),
    ];
    for (why, ratio, seen, needed) in cases {
        assert_eq!(needed_in_a_row(5, ratio, seen), needed, "{why}");
    }
}

#[test]
fn a_share_of_failures_may_be_chance() {
    let tally = |failures, requests| Tally { requests, failures };
    let cases = [
        // why                                            own             peers  seen  no chance
        ("all fail, and the peers' do not", tally(20, 20), 0.0, 20, true),
        ("half of them do", tally(12, 24), 0.0, 48, true),
        ("three of four do", tally(15, 20), 0.0, 20, true),
        ("nothing is known of the peers", tally(15, 20), 0.0, 0, false),
        ("they fail nearly as often", tally(16, 20), 0.5, 40, false),
        ("they do, but this is no small sample", tally(800, 1000), 0.5, 2000, true),
        ("it fails less", tally(10, 20), 0.6, 40, false),
    ];
    for (why, own, ratio, seen, no_chance) in cases {
        assert_eq!(is_no_chance(own, ratio, seen), no_chance, "{why}");
    }
}

#[test]
fn five_failures_in_a_row_eject_with_the_numbers() {
    let mut bench = Bench::of(3);
    for _ in 0..10 {
        bench.shows(1, Shown::Success);
        bench.shows(2, Shown::Success);
    }
    for _ in 0..4 {
        bench.shows(0, Shown::Failure);
    }
    assert!(bench.events.is_empty());
    bench.shows(0, Shown::Failure);
    let [Event { kind: EventKind::Ejected, ejection, .. }] = &bench.events[..] else { panic!("no ejection") };
    assert_eq!(ejection.why, Why::ConsecutiveFailures);
    let expected = Numbers {
        consecutive: Some(5),
        ratio: Some(1.0),
        requests: Some(5),
        peers_ratio: Some(0.0),
        ..Numbers::default()
    };
    assert_eq!(ejection.numbers, expected);
    assert!(ejection.lasts >= ms(1600) && ejection.lasts <= ms(2400), "{:?}", ejection.lasts);
    assert_eq!(bench.out(), [0]);
}

#[test]
fn where_all_fail_at_once_nobody_is_ejected() {
    let mut bench = Bench::of(3);
    for _ in 0..500 {
        (0..3).for_each(|endpoint| bench.shows(endpoint, Shown::Success));
        bench.passes(ms(5));
    }
    for _ in 0..500 {
        (0..3).for_each(|endpoint| bench.shows(endpoint, Shown::Failure));
        bench.passes(ms(5));
    }
    assert_eq!(bench.out(), [0usize; 0]);
}

#[test]
fn where_little_is_seen_of_the_peers_its_own_past_counts() {
    let mut bench = Bench::of(3);
    (0..10).for_each(|_| bench.shows(1, Shown::Success));
    for count in 0..200 {
        bench.shows(0, if count % 4 == 0 { Shown::Failure } else { Shown::Success });
    }
    let fail = |bench: &mut Bench, times| {
        (0..times).for_each(|_| {
            bench.shows(0, Shown::Failure);
            bench.passes(ms(10));
        });
    };
    fail(&mut bench, 8);
    assert_eq!(bench.out(), [0usize; 0], "it fails often, and so may they");
    fail(&mut bench, 8);
    assert_eq!(bench.out(), [0], "never so often");
}

#[test]
fn every_other_failure_is_found_by_its_share() {
    let mut bench = Bench::of(3);
    for count in 0..40 {
        bench.shows(0, if count % 2 == 0 { Shown::Failure } else { Shown::Success });
        (1..3).for_each(|endpoint| bench.shows(endpoint, Shown::Success));
        bench.passes(ms(20));
    }
    assert_eq!(bench.events.first().map(|event| event.ejection.why), Some(Why::FailureRatio));
    assert_eq!(bench.out(), [0]);
}

#[test]
fn a_crawling_endpoint_is_ejected_within_a_second() {
    let mut bench = Bench::of(3);
    let mut millis = 0;
    while bench.out().is_empty() && millis < 3000 {
        bench.shows_after(0, Shown::Success, ms(60));
        (1..3).for_each(|endpoint| bench.shows_after(endpoint, Shown::Success, ms(5)));
        bench.passes(ms(5));
        millis += 5;
    }
    assert_eq!(bench.out(), [0]);
    let ejection = &bench.events[0].ejection;
    assert_eq!(ejection.why, Why::Slow);
    assert!(ejection.numbers.p50_ms > Some(50.0) && ejection.numbers.peers_p50_ms < Some(6.0));
    assert!(millis <= 1000, "{millis} ms");
}

#[test]
fn what_is_slow_must_be_slow_for_people_and_have_peers() {
    let cases = [
        // why                                     endpoints  slow  usual
        ("four times as slow, but 15 ms are nothing", 3, 20, 5),
        ("three times as slow", 3, 150, 50),
        ("one peer says too little", 2, 500, 5),
    ];
    for (why, count, slow, usual) in cases {
        let mut bench = Bench::of(count);
        for _ in 0..1000 {
            bench.shows_after(0, Shown::Success, ms(slow));
            (1..count).for_each(|endpoint| bench.shows_after(endpoint, Shown::Success, ms(usual)));
            bench.passes(ms(5));
        }
        assert_eq!(bench.out(), [0usize; 0], "{why}");
    }
}

#[test]
fn two_bad_of_five_are_found() {
    let mut failing = Bench::of(5);
    let mut slow = Bench::of(5);
    for count in 0..600 {
        for endpoint in 0..5 {
            let is_bad = endpoint < 2;
            failing.shows(endpoint, if is_bad && count % 3 > 0 { Shown::Failure } else { Shown::Success });
            slow.shows_after(endpoint, Shown::Success, if is_bad { ms(100) } else { ms(5) });
        }
        failing.passes(ms(5));
        slow.passes(ms(5));
    }
    assert_eq!(failing.out(), [0, 1]);
    assert_eq!(slow.out(), [0, 1]);
}

#[test]
fn a_single_endpoint_is_never_ejected_and_the_last_one_stays() {
    let all = Settings { max_ejected: Ratio::ONE, ..Settings::default() };
    let mut single = Bench::new(&all, &[0]);
    (0..100).for_each(|_| single.shows(0, Shown::Failure));
    assert_eq!(single.out(), [0usize; 0]);

    let mut main_and_spare = Bench::new(&all, &[0, 1]);
    (0..10).for_each(|_| main_and_spare.shows(0, Shown::Failure));
    assert_eq!(main_and_spare.out(), [0], "the spare one serves");
    (0..100).for_each(|_| main_and_spare.shows(1, Shown::Failure));
    assert_eq!(main_and_spare.out(), [0]);

    let mut unhealthy = Bench::of(2);
    unhealthy.peers[1].endpoint.standing.set(Out::Unhealthy, true, unhealthy.now);
    (0..100).for_each(|_| unhealthy.shows(0, Shown::Failure));
    assert_eq!(unhealthy.out(), [0usize; 0], "the other one is out already");
}

#[test]
fn back_by_one_probe_after_a_growing_time() {
    let mut bench = Bench::of(3);
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    assert_eq!(bench.probes(true), None, "its time is not over");
    let mut times = Vec::new();
    for _ in 0..20 {
        bench.now = bench.until(0);
        times.push(bench.outlier.ejection(&bench.peers[0].endpoint).expect("it is out").lasts.as_secs_f64());
        assert_eq!(bench.probes(false), None, "not by what cannot be sent again");
        assert_eq!(bench.probes(true), Some(0));
        assert_eq!(bench.probes(true), None, "one at a time");
        bench.shows(0, Shown::Failure);
    }
    let mut out_for = 0.0;
    for time in &times {
        let usual: f64 = (out_for / 5.0f64).clamp(2.0, 60.0);
        assert!((usual * 0.799..=usual * 1.201).contains(time), "{times:?}");
        out_for += time;
    }
    assert!(out_for > 60.0, "it grows: {times:?}");
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), Some(0));
    bench.shows(0, Shown::Success);
    assert_eq!(bench.out(), [0usize; 0]);
    let since = instant(bench.peers[0].endpoint.standing.in_service_since());
    assert!(bench.now - since < ms(1), "slow start counts from here");
    assert_eq!(bench.events.last().map(|event| event.kind), Some(EventKind::Returned));
}

#[test]
fn what_was_asked_before_says_nothing_after() {
    let mut bench = Bench::of(3);
    let old: Vec<_> = (0..20).map(|_| bench.peers[0].endpoint.enter(bench.now)).collect();
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), Some(0));
    let peers = bench.peers.clone();
    let tell =
        |attempt: &InFlight, shown, now| bench.outlier.observe(attempt, now, shown, ms(5), || peers.clone());
    assert!(tell(&old[0], Shown::Success, bench.now).is_empty(), "it is not the probe's answer");
    assert!(bench.is_out(0));
    let probe = bench.peers[0].endpoint.enter(bench.now);
    assert_eq!(tell(&probe, Shown::Success, bench.now).len(), 1);
    for attempt in &old {
        assert!(tell(attempt, Shown::Failure, bench.now).is_empty());
    }
    assert!(!bench.is_out(0));
}

#[test]
fn a_probe_without_an_outcome_is_followed_by_another() {
    let mut bench = Bench::of(3);
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), Some(0));
    bench.shows(0, Shown::Nothing);
    assert_eq!(bench.probes(true), Some(0), "its client left");
    assert_eq!(bench.probes(true), None);
    bench.passes(LEASE);
    assert_eq!(bench.probes(true), Some(0), "it never came back");
}

#[test]
fn where_nothing_can_be_sent_again_anything_probes_later() {
    let mut bench = Bench::of(3);
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    let lasts = bench.outlier.ejection(&bench.peers[0].endpoint).expect("it is out").lasts;
    bench.now = bench.until(0) + lasts - ms(1);
    assert_eq!(bench.probes(false), None);
    bench.passes(ms(1));
    assert_eq!(bench.probes(false), Some(0));
}

#[test]
fn a_probe_that_crawls_has_failed() {
    let mut bench = Bench::of(3);
    while bench.out().is_empty() {
        bench.shows_after(0, Shown::Success, ms(200));
        (1..3).for_each(|endpoint| bench.shows_after(endpoint, Shown::Success, ms(5)));
        bench.passes(ms(5));
    }
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), Some(0));
    bench.shows_after(0, Shown::Success, ms(200));
    assert!(bench.is_out(0));
    assert_eq!(bench.events.last().map(|event| event.ejection.why), Some(Why::ProbeFailed));
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), Some(0));
    bench.shows_after(0, Shown::Success, ms(6));
    assert!(!bench.is_out(0));
}

#[test]
fn good_service_makes_up_for_ejections() {
    let mut bench = Bench::of(3);
    let mut eject = |after: Duration| {
        bench.passes(after);
        (0..5).for_each(|_| bench.shows(0, Shown::Failure));
        let lasts = bench.outlier.ejection(&bench.peers[0].endpoint).expect("it is out").lasts;
        bench.now = bench.until(0);
        assert_eq!(bench.probes(true), Some(0));
        bench.shows(0, Shown::Success);
        lasts.as_secs_f64()
    };
    let times = [0, 1, 1, 61, 200].map(|seconds| eject(Duration::from_secs(seconds)));
    for (time, usual) in times.iter().zip([2.0, 4.0, 8.0, 8.0, 2.0]) {
        assert!((usual * 0.8..=usual * 1.2).contains(time), "{times:?}");
    }
}

#[test]
fn a_check_brings_back_only_what_checks_had_failed_too() {
    let mut bench = Bench::of(3);
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    let endpoint = Arc::clone(&bench.peers[0].endpoint);
    endpoint.standing.set(Out::Unhealthy, true, bench.now);
    bench.outlier.adopt(&bench.peers, bench.now);
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), None, "its check fails: no request is risked");
    endpoint.standing.set(Out::Unhealthy, false, bench.now);
    let event = bench.outlier.check_recovered(&endpoint, bench.now);
    assert_eq!(event.map(|event| event.kind), Some(EventKind::Returned));
    assert!(endpoint.standing.is_in_service());
}

#[test]
fn a_priority_that_fails_gives_way_to_those_that_stand_by() {
    // A primary and its standby: the primary may go, though it is the only one of its priority.
    let mut bench = Bench::new(&Settings::default(), &[0, 1]);
    (0..40).for_each(|_| bench.shows(0, Shown::Failure));
    assert_eq!(bench.out(), [0usize]);
    (0..40).for_each(|_| bench.shows(1, Shown::Failure));
    assert_eq!(bench.out(), [0usize], "one always stays");

    // Of two primaries both may, if the bound says so.
    let settings = Settings { max_ejected: Ratio::new(1.0), ..Settings::default() };
    let mut bench = Bench::new(&settings, &[0, 0, 1]);
    for _ in 0..60 {
        bench.shows(0, Shown::Failure);
        bench.shows(1, Shown::Failure);
        bench.passes(ms(20));
    }
    assert_eq!(bench.out(), [0usize, 1]);
}

#[test]
fn a_probe_of_a_far_endpoint_is_not_held_against_the_near_ones() {
    // Two near ones of 2 ms, two far ones of 80 ms that stand by.
    let mut bench = Bench::new(&Settings::default(), &[0, 0, 1, 1]);
    for _ in 0..100 {
        (0..2).for_each(|near| bench.shows_after(near, Shown::Success, ms(2)));
        (2..4).for_each(|far| bench.shows_after(far, Shown::Success, ms(80)));
        bench.passes(ms(20));
    }
    (0..40).for_each(|_| bench.shows(2, Shown::Failure));
    assert_eq!(bench.out(), [2usize]);
    bench.now = bench.until(2);
    assert_eq!(bench.probes(true), Some(2));
    bench.shows_after(2, Shown::Success, ms(80));
    assert_eq!(bench.out(), [0usize; 0]);
}

#[test]
fn a_verdict_that_is_refused_silences_no_other_endpoint() {
    // One of four may go, in each of two priorities.
    let settings = Settings { max_ejected: Ratio::new(0.25), ..Settings::default() };
    let mut bench = Bench::new(&settings, &[0, 0, 0, 0, 1, 1, 1, 1]);
    for endpoint in [0, 1, 4] {
        (0..5).for_each(|_| bench.shows(endpoint, Shown::Failure));
    }
    assert_eq!(bench.out(), [0usize, 4], "all in the same moment");
}

#[test]
fn an_endpoint_may_ask_to_be_taken_out() {
    let mut bench = Bench::of(3);
    let attempt = bench.peers[0].endpoint.enter(bench.now);
    let event = bench.outlier.immediate_fail(&attempt, bench.now, &bench.peers).expect("it goes");
    assert_eq!(event.ejection.why, Why::ImmediateFail);
    bench.now = bench.until(0);
    assert_eq!(bench.probes(true), Some(0));
    let probe = bench.peers[0].endpoint.enter(bench.now);
    let event = bench.outlier.immediate_fail(&probe, bench.now, &bench.peers).expect("it stays out");
    assert_eq!(event.ejection.why, Why::ProbeFailed);
    let single = Bench::of(1);
    let attempt = single.peers[0].endpoint.enter(single.now);
    assert!(single.outlier.immediate_fail(&attempt, single.now, &single.peers).is_none());
}

#[test]
fn in_shadow_all_is_decided_and_nobody_is_out() {
    let shadow = Settings { mode: Mode::Shadow, ..Settings::default() };
    let mut bench = Bench::new(&shadow, &[0, 0, 0]);
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    assert_eq!(bench.events.len(), 1);
    assert!(!bench.events[0].ejection.enforced && bench.out().is_empty());
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    assert_eq!(bench.events.len(), 1, "it would be out");
    bench.passes(ms(2500));
    assert_eq!(bench.probes(true), None);
    bench.shows(1, Shown::Success);
    assert_eq!(bench.events.last().map(|event| event.kind), Some(EventKind::Returned));
}

#[test]
fn a_reload_keeps_what_is_out_unless_it_says_otherwise() {
    let mut bench = Bench::of(4);
    (0..5).for_each(|_| bench.shows(0, Shown::Failure));
    bench.outlier = Outlier::new(&Settings::default(), Some(&bench.outlier), 1);
    assert!(bench.outlier.adopt(&bench.peers, bench.now).is_empty());
    assert_eq!(bench.out(), [0]);
    let off = Settings { mode: Mode::Off, ..Settings::default() };
    bench.outlier = Outlier::new(&off, Some(&bench.outlier), 1);
    assert_eq!(bench.outlier.adopt(&bench.peers, bench.now).len(), 1);
    assert_eq!(bench.out(), [0usize; 0]);
}

/// Something that happens to some endpoint.
#[derive(Clone, Debug)]
enum Step {
    Shows(usize, bool, u64),
    Passes(u64),
    Probe(bool),
    AsksOut(usize),
    ChecksSay(usize, bool),
    Leaves(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..6, any::<bool>(), 1u64..300).prop_map(|(at, good, millis)| Step::Shows(at, good, millis)),
        3 => (0usize..6, 1u64..3).prop_map(|(at, _)| Step::Shows(at, false, 5)),
        3 => (1u64..3000).prop_map(Step::Passes),
        2 => any::<bool>().prop_map(Step::Probe),
        1 => (0usize..6).prop_map(Step::AsksOut),
        1 => (0usize..6, any::<bool>()).prop_map(|(at, good)| Step::ChecksSay(at, good)),
        1 => (0usize..6).prop_map(Step::Leaves),
    ]
}

proptest! {
    /// Whatever comes in whatever order: no more than the bound are out, and one stays.
    #[test]
    fn the_bound_always_holds_and_one_stays(
        priorities in prop::collection::vec(0u8..2, 1..6),
        share in 0.0..=1.0f64,
        steps in prop::collection::vec((step(), 1u32..8), 0..120),
    ) {
        let settings = Settings { max_ejected: Ratio::new(share), ..Settings::default() };
        let mut bench = Bench::new(&settings, &priorities);
        for (step, times) in steps {
            for _ in 0..times {
                let count = bench.peers.len();
                match step {
                    Step::Shows(at, good, millis) => {
                        let shown = if good { Shown::Success } else { Shown::Failure };
                        bench.shows_after(at % count, shown, ms(millis));
                    }
                    Step::Passes(millis) => bench.passes(ms(millis)),
                    Step::Probe(may_resend) => drop(bench.probes(may_resend)),
                    Step::AsksOut(at) => {
                        let attempt = bench.peers[at % count].endpoint.enter(bench.now);
                        bench.outlier.immediate_fail(&attempt, bench.now, &bench.peers);
                    }
                    Step::ChecksSay(at, good) => {
                        // Not all at once: what checks do to the last one is theirs.
                        if good || at % count != 0 {
                            bench.peers[at % count].endpoint.standing.set(Out::Unhealthy, !good, bench.now);
                        }
                    }
                    Step::Leaves(at) if count > 1 => {
                        bench.peers.remove(at % count);
                        bench.outlier.adopt(&bench.peers, bench.now);
                    }
                    Step::Leaves(_) => {}
                }
                for priority in 0..2 {
                    let of: Vec<_> = bench.peers.iter().filter(|peer| peer.priority == priority).collect();
                    let out = of.iter().filter(|peer| peer.endpoint.standing.is_out(Out::Ejected)).count();
                    // One may where others stand by.
                    let others = f64::from(u8::from(of.len() < bench.peers.len()));
                    let most = (share * of.len() as f64 + 1e-6).max(others);
                    prop_assert!(out as f64 <= most, "{out} of {}", of.len());
                }
                prop_assert!(bench.out().len() < bench.peers.len(), "nobody is left");
            }
        }
    }

    /// Endpoints that are alike are not told apart, whatever they do, by shares of failures and by slowness.
    #[test]
    fn equal_endpoints_are_never_ejected_for_difference(
        count in 2usize..7,
        ratio in 0.0..0.9f64,
        millis in 1.0..200.0f64,
        rates in prop::collection::vec(1u32..6, 7),
        phases in prop::collection::vec((0.2..8.0f64, 200u64..4000), 1..6),
        seed: u64,
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        // Runs of failures are another rule's affair.
        let settings = Settings { consecutive_failures: 64, ..Settings::default() };
        let mut bench = Bench::new(&settings, &vec![0; count]);
        for (slower, lasts) in phases {
            for _ in 0..lasts / 20 {
                for (endpoint, rate) in rates.iter().enumerate().take(count) {
                    for _ in 0..*rate {
                        let shown = if random.f64() < ratio { Shown::Failure } else { Shown::Success };
                        let latency = Duration::from_secs_f64(millis * slower * (0.5 + random.f64()) / 1000.0);
                        bench.shows_after(endpoint, shown, latency);
                    }
                }
                bench.passes(ms(20));
            }
        }
        let why: Vec<_> = bench.events.iter().map(|event| event.ejection.why).collect();
        prop_assert_eq!(why, vec![]);
    }
}

#[test]
fn who_is_not_in_the_rollout_goes_on_as_before() {
    let mut replicas = Replicas::new(Fault::Fails(1.0), 0..1, (0.0, 1.0), 3);
    let first = Arc::clone(&replicas.upstream.endpoints().usable[0].endpoint);
    replicas.upstream.immediate_fail(&first.enter(replicas.at(1.0)), replicas.at(1.0));
    let mut asked = [0, 0];
    for (place, heeds_ejections) in [true, false].into_iter().enumerate() {
        for _ in 0..900 {
            let draw = replicas.random.u64(..);
            let now = replicas.at(1.1);
            let ask =
                Ask { tried: &[], draw, key: None, now, may_probe: false, heeds_ejections, unreached: false };
            let endpoint = replicas.upstream.choose(&ask).expect("there are three");
            asked[place] += usize::from(replicas.place(&endpoint) == 0);
        }
    }
    assert_eq!(asked[0], 0);
    assert!((200..400).contains(&asked[1]), "{asked:?}");
}

/// What is wrong with a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Its answers take so much longer.
    Slower(Duration),
    /// This share of its answers are failures, at once.
    Fails(f64),
    /// It takes connections and requests and never answers.
    Silent,
    /// Its answers break off in their body.
    Resets,
    /// Nobody listens.
    Refuses,
}

/// What a request came to.
#[derive(Clone, Copy, Debug)]
struct Done {
    sent: f64,
    took: f64,
    ok: bool,
}

/// Three replicas with some 5 ms of service time, and an attempt timeout of 100 ms.
struct Replicas {
    upstream: Upstream,
    random: fastrand::Rng,
    /// Which replicas have the fault.
    faulty: std::ops::Range<usize>,
    fault: Fault,
    from: f64,
    to: f64,
    done: Vec<Done>,
    /// When an attempt went to which replica.
    attempts: Vec<(f64, usize)>,
    start: Instant,
}

/// An attempt, or the wait before the next one.
struct Flight {
    sent: f64,
    tried: Vec<u64>,
    attempt: Option<InFlight>,
    verdict: Verdict,
    latency: Duration,
    connect: bool,
    may_follow: bool,
}

const REPLICAS: usize = 3;
const RATE: f64 = 600.0;
const TIMEOUT: f64 = 0.1;

impl Replicas {
    fn new(fault: Fault, faulty: std::ops::Range<usize>, (from, to): (f64, f64), seed: u64) -> Self {
        let addresses: Vec<String> = (1..=REPLICAS).map(|number| format!("\"10.0.0.{number}:80\"")).collect();
        let text = format!("endpoints = [{}]", addresses.join(", "));
        let settings = toml::from_str(&text).expect("settings");
        let metrics = Metrics::new(1, "", "", Words::default());
        Self {
            upstream: Upstream::new("app", settings, None, &metrics),
            random: fastrand::Rng::with_seed(seed),
            faulty,
            fault,
            from,
            to,
            done: Vec::new(),
            attempts: Vec::new(),
            start: Instant::now() + Duration::from_secs(1),
        }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// How an attempt at the replica `place` ends that begins at `now`: after how long, with what verdict, and whether
    /// another may follow.
    fn serve(&mut self, place: usize, now: f64) -> (f64, Verdict, bool, bool) {
        let usual = 0.005 * (0.6 + 0.8 * self.random.f64());
        let is_faulty = self.faulty.contains(&place) && (self.from..self.to).contains(&now);
        match self.fault {
            _ if !is_faulty => (usual, Verdict::Success, false, false),
            Fault::Slower(by) if usual + by.as_secs_f64() > TIMEOUT => {
                (TIMEOUT, Verdict::Failure, false, true)
            }
            Fault::Slower(by) => (usual + by.as_secs_f64(), Verdict::Success, false, false),
            Fault::Fails(share) if self.random.f64() < share => (0.001, Verdict::Failure, false, true),
            Fault::Fails(_) => (usual, Verdict::Success, false, false),
            Fault::Silent => (TIMEOUT, Verdict::Failure, false, true),
            Fault::Resets => (usual, Verdict::Failure, false, false),
            Fault::Refuses => (0.0005, Verdict::Ignored, true, true),
        }
    }

    fn run(mut self, seconds: f64) -> Self {
        let mut flights: Vec<Flight> = Vec::new();
        // Times in nanoseconds, since floating ones have no order; then the flight, `usize::MAX` for an arrival.
        let mut queue = BinaryHeap::from([Reverse((0u64, usize::MAX))]);
        let nano = |seconds: f64| (seconds * 1e9) as u64;
        while let Some(Reverse((at, which))) = queue.pop() {
            let now = at as f64 / 1e9;
            let which = if which == usize::MAX {
                let gap = -(1.0 - self.random.f64()).ln() / RATE;
                if now + gap < seconds {
                    queue.push(Reverse((nano(now + gap), usize::MAX)));
                }
                let (verdict, latency) = (Verdict::Ignored, Duration::ZERO);
                let flight = Flight {
                    sent: now,
                    tried: Vec::new(),
                    attempt: None,
                    verdict,
                    latency,
                    connect: false,
                    may_follow: false,
                };
                flights.push(flight);
                flights.len() - 1
            } else {
                which
            };
            if let Some(attempt) = flights[which].attempt.take() {
                let flight = &flights[which];
                let (verdict, latency, connect) = (flight.verdict, flight.latency, flight.connect);
                let time = self.at(now);
                if verdict == Verdict::Success || self.fault == Fault::Resets {
                    let head = Observed::Head { verdict: Verdict::Success, latency };
                    self.upstream.observe(&attempt, time, head);
                }
                self.upstream.observe(
                    &attempt,
                    time,
                    Observed::End { verdict, latency, connect, retry_after: Duration::ZERO },
                );
                if verdict == Verdict::Success || !flight.may_follow || flight.tried.len() == 4 {
                    let ok = verdict == Verdict::Success;
                    self.done.push(Done { sent: flight.sent, took: now - flight.sent, ok });
                } else {
                    let wait = if connect { 0.0 } else { 0.025 * self.random.f64() };
                    queue.push(Reverse((nano(now + wait), which)));
                }
                continue;
            }
            let ask = Ask {
                unreached: false,
                tried: &flights[which].tried,
                draw: self.random.u64(..),
                key: None,
                now: self.at(now),
                may_probe: flights[which].tried.is_empty(),
                heeds_ejections: true,
            };
            let endpoint = self.upstream.choose(&ask).expect("there are three");
            let place = self.place(&endpoint);
            self.attempts.push((now, place));
            let (takes, verdict, connect, may_follow) = self.serve(place, now);
            let begins = self.at(now);
            let flight = &mut flights[which];
            flight.tried.push(endpoint.id);
            flight.attempt = Some(endpoint.enter(begins));
            (flight.verdict, flight.connect, flight.may_follow) = (verdict, connect, may_follow);
            flight.latency = Duration::from_secs_f64(takes);
            queue.push(Reverse((nano(now + takes), which)));
        }
        self
    }

    fn place(&self, endpoint: &Endpoint) -> usize {
        let endpoints = self.upstream.endpoints();
        endpoints.usable.iter().position(|choice| choice.endpoint.id == endpoint.id).expect("one of them")
    }

    /// Of the requests sent from `from` to `to`: the 99th percentile in seconds, and the share of errors.
    fn suffered(&self, from: f64, to: f64) -> (f64, f64) {
        let of: Vec<_> = self.done.iter().filter(|done| (from..to).contains(&done.sent)).collect();
        let mut took: Vec<f64> = of.iter().map(|done| done.took).collect();
        took.sort_unstable_by(f64::total_cmp);
        let errors = of.iter().filter(|done| !done.ok).count();
        (took[took.len() * 99 / 100], errors as f64 / of.len() as f64)
    }

    /// The share of attempts from `from` to `to` that went to the replica `place`.
    fn share(&self, place: usize, from: f64, to: f64) -> f64 {
        let of: Vec<_> = self.attempts.iter().filter(|(at, _)| (from..to).contains(at)).collect();
        of.iter().filter(|(_, to)| *to == place).count() as f64 / of.len() as f64
    }

    /// When the replica got an attempt and never less than ten in the second behind it.
    fn back_at(&self, place: usize) -> f64 {
        let of: Vec<f64> = self.attempts.iter().filter(|(_, to)| *to == place).map(|(at, _)| *at).collect();
        let busy = |at: f64| of.iter().filter(|other| (at..at + 1.0).contains(*other)).count() >= 10;
        of.iter().copied().find(|at| *at >= self.to && busy(*at)).unwrap_or(f64::INFINITY)
    }

    fn ejections(&self) -> u64 {
        let endpoints = self.upstream.endpoints();
        let of = |endpoint: &Endpoint| {
            Why::ALL.into_iter().map(|why| endpoint.metrics.ejections(why).get()).sum::<u64>()
        };
        endpoints.usable.iter().map(|choice| of(&choice.endpoint)).sum()
    }
}

#[test]
fn one_replica_a_second_slower() {
    for (fault, lasts) in
        [(Fault::Slower(ms(1000)), 10.0), (Fault::Slower(ms(1000)), 12.5), (Fault::Silent, 15.0)]
    {
        for seed in 0..4 {
            let end = 2.0 + lasts;
            let run = Replicas::new(fault, 0..1, (2.0, end), seed).run(end + 12.0);
            let (p99, errors) = run.suffered(2.5, end);
            assert!(p99 < 0.05, "{fault:?}, {lasts} s: p99 {p99} s");
            assert_eq!(run.suffered(0.0, 30.0).1 + errors, 0.0, "{fault:?}");
            let share = run.share(0, 4.0, end);
            assert!(share < 0.005, "{fault:?}: {share} of all still go there");
            let back = run.back_at(0) - end;
            assert!(back < 10.0, "{fault:?}, {lasts} s, seed {seed}: back after {back} s");
        }
    }
}

#[test]
fn one_replica_crawls_below_the_timeout() {
    for seed in 0..4 {
        let run = Replicas::new(Fault::Slower(ms(60)), 0..1, (2.0, 14.0), seed).run(26.0);
        let (p99, _) = run.suffered(3.5, 14.0);
        assert!(p99 < 0.05, "p99 {p99} s");
        assert!(run.back_at(0) - 14.0 < 10.0);
    }
}

#[test]
fn one_replica_answers_500_at_once() {
    for seed in 0..4 {
        let run = Replicas::new(Fault::Fails(1.0), 0..1, (2.0, 14.0), seed).run(20.0);
        assert_eq!(run.suffered(0.0, 20.0).1, 0.0);
        let share = run.share(0, 2.0, 14.0);
        assert!(share < 0.01, "{share} of all go there");
        assert!(run.share(0, 12.0, 14.0) < 0.01);
        let load = run.attempts.len() as f64 / run.done.len() as f64;
        assert!(load < 1.02, "{load} x load");
    }
}

#[test]
fn a_brownout_everywhere_ejects_nobody() {
    let mut ejections = 0;
    for seed in 0..40 {
        ejections += Replicas::new(Fault::Fails(0.2), 0..3, (2.0, 32.0), seed).run(34.0).ejections();
    }
    // By the bound on chance itself: 1e-6 for each of some 0.5 million runs, and none that would be an outage.
    assert!(ejections <= 3, "{ejections}");
}

#[test]
fn all_refuse_and_come_back() {
    for seed in 0..4 {
        let run = Replicas::new(Fault::Refuses, 0..3, (2.0, 12.0), seed).run(20.0);
        let back = run.done.iter().filter(|done| done.ok && done.sent > 12.0).map(|done| done.sent);
        assert!(back.fold(f64::INFINITY, f64::min) < 12.05);
        assert_eq!(run.suffered(12.01, 20.0).1, 0.0);
    }
}

#[test]
fn one_replica_resets_every_answer() {
    for seed in 0..4 {
        let run = Replicas::new(Fault::Resets, 0..1, (2.0, 14.0), seed).run(20.0);
        let (_, errors) = run.suffered(3.0, 14.0);
        assert!(errors < 0.01, "{errors} of all break off");
    }
}
