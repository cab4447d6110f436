use std::collections::VecDeque;
use std::sync::Mutex as StdMutex;

use proptest::prelude::*;

use super::*;
use crate::policy::start;

const LEASE: Duration = Duration::from_secs(5);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An outcome of the only endpoint.
fn outcome(verdict: Verdict) -> Outcome {
    Outcome { verdict, latency: ms(10), endpoint: 0, endpoints: 1, connect_timeout: false }
}

/// A breaker under test: its clock, and what it told.
struct Bench {
    breaker: Arc<Breaker>,
    now: Instant,
    told: Arc<StdMutex<Vec<Transition>>>,
}

impl Bench {
    fn new(settings: &Settings) -> Bench {
        let told = Arc::new(StdMutex::new(Vec::new()));
        let ear = Arc::clone(&told);
        let breaker = Breaker::new(settings, start())
            .observe(Box::new(move |transition| ear.lock().expect("one thread").push(transition)));
        Bench { breaker: Arc::new(breaker), now: start(), told }
    }

    fn pass(&mut self, time: Duration) -> &mut Bench {
        self.now += time;
        self
    }

    /// Asks with a draw that no ramp lets through unless all pass.
    fn ask(&self) -> Result<Permit, Rejection> {
        self.breaker.admit(self.now, 0.5, LEASE)
    }

    /// One attempt for each verdict, as far as they are let through.
    fn run(&mut self, verdicts: impl IntoIterator<Item = Verdict>) -> &mut Bench {
        for verdict in verdicts {
            if let Ok(permit) = self.ask() {
                permit.record(self.now, outcome(verdict));
            }
        }
        self
    }

    fn fail(&mut self, times: usize) -> &mut Bench {
        self.run(std::iter::repeat_n(Verdict::Failure, times))
    }

    fn succeed(&mut self, times: usize) -> &mut Bench {
        self.run(std::iter::repeat_n(Verdict::Success, times))
    }

    fn state(&self) -> StateKind {
        self.breaker.view(self.now).state
    }

    fn told(&self) -> Vec<StateKind> {
        self.told.lock().expect("one thread").iter().map(|transition| transition.to).collect()
    }

    fn last_told(&self) -> Transition {
        *self.told.lock().expect("one thread").last().expect("a transition")
    }
}

/// Open for exactly its base: a draw of 0.5 is no jitter.
fn tripped(settings: &Settings) -> Bench {
    let mut bench = Bench::new(settings);
    bench.fail(20);
    assert_eq!(bench.state(), StateKind::Open);
    bench
}

/// Half-open after a second.
fn probing(settings: &Settings) -> Bench {
    let mut bench = tripped(settings);
    bench.pass(ms(1000));
    drop(bench.ask().expect("time is up: a probe"));
    assert_eq!(bench.state(), StateKind::HalfOpen);
    bench
}

/// Ramping, after it was dark for twelve seconds at 20 requests a second.
fn ramping() -> Bench {
    let settings = Settings {
        open_for: OpenFor { base: Span::from_secs(12), ..OpenFor::default() },
        ..Settings::default()
    };
    let mut bench = tripped(&settings);
    for _ in 0..240 {
        bench.pass(ms(50));
        drop(bench.ask());
    }
    bench.succeed(5);
    assert_eq!(bench.state(), StateKind::Ramping);
    bench
}

