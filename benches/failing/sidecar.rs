//! The real binary before the replicas, as a process, with the one configuration of all rows; or a peer instead.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long it may take to be ready, and to answer its admin API.
const PATIENCE: Duration = Duration::from_secs(10);

/// What stands before the replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// This binary.
    Outrigger(PathBuf),
    /// HAProxy, nginx or Envoy, with the same timeouts and all they have against failing replicas.
    Peer(&'static Peer),
}

/// Another proxy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    name: &'static str,
    /// What its configuration is called: Envoy goes by that.
    file: &'static str,
    /// Where `@LISTENER@`, `@PORT@`, `@A@`, `@PORT_A@` … and `@DIRECTORY@` stand for what is known at its start.
    template: &'static str,
    /// Against too much load, where it has anything: with `@SERVERS@` for these lines, in which `@ADDRESS@` and
    /// `@PORT@` stand for a replica's.
    overload: Option<(&'static str, &'static str)>,
    /// Before the file's name.
    command: &'static [&'static str],
}

const PEERS: &[Peer] = &[
    Peer {
        name: "haproxy",
        file: "haproxy.cfg",
        template: include_str!("peers/haproxy.cfg"),
        overload: Some((include_str!("peers/overload/haproxy.cfg"), "  server s@PORT@ @ADDRESS@\n")),
        command: &["haproxy", "-db", "-f"],
    },
    Peer {
        name: "nginx",
        file: "nginx.conf",
        template: include_str!("peers/nginx.conf"),
        overload: None,
        command: &["nginx", "-c"],
    },
    Peer {
        name: "envoy",
        file: "envoy.yaml",
        template: include_str!("peers/envoy.yaml"),
        overload: Some((
            include_str!("peers/overload/envoy.yaml"),
            "      - lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @PORT@ } } } }]\n",
        )),
        command: &["envoy", "--concurrency", "2", "--log-level", "error", "--use-dynamic-base-id", "-c"],
    },
];

impl Proxy {
    /// The peer of that name.
    pub(crate) fn peer(name: &str) -> Result<Proxy, String> {
        PEERS.iter().find(|peer| peer.name == name).map(Proxy::Peer).ok_or_else(|| {
            let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
            format!("no peer {name:?}; there are {}", names.join(", "))
        })
    }
}

/// What a sidecar has to deal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Replicas that fail.
    Fails,
    /// Too much load.
    Overload,
}

impl Peer {
    /// Its configuration against that trouble, before `endpoints`; the rest of it is not known yet.
    fn configuration(&self, trouble: Trouble, endpoints: &[SocketAddr]) -> io::Result<String> {
        let mut text = match (trouble, self.overload) {
            (Trouble::Fails, _) => self.template.to_owned(),
            (Trouble::Overload, Some((template, line))) => {
                let lines = endpoints.iter().map(|endpoint| {
                    let line = line.replace("@ADDRESS@", &endpoint.to_string());
                    line.replace("@PORT@", &endpoint.port().to_string())
                });
                template.replace("@SERVERS@\n", &lines.collect::<String>())
            }
            (Trouble::Overload, None) => {
                return Err(io::Error::other(format!("{} has nothing against too much load", self.name)));
            }
        };
        for (letter, endpoint) in ["A", "B", "C"].iter().zip(endpoints) {
            text = text.replace(&format!("@{letter}@"), &endpoint.to_string());
            text = text.replace(&format!("@PORT_{letter}@"), &endpoint.port().to_string());
        }
        Ok(text)
    }
}

/// A running sidecar. Dropped, it is killed.
pub(crate) struct Sidecar {
    child: Child,
    /// Where its clients connect.
    pub(crate) listener: SocketAddr,
    /// A peer has none that we know.
    admin: Option<SocketAddr>,
}

/// These endpoints and `settings` of their upstream; all else are the defaults.
fn configuration(endpoints: &[SocketAddr], settings: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        r#"[admin]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
upstream = "app"
[upstream.app]
endpoints = [{}]
{settings}
"#,
        endpoints.join(", ")
    )
}

