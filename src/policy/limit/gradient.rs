//! `gradient`: as many as the upstream works on without a queue of its own, found from the latency.
//!
//! What one attempt takes when nothing queues is the *base*. While slots are asked for in vain, a latency above the base
//! is a queue in the upstream, and the limit falls in proportion; at the base, it rises. A queue of about √L / 3 is
//! left to stand, so that no worker of the upstream is ever idle. A limit that nobody runs into is never raised.
//!
//! The ratio alone cannot see a level that is steadily wrong (Netflix's Gradient2 climbs in a standing overload,
//! Envoy's limit in a long degradation), so the base is anchored by experiments, made only while requests are refused
//! or wait anyway:
//!
//! - **Start**, where nothing is known: the limit doubles with each round, as long as more is done for it or nothing takes
//!   longer (TCP's slow start). Most upstreams that are asked for more than the limit begins with are not overloaded; to
//!   look for their base below it first would refuse a second of requests for nothing.
//! - **Search**, at once, when the latency is twice the base, or a start has gone too far: the limit is halved until the
//!   latency falls no more in proportion. Where it did not fall there was no queue to remove: the base itself has moved
//!   (a service that has become eight times slower still has its eight workers), and is what is seen now. Then
//!   Little's law says where to go: what was done before the cut x how long a slot is held after it.
//! - **Verify**: the limit has fallen by a third and the latency has not. The same in small.
//! - **Probe**, each 10 to 40 s: a fifth less. If as much is done as before and the latency fell, it was queue: the cut
//!   stays, and the next one follows soon. Else it was capacity: the limit is restored, and the base follows by what
//!   may be noise.
//!
//! **Others.** To one of many sidecars that share an upstream its own cut never moves the latency: it looks as if the
//! base had moved, and if each of them believed that, all of them would climb. Two things tell them apart. Who does
//! more than usual, and more slowly, has a queue: then the base never rises. And probes measure how much of the latency
//! follows the limit (`alone`). Who is not alone trusts the base of quiet times, leaves a longer queue (√L), so that
//! an error in its base hardly changes its share, and does not take all that it wants while others wait. What doubles the
//! latency meets all at once, so in a search they all cut together.
//!
//! **Noise.** A window is as long as it takes for the standard error of its mean to be 7 %: 30 answers where they are spread
//! with a sigma of 0.4, 120 where half of them take five times as long as the others, 300 where they are exponential. Judged
//! by thirty of those, an idle upstream would seem to queue every few seconds. So the wider the spread, the slower is
//! whatever is learnt.
//!
//! And who ends first is fast: a window that closes before the slow ones come back has a base that they will look like a
//! queue against. What all take, ended or not, is known by Little's law; where that is more than those took that have
//! ended, no base is made of them, nor lowered.
//!
//! A tenth of answers that take twenty times as long as the others leaves a tenth of overload at 82 to 90 % of the
//! capacity, since the limit then waits for a sign that the noise hides.
//!
//! Rejected: Envoy's probe, which pins the limit to 3 and refuses healthy traffic; a minimum of latencies, which one
//! cheap request poisons; a goodput's slope alone, which is a coin's throw at 100 requests a second.

use std::time::{Duration, Instant};

use super::bounds::{Bounds, Dice};
use super::harmless::{AT_ONCE, Harmless};
use super::sample::Sample;
use super::window::{Seen, Window};

