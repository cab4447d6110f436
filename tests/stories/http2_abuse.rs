//! Clients of HTTP/2 that abuse it, frame by frame: each connection ends with GOAWAY and a word in a metric, others
//! live on. And clients that only look like it.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;

use crate::support::http2::{Came, Http2, RawHttp2, fed, raw_frame, raw_head, read};
use crate::support::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A GET as its fields.
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];
/// A POST as its fields.
const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];

/// Waits until a bound was reached so often.
async fn reached(proxy: &Proxy, what: &str, times: f64) {
    proxy.metric_becomes(&format!("outrigger_limit_reached_total{{what={what}}}"), times).await;
}

#[tokio::test]
async fn floods_end_their_connection_and_no_other() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).one_worker().start().await;
    let mut other = Http2::connect(proxy.listener()).await;
    let before = proxy.metric("process_resident_memory_bytes").await;
    let cases = [
        // what, the frame, how often, and the word
        ("pings", raw_frame(PING, 0, 0, &[0; 8]), 2_000, "http2_pings"),
        ("settings", raw_frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]), 1_000, "http2_settings"),
        ("priorities", raw_frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), 20_000, "http2_priorities"),
        ("window updates", raw_frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 20_000, "http2_window_updates"),
        ("unknown frames", raw_frame(0xfa, 0, 0, b"grease"), 20_000, "http2_other_frames"),
        ("resets of old streams", raw_frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), 20_000, "http2_resets"),
    ];
    for (why, frame, times, word) in cases {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        client.headers(1, &GET, true).await;
        assert_eq!(client.outcome(1).await, Came::Head, "{why}");

        client.flood(&frame, times).await;

        assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM), "{why}");
        reached(&proxy, word, 1.0).await;
        assert_eq!(&other.get("/").await.body[..], b"hello", "{why}: others live on");
    }
    let grown = proxy.metric("process_resident_memory_bytes").await - before;
    assert!(grown < f64::from(16 << 20), "{grown} bytes more");
    proxy.rests().await;
}

#[tokio::test]
async fn frames_with_nothing_in_them_end_their_connection() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).start().await;

    // CVE-2019-9518.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &POST, false).await;
    client.flood(&raw_frame(DATA, 0, 1, &[]), 1_000).await;
    assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));
    reached(&proxy, "http2_empty_frames", 1.0).await;

    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.frame(HEADERS, 0, 1, &raw_head(&GET)).await;
    client.flood(&raw_frame(CONTINUATION, 0, 1, &[]), 1_000).await;
    assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));

    // Padding alone is nothing either.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &POST, false).await;
    client.flood(&raw_frame(DATA, 0x8, 1, &[3, 0, 0, 0]), 1_000).await;
    assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));
    proxy.rests().await;
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_their_connection() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).one_worker().upstream("breaker.mode = \"off\"").start().await;

    // CVE-2023-44487, all in one go and one by one.
    for (number, at_once) in [(1.0, true), (2.0, false)] {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        let mut bytes = Vec::new();
        for stream in (1..6_000).step_by(2) {
            bytes.extend(raw_frame(HEADERS, 0x5, stream, &raw_head(&GET)));
            bytes.extend(raw_frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            if !at_once {
                client.write(&std::mem::take(&mut bytes)).await;
            }
        }
        client.write(&bytes).await;
        assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));
        reached(&proxy, "http2_resets", number).await;
    }
    proxy.rests().await;
    app.has_open(0).await;
    assert!(app.connections() <= 2_048, "{}", app.connections());
}

#[tokio::test]
async fn streams_that_the_client_breaks_end_its_connection() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).upstream("breaker.mode = \"off\"").start().await;

    // CVE-2025-8671: a window that overflows makes us reset the stream.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    let mut stream = 1;
    let ended = loop {
        let break_it = |stream| {
            let overflow = raw_frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffffu32.to_be_bytes());
            [raw_frame(HEADERS, 0x5, stream, &raw_head(&GET)), overflow].concat()
        };
        let some: Vec<u8> = (0..10).flat_map(|number| break_it(stream + 2 * number)).collect();
        client.write(&some).await;
        stream += 20;
        let last = stream - 2;
        match client.until(|frame| frame.kind == 7 || frame.kind == RST_STREAM && frame.stream == last).await
        {
            Some(frame) if frame.kind == RST_STREAM => assert!(stream < 40_000, "there is no end"),
            ended => break ended.expect("GOAWAY"),
        }
    };
    assert_eq!(ended.number(4), ENHANCE_YOUR_CALM);
    reached(&proxy, "http2_stream_errors", 1.0).await;
    proxy.rests().await;
    app.has_open(0).await;
}

