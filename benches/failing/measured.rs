//! What one run of a row has shown: what became of each request, what reached each replica, and the figures that
//! are read from it. Times are counted from the start of the load.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::load::Sample;

/// Above this a second, or a window, is bad.
pub(crate) const GOOD: Duration = Duration::from_millis(50);
/// How long p99 has to stay good to be back.
const FOR_GOOD: Duration = Duration::from_secs(1);
/// What p99 is read from where seconds are too coarse: 150 requests, of which one may be slow.
const WINDOW: Duration = Duration::from_millis(250);
/// By how much windows move on.
const STEP: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

/// One run, complete.
pub(crate) struct Measured {
    /// All requests, in the order in which they were due.
    pub(crate) samples: Vec<Sample>,
    /// When each replica was asked; the health check apart.
    pub(crate) arrivals: Vec<Vec<Duration>>,
    /// From when to when something failed.
    pub(crate) fault: Range<Duration>,
    /// When the last request was due.
    pub(crate) end: Duration,
    /// How often each endpoint was ejected, and why.
    pub(crate) ejections: Vec<(String, String, u64)>,
}

/// Part of a run.
pub(crate) struct Slice<'a> {
    /// The requests that were due in it.
    pub(crate) samples: &'a [Sample],
}

impl Measured {
    /// What was due in `span`.
    pub(crate) fn within(&self, span: &Range<Duration>) -> Slice<'_> {
        let from = self.samples.partition_point(|sample| sample.due < span.start);
        let to = self.samples.partition_point(|sample| sample.due < span.end);
        Slice { samples: &self.samples[from..to.max(from)] }
    }

    /// How often `replica` was asked in `span`.
    pub(crate) fn asked(&self, replica: usize, span: &Range<Duration>) -> usize {
        self.arrivals[replica].iter().filter(|at| span.contains(at)).count()
    }

    /// What share of all requests of `span` came to `replica`.
    pub(crate) fn share(&self, replica: usize, span: &Range<Duration>) -> f64 {
        ratio(self.asked(replica, span), self.within(span).samples.len())
    }

    /// How many attempts reached the replicas for each request of `span`.
    pub(crate) fn load(&self, span: &Range<Duration>) -> f64 {
        let attempts: usize = (0..self.arrivals.len()).map(|replica| self.asked(replica, span)).sum();
        ratio(attempts, self.within(span).samples.len())
    }

    /// From `span.start` on: how long until p99 is good and stays so for a second.
    pub(crate) fn settles(&self, span: &Range<Duration>) -> Option<Duration> {
        let mut good_since = span.start;
        let mut start = span.start;
        while start + WINDOW <= span.end {
            if self.within(&(start..start + WINDOW)).p99() > GOOD {
                good_since = start + STEP;
            }
            if start >= good_since + FOR_GOOD {
                break;
            }
            start += STEP;
        }
        (good_since + WINDOW <= span.end).then(|| good_since - span.start)
    }

    /// How long after the failure's end `replica` got a fifth of the requests for a second: the end of that second.
    pub(crate) fn back_in_service(&self, replica: usize) -> Option<Duration> {
        let mut start = self.fault.end;
        while start + SECOND <= self.end {
            if self.share(replica, &(start..start + SECOND)) >= 0.2 {
                return Some(start + SECOND - self.fault.end);
            }
            start += 2 * STEP;
        }
        None
    }

    /// The seconds of `span`; what is left at its end is none.
    pub(crate) fn seconds(&self, span: &Range<Duration>) -> impl Iterator<Item = Range<Duration>> {
        let (begin, count) = (span.start, span.end.saturating_sub(span.start).as_secs());
        (0..u32::try_from(count).unwrap_or(u32::MAX))
            .map(move |n| begin + SECOND * n..begin + SECOND * (n + 1))
    }

    /// How many seconds of `span` had an error, or a p99 that is not good.
    pub(crate) fn bad_seconds(&self, span: &Range<Duration>) -> usize {
        self.seconds(span).filter(|second| self.within(second).is_bad()).count()
    }

    /// The second of `span` with most errors, or with the highest p99 where none has any.
    pub(crate) fn worst_second(&self, span: &Range<Duration>) -> Option<Range<Duration>> {
        self.seconds(span).max_by_key(|second| {
            let slice = self.within(second);
            (slice.errors(), slice.p99())
        })
    }
}

impl Slice<'_> {
    /// Requests that failed.
    pub(crate) fn errors(&self) -> usize {
        self.samples.iter().filter(|sample| sample.error.is_some()).count()
    }

    /// The share of them.
    pub(crate) fn error_ratio(&self) -> f64 {
        ratio(self.errors(), self.samples.len())
    }

    /// The errors by their reason.
    pub(crate) fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for reason in self.samples.iter().filter_map(|sample| sample.error.as_deref()) {
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }

    /// The latency that 99 of 100 requests did not exceed, failed ones too: their senders have waited for them.
    pub(crate) fn p99(&self) -> Duration {
        quantile(self.samples.iter().map(|sample| sample.latency), 0.99)
    }

    /// The median latency.
    pub(crate) fn p50(&self) -> Duration {
        quantile(self.samples.iter().map(|sample| sample.latency), 0.5)
    }

    /// p99 of those that failed.
    pub(crate) fn p99_of_errors(&self) -> Duration {
        let failed = self.samples.iter().filter(|sample| sample.error.is_some());
        quantile(failed.map(|sample| sample.latency), 0.99)
    }

    /// How late the machine was in sending them, at p99.
    pub(crate) fn late(&self) -> Duration {
        quantile(self.samples.iter().map(|sample| sample.late), 0.99)
    }

    /// When the first answer of those that succeeded was there.
    pub(crate) fn first_success(&self) -> Option<Duration> {
        let succeeded = self.samples.iter().filter(|sample| sample.error.is_none());
        succeeded.map(|sample| sample.due + sample.latency).min()
    }

    fn is_bad(&self) -> bool {
        self.errors() > 0 || self.p99() > GOOD
    }
}

/// The smallest latency that a share of `quantile` did not exceed; zero of none.
pub(crate) fn quantile(latencies: impl Iterator<Item = Duration>, quantile: f64) -> Duration {
    let mut sorted: Vec<_> = latencies.collect();
    sorted.sort_unstable();
    let rank = ((sorted.len() as f64 * quantile).ceil() as usize).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// `part` of `whole`; zero of nothing.
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