/// After a stall the upstream first has to do what it was sent before.
const CATCHES_UP: Duration = Duration::from_millis(100);
/// A latency up to this times the base is no queue: it is the noise of a window.
const TOLERANCE: f64 = 1.15;
/// Where the limit grows by a factor: a queue that this makes is twice as long.
const WIDE_TOLERANCE: f64 = 1.3;
/// A latency below this times the base is no noise either.
const FASTER: f64 = 0.85;
/// So many windows make a base that was found by a search.
const FRESH: f64 = 4.0;
/// The queue that may stand, times the root of the limit.
const ROOM: f64 = 0.35;
/// The same where others send to the upstream too: the longer the queue that all keep, the less an error in one's base
/// changes one's share.
const SHARED_ROOM: f64 = 1.0;
/// From this times the base the limit is searched for.
const ALARM: f64 = 2.0;
const SHARED_ALARM: f64 = 2.5;
const SHARED_QUEUE: f64 = 1.3;
/// Up to this times the base the search is over.
const CALM: f64 = 1.3;
/// The way to the target that one window goes.
const STEP: f64 = 0.3;
/// The same for the base, where what is seen is near it.
const SLOW_STEP: f64 = 0.05;
/// A window closes with so many ends in it that lie so far apart, or the second pair.
const WINDOW: [(u32, Duration); 2] = [(30, Duration::from_millis(100)), (10, Duration::from_secs(1))];
/// A window is not longer for what takes longer than this.
const LONGEST: Duration = Duration::from_secs(10);
/// The variance of the logarithms of latencies for which that is enough; and how many times as many are waited for where it
/// is wider.
const USUAL_SPREAD: f64 = 0.16;
const MOST_PICTURES: f64 = 10.0;
/// Where it is wide, the first to end are the short ones: so many times as many as the limit have to.
const TURNS: f64 = 4.0;
/// The way to the spread of one window.
const SPREAD_STEP: f64 = 0.2;
/// The same while nothing is known, or as many as the limit.
const ROUND: (u32, Duration) = (20, Duration::from_millis(20));
/// The second one at the same limit: some answers may take much longer than others.
const ROUND_AGAIN: Duration = Duration::from_millis(500);
/// From this times what it was at first, a start has gone too far.
const MUCH_SLOWER: f64 = 2.0;
/// What a probe needs to see.
const PROBE: [(u32, Duration); 2] = [(200, Duration::from_millis(100)), (10, Duration::from_secs(1))];
/// From one probe to the next: after a cut that stayed, at first, and at most.
const PROBE_SOON: f64 = 0.5;
const PROBE_NEW: f64 = 2.0;
const PROBE_FIRST: f64 = 10.0;
const PROBE_LATEST: f64 = 40.0;
/// So many windows at the base, one after the other, say that there is much more room.
const STREAK: u32 = 8;
/// The limit has fallen to this ratio of what it was: has the latency?
const KEPT: f64 = 0.7;
/// So many probes are more than chance.
const PROVEN_BY: f64 = 2.0;
/// Below this ratio of slots that are taken in the mean, the latency is the upstream's own.
const FREE: f64 = 0.4;
/// From this part of the latency that follows the limit, nobody else sends to the upstream.
const ALONE: f64 = 0.6;
/// From this ratio of slots that are taken in the mean, all slots are wanted.
const BUSY: f64 = 0.7;
/// Ratio of refusals by the upstream and of timeouts from which they are a lesson.
const BAD: f64 = 0.05;
/// How long a number in flight that was well served counts.
const PROVEN: Duration = Duration::from_secs(60);

/// Of what was needed without overload, what an upstream that may be shared leaves to everybody.
const NEEDED: f64 = 0.7;

/// The most in flight of the last half to whole [`PROVEN`].
#[derive(Clone, Copy, Debug)]
struct Most {
    /// Of this half, and of the one before.
    halves: [u32; 2],
    since: Instant,
}

impl Most {
    fn new(now: Instant) -> Self {
        Self { halves: [0; 2], since: now }
    }

    fn count(&mut self, now: Instant, in_flight: u32) {
        if now.saturating_duration_since(self.since) > PROVEN / 2 {
            *self = Self { halves: [0, self.halves[0]], since: now };
        }
        self.halves[0] = self.halves[0].max(in_flight);
    }

    fn most(&self) -> u32 {
        self.halves[0].max(self.halves[1])
    }
}

/// The state of a `gradient` limit.
#[derive(Debug)]
pub(super) struct Gradient {
    limit: f64,
    /// What an attempt takes without a queue, in seconds; not known yet.
    base: Option<f64>,
    /// The same as a time.
    usually: Duration,
    /// How many windows it is the mean of.
    anchored: f64,
    /// The base of times in which slots were free, in a longer mean of so many windows.
    trusted: Option<(f64, f64)>,
    /// How much of the latency follows the limit: 1 where nobody else sends to the upstream, 0 where many do.
    alone: f64,
    /// By how many probes.
    probed: u32,
    harmless: Harmless,
    window: Window,
    /// What an attempt took in the last window: a shorter one would show what the limit before it did.
    latency: Duration,
    /// The variance of the logarithms of latencies within a window, in the mean.
    spread: Option<f64>,
    phase: Phase,
    /// Good answers in a second while all slots were taken, in the mean; none: not seen at this limit.
    goodput: Option<f64>,
    /// Windows at the base, one after the other; while it ramps the limit grows by half.
    streak: u32,
    ramps: bool,
    /// It has just grown by a factor.
    grows: bool,
    /// The limit and the goodput from which growth has to show that it is of use.
    mark: Option<(f64, f64)>,
    /// The latency while all slots are taken, in the mean of so many windows; the most that the limit was since, and the
    /// highest latency from then on: if the limit falls and it does not, there is no queue to remove.
    level: Option<(f64, f64)>,
    height: Option<(f64, f64)>,
    /// The base was raised while slots were wanted: up to here the limit may rise, until they are not.
    ceiling: Option<f64>,
    /// Slots were wanted in vain, and the latency has not been at the base since.
    is_pressed: bool,
    /// It was too much for some; no more until the next probe.
    hold: bool,
    probe_at: Option<Instant>,
    probe_gap: f64,
    /// The most in flight that were well served, now and in the time before, and when now began.
    proven: Most,
    /// The same, of times in which nobody was without a slot.
    needed: Most,
    /// Good answers in a second, of times in which nobody was without a slot; and when the last search began.
    usual: Option<f64>,
    done: f64,
    dice: Dice,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Follows the latency.
    Steady,
    /// Nothing is known yet: the limit doubles as long as that is of use.
    Start(Start),
    /// The limit was cut, what was seen before the cut, and what was done at best.
    Search { limit: f64, before: Option<Seen>, best: Best },
    /// The limit has fallen from this, where the latency was so high: has it fallen too?
    Verify { limit: f64, highest: f64 },
    /// The limit is this for a moment; the learnt one stays.
    Probe { limit: f64 },
}

