//! Who of those that wait for a slot is next, who has to make room, and what they are told.

use std::time::{Duration, Instant};

use crate::support::*;

const DEPTH: &str = "outrigger_queue_depth{upstream=app}";

/// One slot, and a queue as this says.
fn narrow(app: &Upstream, queue: &str) -> Config {
    Config::over([app])
        .upstream("concurrency.limit = { kind = \"fixed\", max = 1 }")
        .upstream(&format!("concurrency.queue = {{ {queue} }}"))
        .plain()
}

/// A request that has taken the only slot.
async fn holder(proxy: &Proxy, app: &Upstream) -> Client {
    let mut client = proxy.connect().await;
    client.send(get("/holder")).await;
    app.has_seen(1).await;
    client
}

/// A request of this class that waits, with so many others.
async fn waiter(proxy: &Proxy, priority: &str, path: &str, depth: u32) -> Client {
    let mut client = proxy.connect().await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Priority: {priority}\r\n\r\n")).await;
    proxy.metric_becomes(DEPTH, f64::from(depth)).await;
    client
}

/// Lets one after the other go, so that each slot's next owner is seen.
async fn drained(app: &Upstream, clients: Vec<Client>) -> Vec<String> {
    for number in 1..=clients.len() {
        app.has_seen(number).await;
        app.release(1);
    }
    for mut client in clients {
        assert_eq!(client.response().await.status, 200);
    }
    app.requests().into_iter().map(|request| request.target).collect()
}

#[tokio::test]
async fn the_most_important_are_served_first() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "timeout = \"10s\"").start().await;
    let mut clients = vec![holder(&proxy, &app).await];
    for (place, priority) in (1..).zip(["low", "normal", "critical", "high", "Critical", "normal"]) {
        clients.push(waiter(&proxy, priority, &format!("/{place}-{priority}"), place).await);
    }

    let targets = drained(&app, clients).await;

    assert_eq!(
        targets,
        ["/holder", "/3-critical", "/5-Critical", "/4-high", "/2-normal", "/6-normal", "/1-low"]
    );
    proxy.rests().await;
}

/// As a gRPC call without `grpc-timeout` has none: how long answers take is no reason to refuse it a place.
#[tokio::test]
async fn who_has_no_deadline_waits_for_slow_answers_too() {
    const SLOW: Duration = Duration::from_millis(600);
    let app = Upstream::that().answers(200).holds().start().await;
    let config = Config::over([&app]).plain().upstream("timeout.mode = \"off\"");
    let config = config.upstream("concurrency.limit = { kind = \"fixed\", max = 4 }");
    let proxy = config.upstream("concurrency.queue = { timeout = \"1s\" }").start().await;
    let all = async |rounds: usize| {
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = proxy.connect().await;
            client.send(get("/")).await;
            clients.push(client);
        }
        app.has_seen(4 * rounds).await;
        clients
    };
    for round in 1..=3 {
        let clients = all(round).await;
        tokio::time::sleep(SLOW).await; // which is what these answers take
        app.release(4);
        for mut client in clients {
            assert_eq!(client.response().await.status, 200);
        }
    }
    let holders = all(4).await;
    let mut client = waiter(&proxy, "normal", "/waits", 1).await;
    app.release(5);

    assert_eq!(client.response().await.status, 200);
    for mut holder in holders {
        assert_eq!(holder.response().await.status, 200);
    }
}

#[tokio::test]
async fn a_routes_class_counts_where_the_caller_names_none() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "timeout = \"10s\"")
        .and("[[listener.route]]\nmatch = { path_prefix = \"/pay\" }\nupstream = \"app\"\npriority = \"critical\"")
        .start()
        .await;
    let mut clients = vec![holder(&proxy, &app).await];
    for (place, path) in (1..).zip(["/other", "/pay"]) {
        let mut client = proxy.connect().await;
        client.send(get(path)).await;
        proxy.metric_becomes(DEPTH, f64::from(place)).await;
        clients.push(client);
    }
    assert_eq!(drained(&app, clients).await, ["/holder", "/pay", "/other"]);
}

#[tokio::test]
async fn nobody_waits_for_ever_behind_those_who_matter_more() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "timeout = \"10s\"").start().await;
    let mut clients = vec![holder(&proxy, &app).await, waiter(&proxy, "low", "/low", 1).await];
    for place in 2..=11 {
        clients.push(waiter(&proxy, "critical", &format!("/{place}"), place).await);
    }

    let targets = drained(&app, clients).await;

    let place = targets.iter().position(|target| target == "/low");
    assert_eq!(place, Some(8), "the eighth of those that waited: {targets:?}");
}

