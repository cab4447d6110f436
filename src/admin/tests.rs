//! The admin API over loopback, asked with bytes as they come.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::endpoints::Site;
use super::guard::Guard;
use super::server::{PATIENCE, Patience, serve_site};
use super::{Control, Readiness, Reload, Scope, serve};
use crate::policy::fault::Settings as Fault;

/// A proxy that does what a test says.
#[derive(Default)]
struct Fake {
    stuck: Mutex<Option<String>>,
    readiness: Mutex<Readiness>,
    reload: Mutex<Option<String>>,
    /// A reload waits for this, if it is there.
    gate: Option<Notify>,
    reloaded: Notify,
    pressed: Mutex<Vec<&'static str>>,
    fault: Mutex<Option<Fault>>,
    crowded: AtomicUsize,
    /// The metrics.
    page: String,
    rendered: AtomicUsize,
}

impl Control for Fake {
    fn live(&self) -> Result<(), String> {
        self.stuck.lock().expect("no panic").clone().map_or(Ok(()), Err)
    }
    fn ready(&self) -> Readiness {
        self.readiness.lock().expect("no panic").clone()
    }
    fn metrics(&self) -> String {
        self.rendered.fetch_add(1, SeqCst);
        self.page.clone()
    }
    fn config(&self) -> String {
        "[upstream.app]\n".to_owned()
    }
    fn upstreams(&self) -> serde_json::Value {
        serde_json::json!({ "app": { "breaker": "closed" } })
    }
    fn faults(&self) -> serde_json::Value {
        let fault = self.fault.lock().expect("no panic");
        let fault = fault.as_ref().map(|fault| fault.lasts.to_string());
        serde_json::json!({ "app": { "for": fault } })
    }
    fn put_fault(&self, upstream: &str, fault: Fault) -> bool {
        *self.fault.lock().expect("no panic") = Some(fault);
        upstream == "app"
    }
    fn end_faults(&self, upstream: &str) -> bool {
        *self.fault.lock().expect("no panic") = None;
        upstream == "app"
    }
    fn reload(&self) -> Reload<'_> {
        Box::pin(async {
            if let Some(gate) = &self.gate {
                gate.notified().await;
            }
            self.pressed.lock().expect("no panic").push("reload");
            self.reloaded.notify_one();
            self.reload.lock().expect("no panic").clone().map_or(Ok("digest abc".to_owned()), Err)
        })
    }
    fn drain(&self) {
        self.pressed.lock().expect("no panic").push("drain");
    }
    fn quit(&self) {
        self.pressed.lock().expect("no panic").push("quit");
    }
    fn crowded(&self) {
        self.crowded.fetch_add(1, SeqCst);
    }
}

/// A served address.
struct Api {
    address: SocketAddr,
    fake: Arc<Fake>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Api {
    async fn start(address: &str, scope: Scope, token: Option<&str>, fake: Fake) -> Api {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let fake = Arc::new(fake);
        let serving = tokio::spawn(serve(listener, scope, token.map(Arc::from), fake.clone()));
        Api { address: SocketAddr::from(([127, 0, 0, 1], port)), fake, serving }
    }

    async fn patient(fake: Fake, patience: Patience) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let fake = Arc::new(fake);
        let site = Site { scope: Scope::All, guard: Guard::new(address, None), control: fake.clone() };
        let serving = tokio::spawn(serve_site(listener, Arc::new(site), patience));
        Api { address, fake, serving }
    }

