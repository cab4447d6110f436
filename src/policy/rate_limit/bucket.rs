//! One bucket: the generic cell rate algorithm (GCRA, ITU-T I.371), in whole nanoseconds.
//!
//! A bucket is one word, the time at which it will be full again if nothing more comes ("theoretical arrival time").
//! Each request moves that time on by what the rate takes for one; it passes while the bucket is full within the time
//! that the burst takes. That equals a token bucket without a timer that refills it: timers under-run when they are
//! late, and a word for each key is all that is kept.
//!
//! Rounding is to the strict side: what one request takes is rounded up, so that never more than the burst and the
//! rate pass. At a million requests a second, the most, that is 0.1 % at worst.

use crate::units::{Amount, Rate};

/// The longest that a bucket may take to be full again, in nanoseconds: ten years. More debt is forgiven.
pub(super) const LONGEST: u64 = 10 * 365 * 86_400 * 1_000_000_000;

/// What a bucket goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// How much in `period` nanoseconds.
    amount: u64,
    period: u64,
    /// What one request takes; 0 where bytes are counted, which are charged when they have flowed.
    one: u64,
    /// What the whole burst takes.
    depth: u64,
}

impl Terms {
    pub(super) fn new(rate: Rate, burst: Amount) -> Self {
        let (amount, period) = (rate.amount().get(), u64::from(rate.seconds()) * 1_000_000_000);
        let counts_requests = matches!(rate.amount(), Amount::Requests(_));
        let one = if counts_requests { period.div_ceil(amount) } else { 0 };
        let mut terms = Self { amount, period, one, depth: 0 };
        // Where the burst is not even a nanosecond of the rate it is one all the same, or nothing would pass.
        terms.depth = terms.time_of(burst.get()).clamp(1, LONGEST);
        terms
    }

