//! Signals: SIGHUP reloads, SIGTERM and SIGINT drain, and a second one of these ends the process at once.
//!
//! The handlers are installed explicitly: for a process with id 1 the kernel ignores every signal without one.
//! There are no children whose end would have to be reaped.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::drain;
use super::reload::{Reloads, Why};

/// The exit code of a process that was told twice to end: requests may have been cut.
const CUT_SHORT: i32 = 1;

/// From now on signals are obeyed. To be called inside the runtime that will wait for them.
pub(super) fn obey(reloads: Reloads, drains: mpsc::UnboundedSender<drain::Order>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reloads.order(Why::Signal);
        }
    });
    tokio::spawn(async move {
        let mut told = false;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if told {
                eprintln!("outrigger: {name} again; ending at once");
                std::process::exit(CUT_SHORT);
            }
            told = true;
            tracing::info!("{name}");
            // It errs only when the end has come already.
            let _ = drains.send(drain::Order::Leave);
        }
    });
    Ok(())
}
