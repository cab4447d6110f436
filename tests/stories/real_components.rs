//! Real components on both sides: nginx and HAProxy as upstreams; curl, wrk and h2load as clients; promtool reads
//! the metrics.

use std::process::Command;

use crate::support::servers::{Server, curl, must, program};
use crate::support::*;

async fn nginx() -> Server {
    Server::nginx_with(|port, folder| {
        format!(
            "keepalive_requests 7; client_max_body_size 10m;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    location = /echo {{ return 200 \"$request_method $http_host $http_x_retry_attempt\"; }}
    location = /redirect {{ return 302 /small; }}
    location = /unavailable {{ return 503; }}
    location = /empty {{ return 204; }}
  }}"
        )
    })
    .await
}

async fn haproxy() -> Server {
    Server::haproxy_with(|port, folder| {
        format!(
            "frontend in
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain file {folder}/small if {{ path /small }}
  http-request return status 503 content-type text/plain string busy if {{ path /unavailable }}
  http-request return status 204 if {{ path /empty }}
  http-request return status 200 content-type text/plain lf-string \"%[method] %[req.hdr(host)]\""
        )
    })
    .await
}

#[tokio::test]
async fn nginx_as_the_upstream() {
    let nginx = nginx().await;
    let proxy = nginx.config().start().await;
    let mut client = proxy.connect().await;

    for round in 0..20 {
        // nginx ends a connection behind 7 requests: nobody sees it.
        assert_eq!(client.exchange(&get("/small")).await.text(), "hello from a file\n", "round {round}");
    }
    let large = client.exchange(&get("/large")).await;
    assert!(large.whole && large.body.len() == 3 << 20);
    assert_eq!(
        client.exchange("HEAD /large HTTP/1.1\r\nHost: a\r\n\r\n").await.field("content-length"),
        Some("3145728")
    );
    assert_eq!(
        client.exchange(&get("/echo")).await.text().trim_end_matches('0'),
        "GET app.test ",
        "nothing was retried"
    );
    assert_eq!(client.exchange(&get("/empty")).await.status, 204);
    assert_eq!(
        client.exchange(&get("/redirect")).await.field("location").map(|to| to.ends_with("/small")),
        Some(true)
    );
    assert_eq!(client.exchange(&get("/nowhere")).await.status, 404);
    assert_eq!(client.exchange(&get("/unavailable")).await.status, 503);
    assert_eq!(proxy.metric("outrigger_retries_total{upstream=app,reason=503}").await, 3.0);
    let range = "GET /small HTTP/1.1\r\nHost: a\r\nRange: bytes=0-4\r\n\r\n";
    assert_eq!(client.exchange(range).await.text(), "hello");
    proxy.rests().await;
}

#[tokio::test]
async fn haproxy_as_the_upstream() {
    let haproxy = haproxy().await;
    let proxy = haproxy.config().start().await;
    let mut client = proxy.connect().await;

    for _ in 0..20 {
        assert_eq!(client.exchange(&get("/small")).await.text(), "hello from a file\n");
    }
    assert_eq!(client.exchange(&get("/echo")).await.text(), "GET app.test");
    assert_eq!(client.exchange(&client::post("/echo", "body")).await.text(), "POST app.test");
    assert_eq!(client.exchange(&get("/empty")).await.status, 204);
    assert_eq!(client.exchange(&get("/unavailable")).await.text(), "busy");
    proxy.rests().await;
}

#[tokio::test]
async fn nginx_as_the_upstream_of_http_2() {
    // A session ends behind 50 requests, by GOAWAY: nobody sees it, though many streams are open then.
    let nginx = Server::nginx_with(|port, folder| {
        format!(
            "keepalive_requests 50; client_max_body_size 10m;
  server {{ listen 127.0.0.1:{port} http2; root {folder}; location = /echo {{ return 200 $request_method; }} }}"
        )
    })
    .await;
    let proxy = nginx.config().wide().http2().start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get("/small")).await.text(), "hello from a file\n");
    assert_eq!(client.exchange(&client::post("/echo", "body")).await.text(), "POST");
    let large = client.exchange(&get("/large")).await;
    assert!(large.whole && large.body.len() == 3 << 20);
    for (arguments, path) in [(&["-n2000", "-c4", "-m16"], "small"), (&["-n40", "-c2", "-m20"], "large")] {
        let mut command = Command::new(program("h2load", "nghttp2-client"));
        command.args(arguments).arg(format!("http://{}/{path}", proxy.listener()));
        let report = must(command).await;
        assert!(report.contains(" 0 failed, 0 errored, 0 timeout"), "{arguments:?}: {report}");
        assert!(!report.contains(" 5xx") || report.contains(" 0 5xx"), "{arguments:?}: {report}");
    }
    proxy.rests().await;
}

