//! What is not TOML: the parser's errors in the words of the file, and how far what it saved can be believed.
//!
//! The parser goes on after an error, so that one run shows several. But a bracket that is never closed makes it
//! misread what follows: such echoes are not reported, and neither are other problems in that part.

use super::diagnostic::{Problem, Report};
use super::document::{Node, Place};

/// The tree of `text`, as far as it is TOML.
pub(super) fn document(text: &str, report: &mut Report) -> Node {
    let (table, mut errors) = toml::de::DeTable::parse_recoverable(text);
    errors.sort_by_key(|error| error.span().map_or(0, |place| place.start));
    let line_of = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count();
    let mut distrusted = Vec::new();
    let mut last = None;
    for error in &errors {
        let place = error.span().unwrap_or(0..0);
        let line = line_of(place.start);
        let in_brackets = is_about_brackets(error.message());
        let echo = last.is_some_and(|last| line == last || in_brackets && line == last + 1);
        last = Some(line);
        if !echo {
            report.add(
                problem(error.message(), text.get(place.clone()).unwrap_or_default()).at_place(place.clone()),
            );
        }
        distrusted.extend(doubtful(text, place.start, in_brackets));
    }
    report.distrust(distrusted);
    let (root, too_large) = Node::of(table);
    for place in too_large {
        report.add(Problem::new("this number is too large", "no setting takes one like it").at_place(place));
    }
    root
}

/// Whether an error says that a list or a table in brackets is broken, so that all up to its end may be misread.
fn is_about_brackets(message: &str) -> bool {
    ["missing comma", "unclosed", "in array", "in inline table", "inline table element"]
        .iter()
        .any(|words| message.contains(words))
}

/// An error of the parser, with its cure. `text` is what it points at.
fn problem(message: &str, text: &str) -> Problem {
    let (what, expected) =
        message.split_once(", expected ").map_or((message, None), |(what, e)| (what, Some(e)));
    let cure = match what {
        "string values must be quoted" => format!("put it in quotes: \"{text}\""),
        "duplicate key" => {
            "a key stands once in its table, and a table once in the file; remove one".to_owned()
        }
        "missing comma between array elements" | "unclosed array" => {
            "close the list with `]`, or put a comma between its elements".to_owned()
        }
        "missing comma between key-value pairs" | "unclosed inline table" => {
            "close the table with `}`, or put a comma between its keys".to_owned()
        }
        "unclosed array table" => "close it with `]]`".to_owned(),
        "unclosed table" => "close it with `]`".to_owned(),
        "key with no value" => format!("give it a value: `{text} = …`"),
        "invalid unquoted key" => "a key without quotes has letters, digits, `_` and `-` only".to_owned(),
        "cannot recurse further; max recursion depth met" => "no setting is nested so deeply".to_owned(),
        _ => match expected {
            Some(expected) => format!("expected {expected}"),
            None => "check the quotes, brackets and commas of this line".to_owned(),
        },
    };
    let what = if what == "duplicate key" { format!("`{text}` stands here twice") } else { what.to_owned() };
    Problem::new(what, cure)
}

/// The parts of `text` that an error at `at` makes doubtful: its line, the header of its table (a key may seem
/// to be missing there), and if brackets are broken all up to the next header.
fn doubtful(text: &str, at: usize, in_brackets: bool) -> Vec<Place> {
    let mut lines = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        lines.push((start..start + line.len(), is_header(line)));
        start += line.len();
    }
    let Some(here) = lines.iter().position(|(place, _)| at < place.end).or(lines.len().checked_sub(1)) else {
        return Vec::new();
    };
    let header = lines[..=here].iter().rposition(|(_, header)| *header);
    let next_header = |from: usize| {
        lines.iter().skip(from + 1).find(|(_, header)| *header).map_or(text.len(), |(place, _)| place.start)
    };
    let mut places: Vec<Place> = header.iter().map(|header| lines[*header].0.clone()).collect();
    let here_place = lines[here].0.clone();
    if header == Some(here) {
        // Whose table it is, is unclear, and the next header may be taken for a part of it.
        let next = next_header(here);
        let behind = lines.iter().position(|(place, _)| place.start >= next).map_or(text.len(), next_header);
        places.push(here_place.start..behind);
    } else if in_brackets {
        places.push(here_place.start..next_header(here));
    } else {
        places.push(here_place);
    }
    places
}

/// Whether a line looks like the header of a table.
fn is_header(line: &str) -> bool {
    let inner = line.trim_start();
    let inner = inner.strip_prefix("[[").or_else(|| inner.strip_prefix('['));
    inner.is_some_and(|inner| {
        inner.starts_with(|c: char| c.is_ascii_alphabetic() || c == '"') && !inner.contains(',')
    })
}
