//! What breaks when: the demo's phases, scaled to the time that it runs.

use std::time::Duration;

use super::upstream::Fault::{self, *};

/// A stretch of time in which the replicas behave in one way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    /// What happens, in a few words.
    pub(super) name: &'static str,
    /// The same in one word, for the ruler below the curves; empty in calm phases.
    pub(super) mark: &'static str,
    /// How long it lasts in a demo of 30 s.
    seconds: f64,
    /// What is wrong with each replica.
    pub(super) faults: [Fault; 3],
}

/// A replica at a fifteenth of its speed does 10 requests a second, and gets 67.
const SLOW: Fault = Slow(15);
/// All of them at a fifth of their speed do 90 requests a second, and get 200: overload.
const SLOWER: Fault = Slow(5);
/// All of them at this speed answer nobody in time: an outage.
const CRAWLING: Fault = Slow(20);

/// The story. Trouble is followed by calm, in which one sees who gets over it, and how fast.
#[rustfmt::skip]
const STORY: [Phase; 15] = [
    Phase { name: "all is well",          mark: "",          seconds: 2.0, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "a is slow",            mark: "slow",      seconds: 3.0, faults: [SLOW,       Healthy,    Healthy] },
    Phase { name: "a is well again",      mark: "",          seconds: 1.5, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "b answers 500, 503",   mark: "5xx",       seconds: 2.5, faults: [Healthy,    Errors,     Healthy] },
    Phase { name: "b is well again",      mark: "",          seconds: 1.0, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "c stalls",             mark: "stall",     seconds: 2.5, faults: [Healthy,    Healthy,    Stalled] },
    Phase { name: "c is well again",      mark: "",          seconds: 1.5, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "a refuses connects",   mark: "gone",      seconds: 2.5, faults: [Refusing,   Healthy,    Healthy] },
    Phase { name: "a is back",            mark: "",          seconds: 1.0, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "b resets mid-body",    mark: "reset",     seconds: 2.5, faults: [Healthy,    Resetting,  Healthy] },
    Phase { name: "b is well again",      mark: "",          seconds: 1.0, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "all three are slow",   mark: "all slow",  seconds: 3.5, faults: [SLOWER,     SLOWER,     SLOWER] },
    Phase { name: "all are well again",   mark: "",          seconds: 2.5, faults: [Healthy,    Healthy,    Healthy] },
    Phase { name: "all three crawl",      mark: "crawl",     seconds: 2.5, faults: [CRAWLING,   CRAWLING,   CRAWLING] },
    Phase { name: "all are well again",   mark: "",          seconds: 3.0, faults: [Healthy,    Healthy,    Healthy] },
];

/// The story with the times at which its phases end.
pub(super) struct Timeline {
    ends: [Duration; STORY.len()],
}

impl Timeline {
    /// The story told in `length`.
    pub(super) fn over(length: Duration) -> Timeline {
        let whole: f64 = STORY.iter().map(|phase| phase.seconds).sum();
        let mut told = 0.0;
        let mut ends = STORY.map(|phase| {
            told += phase.seconds;
            length.mul_f64(told / whole)
        });
        ends[STORY.len() - 1] = length; // however the sums were rounded
        Timeline { ends }
    }

    pub(super) fn length(&self) -> Duration {
        self.ends[self.ends.len() - 1]
    }

    pub(super) fn phases(&self) -> &'static [Phase] {
        &STORY
    }

    /// When the phase begins.
    pub(super) fn begin(&self, phase: usize) -> Duration {
        phase.checked_sub(1).map_or(Duration::ZERO, |before| self.ends[before])
    }

    /// The phase at a time since the start; the last one after the end.
    pub(super) fn at(&self, elapsed: Duration) -> usize {
        self.ends.partition_point(|end| *end <= elapsed).min(STORY.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_without_a_gap_in_any_length() {
        for seconds in [3, 7, 30, 3600] {
            let timeline = Timeline::over(Duration::from_secs(seconds));
            for phase in 0..timeline.phases().len() {
                let begin = timeline.begin(phase);
                assert_eq!(timeline.at(begin), phase, "{seconds} s: phase {phase} begins with itself");
                if phase > 0 {
                    let before = begin - Duration::from_nanos(1);
                    assert_eq!(timeline.at(before), phase - 1, "{seconds} s: just before phase {phase}");
                }
            }
            assert_eq!(timeline.length(), Duration::from_secs(seconds));
            assert_eq!(timeline.at(timeline.length()), timeline.phases().len() - 1, "after the end");
        }
    }

    #[test]
    fn phases_keep_their_share_of_the_time() {
        let (short, long) =
            (Timeline::over(Duration::from_secs(3)), Timeline::over(Duration::from_secs(300)));
        for phase in 0..short.phases().len() {
            let scaled = short.begin(phase).as_secs_f64() * 100.0;
            assert!((scaled - long.begin(phase).as_secs_f64()).abs() < 1e-3, "phase {phase}");
        }
    }

    #[test]
    fn trouble_comes_in_every_kind_and_calm_follows_it() {
        let phases = Timeline::over(Duration::from_secs(30)).phases();
        let seen = |fault| phases.iter().any(|phase| phase.faults.contains(&fault));
        assert!([SLOW, SLOWER, CRAWLING, Errors, Stalled, Refusing, Resetting].into_iter().all(seen));
        for pair in phases.windows(2) {
            let calm = |phase: &Phase| phase.faults == [Healthy; 3];
            assert!(calm(&pair[0]) != calm(&pair[1]), "{} then {}", pair[0].name, pair[1].name);
            assert_eq!(calm(&pair[0]), pair[0].mark.is_empty(), "{}", pair[0].name);
        }
    }
}
