//! TLS at both ends of a story: a front that a scripted upstream stands behind, and a tunnel that a client talks
//! through. So who scripts and who looks need not know of TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::{Authority, Issued};
use super::http2_upstream::Http2Upstream;
use super::{Client, Upstream, eventually};

/// Speaks TLS to whoever connects, and passes it on to an upstream in clear text.
pub struct Front(Between);

/// Speaks clear text to whoever connects, and passes it on in TLS.
pub struct Tunnel(Between);

/// What stands between, and what it has seen.
struct Between {
    address: SocketAddr,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
    accepting: JoinHandle<()>,
}

/// A handshake that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// It went on with an earlier session.
    pub resumed: bool,
    /// What ALPN settled on.
    pub alpn: Option<String>,
    /// The name that was asked for.
    pub asked_for: Option<String>,
    /// The certificates that the other side has shown, as DER.
    pub shown: Vec<CertificateDer<'static>>,
}

/// A server's configuration, with this certificate, for HTTP/1.1; clients need a certificate of `clients`, if there is
/// such an authority.
pub fn server(issued: &Issued, clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().expect("ring has both");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let roots = Arc::new(roots(authority));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.expect("an authority"))
        }
    };
    let (chain, key) = parts(issued);
    let mut config = builder.with_single_cert(chain, key).expect("they fit");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new().expect("randomness");
    config
}

/// A client's configuration that trusts `authority`, shows `issued`, if any, and offers `alpn`.
pub fn client(authority: &Authority, issued: Option<&Issued>, alpn: &[&str]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("ring has both");
    let builder = builder.with_root_certificates(roots(authority));
    let mut config = match issued.map(parts) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("they fit"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

fn roots(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let pem = authority.pem();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("an authority");
    roots
}

fn parts(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).expect("PEM");
    (vec![cert], PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM"))
}

/// The certificate as it is shown in a handshake.
pub fn der(issued: &Issued) -> CertificateDer<'static> {
    parts(issued).0.remove(0)
}

impl Front {
    /// In front of `upstream`.
    pub async fn before(upstream: &Upstream, config: ServerConfig) -> Self {
        Self::before_address(upstream.address(), config).await
    }

    /// In front of an upstream of HTTP/2, which is all that ALPN settles for.
    pub async fn before_http2(upstream: &Http2Upstream, mut config: ServerConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::before_address(upstream.address(), config).await
    }

    async fn before_address(upstream: SocketAddr, config: ServerConfig) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let between = Between::start(move |near, seen| {
            let acceptor = acceptor.clone();
            async move {
                // Whoever is not let in has been told why.
                let Ok(mut near) = acceptor.accept(near).await else { return };
                let session = near.get_ref().1;
                seen.lock().expect("no panic").push(Handshake {
                    resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
                    alpn: session.alpn_protocol().map(text),
                    asked_for: session.server_name().map(str::to_owned),
                    shown: session.peer_certificates().unwrap_or_default().to_vec(),
                });
                relay(&mut near, upstream).await;
            }
        });
        Self(between.await)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// All handshakes that came to their end.
    pub fn handshakes(&self) -> Vec<Handshake> {
        self.0.handshakes.lock().expect("no panic").clone()
    }

    /// Waits until there were `count` handshakes, and says if there were more.
    pub async fn has_seen(&self, count: usize) {
        eventually(&format!("{count} handshakes"), async || self.handshakes().len() >= count).await;
        assert_eq!(self.handshakes().len(), count, "{:#?}", self.handshakes());
    }
}

impl Tunnel {
    /// To `address`, whose name is `name`.
    pub async fn to(address: SocketAddr, name: &str, config: ClientConfig) -> Self {
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let between = Between::start(move |mut near, seen| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let Ok(far) = TcpStream::connect(address).await else { return };
                // A server that is refused, or refuses, shows as the end of the connection.
                let Ok(mut far) = connector.connect(name, far).await else { return };
                let session = far.get_ref().1;
                seen.lock().expect("no panic").push(Handshake {
                    resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
                    alpn: session.alpn_protocol().map(text),
                    asked_for: None,
                    shown: session.peer_certificates().unwrap_or_default().to_vec(),
                });
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
        Self(between.await)
    }

    /// A new connection through it.
    pub async fn connect(&self) -> Client {
        Client::connect(self.0.address).await
    }

    /// The handshake with this number, from 0, as soon as it is there.
    pub async fn handshake(&self, number: usize) -> Handshake {
        let all = || self.0.handshakes.lock().expect("no panic").clone();
        eventually("the handshake comes to its end", async || all().len() > number).await;
        all().swap_remove(number)
    }
}

impl Between {
    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, Arc<Mutex<Vec<Handshake>>>) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let handshakes = Arc::<Mutex<Vec<Handshake>>>::default();
        let seen = Arc::clone(&handshakes);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("an option of every socket");
                tokio::spawn(serve(stream, Arc::clone(&seen)));
            }
        });
        Self { address, handshakes, accepting }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes on what comes, in both directions. An upstream that is reset cuts the other side too.
async fn relay(near: &mut (impl AsyncRead + AsyncWrite + Unpin), upstream: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(upstream).await else { return };
    if copy_bidirectional(near, &mut far).await.is_ok() {
        let _ = near.shutdown().await;
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
