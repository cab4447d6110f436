//! Replicas that are slow, lying, half dead or gone, while clients keep asking: who notices, and who comes back.
//!
//! One story for each way to fail; what each may cost, in milliseconds and percent, is measured by the bench
//! `failing`.

use std::time::Duration;

use crate::support::replica::{Asking, Behaviour, Replica};
use crate::support::*;

/// Three replicas' clients.
const CLIENTS: usize = 6;

/// As the defaults, but that a replica is tried again after a moment, so that a story takes one.
fn over<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> Config {
    let addresses: Vec<_> = replicas.into_iter().map(Replica::address).collect();
    Config::over_addresses(&addresses)
        .upstream("outlier.eject_for = { base = \"300ms\", max = \"1s\" }")
        .upstream("balance.slow_start = \"500ms\"")
}

/// Attempts that take so long have failed.
const ATTEMPTS: &str = "timeout = { connect = \"100ms\", attempt = \"100ms\", request = \"2s\" }";

#[tokio::test]
async fn a_replica_that_crawls_is_ejected_as_slow_and_comes_back() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    // Who balances by latency avoids it before it has shown enough to be judged.
    let proxy = over(&replicas).upstream("balance.kind = \"round_robin\"").start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    assert_eq!(clients.next(300).await.bad, 0);

    // Far from any timeout, and its answers are fine.
    let crawling = &replicas[0];
    crawling.behaves(Behaviour::Slow(Duration::from_millis(150)));
    let ejections =
        format!("outrigger_endpoint_ejections_total{{endpoint={},reason=slow}}", crawling.address());
    eventually("it is ejected as slow", async || proxy.metric(&ejections).await >= 1.0).await;

    let before = crawling.seen();
    clients.next(300).await;
    let asked = crawling.seen() - before;
    assert!(asked <= 15, "{asked} of 300 requests still went to it");

    crawling.behaves(Behaviour::Well);
    crawling.is_healthy(&proxy, true).await;
    crawling.is_asked_again(50).await;
    assert_eq!(clients.so_far().bad, 0);
    assert_eq!(replicas[1].ejections(&proxy).await + replicas[2].ejections(&proxy).await, 0.0);
}

#[tokio::test]
async fn a_replica_that_crawls_is_avoided_by_whoever_balances_by_latency() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    assert_eq!(clients.next(300).await.bad, 0);

    let crawling = &replicas[0];
    crawling.behaves(Behaviour::Slow(Duration::from_millis(150)));
    eventually("its share is less than a twentieth", async || {
        let before = crawling.seen();
        clients.next(300).await;
        crawling.seen() - before <= 15
    })
    .await;

    crawling.behaves(Behaviour::Well);
    crawling.is_asked_again(20).await;
    assert_eq!(clients.so_far().bad, 0);
}

#[tokio::test]
async fn slowness_of_all_ejects_nobody() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(200).await;

    for replica in &replicas {
        replica.behaves(Behaviour::Slow(Duration::from_millis(60)));
    }
    clients.next(300).await;

    assert_eq!(clients.so_far().bad, 0);
    assert_eq!(proxy.metric("outrigger_endpoint_ejections_total").await, 0.0);
}

#[tokio::test]
async fn a_replica_that_fails_at_once_attracts_no_traffic_though_its_check_is_green() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    let config = over(&replicas).upstream("health = { mode = \"enforce\", interval = \"100ms\" }");
    let proxy = config.start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(200).await;

    let lying = &replicas[0];
    lying.behaves(Behaviour::Answers(500));
    lying.is_ejected(&proxy).await;
    let before = lying.seen();
    clients.next(300).await;
    let asked = lying.seen() - before;
    assert!(asked <= 15, "{asked} of 300 requests still went to it");

    // While it is out it is checked, and a check that passes does not bring it back.
    let before = lying.checks();
    eventually("it is checked", async || lying.checks() > before).await;
    lying.is_healthy(&proxy, false).await;

    lying.behaves(Behaviour::Well);
    lying.is_healthy(&proxy, true).await;
    lying.is_asked_again(50).await;
    assert_eq!(clients.so_far().bad, 0, "every failure was retried elsewhere");
}

#[tokio::test]
async fn a_brownout_of_all_ejects_nobody_into_an_outage() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(100).await;

    for replica in &replicas {
        replica.behaves(Behaviour::Brownout);
    }
    let before: Vec<_> = replicas.iter().map(Replica::seen).collect();
    let tally = clients.next(1000).await;

    // Four attempts leave 0.2⁴ of the requests; a retry budget that ran dry would leave a fifth.
    assert!(tally.bad * 50 <= tally.good, "{tally:?}");
    for (replica, before) in replicas.iter().zip(before) {
        let asked = replica.seen() - before;
        assert!(asked >= 100, "{} was asked {asked} times", replica.address());
    }
    for replica in &replicas {
        replica.behaves(Behaviour::Well);
    }
    // What had failed just before is still being retried.
    clients.next(50).await;
    assert_eq!(clients.next(200).await.bad, 0);
}

