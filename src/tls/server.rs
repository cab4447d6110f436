//! TLS on listeners: which certificate for which name, whom to let in, and the handshake.
//!
//! **Which certificate.** The name that the client asks for (SNI) decides: a certificate that has it, else one that has
//! a wildcard for it, else the first. A client that asks for a name that no certificate has is not refused: its own
//! check says better what is wrong.
//!
//! **Resumption** is by tickets, whose keys belong to one [`Server`] and change every six hours. A reload that changes
//! the settings or what their files hold makes another one: who was let in by another `client_ca` shows its certificate
//! again.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;

use rustls::crypto::ring::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ServerConfig};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

use super::error::words;
use super::files::{Authorities, Chain, File, Key};
use super::identity::Identity;
use super::name::Name;
use super::provider;
use crate::transport::Transport;

/// `[[listener]] tls`: clients speak TLS. At least one certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Settings {
    written: Written,
    /// At least one; the first is for clients that ask for no name, or one that none has.
    identities: Vec<Identity>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// The same, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Written {
    /// File with the certificate and those that it was issued by, in PEM.
    cert: Option<File<Chain>>,
    /// File with its private key, in PEM.
    key: Option<File<Key>>,
    /// File with the authorities of which clients must show a certificate, in PEM. Default: they need none.
    client_ca: Option<File<Authorities>>,
    /// Further certificates, chosen by the name that the client asks for. Default `[]`.
    certificates: Vec<Identity>,
}

/// Takes TLS connections for one listener. Shared by all workers.
pub struct Server {
    settings: Settings,
    protocols: &'static [&'static [u8]],
    acceptor: TlsAcceptor,
}

/// Why a client is not in.
pub enum Denied {
    /// It left before the handshake ended, without a word: it only looked whether the port is open, or broke off.
    Left,
    /// The handshake failed, in words.
    Failed(String),
}

/// A client that is in.
pub struct Accepted {
    /// The connection.
    pub stream: Transport,
    /// Whether it went on with an earlier session.
    pub resumed: bool,
}

impl Settings {
    /// The certificates, the default one first.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// Whether clients of `other` have shown what these settings ask of theirs.
    pub fn asks_no_more_than(&self, other: &Self) -> bool {
        let asked = |settings: &Self| settings.written.client_ca.as_ref().map(|ca| ca.content.clone());
        asked(self).is_none() || asked(self) == asked(other)
    }

    /// The files that they are made of.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let authorities = self.written.client_ca.iter().map(|ca| ca.path.as_str());
        self.identities.iter().flat_map(Identity::paths).chain(authorities)
    }

    /// The same settings with what the files hold now, and why some of it stays as it was: one that is bad keeps back
    /// none of the others.
    pub fn read_again(&self) -> (Self, Vec<String>) {
        let mut failures = Vec::new();
        let mut identities: Vec<_> =
            self.identities.iter().map(|known| known.read_again_or_keep(&mut failures)).collect();
        let mut written = Written::default();
        if self.written.cert.is_some() {
            let (cert, key) = identities.remove(0).files();
            (written.cert, written.key) = (Some(cert), Some(key));
        }
        written.certificates = identities;
        written.client_ca = self.written.client_ca.as_ref().map(|ca| ca.read_again_or_keep(&mut failures));
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

impl Server {
    /// For these settings; `protocols` may be chosen by ALPN, the preferred one first.
    pub fn new(settings: &Settings, protocols: &'static [&'static [u8]]) -> Self {
        let builder = provider::server().with_client_cert_verifier(Arc::clone(&settings.clients));
        let mut config = builder.with_cert_resolver(Arc::new(ByName::new(&settings.identities)));
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // Without randomness there are no tickets; sessions are kept then.
        if let Ok(ticketer) = Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self {
            settings: settings.clone(),
            protocols,
            acceptor: TlsAcceptor::from(Arc::<ServerConfig>::new(config)),
        }
    }

    /// Whether it is the server for just these settings, what their files hold included.
    pub fn serves(&self, settings: &Settings, protocols: &'static [&'static [u8]]) -> bool {
        self.protocols == protocols && self.settings == *settings
    }

    /// TLS over `stream`, as its server.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn accept(&self, stream: Transport) -> Result<Accepted, Denied> {
        let accepted = self.acceptor.accept(stream).await.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Denied::Left,
            _ => Denied::Failed(words(&error)),
        })?;
        let resumed = accepted.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Accepted { stream: Transport::Tls(Box::new(accepted.into())), resumed })
    }
}

/// Chooses the certificate by the name that the client asks for.
#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn new(identities: &[Identity]) -> Self {
        let mut names = HashMap::new();
        for identity in identities {
            for name in &identity.cert.content.leaf.names {
                if let Name::Dns(name) = name {
                    names.entry(name.clone()).or_insert_with(|| Arc::clone(identity.certified()));
                }
            }
        }
        let default = identities.first().map(|identity| Arc::clone(identity.certified()));
        Self { names, default }
    }

    fn choose(&self, asked: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = asked.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wildcard = || Some(format!("*.{}", name.split_once('.')?.1));
            self.names.get(&name).or_else(|| self.names.get(&wildcard()?))
        });
        named.or(self.default.as_ref())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).cloned()
    }
}

impl TryFrom<Written> for Settings {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let mut identities = Vec::with_capacity(1 + written.certificates.len());
        match (&written.cert, &written.key) {
            (Some(cert), Some(key)) => identities.push(Identity::new(cert.clone(), key.clone())?),
            (None, None) => {}
            (Some(_), None) => return Err("`cert` stands without `key`; add `key = \"…\"`".to_owned()),
            (None, Some(_)) => return Err("`key` stands without `cert`; add `cert = \"…\"`".to_owned()),
        }
        identities.extend(written.certificates.iter().cloned());
        if identities.is_empty() {
            return Err("`tls` has no certificate; add `cert = \"…\"` and `key = \"…\"`".to_owned());
        }
        let clients: Arc<dyn ClientCertVerifier> = match &written.client_ca {
            None => Arc::new(NoClientAuth),
            Some(ca) => {
                let roots = Arc::clone(&ca.content.0);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider::provider()))
                        .build();
                verifier.map_err(|error| {
                    format!("`client_ca` ({}) cannot be used: {error}; check the file", ca.path)
                })?
            }
        };
        Ok(Self { written, identities, clients })
    }
}

impl From<Settings> for Written {
    fn from(settings: Settings) -> Self {
        settings.written
    }
}

impl JsonSchema for Settings {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ListenerTls".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}
