//! Every answer that Outrigger makes itself: its form, and the same word in response, metric and access log.

use std::time::Duration;

use crate::support::http2::Http2;
use crate::support::*;

/// How a reason is brought about.
struct Scene {
    reason: &'static str,
    status: u16,
    /// The status of gRPC.
    grpc: u8,
    upstream: Upstream,
    config: Config,
    /// The request, without its last empty line.
    request: String,
    /// A request that takes the only slot first, and another that waits first.
    before: usize,
    retry_after: bool,
}

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n";

impl Scene {
    fn new(
        reason: &'static str,
        status: u16,
        grpc: u8,
        upstream: Upstream,
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        let config = change(Config::over([&upstream]).http1());
        Self {
            reason,
            status,
            grpc,
            upstream,
            config,
            request: GET.to_owned(),
            before: 0,
            retry_after: false,
        }
    }

    fn asked_by(mut self, request: impl Into<String>) -> Self {
        self.request = request.into();
        self
    }

    fn behind(mut self, before: usize) -> Self {
        self.before = before;
        self
    }

    fn with_retry_after(mut self) -> Self {
        self.retry_after = true;
        self
    }

    /// Runs the proxy and brings the scene about; the clients before the one that counts are kept.
    async fn set(&self) -> (Proxy, Vec<Client>) {
        let proxy = self.config.start().await;
        if self.reason == "breaker_open" {
            for _ in 0..2 {
                proxy.get("/").await;
            }
        }
        let mut clients = Vec::new();
        for number in 0..self.before {
            let mut client = proxy.connect().await;
            client.send(get("/before")).await;
            if number == 0 {
                self.upstream.has_seen(1).await;
            } else {
                proxy.metric_becomes("outrigger_queue_depth", number as f64).await;
            }
            clients.push(client);
        }
        (proxy, clients)
    }
}

fn one_slot(queue: &'static str) -> impl FnOnce(Config) -> Config {
    move |config| {
        let config = config.plain().upstream("concurrency.limit = { kind = \"fixed\", max = 1 }");
        config.upstream(&format!("concurrency.queue = {queue}"))
    }
}

/// Every reason that can be brought about from outside.
async fn scenes() -> Vec<Scene> {
    let silent = || Upstream::that().never_answers();
    let well = || Upstream::that().answers(200);
    let plain = |config: Config| config.plain();
    vec![
        Scene::new("no_route", 404, 12, well().start().await, |config| {
            config
                .routes_only()
                .and("[[listener.route]]\nmatch = { path_prefix = \"/a/\" }\nupstream = \"app\"")
        }),
        Scene::new("breaker_open", 503, 14, Upstream::that().answers(500).start().await, |config| {
            config
                .upstream("retry.attempts = 1")
                .upstream("breaker = { min_requests = 2, open_for = { base = \"30s\" } }")
        })
        .with_retry_after(),
        Scene::new("concurrency_limited", 503, 14, silent().start().await, one_slot("{ size = 0 }"))
            .behind(1),
        Scene::new(
            "queue_full",
            503,
            14,
            silent().start().await,
            one_slot("{ size = 1, timeout = \"20s\" }"),
        )
        .behind(2),
        Scene::new("queue_timeout", 503, 14, silent().start().await, one_slot("{ timeout = \"100ms\" }"))
            .behind(1),
        Scene::new("connect_error", 502, 14, Upstream::refusing(), plain),
        Scene::new("upstream_reset", 502, 14, Upstream::that().resets_before_the_head().start().await, plain),
        Scene::new(
            "protocol_error",
            502,
            14,
            Upstream::that().answers_raw("x\r\n\r\n").then_closes().start().await,
            plain,
        ),
        Scene::new("attempt_timeout", 504, 4, silent().start().await, |config| {
            config.plain().upstream("timeout.attempt = \"100ms\"")
        }),
        Scene::new("request_timeout", 504, 4, silent().start().await, |config| {
            config.plain().within("100ms")
        }),
        Scene::new("deadline_exceeded", 504, 4, silent().start().await, plain)
            .asked_by(format!("{GET}X-Request-Timeout-Ms: 100\r\ngrpc-timeout: 100m\r\n")),
        Scene::new("client_stalled", 408, 1, well().start().await, |config| {
            config.plain().upstream("timeout.idle = \"100ms\"\ntimeout.stream_idle = \"100ms\"")
        })
        .asked_by("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 10\r\n"),
        Scene::new("body_too_large", 413, 8, well().start().await, |config| {
            config.plain().listener("limits = { max_body = \"1B\" }")
        })
        .asked_by("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 10\r\n"),
        Scene::new("method_not_allowed", 405, 12, well().start().await, plain)
            .asked_by("TRACE / HTTP/1.1\r\nHost: app.test\r\n"),
        Scene::new("loop_detected", 508, 13, well().start().await, plain)
            .asked_by(format!("{GET}X-Outrigger-Path: {}\r\n", vec!["0123abcd"; 17].join(", "))),
    ]
}

