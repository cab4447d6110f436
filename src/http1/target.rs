//! What may stand in a request line and in `Host`: the four forms of a target (RFC 9112 §3.2), authorities.
//!
//! Stricter than RFC 3986 where peers are known to read differently: an authority is a name of letters, digits,
//! `-`, `.`, `_` and `~`, or an IP address, with or without a port; no user, no percent-encoding, no comma, no
//! empty port. Bytes outside ASCII are refused in a target: peers decode them differently, and browsers and
//! libraries encode them. More tolerant in one place: the few visible characters that clients leave unencoded
//! (`[`, `]`, `^`, `{`, `|`, `}`, in a path `"`, in a query `` ` `` and `\`) and stray percent signs pass, as hyper
//! lets them.

use std::net::Ipv6Addr;
use std::ops::Range;

/// Which of the four forms the target of a request has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Form {
    /// `/path?query`.
    Origin,
    /// `http://authority/path?query`, as clients write it that know they talk to a proxy.
    Absolute,
    /// `*`: the server as a whole; only with OPTIONS.
    Asterisk,
    /// `host:port`; only with CONNECT.
    Authority,
}

/// What a target consists of, as places in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub form: Form,
    /// The authority that it names; empty unless in absolute or authority form.
    pub authority: Range<usize>,
    /// How much of the authority is the host, without the port.
    pub host_length: usize,
    /// Path and query; empty for `http://authority` and in authority form, without a `/` for
    /// `http://authority?query`.
    pub path_and_query: Range<usize>,
}

/// The longest target. As hyper has it; a `Uri` of `http` holds no more.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// What a target may be to the method that names it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Asking {
    /// OPTIONS, which may ask for `*`.
    Options,
    /// CONNECT, which names an authority and nothing else.
    Connect,
    /// Any other method.
    Other,
}

/// Reads a target.
pub(super) fn parse(target: &[u8], asking: Asking) -> Result<Target, &'static str> {
    if target.len() > MAX_TARGET {
        return Err("the request target is too long");
    }
    match asking {
        Asking::Connect => {
            let host_length = check_authority(target)?;
            if host_length == target.len() {
                return Err("CONNECT needs a host and a port");
            }
            Ok(Target {
                form: Form::Authority,
                authority: 0..target.len(),
                host_length,
                path_and_query: 0..0,
            })
        }
        _ if target.first() == Some(&b'/') => {
            check_path_and_query(target)?;
            Ok(Target {
                form: Form::Origin,
                authority: 0..0,
                host_length: 0,
                path_and_query: 0..target.len(),
            })
        }
        Asking::Options if target == b"*" => {
            Ok(Target { form: Form::Asterisk, authority: 0..0, host_length: 0, path_and_query: 0..1 })
        }
        _ => parse_absolute(target),
    }
}

/// Reads `http://authority/path?query`.
fn parse_absolute(target: &[u8]) -> Result<Target, &'static str> {
    const SCHEME: &[u8] = b"http://";
    match target.get(..SCHEME.len()) {
        Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => {}
        _ => return Err("the request target is neither a path nor an http:// URI"),
    }
    let start = SCHEME.len();
    let rest = &target[start..];
    let end = start + rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let host_length = check_authority(&target[start..end])?;
    check_path_and_query(&target[end..])?;
    Ok(Target { form: Form::Absolute, authority: start..end, host_length, path_and_query: end..target.len() })
}

/// Checks `host[:port]`. Returns where the host ends.
pub(super) fn check_authority(authority: &[u8]) -> Result<usize, &'static str> {
    let host = if authority.first() == Some(&b'[') {
        let close = authority.iter().position(|&byte| byte == b']').ok_or("an IPv6 address lacks its ]")?;
        let address = std::str::from_utf8(&authority[1..close]).unwrap_or_default();
        address.parse::<Ipv6Addr>().map_err(|_| "not an IPv6 address between [ and ]")?;
        close + 1
    } else {
        let end = authority.iter().position(|&byte| CLASSES[byte as usize] & HOST == 0);
        end.unwrap_or(authority.len())
    };
    if host == 0 {
        return Err("the host is empty or malformed");
    }
    match &authority[host..] {
        [] => Ok(host),
        [b':', port @ ..] if is_port(port) => Ok(host),
        [b':', ..] => Err("malformed port"),
        _ => Err("malformed host"),
    }
}

