//! From an endpoint to a stream of bytes: TCP or a Unix socket, by whichever of its addresses answers first.
//!
//! A name may have addresses of both families, and one of them may lead nowhere (RFC 8305, "happy eyeballs"): the
//! family that worked last is tried first, IPv6 where none did; after [`STAGGER`], or at once where it fails, the
//! next address is tried beside it, the first that is there wins, and the others are dropped. An endpoint with one
//! address pays nothing for it.
//!
//! Not here: how long it may take in all (the caller's), what is spoken over it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

use super::endpoint::{Endpoint, Socket};
use crate::transport::{Patience, Transport};

/// How long the next address waits for the one before (RFC 8305 §5); half of what connecting may take where that
/// is less, so that the next one has its chance.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to `endpoint`; `within` is what its caller gives it.
pub(super) async fn open(endpoint: &Endpoint, within: Duration) -> io::Result<Transport> {
    let mut addresses = endpoint.others().to_vec();
    let address = match &endpoint.socket {
        Socket::Tcp(address) if addresses.is_empty() => return dial(*address).await.map(Transport::from),
        Socket::Tcp(address) => *address,
        Socket::Unix(path) => return UnixStream::connect(path).await.map(Transport::from),
    };
    addresses.insert(0, address);
    in_turns(&mut addresses, endpoint.is_reached_by_ipv6());
    let (winner, stream) = race(&addresses, dial, STAGGER.min(within / 2)).await?;
    endpoint.reached_by(winner);
    Ok(stream.into())
}

