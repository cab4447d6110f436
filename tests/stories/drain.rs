//! Leaving: unready at once, everybody is served to the end, and the end comes.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::support::*;

const INGRESS: &str = "direction = \"ingress\"";

/// Waits until nobody listens at `address`.
async fn refuses(address: std::net::SocketAddr) {
    eventually("the port is closed", async || TcpStream::connect(address).await.is_err()).await;
}

#[tokio::test]
async fn sigterm_lets_requests_end_and_then_the_process() {
    let app = Upstream::that().answers(200).holds().start().await;
    let mut proxy = Config::over([&app]).listener(INGRESS).start().await;
    let mut busy = proxy.connect().await;
    busy.send(get("/busy")).await;
    app.has_seen(1).await;

    proxy.signal(Signal::TERM);
    eventually("it is unready", async || proxy.admin_get("/readyz").await.status == 503).await;
    // Whoever has not noticed is still served.
    let mut late = proxy.connect().await;
    late.send(get("/late")).await;
    app.has_seen(2).await;
    app.release(2);
    for client in [&mut busy, &mut late] {
        let response = client.response().await;
        assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    }
    assert_eq!(proxy.ends().await, Some(0));
}

#[tokio::test]
async fn drain_ends_ingress_and_leaves_egress_to_the_service() {
    let app = Upstream::that().answers(200).start().await;
    let ingress =
        "[[listener]]\nname = \"in\"\ndirection = \"ingress\"\naddress = \"127.0.0.1:0\"\nupstream = \"app\"";
    let proxy = Config::over([&app]).and(ingress).start().await;
    let mut idle = Client::connect(proxy.listener_named("in")).await;
    assert_eq!(idle.exchange(&get("/")).await.status, 200);

    assert!(proxy.admin_post("/drain").await.status < 300);
    let response = proxy.get("/").await;
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    assert!(proxy.admin_get("/readyz").await.text().contains("draining"));

    // Egress is busy all the while: that keeps no ingress listener.
    let start = Instant::now();
    while TcpStream::connect(proxy.listener_named("in")).await.is_ok() {
        assert_eq!(proxy.get("/").await.status, 200);
        assert!(start.elapsed() < PATIENCE, "the ingress listener ends");
    }
    assert!(start.elapsed() > Duration::from_millis(2500), "balancers need 3 s to notice");
    idle.closes().await;
    assert!(proxy.admin_get("/readyz").await.text().contains("drained"));
    assert_eq!(proxy.get("/").await.status, 200, "egress is served on");
}

#[tokio::test]
async fn egress_serves_until_the_service_is_gone() {
    let app = Upstream::that().answers(200).start().await;
    let service = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let named = format!("[server]\nservice = \"{}\"", service.local_addr().expect("it is bound"));
    let mut proxy = Config::over([&app]).and(&named).start().await;

    proxy.signal(Signal::TERM);
    let start = Instant::now();
    // Longer than the quiet that would end it without a service.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(proxy.get("/").await.status, 200);

    drop(service);
    assert_eq!(proxy.ends().await, Some(0));
    assert!(start.elapsed() < Duration::from_millis(6500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn drain_timeout_ends_everything() {
    let app = Upstream::that().never_answers().start().await;
    let mut proxy = Config::over([&app]).and("[server]\ndrain_timeout = \"500ms\"").start().await;
    let mut stuck = proxy.connect().await;
    stuck.send(get("/stuck")).await;
    app.has_seen(1).await;

    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ends().await, Some(0));
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    let told = |line: &String| line.contains("server.drain_timeout is over") && line.contains("1 request");
    eventually("the log says what was cut", async || proxy.lines().iter().any(told)).await;
}

#[tokio::test]
async fn what_still_comes_after_drain_timeout_is_refused() {
    let app = Upstream::that().answers(200).start().await;
    let mut proxy = Config::over([&app]).and("[server]\ndrain_timeout = \"300ms\"").start().await;
    proxy.signal(Signal::TERM);
    // A client that never goes elsewhere.
    let mut refused = None;
    while let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, TcpStream::connect(proxy.listener())).await {
        drop(stream);
        let mut client = proxy.connect().await;
        client.try_send(get("/")).await;
        if let Some(response) = client.response_or_end("GET").await
            && response.status != 200
        {
            refused = Some(response);
            break;
        }
    }
    refused.expect("it is refused before the end").must_be(503, "draining");
    assert_eq!(proxy.ends().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let app = Upstream::that().never_answers().start().await;
    let mut proxy = Config::over([&app]).start().await;
    let mut stuck = proxy.connect().await;
    stuck.send(get("/stuck")).await;
    app.has_seen(1).await;

    proxy.signal(Signal::INT);
    eventually("it is unready", async || proxy.admin_get("/readyz").await.status == 503).await;
    let start = Instant::now();
    proxy.signal(Signal::INT);
    assert_eq!(proxy.ends().await, Some(1));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_idle_ingress_listener_refuses_after_it_ended_and_quit_ends_the_rest() {
    let app = Upstream::that().answers(200).start().await;
    let mut proxy = Config::over([&app]).listener(INGRESS).start().await;
    proxy.admin_post("/drain").await;
    refuses(proxy.listener()).await;
    proxy.admin_post("/quit").await;
    assert_eq!(proxy.ends().await, Some(0));
}