/// Whether `text` is a number that a port can have.
fn is_port(text: &[u8]) -> bool {
    matches!(text.len(), 1..=5)
        && text.iter().all(u8::is_ascii_digit)
        && text.iter().fold(0, |port: u32, digit| port * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

/// Checks the bytes of a path and query.
pub(super) fn check_path_and_query(text: &[u8]) -> Result<(), &'static str> {
    if text.iter().all(|&byte| CLASSES[byte as usize] & PATH != 0) {
        return Ok(());
    }
    check_unusual(text)
}

/// The slow way for what clients leave unencoded; nearly no target gets here.
#[cold]
fn check_unusual(text: &[u8]) -> Result<(), &'static str> {
    let path = text.iter().position(|&byte| byte == b'?').unwrap_or(text.len());
    for (index, byte) in text.iter().enumerate() {
        match byte {
            b'#' => return Err("a request target has no fragment"),
            0x80.. => return Err("the request target has bytes that are not ASCII"),
            b'`' | b'\\' if index > path => {}
            b'"' if index < path => {}
            b'[' | b']' | b'^' | b'{' | b'|' | b'}' => {}
            byte if CLASSES[*byte as usize] & PATH != 0 => {}
            _ => return Err("the request target has a character that must be percent-encoded"),
        }
    }
    Ok(())
}

/// May stand in the name of a host.
const HOST: u8 = 1;
/// May stand in path or query (RFC 3986 §3.3, §3.4, and `%`).
const PATH: u8 = 2;

/// The rest of RFC 3986's `pchar`, the slash, the question mark and the percent sign.
#[rustfmt::skip]
const fn is_path_punctuation(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        | b'/' | b'?' | b'%')
}

