//! Clients that speak HTTP/2 with prior knowledge, on the port where others speak HTTP/1.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;

use crate::support::http2::{Came, Http2, RawHttp2, RequestBody, fed, read};
use crate::support::*;

#[tokio::test]
async fn one_port_speaks_both() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).one_worker().start().await;

    let mut client = Http2::connect(proxy.listener()).await;
    let response = client.get("/two?a=b").await;
    assert_eq!((response.head.status.as_u16(), &response.body[..]), (200, &b"hello"[..]));
    assert_eq!(response.head.version, http::Version::HTTP_2);
    assert_eq!(proxy.get("/one").await.text(), "hello");

    let seen = app.request(0);
    assert!(seen.head.starts_with("GET /two?a=b HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.field("host"), Some("app.test"));
    assert_eq!(app.connections(), 1, "and both share the upstream's connections");
}

#[tokio::test]
async fn a_listener_may_speak_one_only() {
    let app = Upstream::that().answers(200).start().await;
    let one = Config::over([&app]).listener("protocol = \"http1\"").start().await;
    let two = Config::over([&app]).listener("protocol = \"http2\"").start().await;

    let mut client = one.connect().await;
    client.try_send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.response().await.must_be(400, "bad_request");
    assert_eq!(Http2::connect(two.listener()).await.get("/").await.head.status, 200);

    let mut client = two.connect().await;
    client.try_send(get("/")).await;
    client.until_end().await;
    assert_eq!(app.seen(), 1, "HTTP/1 is not served there");
}

#[tokio::test]
async fn streams_run_side_by_side() {
    let app = Upstream::that().answers(200).with_body("hello").holds().start().await;
    let proxy = Config::over([&app]).wide().start().await;
    let client = Http2::connect(proxy.listener()).await;

    let requests: Vec<_> = (0..32)
        .map(|number| {
            let mut client = client.clone();
            tokio::spawn(async move { client.get(&format!("/{number}")).await })
        })
        .collect();
    app.has_seen(32).await;
    app.release(32);

    for request in requests {
        assert_eq!(&request.await.expect("no panic").body[..], b"hello");
    }
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    let app = Upstream::that()
        .answers_raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n",
        )
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let (feed, body) = fed();
    let request = client.request("POST", "/").header("te", "trailers").body(body).expect("a request");
    let mut sending = client.clone();
    let response = tokio::spawn(async move { sending.send(request).await });
    feed.send(Frame::data(Bytes::from_static(b"first,"))).await.expect("taken");
    eventually("the first piece is up before the second is sent", async || {
        app.requests().first().is_some_and(|request| request.body == b"first,")
    })
    .await;
    feed.send(Frame::data(Bytes::from_static(b"second"))).await.expect("taken");
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("x-check"),
        http::HeaderValue::from_static("7"),
    )]);
    feed.send(Frame::trailers(trailers)).await.expect("taken");
    drop(feed);

    let response = read(response.await.expect("no panic").expect("a response")).await.expect("whole");
    assert_eq!(&response.body[..], b"hello");
    assert_eq!(response.trailers.as_ref().expect("trailers")["x-sum"], "42");
    for field in ["transfer-encoding", "connection"] {
        assert_eq!(response.field(field), None, "{field} is of HTTP/1");
    }
    let seen = app.request(0);
    assert_eq!(seen.body, b"first,second");
    assert_eq!(seen.field("transfer-encoding"), Some("chunked"));
    assert_eq!(value(&seen.trailers, "x-check"), Some("7"));

    // A known length stays one.
    let request = client.request("PUT", "/").header("content-length", "3");
    client.exchange(request, "abc").await;
    assert_eq!(app.request(1).field("content-length"), Some("3"));
    assert_eq!(app.request(1).field("transfer-encoding"), None);
    assert_eq!(app.request(1).body, b"abc");
}

