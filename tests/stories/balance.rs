//! Which endpoint is next, and what names come to.

use std::time::Duration;

use crate::support::*;

#[tokio::test]
async fn equal_endpoints_get_equal_shares() {
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        // Beside this the machine's own delays are small.
        endpoints.push(Upstream::that().answers(200).delays(Duration::from_millis(5)).start().await);
    }
    let proxy = Config::over(&endpoints).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..300 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    for endpoint in &endpoints {
        // 100 expected; a busy machine makes one of them slow for a while.
        assert!((20..=250).contains(&endpoint.seen()), "{}", endpoint.seen());
    }
}

/// An upstream whose endpoints are written as these tables, beside `app`, for paths below `/w/`.
fn beside(app: &Upstream, endpoints: &[String], balance: &str) -> Config {
    Config::over([app]).and(&format!(
        "[[listener.route]]\nmatch = {{ path_prefix = \"/w/\" }}\nupstream = \"other\"\n\
         [upstream.other]\nendpoints = [{}]\n{balance}",
        endpoints.join(", ")
    ))
}

/// An endpoint with a weight and a priority.
fn endpoint(upstream: &Upstream, weight: u32, priority: u8) -> String {
    format!("{{ address = \"{}\", weight = {weight}, priority = {priority} }}", upstream.address())
}

#[tokio::test]
async fn weights_are_shares_whatever_the_kind() {
    // Of `least_loaded` only made-up time can tell: a busy machine makes one of them slow.
    for kind in ["least_request", "round_robin", "random"] {
        let light = Upstream::that().answers(200).start().await;
        let heavy = Upstream::that().answers(200).start().await;
        let endpoints = [endpoint(&light, 1, 0), endpoint(&heavy, 4, 0)];
        let proxy = beside(&light, &endpoints, &format!("balance.kind = \"{kind}\"")).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..400 {
            assert_eq!(client.exchange(&get("/w/")).await.status, 200);
        }
        // 80 and 320 expected; beyond these bounds lies less than one run in a million.
        assert!(light.seen() * 2 < heavy.seen(), "{kind}: {} and {}", light.seen(), heavy.seen());
        assert!(light.seen() > 16, "{kind}: {}", light.seen());
    }
}

#[tokio::test]
async fn a_slow_replica_gets_less() {
    let slow = Upstream::that().answers(200).delays(Duration::from_millis(100)).start().await;
    let fast = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&slow, &fast]).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..100 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    // Two answers of each until anything is known; 50 if nothing told them apart.
    assert!(
        slow.seen() <= 15,
        "{} of 100: at one request at a time only latency tells them apart",
        slow.seen()
    );
}

#[tokio::test]
async fn a_replica_that_fails_at_once_gets_hardly_anything() {
    let liar = Upstream::that().answers(500).start().await;
    let good = Upstream::that().answers(200).delays(Duration::from_millis(2)).start().await;
    let proxy = Config::over([&liar, &good]).upstream("breaker.mode = \"off\"").start().await;
    let mut client = proxy.connect().await;
    for _ in 0..300 {
        assert_eq!(client.exchange(&get("/")).await.status, 200, "its failures are retried elsewhere");
    }
    assert!(liar.seen() <= 20, "{} of 300", liar.seen());
}

/// The request with a key of this number.
type Asks = fn(usize) -> String;

