//! What one run of too much load has shown: what became of each request, and what was worked on for it. Times are
//! counted from the start of the load.

use std::ops::Range;
use std::time::Duration;

use serde_json::Value;

use crate::load::Sample;
use crate::measured::{Slice, quantile, ratio};
use crate::server::Work;

/// What is judged as one where seconds are too coarse: 100 requests and more.
const WINDOW: Duration = Duration::from_millis(250);
/// By how much windows move on.
const STEP: Duration = Duration::from_millis(50);
/// What refuses a request as it comes; `queue_timeout` is none, it has waited. The replicas here say 503 to nobody, so
/// it is a peer that does.
const REFUSALS: [&str; 6] =
    ["queue_full", "concurrency_limited", "load_shed", "rate_limited", "breaker_open", "503 passed on"];

/// One run, complete.
pub(crate) struct Run {
    /// All requests, in the order in which they were due: a request's number is its place.
    pub(crate) samples: Vec<Sample>,
    /// All that was worked on, by any replica, in the order in which it came.
    pub(crate) works: Vec<Work>,
    /// What `/upstreams` said.
    pub(crate) pages: Vec<(Duration, Value)>,
}

impl Run {
    /// What was due in `span`.
    pub(crate) fn within(&self, span: &Range<Duration>) -> Slice<'_> {
        let from = self.samples.partition_point(|sample| sample.due < span.start);
        let to = self.samples.partition_point(|sample| sample.due < span.end);
        Slice { samples: &self.samples[from..to.max(from)] }
    }

    /// How many requests a second were served in `span`: their whole answers came in it, and in time.
    pub(crate) fn goodput(&self, span: &Range<Duration>) -> f64 {
        let came = |sample: &&Sample| span.contains(&(sample.due + sample.latency));
        let served = self.samples.iter().filter(|sample| sample.error.is_none()).filter(came).count();
        served as f64 / (span.end - span.start).as_secs_f64()
    }

    /// How many works for each request of `span` came to the replicas.
    pub(crate) fn load(&self, span: &Range<Duration>) -> f64 {
        let works = self.works.iter().filter(|work| span.contains(&work.came)).count();
        ratio(works, self.within(span).samples.len())
    }

    /// How many works that came in `span` served nobody: their request failed, or another work answered it.
    pub(crate) fn wasted(&self, span: &Range<Duration>) -> usize {
        let mut is_served: Vec<_> = self.samples.iter().map(|sample| sample.error.is_none()).collect();
        // One work of a request that succeeded was of use; which one does not matter but at the ends of a span.
        let is_of_use = |work: &&Work| is_served.get_mut(work.number).is_some_and(std::mem::take);
        let came = self.works.iter().filter(|work| span.contains(&work.came));
        let all = came.clone().count();
        all - came.filter(is_of_use).count()
    }

    /// How long after `from` all is as `is_good` says, and stays so for `hold`, or until `end`.
    pub(crate) fn settles(
        &self,
        from: Duration,
        end: Duration,
        hold: Duration,
        is_good: impl Fn(&Slice<'_>) -> bool,
    ) -> Option<Duration> {
        let mut good_since = from;
        let mut start = from;
        while start + WINDOW <= end {
            if !is_good(&self.within(&(start..start + WINDOW))) {
                good_since = start + STEP;
            }
            if start >= good_since + hold {
                break;
            }
            start += STEP;
        }
        (good_since + WINDOW <= end).then(|| good_since - from)
    }

    /// The lowest and the highest of what `/upstreams` said of `what` in `span`.
    pub(crate) fn range(&self, span: &Range<Duration>, what: &str) -> Option<(f64, f64)> {
        let pages = self.pages.iter().filter(|(at, _)| span.contains(at));
        let values = pages.filter_map(|(_, page)| page.pointer(what)?.as_f64());
        values.fold(None, |range, value| {
            let (low, high) = range.unwrap_or((value, value));
            Some((f64::min(low, value), f64::max(high, value)))
        })
    }
}

impl Slice<'_> {
    /// The share of requests that succeeded; all of none.
    pub(crate) fn success_ratio(&self) -> f64 {
        1.0 - self.error_ratio()
    }

    /// p99 of those that succeeded.
    pub(crate) fn p99_of_served(&self) -> Duration {
        let served = self.samples.iter().filter(|sample| sample.error.is_none());
        quantile(served.map(|sample| sample.latency), 0.99)
    }

    /// p99 of what a refusal took from when its request was sent, if there was one: the machine's lateness is not the
    /// sidecar's.
    pub(crate) fn p99_of_refusals(&self) -> Option<Duration> {
        let is_refused =
            |sample: &&Sample| sample.error.as_deref().is_some_and(|error| REFUSALS.contains(&error));
        let mut refused = self.samples.iter().filter(is_refused).map(|sample| sample.last_try).peekable();
        refused.peek()?;
        Some(quantile(refused, 0.99))
    }

    /// How often its requests were sent, in the mean.
    pub(crate) fn tries(&self) -> f64 {
        let tries: u32 = self.samples.iter().map(|sample| sample.tries).sum();
        ratio(tries as usize, self.samples.len())
    }
}
