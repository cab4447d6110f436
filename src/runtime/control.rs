//! What the admin API may do and see: the sidecar's side of `admin::Control`.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::drain::{self, DRAINED};
use super::process::Process;
use super::reload::{Reloads, Why};
use super::workers;
use crate::admin::{self, Readiness, Reload};
use crate::policy::fault;
use crate::proxy::life::Stage;
use crate::telemetry::metrics::Limit;

/// The handle that the admin API gets.
pub(super) struct Control {
    pub(super) process: Arc<Process>,
    pub(super) reloads: Reloads,
    pub(super) drains: mpsc::UnboundedSender<drain::Order>,
}

impl admin::Control for Control {
    fn live(&self) -> Result<(), String> {
        let silence = self.process.shared.longest_silence(Instant::now());
        if self.process.workers.any_ended() {
            return Err("a worker has ended".to_owned());
        }
        if workers::stands_still(silence) {
            return Err(format!("a worker has stood still for {} s", silence.as_secs()));
        }
        Ok(())
    }

    fn ready(&self) -> Readiness {
        let process = &self.process;
        let mut reasons = Vec::new();
        if process.shared.life.stage() != Stage::Serving {
            reasons.push(if process.drained.load(Relaxed) {
                DRAINED.to_owned()
            } else {
                format!("draining: {} requests in flight", process.shared.requests_in_flight())
            });
        }
        if !process.are_names_settled() {
            reasons.push("names are being resolved".to_owned());
        }
        let snapshot = process.shared.snapshot.load();
        let now = Instant::now();
        let loaded = process.loaded.load();
        for name in &loaded.config.admin.ready_requires {
            // A name that no upstream has is refused when the configuration is checked.
            let health = snapshot.chain(name).map(|chain| chain.health(now));
            if let Some((false, why)) = health {
                reasons.push(format!("upstream {name}: {why}"));
            }
        }
        let upstreams =
            snapshot.chains().map(|(name, chain)| (name.to_owned(), chain.health(now).1)).collect();
        Readiness { ready: reasons.is_empty(), reasons, upstreams }
    }

    fn metrics(&self) -> String {
        for (_, chain) in self.process.shared.snapshot.load().chains() {
            chain.refresh_gauges();
        }
        self.process.shared.metrics.render()
    }

    fn config(&self) -> String {
        self.process.loaded.load().redacted.clone()
    }

    fn upstreams(&self) -> Value {
        let now = Instant::now();
        let snapshot = self.process.shared.snapshot.load();
        let views = snapshot.chains().map(|(name, chain)| (name.to_owned(), chain.view(now)));
        Value::Object(views.collect::<Map<_, _>>())
    }

    fn faults(&self) -> Value {
        let now = Instant::now();
        let snapshot = self.process.shared.snapshot.load();
        let views = snapshot.chains().map(|(name, chain)| {
            chain.faults.review(now, chain.endpoints_for_fault());
            (name.to_owned(), chain.faults.view(now))
        });
        Value::Object(views.collect::<Map<_, _>>())
    }

    fn put_fault(&self, upstream: &str, fault: fault::Settings) -> bool {
        let snapshot = self.process.shared.snapshot.load();
        let chain = snapshot.chain(upstream);
        chain.inspect(|chain| chain.faults.put(fault, Instant::now())).is_some()
    }

    fn end_faults(&self, upstream: &str) -> bool {
        let snapshot = self.process.shared.snapshot.load();
        let chain = snapshot.chain(upstream);
        chain.inspect(|chain| chain.faults.switch_off(Instant::now())).is_some()
    }

    fn reload(&self) -> Reload<'_> {
        Box::pin(self.reloads.ask(Why::Admin))
    }

    fn crowded(&self) {
        self.process.shared.metrics.limit_reached(Limit::AdminConnections).inc();
    }

    fn drain(&self) {
        // At once: whoever asks next, behind this answer, finds it draining.
        self.process.shared.life.drain();
        // It errs only when the process has ended already.
        let _ = self.drains.send(drain::Order::Drain);
    }

    fn quit(&self) {
        self.process.shared.life.drain();
        let _ = self.drains.send(drain::Order::Leave);
    }
}