#[tokio::test]
async fn curl_as_the_client() {
    let nginx = nginx().await;
    let proxy = nginx.config().start().await;
    let base = format!("http://{}", proxy.listener());
    let small = format!("{base}/small");

    assert_eq!(must(curl(&[&small])).await, "hello from a file\n");
    assert_eq!(must(curl(&["--http1.0", &small])).await, "hello from a file\n");
    assert_eq!(must(curl(&["--http2-prior-knowledge", &small])).await, "hello from a file\n");
    // Asks for an upgrade to h2c, which is not taken up.
    assert_eq!(must(curl(&["--http2", &small])).await, "hello from a file\n");
    assert_eq!(must(curl(&["--proxy", &base, "http://some.test/small"])).await, "hello from a file\n");
    assert_eq!(must(curl(&["--location", &format!("{base}/redirect")])).await, "hello from a file\n");
    assert!(must(curl(&["--head", &small])).await.contains("Content-Length: 18"));
    assert_eq!(must(curl(&[&small, &small])).await, "hello from a file\n".repeat(2));
    let large = must(curl(&[
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %{size_download}",
        &format!("{base}/large"),
    ]));
    assert_eq!(large.await, "200 3145728");
}

#[tokio::test]
async fn curl_uploads() {
    let app = Upstream::that().answers(200).with_body("taken").start().await;
    let proxy = Config::over([&app]).start().await;
    let url = format!("http://{}/", proxy.listener());
    let file = std::env::temp_dir().join(format!("outrigger-upload-{}", std::process::id()));
    std::fs::write(&file, vec![b'x'; 2 << 20]).expect("a file");
    let from = file.display().to_string();
    let data = format!("@{from}");

    let ways: [&[&str]; 5] = [
        &["--upload-file", &from, &url],
        &["--header", "Transfer-Encoding: chunked", "--upload-file", &from, &url],
        &["--header", "Expect: 100-continue", "--data-binary", &data, &url],
        &["--http2-prior-knowledge", "--data-binary", &data, &url],
        &["--http2-prior-knowledge", "--header", "Expect: 100-continue", "--data-binary", &data, &url],
    ];
    for (number, way) in ways.into_iter().enumerate() {
        assert_eq!(must(curl(way)).await, "taken", "{way:?}");
        app.has_all_of(number).await;
        assert_eq!(app.request(number).body.len(), 2 << 20, "{way:?}");
    }
    let _ = std::fs::remove_file(file);
}

#[tokio::test]
async fn wrk_as_the_client() {
    let nginx = nginx().await;
    let proxy = nginx.config().start().await;
    let mut command = Command::new(program("wrk", "wrk"));
    command.args(["-t1", "-c16", "-d1s", &format!("http://{}/small", proxy.listener())]);

    let report = must(command).await;

    assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");
    let metrics = proxy.metrics().await;
    let good = metrics.sum("outrigger_requests_total{code=200,outcome=ok}");
    assert!(good > 100.0, "{good}\n{report}");
    // wrk leaves in the middle of its last requests.
    let left = metrics.sum("outrigger_requests_total{outcome=cancelled}");
    assert_eq!(metrics.sum("outrigger_requests_total"), good + left, "{report}");
    proxy.rests().await;
}

#[tokio::test]
async fn h2load_with_all_streams_and_with_small_windows() {
    let nginx = nginx().await;
    let proxy = nginx.config().wide().start().await;
    let ways: [(&[&str], &str); 3] = [
        (&["-n3000", "-c2", "-m100"], "small"),
        (&["-n40", "-c2", "-m20", "-w16", "-W16"], "large"),
        (&["-n40", "-c2", "-m20", "-w30", "-W30"], "large"),
    ];
    for (arguments, path) in ways {
        let mut command = Command::new(program("h2load", "nghttp2-client"));
        command.args(arguments).arg(format!("http://{}/{path}", proxy.listener()));

        let report = must(command).await;

        assert!(report.contains(" 0 failed, 0 errored, 0 timeout"), "{arguments:?}: {report}");
    }
    proxy.rests().await;
}

#[tokio::test]
async fn h2load_as_the_client() {
    let nginx = nginx().await;
    let proxy = nginx.config().wide().start().await;
    let mut command = Command::new(program("h2load", "nghttp2-client"));
    command.args(["-n2000", "-c4", "-m16", &format!("http://{}/small", proxy.listener())]);

    let report = must(command).await;

    assert!(report.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{report}");
    assert!(report.contains("status codes: 2000 2xx"), "{report}");
    proxy.rests().await;
}

#[tokio::test]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    let app = Upstream::that().answers(200).answers(500).resets_before_the_head().start().await;
    let proxy = Config::over([&app]).start().await;
    for _ in 0..3 {
        proxy.get("/").await;
    }
    let text = proxy.admin_get("/metrics").await;
    assert!(
        text.field("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")),
        "{text:?}"
    );

    let file = std::env::temp_dir().join(format!("outrigger-metrics-{}", std::process::id()));
    std::fs::write(&file, text.body).expect("a file");
    let mut promtool = Command::new(program("promtool", "prometheus"));
    promtool.args(["check", "metrics"]).stdin(std::fs::File::open(&file).expect("the file"));
    let report = must(promtool).await;
    let _ = std::fs::remove_file(file);
    assert_eq!(report.trim(), "", "promtool has nothing to say");
}
