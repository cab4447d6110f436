//! The connections of one worker to the endpoints of all upstreams: newest first, checked before reuse.
//!
//! A pool belongs to a worker, so nothing here is shared but the counts. A connection is in the pool only when
//! its last response has ended and nothing came behind it; one that is not ready at that moment is closed, and
//! nobody ever waits for a pooled one. Newest first: the others grow old and are closed, and the one that is
//! taken is the least likely to have been closed by the endpoint meanwhile.
//!
//! How long one may be idle is learnt (`keep_alive`), so that none is taken that the endpoint is about to close. What
//! cannot be sent twice takes only those that were idle for less than a second, whatever is known. Ages are spread by
//! a tenth, so that a fleet that was started together does not reconnect in step.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::connect;
use super::counts::{Counted, Counts};
use super::endpoint::Endpoint;
use super::keep_alive::{Probe, UNKNOWN};
use crate::http1::connection::{Buffers, Connection};
use crate::telemetry::metrics::ConnectResult;
use crate::transport::proxy_protocol::Introduction;
use crate::units::{OrAuto, OrNone, Span, within};

/// `connections`: bounds of an upstream's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Connections in all, without those that streams hold. From 1 to 1,000,000. Default 1024.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: u32,
    /// The longest that an idle connection is kept, or `"auto"`: 4 s, and up to 60 s where the upstream has shown that
    /// it keeps them a second longer. In either case less where it was seen to close them earlier. Default `"auto"`.
    pub idle_timeout: OrAuto<Span>,
    /// How long a connection is used at all, give or take a tenth, or `"none"`. Default `"none"`.
    pub max_age: OrNone<Span>,
    /// Requests that a connection serves; 0: any number. Default 0.
    pub max_requests: u32,
    /// Streams at the same time. From 1 to 1,000,000. Default 1000.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_streams: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max: 1024,
            idle_timeout: OrAuto(None),
            max_age: OrNone(None),
            max_requests: 0,
            max_streams: 1000,
        }
    }
}

/// Idle for longer than this, a connection is asked for at the kernel before reuse, which costs a system call;
/// before, what the runtime has heard of it is fresh enough.
const FRESH: Duration = Duration::from_millis(50);

/// What cannot be sent twice takes no connection that was idle for this long.
pub(super) const SURELY_OPEN: Duration = Duration::from_secs(1);

/// The idle connections of one worker.
pub struct Pool {
    worker: usize,
    buffers: Rc<Buffers>,
    idle: RefCell<HashMap<u64, Vec<Idle>, foldhash::fast::FixedState>>,
}

struct Idle {
    connection: Box<ToEndpoint>,
    since: Instant,
    limits: Settings,
    /// Too old for requests, and kept to see how long the endpoint keeps it.
    probe: Option<Probe>,
}

/// The connection that is wanted.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// To whom.
    pub endpoint: &'a Arc<Endpoint>,
    /// What all workers hold of its upstream.
    pub counts: &'a Arc<Counts>,
    /// Bounds, of the configuration in force.
    pub limits: &'a Settings,
    /// `timeout.connect`, which the caller keeps; here it says when another address is tried.
    pub within: Duration,
    /// What it begins with.
    pub introduction: Option<Introduction>,
    /// It must be one of HTTP/1.1, whatever else the endpoint could settle for in a handshake of TLS.
    pub only_http1: bool,
}

/// A connection to an endpoint.
pub struct ToEndpoint {
    /// The bytes.
    pub wire: Connection,
    /// Whether it has served a request before: then the endpoint may have closed it just now.
    pub reused: bool,
    /// Whether HTTP/2 is spoken on it, as both ends have settled in the handshake of TLS.
    pub is_http2: bool,
    /// Its place among the upstream's connections or streams.
    pub counted: Counted,
    endpoint: Arc<Endpoint>,
    worker: usize,
    born: Instant,
    /// The part of `max_age` that this one may reach: from 0.9 to 1.1.
    age: f32,
    requests: u32,
    /// What it began with: whom else it may serve.
    introduction: Option<Introduction>,
    /// How long it had been idle when it was taken.
    was_idle: Duration,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// `connections.max` is reached.
    TooMany,
    /// The endpoint refuses, or cannot be reached.
    Io(io::Error),
    /// The handshake of TLS failed, in words.
    Tls(String),
}

