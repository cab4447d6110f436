//! The log of events: what the `tracing` macros say, as lines on stderr, without ever waiting for stderr.
//!
//! Only what Outrigger itself says: libraries' events are for their authors. The level can be changed while it runs;
//! the format cannot. Not here: requests (`access_log`).

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::SystemTime;

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer as FormatWriter;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::cells::SharedCounter;
use super::spool::{Spool, Target, Writer};
use super::timestamp::Stamps;
use super::{Format, Level, LogSettings};

/// Keeps the log going. Dropped at the process's end, it lets what waits be written first, for at most a second.
#[derive(Debug)]
pub struct LogGuard {
    level: reload::Handle<Targets, Registry>,
    /// Ends with this guard.
    _writer: Writer,
    spool: Spool,
}

/// Starts the log of events for this process. Lines that are lost count in `dropped`.
///
/// Errs if no thread can be started. Where there is a log already (several proxies in one test), it stays, and the
/// guard keeps one that nobody writes to.
pub fn init(settings: &LogSettings, dropped: Arc<SharedCounter>) -> io::Result<LogGuard> {
    let format = settings.format.resolve(io::stderr().is_terminal());
    let tell = Box::new(move |lines| told(format, SystemTime::now(), lines));
    let (spool, writer) = Spool::start("log", Target::Stderr, dropped, tell)?;
    let (subscriber, level) = subscriber(settings.level, format, spool.clone());
    // A log that is there already stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(LogGuard { level, _writer: writer, spool })
}

/// What turns events into lines for `spool`, and the handle that changes their level.
fn subscriber(
    level: Level,
    format: Format,
    spool: Spool,
) -> (impl Subscriber + Send + Sync, reload::Handle<Targets, Registry>) {
    let (filter, handle) = reload::Layer::new(targets(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines(spool)).with_timer(Clock);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
        Format::Text | Format::Auto => lines.with_target(false).boxed(),
    };
    (Registry::default().with(filter).with(lines), handle)
}

impl LogGuard {
    /// Waits until what was said is written, but for at most a second: for the end of the process, where others may
    /// still hold this guard.
    pub fn flush(&self) {
        self.spool.flush();
    }

    /// From now on what is at least this grave is logged.
    pub fn set_level(&self, level: Level) {
        // It errs only when the log is gone, and then there is no level.
        let _ = self.level.reload(targets(level));
    }
}

/// Which events are logged: Outrigger's own, from `level` up.
fn targets(level: Level) -> Targets {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    Targets::new().with_target("outrigger", level)
}

/// The line that tells of lost ones, made by hand: an event from the writer of events could not get through either.
fn told(format: Format, at: SystemTime, lines: u64) -> Vec<u8> {
    let mut stamp = Vec::new();
    Stamps::default().write(&mut stamp, at);
    let stamp = String::from_utf8_lossy(&stamp);
    let line = match format {
        Format::Json => format!(
            "{{\"timestamp\":\"{stamp}\",\"level\":\"WARN\",\"message\":\"log dropped {lines} lines\",\"target\":\"{}\"}}\n",
            module_path!()
        ),
        Format::Text | Format::Auto => format!("{stamp}  WARN log dropped {lines} lines\n"),
    };
    line.into_bytes()
}

/// Takes finished lines from the formatter, one a call.
struct Lines(Spool);

/// One line's way to the spool.
struct Line<'a>(&'a Spool);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.append(line, 1);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time at the head of a line.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, out: &mut FormatWriter<'_>) -> fmt::Result {
        let mut stamp = Vec::new();
        Stamps::default().write(&mut stamp, SystemTime::now());
        out.write_str(&String::from_utf8_lossy(&stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// What `say` logs, at a level that it may change.
    fn logged(name: &str, format: Format, say: impl FnOnce(&dyn Fn(Level))) -> String {
        let path = std::env::temp_dir().join(format!("outrigger-log-{name}-{}", std::process::id()));
        let tell = Box::new(|_| Vec::new());
        let (spool, writer) =
            Spool::start("test", Target::File(path.clone()), Arc::default(), tell).expect("a thread");
        let (subscriber, level) = subscriber(Level::Info, format, spool.clone());
        let guard = LogGuard { level, _writer: writer, spool };
        tracing::subscriber::with_default(subscriber, || say(&|level| guard.set_level(level)));
        drop(guard);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        text
    }

    #[test]
    fn an_event_is_a_line_of_json() {
        let text = logged("json", Format::Json, |_| {
            tracing::warn!(upstream = "pay\"ments", failures = 5, "breaker opened\nat once");
        });
        let value: serde_json::Value =
            serde_json::from_str(text.trim_end_matches('\n')).expect("one line of JSON");
        assert_eq!(value["level"], "WARN");
        assert_eq!(value["message"], "breaker opened\nat once");
        assert_eq!((&value["upstream"], &value["failures"]), (&"pay\"ments".into(), &5.into()));
        assert_eq!(value["timestamp"].as_str().map(str::len), Some(24));
    }

    #[test]
    fn an_event_is_a_line_for_people() {
        let text = logged("text", Format::Text, |_| tracing::warn!(upstream = "app", "breaker opened"));
        assert_eq!(
            text.split_once("Z  ").map(|(_, line)| line),
            Some("WARN breaker opened upstream=\"app\"\n")
        );
    }

    #[test]
    fn the_level_changes_while_it_runs_and_libraries_stay_silent() {
        let text = logged("level", Format::Text, |set_level| {
            tracing::info!("one");
            tracing::debug!("two");
            tracing::error!(target: "h2", "three");
            set_level(Level::Debug);
            tracing::debug!("four");
            set_level(Level::Error);
            tracing::warn!("five");
            tracing::error!("six");
        });
        let said: Vec<_> = text.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(said, ["one", "four", "six"]);
    }

    #[test]
    fn lost_lines_are_told_of_in_the_logs_own_format() {
        let at = UNIX_EPOCH + Duration::from_millis(1_709_164_801_007);
        let json: serde_json::Value = serde_json::from_slice(&told(Format::Json, at, 7)).expect("JSON");
        assert_eq!((&json["level"], &json["message"]), (&"WARN".into(), &"log dropped 7 lines".into()));
        assert_eq!(told(Format::Text, at, 7), b"2024-02-29T00:00:01.007Z  WARN log dropped 7 lines\n");
    }
}
