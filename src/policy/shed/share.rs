//! Which share of the requests is to be shed: a PI controller, moved each half second.
//!
//! Its error (after Uber's Cinnamon) is (arrivals - completions - free slots) / completions. What arrived and did not
//! complete was refused for want of a slot, or still waits; and free slots count as what they could have served,
//! completions / in flight each: a bare slot says nothing beside hundreds of completions. Waits of up to 20 ms are no
//! overload (DAGOR).
//!
//! What is moved is not the share but u = -ln(1 - share). An overload of factor k asks for u = ln k, and ln(1 + error) is
//! just the distance to it: so one pair of factors is right at 1.1 times the capacity and at 20 times. Moving the share
//! itself has a gain that grows with k: what settles quickly at 2 swings at 10. The controller is in its velocity form,
//! so u itself is bounded and nothing winds up.

/// How much of the distance is covered in a step, and how much of its change.
const INTEGRAL: f64 = 0.5;
const PROPORTIONAL: f64 = 0.25;
/// The largest share.
pub const MOST: f64 = 0.95;
/// Nothing is shed for an error below this.
const BEGINS: f64 = 0.02;
/// Below this share nothing is shed any more.
const ENDS: f64 = 0.005;
/// The error is held within these: a step of rest takes a share of 0.95 down by half of what passes.
const LEAST_ERROR: f64 = -0.6;
const MOST_ERROR: f64 = 9.0;
/// Waits up to this part of a step are no overload: 20 ms of 500.
const SHORT: f64 = 0.04;

/// The wanted share, and what the next step needs to know.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// -ln(1 - share).
    u: f64,
    /// The last distance, while anything is shed.
    last: f64,
}

/// What a step has shown of the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Requests that completed.
    pub completed: u32,
    /// Requests that found neither slot nor place, or waited in vain.
    pub refused: u32,
    /// Requests that would have been shed, and passed: as good as shed, for what is wanted.
    pub passed: u32,
    /// Requests that wait at the end of the step.
    pub waiting: u32,
    /// Attempts in flight at its end, and how many there may be.
    pub in_flight: u32,
    /// The limit of attempts in flight.
    pub limit: u32,
}

impl Share {
    /// The share, from 0 to [`MOST`].
    pub fn get(self) -> f64 {
        1.0 - (-self.u).exp()
    }

    /// The share after a step that has shown this.
    pub fn step(self, seen: &Seen) -> Self {
        let error = seen.error();
        if self.u == 0.0 && error < BEGINS {
            return Self::default();
        }
        let distance = (1.0 + error).ln();
        let change = PROPORTIONAL * (distance - self.last) + INTEGRAL * distance;
        let u = (self.u + change).clamp(0.0, -(1.0 - MOST).ln());
        let moved = Self { u, last: distance };
        if moved.get() < ENDS { Self::default() } else { moved }
    }

    /// How long it takes at best until nothing is shed, in steps.
    pub fn steps_to_rest(self) -> u32 {
        let rest = Seen { limit: 1, ..Seen::default() };
        let states = std::iter::successors(Some(self), |share| Some(share.step(&rest)));
        states.take_while(|share| share.u > 0.0).count() as u32
    }
}

