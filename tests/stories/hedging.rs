//! A second sending beside a slow one: who gets it, who wins, what becomes of the other, and when there is none.

use std::time::Duration;

use crate::support::client::post;
use crate::support::http2::Http2;
use crate::support::http2_upstream::*;
use crate::support::upstream::Script;
use crate::support::*;

/// A hedge is due after 20 ms, and each request pays for one of its own.
const ON: &str = "hedge = { mode = \"enforce\", after = \"20ms\", budget = 1.0 }";

/// A limit that nobody reaches, so that saturation is no reason.
const ROOM: &str = "concurrency.limit = { kind = \"fixed\", max = 1000 }";

/// Much longer than a hedge takes to be due, also on a machine that is busy.
const SLOW: Duration = Duration::from_millis(200);

async fn hedges(proxy: &Proxy, winner: &str) -> f64 {
    proxy.metric(&format!("outrigger_hedges_total{{upstream=app,winner={winner}}}")).await
}

/// So many requests at the same time, all of which get 200.
async fn ask(proxy: &Proxy, count: usize) {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
}

async fn skipped(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("outrigger_hedges_skipped_total{{upstream=app,reason={reason}}}")).await
}

async fn attempts(proxy: &Proxy, outcome: &str) -> f64 {
    proxy.metric(&format!("outrigger_attempts_total{{upstream=app,outcome={outcome}}}")).await
}

