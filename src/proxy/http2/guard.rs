//! Watches the frames of an HTTP/2 client: what costs us work and moves no request forward has a budget.
//!
//! One token bucket for each connection, `BURST` tokens and `PER_SECOND` more each second. What a frame costs
//! stands in `cost`; each HEADERS or DATA frame that the client gets earns `EARNED`, so a client that is served
//! may send what serving takes (a WINDOW_UPDATE or two, gRPC's PING for each round trip), however fast it goes. When
//! nothing is left, the connection has to end: GOAWAY with ENHANCE_YOUR_CALM. Its other streams end with it, other
//! connections live on.
//!
//! In good company: nghttp2 lets 1,000 resets pass and 33 more each second; Envoy counts 10 WINDOW_UPDATEs for each
//! DATA frame sent, and closes after 500 streams of which half were reset early; sōzu and HAProxy count frames that
//! lead nowhere. Ours differs in what a reset costs: one that comes when its stream has been open for a while is a
//! timeout of the client's, and `max_streams` bounds how often that can be. Only early ones ([`RAPID`]) are charged,
//! by the stream that sees how old it is; otherwise a client whose upstream is dead would lose its connection too.
//!
//! Not here, since h2 bounds it: the size of a head and its CONTINUATION frames, DATA that nobody has read, streams
//! that were reset before they were accepted. Its verdicts are read from the GOAWAY that it sends.
//!
//! Sans I/O: bytes go in, in any pieces, and a verdict comes out. It reads nothing but the nine bytes in front of
//! each frame, and of ours that end something also why. The clock is read when the bucket is empty, so a burst can be
//! up to twice `BURST`.

use std::time::{Duration, Instant};

use crate::telemetry::metrics::Limit;

/// Tokens of a full bucket.
const BURST: u32 = 10_000;
/// Tokens that time brings.
const PER_SECOND: u32 = 1_000;
/// Tokens that each HEADERS or DATA frame to the client brings.
const EARNED: u32 = 10;
/// Streams that were reset sooner after their beginning are charged.
pub const RAPID: Duration = Duration::from_millis(50);
/// What one of those costs: 500 at once, 50 more each second, or one for each request that is answered.
const RAPID_COST: u32 = 20;
/// What a frame of ours costs that tells the client of its fault with a stream (CVE-2025-8671), or that it has
/// more streams than it may.
const FAULT_COST: u32 = 2;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 §3.4).
const PREFACE_SIZE: u32 = 24;
/// The head of a frame (RFC 9113 §4.1).
const HEAD: usize = 9;
/// The most that is kept of a frame: a GOAWAY's code and the beginning of what it says.
const KEPT: usize = HEAD + 8 + 32;

// Kinds of frames (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

// Codes (RFC 9113 §7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What a frame of the client's costs, and how the bound is called that it may reach.
fn cost(frame: &Head) -> (u32, Limit) {
    match frame.kind {
        // CVE-2019-9518, and the same with padding is h2's affair.
        DATA | HEADERS | CONTINUATION if frame.length == 0 && frame.flags & END_STREAM == 0 => {
            (100, Limit::Http2EmptyFrames)
        }
        DATA | HEADERS => (0, Limit::Http2EmptyFrames),
        CONTINUATION => (5, Limit::Http2Headers),
        // Each HEADERS pays for one.
        RST_STREAM => (1, Limit::Http2Resets),
        // Answered (CVE-2019-9512).
        PING => (10, Limit::Http2Pings),
        // Answered, and every open stream is gone through (CVE-2019-9515).
        SETTINGS => (50, Limit::Http2Settings),
        // Ignored (CVE-2019-9513).
        PRIORITY => (1, Limit::Http2Priorities),
        WINDOW_UPDATE => (1, Limit::Http2WindowUpdates),
        _ => (1, Limit::Http2OtherFrames),
    }
}

/// Watches one connection.
pub struct Guard {
    inbound: Frames<HEAD>,
    outbound: Frames<KEPT>,
    /// HEADERS have come whose CONTINUATION is still to come.
    block_open: bool,
    budget: Budget,
}