#[test]
fn it_opens_where_the_ratio_is_reached_by_enough_outcomes() {
    let count = |size| Settings { window: Window::Count { size }, ..Settings::default() };
    let slow = Settings { slow_request: Some(Span::from_millis(5)), ..Settings::default() };
    let ratio = |ratio| Settings { failure_ratio: Ratio::new(ratio), ..Settings::default() };
    let cases = [
        // why                                              settings            good  bad  opens
        ("too few outcomes", Settings::default(), 0, 19, false),
        ("enough of them", Settings::default(), 0, 20, true),
        ("half of them", Settings::default(), 10, 10, true),
        ("less than half", Settings::default(), 11, 10, false),
        ("3 of 10 times 0.1 is 0.3", ratio(0.3), 14, 6, true),
        ("all must fail, one does not", ratio(1.0), 1, 40, false),
        ("a ratio of nothing still needs a failure", ratio(0.0), 40, 0, false),
        ("the last 30 of 60", count(30), 30, 30, true),
        ("a window that holds fewer than min_requests", count(10), 0, 10, true),
        ("such a window, not yet full", count(10), 0, 9, false),
        ("all are slow", slow, 20, 0, true),
    ];
    for (why, settings, good, bad, opens) in cases {
        let mut bench = Bench::new(&settings);
        bench.succeed(good).fail(bad);
        assert_eq!(bench.state() == StateKind::Open, opens, "{why}");
    }
}

#[test]
fn what_the_classifier_ignores_does_not_count() {
    let mut bench = Bench::new(&Settings::default());
    bench.run([Verdict::Ignored, Verdict::Throttled].into_iter().cycle().take(1000)).fail(19);
    let view = bench.breaker.view(bench.now);
    assert_eq!((view.state, view.counted, view.failures), (StateKind::Closed, 19, 19));
}

#[test]
fn a_connect_timeout_is_a_failure_whatever_the_verdict() {
    let bench = Bench::new(&Settings::default());
    for _ in 0..20 {
        let timed_out = Outcome { connect_timeout: true, ..outcome(Verdict::Ignored) };
        bench.ask().expect("closed").record(bench.now, timed_out);
    }
    assert_eq!(bench.state(), StateKind::Open);
}

#[test]
fn outcomes_older_than_the_window_do_not_count() {
    let mut bench = Bench::new(&Settings::default());
    bench.fail(15).pass(ms(10_001)).fail(15);
    assert_eq!(bench.state(), StateKind::Closed);
}

#[test]
fn of_several_endpoints_at_least_two_must_fail() {
    let cases: [(&str, &[u32], u32, bool); 5] = [
        // why                                         failing endpoints   usable  opens
        ("one rotten endpoint of three", &[1], 3, false),
        ("two of three", &[1, 2], 3, true),
        ("the only one that is usable", &[1], 1, true),
        ("the only one there is", &[0], 1, true),
        ("none is usable any more", &[0], 0, true),
    ];
    for (why, failing, endpoints, opens) in cases {
        let bench = Bench::new(&Settings::default());
        for endpoint in failing.iter().cycle().take(30) {
            if let Ok(permit) = bench.ask() {
                permit.record(
                    bench.now,
                    Outcome { endpoint: *endpoint, endpoints, ..outcome(Verdict::Failure) },
                );
            }
        }
        assert_eq!(bench.state() == StateKind::Open, opens, "{why}");
    }
}

#[test]
fn a_second_failing_endpoint_that_has_left_the_window_does_not_count() {
    let mut bench = Bench::new(&Settings::default());
    let fail = |bench: &Bench, endpoint| {
        if let Ok(permit) = bench.ask() {
            permit.record(bench.now, Outcome { endpoint, endpoints: 2, ..outcome(Verdict::Failure) });
        }
    };
    fail(&bench, 0);
    bench.pass(ms(11_000));
    (0..30).for_each(|_| fail(&bench, 1));
    assert_eq!(bench.state(), StateKind::Closed);
    fail(&bench, 0);
    assert_eq!(bench.state(), StateKind::Open);
}

#[test]
fn while_open_it_says_when_to_come_back() {
    let mut bench = tripped(&Settings::default());
    bench.pass(ms(400));
    assert_eq!(bench.ask().expect_err("open"), Rejection { retry_after: Some(ms(600)) });
    bench.pass(ms(600));
    assert!(bench.ask().is_ok(), "time is up");
}

