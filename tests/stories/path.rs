//! The plain way of a request and its response, in HTTP/1.

use crate::support::client::post;
use crate::support::*;

/// Hop-by-hop fields and those that Outrigger adds: a story that compares fields leaves them out.
const OWN: [&str; 4] = ["x-request-id", "x-retry-attempt", "x-request-timeout-ms", "x-outrigger-path"];

#[tokio::test]
async fn a_get_goes_up_and_its_answer_comes_back() {
    let app = Upstream::that().answers(200).with_body("hello").with_field("X-Kept", "yes").start().await;
    let proxy = Config::over([&app]).start().await;

    let response = proxy.get("/some/path?with=query").await;

    assert_eq!((response.status, response.text().as_str()), (200, "hello"));
    assert_eq!(response.field("x-kept"), Some("yes"));
    assert_eq!(app.request(0).method, "GET");
    assert_eq!(app.request(0).target, "/some/path?with=query");
    assert!(
        app.request(0).head.starts_with("GET /some/path?with=query HTTP/1.1\r\n"),
        "{}",
        app.request(0).head
    );
}

#[tokio::test]
async fn five_lines_are_a_whole_configuration() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let five_lines = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nupstream = \"app\"\n[upstream.app]\nendpoints = [\"{}\"]\n",
        app.address()
    );
    // The admin address is the one thing that tests at the same time cannot share.
    let proxy = Proxy::start(&format!("admin.address = \"127.0.0.1:0\"\n{five_lines}")).await;

    assert_eq!(proxy.get("/").await.text(), "hello");
}

#[tokio::test]
async fn the_answer_is_the_upstreams_own() {
    let raw = "HTTP/1.1 299 Own Words\r\nServer: app\r\nSet-Cookie: a=1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
               Set-Cookie: b=2\r\nX-Odd: \t caf\u{e9}, \"quoted\"  \r\nContent-Length: 2\r\n\r\nok";
    let app = Upstream::that().answers_raw(raw).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let head = String::from_utf8(client.bytes("HTTP/1.1 299 Own Words\r\n".len()).await).expect("text");
    assert_eq!(head, "HTTP/1.1 299 Own Words\r\n");

    let response = proxy.get("/").await;
    let expected = [
        ("server", "app"),
        ("set-cookie", "a=1"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("set-cookie", "b=2"),
        ("x-odd", "caf\u{e9}, \"quoted\""),
        ("content-length", "2"),
    ];
    let came: Vec<_> = response.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(came, expected);
}

#[tokio::test]
async fn the_request_goes_up_as_it_came_in() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let request = "PATCH /a/../b/%7e?x=%20&y HTTP/1.1\r\nHost: app.test:81\r\nCookie: a=1\r\nX-Two: 1\r\n\
                   X-Two: 2\r\nAccept-Encoding: gzip, br\r\nContent-Length: 0\r\n\r\n";
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(request).await.status, 200);

    let seen = app.request(0);
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PATCH", "/a/../b/%7e?x=%20&y"));
    let mut fields: Vec<_> = seen.fields.iter().filter(|(name, _)| !OWN.contains(&name.as_str())).collect();
    fields.sort();
    let expected = [
        ("accept-encoding", "gzip, br"),
        ("content-length", "0"),
        ("cookie", "a=1"),
        ("host", "app.test:81"),
        ("x-two", "1"),
        ("x-two", "2"),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(fields, expected.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_post_of_known_length_goes_up_whole() {
    let app = Upstream::that().answers(201).with_body("made").start().await;
    let proxy = Config::over([&app]).start().await;
    let body = "x".repeat(300_000);

    let response = proxy.connect().await.exchange(&post("/things", &body)).await;

    assert_eq!((response.status, response.text().as_str()), (201, "made"));
    let seen = app.request(0);
    assert_eq!(seen.field("content-length"), Some("300000"));
    assert_eq!(seen.body.len(), 300_000);
}

#[tokio::test]
async fn a_chunked_request_goes_up_chunk_by_chunk_with_its_trailers() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
    client.send("6;ext=\"1\"\r\nfirst,\r\n").await;
    eventually("the first chunk is up before the second is sent", async || {
        app.requests().first().is_some_and(|request| request.body == b"first,")
    })
    .await;
    client.send("6\r\nsecond\r\n0\r\nX-Sum: 42\r\n\r\n").await;

    assert_eq!(client.response().await.status, 200);
    let seen = app.request(0);
    assert_eq!(seen.body, b"first,second");
    assert_eq!(value(&seen.trailers, "x-sum"), Some("42"));
    assert_eq!(seen.field("content-length"), None);
}

#[tokio::test]
async fn a_chunked_answer_comes_chunk_by_chunk_with_its_trailers() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n6\r\nfirst,\r\n")
        .and_when_released("6\r\nsecond\r\n0\r\nX-Sum: 42\r\n\r\n")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let head = client.head().await.expect("the head is here before the body's end");
    assert_eq!(head.status, 200);
    let first = client.bytes("6\r\nfirst,".len()).await;
    assert_eq!(String::from_utf8_lossy(&first), "6\r\nfirst,");
    app.release(1);
    let rest = client.bytes("\r\n6\r\nsecond\r\n0\r\nX-Sum: 42\r\n\r\n".len()).await;
    assert_eq!(String::from_utf8_lossy(&rest).to_lowercase(), "\r\n6\r\nsecond\r\n0\r\nx-sum: 42\r\n\r\n");

    // The connection is good for another one.
    app.release(1);
    let response = client.exchange(&get("/")).await;
    assert_eq!(response.text(), "first,second");
    assert_eq!(value(&response.trailers, "x-sum"), Some("42"));
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let body: Vec<u8> = (0..4u32 << 20).map(|i| (i % 251) as u8).collect();
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    client.send(&body).await;
    let response = client.response().await;

    assert!(response.body == body, "{} bytes came", response.body.len());
    assert!(app.request(0).body == body, "{} bytes went up", app.request(0).body.len());
}

