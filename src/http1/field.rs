//! The fields of a head or of a trailer section, and the names among them that somebody here looks at.
//!
//! The text of a message stands in one buffer, the fields are places in it: a head is copied once, as a whole,
//! and nothing is allocated once the buffers are warm. One pass over the fields resolves the known names, and a
//! bitmap says at once whether one is there. Not here: what a field means ([`framing`](super::framing) and the
//! rooms above).
//!
//! Rejected: a hash map by name (most requests have a dozen fields, each looked at once or never), and interned
//! or lower-cased names: fields go on as they came.

use std::ops::Range;

/// Declares [`Name`] with its texts.
macro_rules! names {
    ($($name:ident = $text:literal,)*) => {
        /// The name of a field that somebody in Outrigger looks at; all others are `Other`.
        #[repr(u8)]
        #[derive(Copy, Clone, PartialEq, Eq, Debug)]
        #[allow(missing_docs)] // each is the name that it says
        pub enum Name { $($name,)* Other }

        impl Name {
            /// Every name but `Other`, in the order of their discriminants.
            pub const ALL: &[Name] = &[$(Name::$name,)*];
            /// The text of every name, by discriminant; nothing for `Other`.
            const TEXTS: &[&str] = &[$($text,)* ""];
        }
    };
}

names! {
    Host = "host",
    Connection = "connection",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    Te = "te",
    Trailer = "trailer",
    TransferEncoding = "transfer-encoding",
    Upgrade = "upgrade",
    ContentLength = "content-length",
    ContentType = "content-type",
    Expect = "expect",
    RetryAfter = "retry-after",
    Date = "date",
    Via = "via",
    XForwardedFor = "x-forwarded-for",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XRequestId = "x-request-id",
    XRequestTimeoutMs = "x-request-timeout-ms",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    XRetryAttempt = "x-retry-attempt",
    XPriority = "x-priority",
    XOutriggerPath = "x-outrigger-path",
    XOutriggerImmediateFail = "x-outrigger-immediate-fail",
    XOutriggerCutoff = "x-outrigger-cutoff",
    XOutriggerShed = "x-outrigger-shed",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    IdempotencyKey = "idempotency-key",
    GrpcTimeout = "grpc-timeout",
    GrpcStatus = "grpc-status",
    GrpcMessage = "grpc-message",
    GrpcRetryPushbackMs = "grpc-retry-pushback-ms",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthorization = "proxy-authorization",
    Http2Settings = "http2-settings",
    CacheControl = "cache-control",
}

/// For each hash of length, first and last byte the one known name that has it.
static SLOTS: [Name; 256] = slots();

/// The place of a name in [`SLOTS`]; length, first and last byte tell all known names apart.
const fn slot(length: usize, first: u8, last: u8) -> usize {
    (length * 3 + (first | 0x20) as usize * 35 + (last | 0x20) as usize) % 256
}

/// Fills [`SLOTS`] when this is compiled; a new name that collides does not compile (choose other factors).
const fn slots() -> [Name; 256] {
    let mut slots = [Name::Other; 256];
    let mut index = 0;
    while index < Name::ALL.len() {
        let text = Name::ALL[index].text().as_bytes();
        let slot = slot(text.len(), text[0], text[text.len() - 1]);
        assert!(matches!(slots[slot], Name::Other), "two known names share a slot");
        slots[slot] = Name::ALL[index];
        index += 1;
    }
    slots
}

impl Name {
    /// The known name that `name` is, in any case of its letters.
    #[inline]
    pub fn of(name: &[u8]) -> Name {
        let (Some(&first), Some(&last)) = (name.first(), name.last()) else { return Name::Other };
        // One candidate, one comparison; most unknown names already differ from it in length.
        let candidate = SLOTS[slot(name.len(), first, last)];
        if is_in_any_case(name, candidate.text().as_bytes()) { candidate } else { Name::Other }
    }

