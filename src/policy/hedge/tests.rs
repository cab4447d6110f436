use proptest::prelude::*;

use super::*;
use crate::policy::budget::Budget;
use crate::policy::retry::{BudgetSettings, Rules};
use crate::policy::start;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn after(text: &str) -> Settings {
    Settings { mode: Mode::Enforce, after: text.parse().expect("an `after`"), ..Settings::default() }
}

/// Everything speaks for a hedge.
const GOOD: Due = Due { left: Duration::from_secs(1), is_closed: true, has_slot: true, has_endpoint: true };

/// A retry budget that refuses nothing.
fn generous() -> Arc<Budget> {
    let settings = BudgetSettings { min_per_second: 10_000, ..BudgetSettings::default() };
    let budget = Arc::new(Budget::new(&settings, start()));
    (0..1000).for_each(|_| budget.first_succeeded());
    budget
}

/// An upstream of which `percent` of a hundred take 300 ms, the others 10, with hedges saved up.
fn with_slow(percent: u64) -> Arc<Hedge> {
    let hedge = Arc::new(Hedge::new(start()));
    (0..1000).for_each(|n| hedge.record(start(), ms(if n % 100 < percent { 300 } else { 10 })));
    (0..1000).for_each(|_| hedge.deposit(Ratio::new(0.05)));
    hedge
}

#[test]
fn a_percentile_or_a_length_of_time() {
    let cases = [
        // text      means                            printed
        ("p50", Ok(After::Permille(500)), "p50"),
        ("p95", Ok(After::Permille(950)), "p95"),
        ("p99.9", Ok(After::Permille(999)), "p99.9"),
        ("p97.0", Ok(After::Permille(970)), "p97"),
        ("50ms", Ok(After::Time(Span::from_millis(50))), "50ms"),
        ("2s", Ok(After::Time(Span::from_secs(2))), "2s"),
        ("p101", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p100", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p49.9", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p99.99", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p095", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p9.5", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p+95", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p95.", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("p", Err("write one from \"p50\" to \"p99.9\""), ""),
        ("95", Err("neither a percentile nor a length of time"), ""),
        ("0ms", Err("neither a percentile nor a length of time"), ""),
        ("", Err("neither a percentile nor a length of time"), ""),
    ];
    for (text, means, printed) in cases {
        let parsed = text.parse::<After>();
        match (parsed, means) {
            (Ok(after), Ok(means)) => {
                assert_eq!(after, means, "{text:?}");
                assert_eq!(after.to_string(), printed, "{text:?}");
            }
            (Err(message), Err(cure)) => assert!(message.contains(cure), "{text:?}: {message}"),
            (parsed, _) => panic!("{text:?}: {parsed:?}"),
        }
    }
}

#[test]
fn below_fifty_samples_of_the_last_thirty_seconds_no_percentile_is_known() {
    let (now, hedge) = (start(), Hedge::new(start()));
    (0..49).for_each(|_| hedge.record(now, ms(20)));
    assert_eq!(hedge.delay(now, &after("p95")), None);
    assert_eq!(hedge.delay(now, &after("70ms")), Some(ms(70)), "a length of time needs none");
    hedge.record(now, ms(20));
    let delay = hedge.delay(now + ms(100), &after("p95")).expect("fifty samples");
    assert!((ms(20)..ms(22)).contains(&delay), "{delay:?}");
    assert_eq!(hedge.delay(now + ms(30_100), &after("p95")), None, "they are too old");
}

