//! What the attempts of a fraction of a second show together: they took so long, so many were in flight, so much was done.
//!
//! How long they took is their geometric mean. A median would not hear of a tenth that takes twenty times as long, but
//! where half of the answers come from a cache and the others do not, it is the one or the other by chance; and what is
//! spread as wide as most services' latencies are moves it by a quarter from window to window. The arithmetic mean is
//! made by the slowest few.
//!
//! An attempt that was sent before the limit last changed shows what the old limit did: it does not count. A clock for
//! what is done starts with the first attempt that counts; started at the change, it would count the time in which the
//! upstream worked off what was sent before, and every cut of a limit would seem to cost goodput.

use std::f64::consts::LN_2;
use std::time::{Duration, Instant};

use super::sample::{Lesson, Sample};

/// The attempts since some instant.
#[derive(Debug)]
pub(super) struct Window {
    /// Attempts that were sent before do not count.
    from: Instant,
    /// The first and the last end of one that counts.
    first: Option<Instant>,
    last: Instant,
    /// Of those that were served, and of those that failed by their length: they would have taken longer still.
    answers: Logs,
    cut_off: Logs,
    /// All that ended after the first one, and those of them that were served.
    all: u32,
    served: u32,
    /// Attempts that the upstream refused.
    refused: u32,
    ended: u32,
    peak: u32,
    saturated: bool,
    /// How many were in flight for how long, in nanoseconds, up to `moved`; and how many slots came back.
    held: u64,
    moved: Instant,
    in_flight: u32,
    /// The same of those whose heads had not come.
    waited: u64,
    unanswered: u32,
    left: u32,
    entered: i32,
}

/// Logarithms of latencies, summed up.
#[derive(Clone, Copy, Debug, Default)]
struct Logs {
    count: u32,
    sum: f64,
    squares: f64,
    /// Not of the logarithms: all of it, in seconds.
    whole: f64,
}

impl Logs {
    fn add(&mut self, latency: Duration) {
        let seconds = latency.as_secs_f64();
        let log = log(seconds);
        self.count += 1;
        self.whole += seconds;
        self.sum += log;
        self.squares += log * log;
    }

    /// The geometric mean, in seconds.
    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| exp(self.sum / f64::from(self.count)))
    }

    /// The variance of the natural logarithms; none: too few.
    fn variance(&self) -> Option<f64> {
        let count = f64::from(self.count);
        let octaves = (self.squares - self.sum * self.sum / count) / (count - 1.0);
        (self.count >= 2).then(|| octaves.max(0.0) * LN_2 * LN_2)
    }
}

/// The bits of a float are its logarithm to the base of two, with straight lines between the powers: near enough, in one
/// instruction, and the same on every machine.
fn log(x: f64) -> f64 {
    x.max(1e-6).to_bits() as f64 / OCTAVE - 1023.0
}

fn exp(log: f64) -> f64 {
    f64::from_bits(((log + 1023.0) * OCTAVE) as u64)
}

const OCTAVE: f64 = (1_u64 << 52) as f64;

/// What a window shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// What an attempt took, in seconds: the geometric mean. Of those that were served; or of those that were cut off, if
    /// they are more, and it would have been longer.
    pub(super) latency: f64,
    pub(super) cut_off: bool,
    /// How widely they are spread: the variance of the logarithms.
    pub(super) spread: Option<f64>,
    /// Good answers in a second.
    pub(super) rate: f64,
    /// Attempts that ended in a second.
    pub(super) throughput: f64,
    /// The ratio of attempts that the upstream refused.
    pub(super) refused: f64,
    /// The ratio of those, and of attempts that were cut off.
    pub(super) bad: f64,
    /// How many seconds a slot was held, in the mean.
    pub(super) hold: f64,
    /// The arithmetic mean of what those took that have ended, and of what all take (Little's law).
    pub(super) took: f64,
    pub(super) takes: f64,
    /// In flight: in the mean, and at most.
    pub(super) mean: f64,
    pub(super) peak: u32,
    /// Somebody found no slot, or the last one was taken.
    pub(super) saturated: bool,
    pub(super) ended: u32,
    /// How many more entered than left.
    pub(super) more: i32,
}

impl Seen {
    /// Ever more are in flight: what is seen is on its way to something else.
    pub(super) fn swells(&self) -> bool {
        f64::from(self.more) > 0.4 * f64::from(self.ended)
    }

    /// Some take much longer than those that have ended.
    pub(super) fn is_partial(&self) -> bool {
        self.takes > 1.5 * self.took
    }

