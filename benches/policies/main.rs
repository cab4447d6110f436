//! What each policy costs a request, in instructions: they repeat, where nanoseconds do not (`timed` has those).
//!
//! `cargo bench --bench policies` needs valgrind, and gungraun-runner of the version in `Cargo.lock`. Each bench
//! runs its step a thousand times, so that what the counts say per request is theirs by a thousand, and what the
//! harness adds does not matter.

#![allow(missing_docs)] // what the macros make has none

mod steps;

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Instant;

use gungraun::prelude::*;
use outrigger::policy::breaker::Breaker;
use outrigger::policy::budget::Budget;
use outrigger::policy::concurrency::Gate;
use outrigger::policy::failure::Verdict;
use outrigger::policy::latency::Latency;
use outrigger::policy::limit::Limiter;
use outrigger::policy::rate_limit::Limits;
use outrigger::policy::shed::Shed;
use outrigger::upstream::balance::{Kind, Tables};
use outrigger::upstream::endpoint::InFlight;

use steps::RateLimits;

// Admitted, and dropped without an outcome.
#[library_benchmark]
#[bench::closed(steps::breaker())]
#[bench::open(steps::open_breaker())]
fn breaker_admit(state: (Arc<Breaker>, Instant)) {
    steps::breaker_admit(state);
}

#[library_benchmark]
#[bench::success(steps::breaker(), Verdict::Success)]
fn breaker_admit_and_record(state: (Arc<Breaker>, Instant), verdict: Verdict) {
    steps::breaker_admit_and_record(state, verdict);
}

// What each request pays: a deposit, and the news that its first attempt succeeded.
#[library_benchmark]
#[bench::full(steps::budget())]
fn budget_deposit(state: (Arc<Budget>, Instant)) {
    steps::budget_deposit(state);
}

#[library_benchmark]
#[bench::refused(steps::budget())]
fn budget_withdraw(state: (Arc<Budget>, Instant)) {
    steps::budget_withdraw(state);
}

// What each request pays where hedging is on.
#[library_benchmark]
#[bench::known(steps::hedge())]
fn hedge_of_a_request(state: steps::Hedges) {
    steps::hedge_of_a_request(state);
}

#[library_benchmark]
#[bench::due(steps::hedge())]
fn hedge_admit(state: steps::Hedges) {
    steps::hedge_admit(state);
}

#[library_benchmark]
#[bench::free(steps::gate(0))]
fn gate_enter_and_leave(state: (Gate, Instant)) {
    steps::gate_enter_and_leave(state);
}

// Somebody comes, and a slot comes back.
#[library_benchmark]
#[bench::full(steps::gate(1000))]
fn gate_queue_and_leave(state: (Gate, Instant)) {
    steps::gate_queue_and_leave(state);
}

// Admitted, sent, answered, over.
#[library_benchmark]
#[bench::gradient(steps::limiter((steps::gradient(), 5)))]
#[bench::gradient_saturated(steps::limiter((steps::gradient(), 20)))]
#[bench::aimd(steps::limiter((steps::aimd(), 20)))]
#[bench::vegas(steps::limiter((steps::vegas(), 20)))]
fn limiter_attempt(state: (Limiter, u32, Instant)) {
    steps::limiter_attempt(state);
}

#[library_benchmark]
#[bench::any(steps::latency())]
fn latency_record(state: (Latency, Instant)) {
    steps::latency_record(state);
}

#[library_benchmark]
#[bench::any(steps::latency())]
fn latency_p50(state: (Latency, Instant)) {
    steps::latency_p50(state);
}

#[library_benchmark]
fn feasibility() {
    steps::feasibility();
}

#[library_benchmark]
fn retry_decide() {
    steps::retry_decide();
}

#[library_benchmark]
fn backoff_wait() {
    steps::backoff_wait();
}

#[library_benchmark]
fn classify() {
    steps::classify();
}

#[library_benchmark]
#[bench::calm(steps::shed())]
#[bench::overloaded(steps::overloaded_shed())]
fn shed_admit(state: Shed) {
    steps::shed_admit(state);
}

#[library_benchmark]
fn mode_of_a_request() {
    steps::mode_of_a_request();
}

#[library_benchmark]
fn grpc_timeout_in_and_out() {
    steps::grpc_timeout_in_and_out();
}

// With its part of looking at all of them, each millisecond or more.
#[library_benchmark]
#[bench::least_loaded_of_1(steps::tables((Kind::LeastLoaded, 1)))]
#[bench::least_loaded_of_3(steps::tables((Kind::LeastLoaded, 3)))]
#[bench::least_loaded_of_1000(steps::tables((Kind::LeastLoaded, 1000)))]
#[bench::least_request_of_3(steps::tables((Kind::LeastRequest, 3)))]
#[bench::round_robin_of_3(steps::tables((Kind::RoundRobin, 3)))]
#[bench::hash_of_3(steps::tables((Kind::Hash, 3)))]
#[bench::hash_of_1000(steps::tables((Kind::Hash, 1000)))]
fn balance_pick(state: (Tables, Vec<InFlight>, u64)) {
    steps::balance_pick(state);
}

// What an attempt costs the load of its endpoint: sent, answered in good order, over.
#[library_benchmark]
fn balance_load() {
    steps::balance_load();
}

// With the hash of the key, where there is one.
#[library_benchmark]
#[bench::one_for_all(steps::rate_limits(RateLimits::Shared))]
#[bench::one_for_each_key(steps::rate_limits(RateLimits::Keyed))]
#[bench::both(steps::rate_limits(RateLimits::Two))]
#[bench::refused(steps::rate_limits(RateLimits::Spent))]
fn rate_limit_admit(state: (Arc<Limits>, RandomState, Instant)) {
    steps::rate_limit_admit(state);
}

#[library_benchmark]
#[bench::known(steps::a_million_keys(), 0)]
#[bench::too_many(steps::a_million_keys(), 1_000_000)]
fn rate_limit_admit_of_many(state: (Arc<Limits>, RandomState, Instant), first: u64) {
    steps::rate_limit_admit_of_many(state, first);
}

library_benchmark_group!(
    name = policies,
    benchmarks = [
        breaker_admit,
        breaker_admit_and_record,
        budget_deposit,
        budget_withdraw,
        hedge_of_a_request,
        hedge_admit,
        gate_enter_and_leave,
        gate_queue_and_leave,
        limiter_attempt,
        latency_record,
        latency_p50,
        feasibility,
        retry_decide,
        backoff_wait,
        classify,
        shed_admit,
        mode_of_a_request,
        grpc_timeout_in_and_out,
        balance_pick,
        balance_load,
        rate_limit_admit,
        rate_limit_admit_of_many,
    ]
);

main!(library_benchmark_groups = policies);
