//! An upstream that does what its script says, request by request, also what no server should do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{dechunk, eventually, fields, find, value};

/// A listening upstream and what it has seen.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    // Keeps a port that refuses, or a full backlog, as it is.
    kept: Vec<socket2::Socket>,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The number of its connection, from 0.
    pub connection: usize,
    /// Its head, byte by byte, without the empty line.
    pub head: String,
    /// The method.
    pub method: String,
    /// The target.
    pub target: String,
    /// All fields in their order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The payload that came.
    pub body: Vec<u8>,
    /// The fields behind a chunked body.
    pub trailers: Vec<(String, String)>,
    /// The end of its message has come.
    pub whole: bool,
}

impl Seen {
    /// The first value of the field `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        value(&self.fields, name)
    }
}

/// What the connections share.
struct Shared {
    script: Script,
    log: Mutex<Log>,
    gate: Semaphore,
}

/// What has happened.
#[derive(Default)]
struct Log {
    requests: Vec<Seen>,
    connections: usize,
    open: usize,
    sent: usize,
    bytes: Vec<u8>,
}

/// What an upstream will do. Each `answers…`, `resets…`, `never…` and `closes` adds what happens to the next request;
/// the last one repeats.
#[derive(Clone, Default)]
pub struct Script {
    replies: Vec<Reply>,
    closes_at_accept: bool,
    closes_keep_alive_after: Option<usize>,
    breaks_second_on_a_connection: bool,
    asked_by_number: bool,
}

/// What happens to one request.
#[derive(Clone, Default)]
struct Reply {
    early: bool,
    deaf: bool,
    before: Vec<Step>,
    answer: Option<Answer>,
    after: Vec<Step>,
}

/// A well-formed answer.
#[derive(Clone)]
struct Answer {
    status: u16,
    fields: String,
    body: Vec<u8>,
}

/// A thing to do.
#[derive(Clone)]
enum Step {
    Send(Vec<u8>),
    Read(usize),
    Wait(Duration),
    Hold,
    Hang,
    Close,
    Reset,
}

impl Upstream {
    /// The start of a script.
    pub fn that() -> Script {
        Script::default()
    }

    /// A port that refuses connections, and stays taken.
    pub fn refusing() -> Self {
        let socket = loopback_socket();
        let address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
        Self { address, shared: Shared::with(Script::default()), accepting: None, kept: vec![socket] }
    }

    /// A port whose connections are never completed: its backlog is full.
    pub fn blackhole() -> Self {
        let socket = loopback_socket();
        socket.listen(0).expect("it listens");
        let address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut kept = vec![socket];
        // On Linux a backlog of 0 holds one connection; a few more keep it full for good.
        for _ in 0..4 {
            let client =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            client.set_nonblocking(true).expect("an option");
            // In progress is what it says; it stays so.
            let _ = client.connect(&address.into());
            kept.push(client);
        }
        Self { address, shared: Shared::with(Script::default()), accepting: None, kept }
    }

    /// One that refuses, or a blackhole, takes connections from now on, and does what this script says.
    pub fn wakes_up(&mut self, script: Script) {
        self.kept[0].listen(128).expect("it listens");
        let listener: std::net::TcpListener = self.kept.remove(0).into();
        listener.set_nonblocking(true).expect("an option of every socket");
        self.shared = Shared::with(script);
        self.accepting = Some(accept(TcpListener::from_std(listener).expect("it listens"), &self.shared));
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests whose head has come, in that order.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.log().requests.clone()
    }

    /// The request with this number, from 0.
    pub fn request(&self, number: usize) -> Seen {
        self.requests().get(number).cloned().unwrap_or_else(|| panic!("no request {number} came"))
    }

    /// How many requests have come.
    pub fn seen(&self) -> usize {
        self.shared.log().requests.len()
    }

    /// Waits until `count` requests have come (their heads), and says if more did.
    pub async fn has_seen(&self, count: usize) {
        eventually(&format!("the upstream has seen {count} requests"), async || self.seen() >= count).await;
        assert_eq!(self.seen(), count, "requests: {:#?}", self.requests());
    }