    /// The name in lower case; empty for `Other`.
    #[inline]
    pub const fn text(self) -> &'static str {
        Self::TEXTS[self as usize]
    }

    /// Whether the field concerns this connection alone and ends here (RFC 9110 §7.6.1), whatever `Connection`
    /// says. `Te` is among them: who wants trailers from the next hop asks for them anew. So is what an endpoint says
    /// of itself to Outrigger.
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Name::Connection
                | Name::KeepAlive
                | Name::ProxyConnection
                | Name::Te
                | Name::Trailer
                | Name::TransferEncoding
                | Name::Upgrade
                | Name::ProxyAuthenticate
                | Name::ProxyAuthorization
                | Name::Http2Settings
                | Name::XOutriggerImmediateFail
        )
    }

    /// The name's bit in [`Fields::present`].
    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// One field of a message, as it came; the value without the whitespace around it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Field<'a> {
    /// Which known name it is.
    pub known: Name,
    /// The name as it was sent.
    pub name: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

/// Where a field stands in the text of its message.
#[derive(Copy, Clone, Debug)]
struct Entry {
    known: Name,
    name_length: u16,
    name_start: u32,
    value_start: u32,
    value_length: u32,
}

/// The fields of one message, in their order. Reused from message to message: `clear` keeps the memory.
///
/// Its bound is the limits that the parser was given, or, where fields are pushed, the caller's.
#[derive(Clone, Default, Debug)]
pub struct Fields {
    /// The text in which the fields stand. A parsed head stands here as a whole.
    text: Vec<u8>,
    entries: Vec<Entry>,
    /// A bit for each known name that is there.
    present: u64,
}

impl Fields {
    /// The longest name. Real ones have some dozen bytes; more does not fit an entry.
    pub const MAX_NAME: usize = u16::MAX as usize - 1;

    /// No fields, no memory.
    pub const fn new() -> Self {
        Self { text: Vec::new(), entries: Vec::new(), present: 0 }
    }

    /// Forgets all fields and keeps the memory.
    #[inline]
    pub fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
        self.present = 0;
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a field at the end. `known` is [`Name::of`] the name, which callers mostly know.
    ///
    /// The name must be a token of at most [`Fields::MAX_NAME`] bytes and the value free of control characters:
    /// this is not checked in release builds, since what comes from a parser has been.
    pub fn push(&mut self, known: Name, name: &[u8], value: &[u8]) {
        debug_assert!(is_token(name) && name.len() <= Self::MAX_NAME, "not a name: {name:?}");
        debug_assert!(is_value(value), "not a value: {value:?}");
        debug_assert_eq!(known, Name::of(name));
        let name = self.append(name);
        let value = self.append(value);
        self.enter(known, name, value);
    }

