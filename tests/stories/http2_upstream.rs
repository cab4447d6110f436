//! Upstreams of HTTP/2: what goes up and comes back by streams, sessions and their ends, and what the frames of an
//! upstream may do to a request.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use hyper::body::Frame;

use crate::support::client::post;
use crate::support::http2::{Http2, fed, read};
use crate::support::http2_upstream::*;
use crate::support::*;

/// One upstream of HTTP/2 over these addresses.
fn over<'a>(upstreams: impl IntoIterator<Item = &'a Http2Upstream>) -> Config {
    let addresses: Vec<String> = upstreams.into_iter().map(|one| one.address().to_string()).collect();
    Config::over_addresses(&addresses).http2()
}

fn over_raw(upstream: &RawHttp2Upstream) -> Config {
    Config::over_addresses(&[upstream.address().to_string()]).http2()
}

#[tokio::test]
async fn a_request_of_http_1_goes_up_as_a_stream_and_its_answer_comes_back() {
    let app = Http2Upstream::that()
        .answers(200)
        .with_field("x-from", "app")
        .with_body("hello")
        .with_field("content-length", "5")
        .start()
        .await;
    let proxy = over([&app]).start().await;

    let mut client = proxy.connect().await;
    let request = "POST /a/b?c=d HTTP/1.1\r\nHost: app.test\r\nConnection: x-private\r\nX-Private: 1\r\nX-Kept: 2\r\n\
                   Content-Length: 3\r\n\r\nabc";
    let response = client.exchange(request).await;

    assert_eq!((response.status, response.text().as_str()), (200, "hello"));
    assert_eq!(response.field("x-from"), Some("app"));
    let seen = app.request(0);
    assert_eq!((seen.method.as_str(), seen.uri.as_str()), ("POST", "http://app.test/a/b?c=d"));
    assert_eq!((seen.body.as_slice(), seen.whole), (&b"abc"[..], true));
    assert_eq!((seen.field("x-kept"), seen.field("content-length")), (Some("2"), Some("3")));
    for gone in ["x-private", "connection", "host", "transfer-encoding"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    assert!(seen.field("x-request-id").is_some() && seen.field("x-outrigger-path").is_some());
    assert_eq!(client.exchange(&get("/again")).await.status, 200, "the client's connection lives on");
    assert_eq!((app.seen(), app.connections()), (2, 1), "and both were streams of one session");
    proxy.rests().await;
}

#[tokio::test]
async fn a_request_of_http_2_goes_up_as_a_stream_with_trailers_both_ways() {
    let app = Http2Upstream::that()
        .answers(200)
        .with_body(vec![b'y'; 200 << 10])
        .with_trailer("x-sum", "42")
        .start()
        .await;
    let proxy = over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let (feed, body) = fed();
    let request = client.request("POST", "/up").header("te", "trailers").body(body).expect("a request");
    let sending = tokio::spawn(async move {
        for _ in 0..10 {
            feed.send(Frame::data(Bytes::from(vec![b'x'; 30 << 10]))).await.expect("it is taken");
        }
        let trailers = [(http::HeaderName::from_static("x-end"), http::HeaderValue::from_static("1"))];
        feed.send(Frame::trailers(trailers.into_iter().collect())).await.expect("it is taken");
    });
    let response = read(client.send(request).await.expect("an answer")).await.expect("a whole answer");
    sending.await.expect("no panic");

    assert_eq!((response.head.status, response.body.len()), (http::StatusCode::OK, 200 << 10));
    assert_eq!(response.trailers.expect("they came")["x-sum"], "42");
    let seen = app.request(0);
    assert_eq!((seen.body.len(), seen.whole), (300 << 10, true));
    assert_eq!(value(&seen.trailers, "x-end"), Some("1"));
    assert_eq!(seen.field("te"), Some("trailers"));
}

#[tokio::test]
async fn answers_without_a_body_are_framed_for_http_1() {
    for (why, status, method, length) in [
        ("an empty answer", 200, "GET", Some("0")),
        ("no content", 204, "GET", None),
        ("not modified", 304, "GET", None),
        ("a head", 200, "HEAD", Some("5")),
    ] {
        let mut script = Http2Upstream::that().answers(status);
        if method == "HEAD" {
            script = script.with_field("content-length", "5");
        }
        let app = script.start().await;
        let proxy = over([&app]).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..2 {
            let response = client.exchange(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!((response.status, response.field("content-length")), (status, length), "{why}");
            assert!(response.whole && response.body.is_empty(), "{why}");
        }
        assert_eq!(app.connections(), 1, "{why}");
    }
}

#[tokio::test]
async fn trailers_of_http_2_reach_a_client_of_http_1_behind_the_last_chunk() {
    let app = Http2Upstream::that().answers(200).with_body("hello").with_trailer("x-sum", "42").start().await;
    let proxy = over([&app]).start().await;
    let request =
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n";
    let response = proxy.connect().await.exchange(request).await;
    assert_eq!((response.text().as_str(), response.whole), ("hello", true));
    assert_eq!(value(&response.trailers, "x-sum"), Some("42"));
    let seen = app.request(0);
    assert_eq!((seen.body.as_slice(), value(&seen.trailers, "x-end")), (&b"abc"[..], Some("1")));
}

#[tokio::test]
async fn interim_answers_reach_the_client() {
    let app = Http2Upstream::that().answers(200).informs(103).with_body("ok").start().await;
    let proxy = over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    assert_eq!(client.response().await.status, 103);
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_from_the_upstream() {
    let app = Http2Upstream::that().answers(200).informs(100).with_body("ok").start().await;
    let proxy = over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    assert_eq!(client.response().await.status, 100);
    client.send("abc").await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(app.request(0).body, b"abc");
}

#[tokio::test]
async fn an_answer_may_come_while_the_upload_still_flows() {
    let app = Http2Upstream::that().answers(413).with_field("content-length", "0").early().start().await;
    let proxy = over([&app]).plain().start().await;
    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n").await;
    client.send(vec![b'x'; 1000]).await;
    assert_eq!(client.response().await.status, 413);
    proxy.rests().await;
}

#[tokio::test]
async fn bodies_flow_both_ways_at_once() {
    let app = Http2Upstream::that().answers(200).echoes().start().await;
    let proxy = over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    let (feed, body) = fed();
    let request = client.request("POST", "/").body(body).expect("a request");
    let mut response = client.send(request).await.expect("the head comes before the body").into_body();
    for size in [1, 1000, 60_000] {
        feed.send(Frame::data(Bytes::from(vec![b'x'; size]))).await.expect("it is taken");
        let mut back = 0;
        while back < size {
            let frame = http_body_util::BodyExt::frame(&mut response);
            let frame = soon("the echo", frame).await.expect("more").expect("no error");
            back += frame.into_data().expect("data").len();
        }
    }
    drop(feed);
    assert!(read(http::Response::new(response)).await.expect("it ends").body.is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream_at_once() {
    let app = Http2Upstream::that().answers(200).holds().start().await;
    let proxy = over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    app.has_seen(1).await;
    drop(client);
    eventually("the stream is reset", async || app.request(0).reset == Some(Reason::CANCEL)).await;
    proxy.rests().await;
    app.has_open(1).await;

    // In the body, too.
    let app = Http2Upstream::that().answers(200).with_body("some").holds_its_end().start().await;
    let proxy = over([&app]).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    drop(client);
    eventually("the stream is reset", async || app.request(0).reset == Some(Reason::CANCEL)).await;
    proxy.rests().await;
}

#[tokio::test]
async fn requests_share_one_session_and_its_end_is_counted() {
    let app = Http2Upstream::that().answers(200).holds().start().await;
    let proxy = over([&app]).one_worker().start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        clients.push(client);
    }
    app.has_seen(20).await;
    assert_eq!(app.connections(), 1, "whoever came during the connect waited for it");
    let active = "outrigger_upstream_connections{state=active}";
    assert_eq!(proxy.metric(active).await, 1.0);
    app.release(20);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    proxy.metric_becomes(active, 0.0).await;
    proxy.metric_becomes("outrigger_upstream_connections{state=idle}", 1.0).await;
    assert_eq!(proxy.metric("outrigger_upstream_connects_total{result=ok}").await, 1.0);
}

#[tokio::test]
async fn another_session_is_made_when_streams_run_out() {
    let app = Http2Upstream::that().answers(200).holds().takes_streams(1).start().await;
    let proxy = over([&app]).one_worker().upstream("connections = { max = 3 }").plain().start().await;
    let mut clients = Vec::new();
    for number in 1..=3 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        clients.push(client);
        app.has_seen(number).await;
    }
    assert_eq!(app.connections(), 3);
    let refused = proxy.get("/").await;
    refused.must_be_because(503, "concurrency_limited", "connections.max counts sessions");
    app.release(3);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn idle_sessions_over_the_bound_cost_nobody_more_than_a_connect() {
    let apps =
        [Http2Upstream::that().answers(200).start().await, Http2Upstream::that().answers(200).start().await];
    let config = over(&apps).one_worker().plain().upstream("balance.kind = \"round_robin\"");
    let proxy = config.upstream("connections = { max = 1 }").start().await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    let connects = proxy.metric("outrigger_upstream_connects_total{result=ok}").await;
    assert!((2.0..=20.0).contains(&connects), "{connects}");
    let idle = "outrigger_upstream_connections{state=idle}";
    proxy.metric_becomes(idle, 1.0).await;
    assert!(apps.iter().all(|app| app.seen() > 0), "both were asked");
}

#[tokio::test]
async fn an_upstream_that_ends_every_session_at_once_is_not_asked_for_ever() {
    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).one_worker().plain().start().await;
    let asked = tokio::spawn(async move { (proxy.get("/").await, proxy) });
    let mut peers = Vec::new();
    let ends = async {
        loop {
            let mut peer = app.accept().await;
            // SETTINGS and GOAWAY in one piece, so that both are read before the request can go up.
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            peer.write(&[&settings[..], &go_away].concat()).await;
            peers.push(peer);
        }
    };
    let (response, proxy) = tokio::select! {
        asked = asked => asked.expect("no panic"),
        () = ends => unreachable!("it never ends"),
    };
    assert_eq!(response.status, 502);
    assert!(proxy.metric("outrigger_upstream_connects_total{result=ok}").await <= 2.0);
}

#[tokio::test]
async fn an_idle_session_ends_with_its_time_and_a_worn_one_with_its_requests() {
    let app = Http2Upstream::that().answers(200).start().await;
    let proxy =
        over([&app]).one_worker().upstream("connections = { idle_timeout = \"200ms\" }").start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    app.has_open(0).await;

    let app = Http2Upstream::that().answers(200).start().await;
    let proxy = over([&app]).one_worker().upstream("connections = { max_requests = 2 }").start().await;
    for _ in 0..6 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(app.connections(), 3);
}

#[tokio::test]
async fn a_reload_bounds_sessions_that_stand() {
    let app = Http2Upstream::that().answers(200).start().await;
    let config = |more: &str| over([&app]).one_worker().upstream(more);
    let proxy = config("").start().await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(app.connections(), 1);
    proxy.rewrite(&config("connections = { max_requests = 2 }").text());
    let answer = proxy.admin_post("/reload").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(app.connections(), 2, "the session has served three");
}

#[tokio::test]
async fn what_an_upstream_leaves_behind_goes_elsewhere_for_free() {
    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).one_worker().plain().start().await;
    let mut first = proxy.connect().await;
    first.send(post("/first", "abc")).await;
    let mut old = app.accept_with(&[]).await;
    let one = old.request().await;
    let mut second = proxy.connect().await;
    second.send(post("/second", "abc")).await;
    let two = old.request().await;
    assert!(two > one);

    old.go_away(one, 0).await;
    let mut new = app.accept_with(&[]).await;
    let again = new.request().await;
    new.answer(again).await;
    assert_eq!(second.response().await.status, 200, "it has not been processed, so even a POST may go again");
    old.answer(one).await;
    assert_eq!(first.response().await.status, 200, "what was begun is ended");
    assert_eq!(proxy.metric("outrigger_retries_total").await, 0.0);
    assert_eq!(proxy.metric("outrigger_attempts_total{outcome=ok}").await, 2.0);
}

#[tokio::test]
async fn a_refused_stream_is_retried_whatever_its_method() {
    let full = Http2Upstream::that().resets(Reason::REFUSED_STREAM).start().await;
    let free = Http2Upstream::that().answers(200).start().await;
    let proxy = over([&full, &free]).upstream("balance.kind = \"round_robin\"").start().await;
    for _ in 0..10 {
        assert_eq!(proxy.connect().await.exchange(&post("/", "abc")).await.status, 200);
    }
    assert_eq!(free.seen(), 10);
    assert!(full.seen() > 0);
}

#[tokio::test]
async fn a_reset_stream_is_an_upstreams_failure() {
    let app = Http2Upstream::that().resets(Reason::INTERNAL_ERROR).start().await;
    let proxy = over([&app]).plain().start().await;
    for number in 1..=3 {
        let response = proxy.get("/").await;
        response.must_be(502, "upstream_reset");
        assert_eq!(app.seen(), number, "whoever resets a stream has seen it");
    }

    let flaky = Http2Upstream::that().resets(Reason::INTERNAL_ERROR).answers(200).start().await;
    let proxy = over([&flaky]).start().await;
    assert_eq!(proxy.get("/").await.status, 200, "a GET may go again");
    assert_eq!(flaky.connections(), 1, "the session has done nothing wrong");
}

#[tokio::test]
async fn a_session_that_breaks_at_work_is_no_stale_one() {
    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).one_worker().plain().start().await;
    let mut long = proxy.connect().await;
    long.send(get("/first")).await;
    let mut peer = app.accept_with(&[]).await;
    let first = peer.request().await;
    peer.answer(first).await;
    assert_eq!(long.response().await.status, 200);
    long.send(get("/long")).await;
    peer.request().await;
    let mut quick = proxy.connect().await;
    quick.send(get("/quick")).await;
    let other = peer.request().await;
    peer.answer(other).await;
    assert_eq!(quick.response().await.status, 200);

    drop(peer);

    long.response().await.must_be(502, "upstream_reset");
}

#[tokio::test]
async fn a_small_answer_that_breaks_off_is_replaced_and_a_large_one_is_cut() {
    let app = Http2Upstream::that()
        .answers(200)
        .with_field("content-length", "1000")
        .with_body("half")
        .resets_behind_the_body(Reason::INTERNAL_ERROR)
        .answers(200)
        .with_body("whole")
        .start()
        .await;
    let proxy = over([&app]).start().await;
    let response = proxy.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (200, "whole"));

    let app = Http2Upstream::that()
        .answers(200)
        .with_body("half")
        .resets_behind_the_body(Reason::INTERNAL_ERROR)
        .start()
        .await;
    let proxy = over([&app]).start().await;
    let response = proxy.get("/").await;
    assert_eq!((response.status, response.whole), (200, false));
    let outcome = "outrigger_attempts_total{outcome=upstream_reset}";
    proxy.metric_becomes(outcome, 1.0).await;
}

