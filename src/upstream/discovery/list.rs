//! The file that lists endpoints: TOML, or JSON where it begins with a brace.
//!
//! Read whole or not at all: one bad entry, and the list before it stays (`known`). The message says where it is.

use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::upstream::endpoint;

/// The largest file that is read, in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// What stands in a file of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    endpoints: Vec<endpoint::Settings>,
}

/// Reads the file at `path`. It waits for the file system: never on a worker.
pub(super) fn read(path: &Path) -> Result<Vec<endpoint::Settings>, String> {
    let shown = path.display();
    // A pipe would keep whoever opens it waiting for its other end.
    if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(format!("{shown} is not a regular file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_string(&mut text))
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err(format!("{shown} is larger than 1 MiB"));
    }
    parse(&text).map_err(|why| format!("{shown}:{why}"))
}

/// What `text` lists; or `LINE:COLUMN: what is wrong`.
fn parse(text: &str) -> Result<Vec<endpoint::Settings>, String> {
    if text.trim_start().starts_with('{') {
        let list = serde_json::from_str::<List>(text);
        return list.map(|list| list.endpoints).map_err(|error| {
            let text = error.to_string();
            // The place stands in front.
            let message = text.split(" at line ").next().unwrap_or_default();
            format!("{}:{}: {message}", error.line(), error.column())
        });
    }
    parse_toml(text).map_err(|(at, message)| {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|letter| *letter != '\n').count() + 1;
        format!("{line}:{column}: {}", message.lines().next().unwrap_or_default())
    })
}

/// The same of TOML; or the byte at which something is wrong, and what. Each entry is read for itself, so that a
/// mistake is told with its own place and not with that of the list.
fn parse_toml(text: &str) -> Result<Vec<endpoint::Settings>, (usize, String)> {
    let wrong = |error: toml::de::Error, at: usize| {
        (error.span().map_or(at, |place| place.start), error.message().to_owned())
    };
    let mut list = None;
    for (key, value) in DeTable::parse(text).map_err(|error| wrong(error, 0))?.into_inner() {
        if key.get_ref() != "endpoints" {
            return Err((
                key.span().start,
                format!("unknown key `{}`; the only one here is `endpoints`", key.get_ref()),
            ));
        }
        list = Some(value);
    }
    let list = list.ok_or_else(|| (0, "`endpoints` is missing".to_owned()))?;
    let at = list.span().start;
    let DeValue::Array(entries) = list.into_inner() else {
        return Err((at, "`endpoints` is no list; put it in brackets: [ … ]".to_owned()));
    };
    let entries = entries.into_iter().map(|entry| {
        let at = entry.span().start;
        endpoint::Settings::deserialize(ValueDeserializer::from(entry)).map_err(|error| wrong(error, at))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "endpoints = [\n  \"10.0.0.1:80\",\n  { address = \"app.internal:81\", weight = 3, priority = 1 },\n]\n";
        let json = r#" { "endpoints": [ "10.0.0.1:80", { "address": "app.internal:81", "weight": 3, "priority": 1 } ] }"#;
        let list = parse(toml).expect("TOML");
        assert_eq!(list, parse(json).expect("JSON"));
        let shown: Vec<_> = list.iter().map(|e| (e.address.to_string(), e.weight, e.priority)).collect();
        assert_eq!(shown, [("10.0.0.1:80".to_owned(), 1, 0), ("app.internal:81".to_owned(), 3, 1)]);
        assert_eq!(parse("endpoints = []"), Ok(Vec::new()), "an empty list is one");
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let cases = [
            // why                     the file                                                       what is said
            ("nothing in it", "", "1:1: `endpoints` is missing"),
            (
                "a port is missing",
                "endpoints = [\n  \"a:1\",\n  \"b\",\n]",
                "3:3: \"b\" is not an address: the port is missing",
            ),
            ("not TOML", "endpoints = [\"a:1\"", "1:19: "),
            ("an unknown key", "endpoint = []", "1:1: unknown key `endpoint`"),
            (
                "a weight of none",
                "endpoints = [{ address = \"a:1\", weight = 0 }]",
                "1:42: 0 is out of range",
            ),
            ("half of it", "{ \"endpoints\": [\n \"a:1\",", "2:7: EOF while parsing"),
            ("JSON's address is bad", "{ \"endpoints\": [\n \"a\" ] }", "2:6: \"a\" is not an address"),
        ];
        for (why, text, said) in cases {
            let error = parse(text).expect_err(why);
            assert!(error.starts_with(said), "{why}: {error}");
        }
    }
}
