//! What each policy costs a request, in nanoseconds, beside the 100 that admit and record may cost.
//!
//! ```text
//! cargo bench --bench nanoseconds -- [--check] [FILTER]
//! ```
//!
//! Each step runs a thousand times a round, on a state of its own, and its cost is the best of the rounds: what else
//! the machine does only ever adds. It says what these machines do; `cargo bench --bench policies` counts
//! instructions, which repeat. `--check` ends with 1 where one costs more.

mod steps;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use outrigger::policy::failure::Verdict;
use outrigger::upstream::balance::Kind;

use steps::RateLimits;

/// What one may cost.
const LIMIT: f64 = 100.0;
/// How long each is measured, and how often at least.
const TIME: Duration = Duration::from_millis(200);
const ROUNDS: u32 = 20;

/// The best of many rounds, for one step.
fn time<S>(set_up: impl Fn() -> S, steps: impl Fn(S)) -> f64 {
    let begin = Instant::now();
    let (mut best, mut rounds) = (Duration::MAX, 0);
    while rounds < ROUNDS || begin.elapsed() < TIME {
        let state = black_box(set_up());
        let start = Instant::now();
        steps(state);
        best = best.min(start.elapsed());
        rounds += 1;
    }
    best.as_secs_f64() * 1e9 / f64::from(steps::TIMES)
}

/// A step with its name.
type Bench = (&'static str, fn() -> f64);

#[rustfmt::skip]
const BENCHES: &[Bench] = &[
    ("breaker: admit, closed",               || time(steps::breaker, steps::breaker_admit)),
    ("breaker: refuse, open",                || time(steps::open_breaker, steps::breaker_admit)),
    ("breaker: admit and record",            || time(steps::breaker, |state| steps::breaker_admit_and_record(state, Verdict::Success))),
    ("retry budget: a first attempt",        || time(steps::budget, steps::budget_deposit)),
    ("retry budget: withdraw",               || time(steps::budget, steps::budget_withdraw)),
    ("hedge: a request",                     || time(steps::hedge, steps::hedge_of_a_request)),
    ("hedge: admit one that is due",         || time(steps::hedge, steps::hedge_admit)),
    ("concurrency: enter and leave",         || time(|| steps::gate(0), steps::gate_enter_and_leave)),
    ("concurrency: queue, and grant",        || time(|| steps::gate(1000), steps::gate_queue_and_leave)),
    ("limit: an attempt, gradient",          || time(|| steps::limiter((steps::gradient(), 5)), steps::limiter_attempt)),
    ("limit: the same, saturated",           || time(|| steps::limiter((steps::gradient(), 20)), steps::limiter_attempt)),
    ("limit: an attempt, aimd",              || time(|| steps::limiter((steps::aimd(), 20)), steps::limiter_attempt)),
    ("limit: an attempt, vegas",             || time(|| steps::limiter((steps::vegas(), 20)), steps::limiter_attempt)),
    ("latency: record",                      || time(steps::latency, steps::latency_record)),
    ("latency: p50",                         || time(steps::latency, steps::latency_p50)),
    ("deadline: feasible",                   || time(|| (), |()| steps::feasibility())),
    ("retry: decide",                        || time(|| (), |()| steps::retry_decide())),
    ("backoff: wait",                        || time(|| (), |()| steps::backoff_wait())),
    ("failure: classify",                    || time(|| (), |()| steps::classify())),
    ("shed: admit and record, calm",         || time(steps::shed, steps::shed_admit)),
    ("shed: admit and record, overloaded",   || time(steps::overloaded_shed, steps::shed_admit)),
    ("mode and rollout",                     || time(|| (), |()| steps::mode_of_a_request())),
    ("grpc-timeout in and out",              || time(|| (), |()| steps::grpc_timeout_in_and_out())),
    ("balance: pick of 3, least_loaded",     || time(|| steps::tables((Kind::LeastLoaded, 3)), steps::balance_pick)),
    ("balance: pick of 1000, least_loaded",  || time(|| steps::tables((Kind::LeastLoaded, 1000)), steps::balance_pick)),
    ("balance: pick of 3, hash",             || time(|| steps::tables((Kind::Hash, 3)), steps::balance_pick)),
    ("balance: load of an attempt",          || time(|| (), |()| steps::balance_load())),
    ("rate limit: one for all",              || time(|| steps::rate_limits(RateLimits::Shared), steps::rate_limit_admit)),
    ("rate limit: one for each key",         || time(|| steps::rate_limits(RateLimits::Keyed), steps::rate_limit_admit)),
    ("rate limit: both",                     || time(|| steps::rate_limits(RateLimits::Two), steps::rate_limit_admit)),
    ("rate limit: refuse",                   || time(|| steps::rate_limits(RateLimits::Spent), steps::rate_limit_admit)),
];

/// What waits for memory, since a million keys are in no cache: told, and not held to the limit.
#[rustfmt::skip]
const BEYOND_CACHES: &[Bench] = &[
    ("rate limit: one of a million keys",    || time(steps::a_million_keys, |state| steps::rate_limit_admit_of_many(state, 0))),
    ("rate limit: a key beyond a million",   || time(steps::a_million_keys, |state| steps::rate_limit_admit_of_many(state, 1_000_000))),
];

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let check = words.iter().any(|word| word == "--check");
    let filter = words.iter().find(|word| *word != "--check");
    let mut is_over = false;
    let benches = BENCHES.iter().map(|bench| (bench, LIMIT));
    let benches = benches.chain(BEYOND_CACHES.iter().map(|bench| (bench, f64::INFINITY)));
    for ((name, bench), limit) in benches {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let cost = bench();
        is_over |= cost > limit;
        println!("{name:40} {cost:7.1} ns{}", if cost > limit { "  MORE THAN 100" } else { "" });
    }
    ExitCode::from(u8::from(check && is_over))
}
