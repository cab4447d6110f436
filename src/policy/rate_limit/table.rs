//! The buckets of many keys: a table of fixed size, of one allocation.
//!
//! Open addressing with linear probing; 16 bytes for a key (its hash, which says all that is kept of it, and its
//! bucket), at two thirds full 24. The size is fixed when the table is made, so no request ever waits for it to grow,
//! and its memory is what was asked for and no more; pages that no key has touched the system has not given yet.
//!
//! A key whose bucket is full again is idle: forgetting it changes no answer. A full table forgets idle keys as new
//! ones come. A hand goes round the places, as in the clock algorithm of page replacement, and looks at a few for each
//! new key: nobody ever scans a million places under a lock. Rejected: a list of keys by last use, which costs 16 bytes
//! more for each and a write to three of them for every request.

/// The hash of a key, and when its bucket is full again. A hash of 0: nobody's.
type Slot = [u64; 2];

/// How many places are looked at for an idle key, at most, before there is none.
const LOOK: usize = 64;

/// The buckets of some keys.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    held: usize,
    hand: usize,
}

impl Table {
    /// A table for `keys` keys, and a few more.
    pub(super) fn new(keys: usize) -> Self {
        // An array of zeros is one that the system gives page by page, when it is first written.
        Self { slots: vec![[0; 2]; Self::size(keys)], held: 0, hand: 0 }
    }

    /// Places for so many keys.
    fn size(keys: usize) -> usize {
        if keys == 0 { 0 } else { keys + keys / 2 + 8 }
    }

    /// Bytes for so many keys.
    pub(super) fn bytes(keys: usize) -> usize {
        Self::size(keys) * size_of::<Slot>()
    }

    /// Where a search for `key` begins. The upper bits choose, so that the lower ones can choose the table.
    fn home(&self, key: u64) -> usize {
        ((u128::from(key) * self.slots.len() as u128) >> 64) as usize
    }

    fn next(&self, place: usize) -> usize {
        if place + 1 == self.slots.len() { 0 } else { place + 1 }
    }

    /// The place of `key`.
    ///
    /// # Errors
    /// The place that it would get.
    pub(super) fn find(&self, key: u64) -> Result<usize, usize> {
        let mut place = self.home(key);
        loop {
            match self.slots[place][0] {
                found if found == key => return Ok(place),
                0 => return Err(place),
                _ => place = self.next(place),
            }
        }
    }

    /// Puts `key` at `place`, where [`Table::find`] would have it.
    pub(super) fn insert(&mut self, place: usize, key: u64, full: u64) {
        debug_assert!(key != 0 && self.slots[place][0] == 0);
        self.slots[place] = [key, full];
        self.held += 1;
    }

    /// The bucket at `place`.
    pub(super) fn bucket(&mut self, place: usize) -> &mut u64 {
        &mut self.slots[place][1]
    }

    /// Whether another key has room, whatever its hash is.
    pub(super) fn has_room(&self) -> bool {
        // INVARIANT: some place is always free, so that every search ends; enough of them, so that it ends soon.
        self.held < self.slots.len() - self.slots.len() / 8 - 1
    }

    /// Forgets a key whose bucket is full by `now`; false: none was found.
    pub(super) fn forget_idle(&mut self, now: u64) -> bool {
        let mut left = LOOK.min(self.slots.len());
        while left > 0 {
            // PERF: over a slice, without a check for each place.
            let end = self.slots.len().min(self.hand + left);
            let ahead = &self.slots[self.hand..end];
            if let Some(place) = ahead.iter().position(|[key, full]| *key != 0 && *full <= now) {
                // What moves up to this place is looked at next time.
                self.hand += place;
                self.remove(self.hand);
                return true;
            }
            left -= ahead.len();
            self.hand = if end == self.slots.len() { 0 } else { end };
        }
        false
    }

    /// Empties a place. Those behind it that would not be found any more move up.
    fn remove(&mut self, mut hole: usize) {
        let size = self.slots.len();
        let distance = |from: usize, to: usize| if to >= from { to - from } else { to + size - from };
        let mut place = hole;
        loop {
            place = self.next(place);
            let [key, _] = self.slots[place];
            if key == 0 {
                break;
            }
            if distance(self.home(key), place) >= distance(hole, place) {
                self.slots[hole] = self.slots[place];
                hole = place;
            }
        }
        self.slots[hole] = [0; 2];
        self.held -= 1;
    }

    /// All buckets, to change them.
    pub(super) fn buckets(&mut self) -> impl Iterator<Item = &mut u64> {
        self.slots.iter_mut().filter(|slot| slot[0] != 0).map(|slot| &mut slot[1])
    }

    /// All keys with their buckets.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slots.iter().filter(|slot| slot[0] != 0).map(|slot| (slot[0], slot[1]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl Table {
        /// Bytes that it has taken.
        pub(in super::super) fn memory(&self) -> usize {
            self.slots.capacity() * size_of::<Slot>()
        }

        /// Every key is found where it stands, and the count is right.
        fn check(&self) {
            for (place, [key, _]) in self.slots.iter().enumerate().filter(|(_, slot)| slot[0] != 0) {
                assert_eq!(self.find(*key), Ok(place));
            }
            assert_eq!(self.iter().count(), self.held);
        }
    }

    /// Some hashes: many close together, at both ends of the table.
    fn some_key() -> impl Strategy<Value = u64> {
        prop_oneof![1u64..20, (u64::MAX - 20)..=u64::MAX, any::<u64>().prop_map(|key| key.max(1))]
    }

    proptest! {
        /// It holds what a map holds, whatever is put in and forgotten.
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((some_key(), 0u64..100, 0u64..100), 1..300)) {
            let (mut table, mut model) = (Table::new(16), HashMap::new());
            for (key, full, now) in steps {
                if !table.has_room() {
                    let idle = model.values().any(|full: &u64| *full <= now);
                    prop_assert_eq!(table.forget_idle(now), idle, "so small a table is looked through");
                    let kept: HashMap<u64, u64> = table.iter().collect();
                    prop_assert!(model.iter().all(|(key, full)| *full <= now || kept.contains_key(key)));
                    model.retain(|key, _| kept.contains_key(key));
                }
                match table.find(key) {
                    Ok(place) => prop_assert_eq!(*table.bucket(place), model[&key]),
                    Err(place) if table.has_room() => {
                        table.insert(place, key, full);
                        model.insert(key, full);
                    }
                    Err(_) => prop_assert!(!model.contains_key(&key)),
                }
                table.check();
                prop_assert_eq!(table.iter().collect::<HashMap<_, _>>(), model.clone());
            }
        }
    }

    #[test]
    fn a_full_table_finds_its_idle_keys_in_one_round_of_the_hand() {
        let mut table = Table::new(10_000);
        let (mut key, mut idle) = (0u64, 0);
        while table.has_room() {
            key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let Err(place) = table.find(key) else { continue };
            let is_idle = table.held.is_multiple_of(1000);
            idle += usize::from(is_idle);
            table.insert(place, key, if is_idle { 5 } else { 9 });
        }
        let tries = table.slots.len() / LOOK + 1 + idle;
        assert_eq!((0..tries).filter(|_| table.forget_idle(7)).count(), idle);
        assert!(!table.forget_idle(7) && table.forget_idle(9));
        table.check();
    }
}
