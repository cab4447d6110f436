//! TLS on both sides: who is trusted, who is let in, which certificate, what is said when it fails, and certificates that
//! change while it runs.

use std::process::Command;

use crate::support::certificates::{Authority, Folder, Issued, Leaf};
use crate::support::http2_upstream::Http2Upstream;
use crate::support::servers::{Server, curl, must};
use crate::support::tls::{Front, Tunnel, client, der, server};
use crate::support::*;

/// What most stories need: an authority whose certificate is in a file, and a certificate for loopback.
struct Scene {
    folder: Folder,
    authority: Authority,
    ca: String,
    loopback: Issued,
}

impl Scene {
    fn new() -> Self {
        let (folder, authority) = (Folder::new(), Authority::new("Test CA"));
        let ca = folder.write("ca.pem", authority.pem());
        let loopback = authority.issue_for(&["127.0.0.1", "app.internal", "spiffe://test/app"]);
        Self { folder, authority, ca, loopback }
    }

    /// `tls = { ca = …, more }`.
    fn trusting(&self, more: &str) -> String {
        format!("tls = {{ ca = \"{}\"{more} }}", self.ca)
    }

    /// A proxy over `front`, trusting the authority.
    fn over(&self, front: &Front, more: &str) -> Config {
        Config::over_addresses(&[front.address().to_string()]).upstream(&self.trusting(more))
    }

    /// The pair `issued` as files, as settings have it.
    fn pair(&self, name: &str, issued: &Issued) -> String {
        let (cert, key) = self.folder.write_pair(name, issued);
        format!("cert = \"{cert}\", key = \"{key}\"")
    }
}

fn config_over(app: &Upstream, tls: &str) -> Config {
    Config::over([app]).listener(&format!("tls = {{ {tls} }}"))
}

#[tokio::test]
async fn requests_go_up_in_tls_on_connections_that_are_kept() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let front = Front::before(&app, server(&scene.loopback, None)).await;
    let proxy = scene.over(&front, "").one_worker().start().await;
    let mut client = proxy.connect().await;

    for _ in 0..3 {
        let response = client.exchange(&get("/")).await;
        assert_eq!((response.status, response.text().as_str(), response.whole), (200, "hello", true));
    }

    front.has_seen(1).await;
    let handshake = front.handshakes().remove(0);
    assert_eq!(handshake.alpn.as_deref(), Some("http/1.1"));
    assert_eq!(handshake.asked_for, None, "an address is no name to ask for");
    assert_eq!(proxy.metric("outrigger_upstream_connects_total{upstream=app,result=ok}").await, 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn the_name_is_the_endpoints_or_the_one_that_is_written() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let named = scene.authority.issue_for(&["localhost"]);
    let front = Front::before(&app, server(&named, None)).await;
    let endpoint = format!("localhost:{}", front.address().port());
    let proxy = Config::over_addresses(&[endpoint]).upstream(&scene.trusting("")).start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(front.handshakes()[0].asked_for.as_deref(), Some("localhost"));

    let front = Front::before(&app, server(&scene.loopback, None)).await;
    let proxy = scene.over(&front, ", server_name = \"app.internal\"").start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(front.handshakes()[0].asked_for.as_deref(), Some("app.internal"));
}