    /// Waits until request `number` has come to its end.
    pub async fn has_all_of(&self, number: usize) {
        eventually(&format!("request {number} has come whole"), async || {
            self.requests().get(number).is_some_and(|request| request.whole)
        })
        .await;
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.log().connections
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.log().open
    }

    /// Waits until `count` connections are open.
    pub async fn has_open(&self, count: usize) {
        eventually(&format!("{count} connections are open"), async || self.open() == count).await;
    }

    /// Waits until `count` pieces of answers have been handed to the kernel; on loopback the other side has them then.
    pub async fn has_sent(&self, count: usize) {
        eventually(&format!("{count} pieces are sent"), async || self.shared.log().sent >= count).await;
    }

    /// Every byte that came, over all connections.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.log().bytes.clone()
    }

    /// Lets `count` steps go on that hold.
    pub fn release(&self, count: usize) {
        self.shared.gate.add_permits(count);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl Script {
    /// Then: this status, without a body.
    pub fn answers(mut self, status: u16) -> Self {
        let answer = Answer { status, fields: String::new(), body: Vec::new() };
        self.replies.push(Reply { answer: Some(answer), ..Reply::default() });
        self
    }

    /// The last answer has this body.
    pub fn with_body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.answer().body = body.as_ref().to_vec();
        self
    }

    /// The last answer has this field.
    pub fn with_field(mut self, name: &str, value: &str) -> Self {
        self.answer().fields.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Then: these bytes, whatever they are.
    pub fn answers_raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.replies.push(Reply { after: vec![Step::Send(bytes.as_ref().to_vec())], ..Reply::default() });
        self
    }

    /// The last answer goes on with these bytes, once they are released.
    pub fn and_when_released(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.last().after.extend([Step::Hold, Step::Send(bytes.as_ref().to_vec())]);
        self
    }

    /// The last answer, an early one, goes on with these bytes when so many of the body have come.
    pub fn and_behind(mut self, count: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.last().after.extend([Step::Read(count), Step::Send(bytes.as_ref().to_vec())]);
        self
    }

    /// The last answer goes on with these bytes after a pause.
    pub fn and_after(mut self, pause: Duration, bytes: impl AsRef<[u8]>) -> Self {
        self.last().after.extend([Step::Wait(pause), Step::Send(bytes.as_ref().to_vec())]);
        self
    }

    /// Then: the connection is reset, though the request has come whole.
    pub fn resets_before_the_head(mut self) -> Self {
        self.replies.push(Reply { after: vec![Step::Reset], ..Reply::default() });
        self
    }

    /// Then: the connection is reset as soon as the head has come.
    pub fn resets_before_reading_the_body(self) -> Self {
        let mut script = self.resets_before_the_head();
        script.last().early = true;
        script
    }

    /// Then: the connection is reset when this many bytes of the body have come.
    pub fn resets_after_reading(self, count: usize) -> Self {
        let mut script = self.resets_before_the_head();
        script.last().early = true;
        script.last().before.push(Step::Read(count));
        script
    }

    /// Then: half of the body, and a reset.
    pub fn resets_in_mid_body(self) -> Self {
        self.answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").then_resets()
    }

    /// Then: no answer. The connection stays open until the other side leaves.
    pub fn never_answers(mut self) -> Self {
        self.replies.push(Reply { after: vec![Step::Hang], ..Reply::default() });
        self
    }

    /// Then: the connection is closed in good order, without an answer.
    pub fn closes(mut self) -> Self {
        self.replies.push(Reply { after: vec![Step::Close], ..Reply::default() });
        self
    }

    /// Every connection is closed as it is accepted.
    pub fn accepts_and_closes(mut self) -> Self {
        self.closes_at_accept = true;
        self
    }

    /// The last answer is followed by the end of the connection.
    pub fn then_closes(mut self) -> Self {
        self.last().after.push(Step::Close);
        self
    }

    /// The last answer is followed by a reset.
    pub fn then_resets(mut self) -> Self {
        self.last().after.push(Step::Reset);
        self
    }

    /// The last answer is followed by nothing, not even the end.
    pub fn then_hangs(mut self) -> Self {
        self.last().after.push(Step::Hang);
        self
    }

    /// The last answer waits for this long.
    pub fn delays(mut self, pause: Duration) -> Self {
        self.last().before.push(Step::Wait(pause));
        self
    }

    /// The last answer waits for [`Upstream::release`].
    pub fn holds(mut self) -> Self {
        self.last().before.push(Step::Hold);
        self
    }

    /// The last answer goes out when the head has come; the body is read afterwards.
    pub fn answers_before_reading_the_body(mut self) -> Self {
        self.last().early = true;
        self
    }

    /// The last answer goes out when the head has come; the body is never read.
    pub fn never_reads_the_body(mut self) -> Self {
        self.last().early = true;
        self.last().deaf = true;
        self
    }

    /// A connection is closed, without a word, behind its `count`th answer.
    pub fn closes_keep_alive_after(mut self, count: usize) -> Self {
        self.closes_keep_alive_after = Some(count);
        self
    }

    /// The second request on a connection is read and then finds the connection closed: the stale race.
    pub fn closes_at_the_second_request_on_a_connection(mut self) -> Self {
        self.breaks_second_on_a_connection = true;
        self
    }

    /// A request for `/7` gets the answer with the number 7 (from 0), in whatever order they come.
    pub fn asked_by_number(mut self) -> Self {
        self.asked_by_number = true;
        self
    }

    /// It listens on a free port of loopback.
    pub async fn start(self) -> Upstream {
        self.start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port")
    }

    /// It listens at `address`, if that is free.
    pub async fn start_at(self, address: SocketAddr) -> std::io::Result<Upstream> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Shared::with(self);
        let accepting = accept(listener, &shared);
        Ok(Upstream { address, shared, accepting: Some(accepting), kept: Vec::new() })
    }

    fn last(&mut self) -> &mut Reply {
        self.replies.last_mut().expect("something is answered first")
    }

    fn answer(&mut self) -> &mut Answer {
        self.last().answer.as_mut().expect("the last one is `answers(status)`")
    }
}

