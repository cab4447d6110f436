//! What is wrong with a file, where, and how it is cured.
//!
//! A [`Diagnostic`] stands on its own: it can be drawn with the lines of the file (for people), printed in one
//! line (for the log), and serialized (for editors and CI).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

use super::document::{Node, Path, Place, Value, nearest};

/// Problems of one file beyond which the rest is not worth reading.
const MOST_PROBLEMS: usize = 100;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot run.
    Error,
    /// It can, but hardly as it was meant.
    Warning,
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was named.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<str>,
    /// The line, from 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// The column, in characters from 1; 0 if it is about the file as a whole.
    pub column: usize,
    /// The line on which it ends.
    pub end_line: usize,
    /// The column behind its end.
    pub end_column: usize,
    /// The key it is about, such as `upstream.payments.retry.backoff.max`; empty for syntax.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub cure: String,
    /// What the key means and what it defaults to, where that helps.
    pub about: Option<String>,
    /// Where it stands, in bytes.
    #[serde(skip)]
    pub span: Place,
    /// Another place that has to do with it, and what stands there.
    #[serde(skip)]
    related: Option<(Place, String)>,
    #[serde(skip)]
    text: Arc<str>,
}

/// All that is wrong with a file that cannot run; warnings too.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Diagnostic>);

/// A problem that is about to be reported.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    severity: Severity,
    message: String,
    cure: String,
    path: String,
    about: Option<String>,
    place: Place,
    related: Option<(Place, String)>,
}

/// Collects the problems of one file.
pub(super) struct Report {
    file: Arc<str>,
    text: Arc<str>,
    seen: BTreeSet<(usize, usize, String)>,
    list: Vec<Diagnostic>,
    distrusted: Vec<Place>,
}

impl Problem {
    /// An error without a place yet.
    pub(super) fn new(message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            cure: cure.into(),
            path: String::new(),
            about: None,
            place: 0..0,
            related: None,
        }
    }

    /// An error whose text names the cure after the first `; `.
    pub(super) fn of_text(text: &str) -> Self {
        let (message, cure) = text.split_once("; ").unwrap_or((text, ""));
        Self::new(message, cure)
    }

    /// A key that nobody knows at `path`: the nearest one that is known, or the table that has it (`home`).
    pub(super) fn unknown_key(path: &Path, node: &Node, known: &[&str], home: Option<&Path>) -> Self {
        let key = path.last_key().unwrap_or_default();
        // A table that its `kind` shapes has the key in another shape only.
        let home = home.filter(|home| path.0.split_last().is_none_or(|(_, table)| home.0 != table));
        let cure = match (nearest(key, known), home) {
            (_, Some(home)) if home.0.is_empty() => format!("`{key}` stands at the top of the file"),
            (_, Some(home)) => format!("`{key}` stands in `{home}`"),
            (Some(near), None) => format!("did you mean `{near}`?"),
            (None, None) => format!("the keys here are {}", list(known)),
        };
        Self::new(format!("unknown key `{key}`"), cure).at_key(path, node)
    }

    /// A word that does not stand to choice, and the nearest one that does.
    pub(super) fn unknown_word(word: &str, known: &[&str]) -> Self {
        let quoted: Vec<String> = known.iter().map(|word| format!("\"{word}\"")).collect();
        let cure = match nearest(word, known) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("give {}", or_list(&quoted)),
        };
        Self::new(format!("{word:?} is not one of {}", quoted.join(", ")), cure)
    }

    /// A warning, not an error.
    pub(super) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// It is about the value at `path`; a value from the environment is not shown.
    pub(super) fn at(mut self, path: &Path, node: &Node) -> Self {
        self.path = path.to_string();
        self.place = if matches!(node.value, Value::Table(_)) || node.place.is_empty() {
            node.key.clone()
        } else {
            node.place.clone()
        };
        if let (true, Value::String(text)) = (node.secret, &node.value)
            && !text.is_empty()
        {
            self.message = self.message.replace(&format!("{text:?}"), "\"***\"").replace(text, "***");
            self.cure = self.cure.replace(text, "***");
        }
        self
    }

    /// With what the key means.
    pub(super) fn about(mut self, about: Option<String>) -> Self {
        self.about = about;
        self
    }

    /// It stands at `place`, whatever key that is.
    pub(super) fn at_place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// It is about the key, not its value.
    pub(super) fn at_key(mut self, path: &Path, node: &Node) -> Self {
        self.path = path.to_string();
        self.place = node.key.clone();
        self
    }

    /// `node` has to do with it, and says `label`.
    pub(super) fn with(mut self, node: &Node, label: impl Into<String>) -> Self {
        let place = if matches!(node.value, Value::Table(_)) { &node.key } else { &node.place };
        self.related = Some((place.clone(), label.into()));
        self
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn or_list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

impl Report {
    /// An empty one, for `text`, which stands in `file`.
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self {
            file: file.into(),
            text: text.into(),
            seen: BTreeSet::new(),
            list: Vec::new(),
            distrusted: Vec::new(),
        }
    }

    /// Adds a problem, unless the same one was reported at the same place: layers show a mistake several times.
    pub(super) fn add(&mut self, problem: Problem) {
        let Place { start, end } = clamp(&problem.place, &self.text);
        let distrusted = |place: &Place| place.start <= start && start < place.end;
        if self.distrusted.iter().any(distrusted)
            || self.is_full()
            || !self.seen.insert((start, end, problem.message.clone()))
        {
            return;
        }
        let ((line, column), (end_line, end_column)) =
            (position(&self.text, start), position(&self.text, end));
        self.list.push(Diagnostic {
            severity: problem.severity,
            file: self.file.clone(),
            line,
            column,
            end_line,
            end_column,
            path: problem.path,
            message: problem.message,
            cure: problem.cure,
            about: problem.about,
            span: start..end,
            related: problem.related.map(|(place, label)| (clamp(&place, &self.text), label)),
            text: self.text.clone(),
        });
    }

    /// From now on, no problem in these parts of the file is taken: it may come from reading them wrongly.
    pub(super) fn distrust(&mut self, places: Vec<Place>) {
        self.distrusted = places;
    }

    /// Whether no more of them are taken: who looks for more may stop.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= MOST_PROBLEMS
    }

    /// Whether any of them is an error.
    pub(super) fn has_errors(&self) -> bool {
        self.list.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// All of them, in the order of the file.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.list.sort_by_key(|diagnostic| (diagnostic.span.start, diagnostic.severity));
        self.list
    }
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// `place`, cut to what lies in `text`, on the borders of characters.
fn clamp(place: &Place, text: &str) -> Place {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(place.start);
    start..floor(place.end).max(start)
}

