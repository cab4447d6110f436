//! The demo's upstreams: three replicas of one service, each with a fixed capacity, that can be made to fail.
//!
//! A replica has six slots and an unbounded FIFO before them. Work that was taken in is done even when its
//! client has left: that is what makes overload last after its cause is gone. The queue is bounded by the
//! load, which is open-loop and bounded itself (`load`). Not here: when which replica fails (`timeline`).

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

/// The replicas' names, in the order of every array of three here.
pub(super) const REPLICAS: [&str; 3] = ["a", "b", "c"];
/// Requests that a replica works on at once.
pub(super) const SLOTS: usize = 6;
/// What a request's work takes, give or take [`SERVICE_JITTER`]: 150 requests a second for each replica.
pub(super) const SERVICE_TIME: Duration = Duration::from_millis(40);
const SERVICE_JITTER: f64 = 0.25;
/// What a replica answers.
const PAYLOAD: &[u8] =
    br#"{"payment":"42","state":"settled","lines":["one","two","three","four","five","six"]}"#;
/// Between the first half of a body and the reset, so that the half arrives.
const BEFORE_RESET: Duration = Duration::from_millis(5);

/// What is wrong with a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// Nothing.
    Healthy,
    /// Its work takes this many times as long.
    Slow(u32),
    /// It does its work, and then answers every second request with 500 or 503.
    Errors,
    /// It accepts connections and requests, and never answers.
    Stalled,
    /// Its process is gone: connections are reset, its port refuses.
    Refusing,
    /// It does its work, and then resets every second answer in mid-body.
    Resetting,
}

/// Three replicas, each listening on a loopback port of its own.
pub(super) struct Upstreams {
    replicas: Vec<(SocketAddr, Rc<Replica>)>,
    /// The tasks that accept and serve; they end with this value.
    _doors: JoinSet<()>,
}

impl Upstreams {
    /// Opens the ports and serves from now on. Within a `LocalSet`.
    pub(super) async fn start() -> io::Result<Upstreams> {
        let (mut replicas, mut doors) = (Vec::new(), JoinSet::new());
        for _ in REPLICAS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let address = listener.local_addr()?;
            let replica = Rc::new(Replica::new());
            doors.spawn_local(keep_door(address, listener, replica.clone()));
            replicas.push((address, replica));
        }
        Ok(Upstreams { replicas, _doors: doors })
    }

    /// Where the replicas listen, in the order of [`REPLICAS`].
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.replicas.iter().map(|(address, _)| *address).collect()
    }

    /// From now on each replica behaves so. Work that has begun keeps the time that it takes.
    pub(super) fn behave(&self, faults: &[Fault; 3]) {
        for ((_, replica), fault) in self.replicas.iter().zip(faults) {
            replica.fault.send_replace(*fault);
        }
    }

    /// Requests that each replica has taken in and not finished, those of clients that left included.
    pub(super) fn backlogs(&self) -> [usize; 3] {
        std::array::from_fn(|index| self.replicas[index].1.backlog.get())
    }
}

/// One replica: its capacity and what is wrong with it.
struct Replica {
    slots: Semaphore,
    backlog: Cell<usize>,
    answered: Cell<u64>,
    fault: watch::Sender<Fault>,
}

impl Replica {
    fn new() -> Self {
        Self {
            slots: Semaphore::new(SLOTS),
            backlog: Cell::new(0),
            answered: Cell::new(0),
            fault: watch::Sender::new(Fault::Healthy),
        }
    }

    fn fault(&self) -> Fault {
        *self.fault.borrow()
    }

