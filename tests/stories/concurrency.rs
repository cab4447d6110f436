//! How many attempts are in flight, who waits for a slot, and that every slot comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::*;

const LIMIT: &str = "outrigger_concurrency_limit{upstream=app}";

const IN_FLIGHT: &str = "outrigger_concurrency_in_flight{upstream=app}";
const DEPTH: &str = "outrigger_queue_depth{upstream=app}";

/// One slot and a queue of this size and patience.
fn narrow(app: &Upstream, size: u32, timeout: &str) -> Config {
    slots(app, 1, size, timeout)
}

fn slots(app: &Upstream, max: u32, size: u32, timeout: &str) -> Config {
    Config::over([app])
        .upstream(&format!("concurrency.limit = {{ kind = \"fixed\", max = {max} }}"))
        .upstream(&format!("concurrency.queue = {{ size = {size}, timeout = \"{timeout}\" }}"))
        .upstream("retry.attempts = 1")
}

/// A request that has taken the only slot.
async fn holder(proxy: &Proxy, app: &Upstream) -> Client {
    let before = app.seen();
    let mut client = proxy.connect().await;
    client.send(get("/holder")).await;
    app.has_seen(before + 1).await;
    client
}

/// A request that waits in the queue as its `place`th.
async fn waiter(proxy: &Proxy, place: u32) -> Client {
    let mut client = proxy.connect().await;
    client.send(get(&format!("/{place}"))).await;
    proxy.metric_becomes(DEPTH, f64::from(place)).await;
    client
}

#[tokio::test]
async fn without_a_queue_the_limit_refuses() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, 0, "1s").start().await;
    let mut holder = holder(&proxy, &app).await;
    assert_eq!(proxy.metric(IN_FLIGHT).await, 1.0);
    assert_eq!(proxy.metric("outrigger_concurrency_limit{upstream=app}").await, 1.0);

    proxy.get("/").await.must_be(503, "concurrency_limited");

    app.release(2);
    assert_eq!(holder.response().await.status, 200);
    assert_eq!(proxy.get("/").await.status, 200, "the slot is free again");
    assert_eq!(app.seen(), 2);
}

#[tokio::test]
async fn the_queue_is_served_in_its_order() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, 10, "10s").start().await;
    let mut clients = vec![holder(&proxy, &app).await];
    for place in 1..=3 {
        clients.push(waiter(&proxy, place).await);
    }

    for client in &mut clients {
        app.release(1);
        assert_eq!(client.response().await.status, 200);
    }

    let targets: Vec<_> = app.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/holder", "/1", "/2", "/3"]);
    assert_eq!(proxy.metric("outrigger_queue_wait_seconds_count{upstream=app}").await, 3.0);
    proxy.rests().await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, 1, "5s").start().await;
    let mut holder = holder(&proxy, &app).await;
    let mut waiter = waiter(&proxy, 1).await;

    let start = Instant::now();
    proxy.get("/").await.must_be(503, "queue_full");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    app.release(2);
    assert_eq!(holder.response().await.status, 200);
    assert_eq!(waiter.response().await.status, 200);
}

#[tokio::test]
async fn nobody_waits_longer_than_the_queues_timeout() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, 10, "200ms").start().await;
    let _holder = holder(&proxy, &app).await;

    let start = Instant::now();
    proxy.get("/").await.must_be(503, "queue_timeout");

    assert!((190..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    proxy.metric_becomes(DEPTH, 0.0).await;
}

#[tokio::test]
async fn nobody_waits_longer_than_its_deadline() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, 10, "20s").start().await;
    let _holder = holder(&proxy, &app).await;

    let start = Instant::now();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 200\r\n\r\n";
    let response = proxy.connect().await.exchange(request).await;

    assert!(response.is_for("deadline_exceeded") || response.is_for("queue_timeout"), "{response:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(app.seen(), 1);
    proxy.metric_becomes(DEPTH, 0.0).await;
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back_at_once() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = narrow(&app, 1, "20s").start().await;
    let mut holder = holder(&proxy, &app).await;
    drop(waiter(&proxy, 1).await);
    proxy.metric_becomes(DEPTH, 0.0).await;

    let mut next = waiter(&proxy, 1).await;
    app.release(2);
    assert_eq!(holder.response().await.status, 200);
    assert_eq!(next.response().await.status, 200);
    assert_eq!(app.seen(), 2, "who left never went up");
}

