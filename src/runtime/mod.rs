//! The process: workers, listening sockets, reload, signals, drain.
//!
//! [`start`] binds everything and starts the threads; from then on three parties hold the sidecar together:
//!
//! - the **workers** (`workers`, `accept`) serve connections, and know nothing of what follows;
//! - the **background** thread has a runtime of its own for all that is not a request: the admin API, reloads
//!   (`reload`, woken by `watch`), certificates (`certificates`), endpoints (`discovery`), signals (`signals`) and
//!   draining (`drain`). What blocks goes
//!   to threads of its own, so that neither a slow resolver nor a hung file system is felt;
//! - whoever called `start` holds [`Running`], and waits.
//!
//! Nothing here is on the way of a request.

mod accept;
mod certificates;
mod checks;
mod control;
mod discovery;
mod drain;
mod files;
mod memory;
mod panics;
mod process;
mod reload;
mod signals;
mod sockets;
mod watch;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread;
use std::time::SystemTime;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};

use self::accept::Gate;
use self::control::Control;
use self::discovery::Discovery;
use self::process::Process;
use self::reload::Watching;
use self::sockets::Open;
use self::workers::Workers;
use crate::admin::{self, Scope};
use crate::config::Loaded;
use crate::proxy::listener::Address;
use crate::proxy::shared::Shared;
use crate::proxy::snapshot::Snapshot;
use crate::proxy::words;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;

pub use self::drain::DRAINED;
pub use self::sockets::BindError;

/// Version and commit, for people.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("OUTRIGGER_COMMIT"), ")");

/// Threads for what blocks on the background's side: reading files.
const BLOCKING_THREADS: usize = 32;

