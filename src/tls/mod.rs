//! TLS 1.2 and 1.3, in both roles, by rustls with ring: certificates from files, the handshake, and what was wrong
//! with which certificate.
//!
//! Files are read while the configuration is read (`files`), so settings that parsed hold certificates that fit,
//! and a mistake stands at its key. When the files change, the settings are read again by themselves
//! (`client::Settings::read_again`, `server::Settings::read_again`); who does that when is `runtime`'s affair.
//!
//! After the handshake a connection is a [`crate::transport::Transport`] like any other. An idle one of a client costs
//! 12 KiB, of which 4.5 are the connection's own (2,000 of them, TLS 1.2 and 1.3 alike).
//!
//! Not here: which upstream or listener speaks it (`upstream`, `proxy`).

pub mod certificate;
pub mod client;
pub mod error;
pub mod files;
pub mod identity;
pub mod name;
mod provider;
mod roots;
pub mod server;
mod verify;

#[cfg(test)]
#[path = "../../tests/stories/support/certificates.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the stories, which use other parts")]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
