//! Injected faults: what the policies make of them, what the client is told, what bounds and ends them. The upstreams here
//! are well; all that goes wrong stands in the configuration.

use std::time::{Duration, Instant};

use crate::support::http2::{Http2, RequestBody, Whole, read};
use crate::support::http2_upstream::Http2Upstream;
use crate::support::*;

/// A request that asks for a fault.
const CHAOS: &str = "GET / HTTP/1.1\r\nHost: app.test\r\nX-Chaos: on\r\n\r\n";

/// A fault for those who ask for it.
fn asked_for(fault: &str) -> String {
    format!("fault = {{ {fault}, match = {{ headers = {{ x-chaos = \"on\" }} }} }}")
}

/// A fault for all.
fn for_all(fault: &str) -> String {
    format!("fault = {{ {fault}, allow_wide = true }}")
}

fn over_http2(app: &Http2Upstream) -> Config {
    Config::over_addresses(&[app.address().to_string()]).http2()
}

async fn injected(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric(&format!("outrigger_faults_injected_total{{upstream=app,kind={kind}}}")).await
}

/// What the admin API tells of the fault with this number.
async fn told(proxy: &Proxy, number: usize) -> serde_json::Value {
    let answer = proxy.admin_get("/faults/app").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    told["faults"][number].clone()
}

/// Nobody is under the only fault any more.
async fn nobody_is_under_it(proxy: &Proxy) {
    eventually("nobody is under it", async || told(proxy, 0).await["active"] == 0).await;
    proxy.rests().await;
}

/// A call of gRPC: its status and message, wherever they came.
async fn call(proxy: &Proxy) -> (Whole, String, String) {
    let mut client = Http2::connect(proxy.listener()).await;
    let head = client.request("POST", "/pkg.Echo/Get").header("content-type", "application/grpc");
    let whole = client.exchange(head.header("te", "trailers"), "\0\0\0\0\0").await;
    let of = |name: &str| {
        let trailer = whole.trailers.as_ref().and_then(|trailers| trailers.get(name)?.to_str().ok());
        trailer.or(whole.field(name)).unwrap_or_default().to_owned()
    };
    let (status, message) = (of("grpc-status"), of("grpc-message"));
    (whole, status, message)
}

#[tokio::test]
async fn an_abort_is_an_answer_that_says_what_it_is() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().upstream(&asked_for("abort = { status = 504 }")).start().await;

    assert_eq!(proxy.get("/").await.status, 200, "nobody asked for it");
    let answer = proxy.connect().await.exchange(&CHAOS.replace("Host", "X-Request-Id: hurt-1\r\nHost")).await;
    answer.must_be(504, "fault_injected");
    let mut http2 = Http2::connect(proxy.listener()).await;
    let request = http2.request("GET", "/").header("x-chaos", "on");
    let whole = http2.exchange(request, "").await;
    assert_eq!((whole.head.status.as_u16(), whole.reason().as_deref()), (504, Some("fault_injected")));

    assert_eq!(app.seen(), 1);
    let line = proxy.access_log("hurt-1").await;
    assert_eq!((&line["status"], &line["reason"]), (&504.into(), &"fault_injected".into()), "{line}");
    assert_eq!(injected(&proxy, "abort").await, 2.0);
    assert_eq!(proxy.metric("outrigger_attempts_total{upstream=app,outcome=fault_injected}").await, 2.0);
    proxy.metric_becomes("outrigger_requests_total{code=504,outcome=failed}", 2.0).await;
    proxy.rests().await;
}

