//! Upstreams of HTTP/2: one by the library that does what its script says, and one whose frames a story writes by hand.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{eventually, soon};

/// A listening upstream and what it has seen.
pub struct Http2Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct SeenStream {
    /// The number of its connection, from 0.
    pub connection: usize,
    /// The method.
    pub method: String,
    /// Scheme, authority and path.
    pub uri: String,
    /// All fields in their order.
    pub fields: Vec<(String, String)>,
    /// The payload that came.
    pub body: Vec<u8>,
    /// The fields behind it.
    pub trailers: Vec<(String, String)>,
    /// The end of its message has come.
    pub whole: bool,
    /// The code with which the client reset the stream.
    pub reset: Option<Reason>,
}

impl SeenStream {
    /// The first value of the field `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        super::value(&self.fields, name)
    }
}

struct Shared {
    script: Http2Script,
    seen: Mutex<Vec<SeenStream>>,
    connections: Mutex<(usize, usize)>,
    gate: Semaphore,
}

/// What an upstream will do. Each `answers` and `resets` adds what happens to the next request; the last one repeats.
#[derive(Clone, Default)]
pub struct Http2Script {
    replies: Vec<Reply>,
    max_streams: Option<u32>,
    window: Option<u32>,
}

#[derive(Clone, Default)]
struct Reply {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
    interim: Option<u16>,
    early: bool,
    echoes: bool,
    held_head: bool,
    held_body: bool,
    delay: Duration,
    reset: Option<Reason>,
    reset_behind_body: Option<Reason>,
}

impl Http2Upstream {
    /// The start of a script.
    pub fn that() -> Http2Script {
        Http2Script::default()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that have come.
    pub fn seen(&self) -> usize {
        self.shared.seen.lock().expect("no panic").len()
    }

    /// Request number `index`.
    pub fn request(&self, index: usize) -> SeenStream {
        self.shared.seen.lock().expect("no panic")[index].clone()
    }

    /// Connections that were made.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().expect("no panic").0
    }

    /// Waits until so many requests have come.
    #[track_caller]
    pub fn has_seen(&self, count: usize) -> impl Future<Output = ()> + '_ {
        eventually("the upstream has seen the requests", async move || self.seen() >= count)
    }

    /// Waits until so many connections are open.
    #[track_caller]
    pub fn has_open(&self, count: usize) -> impl Future<Output = ()> + '_ {
        let open = move || self.shared.connections.lock().expect("no panic").1;
        eventually("the upstream has open connections", async move || open() == count)
    }

    /// Lets so many held answers go on.
    pub fn release(&self, count: usize) {
        self.shared.gate.add_permits(count);
    }
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Http2Script {
    fn last(&mut self) -> &mut Reply {
        self.replies.last_mut().expect("an answer stands before")
    }

    fn with(mut self, change: impl FnOnce(&mut Reply)) -> Self {
        change(self.last());
        self
    }

    /// Reads the request and answers.
    pub fn answers(mut self, status: u16) -> Self {
        self.replies.push(Reply { status, ..Reply::default() });
        self
    }

    /// Answers a call of gRPC: a message of `size` bytes, and this status in the trailers.
    pub fn answers_grpc(self, size: usize, status: u8) -> Self {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(size).expect("small").to_be_bytes());
        message.resize(5 + size, b'm');
        self.answers(200)
            .with_field("content-type", "application/grpc")
            .with_body(message)
            .with_trailer("grpc-status", &status.to_string())
    }

    /// Answers a call of gRPC by its status alone.
    pub fn refuses_grpc(self, status: u8) -> Self {
        self.answers(200)
            .with_field("content-type", "application/grpc")
            .with_field("grpc-status", &status.to_string())
    }

    /// Resets the stream without an answer.
    pub fn resets(mut self, reason: Reason) -> Self {
        self.replies.push(Reply { reset: Some(reason), ..Reply::default() });
        self
    }

    /// The answer has this field.
    pub fn with_field(self, name: &str, value: &str) -> Self {
        self.with(|reply| reply.fields.push((name.to_owned(), value.to_owned())))
    }

    /// The answer has this body.
    pub fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
        self.with(|reply| reply.body = body.into())
    }

    /// This field follows the body.
    pub fn with_trailer(self, name: &str, value: &str) -> Self {
        self.with(|reply| reply.trailers.push((name.to_owned(), value.to_owned())))
    }

    /// An interim answer comes first.
    pub fn informs(self, status: u16) -> Self {
        self.with(|reply| reply.interim = Some(status))
    }

    /// The answer comes before the request's body is read.
    pub fn early(self) -> Self {
        self.with(|reply| reply.early = true)
    }

    /// Each piece of the request's body comes back as it came.
    pub fn echoes(self) -> Self {
        self.with(|reply| reply.echoes = true)
    }

    /// The head waits for a release.
    pub fn holds(self) -> Self {
        self.with(|reply| reply.held_head = true)
    }

    /// What follows head and body waits for a release.
    pub fn holds_its_end(self) -> Self {
        self.with(|reply| reply.held_body = true)
    }

    /// The answer takes so long.
    pub fn delays(self, delay: Duration) -> Self {
        self.with(|reply| reply.delay = delay)
    }

    /// The stream is reset where the body should have ended.
    pub fn resets_behind_the_body(self, reason: Reason) -> Self {
        self.with(|reply| reply.reset_behind_body = Some(reason))
    }

    /// It takes so many streams at the same time on a connection.
    pub fn takes_streams(mut self, max: u32) -> Self {
        self.max_streams = Some(max);
        self
    }

    /// It takes so many bytes of a body before it reads them.
    pub fn with_window(mut self, window: u32) -> Self {
        self.window = Some(window);
        self
    }

    /// Listens.
    pub async fn start(self) -> Http2Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            script: self,
            seen: Mutex::default(),
            connections: Mutex::default(),
            gate: Semaphore::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Http2Upstream { address, shared, accepting }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut serving = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        serving.spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let number = {
        let mut connections = shared.connections.lock().expect("no panic");
        connections.0 += 1;
        connections.1 += 1;
        connections.0 - 1
    };
    let mut builder = h2::server::Builder::new();
    if let Some(max) = shared.script.max_streams {
        builder.max_concurrent_streams(max);
    }
    if let Some(window) = shared.script.window {
        builder.initial_window_size(window);
    }
    if let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await {
        while let Some(Ok((request, respond))) = connection.accept().await {
            let (parts, body) = request.into_parts();
            let index = {
                let mut seen = shared.seen.lock().expect("no panic");
                seen.push(SeenStream {
                    connection: number,
                    method: parts.method.to_string(),
                    uri: parts.uri.to_string(),
                    fields: texts(&parts.headers),
                    ..SeenStream::default()
                });
                seen.len() - 1
            };
            tokio::spawn(reply(index, body, respond, Arc::clone(&shared)));
        }
    }
    shared.connections.lock().expect("no panic").1 -= 1;
}