#[tokio::test]
async fn an_upstream_that_is_not_trusted_gets_nothing_and_the_answer_says_why() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let stranger = Authority::new("Stranger").issue_for(&["127.0.0.1"]);
    let expired = scene.authority.issue(&Leaf::of(&["127.0.0.1"]).expired());
    let other = scene.authority.issue_for(&["other.internal"]);
    let loopback = scene.loopback.clone();
    let cases = [
        // why              what the upstream shows   the settings                            the answer says
        ("unknown", &stranger, "", "\"127.0.0.1\" (issued by \"Stranger\") comes from an unknown authority"),
        ("expired", &expired, "", "\"127.0.0.1\" (issued by \"Test CA\") expired on 2021-01-01"),
        ("wrong name", &other, "", "is not for \"127.0.0.1\": it has other.internal"),
        (
            "not pinned",
            &loopback,
            ", san = [\"spiffe://test/b\"]",
            "has none of the allowed names (spiffe://test/b)",
        ),
    ];
    for (why, issued, settings, says) in cases {
        let front = Front::before(&app, server(issued, None)).await;
        let config = scene.over(&front, settings).upstream("retry.backoff.base = \"1ms\"");
        let proxy = config.start().await;
        let response = proxy.get("/").await;
        response.must_be_because(502, "tls_error", why);
        let detail = response.problem().expect("it is our own")["detail"].to_string().replace("\\\"", "\"");
        assert!(detail.contains(says), "{why}: {detail}");
        assert_eq!(
            proxy.metric("outrigger_retries_total{upstream=app,reason=tls_error}").await,
            3.0,
            "{why}"
        );
        assert_eq!(proxy.metric("outrigger_upstream_connects_total{result=error}").await, 4.0, "{why}");
        assert_eq!(proxy.metric("outrigger_breaker_state").await, 0.0, "{why}: one endpoint's affair");
        proxy.rests().await;
    }
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn an_upstream_without_tls_is_told_apart() {
    let scene = Scene::new();
    // Answers whatever comes, as servers of clear text do with the beginning of a handshake.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = plain.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let config = Config::over_addresses(&[address.to_string()]).plain().upstream(&scene.trusting(""));
    let proxy = config.start().await;

    let response = proxy.get("/").await;

    response.must_be(502, "tls_error");
    assert!(response.text().contains("the peer does not speak TLS"), "{}", response.text());
}

#[tokio::test]
async fn what_never_reached_one_endpoint_goes_to_another_whatever_the_method() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let stranger = Authority::new("Stranger").issue_for(&["127.0.0.1"]);
    let bad = Front::before(&app, server(&stranger, None)).await;
    let good = Front::before(&app, server(&scene.loopback, None)).await;
    let endpoints = [bad.address().to_string(), good.address().to_string()];
    let config = Config::over_addresses(&endpoints).upstream(&scene.trusting(""));
    let proxy = config.upstream("retry.backoff.base = \"1ms\"").start().await;

    for _ in 0..10 {
        let response = proxy.connect().await.exchange(&client::post("/", "body")).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(app.seen(), 10);
}

#[tokio::test]
async fn an_allowed_name_stands_in_place_of_the_endpoints() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let workload = scene.authority.issue_for(&["spiffe://test/app"]);
    let front = Front::before(&app, server(&workload, None)).await;
    let proxy = scene.over(&front, ", san = [\"spiffe://test/app\", \"b.internal\"]").start().await;
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_wants_a_certificate_gets_ours() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let front = Front::before(&app, server(&scene.loopback, Some(&scene.authority))).await;
    let ours = scene.authority.issue_for(&["spiffe://test/sidecar"]);
    let shown = format!(", {}", scene.pair("ours", &ours));
    let proxy = scene.over(&front, &shown).start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(front.handshakes()[0].shown, [der(&ours)]);

    // Without one, the handshake ends well for our side, and the refusal comes in place of an answer.
    let proxy = scene.over(&front, "").plain().start().await;
    let response = proxy.connect().await.exchange(&client::post("/", "body")).await;
    response.must_be(502, "tls_error");
    assert!(response.text().contains("it wants a client certificate"), "{}", response.text());
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn sessions_are_resumed_by_all_workers() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).closes_keep_alive_after(1).start().await;
    let front = Front::before(&app, server(&scene.loopback, None)).await;
    let proxy = scene.over(&front, "").and("[server]\nworkers = 2").start().await;
    let (mut one, mut other) = (proxy.connect().await, proxy.connect().await);

    for _ in 0..4 {
        assert_eq!(one.exchange(&get("/")).await.status, 200);
        assert_eq!(other.exchange(&get("/")).await.status, 200);
    }

    let handshakes = front.handshakes();
    let full = handshakes.iter().filter(|handshake| !handshake.resumed).count();
    assert_eq!((handshakes.len(), full), (8, 1), "{handshakes:#?}");
}