#[derive(Clone, Copy, Debug)]
struct Start {
    /// How many seconds an attempt took at first, and held its slot.
    latency: f64,
    hold: f64,
    /// What was done before it doubled last, and at best.
    last: Best,
    best: Best,
    /// The last round was of no use; one may be chance.
    in_vain: bool,
}

/// The most good answers in a second that a search has seen, and at which limit.
type Best = Option<(f64, f64)>;

impl Gradient {
    pub(super) fn new(initial: f64, now: Instant, dice: Dice) -> Self {
        Self {
            limit: initial,
            base: None,
            usually: Duration::ZERO,
            anchored: FRESH,
            trusted: None,
            alone: 1.0,
            probed: 0,
            harmless: Harmless::new(now),
            window: Window::new(now),
            latency: Duration::ZERO,
            spread: None,
            phase: Phase::Steady,
            goodput: None,
            streak: 0,
            ramps: true,
            grows: false,
            mark: None,
            level: None,
            height: None,
            ceiling: None,
            is_pressed: false,
            hold: false,
            probe_at: None,
            probe_gap: PROBE_FIRST,
            proven: Most::new(now),
            needed: Most::new(now),
            usual: None,
            done: 0.0,
            dice,
        }
    }

    pub(super) fn limit(&self) -> f64 {
        if let Phase::Probe { limit } = self.phase { limit } else { self.limit }
    }

    pub(super) fn clamp(&mut self, bounds: &Bounds) {
        self.limit = bounds.clamp(self.limit);
        if let Phase::Probe { limit } = &mut self.phase {
            *limit = bounds.clamp(*limit);
        }
    }

    pub(super) fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    /// Nothing of what was sent before now is to be learnt from. `again`: it was not for the first time.
    pub(super) fn forget(&mut self, now: Instant, again: bool, bounds: &Bounds) {
        self.start_over();
        if again {
            self.cut(now, None, None, bounds);
        } else {
            self.phase = Phase::Steady;
            self.window.clear(now, now + CATCHES_UP);
        }
    }

