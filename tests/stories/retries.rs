//! Which failed attempts are followed by another, where it goes, and what it may cost.

use std::time::{Duration, Instant};

use crate::support::client::post;
use crate::support::*;

/// Both skipped and made retries of the upstream `app`, by reason.
async fn skipped(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("outrigger_retries_skipped_total{{upstream=app,reason={reason}}}")).await
}

async fn retries(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("outrigger_retries_total{{upstream=app,reason={reason}}}")).await
}

#[tokio::test]
async fn a_reset_before_the_head_is_retried_on_the_other_endpoint() {
    let flaky = Upstream::that().resets_before_the_head().start().await;
    let steady = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&flaky, &steady]).upstream("breaker.mode = \"off\"").start().await;

    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }

    assert!(flaky.seen() > 0, "it was asked too");
    assert_eq!(steady.seen(), 20, "and each of its requests came here then");
    assert_eq!(retries(&proxy, "upstream_reset").await, flaky.seen() as f64);
}

#[tokio::test]
async fn statuses_that_are_retried_and_those_that_are_not() {
    let cases = [(500, true), (502, true), (503, true), (504, true)];
    let passed =
        [(501, false), (505, false), (507, false), (400, false), (404, false), (408, false), (429, false)];
    for (status, is_retried) in cases.into_iter().chain(passed) {
        let app = Upstream::that()
            .answers(status)
            .with_body("first")
            .answers(200)
            .with_body("second")
            .start()
            .await;
        let proxy = Config::over([&app]).start().await;

        let response = proxy.get("/").await;

        if is_retried {
            assert_eq!((response.status, response.text().as_str()), (200, "second"), "{status}");
            assert_eq!(app.request(0).field("x-retry-attempt").unwrap_or("0"), "0", "{status}");
            assert_eq!(app.request(1).field("x-retry-attempt"), Some("1"), "{status}");
            assert_eq!(retries(&proxy, &status.to_string()).await, 1.0, "{status}");
        } else {
            assert_eq!((response.status, response.text().as_str()), (status, "first"));
            assert_eq!(app.seen(), 1, "{status}");
        }
    }
}

#[tokio::test]
async fn no_more_attempts_than_configured_and_then_the_upstreams_own_answer() {
    let app = Upstream::that().answers(503).with_body("its own words").start().await;
    let proxy = Config::over([&app]).start().await;

    let response = proxy.get("/").await;

    assert_eq!((response.status, response.text().as_str()), (503, "its own words"));
    assert_eq!(app.seen(), 4);
    let counts: Vec<_> =
        app.requests().iter().map(|request| request.field("x-retry-attempt").map(str::to_owned)).collect();
    assert_eq!(counts[1..], ["1", "2", "3"].map(|count| Some(count.to_owned())));
    assert_eq!((retries(&proxy, "503").await, skipped(&proxy, "attempts").await), (3.0, 1.0));
    assert_eq!(proxy.metric("outrigger_attempts_total{upstream=app,outcome=5xx}").await, 4.0);
}

#[tokio::test]
async fn methods_that_are_not_idempotent_are_sent_once() {
    for method in ["POST", "PATCH", "PROPFIND"] {
        let app = Upstream::that().answers(503).answers(200).start().await;
        let proxy = Config::over([&app]).start().await;
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");

        assert_eq!(proxy.connect().await.exchange(&request).await.status, 503, "{method}");

        assert_eq!(app.seen(), 1, "{method}");
        assert_eq!(skipped(&proxy, "method").await, 1.0, "{method}");
    }
    for method in ["HEAD", "OPTIONS", "PUT", "DELETE"] {
        let app = Upstream::that().answers(503).answers(200).start().await;
        let proxy = Config::over([&app]).start().await;
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(proxy.connect().await.exchange(&request).await.status, 200, "{method}");
    }
}

#[tokio::test]
async fn what_surely_never_left_is_sent_again_for_every_method() {
    let dead = Upstream::refusing();
    let steady = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&dead, &steady]).start().await;

    for _ in 0..20 {
        let response = proxy.connect().await.exchange(&post("/", "once")).await;
        assert_eq!(response.status, 200);
    }

    assert_eq!(steady.seen(), 20);
    assert!(retries(&proxy, "connect_error").await > 0.0, "the dead one was asked too");
}

