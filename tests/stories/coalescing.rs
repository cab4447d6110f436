//! Identical GETs in flight share one answer, and what is not for all is shared with nobody.

use std::time::Duration;

use crate::support::client::post;
use crate::support::http2::{Http2, RawHttp2};
use crate::support::*;

fn over(app: &Upstream) -> Config {
    Config::over([app]).plain().upstream("fallback.coalesce = true")
}

fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n\r\n")
}

/// Clients that have all sent this, each on a connection of its own.
async fn send(proxy: &Proxy, requests: &[String]) -> Vec<Client> {
    let mut clients = Vec::new();
    for request in requests {
        let mut client = proxy.connect().await;
        client.send(request).await;
        clients.push(client);
    }
    clients
}

/// Waits until so many requests are at the proxy and have no answer.
async fn waiting(proxy: &Proxy, followers: u64) {
    eventually("they wait", async || {
        let upstreams: serde_json::Value =
            serde_json::from_str(&proxy.admin_get("/upstreams").await.text()).expect("JSON");
        upstreams.to_string().contains(&format!("\"followers\":{followers}"))
    })
    .await;
}

#[tokio::test]
async fn many_who_ask_the_same_get_one_answer() {
    let app =
        Upstream::that().answers(200).with_body("one").with_field("ETag", "\"1\"").holds().start().await;
    let proxy = over(&app).start().await;
    let mut first = send(&proxy, &[get("/a?b")]).await;
    app.has_seen(1).await;
    let mut others = send(&proxy, &vec![get("/a?b"); 20]).await;
    let mut http2 = Http2::connect(proxy.listener()).await;
    let by_http2 = tokio::spawn(async move { http2.get("/a?b").await });
    waiting(&proxy, 21).await;
    app.release(1);

    let led = first[0].response().await;
    assert_eq!((led.text().as_str(), led.field("cache-status")), ("one", None));
    for client in &mut others {
        let response = client.response().await;
        assert_eq!(
            (response.status, response.text().as_str(), response.field("etag")),
            (200, "one", Some("\"1\""))
        );
        assert_eq!(response.field("cache-status"), Some("outrigger; fwd=miss; collapsed"));
    }
    let response = by_http2.await.expect("no panic");
    assert_eq!(
        (&response.body[..], response.field("cache-status")),
        (&b"one"[..], Some("outrigger; fwd=miss; collapsed"))
    );
    assert_eq!(app.seen(), 1);
    assert_eq!(proxy.metric("outrigger_coalesced_total{upstream=app}").await, 21.0);
    proxy.metric_becomes("outrigger_requests_total{upstream=app,code=200,outcome=ok}", 22.0).await;
    app.release(1);
    assert_eq!(proxy.get("/a?b").await.text(), "one");
    assert_eq!(app.seen(), 2, "whoever comes later asks anew");
    proxy.rests().await;
}

#[tokio::test]
async fn the_id_in_an_answer_to_another_request_is_ones_own() {
    let app = Upstream::that()
        .answers(200)
        .with_field("X-Request-Id", "of-the-first")
        .holds()
        .resets_before_the_head()
        .start()
        .await;
    let proxy = over(&app).upstream("fallback.stale = {}").start().await;
    let of = |id: &str| get_with("/", &format!("X-Request-Id: {id}"));
    let mut clients = send(&proxy, &[of("of-the-first")]).await;
    app.has_seen(1).await;
    clients.extend(send(&proxy, &[of("of-the-second")]).await);
    waiting(&proxy, 1).await;
    app.release(1);
    assert_eq!(clients[0].response().await.field("x-request-id"), Some("of-the-first"));
    let followed = clients[1].response().await;
    assert_eq!(followed.field("x-request-id"), Some("of-the-second"), "{followed:?}");
    let stale = proxy.connect().await.exchange(&of("of-the-third")).await;
    assert_eq!((stale.status, stale.field("x-request-id")), (200, Some("of-the-third")));
}

