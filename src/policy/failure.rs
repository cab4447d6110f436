//! What is an upstream's fault: one classifier for breaker, outlier detection and SLO alike.
//!
//! A 4xx is the caller's fault, so the upstream did well. 429 and RESOURCE_EXHAUSTED are neither: they concern one
//! caller, and say only that the upstream lives. What Outrigger answered itself is never evidence, nor is a
//! connect that was refused at once (an endpoint's affair), nor a timeout or a client's exit that came too early
//! to say anything, or while others were answered as fast as ever (`timeout::is_evidence`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::words;
use crate::reason::Reason;

/// `[upstream.NAME.failure]`: what is an upstream's fault, for all policies alike.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Statuses that are failures: a status (`"503"`), a class (`"5xx"`), or one taken out again (`"!501"`),
    /// wherever in the list it stands. Default `["5xx", "!501", "!505"]`.
    pub status: Vec<StatusPattern>,
    /// gRPC statuses that are failures. Default `["UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"]`.
    pub grpc: Vec<GrpcStatus>,
}

impl Default for Settings {
    fn default() -> Self {
        use StatusPattern::{Class, Not};
        Self { status: vec![Class(5), Not(501), Not(505)], grpc: [14, 13, 2, 4].map(GrpcStatus).to_vec() }
    }
}

/// A status (`"503"`), a class (`"5xx"`), or either taken out (`"!501"`, `"!4xx"`). From 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum StatusPattern {
    /// This status.
    Status(u16),
    /// Statuses that begin with this digit.
    Class(u16),
    /// Not this status.
    Not(u16),
    /// None that begins with this digit.
    NotClass(u16),
}

/// A gRPC status, written by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrpcStatus(u8);

/// A set of HTTP statuses: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusSet([u64; 10]);

/// A set of gRPC statuses: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GrpcSet(u32);

/// What an attempt says about its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did its work.
    Success,
    /// It failed.
    Failure,
    /// It answered that this caller asks too much: it lives, and nothing else is said.
    Throttled,
    /// Nothing is said about it.
    Ignored,
}

/// Compiled [`Settings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classifier {
    status: StatusSet,
    grpc: GrpcSet,
}

impl Classifier {
    /// The classifier that `settings` ask for.
    pub fn new(settings: &Settings) -> Self {
        Self {
            status: settings.status.iter().copied().collect(),
            grpc: settings.grpc.iter().map(|status| status.code()).collect(),
        }
    }

    /// What an answer with this status says.
    pub fn status(&self, status: u16) -> Verdict {
        match status {
            _ if self.status.contains(status) => Verdict::Failure,
            429 => Verdict::Throttled,
            _ => Verdict::Success,
        }
    }

    /// What an answer with this gRPC status says. A code that gRPC does not know counts as UNKNOWN.
    pub fn grpc(&self, code: u8) -> Verdict {
        let code = if usize::from(code) < GRPC.len() { code } else { 2 };
        match code {
            _ if self.grpc.contains(code) => Verdict::Failure,
            8 => Verdict::Throttled,
            _ => Verdict::Success,
        }
    }

    /// What an attempt without an answer says. `evidence`: whether its end says something
    /// (`timeout::is_evidence`); that matters where time ended it, or the client's exit.
    ///
    /// A connect that ran into its timeout is a failure too: [`super::breaker::Outcome::connect_timeout`].
    pub fn reason(&self, reason: Reason, evidence: bool) -> Verdict {
        match reason {
            Reason::UpstreamReset | Reason::ProtocolError | Reason::UpstreamStalled => Verdict::Failure,
            Reason::AttemptTimeout
            | Reason::RequestTimeout
            | Reason::DeadlineExceeded
            | Reason::ClientDisconnected
                if evidence =>
            {
                Verdict::Failure
            }
            _ => Verdict::Ignored,
        }
    }
}

/// The names of gRPC's statuses, at their codes.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The code of the gRPC status of this name.
pub fn grpc_code(name: &str) -> Option<u8> {
    GRPC.iter().position(|known| *known == name).map(|code| code as u8)
}

/// The name of a gRPC status; a code that gRPC does not know is UNKNOWN.
pub fn grpc_name(code: u8) -> &'static str {
    GRPC.get(usize::from(code)).unwrap_or(&GRPC[2])
}

