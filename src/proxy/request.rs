//! A request on its way, from its complete head to the end of its answer.
//!
//! Whoever owns it owns its record: dropped before its end, the request is that of a client that left.

use std::rc::Rc;
use std::time::Instant;

use super::body::Body;
use super::context::Context;
use super::record::Record;
use super::worker::Worker;
use crate::http1::head::RequestHead;

/// A request on its way.
pub struct Request {
    /// Its head, as the client sent it.
    pub head: RequestHead,
    /// Its body.
    pub body: Body,
    /// What is known besides.
    pub context: Context,
    /// What becomes of it.
    pub record: Record,
    worker: Rc<Worker>,
}

impl Request {
    /// A request that goes on its way now.
    pub fn new(worker: &Rc<Worker>, head: RequestHead, body: Body, context: Context, record: Record) -> Self {
        Self { head, body, context, record, worker: Rc::clone(worker) }
    }

    /// The same request once more, without a trace of its own in metrics and log, if all of its body is there to be copied
    /// and the buffers have room for it.
    pub fn copy(&self) -> Option<Self> {
        let body = self.body.copy(&self.worker.shared)?;
        let record = Record::unseen(&self.worker, &self.record);
        Some(Self::new(&self.worker, self.head.clone(), body, self.context.clone(), record))
    }

    /// Its id.
    pub fn id(&self) -> &[u8] {
        self.context.id(&self.head)
    }

    /// So many bytes of its answer's body have gone to the client.
    pub fn passed_on(&mut self, bytes: usize) {
        self.record.bytes_out += bytes as u64;
        if let Some(meter) = &mut self.body.meter {
            meter.flow(bytes as u64);
        }
    }

    /// It has ended at `now`, well or not.
    pub fn finish(&mut self, now: Instant) {
        self.record.finish(&self.head, &self.context, self.body.bytes, now);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.record.is_finished() {
            self.finish(Instant::now());
        }
        self.worker.reuse_request_head(std::mem::take(&mut self.head));
    }
}
