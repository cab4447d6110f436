//! What became of a request: metrics and the line in the access log, written once, at its end.
//!
//! A record that is dropped before it ends is that of a client that left: whatever the place where its task
//! stopped, the request is counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::context::{Context, Routed};
use super::snapshot::Held;
use super::worker::Worker;
use crate::http1::head::RequestHead;
use crate::reason::Reason;
use crate::telemetry::access_log::{self, Line};
use crate::telemetry::metrics::{Effect, RequestOutcome, Substitute, Winner};
use crate::upstream::endpoint::Endpoint;

/// What became of a request.
pub struct Record {
    worker: Rc<Worker>,
    snapshot: Held,
    listener: usize,
    /// Where it went.
    pub routed: Option<Routed>,
    /// How often it was sent.
    pub attempts: u32,
    /// Whose answer it got, where it was hedged.
    pub hedge: Option<Winner>,
    /// How long it waited for a slot.
    pub queue: Duration,
    /// Where it was sent last.
    pub endpoint: Option<Arc<Endpoint>>,
    /// When its first byte went up.
    pub sent: Option<Instant>,
    /// When the head of its answer came back.
    pub answered: Option<Instant>,
    /// Why Outrigger answered, or ended the message, itself.
    pub reason: Option<Reason>,
    /// What the client gets in place of a failure, and why that was, if it was not an upstream's bad answer.
    pub substitute: Option<(Substitute, Option<Reason>)>,
    /// The rate limit that refused it, or would have.
    pub rate_limit: Option<Box<str>>,
    /// What the status of a call of gRPC means, which its HTTP status does not say.
    pub grpc: Option<RequestOutcome>,
    /// The status that the client got; 0: none yet.
    pub status: u16,
    /// Whether the answer is a stream.
    pub is_stream: bool,
    /// Bytes of the response's body that went to the client.
    pub bytes_out: u64,
    /// When the head went to the client.
    head_out: Option<Instant>,
    is_finished: bool,
    /// Whether it leaves no trace in metrics and log.
    is_unseen: bool,
}

impl Record {
    /// The record of a request that came to this listener just now.
    pub fn begin(worker: &Rc<Worker>, snapshot: Held, listener: usize, now: Instant) -> Self {
        worker.shared.request_began(worker.index);
        snapshot.listener_at(listener).activity.began(worker.index, now);
        Self {
            worker: Rc::clone(worker),
            snapshot,
            listener,
            routed: None,
            attempts: 0,
            hedge: None,
            queue: Duration::ZERO,
            endpoint: None,
            sent: None,
            answered: None,
            reason: None,
            substitute: None,
            rate_limit: None,
            grpc: None,
            status: 0,
            is_stream: false,
            bytes_out: 0,
            head_out: None,
            is_finished: false,
            is_unseen: false,
        }
    }

    /// The record of a copy of the request that `original` belongs to: nobody asked for it.
    pub fn unseen(worker: &Rc<Worker>, original: &Record) -> Self {
        let record = Self::begin(worker, Rc::clone(&original.snapshot), original.listener, Instant::now());
        Self { is_unseen: true, ..record }
    }

    /// The response's head goes to the client at `now`.
    pub fn head_out(&mut self, status: u16, now: Instant) {
        self.status = status;
        self.head_out = Some(now);
    }

