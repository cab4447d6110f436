//! A run: clients, sidecars with the real policies, and one upstream, under made-up time.
//!
//! Events in the order of their time. Arrivals are open loop and Poisson: clients do not wait for each other, so an
//! overload stays one. What a sidecar does is what `proxy` does, in its order: budget, feasibility, breaker, slot or
//! queue, attempt, classify, retry.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::policy::breaker::{self, Breaker, Outcome, Permit};
use outrigger::policy::budget::{Budget, Paid};
use outrigger::policy::concurrency::{self, Ask, Entry, Gate, Leave};
use outrigger::policy::deadline::Feasibility;
use outrigger::policy::failure::{self, Classifier, Verdict};
use outrigger::policy::latency::Latency;
use outrigger::policy::limit::{self, Lesson, Sample};
use outrigger::policy::priority::Priority;
use outrigger::policy::queue::{self, Ticket};
use outrigger::policy::retry::{self, Cause, Decision, Failed, Rules};
use outrigger::policy::{backoff, timeout};
use outrigger::reason::Reason;
use outrigger::units::Span;

use crate::chance::Chance;
use crate::record::Record;
use crate::upstream::{Service, Shape, Upstream};

/// A run, with all that it may vary.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// Requests in a second, in all.
    pub(crate) rate: fn(f64) -> f64,
    /// Clients of another kind: each sends the next request when it has an answer, and a while after an error.
    pub(crate) clients: u32,
    /// What these get does not come from the workers: its head and its body take so many seconds.
    pub(crate) apart: Option<(f64, f64)>,
    pub(crate) upstream: Shape,
    pub(crate) limit: limit::Settings,
    /// Places in the queue; 0: nobody waits.
    pub(crate) queue: u32,
    pub(crate) sidecars: usize,
    /// How long a client waits, which the sidecar is told.
    pub(crate) deadline: Duration,
    /// `timeout.request`; half of it is an attempt's while another may follow.
    pub(crate) request_timeout: Duration,
    /// What a client sends for one thing that it wants.
    pub(crate) client_tries: u32,
    /// Attempts of a request in a sidecar.
    pub(crate) attempts: u32,
    pub(crate) breaker: bool,
    /// The ratio of requests that are critical.
    pub(crate) critical: f64,
    /// What becomes of a request that is neither refused nor served, by ratio.
    pub(crate) refused: fn(f64) -> f64,
    pub(crate) limited: fn(f64) -> f64,
    pub(crate) hangs: fn(f64) -> f64,
    pub(crate) seed: u64,
}

impl Run {
    /// One sidecar before 20 workers of 50 ms, 400/s; nobody waits for a slot, clients give up after a second.
    pub(crate) fn before_twenty_workers(limit: limit::Settings) -> Self {
        Self {
            seconds: 60.0,
            rate: |_| 400.0,
            clients: 0,
            apart: None,
            upstream: Shape { service: Service::Lognormal, mean: |_| 0.05, workers: |_| 20, stalls: &[] },
            limit,
            queue: 0,
            sidecars: 1,
            deadline: Duration::from_secs(1),
            request_timeout: Duration::from_secs(15),
            client_tries: 1,
            attempts: 1,
            breaker: false,
            critical: 0.0,
            refused: |_| 0.0,
            limited: |_| 0.0,
            hangs: |_| 0.0,
            seed: 1,
        }
    }

    /// One sidecar with the defaults before 8 workers of 10 ms, 800/s; clients give up after 250 ms.
    pub(crate) fn before_eight_workers(limit: limit::Settings) -> Self {
        Self {
            upstream: Shape { service: Service::Fixed, mean: |_| 0.01, workers: |_| 8, stalls: &[] },
            queue: 100,
            deadline: Duration::from_millis(250),
            request_timeout: Duration::from_millis(300),
            attempts: 4,
            breaker: true,
            ..Self::before_twenty_workers(limit)
        }
    }

