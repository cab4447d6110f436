//! The file as a tree that remembers where everything stands.
//!
//! TOML's own tree keeps places too, but its numbers cannot be made (for a `${PORT}` where a number is wanted),
//! and layers, secrets and what a mistake took out must be known for each value. So this is a tree of our own;
//! serde reads settings from it (`config::read`), and messages find the place of a path in it.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The policies that an upstream has, and that `[defaults]` can set for all of them.
pub(super) const POLICIES: [&str; 13] = [
    "failure",
    "timeout",
    "retry",
    "hedge",
    "rate_limit",
    "shed",
    "breaker",
    "concurrency",
    "balance",
    "outlier",
    "health",
    "fallback",
    "fault",
];

/// Where in the file something stands, in bytes.
pub(super) type Place = Range<usize>;

/// A value and what is known about it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// What it says.
    pub(super) value: Value,
    /// Where it stands; of a table with a header, the header.
    pub(super) place: Place,
    /// Where its key stands; of a list's element, the element.
    pub(super) key: Place,
    /// The layer that wrote it.
    pub(super) layer: Layer,
    /// A part of it came from the environment: it is not shown.
    pub(super) secret: bool,
    /// It was written as one `${NAME}`, so it may also be a number or a boolean.
    pub(super) reference: bool,
    /// A mistake was found in it, and reported: nobody reads it any more.
    pub(super) removed: bool,
}

/// What a value says.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // TOML's own kinds
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// Nothing in a configuration is a date; kept for the message.
    Date,
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

/// The layer that a value comes from, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// `[defaults.POLICY]`.
    Defaults,
    /// `[upstream.NAME]`, or any other table that is nobody's layer.
    Written,
    /// `[[listener.route]]`.
    Route,
}

/// One step of a path into the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a table.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The way from the top of the document to a value; prints as `upstream.payments.retry.backoff.max`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Path(pub(super) Vec<Step>);

impl Node {
    /// The tree of a parsed file; second, the places of numbers that are too large for any setting.
    pub(super) fn of(table: Spanned<DeTable<'_>>) -> (Node, Vec<Place>) {
        let mut too_large = Vec::new();
        let place = table.span();
        let value = Value::of(DeValue::Table(table.into_inner()), &place, &mut too_large);
        (Node::new(value, 0..0, 0..0), too_large)
    }

    fn new(value: Value, place: Place, key: Place) -> Node {
        Node { value, place, key, layer: Layer::Written, secret: false, reference: false, removed: false }
    }

    /// An empty table at the place of `like`, for what is read although nobody wrote it.
    pub(super) fn empty(like: &Node) -> Node {
        Node::new(Value::Table(Vec::new()), like.place.clone(), like.key.clone())
    }

    /// The entries of a table that no mistake took out; none of anything else.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.all_entries().iter().filter(|(_, node)| !node.removed).map(|(key, node)| (key.as_str(), node))
    }

    /// The elements of a list that no mistake took out, with their number in the file.
    pub(super) fn elements(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.all_elements().iter().enumerate().filter(|(_, node)| !node.removed)
    }

    /// The entries of a table, also those that a mistake took out.
    pub(super) fn all_entries(&self) -> &[(String, Node)] {
        if let Value::Table(entries) = &self.value { entries } else { &[] }
    }

    /// The elements of a list, also those that a mistake took out.
    pub(super) fn all_elements(&self) -> &[Node] {
        if let Value::List(elements) = &self.value { elements } else { &[] }
    }

    /// What it says, if that is a string.
    pub(super) fn text(&self) -> Option<&str> {
        if let Value::String(text) = &self.value { Some(text) } else { None }
    }

    /// The entry `key` of a table.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().find(|(name, _)| *name == key).map(|(_, node)| node)
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.step_mut(&Step::Key(key.to_owned()))
    }

    /// Puts `node` into a table as `key`, in place of what stands there.
    pub(super) fn set(&mut self, key: &str, node: Node) {
        let Value::Table(entries) = &mut self.value else { return };
        match entries.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = node,
            None => entries.push((key.to_owned(), node)),
        }
    }

    /// Whether a mistake took `key` out of this table.
    pub(super) fn lost(&self, key: &str) -> bool {
        self.all_entries().iter().any(|(name, node)| name == key && node.removed)
    }

    /// Whether a mistake took `key`, or something that was meant to be `key`, out of this table.
    pub(super) fn lost_like(&self, key: &str) -> bool {
        self.all_entries().iter().any(|(name, node)| node.removed && nearest(name, &[key]).is_some())
    }

    /// Whether a mistake took anything out of it, however deep.
    pub(super) fn is_torn(&self) -> bool {
        self.removed
            || self.all_entries().iter().any(|(_, node)| node.is_torn())
            || self.all_elements().iter().any(Node::is_torn)
    }

    /// Follows one step; not into what was taken out.
    pub(super) fn step(&self, step: &Step) -> Option<&Node> {
        match (step, &self.value) {
            (Step::Key(key), Value::Table(_)) => self.get(key),
            (Step::Index(index), Value::List(list)) => list.get(*index).filter(|node| !node.removed),
            _ => None,
        }
    }

    /// The same, to change it.
    pub(super) fn step_mut(&mut self, step: &Step) -> Option<&mut Node> {
        let found = match (step, &mut self.value) {
            (Step::Key(key), Value::Table(entries)) => {
                entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node)
            }
            (Step::Index(index), Value::List(list)) => list.get_mut(*index),
            _ => None,
        };
        found.filter(|node| !node.removed)
    }

    /// Follows `steps`, as far as they go: the last node on the way, and whether it is the end of it.
    pub(super) fn follow(&self, steps: &[Step]) -> (&Node, bool) {
        match steps {
            [] => (self, true),
            [step, rest @ ..] => match self.step(step) {
                Some(node) => node.follow(rest),
                None => (self, false),
            },
        }
    }

    /// The node at `steps`, to change it.
    pub(super) fn at_mut(&mut self, steps: &[Step]) -> Option<&mut Node> {
        steps.iter().try_fold(self, |node, step| node.step_mut(step))
    }

    /// Sets the layer of it and of everything in it.
    pub(super) fn set_layer(&mut self, layer: Layer) {
        self.layer = layer;
        match &mut self.value {
            Value::Table(entries) => entries.iter_mut().for_each(|(_, node)| node.set_layer(layer)),
            Value::List(elements) => elements.iter_mut().for_each(|node| node.set_layer(layer)),
            _ => {}
        }
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::String(_) => "a string",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Boolean(_) => "a boolean",
            Value::Date => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// Calls `visit` with each path to a value that is neither a table nor a list of them, and the value.
    pub(super) fn leaves<'a>(&'a self, path: &mut Path, visit: &mut impl FnMut(&Path, &'a Node)) {
        match &self.value {
            Value::Table(_) => {
                for (key, node) in self.entries() {
                    path.0.push(Step::Key(key.to_owned()));
                    node.leaves(path, visit);
                    path.0.pop();
                }
            }
            Value::List(_) => {
                for (index, node) in self.elements() {
                    path.0.push(Step::Index(index));
                    node.leaves(path, visit);
                    path.0.pop();
                }
            }
            _ => visit(path, self),
        }
    }
}

