//! Target: any bytes as a body. The first two bytes steer: the framing, and how the rest is cut.

use outrigger::http1::body::{Broken, Decoder, Piece};
use outrigger::http1::encode;
use outrigger::http1::field::{Fields, Name};
use outrigger::http1::head::Framing;

use super::pieces::{ends, steer};

/// Runs the target on one input; panics if something that must hold does not.
pub fn body(data: &[u8]) {
    let Some(([framing, cuts], input)) = steer(data) else { return };
    let framing = match framing {
        0 => Framing::None,
        1 => Framing::UntilClose,
        2..=63 => Framing::Length(u64::from(framing)),
        _ => Framing::Chunked,
    };

    let (whole, decoder) = read(framing, input, [input.len()].into_iter());
    let (by_piece, _) = read(framing, input, ends(input.len(), cuts));
    assert_eq!(by_piece, whole, "in pieces it is the same");

    let consumed = match whole.end {
        Some(Ok(consumed)) => consumed,
        _ => input.len(),
    };
    match framing {
        Framing::None => assert_eq!((consumed, whole.payload.len()), (0, 0)),
        Framing::UntilClose => assert_eq!(whole.payload, input),
        Framing::Length(length) => assert_eq!(whole.payload, input[..input.len().min(length as usize)]),
        Framing::Chunked => {
            assert!(whole.payload.len() <= consumed);
            if let Some(Ok(consumed)) = whole.end {
                // Without its last byte it is not complete.
                let (shorter, _) = read(framing, &input[..consumed - 1], [consumed - 1].into_iter());
                assert_eq!(shorter.end, None);
                written_again(&whole.payload, decoder.trailers());
            }
        }
    }
}

/// What was read in chunks is written and read as the same.
fn written_again(payload: &[u8], trailers: Option<&Fields>) {
    for trailer in trailers.into_iter().flat_map(Fields::iter) {
        assert!(!trailer.known.is_hop_by_hop(), "concerns the connection");
        assert!(!matches!(trailer.known, Name::ContentLength | Name::Host), "frames the message");
    }
    let mut wire = Vec::new();
    for chunk in payload.chunks(7) {
        encode::chunk(&mut wire, chunk.len());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(encode::CHUNK_END);
    }
    encode::last_chunk(&mut wire, trailers);
    let (read, decoder) = read(Framing::Chunked, &wire, [wire.len()].into_iter());
    assert_eq!(read, Read { payload: payload.to_vec(), end: Some(Ok(wire.len())) });
    assert_eq!(texts(decoder.trailers()), texts(trailers));
}

fn texts(fields: Option<&Fields>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let fields = fields.into_iter().flat_map(Fields::iter);
    fields.map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
}

/// What became of a body.
#[derive(Debug, PartialEq)]
struct Read {
    payload: Vec<u8>,
    /// `None`: it goes on.
    end: Option<Result<usize, Broken>>,
}

/// Reads a body that comes in pieces with these ends.
fn read(framing: Framing, input: &[u8], ends: impl Iterator<Item = usize>) -> (Read, Decoder) {
    let mut decoder = Decoder::new(framing);
    let (mut at, mut payload) = (0, Vec::new());
    // Once more at the end: what needs no byte more may still have its end to tell.
    for end in ends.chain([input.len()]) {
        loop {
            let left = decoder.remaining();
            match decoder.next(&input[at..end]) {
                Ok(Piece::Data { skip, len }) => {
                    assert!(len > 0 && at + skip + len <= end, "only what is there was taken");
                    payload.extend_from_slice(&input[at + skip..at + skip + len]);
                    at += skip + len;
                    if let Some(left) = left {
                        assert_eq!(decoder.remaining().unwrap_or(0), left - len as u64);
                    }
                }
                Ok(Piece::More { skip }) => {
                    assert_eq!(at + skip, end, "all is taken before more is asked for");
                    assert!(!decoder.is_done());
                    at = end;
                    break;
                }
                Ok(Piece::End { skip }) => {
                    assert!(decoder.is_done() && at + skip <= end);
                    assert_eq!(decoder.next(b"more"), Ok(Piece::End { skip: 0 }), "done stays done");
                    assert_eq!(decoder.at_eof(), Ok(()));
                    return (Read { payload, end: Some(Ok(at + skip)) }, decoder);
                }
                Err(broken) => {
                    assert_eq!(decoder.next(b"more"), Err(broken), "broken stays broken");
                    assert!(!decoder.is_done());
                    return (Read { payload, end: Some(Err(broken)) }, decoder);
                }
            }
        }
    }
    (Read { payload, end: None }, decoder)
}
