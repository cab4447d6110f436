//! `[upstream.NAME.fault]`: which faults may be injected, into which requests, and the guards around them.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{Error as ValueError, MapAccessDeserializer, StrDeserializer};
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::policy::condition;
use crate::policy::failure::GrpcStatus;
use crate::policy::priority::Priority;
use crate::units::{Rate, Ratio, Size, Span, span_within, within};

/// The share of requests that faults may hit without a header that asks for them, unless `allow_wide` is set.
pub const WIDE: f64 = 0.2;

/// `[upstream.NAME.fault]`: what is injected as if the upstream did it, into which requests, for how long. A route may
/// say it too, for its own requests.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce` or `off`. Default `enforce`: what is written below is injected.
    pub mode: Switch,
    /// Wait before the request goes up: a table, or in short the time for all, such as `"300ms"`. Default: no wait.
    #[serde(deserialize_with = "short", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "delay_schema")]
    pub delay: Option<Delay>,
    /// Answer in place of the upstream. Default: it answers itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Break off without an answer: a table, or `true` for all. Default: no reset.
    #[serde(deserialize_with = "short", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reset_schema")]
    pub reset: Option<Reset>,
    /// Break off in the body of the answer: a table, or in short behind how much of it, such as `"1KiB"`. Default: it
    /// comes to its end.
    #[serde(deserialize_with = "short", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "truncate_schema")]
    pub truncate: Option<Truncate>,
    /// Hold the answer back before its first byte: a table, or in short the time for all, such as `"300ms"`. Default: it
    /// comes when it comes.
    #[serde(deserialize_with = "short", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "delay_schema")]
    pub slow_first_byte: Option<Delay>,
    /// Let the body of the answer come no faster: a table, or in short the rate for all, such as `"64KiB/s"`. Default: as
    /// it comes.
    #[serde(deserialize_with = "short", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bandwidth_schema")]
    pub bandwidth: Option<Bandwidth>,
    /// What a request must be. Default: any request but those of the priority `critical`.
    #[serde(rename = "match")]
    pub matches: Match,
    /// A fault always ends: this long after the configuration, or the admin API, has brought it. From `"1ms"` to `"1d"`.
    /// Default `"10m"`.
    #[serde(rename = "for", deserialize_with = "span_within::<_, 1, 86_400_000>")]
    pub lasts: Span,
    /// Requests under a fault at once; what exceeds it goes on unhurt, and is counted. From 1 to 100,000. Default 50.
    #[serde(deserialize_with = "within::<_, 1, 100_000>")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_active: u32,
    /// Whether faults may hit more than 0.2 of all requests without a header that asks for them. Default false.
    pub allow_wide: bool,
}

/// Whether faults are injected: there is no shadow of a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// They are.
    #[default]
    Enforce,
    /// They are not.
    Off,
}

/// `delay` and `slow_first_byte`: a wait.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// The share of requests. Default 1.0.
    #[serde(default = "all")]
    pub ratio: Ratio,
    /// How long. From `"1ms"` to `"5m"`.
    #[serde(rename = "for", deserialize_with = "span_within::<_, 1, 300_000>")]
    pub lasts: Span,
    /// A random time up to this is added, drawn anew for each request. From `"1ms"` to `"5m"`. Default: none.
    #[serde(default, deserialize_with = "jitter", skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
}

/// `abort`: an answer in place of the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// The share of requests. Default 1.0.
    #[serde(default = "all")]
    pub ratio: Ratio,
    /// The status. From 400 to 599. Default 503.
    #[serde(default = "unavailable", deserialize_with = "status")]
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// The status of a gRPC call, by its name. Default: what gRPC makes of `status`, such as UNAVAILABLE of 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcStatus>,
}

/// `reset`: no answer, the connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// The share of requests. Default 1.0.
    #[serde(default = "all")]
    pub ratio: Ratio,
}

/// `truncate`: half an answer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Truncate {
    /// The share of requests. Default 1.0.
    #[serde(default = "all")]
    pub ratio: Ratio,
    /// How much of the body comes. A shorter one comes whole.
    pub after: Size,
}

/// `bandwidth`: a body that crawls.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// The share of requests. Default 1.0.
    #[serde(default = "all")]
    pub ratio: Ratio,
    /// Bytes of a body in which time, such as `"64KiB/s"`.
    #[serde(deserialize_with = "bytes")]
    pub rate: Rate,
}

/// `match`: what a request must be; all that is written must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// Headers that must have exactly these values, as the listener's trusted callers sent them; those of others ask for
    /// no fault. Default: none.
    #[serde(deserialize_with = "condition::headers")]
    pub headers: BTreeMap<String, String>,
    /// The methods. Default: any.
    #[serde(deserialize_with = "condition::methods")]
    pub methods: Vec<String>,
    /// The priorities. What is `critical` is never hurt unless it stands here. Default: any but `critical`.
    pub priority: Vec<Priority>,
}

