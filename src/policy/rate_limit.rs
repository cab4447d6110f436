//! Rate limits: how many requests, or how many bytes, each key may have in a time.
//!
//! An upstream has any number of them up to [`MOST`]; each counts by a key of its own. A request is asked of all of
//! them before any is charged, so one that is refused costs nothing, and its own key's limit never drains the limit
//! that others share. That is exact between workers too: the buckets of a request are held from the first question to
//! the last charge, in the order of the limits' names, which a reload does not change, so nobody waits in a circle.
//!
//! A bucket is one word (`bucket`). The buckets of a limit stand in a table of fixed size (`table`), cut into shards
//! with a mutex each, held for some ten nanoseconds. A full table forgets idle keys; where none is idle, new keys share
//! one bucket, and so does a request whose key is missing or too long to be one. So no number of keys takes memory
//! beyond [`Settings::max_memory`], and a flood of made-up keys gets no more than `max_keys` and one; where callers choose
//! their keys, a limit without one beside it bounds them all together. Keys are told apart by a hash of
//! 64 bits, which the caller seeds anew for each process: two of a million keys share a bucket once in 37 million
//! processes, and nobody can find two that do.
//!
//! Bytes are charged when they have flowed: nobody knows before how many there will be. A request passes while anything
//! is left, and what it then sends and gets may go beyond that; new ones are refused until the debt is paid. Nothing
//! that flows is slowed down.
//!
//! Not here: which part of a request is its key, and what becomes of one that is refused (`proxy::rate_limit`). One
//! process counts for itself; several sidecars allow several times the rate.

mod bucket;
mod table;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use self::bucket::Terms;
use self::table::Table;
use crate::policy::key::Key;
use crate::policy::mode::Mode;
use crate::units::{Amount, Rate, Ratio, within};

/// The most limits that an upstream may have.
pub const MOST: usize = 8;

/// The longest value that is a key; longer ones share a bucket.
pub const LONGEST_KEY: usize = 256;

/// `[[upstream.NAME.rate_limit]]`: how much a key may have in a time.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimit")]
pub struct Settings {
    /// What it is called in answers, log and `/upstreams`; one of an upstream takes the place of one in
    /// `[[defaults.rate_limit]]` of the same name. 1 to 63 letters, digits, or any of `-`, `_`, `.`, `:`. Default
    /// `"default"`.
    #[serde(default = "default_name", deserialize_with = "name")]
    pub name: String,
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    #[serde(default)]
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    #[serde(default = "all")]
    pub rollout: Ratio,
    /// How many requests in a second, minute, hour or day (`"100/s"`, `"6000/m"`, `"10/h"`, `"1000/d"`), or how many
    /// bytes of bodies, in both directions together (`"1MiB/s"`). At most `"1000000/s"`.
    pub rate: Rate,
    /// How much may come at once after a pause: a number of requests, or a size where the rate is one of bytes. At
    /// least 1. Default: what the rate allows in a second.
    #[serde(default)]
    pub burst: Option<Amount>,
    /// What has a rate of its own: each value of `header:NAME`, `cookie:NAME`, `path` or `client_ip`, or each `route`.
    /// Default: none, all requests share one.
    #[serde(default)]
    pub key: Option<By>,
    /// How many keys are told apart, 24 bytes for each; beyond them idle ones are forgotten, then new ones share one
    /// rate. From 1 to 10,000,000. Default 10000.
    #[serde(default = "default_max_keys", deserialize_with = "within::<_, 1, 10_000_000>")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_keys: u32,
}

/// `key`: what has a rate of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum By {
    /// Each value of this part of a request.
    Part(Key),
    /// Each route.
    Route,
}

impl TryFrom<String> for By {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "route" {
            return Ok(By::Route);
        }
        let or_route = |wrong: String| wrong.replace(" or \"client_ip\"", ", \"client_ip\" or \"route\"");
        Key::try_from(text).map(By::Part).map_err(or_route)
    }
}

impl From<By> for String {
    fn from(by: By) -> String {
        match by {
            By::Part(key) => key.into(),
            By::Route => "route".to_owned(),
        }
    }
}

impl JsonSchema for By {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RateLimitKey".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(header:.+|cookie:.+|path|client_ip|route)$",
            "description": "`header:NAME`, `cookie:NAME`, `path`, `client_ip` or `route`"
        })
    }
}

/// The name of a limit that has none.
pub const DEFAULT_NAME: &str = "default";

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
}

fn all() -> Ratio {
    Ratio::ONE
}

fn default_max_keys() -> u32 {
    10_000
}

