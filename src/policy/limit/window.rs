//! What the attempts of a fraction of a second show together: half of them took at most so long, so many were in
//! flight, so much was done.
//!
//! An attempt that was sent before the limit last changed shows what the old limit did: it does not count. A clock for
//! what is done starts with the first attempt that counts; started at the change, it would count the time in which the
//! upstream worked off what was sent before, and every cut of a limit would seem to cost goodput.

use std::time::{Duration, Instant};

use super::sample::{Lesson, Sample};
use crate::policy::histogram::{self, LEN};

/// The attempts since some instant. 1 KiB, whatever comes.
#[derive(Debug)]
pub(super) struct Window {
    /// Attempts that were sent before do not count.
    from: Instant,
    /// The first and the last end of one that counts.
    first: Option<Instant>,
    last: Instant,
    counts: [u16; LEN],
    /// Latencies in `counts`, and how many of them belong to attempts that failed by their length: they would have
    /// taken longer still.
    counted: u32,
    cut_off: u32,
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
    left: u32,
    entered: u32,
}

/// What a window shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Half of the attempts took at most this many seconds; or longer, if so many were cut off.
    pub(super) p50: f64,
    pub(super) cut_off: bool,
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

    /// What part of the latency is left in what was seen `after`. While ever more are in flight, those that have ended
    /// show too little of it: Little's law tells what those will show that have not.
    pub(super) fn falls_to(&self, after: &Seen) -> f64 {
        let littles = |seen: &Seen| seen.mean / seen.throughput;
        let (by_p50, by_littles) = (after.p50 / self.p50, littles(after) / littles(self));
        if by_littles < 0.7 * by_p50 { by_littles } else { by_p50 }
    }
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            from: now,
            first: None,
            last: now,
            counts: [0; LEN],
            counted: 0,
            cut_off: 0,
            all: 0,
            served: 0,
            refused: 0,
            ended: 0,
            peak: 0,
            saturated: false,
            held: 0,
            moved: now,
            left: 0,
            entered: 0,
        }
    }

    /// Empties it. `from`: attempts that were sent before do not count.
    pub(super) fn clear(&mut self, now: Instant, from: Instant) {
        *self = Self { from, ..Self::new(now) };
    }

    /// Since when attempts count.
    pub(super) fn from(&self) -> Instant {
        self.from
    }

    /// `in_flight` up to now.
    fn holds(&mut self, now: Instant, in_flight: u32) {
        let passed = now.saturating_duration_since(self.moved).as_nanos() as u64;
        self.held += passed.saturating_mul(in_flight.into());
        self.moved = now;
    }

    pub(super) fn entered(&mut self, now: Instant, in_flight: u32, limit: u32) {
        self.holds(now, in_flight.saturating_sub(1));
        self.entered += 1;
        self.peak = self.peak.max(in_flight);
        self.saturated |= in_flight >= limit;
    }

    pub(super) fn left(&mut self, now: Instant, in_flight: u32) {
        self.holds(now, in_flight + 1);
        self.left += 1;
    }

    pub(super) fn saturated(&mut self) {
        self.saturated = true;
    }

    /// Counts an attempt, if it does. `usual`: what half of them take; a refusal that comes sooner is no latency.
    pub(super) fn answered(&mut self, now: Instant, sample: &Sample, usual: Duration) {
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
            (self.held, self.moved, self.left, self.entered) = (0, now, 0, 0);
        }
        self.last = now;
        self.ended += 1;
        match sample.lesson {
            Lesson::Served => {}
            Lesson::Overloaded if sample.latency > usual => self.cut_off += 1,
            Lesson::Overloaded => return self.refused += 1,
            Lesson::Nothing => return,
        }
        let count = &mut self.counts[histogram::step_of(sample.latency)];
        *count = count.saturating_add(1);
        self.counted += 1;
    }

    /// Attempts that ended, and how long since the first of them.
    pub(super) fn size(&self, now: Instant) -> (u32, Duration) {
        let since = self.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        (self.ended, since)
    }

    /// None: nobody was served or cut off.
    pub(super) fn seen(&self) -> Option<Seen> {
        let (first, seconds) = (self.first?, |span: Duration| span.as_secs_f64());
        let p50 = self.p50()?;
        // The first end starts the clock, and is not within it.
        let length = seconds(self.last.saturating_duration_since(first)).max(1e-6);
        let held = self.held as f64 / 1e9;
        Some(Seen {
            p50,
            cut_off: self.cut_off * 2 > self.counted,
            rate: f64::from(self.served) / length,
            throughput: f64::from(self.all).max(1.0) / length,
            refused: f64::from(self.refused) / f64::from(self.ended),
            bad: f64::from(self.refused + self.cut_off) / f64::from(self.ended),
            hold: if self.left > 0 { held / f64::from(self.left) } else { p50 },
            mean: held / seconds(self.moved.saturating_duration_since(first)).max(1e-6),
            peak: self.peak,
            saturated: self.saturated,
            ended: self.ended,
            more: self.entered as i32 - self.left as i32,
        })
    }

    /// The median, in seconds; within a step as if they lay evenly.
    fn p50(&self) -> Option<f64> {
        let half = f64::from(self.counted) / 2.0;
        let mut below = 0.0;
        for (step, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = f64::from(count);
            if below + count >= half {
                let (first, next) = (histogram::first_of(step) as f64, histogram::first_of(step + 1) as f64);
                return Some((first + (next - first) * (half - below) / count) / 1e6);
            }
            below += count;
        }
        None
    }
}