#[tokio::test]
async fn an_upload_waits_for_the_upstreams_window_and_stalls_nobody_else() {
    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).one_worker().plain().upstream("timeout.idle = \"500ms\"").start().await;
    let mut slow = proxy.connect().await;
    slow.send("PUT /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n").await;
    let sending = tokio::spawn(async move {
        slow.send_until_stuck(&vec![b'x'; 200_000]).await;
        slow
    });
    // A window of 1000 bytes for each stream, which is never opened further.
    let mut peer = app.accept_with(&[(4, 1000)]).await;
    let stuck = peer.request().await;
    let mut quick = proxy.connect().await;
    quick.send(get("/quick")).await;
    let other = peer.request().await;
    peer.answer(other).await;
    assert_eq!(quick.response().await.status, 200);
    let mut slow = sending.await.expect("no panic");
    let response = slow.response().await;
    response.must_be(504, "upstream_stalled");
    loop {
        let frame = soon("a frame", peer.frame()).await.expect("the session lives on");
        if frame.kind == RST_STREAM && frame.stream == stuck {
            break;
        }
    }
}

#[tokio::test]
async fn clients_that_do_not_read_stall_nobody_else() {
    let app = Http2Upstream::that().answers(200).with_body(vec![b'y'; 8 << 20]).start().await;
    let proxy = over([&app]).wide().one_worker().start().await;
    let mut deaf = Vec::new();
    for number in 1..=20 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        deaf.push(client);
        app.has_seen(number).await;
    }
    let start = Instant::now();
    let response = proxy.get("/").await;
    assert_eq!((response.body.len(), response.whole), (8 << 20, true));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn clients_that_stop_reading_at_once_leave_the_window_to_the_others() {
    let app = Http2Upstream::that().answers(200).with_body(vec![b'y'; 8 << 20]).holds().start().await;
    let proxy = over([&app]).one_worker().start().await;
    let mut clients = Vec::new();
    for number in 1..=20 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        clients.push(client);
        app.has_seen(number).await;
    }
    assert_eq!(app.connections(), 1);
    // All but one do not read, and have more on their way than the session's window holds.
    app.release(20);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut reader = clients.pop().expect("there are twenty");
    let response = reader.response().await;
    assert_eq!((response.body.len(), response.whole), (8 << 20, true));
}

