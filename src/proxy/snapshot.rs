//! One configuration as the path uses it: listeners with their routes, each with its upstream's chain.
//!
//! Immutable. A request takes one snapshot and keeps it to its end; a reload builds the next one aside and swaps
//! it in (`runtime::reload`).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::activity::Activity;
use super::chain::Chain;
use super::fault::Place;
use super::listener::{Settings, Trust};
use super::route::{self, Route};
use crate::policy::fallback::Triggers;
use crate::policy::fault::Fault;
use crate::policy::retry::Rules;
use crate::policy::{fallback, hedge, retry, timeout};
use crate::telemetry::metrics::{ListenerMetrics, Metrics, RouteMetrics};
use crate::tls::server::Server;
use crate::units::Ratio;
use crate::upstream;

/// The next [`Listener::entrance`].
static ENTRANCES: AtomicU64 = AtomicU64::new(0);

/// A snapshot as a worker hands it to its requests: they count their references without atomics, which other
/// workers would count too.
pub type Held = Rc<Arc<Snapshot>>;

/// One configuration as the path uses it.
#[derive(Default)]
pub struct Snapshot {
    listeners: Vec<Listener>,
    chains: BTreeMap<String, Arc<Chain>>,
}

/// A listener with its routes.
#[derive(Clone)]
pub struct Listener {
    /// Its name in metrics and log.
    pub name: Arc<str>,
    /// What the configuration says of it.
    pub settings: Settings,
    /// Whose control headers are obeyed.
    pub trust: Trust,
    /// Takes its connections, where clients speak TLS.
    pub tls: Option<Arc<Server>>,
    /// Unlike any other of this process; the next snapshot's is the same if it would let in who was let in here.
    pub entrance: u64,
    /// Whether `X-Forwarded-*` and `Via` are added.
    pub forwarded: bool,
    /// What it has going on.
    pub activity: Arc<Activity>,
    /// Its series.
    pub metrics: Arc<ListenerMetrics>,
    /// The series of requests that no route takes.
    pub unrouted: Arc<RouteMetrics>,
    /// From top to bottom; the listener's own upstream last.
    routes: Vec<Arms>,
    /// Where they lead.
    targets: Vec<Target>,
}

/// A route with the places of its targets.
#[derive(Clone)]
struct Arms {
    route: Arc<Route>,
    first: usize,
    /// Where each target's share ends, of that of all.
    ends: Box<[u32]>,
}

/// Where a route leads, and what is in force there.
#[derive(Clone)]
pub struct Target {
    /// What it takes, and how it rewrites.
    pub route: Arc<Route>,
    /// The place of the target that gets copies of its requests, and of which share of them.
    pub mirror: Option<(usize, Ratio)>,
    /// The upstream's policies.
    pub chain: Arc<Chain>,
    /// Timeouts: the upstream's with the route's over them.
    pub timeout: timeout::Settings,
    /// Retries: the upstream's with the route's over them.
    pub retry: retry::Settings,
    /// The same, compiled.
    pub rules: Rules,
    /// What is done about failures, where anything is.
    pub fallback: Option<Arc<Standby>>,
    /// Hedges: the upstream's with the route's over them.
    pub hedge: hedge::Settings,
    /// What is done to its requests on purpose: the route's own fault, or the upstream's.
    pub fault: Option<Arc<Fault>>,
    /// Its series.
    pub metrics: Arc<RouteMetrics>,
}

/// What is done about a target's failures.
pub struct Standby {
    /// The upstream's settings with the route's over them.
    pub settings: fallback::Settings,
    /// `on`, compiled.
    pub on: Triggers,
    /// The place of the target that may answer in its stead.
    pub elsewhere: Option<usize>,
}

