//! Concurrency limit: how many attempts may be in flight to one upstream, and who is next.
//!
//! A slot belongs to an attempt, from its start to the end of its body (or until it becomes a stream). Only a first
//! attempt may wait for one. [`Gate`] is pure; the shell around it, one for each upstream and the whole process,
//! is a mutex and the wakers (`proxy`).
//!
//! Slots are the upstream's, so nobody keeps one by sending slowly: an attempt that waits for more of its request than
//! [`PATIENCE`] lends its slot until the request is complete, or the upstream takes no more of it, or answers
//! ([`Gate::lend`]). Then it takes one whether one is free or not, since the upstream has the request already; newcomers
//! wait until that is made up for.
//! Rejected: to take the slot back for each piece that comes, which keeps it busy with a few bytes each 50 ms; to hold
//! the last piece back until a slot is free, which refuses a client behind an upload that took minutes.
//!
//! Where the limit comes from, and when it lets nobody in though slots are free because the upstream stalls: `limit`.
//! Who waits, and for how long: `queue`. Here they meet: whoever is let in while others wait is the next of those, and
//! what an attempt shows may let in several at once. So every call that can free a slot is followed by
//! [`Gate::grant`], until that names nobody.
//!
//! A client that leaves, or a timeout, ends an attempt and not the upstream's work. Where the limit is learnt it stands
//! for that work, so the slot stays taken for a while ([`Gate::give_up_on`]). Rejected: to hand it on at once. When a
//! service slows down, those who are next have waited as long as those who just gave up, and give up as soon; a limit
//! of 4 then sent 100 requests a second to a service that could do 100, none of which was answered in time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::limit::{self, Lesson, Limiter, Sample};
use crate::policy::mode::Mode;
use crate::policy::priority::Priority;
use crate::policy::queue::{self, Joined, Need, Pace, Queue, Refused, Ticket};
use crate::reason::Reason;
use crate::units::{Ratio, Span};

/// How long a slot stays taken whose attempt was given up, where nothing else tells that the upstream has done with it.
/// Measured in front of eight workers that became eight times slower: with 100 ms a third of what they did was in vain,
/// with a second they were idle in between.
pub const LINGERS: Duration = Duration::from_millis(250);

/// How long an attempt keeps its slot while it waits for its client to send the rest of a request. Clients nearby send a
/// body right behind its head, and those far away need a round trip or two of some ten milliseconds; whoever takes
/// longer would hold up others for longer than they take themselves.
pub const PATIENCE: Duration = Duration::from_millis(50);

/// `[upstream.NAME.concurrency]`: how many attempts may be in flight.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// The limit. Default `{ kind = "gradient", initial = 20, min = 4, max = 1000 }`.
    pub limit: limit::Settings,
    /// Who waits for a slot. Default `{ size = 100, timeout = "500ms", order = "priority" }`.
    pub queue: queue::Settings,
    /// A body that runs longer is a stream and gives its slot back; so is a call of gRPC that no deadline bounds, without
    /// a head for so long. Default `"5s"`.
    pub stream_after: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            limit: limit::Settings::default(),
            queue: queue::Settings::default(),
            stream_after: Span::from_secs(5),
        }
    }
}

/// The limit of one upstream and the queue before it.
#[derive(Debug)]
pub struct Gate {
    limiter: Limiter,
    in_flight: u32,
    queue: Queue,
    departures: Departures,
    /// Oldest first. Each is one of those in flight.
    given_up: VecDeque<GivenUp>,
    /// Whether the limit is what the upstream was seen to do at once, not somebody's number for our attempts.
    is_learnt: bool,
}

/// An attempt that ended without an answer. Its upstream does not know, and may work on it still.
#[derive(Clone, Copy, Debug)]
struct GivenUp {
    began: Instant,
    until: Instant,
}

/// Who asks for a slot.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// When.
    pub now: Instant,
    /// The end of its time; `None`: there is none, and only the queue's timeout bounds its wait.
    pub deadline: Option<Instant>,
    /// How much it matters.
    pub priority: Priority,
    /// Whether it may wait for one.
    pub may_queue: bool,
    /// What half of the attempts take, as far as it is known: the time that one needs, where the limit has seen too few.
    pub p50: Option<Duration>,
}

/// What came of asking for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a slot must be given back"]
pub enum Entry {
    /// A slot: owes a [`Gate::leave`].
    Slot,
    /// A place in the queue. It may be next at once: [`Gate::grant`].
    Queued {
        /// Its own.
        ticket: Ticket,
        /// Who had to make room for it: `queue_full`.
        evicted: Option<Ticket>,
    },
    /// Neither.
    Rejected {
        /// `concurrency_limited` or `queue_full`.
        reason: Reason,
        /// When it is worth to come back, where that can be told.
        retry_after: Option<Duration>,
    },
}

/// What follows from a slot that is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "those that it names wait for an answer"]
pub struct Leave {
    /// Whose the slot is now: owes a [`Gate::leave`].
    pub next: Option<Ticket>,
    /// Who stood before them and cannot make it any more: `queue_timeout`. Mostly empty, which costs nothing.
    pub skipped: Vec<Ticket>,
}