impl Reply {
    /// All steps in their order. HEAD has no body, whatever its length says.
    fn steps(&self, method: &str) -> Vec<Step> {
        let mut steps = self.before.clone();
        if let Some(Answer { status, fields, body }) = &self.answer {
            let length = match status {
                204 | 304 => String::new(),
                _ => format!("Content-Length: {}\r\n", body.len()),
            };
            let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n{length}{fields}\r\n").into_bytes();
            if method != "HEAD" {
                bytes.extend_from_slice(body);
            }
            steps.push(Step::Send(bytes));
        }
        steps.extend(self.after.iter().cloned());
        steps
    }
}

impl Shared {
    fn with(script: Script) -> Arc<Self> {
        Arc::new(Self { script, log: Mutex::default(), gate: Semaphore::new(0) })
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().expect("nobody panics with the log in hand")
    }

    fn accepted(&self) -> usize {
        let mut log = self.log();
        log.connections += 1;
        log.open += 1;
        log.connections - 1
    }
}

/// Serves what connects to `listener`.
fn accept(listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<()> {
    let connections = Arc::clone(shared);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = connections.accepted();
            let shared = Arc::clone(&connections);
            tokio::spawn(async move {
                stream.set_nodelay(true).expect("an option of every socket");
                let mut wire = Wire { stream, input: Vec::new(), shared, connection, deaf: false };
                wire.serve().await;
            });
        }
    })
}

/// One connection of an upstream.
struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    shared: Arc<Shared>,
    connection: usize,
    deaf: bool,
}

/// The connection is over.
struct Over;

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.log().open -= 1;
    }
}

impl Wire {
    async fn serve(&mut self) {
        if self.shared.script.closes_at_accept {
            return;
        }
        let mut served = 0;
        while self.one_request(served).await.is_ok() {
            served += 1;
            if self.shared.script.closes_keep_alive_after == Some(served) {
                return;
            }
        }
    }

