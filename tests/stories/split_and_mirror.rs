//! Routes to several upstreams by their shares, and shadow traffic.

use crate::support::client::post;
use crate::support::*;

fn also(name: &str, upstream: &Upstream) -> String {
    format!("[upstream.{name}]\nendpoints = [\"{}\"]", upstream.address())
}

#[tokio::test]
async fn a_split_route_shares_requests_by_weight() {
    let now = Upstream::that().answers(200).start().await;
    let next = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&now])
        .routes_only()
        .and(
            "[[listener.route]]\nname = \"canary\"\n\
             split = [{ upstream = \"app\", weight = 3 }, { upstream = \"next\", weight = 1 }]",
        )
        .and(&also("next", &next))
        .start()
        .await;
    let mut client = proxy.connect().await;
    for _ in 0..400 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    // 300 and 100 expected; beyond 60 of them lies less than one run in a million.
    assert!((40..=160).contains(&next.seen()), "{}", next.seen());
    assert_eq!(now.seen() + next.seen(), 400);
    for (upstream, seen) in [("app", now.seen()), ("next", next.seen())] {
        let counted = format!("outrigger_requests_total{{route=canary,upstream={upstream}}}");
        proxy.metric_becomes(&counted, seen as f64).await;
    }
}

#[tokio::test]
async fn what_a_split_route_says_holds_over_each_of_its_upstreams() {
    let now = Upstream::that().answers(503).start().await;
    let next = Upstream::that().answers(503).start().await;
    let proxy = Config::over([&now])
        .routes_only()
        .upstream("retry.on = [\"connect_error\"]")
        .and(
            "[[listener.route]]\nsplit = [{ upstream = \"app\" }, { upstream = \"next\" }]\n\
             retry = { attempts = 2, backoff = { base = \"1ms\", max = \"1ms\" } }",
        )
        .and(&also("next", &next))
        .start()
        .await;
    let mut client = proxy.connect().await;
    let mut requests = 0;
    while now.seen() == 0 || next.seen() == 0 {
        assert_eq!(client.exchange(&get("/")).await.status, 503);
        requests += 1;
    }
    // `app` retries nothing of that kind, whatever its route allows; `next` has the route's number of attempts.
    assert_eq!(next.seen() % 2, 0, "{}", next.seen());
    assert_eq!(now.seen() + next.seen() / 2, requests);
}

#[tokio::test]
async fn a_mirror_gets_copies_and_its_answers_go_nowhere() {
    let real = Upstream::that().answers(200).with_body("real").start().await;
    let shadow = Upstream::that().answers(500).with_body("shadow").start().await;
    let proxy = Config::over([&real])
        .routes_only()
        .and("[[listener.route]]\nupstream = \"app\"\nmirror = { upstream = \"shadow\" }")
        .and(&also("shadow", &shadow))
        .start()
        .await;
    let mut client = proxy.connect().await;

    let answer = client.exchange(&get("/a?b")).await;
    assert_eq!((answer.status, answer.text()), (200, "real".to_owned()));
    let answer = client.exchange(&post("/c", "a body")).await;
    assert_eq!((answer.status, answer.text()), (200, "real".to_owned()));

    eventually("both are copied", async || shadow.seen() == 2).await;
    let bodies: Vec<_> = (0..2).map(|number| (shadow.request(number), real.request(number))).collect();
    for (copy, original) in &bodies {
        assert_eq!((&copy.target, &copy.body), (&original.target, &original.body));
        assert_eq!(copy.field("x-request-id"), original.field("x-request-id"));
        assert_eq!(copy.field("x-outrigger-mirror"), Some("true"));
        assert_eq!(original.field("x-outrigger-mirror"), None);
    }
    eventually("the copies have ended", async || {
        proxy.metrics().await.sum("outrigger_attempts_total{upstream=\"shadow\",outcome=\"5xx\"}") == 2.0
    })
    .await;
    proxy.metric_becomes("outrigger_requests_total{upstream=app}", 2.0).await;
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("outrigger_mirrored_total{upstream=\"shadow\"}"), 2.0);
    assert_eq!(metrics.sum("outrigger_requests_total{upstream=\"shadow\"}"), 0.0, "nobody asked for them");
}

