//! Inputs for the targets: corpus entries, changed at random where it hurts.

use fastrand::Rng;

/// Pieces that HTTP parsers stumble over.
const MORSELS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"0",
    b"0\r\n\r\n",
    b"0\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff",
    b"18446744073709551616",
    b"+",
    b"-",
    b"0x",
    b"#",
    b"@",
    b"[",
    b"]",
    b"*",
    b"/",
    b"?",
    b"http://",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"Host: h\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"Trailer: a\r\n",
    b"a: b\r\n",
    b"a:\r\n",
    b" folded\r\n",
    b"chunked",
    b"identity",
    b"close",
    b"OPTIONS ",
    b"CONNECT ",
    b"HEAD ",
];

/// One corpus entry, as it is or changed in up to a dozen places.
pub fn mutated(corpus: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let mut input = corpus[rng.usize(..corpus.len())].to_vec();
    // Mostly few changes: what is broken in many places is refused for the first of them.
    let changes = if rng.bool() { rng.usize(..3) } else { rng.usize(..12) };
    for _ in 0..changes {
        mutate(&mut input, corpus, rng);
    }
    input
}

fn mutate(input: &mut Vec<u8>, corpus: &[&[u8]], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let end = (at + 1 + rng.usize(..8)).min(input.len());
    match rng.u8(..8) {
        0 if at < input.len() => input[at] = rng.u8(..),
        1 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        5 => {
            let other = corpus[rng.usize(..corpus.len())];
            let from = rng.usize(..=other.len());
            let to = (from + rng.usize(..40)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
        6 => {
            let morsel = MORSELS[rng.usize(..MORSELS.len())];
            input.splice(at..end, morsel.iter().copied());
        }
        _ => {
            let morsel = MORSELS[rng.usize(..MORSELS.len())];
            input.splice(at..at, morsel.iter().copied());
        }
    }
}