#[tokio::test]
async fn who_does_not_speak_http_2_is_told_from_who_is_away() {
    let app =
        Upstream::that().answers_raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").start().await;
    let proxy = Config::over([&app]).http2().plain().start().await;
    let response = proxy.get("/").await;
    response.must_be(502, "protocol_error");
    assert!(response.text().contains("http1"), "{}", response.text());

    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).plain().start().await;
    let asked = tokio::spawn(async move { (proxy.get("/").await, proxy) });
    let mut peer = app.accept().await;
    peer.write(b"\x16\x03\x01 this is no frame of anybody").await;
    let (response, _proxy) = asked.await.expect("no panic");
    response.must_be(502, "protocol_error");

    let proxy = Config::over([&Upstream::refusing()]).http2().plain().start().await;
    proxy.get("/").await.must_be(502, "connect_error");
}

#[tokio::test]
async fn an_upstream_that_sends_no_settings_is_a_connect_that_takes_too_long() {
    let app = RawHttp2Upstream::start().await;
    let config = over_raw(&app).plain().upstream("timeout.connect = \"200ms\"");
    let proxy = config.start().await;
    let response = proxy.get("/").await;
    response.must_be(502, "connect_error");
    proxy.metric_becomes("outrigger_upstream_connects_total{result=timeout}", 1.0).await;
}

