//! HTTP/2 with prior knowledge: hyper's client, and a raw one that can say what hyper's would not.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::soon;

/// The body of a request: in one piece, or as a story sends it.
pub type RequestBody = http_body_util::Either<Full<Bytes>, Fed>;

/// One connection. Clones share it.
#[derive(Clone)]
pub struct Http2 {
    sender: hyper::client::conn::http2::SendRequest<RequestBody>,
    authority: String,
}

/// A body that grows while the story sends its frames; dropped, it ends.
pub struct Fed(mpsc::Receiver<Frame<Bytes>>);

/// A response, read to its end.
pub struct Whole {
    /// Status and fields.
    pub head: http::response::Parts,
    /// The payload.
    pub body: Bytes,
    /// The trailers, if any.
    pub trailers: Option<http::HeaderMap>,
}

impl Http2 {
    /// A connection to `address`.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.expect("connects");
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) =
            soon("the handshake", builder.handshake(TokioIo::new(stream))).await.expect("speaks HTTP/2");
        // Its end shows in the requests.
        tokio::spawn(async { drop(connection.await) });
        Self { sender, authority: "app.test".to_owned() }
    }

    /// A request head for `path`, to which a story adds what it needs.
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        http::Request::builder().method(method).uri(format!("http://{}{path}", self.authority))
    }

    /// Sends a request; its response's body is still coming.
    pub async fn send(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> hyper::Result<http::Response<Incoming>> {
        soon("the connection takes requests", self.sender.ready()).await?;
        soon("a response", self.sender.send_request(request)).await
    }

    /// A request with a whole body, and its whole response.
    pub async fn exchange(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> Whole {
        let request = request.body(RequestBody::Left(Full::new(body.into()))).expect("a request");
        let response = self.send(request).await.expect("a response");
        read(response).await.expect("a whole response")
    }

    /// A GET and its whole response.
    pub async fn get(&mut self, path: &str) -> Whole {
        let request = self.request("GET", path);
        self.exchange(request, "").await
    }
}

/// A body for [`Http2::send`] and the end to feed it from.
pub fn fed() -> (mpsc::Sender<Frame<Bytes>>, RequestBody) {
    let (sender, receiver) = mpsc::channel(4);
    (sender, RequestBody::Right(Fed(receiver)))
}

/// Reads a response to its end.
pub async fn read(response: http::Response<Incoming>) -> hyper::Result<Whole> {
    let (head, body) = response.into_parts();
    let collected = soon("the whole body", body.collect()).await?;
    let trailers = collected.trailers().cloned();
    Ok(Whole { head, body: collected.to_bytes(), trailers })
}

impl Whole {
    /// The first value of the field `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The reason of Outrigger's own answer.
    pub fn reason(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        problem["reason"].as_str().map(str::to_owned)
    }
}

impl Body for Fed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// A client that writes its frames by hand: fields go out as they are, uncompressed.
pub struct RawHttp2 {
    stream: TcpStream,
    input: Vec<u8>,
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// Its type (RFC 9113 §6).
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it holds.
    pub payload: Vec<u8>,
}

/// What came for a stream, or for all.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// A head; its fields stay packed.
    Head,
    /// The stream was reset.
    Reset,
    /// GOAWAY, or the end of the connection.
    Over,
}

impl RawHttp2 {
    /// A connection to `address`, the preface and empty settings sent.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.expect("connects");
        stream.set_nodelay(true).expect("TCP has the option");
        let mut client = Self { stream, input: Vec::new() };
        client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client.frame(4, 0, 0, &[]).await;
        client
    }

    /// Sends HEADERS that end their head, and the stream too unless a body follows.
    pub async fn headers(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) {
        self.frame(1, if ends { 0x5 } else { 0x4 }, stream, &raw_head(fields)).await;
    }

    /// Sends DATA that ends the stream.
    pub async fn data(&mut self, stream: u32, data: &[u8]) {
        self.frame(0, 0x1, stream, data).await;
    }

    /// Resets a stream: CANCEL.
    pub async fn cancel(&mut self, stream: u32) {
        self.frame(3, 0, stream, &8u32.to_be_bytes()).await;
    }

    /// Sends HEADERS whose block goes on without an end, in so many CONTINUATION frames.
    pub async fn endless_headers(&mut self, stream: u32, frames: usize) {
        self.frame(1, 0, stream, &[]).await;
        let block: Vec<u8> = b"\0\x01x\x7f\x01".iter().copied().chain([b'y'; 128]).collect();
        for _ in 0..frames {
            self.frame(9, 0, stream, &block.repeat(8)).await;
        }
    }

    /// Sends `frame` so often, in large writes.
    pub async fn flood(&mut self, frame: &[u8], times: usize) {
        for _ in 0..times.div_ceil(1000) {
            self.write(&frame.repeat(times.min(1000))).await;
        }
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        // The other side may have closed: what it said is still to be read.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends one frame.
    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&raw_frame(kind, flags, stream, payload)).await;
    }

    /// Waits for what becomes of `stream`.
    pub async fn outcome(&mut self, stream: u32) -> Came {
        loop {
            let Some(frame) = self.next().await else { return Came::Over };
            match frame.kind {
                1 if frame.stream == stream => return Came::Head,
                3 if frame.stream == stream => return Came::Reset,
                7 => return Came::Over,
                _ => {}
            }
        }
    }

    /// Waits for GOAWAY: the last stream and the code; none if the connection ended without.
    pub async fn goaway(&mut self) -> Option<(u32, u32)> {
        let frame = self.until(|frame| frame.kind == 7).await?;
        Some((frame.number(0) & 0x7fff_ffff, frame.number(4)))
    }

    /// Waits for the code with which `stream` is reset; none if the connection ended without.
    pub async fn reset_code(&mut self, stream: u32) -> Option<u32> {
        let frame = self.until(|frame| frame.kind == 3 && frame.stream == stream).await?;
        Some(frame.number(0))
    }

    /// Waits for such a frame; none if the connection ended without.
    pub async fn until(&mut self, is_it: impl Fn(&RawFrame) -> bool) -> Option<RawFrame> {
        loop {
            let frame = self.next().await?;
            if is_it(&frame) {
                return Some(frame);
            }
        }
    }

    /// The next frame; settings are acknowledged.
    pub async fn next(&mut self) -> Option<RawFrame> {
        let frame = soon("a frame", self.read_frame()).await?;
        if frame.kind == 4 && frame.flags & 1 == 0 {
            self.frame(4, 1, 0, &[]).await;
        }
        Some(frame)
    }

    async fn read_frame(&mut self) -> Option<RawFrame> {
        loop {
            if let [a, b, c, kind, flags, rest @ ..] = self.input.as_slice() {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if rest.len() >= 4 + length {
                    let stream = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) & 0x7fff_ffff;
                    let payload = rest[4..4 + length].to_vec();
                    let frame = RawFrame { kind: *kind, flags: *flags, stream, payload };
                    self.input.drain(..9 + length);
                    return Some(frame);
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

impl RawFrame {
    /// The number at `place` of the payload.
    pub fn number(&self, place: usize) -> u32 {
        self.payload[place..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).expect("four bytes")
    }
}

/// A frame as it goes over the wire.
pub fn raw_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A head, packed: nothing is indexed, nothing Huffman-coded (RFC 7541 §6.2.2).
pub fn raw_head<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
            block.extend_from_slice(text);
        }
    }
    block
}
