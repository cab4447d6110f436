//! An HTTP/1 client that sends the bytes it is given and shows what came back.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{dechunk, fields, find, soon, value};

/// A plain GET.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n")
}

/// A POST with a body of known length.
pub fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The error tokens of RFC 9209 §2.3.
#[rustfmt::skip]
const TOKENS: [&str; 32] = [
    "dns_timeout", "dns_error", "destination_not_found", "destination_unavailable", "destination_ip_prohibited",
    "destination_ip_unroutable", "connection_refused", "connection_terminated", "connection_timeout",
    "connection_read_timeout", "connection_write_timeout", "connection_limit_reached", "tls_protocol_error",
    "tls_certificate_error", "tls_alert_received", "http_request_error", "http_request_denied",
    "http_response_incomplete", "http_response_header_section_size", "http_response_header_size",
    "http_response_body_size", "http_response_trailer_section_size", "http_response_trailer_size",
    "http_response_transfer_coding", "http_response_content_coding", "http_response_timeout",
    "http_upgrade_failed", "http_protocol_error", "proxy_internal_response", "proxy_internal_error",
    "proxy_configuration_error", "proxy_loop_detected",
];

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    end: Option<End>,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// What came back for one request.
#[derive(Debug)]
pub struct Response {
    /// `HTTP/1.1`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// All fields in their order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The payload, without framing.
    pub body: Vec<u8>,
    /// The fields behind a chunked body.
    pub trailers: Vec<(String, String)>,
    /// The message came to its end; otherwise it broke off visibly.
    pub whole: bool,
}

impl Client {
    /// A connection to `address`.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.expect("connects");
        stream.set_nodelay(true).expect("an option of every socket");
        Self { stream, input: Vec::new(), end: None }
    }

    /// One over a connection that was made otherwise.
    pub fn over(stream: TcpStream) -> Self {
        Self { stream, input: Vec::new(), end: None }
    }

    /// Where it comes from.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().expect("it is connected")
    }

    /// Sends all of `bytes`.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("the bytes are taken", self.stream.write_all(bytes.as_ref())).await.expect("sends");
    }

    /// Sends as much as the other side takes before it closes.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        // The other side may have answered and closed: what it said is still to be read.
        let _ = soon("the bytes are taken, or refused", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Sends until nothing is taken for a moment, or the other side closes, and says how much was taken.
    pub async fn send_until_stuck(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            let write = self.stream.write(&bytes[sent..]);
            match tokio::time::timeout(std::time::Duration::from_millis(500), write).await {
                Ok(Ok(written)) => sent += written,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        sent
    }

    /// Sends `request` and reads its response.
    pub async fn exchange(&mut self, request: &str) -> Response {
        self.send(request).await;
        self.response_to(request.split(' ').next().expect("a method")).await
    }

    /// Closes the sending side.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("the sending side closes");
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).expect("an option");
    }

    /// The next response to a request that was no HEAD.
    pub async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// The next response, interim ones too.
    pub async fn response_to(&mut self, method: &str) -> Response {
        match self.response_or_end(method).await {
            Some(response) => response,
            None => panic!("the connection ended without a response, but with {:?}", self.rest()),
        }
    }

    /// The next response, or none if the connection ends before a head.
    pub async fn response_or_end(&mut self, method: &str) -> Option<Response> {
        let mut response = self.head().await?;
        let bodyless = method == "HEAD" || response.status < 200 || matches!(response.status, 204 | 304);
        if bodyless {
            response.whole = true;
        } else if response.field("transfer-encoding").is_some() {
            loop {
                let chunked = dechunk(&self.input);
                if chunked.length.is_some() || !self.fill().await {
                    response.whole = chunked.length.is_some();
                    self.input.drain(..chunked.length.unwrap_or(self.input.len()));
                    (response.body, response.trailers) = (chunked.payload, chunked.trailers);
                    break;
                }
            }
        } else if let Some(length) = response.field("content-length") {
            let length: usize = length.parse().expect("a length");
            while self.input.len() < length && self.fill().await {}
            response.whole = self.input.len() >= length;
            response.body = self.input.drain(..length.min(self.input.len())).collect();
        } else {
            // The end of the connection is the end of the body; a reset is no clean one.
            while self.fill().await {}
            response.whole = self.end == Some(End::Closed);
            response.body = std::mem::take(&mut self.input);
        }
        Some(response)
    }

    /// The next head alone, its body still unread.
    pub async fn head(&mut self) -> Option<Response> {
        let end = loop {
            match find(&self.input, b"\r\n\r\n") {
                Some(end) => break end,
                None if self.fill().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4);
        let (line, lines) = head.split_once("\r\n").unwrap_or((&head, ""));
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let fields = fields(lines);
        Some(Response { version, status, fields, body: Vec::new(), trailers: Vec::new(), whole: false })
    }

    /// At least `count` bytes that nobody has read yet, as they are now.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.input.len() < count {
            assert!(self.fill().await, "ended after {:?}", self.rest());
        }
        self.input.drain(..count).collect()
    }

    /// Waits for the end of the connection: everything that came before it.
    pub async fn until_end(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.input)
    }

    /// The connection ends, and nothing comes before its end.
    pub async fn closes(&mut self) {
        let rest = self.until_end().await;
        assert!(rest.is_empty(), "bytes before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    /// What came and was not read, as text.
    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.input).into_owned()
    }

    /// Reads more; false at the end, clean or by reset.
    async fn fill(&mut self) -> bool {
        if self.end.is_none() {
            let what = "the proxy says something, or closes";
            self.end = match soon(what, self.stream.read_buf(&mut self.input)).await {
                Ok(0) => Some(End::Closed),
                Ok(_) => None,
                Err(_) => Some(End::Reset),
            };
        }
        self.end.is_none()
    }
}

