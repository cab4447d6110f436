//! Real components that Python's packages bring: servers that say where they listen, clients that run to their end.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::soon;

/// The Python of the tests' own tools, which has `module`; `tests/run` installs it.
fn python(module: &str) -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/bin/python");
    let imports = Command::new(&python).args(["-c", &format!("import {module}")]).status();
    assert!(
        imports.is_ok_and(|status| status.success()),
        "Python's {module} is missing: run `tests/run`, which installs it into target/test-tools"
    );
    python
}

/// A script that runs until it is dropped.
pub struct Script {
    child: Child,
    /// The first line that it printed: where it listens.
    pub said: String,
}

impl Script {
    /// Starts `code`, which needs `module`, and waits for its first line.
    pub async fn start(module: &str, code: &str) -> Self {
        Self::start_with(module, code, &[]).await
    }

    /// The same with arguments.
    pub async fn start_with(module: &str, code: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(python(module));
        let mut child =
            command.args(["-c", code]).args(arguments).stdout(Stdio::piped()).spawn().expect("python starts");
        let output = child.stdout.take().expect("it is piped");
        let first = tokio::task::spawn_blocking(move || {
            let mut output = BufReader::new(output);
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            // What else it says is read, or it would stand still one day.
            std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
            line
        });
        let said = soon("the script says where it listens", first).await.expect("no panic").trim().to_owned();
        Self { child, said }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `code`, which needs `module`, to its end; panics with what it said unless that is a good one.
pub async fn run(module: &str, code: &str) -> String {
    run_with(module, code, &[]).await
}

/// The same with arguments.
pub async fn run_with(module: &str, code: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(python(module));
    command.args(["-c", code]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let output = output.expect("python starts");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{}: {said}", output.status);
    said
}
