//! `gradient`, which finds the number by itself: the scenarios in which limiters are known to fail.

use std::time::Duration;

use outrigger::policy::limit::Settings;

use crate::upstream::{Service, Shape};
use crate::world::Run;
use crate::{DEFAULT, curve, holds};

/// Of 20 workers of 50 ms.
const CAPACITY: f64 = 400.0;
const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

fn twenty() -> Run {
    Run::before_twenty_workers(DEFAULT)
}

fn eight() -> Run {
    Run::before_eight_workers(DEFAULT)
}

/// The first seed is the one of the curve.
fn go(name: &str, seed: u64, run: Run) -> crate::record::Record {
    let run = Run { seed, ..run };
    if seed == 1 { curve(name, &run) } else { run.go() }
}

#[test]
fn half_a_load_for_twenty_minutes_is_let_through() {
    let record = curve("gradient_half_load", &Run { rate: |_| 200.0, seconds: 1200.0, ..twenty() });
    holds!(record.refused(0.0..1200.0) / record.asked_in(0.0..1200.0), < 0.005);
}

#[test]
fn twice_the_load_for_a_minute() {
    for seed in SEEDS {
        let record = go("gradient_double_load", seed, Run { rate: |_| 800.0, ..twenty() });
        holds!(record.goodput(2.0..60.0), >= 0.95 * CAPACITY);
        holds!(record.p50(15.0..60.0), <= 100.0);
    }
}

#[test]
fn in_a_standing_overload_nothing_drifts() {
    let (double, tenth_over) = (Run { rate: |_| 800.0, ..twenty() }, Run { rate: |_| 440.0, ..twenty() });
    for (name, run) in [("gradient_double_load_long", double), ("gradient_tenth_over_long", tenth_over)] {
        let record = curve(name, &Run { seconds: 1200.0, ..run });
        holds!(record.goodput(15.0..1200.0), >= 0.95 * CAPACITY);
        for part in (15..1200).step_by(15) {
            let part = f64::from(part);
            holds!(record.p50(part..part + 15.0), <= 100.0);
        }
        let (early, late) = (record.limit(60.0..300.0), record.limit(960.0..1200.0));
        assert!((0.9..1.1).contains(&(late / early)), "{name}: from {early} to {late}");
    }
}

#[test]
fn a_service_that_becomes_twice_as_slow_without_overload_and_then_gets_one() {
    let mean = |time| if time < 60.0 { 0.05 } else { 0.1 };
    let rate = |time| if time < 1260.0 { 120.0 } else { 400.0 };
    let run = Run { rate, seconds: 1320.0, upstream: Shape { mean, ..twenty().upstream }, ..twenty() };
    let record = curve("gradient_twice_as_slow", &run);
    holds!(record.refused(60.0..1260.0) / record.asked_in(60.0..1260.0), <= 0.005);
    holds!(record.goodput(1275.0..1320.0), >= 0.95 * CAPACITY / 2.0);
    holds!(record.p50(1275.0..1320.0), <= 200.0);
}

#[test]
fn a_limit_that_begins_far_too_high_is_right_within_seconds() {
    for seed in SEEDS {
        let limit = Settings::Gradient { initial: 200, min: 4, max: 1000 };
        let record = go("gradient_starts_too_high", seed, Run { rate: |_| 800.0, limit, ..twenty() });
        holds!(record.goodput(5.0..60.0), >= 0.95 * CAPACITY);
        holds!(record.p50(5.0..60.0), <= 100.0);
    }
}

#[test]
fn a_limit_that_begins_far_too_low_is_right_within_seconds() {
    for seed in SEEDS {
        let upstream = Shape { workers: |_| 100, ..twenty().upstream };
        let record = go("gradient_starts_too_low", seed, Run { rate: |_| 4000.0, upstream, ..twenty() });
        holds!(record.goodput(3.0..60.0), >= 0.95 * 5.0 * CAPACITY);
        holds!(record.p50(3.0..60.0), <= 100.0);
    }
}

