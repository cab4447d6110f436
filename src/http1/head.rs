//! Heads: the request line or status line with the fields that follow, and what they mean for the message.
//!
//! httparse finds the tokens and refuses what is none. On top of it stands here what it tolerates: bare LF as a
//! line end, any number of empty lines in front, any order and number of fields. What the target and the
//! framing may be is next door ([`target`], [`framing`](super::framing)).
//!
//! A head that came in one piece is tokenised at once. One that trickles in is scanned for line ends, each byte
//! once, and tokenised when its first line and when all of it is there: so a slow sender costs no more than a
//! fast one, and obvious nonsense (another protocol, bare LF) is refused without waiting for its end.
//!
//! The text is copied into the head as a whole, and fields are places in it: the read buffer is free again at once,
//! and nothing is allocated once the buffers are warm. Rejected: keeping the read buffer as a shared
//! slice; it would pin the body's first bytes with it.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::field::{self, Fields, Name, is_in_any_case};
use super::framing::Signals;
pub use super::framing::{Framing, Version};
pub use super::target::Form;
use super::target::{self, Asking};
use crate::reason::Reason;

#[cfg(test)]
mod tests;

/// The bounds of a head.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes, from the first of the first line to the end of the empty line after the fields.
    pub max_size: usize,
    /// Fields.
    pub max_fields: usize,
}

/// What parsing came to, if nothing is wrong.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// The head is not complete; nothing is consumed.
    Partial,
    /// The head is complete and took the first `size` bytes of the input.
    Head {
        /// Bytes of the input, empty lines in front included.
        size: usize,
    },
}

/// Why a message is not accepted. The connection can't go on: where the next message begins is unknown.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// `BadRequest` or `HeaderTooLarge` for a request, `ProtocolError` for a response.
    pub reason: Reason,
    /// What exactly is wrong, for log and answer.
    pub detail: &'static str,
}

impl Refusal {
    const fn bad_request(detail: &'static str) -> Self {
        Self { reason: Reason::BadRequest, detail }
    }

    const fn protocol_error(detail: &'static str) -> Self {
        Self { reason: Reason::ProtocolError, detail }
    }
}

/// A request's method, as far as it makes a difference here.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // each is the method that it says
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Connect,
    Trace,
    /// Any other token; see [`RequestHead::method_text`].
    Other,
}

impl Method {
    /// The method of this name. Methods have a case (RFC 9110 §9.1).
    #[inline]
    pub fn of(text: &[u8]) -> Method {
        match text {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"CONNECT" => Method::Connect,
            b"TRACE" => Method::Trace,
            _ => Method::Other,
        }
    }

    /// What the target of a request with this method may be.
    const fn asking(self) -> Asking {
        match self {
            Method::Options => Asking::Options,
            Method::Connect => Asking::Connect,
            _ => Asking::Other,
        }
    }
}

