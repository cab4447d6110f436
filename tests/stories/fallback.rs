//! What clients get in place of a failure, and what they never get.

use crate::support::client::post;
use crate::support::http2::Http2;
use crate::support::*;

/// Only what the story names may fail a request: one attempt, no breaker; and `fallback` on top.
fn over(app: &Upstream, fallback: &str) -> Config {
    Config::over([app]).plain().upstream(fallback)
}

const STALE: &str = "fallback.stale = {}";

/// A GET with these fields besides.
fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n\r\n")
}

async fn fallbacks(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric(&format!("outrigger_fallbacks_total{{upstream=app,mode=enforce,kind={kind}}}")).await
}

#[tokio::test]
async fn the_last_good_answer_stands_in_while_the_upstream_resets() {
    let app = Upstream::that()
        .answers(200)
        .with_body("the good one")
        .with_field("ETag", "\"1\"")
        .with_field("Content-Type", "text/plain")
        .with_field("Connection", "x-hop, close")
        .with_field("X-Hop", "1")
        .resets_before_the_head()
        .start()
        .await;
    let proxy = over(&app, STALE).start().await;

    let good = proxy.get("/a?b").await;
    let stale = proxy.get("/a?b").await;

    assert_eq!((good.status, good.text().as_str()), (200, "the good one"));
    assert_eq!((good.field("age"), good.field("cache-status")), (None, None), "it passes unchanged");
    assert_eq!((stale.status, stale.text().as_str()), (200, "the good one"));
    assert_eq!((stale.field("etag"), stale.field("content-type")), (Some("\"1\""), Some("text/plain")));
    assert_eq!(stale.field("x-hop"), None, "what belonged to a connection is gone with it");
    assert_eq!(stale.field("content-length"), Some("12"));
    assert_eq!(stale.field("age"), Some("0"));
    assert_eq!(stale.field("cache-status"), Some("outrigger; hit; ttl=0; detail=upstream_reset"));
    assert_eq!(app.seen(), 2, "it was asked each time");
    assert_eq!(fallbacks(&proxy, "stale").await, 1.0);
    proxy.metric_becomes("outrigger_requests_total{upstream=app,code=200,outcome=ok}", 2.0).await;
    let line = proxy.access_log("\"fallback\":\"stale\"").await;
    assert_eq!(
        (&line["reason"], &line["status"], &line["outcome"]),
        (&"upstream_reset".into(), &200.into(), &"ok".into())
    );
    // Another URL has none.
    proxy.get("/a?c").await.must_be(502, "upstream_reset");
    proxy.rests().await;
}

