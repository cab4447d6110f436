//! The real binary before the replicas, as a process, with the one configuration of all rows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long it may take to be ready, and to answer its admin API.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running sidecar. Dropped, it is killed.
pub(crate) struct Sidecar {
    child: Child,
    /// Where its clients connect.
    pub(crate) listener: SocketAddr,
    admin: SocketAddr,
}

/// Three endpoints and a client's patience; all else are the defaults.
fn configuration(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        r#"[admin]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
upstream = "app"
[upstream.app]
endpoints = [{}]
timeout = {{ connect = "100ms", attempt = "100ms", request = "500ms" }}
"#,
        endpoints.join(", ")
    )
}

impl Sidecar {
    /// Runs `outrigger` before `endpoints` and waits until it is ready. Its configuration and its output are in
    /// `directory`.
    pub(crate) fn start(outrigger: &Path, endpoints: &[SocketAddr], directory: &Path) -> io::Result<Sidecar> {
        let file = directory.join("outrigger.toml");
        fs::write(&file, configuration(endpoints))?;
        let output = directory.join("output.log");
        let log = File::create(&output)?;
        let child = Command::new(outrigger)
            .args(["run", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sidecar = Sidecar { child, listener: nowhere, admin: nowhere };
        (sidecar.listener, sidecar.admin) = sidecar.until_ready(&output)?;
        Ok(sidecar)
    }

    fn until_ready(&mut self, output: &PathBuf) -> io::Result<(SocketAddr, SocketAddr)> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(output)?;
            if let Some(addresses) = text.lines().find_map(ready_line) {
                return Ok(addresses);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("the sidecar does not get ready ({ended:?}): {text}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What its admin API answers to a GET.
    pub(crate) fn admin(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| io::Error::other(format!("{path} of the admin API: {answer:?}")))
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