/// The head of a request. Reused from request to request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The client's version.
    pub version: Version,
    /// The form of the target.
    pub form: Form,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client lets the connection live on after this exchange.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The fields, `Host` among them: as sent, and in absolute form not what counts
    /// ([`RequestHead::authority`]).
    pub fields: Fields,
    method_text: Range<u32>,
    target: Range<u32>,
    path_and_query: Range<u32>,
    authority: Range<u32>,
    host_length: u32,
    names_fields: bool,
    arrival: Arrival,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestHead {
    /// A head without content; allocates nothing.
    pub const fn new() -> Self {
        Self {
            method: Method::Other,
            version: Version::Http11,
            form: Form::Origin,
            framing: Framing::None,
            keep_alive: false,
            expect_continue: false,
            fields: Fields::new(),
            method_text: 0..0,
            target: 0..0,
            path_and_query: 0..0,
            authority: 0..0,
            host_length: 0,
            names_fields: false,
            arrival: Arrival::new(),
        }
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::new() };
    }

    /// Reads a request head from the beginning of `input`.
    ///
    /// `scanned` is how many bytes of `input` earlier calls have looked at: 0 for a new head, and after that what
    /// the last call left there, while `input` only grows. After a refusal the content is unspecified.
    pub fn parse(&mut self, input: &[u8], scanned: &mut usize, limits: &Limits) -> Result<Parsed, Refusal> {
        let window = &input[..input.len().min(limits.max_size)];
        let start = skip_empty_lines(window).map_err(Refusal::bad_request)?;
        let look = self.arrival.look(window, start, scanned).map_err(Refusal::bad_request)?;
        if look || window.len() == limits.max_size {
            let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
            let mut many;
            let text = &window[start..];
            let mut request = httparse::Request::new(&mut []);
            let room = limits.max_fields.min(USUAL_FIELDS);
            let mut tokens = request.parse_with_uninit_headers(text, &mut few[..room]);
            if tokens == Err(httparse::Error::TooManyHeaders) && limits.max_fields > room {
                many = vec![MaybeUninit::uninit(); limits.max_fields];
                tokens = request.parse_with_uninit_headers(text, &mut many);
            }
            match tokens {
                Ok(httparse::Status::Complete(size)) => {
                    self.accept(&text[..size], &request).map_err(Refusal::bad_request)?;
                    return Ok(Parsed::Head { size: start + size });
                }
                Ok(httparse::Status::Partial) => {}
                Err(httparse::Error::TooManyHeaders) => {
                    return Err(Refusal { reason: Reason::HeaderTooLarge, detail: "too many fields" });
                }
                Err(error) => return Err(Refusal::bad_request(describe(error, request.method.is_some()))),
            }
        }
        if window.len() == limits.max_size {
            return Err(Refusal { reason: Reason::HeaderTooLarge, detail: "the head is too large" });
        }
        self.arrival.wait(window, start, scanned).map_err(Refusal::bad_request)?;
        Ok(Parsed::Partial)
    }

    /// Takes over a complete head whose tokens have been found in `text`.
    fn accept(&mut self, text: &[u8], tokens: &httparse::Request<'_, '_>) -> Result<(), &'static str> {
        let (Some(method), Some(uri), Some(minor)) = (tokens.method, tokens.path, tokens.version) else {
            return Err("the request line is incomplete");
        };
        self.fields.clear();
        self.fields.append(text);
        self.version = version(minor);
        self.method = Method::of(method.as_bytes());
        self.method_text = place(text, method.as_bytes());
        self.target = place(text, uri.as_bytes());

        let (mut signals, mut host) = (Signals::default(), None);
        self.expect_continue = false;
        let expectations = self.version == Version::Http11;
        take_fields(&mut self.fields, text, tokens.headers, |known, value| {
            match known {
                Name::Host => {
                    if host.is_some() {
                        return Err("more than one Host");
                    }
                    host = Some((place(text, value), target::check_authority(value)? as u32));
                }
                // RFC 9110 §10.1.1: ignored in HTTP/1.0; other expectations may be.
                Name::Expect => {
                    self.expect_continue |= expectations && is_in_any_case(value, b"100-continue");
                }
                _ => signals.note(known, value)?,
            }
            Ok(())
        })?;

        self.framing = signals.request(self.version)?;
        self.keep_alive = signals.keeps_alive(self.version);
        self.names_fields = signals.names_fields;
        if host.is_none() && self.version == Version::Http11 {
            return Err("HTTP/1.1 without Host");
        }
        (self.authority, self.host_length) = host.unwrap_or((0..0, 0));
        self.aim(uri.as_bytes())
    }

    /// Sets what the target says, which overrides `Host` where it names an authority (RFC 9112 §3.2.2).
    fn aim(&mut self, uri: &[u8]) -> Result<(), &'static str> {
        let asking = self.method.asking();
        let parts = target::parse(uri, asking)?;
        let within =
            |part: &Range<usize>| self.target.start + part.start as u32..self.target.start + part.end as u32;
        self.form = parts.form;
        self.path_and_query = within(&parts.path_and_query);
        if matches!(parts.form, Form::Absolute | Form::Authority) {
            self.authority = within(&parts.authority);
            self.host_length = parts.host_length as u32;
        }
        if parts.form == Form::Absolute && uri.get(parts.path_and_query.start) != Some(&b'/') {
            let rest = &uri[parts.path_and_query];
            // RFC 9112 §3.2.4: OPTIONS for a URI without path and query means the server as a whole.
            let path: &[u8] = if asking == Asking::Options && rest.is_empty() { b"*" } else { b"/" };
            let path = self.fields.append(path);
            self.path_and_query = path.start..self.fields.append(rest).end;
        }
        Ok(())
    }

    /// Makes a head out of the parts of an HTTP/2 request, as if it had come by HTTP/1.1. `Host` is pushed from the
    /// authority; the other fields follow by [`RequestHead::build_field`].
    pub fn build(
        &mut self,
        method: &[u8],
        path_and_query: &[u8],
        authority: &[u8],
        framing: Framing,
    ) -> Result<(), Refusal> {
        debug_assert_ne!(framing, Framing::UntilClose, "a request's body does not end that way");
        self.clear();
        if !field::is_token(method) {
            return Err(Refusal::bad_request("malformed method"));
        }
        self.method = Method::of(method);
        self.framing = framing;
        self.keep_alive = true;
        self.method_text = self.fields.append(method);
        self.target = self.fields.append(path_and_query);
        self.aim(path_and_query).map_err(Refusal::bad_request)?;
        if !matches!(self.form, Form::Origin | Form::Asterisk) {
            return Err(Refusal::bad_request("malformed path"));
        }
        self.host_length = target::check_authority(authority).map_err(Refusal::bad_request)? as u32;
        self.authority = self.fields.append(authority);
        let name = self.fields.append(Name::Host.text().as_bytes());
        self.fields.enter(Name::Host, name, self.authority.clone());
        Ok(())
    }

    /// Adds a field of an HTTP/2 request. Refuses what may not come that way (RFC 9113 §8.2): names that are no
    /// tokens, control characters, and fields about the connection. `Host` is left out, the authority counts;
    /// `Content-Length` must say what [`RequestHead::build`] was told.
    pub fn build_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let known = Name::of(name);
        if !field::is_token(name) || name.len() > Fields::MAX_NAME || !field::is_value(value) {
            return Err(Refusal::bad_request("malformed field"));
        }
        let value = field::trim(value);
        match known {
            Name::Host => return Ok(()),
            Name::Te if is_in_any_case(value, b"trailers") => {}
            Name::Te
            | Name::Connection
            | Name::KeepAlive
            | Name::ProxyConnection
            | Name::TransferEncoding
            | Name::Upgrade => return Err(Refusal::bad_request("a field about the connection in HTTP/2")),
            Name::ContentLength => {
                let mut signals = Signals::default();
                signals.note(known, value).map_err(Refusal::bad_request)?;
                if self.fields.has(known) || signals.request(self.version) != Ok(self.framing) {
                    return Err(Refusal::bad_request("Content-Length does not fit the body"));
                }
            }
            // HTTP/2 has no 100-continue of its own, but RFC 9110 §10.1.1 holds there too.
            Name::Expect => self.expect_continue |= is_in_any_case(value, b"100-continue"),
            _ => {}
        }
        self.fields.push(known, name, value);
        Ok(())
    }

    /// The method as sent.
    pub fn method_text(&self) -> &[u8] {
        self.fields.text(&self.method_text)
    }

    /// The target as sent.
    pub fn target(&self) -> &[u8] {
        self.fields.text(&self.target)
    }

    /// Path and query as an origin server gets them: begins with `/`, or is `*`. Empty for CONNECT.
    pub fn path_and_query(&self) -> &[u8] {
        self.fields.text(&self.path_and_query)
    }

    /// The authority that the request is for: the target's, else `Host`. Empty in an HTTP/1.0 request that names
    /// none.
    pub fn authority(&self) -> &[u8] {
        self.fields.text(&self.authority)
    }

    /// The authority without its port.
    pub fn host(&self) -> &[u8] {
        self.fields.text(&(self.authority.start..self.authority.start + self.host_length))
    }

    /// Whether `Connection` names this field, so that it ends here (RFC 9110 §7.6.1). What always ends here
    /// ([`Name::is_hop_by_hop`]) may be left out; `Host` and `Content-Length` never end here, whoever names them.
    pub fn is_connection_option(&self, name: &[u8]) -> bool {
        self.names_fields && is_named_by_connection(&self.fields, name)
    }
}