#[tokio::test]
async fn other_settings_make_other_connections() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let front = Front::before(&app, server(&scene.loopback, None)).await;
    let config = |name: &str| scene.over(&front, &format!(", server_name = \"{name}\"")).one_worker();
    let proxy = config("127.0.0.1").start().await;
    assert_eq!(proxy.get("/").await.status, 200);

    proxy.rewrite(&config("127.0.0.1").and("# the same").text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(proxy.get("/").await.status, 200);
    front.has_seen(1).await;

    proxy.rewrite(&config("app.internal").text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(proxy.get("/").await.status, 200);
    front.has_seen(2).await;
    app.has_open(1).await;
}

#[tokio::test]
async fn an_answer_until_close_that_is_cut_in_tls_is_not_taken_for_whole() {
    let scene = Scene::new();
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    let whole = Upstream::that().answers_raw(format!("{head}hello")).then_closes().start().await;
    let cut = Upstream::that().answers_raw(format!("{head}hello")).then_resets().start().await;
    for (upstream, is_whole) in [(whole, true), (cut, false)] {
        let front = Front::before(&upstream, server(&scene.loopback, None)).await;
        let proxy = scene.over(&front, "").plain().upstream("retry.response_buffer = \"0B\"").start().await;
        let response = proxy.get("/").await;
        assert_eq!((response.status, response.whole), (200, is_whole), "{response:?}");
    }
}

#[tokio::test]
async fn large_bodies_pass_in_tls_on_both_sides() {
    let scene = Scene::new();
    let body = "x".repeat(3 << 20);
    let app = Upstream::that().answers(200).with_body(&body).start().await;
    let front = Front::before(&app, server(&scene.loopback, None)).await;
    let listener = format!("tls = {{ {} }}", scene.pair("listener", &scene.loopback));
    let proxy = scene.over(&front, "").listener(&listener).start().await;
    let tunnel = Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, None, &[])).await;
    let mut client = tunnel.connect().await;

    for number in 0..3 {
        let response = client.exchange(&client::post("/", &body)).await;
        assert!(response.whole && response.body.len() == body.len(), "{number}");
        app.has_all_of(number).await;
        assert_eq!(app.request(number).body.len(), body.len());
    }
    proxy.rests().await;
}

#[tokio::test]
async fn a_websocket_passes_in_tls_on_both_sides() {
    let scene = Scene::new();
    let agree = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
    let app = Upstream::that().answers_raw(agree).and_behind(5, "and goodbye").then_closes().start().await;
    let front = Front::before(&app, server(&scene.loopback, None)).await;
    let listener = format!("tls = {{ {} }}", scene.pair("listener", &scene.loopback));
    let proxy = scene.over(&front, "").listener(&listener).start().await;
    let tunnel = Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, None, &[])).await;
    let mut client = tunnel.connect().await;

    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.expect("a head").status, 101);
    assert_eq!(client.bytes(5).await, b"hello");
    client.send("12345").await;
    assert_eq!(client.until_end().await, b"and goodbye");
    drop(client);
    proxy.rests().await;
}

#[tokio::test]
async fn what_tls_settles_is_spoken() {
    let scene = Scene::new();
    let app = Http2Upstream::that().answers(200).with_body("hello").start().await;
    let front = Front::before_http2(&app, server(&scene.loopback, None)).await;
    let proxy = scene.over(&front, "").one_worker().start().await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.text(), "hello");
    }
    assert_eq!((app.seen(), app.connections()), (3, 1));
    assert_eq!(app.request(0).uri, "https://app.test/");
    assert_eq!(front.handshakes()[0].alpn.as_deref(), Some("h2"));

    let old = Upstream::that().answers(200).start().await;
    let front = Front::before(&old, server(&scene.loopback, None)).await;
    let proxy = scene.over(&front, "").http2().plain().start().await;
    proxy.get("/").await.must_be(502, "tls_error");
}

