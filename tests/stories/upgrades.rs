//! WebSockets and whatever else an HTTP/1.1 connection goes over to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: \
                   dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: \
                     s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An upstream that agrees to everything, says hello at once, and then says what it hears.
struct Echo {
    address: String,
    /// The head of the last request.
    head: Arc<std::sync::Mutex<String>>,
    open: Arc<AtomicUsize>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (head, open) = (Arc::<std::sync::Mutex<String>>::default(), Arc::<AtomicUsize>::default());
        let (heads, opens) = (Arc::clone(&head), Arc::clone(&open));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (head, open) = (Arc::clone(&heads), Arc::clone(&opens));
                tokio::spawn(async move {
                    open.fetch_add(1, Relaxed);
                    let _ = echo(stream, &head).await;
                    open.fetch_sub(1, Relaxed);
                });
            }
        });
        Self { address, head, open }
    }
}

async fn echo(mut stream: TcpStream, head: &std::sync::Mutex<String>) -> std::io::Result<()> {
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(stream.read_u8().await?);
    }
    *head.lock().expect("nobody panics with it") = String::from_utf8_lossy(&heard).into_owned();
    // The first bytes of the other protocol come with the head.
    stream.write_all(format!("{AGREE}hello").as_bytes()).await?;
    let mut piece = vec![0; 64 << 10];
    loop {
        let size = stream.read(&mut piece).await?;
        if size == 0 {
            return Ok(());
        }
        stream.write_all(&piece[..size]).await?;
    }
}

async fn over(echo: &Echo) -> Config {
    Config::over_addresses(std::slice::from_ref(&echo.address))
}

#[tokio::test]
async fn a_connection_goes_over_to_another_protocol() {
    let echo = Echo::start().await;
    let proxy = over(&echo).await.start().await;
    let mut client = proxy.connect().await;

    // What the client says before it has the answer belongs to the other protocol too.
    client.send(format!("{ASK}early ")).await;
    let answer = client.response().await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client.send("and late").await;
    let said = "helloearly and late";
    assert_eq!(String::from_utf8_lossy(&client.bytes(said.len()).await), said);
    let big = vec![7; 200 << 10];
    client.send(&big).await;
    assert!(client.bytes(big.len()).await == big, "what is large comes back as it went");
    assert_eq!(proxy.metrics().await.sum("outrigger_streams{upstream=\"app\"}"), 1.0);
    let head = echo.head.lock().expect("nobody panics with it").to_ascii_lowercase();
    assert!(
        head.contains("\r\nupgrade: websocket\r\n") && head.contains("\r\nconnection: upgrade\r\n"),
        "{head}"
    );

    client.finish().await;
    client.closes().await;
    eventually("nothing is left of it", async || {
        echo.open.load(Relaxed) == 0 && proxy.metrics().await.sum("outrigger_streams") == 0.0
    })
    .await;
    proxy.metric_becomes("outrigger_requests_total{code=101,outcome=ok}", 1.0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn whoever_leaves_takes_the_other_side_along() {
    let echo = Echo::start().await;
    let proxy = over(&echo).await.start().await;
    let mut client = proxy.connect().await;
    client.send(ASK).await;
    assert_eq!(client.response().await.status, 101);
    client.reset();
    eventually("the upstream's side is closed", async || echo.open.load(Relaxed) == 0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_not_its_upstreams_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = Vec::new();
                while !heard.ends_with(b"\r\n\r\n") {
                    heard.push(stream.read_u8().await.expect("a head comes"));
                }
                let mut said = AGREE;
                // Pushes, and does not look whether anybody is there.
                while stream.write_all(said.as_bytes()).await.is_ok() {
                    said = "news";
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            });
        }
    });
    let proxy = Config::over_addresses(&[address]).start().await;
    for number in 1..=3 {
        let mut client = proxy.connect().await;
        client.send(ASK).await;
        assert_eq!(client.response().await.status, 101);
        client.bytes(4).await;
        drop(client);
        proxy.rests().await;
        let left = "outrigger_attempts_total{outcome=client_disconnected}";
        proxy.metric_becomes(left, f64::from(number)).await;
    }
    assert_eq!(proxy.metric("outrigger_attempts_total{outcome=upstream_reset}").await, 0.0);
}

#[tokio::test]
async fn an_upstream_that_says_no_is_heard() {
    let app = Upstream::that().answers(403).with_body("no").start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(ASK).await;
    let answer = client.response().await;
    assert_eq!((answer.status, answer.text()), (403, "no".to_owned()));
    assert_eq!(client.exchange(&get("/")).await.status, 403, "the connection speaks HTTP on");
}

