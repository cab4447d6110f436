//! Copies an answer while it is passed to its client: for the store, for those who asked the same, or both.
//!
//! There is none where nothing wants a copy. One that turns out too large, or for which there is no memory, is given
//! up by itself; the client's answer goes on. What is copied for others counts under `server.max_buffer`, what is
//! copied for the store under the store's own bound.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::coalesce::Lead;
use super::kept::Draft;
use super::shared::{Reservation, Shared};
use super::store::{Entry, Room, Store};
use crate::policy::fallback::concerns_all;
use crate::policy::freshness::Terms;
use crate::reason::Error;
use crate::telemetry::metrics::Limit;

/// The largest body that is shared with others who ask the same.
pub const SHARED: u64 = 1 << 20;

/// How the copy of a body of unknown length grows.
const STEP: usize = 16 << 10;

/// A copy on its way.
pub struct Tee {
    draft: Draft,
    body: Vec<u8>,
    keep: Option<(Keep, Room)>,
    share: Option<(Lead, Reservation)>,
    shared: Arc<Shared>,
}

/// Where an answer is to be kept.
pub struct Keep {
    /// The store.
    pub store: Arc<Store>,
    /// The key.
    pub key: Box<[u8]>,
    /// When it may be used.
    pub terms: Terms,
}

impl Tee {
    /// A copy of the answer with this head, whose body has `length` bytes where that is known. None where nobody wants
    /// it, or can have it; the others are told then.
    pub fn new(
        shared: &Arc<Shared>,
        draft: Draft,
        length: Option<u64>,
        keep: Option<Keep>,
        lead: Option<Lead>,
    ) -> Option<Self> {
        let size = length.unwrap_or(0).saturating_add(draft.size() as u64);
        let keep = keep.and_then(|keep| {
            let room = keep.store.room(size)?;
            Some((keep, room))
        });
        let share = lead.and_then(|lead| match reserve(shared, size) {
            Some(reservation) => Some((lead, reservation)),
            None => {
                lead.keep(Instant::now());
                None
            }
        });
        if keep.is_none() && share.is_none() {
            return None;
        }
        let body = Vec::with_capacity(length.unwrap_or(0) as usize);
        Some(Self { draft, body, keep, share, shared: Arc::clone(shared) })
    }

    /// The next piece of the body. False where nobody can have the copy any more.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let length = self.body.len() + piece.len();
        let capacity = self.body.capacity();
        let capacity = if length > capacity { length.next_multiple_of(STEP) } else { capacity };
        let size = (capacity + self.draft.size()) as u64;
        if self.keep.as_mut().is_some_and(|(_, room)| !room.grow_to(size)) {
            self.keep = None;
        }
        if let Some((_, reservation)) = &mut self.share
            && !grow(&self.shared, reservation, size)
            && let Some((lead, _)) = self.share.take()
        {
            lead.keep(Instant::now());
        }
        let is_wanted = self.keep.is_some() || self.share.is_some();
        if is_wanted {
            self.body.reserve_exact(capacity - self.body.len());
            self.body.extend_from_slice(piece);
        }
        is_wanted
    }

    /// The answer has ended: the copy goes to those who want it.
    pub fn end(mut self) {
        self.body.shrink_to_fit();
        let body = Bytes::from(self.body);
        let size = self.draft.size();
        if let Some((Keep { store, key, terms }, room)) = self.keep {
            let answer = self.draft.clone().with(body.clone(), None);
            store.keep(&key, Entry { answer, terms, since: Instant::now() }, size, room);
        }
        if let Some((lead, reservation)) = self.share {
            lead.share(Arc::new(self.draft.with(body, Some(Box::new(reservation)))));
        }
    }

    /// The answer has broken off. Where that concerns its own client alone, another one leads.
    pub fn broke(self, error: &Error) {
        if let Some((lead, _)) = self.share
            && concerns_all(error)
        {
            lead.fail(error);
        }
    }
}

fn reserve(shared: &Arc<Shared>, size: u64) -> Option<Reservation> {
    let mut reservation = shared.reserve(0)?;
    grow(shared, &mut reservation, size).then_some(reservation)
}

/// Whether an answer of this size can be shared.
fn grow(shared: &Arc<Shared>, reservation: &mut Reservation, size: u64) -> bool {
    if size > SHARED {
        shared.metrics.limit_reached(Limit::SharedAnswer).inc();
        return false;
    }
    let more = size.saturating_sub(reservation.bytes());
    more == 0 || reservation.grow(more)
}