/// Line and column of a byte, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

impl Diagnostic {
    /// A problem of a file that cannot even be read.
    pub(super) fn of_file(file: &str, message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            line: 0,
            column: 0,
            end_line: 0,
            end_column: 0,
            path: String::new(),
            message: message.into(),
            cure: cure.into(),
            about: None,
            span: 0..0,
            related: None,
            text: "".into(),
        }
    }

    /// Drawn with the lines of the file, a caret under the value, and the cure.
    pub fn render(&self, colour: bool) -> String {
        if self.line == 0 {
            return self.to_string();
        }
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut snippet = Snippet::source(&*self.text)
            .path(&*self.file)
            .annotation(AnnotationKind::Primary.span(self.span.clone()));
        if let Some((place, label)) = &self.related {
            snippet = snippet.annotation(AnnotationKind::Context.span(place.clone()).label(label.as_str()));
        }
        let mut group = level.primary_title(self.message.as_str()).element(snippet);
        if !self.path.is_empty() {
            group = group.element(Level::NOTE.with_name("key").message(self.path.as_str()));
        }
        if let Some(about) = &self.about {
            group = group.element(Level::NOTE.message(about.as_str()));
        }
        if !self.cure.is_empty() {
            group = group.element(Level::HELP.message(self.cure.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    /// In one line, such as `outrigger.toml:3:9: error: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {severity}: {}", self.message)?;
        if !self.path.is_empty() && !self.message.contains(&self.path) {
            write!(f, " ({})", self.path)?;
        }
        if !self.cure.is_empty() {
            write!(f, "; {}", self.cure)?;
        }
        Ok(())
    }
}

impl Problems {
    /// All of them in one line, for the log and for the admin API's answer.
    pub fn one_line(&self) -> String {
        self.0.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join(" | ")
    }

    /// All of them as a JSON array.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(&self.0).expect("strings and numbers serialize")
    }
}

impl fmt::Display for Problems {
    /// All of them, drawn without colour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, diagnostic) in self.0.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { "\n\n" })?;
            f.write_str(&diagnostic.render(false))?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