#[tokio::test]
async fn http2_clients_get_it_too_and_head_gets_it_without_a_body() {
    let app = Upstream::that().answers(200).with_body("good").answers(503).with_body("bad").start().await;
    let proxy = over(&app, STALE).start().await;
    let mut client = Http2::connect(proxy.listener()).await;

    assert_eq!(client.get("/a").await.body, "good");
    let stale = client.get("/a").await;
    let head = client.exchange(client.request("HEAD", "/a"), "").await;

    assert_eq!((stale.head.status.as_u16(), &stale.body[..]), (200, &b"good"[..]));
    assert_eq!(stale.field("cache-status"), Some("outrigger; fwd=stale; fwd-status=503; ttl=0"));
    assert_eq!(
        (head.head.status.as_u16(), head.body.len(), head.field("content-length")),
        (200, 0, Some("4"))
    );
    let mut client = proxy.connect().await;
    let head = client.exchange("HEAD /a HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!((head.status, head.field("content-length")), (200, Some("4")));
    assert_eq!(client.exchange(&get("/a")).await.text(), "good", "and the connection goes on");
}

#[tokio::test]
async fn a_large_answer_and_one_in_pieces_are_copied_on_their_way() {
    let large = vec![b'x'; 300 << 10];
    for (why, script) in [
        ("of known length", Upstream::that().answers(200).with_body(&large)),
        (
            "in chunks",
            Upstream::that().answers_raw(
                [
                    &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4B000\r\n"[..],
                    &large,
                    b"\r\n0\r\n\r\n",
                ]
                .concat(),
            ),
        ),
    ] {
        let app = script.resets_before_the_head().start().await;
        let proxy = over(&app, STALE).start().await;
        let mut http2 = Http2::connect(proxy.listener()).await;

        // On one connection: what is large is kept when all of it has gone out.
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(&get("/a")).await.body, large, "{why}");
        let stale = client.exchange(&get("/a")).await;
        assert_eq!((stale.status, stale.body == large), (200, true), "{why}");
        assert_eq!(http2.get("/a").await.body, large, "{why}, by HTTP/2");
        assert!(proxy.metric("outrigger_fallbacks_total{kind=stale}").await >= 2.0, "{why}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_or_is_too_large_is_not_kept() {
    let cases = [
        (
            "it breaks off",
            Upstream::that()
                .answers(200)
                .with_body("good")
                .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                .then_resets(),
            "good",
        ),
        ("too large", Upstream::that().answers(200).with_body(vec![b'x'; 9000]), ""),
    ];
    for (why, script, kept) in cases {
        let app = script.resets_before_the_head().start().await;
        let proxy = over(&app, "fallback.stale = { max_size = \"64KiB\" }").start().await;
        let mut answers = vec![proxy.get("/").await];
        while app.seen() < 3 - usize::from(kept.is_empty()) {
            answers.push(proxy.get("/").await);
        }
        let last = answers.pop().expect("there is one");
        if kept.is_empty() {
            last.must_be_because(502, "upstream_reset", why);
            assert_eq!(proxy.metric("outrigger_limit_reached_total{what=stale_answer}").await, 1.0, "{why}");
        } else {
            assert_eq!((last.status, last.text().as_str()), (200, kept), "{why}");
        }
    }
}

#[tokio::test]
async fn what_an_answer_or_a_request_forbids_is_not_kept_and_not_given() {
    // why, fields of the answer, fields of the request that gets it, fields of the one that would get it stale, given
    let cases = [
        ("it may be", "X: y", "A: b", "A: b", true),
        ("no-store", "Cache-Control: no-store", "A: b", "A: b", false),
        ("private", "Cache-Control: private, max-age=60", "A: b", "A: b", false),
        ("no-cache", "Cache-Control: no-cache", "A: b", "A: b", false),
        ("must-revalidate", "Cache-Control: must-revalidate", "A: b", "A: b", false),
        ("fresh and must-revalidate", "Cache-Control: max-age=60, must-revalidate", "A: b", "A: b", true),
        ("s-maxage", "Cache-Control: s-maxage=0", "A: b", "A: b", false),
        ("stale-if-error=0", "Cache-Control: stale-if-error=0", "A: b", "A: b", false),
        ("older than `for` already", "Age: 601", "A: b", "A: b", false),
        ("a cookie is set", "Set-Cookie: a=b", "A: b", "A: b", false),
        ("Vary: *", "Vary: *", "A: b", "A: b", false),
        ("to a request in person", "X: y", "Authorization: me", "Authorization: me", false),
        ("with a cookie", "X: y", "Cookie: me=1", "Cookie: me=1", false),
        ("in person, then anonymous", "X: y", "Cookie: me=1", "A: b", false),
        ("anonymous, then in person", "X: y", "A: b", "Authorization: me", false),
        ("for all", "Cache-Control: public", "Authorization: me", "Cookie: you=1", true),
        ("the same language", "Vary: Accept-Language", "Accept-Language: de", "Accept-Language: de", true),
        ("another one", "Vary: Accept-Language", "Accept-Language: de", "Accept-Language: en", false),
        ("compressed, without a word", "Content-Encoding: gzip", "Accept-Encoding: gzip", "A: b", false),
        ("a part is asked for", "X: y", "Range: bytes=0-1", "A: b", false),
        ("the whole is there", "X: y", "A: b", "Range: bytes=0-1", true),
        ("a condition", "ETag: \"1\"", "A: b", "If-None-Match: \"1\"", true),
        ("one that its origin judges", "ETag: \"1\"", "A: b", "If-Match: \"1\"", false),
        ("the client wants its origin", "X: y", "A: b", "Cache-Control: no-cache", false),
        ("or nothing kept", "X: y", "Cache-Control: no-store", "A: b", false),
    ];
    for (why, answer, first, second, given) in cases {
        let (name, value) = answer.split_once(": ").expect("a field");
        let app = Upstream::that()
            .answers(200)
            .with_body("good")
            .with_field(name, value)
            .resets_before_the_head()
            .start()
            .await;
        let proxy = over(&app, STALE).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(&get_with("/", first)).await.text(), "good", "{why}");
        let response = client.exchange(&get_with("/", second)).await;
        if given {
            assert_eq!((response.status, response.text().as_str()), (200, "good"), "{why}");
        } else {
            response.must_be_because(502, "upstream_reset", why);
        }
    }
}

#[tokio::test]
async fn a_key_of_the_configuration_tells_requests_apart() {
    let app = Upstream::that().answers(200).with_body("blue").resets_before_the_head().start().await;
    let proxy = over(&app, STALE).upstream("fallback.key = [\"header:x-tenant\"]").start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get_with("/", "X-Tenant: blue")).await.text(), "blue");
    client.exchange(&get_with("/", "X-Tenant: red")).await.must_be(502, "upstream_reset");
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get_with("/", "X-Tenant: blue")).await.text(), "blue");
}