    /// What so many requests or bytes take, rounded up.
    fn time_of(&self, number: u64) -> u64 {
        let nanos = match self.one {
            0 => (u128::from(number) * u128::from(self.period)).div_ceil(self.amount.into()),
            one => u128::from(number) * u128::from(one),
        };
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// Whether another request may pass a bucket that is full again at `full`.
    ///
    /// # Errors
    /// After how many nanoseconds it may.
    pub(super) fn check(&self, full: u64, now: u64) -> Result<(), u64> {
        // Of bytes there must be something left: none are taken yet.
        let taken = full.max(now) - now + self.one.max(1);
        if taken <= self.depth { Ok(()) } else { Err(taken - self.depth) }
    }

    /// The bucket behind one more request.
    pub(super) fn charge(&self, full: u64, now: u64) -> u64 {
        full.max(now) + self.one
    }

    /// The bucket behind so many more bytes, whether it had them or not.
    pub(super) fn owe(&self, full: u64, now: u64, bytes: u64) -> u64 {
        full.max(now).saturating_add(self.time_of(bytes)).min(now + LONGEST)
    }

    /// How many requests or bytes could pass at once.
    pub(super) fn remaining(&self, full: u64, now: u64) -> u64 {
        let left = self.depth.saturating_sub(full.saturating_sub(now));
        match self.one {
            0 => (u128::from(left) * u128::from(self.amount) / u128::from(self.period)) as u64,
            one => left / one,
        }
    }

    /// The bucket that went by `before` until now: what was taken of it stays taken, and comes back at the new rate.
    pub(super) fn take_over(&self, before: &Terms, full: u64, now: u64) -> u64 {
        let taken = full.saturating_sub(now);
        let number = match before.one {
            0 => (u128::from(taken) * u128::from(before.amount)).div_ceil(before.period.into()),
            one => u128::from(taken.div_ceil(one)),
        };
        let taken = self.time_of(u64::try_from(number).unwrap_or(u64::MAX));
        // A burst that got smaller leaves no debt; only bytes have that.
        let most = if self.one > 0 { self.depth } else { LONGEST };
        now + taken.min(most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn terms(rate: &str, burst: u64) -> Terms {
        let rate: Rate = rate.parse().expect("a rate");
        Terms::new(rate, rate.amount().with(burst))
    }

    #[test]
    fn a_bucket_lets_its_burst_through_and_then_its_rate() {
        let terms = terms("10/s", 3);
        let steps = [
            // why                              at ms    may it
            ("the burst", 0, Ok(())),
            ("its second", 0, Ok(())),
            ("its last", 0, Ok(())),
            ("the burst is spent", 0, Err(100)),
            ("nor a moment later", 40, Err(60)),
            ("one has come back", 100, Ok(())),
            ("only one", 100, Err(100)),
            ("what was refused cost nothing", 200, Ok(())),
            ("never more than the burst is saved", 10_000, Ok(())),
            ("the second", 10_000, Ok(())),
            ("the third", 10_000, Ok(())),
            ("not the fourth", 10_000, Err(100)),
        ];
        let mut full = 0;
        for (why, at, expected) in steps {
            let now = at * 1_000_000;
            let checked = terms.check(full, now);
            assert_eq!(checked, expected.map_err(|millis: u64| millis * 1_000_000), "{why}");
            if checked.is_ok() {
                full = terms.charge(full, now);
            }
        }
    }

    #[test]
    fn bytes_are_owed_when_they_have_flowed() {
        let terms = terms("1000B/s", 500);
        assert_eq!(terms.check(0, 0), Ok(()), "something is left");
        let full = terms.owe(0, 0, 2500);
        assert_eq!(full, 2_500_000_000);
        assert_eq!(terms.remaining(full, 0), 0);
        assert_eq!(terms.check(full, 0), Err(2_000_000_001), "2000 are owed, and one must be there");
        assert_eq!(terms.check(full, 2 * SECOND), Err(1), "nothing is left yet");
        assert_eq!(terms.check(full, 2 * SECOND + 1), Ok(()));
        assert_eq!(terms.remaining(full, 2 * SECOND + 100_000_000), 100);
        assert_eq!(terms.owe(0, 5, u64::MAX), 5 + LONGEST, "no debt lasts for ever");
    }

    #[test]
    fn what_remains_is_told() {
        let terms = terms("100/s", 200);
        let full = (0..50).fold(0, |full, _| terms.charge(full, 0));
        assert_eq!(terms.remaining(0, 0), 200);
        assert_eq!(terms.remaining(full, 0), 150);
        assert_eq!(terms.remaining(full, SECOND / 4), 175);
        assert_eq!(terms.remaining(full, SECOND), 200);
    }

    #[test]
    fn another_rate_keeps_what_was_taken() {
        let cases = [
            // why                                    before            after            taken  left
            ("the same rate", ("10/s", 20), ("10/s", 20), 15, 5),
            ("a faster rate", ("10/s", 20), ("1000/s", 20), 15, 5),
            ("a slower one", ("1000/s", 20), ("1/h", 20), 15, 5),
            ("a larger burst", ("10/s", 20), ("10/s", 100), 15, 85),
            ("a burst that is spent", ("10/s", 20), ("10/s", 10), 15, 0),
            ("bytes", ("1000B/s", 2000), ("5B/m", 3000), 1500, 1500),
        ];
        for (why, before, after, taken, left) in cases {
            let (before, after) = (terms(before.0, before.1), terms(after.0, after.1));
            let now = 77 * SECOND;
            let full = now + before.time_of(taken);
            let full = after.take_over(&before, full, now);
            assert_eq!(after.remaining(full, now), left, "{why}");
            assert_eq!(after.take_over(&before, now - 5, now), now, "{why}: a full bucket stays full");
        }
        let (before, after) = (terms("1000B/s", 10), terms("2000B/s", 10));
        assert_eq!(after.take_over(&before, 8 * SECOND, 0), 4 * SECOND, "a debt stays one");
        let (before, after) = (terms("1/h", 100), terms("100/s", 2));
        let full = after.take_over(&before, 100 * 3600 * SECOND, 0);
        assert_eq!(after.check(full, 0), Err(SECOND / 100), "nobody waits for the old rate");
    }

    /// A token bucket in fractions, with a tolerance for them: too simple to be wrong.
    struct Model {
        tokens: f64,
        at: u64,
        rate: f64,
        burst: f64,
    }

    impl Model {
        fn take(&mut self, now: u64) -> bool {
            let now = now.max(self.at);
            self.tokens = (self.tokens + (now - self.at) as f64 * self.rate).min(self.burst);
            self.at = now;
            let has = self.tokens >= 1.0 - 1e-6;
            self.tokens -= f64::from(u8::from(has));
            has
        }
    }

    proptest! {
        /// It passes just what a token bucket passes.
        #[test]
        fn it_equals_a_token_bucket(
            // Rates whose requests take whole nanoseconds.
            per_second in prop::sample::select(vec![1u32, 2, 5, 8, 10, 100, 1000, 8000, 100_000]),
            burst in 1u32..50,
            steps in prop::collection::vec(0u64..3_000_000_000, 1..200),
        ) {
            let terms = terms(&format!("{per_second}/s"), burst.into());
            let rate = f64::from(per_second) / 1e9;
            let mut model = Model { tokens: burst.into(), at: 0, rate, burst: burst.into() };
            let (mut now, mut full) = (0, 0);
            for step in steps {
                // Most steps are of the order of a request.
                now += step % (4_000_000_000 / u64::from(per_second)).max(2);
                let passes = terms.check(full, now).is_ok();
                prop_assert_eq!(passes, model.take(now), "at {}", now);
                if passes {
                    full = terms.charge(full, now);
                }
            }
        }

        /// In no interval do more pass than the burst and the rate, in exact numbers.
        #[test]
        fn never_more_than_burst_and_rate(
            amount in 1u64..100_000, period in prop::sample::select(vec!["s", "m", "h", "d"]), burst in 1u64..20,
            steps in prop::collection::vec(0u64..1_000_000, 1..200),
        ) {
            let terms = terms(&format!("{amount}/{period}"), burst);
            let (mut now, mut full, mut passed) = (0, 0, Vec::new());
            for step in steps {
                now += step * terms.one / 300_000;
                if terms.check(full, now).is_ok() {
                    full = terms.charge(full, now);
                    passed.push(now);
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    let number = (last - first + 1) as u128;
                    let allowed = u128::from(burst) * u128::from(terms.period) + u128::from(to - from) * u128::from(amount);
                    prop_assert!(number * u128::from(terms.period) <= allowed, "{number} from {from} to {to}");
                }
            }
        }

        /// Whoever comes back when he was told to is let in.
        #[test]
        fn the_wait_is_just_long_enough(
            rate in prop::sample::select(vec!["7/s", "1/d", "999999/s", "1MiB/s", "3B/m"]), burst in 1u64..1000,
            full in 0u64..100_000_000_000_000, now in 0u64..1_000_000_000_000,
        ) {
            let terms = terms(rate, burst);
            if let Err(wait) = terms.check(full, now) {
                prop_assert!(wait > 0);
                prop_assert!(terms.check(full, now + wait).is_ok());
                prop_assert!(terms.check(full, now + wait - 1).is_err());
            }
        }
    }
}