#[tokio::test]
async fn unprocessed_attempts_pay_no_budget_where_there_is_another_endpoint() {
    let dead = Upstream::refusing();
    let steady = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&dead, &steady])
        .upstream("retry.budget = { ratio = 0.0, min_per_second = 0 }")
        .upstream("breaker.mode = \"off\"")
        .start()
        .await;

    for _ in 0..40 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(skipped(&proxy, "budget").await, 0.0);
}

#[tokio::test]
async fn an_only_endpoint_that_refuses_is_asked_again_and_the_first_time_is_free() {
    let dead = Upstream::refusing();
    let proxy =
        Config::over([&dead]).upstream("retry.budget = { ratio = 0.0, min_per_second = 0 }").start().await;

    proxy.connect().await.exchange(&post("/", "x")).await.must_be(502, "connect_error");

    assert_eq!(retries(&proxy, "connect_error").await, 1.0);
    assert_eq!(skipped(&proxy, "budget").await, 1.0);
    assert_eq!(proxy.metric("outrigger_attempts_total{upstream=app,outcome=connect_error}").await, 2.0);
}

#[tokio::test]
async fn a_request_that_all_endpoints_refused_fails_at_once() {
    let (one, other) = (Upstream::refusing(), Upstream::refusing());
    let proxy = Config::over([&one, &other])
        .upstream("retry.backoff = { base = \"5s\", max = \"5s\" }")
        .start()
        .await;

    let start = Instant::now();
    proxy.get("/").await.must_be(502, "connect_error");

    assert!(start.elapsed() < Duration::from_secs(2), "no back-off: {:?}", start.elapsed());
    assert_eq!(proxy.metric("outrigger_attempts_total{upstream=app,outcome=connect_error}").await, 2.0);
}

#[tokio::test]
async fn a_body_that_fits_the_buffer_is_sent_again_whole() {
    let body = "x".repeat(64 << 10);
    let chunked = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n{body}\r\n0\r\nX-Sum: 1\r\n\r\n"
    );
    let of_length = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for (why, request) in [("of known length", of_length), ("in chunks", chunked)] {
        let app = Upstream::that().answers(503).answers(200).start().await;
        let proxy = Config::over([&app]).start().await;

        assert_eq!(proxy.connect().await.exchange(&request).await.status, 200, "{why}");

        for attempt in 0..2 {
            assert!(app.request(attempt).body == body.as_bytes(), "{why}, attempt {attempt}");
        }
        if why == "in chunks" {
            assert_eq!(value(&app.request(1).trailers, "x-sum"), Some("1"), "its trailers too");
        }
    }
}

#[tokio::test]
async fn a_body_that_does_not_fit_is_sent_once() {
    let body = "x".repeat((64 << 10) + 1);
    let chunked = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n{body}\r\n0\r\n\r\n"
    );
    let of_length = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for (why, request) in [("of known length", of_length), ("in chunks", chunked)] {
        let app = Upstream::that().answers(503).answers(200).start().await;
        let proxy = Config::over([&app]).start().await;

        assert_eq!(proxy.connect().await.exchange(&request).await.status, 503, "{why}");

        assert_eq!(app.seen(), 1, "{why}");
        assert_eq!(skipped(&proxy, "body_too_large").await, 1.0, "{why}");
    }
}

#[tokio::test]
async fn buffers_are_bounded_in_all() {
    let app = Upstream::that().answers(503).answers(200).start().await;
    let proxy = Config::over([&app]).and("[server]\nmax_buffer = \"1KiB\"").start().await;
    let body = "x".repeat(32 << 10);
    let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());

    assert_eq!(proxy.connect().await.exchange(&request).await.status, 503);

    assert_eq!(skipped(&proxy, "buffer_memory").await, 1.0);
    assert!(proxy.metric("outrigger_limit_reached_total").await >= 1.0, "counted");
}

