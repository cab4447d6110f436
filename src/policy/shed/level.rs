//! Levels: one number for how much a request matters and whose it is.
//!
//! Four classes, and in each 128 places over which callers are spread by a hash: so a cut-off can shed a tenth of a
//! class, and always the same callers of it. Two processes that know a caller by the same key give it the same level.
//!
//! Callers change places each hour, or the same ones would be shed in every overload. Each has an hour of its own: its
//! hash says at which second it begins. Were it the same for all, half of the sessions that a standing overload has
//! spared would be cut in one second, and as many others let in.

use crate::policy::priority::Priority;

/// Places of a class.
pub const PLACES: u16 = 128;
/// Levels in all. As a cut-off: nothing is shed.
pub const LEVELS: u16 = PLACES * Priority::ALL.len() as u16;
/// How long a caller keeps its place, in seconds.
const TURN: u64 = 3600;

/// The level of a request, from 0 (shed last) to `LEVELS` - 1. `caller`: a hash that spreads well; `seconds`: since 1970.
pub fn level(priority: Priority, caller: u64, seconds: u64) -> u16 {
    let turn = (seconds + caller % TURN) / TURN;
    // Bits that other choices by the same hash (an endpoint, a rollout) do not depend on (splitmix64's finaliser).
    let mut mixed = caller ^ turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    first_of(priority) + (mixed >> 57) as u16
}

/// The first level of a class.
pub const fn first_of(priority: Priority) -> u16 {
    priority.rank() as u16 * PLACES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whoever calls, and when: a class's levels lie below those of the next one.
        #[test]
        fn a_level_lies_in_its_class(rank in 0usize..4, caller: u64, seconds in 0u64..1 << 40) {
            let class = Priority::ALL[rank];
            let level = level(class, caller, seconds);
            prop_assert!((first_of(class)..first_of(class) + PLACES).contains(&level));
        }

        /// A caller changes places at most once in any hour, and its classes change together.
        #[test]
        fn a_caller_is_treated_alike_for_an_hour(caller: u64, from in 0u64..1 << 40, after in 0u64..3600) {
            let at = |class, seconds| level(class, caller, seconds) - first_of(class);
            let (start, end) = (at(Priority::Normal, from), at(Priority::Normal, from + 3600));
            let between = at(Priority::Normal, from + after);
            prop_assert!(between == start || between == end);
            prop_assert_eq!(between, at(Priority::Low, from + after));
        }
    }

    #[test]
    fn no_second_moves_many_callers() {
        let callers: Vec<u64> = (0..3600u64).map(|id| id.wrapping_mul(0x2545_f491_4f6c_dd1d)).collect();
        let places = |seconds| callers.iter().map(move |caller| level(Priority::Normal, *caller, seconds));
        let moved = |from, to| places(from).zip(places(to)).filter(|(one, other)| one != other).count();
        let start = 1_764_547_200; // the beginning of an hour
        let most = (start - 60..start + 3600).step_by(10).map(|second| moved(second, second + 10)).max();
        assert!(most < Some(40), "{most:?} of 3600 callers moved within 10 s");
        let within_the_hour = moved(start, start + 3600);
        assert!(within_the_hour > 3500, "only {within_the_hour} of 3600 have moved in an hour");
    }

    #[test]
    fn callers_are_spread_evenly() {
        let mut counts = [0u32; PLACES as usize];
        for id in 0..128_000u64 {
            counts[usize::from(level(Priority::Critical, id.wrapping_mul(0x2545_f491_4f6c_dd1d), 0))] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
