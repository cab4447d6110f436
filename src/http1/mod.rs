//! HTTP/1.1 on the wire, both roles: bytes in, messages out. Knows no policy and no route.
//!
//! - [`connection`]: the thin shell that reads and writes.
//!
//! A codec without I/O: the caller holds the buffers, hands in what has come so far, and is told what it was.
//!
//! - [`field`]: the fields of a head or trailer section, and the names that the proxy looks at.
//! - [`target`]: what may stand in a request line and in `Host`.
//! - [`framing`]: where a message's body ends, and whether the connection lives on after it.
//! - [`head`]: request and response heads.
//! - [`body`]: the body's pieces: plain, chunked, until the connection closes.
//! - [`encode`]: the way back: lines, fields and chunks into a buffer.
//!
//! **Strict** by RFC 9112: what two implementations could read in two ways is refused, never repaired, for a
//! proxy that guesses is how requests get smuggled. Both roles share the rules; a response that breaks them
//! is a broken upstream. The few places that are more tolerant than the RFC say so and why.
//!
//! **Why an own codec**: hyper answers bad heads itself, accepts bare LF and `Content-Length` beside
//! `Transfer-Encoding`, cannot pass 1xx on, does not say which bytes have left, and costs twice as much. httparse
//! finds the tokens of a head (fast, widely fuzzed); what they mean together is decided here. Rejected:
//! resuming inside a head: a head mostly comes in one piece, so it is tokenised at once, and one that trickles in is
//! only scanned for line ends until it is complete.

pub mod body;
pub mod connection;
pub mod encode;
pub mod field;
pub mod framing;
pub mod head;
pub mod target;
