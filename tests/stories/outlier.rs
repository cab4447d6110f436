//! Endpoints that are worse than their peers: out, seen to be out and why, and back.

use std::time::Duration;

use crate::support::endpoints::{ejections, healthy, shown, told};
use crate::support::http2::Http2;
use crate::support::http2_upstream::Http2Upstream;
use crate::support::upstream::Script;
use crate::support::*;

/// A bad endpoint between two good ones, and the proxy before them; what is ejected stays out for long.
async fn one_bad(bad: Script, settings: &str) -> (Upstream, [Upstream; 2], Proxy) {
    let bad = bad.start().await;
    let good = [Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await];
    let proxy = Config::over([&good[0], &bad, &good[1]])
        // Others would ask a failing endpoint less and less.
        .upstream("balance.kind = \"round_robin\"")
        .upstream("outlier.eject_for = { base = \"30s\" }")
        .upstream(settings)
        .start()
        .await;
    (bad, good, proxy)
}

#[tokio::test]
async fn an_endpoint_that_fails_is_out_and_everybody_sees_why() {
    let (bad, good, proxy) = one_bad(Upstream::that().answers(500), "").await;
    let mut client = proxy.connect().await;
    for _ in 0..100 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert_eq!(bad.seen(), 5, "five failures in a row, and no request more");

    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum(&ejections(bad.address(), "consecutive_failures")), 1.0);
    assert_eq!(metrics.sum(&healthy(bad.address())), 0.0);
    assert_eq!(metrics.sum(&healthy(good[0].address())) + metrics.sum(&healthy(good[1].address())), 2.0);

    let events = told(&proxy, "endpoint ejected", bad.address()).await;
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = &events[0];
    assert_eq!((&event["reason"], &event["mode"]), (&"consecutive_failures".into(), &"enforce".into()));
    assert_eq!((&event["consecutive"], &event["ratio"]), (&5.into(), &1.0.into()));
    assert!(event["for_ms"].as_u64().is_some_and(|time| (24_000..=36_000).contains(&time)), "{event}");

    let view = shown(&proxy, bad.address()).await;
    assert_eq!(
        (&view["health"], &view["ejection"]["reason"]),
        (&"ejected".into(), &"consecutive_failures".into())
    );
    assert_eq!(view["ejection"]["numbers"]["consecutive"], 5);
    assert!(view["ejection"]["left_seconds"].as_f64().is_some_and(|left| left > 10.0), "{view}");
    assert_eq!(shown(&proxy, good[0].address()).await["health"], "usable");
}

#[tokio::test]
async fn one_live_probe_brings_it_back() {
    let bad = (0..5).fold(Upstream::that(), |bad, _| bad.answers(503)).answers(200);
    let (bad, _good, proxy) = one_bad(bad, "").await;
    proxy.rewrite(&proxy_text(&proxy).replace("base = \"30s\"", "base = \"300ms\""));
    eventually("the shorter time is in force", async || {
        proxy.metric("outrigger_config_reloads_total{result=success}").await >= 1.0
    })
    .await;
    let mut client = proxy.connect().await;
    eventually("it is back", async || {
        assert_eq!(client.exchange(&get("/")).await.status, 200, "nobody notices");
        bad.seen() > 10
    })
    .await;
    assert_eq!(proxy.metric(&ejections(bad.address(), "consecutive_failures")).await, 1.0);
    assert_eq!(proxy.metric(&healthy(bad.address())).await, 1.0);
    assert_eq!(told(&proxy, "endpoint back in service", bad.address()).await.len(), 1);
    assert_eq!(shown(&proxy, bad.address()).await["health"], "usable");
}

/// The configuration that the proxy runs with.
fn proxy_text(proxy: &Proxy) -> String {
    std::fs::read_to_string(proxy.file()).expect("it is there")
}