#[tokio::test]
async fn messages_without_a_body() {
    let app =
        Upstream::that().answers(200).with_body("hello").answers(204).answers(304).answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let head = client.request("HEAD", "/");
    let head = client.exchange(head, "").await;
    assert_eq!(
        (head.head.status.as_u16(), head.field("content-length"), head.body.len()),
        (200, Some("5"), 0)
    );
    for status in [204, 304, 200] {
        let response = client.get("/").await;
        assert_eq!((response.head.status.as_u16(), response.body.len()), (status, 0));
    }
    let seen = app.request(1);
    assert_eq!(
        (seen.field("transfer-encoding"), seen.field("content-length")),
        (None, None),
        "GET has no body"
    );
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let body: Vec<u8> = (0..4u32 << 20).map(|i| (i % 251) as u8).collect();
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("PUT", "/");
    let response = client.exchange(request, body.clone()).await;

    assert!(response.body == body, "{} bytes came", response.body.len());
    assert!(app.request(0).body == body, "{} bytes went up", app.request(0).body.len());
}

#[tokio::test]
async fn an_answer_before_the_body_is_passed_on_and_harms_no_other_stream() {
    let app = Upstream::that()
        .answers(403)
        .with_body("no")
        .never_reads_the_body()
        .answers(200)
        .with_body("yes")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request =
        client.request("PUT", "/").body(RequestBody::Left(vec![b'x'; 8 << 20].into())).expect("a request");
    let response = client.send(request).await.expect("a response");
    assert_eq!(response.status(), 403);
    // RFC 9113 §8.1: the rest of the body may be refused, the answer stays.
    assert_eq!(&read(response).await.expect("whole").body[..], b"no");

    assert_eq!(&client.get("/").await.body[..], b"yes");
    proxy.rests().await;
}

#[tokio::test]
async fn a_cancelled_stream_cancels_its_attempt_and_no_other() {
    let app = Upstream::that().never_answers().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let mut leaving = client.clone();
    let request = leaving.request("GET", "/").body(RequestBody::Left("".into())).expect("a request");
    let waiting = tokio::spawn(async move { leaving.send(request).await });
    app.has_seen(1).await;
    waiting.abort();

    app.has_open(0).await;
    proxy.rests().await;
    assert_eq!(&client.get("/").await.body[..], b"hello");
    proxy.metric_becomes("outrigger_requests_total{outcome=cancelled}", 1.0).await;
}

#[tokio::test]
async fn a_stream_cancelled_in_its_answer_cancels_its_attempt() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .then_hangs()
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("GET", "/").body(RequestBody::Left("".into())).expect("a request");
    let mut response = client.send(request).await.expect("a response");
    let first = soon("a piece", response.body_mut().frame()).await.expect("a frame").expect("data");
    assert_eq!(first.into_data().expect("data"), "hello");
    drop(response);

    app.has_open(0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn a_broken_answer_resets_its_stream_and_no_other() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .then_closes()
        .answers(200)
        .with_body("good")
        .start()
        .await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("GET", "/").body(RequestBody::Left("".into())).expect("a request");
    if let Ok(response) = client.send(request).await {
        assert!(read(response).await.is_err(), "it never ends clean");
    }
    assert_eq!(&client.get("/").await.body[..], b"good");
}

#[tokio::test]
async fn cookies_in_pieces_go_up_as_one() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("GET", "/").header("cookie", "a=1").header("cookie", "b=2");
    client.exchange(request, "").await;

    // RFC 9113 §8.2.3.
    let seen = app.request(0);
    let cookies: Vec<_> =
        seen.fields.iter().filter(|(name, _)| name == "cookie").map(|(_, value)| value).collect();
    assert_eq!(cookies, ["a=1; b=2"]);
}

