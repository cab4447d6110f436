//! What a limiter does together with others: other sidecars, clients that retry, priorities.

use std::time::Duration;

use crate::record::Record;
use crate::upstream::{Service, Shape};
use crate::world::Run;
use crate::{DEFAULT, curve, holds};

/// Ten sidecars before 80 workers of 50 ms: half of the load for half a minute, then twice of it.
fn ten_sidecars(service: Service, queue: u32) -> Run {
    let run = Run::before_twenty_workers(DEFAULT);
    let upstream = Shape { service, workers: |_| 80, ..run.upstream };
    let rate = |time| if time < 30.0 { 800.0 } else { 3200.0 };
    Run { rate, seconds: 210.0, sidecars: 10, queue, upstream, ..run }
}

/// Each sidecar gets what is its own, within a quarter of it.
fn share_evenly(name: &str, record: &Record) {
    let shares = record.shares(60..210);
    let fair = shares.iter().sum::<f64>() / 10.0;
    for share in &shares {
        assert!((0.75..=1.25).contains(&(share / fair)), "{name}: {shares:?}");
    }
}

#[test]
fn ten_sidecars_share_one_upstream() {
    for (name, service, queue) in [
        ("together_ten_sidecars", Service::Lognormal, 0),
        ("together_ten_sidecars_fixed_service", Service::Fixed, 100),
    ] {
        let record = curve(name, &ten_sidecars(service, queue));
        holds!(record.goodput(35.0..210.0), >= 0.95 * 1600.0);
        holds!(record.p50(60.0..210.0), <= 100.0);
        let (early, late) = (record.limit(60.0..110.0), record.limit(160.0..210.0));
        assert!((0.9..1.1).contains(&(late / early)), "{name}: the limits drift from {early} to {late}");

        share_evenly(name, &record);
        holds!(record.most_cut_at_once(60.0..210.0), <= 3);
    }
}

#[test]
fn ten_sidecars_share_an_upstream_of_wide_latencies() {
    for (name, service) in
        [("halves", Service::Halves), ("exponential", Service::Exponential), ("wide", Service::Wide)]
    {
        let record = ten_sidecars(service, 0).go();
        holds!(record.goodput(35.0..210.0), >= 0.95 * 1600.0);
        holds!(record.p50(60.0..210.0), <= 100.0);
        holds!(record.refused(5.0..30.0), == 0.0);
        share_evenly(name, &record);
    }
}

/// Twice the capacity for half a minute, of clients that try four times, then 0.7 of it.
#[test]
fn an_overload_of_clients_that_retry_ends_with_its_cause() {
    for seed in 1..=3 {
        let rate = |time| if time < 30.0 { 1600.0 } else { 560.0 };
        let run = Run { rate, client_tries: 4, seed, ..Run::before_eight_workers(DEFAULT) };
        let record = if seed == 1 { curve("together_clients_retry", &run) } else { run.go() };
        holds!(record.goodput(5.0..30.0), >= 0.95 * 800.0);
        holds!(record.got(40.0..60.0), >= 0.95);
    }
}

#[test]
fn in_twice_the_load_what_is_critical_is_served() {
    for seed in 1..=3 {
        let run = Run {
            rate: |_| 1600.0,
            critical: 0.2,
            deadline: Duration::from_millis(250),
            seed,
            ..Run::before_eight_workers(DEFAULT)
        };
        let record = if seed == 1 { curve("together_critical", &run) } else { run.go() };
        holds!(record.goodput(5.0..60.0), >= 0.97 * 800.0);
        holds!(record.p99_of_critical(5.0..60.0), < 60.0);
    }
}
