//! Deadlines: how they come in and go out, and whether an attempt could still finish.
//!
//! What travels is the *time left*, never an instant: each hop anchors it anew on its own monotonic clock, so that
//! skew between clocks does not matter (as gRPC does it). What goes out is rounded down, so it falls from hop to
//! hop and from attempt to attempt.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::units::Span;

/// A `grpc-timeout` that does not read as gRPC has it: at most 8 digits and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The units of `grpc-timeout` and their nanoseconds, the finest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The most that eight digits hold, and one.
const EIGHT_DIGITS: u128 = 100_000_000;

/// Reads a `grpc-timeout`; longer than ten years is ten years.
///
/// # Errors
/// [`Malformed`], which refuses the request (gRPC over HTTP/2, "Timeout").
pub fn parse_grpc_timeout(value: &[u8]) -> Result<Duration, Malformed> {
    let (unit, digits) = value.split_last().ok_or(Malformed)?;
    let (_, nanos) = UNITS.iter().find(|(name, _)| name == unit).ok_or(Malformed)?;
    if !(1..=8).contains(&digits.len()) {
        return Err(Malformed);
    }
    let number = parse_digits(digits).ok_or(Malformed)?;
    let whole = Duration::from_nanos_u128(u128::from(number) * u128::from(*nanos));
    Ok(whole.min(*Span::MAX))
}

/// Appends `left` as a `grpc-timeout`, rounded down to the finest unit in which eight digits hold it.
pub fn write_grpc_timeout(left: Duration, out: &mut Vec<u8>) {
    let nanos = left.as_nanos();
    let (unit, length) =
        UNITS.iter().find(|(_, length)| nanos / u128::from(*length) < EIGHT_DIGITS).unwrap_or(&UNITS[5]);
    let number = (nanos / u128::from(*length)).min(EIGHT_DIGITS - 1);
    out.extend_from_slice(itoa::Buffer::new().format(number as u32).as_bytes());
    out.push(*unit);
}

/// Reads a number of milliseconds (`x-request-timeout-ms`, `x-envoy-expected-rq-timeout-ms`); longer than ten
/// years is ten years. `None`: unreadable, so it is ignored and counted.
pub fn parse_millis(value: &[u8]) -> Option<Duration> {
    parse_digits(value).map(|millis| Duration::from_millis(millis).min(*Span::MAX))
}

