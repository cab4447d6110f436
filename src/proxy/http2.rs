//! HTTP/2 clients, by h2: each stream becomes a request of the one kind that the path knows.
//!
//! One task for a connection: it reads and writes by h2 ([`line`](mod@line)), and polls the streams' exchanges
//! ([`stream`], [`tasks`]). In turns: the streams that are ready, then h2, which sends what they came to and brings what
//! has come, then one write. Below h2 a guard counts what moves no request forward ([`guard`]).
//!
//! Rejected: hyper's server, which is h2 with a task and a body type for each stream above it: it sends no interim
//! answers, sees no client that does not read, and its bounds end connections of well-meaning clients (30 streams that
//! are begun and reset in one go) without a word why.
//!
//! Extended CONNECT (RFC 8441) is not offered, so h2 resets requests with `:protocol`.

pub mod guard;
pub mod head;
pub mod line;
pub mod stream;
pub mod tasks;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Request;

use self::line::{HANDED, Line, Wire};
use self::stream::Streams;
use self::tasks::Tasks;
use super::context::Peer;
use super::life::Stage;
use super::listener::Limits;
use super::worker::Worker;
use crate::http1::connection::Connection;
use crate::telemetry::metrics::Limit;
use crate::timer::Timer;

/// Room that h2 is given above our own bound on heads, which answers with a reason where h2's would not.
const HEADER_ROOM: u32 = 64 << 10;
/// What a client may send of one body that nobody has read yet. Half of it brings a WINDOW_UPDATE.
const STREAM_WINDOW: u32 = 256 << 10;
/// What a client may send of all bodies that nobody has read yet. The bound on the memory that uploads of one
/// connection take, and four uploads that stand still stop the others.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// DATA frames with next to nothing in them that may wait for their reader, each counted as 256 bytes: some 32,000 small
/// messages of a gRPC stream whose upstream does not read for a moment. h2 takes a hundred bytes for each.
const SMALL_FRAMES: usize = 8 << 20;
/// Streams that a client may begin and reset before any of them is looked at. h2's default of 20 ends the connection of
/// a client that gives up on 30 calls at once.
const RESET_AT_ONCE: usize = 1024;
/// Streams that we have reset whose late frames are ignored, and for how long; beyond it each is answered.
const RESET_REMEMBERED: usize = 256;
const RESET_REMEMBERED_FOR: Duration = Duration::from_secs(5);
/// How often a connection is looked after, at least.
const LOOK: Duration = Duration::from_secs(15);
/// After so many looks without anything from a connection with open streams it is asked whether it is still there: 30
/// to 45 seconds of silence.
const QUIET_LOOKS: u32 = 2;
/// How long the answer to such a PING may take.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is written when all its streams have ended; open ones have bounds of
/// their own.
const TAKES_WITHIN: Duration = Duration::from_secs(30);
/// How long a connection lives on behind its last word: the end of its GOAWAY, or of its last stream behind one.
const GOODBYE: Duration = Duration::from_secs(1);
/// Turns of the streams in one turn of the connection, so that a busy one does not keep the worker for itself.
const TURNS: usize = 16;

/// Serves one connection to its end.
pub async fn serve(worker: Rc<Worker>, connection: Connection, peer: Peer) {
    let snapshot = worker.snapshot();
    let Some(index) = peer.listener_in(&snapshot) else { return };
    let limits = snapshot.listener_at(index).settings.limits;
    let line = Line::new(connection, Arc::clone(&worker.shared), Instant::now());
    let timer = worker.timer();
    let Some(mut h2) = Box::pin(greet(&worker, &line, &timer, &limits)).await else { return };
    let client = peer.peer;
    let tasks = Tasks::default();
    let mut server = Server {
        waker: tasks.connection_waker(),
        tasks,
        begin: stream::serve,
        pings: h2.ping_pong(),
        h2,
        streams: Rc::new(Streams::new(Rc::clone(&worker), peer, Rc::clone(&line), (snapshot, index))),
        line,
        timer,
        limits,
        client,
        worker,
        next_look: None,
        head_until: None,
        quiet_looks: 0,
        ending: Ending::No,
    };
    poll_fn(|cx| server.poll(cx)).await;
}

