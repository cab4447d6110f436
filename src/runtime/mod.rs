//! The process: workers, listening sockets, reload, signals, drain.

mod accept;
mod drain;
mod files;
mod sockets;
mod watch;