#[tokio::test]
async fn a_reset_while_the_body_still_comes_is_retried_with_the_whole_body() {
    let app = Upstream::that().resets_before_reading_the_body().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst").await;
    eventually("the reset is there", async || app.seen() == 2 || app.seen() == 1 && app.open() == 0).await;
    client.send("again").await;

    assert_eq!(client.response().await.status, 200);
    assert_eq!(app.request(1).body, b"firstagain");
}

#[tokio::test]
async fn a_reset_in_the_middle_of_a_small_answer_is_retried() {
    let app = Upstream::that().resets_in_mid_body().answers(200).with_body("whole").start().await;
    let proxy = Config::over([&app]).start().await;

    let response = proxy.get("/").await;

    assert_eq!((response.status, response.text().as_str()), (200, "whole"));
    assert_eq!(retries(&proxy, "upstream_reset").await, 1.0);
}

#[tokio::test]
async fn nothing_is_retried_once_a_byte_went_out() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1000));
    let cases = [
        ("larger than the buffer", "", large.as_str()),
        (
            "the buffer is off",
            "retry.response_buffer = \"0B\"",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        ),
        (
            "chunks are not waited for",
            "",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ),
    ];
    for (why, line, answer) in cases {
        let app = Upstream::that()
            .answers_raw(answer)
            .and_when_released("")
            .then_resets()
            .answers(200)
            .start()
            .await;
        let proxy = Config::over([&app]).upstream(line).start().await;

        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        assert_eq!(client.head().await.expect("a head").status, 200, "{why}");
        app.release(1);
        client.until_end().await;

        assert_eq!(app.seen(), 1, "{why}");
        proxy.metric_becomes("outrigger_retries_skipped_total{upstream=app,reason=head_sent}", 1.0).await;
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_small_answer_is_not_held_longer_than_a_moment() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        .and_when_released("world")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    // 100 ms after its head it goes out, though its body is still coming.
    assert_eq!(client.head().await.expect("a head").status, 200);
    assert_eq!(client.bytes(5).await, b"hello");
    app.release(1);
    assert_eq!(client.bytes(5).await, b"world");
}

#[tokio::test]
async fn event_streams_are_never_held() {
    let app = Upstream::that()
        .answers_raw(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\ndata: 1\n\n",
        )
        .then_hangs()
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    assert_eq!(client.bytes(9).await, b"data: 1\n\n");
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let app = Upstream::that().answers(503).with_field("Retry-After", "1").answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let start = Instant::now();
    assert_eq!(proxy.get("/").await.status, 200);

    assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_retry_after_beyond_the_time_left_is_answered_now() {
    let app = Upstream::that().answers(503).with_field("Retry-After", "60").answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let start = Instant::now();
    let response = proxy.get("/").await;

    assert_eq!((response.status, response.field("retry-after")), (503, Some("60")));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(app.seen(), 1);
    let skips = skipped(&proxy, "pushback").await + skipped(&proxy, "deadline").await;
    assert_eq!(skips, 1.0);
}

#[tokio::test]
async fn a_caller_that_retries_itself_is_left_to_it() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Retry-Attempt: 1\r\n\r\n";

    let app = Upstream::that().answers(503).answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    assert_eq!(proxy.connect().await.exchange(request).await.status, 503);
    assert_eq!(skipped(&proxy, "caller_retries").await, 1.0);

    let app = Upstream::that().answers(503).answers(200).start().await;
    let proxy = Config::over([&app]).upstream("retry.respect_caller_retries = false").start().await;
    assert_eq!(proxy.connect().await.exchange(request).await.status, 200);
    assert_eq!(app.request(0).field("x-retry-attempt"), Some("1"));
    assert_eq!(app.request(1).field("x-retry-attempt"), Some("2"), "out = in + own");
}

#[tokio::test]
async fn another_outriggers_overload_answer_is_not_retried() {
    let app = Upstream::that()
        .answers(503)
        .with_field("Proxy-Status", "outrigger; error=destination_unavailable; details=\"breaker_open\"")
        .answers(200)
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    assert_eq!(proxy.get("/").await.status, 503);
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn an_idempotency_key_counts_where_it_is_honoured() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: 1\r\nContent-Length: 0\r\n\r\n";
    for (honoured, status) in [(true, 200), (false, 503)] {
        let app = Upstream::that().answers(503).answers(200).start().await;
        let proxy =
            Config::over([&app]).upstream(&format!("retry.idempotency_key = {honoured}")).start().await;
        assert_eq!(proxy.connect().await.exchange(request).await.status, status, "honoured: {honoured}");
    }
}

