//! Where each value in force comes from, for `explain`, and which of them nobody may see.

use std::collections::BTreeMap;

use super::document::{Layer, Node, Path, Step};
use super::settings::Config;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The layer.
    pub layer: Layer,
    /// The line in the file, from 1.
    pub line: usize,
    /// A part of it came from the environment.
    pub secret: bool,
}

/// Where the values come from that the file wrote; all others are built in.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    origins: BTreeMap<String, Origin>,
    secrets: Vec<Path>,
}

impl Origins {
    /// Of all values in `root`, the merged tree of `text`.
    pub(super) fn of(root: &Node, text: &str) -> Self {
        let mut all = Self::default();
        root.leaves(&mut Path::default(), &mut |path, node| {
            let line = text[..node.key.start].matches('\n').count() + 1;
            all.origins.insert(path.to_string(), Origin { layer: node.layer, line, secret: node.secret });
            if node.secret {
                all.secrets.push(path.clone());
            }
        });
        all
    }

    /// Where the value at `path` comes from, a list by its first element; `None`: it is built in.
    pub fn get(&self, path: &str) -> Option<Origin> {
        self.below(path).next()
    }

    /// The first line that says something at `path` or below it, `[defaults]` apart.
    pub fn first_line(&self, path: &str) -> Option<usize> {
        self.below(path).filter(|origin| origin.layer != Layer::Defaults).map(|origin| origin.line).min()
    }

    /// The origins at `path` and below it.
    fn below(&self, path: &str) -> impl Iterator<Item = Origin> {
        let is_below = move |key: &str| {
            key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let near = self.origins.range(path.to_owned()..).take_while(move |(key, _)| key.starts_with(path));
        near.filter(move |(key, _)| is_below(key)).map(|(_, origin)| *origin)
    }

    /// `config` as TOML, without what came from the environment.
    pub(super) fn redact(&self, config: &Config) -> String {
        let mut value =
            toml::Value::try_from(config).expect("settings are tables, lists, strings and numbers");
        for path in &self.secrets {
            hide(&mut value, &path.0);
        }
        toml::to_string(&value).expect("settings are tables, lists, strings and numbers")
    }
}

/// Hides what stands at `steps`; where settings are shaped otherwise than the file, what comes nearest.
fn hide(value: &mut toml::Value, steps: &[Step]) {
    let inner = match (steps.first(), &mut *value) {
        (Some(Step::Key(key)), toml::Value::Table(table)) => table.get_mut(key),
        (Some(Step::Index(index)), toml::Value::Array(array)) => array.get_mut(*index),
        _ => None,
    };
    match inner {
        Some(inner) => hide(inner, &steps[1..]),
        None => *value = toml::Value::String("***".to_owned()),
    }
}