#[tokio::test]
async fn nobody_switches_unasked() {
    let app = Upstream::that().answers_raw(AGREE).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;
    client.exchange(&get("/")).await.must_be(502, "protocol_error");
}

#[tokio::test]
async fn http2_is_not_gone_over_to() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    let ask =
        ASK.replace("upgrade: websocket", "upgrade: h2c, websocket\r\nhttp2-settings: AAMAAABkAAQAAP__");
    client.send(ask).await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(app.request(0).field("upgrade"), None);
}

#[tokio::test]
async fn a_silent_one_ends_after_stream_idle() {
    let echo = Echo::start().await;
    let proxy = over(&echo).await.upstream("timeout.stream_idle = \"300ms\"").start().await;
    let mut client = proxy.connect().await;
    client.send(ASK).await;
    assert_eq!(client.response().await.status, 101);
    client.until_end().await;
    eventually("it is counted", async || {
        proxy.metrics().await.sum("outrigger_attempts_total{outcome=\"upstream_stalled\"}") == 1.0
    })
    .await;
    proxy.rests().await;
}

#[tokio::test]
async fn one_whose_client_reads_nothing_ends_after_idle() {
    let echo = Echo::start().await;
    let proxy = over(&echo).await.upstream("timeout.idle = \"300ms\"").start().await;
    let mut client = proxy.connect().await;
    client.send(ASK).await;
    assert_eq!(client.response().await.status, 101);
    client.send_until_stuck(&vec![7; 32 << 20]).await;
    proxy.metric_becomes("outrigger_attempts_total{outcome=client_stalled}", 1.0).await;
    eventually("the upstream's side is closed", async || echo.open.load(Relaxed) == 0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn in_shadow_a_silent_one_is_counted_and_goes_on() {
    let echo = Echo::start().await;
    let settings = "timeout = { mode = \"shadow\", stream_idle = \"200ms\" }";
    let proxy = over(&echo).await.upstream(settings).start().await;
    let mut client = proxy.connect().await;
    client.send(ASK).await;
    assert_eq!(client.response().await.status, 101);
    proxy.metric_becomes("outrigger_rejected_total{reason=upstream_stalled,mode=shadow}", 1.0).await;
    client.send("still").await;
    assert_eq!(client.bytes(10).await, b"hellostill");
}

#[tokio::test]
async fn they_are_bounded_as_streams() {
    let echo = Echo::start().await;
    let proxy = over(&echo).await.upstream("connections.max_streams = 1").start().await;
    let mut first = proxy.connect().await;
    first.send(ASK).await;
    assert_eq!(first.response().await.status, 101);
    let mut second = proxy.connect().await;
    second.send(ASK).await;
    second.response().await.must_be(503, "concurrency_limited");
}

#[tokio::test]
async fn draining_leaves_them_alone_for_a_while_of_their_own() {
    let echo = Echo::start().await;
    let mut proxy = over(&echo)
        .await
        .listener("direction = \"ingress\"")
        .and("[server]\nupgrade_drain_timeout = \"400ms\"")
        .start()
        .await;
    let mut client = proxy.connect().await;
    client.send(ASK).await;
    assert_eq!(client.response().await.status, 101);

    assert!(proxy.admin_post("/drain").await.status < 300);

    client.send("still").await;
    assert_eq!(client.bytes(10).await, b"hellostill");
    client.until_end().await;
    eventually("its upstream is closed too", async || echo.open.load(Relaxed) == 0).await;
    proxy.signal(rustix::process::Signal::TERM);
}

/// A real client and a real server: Python's websockets, from PyPI.
#[tokio::test]
async fn a_real_websocket_works() {
    let server = python::Script::start(
        "websockets",
        "
import asyncio, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with websockets.serve(echo, '127.0.0.1', 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()
asyncio.run(main())
",
    )
    .await;
    let proxy = Config::over_addresses(&[format!("127.0.0.1:{}", server.said)]).start().await;
    let client = "
import asyncio, websockets
async def main():
    async with websockets.connect('ws://LISTENER/x', max_size=None) as socket:
        for size in (1, 125, 126, 70000, 3000000):
            message = b'x' * size
            await socket.send(message)
            assert await socket.recv() == message, size
        await (await socket.ping())
    print(socket.close_code)
asyncio.run(main())
";
    let said = python::run("websockets", &client.replace("LISTENER", &proxy.listener().to_string())).await;
    assert_eq!(said.trim(), "1000");
    proxy.rests().await;
}