#[test]
fn the_open_time_doubles_to_max_and_begins_anew_after_it_worked_that_long() {
    let mut bench = Bench::new(&Settings::default());
    let mut open_for = Vec::new();
    for _ in 0..7 {
        bench.fail(20);
        let time = bench.last_told().open_for.expect("open");
        open_for.push(time.as_secs());
        bench.pass(time).succeed(5);
        // At less than ten requests a second probes alone close it.
        assert_eq!(bench.state(), StateKind::Closed);
    }
    assert_eq!(open_for, [1, 2, 4, 8, 16, 30, 30]);
    bench.pass(ms(29_000)).fail(20);
    assert_eq!(bench.last_told().open_for, Some(ms(30_000)), "it had not worked for `max`");
    bench.pass(ms(30_000)).succeed(5).pass(ms(30_000)).fail(20);
    assert_eq!(bench.last_told().open_for, Some(ms(1000)), "it had");
}

#[test]
fn probes_are_bounded_and_no_more_than_are_needed() {
    let bench = probing(&Settings::default());
    let mut permits: Vec<_> = (0..5).map(|_| bench.ask().expect("a probe")).collect();
    assert!(bench.ask().is_err(), "five are in flight");
    permits.pop().expect("five").record(bench.now, outcome(Verdict::Success));
    assert!(bench.ask().is_err(), "four in flight and one good answer suffice");
    drop(permits.pop());
    assert!(bench.ask().is_ok(), "a dropped probe returns its place");
}

#[test]
fn one_failed_probe_opens_it_for_longer() {
    let mut bench = probing(&Settings::default());
    bench.succeed(4).fail(1);
    let Transition { from, to, open_for, .. } = bench.last_told();
    assert_eq!((from, to, open_for), (StateKind::HalfOpen, StateKind::Open, Some(ms(2000))));
}

#[test]
fn a_probe_that_never_comes_back_counts_as_failed_after_its_lease() {
    let mut bench = probing(&Settings::default());
    let forgotten = bench.ask().expect("a probe");
    bench.pass(LEASE - ms(1));
    assert!(bench.ask().is_ok());
    assert_eq!(bench.state(), StateKind::HalfOpen);
    bench.pass(ms(1));
    assert!(bench.ask().is_err());
    assert_eq!(bench.last_told().open_for, Some(ms(2000)));
    drop(forgotten);
    assert_eq!(bench.state(), StateKind::Open);
}

#[test]
fn a_probe_whose_request_body_still_flows_may_take_longer() {
    let mut bench = probing(&Settings::default());
    let upload = bench.ask().expect("a probe");
    for _ in 0..10 {
        bench.pass(LEASE - ms(1));
        upload.renew(bench.now, LEASE);
    }
    upload.record(bench.now, outcome(Verdict::Success));
    bench.succeed(4);
    assert_eq!(bench.state(), StateKind::Closed);
}

#[test]
fn probes_that_say_nothing_leave_it_half_open_and_those_that_were_throttled_close_it() {
    let mut bench = probing(&Settings::default());
    bench.run(std::iter::repeat_n(Verdict::Ignored, 100));
    assert_eq!(bench.state(), StateKind::HalfOpen);
    bench.run(std::iter::repeat_n(Verdict::Throttled, 5));
    assert_eq!(bench.state(), StateKind::Closed, "an upstream that says 429 lives");
}

#[test]
fn slow_probes_open_it_again_where_slow_ones_opened_it() {
    let settings = Settings { slow_request: Some(Span::from_millis(5)), ..Settings::default() };
    let mut bench = probing(&settings);
    bench.succeed(4);
    assert_eq!(bench.state(), StateKind::HalfOpen);
    bench.succeed(1);
    assert_eq!(bench.state(), StateKind::Open, "all five were slow");
}

