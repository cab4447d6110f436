//! One connection of a client: in TLS or not, HTTP/1 or HTTP/2, as the handshake or its first bytes say.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;

use super::client::Client;
use super::context::Peer;
use super::listener::Protocol;
use super::worker::Worker;
use super::{http1, http2};
use crate::http1::connection::Connection;
use crate::telemetry::metrics::{HandshakeResult, Limit, ListenerMetrics, Refused};
use crate::timer::Timer;
use crate::tls::server::{Accepted, Denied, Server};
use crate::transport::proxy_protocol::{self, Ends, Parsed, Refusal, Said};
use crate::transport::{Transport, UNIX_PEER};

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Counts a connection, until dropped.
struct Counted(Arc<ListenerMetrics>);

/// Serves a client's connection to its end. The listener is looked up by its name for every request, so a reload
/// counts from the next request on; where it is gone, or would not let this connection in any more, the connection ends
/// with the request at hand.
pub async fn serve(worker: Rc<Worker>, mut stream: Transport, peer: SocketAddr, listener: Arc<str>) {
    let snapshot = worker.snapshot();
    let Some(index) = snapshot.listener(&listener) else { return };
    let settings = &snapshot.listener_at(index).settings;
    let protocol = settings.protocol;
    let idle_timeout = *settings.limits.idle_timeout;
    let header_timeout = *settings.limits.header_timeout;
    let metrics = Arc::clone(&snapshot.listener_at(index).metrics);
    let tls = snapshot.listener_at(index).tls.clone();
    let entrance = snapshot.listener_at(index).entrance;
    let _counted = Counted::begin(Arc::clone(&metrics));
    // Without its own address the connection is gone already.
    let Ok(local) = stream.local_addr() else { return };
    let mut ends = Ends { client: peer, local };
    if settings.proxy_protocol {
        let until = Instant::now() + header_timeout;
        // Boxed: it is over before anything is served, and an idle connection shall be small.
        let introduction = Box::pin(introduction(&mut stream, ends));
        let introduced = worker.timer().within(until, introduction).await;
        match introduced.unwrap_or(Err(Some(Refused::ProxyProtocolTimeout))) {
            Ok(introduced) => ends = introduced,
            Err(refused) => {
                if let Some(refused) = refused {
                    metrics.refused(refused).inc();
                    tracing::debug!(%listener, client = %peer, reason = refused.label(), "connection closed");
                }
                return;
            }
        }
    }
    let peer = Peer { peer: ends.client, local: ends.local, tls: tls.is_some(), listener, entrance };
    let stream = match tls {
        None => stream,
        Some(tls) => {
            let handshake = Handshake { tls: &tls, metrics: &metrics, peer: &peer };
            // Boxed: it is large, and an idle connection shall be small.
            match Box::pin(handshake.run(stream, &worker.timer(), header_timeout)).await {
                Some(stream) => stream,
                None => return,
            }
        }
    };
    let is_settled = stream.protocol().map(|protocol| protocol == b"h2");
    let mut connection = Connection::new(stream, Rc::clone(&worker.buffers));
    let is_http2 = match (protocol, is_settled) {
        (Protocol::Http1, _) => false,
        (Protocol::Http2, _) => true,
        (Protocol::Auto, Some(is_http2)) => is_http2,
        (Protocol::Auto, None) => {
            let timer = worker.timer();
            timer.arm(Instant::now() + idle_timeout);
            match tell(&mut connection, &timer, header_timeout).await {
                Some(is_http2) => is_http2,
                None if connection.has_ended() => return,
                None => {
                    worker.shared.metrics.limit_reached(Limit::IdleTimeout).inc();
                    return;
                }
            }
        }
    };
    if is_http2 {
        Box::pin(http2::serve(worker, connection, peer)).await;
    } else {
        // Shared from here on: given by value, it would stand in the idle task a second time.
        http1::serve(&worker, Rc::new(Client::new(connection)), &peer, snapshot).await;
    }
}