impl Leave {
    /// Whether it names nobody.
    pub fn is_empty(&self) -> bool {
        self.next.is_none() && self.skipped.is_empty()
    }
}

impl Gate {
    /// Nothing is in flight. `seed`: of what the limit leaves to chance.
    pub fn new(settings: &Settings, now: Instant, seed: u64) -> Self {
        Self {
            limiter: Limiter::new(&settings.limit, now, seed),
            in_flight: 0,
            queue: Queue::new(&settings.queue),
            departures: Departures::default(),
            given_up: VecDeque::new(),
            is_learnt: settings.limit.start().is_some(),
        }
    }

    /// Takes over changed settings. What is in flight stays, who waits too, and what was learnt.
    pub fn update(&mut self, settings: &Settings) {
        self.limiter.update(&settings.limit);
        self.is_learnt = settings.limit.start().is_some();
        self.queue.update(&settings.queue);
    }

    /// Asks for a slot. Where it has to queue or is refused, somebody else may be let in: [`Gate::grant`].
    pub fn enter(&mut self, ask: &Ask) -> Entry {
        let Ask { now, deadline, priority, .. } = *ask;
        self.settle(now);
        let need = self.limiter.need(now).or(ask.p50);
        if self.queue.depth() == 0 && self.limiter.admits(now, self.in_flight) {
            self.take(now);
            return Entry::Slot;
        }
        self.limiter.saturated(now);
        let pace = self.pace(now, need);
        let joined = match ask.may_queue {
            true => self.queue.join(now, Need { priority, deadline, time: need }, pace),
            false => Err(Refused::NoQueue),
        };
        let reason = match joined {
            Ok(Joined { ticket, evicted }) => return Entry::Queued { ticket, evicted },
            Err(Refused::NoQueue) => Reason::ConcurrencyLimited,
            Err(Refused::Full) => Reason::QueueFull,
        };
        Entry::Rejected { reason, retry_after: self.queue.wait(now, priority, pace) }
    }

    /// An attempt has shown this, and its slot goes to the next one of the same request. The limit may have risen.
    pub fn shown(&mut self, now: Instant, sample: Sample) {
        self.learn(now, sample);
    }

    /// The head of an answer came, whose body holds the slot. The limit may have risen. Owes a [`Gate::body_ends`].
    pub fn answered(&mut self, now: Instant, sample: Sample) {
        self.learn(now, sample);
        self.limiter.body_begins();
    }

    /// The body of an answer that was told has ended, or nobody wants it; its slot comes back now.
    pub fn body_ends(&mut self) {
        self.limiter.body_ends();
    }

    /// Gives a slot back, with what the attempt has shown where that was not told before.
    pub fn leave(&mut self, now: Instant, sample: Option<Sample>, p50: Option<Duration>) -> Leave {
        self.departures.departed(now, self.in_flight >= self.limiter.limit());
        if let Some(sample) = sample {
            self.learn(now, sample);
        }
        self.free(now);
        self.grant(now, p50)
    }

    /// Lends a slot while its attempt waits for its client, as it has done for `held`. That teaches nothing, and is not
    /// the pace at which slots come back. Owes a [`Gate::take_back`], unless the attempt ends before.
    pub fn lend(&mut self, now: Instant, held: Duration, p50: Option<Duration>) -> Leave {
        self.in_flight -= 1;
        self.limiter.lent(now, self.in_flight, held);
        self.grant(now, p50)
    }

    /// An attempt that has lent its slot needs one: the upstream has work from now on. Owes a [`Gate::leave`].
    pub fn take_back(&mut self, now: Instant) {
        self.take(now);
    }

    /// Gives the slot of an attempt back that was sent at `began` and given up without an answer: its client has left,
    /// or its time was over. Where the limit is learnt, the slot stays taken while the upstream may still work on it:
    /// until an attempt that began later is answered, or for twice what it has had, or others need; [`LINGERS`] at most.
    ///
    /// Otherwise a slow upstream gets more work than the limit says, all of it in vain: whoever is next has waited
    /// as long, and is given up as soon.
    pub fn give_up_on(
        &mut self,
        now: Instant,
        began: Instant,
        sample: Option<Sample>,
        p50: Option<Duration>,
    ) -> Leave {
        if !self.is_learnt {
            return self.leave(now, sample, p50);
        }
        if let Some(sample) = sample {
            self.learn(now, sample);
        }
        // An upstream that usually answers sooner will have done with it sooner.
        let age = now.saturating_duration_since(began);
        let lingers = (age.max(self.limiter.need(now).unwrap_or_default()) * 2).min(LINGERS);
        self.given_up.push_back(GivenUp { began, until: now + lingers });
        self.grant(now, p50)
    }