    /// Whether it has been written.
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// The request has ended at `now`, well or not.
    pub fn finish(&mut self, head: &RequestHead, context: &Context, bytes_in: u64, now: Instant) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let worker = &self.worker;
        worker.shared.request_ended(worker.index);
        let listener = self.snapshot.listener_at(self.listener);
        listener.activity.ended(worker.index);
        if self.is_unseen {
            return;
        }
        let target = self.routed.as_ref().map(|routed| routed.target());
        let (route_metrics, upstream_metrics) = match target {
            Some(target) => (&*target.metrics, &*target.chain.upstream.metrics),
            None => (&*listener.unrouted, worker.shared.metrics.unrouted()),
        };
        let shard = upstream_metrics.shard(worker.index);
        let outcome = self.outcome();
        let status = if self.status == 0 { Reason::ClientDisconnected.status() } else { self.status };
        let head_out = self.head_out.unwrap_or(now);
        let head_time = head_out.saturating_duration_since(context.arrived);
        let total = now.saturating_duration_since(context.arrived);
        route_metrics.shard(worker.index).requests(status, outcome).inc();
        shard.request_duration(outcome).observe(head_time);
        if !self.is_stream {
            shard.response_duration.observe(total);
        }
        if let Some(reason) = self.reason.filter(|reason| is_refusal(*reason)) {
            shard.rejected(reason, Effect::Enforced).inc();
        }
        if let (Some(sent), Some(answered)) = (self.sent, self.answered) {
            let before = sent.saturating_duration_since(context.arrived).saturating_sub(self.queue);
            let after = head_out.saturating_duration_since(answered);
            worker.shared.metrics.overhead(worker.index).observe(before + after);
        }
        let failed = self.substitute.is_some() || access_log::is_failure(outcome, self.reason, self.attempts);
        if worker.log.wants(failed, worker.draw()) {
            worker.log.write(&Line {
                at: SystemTime::now() - total,
                request_id: context.id(head),
                client: context.peer,
                listener: &listener.name,
                route: target.map_or("", |target| &target.route.name),
                upstream: target.map_or("", |target| &target.chain.upstream.name),
                endpoint: self.endpoint.as_ref().map_or("", |endpoint| &endpoint.label),
                method: head.method_text(),
                target: head.target(),
                status,
                outcome,
                reason: self
                    .reason
                    .or(self.substitute.and_then(|(_, reason)| reason))
                    .or((outcome == RequestOutcome::Cancelled).then_some(Reason::ClientDisconnected)),
                fallback: self.substitute.map(|(kind, _)| kind),
                rate_limit: self.rate_limit.as_deref().unwrap_or_default(),
                attempts: self.attempts,
                hedge: self.hedge,
                head: head_time,
                total,
                queue: self.queue,
                bytes_in,
                bytes_out: self.bytes_out,
            });
        }
    }

    fn outcome(&self) -> RequestOutcome {
        match self.reason {
            Some(reason) => of_reason(reason),
            None if self.status == 0 => RequestOutcome::Cancelled,
            None => self.grpc.unwrap_or(RequestOutcome::of_status(self.status)),
        }
    }
}

/// What an answer of Outrigger's own means.
const fn of_reason(reason: Reason) -> RequestOutcome {
    use Reason::*;
    match reason {
        NoRoute | BadRequest | HeaderTimeout | BodyTooLarge | HeaderTooLarge | MethodNotAllowed
        | LoopDetected | ClientStalled => RequestOutcome::ClientError,
        RateLimited | LoadShed | BreakerOpen | ConcurrencyLimited | QueueFull | QueueTimeout
        | NoHealthyEndpoint | Draining => RequestOutcome::Rejected,
        ConnectError | DnsError | TlsError | UpstreamReset | ProtocolError | AttemptTimeout
        | RequestTimeout | DeadlineExceeded | UpstreamStalled | FaultInjected => RequestOutcome::Failed,
        ClientDisconnected => RequestOutcome::Cancelled,
    }
}

/// Whether a reason refuses the request as such, so that no policy has counted it.
const fn is_refusal(reason: Reason) -> bool {
    matches!(of_reason(reason), RequestOutcome::ClientError) || matches!(reason, Reason::Draining)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstreams_failure_is_no_refusal() {
        for reason in Reason::ALL {
            let failed = matches!(of_reason(reason), RequestOutcome::Failed | RequestOutcome::Cancelled);
            assert!(!(failed && is_refusal(reason)), "{}", reason.label());
        }
    }
}
