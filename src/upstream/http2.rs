//! HTTP/2 to endpoints: the sessions of one worker.
//!
//! A session is a connection that many requests share, each by a stream. Endpoints are chosen for each request, as
//! for HTTP/1.1: a session is where a request goes once its endpoint is known, never what decides it. There is one
//! for an endpoint, and another only while the first is full (the endpoint's `MAX_CONCURRENT_STREAMS`) or its
//! streams wait for clients that do not read; the oldest with room is taken first, so that the others idle out.
//! `connections` bounds sessions as it bounds connections of HTTP/1.1.
//!
//! A session carries requests once the endpoint's SETTINGS have come: before, nobody knows how many streams it takes,
//! nor whether it speaks HTTP/2 at all; and what has not been sent can go anywhere else, whatever its method. That
//! costs the first request a round trip. Requests that come meanwhile wait for the same connect.
//!
//! It takes no new streams once the endpoint says GOAWAY, its `max_age` or `max_requests` is reached, or it breaks;
//! those it has go on to their ends.
//!
//! What cannot be sent twice takes no session that was idle for a second before that has answered a PING: a round trip,
//! where a new connection would cost two or three.
//!
//! Rejected: hyper's client (it says neither which streams were not processed nor when one must wait for another),
//! and one connection for all workers (each frame would cross threads).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::counts::{CountedStream, Counts};
use super::endpoint::Endpoint;
use super::keep_alive::UNKNOWN;
use super::ping::{Look, Pings};
use super::pool::{self, ConnectError, Pool, SURELY_OPEN, ToEndpoint};
use super::stream::Stream;
use crate::telemetry::metrics::{ConnectResult, UpstreamMetrics};
use crate::timer::{Timer, Wheel};
use crate::tls::error::refusal;
use crate::transport::proxy_protocol::Introduction;

/// What a stream may have sent that nobody has taken. As hyper has it: a quarter of it halves the speed.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a session: what a session may cost in memory.
const SESSION_WINDOW: u32 = 8 << 20;
/// As many streams that wait for clients that do not read leave the window to the others: it grows by theirs. What more
/// of them hold, the others lack; a session's window is 64 MiB then, all of it memory in use.
const MAX_OUTSIDE: u32 = 56;
/// Streams that wait for clients that do not read; a session with so many takes no more, or those that read would
/// soon find no room in its window.
const MAX_STALLED: u32 = 4;
/// What a stream has handed over that is not written.
const SEND_BUFFER: usize = 64 << 10;
/// The largest list of fields in a head or in trailers, as HTTP/2 counts it.
const MAX_HEADER_LIST: u32 = 256 << 10;
/// Streams that an endpoint takes at the same time, until it has said so itself.
const USUAL_STREAMS: usize = 100;
/// The number of streams that stands for not having been told; no endpoint can say it.
const UNTOLD: usize = usize::MAX - 1;
/// How long a connect may take where no timeout is configured.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// How long an idle session is kept where `idle_timeout` is `auto`. What HTTP/1.1 must learn, an endpoint of HTTP/2
/// says: GOAWAY comes before the end.
const KEPT_IDLE: Duration = Duration::from_secs(60);
/// Idle for longer than this, a session is asked for at the kernel before it takes what cannot be sent twice; idle for
/// less, it may be on its way to who waited for it.
const FRESH: Duration = Duration::from_millis(50);
/// How many new sessions a request waits for where others take all their streams first.
const ROUNDS: usize = 8;

/// What an answer of HTTP/1 begins with.
const HTTP1: &[u8] = b"HTTP/1";

/// The sessions of one worker.
pub struct Sessions {
    pool: Rc<Pool>,
    wheel: Rc<Wheel>,
    of: RefCell<HashMap<u64, Of, foldhash::fast::FixedState>>,
    /// Connects, and what moves the sessions; ends with the worker.
    tasks: RefCell<JoinSet<()>>,
}

/// Those to one endpoint.
#[derive(Default)]
struct Of {
    sessions: Vec<Rc<Session>>,
    connects: Vec<Rc<Connect>>,
    /// How many streams the last session took.
    streams: Option<usize>,
}

