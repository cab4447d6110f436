//! `aimd`, `vegas` and `fixed`: what they are good for, and what not.

use outrigger::policy::limit::Settings;
use outrigger::units::Span;

use crate::upstream::Shape;
use crate::world::Run;
use crate::{curve, holds};

const CAPACITY: f64 = 400.0;

fn aimd(initial: u32) -> Run {
    let latency = Some(Span::from_millis(200));
    Run::before_twenty_workers(Settings::Aimd { initial, min: 4, max: 1000, latency })
}

fn vegas(initial: u32) -> Run {
    Run::before_twenty_workers(Settings::Vegas { initial, min: 4, max: 1000 })
}

fn half(run: Run, name: &str) {
    let record = curve(name, &Run { rate: |_| 200.0, ..run });
    holds!(record.refused(0.0..60.0) / record.asked_in(0.0..60.0), < 0.005);
}

fn twice_as_slow(run: Run) -> Run {
    let mean = |time| if time < 30.0 { 0.05 } else { 0.1 };
    let rate = |time| if time < 90.0 { 120.0 } else { 400.0 };
    Run { rate, seconds: 150.0, upstream: Shape { mean, ..run.upstream.clone() }, ..run }
}

#[test]
fn aimd_keeps_the_latency_that_it_is_given() {
    half(aimd(20), "aimd_half_load");
    let (double, tenth_over) = (Run { rate: |_| 800.0, ..aimd(20) }, Run { rate: |_| 440.0, ..aimd(20) });
    for (name, seconds, run) in [
        ("aimd_double_load", 60.0, double.clone()),
        ("aimd_double_load_long", 300.0, double),
        ("aimd_tenth_over_long", 300.0, tenth_over),
    ] {
        let record = curve(name, &Run { seconds, ..run });
        holds!(record.goodput(15.0..seconds), >= 0.95 * CAPACITY);
        holds!(record.p50(15.0..seconds), <= 200.0);
    }
    let record = curve("aimd_twice_as_slow", &twice_as_slow(aimd(20)));
    holds!(record.goodput(105.0..150.0), >= 0.9 * CAPACITY / 2.0);
    let record = curve("aimd_starts_too_high", &Run { rate: |_| 800.0, ..aimd(200) });
    holds!(record.p50(40.0..60.0), <= 200.0);
}

/// Nothing else tells it of a queue: this is why `check` warns.
#[test]
fn aimd_without_a_latency_rises_until_the_upstream_times_out() {
    let limit = Settings::Aimd { initial: 20, min: 4, max: 1000, latency: None };
    let record = curve("aimd_without_latency", &Run { rate: |_| 800.0, ..Run::before_twenty_workers(limit) });
    holds!(record.p50(30.0..60.0), > 400.0);
}

#[test]
fn vegas_keeps_a_small_queue() {
    half(vegas(20), "vegas_half_load");
    let (double, tenth_over) = (Run { rate: |_| 800.0, ..vegas(20) }, Run { rate: |_| 440.0, ..vegas(20) });
    for (name, seconds, run) in [
        ("vegas_double_load", 60.0, double.clone()),
        ("vegas_double_load_long", 300.0, double),
        ("vegas_tenth_over_long", 300.0, tenth_over),
    ] {
        let record = curve(name, &Run { seconds, ..run });
        holds!(record.goodput(15.0..seconds), >= 0.93 * CAPACITY);
        holds!(record.p50(15.0..seconds), <= 100.0);
    }
    let record = curve("vegas_twice_as_slow", &twice_as_slow(vegas(20)));
    holds!(record.refused(30.0..90.0) / record.asked_in(30.0..90.0), <= 0.02);
    holds!(record.goodput(105.0..150.0), >= 0.9 * CAPACITY / 2.0);
    let record = curve("vegas_starts_too_high", &Run { rate: |_| 800.0, ..vegas(200) });
    holds!(record.goodput(15.0..60.0), >= 0.93 * CAPACITY);
    holds!(record.p50(45.0..60.0), <= 150.0);
}

/// A fixed limit that fits is as good as any, and one that fitted before the last deploy is not.
#[test]
fn a_fixed_limit_is_right_as_long_as_its_number_is() {
    let fixed = |max| Run { rate: |_| 800.0, ..Run::before_twenty_workers(Settings::Fixed { max }) };
    let record = curve("fixed_fits", &fixed(22));
    holds!(record.goodput(2.0..60.0), >= 0.95 * CAPACITY);
    holds!(record.p50(2.0..60.0), <= 75.0);
    let record = curve("fixed_too_high", &fixed(200));
    holds!(record.p50(2.0..60.0), > 400.0);
}
