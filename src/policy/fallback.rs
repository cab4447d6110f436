//! Fallback: what a client gets in place of a failure, and which failures those are.
//!
//! Asked last, around all other policies, when a request has come to nothing: `stale`, the last good answer; then
//! `upstream`, another one that may know; then `response`, fixed words. In this order because each is further from
//! the truth, and the first costs nobody anything. What stands in is no secret: `Cache-Status`, `Proxy-Status`,
//! `outrigger_fallbacks_total` and the access log say so, and the log keeps the true reason.
//!
//! Rules that hold whatever the settings say:
//! - One hop: the other upstream's own fallback is not asked, so no two upstreams send a request in circles.
//! - Going to another upstream is load, paid from the retry budget of the first; and it is a second sending, so it
//!   must be allowed for the method, or the first must surely not have processed the request.
//! - The other upstream has a time of its own, its `timeout.request`: of the first's nothing is left where that hung. The
//!   caller's deadline bounds both.
//! - Fixed words that sound like success are only for GET and HEAD: a write that was lost must not look done.
//!
//! Off unless something is written that can stand in. Not here: which answers may be kept and used again
//! ([`freshness`](super::freshness)), the store and the sharing of answers (`proxy`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::failure::{StatusPattern, StatusSet};
use super::mode::Mode;
use super::words;
use crate::reason::{Error, Reason};
use crate::units::{Ratio, Size, Span, within};

/// `[upstream.NAME.fallback]`: what clients get in place of a failure.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `enforce`, `shadow` or `off`. Default `enforce`.
    pub mode: Mode,
    /// The ratio of requests for which it is enforced. Default 1.0.
    pub rollout: Ratio,
    /// In place of what: `unreachable` (every answer of Outrigger's own with 502, 503 or 504), single reasons
    /// (`"breaker_open"`, `"rate_limited"`), or statuses of the upstream's (`"5xx"`, `"503"`, `"!501"`). Default
    /// `["unreachable", "5xx"]`.
    pub on: Vec<Trigger>,
    /// First: the last good answer to the same GET, as RFC 9111 and RFC 5861 allow it. Default: none.
    pub stale: Option<Stale>,
    /// Headers that tell requests apart besides the URL, for `stale` and `coalesce`: `"header:NAME"`. What an upstream
    /// names in `Vary` need not stand here; what tells tenants apart otherwise (`rate_limit.key`, `shed.caller`, a
    /// route's `match.headers`) should, and `check` warns where it does not. Default `[]`.
    pub key: Vec<KeyHeader>,
    /// Identical GETs in flight share one answer; rate limits count each of them, shedding only the one that asks the
    /// upstream. They wait for its head for as long as an attempt may take, for a body of at most 1 MiB as long again as
    /// the head took, from 500 ms to 2 s, and never beyond their own time; then they ask by themselves. What cannot be
    /// shared so is remembered for 10 s, in which nobody waits for it. Default false.
    pub coalesce: bool,
    /// Third: a fixed answer. Default: none.
    pub response: Option<Fixed>,
    /// Second: another upstream, within its own `timeout.request`, counted from when the request goes there; not
    /// beyond the caller's deadline. Default: none.
    pub upstream: Option<String>,
}

/// `stale`: answers that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stale {
    /// How long an answer may be used after it has become stale. Default `"10m"`.
    #[serde(rename = "for")]
    pub stale_for: Span,
    /// Memory for the answers of this upstream; one may take an eighth of it. Default `"32MiB"`.
    #[serde(deserialize_with = "store_size")]
    pub max_size: Size,
}

/// `response`: a fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fixed {
    /// Its status. Below 400 it is given to GET and HEAD alone. From 200 to 599. Default 200.
    #[serde(deserialize_with = "status")]
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Its headers, without those of framing. Default: none.
    #[serde(deserialize_with = "headers")]
    pub headers: BTreeMap<String, String>,
    /// Its body. Default `""`.
    pub body: String,
}

/// A header that tells requests apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHeader(Box<str>);

/// What is answered otherwise: a word of `on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Trigger {
    /// Every answer of Outrigger's own with 502, 503 or 504.
    Unreachable,
    /// An answer of Outrigger's own for this reason.
    Reason(Reason),
    /// An upstream's answer with such a status.
    Status(StatusPattern),
}

const UNREACHABLE: &str = "unreachable";

