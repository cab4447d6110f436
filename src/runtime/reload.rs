//! Another configuration while it runs.
//!
//! One reload after the other: the file is read and checked, everything that can fail is done aside (sockets that
//! open, the access log's file), and only then the snapshot is swapped and the workers told. Whatever goes
//! wrong, the old configuration stays as it was, and the reason is a log line, a metric and the answer.
//!
//! Requests in flight keep the snapshot that they began with. A listener whose address stayed keeps its socket
//! and loses nobody; one that is gone stops accepting, and its connections finish their requests and go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};

use super::certificates;
use super::discovery::{Discovery, Prepared};
use super::files;
use super::process::Process;
use super::sockets::{self, Open, Source};
use super::watch::Watch;
use crate::config::{self, Config, Loaded};
use crate::proxy::life::Stage;
use crate::proxy::snapshot::Snapshot;

/// Reloads that wait for their turn; whoever asks for more is told to come back.
const WAITING: usize = 16;

/// Who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// SIGHUP.
    Signal,
    /// The file has changed.
    File,
    /// `POST /reload`.
    Admin,
    /// Files of certificates have changed: they are read again, and nothing else is.
    Certificates,
}

impl Why {
    fn label(self) -> &'static str {
        match self {
            Why::Signal => "SIGHUP",
            Why::File => "the file has changed",
            Why::Admin => "admin API",
            Why::Certificates => "certificates have changed",
        }
    }
}

/// What came of it: a sentence either way.
type Outcome = Result<String, String>;

/// One wish for a reload.
struct Order {
    why: Why,
    answer: oneshot::Sender<Outcome>,
}

/// Where reloads are ordered.
#[derive(Clone)]
pub(super) struct Reloads(mpsc::Sender<Order>);

impl Reloads {
    /// Orders a reload, and gives what came of it.
    pub(super) async fn ask(&self, why: Why) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        self.0
            .try_send(Order { why, answer })
            .map_err(|_| "too many reloads are waiting; try again".to_owned())?;
        outcome.await.unwrap_or_else(|_| Err("the sidecar is ending".to_owned()))
    }

    /// Orders a reload whose outcome is in log and metric only.
    pub(super) fn order(&self, why: Why) {
        let (answer, _) = oneshot::channel();
        // Where so many wait already, one of them will see what this one would have seen.
        let _ = self.0.try_send(Order { why, answer });
    }
}

/// The other end of [`Reloads`].
pub(super) struct Orders(mpsc::Receiver<Order>);

/// A way to order reloads.
pub(super) fn channel() -> (Reloads, Orders) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Reloads(sender), Orders(receiver))
}

/// Does what is ordered, one after the other, for ever; `discovery` is told of each new snapshot.
pub(super) async fn obey(
    process: Arc<Process>,
    reloads: Reloads,
    mut orders: Orders,
    mut watching: Watching,
    discovery: Arc<Discovery>,
) {
    while let Some(order) = orders.0.recv().await {
        let outcome = match order.why {
            Why::Certificates => certificates::renew(&process, &discovery).await,
            why => {
                let outcome = reload(&process, why, &discovery).await;
                outcome.inspect(|_| discovery.snapshot_changed())
            }
        };
        if outcome.is_ok() {
            watching.follow(&process, &reloads);
            certificates::measure(&process.loaded.load().config, &process.shared.metrics);
        }
        // Nobody may be listening.
        let _ = order.answer.send(outcome);
    }
}

/// What is watched: the configuration's file, if there is one and it wants that, and the files of its certificates.
#[derive(Default)]
pub(super) struct Watching {
    file: Option<Watch>,
    certificates: Option<(Vec<PathBuf>, Watch)>,
}