/// A connection that requests share.
pub struct Session {
    /// None once it takes no more.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    connection: Rc<RefCell<ToEndpoint>>,
    counts: Arc<Counts>,
    /// Those of the last request that looked for a session: a reload holds for those that stand, too.
    limits: Cell<pool::Settings>,
    /// What its connection began with: whom it may serve.
    introduction: Option<Introduction>,
    open: Cell<u32>,
    stalled: Cell<u32>,
    /// How many stalled streams its window has grown by.
    outside: Cell<u32>,
    requests: Cell<u32>,
    idle_since: Cell<Instant>,
    /// Since when it has streams again, after it was idle; none: it has been idle only before its first.
    busy_again: Cell<Option<Instant>>,
    /// When something was last heard.
    heard: Rc<Cell<Instant>>,
    /// Since when somebody waits for a sign of life.
    doubted: Cell<Option<Instant>>,
    /// The sign has come, or it has ended.
    told: Notify,
    /// What moves it, to be woken when there is more to do than frames tell.
    mover: RefCell<Option<Waker>>,
}

/// A stream's place in its session.
pub struct Lease {
    session: Rc<Session>,
    is_stalled: bool,
    counted: Option<CountedStream>,
}

/// A connect under way, and who waits for it.
struct Connect {
    introduction: Option<Introduction>,
    waiting: Cell<usize>,
    result: RefCell<Option<Result<Rc<Session>, Rc<NoSession>>>>,
    done: Notify,
}

/// The session that is wanted.
pub struct Wanted<'a> {
    /// The connection below it.
    pub connection: pool::Wanted<'a>,
    /// The upstream's series.
    pub metrics: &'a Arc<UpstreamMetrics>,
    /// `timeout.connect`, if it cuts.
    pub timeout: Option<Duration>,
    /// Whether HTTP/1.1 will do, if the endpoint settles for it.
    pub or_http1: bool,
}

/// Why there is no session.
pub enum NoSession {
    /// There is no connection.
    Connect(ConnectError),
    /// The endpoint's SETTINGS did not come in time.
    Timeout,
    /// The endpoint does not speak HTTP/2.
    Protocol(String),
    /// The endpoint has settled for HTTP/1.1: a connection for the first who takes it.
    Http1(RefCell<Option<Box<ToEndpoint>>>),
}

impl Sessions {
    /// None yet. Connections come from `pool`, timers from `wheel`.
    pub fn new(pool: Rc<Pool>, wheel: Rc<Wheel>) -> Rc<Self> {
        Rc::new(Self { pool, wheel, of: RefCell::default(), tasks: RefCell::default() })
    }

    /// A session as `wanted` that has room for another stream. `careful`: its request cannot be sent again.
    pub fn take(&self, wanted: &pool::Wanted<'_>, now: Instant, careful: bool) -> Option<Rc<Session>> {
        let of = self.of.borrow();
        let sessions = &of.get(&wanted.endpoint.id)?.sessions;
        let fits = |session: &&Rc<Session>| {
            session.limits.set(*wanted.limits);
            session.introduction == wanted.introduction
                && !session.is_worn(now)
                && session.has_room()
                && !(careful && session.may_be_stale(now))
        };
        sessions.iter().find(fits).map(Rc::clone)
    }

    /// A session to an endpoint that no session has room for: a new one, for which others may wait too. Who waited for
    /// it has it, worn or not: where nothing else is to be had, another would be no better.
    ///
    /// # Errors
    /// [`NoSession`]. How long it may take is the caller's affair.
    pub async fn connect(self: &Rc<Self>, wanted: &Wanted<'_>) -> Result<Rc<Session>, Rc<NoSession>> {
        for _ in 0..ROUNDS {
            let connect = self.under_way(wanted);
            connect.waiting.set(connect.waiting.get() + 1);
            let leaving = Leaving(&connect);
            while connect.result.borrow().is_none() {
                connect.done.notified().await;
            }
            drop(leaving);
            let result = connect.result.borrow().clone();
            match result {
                Some(Ok(session)) if !session.has_room() => {
                    if let Some(other) = self.take(&wanted.connection, Instant::now(), false) {
                        return Ok(other);
                    }
                    if session.has_never_served() {
                        break;
                    }
                    // Others were faster: then another connect is needed.
                }
                Some(result) => return result,
                None => {}
            }
        }
        let error = io::Error::new(io::ErrorKind::ConnectionReset, "its new sessions take no streams");
        Err(Rc::new(NoSession::Connect(ConnectError::Io(error))))
    }

