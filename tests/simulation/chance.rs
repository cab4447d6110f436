//! Draws that are the same on every machine: only what IEEE 754 rounds exactly is used, and no `ln` of a C library.

/// Seeded draws.
pub(crate) struct Chance(fastrand::Rng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// From 0 to 1.
    pub(crate) fn even(&mut self) -> f64 {
        self.0.f64()
    }

    /// Whether something happens that does so in this ratio of cases.
    pub(crate) fn is(&mut self, ratio: f64) -> bool {
        ratio > 0.0 && self.even() < ratio
    }

    /// The time to the next event of a Poisson process, in its mean.
    pub(crate) fn gap(&mut self) -> f64 {
        -ln(1.0 - self.even())
    }

    /// Lognormal with this spread and a mean of one.
    pub(crate) fn lognormal(&mut self, sigma: f64) -> f64 {
        // The sum of twelve is normal enough up to three sigma.
        let normal: f64 = (0..12).map(|_| self.even()).sum::<f64>() - 6.0;
        exp(sigma * normal - sigma * sigma / 2.0)
    }
}

fn ln(x: f64) -> f64 {
    let mut power = 0.0;
    let mut rest = x.max(1e-300);
    while rest < 0.75 {
        rest *= 2.0;
        power -= 1.0;
    }
    let z = (rest - 1.0) / (rest + 1.0);
    let square = z * z;
    let series = (0..12).rev().fold(0.0, |sum, n| sum * square + 1.0 / f64::from(2 * n + 1));
    2.0 * z * series + power * std::f64::consts::LN_2
}

fn exp(x: f64) -> f64 {
    // e^x = (e^(x / 16))^16
    let part = x / 16.0;
    let series = (1..12).rev().fold(1.0, |sum, n| 1.0 + part * sum / f64::from(n));
    (0..4).fold(series, |power, _| power * power)
}

#[test]
fn the_draws_are_what_they_claim() {
    for x in [1e-9, 0.1, 0.5, 0.9, 1.0, 1.7] {
        assert!((ln(x) - x.ln()).abs() < 1e-9, "ln {x}");
        assert!((exp(x) - x.exp()).abs() < 1e-9, "exp {x}");
    }
    let mut chance = Chance::new(1);
    let mean = |draw: &mut dyn FnMut() -> f64| (0..100_000).map(|_| draw()).sum::<f64>() / 1e5;
    assert!((mean(&mut || chance.gap()) - 1.0).abs() < 0.02);
    assert!((mean(&mut || chance.lognormal(0.4)) - 1.0).abs() < 0.02);
}
