//! How long an upstream's successful attempts take to the response's head: p50 and p99 of the last ten seconds.
//!
//! Of a `histogram`. Why not a moving average: one slow answer in a hundred moves it, and says nothing
//! of what half of them need.
//!
//! Shared by all workers. Quantiles are computed each 100 ms at most, so reading one is a load.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::histogram::{Counts, Histogram};
use super::timeout::is_late;

/// Slices of 2 s that count, the one that is filled included: the last 8 to 10 s.
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_secs(2);
/// With fewer samples nothing is known.
const MIN_SAMPLES: u64 = 10;
const UNKNOWN: u64 = u64::MAX;
/// The time in which `usual_p99` at most doubles.
const DOUBLING_MICROS: f64 = 60e6;

/// The latencies of one upstream. Some 7 KiB, whatever comes.
#[derive(Debug)]
pub struct Latency {
    seen: Histogram<SLICES>,
    p50: AtomicU64,
    p99: AtomicU64,
    usual_p99: AtomicU64,
    /// When it was last computed.
    usual_at: AtomicU64,
    /// When an attempt last succeeded in time, in milliseconds.
    well_at: AtomicU64,
}

impl Latency {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self {
            seen: Histogram::new(now, SLICE),
            p50: AtomicU64::new(UNKNOWN),
            p99: AtomicU64::new(UNKNOWN),
            usual_p99: AtomicU64::new(UNKNOWN),
            usual_at: AtomicU64::new(0),
            well_at: AtomicU64::new(0),
        }
    }

    /// Counts an attempt that succeeded at `now`.
    pub fn record(&self, now: Instant, latency: Duration) {
        self.seen.record(now, latency);
        if !is_late(latency, known(self.usual_p99.load(Relaxed))) {
            let at = self.seen.micros(now) / 1000;
            // PERF: each answer reads this line, so it is written to each millisecond at most.
            if self.well_at.load(Relaxed) != at {
                self.well_at.store(at, Relaxed);
            }
        }
    }

    /// How long ago an attempt has last succeeded in a time that is not late, up to a millisecond more; since the start
    /// where none has. For `timeout::is_evidence`: an upstream that is overloaded answers too, but late.
    pub fn silence(&self, now: Instant) -> Duration {
        let since = self.well_at.load(Relaxed) * 1000;
        Duration::from_micros(self.seen.micros(now).saturating_sub(since))
    }

    /// What half of the last ten seconds' attempts needed at most; `None` below ten samples.
    pub fn p50(&self, now: Instant) -> Option<Duration> {
        self.refresh(now);
        known(self.p50.load(Relaxed))
    }

    /// What 99 of 100 of them needed at most; `None` below ten samples.
    pub fn p99(&self, now: Instant) -> Option<Duration> {
        self.refresh(now);
        known(self.p99.load(Relaxed))
    }

    /// The p99 of good times: it follows p99 down at once, up by at most a doubling each minute, and stays where it
    /// is while nothing succeeds. `None`: never known.
    ///
    /// For `timeout::is_evidence`: an upstream that slows down under overload raises its own p99 in the seconds
    /// before all of its answers come too late, and measured by that none of its timeouts would say anything.
    pub fn usual_p99(&self, now: Instant) -> Option<Duration> {
        self.refresh(now);
        known(self.usual_p99.load(Relaxed))
    }

    fn refresh(&self, now: Instant) {
        self.seen.refresh(now, |at, counts| self.compute(at, counts));
    }

    fn compute(&self, at: u64, counts: &Counts) {
        let known = counts.total >= MIN_SAMPLES;
        let mut quantiles = counts.quantiles([500, 990].into_iter());
        let mut next = || quantiles.next().filter(|_| known).unwrap_or(UNKNOWN);
        let (p50, p99) = (next(), next());
        self.p50.store(p50, Relaxed);
        self.p99.store(p99, Relaxed);
        if known {
            let since = at.saturating_sub(self.usual_at.swap(at, Relaxed));
            let usual = self.usual_p99.load(Relaxed) as f64 * 2f64.powf(since as f64 / DOUBLING_MICROS);
            // An unknown one is the largest number, and gives way.
            self.usual_p99.store(p99.min(usual as u64), Relaxed);
        }
    }
}

fn known(micros: u64) -> Option<Duration> {
    (micros != UNKNOWN).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::start;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn below_ten_samples_nothing_is_known() {
        let (now, latency) = (start(), Latency::new(start()));
        for _ in 0..9 {
            latency.record(now, ms(20));
        }
        assert_eq!(latency.p50(now), None);
        latency.record(now, ms(20));
        let p50 = latency.p50(now + ms(100)).expect("ten samples");
        assert!((ms(19)..ms(21)).contains(&p50), "{p50:?}");
    }

    #[test]
    fn what_is_ten_seconds_old_is_forgotten_but_what_was_usual() {
        let (now, latency) = (start(), Latency::new(start()));
        (0..100).for_each(|_| latency.record(now, ms(20)));
        assert!(latency.p50(now + ms(7900)).is_some());
        assert_eq!(latency.p50(now + ms(10_100)), None);
        assert_eq!(latency.p99(now + ms(10_200)), None);
        let usual = latency.usual_p99(now + ms(600_000)).expect("the last one known");
        assert!((ms(19)..ms(21)).contains(&usual), "{usual:?}");
    }

    #[test]
    fn what_is_usual_rises_slowly_and_falls_at_once() {
        let (mut now, latency) = (start(), Latency::new(start()));
        let mut run = |seconds, millis| {
            for _ in 0..seconds * 10 {
                now += ms(100);
                (0..10).for_each(|_| latency.record(now, ms(millis)));
                latency.p50(now);
            }
            latency.usual_p99(now).expect("many samples")
        };
        let cases = [
            // why                            seconds  millis  usual
            ("what it is", 10, 20, 19..21),
            ("a second of slowness", 1, 500, 19..21),
            ("a minute of it", 59, 500, 38..42),
            ("five minutes of it", 240, 500, 485..515),
            ("fast again", 12, 20, 19..21),
        ];
        for (why, seconds, millis, expected) in cases {
            let usual = run(seconds, millis);
            assert!((ms(expected.start)..ms(expected.end)).contains(&usual), "{why}: {usual:?}");
        }
    }

    #[test]
    fn it_is_silent_while_nothing_succeeds_in_time() {
        let (now, latency) = (start(), Latency::new(start()));
        assert_eq!(latency.silence(now + ms(500)), ms(500), "since the start");
        (0..10).for_each(|_| latency.record(now + ms(1000), ms(20)));
        assert_eq!(latency.silence(now + ms(1000)), ms(0));
        assert_eq!(latency.usual_p99(now + ms(1100)).map(|p99| p99 < ms(30)), Some(true));
        latency.record(now + ms(2000), ms(300));
        assert_eq!(latency.silence(now + ms(2000)), ms(1000), "what comes late is no sign of health");
        latency.record(now + ms(3000), ms(90));
        assert_eq!(latency.silence(now + ms(3500)), ms(500));
        assert_eq!(latency.silence(now), ms(0), "another worker may be ahead");
    }

    #[test]
    fn quantiles_follow_within_ten_seconds() {
        let (now, latency) = (start(), Latency::new(start()));
        (0..2000).for_each(|n| latency.record(now + ms(n * 10), ms(if n < 1000 { 10 } else { 100 })));
        let p50 = latency.p50(now + ms(20_000)).expect("many samples");
        assert!((ms(97)..ms(103)).contains(&p50), "{p50:?}");
    }
}
