//! The access log: one line for each request that is worth one, written by hand and in batches.
//!
//! A worker formats lines into a buffer of its own ([`WorkerLog`]) and hands it over when it is full or some time
//! has passed; one thread writes for all of them (`spool`). A line costs some 2,700 instructions; rejected: events
//! through `tracing`, which cost several times that. Where the disk or the pipe is too slow, lines are dropped and
//! counted, and the log of events says how many: a worker never waits.
//!
//! What a client may choose (path, method, request id) is escaped and bounded: it cannot end a line, forge a field
//! or move a terminal's cursor.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::cells::SharedCounter;
use super::labels::{RequestOutcome, Substitute, Winner};
use super::spool::{self, Spool, Target, Writer};
use super::timestamp::Stamps;
use super::{AccessLogSettings, Format, Only};
use crate::reason::Reason;
use crate::transport::UNIX_PEER;

/// A worker's buffer is handed over when it holds this much.
const BATCH_BYTES: usize = 32 << 10;

/// How much of a path is logged. A longer one ends in `...`.
const PATH_BYTES: usize = 512;

/// How much of any other field from outside is logged.
const WORD_BYTES: usize = 128;

/// The access log of the process. Dropped, it writes what waits, for at most a second.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    _writer: Writer,
}

#[derive(Debug)]
struct Shared {
    spool: Spool,
    /// [`Only`] and [`Format`] as numbers: read for each request, changed by a reload.
    only: AtomicU8,
    is_text: AtomicU8,
    /// The bits of the ratio.
    sample: AtomicU64,
    path: Mutex<String>,
}

/// One worker's way into the access log; it stays on that worker's thread.
#[derive(Debug)]
pub struct WorkerLog {
    shared: Arc<Shared>,
    batch: RefCell<Batch>,
    stays_here: PhantomData<*const ()>,
}

#[derive(Debug, Default)]
struct Batch {
    lines: Vec<u8>,
    count: u64,
    stamps: Stamps,
}

/// What is said of a request. Bytes are as they came; nothing need be escaped.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// When the request's head came in.
    pub at: SystemTime,
    /// The request's id.
    pub request_id: &'a [u8],
    /// Who sent it; [`UNIX_PEER`]: somebody at a Unix socket.
    pub client: SocketAddr,
    /// The listener's name.
    pub listener: &'a str,
    /// The route's name; empty if none matched.
    pub route: &'a str,
    /// The upstream's name; empty if no route matched.
    pub upstream: &'a str,
    /// Where the last attempt went; empty if there was none.
    pub endpoint: &'a str,
    /// The method as sent.
    pub method: &'a [u8],
    /// The request target as sent.
    pub target: &'a [u8],
    /// The status that the client got.
    pub status: u16,
    /// What it came to.
    pub outcome: RequestOutcome,
    /// Why Outrigger answered, or ended the message, itself.
    pub reason: Option<Reason>,
    /// What the client got in place of the failure that `reason` names, or of an upstream's bad answer.
    pub fallback: Option<Substitute>,
    /// The rate limit that refused it, or would have; empty: none.
    pub rate_limit: &'a str,
    /// How often it was sent to the upstream.
    pub attempts: u32,
    /// Whose answer it got, where it was hedged.
    pub hedge: Option<Winner>,
    /// From the request's head in to the response's head out.
    pub head: Duration,
    /// From the request's head in to the response's end.
    pub total: Duration,
    /// How long it waited for a slot.
    pub queue: Duration,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
}

impl Line<'_> {
    /// Whether `only = "failures"` wants it: something went wrong, or needed more than one attempt. What is the
    /// client's own fault goes without a line, unless Outrigger refused it.
    pub fn is_failure(&self) -> bool {
        self.fallback.is_some() || is_failure(self.outcome, self.reason, self.attempts)
    }
}

/// What [`Line::is_failure`] says, before there is a line.
#[inline]
pub fn is_failure(outcome: RequestOutcome, reason: Option<Reason>, attempts: u32) -> bool {
    !matches!(outcome, RequestOutcome::Ok | RequestOutcome::ClientError) || reason.is_some() || attempts > 1
}

impl AccessLog {
    /// Starts the writer. Lines that are lost count in `dropped`. Errs if the file cannot be opened.
    pub fn start(
        settings: &AccessLogSettings,
        format: Format,
        dropped: Arc<SharedCounter>,
    ) -> io::Result<AccessLog> {
        let target = target(&settings.path);
        probe(&target)?;
        let tell = Box::new(|lines| {
            tracing::warn!(lines, "access log dropped {lines} lines");
            Vec::new()
        });
        let (spool, writer) = Spool::start("access-log", target, dropped, tell)?;
        let shared = Shared {
            spool,
            only: AtomicU8::new(0),
            is_text: AtomicU8::new(0),
            sample: AtomicU64::new(0),
            path: Mutex::new(settings.path.clone()),
        };
        shared.set(settings, format);
        Ok(AccessLog { shared: Arc::new(shared), _writer: writer })
    }