    /// The connect under way that has a place for another, or a new one.
    fn under_way(self: &Rc<Self>, wanted: &Wanted<'_>) -> Rc<Connect> {
        let pool::Wanted { endpoint, counts, introduction, within, .. } = wanted.connection;
        let mut of = self.of.borrow_mut();
        let of = of.entry(endpoint.id).or_default();
        let places = of.streams.unwrap_or(USUAL_STREAMS).max(1);
        let fits =
            |connect: &&Rc<Connect>| connect.introduction == introduction && connect.waiting.get() < places;
        if let Some(connect) = of.connects.iter().find(fits) {
            return Rc::clone(connect);
        }
        let connect = Rc::new(Connect {
            introduction,
            waiting: Cell::new(0),
            result: RefCell::new(None),
            done: Notify::new(),
        });
        of.connects.push(Rc::clone(&connect));
        let making = Making {
            sessions: Rc::downgrade(self),
            pool: Rc::clone(&self.pool),
            timer: self.wheel.timer(),
            endpoint: Arc::clone(endpoint),
            counts: Arc::clone(counts),
            introduction,
            within,
            metrics: Arc::clone(wanted.metrics),
            limits: *wanted.connection.limits,
            timeout: wanted.timeout.unwrap_or(CONNECT_WITHIN),
            or_http1: wanted.or_http1,
        };
        self.tasks.borrow_mut().spawn_local(making.run(Rc::clone(&connect)));
        connect
    }

    /// Ends sessions that have been idle for too long or have had their time, and forgets what has ended. To be
    /// called several times a second. Returns how many tasks panicked.
    pub fn sweep(&self, now: Instant) -> usize {
        self.of.borrow_mut().retain(|_, of| {
            of.sessions.retain(|session| {
                if session.is_worn(now) || session.is_in_the_way(now) {
                    session.leave();
                }
                session.sender.borrow().is_some()
            });
            !of.sessions.is_empty() || !of.connects.is_empty()
        });
        let mut panicked = 0;
        while let Some(ended) = self.tasks.borrow_mut().try_join_next() {
            panicked += usize::from(ended.is_err_and(|error| error.is_panic()));
        }
        panicked
    }
}

/// One that waits less once dropped.
struct Leaving<'a>(&'a Connect);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// A session in the making, and what moves it afterwards.
struct Making {
    sessions: Weak<Sessions>,
    pool: Rc<Pool>,
    timer: Timer,
    endpoint: Arc<Endpoint>,
    counts: Arc<Counts>,
    introduction: Option<Introduction>,
    within: Duration,
    metrics: Arc<UpstreamMetrics>,
    limits: pool::Settings,
    timeout: Duration,
    or_http1: bool,
}

/// The library's side of a connection.
type Driver = h2::client::Connection<Io, Bytes>;

impl Making {
    async fn run(self, connect: Rc<Connect>) {
        let until = Instant::now() + self.timeout;
        let made = match self.timer.within(until, self.make()).await {
            Ok(made) => made,
            Err(_) => Err(NoSession::Timeout),
        };
        let result = match &made {
            Ok(_) | Err(NoSession::Http1(_)) => Some(ConnectResult::Ok),
            Err(NoSession::Timeout) => Some(ConnectResult::Timeout),
            Err(NoSession::Connect(ConnectError::TooMany)) => None,
            Err(NoSession::Connect(error)) => Some(error.result()),
            Err(NoSession::Protocol(_)) => Some(ConnectResult::Error),
        };
        if let Some(result) = result {
            self.metrics.shard(self.pool.worker()).connects(result).inc();
        }
        let (result, driver) = match made {
            Ok((session, driver)) => (Ok(session), Some(driver)),
            Err(none) => (Err(Rc::new(none)), None),
        };
        if let Some(sessions) = self.sessions.upgrade() {
            let mut of = sessions.of.borrow_mut();
            let of = of.entry(self.endpoint.id).or_default();
            of.connects.retain(|other| !Rc::ptr_eq(other, &connect));
            if let Ok(session) = &result {
                of.streams = session.max_streams();
                of.sessions.push(Rc::clone(session));
            }
        }
        let session = result.as_ref().ok().map(Rc::clone);
        *connect.result.borrow_mut() = Some(result);
        connect.done.notify_waiters();
        drop(connect);
        if let (Some(session), Some(driver)) = (session, driver) {
            session.drive(driver, &self.timer).await;
            session.leave();
            session.told.notify_waiters();
        }
    }

