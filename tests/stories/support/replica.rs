//! Replicas whose behaviour a story changes while they run, and clients that keep asking meanwhile.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Client, Proxy, eventually, find, get};

/// How a replica fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// It answers 200.
    Well,
    /// It answers 200 after so long.
    Slow(Duration),
    /// It answers with this status at once.
    Answers(u16),
    /// It answers 503 to each fifth request, and 200 to the others.
    Brownout,
    /// It takes connections and requests, those of health checks too, and never answers.
    Hangs,
    /// It resets every answer in mid-body.
    BreaksOff,
    /// Its connections are closed and its port refuses.
    Refuses,
}

/// One replica. Dropped, it is gone.
pub struct Replica {
    address: SocketAddr,
    shared: Arc<Shared>,
    _door: JoinSet<()>,
}

struct Shared {
    behaviour: watch::Sender<Behaviour>,
    body: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: usize,
    checks: usize,
}

impl Replica {
    /// A replica whose answers have a body of `body` bytes.
    pub async fn start(body: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let behaviour = watch::Sender::new(Behaviour::Well);
        let shared = Arc::new(Shared { behaviour, body, seen: Mutex::default() });
        let mut door = JoinSet::new();
        door.spawn(keep_door(address, listener, Arc::clone(&shared)));
        Self { address, shared, _door: door }
    }

    /// So many of them.
    pub async fn several<const COUNT: usize>(body: usize) -> [Self; COUNT] {
        let mut replicas = Vec::new();
        for _ in 0..COUNT {
            replicas.push(Self::start(body).await);
        }
        replicas.try_into().unwrap_or_else(|_| unreachable!("as many as were pushed"))
    }

    /// Where it listens, as the configuration writes it.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on it behaves so.
    pub fn behaves(&self, behaviour: Behaviour) {
        self.shared.behaviour.send_replace(behaviour);
    }

    /// How many requests have come, health checks apart.
    pub fn seen(&self) -> usize {
        self.shared.seen().requests
    }

    /// How many health checks have come.
    pub fn checks(&self) -> usize {
        self.shared.seen().checks
    }

    /// How often Outrigger has ejected it, for whatever reason.
    pub async fn ejections(&self, proxy: &Proxy) -> f64 {
        proxy.metric(&format!("outrigger_endpoint_ejections_total{{endpoint={}}}", self.address)).await
    }

    /// Waits until Outrigger has ejected it.
    pub async fn is_ejected(&self, proxy: &Proxy) {
        eventually("it is ejected", async || self.ejections(proxy).await >= 1.0).await;
    }

    /// Waits until Outrigger calls it healthy, or not.
    pub async fn is_healthy(&self, proxy: &Proxy, healthy: bool) {
        let gauge = format!("outrigger_endpoint_healthy{{endpoint={}}}", self.address);
        proxy.metric_becomes(&gauge, f64::from(u8::from(healthy))).await;
    }

    /// Waits until so many more requests have come.
    pub async fn is_asked_again(&self, count: usize) {
        let before = self.seen();
        eventually("it is asked again", async || self.seen() >= before + count).await;
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with it in hand")
    }

    fn behaviour(&self) -> Behaviour {
        *self.behaviour.borrow()
    }
}

/// Accepts while the replica does not refuse.
async fn keep_door(address: SocketAddr, listener: TcpListener, shared: Arc<Shared>) {
    let mut behaviour = shared.behaviour.subscribe();
    let mut listener = listener;
    loop {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move { serve(stream, &shared).await });
                }
                Some(_) = connections.join_next() => {}
                _ = behaviour.wait_for(|behaviour| *behaviour == Behaviour::Refuses) => break,
            }
        }
        drop((listener, connections));
        // Bound but not listening: connects are refused, and nobody else gets the port meanwhile.
        let closed = TcpSocket::new_v4().expect("a socket");
        closed.set_reuseaddr(true).expect("an option of every socket");
        closed.bind(address).expect("it was just given up");
        if behaviour.wait_for(|behaviour| *behaviour != Behaviour::Refuses).await.is_err() {
            return;
        }
        listener = closed.listen(1024).expect("it was bound");
    }
}

/// One connection, to its end.
async fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut input = Vec::new();
    loop {
        let end = loop {
            match find(&input, b"\r\n\r\n") {
                Some(end) => break end + 4,
                None if stream.read_buf(&mut input).await.ok()? == 0 => return None,
                None => {}
            }
        };
        let is_check = input[..end].starts_with(b"GET /healthz ");
        input.drain(..end);
        let number = {
            let mut seen = shared.seen();
            if is_check {
                seen.checks += 1;
            } else {
                seen.requests += 1;
            }
            seen.requests
        };
        let behaviour = shared.behaviour();
        if behaviour == Behaviour::Hangs {
            std::future::pending::<()>().await;
        }
        let (pause, status) = match behaviour {
            _ if is_check => (Duration::ZERO, 200),
            Behaviour::Slow(pause) => (pause, 200),
            Behaviour::Answers(status) => (Duration::ZERO, status),
            Behaviour::Brownout if number.is_multiple_of(5) => (Duration::from_millis(2), 503),
            _ => (Duration::from_millis(2), 200),
        };
        tokio::time::sleep(pause).await;
        let size = if is_check { 0 } else { shared.body };
        let mut answer = format!("HTTP/1.1 {status} Replica\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size, b'x');
        if behaviour == Behaviour::BreaksOff && !is_check {
            stream.write_all(&answer[..answer.len() - size / 2]).await.ok()?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
            return None;
        }
        stream.write_all(&answer).await.ok()?;
    }
}

/// Clients that keep asking until this is dropped.
pub struct Asking {
    tally: Arc<Mutex<Tally>>,
    _clients: JoinSet<()>,
}

/// What clients have got.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Whole answers with 200.
    pub good: usize,
    /// Everything else: other answers, and what broke off.
    pub bad: usize,
}

impl Asking {
    /// So many clients of `proxy`, each with a connection of its own and one request at a time.
    pub fn start(proxy: &Proxy, clients: usize) -> Self {
        let tally: Arc<Mutex<Tally>> = Arc::default();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(ask(proxy.listener(), Arc::clone(&tally)));
        }
        Self { tally, _clients: tasks }
    }

    /// What they have got up to now.
    pub fn so_far(&self) -> Tally {
        *self.tally.lock().expect("nobody panics with it in hand")
    }

    /// What they get from now on, until it is so many answers.
    pub async fn next(&self, count: usize) -> Tally {
        let before = self.so_far();
        let since = || {
            let now = self.so_far();
            Tally { good: now.good - before.good, bad: now.bad - before.bad }
        };
        eventually("clients get answers", async || since().good + since().bad >= count).await;
        since()
    }
}

async fn ask(address: SocketAddr, tally: Arc<Mutex<Tally>>) {
    loop {
        let mut client = Client::connect(address).await;
        loop {
            client.send(get("/items")).await;
            let response = client.response_or_end("GET").await;
            let is_whole = response.as_ref().is_some_and(|response| response.whole);
            {
                let mut tally = tally.lock().expect("nobody panics with it in hand");
                match response {
                    Some(response) if response.whole && response.status == 200 => tally.good += 1,
                    _ => tally.bad += 1,
                }
            }
            if !is_whole {
                break;
            }
            // Some hundred requests a second: enough to judge by, and a test machine has other things to do.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