/// The head of a response. Reused from response to response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// From 100 to 999. What is above 599 is no status, but RFC 9110 §15 has it taken for a server's error.
    pub status: u16,
    /// The upstream's version.
    pub version: Version,
    /// Where the body ends. `None` for 1xx, 204, 304 and the answer to HEAD.
    pub framing: Framing,
    /// Whether the upstream lets the connection live on after this exchange.
    pub keep_alive: bool,
    /// The fields. In answer to HEAD and with 304, `Content-Length` is among them and says nothing about this
    /// message; from 1xx and 204 it is taken out.
    pub fields: Fields,
    reason_phrase: Range<u32>,
    names_fields: bool,
    arrival: Arrival,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new()
    }
}

impl ResponseHead {
    /// A head without content; allocates nothing.
    pub const fn new() -> Self {
        Self {
            status: 0,
            version: Version::Http11,
            framing: Framing::None,
            keep_alive: false,
            fields: Fields::new(),
            reason_phrase: 0..0,
            names_fields: false,
            arrival: Arrival::new(),
        }
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::new() };
    }

    /// Reads a response head from the beginning of `input`; `scanned` as for [`RequestHead::parse`].
    ///
    /// An interim response (1xx) is a head of its own, after which the caller reads on for the final one.
    pub fn parse(
        &mut self,
        input: &[u8],
        scanned: &mut usize,
        request_is_head: bool,
        limits: &Limits,
    ) -> Result<Parsed, Refusal> {
        let window = &input[..input.len().min(limits.max_size)];
        if let Some(b'\r' | b'\n') = window.first() {
            return Err(Refusal::protocol_error("an empty line before the status line"));
        }
        let look = self.arrival.look(window, 0, scanned).map_err(Refusal::protocol_error)?;
        if look || window.len() == limits.max_size {
            let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
            let mut many;
            let mut response = httparse::Response::new(&mut []);
            let config = httparse::ParserConfig::default();
            let room = limits.max_fields.min(USUAL_FIELDS);
            let mut tokens =
                config.parse_response_with_uninit_headers(&mut response, window, &mut few[..room]);
            if tokens == Err(httparse::Error::TooManyHeaders) && limits.max_fields > room {
                many = vec![MaybeUninit::uninit(); limits.max_fields];
                tokens = config.parse_response_with_uninit_headers(&mut response, window, &mut many);
            }
            match tokens {
                Ok(httparse::Status::Complete(size)) => {
                    self.accept(&window[..size], &response, request_is_head)
                        .map_err(Refusal::protocol_error)?;
                    return Ok(Parsed::Head { size });
                }
                Ok(httparse::Status::Partial) => {}
                Err(error) => return Err(Refusal::protocol_error(describe(error, true))),
            }
        }
        if window.len() == limits.max_size {
            return Err(Refusal::protocol_error("the head is too large"));
        }
        self.arrival.wait(window, 0, scanned).map_err(Refusal::protocol_error)?;
        Ok(Parsed::Partial)
    }

    /// Takes over a complete head whose tokens have been found in `text`.
    fn accept(
        &mut self,
        text: &[u8],
        tokens: &httparse::Response<'_, '_>,
        request_is_head: bool,
    ) -> Result<(), &'static str> {
        let (Some(minor), Some(status)) = (tokens.version, tokens.code) else {
            return Err("the status line is incomplete");
        };
        if status < 100 {
            return Err("a status below 100");
        }
        self.fields.clear();
        self.fields.append(text);
        self.version = version(minor);
        self.status = status;
        // httparse gives none where it is not ASCII; the standard one takes its place then.
        self.reason_phrase = place(text, tokens.reason.unwrap_or_default().as_bytes());

        let mut signals = Signals::default();
        take_fields(&mut self.fields, text, tokens.headers, |known, value| signals.note(known, value))?;
        let (framing, reusable) = signals.response(self.version, status, request_is_head)?;
        if matches!(status, 100..=199 | 204) {
            // RFC 9110 §8.6: it may not be there, and would have the next reader wait for a body.
            self.fields.remove(Name::ContentLength);
        }
        self.framing = framing;
        self.keep_alive = reusable && signals.keeps_alive(self.version);
        self.names_fields = signals.names_fields;
        Ok(())
    }

    /// Makes a head out of the parts of an HTTP/2 answer, as if it had come by HTTP/1.1. `ends`: nothing follows it.
    /// Fields about the connection are left out.
    ///
    /// # Errors
    /// A status below 100, a malformed field or `Content-Length`, one of 1xx that announces a body.
    pub fn build<'a>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        ends: bool,
        request_is_head: bool,
    ) -> Result<(), Refusal> {
        self.clear();
        if status < 100 {
            return Err(Refusal::protocol_error("a status below 100"));
        }
        self.status = status;
        let mut signals = Signals::default();
        for (name, value) in fields {
            let known = Name::of(name);
            // What the endpoint says to us comes by HTTP/2 too, and ends here all the same.
            if known.is_hop_by_hop() && known != Name::XOutriggerImmediateFail {
                continue;
            }
            if !field::is_token(name) || name.len() > Fields::MAX_NAME || !field::is_value(value) {
                return Err(Refusal::protocol_error("malformed field"));
            }
            let value = field::trim(value);
            signals.note(known, value).map_err(Refusal::protocol_error)?;
            self.fields.push(known, name, value);
        }
        let (framing, _) =
            signals.response(self.version, status, request_is_head).map_err(Refusal::protocol_error)?;
        if matches!(status, 100..=199 | 204) {
            self.fields.remove(Name::ContentLength);
        }
        self.framing = match framing {
            Framing::UntilClose if ends => Framing::Length(0),
            Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        self.keep_alive = true;
        Ok(())
    }

    /// The reason phrase as sent; may be empty.
    pub fn reason_phrase(&self) -> &[u8] {
        self.fields.text(&self.reason_phrase)
    }

    /// Whether `Connection` names this field; as [`RequestHead::is_connection_option`].
    pub fn is_connection_option(&self, name: &[u8]) -> bool {
        self.names_fields && is_named_by_connection(&self.fields, name)
    }
}

