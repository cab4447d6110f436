use super::*;

const LIMITS: Limits = Limits { max_size: 4096, max_fields: 16 };

#[test]
fn a_usual_request_is_read_and_framed() {
    let input = b"POST /a/b?c HTTP/1.1\r\nHost: example.com:8080\r\nContent-Length: 3\r\nX: \r\nConnection: keep-alive, X\r\n\r\nabc";
    let mut head = RequestHead::new();
    let parsed = head.parse(input, &mut 0, &LIMITS);
    assert_eq!(parsed, Ok(Parsed::Head { size: input.len() - 3 }));
    assert_eq!((head.method, head.method_text()), (Method::Post, &b"POST"[..]));
    assert_eq!((head.target(), head.path_and_query()), (&b"/a/b?c"[..], &b"/a/b?c"[..]));
    assert_eq!((head.authority(), head.host()), (&b"example.com:8080"[..], &b"example.com"[..]));
    assert_eq!((head.framing, head.keep_alive), (Framing::Length(3), true));
    assert!(head.is_connection_option(b"x") && !head.is_connection_option(b"host"));
    assert_eq!(head.fields.len(), 4);
    assert_eq!(head.fields.find(b"x").collect::<Vec<_>>(), [b""]);
}

#[test]
fn a_usual_response_is_read_and_framed() {
    let input = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n";
    let mut head = ResponseHead::new();
    assert_eq!(head.parse(input, &mut 0, false, &LIMITS), Ok(Parsed::Head { size: input.len() }));
    assert_eq!((head.status, head.reason_phrase()), (200, &b"OK"[..]));
    assert_eq!((head.framing, head.keep_alive), (Framing::Chunked, false));
}
