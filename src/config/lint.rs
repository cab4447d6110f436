//! What only shows between two keys: values that contradict each other, names that lead nowhere, routes that
//! never match.
//!
//! Each check names the keys by their path and stands at the one that was written. An error is what cannot work
//! or cannot be meant; a warning is what works, but hardly as it was meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::{Duration, SystemTime};

use super::diagnostic::{Problem, Report};
use super::document::{Layer, Node, Path, Step, nearest};
use super::settings::Config;
use crate::policy::key::Key;
use crate::policy::mode::Mode;
use crate::policy::rate_limit::{self, By, DEFAULT_NAME};
use crate::policy::{breaker, fallback, fault, hedge, limit, retry, timeout};
use crate::proxy::listener::{self, Address, Direction, Trust};
use crate::proxy::route::{self, Route};
use crate::tls::identity::Identity;
use crate::transport::UNIX_PEER;
use crate::units::Amount;
use crate::units::Span;
use crate::upstream::balance::{self, Kind};
use crate::upstream::discovery::{MAX_ENDPOINTS, Settings as Discovery};
use crate::upstream::{self, endpoint::Socket, health};

/// Checks `config`, which was read from `root`. Unless the file is `whole`, what seems to be missing may only be
/// unreadable, and is no problem.
pub(super) fn check(config: &Config, root: &Node, whole: bool, report: &mut Report) {
    let mut lint = Lint { root, report };
    lint.names();
    if whole {
        lint.gaps();
    }
    lint.addresses(config);
    lint.admin(config);
    for ((index, _), settings) in elements(root, "listener").zip(&config.listener) {
        lint.listener(&Path::of(&["listener"]).index(index), settings, config);
    }
    for (name, settings) in &config.upstream {
        lint.upstream(&Path::of(&["upstream", name]), settings, config);
    }
}

/// Checks a fault by itself, which was read from `root` at `path`.
pub(super) fn fault(root: &Node, path: &Path, settings: &fault::Settings, report: &mut Report) {
    Lint { root, report }.fault(path, settings);
}

/// The elements of the list `key` that could be read, with their number in the file.
fn elements<'a>(node: &'a Node, key: &str) -> impl Iterator<Item = (usize, &'a Node)> {
    node.get(key).into_iter().flat_map(Node::elements)
}

struct Lint<'a> {
    root: &'a Node,
    report: &'a mut Report,
}

/// What is in force for one upstream, or for one route to it, and where each part of it is written.
struct InForce<'a> {
    timeout_path: Path,
    timeout: &'a timeout::Settings,
    retry_path: Path,
    retry: &'a retry::Settings,
    hedge_path: Path,
    hedge: &'a hedge::Settings,
    upstream_path: Path,
    upstream: &'a upstream::Settings,
}

/// A value and its path.
struct At<V>(Path, V);

impl<'a> Lint<'a> {
    /// What stands at `path`, or what comes nearest to it from above; and whether it was written.
    fn find(&self, path: &Path) -> (&'a Node, bool) {
        self.root.follow(&path.0)
    }

    /// A problem at `path`.
    fn say(&mut self, path: &Path, problem: Problem) {
        let (node, _) = self.root.follow(&path.0);
        self.report.add(problem.at(path, node));
    }

    /// Two values that do not go together: `one` stands in `relation` to `other`.
    fn clash(&self, one: &At<impl Display>, relation: &str, other: &At<impl Display>, cure: &str) -> Problem {
        let (first, second) = (self.find(&one.0), self.find(&other.0));
        let (one_path, other_path) = (self.written_at(&one.0, &other.0), self.written_at(&other.0, &one.0));
        let (one, other) = (show(&one_path, &one.1, first), show(&other_path, &other.1, second));
        let problem = Problem::new(format!("{one} {relation} {other}"), cure);
        match (first, second) {
            ((node, true), (related, true)) => problem.at(&one_path, node).with(related, "this one"),
            ((_, false), (node, true)) => problem.at(&other_path, node),
            ((node, _), _) => problem.at(&one_path, node),
        }
    }

    /// The path under which the file wrote, or would write, what is in force at `path`: that of the layer it
    /// comes from. What is built in goes with its `partner`, or is set for all in `[defaults]`.
    fn written_at(&self, path: &Path, partner: &Path) -> Path {
        let Some((owner, policy)) = path.split_policy() else { return path.clone() };
        let defaults = || Path::of(&["defaults"]).join(policy);
        match (self.find(path), self.find(partner)) {
            ((node, true), _) => match (node.layer, path.0.first()) {
                (Layer::Defaults, _) => defaults(),
                (Layer::Written, Some(first)) if *first != Step::Key("upstream".to_owned()) => {
                    // A route's way, but the upstream wrote it.
                    let upstream =
                        self.find(&Path(owner.to_vec()).key("upstream")).0.text().unwrap_or_default();
                    Path::of(&["upstream", upstream]).join(policy)
                }
                _ => path.clone(),
            },
            (_, (_, true)) => match self.written_at(partner, partner).split_policy() {
                Some((owner, _)) => Path(owner.to_vec()).join(policy),
                None if partner.0.first() == path.0.first() => path.clone(),
                None => defaults(),
            },
            _ => path.clone(),
        }
    }

    fn error(&mut self, one: &At<impl Display>, relation: &str, other: &At<impl Display>, cure: &str) {
        let problem = self.clash(one, relation, other, cure);
        self.report.add(problem);
    }

    fn warn(&mut self, one: &At<impl Display>, relation: &str, other: &At<impl Display>, cure: &str) {
        let problem = self.clash(one, relation, other, cure);
        self.report.add(problem.warning());
    }

