//! Files with certificates and keys, in PEM.
//!
//! A setting that names such a file is the file's content: it is read while the configuration is read, so a value
//! that parsed needs no second look, and what is wrong with a file stands at the key that names it. Rejected: paths in
//! the settings and the content beside them; then a snapshot could meet another content than the one that was checked.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::certificate::Certificate;

/// The largest file that is read, in bytes: the bundles of all public authorities have a quarter of it.
const MAX_SIZE: u64 = 1 << 20;

/// A file of the configuration, and what it held when it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct File<T> {
    /// As the configuration writes it.
    pub path: String,
    /// What it held.
    pub content: T,
}

/// What a file in PEM can hold.
pub trait Content: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong, in words that go on after the file's path, with the cure behind a `;`.
    fn of_pem(pem: &[u8]) -> Result<Self, String>;
}

/// A certificate and those that it was issued by, from the leaf on.
#[derive(Clone, PartialEq, Eq)]
pub struct Chain {
    /// As they are sent; at least one.
    pub certificates: Vec<CertificateDer<'static>>,
    /// What the first one says.
    pub leaf: Certificate,
}

/// A private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub Arc<PrivateKeyDer<'static>>);

/// Certificate authorities that are trusted.
#[derive(Clone)]
pub struct Authorities(pub Arc<RootCertStore>);

impl<T: Content> File<T> {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// What is wrong with it, with the cure behind a `;`.
    pub fn read(path: String) -> Result<Self, String> {
        let pem = bytes(Path::new(&path)).map_err(|why| format!("{path} {why}"))?;
        let content = T::of_pem(&pem).map_err(|why| format!("{path} {why}"))?;
        Ok(Self { path, content })
    }
}

impl<T: Content + Clone> File<T> {
    /// The file as it is now; as it was where it is bad, and why.
    pub(super) fn read_again_or_keep(&self, failures: &mut Vec<String>) -> Self {
        Self::read(self.path.clone()).unwrap_or_else(|why| {
            failures.push(why);
            self.clone()
        })
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| {
        let cure = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "let the user that runs Outrigger read it",
            _ => "check that it is a readable file",
        };
        format!("cannot be read: {error}; {cure}")
    };
    let about = std::fs::metadata(path).map_err(cannot)?;
    // A pipe would keep whoever opens it waiting for its other end.
    if !about.is_file() {
        return Err("is not a regular file; name a file in PEM".to_owned());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err("is larger than 1 MiB; name a file in PEM".to_owned());
    }
    Ok(bytes)
}

impl Content for Chain {
    fn of_pem(pem: &[u8]) -> Result<Self, String> {
        let certificates = certificates(pem)?;
        let leaf = certificates.first().and_then(|leaf| Certificate::read(leaf));
        let leaf = leaf.ok_or("holds something that is no X.509 certificate; make it anew")?;
        Ok(Self { certificates, leaf })
    }
}

impl Content for Authorities {
    fn of_pem(pem: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(certificates(pem)?);
        if taken == 0 {
            return Err("holds no certificate that can be an authority; name the authority's own".to_owned());
        }
        Ok(Self(Arc::new(roots)))
    }
}

impl Content for Key {
    fn of_pem(pem: &[u8]) -> Result<Self, String> {
        match PrivateKeyDer::from_pem_slice(pem) {
            Ok(key) => Ok(Self(Arc::new(key))),
            Err(_) if has_section(pem, "ENCRYPTED") => {
                Err("holds an encrypted key; decrypt it: `openssl pkey -in FILE -out NEW`".to_owned())
            }
            Err(_) if has_section(pem, "CERTIFICATE-----") => {
                Err("holds a certificate, but no private key; name the key's own file".to_owned())
            }
            Err(_) if has_section(pem, "PRIVATE KEY-----") => {
                Err("holds a key that is cut short or damaged; copy it again".to_owned())
            }
            Err(_) => Err(no_pem(pem, "private key")),
        }
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) if has_section(pem, "PRIVATE KEY-----") => {
            Err("holds a private key, but no certificate; name the certificate's own file".to_owned())
        }
        Ok(_) => Err(no_pem(pem, "certificate")),
        Err(_) => Err("holds a certificate that is cut short or damaged; copy it again".to_owned()),
    }
}

fn has_section(pem: &[u8], title: &str) -> bool {
    let mut lines = pem.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    lines
        .any(|line| (line.starts_with("-----BEGIN") || line.starts_with("Proc-Type")) && line.contains(title))
}

fn no_pem(pem: &[u8], what: &str) -> String {
    // DER begins with a sequence of a length that takes two bytes.
    let is_der = pem.starts_with(&[0x30, 0x82]);
    let form = if is_der { " (it seems to be DER)" } else { "" };
    format!("holds no {what} in PEM{form}; it must have a line \"-----BEGIN …-----\"")
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.0.roots == other.0.roots
    }
}

impl Eq for Authorities {}

impl<T> fmt::Debug for File<T> {
    /// The path alone: keys are secret, and certificates say nothing to the eye.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

impl<'de, T: Content> Deserialize<'de> for File<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        File::read(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<T> Serialize for File<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.path)
    }
}

impl<T> JsonSchema for File<T> {
    fn schema_name() -> Cow<'static, str> {
        "PemFile".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "path of a file in PEM" })
    }
}
