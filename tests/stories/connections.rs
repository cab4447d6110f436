//! How long upstreams keep idle connections is learnt, and no request meets the moment in which they close.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::client::post;
use crate::support::servers::Server;
use crate::support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A server that closes a connection which was idle for as long as its patience, as many do: without a word.
struct Impatient {
    address: std::net::SocketAddr,
    requests: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
}

impl Impatient {
    /// Its answers have these fields too.
    async fn start(patience: Duration, fields: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut input = Vec::new();
                    while let Ok(Ok(1..)) = tokio::time::timeout(patience, stream.read_buf(&mut input)).await
                    {
                        let Some(head) = find(&input, b"\r\n\r\n") else { continue };
                        let body = if input.starts_with(b"POST") { 4 } else { 0 };
                        if input.len() < head + 4 + body {
                            continue;
                        }
                        input.clear();
                        // So that requests side by side need connections of their own.
                        tokio::time::sleep(ms(30)).await;
                        seen.fetch_add(1, Ordering::Relaxed);
                        let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, requests, serving }
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Every lane is an upstream of its own over the same server: what one teaches the others do not know.
fn lanes(address: std::net::SocketAddr, count: usize, lines: &str) -> String {
    let mut text = String::new();
    for lane in 0..count {
        text += &format!(
            "[[listener.route]]\nname = \"l{lane}\"\nmatch = {{ path_prefix = \"/{lane}\" }}\nupstream = \"l{lane}\"\n"
        );
    }
    for lane in 0..count {
        text += &format!("[upstream.l{lane}]\nendpoints = [\"{address}\"]\n{lines}\n");
    }
    text
}

/// On each lane one POST after the other, with a gap that is the lane's own and around `patience`. All must be answered,
/// and the server must have seen each once: nothing is retried that could hide a failure. Nearer to it than 15 ms they do
/// not come: what is sent in the moment of the close is lost, whoever sends it.
async fn no_post_fails_around(address: std::net::SocketAddr, patience: Duration, rounds: usize) {
    let count = 20;
    let lines = "retry.attempts = 1\nbreaker.mode = \"off\"";
    let proxy = Config::over_addresses(&[address.to_string()])
        .one_worker()
        .and(&lanes(address, count, lines))
        .start()
        .await;
    let mut clients = Vec::new();
    for lane in 0..count {
        let near = ms(15) + ms(10) * (lane as u32 / 2);
        let gap = if lane % 2 == 0 { patience - near } else { patience + near };
        let mut client = proxy.connect().await;
        clients.push(tokio::spawn(async move {
            for round in 0..rounds {
                let response = client.exchange(&post(&format!("/{lane}"), "once")).await;
                assert_eq!(response.status, 200, "after {gap:?}, round {round}: {}", response.text());
                tokio::time::sleep(gap).await;
            }
        }));
    }
    for client in clients {
        client.await.expect("no POST failed");
    }
    assert_eq!(proxy.metric("outrigger_attempts_total{outcome=upstream_reset}").await, 0.0);
    proxy.metric_becomes("outrigger_requests_total{code=200}", (count * rounds) as f64).await;
}

#[tokio::test]
async fn no_post_meets_nginx_closing_its_idle_connections() {
    let nginx = Server::nginx_with(|port, _| {
        format!("keepalive_timeout 2s; server {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }}")
    })
    .await;
    no_post_fails_around(nginx.address, ms(2000), 4).await;
}

#[tokio::test]
async fn no_post_meets_the_close_of_a_server_without_patience() {
    let app = Impatient::start(ms(700), "").await;
    no_post_fails_around(app.address, ms(700), 8).await;
    assert_eq!(app.requests.load(Ordering::Relaxed), 160, "each came once");
}

#[tokio::test]
async fn what_cannot_be_sent_twice_takes_only_what_was_used_just_now() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).one_worker().start().await;
    let mut client = proxy.connect().await;
    client.exchange(&get("/")).await;
    client.exchange(&post("/", "once")).await;
    assert_eq!(app.connections(), 1);
    tokio::time::sleep(ms(1100)).await;
    client.exchange(&get("/")).await;
    assert_eq!(app.connections(), 1, "a GET may be sent again");
    tokio::time::sleep(ms(1100)).await;
    client.exchange(&post("/", "once")).await;
    assert_eq!(app.connections(), 2, "a POST may not");
    tokio::time::sleep(ms(1100)).await;
    let large = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000));
    client.exchange(&large).await;
    assert_eq!(app.connections(), 3, "nor may what is larger than is kept");
}

