//! Shedding at the source: what an upstream that is an Outrigger says of its own cut-off, and what it is told of the
//! requests that it therefore never sees.
//!
//! It says so on its answers, in `x-outrigger-cutoff: 301;key=header:x-user;unmarked=normal`: levels from 301 on are
//! shed, callers are told apart by that header (`request`: each request by its id; `class`: by something that only it
//! can see, so only whole classes can be shed here), and what has no `x-priority` counts as `normal`. An answer without
//! it sheds nothing.
//!
//! Where the other side has several upstreams behind one listener, an answer tells of the one that it came from. As the
//! mildest word counts (below), their requests are safe from one another as long as each of them is asked now and then;
//! where that is not so, give each an upstream of its own here.
//!
//! News is believed for [`VALID`], so whoever hears nothing asks again. An upstream may have several endpoints, and which
//! of them a request will meet is not known here: of all that was said within the last one to two seconds the mildest
//! counts. A sidecar sheds at the source only what none of them would have taken.
//!
//! What is shed here the upstream would not know of: it would see load fall, let everybody in again, and swing. So the next
//! requests that go up tell it the levels (`x-outrigger-shed: 400*3,417`), and it counts them among its arrivals.
//!
//! That is the word of whoever is trusted, and a trusted load balancer may pass on what its clients write: counts of a
//! level that nobody has would take the place of all that there is to shed. So it is believed only while a cut-off is
//! told, only of levels that this one sheds, and of a request only `SPEAKS_FOR` others. Then who writes it into one
//! request of n leaves (n-1)/n of all of the shedding that there may be: the share rises until it is made up for.
//!
//! Rejected: to let a part of them through instead, which costs the upstream what was to be saved.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::level::{LEVELS, PLACES};
use crate::policy::key::Key;
use crate::policy::priority::Priority;

/// How long news is believed.
pub const VALID: Duration = Duration::from_secs(2);
/// Half of that: news is kept by halves.
const HALF: Duration = Duration::from_secs(1);
/// The most levels that a report names; what is beyond goes to the last of them.
const MOST: usize = 16;
/// For how many others, shed at the source, one that goes up may speak: at most a share of 0.95 is shed
/// (`share::MOST`), so of twenty one goes up. A source keeps what is more for the next one.
const SPEAKS_FOR: u32 = 19;

/// By what callers are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Each request by itself: by its id.
    Request,
    /// By a part of the request.
    Key(Key),
    /// By something that the sender cannot know: only classes can be told apart.
    Class,
}

/// What an upstream says of its cut-off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Levels from this one on are shed.
    pub cutoff: u16,
    /// By what it tells callers apart.
    pub by: By,
    /// What it takes a request for that has no `x-priority`.
    pub unmarked: Priority,
}

/// What one upstream's Outrigger has said, and what it has to be told. One for the process.
#[derive(Debug, Default)]
pub struct Source {
    /// Whether it has said anything of late: then an answer that says nothing is news, too.
    listens: AtomicBool,
    /// Whether there is something to report.
    owes: AtomicBool,
    news: Mutex<Option<News>>,
    report: Mutex<Vec<(u16, u32)>>,
    /// The cut-off in force, for whoever only looks.
    cutoff: Cutoff,
}

#[derive(Debug)]
struct Cutoff(AtomicU16);

impl Default for Cutoff {
    fn default() -> Self {
        Self(AtomicU16::new(LEVELS))
    }
}

#[derive(Debug)]
struct News {
    said: Said,
    /// When the half began in which what is heard is put together.
    began: Instant,
    /// The mildest of this half, and of the one before.
    mildest: u16,
    before: Option<u16>,
    /// When it last said anything.
    heard: Instant,
}

impl Said {
    /// Reads the field's value; `None`: it is malformed, and says nothing.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.split(';').map(str::trim);
        let cutoff = parts.next()?.parse().ok().filter(|cutoff| *cutoff <= LEVELS)?;
        let (mut by, mut unmarked) = (By::Class, Priority::Critical);
        for part in parts {
            match part.split_once('=')? {
                ("key", "request") => by = By::Request,
                ("key", "class") => by = By::Class,
                ("key", key) => by = By::Key(Key::try_from(key.to_owned()).ok()?),
                ("unmarked", class) => unmarked = Priority::parse(class.as_bytes())?,
                // A later version may say more.
                _ => {}
            }
        }
        Some(Self { cutoff, by, unmarked })
    }

    /// The field's value.
    pub fn text(&self) -> String {
        let key = match &self.by {
            By::Request => "request".to_owned(),
            By::Class => "class".to_owned(),
            By::Key(key) => key.clone().into(),
        };
        format!("{};key={key};unmarked={}", self.cutoff, self.unmarked.label())
    }
}

