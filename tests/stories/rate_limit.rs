//! Rate limits: who shares one, what a refusal says, what it costs, and what stays over a reload.

use crate::support::http2::Http2;
use crate::support::*;

const REFUSED: &str = "outrigger_rejected_total{upstream=app,reason=rate_limited,mode=enforce}";
const SHADOWED: &str = "outrigger_rejected_total{upstream=app,reason=rate_limited,mode=shadow}";
const OVERFLOWED: &str = "outrigger_limit_reached_total{what=rate_limit_keys}";

/// A limit that nobody can wait for: what was taken stays taken while a story lasts.
fn limited(app: &Upstream, limits: &[&str]) -> Config {
    Config::over([app]).upstream(&format!("rate_limit = [{}]", limits.join(", ")))
}

async fn app() -> Upstream {
    Upstream::that().answers(200).start().await
}

fn with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n")
}

/// The statuses of these requests, one after the other on one connection.
async fn statuses(proxy: &Proxy, requests: &[String]) -> Vec<u16> {
    let mut client = proxy.connect().await;
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(client.exchange(request).await.status);
    }
    statuses
}

#[tokio::test]
async fn each_value_of_a_header_has_its_own_rate() {
    let app = app().await;
    let proxy =
        limited(&app, &["{ name = \"tenant\", rate = \"1/h\", burst = 2, key = \"header:X-Tenant\" }"])
            .start()
            .await;
    let of = |tenant: &str| with("/", &format!("x-tenant: {tenant}\r\n"));

    let requests = [of("blue"), of("blue"), of("blue"), of("green"), of("green"), of("green"), of("red")];
    assert_eq!(statuses(&proxy, &requests).await, [200, 200, 429, 200, 200, 429, 200]);

    assert_eq!(app.seen(), 5, "what was refused never went up");
    assert_eq!(proxy.metric(REFUSED).await, 2.0);
    proxy.metric_becomes("outrigger_requests_total{code=429,outcome=rejected}", 2.0).await;
    let view: serde_json::Value =
        serde_json::from_slice(&proxy.admin_get("/upstreams").await.body).expect("JSON");
    let limit = view.pointer("/app/rate_limits/0").unwrap_or_else(|| panic!("{view:#}"));
    assert_eq!(limit["name"], "tenant");
    assert_eq!(limit["rate"], "1/h");
    assert_eq!(limit["keys"], serde_json::json!({ "held": 3, "max": 10_000, "overflowed": 0 }));
}

#[tokio::test]
async fn a_refusal_says_which_limit_and_when_to_come_back() {
    let app = app().await;
    let limits = [
        "{ name = \"burst:1\", rate = \"6/m\", burst = 1 }",
        "{ name = \"all\", rate = \"100/h\", burst = 50 }",
        "{ name = \"bytes\", rate = \"1KiB/m\", burst = \"2KiB\" }",
        "{ name = \"unseen\", mode = \"shadow\", rate = \"1/h\", burst = 9 }",
    ];
    let proxy = limited(&app, &limits).start().await;
    assert_eq!(proxy.get("/").await.status, 200);

    let refused = proxy.connect().await.exchange(&with("/", "x-request-id: the-second\r\n")).await;

    refused.must_be(429, "rate_limited");
    assert_eq!(refused.field("retry-after"), Some("10"));
    assert_eq!(
        refused.field("ratelimit-policy"),
        Some("\"all\";q=100;w=3600, \"burst:1\";q=6;w=60, \"bytes\";q=1024;w=60;qu=\"content-bytes\"")
    );
    assert_eq!(
        refused.field("ratelimit"),
        Some("\"all\";r=49;t=36, \"burst:1\";r=0;t=10, \"bytes\";r=2048;t=0")
    );
    let problem = refused.problem().expect("our own answer");
    assert_eq!(problem["detail"], "the rate limit \"burst:1\" (6/m) is reached");
    let line = proxy.access_log("the-second").await;
    assert_eq!((&line["reason"], &line["rate_limit"]), (&"rate_limited".into(), &"burst:1".into()), "{line}");
    let served = proxy.get("/elsewhere").await;
    assert_eq!(served.status, 429);
}

