//! The real binary, run on a file of its own, ended with the story.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Client, Metrics, Response, eventually, get};

/// A running proxy. Dropped, it is killed, its output is shown if the story failed, and a panic of its fails
/// the story.
pub struct Proxy {
    child: Child,
    /// The story has asked it to end.
    may_end: bool,
    directory: PathBuf,
    output: Output,
    ready: Ready,
}

/// What the ready line says.
struct Ready {
    listeners: Vec<(String, String)>,
    admin: SocketAddr,
}

/// Lines of stdout and stderr, as they came.
type Output = Arc<Mutex<Vec<String>>>;

impl Proxy {
    /// Runs `outrigger run -c FILE` with this configuration and waits until it is ready.
    pub async fn start(config: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outrigger-story-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the configuration");
        let file = directory.join("outrigger.toml");
        std::fs::write(&file, config).expect("the configuration is written");

        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["run", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let output = Output::default();
        collect(child.stdout.take().expect("stdout is piped"), &output);
        collect(child.stderr.take().expect("stderr is piped"), &output);

        // Dropped on a panic below too: so nothing is left behind and the output is shown.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let ready = Ready { listeners: Vec::new(), admin: nowhere };
        let mut proxy = Self { child, may_end: false, directory, output, ready };
        eventually("the proxy says that it is ready", async || {
            if let Some(status) = proxy.child.try_wait().expect("the child can be asked") {
                panic!("the proxy ended with {status} before it was ready; its configuration:\n{config}");
            }
            let found = proxy.lines().iter().find_map(|line| ready_line(line));
            found.map(|ready| proxy.ready = ready).is_some()
        })
        .await;
        proxy
    }

    /// The address of the only, or first, listener.
    pub fn listener(&self) -> SocketAddr {
        self.ready.listeners[0].1.parse().expect("an address of TCP")
    }

    /// The address of the listener `name`.
    pub fn listener_named(&self, name: &str) -> SocketAddr {
        self.listener_text(name).parse().expect("an address of TCP")
    }

    /// The address of the listener `name` as the ready line has it.
    pub fn listener_text(&self, name: &str) -> &str {
        let listeners = &self.ready.listeners;
        listeners.iter().find(|(known, _)| known == name).map(|(_, address)| &**address).expect(name)
    }

    /// The address of the admin API.
    pub fn admin(&self) -> SocketAddr {
        self.ready.admin
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal; from then on it may end.
    pub fn signal(&mut self, signal: rustix::process::Signal) {
        self.may_end = true;
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("it runs");
    }

    /// Waits until it has ended by itself; its exit code.
    pub async fn ends(&mut self) -> Option<i32> {
        self.may_end = true;
        let mut status = None;
        eventually("the proxy ends", async || {
            status = self.child.try_wait().expect("the child can be asked");
            status.is_some()
        })
        .await;
        status.and_then(|status| status.code())
    }

    /// Replaces the configuration file as most editors do: by renaming another one over it.
    pub fn rewrite(&self, config: &str) {
        let new = write_file(&self.directory, "new.toml", config);
        std::fs::rename(new, self.file()).expect("renamed");
    }

    /// `POST` to the admin API.
    pub async fn admin_post(&self, path: &str) -> Response {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.admin()
        );
        Client::connect(self.admin()).await.exchange(&request).await
    }

    /// Runs `outrigger SUBCOMMAND… -c FILE` on its configuration file: exit code, and what it printed.
    pub async fn command(&self, subcommand: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(subcommand).arg("-c").arg(self.file());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = output.expect("the binary runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Its folder: for sockets, and whatever else a story keeps beside the configuration.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.directory.join("outrigger.toml")
    }

    /// A new connection to the listener.
    pub async fn connect(&self) -> Client {
        Client::connect(self.listener()).await
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Response {
        self.connect().await.exchange(&get(path)).await
    }

    /// A GET of the admin API.
    pub async fn admin_get(&self, path: &str) -> Response {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin());
        Client::connect(self.admin()).await.exchange(&request).await
    }

    /// A request of the admin API with a body.
    pub async fn admin_send(&self, method: &str, path: &str, body: &str) -> Response {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.admin(),
            body.len()
        );
        Client::connect(self.admin()).await.exchange(&request).await
    }

    /// All series as they are now.
    pub async fn metrics(&self) -> Metrics {
        let response = self.admin_get("/metrics").await;
        assert_eq!(response.status, 200, "/metrics answers");
        Metrics::parse(&response.text())
    }

    /// The sum of the series that `wanted` selects: `outrigger_requests_total{code=200}`.
    pub async fn metric(&self, wanted: &str) -> f64 {
        self.metrics().await.sum(wanted)
    }

    /// Waits until `wanted` has come to `value`.
    pub async fn metric_becomes(&self, wanted: &str, value: f64) {
        eventually(&format!("{wanted} is {value}"), async || self.metric(wanted).await == value).await;
    }

    /// What `/upstreams` says of `upstream` at this JSON pointer.
    pub async fn upstream_view(&self, upstream: &str, pointer: &str) -> serde_json::Value {
        let text = self.admin_get("/upstreams").await.text();
        let view: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        view[upstream].pointer(pointer).unwrap_or_else(|| panic!("{pointer} stands in {text}")).clone()
    }

    /// Nothing is left of any request: no slot, no queue place, no stream.
    pub async fn rests(&self) {
        for gauge in ["outrigger_concurrency_in_flight", "outrigger_queue_depth", "outrigger_streams"] {
            self.metric_becomes(gauge, 0.0).await;
        }
    }

    /// All lines that it wrote up to now.
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().expect("no reader panics").clone()
    }

