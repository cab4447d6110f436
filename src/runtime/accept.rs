//! Who accepts: keeps workers evenly loaded and the number of client connections bounded.
//!
//! All workers wait on the same socket, and a new connection wakes all that are idle. The one that comes first
//! would take it, and soon own most connections: so a worker that is ahead of the one with the fewest by more
//! than a little leaves the connection to the others, and takes it only if it is still there after
//! [`LEAVE_FOR`] (they may all be busy). Connections, not requests, are what is shared out: a connection stays
//! where it is for life.
//!
//! Rejected: handing accepted connections over to the least loaded worker. It balances as well, but a worker
//! that stands still would be handed connections that nobody then serves.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::sockets::Listening;
use crate::telemetry::metrics::Limit;
use crate::transport::Transport;

/// How long a worker with more than its share leaves a connection to the others.
const LEAVE_FOR: Duration = Duration::from_millis(2);
/// How long a worker waits for room at `max_connections` before it looks again by itself.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(250);
/// First wait after an error of the machine's (no descriptors, no memory); doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(10);
/// Longest wait after an error of the machine's.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The count of client connections, in all and for each worker. One for the process: the bound holds for all
/// workers together. Touched when a connection opens or ends, never by a request.
#[derive(Debug)]
pub(super) struct Gate {
    max: AtomicUsize,
    total: AtomicUsize,
    workers: Box<[AtomicUsize]>,
    /// Somebody's turn may have come: a connection ended, or a worker took more than its share.
    changed: Notify,
}

/// Whose turn it is to accept.
#[derive(Debug)]
enum Turn {
    /// This worker's; the place is already counted.
    Mine(Place),
    /// That of a worker with fewer connections.
    Others,
    /// Nobody's: `max_connections` is reached.
    Nobody,
}

/// A counted connection; given back when dropped.
#[derive(Debug)]
#[must_use = "the connection is counted as long as this lives"]
pub(super) struct Place {
    gate: Arc<Gate>,
    worker: usize,
}

impl Gate {
    /// For `workers` workers and at most `max` connections.
    pub(super) fn new(workers: usize, max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: AtomicUsize::new(max),
            total: AtomicUsize::new(0),
            workers: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            changed: Notify::new(),
        })
    }

    /// Another bound, by a reload. Connections above it stay.
    pub(super) fn set_max(&self, max: usize) {
        self.max.store(max, Relaxed);
        self.changed.notify_waiters();
    }

    /// Whether `worker` is so far ahead of the least loaded one that the others should accept. The slack grows
    /// with the load, so that thousands of connections do not make workers take turns one by one.
    fn is_ahead(&self, worker: usize) -> bool {
        let least = self.workers.iter().map(|count| count.load(Relaxed)).min().unwrap_or(0);
        self.workers[worker].load(Relaxed) > least + least / 32
    }

    /// Decides whether `worker` may accept; `insists`: it has left the others their chance.
    fn turn(self: &Arc<Self>, worker: usize, insists: bool) -> Turn {
        if !insists && self.is_ahead(worker) {
            return Turn::Others;
        }
        let max = self.max.load(Relaxed);
        let counted = self.total.fetch_update(Relaxed, Relaxed, |total| (total < max).then_some(total + 1));
        if counted.is_err() {
            return Turn::Nobody;
        }
        self.workers[worker].fetch_add(1, Relaxed);
        Turn::Mine(Place { gate: self.clone(), worker })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.workers[self.worker].fetch_sub(1, Relaxed);
        let before = self.gate.total.fetch_sub(1, Relaxed);
        if before >= self.gate.max.load(Relaxed) {
            self.gate.changed.notify_waiters();
        }
    }
}

