//! What an upstream answers wrongly never looks right: a broken head becomes `protocol_error` or
//! `upstream_reset`, a broken body ends the client's message visibly broken, its connection is never used
//! again, and nothing that it sent too much reaches the next request.

use crate::support::http2::Http2;
use crate::support::*;

/// How the upstream's connection goes on behind the bytes of a case.
#[derive(Clone, Copy)]
enum Then {
    Open,
    Closes,
    Resets,
}
use Then::{Closes, Open, Resets};

/// A case: why it is wrong, the bytes that come, and what the connection does then.
type Case = (String, Vec<u8>, Then);

fn case(why: impl Into<String>, bytes: impl AsRef<[u8]>, then: Then) -> Case {
    (why.into(), bytes.as_ref().to_vec(), then)
}

/// Asks for each case and then for something else. `judge` says what is wrong with the answer to the first.
async fn each_is_judged(
    line: &str,
    cases: &[Case],
    request: &str,
    judge: impl Fn(&Response) -> Option<String>,
) {
    let mut script = Upstream::that();
    for (_, bytes, then) in cases {
        script = match then {
            Open => script.answers_raw(bytes),
            Closes => script.answers_raw(bytes).then_closes(),
            Resets => script.answers_raw(bytes).then_resets(),
        };
        script = script.answers(200).with_body("the next answer");
    }
    let app = script.asked_by_number().start().await;
    let proxy = Config::over([&app]).plain().upstream(line).start().await;
    let mut wrong = Vec::new();
    for (number, (why, bytes, _)) in cases.iter().enumerate() {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let before = app.seen();
        let mut client = proxy.connect().await;
        client.send(request.replacen("GET /", &format!("GET /{}", 2 * number), 1)).await;
        let mut response = client.response_or_end("GET").await;
        while response.as_ref().is_some_and(|response| response.status < 200) {
            response = client.response_or_end("GET").await;
        }
        match response {
            Some(response) => {
                if let Some(complaint) = judge(&response) {
                    let body = response.text();
                    wrong.push(format!("{why}: {complaint}: {} {body:.200?} for {shown:?}", response.status));
                }
            }
            None => wrong.push(format!("{why}: no answer at all for {shown:?}")),
        }
        let next = proxy.get(&format!("/{}", 2 * number + 1)).await;
        if next.text() != "the next answer" {
            wrong.push(format!("{why}: the next request got {} {:?}", next.status, next.text()));
        }
        let requests = app.requests().split_off(before);
        match requests.as_slice() {
            [first, next] if first.connection == next.connection => {
                wrong.push(format!("{why}: its connection was used again"));
            }
            [_, _] => {}
            more => wrong.push(format!("{why}: {} attempts for two requests", more.len())),
        }
    }
    assert!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
    proxy.rests().await;
}

/// The answer is Outrigger's own, for this reason.
fn must_be(reason: &'static str) -> impl Fn(&Response) -> Option<String> {
    move |response| {
        (response.status != 502 || !response.is_for(reason)).then(|| format!("expected 502 {reason}"))
    }
}

/// The answer is Outrigger's own, or visibly broken.
fn must_be_broken(response: &Response) -> Option<String> {
    let own =
        response.status == 502 && (response.is_for("protocol_error") || response.is_for("upstream_reset"));
    (response.whole && !own).then(|| "it looks whole".to_owned())
}