#[test]
fn among_probes_too_one_rotten_endpoint_is_not_the_upstream() {
    type Probes = &'static [(u32, Verdict)];
    let cases: [(&str, Probes, StateKind); 3] = [
        (
            "one endpoint fails, the others answer",
            &[
                (0, Verdict::Failure),
                (1, Verdict::Success),
                (2, Verdict::Success),
                (0, Verdict::Failure),
                (1, Verdict::Success),
                (2, Verdict::Success),
                (1, Verdict::Success),
            ],
            StateKind::Closed,
        ),
        ("two fail", &[(1, Verdict::Success), (0, Verdict::Failure), (2, Verdict::Failure)], StateKind::Open),
        ("one fails again and again, and no other is asked", &[(0, Verdict::Failure); 5], StateKind::Open),
    ];
    for (why, probes, state) in cases {
        let bench = probing(&Settings::default());
        for (endpoint, verdict) in probes {
            let permit = bench.ask().expect(why);
            permit.record(bench.now, Outcome { endpoint: *endpoint, endpoints: 3, ..outcome(*verdict) });
        }
        assert_eq!(bench.state(), state, "{why}");
    }
}

#[test]
fn answers_from_before_a_transition_change_nothing() {
    let mut bench = Bench::new(&Settings::default());
    let mut old: VecDeque<_> = (0..40).map(|_| bench.ask().expect("closed")).collect();
    let settle = |old: &mut VecDeque<Permit>, bench: &Bench, verdict| {
        old.drain(..10).for_each(|permit| permit.record(bench.now, outcome(verdict)));
    };
    bench.fail(20);
    settle(&mut old, &bench, Verdict::Success);
    assert_eq!(bench.state(), StateKind::Open);
    bench.pass(ms(1000));
    drop(bench.ask());
    settle(&mut old, &bench, Verdict::Success);
    assert_eq!(bench.state(), StateKind::HalfOpen, "late answers do not close it");
    settle(&mut old, &bench, Verdict::Failure);
    assert_eq!(bench.state(), StateKind::HalfOpen, "late failures do not open it");
    bench.succeed(5);
    settle(&mut old, &bench, Verdict::Failure);
    assert_eq!(bench.breaker.view(bench.now).counted, 0);
}

#[test]
fn after_a_long_time_under_traffic_it_lets_more_through_step_by_step() {
    let mut bench = ramping();
    let mut shares = Vec::new();
    while bench.state() == StateKind::Ramping {
        let passed =
            (0..100).filter(|n| bench.breaker.admit(bench.now, f64::from(*n) / 100.0, LEASE).is_ok()).count();
        shares.push(passed);
        bench.pass(ms(1000));
        drop(bench.ask());
    }
    assert_eq!(shares, [10, 20, 40, 80]);
    assert_eq!(bench.state(), StateKind::Closed);
}

#[test]
fn twenty_outcomes_end_a_step_before_its_second_is_over() {
    let bench = ramping();
    for step in RAMP {
        assert_eq!(bench.breaker.view(bench.now).admitted, step);
        for _ in 0..20 {
            let permit = bench.breaker.admit(bench.now, 0.0, LEASE).expect("below every share");
            permit.record(bench.now, outcome(Verdict::Success));
        }
    }
    assert_eq!(bench.state(), StateKind::Closed);
}

#[test]
fn a_step_over_the_threshold_opens_it_for_longer() {
    let mut bench = ramping();
    for verdict in [Verdict::Success, Verdict::Failure].into_iter().cycle().take(10) {
        let permit = bench.breaker.admit(bench.now, 0.05, LEASE).expect("in the share");
        permit.record(bench.now, outcome(verdict));
    }
    assert_eq!(bench.state(), StateKind::Ramping, "the step is not over");
    bench.pass(ms(1000));
    assert!(bench.breaker.admit(bench.now, 0.5, LEASE).is_err());
    let Transition { from, to, failures, counted, open_for, .. } = bench.last_told();
    assert_eq!((from, to), (StateKind::Ramping, StateKind::Open));
    assert_eq!((failures, counted, open_for), (5, 10, Some(ms(24_000))));
}

