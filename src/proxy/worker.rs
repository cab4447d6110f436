//! What one worker has for itself: its wheel, its pools and buffers, its view of the configuration.
//!
//! Nothing here is shared between threads, so nothing is locked. Requests hold the worker by `Rc`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chain::Chain;
use super::life::Stage;
use super::shared::Shared;
use super::snapshot::Held;
use crate::http1::connection::Buffers;
use crate::http1::head::{RequestHead, ResponseHead};
use crate::policy::breaker::ConnectProbe;
use crate::telemetry::access_log::WorkerLog;
use crate::timer::{Timer, Wheel};
use crate::upstream::Ask;
use crate::upstream::http2::Sessions;
use crate::upstream::pool::Pool;

/// How often a worker looks after its affairs besides requests.
const ROUND: Duration = Duration::from_millis(100);

/// The event loop is as late as the least late of so many rounds in a row: one alone is a hiccup.
const LAGS: usize = 3;

/// Free heads that a worker keeps.
const KEPT: usize = 64;

/// What one worker has for itself.
pub struct Worker {
    /// Its place among the workers, and in every sharded series.
    pub index: usize,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Idle connections to upstreams.
    pub pool: Rc<Pool>,
    /// Connections of HTTP/2 to upstreams.
    pub sessions: Rc<Sessions>,
    /// Free buffers.
    pub buffers: Rc<Buffers>,
    /// Lines of the access log that wait to be written together.
    pub log: WorkerLog,
    /// Held by each copy of a request that is on its way.
    pub mirrored: Rc<()>,
    wheel: Rc<Wheel>,
    snapshot: RefCell<Held>,
    /// The snapshot and the stage that idle connections were last woken for. Apart from `snapshot`, which any
    /// request renews.
    woken_for: RefCell<(Held, Stage)>,
    random: Cell<u64>,
    requests: RefCell<Vec<RequestHead>>,
    responses: RefCell<Vec<ResponseHead>>,
}

impl Worker {
    /// The worker `index`. To be made on its own thread; serves once [`Worker::run`] runs.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let buffers = Rc::new(Buffers::default());
        let now = Instant::now();
        shared.beat(index, now);
        let snapshot = Rc::new(shared.snapshot.load_full());
        let pool = Rc::new(Pool::new(index, Rc::clone(&buffers)));
        let wheel = Wheel::new(now);
        Rc::new(Self {
            index,
            sessions: Sessions::new(Rc::clone(&pool), Rc::clone(&wheel)),
            pool,
            buffers,
            log: shared.access_log.worker_log(),
            mirrored: Rc::default(),
            wheel,
            woken_for: RefCell::new((Rc::clone(&snapshot), shared.life.stage())),
            snapshot: RefCell::new(snapshot),
            random: Cell::new(fastrand::u64(..) | 1),
            requests: RefCell::default(),
            responses: RefCell::default(),
            shared,
        })
    }

    /// Looks after the worker's affairs for ever: timeouts, old connections, the access log, sign of life.
    pub async fn run(self: Rc<Self>) {
        tokio::task::spawn_local(Rc::clone(&self.wheel).drive());
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut lags = [Duration::ZERO; LAGS];
        loop {
            let due = round.tick().await.into_std();
            let now = Instant::now();
            lags.rotate_left(1);
            lags[LAGS - 1] = now.saturating_duration_since(due);
            self.shared.lags(self.index, lags.into_iter().min().unwrap_or_default());
            self.look_after(now);
        }
    }

    fn look_after(self: &Rc<Self>, now: Instant) {
        self.shared.beat(self.index, now);
        let snapshot = self.snapshot();
        for (_, chain) in snapshot.chains() {
            if chain.faults.are_any() {
                chain.faults.review(now, chain.endpoints_for_fault());
            }
            chain.look_after_shedding(now, || self.shared.health());
            if let Some(probe) = chain.breaker.wants_connect_probe(now, self.draw()) {
                tokio::task::spawn_local(Rc::clone(self).probe(Arc::clone(chain), probe));
            }
        }
        self.pool.sweep(now);
        for _ in 0..self.sessions.sweep(now) {
            self.shared.metrics.panics().inc();
        }
        self.log.flush();
        let stage = self.shared.life.stage();
        let (seen, at) = self.woken_for.replace((Rc::clone(&snapshot), stage));
        if stage != at || !Rc::ptr_eq(&seen, &snapshot) {
            // Idle connections look whether they are still wanted.
            self.wheel.wake_all();
        }
    }

    /// Tries a bare connect to an upstream whose breaker is open because connects ran into their timeout.
    async fn probe(self: Rc<Self>, chain: Arc<Chain>, probe: ConnectProbe) {
        let ask = Ask {
            unreached: false,
            tried: &[],
            draw: self.draw_bits(),
            key: None,
            now: Instant::now(),
            may_probe: false,
            heeds_ejections: true,
        };
        let Some(endpoint) = chain.upstream.pick(&ask) else { return };
        let settings = &chain.upstream.settings;
        let connecting = self.pool.connect(chain.upstream.wanted(&endpoint, None));
        let until = Instant::now() + *settings.timeout.connect;
        if let Ok(Ok(connection)) = self.timer().within(until, connecting).await {
            chain.breaker.connect_probe_succeeded(probe);
            self.pool.give_back(connection, &settings.connections, Instant::now());
        }
    }

    /// The configuration in force. A request takes it once and keeps it to its end.
    pub fn snapshot(&self) -> Held {
        let current = self.shared.snapshot.load();
        let mut mine = self.snapshot.borrow_mut();
        if !Arc::ptr_eq(&mine, &current) {
            *mine = Rc::new(Arc::clone(&current));
        }
        Rc::clone(&mine)
    }

    /// A timer of this worker's wheel.
    pub fn timer(&self) -> Timer {
        self.wheel.timer()
    }

    /// A random number (Marsaglia's xorshift64*): for balancing and jitter, nothing secret.
    pub fn draw_bits(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A random number from 0 to 1, 1 excluded.
    pub fn draw(&self) -> f64 {
        (self.draw_bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An empty request head.
    pub fn request_head(&self) -> RequestHead {
        self.requests.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes back a request head that is not needed any more.
    pub fn reuse_request_head(&self, mut head: RequestHead) {
        let mut free = self.requests.borrow_mut();
        if free.len() < KEPT && head.fields.heap_size() <= 16 << 10 {
            head.clear();
            free.push(head);
        }
    }

    /// An empty response head.
    pub fn response_head(&self) -> ResponseHead {
        self.responses.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes back a response head that is not needed any more.
    pub fn reuse_response_head(&self, mut head: ResponseHead) {
        let mut free = self.responses.borrow_mut();
        if free.len() < KEPT && head.fields.heap_size() <= 16 << 10 {
            head.clear();
            free.push(head);
        }
    }
}