impl ConnectError {
    /// What it counts as.
    pub fn result(&self) -> ConnectResult {
        match self {
            ConnectError::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => ConnectResult::Refused,
                io::ErrorKind::TimedOut => ConnectResult::Timeout,
                _ => ConnectResult::Error,
            },
            ConnectError::TooMany | ConnectError::Tls(_) => ConnectResult::Error,
        }
    }
}

impl Pool {
    /// An empty pool of the worker `worker`, whose connections use `buffers`.
    pub fn new(worker: usize, buffers: Rc<Buffers>) -> Self {
        Self { worker, buffers, idle: RefCell::default() }
    }

    /// The index of the worker that it belongs to.
    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// An idle connection as `wanted` that still stands. `careful`: its request cannot be sent again, so only one that
    /// was used just now will do, and the kernel is asked however fresh it is.
    pub fn take(&self, wanted: &Wanted<'_>, now: Instant, careful: bool) -> Option<Box<ToEndpoint>> {
        let mut pool = self.idle.borrow_mut();
        let idle = pool.get_mut(&wanted.endpoint.id)?;
        loop {
            // All but those that are introduced serve anybody, so it is the last.
            let newest = idle.iter().rposition(|idle| idle.connection.introduction == wanted.introduction)?;
            let was_idle = now.saturating_duration_since(idle[newest].since);
            if careful && was_idle >= SURELY_OPEN || idle[newest].probe.is_some() {
                // Neither will those before it do, which are older.
                return None;
            }
            let Idle { mut connection, limits, .. } = idle.remove(newest);
            connection.leaves_the_pool();
            if !connection.may_be_idle(was_idle, &limits) || connection.is_worn_out(now, &limits) {
                continue;
            }
            if connection.wire.is_reusable(careful || was_idle > FRESH) {
                connection.reused = true;
                connection.was_idle = was_idle;
                return Some(connection);
            }
            connection.counted.keep_alive().closed(was_idle);
        }
    }

    /// A new connection, one of the `max` of its upstream.
    ///
    /// # Errors
    /// [`ConnectError`]. How long it may take is the caller's affair.
    pub async fn connect(&self, wanted: Wanted<'_>) -> Result<Box<ToEndpoint>, ConnectError> {
        let Wanted { endpoint, counts, limits, within, introduction, only_http1 } = wanted;
        let counted = counts.add(limits.max);
        let counted = counted.ok_or(ConnectError::TooMany)?;
        let mut stream = connect::open(endpoint, within).await.map_err(ConnectError::Io)?;
        if let Some(introduction) = introduction {
            let mut header = Vec::new();
            introduction.write(&mut header);
            stream.write_all(&header).await.map_err(ConnectError::Io)?;
        }
        let stream = match &endpoint.tls {
            Some(tls) => {
                let connected = tls.connect(endpoint.id, endpoint.server_name(), stream, only_http1).await;
                connected.map_err(ConnectError::Tls)?
            }
            None => stream,
        };
        let is_http2 = stream.protocol() == Some(b"h2");
        if endpoint.tls.is_some() && !only_http1 {
            endpoint.settle(is_http2);
        }
        endpoint.metrics.shard(self.worker).connections_active.inc();
        Ok(Box::new(ToEndpoint {
            is_http2,
            wire: Connection::new(stream, Rc::clone(&self.buffers)),
            reused: false,
            counted,
            endpoint: Arc::clone(endpoint),
            worker: self.worker,
            born: Instant::now(),
            age: 0.9 + 0.2 * fastrand::f32(),
            requests: 0,
            introduction,
            was_idle: Duration::ZERO,
        }))
    }

