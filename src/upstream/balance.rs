//! Which endpoint is next.
//!
//! | kind            | the next is                                                                                |
//! |-----------------|--------------------------------------------------------------------------------------------|
//! | `least_loaded`  | of two drawn by weight the one with the lower cost (below)                                 |
//! | `least_request` | of two drawn by weight the one with fewer requests in flight for its weight                |
//! | `round_robin`   | whose turn it is; turns are as evenly spread as weights let them be                        |
//! | `random`        | drawn by weight                                                                            |
//! | `hash`          | where the key belongs (`maglev`), unless that one is busy; without a key as `least_loaded` |
//!
//! Why two of them: it comes close to the best of all without looking at all, and without the herd that runs to a
//! single best (Mitzenmacher 2001). A pick takes no lock, allocates nothing and looks at a few endpoints however many
//! there are: tables are built when the list changes (`share`, `maglev`), an endpoint that is out of service or was
//! tried is drawn anew a few times, and only then are all looked at.
//!
//! **Cost** = (latency + failures) x (1 + in flight / share), the share being weight x slow start in terms of the mean
//! weight. Latency and failures are what `load` has learnt, silence included. Not (in flight + 1) / weight, as it is
//! usually written: an idle upstream would never ask a light endpoint, since 1 / weight alone decides. Draws by
//! weight and ties to the first drawn give exact shares to an idle one.
//! - Latencies within a factor of two, or within two milliseconds, count as equal, and in flight decides. A peak-EWMA is
//!   an extreme value, so equal endpoints differ in it by a half all the time; without the band the one that looks
//!   best takes most of the requests until its own peak comes.
//! - Failures count beyond those of the other endpoint by more than half a second, that is 10 % of attempts at 5 s
//!   each. So one failure among thousands moves nothing, and where everybody fails alike nobody is avoided; an
//!   endpoint that fails alone crosses the line with its fourth failure and then gets about one request a second, by
//!   which its recovery is seen. Rejected: the mean of all as the measure (two bad of three would make it theirs).
//! - An unknown endpoint costs what half of its peers cost less than, and gets one request at a time until its first
//!   answer.
//! - Two bad ones can be drawn together. Where the better of two is much worse than the best known one, a few more
//!   are drawn.
//!
//! **Tiers.** Endpoints of one priority are a tier. Its health is 1.4 x the share of its weight that is in service,
//! slow start included, at most 1; what a tier cannot take goes to the next, and if all together cannot, they share by
//! health. A tier that comes back does so along its endpoints' slow start.
//!
//! **Slow start** ramps an endpoint's share after it joined, recovered or was let in again, for all kinds: drawn, it
//! is passed over with a chance of 1 - ramp (relative to the warmest of its tier: if all are cold nobody is). The
//! first endpoints of an upstream, and all that join before any has answered, are as new as each other and start
//! warm.
//!
//! **The last choice.** Endpoints out of service are asked where all in service are at 1.4 x their fair share or more,
//! and up to their own. An endpoint's fair share is its weight's part of all that the upstream may have in flight
//! (the `max` of `concurrency.limit`, streams apart), all of its tier counted, in service or not: what it would carry at
//! full load if nobody was missing. So there is no cliff: the fewer are left, the earlier the others help, request by
//! request. Rejected: a share of what is in flight just now (where one of three is out the others carry 1.5 x their
//! share of it at any load, and a dead endpoint would always get requests), or of a limit as it is learnt (that is what
//! those in service can do, so the same happens whenever they have enough to do; such a limit refuses instead);
//! Envoy's threshold of 50 %, at which half of all requests go to endpoints that are known to be dead.
//!
//! **Tried** endpoints are left out while an untried one is in service; else the one that failed least recently is
//! next. But where the last one tried was not even reached, an untried one that is out of service comes first: when
//! replicas are restarted one after the other, the one that is back is still out when the next one goes.
//!
//! **Bounded load** (Mirrokni 2016): an endpoint that a key belongs to takes at most ceil(1.25 x its share of all in
//! flight, this one included); more go on in an order seeded by the key, not to one neighbour for all.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::maglev::Maglev;
use super::share::{Alias, Bits, rotation};
use crate::policy::key::{self, Key};
use crate::units::{OrNone, Span};

