use proptest::prelude::*;

use super::*;
use crate::http1::encode;
use crate::http1::field::Name;

/// What became of a body: its payload, and how it ended (`None`: not yet) after how many bytes of input.
#[derive(Debug, PartialEq)]
struct Read {
    payload: Vec<u8>,
    end: Option<Result<usize, Broken>>,
}

/// Reads `input` cut into pieces at `cuts`, which ascend.
fn read(decoder: &mut Decoder, input: &[u8], cuts: &[usize]) -> Read {
    let (mut at, mut payload) = (0, Vec::new());
    for &cut in cuts.iter().chain([&input.len()]) {
        loop {
            match decoder.next(&input[at..cut]) {
                Ok(Piece::Data { skip, len }) => {
                    assert_ne!(len, 0);
                    payload.extend_from_slice(&input[at + skip..at + skip + len]);
                    at += skip + len;
                }
                Ok(Piece::More { skip }) => {
                    assert_eq!(at + skip, cut, "all is consumed before more is asked for");
                    at = cut;
                    break;
                }
                Ok(Piece::End { skip }) => return Read { payload, end: Some(Ok(at + skip)) },
                Err(broken) => return Read { payload, end: Some(Err(broken)) },
            }
        }
    }
    Read { payload, end: None }
}

#[test]
fn chunked_bodies_end_with_their_last_chunk() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str)] = &[
        ("no chunk",                 "0\r\n\r\n",                                   ""),
        ("one chunk",                "3\r\nabc\r\n0\r\n\r\n",                       "abc"),
        ("several",                  "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",              "abc"),
        ("hexadecimal",              "A\r\n0123456789\r\n0\r\n\r\n",                "0123456789"),
        ("in either case",           "a\r\n0123456789\r\n0\r\n\r\n",                "0123456789"),
        ("leading zeros",            "0000000000000003\r\nabc\r\n000\r\n\r\n",      "abc"),
        ("an extension",             "3;a=b\r\nabc\r\n0;c\r\n\r\n",                 "abc"),
        ("a quoted extension",       "3; a = \"x; y\"\r\nabc\r\n0\r\n\r\n",         "abc"),
        ("a chunk that looks like one", "5\r\n0\r\n\r\n\r\n0\r\n\r\n",              "0\r\n\r\n"),
        ("a trailer",                "3\r\nabc\r\n0\r\nA: b\r\n\r\n",               "abc"),
    ];
    for (why, input, payload) in cases {
        let input = format!("{input}GET / HTTP/1.1");
        let read = read(&mut Decoder::new(Framing::Chunked), input.as_bytes(), &[]);
        let end = Some(Ok(input.len() - "GET / HTTP/1.1".len()));
        assert_eq!(read, Read { payload: payload.as_bytes().to_vec(), end }, "{why}: {input:?}");
    }
}

