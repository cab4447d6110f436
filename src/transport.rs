//! The stream of bytes below a protocol: TCP or a Unix socket, in clear text or in TLS.
//!
//! An enum and not a trait object or a type parameter: the kinds are few and known, the path stays free of
//! indirect calls, and who speaks a protocol over it need not know which kind it is.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::{ConnectionCommon, SideData};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

pub mod proxy_protocol;

/// What stands for the address of a client at a Unix socket, and of the listener that it came to: they have none. Such
/// a client is on this machine, so it counts as loopback; port 0 is nobody's.
pub const UNIX_PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// The longest path that a Unix socket may have (`sun_path`, without its end).
const MAX_UNIX_PATH: usize = 107;

/// The path of a Unix socket.
///
/// # Errors
/// What cannot be one, with the cure.
pub fn unix_path(path: &str) -> Result<PathBuf, String> {
    let fits = path.starts_with('/') && path.len() <= MAX_UNIX_PATH && !path.contains('\0');
    fits.then(|| path.into()).ok_or_else(|| {
        format!("\"unix:{path}\" is not a socket; write \"unix:/path\", with at most {MAX_UNIX_PATH} bytes")
    })
}

/// A connected stream of bytes.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over one of the others, after the handshake. Boxed: it is large, and most connections are without.
    Tls(Box<TlsStream<Transport>>),
}

/// How long the kernel waits for the other end of a TCP connection: what has vanished without a word (a machine that
/// lost its power, a router that forgot) is noticed though nobody writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long what was sent may stay unacknowledged, or unsent because the other end does not read. The kernel
    /// alone would try for a quarter of an hour. Longer than `timeout.idle` should be, which ends what does not move
    /// and says so.
    user_timeout: Duration,
}

/// A connection on which nothing has come for so long is asked whether it still stands.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// So many without an answer, and it has ended.
const KEEPALIVE_COUNT: u32 = 3;

impl Patience {
    /// With an endpoint: 2 minutes.
    pub const UPSTREAM: Self = Self { user_timeout: Duration::from_secs(120) };
    /// With a client, which may be a slow reader: 5 minutes.
    pub const CLIENT: Self = Self { user_timeout: Duration::from_secs(300) };

    /// Sets it for a socket of TCP. Connections that are accepted inherit it from the socket that listens.
    ///
    /// # Errors
    /// As the socket's.
    pub fn set(self, socket: &SockRef<'_>) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_COUNT);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))
    }
}

impl Transport {
    /// The kernel's socket, for its options.
    pub fn socket(&self) -> SockRef<'_> {
        match self {
            Transport::Tcp(stream) => stream.into(),
            Transport::Unix(stream) => stream.into(),
            Transport::Tls(stream) => stream.get_ref().0.socket(),
        }
    }

    /// The near end's address; [`UNIX_PEER`] where it has none.
    ///
    /// # Errors
    /// As the socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Transport::Tcp(stream) => stream.local_addr(),
            Transport::Unix(_) => Ok(UNIX_PEER),
            Transport::Tls(stream) => stream.get_ref().0.local_addr(),
        }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }

    /// The protocol that both ends settled on by ALPN, if they did.
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Transport::Tcp(_) | Transport::Unix(_) => None,
            Transport::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Whether bytes that were taken are kept here and wait for [`AsyncWrite::poll_flush`]. Only TLS keeps any.
    pub fn holds_unwritten(&self) -> bool {
        match self {
            Transport::Tcp(_) | Transport::Unix(_) => false,
            Transport::Tls(stream) => stream.get_ref().1.wants_write(),
        }
    }

    /// Whether the peer is still there and has sent nothing, as the kernel knows it. What TLS says for itself, such as a
    /// ticket for the next session, is taken in and counts for nothing.
    pub fn is_silent(&mut self) -> bool {
        match self {
            Transport::Tcp(_) | Transport::Unix(_) => {
                let mut byte = [std::mem::MaybeUninit::uninit()];
                matches!(self.socket().peek(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Transport::Tls(stream) => match &mut **stream {
                TlsStream::Client(stream) => {
                    let (below, session) = stream.get_mut();
                    is_session_silent(below, session)
                }
                TlsStream::Server(stream) => {
                    let (below, session) = stream.get_mut();
                    is_session_silent(below, session)
                }
            },
        }
    }
}

/// [`Transport::is_silent`] of TLS over `below`: reads what is there past the runtime, which may not have heard of it.
fn is_session_silent<S: SideData>(below: &Transport, session: &mut ConnectionCommon<S>) -> bool {
    let socket = below.socket();
    loop {
        match session.read_tls(&mut &*socket) {
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            Ok(0) => return false,
            Ok(_) => match session.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                _ => return false,
            },
        }
    }
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Self {
        Transport::Tcp(stream)
    }
}

impl From<UnixStream> for Transport {
    fn from(stream: UnixStream) -> Self {
        Transport::Unix(stream)
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Transport::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}
