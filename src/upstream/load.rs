//! How loaded an endpoint looks: how long its answers take, how often they fail, what is in flight there.
//!
//! **Latency** is a peak-EWMA (Finagle's `PeakEwma`): a higher sample replaces the average, lower ones let it decay
//! with exp(-dt/10 s), so that trouble shows at once and calm has to prove itself. Two things differ from Finagle's:
//! - One sample doubles it at most, which `balance` still takes for equal. Else a single request that is slow by
//!   nature (one report among thousands of look-ups) takes an endpoint's whole share for half a minute, and with three
//!   endpoints the others are overloaded for it. What has really become slow shows by its second and third sample,
//!   and until then by its silence and by what is in flight there. A first answer is slow by nature more often than not
//!   (cold caches, code that is not compiled yet), so it alone says nothing: of the first two the faster one counts.
//! - What nobody has confirmed for a quarter of a second ages, with exp(-dt/5 s). Else an endpoint that is avoided
//!   is never asked again and its recovery never seen.
//!
//! **Silence.** An endpoint that stalls shows no sample until its first answer or a timeout. So the time since its
//! last answer counts as its latency, from when on requests wait there without one: a lower bound of the age of the
//! oldest of them, for one load and without a list. Rejected: the exact age of the oldest (a queue for each
//! endpoint, written by all workers); the mean age (n instants to sum; one stuck request is diluted by many new).
//!
//! **Failures** count as samples of five seconds, or of their Retry-After up to 300 s (linkerd's load biaser), but
//! in an average of their own: in the peak-EWMA one failure among thousands would take the endpoint out for a
//! minute. Each attempt weighs 1/32, more where they are rare; without attempts the average falls with exp(-dt/3 s),
//! so an endpoint that recovers is asked again within seconds. How much of it is tolerated is a question between
//! two endpoints (`balance`).
//!
//! An average and its instant share one word, so they are read together. Workers read, compute and store without a
//! loop: of two samples in the same nanoseconds one may get lost. That is exact enough for a hint: the next sample
//! is milliseconds away, and no count depends on it. `in_flight` is exact.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The decay of latency where lower samples come.
const DECAY_SECONDS: f32 = 10.0;
/// The decay of latency that nobody confirms.
const AGEING_SECONDS: f32 = 5.0;
/// For how long a latency stands without ageing.
const FRESH_SECONDS: f32 = 0.25;
/// The decay of failures.
const FORGIVING_SECONDS: f32 = 3.0;
/// By how much one sample can raise the latency.
const STEP: f32 = 2.0;
/// What a failure counts as at least, and at most, in seconds.
const FAILURE_SECONDS: f32 = 5.0;
const MAX_FAILURE_SECONDS: f32 = 300.0;
/// The least and the most that one attempt weighs among failures.
const WEIGHTS: (f32, f32) = (1.0 / 32.0, 0.25);
/// Below this no failure is left.
const FORGIVEN_SECONDS: f32 = 1e-3;
/// The shortest latency, in seconds.
const SHORTEST_SECONDS: f32 = 1e-6;
/// An attempt in flight that waits for its head, and one that has it.
const WAITING: u64 = 1 << 32;
const ANSWERED: u64 = 1;

/// An endpoint's load. All instants are nanoseconds from one origin (`standing::nanos`). Shared by all workers.
#[derive(Debug, Default)]
pub struct Load {
    /// Seconds; 0: unknown; negative: of the first answer, which says nothing yet.
    latency: AtomicU64,
    /// Seconds that failures cost an attempt on average.
    failures: AtomicU64,
    /// Attempts in flight: with a head (low half), without (high half).
    attempts: AtomicU64,
    /// Those of them that are streams: long, and bounded apart.
    streams: AtomicU32,
    /// When the last head came, or the first attempt that waits for one was sent.
    silent_since: AtomicU64,
    /// Its time in service counts from here without slow start.
    warm_at: AtomicU64,
}

/// An average in seconds and its instant, in units of 2^20 nanoseconds: f32 and u32 in one word. The instant wraps
/// after 52 days; what is older than half of that looks fresh until its next sample.
#[derive(Clone, Copy)]
struct Stamped {
    seconds: f32,
    at: u32,
}

impl Stamped {
    fn of(word: u64) -> Self {
        Self { seconds: f32::from_bits(word as u32), at: (word >> 32) as u32 }
    }