#[tokio::test]
async fn when_all_have_refused_and_are_back_so_are_the_answers() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(100).await;

    for replica in &replicas {
        replica.behaves(Behaviour::Refuses);
    }
    eventually("all refuse", async || proxy.get("/").await.is_for("connect_error")).await;
    // An outage that is long enough for everything that ejects and trips.
    let tally = clients.next(600).await;
    assert!(tally.bad >= 590, "{tally:?}");
    let response = proxy.get("/").await;
    assert_eq!(response.status, 502, "the last thing that is known is said: {}", response.text());

    for replica in &replicas {
        replica.behaves(Behaviour::Well);
    }
    eventually("one answers", async || proxy.get("/").await.status == 200).await;
    eventually("all clients get answers", async || clients.next(100).await.bad == 0).await;
    for replica in &replicas {
        replica.is_healthy(&proxy, true).await;
        replica.is_asked_again(20).await;
    }
}

#[tokio::test]
async fn a_replica_that_hangs_is_out_until_it_answers_again() {
    let replicas: [Replica; 3] = Replica::several(100).await;
    let health = "health = { mode = \"enforce\", interval = \"100ms\", timeout = \"100ms\" }";
    let proxy = over(&replicas).upstream(ATTEMPTS).upstream(health).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(200).await;

    let hanging = &replicas[0];
    hanging.behaves(Behaviour::Hangs);
    hanging.is_healthy(&proxy, false).await;
    let before = hanging.seen();
    clients.next(300).await;
    let asked = hanging.seen() - before;
    assert!(asked <= 15, "{asked} of 300 requests still went to it");

    hanging.behaves(Behaviour::Well);
    hanging.is_healthy(&proxy, true).await;
    hanging.is_asked_again(50).await;
    assert_eq!(clients.so_far().bad, 0, "every timeout was retried elsewhere");
}

#[tokio::test]
async fn a_replica_that_breaks_off_in_mid_body_is_ejected_though_its_heads_are_fine() {
    // Too large to be checked before they go out: nothing but ejection helps.
    let replicas: [Replica; 3] = Replica::several(100_000).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    assert_eq!(clients.next(200).await.bad, 0);

    let broken = &replicas[0];
    broken.behaves(Behaviour::BreaksOff);
    broken.is_ejected(&proxy).await;
    let tally = clients.next(300).await;
    assert!(tally.bad <= 15, "{tally:?}");

    broken.behaves(Behaviour::Well);
    broken.is_healthy(&proxy, true).await;
    broken.is_asked_again(50).await;
    assert_eq!(clients.next(100).await.bad, 0);
}

#[tokio::test]
async fn small_answers_that_break_off_cost_clients_nothing() {
    let replicas: [Replica; 3] = Replica::several(8_000).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(200).await;

    replicas[0].behaves(Behaviour::BreaksOff);
    replicas[0].is_ejected(&proxy).await;
    clients.next(300).await;
    assert_eq!(clients.so_far().bad, 0, "each was checked whole before its head went out");
}

#[tokio::test]
async fn never_more_than_max_ejected_are_out() {
    let replicas: [Replica; 5] = Replica::several(100).await;
    let proxy = over(&replicas).upstream("outlier.max_ejected = 0.2").start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(200).await;

    for replica in &replicas[..2] {
        replica.behaves(Behaviour::Answers(500));
    }
    let healthy = async || proxy.metric("outrigger_endpoint_healthy").await;
    eventually("one is out", async || healthy().await == 4.0).await;
    for _ in 0..20 {
        clients.next(20).await;
        let healthy = healthy().await;
        assert!(healthy >= 4.0, "only {healthy} of 5 are in service");
    }
}

#[tokio::test]
async fn two_bad_of_five_are_both_ejected() {
    let replicas: [Replica; 5] = Replica::several(100).await;
    let proxy = over(&replicas).start().await;
    let clients = Asking::start(&proxy, CLIENTS);
    clients.next(200).await;

    replicas[0].behaves(Behaviour::Answers(500));
    replicas[1].behaves(Behaviour::Answers(503));
    replicas[0].is_ejected(&proxy).await;
    replicas[1].is_ejected(&proxy).await;
    for replica in &replicas[2..] {
        assert_eq!(replica.ejections(&proxy).await, 0.0);
    }
    assert_eq!(clients.so_far().bad, 0);
}
