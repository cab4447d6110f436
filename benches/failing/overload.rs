//! The rows of too much load: what happens in each, and what is required of it.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Phases;
use crate::goodput::Run;
use crate::load::{self, Load, Sample};
use crate::measured::{GOOD, Slice};
use crate::report::{self, Figure, Report, at_least, at_most, below, listed, millis, percent, within};
use crate::server::{Plan, Server};
use crate::sidecar::{Proxy, Sidecar, Trouble};

/// The one configuration of these rows.
const SETTINGS: &str = "timeout = { connect = \"100ms\", request = \"300ms\" }";
/// What the row of hedges adds.
const HEDGING: &str = "[upstream.app.hedge]\nmode = \"enforce\"";
/// What a replica can do.
const WORKERS: usize = 8;
const TAKES: Duration = Duration::from_millis(10);
const CAPACITY: f64 = 800.0;
/// By how much it becomes slower where it does.
const SLOWER: u32 = 8;
/// How long a stall is.
const STALL: Duration = Duration::from_secs(3);
/// How long a client waits, and where the row is about stalls.
const PATIENCE: Duration = Duration::from_millis(250);
const LONG_PATIENCE: Duration = Duration::from_millis(500);
/// How often clients that retry send a request.
const TRIES: u32 = 4;
/// Requests for their schedule, and the replicas for their service times, draw the same in every run.
const SEED: u64 = 800;
/// How often `/upstreams` is read.
const SAMPLE: Duration = Duration::from_millis(100);
/// A short run's figures need it as well as a long one's.
const SECOND: Duration = Duration::from_secs(1);

/// A way to ask too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overload {
    /// Twice the capacity comes at once, and goes.
    Wave,
    /// The replica stands still for three seconds.
    Stall,
    /// Twice the capacity, a fifth of it critical.
    Priorities,
    /// The replica becomes eight times slower, and then as fast as before.
    Slowdown,
    /// Three replicas are slow now and then, with hedging.
    Tail,
    /// Twice the capacity from clients that retry, and then less than the capacity.
    Storm,
}

/// When what happens.
struct Times {
    /// From when to when there is trouble.
    trouble: Range<Duration>,
    /// When the last request is due.
    end: Duration,
}

impl Overload {
    /// All, in the order of the table.
    pub(crate) const ALL: [Overload; 6] = [
        Overload::Wave,
        Overload::Stall,
        Overload::Priorities,
        Overload::Slowdown,
        Overload::Tail,
        Overload::Storm,
    ];