#[test]
fn a_hedge_waits_for_the_percentile_but_not_less_than_its_budget_pays_for() {
    let hedge = Hedge::new(start());
    (1..=1000).for_each(|n| hedge.record(start(), ms(n)));
    let cases = [
        // why                              after    budget  delay
        ("as it says", "p95", 0.05, 950),
        ("later than the budget needs", "p99", 0.05, 990),
        ("the slowest three of a hundred", "p95", 0.03, 970),
        ("and of a thousand", "p95", 0.001, 999),
        ("a budget that pays for less pays for none", "p95", 0.0001, 999),
        ("a median, where half may be hedged", "p50", 0.5, 500),
        ("all of them might be", "p50", 1.0, 500),
        ("a time is a time", "20ms", 0.01, 20),
    ];
    for (why, text, budget, millis) in cases {
        let settings = Settings { budget: Ratio::new(budget), ..after(text) };
        let delay = hedge.delay(start() + ms(200), &settings).expect("many samples").as_millis() as f64;
        let expected = millis as f64;
        assert!((expected..=expected * 1.063 + 1.0).contains(&delay), "{why}: {delay} ms");
    }
    let fast = Hedge::new(start());
    (0..100).for_each(|_| fast.record(start(), Duration::from_micros(80)));
    assert_eq!(fast.delay(start(), &after("p95")), Some(ms(1)), "never before a millisecond");
}

#[test]
fn a_hedge_waits_on_where_most_of_those_that_still_wait_will_soon_be_there() {
    // Thousandths that are slow, of which the others take 10 to 13 ms; who of all may be hedged after p95.
    let cases = [
        ("a few are really slow: they, and a quarter as many", 20, 0.02..0.0275),
        ("fewer", 5, 0.005..0.009),
        ("more than one in twenty: all that the percentile names", 60, 0.0..0.001),
        ("nobody is: no waiting helps", 0, 0.0..0.05),
    ];
    for (why, slow, expected) in cases {
        let hedge = Hedge::new(start());
        let took =
            |n: u64| Duration::from_micros(if n % 1000 < slow { 300_000 } else { 10_000 + n * 7 % 3000 });
        (0..10_000).for_each(|n| hedge.record(start(), took(n)));
        let delay = hedge.delay(start(), &after("p95")).expect("many samples");
        let due = (0..10_000).filter(|n| took(*n) > delay).count() as f64 / 10_000.0;
        assert!(expected.contains(&due), "{why}: {due} after {delay:?}");
    }
}

#[test]
fn why_hedges_are_not_sent() {
    let cases = [
        // why                                 slow %  due                                              skip
        ("all is well", 2, GOOD, None),
        ("half of the attempts need more", 2, Due { left: ms(9), ..GOOD }, Some(Skip::Deadline)),
        ("the breaker is open", 2, Due { is_closed: false, ..GOOD }, Some(Skip::Breaker)),
        ("saturated", 2, Due { has_slot: false, ..GOOD }, Some(Skip::Saturated)),
        ("nowhere to go", 2, Due { has_endpoint: false, ..GOOD }, Some(Skip::Endpoint)),
        ("all are as fast", 0, GOOD, Some(Skip::Spread)),
        ("all are as slow", 100, GOOD, Some(Skip::Spread)),
    ];
    for (why, percent, due, skip) in cases {
        let admitted = with_slow(percent).admit(start(), &after("p95"), &due, &generous());
        assert_eq!(admitted.map(|_| ()).err(), skip, "{why}");
    }
    // All have taken 10 ms so far, and this one takes longer.
    for (why, time, skip) in
        [("longer than all", "50ms", None), ("hardly longer", "11ms", Some(Skip::Spread))]
    {
        let admitted = with_slow(0).admit(start(), &after(time), &GOOD, &generous());
        assert_eq!(admitted.map(|_| ()).err(), skip, "{why}");
    }
}

#[test]
fn the_budget_starts_empty_and_saves_up_a_few() {
    let hedge = with_slow(2);
    let admitted = |hedge: &Arc<Hedge>| {
        (0..1000).map_while(|_| hedge.admit(start(), &after("p95"), &GOOD, &generous()).ok()).count()
    };
    assert_eq!(admitted(&hedge), BURST as usize, "of fifty that were deposited");
    let refused = hedge.admit(start(), &after("p95"), &GOOD, &generous());
    assert_eq!(refused.map(|_| ()).err(), Some(Skip::Budget));
    (0..19).for_each(|_| hedge.deposit(Ratio::new(0.05)));
    assert_eq!(admitted(&hedge), 0, "nineteen twentieths");
    hedge.deposit(Ratio::new(0.05));
    assert_eq!(admitted(&hedge), 1);
}