    /// Takes new settings over. Errs if the file cannot be opened, and then changes nothing.
    pub fn reload(&self, settings: &AccessLogSettings, format: Format) -> io::Result<()> {
        let target = target(&settings.path);
        let mut path = self.shared.path.lock().unwrap_or_else(PoisonError::into_inner);
        if *path != settings.path {
            probe(&target)?;
            self.shared.spool.redirect(target);
            path.clone_from(&settings.path);
        }
        self.shared.set(settings, format);
        Ok(())
    }

    /// Waits until what the workers handed over is written, but for at most a second: for the end of the process,
    /// where others may still hold this log.
    pub fn flush(&self) {
        self.shared.spool.flush();
    }

    /// A way into the log for one worker.
    pub fn worker_log(&self) -> WorkerLog {
        WorkerLog { shared: self.shared.clone(), batch: RefCell::default(), stays_here: PhantomData }
    }
}

impl Shared {
    fn set(&self, settings: &AccessLogSettings, format: Format) {
        let is_terminal = match target(&settings.path) {
            Target::Stdout => io::stdout().is_terminal(),
            Target::Stderr => io::stderr().is_terminal(),
            Target::File(_) => false,
        };
        self.only.store(settings.only as u8, Relaxed);
        self.is_text.store(u8::from(format.resolve(is_terminal) == Format::Text), Relaxed);
        self.sample.store(settings.sample.get().to_bits(), Relaxed);
    }
}

impl WorkerLog {
    /// Whether a request gets a line: `failed` as [`is_failure`] says, `draw` from 0 to below 1.
    #[inline]
    pub fn wants(&self, failed: bool, draw: f64) -> bool {
        let only = self.shared.only.load(Relaxed);
        only == Only::All as u8
            || only == Only::Failures as u8
                && (failed || draw < f64::from_bits(self.shared.sample.load(Relaxed)))
    }

    /// Adds a line.
    pub fn write(&self, line: &Line<'_>) {
        let mut batch = self.batch.borrow_mut();
        let Batch { lines, count, stamps } = &mut *batch;
        if self.shared.is_text.load(Relaxed) == 1 {
            line.write_text(lines, stamps);
        } else {
            line.write_json(lines, stamps);
        }
        *count += 1;
        if lines.len() >= BATCH_BYTES {
            batch.hand_over(&self.shared.spool);
        }
    }

    /// Hands over what there is. For the worker to call every 20 to 100 ms.
    pub fn flush(&self) {
        self.batch.borrow_mut().hand_over(&self.shared.spool);
    }
}

impl Drop for WorkerLog {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Batch {
    fn hand_over(&mut self, spool: &Spool) {
        if self.count > 0 {
            spool.append(&self.lines, self.count);
            self.lines.clear();
            self.count = 0;
        }
    }
}

/// What `path` names.
fn target(path: &str) -> Target {
    match path {
        "stdout" => Target::Stdout,
        "stderr" => Target::Stderr,
        path => Target::File(PathBuf::from(path)),
    }
}

/// Errs if lines could not be written there. A named pipe is believed: opening one waits for its reader.
fn probe(target: &Target) -> io::Result<()> {
    match target {
        Target::File(path) if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) => {
            Ok(())
        }
        Target::File(path) => spool::open(path).map(drop),
        Target::Stdout | Target::Stderr => Ok(()),
    }
}