    async fn make(&self) -> Result<(Rc<Session>, Driver), NoSession> {
        let wanted = pool::Wanted {
            endpoint: &self.endpoint,
            counts: &self.counts,
            limits: &self.limits,
            within: self.within,
            introduction: self.introduction,
            only_http1: false,
        };
        let connection = self.pool.connect(wanted).await.map_err(NoSession::Connect)?;
        if self.endpoint.tls.is_some() && !connection.is_http2 {
            return Err(match self.or_http1 {
                true => NoSession::Http1(RefCell::new(Some(connection))),
                false => NoSession::Protocol("the endpoint does not offer HTTP/2 (ALPN)".to_owned()),
            });
        }
        let connection = Rc::new(RefCell::new(*connection));
        let heard = Rc::new(Cell::new(Instant::now()));
        let speaks_http1 = Rc::new(Cell::new(false));
        let io = Io {
            connection: Rc::clone(&connection),
            heard: Rc::clone(&heard),
            first: Some(Rc::clone(&speaks_http1)),
        };
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(UNTOLD)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(SESSION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER);
        let broken = |error: &h2::Error| {
            // One that answered and closed may have broken our writing before its answer was read.
            let mut first = [0; HTTP1.len()];
            let refused = error.get_io().and_then(refusal);
            let connection = connection.borrow();
            let socket = connection.wire.stream().socket();
            let has_answer = matches!((&*socket).read(&mut first), Ok(size) if first[..size] == *HTTP1);
            if speaks_http1.get() || has_answer {
                let cure = "the endpoint answers in HTTP/1.1; set protocol = \"http1\"";
                NoSession::Protocol(cure.to_owned())
            } else if let Some(why) = refused {
                NoSession::Connect(ConnectError::Tls(why))
            } else if error.is_io() {
                let kind = error.get_io().map_or(io::ErrorKind::ConnectionReset, io::Error::kind);
                NoSession::Connect(ConnectError::Io(kind.into()))
            } else {
                NoSession::Protocol(format!("the endpoint does not speak HTTP/2: {error}"))
            }
        };
        let (sender, mut driver) = builder.handshake(io).await.map_err(|error| broken(&error))?;
        poll_fn(|cx| match Pin::new(&mut driver).poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(&error))),
            Poll::Ready(Ok(())) => {
                let closed = "it closed the connection before it sent its SETTINGS";
                let error = io::Error::new(io::ErrorKind::ConnectionReset, closed);
                Poll::Ready(Err(NoSession::Connect(ConnectError::Io(error))))
            }
            Poll::Pending if sender.current_max_send_streams() == UNTOLD => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await?;
        if sender.current_max_send_streams() == 0 {
            let error = io::Error::new(io::ErrorKind::ConnectionRefused, "its SETTINGS allow no streams");
            return Err(NoSession::Connect(ConnectError::Io(error)));
        }
        let now = Instant::now();
        let session = Rc::new(Session {
            sender: RefCell::new(Some(sender)),
            connection,
            counts: Arc::clone(&self.counts),
            limits: Cell::new(self.limits),
            introduction: self.introduction,
            open: Cell::new(0),
            stalled: Cell::new(0),
            outside: Cell::new(0),
            requests: Cell::new(0),
            idle_since: Cell::new(now),
            busy_again: Cell::new(None),
            heard,
            doubted: Cell::new(None),
            told: Notify::new(),
            mover: RefCell::new(None),
        });
        session.connection.borrow_mut().idles();
        Ok((session, driver))
    }
}

impl Session {
    /// How many streams the endpoint takes; none once it takes no more.
    fn max_streams(&self) -> Option<usize> {
        self.sender.borrow().as_ref().map(SendRequest::current_max_send_streams)
    }

