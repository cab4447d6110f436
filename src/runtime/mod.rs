//! The process: workers, listening sockets, reload, signals, drain.
//!
//! [`start`] binds everything and starts the threads; from then on three parties hold the sidecar together:
//!
//! - the **workers** (`workers`, `accept`) serve connections, and know nothing of what follows;
//! - the **background** thread has a runtime of its own for all that is not a request: the admin API, reloads
//!   (`reload`, woken by `watch`), names (`names`), signals (`signals`) and draining (`drain`). What blocks goes
//!   to threads of its own, so that neither a slow resolver nor a hung file system is felt;
//! - whoever called `start` holds [`Running`], and waits.
//!
//! Nothing here is on the way of a request.

mod accept;
mod control;
mod drain;
mod files;
mod names;
mod panics;
mod process;
mod reload;
mod signals;
mod sockets;
mod watch;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};

use self::accept::Gate;
use self::control::Control;
use self::process::Process;
use self::reload::Reloads;
use self::sockets::Open;
use self::workers::Workers;
use crate::admin;
use crate::config::Loaded;
use crate::policy::retry;
use crate::proxy::shared::Shared;
use crate::proxy::snapshot::Snapshot;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Metrics, Words};
use crate::telemetry::log;

pub use self::drain::DRAINED;
pub use self::sockets::BindError;

/// Version and commit, for people.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("OUTRIGGER_COMMIT"), ")");

/// Threads for what blocks on the background's side: look-ups of names, and reading the configuration.
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

/// A sidecar that serves. Dropped, it goes on until the process ends.
pub struct Running {
    process: Arc<Process>,
    control: Arc<Control>,
    background: Background,
    ended: std_mpsc::Receiver<()>,
    admin: SocketAddr,
    metrics_address: Option<SocketAddr>,
}