#[tokio::test]
async fn a_reader_that_does_not_read_slows_the_writer() {
    // More than all buffers on the way can hold (sockets' and ours).
    let body = vec![b'x'; 64 << 20];
    let app = Upstream::that().answers(200).never_reads_the_body().with_field("X", "y").holds().start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    let sent = client.send_until_stuck(&body).await;

    assert!(sent < body.len(), "the proxy took all {sent} bytes that nobody read");
}

#[tokio::test]
async fn messages_without_a_body_end_with_their_head() {
    let cases = [
        // why                            request                                     answer
        (
            "HEAD has the length of GET",
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            "HEAD of a chunked answer",
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("HEAD without a length", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n\r\n"),
        ("204", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "304 with a length",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"1\"\r\n\r\n",
        ),
        ("304", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("no bytes", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (why, request, answer) in cases {
        let app = Upstream::that().answers_raw(answer).answers(200).with_body("next").start().await;
        let proxy = Config::over([&app]).start().await;
        let mut client = proxy.connect().await;

        let response = client.exchange(request).await;
        assert_eq!(response.status.to_string(), answer[9..12], "{why}");
        assert!(
            response.field("content-length").is_none_or(|length| answer.contains(&format!(": {length}\r"))),
            "{why}"
        );

        assert_eq!(client.exchange(&get("/next")).await.text(), "next", "{why}: the same connection goes on");
        assert_eq!(app.request(1).connection, 0, "{why}: the upstream's too");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_comes_whole() {
    let app =
        Upstream::that().answers_raw("HTTP/1.1 200 OK\r\n\r\nuntil the end").then_closes().start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    let response = client.exchange(&get("/")).await;

    assert_eq!(response.text(), "until the end");
    assert!(response.whole);
}

#[tokio::test]
async fn http_1_0_clients_get_answers_that_they_can_read() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    let cases = [
        // why                                    request                                          answer   keeps
        (
            "it closes by default",
            "GET / HTTP/1.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            false,
        ),
        ("no chunks for it", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", chunked, false),
        (
            "no chunks, though it would stay",
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            chunked,
            false,
        ),
        (
            "it may ask to stay",
            "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            true,
        ),
    ];
    for (why, request, answer, keeps) in cases {
        let app = Upstream::that().answers_raw(answer).start().await;
        let proxy = Config::over([&app]).start().await;
        let mut client = proxy.connect().await;

        let response = client.exchange(request).await;

        assert_eq!(response.text(), "hello", "{why}");
        assert_eq!(response.field("transfer-encoding"), None, "{why}");
        assert!(response.whole, "{why}");
        if keeps {
            assert_eq!(
                response.field("connection").map(str::to_ascii_lowercase).as_deref(),
                Some("keep-alive"),
                "{why}"
            );
            assert_eq!(client.exchange(request).await.text(), "hello", "{why}");
        } else {
            client.closes().await;
        }
        // RFC 9112 §2.3: a proxy speaks its own version.
        assert!(app.request(0).head.starts_with("GET / HTTP/1.1\r\n"), "{why}: {}", app.request(0).head);
        assert!(app.request(0).field("host").is_some(), "{why}: HTTP/1.1 needs a Host");
    }
}

#[tokio::test]
async fn an_interim_answer_is_not_for_http_1_0() {
    let app = Upstream::that()
        .answers_raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        )
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let response = proxy.connect().await.exchange("GET / HTTP/1.0\r\n\r\n").await;

    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;

    for _ in 0..20 {
        assert_eq!(client.exchange(&get("/")).await.text(), "hello");
    }

    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn a_client_that_says_close_gets_its_answer_and_the_end() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).one_worker().start().await;

    let mut client = proxy.connect().await;
    let response = client.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;

    assert_eq!(response.text(), "hello");
    assert_eq!(response.field("connection"), Some("close"));
    client.closes().await;
    // Its close was its own: the upstream's connection lives.
    assert_eq!(proxy.get("/").await.text(), "hello");
    assert_eq!(app.connections(), 1);
    assert_eq!(app.request(0).field("connection"), None);
}

#[tokio::test]
async fn what_comes_behind_a_close_is_not_read() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client
        .send("GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        .await;

    assert_eq!(client.response().await.status, 200);
    client.closes().await;
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn an_upstream_that_says_close_is_not_used_again() {
    let app =
        Upstream::that().answers(200).with_field("Connection", "close").with_body("hello").start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    let response = client.exchange(&get("/")).await;
    assert_eq!(response.field("connection"), None, "the upstream's close is not the client's");
    assert_eq!(client.exchange(&get("/")).await.text(), "hello");

    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn an_http_1_0_upstream_is_not_used_again_unless_it_stays() {
    let cases = [
        ("it closes by default", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 2),
        (
            "it says that it stays",
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            1,
        ),
    ];
    for (why, answer, connections) in cases {
        let app = Upstream::that().answers_raw(answer).start().await;
        let proxy = Config::over([&app]).start().await;
        let mut client = proxy.connect().await;

        for _ in 0..2 {
            let response = client.exchange(&get("/")).await;
            assert_eq!((response.version.as_str(), response.text().as_str()), ("HTTP/1.1", "ok"), "{why}");
        }

        assert!(app.connections() <= connections, "{why}: {}", app.connections());
        assert!(connections == 1 || app.connections() == 2, "{why}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let app = Upstream::that()
        .answers(200)
        .with_body("one")
        .holds()
        .answers(200)
        .with_body("two")
        .answers(200)
        .with_body("three")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    let second = post("/2", "with a body");
    client.send(format!("{}{second}{}", get("/1"), get("/3"))).await;
    app.has_seen(1).await;
    app.release(1);

    for body in ["one", "two", "three"] {
        assert_eq!(client.response().await.text(), body);
    }
    let targets: Vec<_> = app.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/1", "/2", "/3"]);
    assert_eq!(app.request(1).body, b"with a body");
}

#[tokio::test]
async fn an_empty_line_before_a_request_is_skipped() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    // RFC 9112 §2.2: old clients send one behind a body.
    let mut client = proxy.connect().await;
    client.send(format!("\r\n{}", get("/"))).await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn heads_may_come_byte_by_byte() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    for byte in post("/", "abc").bytes() {
        client.send([byte]).await;
    }

    assert_eq!(client.response().await.text(), "hello");
    assert_eq!(app.request(0).body, b"abc");
}

#[tokio::test]
async fn options_of_the_server_itself() {
    let app = Upstream::that().answers(204).start().await;
    let proxy = Config::over([&app]).start().await;

    let response = proxy.connect().await.exchange("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;

    assert_eq!(response.status, 204);
    assert_eq!(app.request(0).target, "*");
}

#[tokio::test]
async fn absolute_form_goes_up_as_origin_form_with_its_own_host() {
    let cases = [
        // why              target                        Host          goes up                   with
        ("a path and query", "http://app.test/a?b=c", "app.test", "/a?b=c", "app.test"),
        ("its authority wins (RFC 9112 §3.2.2)", "http://app.test:81/", "other", "/", "app.test:81"),
        ("no path", "http://app.test", "app.test", "/", "app.test"),
        ("no path but a query", "http://app.test?q", "app.test", "/?q", "app.test"),
        ("schemes have no case", "HTTP://app.test/", "app.test", "/", "app.test"),
    ];
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    for (number, (why, target, host, path, expected)) in cases.into_iter().enumerate() {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(proxy.connect().await.exchange(&request).await.status, 200, "{why}");
        assert_eq!(app.request(number).target, path, "{why}");
        assert_eq!(app.request(number).field("host"), Some(expected), "{why}");
    }
}

#[tokio::test]
async fn absolute_form_is_routed_by_its_own_host() {
    let (one, other) = (Upstream::that().answers(200), Upstream::that().answers(200).with_body("other"));
    let (one, other) = (one.with_body("one").start().await, other.start().await);
    let proxy = Config::over([&one])
        .and("[[listener.route]]\nmatch = { host = \"other.test\" }\nupstream = \"other\"")
        .and(&format!("[upstream.other]\nendpoints = [\"{}\"]", other.address()))
        .start()
        .await;

    let request = "GET http://other.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n";
    assert_eq!(proxy.connect().await.exchange(request).await.text(), "other");
}

#[tokio::test]
async fn the_host_is_kept_or_is_the_endpoints() {
    let app = Upstream::that().answers(200).start().await;
    let endpoint = app.address().to_string();
    let cases = [
        // why                                    host =         asked for      goes up
        ("a name is kept", "auto", Some("app.test"), "app.test".to_owned()),
        ("the listener's own address is not the endpoint's", "auto", None, endpoint.clone()),
        ("keep keeps anything", "keep", Some("x.test:1"), "x.test:1".to_owned()),
        ("the endpoint's, as written", "endpoint", Some("app.test"), endpoint.clone()),
        ("a name of its own", "own.test", Some("app.test"), "own.test".to_owned()),
    ];
    for (number, (why, setting, asked, expected)) in cases.into_iter().enumerate() {
        let proxy = Config::over([&app]).upstream(&format!("host = \"{setting}\"")).start().await;
        let asked = asked.map_or_else(|| proxy.listener().to_string(), str::to_owned);
        proxy.connect().await.exchange(&format!("GET / HTTP/1.1\r\nHost: {asked}\r\n\r\n")).await;
        assert_eq!(app.request(number).field("host"), Some(expected.as_str()), "{why}");
    }
}

#[tokio::test]
async fn a_continue_is_the_upstreams_word() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 100 Continue\r\n\r\n")
        .answers_before_reading_the_body()
        .and_when_released("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(client.response().await.status, 100);
    assert_eq!(app.request(0).field("expect"), Some("100-continue"));
    assert!(app.request(0).body.is_empty());
    client.send("body").await;
    app.release(1);

    assert_eq!(client.response().await.text(), "ok");
    app.has_all_of(0).await;
    assert_eq!(app.request(0).body, b"body");
}

#[tokio::test]
async fn a_refusal_instead_of_continue_comes_without_the_body() {
    let app = Upstream::that().answers(417).answers_before_reading_the_body().start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;

    assert_eq!(client.response().await.status, 417);
}

#[tokio::test]
async fn early_hints_are_passed_on() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        .and_when_released("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let hints = client.response().await;
    assert_eq!((hints.status, hints.field("link")), (103, Some("</style.css>; rel=preload")));
    app.release(1);

    assert_eq!(client.response().await.text(), "ok");
}

#[tokio::test]
async fn an_answer_before_the_body_is_passed_on_at_once() {
    let app = Upstream::that().answers(403).with_body("no").answers_before_reading_the_body().start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nthe beginning").await;
    let response = client.response().await;

    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    assert!(response.whole);
    drop(client);
    proxy.rests().await;
}

#[tokio::test]
async fn what_is_no_upgrade_goes_on_as_a_request() {
    let app = Upstream::that().answers(200).with_body("plain").start().await;
    let proxy = Config::over([&app]).start().await;

    let asks = [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    ];
    for (number, fields) in asks.into_iter().enumerate() {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let response = proxy.connect().await.exchange(&request).await;
        assert_eq!((response.status, response.text().as_str()), (200, "plain"), "{fields}");
        for field in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(app.request(number).field(field), None, "{field} goes no further");
        }
    }
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_end_here() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let request = "POST / HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
                   TE: trailers, deflate\r\nConnection: X-One, x-TWO\r\nX-Two: 2\r\nConnection: keep-alive, TE\r\n\
                   Proxy-Authorization: secret\r\nX-Three: 3\r\nContent-Length: 0\r\n\r\n";
    proxy.connect().await.exchange(request).await;

    let seen = app.request(0);
    for field in ["x-one", "x-two", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade"] {
        assert_eq!(seen.field(field), None, "{field} ends here: {}", seen.head);
    }
    assert!(
        seen.field("connection").is_none_or(|options| options.eq_ignore_ascii_case("te")),
        "{}",
        seen.head
    );
    assert!(seen.field("te").is_none_or(|te| te == "trailers"), "{}", seen.head);
    assert_eq!(seen.field("x-three"), Some("3"));
}

#[tokio::test]
async fn hop_by_hop_fields_of_an_answer_end_here() {
    let app = Upstream::that()
        .answers(200)
        .with_field("Connection", "X-One, keep-alive")
        .with_field("X-One", "1")
        .with_field("Keep-Alive", "timeout=5")
        .with_field("Proxy-Connection", "close")
        .with_field("Upgrade", "h2c")
        .with_field("X-Two", "2")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let response = proxy.get("/").await;

    for field in ["x-one", "connection", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(response.field(field), None, "{field} ends here: {:?}", response.fields);
    }
    assert_eq!(response.field("x-two"), Some("2"));
}

#[tokio::test]
async fn connection_cannot_take_away_what_frames_or_names_the_message() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: Content-Length, Host, close\r\nContent-Length: 4\r\n\r\nbody";
    let response = proxy.connect().await.exchange(request).await;

    // Refused, or sent on with its frame: but never without.
    if response.status == 400 {
        response.must_be(400, "bad_request");
    } else {
        assert_eq!((response.status, app.request(0).body.as_slice()), (200, &b"body"[..]));
        assert_eq!(app.request(0).field("host"), Some("a"));
    }
}

#[tokio::test]
async fn a_request_gets_an_id_or_keeps_its_own() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let untrusting = Config::over([&app]).listener("trust = \"none\"").start().await;

    let with = |id: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n");
    let (longest, too_long) = ("x".repeat(128), "x".repeat(129));
    let cases = [
        (&proxy, get("/"), None),
        (&proxy, with("abc-123"), Some("abc-123")),
        (&proxy, with(&longest), Some(longest.as_str())),
        (&proxy, with("not one word"), None),
        (&proxy, with(&too_long), None),
        (&proxy, with("caf\u{e9}"), None),
        (&untrusting, with("abc-123"), None),
    ];
    let mut made = Vec::new();
    for (number, (proxy, request, expected)) in cases.iter().enumerate() {
        proxy.connect().await.exchange(request).await;
        let id = app.request(number).field("x-request-id").expect("every request has an id").to_owned();
        match expected {
            Some(expected) => assert_eq!(id, *expected),
            None => {
                assert!(!request.contains(&id), "{request:?}: {id} is made here");
                assert!((16..=128).contains(&id.len()), "{id}");
                made.push(id);
            }
        }
        let ids = app.request(number).fields.iter().filter(|(name, _)| name == "x-request-id").count();
        assert_eq!(ids, 1, "{request:?}");
    }
    let count = made.len();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), count, "no two are the same");
}

#[tokio::test]
async fn the_context_goes_up_with_the_request() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let request = "GET / HTTP/1.1\r\nHost: a\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
                   Tracestate: k=v\r\nX-Retry-Attempt: 2\r\n\r\n";
    proxy.connect().await.exchange(request).await;
    proxy.get("/").await;

    let (seen, bare) = (app.request(0), app.request(1));
    assert_eq!(seen.field("traceparent"), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    assert_eq!(seen.field("tracestate"), Some("k=v"));
    assert_eq!(seen.field("x-retry-attempt"), Some("2"));
    assert!(bare.field("x-retry-attempt").is_none_or(|attempt| attempt == "0"), "{}", bare.head);
    let left: u64 = bare.field("x-request-timeout-ms").expect("always").parse().expect("a number");
    assert!((7_000..=15_000).contains(&left), "{left} of the default of 15 s, or of its half for an attempt");
    let path = bare.field("x-outrigger-path").expect("the process is named").to_owned();
    assert_eq!(seen.field("x-outrigger-path"), Some(path.as_str()), "one id for the life of the process");
}

#[tokio::test]
async fn untrusted_control_fields_are_removed() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).listener("trust = \"none\"").start().await;

    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Priority: critical\r\nX-Retry-Attempt: 7\r\nX-Request-Timeout-Ms: 1\r\n\
                   X-Envoy-Expected-Rq-Timeout-Ms: 1\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
    let response = proxy.connect().await.exchange(request).await;

    assert_eq!(response.status, 200, "their deadline counts for nothing");
    let seen = app.request(0);
    assert_eq!(seen.field("x-priority"), None);
    assert_eq!(seen.field("x-envoy-expected-rq-timeout-ms"), None);
    assert!(seen.field("x-retry-attempt").is_none_or(|attempt| attempt == "0"), "{}", seen.head);
    assert!(seen.field("x-request-timeout-ms").is_none_or(|left| left.len() > 3), "{}", seen.head);
    assert!(seen.field("traceparent").is_some(), "kept from everybody");
}

#[tokio::test]
async fn only_peers_in_trusted_networks_are_obeyed() {
    let app = Upstream::that().answers(200).start().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n";
    for (number, (trust, kept)) in
        [("[\"127.0.0.0/8\"]", true), ("[\"10.0.0.0/8\", \"::1\"]", false)].into_iter().enumerate()
    {
        let proxy = Config::over([&app]).listener(&format!("trust = {trust}")).start().await;
        proxy.connect().await.exchange(request).await;
        assert_eq!(app.request(number).field("x-request-id") == Some("mine"), kept, "{trust}");
    }
}

#[tokio::test]
async fn ingress_says_who_asked() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).listener("direction = \"ingress\"").start().await;

    proxy.get("/").await;

    let seen = app.request(0);
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.field("x-forwarded-host"), Some("app.test"));
    assert!(seen.field("via").is_some_and(|via| via.starts_with("1.1 ")), "{}", seen.head);
}