    /// All fields in their order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| self.field(entry))
    }

    /// Whether a field of this name is there.
    #[inline]
    pub fn has(&self, known: Name) -> bool {
        self.present & known.bit() != 0
    }

    /// The value of the first field of this name.
    #[inline]
    pub fn get(&self, known: Name) -> Option<&[u8]> {
        self.all(known).next()
    }

    /// The values of all fields of this name, in their order. Costs nothing where there are none.
    #[inline]
    pub fn all(&self, known: Name) -> impl Iterator<Item = &[u8]> {
        let entries = if self.has(known) { self.entries.as_slice() } else { &[] };
        entries.iter().filter(move |entry| entry.known == known).map(|entry| self.field(entry).value)
    }

    /// The values of all fields of any `name`, without regard to case, in their order.
    pub fn find<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let known = Name::of(name);
        let entries = if self.has(known) { self.entries.as_slice() } else { &[] };
        entries
            .iter()
            .filter(move |entry| entry.known == known)
            .map(|entry| self.field(entry))
            .filter(move |field| known != Name::Other || field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// Takes all fields of this name out.
    pub fn remove(&mut self, known: Name) {
        if self.has(known) {
            self.entries.retain(|entry| entry.known != known);
            self.present &= !known.bit();
        }
    }

    /// Puts one field of this known name in the place of all that there are.
    pub fn set(&mut self, known: Name, value: &[u8]) {
        self.remove(known);
        self.push(known, known.text().as_bytes(), value);
    }

    /// Writes the fields that `keep` wants as lines of a head. Those that came in a head go on as they stood there,
    /// with the white space around their values, and neighbours in one copy.
    ///
    /// PERF: 47 instructions less for each field than writing it by name and value (`benches/codec.rs`).
    pub fn write(&self, out: &mut Vec<u8>, mut keep: impl FnMut(&Field<'_>) -> bool) {
        let mut run = 0..0;
        for entry in &self.entries {
            let field = self.field(entry);
            if !keep(&field) {
                continue;
            }
            match self.line(entry) {
                Some(line) if line.start == run.end => run.end = line.end,
                Some(line) => out.extend_from_slice(&self.text[std::mem::replace(&mut run, line)]),
                None => {
                    out.extend_from_slice(&self.text[std::mem::take(&mut run)]);
                    write_field(out, field.name, field.value);
                }
            }
        }
        out.extend_from_slice(&self.text[run]);
    }

    /// Where the whole line of a field stands, CRLF included, if it came in a head, has a value and no white space at
    /// its end.
    #[inline]
    fn line(&self, entry: &Entry) -> Option<Range<usize>> {
        let name_end = entry.name_start + u32::from(entry.name_length);
        let value_end = (entry.value_start + entry.value_length) as usize;
        // A pushed field has nothing between its name and its value; an empty value stands nowhere.
        let is_line =
            entry.value_start > name_end && self.text.get(value_end..value_end + 2) == Some(b"\r\n");
        is_line.then_some(entry.name_start as usize..value_end + 2)
    }

    /// The memory that it holds, in bytes.
    pub fn heap_size(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Puts text without fields in: a whole head, whose fields are then entered.
    pub(super) fn append(&mut self, text: &[u8]) -> Range<u32> {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(text);
        start..self.text.len() as u32
    }

    /// Makes room for so many more fields.
    pub(super) fn reserve(&mut self, fields: usize) {
        self.entries.reserve(fields);
    }

    /// Enters a field that stands in the text already.
    #[inline]
    pub(super) fn enter(&mut self, known: Name, name: Range<u32>, value: Range<u32>) {
        self.present |= known.bit();
        self.entries.push(Entry {
            known,
            name_length: (name.end - name.start) as u16,
            name_start: name.start,
            value_start: value.start,
            value_length: value.end - value.start,
        });
    }

    /// A piece of the text; nothing if the text has been cleared since.
    #[inline]
    pub(super) fn text(&self, range: &Range<u32>) -> &[u8] {
        self.text.get(range.start as usize..range.end as usize).unwrap_or_default()
    }

    #[inline]
    fn field(&self, entry: &Entry) -> Field<'_> {
        let (name, value) = (entry.name_start as usize, entry.value_start as usize);
        Field {
            known: entry.known,
            name: &self.text[name..name + entry.name_length as usize],
            value: &self.text[value..value + entry.value_length as usize],
        }
    }
}

/// Appends `name: value` and CRLF.
#[inline]
pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether `text` is `lower`, in any case of its letters. `lower` has none but lower-case letters, and otherwise
/// digits and such punctuation as lies below the letters (`-`, `/`, `:`).
///
/// PERF: 40 instructions for a name of 14 bytes, where `eq_ignore_ascii_case` takes 250.
#[inline]
pub(super) fn is_in_any_case(text: &[u8], lower: &[u8]) -> bool {
    /// Which bits differ beyond the one that tells upper from lower case, where `lower` has a letter: those
    /// are the bytes with the bit 0x40.
    #[inline]
    fn differing(text: u64, lower: u64) -> u64 {
        (text ^ lower) & !((lower & 0x4040_4040_4040_4040) >> 1)
    }
    debug_assert!(lower.iter().all(|&byte| byte < b'@' || byte.is_ascii_lowercase()));
    if text.len() != lower.len() {
        return false;
    }
    if let (Some(text_end), Some(lower_end)) = (text.last_chunk(), lower.last_chunk()) {
        // The last eight bytes, which may overlap with the eights before.
        let mut bits = differing(u64::from_ne_bytes(*text_end), u64::from_ne_bytes(*lower_end));
        for (text, lower) in text.as_chunks().0.iter().zip(lower.as_chunks().0) {
            bits |= differing(u64::from_ne_bytes(*text), u64::from_ne_bytes(*lower));
        }
        return bits == 0;
    }
    if let (Some(text_end), Some(lower_end)) = (text.last_chunk(), lower.last_chunk())
        && let (Some(text), Some(lower)) = (text.first_chunk(), lower.first_chunk())
    {
        let eight = |first: &[u8; 4], last: &[u8; 4]| {
            u64::from(u32::from_ne_bytes(*first)) << 32 | u64::from(u32::from_ne_bytes(*last))
        };
        return differing(eight(text, text_end), eight(lower, lower_end)) == 0;
    }
    text.iter().zip(lower).all(|(&text, &lower)| differing(text.into(), lower.into()) == 0)
}

/// Whether `text` is a token of RFC 9110 §5.6.2: a method, the name of a field.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Whether `text` may be the value of a field: visible bytes, spaces and tabs, obs-text; no other control
/// character. RFC 9110 §5.5.
pub fn is_value(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// The parts of a comma-separated list, trimmed; empty ones are left out. RFC 9110 §5.6.1. Not for lists
/// whose parts can be quoted strings.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|part| !part.is_empty())
}

/// `text` without spaces and tabs at its ends.
pub fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for &known in Name::ALL {
            let text = known.text();
            assert_eq!(Name::of(text.as_bytes()), known, "{text}");
            assert_eq!(Name::of(text.to_uppercase().as_bytes()), known, "{text}");
            let longer = format!("{text}x");
            assert_eq!(Name::of(longer.as_bytes()), Name::Other, "{longer}");
            assert_eq!(Name::of(&text.as_bytes()[1..]), Name::Other, "{text} cut");
        }
        assert_eq!(Name::of(b""), Name::Other);
    }

    #[test]
    fn only_letters_have_a_case() {
        // 0x0d | 0x20 is a hyphen, and 0x08 | 0x20 an opening parenthesis.
        assert_eq!(Name::of(b"content\x0dlength"), Name::Other);
        assert_eq!(Name::of(b"content_length"), Name::Other);
        assert_eq!(Name::of(b"http\x122-settings"), Name::Other);
    }

    #[test]
    fn comparing_without_case_is_exact() {
        // Each byte in each place against each length, with std as the model.
        let lower = b"x-envoy-expected-rq-timeout-ms:/0";
        for length in 0..=lower.len() {
            let lower = &lower[..length];
            assert!(is_in_any_case(lower, lower) && !is_in_any_case(&[lower, b"a"].concat(), lower));
            for place in 0..length {
                let mut text = lower.to_vec();
                for byte in 0..=255 {
                    text[place] = byte;
                    assert_eq!(is_in_any_case(&text, lower), text.eq_ignore_ascii_case(lower), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn fields_keep_their_order_and_answer_by_name() {
        let mut fields = Fields::new();
        fields.push(Name::Via, b"Via", b"1.1 a");
        fields.push(Name::Other, b"X-Tenant", b"blue");
        fields.push(Name::Via, b"via", b"1.1 b");

        assert_eq!(fields.len(), 3);
        assert!(fields.has(Name::Via) && !fields.has(Name::Host));
        assert_eq!(fields.get(Name::Via), Some(&b"1.1 a"[..]));
        assert_eq!(fields.get(Name::Host), None);
        assert_eq!(fields.all(Name::Via).collect::<Vec<_>>(), [b"1.1 a", b"1.1 b"]);
        assert_eq!(fields.find(b"x-tenant").collect::<Vec<_>>(), [b"blue"]);
        assert_eq!(fields.find(b"VIA").count(), 2);
        assert_eq!(fields.find(b"x-other").count(), 0);
        assert_eq!(
            fields.iter().map(|field| field.name).collect::<Vec<_>>(),
            [&b"Via"[..], b"X-Tenant", b"via"]
        );
    }

    #[test]
    fn what_is_set_stands_once_and_what_is_removed_is_gone() {
        let mut fields = Fields::new();
        fields.push(Name::Via, b"Via", b"1.1 a");
        fields.push(Name::Via, b"Via", b"1.1 b");
        fields.push(Name::Other, b"accept", b"*/*");
        fields.set(Name::Via, b"1.1 c");
        assert_eq!(fields.all(Name::Via).collect::<Vec<_>>(), [b"1.1 c"]);
        fields.remove(Name::Via);
        assert!(!fields.has(Name::Via) && fields.len() == 1);
    }

    #[test]
    fn cleared_fields_keep_their_memory() {
        let mut fields = Fields::new();
        fields.push(Name::Other, b"a", b"b");
        let size = fields.heap_size();
        fields.clear();
        assert!(fields.is_empty() && !fields.has(Name::Other));
        assert_eq!(fields.heap_size(), size);
    }

    #[test]
    fn lists_are_split_and_trimmed() {
        let parts = |value: &'static [u8]| list(value).collect::<Vec<_>>();
        assert_eq!(parts(b"a, b ,,\tc"), [b"a", b"b", b"c"]);
        assert!(parts(b" , ").is_empty());
    }
}
