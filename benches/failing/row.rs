//! The rows: what fails in each, and what is required of it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Phases;
use crate::load;
use crate::measured::Measured;
use crate::replica::{Fault, Replica};
use crate::sidecar::{Proxy, Sidecar};

/// The replica that fails where not all do.
const FAILING: usize = 0;
const REPLICAS: usize = 3;
/// Requests for their schedule, and the replicas for their service times, draw the same in every run.
const SEED: u64 = 600;
/// How often `/upstreams` is read.
const SAMPLE: Duration = Duration::from_millis(500);

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// One replica becomes a second slower.
    Slow,
    /// One answers 500 at once, and its health check stays green.
    Errors,
    /// Every replica answers one in five with 503.
    Brownout,
    /// All refuse, and come back.
    Refusing,
    /// One accepts and never answers, its health check too.
    Hanging,
    /// One resets every answer in mid-body, and the answers are small enough to be checked before they go out.
    Resetting,
    /// The same with answers that are too large for that: only ejection helps.
    ResettingLarge,
}

/// One thing that was measured, beside what is required.
pub(crate) struct Figure {
    /// What it is.
    pub(crate) what: &'static str,
    /// What is required.
    pub(crate) required: String,
    /// What was measured.
    pub(crate) measured: String,
    /// Whether that is enough.
    pub(crate) passes: bool,
}

/// What a row came to.
pub(crate) struct Report {
    /// The row.
    pub(crate) row: Row,
    /// Its figures.
    pub(crate) figures: Vec<Figure>,
    /// What else a reader wants to know, for which nothing is required.
    pub(crate) notes: Vec<(&'static str, String)>,
    /// All by the second.
    timeline: Vec<Value>,
}

impl Row {
    /// All, in the order of the table.
    pub(crate) const ALL: [Row; 7] = [
        Row::Slow,
        Row::Errors,
        Row::Brownout,
        Row::Refusing,
        Row::Hanging,
        Row::Resetting,
        Row::ResettingLarge,
    ];

    /// What `--row` calls it.
    pub(crate) fn name(self) -> &'static str {
        self.words().0
    }