/// Whose connection it is, as its PROXY header says; `ends` are its own. Reads the header and nothing behind it.
///
/// # Errors
/// Why it is to be closed; nothing where its client has left without a word (who watches whether a port is open).
async fn introduction(stream: &mut Transport, ends: Ends) -> Result<Ends, Option<Refused>> {
    let mut header = Vec::new();
    loop {
        let more = match proxy_protocol::parse(&header) {
            Ok(Parsed::Partial { more }) => more,
            Ok(Parsed::Header { said: Said::Nothing, .. }) => return Ok(ends),
            Ok(Parsed::Header { said: Said::Ends(said), .. }) => return Ok(said),
            Ok(Parsed::Header { said: Said::Unix, .. }) => {
                return Ok(Ends { client: UNIX_PEER, local: UNIX_PEER });
            }
            Err(Refusal::Missing) => return Err(Some(Refused::ProxyProtocolMissing)),
            Err(Refusal::Malformed) => return Err(Some(Refused::ProxyProtocolMalformed)),
        };
        match stream.take(more as u64).read_buf(&mut header).await {
            Ok(1..) => {}
            _ if header.is_empty() => return Err(None),
            _ => return Err(Some(Refused::ProxyProtocolMalformed)),
        }
    }
}

/// What a client's handshake is made with.
struct Handshake<'a> {
    tls: &'a Server,
    metrics: &'a ListenerMetrics,
    peer: &'a Peer,
}

impl Handshake<'_> {
    /// TLS over `stream`; none if the client does not come in. How often that happens is a metric; which client it was,
    /// and why, is worth a line only to who asks for all: anybody could fill the log.
    async fn run(self, stream: Transport, timer: &Timer, timeout: Duration) -> Option<Transport> {
        let accepted = timer.within(Instant::now() + timeout, self.tls.accept(stream)).await;
        let (result, why) = match accepted {
            Ok(Ok(Accepted { stream, resumed })) => {
                self.metrics.handshake(if resumed { HandshakeResult::Resumed } else { HandshakeResult::Ok });
                return Some(stream);
            }
            Ok(Err(Denied::Failed(why))) => (HandshakeResult::Error, why),
            Ok(Err(Denied::Left)) => (HandshakeResult::Left, "the client left".to_owned()),
            Err(_) => (HandshakeResult::Timeout, "limits.header_timeout passed".to_owned()),
        };
        self.metrics.handshake(result);
        let Peer { peer, listener, .. } = self.peer;
        tracing::debug!(listener = &**listener, client = %peer, "TLS handshake failed: {why}");
        None
    }
}

/// Whether the client speaks HTTP/2; none if it left, or `timer` ended, before it said anything.
async fn tell(connection: &mut Connection, timer: &Timer, header_timeout: Duration) -> Option<bool> {
    let mut has_begun = false;
    poll_fn(|cx| {
        loop {
            let input = connection.input();
            if input.len() >= PREFACE.len() || !PREFACE.starts_with(input) {
                return Poll::Ready(Some(input.starts_with(PREFACE)));
            }
            if !input.is_empty() && !std::mem::replace(&mut has_begun, true) {
                timer.arm(Instant::now() + header_timeout);
            }
            match connection.poll_fill(cx, PREFACE.len()) {
                Poll::Ready(Ok(size)) if size > 0 => {}
                Poll::Ready(_) if connection.input().is_empty() => return Poll::Ready(None),
                // Something else that is cut short: HTTP/1 knows what to say to it.
                Poll::Ready(_) => return Poll::Ready(Some(false)),
                // A beginning that goes no further is HTTP/1's affair too.
                Poll::Pending => return timer.poll(cx).map(|()| has_begun.then_some(false)),
            }
        }
    })
    .await
}

impl Counted {
    fn begin(metrics: Arc<ListenerMetrics>) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
