//! A replica of a service with a fixed capacity, that can be made to fail.
//!
//! Four workers behind a FIFO, about 5 ms a request: 800 requests a second. The FIFO has no bound of its own (the
//! load is bounded), and work that was taken in is done even when its client has left: that makes failure last
//! after its cause is gone, as in real services. Its health check stays green in every failure but one.
//!
//! A thread for each connection, since a thread's sleep is exact to some ten microseconds and a runtime's timer to
//! a millisecond, which is a fifth of what is measured here.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// Requests that a replica works on at once.
const WORKERS: u64 = 4;
/// What a request's work takes in the mean; its logarithm has [`SPREAD`], so that one in a hundred takes 12 ms.
const SERVICE_TIME: Duration = Duration::from_millis(5);
const SPREAD: f64 = 0.4;
/// By how much a slow replica is slower.
const SLOWNESS: Duration = Duration::from_secs(1);
/// A brownout turns so many of each hundred answers into 503, drawn anew for each hundred: exactly its share, since
/// 20 % need 0.248 retries a request and the retry budget allows 0.25, so that the noise of independent draws would
/// decide whether it suffices.
const BROWNOUT: u32 = 20;
/// Between the first half of a body and the reset, so that the half arrives.
const BEFORE_RESET: Duration = Duration::from_millis(2);

/// What is wrong with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Healthy,
    /// Its work takes a second longer.
    Slow,
    /// It answers 500 at once and does nothing.
    Errors,
    /// It does its work, and then answers one in five with 503.
    Brownout,
    /// Its process is gone: connections are closed, its port refuses.
    Refusing,
    /// It accepts connections and requests, those of its health check too, and never answers.
    Hanging,
    /// It does its work, and then resets every answer in mid-body.
    Resetting,
}

/// A replica on a loopback port of its own, until the process ends.
pub(crate) struct Replica {
    /// Where it listens, and what clients of the sidecar know it by.
    pub(crate) address: SocketAddr,
    door: Arc<Socket>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// A worker is free.
    is_free: Condvar,
    /// What is wrong has changed.
    has_changed: Condvar,
}

struct State {
    fault: Fault,
    /// Requests that were taken in, and that are done: number `n` is worked on once `n` < done + [`WORKERS`].
    taken: u64,
    done: u64,
    /// When each request came; those of the health check do not count.
    arrivals: Vec<Instant>,
    open: HashMap<u64, TcpStream>,
    accepted: u64,
    random: fastrand::Rng,
    /// Of the hundred answers of a brownout: how many are to come, and how many of them are 503.
    hundred: (u32, u32),
}

impl State {
    /// Whether the next answer of a brownout is 503.
    fn browns_out(&mut self) -> bool {
        if self.hundred.0 == 0 {
            self.hundred = (100, BROWNOUT);
        }
        let (left, bad) = &mut self.hundred;
        let is_bad = self.random.u32(..*left) < *bad;
        *left -= 1;
        *bad -= u32::from(is_bad);
        is_bad
    }
}

impl Replica {
    /// Opens a port and serves from now on; `seed` draws its service times.
    pub(crate) fn start(seed: u64) -> io::Result<Replica> {
        // A port that was asked for by its number stays bound while it does not listen.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let door = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        door.set_reuse_address(true)?;
        door.bind(&address.into())?;
        door.listen(1024)?;
        let state = State {
            fault: Fault::Healthy,
            taken: 0,
            done: 0,
            arrivals: Vec::new(),
            open: HashMap::new(),
            accepted: 0,
            random: fastrand::Rng::with_seed(seed),
            hundred: (0, 0),
        };
        let shared =
            Shared { state: Mutex::new(state), is_free: Condvar::new(), has_changed: Condvar::new() };
        let replica = Replica { address, door: Arc::new(door), shared: Arc::new(shared) };
        let (door, shared) = (Arc::clone(&replica.door), Arc::clone(&replica.shared));
        thread::spawn(move || keep_door(&door, &shared));
        Ok(replica)
    }

