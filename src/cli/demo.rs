//! `outrigger demo`: what the sidecar is for, shown within half a minute and without a file or a server.
//!
//! Two identical sets of flaky upstreams get the same open-loop load; between one of them and its clients
//! stands a real Outrigger on real sockets. Separate sets, so that neither side's load disturbs the other's.
//! Upstreams, load and view share this one thread: they use little, and any hiccup hits both sides alike.

mod client;
mod latency;
mod load;
mod policies;
mod report;
mod score;
mod sidecar;
mod terminal;
mod timeline;
mod upstream;
mod view;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::units::Span;
use client::Client;
use load::{Arrival, InFlight, Schedule};
use report::Closing;
use score::Score;
use sidecar::Sidecar;
use terminal::Terminal;
use timeline::Timeline;
use upstream::Upstreams;
use view::{Frame, Side};

/// What each side is asked.
const REQUESTS_PER_SECOND: f64 = 200.0;
/// How long the clients of both sides wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests of one side that are under way at once: more than the load makes where all of them time out.
const MOST_IN_FLIGHT: usize = 300;
/// The same arrivals in every run.
const SEED: u64 = 42;
/// Between two screens.
const REDRAW: Duration = Duration::from_millis(200);

/// Runs flaky upstreams, the proxy and some load, and shows who suffers with and without it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long it runs, from 3s to 1h.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = length)]
    length: Span,
    /// Plain lines, also on a terminal.
    #[arg(long)]
    no_tui: bool,
}

/// A length of time in which the story can be told.
fn length(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    match (3..=3600).contains(&span.as_secs()) {
        true => Ok(span),
        false => Err("the demo runs from \"3s\" to \"1h\"".to_owned()),
    }
}

