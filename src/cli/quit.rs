//! `outrigger quit`: ends the running sidecar as SIGTERM does. For jobs, whose sidecar should go with them.

use std::process::ExitCode;
use std::time::Duration;

use super::client::Client;
use super::exit::{FAILED, UNUSABLE, fail};
use super::file::ConfigFile;

const PATIENCE: Duration = Duration::from_secs(5);

/// What `quit` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

/// Exits 0 once the sidecar has begun to leave.
pub(super) fn run(args: &Args) -> ExitCode {
    let client = match args.file.find().and_then(|file| Client::new(&file)) {
        Ok(client) => client,
        Err(error) => return fail(UNUSABLE, error),
    };
    match client.ask("POST", "/quit", PATIENCE) {
        Ok(answer) if answer.is_good() => ExitCode::SUCCESS,
        Ok(answer) => fail(FAILED, answer.line()),
        Err(error) => fail(FAILED, error),
    }
}