    /// What part of the latency is left in what was seen `after`. While ever more are in flight, those that have ended
    /// show too little of it: Little's law tells what those will show that have not.
    pub(super) fn falls_to(&self, after: &Seen) -> f64 {
        let littles = |seen: &Seen| seen.mean / seen.throughput;
        let (by_mean, by_littles) = (after.latency / self.latency, littles(after) / littles(self));
        if by_littles < 0.7 * by_mean { by_littles } else { by_mean }
    }
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            from: now,
            first: None,
            last: now,
            answers: Logs::default(),
            cut_off: Logs::default(),
            all: 0,
            served: 0,
            refused: 0,
            ended: 0,
            peak: 0,
            saturated: false,
            held: 0,
            moved: now,
            in_flight: 0,
            waited: 0,
            unanswered: 0,
            left: 0,
            entered: 0,
        }
    }

    /// Empties it. `from`: attempts that were sent before do not count.
    pub(super) fn clear(&mut self, now: Instant, from: Instant) {
        let (in_flight, unanswered) = (self.in_flight, self.unanswered);
        *self = Self { from, in_flight, unanswered, ..Self::new(now) };
    }

    /// Since when attempts count.
    pub(super) fn from(&self) -> Instant {
        self.from
    }

    /// As many are in flight as before, up to now.
    fn holds(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.moved).as_nanos() as u64;
        self.held += passed.saturating_mul(self.in_flight.into());
        self.waited += passed.saturating_mul(self.unanswered.into());
        self.moved = now;
    }

    pub(super) fn entered(&mut self, now: Instant, in_flight: u32, unanswered: u32, limit: u32) {
        self.holds(now);
        (self.in_flight, self.unanswered) = (in_flight, unanswered);
        self.entered += 1;
        self.peak = self.peak.max(in_flight);
        self.saturated |= in_flight >= limit;
    }

    pub(super) fn is_saturated(&self) -> bool {
        self.saturated
    }

    /// A head came, whose body follows.
    pub(super) fn body_begins(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    pub(super) fn left(&mut self, now: Instant, in_flight: u32, unanswered: u32) {
        self.holds(now);
        (self.in_flight, self.unanswered) = (in_flight, unanswered);
        self.left += 1;
    }

    /// One that entered `held` ago waits for its client: it is as if it had not entered.
    pub(super) fn lent(&mut self, now: Instant, in_flight: u32, unanswered: u32, held: Duration) {
        self.holds(now);
        (self.in_flight, self.unanswered) = (in_flight, unanswered);
        let since = self.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        let held = held.min(since).as_nanos() as u64;
        self.held = self.held.saturating_sub(held);
        self.waited = self.waited.saturating_sub(held);
        self.entered -= 1;
    }

    pub(super) fn saturated(&mut self) {
        self.saturated = true;
    }

    /// Counts an attempt, if it does. `usual`: what half of them take; a refusal that comes sooner is no latency.
    pub(super) fn answered(&mut self, now: Instant, sample: &Sample, usual: Duration) {
        self.holds(now);
        // Who was sent before has had a slot of the new limit too, as soon as the first one was sent after.
        if self.first.is_some() {
            self.all += 1;
            self.served += u32::from(sample.lesson == Lesson::Served);
        }
        if sample.began < self.from {
            return;
        }
        if self.first.is_none() {
            self.first = Some(now);
            (self.held, self.waited, self.left, self.entered) = (0, 0, 0, 0);
        }
        self.last = now;
        self.ended += 1;
        match sample.lesson {
            Lesson::Served => self.answers.add(sample.latency),
            Lesson::Overloaded if sample.latency > usual => self.cut_off.add(sample.latency),
            Lesson::Overloaded => self.refused += 1,
            Lesson::Nothing => {}
        }
    }

    /// Attempts that ended, and how long since the first of them.
    pub(super) fn size(&self, now: Instant) -> (u32, Duration) {
        let since = self.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        (self.ended, since)
    }

    /// What they took, as far as it is seen.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.answers.mean().unwrap_or(0.0))
    }

    /// The variance of the logarithms of what those took that were served.
    pub(super) fn spread(&self) -> Option<f64> {
        self.answers.variance()
    }

    /// None: nobody was served or cut off.
    pub(super) fn seen(&mut self, now: Instant) -> Option<Seen> {
        self.holds(now);
        let (first, seconds) = (self.first?, |span: Duration| span.as_secs_f64());
        let cut_off = self.cut_off.count > self.answers.count;
        let latency = if cut_off { self.cut_off.mean() } else { self.answers.mean() }?;
        // The first end starts the clock, and is not within it.
        let length = seconds(self.last.saturating_duration_since(first)).max(1e-6);
        let held = self.held as f64 / 1e9;
        Some(Seen {
            latency,
            cut_off,
            spread: self.spread(),
            rate: f64::from(self.served) / length,
            throughput: f64::from(self.all).max(1.0) / length,
            refused: f64::from(self.refused) / f64::from(self.ended),
            bad: f64::from(self.refused + self.cut_off.count) / f64::from(self.ended),
            hold: if self.left > 0 { held / f64::from(self.left) } else { latency },
            took: self.answers.whole / f64::from(self.answers.count.max(1)),
            takes: self.waited as f64 / 1e9 / f64::from(self.all.max(1)),
            mean: held / seconds(self.moved.saturating_duration_since(first)).max(1e-6),
            peak: self.peak,
            saturated: self.saturated,
            ended: self.ended,
            more: self.entered - self.left as i32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::start;

    #[test]
    fn who_lends_its_slot_has_not_entered() {
        let at = |millis| start() + Duration::from_millis(millis);
        let served = |began, now: u64| {
            let latency = Duration::from_millis(now - began);
            Sample { began: at(began), latency, lesson: Lesson::Served }
        };
        let mut window = Window::new(start());
        window.entered(start(), 1, 1, 10);
        window.entered(start(), 2, 2, 10);
        window.answered(at(10), &served(0, 10), Duration::ZERO);
        window.left(at(10), 1, 1);
        window.entered(at(20), 2, 2, 10);
        window.lent(at(70), 1, 1, Duration::from_millis(50));
        window.answered(at(80), &served(0, 80), Duration::ZERO);
        window.left(at(80), 0, 0);
        let seen = window.seen(at(80)).expect("two were served");
        // Two have left, and nobody but them has held a slot since the first answer, for 70 ms.
        assert!((seen.hold - 0.035).abs() < 1e-6 && seen.more == -2, "{seen:?}");
    }
}
