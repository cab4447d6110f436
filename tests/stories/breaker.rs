//! The breaker of an upstream: what opens it, what it answers, how it closes, and what it ignores.

use std::time::Duration;

use crate::support::*;

const STATE: &str = "outrigger_breaker_state{upstream=app,mode=enforce}";

/// A breaker that opens with the fifth failure of up to ten requests, and soon tries again.
fn quick<'a>(endpoints: impl IntoIterator<Item = &'a Upstream>) -> Config {
    opening_for("300ms", endpoints)
}

/// The same, open for `time` at first.
fn opening_for<'a>(time: &str, endpoints: impl IntoIterator<Item = &'a Upstream>) -> Config {
    Config::over(endpoints)
        .upstream("retry.attempts = 1")
        .upstream("breaker.min_requests = 5")
        .upstream(&format!("breaker.open_for = {{ base = \"{time}\", max = \"30s\" }}"))
}

/// Sends GETs until the answer is the breaker's own, and says how many went before.
async fn until_open(proxy: &Proxy) -> usize {
    let mut client = proxy.connect().await;
    for count in 0..200 {
        if client.exchange(&get("/")).await.is_for("breaker_open") {
            return count;
        }
    }
    panic!("it did not open");
}

/// Sends GETs until one is answered with `status` by the upstream itself.
async fn until_asked(proxy: &Proxy, status: u16) {
    eventually("the upstream is asked again", async || {
        let response = proxy.get("/").await;
        assert!(response.status == status || response.is_for("breaker_open"), "{response:?}");
        response.status == status
    })
    .await;
}

/// Sends GETs and expects the breaker to stay closed.
async fn stays_closed(proxy: &Proxy, why: &str) {
    for number in 0..15 {
        let response = proxy.get("/").await;
        assert!(!response.is_for("breaker_open"), "{why}: request {number}: {}", response.text());
    }
    assert_eq!(proxy.metric(STATE).await, 0.0, "{why}");
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_not_asked() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = opening_for("30s", [&app]).start().await;

    assert_eq!(until_open(&proxy).await, 5, "min_requests");

    let response = proxy.get("/").await;
    response.must_be(503, "breaker_open");
    let after: u64 = response.field("retry-after").expect("it knows when").parse().expect("seconds");
    assert!((1..=36).contains(&after), "{after}: what is left of 30 s +-20 %");
    assert_eq!(app.seen(), 5);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum(STATE), 2.0);
    assert_eq!(metrics.sum("outrigger_breaker_transitions_total{upstream=app,to=open}"), 1.0);
    assert_eq!(metrics.sum("outrigger_rejected_total{upstream=app,reason=breaker_open,mode=enforce}"), 2.0);
    let event =
        |line: &&String| line.contains("breaker") && line.contains("open") && !line.contains("\"status\"");
    eventually("the log tells of it once", async || proxy.lines().iter().filter(event).count() == 1).await;
}

#[tokio::test]
async fn it_closes_when_the_upstream_is_well_again() {
    let app = Upstream::that();
    let app = (0..5).fold(app, |app, _| app.answers(500)).answers(200).start().await;
    let proxy = quick([&app]).start().await;

    until_open(&proxy).await;
    until_asked(&proxy, 200).await;
    eventually("it is closed", async || {
        proxy.get("/").await;
        proxy.metric(STATE).await == 0.0
    })
    .await;

    stays_closed(&proxy, "it is well").await;
    assert_eq!(proxy.metric("outrigger_breaker_transitions_total{upstream=app,to=closed}").await, 1.0);
}

#[tokio::test]
async fn a_failed_probe_opens_it_again_for_longer() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = quick([&app]).start().await;

    until_open(&proxy).await;
    until_asked(&proxy, 500).await;
    eventually("it is open again", async || proxy.metric(STATE).await == 2.0).await;
    let start = std::time::Instant::now();
    until_asked(&proxy, 500).await;

    // Twice 300 ms, less 20 %.
    assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
}

