//! What a certificate says: whose it is, who issued it, its names, and until when it is valid. In words too, for the
//! log and for who has to find the certificate that is meant.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use super::name::Name;

/// How long before its end a certificate is worth a warning: two weeks, what renewals that work leave ample room for.
pub const SOON: Duration = Duration::from_secs(14 * 86_400);

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name, or all of the subject, or nothing.
    subject: String,
    /// The same of the issuer.
    issuer: String,
    /// Its subject alternative names. The common name is none (RFC 9525 §6.2).
    pub names: Vec<Name>,
    /// Seconds since 1970, until when it is valid.
    pub not_after: i64,
    /// Seconds since 1970, from when it is valid.
    not_before: i64,
}

/// How long a certificate is still good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// For longer than [`SOON`].
    Good,
    /// Not yet.
    NotYet,
    /// It ends within [`SOON`].
    EndsSoon,
    /// It has ended.
    Expired,
}

impl Certificate {
    /// Reads a certificate; none if it is not one.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names).filter_map(name);
        Some(Self {
            subject: common_name(certificate.subject()),
            issuer: common_name(certificate.issuer()),
            names: names.collect(),
            not_after: certificate.validity().not_after.timestamp(),
            not_before: certificate.validity().not_before.timestamp(),
        })
    }

    /// How long it is still good for at `now`.
    pub fn validity(&self, now: SystemTime) -> Validity {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        match self.not_after - now {
            ..0 => Validity::Expired,
            _ if now < self.not_before => Validity::NotYet,
            left if left < SOON.as_secs() as i64 => Validity::EndsSoon,
            _ => Validity::Good,
        }
    }

    /// What is wrong with its time at `now`, in words that go on after the certificate; none if nothing is.
    pub fn complaint(&self, now: SystemTime) -> Option<String> {
        match self.validity(now) {
            Validity::Good => None,
            Validity::NotYet => Some(format!("is not valid before {}", date(self.not_before))),
            Validity::EndsSoon => Some(format!("expires on {}", date(self.not_after))),
            Validity::Expired => Some(format!("expired on {}", date(self.not_after))),
        }
    }

    /// Its names in words, at most a few of them.
    pub fn names_in_words(&self) -> String {
        const SHOWN: usize = 5;
        let mut words: Vec<String> = self.names.iter().take(SHOWN).map(Name::to_string).collect();
        if self.names.len() > SHOWN {
            words.push(format!("{} more", self.names.len() - SHOWN));
        }
        if words.is_empty() { "no names".to_owned() } else { words.join(", ") }
    }
}

impl fmt::Display for Certificate {
    /// `"app.internal" (issued by "Internal CA")`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = if self.subject.is_empty() { self.names_in_words() } else { self.subject.clone() };
        write!(f, "{named:?} (issued by {:?})", self.issuer)
    }
}

/// A day, such as `2026-11-25`, in UTC.
pub fn date(seconds: i64) -> String {
    ASN1Time::from_timestamp(seconds)
        .map_or_else(|_| format!("second {seconds}"), |time| time.to_datetime().date().to_string())
}

fn name(name: &GeneralName<'_>) -> Option<Name> {
    match name {
        GeneralName::DNSName(text) => Some(Name::Dns(text.to_ascii_lowercase())),
        GeneralName::URI(text) => Some(Name::Uri((*text).to_owned())),
        GeneralName::RFC822Name(text) => Some(Name::Email((*text).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let ip = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            ip.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(Name::Ip)
        }
        _ => None,
    }
}

fn common_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().find_map(|name| name.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}
