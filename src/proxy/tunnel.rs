//! Two connections that have become one: bytes go both ways until either side is done (RFC 9110 §7.8).
//!
//! What the bytes mean is nobody's affair here: WebSocket and every other protocol that HTTP/1.1 can switch to. Each
//! direction ends by itself, and its end is passed on; while nothing flows no buffer is held.

use std::task::{Context, Poll, ready};

use crate::http1::connection::Connection;

/// Who broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broke {
    /// Where the bytes come from.
    From,
    /// Where they go.
    To,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes that were passed on.
    pub bytes: u64,
    has_ended: bool,
}

impl Flow {
    /// Passes on what comes. Ready once `from` has ended and `to` has been told.
    ///
    /// # Errors
    /// [`Broke`].
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Connection,
        to: &mut Connection,
    ) -> Poll<Result<(), Broke>> {
        while !self.has_ended {
            if from.input().is_empty()
                && !from.has_ended()
                && from.poll_fill(cx, usize::MAX).map_err(|_| Broke::From)?.is_pending()
            {
                // Woken again when there is something to read, or room to write.
                let _ = to.poll_flush(cx).map_err(|_| Broke::To)?;
                return Poll::Pending;
            }
            if from.input().is_empty() {
                ready!(to.poll_flush(cx)).map_err(|_| Broke::To)?;
                ready!(to.poll_shutdown(cx)).map_err(|_| Broke::To)?;
                self.has_ended = true;
            } else {
                let size = ready!(to.poll_write(cx, from.input())).map_err(|_| Broke::To)?;
                from.consume(size);
                self.bytes += size as u64;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Connection::new(near.expect("it connects"), Rc::default()), far.expect("it accepts").0)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut left, mut left_far) = pair().await;
        let (mut right, mut right_far) = pair().await;
        let (mut out, mut back) = (Flow::default(), Flow::default());
        let tunnel = async {
            let (mut out_done, mut back_done) = (false, false);
            poll_fn(|cx| {
                out_done = out_done || out.poll(cx, &mut left, &mut right).map(Result::unwrap).is_ready();
                back_done = back_done || back.poll(cx, &mut right, &mut left).map(Result::unwrap).is_ready();
                if out_done && back_done { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        };
        let ends = async {
            left_far.write_all(b"question").await.expect("it is open");
            left_far.shutdown().await.expect("it is open");
            let mut heard = Vec::new();
            right_far.read_to_end(&mut heard).await.expect("the end is passed on");
            assert_eq!(heard, b"question");
            right_far.write_all(&[7; 300_000]).await.expect("the other direction is open");
            drop(right_far);
            heard.clear();
            left_far.read_to_end(&mut heard).await.expect("so is its end");
            assert_eq!(heard, vec![7; 300_000]);
        };
        tokio::join!(tunnel, ends);
        assert_eq!((out.bytes, back.bytes), (8, 300_000));
    }
}
