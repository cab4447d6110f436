//! Target: any bytes as a request head. The first two bytes steer: limits, and how the rest is cut.

use outrigger::http1::encode;
use outrigger::http1::field::Name;
use outrigger::http1::head::{Form, Framing, Limits, Parsed, RequestHead, Version};

use super::heads::{framed_once, has_no_bare_line_end};
use super::pieces::{ends, steer};

/// Runs the target on one input; panics if something that must hold does not.
pub fn request(data: &[u8]) {
    let Some(([size, cuts], input)) = steer(data) else { return };
    let limits = Limits { max_size: 64 + 16 * usize::from(size), max_fields: 1 + usize::from(size % 32) };

    let mut head = RequestHead::new();
    let mut scanned = 0;
    let whole = head.parse(input, &mut scanned, &limits);

    let mut by_piece = RequestHead::new();
    let (mut scanned_by_piece, mut outcome) = (0, Ok(Parsed::Partial));
    for end in ends(input.len(), cuts) {
        outcome = by_piece.parse(&input[..end], &mut scanned_by_piece, &limits);
        match outcome {
            Ok(Parsed::Partial) => assert!(scanned_by_piece <= end, "only what is there was looked at"),
            Ok(Parsed::Head { size }) => {
                assert!(size <= end, "only what is there was taken");
                break;
            }
            Err(_) => break,
        }
    }

    match (whole, outcome) {
        (Ok(Parsed::Head { size }), outcome) => {
            assert_eq!(outcome, whole, "in pieces it is the same");
            assert_eq!(said(&by_piece), said(&head), "in pieces it says the same");
            accepted(&mut head, &input[..size], &limits);
        }
        (Ok(Parsed::Partial), outcome) => assert_eq!(outcome, whole, "in pieces it is incomplete too"),
        // In pieces, what is wrong in the fields may show only at their end.
        (Err(_), outcome) => assert!(matches!(outcome, Err(_) | Ok(Parsed::Partial)), "accepted in pieces"),
    }
}

/// What holds for each head that was accepted.
fn accepted(head: &mut RequestHead, text: &[u8], limits: &Limits) {
    assert!(text.len() <= limits.max_size && head.fields.len() <= limits.max_fields);
    assert!(text.ends_with(b"\r\n\r\n") && has_no_bare_line_end(text));
    assert!(!text.contains(&0) && !text.contains(&0x7f));
    framed_once(&head.fields, head.framing);
    assert_ne!(head.framing, Framing::UntilClose);

    assert!(head.target().iter().all(u8::is_ascii_graphic));
    let hosts = head.fields.all(Name::Host).count();
    assert!(hosts == 1 || hosts == 0 && head.version == Version::Http10);
    assert!(head.authority().starts_with(head.host()));
    let path = head.path_and_query();
    match head.form {
        Form::Authority => assert!(path.is_empty()),
        Form::Asterisk => assert_eq!(path, b"*"),
        Form::Origin => assert_eq!(path.first(), Some(&b'/')),
        Form::Absolute => assert!(path.first() == Some(&b'/') || path == b"*"),
    }

    let shorter = RequestHead::new().parse(&text[..text.len() - 1], &mut 0, limits);
    assert_eq!(shorter, Ok(Parsed::Partial), "without its last byte it is not complete");

    // A request of HTTP/1.0 goes on as one of HTTP/1.1, which must have a Host; so only the others can be compared.
    if head.version == Version::Http11 {
        let mut written = Vec::new();
        encode::request_line(&mut written, head.method_text(), head.target());
        head.fields.write(&mut written, |_| true);
        encode::end(&mut written);
        let roomy = Limits { max_size: 2 * limits.max_size + 16, ..*limits };
        let before = said(head);
        let again = head.parse(&written, &mut 0, &roomy);
        assert_eq!(again, Ok(Parsed::Head { size: written.len() }), "written again it is accepted");
        assert_eq!(said(head), before, "written again it says the same");
    }
}

/// All that a head says.
fn said(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let fields: Vec<_> = head.fields.iter().map(|f| (f.known, f.name.to_vec(), f.value.to_vec())).collect();
    let texts = [head.method_text(), head.target(), head.path_and_query(), head.authority(), head.host()];
    let decided = (head.method, head.version, head.form, head.framing, head.keep_alive, head.expect_continue);
    (decided, texts.map(<[u8]>::to_vec), fields)
}
