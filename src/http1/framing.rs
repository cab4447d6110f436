//! Where the body of a message ends, and whether its connection lives on: RFC 9112 §6.3 and §9.3.
//!
//! The fields that decide are noted one by one; what they say together is settled once. Any ambiguity is an error:
//! `Content-Length` with `Transfer-Encoding` (§6.1 allows to go on with the latter; who sends both is broken or
//! attacking), a second `Content-Length` even if it says the same, codings other than a single `chunked`.

use super::field::{self, Name, is_in_any_case};

/// The version of a message. Nothing else is accepted: 1.2 does not exist, and a later major version means
/// another format.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Where the body of a message ends.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is none, and nothing says so in the message, or it is one that never has one.
    None,
    /// After so many bytes; may be 0. At most [`MAX_LENGTH`].
    Length(u64),
    /// With its last chunk and the trailers.
    Chunked,
    /// When the connection closes; responses only.
    UntilClose,
}

/// The largest length of a body or chunk: larger ones overflow where a peer counts in signed numbers.
pub const MAX_LENGTH: u64 = i64::MAX as u64;

/// What a message's fields have said so far about framing and the connection.
#[derive(Default, Debug)]
pub(super) struct Signals {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// Whether `Connection` names more than the connection's own end.
    pub names_fields: bool,
}

impl Signals {
    /// Takes note of a field. Those that say nothing here are ignored.
    #[inline]
    pub(super) fn note(&mut self, known: Name, value: &[u8]) -> Result<(), &'static str> {
        match known {
            Name::Connection => self.note_connection(value),
            Name::ContentLength => {
                let length = parse_length(value).ok_or("malformed Content-Length")?;
                if self.length.replace(length).is_some() {
                    return Err("more than one Content-Length");
                }
            }
            Name::TransferEncoding => {
                if std::mem::replace(&mut self.chunked, true) {
                    return Err("more than one Transfer-Encoding");
                }
                if !is_in_any_case(value, b"chunked") {
                    return Err("a Transfer-Encoding other than chunked");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn note_connection(&mut self, value: &[u8]) {
        // PERF: what nearly every `Connection` says; 100 instructions less.
        if is_in_any_case(value, b"keep-alive") {
            self.keep_alive = true;
            return;
        }
        for option in field::list(value) {
            if is_in_any_case(option, b"close") {
                self.close = true;
            } else if is_in_any_case(option, b"keep-alive") {
                self.keep_alive = true;
            } else {
                self.names_fields = true;
            }
        }
    }

    /// What the fields of a request say.
    pub(super) fn request(&self, version: Version) -> Result<Framing, &'static str> {
        Ok(self.explicit(version)?.unwrap_or(Framing::None))
    }

    /// What the fields of a response say, and whether nothing forbids to use its connection again.
    pub(super) fn response(
        &self,
        version: Version,
        status: u16,
        request_is_head: bool,
    ) -> Result<(Framing, bool), &'static str> {
        let explicit = self.explicit(version)?;
        let announces_body = matches!(explicit, Some(Framing::Length(1..) | Framing::Chunked));
        match status {
            // RFC 9110 §8.6 forbids them to announce a body. One that does may be about to send it, and the final
            // response that follows could not be told from it.
            100..=199 if announces_body => Err("an interim response that announces a body"),
            100..=199 => Ok((Framing::None, true)),
            // The same, but nothing follows: the response is good and its connection is not.
            204 if announces_body => Ok((Framing::None, false)),
            // Here the fields tell what a GET would have got.
            204 | 304 => Ok((Framing::None, true)),
            _ if request_is_head => Ok((Framing::None, true)),
            _ => Ok(match explicit {
                Some(framing) => (framing, true),
                None => (Framing::UntilClose, false),
            }),
        }
    }

    /// Whether sender and version let the connection live on after this message.
    pub(super) fn keeps_alive(&self, version: Version) -> bool {
        // RFC 9112 §9.3: close wins over keep-alive.
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    fn explicit(&self, version: Version) -> Result<Option<Framing>, &'static str> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err("Content-Length beside Transfer-Encoding"),
            // RFC 9112 §6.1: its framing is faulty, whoever put it there.
            (None, true) if version == Version::Http10 => Err("Transfer-Encoding in HTTP/1.0"),
            (None, true) => Ok(Some(Framing::Chunked)),
            (Some(length), false) => Ok(Some(Framing::Length(length))),
            (None, false) => Ok(None),
        }
    }
}

/// Digits and nothing else, at most [`MAX_LENGTH`]. Leading zeros are what the grammar allows; the number must be
/// written anew when it goes on.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut length = 0u64;
    for byte in value {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    (length <= MAX_LENGTH).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits() {
        #[rustfmt::skip]
        let cases: &[(&str, &str, Option<u64>)] = &[
            ("zero",            "0",                    Some(0)),
            ("a number",        "42",                   Some(42)),
            ("leading zeros",   "0042",                 Some(42)),
            ("the largest",     "9223372036854775807",  Some(MAX_LENGTH)),
            ("one more",        "9223372036854775808",  None),
            ("past 64 bits",    "18446744073709551616", None),
            ("far past",        "99999999999999999999999999999999", None),
            ("empty",           "",                     None),
            ("plus",            "+1",                   None),
            ("minus",           "-1",                   None),
            ("space inside",    "1 2",                  None),
            ("list",            "1, 1",                 None),
            ("list without space", "1,1",               None),
            ("hex",             "0x10",                 None),
            ("fraction",        "1.0",                  None),
            ("exponent",        "1e3",                  None),
            ("quoted",          "\"1\"",                None),
            ("other digits",    "\u{0661}",             None),
            ("NUL",             "1\0",                  None),
        ];
        for (why, value, expected) in cases {
            assert_eq!(parse_length(value.as_bytes()), *expected, "{why}: {value:?}");
        }
    }
}