impl Value {
    fn of(value: DeValue<'_>, place: &Place, too_large: &mut Vec<Place>) -> Value {
        match value {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Boolean(truth) => Value::Boolean(truth),
            DeValue::Datetime(_) => Value::Date,
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => {
                    too_large.push(place.clone());
                    Value::Integer(0)
                }
            },
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Array(array) => Value::List(
                array
                    .into_iter()
                    .map(|element| {
                        let place = element.span();
                        let value = Value::of(element.into_inner(), &place, too_large);
                        let removed = too_large.last() == Some(&place);
                        Node { removed, ..Node::new(value, place.clone(), place) }
                    })
                    .collect(),
            ),
            DeValue::Table(table) => {
                let mut entries: Vec<(String, Node)> = table
                    .into_iter()
                    .map(|(key, value)| {
                        let (key_place, place) = (key.span(), value.span());
                        let value = Value::of(value.into_inner(), &place, too_large);
                        let removed = too_large.last() == Some(&place);
                        (
                            key.into_inner().into_owned(),
                            Node { removed, ..Node::new(value, place, key_place) },
                        )
                    })
                    .collect();
                entries.sort_by_key(|(_, node)| node.key.start);
                Value::Table(entries)
            }
        }
    }
}

impl Path {
    /// The path of `text`, such as `upstream.payments.retry`, whose steps are all keys.
    pub(super) fn of(keys: &[&str]) -> Path {
        Path(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    /// This path and the keys in `keys`, which dots part.
    pub(super) fn below(&self, keys: &str) -> Path {
        let mut path = self.clone();
        path.0.extend(keys.split('.').map(|key| Step::Key(key.to_owned())));
        path
    }

    /// This path and one more key.
    pub(super) fn key(&self, key: &str) -> Path {
        let mut path = self.clone();
        path.0.push(Step::Key(key.to_owned()));
        path
    }

    /// This path and one more index.
    pub(super) fn index(&self, index: usize) -> Path {
        let mut path = self.clone();
        path.0.push(Step::Index(index));
        path
    }

    /// This path and all of `steps`.
    pub(super) fn join(&self, steps: &[Step]) -> Path {
        Path(self.0.iter().chain(steps).cloned().collect())
    }

    /// Parts the path of a policy's key into whose it is (`upstream.payments`, `defaults`, a route) and the rest
    /// (`retry.attempts`).
    pub(super) fn split_policy(&self) -> Option<(&[Step], &[Step])> {
        let is_policy = |step: &Step| matches!(step, Step::Key(key) if POLICIES.contains(&key.as_str()));
        // The name of an upstream may be that of a policy.
        let from = if self.0.first() == Some(&Step::Key("defaults".to_owned())) { 1 } else { 2 };
        let at = self.0.iter().skip(from).position(is_policy)? + from;
        Some(self.0.split_at(at))
    }

    /// The last key in it.
    pub(super) fn last_key(&self) -> Option<&str> {
        self.0.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |key: &str| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    f.write_str(if number == 0 { "" } else { "." })?;
                    if bare(key) { f.write_str(key)? } else { write!(f, "{key:?}")? }
                }
            }
        }
        Ok(())
    }
}

/// The known word that a mistyped one was meant to be, if it is near enough.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::damerau_levenshtein(&word, &known.to_lowercase());
    let near = known.iter().copied().min_by_key(|known| distance(known))?;
    let similar = distance(near) <= 1 + near.len().min(word.len()) / 4;
    let part = word.len() > 3 && near.contains(&word) || near.len() > 3 && word.contains(near);
    let stem = near.chars().zip(word.chars()).take_while(|(near, word)| near == word).count();
    (similar || part || stem >= 4 && stem + 1 >= near.len()).then_some(near)
}