/// What of a request decides whether a fault is for it.
pub struct Asked<'a> {
    /// How much it matters.
    pub priority: Priority,
    /// Whether its caller's control headers are obeyed.
    pub is_trusted: bool,
    /// As it came.
    pub method: &'a [u8],
    /// Whether it has a field of this name (in any case) with exactly this value.
    pub has_header: &'a dyn Fn(&str, &str) -> bool,
}

/// What happens to one attempt. The waits come first and last, and an end without the upstream spares its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plan {
    /// Before it goes up.
    pub delay: Option<Duration>,
    /// In place of going up.
    pub end: Option<End>,
    /// Before the head of its answer.
    pub slow_first_byte: Option<Duration>,
    /// Bytes of the answer's body behind which it breaks off.
    pub truncate: Option<u64>,
    /// Bytes of it in a second.
    pub bandwidth: Option<u64>,
}

/// How an attempt ends that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status, and for a gRPC call with this code.
    Abort(u16, u8),
    /// Without a word.
    Reset,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Switch::Enforce,
            delay: None,
            abort: None,
            reset: None,
            truncate: None,
            slow_first_byte: None,
            bandwidth: None,
            matches: Match::default(),
            lasts: Span::from_secs(600),
            max_active: 50,
            allow_wide: false,
        }
    }
}

impl Settings {
    /// Whether it injects anything at all.
    pub fn is_on(&self) -> bool {
        self.mode == Switch::Enforce && self.kinds().next().is_some()
    }

    /// What is written, each with its share of the requests that match: the key below `fault`, and the ratio.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let Self { delay, abort, reset, truncate, slow_first_byte, bandwidth, .. } = self;
        [
            ("delay", delay.map(|delay| delay.ratio)),
            ("abort", abort.map(|abort| abort.ratio)),
            ("reset", reset.map(|reset| reset.ratio)),
            ("truncate", truncate.map(|truncate| truncate.ratio)),
            ("slow_first_byte", slow_first_byte.map(|slow| slow.ratio)),
            ("bandwidth", bandwidth.map(|bandwidth| bandwidth.ratio)),
        ]
        .into_iter()
        .filter_map(|(key, ratio)| Some((key, ratio?.get())))
    }

    /// The share of the requests that match to which anything happens: each kind is drawn by itself.
    pub fn share(&self) -> f64 {
        1.0 - self.kinds().map(|(_, ratio)| 1.0 - ratio).product::<f64>()
    }

    /// Whether it would hit more than it may: too large a share, and no header asks for it.
    pub fn is_too_wide(&self) -> bool {
        !self.allow_wide && self.matches.headers.is_empty() && self.share() > WIDE + 1e-9
    }

    /// What happens to an attempt whose request matches; `None`: nothing. `draw` gives random numbers from 0 to 1, 1
    /// excluded.
    pub fn draw(&self, mut draw: impl FnMut() -> f64) -> Option<Plan> {
        let mut hits = |ratio: Ratio| draw() < ratio.get();
        let delay = self.delay.filter(|delay| hits(delay.ratio));
        let abort = self.abort.filter(|abort| hits(abort.ratio));
        let reset = self.reset.filter(|reset| hits(reset.ratio));
        let truncate = self.truncate.filter(|truncate| hits(truncate.ratio));
        let slow_first_byte = self.slow_first_byte.filter(|slow| hits(slow.ratio));
        let bandwidth = self.bandwidth.filter(|bandwidth| hits(bandwidth.ratio));
        let abort = abort.map(|abort| End::Abort(abort.status, abort.grpc_code()));
        let mut length = |delay: Delay| {
            *delay.lasts + delay.jitter.map_or(Duration::ZERO, |jitter| *jitter).mul_f64(draw())
        };
        let plan = Plan {
            delay: delay.map(&mut length),
            end: abort.or(reset.map(|_| End::Reset)),
            slow_first_byte: slow_first_byte.map(&mut length),
            truncate: truncate.map(|truncate| truncate.after.bytes()),
            bandwidth: bandwidth.map(|bandwidth| bandwidth.rate.in_a_second().get()),
        };
        (plan != Plan::default()).then_some(plan)
    }
}

impl Match {
    /// Whether a fault with these conditions is for this request.
    pub fn holds(&self, request: &Asked<'_>) -> bool {
        let of_priority = match self.priority.as_slice() {
            [] => request.priority != Priority::Critical,
            named => named.contains(&request.priority),
        };
        of_priority
            && (self.methods.is_empty() || self.methods.iter().any(|method| method.as_bytes() == request.method))
            // Whoever may not set a deadline may not ask for a fault either.
            && (self.headers.is_empty() || request.is_trusted)
            && self.headers.iter().all(|(name, value)| (request.has_header)(name, value))
    }
}

