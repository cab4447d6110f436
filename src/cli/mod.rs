//! The command line: one file for each subcommand.
//!
//! Exit codes: 0 fine, 2 bad usage or configuration, 1 anything else. An error is one line on stderr that says
//! what to do, where one line can say it.

mod check;
mod client;
pub mod demo;
mod drain;
mod exit;
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

/// A resilience sidecar: timeouts, retries, circuit breaking and limits in front of services that fail.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version = runtime::VERSION, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy until SIGTERM or SIGINT; SIGHUP or a changed file reloads
    Run(run::Args),
    Check(check::Args),
    Explain(explain::Args),
    Schema(schema::Args),
    /// Runs flaky upstreams, the proxy and some load, and shows who suffers with and without it
    Demo(demo::Args),
    /// Asks the running sidecar whether it is ready; exits with 0 if it is
    Probe(probe::Args),
    /// Makes the running sidecar read its configuration again
    Reload(reload::Args),
    /// Takes the running sidecar out of rotation; it serves on
    Drain(drain::Args),
    /// Ends the running sidecar as SIGTERM does: it drains, then exits
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