/// The reasons for which a request can come to nothing that is not its client's doing.
const REASONS: [Reason; 18] = [
    Reason::RateLimited,
    Reason::LoadShed,
    Reason::BreakerOpen,
    Reason::ConcurrencyLimited,
    Reason::QueueFull,
    Reason::QueueTimeout,
    Reason::NoHealthyEndpoint,
    Reason::Draining,
    Reason::ConnectError,
    Reason::DnsError,
    Reason::TlsError,
    Reason::UpstreamReset,
    Reason::ProtocolError,
    Reason::AttemptTimeout,
    Reason::RequestTimeout,
    Reason::DeadlineExceeded,
    Reason::UpstreamStalled,
    Reason::FaultInjected,
];

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            rollout: Ratio::ONE,
            on: vec![Trigger::Unreachable, Trigger::Status(StatusPattern::Class(5))],
            stale: None,
            key: Vec::new(),
            coalesce: false,
            response: None,
            upstream: None,
        }
    }
}

impl Default for Stale {
    fn default() -> Self {
        Self { stale_for: Span::from_secs(600), max_size: Size::from_bytes(32 << 20) }
    }
}

impl Default for Fixed {
    fn default() -> Self {
        Self { status: 200, headers: BTreeMap::new(), body: String::new() }
    }
}

impl Settings {
    /// Whether there is anything to do.
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off && (self.coalesce || self.has_substitute())
    }

    /// Whether something can stand in for a failure.
    pub fn has_substitute(&self) -> bool {
        self.stale.is_some() || self.response.is_some() || self.upstream.is_some()
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An answer of Outrigger's own.
    Reason(Reason),
    /// An answer of the upstream's.
    Status(u16),
}

/// Compiled `on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triggers {
    reasons: u32,
    statuses: StatusSet,
}

const _: () = assert!(Reason::ALL.len() <= 32, "Triggers::reasons has a bit for each reason");

impl Triggers {
    /// What `on` lists.
    pub fn new(on: &[Trigger]) -> Self {
        // What was injected has the status of what it stands for.
        let is_unreachable =
            |reason: &Reason| *reason != Reason::FaultInjected && matches!(reason.status(), 502..=504);
        let unreachable = || REASONS.into_iter().filter(is_unreachable);
        let reasons = on.iter().fold(0, |set, trigger| match trigger {
            Trigger::Unreachable => unreachable().fold(set, |set, reason| set | 1 << reason.index()),
            Trigger::Reason(reason) => set | 1 << reason.index(),
            Trigger::Status(_) => set,
        });
        let statuses = on.iter().filter_map(|trigger| match trigger {
            Trigger::Status(pattern) => Some(*pattern),
            _ => None,
        });
        Self { reasons, statuses: statuses.collect() }
    }

    /// Whether something else is to be given in place of this.
    pub fn hold(&self, end: End) -> bool {
        match end {
            End::Reason(reason) => self.reasons >> reason.index() & 1 == 1,
            End::Status(status) => self.statuses.contains(status),
        }
    }
}

/// Whether a request that ended so, after so many `attempts`, has surely not been processed.
pub fn is_unprocessed(end: End, attempts: u32) -> bool {
    let never_reached = End::Reason(Reason::ConnectError) == end || End::Reason(Reason::DnsError) == end;
    // What had been sent before that may be sent twice only if it was not processed either, or if its method allows.
    attempts == 0 || never_reached
}

/// Whether a failure says the same to everybody who asks the same. Otherwise it concerns the one who got it: its rate,
/// its class, its time, its body, the fault that was injected into it.
pub fn concerns_all(error: &Error) -> bool {
    !error.is_injected
        && !matches!(
            error.reason,
            Reason::FaultInjected
                | Reason::RateLimited
                | Reason::LoadShed
                | Reason::ConcurrencyLimited
                | Reason::QueueFull
                | Reason::QueueTimeout
                | Reason::AttemptTimeout
                | Reason::RequestTimeout
                | Reason::DeadlineExceeded
        )
        && REASONS.contains(&error.reason)
}

impl KeyHeader {
    /// The header's name, in lower case.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl AsRef<[u8]> for KeyHeader {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for KeyHeader {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("header:").filter(|name| is_token(name));
        let name =
            name.ok_or_else(|| format!("{text:?} names no header; write \"header:accept-language\""))?;
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "authorization" | "cookie") {
            return Err(format!(
                "{text:?} cannot be a key: such requests share answers only where these say `public`; leave it out"
            ));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for KeyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "header:{}", self.0)
    }
}