#[tokio::test]
async fn a_request_that_comes_round_again_is_a_loop() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    proxy.get("/").await;
    let own = app.request(0).field("x-outrigger-path").expect("the process is named").to_owned();

    let path = |ids: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Path: {ids}\r\n\r\n");
    let sixteen = vec!["0123abcd"; 16].join(", ");
    let seventeen = vec!["0123abcd"; 17].join(", ");

    proxy.connect().await.exchange(&path(&own)).await.must_be(508, "loop_detected");
    proxy
        .connect()
        .await
        .exchange(&path(&format!("0123abcd, {own}, 4567cdef")))
        .await
        .must_be(508, "loop_detected");
    proxy.connect().await.exchange(&path(&seventeen)).await.must_be(508, "loop_detected");
    assert_eq!(app.seen(), 1, "none of them went up");
    assert_eq!(proxy.connect().await.exchange(&path(&sixteen)).await.status, 200, "16 are not too many");
    assert_eq!(proxy.connect().await.exchange(&path("0123abcd")).await.status, 200);
    let passed = app.request(2).field("x-outrigger-path").expect("passed on").to_owned();
    assert!(passed.starts_with("0123abcd") && passed.ends_with(&own), "{passed}");
}

#[tokio::test]
async fn a_loop_is_found_though_nobody_is_trusted() {
    // The proxy's upstream is a second proxy whose upstream is the first.
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).listener("trust = \"none\"").start().await;
    proxy.get("/").await;
    let own = app.request(0).field("x-outrigger-path").expect("the process is named").to_owned();

    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Path: {own}\r\n\r\n");
    proxy.connect().await.exchange(&request).await.must_be(508, "loop_detected");
}

