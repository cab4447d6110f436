//! Reads settings from the tree, and finds all mistakes of a section in one go.
//!
//! serde stops at the first error. So an error here knows where it happened; the value there is reported, taken
//! out of the tree, and the section is read again, until it can be read. Each round takes something out, so it
//! ends. Rejected: checking the tree against the JSON Schema first; then two places would know the rules.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};

use super::diagnostic::{Problem, Report};
use super::document::{Node, Path, Step, Value};
use super::schema;

/// Reads the settings at `steps` below `root`, which stands at `base` in the file. `None` if it cannot be read
/// even without its mistakes.
pub(super) fn read<T: DeserializeOwned>(
    root: &mut Node,
    base: &Path,
    steps: &[Step],
    report: &mut Report,
) -> Option<T> {
    loop {
        let node = root.at_mut(steps)?;
        let mut fault = match T::deserialize(Reader(node)) {
            Ok(settings) => return Some(settings),
            Err(fault) => fault,
        };
        fault.path.reverse();
        fault.look_closer(node);
        let at = node.at_mut(&fault.path)?;
        if matches!(fault.kind, Kind::Type { .. }) && take_for_numbers(at) {
            continue;
        }
        let follows = match &fault.kind {
            Kind::Missing { key } => at.lost_like(key),
            // A list whose elements were taken out is not empty by its own fault, nor does a table lack what was.
            Kind::Other { .. } => {
                let mut inside =
                    at.all_elements().iter().chain(at.all_entries().iter().map(|(_, node)| node));
                inside.any(|node| node.removed)
            }
            _ => false,
        };
        if !follows {
            let path = base.join(steps).join(&fault.path);
            report.add(fault.kind.problem(&path, at));
        }
        at.removed = true;
        if fault.path.is_empty() || report.is_full() {
            return None;
        }
    }
}

/// Turns what was written as one `${NAME}` into the number or boolean that it looks like; whether any was.
fn take_for_numbers(node: &mut Node) -> bool {
    // Not `any`: all of them, not only the first.
    fn count<'a>(nodes: impl Iterator<Item = &'a mut Node>) -> bool {
        nodes.map(take_for_numbers).filter(|any| *any).count() > 0
    }
    match &mut node.value {
        Value::String(text) if node.reference => {
            let value = text
                .parse()
                .map(Value::Integer)
                .or_else(|_| text.parse().map(Value::Boolean))
                .or_else(|_| text.parse().map(Value::Float));
            if let Ok(value) = value {
                node.value = value;
                return true;
            }
            false
        }
        Value::List(elements) => count(elements.iter_mut()),
        Value::Table(entries) => count(entries.iter_mut().map(|(_, node)| node)),
        _ => false,
    }
}

/// A mistake that reading met.
#[derive(Debug)]
struct Fault {
    /// From the value that was read, innermost step first.
    path: Vec<Step>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    UnknownKey { known: &'static [&'static str] },
    UnknownWord { word: String, known: &'static [&'static str] },
    Missing { key: &'static str },
    Type { found: String, expected: String },
    Other { message: String },
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { path: Vec::new(), kind }
    }

    fn below(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    /// serde reads a table with a `kind` from a copy that has no places: finds the entry it meant, if only one
    /// can be.
    fn look_closer(&mut self, root: &Node) {
        let (node, _) = root.follow(&self.path);
        let quoted = match &self.kind {
            Kind::Type { found, .. } => found,
            Kind::Other { message } => message,
            _ => return,
        };
        let mut meant = node.entries().filter(|(_, node)| match &node.value {
            Value::String(text) => quoted.contains(&format!("{text:?}")),
            Value::Integer(number) => quoted.starts_with(&number.to_string()),
            _ => false,
        });
        if let (Some((key, _)), None) = (meant.next(), meant.next()) {
            let key = key.to_owned();
            self.path.push(Step::Key(key));
        }
    }
}

