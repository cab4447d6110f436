//! Active health checks: what is asked of an endpoint whose traffic says nothing, and what the answers come to.
//!
//! Traffic is the better witness, so an endpoint that had a success within `interval` is not asked. Asked are those
//! that are idle, new, or out. Checks take an endpoint out and bring it back by themselves; what traffic has thrown out
//! (`outlier`) a passing check does not bring back, unless the checks had failed too.
//!
//! The first check comes at a random phase and each wait is drawn from +-20 %, so that a fleet of sidecars that starts
//! together does not ask together. Who gets no requests before its first check is asked within [`FIRST`]. While an endpoint is down the wait doubles up to [`MOST`].
//!
//! Here are the decisions, functions of time and of a draw. Not here: how an endpoint is asked (`checkup`), and who
//! keeps the time (`runtime::checks`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::policy::failure::StatusPattern;
use crate::policy::mode::Mode;
use crate::units::{Span, span_within, within};

/// `[upstream.NAME.health]`: checks of endpoints whose traffic says nothing.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` (checked and told, but nobody is taken out) or `off`. Default `off`.
    pub mode: Mode,
    /// What is asked: `http`, `grpc` (the service `grpc.health.v1.Health`), or `tcp` (whether a connection can be made).
    /// Default `http`.
    pub kind: Kind,
    /// The path of an HTTP check. Default `"/healthz"`.
    #[serde(deserialize_with = "path")]
    pub path: String,
    /// The Host of a check. Default: the endpoint's address.
    #[serde(deserialize_with = "host")]
    pub host: Option<String>,
    /// The statuses that pass: a status, a class, or one taken out. Default `["2xx"]`.
    pub status: Vec<StatusPattern>,
    /// The service that a gRPC check asks about; empty: the server as a whole. Default `""`.
    pub service: String,
    /// How long an endpoint may show no success before it is asked, and how often it is. From `"100ms"` to `"1h"`.
    /// Default `"2s"`.
    #[serde(deserialize_with = "span_within::<_, 100, 3_600_000>")]
    pub interval: Span,
    /// How long a check may take. Default `"500ms"`.
    pub timeout: Span,
    /// Failed checks in a row that take an endpoint out. From 1 to 100. Default 2.
    #[serde(deserialize_with = "within::<_, 1, 100>")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_after: u32,
    /// Passed checks in a row that bring it back. From 1 to 100. Default 2.
    #[serde(deserialize_with = "within::<_, 1, 100>")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_after: u32,
}

/// What is asked of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A GET, judged by its status.
    #[default]
    Http,
    /// `grpc.health.v1.Health/Check`.
    Grpc,
    /// Whether a connection can be made.
    Tcp,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            kind: Kind::Http,
            path: "/healthz".to_owned(),
            host: None,
            status: vec![StatusPattern::Class(2)],
            service: String::new(),
            interval: Span::from_secs(2),
            timeout: Span::from_millis(500),
            unhealthy_after: 2,
            healthy_after: 2,
        }
    }
}

impl Settings {
    /// Whether an answer with this status passes.
    pub fn passes(&self, status: u16) -> bool {
        use StatusPattern::{Class, Not, NotClass, Status};
        let any = |of: &dyn Fn(&StatusPattern) -> bool| self.status.iter().any(of);
        any(&|pattern| *pattern == Status(status) || *pattern == Class(status / 100))
            && !any(&|pattern| *pattern == Not(status) || *pattern == NotClass(status / 100))
    }
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    let fits = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    fits.then_some(()).ok_or_else(|| {
        serde::de::Error::custom(format!("{path:?} is not a path; give one such as \"/healthz\""))
    })?;
    Ok(path)
}

fn host<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let host = String::deserialize(deserializer)?;
    let fits =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || !host.bytes().all(fits) {
        let wrong = format!("{host:?} is not a host; give a name such as \"app.internal\"");
        return Err(serde::de::Error::custom(wrong));
    }
    Ok(Some(host))
}

/// What the checks of one endpoint have come to. Off the path: locked for moments.
#[derive(Debug, Default)]
pub struct Check(Mutex<State>);

/// What the checks of one endpoint have come to.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What they say.
    pub verdict: Verdict,
    /// Those that passed in a row.
    pub passes: u32,
    /// Those that failed in a row.
    pub failures: u32,
    /// What the last one came to, and when; the text says why it failed.
    pub last: Option<(Instant, Result<(), String>)>,
    /// When the next one may begin; none before the first look.
    next: Option<Instant>,
    is_running: bool,
    doublings: u32,
}

/// What checks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It is up.
    Passing,
    /// It is down.
    Failing,
}

/// A change of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    /// Before.
    pub from: Verdict,
    /// After.
    pub to: Verdict,
}

/// What is known of an endpoint besides its checks.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// When it last did its work for a request; none: never.
    pub succeeded_at: Option<Instant>,
    /// Whether it is out of service, for whatever reason.
    pub is_out: bool,
    /// Whether it is new, and out until its first check has passed.
    pub is_unchecked: bool,
}