/// So many fields are found without allocating. Heads with more cost one allocation each.
const USUAL_FIELDS: usize = 128;

/// Empty lines that are skipped before a request line. RFC 9112 §2.2 asks for at least one (old clients sent one
/// after a body); no client sends more than two.
const MAX_EMPTY_LINES: usize = 2;

/// Where the first line begins, after a few empty ones; there may be nothing yet from there on but half an empty
/// line.
fn skip_empty_lines(window: &[u8]) -> Result<usize, &'static str> {
    let mut start = 0;
    // PERF: the usual request begins with a letter.
    while let Some(&first @ (b'\r' | b'\n')) = window.get(start) {
        match window.get(start + 1) {
            _ if first == b'\n' => return Err("bare LF"),
            _ if start == 2 * MAX_EMPTY_LINES => return Err("empty lines before the request line"),
            Some(b'\n') => start += 2,
            Some(_) => return Err("bare CR"),
            None => break,
        }
    }
    Ok(start)
}

/// How far a head that comes in several pieces has come.
#[derive(Clone, Debug)]
struct Arrival {
    /// Whether the end of its first line has been seen.
    first_line: bool,
}

impl Arrival {
    const fn new() -> Self {
        Self { first_line: false }
    }

    /// Whether it is worth tokenising what is there: at the first look, when the first line has become complete,
    /// and when the head has.
    fn look(&mut self, window: &[u8], start: usize, scanned: &mut usize) -> Result<bool, &'static str> {
        if *scanned == 0 {
            self.first_line = false;
            return Ok(!matches!(window.get(start), None | Some(b'\r')));
        }
        let seen = scan(window, start, *scanned)?;
        *scanned = window.len();
        let is_first_line = seen.line && !self.first_line;
        self.first_line |= seen.line;
        Ok(is_first_line || seen.end)
    }

    /// The head is not complete: notes how far it has come, and refuses a line that ends in a bare LF.
    fn wait(&mut self, window: &[u8], start: usize, scanned: &mut usize) -> Result<(), &'static str> {
        if *scanned == 0 {
            self.first_line = scan(window, start, 0)?.line;
        }
        *scanned = window.len();
        Ok(())
    }
}