    /// Takes one request's work in. It goes on if the receiver is dropped; the semaphore is fair, so this is
    /// a FIFO before the slots. How long it takes is decided when it gets its slot.
    fn work(self: &Rc<Self>) -> oneshot::Receiver<()> {
        let (done, finished) = oneshot::channel();
        let replica = self.clone();
        replica.backlog.set(replica.backlog.get() + 1);
        tokio::task::spawn_local(async move {
            let slot = replica.slots.acquire().await.expect("never closed");
            let factor = match replica.fault() {
                Fault::Slow(factor) => f64::from(factor),
                _ => 1.0,
            };
            let jitter = 1.0 + SERVICE_JITTER * (2.0 * fastrand::f64() - 1.0);
            sleep(SERVICE_TIME.mul_f64(factor * jitter)).await;
            drop(slot);
            replica.backlog.set(replica.backlog.get() - 1);
            let _ = done.send(()); // the client may have left
        });
        finished
    }

    /// Every second answer, so that a fault's share is exact and repeats.
    fn is_every_second(&self) -> bool {
        self.answered.set(self.answered.get() + 1);
        self.answered.get().is_multiple_of(2)
    }
}

/// Accepts connections while the replica does not refuse, and resets all of them when it begins to.
async fn keep_door(address: SocketAddr, listener: TcpListener, replica: Rc<Replica>) {
    let mut fault = replica.fault.subscribe();
    let mut listener = listener;
    loop {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        connections.spawn_local(serve(stream, replica.clone()));
                    }
                }
                Some(_) = connections.join_next() => {}
                _ = fault.wait_for(|fault| *fault == Fault::Refusing) => break,
            }
        }
        drop(listener);
        drop(connections);
        // Bound but not listening: connects are refused, and nobody else gets the port meanwhile.
        let closed = hold(address).await;
        if fault.wait_for(|fault| *fault != Fault::Refusing).await.is_err() {
            return;
        }
        match closed.listen(1024) {
            Ok(open) => listener = open,
            Err(_) => return, // the replica stays gone
        }
    }
}

