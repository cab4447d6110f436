//! What is not TOML: the parser's errors in the words of the file.
//!
//! The parser goes on after an error, but a bracket that is never closed makes it misread all that follows. So
//! only its first error is believed; what that spoils is painted over with blanks, which leaves every other place
//! where it was, and the rest is parsed again, until it is TOML.

use super::diagnostic::{Problem, Report};
use super::document::{Node, Place};

/// Errors beyond which the rest of a file is not looked at.
const MOST_ERRORS: usize = 20;

/// The tree of `text`, as far as it is TOML.
pub(super) fn document(text: &str, report: &mut Report) -> Node {
    let mut text = text.to_owned();
    let mut incomplete = Vec::new();
    for round in 0.. {
        let Some((place, message)) = first_error(&text) else { break };
        report.add(problem(&message, text.get(place.clone()).unwrap_or_default()).at_place(place.clone()));
        let spoilt = spoilt(&text, place.start, is_about_brackets(&message));
        incomplete.extend(spoilt.header);
        let progress = text.as_bytes()[spoilt.place.clone()].iter().any(|byte| !byte.is_ascii_whitespace());
        let all = if round < MOST_ERRORS && progress { spoilt.place } else { 0..text.len() };
        paint_over(&mut text, all);
    }
    // Whether something is missing in these tables, nobody knows.
    report.distrust(incomplete);
    let (table, _) = toml::de::DeTable::parse_recoverable(&text);
    let (root, too_large) = Node::of(table);
    for place in too_large {
        report.add(Problem::new("this number is too large", "no setting takes one like it").at_place(place));
    }
    root
}

fn first_error(text: &str) -> Option<(Place, String)> {
    let (_, errors) = toml::de::DeTable::parse_recoverable(text);
    let error = errors.iter().min_by_key(|error| error.span().map_or(0, |place| place.start))?;
    Some((error.span().unwrap_or(0..0), error.message().to_owned()))
}

/// Puts blanks over a part of `text`, but for its newlines.
fn paint_over(text: &mut String, place: Place) {
    let blank = |byte: u8| if byte == b'\n' { byte } else { b' ' };
    let bytes =
        text.bytes().enumerate().map(|(at, byte)| if place.contains(&at) { blank(byte) } else { byte });
    // `place` ends where lines end, so no character is cut in two.
    *text = String::from_utf8(bytes.collect()).unwrap_or_default();
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

/// What an error spoils.
struct Spoilt {
    /// The lines that cannot be read.
    place: Place,
    /// The header of their table.
    header: Option<Place>,
}

/// What an error at `at` spoils: its line; a table, if the line is its header; and if brackets are broken, all
/// from where they may have been opened to the next header.
fn spoilt(text: &str, at: usize, in_brackets: bool) -> Spoilt {
    let mut lines: Vec<Place> = Vec::new();
    for line in text.split_inclusive('\n') {
        let start = lines.last().map_or(0, |last| last.end);
        lines.push(start..start + line.len());
    }
    let is_header = |line: &Place| is_header(&text[line.clone()]);
    let Some(here) = lines.iter().position(|line| at < line.end).or(lines.len().checked_sub(1)) else {
        return Spoilt { place: 0..0, header: None };
    };
    // A list that stays open is found at the header behind it.
    let inside = if in_brackets && is_header(&lines[here]) && at == lines[here].start {
        here.saturating_sub(1)
    } else {
        here
    };
    let header = lines[..=inside].iter().rposition(is_header);
    let next_header =
        lines.iter().skip(inside + 1).find(|line| is_header(line)).map_or(text.len(), |line| line.start);
    // Where the statement begins that the error is in: brackets of the lines before it may still be open.
    let (mut start, mut depth) = (lines[inside].start, 0usize);
    for line in lines[..=inside].iter().skip(header.map_or(0, |header| header + 1)).filter(|_| in_brackets) {
        start = if depth == 0 { line.start } else { start };
        let count = |brackets: [char; 2]| text[line.clone()].matches(brackets).count();
        depth = (depth + count(['[', '{'])).saturating_sub(count([']', '}']));
    }
    let broken_header = header == Some(inside);
    let end = if in_brackets || broken_header { next_header } else { lines[inside].end };
    Spoilt { place: start..end.max(start), header: header.map(|header| lines[header].clone()) }
}

/// Whether a line looks like the header of a table.
fn is_header(line: &str) -> bool {
    let inner = line.trim_start();
    let inner = inner.strip_prefix("[[").or_else(|| inner.strip_prefix('['));
    inner.is_some_and(|inner| {
        inner.starts_with(|c: char| c.is_ascii_alphabetic() || c == '"') && !inner.contains(',')
    })
}
