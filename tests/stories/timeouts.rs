//! How long each part may take, the caller's deadline on its way in and out, and what stands still meanwhile.

use std::time::{Duration, Instant};

use crate::support::*;

fn with_fields(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

#[tokio::test]
async fn a_connect_has_its_time() {
    let app = Upstream::blackhole();
    let proxy = Config::over([&app]).plain().upstream("timeout.connect = \"100ms\"").start().await;

    let start = Instant::now();
    proxy.get("/").await.must_be(502, "connect_error");

    assert!((90..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    proxy.rests().await;
}

#[tokio::test]
async fn an_attempt_has_its_time() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).plain().upstream("timeout.attempt = \"100ms\"").start().await;

    let start = Instant::now();
    proxy.get("/").await.must_be(504, "attempt_timeout");

    assert!((90..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    app.has_open(0).await;
    assert_eq!(proxy.metric("outrigger_attempts_total{upstream=app,outcome=attempt_timeout}").await, 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn all_attempts_together_have_their_time() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).plain().within("200ms").start().await;

    let start = Instant::now();
    proxy.get("/").await.must_be(504, "request_timeout");

    assert!((190..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    app.has_open(0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn the_request_timeout_ends_a_back_off_too() {
    let app = Upstream::that().answers(503).start().await;
    let proxy = Config::over([&app])
        .within("300ms")
        .upstream("retry.backoff = { base = \"10s\", max = \"10s\", jitter = \"none\" }")
        .start()
        .await;

    let start = Instant::now();
    let response = proxy.get("/").await;

    assert!(response.status == 503 || response.status == 504, "{response:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn a_head_in_time_ends_the_timeouts() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .and_after(Duration::from_millis(500), "5\r\nworld\r\n0\r\n\r\n")
        .start()
        .await;
    let proxy = Config::over([&app]).within("200ms").upstream("timeout.attempt = \"100ms\"").start().await;

    let response = proxy.get("/").await;

    assert_eq!((response.text().as_str(), response.whole), ("helloworld", true));
}

#[tokio::test]
async fn an_upload_stops_the_clock() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).within("300ms").upstream("timeout.attempt = \"150ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send("x").await;
    }

    assert_eq!(client.response().await.status, 200);
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn an_upload_stops_the_clock_for_its_retry_too() {
    let app = Upstream::that().answers(503).answers(200).start().await;
    let proxy = Config::over([&app]).within("400ms").start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send("x").await;
    }

    assert_eq!(client.response().await.status, 200, "its 400 ms began when the body had come");
    assert_eq!(app.seen(), 2);
}

#[tokio::test]
async fn an_upload_that_stalls_is_ended() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"200ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await;
    client.response().await.must_be(408, "client_stalled");
    client.closes().await;

    app.has_open(0).await;
    assert!(!app.request(0).whole);
    proxy.rests().await;
}

#[tokio::test]
async fn an_upstream_that_does_not_read_is_ended() {
    let app = Upstream::that().answers(200).holds().never_reads_the_body().start().await;
    let proxy = Config::over([&app]).plain().upstream("timeout.idle = \"300ms\"").start().await;

    let body = vec![b'x'; 64 << 20];
    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    client.send_until_stuck(&body).await;
    client.response().await.must_be(504, "upstream_stalled");
    proxy.rests().await;
}

#[tokio::test]
async fn an_answer_that_stalls_is_cut() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nX-Request-Id: stalls\r\n\r\nhello")
        .then_hangs()
        .start()
        .await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"200ms\"").start().await;

    let mut client = proxy.connect().await;
    let response = client.exchange(&with_fields("X-Request-Id: it-stalls\r\n")).await;

    assert_eq!((response.status, response.text().as_str(), response.whole), (200, "hello", false));
    app.has_open(0).await;
    assert_eq!(proxy.access_log("it-stalls").await["reason"], "upstream_stalled");
    proxy.rests().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let app = Upstream::that().answers(200).with_body(vec![b'x'; 64 << 20]).start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"300ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send(with_fields("X-Request-Id: it-does-not-read\r\n")).await;

    assert_eq!(proxy.access_log("it-does-not-read").await["reason"], "client_stalled");
    app.has_open(0).await;
    proxy.rests().await;
    assert!(client.until_end().await.len() < 64 << 20, "it was cut");
}

#[tokio::test]
async fn a_stream_may_be_quiet_for_longer() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        .and_after(Duration::from_millis(500), "data: 2\n\n")
        .then_hangs()
        .start()
        .await;
    let proxy = Config::over([&app])
        .upstream("timeout.idle = \"100ms\"")
        .upstream("timeout.stream_idle = \"1s\"")
        .start()
        .await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    let rest = client.until_end().await;
    // In chunks or not: both events came, and the end after a second of silence is no clean one.
    assert!(find(&rest, b"data: 2").is_some(), "{:?}", String::from_utf8_lossy(&rest));
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    proxy.rests().await;
}

#[tokio::test]
async fn the_callers_deadline_bounds_the_request() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let cases = [
        "X-Request-Timeout-Ms: 100\r\n",
        "X-Envoy-Expected-Rq-Timeout-Ms: 100\r\n",
        "X-Request-Timeout-Ms: 60000\r\nX-Envoy-Expected-Rq-Timeout-Ms: 100\r\n",
        "X-Request-Timeout-Ms: 100\r\nX-Envoy-Expected-Rq-Timeout-Ms: 60000\r\n",
    ];
    for fields in cases {
        let start = Instant::now();
        proxy.connect().await.exchange(&with_fields(fields)).await.must_be_because(
            504,
            "deadline_exceeded",
            fields,
        );
        assert!((90..2000).contains(&start.elapsed().as_millis()), "{fields}: {:?}", start.elapsed());
    }
    app.has_open(0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn the_time_that_is_left_goes_up() {
    let app = Upstream::that().answers(503).answers(200).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.backoff = { base = \"50ms\", max = \"50ms\", jitter = \"none\" }")
        .start()
        .await;

    let fields = "X-Request-Timeout-Ms: 5000\r\nX-Envoy-Expected-Rq-Timeout-Ms: 7000\r\n";
    assert_eq!(proxy.connect().await.exchange(&with_fields(fields)).await.status, 200);

    let left = |attempt: usize, field: &str| -> u64 {
        app.request(attempt).field(field).expect("it came, so it goes").parse().expect("a number")
    };
    for field in ["x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms"] {
        assert!(left(0, field) <= 5000 && left(0, field) > 3000, "{field}: {}", left(0, field));
        assert!(
            left(1, field) + 50 <= left(0, field),
            "{field} falls: {} {}",
            left(0, field),
            left(1, field)
        );
    }
    assert_eq!(app.request(0).field("grpc-timeout"), None, "never made up");
}

#[tokio::test]
async fn an_unreadable_deadline_is_ignored_and_counted() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let values = ["soon", "", "-5", "1.5", "5s", "99999999999999999999999"];
    for value in values {
        let request = with_fields(&format!("X-Request-Timeout-Ms: {value}\r\n"));
        assert_eq!(proxy.connect().await.exchange(&request).await.status, 200, "{value:?}");
    }
    assert!(proxy.metric("outrigger_limit_reached_total").await >= 4.0, "counted");
}

#[tokio::test]
async fn no_attempt_starts_that_cannot_finish() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut refused = 0;
    for _ in 0..40 {
        let response = proxy.connect().await.exchange(&with_fields("X-Request-Timeout-Ms: 3\r\n")).await;
        refused += usize::from(response.is_for("deadline_exceeded"));
    }

    // One in twenty, and at least one a second, passes regardless, so that the rule learns.
    assert!(refused >= 30, "{refused} of 40 were answered at once");
    assert!(app.seen() <= 10, "{} went up", app.seen());
}

#[tokio::test]
async fn grpc_deadlines_are_obeyed_and_passed_on() {
    let call = |timeout: &str| {
        format!(
            "POST /pkg.Service/Get HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\
             grpc-timeout: {timeout}\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let app = Upstream::that()
        .answers(200)
        .with_field("Content-Type", "application/grpc")
        .with_field("grpc-status", "0")
        .never_answers()
        .start()
        .await;
    let untrusting = Config::over([&app]).plain().http1().listener("trust = \"none\"").start().await;

    let response = untrusting.connect().await.exchange(&call("5S")).await;
    assert_eq!(response.field("grpc-status"), Some("0"));
    let seen = app.request(0);
    let timeout = seen.field("grpc-timeout").expect("it came, so it goes");
    let (digits, unit) = timeout.split_at(timeout.len() - 1);
    assert!(digits.len() <= 8 && "HMSmun".contains(unit), "{timeout}");
    assert_ne!(timeout, "5S", "less is left");
    assert_eq!(seen.field("x-request-timeout-ms"), None, "not for gRPC");

    let start = Instant::now();
    let response = untrusting.connect().await.exchange(&call("100m")).await;
    assert_eq!((response.status, response.field("grpc-status")), (200, Some("4")), "obeyed from everybody");
    assert!((90..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    app.has_open(0).await;
}

#[tokio::test]
async fn a_malformed_grpc_timeout_is_refused() {
    let app = Upstream::that().answers(200).with_field("grpc-status", "0").start().await;
    let proxy = Config::over([&app]).start().await;
    for timeout in ["5", "S", "123456789S", "5s", "-5S", "5 S", "5.5S"] {
        let call = format!(
            "POST /pkg.Service/Get HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\
             grpc-timeout: {timeout}\r\nContent-Length: 0\r\n\r\n"
        );
        let response = proxy.connect().await.exchange(&call).await;
        assert_ne!(response.field("grpc-status"), Some("0"), "{timeout:?}");
        assert_eq!(app.seen(), 0, "{timeout:?}");
    }
}

#[tokio::test]
async fn a_request_timeout_that_is_written_bounds_grpc_calls_too() {
    let call = "POST /pkg.Service/Get HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    let script = || {
        let script = Upstream::that().answers(200).with_field("Content-Type", "application/grpc");
        script.with_field("grpc-status", "0").delays(Duration::from_millis(400))
    };
    let app = script().start().await;
    let proxy = Config::over([&app]).plain().http1().within("100ms").start().await;
    let response = proxy.connect().await.exchange(call).await;
    assert_eq!(response.field("grpc-status"), Some("4"), "written: {response:?}");
}

#[tokio::test]
async fn a_route_may_have_other_timeouts() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app])
        .plain()
        .and("[[listener.route]]\nmatch = { path_prefix = \"/quick/\" }\nupstream = \"app\"")
        .and("timeout = { request = \"100ms\", connect = \"100ms\" }")
        .start()
        .await;

    let start = Instant::now();
    proxy.get("/quick/").await.must_be(504, "request_timeout");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_head_that_trickles_is_no_progress() {
    let mut script = Upstream::that().answers_raw("HTTP/1.1 200 OK\r\nX: ");
    for _ in 0..100 {
        script = script.and_after(Duration::from_millis(20), "y");
    }
    let app = script.start().await;
    let proxy = Config::over([&app]).plain().upstream("timeout.attempt = \"200ms\"").start().await;

    let start = Instant::now();
    proxy.get("/").await.must_be(504, "attempt_timeout");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    app.has_open(0).await;
}

#[tokio::test]
async fn interim_answers_do_not_stop_the_clock() {
    let mut script = Upstream::that().answers_raw("HTTP/1.1 100 Continue\r\n\r\n");
    for _ in 0..100 {
        script = script.and_after(Duration::from_millis(20), "HTTP/1.1 102 Processing\r\n\r\n");
    }
    let app = script.start().await;
    let proxy = Config::over([&app]).plain().upstream("timeout.attempt = \"200ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let last = loop {
        let response = client.response().await;
        if response.status >= 200 {
            break response;
        }
    };
    last.must_be(504, "attempt_timeout");
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_cut() {
    let size = 32 << 20;
    let app = Upstream::that().answers(200).with_body(vec![b'x'; size]).start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"500ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    let start = Instant::now();
    for _ in 0..32 {
        client.bytes(1 << 20).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(1), "longer than idle");
    proxy.rests().await;
}

#[tokio::test]
async fn a_grpc_stream_that_its_client_has_not_ended_is_not_bounded() {
    let app = Upstream::that()
        .answers(200)
        .with_field("Content-Type", "application/grpc")
        .with_field("grpc-status", "0")
        .holds()
        .start()
        .await;
    let proxy = Config::over([&app]).plain().http1().within("200ms").start().await;

    let mut client = proxy.connect().await;
    client.send("POST /pkg.Service/Talk HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n").await;
    client.send("Transfer-Encoding: chunked\r\n\r\n5\r\n\0\0\0\0\0\r\n").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send("0\r\n\r\n").await;
    app.release(1);

    assert_eq!(client.response().await.field("grpc-status"), Some("0"));
}

/// An answer whose head comes at once and whose body comes behind a body of 12 bytes.
fn duplex() -> upstream::Script {
    Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .answers_before_reading_the_body()
        .and_behind(12, "2\r\nok\r\n0\r\n\r\n")
}

#[tokio::test]
async fn an_upload_behind_the_head_is_progress_too() {
    let app = duplex().start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"250ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.try_send("x").await;
    }

    let rest = client.bytes("2\r\nok\r\n0\r\n\r\n".len()).await;
    assert_eq!(String::from_utf8_lossy(&rest), "2\r\nok\r\n0\r\n\r\n");
}

#[tokio::test]
async fn an_upload_that_stalls_behind_the_head_is_cut() {
    let app = duplex().start().await;
    let proxy = Config::over([&app]).upstream("timeout.idle = \"250ms\"").start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nX-Request-Id: stalls\r\nContent-Length: 12\r\n\r\nx").await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    let rest = client.until_end().await;

    assert!(!rest.ends_with(b"0\r\n\r\n"), "never a clean end: {rest:?}");
    let reason = proxy.access_log("\"stalls\"").await["reason"].clone();
    assert_eq!(reason, "client_stalled", "it was the client that stood still");
    app.has_open(0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn lengths_of_time_beyond_all_clocks_do_no_harm() {
    let app = Upstream::that().answers(200).with_field("grpc-status", "0").start().await;
    let proxy = Config::over([&app]).http1().start().await;
    let huge = ["9999999999", "999999999999999", "9223372036854775807", "18446744073709551615"];
    for value in huge {
        for name in ["X-Request-Timeout-Ms", "X-Envoy-Expected-Rq-Timeout-Ms"] {
            let response =
                proxy.connect().await.exchange(&with_fields(&format!("{name}: {value}\r\n"))).await;
            assert_eq!(response.status, 200, "{name}: {value}");
        }
    }
    let call = "POST /a/b HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\ngrpc-timeout: 99999999H\r\n\
                Content-Length: 0\r\n\r\n";
    assert_eq!(proxy.connect().await.exchange(call).await.field("grpc-status"), Some("0"));

    for value in huge.iter().chain(&["-1", "soon", ""]) {
        let app = Upstream::that().answers(503).with_field("Retry-After", value).answers(200).start().await;
        let proxy = Config::over([&app]).start().await;
        let response = proxy.get("/").await;
        // What cannot be read is as if it were not there.
        let expected = if value.len() >= 10 { 503 } else { 200 };
        assert_eq!(response.status, expected, "Retry-After: {value:?}");
    }
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Retry-Attempt: 99999999999999999999\r\n\r\n";
    assert_eq!(proxy.connect().await.exchange(request).await.status, 200);
}
