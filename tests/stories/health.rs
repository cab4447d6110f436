//! Active health checks: nginx, a gRPC server and bare sockets are asked; those that are down are out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::endpoints::{ejections, healthy, shown, told};
use crate::support::python::Script;
use crate::support::*;

/// Checks that come quickly enough for a story.
const QUICK: &str = "health = { mode = \"enforce\", interval = \"100ms\", timeout = \"5s\" }";

/// nginx on a Unix socket; `/healthz` answers 200 while a file is there.
struct Nginx {
    child: Child,
    folder: PathBuf,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Nginx {
    async fn start() -> Self {
        let binary = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).is_file());
        let binary = binary.expect("nginx is missing: install Debian's package nginx-light");
        let folder = std::env::temp_dir().join(format!("outrigger-health-{}", fastrand::u32(..)));
        std::fs::create_dir_all(&folder).expect("a folder");
        let at = folder.display();
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr warn;
events {{}}
http {{
  access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
  server {{
    listen unix:{at}/socket;
    root {at};
    location = /healthz {{ try_files /up =503; }}
    location / {{ return 200 $http_host; }}
  }}
}}"
        );
        std::fs::write(folder.join("conf"), text).expect("the configuration is written");
        let mut command = Command::new(binary);
        command.arg("-p").arg(&folder).arg("-c").arg(folder.join("conf")).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx starts");
        let nginx = Self { child, folder };
        nginx.is_up(true);
        let socket = nginx.folder.join("socket");
        eventually("nginx listens", async || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        nginx
    }

    fn is_up(&self, up: bool) {
        let file = self.folder.join("up");
        if up { std::fs::write(file, "") } else { std::fs::remove_file(file) }.expect("the file");
    }

    fn address(&self) -> String {
        format!("unix:{}/socket", self.folder.display())
    }
}

#[tokio::test]
async fn who_fails_its_http_check_is_out_and_comes_back() {
    let (down, up) = (Nginx::start().await, Nginx::start().await);
    let proxy = Config::over_addresses(&[down.address(), up.address()]).upstream(QUICK).start().await;
    assert_eq!(proxy.metric(&healthy(down.address())).await, 1.0);

    down.is_up(false);
    proxy.metric_becomes(&healthy(down.address()), 0.0).await;
    assert_eq!(proxy.metric(&ejections(down.address(), "health_check")).await, 1.0);
    let view = shown(&proxy, down.address()).await;
    assert_eq!((&view["health"], &view["check"]["verdict"]), (&"unhealthy".into(), &"failing".into()));
    assert_eq!(view["check"]["last"]["detail"], "status 503");
    let events = told(&proxy, "endpoint fails its health check: status 503", down.address()).await;
    assert_eq!((events.len(), &events[0]["reason"]), (1, &"health_check".into()));
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    let to_it = format!("outrigger_endpoint_attempts_total{{endpoint={}}}", down.address());
    assert_eq!(proxy.metric(&to_it).await, 0.0);

    down.is_up(true);
    proxy.metric_becomes(&healthy(down.address()), 1.0).await;
    assert_eq!(told(&proxy, "endpoint passes its health check", down.address()).await.len(), 1);
    assert_eq!(shown(&proxy, down.address()).await["health"], "usable");
}

/// A gRPC server with the health service; the service `app.Main` serves while the file `up` is there.
const GRPC_SERVER: &str = r#"
import os, sys, time
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
server = grpc.server(futures.ThreadPoolExecutor(4))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
port = server.add_insecure_port("127.0.0.1:0")
servicer.set("", health_pb2.HealthCheckResponse.SERVING)
server.start()
print(f"127.0.0.1:{port}", flush=True)
while True:
    up = os.path.exists("FILE")
    servicer.set("app.Main", health_pb2.HealthCheckResponse.SERVING if up else health_pb2.HealthCheckResponse.NOT_SERVING)
    time.sleep(0.02)
"#;