    pub(super) fn answered(&mut self, now: Instant, sample: &Sample, bounds: &Bounds) {
        if self.harmless.answered(now, sample) && self.window.is_saturated() {
            self.lift(now, bounds);
        }
        let bounds = &bounds.at_least(self.harmless.limit().min(self.limit));
        // Whatever is faster counts as this.
        let sample = Sample { latency: sample.latency.max(AT_ONCE), ..*sample };
        self.window.answered(now, &sample, self.usually);
        let (ended, length) = self.window.size(now);
        // Where nobody is without a slot, the first base may as well be a good one; and those who answer first are the fast
        // ones.
        let is_first = self.base.is_none() && !self.window.is_saturated();
        let pictures = self.pictures() * if is_first { FRESH } else { 1.0 };
        let shortest = match self.phase {
            _ if is_first => WINDOW[1].1,
            Phase::Search { .. } => self.latency / 2,
            _ => self.latency,
        };
        let turns = self.limit() * (pictures - 1.0).min(TURNS);
        let enough = |(enough, long): (u32, Duration)| {
            f64::from(ended) >= (f64::from(enough) * pictures).max(turns) && length >= long.max(shortest)
        };
        // Two rounds are a picture, where it has to be quick.
        let rounds = (2 * self.limit as u32).clamp(2 * WINDOW[1].0, 2 * WINDOW[0].0);
        let is_search = matches!(self.phase, Phase::Search { .. });
        let first = if self.grows || is_search { (rounds, WINDOW[0].1) } else { WINDOW[0] };
        let is_start = self.base.is_none() && !is_first && !is_search;
        // PERF: to look costs as much as ten answers.
        let is_long = matches!(self.phase, Phase::Probe { .. } | Phase::Verify { .. });
        let is_over = if is_start {
            self.is_round_over(ended, length)
        } else if is_long {
            PROBE.into_iter().any(enough)
        } else {
            enough(first) || enough(WINDOW[1])
        };
        let is_looked_at = is_over || (is_long && ended.is_multiple_of(WINDOW[0].0) && enough(WINDOW[0]));
        if !is_looked_at {
            return;
        }
        let Some(seen) = self.window.seen(now) else { return };
        let goes_on = is_long && !is_over && self.is_busy(&seen) && !self.alarming(&seen);
        // What becomes a base should be whole.
        let patience = match () {
            () if is_first => LONGEST,
            () if is_search => WINDOW[1].1,
            () => Duration::ZERO,
        };
        if goes_on || (seen.is_partial() && length < patience) {
            return;
        }
        if let Some(base) = self.base {
            let is_quiet = !seen.saturated && seen.latency <= base * TOLERANCE;
            self.is_pressed = !is_quiet && (self.is_pressed || self.is_full(&seen));
        }
        self.latency = Duration::from_secs_f64(seen.latency).min(LONGEST);
        if let Some(spread) = seen.spread.filter(|_| !is_start && !self.alarming(&seen)) {
            self.spread = Some(self.spread.map_or(spread, |mean| mean + SPREAD_STEP * (spread - mean)));
        }
        match self.phase {
            Phase::Steady => self.follow(now, &seen, bounds),
            Phase::Start(start) => self.start(now, &seen, start, bounds),
            Phase::Search { limit, before, best } => self.search(now, &seen, (limit, before, best), bounds),
            Phase::Verify { limit, highest } => self.verify(now, &seen, limit, highest, bounds),
            Phase::Probe { limit } => self.judge(now, &seen, limit, bounds),
        }
        self.usually = Duration::from_secs_f64(self.base.unwrap_or(0.0));
    }

    /// Whether all slots have come back once while nothing is known.
    fn is_round_over(&self, ended: u32, length: Duration) -> bool {
        let is_again = matches!(self.phase, Phase::Start(Start { in_vain: true, .. }));
        ended >= ROUND.0.max(self.limit as u32)
            && length >= if is_again { ROUND_AGAIN } else { ROUND.1 }
            && length >= self.latency.max(self.window.latency()).min(LONGEST)
    }

    /// More does no harm.
    fn lift(&mut self, now: Instant, bounds: &Bounds) {
        let limit = bounds.clamp(self.harmless.limit());
        if limit.round() > self.limit().round() {
            self.limit = limit.max(self.limit);
            self.phase = Phase::Steady;
            self.start_over();
            self.window.clear(now, now);
        }
    }

    /// How many times as long a window has to be for the standard error of its mean to be 7 %.
    fn pictures(&self) -> f64 {
        (self.spread.or(self.window.spread()).unwrap_or(0.0) / USUAL_SPREAD).clamp(1.0, MOST_PICTURES)
    }

    /// Where what is seen is not sure yet. Where all take the same there is nothing to be unsure of.
    fn wide_tolerance(&self) -> f64 {
        let spread = (self.spread.unwrap_or(USUAL_SPREAD) / USUAL_SPREAD).min(1.0);
        TOLERANCE + spread * (WIDE_TOLERANCE - TOLERANCE)
    }

    fn alarming(&self, seen: &Seen) -> bool {
        let alarm = if self.is_alone() { ALARM } else { SHARED_ALARM };
        seen.cut_off || self.base.is_some_and(|base| seen.latency >= alarm * base)
    }

    /// Whether the limit is what bounds what is in flight, and not for moments alone.
    fn is_busy(&self, seen: &Seen) -> bool {
        // Of an upstream that others wait for too, nobody should have all that they want.
        let others_wait = self.is_pressed
            && !self.is_proven()
            && self.base.is_some_and(|base| seen.latency > base * TOLERANCE);
        self.is_full(seen) || (others_wait && seen.mean >= FREE * self.limit())
    }

    fn is_full(&self, seen: &Seen) -> bool {
        seen.saturated && seen.mean >= BUSY * self.limit()
    }

