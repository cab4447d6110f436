//! HTTP's rules on keeping an answer and using it again (RFC 9111, RFC 5861), as far as a fallback needs them.
//!
//! Pure: header values and lengths of time in, an answer out. Not here: the store (`proxy::store`), nor which failure
//! is answered from it ([`fallback`](super::fallback)).
//!
//! Outrigger is no cache: an upstream that can answer is always asked. So what is kept is of use only when it cannot,
//! and most of it is stale by then, which RFC 9111 §4.2.4 allows to a cache that is told to (`fallback.stale` tells it)
//! unless the answer forbids it. Where a rule leaves a choice, the answer that is not kept or not given wins:
//!
//! - only 200 to a GET without `Range` is kept: no partial content, no errors, no redirects;
//! - `no-cache` and `private` with a list of fields count as without one (RFC 9111 §5.2.2.4 allows it);
//! - `must-understand` does not take back `no-store`; there are no heuristics: what says nothing of its freshness is
//!   stale at once;
//! - to a request with `Authorization` or `Cookie` only `public` opens the store, in both directions; `s-maxage` and
//!   `must-revalidate`, which RFC 9111 §3.5 takes too, do not;
//! - a 304 renews what is kept by its strong tag, or without a tag by its date (§4.3.4): no weak tag, no bare 304.

use std::time::Duration;

use super::backoff::http_date;

/// The longest that is counted: what is longer means "for ever" (RFC 9111 §1.2.2).
const MOST: u64 = 1 << 31;
/// Fields that `Vary` may name. More say that hardly two requests are alike.
const MOST_FIELDS: usize = 16;

/// What `Cache-Control` says, in a request or an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Not to be kept.
    pub no_store: bool,
    /// Not to be used without asking its origin.
    pub no_cache: bool,
    /// For one user.
    pub private: bool,
    /// For everybody, whoever asked.
    pub public: bool,
    /// Not to be used once it is stale: `must-revalidate`, or `proxy-revalidate`.
    pub must_revalidate: bool,
    /// For how long it is fresh, or how old an answer may be; in seconds.
    pub max_age: Option<u64>,
    /// The same for a cache that many share.
    pub s_maxage: Option<u64>,
    /// For how many seconds beyond its freshness it may stand in for an error (RFC 5861 §4).
    pub stale_if_error: Option<u64>,
}

/// What of a request these rules look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// GET.
    pub is_get: bool,
    /// HEAD.
    pub is_head: bool,
    /// It has a body.
    pub has_body: bool,
    /// It has `Authorization` or `Cookie`.
    pub has_credentials: bool,
    /// It has `Range`.
    pub has_range: bool,
    /// It has a condition under which it wants no answer or another one: `If-None-Match`, `If-Modified-Since`,
    /// `If-Range`.
    pub is_conditional: bool,
    /// It has a condition that only its origin can judge: `If-Match`, `If-Unmodified-Since`.
    pub has_precondition: bool,
    /// Its `Cache-Control`.
    pub control: Control,
}

/// What of an answer these rules look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its `Cache-Control`.
    pub control: Control,
    /// `Date`, in seconds since 1970.
    pub date: Option<u64>,
    /// `Expires`, in seconds since 1970; one that cannot be read has passed.
    pub expires: Option<u64>,
    /// `Age`, in seconds.
    pub age: Option<u64>,
    /// It has `Set-Cookie`.
    pub sets_cookie: bool,
    /// It has `Vary: *`, or one that names more fields than anybody compares.
    pub varies_by_all: bool,
}

/// When an answer that was kept may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How old it was when it came (RFC 9111 §4.2.3).
    pub age: Duration,
    /// For how long it is fresh.
    pub lifetime: Duration,
    /// For how long beyond that it may stand in for an error; none: it does not say.
    pub if_error: Option<Duration>,
    /// It may be used for requests with credentials.
    pub public: bool,
}

/// An answer that may be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usable {
    /// `Age`.
    pub age: Duration,
    /// Seconds of freshness that are left, below 0: since it became stale.
    pub ttl: i64,
}

