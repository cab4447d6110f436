//! What only shows between two keys: values that contradict each other, names that lead nowhere, routes that
//! never match.
//!
//! Each check names the keys by their path and stands at the one that was written. An error is what cannot work
//! or cannot be meant; a warning is what works, but hardly as it was meant.

use super::diagnostic::{Problem, Report};
use super::document::Node;
use super::settings::Config;

/// Checks `config`, which was read from `root`. Unless the file is `whole`, what seems to be missing may only be
/// unreadable, and is no problem.
pub(super) fn check(config: &Config, root: &Node, whole: bool, report: &mut Report) {
    if whole
        && config.listener.is_empty()
        && !root.lost("listener")
        && root.get("listener").is_none_or(|node| !node.lost_something())
    {
        report.add(Problem::new(
            "no `[[listener]]`: nobody could connect",
            "add one: address = \"127.0.0.1:8080\", upstream = \"…\"",
        ));
    }
}
