//! What all workers together hold of an upstream: connections and streams, each within its bound.
//!
//! Single atomics: a bound that holds for the process cannot be sharded. They change when a connection is made,
//! closed, taken from a pool or put back, not for every byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::keep_alive::KeepAlive;

/// What all workers together hold of an upstream.
#[derive(Debug, Default)]
pub struct Counts {
    /// In use or idle, without those that streams hold.
    connections: AtomicU32,
    /// Those of them that are idle.
    idle: AtomicU32,
    streams: AtomicU32,
    /// How long the upstream keeps those that are idle.
    keep_alive: Arc<KeepAlive>,
}

/// One of the upstream's connections, or of its streams, until dropped.
#[derive(Debug)]
pub struct Counted {
    counts: Arc<Counts>,
    is_stream: bool,
    is_idle: bool,
    has_left: bool,
}

/// One of the upstream's streams, of several that share a connection, until dropped.
#[derive(Debug)]
pub struct CountedStream {
    counts: Arc<Counts>,
}

impl Counts {
    /// Connections in use or idle, without those that streams hold.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Streams.
    pub fn streams(&self) -> u32 {
        self.streams.load(Relaxed)
    }

    /// Counts a new connection; none where there are `max`. Idle ones stand in nobody's way: they may be exceeded
    /// until the workers that have them have closed them, which takes those a moment.
    pub fn add(self: &Arc<Self>, max: u32) -> Option<Counted> {
        let idle = self.idle.load(Relaxed);
        take_one(&self.connections, max.saturating_add(idle)).then(|| Counted {
            counts: Arc::clone(self),
            is_stream: false,
            is_idle: false,
            has_left: false,
        })
    }
}

impl Counts {
    /// Counts a stream that has its connection not for itself; none where there are `max_streams`.
    pub fn add_stream(self: &Arc<Self>, max_streams: u32) -> Option<CountedStream> {
        take_one(&self.streams, max_streams).then(|| CountedStream { counts: Arc::clone(self) })
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.counts.streams.fetch_sub(1, Relaxed);
    }
}

impl Counted {
    /// The counts of its upstream.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// The connection is a stream's from now on; false where there are `max_streams`, and nothing changed.
    pub fn become_stream(&mut self, max_streams: u32) -> bool {
        if !self.is_stream && take_one(&self.counts.streams, max_streams) {
            self.counts.connections.fetch_sub(1, Relaxed);
            self.is_stream = true;
        }
        self.is_stream
    }

    /// The stream has ended, and the connection serves others again.
    pub(super) fn end_stream(&mut self) {
        if std::mem::take(&mut self.is_stream) {
            self.counts.streams.fetch_sub(1, Relaxed);
            self.counts.connections.fetch_add(1, Relaxed);
        }
    }

    /// The connection goes to a pool, or comes from it.
    pub(super) fn rest(&mut self, is_idle: bool) {
        match (std::mem::replace(&mut self.is_idle, is_idle), is_idle) {
            (false, true) => drop(self.counts.idle.fetch_add(1, Relaxed)),
            (true, false) => drop(self.counts.idle.fetch_sub(1, Relaxed)),
            _ => {}
        }
    }

    /// The connection is being closed: others may have its place.
    pub(super) fn leave(&mut self) {
        self.rest(false);
        if !std::mem::replace(&mut self.has_left, true) {
            let count = if self.is_stream { &self.counts.streams } else { &self.counts.connections };
            count.fetch_sub(1, Relaxed);
        }
    }

    /// How long its upstream keeps idle connections.
    pub(super) fn keep_alive(&self) -> &Arc<KeepAlive> {
        &self.counts.keep_alive
    }

    /// Whether no more than `max` connections are counted.
    pub(super) fn is_within(&self, max: u32) -> bool {
        self.counts.connections() <= max
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Counts one more, unless there are `max`.
fn take_one(count: &AtomicU32, max: u32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |count| (count < max).then_some(count + 1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_in_use_stay_within_their_bound() {
        let counts = Arc::new(Counts::default());
        let mut first = counts.add(2).expect("the first of two");
        let second = counts.add(2).expect("the second of two");
        assert!(counts.add(2).is_none(), "both are in use");
        first.rest(true);
        let third = counts.add(2).expect("one is idle only");
        assert!(!first.is_within(2), "so that one has to go");
        drop(first);
        assert!(third.is_within(2));
        assert!(counts.add(2).is_none());
        drop((second, third));
        assert_eq!(counts.connections(), 0);
    }

    #[test]
    fn streams_that_share_a_connection_leave_it_counted() {
        let counts = Arc::new(Counts::default());
        let connection = counts.add(1).expect("there is room");
        let stream = connection.counts().add_stream(1).expect("the first");
        assert!(counts.add_stream(1).is_none(), "one is all");
        assert_eq!((counts.connections(), counts.streams()), (1, 1));
        drop(stream);
        assert_eq!((counts.connections(), counts.streams()), (1, 0));
    }

    #[test]
    fn a_stream_is_no_connection_any_more() {
        let counts = Arc::new(Counts::default());
        let mut connection = counts.add(1).expect("there is room");
        assert!(connection.become_stream(1));
        assert_eq!((counts.connections(), counts.streams()), (0, 1));
        let mut other = counts.add(1).expect("the stream holds no place");
        assert!(!other.become_stream(1), "one stream is all");
        connection.end_stream();
        assert_eq!((counts.connections(), counts.streams()), (2, 0));
        assert!(!connection.is_within(1), "which is one too many");
        assert!(other.become_stream(1), "there is room for another stream");
        drop((connection, other));
        assert_eq!((counts.connections(), counts.streams()), (0, 0));
    }
}