#[tokio::test]
async fn the_budget_bounds_retries() {
    let app = Upstream::that().answers(503).start().await;
    let proxy = Config::over([&app])
        .upstream("breaker.mode = \"off\"")
        .upstream("retry.backoff = { base = \"1ms\", max = \"1ms\" }")
        .start()
        .await;
    let mut client = proxy.connect().await;

    let firsts = 200;
    for _ in 0..firsts {
        assert_eq!(client.exchange(&get("/")).await.status, 503);
    }

    let retries = retries(&proxy, "503").await;
    assert_eq!(app.seen() as f64, f64::from(firsts) + retries);
    // floor (2 a second of a window of 10 s) + ratio (0.25) x firsts; the yield gate holds 50 failed ones.
    assert!((1.0..=50.0).contains(&retries), "{retries}");
    let skips = skipped(&proxy, "budget").await + skipped(&proxy, "yield").await;
    assert!(skips > 100.0, "those that were not made are counted: {skips}");
}

#[tokio::test]
async fn an_attempt_that_timed_out_is_retried() {
    let app = Upstream::that().never_answers().answers(200).start().await;
    let proxy = Config::over([&app]).upstream("timeout.attempt = \"100ms\"").start().await;

    assert_eq!(proxy.get("/").await.status, 200);

    assert_eq!(retries(&proxy, "attempt_timeout").await, 1.0);
    eventually("the attempt that was given up is cancelled", async || app.open() <= 1).await;
}