    /// Keeps a connection whose last response has ended, if it may serve another.
    pub fn give_back(&self, mut connection: Box<ToEndpoint>, settings: &Settings, now: Instant) {
        connection.requests += 1;
        connection.counted.end_stream();
        let has_served = settings.max_requests > 0 && connection.requests >= settings.max_requests;
        if has_served
            || connection.is_worn_out(now, settings)
            || !connection.counted.is_within(settings.max)
            || !connection.wire.is_reusable(false)
        {
            return;
        }
        connection.wire.rest();
        connection.idles();
        let mut idle = self.idle.borrow_mut();
        let idle = idle.entry(connection.endpoint.id).or_default();
        idle.push(Idle { since: now, limits: *settings, connection, probe: None });
    }

    /// Closes what has been idle for too long, what the endpoint has closed, what leads to an endpoint that is gone,
    /// and what stands in the way of another worker's connections. To be called several times a second.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain_mut(|idle| {
                let kept = idle.is_kept(now);
                if !kept {
                    idle.connection.leaves_the_pool();
                }
                kept
            });
            !idle.is_empty()
        });
    }
}

impl Idle {
    /// Whether it stays in the pool; learns from it how long the endpoint keeps it.
    fn is_kept(&mut self, now: Instant) -> bool {
        let Self { connection, since, limits, probe } = self;
        let was_idle = now.saturating_duration_since(*since);
        if !connection.wire.is_reusable(false) {
            connection.counted.keep_alive().closed(was_idle);
            return false;
        }
        if connection.is_worn_out(now, limits) || !connection.counted.is_within(limits.max) {
            return false;
        }
        if probe.is_none() && !connection.may_be_idle(was_idle, limits) {
            *probe = connection.counted.keep_alive().probe(connection.written(limits));
        }
        match probe {
            Some(probe) => probe.stands(was_idle),
            None => connection.may_be_idle(was_idle, limits),
        }
    }
}

impl ToEndpoint {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint's answer has this `Keep-Alive` field.
    pub fn told_keep_alive(&self, value: &[u8]) {
        self.counted.keep_alive().told(value);
    }

    /// It was taken from the pool, and the endpoint had closed it all the same.
    pub fn was_stale(&self) {
        self.counted.keep_alive().closed(self.was_idle);
    }

    /// Whether it may be used after it was idle for so long.
    fn may_be_idle(&self, was_idle: Duration, limits: &Settings) -> bool {
        was_idle < self.counted.keep_alive().limit(self.written(limits))
    }

    /// What is written of how long it may be idle. One that serves a single client is not worth keeping for longer than
    /// usual: the client may have left.
    fn written(&self, limits: &Settings) -> Option<Duration> {
        limits.idle_timeout.map(|span| *span).or(self.introduction.map(|_| UNKNOWN))
    }

    /// Whether nobody needs it any more, however fresh it is.
    pub(super) fn is_worn_out(&self, now: Instant, limits: &Settings) -> bool {
        let is_old = |max: Span| now.saturating_duration_since(self.born) >= max.mul_f32(self.age);
        self.endpoint.is_gone() || limits.max_age.is_some_and(is_old)
    }

    /// It carries nothing for now.
    pub(super) fn idles(&mut self) {
        self.counted.rest(true);
        let metrics = self.endpoint.metrics.shard(self.worker);
        metrics.connections_active.dec();
        metrics.connections_idle.inc();
    }

    /// It carries something again, or goes.
    pub(super) fn leaves_the_pool(&mut self) {
        self.counted.rest(false);
        let metrics = self.endpoint.metrics.shard(self.worker);
        metrics.connections_idle.dec();
        metrics.connections_active.inc();
    }
}

impl Drop for ToEndpoint {
    fn drop(&mut self) {
        self.endpoint.metrics.shard(self.worker).connections_active.dec();
    }
}
