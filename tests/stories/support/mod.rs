//! What the stories are told with: the real binary on loopback, upstreams that do exactly what they are told
//! (also exactly wrong), and clients that see every byte.
//!
//! Nothing waits by sleeping: everything is a condition with a bound, [`PATIENCE`].

pub mod certificates;
pub mod client;
pub mod config;
pub mod dns;
pub mod endpoints;
pub mod http2;
pub mod http2_upstream;
pub mod metrics;
pub mod proxy;
pub mod python;
pub mod replica;
pub mod servers;
pub mod tls;
pub mod unix;
pub mod upstream;

use std::time::Duration;

pub use client::{Client, Response, get};
pub use config::Config;
pub use dns::Dns;
pub use metrics::Metrics;
pub use proxy::Proxy;
pub use upstream::Upstream;

/// How long a condition may take that holds at once on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Asks until `holds` says yes; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn eventually<'a>(
    what: &'a str,
    mut holds: impl AsyncFnMut() -> bool + 'a,
) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let start = std::time::Instant::now();
        while !holds().await {
            assert!(start.elapsed() < PATIENCE, "{place}: not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Waits for `future`; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn soon<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{place}: not within {PATIENCE:?}: {what}"),
        }
    }
}

/// A port of loopback that is free now. Only for what cannot be told its port otherwise: somebody may take it.
pub fn free_address() -> std::net::SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound")
}

/// The place of `needle` in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

/// Fields of a head as text, in their order, names in lower case. `lines` holds no start line.
pub fn fields(lines: &str) -> Vec<(String, String)> {
    let fields = lines.split("\r\n").filter(|line| !line.is_empty());
    fields
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect()
}

/// The first value of `name` among `fields`.
pub fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// What could be read of a chunked body: payload, trailers, and how many bytes it took if it is whole.
pub struct Chunked {
    /// The data of all chunks that came.
    pub payload: Vec<u8>,
    /// The fields behind the last chunk.
    pub trailers: Vec<(String, String)>,
    /// Its length on the wire, once the end has come.
    pub length: Option<usize>,
}

/// Reads a chunked body from the start of `input`; a broken one is simply never whole.
pub fn dechunk(input: &[u8]) -> Chunked {
    let mut chunked = Chunked { payload: Vec::new(), trailers: Vec::new(), length: None };
    let mut at = 0;
    while let Some(line) = find(&input[at..], b"\r\n") {
        let size = String::from_utf8_lossy(&input[at..at + line]).into_owned();
        let size = size.split(';').next().unwrap_or_default().to_owned();
        let Ok(size) = usize::from_str_radix(&size, 16) else { break };
        at += line + 2;
        if size == 0 {
            if input[at..].starts_with(b"\r\n") {
                chunked.length = Some(at + 2);
            } else if let Some(end) = find(&input[at..], b"\r\n\r\n") {
                chunked.trailers = fields(&String::from_utf8_lossy(&input[at..at + end]));
                chunked.length = Some(at + end + 4);
            }
            break;
        }
        let there = size.min(input.len() - at);
        chunked.payload.extend_from_slice(&input[at..at + there]);
        if !input[at + there..].starts_with(b"\r\n") {
            break;
        }
        at += size + 2;
    }
    chunked
}