#[tokio::test]
async fn a_session_that_broke_while_idle_costs_nobody_a_request() {
    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).one_worker().plain().start().await;
    for _ in 0..3 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        let mut peer = app.accept_with(&[]).await;
        let stream = peer.request().await;
        peer.answer(stream).await;
        assert_eq!(client.response().await.status, 200);
        drop(peer);
        proxy.metric_becomes("outrigger_upstream_connections{state=idle}", 0.0).await;
    }
}

#[tokio::test]
async fn what_cannot_be_sent_twice_asks_a_session_that_was_idle_for_a_sign_of_life() {
    let app = Http2Upstream::that().answers(200).start().await;
    let proxy = over([&app]).one_worker().plain().start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(client.exchange(&post("/", "abc")).await.status, 200);
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!((app.seen(), app.connections()), (2, 1), "it answers");

    let app = RawHttp2Upstream::start().await;
    let proxy = over_raw(&app).one_worker().plain().start().await;
    let mut client = proxy.connect().await;
    client.send(post("/", "abc")).await;
    let mut mute = app.accept_with(&[]).await;
    let stream = mute.request().await;
    mute.answer(stream).await;
    assert_eq!(client.response().await.status, 200);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    client.send(post("/", "abc")).await;
    let mut new = app.accept_with(&[]).await;
    let stream = new.request().await;
    new.answer(stream).await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn timeouts_cut_streams_as_they_cut_connections() {
    let app = Http2Upstream::that().answers(200).holds().start().await;
    let proxy = over([&app]).plain().within("200ms").start().await;
    let response = proxy.get("/").await;
    response.must_be(504, "request_timeout");
    eventually("the stream is reset", async || app.request(0).reset == Some(Reason::CANCEL)).await;
}

#[tokio::test]
async fn requests_are_balanced_one_by_one() {
    let apps = [
        Http2Upstream::that().answers(200).start().await,
        Http2Upstream::that().answers(200).start().await,
        Http2Upstream::that().answers(200).start().await,
    ];
    let proxy = over(&apps).upstream("balance.kind = \"round_robin\"").start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    for _ in 0..60 {
        assert_eq!(client.get("/").await.head.status, 200);
    }
    for app in &apps {
        assert_eq!(app.seen(), 20);
    }
}
