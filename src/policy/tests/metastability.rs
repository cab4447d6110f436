//! All policies together against what none of them may do alone: keep an overload going that its cause has left.
//!
//! Clients that retry send twice what an upstream can do for half a minute, then less than it can do. The upstream
//! is a FIFO without bound, and works on for callers that have left: so without a chain the queue that the overload
//! left behind makes every request time out, and the retries of all of them keep it full (Bronson et al., HotOS 21).
//! A simulation in made-up time: what is tested is the way the policies lean on each other, not the path.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::policy::breaker::{self, Breaker, Outcome, Permit};
use crate::policy::budget::{Budget, Paid};
use crate::policy::concurrency::{self, Ask, Entry, Gate, Leave};
use crate::policy::deadline::Feasibility;
use crate::policy::failure::{self, Classifier, Verdict};
use crate::policy::latency::Latency;
use crate::policy::limit::{self, Lesson, Sample};
use crate::policy::priority::Priority;
use crate::policy::queue::Ticket;
use crate::policy::retry::{self, Cause, Decision, Failed, Rules};
use crate::policy::{backoff, start, timeout};
use crate::reason::Reason;

const WORKERS: usize = 20;
const SERVICE: Duration = Duration::from_millis(50);
const CAPACITY: f64 = 400.0;
const PATIENCE: Duration = Duration::from_secs(1);
/// What a client sends for one thing that it wants.
const CLIENT_TRIES: u32 = 3;
const OVERLOAD: Duration = Duration::from_secs(30);
const AFTER: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Somebody wants something.
    Arrival,
    /// A client sends its nth try.
    Try(u32),
    /// The next attempt of a request.
    Attempt(u64),
    /// An attempt's time is over.
    Expiry(u64, u32),
    /// A wait in the queue has been in vain.
    InVain(u64),
    /// The upstream has done a job: request and attempt.
    Done(u64, u32),
}

/// A request on its way through the chain.
struct Request {
    client_try: u32,
    deadline: Instant,
    attempts: u32,
    waited: Duration,
    paid: Option<Paid>,
    permit: Option<Permit>,
    ticket: Option<Ticket>,
    /// When the attempt that is in flight was sent.
    sent: Option<Instant>,
}

struct Chain {
    breaker: Arc<Breaker>,
    gate: Gate,
    budget: Arc<Budget>,
    latency: Latency,
    feasibility: Feasibility,
    classifier: Classifier,
    rules: Rules,
    retry: retry::Settings,
    timeout: timeout::Settings,
}

struct World {
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    number: u64,
    draws: fastrand::Rng,
    requests: HashMap<u64, Request>,
    tickets: BTreeMap<Ticket, u64>,
    /// The upstream's queue, and how many of its workers are busy.
    jobs: VecDeque<(u64, u32)>,
    busy: usize,
    chain: Option<Chain>,
    /// Things wanted and things got, in each second.
    wanted: Vec<u32>,
    got: Vec<u32>,
}

impl Chain {
    /// The defaults, but for the limit of attempts in flight.
    fn new(limit: limit::Settings) -> Self {
        let concurrency = concurrency::Settings { limit, ..concurrency::Settings::default() };
        let retry = retry::Settings::default();
        Self {
            breaker: Arc::new(Breaker::new(&breaker::Settings::default(), start())),
            gate: Gate::new(&concurrency, start(), 1),
            budget: Arc::new(Budget::new(&retry.budget, start())),
            latency: Latency::new(start()),
            feasibility: Feasibility::new(start()),
            classifier: Classifier::new(&failure::Settings::default()),
            rules: Rules::new(&retry),
            timeout: timeout::Settings::default(),
            retry,
        }
    }
}

impl World {
    fn new(chain: Option<Chain>, seed: u64) -> Self {
        let seconds = (OVERLOAD + AFTER).as_secs() as usize + 1;
        Self {
            now: start(),
            events: BinaryHeap::new(),
            number: 0,
            draws: fastrand::Rng::with_seed(seed),
            requests: HashMap::new(),
            tickets: BTreeMap::new(),
            jobs: VecDeque::new(),
            busy: 0,
            chain,
            wanted: vec![0; seconds],
            got: vec![0; seconds],
        }
    }