/// A connection behind its handshake. `S` begins a stream, which is an `F`.
struct Server<S, F> {
    worker: Rc<Worker>,
    line: Rc<Line>,
    h2: h2::server::Connection<Wire, Bytes>,
    streams: Rc<Streams>,
    tasks: Tasks<F>,
    begin: S,
    /// Wakes `h2`.
    waker: Waker,
    pings: Option<PingPong>,
    timer: Timer,
    limits: Limits,
    client: SocketAddr,
    /// When the timer ends.
    next_look: Option<Instant>,
    /// When the head that is coming must be complete.
    head_until: Option<Instant>,
    /// Looks since which nothing has come, while streams were open.
    quiet_looks: u32,
    ending: Ending,
}

/// Whether the connection is on its way out.
#[derive(Clone, Copy)]
enum Ending {
    No,
    /// Since then: the client has been told to begin no more streams.
    Leaving(Instant),
    /// All is said; it is over then at the latest.
    Over(Instant),
}

impl<S, F> Server<S, F>
where
    S: Fn(Rc<Streams>, Request<RecvStream>, SendResponse<Bytes>) -> F,
    F: Future<Output = ()>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.tasks.begin(cx);
        for _ in 0..TURNS {
            if self.tasks.turn(self.worker.shared.metrics.panics()) && self.poll_connection().is_ready() {
                return Poll::Ready(());
            }
            if self.tasks.sleep() {
                return self.look(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads and writes. Ready when the connection is over.
    fn poll_connection(&mut self) -> Poll<()> {
        let cx = &mut Context::from_waker(&self.waker);
        let is_over = loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let streams = Rc::clone(&self.streams);
                    self.tasks.start((self.begin)(streams, request, respond));
                }
                // How a client breaks off is its own affair.
                Poll::Ready(_) => break true,
                Poll::Pending => break false,
            }
        };
        self.judge();
        if is_over {
            return Poll::Ready(());
        }
        match self.line.poll_flush(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(Ok(true)) => self.waker.wake_by_ref(),
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(false)) | Poll::Pending => {}
        }
        if self.line.lingers() && !matches!(self.ending, Ending::Over(_)) {
            self.over_soon();
        }
        Poll::Pending
    }

    /// Ends the connection if the guard says so.
    fn judge(&mut self) {
        let Some(verdict) = self.line.verdict() else { return };
        if matches!(self.ending, Ending::Over(_)) {
            return;
        }
        self.count(verdict.limit);
        if !verdict.is_told {
            self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.waker.wake_by_ref();
        }
        self.over_soon();
    }

    /// Looks after everything that is not a stream's own affair, before the connection sleeps.
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_idle = self.streams.open() == 0;
        if is_idle {
            self.tasks.rest();
        }
        if matches!(self.ending, Ending::No)
            && (self.worker.shared.life.stage() != Stage::Serving || self.streams.is_gone(is_idle))
        {
            self.leave();
        }
        match (self.line.is_within_head(), self.head_until) {
            (true, None) => {
                let until = Instant::now() + *self.limits.header_timeout;
                self.head_until = Some(until);
                self.look_at(until);
            }
            (false, Some(_)) => self.head_until = None,
            _ => {}
        }
        if is_idle {
            self.look_at(self.idle_until());
        }
        if self.next_look.is_none() {
            self.look_at(Instant::now() + LOOK);
        }
        while self.timer.poll(cx).is_ready() {
            self.next_look = None;
            let now = Instant::now();
            if self.look_around(now).is_ready() {
                return Poll::Ready(());
            }
            self.look_at(now + LOOK);
        }
        Poll::Pending
    }

    /// What the clock brings. Ready when the connection is over.
    fn look_around(&mut self, now: Instant) -> Poll<()> {
        if let Ending::Over(at) = self.ending {
            if at <= now {
                return Poll::Ready(());
            }
            self.look_at(at);
            return Poll::Pending;
        }
        let is_blocked = self.line.is_blocked();
        match self.head_until {
            // Nothing more of it is read while the client takes nothing.
            Some(until) if until <= now && is_blocked => self.head_until = None,
            Some(until) if until <= now => {
                self.count(Limit::HeaderTimeout);
                self.end(Reason::ENHANCE_YOUR_CALM);
                return Poll::Pending;
            }
            Some(until) => self.look_at(until),
            None => {}
        }
        let (has_heard, has_taken) = (self.line.has_heard(), self.line.has_taken());
        if self.streams.open() == 0 {
            let since = self.streams.idle_since();
            if is_blocked && !has_taken && now.saturating_duration_since(since) >= TAKES_WITHIN {
                self.count(Limit::Http2WriteTimeout);
                return Poll::Ready(());
            }
            if self.idle_until() <= now {
                if matches!(self.ending, Ending::Leaving(_)) {
                    self.end(Reason::NO_ERROR);
                    return Poll::Pending;
                }
                self.count(Limit::IdleTimeout);
                self.leave();
            }
            self.look_at(self.idle_until());
            return Poll::Pending;
        }
        // Where the socket takes nothing, a stream's own patience ends first, and no PING would be read either.
        if has_heard || is_blocked {
            if self.quiet_looks >= QUIET_LOOKS
                && let Some(pings) = &mut self.pings
            {
                // Makes room for the next one, if it was answered.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
            }
            self.quiet_looks = 0;
            return Poll::Pending;
        }
        self.quiet_looks += 1;
        if self.quiet_looks == QUIET_LOOKS {
            if let Some(pings) = &mut self.pings {
                // It errs where one is on its way already.
                let _ = pings.send_ping(Ping::opaque());
            }
            self.look_at(now + PONG_WITHIN);
        } else if self.quiet_looks > QUIET_LOOKS {
            self.count(Limit::Http2PingTimeout);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Until when the connection, which has no stream, waits for one.
    fn idle_until(&self) -> Instant {
        let since = self.streams.idle_since();
        match self.ending {
            Ending::No => since + *self.limits.idle_timeout,
            Ending::Leaving(at) => since.max(at) + GOODBYE,
            Ending::Over(at) => at,
        }
    }

    /// Looks around at `at`, or before.
    fn look_at(&mut self, at: Instant) {
        if self.next_look.is_none_or(|next| at < next) {
            self.next_look = Some(at);
            self.timer.arm(at);
        }
    }

    /// Lets the streams end, and takes no more: GOAWAY that names none as the last, and after a round trip one that
    /// names the last (RFC 9113 §6.8).
    fn leave(&mut self) {
        self.ending = Ending::Leaving(Instant::now());
        self.h2.graceful_shutdown();
        self.waker.wake_by_ref();
    }

    /// Ends the connection and what streams it has.
    fn end(&mut self, reason: Reason) {
        self.h2.abrupt_shutdown(reason);
        self.waker.wake_by_ref();
        self.over_soon();
    }

    fn over_soon(&mut self) {
        let at = Instant::now() + GOODBYE;
        self.ending = Ending::Over(at);
        self.look_at(at);
    }

    /// A bound was reached, for which the connection ends.
    fn count(&self, limit: Limit) {
        self.worker.shared.metrics.limit_reached(limit).inc();
        tracing::debug!(client = %self.client, what = limit.label(), "a connection of HTTP/2 is ended");
    }
}

/// Reads the client's preface and sends our settings. None: the client left, said something else, or nothing in time.
async fn greet(
    worker: &Worker,
    line: &Rc<Line>,
    timer: &Timer,
    limits: &Limits,
) -> Option<h2::server::Connection<Wire, Bytes>> {
    let max_header_size = limits.max_header_size.bytes() as u32;
    let mut handshake = h2::server::Builder::new()
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(max_header_size.saturating_mul(2).saturating_add(HEADER_ROOM))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(HANDED)
        .data_frame_budget(SMALL_FRAMES)
        .max_pending_accept_reset_streams(RESET_AT_ONCE)
        .max_concurrent_reset_streams(RESET_REMEMBERED)
        .reset_stream_duration(RESET_REMEMBERED_FOR)
        // The guard counts what h2 resets, and forgives it with time.
        .max_local_error_reset_streams(None)
        .handshake(Wire(Rc::clone(line)));
    let mut limit = Limit::IdleTimeout;
    timer.arm(Instant::now() + *limits.idle_timeout);
    poll_fn(|cx| {
        if let Poll::Ready(h2) = Pin::new(&mut handshake).poll(cx) {
            return Poll::Ready(h2.ok());
        }
        if matches!(line.poll_flush(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(None);
        }
        if line.has_begun() && limit != Limit::HeaderTimeout {
            limit = Limit::HeaderTimeout;
            timer.arm(Instant::now() + *limits.header_timeout);
        }
        if timer.poll(cx).is_ready() {
            worker.shared.metrics.limit_reached(limit).inc();
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}
