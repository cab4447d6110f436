//! What a run shows, in slices of a tenth of a second.

use std::ops::Range;
use std::time::Duration;

use outrigger::policy::priority::Priority;

/// The slices of a run in their order.
pub(crate) struct Record {
    slices: Vec<Slice>,
    /// Good answers of each sidecar in each second.
    shares: Vec<Vec<u32>>,
    /// The limit of each sidecar each 10 ms, the last one seen.
    pub(crate) limits: Vec<Vec<u16>>,
}

#[derive(Clone, Default)]
struct Slice {
    asked: u32,
    /// Asked for the first time.
    wanted: u32,
    good: u32,
    refused: u32,
    failed: u32,
    sent: u32,
    wasted: u32,
    /// Sums over all looks of all sidecars.
    limit: u64,
    in_flight: u64,
    queued: u64,
    looks: u32,
    most_in_flight: u32,
    /// In microseconds: of attempts that were served, of good answers with their wait, of own refusals.
    attempts: Vec<u32>,
    answers: Vec<u32>,
    critical: Vec<u32>,
    refusals: Vec<u32>,
}

const SLICE: u64 = 100_000_000;
const PER_SECOND: f64 = 10.0;
const LOOKS_PER_SECOND: f64 = 100.0;

impl Record {
    pub(crate) fn new(seconds: f64, sidecars: usize) -> Self {
        Self {
            slices: vec![Slice::default(); (seconds * PER_SECOND) as usize + 1],
            shares: vec![vec![0; seconds as usize + 1]; sidecars],
            limits: vec![Vec::new(); sidecars],
        }
    }

    fn slice(&mut self, now: u64) -> &mut Slice {
        &mut self.slices[(now / SLICE) as usize]
    }

    pub(crate) fn asked(&mut self, now: u64, _sidecar: usize, first: bool) {
        let slice = self.slice(now);
        slice.asked += 1;
        slice.wanted += u32::from(first);
    }

    pub(crate) fn sent(&mut self, now: u64) {
        self.slice(now).sent += 1;
    }

    pub(crate) fn wasted(&mut self, now: u64) {
        self.slice(now).wasted += 1;
    }

    pub(crate) fn ended(&mut self, now: u64, _sidecar: usize, latency: Duration, served: bool) {
        if served {
            self.slice(now).attempts.push(latency.as_micros() as u32);
        }
    }

    pub(crate) fn good(&mut self, now: u64, sidecar: usize, nanos: u64, priority: Priority) {
        self.shares[sidecar][(now / 1_000_000_000) as usize] += 1;
        let slice = self.slice(now);
        slice.good += 1;
        let list = if priority == Priority::Critical { &mut slice.critical } else { &mut slice.answers };
        list.push((nanos / 1000) as u32);
    }

    pub(crate) fn failed(&mut self, now: u64, _sidecar: usize, refused: bool, nanos: u64) {
        let slice = self.slice(now);
        if refused {
            slice.refused += 1;
            slice.refusals.push((nanos / 1000) as u32);
        } else {
            slice.failed += 1;
        }
    }

    pub(crate) fn look(&mut self, now: u64, sidecar: usize, limit: u32, in_flight: u32, queued: usize) {
        self.limits[sidecar].push(limit as u16);
        let slice = self.slice(now);
        slice.limit += u64::from(limit);
        slice.in_flight += u64::from(in_flight);
        slice.queued += queued as u64;
        slice.looks += u32::from(sidecar == 0);
        slice.most_in_flight = slice.most_in_flight.max(in_flight);
    }

    fn of(&self, seconds: Range<f64>) -> &[Slice] {
        let place = |time: f64| ((time * PER_SECOND).round() as usize).min(self.slices.len() - 1);
        &self.slices[place(seconds.start)..place(seconds.end)]
    }

    fn sum(&self, seconds: Range<f64>, of: fn(&Slice) -> u32) -> f64 {
        self.of(seconds).iter().map(|slice| f64::from(of(slice))).sum()
    }

    /// Good answers in a second.
    pub(crate) fn goodput(&self, seconds: Range<f64>) -> f64 {
        self.sum(seconds.clone(), |slice| slice.good) / (seconds.end - seconds.start)
    }