/// The longest wait between two checks while an endpoint is down, before the jitter.
pub const MOST: Duration = Duration::from_secs(30);
/// The longest wait of a new endpoint that is out until its first check, however long the interval.
pub const FIRST: Duration = Duration::from_secs(1);
/// How far a drawn time may be from what it should be, either way.
const JITTER: f64 = 0.2;

impl Check {
    /// Whether a check should begin now; then it counts as running until [`Check::ended`]. `draw` is from 0 to 1.
    pub fn begins(&self, settings: &Settings, known: Known, now: Instant, draw: f64) -> bool {
        self.state().begins(settings, known, now, draw)
    }

    /// A check has ended; one that was forgotten meanwhile says nothing.
    pub fn ended(
        &self,
        settings: &Settings,
        result: Result<(), String>,
        known: Known,
        now: Instant,
        draw: f64,
    ) -> Option<Turned> {
        self.state().ended(settings, result, known, now, draw)
    }

    /// The endpoint has said itself that it is down.
    pub fn gives_up(&self, now: Instant) -> Option<Turned> {
        let mut state = self.state();
        (state.passes, state.last) = (0, Some((now, Err("it said so itself".to_owned()))));
        state.turn(Verdict::Failing)
    }

    /// Forgets what it knows: the checks are off.
    pub fn forget(&self) {
        *self.state() = State::default();
    }