fn name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    // It stands in quotes in fields of answers (RFC 9651 §3.3.3).
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if (1..=63).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(name);
    }
    Err(serde::de::Error::custom(format!(
        "{name:?} cannot be the name of a rate limit; give 1 to 63 letters, digits, or any of \"-\", \"_\", \".\", \":\""
    )))
}

impl Settings {
    /// What may come at once.
    pub fn burst(&self) -> Amount {
        self.burst.unwrap_or_else(|| self.rate.in_a_second())
    }

    /// How long the whole burst takes at the rate; none: beyond ten years.
    pub fn fills_in(&self) -> Option<Duration> {
        let seconds = u128::from(self.burst().get()) * u128::from(self.rate.seconds());
        let seconds = (seconds / u128::from(self.rate.amount().get())) as u64;
        Some(Duration::from_secs(seconds)).filter(|time| time.as_nanos() < bucket::LONGEST.into())
    }

    /// The most bytes that its buckets take, whatever comes.
    pub fn max_memory(&self) -> usize {
        match self.key {
            None => 0,
            Some(_) => {
                shards(self.max_keys) * (Table::bytes(share(self.max_keys)) + size_of::<Apart<Shard>>())
            }
        }
    }
}

/// In how many shards so many keys are held: enough that workers seldom meet, and each with keys enough that a full
/// one has an idle one among those it looks at.
fn shards(max_keys: u32) -> usize {
    (max_keys as usize / 1024).clamp(1, 16).next_power_of_two()
}

/// The keys that a shard must have room for. Hashes spread evenly; a shard that all the same got more than the places
/// that its table has to spare is full before the others.
fn share(max_keys: u32) -> usize {
    (max_keys as usize).div_ceil(shards(max_keys))
}

/// What a request asks of one limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    /// Whether it is asked at all, and whether its answer holds.
    pub mode: Mode,
    /// The hash of the request's key, seeded for this process; none: it has none, or one that is too long.
    pub key: Option<u64>,
}

/// What a limit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The request has no bucket of its own, but shares one.
    Shares,
    /// It is refused.
    Refused {
        /// When it would pass, if nobody else came.
        wait: Duration,
    },
}

/// The limits of one upstream, in the order of their names.
#[derive(Debug, Default)]
pub struct Limits(Box<[Limit]>);

/// One limit.
#[derive(Debug)]
pub struct Limit {
    /// What is in force.
    pub settings: Settings,
    buckets: Arc<Buckets>,
}

impl Limits {
    /// The limits of these settings; of each that `previous` has too, by name, the buckets stay. What was taken stays
    /// taken at another rate. Another key or another unit begins anew.
    pub fn new(settings: &[Settings], previous: Option<&Limits>, now: Instant) -> Self {
        let limit = |settings: &Settings| {
            let known = previous.into_iter().flat_map(|previous| &previous.0);
            let mut known = known.filter(|known| {
                let before = &known.settings;
                before.name == settings.name
                    && before.key == settings.key
                    && before.rate.amount().is_like(settings.rate.amount())
            });
            let buckets = match known.next() {
                None => Arc::new(Buckets::new(settings, now)),
                Some(known) if known.settings.max_keys == settings.max_keys => {
                    known.buckets.update(settings, now);
                    Arc::clone(&known.buckets)
                }
                Some(known) => Arc::new(known.buckets.resized(settings, now)),
            };
            Limit { settings: settings.clone(), buckets }
        };
        let mut limits: Vec<Limit> = settings.iter().map(limit).collect();
        // INVARIANT: each once, and in the same order in every snapshot: requests of the one before still hold buckets.
        limits.sort_by(|one, other| one.settings.name.cmp(&other.settings.name));
        limits.dedup_by(|one, other| one.settings.name == other.settings.name);
        limits.truncate(MOST);
        Self(limits.into())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Limit> {
        self.0.iter()
    }

    /// Whether a request passes; `asks` are in the order of the limits. Unless it does, it costs nothing. `tell` hears
    /// what is said by which limit.
    pub fn admit(&self, now: Instant, asks: &[Ask], mut tell: impl FnMut(usize, Said)) -> bool {
        admit(&self.0, now, asks, true, &mut |left, said| tell(self.0.len() - left, said))
    }
}

/// Asks `limits` and then charges them; `passes`: whether those before them let the request through. `tell` hears how
/// many limits are left with the one that speaks.
fn admit(
    limits: &[Limit],
    now: Instant,
    asks: &[Ask],
    passes: bool,
    tell: &mut impl FnMut(usize, Said),
) -> bool {
    let ([limit, others @ ..], [ask, more @ ..]) = (limits, asks) else { return passes };
    if ask.mode == Mode::Off {
        return admit(others, now, more, passes, tell);
    }
    let (mut bucket, shares) = limit.buckets.open(ask.key, now);
    if shares {
        tell(limits.len(), Said::Shares);
    }
    match bucket.check() {
        Ok(()) => {
            let passes = admit(others, now, more, passes, tell);
            if passes {
                bucket.charge();
            }
            passes
        }
        Err(wait) => {
            tell(limits.len(), Said::Refused { wait: Duration::from_nanos(wait) });
            admit(others, now, more, passes && ask.mode != Mode::Enforce, tell)
        }
    }
}

/// What `/upstreams` tells of a limit.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    name: &'a str,
    mode: Mode,
    rate: Rate,
    burst: Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a By>,
    /// What is left now where there is only one bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Keys>,
}

