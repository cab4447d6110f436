//! Shares by weight: tables that are built when a list changes, and read in a few nanoseconds.
//!
//! [`Alias`] draws (Walker's alias method, in Vose's order): one load whatever the weights are. [`rotation`] is the
//! order in which everybody has a turn: as in weighted fair queueing, the n-th turn of a weight w is due at
//! (n - 1/2) / w, so turns of one endpoint lie as far apart as they can. Rejected: cumulative weights with a binary
//! search (ten misses of the cache for a thousand endpoints), smooth round robin as nginx has it (it looks at all of
//! them for each request, and under a lock).

/// Draws numbers by weight.
#[derive(Debug, Default)]
pub struct Alias {
    /// For each number: the chance, in 2^-32, to stay with it, and whom it else falls to.
    rows: Box<[(u32, u32)]>,
}

impl Alias {
    /// Draws `n` with a chance of `weights[n]` in all of them. At least one, all above 0.
    pub fn new(weights: &[u32]) -> Self {
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let mean = total / weights.len().max(1) as f64;
        let mut chance: Vec<f64> = weights.iter().map(|weight| f64::from(*weight) / mean).collect();
        let mut rows = vec![(u32::MAX, 0); weights.len()];
        for (number, row) in rows.iter_mut().enumerate() {
            row.1 = number as u32;
        }
        let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|number| chance[*number] < 1.0);
        while let (Some(giver), Some(taker)) = (rich.last().copied(), poor.pop()) {
            rows[taker] = ((chance[taker] * 2f64.powi(32)) as u32, giver as u32);
            chance[giver] -= 1.0 - chance[taker];
            if chance[giver] < 1.0 {
                rich.pop();
                poor.push(giver);
            }
        }
        Self { rows: rows.into() }
    }

    /// The number that these random bits fall to.
    pub fn draw(&self, bits: u64) -> usize {
        let number = (((bits >> 32) * self.rows.len() as u64) >> 32) as usize;
        let (stays, other) = self.rows[number];
        if bits as u32 <= stays { number } else { other as usize }
    }
}

/// Random bits from random bits (Steele's splitmix64): one draw of the worker is enough for a whole pick, and the
/// same key draws the same.
#[derive(Clone, Copy, Debug)]
pub struct Bits(pub u64);

impl Bits {
    /// The next 64 of them.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// From 0 to 1, 1 excluded.
    pub fn fraction(&mut self) -> f32 {
        (self.roll() >> 40) as f32 / (1u32 << 24) as f32
    }
}

/// `length` turns of all numbers by weight, each as evenly spread as can be. Everybody has one while there are
/// enough; ties go by number.
pub fn rotation(weights: &[u32], length: usize) -> Vec<u32> {
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let mut turns = Vec::with_capacity(length + weights.len());
    for (number, weight) in weights.iter().enumerate() {
        let share = f64::from(*weight) / total;
        let own = ((share * length as f64).ceil() as usize).max(1);
        // The first turn comes in the first half, however small the weight: the second may be cut off.
        let due = |turn| {
            if turn == 0 { (0.5 / share).min(length as f64 / 2.0) } else { (turn as f64 + 0.5) / share }
        };
        turns.extend((0..own).map(|turn| (due(turn), number as u32)));
    }
    // Rounded up, there is one too many of some: their last turns are due last.
    turns.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    turns.truncate(length);
    turns.into_iter().map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turns_are_spread_evenly() {
        assert_eq!(rotation(&[1, 1, 1], 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(rotation(&[1, 3], 8), [1, 0, 1, 1, 1, 0, 1, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// What is drawn is a known number, and each is drawn by its weight.
        #[test]
        fn draws_follow_the_weights(weights in prop::collection::vec(1u32..=1000, 1..40)) {
            let alias = Alias::new(&weights);
            let mut counts = vec![0u32; weights.len()];
            let mut bits = Bits(7);
            const DRAWS: u32 = 200_000;
            for _ in 0..DRAWS {
                counts[alias.draw(bits.roll())] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let share = f64::from(*weight) / f64::from(total);
                let sigma = (f64::from(DRAWS) * share * (1.0 - share)).sqrt();
                prop_assert!((f64::from(*count) - f64::from(DRAWS) * share).abs() < 6.0 * sigma + 1.0);
            }
        }

        /// A rotation has its length, and turns by weight give or take one.
        #[test]
        fn turns_follow_the_weights(weights in prop::collection::vec(1u32..=50, 1..20)) {
            let total: u32 = weights.iter().sum();
            let turns = rotation(&weights, total as usize);
            prop_assert_eq!(turns.len(), total as usize);
            for (number, weight) in weights.iter().enumerate() {
                let own = turns.iter().filter(|turn| **turn == number as u32).count() as i64;
                prop_assert!((own - i64::from(*weight)).abs() <= 1, "{own} of {weight}");
            }
        }
    }
}