    /// The ratio of what was wanted that was got.
    pub(crate) fn got(&self, seconds: Range<f64>) -> f64 {
        self.sum(seconds.clone(), |slice| slice.good) / self.sum(seconds, |slice| slice.wanted)
    }

    /// Own refusals: their number.
    pub(crate) fn refused(&self, seconds: Range<f64>) -> f64 {
        self.sum(seconds, |slice| slice.refused)
    }

    /// All that was asked.
    pub(crate) fn asked_in(&self, seconds: Range<f64>) -> f64 {
        self.sum(seconds, |slice| slice.asked)
    }

    /// Errors that are not own refusals.
    pub(crate) fn errors(&self, seconds: Range<f64>) -> f64 {
        self.sum(seconds, |slice| slice.failed)
    }

    /// Attempts that were sent in this time and whose callers had left before the upstream was done.
    pub(crate) fn wasted_in(&self, seconds: Range<f64>) -> f64 {
        self.sum(seconds, |slice| slice.wasted)
    }

    fn percentile(&self, seconds: Range<f64>, percent: usize, of: fn(&Slice) -> &Vec<u32>) -> f64 {
        let mut all: Vec<u32> = self.of(seconds).iter().flat_map(|slice| of(slice).iter().copied()).collect();
        if all.is_empty() {
            return 0.0;
        }
        all.sort_unstable();
        f64::from(all[(all.len() * percent).div_ceil(100).max(1) - 1]) / 1e3
    }

    /// Of attempts that were served, in milliseconds.
    pub(crate) fn p50(&self, seconds: Range<f64>) -> f64 {
        self.percentile(seconds, 50, |slice| &slice.attempts)
    }

    /// Of good answers, with their wait, in milliseconds.
    pub(crate) fn p99(&self, seconds: Range<f64>) -> f64 {
        self.percentile(seconds, 99, |slice| &slice.answers)
    }

    pub(crate) fn p99_of_critical(&self, seconds: Range<f64>) -> f64 {
        self.percentile(seconds, 99, |slice| &slice.critical)
    }

    pub(crate) fn p99_of_refusals(&self, seconds: Range<f64>) -> f64 {
        self.percentile(seconds, 99, |slice| &slice.refusals)
    }

    /// The sum of all limits, in the mean.
    pub(crate) fn limit(&self, seconds: Range<f64>) -> f64 {
        let slices = self.of(seconds);
        let looks: u32 = slices.iter().map(|slice| slice.looks).sum();
        slices.iter().map(|slice| slice.limit).sum::<u64>() as f64 / f64::from(looks.max(1))
    }

    pub(crate) fn in_flight(&self, seconds: Range<f64>) -> f64 {
        let slices = self.of(seconds);
        let looks: u32 = slices.iter().map(|slice| slice.looks).sum();
        slices.iter().map(|slice| slice.in_flight).sum::<u64>() as f64 / f64::from(looks.max(1))
    }

    /// The good answers of each sidecar.
    pub(crate) fn shares(&self, seconds: Range<usize>) -> Vec<f64> {
        self.shares
            .iter()
            .map(|share| share[seconds.clone()].iter().map(|good| f64::from(*good)).sum())
            .collect()
    }

    /// How many sidecars had their limit a seventh below what it was a second before and after, at most at once.
    pub(crate) fn most_cut_at_once(&self, seconds: Range<f64>) -> usize {
        let place = |time: f64| (time * LOOKS_PER_SECOND) as usize;
        let second = LOOKS_PER_SECOND as usize;
        let is_cut = |limits: &[u16], now: usize| {
            let around = limits[now - second].min(*limits.get(now + second).unwrap_or(&u16::MAX));
            f64::from(limits[now]) * 7.0 < f64::from(around) * 6.0
        };
        (place(seconds.start)..place(seconds.end) - 1)
            .map(|now| self.limits.iter().filter(|limits| is_cut(limits, now)).count())
            .max()
            .unwrap_or_default()
    }

    pub(crate) fn seconds(&self) -> f64 {
        (self.slices.len() - 1) as f64 / PER_SECOND
    }
}
