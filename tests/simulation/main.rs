//! Curves of a limiter.
mod chance;
mod record;
mod upstream;
mod world;

use outrigger::policy::limit;
use world::Run;

fn gradient() -> limit::Settings {
    limit::Settings::Gradient { initial: 20, min: 4, max: 1000 }
}

fn show(run: &Run, step: f64) {
    let began = std::time::Instant::now();
    let record = run.go();
    println!("took {:?}", began.elapsed());
    if std::env::var("SHARES").is_ok() {
        let n = record.seconds() as usize;
        for k in 0..10 {
            println!(
                "{:?} {:?}",
                record.shares(n * k / 10..n * (k + 1) / 10),
                record.limits.iter().map(|l| l[(l.len() - 1) * (k + 1) / 10]).collect::<Vec<_>>()
            );
        }
    }
    let mut t = 0.0;
    while t < record.seconds() {
        let r = t..t + step;
        println!(
            "{t:7.1} limit {:6.1} flight {:6.1} p50 {:7.1} p99 {:7.1} good {:7.1} refused {:7.1} errors {:6.1} wasted {:6.1} asked {:6.1}",
            record.limit(r.clone()),
            record.in_flight(r.clone()),
            record.p50(r.clone()),
            record.p99(r.clone()),
            record.goodput(r.clone()),
            record.refused(r.clone()) / step,
            record.errors(r.clone()) / step,
            record.wasted_in(r.clone()) / step,
            record.asked_in(r.clone()) / step
        );
        t += step;
    }
}

#[test]
fn explore() {
    let which = std::env::var("ROW").unwrap_or_default();
    let step: f64 = std::env::var("STEP").ok().and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let limit = match std::env::var("KIND").as_deref() {
        Ok("aimd") => limit::Settings::Aimd {
            initial: 20,
            min: 4,
            max: 1000,
            latency: Some(outrigger::units::Span::from_millis(100)),
        },
        Ok("vegas") => limit::Settings::Vegas { initial: 20, min: 4, max: 1000 },
        _ => gradient(),
    };
    let twenty = Run { seed, ..Run::before_twenty_workers(limit) };
    let eight = Run { seed, ..Run::before_eight_workers(limit) };
    let run = match which.as_str() {
        "half" => Run { rate: |_| 200.0, ..twenty },
        "double" => Run { rate: |_| 800.0, ..twenty },
        "long" => Run { rate: |_| 800.0, seconds: 1200.0, ..twenty },
        "ten" => Run { rate: |_| 440.0, seconds: 1200.0, ..twenty },
        "slower" => Run {
            rate: |t| if t < 90.0 { 120.0 } else { 400.0 },
            upstream: upstream::Shape {
                mean: |t| if t < 30.0 { 0.05 } else { 0.1 },
                ..twenty.upstream.clone()
            },
            seconds: 150.0,
            ..twenty
        },
        "high" => Run {
            rate: |_| 800.0,
            limit: limit::Settings::Gradient { initial: 200, min: 4, max: 1000 },
            ..twenty
        },
        "wave" => {
            Run { rate: |t| if (10.0..22.0).contains(&t) { 1600.0 } else { 400.0 }, seconds: 30.0, ..eight }
        }
        "stall" => Run {
            rate: |_| 640.0,
            seconds: 20.0,
            deadline: std::time::Duration::from_millis(500),
            upstream: upstream::Shape { stalls: &[(10.0, 13.0)], ..eight.upstream.clone() },
            ..eight
        },
        "step" => Run {
            rate: |_| 400.0,
            seconds: 30.0,
            upstream: upstream::Shape {
                mean: |t| if (10.0..22.0).contains(&t) { 0.08 } else { 0.01 },
                ..eight.upstream.clone()
            },
            ..eight
        },
        "hundred" => Run {
            rate: |_| 4000.0,
            seconds: 30.0,
            upstream: upstream::Shape { workers: |_| 100, ..twenty.upstream.clone() },
            ..twenty
        },
        "ten_sidecars" => Run {
            rate: |t| if t < 30.0 { 800.0 } else { 3200.0 },
            seconds: 300.0,
            sidecars: 10,
            upstream: upstream::Shape { workers: |_| 80, ..twenty.upstream.clone() },
            ..twenty
        },
        "ten_b" => Run {
            rate: |t| if t < 30.0 { 800.0 } else { 3200.0 },
            seconds: 150.0,
            sidecars: 10,
            queue: 100,
            upstream: upstream::Shape { workers: |_| 80, ..twenty.upstream.clone() },
            ..twenty
        },
        "ten_c" => Run {
            rate: |t| if t < 30.0 { 800.0 } else { 3200.0 },
            seconds: 150.0,
            sidecars: 10,
            queue: 100,
            upstream: upstream::Shape {
                workers: |_| 80,
                service: upstream::Service::Fixed,
                ..twenty.upstream.clone()
            },
            ..twenty
        },
        "ten_d" => Run {
            rate: |_| 3200.0,
            seconds: 150.0,
            sidecars: 10,
            queue: 100,
            upstream: upstream::Shape { workers: |_| 80, ..twenty.upstream.clone() },
            ..twenty
        },
        _ => return,
    };
    show(&run, step);
}
