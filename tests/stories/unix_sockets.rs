//! Unix sockets on both sides: clients and services on the same machine that need no port.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::servers::{Server, curl, must};
use crate::support::unix::Relay;
use crate::support::*;

/// A folder for sockets, gone with the story.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("outrigger-unix-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A listener at `path` beside `main`.
fn local(path: &Path) -> String {
    format!("[[listener]]\nname = \"local\"\naddress = \"unix:{}\"\nupstream = \"app\"\n", path.display())
}

#[tokio::test]
async fn clients_and_endpoints_at_unix_sockets() {
    let folder = Folder::new("both");
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let endpoint = Relay::to(app.address(), folder.socket("app"));
    let listener = folder.socket("outrigger");
    let text = format!("{}direction = \"ingress\"\ntrust = [\"127.0.0.1\"]\n", local(&listener));
    let config = Config::over_addresses(&[format!("unix:{}", endpoint.path.display())]);
    let proxy = config.and(&text).start().await;
    assert_eq!(proxy.listener_text("local"), format!("unix:{}", listener.display()));

    let near = Relay::from(&listener).await;
    let mut client = Client::connect(near.address).await;
    let ask =
        "GET / HTTP/1.1\r\nHost: localhost\r\nx-request-id: by-unix\r\nx-request-timeout-ms: 5000\r\n\r\n";
    assert_eq!(client.exchange(ask).await.text(), "hello");
    assert_eq!(client.exchange(&get("/named")).await.text(), "hello");

    let seen = app.request(0);
    assert_eq!(seen.field("host"), Some("localhost"), "the endpoint's, which is on this host");
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-request-id"), Some("by-unix"), "a client at the socket counts as loopback");
    assert_eq!(app.request(1).field("host"), Some("app.test"));
    assert_eq!(app.connections(), 1, "connections to a Unix socket are kept too");
    let line = proxy.access_log("by-unix").await;
    assert_eq!(line["client"], "unix");
    assert_eq!(line["endpoint"], format!("unix:{}", endpoint.path.display()));
    assert_eq!(proxy.metric("outrigger_client_connections{listener=local}").await, 1.0);
    proxy.rests().await;
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_refused_and_retried() {
    let folder = Folder::new("refused");
    let app = Upstream::that().answers(200).start().await;
    let gone = format!("unix:{}", folder.socket("gone").display());
    let proxy = Config::over_addresses(std::slice::from_ref(&gone)).start().await;
    let refused = proxy.get("/").await;
    refused.must_be(502, "connect_error");

    let both = Config::over_addresses(&[gone, app.address().to_string()]).start().await;
    for _ in 0..10 {
        assert_eq!(both.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn the_socket_stays_over_reloads_and_goes_with_the_process() {
    let folder = Folder::new("life");
    let app = Upstream::that().answers(200).start().await;
    let (first, second) = (folder.socket("first"), folder.socket("second"));
    drop(std::os::unix::net::UnixListener::bind(&first).expect("a free path"));
    let config = Config::over([&app]);
    let mut proxy = config.clone().and(&local(&first)).start().await;
    let near = Relay::from(&first).await;
    let mut client = Client::connect(near.address).await;
    assert_eq!(client.exchange(&get("/")).await.status, 200, "what a dead process left was in nobody's way");
    let inode = std::fs::metadata(&first).expect("it is there").ino();

    let reload = async |proxy: &Proxy, config: &Config| {
        proxy.rewrite(&config.text());
        proxy.admin_post("/reload").await
    };
    let answer = reload(&proxy, &config.clone().upstream("timeout.idle = \"9s\"").and(&local(&first))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(std::fs::metadata(&first).expect("it is there").ino(), inode, "the same socket");
    assert_eq!(client.exchange(&get("/")).await.status, 200, "and the same connection");

    std::fs::write(&second, "precious").expect("a file");
    let answer = reload(&proxy, &config.clone().and(&local(&second))).await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("a file that is no socket is there"), "{}", answer.text());
    assert_eq!(std::fs::read_to_string(&second).expect("untouched"), "precious");
    assert_eq!(client.exchange(&get("/")).await.status, 200);

    std::fs::remove_file(&second).expect("it is there");
    let answer = reload(&proxy, &config.clone().and(&local(&second))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!first.exists() && second.exists(), "the old one is gone, the new one is there");
    let near = Relay::from(&second).await;
    assert_eq!(Client::connect(near.address).await.exchange(&get("/")).await.status, 200);

    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ends().await, Some(0));
    assert!(!second.exists(), "nothing is left behind");
}

#[tokio::test]
async fn a_socket_that_is_in_use_is_an_error() {
    let folder = Folder::new("taken");
    let app = Upstream::that().answers(200).start().await;
    let path = folder.socket("taken");
    let proxy = Config::over([&app]).and(&local(&path)).start().await;
    // Another process with the same file: its other ports are any free ones.
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger")).args(["run", "-c"]).arg(proxy.file()).output();
    let output = output.expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("(listener \"local\"): somebody listens there; stop it"), "{said}");
    let near = Relay::from(&path).await;
    assert_eq!(Client::connect(near.address).await.exchange(&get("/")).await.status, 200, "it lives on");
}

#[tokio::test]
async fn curl_and_nginx_at_unix_sockets() {
    let folder = Folder::new("real");
    let nginx = Server::nginx_with(|port, folder| {
        format!(
            "server {{ listen 127.0.0.1:{port}; listen unix:{folder}/socket;
             location / {{ return 200 \"$http_host $server_protocol\"; }} }}"
        )
    })
    .await;
    let listener = folder.socket("outrigger");
    let endpoint = format!("unix:{}", nginx.directory.join("socket").display());
    let proxy = Config::over_addresses(&[endpoint]).one_worker().and(&local(&listener)).start().await;
    let socket = listener.display().to_string();
    for more in [&["--http1.1"][..], &["--http2-prior-knowledge"]] {
        let command = curl(&[&["--unix-socket", &socket, "http://service.test/"], more].concat());
        assert_eq!(must(command).await, "service.test HTTP/1.1", "{more:?}");
    }
    assert_eq!(proxy.metric("outrigger_upstream_connects_total{upstream=app,result=ok}").await, 1.0);
}