    /// From now on it behaves so. Work that has begun keeps the time that it takes.
    pub(crate) fn behave(&self, fault: Fault) -> io::Result<()> {
        let mut state = self.shared.state();
        let was = std::mem::replace(&mut state.fault, fault);
        if fault == Fault::Refusing {
            // On Linux the port stays bound, connects are refused, and `accept` returns.
            self.door.shutdown(Shutdown::Read)?;
            for stream in state.open.values() {
                let _ = stream.shutdown(Shutdown::Both); // gone already is fine
            }
        } else if was == Fault::Refusing {
            self.door.listen(1024)?;
        }
        self.shared.has_changed.notify_all();
        Ok(())
    }

    /// When each request has come.
    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.shared.state().arrivals.clone()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the state in hand")
    }

    /// Does one request's work: waits its turn, and takes its time.
    fn work(&self) {
        let mut state = self.state();
        let number = state.taken;
        state.taken += 1;
        let mut state = self
            .is_free
            .wait_while(state, |state| number >= state.done + WORKERS)
            .expect("nobody panics with the state in hand");
        let mut takes = service_time(&mut state.random);
        if state.fault == Fault::Slow {
            takes += SLOWNESS;
        }
        drop(state);
        thread::sleep(takes);
        self.state().done += 1;
        self.is_free.notify_all();
    }

    /// Waits until something else is wrong than `fault`.
    fn outlast(&self, fault: Fault) {
        let state = self.has_changed.wait_while(self.state(), |state| state.fault == fault);
        drop(state.expect("nobody panics with the state in hand"));
    }
}

/// A draw from the log-normal distribution whose mean is [`SERVICE_TIME`].
fn service_time(random: &mut fastrand::Rng) -> Duration {
    // Box-Muller; 1 - [0,1) is never 0.
    let (radius, angle) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
    SERVICE_TIME.mul_f64((SPREAD * normal - SPREAD * SPREAD / 2.0).exp())
}

/// Accepts connections for ever, but while the replica refuses.
fn keep_door(door: &Socket, shared: &Arc<Shared>) {
    loop {
        let Ok((socket, _)) = door.accept() else {
            shared.outlast(Fault::Refusing);
            thread::sleep(Duration::from_micros(100)); // so that whatever else is wrong does not spin
            continue;
        };
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut stream = TcpStream::from(socket);
            let Ok(second) = stream.try_clone() else { return };
            let id = {
                let mut state = shared.state();
                if state.fault == Fault::Refusing {
                    return;
                }
                state.accepted += 1;
                let id = state.accepted;
                state.open.insert(id, second);
                id
            };
            let _ = serve(&mut stream, &shared); // however it ends, the connection is over
            shared.state().open.remove(&id);
        });
    }
}

/// One connection, to its end.
fn serve(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
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

        let fault = {
            let mut state = shared.state();
            if path != "/healthz" {
                state.arrivals.push(Instant::now());
            }
            state.fault
        };
        if fault == Fault::Hanging {
            shared.outlast(Fault::Hanging);
            return Ok(());
        }
        if path == "/healthz" {
            stream.write_all(&answer("200 OK", 2))?;
            continue;
        }
        if fault == Fault::Errors {
            stream.write_all(&answer("500 Internal Server Error", 64))?;
            continue;
        }
        shared.work();
        let size = path.rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or(1024);
        let (fault, is_bad) = {
            let mut state = shared.state();
            (state.fault, state.fault == Fault::Brownout && state.browns_out())
        };
        match fault {
            Fault::Brownout if is_bad => stream.write_all(&answer("503 Service Unavailable", 64))?,
            Fault::Resetting => {
                let whole = answer("200 OK", size);
                stream.write_all(&whole[..whole.len() - size / 2])?;
                thread::sleep(BEFORE_RESET);
                // The close that follows is a reset (RFC 9293 §3.10.4), not an orderly end: of all handles.
                SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            _ => stream.write_all(&answer("200 OK", size))?,
        }
    }
}

/// An answer with a body of `size` bytes.
fn answer(status: &str, size: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
    );
    let mut whole = head.into_bytes();
    whole.resize(whole.len() + size, b'x');
    whole
}