    /// Whether it takes another stream.
    fn has_room(&self) -> bool {
        if self.is_used_up() || self.stalled.get() >= MAX_STALLED {
            return false;
        }
        let mut sender = self.sender.borrow_mut();
        let Some(ready) = sender.as_mut() else { return false };
        match ready.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => (self.open.get() as usize) < ready.current_max_send_streams(),
            Poll::Ready(Err(_)) => {
                // GOAWAY, or broken.
                *sender = None;
                false
            }
            Poll::Pending => false,
        }
    }

    /// Whether the endpoint ended it before it served anybody.
    fn has_never_served(&self) -> bool {
        self.sender.borrow().is_none() && self.requests.get() == 0
    }

    /// Whether the endpoint may have closed it unheard.
    fn may_be_stale(&self, now: Instant) -> bool {
        self.idle(now) > FRESH && !self.connection.borrow_mut().wire.is_reusable(true)
    }

    /// Whether it has had its time.
    fn is_worn(&self, now: Instant) -> bool {
        let limits = self.limits.get();
        // One that serves a single client is not worth keeping for longer than usual, as in the pool.
        let usual = if self.introduction.is_some() { UNKNOWN } else { KEPT_IDLE };
        let max_idle = limits.idle_timeout.map_or(usual, |span| *span);
        self.is_used_up()
            || self.connection.borrow().is_worn_out(now, &limits)
            || self.open.get() == 0 && self.idle(now) >= max_idle
    }

    /// Whether it has served `max_requests`.
    fn is_used_up(&self) -> bool {
        let max_requests = self.limits.get().max_requests;
        max_requests > 0 && self.requests.get() >= max_requests
    }

    /// Whether it is idle and stands in the way of those that are needed more. A reason to end it, none to refuse what
    /// comes to it: all that are idle stand in each other's way, and a new one would too.
    fn is_in_the_way(&self, now: Instant) -> bool {
        self.idle(now) > FRESH && !self.connection.borrow().counted.is_within(self.limits.get().max)
    }

    /// Whether it was idle for so long that what cannot be sent twice needs a sign of life first.
    pub fn is_doubtful(&self, now: Instant) -> bool {
        self.idle(now) >= SURELY_OPEN
    }

    /// Waits until something has been heard after `now`, for which the endpoint is asked. Whether it takes a stream
    /// then. How long that may take is the caller's affair.
    pub async fn lives(&self, now: Instant) -> bool {
        self.doubted.set(Some(now));
        self.wake();
        while self.sender.borrow().is_some() && self.heard.get() <= now {
            self.told.notified().await;
        }
        self.has_room()
    }

    /// For how long it has had no stream.
    fn idle(&self, now: Instant) -> Duration {
        match self.open.get() {
            0 => now.saturating_duration_since(self.idle_since.get()),
            _ => Duration::ZERO,
        }
    }

    /// Takes no new streams, and ends with the last of those that it has.
    pub fn leave(&self) {
        self.sender.borrow_mut().take();
        if self.open.get() == 0 {
            self.connection.borrow_mut().counted.leave();
        }
    }

    /// Opens a stream for this request. `ends`: no body follows. None where the endpoint takes no more after all.
    pub fn open(self: &Rc<Self>, request: http::Request<()>, ends: bool) -> Option<(Stream, Lease)> {
        let is_head = request.method() == http::Method::HEAD;
        let mut sender = self.sender.borrow_mut();
        let (answer, send) = sender.as_mut()?.send_request(request, ends).ok()?;
        drop(sender);
        let requests = self.requests.replace(self.requests.get() + 1);
        let open = self.open.replace(self.open.get() + 1);
        if open == 0 {
            self.busy_again.set((requests > 0).then(Instant::now));
            self.connection.borrow_mut().leaves_the_pool();
            self.wake();
        }
        let lease = Lease { session: Rc::clone(self), is_stalled: false, counted: None };
        Some((Stream::new(answer, send, is_head), lease))
    }

    fn wake(&self) {
        if let Some(mover) = &*self.mover.borrow() {
            mover.wake_by_ref();
        }
    }

    /// Stalled streams that its window must still grow by. It does not shrink again: what they do not hold is taken by
    /// nobody.
    fn lacks(&self) -> Option<u32> {
        let stalled = self.stalled.get().min(MAX_OUTSIDE);
        (stalled > self.outside.get()).then_some(stalled)
    }

    /// Moves the connection's frames until it ends.
    async fn drive(&self, mut driver: Driver, timer: &Timer) {
        let mut pings = Pings::default();
        let mut sender = driver.ping_pong();
        poll_fn(|cx| {
            let mut mover = self.mover.borrow_mut();
            if !mover.as_ref().is_some_and(|mover| mover.will_wake(cx.waker())) {
                *mover = Some(cx.waker().clone());
            }
            drop(mover);
            if let Some(stalled) = self.lacks() {
                self.outside.set(stalled);
                driver.set_target_window_size(SESSION_WINDOW + stalled * STREAM_WINDOW);
            }
            // Its streams hear of it themselves.
            if Pin::new(&mut driver).poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if let (Some(since), Some(sender)) = (self.doubted.get(), &mut sender) {
                let _ = sender.poll_pong(cx);
                if self.heard.get() > since {
                    self.doubted.set(None);
                    self.told.notify_waiters();
                } else {
                    // Fails only while another is under way.
                    let _ = sender.send_ping(h2::Ping::opaque());
                }
            }
            loop {
                if pings.is_asking() && sender.as_mut().is_some_and(|sender| sender.poll_pong(cx).is_ready())
                {
                    pings.answered(Instant::now());
                }
                if self.open.get() == 0 {
                    pings.rest();
                    timer.disarm();
                    return Poll::Pending;
                }
                if timer.is_armed() && timer.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let now = Instant::now();
                match pings.look(now, self.heard.get()) {
                    Look::Wait(until) => timer.arm(until),
                    // Dropped, the driver breaks its streams off.
                    Look::Dead => return Poll::Ready(()),
                    Look::Ping => {
                        if let Some(sender) = &mut sender {
                            // Fails only while another is under way.
                            let _ = sender.send_ping(h2::Ping::opaque());
                        }
                        cx.waker().wake_by_ref();
                    }
                }
            }
        })
        .await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.open.get() == 0 {
            self.connection.borrow_mut().leaves_the_pool();
        }
    }
}