#[tokio::test]
async fn an_upstreams_answer_passes_unchanged() {
    let own = "\"theirs\";q=5;w=1";
    let app = Upstream::that().answers(429).with_field("ratelimit-policy", own).start().await;
    let proxy = limited(&app, &["{ rate = \"10/s\" }"]).upstream("retry.attempts = 1").start().await;

    let answer = proxy.get("/").await;

    assert_eq!(answer.status, 429);
    assert_eq!(answer.field("ratelimit-policy"), Some(own));
    assert_eq!((answer.field("ratelimit"), answer.field("retry-after")), (None, None));
    assert_eq!(proxy.metric(REFUSED).await, 0.0);
}

#[tokio::test]
async fn each_client_has_its_own_rate_as_trusted_proxies_name_it() {
    let app = app().await;
    let limit = "{ rate = \"1/h\", burst = 1, key = \"client_ip\" }";
    let from = |entries: &str| with("/", &format!("x-forwarded-for: {entries}\r\n"));
    let requests = [
        from("10.0.0.1"),
        from("10.0.0.1"),
        from("10.0.0.2"),
        from("10.9.9.9, 10.0.0.2"),
        from("::ffff:10.0.0.1"),
    ];

    let proxy = limited(&app, &[limit]).listener("trust = [\"127.0.0.0/8\"]").start().await;
    assert_eq!(statuses(&proxy, &requests).await, [200, 429, 200, 429, 429]);

    let proxy = limited(&app, &[limit]).listener("trust = \"none\"").start().await;
    assert_eq!(statuses(&proxy, &requests).await, [200, 429, 429, 429, 429], "all are the same peer");
}

