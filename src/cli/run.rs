//! `outrigger run`: the proxy itself.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use super::exit::{FAILED, UNUSABLE, fail};
use super::file::ConfigFile;
use crate::config::{self, Problems};
use crate::runtime::{self, Owner, Running};

/// What `run` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

/// Runs until it has drained: 0. A configuration that cannot be used: 2. Anything else: 1.
pub(super) fn run(args: &Args) -> ExitCode {
    let file = match args.file.find() {
        Ok(file) => file,
        Err(error) => return fail(UNUSABLE, error),
    };
    let loaded = match config::load(&file) {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(&problems),
    };
    let running = match runtime::start(loaded, Some(file), Owner::Sidecar) {
        Ok(running) => running,
        Err(error) => return fail(FAILED, error),
    };
    // Signals are obeyed already: nothing that comes while names are looked up is lost.
    running.settle();
    // Whoever started it may have closed its output; that is no reason not to serve.
    let _ = writeln!(std::io::stdout().lock(), "{}", ready_line(&running));
    ExitCode::from(running.wait())
}

/// Says what is wrong with the file: in one line, or drawn under its lines.
fn refuse(problems: &Problems) -> ExitCode {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match problems.0.as_slice() {
        [problem] if problem.line == 0 => fail(UNUSABLE, problem),
        problems => {
            for problem in problems {
                eprintln!("{}\n", problem.render(colour));
            }
            fail(UNUSABLE, "this configuration cannot run; what is wrong stands above")
        }
    }
}

/// `outrigger 0.1.0 ready: listeners app=127.0.0.1:8080, b=127.0.0.1:8081; admin 127.0.0.1:9900`, with the real
/// ports where `:0` was asked, and `; metrics 0.0.0.0:9901` behind it where there is such an address. One line,
/// the first on stdout; scripts and tests read it.
fn ready_line(running: &Running) -> String {
    let listeners: Vec<String> =
        running.listeners().iter().map(|(name, address)| format!("{name}={address}")).collect();
    let mut line = format!(
        "outrigger {} ready: listeners {}; admin {}",
        env!("CARGO_PKG_VERSION"),
        listeners.join(", "),
        running.admin()
    );
    if let Some(address) = running.metrics_address() {
        line.push_str(&format!("; metrics {address}"));
    }
    line
}
