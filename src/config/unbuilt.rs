//! Keys and words of parts that this version does not have.
//!
//! One table, checked before anything is read: such a key gets its own message, not that of a mistyped one. A
//! part that gets built loses its rows here.

use super::diagnostic::{Problem, Report};
use super::document::{Node, Path, Step, Value};

/// Where it stands (`*`: any name or element), the words that are meant (none: the key itself), and what to do.
type Row = (&'static str, &'static [&'static str], &'static str);

const REMOVE: &str = "remove it";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("server.state_dir",                      &[], REMOVE),
    ("telemetry.tracing",                     &[], REMOVE),
    ("listener.*.route.*.slo",                &[], REMOVE),
    ("upstream.*.discovery.kind",             &["etcd", "kubernetes"], "give \"dns\", \"dns_srv\" or \"file\""),
    ("upstream.*.slo",                        &[], REMOVE),
];

/// Reports and takes out all that is not built. What an upstream may say, `[defaults]` may say too.
pub(super) fn take_out(root: &mut Node, report: &mut Report) {
    for &(pattern, words, cure) in ROWS {
        let steps: Vec<&str> = pattern.split('.').collect();
        walk(root, &steps, &mut Path::default(), words, cure, report);
        if let ["upstream", "*", rest @ ..] = steps.as_slice() {
            let steps: Vec<&str> = std::iter::once("defaults").chain(rest.iter().copied()).collect();
            walk(root, &steps, &mut Path::default(), words, cure, report);
        }
    }
}

fn walk(node: &mut Node, steps: &[&str], path: &mut Path, words: &[&str], cure: &str, report: &mut Report) {
    if node.removed {
        return;
    }
    let Some((step, rest)) = steps.split_first() else {
        return meet(node, path, words, cure, report);
    };
    match &mut node.value {
        Value::Table(entries) => {
            for (key, node) in entries.iter_mut().filter(|(key, _)| *step == "*" || key == step) {
                path.0.push(Step::Key(key.clone()));
                walk(node, rest, path, words, cure, report);
                path.0.pop();
            }
        }
        Value::List(elements) if *step == "*" => {
            for (index, node) in elements.iter_mut().enumerate() {
                path.0.push(Step::Index(index));
                walk(node, rest, path, words, cure, report);
                path.0.pop();
            }
        }
        _ => {}
    }
}

fn meet(node: &mut Node, path: &Path, words: &[&str], cure: &str, report: &mut Report) {
    let key = path.last_key().unwrap_or_default();
    let problem = match &node.value {
        _ if words.is_empty() => {
            Problem::new(format!("`{key}` is not part of this version"), cure).at_key(path, node)
        }
        Value::String(text) => {
            let Some(word) = words.iter().find(|word| text == **word) else { return };
            Problem::new(format!("`{key} = \"{word}\"` is not part of this version"), cure).at(path, node)
        }
        _ => return,
    };
    report.add(problem);
    node.removed = true;
}
