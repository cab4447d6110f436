//! Puts the layers of a file together: built-in < `[defaults.POLICY]` < upstream < route.
//!
//! The keys of a policy's table replace one by one; what stands below a key (an inline table, a list, a table
//! with a header of its own) replaces as a whole. Rate limits add up: one of an upstream takes the place of the default
//! of its name alone. The merge is done in the tree, before serde reads it: so each
//! value keeps its place and its layer, and what nobody wrote gets the settings type's own default.

use std::collections::BTreeMap;

use super::diagnostic::{Problem, Report};
use super::document::{Layer, Node, POLICIES, Path, Step, Value};
use super::read::read;
use super::schema;
use super::settings::{Admin, Config, Server};
use crate::policy::{
    breaker, concurrency, failure, fallback, fault, hedge, rate_limit, retry, shed, timeout,
};
use crate::proxy::{listener, route};
use crate::telemetry;
use crate::upstream::{self, balance, health, outlier};

/// The tables at the top of a file.
const TABLES: [&str; 6] = ["server", "admin", "telemetry", "defaults", "listener", "upstream"];
/// Those of them that a route may override.
const ROUTE_POLICIES: [&str; 5] = ["timeout", "retry", "hedge", "fallback", "fault"];

/// The most listeners of a file, routes of a listener, upstreams of a file, endpoints of an upstream. Far more
/// than a sidecar has; so that what compares each with each (`lint`) ends soon whatever the file says.
const MOST: usize = 2000;

/// Merges the layers in `root`, so that it holds what is in force, and reads it. What cannot be read is
/// reported and left out.
pub(super) fn assemble(root: &mut Node, report: &mut Report) -> Config {
    for (key, node) in tables_mut(root) {
        if report.is_full() {
            break;
        }
        if !TABLES.contains(&key.as_str()) {
            let path = Path::of(&[key]);
            report.add(Problem::unknown_key(&path, node, &TABLES, schema::home(&path).as_ref()));
            node.removed = true;
        }
    }
    bound(root, report);
    let server: Option<Server> = section(root, &["server"], report);
    let admin: Option<Admin> = section(root, &["admin"], report);
    let telemetry: Option<telemetry::Settings> = section(root, &["telemetry"], report);
    let defaults = defaults(root, report);
    let upstream = upstreams(root, &defaults, report);
    let listener = listeners(root, report);
    Config {
        server: server.unwrap_or_default(),
        admin: admin.unwrap_or_default(),
        telemetry: telemetry.unwrap_or_default(),
        listener,
        upstream,
    }
}

/// Takes out the lists and tables that have more than [`MOST`] entries.
fn bound(root: &mut Node, report: &mut Report) {
    let mut check = |node: &mut Node, path: Path| {
        let count = node.all_entries().len().max(node.all_elements().len());
        if count > MOST {
            let message = format!("`{path}` has {count} entries");
            report.add(Problem::new(message, format!("give at most {MOST}")).at(&path, node));
            node.removed = true;
        }
    };
    for key in ["listener", "upstream"] {
        root.get_mut(key).into_iter().for_each(|node| check(node, Path::of(&[key])));
    }
    if let Some(Value::List(listeners)) = root.get_mut("listener").map(|node| &mut node.value) {
        for (index, listener) in listeners.iter_mut().enumerate() {
            let path = Path::of(&["listener"]).index(index).key("route");
            listener.get_mut("route").into_iter().for_each(|node| check(node, path.clone()));
        }
    }
    for (name, upstream) in root.get_mut("upstream").into_iter().flat_map(tables_mut) {
        let path = Path::of(&["upstream", name, "endpoints"]);
        upstream.get_mut("endpoints").into_iter().for_each(|node| check(node, path.clone()));
    }
}

/// The entries of a table with those that were taken out, to change them.
fn tables_mut(node: &mut Node) -> impl Iterator<Item = (&mut String, &mut Node)> {
    let entries = if let Value::Table(entries) = &mut node.value { entries.as_mut_slice() } else { &mut [] };
    entries.iter_mut().map(|(key, node)| (key, node)).filter(|(_, node)| !node.removed)
}

