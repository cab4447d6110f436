//! Clients of every kind and upstreams of every kind at the same time: whatever happens to whom, everyone gets a
//! true answer or a visible break, and afterwards nothing is left.

use std::time::Duration;

use crate::support::client::post;
use crate::support::http2::{Http2, RequestBody};
use crate::support::*;

/// An upstream that does something else for each request.
fn unreliable() -> upstream::Script {
    let mut script = Upstream::that();
    let large = "x".repeat(100_000);
    for round in 0..200 {
        script = match round % 14 {
            0 => script.answers(503),
            1 => script.resets_before_the_head(),
            2 => script.resets_in_mid_body(),
            3 => script.answers(200).with_body(&large),
            4 => script
                .answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n")
                .then_closes(),
            5 => script.never_answers(),
            6 => script.answers_raw("HTTP/1.1 200 OK\r\n\r\ngood").then_closes(),
            7 => script.answers_raw("nonsense\r\n\r\n"),
            8 => script.answers(200).with_body("good").delays(Duration::from_millis(20)),
            9 => script.answers(403).answers_before_reading_the_body(),
            10 => script.closes(),
            11 => script.answers(204),
            12 => script.answers_raw(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood",
            ),
            _ => script.answers(200).with_body("good"),
        };
        script = script.answers(200).with_body("good");
    }
    script
}

/// One client of one kind.
async fn client(address: std::net::SocketAddr, number: usize) {
    let mut raw = Client::connect(address).await;
    match number % 10 {
        0 | 1 => judge(raw.exchange(&get("/")).await),
        2 => judge(raw.exchange(&post("/", "a body")).await),
        3 => {
            raw.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n").await;
            raw.try_send("0\r\n\r\n").await;
            judge(raw.response().await);
        }
        4 => {
            // It leaves at some point.
            raw.send(get("/")).await;
            let _ = tokio::time::timeout(Duration::from_millis(number as u64 % 30), raw.head()).await;
        }
        5 => {
            raw.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf").await;
            raw.reset();
        }
        6 => {
            raw.send(get("/").repeat(3)).await;
            for _ in 0..3 {
                let Some(response) = raw.response_or_end("GET").await else { break };
                judge(response);
            }
        }
        7 => judge(raw.exchange("GET / HTTP/1.0\r\n\r\n").await),
        8 => {
            let mut two = Http2::connect(address).await;
            let request =
                two.request("PUT", "/").body(RequestBody::Left("a body".into())).expect("a request");
            if let Ok(response) = two.send(request).await {
                let status = response.status().as_u16();
                if let Ok(whole) = http2::read(response).await {
                    assert!(status != 200 || matches!(whole.body.len(), 0 | 4 | 100_000), "{:?}", whole.body);
                }
            }
        }
        _ => {
            raw.try_send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n").await;
            raw.response().await.must_be(400, "bad_request");
        }
    }
}

/// What a client sees is whole and one of the upstream's own bodies, or Outrigger's word, or visibly broken.
fn judge(response: Response) {
    if response.status < 200 || !response.whole {
        return;
    }
    let own = response.problem().is_some();
    let known = matches!(response.body.len(), 0 | 100_000) || response.body == b"good";
    assert!(own || known, "{response:?}: {}", response.text());
}

#[tokio::test]
async fn everyone_gets_a_true_answer_and_nothing_is_left() {
    let (one, other) = (unreliable().start().await, unreliable().start().await);
    let dead = Upstream::refusing();
    let proxy = Config::over([&one, &other, &dead])
        .upstream("timeout.attempt = \"300ms\"")
        .upstream("timeout.request = \"1s\"")
        .upstream("timeout.connect = \"200ms\"")
        .upstream("timeout.idle = \"500ms\"")
        .upstream("breaker.mode = \"shadow\"")
        .upstream("concurrency = { limit = { kind = \"fixed\", max = 8 }, queue = { size = 10, timeout = \"200ms\" } }")
        .upstream("connections = { idle_timeout = \"200ms\" }")
        .start()
        .await;
    let before = proxy.metric("process_open_fds").await;

    for batch in 0..20 {
        let address = proxy.listener();
        let clients: Vec<_> =
            (0..20).map(|number| tokio::spawn(client(address, 20 * batch + number))).collect();
        for client in clients {
            client.await.unwrap_or_else(|error| panic!("batch {batch}: {error}"));
        }
    }

    proxy.rests().await;
    proxy.metric_becomes("outrigger_client_connections", 0.0).await;
    for state in ["active", "idle"] {
        proxy
            .metric_becomes(&format!("outrigger_upstream_connections{{upstream=app,state={state}}}"), 0.0)
            .await;
    }
    eventually("the upstreams have nobody any more", async || one.open() + other.open() == 0).await;
    eventually("no descriptor is left", async || proxy.metric("process_open_fds").await <= before + 2.0)
        .await;
    let metrics = proxy.metrics().await;
    let counted = metrics.sum("outrigger_requests_total{upstream=app}");
    let timed = metrics.sum("outrigger_request_duration_seconds_count{upstream=app}");
    assert!(counted >= 360.0, "each request is counted: {counted}");
    assert!(timed <= counted, "{timed} {counted}");
    let attempts = metrics.sum("outrigger_attempts_total{upstream=app}");
    let by_endpoint = metrics.sum("outrigger_endpoint_attempts_total{upstream=app}");
    assert!(attempts >= by_endpoint && by_endpoint > 300.0, "{attempts} {by_endpoint}");
}
