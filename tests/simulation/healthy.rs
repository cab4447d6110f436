//! `gradient` before upstreams that never make anybody wait: whatever is refused, is refused for nothing.
//!
//! Each has thousands of workers, and what is asked of it needs more slots than the limit begins with. A limit that is
//! found from latencies has to learn that they are slow, mixed or long, and not queueing.

use std::time::Duration;

use crate::record::Record;
use crate::upstream::{Service, Shape};
use crate::world::Run;
use crate::{DEFAULT, curve, holds};

fn free(service: Service, mean: fn(f64) -> f64) -> Run {
    Run {
        rate: |_| 0.0,
        queue: 100,
        deadline: Duration::from_secs(10),
        upstream: Shape { service, mean, workers: |_| 5000, stalls: &[] },
        ..Run::before_twenty_workers(DEFAULT)
    }
}

/// 300 quick calls a second, beside clients that get something else.
fn beside(clients: u32, apart: (f64, f64)) -> Run {
    Run { rate: |_| 300.0, clients, apart: Some(apart), ..free(Service::Fixed, |_| 0.01) }
}

/// What part was not served.
fn lost(record: &Record, from: f64, to: f64) -> f64 {
    (record.refused(from..to) + record.errors(from..to)) / record.asked_in(from..to)
}

#[test]
fn a_start_with_many_clients_is_over_in_a_second() {
    let services = [
        ("fixed", Service::Fixed),
        ("lognormal", Service::Lognormal),
        ("halves", Service::Halves),
        ("exponential", Service::Exponential),
        ("wide", Service::Wide),
    ];
    for (name, service) in services {
        for seed in 1..=5 {
            let run = Run { clients: 250, queue: 0, seconds: 20.0, seed, ..free(service, |_| 0.06) };
            let record = if seed == 1 { curve(&format!("healthy_start_{name}"), &run) } else { run.go() };
            holds!(lost(&record, 0.0, 1.0), <= 0.5);
            holds!(lost(&record, 1.0, 20.0), <= 0.015);
            let fewer = Run { clients: 60, ..run }.go();
            holds!(lost(&fewer, 0.0, 1.0), <= 0.2);
            holds!(lost(&fewer, 1.0, 20.0), <= 0.03);
        }
    }
}

#[test]
fn answers_that_take_seconds_come_together() {
    for seed in 1..=3 {
        for (clients, mean) in
            [(45, (|_| 0.6) as fn(f64) -> f64), (30, |_| 1.0), (45, |_| 1.0), (80, |_| 2.0)]
        {
            let record = Run { clients, seed, ..free(Service::Fixed, mean) }.go();
            holds!(lost(&record, 20.0, 60.0), == 0.0);
        }
        for (rate, mean) in [((|_| 15.0) as fn(f64) -> f64, (|_| 3.0) as fn(f64) -> f64), (|_| 60.0, |_| 1.0)]
        {
            let record = Run { rate, seed, ..free(Service::Fixed, mean) }.go();
            holds!(lost(&record, 20.0, 60.0), == 0.0);
        }
    }
}

/// 400 in a second take 3 ms, 40 take 900 ms.
#[test]
fn two_routes_that_take_very_different_times() {
    for seed in 1..=3 {
        let run = Run { rate: |_| 440.0, seed, ..free(Service::Routes, |_| 0.003) };
        let record = if seed == 1 { curve("healthy_two_routes", &run) } else { run.go() };
        holds!(lost(&record, 0.0, 5.0), <= 0.2);
        holds!(lost(&record, 5.0, 60.0), <= 0.005);
        let tenth = Run { rate: |_| 0.0, clients: 60, ..run }.go();
        holds!(lost(&tenth, 5.0, 60.0), <= 0.005);
    }
}

/// From 10 to 300 ms within 15 s, and nobody needs more than there is.
#[test]
fn a_latency_that_grows_without_a_queue() {
    let run = Run { clients: 60, ..free(Service::Fixed, |time| 0.01 + 0.29 * (time / 15.0).min(1.0)) };
    let record = curve("healthy_grows", &run);
    holds!(lost(&record, 1.0, 60.0), == 0.0);
}

#[test]
fn long_polls_beside_quick_calls() {
    for seed in 1..=3 {
        let record = Run { seed, ..beside(15, (5.0, 0.0)) }.go();
        holds!(lost(&record, 0.0, 60.0), <= 0.01);
        let run = Run { seed, ..beside(40, (5.0, 0.0)) };
        let record = if seed == 1 { curve("healthy_long_polls", &run) } else { run.go() };
        holds!(lost(&record, 20.0, 60.0), <= 0.005);
    }
}

/// Heads come at once, bodies take seconds, and hold their slots meanwhile.
#[test]
fn long_bodies_beside_quick_calls() {
    for seed in 1..=3 {
        for (clients, body) in [(60, 4.0), (80, 5.0)] {
            let run = Run { seed, ..beside(clients, (0.01, body)) };
            let record =
                if seed == 1 && clients == 60 { curve("healthy_long_bodies", &run) } else { run.go() };
            holds!(lost(&record, 20.0, 60.0), <= 0.005);
        }
    }
}