#[tokio::test]
async fn heads_without_measure_end_their_connection() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let before = proxy.metric("process_resident_memory_bytes").await;

    // CVE-2024-27316 and its kin.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.endless_headers(1, 5_000).await;
    assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));
    reached(&proxy, "http2_headers", 1.0).await;

    // One large entry of the table, named by a byte each time.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    let mut block = raw_head(&GET);
    block.extend_from_slice(b"\x40\x01x\x7f\x81\x1d");
    block.extend_from_slice(&[b'y'; 3_840]);
    block.extend_from_slice(&[0xbe; 10_000]);
    client.frame(HEADERS, 0x5, 1, &block).await;
    assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));
    reached(&proxy, "http2_headers", 2.0).await;

    let grown = proxy.metric("process_resident_memory_bytes").await - before;
    assert!(grown < f64::from(16 << 20), "{grown} bytes more");
    assert_eq!(app.seen(), 0);
    assert_eq!(Http2::connect(proxy.listener()).await.get("/").await.head.status, 200);
}

#[tokio::test]
async fn a_head_that_trickles_in_ends_its_connection() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).listener("limits = { header_timeout = \"200ms\" }").start().await;
    let block = raw_head(&GET);
    let whole = raw_frame(HEADERS, 0x5, 1, &block);
    let cases = [
        ("without its CONTINUATION", raw_frame(HEADERS, 0x1, 1, &block)),
        ("cut in its payload", whole[..20].to_vec()),
        ("cut in the frame's head", whole[..4].to_vec()),
    ];
    for (number, (why, bytes)) in cases.iter().enumerate() {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        client.next().await.expect("settings");
        client.write(bytes).await;
        assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM), "{why}");
        reached(&proxy, "header_timeout", (number + 1) as f64).await;
    }
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_a_flood_of_them_ends_the_connection() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).listener("limits = { max_streams = 2 }").start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    for stream in [1, 3, 5] {
        client.headers(stream, &GET, true).await;
    }
    assert_eq!(client.reset_code(5).await, Some(REFUSED_STREAM));
    reached(&proxy, "max_streams", 1.0).await;
    app.has_seen(2).await;

    let many = (7..40_000).step_by(2).map(|stream| raw_frame(HEADERS, 0x5, stream, &raw_head(&GET)));
    client.write(&many.collect::<Vec<_>>().concat()).await;
    assert_eq!(client.goaway().await.map(|(_, code)| code), Some(ENHANCE_YOUR_CALM));
    assert_eq!(app.seen(), 2);
    proxy.rests().await;
}

#[tokio::test]
async fn a_client_that_never_reads_costs_little_and_is_cut() {
    // A few of them are more than all sockets hold; more would be copied a hundred times here.
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 4 << 20]).start().await;
    let proxy = Config::over([&app])
        .one_worker()
        .upstream("timeout.idle = \"700ms\"\nconcurrency.mode = \"off\"")
        .start()
        .await;
    let mut other = Http2::connect(proxy.listener()).await;
    let before = proxy.metric("process_resident_memory_bytes").await;

    // Its windows are wide open, its socket takes nothing.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
    client.frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()).await;
    for stream in (1..200).step_by(2) {
        client.headers(stream, &GET, true).await;
    }
    app.has_seen(100).await;
    let mut most = 0f64;
    eventually("its streams are cut", async || {
        most = most.max(proxy.metric("process_resident_memory_bytes").await - before);
        proxy.metric("outrigger_requests_total{code=200}").await >= 100.0
    })
    .await;
    // Some may be cut by the upstream's silence, which has waited as long.
    let cut = proxy.metric("outrigger_rejected_total{reason=client_stalled}").await;
    assert!(cut >= 90.0, "{cut} are told so");
    assert!(most < f64::from(48 << 20), "{most} bytes more");
    assert_eq!(other.get("/").await.body.len(), 4 << 20);
    app.has_open(1).await;
    proxy.rests().await;
}

