//! Connections to endpoints: used again while they are good, never when they might not be.

use std::time::Duration;

use crate::support::client::post;
use crate::support::*;

#[tokio::test]
async fn a_long_answer_leaves_no_stream_behind() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
    let app = Upstream::that()
        .answers_raw(half)
        .and_after(Duration::from_millis(600), "cd")
        .answers(200)
        .start()
        .await;
    let proxy =
        Config::over([&app]).one_worker().upstream("concurrency.stream_after = \"200ms\"").start().await;
    let mut client = proxy.connect().await;
    client.send(get("/long")).await;
    proxy.metric_becomes("outrigger_streams", 1.0).await;
    assert_eq!(client.response().await.text(), "abcd");
    proxy.metric_becomes("outrigger_streams", 0.0).await;
    assert_eq!(client.exchange(&get("/")).await.status, 200);
    assert_eq!((app.connections(), proxy.metric("outrigger_streams").await), (1, 0.0), "it was kept");
}

#[tokio::test]
async fn connections_are_shared_by_clients() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).one_worker().start().await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(app.connections(), 1);
    assert_eq!(proxy.metric("outrigger_upstream_connects_total{upstream=app}").await, 1.0);
    proxy.metric_becomes("outrigger_upstream_connections{upstream=app,state=idle}", 1.0).await;
}

#[tokio::test]
async fn side_by_side_requests_have_connections_of_their_own() {
    let app = Upstream::that().answers(200).holds().start().await;
    let proxy = Config::over([&app]).start().await;
    let mut clients = Vec::new();
    for count in 1..=5 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        app.has_seen(count).await;
        clients.push(client);
    }
    assert_eq!(app.connections(), 5);
    assert_eq!(proxy.metric("outrigger_upstream_connections{upstream=app,state=active}").await, 5.0);
    app.release(5);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn idle_connections_are_not_kept_for_long() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).upstream("connections = { idle_timeout = \"200ms\" }").start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(app.open(), 1);
    app.has_open(0).await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn a_connection_serves_so_many_requests_and_so_long() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).upstream("connections = { max_requests = 2 }").start().await;
    let mut client = proxy.connect().await;
    for _ in 0..6 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert_eq!(app.connections(), 3);

    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).upstream("connections = { max_age = \"100ms\" }").start().await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(app.connections(), 3);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_not_used() {
    let app = Upstream::that().answers(200).with_body("hello").closes_keep_alive_after(1).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;
    let mut good = 0;
    for _ in 0..20 {
        // POST, so that nothing could be sent twice to hide it.
        let response = client.exchange(&post("/", "once")).await;
        good += usize::from(response.text() == "hello");
        app.has_open(0).await;
    }
    // On a busy machine the kernel may deliver a close behind the request that follows it: nobody can help that.
    assert!(good >= 18, "{good} of 20");
}

#[tokio::test]
async fn a_get_that_meets_the_close_is_sent_again_unseen() {
    let app = Upstream::that()
        .answers(200)
        .with_body("hello")
        .closes_at_the_second_request_on_a_connection()
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    for number in 0..5 {
        assert_eq!(client.exchange(&get("/")).await.text(), "hello", "request {number}");
    }
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(client.exchange(put).await.text(), "hello");
    assert_eq!(app.requests().last().expect("one").body, b"body");
    proxy.metric_becomes("outrigger_requests_total{outcome=ok}", 6.0).await;
}

#[tokio::test]
async fn a_post_that_meets_the_close_is_never_sent_twice() {
    let app = Upstream::that()
        .answers(200)
        .with_body("hello")
        .closes_at_the_second_request_on_a_connection()
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get("/")).await.text(), "hello");

    client.exchange(&post("/pay", "10 EUR")).await.must_be(502, "upstream_reset");

    let posts = app.requests().into_iter().filter(|request| request.method == "POST").count();
    assert_eq!(posts, 1, "its bytes had left: once and never again");
    assert_eq!(proxy.metric("outrigger_retries_skipped_total{upstream=app,reason=method}").await, 1.0);
}

#[tokio::test]
async fn a_method_that_may_not_be_sent_twice_is_not() {
    // Whoever takes PUT out of `methods` knows why.
    for line in ["retry.methods = [\"GET\"]", "retry.methods = []"] {
        let app = Upstream::that()
            .answers(200)
            .with_body("hello")
            .closes_at_the_second_request_on_a_connection()
            .start()
            .await;
        let proxy = Config::over([&app]).upstream(line).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(&get("/")).await.text(), "hello");

        let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
        client.exchange(put).await.must_be_because(502, "upstream_reset", line);

        let puts = app.requests().into_iter().filter(|request| request.method == "PUT").count();
        assert_eq!(puts, 1, "{line}");
    }
}

#[tokio::test]
async fn a_connection_with_half_a_request_on_it_is_not_used_again() {
    let app = Upstream::that()
        .answers(403)
        .answers_before_reading_the_body()
        .answers(200)
        .with_body("next")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").await;
    assert_eq!(client.response().await.status, 403);
    drop(client);

    assert_eq!(proxy.get("/").await.text(), "next");
    assert_ne!(app.request(0).connection, app.request(1).connection);
    proxy.rests().await;
}

#[tokio::test]
async fn a_connection_whose_answer_was_left_is_not_used_again() {
    let app = Upstream::that()
        .answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello")
        .and_when_released(vec![b'x'; 1_000_000 - 5])
        .answers(200)
        .with_body("next")
        .start()
        .await;
    let proxy = Config::over([&app]).start().await;

    let mut client = proxy.connect().await;
    client.send(get("/")).await;
    client.head().await.expect("a head");
    drop(client);
    app.has_open(0).await;
    app.release(1);

    assert_eq!(proxy.get("/").await.text(), "next");
    assert_ne!(app.request(0).connection, app.request(1).connection);
}
