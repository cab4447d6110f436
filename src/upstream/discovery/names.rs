//! What is known of names, when each is asked next, and what an answer changes.
//!
//! ```text
//! asked --addresses--> known, asked again at 80 to 90 % of the TTL (from 1 s to 5 m), or after `refresh`
//!       --nothing----> known addresses stay; asked again after 1 s: --nothing--> none are known any more
//!       --no A, or no AAAA any more--> those known stay in the same way
//!       --failure----> what is known stays and ages; asked again after 1 s, 2 s, 4 s … 30 s
//! ```
//! A name without addresses is asked again as after a failure: it shall be found soon after it appears. No wait is
//! longer than a `refresh` that the configuration sets.
//!
//! Pure: time, answers and randomness are parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// An answer without addresses counts when it is given again after this time.
const CONFIRM: Duration = Duration::from_secs(1);

/// The first wait after a failure, doubled with each further one.
const RETRY: Duration = Duration::from_secs(1);

/// The longest wait after a failure.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// The shortest and the longest time after which a good answer is asked for again, whatever its TTL.
const REFRESH: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];

/// What DNS is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// A host's addresses: A and AAAA.
    Addresses(String),
    /// The hosts that offer a service: SRV.
    Services(String),
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Records {
    /// Of a host; at least one.
    Addresses(Addresses),
    /// Of a service; at least one.
    Services(Vec<Service>),
}

/// A host's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6.
    pub v6: Vec<Ipv6Addr>,
}

/// A host that offers a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// The lowest first.
    pub priority: u16,
    /// The host's name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its share among those of its priority.
    pub weight: u16,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a look-up came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is something.
    Found {
        /// What.
        records: Records,
        /// How long it is valid: the smallest TTL of the records on the way, aliases included.
        ttl: Duration,
        /// The family whose look-up failed meanwhile, and why: what is known of it stays.
        failed: Option<(Family, String)>,
    },
    /// DNS says that there is nothing; in its words.
    Empty(String),
    /// Nobody knows; why.
    Failed(String),
}

/// What is worth telling of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// It fails, or fails for another reason than before.
    Fails {
        /// Why.
        why: String,
        /// Whether what was known before stays in force.
        keeps: bool,
    },
    /// It had failed, and is good again.
    Recovered,
}

/// All names of an upstream.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<Question, Name>);

/// What is known of one name.
#[derive(Clone, Debug)]
pub struct Name {
    records: Option<Records>,
    /// When DNS last said something definite; before the first time, since when it is asked.
    good_at: Instant,
    /// When it is asked next.
    due: Instant,
    /// Answers in a row that were not good.
    failures: u32,
    /// What DNS said once to be gone, which has to be confirmed.
    doubt: Option<Doubt>,
    was_asked: bool,
    error: Option<String>,
}

/// What DNS said once to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// The addresses of one family; the other's are there.
    Family(Family),
    /// All that was known.
    All,
}

impl Names {
    /// These names are of interest from now on; what is known of others is forgotten.
    pub fn want(&mut self, questions: &BTreeSet<Question>, now: Instant) {
        self.0.retain(|question, _| questions.contains(question));
        for question in questions {
            if !self.0.contains_key(question) {
                self.0.insert(question.clone(), Name::new(now));
            }
        }
    }

    /// All are asked now: whoever answers is another one.
    pub fn ask_again(&mut self, now: Instant) {
        self.0.values_mut().for_each(|name| name.due = now);
    }

    /// What is to be asked at `now`, but for what is being asked.
    pub fn due(&self, now: Instant, asking: &BTreeSet<Question>) -> Vec<Question> {
        let due = self.0.iter().filter(|(question, name)| name.due <= now && !asking.contains(question));
        due.map(|(question, _)| question.clone()).collect()
    }

    /// When the next is to be asked, but for what is being asked.
    pub fn next(&self, asking: &BTreeSet<Question>) -> Option<Instant> {
        self.0.iter().filter(|(question, _)| !asking.contains(question)).map(|(_, name)| name.due).min()
    }