#[tokio::test]
async fn an_exchange_becomes_a_stream_though_its_client_takes_nothing() {
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 16 << 20]).start().await;
    let proxy = Config::over([&app]).upstream("concurrency.stream_after = \"200ms\"").start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &GET, true).await;

    proxy.metric_becomes("outrigger_streams{upstream=app}", 1.0).await;
    proxy.metric_becomes("outrigger_concurrency_in_flight{upstream=app}", 0.0).await;
    drop(client);
    proxy.rests().await;
}

#[tokio::test]
async fn a_client_that_gives_up_on_many_calls_at_once_is_no_attacker() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).upstream("breaker.mode = \"off\"").start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;

    let mut bytes = Vec::new();
    for stream in (1..201).step_by(2) {
        bytes.extend(raw_frame(HEADERS, 0x5, stream, &raw_head(&GET)));
        bytes.extend(raw_frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    client.write(&bytes).await;
    client.headers(201, &GET, true).await;
    app.has_seen(1).await;

    // Whose upstream is dead: each call waits for its timeout, and a hundred at once are given up.
    for round in 0..10 {
        let streams = (0..50).map(|number| 203 + 2 * (50 * round + number));
        for stream in streams.clone() {
            client.headers(stream, &GET, true).await;
        }
        tokio::time::sleep(Duration::from_millis(70)).await;
        for stream in streams {
            client.cancel(stream).await;
        }
    }
    client.frame(PING, 0, 0, b"are you?").await;
    let pong = client.until(|frame| frame.kind == 7 || frame.kind == PING).await.expect("it lives");
    assert_eq!(pong.kind, PING, "no GOAWAY");
}

#[tokio::test]
async fn small_messages_of_a_stream_are_no_attack() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.next().await.expect("settings, which open the window");
    client.headers(1, &POST, false).await;
    client.flood(&raw_frame(DATA, 0, 1, b"0123456789"), 20_000).await;
    client.data(1, b"end").await;
    assert_eq!(client.outcome(1).await, Came::Head);
    assert_eq!(app.request(0).body.len(), 200_003);

    // Nor while nobody reads them, since the request waits for its turn.
    let app = Upstream::that().answers(200).holds().start().await;
    let one = "concurrency = { limit = { kind = \"fixed\", max = 1 }, queue = { timeout = \"10s\" } }";
    let proxy = Config::over([&app]).upstream(one).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.next().await.expect("settings, which open the window");
    client.headers(1, &GET, true).await;
    app.has_seen(1).await;
    client.headers(3, &POST, false).await;
    client.flood(&raw_frame(DATA, 0, 3, b"01234567"), 20_000).await;
    client.data(3, b"end").await;
    client.frame(PING, 0, 0, b"are you?").await;
    let pong = client.until(|frame| frame.kind == 7 || frame.kind == PING).await.expect("it lives");
    assert_eq!(pong.kind, PING, "no GOAWAY");
    app.release(2);
    assert_eq!(client.outcome(3).await, Came::Head);
    assert_eq!(app.request(1).body.len(), 160_003);
}

#[tokio::test]
async fn a_client_that_is_served_may_ping_and_open_windows_as_it_goes() {
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 1 << 20]).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    // As gRPC does: a PING and a WINDOW_UPDATE or two for whatever comes.
    let mut received = 0;
    for stream in (1..41).step_by(2) {
        client.headers(stream, &GET, true).await;
        loop {
            let frame = client.next().await.expect("it lives");
            assert_ne!(frame.kind, 7, "no GOAWAY");
            if frame.kind == DATA && !frame.payload.is_empty() {
                received += frame.payload.len();
                let size = (frame.payload.len() as u32).to_be_bytes();
                client.frame(WINDOW_UPDATE, 0, 0, &size).await;
                if frame.flags & 1 == 0 {
                    client.frame(WINDOW_UPDATE, 0, stream, &size).await;
                }
                client.frame(PING, 0, 0, &[7; 8]).await;
            }
            if frame.kind == DATA && frame.flags & 1 != 0 {
                break;
            }
        }
    }
    assert_eq!(received, 20 << 20);
}

