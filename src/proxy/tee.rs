//! Copies an answer while it is passed to its client: for the store, for those who asked the same, or both.
//!
//! There is none where nothing wants a copy. One that turns out too large, or for which there is no memory, is given
//! up by itself; the client's answer goes on. What is copied for others counts under `server.max_buffer`, what is
//! copied for the store under the store's own bound. Others wait for it only for so long ([`patience`]), whoever makes it
//! slow: the upstream, or the client whose answer it is and who does not read.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::AbortHandle;

use super::coalesce::Lead;
use super::kept::Draft;
use super::shared::{Reservation, Shared};
use super::store::{Entry, Room, Store};
use crate::policy::fallback::concerns_all;
use crate::policy::freshness::Terms;
use crate::reason::Error;
use crate::telemetry::metrics::Limit;
use crate::timer::{Elapsed, Timer};

/// The largest body that is shared with others who ask the same.
pub const SHARED: u64 = 1 << 20;

/// For how long those who ask the same wait for a body at least, and at most.
const LEAST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(2);

/// How the copy of a body of unknown length grows.
const STEP: usize = 16 << 10;

/// A copy on its way.
pub struct Tee {
    draft: Draft,
    body: Vec<u8>,
    keep: Option<(Keep, Room)>,
    share: Share,
    /// Lets go those who wait, in time.
    waits: Option<Waits>,
    shared: Arc<Shared>,
}

/// What those who wait are owed; nothing once they have been told.
type Share = Rc<RefCell<Option<Owed>>>;

struct Owed {
    lead: Lead,
    reservation: Reservation,
    /// Whether the client whose answer it is does not read at the moment.
    is_held_up: bool,
}

/// A task that ends with this.
struct Waits(AbortHandle);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How long those who ask the same wait for a body whose head took `latency`: as long again, within bounds. Whether that
/// pays nobody knows beforehand; so whoever asks by itself in the end has lost no more than it would have needed anyway.
pub fn patience(latency: Duration) -> Duration {
    latency.clamp(LEAST, MOST)
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
            Some(reservation) => Some(Owed { lead, reservation, is_held_up: false }),
            None => {
                lead.keep(Instant::now());
                None
            }
        });
        if keep.is_none() && share.is_none() {
            return None;
        }
        let body = Vec::with_capacity(length.unwrap_or(0) as usize);
        let share = Rc::new(RefCell::new(share));
        Some(Self { draft, body, keep, share, waits: None, shared: Arc::clone(shared) })
    }

    /// Whoever waits for it goes by itself if it has not ended by `until`; unless its own client holds it up, which says
    /// nothing of others.
    #[must_use]
    pub fn waited_for(mut self, until: Instant, timer: Timer) -> Self {
        if self.share.borrow().is_some() {
            let share = Rc::downgrade(&self.share);
            let waits = tokio::task::spawn_local(async move {
                let Err(Elapsed) = timer.within(until, std::future::pending::<Infallible>()).await;
                match share.upgrade().and_then(|share| share.take()) {
                    Some(owed) if owed.is_held_up => owed.lead.pass_on(),
                    Some(owed) => owed.lead.keep(Instant::now()),
                    None => {}
                }
            });
            self.waits = Some(Waits(waits.abort_handle()));
        }
        self
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
        let mut share = self.share.borrow_mut();
        if let Some(owed) = &mut *share {
            owed.is_held_up = false;
            if !grow(&self.shared, &mut owed.reservation, size)
                && let Some(owed) = share.take()
            {
                owed.lead.keep(Instant::now());
            }
        }
        let is_wanted = self.keep.is_some() || share.is_some();
        if is_wanted {
            self.body.reserve_exact(capacity - self.body.len());
            self.body.extend_from_slice(piece);
        }
        is_wanted
    }

    /// The client takes nothing at the moment.
    pub fn is_held_up(&self) {
        if let Some(owed) = &mut *self.share.borrow_mut() {
            owed.is_held_up = true;
        }
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
        if let Some(Owed { lead, reservation, .. }) = self.share.take() {
            lead.share(Arc::new(self.draft.with(body, Some(Box::new(reservation)))));
        }
    }

    /// The answer has broken off: another one leads, unless that is the upstream's habit.
    pub fn broke(self, error: &Error) {
        if let Some(owed) = self.share.take()
            && concerns_all(error)
        {
            owed.lead.break_off(error);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_waited_for_as_long_again_as_its_head() {
        let cases = [
            // why                              head  body
            ("it must be able to come at all", 0, 500),
            ("at least so long", 499, 500),
            ("as long again", 700, 700),
            ("at most so long", 5000, 2000),
        ];
        for (why, head, body) in cases {
            assert_eq!(patience(Duration::from_millis(head)), Duration::from_millis(body), "{why}");
        }
    }
}