#[tokio::test]
async fn half_of_the_request_timeout_is_for_the_first_attempt() {
    let app = Upstream::that().never_answers().answers(200).start().await;
    let proxy = Config::over([&app]).within("1s").start().await;

    let start = Instant::now();
    assert_eq!(proxy.get("/").await.status, 200);

    assert!((400..950).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn grpc_statuses_are_retried_for_the_methods_that_are_named() {
    let call = |method: &str| {
        format!(
            "POST /pkg.Service/{method} HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nTE: trailers\r\n\
             Content-Length: 5\r\n\r\n\0\0\0\0\0"
        )
    };
    let cases = [
        ("its name is listed", "GetThing", "14", &[][..], 2),
        ("a name that is not", "SetThing", "14", &[], 1),
        ("a status that is not", "GetThing", "5", &[], 1),
        ("the server says never", "GetThing", "14", &[("grpc-retry-pushback-ms", "-1")], 1),
        ("what it says is unreadable", "GetThing", "14", &[("grpc-retry-pushback-ms", "soon")], 1),
        ("the server says soon", "GetThing", "14", &[("grpc-retry-pushback-ms", "20")], 2),
    ];
    for (why, method, status, fields, attempts) in cases {
        let mut script = Upstream::that().answers(200).with_field("Content-Type", "application/grpc");
        script = script.with_field("grpc-status", status);
        for (name, value) in fields {
            script = script.with_field(name, value);
        }
        let last =
            script.answers(200).with_field("Content-Type", "application/grpc").with_field("grpc-status", "0");
        let app = last.start().await;
        let proxy = Config::over([&app])
            .http1()
            .upstream("retry.grpc_methods = [\"pkg.Service/Get*\"]")
            .start()
            .await;

        let response = proxy.connect().await.exchange(&call(method)).await;

        assert_eq!(app.seen(), attempts, "{why}");
        assert_eq!(response.field("grpc-status"), Some(if attempts == 2 { "0" } else { status }), "{why}");
    }
}

#[tokio::test]
async fn a_retry_goes_to_an_untried_endpoint_while_there_is_one() {
    let mut bad = Vec::new();
    for _ in 0..3 {
        bad.push(Upstream::that().answers(503).start().await);
    }
    let good = Upstream::that().answers(200).start().await;
    let proxy = Config::over(bad.iter().chain([&good])).upstream("breaker.mode = \"off\"").start().await;

    // Four attempts, four endpoints: the good one is always found.
    for _ in 0..5 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn a_route_may_retry_otherwise() {
    let app = Upstream::that().answers(503).start().await;
    let proxy = Config::over([&app])
        .and("[[listener.route]]\nmatch = { path_prefix = \"/once/\" }\nupstream = \"app\"\nretry = { attempts = 1 }")
        .start()
        .await;

    proxy.get("/once/").await;
    assert_eq!(app.seen(), 1);
    proxy.get("/").await;
    assert_eq!(app.seen(), 5);
}

#[tokio::test]
async fn retry_after_may_be_a_date() {
    // A date of long ago: now.
    let date = "Thu, 01 Jan 1970 00:00:00 GMT";
    let app = Upstream::that().answers(503).with_field("Retry-After", date).answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    assert_eq!(proxy.get("/").await.status, 200);

    let date = "Fri, 31 Dec 2199 23:59:59 GMT";
    let app = Upstream::that().answers(503).with_field("Retry-After", date).answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    assert_eq!(proxy.get("/").await.status, 503);
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn an_attempt_that_is_given_up_leaves_nothing_behind() {
    // The first answer comes while the second attempt runs: it is nobody's any more.
    let app = Upstream::that()
        .answers(200)
        .with_body("late")
        .delays(Duration::from_millis(300))
        .answers(200)
        .with_body("second")
        .delays(Duration::from_millis(100))
        .answers(200)
        .with_body("third")
        .start()
        .await;
    let proxy = Config::over([&app]).upstream("timeout.attempt = \"150ms\"").start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get("/1")).await.text(), "second");
    assert_eq!(client.exchange(&get("/2")).await.text(), "third");
    proxy.rests().await;
}

#[tokio::test]
async fn an_early_failure_is_retried_with_the_body_that_still_comes() {
    let app = Upstream::that().answers(503).answers_before_reading_the_body().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    app.has_seen(2).await;
    client.send("5\r\nagain\r\n0\r\nX-Sum: 1\r\n\r\n").await;

    assert_eq!(client.response().await.status, 200);
    assert_eq!(app.request(1).body, b"firstagain");
    assert_eq!(value(&app.request(1).trailers, "x-sum"), Some("1"));
    assert_eq!(client.exchange(&get("/")).await.status, 200, "the client's connection is in order");
    proxy.rests().await;
}

#[tokio::test]
async fn a_large_body_that_nobody_took_goes_to_the_other_endpoint() {
    let dead = Upstream::refusing();
    let steady = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&dead, &steady]).start().await;
    let body = "x".repeat(1 << 20);
    for number in 0..8 {
        assert_eq!(proxy.connect().await.exchange(&post("/", &body)).await.status, 200);
        assert_eq!(steady.request(number).body.len(), 1 << 20);
    }
}

#[tokio::test]
async fn a_large_body_that_was_begun_is_not_sent_again() {
    let app = Upstream::that().resets_after_reading(100_000).answers(200).start().await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1 << 20)).await;
    client.try_send(vec![b'x'; 1 << 20]).await;
    client.response().await.must_be(502, "upstream_reset");

    assert_eq!(app.seen(), 1);
    assert_eq!(skipped(&proxy, "body_too_large").await, 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn a_retry_that_helps_gives_its_token_back() {
    // The yield gate holds 50 failed retries; these all succeed, so that far more of them are let through.
    let script = (0..80).fold(Upstream::that(), |script, _| script.answers(503).answers(200));
    let app = script.start().await;
    let proxy = Config::over([&app])
        .upstream("breaker.mode = \"off\"")
        .upstream("retry.backoff = { base = \"1ms\", max = \"1ms\" }")
        .upstream("retry.budget = { ratio = 1.0, min_per_second = 100 }")
        .start()
        .await;
    let mut client = proxy.connect().await;
    for number in 0..80 {
        assert_eq!(client.exchange(&get("/")).await.status, 200, "request {number}");
    }
    assert_eq!(retries(&proxy, "503").await, 80.0);
}