#[tokio::test]
async fn failures_and_what_are_none() {
    let cases = [
        ("500", Upstream::that().answers(500), true),
        ("503", Upstream::that().answers(503), true),
        ("504", Upstream::that().answers(504), true),
        ("a reset", Upstream::that().resets_before_the_head(), true),
        ("nonsense", Upstream::that().answers_raw("nonsense\r\n\r\n").then_closes(), true),
        ("a connection closed at once", Upstream::that().accepts_and_closes(), true),
        ("501", Upstream::that().answers(501), false),
        ("505", Upstream::that().answers(505), false),
        ("404", Upstream::that().answers(404), false),
        ("429", Upstream::that().answers(429), false),
        ("200", Upstream::that().answers(200), false),
    ];
    for (why, script, opens) in cases {
        let app = script.start().await;
        let proxy = opening_for("30s", [&app]).start().await;
        if opens {
            assert_eq!(until_open(&proxy).await, 5, "{why}");
        } else {
            stays_closed(&proxy, why).await;
        }
    }
}

#[tokio::test]
async fn what_is_a_failure_is_configured() {
    let app = Upstream::that().answers(404).start().await;
    let proxy = opening_for("30s", [&app]).upstream("failure.status = [\"5xx\", \"404\"]").start().await;
    assert_eq!(until_open(&proxy).await, 5);

    let app = Upstream::that().answers(503).start().await;
    let proxy = opening_for("30s", [&app]).upstream("failure.status = [\"500\"]").start().await;
    stays_closed(&proxy, "503 is taken out").await;
}

#[tokio::test]
async fn grpc_statuses_are_failures_too() {
    let call = "POST /pkg.Service/Get HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    let trailers = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n";
    let in_the_head = Upstream::that().answers(200).with_field("Content-Type", "application/grpc");
    let cases = [
        ("UNAVAILABLE in the head", in_the_head.clone().with_field("grpc-status", "14"), true),
        (
            "INTERNAL in the trailers",
            Upstream::that().answers_raw(format!("{trailers}0\r\ngrpc-status: 13\r\n\r\n")),
            true,
        ),
        ("NOT_FOUND", in_the_head.clone().with_field("grpc-status", "5"), false),
        ("RESOURCE_EXHAUSTED", in_the_head.clone().with_field("grpc-status", "8"), false),
        ("OK", in_the_head.with_field("grpc-status", "0"), false),
    ];
    for (why, script, opens) in cases {
        let app = script.start().await;
        let proxy = opening_for("30s", [&app]).http1().start().await;
        for _ in 0..15 {
            proxy.connect().await.exchange(call).await;
        }
        let state = proxy.metric(STATE).await;
        assert_eq!(state, if opens { 2.0 } else { 0.0 }, "{why}");
        if opens {
            let response = proxy.connect().await.exchange(call).await;
            assert_eq!(
                (response.status, response.field("grpc-status")),
                (200, Some("14")),
                "{why}: in gRPC's words"
            );
        }
    }
}

#[tokio::test]
async fn half_of_the_requests_is_enough_but_fewer_are_not() {
    let mixed = |good: usize, bad: usize| {
        let mut script = Upstream::that();
        for _ in 0..10 {
            script = (0..good).fold(script, |script, _| script.answers(200));
            script = (0..bad).fold(script, |script, _| script.answers(500));
        }
        script
    };
    let app = mixed(1, 1).start().await;
    let proxy = opening_for("30s", [&app]).start().await;
    until_open(&proxy).await;

    let app = mixed(3, 2).start().await;
    let proxy = opening_for("30s", [&app]).start().await;
    stays_closed(&proxy, "2 of 5").await;
}

#[tokio::test]
async fn a_window_may_count_requests() {
    // Ten good ones leave a window of ten before the failures fill half of it.
    let app = (0..10).fold(Upstream::that(), |app, _| app.answers(200)).answers(500).start().await;
    let proxy =
        opening_for("30s", [&app]).upstream("breaker.window = { kind = \"count\", size = 10 }").start().await;
    assert_eq!(until_open(&proxy).await, 15);
}

#[tokio::test]
async fn slow_answers_open_it_where_configured() {
    let app = Upstream::that().answers(200).delays(Duration::from_millis(60)).start().await;
    let proxy = opening_for("30s", [&app])
        .upstream("breaker.slow_request = \"20ms\"")
        .upstream("breaker.slow_ratio = 0.8")
        .start()
        .await;
    assert_eq!(until_open(&proxy).await, 5);
}