#[tokio::test]
async fn a_reset_says_what_became_of_its_stream() {
    // An answer before the body's end: the answer stays, the body is not wanted.
    let app = Upstream::that().answers(403).with_body("no").answers_before_reading_the_body().start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &POST, false).await;
    client.frame(DATA, 0, 1, b"some of it").await;
    client.until(|frame| frame.kind == DATA && frame.flags & 1 != 0).await.expect("the whole answer");
    assert_eq!(client.reset_code(1).await, Some(NO_ERROR));

    // An answer of our own too.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    let trace = [(":method", "TRACE"), GET[1], GET[2], GET[3]];
    client.headers(1, &trace, false).await;
    client.until(|frame| frame.kind == DATA && frame.flags & 1 != 0).await.expect("the whole answer");
    assert_eq!(client.reset_code(1).await, Some(NO_ERROR));

    // One that the upstream cuts.
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .then_closes()
        .start()
        .await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &GET, true).await;
    assert_eq!(client.reset_code(1).await, Some(INTERNAL_ERROR));

    // One that the client does not take.
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 1 << 20]).start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"200ms\"").start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &GET, true).await;
    assert_eq!(client.reset_code(1).await, Some(CANCEL));
    proxy.rests().await;
}

#[tokio::test]
async fn a_client_without_a_window_is_cut_too() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"200ms\"").start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    client.headers(1, &[GET[0], GET[1], GET[2], GET[3], ("x-request-id", "no-window")], true).await;

    assert_eq!(client.reset_code(1).await, Some(CANCEL));
    assert_eq!(proxy.access_log("no-window").await["reason"], "client_stalled");
    proxy.rests().await;
}

#[tokio::test]
async fn what_cannot_be_said_without_doubt_goes_no_further() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let [method, scheme, path, authority] = GET;
    let get = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("no method", vec![scheme, path, authority]),
        ("no scheme", vec![method, path, authority]),
        ("no path", vec![method, scheme, authority]),
        ("an empty path", vec![method, scheme, (":path", ""), authority]),
        ("two methods", vec![method, method, scheme, path, authority]),
        ("two paths", vec![method, scheme, path, (":path", "/admin"), authority]),
        ("two authorities", vec![method, scheme, path, authority, (":authority", "other.test")]),
        ("an unknown pseudo-field", get(&[(":verdict", "good")])),
        ("a pseudo-field of answers", get(&[(":status", "200")])),
        ("a pseudo-field behind others", vec![method, scheme, authority, ("x", "y"), path]),
        (
            ":protocol, not offered",
            vec![(":method", "CONNECT"), scheme, path, authority, (":protocol", "websocket")],
        ),
        ("a space in the path", vec![method, scheme, (":path", "/a HTTP/1.1"), authority]),
        ("a line in the path", vec![method, scheme, (":path", "/ HTTP/1.1\r\nx: y"), authority]),
        ("a path that is none", vec![method, scheme, (":path", "app.test/"), authority]),
        ("a whole URI as path", vec![method, scheme, (":path", "http://app.test/"), authority]),
        ("a space in the method", vec![(":method", "GET /admin"), scheme, path, authority]),
        ("a line in the authority", vec![method, scheme, path, (":authority", "app.test\r\nx: y")]),
        ("a user in the authority", vec![method, scheme, path, (":authority", "me@app.test")]),
        ("a path in the authority", vec![method, scheme, path, (":authority", "app.test/x")]),
        ("another Host", get(&[("host", "other.test")])),
        ("two Hosts", vec![method, scheme, path, ("host", "app.test"), ("host", "app.test")]),
        ("a name in upper case", get(&[("X-Upper", "y")])),
        ("a space in a name", get(&[("x y", "z")])),
        ("a colon in a name", get(&[("x:y", "z")])),
        ("an empty name", get(&[("", "z")])),
        ("a line in a name", get(&[("x\r\ny", "z")])),
        ("a line in a value", get(&[("x", "y\r\nz: a")])),
        ("a bare CR in a value", get(&[("x", "y\rz")])),
        ("a bare LF in a value", get(&[("x", "y\nz")])),
        ("NUL in a value", get(&[("x", "y\0z")])),
        ("Connection", get(&[("connection", "x")])),
        ("Keep-Alive", get(&[("keep-alive", "timeout=5")])),
        ("Proxy-Connection", get(&[("proxy-connection", "close")])),
        ("Upgrade", get(&[("upgrade", "h2c")])),
        ("Transfer-Encoding", get(&[("transfer-encoding", "chunked")])),
        ("TE that is not trailers", get(&[("te", "gzip")])),
        ("TE that is more than trailers", get(&[("te", "trailers, gzip")])),
        ("a body that does not come", get(&[("content-length", "5")])),
        ("a length that is none", get(&[("content-length", "5x")])),
        ("a length with a sign", get(&[("content-length", "+0")])),
        ("two lengths", get(&[("content-length", "0"), ("content-length", "1")])),
        ("a list of lengths", get(&[("content-length", "0, 0")])),
    ];
    for (why, fields) in cases {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        client.headers(1, &fields, true).await;
        let ended = client.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM | 7)).await;
        if ended.is_some_and(|frame| frame.kind == HEADERS) {
            let body = client.until(|frame| frame.kind == DATA).await.expect("a reason");
            let body = String::from_utf8_lossy(&body.payload).into_owned();
            assert!(body.contains("\"reason\":\"bad_request\""), "{why}: {body}");
        }
    }
    for (why, length, body) in [("more than was said", "2", "abc"), ("less than was said", "4", "abc")] {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        let fields: Vec<_> = POST.iter().copied().chain([("content-length", length)]).collect();
        client.headers(1, &fields, false).await;
        client.data(1, body.as_bytes()).await;
        assert!(client.reset_code(1).await.is_some(), "{why}");
    }
    proxy.rests().await;
    assert!(app.requests().iter().all(|request| !request.whole), "{:?}", app.requests().len());

    // What may be said is.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    let fields = get(&[("te", "trailers"), ("host", "app.test"), ("x", "\ty "), ("content-length", "0")]);
    client.headers(1, &fields, true).await;
    assert_eq!(client.outcome(1).await, Came::Head);
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_the_connection_behind_them() {
    let app = Upstream::that().answers(200).with_body("hello").holds().start().await;
    let mut proxy = Config::over([&app]).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &GET, true).await;
    app.has_seen(1).await;

    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(client.goaway().await, Some((0x7fff_ffff, NO_ERROR)), "what is on its way may come");
    let ping = client.until(|frame| frame.kind == PING).await.expect("the connection lives");
    client.frame(PING, 1, 0, &ping.payload).await;
    assert_eq!(client.goaway().await, Some((1, NO_ERROR)), "and this was the last");
    app.release(1);
    let answer = client.until(|frame| frame.kind == DATA).await.expect("an answer");
    assert_eq!(answer.payload, b"hello");
    assert_eq!(client.until(|_| false).await, None, "the connection ends");
    drop(client);
    assert_eq!(proxy.ends().await, Some(0));
}

