//! `config/ingress.toml`, the very file, in front of a small service that gets more than it can do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::*;

/// What the service can do: four requests at once, 20 ms each.
const WORKERS: usize = 4;
const TAKES: Duration = Duration::from_millis(20);
/// Clients that ask without end: at once they are a hundred times what is worked on.
const CROWD: usize = 400;
/// How long somebody who was refused waits before asking again.
const PAUSE: Duration = Duration::from_millis(50);

/// A service of that capacity. It does what it was given even when nobody waits any more.
struct Service {
    port: u16,
    load: Arc<Load>,
    _door: JoinSet<()>,
}

struct Load {
    workers: Semaphore,
    inside: AtomicUsize,
    most: AtomicUsize,
    done: AtomicUsize,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let load = Arc::new(Load {
            workers: Semaphore::new(WORKERS),
            inside: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&load);
        let mut door = JoinSet::new();
        door.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { port, load, _door: door }
    }
}

async fn serve(mut stream: TcpStream, load: Arc<Load>) {
    let mut input = Vec::new();
    loop {
        while find(&input, b"\r\n\r\n").is_none() {
            match stream.read_buf(&mut input).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        input.clear(); // a GET has no body, and nobody sends the next before the answer
        let inside = load.inside.fetch_add(1, SeqCst) + 1;
        load.most.fetch_max(inside, SeqCst);
        let worker = load.workers.acquire().await.expect("it is never closed");
        tokio::time::sleep(TAKES).await;
        drop(worker);
        load.inside.fetch_sub(1, SeqCst);
        load.done.fetch_add(1, SeqCst);
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
            return;
        }
    }
}

/// The file with the addresses of this story; each stands in it just once.
async fn in_front_of(service: &Service) -> Proxy {
    let mut text = include_str!("../../config/ingress.toml").to_owned();
    let changes = [
        ("\"0.0.0.0:9901\"", "\"127.0.0.1:0\"".to_owned()),
        ("\"0.0.0.0:${PORT:-8080}\"", "\"127.0.0.1:0\"".to_owned()),
        ("\"127.0.0.1:9000\"", format!("\"127.0.0.1:{}\"", service.port)),
        ("\"10.0.0.0/8\"", "\"127.0.0.0/8\"".to_owned()), // the story stands where the load balancers do
        ("[admin]", "[admin]\naddress = \"127.0.0.1:0\"".to_owned()),
    ];
    for (old, new) in changes {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text = text.replace(old, &new);
    }
    Proxy::start(&text).await
}

/// A request for `path` by the client of that number, as a load balancer hands it on.
fn asked_by(number: usize, path: &str) -> String {
    let [high, low] = (number as u16).to_be_bytes();
    format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 198.18.{high}.{low}\r\n\r\n")
}

/// What became of the requests of some clients.
#[derive(Default)]
struct Tally {
    served: AtomicUsize,
    refused: AtomicUsize,
    other: std::sync::Mutex<Vec<String>>,
}

/// Asks for `path` until it is `over`.
async fn keep_asking(proxy: Arc<Proxy>, number: usize, path: &str, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    let mut client = proxy.connect().await;
    let request = asked_by(number, path);
    while !over.load(SeqCst) {
        let answer = client.exchange(&request).await;
        match answer.status {
            200 => tally.served.fetch_add(1, SeqCst),
            503 => {
                tokio::time::sleep(PAUSE).await;
                tally.refused.fetch_add(1, SeqCst)
            }
            status => {
                tally
                    .other
                    .lock()
                    .expect("nobody panics with it")
                    .push(format!("{status} {}", answer.text()));
                return;
            }
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ingress_example_keeps_a_service_from_more_than_it_can_do() {
    let service = Service::start().await;
    let proxy = Arc::new(in_front_of(&service).await);
    let mut client = proxy.connect().await;
    assert_eq!(client.exchange(&asked_by(60_000, "/items")).await.status, 200);

    let over = Arc::new(AtomicBool::new(false));
    let (crowd, reports) = (Arc::new(Tally::default()), Arc::new(Tally::default()));
    let mut clients = JoinSet::new();
    for number in 0..CROWD {
        let (path, tally) = if number % 4 == 0 { ("/reports/1", &reports) } else { ("/items", &crowd) };
        clients.spawn(keep_asking(Arc::clone(&proxy), number, path, Arc::clone(tally), Arc::clone(&over)));
    }
    eventually("the crowd is more than it can do", async || crowd.refused.load(SeqCst) > 200).await;

    // Who checks out meanwhile notices nothing.
    let mut slowest = Duration::ZERO;
    for n in 0..100 {
        let start = Instant::now();
        let answer = client.exchange(&asked_by(50_000 + n, "/checkout/pay")).await;
        assert_eq!(answer.status, 200, "checkout {n}: {}", answer.text());
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    over.store(true, SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }

    for tally in [&crowd, &reports] {
        let other = tally.other.lock().expect("nobody panics with it");
        assert!(other.is_empty(), "{other:?}");
    }
    let share = |tally: &Tally| {
        let (served, refused) = (tally.served.load(SeqCst) as f64, tally.refused.load(SeqCst) as f64);
        served / (served + refused)
    };
    assert!(share(&reports) < share(&crowd), "reports {}, others {}", share(&reports), share(&crowd));
    let most = service.load.most.load(SeqCst);
    assert!(most < CROWD / 2, "{most} of {CROWD} were inside at once");
    // Nothing sustains itself: as soon as they have left, anybody is served.
    eventually("it is quiet again", async || {
        client.exchange(&asked_by(60_000, "/reports/1")).await.status == 200
    })
    .await;
    proxy.rests().await;
}

#[tokio::test]
async fn the_ingress_example_limits_one_greedy_client_and_nobody_else() {
    let service = Service::start().await;
    let proxy = in_front_of(&service).await;

    // More than its burst at once; what the service makes of them is another matter.
    let mut limited = None;
    eventually("one client asks too much", async || {
        let mut clients = Vec::new();
        for _ in 0..150 {
            let mut client = proxy.connect().await;
            client.send(asked_by(1, "/items")).await;
            clients.push(client);
        }
        for mut client in clients {
            let answer = client.response().await;
            if answer.status == 429 {
                limited = Some(answer);
            }
        }
        limited.is_some()
    })
    .await;

    let answer = limited.expect("it was just seen");
    answer.must_be(429, "rate_limited");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
    assert!(answer.field("ratelimit").is_some_and(|value| value.contains("\"client\"")), "{answer:?}");
    let mut client = proxy.connect().await;
    eventually("another client is served", async || {
        client.exchange(&asked_by(2, "/items")).await.status == 200
    })
    .await;
}