    /// A window closes in good or bad times, without an experiment.
    fn follow(&mut self, now: Instant, seen: &Seen, bounds: &Bounds) {
        self.window.clear(now, self.window.from());
        if !self.is_busy(seen) {
            return self.idle(now, seen, bounds);
        }
        let Some(base) = self.base else {
            let (latency, hold) = (seen.latency, seen.hold);
            let start = Start { latency, hold, last: None, best: None, in_vain: false };
            return self.start(now, seen, start, bounds);
        };
        if self.alarming(seen) {
            self.done = seen.rate;
            return self.cut(now, Some(*seen), None, bounds);
        }
        if seen.bad > BAD {
            return self.yields(now, bounds);
        }
        self.proven.count(now, seen.peak);
        let goodput = self.goodput.map_or(seen.rate, |goodput| goodput + STEP * (seen.rate - goodput));
        self.goodput = Some(goodput);
        let ratio = seen.latency / base;
        let is_unsure = self.anchored < FRESH || (self.grows && self.ramps);
        let tolerance = if is_unsure { self.wide_tolerance() } else { TOLERANCE };
        if ratio < FASTER && !seen.is_partial() {
            self.base = Some(base + STEP * (seen.latency - base));
        } else if self.anchored < FRESH && ratio <= tolerance {
            self.anchored += 1.0;
            self.base = Some(base + (seen.latency - base) / self.anchored);
        }
        if ratio <= tolerance {
            self.grow(now, seen, bounds);
        } else {
            self.shrink(now, ratio, bounds);
        }
        self.watch(now, seen);
        if matches!(self.phase, Phase::Verify { .. }) {
            return self.window.clear(now, now);
        }
        match self.probe_at {
            Some(at) if now >= at => self.probe(now, ratio, bounds),
            Some(_) => {}
            // Not all at the same time after what met all of them.
            None => self.schedule(now, if self.is_probed() { PROBE_FIRST } else { PROBE_NEW }, 1.0),
        }
    }

    /// A round is over of the time in which nothing is known.
    fn start(&mut self, now: Instant, seen: &Seen, start: Start, bounds: &Bounds) {
        if seen.cut_off || seen.bad > BAD {
            return self.cut(now, Some(*seen), start.best, bounds);
        }
        // Those that end first are the fast ones, and those that began together end together: both have to rise.
        let slower = (seen.hold / start.hold).min(seen.latency / start.latency);
        if !self.is_busy(seen) && slower < MUCH_SLOWER {
            if seen.saturated {
                self.phase = Phase::Start(start);
                return self.window.clear(now, now);
            }
            // There is enough for everybody, and time for a good look.
            self.phase = Phase::Steady;
            return self.follow(now, seen, bounds);
        }
        let (limit, done) = start.last.unwrap_or((self.limit, seen.rate / 2.0));
        let (grown, more) = (self.limit / limit - 1.0, seen.rate / done - 1.0);
        let is_slower = slower > if start.in_vain { 1.4 } else { 1.7 };
        let is_of_use = slower < MUCH_SLOWER && more > grown * if is_slower { 0.4 } else { 0.1 };
        if !is_of_use && (start.in_vain || is_slower) {
            return self.cut(now, Some(*seen), start.best, bounds);
        }
        let this = Some((self.limit, seen.rate));
        let best = start.best.filter(|(_, done)| *done >= seen.rate).or(this);
        let last = if is_of_use { this } else { start.last };
        self.phase = Phase::Start(Start { last, best, in_vain: !is_of_use, ..start });
        if is_of_use {
            self.limit = bounds.clamp(self.limit * 2.0);
        }
        self.window.clear(now, now);
    }

    /// Too many attempts are refused or time out: less, but not far below what was well served of late. In a brownout
    /// without overload it is not the limit that is too high.
    fn yields(&mut self, now: Instant, bounds: &Bounds) {
        let proven = 0.8 * f64::from(self.proven.most());
        self.limit = bounds.clamp((self.limit * 0.9).max(proven.min(self.limit)));
        self.hold = true;
        (self.ramps, self.grows, self.streak, self.mark) = (false, false, 0, None);
        self.window.clear(now, now);
    }

