//! A panic is our bug, and costs the connection that met it, alone.
//!
//! It unwinds to the task's edge, is counted there, and everything that the connection held comes back by its
//! `Drop`. The hook makes one line of the log of it, where std would write several on stderr.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::telemetry::cells::SharedCounter;

/// Runs `task` to its end, which a panic is too; that counts in `panics`.
pub(super) async fn survive(task: impl Future<Output = ()>, panics: &SharedCounter) {
    let mut task = pin!(task);
    std::future::poll_fn(|context| {
        // Whatever the panic left half done belongs to the task, and is never looked at again.
        catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))).unwrap_or_else(|_| {
            panics.inc();
            Poll::Ready(())
        })
    })
    .await;
}

/// From now on each panic of this process is one line of the log.
pub(super) fn log_them() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(thread = std::thread::current().name().unwrap_or("unnamed"), "{}", line(panic));
    }));
}

fn line(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("without a message").replace('\n', " ");
    match panic.location() {
        Some(place) => format!(
            "panicked at {}:{}: {message}; this is a bug, please report it",
            place.file(),
            place.line()
        ),
        None => format!("panicked: {message}; this is a bug, please report it"),
    }
}