/// Digits and nothing else; more than a `u64` holds is the largest one.
fn parse_digits(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = u64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

/// Whether an attempt with this much time left could finish: one for each upstream, shared by all workers.
///
/// No attempt starts with less left than max(5 ms, p50). One in twenty of those starts nevertheless, and at least
/// one a second, or the rule would latch shut: nobody admitted, so nothing sampled, so p50 never falls. Counted
/// by relaxed atomics: two workers that meet let one more through, which does no harm.
#[derive(Debug)]
pub struct Feasibility {
    start: Instant,
    /// How many were found hopeless since the last one that was let through nevertheless.
    hopeless: AtomicU32,
    /// When that was, in milliseconds since `start`.
    passed_at: AtomicU64,
}

impl Feasibility {
    /// The least time in which any attempt could finish.
    pub const LEAST: Duration = Duration::from_millis(5);
    const ONE_IN: u32 = 20;
    const AT_LEAST_EACH_MILLIS: u64 = 1000;

    /// Nothing was found hopeless yet.
    pub fn new(now: Instant) -> Self {
        Self { start: now, hopeless: AtomicU32::new(0), passed_at: AtomicU64::new(0) }
    }

    /// Whether an attempt may start with this much time `left`, while half of those that succeed need `p50`.
    pub fn check(&self, now: Instant, left: Duration, p50: Option<Duration>) -> bool {
        left >= p50.unwrap_or_default().max(Self::LEAST) || (!left.is_zero() && self.passes_regardless(now))
    }

    #[cold]
    fn passes_regardless(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.start).as_millis() as u64;
        let nth = self.hopeless.fetch_add(1, Relaxed) + 1;
        let passes = nth >= Self::ONE_IN || now >= self.passed_at.load(Relaxed) + Self::AT_LEAST_EACH_MILLIS;
        if passes {
            self.hopeless.store(0, Relaxed);
            self.passed_at.store(now, Relaxed);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::start;

    #[test]
    fn a_grpc_timeout_is_at_most_eight_digits_and_a_unit() {
        let cases: [(&[u8], Option<Duration>); 16] = [
            (b"1n", Some(Duration::from_nanos(1))),
            (b"250u", Some(Duration::from_micros(250))),
            (b"99999999m", Some(Duration::from_millis(99_999_999))),
            (b"3S", Some(Duration::from_secs(3))),
            (b"2M", Some(Duration::from_secs(120))),
            (b"1H", Some(Duration::from_secs(3600))),
            (b"0S", Some(Duration::ZERO)),
            (b"99999999H", Some(*Span::MAX)),
            (b"", None),
            (b"S", None),
            (b"5", None),
            (b"123456789n", None),
            (b"-1S", None),
            (b"+1S", None),
            (b"1.5S", None),
            (b"1s", None),
        ];
        for (value, timeout) in cases {
            assert_eq!(parse_grpc_timeout(value).ok(), timeout, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn milliseconds_are_digits_and_nothing_else() {
        let cases: [(&[u8], Option<Duration>); 7] = [
            (b"250", Some(Duration::from_millis(250))),
            (b"0", Some(Duration::ZERO)),
            (b"99999999999999999999999", Some(*Span::MAX)),
            (b"", None),
            (b"-5", None),
            (b" 5", None),
            (b"5ms", None),
        ];
        for (value, timeout) in cases {
            assert_eq!(parse_millis(value), timeout, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn of_hopeless_attempts_one_in_twenty_starts_and_one_a_second() {
        let now = start();
        let (left, p50) = (Duration::from_millis(50), Some(Duration::from_millis(80)));

        let often = Feasibility::new(now);
        let passed = (0..2000).filter(|_| often.check(now, left, p50)).count();
        assert_eq!(passed, 100, "one in twenty");

        let seldom = Feasibility::new(now);
        let asks = (0..60).map(|half_seconds| now + Duration::from_millis(500) * half_seconds);
        let passed = asks.filter(|at| seldom.check(*at, left, p50)).count();
        assert_eq!(passed, 29, "at two a second, one a second");
    }

    #[test]
    fn an_attempt_needs_max_of_5_ms_and_p50() {
        let cases = [
            // why                                   left  p50       starts
            ("enough", 80, Some(80), true),
            ("less than half of them need", 79, Some(80), false),
            ("nothing known: 5 ms", 5, None, true),
            ("nothing known: less than 5 ms", 4, None, false),
            ("a fast upstream: 5 ms nevertheless", 4, Some(1), false),
            ("no time left", 0, Some(0), false),
        ];
        for (why, left, p50, starts) in cases {
            let (left, p50) = (Duration::from_millis(left), p50.map(Duration::from_millis));
            assert_eq!(Feasibility::new(start()).check(start(), left, p50), starts, "{why}");
        }
    }

    #[test]
    fn whoever_has_no_time_at_all_is_not_let_through_to_learn() {
        let feasibility = Feasibility::new(start());
        let later = |seconds| start() + Duration::from_secs(seconds);
        assert!((0..100).all(|second| !feasibility.check(later(second), Duration::ZERO, None)));
    }

    proptest! {
        /// What goes out is never more than what is left, loses at most what follows the fifth digit (100.000999 s
        /// has nine digits of microseconds, one too many, and goes as 100000 ms), and is read back as written.
        #[test]
        fn a_written_timeout_is_what_is_left_rounded_down(seconds in 0u64..400_000_000, nanos in 0u32..1_000_000_000, shift in 0u32..30) {
            let left = Duration::new(seconds >> shift, nanos >> shift);
            let mut text = Vec::new();
            write_grpc_timeout(left, &mut text);
            prop_assert!(text.len() <= 9);
            let read = parse_grpc_timeout(&text).expect("it is well formed");
            prop_assert!(read <= left.min(*Span::MAX));
            prop_assert_eq!(read.is_zero(), left.is_zero());
            let lost = left.min(*Span::MAX) - read;
            prop_assert!(lost <= left.div_f64(100_000.0) + Duration::from_nanos(1), "{left:?} as {read:?}");
        }

        #[test]
        fn nothing_that_comes_in_panics(value: Vec<u8>) {
            let _ = (parse_grpc_timeout(&value), parse_millis(&value));
        }
    }
}
