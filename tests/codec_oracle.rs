//! The codec held against hyper's HTTP/1 server: what hyper rejects we reject, and what both accept we frame alike.
//!
//! hyper is the more tolerant one (bare LF, `Content-Length` beside `Transfer-Encoding`, white space around chunk
//! sizes), so the other way round nothing is asked; `http1/head/tests.rs` has those rows. Each input is a whole
//! connection: requests behind requests, so that a message that ends elsewhere shows in the next one.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger::http1::body::{Decoder, Piece};
use outrigger::http1::field::Fields;
use outrigger::http1::head::{Form, Limits, Method, Parsed, RequestHead, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "fuzz/corpus.rs"]
pub mod corpus;
#[path = "fuzz/mutate.rs"]
pub mod mutate;

/// A request as one of the two read it.
#[derive(Debug, PartialEq)]
struct Request {
    method: String,
    authority: Option<String>,
    path_and_query: String,
    version: http::Version,
    fields: Vec<(String, Vec<u8>)>,
    /// `None`: broken or cut.
    body: Option<Whole>,
}

/// A body that was read to its end.
#[derive(Debug, PartialEq)]
struct Whole {
    payload: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

/// Bounds that are hyper's own.
const LIMITS: Limits = Limits { max_size: 64 << 10, max_fields: 100 };

/// What we read of a connection on which `input` comes, to the first message that is refused or cut.
fn ours(mut input: &[u8]) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut head = RequestHead::new();
    while let Ok(Parsed::Head { size }) = head.parse(input, &mut 0, &LIMITS) {
        input = &input[size..];
        let body = our_body(&head, &mut input);
        let is_broken = body.is_none();
        let authority = matches!(head.form, Form::Absolute | Form::Authority).then(|| text(head.authority()));
        // For OPTIONS, hyper leaves it to the service to read an absent path as `*`.
        let path_and_query = match (head.form, head.path_and_query()) {
            (Form::Absolute, b"*") => "/".to_string(),
            (_, path_and_query) => text(path_and_query),
        };
        requests.push(Request {
            method: text(head.method_text()),
            authority,
            path_and_query,
            version: match head.version {
                Version::Http10 => http::Version::HTTP_10,
                Version::Http11 => http::Version::HTTP_11,
            },
            fields: by_name(head.fields.iter().map(|f| (text(f.name), f.value.to_vec()))),
            body,
        });
        // After CONNECT hyper's connection is a tunnel.
        if is_broken || !head.keep_alive || head.method == Method::Connect {
            break;
        }
    }
    requests
}

fn our_body(head: &RequestHead, input: &mut &[u8]) -> Option<Whole> {
    let mut decoder = Decoder::new(head.framing);
    let mut payload = Vec::new();
    loop {
        match decoder.next(input).ok()? {
            Piece::Data { skip, len } => {
                payload.extend_from_slice(&input[skip..skip + len]);
                *input = &input[skip + len..];
            }
            Piece::More { .. } => return None,
            Piece::End { skip } => {
                *input = &input[skip..];
                let trailers = decoder.trailers().into_iter().flat_map(Fields::iter);
                let trailers = by_name(trailers.map(|f| (text(f.name), f.value.to_vec())));
                return Some(Whole { payload, trailers });
            }
        }
    }
}

/// What hyper reads of the same connection.
async fn hypers(input: &[u8]) -> Vec<Request> {
    let requests = Rc::new(RefCell::new(Vec::new()));
    let (client, server) = tokio::io::duplex(1 << 20);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let requests = requests.clone();
        async move {
            let read = read_by_hyper(request).await;
            requests.borrow_mut().push(read);
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let serve = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let talk = async {
        let (mut from, mut to) = tokio::io::split(client);
        to.write_all(input).await.expect("the pipe holds it all");
        // hyper may have closed already.
        let _ = to.shutdown().await;
        let _ = from.read_to_end(&mut Vec::new()).await;
    };
    let (_, ()) = tokio::join!(serve, talk);
    requests.take()
}

async fn read_by_hyper(request: hyper::Request<Incoming>) -> Request {
    let (parts, body) = request.into_parts();
    let fields = |map: &http::HeaderMap| {
        by_name(map.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())))
    };
    let body = body.collect().await.ok().map(|collected| {
        let trailers = collected.trailers().map(fields).unwrap_or_default();
        Whole { payload: collected.to_bytes().to_vec(), trailers }
    });
    Request {
        method: parts.method.to_string(),
        authority: parts.uri.authority().map(ToString::to_string),
        path_and_query: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        version: parts.version,
        fields: fields(&parts.headers),
        body,
    }
}