/// `[upstream.NAME.balance]`: which endpoint is next.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How one is chosen. Default `least_loaded`.
    pub kind: Kind,
    /// For `hash`: the key.
    pub hash: Option<Hash>,
    /// How long a new or recovered endpoint takes to get its whole share. Default `"10s"`; `"none"`: at once.
    pub slow_start: OrNone<Span>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Of two drawn at random the one with the lower latency x requests in flight.
    #[default]
    LeastLoaded,
    /// Of two drawn at random the one with fewer requests in flight for its weight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one that the request's key belongs to.
    Hash,
}

/// `hash`: the key of `kind = "hash"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hash {
    /// `header:NAME`, `cookie:NAME`, `path` or `client_ip`. Requests with the same one go to the same endpoint.
    pub key: Key,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kind: Kind::default(), hash: None, slow_start: OrNone(Some(Span::from_secs(10))) }
    }
}

impl Settings {
    /// The key, where it decides.
    pub fn key(&self) -> Option<&Key> {
        self.hash.as_ref().filter(|_| self.kind == Kind::Hash).map(|hash| &hash.key)
    }

    /// The window of slow start in nanoseconds; 0: there is none.
    pub fn slow_start_nanos(&self) -> u64 {
        self.slow_start.0.map_or(0, |window| window.as_nanos() as u64)
    }
}

/// An endpoint and its share.
#[derive(Clone)]
pub struct Weighted {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// From 1 to 1000.
    pub weight: u32,
    /// From 0 to 9; the lowest first.
    pub priority: u8,
}

/// What a request wants.
pub struct Want<'a> {
    /// The ids of the endpoints that it has tried.
    pub tried: &'a [u64],
    /// A random number.
    pub draw: u64,
    /// The hash of its key.
    pub key: Option<u64>,
    /// Now, in `standing::nanos`.
    pub now: u64,
    /// The endpoint that was tried last was not even reached.
    pub unreached: bool,
}

/// Above this part of its fair share an endpoint needs help; by this factor a tier may be short of endpoints.
const OVERPROVISION: f32 = 1.4;
/// Bounded load: how far above its share of what is in flight an endpoint may be.
const BOUND: f64 = 1.25;
/// How often one is drawn anew before all are looked at.
const REDRAWS: usize = 8;
/// How many more are drawn where the better of two is a bad one.
const MORE: usize = 4;
/// Latencies within this factor are equal, and so are those within so many seconds.
const BAND: f32 = 2.0;
const BAND_SECONDS: f32 = 2e-3;
/// An endpoint is a bad one where its latency is this often the best.
const BAD: f32 = 8.0;
/// What failures cost at most, in latencies of the slower one.
const MOST_FOR_FAILURES: f32 = 19.0;
/// Seconds that failures may cost more than the other's.
const TOLERATED_SECONDS: f32 = 0.5;
/// Looking at all of a tier may cost a thousandth of the time: so long for each endpoint, and a millisecond at least.
const LOOK_NANOS: u64 = 20_000;
const MIN_LOOK_NANOS: u64 = 1_000_000;
/// Up to so many are counted exactly, for each request, where a bound must hold.
const FEW: usize = 32;
/// The longest rotation; beyond it weights are rounded.
const MAX_TURNS: usize = 1 << 16;

/// The tables of one list of endpoints. Shared by all workers.
#[derive(Default)]
pub struct Tables {
    kind: Kind,
    /// Nanoseconds of slow start.
    window: u64,
    /// By priority, the lowest first.
    tiers: Box<[Tier]>,
    /// When all are looked at again.
    next_look: AtomicU64,
    /// Held by the one that looks at all; nobody waits for it.
    scratch: Mutex<Vec<f32>>,
}

/// The endpoints of one priority.
struct Tier {
    members: Box<[Member]>,
    alias: Alias,
    /// Numbers of members in the order of their turns; empty: one after the other.
    rotation: Box<[u32]>,
    turn: AtomicU32,
    maglev: Option<Maglev>,
    /// All weights.
    weight: u64,
    seen: Seen,
}

struct Member {
    endpoint: Arc<Endpoint>,
    weight: u32,
    /// The weight in terms of the tier's mean.
    relative: f32,
    /// The fair share, in attempts in flight.
    fair: f32,
}

/// What the last look at all of a tier showed. Each by itself is right enough: they steer, none counts.
#[derive(Default)]
struct Seen {
    in_service: AtomicU32,
    /// Attempts in flight at those in service.
    in_flight: AtomicU32,
    /// Their weight, slow start included, as f32.
    weight: AtomicU32,
    /// The largest slow-start factor, as f32.
    ramp: AtomicU32,
    /// Seconds that half of those that are known take less than, as f32.
    median: AtomicU32,
    /// The lowest latency, as f32.
    fastest: AtomicU32,
    /// The least that failures cost, as f32.
    soundest: AtomicU32,
    /// Where this tier's part of 2^32 ends.
    until: AtomicU64,
}