#[tokio::test]
async fn a_large_answer_is_shared_when_its_leader_has_it() {
    let large = vec![b'x'; 200 << 10];
    let app = Upstream::that().answers(200).with_body(&large).holds().start().await;
    let proxy = over(&app).start().await;
    let mut clients = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    clients.extend(send(&proxy, &[get("/"), get("/")]).await);
    waiting(&proxy, 2).await;
    app.release(1);
    for client in &mut clients {
        assert_eq!(client.response().await.body, large);
    }
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn a_failure_is_shared_and_not_asked_for_again_by_each() {
    for (script, status) in [
        (Upstream::that().resets_before_the_head(), 502),
        (Upstream::that().answers(503).with_body("bad"), 503),
    ] {
        let app = script.holds().start().await;
        let proxy = over(&app).start().await;
        let mut clients = send(&proxy, &[get("/")]).await;
        app.has_seen(1).await;
        clients.extend(send(&proxy, &vec![get("/"); 10]).await);
        waiting(&proxy, 10).await;
        app.release(20);
        for client in &mut clients {
            let response = client.response().await;
            match status {
                502 => response.must_be(502, "upstream_reset"),
                _ => assert_eq!((response.status, response.text().as_str()), (503, "bad")),
            }
        }
        assert_eq!(app.seen(), 1, "{status}");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn what_concerns_one_caller_or_class_is_shared_with_nobody() {
    let shed = "outrigger; error=connection_limit_reached; details=\"load_shed\"";
    let late = "outrigger; error=http_response_timeout; details=\"deadline_exceeded\"";
    for (status, name, value) in [(429, "X", "y"), (503, "Proxy-Status", shed), (504, "Proxy-Status", late)] {
        let app = Upstream::that()
            .answers(status)
            .with_field(name, value)
            .holds()
            .answers(200)
            .with_body("one")
            .holds()
            .start()
            .await;
        let proxy = over(&app).start().await;
        let mut clients = send(&proxy, &[get("/")]).await;
        app.has_seen(1).await;
        clients.extend(send(&proxy, &[get("/"), get("/"), get("/")]).await);
        waiting(&proxy, 3).await;
        app.release(1);
        assert_eq!(clients[0].response().await.status, status, "{value}");
        app.has_seen(2).await;
        waiting(&proxy, 2).await;
        app.release(1);
        for client in &mut clients[1..] {
            assert_eq!(client.response().await.text(), "one", "{value}");
        }
        assert_eq!(app.seen(), 2, "{value}: one of them asked for all");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn what_is_for_one_alone_is_asked_for_by_each() {
    for (name, value) in [
        ("Set-Cookie", "me=1"),
        ("Cache-Control", "private"),
        ("Cache-Control", "no-store"),
        ("Vary", "*"),
        ("Content-Type", "text/event-stream"),
    ] {
        let app =
            Upstream::that().answers(200).with_body("mine").with_field(name, value).holds().start().await;
        let proxy = over(&app).start().await;
        let mut clients = send(&proxy, &[get("/")]).await;
        app.has_seen(1).await;
        clients.extend(send(&proxy, &vec![get("/"); 4]).await);
        waiting(&proxy, 4).await;
        app.release(1);
        assert_eq!(clients[0].response().await.text(), "mine", "{name}: {value}");
        app.has_seen(5).await;
        // And for a while nobody waits for others: the next two are with the upstream at once.
        clients.extend(send(&proxy, &[get("/"), get("/")]).await);
        app.has_seen(7).await;
        app.release(10);
        for client in &mut clients[1..] {
            let response = client.response().await;
            assert_eq!(
                (response.text().as_str(), response.field("cache-status")),
                ("mine", None),
                "{name}: {value}"
            );
        }
    }
}

#[tokio::test]
async fn nobody_waits_for_a_body_that_takes_its_time() {
    for (why, fields) in [
        ("an event stream", "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"),
        ("one of unknown length", "Transfer-Encoding: chunked"),
        ("one that crawls", "Content-Length: 30000"),
        ("one that would be too large", "Content-Length: 3000000"),
    ] {
        let app = Upstream::that()
            .answers_raw(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n3\r\none\r\n"))
            .holds()
            .then_hangs()
            .answers(200)
            .with_body("own")
            .holds()
            .start()
            .await;
        let proxy = over(&app).start().await;
        let mut leader = send(&proxy, &[get("/")]).await;
        app.has_seen(1).await;
        let mut others = send(&proxy, &vec![get("/"); 5]).await;
        waiting(&proxy, 5).await;
        app.release(1);
        assert_eq!(leader[0].head().await.expect("a head").status, 200, "{why}");
        // All of them, and for a while whoever comes, are with the upstream.
        eventually(why, async || app.seen() == 6).await;
        others.extend(send(&proxy, &vec![get("/"); 2]).await);
        eventually(why, async || app.seen() == 8).await;
        app.release(7);
        for client in &mut others {
            let response = client.response().await;
            assert_eq!((response.text().as_str(), response.field("cache-status")), ("own", None), "{why}");
        }
        drop(leader);
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_does_not_lead_for_long() {
    let large = vec![b'x'; 200 << 10];
    let app = Upstream::that().answers(200).with_body(&large).holds().start().await;
    let proxy = over(&app).within("60s").start().await;
    let mut slow = RawHttp2::connect(proxy.listener()).await;
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "app.test"), (":path", "/")];
    // It never opens its window.
    slow.headers(1, &head, true).await;
    app.has_seen(1).await;
    let mut others = send(&proxy, &vec![get("/"); 3]).await;
    waiting(&proxy, 3).await;
    app.release(1);
    app.has_seen(2).await;
    waiting(&proxy, 2).await;
    app.release(1);
    for client in &mut others {
        assert_eq!(client.response().await.body, large);
    }
    assert_eq!(app.seen(), 2, "one of them asked for all");
}

#[tokio::test]
async fn where_an_answer_breaks_off_one_of_the_others_asks_again_for_all() {
    let broken = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let once = || Upstream::that().answers_raw(broken).holds().then_closes();
    for (why, script, breaks_again) in [
        ("once", once().answers(200).with_body("whole").holds(), false),
        ("again", once().answers_raw(broken).holds().then_closes(), true),
    ] {
        let app = script.start().await;
        let proxy = over(&app).start().await;
        let mut clients = send(&proxy, &[get("/")]).await;
        app.has_seen(1).await;
        clients.extend(send(&proxy, &vec![get("/"); 4]).await);
        waiting(&proxy, 4).await;
        app.release(1);
        assert!(!clients[0].response().await.whole, "{why}");
        app.has_seen(2).await;
        waiting(&proxy, 3).await;
        app.release(5);
        let mut led = 0;
        for client in &mut clients[1..] {
            let response = client.response().await;
            match (breaks_again, response.whole) {
                (false, _) => assert_eq!(response.text(), "whole"),
                (true, false) => led += 1,
                (true, true) => response.must_be(502, "upstream_reset"),
            }
        }
        assert_eq!((app.seen(), led), (2, u32::from(breaks_again)), "{why}: one of them asked for all");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn requests_that_differ_or_are_in_person_are_not_shared() {
    let cases = [
        ("another path", get("/b")),
        ("another query", get("/a?x")),
        ("in person", get_with("/a", "Authorization: me")),
        ("with a cookie", get_with("/a", "Cookie: me=1")),
        ("a part", get_with("/a", "Range: bytes=0-1")),
        ("under a condition", get_with("/a", "If-None-Match: \"1\"")),
        ("one that wants its own", get_with("/a", "Cache-Control: no-cache")),
        ("another method", "HEAD /a HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
        ("a write", post("/a", "x")),
        ("another host", "GET /a HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned()),
    ];
    let app = Upstream::that().answers(200).with_body("one").holds().start().await;
    let proxy = over(&app).start().await;
    let mut first = send(&proxy, &[get("/a")]).await;
    app.has_seen(1).await;
    for (number, (why, request)) in cases.iter().enumerate() {
        let clients = send(&proxy, std::slice::from_ref(request)).await;
        eventually(why, async || app.seen() == number + 2).await;
        std::mem::forget(clients);
    }
    app.release(20);
    assert_eq!(first[0].response().await.text(), "one");
}

#[tokio::test]
async fn an_answer_in_another_language_is_not_taken() {
    let app = Upstream::that()
        .answers(200)
        .with_body("deutsch")
        .with_field("Vary", "Accept-Language")
        .holds()
        .answers(200)
        .with_body("english")
        .with_field("Vary", "Accept-Language")
        .start()
        .await;
    let proxy = over(&app).start().await;
    let mut german = send(&proxy, &[get_with("/", "Accept-Language: de")]).await;
    app.has_seen(1).await;
    german.extend(send(&proxy, &[get_with("/", "Accept-Language: de")]).await);
    let mut english = send(&proxy, &[get_with("/", "Accept-Language: en")]).await;
    waiting(&proxy, 2).await;
    app.release(1);
    assert_eq!(german[0].response().await.text(), "deutsch");
    assert_eq!(german[1].response().await.text(), "deutsch");
    assert_eq!(english[0].response().await.text(), "english");
    assert_eq!(app.seen(), 2);
}

#[tokio::test]
async fn those_who_want_another_language_share_theirs_and_soon_do_not_wait_for_the_first() {
    let answer = |script: crate::support::upstream::Script, body: &str| {
        script.answers(200).with_body(body).with_field("Vary", "Accept-Language").holds()
    };
    let script = ["deutsch", "english", "deutsch", "english"].into_iter().fold(Upstream::that(), answer);
    let app = script.start().await;
    let proxy = over(&app).start().await;
    let (german, english) = ("Accept-Language: de", "Accept-Language: en");
    let mut clients = send(&proxy, &[get_with("/", german)]).await;
    app.has_seen(1).await;
    clients.extend(send(&proxy, &vec![get_with("/", english); 5]).await);
    waiting(&proxy, 5).await;
    app.release(1);
    app.has_seen(2).await;
    waiting(&proxy, 4).await;
    app.release(1);
    assert_eq!(clients[0].response().await.text(), "deutsch");
    for client in &mut clients[1..] {
        assert_eq!(client.response().await.text(), "english");
    }
    // From now on it is known what tells them apart.
    let mut clients = send(&proxy, &[get_with("/", german)]).await;
    app.has_seen(3).await;
    clients.extend(send(&proxy, &[get_with("/", english)]).await);
    app.has_seen(4).await;
    app.release(2);
    assert_eq!(clients[0].response().await.text(), "deutsch");
    assert_eq!(clients[1].response().await.text(), "english");
    proxy.rests().await;
}

#[tokio::test]
async fn where_the_leaders_client_leaves_another_one_leads() {
    let app = Upstream::that().answers(200).with_body("one").holds().start().await;
    let proxy = over(&app).start().await;
    let leader = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    let mut others = send(&proxy, &[get("/"), get("/"), get("/")]).await;
    waiting(&proxy, 3).await;
    drop(leader);
    app.has_seen(2).await;
    waiting(&proxy, 2).await;
    app.release(5);
    for client in &mut others {
        assert_eq!(client.response().await.text(), "one");
    }
    assert_eq!(app.seen(), 2, "one of them asked for all");
    proxy.rests().await;
}

#[tokio::test]
async fn a_leader_that_hangs_is_replaced_and_nobody_waits_beyond_its_time() {
    let app = Upstream::that().never_answers().answers(200).with_body("one").start().await;
    let proxy = over(&app)
        .upstream("timeout = { connect = \"100ms\", request = \"10s\", attempt = \"1s\" }")
        .start()
        .await;
    // The leader's own time is its caller's.
    let mut leader = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    let mut others = send(&proxy, &[get("/"), get_with("/", "x-request-timeout-ms: 300")]).await;
    others[1].response().await.must_be(504, "deadline_exceeded");
    let led = leader[0].response().await;
    led.must_be(504, "attempt_timeout");
    let followed = others[0].response().await;
    // It failed with its leader, or had taken over just before.
    assert!(followed.is_for("attempt_timeout") || followed.text() == "one", "{followed:?}");
    proxy.rests().await;
}

#[tokio::test]
async fn a_leader_whose_time_is_up_fails_alone() {
    for (timeout, reason) in
        [("request = \"400ms\"", "request_timeout"), ("attempt = \"400ms\"", "attempt_timeout")]
    {
        let app = Upstream::that().never_answers().answers(200).with_body("one").start().await;
        let proxy = over(&app)
            .and(&format!("[[listener.route]]\nmatch = {{ headers = {{ x-quick = \"1\" }} }}\nupstream = \"app\"\ntimeout = {{ connect = \"100ms\", {timeout} }}"))
            .start()
            .await;
        let mut leader = send(&proxy, &[get_with("/", "X-Quick: 1")]).await;
        app.has_seen(1).await;
        let mut others = send(&proxy, &[get("/"), get("/")]).await;
        waiting(&proxy, 2).await;
        leader[0].response().await.must_be(504, reason);
        for client in &mut others {
            assert_eq!(client.response().await.text(), "one", "{reason}");
        }
        assert_eq!(app.seen(), 2, "{reason}: one of them asked for all");
        proxy.rests().await;
    }
}

#[tokio::test]
async fn whoever_leaves_or_has_no_time_left_disturbs_nobody() {
    let app = Upstream::that().answers(200).with_body("one").holds().start().await;
    let proxy = over(&app).start().await;
    let mut clients = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    clients.extend(send(&proxy, &[get("/"), get("/")]).await);
    let leaves = send(&proxy, &[get("/")]).await;
    waiting(&proxy, 3).await;
    drop(leaves);
    waiting(&proxy, 2).await;
    let mut late = send(&proxy, &[get_with("/", "x-request-timeout-ms: 50")]).await;
    late[0].response().await.must_be(504, "deadline_exceeded");
    waiting(&proxy, 2).await;
    app.release(1);
    for client in &mut clients {
        assert_eq!(client.response().await.text(), "one");
    }
    assert_eq!(app.seen(), 1);
    proxy.rests().await;
}

#[tokio::test]
async fn a_write_parts_those_before_it_from_those_behind() {
    let app = Upstream::that()
        .answers(200)
        .with_body("old")
        .holds()
        .answers(204)
        .answers(200)
        .with_body("new")
        .start()
        .await;
    let proxy = over(&app).start().await;
    let mut before = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    assert_eq!(proxy.connect().await.exchange(&post("/", "new")).await.status, 204);
    assert_eq!(proxy.get("/").await.text(), "new", "it reads what it wrote");
    app.release(1);
    assert_eq!(before[0].response().await.text(), "old");
}

#[tokio::test]
async fn followers_of_a_failure_get_what_stands_in_for_it() {
    let app = Upstream::that()
        .answers(200)
        .with_body("kept")
        .answers_raw("HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n")
        .holds()
        .start()
        .await;
    let proxy = over(&app).upstream("fallback.stale = {}").start().await;
    assert_eq!(proxy.get("/").await.text(), "kept");
    let mut clients = send(&proxy, &[get("/")]).await;
    app.has_seen(2).await;
    clients.extend(send(&proxy, &[get("/"), get("/")]).await);
    waiting(&proxy, 2).await;
    app.release(5);
    for client in &mut clients {
        let response = client.response().await;
        assert_eq!(response.text(), "kept");
        assert!(response.field("cache-status").is_some_and(|status| status.contains("fwd-status=500")));
    }
    assert_eq!(app.seen(), 2);
    assert_eq!(proxy.metric("outrigger_fallbacks_total{upstream=app,kind=stale}").await, 3.0);
}

#[tokio::test]
async fn followers_of_a_failure_for_which_nothing_stands_in_ask_once_more_for_all() {
    let bad = "HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n";
    let app = Upstream::that().answers_raw(bad).holds().start().await;
    let proxy = over(&app).upstream("fallback.stale = {}").start().await;
    let mut clients = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    clients.extend(send(&proxy, &vec![get("/"); 10]).await);
    waiting(&proxy, 10).await;
    app.release(1);
    app.has_seen(2).await;
    waiting(&proxy, 9).await;
    app.release(20);
    for client in &mut clients {
        let response = client.response().await;
        assert_eq!((response.status, response.text().as_str()), (500, "bad"));
    }
    assert_eq!(app.seen(), 2);
    assert_eq!(proxy.metric("outrigger_coalesced_total{upstream=app}").await, 9.0);
    proxy.rests().await;
}

#[tokio::test]
async fn whoever_waits_for_an_answer_leaves_nothing_behind() {
    let app = Upstream::that().answers(200).with_body("one").holds().start().await;
    let proxy = over(&app).start().await;
    let mut leader = send(&proxy, &[get("/")]).await;
    app.has_seen(1).await;
    let others = send(&proxy, &vec![get("/"); 5]).await;
    waiting(&proxy, 5).await;
    drop(others);
    waiting(&proxy, 0).await;
    app.release(1);
    assert_eq!(leader[0].response().await.text(), "one");
    assert_eq!(app.seen(), 1);
    proxy.metric_becomes("outrigger_requests_total{outcome=cancelled}", 5.0).await;
    // A moment for what should not come.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(app.seen(), 1);
}