/// Reads the section at `keys`, if there is one.
fn section<T: serde::de::DeserializeOwned>(root: &mut Node, keys: &[&str], report: &mut Report) -> Option<T> {
    let steps = Path::of(keys).0;
    root.at_mut(&steps)?;
    read(root, &Path::default(), &steps, report)
}

/// Checks `[defaults]` by itself, so that a mistake there is found once, under its own name; and gives it.
fn defaults(root: &mut Node, report: &mut Report) -> Node {
    let Some(node) = root.get_mut("defaults") else { return Node::empty(root) };
    if !matches!(node.value, Value::Table(_)) {
        let message = format!("`defaults` is {}, but a table is needed", node.kind());
        report.add(Problem::new(message, "write `[defaults.timeout]`").at(&Path::of(&["defaults"]), node));
        node.removed = true;
    }
    for (key, node) in tables_mut(node) {
        if !POLICIES.contains(&key.as_str()) {
            let path = Path::of(&["defaults", key]);
            report.add(Problem::unknown_key(&path, node, &POLICIES, schema::home(&path).as_ref()));
            node.removed = true;
        }
    }
    section::<failure::Settings>(root, &["defaults", "failure"], report);
    section::<timeout::Settings>(root, &["defaults", "timeout"], report);
    section::<retry::Settings>(root, &["defaults", "retry"], report);
    section::<hedge::Settings>(root, &["defaults", "hedge"], report);
    section::<Vec<rate_limit::Settings>>(root, &["defaults", "rate_limit"], report);
    section::<breaker::Settings>(root, &["defaults", "breaker"], report);
    section::<concurrency::Settings>(root, &["defaults", "concurrency"], report);
    section::<shed::Settings>(root, &["defaults", "shed"], report);
    section::<balance::Settings>(root, &["defaults", "balance"], report);
    section::<fallback::Settings>(root, &["defaults", "fallback"], report);
    section::<outlier::Settings>(root, &["defaults", "outlier"], report);
    section::<health::Settings>(root, &["defaults", "health"], report);
    section::<fault::Settings>(root, &["defaults", "fault"], report);
    let mut defaults = root.get("defaults").cloned().unwrap_or_else(|| Node::empty(root));
    defaults.set_layer(Layer::Defaults);
    defaults
}

fn upstreams(root: &mut Node, defaults: &Node, report: &mut Report) -> BTreeMap<String, upstream::Settings> {
    let mut upstreams = BTreeMap::new();
    let Some(node) = root.get_mut("upstream") else { return upstreams };
    if !matches!(node.value, Value::Table(_)) {
        let message = format!("`upstream` is {}, but each upstream is a table with a name", node.kind());
        report.add(Problem::new(message, "write `[upstream.NAME]`").at(&Path::of(&["upstream"]), node));
        node.removed = true;
        return upstreams;
    }
    let mut names = Vec::new();
    for (name, node) in tables_mut(node) {
        let path = Path::of(&["upstream", name]);
        if let Err(message) = route::check_name(name) {
            report.add(Problem::of_text(&message).at_key(&path, node));
            node.removed = true;
        } else if !matches!(node.value, Value::Table(_)) {
            let message = format!("`upstream.{name}` is {}, but each upstream is a table", node.kind());
            report.add(Problem::new(message, "give it a name: `[upstream.NAME]`").at_key(&path, node));
            node.removed = true;
        } else {
            for policy in POLICIES {
                overlay(node, policy, defaults.get(policy));
            }
            names.push(name.clone());
        }
    }
    for name in names {
        let keys = ["upstream", name.as_str()];
        if let Some(mut settings) = section::<upstream::Settings>(root, &keys, report) {
            settings.timeout.request_is_written = says_request(root.follow(&Path::of(&keys).0).0);
            upstreams.insert(name, settings);
        }
    }
    upstreams
}

/// Puts the keys of `node.policy` over those of `below`.
fn overlay(node: &mut Node, policy: &str, below: Option<&Node>) {
    let Some(below) = below else { return };
    if node.lost(policy) {
        return;
    }
    match node.get_mut(policy) {
        None => node.set(policy, below.clone()),
        Some(above) if policy == "rate_limit" => add_up(above, below),
        Some(above) => {
            for (key, value) in below.entries() {
                if above.get(key).is_none() && !above.lost(key) {
                    above.set(key, value.clone());
                }
            }
        }
    }
}