/// What each byte may be.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            classes[byte] = HOST | PATH;
        }
        if is_path_punctuation(b) {
            classes[byte] = PATH;
        }
        byte += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Why the row is there, the target, who asks, and its form, authority, path and query if it is one.
    type Row<'a> = (&'a str, &'a str, Asking, Option<(Form, &'a str, &'a str)>);

    #[test]
    fn targets_have_one_of_four_forms() {
        use Asking::*;
        #[rustfmt::skip]
        let cases: &[Row<'_>] = &[
            ("a path",                     "/",                        Other,   Some((Form::Origin, "", "/"))),
            ("path and query",             "/a/b?c=d&e=%20",           Other,   Some((Form::Origin, "", "/a/b?c=d&e=%20"))),
            ("a path may look odd",        "//x/../y:1@z?//?",         Other,   Some((Form::Origin, "", "//x/../y:1@z?//?"))),
            ("what some do not encode", "/a|b[1]{\"^\"}?`\\",      Other,   Some((Form::Origin, "", "/a|b[1]{\"^\"}?`\\"))),
            ("a stray percent",            "/100%?q=%zz",              Other,   Some((Form::Origin, "", "/100%?q=%zz"))),
            ("a quote in a query",         "/?q=\"a\"",              Other,   None),
            ("a backslash in a path",      "/a\\b",                    Other,   None),
            ("a backtick in a path",       "/a`b",                     Other,   None),
            ("angle brackets",             "/<script>",                Other,   None),
            ("a fragment",                 "/a#b",                     Other,   None),
            ("a fragment in the query",    "/a?b#c",                   Other,   None),
            ("not ASCII",                  "/ü",                       Other,   None),
            ("a control character",        "/a\x01b",                  Other,   None),
            ("a space",                    "/a b",                     Other,   None),
            ("a tab",                      "/a\tb",                    Other,   None),
            ("DEL",                        "/a\x7f",                   Other,   None),
            ("nothing",                    "",                         Other,   None),
            ("a relative path",            "a/b",                      Other,   None),
            ("only a query",               "?a",                       Other,   None),
            ("absolute",                   "http://h/p?q",             Other,   Some((Form::Absolute, "h", "/p?q"))),
            ("absolute, scheme in any case", "HTTP://h:80/",           Other,   Some((Form::Absolute, "h:80", "/"))),
            ("absolute without a path",    "http://h",                 Other,   Some((Form::Absolute, "h", ""))),
            ("absolute with only a query", "http://h?q",               Other,   Some((Form::Absolute, "h", "?q"))),
            ("absolute for OPTIONS",       "http://h",                 Options, Some((Form::Absolute, "h", ""))),
            ("another scheme",             "https://h/",               Other,   None),
            ("ftp",                        "ftp://h/",                 Other,   None),
            ("scheme cut",                 "http:/h/",                 Other,   None),
            ("scheme alone",               "http://",                  Other,   None),
            ("no authority",               "http:///p",                Other,   None),
            ("a user",                     "http://u@h/",              Other,   None),
            ("user and password",          "http://u:p@h/",            Other,   None),
            ("absolute with a fragment",   "http://h/#f",              Other,   None),
            ("absolute, fragment at once", "http://h#f",               Other,   None),
            ("asterisk",                   "*",                        Options, Some((Form::Asterisk, "", "*"))),
            ("asterisk, other method",     "*",                        Other,   None),
            ("asterisk and more",          "*/a",                      Options, None),
            ("authority for CONNECT",      "h:443",                    Connect, Some((Form::Authority, "h:443", ""))),
            ("IPv6 for CONNECT",           "[::1]:443",                Connect, Some((Form::Authority, "[::1]:443", ""))),
            ("CONNECT without a port",     "h",                        Connect, None),
            ("CONNECT with a path",        "/",                        Connect, None),
            ("CONNECT with a URI",         "http://h/",                Connect, None),
            ("authority, other method",    "h:443",                    Other,   None),
        ];
        for (why, target, asking, expected) in cases {
            let parsed = parse(target.as_bytes(), *asking).ok();
            let parsed =
                parsed.map(|parts| (parts.form, &target[parts.authority], &target[parts.path_and_query]));
            assert_eq!(parsed, *expected, "{why}: {target:?}");
        }
        assert!(parse(&[&b"/"[..], &[b'a'; MAX_TARGET - 1]].concat(), Other).is_ok());
        assert!(parse(&[&b"/"[..], &[b'a'; MAX_TARGET]].concat(), Other).is_err());
    }

    #[test]
    fn authorities_are_a_host_and_perhaps_a_port() {
        #[rustfmt::skip]
        let cases: &[(&str, &str, Option<&str>)] = &[
            ("a name",               "example.com",        Some("example.com")),
            ("name and port",        "example.com:8080",   Some("example.com")),
            ("as in compose files",  "my_service-1~x:1",   Some("my_service-1~x")),
            ("trailing dot",         "example.com.",       Some("example.com.")),
            ("IPv4",                 "127.0.0.1:80",       Some("127.0.0.1")),
            ("IPv6",                 "[::1]",              Some("[::1]")),
            ("IPv6 and port",        "[2001:db8::1]:443",  Some("[2001:db8::1]")),
            ("largest port",         "h:65535",            Some("h")),
            ("empty",                "",                   None),
            ("port too large",       "h:65536",            None),
            ("port too long",        "h:000080",           None),
            ("empty port",           "h:",                 None),
            ("signed port",          "h:+80",              None),
            ("a name as port",       "h:http",             None),
            ("two ports",            "h:80:80",            None),
            ("no host",              ":80",                None),
            ("empty brackets",       "[]",                 None),
            ("open bracket",         "[::1",               None),
            ("no address inside",    "[localhost]",        None),
            ("a zone",               "[fe80::1%25eth0]",   None),
            ("IPv6 without brackets", "::1",               None),
            ("after the brackets",   "[::1]x",             None),
            ("a space",              "a b",                None),
            ("a list",               "a,b",                None),
            ("a user",               "user@host",          None),
            ("a path",               "host/path",          None),
            ("a query",              "host?q",             None),
            ("a fragment",           "host#f",             None),
            ("a scheme",             "http://host",        None),
            ("a backslash",          "host\\x",            None),
            ("percent-encoded",      "%65xample.com",      None),
            ("sub-delimiters",       "a;b=c",              None),
            ("not ASCII",            "exämple.com",        None),
            ("a control character",  "a\x00b",             None),
        ];
        for (why, authority, host) in cases {
            let parsed = check_authority(authority.as_bytes()).ok().map(|end| &authority[..end]);
            assert_eq!(parsed, *host, "{why}: {authority:?}");
        }
    }
}