/// Which ends of lines [`scan`] saw.
struct Seen {
    /// Any.
    line: bool,
    /// That of the empty line after the fields.
    end: bool,
}

/// Looks at the line ends in `window[from..]`, in a head that begins at `start`.
fn scan(window: &[u8], start: usize, from: usize) -> Result<Seen, &'static str> {
    let mut seen = Seen { line: false, end: false };
    let mut at = from.max(start);
    while let Some(newline) = window[at.min(window.len())..].iter().position(|&byte| byte == b'\n') {
        let line_end = at + newline;
        if line_end == start || window[line_end - 1] != b'\r' {
            return Err("bare LF");
        }
        seen.line = true;
        if line_end >= start + 3 && window[line_end - 2] == b'\n' {
            // What stands behind is not the head's.
            seen.end = true;
            break;
        }
        at = line_end + 1;
    }
    Ok(seen)
}

/// The place of `part` in `whole`, of which it is a slice. An empty part may lie elsewhere; it stands at 0.
#[inline]
fn place(whole: &[u8], part: &[u8]) -> Range<u32> {
    if part.is_empty() {
        return 0..0;
    }
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start as u32..(start + part.len()) as u32
}

const fn version(minor: u8) -> Version {
    if minor == 0 { Version::Http10 } else { Version::Http11 }
}