impl Line<'_> {
    /// For machines.
    fn write_json(&self, out: &mut Vec<u8>, stamps: &mut Stamps) {
        out.extend_from_slice(b"{\"ts\":\"");
        stamps.write(out, self.at);
        out.extend_from_slice(b"\",\"request_id\":\"");
        escape(out, self.request_id, WORD_BYTES);
        out.extend_from_slice(b"\",\"client\":\"");
        address(out, self.client);
        for (name, value) in [
            (&b"\",\"listener\":\""[..], self.listener),
            (b"\",\"route\":\"", self.route),
            (b"\",\"upstream\":\"", self.upstream),
            (b"\",\"endpoint\":\"", self.endpoint),
        ] {
            out.extend_from_slice(name);
            escape(out, value.as_bytes(), usize::MAX);
        }
        out.extend_from_slice(b"\",\"method\":\"");
        escape(out, self.method, WORD_BYTES);
        out.extend_from_slice(b"\",\"path\":\"");
        escape(out, self.target, PATH_BYTES);
        out.extend_from_slice(b"\",\"status\":");
        number(out, u64::from(self.status));
        out.extend_from_slice(b",\"outcome\":\"");
        out.extend_from_slice(self.outcome.label().as_bytes());
        out.extend_from_slice(b"\",\"reason\":");
        match self.reason {
            Some(reason) => {
                out.push(b'"');
                out.extend_from_slice(reason.label().as_bytes());
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
        if let Some(fallback) = self.fallback {
            out.extend_from_slice(b",\"fallback\":\"");
            out.extend_from_slice(fallback.label().as_bytes());
            out.push(b'"');
        }
        if !self.rate_limit.is_empty() {
            out.extend_from_slice(b",\"rate_limit\":\"");
            escape(out, self.rate_limit.as_bytes(), usize::MAX);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"attempts\":");
        number(out, u64::from(self.attempts));
        if let Some(winner) = self.hedge {
            out.extend_from_slice(b",\"hedge\":\"");
            out.extend_from_slice(winner.label().as_bytes());
            out.push(b'"');
        }
        for (name, value) in [
            (&b",\"head_ms\":"[..], self.head),
            (b",\"total_ms\":", self.total),
            (b",\"queue_ms\":", self.queue),
        ] {
            out.extend_from_slice(name);
            millis(out, value);
        }
        out.extend_from_slice(b",\"bytes_in\":");
        number(out, self.bytes_in);
        out.extend_from_slice(b",\"bytes_out\":");
        number(out, self.bytes_out);
        out.extend_from_slice(b"}\n");
    }

    /// For people: what matters first, the rest by name.
    fn write_text(&self, out: &mut Vec<u8>, stamps: &mut Stamps) {
        stamps.write(out, self.at);
        out.push(b' ');
        escape(out, self.method, WORD_BYTES);
        out.push(b' ');
        escape(out, self.target, PATH_BYTES);
        out.push(b' ');
        number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(self.outcome.label().as_bytes());
        if let Some(reason) = self.reason {
            out.extend_from_slice(b" reason=");
            out.extend_from_slice(reason.label().as_bytes());
        }
        if let Some(fallback) = self.fallback {
            out.extend_from_slice(b" fallback=");
            out.extend_from_slice(fallback.label().as_bytes());
        }
        for (name, value) in [
            (&b" rate_limit="[..], self.rate_limit),
            (b" upstream=", self.upstream),
            (b" endpoint=", self.endpoint),
            (b" route=", self.route),
            (b" listener=", self.listener),
        ] {
            if !value.is_empty() {
                out.extend_from_slice(name);
                escape(out, value.as_bytes(), usize::MAX);
            }
        }
        out.extend_from_slice(b" attempts=");
        number(out, u64::from(self.attempts));
        if let Some(winner) = self.hedge {
            out.extend_from_slice(b" hedge=");
            out.extend_from_slice(winner.label().as_bytes());
        }
        for (name, value) in [(&b" head="[..], self.head), (b" total=", self.total), (b" queue=", self.queue)]
        {
            out.extend_from_slice(name);
            millis(out, value);
            out.extend_from_slice(b"ms");
        }
        out.extend_from_slice(b" in=");
        number(out, self.bytes_in);
        out.extend_from_slice(b"B out=");
        number(out, self.bytes_out);
        out.extend_from_slice(b"B client=");
        address(out, self.client);
        out.extend_from_slice(b" id=");
        escape(out, self.request_id, WORD_BYTES);
        out.push(b'\n');
    }
}

/// Appends `text` as it may stand between the quotes of a JSON string, cut after `limit` bytes. Bytes that are no
/// UTF-8 become U+FFFD, control characters become escapes (those of C1 too: terminals obey them).
fn escape(out: &mut Vec<u8>, text: &[u8], limit: usize) {
    let shown = &text[..text.len().min(limit)];
    let is_special = |byte: u8| !(b' '..=b'~').contains(&byte) | (byte == b'"') | (byte == b'\\');
    // PERF: without a branch for each byte, sixteen are looked at together.
    if !shown.iter().fold(false, |seen, byte| seen | is_special(*byte)) {
        out.extend_from_slice(shown);
    } else {
        for chunk in shown.utf8_chunks() {
            chunk.valid().chars().for_each(|char| escape_char(out, char));
            // A character that the cut went through is no error of the client's.
            let is_cut =
                shown.len() < text.len() && chunk.invalid().as_ptr_range().end == shown.as_ptr_range().end;
            if !chunk.invalid().is_empty() && !is_cut {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    if shown.len() < text.len() {
        out.extend_from_slice(b"...");
    }
}

fn escape_char(out: &mut Vec<u8>, char: char) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match char {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        char if char.is_control() => {
            let code = char as usize;
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[code >> 4 & 15], HEX[code & 15]]);
        }
        char => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends milliseconds, to the microsecond.
fn millis(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1000);
    let fraction = (micros % 1000) as u16;
    let digit = |number: u16| b'0' + (number % 10) as u8;
    out.extend_from_slice(&[b'.', digit(fraction / 100), digit(fraction / 10), digit(fraction)]);
}

/// Appends an address and port, or `unix`; IPv4 without the formatting machinery.
fn address(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        _ if address == UNIX_PEER => out.extend_from_slice(b"unix"),
        SocketAddr::V4(v4) => {
            for (index, octet) in v4.ip().octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                number(out, u64::from(octet));
            }
            out.push(b':');
            number(out, u64::from(v4.port()));
        }
        SocketAddr::V6(v6) => {
            use std::io::Write;
            write!(out, "{v6}").expect("memory takes every write");
        }
    }
}

#[cfg(test)]
mod tests;
