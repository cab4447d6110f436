//! Open-loop load: requests are sent when they are due, however the earlier ones fare, and are measured from then.
//!
//! A loop that waits for an answer before it sends the next request stops asking just when the service is at its
//! worst, and so never sees it ("coordinated omission"). Here a Poisson schedule says when each request is due, and
//! more clients wait for their turn than can ever be under way: each is a thread with a keep-alive connection of its
//! own, which takes the next request, sleeps until it is due and reads the whole answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Requests a second.
pub(crate) const RATE: f64 = 600.0;
/// What the sidecar may let wait at once: its `request` timeout of 500 ms allows 300.
const CLIENTS: usize = 512;
/// How long a client waits for the next byte: well above what the sidecar allows itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest head of an answer.
const MAX_HEAD: usize = 8 * 1024;

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// When it was due, from the start on.
    pub(crate) due: Duration,
    /// How long after that it was sent: the machine's fault.
    pub(crate) late: Duration,
    /// From when it was due to the end of its answer, or to its failure.
    pub(crate) latency: Duration,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
}

/// When each request is due, the same for the same seed.
pub(crate) fn schedule(length: Duration, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let gaps = std::iter::repeat_with(|| {
        // The gaps of a Poisson process are exponential; 1 - [0,1) is never 0.
        at -= (1.0 - random.f64()).ln() / RATE;
        Duration::from_secs_f64(at)
    });
    gaps.take_while(|due| *due < length).collect()
}

/// Sends a GET for `path` to `address` whenever one is due after `start`. All that came of it, in the order in which
/// they were due.
pub(crate) fn drive(schedule: &[Duration], start: Instant, address: SocketAddr, path: &str) -> Vec<Sample> {
    let next = AtomicUsize::new(0);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: failing\r\n\r\n");
    let one_client = || {
        let mut client = Client { address, stream: None, buffer: vec![0; 64 * 1024] };
        let mut samples = Vec::new();
        while let Some(due) = schedule.get(next.fetch_add(1, Ordering::Relaxed)) {
            thread::sleep((start + *due).saturating_duration_since(Instant::now()));
            let late = start.elapsed().saturating_sub(*due);
            let error = client.ask(request.as_bytes()).err();
            samples.push(Sample { due: *due, late, latency: start.elapsed() - *due, error });
        }
        samples
    };
    let mut samples = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one_client)).collect();
        let samples = clients.into_iter().flat_map(|client| client.join().expect("no client panics"));
        samples.collect::<Vec<_>>()
    });
    samples.sort_by_key(|sample| sample.due);
    samples
}

/// One client and its connection, if it has one.
struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    /// Sends one request and reads its answer to the end. Why it failed, if it did.
    fn ask(&mut self, request: &[u8]) -> Result<(), String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).map_err(|error| format!("connect: {}", error.kind()))?,
        };
        stream.write_all(request).map_err(|error| format!("sending: {}", error.kind()))?;
        let (have, head) = read_head(&mut stream, &mut self.buffer)?;
        let mut left = head.length.saturating_sub(have - head.size);
        while left > 0 {
            match stream.read(&mut self.buffer) {
                Ok(0) => return Err("body broke off".into()),
                Ok(size) => left = left.saturating_sub(size),
                Err(error) if is_timeout(&error) => return Err("no answer: body".into()),
                Err(_) => return Err("body broke off".into()),
            }
        }
        if !head.closes {
            self.stream = Some(stream);
        }
        head.error.map_or(Ok(()), Err)
    }
}

/// What the head of an answer says.
struct Head {
    size: usize,
    length: usize,
    closes: bool,
    error: Option<String>,
}

/// Reads until a head is whole: how many bytes have come, and what it says.
fn read_head(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<(usize, Head), String> {
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]) {
            Ok(0) => return Err("closed without an answer".into()),
            Ok(size) => have += size,
            Err(error) if is_timeout(&error) => return Err("no answer".into()),
            Err(error) => return Err(format!("no answer: {}", error.kind())),
        }
        if let Some(head) = parse(&buffer[..have])? {
            return Ok((have, head));
        }
        if have > MAX_HEAD {
            return Err("not HTTP".into());
        }
    }
}

fn parse(input: &[u8]) -> Result<Option<Head>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(size) = answer.parse(input).map_err(|_| "not HTTP")? else {
        return Ok(None);
    };
    let field = |name: &str| {
        let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.map(|field| String::from_utf8_lossy(field.value).into_owned())
    };
    let status = answer.code.unwrap_or_default();
    let length = field("content-length").and_then(|length| length.parse().ok());
    let error = (status != 200).then(|| {
        // Outrigger's own answers say why.
        let own = field("proxy-status").and_then(|text| {
            let (_, reason) = text.split_once("details=\"")?;
            Some(reason.trim_end_matches('"').to_owned())
        });
        own.unwrap_or_else(|| format!("{status} passed on"))
    });
    Ok(Some(Head {
        size,
        length: length.ok_or("an answer without Content-Length")?,
        closes: field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        error,
    }))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