#[test]
fn broken_chunks_are_refused() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("no size",                         "\r\nabc\r\n0\r\n\r\n"),
        ("no size but an extension",        ";a\r\nabc\r\n0\r\n\r\n"),
        ("plus",                            "+3\r\nabc\r\n0\r\n\r\n"),
        ("minus",                           "-3\r\nabc\r\n0\r\n\r\n"),
        ("0x",                              "0x3\r\nabc\r\n0\r\n\r\n"),
        ("no hexadecimal digit",            "g\r\nabc\r\n0\r\n\r\n"),
        ("an underscore",                   "1_0\r\nabc\r\n0\r\n\r\n"),
        ("a space before the size",         " 3\r\nabc\r\n0\r\n\r\n"),
        ("a space after the size",          "3 \r\nabc\r\n0\r\n\r\n"),
        ("a tab after the size",            "3\t\r\nabc\r\n0\r\n\r\n"),
        ("a space before the extension",    "3 ;a\r\nabc\r\n0\r\n\r\n"),
        ("a space inside the size",         "1 0\r\nabc\r\n0\r\n\r\n"),
        ("17 digits",                       "00000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("beyond 64 bits",                  "10000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("beyond a signed number",          "8000000000000000\r\nabc"),
        ("all bits",                        "ffffffffffffffff\r\nabc"),
        ("bare LF after the size",          "3\nabc\r\n0\r\n\r\n"),
        ("bare CR after the size",          "3\rabc\r\n0\r\n\r\n"),
        ("CR CR LF after the size",         "3\r\r\nabc\r\n0\r\n\r\n"),
        ("bare LF after the payload",       "3\r\nabc\n0\r\n\r\n"),
        ("bare CR after the payload",       "3\r\nabc\r0\r\n\r\n"),
        ("nothing after the payload",       "3\r\nabc0\r\n\r\n"),
        ("a payload longer than its size",  "3\r\nabcd\r\n0\r\n\r\n"),
        ("a payload shorter than its size", "4\r\nabc\r\n0\r\n\r\n"),
        ("bare LF in an extension",         "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("bare CR in an extension",         "3;a\rb\r\nabc\r\n0\r\n\r\n"),
        ("NUL in an extension",             "3;a\0\r\nabc\r\n0\r\n\r\n"),
        ("an extension that is not ASCII",  "3;\u{e4}\r\nabc\r\n0\r\n\r\n"),
        ("bare LF after the last chunk",    "0\n\r\n"),
        ("bare LF at the end",              "0\r\n\n"),
        ("bare CR at the end",              "0\r\n\rx"),
        ("bare LF after a trailer",         "0\r\nA: b\n\r\n"),
        ("bare CR in a trailer",            "0\r\nA: b\rc\r\n\r\n"),
        ("a folded trailer",                "0\r\nA: b\r\n c\r\n\r\n"),
        ("white space before the colon",    "0\r\nA : b\r\n\r\n"),
        ("a trailer without a colon",       "0\r\nGET / HTTP/1.1\r\n\r\n"),
        ("NUL in a trailer",                "0\r\nA: \0\r\n\r\n"),
        ("Content-Length as a trailer",     "0\r\nContent-Length: 3\r\n\r\n"),
        ("Transfer-Encoding as a trailer",  "0\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("Host as a trailer",               "0\r\nHost: evil\r\n\r\n"),
    ];
    for (why, input) in cases {
        let mut decoder = Decoder::new(Framing::Chunked);
        let outcome = read(&mut decoder, input.as_bytes(), &[]);
        let Some(Err(broken)) = outcome.end else { panic!("{why}: {input:?} became {outcome:?}") };
        assert_eq!(decoder.next(b"0\r\n\r\n"), Err(broken), "{why}: broken stays broken");
        assert!(!decoder.is_done() && decoder.at_eof().is_err(), "{why}");
    }
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let one = |size: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(size));
    let many = |count: usize| "1;xxxxxxx\r\na\r\n".repeat(count) + "0\r\n\r\n";
    let long = |size: usize| format!("0\r\nA: {}\r\n\r\n", "x".repeat(size));
    let lines = |count: usize| format!("0\r\n{}\r\n", "a:\r\n".repeat(count));
    let extensions = MAX_EXTENSIONS as usize;
    let cases = [
        ("one extension", one(extensions), true),
        ("one too large", one(extensions + 1), false),
        ("many extensions", many(extensions / 7), true),
        ("many too large together", many(extensions / 7 + 1), false),
        ("a long trailer", long(MAX_TRAILERS_SIZE - 5), true),
        ("a trailer too long", long(MAX_TRAILERS_SIZE - 4), false),
        ("many trailers", lines(MAX_TRAILERS), true),
        ("too many", lines(MAX_TRAILERS + 1), false),
    ];
    for (why, input, accepted) in cases {
        let outcome = read(&mut Decoder::new(Framing::Chunked), input.as_bytes(), &[]);
        assert_eq!(matches!(outcome.end, Some(Ok(_))), accepted, "{why}: {:?}", outcome.end);
    }
}

#[test]
fn trailers_come_after_the_end_and_say_nothing_about_the_connection() {
    let mut decoder = Decoder::new(Framing::Chunked);
    let input = b"0\r\ngrpc-status: 0\r\nConnection: close\r\nX-Sum:\t1 \r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(decoder.next(&input[..20]), Ok(Piece::More { skip: 20 }));
    assert!(decoder.trailers().is_none());
    assert_eq!(decoder.next(&input[20..]), Ok(Piece::End { skip: input.len() - 20 }));
    let trailers = decoder.trailers().expect("complete");
    let read: Vec<_> = trailers.iter().map(|trailer| (trailer.known, trailer.name, trailer.value)).collect();
    assert_eq!(
        read,
        [(Name::GrpcStatus, &b"grpc-status"[..], &b"0"[..]), (Name::Other, b"X-Sum", b"1")],
        "what concerns the connection is left out"
    );
}