    /// Nobody needs more: the latency is the upstream's own, and the limit is not raised.
    fn idle(&mut self, now: Instant, seen: &Seen, bounds: &Bounds) {
        self.start_over();
        if !seen.saturated {
            self.ceiling = None;
        }
        if seen.bad <= BAD {
            self.proven.count(now, seen.peak);
            if !seen.saturated {
                self.needed.count(now, seen.peak);
                let usual = self.usual.unwrap_or(seen.rate);
                self.usual = Some(usual + SLOW_STEP * (seen.rate - usual));
            }
        }
        let base = self.base.unwrap_or(seen.latency);
        if seen.saturated && seen.latency <= TOLERANCE * base {
            self.limit = bounds.clamp(self.limit + STEP * self.room());
        }
        let is_lower = seen.latency < base;
        if !seen.cut_off && if is_lower { !seen.is_partial() } else { !seen.saturated && !seen.swells() } {
            // More than half full, a part of it may be queue; and what is near may be noise.
            let is_free = seen.mean < FREE * self.limit;
            let is_noise = (FASTER..=TOLERANCE).contains(&(seen.latency / base));
            let pace = match () {
                () if is_noise && (is_free || seen.latency < base) => SLOW_STEP,
                () if is_free || seen.latency < base => STEP,
                () if self.is_proven() => STEP / 3.0,
                // It may be the queue of others.
                () => SLOW_STEP / 10.0,
            };
            let base = base + pace * (seen.latency - base);
            self.base = Some(base);
            if is_free {
                self.trusted = Some(match self.trusted {
                    Some((mean, windows)) if (base / mean - 1.0).abs() < 0.2 => {
                        (mean + (seen.latency - mean) / (windows + 1.0), (windows + 1.0).min(100.0))
                    }
                    _ => (base, FRESH),
                });
            }
        }
        let wide = f64::from(seen.peak.max(self.proven.most())) * 4.0;
        let wide = wide.max(bounds.initial);
        if self.limit > wide {
            self.limit = bounds.clamp(self.limit - 0.05 * (self.limit - wide));
        }
    }

    /// Looks whether the limit has fallen by a quarter: then the latency must have fallen too.
    fn watch(&mut self, now: Instant, seen: &Seen) {
        let (level, windows) = self.level.map_or((seen.latency, 1.0), |(level, windows)| {
            let share = STEP.max(1.0 / (windows + 1.0));
            (level + share * (seen.latency - level), windows + 1.0)
        });
        self.level = Some((level, windows));
        let (limit, highest) = match self.height {
            Some((limit, highest)) if self.limit < limit && windows > 3.0 => (limit, highest.max(level)),
            Some((limit, _)) => (limit.max(self.limit), level),
            None => (self.limit, level),
        };
        self.height = Some((limit, highest));
        if self.limit <= KEPT * limit && !self.is_probed() {
            self.schedule(now, 0.0, 0.0);
        } else if self.limit <= KEPT * limit && self.is_alone() {
            self.phase = Phase::Verify { limit, highest };
            self.height = None;
        }
    }

    /// The limit has fallen. If the latency has not, there was no queue: the base has moved, and the limit comes back.
    fn verify(&mut self, now: Instant, seen: &Seen, limit: f64, highest: f64, bounds: &Bounds) {
        self.phase = Phase::Steady;
        if self.is_busy(seen) && !self.alarming(seen) {
            let fell = seen.latency < highest * (1.0 + self.limit / limit) / 2.0;
            if !fell && self.may_move(seen.rate) {
                self.anchor(seen);
                self.limit = bounds.clamp(limit);
                self.ceiling = Some(self.limit);
                self.goodput = None;
            }
            return self.window.clear(now, now);
        }
        self.follow(now, seen, bounds);
    }

    /// So many probes are more than chance.
    fn is_probed(&self) -> bool {
        f64::from(self.probed) >= PROVEN_BY * self.pictures().min(1.5)
    }

    /// It is known to be alone.
    fn is_proven(&self) -> bool {
        self.is_probed() && self.is_alone()
    }

    fn is_alone(&self) -> bool {
        self.alone >= ALONE
    }

    /// The queue that may stand.
    fn room(&self) -> f64 {
        self.limit.sqrt() * if self.is_alone() { ROOM } else { SHARED_ROOM }
    }

    /// Whether the base may be higher than it was: not while more is done than when it was found. Who does more, and more
    /// slowly, has a queue.
    fn may_move(&self, rate: f64) -> bool {
        self.usual.is_none_or(|usual| rate <= 1.1 * usual)
    }

    /// The base has moved. Where others send too, a part of what is seen is the queue that all keep.
    fn anchor(&mut self, seen: &Seen) {
        if self.is_alone() {
            (self.base, self.anchored) = (Some(seen.latency), 1.0);
            self.trusted = None;
        } else {
            (self.base, self.anchored) = (Some(seen.latency / SHARED_QUEUE), FRESH);
        }
    }

    /// What was seen at other limits is no measure any more.
    fn start_over(&mut self) {
        (self.goodput, self.mark, self.level, self.height) = (None, None, None, None);
        (self.streak, self.grows, self.hold) = (0, false, false);
    }