impl Sidecar {
    /// Runs `proxy` before `endpoints`, with these settings of their upstream (a peer: with its own against that
    /// trouble), and waits until it is ready. Its configuration and its output are in `directory`.
    pub(crate) fn start(
        proxy: &Proxy,
        endpoints: &[SocketAddr],
        (trouble, settings): (Trouble, &str),
        directory: &Path,
    ) -> io::Result<Sidecar> {
        match proxy {
            Proxy::Outrigger(binary) => {
                let file = directory.join("outrigger.toml");
                fs::write(&file, configuration(endpoints, settings))?;
                let mut command = Command::new(binary);
                command.args(["run", "-c"]).arg(&file);
                let mut sidecar = Self::spawn(command, directory)?;
                let (listener, admin) = sidecar.until(directory, |text| text.lines().find_map(ready_line))?;
                (sidecar.listener, sidecar.admin) = (listener, Some(admin));
                Ok(sidecar)
            }
            Proxy::Peer(peer) => {
                // It cannot tell us its port; somebody might take this one meanwhile.
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
                let file = directory.join(peer.file);
                let mut text = peer.configuration(trouble, endpoints)?;
                text = text.replace("@DIRECTORY@", &directory.display().to_string());
                text = text.replace("@LISTENER@", &listener.to_string());
                text = text.replace("@PORT@", &listener.port().to_string());
                fs::write(&file, text)?;
                let [program, arguments @ ..] = peer.command else { unreachable!("none is empty") };
                let mut command = Command::new(program);
                command.args(arguments).arg(&file);
                let mut sidecar = Self::spawn(command, directory)?;
                sidecar.until(directory, |_| TcpStream::connect(listener).ok())?;
                sidecar.listener = listener;
                Ok(sidecar)
            }
        }
    }

    fn spawn(mut command: Command, directory: &Path) -> io::Result<Sidecar> {
        let log = File::create(directory.join("output.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().map_err(|error| io::Error::other(format!("{command:?}: {error}")))?;
        Ok(Sidecar { child, listener: SocketAddr::from(([127, 0, 0, 1], 0)), admin: None })
    }

    /// Waits until `ready` finds in the output what it looks for.
    fn until<T>(&mut self, directory: &Path, ready: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(directory.join("output.log"))?;
            if let Some(found) = ready(&text) {
                return Ok(found);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("it does not get ready ({ended:?}): {text}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What its admin API answers to a GET; nothing where it has none.
    pub(crate) fn admin(&self, path: &str) -> io::Result<String> {
        let Some(admin) = self.admin else { return Ok(String::new()) };
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| io::Error::other(format!("{path} of the admin API: {answer:?}")))
    }

    /// Keeps `/upstreams` over time, a line each, and returns what it said; a peer has none.
    pub(crate) fn watch(
        &self,
        every: Duration,
        start: Instant,
        end: Duration,
        directory: &Path,
    ) -> io::Result<Vec<(Duration, Value)>> {
        let mut file = File::create(directory.join("upstreams.jsonl"))?;
        let mut pages = Vec::new();
        thread::sleep(start.saturating_duration_since(Instant::now()));
        while start.elapsed() < end {
            let page = self.admin("/upstreams")?;
            if page.is_empty() {
                break;
            }
            let at = start.elapsed();
            let page: Value = serde_json::from_str(&page).map_err(io::Error::other)?;
            writeln!(file, "{}", json!({ "at": at.as_secs_f64(), "upstreams": page }))?;
            pages.push((at, page));
            thread::sleep(every);
        }
        Ok(pages)
    }

    /// How often each endpoint was ejected, and why: `(endpoint, reason, times)`, without what never happened.
    pub(crate) fn ejections(&self) -> io::Result<Vec<(String, String, u64)>> {
        let page = self.admin("/metrics")?;
        let lines = page.lines().filter(|line| line.starts_with("outrigger_endpoint_ejections_total{"));
        let series = lines.filter_map(|line| {
            let (labels, times) = line.rsplit_once(' ')?;
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split('"').next().map(str::to_owned)
            };
            Some((label("endpoint")?, label("reason")?, times.parse::<f64>().ok()? as u64))
        });
        Ok(series.filter(|(_, _, times)| *times > 0).collect())
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // Gone already is fine: nothing else is left to do with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads `outrigger 0.1.0 ready: listeners NAME=ADDRESS; admin ADDRESS`.
fn ready_line(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (_, rest) = line.split_once(" ready: listeners ")?;
    let (listener, rest) = rest.split_once("; admin ")?;
    let (_, listener) = listener.rsplit_once('=')?;
    let admin = rest.split([',', ';', ' ', '"']).next()?;
    Some((listener.parse().ok()?, admin.parse().ok()?))
}
