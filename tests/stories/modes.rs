//! `mode` and `rollout`: what is off does nothing, what is in shadow decides and counts but lets pass.

use std::time::{Duration, Instant};

use crate::support::*;

#[tokio::test]
async fn a_breaker_in_shadow_opens_and_lets_pass() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.attempts = 1")
        .upstream("breaker = { mode = \"shadow\", min_requests = 5, open_for = { base = \"30s\" } }")
        .start()
        .await;

    for _ in 0..15 {
        assert!(proxy.get("/").await.problem().is_none(), "the upstream's own answer");
    }

    assert_eq!(app.seen(), 15);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("outrigger_breaker_state{upstream=app,mode=shadow}"), 2.0);
    assert_eq!(metrics.sum("outrigger_rejected_total{upstream=app,reason=breaker_open,mode=shadow}"), 10.0);
    assert_eq!(metrics.sum("outrigger_rejected_total{upstream=app,reason=breaker_open,mode=enforce}"), 0.0);
    assert_eq!(metrics.sum("outrigger_breaker_transitions_total{upstream=app,to=open}"), 1.0);
}

#[tokio::test]
async fn what_passed_an_open_shadow_breaker_does_not_close_it() {
    let app = (0..5).fold(Upstream::that(), |app, _| app.answers(500)).answers(200).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.attempts = 1")
        .upstream("breaker = { mode = \"shadow\", min_requests = 5, open_for = { base = \"30s\" } }")
        .start()
        .await;
    for _ in 0..50 {
        proxy.get("/").await;
    }
    assert_eq!(proxy.metric("outrigger_breaker_state{upstream=app,mode=shadow}").await, 2.0);
}

#[tokio::test]
async fn a_breaker_that_is_off_never_opens() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.attempts = 1")
        .upstream("breaker = { mode = \"off\", min_requests = 5 }")
        .start()
        .await;
    for _ in 0..15 {
        assert!(proxy.get("/").await.problem().is_none());
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("outrigger_breaker_transitions_total{upstream=app}"), 0.0);
    assert_eq!(metrics.sum("outrigger_rejected_total{upstream=app}"), 0.0);
}

#[tokio::test]
async fn a_limit_in_shadow_counts_what_it_would_refuse() {
    for (mode, counted) in [("shadow", 1.0), ("off", 0.0)] {
        let app = Upstream::that().answers(200).holds().start().await;
        let proxy = Config::over([&app])
            .upstream(&format!("concurrency = {{ mode = \"{mode}\", limit = {{ kind = \"fixed\", max = 1 }}, queue = {{ size = 0 }} }}"))
            .start()
            .await;
        let mut first = proxy.connect().await;
        first.send(get("/")).await;
        app.has_seen(1).await;
        let mut second = proxy.connect().await;
        second.send(get("/")).await;
        app.has_seen(2).await;

        let metrics = proxy.metrics().await;
        let series = "outrigger_rejected_total{upstream=app,reason=concurrency_limited,mode=shadow}";
        assert_eq!(metrics.sum(series), counted, "{mode}");
        assert_eq!(metrics.sum("outrigger_rejected_total{mode=enforce}"), 0.0, "{mode}");
        app.release(2);
        assert_eq!(first.response().await.status, 200, "{mode}");
        assert_eq!(second.response().await.status, 200, "{mode}");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_queue_in_shadow_holds_nobody_up() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = Config::over([&app])
        .upstream("concurrency = { mode = \"shadow\", limit = { kind = \"fixed\", max = 1 }, queue = { timeout = \"20s\" } }")
        .start()
        .await;
    let mut first = proxy.connect().await;
    first.send(get("/")).await;
    app.has_seen(1).await;
    let mut second = proxy.connect().await;
    second.send(get("/")).await;
    app.has_seen(2).await;
    app.release(2);
    assert_eq!(second.response().await.status, 200);
}

#[tokio::test]
async fn timeouts_in_shadow_count_what_they_would_cut() {
    for (mode, counts) in [("shadow", true), ("off", false)] {
        let app =
            Upstream::that().answers(200).with_body("late").delays(Duration::from_millis(300)).start().await;
        let proxy = Config::over([&app])
            .plain()
            .upstream(&format!("timeout = {{ mode = \"{mode}\", attempt = \"50ms\", request = \"100ms\", connect = \"50ms\" }}"))
            .start()
            .await;

        assert_eq!(proxy.get("/").await.text(), "late", "{mode}");

        let counted = proxy.metric("outrigger_rejected_total{upstream=app,mode=shadow}").await;
        assert_eq!(counted > 0.0, counts, "{mode}: {counted}");
    }
}

#[tokio::test]
async fn retries_in_shadow_are_not_sent() {
    for mode in ["shadow", "off"] {
        let app = Upstream::that().answers(503).start().await;
        let proxy = Config::over([&app]).upstream(&format!("retry.mode = \"{mode}\"")).start().await;

        assert_eq!(proxy.get("/").await.status, 503, "{mode}");
        assert_eq!(app.seen(), 1, "{mode}");
    }
}

#[tokio::test]
async fn a_rollout_enforces_for_a_share_of_the_requests() {
    let app = Upstream::that().answers(503).start().await;
    let proxy = Config::over([&app])
        .upstream("breaker.mode = \"off\"")
        .upstream("retry = { rollout = 0.5, attempts = 2, backoff = { base = \"1ms\", max = \"1ms\" }, budget = { ratio = 1.0, min_per_second = 100 } }")
        .start()
        .await;
    let request = |id: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n");

    let mut enforced = Vec::new();
    for id in 0..30 {
        let before = app.seen();
        proxy.connect().await.exchange(&request(&format!("request-{id}"))).await;
        enforced.push(app.seen() - before == 2);
    }
    let share = enforced.iter().filter(|enforced| **enforced).count();
    assert!((4..=26).contains(&share), "{share} of 30");

    // The same id falls on the same side (as far as the yield gate lets retries through).
    for (id, enforced) in enforced.into_iter().enumerate().take(10) {
        let before = app.seen();
        proxy.connect().await.exchange(&request(&format!("request-{id}"))).await;
        assert_eq!(app.seen() - before == 2, enforced, "request-{id}");
    }
}

#[tokio::test]
async fn a_rollout_of_nothing_is_shadow() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.attempts = 1")
        .upstream("breaker = { rollout = 0.0, min_requests = 5, open_for = { base = \"30s\" } }")
        .start()
        .await;
    for _ in 0..15 {
        assert!(proxy.get("/").await.problem().is_none());
    }
    assert_eq!(
        proxy.metric("outrigger_rejected_total{upstream=app,reason=breaker_open,mode=shadow}").await,
        10.0
    );
}

#[tokio::test]
async fn timeouts_that_are_off_cut_nothing() {
    let app = Upstream::that().answers(200).delays(Duration::from_millis(200)).start().await;
    let proxy = Config::over([&app]).plain().upstream("timeout.mode = \"off\"").within("50ms");
    let proxy = proxy.start().await;
    let start = Instant::now();
    assert_eq!(proxy.get("/").await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(190));
}
