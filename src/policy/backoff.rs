//! The wait before a retry: what our own settings draw, and what the upstream asked for.
//!
//! With a `Retry-After` (RFC 9110 §10.2.3) or a `grpc-retry-pushback-ms` the drawn wait is added to it, so that
//! clients that were all sent away at once do not all come back at once.

use std::time::Duration;

use super::retry::{BackoffSettings, Jitter};
use crate::units::Span;

/// The wait before retry number `retry` (0: the first), after a wait of `previous` (of no meaning before the
/// first). `draw` is uniform in [0, 1).
pub fn wait(settings: &BackoffSettings, retry: u32, previous: Duration, draw: f64) -> Duration {
    let (base, max) = (*settings.base, *settings.max);
    let full = base.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(max);
    match settings.jitter {
        Jitter::None => full,
        Jitter::Full => full.mul_f64(draw),
        Jitter::Equal => full / 2 + (full / 2).mul_f64(draw),
        Jitter::Decorrelated => {
            let longest = previous.max(base).saturating_mul(3).min(max);
            base.min(longest) + longest.saturating_sub(base).mul_f64(draw)
        }
    }
}

/// What a server says in `grpc-retry-pushback-ms` (gRPC A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Retry after this.
    After(Duration),
    /// Do not retry.
    Never,
}

/// Reads `grpc-retry-pushback-ms`: a negative or unreadable one means "do not retry".
pub fn parse_pushback(value: &[u8]) -> Pushback {
    let millis = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse::<i32>().ok());
    match millis.map(u64::try_from) {
        Some(Ok(millis)) => Pushback::After(Duration::from_millis(millis)),
        _ => Pushback::Never,
    }
}

