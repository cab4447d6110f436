//! `outrigger schema`: what a configuration file may say, for editors.

use std::io::Write;
use std::process::ExitCode;

use crate::config;

/// Print the JSON Schema of the configuration, for editors
///
/// With the TOML plugin of an editor (taplo): write it to a file, and name that in the first line of a
/// configuration: `#:schema ./outrigger.schema.json`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Runs the subcommand.
pub(super) fn run(_: &Args) -> ExitCode {
    match writeln!(std::io::stdout(), "{:#}", config::schema()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // the reader has gone, and knows it
    }
}
