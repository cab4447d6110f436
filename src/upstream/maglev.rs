//! Where a key belongs: a look-up table in which every endpoint has its share of places (Maglev, NSDI 2016).
//!
//! Each endpoint has an order of all places of its own, made from its name; they take turns, by weight, and each takes
//! the first place of its order that is free. So a key is found with one load, all processes find the same, and where
//! an endpoint leaves, hardly more keys move than those that it had. Why not rendezvous hashing: it looks at all
//! endpoints for each key. Why not a ring: for shares within 1 % it needs a thousand points for each endpoint, and a
//! search among them.
//!
//! The table has 65537 places however few endpoints there are. Rejected: a smaller one for a few endpoints, which
//! would hold them as evenly; when the list outgrows it all keys move at once. It takes 256 KiB, for upstreams whose
//! kind is `hash` alone.

use super::share::{Bits, rotation};

/// Places; a prime, so that every step reaches all of them.
const PLACES: usize = 65_537;

/// Which endpoint, by number, every place belongs to.
#[derive(Debug)]
pub struct Maglev(Box<[u32]>);

impl Maglev {
    /// The table of endpoints with these names, as hashes, and weights. At least one.
    pub fn new(members: &[(u64, u32)]) -> Self {
        // By name, so that the order of the list does not matter.
        let mut order: Vec<u32> = (0..members.len() as u32).collect();
        order.sort_by_key(|number| members[*number as usize]);
        let weights: Vec<u32> = order.iter().map(|number| members[*number as usize].1).collect();
        let mut walks: Vec<(usize, usize)> = order
            .iter()
            .map(|number| {
                let mut bits = Bits(members[*number as usize].0);
                let (place, step) = (bits.roll() as usize % PLACES, 1 + bits.roll() as usize % (PLACES - 1));
                (place, step)
            })
            .collect();
        let mut places = vec![u32::MAX; PLACES];
        for turn in rotation(&weights, PLACES) {
            let (place, step) = &mut walks[turn as usize];
            while places[*place] != u32::MAX {
                *place = (*place + *step) % PLACES;
            }
            places[*place] = order[turn as usize];
        }
        Self(places.into())
    }

    /// The number of the endpoint that `key`, a hash, belongs to.
    pub fn find(&self, key: u64) -> usize {
        self.0[(key % PLACES as u64) as usize] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u32]) -> Vec<(u64, u32)> {
        weights.iter().zip(1u64..).map(|(weight, name)| (Bits(name).roll(), *weight)).collect()
    }

    fn shares(members: &[(u64, u32)]) -> Vec<f64> {
        let table = Maglev::new(members);
        let mut counts = vec![0.0; members.len()];
        for place in &table.0 {
            counts[*place as usize] += 1.0 / PLACES as f64;
        }
        counts
    }

    #[test]
    fn places_follow_the_weights() {
        for weights in [&[1; 3][..], &[1; 100], &[1, 2, 7], &[1000, 1]] {
            let total: u32 = weights.iter().sum();
            for (share, weight) in shares(&members(weights)).iter().zip(weights) {
                let expected = f64::from(*weight) / f64::from(total);
                assert!((share - expected).abs() < expected * 0.01 + 2e-5, "{share} of {weight} in {total}");
            }
        }
    }

    #[test]
    fn where_one_leaves_few_other_keys_move() {
        for count in [2, 3, 10, 100] {
            let before = members(&vec![1; count]);
            let gone = count / 2;
            let mut after = before.clone();
            after.remove(gone);
            let (was, is) = (Maglev::new(&before), Maglev::new(&after));
            let renumbered = |number: usize| if number > gone { number - 1 } else { number };
            let moved = (0..PLACES as u64)
                .filter(|key| was.find(*key) == gone || renumbered(was.find(*key)) != is.find(*key))
                .count();
            assert!(moved as f64 / PLACES as f64 <= 2.0 / count as f64, "{moved} with {count}");
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let forth = members(&[1, 2, 3, 4]);
        let mut back = forth.clone();
        back.reverse();
        let (one, other) = (Maglev::new(&forth), Maglev::new(&back));
        assert!((0..PLACES as u64).all(|key| forth[one.find(key)] == back[other.find(key)]));
    }
}