impl Response {
    /// The first value of the field `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        value(&self.fields, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether this is Outrigger's own answer for `reason`.
    pub fn is_for(&self, reason: &str) -> bool {
        self.problem().is_some_and(|problem| problem["reason"] == reason)
    }

    /// The problem body of Outrigger's own answer.
    pub fn problem(&self) -> Option<serde_json::Value> {
        let own = self.field("content-type") == Some("application/problem+json");
        own.then(|| serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}")))
    }

    /// Panics unless this is Outrigger's own answer with `status` for `reason`, whole, and as PUBLIC.md has it.
    #[track_caller]
    pub fn must_be(&self, status: u16, reason: &str) {
        self.must_be_because(status, reason, "");
    }

    /// The same; `why` names the case.
    #[track_caller]
    pub fn must_be_because(&self, status: u16, reason: &str, why: &str) {
        assert_eq!(self.status, status, "{why}: {self:?}\n{}", self.text());
        let Some(problem) = self.problem() else { panic!("{why}: not Outrigger's own answer: {self:?}") };
        assert_eq!(problem["reason"], reason, "{why}: {problem}");
        assert_eq!(problem["status"], status, "{why}: {problem}");
        for member in ["type", "title", "detail", "request_id"] {
            assert!(problem[member].is_string(), "{why}: `{member}` is missing: {problem}");
        }
        let proxy_status = self.field("proxy-status").unwrap_or_default();
        let details = format!("details=\"{reason}\"");
        let token =
            proxy_status.strip_prefix("outrigger; error=").and_then(|rest| rest.strip_suffix(&details));
        let token = token.and_then(|token| token.strip_suffix("; "));
        assert!(token.is_some_and(|token| TOKENS.contains(&token)), "{why}: Proxy-Status: {proxy_status:?}");
        assert!(self.field("retry-after") != Some("0"), "{why}: Retry-After is never 0");
        assert!(self.whole, "{why}: broke off: {self:?}");
    }
}
