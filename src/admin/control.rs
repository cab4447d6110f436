//! What the admin API asks of whoever runs the proxy.

use std::pin::Pin;

use crate::policy::fault;

/// The outcome of a reload, to come: what is in force now, or what was wrong.
pub type Reload<'a> = Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>>;

/// The running proxy, as the admin API sees it. Called on the admin thread: what takes long is a future.
pub trait Control: Send + Sync + 'static {
    /// Errs with what stands still.
    fn live(&self) -> Result<(), String>;
    /// Whether traffic should come, and if not, why.
    fn ready(&self) -> Readiness;
    /// The metrics, in the Prometheus text format.
    fn metrics(&self) -> String;
    /// The configuration that runs, as TOML, secrets redacted.
    fn config(&self) -> String;
    /// Each upstream by name: endpoints, breaker, limit, in flight, budgets.
    fn upstreams(&self) -> serde_json::Value;
    /// The faults of each upstream by name: what is in force, until when, and why what is not has ended.
    fn faults(&self) -> serde_json::Value;
    /// Injects a fault beside those of the configuration, from now on. False: there is no such upstream.
    fn put_fault(&self, upstream: &str, fault: fault::Settings) -> bool;
    /// Ends all faults of an upstream, those of the configuration too, however busy the proxy is. False: there is no such
    /// upstream.
    fn end_faults(&self, upstream: &str) -> bool;
    /// Reads the configuration anew. Runs to its end even if the one who asked leaves.
    fn reload(&self) -> Reload<'_>;
    /// Stops taking new work; the process stays.
    fn drain(&self);
    /// Drains and ends the process, as SIGTERM does.
    fn quit(&self);
    /// All connections that an admin address takes are in use: for a count.
    fn crowded(&self) {}
}

/// Whether traffic should come.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// The answer.
    pub ready: bool,
    /// Why not; empty when ready.
    pub reasons: Vec<String>,
    /// Each upstream's name and health in words. For people: alone they make nothing unready.
    pub upstreams: Vec<(String, String)>,
}
