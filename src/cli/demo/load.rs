//! Open-loop load: requests are sent when they are due, however the earlier ones fare.
//!
//! A loop that waits for an answer before it sends the next request stops asking just when the service is at
//! its worst, and so never sees it ("coordinated omission"). Here a schedule says when each request is due, it
//! is measured from that instant, and both sides of the demo get the same schedule. What is under way at once
//! is bounded; a request beyond the bound counts as failed.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use hyper::Method;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::Failure;

/// One request of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arrival {
    /// When it is due, from the start on.
    pub(super) at: Duration,
    /// GET, or POST, which must not be sent twice.
    pub(super) method: Method,
}

/// One request in this many is a POST.
pub(super) const WRITES: u32 = 20;

/// Poisson arrivals for ever, the same for the same seed.
pub(super) struct Schedule {
    random: fastrand::Rng,
    per_second: f64,
    at: Duration,
}

impl Schedule {
    pub(super) fn new(per_second: f64, seed: u64) -> Schedule {
        Schedule { random: fastrand::Rng::with_seed(seed), per_second, at: Duration::ZERO }
    }
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        // The gaps of a Poisson process are exponential; 1 - [0,1) is never 0.
        let gap = -(1.0 - self.random.f64()).ln() / self.per_second;
        self.at += Duration::from_secs_f64(gap);
        let method = if self.random.u32(..WRITES) == 0 { Method::POST } else { Method::GET };
        Some(Arrival { at: self.at, method })
    }
}

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// When it was due, from the start on.
    pub(super) due: Duration,
    /// From then to its answer or its failure.
    pub(super) latency: Duration,
    pub(super) result: Result<(), Failure>,
}

/// Requests under way.
#[derive(Clone, Default)]
pub(super) struct InFlight(Rc<Cell<usize>>);

impl InFlight {
    pub(super) fn count(&self) -> usize {
        self.0.get()
    }
}

/// Sends each arrival when it is due, `bound` of them at once at most, and hands every result to `record`.
/// Returns when the schedule has ended and the last result is in. Within a `LocalSet`.
pub(super) async fn drive<Sent: Future<Output = Result<(), Failure>> + 'static>(
    schedule: impl Iterator<Item = Arrival>,
    start: Instant,
    (in_flight, bound): (InFlight, usize),
    send: impl Fn(Method) -> Sent,
    record: impl Fn(Sample) + Clone + 'static,
) {
    let mut under_way = JoinSet::new();
    for Arrival { at: due, method } in schedule {
        sleep_until(start + due).await;
        while under_way.try_join_next().is_some() {}
        if in_flight.count() >= bound {
            record(Sample { due, latency: start.elapsed() - due, result: Err(Failure::Unsent) });
            continue;
        }
        in_flight.0.set(in_flight.count() + 1);
        let (sent, record, in_flight) = (send(method), record.clone(), in_flight.clone());
        under_way.spawn_local(async move {
            let result = sent.await;
            in_flight.0.set(in_flight.count() - 1);
            record(Sample { due, latency: start.elapsed() - due, result });
        });
    }
    while under_way.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use tokio::time::{advance, sleep};

    fn in_made_up_time(story: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, story);
    }

    /// A request each 10 ms, for `count` requests.
    fn every_ten_millis(count: u32) -> impl Iterator<Item = Arrival> {
        (1..=count).map(|index| Arrival { at: Duration::from_millis(10) * index, method: Method::GET })
    }

    /// A place for samples, and what writes into it.
    fn notebook() -> (Rc<RefCell<Vec<Sample>>>, impl Fn(Sample) + Clone + 'static) {
        let samples = Rc::new(RefCell::new(Vec::new()));
        let pen = samples.clone();
        (samples, move |sample| pen.borrow_mut().push(sample))
    }

    #[test]
    fn a_schedule_repeats_and_has_its_rate() {
        let two_hundred = |seed| Schedule::new(200.0, seed).take_while(|arrival| arrival.at.as_secs() < 60);
        assert!(two_hundred(7).eq(two_hundred(7)), "the same seed, the same schedule");
        let arrivals: Vec<_> = two_hundred(7).collect();
        // The standard deviation of a Poisson count is its root: 12,000 ± 4 × 110.
        assert!((11_560..12_440).contains(&arrivals.len()), "{}", arrivals.len());
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
        let writes = arrivals.iter().filter(|arrival| arrival.method == Method::POST).count();
        assert!((450..750).contains(&writes), "one in {WRITES} writes: {writes}");
    }

    #[test]
    fn a_stalled_service_is_asked_on_and_every_wait_counts() {
        in_made_up_time(async {
            let (samples, record) = notebook();
            let start = Instant::now();
            // Answers nothing for a second, then everything at once.
            let send = move |_| async move {
                tokio::time::sleep_until(start + Duration::from_secs(1)).await;
                Ok(())
            };
            drive(every_ten_millis(100), start, (InFlight::default(), 1000), send, record).await;
            let samples = samples.borrow();
            assert_eq!(samples.len(), 100, "a closed loop would have sent one");
            for sample in samples.iter() {
                let wait = Duration::from_secs(1) - sample.due;
                assert!(sample.latency >= wait && sample.latency < wait + Duration::from_millis(5));
            }
        });
    }

    #[test]
    fn a_request_that_is_sent_late_is_measured_from_when_it_was_due() {
        in_made_up_time(async {
            let (samples, record) = notebook();
            let start = Instant::now();
            let quick = |_| async { Ok(()) };
            let load = tokio::task::spawn_local(drive(
                every_ten_millis(50),
                start,
                (InFlight::default(), 1000),
                quick,
                record,
            ));
            tokio::task::yield_now().await;
            advance(Duration::from_millis(500)).await; // as if this thread had not run for so long
            load.await.expect("ends");
            let samples = samples.borrow();
            assert_eq!(samples.len(), 50);
            assert!(samples[0].latency >= Duration::from_millis(490), "{:?}", samples[0]);
            let sum: Duration = samples.iter().map(|sample| sample.latency).sum();
            assert!(sum >= Duration::from_millis(250 * 49), "the lag is in all of them: {sum:?}");
        });
    }

    #[test]
    fn what_is_under_way_is_bounded_and_the_rest_has_failed() {
        in_made_up_time(async {
            let (samples, record) = notebook();
            let in_flight = InFlight::default();
            let slow = |_| async {
                sleep(Duration::from_secs(5)).await;
                Ok(())
            };
            drive(every_ten_millis(30), Instant::now(), (in_flight.clone(), 10), slow, record).await;
            let unsent =
                samples.borrow().iter().filter(|sample| sample.result == Err(Failure::Unsent)).count();
            assert_eq!((unsent, samples.borrow().len()), (20, 30));
            assert_eq!(in_flight.count(), 0);
        });
    }
}