    /// What fails.
    pub(crate) fn title(self) -> &'static str {
        self.words().1
    }

    #[rustfmt::skip]
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Row::Slow           => ("slow", "one replica is 1 s slower"),
            Row::Errors         => ("errors", "one replica answers 500 at once, its health check stays green"),
            Row::Brownout       => ("brownout", "every replica answers 503 to 20 %"),
            Row::Refusing       => ("refusing", "all refuse, then come back"),
            Row::Hanging        => ("hanging", "one accepts and never answers, health check too"),
            Row::Resetting      => ("resetting", "one resets every response in mid-body (8 KiB: can be retried)"),
            Row::ResettingLarge => ("resetting_large", "one resets every response in mid-body (64 KiB: cannot)"),
        }
    }

    /// The row of that name.
    pub(crate) fn named(name: &str) -> Result<Row, String> {
        Row::ALL
            .into_iter()
            .find(|row| row.name() == name)
            .ok_or_else(|| format!("no row {name:?}; there are {}", Row::ALL.map(Row::name).join(", ")))
    }

    fn fault(self) -> Fault {
        match self {
            Row::Slow => Fault::Slow,
            Row::Errors => Fault::Errors,
            Row::Brownout => Fault::Brownout,
            Row::Refusing => Fault::Refusing,
            Row::Hanging => Fault::Hanging,
            Row::Resetting | Row::ResettingLarge => Fault::Resetting,
        }
    }

    fn all_fail(self) -> bool {
        matches!(self, Row::Brownout | Row::Refusing)
    }

    /// What clients ask for; its last part is the size of the answer.
    fn path(self) -> &'static str {
        match self {
            Row::Resetting => "/items/8192",
            Row::ResettingLarge => "/items/65536",
            _ => "/items/1024",
        }
    }

    /// Runs it against `proxy`, and judges it.
    pub(crate) fn run(self, phases: &Phases, proxy: &Proxy) -> io::Result<Report> {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("failing").join(self.name());
        fs::create_dir_all(&directory)?;
        let measured = self.measure(phases, proxy, &directory)?;
        let report = self.judge(phases, &measured);
        fs::write(directory.join("timeline.json"), format!("{:#}", report.to_json()))?;
        Ok(report)
    }

    fn measure(self, phases: &Phases, proxy: &Proxy, directory: &Path) -> io::Result<Measured> {
        let replicas: Vec<_> =
            (0..REPLICAS as u64).map(|n| Replica::start(SEED + n)).collect::<Result<_, _>>()?;
        let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
        let sidecar = Sidecar::start(proxy, &addresses, directory)?;
        let failing = if self.all_fail() { &replicas[..] } else { &replicas[FAILING..=FAILING] };
        let behave = |fault| failing.iter().try_for_each(|replica| replica.behave(fault));

        let end = phases.warm_up + phases.fault + phases.watch;
        let schedule = load::schedule(end, SEED);
        let start = Instant::now() + Duration::from_millis(100);
        let (samples, fault) = thread::scope(|scope| {
            let load = scope.spawn(|| load::drive(&schedule, start, sidecar.listener, self.path()));
            let watching = scope.spawn(|| watch(&sidecar, start, end, directory));
            let at = |due: Duration, fault| {
                thread::sleep((start + due).saturating_duration_since(Instant::now()));
                let begin = start.elapsed();
                behave(fault).map(|()| begin)
            };
            let begin = at(phases.warm_up, self.fault())?;
            let over = at(phases.warm_up + phases.fault, Fault::Healthy)?;
            watching.join().expect("it does not panic")?;
            io::Result::Ok((load.join().expect("it does not panic"), begin..over))
        })?;
        let ejections = sidecar.ejections()?;
        fs::write(directory.join("metrics.txt"), sidecar.admin("/metrics")?)?;
        let since_start = |at: &Instant| at.saturating_duration_since(start);
        let arrivals = replicas.iter().map(|replica| replica.arrivals().iter().map(since_start).collect());
        Ok(Measured { samples, arrivals: arrivals.collect(), fault, end, ejections })
    }

    fn judge(self, phases: &Phases, measured: &Measured) -> Report {
        let fault = measured.fault.clone();
        let all = fault.start..measured.end;
        let after = |pause: u64| fault.start + Duration::from_millis(pause)..measured.end;
        let behind = |pause: u64| fault.end + Duration::from_millis(pause)..measured.end;
        let during = |pause: u64| fault.start + Duration::from_millis(pause)..fault.end;
        // From the very start: also what was under way when it began to fail.
        let no_errors = || at_most("errors", measured.within(&(Duration::ZERO..measured.end)).errors(), 0);
        let settles = |limit| within("p99 back under 50 ms after", measured.settles(&during(0)), limit);
        let figures = match self {
            Row::Slow => vec![
                settles(Duration::from_millis(500)),
                at_most("bad seconds", measured.bad_seconds(&all), 1),
                no_errors(),
                share("requests to it after 2 s", measured.share(FAILING, &during(2000)), 0.005),
                within(
                    "a fifth of the requests again after",
                    measured.back_in_service(FAILING),
                    Duration::from_secs(10),
                ),
            ],
            Row::Errors => vec![
                no_errors(),
                share("requests to it", measured.share(FAILING, &during(0)), 0.01),
                times("load", measured.load(&during(0)), 1.02),
            ],
            Row::Brownout => vec![
                share("errors", measured.within(&during(0)).error_ratio(), 0.004),
                times("load", measured.load(&during(0)), if phases.is_quick { 1.28 } else { 1.26 }),
                at_most("ejections", measured.ejections.iter().map(|(_, _, times)| *times as usize).sum(), 1),
                at_most("bad seconds from 1 s after its end", measured.bad_seconds(&behind(1000)), 0),
            ],
            Row::Refusing => {
                let outage = measured.within(&during(0));
                let back = measured.within(&behind(0)).first_success().map(|at| at - fault.end);
                vec![
                    below("failures at p99", outage.p99_of_errors(), Duration::from_millis(3)),
                    within("first success after the return", back, Duration::from_millis(100)),
                    share("errors from 0.5 s after it", measured.within(&behind(500)).error_ratio(), 0.01),
                ]
            }
            Row::Hanging => vec![no_errors(), settles(Duration::from_secs(1))],
            Row::Resetting | Row::ResettingLarge => {
                vec![share(
                    "errors from the second second on",
                    measured.within(&after(1000)).error_ratio(),
                    0.01,
                )]
            }
        };
        let timeline = self.timeline(measured);
        Report { row: self, figures, notes: self.notes(measured), timeline }
    }

    fn notes(self, measured: &Measured) -> Vec<(&'static str, String)> {
        let fault = &measured.fault;
        let all = fault.start..measured.end;
        // Without what was under way when it began to fail.
        let healthy = fault.start / 2..fault.start.saturating_sub(Duration::from_millis(250));
        let before = measured.within(&healthy);
        let overall = measured.within(&all);
        let worst = measured.worst_second(&all).map(|second| {
            let slice = measured.within(&second);
            let after = (second.start - fault.start).as_secs();
            let (errors, requests) = (slice.errors(), slice.samples.len());
            format!("{after} s after the start: p99 {}, {errors} errors of {requests}", millis(slice.p99()))
        });
        let reasons = overall.reasons().into_iter().map(|(reason, times)| format!("{times} {reason}"));
        let shares = (0..REPLICAS).map(|replica| percent(measured.share(replica, fault)));
        let ejections = measured.ejections.iter();
        let ejections = ejections.map(|(endpoint, reason, times)| format!("{endpoint} {times} x {reason}"));
        let back = measured.back_in_service(FAILING).map_or("never".into(), seconds);

        let mut notes = vec![
            ("before", format!("p50 {}, p99 {}", millis(before.p50()), millis(before.p99()))),
            ("worst second", worst.unwrap_or_default()),
            ("bad seconds", measured.bad_seconds(&all).to_string()),
            ("errors", format!("{} (of {} requests)", listed(reasons), overall.samples.len())),
            ("shares in fault", shares.collect::<Vec<_>>().join(" / ")),
            ("load in fault", format!("{:.3} x", measured.load(fault))),
        ];
        if !self.all_fail() {
            notes.push(("back with a fifth", back));
        }
        notes.push(("ejections", listed(ejections)));
        notes.push((
            "sent late",
            format!("p99 {}", millis(measured.within(&(Duration::ZERO..measured.end)).late())),
        ));
        notes
    }

    fn timeline(self, measured: &Measured) -> Vec<Value> {
        let whole = Duration::ZERO..measured.end;
        let seconds = measured.seconds(&whole).map(|second| {
            let slice = measured.within(&second);
            json!({
                "second": second.start.as_secs_f64() - measured.fault.start.as_secs_f64(),
                "requests": slice.samples.len(),
                "errors": slice.reasons(),
                "p50_ms": slice.p50().as_secs_f64() * 1e3,
                "p99_ms": slice.p99().as_secs_f64() * 1e3,
                "late_p99_ms": slice.late().as_secs_f64() * 1e3,
                "attempts": (0..REPLICAS).map(|replica| measured.asked(replica, &second)).collect::<Vec<_>>(),
            })
        });
        seconds.collect()
    }
}