#[tokio::test]
async fn a_slot_is_held_to_the_end_of_the_body() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello")
        .and_when_released(vec![b'x'; 1_000_000 - 5])
        .answers(200)
        .start()
        .await;
    let proxy = narrow(&app, 0, "1s").start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    assert_eq!(proxy.metric(IN_FLIGHT).await, 1.0);
    proxy.get("/").await.must_be(503, "concurrency_limited");
    app.release(1);
    client.bytes(1_000_000).await;

    proxy.rests().await;
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn a_stream_gives_its_slot_back() {
    let cases = [
        ("event streams are streams from the start", "Content-Type: text/event-stream", "1h"),
        ("a body without a length that runs for long", "Content-Type: text/plain", "100ms"),
    ];
    for (why, field, after) in cases {
        let app = Upstream::that()
            .answers_raw(format!(
                "HTTP/1.1 200 OK\r\n{field}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\n\n\r\n"
            ))
            .then_hangs()
            .answers(200)
            .start()
            .await;
        let proxy =
            narrow(&app, 0, "1s").upstream(&format!("concurrency.stream_after = \"{after}\"")).start().await;

        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        client.head().await.expect("a head");
        proxy.metric_becomes("outrigger_streams{upstream=app}", 1.0).await;
        proxy.metric_becomes(IN_FLIGHT, 0.0).await;
        assert_eq!(proxy.get("/").await.status, 200, "{why}: its slot is another's now");

        drop(client);
        proxy.rests().await;
    }
}

/// A head and half of its body.
const HALF: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello";

/// Two slots, no queue, and two clients that have sent half of an upload each.
async fn two_halves(app: &Upstream) -> (Proxy, [Client; 2]) {
    let proxy = slots(app, 2, 0, "1s").start().await;
    let mut clients = [proxy.connect().await, proxy.connect().await];
    for client in &mut clients {
        client.send(HALF).await;
    }
    app.has_seen(2).await;
    proxy.metric_becomes(IN_FLIGHT, 0.0).await;
    (proxy, clients)
}

#[tokio::test]
async fn who_uploads_slowly_holds_nobody_up() {
    let app = Upstream::that().answers(201).answers(201).answers(200).start().await;
    let (proxy, mut clients) = two_halves(&app).await;
    assert_eq!(proxy.get("/").await.status, 200, "both slots are free meanwhile");
    for client in &mut clients {
        client.send("world").await;
        assert_eq!(client.response().await.status, 201);
    }
    proxy.rests().await;
}

#[tokio::test]
async fn an_upload_that_is_complete_takes_a_slot_again() {
    let app = Upstream::that().answers(201).holds().start().await;
    let (proxy, mut clients) = two_halves(&app).await;
    let mut third = proxy.connect().await;
    third.send(get("/third")).await;
    app.has_seen(3).await;
    for client in &mut clients {
        client.send("world").await;
    }
    // The upstream has three requests, though it should have two: so nobody else is let in.
    proxy.metric_becomes(IN_FLIGHT, 3.0).await;
    proxy.get("/").await.must_be(503, "concurrency_limited");
    app.release(3);
    for client in clients.iter_mut().chain([&mut third]) {
        assert_eq!(client.response().await.status, 201);
    }
    proxy.rests().await;
}

