//! Whether a server is the one that is meant: issued by a trusted authority, valid now, and of the right name.
//!
//! rustls' own verifier does the same with its own parts (`webpki`), but says neither which certificate it refused nor
//! who issued it, and knows no allowed names besides the one asked for.
//!
//! **Allowed names (`san`)** stand in place of the name that was asked for, as Envoy's `match_typed_subject_alt_names`:
//! one of the certificate's names must be one of them. The certificates of workloads often have no DNS name at all, but
//! a SPIFFE URI, and an endpoint's address would never match; who wants both lists the DNS name too. The authority and
//! the validity are checked in any case.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::certificate::{Certificate, date};
use super::name::Name;
use super::provider::provider;

/// Checks the certificates of servers.
#[derive(Debug)]
pub(super) struct Verifier {
    roots: Arc<RootCertStore>,
    allowed: Vec<Name>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Why a server's certificate was refused, in words.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Verifier {
    /// Trusts `roots`. Where there are `allowed` names, they stand in place of the one that is asked for.
    pub(super) fn new(roots: Arc<RootCertStore>, allowed: Vec<Name>) -> Self {
        Self { roots, allowed, algorithms: provider().signature_verification_algorithms }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        if self.allowed.is_empty() {
            return verify_server_name(&parsed, server_name);
        }
        let says = Certificate::read(leaf).map(|certificate| certificate.names).unwrap_or_default();
        let is_allowed = says.iter().any(|name| self.allowed.iter().any(|allowed| name.covers(allowed)));
        if is_allowed { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    /// Why `leaf` was refused with `error`.
    fn words(&self, leaf: &CertificateDer<'_>, server_name: &ServerName<'_>, error: &Error) -> String {
        let Some(certificate) = Certificate::read(leaf) else {
            return "the server's certificate is not encoded as X.509".to_owned();
        };
        let has = certificate.names_in_words();
        let why = match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::ExpiredContext { not_after, .. } => {
                    let by = expired(certificate.not_after, not_after.as_secs() as i64);
                    format!("{by} on {}", date(not_after.as_secs() as i64))
                }
                CertificateError::NotValidYetContext { not_before, .. } => {
                    format!("is not valid before {}", date(not_before.as_secs() as i64))
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("is not for {:?}: it has {has}", server_name.to_str())
                }
                CertificateError::ApplicationVerificationFailure => {
                    let allowed: Vec<String> = self.allowed.iter().map(Name::to_string).collect();
                    format!("has none of the allowed names ({}): it has {has}", allowed.join(", "))
                }
                CertificateError::UnknownIssuer => "comes from an unknown authority".to_owned(),
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                    "was not issued for servers (its extended key usage)".to_owned()
                }
                CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                    "is that of an authority, which a server must not show as its own".to_owned()
                }
                error => format!("is not valid: {error}"),
            },
            error => format!("is not valid: {error}"),
        };
        format!("the server's certificate {certificate} {why}")
    }
}

/// Which certificate of a chain has expired: the leaf, if its end is the one that was met.
fn expired(leaf: i64, met: i64) -> &'static str {
    if leaf == met { "expired" } else { "has an issuer in its chain that expired" }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, intermediates, server_name, now).map(|()| ServerCertVerified::assertion()).map_err(
            |error| {
                let refused = Refused(self.words(leaf, server_name, &error));
                CertificateError::Other(OtherError(Arc::new(refused))).into()
            },
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
