//! The connections of one worker to the endpoints of all upstreams: newest first, checked before reuse.
//!
//! A pool belongs to a worker, so nothing here is shared but the counts. A connection is in the pool only when
//! its last response has ended and nothing came behind it; one that is not ready at that moment is closed, and
//! nobody ever waits for a pooled one. Newest first: the others grow old and are closed, and the one that is
//! taken is the least likely to have been closed by the endpoint meanwhile.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use super::counts::{Counted, Counts};
use super::endpoint::{Endpoint, Socket};
use crate::http1::connection::{Buffers, Connection};
use crate::transport::Transport;
use crate::units::{OrNone, Span, within};

/// `connections`: bounds of an upstream's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Connections in all, without those that streams hold. From 1 to 1,000,000. Default 1024.
    #[serde(deserialize_with = "within::<_, 1, 1_000_000>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: u32,
    /// How long an idle connection is kept. Default `"4s"`.
    pub idle_timeout: Span,
    /// How long a connection is used at all, or `"none"`. Default `"none"`.
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
            idle_timeout: Span::from_secs(4),
            max_age: OrNone(None),
            max_requests: 0,
            max_streams: 1000,
        }
    }
}

/// Idle for longer than this, a connection is asked for at the kernel before reuse, which costs a system call;
/// before, what the runtime has heard of it is fresh enough.
const FRESH: Duration = Duration::from_millis(50);

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
    requests: u32,
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

impl Pool {
    /// An empty pool of the worker `worker`, whose connections use `buffers`.
    pub fn new(worker: usize, buffers: Rc<Buffers>) -> Self {
        Self { worker, buffers, idle: RefCell::default() }
    }

    /// An idle connection to `endpoint` that still stands. `careful`: its request cannot be sent again, so the
    /// kernel is asked however fresh the connection is.
    pub fn take(&self, endpoint: &Endpoint, now: Instant, careful: bool) -> Option<Box<ToEndpoint>> {
        let mut pool = self.idle.borrow_mut();
        let idle = pool.get_mut(&endpoint.id)?;
        while let Some(idle) = idle.pop() {
            let is_fresh = idle.is_fresh(now);
            let ask = careful || now.saturating_duration_since(idle.since) > FRESH;
            let mut connection = idle.connection;
            connection.leaves_the_pool();
            if is_fresh && connection.wire.is_reusable(ask) {
                connection.reused = true;
                return Some(connection);
            }
        }
        None
    }

    /// A new connection to `endpoint`, one of the `max` of its upstream.
    ///
    /// # Errors
    /// [`ConnectError`]. How long it may take is the caller's affair.
    pub async fn connect(
        &self,
        counts: &Arc<Counts>,
        max: u32,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Box<ToEndpoint>, ConnectError> {
        let counted = counts.add(max);
        let counted = counted.ok_or(ConnectError::TooMany)?;
        let stream = open(&endpoint.socket).await.map_err(ConnectError::Io)?;
        let stream = match &endpoint.tls {
            Some(tls) => {
                let connected = tls.connect(endpoint.id, endpoint.server_name(), stream).await;
                connected.map_err(ConnectError::Tls)?
            }
            None => stream,
        };
        endpoint.metrics.shard(self.worker).connections_active.inc();
        Ok(Box::new(ToEndpoint {
            is_http2: stream.protocol() == Some(b"h2"),
            wire: Connection::new(stream, Rc::clone(&self.buffers)),
            reused: false,
            counted,
            endpoint: Arc::clone(endpoint),
            worker: self.worker,
            born: Instant::now(),
            requests: 0,
        }))
    }

    /// Keeps a connection whose last response has ended, if it may serve another.
    pub fn give_back(&self, mut connection: Box<ToEndpoint>, settings: &Settings, now: Instant) {
        connection.requests += 1;
        let is_worn = settings.max_requests > 0 && connection.requests >= settings.max_requests;
        let mut idle = Idle { since: now, limits: *settings, connection };
        if is_worn || !idle.is_fresh(now) || !idle.connection.wire.is_reusable(false) {
            return;
        }
        idle.connection.wire.rest();
        idle.connection.counted.rest(true);
        let metrics = idle.connection.endpoint.metrics.shard(self.worker);
        metrics.connections_active.dec();
        metrics.connections_idle.inc();
        self.idle.borrow_mut().entry(idle.connection.endpoint.id).or_default().push(idle);
    }

    /// Closes what has been idle for too long, what the endpoint has closed, and what stands in the way of another
    /// worker's connections. To be called several times a second.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain_mut(|idle| {
                let kept = idle.is_fresh(now)
                    && idle.connection.counted.is_within(idle.limits.max)
                    && idle.connection.wire.is_reusable(false);
                if !kept {
                    idle.connection.leaves_the_pool();
                }
                kept
            });
            !idle.is_empty()
        });
    }
}

async fn open(socket: &Socket) -> io::Result<Transport> {
    match socket {
        Socket::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            if stream.peer_addr().ok() == stream.local_addr().ok() {
                // TCP's simultaneous open: a connect to a free port of this host may meet itself.
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            stream.set_nodelay(true)?;
            Ok(stream.into())
        }
        Socket::Unix(path) => UnixStream::connect(path).await.map(Transport::from),
    }
}

impl Idle {
    fn is_fresh(&self, now: Instant) -> bool {
        let is_older = |since: Instant, than: Span| now.saturating_duration_since(since) >= *than;
        !self.connection.endpoint.is_gone()
            && !is_older(self.since, self.limits.idle_timeout)
            && !self.limits.max_age.is_some_and(|max| is_older(self.connection.born, max))
    }
}

impl ToEndpoint {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    fn leaves_the_pool(&mut self) {
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