/// Reads `Retry-After`: seconds or an HTTP-date, which is compared with `now_unix` (seconds since 1970). A date
/// in the past is now; longer than ten years is ten years. `None`: unreadable, so nothing was said.
pub fn parse_retry_after(value: &[u8], now_unix: u64) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 holds are a long time too.
        text.parse().unwrap_or(u64::MAX)
    } else {
        http_date(text)?.saturating_sub(now_unix)
    };
    Some(Duration::from_secs(seconds).min(*Span::MAX))
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since 1970 of an HTTP-date in any of the three forms of RFC 9110 §5.6.7. The name of the day is not
/// looked at; what lies before 1970 is 1970.
pub(super) fn http_date(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', ',']).filter(|word| !word.is_empty()).take(7).collect();
    let dashed = |date: &str| {
        let mut parts = date.split('-');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    let (day, month, year, time) = match words[..] {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [_, day, month, year, time, "GMT"] => (day.to_owned(), month.to_owned(), year.to_owned(), time),
        // Sunday, 06-Nov-94 08:49:37 GMT
        [_, date, time, "GMT"] => {
            let (day, month, year) = dashed(date)?;
            (day, month, year, time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => (day.to_owned(), month.to_owned(), year.to_owned(), time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let day = number(&day, 1..=31)?;
    let year = match (year.len(), number(&year, 0..=9999)?) {
        (4, year) => year,
        // RFC 9110 §5.6.7: two digits that seem more than 50 years ahead are of the century before.
        (2, year) => year + if year < 76 { 2000 } else { 1900 },
        _ => return None,
    };
    let mut clock = time.split(':');
    let mut part = |range| number(clock.next()?, range);
    let (hour, minute, second) = (part(0..=23)?, part(0..=59)?, part(0..=60)?);
    let seconds = days_since_1970(year, month, day) * 86_400 + (hour * 3600 + minute * 60 + second) as i64;
    Some(u64::try_from(seconds).unwrap_or(0))
}

fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    text.parse().ok().filter(|number| range.contains(number))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant, `days_from_civil`): years are counted
/// from March, so that the leap day is the last one.
fn days_since_1970(year: u64, month: u64, day: u64) -> i64 {
    let year = year as i64 - i64::from(month <= 2);
    let month_from_march = (month as i64 + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day as i64 - 1;
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(jitter: Jitter) -> BackoffSettings {
        BackoffSettings { base: Span::from_millis(25), max: Span::from_millis(1000), jitter }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn waits_are_drawn_as_the_jitter_says() {
        let cases = [
            // why                                      jitter               retry  previous  draw  wait
            ("the whole base", Jitter::None, 0, 0, 0.9, 25.0),
            ("doubled each time", Jitter::None, 3, 0, 0.0, 200.0),
            ("at most max", Jitter::None, 6, 0, 0.0, 1000.0),
            ("even where 2^n overflows", Jitter::None, 200, 0, 0.0, 1000.0),
            ("full: from nothing", Jitter::Full, 2, 0, 0.0, 0.0),
            ("full: to the whole", Jitter::Full, 2, 0, 0.5, 50.0),
            ("equal: at least half", Jitter::Equal, 2, 0, 0.0, 50.0),
            ("equal: half of it random", Jitter::Equal, 2, 0, 0.5, 75.0),
            ("decorrelated: from base", Jitter::Decorrelated, 5, 100, 0.0, 25.0),
            ("decorrelated: to three times the previous", Jitter::Decorrelated, 5, 100, 0.5, 162.5),
            ("decorrelated: the first is about base", Jitter::Decorrelated, 0, 0, 0.5, 50.0),
            ("decorrelated: at most max", Jitter::Decorrelated, 5, 900, 0.999, 999.025),
        ];
        for (why, jitter, retry, previous, draw, expected) in cases {
            let wait = wait(&settings(jitter), retry, ms(previous), draw).as_secs_f64() * 1000.0;
            assert!((wait - expected).abs() < 0.001, "{why}: {wait} ms");
        }
    }

    /// RFC 9110 §5.6.7 and §10.2.3.
    #[test]
    fn retry_after_is_seconds_or_a_date() {
        const NOW: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
        let cases = [
            ("120", Some(120)),
            ("0", Some(0)),
            (" 5 ", Some(5)),
            ("99999999999999999999999", Some(Span::MAX.as_secs())),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 09:49:37 1994", Some(3600)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(86_400)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(167_670_623)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("Wed, 31 Dec 1969 23:59:59 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Non 1994 08:49:37 GMT", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(
                parse_retry_after(value.as_bytes(), NOW),
                seconds.map(Duration::from_secs),
                "{value:?}"
            );
        }
    }

    #[test]
    fn an_unreadable_pushback_means_never() {
        let cases = [
            ("250", Pushback::After(ms(250))),
            ("0", Pushback::After(ms(0))),
            ("-1", Pushback::Never),
            ("soon", Pushback::Never),
            ("", Pushback::Never),
            ("99999999999", Pushback::Never),
        ];
        for (value, pushback) in cases {
            assert_eq!(parse_pushback(value.as_bytes()), pushback, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_max(
            jitter in prop::sample::select(vec![Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated]),
            (base, max) in (1u64..100_000, 1u64..100_000),
            retry: u32,
            previous in 0u64..1_000_000,
            draw in 0.0..1.0f64,
        ) {
            let settings = BackoffSettings { base: Span::from_millis(base), max: Span::from_millis(max), jitter };
            prop_assert!(wait(&settings, retry, ms(previous), draw) <= ms(max));
        }

        #[test]
        fn nothing_that_comes_in_panics(value: Vec<u8>, text in "[A-Za-z]{3},? [0-9]{1,3}[- ][A-Z][a-z]{2}[- ][0-9]{1,5} [0-9:]{1,9}( GMT)?", now: u64) {
            let _ = (parse_retry_after(&value, now), parse_retry_after(text.as_bytes(), now), parse_pushback(&value));
        }

        /// Against the calendar counted day by day.
        #[test]
        fn dates_are_counted_as_the_calendar_has_them(days in 0i64..60_000) {
            let (mut year, mut left) = (1970, days);
            let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            while left >= 365 + i64::from(leap(year)) {
                left -= 365 + i64::from(leap(year));
                year += 1;
            }
            let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let mut month = 0;
            while left >= lengths[month] {
                left -= lengths[month];
                month += 1;
            }
            prop_assert_eq!(days_since_1970(year as u64, month as u64 + 1, left as u64 + 1), days);
        }
    }
}