impl Lease {
    /// Whether the session was idle before and nothing has been heard since: then the endpoint may have closed it in
    /// the moment in which the request came.
    pub fn may_be_stale(&self) -> bool {
        self.session.busy_again.get().is_some_and(|since| self.session.heard.get() <= since)
    }

    /// The stream is one without a foreseeable end; false where its upstream has `max_streams` of those.
    pub fn become_stream(&mut self, max_streams: u32) -> bool {
        if self.counted.is_none() {
            self.counted = self.session.counts.add_stream(max_streams);
        }
        self.counted.is_some()
    }

    /// Whether its client takes nothing of what is there.
    pub fn set_stalled(&mut self, is_stalled: bool) {
        if std::mem::replace(&mut self.is_stalled, is_stalled) != is_stalled {
            let stalled = self.session.stalled.get();
            self.session.stalled.set(if is_stalled { stalled + 1 } else { stalled - 1 });
            if self.session.lacks().is_some() {
                self.session.wake();
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set_stalled(false);
        let session = &self.session;
        session.open.set(session.open.get() - 1);
        if session.open.get() == 0 {
            session.idle_since.set(Instant::now());
            session.connection.borrow_mut().idles();
        }
    }
}

/// The bytes of a session, for the library; notes when something comes.
struct Io {
    connection: Rc<RefCell<ToEndpoint>>,
    heard: Rc<Cell<Instant>>,
    /// Until the first bytes have come: whether they are of HTTP/1.
    first: Option<Rc<Cell<bool>>>,
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.connection.borrow_mut().wire).poll_read(cx, out))?;
        if out.filled().len() > before {
            self.heard.set(Instant::now());
            if let Some(first) = self.first.take() {
                first.set(out.filled()[before..].starts_with(HTTP1));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.borrow_mut().wire.poll_write(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let connection = &mut self.connection.borrow_mut().wire;
        match pieces.iter().find(|piece| !piece.is_empty()) {
            Some(first) if connection.unwritten() > 0 => connection.poll_write(cx, first),
            _ => connection.poll_write_vectored(cx, pieces),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.borrow_mut().wire.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.borrow_mut().wire.poll_shutdown(cx)
    }
}
