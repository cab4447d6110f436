//! A panic is our bug, and costs the connection or the stream that met it, alone.
//!
//! It unwinds to the task's edge, is counted there, and everything that the task held comes back by its `Drop`. The
//! log's line of it is the hook's (`runtime::panics`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use crate::telemetry::cells::SharedCounter;

/// Runs `task` to its end, which a panic is too; that counts in `panics`. By reference: an async function keeps what it
/// is given by value twice, and these futures are large.
pub async fn survive(mut task: Pin<&mut impl Future<Output = ()>>, panics: &SharedCounter) {
    std::future::poll_fn(|context| {
        // Whatever the panic left half done belongs to the task, and is never looked at again.
        catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))).unwrap_or_else(|_| {
            panics.inc();
            Poll::Ready(())
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn a_panic_ends_its_task_alone_and_is_counted() {
        let panics = SharedCounter::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let held = std::rc::Rc::new(());
            let kept = held.clone();
            let task = async move {
                let _held = held;
                tokio::task::yield_now().await;
                panic!("a bug");
            };
            survive(pin!(task), &panics).await;
            assert_eq!(std::rc::Rc::strong_count(&kept), 1, "what it held has come back");
            survive(pin!(async {}), &panics).await;
        });
        assert_eq!(panics.get(), 1);
    }
}