impl Control {
    /// Reads the values of all `Cache-Control` fields of a message. A number that cannot be read counts as 0, and of
    /// several the smallest.
    pub fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut control = Self::default();
        for directive in values.flat_map(list) {
            let (name, value) = match directive.iter().position(|byte| *byte == b'=') {
                Some(at) => (&directive[..at], Some(directive[at + 1..].trim_ascii())),
                None => (directive, None),
            };
            let is = |known: &str| name.trim_ascii().eq_ignore_ascii_case(known.as_bytes());
            let least = |known: Option<u64>| {
                let seconds = seconds(value.unwrap_or_default()).unwrap_or(0);
                Some(known.map_or(seconds, |known| known.min(seconds)))
            };
            match () {
                () if is("no-store") => control.no_store = true,
                () if is("no-cache") => control.no_cache = true,
                () if is("private") => control.private = true,
                () if is("public") => control.public = true,
                () if is("must-revalidate") || is("proxy-revalidate") => control.must_revalidate = true,
                () if is("max-age") => control.max_age = least(control.max_age),
                () if is("s-maxage") => control.s_maxage = least(control.s_maxage),
                () if is("stale-if-error") => control.stale_if_error = least(control.stale_if_error),
                () => {}
            }
        }
        control
    }
}

impl Asked {
    /// Whether it may share an answer with others that ask the same at the same time.
    pub fn may_coalesce(&self) -> bool {
        self.is_get
            && !self.has_body
            && !self.has_credentials
            && !self.has_range
            && !self.is_conditional
            && !self.has_precondition
            && !self.control.no_store
            && !self.control.no_cache
    }

    /// Whether what is said of keeping the answer to it is said of everybody's.
    pub fn is_for_all(&self) -> bool {
        !self.has_credentials && !self.has_range && !self.control.no_store
    }

    /// Whether it may be answered out of the store at all.
    pub fn may_be_answered(&self) -> bool {
        (self.is_get || self.is_head)
            && !self.has_body
            && !self.has_precondition
            && !self.control.no_store
            && !self.control.no_cache
    }
}

impl Answer {
    /// Whether everybody may see it who asks the same in this moment.
    pub fn may_be_shared(&self) -> bool {
        let Control { no_store, no_cache, private, .. } = self.control;
        let is_whole = !matches!(self.status, ..200 | 206 | 304);
        is_whole && !(no_store || no_cache || private || self.sets_cookie || self.varies_by_all)
    }

    /// When it may be used again, having come at `received`, in seconds since 1970, `delay` after its request was
    /// sent. None: it must not be kept, or could never be used.
    pub fn terms(&self, asked: &Asked, received: u64, delay: Duration) -> Option<Terms> {
        let Control { no_store, no_cache, private, public, .. } = self.control;
        let may_be_kept = self.status == 200
            && asked.is_get
            && !asked.has_body
            && !asked.has_range
            && !asked.control.no_store
            && !(no_store || no_cache || private || self.sets_cookie || self.varies_by_all)
            && (public || !asked.has_credentials);
        if !may_be_kept {
            return None;
        }
        let apparent = self.date.map_or(0, |date| received.saturating_sub(date));
        let corrected = Duration::from_secs(self.age.unwrap_or(0)) + delay;
        let age = corrected.max(Duration::from_secs(apparent));
        let expires = || Some(self.expires?.saturating_sub(self.date.unwrap_or(received)));
        let lifetime = self.control.s_maxage.or(self.control.max_age).or_else(expires);
        let lifetime = Duration::from_secs(lifetime.unwrap_or(0).min(MOST));
        // RFC 9111 §5.2.2.10: s-maxage has the meaning of proxy-revalidate in it.
        let never_stale = self.control.must_revalidate || self.control.s_maxage.is_some();
        let if_error = if never_stale { Some(0) } else { self.control.stale_if_error };
        let if_error = if_error.map(Duration::from_secs);
        let is_of_use = age < lifetime || if_error != Some(Duration::ZERO);
        is_of_use.then_some(Terms { age, lifetime, if_error, public })
    }
}

impl Terms {
    /// Whether the answer, kept for `resident`, may stand in for an error now. `stale_for`: the most that it may be
    /// stale, whatever it says itself.
    pub fn usable(&self, resident: Duration, stale_for: Duration, asked: &Asked) -> Option<Usable> {
        let age = self.age + resident;
        let limit = |seconds: Option<u64>| seconds.map_or(Duration::MAX, Duration::from_secs);
        let may_be_stale = self.if_error.unwrap_or(Duration::MAX).min(stale_for);
        let may_be_stale = may_be_stale.min(limit(asked.control.stale_if_error));
        let stale = age.checked_sub(self.lifetime);
        let usable = asked.may_be_answered()
            && (self.public || !asked.has_credentials)
            && age <= limit(asked.control.max_age)
            && stale.is_none_or(|stale| stale < may_be_stale);
        let ttl = match stale {
            Some(stale) => -(stale.as_secs() as i64),
            None => (self.lifetime - age).as_secs() as i64,
        };
        usable.then_some(Usable { age, ttl })
    }
}