/// Enters the fields that httparse found in `text`, which `fields` holds from its beginning, and shows each that has
/// a known name to `note`. Refuses what httparse tolerates: lines that end in a bare LF.
fn take_fields(
    fields: &mut Fields,
    text: &[u8],
    tokens: &[httparse::Header<'_>],
    mut note: impl FnMut(Name, &[u8]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    // httparse ends a line at CRLF or LF and leaves nothing else between two lines, so that two bytes before each line
    // there is a CR or there is a bare LF.
    if !text.ends_with(b"\r\n") || text.len() >= 4 && text[text.len() - 4] != b'\r' {
        return Err("bare LF");
    }
    fields.reserve(tokens.len());
    for token in tokens {
        let name = place(text, token.name.as_bytes());
        if name.start >= 2 && text[name.start as usize - 2] != b'\r' {
            return Err("bare LF");
        }
        if token.name.len() > Fields::MAX_NAME {
            return Err("the name of a field is too long");
        }
        let known = Name::of(token.name.as_bytes());
        fields.enter(known, name, place(text, token.value));
        if known != Name::Other {
            note(known, token.value)?;
        }
    }
    Ok(())
}

/// Reads a whole trailer section, its closing empty line included, into `fields`; `known` fields that may not
/// stand there are refused or left out. Lines must have been seen to end in CRLF.
pub(super) fn parse_trailers(
    fields: &mut Fields,
    text: &[u8],
    max_fields: usize,
) -> Result<(), &'static str> {
    let mut room = vec![httparse::EMPTY_HEADER; max_fields];
    let tokens = match httparse::parse_headers(text, &mut room) {
        Ok(httparse::Status::Complete((size, tokens))) if size == text.len() => tokens,
        Ok(_) => return Err("malformed trailers"),
        Err(httparse::Error::TooManyHeaders) => return Err("too many trailers"),
        Err(_) => return Err("malformed trailers"),
    };
    for token in tokens {
        let name = token.name.as_bytes();
        let known = Name::of(name);
        match known {
            // RFC 9110 §6.5.1. A reader that merges trailers into the head would frame or route anew.
            Name::ContentLength | Name::TransferEncoding | Name::Host => {
                return Err("a framing field among the trailers");
            }
            // They would end here anyway, and speak too late to be obeyed.
            _ if known.is_hop_by_hop() || known == Name::Expect => {}
            _ if name.len() > Fields::MAX_NAME => return Err("the name of a trailer is too long"),
            _ => fields.push(known, name, token.value),
        }
    }
    Ok(())
}

/// Whether a `Connection` field names `name`. `Host` and `Content-Length` are not the connection's to end: they say
/// what the message is.
fn is_named_by_connection(fields: &Fields, name: &[u8]) -> bool {
    !matches!(Name::of(name), Name::Host | Name::ContentLength)
        && fields.all(Name::Connection).flat_map(field::list).any(|option| option.eq_ignore_ascii_case(name))
}

/// What httparse's error means here.
#[cold]
fn describe(error: httparse::Error, has_method: bool) -> &'static str {
    match error {
        httparse::Error::HeaderName => "malformed name of a field",
        httparse::Error::HeaderValue => "malformed value of a field",
        httparse::Error::NewLine => "malformed line end",
        httparse::Error::Status => "malformed status line",
        httparse::Error::Token if has_method => "malformed request target",
        httparse::Error::Token => "malformed method",
        httparse::Error::TooManyHeaders => "too many fields",
        httparse::Error::Version => "unknown protocol version",
    }
}
