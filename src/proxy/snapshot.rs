//! One configuration as the path uses it: listeners with their routes, each with its upstream's chain.
//!
//! Immutable. A request takes one snapshot and keeps it to its end; a reload builds the next one aside and swaps
//! it in (`runtime::reload`).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::activity::Activity;
use super::chain::Chain;
use super::listener::{Settings, Trust};
use super::route::{self, Route};
use crate::policy::retry::Rules;
use crate::policy::{retry, timeout};
use crate::telemetry::metrics::{ListenerMetrics, Metrics, RouteMetrics};
use crate::upstream;

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
pub struct Listener {
    /// Its name in metrics and log.
    pub name: Arc<str>,
    /// What the configuration says of it.
    pub settings: Settings,
    /// Whose control headers are obeyed.
    pub trust: Trust,
    /// Whether `X-Forwarded-*` and `Via` are added.
    pub forwarded: bool,
    /// What it has going on.
    pub activity: Arc<Activity>,
    /// Its series.
    pub metrics: Arc<ListenerMetrics>,
    /// The series of requests that no route takes.
    pub unrouted: Arc<RouteMetrics>,
    /// From top to bottom; the listener's own upstream last.
    routes: Vec<Target>,
}

/// Where a route leads, and what is in force there.
pub struct Target {
    /// What it takes, and how it rewrites.
    pub route: Route,
    /// The upstream's policies.
    pub chain: Arc<Chain>,
    /// Timeouts: the upstream's with the route's over them.
    pub timeout: timeout::Settings,
    /// Retries: the upstream's with the route's over them.
    pub retry: retry::Settings,
    /// The same, compiled.
    pub rules: Rules,
    /// Its series.
    pub metrics: Arc<RouteMetrics>,
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
        let target = |listener: &str, settings: &route::Settings| {
            let chain = chains.get(&settings.upstream)?;
            let of_upstream = &chain.upstream.settings;
            let retry = settings.retry.clone().unwrap_or_else(|| of_upstream.retry.clone());
            Some(Target {
                route: Route::new(settings),
                timeout: settings.timeout.clone().unwrap_or_else(|| of_upstream.timeout.clone()),
                rules: Rules::new(&retry),
                retry,
                metrics: metrics.route(listener, &settings.name, &settings.upstream),
                chain: Arc::clone(chain),
            })
        };
        let listeners = listeners
            .iter()
            .map(|settings| {
                let name = settings.name();
                let last = settings.upstream.as_ref().map(|upstream| route::Settings::any(upstream));
                Listener {
                    routes: settings
                        .route
                        .iter()
                        .chain(last.as_ref())
                        .filter_map(|settings| target(&name, settings))
                        .collect(),
                    trust: settings.trust(),
                    forwarded: settings.forwarded(),
                    activity: previous
                        .and_then(|previous| Some(previous.listener_at(previous.listener(&name)?)))
                        .map_or_else(
                            || Arc::new(Activity::new(metrics.workers())),
                            |known| Arc::clone(&known.activity),
                        ),
                    metrics: metrics.listener(&name),
                    unrouted: metrics.route(&name, "", ""),
                    settings: settings.clone(),
                    name: name.into(),
                }
            })
            .collect();
        Self { listeners, chains }
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

impl Listener {
    /// The place of the first route that takes the request.
    pub fn route(&self, request: &route::Request<'_>) -> Option<usize> {
        self.routes.iter().position(|target| target.route.matches(request))
    }

    /// The route at this place.
    pub fn target(&self, index: usize) -> &Target {
        &self.routes[index]
    }
}