#[tokio::test]
async fn a_probe_that_fails_costs_its_client_nothing() {
    let bad = Upstream::that().answers(500);
    let (bad, _good, proxy) = one_bad(bad, "").await;
    proxy.rewrite(&proxy_text(&proxy).replace("base = \"30s\"", "base = \"100ms\""));
    eventually("the shorter time is in force", async || {
        proxy.metric("outrigger_config_reloads_total{result=success}").await >= 1.0
    })
    .await;
    let mut client = proxy.connect().await;
    eventually("three probes have failed", async || {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
        proxy.metric(&ejections(bad.address(), "probe_failed")).await >= 3.0
    })
    .await;
    assert!(bad.seen() < 20, "{} requests", bad.seen());
    eventually("the log tells of them", async || {
        let events = told(&proxy, "endpoint ejected", bad.address()).await;
        events.iter().any(|event| event["reason"] == "probe_failed")
    })
    .await;
}

#[tokio::test]
async fn in_shadow_it_is_told_and_stays() {
    let (bad, _good, proxy) = one_bad(Upstream::that().answers(500), "outlier.mode = \"shadow\"").await;
    let mut client = proxy.connect().await;
    for _ in 0..100 {
        // A third of all attempts fail: more than retries may make up for.
        client.exchange(&get("/")).await;
    }
    assert!(bad.seen() > 10, "{}", bad.seen());
    assert_eq!(proxy.metric(&ejections(bad.address(), "consecutive_failures")).await, 1.0);
    assert_eq!(proxy.metric(&healthy(bad.address())).await, 1.0);
    let view = shown(&proxy, bad.address()).await;
    assert_eq!((&view["health"], &view["ejection"]["mode"]), (&"usable".into(), &"shadow".into()));
    assert_eq!(told(&proxy, "endpoint ejected", bad.address()).await[0]["mode"], "shadow");
}

#[tokio::test]
async fn off_it_is_not_judged() {
    let (bad, _good, proxy) = one_bad(Upstream::that().answers(500), "outlier.mode = \"off\"").await;
    let mut client = proxy.connect().await;
    for _ in 0..100 {
        client.exchange(&get("/")).await;
    }
    assert_eq!(proxy.metric("outrigger_endpoint_ejections_total{upstream=app}").await, 0.0);
    assert!(bad.seen() > 10);
}