/// The names that `Vary` lists, in lower case, each once, in order. None: `*`, or more than anybody compares.
pub fn vary<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Vec<Box<[u8]>>> {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    for name in values.flat_map(list) {
        if name == b"*" || names.len() >= MOST_FIELDS {
            return None;
        }
        let name = name.to_ascii_lowercase().into_boxed_slice();
        if let Err(place) = names.binary_search(&name) {
            names.insert(place, name);
        }
    }
    Some(names)
}

/// The number of seconds that `Age`, `max-age` and the like say, bare or in quotes; what is longer than 68 years is
/// cut.
pub fn seconds(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_number)?;
    Some(text.parse().unwrap_or(MOST).min(MOST))
}

/// The instant that `Date` or `Expires` says, in seconds since 1970.
pub fn date(value: &[u8]) -> Option<u64> {
    http_date(std::str::from_utf8(value).ok()?.trim())
}

/// The elements of a list, without the empty ones. A comma within quotes does not part them.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value
        .split(move |byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        })
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn get() -> Asked {
        Asked { is_get: true, ..Asked::default() }
    }

    fn asks(control: &str) -> Asked {
        Asked { control: says(control), ..get() }
    }

    fn says(control: &str) -> Control {
        Control::parse([control.as_bytes()].into_iter())
    }

    fn answer(control: &str) -> Answer {
        Answer { status: 200, control: says(control), ..Answer::default() }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn cache_control_is_read_as_a_list() {
        let cases = [
            // why                              value                        what it says
            ("nothing", "", Control::default()),
            ("in any case", "No-Store", Control { no_store: true, ..Control::default() }),
            (
                "several",
                "public, max-age=60",
                Control { public: true, max_age: Some(60), ..Control::default() },
            ),
            ("in quotes", "max-age=\"60\"", Control { max_age: Some(60), ..Control::default() }),
            ("a list of fields", "private=\"a, b\"", Control { private: true, ..Control::default() }),
            ("a comma in quotes", "x=\"a, no-store, b\"", Control::default()),
            ("unreadable is none", "max-age=soon", Control { max_age: Some(0), ..Control::default() }),
            ("without a number", "max-age", Control { max_age: Some(0), ..Control::default() }),
            (
                "the smallest counts",
                "max-age=9, max-age=3",
                Control { max_age: Some(3), ..Control::default() },
            ),
            (
                "for ever",
                "max-age=99999999999999999999",
                Control { max_age: Some(MOST), ..Control::default() },
            ),
            ("unknown ones are not heard", "immutable, no-stores", Control::default()),
        ];
        for (why, value, expected) in cases {
            assert_eq!(says(value), expected, "{why}");
        }
        let two = Control::parse([&b"no-cache"[..], b"private"].into_iter());
        assert!(two.no_cache && two.private, "two fields are one list");
    }

    #[test]
    fn what_may_be_kept() {
        let with = |change: fn(&mut Asked)| {
            let mut asked = get();
            change(&mut asked);
            asked
        };
        let credentials = with(|asked| asked.has_credentials = true);
        let cases = [
            // why                                            request  answer                      kept
            ("200 to GET that says nothing", get(), answer(""), true),
            ("that is fresh for a while", get(), answer("max-age=60"), true),
            ("no-store", get(), answer("no-store"), false),
            ("private", get(), answer("private"), false),
            ("no-cache could never be used", get(), answer("no-cache"), false),
            ("nor what must not be stale and is", get(), answer("must-revalidate"), false),
            ("but while it is fresh", get(), answer("max-age=60, must-revalidate"), true),
            ("s-maxage=0 is stale and must not be", get(), answer("s-maxage=0, max-age=60"), false),
            ("no-store wins over public", get(), answer("public, no-store"), false),
            ("Set-Cookie", get(), Answer { sets_cookie: true, ..answer("public") }, false),
            ("Vary: *", get(), Answer { varies_by_all: true, ..answer("public") }, false),
            ("another status", get(), Answer { status: 404, ..answer("max-age=60") }, false),
            ("a part", get(), Answer { status: 206, ..answer("max-age=60") }, false),
            ("to a POST", Asked::default(), answer("max-age=60"), false),
            ("to HEAD there is no body", with(|a| (a.is_get, a.is_head) = (false, true)), answer(""), false),
            ("to a part of it", with(|a| a.has_range = true), answer(""), false),
            ("to a GET with a body", with(|a| a.has_body = true), answer(""), false),
            ("the whole to a condition", with(|a| a.is_conditional = true), answer(""), true),
            ("the client does not want it", asks("no-store"), answer("public"), false),
            ("to somebody in person", credentials, answer("max-age=60"), false),
            ("for all of them", credentials, answer("public"), true),
            ("s-maxage alone is not enough", credentials, answer("s-maxage=60"), false),
        ];
        for (why, asked, answer, kept) in cases {
            assert_eq!(answer.terms(&asked, NOW, Duration::ZERO).is_some(), kept, "{why}");
        }
    }

    #[test]
    fn age_and_lifetime_are_those_of_rfc_9111() {
        let dated = |date: u64, age: Option<u64>| Answer { date: Some(date), age, ..answer("max-age=60") };
        let expiring = |expires: u64| Answer { date: Some(NOW - 10), expires: Some(expires), ..answer("") };
        let cases = [
            // why                                        answer                          delay  age  lifetime
            ("it says nothing", answer(""), 0, 0, 0),
            ("the way takes its time", answer("max-age=60"), 2, 2, 60),
            ("it was old already", Answer { age: Some(30), ..answer("max-age=60") }, 2, 32, 60),
            ("by its date", dated(NOW - 40, None), 2, 40, 60),
            ("the older of both counts", dated(NOW - 40, Some(50)), 2, 52, 60),
            ("a clock that is ahead", dated(NOW + 40, None), 0, 0, 60),
            ("s-maxage wins", answer("max-age=60, s-maxage=30"), 0, 0, 30),
            ("Expires, from Date on", expiring(NOW + 20), 0, 10, 30),
            ("max-age wins over it", Answer { expires: Some(NOW + 20), ..answer("max-age=5") }, 0, 0, 5),
            ("one that has passed", expiring(0), 0, 10, 0),
        ];
        for (why, answer, delay, age, lifetime) in cases {
            let terms = answer.terms(&get(), NOW, secs(delay)).expect(why);
            assert_eq!((terms.age, terms.lifetime), (secs(age), secs(lifetime)), "{why}");
        }
    }

    #[test]
    fn when_it_may_stand_in_for_an_error() {
        let head = Asked { is_head: true, ..Asked::default() };
        let credentials = Asked { has_credentials: true, ..get() };
        let judged = Asked { has_precondition: true, ..get() };
        let cases = [
            // why                                        answer                  request  resident  ttl
            ("stale at once", "", get(), 0, Some(0)),
            ("stale for less than `for`", "", get(), 599, Some(-599)),
            ("`for` is over", "", get(), 600, None),
            ("fresh", "max-age=60", get(), 20, Some(40)),
            ("`for` begins where freshness ends", "max-age=60", get(), 659, Some(-599)),
            ("and ends", "max-age=60", get(), 660, None),
            ("stale-if-error says less", "max-age=60, stale-if-error=30", get(), 89, Some(-29)),
            ("counted from where freshness ends", "max-age=60, stale-if-error=30", get(), 90, None),
            ("it cannot say more than `for`", "stale-if-error=9999", get(), 600, None),
            ("never stale: fresh", "max-age=60, must-revalidate", get(), 59, Some(1)),
            ("never stale: stale", "max-age=60, must-revalidate", get(), 60, None),
            ("nor for a proxy", "max-age=60, proxy-revalidate", get(), 60, None),
            ("nor with s-maxage", "s-maxage=60", get(), 60, None),
            ("nor with stale-if-error=0", "max-age=60, stale-if-error=0", get(), 60, None),
            ("to HEAD", "max-age=60", head, 20, Some(40)),
            ("not to another method", "max-age=60", Asked::default(), 20, None),
            ("not to somebody in person", "max-age=60", credentials, 20, None),
            ("unless it is for all", "public, max-age=60", credentials, 20, Some(40)),
            ("a condition that its origin judges", "max-age=60", judged, 20, None),
            ("the client wants it from its origin", "max-age=60", asks("no-cache"), 20, None),
            ("it is too old for the client", "max-age=60", asks("max-age=10"), 20, None),
            ("the client takes stale ones for a while", "", asks("stale-if-error=30"), 29, Some(-29)),
            ("and not for longer", "", asks("stale-if-error=30"), 30, None),
        ];
        for (why, control, asked, resident, ttl) in cases {
            let terms = answer(control).terms(&get(), NOW, Duration::ZERO).expect(why);
            let usable = terms.usable(secs(resident), secs(600), &asked);
            assert_eq!(usable.map(|usable| usable.ttl), ttl, "{why}");
        }
    }

    #[test]
    fn what_may_be_shared_in_the_same_moment() {
        let cases = [
            ("what says nothing", answer(""), true),
            ("an error", Answer { status: 503, ..answer("") }, true),
            ("private", answer("private"), false),
            ("no-store", answer("no-store"), false),
            ("no-cache", answer("no-cache"), false),
            ("Set-Cookie", Answer { sets_cookie: true, ..answer("") }, false),
            ("Vary: *", Answer { varies_by_all: true, ..answer("") }, false),
            ("a part", Answer { status: 206, ..answer("") }, false),
            ("not modified", Answer { status: 304, ..answer("") }, false),
            ("another protocol", Answer { status: 101, ..answer("") }, false),
        ];
        for (why, answer, shared) in cases {
            assert_eq!(answer.may_be_shared(), shared, "{why}");
        }
        let cases = [
            ("a plain GET", get(), true),
            ("HEAD", Asked { is_head: true, ..Asked::default() }, false),
            ("in person", Asked { has_credentials: true, ..get() }, false),
            ("a part", Asked { has_range: true, ..get() }, false),
            ("under a condition", Asked { is_conditional: true, ..get() }, false),
            ("under one that its origin judges", Asked { has_precondition: true, ..get() }, false),
            ("with a body", Asked { has_body: true, ..get() }, false),
            ("one that wants its own", asks("no-cache"), false),
            ("one that leaves no trace", asks("no-store"), false),
        ];
        for (why, asked, may) in cases {
            assert_eq!(asked.may_coalesce(), may, "{why}");
        }
    }

    #[test]
    fn vary_names_each_field_once() {
        let names = |value: &str| {
            let names = vary([value.as_bytes()].into_iter())?;
            Some(
                names
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        let cases = [
            ("nothing", "", Some("")),
            ("in order, once, in lower case", "Origin, accept, ORIGIN,", Some("accept origin")),
            ("everything", "accept, *", None),
        ];
        for (why, value, expected) in cases {
            assert_eq!(names(value).as_deref(), expected, "{why}");
        }
        let many: Vec<String> = (0..17).map(|number| format!("x-{number}")).collect();
        assert_eq!(names(&many.join(",")), None, "more than anybody compares");
    }

    proptest! {
        /// Whatever an answer and a request say: nothing is used that is stale for `for` or longer.
        #[test]
        fn never_stale_beyond_for(
            max_age in prop::option::of(0..1000u64),
            if_error in prop::option::of(0..5000u64),
            (age, delay, date) in (0..1000u64, 0..100u64, 0..2000u64),
            (resident, stale_for) in (0..10_000u64, 1..3000u64),
            wanted in prop::option::of(0..5000u64),
        ) {
            let control = Control { max_age, stale_if_error: if_error, ..Control::default() };
            let answer =
                Answer { status: 200, control, age: Some(age), date: Some(NOW - date), ..Answer::default() };
            let asked = Asked { control: Control { stale_if_error: wanted, ..Control::default() }, ..get() };
            if let Some(terms) = answer.terms(&asked, NOW, secs(delay))
                && let Some(usable) = terms.usable(secs(resident), secs(stale_for), &asked)
            {
                let really = (age + delay).max(date) + resident;
                let fresh = max_age.unwrap_or(0);
                prop_assert!(really < fresh || really - fresh < stale_for);
                prop_assert!(really < fresh || if_error.is_none_or(|bound| really - fresh < bound));
                prop_assert_eq!(usable.age, secs(really));
            }
        }

        #[test]
        fn nothing_that_comes_in_panics(value: Vec<u8>, text in "[a-z\\-]{0,12}(=\"?[0-9a-z,\\\\]{0,9}\"?)?(, ?[a-z=0-9\"]*)*") {
            for value in [&value[..], text.as_bytes()] {
                let _ = (Control::parse([value].into_iter()), vary([value].into_iter()), seconds(value), date(value));
            }
        }
    }
}