    /// Every upstream that is named exists; in what could not be read too.
    fn names(&mut self) {
        let known: Vec<&str> = all_upstreams(self.root).map(|(name, _)| name).collect();
        let mut named = Vec::new();
        for (index, listener) in all(self.root, "listener") {
            let path = Path::of(&["listener"]).index(index);
            named.extend(listener.get("upstream").map(|node| (path.key("upstream"), node)));
            for (index, route) in all(listener, "route") {
                let path = path.key("route").index(index);
                named.extend(route.get("upstream").map(|node| (path.key("upstream"), node)));
                let mirror = route.get("mirror").and_then(|mirror| mirror.get("upstream"));
                named.extend(mirror.map(|node| (path.key("mirror").key("upstream"), node)));
                for (index, arm) in elements(route, "split") {
                    let path = path.key("split").index(index).key("upstream");
                    named.extend(arm.get("upstream").map(|node| (path, node)));
                }
            }
        }
        let stands_in = |of: &'a Node, layer: Layer| {
            of.get("fallback")
                .and_then(|fallback| fallback.get("upstream"))
                .filter(|node| node.layer == layer)
        };
        let defaults = self.root.get("defaults").and_then(|defaults| stands_in(defaults, Layer::Written));
        named.extend(defaults.map(|node| (Path::of(&["defaults", "fallback", "upstream"]), node)));
        for (name, upstream) in all_upstreams(self.root) {
            let path = Path::of(&["upstream", name, "fallback", "upstream"]);
            named.extend(stands_in(upstream, Layer::Written).map(|node| (path, node)));
        }
        for (index, listener) in all(self.root, "listener") {
            for (number, route) in all(listener, "route") {
                let path = Path::of(&["listener"])
                    .index(index)
                    .key("route")
                    .index(number)
                    .below("fallback.upstream");
                named.extend(stands_in(route, Layer::Route).map(|node| (path, node)));
            }
        }
        for (index, name) in
            self.root.get("admin").into_iter().flat_map(|admin| elements(admin, "ready_requires"))
        {
            named.push((Path::of(&["admin", "ready_requires"]).index(index), name));
        }
        for (path, node) in named {
            let Some(name) = node.text().filter(|name| !known.contains(name)) else { continue };
            let cure = match (nearest(name, &known), known.as_slice()) {
                (Some(near), _) => format!("did you mean \"{near}\"?"),
                (None, []) => format!("add `[upstream.{name}]` with its `endpoints`"),
                (None, known) => format!("add `[upstream.{name}]`, or name one of {}", known.join(", ")),
            };
            self.report.add(Problem::new(format!("there is no upstream {name:?}"), cure).at(&path, node));
        }
    }

    /// What is missing: a listener, a way from a listener to an upstream, a use for an upstream.
    fn gaps(&mut self) {
        // What cannot be read still shows which upstream was meant: so all strings of listeners count as names.
        let mut used = BTreeSet::new();
        let listeners = self.root.all_entries().iter().find(|(key, _)| key == "listener");
        listeners.iter().for_each(|(_, node)| texts(node, &mut used));
        for (_, node) in all_upstreams(self.root) {
            let other = node.get("fallback").and_then(|fallback| fallback.get("upstream"));
            used.extend(other.and_then(Node::text));
        }
        let mut gaps = Vec::new();
        if all(self.root, "listener").next().is_none() && !self.root.lost_like("listener") {
            let cure = "add one: `[[listener]]` with `address = \"127.0.0.1:8080\"` and `upstream = \"…\"`";
            let problem = Problem::new("there is no `[[listener]]`, so nobody can connect", cure);
            gaps.push(problem.at_place(0..0));
        }
        for (index, node) in all(self.root, "listener") {
            let leads = |key: &str| node.get(key).is_some() || node.lost_like(key);
            if !node.removed && !leads("upstream") && !leads("route") {
                let message =
                    "this listener leads nowhere: it has neither `upstream` nor `[[listener.route]]`";
                let cure = "add `upstream = \"…\"` for all of its requests, or routes for some";
                gaps.push(Problem::new(message, cure).at(&Path::of(&["listener"]).index(index), node));
            }
        }
        for (name, node) in self.root.get("upstream").into_iter().flat_map(Node::entries) {
            let kind = node.get("discovery").and_then(|discovery| discovery.get("kind"));
            let brought = matches!(kind.and_then(Node::text), Some("dns_srv" | "file"));
            let lost = node.lost_like("endpoints") || node.lost_like("discovery");
            if node.get("endpoints").is_none() && !brought && !lost {
                let cure = "add `endpoints = [\"host:port\"]`";
                let problem = Problem::new(format!("the upstream \"{name}\" has no endpoints"), cure);
                gaps.push(problem.at(&Path::of(&["upstream", name]), node));
            }
        }
        let upstreams = self.root.get("upstream").into_iter().flat_map(Node::entries);
        for (name, node) in upstreams.filter(|(name, _)| !used.contains(name)) {
            let problem = Problem::new(
                format!("no listener and no route uses the upstream \"{name}\""),
                format!("name it in a route (`upstream = \"{name}\"`), or remove it"),
            );
            gaps.push(problem.at(&Path::of(&["upstream", name]), node).warning());
        }
        gaps.into_iter().for_each(|gap| self.report.add(gap));
    }

    /// No two sockets want the same address, no two listeners have the same name.
    fn addresses(&mut self, config: &Config) {
        let mut taken: Vec<At<Address>> =
            vec![At(Path::of(&["admin", "address"]), config.admin.address.into())];
        if let Some(address) = config.admin.metrics_address {
            taken.push(At(Path::of(&["admin", "metrics_address"]), address.into()));
        }
        let mut names: Vec<At<String>> = Vec::new();
        let root = self.root;
        for ((index, _), listener) in elements(root, "listener").zip(&config.listener) {
            let path = Path::of(&["listener"]).index(index);
            taken.push(At(path.key("address"), listener.address.clone()));
            let key = if listener.name.is_some() { "name" } else { "address" };
            names.push(At(path.key(key), listener.name()));
        }
        for (number, later) in taken.iter().enumerate() {
            if let Some(earlier) = taken[..number].iter().find(|earlier| overlap(&earlier.1, &later.1)) {
                let cure =
                    if later.1.tcp().is_some() { "give each its own port" } else { "give each its own path" };
                self.error(later, "is taken by", earlier, cure);
            }
        }
        for (number, later) in names.iter().enumerate() {
            let same = names[..number].iter().find(|earlier| earlier.1 == later.1);
            // Two equal addresses are told above.
            if let Some(earlier) = same.filter(|_| later.0.last_key() == Some("name")) {
                let cure = "give each listener its own name: metrics and log tell them apart by it";
                self.error(later, "is also the name at", earlier, cure);
            }
        }
    }

    fn admin(&mut self, config: &Config) {
        let admin = &config.admin;
        if !admin.address.ip().is_loopback() && admin.token_file.is_none() {
            let problem = Problem::new(
                format!(
                    "`admin.address` ({}) is not loopback, and there is no `admin.token_file`: everything but \
                     /metrics, /livez and /readyz is refused",
                    admin.address
                ),
                "set `token_file`; or keep the admin API on 127.0.0.1 and give `metrics_address` to the others",
            );
            self.say(&Path::of(&["admin", "address"]), problem.warning());
        }
        let server = Path::of(&["server"]);
        let upgrades = At(server.key("upgrade_drain_timeout"), quoted(config.server.upgrade_drain_timeout));
        if config.server.upgrade_drain_timeout > config.server.drain_timeout && self.find(&upgrades.0).1 {
            let drain = At(server.key("drain_timeout"), quoted(config.server.drain_timeout));
            self.warn(&upgrades, "is longer than", &drain, "everything ends then: make it shorter");
        }
        if let Some(service) = config.server.service
            && let Some(listener) =
                config.listener.iter().find(|listener| listener.address.tcp() == Some(service))
        {
            let problem = Problem::new(
                format!("`server.service` ({service}) is the listener {:?} of this file", listener.name()),
                "give the address of the service itself",
            );
            self.say(&Path::of(&["server", "service"]), problem);
        }
    }

    fn listener(&mut self, path: &Path, settings: &listener::Settings, config: &Config) {
        let (node, _) = self.root.follow(&path.0);
        let routes: Vec<(Path, Route)> = elements(node, "route")
            .zip(&settings.route)
            // What a condition that could not be read would have taken, nobody knows.
            .filter(|((_, node), _)| {
                node.get("match").map_or(!node.lost("match"), |matches| !matches.is_torn())
            })
            .map(|((index, _), route)| (path.key("route").index(index), Route::new(route)))
            .collect();
        self.shadowed_routes(&routes);
        if let (Some((taker, _)), Some(_)) =
            (routes.iter().find(|(_, route)| route.takes_all()), &settings.upstream)
        {
            let (at, from) = (path.key("upstream"), self.find(taker).0.clone());
            let problem = Problem::new(
                format!("`{at}` gets no requests: `{taker}` takes all of them"),
                "leave one of the two out, or give the route a `match`",
            );
            let (node, _) = self.find(&at);
            let problem = problem.at(&at, node).with(&from, "this one takes all").warning();
            self.report.add(problem);
        }
        for (path, route) in &routes {
            self.ways(path, &route.settings);
        }
        let ways = routes
            .iter()
            .flat_map(|(path, route)| route.settings.arms().into_iter().map(move |arm| (path, arm)));
        for (path, arm) in ways {
            let Some(upstream) = config.upstream.get(&arm.upstream) else { continue };
            if let Some(fallback) = &arm.fallback {
                self.fallback(&path.key("fallback"), fallback, &arm.upstream, config);
            }
            let upstream_path = Path::of(&["upstream", &arm.upstream]);
            let here = |written: bool, key| if written { path.key(key) } else { upstream_path.key(key) };
            if let Some(fault) = &arm.fault {
                self.fault(&path.key("fault"), fault);
            }
            let fault = arm.fault.as_ref().unwrap_or(&upstream.fault);
            self.asked_for(&here(arm.fault.is_some(), "fault"), fault, settings);
            let (timeout, retry, hedge) = (&arm.timeout, &arm.retry, &arm.hedge);
            if timeout.is_some() || retry.is_some() || hedge.is_some() {
                self.in_force(&InForce {
                    timeout_path: here(timeout.is_some(), "timeout"),
                    timeout: timeout.as_ref().unwrap_or(&upstream.timeout),
                    retry_path: here(retry.is_some(), "retry"),
                    retry: retry.as_ref().unwrap_or(&upstream.retry),
                    hedge_path: here(hedge.is_some(), "hedge"),
                    hedge: hedge.as_ref().unwrap_or(&upstream.hedge),
                    upstream_path,
                    upstream,
                });
            }
        }
        if let Some((name, upstream)) =
            settings.upstream.as_ref().and_then(|name| config.upstream.get_key_value(name))
        {
            self.asked_for(&Path::of(&["upstream", name, "fault"]), &upstream.fault, settings);
        }
        if let Some(tls) = &settings.tls {
            self.certificates(&path.key("tls"), tls.identities().iter());
        }
        let open = settings.address.tcp().is_some_and(|address| !address.ip().is_loopback());
        if let (Address::Unix(_), Some(Trust::Networks(networks)), false) =
            (&settings.address, &settings.trust, settings.proxy_protocol)
            && !networks.iter().any(|network| network.contains(UNIX_PEER.ip()))
        {
            let problem = Problem::new(
                format!(
                    "`{path}.trust` holds for nobody: clients at a Unix socket count as {}",
                    UNIX_PEER.ip()
                ),
                "give \"all\" or \"none\": whoever may open the socket decides",
            );
            self.say(&path.key("trust"), problem.warning());
        }
        if open && settings.direction == Direction::Ingress && settings.trust == Some(Trust::All) {
            let problem = Problem::new(
                format!(
                    "`{path}.trust` is \"all\": whoever can reach {} sets deadlines and retries",
                    settings.address
                ),
                "list the networks of the callers that you trust, such as [\"10.0.0.0/8\"]",
            );
            self.say(&path.key("trust"), problem.warning());
        }
    }

    /// A route leads somewhere, and by one way.
    fn ways(&mut self, path: &Path, route: &route::Settings) {
        let (node, _) = self.find(path);
        let is_lost = node.lost_like("upstream") || node.lost_like("split");
        let problem = match (&route.upstream, route.split.as_slice()) {
            (None, []) if !is_lost => Problem::new(
                "this route leads nowhere: it has neither `upstream` nor `split`",
                "add `upstream = \"…\"`",
            )
            .at(path, node),
            (Some(_), [_, ..]) => {
                let (upstream, _) = self.find(&path.key("upstream"));
                let path = path.key("split");
                let (split, _) = self.find(&path);
                Problem::new("a route has either `upstream` or `split`, not both", "leave one of the two out")
                    .at_key(&path, split)
                    .with(upstream, "this is the other")
            }
            (_, []) if route.split_by.is_some() => {
                let path = path.key("split_by");
                let problem =
                    Problem::new("`split_by` splits nothing: the route has no `split`", "remove it");
                problem.at_key(&path, self.find(&path).0)
            }
            _ => return,
        };
        self.report.add(problem);
    }

    /// The certificates of the table at `path` are valid, and will be for a while.
    fn certificates<'i>(&mut self, path: &Path, identities: impl Iterator<Item = &'i Identity>) {
        let own = path.key("cert");
        let others = (0..).map(|index| path.key("certificates").index(index).key("cert"));
        let paths = self.find(&own).1.then_some(own).into_iter().chain(others);
        let now = SystemTime::now();
        for (path, identity) in paths.zip(identities) {
            let leaf = &identity.cert.content.leaf;
            if let Some(complaint) = leaf.complaint(now) {
                let message = format!("the certificate {leaf} {complaint}");
                self.say(
                    &path,
                    Problem::new(message, "renew it: peers refuse one that is not valid").warning(),
                );
            }
        }
    }

    /// Each route can match: none above it takes all that it could take.
    fn shadowed_routes(&mut self, routes: &[(Path, Route)]) {
        for (number, (path, route)) in routes.iter().enumerate() {
            let Some((above, taker)) = routes[..number].iter().find(|(_, above)| above.covers(route)) else {
                let named = self.find(&path.key("name")).1;
                let same = routes[..number].iter().find(|(_, above)| named && above.name == route.name);
                if let Some((other, _)) = same {
                    let one = At(path.key("name"), format!("{:?}", route.name));
                    let other = At(other.key("name"), format!("{:?}", route.name));
                    self.warn(&one, "is also", &other, "give each its own: metrics tell routes apart by it");
                }
                continue;
            };
            let why = if taker.takes_all() { "takes every request" } else { "takes all that this one could" };
            let problem = Problem::new(
                format!("this route never matches: `{above}` stands above it and {why}"),
                "put the narrower route first, or remove this one",
            );
            let (node, from) = (self.find(path).0, self.find(above).0);
            let problem = problem.at(path, node).with(from, why).warning();
            self.report.add(problem);
        }
    }

    fn upstream(&mut self, path: &Path, settings: &upstream::Settings, config: &Config) {
        self.in_force(&InForce {
            timeout_path: path.key("timeout"),
            timeout: &settings.timeout,
            retry_path: path.key("retry"),
            retry: &settings.retry,
            hedge_path: path.key("hedge"),
            hedge: &settings.hedge,
            upstream_path: path.clone(),
            upstream: settings,
        });
        self.hedge_is_used(path, settings, config);
        self.rate_limits(path, &settings.rate_limit);
        self.breaker(&path.key("breaker"), &settings.breaker);
        let name = path.last_key().unwrap_or_default().to_owned();
        self.fallback(&path.key("fallback"), &settings.fallback, &name, config);
        self.shed(path, settings);
        if let Some(tls) = &settings.tls {
            self.certificates(&path.key("tls"), tls.identity().into_iter());
        }
        self.outlier(path, settings);
        self.health(&path.key("health"), &settings.health);
        self.limit(path, &settings.concurrency.limit);
        self.fault(&path.key("fault"), &settings.fault);
        self.capacity(path, settings, config);
        self.balance(&path.key("balance"), &settings.balance);
        self.priorities(path, settings);

        self.discovery(path, settings);

        let (node, _) = self.root.follow(&path.0);
        let endpoints: Vec<_> = elements(node, "endpoints").zip(&settings.endpoints).collect();
        for (number, ((index, node), endpoint)) in endpoints.iter().enumerate() {
            let path = path.key("endpoints").index(*index);
            if let Some(((_, first), _)) =
                endpoints[..number].iter().find(|(_, e)| e.address == endpoint.address)
            {
                let problem = Problem::new(
                    format!("the endpoint {} stands here twice", endpoint.address),
                    "remove one of them; `weight` gives an endpoint more",
                );
                self.report.add(problem.at(&path, node).with(first, "the first").warning());
            }
            let own = endpoint.address.socket().map(|socket| match socket {
                Socket::Tcp(address) => Address::Tcp(address),
                Socket::Unix(path) => Address::Unix(path),
            });
            let own =
                own.and_then(|own| config.listener.iter().find(|listener| overlap(&own, &listener.address)));
            if let Some(listener) = own {
                let problem = Problem::new(
                    format!(
                        "the endpoint {} is the listener {:?} of this file: a loop",
                        endpoint.address,
                        listener.name()
                    ),
                    "give the address of the service itself",
                );
                self.report.add(problem.at(&path, node));
            }
        }
    }

    /// Endpoints come from somewhere, and what discovery says has a use.
    fn discovery(&mut self, path: &Path, settings: &upstream::Settings) {
        let (upstream, _) = self.root.follow(&path.0);
        let at = path.key("endpoints");
        let (node, written) = self.root.follow(&at.0);
        // A list whose elements were taken out is not empty by its own fault.
        if written && node.all_elements().is_empty() && !settings.discovery.brings_endpoints() {
            let cure = "give at least one \"host:port\"";
            self.report.add(Problem::new("there are no endpoints", cure).at(&at, node));
        }
        if settings.endpoints.len() > MAX_ENDPOINTS {
            let message = format!("`{at}` has {} endpoints", settings.endpoints.len());
            self.report.add(Problem::new(message, format!("give at most {MAX_ENDPOINTS}")).at(&at, node));
        }
        let named = elements(upstream, "endpoints")
            .zip(&settings.endpoints)
            .find(|(_, endpoint)| endpoint.address.name().is_some());
        match (&settings.discovery, named) {
            (Discovery::None {}, Some(((index, node), endpoint))) => {
                let problem = Problem::new(
                    format!("the endpoint {} is a name, and `discovery.kind` is \"none\"", endpoint.address),
                    "give an address, or say `discovery = { kind = \"dns\" }`",
                );
                self.report.add(problem.at(&at.index(index), node));
            }
            (Discovery::Dns { .. }, None) if !upstream.lost_like("endpoints") && !node.is_torn() => {
                let at = path.key("discovery");
                let (node, written) = self.root.follow(&at.0);
                if written && !node.is_torn() {
                    let problem = Problem::new(
                        "`discovery.kind` is \"dns\", and no endpoint is a name",
                        "remove it, or give a name in `endpoints`",
                    );
                    self.report.add(problem.at(&at, node).warning());
                }
            }
            _ => {}
        }
    }

    /// The lengths of time of one way fit into each other.
    fn in_force(&mut self, way: &InForce<'_>) {
        let timeout = |key: &str, value: Span| At(way.timeout_path.below(key), quoted(value));
        let request = timeout("request", way.timeout.request);
        if let Some(attempt) = way.timeout.attempt.filter(|attempt| *attempt > way.timeout.request) {
            let cure = "an attempt ends with its request: make `attempt` shorter, or `request` longer";
            self.error(&timeout("attempt", attempt), "is longer than", &request, cure);
        }
        // What is built in just ends earlier with what it is a part of: only what was written was meant.
        let root = self.root;
        let meant = |at: &At<String>| root.follow(&at.0.0).1;
        let connect = timeout("connect", way.timeout.connect);
        let attempt = way.timeout.attempt.filter(|attempt| way.timeout.connect > *attempt);
        if meant(&connect) && way.timeout.connect > way.timeout.request {
            let cure = "connecting is a part of the request: make `connect` shorter, or `request` longer";
            self.error(&connect, "is longer than", &request, cure);
        } else if let Some(attempt) = attempt.filter(|_| meant(&connect)) {
            let cure = "connecting is a part of the attempt, which ends first: make `connect` shorter";
            self.warn(&connect, "is longer than", &timeout("attempt", attempt), cure);
        }
        if way.timeout.stream_idle < way.timeout.idle {
            let cure = "a stream may be quiet for longer than other bodies: raise `stream_idle`";
            let idle = timeout("idle", way.timeout.idle);
            self.warn(&timeout("stream_idle", way.timeout.stream_idle), "is shorter than", &idle, cure);
        }

        let retry = |key: &str, value: Span| At(way.retry_path.below(key), quoted(value));
        let backoff = &way.retry.backoff;
        let (base, max) = (retry("backoff.base", backoff.base), retry("backoff.max", backoff.max));
        if backoff.base > backoff.max {
            self.error(&base, "is longer than", &max, "raise `max`, or lower `base`");
        } else if meant(&base) && backoff.base >= way.timeout.request && way.retry.attempts > 1 {
            self.warn(&base, "is not below", &request, "no retry can follow in time: lower `base`");
        }

        let queue = &way.upstream.concurrency.queue;
        let wait = At(way.upstream_path.below("concurrency.queue.timeout"), quoted(queue.timeout));
        if meant(&wait) && queue.size > 0 && queue.timeout >= way.timeout.request {
            self.warn(
                &wait,
                "is not below",
                &request,
                "a request would spend all its time waiting: lower it",
            );
        }

        let in_force = way.timeout.attempt_timeout(*way.timeout.request, way.retry.attempts > 1);
        if let Some(slow) = way.upstream.breaker.slow_request.filter(|slow| **slow >= in_force) {
            let slow = At(way.upstream_path.below("breaker.slow_request"), quoted(slow));
            let cure = "an attempt never takes that long, so none counts as slow: lower `slow_request`";
            let attempt = match way.timeout.attempt {
                Some(attempt) => timeout("attempt", attempt),
                None => At(way.timeout_path.key("attempt"), format!("{in_force:?}")),
            };
            self.error(&slow, "is not below", &attempt, cure);
        }
        self.hedge(way, in_force);
    }

    /// What says how to hedge has a use: here, or on a route that leads here.
    fn hedge_is_used(&mut self, path: &Path, settings: &upstream::Settings, config: &Config) {
        let name = path.last_key().unwrap_or_default();
        let routes = config.listener.iter().flat_map(|listener| &listener.route);
        let hedges = |arm: &route::Arm| {
            arm.upstream == name && arm.hedge.as_ref().is_some_and(|hedge| hedge.mode != Mode::Off)
        };
        let at = path.key("hedge");
        if settings.hedge.mode != Mode::Off
            || self.find(&at.key("mode")).1
            || routes.into_iter().any(|route| route.arms().iter().any(hedges))
        {
            return;
        }
        let written = ["after", "budget", "rollout"].map(|key| at.key(key));
        if let Some(key) = written.iter().find(|key| self.find(key).1) {
            let message = format!("`{key}` says how to hedge, but nothing is hedged");
            let problem = Problem::new(message, "add `mode = \"enforce\"`, or remove it");
            self.say(key, problem.warning());
        }
    }

    /// A hedge can be sent, in time, and only of what may be sent twice at once. `attempt`: how long an attempt may take.
    fn hedge(&mut self, way: &InForce<'_>, attempt: Duration) {
        let (path, hedge) = (&way.hedge_path, way.hedge);
        if hedge.mode == Mode::Off {
            return;
        }
        let mode = if hedge.mode == Mode::Shadow { "\"shadow\"" } else { "\"enforce\"" };
        for (index, method) in way.retry.methods.iter().enumerate() {
            let method = method.to_string();
            // PUT and DELETE may well be retried, and are not hedged.
            if hedge::UNSAFE.contains(&method.as_str()) && !matches!(method.as_str(), "PUT" | "DELETE") {
                let methods = way.retry_path.key("methods");
                let one = At(methods.index(index), format!("{method:?}"));
                let cure = "such a request must not be sent twice at once: take the method out, or set `hedge.mode = \"off\"`";
                let with = At(path.key("mode"), mode);
                self.error(&one, "is not safe, and hedged by", &with, cure);
            }
        }
        let after = At(path.key("after"), quoted(hedge.after));
        if let hedge::After::Time(time) = hedge.after
            && *time >= attempt
        {
            let cure = "the attempt is over by then, so nothing is hedged: lower `after`";
            let attempt = match way.timeout.attempt {
                Some(attempt) => At(way.timeout_path.key("attempt"), quoted(attempt)),
                None => At(way.timeout_path.key("attempt"), format!("{attempt:?}")),
            };
            self.error(&after, "is not below", &attempt, cure);
        }
        let budget = At(path.key("budget"), hedge.budget.get());
        if hedge.budget.get() == 0.0 {
            let problem = Problem::new(
                format!("`{}` is 0: nothing is ever hedged", budget.0),
                "give a ratio such as 0.05, or set `mode = \"off\"`",
            );
            self.say(&budget.0, problem.warning());
        } else if let hedge::After::Permille(permille) = hedge.after
            && permille < hedge.permille()
            && self.find(&after.0).1
        {
            let in_force = hedge::After::Permille(hedge.permille());
            let cure = format!(
                "hedges wait for {in_force}, so that the budget is for the slowest: write that, or raise `budget`"
            );
            self.warn(&after, "is earlier than can be paid for by", &budget, &cure);
        }
    }

    /// A key is hashed where the kind is `hash`, and nowhere else.
    fn balance(&mut self, path: &Path, balance: &balance::Settings) {
        let kind = At(path.key("kind"), "\"hash\"");
        // One that could not be read is there, and told already.
        let is_written = self.find(path).0.all_entries().iter().any(|(key, _)| key == "hash");
        match (balance.kind, &balance.hash) {
            (Kind::Hash, None) if !is_written => {
                let cure = "add `hash = { key = \"header:NAME\" }`; it may also be \"cookie:NAME\", \"path\" or \
                            \"client_ip\"";
                let problem = Problem::new(format!("`{}` is \"hash\", but there is no key", kind.0), cure);
                self.say(&kind.0, problem);
            }
            (Kind::Hash, _) | (_, None) => {}
            (_, Some(_)) => {
                let hash = path.key("hash");
                let message =
                    format!("`{hash}` is used by `kind = \"hash\"` alone, and this kind is another");
                self.say(&hash, Problem::new(message, "add `kind = \"hash\"`, or remove `hash`"));
            }
        }
    }

    /// Priorities begin with 0 and leave none out.
    fn priorities(&mut self, path: &Path, settings: &upstream::Settings) {
        // What is discovered adds to what is written, and may have the priorities that are missing here.
        if settings.discovery.brings_endpoints() {
            return;
        }
        let (node, _) = self.root.follow(&path.0);
        let written: Vec<_> = elements(node, "endpoints").zip(&settings.endpoints).collect();
        let taken: BTreeSet<u8> = written.iter().map(|(_, endpoint)| endpoint.priority).collect();
        let Some(gap) = (0u8..).zip(&taken).find(|(next, priority)| next < priority) else { return };
        let (missing, found) = gap;
        let Some(((index, _), _)) = written.iter().find(|(_, endpoint)| endpoint.priority == *found) else {
            return;
        };
        let problem = Problem::new(
            format!("this endpoint has priority {found}, and none has {missing}"),
            format!("priorities count from 0 without a gap: give it {missing}"),
        );
        self.say(&path.key("endpoints").index(*index).key("priority"), problem);
    }

    /// Each has a name of its own, and a burst that its rate can fill.
    fn rate_limits(&mut self, upstream: &Path, settings: &[rate_limit::Settings]) {
        let all = upstream.key("rate_limit");
        let (node, _) = self.find(&all);
        if settings.len() > rate_limit::MOST {
            let problem = Problem::new(
                format!("there are {} rate limits", settings.len()),
                format!("give at most {}: each request is asked of all", rate_limit::MOST),
            );
            return self.report.add(problem.at(&all, node));
        }
        let root = self.root;
        let elements: Vec<_> = node.elements().zip(settings).collect();
        for (number, ((index, node), limit)) in elements.iter().enumerate() {
            let path = if node.layer == Layer::Defaults {
                default_limit(root, &limit.name)
            } else {
                all.index(*index)
            };
            let of = |key: &str| node.get(key).unwrap_or(node);
            let mut say = |key: &str, problem: Problem| {
                self.report.add(problem.at(&path.key(key), of(key)));
            };
            let mut others = elements[..number].iter();
            if let Some(((_, first), _)) = others.find(|(_, other)| other.name == limit.name) {
                let message = format!("two rate limits have the name {:?}", limit.name);
                let cure = "give each a `name` of its own: answers and log tell them apart by it";
                say("name", Problem::new(message, cure).with(first, "the first"));
            }
            let unit = |amount: Amount| if matches!(amount, Amount::Bytes(_)) { "bytes" } else { "requests" };
            let (rate, burst) = (limit.rate, limit.burst());
            if !burst.is_like(rate.amount()) {
                let cure = match rate.amount() {
                    Amount::Bytes(_) => "give a size, such as \"1MiB\"",
                    Amount::Requests(_) => "give a number of requests, such as 200",
                };
                let (ours, theirs) = (unit(burst), unit(rate.amount()));
                let message =
                    format!("`burst` ({burst}) counts {ours}, and `rate` (\"{rate}\") counts {theirs}");
                say("burst", Problem::new(message, cure).with(of("rate"), "this one"));
            } else if limit.fills_in().is_none() {
                let message = format!("a burst of {burst} takes more than ten years at \"{rate}\"");
                say(
                    "burst",
                    Problem::new(message, "lower `burst`, or raise `rate`").with(of("rate"), "this one"),
                );
            }
            if limit.key.is_none() && node.get("max_keys").is_some() {
                let cure = "add `key = \"header:NAME\"`, or remove it";
                let message = "`max_keys` bounds the keys, and there is no `key`";
                say("max_keys", Problem::new(message, cure).warning());
            }
        }
    }

    fn breaker(&mut self, path: &Path, breaker: &breaker::Settings) {
        let open_for = &breaker.open_for;
        if open_for.base > open_for.max {
            let base = At(path.below("open_for.base"), quoted(open_for.base));
            let max = At(path.below("open_for.max"), quoted(open_for.max));
            self.error(&base, "is longer than", &max, "raise `max`, or lower `base`");
        }
        if let breaker::Window::Count { size } = breaker.window
            && size < breaker.min_requests
        {
            let min_requests = At(path.key("min_requests"), breaker.min_requests);
            let size = At(path.below("window.size"), size);
            let cure = "the window never holds that many, so the breaker never opens: lower `min_requests`";
            self.error(&min_requests, "is more than", &size, cure);
        }
    }

    /// Something stands in for failures, and it is another.
    fn fallback(&mut self, path: &Path, fallback: &fallback::Settings, upstream: &str, config: &Config) {
        let (node, is_written) = self.find(path);
        if !is_written {
            return;
        }
        let root = self.root;
        let says = |key: &&str| root.follow(&path.key(key).0).1;
        let lost = ["stale", "response", "upstream", "coalesce"].iter().any(|key| node.lost_like(key));
        if fallback.mode != Mode::Off && !lost {
            if fallback.on != fallback::Settings::default().on
                && !fallback.has_substitute()
                && !fallback.coalesce
                && says(&"on")
                && !self.find(&path.key("on")).0.is_torn()
            {
                let on = path.key("on");
                let message = format!("`{on}` names failures, and nothing stands in for them");
                let cure = "add `stale = {}`, `upstream = \"…\"` or `response = { … }`";
                self.say(&on, Problem::new(message, cure).warning());
            }
            if !fallback.key.is_empty() && fallback.stale.is_none() && !fallback.coalesce && says(&"key") {
                let key = path.key("key");
                let message =
                    format!("`{key}` tells requests apart for `stale` and `coalesce`, and there is neither");
                self.say(&key, Problem::new(message, "add `stale = {}` or `coalesce = true`").warning());
            }
        }
        if let Some(response) = &fallback.response
            && matches!(response.status, 204 | 304)
            && !response.body.is_empty()
        {
            let problem = Problem::new(
                format!(
                    "`{path}.response` has a body, and an answer with status {} has none",
                    response.status
                ),
                "leave `body` out, or give another status",
            );
            self.say(&path.key("response"), problem);
        }
        self.cross_talk(path, fallback, upstream, config);
        let Some(other) = &fallback.upstream else { return };
        let at = path.key("upstream");
        // One that stands in for all may be among them: then it stands for itself.
        if other == upstream && self.find(&at).0.layer != Layer::Defaults {
            let message = format!("`{at}` is {other:?} itself, which has just failed");
            self.say(&at, Problem::new(message, "name another upstream"));
        }
        let back = config.upstream.get(other).and_then(|settings| settings.fallback.upstream.as_deref());
        if back == Some(upstream) && other.as_str() > upstream {
            let problem = Problem::new(
                format!(
                    "{upstream:?} and {other:?} stand in for each other: where one is overloaded, the other follows"
                ),
                "let only one of them have the other; retry.budget bounds what they send each other",
            );
            self.say(&at, problem.warning());
        }
    }

    /// Requests that are told apart by a header elsewhere share no answers unless somebody says that they may.
    fn cross_talk(&mut self, path: &Path, fallback: &fallback::Settings, upstream: &str, config: &Config) {
        let shares = fallback.stale.is_some() || fallback.coalesce;
        let Some(settings) = config.upstream.get(upstream).filter(|_| shares && fallback.mode != Mode::Off)
        else {
            return;
        };
        let owner = Path::of(&["upstream", upstream]);
        let of_limits = settings.rate_limit.iter().filter(|limit| limit.mode != Mode::Off).filter_map(
            |limit| match &limit.key {
                Some(By::Part(Key::Header(name))) => Some((owner.key("rate_limit"), &**name)),
                _ => None,
            },
        );
        let caller =
            settings.shed.as_ref().filter(|shed| shed.mode != Mode::Off).and_then(|shed| {
                match &shed.caller {
                    Some(Key::Header(name)) => Some((owner.below("shed.caller"), &**name)),
                    _ => None,
                }
            });
        let ways = self.ways_by_header(upstream, config);
        let mut told = BTreeSet::new();
        for (from, name) in of_limits.chain(caller).chain(ways) {
            let name = name.to_ascii_lowercase();
            // Those are never shared without `public`, and the host is part of the URL.
            let is_apart = ["authorization", "cookie", "host"].contains(&&*name)
                || fallback.key.iter().any(|key| key.name() == name);
            if is_apart || !told.insert(name.clone()) {
                continue;
            }
            let at = path.key("key");
            let problem = Problem::new(
                format!(
                    "`{at}` lacks \"header:{name}\", by which `{from}` tells requests apart: they get each other's answers"
                ),
                format!("add \"header:{name}\", also where only some answers depend on it"),
            );
            self.say(&at, problem.warning());
        }
    }

    /// The headers by which routes choose this upstream for requests while others get there without.
    fn ways_by_header<'c>(&self, upstream: &str, config: &'c Config) -> Vec<(Path, &'c str)> {
        let mut routes = Vec::new();
        let mut is_default = false;
        for ((index, node), listener) in elements(self.root, "listener").zip(&config.listener) {
            is_default |= listener.upstream.as_deref() == Some(upstream);
            let path = Path::of(&["listener"]).index(index).key("route");
            let here = elements(node, "route").zip(&listener.route);
            let here = here.filter(|(_, route)| route.arms().iter().any(|arm| arm.upstream == upstream));
            routes.extend(here.map(|((index, _), route)| (path.index(index), &route.matches.headers)));
        }
        let asks = |headers: &BTreeMap<String, String>, name: &str, value: &str| {
            headers.iter().any(|(other, theirs)| other.eq_ignore_ascii_case(name) && theirs == value)
        };
        let mut ways = Vec::new();
        for (path, headers) in &routes {
            for (name, value) in *headers {
                if is_default || routes.iter().any(|(_, others)| !asks(others, name, value)) {
                    ways.push((path.below("match.headers"), name.as_str()));
                }
            }
        }
        ways
    }

    /// What is too much, the concurrency limit finds out.
    fn shed(&mut self, path: &Path, settings: &upstream::Settings) {
        let is_on = settings.shed.as_ref().is_some_and(|shed| shed.mode != Mode::Off);
        if is_on && settings.concurrency.mode != Mode::Enforce {
            let shed = path.key("shed");
            let off = path.below("concurrency.mode");
            let problem = Problem::new(
                format!(
                    "`{shed}` is written, but `{off}` is not \"enforce\": nothing finds out how much is too much"
                ),
                "remove one of the two",
            );
            let (node, from) = (self.find(&shed).0, self.find(&off).0);
            let problem = problem.at(&shed, node).with(from, "this one").warning();
            self.report.add(problem);
        }
    }

    fn outlier(&mut self, path: &Path, settings: &upstream::Settings) {
        let outlier = &settings.outlier;
        let eject_for = &outlier.eject_for;
        if eject_for.base > eject_for.max {
            let base = At(path.below("outlier.eject_for.base"), quoted(eject_for.base));
            let max = At(path.below("outlier.eject_for.max"), quoted(eject_for.max));
            self.error(&base, "is longer than", &max, "raise `max`, or lower `base`");
        }
        // What a name resolves to is not known here.
        let all_known = settings.endpoints.iter().all(|endpoint| endpoint.address.socket().is_some());
        let max_ejected = path.below("outlier.max_ejected");
        let (node, is_written) = self.find(&max_ejected);
        if outlier.mode == Mode::Off || outlier.max_ejected.get() == 0.0 || !all_known || !is_written {
            return;
        }
        for priority in 0..=9 {
            let count = settings.endpoints.iter().filter(|endpoint| endpoint.priority == priority).count();
            if count >= 2 && outlier.most(count) == 0 {
                let share = outlier.max_ejected.get();
                let problem = Problem::new(
                    format!(
                        "`{max_ejected}` ({share}) of {count} endpoints is less than one: none is ever ejected"
                    ),
                    format!("give at least {:.2}", (100.0 / count as f64).ceil() / 100.0),
                );
                return self.report.add(problem.at(&max_ejected, node).warning());
            }
        }
    }

    fn health(&mut self, path: &Path, health: &health::Settings) {
        let keys = [
            "kind",
            "path",
            "host",
            "status",
            "service",
            "interval",
            "timeout",
            "unhealthy_after",
            "healthy_after",
        ];
        let written = |key: &&&str| self.find(&path.key(key)).1;
        if health.mode == Mode::Off {
            if let Some(key) = keys.iter().find(written)
                && !self.find(&path.key("mode")).1
            {
                let path = path.key(key);
                let message = format!("`{path}` says how to check endpoints, but nobody is checked");
                let problem = Problem::new(message, "add `mode = \"enforce\"`, or remove it");
                self.say(&path, problem.warning());
            }
            return;
        }
        let only: &[(&str, health::Kind)] =
            &[("path", health::Kind::Http), ("status", health::Kind::Http), ("service", health::Kind::Grpc)];
        for (key, kind) in only {
            if health.kind != *kind && self.find(&path.key(key)).1 {
                let kind = if *kind == health::Kind::Http { "http" } else { "grpc" };
                let path = path.key(key);
                let problem =
                    Problem::new(format!("`{path}` is only for checks of `kind = \"{kind}\"`"), "remove it");
                self.say(&path, problem.warning());
            }
        }
    }

    /// A limit that moves has room to.
    fn limit(&mut self, path: &Path, limit: &limit::Settings) {
        let Some((min, initial)) = limit.start() else { return };
        let [min_at, initial_at, max_at] = [("min", min), ("initial", initial), ("max", limit.max())]
            .map(|(key, value)| At(path.below(&format!("concurrency.limit.{key}")), value));
        if min > limit.max() {
            self.error(&min_at, "is more than", &max_at, "raise `max`, or lower `min`");
        } else if self.find(&initial_at.0).1 {
            let cure = "it begins within its bounds: give it a number from `min` to `max`";
            if initial > limit.max() {
                self.error(&initial_at, "is more than", &max_at, cure);
            } else if initial < min {
                self.error(&initial_at, "is less than", &min_at, cure);
            }
        }
    }

    /// Somebody who comes by this listener can ask for the fault.
    fn asked_for(&mut self, path: &Path, fault: &fault::Settings, listener: &listener::Settings) {
        if !fault.is_on() || fault.matches.headers.is_empty() || listener.trust() != Trust::None {
            return;
        }
        let at = path.below("match.headers");
        let shown = self.written_at(&at, &at);
        let problem = Problem::new(
            format!(
                "`{shown}` asks for nothing at the listener {:?}, which trusts none of its callers",
                listener.name()
            ),
            "list the networks of those who may ask in its `trust`, or match otherwise",
        );
        self.say(&at, problem.warning());
    }

    /// A fault hits few, or those who ask for it, or says that it means all.
    fn fault(&mut self, path: &Path, fault: &fault::Settings) {
        // What could not be read may have said less, or whom it is for, and is told already.
        if !fault.is_on() || !fault.is_too_wide() || self.find(path).0.is_torn() {
            return;
        }
        let widest = fault.kinds().max_by(|(_, one), (_, other)| one.total_cmp(other));
        let Some((kind, ratio)) = widest else { return };
        let at = path.key(kind);
        let ratio_at = at.key("ratio");
        let at = if self.find(&ratio_at).1 { ratio_at } else { at };
        let shown = self.written_at(&at, &at);
        let share = match fault.kinds().count() {
            1 => format!("`{shown}` hits {} of the requests", percent(ratio)),
            _ => format!(
                "`{shown}` and the other kinds hit {} of the requests together",
                percent(fault.share())
            ),
        };
        let problem = Problem::new(
            format!("{share}, and no header asks for it"),
            format!(
                "add `match = {{ headers = {{ x-chaos = \"on\" }} }}`, stay below {}, or say `allow_wide = true`",
                percent(fault::WIDE)
            ),
        );
        self.say(&at, problem);
    }

    /// What an upstream may hold at once fits into what holds it.
    fn capacity(&mut self, path: &Path, settings: &upstream::Settings, config: &Config) {
        let max = settings.concurrency.limit.max();
        if !settings.shares_connections() && max > settings.connections.max {
            let limit = At(path.below("concurrency.limit.max"), max);
            let connections = At(path.below("connections.max"), settings.connections.max);
            let cure =
                "each attempt has a connection, so the rest is refused: lower the limit, it has a queue";
            self.warn(&limit, "is more than", &connections, cure);
        }
        for (key, size) in [
            ("retry.request_buffer", settings.retry.request_buffer),
            ("retry.response_buffer", settings.retry.response_buffer),
        ] {
            if size > config.server.max_buffer {
                let all = At(Path::of(&["server", "max_buffer"]), quoted(config.server.max_buffer));
                let cure = "one request could fill the buffers of all: lower it, or raise `max_buffer`";
                self.warn(&At(path.below(key), quoted(size)), "is more than", &all, cure);
            }
        }
        if settings.timeout.request > config.server.drain_timeout {
            let request = At(path.below("timeout.request"), quoted(settings.timeout.request));
            let drain = At(Path::of(&["server", "drain_timeout"]), quoted(config.server.drain_timeout));
            let cure = "requests could be cut when the sidecar stops: raise `drain_timeout`";
            self.warn(&request, "is longer than", &drain, cure);
        }
    }
}