#[tokio::test]
async fn a_crawling_endpoint_is_out_though_it_answers() {
    let slow = Upstream::that().answers(200).delays(Duration::from_millis(300));
    // So many that on a busy machine the limit would refuse some.
    let room = "concurrency.limit = { kind = \"fixed\", max = 1000 }";
    let (slow, _good, proxy) = one_bad(slow, room).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = proxy.connect().await;
        clients.push(tokio::spawn(async move {
            loop {
                assert_eq!(client.exchange(&get("/")).await.status, 200);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    proxy.metric_becomes(&ejections(slow.address(), "slow"), 1.0).await;
    let events = told(&proxy, "endpoint ejected", slow.address()).await;
    let p50 = |whose: &str| events[0][whose].as_f64().unwrap_or_else(|| panic!("{}", events[0]));
    assert!(p50("p50_ms") > 280.0 && p50("peers_p50_ms") < 100.0, "{}", events[0]);
    assert_eq!(shown(&proxy, slow.address()).await["ejection"]["reason"], "slow");
    clients.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_out() {
    let timeout = "timeout = { attempt = \"100ms\", connect = \"100ms\" }";
    let (bad, _good, proxy) = one_bad(Upstream::that().never_answers(), timeout).await;
    let mut client = proxy.connect().await;
    for _ in 0..60 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert_eq!(proxy.metric(&ejections(bad.address(), "consecutive_failures")).await, 1.0);
    assert_eq!(bad.seen(), 5);
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_out_though_all_its_clients_leave_before_its_time() {
    let mut hangs = Upstream::that();
    hangs = (0..4).fold(hangs, |app, _| app.answers(200)).never_answers();
    let (bad, _good, proxy) = one_bad(hangs, "retry.attempts = 1").await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 300\r\n\r\n";
    let mut client = proxy.connect().await;
    eventually("it is out", async || {
        client.exchange(request).await;
        proxy.metric(&ejections(bad.address(), "consecutive_failures")).await == 1.0
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_out() {
    let bad = Upstream::refusing();
    let good = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&bad, &good]).upstream("balance.kind = \"round_robin\"").start().await;
    let mut client = proxy.connect().await;
    for _ in 0..60 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert!(proxy.metric(&ejections(bad.address(), "consecutive_failures")).await >= 1.0);
    assert!(proxy.metric("outrigger_upstream_connects_total{upstream=app,result=refused}").await < 10.0);
}

#[tokio::test]
async fn an_endpoint_whose_answers_break_off_is_out() {
    let (bad, _good, proxy) =
        one_bad(Upstream::that().resets_in_mid_body(), "retry.response_buffer = \"0B\"").await;
    let mut broken = 0;
    for _ in 0..60 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        broken += usize::from(!client.response().await.whole);
    }
    assert!(broken <= 5, "{broken} answers were cut");
    assert_eq!(bad.seen(), 5);
    assert_eq!(proxy.metric(&ejections(bad.address(), "consecutive_failures")).await, 1.0);
}

#[tokio::test]
async fn streams_that_break_off_count() {
    let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    let (bad, _good, proxy) = one_bad(Upstream::that().answers_raw(events).then_resets(), "").await;
    eventually("five streams have broken off", async || {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        client.response().await;
        proxy.metric(&ejections(bad.address(), "consecutive_failures")).await == 1.0
    })
    .await;
    assert_eq!(shown(&proxy, bad.address()).await["health"], "ejected");
}

#[tokio::test]
async fn an_answer_may_take_its_endpoint_out() {
    let leaving =
        Upstream::that().answers(200).with_field("X-Outrigger-Immediate-Fail", "true").with_body("bye");
    let (leaving, _good, proxy) = one_bad(leaving, "").await;
    let mut client = proxy.connect().await;
    for _ in 0..60 {
        let answer = client.exchange(&get("/")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.field("x-outrigger-immediate-fail"), None, "it ends here");
    }
    assert_eq!(leaving.seen(), 1);
    assert_eq!(proxy.metric(&ejections(leaving.address(), "immediate_fail")).await, 1.0);
    assert_eq!(shown(&proxy, leaving.address()).await["ejection"]["reason"], "immediate_fail");
    assert_eq!(told(&proxy, "endpoint ejected", leaving.address()).await.len(), 1);
}

#[tokio::test]
async fn an_answer_of_http2_may_take_its_endpoint_out() {
    let leaving =
        Http2Upstream::that().answers(200).with_field("x-outrigger-immediate-fail", "true").start().await;
    let good = Http2Upstream::that().answers(200).start().await;
    let addresses = [leaving.address().to_string(), good.address().to_string()];
    let proxy = Config::over_addresses(&addresses).http2().start().await;
    let mut client = proxy.connect().await;
    for _ in 0..40 {
        let answer = client.exchange(&get("/")).await;
        assert_eq!((answer.status, answer.field("x-outrigger-immediate-fail")), (200, None));
    }
    assert_eq!(leaving.seen(), 1);
}

#[tokio::test]
async fn what_an_endpoint_says_of_itself_ends_here_for_http2_too() {
    let app = Upstream::that().answers(200).with_field("x-outrigger-immediate-fail", "true").start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    let answer = client.get("/").await;
    assert_eq!(answer.head.status, 200);
    assert!(!answer.head.headers.contains_key("x-outrigger-immediate-fail"));
    assert_eq!(proxy.metric(&healthy(app.address())).await, 1.0, "a single endpoint stays");
}

#[tokio::test]
async fn a_single_endpoint_stays_whatever_it_does() {
    let app = Upstream::that().answers(500).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    for _ in 0..30 {
        assert_eq!(proxy.get("/").await.status, 500);
    }
    assert_eq!(proxy.metric("outrigger_endpoint_ejections_total{upstream=app}").await, 0.0);
}

#[tokio::test]
async fn a_reload_keeps_what_is_out() {
    let (bad, _good, proxy) = one_bad(Upstream::that().answers(500), "").await;
    let mut client = proxy.connect().await;
    for _ in 0..60 {
        client.exchange(&get("/")).await;
    }
    let seen = bad.seen();
    proxy.rewrite(&proxy_text(&proxy).replace("level = \"info\"", "level = \"debug\""));
    eventually("it is reloaded", async || {
        proxy.metric("outrigger_config_reloads_total{result=success}").await >= 1.0
    })
    .await;
    for _ in 0..60 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert_eq!(bad.seen(), seen);
    assert_eq!(shown(&proxy, bad.address()).await["health"], "ejected");
}