    /// What it knows.
    pub fn view(&self) -> State {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves counts that are still true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begins(&mut self, settings: &Settings, known: Known, now: Instant, draw: f64) -> bool {
        let phase = if known.is_unchecked { FIRST.min(*settings.interval) } else { *settings.interval };
        let next = *self.next.get_or_insert_with(|| now + phase.mul_f64(draw));
        if self.is_running || now < next {
            return false;
        }
        let quiet_since = known.succeeded_at.filter(|at| *at + *settings.interval > now);
        if let Some(succeeded_at) = quiet_since.filter(|_| !known.is_out && self.verdict != Verdict::Failing)
        {
            // Traffic has said what the check would have asked.
            (self.verdict, self.failures) = (Verdict::Passing, 0);
            self.next = Some(succeeded_at + jittered(*settings.interval, draw));
            return false;
        }
        self.is_running = true;
        true
    }

    fn ended(
        &mut self,
        settings: &Settings,
        result: Result<(), String>,
        known: Known,
        now: Instant,
        draw: f64,
    ) -> Option<Turned> {
        if !std::mem::take(&mut self.is_running) {
            // The checks were switched off meanwhile; nobody would ask whom it takes out again.
            return None;
        }
        let passed = result.is_ok();
        self.last = Some((now, result));
        if passed {
            (self.passes, self.failures) = (self.passes.saturating_add(1), 0);
        } else {
            (self.passes, self.failures) = (0, self.failures.saturating_add(1));
        }
        let verdict = match self.verdict {
            // One pass is enough for who was not down.
            Verdict::Unknown if passed => Verdict::Passing,
            Verdict::Failing if self.passes >= settings.healthy_after => Verdict::Passing,
            _ if self.failures >= settings.unhealthy_after => Verdict::Failing,
            as_before => as_before,
        };
        // What is down, or out while its checks pass, is asked less and less; what has begun to recover is not.
        let waits = match verdict {
            Verdict::Failing => !passed,
            Verdict::Passing | Verdict::Unknown => known.is_out && self.verdict == verdict,
        };
        let doubled = settings.interval.saturating_mul(1u32.checked_shl(self.doublings).unwrap_or(u32::MAX));
        let wait = if waits { doubled.min(MOST.max(*settings.interval)) } else { *settings.interval };
        self.doublings = if waits { (self.doublings + 1).min(20) } else { 0 };
        self.next = Some(now + jittered(wait, draw));
        self.turn(verdict)
    }

    fn turn(&mut self, to: Verdict) -> Option<Turned> {
        let from = std::mem::replace(&mut self.verdict, to);
        (from != to).then_some(Turned { from, to })
    }
}

/// `time`, drawn from 20 % less to 20 % more.
fn jittered(time: Duration, draw: f64) -> Duration {
    time.mul_f64(1.0 - JITTER + 2.0 * JITTER * draw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Known = Known { succeeded_at: None, is_out: false, is_unchecked: false };

    fn down() -> Result<(), String> {
        Err("503".to_owned())
    }

    #[test]
    fn checks_in_a_row_decide() {
        use Verdict::{Failing, Passing, Unknown};
        let settings = Settings::default();
        let steps = [
            // why                              result  verdict
            ("one failure says nothing", down(), Unknown),
            ("a pass is enough for who was not down", Ok(()), Passing),
            ("one failure", down(), Passing),
            ("a pass between", Ok(()), Passing),
            ("one failure again", down(), Passing),
            ("the second in a row", down(), Failing),
            ("one pass", Ok(()), Failing),
            ("a failure between", down(), Failing),
            ("one pass again", Ok(()), Failing),
            ("the second in a row: it is back", Ok(()), Passing),
        ];
        let (mut state, now) = (State::default(), Instant::now());
        for (why, result, verdict) in steps {
            let before = state.verdict;
            state.is_running = true;
            let turned = state.ended(&settings, result, IDLE, now, 0.5);
            assert_eq!(state.verdict, verdict, "{why}");
            assert_eq!(turned, (before != verdict).then_some(Turned { from: before, to: verdict }), "{why}");
        }
    }

    #[test]
    fn a_check_that_ends_when_checks_are_off_says_nothing() {
        let (settings, now) = (Settings { unhealthy_after: 1, ..Settings::default() }, Instant::now());
        let check = Check::default();
        assert!(check.begins(&settings, IDLE, now, 0.0));
        check.forget();
        assert_eq!(check.ended(&settings, down(), IDLE, now, 0.5), None);
        assert_eq!(check.view().verdict, Verdict::Unknown);
    }

    #[test]
    fn a_busy_healthy_endpoint_is_not_asked() {
        let (settings, start) = (Settings::default(), Instant::now());
        let mut state = State::default();
        for millis in (0..60_000).step_by(50) {
            let now = start + Duration::from_millis(millis);
            let known = Known { succeeded_at: Some(now), is_out: false, is_unchecked: false };
            assert!(!state.begins(&settings, known, now, fastrand::f64()), "at {millis} ms");
        }
        let now = start + Duration::from_secs(70);
        let known =
            Known { succeeded_at: Some(start + Duration::from_secs(60)), is_out: false, is_unchecked: false };
        assert!(state.begins(&settings, known, now, 0.5), "its traffic has stopped");
        assert!(!state.begins(&settings, known, now, 0.5), "one check at a time");
    }

    #[test]
    fn what_is_down_is_asked_less_and_less_and_again_when_it_recovers() {
        let (settings, start) = (Settings::default(), Instant::now());
        let out = Known { succeeded_at: None, is_out: true, is_unchecked: false };
        let mut state = State::default();
        let mut waits = Vec::new();
        let results =
            [[Err(String::new()), Err(String::new())].as_slice(), &vec![down(); 6], &[Ok(())]].concat();
        for result in results {
            state.is_running = true;
            state.ended(
                &settings,
                result,
                if state.verdict == Verdict::Failing { out } else { IDLE },
                start,
                0.5,
            );
            waits.push((state.next.expect("it has ended") - start).as_secs_f64());
        }
        assert_eq!(waits, [2.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 2.0]);
    }

    #[test]
    fn what_traffic_has_thrown_out_is_asked_though_it_passes() {
        let (settings, start) = (Settings::default(), Instant::now());
        let known = Known { succeeded_at: Some(start), is_out: true, is_unchecked: false };
        let mut state = State::default();
        assert!(!state.begins(&settings, known, start, 0.5), "the first at a random phase");
        assert!(state.begins(&settings, known, start + Duration::from_secs(1), 0.5));
    }

    proptest! {
        /// Whatever is drawn, checks come neither too early nor too late.
        #[test]
        fn waits_stay_in_their_bounds(results in prop::collection::vec(any::<bool>(), 1..40), draw in 0.0..1.0f64) {
            let (settings, now) = (Settings::default(), Instant::now());
            let mut state = State::default();
            for passed in results {
                let result = if passed { Ok(()) } else { down() };
                state.is_running = true;
                state.ended(&settings, result, Known { succeeded_at: None, is_out: true, is_unchecked: false }, now, draw);
                let wait = state.next.expect("it has ended") - now;
                prop_assert!(wait >= settings.interval.mul_f64(0.8) && wait <= MOST.mul_f64(1.2));
            }
        }

        /// A fleet that starts together asks evenly spread over the interval.
        #[test]
        fn first_checks_are_spread(draw in 0.0..1.0f64) {
            let (settings, now) = (Settings::default(), Instant::now());
            let mut state = State::default();
            state.begins(&settings, IDLE, now, draw);
            let phase = state.next.expect("it was looked at") - now;
            prop_assert!((phase.as_secs_f64() - 2.0 * draw).abs() < 1e-6);
        }

        /// Who serves nobody until then is asked soon, whatever the interval.
        #[test]
        fn a_newcomer_does_not_wait_long(draw in 0.0..1.0f64, seconds in 1u64..3600) {
            let settings = Settings { interval: Span::from_secs(seconds), ..Settings::default() };
            let now = Instant::now();
            let mut state = State::default();
            state.begins(&settings, Known { is_out: true, is_unchecked: true, ..IDLE }, now, draw);
            prop_assert!(state.next.expect("it was looked at") - now <= FIRST);
        }
    }
}