#[test]
fn one_failure_alone_does_not_end_a_ramp() {
    let mut bench = ramping();
    for _ in 0..4 {
        let permit = bench.breaker.admit(bench.now, 0.05, LEASE).expect("in the share");
        permit.record(
            bench.now,
            outcome(if bench.told().len() == 3 { Verdict::Success } else { Verdict::Failure }),
        );
        bench.pass(ms(1000));
    }
    drop(bench.ask());
    assert_eq!(bench.state(), StateKind::Closed);
}

#[test]
fn probes_alone_close_it_where_traffic_is_low_or_the_time_was_short() {
    let settings = |base| Settings {
        open_for: OpenFor { base: Span::from_secs(base), ..OpenFor::default() },
        ..Settings::default()
    };
    let cases = [
        // why                          open  each ms  after the probes
        ("9.5 s open, 20 a second", 9, 50, StateKind::Closed),
        ("12 s open, 2 a second", 12, 500, StateKind::Closed),
        ("12 s open, 20 a second", 12, 50, StateKind::Ramping),
    ];
    for (why, base, each, state) in cases {
        let mut bench = tripped(&settings(base));
        while bench.told().len() == 1 {
            bench.pass(ms(each));
            drop(bench.ask());
        }
        bench.succeed(5);
        assert_eq!(bench.state(), state, "{why}");
    }
}

#[test]
fn after_connect_timeouts_a_bare_connect_each_100_ms_finds_out() {
    let mut bench = Bench::new(&Settings::default());
    for _ in 0..20 {
        let timed_out = Outcome { connect_timeout: true, ..outcome(Verdict::Failure) };
        bench.ask().expect("closed").record(bench.now, timed_out);
    }
    let mut probes = Vec::new();
    for at in 0..500 {
        bench.pass(ms(1));
        if let Some(probe) = bench.breaker.wants_connect_probe(bench.now, f64::from(at % 2)) {
            probes.push(probe);
        }
    }
    assert!((4..=6).contains(&probes.len()), "{} in half a second", probes.len());
    bench.breaker.connect_probe_succeeded(probes[0]);
    assert_eq!(bench.state(), StateKind::HalfOpen);
    bench.fail(1);
    bench.breaker.connect_probe_succeeded(probes[1]);
    assert_eq!(bench.state(), StateKind::Open, "a connect from before the transition changes nothing");
    assert_eq!(bench.breaker.wants_connect_probe(bench.now + ms(500), 0.5), None, "it failed otherwise");
}

#[test]
fn other_failures_ask_for_no_connects() {
    let bench = tripped(&Settings::default());
    assert_eq!(bench.breaker.wants_connect_probe(bench.now + ms(500), 0.5), None);
    assert_eq!(Bench::new(&Settings::default()).breaker.wants_connect_probe(bench.now, 0.5), None);
}

#[test]
fn a_reload_keeps_the_state() {
    let mut bench = tripped(&Settings::default());
    let other = Settings {
        failure_ratio: Ratio::new(0.2),
        window: Window::Count { size: 50 },
        ..Settings::default()
    };
    bench.breaker.update(&other, bench.now);
    assert_eq!(bench.state(), StateKind::Open);
    bench.pass(ms(1000)).succeed(5);
    assert_eq!(bench.state(), StateKind::Closed);
    bench.succeed(40).fail(10);
    assert_eq!(bench.state(), StateKind::Open, "by the new ratio");

    let short = OpenFor { base: Span::from_millis(10), max: Span::from_millis(10) };
    bench.breaker.update(&Settings { open_for: short, ..other.clone() }, bench.now);
    bench.pass(ms(12));
    assert!(bench.ask().is_ok(), "a shorter `max` holds at once");

    bench.breaker.update(&Settings { kind: Kind::Graded, ..other }, bench.now);
    assert_eq!(bench.state(), StateKind::Closed, "the other kind begins closed");
}