/// `retries.rs` has this upstream by upstream; here one line stands for each.
#[tokio::test]
async fn retries_see_a_fault_as_their_upstreams() {
    let cases = [
        // fault                           retried for        the client gets
        ("abort = { status = 503 }", "503", 503),
        ("abort = { status = 502 }", "502", 502),
        ("reset = true", "upstream_reset", 502),
        ("truncate = \"1B\"", "upstream_reset", 502),
        ("delay = \"20s\"", "attempt_timeout", 504),
        ("slow_first_byte = \"20s\"", "attempt_timeout", 504),
    ];
    for (fault, reason, status) in cases {
        for http2 in [false, true] {
            let one = Upstream::that().answers(200).with_body("whole").start().await;
            let two = Http2Upstream::that().answers(200).with_field("content-length", "5").with_body("whole");
            let two = two.start().await;
            let config = if http2 { over_http2(&two) } else { Config::over([&one]) };
            let config = config.upstream("timeout = { attempt = \"100ms\" }");
            let config = config.upstream("retry = { attempts = 3, budget = { min_per_second = 100 } }");
            let proxy = config.upstream(&asked_for(fault)).start().await;

            let answer = proxy.connect().await.exchange(CHAOS).await;

            let why = format!("{fault}, HTTP/2 {http2}");
            let told = if status == 504 { "attempt_timeout" } else { "fault_injected" };
            answer.must_be_because(status, told, &why);
            let retries =
                proxy.metric(&format!("outrigger_retries_total{{upstream=app,reason={reason}}}")).await;
            assert_eq!(retries, 2.0, "{why}");
            assert_eq!(proxy.metric("outrigger_faults_injected_total").await, 3.0, "{why}");
            assert_eq!(proxy.get("/").await.status, 200, "{why}: others are served");
            nobody_is_under_it(&proxy).await;
        }
    }
}

#[tokio::test]
async fn what_a_fault_hits_by_chance_a_retry_makes_good() {
    let app = Upstream::that().answers(200).start().await;
    let retry = "retry = { attempts = 10, budget = { min_per_second = 1000 }, backoff = { base = \"1ms\" } }";
    // Of a request's attempts all ten are hit once in 240 million times: less than one run in a million has one such
    // among its 120, or none that is hit at all.
    let fault = for_all("abort = { ratio = 0.1 }, reset = { ratio = 0.05 }");
    let proxy = Config::over([&app])
        .upstream("breaker.mode = \"off\"")
        .upstream(retry)
        .upstream(&fault)
        .start()
        .await;
    let mut client = proxy.connect().await;
    for _ in 0..120 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    let retries = proxy.metric("outrigger_retries_total{upstream=app}").await;
    assert_eq!(retries, injected(&proxy, "abort").await + injected(&proxy, "reset").await);
    assert!(retries > 0.0);
    assert_eq!(app.seen(), 120, "what was hit did not go up");
}

#[tokio::test]
async fn a_fallback_stands_in_for_what_a_fault_did() {
    let app = Upstream::that().answers(200).with_body("whole").start().await;
    let fallback =
        "fallback = { on = [\"unreachable\", \"5xx\"], response = { status = 200, body = \"instead\" } }";
    let cases = [
        "abort = { status = 503 }",
        "abort = { status = 500 }",
        "reset = true",
        "truncate = \"1B\"",
        "delay = \"20s\"",
    ];
    for fault in cases {
        let config = Config::over([&app]).plain().within("300ms").upstream(fallback);
        let proxy = config.upstream(&asked_for(fault)).start().await;
        let answer = proxy.connect().await.exchange(CHAOS).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "instead"), "{fault}");
        assert_eq!(proxy.get("/").await.text(), "whole", "{fault}");
        nobody_is_under_it(&proxy).await;
    }
}

