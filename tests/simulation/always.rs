//! What must hold whatever comes.

use std::time::{Duration, Instant};

use outrigger::policy::limit::{Lesson, Limiter, Sample, Settings};
use outrigger::units::Span;
use proptest::prelude::*;

#[expect(clippy::disallowed_methods, reason = "std offers no other way to get an instant")]
fn start() -> Instant {
    Instant::now()
}

/// With a limit of `least` at least.
fn settings(least: u32) -> impl Strategy<Value = Settings> {
    let bounds = (least..300, least..50, 0u32..500);
    (0..3, bounds, proptest::option::of(1u64..200)).prop_map(|(kind, (initial, min, more), latency)| {
        let max = min + more;
        match kind {
            0 => Settings::Gradient { initial, min, max },
            1 => Settings::Aimd { initial, min, max, latency: latency.map(Span::from_millis) },
            _ => Settings::Vegas { initial, min, max },
        }
    })
}

/// What happens next, and how long after the last.
#[derive(Clone, Debug)]
enum Step {
    Enter,
    Answer { latency: u64, lesson: Lesson },
    Leave,
    Saturated,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let lesson = prop_oneof![
        6 => Just(Lesson::Served),
        2 => Just(Lesson::Overloaded),
        1 => Just(Lesson::Nothing),
    ];
    let step = prop_oneof![
        4 => Just(Step::Enter),
        4 => (0u64..2_000_000, lesson).prop_map(|(latency, lesson)| Step::Answer { latency, lesson }),
        1 => Just(Step::Leave),
        1 => Just(Step::Saturated),
    ];
    proptest::collection::vec((0u64..50_000, step), 0..2000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever attempts show, the limit stays within its bounds; and what changes them holds at once.
    #[test]
    fn a_limit_stays_within_its_bounds(settings in settings(1), other in settings(1), steps in steps()) {
        let (mut now, mut in_flight) = (start(), 0u32);
        let mut limiter = Limiter::new(&settings, now, 7);
        let mut bounds = settings;
        for (nth, (micros, step)) in steps.into_iter().enumerate() {
            now += Duration::from_micros(micros);
            match step {
                Step::Enter if limiter.admits(now, in_flight) => {
                    in_flight += 1;
                    limiter.entered(now, in_flight);
                }
                Step::Answer { latency, lesson } if in_flight > 0 => {
                    let latency = Duration::from_micros(latency);
                    let began = now.checked_sub(latency).unwrap_or(now);
                    limiter.answered(now, in_flight, Sample { began, latency, lesson });
                    in_flight -= 1;
                    limiter.left(now, in_flight);
                }
                Step::Leave if in_flight > 0 => {
                    in_flight -= 1;
                    limiter.left(now, in_flight);
                }
                Step::Enter | Step::Saturated => limiter.saturated(now),
                Step::Answer { .. } | Step::Leave => {}
            }
            if nth == 1000 {
                bounds = other;
                limiter.update(&other);
            }
            let (min, _) = bounds.start().expect("it moves");
            prop_assert!((min..=bounds.max()).contains(&limiter.limit()), "{} of {bounds:?}", limiter.limit());
        }
    }

    /// Who never runs into it never raises it. One at a time is always near a limit of one or two.
    #[test]
    fn without_need_a_limit_never_rises(settings in settings(3), latencies in proptest::collection::vec((1u64..400_000, 1u64..20_000), 0..2000)) {
        let mut now = start();
        let mut limiter = Limiter::new(&settings, now, 7);
        let mut lowest = limiter.limit();
        for (latency, gap) in latencies {
            let latency = Duration::from_micros(latency);
            let began = now;
            limiter.entered(now, 1);
            now += latency;
            limiter.answered(now, 1, Sample { began, latency, lesson: Lesson::Served });
            limiter.left(now, 0);
            now += Duration::from_micros(gap);
            prop_assert!(limiter.limit() <= lowest, "{} after {lowest}", limiter.limit());
            lowest = limiter.limit();
        }
    }

    /// A latency that says nothing and a goodput that does not grow: more is of no use (concurrency-limits#137).
    #[test]
    fn a_constant_latency_with_a_flat_goodput_does_not_end_at_the_top(vegas in any::<bool>(), per_second in 20u32..2000, millis in 5u64..500, times_out in any::<bool>()) {
        let (initial, min, max) = (20, 4, 1000);
        let settings = if vegas { Settings::Vegas { initial, min, max } } else { Settings::Gradient { initial, min, max } };
        let lesson = if times_out { Lesson::Overloaded } else { Lesson::Served };
        let (mut now, latency) = (start(), Duration::from_millis(millis));
        let mut limiter = Limiter::new(&settings, now, 7);
        let mut highest = 0;
        for nth in 0..per_second * 120 {
            now += Duration::from_secs(1) / per_second;
            let in_flight = limiter.limit();
            limiter.saturated(now);
            let began = now.checked_sub(latency).unwrap_or(now);
            limiter.answered(now, in_flight, Sample { began, latency, lesson });
            limiter.left(now, in_flight - 1);
            limiter.entered(now, in_flight);
            if nth > per_second * 60 {
                highest = highest.max(limiter.limit());
            }
        }
        // Vegas does not look at the goodput; its queue is what it takes for one.
        prop_assert!(vegas && !times_out || highest < max / 2, "{highest}");
    }
}
