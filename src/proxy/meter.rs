//! What flows of a request's bodies, charged to the rate limits that count bytes.
//!
//! In steps, so that pieces cost a worker little and limits are not asked for each; the rest when the request is over,
//! however it ends. Answers of Outrigger's own (kept, shared or fixed) count too. A body that is sent again counts once: what the client sent and got is counted, not what an
//! upstream saw.

use std::sync::Arc;
use std::time::Instant;

use crate::policy::rate_limit::Buckets;

/// How much may flow before it is charged, in bytes.
const STEP: u64 = 16 << 10;

/// Counts what flows of one request.
pub struct Meter {
    /// Who counts, and under which key.
    limits: Vec<(Arc<Buckets>, Option<u64>)>,
    /// What is not charged yet.
    flowed: u64,
}

impl Meter {
    /// The meter for these limits and the request's keys; none where there are none.
    pub fn new(limits: Vec<(Arc<Buckets>, Option<u64>)>) -> Option<Box<Self>> {
        (!limits.is_empty()).then(|| Box::new(Self { limits, flowed: 0 }))
    }

    /// `bytes` more have flowed.
    pub fn flow(&mut self, bytes: u64) {
        self.flowed += bytes;
        if self.flowed >= STEP {
            self.charge();
        }
    }

    fn charge(&mut self) {
        let (bytes, now) = (std::mem::take(&mut self.flowed), Instant::now());
        self.limits.iter().for_each(|(buckets, key)| buckets.charge(*key, now, bytes));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.flowed > 0 {
            self.charge();
        }
    }
}
