//! Connections to an admin address, each bounded in size and time.
//!
//! However slow or silent a client is, it holds one of 64 places for five minutes at most, and for half a minute
//! without progress; where all are taken the oldest makes room, so that the probes of an orchestrator always find a
//! place at once.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::control::Control;
use super::endpoints::{Site, broken_body, max_body_bytes};
use super::guard::{Guard, Scope};

/// How many connections an address has at once; one more, and the oldest ends.
const MAX_CONNECTIONS: usize = 64;

/// How large a request's head may be.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// How many fields it may have.
const MAX_HEADERS: usize = 64;

/// How long a client may take for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a request's head.
    pub(super) header: Duration,
    /// For a request's body.
    pub(super) body: Duration,
    /// Without a byte in either direction.
    pub(super) stall: Duration,
    /// For all it does on a connection. One that is busy by then is told to come anew.
    pub(super) age: Duration,
}

/// What everybody gets.
pub(super) const PATIENCE: Patience = Patience {
    header: Duration::from_secs(10),
    body: Duration::from_secs(5),
    stall: Duration::from_secs(30),
    age: Duration::from_secs(300),
};

/// How long accepting pauses after an error, such as no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves an admin address until dropped; its connections end with it.
pub async fn serve(listener: TcpListener, scope: Scope, token: Option<Arc<str>>, control: Arc<dyn Control>) {
    let guard = match listener.local_addr() {
        Ok(local) => Guard::new(local, token),
        Err(error) => return tracing::error!(%error, "the admin address is gone"),
    };
    serve_site(listener, Arc::new(Site { scope, guard, control }), PATIENCE).await;
}

/// Serves `site` until dropped.
pub(super) async fn serve_site(listener: TcpListener, site: Arc<Site>, patience: Patience) {
    let mut connections = JoinSet::new();
    let mut by_age = VecDeque::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => by_age.retain(|place: &AbortHandle| !place.is_finished()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if by_age.len() == MAX_CONNECTIONS && let Some(oldest) = by_age.pop_front() {
                        site.control.crowded();
                        oldest.abort();
                    }
                    by_age.push_back(connections.spawn(connection(stream, site.clone(), patience)));
                }
                // The client left before it was accepted, or there is no descriptor: the next may fare better.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// One connection's life. What goes wrong on it is its client's affair.
async fn connection(stream: TcpStream, site: Arc<Site>, patience: Patience) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(site.clone(), request, patience.body));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.header)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Impatient::new(stream, patience.stall)), service);
    let mut serving = std::pin::pin!(serving);
    if timeout(patience.age, serving.as_mut()).await.is_err() {
        serving.as_mut().graceful_shutdown();
        let _ = timeout(patience.stall, serving).await;
    }
}

async fn answer(
    site: Arc<Site>,
    request: Request<Incoming>,
    body_timeout: Duration,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let max = max_body_bytes(&head);
    let too_large = || {
        let why = format!("a request's body has at most {} KiB here", max >> 10);
        broken_body(StatusCode::PAYLOAD_TOO_LARGE, &why)
    };
    if body.size_hint().lower() > max as u64 {
        return Ok(too_large());
    }
    Ok(match timeout(body_timeout, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => site.answer(&head, &body.to_bytes()).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => too_large(),
        Ok(Err(_)) => broken_body(StatusCode::BAD_REQUEST, "the request's body is broken"),
        Err(_) => broken_body(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time"),
    })
}

/// A connection that breaks off after some time without a byte in either direction.
struct Impatient {
    stream: TcpStream,
    timeout: Duration,
    stalled: Pin<Box<Sleep>>,
}

impl Impatient {
    fn new(stream: TcpStream, timeout: Duration) -> Self {
        Self { stream, timeout, stalled: Box::pin(sleep(timeout)) }
    }

    /// What `poll` came to, or an error if nothing has moved for too long.
    fn check<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            let deadline = Instant::now() + self.timeout;
            self.stalled.as_mut().reset(deadline);
            return poll;
        }
        ready!(self.stalled.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.check(cx, poll)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
