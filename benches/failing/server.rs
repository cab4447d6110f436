//! A replica whose capacity is exact, for the rows that overload it.
//!
//! Some workers behind a FIFO without a bound. Work that was taken in is done even when its client has left, so what
//! is let in beyond what clients wait for is lost to everybody; each work is kept, so that what was wasted can be
//! counted.
//!
//! When a work is done is computed as it comes, from when the first worker is free: no thread stands for a worker,
//! and a machine that wakes threads late delays answers but takes nothing from the capacity. Rejected: the workers
//! of `replica`, whose capacity falls with every wake-up that is late, and whose queue wakes everybody each time.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How many service times are drawn at once, so that their mean, and the share of slow ones, are exact.
const HUNDRED: u32 = 100;
/// A thread of a connection needs little.
const STACK: usize = 128 * 1024;

/// What a server can do, and what goes wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Requests that it works on at once.
    pub(crate) workers: usize,
    /// What a request's work takes in the mean, and from when on (of the start) it does; in their order.
    pub(crate) takes: Vec<(Duration, Duration)>,
    /// How far these times spread: the standard deviation of their logarithm. 0: all are equal.
    pub(crate) spread: f64,
    /// So many of each hundred take so much longer.
    pub(crate) tail: (u32, Duration),
    /// Nothing moves meanwhile.
    pub(crate) stall: Range<Duration>,
}

/// One request that was worked on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// The request's number.
    pub(crate) number: usize,
    /// When it came.
    pub(crate) came: Duration,
}

/// A server on a loopback port of its own, until the process ends.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    plan: Plan,
    start: Instant,
    /// When each worker has done what it was given.
    free: Vec<Duration>,
    /// How much longer or shorter than the mean the next works take, and whether they are of the slow ones.
    drawn: Vec<(f64, bool)>,
    random: fastrand::Rng,
    works: Vec<Work>,
}

impl Server {
    /// Opens a port and serves from now on; times of the plan count from `start`, and `seed` draws the service times.
    pub(crate) fn start(plan: Plan, start: Instant, seed: u64) -> io::Result<Server> {
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = door.local_addr()?;
        let state = State {
            free: vec![Duration::ZERO; plan.workers],
            plan,
            start,
            drawn: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            works: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in door.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A connection without a thread is closed, and its client knows.
                let _ = thread::Builder::new().stack_size(STACK).spawn(move || serve(stream, &state));
            }
        });
        Ok(Server { address, state })
    }

    /// All that was worked on so far.
    pub(crate) fn works(&self) -> Vec<Work> {
        locked(&self.state).works.clone()
    }
}

impl State {
    /// Takes a request in: when its work will be done.
    fn take_in(&mut self, number: usize) -> Duration {
        let now = self.start.elapsed();
        self.works.push(Work { number, came: now });
        let (factor, is_slow) = self.draw();
        let worker = self.free.iter_mut().min().expect("a plan has workers");
        let mut begin = now.max(*worker);
        if self.plan.stall.contains(&begin) {
            begin = self.plan.stall.end;
        }
        let mean = self.plan.takes.iter().rev().find(|(from, _)| *from <= begin);
        let mut done = begin + mean.map_or(Duration::ZERO, |(_, mean)| mean.mul_f64(factor));
        if is_slow {
            done += self.plan.tail.1;
        }
        if begin < self.plan.stall.start && done > self.plan.stall.start {
            done += self.plan.stall.end - self.plan.stall.start;
        }
        *worker = done;
        done
    }

    fn draw(&mut self) -> (f64, bool) {
        if self.drawn.is_empty() {
            let factors: Vec<_> = (0..HUNDRED).map(|_| (self.plan.spread * self.normal()).exp()).collect();
            let mean = factors.iter().sum::<f64>() / f64::from(HUNDRED);
            let slow = self.plan.tail.0;
            self.drawn = (0..HUNDRED).zip(factors).map(|(n, factor)| (factor / mean, n < slow)).collect();
            self.random.shuffle(&mut self.drawn);
        }
        self.drawn.pop().unwrap_or((1.0, false))
    }

    /// A draw from the normal distribution (Box-Muller); 1 - [0,1) is never 0.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.random.f64(), self.random.f64());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nobody panics with the state in hand")
}

/// One connection, to its end: requests for `/items/NUMBER/SIZE`.
fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let start = locked(state).start;
    let mut input = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let end = loop {
            if let Some(place) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                break place + 4;
            }
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                size => input.extend_from_slice(&piece[..size]),
            }
        };
        let head = String::from_utf8_lossy(&input[..end]).into_owned();
        input.drain(..end);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let mut parts = path.rsplit('/');
        let mut part = || parts.next().and_then(|part| part.parse::<usize>().ok());
        let (Some(size), Some(number)) = (part(), part()) else {
            return Err(io::Error::other(format!("asked for {path:?}")));
        };
        let done = locked(state).take_in(number);
        thread::sleep((start + done).saturating_duration_since(Instant::now()));
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size, b'x');
        stream.write_all(&answer)?;
    }
}