    pub(crate) fn go(&self) -> Record {
        World::new(self).run()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Somebody wants something.
    Arrival,
    /// A client tries again, for the nth time.
    Again(u32, Priority),
    /// The next attempt of a request.
    Attempt(Key),
    /// The head of an answer comes, whose body takes so many nanoseconds.
    Head(Key, u64),
    /// An attempt ends.
    End(Key, End),
    /// A wait in the queue has been in vain.
    InVain(Key),
    /// The record is brought up to date, and what was given up long enough ago is let go of.
    Look,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Served,
    /// After its head was told.
    Whole,
    /// Its time is over; the work goes on.
    TimedOut,
    /// 503 with Retry-After.
    Refused,
    /// 429.
    Limited,
}

/// A request, by its place and how often the place was used before: what was meant for an earlier one is not for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    place: usize,
    round: u32,
}

struct Request {
    round: u32,
    sidecar: usize,
    priority: Priority,
    client_try: u32,
    began: u64,
    deadline: u64,
    attempts: u32,
    waited: Duration,
    paid: Option<Paid>,
    permit: Option<Permit>,
    ticket: Option<Ticket>,
    /// When the attempt that is in flight was sent.
    sent: u64,
    /// Whether it is one of those apart.
    is_apart: bool,
}

struct Sidecar {
    breaker: Arc<Breaker>,
    gate: Gate,
    budget: Arc<Budget>,
    latency: Latency,
    feasibility: Feasibility,
    classifier: Classifier,
    rules: Rules,
    retry: retry::Settings,
    timeout: timeout::Settings,
    tickets: BTreeMap<Ticket, Key>,
}

struct World<'a> {
    run: &'a Run,
    start: Instant,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    chance: Chance,
    upstream: Upstream,
    sidecars: Vec<Sidecar>,
    requests: Vec<Option<Request>>,
    vacant: Vec<usize>,
    round: u32,
    record: Record,
}

const LOOK: u64 = 10_000_000;

impl Sidecar {
    fn new(run: &Run, start: Instant, seed: u64) -> Self {
        let queue = queue::Settings { size: run.queue, ..queue::Settings::default() };
        let concurrency = concurrency::Settings { limit: run.limit, queue, ..Default::default() };
        let retry = retry::Settings { attempts: run.attempts, ..Default::default() };
        let request = Span::from_millis(run.request_timeout.as_millis() as u64);
        Self {
            breaker: Arc::new(Breaker::new(&breaker::Settings::default(), start)),
            gate: Gate::new(&concurrency, start, seed),
            budget: Arc::new(Budget::new(&retry.budget, start)),
            latency: Latency::new(start),
            feasibility: Feasibility::new(start),
            classifier: Classifier::new(&failure::Settings::default()),
            rules: Rules::new(&retry),
            timeout: timeout::Settings { request, ..Default::default() },
            retry,
            tickets: BTreeMap::new(),
        }
    }
}

