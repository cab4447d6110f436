//! Real components on both sides: nginx and HAProxy as upstreams; curl, wrk and h2load as clients; promtool reads
//! the metrics.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use crate::support::*;

/// The path of `program`, or a failure that names the package to install.
fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders =
        path.split(':').map(PathBuf::from).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: install Debian's package {package}"))
}

/// Runs a program to its end, off the runtime's thread: upstreams of the story live there.
async fn run(mut command: Command) -> Output {
    let shown = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    output.unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// Runs a program that must end well, and gives what it printed.
async fn must(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command).await;
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{shown} ended with {}:\n{text}", output.status);
    text
}

/// A port that is free now: neither server can say which one it got, had it the choice. It lies below those that
/// the kernel gives to whoever asks for any, so that no other story gets it meanwhile.
fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| fastrand::u16(10_000..30_000));
    let mut free = ports.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("some port is free")
}

/// A server of Debian's, ended with the story.
struct Server {
    child: Child,
    address: SocketAddr,
    directory: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    /// Starts `command` with the configuration that `text` makes of its port and folder.
    async fn start(
        name: &str,
        text: impl Fn(u16, &str) -> String,
        command: impl Fn(&str) -> Command,
    ) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        for attempt in 0..5 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let directory =
                std::env::temp_dir().join(format!("outrigger-{name}-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&directory).expect("a directory");
            let port = free_port();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let folder = directory.display().to_string();
            std::fs::write(directory.join("conf"), text(port, &folder))
                .expect("the configuration is written");
            std::fs::write(directory.join("small"), "hello from a file\n").expect("a file");
            std::fs::write(directory.join("large"), vec![b'x'; 3 << 20]).expect("a file");
            let log = std::fs::File::create(directory.join("log")).expect("a file");
            let mut command = command(&folder);
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
            let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let mut server = Self { child, address, directory };
            let start = std::time::Instant::now();
            while start.elapsed() < PATIENCE {
                if TcpStream::connect(address).await.is_ok() {
                    return server;
                }
                if server.child.try_wait().expect("it can be asked").is_some() {
                    // Somebody else took the port meanwhile, most likely: the last attempt shows what it said.
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let said = std::fs::read_to_string(server.directory.join("log")).unwrap_or_default();
            assert!(attempt < 4, "{name} does not start:\n{said}");
        }
        unreachable!("the last attempt panics");
    }

    async fn nginx() -> Self {
        let binary = program("nginx", "nginx-light");
        let text = |port: u16, folder: &str| {
            format!(
                "daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 7; client_max_body_size 10m;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    location = /echo {{ return 200 \"$request_method $http_host $http_x_retry_attempt\"; }}
    location = /redirect {{ return 302 /small; }}
    location = /unavailable {{ return 503; }}
    location = /empty {{ return 204; }}
  }}
}}"
            )
        };
        Self::start("nginx", text, |folder| {
            let mut command = Command::new(&binary);
            command.args(["-p", folder, "-c", &format!("{folder}/conf"), "-e", "stderr"]);
            command
        })
        .await
    }

    async fn haproxy() -> Self {
        let binary = program("haproxy", "haproxy");
        let text = |port: u16, folder: &str| {
            format!(
                "global
  nbthread 1
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
frontend in
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain file {folder}/small if {{ path /small }}
  http-request return status 503 content-type text/plain string busy if {{ path /unavailable }}
  http-request return status 204 if {{ path /empty }}
  http-request return status 200 content-type text/plain lf-string \"%[method] %[req.hdr(host)]\"
"
            )
        };
        Self::start("haproxy", text, |folder| {
            let mut command = Command::new(&binary);
            command.args(["-db", "-f", &format!("{folder}/conf")]);
            command
        })
        .await
    }

    fn config(&self) -> Config {
        Config::over_addresses(&[self.address.to_string()])
    }
}

fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("curl", "curl"));
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", ""]).args(arguments);
    command
}

#[tokio::test]
async fn nginx_as_the_upstream() {
    let nginx = Server::nginx().await;
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
    let haproxy = Server::haproxy().await;
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
async fn curl_as_the_client() {
    let nginx = Server::nginx().await;
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
    let nginx = Server::nginx().await;
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
    let nginx = Server::nginx().await;
    let proxy = nginx.config().start().await;
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
    let nginx = Server::nginx().await;
    let proxy = nginx.config().start().await;
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
