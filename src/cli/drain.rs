//! `outrigger drain`: takes the running sidecar out of rotation. With `--wait` a hook that returns when the last
//! request from outside is done.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Answer, Client};
use super::exit::{FAILED, UNUSABLE, fail};
use super::file::ConfigFile;
use crate::runtime::DRAINED;

const PATIENCE: Duration = Duration::from_secs(5);
/// How often `--wait` asks.
const PERIOD: Duration = Duration::from_millis(200);

/// What `drain` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Wait until its ingress listeners have ended and their requests are done, or it is gone; at most
    /// server.drain_timeout
    #[arg(long)]
    wait: bool,
}

/// Exits 0 once it drains, with `--wait` once it has drained; 1 if that takes longer than `drain_timeout`.
pub(super) fn run(args: &Args) -> ExitCode {
    let client = match args.file.find().and_then(|file| Client::new(&file)) {
        Ok(client) => client,
        Err(error) => return fail(UNUSABLE, error),
    };
    let asked = match client.ask("POST", "/drain", PATIENCE) {
        Ok(answer) if answer.is_good() => Ok(()),
        Ok(answer) => Err(answer.line()),
        Err(error) => Err(error),
    };
    match asked.and_then(|()| if args.wait { wait(&client) } else { Ok(()) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, error),
    }
}

/// Whether `not ready: REASON; REASON` names that reason.
fn has_drained(answer: &Answer) -> bool {
    let reasons = answer.body.trim().split_once(": ").map_or("", |(_, reasons)| reasons);
    reasons.split("; ").any(|reason| reason == DRAINED)
}

/// Waits until the sidecar says that it has drained, or is gone.
fn wait(client: &Client) -> Result<(), String> {
    let deadline = Instant::now() + client.drain_timeout;
    loop {
        let state = client.ask("GET", "/readyz", PATIENCE);
        if client.is_gone() || state.as_ref().is_ok_and(has_drained) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let last = state.map_or_else(|error| error, |answer| answer.line());
            return Err(format!("still not drained after server.drain_timeout: {last}"));
        }
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drained_is_a_reason_of_its_own() {
        let cases = [
            ("ready\n", false),
            ("not ready: draining: 3 requests in flight\n", false),
            ("not ready: drained\n", true),
            ("not ready: drained; upstream app: breaker open\n", true),
            ("not ready: upstream drained: breaker open\n", false),
        ];
        for (body, drained) in cases {
            assert_eq!(has_drained(&Answer { status: 503, body: body.to_owned() }), drained, "{body}");
        }
    }
}