    /// Those that have never been answered, in whatever way.
    pub fn unasked(&self) -> Vec<Question> {
        self.0.iter().filter(|(_, name)| !name.was_asked).map(|(question, _)| question.clone()).collect()
    }

    /// Learns an answer that came at `now`. `refresh` is how often it is asked if not as the TTL says; `draw` is
    /// random, from 0 to 1.
    pub fn answer(
        &mut self,
        question: &Question,
        answer: Answer,
        refresh: Option<Duration>,
        (now, draw): (Instant, f64),
    ) -> Told {
        // Nobody wants to know any more.
        let Some(name) = self.0.get_mut(question) else { return Told::Nothing };
        name.was_asked = true;
        name.answer(answer, refresh, now, draw)
    }

    /// What is known of a host's addresses; none where there is none, or nothing is known.
    pub fn addresses(&self, host: &str) -> Option<&Addresses> {
        match self.0.get(&Question::Addresses(host.to_owned()))?.records.as_ref()? {
            Records::Addresses(addresses) => Some(addresses),
            Records::Services(_) => None,
        }
    }

    /// What is known of a service's hosts; none where there is none, or nothing is known.
    pub fn services(&self, name: &str) -> Option<&[Service]> {
        match self.0.get(&Question::Services(name.to_owned()))?.records.as_ref()? {
            Records::Services(services) => Some(services),
            Records::Addresses(_) => None,
        }
    }

    /// What was wrong with the last answer; before the first, that there was none yet.
    pub fn error(&self, question: &Question) -> String {
        match self.0.get(question).filter(|name| name.was_asked) {
            Some(name) => name.error.clone().unwrap_or_default(),
            None => "not looked up yet".to_owned(),
        }
    }

    /// The age of the oldest answer in use: the time since DNS last said something definite of that name, or since it
    /// is asked at all. None where no name is of interest.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.0.values().map(|name| name.age(now)).max()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Question, &Name)> {
        self.0.iter()
    }
}

impl Name {
    fn new(now: Instant) -> Self {
        Self {
            records: None,
            good_at: now,
            due: now,
            failures: 0,
            doubt: None,
            was_asked: false,
            error: None,
        }
    }

    fn answer(&mut self, answer: Answer, refresh: Option<Duration>, now: Instant, draw: f64) -> Told {
        let before = self.error.take();
        let fails = |why: &str, keeps: bool| match before.as_deref() == Some(why) {
            true => Told::Nothing,
            false => Told::Fails { why: why.to_owned(), keeps },
        };
        let (told, after) = match answer {
            Answer::Found { mut records, ttl, failed: None } => {
                let told = if self.failures > 0 { Told::Recovered } else { Told::Nothing };
                let gone = self.gone(&records).filter(|_| self.doubt.is_none());
                if let Some(family) = gone {
                    self.keep(family, &mut records);
                }
                sort(&mut records);
                *self = Self { records: Some(records), was_asked: true, ..Self::new(now) };
                match gone {
                    None => (told, refresh_after(ttl, refresh, draw)),
                    Some(family) => {
                        self.doubt = Some(Doubt::Family(family));
                        self.error = Some(format!("no {family} any more (asked again before it counts)"));
                        (told, CONFIRM)
                    }
                }
            }
            Answer::Found { mut records, ttl, failed: Some((family, why)) } => {
                self.keep(family, &mut records);
                sort(&mut records);
                let failures = self.failures.saturating_add(1);
                let told = fails(&why, true);
                let after = refresh_after(ttl, refresh, draw).min(retry_after(failures, refresh, draw));
                *self = Self {
                    records: Some(records),
                    was_asked: true,
                    failures,
                    error: Some(why),
                    ..Self::new(now)
                };
                (told, after)
            }
            Answer::Empty(why) if self.records.is_some() && self.doubt != Some(Doubt::All) => {
                self.doubt = Some(Doubt::All);
                self.error = Some(format!("{why} (asked again before it counts)"));
                (Told::Nothing, CONFIRM)
            }
            Answer::Empty(why) => {
                self.records = None;
                (self.good_at, self.doubt) = (now, None);
                self.failures = self.failures.saturating_add(1);
                let told = fails(&why, false);
                self.error = Some(why);
                (told, retry_after(self.failures, refresh, draw))
            }
            Answer::Failed(why) => {
                self.doubt = None;
                self.failures = self.failures.saturating_add(1);
                let told = fails(&why, self.records.is_some());
                self.error = Some(why);
                (told, retry_after(self.failures, refresh, draw))
            }
        };
        self.due = now + after;
        told
    }

