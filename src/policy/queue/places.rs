//! The places of a queue: a list for each class, in order of arrival, in one slab.
//!
//! Joining, going first or last, and leaving from the middle each move four numbers, however many wait (O(1)). Places
//! that came free are used again, so nothing is allocated once the queue was as long as it gets. Rejected: a
//! `VecDeque`, in which leaving from the middle moves half of the queue; a tree, which allocates for each place.

use crate::policy::priority::Priority;

/// Lists: one for each class.
pub(super) const LISTS: usize = Priority::ALL.len();

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Lists in one slab.
#[derive(Debug)]
pub(super) struct Places<T> {
    slab: Vec<Place<T>>,
    /// The first of the places that are free, linked by `next`.
    free: Option<u32>,
    lists: [List; LISTS],
    len: usize,
}

#[derive(Debug)]
struct Place<T> {
    /// Who waits; none: it is free.
    waiting: Option<T>,
    /// Which of those that ever had this place.
    number: u64,
    list: u8,
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { slab: Vec::new(), free: None, lists: Default::default(), len: 0 }
    }
}

impl<T: Copy> Places<T> {
    /// In all lists.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// In one list.
    pub(super) fn len_of(&self, list: usize) -> usize {
        self.lists[list].len
    }

    pub(super) fn first(&self, list: usize) -> Option<T> {
        self.at(self.lists[list].first)
    }

    pub(super) fn last(&self, list: usize) -> Option<T> {
        self.at(self.lists[list].last)
    }

    fn at(&self, place: u32) -> Option<T> {
        self.slab.get(place as usize)?.waiting
    }

    /// Takes the last place of `list`. `number` tells apart those who have the same place one after the other; who waits
    /// is told the place.
    pub(super) fn push(&mut self, list: usize, number: u64, waiting: impl FnOnce(u32) -> T) -> T {
        let place = self.free.unwrap_or(self.slab.len() as u32);
        let waiting = waiting(place);
        let previous = self.lists[list].last;
        let taken = Place { waiting: Some(waiting), number, list: list as u8, previous, next: NONE };
        match self.slab.get_mut(place as usize) {
            Some(free) => {
                self.free = Some(free.next).filter(|next| *next != NONE);
                *free = taken;
            }
            None => self.slab.push(taken),
        }
        match previous {
            NONE => self.lists[list].first = place,
            previous => self.slab[previous as usize].next = place,
        }
        self.lists[list].last = place;
        self.lists[list].len += 1;
        self.len += 1;
        waiting
    }

    /// Frees a place; none: who had it as `number` is not there any more.
    pub(super) fn remove(&mut self, number: u64, at: u32) -> Option<T> {
        let place = self.slab.get_mut(at as usize).filter(|place| place.number == number)?;
        let waiting = place.waiting.take()?;
        let (list, previous, next) = (usize::from(place.list), place.previous, place.next);
        place.next = self.free.replace(at).unwrap_or(NONE);
        match previous {
            NONE => self.lists[list].first = next,
            previous => self.slab[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[list].last = previous,
            next => self.slab[next as usize].previous = previous,
        }
        self.lists[list].len -= 1;
        self.len -= 1;
        Some(waiting)
    }
}
