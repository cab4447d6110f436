//! The upstream: workers that take what comes in the order in which it comes, and finish what they have begun.
//!
//! Whoever leaves is not noticed, so abandoned work is still done. Since the order is that of arrival, when a job is
//! done is known as soon as it has come: the first worker that gets free takes it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::chance::Chance;

/// How long the work for one request takes, by its mean.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    Fixed,
    /// With a sigma of 0.4.
    Lognormal,
    /// One in ten takes twenty times as long as the others.
    Bimodal,
    /// Every other one takes five times as long as the others.
    Halves,
    /// With a sigma of 1.
    Wide,
    Exponential,
    /// Two routes: one in eleven takes 300 times as long as the others.
    Routes,
}

impl Service {
    fn draw(self, mean: f64, chance: &mut Chance) -> f64 {
        match self {
            Service::Fixed => mean,
            Service::Lognormal => mean * chance.lognormal(0.4),
            Service::Bimodal => mean / 2.9 * if chance.is(0.1) { 20.0 } else { 1.0 },
            Service::Routes => mean * if chance.is(1.0 / 11.0) { 300.0 } else { 1.0 },
            Service::Wide => mean * chance.lognormal(1.0),
            Service::Exponential => mean * chance.gap(),
            Service::Halves => mean / 3.0 * if chance.is(0.5) { 5.0 } else { 1.0 },
        }
    }
}

/// Of an upstream, all that a run may vary. Times in seconds since its begin.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) service: Service,
    /// The mean of a service that begins at this time.
    pub(crate) mean: fn(f64) -> f64,
    pub(crate) workers: fn(f64) -> usize,
    /// Nothing moves from one time to the other.
    pub(crate) stalls: &'static [(f64, f64)],
}

pub(crate) struct Upstream {
    shape: Shape,
    /// When each worker is free, in nanoseconds.
    free: BinaryHeap<Reverse<u64>>,
    chance: Chance,
}

impl Upstream {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, free: BinaryHeap::new(), chance: Chance::new(seed) }
    }

    /// Takes a job, and says when it will be done.
    pub(crate) fn take(&mut self, now: u64) -> u64 {
        let wanted = (self.shape.workers)(now as f64 / 1e9);
        while self.free.len() < wanted {
            self.free.push(Reverse(now));
        }
        while self.free.len() > wanted {
            self.free.pop();
        }
        let Reverse(free) = self.free.pop().expect("there is at least one worker");
        let begins = free.max(now) as f64 / 1e9;
        let mut ends = begins + self.shape.service.draw((self.shape.mean)(begins), &mut self.chance);
        for &(from, to) in self.shape.stalls {
            if begins < to && ends > from {
                ends += to - begins.max(from);
            }
        }
        let ends = (ends * 1e9) as u64;
        self.free.push(Reverse(ends));
        ends
    }
}
