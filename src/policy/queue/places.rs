//! The places of a queue: a list for each class, in order of arrival, in one slab.
//!
//! Joining, going first or last, and leaving from the middle each move four numbers, however many wait (O(1)). Places
//! that came free are used again, so nothing is allocated once the queue was as long as it gets. Rejected: a
//! `VecDeque`, in which leaving from the middle moves half of the queue; a tree, which allocates for each place.

use std::time::Instant;

use super::Ticket;
use crate::policy::priority::Priority;

/// Lists: one for each class.
pub(super) const LISTS: usize = Priority::ALL.len();

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Who waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    /// The end of its time.
    pub(super) deadline: Instant,
}

/// Lists in one slab.
#[derive(Debug, Default)]
pub(super) struct Places {
    slab: Vec<Place>,
    /// The first of the places that are free, linked by `next`.
    free: Option<u32>,
    lists: [List; LISTS],
    len: usize,
}

#[derive(Debug)]
struct Place {
    waiting: Option<Waiting>,
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

impl Places {
    /// In all lists.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// In one list.
    pub(super) fn len_of(&self, list: usize) -> usize {
        self.lists[list].len
    }

    pub(super) fn first(&self, list: usize) -> Option<Waiting> {
        self.at(self.lists[list].first)
    }

    pub(super) fn last(&self, list: usize) -> Option<Waiting> {
        self.at(self.lists[list].last)
    }

    fn at(&self, place: u32) -> Option<Waiting> {
        self.slab.get(place as usize)?.waiting
    }

    /// Takes the last place of `list`; the ticket is made for its number.
    pub(super) fn push(
        &mut self,
        list: usize,
        deadline: Instant,
        ticket: impl FnOnce(u32) -> Ticket,
    ) -> Ticket {
        let place = self.free.unwrap_or(self.slab.len() as u32);
        let waiting = Waiting { ticket: ticket(place), deadline };
        let previous = self.lists[list].last;
        let taken = Place { waiting: Some(waiting), list: list as u8, previous, next: NONE };
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
        waiting.ticket
    }

    /// Frees the place of `ticket`; none: it is not here any more.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let place = self.slab.get_mut(ticket.place as usize)?;
        let waiting = place.waiting.take_if(|waiting| waiting.ticket.number == ticket.number)?;
        let (list, previous, next) = (usize::from(place.list), place.previous, place.next);
        place.next = self.free.replace(ticket.place).unwrap_or(NONE);
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