#[tokio::test]
async fn what_a_fault_answers_is_shared_with_nobody() {
    let app = Upstream::that().answers(200).with_body("whole").start().await;
    for fault in ["abort = { status = 404 }", "abort = { status = 503 }", "reset = true", "truncate = \"2B\""]
    {
        // The other one waits for the answer to the first, which is held back and then no answer of the upstream's.
        let config = Config::over([&app]).plain().upstream("fallback = { coalesce = true }");
        let proxy = config.upstream(&asked_for(&format!("delay = \"300ms\", {fault}"))).start().await;
        let mut hurt = proxy.connect().await;
        hurt.send(CHAOS).await;
        eventually("it is under it", async || told(&proxy, 0).await["active"] == 1).await;
        let mut other = proxy.connect().await;
        other.send(get("/")).await;
        let answer = hurt.response().await;
        assert!(!answer.whole || answer.is_for("fault_injected"), "{fault}: {answer:?}");
        let answer = other.response().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "whole"), "{fault}");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn aborts_open_the_breaker_and_it_closes_behind_them() {
    let app = Upstream::that().answers(200).start().await;
    let breaker = "breaker = { min_requests = 5, open_for = { base = \"300ms\" } }";
    let fault = for_all("abort = { status = 500 }");
    let proxy =
        Config::over([&app]).upstream("retry.attempts = 1").upstream(breaker).upstream(&fault).start().await;
    for _ in 0..5 {
        proxy.get("/").await.must_be(500, "fault_injected");
    }
    proxy.get("/").await.must_be(503, "breaker_open");
    assert_eq!(app.seen(), 0);

    assert_eq!(proxy.admin_send("DELETE", "/faults/app", "").await.status, 200);
    eventually("the breaker is closed again", async || {
        proxy.get("/").await;
        proxy.metric("outrigger_breaker_state{upstream=app,mode=enforce}").await == 0.0
    })
    .await;
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn a_delay_is_the_upstreams_latency() {
    let app = Upstream::that().answers(200).start().await;
    let two = Http2Upstream::that().answers(200).start().await;
    for config in [Config::over([&app]), over_http2(&two)] {
        for kind in ["delay", "slow_first_byte"] {
            let fault = asked_for(&format!("{kind} = {{ for = \"200ms\", jitter = \"20ms\" }}"));
            let proxy = config.clone().upstream(&fault).start().await;
            for number in 1..3 {
                let start = Instant::now();
                assert_eq!(proxy.connect().await.exchange(CHAOS).await.status, 200, "{kind}");
                assert!(start.elapsed() >= Duration::from_millis(200), "{kind}: {:?}", start.elapsed());
                let sum = proxy.metric("outrigger_attempt_duration_seconds_sum{upstream=app}").await;
                assert!((0.19..0.5).contains(&(sum / f64::from(number))), "{kind}: {sum} s in all");
            }
            assert_eq!(injected(&proxy, kind).await, 2.0);
        }
    }
}

#[tokio::test]
async fn a_hedge_overtakes_what_a_fault_holds_back() {
    let (one, two) =
        (Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await);
    for kind in ["delay", "slow_first_byte"] {
        let hedge = "hedge = { mode = \"enforce\", after = \"50ms\", budget = 1.0 }";
        // The hedge finds the only place taken.
        let fault = asked_for(&format!("{kind} = \"5s\", max_active = 1"));
        let proxy = Config::over([&one, &two]).upstream(hedge).upstream(&fault).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..50 {
            assert_eq!(client.exchange(&get("/")).await.status, 200, "{kind}");
        }
        let start = Instant::now();
        assert_eq!(proxy.connect().await.exchange(CHAOS).await.status, 200, "{kind}");
        assert!(start.elapsed() < Duration::from_secs(3), "{kind}: {:?}", start.elapsed());
        assert_eq!(proxy.metric("outrigger_hedges_total{upstream=app,winner=hedge}").await, 1.0, "{kind}");
        nobody_is_under_it(&proxy).await;
    }
}

#[tokio::test]
async fn a_delay_ends_with_the_deadline() {
    let app = Upstream::that().answers(200).start().await;
    for fault in ["delay = \"20s\"", "slow_first_byte = \"20s\""] {
        let proxy = Config::over([&app]).plain().upstream(&asked_for(fault)).start().await;
        let start = Instant::now();
        let request = CHAOS.replace("Host", "X-Request-Timeout-Ms: 200\r\nHost");
        proxy.connect().await.exchange(&request).await.must_be_because(504, "deadline_exceeded", fault);
        assert!(start.elapsed() < Duration::from_secs(5), "{fault}: {:?}", start.elapsed());
        nobody_is_under_it(&proxy).await;
    }
}

#[tokio::test]
async fn a_truncated_body_breaks_off_where_it_says() {
    let body = "x".repeat(100 << 10);
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let chunked = Upstream::that().answers_raw(chunked).start().await;
    let two = Http2Upstream::that().answers(200).with_body(body.as_bytes()).start().await;
    for (why, config) in [
        ("by length", Config::over([&app])),
        ("in chunks", Config::over([&chunked])),
        ("HTTP/2", over_http2(&two)),
    ] {
        let proxy = config.upstream(&asked_for("truncate = \"40KiB\"")).start().await;
        let answer =
            proxy.connect().await.exchange(&CHAOS.replace("Host", "X-Request-Id: cut-1\r\nHost")).await;
        assert_eq!((answer.status, answer.whole, answer.body.len()), (200, false, 40 << 10), "{why}");
        let line = proxy.access_log("cut-1").await;
        assert_eq!(line["reason"], "fault_injected", "{why}: {line}");

        let mut client = Http2::connect(proxy.listener()).await;
        let request =
            client.request("GET", "/").header("x-chaos", "on").body(RequestBody::Left(Default::default()));
        // A reset may overtake the head.
        if let Ok(response) = client.send(request.expect("a request")).await {
            assert!(read(response).await.is_err(), "{why}: half a message never looks whole");
        }

        assert_eq!(injected(&proxy, "truncate").await, 2.0, "{why}");
        assert_eq!(proxy.metric("outrigger_attempts_total{outcome=fault_injected}").await, 2.0, "{why}");
        let whole = proxy.get("/").await;
        assert_eq!((whole.whole, whole.body.len()), (true, 100 << 10), "{why}: others get all of it");
        nobody_is_under_it(&proxy).await;
    }
}

#[tokio::test]
async fn what_is_shorter_than_its_cut_comes_whole() {
    let app = Upstream::that().answers(200).with_body("12345").start().await;
    let proxy = Config::over([&app]).upstream(&asked_for("truncate = \"5B\"")).start().await;
    assert_eq!(proxy.connect().await.exchange(CHAOS).await.text(), "12345");
    assert_eq!(injected(&proxy, "truncate").await, 0.0);
}

#[tokio::test]
async fn a_body_crawls_at_its_rate() {
    let body = "x".repeat(40 << 10);
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    let two = Http2Upstream::that().answers(200).with_body(body.as_bytes()).start().await;
    for (why, config) in [("HTTP/1", Config::over([&app])), ("HTTP/2", over_http2(&two))] {
        let proxy = config.upstream(&asked_for("bandwidth = \"40KiB/s\"")).start().await;
        let start = Instant::now();
        let answer = proxy.connect().await.exchange(CHAOS).await;
        assert_eq!((answer.whole, answer.text().len()), (true, 40 << 10), "{why}");
        let took = start.elapsed();
        assert!(took > Duration::from_millis(850) && took < Duration::from_secs(5), "{why}: {took:?}");

        let start = Instant::now();
        let mut client = Http2::connect(proxy.listener()).await;
        let request = client.request("GET", "/").header("x-chaos", "on");
        assert_eq!(client.exchange(request, "").await.body.len(), 40 << 10, "{why}");
        assert!(start.elapsed() > Duration::from_millis(850), "{why}: {:?}", start.elapsed());
        assert_eq!(injected(&proxy, "bandwidth").await, 2.0, "{why}");
        nobody_is_under_it(&proxy).await;
    }
}

#[tokio::test]
async fn calls_of_grpc_are_hurt_in_their_own_words() {
    let app = Http2Upstream::that().answers_grpc(100, 0).start().await;
    let cases = [
        // fault                                                     status  message
        ("abort = { status = 503 }", "14", "fault_injected"),
        ("abort = { status = 500 }", "2", "fault_injected"),
        ("abort = { grpc = \"RESOURCE_EXHAUSTED\" }", "8", "fault_injected"),
        ("reset = true", "14", "fault_injected"),
        ("truncate = \"20B\"", "14", "fault_injected"),
        ("bandwidth = \"1MiB/s\"", "0", ""),
        ("delay = \"10ms\"", "0", ""),
    ];
    for (fault, status, message) in cases {
        let proxy = over_http2(&app).plain().upstream(&for_all(fault)).start().await;
        let (whole, said, why) = call(&proxy).await;
        assert_eq!((whole.head.status.as_u16(), said.as_str()), (200, status), "{fault}: {why}");
        assert!(why.starts_with(message), "{fault}: {why}");
        assert_eq!(proxy.metric("outrigger_faults_injected_total").await, 1.0, "{fault}");
        nobody_is_under_it(&proxy).await;
    }

    let retried = "retry = { attempts = 3, grpc_methods = [\"pkg.Echo/*\"] }";
    let proxy = over_http2(&app).upstream(retried).upstream(&for_all("abort = {}")).start().await;
    assert_eq!(call(&proxy).await.1, "14");
    assert_eq!(proxy.metric("outrigger_retries_total{reason=UNAVAILABLE}").await, 2.0);
}

#[tokio::test]
async fn no_more_than_max_active_are_hurt_at_once_and_each_place_comes_back() {
    let body = "x".repeat(256 << 10);
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    for fault in ["delay = \"30s\"", "slow_first_byte = \"30s\"", "bandwidth = \"10KiB/s\""] {
        let config = Config::over([&app]).plain().upstream("timeout.request = \"60s\"");
        let proxy = config.upstream(&asked_for(&format!("{fault}, max_active = 2"))).start().await;
        for exit in ["closes", "resets"] {
            let mut clients = Vec::new();
            for _ in 0..2 {
                let mut client = proxy.connect().await;
                client.send(CHAOS).await;
                clients.push(client);
            }
            eventually("two are under it", async || told(&proxy, 0).await["active"] == 2).await;
            let before = proxy.metric("outrigger_limit_reached_total{what=active_faults}").await;
            let start = Instant::now();
            assert!(proxy.connect().await.exchange(CHAOS).await.whole, "{fault}: the third goes on unhurt");
            assert!(start.elapsed() < Duration::from_secs(5), "{fault}: {:?}", start.elapsed());
            let after = proxy.metric("outrigger_limit_reached_total{what=active_faults}").await;
            assert_eq!(after - before, 1.0, "{fault}");
            for client in clients {
                if exit == "resets" { client.reset() } else { drop(client) }
            }
            nobody_is_under_it(&proxy).await;
        }
        let mut http2 = Http2::connect(proxy.listener()).await;
        let request =
            http2.request("GET", "/").header("x-chaos", "on").body(RequestBody::Left(Default::default()));
        let leaving = tokio::spawn(async move { http2.send(request.expect("a request")).await.map(drop) });
        eventually("one is under it", async || told(&proxy, 0).await["injected"] == 5).await;
        leaving.abort();
        nobody_is_under_it(&proxy).await;
    }
}

/// Else a few event streams would end the fault for all others, unseen, for as long as they run.
#[tokio::test]
async fn a_stream_that_crawls_leaves_its_place_to_others() {
    let events = "data: 1\n\n".repeat(4 << 10);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let app = Upstream::that().answers_raw(format!("{head}{events}")).then_hangs().start().await;
    let fault = asked_for("bandwidth = \"1KiB/s\", max_active = 1");
    let proxy = Config::over([&app]).plain().upstream(&fault).start().await;
    let mut streams = Vec::new();
    for number in 1..=3u32 {
        let mut stream = proxy.connect().await;
        stream.send(CHAOS).await;
        stream.head().await.expect("a head");
        eventually("it is a stream under the fault", async || {
            let told = told(&proxy, 0).await;
            told["injected"] == number && told["active"] == 0
        })
        .await;
        streams.push(stream);
    }
    let last = Instant::now();
    for stream in streams.iter_mut().rev() {
        stream.bytes(600).await;
        assert!(last.elapsed() > Duration::from_millis(300), "it still crawls: {:?}", last.elapsed());
    }
    assert_eq!(proxy.admin_send("DELETE", "/faults/app", "").await.status, 200);
    for stream in &mut streams {
        stream.bytes(events.len() - 600).await;
    }
    assert_eq!(proxy.metric("outrigger_limit_reached_total{what=active_faults}").await, 0.0);
    drop(streams);
    nobody_is_under_it(&proxy).await;
}

#[tokio::test]
async fn what_is_critical_is_spared_unless_it_is_named() {
    let app = Upstream::that().answers(200).start().await;
    let asks = |priority: &str| get("/").replace("Host", &format!("X-Priority: {priority}\r\nHost"));
    for (matches, critical, low) in [("", 200, 503), (", match = { priority = [\"critical\"] }", 503, 200)] {
        let fault = for_all(&format!("abort = {{}}{matches}"));
        let proxy = Config::over([&app]).plain().upstream(&fault).start().await;
        assert_eq!(proxy.connect().await.exchange(&asks("critical")).await.status, critical, "{matches}");
        assert_eq!(proxy.connect().await.exchange(&asks("low")).await.status, low, "{matches}");
    }
}

#[tokio::test]
async fn a_header_of_somebody_untrusted_asks_for_nothing() {
    let app = Upstream::that().answers(200).start().await;
    let config = Config::over([&app]).plain().upstream(&asked_for("abort = {}"));
    let proxy = config.listener("trust = \"none\"").start().await;
    let request = CHAOS.replace("Host", "X-Envoy-Fault-Abort-Request: 503\r\nX-Chaosnote: kept\r\nHost");
    assert_eq!(proxy.connect().await.exchange(&request).await.status, 200);
    let up = app.request(0);
    assert_eq!((up.field("x-chaos"), up.field("x-envoy-fault-abort-request")), (None, None), "{}", up.head);
    assert_eq!(up.field("x-chaosnote"), Some("kept"), "{}", up.head);
    assert_eq!(told(&proxy, 0).await["matched"], 0);
}

#[tokio::test]
async fn a_fault_ends_by_itself_and_a_reload_gives_it_no_more_time() {
    let app = Upstream::that().answers(200).start().await;
    let config = Config::over([&app]).plain().upstream(&for_all("abort = {}, for = \"2s\""));
    let proxy = config.start().await;
    let start = Instant::now();
    proxy.get("/").await.must_be(503, "fault_injected");
    tokio::time::sleep(Duration::from_millis(300)).await;

    proxy.rewrite(&config.clone().and("# the same").text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    let left = told(&proxy, 0).await["ends_in_ms"].as_u64().expect("it lasts");
    assert!(left <= 1700, "{left} ms are left");

    eventually("it has ended", async || proxy.get("/").await.status == 200).await;
    assert!(start.elapsed() >= Duration::from_millis(1700), "{:?}", start.elapsed());
    let ended = told(&proxy, 0).await;
    assert_eq!((&ended["state"], &ended["why"]), (&"ended".into(), &"its time is over".into()), "{ended}");
    eventually("the log says so", async || {
        proxy.lines().iter().any(|line| line.contains("a fault has ended: its time is over"))
    })
    .await;

    proxy.rewrite(&config.clone().and("# still the same").text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(proxy.get("/").await.status, 200, "it stays ended");
    let changed = Config::over([&app]).plain().upstream(&for_all("abort = {}, for = \"1m\""));
    proxy.rewrite(&changed.text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(proxy.get("/").await.status, 503, "another one is a new one");
}

#[tokio::test]
async fn a_fault_stops_before_it_adds_to_a_failure() {
    let (one, two) = (Upstream::that().answers(200).start().await, Upstream::refusing());
    let proxy = Config::over([&one, &two]).plain().upstream(&for_all("delay = \"1ms\"")).start().await;
    assert_eq!(told(&proxy, 0).await["state"], "in_force");
    // An endpoint that refuses is ejected, and one of two is left.
    eventually("it has ended", async || {
        proxy.get("/").await;
        told(&proxy, 0).await["state"] == "ended"
    })
    .await;
    let ended = told(&proxy, 0).await;
    assert_eq!(ended["why"], "fewer than two of several endpoints are healthy", "{ended}");
    let before = injected(&proxy, "delay").await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(injected(&proxy, "delay").await, before);
    let event = "a fault has ended: fewer than two of several endpoints are healthy";
    eventually("the log says so", async || proxy.lines().iter().any(|line| line.contains(event))).await;
}

#[tokio::test]
async fn the_admin_api_puts_shows_and_ends_faults() {
    let app = Upstream::that().answers(200).start().await;
    let config = Config::over([&app]).plain();
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(told(&proxy, 0).await, serde_json::Value::Null, "there is none");

    let put =
        proxy.admin_send("PUT", "/faults/app", "{\"abort\": {\"status\": 500}, \"allow_wide\": true}").await;
    assert_eq!(put.status, 200, "{}", put.text());
    proxy.get("/").await.must_be(500, "fault_injected");

    proxy.rewrite(&config.clone().and("[defaults.timeout]\nidle = \"20s\"").text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    proxy.get("/").await.must_be(500, "fault_injected");
    let first = told(&proxy, 0).await;
    assert_eq!((&first["from"], &first["injected"]), (&"the admin API".into(), &2.into()), "{first}");
    assert!(first["ends_in_ms"].as_u64().is_some_and(|left| left < 600_000), "{first}");

    let put =
        proxy.admin_send("PUT", "/faults/app", "abort.status = 502\nallow_wide = true\nfor = \"1s\"").await;
    assert_eq!(put.status, 200, "{}", put.text());
    proxy.get("/").await.must_be(502, "fault_injected");
    eventually("it has ended", async || proxy.get("/").await.status == 200).await;

    for (body, status, says) in [
        ("abort = {}", 422, "allow_wide = true"),
        ("abrot = {}", 422, "did you mean `abort`?"),
        ("abort = {", 400, "error"),
        ("{\"abort\": 1}", 422, "a table is needed"),
    ] {
        let answer = proxy.admin_send("PUT", "/faults/app", body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.text().contains(says), "{body}: {}", answer.text());
    }
    let answer = proxy.admin_send("PUT", "/faults/other", "abort.ratio = 0.1").await;
    assert_eq!((answer.status, answer.text().contains("[\"app\"]")), (404, true), "{}", answer.text());
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn a_fault_that_was_put_lives_beside_that_of_the_file() {
    let app = Upstream::that().answers(200).start().await;
    let config = Config::over([&app]).plain().upstream(&asked_for("abort = { status = 501 }"));
    let proxy = config.start().await;
    let put = "abort.status = 502\nmatch = { methods = [\"HEAD\"], headers = { x-other = \"1\" } }";
    assert_eq!(proxy.admin_send("PUT", "/faults/app", put).await.status, 200);
    proxy.connect().await.exchange(CHAOS).await.must_be(501, "fault_injected");
    let other = CHAOS.replace("GET", "HEAD").replace("Host", "X-Other: 1\r\nHost");
    assert_eq!(proxy.connect().await.exchange(&other).await.status, 502, "what was put is asked first");

    // The off switch holds for both, whatever else is reloaded.
    assert_eq!(proxy.admin_send("DELETE", "/faults/app", "").await.status, 200);
    for number in 0..2 {
        assert_eq!(proxy.connect().await.exchange(CHAOS).await.status, 200, "{number} reloads");
        assert_eq!(told(&proxy, 1).await["why"], "switched off by the admin API");
        proxy.rewrite(&config.clone().and("[defaults.timeout]\nidle = \"20s\"").text());
        assert_eq!(proxy.admin_post("/reload").await.status, 200);
    }
    let changed = Config::over([&app]).plain().upstream(&asked_for("abort = { status = 503 }"));
    proxy.rewrite(&changed.text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    proxy.connect().await.exchange(CHAOS).await.must_be(503, "fault_injected");
}

#[tokio::test]
async fn the_off_switch_lets_go_whoever_is_under_a_fault_also_in_a_drain() {
    let body = "x".repeat(256 << 10);
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    for fault in ["delay = \"60s\"", "slow_first_byte = \"60s\"", "bandwidth = \"1KiB/s\""] {
        let config =
            Config::over([&app]).plain().upstream("timeout.request = \"60s\"").upstream(&for_all(fault));
        let mut proxy = config.and("[server]\ndrain_timeout = \"60s\"").start().await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = proxy.connect().await;
            client.send(get("/")).await;
            clients.push(client);
        }
        eventually("all are under it", async || told(&proxy, 0).await["active"] == 20).await;
        proxy.signal(rustix::process::Signal::TERM);
        eventually("it drains", async || proxy.admin_get("/readyz").await.status == 503).await;

        let start = Instant::now();
        assert_eq!(proxy.admin_send("DELETE", "/faults/app", "").await.status, 200, "{fault}");
        for client in &mut clients {
            assert!(client.response().await.whole, "{fault}");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{fault}: {:?}", start.elapsed());
        drop(clients);
        assert_eq!(proxy.ends().await, Some(0), "{fault}");
    }
}

#[tokio::test]
async fn a_route_has_faults_of_its_own() {
    let app = Upstream::that().answers(200).start().await;
    let config = Config::over([&app]).plain().upstream(&for_all("abort = { status = 500 }"));
    let proxy = config
        .and("[[listener.route]]\nname = \"spared\"\nmatch = { path_prefix = \"/spared\" }\nupstream = \"app\"\nfault = { mode = \"off\" }")
        .and("[[listener.route]]\nname = \"other\"\nmatch = { path_prefix = \"/other\" }\nupstream = \"app\"\nfault = { abort = { status = 501 } }")
        .start()
        .await;
    assert_eq!(proxy.get("/spared").await.status, 200);
    proxy.get("/other").await.must_be(501, "fault_injected");
    proxy.get("/").await.must_be(500, "fault_injected");
    let route = told(&proxy, 1).await;
    assert_eq!(route["from"], "route other of listener main", "{route}");
}

#[tokio::test]
async fn a_body_that_still_comes_is_no_hindrance() {
    let app = Upstream::that().answers(200).start().await;
    for (fault, status) in [("abort = {}", 503), ("reset = true", 502)] {
        let proxy = Config::over([&app]).plain().upstream(&for_all(fault)).start().await;
        let mut client = proxy.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await;
        client.response_to("POST").await.must_be_because(status, "fault_injected", fault);
        let whole = client::post("/", "hello");
        proxy.connect().await.exchange(&whole).await.must_be_because(status, "fault_injected", fault);
        proxy.rests().await;
    }
    assert_eq!(app.seen(), 0);
}
