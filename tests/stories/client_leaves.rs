//! A client that leaves, at each point: its attempt is cancelled at once, and nothing stays in flight.

use std::time::Duration;

use crate::support::upstream::Script;
use crate::support::*;

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Exit {
    Closes,
    Resets,
}

const EXITS: [Exit; 2] = [Exit::Closes, Exit::Resets];

fn leave(client: Client, exit: Exit) {
    match exit {
        Exit::Closes => drop(client),
        Exit::Resets => client.reset(),
    }
}

/// Nothing is left: no connection up, no connection in, no slot.
async fn nothing_is_left(proxy: &Proxy, app: &Upstream) {
    app.has_open(0).await;
    proxy.rests().await;
    proxy.metric_becomes("outrigger_client_connections{listener=main}", 0.0).await;
}

#[tokio::test]
async fn while_it_sends_its_head() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let request = get("/");
    for exit in EXITS {
        for length in 0..request.len() {
            let mut client = proxy.connect().await;
            client.send(&request[..length]).await;
            leave(client, exit);
        }
    }
    nothing_is_left(&proxy, &app).await;
    assert_eq!(app.seen(), 0);
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn while_it_sends_its_body() {
    let heads = [
        ("of known length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello"),
        ("in chunks", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        (
            "in the middle of a chunk",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        ),
        (
            "before the last line end",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        ),
    ];
    for exit in EXITS {
        for (why, bytes) in heads {
            let app = Upstream::that().answers(200).start().await;
            let proxy = Config::over([&app]).start().await;
            let mut client = proxy.connect().await;
            client.send(bytes).await;
            app.has_seen(1).await;
            leave(client, exit);

            nothing_is_left(&proxy, &app).await;
            assert!(!app.request(0).whole, "{why}, {exit:?}: half a request never looks whole");
            assert_eq!(app.seen(), 1, "{why}, {exit:?}");
        }
    }
}

#[tokio::test]
async fn while_it_waits_for_the_head() {
    for exit in EXITS {
        let app = Upstream::that().never_answers().start().await;
        let proxy = Config::over([&app]).start().await;
        let mut client = proxy.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: it-leaves\r\n\r\n").await;
        app.has_seen(1).await;
        leave(client, exit);

        nothing_is_left(&proxy, &app).await;
        let line = proxy.access_log("it-leaves").await;
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&499.into(), &"client_disconnected".into()),
            "{line}"
        );
        assert_eq!(
            proxy.metric("outrigger_requests_total{code=499,outcome=cancelled}").await,
            1.0,
            "{exit:?}"
        );
        assert_eq!(app.seen(), 1, "no retry for nobody");
        let attempts = "outrigger_attempts_total{upstream=app,outcome=client_disconnected}";
        assert_eq!(proxy.metric(attempts).await, 1.0, "{exit:?}: an attempt was made and has an outcome");
    }
}

#[tokio::test]
async fn while_a_large_upload_waits_for_the_head() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1 << 20)).await;
    client.send(vec![b'x'; 1 << 20]).await;
    app.has_all_of(0).await;
    drop(client);
    nothing_is_left(&proxy, &app).await;
}

/// An upstream that has answered 20 requests at once, so that it is known how long answers take, and then sees uploads
/// that are not complete when their clients leave.
async fn after_broken_uploads(uploads: usize, piece: &[u8], app: Script) -> Proxy {
    let app = app.start().await;
    let proxy = Config::over([&app]).wide().one_worker().upstream("retry.attempts = 1").start().await;
    let mut client = proxy.connect().await;
    for _ in 0..20 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut clients = Vec::new();
    for _ in 0..uploads {
        let mut client = proxy.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n").await;
        client.send_until_stuck(piece).await;
        clients.push(client);
    }
    app.has_seen(20 + uploads).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    clients.into_iter().for_each(Client::reset);
    let left = "outrigger_attempts_total{outcome=client_disconnected}";
    proxy.metric_becomes(left, uploads as f64).await;
    proxy.rests().await;
    proxy
}

#[tokio::test]
async fn in_mid_upload_which_is_nobodys_failure() {
    let opened = "outrigger_breaker_transitions_total{to=open}";
    let well = || (0..20).fold(Upstream::that(), |app, _| app.answers(200));
    let proxy = after_broken_uploads(40, b"hello", well().answers(200)).await;
    assert_eq!(proxy.metric(opened).await, 0.0, "their clients sent no more");
    assert_eq!(proxy.get("/").await.status, 200);

    let stuck = well().answers(200).holds().never_reads_the_body();
    let proxy = after_broken_uploads(25, &vec![b'x'; 64 << 20], stuck).await;
    assert_eq!(proxy.metric(opened).await, 1.0, "the upstream took no more");
}