/// What the client may still cost, and what it came to.
struct Budget {
    tokens: u32,
    filled_at: Instant,
    verdict: Option<Verdict>,
}

/// Why the connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The bound that was reached.
    pub limit: Limit,
    /// Whether h2 found it and tells the client itself.
    pub is_told: bool,
}

/// Who reset a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The client.
    Theirs,
    /// We had to, for the client broke it.
    Fault,
}

impl Guard {
    /// Watches a connection that begins at `now`, with the client's preface.
    pub fn new(now: Instant) -> Self {
        Self {
            inbound: Frames::new(PREFACE_SIZE),
            outbound: Frames::new(0),
            block_open: false,
            budget: Budget { tokens: BURST, filled_at: now, verdict: None },
        }
    }

    /// Why the connection has to end, if it has to.
    pub fn verdict(&self) -> Option<Verdict> {
        self.budget.verdict
    }

    /// These bytes came from the client.
    pub fn came(&mut self, bytes: &[u8], now: impl Fn() -> Instant) {
        let Self { inbound, block_open, budget, .. } = self;
        inbound.feed(bytes, |frame, _| {
            match frame.kind {
                HEADERS => {
                    *block_open = frame.flags & END_HEADERS == 0;
                    budget.earn(1);
                }
                CONTINUATION => *block_open &= frame.flags & END_HEADERS == 0,
                _ => {}
            }
            let (cost, limit) = cost(frame);
            budget.charge(cost, limit, &now);
        });
    }

    /// These bytes go to the client. Returns how many streams they refuse.
    pub fn goes(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> u32 {
        let mut refused = 0;
        let Self { outbound, budget, .. } = self;
        outbound.feed(bytes, |frame, rest| match frame.kind {
            DATA | HEADERS => budget.earn(EARNED),
            RST_STREAM => match code(rest) {
                Some(REFUSED_STREAM) => {
                    refused += 1;
                    budget.charge(FAULT_COST, Limit::MaxStreams, &now);
                }
                Some(code) if is_fault(code) => budget.charge(FAULT_COST, Limit::Http2StreamErrors, &now),
                _ => {}
            },
            GOAWAY if code(rest.get(4..).unwrap_or_default()) == Some(ENHANCE_YOUR_CALM) => {
                let limit = match rest.get(8..).unwrap_or_default() {
                    b"too_many_resets" => Limit::Http2Resets,
                    b"header_list_way_too_large" | b"too_many_continuations" => Limit::Http2Headers,
                    _ => Limit::Http2SmallFrames,
                };
                budget.verdict.get_or_insert(Verdict { limit, is_told: true });
            }
            _ => {}
        });
        refused
    }

    /// A stream was reset less than [`RAPID`] after it had begun.
    pub fn reset_early(&mut self, reset: Reset, now: impl Fn() -> Instant) {
        let limit = match reset {
            Reset::Theirs => Limit::Http2Resets,
            Reset::Fault => Limit::Http2StreamErrors,
        };
        self.budget.charge(RAPID_COST, limit, &now);
    }

    /// Whether a head has begun to come and is not complete. The head of a frame may be one.
    pub fn is_within_head(&self) -> bool {
        self.block_open
            || self.inbound.have > 0
            || self.inbound.skip > 0 && matches!(self.inbound.kind, HEADERS | CONTINUATION)
    }
}

impl Budget {
    fn earn(&mut self, tokens: u32) {
        self.tokens = (self.tokens + tokens).min(BURST);
    }

    fn charge(&mut self, cost: u32, limit: Limit, now: &impl Fn() -> Instant) {
        if self.tokens < cost {
            self.fill(now());
        }
        match self.tokens.checked_sub(cost) {
            Some(tokens) => self.tokens = tokens,
            None => {
                self.verdict.get_or_insert(Verdict { limit, is_told: false });
            }
        }
    }

    /// Brings the tokens of the time since the last look.
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let brought = elapsed.as_millis().min(u128::from(BURST)) as u32 * PER_SECOND / 1000;
        if brought > 0 {
            self.filled_at = now;
            self.earn(brought);
        }
    }
}

