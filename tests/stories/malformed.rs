//! What is malformed or ambiguous is refused with its reason, never forwarded, and nothing behind it on its
//! connection is read as a request (RFC 9112; request smuggling).

use crate::support::http2::RawHttp2;
use crate::support::*;

/// Sent behind every bad request: it must never be read as one.
const BEHIND: &str = "GET /behind HTTP/1.1\r\nHost: app.test\r\n\r\n";

/// A case: why it is refused, and its bytes.
type Case = (String, Vec<u8>);

fn case(why: impl Into<String>, bytes: impl AsRef<[u8]>) -> Case {
    (why.into(), bytes.as_ref().to_vec())
}

/// Sends each case on a connection of its own; each must get `status` and `reason`, and then the end.
async fn all_are_refused(proxy: &Proxy, app: &Upstream, cases: &[Case], status: u16, reason: &str) {
    let rejected = format!("outrigger_rejected_total{{reason={reason}}}");
    let before = proxy.metric(&rejected).await;
    let mut wrong = Vec::new();
    for (why, bytes) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let mut client = proxy.connect().await;
        client.try_send([bytes.as_slice(), BEHIND.as_bytes()].concat()).await;
        match client.response_or_end("GET").await {
            None => wrong.push(format!("{why}: no answer to {shown:?}")),
            Some(response) if response.status != status || !response.is_for(reason) => {
                wrong.push(format!("{why}: {} {:?} to {shown:?}", response.status, response.text()));
            }
            Some(response) => {
                response.must_be_because(status, reason, why);
                assert_eq!(response.field("connection"), Some("close"), "{why}: it says that it closes");
                let behind = client.until_end().await;
                if !behind.is_empty() {
                    wrong.push(format!("{why}: then came {:?}", String::from_utf8_lossy(&behind)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let complete: Vec<_> = app.requests().into_iter().filter(|request| request.whole).collect();
    assert!(complete.is_empty(), "forwarded: {complete:#?}");
    let count = proxy.metric(&rejected).await - before;
    assert_eq!(count, cases.len() as f64, "each is counted in {rejected}");
}

/// The same for what must be refused before anything at all went up.
async fn none_is_forwarded(cases: &[Case], status: u16, reason: &str) {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    all_are_refused(&proxy, &app, cases, status, reason).await;
    assert_eq!(String::from_utf8_lossy(&app.bytes()), "", "not one byte goes up");
    // It lives, and serves the next one.
    assert_eq!(proxy.get("/").await.status, 200);
}

/// Bytes that are no token character (RFC 9110 §5.6.2), but for those that end a name or a line.
fn no_token() -> impl Iterator<Item = u8> {
    let delimiters = b"\"(),/;<=>?@[\\]{}".iter().copied();
    let controls = (0..=8).chain(11..=12).chain(14..=31).chain([127, 128, 0xc3, 255]);
    delimiters.chain(controls)
}

/// Control characters that no field value may hold (RFC 9110 §5.5), but for CR and LF.
fn no_value() -> impl Iterator<Item = u8> {
    (0..=8).chain(11..=12).chain(14..=31).chain([127])
}

#[tokio::test]
async fn request_lines() {
    let lines = [
        ("no target", "GET HTTP/1.1"),
        ("no version (HTTP/0.9)", "GET /"),
        ("only a method", "GET"),
        ("a space before the method", " GET / HTTP/1.1"),
        ("two spaces before the target", "GET  / HTTP/1.1"),
        ("two spaces before the version", "GET /  HTTP/1.1"),
        ("a space behind the version", "GET / HTTP/1.1 "),
        ("a tab for the first space", "GET\t/ HTTP/1.1"),
        ("a tab for the second space", "GET /\tHTTP/1.1"),
        ("a word too many", "GET / x HTTP/1.1"),
        ("a space in the target", "GET /a b HTTP/1.1"),
        ("HTTP/1.2", "GET / HTTP/1.2"),
        ("HTTP/1.10", "GET / HTTP/1.10"),
        ("HTTP/0.9 spelt out", "GET / HTTP/0.9"),
        ("HTTP/2.0", "GET / HTTP/2.0"),
        ("HTTP/3", "GET / HTTP/3"),
        ("the version has case", "GET / http/1.1"),
        ("no minor version", "GET / HTTP/1"),
        ("no dot", "GET / HTTP/11"),
        ("a comma", "GET / HTTP/1,1"),
        ("a letter behind the version", "GET / HTTP/1.1x"),
        ("a sign in the version", "GET / HTTP/+1.1"),
        ("a space in the version", "GET / HTTP /1.1"),
        ("another protocol", "GET / HTPP/1.1"),
        ("another protocol still", "GET / ICY/1.0"),
        ("no slash before the path", "GET foo HTTP/1.1"),
        ("only a query", "GET ?a=b HTTP/1.1"),
        ("an asterisk with GET", "GET * HTTP/1.1"),
        ("an asterisk with more", "OPTIONS *x HTTP/1.1"),
        ("no authority", "GET http:///path HTTP/1.1"),
        ("no authority at all", "GET http:// HTTP/1.1"),
        ("an odd port", "GET http://a:b/ HTTP/1.1"),
        ("a port too large", "GET http://a:65536/ HTTP/1.1"),
        ("a scheme without slashes", "GET http:a HTTP/1.1"),
        ("an authority with GET", "GET app.test:80 HTTP/1.1"),
        ("the preface of HTTP/2 and then something else", "PRI * HTTP/2.0"),
        ("a TLS handshake", "\x16\x03\x01\x02\0\x01\0\x01"),
        ("SSH", "SSH-2.0-OpenSSH_9.2"),
    ];
    let mut cases: Vec<_> =
        lines.iter().map(|(why, line)| case(*why, format!("{line}\r\nHost: app.test\r\n\r\n"))).collect();
    for byte in no_token().filter(|byte| *byte != b'/') {
        let bytes = [b"G", &[byte][..], b"T / HTTP/1.1\r\nHost: app.test\r\n\r\n"].concat();
        cases.push(case(format!("byte {byte:#04x} in the method"), bytes));
    }
    for byte in (0..=8).chain(11..=12).chain(14..=31).chain([127]) {
        let bytes = [b"GET /a", &[byte][..], b"b HTTP/1.1\r\nHost: app.test\r\n\r\n"].concat();
        cases.push(case(format!("byte {byte:#04x} in the target"), bytes));
    }
    none_is_forwarded(&cases, 400, "bad_request").await;
}

#[tokio::test]
async fn line_ends() {
    let heads = [
        ("LF ends the request line", "GET / HTTP/1.1\nHost: app.test\r\n\r\n"),
        ("LF ends a field", "GET / HTTP/1.1\r\nHost: app.test\nX: y\r\n\r\n"),
        ("LF ends the last field", "GET / HTTP/1.1\r\nHost: app.test\n\r\n"),
        ("LF ends the head", "GET / HTTP/1.1\r\nHost: app.test\r\n\n"),
        ("LF everywhere", "GET / HTTP/1.1\nHost: app.test\n\n"),
        ("LF before the request line", "\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("CR before the request line", "\rGET / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("CR ends the request line", "GET / HTTP/1.1\rHost: app.test\r\n\r\n"),
        ("CR ends a field", "GET / HTTP/1.1\r\nHost: app.test\rX: y\r\n\r\n"),
        ("CR in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\rb\r\n\r\n"),
        ("CR before a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX:\ry\r\n\r\n"),
        ("CR in a name", "GET / HTTP/1.1\r\nHost: app.test\r\nX\rY: z\r\n\r\n"),
        ("CR CR LF ends a field", "GET / HTTP/1.1\r\nHost: app.test\r\nX: y\r\r\n\r\n"),
        ("CR CR LF ends the request line", "GET / HTTP/1.1\r\r\nHost: app.test\r\n\r\n"),
        ("CR in the target", "GET /a\rb HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("LF in the target", "GET /a\nb HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("LF in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\nContent-Length: 5\r\n\r\n"),
        ("CR and something else for the end", "GET / HTTP/1.1\r\nHost: app.test\r\n\rX\r\n\r\n"),
        ("a folded field, by a space", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n b\r\n\r\n"),
        ("a folded field, by a tab", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n\tb\r\n\r\n"),
        ("a fold of nothing", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n \r\n\r\n"),
        ("a folded Host", "GET / HTTP/1.1\r\nHost:\r\n app.test\r\n\r\n"),
        (
            "a folded Transfer-Encoding",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a space before the first field", "GET / HTTP/1.1\r\n Host: app.test\r\n\r\n"),
        ("a tab before the first field", "GET / HTTP/1.1\r\n\tX: y\r\nHost: app.test\r\n\r\n"),
    ];
    let cases: Vec<_> = heads.iter().map(|(why, head)| case(*why, head)).collect();
    none_is_forwarded(&cases, 400, "bad_request").await;
}

#[tokio::test]
async fn fields() {
    let lines = [
        ("no colon", "Something"),
        ("no name", ": value"),
        ("only a colon", ":"),
        ("a space before the colon", "X : y"),
        ("a tab before the colon", "X\t: y"),
        ("a space in the name", "X Y: z"),
        ("a space before Content-Length's colon", "Content-Length : 5"),
        ("a space before Transfer-Encoding's colon", "Transfer-Encoding : chunked"),
        ("a tab before Transfer-Encoding's colon", "Transfer-Encoding\t: chunked"),
        ("an empty line of spaces", "   "),
    ];
    let mut cases: Vec<_> = lines
        .iter()
        .map(|(why, line)| case(*why, format!("GET / HTTP/1.1\r\nHost: app.test\r\n{line}\r\n\r\n")))
        .collect();
    for byte in no_token() {
        let bytes = [b"GET / HTTP/1.1\r\nHost: app.test\r\nX", &[byte][..], b"Y: z\r\n\r\n"].concat();
        cases.push(case(format!("byte {byte:#04x} in a name"), bytes));
    }
    for byte in no_value() {
        let bytes = [b"GET / HTTP/1.1\r\nHost: app.test\r\nX: y", &[byte][..], b"z\r\n\r\n"].concat();
        cases.push(case(format!("byte {byte:#04x} in a value"), bytes));
        let bytes =
            [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ", &[byte][..], b"chunked\r\n\r\n"].concat();
        cases.push(case(format!("byte {byte:#04x} before chunked"), bytes));
    }
    none_is_forwarded(&cases, 400, "bad_request").await;
}

#[tokio::test]
async fn hosts() {
    let fields = [
        ("none", ""),
        ("two", "Host: a\r\nHost: b\r\n"),
        ("twice the same", "Host: a\r\nHost: a\r\n"),
        ("two, apart", "Host: a\r\nX: y\r\nhost: b\r\n"),
        ("a list", "Host: a, b\r\n"),
        ("a list without a space", "Host: a,b\r\n"),
        ("a space", "Host: a b\r\n"),
        ("a tab", "Host: a\tb\r\n"),
        ("a path", "Host: a/b\r\n"),
        ("a query", "Host: a?b\r\n"),
        ("a fragment", "Host: a#b\r\n"),
        ("a user", "Host: u@a\r\n"),
        ("a scheme", "Host: http://a\r\n"),
        ("a backslash", "Host: a\\b\r\n"),
        ("a port that is none", "Host: a:b\r\n"),
        ("a port too large", "Host: a:65536\r\n"),
        ("a port much too large", "Host: a:99999999999999999999\r\n"),
        ("a negative port", "Host: a:-1\r\n"),
        ("two ports", "Host: a:80:90\r\n"),
        ("a space before the port", "Host: a: 80\r\n"),
        ("an open bracket", "Host: [::1\r\n"),
        ("a stray bracket", "Host: ::1]\r\n"),
        ("an IPv6 address without brackets", "Host: ::1\r\n"),
        ("no IPv6 address in the brackets", "Host: [a]\r\n"),
        ("something behind the brackets", "Host: [::1]a\r\n"),
        ("only a port", "Host: :80\r\n"),
        ("half an escape", "Host: a%2\r\n"),
        ("an odd escape", "Host: a%zz\r\n"),
        ("a quote", "Host: \"a\"\r\n"),
        ("angle brackets", "Host: <a>\r\n"),
        ("braces", "Host: {a}\r\n"),
        ("a bar", "Host: a|b\r\n"),
        ("a caret", "Host: a^b\r\n"),
        ("a byte that is not ASCII", "Host: \u{e4}\r\n"),
    ];
    let mut cases: Vec<_> =
        fields.iter().map(|(why, fields)| case(*why, format!("GET / HTTP/1.1\r\n{fields}\r\n"))).collect();
    cases.push(case("two in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"));
    cases.push(case("two with absolute-form", "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"));
    cases.push(case("none with absolute-form", "GET http://a/ HTTP/1.1\r\n\r\n"));
    cases.push(case("a bad one with absolute-form", "GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n"));
    none_is_forwarded(&cases, 400, "bad_request").await;
}

#[tokio::test]
async fn lengths() {
    let values = [
        "",
        " ",
        "+5",
        "-5",
        "-0",
        "+0",
        "0x5",
        "5 5",
        "5;",
        "5,",
        ",5",
        "5.0",
        "1e3",
        "five",
        "0b1",
        "5_0",
        "5a",
        "a5",
        "5, 5",
        "5,5",
        "5, 6",
        "\"5\"",
        "'5'",
        "5\t5",
        "\u{b5}",
        "\u{ff15}",
        "18446744073709551616",
        "99999999999999999999999999",
        "9223372036854775808999",
    ];
    let mut cases: Vec<_> = values
        .iter()
        .map(|value| {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {value}\r\n\r\nhello");
            case(format!("Content-Length: {value:?}"), head)
        })
        .collect();
    let fields = [
        ("twice the same", "Content-Length: 5\r\nContent-Length: 5"),
        ("two that differ", "Content-Length: 5\r\nContent-Length: 6"),
        ("two, apart, in other case", "Content-Length: 5\r\nX: y\r\ncONTENT-lENGTH: 0"),
        ("one good, one empty", "Content-Length: 5\r\nContent-Length:"),
        ("length, then chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        ("chunked, then length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
        ("a zero length and chunked", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
        ("length and identity", "Content-Length: 5\r\nTransfer-Encoding: identity"),
        ("length and a coding that is none", "Content-Length: 5\r\nTransfer-Encoding: x"),
        ("length and an empty coding", "Content-Length: 5\r\nTransfer-Encoding:"),
    ];
    for (why, fields) in fields {
        for method in ["POST", "GET"] {
            let head = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n");
            cases.push(case(format!("{why}, {method}"), head));
        }
    }
    none_is_forwarded(&cases, 400, "bad_request").await;
}

#[tokio::test]
async fn codings() {
    let values = [
        "",
        "identity",
        "gzip",
        "deflate",
        "compress",
        "xchunked",
        "chunkedx",
        "chunke",
        "chunked, gzip",
        "gzip, chunked",
        "chunked, chunked",
        "chunked,chunked",
        "identity, chunked",
        "chunked, identity",
        "chunked;q=1",
        "chunked; foo=bar",
        "chunked;",
        "chunked,",
        ",chunked",
        ", chunked",
        "chunked ,",
        ",",
        ";",
        "\"chunked\"",
        "'chunked'",
        "chunked chunked",
        "chunked identity",
        "chunked\tx",
        "trailers",
        "cow",
        "chu nked",
        "chun\u{212a}ed",
        "chunked\u{a0}",
        "(chunked)",
    ];
    let mut cases: Vec<_> = values
        .iter()
        .map(|value| {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {value}\r\n\r\n0\r\n\r\n");
            case(format!("Transfer-Encoding: {value:?}"), head)
        })
        .collect();
    let heads = [
        (
            "twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "over two fields",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "chunked not last",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        ),
        ("one empty", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:\r\n"),
        ("in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"),
        (
            "in HTTP/1.0 with a length",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        ),
        (
            "in HTTP/1.0, to be kept",
            "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("with GET", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n"),
    ];
    cases.extend(heads.iter().map(|(why, head)| case(*why, format!("{head}\r\n0\r\n\r\n"))));
    none_is_forwarded(&cases, 400, "bad_request").await;
}

#[tokio::test]
async fn chunks() {
    // Their heads are good, so they may be up when the body turns out bad: but never a whole request.
    let long_size = format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(100_000));
    let long_extension = format!("5;a={}\r\nhello\r\n0\r\n\r\n", "x".repeat(200_000));
    let bodies = [
        ("a size that is none", "g\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("only an extension", ";a=b\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        ("a positive sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("an h behind", "5h\r\nhello\r\n0\r\n\r\n"),
        ("a space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("a tab before the size", "\t5\r\nhello\r\n0\r\n\r\n"),
        ("a space in the size", "5 5\r\nhello\r\n0\r\n\r\n"),
        ("an underscore", "1_0\r\nhello\r\n0\r\n\r\n"),
        ("a comma", "5,\r\nhello\r\n0\r\n\r\n"),
        ("64 bits and one", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("far too large", "fffffffffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("the largest, which wraps with its end", "ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("CR behind the size", "5\rhello\r\n0\r\n\r\n"),
        ("CR CR LF behind the size", "5\r\r\nhello\r\n0\r\n\r\n"),
        ("LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("LF ends an extension", "5;a\nhello\r\n0\r\n\r\n"),
        ("CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("NUL in an extension", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
        ("LF behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("CR behind the data", "5\r\nhello\r0\r\n\r\n"),
        ("nothing behind the data", "5\r\nhello0\r\n\r\n"),
        ("more data than the size says", "5\r\nhelloXX\r\n0\r\n\r\n"),
        ("less data than the size says", "7\r\nhello\r\n0\r\n\r\n"),
        ("two bytes for the end of data", "5\r\nhelloXX0\r\n\r\n"),
        ("LF behind the last size", "0\n\r\n"),
        ("LF ends the body", "0\r\n\n"),
        ("CR and something else ends the body", "0\r\n\rX"),
        ("a trailer without a colon", "0\r\ntrailer\r\n\r\n"),
        ("a trailer without a name", "0\r\n: x\r\n\r\n"),
        ("a trailer with a space before the colon", "0\r\nX : y\r\n\r\n"),
        ("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n"),
        ("a trailer that begins with a space", "0\r\n X: y\r\n\r\n"),
        ("a trailer that ends with LF", "0\r\nX: y\n\r\n"),
        ("NUL in a trailer", "0\r\nX: y\0\r\n\r\n"),
        ("CR in a trailer", "0\r\nX: y\rZ: z\r\n\r\n"),
        ("a size of 100,000 digits", &long_size),
        ("an extension without an end", &long_extension),
    ];
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let cases: Vec<_> = bodies
        .iter()
        .map(|(why, body)| {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            case(*why, format!("{head}{body}"))
        })
        .collect();
    all_are_refused(&proxy, &app, &cases, 400, "bad_request").await;
    assert!(!String::from_utf8_lossy(&app.bytes()).contains("/behind"), "nothing behind goes up");
    proxy.rests().await;
}

#[tokio::test]
async fn connect_and_trace_are_not_proxied() {
    let requests = [
        ("CONNECT", "CONNECT app.test:80 HTTP/1.1\r\nHost: app.test:80\r\n\r\n"),
        ("CONNECT in origin-form", "CONNECT / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("TRACE", "TRACE / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("TRACE with Max-Forwards", "TRACE / HTTP/1.1\r\nHost: app.test\r\nMax-Forwards: 0\r\n\r\n"),
    ];
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    for (why, request) in requests {
        let mut client = proxy.connect().await;
        client.send(request).await;
        let response = client.response().await;
        // RFC 9112 §3.2.3: CONNECT has authority-form only, so its other forms may be called malformed as well.
        if why == "CONNECT in origin-form" && response.status == 400 {
            response.must_be_because(400, "bad_request", why);
        } else {
            response.must_be_because(405, "method_not_allowed", why);
            assert!(response.field("allow").is_some(), "{why}: RFC 9110 §15.5.6: what is allowed");
        }
    }
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn heads_that_are_too_large() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app])
        .listener("limits = { max_header_size = \"4KiB\", max_headers = 20 }")
        .start()
        .await;
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let many = |count: usize| (0..count).map(|i| format!("X-{i}: y\r\n")).collect::<String>();
    let cases = [
        case("a field too long", head(&format!("X: {}\r\n", "y".repeat(5000)))),
        case("a name too long", head(&format!("{}: y\r\n", "X".repeat(5000)))),
        case("a target too long", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(5000))),
        case("fields too many", head(&many(20))),
        case("fields far too many", head(&many(200))),
        case("fields together too long", head(&format!("X: {}\r\n", "y".repeat(1000)).repeat(5))),
    ];
    all_are_refused(&proxy, &app, &cases, 431, "header_too_large").await;

    for (why, endless) in [("a field", head("X: ")), ("a target", "GET /".to_owned()), ("a name", head("X"))]
    {
        let mut client = proxy.connect().await;
        client.try_send(format!("{}{}", endless.trim_end(), "y".repeat(8 << 10))).await;
        client.response().await.must_be_because(431, "header_too_large", &format!("{why} without an end"));
        client.closes().await;
    }
    assert_eq!(app.seen(), 0);

    assert_eq!(proxy.connect().await.exchange(&head(&many(19))).await.status, 200, "20 fields are allowed");
    let just = head(&format!("X: {}\r\n", "y".repeat((4 << 10) - head("X: \r\n").len())));
    assert_eq!(just.len(), 4 << 10);
    assert_eq!(proxy.connect().await.exchange(&just).await.status, 200, "4 KiB are allowed");
    let limits = proxy.metrics().await;
    assert!(limits.sum("outrigger_limit_reached_total") >= 9.0, "counted as limits too");
}

#[tokio::test]
async fn heads_that_do_not_come_in_time() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).listener("limits = { header_timeout = \"200ms\" }").start().await;
    for begun in
        ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r"]
    {
        let mut client = proxy.connect().await;
        client.send(begun).await;
        client.response().await.must_be_because(408, "header_timeout", begun);
        client.closes().await;
    }
    // The next head on a kept connection has its own time, from its own first byte.
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get("/")).await.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(
        client.exchange(&get("/")).await.status,
        200,
        "before the first byte only idle_timeout counts"
    );
    client.send("GET").await;
    client.response().await.must_be(408, "header_timeout");
    client.closes().await;
    assert_eq!(proxy.metric("outrigger_rejected_total{reason=header_timeout}").await, 5.0);
}

#[tokio::test]
async fn idle_connections_end_silently() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).listener("limits = { idle_timeout = \"200ms\" }").start().await;

    proxy.connect().await.closes().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&get("/")).await.status, 200);
    client.closes().await;

    assert!(proxy.metric("outrigger_limit_reached_total").await >= 2.0, "counted");
    proxy.metric_becomes("outrigger_client_connections{listener=main}", 0.0).await;
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().listener("limits = { max_body = \"1KiB\" }").start().await;
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n").await;
    client.response().await.must_be_because(
        413,
        "body_too_large",
        "the length says so before the body comes",
    );
    client.closes().await;
    assert_eq!(app.seen(), 0, "nothing of it goes up");

    let mut client = proxy.connect().await;
    client.try_send(format!("{chunked}{chunk}1\r\nx")).await;
    client.response().await.must_be_because(413, "body_too_large", "it shows while it comes");
    client.closes().await;

    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1025\r\n\r\n").await;
    client.response().await.must_be_because(413, "body_too_large", "nobody says continue");

    assert!(app.requests().iter().all(|request| !request.whole), "never a whole request");
    let whole = app.seen();
    assert_eq!(
        proxy.connect().await.exchange(&format!("{chunked}{chunk}0\r\n\r\n")).await.status,
        200,
        "1 KiB is allowed"
    );
    assert_eq!(app.request(whole).body.len(), 1024);
    proxy.metric_becomes("outrigger_rejected_total{reason=body_too_large}", 3.0).await;
    proxy.rests().await;
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_never_a_request() {
    // What is answered before its body is read leaves a body behind that looks like a request.
    let evil = "GET /evil HTTP/1.1\r\nHost: app.test\r\n\r\n";
    let length = evil.len();
    let head = |line: &str, fields: &str| {
        format!("{line} HTTP/1.1\r\nHost: app.test\r\nContent-Length: {length}\r\n{fields}\r\n")
    };
    let chunked =
        |line: &str| format!("{line} HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let loops = format!("X-Outrigger-Path: {}\r\n", vec!["0123abcd"; 17].join(", "));
    let in_a_chunk = format!("{length:x}\r\n{evil}\r\n0\r\n\r\n");
    let cases = [
        ("no route", head("POST /nowhere", ""), evil.to_owned(), 404),
        ("no route, in chunks", chunked("POST /nowhere"), in_a_chunk.clone(), 404),
        ("no route, with Expect", head("POST /nowhere", "Expect: 100-continue\r\n"), evil.to_owned(), 404),
        ("a loop", head("POST /a/", &loops), evil.to_owned(), 508),
        ("TRACE", head("TRACE /a/", ""), evil.to_owned(), 405),
        ("an unreachable upstream", head("POST /dead/", ""), evil.to_owned(), 502),
        ("an unreachable upstream, in chunks", chunked("POST /dead/"), in_a_chunk, 502),
        ("an early answer", head("POST /a/early", ""), evil.to_owned(), 403),
    ];
    let dead = Upstream::refusing();
    for (why, head, body, status) in cases {
        // In one piece, and with the body behind the answer.
        for at_once in [true, false] {
            let app =
                Upstream::that().answers(403).answers_before_reading_the_body().answers(200).start().await;
            let proxy = Config::over([&app])
                .plain()
                .routes_only()
                .and("[[listener.route]]\nmatch = { path_prefix = \"/a/\" }\nupstream = \"app\"")
                .and("[[listener.route]]\nmatch = { path_prefix = \"/evil\" }\nupstream = \"app\"")
                .and("[[listener.route]]\nmatch = { path_prefix = \"/dead/\" }\nupstream = \"dead\"")
                .and(&format!("[upstream.dead]\nendpoints = [\"{}\"]", dead.address()))
                .start()
                .await;
            let mut client = proxy.connect().await;
            let first = if at_once { format!("{head}{body}") } else { head.clone() };
            client.send(first).await;
            assert_eq!(client.response().await.status, status, "{why}");
            if !at_once {
                client.try_send(&body).await;
            }
            client.try_send(get("/a/next")).await;
            // The connection may end here, or go on with the next request: nothing else.
            if let Some(next) = client.response_or_end("GET").await {
                assert!([200, 403].contains(&next.status), "{why}: {next:?} {}", next.text());
            }
            let targets: Vec<_> = app.requests().into_iter().map(|request| request.target).collect();
            assert!(
                !targets.iter().any(|target| target == "/evil"),
                "{why}, at once: {at_once}: {targets:?}"
            );
        }
    }
}

#[tokio::test]
async fn trailers_are_bounded() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n").await;
    client.try_send("X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(50_000)).await;
    let response = client.response().await;
    assert!((400..500).contains(&response.status) && response.problem().is_some(), "{response:?}");
    assert!(app.requests().iter().all(|request| !request.whole));
    proxy.rests().await;
}

#[tokio::test]
async fn no_more_client_connections_than_configured() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).and("[server]\nmax_connections = 2").start().await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(&get("/")).await.status, 200);
        clients.push(client);
    }
    // The kernel takes the third one; nobody accepts it.
    let mut third = proxy.connect().await;
    third.send(get("/")).await;
    eventually("it is counted", async || {
        proxy.metric("outrigger_limit_reached_total{what=max_connections}").await >= 1.0
    })
    .await;
    assert_eq!(app.seen(), 2);
    assert_eq!(clients[0].exchange(&get("/")).await.status, 200, "those that are in go on");

    clients.pop();
    assert_eq!(third.response().await.status, 200, "a place is free");
}

#[tokio::test]
async fn what_is_odd_but_clear_is_served() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).start().await;
    let cases = [
        ("spaces around a value", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t 5 \t\r\n\r\nhello"),
        ("no space before a value", "POST / HTTP/1.1\r\nHost:a\r\nContent-Length:5\r\n\r\nhello"),
        ("leading zeros", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0005\r\n\r\nhello"),
        (
            "codings have no case",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \t CHUNKED \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "sizes have no case",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0005;x=y\r\nhello\r\n000\r\n\r\n",
        ),
        ("a body with GET", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        ("a body with DELETE", "DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        ("an unknown method", "PROPFIND / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        ("methods have case", "post / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        ("an empty value", "POST / HTTP/1.1\r\nHost: a\r\nX:\r\nContent-Length: 5\r\n\r\nhello"),
        (
            "bytes beyond ASCII in a value",
            "POST / HTTP/1.1\r\nHost: a\r\nX: \u{e4}\r\nContent-Length: 5\r\n\r\nhello",
        ),
        ("an IPv6 Host", "POST / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\n\r\nhello"),
        (
            "all token characters",
            "POST / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~: y\r\nContent-Length: 5\r\n\r\nhello",
        ),
        (
            "odd characters in the target",
            "POST /a'()*;:@&=+$,[]%20~!?a=b?c/d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        ),
        ("two slashes", "POST //evil.test/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    ];
    for (why, request) in cases {
        let before = app.seen();
        let mut client = proxy.connect().await;
        assert_eq!(client.exchange(request).await.status, 200, "{why}");
        app.has_all_of(before).await;
        assert_eq!(app.request(before).body, b"hello", "{why}");
    }
}

#[tokio::test]
async fn http_2_cannot_smuggle() {
    let ok = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];
    let with = |more: &[(&'static str, &'static str)]| [&ok[..], more].concat();
    let replaced = |name: &str, value: &'static str| {
        ok.map(|(known, old)| if known == name { (known, value) } else { (known, old) }).to_vec()
    };
    let without = |name: &str| ok.into_iter().filter(|(known, _)| *known != name).collect::<Vec<_>>();
    let cases = [
        ("a line in a value", with(&[("x", "y\r\nX-Smuggled: 1")])),
        ("LF in a value", with(&[("x", "y\nX-Smuggled: 1")])),
        ("CR in a value", with(&[("x", "y\rX-Smuggled: 1")])),
        ("NUL in a value", with(&[("x", "y\0")])),
        ("a line in a name", with(&[("x: y\r\nx-smuggled", "1")])),
        ("a colon in a name", with(&[("x:y", "1")])),
        ("a space in a name", with(&[("x y", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("upper case in a name", with(&[("X-Smuggled", "1")])),
        ("Transfer-Encoding", with(&[("transfer-encoding", "chunked")])),
        ("Connection", with(&[("connection", "x-smuggled")])),
        ("Keep-Alive", with(&[("keep-alive", "1")])),
        ("Proxy-Connection", with(&[("proxy-connection", "close")])),
        ("Upgrade", with(&[("upgrade", "websocket")])),
        ("a length that is none", with(&[("content-length", "x")])),
        ("two lengths", with(&[("content-length", "4"), ("content-length", "5")])),
        ("a length beyond the data", with(&[("content-length", "400")])),
        ("a length below the data", with(&[("content-length", "1")])),
        ("a signed length", with(&[("content-length", "+4")])),
        ("a space in the path", replaced(":path", "/ HTTP/1.1\r\nX-Smuggled:")),
        ("a plain space in the path", replaced(":path", "/a b")),
        ("a line in the path", replaced(":path", "/\r\nX-Smuggled: 1")),
        ("no slash before the path", replaced(":path", "smuggled")),
        ("an empty path", replaced(":path", "")),
        ("a whole URL as path", replaced(":path", "http://other.test/")),
        ("a space in the method", replaced(":method", "GET /smuggled HTTP/1.1")),
        ("a line in the method", replaced(":method", "GET\r\n")),
        ("an empty method", replaced(":method", "")),
        ("a line in the authority", replaced(":authority", "a\r\nX-Smuggled: 1")),
        ("a space in the authority", replaced(":authority", "a b")),
        ("a path in the authority", replaced(":authority", "a/smuggled")),
        ("a user in the authority", replaced(":authority", "u@app.test")),
        ("no path", without(":path")),
        ("no method", without(":method")),
        ("two paths", with(&[(":path", "/smuggled")])),
        ("an unknown pseudo-header", with(&[(":smuggled", "1")])),
        ("a pseudo-header behind a field", [&[("x", "y")], &ok[..]].concat()),
        ("a Host that differs", with(&[("host", "other.test")])),
        ("two Hosts", with(&[("host", "app.test"), ("host", "app.test")])),
    ];
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().start().await;
    for (why, fields) in &cases {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        client.headers(1, fields, false).await;
        client.data(1, b"body").await;
        client.outcome(1).await;
        for seen in app.requests().iter().filter(|seen| seen.whole) {
            // A request may still go on where its meaning is clear: then as one request, with what was said.
            assert!(!seen.head.to_lowercase().contains("smuggled"), "{why}: {}", seen.head);
            assert_eq!((seen.body.as_slice(), seen.field("host")), (&b"body"[..], Some("app.test")), "{why}");
            assert!(seen.head.starts_with("POST / HTTP/1.1\r\n"), "{why}: {}", seen.head);
            for field in ["connection", "keep-alive", "proxy-connection", "upgrade"] {
                assert_eq!(seen.field(field), None, "{why}: {}", seen.head);
            }
        }
    }
    // A length, and the end of the stream with the head.
    for length in ["5", "4, 4", "-1"] {
        let mut client = RawHttp2::connect(proxy.listener()).await;
        client.headers(1, &with(&[("content-length", length)]), true).await;
        client.outcome(1).await;
        assert!(!app.requests().iter().any(|seen| seen.field("content-length") == Some("5")), "{length}");
    }
    // CONNECT has no path, and no way through.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    client.headers(1, &[(":method", "CONNECT"), (":authority", "app.test:80")], true).await;
    client.outcome(1).await;
    assert!(!app.requests().iter().any(|seen| seen.method == "CONNECT"));

    // It lives, and good ones go on.
    let mut client = RawHttp2::connect(proxy.listener()).await;
    let before = app.seen();
    client.headers(1, &ok, false).await;
    client.data(1, b"body").await;
    assert_eq!(client.outcome(1).await, http2::Came::Head);
    assert_eq!(app.request(before).body, b"body");
}

/// A request with a few bytes changed, left out, put in or said twice; the same for the same seed.
fn mutated(seed: u64) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let seeds = [
        "POST /a?b HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\n",
        "GET http://app.test/ HTTP/1.1\r\nHost: app.test\r\nConnection: keep-alive, X\r\nX: y\r\n\r\n",
        "PUT / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
    ];
    let mut bytes = seeds[dice.usize(..seeds.len())].as_bytes().to_vec();
    let odd = b"\0\t\n\r \"#%,-/0159:;=?@ACTX[]_achklnt{}\x7f\x80\xff";
    let words: [&[u8]; 12] = [
        b"\r\n",
        b"\r\n\r\n",
        b" chunked",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: a\r\n",
        b"\r\n ",
        b" : ",
        b"0\r\n\r\n",
        b"HTTP/1.1",
        b"GET /in HTTP/1.1\r\n",
        b"Connection: close\r\n",
    ];
    for _ in 0..dice.usize(1..4) {
        let at = dice.usize(..bytes.len());
        match dice.u8(..5) {
            0 => bytes[at] = odd[dice.usize(..odd.len())],
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, odd[dice.usize(..odd.len())]),
            3 => drop(bytes.splice(at..at, words[dice.usize(..words.len())].iter().copied())),
            _ => {
                let end = dice.usize(at..bytes.len().min(at + 30));
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

/// What is wrong with the form of a request that went up.
fn fault(head: &str) -> Option<&'static str> {
    let (line, lines) = head.split_once("\r\n").unwrap_or((head, ""));
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && no_token().all(|no| no != b))
    };
    let words: Vec<_> = line.split(' ').collect();
    let &[method, target, "HTTP/1.1"] = words.as_slice() else { return Some("its request line") };
    if !token(method) || target.is_empty() || target.bytes().any(|b| b <= 32 || b == 127) {
        return Some("its method or target");
    }
    let names: Vec<_> = lines.split("\r\n").map(|line| line.split_once(':')).collect();
    if names.iter().any(Option::is_none) {
        return Some("a line without a colon");
    }
    let fields: Vec<_> =
        names.into_iter().flatten().map(|(name, value)| (name.to_ascii_lowercase(), value.trim())).collect();
    if !fields.iter().all(|(name, value)| {
        token(name) && value.bytes().all(|b| no_value().all(|no| no != b) && b != b'\n' && b != b'\r')
    }) {
        return Some("a name or a value");
    }
    let count = |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).count();
    let lengths: Vec<_> =
        fields.iter().filter(|(name, _)| name == "content-length").map(|(_, value)| *value).collect();
    match (count("host"), lengths.as_slice(), count("transfer-encoding")) {
        (1, [], 0 | 1) => None,
        (1, [length], 0) => (!length.bytes().all(|b| b.is_ascii_digit())).then_some("its length"),
        _ => Some("its framing or its Host"),
    }
}

#[tokio::test]
async fn whatever_is_sent_what_goes_up_is_well_formed_and_answered() {
    let app = Upstream::that().answers(200).with_body("ok").start().await;
    let proxy = Config::over([&app])
        .plain()
        .listener("limits = { header_timeout = \"100ms\", idle_timeout = \"100ms\" }")
        .upstream("timeout.idle = \"100ms\"")
        .start()
        .await;
    let address = proxy.listener();
    let mut answered = 0;
    for batch in 0..40 {
        let clients: Vec<_> = (0..50)
            .map(|number| {
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    client
                        .try_send([mutated(50 * batch + number).as_slice(), BEHIND.as_bytes()].concat())
                        .await;
                    let mut answers = Vec::new();
                    while let Some(response) = client.response_or_end("GET").await {
                        answers.push(response.status);
                    }
                    answers
                })
            })
            .collect();
        for client in clients {
            let answers = client.await.expect("no panic");
            answered += answers.iter().filter(|status| **status == 200).count();
            // A refusal of the form is the last word on its connection.
            let last = answers.iter().position(|status| *status == 400);
            assert!(last.is_none_or(|last| last + 1 == answers.len()), "{answers:?}");
        }
    }
    let requests = app.requests();
    let faults: Vec<_> =
        requests.iter().filter_map(|seen| fault(&seen.head).map(|fault| (fault, &seen.head))).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let whole = requests.iter().filter(|seen| seen.whole).count();
    assert!(whole > 500, "many were good after all: {whole}");
    assert_eq!(answered, whole, "each request that went up whole was answered to its client, and no other");
    proxy.rests().await;
}