#[tokio::test]
async fn routes_are_asked_from_top_to_bottom() {
    let names = ["exact", "blue", "posts", "wild", "dots", "last"];
    let mut upstreams = Vec::new();
    let mut tables = String::new();
    for name in names {
        upstreams.push(Upstream::that().answers(200).with_body(name).start().await);
    }
    let matches = [
        r#"{ path_prefix = "/payments/" }"#,
        r#"{ headers = { x-tenant = "blue" } }"#,
        r#"{ path_prefix = "/orders", methods = ["POST"] }"#,
        r#"{ host = "*.wild.test" }"#,
        r#"{ path_prefix = "/a/~b" }"#,
    ];
    for (name, rule) in names.iter().zip(matches) {
        tables.push_str(&format!(
            "[[listener.route]]\nname = \"{name}\"\nmatch = {rule}\nupstream = \"{name}\"\n"
        ));
    }
    for (name, upstream) in names.iter().zip(&upstreams) {
        tables.push_str(&format!("[upstream.{name}]\nendpoints = [\"{}\"]\n", upstream.address()));
    }
    let proxy = Config::over([&upstreams[5]]).and(&tables).start().await;

    let cases = [
        // why                                   request line and fields                        takes it
        ("a prefix", "GET /payments/42 HTTP/1.1\r\nHost: a", "exact"),
        ("a prefix ends at a segment", "GET /paymentsextra HTTP/1.1\r\nHost: a", "last"),
        ("dot segments are removed first", "GET /x/../payments/42 HTTP/1.1\r\nHost: a", "exact"),
        ("also encoded ones", "GET /x/%2e%2E/payments/42 HTTP/1.1\r\nHost: a", "exact"),
        ("and cannot climb in", "GET /payments/../admin HTTP/1.1\r\nHost: a", "last"),
        ("unreserved characters are decoded", "GET /pay%6Dents/42 HTTP/1.1\r\nHost: a", "exact"),
        ("reserved ones are not", "GET /payments%2F42 HTTP/1.1\r\nHost: a", "last"),
        ("in the rule as in the path", "GET /a/%7Eb/c HTTP/1.1\r\nHost: a", "dots"),
        ("the query is no path", "GET /?/payments/ HTTP/1.1\r\nHost: a", "last"),
        ("a field", "GET / HTTP/1.1\r\nHost: a\r\nX-TENANT: blue", "blue"),
        ("the first match wins", "GET /payments/1 HTTP/1.1\r\nHost: a\r\nX-Tenant: blue", "exact"),
        ("another value", "GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: bluer", "last"),
        ("a method", "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 0", "posts"),
        ("another method", "GET /orders HTTP/1.1\r\nHost: a", "last"),
        ("a prefix without its slash", "POST /orders/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0", "posts"),
        ("a wildcard, without case and port", "GET / HTTP/1.1\r\nHost: Sub.WILD.test:8080", "wild"),
        ("the bare name is not in the wildcard", "GET / HTTP/1.1\r\nHost: wild.test", "last"),
        ("nor what only ends alike", "GET / HTTP/1.1\r\nHost: a.notwild.test", "last"),
    ];
    for (why, head, expected) in cases {
        let response = proxy.connect().await.exchange(&format!("{head}\r\n\r\n")).await;
        assert_eq!(response.text(), expected, "{why}: {head}");
    }
    let climbed = upstreams[0].requests().into_iter().any(|request| request.target == "/x/../payments/42");
    assert!(climbed, "what goes up is the original");
}

