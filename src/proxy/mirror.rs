//! Shadow traffic: a copy of a request goes to another upstream, and its answer is thrown away.
//!
//! The copy is a request of its own, with the policies and the metrics of its upstream, but without a line in the
//! log, without a retry and without a word in any request's metrics: nobody asked for it. Nothing of the real request
//! waits for it. One without a body is copied when the real one sets out; a body is copied once the real one has
//! been answered, out of what was kept for a retry, since reading it for both at once would let the slower one hold
//! up the other. What was not kept is not copied, and counted. Nor is what asks for another protocol copied, which
//! nobody would speak.
//!
//! Rejected: sending both from the start of a body (Envoy does, and buffers what the shadow does not take).

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::context::Routed;
use super::request::Request;
use super::response::FromUpstream;
use super::worker::Worker;
use crate::http1::field::Name;
use crate::telemetry::metrics::Limit;

/// Copies that a worker has on their way; beyond it requests are not copied, which is counted.
const UNDER_WAY: usize = 256;

/// The name of the field that tells a copy from a request.
const MARK: &[u8] = b"x-outrigger-mirror";

/// Whether this request is to be copied, by the ratio of its route; and where the copy goes.
pub fn wanted(worker: &Worker, request: &Request, routed: &Routed) -> Option<Routed> {
    let (target, ratio) = routed.target().mirror?;
    (!request.context.upgrade && worker.draw() < ratio.get()).then(|| routed.elsewhere(target))
}

/// A copy of a request, one of those that a worker has on their way.
pub struct Copy {
    /// The request.
    pub request: Request,
    _under_way: Rc<()>,
}

/// A copy of `request` for where `routed` leads, if all of its body is there to be copied.
pub fn copy(worker: &Rc<Worker>, request: &Request, routed: &Routed) -> Option<Copy> {
    let under_way = Rc::clone(&worker.mirrored);
    if Rc::strong_count(&under_way) > UNDER_WAY + 1 {
        worker.shared.metrics.limit_reached(Limit::Mirrors).inc();
        return None;
    }
    let Some(mut request) = request.copy() else {
        worker.shared.metrics.limit_reached(Limit::MirrorBody).inc();
        return None;
    };
    request.head.fields.push(Name::Other, MARK, b"true");
    // What was shed at the source was not meant for this one.
    request.head.fields.remove(Name::XOutriggerShed);
    routed.target().chain.upstream.metrics.mirrored.inc();
    Some(Copy { request, _under_way: under_way })
}

/// Reads an answer to its end for nobody, so that its connection can be used again. One that has no foreseeable end is
/// left: it has been asked for, and would be read for ever.
pub async fn throw_away(mut answer: Box<FromUpstream>, request: &mut Request) {
    poll_fn(|cx| {
        loop {
            match answer.poll_data(cx, &mut request.body) {
                _ if answer.is_stream() => return Poll::Ready(()),
                Poll::Ready(Ok(size @ 1..)) => answer.consume(size),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