/// The keys of a limit.
#[derive(Debug, Serialize)]
struct Keys {
    held: usize,
    max: u32,
    /// Requests that shared a bucket.
    overflowed: u64,
}

impl Limit {
    /// Whether it counts bytes.
    pub fn counts_bytes(&self) -> bool {
        matches!(self.settings.rate.amount(), Amount::Bytes(_))
    }

    /// Its buckets, to charge what flows later.
    pub fn buckets(&self) -> &Arc<Buckets> {
        &self.buckets
    }

    /// What it counts by, and where that stands.
    pub fn view(&self, now: Instant) -> View<'_> {
        let Settings { name, mode, rate, key, max_keys, .. } = &self.settings;
        View {
            name,
            mode: *mode,
            rate: *rate,
            burst: self.settings.burst(),
            key: key.as_ref(),
            remaining: key.is_none().then(|| self.stands(None, now).0),
            keys: key.is_some().then(|| Keys {
                held: self.buckets.held(),
                max: *max_keys,
                overflowed: self.buckets.overflowed.load(Relaxed),
            }),
        }
    }

    /// How much `key` may have at once, and after which time it would be the whole burst.
    pub fn stands(&self, key: Option<u64>, now: Instant) -> (u64, Duration) {
        let (mut bucket, _) = self.buckets.find(key, now);
        let (terms, full, now) = bucket.parts();
        (terms.remaining(*full, now), Duration::from_nanos(full.saturating_sub(now)))
    }
}

/// The buckets of one limit: one for each key, and one for all others.
///
/// Shared by all workers; what is one word for a key must be one for the process.
#[derive(Debug)]
pub struct Buckets {
    /// Times are nanoseconds from here.
    origin: Instant,
    /// None: there are no keys, and the one bucket is everybody's.
    shards: Box<[Apart<Shard>]>,
    /// Keys in all shards.
    held: AtomicUsize,
    max_keys: usize,
    /// Requests that came to the common bucket, though there are keys.
    overflowed: AtomicU64,
    common: Apart<Common>,
}

/// The buckets of some keys.
#[derive(Debug)]
struct Shard {
    table: Table,
    clock: Clock,
}

/// The bucket of those that have none.
#[derive(Debug)]
struct Common {
    full: u64,
    clock: Clock,
}

/// Apart from its neighbours in the caches of processors, which would pass the line to and fro.
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(Mutex<T>);

/// What buckets go by, and when.
#[derive(Debug)]
struct Clock {
    terms: Terms,
    /// The latest time that was seen: it never goes back, so nothing is given for time that does.
    latest: u64,
}