impl Snapshot {
    /// The snapshot of these settings. State is carried over from `previous` by the upstream's name. Routes to
    /// upstreams that do not exist are left out (the configuration's check refuses them).
    pub fn build(
        listeners: &[Settings],
        upstreams: &BTreeMap<String, upstream::Settings>,
        previous: Option<&Snapshot>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let chains: BTreeMap<String, Arc<Chain>> = upstreams
            .iter()
            .map(|(name, settings)| {
                let previous = previous.and_then(|previous| previous.chain(name));
                let chain = Chain::new(name, settings, previous.map(Arc::as_ref), metrics);
                (name.clone(), Arc::new(chain))
            })
            .collect();
        let now = Instant::now();
        let target = |listener: &str, route: &Arc<Route>, arm: route::Arm| {
            let chain = chains.get(&arm.upstream)?;
            let of_upstream = &chain.upstream.settings;
            let retry = arm.retry.unwrap_or_else(|| of_upstream.retry.clone());
            Some(Target {
                mirror: None,
                timeout: arm.timeout.unwrap_or_else(|| of_upstream.timeout.clone()),
                rules: Rules::new(&retry),
                fault: match &arm.fault {
                    Some(settings) => chain.faults.written(&place(listener, route), settings, now),
                    None => chain.fault.clone(),
                },
                retry,
                fallback: Standby::new(arm.fallback.as_ref().unwrap_or(&of_upstream.fallback)),
                hedge: arm.hedge.unwrap_or_else(|| of_upstream.hedge.clone()),
                metrics: metrics.route(listener, &route.name, &arm.upstream),
                chain: Arc::clone(chain),
                route: Arc::clone(route),
            })
        };
        let listeners = listeners
            .iter()
            .map(|settings| {
                let name = settings.name();
                let previous =
                    previous.and_then(|previous| Some(previous.listener_at(previous.listener(&name)?)));
                let last = settings.upstream.as_ref().map(|upstream| route::Settings::any(upstream));
                let (mut routes, mut targets) = (Vec::new(), Vec::new());
                for settings in settings.route.iter().chain(last.as_ref()) {
                    let (first, mut ends, mut total) = (targets.len(), Vec::new(), 0);
                    let route = Arc::new(Route::new(settings));
                    for arm in settings.arms() {
                        let weight = arm.weight;
                        if let Some(target) = target(&name, &route, arm) {
                            total += weight;
                            ends.push(total);
                            targets.push(target);
                        }
                    }
                    for at in first..targets.len() {
                        let Some(other) = targets[at].goes_elsewhere().map(str::to_owned) else { continue };
                        let place = targets.len();
                        if let Some(elsewhere) = target(&name, &route, route::Arm::of(&other, None, None)) {
                            targets.push(Target { fallback: None, ..elsewhere });
                            targets[at].set_elsewhere(place);
                        }
                    }
                    if let Some(mirror) = &route.settings.mirror
                        && let Some(chain) = chains.get(&mirror.upstream)
                    {
                        // A copy is not worth a retry, nor a hedge.
                        let retry = retry::Settings { attempts: 1, ..chain.upstream.settings.retry.clone() };
                        let hedge = Some(hedge::Settings::default());
                        let arm = route::Arm { hedge, ..route::Arm::of(&mirror.upstream, None, Some(retry)) };
                        let place = targets.len();
                        let mirror_target = target(&name, &route, arm);
                        targets.extend(mirror_target.map(|target| Target { fallback: None, ..target }));
                        let mirrored = &mut targets[first..place];
                        mirrored.iter_mut().for_each(|target| target.mirror = Some((place, mirror.ratio)));
                    }
                    if total > 0 {
                        routes.push(Arms { route, first, ends: ends.into() });
                    }
                }
                Listener {
                    routes,
                    targets,
                    trust: settings.trust(),
                    forwarded: settings.forwarded(),
                    tls: tls(settings, previous),
                    entrance: previous
                        .filter(|previous| settings.would_let_in(&previous.settings))
                        .map_or_else(|| ENTRANCES.fetch_add(1, Relaxed), |previous| previous.entrance),
                    activity: previous.map_or_else(
                        || Arc::new(Activity::new(metrics.workers())),
                        |known| Arc::clone(&known.activity),
                    ),
                    metrics: series(settings, &name, metrics),
                    unrouted: metrics.route(&name, "", ""),
                    settings: settings.clone(),
                    name: name.into(),
                }
            })
            .collect();
        chains.values().for_each(|chain| chain.faults.settle(now));
        let snapshot = Self { listeners, chains };
        snapshot.size_stores();
        snapshot
    }