#[tokio::test]
async fn an_upload_that_comes_in_time_keeps_its_slot_to_its_answer() {
    let app = Upstream::that().answers(201).holds().start().await;
    // What passes a shadow timeout goes on, and is looked at then.
    let shadow = "timeout = { mode = \"shadow\", attempt = \"200ms\" }";
    let proxy = narrow(&app, 0, "1s").upstream(shadow).start().await;
    let mut client = proxy.connect().await;
    client.send(HALF).await;
    app.has_seen(1).await;
    client.send("world").await;
    proxy.metric_becomes("outrigger_rejected_total{reason=attempt_timeout,mode=shadow}", 1.0).await;
    assert_eq!(proxy.metric(IN_FLIGHT).await, 1.0);
    app.release(1);
    assert_eq!(client.response().await.status, 201);
    proxy.rests().await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_takes_a_slot_again() {
    let early = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello";
    let app = Upstream::that()
        .answers_raw(early)
        .answers_before_reading_the_body()
        .delays(Duration::from_millis(300))
        .start()
        .await;
    let proxy = narrow(&app, 0, "1s").start().await;
    let mut client = proxy.connect().await;
    client.send(HALF).await;
    proxy.metric_becomes(IN_FLIGHT, 1.0).await;
    proxy.metric_becomes(IN_FLIGHT, 0.0).await;
    client.head().await.expect("a head");
    assert_eq!(proxy.metric(IN_FLIGHT).await, 1.0);
    proxy.get("/").await.must_be(503, "concurrency_limited");
    drop(client);
    proxy.rests().await;
}

#[tokio::test]
async fn an_upload_whose_client_leaves_gives_nothing_back_twice() {
    let app = Upstream::that().answers(200).holds().start().await;
    let (proxy, clients) = two_halves(&app).await;
    drop(clients);
    app.has_open(0).await;
    // With a slot too many a third one would be let in.
    let mut holders = [holder(&proxy, &app).await, holder(&proxy, &app).await];
    assert_eq!(proxy.metric(IN_FLIGHT).await, 2.0);
    proxy.get("/").await.must_be(503, "concurrency_limited");
    app.release(2);
    for holder in &mut holders {
        assert_eq!(holder.response().await.status, 200);
    }
    proxy.rests().await;
}

#[tokio::test]
async fn an_upload_that_its_upstream_does_not_take_keeps_its_slot() {
    let app = Upstream::that().answers(200).holds().never_reads_the_body().start().await;
    let proxy = narrow(&app, 0, "1s").start().await;
    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n").await;
    client.send_until_stuck(&vec![b'x'; 64 << 20]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(proxy.metric(IN_FLIGHT).await, 1.0, "that is the upstream's time");
    client.reset();
    proxy.rests().await;
}

#[tokio::test]
async fn streams_are_bounded_apart() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        .then_hangs()
        .start()
        .await;
    let proxy = Config::over([&app]).upstream("connections = { max_streams = 1 }").start().await;
    let mut stream = proxy.connect().await;
    stream.send(get("/")).await;
    stream.head().await.expect("a head");

    proxy.get("/").await.must_be(503, "concurrency_limited");

    drop(stream);
    proxy.rests().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = Config::over([&app])
        .upstream("connections = { max = 1 }")
        .upstream("retry.attempts = 1")
        .one_worker()
        .start()
        .await;
    let mut holder = holder(&proxy, &app).await;

    proxy.get("/").await.must_be(503, "concurrency_limited");

    app.release(2);
    assert_eq!(holder.response().await.status, 200);
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn idle_connections_stand_in_nobodys_way() {
    // Each client may be another worker's, and the one connection rests in the pool of the last one.
    let app = Upstream::that().answers(200).start().await;
    let proxy =
        Config::over([&app]).upstream("connections = { max = 1 }").and("[server]\nworkers = 2").start().await;
    for number in 0..10 {
        assert_eq!(proxy.get("/").await.status, 200, "request {number}");
    }
}

#[tokio::test]
async fn slots_come_back_however_an_attempt_ends() {
    let cases = [
        ("answered", Upstream::that().answers(200).with_body("x")),
        ("an error", Upstream::that().answers(500)),
        ("reset", Upstream::that().resets_before_the_head()),
        ("broken off", Upstream::that().resets_in_mid_body()),
        ("nonsense", Upstream::that().answers_raw("nonsense\r\n\r\n")),
        ("too slow", Upstream::that().never_answers()),
        ("no body", Upstream::that().answers(204)),
        ("until close", Upstream::that().answers_raw("HTTP/1.1 200 OK\r\n\r\nx").then_closes()),
    ];
    for (why, script) in cases {
        let app = script.start().await;
        let proxy = narrow(&app, 0, "1s")
            .upstream("timeout.attempt = \"500ms\"")
            .upstream("breaker.mode = \"off\"")
            .start()
            .await;
        for _ in 0..3 {
            let response = proxy.get("/").await;
            assert!(!response.is_for("concurrency_limited"), "{why}: the slot came back");
            proxy.rests().await;
        }
        assert_eq!(app.seen(), 3, "{why}");
    }
}

#[tokio::test]
async fn a_retry_without_a_free_slot_is_not_made() {
    let app = Upstream::that().answers(503).answers(200).holds().start().await;
    let proxy = Config::over([&app])
        .upstream("concurrency.limit = { kind = \"fixed\", max = 1 }")
        .upstream("retry.backoff = { base = \"500ms\", max = \"500ms\", jitter = \"none\" }")
        .start()
        .await;
    let mut retrying = proxy.connect().await;
    retrying.send(get("/")).await;
    app.has_seen(1).await;
    // It waits, without its slot.
    proxy.metric_becomes(IN_FLIGHT, 0.0).await;
    let _holder = holder(&proxy, &app).await;

    assert_eq!(retrying.response().await.status, 503);

    assert_eq!(proxy.metric("outrigger_retries_skipped_total{upstream=app,reason=concurrency}").await, 1.0);
    assert_eq!(proxy.metric("outrigger_retries_total{upstream=app}").await, 0.0);
}

#[tokio::test]
async fn many_clients_share_few_slots() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app])
        .upstream("concurrency.limit = { kind = \"fixed\", max = 4 }")
        .upstream("concurrency.queue = { size = 100, timeout = \"10s\" }")
        .start()
        .await;
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let address = proxy.listener();
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut good = 0;
                for _ in 0..10 {
                    good += usize::from(client.exchange(&get("/")).await.text() == "hello");
                }
                good
            })
        })
        .collect();
    // Who comes while the queue stands may be refused; who is let in is served.
    let mut served = 0;
    for client in clients {
        served += client.await.expect("no panic");
    }
    assert!(served >= 40, "{served} of 400");
    assert_eq!(app.seen(), served);
    proxy.rests().await;
    assert!(app.connections() <= 8, "a few slots need few connections: {}", app.connections());
}