#[tokio::test]
async fn heads_and_bodies_that_are_too_large_are_refused_with_their_reason() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app])
        .listener("limits = { max_header_size = \"4KiB\", max_headers = 20, max_body = \"1KiB\" }")
        .start()
        .await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("GET", "/").header("x", "y".repeat(5000));
    let response = client.exchange(request, "").await;
    assert_eq!(
        (response.head.status.as_u16(), response.reason().as_deref()),
        (431, Some("header_too_large"))
    );

    let many = (0..30).fold(client.request("GET", "/"), |request, i| request.header(format!("x-{i}"), "y"));
    let response = client.exchange(many, "").await;
    assert_eq!(
        (response.head.status.as_u16(), response.reason().as_deref()),
        (431, Some("header_too_large"))
    );

    let request = client.request("GET", &format!("/{}", "a".repeat(5000)));
    let response = client.exchange(request, "").await;
    let (status, reason) = (response.head.status.as_u16(), response.reason());
    assert_eq!(
        (status, reason.as_deref()),
        (431, Some("header_too_large")),
        "the path is a part of the head"
    );

    let request = client.request("PUT", "/");
    let response = client.exchange(request, vec![b'x'; 1025]).await;
    assert_eq!((response.head.status.as_u16(), response.reason().as_deref()), (413, Some("body_too_large")));

    assert!(app.requests().iter().all(|request| !request.whole));
    assert_eq!(client.get("/").await.head.status, 200, "the connection goes on");
}

#[tokio::test]
async fn policies_are_the_same() {
    let app = Upstream::that().answers(503).answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("PUT", "/");
    let response = client.exchange(request, "again").await;

    assert_eq!(&response.body[..], b"hello");
    assert_eq!(app.request(0).body, b"again");
    assert_eq!(app.request(1).body, b"again");
    assert_eq!(app.request(1).field("x-retry-attempt"), Some("1"));
}

#[tokio::test]
async fn own_answers_are_the_same() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).within("200ms").upstream("retry.attempts = 1").start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let response = client.get("/").await;
    assert_eq!((response.head.status.as_u16(), response.reason().as_deref()), (504, Some("request_timeout")));
    assert_eq!(response.field("content-type"), Some("application/problem+json"));
    assert!(
        response.field("proxy-status").is_some_and(|status| status.contains("details=\"request_timeout\""))
    );

    let trace = client.request("TRACE", "/");
    let response = client.exchange(trace, "").await;
    assert_eq!(
        (response.head.status.as_u16(), response.reason().as_deref()),
        (405, Some("method_not_allowed"))
    );
}

#[tokio::test]
async fn a_client_that_stalls_its_upload_is_told_so() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"200ms\"").start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let (feed, body) = fed();
    let request = client.request("POST", "/").body(body).expect("a request");
    feed.send(Frame::data(Bytes::from_static(b"begun"))).await.expect("taken");
    let response = read(client.send(request).await.expect("a response")).await.expect("whole");

    assert_eq!((response.head.status.as_u16(), response.reason().as_deref()), (408, Some("client_stalled")));
    app.has_open(0).await;
}

#[tokio::test]
async fn no_more_streams_than_configured() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = Config::over([&app]).listener("limits = { max_streams = 2 }").start().await;
    let client = Http2::connect(proxy.listener()).await;
    // The settings have come once a request is answered.
    let mut first = client.clone();
    let warm_up = tokio::spawn(async move { first.get("/").await });
    app.release(1);
    warm_up.await.expect("no panic");

    let requests: Vec<_> = (0..4)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.get("/").await })
        })
        .collect();
    app.has_seen(3).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(app.seen(), 3, "two at a time");
    app.release(4);
    for request in requests {
        assert_eq!(request.await.expect("no panic").head.status, 200);
    }
}

#[tokio::test]
async fn uploads_that_nobody_read_give_their_window_back() {
    let app = Upstream::that().answers(403).answers_before_reading_the_body().start().await;
    let proxy = Config::over([&app]).upstream("retry.attempts = 1").start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    // Together far more than a connection's window: what is thrown away must count as taken.
    for number in 0..40 {
        let request = client
            .request("PUT", "/")
            .body(RequestBody::Left(vec![b'x'; 1 << 20].into()))
            .expect("a request");
        let response = client.send(request).await.unwrap_or_else(|error| panic!("request {number}: {error}"));
        assert_eq!(response.status(), 403, "request {number}");
        read(response).await.expect("whole");
    }
    proxy.rests().await;
}

