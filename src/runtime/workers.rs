//! The workers: one thread for each, with a current-thread runtime on which its connections live and die.
//!
//! A connection, its requests and the upstream connections that they use stay on one worker: nothing on the path
//! is locked or woken across threads. What reaches a worker from outside are [`Command`]s, and the atomics of
//! `proxy::shared`.
//!
//! How many: one for each core that affinity and cgroup allow, as std counts them (`cpu.max` and
//! `cpu.cfs_quota_us`, whole cores), at most [`MOST`]: a sidecar shares its pod with the service.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet, spawn_local};

use super::accept::{Gate, Place, accept};
use super::sockets::{BindError, Listening, Open, SocketId};
use crate::proxy::connection;
use crate::proxy::panics::survive;
use crate::proxy::shared::Shared;
use crate::proxy::worker::Worker;
use crate::transport::Transport;

/// The most workers that are started where the configuration names no number.
const MOST: usize = 4;
/// How long the end of all workers is waited for.
const END: Duration = Duration::from_secs(2);

/// How many workers to start if `configured` says so; 0: as many as there are `cores`, at most [`MOST`].
pub(super) fn count(configured: u32, cores: usize) -> usize {
    match configured {
        0 => cores.clamp(1, MOST),
        count => count as usize,
    }
}

/// The cores that affinity and cgroup allow.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What a worker is told.
enum Command {
    /// Accept on this socket, for the listener of this name.
    Open { id: SocketId, name: Arc<str>, socket: Listening },
    /// Stop accepting on the socket and close it.
    Close { id: SocketId },
    /// Drop all connections and end.
    Stop,
}

/// The threads that serve.
pub(super) struct Workers {
    commands: Vec<mpsc::UnboundedSender<Command>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    /// Disconnected when the last thread has ended.
    ended: Mutex<std_mpsc::Receiver<()>>,
}

impl Workers {
    /// Starts `count` workers, which serve nothing yet.
    pub(super) fn start(count: usize, shared: &Arc<Shared>, gate: &Arc<Gate>) -> io::Result<Self> {
        let (alive, ended) = std_mpsc::channel();
        let mut workers = Self { commands: Vec::new(), threads: Mutex::default(), ended: Mutex::new(ended) };
        for index in 0..count {
            // Made here, so that a machine without descriptors is told to whoever starts it.
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (sender, commands) = mpsc::unbounded_channel();
            let (shared, gate, alive) = (shared.clone(), gate.clone(), alive.clone());
            let thread = thread::Builder::new().name(format!("outrigger-{index}")).spawn(move || {
                let local = LocalSet::new();
                local.block_on(&runtime, work(index, shared, gate, commands));
                // Connections end before the runtime that they need.
                drop(local);
                drop(alive);
            })?;
            workers.commands.push(sender);
            workers.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(workers)
    }

    /// Descriptors of `open`'s socket, one for each worker.
    pub(super) fn duplicates(&self, open: &Open) -> Result<Vec<Listening>, BindError> {
        self.commands.iter().map(|_| open.duplicate()).collect()
    }

    /// From now on all workers accept on `open`'s socket; `duplicates` are its descriptors.
    pub(super) fn open(&self, open: &Open, duplicates: Vec<Listening>) {
        for (commands, socket) in self.commands.iter().zip(duplicates) {
            // It errs only when the worker has ended.
            let _ = commands.send(Command::Open { id: open.id, name: open.name.clone(), socket });
        }
    }

    /// From now on nobody accepts on the socket.
    pub(super) fn close(&self, id: SocketId) {
        for commands in &self.commands {
            let _ = commands.send(Command::Close { id });
        }
    }

    /// Whether one of them has ended while it should serve.
    pub(super) fn any_ended(&self) -> bool {
        self.commands.iter().any(mpsc::UnboundedSender::is_closed)
    }

    /// Ends all workers with their connections. A worker that does not end in time is left behind.
    pub(super) fn stop(&self) {
        for commands in &self.commands {
            let _ = commands.send(Command::Stop);
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(END) == Err(std_mpsc::RecvTimeoutError::Disconnected) {
            for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                let _ = thread.join();
            }
        }
    }
}

/// One worker's life: does what it is told until it is told to stop.
async fn work(
    index: usize,
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let worker = Worker::new(index, shared.clone());
    spawn_local(worker.clone().run());
    let mut accepting: Vec<(SocketId, AbortHandle)> = Vec::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Open { id, name, socket } => {
                let (worker, metrics) = (worker.clone(), shared.metrics.clone());
                let serve = {
                    let name = name.clone();
                    move |stream, peer, place| {
                        spawn_local(task(&worker, &name, (stream, peer), place));
                    }
                };
                let gate = gate.clone();
                let task = spawn_local(async move {
                    let reached = |limit| metrics.limit_reached(limit).inc();
                    if let Err(error) = accept(socket, gate, index, serve, reached).await {
                        tracing::error!(listener = &*name, %error, "worker {index} cannot accept any more");
                    }
                });
                accepting.push((id, task.abort_handle()));
            }
            Command::Close { id } => accepting.retain(|(socket, task)| {
                if *socket == id {
                    task.abort();
                }
                *socket != id
            }),
            Command::Stop => return,
        }
    }
}

/// Serves a client's connection for the listener `name` to its end, and holds its place as long.
///
/// PERF: all that a connection needs while it idles stands in this future, so the large one in it is made where it
/// stays. Handed over by value twice it would be there three times: a task of 3.9 KiB instead of 1.4.
fn task(
    worker: &Rc<Worker>,
    name: &Arc<str>,
    (stream, peer): (Transport, SocketAddr),
    place: Place,
) -> impl Future<Output = ()> + use<> {
    let (worker, name) = (worker.clone(), name.clone());
    async move {
        let metrics = worker.shared.metrics.clone();
        survive(pin!(connection::serve(worker, stream, peer, name)), metrics.panics()).await;
        drop(place);
    }
}

/// Whether `silence`, the longest that a worker shows no sign of life, means that it stands still.
pub(super) fn stands_still(silence: Duration) -> bool {
    silence >= Duration::from_secs(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_for_each_core_up_to_four() {
        let cases = [
            // why                     configured  cores  workers
            ("one core", 0, 1, 1),
            ("each core", 0, 3, 3),
            ("at most four", 0, 64, 4),
            ("nobody can tell", 0, 0, 1),
            ("as configured", 2, 64, 2),
            ("even more than cores", 8, 2, 8),
        ];
        for (why, configured, cores, workers) in cases {
            assert_eq!(count(configured, cores), workers, "{why}");
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        fn size<F>(_: impl Fn(&Rc<Worker>, &Arc<str>, (Transport, SocketAddr), Place) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(task);
        assert!(
            bytes <= 1400,
            "{bytes} bytes; does a future that is handed over by value stand in it twice?"
        );
    }
}