#[test]
fn both_gates_of_the_retries_must_be_open_and_what_they_refuse_costs_nothing() {
    let none = BudgetSettings { ratio: Ratio::new(0.0), min_per_second: 0, ..BudgetSettings::default() };
    let closed = Arc::new(Budget::new(&none, start()));
    let hedge = with_slow(2);
    let refused = hedge.admit(start(), &after("p95"), &GOOD, &closed);
    assert_eq!(refused.map(|_| ()).err(), Some(Skip::RetryBudget));

    let wide = BudgetSettings { min_per_second: 10_000, ..BudgetSettings::default() };
    let yielding = Arc::new(Budget::new(&wide, start()));
    while yielding.withdraw(start()).is_ok() {}
    let refused = hedge.admit(start(), &after("p95"), &GOOD, &yielding);
    assert_eq!(refused.map(|_| ()).err(), Some(Skip::RetryYield));

    assert_eq!(hedge.view(start()).allowed, BURST as f64);
}

#[test]
fn who_wins_gives_the_yield_gate_back_what_it_took() {
    type End = fn(Paid);
    let cases: [(&str, End, f64, f64); 3] = [
        // why                      what becomes of it              hedges left  tokens of the gate
        ("it won", |paid| paid.settle(true), 19.0, 50.0),
        ("it lost", |paid| paid.settle(false), 19.0, 49.0),
        ("it was not sent", Paid::unsent, 20.0, 50.0),
    ];
    for (why, end, allowed, tokens) in cases {
        let (hedge, retries) = (with_slow(2), generous());
        end(hedge.admit(start(), &after("p95"), &GOOD, &retries).expect("all is well"));
        assert_eq!(hedge.view(start()).allowed, allowed, "{why}");
        assert_eq!(retries.view(start()).tokens, tokens, "{why}");
    }
}

#[test]
fn hedges_that_do_not_win_stop_and_one_each_ten_seconds_finds_out() {
    let (hedge, retries) = (with_slow(2), generous());
    let mut now = start();
    let ask = |now: Instant, won: bool| {
        (0..20).for_each(|_| hedge.deposit(Ratio::new(0.05)));
        (0..10).for_each(|_| retries.first_succeeded());
        // What is old is forgotten otherwise.
        (0..100).for_each(|n| hedge.record(now, ms(if n < 2 { 300 } else { 10 })));
        hedge.admit(now, &after("p95"), &GOOD, &retries).map(|paid| paid.settle(won)).err()
    };
    for number in 0..50 {
        assert_eq!(ask(now, number < 4), None, "the first fifty: number {number}");
    }
    assert_eq!(ask(now, false), None, "four of fifty won: one is let through as a test");
    now += ms(9_900);
    assert_eq!(ask(now, false), Some(Skip::Wins));
    now += ms(200);
    assert_eq!(ask(now, true), None, "ten seconds are over");
    let mut tests = 0;
    while ask(now, true) == Some(Skip::Wins) {
        now += ms(10_000);
        tests += 1;
        assert!(tests < 60, "it never finds out that they help again");
        assert!(ask(now, true).is_none());
    }
    assert_eq!(ask(now, true), None, "they help again, and more than one in ten seconds");
}

