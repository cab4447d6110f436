//! Unix sockets in a harness that speaks TCP: what connects to the one end is passed on to the other, byte by byte.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// A relay; ends when dropped.
pub struct Relay {
    relaying: JoinHandle<()>,
    /// The Unix socket's path.
    pub path: PathBuf,
    /// The address of TCP.
    pub address: SocketAddr,
}

impl Relay {
    /// What connects to the socket at `path` is connected with `address`.
    pub fn to(address: SocketAddr, path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("a free path");
        let relaying = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(address).await {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { relaying, path, address }
    }

    /// What connects to `address` is connected with the socket at `path`.
    pub async fn from(path: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let path = path.to_owned();
        let to = path.clone();
        let relaying = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                tokio::spawn(async move {
                    if let Ok(mut far) = UnixStream::connect(&to).await {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { relaying, path, address }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.relaying.abort();
    }
}
