//! What each policy is asked for a request, a thousand times, with what it needs to be set up: counted by `main`,
//! timed by `timed`.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use outrigger::policy::breaker::{self, Breaker, Outcome};
use outrigger::policy::budget::Budget;
use outrigger::policy::concurrency::{self, Ask, Entry, Gate};
use outrigger::policy::deadline::Feasibility;
use outrigger::policy::failure::{self, Classifier, Verdict};
use outrigger::policy::hedge::{self, Due, Hedge};
use outrigger::policy::key;
use outrigger::policy::latency::Latency;
use outrigger::policy::limit::{self, Lesson, Limiter, Sample};
use outrigger::policy::mode::Mode;
use outrigger::policy::priority::Priority;
use outrigger::policy::rate_limit::{self, Limits};
use outrigger::policy::retry::{self, Cause, Failed, Rules};
use outrigger::policy::shed::level::level;
use outrigger::policy::shed::{self, Health, Shed};
use outrigger::policy::{backoff, deadline};
use outrigger::telemetry::metrics::{Metrics, Words};
use outrigger::units::Ratio;
use outrigger::upstream::balance::{self, Kind, Tables, Want, Weighted};
use outrigger::upstream::endpoint::{Address, Endpoint, InFlight};
use outrigger::upstream::standing::nanos;

/// How often each does its step.
pub(crate) const TIMES: u32 = 1000;
const LEASE: Duration = Duration::from_secs(5);

// A thousand instants, 100 us apart.
fn instants(start: Instant) -> impl Iterator<Item = Instant> {
    (0..TIMES).map(move |n| start + Duration::from_micros(100) * n)
}

fn outcome(verdict: Verdict) -> Outcome {
    Outcome { verdict, latency: Duration::from_millis(5), endpoint: 0, endpoints: 1, connect_timeout: false }
}

pub(crate) fn breaker() -> (Arc<Breaker>, Instant) {
    let now = Instant::now();
    (Arc::new(Breaker::new(&breaker::Settings::default(), now)), now)
}

pub(crate) fn open_breaker() -> (Arc<Breaker>, Instant) {
    let (breaker, now) = breaker();
    while let Ok(permit) = breaker.admit(now, 0.5, LEASE) {
        permit.record(now, outcome(Verdict::Failure));
    }
    (breaker, now)
}

// Admitted, and dropped without an outcome.
pub(crate) fn breaker_admit((breaker, now): (Arc<Breaker>, Instant)) {
    for now in instants(now) {
        drop(black_box(breaker.admit(black_box(now), 0.5, LEASE)));
    }
}

pub(crate) fn breaker_admit_and_record((breaker, now): (Arc<Breaker>, Instant), verdict: Verdict) {
    for now in instants(now) {
        if let Ok(permit) = breaker.admit(black_box(now), 0.5, LEASE) {
            permit.record(now, black_box(outcome(verdict)));
        }
    }
}

pub(crate) fn budget() -> (Arc<Budget>, Instant) {
    let now = Instant::now();
    (Arc::new(Budget::new(&retry::Settings::default().budget, now)), now)
}

// What each request pays: a deposit, and the news that its first attempt succeeded.
pub(crate) fn budget_deposit((budget, now): (Arc<Budget>, Instant)) {
    for now in instants(now) {
        budget.deposit(black_box(now));
        budget.first_succeeded();
    }
}

pub(crate) fn budget_withdraw((budget, now): (Arc<Budget>, Instant)) {
    for now in instants(now) {
        let _ = black_box(budget.withdraw(black_box(now)).map(drop));
    }
}

pub(crate) type Hedges = (Arc<Hedge>, Arc<Budget>, Instant);

// One that knows its percentiles, and has hedges saved up.
pub(crate) fn hedge() -> Hedges {
    let (budget, now) = budget();
    let hedge = Arc::new(Hedge::new(now));
    let settings = hedge::Settings::default();
    for n in 0..1000 {
        hedge.record(now, Duration::from_micros(1000 + n * n));
        hedge.deposit(settings.budget);
    }
    hedge.delay(now, &settings);
    (hedge, budget, now)
}