impl Watching {
    /// Watches what the configuration in force wants watched.
    pub(super) fn follow(&mut self, process: &Process, reloads: &Reloads) {
        let config = &process.loaded.load().config;
        match (&process.file, config.server.watch) {
            (Some(file), true) if self.file.is_none() => {
                let reloads = reloads.clone();
                self.file = running(Watch::start(vec![file.clone()], move || reloads.order(Why::File)));
            }
            (Some(_), true) => {}
            _ => self.file = None,
        }
        let files = certificates::files(config);
        if self.certificates.as_ref().map_or(&[][..], |(watched, _)| watched) != files {
            self.certificates = None;
            if !files.is_empty() {
                // Those that changed between the reading and the watching are told of at its first look.
                let reloads = reloads.clone();
                let watch = Watch::start_unread(files.clone(), move || reloads.order(Why::Certificates));
                self.certificates = running(watch).map(|watch| (files, watch));
            }
        }
    }
}

/// The watch, if there is one.
fn running(watch: io::Result<Watch>) -> Option<Watch> {
    watch.inspect_err(|error| tracing::warn!(%error, "files are not watched; reload with SIGHUP")).ok()
}

/// One reload, with log line and metric.
async fn reload(process: &Process, why: Why, discovery: &Discovery) -> Outcome {
    let Some(file) = process.file.clone() else {
        return Err("this configuration comes from no file; there is nothing to read again".to_owned());
    };
    let loaded = match read(file).await {
        // What was ordered otherwise has come first.
        Ok(loaded) if why == Why::File && loaded.digest == process.loaded.load().digest => {
            return Ok(format!("nothing changed (digest {})", loaded.digest));
        }
        loaded => loaded,
    };
    let metrics = &process.shared.metrics;
    let prepared = match &loaded {
        Ok(loaded) => discovery.look_up_new(process, &loaded.config).await,
        Err(_) => Vec::new(),
    };
    let outcome = loaded.and_then(|loaded| {
        let digest = loaded.digest.clone();
        let changes = apply(process, loaded, prepared, discovery)
            .map_err(|line| Refused { text: line.clone(), line })?;
        Ok((digest, changes))
    });
    metrics.reloaded(outcome.is_ok());
    match outcome {
        Ok((digest, changes)) => {
            metrics.set_config(&digest, SystemTime::now());
            tracing::info!(why = why.label(), digest, "configuration reloaded{changes}");
            Ok(format!("reloaded{changes} (digest {digest})"))
        }
        Err(refused) => {
            tracing::error!(
                why = why.label(),
                "configuration not reloaded, the old one stays: {}",
                refused.line
            );
            Err(refused.text)
        }
    }
}

/// Why a configuration was not taken.
struct Refused {
    /// All of it, for the answer.
    text: String,
    /// In one line, for the log.
    line: String,
}

/// Reads and checks the file, on a thread that may wait for it.
async fn read(file: std::path::PathBuf) -> Result<Loaded, Refused> {
    let read = tokio::task::spawn_blocking(move || load(&file)).await;
    read.unwrap_or_else(|_| {
        let line = "reading the configuration panicked; this is a bug, please report it".to_owned();
        Err(Refused { text: line.clone(), line })
    })
}

fn load(file: &Path) -> Result<Loaded, Refused> {
    config::load(file).map_err(|problems| Refused { text: problems.to_string(), line: problems.one_line() })
}

