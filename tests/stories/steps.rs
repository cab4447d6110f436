//! Fail at every step (SQLite's way): one exchange is told again and again, broken behind its first byte, its
//! second, … until a run meets no fault. Each time an answer came, and nothing stays in flight.

use crate::support::*;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Field: value\r\n\r\nhello";
const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n";

/// Breaks `answer` behind each of its bytes, once by a close and once by a reset, for this request; `judge` gets
/// whether the whole answer had come, and what the client saw.
async fn break_at_every_byte(
    config: &str,
    answer: &str,
    request: &str,
    judge: impl Fn(bool, &Response) -> bool,
) {
    let mut script = Upstream::that();
    for length in 0..=answer.len() {
        script = script.answers_raw(&answer[..length]).then_closes().answers(200).with_body("the second");
        script = script.answers_raw(&answer[..length]).then_resets().answers(200).with_body("the second");
    }
    let app = script.start().await;
    let proxy = Config::over([&app]).upstream("breaker.mode = \"off\"").upstream(config).start().await;
    for length in 0..=answer.len() {
        for (end, number) in [("close", 4 * length), ("reset", 4 * length + 2)] {
            let response = proxy.connect().await.exchange(request).await;
            let whole = length == answer.len();
            assert!(judge(whole, &response), "{end} behind byte {length}: {response:?} {}", response.text());
            // Each step has two answers in the script, whether it took one or both.
            if app.seen() == number + 1 {
                assert_eq!(proxy.get("/between").await.text(), "the second", "{end} behind byte {length}");
            }
            assert_eq!(app.seen(), number + 2, "{end} behind byte {length}: no attempt too many");
        }
    }
    proxy.rests().await;
    proxy.metric_becomes("outrigger_upstream_connections{upstream=app,state=active}", 0.0).await;
}

/// One attempt: the whole answer, or a failure that shows. A kept connection that was closed before a byte came may
/// be the stale race: a GET is sent again then.
fn single(whole: bool, response: &Response) -> bool {
    match response.text().as_str() {
        "hello" if response.whole => whole,
        "the second" => !whole,
        _ => !whole && (response.status == 502 || !response.whole),
    }
}

const GENEROUS: &str = "retry = { attempts = 2, backoff = { base = \"1ms\", max = \"1ms\" }, budget = { ratio = 1.0, min_per_second = 1000 } }";

#[tokio::test]
async fn an_answer_of_known_length_to_a_get() {
    // A small answer is checked whole before its head goes out, so that every fault can be made good.
    break_at_every_byte(GENEROUS, ANSWER, &get("/"), |whole, response| {
        response.whole && response.text() == if whole { "hello" } else { "the second" }
    })
    .await;
}

#[tokio::test]
async fn an_answer_in_chunks_to_a_get() {
    break_at_every_byte(GENEROUS, CHUNKED, &get("/"), |whole, response| match response.text().as_str() {
        "hello" if response.whole => whole,
        "the second" => response.whole && !whole,
        _ => !response.whole,
    })
    .await;
}

#[tokio::test]
async fn an_answer_to_a_post() {
    break_at_every_byte(GENEROUS, ANSWER, &client::post("/", "body"), |whole, response| {
        if whole { response.text() == "hello" } else { response.status == 502 || !response.whole }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_buffered() {
    let config = "retry = { attempts = 1, response_buffer = \"0B\" }";
    break_at_every_byte(config, ANSWER, &get("/"), single).await;
}

#[tokio::test]
async fn an_answer_to_http_1_0() {
    let config = "retry = { attempts = 1, response_buffer = \"0B\" }";
    break_at_every_byte(config, CHUNKED, "GET / HTTP/1.0\r\n\r\n", single).await;
}

#[tokio::test]
async fn a_request_that_its_client_breaks_off() {
    let request =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    for length in 0..=request.len() {
        let mut client = proxy.connect().await;
        client.send(&request[..length]).await;
        if length == request.len() {
            assert_eq!(client.response().await.status, 200);
        } else if length % 2 == 0 {
            client.reset();
        }
    }
    proxy.rests().await;
    proxy.metric_becomes("outrigger_client_connections{listener=main}", 0.0).await;
    let whole = app.requests().into_iter().filter(|request| request.whole).count();
    assert_eq!(whole, 1, "only the last one was whole");
}

#[tokio::test]
async fn a_request_in_two_pieces_however_it_is_cut() {
    let request = "POST /a?b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    let app = Upstream::that().answers(200).with_body("ok").start().await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    for cut in 1..request.len() {
        client.send(&request[..cut]).await;
        tokio::task::yield_now().await;
        client.send(&request[cut..]).await;
        assert_eq!(client.response().await.text(), "ok", "cut at {cut}");
        let seen = app.request(cut - 1);
        assert_eq!((seen.target.as_str(), seen.body.as_slice()), ("/a?b", &b"hello"[..]), "cut at {cut}");
        assert_eq!(value(&seen.trailers, "x-sum"), Some("1"), "cut at {cut}");
    }
}

#[tokio::test]
async fn an_upload_that_its_upstream_breaks_off() {
    let body = "x".repeat(20_000);
    let steps: Vec<_> = (0..=body.len()).step_by(997).collect();
    let script =
        steps.iter().fold(Upstream::that(), |script, count| script.resets_after_reading(*count).answers(200));
    let app = script.start().await;
    let proxy = Config::over([&app]).upstream("breaker.mode = \"off\"").upstream(GENEROUS).start().await;
    for (number, count) in steps.iter().enumerate() {
        let put = client::post("/", &body).replacen("POST", "PUT", 1);
        assert_eq!(proxy.connect().await.exchange(&put).await.status, 200, "behind {count} bytes");
        assert!(app.request(2 * number + 1).body == body.as_bytes(), "behind {count} bytes");
    }
    proxy.rests().await;
}

#[tokio::test]
async fn a_post_that_its_upstream_breaks_off() {
    let body = "x".repeat(20_000);
    let steps: Vec<_> = (0..=body.len()).step_by(1999).collect();
    let script = steps.iter().fold(Upstream::that(), |script, count| script.resets_after_reading(*count));
    let app = script.start().await;
    let proxy = Config::over([&app]).upstream("breaker.mode = \"off\"").upstream(GENEROUS).start().await;
    for (number, count) in steps.iter().enumerate() {
        let response = proxy.connect().await.exchange(&client::post("/", &body)).await;
        response.must_be_because(502, "upstream_reset", &format!("behind {count} bytes"));
        assert_eq!(app.seen(), number + 1, "behind {count} bytes: never a second sending");
    }
    proxy.rests().await;
}