#[tokio::test]
async fn a_mirror_that_hangs_holds_nobody_up() {
    let real = Upstream::that().answers(200).start().await;
    let shadow = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&real])
        .one_worker()
        .routes_only()
        .and("[[listener.route]]\nupstream = \"app\"\nmirror = { upstream = \"shadow\" }")
        .and(&also("shadow", &shadow))
        .and("concurrency.limit = { kind = \"fixed\", max = 1000 }")
        .start()
        .await;
    let mut client = proxy.connect().await;
    for _ in 0..300 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("outrigger_mirrored_total"), 256.0, "copies under way are bounded");
    assert_eq!(metrics.sum("outrigger_limit_reached_total{what=\"mirrors\"}"), 44.0);
}

#[tokio::test]
async fn a_copy_whose_answer_has_no_end_is_given_up() {
    let real = Upstream::that().answers(200).start().await;
    let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    let shadow = Upstream::that().answers_raw(events).then_hangs().start().await;
    let slow = Upstream::that().answers_raw("HTTP/1.1 200 OK\r\n\r\nhello").then_hangs().start().await;
    let proxy = Config::over([&real])
        .routes_only()
        .and("[[listener.route]]\nmatch = { path_prefix = \"/events\" }\nupstream = \"app\"\nmirror = { upstream = \"shadow\" }")
        .and("[[listener.route]]\nupstream = \"app\"\nmirror = { upstream = \"slow\" }")
        .and(&also("shadow", &shadow))
        .and(&format!("{}\nconcurrency.stream_after = \"100ms\"", also("slow", &slow)))
        .start()
        .await;
    let mut client = proxy.connect().await;
    for (path, copied) in [("/events", &shadow), ("/slow", &slow)] {
        assert_eq!(client.exchange(&get(path)).await.status, 200);
        copied.has_seen(1).await;
        copied.has_open(0).await;
    }
    // Nor does a copy ask for a protocol that nobody would speak.
    let ask = "GET /slow HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(client.exchange(ask).await.status, 200);
    assert_eq!(proxy.metric("outrigger_mirrored_total").await, 2.0);
}

#[tokio::test]
async fn a_body_that_was_not_kept_is_not_copied() {
    let real = Upstream::that().answers(200).start().await;
    let shadow = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&real])
        .routes_only()
        .and("[[listener.route]]\nupstream = \"app\"\nmirror = { upstream = \"shadow\" }\nretry = { request_buffer = \"1KiB\" }")
        .and(&also("shadow", &shadow))
        .start()
        .await;
    let mut client = proxy.connect().await;

    assert_eq!(client.exchange(&post("/", &"x".repeat(2000))).await.status, 200);

    eventually("it is counted", async || {
        proxy.metrics().await.sum("outrigger_limit_reached_total{what=\"mirror_body\"}") == 1.0
    })
    .await;
    assert_eq!(shadow.seen(), 0);
}

#[tokio::test]
async fn a_ratio_copies_that_share() {
    let real = Upstream::that().answers(200).start().await;
    let shadow = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&real])
        .routes_only()
        .and("[[listener.route]]\nupstream = \"app\"\nmirror = { upstream = \"shadow\", ratio = 0.25 }")
        .and(&also("shadow", &shadow))
        .start()
        .await;
    let mut client = proxy.connect().await;
    for _ in 0..400 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    let copied = proxy.metrics().await.sum("outrigger_mirrored_total");
    // 100 expected; beyond 60 of them lies less than one run in a million.
    assert!((40.0..=160.0).contains(&copied), "{copied}");
}

#[tokio::test]
async fn a_session_stays_with_one_upstream_of_a_split() {
    let now = Upstream::that().answers(200).start().await;
    let next = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&now])
        .routes_only()
        .and(
            "[[listener.route]]\nsplit = [{ upstream = \"app\" }, { upstream = \"next\" }]\nsplit_by = \"cookie:session\"",
        )
        .and(&also("next", &next))
        .start()
        .await;
    let mut client = proxy.connect().await;
    let mut went_on = 0;
    for session in 0..40 {
        let before = next.seen();
        for _ in 0..5 {
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: a=b; session={session}\r\n\r\n");
            assert_eq!(client.exchange(&request).await.status, 200);
        }
        let there = next.seen() - before;
        assert!(there == 0 || there == 5, "session {session} was torn: {there} of 5");
        went_on += usize::from(there == 5);
    }
    // 20 expected; beyond 16 of them lies less than one set of names in a million.
    assert!((4..=36).contains(&went_on), "{went_on}");
}