    /// There is no queue: more, unless more has been of no use.
    fn grow(&mut self, now: Instant, seen: &Seen, bounds: &Bounds) {
        if self.hold || self.ceiling.is_some_and(|ceiling| self.limit >= ceiling) {
            self.grows = false;
            return;
        }
        let ceiling = self.ceiling.unwrap_or(f64::INFINITY).max(self.limit);
        let (at, done) = *self.mark.get_or_insert((self.limit, seen.rate));
        let grown = self.limit / at;
        let rate = if self.grows { seen.rate } else { self.goodput.unwrap_or(seen.rate) };
        if grown >= if self.grows { 1.05 } else { 1.5 } {
            let more = rate / done;
            let enough = if self.grows { 0.4 } else { 0.3 };
            if more < 1.0 + (grown - 1.0) * enough {
                // So many as there is use for, and a few.
                self.limit =
                    bounds.clamp((at * more.max(1.0) * if self.ramps { 1.1 } else { 1.0 }).min(self.limit));
                (self.ramps, self.grows, self.streak, self.mark) = (false, false, 0, None);
                self.goodput = None;
                return self.window.clear(now, now);
            }
            self.mark = Some((self.limit, rate));
        }
        self.streak += 1;
        if self.ramps || self.streak >= STREAK {
            let factor = if self.ramps { 1.5 } else { 1.25 };
            self.multiply(rate, factor, bounds);
            self.goodput = None;
            self.window.clear(now, now);
        } else {
            self.limit = bounds.clamp((self.limit + STEP * self.room()).min(ceiling));
        }
    }

    /// Grows by a factor, from where so much was done.
    fn multiply(&mut self, rate: f64, factor: f64, bounds: &Bounds) {
        self.mark.get_or_insert((self.limit, rate));
        self.grows = true;
        let ceiling = self.ceiling.unwrap_or(f64::INFINITY).max(self.limit);
        self.limit = bounds.clamp((self.limit * factor).min(ceiling));
    }

    /// There is a queue: towards where the latency is what it should be.
    fn shrink(&mut self, now: Instant, ratio: f64, bounds: &Bounds) {
        let target = self.limit * TOLERANCE / ratio + self.room();
        if self.grows {
            // What it has just grown by is known to be too much.
            self.limit = bounds.clamp(target.min(self.limit));
            self.goodput = None;
            self.window.clear(now, now);
        } else {
            // Where it may be others whose queue it is, not below what was needed when there was none: if they are none,
            // and the upstream has become slower, nearly as much is done as could be.
            let needed = if self.is_proven() { 0.0 } else { NEEDED * f64::from(self.needed.most()) };
            let next = self.limit + STEP * (target - self.limit);
            self.limit = bounds.clamp(next.max(needed.min(self.limit)));
        }
        // What is near may be noise; a streak ends where there is a queue.
        self.streak = if ratio <= WIDE_TOLERANCE { self.streak.saturating_sub(3) } else { 0 };
        if self.streak == 0 {
            self.mark = None;
        }
        (self.ramps, self.grows) = (false, false);
    }

    /// Begins a search, or goes on with it.
    fn cut(&mut self, now: Instant, before: Option<Seen>, best: Best, bounds: &Bounds) {
        self.phase = Phase::Search { limit: self.limit, before, best };
        // Where nothing comes in time there is nothing to lose.
        let is_late = before.is_none_or(|before| before.cut_off);
        self.limit = bounds.clamp(self.limit / if is_late { 4.0 } else { 2.0 });
        self.start_over();
        self.ceiling = None;
        self.window.clear(now, now);
    }