#[tokio::test]
async fn a_rewrite_changes_path_and_host() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app])
        .and("[[listener.route]]\nmatch = { path_prefix = \"/payments/\" }\nupstream = \"app\"\n")
        .and("rewrite = { prefix = \"/v2/\", host = \"pay.test\" }")
        .start()
        .await;

    proxy.get("/payments/42?x=/payments/").await;

    assert_eq!(app.request(0).target, "/v2/42?x=/payments/");
    assert_eq!(app.request(0).field("host"), Some("pay.test"));
}

#[tokio::test]
async fn options_of_a_whole_server_in_absolute_form() {
    let app = Upstream::that().answers(204).start().await;
    let proxy = Config::over([&app]).start().await;

    // RFC 9112 §3.2.4: the last proxy says `*`.
    let request = "OPTIONS http://app.test HTTP/1.1\r\nHost: app.test\r\n\r\n";
    assert_eq!(proxy.connect().await.exchange(request).await.status, 204);
    assert_eq!(app.request(0).target, "*");
}

#[tokio::test]
async fn heads_of_some_size_pass_both_ways() {
    let value = "v".repeat(30 << 10);
    let app = Upstream::that().answers(200).with_field("X-Large", &value).start().await;
    let proxy = Config::over([&app]).start().await;

    let request = format!("GET /{value} HTTP/1.1\r\nHost: a\r\nX-Large: {value}\r\n\r\n");
    let response = proxy.connect().await.exchange(&request).await;

    assert_eq!((response.status, response.field("x-large")), (200, Some(value.as_str())));
    assert_eq!(app.request(0).field("x-large"), Some(value.as_str()));
    assert_eq!(app.request(0).target.len(), value.len() + 1);
}

#[tokio::test]
async fn many_small_chunks_both_ways() {
    let chunks = "1\r\nx\r\n".repeat(20_000);
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    let app = Upstream::that().answers_raw(answer).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.send(format!("{chunks}0\r\n\r\n")).await;
    let response = client.response().await;

    assert_eq!((response.body.len(), response.whole), (20_000, true));
    assert_eq!(app.request(0).body.len(), 20_000);
}

#[tokio::test]
async fn an_early_answer_leaves_the_connection_in_order() {
    let app = Upstream::that()
        .answers(403)
        .with_body("no")
        .answers_before_reading_the_body()
        .answers(200)
        .with_body("next")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst").await;
    let response = client.response().await;
    assert_eq!(response.text(), "no");
    client.try_send(format!("again{}", get("/next"))).await;
    // RFC 9112 §9.3: it reads the body to its end, or closes; and says so if it does.
    match client.response_or_end("GET").await {
        Some(next) => assert_eq!(next.text(), "next"),
        None => assert_eq!(response.field("connection"), Some("close"), "it says so"),
    }
}