#[tokio::test]
async fn who_says_not_serving_over_grpc_is_out() {
    let file = std::env::temp_dir().join(format!("outrigger-grpc-{}", fastrand::u32(..)));
    std::fs::write(&file, "").expect("a file");
    let code = GRPC_SERVER.replace("FILE", &file.display().to_string());
    let down = Script::start("grpc_health", &code).await;
    let up = Script::start("grpc_health", &code.replace(&file.display().to_string(), "/")).await;
    let checks = "health = { mode = \"enforce\", kind = \"grpc\", service = \"app.Main\", interval = \"100ms\", timeout = \"5s\" }";
    let proxy = Config::over_addresses(&[down.said.clone(), up.said.clone()]).upstream(checks).start().await;
    eventually("both are asked and pass", async || {
        let verdict =
            async |server: &Script| shown(&proxy, &server.said).await["check"]["verdict"] == "passing";
        verdict(&down).await && verdict(&up).await
    })
    .await;

    std::fs::remove_file(&file).expect("it was there");
    proxy.metric_becomes(&healthy(&down.said), 0.0).await;
    assert_eq!(shown(&proxy, &down.said).await["check"]["last"]["detail"], "it says NOT_SERVING");
    let events = told(&proxy, "endpoint fails its health check: it says NOT_SERVING", &down.said).await;
    assert_eq!(events.len(), 1);

    std::fs::write(&file, "").expect("a file");
    proxy.metric_becomes(&healthy(&down.said), 1.0).await;
    std::fs::remove_file(&file).expect("it was there");
}

#[tokio::test]
async fn a_service_that_a_grpc_server_does_not_know_fails() {
    let server = Script::start("grpc_health", &GRPC_SERVER.replace("FILE", "/")).await;
    let checks = "health = { mode = \"enforce\", kind = \"grpc\", service = \"nobody\", interval = \"100ms\", timeout = \"5s\" }";
    let proxy = Config::over_addresses(std::slice::from_ref(&server.said)).upstream(checks).start().await;
    proxy.metric_becomes(&healthy(&server.said), 0.0).await;
    let detail = shown(&proxy, &server.said).await["check"]["last"]["detail"].clone();
    assert!(detail.as_str().is_some_and(|detail| detail.starts_with("grpc-status 5")), "{detail}");
}

#[tokio::test]
async fn who_takes_no_connections_fails_its_tcp_check() {
    let (down, up) = (Upstream::refusing(), Upstream::that().answers(200).start().await);
    let checks = "health = { mode = \"enforce\", kind = \"tcp\", interval = \"100ms\" }";
    let proxy = Config::over([&down, &up]).upstream(checks).start().await;
    proxy.metric_becomes(&healthy(down.address()), 0.0).await;
    let view = shown(&proxy, down.address()).await;
    assert!(
        view["check"]["last"]["detail"].as_str().is_some_and(|detail| detail.starts_with("cannot connect"))
    );
    assert_eq!(proxy.metric(&healthy(up.address())).await, 1.0);
}

#[tokio::test]
async fn in_shadow_a_failing_check_is_told_and_nobody_is_out() {
    let down = Upstream::that().answers(404).start().await;
    let checks = "health = { mode = \"shadow\", interval = \"100ms\" }";
    let proxy = Config::over([&down]).upstream(checks).start().await;
    proxy.metric_becomes(&ejections(down.address(), "health_check"), 1.0).await;
    assert_eq!(proxy.metric(&healthy(down.address())).await, 1.0);
    let view = shown(&proxy, down.address()).await;
    assert_eq!((&view["health"], &view["check"]["verdict"]), (&"usable".into(), &"failing".into()));
    assert_eq!(told(&proxy, "endpoint fails its health check", down.address()).await[0]["mode"], "shadow");
}

#[tokio::test]
async fn a_passing_check_does_not_bring_back_who_fails_its_traffic() {
    // Its health is fine, everything else is not.
    let bad = Nginx::start().await;
    let text = std::fs::read_to_string(bad.folder.join("conf")).expect("it was written");
    drop(bad);
    let bad = start_as(&text.replace("return 200 $http_host", "return 500")).await;
    let good = Nginx::start().await;
    let proxy = Config::over_addresses(&[bad.address(), good.address()])
        .upstream(QUICK)
        .upstream("balance.kind = \"round_robin\"")
        .upstream("outlier.eject_for = { base = \"30s\" }")
        .start()
        .await;
    for _ in 0..40 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(proxy.metric(&healthy(bad.address())).await, 0.0);
    eventually("it is checked while it is out", async || {
        shown(&proxy, bad.address()).await["check"]["passes"].as_u64() >= Some(3)
    })
    .await;
    let view = shown(&proxy, bad.address()).await;
    assert_eq!((&view["health"], &view["check"]["verdict"]), (&"ejected".into(), &"passing".into()));
}

