//! Certificates while it runs: taken over when their files change, told of before they end.
//!
//! Files of keys and certificates change on their own (cert-manager, a Kubernetes Secret, certbot), mostly at night and
//! with nobody looking. So they are watched apart from the configuration, whatever `server.watch` says, and taking them
//! over touches nothing else of it: a configuration that was edited meanwhile, and may be wrong, is not read. Whatever
//! does not fit, such as a certificate whose key is still the old one, is left as it was, and looked at again with the
//! next change; the others are taken over meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};

use super::discovery::Discovery;
use super::process::Process;
use crate::config::{Config, Loaded};
use crate::proxy::life::Stage;
use crate::proxy::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;
use crate::tls::identity::Identity;

/// How often a certificate that ends soon is told of.
const AGAIN: Duration = Duration::from_secs(12 * 3600);

/// The files that `config` has its keys and certificates from.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    let listeners = config.listener.iter().filter_map(|listener| listener.tls.as_ref());
    let upstreams = config.upstream.values().filter_map(|upstream| upstream.tls.as_ref());
    let paths = listeners.flat_map(|tls| tls.paths()).chain(upstreams.flat_map(|tls| tls.paths()));
    paths.map(PathBuf::from).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The certificates that `config` shows to peers.
fn identities(config: &Config) -> impl Iterator<Item = &Identity> {
    let listeners = config.listener.iter().filter_map(|listener| listener.tls.as_ref());
    let upstreams = config.upstream.values().filter_map(|upstream| upstream.tls.as_ref());
    listeners.flat_map(|tls| tls.identities()).chain(upstreams.filter_map(|tls| tls.identity()))
}

/// Puts into the metrics until when the certificates of `config` are valid.
pub(super) fn measure(config: &Config, metrics: &Metrics) {
    let expiry = identities(config).map(|identity| {
        let cert = &identity.cert;
        (cert.path.clone(), cert.content.leaf.not_after)
    });
    metrics.set_certificates(expiry.collect());
}

/// Tells of certificates that end soon, for ever. The first time is that of the load, whose warnings say so.
pub(super) async fn warn_in_time(process: Arc<Process>) {
    let mut again = interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.tick().await;
    loop {
        again.tick().await;
        warn(&process.loaded.load().config);
    }
}

fn warn(config: &Config) {
    let now = SystemTime::now();
    let by_file: BTreeMap<&str, &Identity> =
        identities(config).map(|identity| (identity.cert.path.as_str(), identity)).collect();
    for (file, identity) in by_file {
        let leaf = &identity.cert.content.leaf;
        if let Some(complaint) = leaf.complaint(now) {
            tracing::warn!(file, "the certificate {leaf} {complaint}; renew it");
        }
    }
}

/// Takes over what the files hold now.
pub(super) async fn renew(process: &Process, discovery: &Discovery) -> Result<String, String> {
    let before = process.loaded.load_full();
    let read = {
        let before = Arc::clone(&before);
        tokio::task::spawn_blocking(move || read_again(&before.config)).await
    };
    let (config, failures) =
        read.map_err(|_| "reading certificates panicked; this is a bug, please report it".to_owned())?;
    let metrics = &process.shared.metrics;
    for failure in &failures {
        metrics.certificates_read(false);
        tracing::warn!("certificate not renewed, the old one stays: {failure}");
    }
    if config == before.config {
        return if failures.is_empty() {
            Ok("no certificate has changed".to_owned())
        } else {
            Err(failures.join(" | "))
        };
    }
    if process.shared.life.stage() != Stage::Serving {
        return Err("the sidecar is draining; it goes on with the certificates that it has".to_owned());
    }
    discovery.stop();
    let snapshot = process.shared.snapshot.load_full();
    let snapshot = Snapshot::build(&config.listener, &config.upstream, Some(&snapshot), metrics);
    process.shared.snapshot.store(Arc::new(snapshot));
    discovery.snapshot_changed();
    metrics.certificates_read(true);
    // Both have the same settings, and differ in what files hold.
    let changed = identities(&config).zip(identities(&before.config)).filter(|(new, old)| new != old);
    let changed: BTreeSet<&str> = changed.map(|(new, _)| new.cert.path.as_str()).collect();
    tracing::info!(own = ?changed, "certificates renewed");
    warn(&config);
    process.loaded.store(Arc::new(Loaded { config, ..Loaded::clone(&before) }));
    Ok("certificates renewed".to_owned())
}

/// `config` with what the files hold now, and why some of it stays as it was.
fn read_again(config: &Config) -> (Config, Vec<String>) {
    let mut config = config.clone();
    let mut failures = BTreeSet::new();
    for tls in config.listener.iter_mut().filter_map(|listener| listener.tls.as_mut()) {
        let (read, why) = tls.read_again();
        *tls = read;
        failures.extend(why);
    }
    for tls in config.upstream.values_mut().filter_map(|upstream| upstream.tls.as_mut()) {
        let (read, why) = tls.read_again();
        *tls = read;
        failures.extend(why);
    }
    (config, failures.into_iter().collect())
}