#[tokio::test]
async fn clients_speak_tls_and_the_service_is_told() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let config = config_over(&app, &scene.pair("listener", &scene.loopback));
    let proxy = config.listener("direction = \"ingress\"").start().await;
    for (offered, settled) in [(&["http/1.1"][..], Some("http/1.1")), (&[], None)] {
        let tunnel =
            Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, None, offered)).await;
        let mut client = tunnel.connect().await;
        assert_eq!(client.exchange(&get("/")).await.status, 200);
        assert_eq!(client.exchange(&get("/")).await.status, 200);
        assert_eq!(tunnel.handshake(0).await.alpn.as_deref(), settled);
    }
    assert_eq!(app.request(0).field("x-forwarded-proto"), Some("https"));
    let counted = "outrigger_client_handshakes_total{listener=main,result=ok}";
    assert_eq!(proxy.metric(counted).await, 2.0);

    // A client that comes back goes on with its session.
    let tunnel = Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, None, &[])).await;
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);
    assert!(tunnel.handshake(1).await.resumed);
    assert_eq!(proxy.metric("outrigger_client_handshakes_total{result=resumed}").await, 1.0);
}

#[tokio::test]
async fn each_name_gets_its_certificate() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let star = scene.authority.issue_for(&["*.example.test"]);
    let tls = format!(
        "{}, certificates = [{{ {} }}]",
        scene.pair("first", &scene.loopback),
        scene.pair("star", &star)
    );
    let proxy = config_over(&app, &tls).start().await;
    for (name, expected) in [("app.internal", &scene.loopback), ("a.example.test", &star)] {
        let tunnel = Tunnel::to(proxy.listener(), name, client(&scene.authority, None, &[])).await;
        assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);
        assert_eq!(tunnel.handshake(0).await.shown, [der(expected)], "{name}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_costs_nobody_else_anything() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let tls = format!("{}, client_ca = \"{}\"", scene.pair("listener", &scene.loopback), scene.ca);
    let config = config_over(&app, &tls).listener("limits.header_timeout = \"300ms\"");
    let proxy = config.start().await;
    let to = async |issued: Option<&Issued>| {
        Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, issued, &[])).await
    };
    let (known, unknown) =
        (scene.authority.issue_for(&["spiffe://test/b"]), Authority::new("Stranger").issue_for(&["b"]));

    let good = to(Some(&known)).await;
    let mut good = good.connect().await;
    assert_eq!(good.exchange(&get("/")).await.status, 200);

    for (why, issued) in [("no certificate", None), ("one that is not trusted", Some(&unknown))] {
        let tunnel = to(issued).await;
        let mut refused = tunnel.connect().await;
        refused.try_send(get("/")).await;
        assert!(refused.response_or_end("GET").await.is_none(), "{why}");
    }
    let mut plain = proxy.connect().await;
    plain.try_send(get("/")).await;
    let alert = plain.until_end().await;
    assert_eq!(alert.first(), Some(&0x15), "plain HTTP gets an alert: {alert:?}");

    // TLS 1.1: a hello by hand, since no library offers it any more.
    let mut hello = vec![0x16, 3, 1, 0, 65, 1, 0, 0, 61, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0, 0x2f, 1, 0]);
    // Signature algorithms and groups, so that nothing else is missing.
    hello.extend([0, 16, 0, 0x0d, 0, 4, 0, 2, 4, 3, 0, 0x0a, 0, 4, 0, 2, 0, 0x17]);
    let mut old = proxy.connect().await;
    old.try_send(hello).await;
    let alert = old.until_end().await;
    assert_eq!((alert.first(), alert.last()), (Some(&0x15), Some(&70)), "protocol_version: {alert:?}");

    let counted = "outrigger_client_handshakes_total{listener=main,result=error}";
    proxy.metric_becomes(counted, 4.0).await;

    proxy.connect().await.closes().await;
    proxy.metric_becomes("outrigger_client_handshakes_total{result=timeout}", 1.0).await;

    // Who only looks whether the port is open has done nothing wrong.
    drop(proxy.connect().await);
    proxy.metric_becomes("outrigger_client_handshakes_total{result=left}", 1.0).await;
    assert_eq!(proxy.metric(counted).await, 4.0);
    assert_eq!(good.exchange(&get("/")).await.status, 200);
    assert_eq!(app.seen(), 2);
}

