//! Where endpoints come from: names and services of a real name server (dnsmasq), and files.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use serde_json::Value;

use crate::support::proxy::write_file;
use crate::support::*;

/// Upstreams at these addresses that answer 200, all at one port: a name has one.
async fn on_one_port(ips: &[[u8; 4]]) -> (Vec<Upstream>, u16) {
    'ports: loop {
        let first = Upstream::that().answers(200).start_at(SocketAddr::from((ips[0], 0))).await;
        let mut upstreams = vec![first.expect("a free port")];
        let port = upstreams[0].address().port();
        for ip in &ips[1..] {
            match Upstream::that().answers(200).start_at(SocketAddr::from((*ip, port))).await {
                Ok(upstream) => upstreams.push(upstream),
                Err(_) => continue 'ports,
            }
        }
        return (upstreams, port);
    }
}

/// The upstream `app` over these endpoints, which `dns` knows.
fn over(dns: &Dns, endpoints: &[String]) -> Config {
    let server = dns.address();
    Config::over_addresses(endpoints)
        .upstream(&format!("discovery = {{ kind = \"dns\", server = \"{server}\" }}"))
        .upstream("connections = { idle_timeout = \"1m\" }")
}

/// What `/upstreams` tells of `app`.
async fn view(proxy: &Proxy) -> Value {
    let text = proxy.admin_get("/upstreams").await.text();
    serde_json::from_str::<Value>(&text).expect("JSON")["app"].clone()
}

/// The sockets of `app`'s endpoints, as `/upstreams` tells them.
async fn sockets(proxy: &Proxy) -> Vec<String> {
    let view = view(proxy).await;
    let endpoints = view["endpoints"].as_array().expect("a list");
    endpoints.iter().filter_map(|endpoint| endpoint["endpoint"].as_str().map(str::to_owned)).collect()
}

/// Waits until `app` has these endpoints.
async fn has_endpoints(proxy: &Proxy, expected: &[SocketAddr]) {
    let expected: Vec<String> = expected.iter().map(SocketAddr::to_string).collect();
    eventually(&format!("the endpoints are {expected:?}"), async || sockets(proxy).await == expected).await;
}

fn is_logged(proxy: &Proxy, what: &str) -> bool {
    proxy.lines().iter().any(|line| line.contains(what))
}

#[tokio::test]
async fn endpoints_follow_a_name_before_its_ttl_ends() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]]).await;
    let [one, two, three] = [0, 1, 2].map(|number: usize| apps[number].address());
    let dns = Dns::knows("127.0.0.1 app.internal\n127.0.0.2 app.internal\n", &[]).await;
    // So that everybody is asked, newcomers too.
    let by_turns = "balance = { kind = \"round_robin\", slow_start = \"none\" }";
    let config = over(&dns, &[format!("app.internal:{port}")]).one_worker().upstream(by_turns);
    let proxy = config.start().await;
    has_endpoints(&proxy, &[one, two]).await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    apps[0].has_open(1).await;
    assert_eq!((apps[1].open(), apps[2].seen()), (1, 0));

    dns.hosts("127.0.0.2 app.internal\n127.0.0.3 app.internal\n");
    has_endpoints(&proxy, &[two, three]).await;

    apps[0].has_open(0).await;
    let seen = apps[0].seen();
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(apps[0].seen(), seen, "who vanished gets nothing any more");
    assert!(apps[2].seen() > 0);
    assert_eq!(apps[1].connections(), 1, "who stays keeps its connections");
    eventually("the change is logged", async || {
        is_logged(&proxy, "endpoints changed: 1 more, 1 less, 2 in all")
    })
    .await;
}

