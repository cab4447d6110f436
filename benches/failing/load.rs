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

/// Between a try that failed and the next, in the mean: clients that retry are rarely patient.
const PAUSE: Duration = Duration::from_millis(50);
/// What a client says that gave up.
const TOO_LATE: &str = "no answer in time";
/// What a client reads at once, and its thread's stack: there are thousands.
const BUFFER: usize = 16 * 1024;
const STACK: usize = 128 * 1024;
/// The longest head of an answer.
const MAX_HEAD: usize = 8 * 1024;

/// What is sent, and who sends it.
pub(crate) struct Load {
    /// When each request is due, from the start on.
    pub(crate) schedule: Vec<Duration>,
    /// How large the answers are.
    pub(crate) size: usize,
    /// The share of requests that say `x-priority: critical`.
    pub(crate) critical: f64,
    /// How long after it was due a client gives up and closes its connection; a try after the first has as long
    /// from when it is sent. Nobody is told: it is not in the request.
    pub(crate) patience: Duration,
    /// How often a request is sent until it succeeds, [`PAUSE`] after it failed.
    pub(crate) tries: u32,
    /// How many can be under way at once. Where they do not suffice, `late` shows it.
    pub(crate) clients: usize,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// When it was due, from the start on.
    pub(crate) due: Duration,
    /// How long after that it was sent: the machine's fault.
    pub(crate) late: Duration,
    /// From when it was due to the end of its answer, or to its failure; of the last try, if there were several.
    pub(crate) latency: Duration,
    /// The same of its last try, from when that was sent.
    pub(crate) last_try: Duration,
    /// Why it failed, if it did; its last try.
    pub(crate) error: Option<String>,
    /// It said so.
    pub(crate) is_critical: bool,
    /// How often it was sent.
    pub(crate) tries: u32,
}

/// When each request is due, at so many a second until then; the same for the same seed.
pub(crate) fn schedule(rates: &[(Duration, f64)], seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut schedule = Vec::new();
    let mut from = 0.0;
    for (until, rate) in rates {
        // A Poisson process has no memory: each part can begin anew. Its gaps are exponential; 1 - [0,1) is never 0.
        let mut at = from;
        from = until.as_secs_f64();
        loop {
            at -= (1.0 - random.f64()).ln() / rate;
            if at >= from {
                break;
            }
            schedule.push(Duration::from_secs_f64(at));
        }
    }
    schedule
}

/// Sends a GET for `/items/NUMBER/SIZE` to `address` whenever one is due after `start`. All that came of it, in the
/// order in which they were due: so a request's number is its place.
pub(crate) fn drive(load: &Load, start: Instant, address: SocketAddr) -> Vec<Sample> {
    let next = AtomicUsize::new(0);
    let one_client = || {
        let mut client = Client { address, stream: None, buffer: vec![0; BUFFER] };
        let mut samples = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(due) = load.schedule.get(number) else { return samples };
            samples.push((number, client.see_through(load, number, start, *due)));
        }
    };
    let mut samples = thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients)
            .map(|_| {
                let client = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, one_client);
                client.expect("the machine has room for a thread")
            })
            .collect();
        let samples = clients.into_iter().flat_map(|client| client.join().expect("no client panics"));
        samples.collect::<Vec<_>>()
    });
    samples.sort_by_key(|(number, _)| *number);
    samples.into_iter().map(|(_, sample)| sample).collect()
}

/// One client and its connection, if it has one.
struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    /// Sends the request of that number when it is due, and again while it fails and may be tried.
    fn see_through(&mut self, load: &Load, number: usize, start: Instant, due: Duration) -> Sample {
        let mut random = fastrand::Rng::with_seed(number as u64);
        let is_critical = random.f64() < load.critical;
        let (address, size) = (self.address, load.size);
        let priority = if is_critical { "X-Priority: critical\r\n" } else { "" };
        let request = format!(
            "GET /items/{number}/{size} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: failing\r\n{priority}\r\n"
        );
        let mut tries = 0;
        let mut due_again = start + due;
        loop {
            tries += 1;
            thread::sleep(due_again.saturating_duration_since(Instant::now()));
            let sent = Instant::now();
            let until = due_again + load.patience;
            let mut error = self.ask(request.as_bytes(), until).err();
            let ended = Instant::now();
            if ended > until && error.is_none() {
                error = Some(TOO_LATE.into()); // the kernel's timers are coarse
            }
            if error.is_none() || tries == load.tries {
                return Sample {
                    due,
                    late: sent - due_again,
                    latency: ended - due_again,
                    last_try: ended - sent,
                    error,
                    is_critical,
                    tries,
                };
            }
            due_again = ended + PAUSE.mul_f64(0.5 + random.f64());
        }
    }

    /// Sends one request and reads its answer to the end. Why it failed, if it did.
    fn ask(&mut self, request: &[u8], until: Instant) -> Result<(), String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).map_err(|error| format!("connect: {}", error.kind()))?,
        };
        // All waits of a request have an end together: each read gets what is left, and never nothing, which is for ever.
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.write_all(request).map_err(|error| format!("sending: {}", error.kind()))?;
        let (have, head) = read_head(&mut stream, &mut self.buffer, left)?;
        let mut missing = head.length.saturating_sub(have - head.size);
        while missing > 0 {
            let _ = stream.set_read_timeout(Some(left()));
            match stream.read(&mut self.buffer) {
                Ok(0) => return Err("body broke off".into()),
                Ok(size) => missing = missing.saturating_sub(size),
                Err(error) if is_timeout(&error) => return Err(TOO_LATE.into()),
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
fn read_head(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    left: impl Fn() -> Duration,
) -> Result<(usize, Head), String> {
    let mut have = 0;
    loop {
        let _ = stream.set_read_timeout(Some(left())); // it is open, and the time is not zero
        match stream.read(&mut buffer[have..]) {
            Ok(0) => return Err("closed without an answer".into()),
            Ok(size) => have += size,
            Err(error) if is_timeout(&error) => return Err(TOO_LATE.into()),
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
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