    async fn one_request(&mut self, served: usize) -> Result<(), Over> {
        let end = loop {
            match find(&self.input, b"\r\n\r\n") {
                Some(end) => break end,
                None => self.fill().await?,
            }
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4);
        let (line, lines) = head.split_once("\r\n").unwrap_or((&head, ""));
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (connection, fields) = (self.connection, fields(lines));
        let seen = Seen { connection, method: method.clone(), target, fields, head, ..Seen::default() };
        let number = {
            let mut log = self.shared.log();
            log.requests.push(seen.clone());
            log.requests.len() - 1
        };

        if served == 1 && self.shared.script.breaks_second_on_a_connection {
            self.body(&seen, number).await?;
            return Err(Over);
        }
        let Script { replies, asked_by_number, .. } = &self.shared.script;
        let asked = seen.target.get(1..).and_then(|number| number.parse().ok()).filter(|_| *asked_by_number);
        let reply = replies
            .get(asked.unwrap_or(number))
            .or(replies.last())
            .expect("the script says something")
            .clone();
        if !reply.early {
            self.body(&seen, number).await?;
        }
        self.deaf = reply.deaf;
        for step in reply.steps(&method) {
            self.act(step).await?;
        }
        if reply.deaf {
            return self.act(Step::Hang).await;
        }
        if reply.early {
            self.body(&seen, number).await?;
        }
        Ok(())
    }

    /// Reads the request's body, and shows what came of it at any moment.
    async fn body(&mut self, seen: &Seen, number: usize) -> Result<(), Over> {
        let chunked = seen.field("transfer-encoding").is_some();
        let length = seen.field("content-length").and_then(|length| length.parse::<usize>().ok());
        loop {
            let (payload, trailers, taken) = if chunked {
                let chunked = dechunk(&self.input);
                (chunked.payload, chunked.trailers, chunked.length)
            } else {
                let length = length.unwrap_or(0);
                let there = length.min(self.input.len());
                (self.input[..there].to_vec(), Vec::new(), (there == length).then_some(length))
            };
            {
                let request = &mut self.shared.log().requests[number];
                (request.body, request.trailers, request.whole) = (payload, trailers, taken.is_some());
            }
            if let Some(taken) = taken {
                self.input.drain(..taken);
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn act(&mut self, step: Step) -> Result<(), Over> {
        match step {
            Step::Send(bytes) => {
                let sent = self.stream.write_all(&bytes).await.map_err(|_| Over);
                self.shared.log().sent += 1;
                sent
            }
            Step::Read(count) => {
                while self.input.len() < count {
                    self.fill().await?;
                }
                Ok(())
            }
            Step::Wait(pause) => self.meanwhile(tokio::time::sleep(pause)).await,
            Step::Hold => {
                let shared = Arc::clone(&self.shared);
                self.meanwhile(async { shared.gate.acquire().await.expect("never closed").forget() }).await
            }
            Step::Hang => self.meanwhile(std::future::pending()).await,
            Step::Close => Err(Over),
            Step::Reset => {
                let socket = socket2::SockRef::from(&self.stream);
                socket.set_linger(Some(Duration::ZERO)).expect("an option of every socket");
                Err(Over)
            }
        }
    }

    /// Waits for `event`, or for the other side to leave (which who does not read cannot see).
    async fn meanwhile(&mut self, event: impl Future<Output = ()>) -> Result<(), Over> {
        tokio::pin!(event);
        loop {
            tokio::select! {
                () = &mut event => return Ok(()),
                more = self.fill(), if !self.deaf => more?,
            }
        }
    }

    async fn fill(&mut self) -> Result<(), Over> {
        let before = self.input.len();
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => Err(Over),
            Ok(_) => {
                self.shared.log().bytes.extend_from_slice(&self.input[before..]);
                Ok(())
            }
        }
    }
}

/// A TCP socket bound to a free port of loopback.
fn loopback_socket() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket
}
