//! What one shows to a peer: a certificate with its key, which fit.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::files::{Chain, File, Key};
use super::provider::provider;

/// `{ cert = "…", key = "…" }`: a certificate and its key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Identity {
    /// The certificate's file.
    pub cert: File<Chain>,
    key: File<Key>,
    certified: Arc<CertifiedKey>,
}

/// The same, as it is written.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// File with the certificate and those that it was issued by, in PEM.
    cert: File<Chain>,
    /// File with the certificate's private key, in PEM.
    key: File<Key>,
}

impl Identity {
    /// The certificate in `cert` with the key in `key`.
    ///
    /// # Errors
    /// If the key is not the certificate's, or cannot be used; with the cure behind a `;`.
    pub fn new(cert: File<Chain>, key: File<Key>) -> Result<Self, String> {
        let provider: &CryptoProvider = provider();
        let certified =
            CertifiedKey::from_der(cert.content.certificates.clone(), key.content.0.clone_key(), provider);
        match certified {
            Ok(certified) => Ok(Self { cert, key, certified: Arc::new(certified) }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(format!(
                "`key` ({}) does not belong to the certificate in `cert` ({}), {}; give the key that this \
                 certificate was made with",
                key.path, cert.path, cert.content.leaf
            )),
            Err(error) => Err(format!(
                "`key` ({}) cannot be used: {error}; give an RSA key of 2048 bits or more, one of ECDSA P-256, P-384 \
                 or P-521, or of Ed25519",
                key.path
            )),
        }
    }

    /// Shows it to every server that asks.
    pub(super) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified)))
    }

    /// As rustls takes it.
    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Both files as they are now; as they were where they are bad or do not fit, and why.
    pub(super) fn read_again_or_keep(&self, failures: &mut Vec<String>) -> Self {
        let read = || Self::new(File::read(self.cert.path.clone())?, File::read(self.key.path.clone())?);
        read().unwrap_or_else(|why| {
            failures.push(why);
            self.clone()
        })
    }

    /// The paths of its files.
    pub(super) fn paths(&self) -> [&str; 2] {
        [&self.cert.path, &self.key.path]
    }

    /// Its two files.
    pub(super) fn files(&self) -> (File<Chain>, File<Key>) {
        (self.cert.clone(), self.key.clone())
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.cert == other.cert && self.key == other.key
    }
}

impl TryFrom<Written> for Identity {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        Identity::new(written.cert, written.key)
    }
}

impl From<Identity> for Written {
    fn from(identity: Identity) -> Self {
        Self { cert: identity.cert, key: identity.key }
    }
}

impl JsonSchema for Identity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Certificate".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Written::json_schema(generator)
    }
}