impl StatusSet {
    pub(super) const EMPTY: StatusSet = StatusSet([0; 10]);

    pub(super) fn contains(self, status: u16) -> bool {
        let word = self.0.get(usize::from(status / 64)).copied().unwrap_or(0);
        word >> (status % 64) & 1 == 1
    }

    fn put(&mut self, statuses: std::ops::Range<u16>, member: bool) {
        for status in statuses {
            let (word, bit) = (&mut self.0[usize::from(status / 64)], 1 << (status % 64));
            *word = if member { *word | bit } else { *word & !bit };
        }
    }
}

/// What is taken out is out, wherever it stands: `["!501", "5xx"]` means what `["5xx", "!501"]` does.
impl FromIterator<StatusPattern> for StatusSet {
    fn from_iter<I: IntoIterator<Item = StatusPattern>>(patterns: I) -> Self {
        let (mut all, mut out) = (StatusSet::EMPTY, StatusSet::EMPTY);
        for pattern in patterns {
            match pattern {
                StatusPattern::Status(status) => all.put(status..status + 1, true),
                StatusPattern::Class(class) => all.put(class * 100..class * 100 + 100, true),
                StatusPattern::Not(status) => out.put(status..status + 1, true),
                StatusPattern::NotClass(class) => out.put(class * 100..class * 100 + 100, true),
            }
        }
        StatusSet(std::array::from_fn(|word| all.0[word] & !out.0[word]))
    }
}

impl GrpcSet {
    pub(super) fn contains(self, code: u8) -> bool {
        self.0.checked_shr(u32::from(code)).unwrap_or(0) & 1 == 1
    }
}

impl FromIterator<u8> for GrpcSet {
    fn from_iter<I: IntoIterator<Item = u8>>(codes: I) -> Self {
        GrpcSet(codes.into_iter().fold(0, |set, code| set | 1 << code))
    }
}

impl FromStr for StatusPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let cure =
            "write a status (\"503\"), a class (\"5xx\"), or one taken out (\"!501\"), from 200 to 599";
        let wrong = || format!("{text:?} is not a status; {cure}");
        let (out, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        if rest.len() != 3 || !(b'2'..=b'5').contains(&rest.as_bytes()[0]) {
            return Err(wrong());
        }
        let class = u16::from(rest.as_bytes()[0] - b'0');
        match (rest[1..].eq_ignore_ascii_case("xx"), rest.parse::<u16>(), out) {
            (true, _, false) => Ok(Self::Class(class)),
            (true, _, true) => Ok(Self::NotClass(class)),
            (false, Ok(status), false) => Ok(Self::Status(status)),
            (false, Ok(status), true) => Ok(Self::Not(status)),
            (false, Err(_), _) => Err(wrong()),
        }
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Class(class) => write!(f, "{class}xx"),
            Self::Not(status) => write!(f, "!{status}"),
            Self::NotClass(class) => write!(f, "!{class}xx"),
        }
    }
}

impl GrpcStatus {
    /// The upstream cannot be reached at the moment.
    pub(super) const UNAVAILABLE: GrpcStatus = GrpcStatus(14);

    /// Its number.
    pub const fn code(self) -> u8 {
        self.0
    }
}

impl FromStr for GrpcStatus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let failures = GRPC.iter().copied().skip(1);
        match grpc_code(text) {
            Some(0) => Err("\"OK\" is no failure; take it out of the list".to_owned()),
            Some(code) => Ok(Self(code)),
            None => Err(words::unknown(text, "a gRPC status", failures)),
        }
    }
}

impl fmt::Display for GrpcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(grpc_name(self.0))
    }
}

words::as_text!(StatusPattern);
words::as_text!(GrpcStatus);

impl JsonSchema for StatusPattern {
    fn schema_name() -> Cow<'static, str> {
        "StatusPattern".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(!?[2-5](xx|\d\d)|.*\$\{.*)$",
            "description": "a status (\"503\"), a class (\"5xx\"), or one taken out (\"!501\")"
        })
    }
}