/// Puts `loaded` in force, with what is known of its upstreams already, or changes nothing. Gives what happened to listeners, as words for a sentence.
fn apply(
    process: &Process,
    loaded: Loaded,
    prepared: Vec<Prepared>,
    discovery: &Discovery,
) -> Result<String, String> {
    if process.shared.life.stage() != Stage::Serving {
        return Err("the sidecar is draining; a new configuration would open again what is ending".to_owned());
    }
    let before = process.loaded.load_full();
    let config = &loaded.config;
    let fixed = needs_restart(&before.config, config);
    if !fixed.is_empty() {
        let verb = if fixed.len() == 1 { "needs" } else { "need" };
        return Err(format!("{} {verb} a restart; restart, or put the old value back", fixed.join(", ")));
    }

    // What can fail comes first, and is undone by being dropped.
    let mut open = process.open();
    let plan = sockets::plan(&open, &config.listener);
    let mut opened = Vec::new();
    for (settings, source) in config.listener.iter().zip(&plan.wanted) {
        let new = match source {
            Source::Kept(_) => continue,
            Source::Renamed(place) => open[*place].renamed(settings),
            Source::New => Open::new(settings),
        };
        let new = new.map_err(|error| error.to_string())?;
        let duplicates = process.workers.duplicates(&new).map_err(|error| error.to_string())?;
        opened.push((new, duplicates));
    }
    let telemetry = &config.telemetry;
    process
        .shared
        .access_log
        .reload(&telemetry.access_log, telemetry.log.format)
        .map_err(|error| format!("cannot write the access log {:?}: {error}", telemetry.access_log.path))?;

    // From here on nothing fails. Names must be known before anybody is accepted for them.
    discovery.stop();
    let old = process.shared.snapshot.load_full();
    let snapshot = Snapshot::build(&config.listener, &config.upstream, Some(&old), &process.shared.metrics);
    for (name, known) in prepared {
        if let Some(chain) = snapshot.chain(&name) {
            chain.upstream.take_over(known);
        }
    }
    for (_, gone) in old.chains().filter(|(name, _)| snapshot.chain(name).is_none()) {
        gone.upstream.leave();
    }
    process.shared.snapshot.store(Arc::new(snapshot));
    let changes = changes(&opened, plan.gone.len());
    let mut left: Vec<Option<Open>> = open.drain(..).map(Some).collect();
    let mut opened = opened.into_iter();
    for (settings, source) in config.listener.iter().zip(&plan.wanted) {
        let kept = match source {
            Source::Kept(place) => left[*place].take(),
            _ => None,
        };
        open.extend(kept.map(|kept| kept.updated(settings)).or_else(|| {
            let (new, duplicates) = opened.next()?;
            process.workers.open(&new, duplicates);
            Some(new)
        }));
    }
    for gone in left.into_iter().flatten() {
        process.workers.close(gone.id);
    }
    drop(open);

    if before.config.server.max_connections != config.server.max_connections {
        process.gate.set_max(files::connections(process.files_limit, config));
    }
    process.shared.buffered.set_max(config.server.max_buffer.bytes());
    process.log.set_level(telemetry.log.level);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    process.loaded.store(Arc::new(loaded));
    Ok(changes)
}

/// `; opened a (127.0.0.1:1), closed 2 listeners`, or nothing.
fn changes<T>(opened: &[(Open, T)], closed: usize) -> String {
    let mut words: Vec<String> =
        opened.iter().map(|(open, _)| format!("opened {} ({})", open.name, open.address)).collect();
    if closed > 0 {
        words.push(format!("closed {closed} listener{}", if closed == 1 { "" } else { "s" }));
    }
    if words.is_empty() { String::new() } else { format!("; {}", words.join(", ")) }
}

/// The keys that differ and cannot change while the process runs.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let (old, new) = (&before.admin, &after.admin);
    [
        ("server.workers", before.server.workers != after.server.workers),
        ("admin.address", old.address != new.address),
        ("admin.metrics_address", old.metrics_address != new.metrics_address),
        ("admin.token_file", old.token_file != new.token_file),
        ("admin.ready_requires", old.ready_requires != new.ready_requires),
        ("telemetry.log.format", before.telemetry.log.format != after.telemetry.log.format),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_need_a_restart_are_named_all_at_once() {
        let before = Config::default();
        let mut after = before.clone();
        after.server.drain_timeout = crate::units::Span::from_secs(1);
        after.server.max_connections = 7;
        assert!(needs_restart(&before, &after).is_empty(), "these change while it runs");

        after.server.workers = 3;
        after.admin.address.set_port(1);
        assert_eq!(needs_restart(&before, &after), ["server.workers", "admin.address"]);
    }
}