fn broken_heads() -> Vec<Case> {
    let heads = [
        ("no HTTP", "hello, who is there?\r\n\r\n"),
        ("a TLS alert", "\x15\x03\x01\x00\x02\x02\x28"),
        ("SSH", "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
        ("SMTP", "220 mail.test ESMTP ready\r\n"),
        ("Redis", "-ERR unknown command 'GET'\r\n"),
        ("ICY", "ICY 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("another protocol", "HTPP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("the protocol has case", "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/0.9", "HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("no version", "HTTP 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("words in another order", "HTTP/1.1 OK 200\r\nContent-Length: 0\r\n\r\n"),
        ("no status", "HTTP/1.1 \r\nContent-Length: 0\r\n\r\n"),
        ("nothing behind the version", "HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        ("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
        ("a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
        ("a status of letters", "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"),
        ("a signed status", "HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 000", "HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 099", "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
        ("a space before the version", " HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("two spaces before the status", "HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n"),
        (
            "a switch nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ),
        ("LF ends the status line", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
        ("LF ends a field", "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n"),
        ("LF ends the head", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n"),
        ("LF everywhere", "HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
        ("CR in a value", "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n"),
        ("CR in the phrase", "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n"),
        ("NUL in the phrase", "HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n"),
        ("NUL in a value", "HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n"),
        ("BEL in a value", "HTTP/1.1 200 OK\r\nX: \x07\r\nContent-Length: 0\r\n\r\n"),
        ("DEL in a value", "HTTP/1.1 200 OK\r\nX: \x7f\r\nContent-Length: 0\r\n\r\n"),
        ("a fold", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
        ("a fold by a tab", "HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\nContent-Length: 0\r\n\r\n"),
        ("a space before the first field", "HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 0\r\n\r\n"),
        ("no colon", "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n"),
        ("no name", "HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n"),
        ("a space before a colon", "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n"),
        ("a space before the length's colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
        ("a space in a name", "HTTP/1.1 200 OK\r\nX Y: z\r\nContent-Length: 0\r\n\r\n"),
        ("a byte beyond ASCII in a name", "HTTP/1.1 200 OK\r\nX\u{e4}: z\r\nContent-Length: 0\r\n\r\n"),
        (
            "an early end in an interim answer",
            "HTTP/1.1 100 Continue\r\nX\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
    ];
    let mut cases: Vec<_> = heads.iter().map(|(why, head)| case(*why, head, Open)).collect();
    for length in ["x", "-1", "+1", "", "1 1", "1,2", "0x1", "1.0", "18446744073709551616", "1;", "\"1\""] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nxxxx");
        cases.push(case(format!("Content-Length: {length:?}"), head, Open));
    }
    for coding in
        ["", "gzip", "identity", "xchunked", "chunked, gzip", "chunked, chunked", "chunked;a=b", "chu nked"]
    {
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n");
        cases.push(case(format!("Transfer-Encoding: {coding:?}"), head, Open));
    }
    let framings = [
        ("two lengths", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
        ("length and chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("chunked and length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ];
    for (why, rest) in framings {
        cases.push(case(why, format!("HTTP/1.1 200 OK\r\n{rest}"), Open));
    }
    let in_1_0 = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    cases.push(case("chunked in HTTP/1.0 (RFC 9112 §6.1)", in_1_0, Open));
    cases.push(case(
        "a field without an end",
        format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(2 << 20)),
        Open,
    ));
    cases.push(case("a phrase without an end", format!("HTTP/1.1 200 {}", "y".repeat(2 << 20)), Open));
    let many: String = (0..20_000).map(|i| format!("X-{i}: y\r\n")).collect();
    cases.push(case(
        "far too many fields",
        format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"),
        Open,
    ));
    cases
}

fn broken_bodies() -> Vec<Case> {
    let bodies = [
        ("less than its length", "Content-Length: 10\r\n\r\nhello", Closes),
        ("less than its length, then a reset", "Content-Length: 10\r\n\r\nhello", Resets),
        ("nothing of its length", "Content-Length: 10\r\n\r\n", Closes),
        ("less than its large length", "Content-Length: 1000000\r\n\r\nhello", Closes),
        ("less than its large length, then a reset", "Content-Length: 1000000\r\n\r\nhello", Resets),
        ("until close, then a reset", "X: y\r\n\r\nhello", Resets),
        ("no chunk", "Transfer-Encoding: chunked\r\n\r\n", Closes),
        ("no last chunk", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Closes),
        ("no last chunk, then a reset", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Resets),
        ("half a chunk", "Transfer-Encoding: chunked\r\n\r\n5\r\nhel", Closes),
        ("half an end", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", Closes),
        ("only the last size", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0", Closes),
        ("half a trailer", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y", Closes),
        ("no end behind a trailer", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n", Closes),
        ("a size that is none", "Transfer-Encoding: chunked\r\n\r\ng\r\nhello\r\n0\r\n\r\n", Open),
        ("a negative size", "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", Open),
        ("0x", "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", Open),
        ("no size", "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", Open),
        (
            "a size too large",
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            Open,
        ),
        ("LF behind a size", "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", Open),
        ("LF behind data", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", Open),
        ("nothing behind data", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", Open),
        ("more data than its size", "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", Open),
        ("LF ends the body", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\n", Open),
        ("a trailer without a colon", "Transfer-Encoding: chunked\r\n\r\n0\r\nX\r\n\r\n", Open),
        ("NUL in a trailer", "Transfer-Encoding: chunked\r\n\r\n0\r\nX: \0\r\n\r\n", Open),
        ("a folded trailer", "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n z\r\n\r\n", Open),
        ("a bad chunk behind a good one", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n", Open),
    ];
    bodies.iter().map(|(why, rest, then)| case(*why, format!("HTTP/1.1 200 OK\r\n{rest}"), *then)).collect()
}

#[tokio::test]
async fn broken_heads_are_protocol_errors() {
    each_is_judged("", &broken_heads(), &get("/"), must_be("protocol_error")).await;
}

#[tokio::test]
async fn answers_that_break_off_before_their_head_ends_are_resets() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut cases = vec![case("nothing, and the end", "", Closes), case("nothing, and a reset", "", Resets)];
    for length in [1, 8, 12, 15, 17, 20, head.len() - 1] {
        cases.push(case(format!("{length} bytes, and the end"), &head[..length], Closes));
        cases.push(case(format!("{length} bytes, and a reset"), &head[..length], Resets));
    }
    cases.push(case("only an interim answer", "HTTP/1.1 100 Continue\r\n\r\n", Closes));
    // On fresh connections: on a kept one it would be the stale race, and the request sent again.
    each_is_judged("connections = { max_requests = 1 }", &cases, &get("/"), must_be("upstream_reset")).await;
}

#[tokio::test]
async fn broken_bodies_never_look_whole() {
    each_is_judged("", &broken_bodies(), &get("/"), must_be_broken).await;
}

#[tokio::test]
async fn broken_bodies_never_look_whole_when_nothing_is_buffered() {
    each_is_judged("retry.response_buffer = \"0B\"", &broken_bodies(), &get("/"), must_be_broken).await;
}

#[tokio::test]
async fn broken_bodies_never_look_whole_to_http_1_0() {
    // It cannot see a missing last chunk: only a reset tells it.
    each_is_judged("", &broken_bodies(), "GET / HTTP/1.0\r\n\r\n", must_be_broken).await;
}

#[tokio::test]
async fn broken_bodies_never_look_whole_to_http_2() {
    for (why, bytes, then) in broken_bodies() {
        let script = Upstream::that().answers_raw(&bytes);
        let script = match then {
            Open => script,
            Closes => script.then_closes(),
            Resets => script.then_resets(),
        };
        let app = script.start().await;
        let proxy = Config::over([&app]).plain().start().await;
        let mut client = Http2::connect(proxy.listener()).await;
        let request =
            client.request("GET", "/").body(http2::RequestBody::Left("".into())).expect("a request");
        let Ok(response) = client.send(request).await else { continue };
        if let Ok(whole) = http2::read(response).await {
            assert_eq!(whole.head.status, 502, "{why}: it looks whole: {:?}", whole.body);
            assert!(whole.reason().is_some(), "{why}: {:?}", whole.body);
        }
        proxy.rests().await;
    }
}

#[tokio::test]
async fn surplus_bytes_never_reach_the_next_request() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let answers = [
        ("a second answer", format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood{evil}")),
        ("a byte", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood!".to_owned()),
        ("a line end", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood\r\n".to_owned()),
        (
            "behind chunks",
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n{evil}"),
        ),
    ];
    let cases: Vec<_> = answers.iter().map(|(why, answer)| case(*why, answer, Open)).collect();
    let good =
        |response: &Response| (response.text() != "good").then(|| "the answer itself is good".to_owned());
    each_is_judged("", &cases, &get("/"), good).await;

    let bodyless = [
        ("a body with 204", format!("HTTP/1.1 204 No Content\r\n\r\n{evil}")),
        ("a body with 304", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil{evil}")),
        ("behind no body", format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{evil}")),
    ];
    let cases: Vec<_> = bodyless.iter().map(|(why, answer)| case(*why, answer, Open)).collect();
    let empty = |response: &Response| (!response.body.is_empty()).then(|| "it has no body".to_owned());
    each_is_judged("", &cases, &get("/"), empty).await;
}

#[tokio::test]
async fn a_body_in_answer_to_head_does_not_reach_the_next_request() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        .answers(200)
        .with_body("good")
        .start()
        .await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;

    assert_eq!(client.exchange("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    assert_eq!(client.exchange(&get("/")).await.text(), "good");
    assert_ne!(app.request(0).connection, app.request(1).connection);
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_end_an_idle_connection() {
    // As servers do that say 408 before they close.
    let app = Upstream::that()
        .answers(200)
        .and_when_released("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        .answers(200)
        .with_body("good")
        .start()
        .await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;

    assert_eq!(client.exchange(&get("/")).await.status, 200);
    app.release(1);
    app.has_sent(2).await;

    let post = client::post("/", "not twice");
    assert_eq!(client.exchange(&post).await.text(), "good");
    assert_ne!(app.request(0).connection, app.request(1).connection);
}

#[tokio::test]
async fn interim_answers_without_an_end_are_bounded() {
    let flood = "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n".repeat(100_000);
    let app = Upstream::that().answers_raw(flood).then_hangs().start().await;
    let proxy = Config::over([&app]).plain().within("2s").start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let last = loop {
        let response = client.response().await;
        if response.status >= 200 {
            break response;
        }
    };

    assert!([502, 504].contains(&last.status), "{last:?}");
    proxy.rests().await;
}

#[tokio::test]
async fn what_is_odd_but_clear_is_passed_on() {
    let answers = [
        ("no phrase", "HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\ngood"),
        ("a strange status", "HTTP/1.1 599 Own\r\nContent-Length: 4\r\n\r\ngood"),
        ("spaces around a value", "HTTP/1.1 200 OK\r\nContent-Length: \t 4 \t\r\n\r\ngood"),
        (
            "a coding has no case",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n",
        ),
        ("an extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\ngood\r\n0;c\r\n\r\n"),
        ("bytes beyond ASCII", "HTTP/1.1 200 Gr\u{fc}n\r\nX: \u{e4}\r\nContent-Length: 4\r\n\r\ngood"),
    ];
    for (why, answer) in answers {
        let app = Upstream::that().answers_raw(answer).start().await;
        let proxy = Config::over([&app]).plain().start().await;
        let mut client = proxy.connect().await;
        for _ in 0..2 {
            let response = client.exchange(&get("/")).await;
            assert_eq!((response.text().as_str(), response.whole), ("good", true), "{why}");
        }
        assert_eq!(app.connections(), 1, "{why}: a good connection is kept");
    }
}

#[tokio::test]
async fn broken_answers_are_counted_by_their_reason() {
    let app = Upstream::that().answers_raw("nonsense\r\n\r\n").then_closes().closes().start().await;
    let proxy = Config::over([&app]).plain().start().await;

    proxy.get("/").await.must_be(502, "protocol_error");
    proxy.get("/").await.must_be(502, "upstream_reset");

    let metrics = proxy.metrics().await;
    for reason in ["protocol_error", "upstream_reset"] {
        assert_eq!(
            metrics.sum(&format!("outrigger_attempts_total{{upstream=app,outcome={reason}}}")),
            1.0,
            "{reason}"
        );
    }
}

#[tokio::test]
async fn interim_answers_do_not_pile_up_for_a_client_that_does_not_read() {
    let flood = "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n".repeat(2_000_000);
    let app = Upstream::that().answers_raw(flood).then_hangs().start().await;
    let proxy = Config::over([&app]).plain().upstream("timeout.attempt = \"2s\"").start().await;
    let before = proxy.metric("process_resident_memory_bytes").await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    let mut most: f64 = 0.0;
    eventually("the attempt has ended", async || {
        let metrics = proxy.metrics().await;
        most = most.max(metrics.sum("process_resident_memory_bytes") - before);
        metrics.sum("outrigger_attempts_total{upstream=app}") >= 1.0
    })
    .await;

    assert!(most < f64::from(32 << 20), "{most} bytes more for one request");
}