/// A bucket, held.
enum Bucket<'a> {
    Own(MutexGuard<'a, Shard>, usize),
    Common(MutexGuard<'a, Common>),
}

impl Buckets {
    fn new(settings: &Settings, now: Instant) -> Self {
        let clock = || Clock { terms: Terms::new(settings.rate, settings.burst()), latest: 0 };
        let shards = if settings.key.is_some() { shards(settings.max_keys) } else { 0 };
        let shard = || Apart::new(Shard { table: Table::new(share(settings.max_keys)), clock: clock() });
        Self {
            origin: now,
            shards: (0..shards).map(|_| shard()).collect(),
            held: AtomicUsize::new(0),
            max_keys: settings.max_keys as usize,
            overflowed: AtomicU64::new(0),
            common: Apart::new(Common { full: 0, clock: clock() }),
        }
    }

    /// Keys that are held, idle ones too.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Charges `bytes` that have flowed.
    pub fn charge(&self, key: Option<u64>, now: Instant, bytes: u64) {
        let (mut bucket, _) = self.find(key, now);
        let (terms, full, now) = bucket.parts();
        *full = terms.owe(*full, now, bytes);
    }

    /// The bucket of `key`, and whether that is the common one for want of another, which is counted.
    fn open(&self, key: Option<u64>, now: Instant) -> (Bucket<'_>, bool) {
        let (bucket, shares) = self.find(key, now);
        if shares {
            self.overflowed.fetch_add(1, Relaxed);
        }
        (bucket, shares)
    }

    fn find(&self, key: Option<u64>, now: Instant) -> (Bucket<'_>, bool) {
        let now = self.nanos(now);
        if let Some(key) = key.filter(|_| !self.shards.is_empty()) {
            // 0 stands for nobody.
            let key = key.max(1);
            let mut shard = self.shards[key as usize & (self.shards.len() - 1)].lock();
            let now = shard.clock.at(now);
            if let Some(place) = self.place(&mut shard.table, key, now) {
                return (Bucket::Own(shard, place), false);
            }
        }
        let mut common = self.common.lock();
        common.clock.at(now);
        (Bucket::Common(common), !self.shards.is_empty())
    }

    /// The place of `key`, a new one if need be; none where the table is full of others.
    fn place(&self, table: &mut Table, key: u64, now: u64) -> Option<usize> {
        let mut place = match table.find(key) {
            Ok(place) => return Some(place),
            Err(place) => place,
        };
        let more = |held: usize| (held < self.max_keys).then_some(held + 1);
        if !table.has_room() || self.held.fetch_update(Relaxed, Relaxed, more).is_err() {
            if !table.forget_idle(now) {
                return None;
            }
            place = table.find(key).unwrap_or_else(|place| place);
        }
        table.insert(place, key, now);
        Some(place)
    }

    fn nanos(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_nanos() as u64
    }

    /// Goes by other settings from now on.
    fn update(&self, settings: &Settings, now: Instant) {
        let (terms, now) = (Terms::new(settings.rate, settings.burst()), self.nanos(now));
        for shard in &self.shards {
            let Shard { table, clock } = &mut *shard.lock();
            clock.change(terms, now, table.buckets());
        }
        let Common { full, clock } = &mut *self.common.lock();
        clock.change(terms, now, std::iter::once(full));
    }

    /// The same with room for another number of keys; those that are not idle stay, as far as there is room.
    fn resized(&self, settings: &Settings, now: Instant) -> Self {
        let mut buckets = Self { origin: self.origin, ..Self::new(settings, now) };
        let (terms, now) = (Terms::new(settings.rate, settings.burst()), self.nanos(now));
        for shard in &self.shards {
            let shard = shard.lock();
            let now = now.max(shard.clock.latest);
            for (key, full) in shard.table.iter().filter(|(_, full)| *full > now) {
                let (Bucket::Own(mut own, place), _) = buckets.find(Some(key), self.origin) else { continue };
                *own.table.bucket(place) = terms.take_over(&shard.clock.terms, full, now);
                own.clock.at(now);
            }
        }
        let common = self.common.lock();
        let now = now.max(common.clock.latest);
        buckets.overflowed = AtomicU64::new(self.overflowed.load(Relaxed));
        buckets.common = Apart::new(Common {
            full: terms.take_over(&common.clock.terms, common.full, now),
            clock: Clock { terms, latest: now },
        });
        buckets
    }
}

impl Clock {
    /// The time, which is `now` unless that has been before.
    fn at(&mut self, now: u64) -> u64 {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn change<'a>(&mut self, terms: Terms, now: u64, buckets: impl Iterator<Item = &'a mut u64>) {
        let now = self.at(now);
        // The same terms round nothing.
        if terms != self.terms {
            buckets.for_each(|full| *full = terms.take_over(&self.terms, *full, now));
            self.terms = terms;
        }
    }
}

impl Bucket<'_> {
    /// What it goes by, when it is full, and the time.
    fn parts(&mut self) -> (Terms, &mut u64, u64) {
        match self {
            Bucket::Own(shard, place) => {
                let Shard { table, clock } = &mut **shard;
                (clock.terms, table.bucket(*place), clock.latest)
            }
            Bucket::Common(common) => {
                let Common { full, clock } = &mut **common;
                (clock.terms, full, clock.latest)
            }
        }
    }

    fn check(&mut self) -> Result<(), u64> {
        let (terms, full, now) = self.parts();
        terms.check(*full, now)
    }

    fn charge(&mut self) {
        let (terms, full, now) = self.parts();
        *full = terms.charge(*full, now);
    }
}

impl<T> Apart<T> {
    fn new(inner: T) -> Self {
        Self(Mutex::new(inner))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