/// Fields in lower case, those of one name together and in their order, as hyper's map has them.
fn by_name(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Whether a trailer concerns the connection alone, so that we leave it out.
fn ends_here(trailer: &(String, Vec<u8>)) -> bool {
    let known = outrigger::http1::field::Name::of(trailer.0.as_bytes());
    known.is_hop_by_hop() || known == outrigger::http1::field::Name::Expect
}

/// Says where our reading of a connection is not covered by hyper's.
fn differs(ours: &[Request], hypers: Vec<Request>) -> Option<String> {
    if ours.len() > hypers.len() {
        return Some(format!("hyper rejects {:?}", ours[hypers.len()]));
    }
    for (ours, mut hypers) in ours.iter().zip(hypers) {
        if let Some(body) = &mut hypers.body {
            body.trailers.retain(|trailer| !ends_here(trailer));
        }
        if ours.body.is_none() {
            // We may refuse a body that hyper takes; what stands before it must be the same.
            hypers.body = None;
        }
        if *ours != hypers {
            return Some(format!("we read {ours:?}, hyper {hypers:?}"));
        }
    }
    None
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// Inputs on which parsers differ, and how many requests of each we take.
#[rustfmt::skip]
const NASTY: &[(&str, usize, &str)] = &[
    ("pipelined",                        3, "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nokGET /3 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("chunked, then another",            2, "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("with trailers",                    2, "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\nConnection: c\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("nothing after close",              1, "GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("close beats keep-alive",           1, "GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("HTTP/1.0 ends",                    1, "GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n"),
    ("HTTP/1.0 goes on if asked",        2, "GET /1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n"),
    ("empty lines between",              2, "GET /1 HTTP/1.1\r\nHost: h\r\n\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a body for GET",                   2, "GET /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a request in a body",              2, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 31\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n123GET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a body that is cut",               1, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"),
    ("chunks that are cut",              1, "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    ("absolute",                         2, "GET http://a:1/b?c HTTP/1.1\r\nHost: h\r\n\r\nGET http://a HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("absolute with only a query",       1, "GET http://a?c HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("asterisk",                         2, "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\nOPTIONS http://a HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a tunnel",                         1, "CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("100-continue",                     2, "POST /1 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nokGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("an upgrade",                       2, "GET /1 HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("odd but allowed",                  1, "X-Y! /|[]{}\"^?`\\ HTTP/1.1\r\nhOsT:\th \r\nA:\r\nA: \u{fc}\r\n\r\n"),
    ("leading zeros",                    2, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 003\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("CL.TE",                            0, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("TE.TE",                            0, "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ("TE.0",                             0, "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("CL.CL",                            0, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc"),
    ("a length beyond 64 bits",          0, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551616\r\n\r\n"),
    ("a length that hyper reserves",     0, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615\r\n\r\n"),
    ("chunked in HTTP/1.0",              0, "POST /1 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("bare LF in an extension",          1, "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("bare LF as a line end",            0, "GET /1 HTTP/1.1\nHost: h\n\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a folded line",                    0, "GET /1 HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n"),
    ("white space before the colon",     0, "GET /1 HTTP/1.1\r\nHost: h\r\nContent-Length : 3\r\n\r\nabc"),
    ("a target with a backtick",         0, "GET /` HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a target with a quote in its query", 0, "GET /\"?\" HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("an authority that is none",        0, "GET http://a:b:c/ HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("HTTP/2's preface",                 0, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("another version",                  0, "GET / HTTP/1.2\r\nHost: h\r\n\r\n"),
];

#[test]
fn nasty_inputs_are_read_as_hyper_reads_them_or_refused() {
    let runtime = runtime();
    for &(why, taken, input) in NASTY {
        let ours = ours(input.as_bytes());
        assert_eq!(ours.len(), taken, "{why}: {ours:?}");
        let difference = differs(&ours, runtime.block_on(hypers(input.as_bytes())));
        assert_eq!(difference, None, "{why}: {input:?}");
    }
}

#[test]
fn whatever_hyper_rejects_we_reject_and_what_both_accept_is_framed_alike() {
    let corpus: Vec<&[u8]> =
        corpus::REQUESTS.iter().copied().chain(NASTY.iter().map(|(_, _, input)| input.as_bytes())).collect();
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let iterations = number("FUZZ_ITERATIONS").unwrap_or(20_000);
    let mut rng = fastrand::Rng::with_seed(seed);
    let runtime = runtime();
    for iteration in 0..iterations {
        let input = mutate::mutated(&corpus, &mut rng);
        let difference = differs(&ours(&input), runtime.block_on(hypers(&input)));
        let input = input.escape_ascii();
        assert_eq!(difference, None, "FUZZ_SEED={seed}, iteration {iteration}, input {input}");
    }
}
