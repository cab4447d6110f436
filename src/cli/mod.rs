//! The command line: one file for each subcommand.
//!
//! Exit codes: 0 fine, 2 bad usage or configuration, 1 anything else. An error is one line on stderr that says
//! what to do, where one line can say it.

mod check;
mod client;
mod demo;
mod drain;
mod explain;
mod file;
mod probe;
mod quit;
mod reload;
mod run;
mod schema;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::runtime;

/// Bad usage or a bad configuration.
const UNUSABLE: u8 = 2;
/// Anything else that went wrong.
const FAILED: u8 = 1;

/// A resilience sidecar: timeouts, retries, circuit breaking and limits in front of services that fail.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version = runtime::VERSION, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT; SIGHUP or a changed file reloads
    Run(run::Args),
    Check(check::Args),
    Explain(explain::Args),
    Schema(schema::Args),
    /// Run flaky upstreams, the proxy and some load, and show who suffers with and without it
    Demo(demo::Args),
    /// Ask the running sidecar whether it is ready: exit 0 if it is
    Probe(probe::Args),
    /// Make the running sidecar read its configuration again
    Reload(reload::Args),
    /// Take the running sidecar out of rotation; it serves on
    Drain(drain::Args),
    /// End the running sidecar as SIGTERM does: it drains, then exits
    Quit(quit::Args),
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Quit(args) => quit::run(&args),
    }
}

/// Says in one line on stderr what went wrong, and gives the exit code for it.
fn fail(code: u8, message: impl std::fmt::Display) -> ExitCode {
    eprintln!("outrigger: {message}");
    ExitCode::from(code)
}