impl Report {
    /// Whether any figure is not what is required.
    pub(crate) fn misses(&self) -> bool {
        self.figures.iter().any(|figure| !figure.passes)
    }

    /// All of it, with the timeline.
    pub(crate) fn to_json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            json!({
                "what": figure.what,
                "required": figure.required,
                "measured": figure.measured,
                "passes": figure.passes,
            })
        });
        json!({
            "row": self.row.name(),
            "title": self.row.title(),
            "passes": !self.misses(),
            "figures": figures.collect::<Vec<_>>(),
            "notes": self.notes.iter().map(|(what, text)| ((*what).to_owned(), json!(text))).collect::<serde_json::Map<_, _>>(),
            "timeline": self.timeline,
        })
    }
}

/// Keeps `/upstreams` over time, a line each; a peer has none.
fn watch(sidecar: &Sidecar, start: Instant, end: Duration, directory: &Path) -> io::Result<()> {
    let mut file = fs::File::create(directory.join("upstreams.jsonl"))?;
    while start.elapsed() < end {
        let page = sidecar.admin("/upstreams")?;
        if page.is_empty() {
            return Ok(());
        }
        let at = start.elapsed().as_secs_f64();
        let page: Value = serde_json::from_str(&page).map_err(io::Error::other)?;
        writeln!(file, "{}", json!({ "at": at, "upstreams": page }))?;
        thread::sleep(SAMPLE);
    }
    Ok(())
}

fn at_most(what: &'static str, measured: usize, limit: usize) -> Figure {
    let required = if limit == 0 { "none".into() } else { format!("at most {limit}") };
    Figure { what, required, measured: measured.to_string(), passes: measured <= limit }
}

fn share(what: &'static str, measured: f64, limit: f64) -> Figure {
    Figure {
        what,
        required: format!("at most {}", percent(limit)),
        measured: percent(measured),
        passes: measured <= limit,
    }
}

fn times(what: &'static str, measured: f64, limit: f64) -> Figure {
    Figure {
        what,
        required: format!("at most {limit:.2} x"),
        measured: format!("{measured:.3} x"),
        passes: measured <= limit,
    }
}

fn within(what: &'static str, measured: Option<Duration>, limit: Duration) -> Figure {
    let text = measured.map_or("not at all".into(), seconds);
    Figure {
        what,
        required: format!("within {}", seconds(limit)),
        measured: text,
        passes: measured.is_some_and(|after| after <= limit),
    }
}

fn below(what: &'static str, measured: Duration, limit: Duration) -> Figure {
    Figure {
        what,
        required: format!("under {}", millis(limit)),
        measured: millis(measured),
        passes: measured < limit,
    }
}

/// All of them in one line.
fn listed(words: impl Iterator<Item = String>) -> String {
    let words: Vec<_> = words.collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

fn percent(ratio: f64) -> String {
    format!("{:.2} %", ratio * 100.0)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
