//! Asks an endpoint how it is: one connection, one question, one answer.
//!
//! Each check makes a connection of its own: what it finds out includes that connections can be made. Off the workers,
//! so hyper speaks here. The two messages of `grpc.health.v1` are so small that they are written by hand.
//! Not here: when to ask and what follows (`health`).

use std::future::Future;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;

use super::connect;
use super::endpoint::Endpoint;
use super::health::{Kind, Settings};
use crate::transport::Transport;
use crate::transport::proxy_protocol::Introduction;

/// The answer to a gRPC check is a few bytes; more is no answer.
const MAX_MESSAGE: usize = 1024;

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// HTTP/2 where nothing was agreed on by ALPN.
    pub http2: bool,
    /// What a connection begins with.
    pub introduction: Option<Introduction>,
}

/// Asks `endpoint`.
///
/// # Errors
/// Why it does not pass, in words.
pub async fn check(endpoint: &Endpoint, settings: &Settings, manner: Manner) -> Result<(), String> {
    let limit = *settings.timeout;
    tokio::time::timeout(limit, ask(endpoint, settings, manner))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}", settings.timeout)))
}

async fn ask(endpoint: &Endpoint, settings: &Settings, manner: Manner) -> Result<(), String> {
    let stream = connect(endpoint, settings, manner.introduction).await?;
    let http2 = stream.protocol().map_or(manner.http2, |agreed| agreed == b"h2");
    let scheme = if endpoint.tls.is_some() { "https" } else { "http" };
    let host = settings.host.as_deref().unwrap_or(&endpoint.host);
    let url = |path: &str| format!("{scheme}://{host}{path}");
    match settings.kind {
        Kind::Tcp => Ok(()),
        Kind::Http => {
            let request = if http2 {
                Request::get(url(&settings.path))
            } else {
                Request::get(&settings.path).header("host", host)
            };
            let request = request.header("user-agent", "outrigger-health").body(Full::default());
            let request = request.map_err(|error| error.to_string())?;
            let read = |response: Response<Incoming>| async move { Ok(response.status().as_u16()) };
            let status = if http2 {
                over_http2(stream, request, read).await?
            } else {
                over_http1(stream, request, read).await?
            };
            if settings.passes(status) { Ok(()) } else { Err(format!("status {status}")) }
        }
        Kind::Grpc => {
            let request = Request::post(url("/grpc.health.v1.Health/Check"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("user-agent", "outrigger-health")
                .body(Full::new(question(&settings.service)));
            over_http2(stream, request.map_err(|error| error.to_string())?, answer).await
        }
    }
}

async fn connect(
    endpoint: &Endpoint,
    settings: &Settings,
    introduction: Option<Introduction>,
) -> Result<Transport, String> {
    let in_words = |error| format!("cannot connect: {error}");
    let mut stream = connect::open(endpoint, *settings.timeout).await.map_err(in_words)?;
    if let Some(introduction) = introduction {
        let mut header = Vec::new();
        introduction.write(&mut header);
        stream.write_all(&header).await.map_err(in_words)?;
    }
    match &endpoint.tls {
        Some(tls) => tls.connect(endpoint.id, endpoint.server_name(), stream, false).await,
        None => Ok(stream),
    }
}

/// Sends `request` and gives what `read` makes of the answer.
async fn over_http1<T, F: Future<Output = Result<T, String>>>(
    stream: Transport,
    request: Request<Full<Bytes>>,
    read: impl FnOnce(Response<Incoming>) -> F,
) -> Result<T, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(in_words)?;
    let exchange = async { read(sender.send_request(request).await.map_err(in_words)?).await };
    drive(connection, exchange).await
}

async fn over_http2<T, F: Future<Output = Result<T, String>>>(
    stream: Transport,
    request: Request<Full<Bytes>>,
    read: impl FnOnce(Response<Incoming>) -> F,
) -> Result<T, String> {
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(in_words)?;
    let exchange = async { read(sender.send_request(request).await.map_err(in_words)?).await };
    drive(connection, exchange).await
}

/// Runs the connection for as long as the exchange takes.
async fn drive<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    exchange: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // What has come before the connection ended is still to be read.
        _ = &mut connection => exchange.await,
    }
}

fn in_words(error: hyper::Error) -> String {
    let source = std::error::Error::source(&error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// `HealthCheckRequest { service = 1 }` with gRPC's prefix.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a); // field 1, length-delimited
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Reads `HealthCheckResponse { status = 1 }` and the trailers behind it.
async fn answer(response: Response<Incoming>) -> Result<(), String> {
    if response.status() != 200 {
        return Err(format!("status {}", response.status().as_u16()));
    }
    // Trailers-Only: the status stands in the head.
    if let Some(status) = response.headers().get("grpc-status")
        && status != "0"
    {
        return Err(refused(response.headers()));
    }
    let whole = collect(response.into_body()).await?;
    let status =
        whole.trailers().filter(|trailers| trailers.get("grpc-status").is_some_and(|status| status != "0"));
    if let Some(trailers) = status {
        return Err(refused(trailers));
    }
    let body = whole.to_bytes();
    let message = body.get(5..).filter(|_| body[0] == 0).ok_or("its answer holds no message")?;
    match serving_status(message) {
        Some(1) => Ok(()),
        Some(2) => Err("it says NOT_SERVING".to_owned()),
        Some(3) => Err("it says SERVICE_UNKNOWN".to_owned()),
        _ => Err("it does not say that it serves".to_owned()),
    }
}

async fn collect<B: Body<Data = Bytes>>(body: B) -> Result<http_body_util::Collected<Bytes>, String>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Limited::new(body, MAX_MESSAGE).collect().await.map_err(|error| error.to_string())
}

fn refused(fields: &http::HeaderMap) -> String {
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    format!("grpc-status {} {}", text("grpc-status"), text("grpc-message")).trim_end().to_owned()
}

/// The varint of field 1; 0 where it is left out. None where the message is none.
fn serving_status(message: &[u8]) -> Option<u64> {
    let (mut status, mut rest) = (0, message);
    while let Some((&key, after)) = rest.split_first() {
        // Only varints are known here (wire type 0).
        if key & 7 != 0 {
            return None;
        }
        let length = after.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let value = after.get(..length).filter(|bytes| bytes.len() <= 9)?;
        let value = value.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f));
        if key >> 3 == 1 {
            status = value;
        }
        rest = &after[length..];
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_names_the_service() {
        assert_eq!(question("")[..], [0, 0, 0, 0, 0], "the server as a whole");
        assert_eq!(question("a.B")[..], *b"\0\0\0\0\x05\x0a\x03a.B");
        let long = question(&"s".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn the_answer_is_a_varint() {
        let cases: [(&str, &[u8], Option<u64>); 6] = [
            ("left out: UNKNOWN", b"", Some(0)),
            ("SERVING", b"\x08\x01", Some(1)),
            ("NOT_SERVING", b"\x08\x02", Some(2)),
            ("a field that is not known, and two bytes", b"\x10\x05\x08\xac\x02", Some(300)),
            ("cut off", b"\x08", None),
            ("no varint", b"\x0a\x01a", None),
        ];
        for (why, message, status) in cases {
            assert_eq!(serving_status(message), status, "{why}");
        }
    }
}
