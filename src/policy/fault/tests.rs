use proptest::prelude::*;

use super::*;
use crate::policy::priority::Priority;
use crate::policy::start;

fn settings(text: &str) -> Settings {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn fault(text: &str) -> Arc<Fault> {
    Arc::new(Fault::new(settings(text), start()))
}

/// A request of a trusted caller with these headers.
fn asked<'a>(has_header: &'a dyn Fn(&str, &str) -> bool) -> Asked<'a> {
    Asked { priority: Priority::Normal, is_trusted: true, method: b"GET", has_header }
}

const BARE: &dyn Fn(&str, &str) -> bool = &|_, _| false;
const CHAOS: &dyn Fn(&str, &str) -> bool = &|name, value| name == "x-chaos" && value == "on";

/// Marsaglia's xorshift: the same draws in each run.
fn draws(seed: u64) -> impl FnMut() -> f64 {
    let mut x = seed | 1;
    move || {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[test]
fn a_fault_is_for_those_that_match() {
    let headers = "match = { headers = { x-chaos = \"on\" } }";
    let normal = |has_header| asked(has_header);
    let of = |priority| Asked { priority, ..asked(BARE) };
    let cases = [
        // why                                        match     request                          holds
        ("any request", "", normal(BARE), true),
        ("what is critical is spared", "", of(Priority::Critical), false),
        ("what is low is not", "", of(Priority::Low), true),
        (
            "critical is hurt where it is named",
            "match.priority = [\"critical\"]",
            of(Priority::Critical),
            true,
        ),
        ("others are not, then", "match.priority = [\"critical\"]", of(Priority::Normal), false),
        ("the header is there", headers, normal(CHAOS), true),
        ("the header is not there", headers, normal(BARE), false),
        ("nobody trusts who sent it", headers, Asked { is_trusted: false, ..asked(CHAOS) }, false),
        (
            "a header does not name critical ones",
            headers,
            Asked { priority: Priority::Critical, ..asked(CHAOS) },
            false,
        ),
        ("no header is asked of untrusted callers", "", Asked { is_trusted: false, ..asked(BARE) }, true),
        ("the method", "match.methods = [\"PUT\", \"GET\"]", normal(BARE), true),
        ("another method", "match.methods = [\"PUT\"]", normal(BARE), false),
    ];
    for (why, text, request, holds) in cases {
        assert_eq!(settings(text).matches.holds(&request), holds, "{why}");
    }
}

#[test]
fn the_short_forms_mean_all_requests() {
    let pairs = [
        ("delay = \"300ms\"", "delay = { ratio = 1.0, for = \"300ms\" }"),
        ("reset = true", "reset = { ratio = 1.0 }"),
        ("reset = false", ""),
        ("truncate = \"1KiB\"", "truncate = { ratio = 1.0, after = \"1KiB\" }"),
        ("slow_first_byte = \"2s\"", "slow_first_byte = { for = \"2s\" }"),
        ("bandwidth = \"64KiB/s\"", "bandwidth = { rate = \"64KiB/s\" }"),
        ("abort = {}", "abort = { ratio = 1.0, status = 503 }"),
    ];
    for (short, long) in pairs {
        let (short, long) = (settings(short), settings(long));
        assert_eq!(short, long);
        let text = toml::to_string(&short).expect("it serializes");
        assert_eq!(settings(&text), short, "what is shown can be written: {text}");
    }
}

#[test]
fn what_is_no_fault_is_refused_with_the_cure() {
    let cases = [
        ("delay = \"6m\"", "give a time from \"1ms\" to \"5m\""),
        ("delay = { for = \"1s\", jitter = \"1h\" }", "give a time from \"1ms\" to \"5m\""),
        ("delay = 3", "a time such as \"300ms\", or a table { ratio, for, jitter }"),
        ("delay = { ratio = 0.1 }", "missing field `for`"),
        ("abort = { status = 200 }", "give a whole number from 400 to 599"),
        ("abort = { grpc = \"UNAVAILBLE\" }", "did you mean \"UNAVAILABLE\"?"),
        ("reset = \"yes\"", "true, or a table { ratio }"),
        ("truncate = true", "a size such as \"1KiB\""),
        ("bandwidth = \"64KiB\"", "is not a rate"),
        ("bandwidth = \"64/s\"", "write a size and a time, such as \"64KiB/s\""),
        ("bandwidth = \"0/s\"", "a rate of requests, and a body has bytes; write a size"),
        ("bandwidth = \"0B/s\"", "give at least 1B, such as \"64KiB/s\""),
        ("for = \"2d\"", "give a time from \"1ms\" to \"1d\""),
        ("mode = \"shadow\"", "`enforce` or `off`"),
        ("max_active = 0", "give a whole number from 1 to 100000"),
    ];
    for (text, cure) in cases {
        let error = toml::from_str::<Settings>(text).expect_err(text).to_string();
        assert!(error.contains(cure), "{text}: {error}");
    }
}

#[test]
fn a_wide_fault_needs_a_header_or_a_word() {
    let cases = [
        ("nothing is hit", "", false),
        ("a fifth", "abort.ratio = 0.2", false),
        ("more than that", "abort.ratio = 0.21", true),
        ("all, in short", "reset = true", true),
        ("two kinds together", "abort.ratio = 0.15\ndelay = { ratio = 0.15, for = \"1s\" }", true),
        ("a header asks for it", "reset = true\nmatch.headers = { x-chaos = \"on\" }", false),
        ("a method is not enough", "reset = true\nmatch.methods = [\"GET\"]", true),
        ("it is meant", "reset = true\nallow_wide = true", false),
    ];
    for (why, text, is_too_wide) in cases {
        assert_eq!(settings(text).is_too_wide(), is_too_wide, "{why}");
    }
}

#[test]
fn a_plan_has_what_was_drawn() {
    let text = "delay = { ratio = 0.5, for = \"100ms\", jitter = \"100ms\" }\nabort = { ratio = 0.5, status = 504 }\nreset = { ratio = 0.5 }";
    let cases: [(&str, &[f64], Option<Plan>); 4] = [
        ("nothing is hit", &[0.5, 0.9, 0.7], None),
        (
            "a wait of its length and half its jitter",
            &[0.0, 0.9, 0.9, 0.5],
            Some(Plan { delay: Some(Duration::from_millis(150)), ..Plan::default() }),
        ),
        (
            "an abort comes before a reset",
            &[0.5, 0.0, 0.0],
            Some(Plan { end: Some(End::Abort(504, 14)), ..Plan::default() }),
        ),
        ("a reset", &[0.5, 0.5, 0.49], Some(Plan { end: Some(End::Reset), ..Plan::default() })),
    ];
    for (why, draws, plan) in cases {
        let mut draws = draws.iter().copied();
        assert_eq!(settings(text).draw(|| draws.next().expect("one more draw")), plan, "{why}");
    }
}

#[test]
fn an_abort_has_the_code_that_grpc_makes_of_its_status() {
    for (status, code) in
        [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (500, 2), (503, 14), (504, 14)]
    {
        let plan = settings(&format!("abort.status = {status}")).draw(|| 0.0).expect("it hits all");
        assert_eq!(plan.end, Some(End::Abort(status, code)));
    }
    let written = settings("abort = { status = 500, grpc = \"ABORTED\" }").draw(|| 0.0).expect("it hits all");
    assert_eq!(written.end, Some(End::Abort(500, 10)));
}

/// Over many requests a kind hits its share of them, within three sigma.
#[test]
fn each_kind_hits_its_share() {
    const REQUESTS: u32 = 20_000;
    for (seed, ratio) in [(1u64, 0.001), (2, 0.01), (3, 0.1), (4, 0.2), (5, 0.5), (6, 0.99)] {
        let fault = fault(&format!(
            "abort.ratio = {ratio}\ntruncate = {{ ratio = {ratio}, after = \"1B\" }}\nallow_wide = true"
        ));
        let mut draw = draws(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut aborts, mut cuts) = (0u32, 0u32);
        for _ in 0..REQUESTS {
            if let Ruling::Inject(plan, _active) = fault.rule(start(), &asked(BARE), &mut draw) {
                aborts += u32::from(plan.end.is_some());
                cuts += u32::from(plan.truncate.is_some());
            }
        }
        let sigma = (f64::from(REQUESTS) * ratio * (1.0 - ratio)).sqrt();
        for (kind, hit) in [("abort", aborts), ("truncate", cuts)] {
            let off = (f64::from(hit) - f64::from(REQUESTS) * ratio).abs();
            assert!(
                off <= 3.0 * sigma,
                "{kind} at {ratio}: {hit} of {REQUESTS}, {:.1} sigma off",
                off / sigma
            );
        }
        assert_eq!(fault.counts().0, u64::from(REQUESTS));
        assert_eq!(fault.active(), 0);
    }
}

#[test]
fn a_fault_stops_once_and_for_one_reason() {
    let second = |n| start() + Duration::from_secs(n);
    let of = |all, healthy| Endpoints { all, healthy };
    let cases = [
        // why                                          for          looks                                                 stops for
        ("all is well", "1m", vec![(5, of(3, 2))], None),
        ("its time is over", "1m", vec![(59, of(3, 3)), (60, of(3, 3))], Some(Stop::Time)),
        ("one of two is out", "1m", vec![(5, of(2, 1))], Some(Stop::Endpoints)),
        ("the only one may be out", "1m", vec![(5, of(1, 0))], None),
        ("there is none", "1m", vec![(5, of(0, 0))], None),
        ("there were several", "1m", vec![(5, of(3, 3)), (6, of(1, 1))], Some(Stop::Endpoints)),
    ];
    for (why, lasts, looks, stops) in cases {
        let fault = fault(&format!("reset = true\nfor = \"{lasts}\""));
        let mut found = None;
        for (at, endpoints) in looks {
            found = found.or(fault.must_stop(second(at), endpoints));
        }
        assert_eq!(found, stops, "{why}");
    }

    let fault = fault("reset = true");
    assert!(fault.stop(Stop::Endpoints, second(1)));
    assert!(!fault.stop(Stop::Switched, second(2)), "it has stopped already");
    assert_eq!(fault.stopped(), Some((Stop::Endpoints, second(1))));
    assert_eq!(fault.must_stop(second(3), of(3, 3)), None, "it stays so");
    assert!(matches!(fault.rule(second(3), &asked(BARE), || 0.0), Ruling::NotMeant));
}

#[test]
fn a_fault_whose_time_is_over_hurts_nobody_though_nobody_has_noticed() {
    let fault = fault("reset = true\nfor = \"1s\"");
    let Ruling::Inject(_, active) = fault.rule(start(), &asked(BARE), || 0.0) else { panic!("it hits all") };
    let end = start() + Duration::from_secs(1);
    assert!(!active.is_over(start()) && active.is_over(end), "who is under it is let go");
    assert!(matches!(fault.rule(end, &asked(BARE), || 0.0), Ruling::NotMeant));
}

proptest! {
    /// However requests come and go, no more than `max_active` are under a fault, and the count is back at 0 with the
    /// last of them.
    #[test]
    fn what_is_under_a_fault_is_bounded_and_comes_back(max in 1u32..6, steps in prop::collection::vec(any::<(bool, u8)>(), 0..60)) {
        let fault = fault(&format!("reset = true\nmax_active = {max}"));
        let mut held = Vec::new();
        for (comes, place) in steps {
            if comes {
                match fault.rule(start(), &asked(BARE), || 0.0) {
                    Ruling::Inject(_, active) => held.push(active),
                    Ruling::Full => prop_assert_eq!(held.len() as u32, max),
                    other => prop_assert!(false, "{:?}", other),
                }
            } else if !held.is_empty() {
                drop(held.swap_remove(usize::from(place) % held.len()));
            }
            prop_assert_eq!(fault.active() as usize, held.len());
            prop_assert!(fault.active() <= max);
        }
        drop(held);
        prop_assert_eq!(fault.active(), 0);
    }

    /// A kind hits if and only if its draw lies below its ratio; so none is ever wider than it says.
    #[test]
    fn a_draw_below_the_ratio_hits(ratio in 0.0..=1.0f64, draw in 0.0..1.0f64) {
        let plan = settings(&format!("reset.ratio = {ratio:?}")).draw(|| draw);
        prop_assert_eq!(plan.is_some(), draw < ratio);
    }

    /// What is not too wide hits at most a fifth of what no header asks it for.
    #[test]
    fn what_may_run_hits_at_most_a_fifth(ratios in prop::array::uniform3(0.0..0.3f64), seed: u64) {
        let [abort, reset, truncate] = ratios;
        let settings = settings(&format!(
            "abort.ratio = {abort:?}\nreset.ratio = {reset:?}\ntruncate = {{ ratio = {truncate:?}, after = \"1B\" }}"
        ));
        let mut draw = draws(seed);
        let hit = (0..4000).filter(|_| settings.draw(&mut draw).is_some()).count() as f64 / 4000.0;
        // Six sigma of 4000 draws.
        prop_assert!((hit - settings.share()).abs() < 0.05, "{} of {}", hit, settings.share());
        prop_assert_eq!(settings.is_too_wide(), settings.share() > WIDE + 1e-9);
    }

    /// A body never comes faster than its rate, but for its first piece, and never stands still for good.
    #[test]
    fn a_pace_keeps_its_rate(rate in 1u64..10_000_000, looks in prop::collection::vec(1u64..500_000, 1..50)) {
        let pace = Pace::new(rate, start());
        let (mut passed, mut now) = (0, start());
        for micros in looks {
            now += Duration::from_micros(micros);
            passed = pace.allowed(now).max(passed);
            let whole = (now - start()).as_secs_f64() * rate as f64 + (rate as f64 / 20.0).max(1.0);
            prop_assert!(passed as f64 <= whole + 1.0, "{} of {}", passed, whole);
            prop_assert!(pace.allowed(pace.next(passed) + Duration::from_micros(2)) > passed.saturating_sub(1));
        }
    }
}