    /// The family whose addresses are known and not among `records`, which have some of the other.
    fn gone(&self, records: &Records) -> Option<Family> {
        let (Records::Addresses(new), Some(Records::Addresses(old))) = (records, &self.records) else {
            return None;
        };
        match (new.v4.is_empty() && !old.v4.is_empty(), new.v6.is_empty() && !old.v6.is_empty()) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        }
    }

    /// Puts what is known of one family among `records`.
    fn keep(&self, family: Family, records: &mut Records) {
        if let (Records::Addresses(new), Some(Records::Addresses(old))) = (records, &self.records) {
            match family {
                Family::V4 => new.v4.clone_from(&old.v4),
                Family::V6 => new.v6.clone_from(&old.v6),
            }
        }
    }

    /// What is known.
    pub fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    /// Since when it is what is known.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.good_at)
    }

    /// What was wrong with the last answer.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// In what time it is asked next.
    pub fn due_in(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }
}

/// DNS turns the order of its records; here it is always the same.
fn sort(records: &mut Records) {
    match records {
        Records::Addresses(addresses) => {
            addresses.v4.sort_unstable();
            addresses.v4.dedup();
            addresses.v6.sort_unstable();
            addresses.v6.dedup();
        }
        Records::Services(services) => {
            services.sort_unstable();
            services.dedup();
        }
    }
}

/// When a good answer is asked for again: with jitter, so that sidecars that started together do not ask together.
fn refresh_after(ttl: Duration, refresh: Option<Duration>, draw: f64) -> Duration {
    match refresh {
        Some(fixed) => fixed.mul_f64(0.9 + 0.1 * draw),
        None => ttl.mul_f64(0.8 + 0.1 * draw).clamp(REFRESH[0], REFRESH[1]),
    }
}