/// The path of the default rate limit with this name.
fn default_limit(root: &Node, name: &str) -> Path {
    let all = root.get("defaults").into_iter().flat_map(|defaults| elements(defaults, "rate_limit"));
    let named = |node: &Node| node.get("name").and_then(Node::text).unwrap_or(DEFAULT_NAME) == name;
    let index = all.filter(|(_, node)| named(node)).map(|(index, _)| index).next();
    Path::of(&["defaults", "rate_limit"]).index(index.unwrap_or_default())
}

/// A value and its path for a message: whether it is built in, and nothing of a secret.
fn show(path: &Path, value: impl Display, (node, written): (&Node, bool)) -> String {
    match (written, node.secret) {
        (true, true) => format!("`{path}` (***)"),
        (true, false) => format!("`{path}` ({value})"),
        (false, _) => format!("`{path}` ({value}, built in)"),
    }
}

/// All strings in `node`, also those that could not be read.
fn texts<'a>(node: &'a Node, found: &mut BTreeSet<&'a str>) {
    found.extend(node.text());
    node.all_entries().iter().for_each(|(_, node)| texts(node, found));
    node.all_elements().iter().for_each(|node| texts(node, found));
}

/// The elements of the list `key`, also those that could not be read.
fn all<'a>(node: &'a Node, key: &str) -> impl Iterator<Item = (usize, &'a Node)> {
    let entry = node.all_entries().iter().find(|(name, _)| name == key);
    entry.into_iter().flat_map(|(_, node)| node.all_elements().iter().enumerate())
}

/// The upstreams, also those that could not be read.
fn all_upstreams(root: &Node) -> impl Iterator<Item = (&str, &Node)> {
    let entries = root.all_entries().iter().find(|(key, _)| key == "upstream");
    entries.into_iter().flat_map(|(_, node)| node.all_entries()).map(|(name, node)| (name.as_str(), node))
}

fn percent(ratio: f64) -> String {
    format!("{} %", (ratio * 10_000.0).round() / 100.0)
}

/// A length of time or a size as the file writes it.
fn quoted(value: impl Display) -> String {
    format!("\"{value}\"")
}

/// Whether two sockets cannot have these addresses at the same time.
fn overlap(one: &Address, other: &Address) -> bool {
    let (one, other) = match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => (one, other),
        (one, other) => return one == other,
    };
    let same_ip = one.ip() == other.ip()
        || one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
    one.port() == other.port() && one.port() != 0 && same_ip
}