#[tokio::test]
async fn each_route_has_its_own_rate_before_it_rewrites() {
    let app = app().await;
    let routes = "
        [[listener.route]]
        name = \"a\"
        match = { path_prefix = \"/a\" }
        upstream = \"app\"
        rewrite = { prefix = \"/same\" }
        [[listener.route]]
        name = \"b\"
        match = { path_prefix = \"/b\" }
        upstream = \"app\"
        rewrite = { prefix = \"/same\" }
    ";
    let by = |key: &str| {
        limited(&app, &[&format!("{{ rate = \"1/h\", burst = 1, key = \"{key}\" }}")]).and(routes)
    };
    let requests = ["/a/1", "/a/2", "/b/1", "/b/1", "/c"].map(get);

    let proxy = by("route").start().await;
    assert_eq!(statuses(&proxy, &requests).await, [200, 429, 200, 429, 200]);
    let proxy = by("path").start().await;
    assert_eq!(statuses(&proxy, &requests).await, [200, 200, 200, 429, 200]);
}

#[tokio::test]
async fn without_a_key_all_requests_share_one_rate_on_all_workers() {
    let app = app().await;
    let proxy = limited(&app, &["{ rate = \"1/h\", burst = 5 }"]).and("[server]\nworkers = 4").start().await;

    let mut passed = 0;
    for _ in 0..20 {
        passed += usize::from(proxy.get("/").await.status == 200);
    }

    assert_eq!((passed, app.seen()), (5, 5));
    assert_eq!(proxy.metric(REFUSED).await, 15.0);
    assert_eq!(proxy.metric(OVERFLOWED).await, 0.0, "nobody lacks a key");
}

#[tokio::test]
async fn what_one_limit_refuses_the_other_does_not_charge() {
    let app = app().await;
    let limits = [
        "{ name = \"all\", rate = \"1/h\", burst = 3 }",
        "{ name = \"tenant\", rate = \"1/h\", burst = 1, key = \"header:x-tenant\" }",
    ];
    let proxy = limited(&app, &limits).start().await;
    let of = |tenant: &str| with("/", &format!("x-tenant: {tenant}\r\n"));

    let greedy = vec![of("greedy"); 10];
    assert_eq!(statuses(&proxy, &greedy).await.iter().filter(|status| **status == 200).count(), 1);
    let others = [of("a"), of("b"), of("c")];
    assert_eq!(statuses(&proxy, &others).await, [200, 200, 429], "two of three were left for all");

    let refused = proxy.connect().await.exchange(&of("a")).await;
    assert_eq!(refused.field("ratelimit"), Some("\"all\";r=0;t=3600, \"tenant\";r=0;t=3600"));
    assert_eq!(proxy.metric(REFUSED).await, 11.0, "once for a request");
}

#[tokio::test]
async fn requests_without_a_usable_key_share_one_rate_and_are_counted() {
    let app = app().await;
    let proxy = limited(&app, &["{ rate = \"1/h\", burst = 3, key = \"header:x-tenant\", max_keys = 2 }"])
        .start()
        .await;
    let of = |tenant: &str| with("/", &format!("x-tenant: {tenant}\r\n"));

    let without = [get("/"), of(&"x".repeat(257)), of(&"y".repeat(5000)), get("/")];
    assert_eq!(statuses(&proxy, &without).await, [200, 200, 200, 429]);
    assert_eq!(proxy.metric(OVERFLOWED).await, 4.0);
    assert_eq!(statuses(&proxy, &[of(&"z".repeat(256)), of("a")]).await, [200, 200], "they have their own");
    assert_eq!(proxy.metric(OVERFLOWED).await, 4.0);
    assert_eq!(statuses(&proxy, &[of("b"), of("a")]).await, [429, 200], "the table is full, and nobody idle");
    assert_eq!(proxy.metric(OVERFLOWED).await, 5.0);
}

#[tokio::test]
async fn a_cookie_can_be_the_key() {
    let app = app().await;
    let proxy = limited(&app, &["{ rate = \"1/h\", burst = 1, key = \"cookie:session\" }"]).start().await;
    let of = |session: &str| with("/", &format!("cookie: a=b; session={session}\r\n"));
    assert_eq!(statuses(&proxy, &[of("1"), of("2"), of("1")]).await, [200, 200, 429]);
}

#[tokio::test]
async fn shadow_counts_and_lets_pass_and_off_does_neither() {
    for (mode, counted) in [("shadow", 4.0), ("off", 0.0)] {
        let app = app().await;
        let proxy =
            limited(&app, &[&format!("{{ mode = \"{mode}\", rate = \"1/h\", burst = 1 }}")]).start().await;
        let requests = vec![with("/", "x-request-id: seen\r\n"); 5];
        assert_eq!(statuses(&proxy, &requests).await, [200; 5], "{mode}");
        assert_eq!((proxy.metric(SHADOWED).await, proxy.metric(REFUSED).await), (counted, 0.0), "{mode}");
    }
}

#[tokio::test]
async fn a_rollout_refuses_its_share_and_shadows_the_rest() {
    let app = app().await;
    let proxy = limited(&app, &["{ rollout = 0.5, rate = \"1/h\", burst = 1 }"]).start().await;
    let requests = vec![get("/"); 401];
    let refused = statuses(&proxy, &requests).await.iter().filter(|status| **status == 429).count();
    assert!((120..=280).contains(&refused), "{refused} of 400");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum(REFUSED), refused as f64);
    assert_eq!(metrics.sum(SHADOWED), 400.0 - refused as f64);
}

#[tokio::test]
async fn bytes_of_both_directions_are_owed_when_they_have_flowed() {
    let body = "x".repeat(60_000);
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    let limit = "{ name = \"bytes\", rate = \"100B/h\", burst = \"100kB\", key = \"header:x-tenant\" }";
    let proxy = limited(&app, &[limit]).start().await;
    let of = |tenant: &str| with("/", &format!("x-tenant: {tenant}\r\n"));

    // 60,000 down, then 60,000 more: the second passes since something was left.
    assert_eq!(statuses(&proxy, &[of("down"), of("down"), of("down")]).await, [200, 200, 429]);
    // 100,000 up and 60,000 down.
    let up = format!(
        "POST / HTTP/1.1\r\nHost: app.test\r\nx-tenant: up\r\nContent-Length: 100000\r\n\r\n{}",
        "y".repeat(100_000)
    );
    assert_eq!(statuses(&proxy, &[up.clone(), of("up")]).await, [200, 429]);

    let refused = proxy.connect().await.exchange(&of("down")).await;
    refused.must_be(429, "rate_limited");
    assert_eq!(refused.field("ratelimit-policy"), Some("\"bytes\";q=100;w=3600;qu=\"content-bytes\""));
    // 20,000 are owed, at 36 s each, and one must be there.
    let wait: u64 = refused.field("retry-after").expect("it says when").parse().expect("seconds");
    assert!((719_900..=720_037).contains(&wait), "{wait}");

    let mut http2 = Http2::connect(proxy.listener()).await;
    for (number, expected) in [200, 200, 429].into_iter().enumerate() {
        let request = http2.request("GET", "/").header("x-tenant", "http2");
        assert_eq!(http2.exchange(request, "").await.head.status, expected, "by HTTP/2, {number}");
    }
}

#[tokio::test]
async fn who_gets_anothers_answer_is_charged_for_it_once() {
    let app = Upstream::that().answers(200).with_body("one").holds().start().await;
    let limit = "{ rate = \"1/h\", burst = 2, key = \"header:x-tenant\" }";
    let proxy = limited(&app, &[limit]).upstream("fallback.coalesce = true").start().await;
    let of = |tenant: &str| with("/", &format!("x-tenant: {tenant}\r\n"));
    let mut clients = Vec::new();
    for tenant in ["blue", "green", "green"] {
        let mut client = proxy.connect().await;
        client.send(of(tenant)).await;
        clients.push(client);
        app.has_seen(1).await;
    }
    eventually("two follow", async || {
        let view: serde_json::Value =
            serde_json::from_slice(&proxy.admin_get("/upstreams").await.body).expect("JSON");
        view.to_string().contains("\"followers\":2")
    })
    .await;
    // At once, although there is an answer to wait for.
    proxy.connect().await.exchange(&of("green")).await.must_be(429, "rate_limited");
    app.release(10);
    for client in &mut clients {
        assert_eq!(client.response().await.text(), "one");
    }
    assert_eq!(app.seen(), 1);
    assert_eq!(statuses(&proxy, &[of("blue"), of("blue")]).await, [200, 429], "who led was charged once");
    proxy.rests().await;
}

#[tokio::test]
async fn bytes_of_a_kept_answer_are_owed_like_others() {
    // The rest below a step may be charged when the client has it all: twice all steps are more than the burst.
    let body = "x".repeat(80_000);
    let limit = "{ rate = \"100B/h\", burst = \"100kB\" }";
    for http2 in [false, true] {
        // One that is used again and reset would be taken for a close that crossed the request, which is sent anew.
        let script = Upstream::that().answers(200).with_body(&body).with_field("Connection", "close");
        let app = script.resets_before_the_head().start().await;
        let config = limited(&app, &[limit]).plain().upstream("fallback.stale = {}");
        let proxy = config.start().await;
        assert_eq!(statuses(&proxy, &[with("/", "")]).await, [200]);
        if http2 {
            let mut client = Http2::connect(proxy.listener()).await;
            assert_eq!(client.get("/").await.body.len(), body.len());
        } else {
            assert_eq!(proxy.get("/").await.text().len(), body.len());
        }
        assert_eq!(statuses(&proxy, &[with("/", "")]).await, [429], "by HTTP/2: {http2}");
        assert_eq!(app.seen(), 2);
    }
}

#[tokio::test]
async fn a_long_answer_is_charged_while_it_flows() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
    let app = Upstream::that()
        .answers_raw(format!("{head}{}", "x".repeat(400_000)))
        .and_when_released("x".repeat(600_000))
        .answers(200)
        .start()
        .await;
    let proxy = limited(&app, &["{ rate = \"100B/h\", burst = \"300kB\" }"]).start().await;
    let mut long = proxy.connect().await;
    long.send(get("/")).await;
    long.head().await.expect("a head");
    long.bytes(400_000).await;

    eventually("it is charged", async || proxy.get("/").await.status == 429).await;

    app.release(1);
    long.bytes(600_000).await;
}

#[tokio::test]
async fn what_flows_over_a_websocket_is_charged_while_it_is_open() {
    let agree = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let app =
        Upstream::that().answers_raw(format!("{agree}{}", "x".repeat(20_000))).answers(200).start().await;
    let proxy = limited(&app, &["{ rate = \"100B/h\", burst = \"15kB\" }"]).start().await;
    let mut socket = proxy.connect().await;
    socket.send(with("/chat", "connection: Upgrade\r\nupgrade: websocket\r\n")).await;
    assert_eq!(socket.head().await.expect("a head").status, 101);
    socket.bytes(20_000).await;

    eventually("it is charged", async || proxy.get("/").await.status == 429).await;
}

#[tokio::test]
async fn a_reload_keeps_what_was_taken() {
    let app = app().await;
    let config = |rate: &str, more: &str| {
        limited(
            &app,
            &[&format!(
                "{{ name = \"one\", rate = \"{rate}\", burst = 3, key = \"header:x-tenant\" {more} }}"
            )],
        )
    };
    let proxy = config("1/h", "").start().await;
    let of = |tenant: &str| with("/", &format!("x-tenant: {tenant}\r\n"));
    assert_eq!(statuses(&proxy, &[of("a"), of("a"), of("b")]).await, [200; 3]);
    let reload = async |config: Config| {
        proxy.rewrite(&config.text());
        let answer = proxy.admin_post("/reload").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };

    reload(config("2/h", "")).await;
    assert_eq!(statuses(&proxy, &[of("a"), of("a")]).await, [200, 429], "another rate");
    reload(config("2/h", ", max_keys = 50000")).await;
    assert_eq!(statuses(&proxy, &[of("a"), of("b")]).await, [429, 200], "room for more keys");
    reload(config("1000000/s", "")).await;
    assert_eq!(statuses(&proxy, &[of("a"), of("a")]).await, [200, 200], "nobody waits for an old rate");
}

#[tokio::test]
async fn a_refused_call_of_grpc_is_told_as_grpc_tells_it() {
    let app = app().await;
    let proxy = limited(&app, &["{ name = \"calls\", rate = \"6/m\", burst = 1 }"]).start().await;
    assert_eq!(proxy.get("/").await.status, 200);

    let mut http2 = Http2::connect(proxy.listener()).await;
    let call = http2.request("POST", "/pkg.Echo/Get").header("content-type", "application/grpc");
    let answer = http2.exchange(call, "").await;

    assert_eq!(
        (answer.head.status, answer.field("grpc-status")),
        (200.try_into().expect("a status"), Some("8"))
    );
    let message = answer.field("grpc-message").expect("it says why");
    assert!(message.starts_with("rate_limited: the rate limit \"calls\""), "{message}");
    let pushback: u64 =
        answer.field("grpc-retry-pushback-ms").expect("it says when").parse().expect("milliseconds");
    assert!((5000..=10_000).contains(&pushback), "{pushback}");
    assert_eq!(answer.field("ratelimit-policy"), Some("\"calls\";q=6;w=60"));
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn whoever_waits_as_told_is_let_in() {
    let app = app().await;
    let proxy = limited(&app, &["{ rate = \"2/s\", burst = 1 }"]).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get("/")).await.status, 200);
    let refused = client.exchange(&get("/")).await;
    let wait = refused.field("retry-after").expect("it says when").parse().expect("seconds");
    assert_eq!(wait, 1);

    tokio::time::sleep(std::time::Duration::from_secs(wait)).await;

    assert_eq!(client.exchange(&get("/")).await.status, 200);
}

/// A real client: what curl shows of a refusal, and that it waits for as long as it was told to.
#[tokio::test]
async fn curl_waits_as_it_is_told() {
    let app = app().await;
    let proxy = limited(&app, &["{ name = \"p\", rate = \"1/s\", burst = 1 }"]).start().await;
    let url = format!("http://{}/", proxy.listener());
    let curl = async |more: &[&str]| {
        let mut command = std::process::Command::new("curl");
        command.args(["-sS", "-i"]).args(more).arg(&url);
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = output.expect("curl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(curl(&[]).await.starts_with("HTTP/1.1 200"));

    let retried = curl(&["--retry", "3"]).await;

    let refused = "HTTP/1.1 429";
    assert!(retried.starts_with(refused) && retried.matches("HTTP/1.1 200").count() == 1, "{retried}");
    for field in [
        "\r\nretry-after: 1\r\n",
        "\r\nratelimit-policy: \"p\";q=1;w=1\r\n",
        "\r\nratelimit: \"p\";r=0;t=1\r\n",
    ] {
        assert!(retried.contains(field), "{field:?} is not in {retried}");
    }
}