/// What speaks for a member and against it.
#[derive(Clone, Copy)]
struct State {
    number: usize,
    /// Seconds.
    latency: f32,
    /// Seconds.
    failures: f32,
    /// In flight / share.
    busy: f32,
    /// Unknown, and its one request is in flight.
    is_taken: bool,
}

impl Tables {
    /// The tables of `usable` for an upstream that may have `capacity` attempts in flight.
    pub fn new(settings: &Settings, usable: &[Weighted], capacity: u32) -> Self {
        let mut priorities: Vec<u8> = usable.iter().map(|choice| choice.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let of = |priority| usable.iter().filter(move |choice| choice.priority == priority);
        let tiers = priorities.into_iter().map(|priority| Tier::new(settings.kind, of(priority), capacity));
        Self {
            kind: settings.kind,
            window: settings.slow_start_nanos(),
            tiers: tiers.collect(),
            next_look: AtomicU64::new(0),
            scratch: Mutex::new(Vec::with_capacity(usable.len())),
        }
    }

    /// The next endpoint; none where there are none.
    pub fn pick(&self, want: &Want<'_>) -> Option<&Arc<Endpoint>> {
        match &*self.tiers {
            [] => return None,
            [Tier { members, .. }] if members.len() == 1 => return Some(&members[0].endpoint),
            _ => {}
        }
        self.look(want.now);
        let mut bits = Bits(want.draw);
        // A key that overflows does so to the same tier each time.
        let mut place = want.key.map_or(bits, |key| Bits(!key));
        let place = place.roll() >> 32;
        let first = self.tiers.iter().position(|tier| place < tier.seen.until.load(Relaxed)).unwrap_or(0);
        let turn = Turn { tables: self, want };
        for number in std::iter::once(first).chain((0..self.tiers.len()).filter(|tier| *tier != first)) {
            let tier = &self.tiers[number];
            if let Some(member) = tier.pick(&turn, &mut bits) {
                let member = &tier.members[member];
                let needs_help = tier.has_out() && member.is_above(OVERPROVISION);
                let relief = if needs_help { self.relief(&turn, number, &mut bits) } else { None };
                return Some(&relief.unwrap_or(member).endpoint);
            }
        }
        self.last_choice(&turn, &mut bits).map(|member| &member.endpoint)
    }

    /// Whether an untried endpoint is in service; where the last one was not even reached any will do.
    pub fn has_untried(&self, tried: &[u64], unreached: bool) -> bool {
        self.members()
            .any(|member| (unreached || member.is_in_service()) && !tried.contains(&member.endpoint.id))
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.tiers.iter().flat_map(|tier| &tier.members)
    }

    /// Somebody who helps those of tier `number`: another tier, else one out of service that is below its own share.
    fn relief(&self, turn: &Turn<'_>, number: usize, bits: &mut Bits) -> Option<&Member> {
        let others = self.tiers.iter().enumerate().filter(|(other, _)| *other != number);
        for (_, tier) in others {
            let member = tier.pick(turn, bits).map(|member| &tier.members[member]);
            if let Some(member) = member.filter(|member| !member.is_above(OVERPROVISION)) {
                return Some(member);
            }
        }
        let is_spare =
            |member: &Member| !member.is_in_service() && !turn.has_tried(member) && !member.is_above(1.0);
        self.tiers.iter().find_map(|tier| {
            let number = tier.draw(turn, bits, |_, member| is_spare(member))?;
            Some(&tier.members[number])
        })
    }

    /// All that are in service were tried, or none is.
    fn last_choice(&self, turn: &Turn<'_>, bits: &mut Bits) -> Option<&Member> {
        let mut untried = || {
            self.tiers.iter().find_map(|tier| {
                let number = tier.draw(turn, bits, |_, member| !turn.has_tried(member))?;
                Some(&tier.members[number])
            })
        };
        if turn.want.unreached
            && let Some(member) = untried()
        {
            return Some(member);
        }
        for tier in &self.tiers {
            let in_service = tier.members.iter().filter(|member| member.is_in_service());
            if let Some(member) = in_service.min_by_key(|member| member.endpoint.last_failure()) {
                return Some(member);
            }
        }
        untried().or_else(|| self.members().min_by_key(|member| member.endpoint.last_failure()))
    }

    /// Looks at all, if it is time.
    fn look(&self, now: u64) {
        if now < self.next_look.load(Relaxed) {
            return;
        }
        self.look_now(now);
    }

    #[cold]
    fn look_now(&self, now: u64) {
        let Ok(mut scratch) = self.scratch.try_lock() else { return };
        let mut count = 0;
        for tier in &self.tiers {
            tier.look(now, self.window, &mut scratch);
            count += tier.members.len() as u64;
        }
        self.share_out();
        self.next_look.store(now + (count * LOOK_NANOS).max(MIN_LOOK_NANOS), Relaxed);
    }

    /// Which part of the requests each tier gets.
    fn share_out(&self) {
        let total: f32 = self.tiers.iter().map(Tier::health).sum();
        let scale = if total < 1.0 { 1.0 / total.max(f32::MIN_POSITIVE) } else { 1.0 };
        let mut until = 0.0;
        for tier in &self.tiers {
            until = (until + tier.health() * scale).min(1.0);
            tier.seen.until.store((f64::from(until) * 2f64.powi(32)) as u64, Relaxed);
        }
    }
}

/// One pick.
struct Turn<'a> {
    tables: &'a Tables,
    want: &'a Want<'a>,
}

