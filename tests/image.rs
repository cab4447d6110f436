//! The image builds from its `Dockerfile`, holds nothing but the binary and its configuration, and serves.
//!
//! Built by Debian's buildah, which needs no daemon, as root. The builder image is made here: Debian's base with
//! gcc, and the Rust toolchain and crates of this machine mounted into the build, so nothing is fetched twice. It is
//! hardly optimised, which takes a third of the time: what is looked at here does not depend on that.
//! It takes minutes, so a plain `cargo test` passes it over, and says so; `tests/run` includes it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = "/usr/local/bin/outrigger";

#[test]
#[ignore = "builds the image, which takes minutes and root; tests/run includes it"]
fn the_image_builds_and_serves() {
    let workshop = Workshop::open();
    workshop.build_builder();
    workshop.build_image("c0ffee5");

    assert_metadata(&workshop);
    let container = workshop.container();
    assert_eq!(files(&container), ["etc/outrigger/outrigger.toml", "usr/local/bin/outrigger"]);

    let version = container.run(&[], &["--version"]).output().expect("buildah runs");
    let said = String::from_utf8_lossy(&version.stdout);
    assert!(said.contains(env!("CARGO_PKG_VERSION")) && said.contains("c0ffee5"), "{said}");

    assert_serves(&container);
}

/// What an orchestrator reads off the image.
fn assert_metadata(workshop: &Workshop) {
    let inspected =
        workshop.buildah(&["inspect", "--type", "image", "outrigger"]).output().expect("buildah runs");
    let inspected: serde_json::Value =
        serde_json::from_slice(&inspected.stdout).expect("buildah prints JSON");
    let config = &inspected["Docker"]["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Entrypoint"], serde_json::json!([BINARY]));
    assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD", BINARY, "probe"]));
}

/// Started as it is, the sidecar answers through its listener, `probe` agrees, and SIGTERM ends it with 0.
fn assert_serves(container: &Container) {
    let upstream = upstream();
    let [listen, admin, metrics] = free_addresses();
    let environment = [
        format!("OUTRIGGER_LISTEN={listen}"),
        format!("OUTRIGGER_ADMIN={admin}"),
        format!("OUTRIGGER_METRICS={metrics}"),
        // By name: a static binary resolves without the files that a distribution has for it.
        format!("OUTRIGGER_UPSTREAM=localhost:{}", upstream.port()),
    ];
    let mut sidecar = Started(container.run(&environment, &["run"]).spawn().expect("buildah runs"));

    until("it is ready", || get(metrics, "/readyz").filter(|status| status.contains("200")));
    assert_eq!(get(listen, "/").as_deref(), Some("HTTP/1.1 200 OK"));
    let probe = || container.run(&environment, &["probe"]).status().expect("buildah runs");
    assert_eq!(probe().code(), Some(0));

    let process = sidecar.process();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    assert!(status.contains("Uid:\t65532\t65532"), "it does not run as root: {status}");
    run(Command::new("sh").args(["-c", &format!("kill -TERM {process}")]));
    let ended = until("it ends after SIGTERM", || sidecar.0.try_wait().expect("it was started here"));
    assert_eq!(ended.code(), Some(0));
    assert_ne!(probe().code(), Some(0), "nobody is there to probe");
}

/// Where buildah keeps what it makes. The builder stays for the next run.
struct Workshop {
    directory: PathBuf,
}

impl Workshop {
    fn open() -> Workshop {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        std::fs::create_dir_all(&directory).expect("the target directory can be written");
        Workshop { directory }
    }

    fn buildah(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.env("STORAGE_DRIVER", "vfs").stdin(Stdio::null());
        command.arg("--root").arg(self.directory.join("storage"));
        command.arg("--runroot").arg(self.directory.join("run"));
        command.args(arguments);
        command
    }

