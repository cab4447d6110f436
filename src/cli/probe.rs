//! `outrigger probe`: is the running sidecar ready? The health check of an image without a shell.

use std::process::ExitCode;
use std::time::Duration;

use super::client::Client;
use super::exit::{FAILED, UNUSABLE, fail};
use super::file::ConfigFile;

/// Shorter than the usual timeout of health checks, so that the reason is still seen.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What `probe` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

/// Exits 0 if it is ready, else 1 with the reason.
pub(super) fn run(args: &Args) -> ExitCode {
    let client = match args.file.find().and_then(|file| Client::new(&file)) {
        Ok(client) => client,
        Err(error) => return fail(UNUSABLE, error),
    };
    match client.ask("GET", "/readyz", PATIENCE) {
        Ok(answer) if answer.is_good() => {
            println!("ready");
            ExitCode::SUCCESS
        }
        Ok(answer) => fail(FAILED, answer.line()),
        Err(error) => fail(FAILED, error),
    }
}