#[tokio::test]
async fn the_same_word_stands_in_response_metric_and_log() {
    for scene in scenes().await {
        let Scene { reason, status, .. } = scene;
        let (proxy, _before) = scene.set().await;

        let id = format!("id-of-{reason}");
        let mut client = proxy.connect().await;
        client.send(format!("{}X-Request-Id: {id}\r\n\r\n", scene.request)).await;
        let response = client.response().await;

        response.must_be_because(status, reason, reason);
        let problem = response.problem().expect("it is one");
        assert_eq!(problem["request_id"], id.as_str(), "{reason}");
        if scene.retry_after {
            let after = response.field("retry-after").unwrap_or_else(|| panic!("{reason}: Retry-After"));
            assert!(after.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{reason}: {after}");
        }

        eventually(&format!("{reason} stands in a metric, and {status} too"), async || {
            let metrics = proxy.metrics().await;
            let counted = metrics.sum(&format!("outrigger_rejected_total{{reason={reason}}}"))
                + metrics.sum(&format!("outrigger_attempts_total{{outcome={reason}}}"));
            let answered = metrics.sum(&format!("outrigger_requests_total{{code={status}}}"))
                + metrics.sum("outrigger_requests_total{code=other}");
            counted >= 1.0 && answered >= 1.0
        })
        .await;

        let line = proxy.access_log(&id).await;
        assert_eq!((&line["reason"], &line["status"]), (&reason.into(), &status.into()), "{line}");
    }
}

#[tokio::test]
async fn grpc_requests_are_answered_in_grpc() {
    for scene in scenes().await {
        let Scene { reason, grpc, .. } = scene;
        if ["method_not_allowed", "no_route"].contains(&reason) {
            // TRACE is no gRPC, and the route's story needs no second telling below.
            continue;
        }
        let (proxy, _before) = scene.set().await;

        let request = scene.request.replacen("GET", "POST", 1);
        let length = if request.contains("Content-Length") { "" } else { "Content-Length: 0\r\n" };
        let mut client = proxy.connect().await;
        client
            .send(format!("{request}{length}Content-Type: application/grpc+proto\r\nTE: trailers\r\n\r\n"))
            .await;
        let response = client.response().await;

        assert_eq!(response.status, 200, "{reason}: {response:?}");
        assert_eq!(response.field("grpc-status"), Some(grpc.to_string().as_str()), "{reason}: {response:?}");
        assert!(response.field("grpc-message").is_some_and(|message| !message.is_empty()), "{reason}");
        assert!(
            response.field("content-type").is_some_and(|kind| kind.starts_with("application/grpc")),
            "{reason}"
        );
        assert!(response.body.is_empty(), "{reason}");
        let details = format!("details=\"{reason}\"");
        assert!(response.field("proxy-status").is_some_and(|status| status.ends_with(&details)), "{reason}");
        if scene.retry_after {
            let pushback =
                response.field("grpc-retry-pushback-ms").unwrap_or_else(|| panic!("{reason}: pushback"));
            assert!(pushback.parse::<u64>().is_ok_and(|millis| millis > 0), "{reason}: {pushback}");
        }
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let app = Upstream::refusing();
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;

    let response = client.exchange("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.status, 502);
    assert!(response.field("proxy-status").is_some_and(|status| status.contains("connect_error")));

    // Were there a body, it would be read as this one's head.
    client.exchange(&get("/")).await.must_be(502, "connect_error");
}

#[tokio::test]
async fn a_connection_goes_on_behind_an_own_answer() {
    let app = Upstream::that().resets_before_the_head().answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;

    let response = client.exchange(&client::post("/", "a body that was read")).await;
    response.must_be(502, "upstream_reset");
    assert_eq!(client.exchange(&get("/")).await.text(), "hello");
}

#[tokio::test]
async fn an_id_of_odd_characters_cannot_break_the_answers_form() {
    let app = Upstream::refusing();
    let proxy = Config::over([&app]).plain().start().await;
    for id in ["\"quoted\"", "back\\slash", "{\"reason\":1}", "</script>"] {
        let request = format!("GET /?\\ HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n");
        let mut client = proxy.connect().await;
        client.send(request).await;
        let response = client.response().await;
        assert!(response.problem().is_some(), "{id}: {response:?}");
    }
    // One line for each, and each of them is JSON.
    eventually("four lines of access log", async || {
        let lines = proxy.lines();
        let lines = lines.iter().filter(|line| line.starts_with('{'));
        let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        lines.filter(|line| line["status"] == 502).count() == 4
    })
    .await;
}

#[tokio::test]
async fn the_access_log_tells_what_happened() {
    let app = Upstream::that().answers(503).answers(200).with_body("hello").start().await;
    let proxy = Config::over([&app]).start().await;

    let request = "GET /some/path?q=%22 HTTP/1.1\r\nHost: a\r\nX-Request-Id: it-is-told\r\n\r\n";
    assert_eq!(proxy.connect().await.exchange(request).await.status, 200);

    let line = proxy.access_log("it-is-told").await;
    let told = line.to_string();
    assert_eq!((&line["request_id"], &line["status"]), (&"it-is-told".into(), &200.into()), "{line}");
    assert_eq!((&line["upstream"], &line["attempts"]), (&"app".into(), &2.into()), "{line}");
    assert_eq!((&line["route"], &line["listener"]), (&"default".into(), &"main".into()), "{line}");
    assert_eq!(line["endpoint"], app.address().to_string(), "{line}");
    assert!(told.contains("/some/path?q=%22"), "{line}");
}

#[tokio::test]
async fn only_failures_are_logged_by_default() {
    let app = Upstream::that().answers(200).answers(404).answers(503).answers(200).answers(501).start().await;
    let proxy =
        Proxy::start(&Config::over([&app]).text().replace("only = \"all\"", "only = \"failures\"")).await;
    for id in ["well", "not-found", "retried", "failed"] {
        proxy
            .connect()
            .await
            .exchange(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n"))
            .await;
    }
    assert_eq!(proxy.access_log("\"failed\"").await["status"], 501);
    assert_eq!(proxy.access_log("\"retried\"").await["attempts"], 2);
    assert!(!proxy.lines().iter().any(|line| line.contains("\"well\"")), "{:#?}", proxy.lines());
}

#[tokio::test]
async fn every_series_exists_from_the_start() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let metrics = proxy.metrics().await;

    let series = [
        "outrigger_request_duration_seconds_count{upstream=app,outcome=ok}",
        "outrigger_request_duration_seconds_count{upstream=app,outcome=client_error}",
        "outrigger_request_duration_seconds_count{upstream=app,outcome=server_error}",
        "outrigger_request_duration_seconds_count{upstream=app,outcome=rejected}",
        "outrigger_request_duration_seconds_count{upstream=app,outcome=failed}",
        "outrigger_request_duration_seconds_count{upstream=app,outcome=cancelled}",
        "outrigger_response_duration_seconds_count{upstream=app}",
        "outrigger_attempts_total{upstream=app,outcome=ok}",
        "outrigger_attempts_total{upstream=app,outcome=4xx}",
        "outrigger_attempts_total{upstream=app,outcome=5xx}",
        "outrigger_attempts_total{upstream=app,outcome=connect_error}",
        "outrigger_attempts_total{upstream=app,outcome=upstream_reset}",
        "outrigger_attempts_total{upstream=app,outcome=protocol_error}",
        "outrigger_attempts_total{upstream=app,outcome=attempt_timeout}",
        "outrigger_attempt_duration_seconds_count{upstream=app}",
        "outrigger_retries_total{upstream=app,reason=connect_error}",
        "outrigger_retries_total{upstream=app,reason=503}",
        "outrigger_breaker_state{upstream=app,mode=enforce}",
        "outrigger_breaker_transitions_total{upstream=app,to=open}",
        "outrigger_concurrency_limit{upstream=app}",
        "outrigger_concurrency_in_flight{upstream=app}",
        "outrigger_streams{upstream=app}",
        "outrigger_queue_depth{upstream=app}",
        "outrigger_queue_wait_seconds_count{upstream=app}",
        "outrigger_rejected_total{upstream=app,reason=breaker_open,mode=enforce}",
        "outrigger_rejected_total{upstream=app,reason=breaker_open,mode=shadow}",
        "outrigger_rejected_total{upstream=app,reason=queue_full,mode=enforce}",
        "outrigger_client_connections{listener=main}",
        "outrigger_config_last_reload_successful",
        "outrigger_config_last_reload_success_timestamp_seconds",
        "outrigger_log_dropped_total",
        "outrigger_overhead_seconds_count",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ];
    let missing: Vec<_> = series.into_iter().filter(|series| metrics.count(series) != 1).collect();
    assert!(missing.is_empty(), "missing, or there twice: {missing:#?}");
    for family in [
        "outrigger_limit_reached_total",
        "outrigger_upstream_connects_total{upstream=app}",
        "outrigger_config_reloads_total",
        "outrigger_config_info",
        "outrigger_build_info{version=0.1.0}",
    ] {
        assert!(metrics.count(family) > 0, "{family}");
    }
    for reason in [
        "budget",
        "yield",
        "concurrency",
        "body_too_large",
        "buffer_memory",
        "deadline",
        "method",
        "caller_retries",
        "pushback",
        "breaker",
        "attempts",
        "head_sent",
    ] {
        let series = format!("outrigger_retries_skipped_total{{upstream=app,reason={reason}}}");
        assert_eq!(metrics.count(&series), 1, "{series}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_their_outcome() {
    // The reset comes first, on a fresh connection: on a kept one it would be the stale race, and made good.
    let app = Upstream::that()
        .resets_before_the_head()
        .answers(200)
        .answers(404)
        .answers(500)
        .answers(299)
        .start()
        .await;
    let proxy = Config::over([&app]).plain().start().await;
    for _ in 0..5 {
        proxy.get("/").await;
    }

    // The last that is written of a request.
    proxy.metric_becomes("outrigger_response_duration_seconds_count{upstream=app}", 5.0).await;
    let metrics = proxy.metrics().await;
    let cases = [
        ("code=200,outcome=ok", 1.0),
        ("code=404,outcome=client_error", 1.0),
        ("code=500,outcome=server_error", 1.0),
        ("code=502,outcome=failed", 1.0),
        ("code=other,outcome=ok", 1.0),
    ];
    for (labels, count) in cases {
        let series = format!("outrigger_requests_total{{listener=main,route=default,upstream=app,{labels}}}");
        let lines = proxy.admin_get("/metrics").await.text();
        let lines: Vec<_> =
            lines.lines().filter(|line| line.starts_with("outrigger_requests_total")).collect();
        assert_eq!(metrics.sum(&series), count, "{series}: {lines:#?}");
    }
    for (outcome, count) in [("ok", 2.0), ("4xx", 1.0), ("5xx", 1.0), ("upstream_reset", 1.0)] {
        assert_eq!(
            metrics.sum(&format!("outrigger_attempts_total{{upstream=app,outcome={outcome}}}")),
            count,
            "{outcome}"
        );
        let series = format!(
            "outrigger_endpoint_attempts_total{{upstream=app,endpoint={},outcome={outcome}}}",
            app.address()
        );
        assert_eq!(metrics.sum(&series), count, "{series}");
    }
    assert_eq!(metrics.sum("outrigger_request_duration_seconds_count{upstream=app}"), 5.0);
    assert_eq!(metrics.sum("outrigger_attempt_duration_seconds_count{upstream=app}"), 5.0);
}

#[tokio::test]
async fn unrouted_requests_have_no_upstream() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app])
        .routes_only()
        .and("[[listener.route]]\nname = \"a\"\nmatch = { path_prefix = \"/a/\" }\nupstream = \"app\"")
        .start()
        .await;
    proxy.get("/b").await.must_be(404, "no_route");
    assert_eq!(Http2::connect(proxy.listener()).await.get("/b").await.head.status, 404);
    assert_eq!(proxy.get("/a/").await.status, 200);

    proxy.metric_becomes("outrigger_requests_total{upstream=,code=404}", 2.0).await;
    proxy.metric_becomes("outrigger_requests_total{upstream=app,route=a,code=200}", 1.0).await;
    proxy.metric_becomes("outrigger_rejected_total{upstream=,reason=no_route}", 2.0).await;
    assert_eq!(proxy.metric("outrigger_requests_total").await, 3.0);
}

#[tokio::test]
async fn an_own_answer_comes_while_the_body_is_still_being_sent() {
    let app = Upstream::that().never_answers().start().await;
    let proxy = Config::over([&app]).plain().upstream("concurrency.limit = { kind = \"fixed\", max = 1 }");
    let proxy = proxy.upstream("concurrency.queue = { size = 0 }").start().await;
    let mut holder = proxy.connect().await;
    holder.send(get("/")).await;
    app.has_seen(1).await;

    // Larger than all socket buffers: unless it is read on for a moment, a reset swallows the answer.
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").await;
    client.send_until_stuck(&vec![b'x'; 1 << 20]).await;
    client.response().await.must_be(503, "concurrency_limited");
    drop(client);
    tokio::time::timeout(Duration::from_secs(1), holder.until_end())
        .await
        .expect_err("the other one waits on");
}

#[tokio::test]
async fn what_never_became_a_request_is_logged_and_counted_too() {
    let app = Upstream::that().answers(200).start().await;
    let limits = "limits = { header_timeout = \"200ms\", max_header_size = \"1KiB\" }";
    let proxy = Config::over([&app]).listener(limits).start().await;
    let cases = [
        ("bad_request", 400, "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("header_too_large", 431, format!("GET /{} HTTP/1.1\r\n", "x".repeat(2000))),
        ("header_timeout", 408, "GET /".to_owned()),
    ];
    for (reason, status, bytes) in cases {
        let mut client = proxy.connect().await;
        client.try_send(bytes).await;
        client.response().await.must_be(status, reason);
        let line = proxy.access_log(&format!("\"reason\":\"{reason}\"")).await;
        assert_eq!((&line["status"], &line["listener"]), (&status.into(), &"main".into()), "{line}");
        proxy
            .metric_becomes(
                &format!("outrigger_rejected_total{{upstream=,reason={reason},mode=enforce}}"),
                1.0,
            )
            .await;
        proxy.metric_becomes(&format!("outrigger_requests_total{{upstream=,code={status}}}"), 1.0).await;
    }
}