#[test]
fn only_what_is_safe_is_hedged() {
    let settings = retry::Settings {
        grpc_methods: vec!["pkg.Service/Get*".parse().expect("a gRPC method")],
        methods: ["GET", "PUT", "DELETE", "POST", "PROPFIND"]
            .map(|name| name.parse().expect("a method"))
            .to_vec(),
        idempotency_key: true,
        ..retry::Settings::default()
    };
    let rules = Rules::new(&settings);
    let cases = [
        // why                                   method       gRPC                          hedged
        ("safe, and may be sent twice", "GET", None, true),
        ("safe, but nobody says it may be sent twice", "HEAD", None, false),
        ("who names a method that nobody knows has thought of it", "PROPFIND", None, true),
        ("idempotent, but it changes something", "PUT", None, false),
        ("the same", "DELETE", None, false),
        ("not safe, whatever the retries say", "POST", None, false),
        ("a gRPC method that may be sent twice", "POST", Some("/pkg.Service/GetUser"), true),
        ("one that may not", "POST", Some("/pkg.Service/Pay"), false),
    ];
    for (why, method, path, hedged) in cases {
        assert_eq!(rules.may_hedge(method.as_bytes(), path.map(str::as_bytes)), hedged, "{why}");
    }
}

/// What happens to an upstream and its hedges, in a row.
#[derive(Clone, Debug)]
enum Step {
    First,
    Answer(u64),
    Hedge { saturated: bool, won: bool },
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::First),
        2 => (1u64..500).prop_map(Step::Answer),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(saturated, won)| Step::Hedge { saturated, won }),
        1 => (1u64..12_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..600)
}

proptest! {
    /// Whatever comes in whatever order: hedges <= budget x first attempts, and none under saturation.
    #[test]
    fn hedges_stay_within_their_budget_and_there_are_none_under_saturation(budget in 0.0..1.0f64, steps in steps()) {
        let settings = Settings { budget: Ratio::new(budget), ..after("20ms") };
        let (hedge, retries) = (Arc::new(Hedge::new(start())), generous());
        let (mut now, mut firsts, mut hedges) = (start(), 0u32, 0u32);
        for step in steps {
            match step {
                Step::First => {
                    firsts += 1;
                    hedge.deposit(settings.budget);
                }
                Step::Answer(millis) => hedge.record(now, ms(millis)),
                Step::Pass(millis) => now += ms(millis),
                Step::Hedge { saturated, won } => {
                    let due = Due { has_slot: !saturated, ..GOOD };
                    if let Ok(paid) = hedge.admit(now, &settings, &due, &retries) {
                        prop_assert!(!saturated);
                        hedges += 1;
                        paid.settle(won);
                    }
                }
            }
            prop_assert!(f64::from(hedges) <= budget * f64::from(firsts) + 1e-6, "{hedges} of {firsts}");
        }
    }

    /// Hedges breed no hedges: with losers counted at their age the share of attempts that are slower than the delay
    /// stays what it would be without hedges, whoever is cancelled; and all that are really slow are among them.
    #[test]
    fn the_percentile_stays_honest_while_slow_attempts_are_cancelled(seed: u64, slow_percent in 1u64..5) {
        const SLOW: Duration = Duration::from_millis(300);
        let mut random = numbers(seed);
        let settings = Settings { budget: Ratio::new(0.05), ..after("p95") };
        let hedge = Hedge::new(start());
        let (mut now, mut due, mut slow, mut counted) = (start(), 0u32, 0u32, 0u32);
        for number in 0..20_000 {
            now += Duration::from_micros(1_000);
            let mut draw = || {
                let body = 5_000 + random() % 10_000;
                if random() % 100 < slow_percent { SLOW } else { Duration::from_micros(body) }
            };
            let (first, second) = (draw(), draw());
            match hedge.delay(now, &settings) {
                Some(delay) if first > delay => {
                    let settled = first.min(delay + second);
                    hedge.record(now, settled);
                    due += u32::from(number >= 5_000);
                }
                _ => hedge.record(now, first),
            }
            slow += u32::from(number >= 5_000 && first == SLOW);
            counted += u32::from(number >= 5_000);
        }
        prop_assert!(due >= slow, "{due} were due, and {slow} slow");
        let share = f64::from(due) / f64::from(counted);
        prop_assert!(share < 0.053, "{share} of the attempts were due");
    }
}

/// A few random numbers, the same for the same seed.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}