/// Clients that always want something, until told to stop.
struct Crowd {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    async fn of(count: u32, proxy: &Proxy) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for _ in 0..count {
            let (mut client, stop) = (proxy.connect().await, Arc::clone(&stop));
            clients.push(tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    client.exchange(&get("/")).await;
                }
            }));
        }
        Self { stop, clients }
    }

    async fn leaves(self) {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.await.expect("no client panics");
        }
    }
}

#[tokio::test]
async fn a_limit_rises_where_it_is_needed_and_a_reload_keeps_it() {
    let app = Upstream::that().answers(200).delays(Duration::from_millis(20)).start().await;
    let limit =
        |limit: &str| Config::over([&app]).plain().upstream(&format!("concurrency.limit = {{ {limit} }}"));
    let proxy = limit("kind = \"aimd\", initial = 5").start().await;
    assert_eq!(proxy.metric(LIMIT).await, 5.0, "as it begins");
    let mut client = proxy.connect().await;
    for _ in 0..20 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert_eq!(proxy.metric(LIMIT).await, 5.0, "nobody needs more");

    let crowd = Crowd::of(12, &proxy).await;
    eventually("the limit rises", async || proxy.metric(LIMIT).await > 8.0).await;
    crowd.leaves().await;
    let learnt = proxy.metric(LIMIT).await;
    let reload = async |config: Config| {
        proxy.rewrite(&config.text());
        assert_eq!(proxy.admin_post("/reload").await.status, 200);
        proxy.metric(LIMIT).await
    };
    assert_eq!(reload(limit("kind = \"aimd\", initial = 6")).await, learnt, "what was learnt stays");
    let view = proxy.admin_get("/upstreams").await.text();
    let view: serde_json::Value = serde_json::from_str(&view).expect("JSON");
    assert_eq!(view["app"]["concurrency"]["limit"].as_f64(), Some(learnt));
    assert_eq!(reload(limit("kind = \"aimd\", initial = 6, max = 7")).await, 7.0, "within new bounds");
    assert_eq!(reload(limit("kind = \"gradient\", initial = 30")).await, 30.0, "another kind begins anew");
}

