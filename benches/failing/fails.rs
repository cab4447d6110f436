//! The rows of failing replicas: what fails in each, and what is required of it.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Phases;
use crate::load::{self, Load};
use crate::measured::Measured;
use crate::replica::{Fault, Replica};
use crate::report::{self, Report, at_most, below, listed, millis, percent, seconds, share, times, within};
use crate::sidecar::{Proxy, Sidecar, Trouble};

/// The replica that fails where not all do.
const FAILING: usize = 0;
const REPLICAS: usize = 3;
/// Requests a second.
const RATE: f64 = 600.0;
/// How long a client waits: well above what the sidecar allows itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the sidecar may let wait at once: its `request` timeout of 500 ms allows 300.
const CLIENTS: usize = 512;
/// A client's patience is known to the sidecar; all else are the defaults.
const SETTINGS: &str = "timeout = { connect = \"100ms\", attempt = \"100ms\", request = \"500ms\" }";
/// Requests for their schedule, and the replicas for their service times, draw the same in every run.
const SEED: u64 = 600;
/// How often `/upstreams` is read.
const SAMPLE: Duration = Duration::from_millis(500);

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fails {
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

impl Fails {
    /// All, in the order of the table.
    pub(crate) const ALL: [Fails; 7] = [
        Fails::Slow,
        Fails::Errors,
        Fails::Brownout,
        Fails::Refusing,
        Fails::Hanging,
        Fails::Resetting,
        Fails::ResettingLarge,
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
            Fails::Slow           => ("slow", "one replica is 1 s slower"),
            Fails::Errors         => ("errors", "one replica answers 500 at once, its health check stays green"),
            Fails::Brownout       => ("brownout", "every replica answers 503 to 20 %"),
            Fails::Refusing       => ("refusing", "all refuse, then come back"),
            Fails::Hanging        => ("hanging", "one accepts and never answers, health check too"),
            Fails::Resetting      => ("resetting", "one resets every response in mid-body (8 KiB: can be retried)"),
            Fails::ResettingLarge => ("resetting_large", "one resets every response in mid-body (64 KiB: cannot)"),
        }
    }

    fn fault(self) -> Fault {
        match self {
            Fails::Slow => Fault::Slow,
            Fails::Errors => Fault::Errors,
            Fails::Brownout => Fault::Brownout,
            Fails::Refusing => Fault::Refusing,
            Fails::Hanging => Fault::Hanging,
            Fails::Resetting | Fails::ResettingLarge => Fault::Resetting,
        }
    }

    fn all_fail(self) -> bool {
        matches!(self, Fails::Brownout | Fails::Refusing)
    }

    /// How large the answers are.
    fn size(self) -> usize {
        match self {
            Fails::Resetting => 8192,
            Fails::ResettingLarge => 65536,
            _ => 1024,
        }
    }

    /// Runs it against `proxy`, and judges it.
    pub(crate) fn run(self, phases: &Phases, proxy: &Proxy) -> io::Result<Report> {
        let directory = report::directory(self.name())?;
        let measured = self.measure(phases, proxy, &directory)?;
        let report = self.judge(phases, &measured);
        report.keep(&directory)?;
        Ok(report)
    }

    fn measure(self, phases: &Phases, proxy: &Proxy, directory: &Path) -> io::Result<Measured> {
        let replicas: Vec<_> =
            (0..REPLICAS as u64).map(|n| Replica::start(SEED + n)).collect::<Result<_, _>>()?;
        let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
        let sidecar = Sidecar::start(proxy, &addresses, (Trouble::Fails, SETTINGS), directory)?;
        let failing = if self.all_fail() { &replicas[..] } else { &replicas[FAILING..=FAILING] };
        let behave = |fault| failing.iter().try_for_each(|replica| replica.behave(fault));

        let end = phases.warm_up + phases.fault + phases.watch;
        let load = Load {
            schedule: load::schedule(&[(end, RATE)], SEED),
            size: self.size(),
            critical: 0.0,
            patience: PATIENCE,
            tries: 1,
            clients: CLIENTS,
        };
        let start = Instant::now() + Duration::from_millis(100);
        let (samples, fault) = thread::scope(|scope| {
            let load = scope.spawn(|| load::drive(&load, start, sidecar.listener));
            let watching = scope.spawn(|| sidecar.watch(SAMPLE, start, end, directory));
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
            Fails::Slow => vec![
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
            Fails::Errors => vec![
                no_errors(),
                share("requests to it", measured.share(FAILING, &during(0)), 0.01),
                times("load", measured.load(&during(0)), 1.02),
            ],
            Fails::Brownout => vec![
                share("errors", measured.within(&during(0)).error_ratio(), 0.004),
                times("load", measured.load(&during(0)), if phases.is_quick { 1.28 } else { 1.26 }),
                at_most("ejections", measured.ejections.iter().map(|(_, _, times)| *times as usize).sum(), 1),
                at_most("bad seconds from 1 s after its end", measured.bad_seconds(&behind(1000)), 0),
            ],
            Fails::Refusing => {
                let outage = measured.within(&during(0));
                let back = measured.within(&behind(0)).first_success().map(|at| at - fault.end);
                vec![
                    below("failures at p99", outage.p99_of_errors(), Duration::from_millis(3)),
                    within("first success after the return", back, Duration::from_millis(100)),
                    share("errors from 0.5 s after it", measured.within(&behind(500)).error_ratio(), 0.01),
                ]
            }
            Fails::Hanging => vec![no_errors(), settles(Duration::from_secs(1))],
            Fails::Resetting | Fails::ResettingLarge => {
                vec![share(
                    "errors from the second second on",
                    measured.within(&after(1000)).error_ratio(),
                    0.01,
                )]
            }
        };
        let timeline = self.timeline(measured);
        Report { name: self.name(), title: self.title(), figures, notes: self.notes(measured), timeline }
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