    /// What `--row` calls it.
    pub(crate) fn name(self) -> &'static str {
        self.words().0
    }

    /// What happens.
    pub(crate) fn title(self) -> &'static str {
        self.words().1
    }

    #[rustfmt::skip]
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Overload::Wave       => ("wave", "400/s, then 1,600/s, then 400/s; one replica of 800/s"),
            Overload::Stall      => ("stall", "the replica stands still for 3 s at 640/s; clients wait 500 ms"),
            Overload::Priorities => ("priorities", "1,600/s for a replica of 800/s, 20 % of them critical"),
            Overload::Slowdown   => ("slowdown", "work takes 80 ms instead of 10 (800/s become 100/s), at 400/s"),
            Overload::Tail       => ("tail", "three replicas, 2 % of requests 300 ms slower, 600/s, hedging on"),
            Overload::Storm      => ("storm", "1,600/s from clients that retry three times, then 560/s"),
        }
    }

    fn times(self, phases: &Phases) -> Times {
        let lasts = match self {
            Overload::Stall => STALL,
            // Half a minute in a whole run; and long enough after it to see what sustains itself.
            Overload::Storm => phases.fault.mul_f64(2.5),
            _ => phases.fault,
        };
        let trouble = phases.warm_up..phases.warm_up + lasts;
        let watch = if self == Overload::Storm { 15 * SECOND } else { phases.watch };
        Times { end: trouble.end + watch, trouble }
    }

    fn load(self, times: &Times) -> Load {
        let before = times.trouble.start;
        let [trouble, end] = [times.trouble.end, times.end];
        let rates = match self {
            Overload::Wave | Overload::Priorities => vec![(before, 400.0), (trouble, 1600.0), (end, 400.0)],
            Overload::Stall => vec![(end, 640.0)],
            Overload::Slowdown => vec![(end, 400.0)],
            Overload::Tail => vec![(end, 600.0)],
            Overload::Storm => vec![(before, 400.0), (trouble, 1600.0), (end, 560.0)],
        };
        Load {
            schedule: load::schedule(&rates, SEED),
            size: 1024,
            critical: if self == Overload::Priorities { 0.2 } else { 0.0 },
            patience: if self == Overload::Stall { LONG_PATIENCE } else { PATIENCE },
            tries: if self == Overload::Storm { TRIES } else { 1 },
            // All that can wait at once, each to the end of its patience, and its tries.
            clients: if self == Overload::Storm { 2048 } else { 640 },
        }
    }

    fn plan(self, times: &Times, spread: f64) -> Plan {
        let mut plan = Plan {
            workers: WORKERS,
            takes: vec![(Duration::ZERO, TAKES)],
            spread,
            tail: (0, Duration::ZERO),
            stall: Duration::ZERO..Duration::ZERO,
        };
        match self {
            Overload::Stall => plan.stall = times.trouble.clone(),
            Overload::Slowdown => {
                plan.takes.extend([(times.trouble.start, TAKES * SLOWER), (times.trouble.end, TAKES)]);
            }
            Overload::Tail => plan.tail = (2, Duration::from_millis(300)),
            Overload::Wave | Overload::Priorities | Overload::Storm => {}
        }
        plan
    }

    /// Runs it against `proxy`, and judges it.
    pub(crate) fn run(self, phases: &Phases, proxy: &Proxy) -> io::Result<Report> {
        let directory = report::directory(self.name())?;
        let times = self.times(phases);
        let run = self.measure(phases, &times, proxy, &directory)?;
        let report = Report {
            name: self.name(),
            title: self.title(),
            figures: self.judge(&times, &run),
            notes: self.notes(&times, &run),
            timeline: timeline(&times, &run),
        };
        report.keep(&directory)?;
        Ok(report)
    }

    fn measure(self, phases: &Phases, times: &Times, proxy: &Proxy, directory: &Path) -> io::Result<Run> {
        let load = self.load(times);
        let plan = self.plan(times, phases.spread);
        let count = if self == Overload::Tail { 3 } else { 1 };
        let settings =
            if self == Overload::Tail { format!("{SETTINGS}\n{HEDGING}") } else { SETTINGS.into() };
        // Servers have to know it before the sidecar knows them.
        let start = Instant::now() + 2 * SECOND;
        let servers: Vec<_> =
            (0..count).map(|n| Server::start(plan.clone(), start, SEED + n)).collect::<Result<_, _>>()?;
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let sidecar = Sidecar::start(proxy, &addresses, (Trouble::Overload, &settings), directory)?;
        if Instant::now() >= start {
            return Err(io::Error::other("the sidecar took 2 s to start"));
        }
        let (samples, pages) = thread::scope(|scope| {
            let watching = scope.spawn(|| sidecar.watch(SAMPLE, start, times.end, directory));
            let samples = load::drive(&load, start, sidecar.listener);
            watching.join().expect("it does not panic").map(|pages| (samples, pages))
        })?;
        std::fs::write(directory.join("metrics.txt"), sidecar.admin("/metrics")?)?;
        let mut works: Vec<_> = servers.iter().flat_map(Server::works).collect();
        works.sort_by_key(|work| work.came);
        Ok(Run { samples, works, pages })
    }

    fn judge(self, times: &Times, run: &Run) -> Vec<Figure> {
        let trouble = &times.trouble;
        let during = run.within(trouble);
        let all = Duration::ZERO..times.end;
        let after = |pause: Duration| trouble.end + pause..times.end;
        let of_capacity = |span: &Range<Duration>, capacity: f64| run.goodput(span) / capacity;
        // Without what the beginning of the trouble met.
        let before = run.within(&(Duration::ZERO..trouble.start.saturating_sub(PATIENCE)));
        let no_errors_before = at_most("errors before it", before.errors(), 0);
        match self {
            Overload::Wave => vec![
                no_errors_before,
                at_least("goodput in it, of the capacity", of_capacity(trouble, CAPACITY), 0.97),
                below("served at p99", during.p99_of_served(), Duration::from_millis(130)),
                refused_within(&during, Duration::from_millis(5)),
                at_most("worked on in vain", run.wasted(&all), 0),
                within(
                    "no errors and p99 under 50 ms after",
                    run.settles(trouble.end, times.end, SECOND, |slice| {
                        slice.errors() == 0 && slice.p99() <= GOOD
                    }),
                    Duration::from_millis(500),
                ),
            ],
            Overload::Stall => vec![
                no_errors_before,
                at_most("worked on in vain", run.wasted(&all), 60),
                within(
                    "full goodput after",
                    run.settles(trouble.end, times.end, SECOND, |slice| slice.success_ratio() >= 0.99),
                    Duration::from_millis(300),
                ),
            ],
            Overload::Priorities => {
                let critical = critical(&during);
                let critical = Slice { samples: &critical };
                vec![
                    no_errors_before,
                    at_most("critical ones that failed", critical.errors(), 0),
                    below("critical ones at p99", critical.p99(), Duration::from_millis(60)),
                    at_least("goodput, of the capacity", of_capacity(trouble, CAPACITY), 0.99),
                ]
            }
            Overload::Slowdown => {
                let settled = trouble.start + 2 * SECOND..trouble.end;
                let goodput = of_capacity(&settled, CAPACITY / f64::from(SLOWER));
                vec![
                    no_errors_before,
                    at_least("goodput after 2 s, of what is left", goodput, 0.92),
                    at_most("errors from 1 s after its end", run.within(&after(SECOND)).errors(), 0),
                ]
            }
            Overload::Tail => vec![
                below("p99", during.p99(), Duration::from_millis(40)),
                report::times("load", run.load(trouble), 1.03),
            ],
            Overload::Storm => vec![
                no_errors_before,
                within(
                    "95 % goodput for good after",
                    run.settles(trouble.end, times.end, times.end, |slice| slice.success_ratio() >= 0.95),
                    10 * SECOND,
                ),
            ],
        }
    }

    fn notes(self, times: &Times, run: &Run) -> Vec<(&'static str, String)> {
        let trouble = &times.trouble;
        let all = Duration::ZERO..times.end;
        let before = run.within(&(trouble.start / 2..trouble.start.saturating_sub(PATIENCE)));
        let during = run.within(trouble);
        let after = run.within(&(trouble.end + SECOND..times.end));
        let reasons = |slice: &Slice<'_>| {
            let reasons = slice.reasons().into_iter().map(|(reason, times)| format!("{times} {reason}"));
            format!("{} (of {} requests)", listed(reasons), slice.samples.len())
        };
        let mut notes = vec![
            ("before", format!("p50 {}, p99 {}", millis(before.p50()), millis(before.p99()))),
            (
                "served in it",
                format!("{:.0}/s, p99 {}", run.goodput(trouble), millis(during.p99_of_served())),
            ),
            ("errors in it", reasons(&during)),
            ("from 1 s after it", reasons(&after)),
            ("in vain", format!("{} of {} works", run.wasted(&all), run.works.len())),
        ];
        if self == Overload::Priorities {
            let others: Vec<_> =
                during.samples.iter().filter(|sample| !sample.is_critical).cloned().collect();
            notes.push(("not critical", percent(Slice { samples: &others }.success_ratio())));
        }
        if self == Overload::Storm {
            notes.push(("tries in it", format!("{:.2} a request", during.tries())));
        }
        if self == Overload::Wave || self == Overload::Slowdown {
            let settled = trouble.start + 2 * SECOND..trouble.end;
            notes.push(("after 2 s", format!("{:.0}/s", run.goodput(&settled))));
        }
        if let Some((low, high)) = run.range(trouble, LIMIT) {
            notes.push(("limit in it", format!("{low} to {high}")));
        }
        notes.push((
            "sent late",
            format!("p99 {}, longest {}", millis(run.within(&all).late()), longest(run)),
        ));
        notes
    }
}

