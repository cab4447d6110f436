//! Instructions of the codec, by callgrind: what a message costs to read and to write. They repeat exactly.
//!
//! `cargo bench --bench codec` (needs valgrind and `cargo install gungraun-runner --version 0.20.0`). All buffers are
//! warm, as on a connection that has had its first request.

#![allow(missing_docs)] // the macros make modules that cannot have any

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use outrigger::http1::body::{Decoder, Piece};
use outrigger::http1::encode;
use outrigger::http1::field::Name;
use outrigger::http1::head::{Framing, Limits, Parsed, RequestHead, ResponseHead};

const LIMITS: Limits = Limits { max_size: 64 << 10, max_fields: 128 };

/// wrk: two fields.
const WRK: &[u8] = b"GET /payments/42 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

/// curl: three fields.
const CURL: &[u8] =
    b"GET /payments/42 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

/// A service's client: eight fields and a body.
const SERVICE: &[u8] = b"POST /payments/42/refunds?currency=eur HTTP/1.1\r\n\
    Host: payments.internal\r\n\
    Connection: keep-alive\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 123\r\n\
    X-Request-Id: 0190163d-8694-739b-aea5-966c26f8ad91\r\n\
    Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
    Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324\r\n\
    User-Agent: okhttp/4.12.0\r\n\r\n";

/// A browser: fourteen fields.
const BROWSER: &[u8] = b"GET /app/items?page=2&sort=name HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"126\", \"Not/A)Brand\";v=\"8\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Referer: https://www.example.com/app/\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=c2Vzc2lvbi1pZC1vZi1zb21lLWxlbmd0aA; theme=dark; consent=1\r\n\r\n";

/// nginx: seven fields.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Tue, 03 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/octet-stream\r\n\
    Content-Length: 128\r\n\
    Last-Modified: Mon, 02 Nov 2026 08:00:00 GMT\r\n\
    Connection: keep-alive\r\n\
    ETag: \"6545c1d0-80\"\r\n\r\n";

fn request_head(input: &'static [u8]) -> (RequestHead, &'static [u8]) {
    let mut head = RequestHead::new();
    let parsed = head.parse(input, &mut 0, &LIMITS);
    assert_eq!(parsed, Ok(Parsed::Head { size: input.len() }));
    (head, input)
}

fn response_head(input: &'static [u8]) -> (ResponseHead, &'static [u8]) {
    let mut head = ResponseHead::new();
    let parsed = head.parse(input, &mut 0, false, &LIMITS);
    assert_eq!(parsed, Ok(Parsed::Head { size: input.len() }));
    (head, input)
}

#[library_benchmark]
#[bench::wrk(args = (WRK), setup = request_head)]
#[bench::curl(args = (CURL), setup = request_head)]
#[bench::service(args = (SERVICE), setup = request_head)]
#[bench::browser(args = (BROWSER), setup = request_head)]
fn parse_request((mut head, input): (RequestHead, &'static [u8])) -> RequestHead {
    let _ = black_box(head.parse(black_box(input), &mut 0, &LIMITS));
    head
}

#[library_benchmark]
#[bench::nginx(args = (RESPONSE), setup = response_head)]
fn parse_response((mut head, input): (ResponseHead, &'static [u8])) -> ResponseHead {
    let _ = black_box(head.parse(black_box(input), &mut 0, false, &LIMITS));
    head
}

fn request_and_buffer(input: &'static [u8]) -> (RequestHead, Vec<u8>) {
    (request_head(input).0, Vec::with_capacity(8 << 10))
}

#[library_benchmark]
#[bench::curl(args = (CURL), setup = request_and_buffer)]
#[bench::service(args = (SERVICE), setup = request_and_buffer)]
#[bench::browser(args = (BROWSER), setup = request_and_buffer)]
fn write_request((head, mut out): (RequestHead, Vec<u8>)) -> (RequestHead, Vec<u8>) {
    encode::request_line(&mut out, head.method_text(), head.path_and_query());
    head.fields
        .write(&mut out, |field| !field.known.is_hop_by_hop() && !head.is_connection_option(field.name));
    encode::end(&mut out);
    (head, out)
}

fn response_and_buffer(input: &'static [u8]) -> (ResponseHead, Vec<u8>) {
    (response_head(input).0, Vec::with_capacity(8 << 10))
}

#[library_benchmark]
#[bench::nginx(args = (RESPONSE), setup = response_and_buffer)]
fn write_response((head, mut out): (ResponseHead, Vec<u8>)) -> (ResponseHead, Vec<u8>) {
    encode::status_line(&mut out, head.status, head.reason_phrase());
    head.fields
        .write(&mut out, |field| !field.known.is_hop_by_hop() && !head.is_connection_option(field.name));
    encode::end(&mut out);
    (head, out)
}

#[library_benchmark]
#[bench::service(args = (SERVICE), setup = request_and_buffer)]
fn write_request_field_by_field((head, mut out): (RequestHead, Vec<u8>)) -> (RequestHead, Vec<u8>) {
    encode::request_line(&mut out, head.method_text(), head.path_and_query());
    for field in head.fields.iter() {
        if !field.known.is_hop_by_hop() && !head.is_connection_option(field.name) {
            encode::field(&mut out, field.name, field.value);
        }
    }
    encode::end(&mut out);
    (head, out)
}

#[library_benchmark]
#[bench::content_length(b"content-length")]
#[bench::unknown(b"accept-encoding")]
#[bench::longest(b"x-envoy-expected-rq-timeout-ms")]
fn name_of(name: &[u8]) -> Name {
    Name::of(black_box(name))
}

fn chunked(payload: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for _ in 0..8 {
        encode::chunk(&mut wire, payload);
        wire.resize(wire.len() + payload, b'x');
        wire.extend_from_slice(encode::CHUNK_END);
    }
    encode::last_chunk(&mut wire, None);
    wire
}

// Eight chunks and the last one.
#[library_benchmark]
#[bench::small(args = (100), setup = chunked)]
#[bench::large(args = (16 << 10), setup = chunked)]
fn decode_chunked(wire: Vec<u8>) -> (Vec<u8>, usize) {
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut at, mut payload) = (0, 0);
    while let Ok(Piece::Data { skip, len }) = decoder.next(&wire[at..]) {
        at += skip + len;
        payload += len;
    }
    (wire, payload)
}

#[library_benchmark]
#[bench::small(args = (1 << 10), setup = Vec::with_capacity)]
fn write_chunk(mut out: Vec<u8>) -> Vec<u8> {
    encode::chunk(&mut out, black_box(16 << 10));
    out.extend_from_slice(encode::CHUNK_END);
    out
}

library_benchmark_group!(
    name = heads,
    benchmarks =
        [parse_request, parse_response, write_request, write_request_field_by_field, write_response, name_of]
);
library_benchmark_group!(name = bodies, benchmarks = [decode_chunked, write_chunk]);
main!(library_benchmark_groups = heads, bodies);
