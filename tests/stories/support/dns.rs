//! A real name server: Debian's dnsmasq, on a port of loopback, with the names that a story gives it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpStream, UdpSocket};

use super::eventually;

/// A name server that knows the zone `internal`. Ended with the story.
pub struct Dns {
    child: Option<Child>,
    address: SocketAddr,
    directory: PathBuf,
}

impl Dns {
    /// Knows the hosts of `hosts` (lines of /etc/hosts), and what `lines` of its configuration say.
    pub async fn knows(hosts: &str, lines: &[&str]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outrigger-dns-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let (folder, address) = (directory.display(), free_address().await);
        std::fs::write(directory.join("hosts"), hosts).expect("written");
        // Nothing of this machine, nothing of the world; answers are valid for a second.
        let conf = format!(
            "no-resolv\nno-hosts\nlocal=/internal/\nlocal-ttl=1\naddn-hosts={folder}/hosts\nport={}\n\
             listen-address=127.0.0.1\nbind-interfaces\npid-file={folder}/pid\nuser=\nlog-queries\nlog-facility={folder}/log\n{}\n",
            address.port(),
            lines.join("\n")
        );
        std::fs::write(directory.join("conf"), conf).expect("written");
        let mut dns = Self { child: None, address, directory };
        dns.starts().await;
        dns
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs again, with what it knew before.
    pub async fn starts(&mut self) {
        let mut command = Command::new(program());
        let conf = self.directory.join("conf");
        command
            .arg("--keep-in-foreground")
            .arg(format!("--conf-file={}", conf.display()))
            .stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
        let address = self.address;
        eventually("dnsmasq listens", async || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("it can be asked"));
            assert!(ended.is_none(), "dnsmasq ended with {ended:?}:\n{}", self.log());
            TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    /// From now on nobody answers.
    pub fn stops(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// From now on it knows these hosts, and no others.
    pub fn hosts(&self, hosts: &str) {
        std::fs::write(self.directory.join("hosts"), hosts).expect("written");
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), Signal::HUP).expect("it takes signals");
    }

    /// What it was asked, and said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stops();
        if std::thread::panicking() {
            eprintln!("--- dnsmasq's log\n{}\n---", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A port that both of DNS's transports have free. It lies below those that the kernel gives to whoever asks for any.
async fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..30_000)));
        if UdpSocket::bind(address).await.is_ok() && std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn program() -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').map(PathBuf::from).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("dnsmasq")).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("dnsmasq is missing: install Debian's package dnsmasq-base"))
}
