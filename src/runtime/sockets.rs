//! Listening sockets: one for each address, shared by all workers.
//!
//! Each worker waits on its own duplicate of the one descriptor. Rejected: `SO_REUSEPORT`, where each worker
//! has a socket of its own: there a second process takes the same port without an error, and closing one
//! worker's socket resets the connections that wait in its backlog. Here a taken port is an error that says
//! which and what to do, and a connection is lost to nobody before the last duplicate is closed.
//!
//! A Unix socket is a file that outlives its process: one that nobody listens on is replaced, any other is an error;
//! at the end it is removed, if it is still the one that was made.
//!
//! Not here: who accepts (`accept`), and what happens with a connection (`proxy`).

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpStream, UnixStream};

use crate::proxy::listener::{self, Address, Direction};
use crate::transport::{Patience, Transport, UNIX_PEER};

/// Connections that the kernel completes and holds while all workers are busy. The kernel bounds it by
/// `net.core.somaxconn` (4096 on Linux since 5.4).
const BACKLOG: i32 = 4096;

/// One opening of a listener, for the workers: names may be given anew, this never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketId(u64);

impl SocketId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// A listening socket and whom it listens for.
#[derive(Debug)]
pub(super) struct Open {
    /// Tells it apart from all others.
    pub(super) id: SocketId,
    /// The listener's name; connections ask for their settings by it.
    pub(super) name: Arc<str>,
    /// Who calls whom; decides how long it serves while draining.
    pub(super) direction: Direction,
    /// What the configuration says.
    asked: Address,
    /// Where it really listens: the port that the kernel chose where `:0` was asked.
    pub(super) address: Address,
    socket: Listening,
    /// That of a Unix socket, shared with whoever takes the listener over under another name.
    file: Option<Arc<SocketFile>>,
}

/// The file of a Unix socket; removed when dropped.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have put its own in its place.
    id: (u64, u64),
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listening {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// A connection that was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixStream),
}

/// Why an address cannot be listened on, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({what}): {cause}")]
pub struct BindError {
    /// `listener "NAME"`, `admin.address` or `admin.metrics_address`.
    what: String,
    address: Address,
    cause: String,
    source: io::Error,
}

impl Open {
    /// Opens what `settings` asks for.
    pub(super) fn new(settings: &listener::Settings) -> Result<Self, BindError> {
        let name = settings.name();
        let what = format!("listener {name:?}");
        let (socket, address, file) = match &settings.address {
            Address::Tcp(address) => {
                let (socket, address) = bind(*address, &what)?;
                (Listening::Tcp(socket), Address::Tcp(address), None)
            }
            Address::Unix(path) => {
                let (socket, file) =
                    open_unix(path).map_err(|source| BindError::new(&what, &settings.address, source))?;
                (Listening::Unix(socket), settings.address.clone(), Some(Arc::new(file)))
            }
        };
        Ok(Self {
            id: SocketId::next(),
            name: name.into(),
            direction: settings.direction,
            asked: settings.address.clone(),
            address,
            socket,
            file,
        })
    }

    /// Another descriptor of the same socket, for one worker.
    pub(super) fn duplicate(&self) -> Result<Listening, BindError> {
        let duplicate = match &self.socket {
            Listening::Tcp(socket) => socket.try_clone().map(Listening::Tcp),
            Listening::Unix(socket) => socket.try_clone().map(Listening::Unix),
        };
        duplicate
            .map_err(|source| BindError::new(&format!("listener {:?}", self.name), &self.address, source))
    }

    /// Whether it is what `settings` asks for, so that the socket can stay.
    ///
    /// The name counts too: connections find their settings by it, so those of a renamed listener have to go
    /// like those of a removed one; but see [`Open::renamed`].
    pub(super) fn serves(&self, settings: &listener::Settings) -> bool {
        self.asked == settings.address && *self.name == *settings.name()
    }

    /// The same, as `settings` which it serves has it now.
    pub(super) fn updated(self, settings: &listener::Settings) -> Self {
        Self { direction: settings.direction, ..self }
    }

