//! What must hold for each head that the codec accepts, request or response.

use outrigger::http1::field::{Field, Fields, Name};
use outrigger::http1::head::Framing;

/// The fields agree with the framing, and say it once.
pub fn framed_once(fields: &Fields, framing: Framing) {
    let lengths = fields.all(Name::ContentLength).count();
    let codings = fields.all(Name::TransferEncoding).count();
    assert!(lengths + codings <= 1, "framed twice");
    match framing {
        Framing::Length(_) => assert_eq!(lengths, 1),
        Framing::Chunked => assert_eq!(codings, 1),
        Framing::None | Framing::UntilClose => {}
    }
    for Field { name, value, known } in fields.iter() {
        assert_eq!(known, Name::of(name));
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic) && !name.contains(&b':'));
        assert!(value.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f));
        assert!(value.trim_ascii() == value, "white space around a value");
    }
}

/// Whether each CR stands before an LF and each LF after a CR.
pub fn has_no_bare_line_end(text: &[u8]) -> bool {
    (0..text.len()).all(|at| match text[at] {
        b'\r' => text.get(at + 1) == Some(&b'\n'),
        b'\n' => at > 0 && text[at - 1] == b'\r',
        _ => true,
    })
}