#[tokio::test]
async fn answers_that_nobody_read_give_their_window_back() {
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 1 << 20]).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    for _ in 0..20 {
        let request = client.request("GET", "/").body(RequestBody::Left("".into())).expect("a request");
        assert_eq!(client.send(request).await.expect("a response").status(), 200);
    }
    assert_eq!(client.get("/").await.body.len(), 1 << 20);
    proxy.rests().await;
}

/// A GET as its fields.
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];

#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_begin_cost_nothing() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).upstream("breaker.mode = \"off\"").start().await;

    // As in CVE-2023-44487: the connection may end for it.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    for number in 0..2000 {
        client.headers(2 * number + 1, &GET, true).await;
        client.cancel(2 * number + 1).await;
    }
    drop(client);

    proxy.rests().await;
    app.has_open(0).await;
    assert!(app.connections() <= 1024, "{}", app.connections());
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    // As in CVE-2024-27316 and its kin.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.endless_headers(1, 5000).await;

    assert_ne!(client.outcome(1).await, Came::Head);
    assert_eq!(app.seen(), 0);
    assert_eq!(Http2::connect(proxy.listener()).await.get("/").await.head.status, 200);
}

#[tokio::test]
async fn idle_connections_end() {
    let app = Upstream::that().answers(200).start().await;
    let limits = "limits = { idle_timeout = \"200ms\", header_timeout = \"200ms\" }";
    let proxy = Config::over([&app]).listener(limits).start().await;

    assert_eq!(RawHttp2::connect(proxy.listener()).await.outcome(1).await, Came::Over, "without a stream");
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &GET, true).await;
    assert_eq!(client.outcome(1).await, Came::Head);
    assert_eq!(client.outcome(3).await, Came::Over, "behind its last stream");

    for begun in ["P", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut client = proxy.connect().await;
        client.send(begun).await;
        client.until_end().await;
    }
    proxy.metric_becomes("outrigger_client_connections{listener=main}", 0.0).await;
}

#[tokio::test]
async fn a_stream_keeps_its_connection_alive() {
    let app = Upstream::that().answers(200).delays(Duration::from_millis(500)).start().await;
    let proxy = Config::over([&app]).listener("limits = { idle_timeout = \"100ms\" }").start().await;
    assert_eq!(Http2::connect(proxy.listener()).await.get("/").await.head.status, 200);
}

#[tokio::test]
async fn grpc_is_answered_in_grpc() {
    let app = Upstream::refusing();
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let call = client.request("POST", "/pkg.Service/Get").header("content-type", "application/grpc");
    let response = client.exchange(call.header("te", "trailers"), "\0\0\0\0\0").await;

    assert_eq!(response.head.status, 200);
    let trailers = response.trailers.clone().unwrap_or_default();
    let status =
        response.field("grpc-status").or(trailers.get("grpc-status").and_then(|status| status.to_str().ok()));
    assert_eq!(status, Some("14"), "{:?} {trailers:?}", response.head);
}

#[tokio::test]
async fn an_upload_to_an_upstream_that_resets_is_retried_whole() {
    let body = vec![b'x'; 40 << 10];
    let app = Upstream::that().resets_after_reading(1000).answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let request = client.request("PUT", "/");
    assert_eq!(client.exchange(request, body.clone()).await.head.status, 200);
    assert!(app.request(1).body == body);
}

#[tokio::test]
async fn answers_of_http_1_become_good_ones_of_http_2() {
    let head = "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                Proxy-Connection: close\r\nUpgrade: h2c\r\nX-UPPER: a\r\nX!y: b\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n";
    let trailers = "0\r\nConnection: X-Hop\r\nKeep-Alive: 1\r\nX-Sum: 1\r\n\r\n";
    let app = Upstream::that()
        .answers_raw(format!(
            "{head}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n{trailers}"
        ))
        .answers_raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")
        .answers_raw("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .answers_raw("HTTP/1.1 200 OK\r\n\r\nok")
        .then_closes()
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    let response = client.get("/").await;
    assert_eq!(&response.body[..], b"ok");
    for field in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
        assert_eq!(response.field(field), None, "{field} ends here");
    }
    assert_eq!((response.field("x-upper"), response.field("x!y")), (Some("a"), Some("b")));
    assert_eq!(response.head.headers.get_all("set-cookie").iter().count(), 2);
    let trailers = response.trailers.expect("trailers");
    assert_eq!(trailers["x-sum"], "1");
    for field in ["connection", "keep-alive"] {
        assert!(!trailers.contains_key(field), "{field} is no trailer of HTTP/2");
    }
    let not_modified = client.get("/").await;
    assert_eq!((not_modified.head.status.as_u16(), not_modified.body.len()), (304, 0));
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!((response.head.status.as_u16(), &response.body[..]), (200, &b"ok"[..]));
    }
}

