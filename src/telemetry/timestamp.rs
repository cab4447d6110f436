//! Points in time as the logs write them: RFC 3339, UTC, to the millisecond.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-24T23:35:17.123Z`.
const LENGTH: usize = 24;

/// Writes points in time; most lines of a log fall into the second of the line before, whose text is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamps {
    /// The second that `text` says, since 1970.
    second: Option<u64>,
    text: [u8; LENGTH],
}

impl Stamps {
    /// Appends `at` to `out`. Times before 1970 are written as its beginning.
    #[inline]
    pub(super) fn write(&mut self, out: &mut Vec<u8>, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            self.text = to_the_second(since.as_secs());
        }
        digits(&mut self.text[20..23], u64::from(since.subsec_millis()));
        out.extend_from_slice(&self.text);
    }
}

/// The text of a second since 1970, its milliseconds zero.
fn to_the_second(second: u64) -> [u8; LENGTH] {
    let (year, month, day) = date(second / 86_400);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], second / 3600 % 24);
    digits(&mut text[14..16], second / 60 % 60);
    digits(&mut text[17..19], second % 60);
    text
}

/// Year, month and day of a day since 1970, by Hinnant's algorithm (`civil_from_days`): years that begin in March
/// have their leap day last.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468; // since 0000-03-01
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_month)
}

/// Fills `place` with the last digits of `number`.
fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        let mut stamps = Stamps::default();
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_801_007, "2024-02-29T00:00:01.007Z"),
            (1_709_164_801_500, "2024-02-29T00:00:01.500Z"),
            (1_798_761_599_123, "2026-12-31T23:59:59.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (millis, text) in cases {
            let mut out = Vec::new();
            stamps.write(&mut out, UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(String::from_utf8(out).as_deref(), Ok(text), "{millis}");
        }
    }

    /// The days of 400 years, counted one by one.
    #[test]
    fn every_day_of_the_calendar_is_found() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..146_097 {
            assert_eq!(date(number), (year, month, day));
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > length[month as usize - 1] {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