impl JsonSchema for GrpcStatus {
    fn schema_name() -> Cow<'static, str> {
        "GrpcStatus".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "enum": GRPC[1..].to_vec() }, { "type": "string", "pattern": r"\$\{" }],
            "description": "the name of a gRPC status"
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classifier(status: &[&str]) -> Classifier {
        let status = status.iter().map(|text| text.parse().expect(text)).collect();
        Classifier::new(&Settings { status, ..Settings::default() })
    }

    #[test]
    fn a_status_is_the_upstreams_fault_if_the_list_says_so() {
        let default: &[&str] = &["5xx", "!501", "!505"];
        let cases = [
            // why                                   list                status  verdict
            ("its work", default, 200, Verdict::Success),
            ("a 4xx is the caller's fault", default, 404, Verdict::Success),
            ("a failure", default, 503, Verdict::Failure),
            ("taken out", default, 501, Verdict::Success),
            ("taken out, wherever it stands", &["!501", "5xx"], 501, Verdict::Success),
            ("429 concerns one caller", default, 429, Verdict::Throttled),
            ("unless it is said to be a failure", &["429"], 429, Verdict::Failure),
            ("or its class is", &["4xx"], 429, Verdict::Failure),
            ("a class without a class", &["5xx", "!5xx"], 500, Verdict::Success),
            ("a status that HTTP does not know", default, 999, Verdict::Success),
            ("nothing is", &[], 500, Verdict::Success),
        ];
        for (why, list, status, verdict) in cases {
            assert_eq!(classifier(list).status(status), verdict, "{why}");
        }
    }

    #[test]
    fn a_grpc_status_is_the_upstreams_fault_if_the_list_says_so() {
        let classifier = Classifier::new(&Settings::default());
        let cases = [
            ("OK", Verdict::Success),
            ("NOT_FOUND", Verdict::Success),
            ("UNAVAILABLE", Verdict::Failure),
            ("DEADLINE_EXCEEDED", Verdict::Failure),
            ("RESOURCE_EXHAUSTED", Verdict::Throttled),
        ];
        for (name, verdict) in cases {
            assert_eq!(classifier.grpc(grpc_code(name).expect(name)), verdict, "{name}");
        }
        assert_eq!(classifier.grpc(200), Verdict::Failure, "a code that gRPC does not know is UNKNOWN");
    }

    #[test]
    fn what_outrigger_answered_itself_is_no_evidence() {
        let classifier = Classifier::new(&Settings::default());
        let breaks = [Reason::UpstreamReset, Reason::ProtocolError, Reason::UpstreamStalled];
        let ends = [
            Reason::AttemptTimeout,
            Reason::RequestTimeout,
            Reason::DeadlineExceeded,
            Reason::ClientDisconnected,
        ];
        for reason in Reason::ALL {
            let early = if breaks.contains(&reason) { Verdict::Failure } else { Verdict::Ignored };
            let late = if ends.contains(&reason) { Verdict::Failure } else { early };
            assert_eq!(classifier.reason(reason, false), early, "{} early", reason.label());
            assert_eq!(classifier.reason(reason, true), late, "{} late", reason.label());
        }
    }

    #[test]
    fn grpc_names_are_at_their_codes() {
        let names = [
            (0, "OK"),
            (1, "CANCELLED"),
            (8, "RESOURCE_EXHAUSTED"),
            (14, "UNAVAILABLE"),
            (16, "UNAUTHENTICATED"),
        ];
        for (code, name) in names {
            assert_eq!((grpc_name(code), grpc_code(name)), (name, Some(code)));
        }
        assert_eq!((grpc_name(17), grpc_code("TEAPOT")), ("UNKNOWN", None));
    }

    proptest! {
        #[test]
        fn whatever_is_written_parses_to_itself_or_is_refused(text in "!?[0-9]?[0-9xX]{0,3}|.{0,5}") {
            if let Ok(pattern) = text.parse::<StatusPattern>() {
                prop_assert_eq!(pattern.to_string(), text.to_lowercase());
            }
        }

        /// Against the list read in the plainest way.
        #[test]
        fn a_set_holds_what_its_list_says(list in prop::collection::vec("!?[2-5](xx|[0-9]{2})", 0..8), status in 200u16..600) {
            let says = |out: bool| {
                list.iter().any(|text| {
                    let bare = text.trim_start_matches('!');
                    let matches = bare == status.to_string() || bare == format!("{}xx", status / 100);
                    matches && text.starts_with('!') == out
                })
            };
            let set: StatusSet = list.iter().map(|text| text.parse::<StatusPattern>().expect(text)).collect();
            prop_assert_eq!(set.contains(status), says(false) && !says(true));
        }
    }
}