#[tokio::test]
async fn what_is_stale_for_longer_than_for_is_not_given() {
    let app = Upstream::that().answers(200).with_body("good").resets_before_the_head().start().await;
    let proxy = over(&app, "fallback.stale = { for = \"300ms\" }").start().await;
    let began = std::time::Instant::now();
    assert_eq!(proxy.get("/").await.text(), "good");
    // By now it is kept.
    let came = std::time::Instant::now();
    let mut given = 0;
    loop {
        let asked = came.elapsed();
        let response = proxy.get("/").await;
        if response.status == 200 {
            assert!(asked.as_millis() <= 300, "given though it had been kept for {asked:?}");
            given += 1;
        } else {
            response.must_be(502, "upstream_reset");
            break;
        }
    }
    assert!(given > 0 || began.elapsed().as_millis() > 300, "given before that");
}

#[tokio::test]
async fn a_write_lets_go_what_was_kept_of_its_url() {
    let app =
        Upstream::that().answers(200).with_body("old").answers(204).resets_before_the_head().start().await;
    let proxy = over(&app, STALE).start().await;
    assert_eq!(proxy.get("/a").await.text(), "old");
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&post("/a", "new")).await.status, 204);
    proxy.get("/a").await.must_be(502, "upstream_reset");
}

#[tokio::test]
async fn what_the_upstream_says_last_counts() {
    for (status, fields) in [(404, "X: y"), (410, "X: y"), (200, "Cache-Control: no-store")] {
        let (name, value) = fields.split_once(": ").expect("a field");
        let app = Upstream::that()
            .answers(200)
            .with_body("old")
            .answers(status)
            .with_field(name, value)
            .resets_before_the_head()
            .start()
            .await;
        let proxy = over(&app, STALE).start().await;
        assert_eq!(proxy.get("/a").await.text(), "old");
        assert_eq!(proxy.get("/a").await.status, status);
        proxy.get("/a").await.must_be_because(502, "upstream_reset", &status.to_string());
    }
}

/// RFC 9111 §4.3.4.
#[tokio::test]
async fn what_the_upstream_confirms_to_a_client_that_has_it_counts_as_new() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let dated = format!("Last-Modified: {date}");
    let cases = [
        // why                      what the 304 says         given then, with which version
        ("the same tag", "ETag: \"1\"", Some("new")),
        ("no tag, and the same date", dated.as_str(), Some("new")),
        ("another tag", "ETag: \"2\"", Some("old")),
        ("one that says hardly anything", "ETag: W/\"1\"", Some("old")),
        ("nothing to know it by", "X: y", Some("old")),
        ("not to be kept any more", "ETag: \"1\"\r\nCache-Control: no-store", None),
    ];
    for (why, says, given) in cases {
        let (name, value) = says.split_once(": ").expect("a field");
        let app = Upstream::that()
            .answers(200)
            .with_body("good")
            .with_field("ETag", "\"1\"")
            .with_field("Last-Modified", date)
            .with_field("Age", "400")
            .with_field("X-Version", "old")
            .answers(304)
            .with_field(name, value)
            .with_field("X-Version", "new")
            .resets_before_the_head()
            .start()
            .await;
        let proxy = over(&app, STALE).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(&get("/")).await.text(), "good");
        assert_eq!(client.exchange(&get_with("/", "If-None-Match: \"1\"")).await.status, 304, "{why}");
        let stale = client.exchange(&get("/")).await;
        let Some(version) = given else {
            stale.must_be_because(502, "upstream_reset", why);
            continue;
        };
        assert_eq!((stale.text().as_str(), stale.field("x-version")), ("good", Some(version)), "{why}");
        let age: u64 = stale.field("age").and_then(|age| age.parse().ok()).expect("seconds");
        assert_eq!(age < 400, version == "new", "{why}: {age} s old");
        assert_eq!(stale.field("last-modified"), Some(date), "{why}: what was not said again stays");
    }
}