    fn run(mut self) -> Self {
        self.at(Duration::ZERO, Event::Arrival);
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > start() + OVERLOAD + AFTER {
                break;
            }
            self.now = now;
            match event {
                Event::Arrival => self.arrive(),
                Event::Try(nth) => self.send_try(nth),
                Event::Attempt(id) => self.attempt(id),
                Event::Expiry(id, attempt) => self.expire(id, attempt),
                Event::InVain(id) => self.wait_in_vain(id),
                Event::Done(id, attempt) => self.done(id, attempt),
            }
        }
        self
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.number += 1;
        self.events.push(Reverse((self.now + after, self.number, event)));
    }

    fn second(&self) -> usize {
        (self.now - start()).as_secs() as usize
    }

    /// Poisson: twice the capacity, then 0.7 of it.
    fn arrive(&mut self) {
        let second = self.second();
        self.wanted[second] += 1;
        self.send_try(1);
        let rate = if self.now < start() + OVERLOAD { 2.0 } else { 0.7 } * CAPACITY;
        let gap = Duration::from_secs_f64(-(1.0 - self.draws.f64()).ln() / rate);
        self.at(gap, Event::Arrival);
    }

    fn send_try(&mut self, client_try: u32) {
        self.number += 1;
        let request = Request {
            client_try,
            deadline: self.now + PATIENCE,
            attempts: 0,
            waited: Duration::ZERO,
            paid: None,
            permit: None,
            ticket: None,
            sent: None,
        };
        self.requests.insert(self.number, request);
        if let Some(chain) = &self.chain {
            chain.budget.deposit(self.now);
        }
        self.attempt(self.number);
    }

    /// Asks the policies, in the chain's order.
    fn attempt(&mut self, id: u64) {
        let request = self.requests.get_mut(&id).expect("it is on its way");
        request.attempts += 1;
        let Some(chain) = &mut self.chain else { return self.send(id) };
        let (now, left) = (self.now, request.deadline.saturating_duration_since(self.now));
        let p50 = chain.latency.p50(now);
        if !chain.feasibility.check(now, left, p50) {
            return self.fail(id);
        }
        let Ok(permit) = chain.breaker.admit(now, self.draws.f64(), *chain.timeout.request / 2) else {
            return self.fail(id);
        };
        request.permit = Some(permit);
        let (deadline, may_queue) = (Some(request.deadline), request.attempts == 1);
        match chain.gate.enter(&Ask { now, deadline, priority: Priority::Normal, may_queue, p50 }) {
            Entry::Slot => self.send(id),
            Entry::Queued { ticket, evicted: _ } => {
                request.ticket = Some(ticket);
                self.tickets.insert(ticket, id);
                self.at(ticket.until() - now, Event::InVain(id));
                self.grant(p50);
            }
            Entry::Rejected { .. } => {
                self.fail(id);
                self.grant(p50);
            }
        }
    }

    fn send(&mut self, id: u64) {
        let request = self.requests.get_mut(&id).expect("it is on its way");
        request.sent = Some(self.now);
        let left = request.deadline.saturating_duration_since(self.now);
        let attempt = request.attempts;
        let time = self.chain.as_ref().map_or(left, |chain| chain.timeout.attempt_timeout(left, attempt < 4));
        self.at(time, Event::Expiry(id, attempt));
        self.jobs.push_back((id, attempt));
        self.work();
    }

    /// The upstream takes what it can.
    fn work(&mut self) {
        while self.busy < WORKERS
            && let Some((id, attempt)) = self.jobs.pop_front()
        {
            self.busy += 1;
            let service = SERVICE.mul_f64(0.5 + self.draws.f64());
            self.at(service, Event::Done(id, attempt));
        }
    }

    fn done(&mut self, id: u64, attempt: u32) {
        self.busy -= 1;
        self.work();
        // It worked for nobody, if the attempt's time was over.
        let Some(request) = self.requests.get(&id) else { return };
        let Some(sent) = request.sent.filter(|_| request.attempts == attempt) else { return };
        let latency = self.now - sent;
        if let Some(chain) = &self.chain {
            chain.latency.record(self.now, latency);
        }
        self.settle(id, Verdict::Success, latency);
        let request = self.requests.remove(&id).expect("it was there");
        match (request.paid, &self.chain) {
            (Some(paid), _) => paid.refund(),
            (None, Some(chain)) if attempt == 1 => chain.budget.first_succeeded(),
            _ => {}
        }
        let second = self.second();
        self.got[second] += 1;
    }

    fn expire(&mut self, id: u64, attempt: u32) {
        let Some(request) = self.requests.get(&id).filter(|request| request.attempts == attempt) else {
            return;
        };
        let Some(sent) = request.sent else { return };
        let ran = self.now - sent;
        let (reason, deadline) = (Reason::AttemptTimeout, request.deadline);
        let Some(chain) = &self.chain else { return self.fail(id) };
        let (p99, silence) = (chain.latency.usual_p99(self.now), chain.latency.silence(self.now));
        let evidence = timeout::is_evidence(ran, *chain.timeout.request / 2, p99, silence);
        self.settle(id, chain.classifier.reason(reason, evidence), ran);

        let Some(chain) = &self.chain else { return };
        let request = self.requests.get_mut(&id).expect("it is on its way");
        let left = deadline.saturating_duration_since(self.now);
        let failed = Failed {
            cause: Cause::Reason(reason),
            unprocessed: false,
            method_ok: true,
            replayable: Ok(()),
            attempt,
            caller_attempt: 0,
            retry_after: None,
            pushback_never: false,
            left,
            other_endpoint: false,
            endpoints: 1,
            all_unprocessed: false,
            free_used: false,
        };
        if let Decision::Retry { .. } = retry::decide(&chain.rules, &failed)
            && let Ok(paid) = chain.budget.withdraw(self.now)
        {
            request.paid = Some(paid);
            request.waited =
                backoff::wait(&chain.retry.backoff, attempt - 1, request.waited, self.draws.f64());
            let wait = request.waited;
            self.at(wait, Event::Attempt(id));
        } else {
            self.fail(id);
        }
    }

    /// The attempt has an outcome: permit and slot go back.
    fn settle(&mut self, id: u64, verdict: Verdict, latency: Duration) {
        let request = self.requests.get_mut(&id).expect("it is on its way");
        request.sent = None;
        let Some(chain) = &mut self.chain else { return };
        let outcome = Outcome { verdict, latency, endpoint: 0, endpoints: 1, connect_timeout: false };
        request.permit.take().expect("admitted").record(self.now, outcome);
        let p50 = chain.latency.p50(self.now);
        let lesson = match verdict {
            Verdict::Success => Some(Lesson::Served),
            Verdict::Failure => Some(Lesson::Overloaded),
            Verdict::Throttled | Verdict::Ignored => None,
        };
        let sample = lesson.map(|lesson| Sample { began: self.now - latency, latency, lesson });
        let leave = chain.gate.leave(self.now, sample, p50);
        self.serve(leave);
        self.grant(p50);
    }

    /// Until nobody is named.
    fn grant(&mut self, p50: Option<Duration>) {
        while let Some(chain) = &mut self.chain {
            let leave = chain.gate.grant(self.now, p50);
            if leave.is_empty() {
                break;
            }
            self.serve(leave);
        }
    }

    fn serve(&mut self, leave: Leave) {
        for ticket in leave.skipped {
            let id = self.tickets.remove(&ticket).expect("it waits");
            self.fail(id);
        }
        if let Some(ticket) = leave.next {
            let id = self.tickets.remove(&ticket).expect("it waits");
            self.requests.get_mut(&id).expect("it waits").ticket = None;
            self.send(id);
        }
    }

    fn wait_in_vain(&mut self, id: u64) {
        let ticket = self.requests.get_mut(&id).and_then(|request| request.ticket.take());
        if let (Some(ticket), Some(chain)) = (ticket, &mut self.chain) {
            chain.gate.give_up(ticket);
            self.tickets.remove(&ticket);
            self.fail(id);
        }
    }

    /// The client gets an error, and tries again.
    fn fail(&mut self, id: u64) {
        let request = self.requests.remove(&id).expect("it is on its way");
        if request.client_try < CLIENT_TRIES {
            let pause = Duration::from_millis(100).mul_f64(self.draws.f64());
            self.at(pause, Event::Try(request.client_try + 1));
        }
    }

    /// The share of what was wanted that was got, from one second to another.
    fn goodput(&self, seconds: std::ops::Range<usize>) -> f64 {
        let sum = |counts: &[u32]| f64::from(counts[seconds.clone()].iter().sum::<u32>());
        sum(&self.got) / sum(&self.wanted)
    }
}