    /// Debian with gcc, as an image that finds the mounted toolchain.
    fn build_builder(&self) {
        if self.buildah(&["inspect", "--type", "image", "outrigger-builder"]).output().is_ok_and(succeeded) {
            return;
        }
        let (root, context) = (self.directory.join("debian"), self.directory.join("builder"));
        for left_over in [&root, &context] {
            if left_over.exists() {
                std::fs::remove_dir_all(left_over).expect("what an earlier run left can be removed");
            }
        }
        std::fs::create_dir_all(&context).expect("the target directory can be written");
        let (release, mirror) = debian();
        run(Command::new("debootstrap")
            .args(["--variant=minbase", "--include=gcc,libc6-dev", &release])
            .arg(&root)
            .arg(mirror));
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(context.join("debian.tar")).arg("."));
        std::fs::remove_dir_all(&root).expect("what was made here can be removed");
        let dockerfile = "FROM scratch\nADD debian.tar /\n\
            ENV PATH=/opt/rust/bin:/usr/bin:/bin CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true\n\
            ENV CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16\n";
        std::fs::write(context.join("Dockerfile"), dockerfile).expect("the target directory can be written");
        run(self
            .buildah(&["bud", "--isolation", "chroot", "--format", "docker", "-t", "outrigger-builder"])
            .arg(&context));
        std::fs::remove_dir_all(&context).expect("what was made here can be removed");
    }

    fn build_image(&self, commit: &str) {
        let toolchain = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
        let toolchain = String::from_utf8(toolchain.stdout).expect("a path in UTF-8");
        let home = std::env::var("CARGO_HOME")
            .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").expect("cargo has a home")));
        run(self
            .buildah(&[
                "bud",
                "--isolation",
                "chroot",
                "--format",
                "docker",
                "--pull=never",
                "-t",
                "outrigger",
            ])
            .args(["--volume", &format!("{}:/opt/rust:ro", toolchain.trim())])
            .args(["--volume", &format!("{home}/registry:/opt/cargo/registry:ro")])
            .args(["--build-arg", "BUILDER=localhost/outrigger-builder"])
            .args(["--build-arg", &format!("COMMIT={commit}")])
            .arg(env!("CARGO_MANIFEST_DIR")));
    }

    fn container(&self) -> Container<'_> {
        let output = self.buildah(&["from", "--pull=never", "outrigger"]).output().expect("buildah runs");
        let name = String::from_utf8(output.stdout).expect("a name").trim().to_string();
        assert!(!name.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Container { workshop: self, name }
    }
}

/// A container of the image; removed when dropped.
struct Container<'a> {
    workshop: &'a Workshop,
    name: String,
}

impl Container<'_> {
    /// The image's binary with these arguments, in the container.
    fn run(&self, environment: &[String], arguments: &[&str]) -> Command {
        let mut command = self.workshop.buildah(&["run", "--isolation", "chroot"]);
        for variable in environment {
            command.args(["--env", variable]);
        }
        command.args([&self.name, "--", BINARY]).args(arguments);
        command
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let removed = self.workshop.buildah(&["rm", &self.name]).output();
        if !removed.is_ok_and(succeeded) {
            eprintln!("the container {} stays behind", self.name);
        }
    }
}

/// A sidecar that was started; killed when dropped.
struct Started(Child);

impl Started {
    /// The process id of the sidecar itself, somewhere below buildah's.
    fn process(&self) -> u32 {
        let mut left = vec![self.0.id()];
        while let Some(process) = left.pop() {
            let read = |file: String| std::fs::read_to_string(file).unwrap_or_default();
            if read(format!("/proc/{process}/comm")).trim() == "outrigger" {
                return process;
            }
            for task in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
                let children = read(task.path().join("children").to_string_lossy().into_owned());
                left.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
        }
        panic!("no outrigger runs below buildah");
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.0.kill().expect("it runs");
            self.0.wait().expect("it was killed");
        }
    }
}

/// Every file in the container's root.
fn files(container: &Container) -> Vec<String> {
    fn walk(directory: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).expect("root reads everything") {
            let path = entry.expect("root reads everything").path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).expect("it is inside").to_string_lossy().into_owned());
            }
        }
    }
    let mounted = container.workshop.buildah(&["mount", &container.name]).output().expect("buildah runs");
    let root = PathBuf::from(String::from_utf8(mounted.stdout).expect("a path").trim());
    let mut found = BTreeSet::new();
    walk(&root, &root, &mut found);
    run(&mut container.workshop.buildah(&["umount", &container.name]));
    found.into_iter().collect()
}

/// The release of Debian that this machine has, and where its packages come from.
fn debian() -> (String, String) {
    let os = std::fs::read_to_string("/etc/os-release").expect("the system has a name");
    let release = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("and a release");
    let sources = Command::new("apt-get")
        .args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"])
        .output()
        .expect("apt-get runs: this test needs Debian or a child of it");
    let sources = String::from_utf8(sources.stdout).expect("addresses");
    let mirror = sources.lines().find_map(|line| line.strip_prefix(release)?.strip_prefix(' '));
    (release.to_string(), mirror.expect("apt-get knows where the release comes from").to_string())
}

/// Answers every request with 200.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&stream).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty()
                        && (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err()
                    {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// Addresses that were free a moment ago.
fn free_addresses() -> [SocketAddr; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has free ports"));
    listeners.map(|listener| listener.local_addr().expect("it is bound"))
}

/// The status line of the answer, if one came.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a duration above zero");
    let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().next().map(str::to_string)
}

/// Asks every 50 ms, for 30 s at most.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "30 s passed before {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a command to its end; shows what it printed if it fails.
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| {
        panic!("{:?}: {error}; `tests/run` installs it", command.get_program());
    });
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&said));
}

fn succeeded(output: Output) -> bool {
    output.status.success()
}