    /// The same socket under the name that `settings` gives it: a renamed listener stays open.
    pub(super) fn renamed(&self, settings: &listener::Settings) -> Result<Self, BindError> {
        Ok(Self {
            id: SocketId::next(),
            name: settings.name().into(),
            direction: settings.direction,
            asked: self.asked.clone(),
            address: self.address.clone(),
            socket: self.duplicate()?,
            file: self.file.clone(),
        })
    }
}

impl BindError {
    fn new(what: &str, address: &Address, source: io::Error) -> Self {
        let cause = match address {
            Address::Tcp(address) => cause(&source, *address),
            Address::Unix(path) => unix_cause(&source, path),
        };
        Self { what: what.to_owned(), address: address.clone(), cause, source }
    }
}

impl Listening {
    /// Takes the next connection, and its client's address.
    pub(super) fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Listening::Tcp(socket) => socket.accept().map(|(stream, peer)| (Accepted::Tcp(stream), peer)),
            Listening::Unix(socket) => socket.accept().map(|(stream, _)| (Accepted::Unix(stream), UNIX_PEER)),
        }
    }
}

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listening::Tcp(socket) => socket.as_raw_fd(),
            Listening::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl Accepted {
    /// What every client connection gets: it does not block, and small writes are not delayed. The rest it has from
    /// the socket that listens.
    pub(super) fn prepared(self) -> io::Result<Transport> {
        match self {
            Accepted::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                TcpStream::from_std(stream).map(Transport::from)
            }
            Accepted::Unix(stream) => {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Transport::from)
            }
        }
    }
}

/// Binds and listens; the socket does not block.
///
/// `what` names the key that asked for it, for the error.
pub(super) fn bind(address: SocketAddr, what: &str) -> Result<(TcpListener, SocketAddr), BindError> {
    open(address).map_err(|source| BindError::new(what, &address.into(), source))
}

fn open(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of a predecessor that linger in TIME_WAIT do not count as a taken port; a listener does.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 too, whatever `net.ipv6.bindv6only` says; other IPv6 addresses do not care.
        socket.set_only_v6(address.ip() != IpAddr::from([0u16; 8]))?;
    }
    socket.bind(&address.into())?;
    Patience::CLIENT.set(&SockRef::from(&socket))?;
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from(socket);
    let address = socket.local_addr()?;
    Ok((socket, address))
}

fn open_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse || !is_left_behind(path, &address) {
            return Err(error);
        }
        fs::remove_file(path)?;
        socket.bind(&address)?;
    }
    let file = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), id: (file.dev(), file.ino()) };
    socket.listen(BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

/// Whether a process that is gone has left this socket behind. One that is there and busy does not refuse.
fn is_left_behind(path: &Path, address: &SockAddr) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connect = || Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?.connect(address);
    is_socket && connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_mine = |file: fs::Metadata| (file.dev(), file.ino()) == self.id;
        if fs::symlink_metadata(&self.path).is_ok_and(is_mine) {
            // Where it cannot be removed it is found to be left behind, the next time.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What went wrong with a Unix socket and the cure, in words.
fn unix_cause(error: &io::Error, path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    match error.kind() {
        io::ErrorKind::AddrInUse
            if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) =>
        {
            format!(
                "somebody listens there; stop it (`ss -lxp src {}` names it) or choose another path",
                path.display()
            )
        }
        io::ErrorKind::AddrInUse => {
            "a file that is no socket is there; move it, or choose another path".to_owned()
        }
        io::ErrorKind::NotFound => format!("there is no directory {directory}; create it"),
        io::ErrorKind::PermissionDenied => {
            format!(
                "no right to make a file in {directory}; change its owner or mode, or choose another path"
            )
        }
        _ => other_cause(error),
    }
}

/// What went wrong and the cure, in words.
fn cause(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} is taken; stop what holds it (`ss -ltnp 'sport = :{0}'` names it) or choose another port",
            address.port()
        ),
        io::ErrorKind::PermissionDenied if address.port() < 1024 => format!(
            "port {} needs the right to bind low ports; choose one from 1024 on or grant CAP_NET_BIND_SERVICE",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "no interface of this machine has {}; take one that `ip address` lists, or 127.0.0.1",
            address.ip()
        ),
        _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
            "this machine has no IPv6; use an IPv4 address".to_owned()
        }
        _ => other_cause(error),
    }
}

