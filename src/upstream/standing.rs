//! Whether an endpoint may take requests, in one word that every pick reads.
//!
//! An endpoint is out for any of the reasons in [`Out`], each with an owner of its own: what traffic showed of it
//! (`outlier`), what its health check says, and that it is new and was not checked yet (`health`). It is in service
//! when none of them holds: so a health check that passes cannot bring back what traffic has thrown out.
//!
//! The reasons and the instant of the last change share one word, so that nobody reads one of them old and the
//! other new. Not here: who decides, and for how long (`outlier`, `health`).

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A reason to be out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Out {
    /// Its traffic fails, or crawls.
    Ejected = 1,
    /// Its health check fails.
    Unhealthy = 2,
    /// It is new, and no check has passed yet.
    Unchecked = 4,
}

impl Out {
    /// All of them, what weighs most first.
    pub const ALL: [Out; 3] = [Out::Ejected, Out::Unhealthy, Out::Unchecked];

    /// For `/upstreams` and `/readyz`.
    pub const fn word(self) -> &'static str {
        match self {
            Out::Ejected => "ejected",
            Out::Unhealthy => "unhealthy",
            Out::Unchecked => "unchecked",
        }
    }
}

/// The bits of a word that hold reasons; the others hold nanoseconds, so that these count in eights.
const REASONS: u64 = 7;

/// What instants are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds to `now` from an instant before all others that are asked about; 0 before it.
pub fn nanos(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_nanos() as u64
}

/// The instant that is `nanos` after the one that all are counted from.
pub fn instant(nanos: u64) -> Instant {
    *START + Duration::from_nanos(nanos)
}

/// An endpoint's standing. Shared by all workers.
#[derive(Debug)]
pub struct Standing(AtomicU64);

impl Standing {
    /// In service from `now` on.
    pub fn new(now: Instant) -> Self {
        Self(AtomicU64::new(nanos(now) & !REASONS))
    }

    /// Whether it may take requests: one relaxed load.
    pub fn is_in_service(&self) -> bool {
        self.0.load(Relaxed) & REASONS == 0
    }

    /// Whether it is out for this reason.
    pub fn is_out(&self, reason: Out) -> bool {
        self.0.load(Relaxed) & reason as u64 != 0
    }

    /// Since when it is in service, or out of it, in [`nanos`]: slow start counts from there.
    pub fn in_service_since(&self) -> u64 {
        self.0.load(Relaxed) & !REASONS
    }

    /// Puts a reason in force, or lifts it. Whether it went out of service by that, or came back.
    pub fn set(&self, reason: Out, is_out: bool, now: Instant) -> bool {
        let mut turns = false;
        let update = |word: u64| {
            let reasons = word & REASONS;
            let then = if is_out { reasons | reason as u64 } else { reasons & !(reason as u64) };
            turns = (reasons == 0) != (then == 0);
            let since = if turns { nanos(now) } else { word };
            (then != reasons).then_some(since & !REASONS | then)
        };
        self.0.fetch_update(Relaxed, Relaxed, update).is_ok() && turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_in_service_when_nothing_speaks_against_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let standing = Standing::new(start);
        assert!(standing.is_in_service());
        let steps = [
            // why                                          reason           out    second  turns  in service
            ("new and in service", Out::Unchecked, false, 0, false, true),
            ("its traffic fails", Out::Ejected, true, 1, true, false),
            ("so does its check", Out::Unhealthy, true, 2, false, false),
            ("its time is over, its check still fails", Out::Ejected, false, 3, false, false),
            ("nothing new", Out::Ejected, false, 4, false, false),
            ("the check passes", Out::Unhealthy, false, 5, true, true),
        ];
        for (why, reason, out, second, turns, in_service) in steps {
            assert_eq!(standing.set(reason, out, at(second)), turns, "{why}");
            assert_eq!(standing.is_in_service(), in_service, "{why}");
        }
        let since = instant(standing.in_service_since());
        assert!(at(5) - since < Duration::from_nanos(16), "slow start counts from its return");
    }
}