#[tokio::test]
async fn a_slow_endpoint_is_hedged_on_the_other_and_let_go() {
    let slow = Upstream::that().never_answers().start().await;
    let fast = Upstream::that().answers(200).with_body("fast").start().await;
    let proxy = Config::over([&slow, &fast]).upstream(ON).start().await;

    let mut hedged = None;
    for number in 0..30 {
        let before = slow.seen();
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: request-{number}\r\n\r\n");
        assert_eq!(proxy.connect().await.exchange(&request).await.text(), "fast");
        if slow.seen() > before {
            hedged = Some((number, fast.seen() - 1));
        }
    }

    let (number, place) = hedged.expect("the slow one was asked too");
    assert_eq!(fast.request(place).field("x-retry-attempt"), Some("1"), "it counts as a further attempt");
    let line = proxy.access_log(&format!("\"request-{number}\"")).await;
    assert_eq!((&line["attempts"], &line["hedge"]), (&2.into(), &"hedge".into()));
    assert_eq!(line["endpoint"], fast.address().to_string());
    let lost = slow.seen() as f64;
    assert_eq!((hedges(&proxy, "hedge").await, attempts(&proxy, "overtaken").await), (lost, lost));
    assert_eq!(attempts(&proxy, "ok").await, 30.0);
    slow.has_open(0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn the_loser_of_two_streams_is_reset_and_its_session_stays() {
    let app = Http2Upstream::that().answers(200).holds().answers(200).with_body("second").start().await;
    let config = Config::over_addresses(&[app.address().to_string()]).http2().one_worker();
    let proxy = config.upstream(ON).start().await;

    assert_eq!(proxy.get("/").await.text(), "second");

    eventually("the first stream is reset", async || app.request(0).reset == Some(h2::Reason::CANCEL)).await;
    assert_eq!(proxy.get("/").await.text(), "second");
    assert_eq!(app.connections(), 1, "all of it over one connection");
    assert_eq!(hedges(&proxy, "hedge").await, 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn an_attempt_that_answers_after_all_wins_over_its_hedge() {
    let app = Upstream::that().answers(200).with_body("first").delays(SLOW).never_answers().start().await;
    let proxy = Config::over([&app]).upstream(ON).start().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: beaten\r\n\r\n";

    assert_eq!(proxy.connect().await.exchange(request).await.text(), "first");

    assert_eq!(app.seen(), 2);
    assert_eq!((hedges(&proxy, "first").await, attempts(&proxy, "overtaken").await), (1.0, 1.0));
    let line = proxy.access_log("\"beaten\"").await;
    assert_eq!((&line["attempts"], &line["hedge"]), (&2.into(), &"first".into()));
    app.has_open(1).await;
    proxy.rests().await;
}

#[tokio::test]
async fn an_attempt_that_fails_waits_for_its_hedge() {
    let bad: [fn(Script) -> Script; 2] =
        [|app| app.answers(503).delays(SLOW), |app| app.resets_before_the_head().delays(SLOW)];
    for (number, bad) in bad.into_iter().enumerate() {
        let app = bad(Upstream::that()).answers(200).with_body("hedge").holds().start().await;
        let proxy = Config::over([&app]).upstream(ON).upstream("retry.mode = \"off\"").start().await;
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        app.has_seen(2).await;
        let outcome = if number == 0 { "5xx" } else { "upstream_reset" };
        proxy
            .metric_becomes(&format!("outrigger_attempts_total{{upstream=app,outcome={outcome}}}"), 1.0)
            .await;
        // Its slot is free already.
        proxy.metric_becomes("outrigger_concurrency_in_flight", 1.0).await;

        app.release(1);

        assert_eq!(client.response().await.text(), "hedge");
        assert_eq!(hedges(&proxy, "hedge").await, 1.0);
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_hedge_that_fails_waits_for_its_attempt() {
    let app = Upstream::that().answers(200).with_body("first").holds().resets_in_mid_body().start().await;
    let proxy = Config::over([&app]).upstream(ON).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    app.has_seen(2).await;
    proxy.metric_becomes("outrigger_attempts_total{upstream=app,outcome=upstream_reset}", 1.0).await;

    app.release(1);

    assert_eq!(client.response().await.text(), "first");
    assert_eq!(hedges(&proxy, "first").await, 1.0);
    assert_eq!(app.seen(), 2, "nothing is retried");
    proxy.rests().await;
}

#[tokio::test]
async fn where_both_fail_the_request_is_retried_as_ever() {
    let app = Upstream::that()
        .answers(503)
        .delays(SLOW)
        .resets_before_the_head()
        .answers(200)
        .with_body("third")
        .start()
        .await;
    let proxy = Config::over([&app]).upstream(ON).start().await;

    assert_eq!(proxy.get("/").await.text(), "third");

    assert_eq!(app.request(2).field("x-retry-attempt"), Some("2"));
    assert_eq!(hedges(&proxy, "none").await, 1.0);
    assert_eq!(proxy.metric("outrigger_retries_total{upstream=app,reason=503}").await, 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn a_request_gets_one_hedge_and_no_more_attempts_than_configured() {
    let slow = Upstream::that().answers(503).delays(SLOW).start().await;
    let proxy = Config::over([&slow]).upstream(ON).upstream("retry.attempts = 3").start().await;
    assert_eq!(proxy.get("/").await.status, 503);
    assert_eq!(slow.seen(), 3, "two and a retry");

    let slow = Upstream::that().answers(503).delays(SLOW).start().await;
    let proxy = Config::over([&slow]).upstream(ON).upstream("retry.attempts = 1").start().await;
    assert_eq!(proxy.get("/").await.status, 503);
    assert_eq!(slow.seen(), 2, "where there are no retries there may be a hedge");

    let slow = Upstream::that().answers(503).answers(200).delays(SLOW).start().await;
    let proxy = Config::over([&slow]).upstream(ON).upstream("retry.attempts = 2").start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(slow.seen(), 2, "a slow retry that was the last one");
    assert_eq!(skipped(&proxy, "attempts").await, 1.0);
}

#[tokio::test]
async fn a_client_that_leaves_takes_both_along() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).upstream(ON).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    app.has_seen(2).await;

    client.reset();

    app.has_open(0).await;
    proxy.rests().await;
    eventually("both are counted, and nobody has won", async || {
        hedges(&proxy, "none").await == 1.0 && attempts(&proxy, "client_disconnected").await == 2.0
    })
    .await;
}

#[tokio::test]
async fn large_answers_of_the_winner_are_passed_whole() {
    let body: Vec<u8> =
        (0..4 << 20).map(|place: u32| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let app = Upstream::that().never_answers().answers(200).with_body(&body).start().await;
    let proxy = Config::over([&app]).upstream(ON).start().await;

    let response = proxy.get("/").await;

    assert_eq!(hedges(&proxy, "hedge").await, 1.0);
    assert!(response.body == body, "{} bytes came", response.body.len());
    proxy.rests().await;
}

#[tokio::test]
async fn what_hangs_behind_its_head_is_not_sent_again() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        .and_when_released("whole")
        .start()
        .await;
    let proxy = Config::over([&app]).upstream(ON).start().await;
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    // It goes out after the 100 ms for which a small body is waited for.
    let head = client.head().await.expect("a head");
    app.release(1);

    assert_eq!((head.status, client.bytes(5).await), (200, b"whole".to_vec()));
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn what_is_not_safe_is_never_hedged() {
    let app = Upstream::that().answers(200).delays(SLOW).start().await;
    let proxy = Config::over([&app])
        .upstream(ON)
        .upstream("retry.methods = [\"GET\", \"PUT\", \"DELETE\"]\nretry.idempotency_key = true")
        .start()
        .await;
    let key = "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: 1\r\nContent-Length: 0\r\n\r\n";
    let requests = [
        post("/", "x"),
        post("/", "x").replace("POST", "PUT"),
        post("/", "").replace("POST", "DELETE"),
        key.to_owned(),
        // Safe, but the configuration does not let it be sent twice.
        post("/", "").replace("POST", "OPTIONS"),
    ];
    for request in &requests {
        assert_eq!(proxy.connect().await.exchange(request).await.status, 200, "{request}");
    }
    assert_eq!(app.seen(), requests.len());
    assert_eq!(skipped(&proxy, "method").await, requests.len() as f64);

    let again = "GET / HTTP/1.1\r\nHost: a\r\nX-Retry-Attempt: 1\r\n\r\n";
    assert_eq!(proxy.connect().await.exchange(again).await.status, 200);
    assert_eq!((app.seen(), skipped(&proxy, "caller_retries").await), (requests.len() + 1, 1.0));
}

#[tokio::test]
async fn under_saturation_nothing_is_hedged() {
    let app = Upstream::that().answers(200).holds().start().await;
    let limit =
        "concurrency = { limit = { kind = \"fixed\", max = 2 }, queue = { size = 10, timeout = \"10s\" } }";
    let proxy = Config::over([&app]).upstream(ON).upstream(limit).start().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        clients.push(client);
    }
    proxy.metric_becomes("outrigger_queue_depth", 3.0).await;
    proxy.metric_becomes("outrigger_hedges_skipped_total{upstream=app,reason=saturated}", 2.0).await;
    assert_eq!(app.seen(), 2);

    app.release(5);

    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    assert_eq!(app.seen(), 5);
}

#[tokio::test]
async fn hedges_stay_within_their_budget() {
    let app = Upstream::that().answers(200).delays(SLOW).start().await;
    let proxy = Config::over([&app])
        .upstream("hedge = { mode = \"enforce\", after = \"20ms\", budget = 0.1 }")
        .upstream(ROOM)
        .start()
        .await;
    ask(&proxy, 35).await;
    assert_eq!((app.seen(), skipped(&proxy, "budget").await), (38, 32.0));
}

#[tokio::test]
async fn the_gates_of_the_retries_bound_hedges_too() {
    let app = Upstream::that().answers(200).delays(SLOW).start().await;
    let none = "retry.budget = { ratio = 0.0, min_per_second = 0 }";
    let proxy = Config::over([&app]).upstream(ON).upstream(none).start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!((app.seen(), skipped(&proxy, "retry_budget").await), (1, 1.0));
}

#[tokio::test]
async fn hedges_that_never_win_stop() {
    // The quick ones come first, so that slow ones are slower than most.
    let quick = (0..70).fold(Upstream::that(), |app, _| app.answers(200));
    let app = quick.answers(200).delays(SLOW).start().await;
    let wide = "retry.budget = { ratio = 1.0, min_per_second = 1000 }";
    let proxy = Config::over([&app]).upstream(ON).upstream(ROOM).upstream(wide).start().await;
    for _ in 0..13 {
        ask(&proxy, 10).await;
    }
    // Fifty, those that were due while the fiftieth was on its way, and one that finds out.
    let sent = hedges(&proxy, "first").await;
    assert!((50.0..=60.0).contains(&sent), "{sent}");
    ask(&proxy, 10).await;
    assert!(hedges(&proxy, "first").await - sent <= 1.0, "and then one in ten seconds");
    assert!(skipped(&proxy, "wins").await >= 9.0);
}

#[tokio::test]
async fn a_breaker_that_is_not_closed_suppresses_hedges() {
    let app =
        (0..5).fold(Upstream::that(), |app, _| app.answers(500)).answers(200).delays(SLOW).start().await;
    let proxy = Config::over([&app])
        .upstream(ON)
        .upstream("retry.attempts = 1")
        .upstream("breaker = { mode = \"shadow\", min_requests = 5, open_for = { base = \"30s\" } }")
        .start()
        .await;
    for _ in 0..5 {
        // Not hedged, however slow the machine is.
        proxy.connect().await.exchange(&post("/", "")).await;
    }
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!((app.seen(), skipped(&proxy, "breaker").await), (6, 1.0));
}

#[tokio::test]
async fn in_shadow_hedges_are_counted_and_not_sent() {
    for (mode, counted) in
        [("mode = \"shadow\"", 1.0), ("mode = \"enforce\", rollout = 0.0", 1.0), ("mode = \"off\"", 0.0)]
    {
        let app = Upstream::that().answers(200).delays(SLOW).start().await;
        let proxy = Config::over([&app])
            .upstream(&format!("hedge = {{ {mode}, after = \"20ms\", budget = 1.0 }}"))
            .start()
            .await;
        assert_eq!(proxy.get("/").await.status, 200);
        assert_eq!((app.seen(), skipped(&proxy, "shadow").await), (1, counted), "{mode}");
        assert_eq!(proxy.metric("outrigger_hedges_total").await, 0.0, "{mode}");
    }
}

#[tokio::test]
async fn a_route_may_hedge_where_its_upstream_does_not() {
    let app = Upstream::that().answers(200).delays(SLOW).start().await;
    let proxy = Config::over([&app])
        .and(&format!("[[listener.route]]\nmatch = {{ path_prefix = \"/a\" }}\nupstream = \"app\"\n{ON}"))
        .start()
        .await;
    assert_eq!(proxy.get("/b").await.status, 200);
    assert_eq!(app.seen(), 1);
    assert_eq!(proxy.get("/a").await.status, 200);
    assert_eq!(app.seen(), 3);
}

#[tokio::test]
async fn a_percentile_is_learnt_first_and_kept_over_a_reload() {
    let quick = |app: Script, number| {
        let app = app.answers(200);
        if number % 10 == 0 { app.delays(SLOW) } else { app }
    };
    let app =
        (0..60).fold(Upstream::that(), quick).never_answers().answers(200).with_body("hedge").start().await;
    let config =
        Config::over([&app]).upstream("hedge = { mode = \"enforce\", budget = 0.1, after = \"p90\" }");
    let proxy = config.start().await;
    for _ in 0..49 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(skipped(&proxy, "samples").await, 49.0);
    for _ in 0..11 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    let seen = async || {
        let text = proxy.admin_get("/upstreams").await.text();
        let view: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let samples = &view["app"]["hedge"]["samples"];
        samples.as_u64().unwrap_or_else(|| panic!("no samples in {text}"))
    };
    eventually("all are seen", async || seen().await >= 60).await;

    proxy.rewrite(&config.upstream("retry.attempts = 3").text());
    proxy.metric_becomes("outrigger_config_reloads_total{result=success}", 1.0).await;

    assert!(seen().await >= 60);
    assert_eq!(proxy.get("/").await.text(), "hedge");
    assert!(hedges(&proxy, "hedge").await >= 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn calls_of_grpc_are_hedged_where_their_method_may_be_sent_twice() {
    for (methods, hedged) in [("[\"pkg.Echo/Get*\"]", true), ("[]", false)] {
        let app = Http2Upstream::that().answers_grpc(3, 0).holds().answers_grpc(4, 0).start().await;
        let proxy = Config::over_addresses(&[app.address().to_string()])
            .upstream(ON)
            .upstream(&format!("retry.grpc_methods = {methods}"))
            .start()
            .await;
        let mut client = Http2::connect(proxy.listener()).await;
        let call = client.request("POST", "/pkg.Echo/GetOne").header("content-type", "application/grpc");
        let body: &[u8] = b"\0\0\0\0\x01x";
        let answer = client.exchange(call, body);
        let release = async {
            app.has_seen(1).await;
            if hedged {
                app.has_seen(2).await;
            } else {
                proxy.metric_becomes("outrigger_hedges_skipped_total{upstream=app,reason=method}", 1.0).await;
                app.release(1);
            }
        };
        let (answer, ()) = tokio::join!(answer, release);

        assert_eq!(answer.body.len(), if hedged { 9 } else { 8 }, "{methods}");
        assert_eq!(hedges(&proxy, "hedge").await, f64::from(u8::from(hedged)), "{methods}");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_mirrored_copy_is_not_hedged() {
    let app = Upstream::that().answers(200).start().await;
    let copies = Upstream::that().answers(200).delays(SLOW).start().await;
    let proxy = Config::over([&app])
        .and("[[listener.route]]\nmatch = { path_prefix = \"/\" }\nupstream = \"app\"\nmirror = { upstream = \"copies\" }")
        .and(&format!("[upstream.copies]\nendpoints = [\"{}\"]\n{ON}", copies.address()))
        .start()
        .await;
    assert_eq!(proxy.get("/").await.status, 200);
    proxy.metric_becomes("outrigger_attempts_total{upstream=copies,outcome=ok}", 1.0).await;
    assert_eq!(copies.seen(), 1);
}

/// Whoever was hedged took longer than the delay, whether it won or lost: else hedges would pull the percentile down.
#[tokio::test]
async fn what_is_learnt_of_an_attempt_is_its_own_time() {
    let after = Duration::from_millis(100);
    let app = Upstream::that().answers(200).delays(after * 3).start().await;
    let on = "hedge = { mode = \"enforce\", after = \"100ms\", budget = 1.0 }";
    let budget = "retry.budget = { ratio = 1.0, min_per_second = 100 }";
    let proxy = Config::over([&app]).upstream(on).upstream(ROOM).upstream(budget).start().await;
    for _ in 0..3 {
        ask(&proxy, 20).await;
    }
    assert!(hedges(&proxy, "first").await > 0.0);
    let p50 = proxy.upstream_view("app", "/hedge/p50_ms").await;
    assert!(p50.as_f64().is_some_and(|p50| p50 >= 290.0), "all took 300 ms: {p50}");
}