fn other_cause(error: &io::Error) -> String {
    if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        return "too many open files; raise the limit (`ulimit -n`, LimitNOFILE=)".to_owned();
    }
    error.to_string()
}

/// What a reload does with the sockets: who stays, who opens, who goes. Pure, and checked before anything
/// is touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// For each listener of the new configuration, in its order: what becomes of its socket.
    pub(super) wanted: Vec<Source>,
    /// Places in the old list that nobody wants any more.
    pub(super) gone: Vec<usize>,
}

/// Where a listener's socket comes from; a place is one in the old list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It is this one, unchanged.
    Kept(usize),
    /// The address of this one under another name.
    Renamed(usize),
    /// It must be opened.
    New,
}

/// Compares what is open with what `wanted` asks for.
pub(super) fn plan(open: &[Open], wanted: &[listener::Settings]) -> Plan {
    let mut left: Vec<usize> = (0..open.len()).collect();
    let mut take = |fits: &dyn Fn(&Open) -> bool| {
        let found = left.iter().position(|&place| fits(&open[place]))?;
        Some(left.remove(found))
    };
    // First all that stay as they are, so that none of them is taken for a renamed one.
    let kept: Vec<Option<usize>> =
        wanted.iter().map(|settings| take(&|open| open.serves(settings))).collect();
    let mut sources = Vec::with_capacity(wanted.len());
    for (settings, kept) in wanted.iter().zip(kept) {
        // Two listeners may both ask for `:0` of one address; such a socket belongs to its name.
        let same_address = |open: &Open| {
            open.asked == settings.address && settings.address.tcp().is_none_or(|address| address.port() != 0)
        };
        sources.push(match kept {
            Some(place) => Source::Kept(place),
            None => take(&same_address).map_or(Source::New, Source::Renamed),
        });
    }
    // A renamed listener's old name is gone: its connections finish, its socket lives on.
    let mut gone = left;
    gone.extend(sources.iter().filter_map(|source| match source {
        Source::Renamed(place) => Some(*place),
        _ => None,
    }));
    gone.sort_unstable();
    Plan { wanted: sources, gone }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(name: &str, address: &str) -> listener::Settings {
        listener::Settings {
            name: Some(name.to_owned()),
            address: match address.strip_prefix("unix:") {
                Some(path) => Address::Unix(path.into()),
                None => Address::Tcp(address.parse().expect("an address")),
            },
            direction: Direction::Egress,
            trust: None,
            forwarded: None,
            protocol: listener::Protocol::default(),
            proxy_protocol: false,
            tls: None,
            limits: listener::Limits::default(),
            route: Vec::new(),
            upstream: None,
        }
    }

    #[test]
    fn a_taken_port_says_which_and_what_to_do() {
        let first = Open::new(&settings("app", "127.0.0.1:0")).expect("a free port");
        let port = first.address.tcp().expect("TCP").port();

        let error = Open::new(&settings("other", &first.address.to_string())).expect_err("it is taken");

        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{port} (listener \"other\")")), "{text}");
        assert!(text.contains("is taken; stop what holds it"), "{text}");
    }

    #[test]
    fn duplicates_share_the_port_and_the_last_one_closes_it() {
        let open = Open::new(&settings("app", "127.0.0.1:0")).expect("a free port");
        let address = open.address.tcp().expect("TCP");
        let duplicate = open.duplicate().expect("a descriptor");
        drop(open);
        assert!(std::net::TcpStream::connect(address).is_ok(), "one duplicate is left");
        drop(duplicate);
        assert!(std::net::TcpStream::connect(address).is_err(), "none is left");
    }

    #[test]
    fn a_reload_keeps_what_stays_and_finds_what_opens_and_goes() {
        let open = |name: &str| Open::new(&settings(name, "127.0.0.1:0")).expect("a free port");
        let mut old = vec![open("a"), open("b")];
        for open in &mut old {
            open.asked = open.address.clone(); // as if the port had been written
        }
        let (a, b) = (old[0].asked.to_string(), old[1].asked.to_string());
        let free = "127.0.0.1:1";
        use Source::{Kept, New, Renamed};
        #[rustfmt::skip]
        let cases = [
            // why                               wanted                        sources                    gone
            ("nothing changed",                  vec![("a", &*a), ("b", &*b)], vec![Kept(0), Kept(1)],    vec![]),
            ("the order does not matter",        vec![("b", &*b), ("a", &*a)], vec![Kept(1), Kept(0)],    vec![]),
            ("one goes",                         vec![("b", &*b)],             vec![Kept(1)],             vec![0]),
            ("one opens",                        vec![("a", &*a), ("b", &*b), ("c", free)], vec![Kept(0), Kept(1), New], vec![]),
            ("a new name keeps the socket",      vec![("x", &*a), ("b", &*b)], vec![Renamed(0), Kept(1)], vec![0]),
            ("a new address is another socket",  vec![("a", free), ("b", &*b)], vec![New, Kept(1)],       vec![0]),
            ("names swapped",                    vec![("b", &*a), ("a", &*b)], vec![Renamed(0), Renamed(1)], vec![0, 1]),
        ];
        for (why, wanted, sources, gone) in cases {
            let wanted: Vec<_> = wanted.into_iter().map(|(name, address)| settings(name, address)).collect();
            assert_eq!(plan(&old, &wanted), Plan { wanted: sources, gone }, "{why}");
        }
    }

    #[test]
    fn listeners_on_port_zero_belong_to_their_names() {
        let old = vec![Open::new(&settings("a", "127.0.0.1:0")).expect("a free port")];
        let plan = plan(&old, &[settings("b", "127.0.0.1:0")]);
        assert_eq!(plan, Plan { wanted: vec![Source::New], gone: vec![0] });
    }

    /// A path for a socket, in a directory of its own.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let place = std::env::temp_dir().join(format!("outrigger-socket-{name}-{}", std::process::id()));
            fs::create_dir_all(&place).expect("a directory");
            Self(place)
        }

        fn settings(&self) -> listener::Settings {
            settings("app", &format!("unix:{}", self.path().display()))
        }

        fn path(&self) -> PathBuf {
            self.0.join("socket")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_unix_socket_leaves_no_file_and_takes_one_that_was_left() {
        let place = Place::new("left");
        drop(UnixListener::bind(place.path()).expect("a free path"));
        assert!(place.path().exists(), "a process that ends leaves its socket behind");

        let open = Open::new(&place.settings()).expect("nobody listens there");
        assert!(std::os::unix::net::UnixStream::connect(place.path()).is_ok());
        let renamed = open.renamed(&settings("b", "unix:/unused")).expect("a descriptor");
        drop(open);
        assert!(place.path().exists(), "under its other name it lives on");
        drop(renamed);
        assert!(!place.path().exists(), "nobody listens any more");
    }

    #[test]
    fn a_unix_socket_that_is_anothers_stays() {
        let place = Place::new("taken");
        let first = Open::new(&place.settings()).expect("a free path");
        let error = Open::new(&place.settings()).expect_err("it is taken").to_string();
        assert!(error.contains("somebody listens there; stop it"), "{error}");

        fs::remove_file(place.path()).expect("it is there");
        let second = UnixListener::bind(place.path()).expect("a free path");
        drop(first);
        assert!(place.path().exists(), "it is another's by now");
        drop(second);

        fs::remove_file(place.path()).expect("it is there");
        fs::write(place.path(), "text").expect("a file");
        let error = Open::new(&place.settings()).expect_err("it is no socket").to_string();
        assert!(error.contains("a file that is no socket is there"), "{error}");
        assert_eq!(fs::read_to_string(place.path()).expect("untouched"), "text");

        let missing = settings("app", "unix:/nowhere/at/all");
        let error = Open::new(&missing).expect_err("no directory").to_string();
        assert!(error.contains("there is no directory /nowhere/at; create it"), "{error}");
    }
}