impl FromStr for Trigger {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == UNREACHABLE {
            return Ok(Trigger::Unreachable);
        }
        if let Some(reason) = REASONS.into_iter().find(|reason| reason.label() == text) {
            return Ok(Trigger::Reason(reason));
        }
        if text.trim_start_matches('!').starts_with(|c: char| c.is_ascii_digit()) {
            return text.parse().map(Trigger::Status);
        }
        let labels = || std::iter::once(UNREACHABLE).chain(REASONS.iter().map(|reason| reason.label()));
        if Reason::ALL.iter().any(|reason| reason.label() == text) {
            let labels: Vec<_> = labels().collect();
            return Err(format!(
                "{text:?} is the client's own doing, which nothing stands in for; the reasons are {}",
                labels.join(", ")
            ));
        }
        Err(words::unknown(text, "\"unreachable\", a reason or a status (\"503\", \"5xx\")", labels()))
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Unreachable => f.write_str(UNREACHABLE),
            Trigger::Reason(reason) => f.write_str(reason.label()),
            Trigger::Status(pattern) => pattern.fmt(f),
        }
    }
}

words::as_text!(KeyHeader);
words::as_text!(Trigger);

impl JsonSchema for Trigger {
    fn schema_name() -> Cow<'static, str> {
        "FallbackTrigger".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<_> =
            std::iter::once(UNREACHABLE).chain(REASONS.iter().map(|reason| reason.label())).collect();
        json_schema!({
            "anyOf": [{ "enum": words }, { "type": "string", "pattern": r"^(!?[2-5](xx|\d\d)|.*\$\{.*)$" }],
            "description": "`unreachable`, a reason, or a status of the upstream's (\"503\", \"5xx\", \"!501\")"
        })
    }
}

impl JsonSchema for KeyHeader {
    fn schema_name() -> Cow<'static, str> {
        "KeyHeader".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(header:.+|.*\$\{.*)$",
            "description": "`header:NAME`"
        })
    }
}

/// From 64 KiB to 64 GiB: below that hardly an answer fits, and one takes an eighth at most.
fn store_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
    let size = Size::deserialize(deserializer)?;
    if !(64 << 10..=64 << 30).contains(&size.bytes()) {
        let cure = "give from \"64KiB\" to \"64GiB\"";
        return Err(D::Error::custom(format!("{size} is no size for kept answers; {cure}")));
    }
    Ok(size)
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    within::<D, 200, 599>(deserializer).map(|status| status as u16)
}

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    /// Fields that Outrigger writes itself, or that concern a connection.
    const OWN: [&str; 10] = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "proxy-status",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    ];
    let headers = BTreeMap::<String, String>::deserialize(deserializer)?;
    for (name, value) in &headers {
        let wrong = if !is_token(name) {
            format!("{name:?} is no name of a header; use letters, digits and \"-\"")
        } else if OWN.contains(&name.to_ascii_lowercase().as_str()) {
            format!("{name:?} is a header that Outrigger writes itself; leave it out")
        } else if value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
            format!("the value of {name:?} has control characters; leave them out")
        } else if value.trim() != value {
            format!("the value of {name:?} has white space around it; leave it out")
        } else {
            continue;
        };
        return Err(D::Error::custom(wrong));
    }
    Ok(headers)
}