impl Turn<'_> {
    fn has_tried(&self, member: &Member) -> bool {
        self.want.tried.contains(&member.endpoint.id)
    }

    /// In service and untried.
    fn suits(&self, member: &Member) -> bool {
        member.is_in_service() && !self.has_tried(member)
    }

    fn ramp(&self, member: &Member) -> f32 {
        member.ramp(self.want.now, self.tables.window)
    }
}

impl Member {
    fn is_in_service(&self) -> bool {
        self.endpoint.standing.is_in_service()
    }

    fn is_above(&self, part: f32) -> bool {
        self.endpoint.load.in_flight_without_streams() as f32 >= self.fair * part
    }

    fn ramp(&self, now: u64, window: u64) -> f32 {
        self.endpoint.load.ramp(now, self.endpoint.standing.in_service_since(), window)
    }
}

impl Tier {
    fn new<'a>(kind: Kind, usable: impl Iterator<Item = &'a Weighted>, capacity: u32) -> Self {
        let usable: Vec<&Weighted> = usable.collect();
        let weights: Vec<u32> = usable.iter().map(|choice| choice.weight).collect();
        let weight: u64 = weights.iter().copied().map(u64::from).sum();
        let mean = weight as f32 / weights.len() as f32;
        let rotation = match kind {
            Kind::RoundRobin if weights.iter().any(|weight| *weight != weights[0]) => {
                let divisor = weights.iter().copied().fold(0, gcd);
                rotation(&weights, (weight / u64::from(divisor)).min(MAX_TURNS as u64) as usize)
            }
            _ => Vec::new(),
        };
        let names =
            || usable.iter().map(|choice| (key::hash(choice.endpoint.label.as_bytes()), choice.weight));
        let members = usable.iter().map(|choice| Member {
            endpoint: Arc::clone(&choice.endpoint),
            weight: choice.weight,
            relative: choice.weight as f32 / mean,
            fair: capacity as f32 * choice.weight as f32 / weight as f32,
        });
        Self {
            members: members.collect(),
            alias: Alias::new(&weights),
            rotation: rotation.into(),
            // Not all sidecars of a fleet begin with the same one.
            turn: AtomicU32::new(fastrand::u32(..)),
            maglev: (kind == Kind::Hash).then(|| Maglev::new(&names().collect::<Vec<_>>())),
            weight,
            seen: Seen::default(),
        }
    }

    /// Whether some are out of service.
    fn has_out(&self) -> bool {
        (self.seen.in_service.load(Relaxed) as usize) < self.members.len()
    }

    /// The part of all requests that it can take; from 0 to 1.
    fn health(&self) -> f32 {
        let share = load(&self.seen.weight) / self.weight as f32;
        (OVERPROVISION * share).min(1.0)
    }

    fn look(&self, now: u64, window: u64, known: &mut Vec<f32>) {
        known.clear();
        let (mut in_service, mut in_flight, mut unknown) = (0, 0, 0);
        let (mut weight, mut warmest) = (0.0, 0.0f32);
        let (mut fastest, mut soundest) = (f32::INFINITY, f32::INFINITY);
        for member in self.members.iter().filter(|member| member.is_in_service()) {
            let (load, since) = (&member.endpoint.load, member.endpoint.standing.in_service_since());
            let ramp = member.ramp(now, window);
            in_service += 1;
            in_flight += load.in_flight();
            weight += member.weight as f32 * ramp;
            warmest = warmest.max(ramp);
            soundest = soundest.min(load.failures(now, since));
            match load.latency(now, since) {
                Some(latency) => {
                    fastest = fastest.min(latency);
                    known.push(latency);
                }
                None => unknown += 1,
            }
        }
        let seen = &self.seen;
        seen.in_service.store(in_service, Relaxed);
        seen.in_flight.store(in_flight, Relaxed);
        store(&seen.weight, weight);
        store(&seen.ramp, if warmest > 0.0 { warmest } else { 1.0 });
        store(&seen.fastest, fastest);
        store(&seen.soundest, soundest);
        if unknown > 0 && !known.is_empty() {
            let middle = (known.len() - 1) / 2;
            store(&seen.median, *known.select_nth_unstable_by(middle, f32::total_cmp).1);
        }
    }

    /// One that is in service and untried, by the tables' kind; none where there is none.
    fn pick(&self, turn: &Turn<'_>, bits: &mut Bits) -> Option<usize> {
        match turn.tables.kind {
            Kind::LeastLoaded => self.best(turn, bits, Self::cheaper),
            Kind::LeastRequest => {
                self.best(turn, bits, |one, other| if other.busy < one.busy { other } else { one })
            }
            Kind::RoundRobin => self.next(turn, bits),
            Kind::Random => self.draw(turn, bits, |_, member| turn.suits(member)),
            Kind::Hash => match (turn.want.key, &self.maglev) {
                (Some(key), Some(maglev)) => self.home(turn, maglev, key),
                _ => self.best(turn, bits, Self::cheaper),
            },
        }
    }

    /// One of those that `fits`, by weight and slow start.
    fn draw(&self, turn: &Turn<'_>, bits: &mut Bits, fits: impl Fn(usize, &Member) -> bool) -> Option<usize> {
        let warmest = load(&self.seen.ramp);
        for _ in 0..REDRAWS {
            let number = self.alias.draw(bits.roll());
            let member = &self.members[number];
            if fits(number, member) {
                let ramp = turn.ramp(member);
                if ramp >= warmest || bits.fraction() * warmest < ramp {
                    return Some(number);
                }
            }
        }
        let fitting = || self.members.iter().enumerate().filter(|(number, member)| fits(*number, member));
        let share = |member: &Member| member.weight as f32 * turn.ramp(member);
        let total: f32 = fitting().map(|(_, member)| share(member)).sum();
        let mut place = bits.fraction() * total;
        let mut found = None;
        for (number, member) in fitting() {
            found = Some(number);
            place -= share(member);
            if place < 0.0 {
                break;
            }
        }
        found
    }

    /// Of two, or a few more where both are bad, the one that `better` says.
    fn best(
        &self,
        turn: &Turn<'_>,
        bits: &mut Bits,
        better: impl Fn(State, State) -> State,
    ) -> Option<usize> {
        let first = self.draw(turn, bits, |_, member| turn.suits(member))?;
        let choices = self.seen.in_service.load(Relaxed).saturating_sub(turn.want.tried.len() as u32);
        let mut best = self.state(turn, first);
        let more = if turn.tables.kind == Kind::LeastRequest { 0 } else { MORE };
        for extra in 0..=more {
            if choices < 2 || extra > 0 && !self.is_bad(best) {
                break;
            }
            let without = |number, member: &Member| number != best.number && turn.suits(member);
            let Some(number) = self.draw(turn, bits, without) else { break };
            best = better(best, self.state(turn, number));
        }
        Some(best.number)
    }

    fn state(&self, turn: &Turn<'_>, number: usize) -> State {
        let member = &self.members[number];
        let (now, since) = (turn.want.now, member.endpoint.standing.in_service_since());
        let load = &member.endpoint.load;
        let in_flight = load.in_flight();
        let known = load.latency(now, since);
        State {
            number,
            latency: known.unwrap_or_else(|| self::load(&self.seen.median).max(load.silence(now))),
            failures: load.failures(now, since),
            busy: in_flight as f32 / (member.relative * turn.ramp(member)),
            is_taken: in_flight > 0 && known.is_none() && !load.has_answered(since),
        }
    }

    /// The one with the lower cost; of equals the first.
    fn cheaper(one: State, other: State) -> State {
        if one.is_taken || other.is_taken {
            let worse = (other.is_taken, other.busy) < (one.is_taken, one.busy);
            return if worse { other } else { one };
        }
        let (lower, higher) = (one.latency.min(other.latency), one.latency.max(other.latency));
        let is_equal = higher <= (lower * BAND).max(lower + BAND_SECONDS);
        let cost = |state: State, than: State| {
            let latency = if is_equal { higher } else { state.latency };
            // Twice what the other one costs is tolerated: of equals it is a matter of chance.
            let failures = (state.failures - 2.0 * than.failures - TOLERATED_SECONDS).max(0.0);
            // Load must be able to outweigh it: else all goes to whoever failed last, until that one fails too.
            (latency + failures.min(higher * MOST_FOR_FAILURES)) * (1.0 + state.busy)
        };
        if cost(other, one) < cost(one, other) { other } else { one }
    }

    /// Whether it is much worse than the best that is known.
    fn is_bad(&self, state: State) -> bool {
        state.is_taken
            || state.failures > load(&self.seen.soundest) + TOLERATED_SECONDS
            || state.latency > load(&self.seen.fastest) * BAD + BAND_SECONDS
    }

    /// Whose turn it is.
    fn next(&self, turn: &Turn<'_>, bits: &mut Bits) -> Option<usize> {
        let warmest = load(&self.seen.ramp);
        for _ in 0..REDRAWS {
            // Who is passed over takes a turn: so it does not fall to the same neighbour each time.
            let at = self.turn.fetch_add(1, Relaxed) as usize;
            let number = match self.rotation.len() {
                0 => at % self.members.len(),
                length => self.rotation[at % length] as usize,
            };
            let member = &self.members[number];
            let ramp = turn.ramp(member);
            if turn.suits(member) && (ramp >= warmest || bits.fraction() * warmest < ramp) {
                return Some(number);
            }
        }
        self.draw(turn, bits, |_, member| turn.suits(member))
    }

    /// Where `key` belongs, or the first below its bound in the key's own order.
    fn home(&self, turn: &Turn<'_>, maglev: &Maglev, key: u64) -> Option<usize> {
        let bound = self.bound();
        let has_room = |member: &Member| {
            // What floating numbers add to a whole one is no place.
            let slots = bound * f64::from(member.weight) - 1e-9;
            f64::from(member.endpoint.in_flight()) < slots.ceil()
        };
        let warmest = load(&self.seen.ramp);
        let mut order = Bits(key);
        let mut number = maglev.find(key);
        for _ in 0..=REDRAWS {
            let member = &self.members[number];
            // As an endpoint warms up keys come to it for good, one by one.
            let is_warm = order.fraction() * warmest < turn.ramp(member);
            if is_warm && turn.suits(member) && has_room(member) {
                return Some(number);
            }
            number = self.alias.draw(order.roll());
        }
        let from = key as usize % self.members.len();
        let around = || (from..self.members.len()).chain(0..from);
        let suits = |number: &usize| turn.suits(&self.members[*number]);
        let busy = |number: &usize| {
            let member = &self.members[*number];
            (f64::from(member.endpoint.in_flight()) / f64::from(member.weight) * 1e6) as u64
        };
        around()
            .filter(suits)
            .find(|number| has_room(&self.members[*number]))
            .or_else(|| around().filter(suits).min_by_key(busy))
    }

    /// Attempts that a weight of 1 may have in flight, the one that is chosen for included.
    fn bound(&self) -> f64 {
        let (mut in_flight, mut weight) = (0, 0);
        if self.members.len() <= FEW {
            for member in self.members.iter().filter(|member| member.is_in_service()) {
                in_flight += member.endpoint.in_flight();
                weight += member.weight;
            }
        } else {
            in_flight = self.seen.in_flight.load(Relaxed);
            weight = load(&self.seen.weight) as u32;
        }
        BOUND * f64::from(in_flight + 1) / f64::from(weight.max(1))
    }
}

fn load(bits: &AtomicU32) -> f32 {
    f32::from_bits(bits.load(Relaxed))
}

fn store(bits: &AtomicU32, value: f32) {
    bits.store(value.to_bits(), Relaxed);
}

fn gcd(one: u32, other: u32) -> u32 {
    if one == 0 { other } else { gcd(other % one, one) }
}

#[cfg(test)]
mod tests;