/// Why it could not start; one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The token's file cannot be read.
    #[error("cannot read the token in {file} (admin.token_file): {source}")]
    Token {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The access log cannot be written.
    #[error("cannot write the access log {path:?} (telemetry.access_log.path): {source}")]
    AccessLog {
        /// What the configuration says.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A thread, a descriptor or a signal handler was refused.
    #[error("the system refuses what a start needs (threads, open files): {0}")]
    System(#[from] io::Error),
}

/// A sidecar that serves. Dropped, it ends at once.
pub struct Running {
    process: Arc<Process>,
    control: Arc<Control>,
    background: Background,
    settled: std_mpsc::Receiver<()>,
    ended: std_mpsc::Receiver<()>,
    admin: SocketAddr,
    metrics_address: Option<SocketAddr>,
}

/// The thread for all that is not a request, and its runtime.
struct Background {
    handle: Handle,
    /// Dropping the sender ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Whose the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The sidecar's: it obeys signals, and logs each panic as one line.
    Sidecar,
    /// Somebody else's, who embeds it.
    Other,
}

/// Starts a sidecar with the configuration `loaded` from `file` (none: there is nothing to reload). When it returns,
/// everything is bound and served; names of endpoints may still be looked up ([`Running::settle`]).
///
/// Signals are obeyed before anything is bound: whoever sees a port open may send one, and its default action would
/// end the process where it stands.
///
/// # Errors
/// If an address is taken, a file cannot be used, or the system refuses threads or descriptors. Nothing is left
/// behind then.
pub fn start(loaded: Loaded, file: Option<PathBuf>, owner: Owner) -> Result<Running, StartError> {
    let config = &loaded.config;
    let workers = workers::count(config.server.workers, workers::cores());
    let metrics = Metrics::new(workers, env!("CARGO_PKG_VERSION"), env!("OUTRIGGER_COMMIT"), words::words());
    metrics.set_config(&loaded.digest, SystemTime::now());
    let log = log::init(&config.telemetry.log, metrics.log_dropped().clone())?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let files_limit = files::raise_limit();
    let gate = Gate::new(workers, files::connections(files_limit, config));

    let background = Background::start()?;
    let inside = background.handle.enter();
    let (reloads, reload_orders) = reload::channel();
    let (drains, drain_orders) = mpsc::unbounded_channel();
    if owner == Owner::Sidecar {
        signals::obey(reloads.clone(), drains.clone())?;
        panics::log_them();
    }

    let token = config.admin.token_file.as_deref().map(read_token).transpose()?;
    let (admin, admin_address) = sockets::bind(config.admin.address, "admin.address")?;
    let public = config.admin.metrics_address;
    let public = public.map(|address| sockets::bind(address, "admin.metrics_address")).transpose()?;
    let open = config.listener.iter().map(Open::new).collect::<Result<Vec<_>, _>>()?;

    let shared = share(&loaded, workers, metrics)?;
    let workers = Workers::start(workers, &shared, &gate)?;
    for open in &open {
        workers.open(open, workers.duplicates(open)?);
    }
    let process = Process::new(shared, workers, gate, loaded, file, log, files_limit);
    *process.open() = open;

    let (tell_end, ended) = std_mpsc::channel();
    let (tell_settled, settled) = std_mpsc::channel();
    let control = Arc::new(Control { process: process.clone(), reloads: reloads.clone(), drains });
    // Watched before anybody is told that it runs: whoever changes the file then is noticed.
    let mut watching = Watching::default();
    watching.follow(&process, &reloads);
    certificates::measure(&process.loaded.load().config, &process.shared.metrics);
    let metrics_address = public.as_ref().map(|(_, address)| *address);
    let discovery = Discovery::new();
    let admin = TcpListener::from_std(admin)?;
    let public = public.map(|(socket, _)| TcpListener::from_std(socket)).transpose()?;
    tokio::spawn(discovery.clone().keep(process.clone(), tell_settled));
    tokio::spawn(checks::keep_checked(process.clone()));
    tokio::spawn(memory::keep_measured(process.clone()));
    tokio::spawn(reload::obey(process.clone(), reloads, reload_orders, watching, discovery));
    tokio::spawn(certificates::warn_in_time(process.clone()));
    tokio::spawn(drain::obey(process.clone(), drain_orders, tell_end));
    tokio::spawn(admin::serve(admin, Scope::All, token.clone(), control.clone()));
    if let Some(socket) = public {
        tokio::spawn(admin::serve(socket, Scope::Public, token, control.clone()));
    }
    drop(inside);
    Ok(Running { process, control, background, settled, ended, admin: admin_address, metrics_address })
}

impl Running {
    /// Name and real address of each open listener.
    pub fn listeners(&self) -> Vec<(String, Address)> {
        self.process.open().iter().map(|open| (open.name.to_string(), open.address.clone())).collect()
    }

    /// The real address of the admin API.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The real address that serves only metrics and health, if there is one.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// What the admin API may do and see.
    pub fn control(&self) -> Arc<dyn admin::Control> {
        self.control.clone()
    }

    /// All series, as `/metrics` shows them.
    pub fn metrics(&self) -> String {
        admin::Control::metrics(&*self.control)
    }

    /// Waits until every name was looked up once, or for the 2 s that readiness waits at most.
    pub fn settle(&self) {
        // It errs when it was told before, or when looking names up is broken; then waiting gains nothing.
        let _ = self.settled.recv();
    }

    /// Waits until it has drained (`/quit`, or a signal where it owns the process), ends everything, and gives the
    /// exit code.
    pub fn wait(self) -> u8 {
        // The sender is gone without a word only if the background has broken down.
        let code = if self.ended.recv().is_ok() { 0 } else { 1 };
        drop(self);
        code
    }

    /// Ends at once.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // First whoever could order the workers about.
        self.background.stop();
        self.process.workers.stop();
        // Whoever else still holds the process holds no sockets: those of Unix leave no file behind.
        self.process.open().clear();
    }
}

impl Background {
    /// Starts the thread.
    fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("outrigger-background".to_owned()).spawn(move || {
            // It errs when the sender is dropped, which is what is waited for.
            let _ = runtime.block_on(stopped);
            // A look-up that hangs is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it was logged when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the workers share, with the configuration's snapshot in force.
fn share(loaded: &Loaded, workers: usize, metrics: Arc<Metrics>) -> Result<Arc<Shared>, StartError> {
    let config = &loaded.config;
    let settings = &config.telemetry.access_log;
    let access_log = AccessLog::start(settings, config.telemetry.log.format, metrics.log_dropped().clone())
        .map_err(|source| StartError::AccessLog { path: settings.path.clone(), source })?;
    let shared = Shared::new(metrics, access_log, workers, config.server.max_buffer.bytes());
    let snapshot = Snapshot::build(&config.listener, &config.upstream, None, &shared.metrics);
    shared.snapshot.store(Arc::new(snapshot));
    Ok(shared)
}

fn read_token(file: &Path) -> Result<Arc<str>, StartError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.trim().into()),
        Err(source) => Err(StartError::Token { file: file.display().to_string(), source }),
    }
}