#[tokio::test]
async fn a_host_field_stands_for_the_authority() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;

    // RFC 9113 §8.3.1: as a proxy does that turns HTTP/1 into HTTP/2.
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "named.test")];
    client.headers(1, &fields, true).await;

    assert_eq!(client.outcome(1).await, Came::Head);
    assert_eq!(app.request(0).field("host"), Some("named.test"));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_all_its_streams() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    for number in 0..10 {
        client.headers(2 * number + 1, &GET, true).await;
    }
    app.has_seen(10).await;
    drop(client);

    app.has_open(0).await;
    proxy.rests().await;
    proxy.metric_becomes("outrigger_requests_total{outcome=cancelled}", 10.0).await;
    assert_eq!(proxy.metric("outrigger_breaker_state{upstream=app}").await, 0.0);
}

#[tokio::test]
async fn a_reader_that_does_not_read_slows_the_writer() {
    // The window is the reader's: what it does not ask for must not pile up here.
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 128 << 20]).start().await;
    let proxy = Config::over([&app]).start().await;
    let before = proxy.metric("process_resident_memory_bytes").await;
    let mut client = Http2::connect(proxy.listener()).await;
    let request = client.request("GET", "/").body(RequestBody::Left("".into())).expect("a request");
    let response = client.send(request).await.expect("a response");

    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = proxy.metric("process_resident_memory_bytes").await - before;
    assert!(grown < f64::from(32 << 20), "{grown} bytes more");
    drop(response);
    proxy.rests().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    // Without a length nothing but a reset tells it that this was not all.
    let body = "x".repeat(16 << 20);
    let answers = [
        ("of known length", format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())),
        (
            "in chunks",
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            ),
        ),
    ];
    for (why, answer) in answers {
        let app = Upstream::that().answers_raw(answer).start().await;
        let proxy = Config::over([&app]).upstream("timeout.idle = \"300ms\"").start().await;
        let mut client = Http2::connect(proxy.listener()).await;
        let request = client.request("GET", "/").header("x-request-id", "it-does-not-read");
        let request = request.body(RequestBody::Left("".into())).expect("a request");
        let response = client.send(request).await.expect("a response");

        assert_eq!(proxy.access_log("it-does-not-read").await["reason"], "client_stalled", "{why}");
        app.has_open(0).await;
        proxy.rests().await;
        assert!(read(response).await.is_err(), "{why}: it never ends clean");
    }
}

#[tokio::test]
async fn a_stream_that_is_cancelled_in_the_queue_gives_its_place_back() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app])
        .upstream("concurrency = { limit = { kind = \"fixed\", max = 1 }, queue = { timeout = \"10s\" } }")
        .start()
        .await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &GET, true).await;
    app.has_seen(1).await;
    client.headers(3, &GET, true).await;
    proxy.metric_becomes("outrigger_queue_depth{upstream=app}", 1.0).await;
    client.cancel(3).await;
    proxy.metric_becomes("outrigger_queue_depth{upstream=app}", 0.0).await;
    assert_eq!(proxy.metric("outrigger_concurrency_in_flight{upstream=app}").await, 1.0);
    client.cancel(1).await;
    proxy.rests().await;
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn an_event_stream_may_be_quiet() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        .and_after(Duration::from_millis(600), "data: 2\n\n")
        .then_closes()
        .start()
        .await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"100ms\"").start().await;
    let response = Http2::connect(proxy.listener()).await.get("/").await;
    assert_eq!(&response.body[..], b"data: 1\n\ndata: 2\n\n");
}