#[tokio::test]
async fn a_reload_keeps_what_is_kept_and_off_lets_it_go() {
    let app = Upstream::that().answers(200).with_body("good").resets_before_the_head().start().await;
    let config = over(&app, STALE);
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.text(), "good");

    proxy.rewrite(&config.clone().upstream("fallback.coalesce = true").text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(proxy.get("/").await.text(), "good", "after a reload");

    proxy.rewrite(&Config::over([&app]).plain().text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    proxy.get("/").await.must_be(502, "upstream_reset");
    proxy.rewrite(&config.text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    proxy.get("/").await.must_be(502, "upstream_reset");
}

#[tokio::test]
async fn own_refusals_are_answered_from_the_store_without_asking() {
    let app = Upstream::that().answers(200).with_body("good").answers(500).start().await;
    let proxy = Config::over([&app])
        .upstream("retry.attempts = 1\nbreaker = { min_requests = 1, open_for = { base = \"30s\", max = \"30s\" } }")
        .upstream("fallback = { stale = {}, on = [\"breaker_open\"] }")
        .start()
        .await;
    assert_eq!(proxy.get("/").await.text(), "good");
    assert_eq!(proxy.get("/").await.status, 500, "a status that is not named passes");
    let seen = app.seen();
    eventually("the breaker is open", async || {
        proxy.get("/").await.field("cache-status") == Some("outrigger; hit; ttl=0; detail=breaker_open")
    })
    .await;
    assert!(app.seen() <= seen + 1);
    assert!(proxy.metric("outrigger_rejected_total{upstream=app,reason=breaker_open}").await >= 1.0);
}

#[tokio::test]
async fn a_fixed_answer_stands_in_where_nothing_else_can() {
    let app = Upstream::refusing();
    let proxy = over(
        &app,
        "fallback.response = { status = 200, headers = { content-type = \"application/json\" }, body = '{\"items\":[]}' }",
    )
    .start()
    .await;
    let fixed = proxy.get("/").await;
    assert_eq!((fixed.status, fixed.text().as_str()), (200, "{\"items\":[]}"));
    assert_eq!(fixed.field("content-type"), Some("application/json"));
    assert_eq!(
        fixed.field("proxy-status"),
        Some("outrigger; error=connection_refused; details=\"connect_error\"")
    );
    assert!(fixed.field("x-request-id").is_some());
    let mut client = Http2::connect(proxy.listener()).await;
    let fixed = client.get("/").await;
    assert_eq!((fixed.head.status.as_u16(), &fixed.body[..]), (200, &b"{\"items\":[]}"[..]));
    // A write that was lost does not look done.
    proxy.connect().await.exchange(&post("/", "a")).await.must_be(502, "connect_error");
    assert_eq!(fallbacks(&proxy, "response").await, 2.0);
    let line = proxy.access_log("\"fallback\":\"response\"").await;
    assert_eq!((&line["reason"], &line["status"]), (&"connect_error".into(), &200.into()));
}

#[tokio::test]
async fn a_fixed_refusal_is_for_every_method_and_may_have_no_body() {
    let app = Upstream::that().answers(500).start().await;
    let proxy =
        over(&app, "fallback.response = { status = 503, headers = { retry-after = \"7\" } }").start().await;
    let response = proxy.connect().await.exchange(&post("/", "a")).await;
    assert_eq!((response.status, response.field("retry-after")), (503, Some("7")));
    assert_eq!(response.field("proxy-status"), Some("outrigger; received-status=500"));
    let proxy = over(&app, "fallback.response = { status = 204 }").start().await;
    let response = proxy.get("/").await;
    assert_eq!((response.status, response.field("content-length")), (204, None));
}

fn and_other(other: &Upstream) -> String {
    format!("[upstream.other]\nendpoints = [\"{}\"]\nretry.attempts = 1", other.address())
}

#[tokio::test]
async fn another_upstream_answers_and_the_first_one_is_named() {
    let app = Upstream::that().answers(503).with_body("bad").start().await;
    let other = Upstream::that().answers(200).with_body("from the other").start().await;
    let proxy = over(&app, "fallback.upstream = \"other\"").and(&and_other(&other)).start().await;

    let response = proxy.connect().await.exchange(&post("/a", "body")).await;
    assert_eq!((response.status, other.seen()), (503, 0), "what may have been processed is not sent again");
    let put = "PUT /a HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody";
    let response = proxy.connect().await.exchange(put).await;
    assert_eq!((response.status, response.text().as_str()), (200, "from the other"));
    assert_eq!((other.request(0).target.as_str(), &other.request(0).body[..]), ("/a", &b"body"[..]));
    let mut client = Http2::connect(proxy.listener()).await;
    assert_eq!(client.get("/a").await.body, "from the other");

    assert_eq!(fallbacks(&proxy, "upstream").await, 2.0);
    proxy.metric_becomes("outrigger_requests_total{upstream=app,code=200}", 2.0).await;
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("outrigger_requests_total{upstream=other}"), 0.0);
    assert_eq!(metrics.sum("outrigger_attempts_total{upstream=other,outcome=ok}"), 2.0);
    let line = proxy.access_log("\"fallback\":\"upstream\"").await;
    assert_eq!((&line["upstream"], &line["endpoint"]), (&"app".into(), &other.address().to_string().into()));
    proxy.rests().await;
}

#[tokio::test]
async fn the_other_has_its_own_time_where_the_first_hangs() {
    let app = Upstream::that().never_answers().start().await;
    let other = Upstream::that().answers(200).with_body("from the other").start().await;
    let config = over(&app, "fallback.upstream = \"other\"")
        .upstream("timeout = { connect = \"100ms\", request = \"300ms\" }");
    let proxy = config
        .and(&and_other(&other))
        .and("timeout = { connect = \"100ms\", request = \"300ms\" }")
        .start()
        .await;
    assert_eq!(proxy.get("/").await.text(), "from the other");
    // Not beyond what its caller gives it.
    let response = proxy.connect().await.exchange(&get_with("/", "x-request-timeout-ms: 200")).await;
    response.must_be(504, "deadline_exceeded");
    assert_eq!((app.seen(), other.seen()), (2, 1));
    proxy.rests().await;
}

#[tokio::test]
async fn what_was_paid_for_the_other_and_not_sent_comes_back() {
    let app = Upstream::that().answers(503).with_body("bad").start().await;
    let other = Upstream::that().answers(200).start().await;
    let budget = "retry.budget = { ratio = 0.0, min_per_second = 1 }\nfallback.upstream = \"other\"";
    let limit = "rate_limit = [{ rate = \"1/h\", burst = 1 }]";
    let proxy = over(&app, budget).and(&and_other(&other)).and(limit).start().await;
    for _ in 0..60 {
        proxy.get("/").await;
    }
    assert_eq!(other.seen(), 1);
    let skipped = proxy.metric("outrigger_retries_skipped_total{upstream=app,reason=budget}").await;
    assert_eq!(skipped, 0.0, "what the other refuses is no load on it");
    proxy.rests().await;
}

#[tokio::test]
async fn a_post_goes_to_the_other_where_the_first_was_never_reached() {
    let app = Upstream::refusing();
    let other = Upstream::that().answers(200).with_body("from the other").start().await;
    let proxy = over(&app, "fallback.upstream = \"other\"").and(&and_other(&other)).start().await;
    let response = proxy.connect().await.exchange(&post("/a", "body")).await;
    assert_eq!((response.text().as_str(), &other.request(0).body[..]), ("from the other", &b"body"[..]));
}

#[tokio::test]
async fn where_the_other_fails_too_the_first_reason_is_told() {
    let app = Upstream::refusing();
    let other = Upstream::that().answers(503).start().await;
    let proxy = over(&app, "fallback.upstream = \"other\"")
        .and(&and_other(&other))
        .and("fallback.response = { status = 503, body = \"of the other\" }")
        .start()
        .await;
    proxy.get("/").await.must_be(502, "connect_error");
    assert_eq!((other.seen(), fallbacks(&proxy, "upstream").await), (1, 0.0));
    let line = proxy.access_log("connect_error").await;
    assert_eq!((&line["upstream"], &line["reason"]), (&"app".into(), &"connect_error".into()));
    assert!(line.get("fallback").is_none());
    proxy.rests().await;
}

#[tokio::test]
async fn the_retry_budget_of_the_first_pays_for_the_other() {
    let app = Upstream::that().answers(503).with_body("bad").start().await;
    let other = Upstream::that().answers(200).start().await;
    let proxy =
        over(&app, "retry.budget = { ratio = 0.0, min_per_second = 1 }\nfallback.upstream = \"other\"")
            .and(&and_other(&other))
            .start()
            .await;
    let mut client = proxy.connect().await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(client.exchange(&get("/")).await.status == 503);
    }
    assert_eq!(failed + other.seen(), 100);
    assert!((1..=20).contains(&other.seen()), "{}", other.seen());
    assert!(
        proxy.metric("outrigger_retries_skipped_total{upstream=app,reason=budget}").await >= failed as f64
    );
}

