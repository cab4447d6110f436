//! Target: any bytes as a response head. The first two bytes steer: limits and whether HEAD was asked, and how the
//! rest is cut.

use outrigger::http1::encode;
use outrigger::http1::head::{Framing, Limits, Parsed, ResponseHead, Version};
use outrigger::reason::Reason;

use super::heads::{framed_once, has_no_bare_line_end};
use super::pieces::{ends, steer};

/// Runs the target on one input; panics if something that must hold does not.
pub fn response(data: &[u8]) {
    let Some(([steering, cuts], input)) = steer(data) else { return };
    let limits =
        Limits { max_size: 64 + 16 * usize::from(steering), max_fields: 1 + usize::from(steering % 32) };
    let is_head = steering & 1 == 1;

    let mut head = ResponseHead::new();
    let whole = head.parse(input, &mut 0, is_head, &limits);

    let mut by_piece = ResponseHead::new();
    let (mut scanned, mut outcome) = (0, Ok(Parsed::Partial));
    for end in ends(input.len(), cuts) {
        outcome = by_piece.parse(&input[..end], &mut scanned, is_head, &limits);
        match outcome {
            Ok(Parsed::Partial) => assert!(scanned <= end, "only what is there was looked at"),
            Ok(Parsed::Head { size }) => {
                assert!(size <= end, "only what is there was taken");
                break;
            }
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::ProtocolError);
                break;
            }
        }
    }

    match (whole, outcome) {
        (Ok(Parsed::Head { size }), outcome) => {
            assert_eq!(outcome, whole, "in pieces it is the same");
            assert_eq!(said(&by_piece), said(&head), "in pieces it says the same");
            accepted(&mut head, &input[..size], is_head, &limits);
        }
        (Ok(Parsed::Partial), outcome) => assert_eq!(outcome, whole, "in pieces it is incomplete too"),
        // In pieces, what is wrong in the fields may show only at their end.
        (Err(_), outcome) => assert!(matches!(outcome, Err(_) | Ok(Parsed::Partial)), "accepted in pieces"),
    }
}

/// What holds for each head that was accepted.
fn accepted(head: &mut ResponseHead, text: &[u8], is_head: bool, limits: &Limits) {
    assert!(text.len() <= limits.max_size && head.fields.len() <= limits.max_fields);
    assert!(text.ends_with(b"\r\n\r\n") && has_no_bare_line_end(text));
    assert!(!text.contains(&0) && !text.contains(&0x7f));
    framed_once(&head.fields, head.framing);
    assert!((100..=999).contains(&head.status));
    let bodiless = is_head || matches!(head.status, 100..=199 | 204 | 304);
    assert_eq!(head.framing == Framing::None, bodiless);
    assert!(head.framing != Framing::UntilClose || !head.keep_alive);

    let shorter = ResponseHead::new().parse(&text[..text.len() - 1], &mut 0, is_head, limits);
    assert_eq!(shorter, Ok(Parsed::Partial), "without its last byte it is not complete");

    // A missing phrase is written as the standard one, the version as ours, and a 204 without the length that it may
    // not have.
    if head.version == Version::Http11 && !head.reason_phrase().is_empty() && head.status != 204 {
        let mut written = Vec::new();
        encode::status_line(&mut written, head.status, head.reason_phrase());
        head.fields.iter().for_each(|field| encode::field(&mut written, field.name, field.value));
        encode::end(&mut written);
        let roomy = Limits { max_size: 2 * limits.max_size + 16, ..*limits };
        let before = said(head);
        let again = head.parse(&written, &mut 0, is_head, &roomy);
        assert_eq!(again, Ok(Parsed::Head { size: written.len() }), "written again it is accepted");
        assert_eq!(said(head), before, "written again it says the same");
    }
}

/// All that a head says.
fn said(head: &ResponseHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let fields: Vec<_> = head.fields.iter().map(|f| (f.known, f.name.to_vec(), f.value.to_vec())).collect();
    let decided = (head.status, head.version, head.framing, head.keep_alive);
    (decided, head.reason_phrase().to_vec(), fields)
}