#[tokio::test]
async fn certificates_are_taken_over_when_their_files_change() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    // As Kubernetes has it: the files are links through a folder that is swapped.
    let root = scene.folder.path();
    let swap = |version: u32, issued: &Issued| {
        let folder = root.join(format!("..{version}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("tls.crt"), &issued.cert).expect("a file");
        std::fs::write(folder.join("tls.key"), &issued.key).expect("a file");
        std::os::unix::fs::symlink(format!("..{version}"), root.join("..data_tmp")).expect("a link");
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).expect("swapped");
    };
    let issue = |year: i32| scene.authority.issue(&Leaf::of(&["app.internal"]).ends_in(year));
    swap(1, &issue(2100));
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), root.join(file)).expect("a link");
    }
    let at = root.display().to_string();
    let config = config_over(&app, &format!("cert = \"{at}/tls.crt\", key = \"{at}/tls.key\""));
    let proxy = config.start().await;
    let expiry = format!("outrigger_certificate_expiry_timestamp_seconds{{name={at}/tls.crt}}");
    assert_eq!(proxy.metric(&expiry).await, 4_102_444_800.0);
    let tunnel = Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, None, &[])).await;
    let mut before = tunnel.connect().await;
    assert_eq!(before.exchange(&get("/")).await.status, 200);

    let renewed = issue(2101);
    swap(2, &renewed);
    proxy.metric_becomes("outrigger_certificate_reloads_total{result=success}", 1.0).await;
    proxy.metric_becomes(&expiry, 4_133_980_800.0).await;
    let tunnel = Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, None, &[])).await;
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);
    assert_eq!(tunnel.handshake(0).await.shown, [der(&renewed)]);
    assert_eq!(before.exchange(&get("/")).await.status, 200, "a connection that stands is left alone");

    // A key that does not fit: nothing changes, and it is told.
    swap(3, &Issued { key: issue(2102).key, ..issue(2102) });
    proxy.metric_becomes("outrigger_certificate_reloads_total{result=failure}", 1.0).await;
    let told =
        |line: &String| line.contains("certificate not renewed") && line.contains("does not belong to");
    eventually("a line of the log", async || proxy.lines().iter().any(told)).await;
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);
    assert_eq!(proxy.metric(&expiry).await, 4_133_980_800.0);

    // The configuration is read whole: it is refused, and the old one stays.
    let answer = proxy.admin_post("/reload").await;
    assert!(answer.status >= 400 && answer.text().contains("does not belong to"), "{}", answer.text());
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);

    let last = issue(2103);
    swap(4, &last);
    proxy.metric_becomes("outrigger_certificate_reloads_total{result=success}", 2.0).await;
    assert_eq!(
        proxy.metric("outrigger_config_reloads_total{result=success}").await,
        0.0,
        "nothing else was read"
    );
    assert_eq!(before.exchange(&get("/")).await.status, 200);
}