#[tokio::test]
async fn timeouts_count_where_the_attempt_had_its_time() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = opening_for("30s", [&app]).upstream("timeout.attempt = \"50ms\"").start().await;
    assert_eq!(until_open(&proxy).await, 5);
}

#[tokio::test]
async fn callers_with_short_deadlines_do_not_open_it() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = opening_for("30s", [&app]).start().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 30\r\n\r\n";
    for _ in 0..15 {
        proxy.connect().await.exchange(request).await.must_be(504, "deadline_exceeded");
    }
    assert_eq!(proxy.metric(STATE).await, 0.0);
}

#[tokio::test]
async fn clients_that_leave_early_do_not_open_it() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = opening_for("30s", [&app]).start().await;
    for count in 1..=15 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        app.has_seen(count).await;
        drop(client);
        app.has_open(0).await;
    }
    assert_eq!(proxy.metric(STATE).await, 0.0);
}

/// An upstream that has answered 20 times at once, and hangs from then on; its breaker looks at the last ten.
async fn grown_slow() -> (Upstream, Proxy) {
    let app = (0..20).fold(Upstream::that(), |app, _| app.answers(200)).never_answers().start().await;
    let window = "breaker.window = { kind = \"count\", size = 10 }";
    let proxy = opening_for("30s", [&app]).upstream(window).start().await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    (app, proxy)
}

#[tokio::test]
async fn clients_that_gave_up_late_open_it() {
    let (_app, proxy) = grown_slow().await;
    // Later than 100 ms and three times the usual slowest: they left because of the upstream.
    eventually("it is open", async || {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(client);
        proxy.metric(STATE).await == 2.0
    })
    .await;
}

#[tokio::test]
async fn clients_that_gave_up_do_not_open_it_while_others_are_answered() {
    const ROUNDS: usize = 3;
    const LEAVING: usize = 4;
    let mut app = (0..20).fold(Upstream::that(), |app, _| app.answers(200));
    for _ in 0..ROUNDS {
        app = (0..LEAVING).fold(app, |app, _| app.never_answers()).answers(200);
    }
    let app = app.start().await;
    let window = "breaker.window = { kind = \"count\", size = 10 }";
    let proxy = opening_for("30s", [&app]).upstream(window).start().await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    for round in 0..ROUNDS {
        let mut polls = Vec::new();
        for _ in 0..LEAVING {
            let mut poll = proxy.connect().await;
            poll.send(get("/poll")).await;
            app.has_seen(21 + round * (LEAVING + 1) + polls.len()).await;
            polls.push(poll);
        }
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(proxy.get("/").await.status, 200, "round {round}");
        drop(polls);
        proxy.rests().await;
    }
    stays_closed(&proxy, "the upstream is well").await;
}

#[tokio::test]
async fn deadlines_that_would_have_been_long_enough_open_it() {
    let (_app, proxy) = grown_slow().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 400\r\n\r\n";
    eventually("it is open", async || {
        let response = proxy.connect().await.exchange(request).await;
        assert!(response.is_for("deadline_exceeded") || response.is_for("breaker_open"), "{response:?}");
        response.is_for("breaker_open")
    })
    .await;
}

#[tokio::test]
async fn another_outriggers_end_of_its_callers_time_is_no_failure() {
    let late = "outrigger; error=http_response_timeout; details=\"deadline_exceeded\"";
    let app = Upstream::that().answers(504).with_field("Proxy-Status", late).start().await;
    let proxy = Config::over([&app])
        .upstream("breaker.min_requests = 5")
        .upstream("retry.on = [\"504\"]")
        .start()
        .await;
    for number in 1..=15 {
        let response = proxy.get("/").await;
        assert_eq!((response.status, response.field("proxy-status")), (504, Some(late)), "as it is");
        assert_eq!(app.seen(), number, "it is not sent again");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum(STATE), 0.0);
    assert_eq!(metrics.sum("outrigger_attempts_total{upstream=app,outcome=deadline_exceeded}"), 15.0);
}

#[tokio::test]
async fn refused_connects_are_the_endpoints_affair() {
    let app = Upstream::refusing();
    let proxy = opening_for("30s", [&app]).start().await;
    stays_closed(&proxy, "refused at once").await;
}