// What each request pays where hedging is on: a deposit, a look at the percentile, and its latency.
pub(crate) fn hedge_of_a_request((hedge, _, now): Hedges) {
    let settings = hedge::Settings::default();
    for (n, now) in (0..).zip(instants(now)) {
        hedge.deposit(black_box(settings.budget));
        black_box(hedge.delay(black_box(now), &settings));
        hedge.record(black_box(now), Duration::from_micros(n * 37));
    }
}

// One that is due: sent while both budgets last, refused from then on.
pub(crate) fn hedge_admit((hedge, budget, now): Hedges) {
    let settings = hedge::Settings::default();
    let due = Due { left: LEASE, is_closed: true, has_slot: true, has_endpoint: true };
    for now in instants(now) {
        let _ = black_box(hedge.admit(black_box(now), &settings, &due, &budget).map(drop));
    }
}

pub(crate) fn gate(in_flight: u32) -> (Gate, Instant) {
    let now = Instant::now();
    let mut gate = Gate::new(&concurrency::Settings::default(), now, 1);
    for _ in 0..in_flight.min(gate.limit()) {
        assert_eq!(gate.enter(&ask(now)), Entry::Slot);
    }
    (gate, now)
}

fn ask(now: Instant) -> Ask {
    Ask { now, deadline: Some(now + LEASE), priority: Priority::Normal, may_queue: true, p50: None }
}

fn sample(now: Instant) -> Option<Sample> {
    let latency = Duration::from_millis(5);
    Some(Sample { began: now - latency, latency, lesson: Lesson::Served })
}

pub(crate) fn gate_enter_and_leave((mut gate, now): (Gate, Instant)) {
    for now in instants(now) {
        let entry = gate.enter(black_box(&ask(now)));
        black_box(entry == Entry::Slot);
        let _ = black_box(gate.leave(now, sample(now), None));
    }
}

// Somebody comes, and a slot comes back.
pub(crate) fn gate_queue_and_leave((mut gate, now): (Gate, Instant)) {
    for now in instants(now) {
        let entry = gate.enter(black_box(&ask(now)));
        black_box(entry == Entry::Slot);
        let _ = black_box(gate.leave(now, sample(now), None));
    }
}

/// The limit of `kind`, and so many in flight at 5 ms each.
pub(crate) fn limiter((settings, in_flight): (limit::Settings, u32)) -> (Limiter, u32, Instant) {
    let now = Instant::now();
    let mut limiter = Limiter::new(&settings, now, 1);
    for n in 1..=in_flight {
        limiter.entered(now, n);
    }
    (limiter, in_flight, now)
}

pub(crate) fn gradient() -> limit::Settings {
    limit::Settings::Gradient { initial: 20, min: 4, max: 1000 }
}

pub(crate) fn aimd() -> limit::Settings {
    limit::Settings::Aimd { initial: 20, min: 4, max: 1000, latency: None }
}

pub(crate) fn vegas() -> limit::Settings {
    limit::Settings::Vegas { initial: 20, min: 4, max: 1000 }
}

// Admitted, sent, answered, over: with the windows that close meanwhile.
pub(crate) fn limiter_attempt((mut limiter, in_flight, now): (Limiter, u32, Instant)) {
    let latency = Duration::from_millis(5);
    for now in instants(now) {
        if !black_box(limiter.admits(black_box(now), in_flight)) {
            limiter.saturated(now);
        }
        limiter.entered(now, in_flight + 1);
        let began = now.checked_sub(latency).unwrap_or(now);
        limiter.answered(now, in_flight + 1, Sample { began, latency, lesson: Lesson::Served });
        limiter.left(now, in_flight);
    }
    black_box(limiter.limit());
}

pub(crate) fn latency() -> (Latency, Instant) {
    let now = Instant::now();
    (Latency::new(now), now)
}

pub(crate) fn latency_record((latency, now): (Latency, Instant)) {
    for (n, now) in (0..).zip(instants(now)) {
        latency.record(black_box(now), Duration::from_micros(n * 37));
    }
}

pub(crate) fn latency_p50((latency, now): (Latency, Instant)) {
    for now in instants(now) {
        black_box(latency.p50(black_box(now)));
    }
}

pub(crate) fn feasibility() {
    let now = Instant::now();
    let feasibility = Feasibility::new(now);
    for now in instants(now) {
        black_box(feasibility.check(black_box(now), LEASE, Some(Duration::from_millis(5))));
    }
}