impl Source {
    /// An answer has come at `now`, whose head says this; `None`: nothing, or nothing that can be read.
    pub fn hear(&self, value: Option<&[u8]>, now: Instant) {
        if value.is_none() && !self.listens.load(Relaxed) {
            return;
        }
        let said = value.and_then(Said::parse);
        let mut news = lock(&self.news);
        match (&mut *news, said) {
            (None, None) => {}
            (Some(known), None) => {
                if now.saturating_duration_since(known.heard) > VALID {
                    *news = None;
                    self.listens.store(false, Relaxed);
                } else {
                    known.hear(LEVELS, now);
                }
            }
            (Some(known), Some(said)) if known.said.by == said.by => {
                // Routes of the other side may differ: the most important class is the one that counts.
                let still = now.saturating_duration_since(known.heard) <= VALID;
                known.said.unmarked =
                    if still { known.said.unmarked.min(said.unmarked) } else { said.unmarked };
                known.hear(said.cutoff, now);
                known.heard = now;
            }
            (_, Some(said)) => {
                let mildest = said.cutoff;
                *news = Some(News { said, began: now, mildest, before: None, heard: now });
                self.listens.store(true, Relaxed);
            }
        }
        let cutoff = news.as_ref().map_or(LEVELS, News::cutoff);
        self.cutoff.0.store(cutoff, Relaxed);
        if cutoff >= LEVELS && self.owes.swap(false, Relaxed) {
            // It is over, and nobody would believe it any more.
            lock(&self.report).clear();
        }
    }

    /// What the upstream sheds at `now`, as far as that is known; mostly nothing, which costs a load.
    pub fn said(&self, now: Instant) -> Option<Said> {
        if self.cutoff.0.load(Relaxed) >= LEVELS {
            return None;
        }
        let news = lock(&self.news);
        let news = news.as_ref().filter(|news| now.saturating_duration_since(news.heard) <= VALID);
        let Some(news) = news else {
            self.cutoff.0.store(LEVELS, Relaxed);
            return None;
        };
        let cutoff = match &news.said.by {
            // A class of which it takes a part passes whole.
            By::Class => news.cutoff().div_ceil(PLACES) * PLACES,
            _ => news.cutoff(),
        };
        Some(Said { cutoff, ..news.said.clone() }).filter(|said| said.cutoff < LEVELS)
    }

    /// The cut-off that was heard last.
    pub fn cutoff(&self) -> u16 {
        self.cutoff.0.load(Relaxed)
    }

    /// A request of this level was shed here.
    pub fn shed(&self, level: u16) {
        let mut report = lock(&self.report);
        let full = report.len() >= MOST;
        match report.iter_mut().find(|(known, _)| *known == level) {
            Some((_, count)) => *count = count.saturating_add(1),
            None if full => {
                if let Some((_, count)) = report.last_mut() {
                    *count = count.saturating_add(1);
                }
            }
            None => report.push((level, 1)),
        }
        self.owes.store(true, Relaxed);
    }

    /// What was shed here since the last report; mostly nothing, which costs a load.
    pub fn report(&self) -> Option<String> {
        if !self.owes.load(Relaxed) || !self.owes.swap(false, Relaxed) {
            return None;
        }
        let (mut text, mut left) = (String::new(), SPEAKS_FOR);
        let mut report = lock(&self.report);
        report.retain_mut(|(level, owed)| {
            let count = left.min(*owed);
            (left, *owed) = (left - count, *owed - count);
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a string does not fail.
            let _ = match count {
                0 => Ok(()),
                1 => write!(text, "{comma}{level}"),
                _ => write!(text, "{comma}{level}*{count}"),
            };
            *owed > 0
        });
        if !report.is_empty() {
            self.owes.store(true, Relaxed);
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

impl News {
    fn hear(&mut self, cutoff: u16, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age >= HALF {
            self.before = (age < 2 * HALF).then_some(self.mildest);
            (self.began, self.mildest) = (now, cutoff);
        } else {
            self.mildest = self.mildest.max(cutoff);
        }
    }

    fn cutoff(&self) -> u16 {
        self.mildest.max(self.before.unwrap_or(0))
    }
}

/// The levels and counts of a report, `SPEAKS_FOR` requests at most; what cannot be read is left out.
pub fn reported(value: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let mut left = SPEAKS_FOR;
    text.split(',').take(MOST).filter_map(move |entry| {
        let (level, count) = entry.trim().split_once('*').unwrap_or((entry.trim(), "1"));
        let (level, count): (u16, u32) = (level.parse().ok()?, count.parse().ok()?);
        let count = count.min(left);
        left -= count;
        (level < LEVELS).then_some((level, count))
    })
}

/// What a panic elsewhere leaves is whole: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
