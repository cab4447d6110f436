use proptest::prelude::*;

use super::*;
use crate::policy::start;
use crate::units::{Ratio, Span};

fn settings(ratio: f64, min_per_second: u32) -> BudgetSettings {
    BudgetSettings { ratio: Ratio::new(ratio), min_per_second, ..BudgetSettings::default() }
}

fn budget(ratio: f64, min_per_second: u32) -> Arc<Budget> {
    Arc::new(Budget::new(&settings(ratio, min_per_second), start()))
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn the_cap_is_the_floor_and_a_ratio_of_the_firsts() {
    let cases = [
        // why                                ratio  floor  firsts  retries
        ("the floor alone", 0.0, 2, 100, 20),
        ("a ratio that is no whole number", 0.7, 0, 10, 7),
        ("ten tenths are one", 0.1, 0, 10, 1),
        ("nine tenths are none", 0.1, 0, 9, 0),
        ("both", 0.25, 1, 40, 20),
        ("nothing at all", 0.0, 0, 1000, 0),
    ];
    for (why, ratio, floor, firsts, retries) in cases {
        let budget = budget(ratio, floor);
        (0..firsts).for_each(|_| budget.deposit(start()));
        let granted = (0..1000).map_while(|_| budget.withdraw(start()).map(Paid::refund).ok()).count();
        assert_eq!(granted, retries, "{why}");
        assert_eq!(budget.withdraw(start()).err(), Some(Skip::Budget), "{why}");
    }
}

#[test]
fn deposits_live_as_long_as_the_window() {
    let budget = budget(0.5, 0);
    (0..100).for_each(|_| budget.deposit(start()));
    assert!(budget.withdraw(start() + seconds(10.0)).is_ok());
    assert_eq!(budget.withdraw(start() + seconds(11.0)).err(), Some(Skip::Budget));
}

#[test]
fn fifty_failed_retries_close_the_yield_gate_and_successes_open_it() {
    let budget = budget(1.0, 10_000);
    let now = start();
    let failed = (0..1000).map_while(|_| budget.withdraw(now).map(drop).ok()).count();
    assert_eq!(failed, 50);
    assert_eq!(budget.withdraw(now).err(), Some(Skip::Yield));
    (0..9).for_each(|_| budget.first_succeeded());
    assert_eq!(budget.withdraw(now).err(), Some(Skip::Yield), "nine tenths");
    budget.first_succeeded();
    assert!(budget.withdraw(now).is_ok(), "one whole");
}

#[test]
fn with_no_token_left_one_retry_in_ten_seconds_finds_out() {
    let budget = budget(1.0, 10_000);
    (0..50).for_each(|_| drop(budget.withdraw(start())));
    assert!(budget.withdraw(start() + seconds(9.9)).is_err());
    let paid = budget.withdraw(start() + seconds(10.0)).expect("the trickle");
    assert!(budget.withdraw(start() + seconds(19.9)).is_err());
    paid.refund();
    assert!(budget.withdraw(start() + seconds(19.9)).is_ok(), "it helped, so another may follow");
}

#[test]
fn a_retry_that_was_not_sent_took_nothing() {
    let budget = budget(0.0, 2);
    let before = budget.view(start());
    budget.withdraw(start()).expect("the floor").unsent();
    assert_eq!(budget.view(start()), before);
    let late = budget.withdraw(start()).expect("the floor");
    budget.deposit(start() + seconds(100.0));
    late.unsent();
    assert_eq!(budget.view(start() + seconds(100.0)).retries, 0, "its bucket is long gone");
}

#[test]
fn a_reload_keeps_what_was_learnt() {
    let budget = budget(0.25, 2);
    (0..10).for_each(|_| drop(budget.withdraw(start())));
    let old = budget.withdraw(start()).expect("the floor");
    budget.update(&settings(0.5, 2), start());
    assert_eq!(budget.view(start()).retries, 11);
    budget.update(&BudgetSettings { window: Span::from_secs(5), ..settings(0.5, 2) }, start());
    assert_eq!(budget.view(start()).retries, 0, "another window begins empty");
    old.unsent();
    let view = budget.view(start());
    assert_eq!((view.retries, view.tokens), (0, 40.0), "the tokens stay");
}

/// What may happen to a budget, and how much later than the last.
#[derive(Clone, Copy, Debug)]
enum Step {
    First { succeeds: bool },
    Retry { succeeds: bool },
}

fn steps() -> impl Strategy<Value = Vec<(f64, Step)>> {
    let step = prop_oneof![
        any::<bool>().prop_map(|succeeds| Step::First { succeeds }),
        any::<bool>().prop_map(|succeeds| Step::Retry { succeeds }),
    ];
    let gap = prop_oneof![8 => 0.0..0.1f64, 2 => 0.0..2.0f64, 1 => 0.0..30.0f64];
    prop::collection::vec((gap, step), 1..400)
}

proptest! {
    /// Whatever comes in whatever order: the retries of any window stay within floor + ratio x firsts. The firsts
    /// are those of the window and the bucket that it begins in.
    #[test]
    fn a_retry_budget_is_never_overdrawn(ratio in 0.0..1.0f64, floor in 0u32..5, steps in steps()) {
        let budget = budget(ratio, floor);
        let (mut now, mut firsts, mut retries) = (0.0, Vec::new(), Vec::new());
        for (gap, step) in steps {
            now += gap;
            let at = start() + seconds(now);
            match step {
                Step::First { succeeds } => {
                    budget.deposit(at);
                    if succeeds {
                        budget.first_succeeded();
                    }
                    firsts.push(now);
                }
                Step::Retry { succeeds } => {
                    let Ok(paid) = budget.withdraw(at) else { continue };
                    if succeeds {
                        paid.refund();
                    }
                    retries.push(now);
                    let within = |times: &[f64], window: f64| times.iter().filter(|time| **time >= now - window - 1e-6).count() as f64;
                    let allowed = f64::from(floor) * 10.0 + ratio * within(&firsts, 11.0);
                    prop_assert!(within(&retries, 10.0 - 1e-5) <= allowed + 1e-6);
                }
            }
            let tokens = budget.view(at).tokens;
            prop_assert!((0.0..=50.0).contains(&tokens));
        }
        let ever = f64::from(floor) * (now + 10.0) + ratio * firsts.len() as f64;
        prop_assert!(retries.len() as f64 <= ever + 1e-6);
    }

    /// In a full outage, at any rate: at most fifty failed retries, then one each ten seconds.
    #[test]
    fn in_a_full_outage_retries_cease(each in 0.001..2.0f64, ratio in 0.0..1.0f64, floor in 0u32..100) {
        let budget = budget(ratio, floor);
        let (mut now, mut retries) = (0.0, 0);
        for _ in 0..2000 {
            now += each;
            budget.deposit(start() + seconds(now));
            while budget.withdraw(start() + seconds(now)).is_ok() {
                retries += 1;
            }
        }
        prop_assert!(f64::from(retries) <= 50.0 + now / 10.0, "{retries} in {now} s");
    }
}

/// Requests at `rate` a second for `time` seconds through a budget; each attempt fails with a probability of
/// `failing`. Attempts for each request, and the ratio of requests that succeed.
fn simulate(budget: &Arc<Budget>, attempts: u32, rate: f64, time: f64, failing: f64) -> (f64, f64) {
    let mut draws = fastrand::Rng::with_seed(7);
    let (mut sent, mut well, requests) = (0u64, 0u64, (rate * time) as u64);
    for n in 0..requests {
        let now = start() + seconds(n as f64 / rate);
        budget.deposit(now);
        sent += 1;
        let mut succeeded = draws.f64() >= failing;
        if succeeded {
            budget.first_succeeded();
        }
        for _ in 1..attempts {
            if succeeded {
                break;
            }
            let Ok(paid) = budget.withdraw(now) else { break };
            sent += 1;
            succeeded = draws.f64() >= failing;
            if succeeded {
                paid.refund();
            }
        }
        well += u64::from(succeeded);
    }
    (sent as f64 / requests as f64, well as f64 / requests as f64)
}

#[test]
fn at_1000_requests_a_second_it_adds_what_helps_and_no_more() {
    let cases = [
        // failing  attempts for each request, success
        (0.2, 1.20, 0.96),
        (0.5, 1.10, 0.55),
        (0.8, 1.025, 0.205),
        (1.0, 1.00, 0.0),
    ];
    for (failing, attempts, success) in cases {
        let (sent, well) = simulate(&budget(0.2, 2), 3, 1000.0, 120.0, failing);
        assert!((sent - attempts).abs() < 0.01, "failing {failing}: {sent} attempts for each request");
        assert!((well - success).abs() < 0.01, "failing {failing}: {well} succeed");
    }
}

#[test]
fn the_default_hides_a_brownout_of_a_fifth() {
    let (sent, well) = simulate(&budget(0.25, 2), 4, 1000.0, 120.0, 0.2);
    assert!((1.24..1.255).contains(&sent), "{sent} attempts for each request");
    // 99.84 % if nothing were refused; the cap leaves little above the mean, and refuses some.
    assert!(well > 0.995, "{well} succeed");
}

#[test]
fn a_small_sidecar_does_not_treble_its_load_in_a_full_outage() {
    let (sent, _) = simulate(&budget(0.25, 2), 4, 2.0, 3600.0, 1.0);
    assert!((1.0..1.06).contains(&sent), "{sent} attempts for each request");
}
