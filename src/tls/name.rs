//! The names that a certificate has, and that a configuration asks for: DNS names, addresses, URIs.

use std::fmt;
use std::net::IpAddr;

use rustls::pki_types::ServerName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A subject alternative name: of a certificate, or one that is allowed (`san`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Name {
    /// A DNS name in lower case; in a certificate it may begin with `*.`.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
    /// A URI, such as the `spiffe://…` of a workload.
    Uri(String),
    /// An address of mail.
    Email(String),
}

/// The name that a server must have: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(pub ServerName<'static>);

impl Name {
    /// Whether this name of a certificate is the `wanted` one. Of DNS names `*.` stands for one label (RFC 6125
    /// §6.4.3); URIs are the same byte by byte.
    pub fn covers(&self, wanted: &Name) -> bool {
        match (self, wanted) {
            (Name::Dns(pattern), Name::Dns(name)) => dns_covers(pattern, name),
            _ => self == wanted,
        }
    }
}

/// Whether the DNS name `pattern` of a certificate stands for `name`, which is in lower case.
pub fn dns_covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => pattern == name,
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let is_dns =
            |name: &str| ServerName::try_from(name).is_ok_and(|name| matches!(name, ServerName::DnsName(_)));
        if let Ok(ip) = text.parse() {
            return Ok(Name::Ip(ip));
        }
        match text.split_once("://") {
            Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() => Ok(Name::Uri(text)),
            None if text.split_once('@').is_some_and(|(local, host)| !local.is_empty() && is_dns(host)) => {
                Ok(Name::Email(text))
            }
            None if is_dns(&text) => Ok(Name::Dns(text.to_ascii_lowercase())),
            _ => Err(format!(
                "{text:?} is no name that a certificate can have; give a DNS name, an IP address or a URI such as \
                 \"spiffe://example.org/app\""
            )),
        }
    }
}

impl TryFrom<String> for Host {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        ServerName::try_from(text).map(Host).map_err(|_| {
            "this is no name of a server; give a DNS name or an IP address, without a port".to_owned()
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Dns(text) | Name::Uri(text) | Name::Email(text) => f.write_str(text),
            Name::Ip(ip) => ip.fmt(f),
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.to_string()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> String {
        host.0.to_str().into_owned()
    }
}

impl JsonSchema for Name {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SubjectName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "a DNS name, an IP address or a URI" })
    }
}

impl JsonSchema for Host {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServerName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "a DNS name or an IP address" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text.to_owned()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_certificate_covers_the_names_that_it_says() {
        #[rustfmt::skip]
        let cases = [
            // why                             the certificate says                 wanted                        covered
            ("the same",                       Name::Dns("app.internal".into()),    "app.internal",               true),
            ("case does not matter",           Name::Dns("app.internal".into()),    "App.Internal",               true),
            ("another",                        Name::Dns("app.internal".into()),    "b.internal",                 false),
            ("a star is one label",            Name::Dns("*.example.org".into()),   "a.example.org",              true),
            ("not two",                        Name::Dns("*.example.org".into()),   "a.b.example.org",            false),
            ("not none",                       Name::Dns("*.example.org".into()),   "example.org",                false),
            ("an address",                     Name::Ip([10, 0, 0, 1].into()),      "10.0.0.1",                   true),
            ("a workload",                     Name::Uri("spiffe://a/app".into()),  "spiffe://a/app",             true),
            ("a URI is no prefix",             Name::Uri("spiffe://a/app".into()),  "spiffe://a/app/b",           false),
            ("URIs have case",                 Name::Uri("spiffe://a/app".into()),  "spiffe://a/App",             false),
            ("kinds do not mix",               Name::Uri("spiffe://a".into()),      "a",                          false),
        ];
        for (why, certificate, wanted, covered) in cases {
            assert_eq!(certificate.covers(&name(wanted)), covered, "{why}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "a b", "*.example.org", "spiffe://", "://a", "a:80", "@b"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert_eq!(name("ops@example.org"), Name::Email("ops@example.org".into()));
        assert_eq!(name("::1"), Name::Ip(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])));
        assert!(Host::try_from("a:80".to_owned()).is_err());
    }
}