/// Whether `text` can be the name of a header (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn triggers(on: &[&str]) -> Triggers {
        Triggers::new(&on.iter().map(|word| word.parse().expect(word)).collect::<Vec<Trigger>>())
    }

    #[test]
    fn what_is_answered_otherwise() {
        use End::{Reason as R, Status as S};
        let default: &[&str] = &["unreachable", "5xx"];
        let cases = [
            // why                                       on           end                           otherwise
            ("never reached", default, R(Reason::ConnectError), true),
            ("too slow", default, R(Reason::RequestTimeout), true),
            ("refused by the breaker", default, R(Reason::BreakerOpen), true),
            ("shed", default, R(Reason::LoadShed), true),
            ("made up: it has another status", default, R(Reason::FaultInjected), false),
            ("a rate limit says 429", default, R(Reason::RateLimited), false),
            ("unless it is named", &["rate_limited"], R(Reason::RateLimited), true),
            ("then nothing else", &["rate_limited"], R(Reason::BreakerOpen), false),
            ("the client's own fault", default, R(Reason::BadRequest), false),
            ("the client left", default, R(Reason::ClientDisconnected), false),
            ("nobody knows where to", default, R(Reason::NoRoute), false),
            ("the upstream's own failure", default, S(500), true),
            ("a status that is taken out", &["5xx", "!501"], S(501), false),
            ("the upstream's good answer", default, S(200), false),
            ("a status is the upstream's, not ours", &["503"], R(Reason::BreakerOpen), false),
            ("and the other way round", &["unreachable"], S(503), false),
            ("nothing", &[], S(500), false),
        ];
        for (why, on, end, otherwise) in cases {
            assert_eq!(triggers(on).hold(end), otherwise, "{why}");
        }
        assert_eq!(triggers(default), Triggers::new(&Settings::default().on), "the default");
    }

    #[test]
    fn what_was_surely_not_processed() {
        let cases = [
            // why                            end                                attempts  unprocessed
            ("nothing was sent", End::Reason(Reason::BreakerOpen), 0, true),
            ("it could not be reached", End::Reason(Reason::ConnectError), 2, true),
            ("it broke off", End::Reason(Reason::UpstreamReset), 1, false),
            ("it may still be at work", End::Reason(Reason::AttemptTimeout), 1, false),
            ("a handshake may come after the request", End::Reason(Reason::TlsError), 1, false),
            ("it said so itself", End::Status(503), 1, false),
        ];
        for (why, end, attempts, unprocessed) in cases {
            assert_eq!(is_unprocessed(end, attempts), unprocessed, "{why}");
        }
    }

    #[test]
    fn whose_failure_it_is() {
        for reason in [Reason::ConnectError, Reason::BreakerOpen, Reason::UpstreamReset, Reason::Draining] {
            assert!(concerns_all(&reason.into()), "{}", reason.label());
            assert!(!concerns_all(&Error::from(reason).injected()), "{}, by a fault", reason.label());
        }
        for reason in [
            Reason::FaultInjected,
            Reason::RateLimited,
            Reason::LoadShed,
            Reason::QueueFull,
            Reason::AttemptTimeout,
            Reason::RequestTimeout,
            Reason::DeadlineExceeded,
            Reason::ClientStalled,
            Reason::ClientDisconnected,
            Reason::BadRequest,
        ] {
            assert!(!concerns_all(&reason.into()), "{}", reason.label());
        }
    }

    #[test]
    fn words_that_cannot_stand_say_what_can() {
        let cases = [
            ("unreachabel", "did you mean \"unreachable\"?"),
            ("breaker_opened", "did you mean \"breaker_open\"?"),
            ("bad_request", "the reasons are unreachable, rate_limited"),
            ("client_disconnected", "nothing stands in for"),
            ("600", "from 200 to 599"),
        ];
        for (word, cure) in cases {
            let message = word.parse::<Trigger>().expect_err(word);
            assert!(message.contains(cure), "{word}: {message}");
        }
        for (word, cure) in [
            ("accept-language", "write \"header:accept-language\""),
            ("header:", "write"),
            ("header:a b", "write"),
            ("header:Cookie", "leave it out"),
        ] {
            let message = word.parse::<KeyHeader>().expect_err(word);
            assert!(message.contains(cure), "{word}: {message}");
        }
        assert_eq!(
            "header:Accept-Language".parse::<KeyHeader>().map(|key| key.name().to_owned()),
            Ok("accept-language".to_owned())
        );
    }

    #[test]
    fn a_fixed_answer_is_one_that_can_be_written() {
        let cases = [
            // why                  text                                                      what is wrong
            ("all left out", "", None),
            ("words", "status = 503\nbody = \"later\"\nheaders = { retry-after = \"5\" }", None),
            ("no such status", "status = 99", Some("200 to 599")),
            ("framing", "headers = { Content-Length = \"3\" }", Some("leave it out")),
            ("a name with a space", "headers = { \"a b\" = \"3\" }", Some("no name of a header")),
            ("another line", "headers = { a = \"b\\r\\nc: d\" }", Some("control characters")),
        ];
        for (why, text, wrong) in cases {
            let parsed = toml::from_str::<Fixed>(text);
            match wrong {
                None => assert!(parsed.is_ok(), "{why}: {parsed:?}"),
                Some(wrong) => {
                    let message = parsed.expect_err(why).to_string();
                    assert!(message.contains(wrong), "{why}: {message}");
                }
            }
        }
    }
}
