//! TLS to upstreams: whom to trust, what to show, and the handshake.
//!
//! **Resumption.** Sessions are kept for each endpoint and shared by all workers: replicas under one name do not share
//! their keys, and a ticket of one is wasted on the others. Tickets are taken out when they are used (RFC 8446 §C.4).
//!
//! **Renewal.** When the files behind the settings change, connections made from then on use their new content; those
//! that stand are left alone ([`Client::renew`]). Other settings make another client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsConnector;

use super::error::words;
use super::files::{Authorities, Chain, File, Key};
use super::identity::Identity;
use super::name::{Host, Name};
use super::provider;
use super::roots::system_roots;
use super::verify::Verifier;
use crate::transport::Transport;

/// Endpoints whose sessions are kept; beyond it all are forgotten and learnt again.
const MAX_ENDPOINTS: usize = 1000;
/// Sessions that are kept of an endpoint, as rustls counts them.
const SESSIONS: usize = 8;

/// `[upstream.NAME] tls`: speak TLS with its endpoints. `{}` trusts the system's authorities and asks for the endpoint's
/// name.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Settings {
    written: Written,
    roots: Arc<RootCertStore>,
    identity: Option<Identity>,
}

/// The same, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Written {
    /// File with the authorities to trust, in PEM. Default: those that the system trusts.
    ca: Option<File<Authorities>>,
    /// The name that is asked for (SNI) and that the certificate must have. Default: the endpoint's.
    server_name: Option<Host>,
    /// File with the certificate to show, in PEM. Default: none.
    cert: Option<File<Chain>>,
    /// File with its private key, in PEM.
    key: Option<File<Key>>,
    /// Names of which the certificate must have one, in place of `server_name`: DNS names, addresses, or URIs such
    /// as `"spiffe://example.org/app"`. Default `[]`.
    san: Vec<Name>,
}

/// Makes TLS connections to the endpoints of one upstream. Shared by all workers.
pub struct Client {
    server_name: Option<Host>,
    protocols: &'static [&'static [u8]],
    written: Written,
    current: ArcSwap<Current>,
}

/// What connections are made with, until it is renewed.
struct Current {
    config: ClientConfig,
    /// The same with the sessions of an endpoint. Locked only to connect.
    endpoints: Mutex<HashMap<u64, Arc<ClientConfig>>>,
}

impl Settings {
    /// The certificate to show.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The files that they are made of.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let identity = self.identity.iter().flat_map(Identity::paths);
        self.written.ca.iter().map(|ca| ca.path.as_str()).chain(identity)
    }

    /// The same settings with what the files hold now, and why some of it stays as it was: one that is bad keeps back
    /// none of the others.
    pub fn read_again(&self) -> (Self, Vec<String>) {
        let mut failures = Vec::new();
        let mut written = self.written.clone();
        written.ca = written.ca.map(|ca| ca.read_again_or_keep(&mut failures));
        if let Some(identity) = &self.identity {
            let (cert, key) = identity.read_again_or_keep(&mut failures).files();
            (written.cert, written.key) = (Some(cert), Some(key));
        }
        let read = Self::try_from(written).unwrap_or_else(|why| {
            failures.push(why);
            self.clone()
        });
        (read, failures)
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Client {
    /// For these settings; `protocols` are offered by ALPN, the preferred one first.
    pub fn new(settings: &Settings, protocols: &'static [&'static [u8]]) -> Self {
        Self {
            server_name: settings.written.server_name.clone(),
            protocols,
            written: settings.written.clone(),
            current: ArcSwap::from_pointee(Current::new(settings, protocols)),
        }
    }

    /// Whether it is the client for these settings but for what their files hold.
    pub fn serves(&self, settings: &Settings, protocols: &'static [&'static [u8]]) -> bool {
        self.protocols == protocols && self.written.is_like(&settings.written)
    }

    /// Connections are made with what the files of `settings` hold, from now on.
    pub fn renew(&self, settings: &Settings) {
        self.current.store(Arc::new(Current::new(settings, self.protocols)));
    }

    /// TLS over `stream`, which leads to `endpoint`; unless the settings name the server, it must be `host`. `only_http1`:
    /// nothing else is offered by ALPN.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub async fn connect(
        &self,
        endpoint: u64,
        host: &str,
        stream: Transport,
        only_http1: bool,
    ) -> Result<Transport, String> {
        let name = match &self.server_name {
            Some(host) => host.0.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|_| {
                format!("{host:?} is no name that a certificate can have; set tls.server_name")
            })?,
        };
        let connector = TlsConnector::from(self.current.load().of(endpoint));
        // Boxed: it is large, and lives for a moment inside of each attempt.
        let connecting = match only_http1 {
            true => Box::pin(connector.with_alpn(vec![b"http/1.1".to_vec()]).connect(name, stream)),
            false => Box::pin(connector.connect(name, stream)),
        };
        let connected = connecting.await;
        connected.map(|stream| Transport::Tls(Box::new(stream.into()))).map_err(|error| words(&error))
    }
}

impl Current {
    fn new(settings: &Settings, protocols: &[&[u8]]) -> Self {
        let verifier = Verifier::new(Arc::clone(&settings.roots), settings.written.san.clone());
        let builder = provider::client().dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &settings.identity {
            Some(identity) => builder.with_client_cert_resolver(identity.resolver()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Self { config, endpoints: Mutex::default() }
    }

    fn of(&self, endpoint: u64) -> Arc<ClientConfig> {
        // Whoever panicked while holding it left a map that is still true.
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if endpoints.len() >= MAX_ENDPOINTS && !endpoints.contains_key(&endpoint) {
            endpoints.clear();
        }
        let config = endpoints.entry(endpoint).or_insert_with(|| {
            let mut config = self.config.clone();
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Arc::new(config)
        });
        Arc::clone(config)
    }
}

impl Written {
    /// Whether it says the same, whatever the files hold.
    fn is_like(&self, other: &Self) -> bool {
        fn path<T>(file: &Option<File<T>>) -> Option<&str> {
            file.as_ref().map(|file| file.path.as_str())
        }
        let words = |written: &Self| (written.server_name.clone(), written.san.clone());
        path(&self.ca) == path(&other.ca)
            && path(&self.cert) == path(&other.cert)
            && path(&self.key) == path(&other.key)
            && words(self) == words(other)
    }
}

impl TryFrom<Written> for Settings {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let roots = match &written.ca {
            Some(ca) => Arc::clone(&ca.content.0),
            None => system_roots()?,
        };
        let identity = match (&written.cert, &written.key) {
            (Some(cert), Some(key)) => Some(Identity::new(cert.clone(), key.clone())?),
            (None, None) => None,
            (Some(_), None) => return Err("`cert` stands without `key`; add `key = \"…\"`".to_owned()),
            (None, Some(_)) => return Err("`key` stands without `cert`; add `cert = \"…\"`".to_owned()),
        };
        Ok(Self { written, roots, identity })
    }
}

impl From<Settings> for Written {
    fn from(settings: Settings) -> Self {
        settings.written
    }
}

impl JsonSchema for Settings {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "UpstreamTls".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}