impl<'a> World<'a> {
    #[expect(
        clippy::disallowed_methods,
        reason = "std offers no other way to get an instant; nothing reads a clock"
    )]
    fn new(run: &'a Run) -> Self {
        let start = Instant::now();
        let seeds =
            |n: usize| run.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n as u64 * 0x1234_5677);
        Self {
            run,
            start,
            now: 0,
            events: BinaryHeap::new(),
            number: 0,
            chance: Chance::new(run.seed),
            upstream: Upstream::new(run.upstream.clone(), run.seed + 1),
            sidecars: (0..run.sidecars).map(|n| Sidecar::new(run, start, seeds(n))).collect(),
            requests: Vec::new(),
            vacant: Vec::new(),
            round: 0,
            record: Record::new(run.seconds, run.sidecars),
        }
    }

    fn run(mut self) -> Record {
        self.at(0, Event::Arrival);
        for _ in 0..self.run.clients {
            self.at(0, Event::Again(1, Priority::Normal));
        }
        self.at(0, Event::Look);
        let end = (self.run.seconds * 1e9) as u64;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > end {
                break;
            }
            self.now = now;
            match event {
                Event::Arrival => self.arrive(),
                Event::Again(nth, priority) => self.ask(nth, priority, self.run.apart.is_some()),
                Event::Attempt(key) => self.attempt(key),
                Event::Head(key, body) => self.head(key, body),
                Event::End(key, end) => self.end(key, end),
                Event::InVain(key) => self.wait_in_vain(key),
                Event::Look => self.look(),
            }
        }
        self.record
    }

    fn at(&mut self, time: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((time, self.number, event)));
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait.as_nanos() as u64, event);
    }

    fn seconds(&self) -> f64 {
        self.now as f64 / 1e9
    }

    fn instant(&self) -> Instant {
        self.instant_of(self.now)
    }

    fn instant_of(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos)
    }

    fn look(&mut self) {
        for (n, sidecar) in self.sidecars.iter().enumerate() {
            self.record.look(
                self.now,
                n,
                sidecar.gate.limit(),
                sidecar.gate.in_flight(),
                sidecar.gate.depth(),
            );
        }
        let now = self.instant();
        for number in 0..self.sidecars.len() {
            self.sidecars[number].gate.settle(now);
            self.grant(number);
        }
        self.at(self.now + LOOK, Event::Look);
    }

    fn arrive(&mut self) {
        let priority = if self.chance.is(self.run.critical) { Priority::Critical } else { Priority::Normal };
        let rate = (self.run.rate)(self.seconds());
        if rate > 0.0 {
            self.ask(1, priority, false);
        }
        let gap = if rate > 0.0 { self.chance.gap() / rate } else { 0.1 };
        self.after(Duration::from_secs_f64(gap), Event::Arrival);
    }

    fn ask(&mut self, client_try: u32, priority: Priority, is_apart: bool) {
        let sidecar =
            if self.run.sidecars == 1 { 0 } else { (self.chance.even() * self.run.sidecars as f64) as usize };
        self.record.asked(self.now, sidecar, client_try == 1);
        self.round += 1;
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() - 1
        });
        self.requests[place] = Some(Request {
            round: self.round,
            sidecar,
            priority,
            client_try,
            began: self.now,
            deadline: self.now + self.run.deadline.as_nanos() as u64,
            attempts: 0,
            waited: Duration::ZERO,
            paid: None,
            permit: None,
            ticket: None,
            sent: 0,
            is_apart,
        });
        self.sidecars[sidecar].budget.deposit(self.instant());
        self.attempt(Key { place, round: self.round });
    }

    fn request(&mut self, key: Key) -> Option<&mut Request> {
        self.requests[key.place].as_mut().filter(|request| request.round == key.round)
    }

    /// Asks the policies, in the chain's order.
    fn attempt(&mut self, key: Key) {
        let (now, draw) = (self.instant(), if self.run.breaker { self.chance.even() } else { 0.0 });
        let nanos = self.now;
        let request = self.requests[key.place].as_mut().expect("it is on its way");
        let sidecar = &mut self.sidecars[request.sidecar];
        request.attempts += 1;
        let left = Duration::from_nanos(request.deadline.saturating_sub(nanos));
        let deadline = now + left;
        let p50 = sidecar.latency.p50(now);
        if !sidecar.feasibility.check(now, left, p50) {
            return self.fail(key, Some(Reason::DeadlineExceeded));
        }
        if self.run.breaker {
            let Ok(permit) = sidecar.breaker.admit(now, draw, *sidecar.timeout.request / 2) else {
                return self.fail(key, Some(Reason::BreakerOpen));
            };
            request.permit = Some(permit);
        }
        let ask = Ask {
            now,
            deadline: Some(deadline),
            priority: request.priority,
            may_queue: request.attempts == 1,
            p50,
        };
        let number = request.sidecar;
        match sidecar.gate.enter(&ask) {
            Entry::Slot => self.send(key),
            Entry::Queued { ticket, evicted } => {
                request.ticket = Some(ticket);
                sidecar.tickets.insert(ticket, key);
                let evicted = evicted.map(|evicted| sidecar.tickets.remove(&evicted).expect("it waits"));
                self.after(ticket.until() - now, Event::InVain(key));
                if let Some(evicted) = evicted {
                    self.fail(evicted, Some(Reason::QueueFull));
                }
            }
            Entry::Rejected { reason, .. } => self.fail(key, Some(reason)),
        }
        self.grant(number);
    }

    fn send(&mut self, key: Key) {
        let now = self.now;
        let seconds = self.seconds();
        let request = self.requests[key.place].as_mut().expect("it is on its way");
        request.sent = now;
        let sidecar = &self.sidecars[request.sidecar];
        let left = Duration::from_nanos(request.deadline.saturating_sub(now));
        let may_follow = request.attempts < self.run.attempts;
        let time = sidecar.timeout.attempt_timeout(left, may_follow).as_nanos() as u64;
        let number = request.sidecar;
        const AT_ONCE: u64 = 500_000;
        if let Some((head, body)) = self.run.apart.filter(|_| request.is_apart) {
            let (head, body) = ((head * 1e9) as u64, (body * 1e9) as u64);
            let event = if body > 0 { Event::Head(key, body) } else { Event::End(key, End::Served) };
            return self.at(now + head, event);
        }
        let (at, end) = if self.chance.is((self.run.refused)(seconds)) {
            (now + AT_ONCE, End::Refused)
        } else if self.chance.is((self.run.limited)(seconds)) {
            (now + AT_ONCE, End::Limited)
        } else if self.chance.is((self.run.hangs)(seconds)) {
            (now + time, End::TimedOut)
        } else {
            let done = self.upstream.take(now);
            self.record.sent(now);
            if done <= now + time { (done, End::Served) } else { (now + time, End::TimedOut) }
        };
        if end == End::TimedOut {
            self.record.wasted(now);
        }
        let _ = number;
        self.at(at, Event::End(key, end));
    }

    fn head(&mut self, key: Key, body: u64) {
        let now = self.instant();
        let request = self.requests[key.place].as_ref().expect("it is on its way");
        let latency = Duration::from_nanos(self.now - request.sent);
        let began = self.start + Duration::from_nanos(request.sent);
        let number = request.sidecar;
        let sidecar = &mut self.sidecars[number];
        sidecar.latency.record(now, latency);
        sidecar.gate.answered(now, Sample { began, latency, lesson: Lesson::Served });
        self.at(self.now + body, Event::End(key, End::Whole));
        self.grant(number);
    }

    fn end(&mut self, key: Key, end: End) {
        let now = self.instant();
        let nanos = self.now;
        let request = self.requests[key.place].as_mut().expect("it is on its way");
        let sidecar = &mut self.sidecars[request.sidecar];
        let latency = Duration::from_nanos(nanos - request.sent);
        self.record.ended(nanos, request.sidecar, latency, end == End::Served);
        let whole = *sidecar.timeout.request / 2;
        let (lesson, verdict) = match end {
            End::Served => (Some(Lesson::Served), Verdict::Success),
            End::Whole => (None, Verdict::Success),
            End::Refused => (Some(Lesson::Overloaded), Verdict::Failure),
            End::Limited => (Some(Lesson::Nothing), Verdict::Success),
            End::TimedOut => {
                let (p99, silence) = (sidecar.latency.usual_p99(now), sidecar.latency.silence(now));
                let evidence = timeout::is_evidence(latency, whole, p99, silence);
                let verdict = sidecar.classifier.reason(Reason::AttemptTimeout, evidence);
                let late = timeout::is_evidence(latency, whole, p99, Duration::MAX);
                (late.then_some(Lesson::Overloaded), verdict)
            }
        };
        if end == End::Served {
            sidecar.latency.record(now, latency);
        }
        if let Some(permit) = request.permit.take() {
            let outcome = Outcome { verdict, latency, endpoint: 0, endpoints: 1, connect_timeout: false };
            permit.record(now, outcome);
        }
        let began = self.start + Duration::from_nanos(request.sent);
        let sample = lesson.map(|lesson| Sample { began, latency, lesson });
        let p50 = sidecar.latency.p50(now);
        let number = request.sidecar;
        if end == End::Whole {
            sidecar.gate.body_ends();
        }
        let leave = match end {
            End::TimedOut => sidecar.gate.give_up_on(now, began, sample, p50),
            _ => sidecar.gate.leave(now, sample, p50),
        };
        match end {
            End::Served | End::Whole => self.served(key),
            End::Limited => self.fail(key, None),
            End::TimedOut | End::Refused => self.retry(key, end),
        }
        self.serve(number, leave);
        self.grant(number);
    }

    /// Whether who has sent it sends the next one after its answer.
    fn comes_again(&self, is_apart: bool) -> bool {
        self.run.clients > 0 && (is_apart || self.run.apart.is_none())
    }

    fn served(&mut self, key: Key) {
        let request = self.requests[key.place].take().expect("it was there");
        self.vacant.push(key.place);
        let sidecar = &self.sidecars[request.sidecar];
        match request.paid {
            Some(paid) => paid.refund(),
            None if request.attempts == 1 => sidecar.budget.first_succeeded(),
            None => {}
        }
        self.record.good(self.now, request.sidecar, self.now - request.began, request.priority);
        if self.comes_again(request.is_apart) {
            self.at(self.now, Event::Again(1, request.priority));
        }
    }

    fn retry(&mut self, key: Key, end: End) {
        let now = self.instant();
        let draw = self.chance.even();
        let request = self.requests[key.place].as_mut().expect("it is on its way");
        let sidecar = &mut self.sidecars[request.sidecar];
        let failed = Failed {
            cause: if end == End::Refused {
                Cause::Status(503)
            } else {
                Cause::Reason(Reason::AttemptTimeout)
            },
            unprocessed: false,
            method_ok: true,
            replayable: Ok(()),
            attempt: request.attempts,
            caller_attempt: 0,
            retry_after: None,
            pushback_never: false,
            left: Duration::from_nanos(request.deadline.saturating_sub(self.now)),
            other_endpoint: false,
            endpoints: 1,
            all_unprocessed: false,
            free_used: false,
        };
        if let Decision::Retry { .. } = retry::decide(&sidecar.rules, &failed)
            && let Ok(paid) = sidecar.budget.withdraw(now)
        {
            request.paid = Some(paid);
            let wait = backoff::wait(&sidecar.retry.backoff, request.attempts - 1, request.waited, draw);
            request.waited = wait;
            self.after(wait, Event::Attempt(key));
        } else {
            self.fail(key, None);
        }
    }

    fn grant(&mut self, number: usize) {
        let now = self.instant();
        loop {
            let sidecar = &mut self.sidecars[number];
            let p50 = sidecar.latency.p50(now);
            let leave = sidecar.gate.grant(now, p50);
            if leave.is_empty() {
                return;
            }
            self.serve(number, leave);
        }
    }

    fn serve(&mut self, number: usize, leave: Leave) {
        for ticket in leave.skipped {
            let key = self.sidecars[number].tickets.remove(&ticket).expect("it waits");
            self.fail(key, Some(Reason::QueueTimeout));
        }
        if let Some(ticket) = leave.next {
            let key = self.sidecars[number].tickets.remove(&ticket).expect("it waits");
            self.request(key).expect("it waits").ticket = None;
            self.send(key);
        }
    }

    fn wait_in_vain(&mut self, key: Key) {
        let Some(request) = self.request(key) else { return };
        let Some(ticket) = request.ticket.take() else { return };
        let number = request.sidecar;
        let sidecar = &mut self.sidecars[number];
        if sidecar.tickets.remove(&ticket).is_some() {
            sidecar.gate.give_up(ticket);
            self.fail(key, Some(Reason::QueueTimeout));
            self.grant(number);
        }
    }

    /// The client gets an error, and may try again. `refused`: the sidecar's own.
    fn fail(&mut self, key: Key, refused: Option<Reason>) {
        let request = self.requests[key.place].take().expect("it is on its way");
        self.vacant.push(key.place);
        self.record.failed(self.now, request.sidecar, refused.is_some(), self.now - request.began);
        if let Some(paid) = request.paid.filter(|_| refused.is_some()) {
            paid.unsent();
        }
        if self.comes_again(request.is_apart) {
            let pause = Duration::from_millis(50) + Duration::from_millis(150).mul_f64(self.chance.even());
            self.after(pause, Event::Again(1, request.priority));
        } else if request.client_try < self.run.client_tries {
            let pause = Duration::from_millis(100).mul_f64(self.chance.even());
            self.after(pause, Event::Again(request.client_try + 1, request.priority));
        }
    }
}
