//! What one side of the demo has come to: in each phase, over time, and just now.

use std::time::Duration;

use super::client::Failure;
use super::latency::Histogram;
use super::load::Sample;
use super::timeline::Timeline;

/// Points of the curves over the whole run.
pub(super) const POINTS: usize = 120;
/// "Just now" is the last two seconds, in turns of a quarter.
const TURN: Duration = Duration::from_millis(250);
const TURNS: usize = 8;

/// Requests that ended, and how long they took. Failed ones are in the latencies too: their senders have
/// waited for them.
#[derive(Clone)]
pub(super) struct Tally {
    pub(super) ok: u64,
    pub(super) failed: u64,
    pub(super) latency: Histogram,
}

impl Tally {
    pub(super) fn new() -> Tally {
        Tally { ok: 0, failed: 0, latency: Histogram::new() }
    }

    fn record(&mut self, sample: &Sample) {
        match sample.result {
            Ok(()) => self.ok += 1,
            Err(_) => self.failed += 1,
        }
        if sample.result != Err(Failure::Unsent) {
            self.latency.record(sample.latency);
        }
    }

    pub(super) fn add(&mut self, other: &Tally) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.latency.add(&other.latency);
    }

    pub(super) fn requests(&self) -> u64 {
        self.ok + self.failed
    }

    /// The share that succeeded, from 0 to 1. `None` without requests.
    pub(super) fn success(&self) -> Option<f64> {
        (self.requests() > 0).then(|| self.ok as f64 / self.requests() as f64)
    }
}

/// One side's results. A request counts where it was due, so that a phase has to answer for what it was asked.
pub(super) struct Score {
    pub(super) phases: Vec<Tally>,
    pub(super) points: Vec<Tally>,
    pub(super) failures: [u64; Failure::ALL.len()],
    /// The last turns by the time of the answer, each with the number of its turn.
    recent: [(u64, Tally); TURNS],
}

impl Score {
    pub(super) fn new(timeline: &Timeline) -> Score {
        Score {
            phases: vec![Tally::new(); timeline.phases().len()],
            points: vec![Tally::new(); POINTS],
            failures: [0; Failure::ALL.len()],
            recent: std::array::from_fn(|_| (0, Tally::new())),
        }
    }

    pub(super) fn record(&mut self, sample: &Sample, timeline: &Timeline) {
        self.phases[timeline.at(sample.due)].record(sample);
        let share = sample.due.as_secs_f64() / timeline.length().as_secs_f64();
        self.points[((share * POINTS as f64) as usize).min(POINTS - 1)].record(sample);
        if let Err(failure) = sample.result {
            self.failures[failure as usize] += 1;
        }
        let turn = turn_at(sample.due + sample.latency);
        let (number, tally) = &mut self.recent[turn as usize % TURNS];
        if *number != turn {
            (*number, *tally) = (turn, Tally::new());
        }
        tally.record(sample);
    }

    /// What ended in the last two seconds before `now`, and how long that really was.
    pub(super) fn just_now(&self, now: Duration) -> (Tally, Duration) {
        let turn = turn_at(now);
        let mut sum = Tally::new();
        for (number, tally) in &self.recent {
            // The turn that has just begun has little to say yet.
            if *number < turn && *number + TURNS as u64 > turn {
                sum.add(tally);
            }
        }
        let span = TURN * u32::try_from(turn).unwrap_or(u32::MAX).min(TURNS as u32 - 1);
        (sum, span)
    }

    pub(super) fn overall(&self) -> Tally {
        let mut sum = Tally::new();
        self.phases.iter().for_each(|phase| sum.add(phase));
        sum
    }
}

fn turn_at(elapsed: Duration) -> u64 {
    (elapsed.as_millis() / TURN.as_millis()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due: u64, latency: u64, result: Result<(), Failure>) -> Sample {
        Sample { due: Duration::from_millis(due), latency: Duration::from_millis(latency), result }
    }

    #[test]
    fn a_request_counts_in_the_phase_in_which_it_was_due() {
        let timeline = Timeline::over(Duration::from_secs(30));
        let mut score = Score::new(&timeline);
        let trouble = timeline.begin(1);
        let late = sample(0, 1900, Err(Failure::Timeout));
        score.record(&Sample { due: trouble - Duration::from_nanos(1), ..late }, &timeline);
        score.record(&Sample { due: trouble, ..sample(0, 40, Ok(())) }, &timeline);
        assert_eq!((score.phases[0].ok, score.phases[0].failed), (0, 1));
        assert_eq!((score.phases[1].ok, score.phases[1].failed), (1, 0));
        assert_eq!(score.failures[Failure::Timeout as usize], 1);
        assert_eq!(score.overall().requests(), 2);
        assert_eq!(score.overall().success(), Some(0.5));
    }

    #[test]
    fn just_now_forgets_what_is_older_than_two_seconds() {
        let timeline = Timeline::over(Duration::from_secs(30));
        let mut score = Score::new(&timeline);
        for due in (0..10_000).step_by(100) {
            score.record(&sample(due, 0, Ok(())), &timeline);
        }
        let (tally, span) = score.just_now(Duration::from_millis(10_000));
        assert_eq!(span, Duration::from_millis(1750));
        assert!((16..=19).contains(&tally.requests()), "{} in {span:?}", tally.requests());
        let (tally, _) = score.just_now(Duration::from_secs(20));
        assert_eq!((tally.requests(), tally.success()), (0, None), "long ago");
    }

    #[test]
    fn what_was_not_sent_has_failed_but_has_no_latency() {
        let timeline = Timeline::over(Duration::from_secs(30));
        let mut score = Score::new(&timeline);
        score.record(&sample(1, 0, Err(Failure::Unsent)), &timeline);
        assert_eq!(score.overall().failed, 1);
        assert_eq!(score.overall().latency.worst(), None);
    }
}
