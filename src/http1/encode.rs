//! The way back: lines, fields and chunks into a buffer.
//!
//! Appends to a buffer that the caller keeps, and formats nothing. What it is given must have been
//! checked: by the parser of a head, or by being a constant. A line break in a name or value would end the field and
//! begin another; debug builds stop there.

use super::field::{Fields, is_token, is_value, write_field};

/// What ends a chunk's payload.
pub const CHUNK_END: &[u8] = b"\r\n";

/// `GET /path HTTP/1.1`. Outrigger speaks 1.1 to everyone.
pub fn request_line(out: &mut Vec<u8>, method: &[u8], target: &[u8]) {
    debug_assert!(is_token(method), "not a method: {method:?}");
    debug_assert!(!target.is_empty() && target.iter().all(u8::is_ascii_graphic), "not a target: {target:?}");
    out.reserve(method.len() + target.len() + 12);
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// `HTTP/1.1 200 OK`. `status` is from 100 to 999; an empty phrase stands for the standard one.
pub fn status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    debug_assert!((100..1000).contains(&status), "not a status: {status}");
    debug_assert!(is_value(phrase), "not a phrase: {phrase:?}");
    let digit = |value: u16| b'0' + (value % 10) as u8;
    let phrase = if phrase.is_empty() { standard_phrase(status).as_bytes() } else { phrase };
    out.reserve(phrase.len() + 15);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    out.extend_from_slice(phrase);
    out.extend_from_slice(b"\r\n");
}

/// `name: value`. For many fields at once see [`Fields::write`].
#[inline]
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(is_token(name), "not a name: {name:?}");
    debug_assert!(is_value(value), "not a value: {value:?}");
    write_field(out, name, value);
}

/// The empty line that ends a head.
#[inline]
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// The size line of a chunk of `len` bytes; the payload follows, and then [`CHUNK_END`]. Not for 0 bytes, which
/// would end the body.
pub fn chunk(out: &mut Vec<u8>, len: usize) {
    debug_assert_ne!(len, 0, "an empty chunk ends the body");
    let mut line = *b"0000000000000000\r\n";
    let (mut start, mut rest) = (16, len);
    while rest > 0 {
        start -= 1;
        line[start] = b"0123456789abcdef"[rest % 16];
        rest /= 16;
    }
    out.extend_from_slice(&line[start..]);
}

/// The last chunk of a body with the trailers, if there are any.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&Fields>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write(out, |_| true);
    }
    end(out);
}

/// The phrase that the IANA registry has for a status; empty for unknown ones.
pub const fn standard_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::field::Name;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn lines_are_written_as_they_are_read() {
        assert_eq!(written(|out| request_line(out, b"GET", b"/a?b")), "GET /a?b HTTP/1.1\r\n");
        assert_eq!(written(|out| status_line(out, 404, b"")), "HTTP/1.1 404 Not Found\r\n");
        assert_eq!(written(|out| status_line(out, 200, b"Fine")), "HTTP/1.1 200 Fine\r\n");
        assert_eq!(written(|out| status_line(out, 799, b"")), "HTTP/1.1 799 \r\n");
        assert_eq!(written(|out| field(out, b"Accept", b"*/*")), "Accept: */*\r\n");
        assert_eq!(written(|out| field(out, b"Empty", b"")), "Empty: \r\n");
    }

    #[test]
    fn chunk_sizes_are_hexadecimal_without_leading_zeros() {
        for len in [1, 9, 10, 15, 16, 255, 256, 4096, 65_535, usize::MAX] {
            assert_eq!(written(|out| chunk(out, len)), format!("{len:x}\r\n"));
        }
    }

    #[test]
    fn the_last_chunk_carries_the_trailers() {
        assert_eq!(written(|out| last_chunk(out, None)), "0\r\n\r\n");
        let mut trailers = Fields::new();
        trailers.push(Name::GrpcStatus, b"grpc-status", b"0");
        assert_eq!(written(|out| last_chunk(out, Some(&trailers))), "0\r\ngrpc-status: 0\r\n\r\n");
    }
}
