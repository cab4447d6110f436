//! Listening sockets: one for each address, shared by all workers.
//!
//! Each worker waits on its own duplicate of the one descriptor. Rejected: `SO_REUSEPORT`, where each worker
//! has a socket of its own: there a second process takes the same port without an error, and closing one
//! worker's socket resets the connections that wait in its backlog. Here a taken port is an error that says
//! which and what to do, and a connection is lost to nobody before the last duplicate is closed.
//!
//! Not here: who accepts (`accept`), and what happens with a connection (`proxy`).

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use socket2::{Domain, Protocol, Socket, Type};

use crate::proxy::listener::{self, Direction};

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
    asked: SocketAddr,
    /// Where it really listens: the port that the kernel chose where `:0` was asked.
    pub(super) address: SocketAddr,
    socket: TcpListener,
}

/// Why an address cannot be listened on, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({what}): {cause}")]
pub struct BindError {
    /// `listener "NAME"`, `admin.address` or `admin.metrics_address`.
    what: String,
    address: SocketAddr,
    cause: String,
    source: io::Error,
}

impl Open {
    /// Opens what `settings` asks for.
    pub(super) fn new(settings: &listener::Settings) -> Result<Self, BindError> {
        let name = settings.name();
        let (socket, address) = bind(settings.address, &format!("listener {name:?}"))?;
        Ok(Self {
            id: SocketId::next(),
            name: name.into(),
            direction: settings.direction,
            asked: settings.address,
            address,
            socket,
        })
    }

    /// Another descriptor of the same socket, for one worker.
    pub(super) fn duplicate(&self) -> Result<TcpListener, BindError> {
        self.socket.try_clone().map_err(|source| BindError {
            what: format!("listener {:?}", self.name),
            address: self.address,
            cause: cause(&source, self.address),
            source,
        })
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
            asked: self.asked,
            address: self.address,
            socket: self.duplicate()?,
        })
    }
}

/// Binds and listens; the socket does not block.
///
/// `what` names the key that asked for it, for the error.
pub(super) fn bind(address: SocketAddr, what: &str) -> Result<(TcpListener, SocketAddr), BindError> {
    open(address).map_err(|source| BindError {
        what: what.to_owned(),
        address,
        cause: cause(&source, address),
        source,
    })
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
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from(socket);
    let address = socket.local_addr()?;
    Ok((socket, address))
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
        _ if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            "too many open files; raise the limit (`ulimit -n`, LimitNOFILE=)".to_owned()
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
            "this machine has no IPv6; use an IPv4 address".to_owned()
        }
        _ => error.to_string(),
    }
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
        let same_address = |open: &Open| open.asked == settings.address && settings.address.port() != 0;
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
            address: address.parse().expect("an address"),
            direction: Direction::Egress,
            trust: None,
            forwarded: None,
            protocol: listener::Protocol::default(),
            tls: None,
            limits: listener::Limits::default(),
            route: Vec::new(),
            upstream: None,
        }
    }

    #[test]
    fn a_taken_port_says_which_and_what_to_do() {
        let first = Open::new(&settings("app", "127.0.0.1:0")).expect("a free port");
        let port = first.address.port();

        let error = Open::new(&settings("other", &first.address.to_string())).expect_err("it is taken");

        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{port} (listener \"other\")")), "{text}");
        assert!(text.contains("is taken; stop what holds it"), "{text}");
    }

    #[test]
    fn duplicates_share_the_port_and_the_last_one_closes_it() {
        let open = Open::new(&settings("app", "127.0.0.1:0")).expect("a free port");
        let address = open.address;
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
            open.asked = open.address; // as if the port had been written
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
}
