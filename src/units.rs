//! Lengths of time, sizes, rates and ratios as the configuration writes them.
//!
//! Each type parses or does not exist: whoever holds one need not check it again. Not here: what a value is
//! for, nor its default (that stands with the policy it sets).

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time, written `"250ms"`, `"3s"`, `"2m"`, `"1h"` or `"1d"`. From 1 ms to 10 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Span(Duration);

/// A number of bytes, written `"512B"`, `"64KiB"`, `"32MiB"`, `"1GiB"`, or in powers of ten `"64kB"`, `"1MB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Size(u64);

/// A number of requests, written `200`, or of bytes, as a [`Size`]; at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Requests.
    Requests(u32),
    /// Bytes.
    Bytes(Size),
}

/// How much in which time: of requests, written `"100/s"`, `"6000/m"`, `"10/h"` or `"1000/d"`, or of bytes,
/// `"1MiB/s"`. Never nothing; at most a million requests a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Rate {
    amount: Amount,
    /// One of [`PERIODS`].
    seconds: u32,
}

/// A number from 0 to 1. Parsing is the only way to get one.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

/// A value or the word `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

/// A value or the word `"auto"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrAuto<T>(pub Option<T>);

/// The units of time and their length in milliseconds, largest first.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// The times that a rate may be for, and their length in seconds.
const PERIODS: [(&str, u32); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];

/// The units of size and their bytes, largest first where they are printed.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Splits `"250ms"` into its number and its unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

impl Span {
    /// The longest length of time that a setting may have.
    pub const MAX: Span = Span(Duration::from_secs(10 * 365 * 86_400));

    /// `millis` milliseconds, for defaults; at least 1.
    pub const fn from_millis(millis: u64) -> Self {
        assert!(millis > 0);
        Self(Duration::from_millis(millis))
    }

    /// `secs` seconds, for defaults; at least 1.
    pub const fn from_secs(secs: u64) -> Self {
        assert!(secs > 0);
        Self(Duration::from_secs(secs))
    }
}

impl Deref for Span {
    type Target = Duration;
    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let cure = "write a whole number and ms, s, m, h or d, such as \"250ms\" or \"3s\"";
        let millis = TIME_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, length)| number.parse::<u64>().ok()?.checked_mul(*length))
            .ok_or_else(|| format!("{text:?} is not a length of time; {cure}"))?;
        let span = Self(Duration::from_millis(millis));
        if millis == 0 {
            return Err(format!("{text:?} is no time at all; the shortest is \"1ms\""));
        }
        if span > Self::MAX {
            return Err(format!("{text:?} is too long; the longest is ten years (\"3650d\")"));
        }
        Ok(span)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis() as u64;
        let (unit, length) =
            TIME_UNITS.iter().find(|(_, length)| millis.is_multiple_of(*length)).unwrap_or(&("ms", 1));
        write!(f, "{}{unit}", millis / length)
    }
}