const FAILED: Failed = Failed {
    cause: Cause::Status(503),
    unprocessed: false,
    method_ok: true,
    replayable: Ok(()),
    attempt: 1,
    caller_attempt: 0,
    retry_after: None,
    pushback_never: false,
    left: LEASE,
    other_endpoint: true,
    endpoints: 2,
    all_unprocessed: false,
    free_used: false,
};

pub(crate) fn retry_decide() {
    let settings = retry::Settings::default();
    let rules = Rules::new(&settings);
    for _ in 0..TIMES {
        black_box(retry::decide(black_box(&rules), black_box(&FAILED)));
    }
}

pub(crate) fn backoff_wait() {
    let settings = retry::Settings::default().backoff;
    for n in 0..TIMES {
        black_box(backoff::wait(black_box(&settings), n % 4, Duration::ZERO, 0.5));
    }
}

pub(crate) fn classify() {
    let classifier = Classifier::new(&failure::Settings::default());
    for n in 0..TIMES {
        black_box(classifier.status(black_box(200 + (n % 400) as u16)));
    }
}

pub(crate) fn shed() -> Shed {
    Shed::new(Instant::now(), 1_764_547_200)
}

// One that gets four times what completes, after so many half seconds.
pub(crate) fn overloaded_shed() -> Shed {
    let (shed, mut now) = (shed(), Instant::now());
    for _ in 0..10 {
        for user in 0..TIMES {
            if shed.admit(level(Priority::Normal, key::hash(&user.to_le_bytes()), shed.seconds())).is_ok() {
                if user % 4 == 0 { shed.completed() } else { shed.refused() }
            }
        }
        now += shed::TICK;
        let settings = shed::Settings::default();
        shed.tick((now, 1_764_547_200), &settings, || (20, 20, 0), Health::default);
    }
    shed
}

// A caller's hash, its level, and the answer; and what it came to, if it passed.
pub(crate) fn shed_admit(shed: Shed) {
    for user in 0..TIMES {
        let caller = key::hash(black_box(&user.to_le_bytes()));
        if shed.admit(level(black_box(Priority::Normal), caller, shed.seconds())).is_ok() {
            shed.completed();
        }
    }
}

pub(crate) fn mode_of_a_request() {
    for n in 0..TIMES {
        black_box(black_box(Mode::Enforce).of(black_box(Ratio::ONE), u64::from(n) << 50));
    }
}

pub(crate) fn grpc_timeout_in_and_out() {
    let mut out = Vec::with_capacity(16);
    for _ in 0..TIMES {
        let left = deadline::parse_grpc_timeout(black_box(b"2500m")).expect("it is well formed");
        out.clear();
        deadline::write_grpc_timeout(left, &mut out);
        black_box(&out);
    }
}

// The tables of so many endpoints that have answered, and have a request in flight each.
pub(crate) fn tables((kind, count): (Kind, u16)) -> (Tables, Vec<InFlight>, u64) {
    let metrics = Metrics::new(1, "", "", Words::default());
    let now = Instant::now();
    let usable: Vec<Weighted> = (1..=count)
        .map(|port| {
            let address: Address = format!("127.0.0.1:{port}").parse().expect("an address");
            let socket = address.socket().expect("it is one of numbers");
            let series = metrics.endpoint("app", "all");
            Weighted { endpoint: Arc::new(Endpoint::new(address, socket, series)), weight: 1, priority: 0 }
        })
        .collect();
    let in_flight = usable.iter().map(|choice| choice.endpoint.enter(now)).collect();
    let tables = Tables::new(&balance::Settings { kind, ..balance::Settings::default() }, &usable, 1000);
    (tables, in_flight, nanos(now))
}

// With its part of looking at all of them, each millisecond or more.
pub(crate) fn balance_pick((tables, in_flight, now): (Tables, Vec<InFlight>, u64)) {
    for n in 0..u64::from(TIMES) {
        let draw = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        black_box(tables.pick(black_box(&Want {
            unreached: false,
            tried: &[],
            draw,
            key: Some(draw),
            now: now + n * 100_000,
        })));
    }
    drop(in_flight);
}