#[tokio::test]
async fn only_what_is_overloaded_lowers_the_limit() {
    let cases = [
        ("it says when to come back", Upstream::that().answers(503).with_field("Retry-After", "1"), true),
        (
            "another Outrigger refuses",
            Upstream::that()
                .answers(503)
                .with_field("Proxy-Status", "outrigger; error=connection_limit_reached"),
            true,
        ),
        ("timeouts that are evidence", Upstream::that().never_answers(), true),
        ("one caller's matter", Upstream::that().answers(429).with_field("Retry-After", "1"), false),
        ("it fails", Upstream::that().answers(500), false),
        ("it breaks off", Upstream::that().resets_before_the_head(), false),
        ("it does its work", Upstream::that().answers(200), false),
    ];
    for (why, script, falls) in cases {
        let app = script.delays(Duration::from_millis(300)).start().await;
        let proxy = Config::over([&app])
            .plain()
            .upstream("outlier.mode = \"off\"\nconcurrency.limit = { kind = \"aimd\", initial = 10 }")
            .upstream("timeout = { connect = \"500ms\", attempt = \"1s\" }")
            .start()
            .await;
        // As many as the limit is, at once: where it is not used, it is not what was too much.
        let mut clients = Vec::new();
        for _ in 0..10 {
            let mut client = proxy.connect().await;
            client.send(get("/")).await;
            clients.push(client);
        }
        for client in &mut clients {
            client.response().await;
        }
        proxy.rests().await;
        let limit = proxy.metric(LIMIT).await;
        assert_eq!(limit < 10.0, falls, "{why}: {limit}");
    }
}

#[tokio::test]
async fn twenty_streams_starve_nobody_at_a_small_limit() {
    let stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    let app = (0..20).fold(Upstream::that(), |app, _| app.answers_raw(stream).then_hangs());
    let app = app.answers(200).start().await;
    let proxy = Config::over([&app])
        .plain()
        .upstream("concurrency.limit = { kind = \"gradient\", initial = 4, min = 4, max = 4 }")
        .start()
        .await;
    let mut streams = Vec::new();
    for number in 1..=20 {
        let mut client = proxy.connect().await;
        client.send(get("/events")).await;
        assert_eq!(client.head().await.expect("a head").status, 200, "stream {number}");
        streams.push(client);
    }
    assert_eq!(proxy.metric(IN_FLIGHT).await, 0.0);
    assert_eq!(proxy.metric("outrigger_streams{upstream=app}").await, 20.0);

    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status, 200);
    }

    drop(streams);
    proxy.rests().await;
}

#[tokio::test]
async fn while_an_upstream_stalls_others_wait_before_it_and_then_go_at_once() {
    let app = (0..70).fold(Upstream::that(), |app, _| app.answers(200));
    let app = app.answers(200).holds().start().await;
    let proxy = Config::over([&app]).plain().upstream("concurrency.queue.timeout = \"10s\"").start().await;
    let mut client = proxy.connect().await;
    for _ in 0..70 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = proxy.connect().await;
        client.send(get("/stalls")).await;
        clients.push(client);
    }
    app.has_seen(80).await;
    let start = Instant::now();
    eventually("nothing has come back for a while", async || start.elapsed() > Duration::from_millis(200))
        .await;
    for _ in 0..8 {
        let mut client = proxy.connect().await;
        client.send(get("/waits")).await;
        clients.push(client);
    }

    eventually("some of them wait though the limit is 20", async || {
        let metrics = proxy.metrics().await;
        metrics.sum(DEPTH) >= 1.0 && metrics.sum(DEPTH) + metrics.sum(IN_FLIGHT) == 18.0
    })
    .await;
    assert_eq!(proxy.metric(LIMIT).await, 20.0);

    app.release(1);
    app.has_seen(88).await;
    app.release(20);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    proxy.rests().await;
}