#[tokio::test]
async fn a_name_server_that_is_gone_leaves_the_list_and_its_age_grows() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1]]).await;
    let mut dns = Dns::knows("127.0.0.1 app.internal\n", &[]).await;
    let proxy = over(&dns, &[format!("app.internal:{port}")]).start().await;
    has_endpoints(&proxy, &[apps[0].address()]).await;
    assert!(proxy.metric("outrigger_dns_age_seconds{upstream=app}").await < 2.0);

    dns.stops();
    eventually("the age grows", async || proxy.metric("outrigger_dns_age_seconds{upstream=app}").await > 2.0)
        .await;
    eventually("it fails", async || {
        proxy.metric("outrigger_discovery_failures_total{upstream=app}").await > 0.0
    })
    .await;
    assert_eq!(proxy.get("/").await.status, 200);
    let told = view(&proxy).await["discovery"]["names"][0].clone();
    assert_eq!(told["name"], "app.internal");
    assert!(told["error"].is_string() && told["age_seconds"].as_f64() > Some(2.0), "{told}");
    eventually("which is logged", async || is_logged(&proxy, "name does not resolve")).await;

    dns.starts().await;
    eventually("it is fresh again", async || {
        proxy.metric("outrigger_dns_age_seconds{upstream=app}").await < 2.0
    })
    .await;
    eventually("which is logged", async || is_logged(&proxy, "name resolves again")).await;
}

#[tokio::test]
async fn a_name_that_is_gone_twice_is_gone() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1]]).await;
    let dns = Dns::knows("127.0.0.1 app.internal\n", &[]).await;
    let proxy = over(&dns, &[format!("app.internal:{port}")]).plain().start().await;
    has_endpoints(&proxy, &[apps[0].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);

    dns.hosts("127.0.0.1 other.internal\n");
    has_endpoints(&proxy, &[]).await;
    let answers = dns.log().matches("app.internal is NXDOMAIN").count();
    assert!(answers >= 4, "only {answers} answers, for A and AAAA, were enough");
    let response = proxy.get("/").await;
    assert_eq!(response.status, 502);
    assert!(
        response.text().contains("dns_error") && response.text().contains("NXDOMAIN"),
        "{}",
        response.text()
    );
    apps[0].has_open(0).await;

    dns.hosts("127.0.0.1 app.internal\n");
    has_endpoints(&proxy, &[apps[0].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn a_start_without_an_answer_serves_the_others_and_finds_the_name_later() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1], [127, 0, 0, 2]]).await;
    let dns = Dns::knows("", &[]).await;
    let written = apps[1].address();
    let proxy = over(&dns, &[format!("app.internal:{port}"), written.to_string()]).start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(apps[1].seen(), 1);
    let endpoints = view(&proxy).await["endpoints"].clone();
    let unresolved = endpoints.as_array().expect("a list").iter().find(|one| one["reason"] == "dns_error");
    let detail = unresolved.expect("it is told")["detail"].to_string();
    assert!(detail.contains("NXDOMAIN"), "{detail}");

    dns.hosts("127.0.0.1 app.internal\n");
    has_endpoints(&proxy, &[apps[0].address(), written]).await;
}

#[tokio::test]
async fn an_alias_is_followed() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1], [127, 0, 0, 2]]).await;
    let aliases = ["cname=www.internal,alias.internal", "cname=alias.internal,app.internal"];
    let dns = Dns::knows("127.0.0.1 app.internal\n", &aliases).await;
    let proxy = over(&dns, &[format!("www.internal:{port}")]).start().await;
    has_endpoints(&proxy, &[apps[0].address()]).await;
    dns.hosts("127.0.0.2 app.internal\n");
    has_endpoints(&proxy, &[apps[1].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn a_host_with_both_families_is_one_endpoint_and_reached_by_either() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1]]).await;
    let dns = Dns::knows("127.0.0.1 app.internal\n::1 app.internal\n", &[]).await;
    let proxy = over(&dns, &[format!("app.internal:{port}")]).plain().start().await;
    has_endpoints(&proxy, &[SocketAddr::from((IpAddr::V6(Ipv6Addr::LOCALHOST), port))]).await;
    assert_eq!(proxy.get("/").await.status, 200, "nobody listens on ::1");
    assert_eq!(apps[0].seen(), 1);
}