#[test]
fn a_body_of_known_length_ends_with_its_last_byte() {
    let mut decoder = Decoder::new(Framing::Length(5));
    assert_eq!((decoder.remaining(), decoder.is_done()), (Some(5), false));
    assert_eq!(decoder.next(b""), Ok(Piece::More { skip: 0 }));
    assert_eq!(decoder.next(b"ab"), Ok(Piece::Data { skip: 0, len: 2 }));
    assert_eq!((decoder.remaining(), decoder.is_done()), (Some(3), false));
    assert_eq!(decoder.next(b"cdeGET"), Ok(Piece::Data { skip: 0, len: 3 }));
    assert_eq!((decoder.remaining(), decoder.is_done()), (None, true));
    assert_eq!(decoder.next(b"GET"), Ok(Piece::End { skip: 0 }));
}

#[test]
fn the_end_of_the_connection_ends_only_what_ends_so() {
    #[rustfmt::skip]
    let cases: &[(&str, Framing, &str, bool)] = &[
        ("no body",             Framing::None,       "",                    true),
        ("a length of zero",    Framing::Length(0),  "",                    true),
        ("all bytes came",      Framing::Length(3),  "abc",                 true),
        ("one is missing",      Framing::Length(3),  "ab",                  false),
        ("until it closes",     Framing::UntilClose, "abc",                 true),
        ("nothing came",        Framing::UntilClose, "",                    true),
        ("the last chunk came", Framing::Chunked,    "3\r\nabc\r\n0\r\n\r\n", true),
        ("cut before it",       Framing::Chunked,    "3\r\nabc\r\n",        false),
        ("cut in a chunk",      Framing::Chunked,    "3\r\na",              false),
        ("cut in the end",      Framing::Chunked,    "3\r\nabc\r\n0\r\n\r", false),
        ("cut in the trailers", Framing::Chunked,    "0\r\nA: b\r\n",       false),
        ("cut at the start",    Framing::Chunked,    "",                    false),
    ];
    for (why, framing, input, whole) in cases {
        let mut decoder = Decoder::new(*framing);
        read(&mut decoder, input.as_bytes(), &[]);
        assert_eq!(decoder.at_eof().is_ok(), *whole, "{why}");
        assert_eq!(decoder.is_done(), *whole, "{why}");
    }
}

/// Any bytes that look like chunks, well-formed or not.
fn chunkish() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 1..40).prop_map(|payload| {
            let mut out = Vec::new();
            encode::chunk(&mut out, payload.len());
            out.extend_from_slice(&payload);
            out.extend_from_slice(encode::CHUNK_END);
            out
        }),
        1 => Just(b"0\r\n\r\n".to_vec()),
        1 => Just(b"0\r\nA: b\r\n\r\n".to_vec()),
        1 => Just(b"2;a=b\r\nxy\r\n".to_vec()),
        1 => "[0-9a-f;:\r\n ]{0,6}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    /// However a body is cut into pieces, its payload and its end are the same.
    #[test]
    fn any_split_gives_the_same_body(input in chunkish(), cuts in proptest::collection::vec(0usize..200, 0..10)) {
        let whole = read(&mut Decoder::new(Framing::Chunked), &input, &[]);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
        cuts.sort_unstable();
        prop_assert_eq!(&read(&mut Decoder::new(Framing::Chunked), &input, &cuts), &whole);
        let bytes: Vec<_> = (0..input.len()).collect();
        prop_assert_eq!(&read(&mut Decoder::new(Framing::Chunked), &input, &bytes), &whole);
    }

    /// What is written in chunks is read as what it was.
    #[test]
    fn written_chunks_are_read_again(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..6)) {
        let mut wire = Vec::new();
        for payload in &chunks {
            encode::chunk(&mut wire, payload.len());
            wire.extend_from_slice(payload);
            wire.extend_from_slice(encode::CHUNK_END);
        }
        encode::last_chunk(&mut wire, None);
        let end = Some(Ok(wire.len()));
        let read = read(&mut Decoder::new(Framing::Chunked), &wire, &[]);
        prop_assert_eq!(read, Read { payload: chunks.concat(), end });
    }
}