/// 64,000 in a second, each in half a millisecond: more clients than places and slots are let in before anybody looks.
#[test]
fn what_is_answered_at_once_is_not_refused() {
    for seed in SEEDS {
        let upstream = Shape { mean: |_| 0.0005, workers: |_| 32, ..eight().upstream };
        let run = Run { rate: |_| 0.0, clients: 256, seconds: 5.0, upstream, ..eight() };
        let record = go("gradient_at_once", seed, run);
        holds!(record.refused(0.0..5.0), <= 300.0);
        holds!(record.refused(0.2..5.0), == 0.0);
        holds!(record.goodput(0.2..5.0), >= 60_000.0);
    }
}

#[test]
fn workers_that_come_and_go_are_found_in_both_directions() {
    for seed in SEEDS {
        let workers = |time| if (20.0..40.0).contains(&time) { 80 } else { 20 };
        let upstream = Shape { workers, ..twenty().upstream };
        let run = Run { rate: |_| 2400.0, upstream, ..twenty() };
        let record = go("gradient_workers_come_and_go", seed, run);
        holds!(record.goodput(5.0..20.0), >= 0.95 * CAPACITY);
        holds!(record.goodput(25.0..40.0), >= 0.93 * 4.0 * CAPACITY);
        holds!(record.goodput(45.0..60.0), >= 0.93 * CAPACITY);
        holds!(record.p50(45.0..60.0), <= 100.0);
    }
}

/// A tenth takes twenty times as long, so half of them are far below the mean.
#[test]
fn a_median_far_below_the_mean_costs_nothing() {
    for seed in SEEDS {
        let upstream = Shape { service: Service::Bimodal, ..twenty().upstream };
        let run = Run { rate: |_| 800.0, deadline: Duration::from_secs(2), upstream, ..twenty() };
        let record = go("gradient_bimodal", seed, run);
        holds!(record.goodput(5.0..60.0), >= 0.9 * CAPACITY);
    }
}

/// Latencies are spread widely: an exponential service, one with a long tail, one with a cache, one with a slow tenth.
/// What happens by chance is taken neither for a queue nor for its end.
#[test]
fn wide_latencies_are_no_queue() {
    let services = [
        ("halves", Service::Halves),
        ("exponential", Service::Exponential),
        ("wide", Service::Wide),
        ("slow_tenth", Service::Bimodal),
    ];
    for (name, service) in services {
        let mut done = 0.0;
        for seed in SEEDS {
            let upstream = Shape { service, ..twenty().upstream };
            let patient = Run { deadline: Duration::from_secs(10), upstream, ..twenty() };
            let upstream = Shape { workers: |_| 1000, mean: |_| 0.06, ..patient.upstream.clone() };
            let free = Run { rate: |_| 0.0, upstream, ..patient.clone() };
            let refused =
                |record: &crate::record::Record| record.refused(5.0..60.0) / record.asked_in(5.0..60.0);

            let half_load =
                go(&format!("gradient_{name}_half_load"), seed, Run { rate: |_| 200.0, ..patient.clone() });
            holds!(refused(&half_load), <= 0.005);
            let fewer = Run { clients: 16, seed, ..free.clone() }.go();
            holds!(refused(&fewer), <= 0.015);
            let more = Run { clients: 60, seed, ..free.clone() }.go();
            holds!(refused(&more), <= 0.05);
            let twice =
                go(&format!("gradient_{name}_double_load"), seed, Run { rate: |_| 800.0, ..patient.clone() });
            holds!(twice.goodput(5.0..60.0), >= 0.91 * CAPACITY);
            done += twice.goodput(5.0..60.0) / 3.0;
            let tenth_over = Run { rate: |_| 440.0, seed, ..patient.clone() }.go();
            holds!(tenth_over.goodput(5.0..60.0), >= 0.85 * CAPACITY);
        }
        holds!(done, >= 0.94 * CAPACITY);
    }
}