#[tokio::test]
async fn a_service_says_hosts_ports_weights_and_priorities() {
    let apps = [Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await];
    let port = |number: usize| apps[number].address().port();
    let services = [
        format!("srv-host=_http._tcp.app.internal,one.internal,{},10,60", port(0)),
        format!("srv-host=_http._tcp.app.internal,one.internal,{},20,20", port(1)),
    ];
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let mut dns = Dns::knows("127.0.0.1 one.internal\n", &services).await;
    let discovery = format!(
        "discovery = {{ kind = \"dns_srv\", name = \"_http._tcp.app.internal\", server = \"{}\" }}",
        dns.address()
    );
    let proxy = Config::over_addresses(&[]).upstream(&discovery).start().await;
    has_endpoints(&proxy, &[apps[0].address(), apps[1].address()]).await;
    let weights: Vec<Value> = view(&proxy).await["endpoints"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["weight"].clone())
        .collect();
    assert_eq!(weights, [3, 1]);
    assert_eq!(proxy.get("/").await.status, 200);

    dns.stops();
    let age = "outrigger_dns_age_seconds{upstream=app}";
    eventually("the age grows", async || proxy.metric(age).await > 2.0).await;
    has_endpoints(&proxy, &[apps[0].address(), apps[1].address()]).await;
}

#[tokio::test]
async fn a_file_lists_endpoints_and_a_broken_one_changes_nothing() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1], [127, 0, 0, 2]]).await;
    let [one, two] = [apps[0].address(), apps[1].address()];
    let dns = Dns::knows("127.0.0.2 app.internal\n", &[]).await;
    let directory = Folder::new("file");
    let file = directory.0.join("endpoints");
    let discovery = |file: &Path| {
        format!(
            "discovery = {{ kind = \"file\", path = \"{}\", server = \"{}\" }}",
            file.display(),
            dns.address()
        )
    };
    let proxy = Config::over_addresses(&[])
        .upstream(&discovery(&file))
        .upstream("connections = { idle_timeout = \"1m\" }")
        .plain()
        .start()
        .await;
    assert_eq!(proxy.get("/").await.status, 503, "a file that is not there stops nothing");
    let error = view(&proxy).await["discovery"]["file"]["error"].to_string();
    assert!(error.contains("No such file"), "{error}");

    write_file(&directory.0, "endpoints", &format!("endpoints = [\"{one}\"]\n"));
    has_endpoints(&proxy, &[one]).await;
    assert_eq!(proxy.get("/").await.status, 200);

    let failures = "outrigger_discovery_failures_total{upstream=app}";
    let before = proxy.metric(failures).await;
    write_file(&directory.0, "endpoints", &format!("endpoints = [\n  \"{two}\",\n  \"{two}:x\",\n]\n"));
    eventually("the mistake is counted", async || proxy.metric(failures).await > before).await;
    let place = format!("{}:3:3: ", file.display());
    eventually("and logged with its place", async || is_logged(&proxy, &place)).await;
    has_endpoints(&proxy, &[one]).await;

    let json =
        format!(r#"{{ "endpoints": [ {{ "address": "app.internal:{port}", "weight": 7 }}, "{one}" ] }}"#);
    write_file(&directory.0, "new", &json);
    std::fs::rename(directory.0.join("new"), &file).expect("renamed");
    has_endpoints(&proxy, &[two, one]).await;
    assert_eq!(view(&proxy).await["endpoints"][0]["weight"], 7);
    assert_eq!(apps[0].open(), 1, "who stays keeps its connections");
}