fn texts(map: &http::HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn map(fields: &[(String, String)]) -> http::HeaderMap {
    let pair = |(name, value): &(String, String)| {
        (
            http::HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            http::HeaderValue::from_str(value).expect("a value"),
        )
    };
    fields.iter().map(pair).collect()
}

async fn reply(index: usize, mut body: RecvStream, mut respond: SendResponse<Bytes>, shared: Arc<Shared>) {
    let replies = &shared.script.replies;
    let reply = replies.get(index).or(replies.last()).expect("a script").clone();
    if let Some(status) = reply.interim {
        let interim = http::Response::builder().status(status).body(()).expect("an answer");
        let _ = respond.send_informational(interim);
    }
    if !reply.early && !reply.echoes {
        read(index, &mut body, &shared, None).await;
    }
    answer(index, &reply, &mut body, &mut respond, &shared).await;
}

async fn answer(
    index: usize,
    reply: &Reply,
    body: &mut RecvStream,
    respond: &mut SendResponse<Bytes>,
    shared: &Arc<Shared>,
) {
    tokio::time::sleep(reply.delay).await;
    if reply.held_head {
        tokio::select! {
            released = shared.gate.acquire() => released.expect("it is open").forget(),
            reset = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
                shared.seen.lock().expect("no panic")[index].reset = reset.ok();
                return;
            }
        }
    }
    if let Some(reason) = reply.reset {
        return respond.send_reset(reason);
    }
    let mut head = http::Response::builder().status(reply.status).body(()).expect("an answer");
    *head.headers_mut() = map(&reply.fields);
    let is_over = reply.body.is_empty()
        && reply.trailers.is_empty()
        && !reply.echoes
        && !reply.held_body
        && reply.reset_behind_body.is_none();
    let Ok(mut send) = respond.send_response(head, is_over) else { return };
    if is_over {
        // A body that was not read is refused by RST_STREAM with NO_ERROR (RFC 9113 §8.1), which the library does.
        return;
    }
    write(&mut send, &reply.body).await;
    if reply.echoes {
        read(index, body, shared, Some(&mut send)).await;
    }
    if reply.held_body {
        tokio::select! {
            released = shared.gate.acquire() => released.expect("it is open").forget(),
            reset = std::future::poll_fn(|cx| send.poll_reset(cx)) => {
                shared.seen.lock().expect("no panic")[index].reset = reset.ok();
                return;
            }
        }
    }
    if let Some(reason) = reply.reset_behind_body {
        // What was sent shall be on its way first.
        tokio::time::sleep(Duration::from_millis(20)).await;
        return send.send_reset(reason);
    }
    let _ = match reply.trailers.is_empty() {
        true => send.send_data(Bytes::new(), true),
        false => send.send_trailers(map(&reply.trailers)),
    };
    // Until the client has it all, or leaves.
    let reset = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
    if let Ok(reason) = reset {
        shared.seen.lock().expect("no panic")[index].reset = Some(reason);
    }
}