    /// Each upstream's store gets the most that the upstream or one of its routes asks for.
    fn size_stores(&self) {
        let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
        for target in self.listeners.iter().flat_map(|listener| &listener.targets) {
            if let Some(stale) = target.fallback.as_ref().and_then(|standby| standby.settings.stale) {
                let size = sizes.entry(&target.chain.upstream.name).or_default();
                *size = stale.max_size.bytes().max(*size);
            }
        }
        for (name, chain) in &self.chains {
            chain.store.set_max(sizes.get(name.as_str()).copied().unwrap_or(0));
        }
    }

    /// The same with only those listeners that `stays` says. The chains are the same ones: whoever works for them, such
    /// as discovery, goes on.
    pub fn with_listeners(&self, stays: impl Fn(&Listener) -> bool) -> Self {
        Self {
            listeners: self.listeners.iter().filter(|listener| stays(listener)).cloned().collect(),
            chains: self.chains.clone(),
        }
    }

    /// The place of the listener `name`.
    pub fn listener(&self, name: &str) -> Option<usize> {
        self.listeners.iter().position(|listener| &*listener.name == name)
    }

    /// The listener at this place.
    pub fn listener_at(&self, index: usize) -> &Listener {
        &self.listeners[index]
    }

    /// The chain of the upstream `name`.
    pub fn chain(&self, name: &str) -> Option<&Arc<Chain>> {
        self.chains.get(name)
    }

    /// All chains, by name.
    pub fn chains(&self) -> impl Iterator<Item = (&str, &Arc<Chain>)> {
        self.chains.iter().map(|(name, chain)| (name.as_str(), chain))
    }
}

/// Where the configuration says the fault of a route.
fn place(listener: &str, route: &Route) -> Place {
    Place::Route { listener: listener.to_owned(), route: route.name.to_string() }
}

/// Who takes a listener's TLS connections: who did before, while the settings are the same. Tickets stay good then.
fn tls(settings: &Settings, previous: Option<&Listener>) -> Option<Arc<Server>> {
    let (wanted, protocols) = (settings.tls.as_ref()?, settings.protocol.alpn());
    let known = previous.and_then(|previous| previous.tls.as_ref());
    let known = known.filter(|server| server.serves(wanted, protocols));
    Some(known.map_or_else(|| Arc::new(Server::new(wanted, protocols)), Arc::clone))
}

fn series(settings: &Settings, name: &str, metrics: &Metrics) -> Arc<ListenerMetrics> {
    let series = metrics.listener(name);
    if settings.tls.is_some() {
        series.expect_handshakes();
    }
    series
}

impl Standby {
    /// What `settings` ask for; none where that is nothing.
    fn new(settings: &fallback::Settings) -> Option<Arc<Self>> {
        settings.is_on().then(|| {
            Arc::new(Self { on: Triggers::new(&settings.on), settings: settings.clone(), elsewhere: None })
        })
    }
}

impl Target {
    /// The upstream that may answer in its stead.
    fn goes_elsewhere(&self) -> Option<&str> {
        let elsewhere = self.fallback.as_ref()?.settings.upstream.as_deref()?;
        // One that stands for all in `[defaults]` may stand for itself.
        (*elsewhere != *self.chain.upstream.name).then_some(elsewhere)
    }

    fn set_elsewhere(&mut self, place: usize) {
        if let Some(standby) = self.fallback.as_mut().and_then(Arc::get_mut) {
            standby.elsewhere = Some(place);
        }
    }
}

impl Listener {
    /// The place of the target to which the first route that takes the request leads. `draw` is random, or a hash
    /// of what shall stay together.
    pub fn route(&self, request: &route::Request<'_>, draw: impl FnOnce(&Route) -> u64) -> Option<usize> {
        let arms = self.routes.iter().find(|arms| arms.route.matches(request))?;
        let &[.., total] = &*arms.ends else { return None };
        if arms.ends.len() == 1 {
            return Some(arms.first);
        }
        let point = ((u128::from(draw(&arms.route)) * u128::from(total)) >> 64) as u32;
        Some(arms.first + arms.ends.partition_point(|end| *end <= point))
    }

    /// The target at this place.
    pub fn target(&self, index: usize) -> &Target {
        &self.targets[index]
    }
}
