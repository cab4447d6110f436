//! A plain HTTP client, as a service has it that does nothing against failure: keep-alive connections, round
//! robin over the addresses that it knows, one timeout.
//!
//! Both sides of the demo use it alike: one knows the three replicas, the other Outrigger alone. Like any
//! client library it sends a request again where a kept connection turned out closed before a byte had left;
//! it retries nothing else.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Why a request failed, as its sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The answer was a 5xx.
    Status,
    /// No whole answer within the client's timeout.
    Timeout,
    /// No connection.
    Connect,
    /// The connection ended before the answer was whole.
    Broken,
    /// Too many requests were under way already, so that it was not sent.
    Unsent,
}

impl Failure {
    /// All failures, in the order of their discriminants.
    pub(super) const ALL: [Failure; 5] =
        [Failure::Status, Failure::Timeout, Failure::Connect, Failure::Broken, Failure::Unsent];

    /// The word for it in the view.
    pub(super) fn label(self) -> &'static str {
        match self {
            Failure::Status => "5xx",
            Failure::Timeout => "timeout",
            Failure::Connect => "refused",
            Failure::Broken => "broken off",
            Failure::Unsent => "not sent",
        }
    }
}

/// A connection that can take a request.
type Connection = SendRequest<Full<Bytes>>;

/// A client of one service.
pub(super) struct Client {
    targets: Vec<Target>,
    next: Cell<usize>,
    patience: Duration,
}

/// One address and the idle connections to it; at most as many as requests were under way at once.
struct Target {
    address: SocketAddr,
    idle: RefCell<Vec<Connection>>,
}

impl Client {
    /// A client that balances over `addresses` and waits `patience` for a whole answer.
    pub(super) fn new(addresses: &[SocketAddr], patience: Duration) -> Client {
        let targets =
            addresses.iter().map(|address| Target { address: *address, idle: RefCell::default() }).collect();
        Client { targets, next: Cell::new(0), patience }
    }

    /// Sends one request and reads its whole answer. Within a `LocalSet`.
    pub(super) async fn send(&self, method: Method) -> Result<(), Failure> {
        let turn = self.next.replace(self.next.get() + 1);
        let target = &self.targets[turn % self.targets.len()];
        timeout(self.patience, target.exchange(method)).await.unwrap_or(Err(Failure::Timeout))
    }
}

impl Target {
    async fn exchange(&self, method: Method) -> Result<(), Failure> {
        let mut request = Request::builder()
            .method(&method)
            .uri("/payments/42")
            .header("host", self.address.to_string())
            .body(Full::from(if method == Method::POST { "{\"amount\":42}" } else { "" }))
            .expect("a valid request");
        loop {
            let kept = self.take_idle();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await.map_err(|_| Failure::Connect)?,
            };
            let response = match connection.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // It was closed while it lay idle: not a byte of the request has left.
                    Some(unsent) if is_kept => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(Failure::Broken),
                },
            };
            let is_failed = response.status().is_server_error();
            response.into_body().collect().await.map_err(|_| Failure::Broken)?;
            if connection.ready().await.is_ok() {
                self.idle.borrow_mut().push(connection);
            }
            return if is_failed { Err(Failure::Status) } else { Ok(()) };
        }
    }

    /// The idle connection that was used last, if any is still open.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Connection, Box<dyn std::error::Error>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        // Ends when its sender is dropped, also in the middle of an answer: the client has left.
        tokio::task::spawn_local(driver);
        Ok(connection)
    }
}