async fn write(send: &mut SendStream<Bytes>, mut data: &[u8]) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(Ok(room)) => {
                let (piece, rest) = data.split_at(room.min(data.len()));
                if send.send_data(Bytes::copy_from_slice(piece), false).is_err() {
                    return;
                }
                data = rest;
            }
            _ => return,
        }
    }
}

async fn read(
    index: usize,
    body: &mut RecvStream,
    shared: &Arc<Shared>,
    mut echo: Option<&mut SendStream<Bytes>>,
) {
    while let Some(Ok(piece)) = body.data().await {
        shared.seen.lock().expect("no panic")[index].body.extend_from_slice(&piece);
        let _ = body.flow_control().release_capacity(piece.len());
        if let Some(send) = &mut echo {
            write(send, &piece).await;
        }
    }
    let trailers = body.trailers().await;
    let mut seen = shared.seen.lock().expect("no panic");
    match trailers {
        Ok(trailers) => {
            seen[index].whole = true;
            seen[index].trailers = trailers.as_ref().map(texts).unwrap_or_default();
        }
        Err(error) => seen[index].reset = error.reason(),
    }
}

/// A port whose connections a story serves frame by frame.
pub struct RawHttp2Upstream {
    listener: TcpListener,
}

/// One of its connections.
pub struct RawPeer {
    stream: TcpStream,
    input: Vec<u8>,
}

/// A frame.
#[derive(Clone, Debug)]
pub struct RawFrame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE.
pub const HEADERS: u8 = 1;
/// See [`HEADERS`].
pub const RST_STREAM: u8 = 3;
/// See [`HEADERS`].
pub const SETTINGS: u8 = 4;
/// See [`HEADERS`].
pub const GOAWAY: u8 = 7;

impl RawHttp2Upstream {
    /// Listens.
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a free port") }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// The next connection, of which nothing has been read.
    pub async fn accept(&self) -> RawPeer {
        let (stream, _) = soon("a connection", self.listener.accept()).await.expect("it accepts");
        RawPeer { stream, input: Vec::new() }
    }

    /// The next connection, after both sides' settings. `settings`: pairs of identifier and value.
    pub async fn accept_with(&self, settings: &[(u16, u32)]) -> RawPeer {
        let mut peer = self.accept().await;
        let mut payload = Vec::new();
        for (identifier, value) in settings {
            payload.extend_from_slice(&identifier.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        peer.send(SETTINGS, 0, 0, &payload).await;
        peer
    }
}

impl RawPeer {
    /// Sends a frame.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.write(&bytes).await;
    }

    /// Sends bytes that may be no frame.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Answers a stream: 200 and nothing else (`:status: 200` is number 8 of HPACK's static table).
    pub async fn answer(&mut self, stream: u32) {
        self.send(HEADERS, 0x5, stream, &[0x88]).await;
    }

    /// Says that streams above `last` are not processed.
    pub async fn go_away(&mut self, last: u32, code: u32) {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        self.send(GOAWAY, 0, 0, &payload).await;
    }

    /// Resets a stream.
    pub async fn reset(&mut self, stream: u32, code: u32) {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    /// The next request's stream, SETTINGS acknowledged on the way.
    pub async fn request(&mut self) -> u32 {
        loop {
            let frame = soon("a frame", self.frame()).await.expect("the connection is open");
            match frame.kind {
                HEADERS => return frame.stream,
                SETTINGS if frame.flags & 1 == 0 => self.send(SETTINGS, 1, 0, &[]).await,
                _ => {}
            }
        }
    }

    /// The next frame; none at the end of the connection.
    pub async fn frame(&mut self) -> Option<RawFrame> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        loop {
            if self.input.starts_with(PREFACE) {
                self.input.drain(..PREFACE.len());
            }
            if let [a, b, c, kind, flags, id @ ..] = self.input.as_slice()
                && !PREFACE.starts_with(&self.input[..5])
            {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if self.input.len() >= 9 + length {
                    let stream = u32::from_be_bytes([id[0], id[1], id[2], id[3]]) & 0x7fff_ffff;
                    let (kind, flags) = (*kind, *flags);
                    let payload = self.input[9..9 + length].to_vec();
                    self.input.drain(..9 + length);
                    return Some(RawFrame { kind, flags, stream, payload });
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
