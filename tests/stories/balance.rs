//! Which endpoint is next, and what names come to.

use crate::support::*;

#[tokio::test]
async fn equal_endpoints_get_equal_shares() {
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        endpoints.push(Upstream::that().answers(200).start().await);
    }
    let proxy = Config::over(&endpoints).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..300 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    for endpoint in &endpoints {
        // 100 expected; beyond 40 of them lies less than one run in a million.
        assert!((60..=140).contains(&endpoint.seen()), "{}", endpoint.seen());
    }
}

#[tokio::test]
async fn weights_are_shares() {
    let light = Upstream::that().answers(200).start().await;
    let heavy = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&light])
        .upstream("balance.kind = \"least_request\"")
        .and(&format!(
            "[[listener.route]]\nmatch = {{ path_prefix = \"/w/\" }}\nupstream = \"weighted\"\n[upstream.weighted]\n\
             endpoints = [\"{}\", {{ address = \"{}\", weight = 4 }}]",
            light.address(),
            heavy.address()
        ))
        .start()
        .await;
    let mut client = proxy.connect().await;
    for _ in 0..300 {
        assert_eq!(client.exchange(&get("/w/")).await.status, 200);
    }
    // 60 and 240 expected.
    assert!(light.seen() * 2 < heavy.seen(), "{} and {}", light.seen(), heavy.seen());
    assert!(light.seen() > 10, "{}", light.seen());
}

#[tokio::test]
async fn a_busy_endpoint_is_asked_less() {
    let busy = Upstream::that().answers(200).holds().start().await;
    let idle = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&busy, &idle]).start().await;

    // Whoever falls to the busy one stays there: after the first few, the other is always less loaded.
    let mut waiting = Vec::new();
    for _ in 0..60 {
        let mut client = proxy.connect().await;
        client.send(get("/")).await;
        let total = waiting.len() + idle.seen() + 1;
        eventually("it went to one of them", async || busy.seen() + idle.seen() >= total).await;
        if busy.seen() > waiting.len() {
            waiting.push(client);
        } else {
            assert_eq!(client.response().await.status, 200);
        }
    }

    assert!(busy.seen() <= 2, "{} of 60", busy.seen());
    busy.release(waiting.len());
    for mut client in waiting {
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn names_are_resolved() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let name = format!("localhost:{}", app.address().port());
    let proxy = Config::over_addresses(std::slice::from_ref(&name)).start().await;

    eventually("the name is resolved", async || proxy.get("/").await.text() == "hello").await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.listener());
    proxy.connect().await.exchange(&request).await;
    let last = app.requests().pop().expect("a request");
    assert_eq!(last.field("host"), Some(name.as_str()), "the endpoint's name for who asked for the listener");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_stops_nothing() {
    let app = Upstream::that().answers(200).start().await;
    let nowhere = "nowhere.invalid:80".to_owned();
    let both = Config::over_addresses(&[nowhere.clone(), app.address().to_string()]).start().await;
    for _ in 0..20 {
        assert_eq!(both.get("/").await.status, 200);
    }

    let proxy = Config::over_addresses(&[nowhere]).start().await;
    let response = proxy.get("/").await;
    assert!(response.is_for("dns_error") && response.status == 502, "{response:?} {}", response.text());
    assert_eq!(proxy.admin_get("/livez").await.status, 200);
}
