//! Injected faults on the path: which are in force for an upstream, and what waits, breaks or crawls for them.
//!
//! An upstream has the faults of the configuration, its own and those of routes to it, and one that the admin API has
//! put. An attempt is asked about by the latter first; the first that is meant for its request decides alone, so that two
//! together hit no more than each may. All of them live on over a reload that leaves them as they are: their clock goes
//! on, and what was switched off stays off.
//!
//! PERF: while there is none an attempt pays for one branch. Not here: whom a fault hits, and when it ends
//! (`policy::fault`); where an attempt suffers it (`attempt`, `response`).

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde_json::{Value, json};

use crate::policy::fault::{Active, Asked, Endpoints, Fault, Pace, Plan, Ruling, Settings, Stop};
use crate::timer::Timer;

/// How soon whoever waits for a fault notices that it has ended.
const NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// What the names of fields begin with that ask for faults, here or further up.
const FIELDS: [&[u8]; 3] = [b"x-chaos", b"x-fault", b"x-envoy-fault"];

/// The faults of one upstream. One for the process, and for all configurations that have an upstream of its name.
pub struct Faults {
    upstream: Box<str>,
    /// Whether any may be in force.
    any: AtomicBool,
    /// The one that the admin API has put last.
    put: ArcSwapOption<Fault>,
    /// Changes are made one after the other.
    written: Mutex<Written>,
}

/// The faults of the configuration.
#[derive(Default)]
struct Written {
    now: Vec<(Place, Arc<Fault>)>,
    /// Those of the configuration before, while the next one is built.
    before: Vec<(Place, Arc<Fault>)>,
}

/// Where the configuration says a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The upstream's own.
    Upstream,
    /// A route's.
    Route {
        /// The name of its listener.
        listener: String,
        /// Its name.
        route: String,
    },
}

