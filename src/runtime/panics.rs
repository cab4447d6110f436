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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_its_task_alone_and_is_counted() {
        let panics = SharedCounter::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let held = std::rc::Rc::new(());
            let kept = held.clone();
            survive(
                async move {
                    let _held = held;
                    tokio::task::yield_now().await;
                    panic!("a bug");
                },
                &panics,
            )
            .await;
            assert_eq!(std::rc::Rc::strong_count(&kept), 1, "what it held has come back");
            survive(async {}, &panics).await;
        });
        assert_eq!(panics.get(), 1);
    }
}
