use super::*;

#[test]
fn a_chunked_body_is_read_piece_by_piece() {
    let mut decoder = Decoder::new(Framing::Chunked);
    let input = b"3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\nGET";
    assert_eq!(decoder.next(input), Ok(Piece::Data { skip: 7, len: 3 }));
    assert_eq!(decoder.next(&input[10..]), Ok(Piece::End { skip: 13 }));
    assert!(decoder.is_done());
    assert_eq!(decoder.trailers().map(Fields::len), Some(1));
}
