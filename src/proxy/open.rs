//! How an attempt gets what it goes up on: what is open to its endpoint already, or a new connection.
//!
//! HTTP/1.1 takes an idle connection from the pool, HTTP/2 a stream of a session that has room. Over TLS with
//! `protocol = "auto"` the handshake settles which: while an endpoint settles for HTTP/2, or nobody has asked it yet,
//! requests look for a session; once it has settled for HTTP/1.1, for connections of their own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Routed;
use super::request::Request;
use super::send::Clock;
use super::upward::{self, Up};
use super::wire::{Unanswered, Wire};
use super::worker::Worker;
use crate::http1::head::Method;
use crate::policy::mode::Mode;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::{ConnectResult, Effect, Limit};
use crate::timer::Timer;
use crate::transport::UNIX_PEER;
use crate::transport::proxy_protocol::Ends;
use crate::upstream::Way;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::http2::{self, NoSession, Session};
use crate::upstream::pool::{ConnectError, ToEndpoint, Wanted};

/// The detail of a connect that ran into its timeout.
pub const CONNECT_TIMEOUT: &str = "timeout.connect passed";

/// How often something else is looked for where what was found takes no more since that moment.
const TRIES: usize = 8;

/// How long a session that was idle may take for a sign of life.
const LIVES_WITHIN: Duration = Duration::from_secs(1);

/// Who asks, and of whom.
pub struct Opening<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// Where the request goes.
    pub routed: &'a Routed,
    /// The endpoint.
    pub endpoint: &'a Arc<Endpoint>,
    /// How long it may take.
    pub clock: &'a Clock,
    /// The request's timer.
    pub timer: &'a Timer,
}

/// What is to be opened for a request.
#[derive(Clone, Copy)]
pub struct Open {
    /// What the attempt adds to its head.
    pub up: Up,
    /// It must not be sent twice.
    pub careful: bool,
    /// On a new connection.
    pub fresh: bool,
    /// No body follows its head.
    pub ends: bool,
}

/// What there is to go up on.
enum Found {
    Connection(Box<ToEndpoint>),
    Session(Rc<Session>),
}

