//! Talks to the admin API of a running sidecar, as its configuration file describes it.
//!
//! Plain blocking sockets: one request, one answer, and every wait bounded. A file that became invalid after the
//! sidecar had started must not make its health check fail; so what `[admin]` says is taken from it anyway, as
//! far as it can be read.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use toml::de::{DeTable, DeValue};

use crate::config;

/// The largest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;
/// The longest wait for a connection: the sidecar is beside us, or not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the admin API is, and the key to it.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    token: Option<String>,
    /// Whether the file is a valid configuration at this moment.
    pub(super) file_is_valid: bool,
    /// How long the sidecar drains at most.
    pub(super) drain_timeout: Duration,
}

/// What the sidecar answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Answer {
    /// Whether it did what was asked.
    pub(super) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl Client {
    /// Reads from `file` where the admin API is.
    ///
    /// # Errors
    /// If the file or the token's file cannot be read, or the port is not written down.
    pub(super) fn new(file: &Path) -> Result<Self, String> {
        let loaded = config::load(file);
        let file_is_valid = loaded.is_ok();
        let (admin, drain_timeout) = match loaded {
            Ok(loaded) => (loaded.config.admin, *loaded.config.server.drain_timeout),
            Err(_) => (salvage(file)?, *config::Server::default().drain_timeout),
        };
        if admin.address.port() == 0 {
            let file = file.display();
            return Err(format!("{file} lets the system choose the admin port; write one in admin.address"));
        }
        let token = admin.token_file.as_deref().map(read_token).transpose()?;
        Ok(Self { address: reachable(admin.address), token, file_is_valid, drain_timeout })
    }

    /// Sends `method path` and waits for the answer, for `patience` in all.
    ///
    /// # Errors
    /// If nobody answers in time, or not in HTTP: one line that says what to do.
    pub(super) fn ask(&self, method: &str, path: &str, patience: Duration) -> Result<Answer, String> {
        let answer = self.exchange(method, path, patience).map_err(|error| {
            let cure = match error.kind() {
                io::ErrorKind::ConnectionRefused => "; is it running, with this configuration?",
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "; it may be overloaded or stopped",
                _ => "",
            };
            format!("no answer from the admin API at {}: {error}{cure}", self.address)
        })?;
        if matches!(answer.status, 401 | 403) {
            let what = if self.token.is_some() { "refuses the token in" } else { "needs the token of" };
            return Err(format!(
                "the admin API at {} {what} admin.token_file: {}",
                self.address,
                answer.line()
            ));
        }
        Ok(answer)
    }

    /// Whether nobody listens there any more.
    pub(super) fn is_gone(&self) -> bool {
        let error = TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT).err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    fn exchange(&self, method: &str, path: &str, patience: Duration) -> io::Result<Answer> {
        let deadline = Instant::now() + patience;
        let mut stream = TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT.min(patience))?;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n",
            self.address
        );
        if let Some(token) = &self.token {
            request.push_str("Authorization: Bearer ");
            request.push_str(token);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(request.as_bytes())?;

        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || answer.len() as u64 > MAX_ANSWER {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut piece)? {
                0 => return parse(&answer).ok_or_else(|| io::Error::other("this is no HTTP answer")),
                size => answer.extend_from_slice(&piece[..size]),
            }
        }
    }
}

impl Answer {
    /// The answer in one line, for an error.
    pub(super) fn line(&self) -> String {
        let words: Vec<&str> = self.body.split_whitespace().collect();
        if words.is_empty() { format!("status {}", self.status) } else { words.join(" ") }
    }
}

/// Where a listening `address` is reached from this machine: one that listens everywhere, by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn read_token(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        format!("cannot read the token in {} (admin.token_file): {error}", file.display())
    })?;
    Ok(text.trim().to_owned())
}

/// What a file says under `[admin]` if the rest of it is broken.
fn salvage(file: &Path) -> Result<config::Admin, String> {
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(admin_of(&text))
}

fn admin_of(text: &str) -> config::Admin {
    let mut admin = config::Admin::default();
    let (document, _errors) = DeTable::parse_recoverable(text);
    if let Some(DeValue::Table(table)) = document.get_ref().get("admin").map(|value| value.get_ref()) {
        let text = |key| table.get(key).and_then(|value| value.get_ref().as_str());
        if let Some(address) = text("address").and_then(|address| address.parse().ok()) {
            admin.address = address;
        }
        admin.token_file = text("token_file").map(PathBuf::from);
    }
    admin
}

/// Status and body of an answer that is complete: the connection has been closed.
fn parse(answer: &[u8]) -> Option<Answer> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(size) = head.parse(answer).ok()? else { return None };
    let body = String::from_utf8_lossy(&answer[size..]).into_owned();
    Some(Answer { status: head.code?, body })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn client(address: SocketAddr) -> Client {
        let token = Some("secret".to_owned());
        Client { address, token, file_is_valid: true, drain_timeout: Duration::from_secs(20) }
    }

    /// Answers one connection with `answer`; gives what was asked.
    fn serve_once(answer: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let size = stream.read(&mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("the client reads");
            String::from_utf8_lossy(&request[..size]).into_owned()
        });
        (address, server)
    }

    #[test]
    fn asks_with_the_token_and_gives_status_and_body() {
        let (address, server) =
            serve_once("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\nnot\nready");
        let answer = client(address).ask("GET", "/readyz", Duration::from_secs(5)).expect("an answer");
        assert_eq!(answer, Answer { status: 503, body: "not\nready".to_owned() });
        assert_eq!(answer.line(), "not ready");
        let request = server.join().expect("it served");
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nAuthorization: Bearer secret\r\n"), "{request}");
    }

    #[test]
    fn nobody_there_and_no_answer_say_what_to_do() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let error = client(address).ask("GET", "/", Duration::from_millis(50)).expect_err("it never answers");
        assert!(error.contains("it may be overloaded or stopped"), "{error}");

        drop(listener);
        let error = client(address).ask("GET", "/", Duration::from_secs(5)).expect_err("nobody is there");
        assert!(error.contains(&format!("{address}")) && error.contains("is it running"), "{error}");
        assert!(client(address).is_gone());
    }

    #[test]
    fn a_broken_file_still_says_where_the_admin_api_is() {
        let default = config::Admin::default();
        let elsewhere = config::Admin {
            address: "127.0.0.1:9999".parse().expect("an address"),
            token_file: Some("/run/token".into()),
            ..config::Admin::default()
        };
        let cases = [
            // why                        file                                                         admin
            ("says nothing", "", &default),
            (
                "broken elsewhere",
                "[admin]\naddress='127.0.0.1:9999'\ntoken_file='/run/token'\n[x]\ny = = 3",
                &elsewhere,
            ),
            ("broken here", "[admin]\naddress = 7\n", &default),
        ];
        for (why, file, expected) in cases {
            assert_eq!(admin_of(file), *expected, "{why}");
        }
    }

    #[test]
    fn an_address_that_listens_everywhere_is_reached_by_loopback() {
        let cases = [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1")];
        for (listens, reached) in cases {
            assert_eq!(reachable(listens.parse().expect("an address")).to_string(), reached);
        }
    }
}