#[tokio::test]
async fn a_certificate_that_is_broken_keeps_back_none_of_the_others() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let issue = |name: &str| scene.authority.issue_for(&[name]);
    let first = scene.pair("first", &issue("a.test"));
    let tls = format!("{first}, certificates = [{{ {} }}]", scene.pair("second", &issue("b.test")));
    let proxy = config_over(&app, &tls).start().await;

    scene.folder.write("first.pem", "nothing of the kind");
    let renewed = issue("b.test");
    scene.folder.write_pair("second", &renewed);
    let tunnel = Tunnel::to(proxy.listener(), "b.test", client(&scene.authority, None, &[])).await;
    proxy.metric_becomes("outrigger_certificate_reloads_total{result=success}", 1.0).await;
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200);
    assert_eq!(tunnel.handshake(0).await.shown, [der(&renewed)]);
    // It is met with the other one, or just behind it, and again with whatever changes next.
    eventually("the broken one is counted", async || {
        proxy.metric("outrigger_certificate_reloads_total{result=failure}").await >= 1.0
    })
    .await;
    let told = |line: &String| line.contains("certificate not renewed") && line.contains("first.pem");
    eventually("the broken one is told of", async || proxy.lines().iter().any(told)).await;
    let tunnel = Tunnel::to(proxy.listener(), "a.test", client(&scene.authority, None, &[])).await;
    assert_eq!(tunnel.connect().await.exchange(&get("/")).await.status, 200, "it serves on");
}

#[tokio::test]
async fn what_upstreams_are_shown_and_measured_by_changes_too() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).closes_keep_alive_after(1).start().await;
    let front = Front::before(&app, server(&scene.loopback, Some(&scene.authority))).await;
    let ours = scene.authority.issue_for(&["spiffe://test/sidecar"]);
    let proxy = scene.over(&front, &format!(", {}", scene.pair("ours", &ours))).start().await;
    assert_eq!(proxy.get("/").await.status, 200);

    let renewed = scene.authority.issue_for(&["spiffe://test/sidecar"]);
    scene.folder.write_pair("ours", &renewed);
    proxy.metric_becomes("outrigger_certificate_reloads_total{result=success}", 1.0).await;
    assert_eq!(proxy.get("/").await.status, 200);
    let shown: Vec<_> = front.handshakes().into_iter().map(|handshake| handshake.shown).collect();
    assert_eq!(shown, [[der(&ours)], [der(&renewed)]]);

    // Another authority: the upstream is not trusted any more.
    scene.folder.write("ca.pem", Authority::new("Another CA").pem());
    proxy.metric_becomes("outrigger_certificate_reloads_total{result=success}", 2.0).await;
    proxy.get("/").await.must_be(502, "tls_error");
}

#[tokio::test]
async fn a_certificate_that_ends_is_told_of() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).start().await;
    let expired = scene.authority.issue(&Leaf::of(&["app.internal"]).expired());
    let config = config_over(&app, &scene.pair("old", &expired));
    let proxy = config.start().await;
    eventually("a line of the log", async || {
        proxy.lines().iter().any(|line| line.contains("WARN") && line.contains("expired on 2021-01-01"))
    })
    .await;

    let file = crate::support::proxy::write_file(scene.folder.path(), "outrigger.toml", &config.text());
    let mut check = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    check.args(["check", "--strict"]).arg(file);
    let output = check.output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("expired on 2021-01-01") && text.contains("renew it"), "{text}");
}

#[tokio::test]
async fn nginx_and_haproxy_speak_tls_as_upstreams() {
    let scene = Scene::new();
    let (cert, key) = scene.folder.write_pair("server", &scene.loopback);
    let both = scene.folder.write("both.pem", format!("{}{}", scene.loopback.cert, scene.loopback.key));
    let ca = &scene.ca;
    let ours = scene.pair("ours", &scene.authority.issue_for(&["spiffe://test/sidecar"]));
    let nginx = Server::nginx_with(|port, folder| {
        format!(
            "keepalive_requests 7;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key};
    ssl_client_certificate {ca}; ssl_verify_client on;
    root {folder};
    location = /who {{ return 200 \"$ssl_protocol $ssl_client_verify\"; }}
  }}"
        )
    })
    .await;
    let haproxy = Server::haproxy_with(|port, folder| {
        format!(
            "frontend in
  bind 127.0.0.1:{port} ssl crt {both} ca-file {ca} verify required ssl-max-ver TLSv1.2
  http-request return status 200 content-type text/plain file {folder}/small if {{ path /small }}
  http-request return status 200 content-type text/plain lf-string \"%[ssl_fc_protocol] %[ssl_c_verify]\""
        )
    })
    .await;

    for (name, server, who) in [("nginx", &nginx, "TLSv1.3 SUCCESS"), ("haproxy", &haproxy, "TLSv1.2 0")] {
        let proxy = server.config().upstream(&scene.trusting(&format!(", {ours}"))).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(&get("/who")).await.text(), who, "{name}");
        for round in 0..20 {
            assert_eq!(client.exchange(&get("/small")).await.text(), "hello from a file\n", "{name} {round}");
        }
        proxy.rests().await;
    }
    let proxy = haproxy.config().plain().upstream(&scene.trusting("")).start().await;
    proxy.get("/small").await.must_be(502, "tls_error");
    let proxy = nginx.config().plain().upstream("tls = {}").start().await;
    let response = proxy.get("/small").await;
    response.must_be(502, "tls_error");
    assert!(response.text().contains("comes from an unknown authority"), "{}", response.text());
}