impl Kind {
    fn problem(self, path: &Path, at: &Node) -> Problem {
        let key = path.last_key().unwrap_or_default().to_owned();
        let problem = match self {
            Kind::UnknownKey { known } => {
                return Problem::unknown_key(path, at, known, schema::home(path).as_ref());
            }
            Kind::UnknownWord { word, known } => Problem::unknown_word(&word, known),
            Kind::Missing { key } => {
                let problem = Problem::new(format!("`{key}` is missing"), format!("add `{key} = …`"));
                return problem.at(path, at).about(schema::describe(&path.key(key)));
            }
            Kind::Type { found, expected } => {
                let cure = match (expected.as_str(), &at.value) {
                    ("a whole number" | "a number" | "true or false", Value::String(text))
                        if text.parse::<f64>().is_ok() || text == "true" || text == "false" =>
                    {
                        format!("leave the quotes out: {text}")
                    }
                    ("a string", Value::Integer(number)) => format!("put it in quotes: \"{number}\""),
                    (time, Value::Integer(number)) if time.starts_with("a length of time") => {
                        format!("give it a unit, in quotes: \"{number}s\" or \"{number}ms\"")
                    }
                    (size, Value::Integer(number)) if size.starts_with("a size") => {
                        format!("give it a unit, in quotes: \"{number}B\" or \"{number}KiB\"")
                    }
                    ("a table", _) => "write it as a table: { key = … }".to_owned(),
                    ("a list", Value::Table(_)) => "write it with two brackets: [[…]]".to_owned(),
                    ("a list", _) => "put it in brackets: [ … ]".to_owned(),
                    _ => format!("give {expected}"),
                };
                Problem::new(format!("`{key}` is {found}, but {expected} is needed"), cure)
            }
            Kind::Other { message } => Problem::of_text(&message),
        };
        problem.at(path, at).about(schema::describe(path))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Fault {}

/// What serde calls a type, in the words of the file.
fn expected(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "path string" => "a string".to_owned(),
        "a map" => "a table".to_owned(),
        _ if text.starts_with("struct ") || text.starts_with("internally tagged") => "a table".to_owned(),
        _ if text.starts_with("enum ") || text.starts_with("string") => "a string".to_owned(),
        _ => text,
    }
}

fn found(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(truth) => format!("`{truth}`"),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Float(number) => number.to_string(),
        Unexpected::Str(text) => format!("the string {text:?}"),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault::new(Kind::Other { message: message.to_string() })
    }
    fn invalid_type(unexpected: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Fault::new(Kind::Type { found: found(&unexpected), expected: expected(wanted) })
    }
    fn invalid_value(unexpected: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        let (found, expected) = (found(&unexpected), expected(wanted));
        Fault::new(Kind::Other { message: format!("{found} is out of range; give {expected}, 0 or more") })
    }
    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Fault::new(Kind::UnknownWord { word: word.to_owned(), known })
    }
    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Fault::new(Kind::UnknownKey { known }).below(Step::Key(key.to_owned()))
    }
    fn missing_field(key: &'static str) -> Self {
        Fault::new(Kind::Missing { key })
    }
}

/// A node, as serde reads it.
#[derive(Clone, Copy)]
struct Reader<'de>(&'de Node);

impl<'de> de::Deserializer<'de> for Reader<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(truth) => visitor.visit_bool(*truth),
            Value::Date => Err(de::Error::invalid_type(Unexpected::Other("a date"), &visitor)),
            Value::List(elements) => visitor.visit_seq(Elements(elements.iter().enumerate())),
            Value::Table(entries) => visitor.visit_map(Entries { rest: entries.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Elements<'de>(std::iter::Enumerate<std::slice::Iter<'de, Node>>);

impl<'de> de::SeqAccess<'de> for Elements<'de> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.0.find(|(_, node)| !node.removed) else { return Ok(None) };
        seed.deserialize(Reader(node)).map(Some).map_err(|fault| fault.below(Step::Index(index)))
    }
}

struct Entries<'de> {
    rest: std::slice::Iter<'de, (String, Node)>,
    value: Option<&'de (String, Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Fault;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some(entry) = self.rest.find(|(_, node)| !node.removed) else { return Ok(None) };
        self.value = Some(entry);
        let key: StrDeserializer<'_, Fault> = entry.0.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(Reader(node)).map_err(|fault| fault.below(Step::Key(key.clone())))
    }
}
