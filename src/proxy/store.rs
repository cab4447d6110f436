//! The answers that an upstream's clients may get while it cannot answer: one store for each upstream and process.
//!
//! Bounded in bytes, and strictly: what is kept and what is being copied on its way together never take more than
//! `fallback.stale.max_size`. An answer may take an eighth of it, all copies under way half of it; for a new answer
//! those go that were used least of late. Every bound that is reached is counted.
//!
//! One mutex, held for a look-up in a map and a few links: an upstream that answers is never waited for here but once
//! for the room and once for the entry of each answer. Rejected: a part for each worker (each would have to be filled
//! by itself, and an outage comes but once), and a cache crate (none lets copies under way count).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kept::Kept;
use crate::policy::freshness::Terms;
use crate::telemetry::metrics::{Limit, Metrics};

/// What an entry takes besides its answer's fields and body and its key: itself, its places in the maps, links, counts, and
/// what the allocator adds to each of eight to eleven pieces. Measured with 30,000 to 110,000 entries, glibc's malloc, and
/// bodies of 1 to 1000 bytes: what is counted is from 3 % too little (tables that have just doubled, `Vary`) to 10 % too
/// much.
const OVERHEAD: u64 = 512;
const _: () = assert!(
    size_of::<Entry>() + size_of::<Option<Node>>() <= 264,
    "OVERHEAD was measured when they were no larger"
);
/// Answers at one URL, to requests that differ in what `Vary` names.
const VARIANTS: usize = 16;
/// No place.
const NONE: usize = usize::MAX;

/// The answers of one upstream.
pub struct Store {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
}

/// An answer and when it may be used.
pub struct Entry {
    /// The answer.
    pub answer: Kept,
    /// When it may be used.
    pub terms: Terms,
    /// Since when it is kept.
    pub since: Instant,
}

/// Memory for an answer that is being copied, until dropped.
pub struct Room {
    store: Arc<Store>,
    bytes: u64,
}

#[derive(Default)]
struct Inner {
    /// The bound.
    max: u64,
    /// Bytes of entries.
    used: u64,
    /// Bytes of copies under way.
    copying: u64,
    /// The places of each key's entries, the latest last.
    keys: HashMap<Arc<[u8]>, Vec<usize>, foldhash::fast::RandomState>,
    places: Vec<Option<Node>>,
    free: Vec<usize>,
    /// The ends of the chain, by last use.
    latest: usize,
    oldest: usize,
}

struct Node {
    key: Arc<[u8]>,
    entry: Arc<Entry>,
    size: u64,
    later: usize,
    earlier: usize,
}