    /// A window closes after a cut.
    fn search(&mut self, now: Instant, seen: &Seen, last: (f64, Option<Seen>, Best), bounds: &Bounds) {
        let (limit, before, best) = last;
        let before = before.filter(|before| !before.cut_off);
        if !self.is_busy(seen) {
            self.phase = Phase::Steady;
            return self.follow(now, seen, bounds);
        }
        if seen.cut_off {
            return self.cut(now, None, best, bounds);
        }
        let is_calm = self.base.is_some_and(|base| seen.latency <= CALM * base);
        // Of a cut that could not be made, or where nothing was left to compare with, no fall is expected.
        let fell = before.is_some_and(|before| {
            let kept = seen.mean / before.mean;
            kept < 0.9 && before.falls_to(seen) < (1.0 + kept) / 2.0
        });
        let more = best.filter(|(_, done)| *done >= seen.rate).or(Some((self.limit, seen.rate)));
        if fell && !is_calm {
            return self.cut(now, Some(*seen), more, bounds);
        }
        // Who has no more than the least limit was not cut, so it says nothing that nothing fell.
        let was_cut = before.is_none_or(|before| seen.mean < 0.9 * before.mean) || self.base.is_none();
        let moves = !is_calm && was_cut && self.may_move(self.done);
        if moves {
            self.anchor(seen);
            self.proven = Most::new(now);
        }
        // Little's law: where what was done can be done without a queue. What was done before the search may have been
        // done by a better upstream.
        let (most, done) = match (best, before) {
            (Some(best), _) => best,
            (None, Some(before)) => (limit, before.rate),
            (None, None) => (limit, 0.0),
        };
        let little = match before {
            Some(_) => done * seen.hold,
            // Or as many as were well served, if that is not what has just been too much.
            None => (done * seen.hold).max(f64::from(self.proven.most()).min(limit * 0.7)),
        };
        self.ramps = moves || (before.is_none() && little <= self.limit);
        if self.ramps && little <= self.limit {
            self.multiply(seen.rate, 1.5, bounds);
        } else {
            self.limit = bounds.clamp(little.clamp(self.limit, most.max(self.limit)));
        }
        self.phase = Phase::Steady;
        self.window.clear(now, now);
        self.probe_gap = PROBE_FIRST;
        // Where more is done than before, it has to be found out soon whether others do so too.
        let is_known = self.is_probed() || (moves && self.usual.is_some());
        self.schedule(now, if is_known { PROBE_FIRST } else { PROBE_NEW }, 1.0);
    }

    /// `gap` in seconds, and what part of it chance decides: sidecars should not probe in step.
    fn schedule(&mut self, now: Instant, gap: f64, spread: f64) {
        let gap = gap * (1.0 + spread * (self.dice.draw() - 0.5));
        self.probe_at = Some(now + Duration::from_secs_f64(gap));
    }

    fn probe(&mut self, now: Instant, ratio: f64, bounds: &Bounds) {
        let limit = bounds.clamp(self.limit * (0.9 / ratio).clamp(0.6, 0.8));
        if self.goodput.is_none() {
            // To be compared with what is seen soon.
        } else if limit.round() < self.limit.round() {
            self.phase = Phase::Probe { limit };
            self.window.clear(now, now);
        } else {
            if self.limit > self.harmless.limit() {
                // With so little, it is not the limit that makes the queue.
                self.alone /= 2.0;
            }
            self.schedule(now, PROBE_FIRST, 0.4);
        }
    }

    /// A probe at `limit` is over.
    fn judge(&mut self, now: Instant, seen: &Seen, limit: f64, bounds: &Bounds) {
        self.phase = Phase::Steady;
        if self.alarming(seen) || !self.is_busy(seen) {
            self.schedule(now, PROBE_FIRST, 0.4);
            return self.follow(now, seen, bounds);
        }
        self.window.clear(now, now);
        (self.hold, self.ceiling) = (false, None);
        let (Some(base), Some(goodput)) = (self.base, self.goodput) else { return };
        let kept = limit / self.limit;
        let level = self.level.map_or(seen.latency, |(level, _)| level);
        // What of the queue should have gone with the cut, and what has.
        let should = 1.0 - kept.max(base / level);
        if should > 0.12 {
            let has = ((1.0 - seen.latency / level) / should).clamp(0.0, 1.0);
            let was_alone = self.is_alone();
            self.alone += if self.probed > 0 { 0.5 } else { 1.0 } * (has - self.alone);
            self.probed += 1;
            if was_alone && !self.is_alone() {
                // What was taken for the base was the others' queue.
                self.base = self.trusted.map_or(Some(base), |(trusted, _)| Some(trusted));
                self.ceiling = None;
            }
        }
        let fell = seen.latency < level * (1.0 + kept) / 2.0;
        if fell && seen.rate >= goodput * (1.0 + kept) / 2.0 {
            self.limit = bounds.clamp(limit);
            self.base = Some(if seen.is_partial() { base } else { base.min(seen.latency) });
            self.probe_gap = PROBE_FIRST;
            self.ramps = false;
            return self.schedule(now, PROBE_SOON, 0.4);
        }
        if seen.latency < base * 1.1 && !seen.is_partial() {
            self.base = Some(base + STEP * (seen.latency - base));
        }
        let gap = if self.probed == 0 || self.is_probed() { self.probe_gap } else { PROBE_NEW };
        self.schedule(now, gap, 0.4);
        self.probe_gap = (self.probe_gap * 2.0).min(PROBE_LATEST);
    }
}
