//! What a row came to, and the words in which figures are given.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

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
    /// What `--row` calls it.
    pub(crate) name: &'static str,
    /// What happens in it.
    pub(crate) title: &'static str,
    /// Its figures.
    pub(crate) figures: Vec<Figure>,
    /// What else a reader wants to know, for which nothing is required.
    pub(crate) notes: Vec<(&'static str, String)>,
    /// All by the second.
    pub(crate) timeline: Vec<Value>,
}

/// Where the run of that row leaves what it saw.
pub(crate) fn directory(name: &str) -> io::Result<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("failing").join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

impl Report {
    /// Whether any figure is not what is required.
    pub(crate) fn misses(&self) -> bool {
        self.figures.iter().any(|figure| !figure.passes)
    }

    /// Keeps all of it in `directory`.
    pub(crate) fn keep(&self, directory: &Path) -> io::Result<()> {
        fs::write(directory.join("timeline.json"), format!("{:#}", self.to_json()))
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
            "row": self.name,
            "title": self.title,
            "passes": !self.misses(),
            "figures": figures.collect::<Vec<_>>(),
            "notes": self.notes.iter().map(|(what, text)| ((*what).to_owned(), json!(text))).collect::<serde_json::Map<_, _>>(),
            "timeline": self.timeline,
        })
    }
}

/// A count.
pub(crate) fn at_most(what: &'static str, measured: usize, limit: usize) -> Figure {
    let required = if limit == 0 { "none".into() } else { format!("at most {limit}") };
    Figure { what, required, measured: measured.to_string(), passes: measured <= limit }
}

/// A share that must be small.
pub(crate) fn share(what: &'static str, measured: f64, limit: f64) -> Figure {
    Figure {
        what,
        required: format!("at most {}", percent(limit)),
        measured: percent(measured),
        passes: measured <= limit,
    }
}

/// A share that must be large.
pub(crate) fn at_least(what: &'static str, measured: f64, limit: f64) -> Figure {
    Figure {
        what,
        required: format!("at least {}", percent(limit)),
        measured: percent(measured),
        passes: measured >= limit,
    }
}

/// A multiple.
pub(crate) fn times(what: &'static str, measured: f64, limit: f64) -> Figure {
    Figure {
        what,
        required: format!("at most {limit:.2} x"),
        measured: format!("{measured:.3} x"),
        passes: measured <= limit,
    }
}

/// After how long something was so, if it ever was.
pub(crate) fn within(what: &'static str, measured: Option<Duration>, limit: Duration) -> Figure {
    let text = measured.map_or("not at all".into(), seconds);
    Figure {
        what,
        required: format!("within {}", seconds(limit)),
        measured: text,
        passes: measured.is_some_and(|after| after <= limit),
    }
}

/// A latency.
pub(crate) fn below(what: &'static str, measured: Duration, limit: Duration) -> Figure {
    Figure {
        what,
        required: format!("under {}", millis(limit)),
        measured: millis(measured),
        passes: measured < limit,
    }
}

/// All of them in one line.
pub(crate) fn listed(words: impl Iterator<Item = String>) -> String {
    let words: Vec<_> = words.collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

/// A share for a reader.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.2} %", ratio * 100.0)
}

/// A short time for a reader.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// A longer time for a reader.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