    /// Frees the slots of what was given up long enough ago. To be followed by [`Gate::grant`].
    pub fn settle(&mut self, now: Instant) {
        self.departures.look(now);
        // PERF: mostly nothing was given up.
        let all = self.given_up.len();
        self.given_up.retain(|given_up| given_up.until > now);
        for _ in self.given_up.len()..all {
            self.free(now);
        }
    }

    /// Hands a free slot to whoever is next. To be asked until it names nobody.
    pub fn grant(&mut self, now: Instant, p50: Option<Duration>) -> Leave {
        let mut leave = Leave::default();
        let need = self.limiter.need(now).or(p50);
        // PERF: mostly nobody waits.
        if self.queue.depth() > 0 && self.limiter.admits(now, self.in_flight) {
            leave.next = self.queue.pop(now, need, &mut leave.skipped);
            if leave.next.is_some() {
                self.take(now);
            }
        }
        leave
    }

    /// How long a newcomer would wait for a slot, as far as that can be told.
    pub fn wait(&self, now: Instant, priority: Priority, p50: Option<Duration>) -> Option<Duration> {
        self.queue.wait(now, priority, self.pace(now, p50))
    }

    /// Frees the place of a request that waits no more. False: it had left the queue already, evicted, skipped or with
    /// a slot; whose the slot is must [`Gate::leave`].
    pub fn give_up(&mut self, ticket: Ticket) -> bool {
        self.queue.remove(ticket)
    }

    /// Slots that are taken; above the limit only after the limit was lowered, or slots that were lent are taken back.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Slots in all.
    pub fn limit(&self) -> u32 {
        self.limiter.limit()
    }

    /// Places that are taken.
    pub fn depth(&self) -> usize {
        self.queue.depth()
    }

    fn learn(&mut self, now: Instant, sample: Sample) {
        self.limiter.answered(now, self.in_flight, sample);
        if sample.lesson == Lesson::Served {
            // Whoever answers the later one has done with those before it.
            while self.given_up.pop_front_if(|given_up| given_up.began < sample.began).is_some() {
                self.free(now);
            }
        }
    }

    fn free(&mut self, now: Instant) {
        self.in_flight -= 1;
        self.limiter.left(now, self.in_flight);
    }

    fn take(&mut self, now: Instant) {
        self.in_flight += 1;
        self.limiter.entered(now, self.in_flight);
        if self.in_flight >= self.limiter.limit() {
            self.departures.saturated(now);
        }
    }

    /// How fast slots come back. Before they were seen to while all were taken, by Little's law where an attempt takes
    /// `need`.
    fn pace(&self, now: Instant, need: Option<Duration>) -> Pace {
        let littles = || Some(need?.div_f64(f64::from(self.limiter.limit())));
        Pace { interval: self.departures.interval(now).or_else(littles), silence: self.departures.silence }
    }
}

/// How fast slots come back while all are taken: only then is it the upstream's pace, and not the callers'.
#[derive(Debug, Default)]
struct Departures {
    /// The mean time from one to the next, and over how many; none: not seen yet.
    interval: Duration,
    seen: u32,
    /// The last one, or when the last slot was taken.
    mark: Option<Instant>,
    /// How long none was seen, whether all are taken or not; and until when that was looked at.
    silence: Duration,
    looked: Option<Instant>,
}

impl Departures {
    /// The mean is over about this many.
    const MEMORY: u32 = 32;
    /// A limit that waits for slots to come back is silent for so long.
    const HICCUP: Duration = Duration::from_millis(20);
    /// Nobody who asks in time is further from the last one than this, where there are many. If nobody did, it was this
    /// process that stood still, and who has come back meanwhile will be seen in a moment.
    const GLANCE: Duration = Duration::from_millis(5);
    /// What was seen longer ago than this says nothing of now.
    const FRESH: Duration = Duration::from_secs(10);

    fn saturated(&mut self, now: Instant) {
        if self.mark.is_some_and(|mark| now.saturating_duration_since(mark) >= Self::FRESH) {
            self.seen = 0;
        }
        self.mark = Some(now);
    }

    /// Somebody asks: none has come back until now.
    fn look(&mut self, now: Instant) {
        if let Some(looked) = self.looked.replace(now) {
            let passed = now.saturating_duration_since(looked);
            self.silence += passed.min(self.interval.max(Self::GLANCE));
        }
    }

    fn departed(&mut self, now: Instant, all_were_taken: bool) {
        (self.silence, self.looked) = (Duration::ZERO, Some(now));
        if all_were_taken && let Some(mark) = self.mark.replace(now) {
            let passed = now.saturating_duration_since(mark);
            self.interval = (self.interval * self.seen + passed) / (self.seen + 1);
            self.seen = (self.seen + 1).min(Self::MEMORY);
        }
    }

    fn interval(&self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.mark?);
        let silence = self.silence.min(since).saturating_sub(Self::HICCUP);
        // What has taken longer than all before it says more of now than they do; a hiccup says nothing.
        (self.seen > 0 && since < Self::FRESH).then(|| self.interval.max(silence))
    }
}

#[cfg(test)]
mod tests;
