//! How long an upstream keeps idle connections, learnt from what it does: a connection that is used in the moment in
//! which the upstream closes it costs a request that may not be sent twice.
//!
//! One for each upstream, shared by all workers; pure but for its atomics, the time is a parameter. Not here: the
//! connections (`pool`), and what becomes of a request that met the close all the same (`proxy::attempt`).
//!
//! - **Down at once.** A connection that the upstream closes after it was idle for `t` bounds what is kept by `t`.
//! - **Told.** `Keep-Alive: timeout=N` is the upstream's own word: it counts where nothing is known or more was
//!   believed. It does not undo what was seen: something between here and there may be less patient.
//! - **Up slowly.** Where more is wanted than what is known, one idle connection that is too old for requests stays
//!   as a [`Probe`]. Its age while it still stands proves that so much is kept, up to twice of what was known when
//!   it began; then it goes, and another may follow. So a way up takes about twice as long as what it proves, and an
//!   upstream whose restart closed everything is trusted again after a while. A probe that sees another connection
//!   close meanwhile proves nothing any more.
//!
//! Requests use connections that were idle for less than what is kept by `MARGIN`: the close is on its way for a
//! moment before it is seen. Where nothing is known, what the configuration writes is trusted; where it writes
//! nothing, [`UNKNOWN`], which nearly every server keeps, and at most [`MOST`], however long the upstream would.
//!
//! One for the upstream and not for each endpoint: endpoints of one service are configured alike, and most of them
//! see too few closes to learn by themselves. The least patient of them counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// A connection is used up to so long before the upstream would close it; half of what is kept where that is less
/// than twice of it.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a connection may be idle where nobody knows and nobody says.
pub const UNKNOWN: Duration = Duration::from_secs(4);
/// How long a connection may be idle where nobody says, whatever is known.
pub const MOST: Duration = Duration::from_secs(60);
/// The least that is learnt: how exactly a close is timed (pools are swept ten times a second).
const LEAST: Duration = Duration::from_millis(100);

/// How long an upstream keeps idle connections, as far as it is known.
#[derive(Debug, Default)]
pub struct KeepAlive {
    /// Milliseconds; 0: nothing is known.
    kept: AtomicU32,
    /// How often a close was seen, for probes.
    closes: AtomicU32,
    /// Whether some worker keeps a probe.
    is_probed: AtomicBool,
}

/// The one idle connection of an upstream that is kept to see how long it stands; ends when dropped.
#[derive(Debug)]
pub struct Probe {
    of: Arc<KeepAlive>,
    until: Duration,
    closes: u32,
}

impl KeepAlive {
    /// How long a connection may be idle and still serve a request, of what the configuration has `written`.
    #[inline]
    pub fn limit(&self, written: Option<Duration>) -> Duration {
        match (self.kept.load(Relaxed), written) {
            (0, written) => written.unwrap_or(UNKNOWN),
            (kept, written) => below(millis(kept)).min(written.unwrap_or(MOST)),
        }
    }

    /// The upstream has closed a connection that was idle for so long.
    pub fn closed(&self, idle: Duration) {
        let idle = whole_millis(idle.max(LEAST));
        self.closes.fetch_add(1, Relaxed);
        // An error says that less is known already.
        let _ = self.kept.fetch_update(Relaxed, Relaxed, |kept| (kept == 0 || idle < kept).then_some(idle));
    }

    /// The upstream's `Keep-Alive` field says this (RFC 2068 §19.7.1.1: `timeout=5, max=100`).
    pub fn told(&self, value: &[u8]) {
        let Some(told) = timeout(value) else { return };
        let told = whole_millis(told.max(LEAST));
        let _ = self.kept.fetch_update(Relaxed, Relaxed, |kept| (kept == 0 || told < kept).then_some(told));
    }

    /// A connection that was idle for longer than the limit may stay as a probe: where more is wanted, and no other
    /// probe is there.
    pub fn probe(self: &Arc<Self>, written: Option<Duration>) -> Option<Probe> {
        if self.limit(written) >= written.unwrap_or(MOST) || self.is_probed.swap(true, Relaxed) {
            return None;
        }
        let kept = match self.kept.load(Relaxed) {
            0 => UNKNOWN + MARGIN,
            kept => millis(kept),
        };
        let until = (kept * 2).min(written.unwrap_or(MOST) + MARGIN);
        Some(Probe { of: Arc::clone(self), until, closes: self.closes.load(Relaxed) })
    }
}

impl Probe {
    /// The probe still stands after it was `idle` for so long. Whether it is worth keeping.
    pub fn stands(&self, idle: Duration) -> bool {
        if self.of.closes.load(Relaxed) != self.closes {
            return false;
        }
        let proven = whole_millis(idle.min(self.until));
        self.of.kept.fetch_max(proven, Relaxed);
        idle < self.until
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.of.is_probed.store(false, Relaxed);
    }
}

/// How long a connection may be idle that is kept for so long.
fn below(kept: Duration) -> Duration {
    if kept >= MARGIN * 2 { kept - MARGIN } else { kept / 2 }
}