/// Binds `address` without listening, as soon as that can be done.
async fn hold(address: SocketAddr) -> TcpSocket {
    loop {
        if let Ok(socket) = TcpSocket::new_v4()
            && socket.set_reuseaddr(true).is_ok()
            && socket.bind(address).is_ok()
        {
            return socket;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// One connection, to its end.
async fn serve(stream: TcpStream, replica: Rc<Replica>) {
    let _ = stream.set_nodelay(true);
    // A second handle on the socket: how it closes must be set while hyper holds the stream.
    let Ok(socket) = SockRef::from(&stream).try_clone() else { return };
    let service = service_fn(|request| answer(&replica, &socket, request));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// One request, as the replica's fault has it.
async fn answer(
    replica: &Rc<Replica>,
    socket: &socket2::Socket,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    if replica.fault() == Fault::Stalled {
        std::future::pending::<()>().await;
    }
    let _ = request.into_body().collect().await;
    let _ = replica.work().await;
    Ok(match replica.fault() {
        Fault::Errors if replica.is_every_second() => {
            let status = if replica.answered.get().is_multiple_of(4) { 503 } else { 500 };
            let mut failed = Response::new(Reply::whole(b"{\"error\":\"the database is on fire\"}"));
            *failed.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
            failed
        }
        Fault::Resetting if replica.is_every_second() => {
            // The close that follows is a reset (RFC 9293 §3.10.4), not an orderly end.
            let _ = socket.set_linger(Some(Duration::ZERO));
            Response::new(Reply::broken(PAYLOAD))
        }
        _ => Response::new(Reply::whole(PAYLOAD)),
    })
}

/// A body: whole, or one that breaks off after its first half.
struct Reply {
    rest: Option<Bytes>,
    size: u64,
    breaks: Option<Pin<Box<Sleep>>>,
}

impl Reply {
    fn whole(payload: &'static [u8]) -> Self {
        Self { rest: Some(Bytes::from_static(payload)), size: payload.len() as u64, breaks: None }
    }

    fn broken(payload: &'static [u8]) -> Self {
        let half = Bytes::from_static(&payload[..payload.len() / 2]);
        Self { rest: Some(half), size: payload.len() as u64, breaks: Some(Box::pin(sleep(BEFORE_RESET))) }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(rest) = this.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        let Some(pause) = this.breaks.as_mut() else { return Poll::Ready(None) };
        ready!(pause.as_mut().poll(context));
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.breaks.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // The head promises the whole body, also where only half of it comes.
        SizeHint::with_exact(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    /// Runs `story` with made-up time, which jumps on when everybody waits.
    fn in_made_up_time(story: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, story);
    }

    /// Runs `story` with sockets.
    fn with_sockets(story: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, story);
    }

    /// Everything that comes back for one GET on a connection of its own, and how it ended.
    async fn get(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").await?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn a_replica_works_on_as_many_requests_as_it_has_slots() {
        in_made_up_time(async {
            let replica = Rc::new(Replica::new());
            let begin = Instant::now();
            let work: Vec<_> = (0..3 * SLOTS).map(|_| replica.work()).collect();
            for (index, done) in work.into_iter().enumerate() {
                done.await.expect("done");
                let rounds = 1 + index / SLOTS;
                let least = SERVICE_TIME.mul_f64((1.0 - SERVICE_JITTER) * rounds as f64);
                assert!(begin.elapsed() >= least, "request {index} after {:?}", begin.elapsed());
            }
            let most = SERVICE_TIME.mul_f64((1.0 + SERVICE_JITTER) * 3.0) + Duration::from_millis(5);
            assert!(begin.elapsed() <= most, "slots stood idle: {:?}", begin.elapsed());
            assert_eq!(replica.backlog.get(), 0);
        });
    }

    #[test]
    fn work_goes_on_after_its_client_left() {
        in_made_up_time(async {
            let replica = Rc::new(Replica::new());
            for _ in 0..10 * SLOTS {
                drop(replica.work()); // nobody waits for it
            }
            let begin = Instant::now();
            replica.work().await.expect("done");
            let least = SERVICE_TIME.mul_f64((1.0 - SERVICE_JITTER) * 10.0);
            assert!(begin.elapsed() >= least, "abandoned work was dropped: {:?}", begin.elapsed());
        });
    }

    #[test]
    fn a_slow_replica_takes_longer_from_its_next_request_on() {
        in_made_up_time(async {
            let replica = Rc::new(Replica::new());
            replica.fault.send_replace(Fault::Slow(10));
            let begin = Instant::now();
            replica.work().await.expect("done");
            assert!(begin.elapsed() >= SERVICE_TIME.mul_f64(10.0 * (1.0 - SERVICE_JITTER)));
        });
    }

    #[test]
    fn every_fault_shows_on_the_wire() {
        with_sockets(async {
            let upstreams = Upstreams::start().await.expect("loopback");
            let address = upstreams.addresses()[0];
            let all = |fault| upstreams.behave(&[fault; 3]);

            assert!(get(address).await.expect("healthy").starts_with("HTTP/1.1 200"));

            all(Fault::Errors);
            let answers = [get(address).await, get(address).await];
            let failed = answers.iter().flatten().filter(|text| text.starts_with("HTTP/1.1 50")).count();
            assert_eq!(failed, 1, "every second answer is an error: {answers:?}");

            all(Fault::Resetting);
            let answers = [get(address).await, get(address).await];
            let reset = answers.iter().flat_map(|answer| answer.as_ref().err());
            let kinds: Vec<_> = reset.map(io::Error::kind).collect();
            assert_eq!(kinds, [io::ErrorKind::ConnectionReset], "every second answer breaks off");

            all(Fault::Stalled);
            assert!(timeout(Duration::from_millis(150), get(address)).await.is_err(), "no answer comes");

            let open = TcpStream::connect(address).await.expect("still open");
            all(Fault::Refusing);
            let mut open = open;
            let _ = open.read(&mut [0; 1]).await; // ends when the process is gone
            let refused = get(address).await.expect_err("refused");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

            all(Fault::Healthy);
            let back = loop {
                match get(address).await {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        tokio::task::yield_now().await;
                    }
                    answer => break answer,
                }
            };
            assert!(back.expect("open again").starts_with("HTTP/1.1 200"));
        });
    }
}
