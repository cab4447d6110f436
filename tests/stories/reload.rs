//! Another configuration while it runs: nobody loses anything, and what is wrong changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::support::*;

/// Another listener beside `main`.
fn another(name: &str, address: &str) -> String {
    format!("[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\nupstream = \"app\"\n")
}

#[tokio::test]
async fn reloads_under_load_lose_no_request_and_no_connection() {
    let (blue, green) =
        (Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await);
    let proxy = Config::over([&blue]).and("[server]\nworkers = 2").start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (mut client, stop) = (proxy.connect().await, stop.clone());
        clients.push(tokio::spawn(async move {
            let mut requests = 0;
            while !stop.load(Ordering::Relaxed) {
                let response = client.exchange(&get("/")).await;
                assert_eq!((response.status, response.whole), (200, true));
                assert_eq!(response.field("connection"), None, "the connection is kept");
                requests += 1;
            }
            requests
        }));
    }

    for turn in 1..=20 {
        // The one by its address, the other by a name that is new each time.
        let endpoint = match turn % 2 {
            0 => blue.address().to_string(),
            _ => format!("localhost:{}", green.address().port()),
        };
        let config = Config::over_addresses(&[endpoint]).and("[server]\nworkers = 2");
        proxy.rewrite(&config.and(&format!("# {turn}")).text());
        let answer = proxy.admin_post("/reload").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    stop.store(true, Ordering::Relaxed);

    let mut requests = 0;
    for client in clients {
        requests += client.await.expect("no request failed");
    }
    assert!(requests > 0 && green.seen() > 0, "both were used, by {requests} requests");
    assert_eq!(proxy.metric("outrigger_config_reloads_total{result=success}").await, 20.0);
    assert_eq!(proxy.metric("outrigger_config_reloads_total{result=failure}").await, 0.0);
}

#[tokio::test]
async fn a_changed_file_is_taken_however_it_was_changed() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let text = Config::over([&app]).text();

    std::fs::write(proxy.file(), format!("{text}# in place")).expect("written");
    proxy.metric_becomes("outrigger_config_reloads_total{result=success}", 1.0).await;

    proxy.rewrite(&format!("{text}# renamed"));
    proxy.metric_becomes("outrigger_config_reloads_total{result=success}", 2.0).await;
}

#[tokio::test]
async fn an_unwatched_file_waits_for_sighup() {
    let app = Upstream::that().answers(200).start().await;
    let mut proxy = Config::over([&app]).and("[server]\nwatch = false").start().await;
    proxy.rewrite(&Config::over([&app]).and("[server]\nwatch = true").text());

    proxy.signal(Signal::HUP);
    proxy.metric_becomes("outrigger_config_reloads_total{result=success}", 1.0).await;

    // Now it is watched.
    proxy.rewrite(&Config::over([&app]).text());
    proxy.metric_becomes("outrigger_config_reloads_total{result=success}", 2.0).await;
}

#[tokio::test]
async fn what_is_wrong_changes_nothing_and_says_why() {
    let app = Upstream::that().answers(200).start().await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = holder.local_addr().expect("it is bound").to_string();
    let good = Config::over([&app]).and("[server]\nwatch = false");
    let proxy = good.start().await;
    let before = proxy.admin_get("/config").await.text();
    let opens_first = another("first", "127.0.0.1:0");
    #[rustfmt::skip]
    let cases = [
        // why                              configuration                                                             the answer says
        ("not TOML",                        "what is this".to_owned(),                                                "key with no value"),
        ("an unknown key",                  Config::over([&app]).and("[server]\nworker = 1").text(),                  "workers"),
        ("a taken port",                    good.clone().and(&opens_first).and(&another("second", &taken)).text(),    "is taken"),
        ("workers need a restart",          Config::over([&app]).and("[server]\nwatch = false\nworkers = 7").text(), "server.workers needs a restart"),
        ("so does the admin address",       good.text().replace("address = \"127.0.0.1:0\"\n[telemetry]", "address = \"127.0.0.1:1\"\n[telemetry]"), "admin.address needs a restart"),
    ];
    let count = cases.len();
    for (why, config, says) in cases {
        proxy.rewrite(&config);
        let answer = proxy.admin_post("/reload").await;
        assert!(answer.status >= 400 && answer.text().contains(says), "{why}: {answer:?}\n{}", answer.text());
        assert_eq!(proxy.get("/").await.status, 200, "{why}");
        assert_eq!(proxy.admin_get("/config").await.text(), before, "{why}");
    }
    assert_eq!(proxy.metric("outrigger_config_reloads_total{result=failure}").await, count as f64);
    assert_eq!(proxy.metric("outrigger_config_last_reload_successful").await, 0.0);
    let told = |line: &&String| line.contains("configuration not reloaded");
    eventually("each is a line of the log", async || proxy.lines().iter().filter(told).count() == count)
        .await;
}

#[tokio::test]
async fn a_removed_listener_drains_and_an_added_one_opens() {
    let app = Upstream::that().answers(200).answers(200).holds().start().await;
    let config = Config::over([&app]);
    let proxy = config.clone().and(&another("old", "127.0.0.1:0")).start().await;
    let old = proxy.listener_named("old");
    let mut idle = Client::connect(old).await;
    assert_eq!(idle.exchange(&get("/idle")).await.status, 200);
    let mut busy = Client::connect(old).await;
    busy.send(get("/busy")).await;
    app.has_seen(2).await;

    let new = free_address();
    proxy.rewrite(&config.and(&another("new", &new.to_string())).text());
    let answer = proxy.admin_post("/reload").await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    eventually("the old one is closed", async || TcpStream::connect(old).await.is_err()).await;
    idle.closes().await;
    app.release(1);
    let response = busy.response().await;
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    busy.closes().await;

    app.release(1);
    assert_eq!(Client::connect(new).await.exchange(&get("/new")).await.status, 200);
}
