//! What went wrong on a TLS connection, in words for whoever has to mend it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a handshake failed.
pub fn words(error: &io::Error) -> String {
    match of_rustls(error) {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer closed during the handshake".to_owned()
        }
        None => error.to_string(),
    }
}

/// Why the peer refused us once the handshake had ended for our side, if it did: in TLS 1.3 a server looks at a
/// client's certificate only then. What it had been sent, it has not processed.
pub fn refusal(error: &io::Error) -> Option<String> {
    use AlertDescription as Alert;
    match of_rustls(error)? {
        error @ Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::HandshakeFailure,
        ) => Some(of_tls(error)),
        _ => None,
    }
}

fn of_rustls(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn of_tls(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => format!("the peer refused: {}", of_alert(*alert)),
        Error::InvalidCertificate(CertificateError::Other(refused)) => refused.to_string(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the peer's certificate comes from an unknown authority".to_owned()
        }
        Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
        Error::PeerIncompatible(why) => format!("no common ground with the peer: {why:?}"),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "the peer does not speak TLS".to_owned(),
        error => error.to_string(),
    }
}

/// What a peer's alert means (RFC 8446 §6.2).
fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    let meaning = match alert {
        Alert::CertificateRequired => "it wants a client certificate",
        Alert::UnknownCA => "it does not trust the authority of our certificate",
        Alert::CertificateExpired => "our certificate has expired for it",
        Alert::CertificateRevoked => "our certificate was revoked",
        Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::UnsupportedCertificate
        | Alert::AccessDenied => "it does not take our certificate",
        Alert::UnrecognisedName => "it has no certificate for the name that was asked for",
        Alert::NoApplicationProtocol => "it speaks none of the protocols that were offered (ALPN)",
        Alert::ProtocolVersion => "it speaks neither TLS 1.2 nor TLS 1.3",
        Alert::HandshakeFailure => "there is no common ground, or it wants a client certificate",
        _ => return format!("alert {alert:?}"),
    };
    format!("{meaning} (alert {alert:?})")
}