#[tokio::test]
async fn stale_comes_first_then_the_other_then_the_fixed_answer() {
    let app = Upstream::that().answers(200).with_body("kept").answers(500).start().await;
    let other = Upstream::that().answers(200).with_body("other").answers(500).start().await;
    let proxy =
        over(&app, "fallback = { stale = {}, upstream = \"other\", response = { body = \"fixed\" } }")
            .and(&and_other(&other))
            .start()
            .await;
    for (path, body) in [("/a", "kept"), ("/a", "kept"), ("/b", "other"), ("/b", "fixed"), ("/a", "kept")] {
        assert_eq!(proxy.get(path).await.text(), body, "{path}");
    }
}

#[tokio::test]
async fn in_shadow_it_is_counted_and_the_failure_passes() {
    let app = Upstream::that().answers(200).with_body("good").resets_before_the_head().start().await;
    let proxy = over(&app, "fallback = { mode = \"shadow\", stale = {}, response = { body = \"fixed\" } }")
        .start()
        .await;
    assert_eq!(proxy.get("/").await.text(), "good");
    proxy.get("/").await.must_be(502, "upstream_reset");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("outrigger_fallbacks_total{upstream=app,kind=stale,mode=shadow}"), 1.0);
    assert_eq!(metrics.sum("outrigger_fallbacks_total{upstream=app}"), 1.0, "what comes first alone");
}