#[tokio::test]
async fn interim_answers_reach_clients_of_http2() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let stream = tokio::net::TcpStream::connect(proxy.listener()).await.expect("connects");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::get("http://app.test/").body(()).expect("a request");
    let (mut response, _) = client.send_request(request, true).expect("a stream");
    let hints = soon("the hints", std::future::poll_fn(|cx| response.poll_informational(cx))).await;
    let hints = hints.expect("one").expect("whole");
    assert_eq!((hints.status().as_u16(), &hints.headers()["link"]), (103, &"</a.css>".parse().unwrap()));
    assert!(!hints.headers().contains_key("x"), "fields of the connection end here");
    assert_eq!(soon("the answer", response).await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_client_may_wait_for_100_before_its_body() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    let (feed, body) = fed();
    let request = client.request("PUT", "/").header("expect", "100-continue").body(body).expect("a request");
    let sending = tokio::spawn(async move { client.send(request).await });
    app.has_seen(1).await;
    assert_eq!(app.request(0).field("expect"), Some("100-continue"));
    feed.send(Frame::data(Bytes::from_static(b"body"))).await.expect("taken");
    drop(feed);
    let response = read(sending.await.expect("no panic").expect("a response")).await.expect("whole");
    assert_eq!(response.head.status, 200);
    assert_eq!(app.request(0).body, b"body");
}

#[tokio::test]
async fn an_upload_goes_on_though_nobody_takes_its_answer() {
    let app =
        Upstream::that().answers(200).with_body("hello").answers_before_reading_the_body().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    client.next().await.expect("settings, which open our window");
    client.headers(1, &POST, false).await;
    assert_eq!(client.outcome(1).await, Came::Head);

    for _ in 0..12 {
        client.frame(DATA, 0, 1, &[b'y'; 16 << 10]).await;
    }
    client.data(1, b"end").await;
    app.has_all_of(0).await;
    assert_eq!(app.request(0).body.len(), (12 << 14) + 3);
    client.frame(WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]).await;
    let answer = client.until(|frame| frame.kind == DATA).await.expect("an answer");
    assert_eq!(answer.payload, b"hello");
}