/// nginx with another configuration of the same form.
async fn start_as(text: &str) -> Nginx {
    let mut nginx = Nginx::start().await;
    let old =
        text.lines().find_map(|line| line.trim().strip_prefix("root ")?.strip_suffix(';')).expect("a root");
    let text = text.replace(old, &nginx.folder.display().to_string());
    let _ = nginx.child.kill();
    let _ = nginx.child.wait();
    let _ = std::fs::remove_file(nginx.folder.join("socket"));
    std::fs::write(nginx.folder.join("conf"), text).expect("the configuration is written");
    let mut command = Command::new("nginx");
    command
        .env("PATH", "/usr/sbin:/usr/bin")
        .arg("-p")
        .arg(&nginx.folder)
        .arg("-c")
        .arg(nginx.folder.join("conf"));
    nginx.child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx starts");
    let socket = nginx.folder.join("socket");
    eventually("nginx listens", async || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    nginx
}

#[tokio::test]
async fn a_busy_endpoint_is_not_asked() {
    let app = Upstream::that().answers(200).start().await;
    let proxy =
        Config::over([&app]).upstream("health = { mode = \"enforce\", interval = \"5s\" }").start().await;
    let mut client = proxy.connect().await;
    let start = std::time::Instant::now();
    let mut sent = 0;
    // Checks would have come in the first interval at the latest.
    while start.elapsed() < std::time::Duration::from_secs(6) {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
        sent += 1;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let checks = app.requests().iter().filter(|request| request.target == "/healthz").count();
    assert!(checks <= 1, "{checks} checks beside {sent} requests");
}

#[tokio::test]
async fn an_upstream_without_a_usable_endpoint_makes_unready_who_requires_it() {
    let down = Upstream::that().answers(404).start().await;
    let text = Config::over([&down]).upstream(QUICK).text();
    let text = text.replace("[telemetry]", "ready_requires = [\"app\"]\n[telemetry]");
    let proxy = Proxy::start(&text).await;
    eventually("it is unready", async || proxy.admin_get("/readyz").await.status == 503).await;
    let answer = proxy.admin_get("/readyz?verbose").await.text();
    let expected = "upstream app: no usable endpoint: all 1 are out of service (1 unhealthy)";
    assert!(answer.contains(expected), "{answer}");
}

#[tokio::test]
async fn a_new_endpoint_waits_for_its_first_check() {
    let (old, new) = (Nginx::start().await, Nginx::start().await);
    new.is_up(false);
    let config = |endpoints: &[String]| Config::over_addresses(endpoints).upstream(QUICK).text();
    let proxy = Proxy::start(&config(&[old.address()])).await;
    proxy.rewrite(&config(&[old.address(), new.address()]));
    eventually("it is known", async || {
        proxy.metric("outrigger_endpoint_healthy{upstream=app}").await >= 1.0
            && proxy.admin_get("/upstreams").await.text().contains(&new.address())
    })
    .await;
    assert_eq!(proxy.metric(&healthy(new.address())).await, 0.0);
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    let to_it = format!("outrigger_endpoint_attempts_total{{endpoint={}}}", new.address());
    assert_eq!(proxy.metric(&to_it).await, 0.0);
    new.is_up(true);
    proxy.metric_becomes(&healthy(new.address()), 1.0).await;
}

#[tokio::test]
async fn who_would_wait_in_vain_for_its_first_check_does_not() {
    let [first, second, third] = [Nginx::start().await, Nginx::start().await, Nginx::start().await];
    let config = |endpoints: &[String]| {
        let slow = "health = { mode = \"enforce\", interval = \"1h\", timeout = \"5s\" }";
        let text = Config::over_addresses(endpoints).upstream(slow).text();
        text.replace("[telemetry]", "ready_requires = [\"app\"]\n[telemetry]")
    };
    let proxy = Proxy::start(&config(&[first.address()])).await;
    proxy.rewrite(&config(&[second.address()]));
    let is_known = async |address: String| proxy.admin_get("/upstreams").await.text().contains(&address);
    eventually("the list is another one", async || is_known(second.address()).await).await;
    assert_eq!(proxy.metric(&healthy(second.address())).await, 1.0, "nobody else serves meanwhile");
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);

    proxy.rewrite(&config(&[second.address(), third.address()]));
    eventually("the list is another one", async || is_known(third.address()).await).await;
    proxy.metric_becomes(&healthy(third.address()), 1.0).await;
}