#[tokio::test]
async fn because_the_body_hangs_which_is_the_upstreams_failure() {
    let app = (0..20).fold(Upstream::that(), |app, _| app.answers(200));
    let hangs = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello";
    let app = app.answers_raw(hangs).then_hangs().start().await;
    let proxy = Config::over([&app]).one_worker().start().await;
    let mut client = proxy.connect().await;
    for _ in 0..20 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    // By then it is known how long answers take.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(client);
    proxy.metric_becomes("outrigger_attempts_total{outcome=client_disconnected}", 1.0).await;
    nothing_is_left(&proxy, &app).await;
}

#[tokio::test]
async fn while_the_body_comes() {
    let answers = [
        ("of known length", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello"),
        ("in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("until close", "HTTP/1.1 200 OK\r\n\r\nhello"),
        ("an event stream", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"),
    ];
    for exit in EXITS {
        for (why, answer) in answers {
            let app = Upstream::that().answers_raw(answer).then_hangs().start().await;
            let proxy = Config::over([&app]).start().await;
            let mut client = proxy.connect().await;
            client.send(get("/")).await;
            assert_eq!(client.head().await.expect("a head").status, 200, "{why}");
            leave(client, exit);
            nothing_is_left(&proxy, &app).await;
        }
    }
}

#[tokio::test]
async fn while_a_large_body_comes_that_it_does_not_read() {
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 64 << 20]).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    client.reset();
    nothing_is_left(&proxy, &app).await;
}

#[tokio::test]
async fn while_a_small_answer_is_held() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        .then_hangs()
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    app.has_sent(1).await;
    drop(client);
    nothing_is_left(&proxy, &app).await;
}

#[tokio::test]
async fn while_a_back_off_runs() {
    let app = Upstream::that().answers(503).answers(200).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.backoff = { base = \"1s\", max = \"1s\", jitter = \"none\" }")
        .upstream("connections = { idle_timeout = \"100ms\" }")
        .start()
        .await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: it-leaves\r\n\r\n").await;
    app.has_sent(1).await;
    drop(client);

    assert_eq!(proxy.access_log("it-leaves").await["reason"], "client_disconnected");
    nothing_is_left(&proxy, &app).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(app.seen(), 1, "no retry for nobody");
}

#[tokio::test]
async fn while_a_connect_runs() {
    let app = Upstream::blackhole();
    let proxy = Config::over([&app]).plain().upstream("timeout.connect = \"14s\"").start().await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: it-leaves\r\n\r\n").await;
    proxy.metric_becomes("outrigger_concurrency_in_flight{upstream=app}", 1.0).await;
    drop(client);

    assert_eq!(proxy.access_log("it-leaves").await["reason"], "client_disconnected");
    proxy.rests().await;
}

#[tokio::test]
async fn half_closed_is_left_unless_configured() {
    let app = Upstream::that().answers(200).with_body("hello").holds().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    app.has_seen(1).await;
    client.finish().await;
    app.has_open(0).await;
    proxy.rests().await;

    let app = Upstream::that().answers(200).with_body("hello").holds().start().await;
    let proxy = Config::over([&app]).listener("limits = { half_close = true }").start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    app.has_seen(1).await;
    client.finish().await;
    app.release(1);
    assert_eq!(client.response().await.text(), "hello");
    client.closes().await;
}

#[tokio::test]
async fn with_more_requests_in_its_pipeline() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/").repeat(10)).await;
    app.has_seen(1).await;
    drop(client);
    nothing_is_left(&proxy, &app).await;
    assert_eq!(app.seen(), 1, "what was not begun is not begun for nobody");
}

#[tokio::test]
async fn behind_more_requests_than_anybody_reads_ahead() {
    for exit in EXITS {
        let app = Upstream::that().never_answers().start().await;
        let proxy = Config::over([&app]).within("4s").start().await;
        let mut client = proxy.connect().await;
        client.send(get("/").repeat(5000)).await;
        app.has_seen(1).await;
        leave(client, exit);
        app.has_open(0).await;
        proxy.rests().await;
        assert!(app.seen() < 100, "{exit:?}: {} requests for nobody", app.seen());
    }
}

#[tokio::test]
async fn with_a_reset_while_nobody_reads_its_upload() {
    // More than all buffers hold; only a reset overtakes it.
    in_an_upload_that_nobody_reads(64 << 20, Exit::Resets).await;
}

#[tokio::test]
async fn with_a_close_while_nobody_reads_its_upload() {
    in_an_upload_that_nobody_reads(100 << 10, Exit::Closes).await;
}

/// Sends so much of a body that is larger, and leaves. The upstream does not see its connection end, since it does
/// not read: the proxy tells.
async fn in_an_upload_that_nobody_reads(sent: usize, exit: Exit) {
    let app = Upstream::that().answers(200).holds().never_reads_the_body().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 64 << 20)).await;
    client.send_until_stuck(&vec![b'x'; sent]).await;
    app.has_seen(1).await;
    leave(client, exit);
    proxy.rests().await;
    proxy.metric_becomes("outrigger_upstream_connections{upstream=app,state=active}", 0.0).await;
}