fn millis(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

fn whole_millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// The `timeout` of a `Keep-Alive` field: whole seconds.
fn timeout(value: &[u8]) -> Option<Duration> {
    let value = std::str::from_utf8(value).ok()?;
    let seconds = value.split(',').find_map(|parameter| {
        let (name, seconds) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then_some(seconds)
    })?;
    seconds.trim().parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn what_is_seen_bounds_what_is_used() {
        type Seen = fn(&KeepAlive);
        let written = Some(ms(30_000));
        #[rustfmt::skip]
        let cases: [(&str, Option<Duration>, Seen, Duration); 10] = [
            // why                                        written  seen                                   limit
            ("nothing is known",                          None,    |_| (),                                UNKNOWN),
            ("nothing is known: what is written counts",  written, |_| (),                                ms(30_000)),
            ("a close: a second below it",                None,    |k| k.closed(ms(3000)),                ms(2000)),
            ("whatever is written",                       written, |k| k.closed(ms(3000)),                ms(2000)),
            ("what is written stays the most",            written, |k| k.closed(ms(75_000)),              ms(30_000)),
            ("half where a second is too much",           None,    |k| k.closed(ms(1500)),                ms(750)),
            ("a close at once still leaves a moment",     None,    |k| k.closed(ms(0)),                   ms(50)),
            ("told more than is ever wanted",             None,    |k| k.told(b"timeout=75"),             MOST),
            ("told less",                                 None,    |k| k.told(b"max=7, Timeout = 5 "),    ms(4000)),
            ("told what is no number",                    None,    |k| k.told(b"timeout=-1"),             UNKNOWN),
        ];
        for (why, written, seen, limit) in cases {
            let keep_alive = KeepAlive::default();
            seen(&keep_alive);
            assert_eq!(keep_alive.limit(written), limit, "{why}");
        }
    }

    #[test]
    fn a_promise_does_not_undo_what_was_seen() {
        let keep_alive = KeepAlive::default();
        keep_alive.told(b"timeout=60");
        keep_alive.closed(ms(10_000));
        keep_alive.told(b"timeout=60");
        assert_eq!(keep_alive.limit(None), ms(9000));
        keep_alive.closed(ms(12_000));
        assert_eq!(keep_alive.limit(None), ms(9000), "a later close is none of the limit's");
    }

    #[test]
    fn a_probe_proves_what_it_lives_up_to_twice() {
        let keep_alive = Arc::new(KeepAlive::default());
        let probe = keep_alive.probe(None).expect("more is wanted");
        assert!(keep_alive.probe(None).is_none(), "one is enough");
        assert!(probe.stands(ms(4500)));
        assert!(probe.stands(ms(8000)));
        assert_eq!(keep_alive.limit(None), ms(7000));
        assert!(!probe.stands(ms(11_000)), "twice of what was known is proven");
        assert_eq!(keep_alive.limit(None), ms(9000));
        drop(probe);
        for proven in [19_000, 39_000, 60_000] {
            let probe = keep_alive.probe(None).expect("more is wanted still");
            assert!(!probe.stands(ms(100_000)));
            assert_eq!(keep_alive.limit(None), ms(proven));
        }
        assert!(keep_alive.probe(None).is_none(), "more is never used");
        assert!(keep_alive.probe(Some(ms(1000))).is_none());
    }

    #[test]
    fn a_probe_that_saw_a_close_proves_nothing() {
        let keep_alive = Arc::new(KeepAlive::default());
        let probe = keep_alive.probe(None).expect("more is wanted");
        keep_alive.closed(ms(2000));
        assert!(!probe.stands(ms(6000)));
        assert_eq!(keep_alive.limit(None), ms(1000));
    }

    #[test]
    fn nothing_is_proven_where_what_is_written_is_trusted() {
        let keep_alive = Arc::new(KeepAlive::default());
        assert!(keep_alive.probe(Some(ms(30_000))).is_none());
        keep_alive.closed(ms(3000));
        assert!(keep_alive.probe(Some(ms(30_000))).is_some(), "a close has shown that it is too much");
        assert!(keep_alive.probe(Some(ms(1500))).is_none(), "but not for who wants less");
    }

    proptest! {
        /// An upstream that closes what is idle for `patience`: once that is known no connection is used in the last
        /// second before, nor in the last half where it is less than two; and probes find what is safe again.
        #[test]
        fn the_limit_stays_below_the_upstreams_patience(
            patience in 200u64..100_000, lives in prop::collection::vec(0u64..200_000, 1..60),
        ) {
            let patience = ms(patience);
            let keep_alive = Arc::new(KeepAlive::default());
            keep_alive.closed(patience);
            for life in lives {
                let Some(probe) = keep_alive.probe(None) else { break };
                let life = ms(life);
                if life >= patience {
                    keep_alive.closed(patience);
                } else {
                    probe.stands(life);
                }
                prop_assert!(keep_alive.limit(None) <= below(patience).min(MOST));
            }
        }
    }
}
