//! Real components of Debian: servers that are ended with the story, programs that run to their end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use super::{Config, PATIENCE};

/// The path of `program`, or a failure that names the package to install.
pub fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders =
        path.split(':').map(PathBuf::from).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: install Debian's package {package}"))
}

/// Runs a program to its end, off the runtime's thread: upstreams of the story live there.
pub async fn run(mut command: Command) -> Output {
    let shown = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    output.unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// Runs a program that must end well, and gives what it printed.
pub async fn must(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command).await;
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{shown} ended with {}:\n{text}", output.status);
    text
}

/// A port that is free now: neither server can say which one it got, had it the choice. It lies below those that
/// the kernel gives to whoever asks for any, so that no other story gets it meanwhile.
pub fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| fastrand::u16(10_000..30_000));
    let mut free = ports.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("some port is free")
}

/// A server of Debian's, ended with the story.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// What is its own: its configuration is `conf`, its output `log`.
    pub directory: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    /// The proxy in front of it.
    pub fn config(&self) -> Config {
        Config::over_addresses(&[self.address.to_string()])
    }

    /// Starts `command` with the configuration that `text` makes of its port and folder.
    pub async fn start(
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

    /// nginx with these servers, each a port or a path of `text` as it is given a free port and its folder.
    pub async fn nginx_with(servers: impl Fn(u16, &str) -> String) -> Self {
        let binary = program("nginx", "nginx-light");
        let text = |port: u16, folder: &str| {
            format!(
                "daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {}
}}",
                servers(port, folder)
            )
        };
        Self::start("nginx", text, |folder| {
            let mut command = Command::new(&binary);
            command.args(["-p", folder, "-c", &format!("{folder}/conf"), "-e", "stderr"]);
            command
        })
        .await
    }

    /// HAProxy with these sections behind its defaults.
    pub async fn haproxy_with(sections: impl Fn(u16, &str) -> String) -> Self {
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
{}
",
                sections(port, folder)
            )
        };
        Self::start("haproxy", text, |folder| {
            let mut command = Command::new(&binary);
            command.args(["-db", "-f", &format!("{folder}/conf")]);
            command
        })
        .await
    }
}

/// curl, quiet but for its errors, past whatever proxy the environment names.
pub fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("curl", "curl"));
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", ""]).args(arguments);
    command
}