#[tokio::test]
async fn connects_that_time_out_open_it() {
    let app = Upstream::blackhole();
    let proxy = opening_for("30s", [&app]).upstream("timeout.connect = \"50ms\"").start().await;
    assert_eq!(until_open(&proxy).await, 5);
}

#[tokio::test]
async fn a_connect_that_succeeds_ends_the_wait_after_connect_timeouts() {
    let mut app = Upstream::blackhole();
    let proxy = opening_for("30s", [&app]).upstream("timeout.connect = \"100ms\"").start().await;
    until_open(&proxy).await;

    app.wakes_up(Upstream::that().answers(200));

    // Far sooner than 30 s: bare connects look for it meanwhile.
    until_asked(&proxy, 200).await;
}

#[tokio::test]
async fn one_rotten_endpoint_of_two_does_not_open_it() {
    let rotten = Upstream::that().answers(500).start().await;
    let good = Upstream::that().answers(200).start().await;
    let proxy = opening_for("30s", [&rotten, &good])
        .upstream("breaker.failure_ratio = 0.2")
        .upstream("balance.kind = \"round_robin\"")
        .start()
        .await;
    for _ in 0..40 {
        assert!(!proxy.get("/").await.is_for("breaker_open"));
    }
    assert!(rotten.seen() >= 5 && good.seen() >= 5, "both were asked: {} {}", rotten.seen(), good.seen());
}

#[tokio::test]
async fn probes_are_bounded_and_come_back_when_their_client_leaves() {
    let app = (0..5).fold(Upstream::that(), |app, _| app.answers(500)).never_answers().start().await;
    let proxy = quick([&app]).upstream("breaker.half_open_requests = 1").start().await;
    until_open(&proxy).await;

    for round in 0..2 {
        let probe = hanging(&proxy, &app).await;
        assert_eq!(app.seen(), 6 + round, "one probe in round {round}");
        proxy.get("/").await.must_be(503, "breaker_open");
        drop(probe);
        proxy.rests().await;
    }
}

/// Sends GETs until the upstream is asked by one, which hangs there.
async fn hanging(proxy: &Proxy, app: &Upstream) -> Client {
    let before = app.seen();
    loop {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        tokio::select! {
            response = client.response() => response.must_be(503, "breaker_open"),
            () = eventually("the upstream is asked", async || app.seen() > before) => return client,
        }
    }
}

#[tokio::test]
async fn a_retry_does_not_go_through_an_open_breaker() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = Config::over([&app])
        .upstream("breaker.min_requests = 2")
        .upstream("breaker.open_for = { base = \"30s\" }")
        .start()
        .await;

    let response = proxy.get("/").await;

    assert_eq!(app.seen(), 2, "the second failure opened it");
    assert_eq!(
        (response.status, response.problem()),
        (500, None),
        "the upstream's own answer is the last word"
    );
    assert_eq!(proxy.metric("outrigger_retries_skipped_total{upstream=app,reason=breaker}").await, 1.0);
}

#[tokio::test]
async fn a_graded_one_rejects_a_share() {
    let script =
        (0..400).fold(Upstream::that(), |app, number| app.answers(if number % 4 == 0 { 200 } else { 500 }));
    let app = script.start().await;
    let proxy = Config::over([&app])
        .upstream("retry.attempts = 1")
        .upstream("breaker.kind = \"graded\"")
        .start()
        .await;
    let mut rejected = 0;
    for _ in 0..300 {
        rejected += usize::from(proxy.get("/").await.is_for("breaker_open"));
    }
    // K = 2 and a quarter good: about half is refused.
    assert!((30..250).contains(&rejected), "{rejected} of 300");
    assert_eq!(app.seen(), 300 - rejected);
}

#[tokio::test]
async fn upstreams_have_breakers_of_their_own() {
    let (app, other) =
        (Upstream::that().answers(500).start().await, Upstream::that().answers(200).start().await);
    let proxy = opening_for("30s", [&app])
        .and("[[listener.route]]\nmatch = { path_prefix = \"/other/\" }\nupstream = \"other\"")
        .and(&format!("[upstream.other]\nendpoints = [\"{}\"]", other.address()))
        .start()
        .await;
    until_open(&proxy).await;
    assert_eq!(proxy.get("/other/").await.status, 200);
}
