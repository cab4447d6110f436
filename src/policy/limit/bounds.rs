//! What all kinds need: how far a limit may go, and draws.

/// What the settings allow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) initial: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// Draws without a source of chance of its own (xorshift64*): a policy gets a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice(u64);

impl Bounds {
    /// The nearest limit that is allowed.
    pub(super) fn clamp(&self, limit: f64) -> f64 {
        limit.clamp(self.min, self.max)
    }

    /// The same, and not below this as far as that is allowed.
    pub(super) fn at_least(&self, least: f64) -> Self {
        Self { min: self.clamp(least), ..*self }
    }
}

impl Dice {
    /// The same seed draws the same.
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Self(seed | 1);
        dice.draw();
        dice
    }

    /// From 0 to 1.
    pub(super) fn draw(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}