/// In how much of what the upstream can do clients get something while too many want it, but for the first seconds.
fn during(world: &World) -> f64 {
    f64::from(world.got[5..30].iter().sum::<u32>()) / 25.0 / CAPACITY
}

#[test]
fn with_a_limit_that_fits_the_upstream_an_overload_costs_nothing() {
    let world = World::new(Some(Chain::new(limit::Settings::Fixed { max: WORKERS as u32 })), 1).run();
    assert!(during(&world) >= 0.95, "{:?}", world.got);
    assert!(world.goodput(31..60) >= 0.95, "{:?}", world.got);
}

#[test]
fn with_a_limit_that_is_found_it_costs_little() {
    for seed in 1..=3 {
        let world = World::new(Some(Chain::new(limit::Settings::default())), seed).run();
        assert!(during(&world) >= 0.9, "seed {seed}: {:?}", world.got);
        assert!(world.goodput(31..60) >= 0.95, "seed {seed}: {:?}", world.got);
    }
}

/// Where the limit is far too high, the breaker must end it: at the latest when the open time that it has come to is
/// over, here some 16 s.
#[test]
fn an_overload_ends_with_its_cause_even_where_the_limit_is_far_too_high() {
    for seed in 1..=3 {
        let world = World::new(Some(Chain::new(limit::Settings::Fixed { max: 1000 })), seed).run();
        assert!(world.goodput(52..60) >= 0.95, "seed {seed}: {:?}", world.got);
    }
}

#[test]
fn without_the_chain_it_goes_on() {
    let world = World::new(None, 1).run();
    assert!(world.goodput(40..60) < 0.05, "{:?}", world.got);
}