#[tokio::test]
async fn a_key_leads_to_the_same_endpoint() {
    // Kind of key, and a request whose key is the number; a listener may need more.
    let requests: [(&str, Asks); 4] = [
        ("header:X-User", |n| format!("GET / HTTP/1.1\r\nHost: app\r\nx-user: {n}\r\n\r\n")),
        ("cookie:session", |n| format!("GET / HTTP/1.1\r\nHost: app\r\nCookie: a=b; session={n}\r\n\r\n")),
        ("path", |n| format!("GET /{n}?{n} HTTP/1.1\r\nHost: app\r\n\r\n")),
        ("client_ip", |n| format!("PROXY TCP4 10.0.0.{n} 10.0.0.200 1000 80\r\n{}", get("/"))),
    ];
    for (key, request) in requests {
        let mut endpoints = Vec::new();
        for _ in 0..4 {
            endpoints.push(Upstream::that().answers(200).start().await);
        }
        let config = |endpoints: &[Upstream]| {
            // One worker: a request is over for it before it reads the next.
            let config = Config::over(endpoints)
                .one_worker()
                .upstream(&format!("balance = {{ kind = \"hash\", hash = {{ key = \"{key}\" }} }}"));
            if key == "client_ip" {
                config.listener("proxy_protocol = true\ntrust = \"all\"")
            } else {
                config
            }
        };
        let proxy = config(&endpoints).start().await;
        let home = async |endpoints: &[Upstream], n: usize| {
            let before: Vec<usize> = endpoints.iter().map(Upstream::seen).collect();
            assert_eq!(proxy.connect().await.exchange(&request(n)).await.status, 200, "{key}");
            let home = endpoints.iter().zip(before).position(|(endpoint, before)| endpoint.seen() > before);
            endpoints[home.expect("one of them was asked")].address()
        };

        let mut homes = Vec::new();
        // With 40 of them one run in 6,000 would leave an endpoint without any.
        for n in 0..80 {
            homes.push(home(&endpoints, n).await);
        }
        for (n, known) in homes.iter().enumerate() {
            assert_eq!(home(&endpoints, n).await, *known, "{key} {n} again");
        }
        for endpoint in &endpoints {
            assert!(homes.contains(&endpoint.address()), "{key}: all have keys");
        }

        // One leaves: its keys move, and hardly any others.
        let gone = endpoints.remove(1).address();
        proxy.rewrite(&config(&endpoints).text());
        assert_eq!(proxy.admin_post("/reload").await.status, 200);
        let mut moved = 0;
        for (n, known) in homes.iter().enumerate() {
            let now = home(&endpoints, n).await;
            assert_eq!(home(&endpoints, n).await, now, "{key} {n} at its new place");
            moved += usize::from(now != *known && *known != gone);
        }
        assert!(moved <= 10, "{key}: {moved} of 80 moved though their endpoint stayed");
    }
}

#[tokio::test]
async fn requests_without_the_key_are_balanced() {
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        endpoints.push(Upstream::that().answers(200).start().await);
    }
    let balance = "balance = { kind = \"hash\", hash = { key = \"header:x-user\" } }";
    let proxy = Config::over(&endpoints).upstream(balance).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..60 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    assert!(endpoints.iter().all(|endpoint| endpoint.seen() > 5), "both have some");
}

#[tokio::test]
async fn the_next_priority_takes_over_and_gives_back() {
    let mut primary = Upstream::refusing();
    let secondary = Upstream::that().answers(200).start().await;
    let unused = Upstream::that().answers(200).start().await;
    let endpoints = [endpoint(&primary, 1, 0), endpoint(&secondary, 1, 1)];
    let settings = "balance.slow_start = \"500ms\"\nbreaker.mode = \"off\"";
    let proxy = beside(&unused, &endpoints, settings).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..50 {
        assert_eq!(client.exchange(&get("/w/")).await.status, 200);
    }
    secondary.has_seen(50).await;

    primary.wakes_up(Upstream::that().answers(200));
    eventually("the primary has all requests again", async || {
        let before = secondary.seen();
        let mut client = proxy.connect().await;
        for _ in 0..20 {
            assert_eq!(client.exchange(&get("/w/")).await.status, 200);
        }
        secondary.seen() == before
    })
    .await;
}

#[tokio::test]
async fn a_newcomer_starts_slowly() {
    let old = Upstream::that().answers(200).start().await;
    let new = Upstream::that().answers(200).start().await;
    let with = |endpoints: &[&Upstream]| {
        Config::over(endpoints.iter().copied())
            .upstream("balance = { kind = \"random\", slow_start = \"1h\" }")
    };
    let proxy = with(&[&old]).start().await;
    let ramp = async |number: usize| {
        let text = proxy.admin_get("/upstreams").await.text();
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let endpoint = &json["app"]["endpoints"][number];
        assert_eq!((&endpoint["weight"], &endpoint["priority"]), (&1.into(), &0.into()), "{endpoint}");
        assert!(number == 1 || endpoint["ewma_ms"].as_f64() > Some(0.0), "{endpoint}");
        endpoint["slow_start"].as_f64().expect("a number")
    };
    // The first answer alone says nothing of its latency.
    assert_eq!((proxy.get("/").await.status, proxy.get("/").await.status), (200, 200));
    assert_eq!(ramp(0).await, 1.0, "the first endpoints have nobody to be spared by");

    proxy.rewrite(&with(&[&old, &new]).text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert!(ramp(0).await == 1.0 && ramp(1).await < 0.2);
    let mut client = proxy.connect().await;
    for _ in 0..300 {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    // 27 expected of 300: a tenth of a share.
    assert!((3..=70).contains(&new.seen()), "{}", new.seen());
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
