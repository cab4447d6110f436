//! What telling of a request costs, in instructions (they repeat; time on a shared machine does not).
//!
//! `cargo bench --bench telemetry`; needs valgrind and `gungraun-runner` of the same version as the crate.

#![allow(missing_docs)] // of what the macros make

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use gungraun::{library_benchmark, library_benchmark_group, main};
use outrigger::reason::Reason;
use outrigger::telemetry::access_log::{AccessLog, Line, WorkerLog};
use outrigger::telemetry::cells::{Counter, DURATIONS, Histogram};
use outrigger::telemetry::metrics::{
    AttemptOutcome, EndpointMetrics, Metrics, RequestOutcome, RouteMetrics, UpstreamMetrics, Words,
};
use outrigger::telemetry::{AccessLogSettings, Format, Only};
use outrigger::units::Ratio;

/// The handles that a request's way holds.
struct Handles {
    metrics: Arc<Metrics>,
    upstream: Arc<UpstreamMetrics>,
    route: Arc<RouteMetrics>,
    endpoint: Arc<EndpointMetrics>,
}

fn handles() -> Handles {
    let metrics = Metrics::new(2, "0", "0", Words::default());
    Handles {
        upstream: metrics.upstream("app"),
        route: metrics.route("egress", "default", "app"),
        endpoint: metrics.endpoint("app", "127.0.0.1:9000"),
        metrics,
    }
}

fn log() -> (AccessLog, WorkerLog) {
    let settings =
        AccessLogSettings { path: "/dev/null".to_owned(), only: Only::All, sample: Ratio::new(0.0) };
    let log = AccessLog::start(&settings, Format::Json, Arc::default()).expect("there is a /dev/null");
    let worker = log.worker_log();
    // The buffer has its size, the second its text.
    worker.write(&line());
    worker.flush();
    (log, worker)
}

fn line() -> Line<'static> {
    Line {
        at: UNIX_EPOCH + Duration::from_millis(1_709_164_801_007),
        request_id: b"5f0c7a1e9b3d4c28a6e1f40b92d7c853",
        client: "127.0.0.1:50123".parse().expect("an address"),
        listener: "egress",
        route: "payments",
        upstream: "payments",
        endpoint: "127.0.0.1:9101",
        method: b"GET",
        target: b"/payments/42?currency=eur",
        status: 503,
        outcome: RequestOutcome::Rejected,
        fallback: None,
        reason: Some(Reason::BreakerOpen),
        rate_limit: "",
        attempts: 2,
        hedge: None,
        head: Duration::from_micros(12_034),
        total: Duration::from_micros(12_310),
        queue: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 231,
    }
}

#[library_benchmark]
fn counter_inc() -> Counter {
    let counter = Counter::default();
    black_box(&counter).inc();
    counter
}

#[library_benchmark]
#[bench::short(Duration::from_micros(300))]
#[bench::long(Duration::from_secs(7))]
fn histogram_observe(duration: Duration) -> Histogram {
    let histogram = Histogram::new(&DURATIONS);
    black_box(&histogram).observe(black_box(duration));
    histogram
}

// All that a request with one good attempt counts.
#[library_benchmark]
#[bench::one_attempt(args = (), setup = handles)]
fn request(handles: Handles) -> Handles {
    let worker = black_box(0);
    let took = black_box(Duration::from_micros(800));
    let shard = handles.upstream.shard(worker);
    shard.attempts(AttemptOutcome::of_status(black_box(200))).inc();
    shard.attempt_duration.observe(took);
    handles.endpoint.shard(worker).attempts(AttemptOutcome::of_status(black_box(200))).inc();
    let outcome = RequestOutcome::of_status(black_box(200));
    shard.request_duration(outcome).observe(took);
    shard.response_duration.observe(took);
    handles.route.shard(worker).requests(black_box(200), outcome).inc();
    handles.metrics.overhead(worker).observe(black_box(Duration::from_micros(30)));
    handles
}

#[library_benchmark]
#[bench::json(args = (), setup = log)]
fn access_log_line((log, worker): (AccessLog, WorkerLog)) -> (AccessLog, WorkerLog) {
    if worker.wants(black_box(true), black_box(0.5)) {
        worker.write(black_box(&line()));
    }
    (log, worker)
}

// The page of ten upstreams, for comparison: what a scrape costs, off the workers.
#[library_benchmark]
#[bench::ten_upstreams(args = (), setup = ten_upstreams)]
fn page((metrics, held): (Arc<Metrics>, Vec<Arc<UpstreamMetrics>>)) -> (String, Vec<Arc<UpstreamMetrics>>) {
    (metrics.render(), held)
}

fn ten_upstreams() -> (Arc<Metrics>, Vec<Arc<UpstreamMetrics>>) {
    let metrics = Metrics::new(2, "0", "0", Words::default());
    let held = (0..10).map(|number| metrics.upstream(&number.to_string())).collect();
    metrics.set_config("digest", UNIX_EPOCH);
    (metrics, held)
}

library_benchmark_group!(
    name = telemetry,
    benchmarks = [counter_inc, histogram_observe, request, access_log_line, page]
);

main!(library_benchmark_groups = telemetry);