#[test]
fn transitions_are_told_in_order_and_with_their_figures() {
    let mut bench = tripped(&Settings::default());
    bench.pass(ms(1000)).succeed(5);
    assert_eq!(bench.told(), [StateKind::Open, StateKind::HalfOpen, StateKind::Closed]);
    let told = bench.told.lock().expect("one thread").clone();
    assert!(told.windows(2).all(|pair| pair[0].sequence < pair[1].sequence && pair[0].to == pair[1].from));
    assert_eq!((told[0].failures, told[0].counted), (20, 20));
}

#[test]
fn a_clock_that_runs_backwards_harms_nothing() {
    let mut bench = Bench::new(&Settings::default());
    bench.pass(ms(10_000)).succeed(10);
    bench.now -= ms(5000);
    bench.fail(20);
    assert_eq!(bench.state(), StateKind::Open);
    bench.now -= ms(2000);
    assert!(bench.ask().is_err());
}

#[test]
fn threads_that_meet_leak_no_probe() {
    let bench = probing(&Settings { half_open_requests: 3, ..Settings::default() });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..2000 {
                    if let Ok(permit) = bench.ask()
                        && n % 2 == 0
                    {
                        permit.record(bench.now, outcome(Verdict::Ignored));
                    }
                }
            });
        }
    });
    assert_eq!((0..10).filter_map(|_| bench.ask().ok()).collect::<Vec<_>>().len(), 3);
}

/// Asks of a graded breaker, each 1/`rate` s, for `seconds`; the upstream does `capacity` of them a second well.
/// How many passed in the last second.
fn graded(bench: &mut Bench, rate: u32, capacity: u32, seconds: u32) -> u32 {
    let (mut passed, mut well, mut draw) = (0, 0, 0.0f64);
    for n in 0..rate * seconds {
        if n % rate == 0 {
            (passed, well) = (0, 0);
        }
        // The golden ratio spreads draws evenly.
        draw = (draw + 0.618_033_988_749_895).fract();
        bench.now += Duration::from_secs(1) / rate;
        if let Ok(permit) = bench.breaker.admit(bench.now, draw, LEASE) {
            passed += 1;
            let verdict = if well < capacity { Verdict::Success } else { Verdict::Failure };
            well += u32::from(verdict == Verdict::Success);
            permit.record(bench.now, outcome(verdict));
        }
    }
    passed
}

#[test]
fn a_graded_breaker_settles_at_twice_what_succeeds() {
    let settings = Settings { kind: Kind::Graded, ..Settings::default() };
    let cases = [
        // why                                       rate  capacity  passed
        ("all is well", 400, 400, 400..=400),
        ("half fails: what K = 2 allows", 400, 200, 390..=400),
        ("a quarter succeeds", 400, 100, 180..=220),
        ("nothing succeeds: one in twenty finds out", 400, 0, 10..=30),
        ("below min_requests nothing is rejected", 1, 0, 1..=1),
    ];
    for (why, rate, capacity, expected) in cases {
        let passed = graded(&mut Bench::new(&settings), rate, capacity, 60);
        assert!(expected.contains(&passed), "{why}: {passed}");
    }
}

#[test]
fn a_graded_breaker_recovers_and_tells_it_once() {
    let mut bench = Bench::new(&Settings { kind: Kind::Graded, ..Settings::default() });
    graded(&mut bench, 100, 0, 30);
    assert_eq!(bench.state(), StateKind::Ramping);
    assert_eq!(graded(&mut bench, 100, 100, 120), 100);
    assert_eq!(bench.told(), [StateKind::Ramping, StateKind::Closed]);
}

/// What may happen to a breaker.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Ask(f64),
    /// The nth permit that is out gets this outcome.
    Settle(usize, Verdict, u32, bool),
    Drop(usize),
    Connect(f64),
    Reload(bool),
}