impl Size {
    /// `bytes` bytes, for defaults.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        SIZE_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, bytes)| number.parse::<u64>().ok()?.checked_mul(*bytes))
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a size; write a whole number and B, KiB, MiB or GiB, such as \"64KiB\""
                )
            })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = &SIZE_UNITS[..3];
        let (unit, bytes) =
            binary.iter().find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes)).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl Amount {
    /// How many requests or bytes.
    pub const fn get(self) -> u64 {
        match self {
            Amount::Requests(number) => number as u64,
            Amount::Bytes(size) => size.bytes(),
        }
    }

    /// So many of the same.
    pub fn with(self, number: u64) -> Self {
        match self {
            Amount::Requests(_) => Amount::Requests(u32::try_from(number).unwrap_or(u32::MAX)),
            Amount::Bytes(_) => Amount::Bytes(Size::from_bytes(number)),
        }
    }

    /// Whether both count the same.
    pub const fn is_like(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Amount::Requests(_), Amount::Requests(_)) | (Amount::Bytes(_), Amount::Bytes(_))
        )
    }

    fn is_some(self) -> Result<Self, String> {
        if self.get() == 0 { Err("0 lets nothing through; give at least 1".to_owned()) } else { Ok(self) }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Requests(number) => number.fmt(f),
            Amount::Bytes(size) => size.fmt(f),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Amount::Requests(number) => serializer.serialize_u32(*number),
            Amount::Bytes(size) => size.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::{Error, Unexpected, Visitor};
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Amount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Amount, E> {
                let number = u32::try_from(number).map_err(|_| {
                    E::custom(format!("{number} is out of range; give a whole number from 1 to {}", u32::MAX))
                })?;
                Amount::Requests(number).is_some().map_err(E::custom)
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Amount, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Amount, E> {
                if text.parse::<u64>().is_ok() {
                    return Err(E::invalid_type(Unexpected::Str(text), &self));
                }
                let size = text.parse().map_err(|error| {
                    E::custom(format!("{error}; or give a number of requests, such as 200"))
                })?;
                Amount::Bytes(size).is_some().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Rate {
    /// The most requests in a second that can be told apart.
    const MAX_REQUESTS: u64 = 1_000_000;

    /// How much in [`Rate::seconds`].
    pub const fn amount(self) -> Amount {
        self.amount
    }

    /// The time that it is written for.
    pub const fn seconds(self) -> u32 {
        self.seconds
    }

    /// What it comes to in a second, rounded up.
    pub fn in_a_second(self) -> Amount {
        self.amount.with(self.amount.get().div_ceil(self.seconds.into()))
    }
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a rate; write a number or a size, and for which time, such as \"100/s\", \
                 \"6000/m\" or \"1MiB/s\""
            )
        };
        let (amount, period) = text.split_once('/').ok_or_else(wrong)?;
        let (amount, period) = (amount.trim(), period.trim());
        let (_, seconds) = *PERIODS.iter().find(|(name, _)| *name == period).ok_or_else(wrong)?;
        let amount = if amount.bytes().all(|byte| byte.is_ascii_digit()) {
            let number: u64 = amount.parse().map_err(|_| wrong())?;
            if number > Self::MAX_REQUESTS * u64::from(seconds) || number > u32::MAX.into() {
                return Err(format!("{text:?} is more than can be told apart; give at most \"1000000/s\""));
            }
            Amount::Requests(number as u32)
        } else {
            Amount::Bytes(amount.parse().map_err(|_| wrong())?)
        };
        if amount.get() == 0 {
            let least = match amount {
                Amount::Requests(_) => "1, such as \"1/m\"",
                Amount::Bytes(_) => "1B, such as \"64KiB/s\"",
            };
            return Err(format!("{text:?} lets nothing through; give at least {least}"));
        }
        Ok(Self { amount, seconds })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PERIODS.iter().find(|(_, seconds)| *seconds == self.seconds).map_or("s", |(name, _)| name);
        write!(f, "{}/{name}", self.amount)
    }
}

impl Ratio {
    /// All of them.
    pub const ONE: Ratio = Ratio(1.0);

    /// `value` as a default; from 0 to 1.
    pub const fn new(value: f64) -> Self {
        assert!(value >= 0.0 && value <= 1.0);
        Self(value)
    }

    /// The number from 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = String;
    fn try_from(value: f64) -> Result<Self, String> {
        // NaN lies in no range, so it is refused here too.
        (0.0..=1.0)
            .contains(&value)
            .then_some(Self(value))
            .ok_or_else(|| format!("{value} is not a ratio; give a number from 0 to 1"))
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> f64 {
        ratio.0
    }
}

/// Both ways between a unit and its text, for serde; `$what` is what a value of another type should have been.
macro_rules! as_text {
    ($type:ty, $what:literal) => {
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
as_text!(Span, "a length of time such as \"250ms\"");
as_text!(Size, "a size such as \"64KiB\"");
as_text!(Rate, "a rate such as \"100/s\"");

/// What a value and a word in its place have in common.
macro_rules! or_word {
    ($type:ident, $word:literal) => {
        impl<T> Deref for $type<T> {
            type Target = Option<T>;
            fn deref(&self) -> &Option<T> {
                &self.0
            }
        }

        impl<'de, T: FromStr<Err = String>> Deserialize<'de> for $type<T> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                if text == $word {
                    return Ok(Self(None));
                }
                text.parse()
                    .map(|value| Self(Some(value)))
                    .map_err(|error: String| serde::de::Error::custom(format!("{error}, or {:?}", $word)))
            }
        }

        impl<T: fmt::Display> Serialize for $type<T> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match &self.0 {
                    Some(value) => serializer.collect_str(value),
                    None => serializer.serialize_str($word),
                }
            }
        }

        impl<T: JsonSchema> JsonSchema for $type<T> {
            fn schema_name() -> Cow<'static, str> {
                format!("{}{}", T::schema_name(), stringify!($type)).into()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                json_schema!({ "anyOf": [{ "const": $word }, generator.subschema_for::<T>()] })
            }
        }
    };
}

or_word!(OrNone, "none");
or_word!(OrAuto, "auto");