/// When a name is asked again after `failures` bad answers in a row.
fn retry_after(failures: u32, refresh: Option<Duration>, draw: f64) -> Duration {
    let doubled = RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_RETRY);
    let wait = doubled.mul_f64(0.75 + 0.25 * draw);
    refresh.map_or(wait, |refresh| wait.min(refresh))
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "A records",
            Family::V6 => "AAAA records",
        })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Addresses(name) | Question::Services(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "app.internal";

    fn question() -> Question {
        Question::Addresses(NAME.to_owned())
    }

    fn found(last: u8, ttl: u64) -> Answer {
        let addresses = Addresses { v4: vec![Ipv4Addr::new(10, 0, 0, last)], v6: Vec::new() };
        Answer::Found { records: Records::Addresses(addresses), ttl: Duration::from_secs(ttl), failed: None }
    }

    fn empty() -> Answer {
        Answer::Empty("NXDOMAIN".to_owned())
    }

    fn failed() -> Answer {
        Answer::Failed("SERVFAIL".to_owned())
    }

    /// What was done with one name at made-up times.
    struct Story {
        names: Names,
        start: Instant,
        refresh: Option<Duration>,
    }

    impl Story {
        fn new(refresh: Option<u64>) -> Self {
            let (start, mut names) = (Instant::now(), Names::default());
            names.want(&BTreeSet::from([question()]), start);
            Self { names, start, refresh: refresh.map(Duration::from_secs) }
        }

        /// Answers at `millis`, with the largest draw; milliseconds until it is asked again.
        fn answer(&mut self, millis: u64, answer: Answer) -> u128 {
            self.answer_with(millis, answer, 1.0).1
        }

        fn answer_with(&mut self, millis: u64, answer: Answer, draw: f64) -> (Told, u128) {
            let now = self.start + Duration::from_millis(millis);
            let told = self.names.answer(&question(), answer, self.refresh, (now, draw));
            let next = self.names.next(&BTreeSet::new()).expect("there is one name");
            (told, (next - now).as_millis())
        }

        /// The last part of the only address that is known; 0: none.
        fn known(&self) -> u8 {
            self.names.addresses(NAME).map_or(0, |known| known.v4.first().map_or(0, |ip| ip.octets()[3]))
        }
    }

    #[test]
    fn a_good_answer_is_asked_for_again_before_its_ttl_ends() {
        let cases = [
            // why                              ttl in s  refresh   at the soonest  at the latest, in ms
            ("before it ends, with jitter", 60, None, 48_000, 54_000),
            ("at most every second", 1, None, 1000, 1000),
            ("a TTL of nothing too", 0, None, 1000, 1000),
            ("at least every five minutes", 86_400, None, 300_000, 300_000),
            ("as the configuration says", 60, Some(10), 9000, 10_000),
            ("which may be rarer than the TTL", 1, Some(10), 9000, 10_000),
        ];
        for (why, ttl, refresh, soonest, latest) in cases {
            let asked_again = |draw| Story::new(refresh).answer_with(0, found(1, ttl), draw).1;
            assert_eq!((asked_again(0.0), asked_again(1.0)), (soonest, latest), "{why}");
        }
    }

    #[test]
    fn a_failure_keeps_what_is_known_and_is_tried_again_ever_more_rarely() {
        let mut story = Story::new(None);
        story.answer(0, found(1, 60));
        let waits: Vec<u128> = (0..8).map(|turn| story.answer(60_000 + turn, failed())).collect();
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(story.known(), 1);
        let age = |story: &Story, seconds| story.names.age(story.start + Duration::from_secs(seconds));
        assert_eq!(age(&story, 90), Some(Duration::from_secs(90)), "it grows from the last good answer");
        assert_eq!(story.answer(100_000, found(2, 60)), 54_000, "all is as it was");
        assert_eq!((story.known(), age(&story, 100)), (2, Some(Duration::ZERO)));
        assert_eq!(story.names.error(&question()), "");

        let mut story = Story::new(Some(3));
        let waits: Vec<u128> = (0..3).map(|turn| story.answer(turn, failed())).collect();
        assert_eq!(waits, [1000, 2000, 3000], "never more rarely than the configuration says");
    }

    #[test]
    fn nothing_counts_when_it_was_said_twice_in_a_row() {
        let cases = [
            // why                                           answers                                         known
            ("once may be a mistake", vec![found(1, 60), empty()], 1),
            ("twice counts", vec![found(1, 60), empty(), empty()], 0),
            ("a failure confirms nothing", vec![found(1, 60), empty(), failed()], 1),
            ("nor does what was said before it", vec![found(1, 60), empty(), failed(), empty()], 1),
            ("a good answer clears the doubt", vec![found(1, 60), empty(), found(2, 60), empty()], 2),
            ("it comes back at once", vec![found(1, 60), empty(), empty(), found(3, 60)], 3),
            ("where nothing is known there is nothing to lose", vec![empty()], 0),
        ];
        for (why, answers, known) in cases {
            let mut story = Story::new(None);
            for (turn, answer) in answers.into_iter().enumerate() {
                story.answer(turn as u64, answer);
            }
            assert_eq!(story.known(), known, "{why}");
        }
        let mut story = Story::new(None);
        story.answer(0, found(1, 60));
        assert_eq!(story.answer(1, empty()), 1000, "the second question follows a second later");
        let waits: Vec<u128> = (2..5).map(|turn| story.answer(turn, empty())).collect();
        assert_eq!(waits, [1000, 2000, 4000], "then it is looked for, as after failures");
    }

    #[test]
    fn a_family_that_failed_keeps_its_addresses() {
        let mut story = Story::new(None);
        let records = |v4: &[u8], v6: &[u16]| {
            Records::Addresses(Addresses {
                v4: v4.iter().map(|last| Ipv4Addr::new(10, 0, 0, *last)).collect(),
                v6: v6.iter().map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, *last)).collect(),
            })
        };
        let ttl = Duration::from_secs(60);
        let all = Answer::Found { records: records(&[2, 1, 2], &[7]), ttl, failed: None };
        story.answer(0, all);
        let failed = Some((Family::V6, "late".to_owned()));
        let half = Answer::Found { records: records(&[3], &[]), ttl, failed };
        assert_eq!(story.answer(1, half.clone()), 1000, "the other half is wanted soon");
        let known = story.names.addresses(NAME).cloned().map(Records::Addresses);
        assert_eq!(known, Some(records(&[3], &[7])));
        assert_eq!(story.answer(2, half), 2000);
        let none = Answer::Found { records: records(&[3], &[]), ttl, failed: None };
        let known = |story: &Story| story.names.addresses(NAME).map(|known| (known.v4.len(), known.v6.len()));
        assert_eq!(story.answer(3, none.clone()), 1000, "that it has none may be a mistake");
        assert_eq!(known(&story), Some((1, 1)));
        assert_eq!(story.answer_with(4, none, 1.0), (Told::Nothing, 54_000));
        assert_eq!(known(&story), Some((1, 0)), "DNS says it twice");
        assert_eq!(story.names.error(&question()), "");

        let other = Answer::Found { records: records(&[], &[7]), ttl, failed: None };
        story.answer(5, other);
        story.answer(6, empty());
        assert_eq!(known(&story), Some((1, 1)), "that all are gone was said once");
        story.answer(7, empty());
        assert_eq!(known(&story), None);
    }

    #[test]
    fn each_change_is_told_once() {
        let mut story = Story::new(None);
        let fails = |why: &str, keeps| Told::Fails { why: why.to_owned(), keeps };
        let steps = [
            (failed(), fails("SERVFAIL", false)),
            (failed(), Told::Nothing),
            (empty(), fails("NXDOMAIN", false)),
            (found(1, 60), Told::Recovered),
            (found(2, 60), Told::Nothing),
            (failed(), fails("SERVFAIL", true)),
            (found(2, 60), Told::Recovered),
            (empty(), Told::Nothing),
            (empty(), fails("NXDOMAIN", false)),
            (empty(), Told::Nothing),
        ];
        for (turn, (answer, told)) in steps.into_iter().enumerate() {
            assert_eq!(story.answer_with(turn as u64, answer, 0.5).0, told, "step {turn}");
        }
    }

    proptest! {
        /// Whatever comes: what is known goes only when nothing was said twice in a row, and everything is asked again,
        /// neither at once nor in an age.
        #[test]
        fn nothing_is_lost_by_chance(answers in prop::collection::vec((0u8..4, 0u64..100_000, 0.0..1.0), 1..60)) {
            let mut story = Story::new(None);
            let (mut known, mut empties) = (false, 0);
            for (turn, (kind, ttl, draw)) in answers.into_iter().enumerate() {
                let answer = match kind {
                    0 => found(1, ttl),
                    1 | 2 => empty(),
                    _ => failed(),
                };
                empties = if matches!(answer, Answer::Empty(_)) { empties + 1 } else { 0 };
                known = matches!(answer, Answer::Found { .. }) || known && empties < 2;
                let (_, wait) = story.answer_with(turn as u64, answer, draw);
                prop_assert_eq!(story.known() != 0, known);
                prop_assert!((750..=300_000).contains(&wait), "{} ms", wait);
            }
        }
    }

    #[test]
    fn what_is_no_longer_wanted_is_forgotten() {
        let mut story = Story::new(None);
        story.answer(0, found(1, 60));
        let other = Question::Services("_http._tcp.app".to_owned());
        story.names.want(&BTreeSet::from([question(), other.clone()]), story.start);
        assert_eq!((story.known(), story.names.unasked()), (1, vec![other.clone()]));
        assert_eq!(story.names.due(story.start, &BTreeSet::new()), std::slice::from_ref(&other));
        story.names.want(&BTreeSet::from([other]), story.start);
        assert_eq!(story.known(), 0);
        assert_eq!(story.answer_with(1, found(1, 60), 0.0).0, Told::Nothing, "a late answer is nobody's");
    }
}