/// Who a reset with this code comes from: those that say what is wrong with a stream are h2's.
pub fn who_reset(code: u32) -> Reset {
    if is_fault(code) { Reset::Fault } else { Reset::Theirs }
}

/// Whether a reset with this code tells the client of a fault of its own.
fn is_fault(code: u32) -> bool {
    matches!(code, PROTOCOL_ERROR | FLOW_CONTROL_ERROR | STREAM_CLOSED | FRAME_SIZE_ERROR)
}

/// The code in front of `rest`.
fn code(rest: &[u8]) -> Option<u32> {
    rest.first_chunk().map(|code| u32::from_be_bytes(*code))
}

/// What stands in front of a frame.
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
}

/// Finds the frames in a stream of bytes that comes in any pieces. Keeps up to `KEPT` bytes of one: its head, and the
/// beginning of what ends a stream or the connection.
struct Frames<const KEPT: usize> {
    kept: [u8; KEPT],
    have: usize,
    /// Bytes that follow and are not looked at.
    skip: u32,
    /// The kind of the frame whose bytes those are.
    kind: u8,
}

impl<const KEPT: usize> Frames<KEPT> {
    /// Frames behind `skip` bytes of something else.
    fn new(skip: u32) -> Self {
        Self { kept: [0; KEPT], have: 0, skip, kind: u8::MAX }
    }