impl Faults {
    /// The upstream `name` has none.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            upstream: name.into(),
            any: AtomicBool::new(false),
            put: ArcSwapOption::empty(),
            written: Mutex::default(),
        })
    }

    /// Whether an attempt has to ask at all.
    #[inline]
    pub fn are_any(&self) -> bool {
        self.any.load(Relaxed)
    }

    /// What is done to an attempt whose way has the fault `own`. `draw` gives random numbers from 0 to 1, 1 excluded.
    #[cold]
    pub fn rule(
        &self,
        own: Option<&Arc<Fault>>,
        (now, endpoints): (Instant, Endpoints),
        asked: &Asked<'_>,
        mut draw: impl FnMut() -> f64,
    ) -> Ruling {
        let put = self.put.load();
        for fault in put.iter().chain(own) {
            self.look(fault, now, endpoints);
            match fault.rule(now, asked, &mut draw) {
                Ruling::NotMeant => {}
                ruling => return ruling,
            }
        }
        Ruling::NotMeant
    }

    /// A configuration is built: what of its faults was there before is asked for by [`Faults::written`].
    pub fn begin(&self) {
        let mut written = self.lock();
        let Written { now, before } = &mut *written;
        before.append(now);
    }

    /// The fault that the configuration says at `place`; the same one as before if it says the same. `None`: it injects
    /// nothing.
    pub fn written(&self, place: &Place, settings: &Settings, now: Instant) -> Option<Arc<Fault>> {
        if !settings.is_on() {
            return None;
        }
        let is_it = |(at, fault): &(Place, Arc<Fault>)| at == place && fault.settings() == settings;
        let mut written = self.lock();
        if let Some((_, same)) = written.now.iter().find(|one| is_it(one)) {
            return Some(Arc::clone(same));
        }
        let fault = match written.before.iter().position(is_it) {
            Some(known) => written.before.swap_remove(known).1,
            None => {
                self.tell_begin(&place.to_string(), settings);
                Arc::new(Fault::new(settings.clone(), now))
            }
        };
        self.any.fetch_or(!fault.is_over(now), Relaxed);
        written.now.push((place.clone(), Arc::clone(&fault)));
        Some(fault)
    }

    /// The configuration is built: what it did not ask for ends.
    pub fn settle(&self, now: Instant) {
        let gone = std::mem::take(&mut self.lock().before);
        for (_, fault) in gone {
            self.stop(&fault, Stop::Removed, now);
        }
    }

    /// Puts a fault beside those of the configuration, in place of the one that was put before.
    pub fn put(&self, settings: Settings, now: Instant) {
        let _one_by_one = self.lock();
        self.tell_begin("the admin API", &settings);
        let replaced = self.put.swap(Some(Arc::new(Fault::new(settings, now))));
        self.any.store(true, Relaxed);
        replaced.into_iter().for_each(|fault| self.stop(&fault, Stop::Replaced, now));
    }

    /// Ends all of them, those of the configuration too: they stay off until they are written anew.
    pub fn switch_off(&self, now: Instant) {
        let written = self.lock();
        for fault in self.all(&written) {
            self.stop(&fault, Stop::Switched, now);
        }
        self.any.store(false, Relaxed);
    }

    /// Ends those whose end has come; asked once a second, and before each look at them.
    pub fn review(&self, now: Instant, endpoints: Endpoints) {
        if !self.are_any() {
            return;
        }
        let written = self.lock();
        let all = self.all(&written);
        all.iter().for_each(|fault| self.look(fault, now, endpoints));
        self.any.store(all.iter().any(|fault| !fault.is_over(now)), Relaxed);
    }

    /// What the admin API tells of them.
    pub fn view(&self, now: Instant) -> Value {
        let written = self.lock();
        let written = written.now.iter().map(|(place, fault)| {
            let mut view = view(&place.to_string(), fault, now);
            // What the environment has filled in is for nobody to see; `/config` shows the rest.
            if let Some(headers) = view["settings"]["match"]["headers"].as_object_mut() {
                headers.values_mut().for_each(|value| *value = json!("***"));
            }
            view
        });
        let put = self.put.load_full().map(|fault| view("the admin API", &fault, now));
        let faults: Vec<Value> = put.into_iter().chain(written).collect();
        json!({ "in_force": faults.iter().any(|fault| fault["state"] == "in_force"), "faults": faults })
    }

    fn look(&self, fault: &Fault, now: Instant, endpoints: Endpoints) {
        if let Some(why) = fault.must_stop(now, endpoints) {
            self.stop(fault, why, now);
        }
    }

    fn stop(&self, fault: &Fault, why: Stop, now: Instant) {
        if fault.stop(why, now) {
            let (matched, injected) = fault.counts();
            tracing::warn!(
                upstream = &*self.upstream,
                matched,
                injected,
                "a fault has ended: {}",
                why.text()
            );
        }
    }

    fn tell_begin(&self, from: &str, settings: &Settings) {
        let kinds: Vec<&str> = settings.kinds().map(|(kind, _)| kind).collect();
        tracing::warn!(
            upstream = &*self.upstream,
            from,
            kinds = kinds.join(", "),
            "faults are injected on purpose for {}",
            settings.lasts
        );
    }

    fn all(&self, written: &Written) -> Vec<Arc<Fault>> {
        let written = written.now.iter().chain(&written.before).map(|(_, fault)| Arc::clone(fault));
        self.put.load_full().into_iter().chain(written).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Upstream => f.write_str("the configuration"),
            Place::Route { listener, route } => write!(f, "route {route} of listener {listener}"),
        }
    }
}

/// What the admin API tells of one.
fn view(from: &str, fault: &Fault, now: Instant) -> Value {
    let millis = |time: Duration| time.as_millis() as u64;
    let (matched, injected) = fault.counts();
    let stopped = fault.stopped();
    let is_over = fault.is_over(now);
    let why = stopped.map_or(Stop::Time, |(why, _)| why);
    let mut view = json!({
        "from": from,
        "state": if is_over { "ended" } else { "in_force" },
        "active": fault.active(),
        "matched": matched,
        "injected": injected,
        "settings": fault.settings(),
    });
    if is_over {
        view["why"] = json!(why.text());
        view["ended_ms_ago"] = json!(stopped.map_or(0, |(_, at)| millis(now.saturating_duration_since(at))));
    } else {
        view["ends_in_ms"] = json!(millis(fault.left(now)));
    }
    view
}