/// Runs the demo to its end, or to Ctrl-C; either is a success.
pub(super) fn run(args: &Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    match LocalSet::new().block_on(&runtime, demo(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => failed(&message),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("outrigger demo: {message}");
    ExitCode::FAILURE
}

/// One side of the comparison: its upstreams, and what its clients have seen.
struct Half {
    upstreams: Upstreams,
    score: Rc<RefCell<Score>>,
    in_flight: InFlight,
}

impl Half {
    async fn new(timeline: &Timeline) -> io::Result<Half> {
        Ok(Half {
            upstreams: Upstreams::start().await?,
            score: Rc::new(RefCell::new(Score::new(timeline))),
            in_flight: InFlight::default(),
        })
    }

    /// The load on this side, to its last result.
    fn load(
        &self,
        client: Client,
        start: Instant,
        timeline: &Rc<Timeline>,
    ) -> impl Future<Output = ()> + 'static {
        let (client, timeline, score) = (Rc::new(client), timeline.clone(), self.score.clone());
        let length = timeline.length();
        let schedule =
            Schedule::new(REQUESTS_PER_SECOND, SEED).take_while(move |Arrival { at, .. }| *at < length);
        let send = move |method| {
            let client = client.clone();
            async move { client.send(method).await }
        };
        let record = move |sample| score.borrow_mut().record(&sample, &timeline);
        load::drive(schedule, start, (self.in_flight.clone(), MOST_IN_FLIGHT), send, record)
    }
}

async fn demo(args: &Args) -> Result<(), String> {
    let no_ports = |error: io::Error| format!("no ports for the upstreams: {error}");
    let timeline = Rc::new(Timeline::over(*args.length));
    let without = Half::new(&timeline).await.map_err(no_ports)?;
    let with = Half::new(&timeline).await.map_err(no_ports)?;
    let sidecar = Sidecar::start(with.upstreams.addresses()).await?;
    let mut interrupted = Interrupts::listen().map_err(|error| format!("no signals: {error}"))?;

    print(&introduction(&sidecar, &timeline));
    let terminal = if args.no_tui { None } else { Terminal::take() };

    let start = Instant::now();
    let mut load = JoinSet::new();
    let straight = Client::new(&without.upstreams.addresses(), PATIENCE);
    load.spawn_local(without.load(straight, start, &timeline));
    load.spawn_local(with.load(Client::new(&[sidecar.listener], PATIENCE), start, &timeline));

    let ended = async { while load.join_next().await.is_some() {} };
    let is_interrupted = tokio::select! {
        () = ended => false,
        () = interrupted.next() => true,
        never = tell_story(&timeline, start, &without, &with) => match never {},
        () = watch(terminal.as_ref(), &sidecar, &timeline, start, &without, &with) => false,
    };
    drop(load);
    drop(terminal);

    if is_interrupted {
        print(&format!("\nInterrupted after {:.1} s.\n", start.elapsed().as_secs_f64()));
    }
    print(&format!("\n{}", summary(&sidecar, &timeline, &without, &with)));
    sidecar.stop().await;
    Ok(())
}

/// What stands above the view, and in the scroll-back afterwards.
fn introduction(sidecar: &Sidecar, timeline: &Timeline) -> String {
    format!(
        "Three replicas of a service, {REQUESTS_PER_SECOND} requests a second, {:.0} s of trouble: once\n\
         straight at them, once through Outrigger, which listens on http://{}\nwith this configuration:\n\n{}\n\
         Look for yourself meanwhile:\n  curl -i http://{}/payments/42\n  curl http://{}/metrics\n\n",
        timeline.length().as_secs_f64(),
        sidecar.listener,
        sidecar.config,
        sidecar.listener,
        sidecar.admin,
    )
}

/// The closing table.
fn summary(sidecar: &Sidecar, timeline: &Timeline, without: &Half, with: &Half) -> String {
    report::closing(&Closing {
        timeline,
        without: &without.score.borrow(),
        with: &with.score.borrow(),
        policies: &sidecar.policies(),
        unfinished: [without.in_flight.count(), with.in_flight.count()],
    })
}

/// Lets the replicas of both sides fail as the timeline has it. Never ends: the last phase lasts.
async fn tell_story(timeline: &Timeline, start: Instant, without: &Half, with: &Half) -> Infallible {
    for (index, phase) in timeline.phases().iter().enumerate() {
        sleep_until(start + timeline.begin(index)).await;
        without.upstreams.behave(&phase.faults);
        with.upstreams.behave(&phase.faults);
    }
    std::future::pending().await
}

/// Shows how it goes: on the terminal, or else in a line a second. Ends only where nobody reads the lines.
async fn watch(
    terminal: Option<&Terminal>,
    sidecar: &Sidecar,
    timeline: &Timeline,
    start: Instant,
    without: &Half,
    with: &Half,
) {
    if terminal.is_none() {
        print(&format!("{}\n", view::TICKER_HEAD));
    }
    let mut tick = interval(if terminal.is_some() { REDRAW } else { Duration::from_secs(1) });
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let policies = sidecar.policies();
        let (without_score, with_score) = (without.score.borrow(), with.score.borrow());
        let side = |half: &Half, score| Side {
            score,
            in_flight: half.in_flight.count(),
            backlogs: half.upstreams.backlogs(),
        };
        let frame = Frame {
            elapsed: start.elapsed(),
            timeline,
            without: side(without, &without_score),
            with: side(with, &with_score),
            policies: &policies,
            listener: sidecar.listener,
            admin: sidecar.admin,
            config: &sidecar.config,
        };
        match terminal {
            Some(terminal) => {
                let (width, height) = terminal.size();
                terminal.show(&view::screen(&frame, width, height));
            }
            None if !print(&format!("{}\n", view::ticker(&frame))) => return,
            None => {}
        }
    }
}

/// Writes to standard output; false if nobody reads it any more.
fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// What ends the demo before its time: Ctrl-C, or a polite kill.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn listen() -> io::Result<Interrupts> {
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_lies_between_a_glance_and_an_hour() {
        for text in ["3s", "30s", "1h"] {
            assert!(length(text).is_ok(), "{text}");
        }
        for text in ["2s", "999ms", "2h", "soon", "0s"] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}