/// Reads a whole number from `MIN` to `MAX`, for `#[serde(deserialize_with = "within::<_, 1, 64>")]`: so that a
/// number that is out of range cannot get into settings.
pub fn within<'de, D, const MIN: u32, const MAX: u32>(deserializer: D) -> Result<u32, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let number = i64::deserialize(deserializer)?;
    u32::try_from(number).ok().filter(|number| (MIN..=MAX).contains(number)).ok_or_else(|| {
        serde::de::Error::custom(format!("{number} is out of range; give a whole number from {MIN} to {MAX}"))
    })
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^(\d+(ms|s|m|h|d)|.*\$\{.*)$", "description": "a length of time, such as \"250ms\" or \"3s\"" })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^(\d+([KMG]iB|kB|MB|GB|B)|.*\$\{.*)$", "description": "a number of bytes, such as \"64KiB\"" })
    }
}

impl JsonSchema for Amount {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": u32::MAX },
                generator.subschema_for::<Size>(),
            ]
        })
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^(\d+([KMG]iB|kB|MB|GB|B)?/[smhd]|.*\$\{.*)$", "description": "an amount and a time, such as \"100/s\" or \"1MiB/s\"" })
    }
}

/// Reads a length of time from `MIN` to `MAX` milliseconds, as [`within`] reads a number.
pub fn span_within<'de, D, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<Span, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let span = Span::deserialize(deserializer)?;
    let (min, max) = (Span::from_millis(MIN), Span::from_millis(MAX));
    (min..=max).contains(&span).then_some(span).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "\"{span}\" is out of range; give a time from \"{min}\" to \"{max}\""
        ))
    })
}

impl JsonSchema for Ratio {
    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_parse_and_print_as_they_are_written() {
        for (text, millis) in
            [("250ms", 250), ("3s", 3000), ("2m", 120_000), ("1h", 3_600_000), ("1d", 86_400_000)]
        {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.as_millis(), millis, "{text}");
            assert_eq!(span.to_string(), text);
        }
        for text in ["", "5", "ms", "-1s", "1.5s", "0s", "3 parsecs", "99999999999999999999s", "4000d"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} is no length of time");
        }
    }

    #[test]
    fn sizes_parse_and_print_as_they_are_written() {
        for (text, bytes) in
            [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("32MiB", 32 << 20), ("1GiB", 1 << 30)]
        {
            let size: Size = text.parse().expect(text);
            assert_eq!(size.bytes(), bytes, "{text}");
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("5kB".parse::<Size>().map(Size::bytes), Ok(5000));
        for text in ["", "64", "KiB", "-1B", "1.5MiB", "64kib", "99999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text:?} is no size");
        }
    }

    #[test]
    fn rates_parse_and_print_as_they_are_written() {
        let (requests, bytes) = (Amount::Requests, |bytes| Amount::Bytes(Size::from_bytes(bytes)));
        for (text, amount, seconds, in_a_second) in [
            ("100/s", requests(100), 1, requests(100)),
            ("6000/m", requests(6000), 60, requests(100)),
            ("10/h", requests(10), 3600, requests(1)),
            ("1000000/d", requests(1_000_000), 86_400, requests(12)),
            ("1MiB/s", bytes(1 << 20), 1, bytes(1 << 20)),
            ("600B/m", bytes(600), 60, bytes(10)),
        ] {
            let rate: Rate = text.parse().expect(text);
            assert_eq!((rate.amount(), rate.seconds()), (amount, seconds), "{text}");
            assert_eq!(rate.in_a_second(), in_a_second, "{text}");
            assert_eq!(rate.to_string(), text);
        }
        for text in [
            "",
            "/",
            "/s",
            "5",
            "100/",
            "100/ms",
            "100/5s",
            "-1/s",
            "1.5/s",
            "x/s",
            "MiB/s",
            "0/s",
            "0B/s",
            "1000001/s",
            "99999999999999999999/d",
        ] {
            let wrong = text.parse::<Rate>().expect_err(text);
            assert!(wrong.contains("; "), "{text:?} has a cure: {wrong}");
        }
    }

    #[test]
    fn an_amount_is_a_number_or_a_size() {
        let read = |json: serde_json::Value| serde_json::from_value::<Amount>(json);
        let written = |amount: Amount| serde_json::to_value(amount).expect("it is a number or a string");
        for json in [serde_json::json!(200), serde_json::json!("1MiB")] {
            assert_eq!(read(json.clone()).map(written).ok(), Some(json));
        }
        for json in [serde_json::json!(0), serde_json::json!("0B"), serde_json::json!("200")] {
            assert!(read(json.clone()).is_err(), "{json}");
        }
    }

    #[test]
    fn ratios_lie_between_nothing_and_all() {
        for value in [0.0, 0.5, 1.0] {
            assert_eq!(Ratio::try_from(value).map(Ratio::get), Ok(value));
        }
        for value in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Ratio::try_from(value).is_err(), "{value}");
        }
    }
}