fn steps(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Success),
        8 => Just(Verdict::Failure),
        1 => Just(Verdict::Throttled),
        1 => Just(Verdict::Ignored),
    ];
    let step = prop_oneof![
        2 => prop_oneof![0u64..50, 0u64..2000, 0u64..40_000].prop_map(Step::Pass),
        8 => (0.0..1.0f64).prop_map(Step::Ask),
        8 => (any::<usize>(), verdict, 0u32..3, prop::bool::weighted(0.2))
            .prop_map(|(n, verdict, endpoint, timeout)| Step::Settle(n, verdict, endpoint, timeout)),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => (0.0..1.0f64).prop_map(Step::Connect),
        1 => any::<bool>().prop_map(Step::Reload),
    ];
    prop::collection::vec(step, 0..length)
}

fn settings() -> impl Strategy<Value = Settings> {
    let window = prop_oneof![
        (1000u64..30_000).prop_map(|size| Window::Time { size: Span::from_millis(size) }),
        (1u32..100).prop_map(|size| Window::Count { size }),
    ];
    (window, 1u32..30, 0.0..1.0f64, 1u32..10, prop::option::of(1u64..20)).prop_map(
        |(window, min_requests, ratio, half_open_requests, slow)| Settings {
            window,
            min_requests,
            failure_ratio: Ratio::new(ratio),
            half_open_requests,
            slow_request: slow.map(Span::from_millis),
            ..Settings::default()
        },
    )
}

/// A permit that is out, and the breaker's epoch when it was given.
type Out = (Permit, usize);