/// Half of all answers say that they are overloaded, at a third of the load: the limit is not what is wrong.
#[test]
fn in_a_brownout_at_low_load_the_limit_does_not_collapse() {
    let refused = |time| if (20.0..40.0).contains(&time) { 0.5 } else { 0.0 };
    let record = curve("gradient_brownout", &Run { rate: |_| 120.0, refused, ..twenty() });
    holds!(record.limit(20.0..60.0), >= 15.0);
    holds!(record.refused(20.0..60.0) / record.asked_in(20.0..60.0), < 0.005);

    let hangs = |time| if (20.0..40.0).contains(&time) { 0.2 } else { 0.0 };
    let run = Run { rate: |_| 120.0, hangs, request_timeout: Duration::from_millis(500), ..twenty() };
    let record = curve("gradient_brownout_that_hangs", &run);
    // What hangs holds its slot, and nobody gets another one for that.
    holds!(record.limit(20.0..60.0), >= 15.0);
    holds!(record.refused(42.0..60.0) / record.asked_in(42.0..60.0), < 0.005);
}

/// Half of the load is one tenant's, and the upstream answers it 429.
#[test]
fn one_tenants_429s_teach_nothing() {
    let record = curve("gradient_429", &Run { rate: |_| 400.0, limited: |_| 0.5, ..twenty() });
    holds!(record.refused(5.0..60.0) / record.asked_in(5.0..60.0), < 0.01);
    holds!(record.limit(5.0..60.0), >= 19.0);
}

#[test]
fn a_wave_of_twice_the_capacity() {
    for seed in SEEDS {
        let rate = |time| if (10.0..22.0).contains(&time) { 1600.0 } else { 400.0 };
        let record = go("gradient_wave", seed, Run { rate, seconds: 30.0, ..eight() });
        holds!(record.refused(0.0..10.0) + record.errors(0.0..10.0), == 0.0);
        holds!(record.goodput(10.0..22.0), >= 0.97 * 800.0);
        holds!(record.p99(10.0..22.0), < 130.0);
        holds!(record.p99_of_refusals(10.0..22.0), < 5.0);
        holds!(record.wasted_in(10.0..22.0), == 0.0);
        holds!(record.refused(22.5..30.0) + record.errors(22.5..30.0), == 0.0);
        holds!(record.got(22.5..30.0), >= 0.98);
    }
}

#[test]
fn a_stall_of_three_seconds() {
    for seed in 1..=9 {
        let upstream = Shape { stalls: &[(10.0, 13.0)], ..eight().upstream };
        let deadline = Duration::from_millis(500);
        let run = Run { rate: |_| 640.0, seconds: 20.0, deadline, upstream, ..eight() };
        let record = go("gradient_stall", seed, run);
        holds!(record.wasted_in(9.0..13.2), <= 60.0);
        holds!(record.got(13.3..20.0), >= 0.97);
        holds!(record.refused(13.3..20.0) + record.errors(13.3..20.0), <= 2.0);
    }
}

/// From 10 to 80 ms, so that 800 in a second become 100.
#[test]
fn a_service_that_becomes_eight_times_slower_for_a_while() {
    let mut done = 0.0;
    for seed in 1..=9 {
        let mean = |time| if (10.0..22.0).contains(&time) { 0.08 } else { 0.01 };
        let run =
            Run { rate: |_| 400.0, seconds: 30.0, upstream: Shape { mean, ..eight().upstream }, ..eight() };
        let record = go("gradient_eight_times_slower", seed, run);
        holds!(record.refused(0.0..10.0) + record.errors(0.0..10.0), == 0.0);
        // With 250 ms for queue and answer, an attempt more than there are workers is one that is cut off: a probe or
        // two, or one slot too many for a while, show.
        holds!(record.goodput(12.0..22.0), >= 89.0);
        done += record.goodput(12.0..22.0) / 9.0;
        holds!(record.refused(23.0..30.0) + record.errors(23.0..30.0), == 0.0);
    }
    holds!(done, >= 96.0);
}