#[tokio::test]
async fn who_makes_room_for_somebody_more_important_is_told_at_once() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "size = 2, timeout = \"10s\"").start().await;
    let mut holder = holder(&proxy, &app).await;
    let mut first = waiter(&proxy, "low", "/first", 1).await;
    let mut second = waiter(&proxy, "low", "/second", 2).await;

    let start = Instant::now();
    let mut critical = waiter(&proxy, "critical", "/critical", 2).await;
    second.response().await.must_be(503, "queue_full");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(proxy.metric("outrigger_rejected_total{upstream=app,reason=queue_full}").await, 1.0);
    proxy
        .connect()
        .await
        .exchange("GET /third HTTP/1.1\r\nHost: a\r\nX-Priority: low\r\n\r\n")
        .await
        .must_be(503, "queue_full");

    app.release(3);
    for client in [&mut holder, &mut critical, &mut first] {
        assert_eq!(client.response().await.status, 200);
    }
    let targets: Vec<_> = app.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/holder", "/critical", "/first"]);
    proxy.rests().await;
}

#[tokio::test]
async fn first_in_first_out_knows_no_classes() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "order = \"fifo\", timeout = \"10s\"").start().await;
    let mut clients = vec![holder(&proxy, &app).await];
    for (place, priority) in (1..).zip(["low", "normal", "critical"]) {
        clients.push(waiter(&proxy, priority, &format!("/{priority}"), place).await);
    }
    assert_eq!(drained(&app, clients).await, ["/holder", "/low", "/normal", "/critical"]);
}

#[tokio::test]
async fn last_in_first_out_begins_when_the_queue_has_stood() {
    // Ten show that half take 2 s, so that waits may last for one.
    let app = (0..10).fold(Upstream::that(), |app, _| app.answers(200).delays(Duration::from_secs(2)));
    let app = app.answers(200).holds().start().await;
    let config = narrow(&app, "order = \"lifo_when_full\", timeout = \"10s\"");
    let proxy = Proxy::start(&config.text().replace("max = 1 }", "max = 10 }")).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
        client.send(get("/holder")).await;
    }
    app.has_seen(20).await;
    let p50 = async || {
        let view = proxy.admin_get("/upstreams").await.text();
        let view: serde_json::Value = serde_json::from_str(&view).expect("JSON");
        view["app"]["latency"]["p50_ms"].as_f64()
    };
    eventually("what half of them take is known", async || p50().await.is_some()).await;

    let start = Instant::now();
    let mut first = waiter(&proxy, "normal", "/first", 1).await;
    eventually("the queue has stood", async || start.elapsed() > Duration::from_millis(150)).await;
    let mut second = waiter(&proxy, "normal", "/second", 2).await;
    app.release(1);
    app.has_seen(21).await;
    assert_eq!(app.request(20).target, "/second");
    app.release(20);
    assert_eq!(second.response().await.status, 200);
    let first = first.response().await;
    assert!(first.status == 200 || first.is_for("queue_timeout"), "{first:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "its wait was short: {:?}", start.elapsed());
}

#[tokio::test]
async fn waits_are_short_where_the_last_goes_first() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "order = \"lifo_when_full\", timeout = \"10s\"").start().await;
    let _holder = holder(&proxy, &app).await;

    let start = Instant::now();
    proxy.get("/").await.must_be(503, "queue_timeout");

    assert!((95..3000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    proxy.metric_becomes(DEPTH, 0.0).await;
}

#[tokio::test]
async fn who_cannot_be_served_in_time_is_told_how_long_it_would_take() {
    let app = Upstream::that().answers(200).delays(Duration::from_millis(1200)).start().await;
    let proxy = narrow(&app, "timeout = \"1s\"").start().await;
    // One that is served alone shows how fast the slot comes back.
    assert_eq!(proxy.get("/").await.status, 200);
    let mut second = proxy.connect().await;
    second.send(get("/")).await;
    app.has_seen(2).await;

    let start = Instant::now();
    let refused = proxy.get("/").await;

    assert!(start.elapsed() < Duration::from_millis(900), "at once, not after a wait: {:?}", start.elapsed());
    refused.must_be(503, "queue_full");
    assert_eq!(refused.field("retry-after"), Some("2"), "1.2 s in whole seconds");
    assert_eq!(second.response().await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_for_the_next() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, "size = 3, timeout = \"20s\"").start().await;
    let mut clients = vec![holder(&proxy, &app).await];
    clients.push(waiter(&proxy, "low", "/low", 1).await);
    let leaves = waiter(&proxy, "high", "/leaves", 2).await;
    clients.push(waiter(&proxy, "normal", "/normal", 3).await);
    drop(leaves);
    proxy.metric_becomes(DEPTH, 2.0).await;
    clients.push(waiter(&proxy, "low", "/low-too", 3).await);

    assert_eq!(drained(&app, clients).await, ["/holder", "/normal", "/low", "/low-too"]);
    proxy.rests().await;
}

#[tokio::test]
async fn a_raised_limit_lets_several_in_at_once() {
    let app = Upstream::that().answers(200).holds().start().await;
    let config = narrow(&app, "timeout = \"20s\"");
    let proxy = config.start().await;
    let mut clients = vec![holder(&proxy, &app).await];
    for place in 1..=5 {
        clients.push(waiter(&proxy, "normal", &format!("/{place}"), place).await);
    }

    proxy.rewrite(&config.text().replace("max = 1 }", "max = 4 }"));
    assert_eq!(proxy.admin_post("/reload").await.status, 200);

    app.has_seen(4).await;
    proxy.metric_becomes(DEPTH, 2.0).await;
    app.release(6);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    proxy.rests().await;
}