impl Bench {
    fn take(&mut self, step: Step, out: &mut Vec<Out>, settings: &Settings) {
        match step {
            Step::Pass(millis) => {
                self.pass(ms(millis));
            }
            Step::Ask(draw) => {
                if let Ok(permit) = self.breaker.admit(self.now, draw, LEASE) {
                    out.push((permit, self.told().len()));
                }
            }
            Step::Settle(n, verdict, endpoint, connect_timeout) if !out.is_empty() => {
                let (permit, _) = out.swap_remove(n % out.len());
                let outcome = Outcome { endpoint, endpoints: 3, connect_timeout, ..outcome(verdict) };
                permit.record(self.now, outcome);
            }
            Step::Drop(n) if !out.is_empty() => drop(out.swap_remove(n % out.len())),
            Step::Settle(..) | Step::Drop(_) => {}
            Step::Connect(draw) => {
                if let Some(probe) = self.breaker.wants_connect_probe(self.now, draw) {
                    self.breaker.connect_probe_succeeded(probe);
                }
            }
            Step::Reload(other) => {
                let failure_ratio = if other { Ratio::new(0.1) } else { settings.failure_ratio };
                self.breaker.update(&Settings { failure_ratio, ..settings.clone() }, self.now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Never stuck: from any state that any script leads to, with permits that never come back, good input closes
    /// it in bounded time, even if the first probe of every half-open time is dropped.
    #[test]
    fn good_input_closes_it_in_bounded_time(settings in settings(), steps in steps(200), each in 5u64..2000) {
        let mut bench = Bench::new(&Settings { slow_request: None, ..settings.clone() });
        let mut forgotten = Vec::new();
        steps.iter().for_each(|step| bench.take(*step, &mut forgotten, &settings));
        bench.breaker.update(&Settings { slow_request: None, ..settings.clone() }, bench.now);

        // At most: the leases of what was forgotten, the longest open time with its jitter, the probes, the ramp.
        let probes = u64::from(settings.half_open_requests) + 2;
        let bound = LEASE + 2 * ms(36_000) + ms(each) * (probes as u32 + 5) + ms(5000);
        let (began, mut dropped_at) = (bench.now, 0);
        while bench.state() != StateKind::Closed {
            prop_assert!(bench.now - began <= bound, "still {:?}", bench.breaker);
            bench.pass(ms(each));
            if let Ok(permit) = bench.breaker.admit(bench.now, 0.05, LEASE) {
                let period = bench.told().len();
                if bench.state() == StateKind::HalfOpen && dropped_at != period {
                    dropped_at = period;
                    drop(permit);
                } else {
                    permit.record(bench.now, outcome(Verdict::Success));
                }
            }
        }
    }

    #[test]
    fn probes_in_flight_never_exceed_what_is_allowed(settings in settings(), steps in steps(300)) {
        let (mut bench, mut out) = (Bench::new(&settings), Vec::new());
        for step in steps {
            bench.take(step, &mut out, &settings);
            if bench.state() == StateKind::HalfOpen {
                let period = bench.told().len();
                let probes = out.iter().filter(|(permit, at)| *at == period && permit.pass.lease.is_some()).count();
                prop_assert!(probes <= settings.half_open_requests as usize);
            }
        }
    }

    #[test]
    fn outcomes_from_before_the_last_transition_change_nothing(settings in settings(), steps in steps(300)) {
        let (mut bench, mut out) = (Bench::new(&settings), Vec::<Out>::new());
        for step in steps {
            let old = match step {
                Step::Settle(n, ..) if !out.is_empty() => out[n % out.len()].1 != bench.told().len(),
                _ => false,
            };
            let before = bench.breaker.view(bench.now);
            bench.take(step, &mut out, &settings);
            if old {
                prop_assert_eq!(before, bench.breaker.view(bench.now));
            }
        }
    }

    /// `min_requests` outcomes within nine tenths of the window: bunched or spread, only how many failed decides.
    #[test]
    fn failures_bunched_or_spread_give_the_same_verdict(
        failed in prop::collection::vec(any::<bool>(), 20),
        gaps in prop::collection::vec(0u64..450, 20),
    ) {
        let failures = failed.iter().filter(|failed| **failed).count();
        let mut bench = Bench::new(&Settings::default());
        for (failed, gap) in failed.into_iter().zip(gaps) {
            bench.pass(ms(gap)).run([if failed { Verdict::Failure } else { Verdict::Success }]);
        }
        prop_assert_eq!(bench.state() == StateKind::Open, failures >= 10);
    }

    /// Against a list of all outcomes.
    #[test]
    fn the_window_counts_what_a_list_of_outcomes_would(
        count in prop::option::of(1u32..40),
        outcomes in prop::collection::vec((0u64..1500, any::<bool>(), 0u32..3), 1..120),
    ) {
        let extent = count.map_or(Window::default(), |size| Window::Count { size });
        let (mut now, mut window, mut list) = (start(), Outcomes::new(extent, start()), Vec::new());
        for (gap, failed, endpoint) in outcomes {
            now += ms(gap);
            list.push((now, failed, endpoint));
            let tally = *window.add(now, Entry { failed, ..Entry::default() }, endpoint);
            let counted: Vec<_> = match count {
                Some(size) => list.iter().rev().take(size as usize).collect(),
                // Buckets of a second begin with the window.
                None => {
                    let second = |at: Instant| (at - start()).as_secs();
                    list.iter().filter(|(at, ..)| second(*at) + 10 > second(now)).collect()
                }
            };
            let failing: Vec<_> = counted.iter().filter(|(_, failed, _)| *failed).map(|(.., at)| *at).collect();
            prop_assert_eq!(tally.counts.total as usize, counted.len());
            prop_assert_eq!(tally.counts.failures as usize, failing.len());
            prop_assert_eq!(tally.failures_are_spread(), failing.iter().any(|at| *at != failing[0]));
        }
    }

    #[test]
    fn open_times_are_within_20_percent_of_what_they_should_be(draw in 0.0..1.0f64, trips in 0u32..40) {
        let mut machine = Machine::new(&Settings::default(), start());
        machine.trips = trips;
        let open_for = machine.open(start(), draw, None, Counts::default()).open_for.expect("open");
        let expected = Duration::from_secs(1 << trips.min(5)).min(ms(30_000));
        prop_assert!(open_for >= expected.mul_f64(0.799) && open_for <= expected.mul_f64(1.201));
    }
}
