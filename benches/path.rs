//! What a request's whole way costs, in instructions (they repeat; time on a shared machine does not): a small GET
//! over keep-alive connections, every default policy and metric on, through real sockets.
//!
//! `cargo bench --bench path`; needs valgrind and `gungraun-runner` of the same version as the crate. The client and
//! the upstream run in the same thread and are counted too: `straight` is what they cost without Outrigger, so a
//! request costs (`through` - `straight`) / 1000.

#![allow(missing_docs)] // of what the macros make

use std::net::SocketAddr;
use std::sync::Arc;

use gungraun::{library_benchmark, library_benchmark_group, main};
use outrigger::config;
use outrigger::proxy::shared::Shared;
use outrigger::proxy::snapshot::Snapshot;
use outrigger::proxy::worker::Worker;
use outrigger::proxy::{connection, words};
use outrigger::telemetry::access_log::AccessLog;
use outrigger::telemetry::metrics::Metrics;
use outrigger::telemetry::{AccessLogSettings, Format};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

const REQUESTS: usize = 1000;
const REQUEST: &[u8] =
    b"GET /orders/42 HTTP/1.1\r\nHost: orders.internal\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Wed, 01 Jan 2025 00:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 16\r\n\r\n0123456789abcdef";

/// Whom the client asks.
#[derive(Clone, Copy)]
enum Way {
    Straight,
    Through,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Answers whatever comes on each connection.
async fn serve_upstream(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::task::spawn_local(async move {
            let mut request = [0; 1024];
            while stream.read(&mut request).await.is_ok_and(|size| size > 0) {
                if stream.write_all(ANSWER).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// A worker with a listener `main`, in front of `upstream`.
fn worker(upstream: SocketAddr) -> std::rc::Rc<Worker> {
    let text = format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:1\"\nupstream = \"app\"\n[upstream.app]\n\
         endpoints = [\"{upstream}\"]\n"
    );
    let loaded = config::parse(&text, "bench", &|_| None).expect("a configuration");
    let metrics = Metrics::new(1, "0", "0", words::words());
    let log =
        AccessLog::start(&AccessLogSettings::default(), Format::Json, Arc::clone(metrics.log_dropped()));
    let shared = Shared::new(metrics, log.expect("stdout is open"), 1, 32 << 20);
    let config = &loaded.config;
    let snapshot = Snapshot::build(&config.listener, &config.upstream, None, &shared.metrics);
    shared.snapshot.store(Arc::new(snapshot));
    Worker::new(0, shared)
}

async fn ask(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let mut answer = [0; 1024];
    for _ in 0..REQUESTS {
        stream.write_all(REQUEST).await.expect("it reads");
        let mut size = 0;
        while !answer[..size].ends_with(b"0123456789abcdef") {
            size += stream.read(&mut answer[size..]).await.expect("it answers");
        }
    }
}

#[library_benchmark]
#[bench::straight(Way::Straight)]
#[bench::through(Way::Through)]
fn small_get(way: Way) {
    runtime().block_on(LocalSet::new().run_until(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let upstream = listener.local_addr().expect("it is bound");
        tokio::task::spawn_local(serve_upstream(listener));
        match way {
            Way::Straight => ask(upstream).await,
            Way::Through => {
                let worker = worker(upstream);
                tokio::task::spawn_local(std::rc::Rc::clone(&worker).run());
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
                let address = listener.local_addr().expect("it is bound");
                tokio::task::spawn_local(async move {
                    while let Ok((stream, peer)) = listener.accept().await {
                        tokio::task::spawn_local(connection::serve(
                            std::rc::Rc::clone(&worker),
                            stream.into(),
                            peer,
                            "main".into(),
                        ));
                    }
                });
                ask(address).await;
            }
        }
    }));
}

library_benchmark_group!(name = path, benchmarks = [small_get]);

main!(library_benchmark_groups = path);