/// Sorts by family, one after the other, beginning with IPv6 or not; within a family the order stays.
fn in_turns(addresses: &mut [SocketAddr], ipv6_first: bool) {
    let (mut first, mut second) = (0, 0);
    addresses.sort_by_cached_key(|address| {
        let place = if address.is_ipv6() == ipv6_first { &mut first } else { &mut second };
        *place += 1;
        (*place, address.is_ipv6() != ipv6_first)
    });
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    if stream.peer_addr().ok() == stream.local_addr().ok() {
        // TCP's simultaneous open: a connect to a free port of this host may meet itself.
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Patience::UPSTREAM.set(&(&stream).into())?;
    Ok(stream)
}

/// The first of `addresses` whose `dial` succeeds: each is tried `stagger` after the one before, or at once where
/// all before it have failed.
///
/// # Errors
/// The last one's, where all have failed.
async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    dial: impl Fn(SocketAddr) -> F,
    stagger: Duration,
) -> io::Result<(SocketAddr, T)> {
    let mut waiting = addresses.iter();
    let mut dialled = Vec::with_capacity(addresses.len());
    let mut turn = pin!(sleep(stagger));
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    poll_fn(|cx| {
        loop {
            let mut place = 0;
            while let Some((address, dialling)) = dialled.get_mut(place) {
                let dialling: &mut std::pin::Pin<Box<F>> = dialling;
                match dialling.as_mut().poll(cx) {
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok((*address, stream))),
                    Poll::Ready(Err(error)) => {
                        failure = error;
                        drop(dialled.remove(place));
                    }
                    Poll::Pending => place += 1,
                }
            }
            let is_turn = dialled.is_empty() || turn.as_mut().poll(cx).is_ready();
            match if is_turn { waiting.next() } else { None } {
                Some(address) => {
                    turn.as_mut().reset(tokio::time::Instant::now() + stagger);
                    dialled.push((*address, Box::pin(dial(*address))));
                }
                None if dialled.is_empty() => {
                    let none = io::ErrorKind::AddrNotAvailable.into();
                    return Poll::Ready(Err(std::mem::replace(&mut failure, none)));
                }
                None => return Poll::Pending,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const V4: &str = "192.0.2.1:80";
    const V6: &str = "[2001:db8::1]:80";

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns() {
        let (a4, b4, a6, b6) = (V4, "192.0.2.2:80", V6, "[2001:db8::2]:80");
        let cases = [
            // why                           given               ipv6_first  sorted
            ("IPv6 comes first", vec![a4, a6], true, vec![a6, a4]),
            ("unless IPv4 worked last", vec![a6, a4], false, vec![a4, a6]),
            ("one after the other", vec![a4, b4, a6, b6], true, vec![a6, a4, b6, b4]),
            ("what is left comes last", vec![a6, b6, a4], false, vec![a4, a6, b6]),
        ];
        for (why, given, ipv6_first, sorted) in cases {
            let mut given = addresses(&given);
            in_turns(&mut given, ipv6_first);
            assert_eq!(given, addresses(&sorted), "{why}");
        }
    }

    /// What dialling an address comes to, and when.
    type Script = fn(SocketAddr) -> (u64, io::Result<()>);

    #[tokio::test(start_paused = true)]
    async fn the_first_that_is_there_wins() {
        fn refused() -> io::Result<()> {
            Err(io::ErrorKind::ConnectionRefused.into())
        }
        const NEVER: u64 = 1_000_000;
        let cases: [(&str, Script, Result<&str, ()>, u64); 6] = [
            // why                                                  what happens                 winner   after ms
            ("the first answers", |_| (1, Ok(())), Ok(V6), 1),
            ("a slow first one still wins", |a| (if a.is_ipv6() { 240 } else { 0 }, Ok(())), Ok(V6), 240),
            ("one that leads nowhere", |a| (if a.is_ipv6() { NEVER } else { 1 }, Ok(())), Ok(V4), 251),
            ("one that refuses", |a| (0, if a.is_ipv6() { refused() } else { Ok(()) }), Ok(V4), 0),
            (
                "the faster of two that are slow",
                |a| (if a.is_ipv6() { 300 } else { 100 }, Ok(())),
                Ok(V6),
                300,
            ),
            ("all refuse", |_| (0, refused()), Err(()), 0),
        ];
        for (why, script, winner, after) in cases {
            let start = Instant::now();
            let dial = |address| async move {
                let (after, result) = script(address);
                sleep(Duration::from_millis(after)).await;
                result
            };
            let result = race(&addresses(&[V6, V4]), dial, STAGGER).await;
            let won = result.map(|(address, ())| address.to_string()).map_err(drop);
            assert_eq!(won, winner.map(str::to_owned), "{why}");
            let took = start.elapsed().as_millis() as u64;
            assert!((after..=after + 2).contains(&took), "{why}: {took} ms");
        }
    }

    /// An endpoint with these addresses, the first one its own.
    fn endpoint(addresses: [SocketAddr; 2]) -> Endpoint {
        let metrics = crate::telemetry::metrics::Metrics::new(1, "", "", Default::default());
        let address = crate::upstream::endpoint::Address::Tcp { host: "app.test".to_owned(), port: 1 };
        let endpoint =
            Endpoint::new(address, Socket::Tcp(addresses[0]), metrics.endpoint("app", "app.test:1"));
        endpoint.set_others(vec![addresses[1]]);
        endpoint
    }

    /// An address of IPv6 whose backlog is full, so that a connect to it never ends; for as long as these live.
    fn blackhole() -> (SocketAddr, Vec<socket2::Socket>) {
        let socket =
            || socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
        let listener = socket();
        let any = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
        listener.bind(&any.into()).expect("this machine has IPv6 on loopback");
        listener.listen(0).expect("it listens");
        let address = listener.local_addr().expect("it is bound").as_socket().expect("an address");
        let mut kept = vec![listener];
        for _ in 0..4 {
            let client = socket();
            client.set_nonblocking(true).expect("an option");
            // In progress is what it says; it stays so.
            let _ = client.connect(&address.into());
            kept.push(client);
        }
        (address, kept)
    }

    #[tokio::test]
    async fn the_family_that_worked_is_remembered() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let works = listener.local_addr().expect("it is bound");
        let (leads_nowhere, _kept) = blackhole();
        let endpoint = endpoint([leads_nowhere, works]);
        let connect = async || {
            let start = std::time::Instant::now();
            let stream = open(&endpoint, Duration::from_millis(400)).await.expect("one of them works");
            assert_eq!(stream.socket().peer_addr().expect("it is connected").as_socket(), Some(works));
            start.elapsed()
        };
        let first = connect().await;
        assert!(
            first >= Duration::from_millis(200),
            "IPv6 had its chance, half of what there was: {first:?}"
        );
        let second = connect().await;
        assert!(second < Duration::from_millis(200), "now IPv4 comes first: {second:?}");
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let works = listener.local_addr().expect("it is bound");
        let refuses = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, works.port()));
        let start = std::time::Instant::now();
        let stream =
            open(&endpoint([works, refuses]), Duration::from_secs(60)).await.expect("one of them works");
        assert!(start.elapsed() < STAGGER, "{:?}", start.elapsed());
        let socket = stream.socket();
        assert!(socket.keepalive().expect("an option"), "the kernel asks whether it still stands");
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(120)));
    }
}