impl Abort {
    /// The gRPC code of the answer: as written, or as gRPC's HTTP mapping has it.
    fn grpc_code(&self) -> u8 {
        self.grpc.map_or_else(
            || match self.status {
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502 | 503 | 504 => 14,
                _ => 2,
            },
            GrpcStatus::code,
        )
    }
}

/// A table that may be written as the one value that has no default.
trait InShort: DeserializeOwned {
    /// What may be written.
    const EXPECTED: &'static str;
    /// What this text stands for.
    fn of_text(text: &str) -> Option<Result<Self, String>> {
        let _ = text;
        None
    }
    /// What `true` stands for.
    fn of_true() -> Option<Self> {
        None
    }
}

impl InShort for Delay {
    const EXPECTED: &'static str = "a time such as \"300ms\", or a table { ratio, for, jitter }";
    fn of_text(text: &str) -> Option<Result<Self, String>> {
        let lasts = span_within::<_, 1, 300_000>(StrDeserializer::<ValueError>::new(text));
        let lasts = lasts.map_err(|error| error.to_string());
        Some(lasts.map(|lasts| Self { ratio: Ratio::ONE, lasts, jitter: None }))
    }
}

impl InShort for Reset {
    const EXPECTED: &'static str = "true, or a table { ratio }";
    fn of_true() -> Option<Self> {
        Some(Self { ratio: Ratio::ONE })
    }
}

impl InShort for Truncate {
    const EXPECTED: &'static str = "a size such as \"1KiB\", or a table { ratio, after }";
    fn of_text(text: &str) -> Option<Result<Self, String>> {
        Some(text.parse().map(|after| Self { ratio: Ratio::ONE, after }))
    }
}

impl InShort for Bandwidth {
    const EXPECTED: &'static str = "a rate such as \"64KiB/s\", or a table { ratio, rate }";
    fn of_text(text: &str) -> Option<Result<Self, String>> {
        let rate = bytes(StrDeserializer::<ValueError>::new(text)).map_err(|error| error.to_string());
        Some(rate.map(|rate| Self { ratio: Ratio::ONE, rate }))
    }
}

/// Reads a table, or what stands for it.
fn short<'de, D: Deserializer<'de>, T: InShort>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct TableOr<T>(PhantomData<T>);
    impl<'de, T: InShort> Visitor<'de> for TableOr<T> {
        type Value = Option<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }
        fn visit_bool<E: serde::de::Error>(self, is_true: bool) -> Result<Option<T>, E> {
            match T::of_true() {
                Some(all) => Ok(is_true.then_some(all)),
                None => Err(E::invalid_type(serde::de::Unexpected::Bool(is_true), &self)),
            }
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<T>, E> {
            match T::of_text(text) {
                Some(read) => read.map(Some).map_err(E::custom),
                None => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
            }
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }
    deserializer.deserialize_any(TableOr(PhantomData))
}

fn jitter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    span_within::<_, 1, 300_000>(deserializer).map(Some)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
    let text = String::deserialize(deserializer)?;
    let amount = text.split('/').next().unwrap_or_default().trim();
    // Whatever the number: none of them would do.
    if amount.parse::<u64>().is_ok() {
        let cure = "a body has bytes; write a size and a time, such as \"64KiB/s\"";
        return Err(D::Error::custom(format!("{text:?} is a rate of requests, and {cure}")));
    }
    text.parse().map_err(D::Error::custom)
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    // It lies between 400 and 599.
    within::<_, 400, 599>(deserializer).map(|status| status as u16)
}

const fn all() -> Ratio {
    Ratio::ONE
}

const fn unavailable() -> u16 {
    503
}

/// The schema of a table that has a short form.
fn or_short<T: JsonSchema>(generator: &mut SchemaGenerator, short: Schema) -> Schema {
    json_schema!({ "anyOf": [short, generator.subschema_for::<T>()] })
}

fn delay_schema(generator: &mut SchemaGenerator) -> Schema {
    let short = generator.subschema_for::<Span>();
    or_short::<Delay>(generator, short)
}

fn reset_schema(generator: &mut SchemaGenerator) -> Schema {
    or_short::<Reset>(generator, json_schema!({ "type": "boolean" }))
}

fn truncate_schema(generator: &mut SchemaGenerator) -> Schema {
    let short = generator.subschema_for::<Size>();
    or_short::<Truncate>(generator, short)
}

fn bandwidth_schema(generator: &mut SchemaGenerator) -> Schema {
    let short = generator.subschema_for::<Rate>();
    or_short::<Bandwidth>(generator, short)
}