    /// Tells `see` of every frame whose head is complete with `bytes`, and what is kept of the rest.
    fn feed(&mut self, mut bytes: &[u8], mut see: impl FnMut(&Head, &[u8])) {
        loop {
            let skipped = (self.skip as usize).min(bytes.len());
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            if self.have == 0 && bytes.len() >= KEPT {
                // Usually it stands there as a whole.
                let (head, size) = look::<KEPT>(bytes);
                see(&head, &bytes[HEAD..size]);
                bytes = &bytes[size..];
                self.passed(&head, size);
                continue;
            }
            let wanted = if self.have < HEAD { HEAD } else { look::<KEPT>(&self.kept).1 };
            let taken = (wanted - self.have).min(bytes.len());
            self.kept[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < HEAD {
                return;
            }
            let (head, size) = look::<KEPT>(&self.kept);
            if self.have == size {
                see(&head, &self.kept[HEAD..size]);
                self.have = 0;
                self.passed(&head, size);
            }
        }
    }

    fn passed(&mut self, head: &Head, size: usize) {
        self.skip = head.length - (size - HEAD) as u32;
        self.kind = head.kind;
    }
}

/// The head in front of `bytes`, and how much of the frame is wanted.
fn look<const KEPT: usize>(bytes: &[u8]) -> (Head, usize) {
    let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
    let head = Head { length, kind: bytes[3], flags: bytes[4] };
    let rest = match head.kind {
        RST_STREAM | GOAWAY => (head.length as usize).min(KEPT - HEAD),
        _ => 0,
    };
    (head, HEAD + rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn guard(start: Instant) -> Guard {
        let mut guard = Guard::new(start);
        guard.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || start);
        guard
    }

    fn limit(guard: &Guard) -> Option<Limit> {
        guard.verdict().map(|verdict| verdict.limit)
    }

    #[test]
    fn each_kind_has_its_bound_and_its_word() {
        let start = Instant::now();
        let cases = [
            // why, the frame, how many may come at once, and the word
            ("pings", frame(PING, 0, &[0; 8]), 1_000, Limit::Http2Pings),
            ("settings", frame(SETTINGS, 0, &[]), 200, Limit::Http2Settings),
            ("priorities", frame(PRIORITY, 0, &[0; 5]), 10_000, Limit::Http2Priorities),
            ("window updates", frame(WINDOW_UPDATE, 0, &[0; 4]), 10_000, Limit::Http2WindowUpdates),
            ("empty data", frame(DATA, 0, &[]), 100, Limit::Http2EmptyFrames),
            ("empty pieces of a head", frame(CONTINUATION, 0, &[]), 100, Limit::Http2EmptyFrames),
            ("pieces of a head", frame(CONTINUATION, 0, &[0; 100]), 2_000, Limit::Http2Headers),
            ("unknown frames", frame(0xfa, 0, &[0; 3]), 10_000, Limit::Http2OtherFrames),
            ("resets of nothing", frame(RST_STREAM, 0, &[0; 4]), 10_000, Limit::Http2Resets),
        ];
        for (why, frame, most, word) in cases {
            let mut guard = guard(start);
            for _ in 0..most {
                guard.came(&frame, || start);
            }
            assert_eq!(limit(&guard), None, "{why}");
            guard.came(&frame, || start);
            assert_eq!(limit(&guard), Some(word), "{why}");
        }
    }

    #[test]
    fn what_moves_a_request_is_free() {
        let start = Instant::now();
        let mut guard = guard(start);
        for _ in 0..1_000_000 {
            guard.came(&frame(HEADERS, END_HEADERS, b"\x82"), || start);
            guard.came(&frame(DATA, 0, b"x"), || start);
            guard.came(&frame(DATA, END_STREAM, b""), || start);
            guard.came(&frame(RST_STREAM, 0, &[0, 0, 0, 8]), || start);
        }
        assert_eq!(limit(&guard), None);
    }

    #[test]
    fn who_is_served_may_say_what_serving_takes() {
        let start = Instant::now();
        let mut guard = guard(start);
        for _ in 0..100_000 {
            guard.goes(&frame(DATA, 0, &[0; 100]), || start);
            guard.came(&frame(WINDOW_UPDATE, 0, &[0; 4]), || start);
            guard.came(&frame(WINDOW_UPDATE, 0, &[0; 4]), || start);
        }
        for _ in 0..100_000 {
            guard.goes(&frame(DATA, 0, &[0; 100]), || start);
            guard.came(&frame(PING, 0, &[0; 8]), || start);
        }
        assert_eq!(limit(&guard), None);
    }

    #[test]
    fn time_brings_tokens_and_never_more_than_a_bucket_holds() {
        let start = Instant::now();
        let mut guard = guard(start);
        let ping = frame(PING, 0, &[0; 8]);
        (0..1_000).for_each(|_| guard.came(&ping, || start));
        let second = start + Duration::from_secs(1);
        (0..100).for_each(|_| guard.came(&ping, || second));
        assert_eq!(limit(&guard), None, "100 each second");
        let day = start + Duration::from_secs(86_400);
        (0..1_000).for_each(|_| guard.came(&ping, || day));
        assert_eq!(limit(&guard), None, "a full bucket");
        guard.came(&ping, || day);
        assert_eq!(limit(&guard), Some(Limit::Http2Pings));
    }

    #[test]
    fn early_resets_are_bounded_by_what_is_answered() {
        let start = Instant::now();
        for (reset, word) in [(Reset::Theirs, Limit::Http2Resets), (Reset::Fault, Limit::Http2StreamErrors)] {
            let mut guard = guard(start);
            for _ in 0..10_000 {
                guard.goes(&frame(HEADERS, END_HEADERS, b"\x88"), || start);
                guard.goes(&frame(DATA, END_STREAM, b"x"), || start);
                guard.reset_early(reset, || start);
            }
            // The last one has not earned its next.
            (0..499).for_each(|_| guard.reset_early(reset, || start));
            assert_eq!(limit(&guard), None);
            guard.reset_early(reset, || start);
            assert_eq!(limit(&guard), Some(word));
        }
    }

    #[test]
    fn faults_show_in_what_is_said_of_them() {
        let start = Instant::now();
        let cases = [
            ("streams beyond the limit", REFUSED_STREAM, Some(Limit::MaxStreams)),
            ("broken streams", STREAM_CLOSED, Some(Limit::Http2StreamErrors)),
            ("broken streams", PROTOCOL_ERROR, Some(Limit::Http2StreamErrors)),
            ("our own failures", 2, None),
            ("early answers", 0, None),
        ];
        for (why, code, word) in cases {
            let mut guard = guard(start);
            let reset = frame(RST_STREAM, 0, &code.to_be_bytes());
            let refused: u32 = (0..5_001).map(|_| guard.goes(&reset, || start)).sum();
            assert_eq!(limit(&guard), word, "{why}");
            assert_eq!(refused, if code == REFUSED_STREAM { 5_001 } else { 0 }, "{why}");
        }
    }

    #[test]
    fn the_librarys_verdicts_are_read_from_its_goaway() {
        let start = Instant::now();
        let cases = [
            ("too_many_resets", ENHANCE_YOUR_CALM, Some(Limit::Http2Resets)),
            ("header_list_way_too_large", ENHANCE_YOUR_CALM, Some(Limit::Http2Headers)),
            ("too_many_continuations", ENHANCE_YOUR_CALM, Some(Limit::Http2Headers)),
            ("too_many_data_frames", ENHANCE_YOUR_CALM, Some(Limit::Http2SmallFrames)),
            ("", PROTOCOL_ERROR, None),
            ("", 0, None),
        ];
        for (said, code, word) in cases {
            let mut guard = guard(start);
            let payload = [&[0, 0, 0, 1], &code.to_be_bytes()[..], said.as_bytes()].concat();
            guard.goes(&frame(GOAWAY, 0, &payload), || start);
            let expected = word.map(|limit| Verdict { limit, is_told: true });
            assert_eq!(guard.verdict(), expected, "{said}");
        }
    }

    #[test]
    fn a_head_that_has_begun_is_seen() {
        let start = Instant::now();
        let mut guard = guard(start);
        let steps: [(&str, &[u8], bool); 9] = [
            ("nothing", b"", false),
            ("a byte of a frame", &[0], true),
            ("the head of HEADERS", &[0, 2, HEADERS, 0, 0, 0, 0, 1], true),
            ("its payload", b"\x82\x84", true),
            ("CONTINUATION", &[0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 1], true),
            ("its payload", b"\x86", false),
            ("DATA", &[0, 0, 9, DATA, 0, 0, 0, 0, 1], false),
            ("some of its payload", b"abc", false),
            ("the rest", b"defghi", false),
        ];
        for (why, bytes, within) in steps {
            guard.came(bytes, || start);
            assert_eq!(guard.is_within_head(), within, "{why}");
        }
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let one = (0u8..11, any::<u8>(), 0usize..60).prop_map(|(kind, flags, size)| {
            frame(kind, flags, &(0..size as u8).map(|byte| byte % 12).collect::<Vec<_>>())
        });
        proptest::collection::vec(one, 0..400).prop_map(|frames| frames.concat())
    }

    proptest! {
        /// Wherever the bytes are cut, they say the same.
        #[test]
        fn any_split_of_the_bytes_gives_the_same_verdict(
            bytes in frames(),
            tokens in 0u32..2_000,
            cuts in proptest::collection::vec(1usize..50, 1..50),
        ) {
            let start = Instant::now();
            let mut whole = guard(start);
            let mut split = guard(start);
            (whole.budget.tokens, split.budget.tokens) = (tokens, tokens);
            whole.came(&bytes, || start);
            let refused = whole.goes(&bytes, || start);
            let pieces = || {
                let mut rest = &bytes[..];
                cuts.iter().cycle().map_while(move |cut| {
                    let (piece, next) = rest.split_at((*cut).min(rest.len()));
                    rest = next;
                    (!piece.is_empty()).then_some(piece)
                })
            };
            pieces().for_each(|piece| split.came(piece, || start));
            let refused_split: u32 = pieces().map(|piece| split.goes(piece, || start)).sum();
            prop_assert_eq!(whole.verdict(), split.verdict());
            prop_assert_eq!(whole.budget.tokens, split.budget.tokens);
            prop_assert_eq!(whole.is_within_head(), split.is_within_head());
            prop_assert_eq!(refused, refused_split);
        }

        /// Whatever bytes come, they are counted to their end and nothing panics.
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let start = Instant::now();
            let mut guard = Guard::new(start);
            guard.came(&bytes, || start);
            guard.goes(&bytes, || start);
        }
    }
}