#[tokio::test]
async fn endpoints_are_followed_when_the_first_listeners_have_ended() {
    let apps = [Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await];
    let directory = Folder::new("drain");
    let list = |app: &Upstream| format!("endpoints = [\"{}\"]\n", app.address());
    write_file(&directory.0, "endpoints", &list(&apps[0]));
    let file = directory.0.join("endpoints");
    let proxy = Config::over_addresses(&[])
        .upstream(&format!("discovery = {{ kind = \"file\", path = \"{}\" }}", file.display()))
        .and("[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\nupstream = \"app\"\ndirection = \"ingress\"")
        .start()
        .await;
    has_endpoints(&proxy, &[apps[0].address()]).await;

    proxy.admin_post("/drain").await;
    eventually("the ingress listener has ended", async || is_logged(&proxy, "listener ended")).await;
    write_file(&directory.0, "endpoints", &list(&apps[1]));
    has_endpoints(&proxy, &[apps[1].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!((apps[0].seen(), apps[1].seen()), (0, 1));
}

#[tokio::test]
async fn a_swapped_config_map_is_followed() {
    let apps = [Upstream::that().answers(200).start().await, Upstream::that().answers(200).start().await];
    let directory = Folder::new("configmap");
    let version = |number: usize| {
        let target = directory.0.join(format!("..{number}"));
        std::fs::create_dir_all(&target).expect("a directory");
        let text = format!("endpoints = [\"{}\"]\n", apps[number].address());
        write_file(&target, "endpoints.toml", &text);
        std::os::unix::fs::symlink(format!("..{number}"), directory.0.join("..data_tmp")).expect("a link");
        std::fs::rename(directory.0.join("..data_tmp"), directory.0.join("..data")).expect("swapped");
    };
    version(0);
    let file = directory.0.join("endpoints.toml");
    std::os::unix::fs::symlink("..data/endpoints.toml", &file).expect("a link");
    let discovery = format!("discovery = {{ kind = \"file\", path = \"{}\" }}", file.display());
    let proxy = Config::over_addresses(&[]).upstream(&discovery).start().await;
    has_endpoints(&proxy, &[apps[0].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);

    version(1);
    has_endpoints(&proxy, &[apps[1].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(apps[1].seen(), 1);
    apps[0].has_open(0).await;
}

#[tokio::test]
async fn a_reload_knows_the_endpoints_that_it_brings_and_keeps_those_that_stay() {
    let (apps, port) = on_one_port(&[[127, 0, 0, 1], [127, 0, 0, 2]]).await;
    let dns = Dns::knows("127.0.0.1 one.internal\n127.0.0.2 two.internal\n", &[]).await;
    let proxy = over(&dns, &[format!("one.internal:{port}")]).one_worker().start().await;
    assert_eq!(proxy.get("/").await.status, 200);

    let both = [format!("one.internal:{port}"), format!("two.internal:{port}")];
    proxy.rewrite(&over(&dns, &both).one_worker().text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(sockets(&proxy).await, [apps[0].address().to_string(), apps[1].address().to_string()]);
    assert_eq!(apps[0].open(), 1);

    proxy.rewrite(&over(&dns, &both[1..]).one_worker().text());
    assert_eq!(proxy.admin_post("/reload").await.status, 200);
    assert_eq!(sockets(&proxy).await, [apps[1].address().to_string()]);
    apps[0].has_open(0).await;
    // The tasks of the snapshots before do not put their lists in force any more.
    dns.hosts("127.0.0.1 one.internal\n127.0.0.1 two.internal\n");
    has_endpoints(&proxy, &[apps[0].address()]).await;
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test]
async fn a_name_server_that_never_answers_holds_up_a_start_for_two_seconds() {
    let app = Upstream::that().answers(200).start().await;
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let server = silent.local_addr().expect("bound");
    let endpoints = ["app.internal:80".to_owned(), app.address().to_string()];
    let discovery = format!("discovery = {{ kind = \"dns\", server = \"{server}\" }}");
    let proxy = Config::over_addresses(&endpoints).upstream(&discovery).start().await;
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
    assert_eq!(proxy.get("/").await.status, 200);
    eventually("it is logged", async || is_logged(&proxy, "not all names are resolved after 2 s")).await;
    eventually("the look-up fails", async || is_logged(&proxy, "name does not resolve")).await;
    assert_eq!(sockets(&proxy).await, [app.address().to_string()]);
}

#[tokio::test]
async fn a_list_that_is_too_long_is_cut_and_told() {
    let directory = Folder::new("long");
    let many: Vec<String> = (1..=1005).map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    let text = format!("endpoints = [{}]\n", many.join(", "));
    let file = write_file(&directory.0, "endpoints.toml", &text);
    let discovery = format!("discovery = {{ kind = \"file\", path = \"{}\" }}", file.display());
    let proxy = Config::over_addresses(&[]).upstream(&discovery).start().await;
    eventually("the list is in force", async || sockets(&proxy).await.len() == 1000).await;
    proxy.metric_becomes("outrigger_limit_reached_total{what=endpoints}", 1.0).await;
    eventually("it is logged", async || is_logged(&proxy, "more endpoints than an upstream may have")).await;
}

/// A directory that goes with the story.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outrigger-discovery-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
