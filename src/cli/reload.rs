//! `outrigger reload`: makes the running sidecar read its configuration again, and says what came of it.

use std::process::ExitCode;
use std::time::Duration;

use super::client::Client;
use super::exit::{FAILED, UNUSABLE, fail};
use super::file::ConfigFile;

/// A reload reads a file and opens sockets; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `reload` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

/// Exits 0 if the new configuration is in force, 2 if the file is invalid, else 1.
pub(super) fn run(args: &Args) -> ExitCode {
    let client = match args.file.find().and_then(|file| Client::new(&file)) {
        Ok(client) => client,
        Err(error) => return fail(UNUSABLE, error),
    };
    match client.ask("POST", "/reload", PATIENCE) {
        Ok(answer) if answer.is_good() => {
            println!("{}", answer.body.trim_end());
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            // Problems of a file are drawn under its lines: they come as they are.
            let code = if client.file_is_valid { FAILED } else { UNUSABLE };
            fail(code, format_args!("not reloaded, the old configuration stays: {}", answer.body.trim_end()))
        }
        Err(error) => fail(FAILED, error),
    }
}
