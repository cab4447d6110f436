//! Whether a session whose streams hear nothing still has an endpoint at its other end.
//!
//! A host that vanished without a word (power, a firewall that forgot the connection) closes nothing: streams would
//! wait for as long as `stream_idle`. So a session with open streams that has heard nothing for `SILENCE` sends a
//! PING, and is given up where `ANSWER` passes without an answer. Where nothing but the answer came, the next one
//! follows after `LATER`: gRPC's servers close a connection with "too_many_pings" after three within five minutes
//! without data, which would break the quiet streams that this is to protect.
//!
//! Time is a parameter; who waits and sends is `http2`.

use std::time::{Duration, Instant};

/// How long nothing comes before a PING is sent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long its answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long after a PING the next one is sent, where nothing came but its answer.
const LATER: Duration = Duration::from_secs(305);

/// What is known of the other end.
#[derive(Debug, Default)]
pub struct Pings {
    /// When it was asked, and has not answered.
    asked: Option<Instant>,
    /// When it was last asked and when it answered.
    last: Option<(Instant, Instant)>,
    /// When its streams began to wait.
    since: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing, until then.
    Wait(Instant),
    /// Send a PING.
    Ping,
    /// Give the session up.
    Dead,
}

impl Pings {
    /// No stream is open: nobody waits.
    pub fn rest(&mut self) {
        self.since = None;
    }

    /// Whether a PING is without an answer.
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// The answer to a PING came.
    pub fn answered(&mut self, now: Instant) {
        if let Some(asked) = self.asked.take() {
            self.last = Some((asked, now));
        }
    }

    /// What is to be done at `now`, with streams open; something was last heard at `heard`.
    pub fn look(&mut self, now: Instant, heard: Instant) -> Look {
        if let Some(asked) = self.asked {
            // Any frame is a sign of life.
            let end = asked.max(heard) + ANSWER;
            return if now >= end { Look::Dead } else { Look::Wait(end) };
        }
        let since = *self.since.get_or_insert(now);
        let due = match self.last {
            Some((asked, answered)) if heard <= answered => asked + LATER,
            _ => heard.max(since) + SILENCE,
        };
        if now < due {
            return Look::Wait(due);
        }
        self.asked = Some(now);
        Look::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn who_does_not_answer_a_ping_is_given_up() {
        let start = Instant::now();
        let mut pings = Pings::default();
        assert_eq!(pings.look(start, start), Look::Wait(start + SILENCE));
        let heard = start + seconds(20);
        assert_eq!(pings.look(start + SILENCE, heard), Look::Wait(heard + SILENCE), "it said something");
        assert_eq!(pings.look(heard + SILENCE, heard), Look::Ping);
        let asked = heard + SILENCE;
        assert_eq!(pings.look(asked, heard), Look::Wait(asked + ANSWER));
        assert_eq!(pings.look(asked + seconds(9), heard), Look::Wait(asked + ANSWER));
        assert_eq!(pings.look(asked + ANSWER, heard), Look::Dead);
    }

    #[test]
    fn an_idle_session_is_not_asked_as_soon_as_it_is_used() {
        let start = Instant::now();
        let mut pings = Pings::default();
        let used = start + seconds(500);
        assert_eq!(pings.look(used, start), Look::Wait(used + SILENCE));
        pings.rest();
        let again = used + seconds(100);
        assert_eq!(pings.look(again, start), Look::Wait(again + SILENCE));
    }

    #[test]
    fn a_quiet_stream_is_not_pinged_to_death() {
        let start = Instant::now();
        let (mut pings, mut heard, mut sent) = (Pings::default(), start, Vec::new());
        for second in 0..3600 {
            let now = start + seconds(second);
            match pings.look(now, heard) {
                Look::Ping => {
                    sent.push(now);
                    heard = now + Duration::from_millis(1);
                    pings.answered(heard);
                }
                Look::Dead => panic!("it answers each time"),
                Look::Wait(until) => assert!(until > now),
            }
        }
        assert_eq!(sent[0], start + SILENCE);
        assert!(sent.windows(2).all(|two| two[1] - two[0] >= seconds(300)), "gRPC's servers allow no more");
        let now = start + seconds(3600);
        assert_eq!(pings.look(now, now), Look::Wait(now + SILENCE), "data begins it anew");
    }
}