/// Accepts on `listener` for `worker` for as long as it is polled, and gives each connection to `serve`.
///
/// `reached` is called when a bound stops it: `max_connections`, or the machine's descriptors.
pub(super) async fn accept(
    listener: Listening,
    gate: Arc<Gate>,
    worker: usize,
    mut serve: impl FnMut(Transport, SocketAddr, Place),
    reached: impl Fn(Limit),
) -> io::Result<()> {
    let listener = watch(listener)?;
    let mut insists = false;
    let mut was_full = false;
    let mut backoff = BACKOFF;
    loop {
        let mut ready = listener.readable().await?;
        // Created before the decision: a change in between is not missed.
        let changed = pin!(gate.changed.notified());
        let place = match gate.turn(worker, insists) {
            Turn::Mine(place) => place,
            Turn::Others => {
                insists = timeout(LEAVE_FOR, changed).await.is_err();
                continue;
            }
            Turn::Nobody => {
                if !std::mem::replace(&mut was_full, true) {
                    reached(Limit::MaxConnections);
                }
                let _ = timeout(LOOK_FOR_ROOM, changed).await;
                continue;
            }
        };
        (insists, was_full) = (false, false);
        match ready.try_io(|listener| listener.get_ref().accept()) {
            Ok(Ok((stream, peer))) => {
                backoff = BACKOFF;
                if gate.is_ahead(worker) {
                    gate.changed.notify_waiters();
                }
                // A failure means that the client has left already.
                if let Ok(stream) = stream.prepared() {
                    serve(stream, peer, place);
                }
            }
            Ok(Err(error)) if is_exhaustion(&error) => {
                drop(place);
                if backoff == BACKOFF {
                    reached(Limit::OpenFiles);
                    tracing::warn!(%error, "cannot accept; waiting for the machine (`ulimit -n`, memory)");
                }
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            // The connection broke before it was accepted: nobody is there to be told.
            Ok(Err(_)) => {}
            // Another worker was faster.
            Err(_would_block) => {}
        }
    }
}

/// Waits for readiness apart from accepting, which tokio's own `TcpListener` cannot: the decision whose turn it
/// is stands between the two.
#[expect(deprecated, reason = "the successor is unsafe to call, for types that lie about their descriptor")]
fn watch(listener: Listening) -> io::Result<AsyncFd<Listening>> {
    AsyncFd::with_interest(listener, Interest::READABLE)
}

/// Whether the machine ran out of something, so that trying again at once would spin.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::net::TcpListener;
    use std::rc::Rc;

    use tokio::net::TcpStream;
    use tokio::task::LocalSet;

    use super::*;

    /// Workers that accept on one socket, all on this thread.
    struct Workers {
        address: SocketAddr,
        gate: Arc<Gate>,
        accepted: Rc<RefCell<Vec<(Transport, Place)>>>,
        full: Rc<Cell<u32>>,
    }

    impl Workers {
        fn start(workers: usize, max: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("it is a socket");
            let this = Self {
                address: listener.local_addr().expect("it is bound"),
                gate: Gate::new(workers, max),
                accepted: Rc::default(),
                full: Rc::default(),
            };
            for worker in 0..workers {
                let listener = Listening::Tcp(listener.try_clone().expect("a descriptor"));
                let (accepted, full) = (this.accepted.clone(), this.full.clone());
                let serve = move |stream, _, place| accepted.borrow_mut().push((stream, place));
                let reached = move |_| full.set(full.get() + 1);
                tokio::task::spawn_local(accept(listener, this.gate.clone(), worker, serve, reached));
            }
            this
        }

        async fn has_accepted(&self, count: usize) {
            let accepted = async {
                while self.accepted.borrow().len() < count {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(10), accepted).await.expect("they are accepted");
        }

        fn loads(&self) -> Vec<usize> {
            self.gate.workers.iter().map(|count| count.load(Relaxed)).collect()
        }
    }

    fn locally<F: Future<Output = ()>>(story: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, story);
    }

    async fn connect(to: SocketAddr, count: usize) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(TcpStream::connect(to).await.expect("the port is open"));
        }
        streams
    }

    #[test]
    fn connections_are_shared_out_evenly() {
        locally(async {
            let workers = Workers::start(3, 1000);
            let _clients = connect(workers.address, 60).await;
            workers.has_accepted(60).await;
            for load in workers.loads() {
                assert!((18..=22).contains(&load), "{:?}", workers.loads());
            }
        });
    }

    #[test]
    fn a_worker_ahead_takes_what_nobody_else_does() {
        locally(async {
            let workers = Workers::start(1, 1000);
            // A second worker that never accepts, as one that stands still.
            let gate = Gate::new(2, 1000);
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("it is a socket");
            let address = listener.local_addr().expect("it is bound");
            let accepted = workers.accepted.clone();
            let serve = move |stream, _, place| accepted.borrow_mut().push((stream, place));
            tokio::task::spawn_local(accept(Listening::Tcp(listener), gate, 0, serve, |_| ()));
            let _clients = connect(address, 5).await;
            workers.has_accepted(5).await;
        });
    }

    #[test]
    fn max_connections_stops_accepting_until_one_ends() {
        locally(async {
            let workers = Workers::start(2, 3);
            let _clients = connect(workers.address, 5).await;
            workers.has_accepted(3).await;
            sleep(Duration::from_millis(20)).await;
            assert_eq!((workers.accepted.borrow().len(), workers.gate.total.load(Relaxed)), (3, 3));
            assert!(workers.full.get() > 0, "it is counted");

            drop(workers.accepted.borrow_mut().pop());
            workers.has_accepted(3).await;
            assert_eq!(workers.gate.total.load(Relaxed), 3);

            workers.gate.set_max(4); // a reload
            workers.has_accepted(4).await;
        });
    }
}