impl Seen {
    /// By how much more than what completed there should have been capacity for, relative to it; below 0: there was
    /// more.
    fn error(&self) -> f64 {
        let completed = f64::from(self.completed).max(1.0);
        let waiting = (f64::from(self.waiting) - SHORT * completed).max(0.0);
        let free = f64::from(self.limit.saturating_sub(self.in_flight));
        let spare = free * (completed / f64::from(self.in_flight.max(1)));
        let excess = waiting + f64::from(self.refused) - f64::from(self.passed) - spare;
        (excess / completed).clamp(LEAST_ERROR, MOST_ERROR)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An upstream of this many slots and completions in a step, before which requests do not wait.
    #[derive(Clone, Copy)]
    struct Plant {
        limit: u32,
        capacity: f64,
    }

    impl Plant {
        /// What a step shows when `arriving` requests come and this share of them is shed; `shadow`: it is not.
        fn sees(self, arriving: f64, share: f64, shadow: bool) -> Seen {
            let shed = arriving * share;
            let admitted = if shadow { arriving } else { arriving - shed };
            let completed = admitted.min(self.capacity);
            let in_flight = (f64::from(self.limit) * admitted / self.capacity).min(f64::from(self.limit));
            Seen {
                completed: completed.round() as u32,
                refused: (admitted - completed).round() as u32,
                passed: if shadow { shed.round() as u32 } else { 0 },
                waiting: 0,
                in_flight: in_flight.round() as u32,
                limit: self.limit,
            }
        }

        fn run(self, arriving: f64, shadow: bool, mut share: Share, steps: usize) -> Share {
            for _ in 0..steps {
                share = share.step(&self.sees(arriving, share.get(), shadow));
            }
            share
        }
    }

    #[test]
    fn errors_are_what_found_no_slot_or_what_was_free() {
        let seen = |completed, refused, passed, waiting, in_flight, limit| Seen {
            completed,
            refused,
            passed,
            waiting,
            in_flight,
            limit,
        };
        let cases = [
            // why                                        seen                            error
            ("full, and nobody is refused", seen(100, 0, 0, 0, 10, 10), 0.0),
            ("twice as many as could be served", seen(100, 100, 0, 0, 10, 10), 1.0),
            ("as many would have been shed", seen(100, 100, 100, 0, 10, 10), 0.0),
            ("a wait of 20 ms", seen(100, 0, 0, 4, 10, 10), 0.0),
            ("a longer one", seen(100, 0, 0, 14, 10, 10), 0.1),
            ("a fifth of the slots is free", seen(100, 0, 0, 0, 10, 12), -0.2),
            ("nobody comes", seen(0, 0, 0, 0, 0, 10), -0.6),
            ("nothing completes", seen(0, 50, 0, 0, 10, 10), 9.0),
            ("more in flight than may be", seen(100, 0, 0, 0, 30, 10), 0.0),
        ];
        for (why, seen, error) in cases {
            assert!((seen.error() - error).abs() < 1e-9, "{why}: {}", seen.error());
        }
    }

    #[test]
    fn the_share_settles_at_what_is_too_much() {
        for (factor, limit) in [(1.1, 20), (1.5, 20), (2.0, 20), (2.0, 1000), (5.0, 8), (15.0, 20)] {
            let plant = Plant { limit, capacity: 400.0 };
            let wanted = 1.0 - 1.0 / factor;
            for shadow in [false, true] {
                let settled = plant.run(400.0 * factor, shadow, Share::default(), 12);
                let later = plant.run(400.0 * factor, shadow, settled, 1);
                assert!(
                    (settled.get() - wanted).abs() < 0.05 && (later.get() - wanted).abs() < 0.05,
                    "{factor} x, shadow {shadow}: {settled:?} = {}, {}",
                    settled.get(),
                    later.get()
                );
            }
        }
    }

    #[test]
    fn light_load_sheds_nothing() {
        let busy = Seen { completed: 200, waiting: 8, in_flight: 20, limit: 20, ..Seen::default() };
        assert_eq!(Share::default().step(&busy), Share::default(), "a burst that waits for 20 ms");
        let some = |refused| Seen { completed: 200, refused, in_flight: 20, limit: 20, ..Seen::default() };
        assert_eq!(Share::default().step(&some(1)), Share::default(), "one refusal");
        assert_eq!(Share::default().step(&some(3)), Share::default(), "some refusals");
        assert!(Share::default().step(&some(4)).get() > 0.0, "too many");
    }

    proptest! {
        /// Whatever is seen, the share stays within its bounds.
        #[test]
        fn the_share_is_bounded(
            seen in prop::collection::vec((0u32..5000, 0u32..5000, 0u32..5000, 0u32..5000, 0u32..100, 0u32..100), 1..60)
        ) {
            let mut share = Share::default();
            for (completed, refused, passed, waiting, in_flight, limit) in seen {
                share = share.step(&Seen { completed, refused, passed, waiting, in_flight, limit });
                prop_assert!((0.0..=MOST + 1e-9).contains(&share.get()), "{share:?}");
            }
        }

        /// However much is shed: nine steps (4.5 s) after the load has ended, or fallen below 80 % of the capacity,
        /// nothing is.
        #[test]
        fn the_share_goes_back(factor in 1.0..40.0f64, limit in 4u32..1000, capacity in 5.0..5000.0f64, left in 0.0..0.8f64) {
            let plant = Plant { limit, capacity };
            let shed = plant.run(capacity * factor, false, Share::default(), 60);
            let rests = plant.run(capacity * left, false, shed, 9);
            prop_assert_eq!(rests.get(), 0.0, "{} before", shed.get());
        }

        /// One long standing overload winds nothing up: it does not matter how long it was.
        #[test]
        fn nothing_winds_up(steps in 20usize..400) {
            let plant = Plant { limit: 20, capacity: 100.0 };
            let shed = plant.run(1e6, false, Share::default(), steps);
            prop_assert!((shed.get() - MOST).abs() < 1e-9);
            prop_assert!(shed.steps_to_rest() <= 8, "{}", shed.steps_to_rest());
        }
    }
}
