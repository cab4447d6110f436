//! The cryptography below, and the versions above it: ring, TLS 1.2 and 1.3.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, WantsVerifier};

/// The versions that are spoken; older ones are broken (RFC 8996).
static VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// Ring's algorithms.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    &PROVIDER
}

/// The beginning of a client's configuration.
pub(super) fn client() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()));
    builder.with_protocol_versions(&VERSIONS).expect("ring has cipher suites for both versions")
}

/// The beginning of a server's configuration.
pub(super) fn server() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider()));
    builder.with_protocol_versions(&VERSIONS).expect("ring has cipher suites for both versions")
}
