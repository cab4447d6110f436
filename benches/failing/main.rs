//! What failing replicas cost the users of a service behind Outrigger, and how soon it is over: a table of rows,
//! each a way to fail, with what was measured beside what is required.
//!
//! ```text
//! cargo bench --bench failing -- [--quick] [--check] [--json] [--row NAME]... [--fault SECONDS]
//!                                [--spread NUMBER] [--outrigger FILE | --peer NAME]
//! ```
//!
//! **Failing replicas** (`--row fails` for all, `fails`). Three replicas of fixed capacity (`replica`) serve about 5 ms a request, behind the real binary with one
//! configuration for all rows (`sidecar`), under open-loop load of 600 requests a second (`load`). After a warm-up
//! one of them, or all, fail for twelve seconds and are well again; both times are judged (`row`), by what clients
//! saw and by what reached the replicas (`measured`).
//!
//! **Too much load** (`--row overload` for all, `overload`). One replica of 800 requests a second (`server`) behind
//! one configuration in which no number depends on that, under load that it cannot serve; its clients give up after
//! 250 ms, and tell nobody beforehand. Judged is how much of the capacity still serves somebody, how soon the rest
//! is refused, what is worked on in vain, and how soon all is over.
//!
//! `--check` ends with 1 where a row misses twice: machines that others use have bad moments, so a row that misses is
//! run once more, and only that run is told. `--quick` is for CI: six seconds of failure and eight to watch what
//! comes after it. One figure is loosened for it: load in the brownout, since the retry budget's window of ten
//! seconds still holds what the warm-up saved. `--outrigger` takes another binary than the one of this build;
//! `--peer` puts `haproxy`, `nginx` or `envoy` before the replicas, with the same timeouts and all they have against
//! failure (`peers`). Each run leaves configuration, output, `/metrics`, `/upstreams` over time and a timeline in
//! `target/tmp/failing/ROW/`.
//!
//! Everything here shares the cores with the sidecar. How late the load was sent, because the machine had other
//! things to do, stands under each row as `sent late`: it is part of every latency, and where it comes near the
//! required figures the machine was too busy for this bench.

mod fails;
mod goodput;
mod load;
mod measured;
mod overload;
mod replica;
mod report;
mod row;
mod server;
mod sidecar;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use report::Report;
use row::Row;
use sidecar::Proxy;

/// How long each part of a row takes.
#[derive(Clone, Copy)]
pub(crate) struct Phases {
    /// All is well, and the sidecar learns what normal is.
    pub(crate) warm_up: Duration,
    /// Something fails.
    pub(crate) fault: Duration,
    /// All is well again, which takes the sidecar some time to find out.
    pub(crate) watch: Duration,
    /// The short run for CI.
    pub(crate) is_quick: bool,
    /// How far service times spread in the rows of overload: the standard deviation of their logarithm.
    pub(crate) spread: f64,
}

impl Phases {
    const FULL: Phases = Phases {
        warm_up: Duration::from_secs(3),
        fault: Duration::from_secs(12),
        watch: Duration::from_secs(12),
        is_quick: false,
        spread: 0.0,
    };
    const QUICK: Phases = Phases {
        warm_up: Duration::from_secs(2),
        fault: Duration::from_secs(6),
        watch: Duration::from_secs(8),
        is_quick: true,
        spread: 0.0,
    };
}

/// What the command line asks for.
struct Arguments {
    rows: Vec<Row>,
    phases: Phases,
    check: bool,
    json: bool,
    proxy: Proxy,
}

const USAGE: &str = "usage: cargo bench --bench failing -- [--quick] [--check] [--json] [--row NAME]... \
                     [--fault SECONDS] [--spread NUMBER] [--outrigger FILE | --peer NAME]";

fn arguments(words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut asked = Arguments {
        rows: Vec::new(),
        phases: Phases::FULL,
        check: false,
        json: false,
        proxy: Proxy::Outrigger(env!("CARGO_BIN_EXE_outrigger").into()),
    };
    let mut fault = None;
    let mut spread = 0.0;
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--bench" => {} // cargo says so to every bench
            "--quick" => asked.phases = Phases::QUICK,
            "--check" => asked.check = true,
            "--json" => asked.json = true,
            "--row" => asked.rows.extend(Row::named(&value()?)?),
            "--fault" => {
                let seconds = value()?.parse().map_err(|_| "--fault takes seconds, such as 12.5")?;
                let seconds = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
                fault = Some(seconds);
            }
            "--spread" => {
                spread = value()?.parse().map_err(|_| "--spread takes a number, such as 0.4")?;
            }
            "--outrigger" => asked.proxy = Proxy::Outrigger(value()?.into()),
            "--peer" => asked.proxy = Proxy::peer(&value()?)?,
            _ => return Err(format!("unknown argument {word}\n{USAGE}")),
        }
    }
    if asked.rows.is_empty() {
        asked.rows = Row::all();
    }
    asked.phases.fault = fault.unwrap_or(asked.phases.fault);
    asked.phases.spread = spread;
    Ok(asked)
}

fn main() -> ExitCode {
    let asked = match arguments(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let mut reports = Vec::new();
    let mut could_not_run = false;
    for row in &asked.rows {
        if !asked.json {
            eprintln!("{}: {}", row.name(), row.title());
        }
        let run = || row.run(&asked.phases, &asked.proxy);
        let again = |first: Report| if asked.check && first.misses() { run() } else { Ok(first) };
        match run().and_then(again) {
            Ok(report) => reports.push(report),
            Err(why) => {
                // The others are told all the same.
                eprintln!("{}: {why}", row.name());
                could_not_run = true;
            }
        }
    }
    if asked.json {
        let reports: Vec<_> = reports.iter().map(Report::to_json).collect();
        println!("{}", serde_json::json!({ "rows": reports }));
    } else {
        print!("{}", table::draw(&reports));
    }
    if could_not_run {
        return ExitCode::from(2);
    }
    let missed = reports.iter().any(Report::misses);
    ExitCode::from(u8::from(asked.check && missed))
}