impl Opening<'_> {
    /// Queues the request's head on what is open to the endpoint, or on a new connection. `started`: when the attempt
    /// began. Returns since when it goes up.
    ///
    /// # Errors
    /// [`Unanswered`], without a word sent.
    pub async fn open(
        &self,
        request: &Request,
        mut open: Open,
        started: Instant,
    ) -> Result<(Wire, Instant), Unanswered> {
        let context = &request.context;
        let Self { routed, endpoint, worker, .. } = *self;
        let upstream = &routed.target().chain.upstream;
        let ends = Some(Ends { client: context.peer, local: context.local });
        let way = upstream.settings.protocol.way(endpoint.tls.is_some(), context.grpc, context.upgrade);
        let wanted = Wanted {
            only_http1: way == Way::Http1,
            ..upstream.wanted(endpoint, ends.filter(|ends| ends.client != UNIX_PEER))
        };
        for _ in 0..TRIES {
            let found = match way {
                Way::Http1 => self.connection(&wanted, open, started).await?,
                Way::Settled if endpoint.settled_for_http1() => {
                    self.connection(&wanted, open, started).await?
                }
                Way::Http2 | Way::Settled => self.session(&wanted, open, way).await?,
            };
            match found {
                (Found::Connection(mut connection), now) if !connection.is_http2 => {
                    open.up.set_left(self.clock, now);
                    let out = connection.wire.output();
                    upward::queue(out, request, routed, endpoint, worker, &open.up);
                    return Ok((Wire::http1(connection, request.head.method == Method::Head), now));
                }
                // It settles for something else than before: a session is looked for then.
                (Found::Connection(_), _) => {}
                (Found::Session(session), now) => {
                    open.up.set_left(self.clock, now);
                    let head = upward::build(request, routed, endpoint, worker, &open.up).map_err(unsent)?;
                    // None: it takes no more streams since just now.
                    if let Some((stream, lease)) = session.open(head, open.ends) {
                        return Ok((Wire::http2(stream, lease), now));
                    }
                }
            }
            open.fresh = false;
        }
        Err(unsent(Error::new(Reason::UpstreamReset, "no session takes the stream")))
    }

    /// A connection of HTTP/1.1: an idle one, or a new one.
    async fn connection(
        &self,
        wanted: &Wanted<'_>,
        open: Open,
        started: Instant,
    ) -> Result<(Found, Instant), Unanswered> {
        let pooled = if open.fresh { None } else { self.worker.pool.take(wanted, started, open.careful) };
        match pooled {
            Some(connection) => Ok((Found::Connection(connection), started)),
            None => {
                // Boxed, like all that makes a connection: rare, and every request would be larger for it.
                let connection = Box::pin(self.connect(*wanted)).await.map_err(unsent)?;
                Ok((Found::Connection(connection), Instant::now()))
            }
        }
    }

    /// A session of HTTP/2: one with room, or a new one; a connection of HTTP/1.1 where the endpoint settles for that.
    async fn session(
        &self,
        wanted: &Wanted<'_>,
        open: Open,
        way: Way,
    ) -> Result<(Found, Instant), Unanswered> {
        let now = Instant::now();
        let session = self.worker.sessions.take(wanted, now, open.careful).filter(|_| !open.fresh);
        match session {
            Some(session) if !open.careful || !session.is_doubtful(now) => {
                return Ok((Found::Session(session), now));
            }
            Some(session) => {
                let until = self.until(now).into_iter().chain([now + LIVES_WITHIN]).min();
                let asked = self.timer.within(until.unwrap_or(now), session.lives(now)).await;
                match asked {
                    Ok(true) => return Ok((Found::Session(session), Instant::now())),
                    Ok(false) => {}
                    // The request's own time may have been shorter.
                    Err(_) if now.elapsed() < LIVES_WITHIN => {}
                    Err(_) => session.leave(),
                }
            }
            None => {}
        }
        let found = Box::pin(self.join(wanted, way)).await.map_err(unsent)?;
        Ok((found, Instant::now()))
    }

    /// A new session, for which others may wait too.
    async fn join(&self, connection: &Wanted<'_>, way: Way) -> Result<Found, Error> {
        let now = Instant::now();
        let upstream = &self.routed.target().chain.upstream;
        let wanted = http2::Wanted {
            connection: *connection,
            metrics: &upstream.metrics,
            timeout: self.clock.cuts(self.clock.connect),
            or_http1: way == Way::Settled,
        };
        let connecting = self.worker.sessions.connect(&wanted);
        let connected = match self.until(now) {
            Some(until) => self.timer.within(until, connecting).await,
            None => Ok(connecting.await),
        };
        let none = match connected {
            Ok(Ok(session)) => return Ok(Found::Session(session)),
            Ok(Err(none)) => none,
            Err(_) => return Err(self.cut()),
        };
        match &*none {
            NoSession::Connect(error) => Err(self.refused(error)),
            NoSession::Timeout => Err(Error::new(Reason::ConnectError, CONNECT_TIMEOUT)),
            NoSession::Protocol(detail) => Err(Error::new(Reason::ProtocolError, detail.clone())),
            NoSession::Http1(connection) => {
                let first = connection.borrow_mut().take();
                match first {
                    Some(connection) => Ok(Found::Connection(connection)),
                    None => self.connect(wanted.connection).await.map(Found::Connection),
                }
            }
        }
    }

    /// A new connection.
    async fn connect(&self, wanted: Wanted<'_>) -> Result<Box<ToEndpoint>, Error> {
        let now = Instant::now();
        let upstream = &self.routed.target().chain.upstream;
        let connects = upstream.metrics.shard(self.worker.index);
        let connecting = self.worker.pool.connect(wanted);
        let connected = match self.until(now) {
            Some(until) => self.timer.within(until, connecting).await,
            None => Ok(connecting.await),
        };
        let (result, error) = match connected {
            Ok(Ok(connection)) => {
                let connect = self.within();
                if self.clock.mode == Mode::Shadow && connect.is_some_and(|connect| now.elapsed() > connect) {
                    connects.rejected(Reason::ConnectError, Effect::Shadowed).inc();
                }
                connects.connects(ConnectResult::Ok).inc();
                return Ok(connection);
            }
            Ok(Err(ConnectError::TooMany)) => return Err(self.refused(&ConnectError::TooMany)),
            Ok(Err(error)) => (error.result(), self.refused(&error)),
            Err(_) => (ConnectResult::Timeout, self.cut()),
        };
        connects.connects(result).inc();
        Err(error)
    }

    fn within(&self) -> Option<Duration> {
        self.clock.connect.into_iter().chain(self.clock.attempt).min()
    }

    /// Until when a connect that begins at `now` may take.
    fn until(&self, now: Instant) -> Option<Instant> {
        let until = self.clock.cuts(self.within().map(|connect| now + connect));
        until.into_iter().chain(self.clock.end()).min()
    }

    /// Which time cut a connect short.
    fn cut(&self) -> Error {
        match self.clock.over(Instant::now()) {
            Some(reason) => reason.into(),
            None if self.clock.attempt < self.clock.connect => Reason::AttemptTimeout.into(),
            None => Error::new(Reason::ConnectError, CONNECT_TIMEOUT),
        }
    }

    /// Why there is no connection.
    fn refused(&self, error: &ConnectError) -> Error {
        let label = &self.endpoint.label;
        match error {
            ConnectError::TooMany => {
                self.worker.shared.metrics.limit_reached(Limit::UpstreamConnections).inc();
                Error::new(Reason::ConcurrencyLimited, "connections.max is reached")
            }
            ConnectError::Io(error) => Error::new(Reason::ConnectError, format!("{label}: {error}")),
            ConnectError::Tls(why) => Error::new(Reason::TlsError, format!("{label}: {why}")),
        }
    }
}

/// Nothing has been sent.
fn unsent(error: Error) -> Unanswered {
    Unanswered { unprocessed: true, ..Unanswered::of(error, false) }
}
