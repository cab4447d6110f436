//! A request on its way, from its complete head to the end of its answer.
//!
//! Whoever owns it owns its record: dropped before its end, the request is that of a client that left.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use super::body::Body;
use super::context::Context;
use super::record::Record;
use super::worker::Worker;
use crate::http1::head::RequestHead;
use crate::upstream::key::{self, Key};

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

    /// Its id.
    pub fn id(&self) -> &[u8] {
        self.context.id(&self.head)
    }

    /// The hash of what `key` takes from it; `None` where it has no such part.
    pub fn hash_of(&self, key: &Key) -> Option<u64> {
        let fields = &self.head.fields;
        let value = match key {
            Key::Header(name) => fields.find(name.as_bytes()).next()?,
            Key::Cookie(name) => fields.find(b"cookie").find_map(|field| key::cookie(field, name))?,
            Key::Path => {
                let path = self.head.path_and_query();
                path.split(|byte| *byte == b'?').next()?
            }
            Key::ClientIp => match self.context.peer.ip() {
                IpAddr::V4(ip) => return Some(key::hash(&ip.octets())),
                IpAddr::V6(ip) => return Some(key::hash(&ip.octets())),
            },
        };
        Some(key::hash(value))
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