    fn word(seconds: f32, now: u64) -> u64 {
        u64::from((now >> 20) as u32) << 32 | u64::from(seconds.to_bits())
    }

    /// Seconds since then; none pass backwards.
    fn age(self, now: u64) -> f32 {
        let units = ((now >> 20) as u32).wrapping_sub(self.at) as i32;
        units.max(0) as f32 * ((1u64 << 20) as f32 / 1e9)
    }

    /// Whether it is older than `since`.
    fn is_before(self, since: u64) -> bool {
        ((since >> 20) as u32).wrapping_sub(self.at) as i32 > 0
    }
}

impl Load {
    /// An attempt is sent at `now`.
    pub(super) fn enter(&self, now: u64) {
        if self.attempts.fetch_add(WAITING, Relaxed) < WAITING {
            self.silent_since.store(now, Relaxed);
        }
    }

    /// The head of an attempt's answer came at `now`.
    pub(super) fn answered(&self, now: u64) {
        self.attempts.fetch_sub(WAITING - ANSWERED, Relaxed);
        self.silent_since.store(now, Relaxed);
    }

    /// An attempt is over.
    pub(super) fn leave(&self, has_head: bool) {
        self.attempts.fetch_sub(if has_head { ANSWERED } else { WAITING }, Relaxed);
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> u32 {
        let attempts = self.attempts.load(Relaxed);
        (attempts >> 32) as u32 + attempts as u32
    }

    /// Attempts in flight without streams: what the upstream's bound is for.
    pub(super) fn in_flight_without_streams(&self) -> u32 {
        self.in_flight().saturating_sub(self.streams.load(Relaxed))
    }

    /// An attempt has become a stream.
    pub(super) fn stream_began(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    /// A stream is over.
    pub(super) fn stream_ended(&self) {
        self.streams.fetch_sub(1, Relaxed);
    }

    /// A good answer's head took `latency`.
    pub(super) fn sample(&self, now: u64, latency: Duration) {
        let sample = latency.as_secs_f32().max(SHORTEST_SECONDS);
        let old = Stamped::of(self.latency.load(Relaxed));
        let age = old.age(now);
        let aged = aged(old.seconds, age);
        let new = if old.seconds == 0.0 {
            -sample
        } else if old.seconds < 0.0 {
            sample.min(-old.seconds)
        } else if sample >= aged {
            sample.min(old.seconds * STEP)
        } else {
            sample + (aged - sample) * (-age / DECAY_SECONDS).exp()
        };
        self.latency.store(Stamped::word(new, now), Relaxed);
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&self, now: u64) {
        if self.failures.load(Relaxed) as u32 != 0 {
            self.weigh(now, 0.0);
        }
    }

    /// An attempt would have taken longer than `age`. Whether that says something: more than is known.
    pub(super) fn overtaken(&self, now: u64, age: Duration) -> bool {
        let known = Stamped::of(self.latency.load(Relaxed));
        let is_longer = known.seconds > 0.0 && age.as_secs_f32() > aged(known.seconds, known.age(now));
        if is_longer {
            self.sample(now, age);
        }
        is_longer
    }

    /// An attempt failed after `latency`, and asked to be left alone for `retry_after`. It tells of latency only
    /// where it took longer than known: an endpoint that fails fast is not fast.
    pub(super) fn failed(&self, now: u64, latency: Duration, retry_after: Duration) {
        self.overtaken(now, latency);
        self.weigh(now, retry_after.as_secs_f32().clamp(FAILURE_SECONDS, MAX_FAILURE_SECONDS));
    }

    fn weigh(&self, now: u64, sample: f32) {
        let old = Stamped::of(self.failures.load(Relaxed));
        let age = old.age(now);
        let left = old.seconds * (-age / FORGIVING_SECONDS).exp();
        // Good attempts leave no mark here while nothing is to be forgiven: how rare attempts are shows in both.
        let rare = age.min(Stamped::of(self.latency.load(Relaxed)).age(now));
        let weight = (rare / FORGIVING_SECONDS).clamp(WEIGHTS.0, WEIGHTS.1);
        let new = left + (sample - left) * weight;
        self.failures.store(Stamped::word(if new < FORGIVEN_SECONDS { 0.0 } else { new }, now), Relaxed);
    }

    /// Seconds that an answer takes; `None`: nothing is known since the endpoint is in service, `since`.
    pub fn latency(&self, now: u64, since: u64) -> Option<f32> {
        let known = Stamped::of(self.latency.load(Relaxed));
        if known.seconds <= 0.0 || known.is_before(since) {
            return None;
        }
        Some(aged(known.seconds, known.age(now)).max(self.silence(now)))
    }

    /// Whether an answer has come since the endpoint is in service, `since`.
    pub(super) fn has_answered(&self, since: u64) -> bool {
        let known = Stamped::of(self.latency.load(Relaxed));
        known.seconds != 0.0 && !known.is_before(since)
    }

    /// Seconds for which attempts have been waiting there without any answer.
    pub fn silence(&self, now: u64) -> f32 {
        if self.attempts.load(Relaxed) < WAITING {
            return 0.0;
        }
        now.saturating_sub(self.silent_since.load(Relaxed)) as f32 / 1e9
    }

    /// Seconds that failures cost an attempt, those before `since` forgiven.
    pub fn failures(&self, now: u64, since: u64) -> f32 {
        let word = self.failures.load(Relaxed);
        if word as u32 == 0 {
            return 0.0;
        }
        let known = Stamped::of(word);
        if known.is_before(since) {
            return 0.0;
        }
        known.seconds * (-known.age(now) / FORGIVING_SECONDS).exp()
    }

    /// Whether any answer has ever come.
    pub fn is_known(&self) -> bool {
        self.latency.load(Relaxed) as u32 != 0
    }

    /// It is among an upstream's first endpoints: its time in service from `since` on needs no slow start.
    pub(super) fn start_warm(&self, since: u64) {
        self.warm_at.store(since.max(1), Relaxed);
    }

    /// The part of its share that an endpoint in service since `since` takes at `now`: from 0.1 to 1 over `window`
    /// nanoseconds, of which none are too few.
    pub fn ramp(&self, now: u64, since: u64, window: u64) -> f32 {
        let age = now.saturating_sub(since);
        if age >= window || self.warm_at.load(Relaxed) == since.max(1) {
            return 1.0;
        }
        (age as f32 / window as f32).max(0.1)
    }
}

fn aged(seconds: f32, age: f32) -> f32 {
    // PERF: where attempts are frequent nothing is as old, and nobody pays for an exponential.
    if age < FRESH_SECONDS {
        return seconds;
    }
    (seconds * (-(age - FRESH_SECONDS) / AGEING_SECONDS).exp()).max(SHORTEST_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START: u64 = 1_000_000 * MS;

    fn after(seconds: f64) -> u64 {
        START + (seconds * 1e9) as u64
    }

    fn millis(millis: f64) -> Duration {
        Duration::from_secs_f64(millis / 1000.0)
    }

    /// Its first two answers: the first alone says nothing.
    fn meet(load: &Load, now: u64, latency: Duration) {
        load.sample(now, latency * 3);
        load.sample(now, latency);
    }

    #[track_caller]
    fn about(value: f32, expected: f32) {
        assert!((value - expected).abs() <= expected.abs() * 0.02 + 1e-6, "{value}, not {expected}");
    }

    fn latency(load: &Load, now: u64) -> f32 {
        load.latency(now, START).expect("it is known") * 1000.0
    }

    #[test]
    fn a_peak_counts_at_once_and_decays() {
        let load = Load::default();
        assert_eq!(load.latency(START, START), None);
        meet(&load, after(0.0), millis(5.0));
        about(latency(&load, after(0.0)), 5.0);
        load.sample(after(0.1), millis(9.0));
        about(latency(&load, after(0.1)), 9.0);
        for step in 1..=100 {
            load.sample(after(0.1 + f64::from(step) / 10.0), millis(5.0));
        }
        about(latency(&load, after(10.1)), 5.0 + 4.0 * (-1f32).exp());
    }

    #[test]
    fn of_the_first_two_answers_the_faster_one_counts() {
        let load = Load::default();
        assert!(!load.has_answered(START));
        load.sample(START, millis(300.0));
        assert!(load.has_answered(START) && load.is_known());
        assert_eq!(load.latency(START, START), None, "it may be slow for once");
        load.sample(START, millis(5.0));
        about(latency(&load, START), 5.0);
    }

    #[test]
    fn one_slow_request_doubles_it_and_the_next_ones_tell_the_truth() {
        let load = Load::default();
        meet(&load, after(0.0), millis(5.0));
        load.sample(after(0.1), millis(35.0));
        about(latency(&load, after(0.1)), 10.0);
        load.sample(after(0.15), millis(35.0));
        about(latency(&load, after(0.15)), 20.0);
        load.sample(after(0.2), millis(35.0));
        about(latency(&load, after(0.2)), 35.0);
    }

    #[test]
    fn what_nobody_confirms_ages() {
        let load = Load::default();
        meet(&load, after(0.0), millis(100.0));
        about(latency(&load, after(0.2)), 100.0);
        about(latency(&load, after(5.25)), 100.0 * (-1f32).exp());
        load.sample(after(5.25), millis(5.0));
        assert!(latency(&load, after(5.25)) < 30.0, "its recovery shows at its first answer");
    }

    #[test]
    fn silence_counts_from_the_last_answer() {
        let load = Load::default();
        meet(&load, START, millis(5.0));
        about(load.silence(after(1.0)), 0.0);
        load.enter(after(1.0));
        load.enter(after(1.1));
        about(load.silence(after(1.2)), 0.2);
        about(latency(&load, after(1.2)), 200.0);
        load.answered(after(1.3));
        about(load.silence(after(1.35)), 0.05);
        load.leave(false);
        about(load.silence(after(9.0)), 0.0);
        assert_eq!(load.in_flight(), 1, "its body is still on its way");
        load.leave(true);
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn failures_are_an_average_that_is_forgiven() {
        let cases = [
            // why                                   failures, every seconds, retry after, then after s, at least, at most
            ("one among many weighs little", 1, 0.005, 0, 0.0, 0.1, 0.2),
            ("twenty are half of the truth", 20, 0.005, 0, 0.0, 2.0, 3.0),
            ("rare ones weigh more", 1, 1.0, 0, 0.0, 1.0, 1.3),
            ("retry-after weighs as it says", 1, 0.005, 60, 0.0, 1.8, 1.9),
            ("at most 300 s", 1, 0.005, 86_400, 0.0, 9.3, 9.4),
            ("forgiven within seconds", 20, 0.005, 0, 5.0, 0.3, 0.5),
        ];
        for (why, count, every, retry_after, then, least, most) in cases {
            let load = Load::default();
            meet(&load, START, millis(5.0));
            let mut now = START;
            for _ in 0..count {
                now += (every * 1e9) as u64;
                load.failed(now, millis(1.0), Duration::from_secs(retry_after));
            }
            let failures = load.failures(now + (then * 1e9) as u64, START);
            assert!((least..=most).contains(&failures), "{why}: {failures}");
            assert!(latency(&load, START) <= 5.01, "{why}: a fast failure tells nothing of latency");
        }
    }

    #[test]
    fn a_timeout_tells_that_it_is_slow() {
        let load = Load::default();
        meet(&load, START, millis(50.0));
        load.failed(after(0.1), millis(100.0), Duration::ZERO);
        about(latency(&load, after(0.1)), 100.0);
        load.failed(after(0.1), millis(1.0), Duration::ZERO);
        about(latency(&load, after(0.1)), 100.0);
    }

    #[test]
    fn what_was_before_its_time_in_service_is_not_known() {
        let load = Load::default();
        meet(&load, after(1.0), millis(5.0));
        load.failed(after(1.0), millis(5.0), Duration::ZERO);
        assert!(load.latency(after(3.0), after(0.5)).is_some());
        assert_eq!(load.latency(after(3.0), after(2.0)), None);
        assert_eq!(load.failures(after(3.0), after(2.0)), 0.0);
    }

    #[test]
    fn slow_start_grows_from_a_tenth_to_all() {
        let (load, window) = (Load::default(), 10_000 * MS);
        for (age, expected) in [(0.0, 0.1), (0.5, 0.1), (2.0, 0.2), (5.0, 0.5), (10.0, 1.0), (99.0, 1.0)] {
            about(load.ramp(after(age), START, window), expected);
        }
        about(load.ramp(START, START, 0), 1.0);
        load.start_warm(START);
        about(load.ramp(START, START, window), 1.0);
        about(load.ramp(after(60.0), after(60.0), window), 0.1);
    }
}