/// Adds to the limits of an upstream the defaults that it does not have by name. Its own stay in front, so that their
/// number is that in the file.
fn add_up(above: &mut Node, below: &Node) {
    let name = |node: &Node| match node.get("name") {
        Some(name) => name.text().unwrap_or_default().to_owned(),
        None => rate_limit::DEFAULT_NAME.to_owned(),
    };
    let own: Vec<String> = above.elements().map(|(_, node)| name(node)).collect();
    let Value::List(limits) = &mut above.value else { return };
    limits.extend(
        below.elements().filter(|(_, node)| !own.contains(&name(node))).map(|(_, node)| node.clone()),
    );
}

fn listeners(root: &mut Node, report: &mut Report) -> Vec<listener::Settings> {
    let upstreams = root.get("upstream").cloned().unwrap_or_else(|| Node::empty(root));
    let Some(node) = root.get_mut("listener") else { return Vec::new() };
    let Value::List(elements) = &mut node.value else {
        let message = format!("`listener` is {}, but a list of tables is needed", node.kind());
        let problem = Problem::new(message, "write `[[listener]]`, with two brackets");
        report.add(problem.at(&Path::of(&["listener"]), node));
        node.removed = true;
        return Vec::new();
    };
    for listener in elements.iter_mut() {
        let Some(Value::List(routes)) = listener.get_mut("route").map(|node| &mut node.value) else {
            continue;
        };
        for route in routes {
            let below = match route.get("upstream").map(|node| &node.value) {
                Some(Value::String(name)) => upstreams.get(name).cloned(),
                _ => None,
            };
            for policy in ROUTE_POLICIES {
                // A route that says nothing of a policy has the upstream's, and no settings of its own.
                if let Some(node) = route.get_mut(policy) {
                    node.set_layer(Layer::Route);
                    overlay(route, policy, below.as_ref().and_then(|upstream| upstream.get(policy)));
                }
            }
        }
    }
    let count = elements.len();
    let steps = |index| [Step::Key("listener".to_owned()), Step::Index(index)];
    let mut listeners = Vec::new();
    for index in 0..count {
        let read = read::<listener::Settings>(root, &Path::default(), &steps(index), report);
        let Some(mut listener) = read else { continue };
        let (node, _) = root.follow(&steps(index));
        let routes = node.get("route").into_iter().flat_map(Node::elements);
        for ((_, node), route) in routes.zip(&mut listener.route) {
            route.timeout.iter_mut().for_each(|timeout| timeout.request_is_written = says_request(node));
            for arm in &mut route.split {
                let below = upstreams.get(&arm.upstream);
                arm.timeout = over(node, "timeout", below);
                arm.timeout.iter_mut().for_each(|timeout| {
                    timeout.request_is_written = says_request(node) || below.is_some_and(says_request);
                });
                arm.retry = over(node, "retry", below);
                arm.fallback = over(node, "fallback", below);
                arm.hedge = over(node, "hedge", below);
                arm.fault = over(node, "fault", below);
            }
        }
        listeners.push(listener);
    }
    listeners
}

/// What is in force of a split route's policy at one of its upstreams: the route's keys over those of `below`. None
/// where the route says nothing of it. What cannot be read is reported where it was written.
fn over<T: serde::de::DeserializeOwned>(route: &Node, policy: &str, below: Option<&Node>) -> Option<T> {
    let mut merged = Node::empty(route);
    merged.set(policy, route.get(policy)?.clone());
    overlay(&mut merged, policy, below.and_then(|upstream| upstream.get(policy)));
    read(&mut merged, &Path::default(), &[Step::Key(policy.to_owned())], &mut Report::new("", ""))
}

/// Whether some layer says `timeout.request` for this upstream or route.
fn says_request(node: &Node) -> bool {
    node.get("timeout").is_some_and(|timeout| timeout.get("request").is_some())
}