// What an attempt costs the load of its endpoint: sent, answered in good order, over.
pub(crate) fn balance_load() {
    let metrics = Metrics::new(1, "", "", Words::default());
    let address: Address = "127.0.0.1:1".parse().expect("an address");
    let socket = address.socket().expect("it is one of numbers");
    let endpoint = Arc::new(Endpoint::new(address, socket, metrics.endpoint("app", "all")));
    for now in instants(Instant::now()) {
        let mut in_flight = endpoint.enter(black_box(now));
        in_flight.answered(now + Duration::from_millis(5));
        in_flight.release();
    }
}

/// What rate limits stand before the requests of a bench.
#[derive(Clone, Copy)]
pub(crate) enum RateLimits {
    /// One that all requests share.
    Shared,
    /// One for each tenant.
    Keyed,
    /// Both.
    Two,
    /// One that lets nothing through any more.
    Spent,
}

fn rate_limits_of(limits: serde_json::Value, now: Instant) -> Limits {
    let settings: Vec<_> = serde_json::from_value(limits).expect("they are well formed");
    Limits::new(&settings, None, now)
}

pub(crate) fn rate_limits(kind: RateLimits) -> (Arc<Limits>, RandomState, Instant) {
    let now = Instant::now();
    let shared = serde_json::json!({ "name": "shared", "rate": "1000000/s" });
    let keyed = serde_json::json!({ "name": "tenant", "rate": "1000000/s", "key": "header:x-tenant" });
    let spent = serde_json::json!({ "rate": "1/d", "burst": 1 });
    let limits = match kind {
        RateLimits::Shared => [shared].into(),
        RateLimits::Keyed => [keyed].into(),
        RateLimits::Two => [shared, keyed].into(),
        RateLimits::Spent => [spent].into(),
    };
    let limits = rate_limits_of(limits, now);
    if let RateLimits::Spent = kind {
        limits.admit(now, &[rate_limit::Ask::default()], |_, _| {});
    }
    (Arc::new(limits), RandomState::new(), now)
}

// A table of a million keys, and more come.
pub(crate) fn a_million_keys() -> (Arc<Limits>, RandomState, Instant) {
    static FULL: LazyLock<(Arc<Limits>, RandomState, Instant)> = LazyLock::new(|| {
        let now = Instant::now();
        let limit =
            serde_json::json!({ "rate": "1/d", "burst": 1000000, "key": "client_ip", "max_keys": 1000000 });
        let (limits, seed) = (rate_limits_of([limit].into(), now), RandomState::new());
        for n in 0..1_000_000u64 {
            limits.admit(
                now,
                &[rate_limit::Ask { key: Some(seed.hash_one(&tenant(n)[..])), ..rate_limit::Ask::default() }],
                |_, _| {},
            );
        }
        (Arc::new(limits), seed, now)
    });
    FULL.clone()
}

// With the hash of the key, where there is one: each request is another of a thousand tenants.
pub(crate) fn rate_limit_admit((limits, seed, now): (Arc<Limits>, RandomState, Instant)) {
    let keyed: Vec<bool> = limits.iter().map(|limit| limit.settings.key.is_some()).collect();
    for (n, now) in (0..).zip(instants(now)) {
        let mut asks = [rate_limit::Ask::default(); 2];
        for (ask, keyed) in asks.iter_mut().zip(&keyed) {
            ask.key = keyed.then(|| seed.hash_one(black_box(&tenant(n)[..])));
        }
        black_box(limits.admit(black_box(now), &asks[..keyed.len()], |_, _| {}));
    }
}

// Each request is another of a million, so that none is in the processor's caches; `first`: from which on.
pub(crate) fn rate_limit_admit_of_many((limits, seed, now): (Arc<Limits>, RandomState, Instant), first: u64) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(TIMES.into(), Relaxed) % 1_000_000;
    for (n, now) in (first + next..).zip(instants(now)) {
        let ask = rate_limit::Ask {
            key: Some(seed.hash_one(black_box(&tenant(n)[..]))),
            ..rate_limit::Ask::default()
        };
        black_box(limits.admit(black_box(now), &[ask], |_, _| {}));
    }
}

// The name of one of many tenants.
fn tenant(n: u64) -> [u8; 16] {
    let mut name = *b"tenant-.........";
    name[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    name
}