#[tokio::test]
async fn curl_speaks_tls_as_the_client() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = config_over(&app, &scene.pair("listener", &scene.loopback)).start().await;
    let url = format!("https://{}/", proxy.listener());
    let asked = ["--cacert", &scene.ca, "--write-out", " %{http_version}", &url];
    let with = |more: &[&str]| curl(&[more, &asked].concat());

    assert_eq!(must(with(&["--http1.1"])).await, "hello 1.1");
    assert_eq!(must(with(&["--http2"])).await, "hello 2");
    assert_eq!(must(with(&["--tlsv1.2", "--tls-max", "1.2"])).await, "hello 2");
    assert_eq!(must(with(&["--tlsv1.3", "--http1.0"])).await, "hello 1.1");
    let untrusted = std::process::Command::output(&mut curl(&[&url])).expect("curl runs");
    assert_eq!(untrusted.status.code(), Some(60), "curl trusts nobody of that name");
    proxy.rests().await;
}

#[tokio::test]
async fn a_listener_that_begins_to_ask_for_more_lets_go_who_has_not_shown_it() {
    let scene = Scene::new();
    let app = Upstream::that().answers(200).answers(200).holds().start().await;
    let config = Config::over([&app]);
    let proxy = config.start().await;
    let mut idle = proxy.connect().await;
    assert_eq!(idle.exchange(&get("/")).await.status, 200);
    let mut busy = proxy.connect().await;
    busy.send(get("/")).await;
    app.has_seen(2).await;

    let pair = scene.pair("listener", &scene.loopback);
    let reload = async |tls: &str| {
        proxy.rewrite(&config_over(&app, tls).text());
        let answer = proxy.admin_post("/reload").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    reload(&pair).await;
    idle.closes().await;
    app.release(1);
    let response = busy.response().await;
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    busy.closes().await;

    let shows = scene.authority.issue_for(&["spiffe://test/client"]);
    let tunnel =
        Tunnel::to(proxy.listener(), "app.internal", client(&scene.authority, Some(&shows), &[])).await;
    let connect = async || {
        let mut client = tunnel.connect().await;
        client.send(get("/")).await;
        app.release(1);
        assert_eq!(client.response().await.status, 200);
        client
    };
    let mut without = connect().await;
    reload(&format!("{pair}, client_ca = \"{}\"", scene.ca)).await;
    without.closes().await;

    let mut with = connect().await;
    // Another certificate of our own asks nothing of clients.
    let other = scene.pair("other", &scene.authority.issue_for(&["app.internal"]));
    reload(&format!("{other}, client_ca = \"{}\"", scene.ca)).await;
    with.send(get("/")).await;
    app.release(1);
    assert_eq!(with.response().await.status, 200);

    let bundle = scene.folder.write("bundle.pem", Authority::new("Other CA").pem());
    reload(&format!("{other}, client_ca = \"{bundle}\"")).await;
    with.closes().await;
}