/// Where `/upstreams` says the limit.
const LIMIT: &str = "/app/concurrency/limit";

fn critical(slice: &Slice<'_>) -> Vec<Sample> {
    slice.samples.iter().filter(|sample| sample.is_critical).cloned().collect()
}

/// Where more comes than can be served, somebody has to be.
fn refused_within(slice: &Slice<'_>, limit: Duration) -> Figure {
    let p99 = slice.p99_of_refusals();
    Figure {
        what: "refused at p99 within",
        required: format!("under {}", millis(limit)),
        measured: p99.map_or("nobody was".into(), millis),
        passes: p99.is_some_and(|p99| p99 < limit),
    }
}

fn longest(run: &Run) -> String {
    let late = run.samples.iter().map(|sample| sample.late).max();
    millis(late.unwrap_or_default())
}

fn timeline(times: &Times, run: &Run) -> Vec<Value> {
    let count = u32::try_from(times.end.as_secs()).unwrap_or(u32::MAX);
    let seconds = (0..count).map(|n| {
        let second = SECOND * n..SECOND * (n + 1);
        let slice = run.within(&second);
        json!({
            "second": second.start.as_secs_f64() - times.trouble.start.as_secs_f64(),
            "requests": slice.samples.len(),
            "goodput": run.goodput(&second),
            "errors": slice.reasons(),
            "p50_ms": slice.p50().as_secs_f64() * 1e3,
            "p99_ms": slice.p99().as_secs_f64() * 1e3,
            "served_p99_ms": slice.p99_of_served().as_secs_f64() * 1e3,
            "refused_p99_ms": slice.p99_of_refusals().map(|p99| p99.as_secs_f64() * 1e3),
            "late_p99_ms": slice.late().as_secs_f64() * 1e3,
            "load": run.load(&second),
            "in_vain": run.wasted(&second),
            "limit": run.range(&second, LIMIT),
        })
    });
    seconds.collect()
}