#[tokio::test]
async fn what_the_upstream_says_and_does_bounds_what_is_kept() {
    // Told: half of a second's patience, though the configuration would keep them longer.
    let told = Upstream::that().answers(200).with_field("Keep-Alive", "timeout=1, max=100").start().await;
    let proxy = Config::over([&told]).upstream("connections = { idle_timeout = \"1m\" }").start().await;
    let start = Instant::now();
    assert_eq!(proxy.get("/").await.status, 200);
    told.has_open(0).await;
    assert!(start.elapsed() < ms(5000), "{:?}", start.elapsed());
    assert!(start.elapsed() > ms(300), "{:?}", start.elapsed());

    // Seen: after one close the next connection goes before it would be closed.
    let app = Impatient::start(ms(1500), "").await;
    let config = Config::over_addresses(&[app.address.to_string()]).one_worker();
    let proxy = config.upstream("connections = { idle_timeout = \"1m\" }").start().await;
    let idle = "outrigger_upstream_connections{upstream=app,state=idle}";
    assert_eq!(proxy.get("/").await.status, 200);
    let start = Instant::now();
    proxy.metric_becomes(idle, 0.0).await;
    assert!(start.elapsed() >= ms(1200), "nothing was known: {:?}", start.elapsed());
    let (one, other) = tokio::join!(proxy.get("/"), proxy.get("/"));
    assert_eq!((one.status, other.status), (200, 200));
    let start = Instant::now();
    proxy.metric_becomes(idle, 2.0).await;
    // One goes at half of what is kept; the other stays to see whether more is kept by now.
    proxy.metric_becomes(idle, 1.0).await;
    assert!(start.elapsed() < ms(1400), "{:?}", start.elapsed());
    proxy.metric_becomes(idle, 0.0).await;
}

#[tokio::test]
async fn where_an_upstream_promises_to_keep_them_connections_live_longer() {
    let app = Upstream::that().answers(200).with_field("Keep-Alive", "timeout=75").start().await;
    let proxy = Config::over([&app]).one_worker().start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    tokio::time::sleep(ms(4700)).await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(app.connections(), 1, "the default alone would have closed it after 4 s");
}

#[tokio::test]
async fn connections_to_what_a_reload_takes_away_are_closed_at_once() {
    let (app, other) =
        (Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await);
    let two = |endpoint: &Upstream| {
        format!(
            "[[listener.route]]\nname = \"two\"\nmatch = {{ path_prefix = \"/two\" }}\nupstream = \"two\"\n\
             [upstream.two]\nendpoints = [\"{}\"]\nconnections = {{ idle_timeout = \"1m\" }}\n",
            endpoint.address()
        )
    };
    let third = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).and(&two(&other)).start().await;
    for path in ["/", "/two"] {
        assert_eq!(proxy.get(path).await.status, 200);
    }
    assert_eq!((app.open(), other.open()), (1, 1));
    // Its endpoint is another one.
    proxy.rewrite(&Config::over([&app]).and(&two(&third)).text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    other.has_open(0).await;
    assert_eq!(proxy.get("/two").await.status, 200);
    assert_eq!(third.open(), 1);
    // Its name is gone.
    proxy.rewrite(&Config::over([&app]).text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    third.has_open(0).await;
}

#[tokio::test]
async fn the_connection_of_a_failed_answer_serves_the_next_attempt() {
    let app = Upstream::that().answers(503).answers(503).answers(200).start().await;
    let proxy = Config::over([&app]).one_worker().start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    app.has_seen(3).await;
    assert_eq!(app.connections(), 1, "an answer without a body holds it through no back-off");
}