#[tokio::test]
async fn a_route_may_say_otherwise() {
    let app = Upstream::refusing();
    let proxy = over(&app, "fallback.response = { body = \"of the upstream\" }")
        .and("[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nupstream = \"app\"\nfallback = { response = { body = \"of the route\" } }")
        .and("[[listener.route]]\nname = \"off\"\nmatch = { path_prefix = \"/b\" }\nupstream = \"app\"\nfallback = { mode = \"off\" }")
        .start()
        .await;
    assert_eq!(proxy.get("/").await.text(), "of the upstream");
    assert_eq!(proxy.get("/a").await.text(), "of the route");
    proxy.get("/b").await.must_be(502, "connect_error");
}

#[tokio::test]
async fn a_client_that_takes_a_stale_answer_slowly_gets_all_of_it() {
    let large = vec![b'x'; 3 << 20];
    let app = Upstream::that().answers(200).with_body(&large).resets_before_the_head().start().await;
    let proxy = over(&app, STALE).start().await;
    assert_eq!(proxy.get("/").await.body.len(), large.len());
    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let head = client.head().await.expect("a head");
    assert_eq!((head.status, head.field("content-length")), (200, Some("3145728")));
    let mut body = 0;
    while body < large.len() {
        body += client.bytes((large.len() - body).min(100 << 10)).await.len();
    }
    client.send(get("/")).await;
    assert_eq!(client.head().await.map(|head| head.status), Some(200), "and the connection goes on");
}
