use proptest::prelude::*;

use super::*;
use crate::http1::encode;

const LIMITS: Limits = Limits { max_size: 4096, max_fields: 16 };

/// A request of HTTP/1.1 with `Host` and these further lines.
fn with(lines: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

/// What became of a request: its head and size, or the reason of its refusal; `None` if it is not complete.
fn request(input: &[u8]) -> Option<Result<(RequestHead, usize), Reason>> {
    let mut head = RequestHead::new();
    match head.parse(input, &mut 0, &LIMITS) {
        Ok(Parsed::Partial) => None,
        Ok(Parsed::Head { size }) => Some(Ok((head, size))),
        Err(refusal) => Some(Err(refusal.reason)),
    }
}

/// The same for a response to GET or HEAD.
fn response(input: &[u8], request_is_head: bool) -> Option<Result<(ResponseHead, usize), Reason>> {
    let mut head = ResponseHead::new();
    match head.parse(input, &mut 0, request_is_head, &LIMITS) {
        Ok(Parsed::Partial) => None,
        Ok(Parsed::Head { size }) => Some(Ok((head, size))),
        Err(refusal) => Some(Err(refusal.reason)),
    }
}

#[test]
fn a_usual_request_is_read_and_framed() {
    let text = "POST /a/b?c HTTP/1.1\r\nHost: example.com:8080\r\nContent-Length: 3\r\nX:\t \r\n\
                Connection: keep-alive, X\r\n\r\n";
    let input = format!("{text}abc");
    let (head, size) = request(input.as_bytes()).expect("complete").expect("accepted");
    assert_eq!(size, text.len());
    assert_eq!((head.method, head.method_text()), (Method::Post, &b"POST"[..]));
    assert_eq!((head.target(), head.path_and_query()), (&b"/a/b?c"[..], &b"/a/b?c"[..]));
    assert_eq!((head.authority(), head.host()), (&b"example.com:8080"[..], &b"example.com"[..]));
    assert_eq!((head.version, head.form), (Version::Http11, Form::Origin));
    assert_eq!((head.framing, head.keep_alive), (Framing::Length(3), true));
    assert_eq!(head.fields.len(), 4);
    assert_eq!(head.fields.find(b"x").collect::<Vec<_>>(), [b""]);
}

#[test]
fn ambiguous_and_malformed_requests_are_refused() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        // RFC 9112 §6: where the body ends
        ("Content-Length beside Transfer-Encoding", &with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n")),
        ("the same in the other order",      &with("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n")),
        ("Content-Length twice",             &with("Content-Length: 3\r\nContent-Length: 3\r\n")),
        ("two Content-Lengths",              &with("Content-Length: 3\r\nContent-Length: 4\r\n")),
        ("a list of lengths",                &with("Content-Length: 3, 3\r\n")),
        ("an empty length",                  &with("Content-Length: \r\n")),
        ("a signed length",                  &with("Content-Length: +3\r\n")),
        ("a negative length",                &with("Content-Length: -3\r\n")),
        ("a length of two words",            &with("Content-Length: 3 4\r\n")),
        ("a length of 65 bits",              &with("Content-Length: 18446744073709551617\r\n")),
        ("an unknown coding",                &with("Transfer-Encoding: gzip\r\n")),
        ("chunked among others",             &with("Transfer-Encoding: gzip, chunked\r\n")),
        ("chunked not last",                 &with("Transfer-Encoding: chunked, gzip\r\n")),
        ("chunked twice",                    &with("Transfer-Encoding: chunked, chunked\r\n")),
        ("two Transfer-Encodings",           &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
        ("a second that says identity",      &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n")),
        ("no coding",                        &with("Transfer-Encoding: \r\n")),
        ("an empty list member",             &with("Transfer-Encoding: ,chunked\r\n")),
        ("a parameter",                      &with("Transfer-Encoding: chunked;q=1\r\n")),
        ("quoted",                           &with("Transfer-Encoding: \"chunked\"\r\n")),
        ("nearly chunked",                   &with("Transfer-Encoding: xchunked\r\n")),
        ("vertical tab before chunked",      &with("Transfer-Encoding: \x0bchunked\r\n")),
        ("Transfer-Encoding in HTTP/1.0",    "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"),
        // RFC 9112 §2.2: line ends
        ("bare LF after the request line",   "GET / HTTP/1.1\nHost: h\r\n\r\n"),
        ("bare LF after a field",            "GET / HTTP/1.1\r\nHost: h\n\r\n"),
        ("bare LF between fields",           "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n"),
        ("bare LF at the end",               "GET / HTTP/1.1\r\nHost: h\r\n\n"),
        ("bare LFs everywhere",              "GET / HTTP/1.1\nHost: h\n\n"),
        ("bare LF after an empty value",     &with("A:\nB: c\r\n")),
        ("bare LF after white space",        &with("A: b \t\nB: c\r\n")),
        ("bare LF in front",                 "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("bare CR in a value",               &with("A: b\rc\r\n")),
        ("bare CR in a name",                &with("A\r: b\r\n")),
        ("bare CR in the target",            "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("bare CR in front",                 "\rGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("CR CR LF",                         &with("A: b\r\r\n")),
        ("empty lines without end",          "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        // RFC 9112 §5: fields
        ("a folded line",                    &with("A: b\r\n c\r\n")),
        ("a line folded by a tab",           &with("A: b\r\n\tc\r\n")),
        ("a folded empty value",             &with("A:\r\n b\r\n")),
        ("white space before the first field", "GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
        ("white space before the colon",     &with("A : b\r\n")),
        ("a tab before the colon",           &with("Content-Length\t: 3\r\n")),
        ("no colon",                         &with("A\r\n")),
        ("no name",                          &with(": b\r\n")),
        ("a name that is no token",          &with("A(b): c\r\n")),
        ("a space in a name",                &with("A b: c\r\n")),
        ("NUL in a name",                    &with("A\0: b\r\n")),
        ("a name that is not ASCII",         &with("Ä: b\r\n")),
        ("NUL in a value",                   &with("A: b\0\r\n")),
        ("a control character in a value",   &with("A: \x08\r\n")),
        ("DEL in a value",                   &with("A: \x7f\r\n")),
        // RFC 9112 §3: the request line
        ("white space in front",             " GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("two spaces after the method",      "GET  / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("two spaces after the target",      "GET /  HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a tab after the method",           "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a space at the end",               "GET / HTTP/1.1 \r\nHost: h\r\n\r\n"),
        ("a method that is no token",        "GE(T / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("no method",                        "/ HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("NUL in the method",                "GE\0T / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("no target",                        "GET HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("HTTP/0.9",                         "GET /\r\n\r\n"),
        ("HTTP/0.9 in full",                 "GET / HTTP/0.9\r\nHost: h\r\n\r\n"),
        ("HTTP/1.2",                         "GET / HTTP/1.2\r\nHost: h\r\n\r\n"),
        ("HTTP/2.0",                         "GET / HTTP/2.0\r\nHost: h\r\n\r\n"),
        ("HTTP/2's preface",                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("HTTP/1.10",                        "GET / HTTP/1.10\r\nHost: h\r\n\r\n"),
        ("HTTP/1",                           "GET / HTTP/1\r\nHost: h\r\n\r\n"),
        ("lower case",                       "GET / http/1.1\r\nHost: h\r\n\r\n"),
        ("another protocol",                 "GET / ICAP/1.0\r\nHost: h\r\n\r\n"),
        ("a TLS client",                     "\x16\x03\x01\x02\0\x01\0\x01"),
        ("a fragment",                       "GET /#a HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a target that is not ASCII",       "GET /ä HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("asterisk for GET",                 "GET * HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("authority for GET",                "GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a path for CONNECT",               "CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("another scheme",                   "GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a user",                           "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n"),
        // RFC 9112 §3.2: Host
        ("no Host in HTTP/1.1",              "GET / HTTP/1.1\r\nA: b\r\n\r\n"),
        ("no field at all",                  "GET / HTTP/1.1\r\n\r\n"),
        ("no Host beside an absolute target", "GET http://h/ HTTP/1.1\r\n\r\n"),
        ("Host twice",                       &with("Host: h\r\n")),
        ("two Hosts",                        &with("host: other\r\n")),
        ("Host twice in HTTP/1.0",           "GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n"),
        ("an empty Host",                    "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("an empty Host beside an absolute target", "GET http://h/ HTTP/1.1\r\nHost:\r\n\r\n"),
        ("a Host with a space",              "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        ("a list of Hosts",                  "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        ("a Host with a user",               "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n"),
        ("a Host with a path",               "GET / HTTP/1.1\r\nHost: h/a\r\n\r\n"),
        ("a Host with a bad port",           "GET / HTTP/1.1\r\nHost: h:8o\r\n\r\n"),
        ("a Host of empty brackets",         "GET / HTTP/1.1\r\nHost: []\r\n\r\n"),
        ("a malformed Host in HTTP/1.0",     "GET / HTTP/1.0\r\nHost: a b\r\n\r\n"),
    ];
    for (why, input) in cases {
        let outcome = request(input.as_bytes()).map(|result| result.map(|(head, _)| head));
        assert_eq!(outcome.expect(why).expect_err(why), Reason::BadRequest, "{why}: {input:?}");
    }
}

#[test]
fn what_only_looks_odd_is_accepted() {
    use Framing::*;
    #[rustfmt::skip]
    let cases: &[(&str, &str, Framing, bool)] = &[
        // why                               input                                                 framing      keep_alive
        ("the smallest",                     "GET / HTTP/1.1\r\nHost: h\r\n\r\n",                   None,        true),
        ("an empty line in front",           "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",               None,        true),
        ("two of them",                      "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",           None,        true),
        ("any method",                       "M-SEARCH / HTTP/1.1\r\nHost: h\r\n\r\n",              None,        true),
        ("methods have a case",              "get / HTTP/1.1\r\nHost: h\r\n\r\n",                   None,        true),
        ("no Host in HTTP/1.0",              "GET / HTTP/1.0\r\n\r\n",                              None,        false),
        ("no space after the colon",         "GET / HTTP/1.1\r\nHost:h\r\n\r\n",                    None,        true),
        ("space at the end of a value",      "GET / HTTP/1.1\r\nHost: \t h \t\r\n\r\n",             None,        true),
        ("obs-text in a value",              &with("A: \u{fc}\r\n"),                                None,        true),
        ("an empty value",                   &with("A:\r\n"),                                       None,        true),
        ("a length of zero",                 &with("Content-Length: 0\r\n"),                        Length(0),   true),
        ("a length in HTTP/1.0",             "POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n",        Length(3),   false),
        ("names have no case",               &with("cOnTeNt-LeNgTh: 3\r\n"),                        Length(3),   true),
        ("codings have no case",             &with("Transfer-Encoding: CHUNKED\r\n"),               Chunked,     true),
        ("a body for GET",                   "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n", Length(1), true),
        ("a name with an underscore",        &with("Content_Length: 3\r\n"),                        None,        true),
        ("close",                            &with("Connection: close\r\n"),                        None,        false),
        ("close in any case",                &with("Connection: Close\r\n"),                        None,        false),
        ("close in a list",                  &with("Connection: te , close\r\n"),                   None,        false),
        ("close wins",                       &with("Connection: close\r\nConnection: keep-alive\r\n"), None,     false),
        ("close is a word",                  &with("Connection: closed\r\n"),                       None,        true),
        ("keep-alive in HTTP/1.0",           "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",    None,        true),
        ("keep-alive and close in HTTP/1.0", "GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n", None,    false),
        ("Proxy-Connection says nothing",    "GET / HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\n", None,     false),
    ];
    for (why, input, framing, keep_alive) in cases {
        let (head, size) = request(input.as_bytes()).expect(why).expect(why);
        assert_eq!(
            (head.framing, head.keep_alive, size),
            (*framing, *keep_alive, input.len()),
            "{why}: {input:?}"
        );
    }
}

#[test]
fn the_target_says_where_a_request_goes() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, Form, &str, &str, &str)] = &[
        // why                        request                                      form             authority  host   path and query
        ("Host",                      "GET /a?b HTTP/1.1\r\nHost: h:1",            Form::Origin,    "h:1",     "h",   "/a?b"),
        ("the target overrides Host", "GET http://x:2/a HTTP/1.1\r\nHost: h:1",    Form::Absolute,  "x:2",     "x",   "/a"),
        ("an empty path is /",        "GET http://x HTTP/1.1\r\nHost: x",          Form::Absolute,  "x",       "x",   "/"),
        ("also before a query",       "GET http://x?q HTTP/1.1\r\nHost: x",        Form::Absolute,  "x",       "x",   "/?q"),
        ("for OPTIONS it is *",       "OPTIONS http://x HTTP/1.1\r\nHost: x",      Form::Absolute,  "x",       "x",   "*"),
        ("with a query it is not",    "OPTIONS http://x?q HTTP/1.1\r\nHost: x",    Form::Absolute,  "x",       "x",   "/?q"),
        ("a slash is a path",         "OPTIONS http://x/ HTTP/1.1\r\nHost: x",     Form::Absolute,  "x",       "x",   "/"),
        ("the server as a whole",     "OPTIONS * HTTP/1.1\r\nHost: x",             Form::Asterisk,  "x",       "x",   "*"),
        ("a tunnel",                  "CONNECT x:443 HTTP/1.1\r\nHost: y",         Form::Authority, "x:443",   "x",   ""),
        ("HTTP/1.0 without Host",     "GET / HTTP/1.0",                            Form::Origin,    "",        "",    "/"),
        ("HTTP/1.0, absolute",        "GET http://[::1]:80/ HTTP/1.0",             Form::Absolute,  "[::1]:80", "[::1]", "/"),
    ];
    for (why, input, form, authority, host, path) in cases {
        let (head, _) = request(format!("{input}\r\n\r\n").as_bytes()).expect(why).expect(why);
        assert_eq!(head.form, *form, "{why}");
        assert_eq!(head.authority(), authority.as_bytes(), "{why}");
        assert_eq!(head.host(), host.as_bytes(), "{why}");
        assert_eq!(head.path_and_query(), path.as_bytes(), "{why}");
    }
}

#[test]
fn only_http_1_1_can_expect_100_continue() {
    #[rustfmt::skip]
    let cases = [
        ("as curl sends it",     "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n", true),
        ("in any case",          "POST / HTTP/1.1\r\nHost: h\r\nexpect: 100-Continue\r\n\r\n", true),
        ("something else",       "POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n",       false),
        ("nothing",              "POST / HTTP/1.1\r\nHost: h\r\n\r\n",                         false),
        ("HTTP/1.0 can't",       "POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\n\r\n", false),
    ];
    for (why, input, expected) in cases {
        let (head, _) = request(input.as_bytes()).expect(why).expect(why);
        assert_eq!(head.expect_continue, expected, "{why}");
    }
}

#[test]
fn connection_names_what_ends_here() {
    let input = with("Connection: close, X-A\r\nConnection: x-b,,host, content-length\r\n");
    let (head, _) = request(input.as_bytes()).expect("complete").expect("accepted");
    for (name, expected) in [("x-a", true), ("X-B", true), ("x-c", false), ("x", false)] {
        assert_eq!(head.is_connection_option(name.as_bytes()), expected, "{name}");
    }
    // A sender that has Host or Content-Length dropped would have the next hop read another message.
    assert!(!head.is_connection_option(b"host") && !head.is_connection_option(b"Content-Length"));

    let (head, _) = request(with("A: b\r\n").as_bytes()).expect("complete").expect("accepted");
    assert!(!head.is_connection_option(b"a"));
}

#[test]
fn heads_are_bounded() {
    let limits = Limits { max_size: 64, max_fields: 3 };
    let read = |input: &str| {
        RequestHead::new().parse(input.as_bytes(), &mut 0, &limits).map_err(|refusal| refusal.reason)
    };
    let fill = |size: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "x".repeat(size - frame))
    };
    let refused = Err(Reason::HeaderTooLarge);
    let cases = [
        ("as large as it may be", fill(64), Ok(Parsed::Head { size: 64 })),
        ("one byte more", fill(65), refused),
        ("no end in sight", fill(80)[..70].to_string(), refused),
        ("the bound is reached without an end", fill(80)[..64].to_string(), refused),
        ("it may still end in time", fill(80)[..63].to_string(), Ok(Parsed::Partial)),
        ("a body does not count", fill(64) + &"x".repeat(100), Ok(Parsed::Head { size: 64 })),
        (
            "three fields",
            "GET / HTTP/1.1\r\nHost: h\r\na:\r\nb:\r\n\r\n".into(),
            Ok(Parsed::Head { size: 35 }),
        ),
        ("four fields", "GET / HTTP/1.1\r\nHost: h\r\na:\r\nb:\r\nc:\r\n\r\n".into(), refused),
        ("nonsense within the bound", "GET / HTTP/1.1\r\nHo st: h\r\n".to_string() + &"x".repeat(80), {
            Err(Reason::BadRequest)
        }),
    ];
    for (why, input, expected) in cases {
        assert_eq!(read(&input), expected, "{why}: {input:?}");
    }
}

#[test]
fn more_fields_than_usual_are_read_where_they_may_be() {
    let limits = Limits { max_size: 64 << 10, max_fields: 1000 };
    let head_of = |fields: usize| {
        let mut text = String::from("GET / HTTP/1.1\r\nHost: h\r\n");
        (1..fields).for_each(|field| text.push_str(&format!("x-{field}: {field}\r\n")));
        text + "\r\n"
    };
    for fields in [USUAL_FIELDS, USUAL_FIELDS + 1, 1000] {
        let mut head = RequestHead::new();
        let input = head_of(fields);
        let parsed = head.parse(input.as_bytes(), &mut 0, &limits);
        assert_eq!(parsed, Ok(Parsed::Head { size: input.len() }));
        assert_eq!(head.fields.len(), fields);
        assert_eq!(head.fields.find(b"x-100").next(), Some(&b"100"[..]));
    }
    let refusal = RequestHead::new().parse(head_of(1001).as_bytes(), &mut 0, &limits).unwrap_err();
    assert_eq!(refusal.reason, Reason::HeaderTooLarge);
}

#[test]
fn nonsense_is_refused_without_waiting_for_the_end_of_the_head() {
    // Each part comes by itself; the last one is refused.
    #[rustfmt::skip]
    let cases: &[(&str, &[&str])] = &[
        ("another protocol at its first byte",  &["\x16"]),
        ("a bad method",                        &["GET", "(/ HTTP/1.1\r\n"]),
        ("a bad version",                       &["GET / HT", "TP/2.0\r\n"]),
        ("a bad target",                        &["GET /a", "\x01", " HTTP/1.1\r\n"]),
        ("bare LF at the first line",           &["GET / HTTP/1.1", "\n"]),
        ("bare LF in front",                    &["\r\n", "\n"]),
        ("bare LF later",                       &["GET / HTTP/1.1\r\nHo", "st: h", "\n"]),
        ("bare LF at the end",                  &["GET / HTTP/1.1\r\nHost: h\r\n", "\n"]),
        ("empty lines",                         &["\r\n", "\r\n", "\r"]),
    ];
    for (why, parts) in cases {
        let (mut head, mut scanned, mut input) = (RequestHead::new(), 0, Vec::new());
        let mut parsed = Ok(Parsed::Partial);
        for part in *parts {
            assert_eq!(parsed, Ok(Parsed::Partial), "{why}: before {part:?}");
            input.extend_from_slice(part.as_bytes());
            parsed = head.parse(&input, &mut scanned, &LIMITS);
        }
        assert_eq!(parsed.map_err(|refusal| refusal.reason), Err(Reason::BadRequest), "{why}");
    }
}

#[test]
fn responses_are_framed_by_status_request_and_fields() {
    use Framing::*;
    #[rustfmt::skip]
    let cases: &[(&str, &str, bool, Framing, bool)] = &[
        // why                                response                                                 HEAD   framing     keep_alive
        ("a length",                          "HTTP/1.1 200 OK\r\nContent-Length: 3",                   false, Length(3),  true),
        ("a length of zero",                  "HTTP/1.1 200 OK\r\nContent-Length: 0",                   false, Length(0),  true),
        ("chunked",                           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",          false, Chunked,    true),
        ("neither: until it closes",          "HTTP/1.1 200 OK",                                        false, UntilClose, false),
        ("also where it says keep-alive",     "HTTP/1.1 200 OK\r\nConnection: keep-alive",              false, UntilClose, false),
        ("HTTP/1.0",                          "HTTP/1.0 200 OK\r\nContent-Length: 3",                   false, Length(3),  false),
        ("HTTP/1.0 with keep-alive",          "HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive", false, Length(3), true),
        ("close",                             "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close", false, Length(3), false),
        ("HEAD has no body",                  "HTTP/1.1 200 OK\r\nContent-Length: 3",                   true,  None,       true),
        ("nor if chunked",                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",          true,  None,       true),
        ("nor without framing",               "HTTP/1.1 200 OK",                                        true,  None,       true),
        ("304 has no body",                   "HTTP/1.1 304 Not Modified\r\nContent-Length: 3",         false, None,       true),
        ("204 has no body",                   "HTTP/1.1 204 No Content",                                false, None,       true),
        ("204 with a length of zero",         "HTTP/1.1 204 No Content\r\nContent-Length: 0",           false, None,       true),
        ("204 that announces one anyway",     "HTTP/1.1 204 No Content\r\nContent-Length: 3",           false, None,       false),
        ("204 that is chunked",               "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked",  false, None,       false),
        ("100",                               "HTTP/1.1 100 Continue",                                  false, None,       true),
        ("103 with fields",                   "HTTP/1.1 103 Early Hints\r\nLink: </a>",                 false, None,       true),
        ("100 with a length of zero",         "HTTP/1.1 100 Continue\r\nContent-Length: 0",             false, None,       true),
        ("205 is framed like any",            "HTTP/1.1 205 Reset Content\r\nContent-Length: 0",        false, Length(0),  true),
        ("a status that is none",             "HTTP/1.1 799 Odd\r\nContent-Length: 3",                  false, Length(3),  true),
        ("no phrase",                         "HTTP/1.1 200 \r\nContent-Length: 3",                     false, Length(3),  true),
        ("not even its space",                "HTTP/1.1 200\r\nContent-Length: 3",                      false, Length(3),  true),
        ("a phrase that is not ASCII",        "HTTP/1.1 200 \u{fc}\r\nContent-Length: 3",               false, Length(3),  true),
    ];
    for (why, input, request_is_head, framing, keep_alive) in cases {
        let input = format!("{input}\r\n\r\n");
        let (head, size) = response(input.as_bytes(), *request_is_head).expect(why).expect(why);
        assert_eq!(
            (head.framing, head.keep_alive, size),
            (*framing, *keep_alive, input.len()),
            "{why}: {input:?}"
        );
    }
}

#[test]
fn a_length_stays_only_where_it_can_mean_something() {
    #[rustfmt::skip]
    let cases = [
        ("200",  "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",           false, true),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",           true,  true),
        ("304",  "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", false, true),
        ("204",  "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",   false, false),
        ("1xx",  "HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n",  false, false),
    ];
    for (why, input, request_is_head, stays) in cases {
        let (head, _) = response(input.as_bytes(), request_is_head).expect(why).expect(why);
        assert_eq!(head.fields.has(Name::ContentLength), stays, "{why}");
    }
}

#[test]
fn ambiguous_and_malformed_responses_are_refused() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("length beside chunked",         "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"),
        ("also in answer to HEAD or 304", "HTTP/1.1 304 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"),
        ("two lengths",                   "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3"),
        ("a malformed length",            "HTTP/1.1 200 OK\r\nContent-Length: 3;"),
        ("also where there is no body",   "HTTP/1.1 204 OK\r\nContent-Length: -1"),
        ("another coding",                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked"),
        ("chunked in HTTP/1.0",           "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked"),
        ("1xx that announces a body",     "HTTP/1.1 103 Early\r\nContent-Length: 3"),
        ("1xx that is chunked",           "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked"),
        ("an empty line in front",        "\r\nHTTP/1.1 200 OK"),
        ("a space in front",              " HTTP/1.1 200 OK"),
        ("another protocol",              "SSH-2.0-OpenSSH_9.2"),
        ("HTTP/2",                        "HTTP/2 200"),
        ("HTTP/1.2",                      "HTTP/1.2 200 OK"),
        ("HTTP/0.9",                      "<html>hello</html>"),
        ("two digits",                    "HTTP/1.1 20 OK"),
        ("four digits",                   "HTTP/1.1 2000 OK"),
        ("no digits",                     "HTTP/1.1 OK"),
        ("below 100",                     "HTTP/1.1 099 Low"),
        ("signed",                        "HTTP/1.1 +20 OK"),
        ("two spaces",                    "HTTP/1.1  200 OK"),
        ("a tab",                         "HTTP/1.1\t200 OK"),
        ("NUL in the phrase",             "HTTP/1.1 200 O\0K"),
        ("bare CR in the phrase",         "HTTP/1.1 200 O\rK"),
        ("bare LF after the status line", "HTTP/1.1 200 OK\nContent-Length: 3"),
        ("bare LF without a phrase",      "HTTP/1.1 200\nContent-Length: 3"),
        ("bare LF after a field",         "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 3"),
        ("a folded line",                 "HTTP/1.1 200 OK\r\nA: b\r\n c"),
        ("white space before the colon",  "HTTP/1.1 200 OK\r\nContent-Length : 3"),
        ("a control character",           "HTTP/1.1 200 OK\r\nA: \x01"),
    ];
    for (why, input) in cases {
        let input = format!("{input}\r\n\r\n");
        let outcome = response(input.as_bytes(), false).map(|result| result.map(|(head, _)| head));
        assert_eq!(outcome.expect(why).expect_err(why), Reason::ProtocolError, "{why}: {input:?}");
    }
    let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(LIMITS.max_size));
    assert_eq!(response(large.as_bytes(), false).map(|outcome| outcome.is_err()), Some(true));
}

#[test]
fn an_http2_request_becomes_one_that_could_have_come_by_http_1_1() {
    let mut head = RequestHead::new();
    head.build(b"POST", b"/a?b", b"h:1", Framing::Length(3)).expect("well-formed");
    head.build_field(b"content-length", b"3").expect("agrees");
    head.build_field(b"te", b"trailers").expect("allowed");
    head.build_field(b"host", b"evil").expect("left out");
    head.build_field(b"x-a", b" b ").expect("well-formed");
    assert_eq!((head.method, head.framing, head.keep_alive), (Method::Post, Framing::Length(3), true));
    assert_eq!(
        (head.path_and_query(), head.authority(), head.host()),
        (&b"/a?b"[..], &b"h:1"[..], &b"h"[..])
    );
    assert_eq!(head.fields.all(Name::Host).collect::<Vec<_>>(), [b"h:1"]);
    assert_eq!(head.fields.find(b"x-a").collect::<Vec<_>>(), [b"b"]);

    #[rustfmt::skip]
    let fields: &[(&str, &str, &str)] = &[
        ("a line break in a value", "x-b", "a\r\nHost: evil"),
        ("NUL in a value",          "x-b", "a\0"),
        ("a colon in a name",       "x-b: c", ""),
        ("a line break in a name",  "x\r\ny", ""),
        ("no name",                 "", "a"),
        ("chunked",                 "transfer-encoding", "chunked"),
        ("Connection",              "connection", "close"),
        ("Upgrade",                 "upgrade", "h2c"),
        ("Keep-Alive",              "keep-alive", "timeout=5"),
        ("Proxy-Connection",        "proxy-connection", "close"),
        ("TE but trailers",         "te", "gzip"),
        ("a second length",         "content-length", "3"),
    ];
    for (why, name, value) in fields {
        assert!(head.build_field(name.as_bytes(), value.as_bytes()).is_err(), "{why}");
    }
    head.build(b"POST", b"/", b"h", Framing::Chunked).expect("well-formed");
    assert!(head.build_field(b"content-length", b"3").is_err(), "a length that the body may not have");

    #[rustfmt::skip]
    let lines: &[(&str, &str, &str, &str)] = &[
        ("a space in the method",    "GE T",    "/",         "h"),
        ("no method",                "",        "/",         "h"),
        ("a line break in the path", "GET",     "/\r\n",     "h"),
        ("a space in the path",      "GET",     "/ HTTP/1.1", "h"),
        ("an absolute path",         "GET",     "http://h/", "h"),
        ("no path",                  "GET",     "",          "h"),
        ("asterisk for GET",         "GET",     "*",         "h"),
        ("CONNECT",                  "CONNECT", "h:443",     "h"),
        ("no authority",             "GET",     "/",         ""),
        ("a malformed authority",    "GET",     "/",         "a\r\nb"),
    ];
    for (why, method, path, authority) in lines {
        let built = head.build(method.as_bytes(), path.as_bytes(), authority.as_bytes(), Framing::None);
        assert_eq!(built.map_err(|refusal| refusal.reason), Err(Reason::BadRequest), "{why}");
    }
    assert!(head.build(b"OPTIONS", b"*", b"h", Framing::None).is_ok());
}

/// All that a request head says.
fn said(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let fields: Vec<_> = head.fields.iter().map(|f| (f.known, f.name.to_vec(), f.value.to_vec())).collect();
    let texts = [head.method_text(), head.target(), head.path_and_query(), head.authority(), head.host()];
    let decided = (head.method, head.version, head.form, head.framing, head.keep_alive, head.expect_continue);
    (decided, texts.map(<[u8]>::to_vec), fields)
}

/// Lines of a well-formed head, usual and odd ones.
fn lines() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = prop_oneof!["[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,20}", Just("Connection".into()), Just("Via".into())];
    let value = "([!-~\u{e4}]([ -~\t]{0,30}[!-~])?)?";
    let pair = (name, value).prop_filter("would be framed anew", |(name, _)| {
        let name = Name::of(name.as_bytes());
        !matches!(name, Name::Host | Name::ContentLength | Name::TransferEncoding)
    });
    proptest::collection::vec(pair, 0..12)
}

/// A well-formed request.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let line = (
        prop_oneof!["GET|POST|HEAD|PUT", "[A-Z]{1,10}"].prop_filter("other rules", |m| m != "CONNECT"),
        prop_oneof![
            "/[a-z0-9/%.~-]{0,20}(\\?[a-z=&]{0,10})?",
            "http://[a-z.]{1,10}(:[0-9]{1,4})?(/[a-z]{0,5})?"
        ],
    );
    let framing = prop_oneof![
        Just(String::new()),
        (0u64..1_000_000).prop_map(|length| format!("Content-Length: {length}\r\n")),
        Just("transfer-encoding: chunked\r\n".to_string()),
    ];
    (line, lines(), framing).prop_map(|((method, target), lines, framing)| {
        let mut out = Vec::new();
        encode::request_line(&mut out, method.as_bytes(), target.as_bytes());
        encode::field(&mut out, b"Host", b"example.com");
        for (name, value) in &lines {
            encode::field(&mut out, name.as_bytes(), value.as_bytes());
        }
        out.extend_from_slice(framing.as_bytes());
        encode::end(&mut out);
        out
    })
}

proptest! {
    /// However a request is cut into pieces, it is the same request.
    #[test]
    fn any_split_gives_the_same_head(input in requests(), cuts in proptest::collection::vec(0usize..400, 0..8)) {
        let mut whole = RequestHead::new();
        prop_assert_eq!(whole.parse(&input, &mut 0, &LIMITS), Ok(Parsed::Head { size: input.len() }));

        let mut cuts: Vec<_> = cuts.into_iter().filter(|&cut| cut < input.len()).collect();
        cuts.sort_unstable();
        let (mut head, mut scanned) = (RequestHead::new(), 0);
        for cut in cuts {
            prop_assert_eq!(head.parse(&input[..cut], &mut scanned, &LIMITS), Ok(Parsed::Partial));
        }
        prop_assert_eq!(head.parse(&input, &mut scanned, &LIMITS), Ok(Parsed::Head { size: input.len() }));
        prop_assert_eq!(said(&head), said(&whole));
    }

    /// What was read can be written, and says the same when it is read again.
    #[test]
    fn written_again_a_head_says_the_same(input in requests()) {
        let (head, _) = request(&input).expect("complete").expect("accepted");
        let mut again = Vec::new();
        encode::request_line(&mut again, head.method_text(), head.target());
        for field in head.fields.iter() {
            encode::field(&mut again, field.name, field.value);
        }
        encode::end(&mut again);
        let (read, _) = request(&again).expect("complete").expect("accepted");
        prop_assert_eq!(said(&read), said(&head));
    }

    /// Fields that go on as they stood say the same as those written one by one.
    #[test]
    fn written_as_they_stood_fields_say_the_same(input in requests(), left_out in any::<u16>()) {
        let (mut head, _) = request(&input).expect("complete").expect("accepted");
        head.fields.push(Name::Other, b"x-pushed", b"a");
        head.fields.push(Name::Other, b"x-empty", b"");
        head.fields.push(Name::Via, b"via", b"b");
        let (mut one_by_one, mut at_once) = (b"GET / HTTP/1.1\r\n".to_vec(), b"GET / HTTP/1.1\r\n".to_vec());
        let mut bits = left_out;
        for field in head.fields.iter() {
            if bits & 1 == 0 || field.known == Name::Host {
                encode::field(&mut one_by_one, field.name, field.value);
            }
            bits >>= 1;
        }
        let mut bits = left_out;
        head.fields.write(&mut at_once, |field| {
            let keep = bits & 1 == 0 || field.known == Name::Host;
            bits >>= 1;
            keep
        });
        encode::end(&mut one_by_one);
        encode::end(&mut at_once);
        let limits = Limits { max_size: 8192, max_fields: 32 };
        let (mut a, mut b) = (RequestHead::new(), RequestHead::new());
        prop_assert_eq!(a.parse(&one_by_one, &mut 0, &limits), Ok(Parsed::Head { size: one_by_one.len() }));
        prop_assert_eq!(b.parse(&at_once, &mut 0, &limits), Ok(Parsed::Head { size: at_once.len() }));
        prop_assert_eq!(said(&a), said(&b));
    }

    /// A head that was used before says nothing of its past.
    #[test]
    fn a_used_head_reads_like_a_new_one(first in requests(), second in requests()) {
        let (mut used, _) = request(&first).expect("complete").expect("accepted");
        let (new, size) = request(&second).expect("complete").expect("accepted");
        prop_assert_eq!(used.parse(&second, &mut 0, &LIMITS), Ok(Parsed::Head { size }));
        prop_assert_eq!(said(&used), said(&new));
    }
}