    /// The access log's line that mentions `what` (such as a request id), when it has come.
    pub async fn access_log(&self, what: &str) -> serde_json::Value {
        let mut found = None;
        eventually(&format!("an access log line with {what}"), async || {
            let lines = self.lines();
            let mut lines = lines.iter().filter(|line| line.contains(what));
            let line = lines.find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            found = line.filter(|line| line.get("status").is_some());
            found.is_some()
        })
        .await;
        found.expect("it was found")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        // Gone already is fine: nothing else is left to do with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
        let lines = self.lines();
        if std::thread::panicking() {
            let tail = lines.len().saturating_sub(100);
            eprintln!("--- the proxy's output\n{}\n---", lines[tail..].join("\n"));
            return;
        }
        assert!(
            self.may_end || ended.is_none(),
            "the proxy ended by itself with {ended:?}:\n{}",
            lines.join("\n")
        );
        let panic = lines.iter().find(|line| line.contains("panicked at"));
        assert!(panic.is_none(), "the proxy panicked:\n{}", lines.join("\n"));
    }
}

/// Reads `outrigger 0.1.0 ready: listeners NAME=ADDRESS, …; admin ADDRESS`. The only place that knows its form.
fn ready_line(line: &str) -> Option<Ready> {
    let (_, rest) = line.split_once(" ready: listeners ")?;
    let (listeners, rest) = rest.split_once("; admin ")?;
    let listeners = listeners.split(", ").map(|listener| {
        let (name, address) = listener.rsplit_once('=').expect("NAME=ADDRESS");
        (name.to_owned(), address.to_owned())
    });
    let admin = rest.split([',', ';', ' ']).next()?.parse().expect("an address");
    Some(Ready { listeners: listeners.collect(), admin })
}

/// Adds every line of `pipe` to `output`, on a thread that ends with the pipe.
fn collect(pipe: impl Read + Send + 'static, output: &Output) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let line = line.unwrap_or_else(|error| format!("(unreadable: {error})"));
            output.lock().expect("no reader panics").push(line);
        }
    });
}

/// A file beside the configuration, for what a story gives to another program.
pub fn write_file(directory: &Path, name: &str, text: &str) -> PathBuf {
    let file = directory.join(name);
    std::fs::write(&file, text).expect("the file is written");
    file
}