    async fn loopback(fake: Fake) -> Api {
        Api::start("127.0.0.1:0", Scope::All, None, fake).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// Sends a request line and further header lines on a new connection; returns all that comes back.
    async fn ask(&self, line: &str, headers: &str) -> String {
        self.send(&format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n")).await
    }

    async fn send(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        // One that has heard enough may close before all is sent.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let mut answer = Vec::new();
        // A reset after the answer is no concern here.
        let read = async { while matches!(stream.read_buf(&mut answer).await, Ok(1..)) {} };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer in time");
        String::from_utf8(answer).expect("text")
    }
}

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or(answer)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn pages_say_how_it_goes() {
    let api = Api::loopback(Fake { page: "# TYPE up gauge\nup 1\n".to_owned(), ..Fake::default() }).await;
    let cases = [
        // line            status  content type                               body
        ("GET /livez", "200", "text/plain; charset=utf-8", "ok\n"),
        ("GET /metrics", "200", "text/plain; version=0.0.4; charset=utf-8", "# TYPE up gauge\nup 1\n"),
        ("GET /config", "200", "application/toml", "[upstream.app]\n"),
        (
            "GET /upstreams",
            "200",
            "application/json",
            "{\n  \"app\": {\n    \"breaker\": \"closed\"\n  }\n}\n",
        ),
        ("HEAD /livez", "200", "text/plain; charset=utf-8", ""),
        ("POST /drain", "200", "text/plain; charset=utf-8", "draining\n"),
        ("POST /quit", "200", "text/plain; charset=utf-8", "draining, then ending\n"),
        ("POST /reload", "200", "text/plain; charset=utf-8", "digest abc\n"),
    ];
    for (line, expected, content_type, text) in cases {
        let answer = api.ask(line, "").await;
        assert_eq!((status(&answer), body(&answer)), (expected, text), "{line}");
        assert!(answer.contains(&format!("content-type: {content_type}\r\n")), "{line}: {answer}");
    }
    assert!(api.ask("HEAD /livez", "").await.contains("content-length: 3\r\n"));
    assert_eq!(*api.fake.pressed.lock().expect("no panic"), ["drain", "quit", "reload"]);
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let api = Api::loopback(Fake::default()).await;
    *api.fake.stuck.lock().expect("no panic") = Some("worker 1 has stood still for 31 s".to_owned());
    *api.fake.reload.lock().expect("no panic") = Some("line 3: unknown key".to_owned());
    let upstreams =
        vec![("app".to_owned(), "healthy".to_owned()), ("b".to_owned(), "breaker open".to_owned())];
    let reasons = vec!["draining".to_owned(), "no names yet".to_owned()];
    *api.fake.readiness.lock().expect("no panic") = Readiness { ready: false, reasons, upstreams };
    let cases = [
        ("GET /livez", "503", "worker 1 has stood still for 31 s\n"),
        ("GET /readyz", "503", "not ready: draining; no names yet\n"),
        (
            "GET /readyz?verbose",
            "503",
            "not ready: draining; no names yet\nupstream app: healthy\nupstream b: breaker open\n",
        ),
        ("POST /reload", "422", "line 3: unknown key\n"),
    ];
    for (line, expected, text) in cases {
        let answer = api.ask(line, "").await;
        assert_eq!((status(&answer), body(&answer)), (expected, text), "{line}");
    }
    api.fake.readiness.lock().expect("no panic").ready = true;
    assert_eq!(body(&api.ask("GET /readyz", "").await), "ready\n");
}

#[tokio::test]
async fn a_wrong_page_or_method_is_told_the_right_one() {
    let api = Api::loopback(Fake::default()).await;
    let answer = api.ask("GET /metric", "").await;
    assert_eq!(status(&answer), "404");
    assert!(body(&answer).contains("GET  /metrics"), "{answer}");
    assert!(body(&answer).contains("POST /drain"), "{answer}");
    for (line, allow) in [
        ("POST /metrics", "GET, HEAD"),
        ("GET /quit", "POST"),
        ("HEAD /reload", "POST"),
        ("PUT /livez", "GET, HEAD"),
    ] {
        let answer = api.ask(line, "").await;
        assert_eq!(status(&answer), "405", "{line}");
        assert!(answer.contains(&format!("allow: {allow}\r\n")), "{answer}");
    }
    assert!(api.fake.pressed.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn other_sites_pages_reach_no_button() {
    let api = Api::loopback(Fake::default()).await;
    for (line, headers) in [
        ("POST /quit", "Origin: http://evil.example\r\n"),
        ("POST /quit", "Origin: null\r\n"),
        ("DELETE /faults/app", "Origin: http://evil.example\r\n"),
        ("PUT /faults/app", "Host: evil.example\r\n"),
        ("GET /config", "Origin: http://evil.example\r\n"),
        ("POST /quit", "Host: evil.example\r\n"),
    ] {
        assert_eq!(status(&api.ask(line, headers).await), "403", "{line} {headers}");
    }
    let rebound = "POST /quit HTTP/1.1\r\nHost: evil.example:9900\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&api.send(rebound).await), "403");
    let absolute = "POST http://evil.example/quit HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&api.send(absolute).await), "403", "the authority of the target counts");
    assert_eq!(status(&api.send("POST /quit HTTP/1.0\r\n\r\n").await.replacen("1.0", "1.1", 1)), "403");
    assert!(api.fake.pressed.lock().expect("no panic").is_empty());
    // Prometheus comes under any name.
    let scrape = "GET /metrics HTTP/1.1\r\nHost: sidecar:9900\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&api.send(scrape).await), "200");
}

#[tokio::test]
async fn on_every_address_of_the_machine_only_the_token_opens() {
    let api = Api::start("0.0.0.0:0", Scope::All, Some("s3cret"), Fake::default()).await;
    let refused = api.ask("POST /drain", "").await;
    assert_eq!(status(&refused), "401");
    assert!(refused.contains("www-authenticate: Bearer\r\n"), "{refused}");
    assert_eq!(status(&api.ask("POST /drain", "Authorization: Bearer wrong\r\n").await), "401");
    assert_eq!(status(&api.ask("POST /drain", "Authorization: Bearer s3cret\r\n").await), "200");
    assert_eq!(status(&api.ask("GET /readyz", "").await), "503", "for everybody");

    let closed = Api::start("0.0.0.0:0", Scope::All, None, Fake::default()).await;
    let refused = closed.ask("GET /config", "").await;
    assert_eq!(status(&refused), "403");
    assert!(body(&refused).contains("set admin.token_file"), "{refused}");
    assert_eq!(status(&closed.ask("GET /metrics", "").await), "200");
}

#[tokio::test]
async fn a_public_address_has_three_pages() {
    let api = Api::start("127.0.0.1:0", Scope::Public, None, Fake::default()).await;
    for line in ["GET /config", "POST /quit", "GET /upstreams", "POST /reload", "POST /drain"] {
        let answer = api.ask(line, "").await;
        assert_eq!(status(&answer), "404", "{line}");
        assert!(!body(&answer).contains("/quit"), "{answer}");
    }
    for line in ["GET /livez", "GET /metrics"] {
        assert_eq!(status(&api.ask(line, "").await), "200", "{line}");
    }
}

#[tokio::test]
async fn a_reload_ends_even_if_its_client_left() {
    let api = Api::loopback(Fake { gate: Some(Notify::new()), ..Fake::default() }).await;
    let mut stream = api.connect().await;
    stream.write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it reads");
    // A page on another connection shows that the first is being served.
    while status(&api.ask("GET /livez", "").await) != "200" {}
    tokio::task::yield_now().await;
    drop(stream);
    api.fake.gate.as_ref().expect("there is one").notify_one();
    tokio::time::timeout(Duration::from_secs(10), api.fake.reloaded.notified()).await.expect("it ends");
}

/// A request with a body of known length.
async fn send_body(api: &Api, line: &str, body: &str) -> String {
    let head = "HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length:";
    api.send(&format!("{line} {head} {}\r\n\r\n{body}", body.len())).await
}

#[tokio::test]
async fn a_fault_is_put_shown_and_ended() {
    let api = Api::loopback(Fake::default()).await;
    let (none, one) = ("{\n  \"for\": null\n}\n", "{\n  \"for\": \"10s\"\n}\n");
    let fault = "abort.ratio = 0.1\nfor = \"10s\"";
    let long = format!("{fault}\n# {}", "x".repeat(9 << 10));
    let cases = [
        // line               body                                   status  what is said
        ("GET /faults", "", "200", "\"app\": {\n    \"for\": null"),
        ("GET /faults/app", "", "200", none),
        ("PUT /faults/app", &long, "200", one),
        ("GET /faults/%61pp", "", "200", one),
        ("PUT /faults/app", "reset = ", "400", "body:1"),
        ("PUT /faults/app", "reset = true", "422", "hits 100 % of the requests"),
        ("GET /faults/app", "", "200", one),
        ("PUT /faults/other", fault, "404", "there is no upstream \"other\"; there are [\"app\"]"),
        ("PUT /faults/other", "reset = ", "404", "there is no upstream"),
        ("GET /faults/other", "", "404", "there is no upstream"),
        ("DELETE /faults/app", "", "200", none),
        ("DELETE /faults/other", "", "404", "there is no upstream"),
        ("POST /faults/app", fault, "405", "GET, HEAD, PUT, DELETE"),
        ("DELETE /faults", "", "405", "GET, HEAD"),
        ("GET /faults/", "", "404", "PUT  /faults/{upstream}"),
        ("GET /faults/a/b", "", "404", "there is no such page"),
    ];
    for (line, sent, expected, said) in cases {
        let answer = send_body(&api, line, sent).await;
        assert_eq!(status(&answer), expected, "{line} {sent}: {answer}");
        assert!(body(&answer).contains(said), "{line} {sent}: {answer}");
    }
    assert_eq!(status(&send_body(&api, "PUT /faults/app", &"#".repeat(17 << 10)).await), "413");
    assert_eq!(
        status(&send_body(&api, "PUT /faults", &"#".repeat(2 << 10)).await),
        "413",
        "1 KiB is enough elsewhere"
    );
}

#[tokio::test]
async fn bodies_and_heads_are_bounded() {
    let api = Api::loopback(Fake::default()).await;
    assert_eq!(status(&api.ask("POST /drain", "Content-Length: 2000000\r\n").await), "413");
    assert_eq!(
        status(&api.ask("POST /drain", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n").await),
        "200"
    );
    let chunk = format!("Transfer-Encoding: chunked\r\n\r\n800\r\n{}\r\n0\r\n", "x".repeat(0x800));
    assert_eq!(status(&api.ask("POST /drain", &chunk).await), "413");
    // The rest of the head is not read, so that the connection may be reset before the answer is.
    let long = api.ask("GET /livez", &format!("X: {}\r\n", "x".repeat(40_000))).await;
    assert!(["431", ""].contains(&status(&long)), "{long}");
    assert_eq!(status(&api.ask("GET /livez", &"X: y\r\n".repeat(100)).await), "431");
    assert_eq!(*api.fake.pressed.lock().expect("no panic"), ["drain"]);
}

/// Each kind of patience alone ends a connection that tries it.
#[tokio::test]
async fn whoever_says_nothing_or_takes_nothing_is_let_go() {
    let (short, long) = (Duration::from_millis(20), Duration::from_secs(60));
    let endless = Patience { header: long, body: long, stall: long, age: long };
    let body_to_come = "POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n";
    let cases = [
        // why                      patience                              sent          answer
        ("half a head", Patience { header: short, ..endless }, "GET /li", ""),
        ("no body", Patience { body: short, ..endless }, body_to_come, "408"),
        ("silence", Patience { stall: short, ..endless }, "", ""),
        ("silence after a head", Patience { stall: short, ..endless }, body_to_come, "400"),
        ("an idle connection in its old age", Patience { age: short, ..endless }, "", ""),
    ];
    for (why, patience, sent, expected) in cases {
        let api = Api::patient(Fake::default(), patience).await;
        assert_eq!(status(&api.send(sent).await), expected, "{why}");
        assert!(api.fake.pressed.lock().expect("no panic").is_empty(), "{why}");
    }
}

/// A page larger than the socket's buffers, to a client that does not read.
#[tokio::test]
async fn whoever_does_not_read_is_let_go() {
    let patience = Patience { stall: Duration::from_millis(50), ..PATIENCE };
    let fake = Fake { page: "x".repeat(32 << 20), ..Fake::default() };
    let api = Api::patient(fake, patience).await;
    let mut stream = api.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it reads");
    tokio::time::timeout(Duration::from_secs(10), async {
        while api.fake.rendered.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is asked");
    // The page was dropped with its connection, and the client finds its end cut off.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok() && answer.len() < 32 << 20, "{read:?}, {} bytes", answer.len());
}

#[tokio::test]
async fn beyond_its_connections_the_oldest_makes_room() {
    let api = Api::loopback(Fake::default()).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(api.connect().await);
    }
    let mut probe = api.connect().await;
    probe
        .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .expect("it reads");
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(5), probe.read_to_string(&mut answer));
    read.await.expect("at once, though 64 say nothing").expect("text");
    assert_eq!(status(&answer), "200");
    assert_eq!(api.fake.crowded.load(SeqCst), 1);
    let mut nothing = [0; 1];
    let ended = tokio::time::timeout(Duration::from_secs(5), silent[0].read(&mut nothing)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "the oldest is gone: {ended:?}");
}