impl Store {
    /// An empty store without a byte of room.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        let inner = Inner { latest: NONE, oldest: NONE, ..Inner::default() };
        Self { inner: Mutex::new(inner), metrics: Arc::clone(metrics) }
    }

    /// Changes the bound; what does not fit any more goes.
    pub fn set_max(&self, max: u64) {
        let mut inner = self.lock();
        inner.max = max;
        inner.make_room(0);
        if max == 0 {
            *inner = Inner { copying: inner.copying, latest: NONE, oldest: NONE, ..Inner::default() };
        }
    }

    /// Entries, and bytes of them and of what is being copied.
    pub fn counts(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.places.len() - inner.free.len(), inner.used + inner.copying)
    }

    /// The latest entry under `key` of which `look` makes something, and that.
    pub fn find<T>(&self, key: &[u8], look: impl Fn(&Entry) -> Option<T>) -> Option<(Arc<Entry>, T)> {
        let mut inner = self.lock();
        let places = inner.keys.get(key)?.iter().rev();
        let (place, found) = places.copied().find_map(|place| Some((place, look(inner.entry(place)?)?)))?;
        inner.unlink(place);
        inner.link(place);
        Some((Arc::clone(inner.entry(place)?), found))
    }

    /// Keeps an entry under `key`, in place of those that it replaces. `room` is what was taken for it.
    pub fn keep(&self, key: &[u8], entry: Entry, draft_size: usize, room: Room) {
        let size = draft_size as u64 + entry.answer.body.len() as u64 + key.len() as u64 + OVERHEAD;
        let mut inner = self.lock();
        // By hand, since dropping it takes the lock.
        inner.copying -= std::mem::take(&mut { room }.bytes);
        if size > inner.largest() || inner.copying + size > inner.max {
            drop(inner);
            return self.metrics.limit_reached(Limit::StaleAnswer).inc();
        }
        let replaced: Vec<usize> = inner.keys.get(key).map_or_else(Vec::new, |places| {
            let replaces =
                |place: &&usize| inner.entry(**place).is_some_and(|old| entry.answer.replaces(&old.answer));
            places.iter().filter(replaces).copied().collect()
        });
        for place in replaced {
            inner.remove(place);
        }
        let mut evicted = inner.make_room(size);
        if let Some(places) = inner.keys.get(key)
            && places.len() >= VARIANTS
        {
            let earliest = places[0];
            inner.remove(earliest);
            evicted += 1;
        }
        inner.insert(key, Arc::new(entry), size);
        drop(inner);
        for _ in 0..evicted {
            self.metrics.limit_reached(Limit::StaleStore).inc();
        }
    }

    /// Lets go all entries under `key`: what they say holds no more.
    pub fn forget(&self, key: &[u8]) {
        let mut inner = self.lock();
        for place in inner.keys.get(key).cloned().unwrap_or_default() {
            inner.remove(place);
        }
    }

    /// Lets go the entries under `key` that `are_meant`.
    pub fn forget_those(&self, key: &[u8], are_meant: impl Fn(&Entry) -> bool) {
        let mut inner = self.lock();
        for place in inner.keys.get(key).cloned().unwrap_or_default() {
            if inner.entry(place).is_some_and(|entry| are_meant(entry)) {
                inner.remove(place);
            }
        }
    }

    /// Room for an answer of which `bytes` are known already. None where there is none; that is counted.
    pub fn room(self: &Arc<Self>, bytes: u64) -> Option<Room> {
        let mut room = Room { store: Arc::clone(self), bytes: 0 };
        room.grow_to(bytes).then_some(room)
    }

    /// A panic elsewhere leaves counts and links that are right: each change is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// For how long it has been kept.
    pub fn resident(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

impl Room {
    /// Takes as much as an answer of `bytes` needs. False where that is too much, which is counted.
    pub fn grow_to(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        // In steps, so that a body that comes in small pieces does not take the lock for each.
        let step = STEP.min(bytes.next_power_of_two());
        let mut inner = self.store.lock();
        let wanted = bytes.next_multiple_of(step).min(inner.largest()).max(bytes);
        let limit = if bytes > inner.largest() {
            Limit::StaleAnswer
        } else if inner.copying + (wanted - self.bytes) > inner.max / 2 {
            Limit::StaleStore
        } else {
            let more = wanted - self.bytes;
            let evicted = inner.make_room(more);
            inner.copying += more;
            self.bytes = wanted;
            drop(inner);
            for _ in 0..evicted {
                self.store.metrics.limit_reached(Limit::StaleStore).inc();
            }
            return true;
        };
        drop(inner);
        self.store.metrics.limit_reached(limit).inc();
        false
    }
}

/// How room is taken.
const STEP: u64 = 16 << 10;

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.store.lock().copying -= self.bytes;
        }
    }
}

impl Inner {
    /// The most that one answer may take.
    fn largest(&self) -> u64 {
        self.max / 8
    }

    fn entry(&self, place: usize) -> Option<&Arc<Entry>> {
        self.places.get(place)?.as_ref().map(|node| &node.entry)
    }

    /// Lets go what was used least of late until `bytes` more fit; how many entries that took.
    fn make_room(&mut self, bytes: u64) -> usize {
        let mut gone = 0;
        while self.used + self.copying + bytes > self.max && self.oldest != NONE {
            self.remove(self.oldest);
            gone += 1;
        }
        gone
    }

    fn insert(&mut self, key: &[u8], entry: Arc<Entry>, size: u64) {
        let key: Arc<[u8]> = match self.keys.get_key_value(key) {
            Some((known, _)) => Arc::clone(known),
            None => key.into(),
        };
        let node = Node { key: Arc::clone(&key), entry, size, later: NONE, earlier: NONE };
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place] = Some(node);
                place
            }
            None => {
                self.places.push(Some(node));
                self.places.len() - 1
            }
        };
        self.keys.entry(key).or_default().push(place);
        self.used += size;
        self.link(place);
        debug_assert!(self.used + self.copying <= self.max, "INVARIANT: the byte bound holds");
    }

    fn remove(&mut self, place: usize) {
        self.unlink(place);
        let Some(node) = self.places[place].take() else { return };
        self.free.push(place);
        self.used -= node.size;
        if let Some(places) = self.keys.get_mut(&node.key) {
            places.retain(|other| *other != place);
            if places.is_empty() {
                self.keys.remove(&node.key);
            }
        }
    }

    /// Puts an entry at the latest end of the chain.
    fn link(&mut self, place: usize) {
        let earlier = std::mem::replace(&mut self.latest, place);
        if let Some(node) = &mut self.places[place] {
            (node.earlier, node.later) = (earlier, NONE);
        }
        match self.places.get_mut(earlier).and_then(Option::as_mut) {
            Some(node) => node.later = place,
            None => self.oldest = place,
        }
    }

    /// Takes an entry out of the chain.
    fn unlink(&mut self, place: usize) {
        let Some(Node { later, earlier, .. }) = self.places[place] else { return };
        match self.places.get_mut(later).and_then(Option::as_mut) {
            Some(node) => node.earlier = earlier,
            None => self.latest = earlier,
        }
        match self.places.get_mut(earlier).and_then(Option::as_mut) {
            Some(node) => node.later = later,
            None => self.oldest = later,
        }
    }
}

#[cfg(test)]
mod tests;