/// Whether a field of this name asks for faults: from whom nobody trusts it goes no further.
pub fn is_field(name: &[u8]) -> bool {
    FIELDS.iter().any(|field| {
        let (start, rest) = name.split_at(name.len().min(field.len()));
        start.eq_ignore_ascii_case(field) && matches!(rest.first(), None | Some(b'-'))
    })
}

/// What is done to one attempt.
pub struct Injection {
    /// What.
    pub plan: Plan,
    /// It counts as long as it lasts.
    pub active: Active,
}

impl Injection {
    /// Waits from `began` on for `length`, shorter if the fault ends meanwhile, and calls `look` whenever it is woken.
    /// False: `until` came first.
    pub async fn hold(
        &self,
        began: Instant,
        length: Duration,
        until: Option<Instant>,
        look: impl Fn(),
    ) -> bool {
        let end = began + length;
        loop {
            let now = Instant::now();
            if now >= end || self.active.is_over(now) {
                return true;
            }
            if until.is_some_and(|until| until <= now) {
                return false;
            }
            let next = until.into_iter().chain([end, now + NOTICED_WITHIN]).min().unwrap_or(end);
            let mut sleep = pin!(tokio::time::sleep_until(next.into()));
            poll_fn(|cx| {
                look();
                sleep.as_mut().poll(cx)
            })
            .await;
        }
    }

    /// What is done to the answer's body, which begins at `now`; `timer` wakes whoever waits for its next piece.
    pub fn shape(self, now: Instant, timer: impl FnOnce() -> Timer) -> Option<Box<Shape>> {
        let Plan { truncate, bandwidth, .. } = self.plan;
        let pace = bandwidth.map(|rate| (Pace::new(rate, now), timer()));
        (truncate.is_some() || pace.is_some())
            .then(|| Box::new(Shape { active: self.active, truncate, pace, passed: 0 }))
    }
}

/// What is done to the body of an answer.
pub struct Shape {
    active: Active,
    /// Behind how many bytes it breaks off.
    truncate: Option<u64>,
    pace: Option<(Pace, Timer)>,
    /// Bytes that have passed.
    passed: u64,
}

/// What of a piece may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// All of it, and all that follows: the fault has ended.
    All,
    /// So many bytes of it, at least one.
    Some(usize),
    /// None: here the body breaks off.
    Nothing,
}

impl Shape {
    /// The answer is a stream: it goes on as it does, and counts no more among those that are under the fault.
    pub fn becomes_stream(&mut self) {
        self.active.let_go();
    }

    /// Whether the body crawls.
    pub fn is_paced(&self) -> bool {
        self.pace.is_some()
    }

    /// Ready with what of a piece of `size` bytes, at least one, may pass.
    pub fn poll_piece(&self, cx: &mut Context<'_>, size: usize) -> Poll<Passes> {
        let now = Instant::now();
        if self.active.is_over(now) {
            return Poll::Ready(Passes::All);
        }
        let mut room = self.truncate.map_or(u64::MAX, |truncate| truncate.saturating_sub(self.passed));
        if room == 0 {
            return Poll::Ready(Passes::Nothing);
        }
        if let Some((pace, timer)) = &self.pace {
            room = room.min(pace.allowed(now).saturating_sub(self.passed));
            if room == 0 {
                timer.arm(pace.next(self.passed));
                // Armed for an instant that has passed meanwhile, it is looked at again with the next tick.
                return match timer.poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Passes::Some(1)),
                    Poll::Pending => Poll::Pending,
                };
            }
        }
        Poll::Ready(Passes::Some((size as u64).min(room) as usize))
    }

    /// The same for a whole body of `size` bytes, which passes at once or not at all.
    pub fn poll_whole(&self, cx: &mut Context<'_>, size: u64) -> Poll<Passes> {
        let now = Instant::now();
        if self.active.is_over(now) {
            return Poll::Ready(Passes::All);
        }
        if self.truncate.is_some_and(|truncate| truncate < size) {
            return Poll::Ready(Passes::Nothing);
        }
        if let Some((pace, timer)) = &self.pace
            && pace.allowed(now) < size
        {
            timer.arm(pace.next(size));
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Passes::Some(size as usize))
    }

    /// `size` bytes have passed.
    pub fn passed(&mut self, size: usize) {
        self.passed += size as u64;
    }
}
