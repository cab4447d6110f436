//! Asks the rate limits about a request, before anything else that could refuse it: they are the cheapest to ask, and
//! whoever sends too much shall cost others nothing.
//!
//! A request is asked once, not for each attempt: what retries add is bounded by their budget. A mirror's copy is asked
//! by its own upstream. The key is taken from
//! what the client sent, before a route rewrites it. A refusal says when to come back, and which limits there are and
//! how they stand, as draft-ietf-httpapi-ratelimit-headers has it (`RateLimit-Policy`, `RateLimit`); only limits that
//! are enforced for this request are told, and only in refusals: an upstream's answer passes unchanged.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::answer::whole_seconds;
use super::chain::carry_out;
use super::context::Routed;
use super::meter::Meter;
use super::request::Request;
use super::worker::Worker;
use crate::policy::mode::Mode;
use crate::policy::rate_limit::{Ask, Buckets, By, LONGEST_KEY, Limit, Limits, MOST, Said};
use crate::reason::{Error, Quota, Reason};
use crate::telemetry::metrics;

/// Keyed, and drawn anew for each process: nobody can find keys that share a bucket, or crowd the table.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What one request asks of an upstream's limits, and what they say.
struct Asked<'a> {
    limits: &'a Limits,
    asks: [Ask; MOST],
    /// After which time it would pass; none: it passes.
    waits: [Option<Duration>; MOST],
}

/// Asks whether the request may go on, and charges it if so.
///
/// # Errors
/// [`Reason::RateLimited`].
pub fn admit(worker: &Worker, routed: &Routed, request: &mut Request) -> Result<(), Error> {
    let chain = &routed.target().chain;
    if chain.rate_limits.is_empty() {
        return Ok(());
    }
    let mut asked = Asked::new(&chain.rate_limits, routed, request);
    let mut shares = 0;
    // A reading of the clock less: what came earlier but is asked later is taken for as late.
    let now = request.context.arrived;
    let count = chain.rate_limits.iter().len();
    chain.rate_limits.admit(now, &asked.asks[..count], |index, said| match said {
        Said::Shares => shares += 1,
        Said::Refused { wait } => asked.waits[index] = Some(wait),
    });
    if shares > 0 {
        worker.shared.metrics.limit_reached(metrics::Limit::RateLimitKeys).add(shares);
    }
    let shard = chain.upstream.metrics.shard(worker.index);
    for mode in [Mode::Shadow, Mode::Enforce] {
        // Counted once in each mode, however many limits refuse it.
        if let Some((limit, wait)) = asked.longest(mode) {
            request.record.rate_limit = Some(limit.settings.name.as_str().into());
            carry_out::<()>(Err(asked.refusal(limit, wait, now)), mode, false, shard)?;
        }
    }
    request.body.meter = Meter::new(asked.counting_bytes().collect());
    Ok(())
}

impl<'a> Asked<'a> {
    fn new(limits: &'a Limits, routed: &Routed, request: &Request) -> Self {
        let mut asks = [Ask { mode: Mode::Off, key: None }; MOST];
        for (ask, Limit { settings, .. }) in asks.iter_mut().zip(limits.iter()) {
            ask.mode = settings.mode.of(settings.rollout, request.context.hash);
            ask.key = match &settings.key {
                None => None,
                _ if ask.mode == Mode::Off => None,
                Some(By::Route) => {
                    Some(SEED.hash_one((&*routed.listener().name, &*routed.target().route.name)))
                }
                Some(By::Part(key)) => {
                    let hash = |value: &[u8]| (value.len() <= LONGEST_KEY).then(|| SEED.hash_one(value));
                    request.context.read_key(&request.head, key, &routed.listener().trust, hash).flatten()
                }
            };
        }
        Self { limits, asks, waits: [None; MOST] }
    }

    /// Each limit with what was asked of it, and what it said.
    fn all(&self) -> impl Iterator<Item = (&'a Limit, Ask, Option<Duration>)> {
        let answers = self.asks.iter().zip(&self.waits);
        self.limits.iter().zip(answers).map(|(limit, (ask, wait))| (limit, *ask, *wait))
    }

    /// Of the limits that refuse in this mode the one that does so for longest: whoever waits for it passes all.
    fn longest(&self, mode: Mode) -> Option<(&'a Limit, Duration)> {
        let refusing = self.all().filter(|(_, ask, _)| ask.mode == mode);
        refusing.filter_map(|(limit, _, wait)| Some((limit, wait?))).max_by_key(|(_, wait)| *wait)
    }

    /// The limits that the request's bodies are charged to, with its keys.
    fn counting_bytes(&self) -> impl Iterator<Item = (Arc<Buckets>, Option<u64>)> {
        let counting = self.all().filter(|(limit, ask, wait)| {
            // What it would have refused, had it been enforced, would not have flowed.
            limit.counts_bytes() && ask.mode != Mode::Off && wait.is_none()
        });
        counting.map(|(limit, ask, _)| (Arc::clone(limit.buckets()), ask.key))
    }

    #[cold]
    fn refusal(&self, limit: &Limit, wait: Duration, now: Instant) -> Error {
        let settings = &limit.settings;
        let detail = format!("the rate limit \"{}\" ({}) is reached", settings.name, settings.rate);
        let mut quota = Quota::default();
        for (limit, ask, wait) in self.all().filter(|(_, ask, _)| ask.mode == Mode::Enforce) {
            let settings = &limit.settings;
            let (amount, window) = (settings.rate.amount().get(), settings.rate.seconds());
            let (left, reset) = match wait {
                Some(wait) => (0, whole_seconds(wait)),
                None => {
                    let (left, full) = limit.stands(ask.key, now);
                    (left, full.as_nanos().div_ceil(1_000_000_000) as u64)
                }
            };
            let comma = if quota.policy.is_empty() { "" } else { ", " };
            let unit = if limit.counts_bytes() { ";qu=\"content-bytes\"" } else { "" };
            // Writing to a string never fails.
            let _ = write!(quota.policy, "{comma}\"{}\";q={amount};w={window}{unit}", settings.name);
            let _ = write!(quota.state, "{comma}\"{}\";r={left};t={reset}", settings.name);
        }
        Error { quota: Some(Box::new(quota)), ..Error::new(Reason::RateLimited, detail) }
            .retry_after(Some(wait))
    }
}
