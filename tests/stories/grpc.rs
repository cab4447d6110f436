//! gRPC end to end, by its own implementation on both sides (grpcio): the four kinds of calls, statuses, deadlines and
//! cancellation both ways, retries; and what becomes of calls whose upstream breaks off.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use hyper::body::Frame;

use crate::support::http2::{Http2, fed, read};
use crate::support::http2_upstream::*;
use crate::support::python::{self, Script};
use crate::support::*;

/// A server, and its address.
async fn server(name: &str) -> (Script, String) {
    let code = include_str!("support/grpc_server.py");
    let server = Script::start_with("grpc_health", code, &[name]).await;
    let address = format!("127.0.0.1:{}", server.said);
    (server, address)
}

/// Runs a client's code against the proxy.
async fn client(proxy: &Proxy, code: &str) {
    let code = format!("{}{code}", include_str!("support/grpc_client.py"));
    python::run_with("grpc", &code, &[&proxy.listener().to_string()]).await;
}

fn over(upstreams: &[&Http2Upstream]) -> Config {
    Config::over_addresses(&upstreams.iter().map(|one| one.address().to_string()).collect::<Vec<_>>())
}

#[tokio::test]
async fn all_four_kinds_of_calls_pass() {
    let (_server, address) = server("one").await;
    let proxy = Config::over_addresses(&[address]).start().await;
    client(
        &proxy,
        r#"
answer, call = unary("Get").with_call(b"hello", metadata=(("x-mine", "1"), ("x-mine-bin", b"\x00\x01")))
assert answer == b"hello", answer
assert ("x-from", "one") in call.initial_metadata(), call.initial_metadata()
tail = dict(call.trailing_metadata())
assert tail["x-tail"] == "t" and tail["x-bytes-bin"] == b"\x00\xff", tail
meta = unary("Meta")(b"", metadata=(("x-mine", "1"), ("x-mine-bin", b"\x00\x01"))).decode()
assert "x-mine=1" in meta and "x-request-id=" in meta, meta

assert channel.stream_unary("/pkg.Echo/Total")(iter([b"a" * 10] * 100)) == b"1000"
assert list(channel.unary_stream("/pkg.Echo/List")(b"500")) == [str(n).encode() for n in range(500)]

def one_by_one():
    for number in range(20):
        yield str(number).encode()
        said[number].wait(5)
said = [threading.Event() for _ in range(20)]
for number, answer in enumerate(channel.stream_stream("/pkg.Echo/Talk")(one_by_one())):
    assert answer == str(number).encode()
    said[number].set()
assert number == 19

big = bytes(4 << 20)
assert unary("Get")(big) == big

from grpc_health.v1 import health_pb2, health_pb2_grpc
health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
assert health.status == health_pb2.HealthCheckResponse.SERVING
"#,
    )
    .await;
    proxy.rests().await;
    proxy.metric_becomes("outrigger_requests_total{outcome=ok}", 7.0).await;
}

#[tokio::test]
async fn statuses_pass_unchanged_and_say_whose_fault_it_is() {
    let (_server, address) = server("one").await;
    let proxy = Config::over_addresses(&[address]).plain().start().await;
    client(
        &proxy,
        r#"
for method in ["Fail", "FailLate"]:
    for code in range(1, 17):
        error = failure(method, str(code).encode())
        assert error.code().value[0] == code, (method, code, error)
        assert error.details() == "that failed: 50 %", error
        assert ("x-why", "because") in error.trailing_metadata(), error
error = failure("Nothing")
assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
answers = []
try:
    for answer in channel.unary_stream("/pkg.Echo/Breaks")(b""):
        answers.append(answer)
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DATA_LOSS and error.details() == "lost", error
assert answers == [b"one"], answers
"#,
    )
    .await;
    // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL and UNAVAILABLE are the upstream's, the rest its callers'.
    for outcome in ["requests_total{outcome=server_error", "attempts_total{outcome=5xx"] {
        proxy.metric_becomes(&format!("outrigger_{outcome}}}"), 8.0).await;
    }
    for outcome in ["requests_total{outcome=client_error", "attempts_total{outcome=4xx"] {
        proxy.metric_becomes(&format!("outrigger_{outcome}}}"), 26.0).await;
    }
}

#[tokio::test]
async fn deadlines_and_cancels_go_both_ways() {
    let (_server, address) = server("one").await;
    let proxy = Config::over_addresses(&[address]).plain().start().await;
    client(
        &proxy,
        r#"
asked = unary("Asked")
left = float(unary("Left")(b"", timeout=5))
assert 4 < left <= 5, left
assert float(unary("Left")(b"")) > 3600, "none is made up"

start = time.time()
error = failure("Wait", timeout=0.3)
assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
assert time.time() - start < 3
soon(lambda: asked(b"Cancelled") == b"1")

call = unary("Wait").future(b"")
soon(lambda: asked(b"Wait") == b"2")
call.cancel()
soon(lambda: asked(b"Cancelled") == b"2")

call = channel.unary_stream("/pkg.Echo/Drip")(b"")
assert next(call) == b"drop"
call.cancel()
soon(lambda: asked(b"Cancelled") == b"3")

start = time.time()
try:
    for answer in channel.unary_stream("/pkg.Echo/Drip")(b"", timeout=0.3):
        assert answer == b"drop"
    raise AssertionError("it ended well")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
soon(lambda: asked(b"Cancelled") == b"4")
"#,
    )
    .await;
    proxy.rests().await;
}

#[tokio::test]
async fn own_timeouts_do_not_shorten_what_a_caller_gave_its_call() {
    let (_server, address) = server("one").await;
    let own = "timeout = { request = \"4s\", attempt = \"2s\" }";
    let proxy = Config::over_addresses(&[address]).plain().upstream(own).start().await;
    client(
        &proxy,
        r#"
left = float(unary("Left")(b"", timeout=3600))
assert 3000 < left <= 3600, left
assert float(unary("Left")(b"")) > 3600, "none is made up"

start = time.time()
drops = 0
for answer in channel.unary_stream("/pkg.Echo/Drip")(b"", timeout=3600):
    drops += 1
    if time.time() - start > 2.5:
        break
assert drops > 0
"#,
    )
    .await;
}

#[tokio::test]
async fn streams_that_live_to_their_deadline_open_no_breaker() {
    let head = Http2Upstream::that().answers(200).with_field("content-type", "application/grpc");
    let app = head.with_body("\0\0\0\0\x01a").holds_its_end().start().await;
    let proxy = over(&[&app]).upstream("retry.attempts = 1").start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    for _ in 0..25 {
        let head = client.request("POST", "/pkg.Echo/Watch").header("content-type", "application/grpc");
        let whole = client.exchange(head.header("grpc-timeout", "150m"), "\0\0\0\0\0").await;
        assert_eq!((status(&whole).0.as_deref(), whole.body.len()), (Some("4"), 6), "none is refused");
    }
}

#[tokio::test]
async fn calls_that_are_named_are_retried() {
    let (_server, address) = server("one").await;
    let config = Config::over_addresses(&[address]);
    let proxy =
        config.upstream("retry.grpc_methods = [\"pkg.Echo/Flaky\", \"pkg.Echo/Pushed*\"]").start().await;
    client(
        &proxy,
        r#"
asked = unary("Asked")
assert unary("Flaky")(b"a") == b"a"
assert asked(b"Flaky a") == b"2"
assert failure("SetFlaky", b"b").code() == grpc.StatusCode.UNAVAILABLE
assert asked(b"Flaky b") == b"1"
error = failure("PushedBack", b"-1")
assert error.code() == grpc.StatusCode.UNAVAILABLE and error.details() == "not now", error
assert asked(b"PushedBack") == b"1"
failure("PushedBack", b"10")
assert asked(b"PushedBack") == b"5", asked(b"PushedBack")
"#,
    )
    .await;
    assert!(proxy.metric("outrigger_retries_total{reason=UNAVAILABLE}").await >= 2.0);
    assert_eq!(proxy.metric("outrigger_retries_skipped_total{reason=pushback}").await, 1.0);
}

#[tokio::test]
async fn calls_of_one_client_are_spread_over_all_servers() {
    let (_one, first) = server("one").await;
    let (_two, second) = server("two").await;
    let (_three, third) = server("three").await;
    let config = Config::over_addresses(&[first, second, third]);
    let proxy = config.upstream("balance.kind = \"round_robin\"").start().await;
    client(
        &proxy,
        r#"
came = {}
for _ in range(60):
    _, call = unary("Get").with_call(b"")
    name = dict(call.initial_metadata())["x-from"]
    came[name] = came.get(name, 0) + 1
assert came == {"one": 20, "two": 20, "three": 20}, came
"#,
    )
    .await;
}

/// A call by a client whose frames can be seen.
async fn call(proxy: &Proxy) -> http2::Whole {
    let mut client = Http2::connect(proxy.listener()).await;
    let head = client.request("POST", "/pkg.Echo/Get").header("content-type", "application/grpc");
    client.exchange(head.header("te", "trailers"), "\0\0\0\0\0").await
}

/// The status of a call, and whether it came with the head.
fn status(whole: &http2::Whole) -> (Option<String>, bool) {
    let said = |map: &http::HeaderMap| map.get("grpc-status")?.to_str().ok().map(str::to_owned);
    let in_trailers = whole.trailers.as_ref().and_then(said);
    (in_trailers.clone().or_else(|| said(&whole.head.headers)), in_trailers.is_none())
}

#[tokio::test]
async fn a_call_whose_upstream_breaks_off_ends_with_a_status() {
    let head = || Http2Upstream::that().answers(200).with_field("content-type", "application/grpc");
    let cases = [
        ("no status at the end", head().with_body("\0\0\0\0\x01a"), "14", "protocol_error"),
        (
            "reset behind a message",
            head().with_body("\0\0\0\0\x01a").resets_behind_the_body(Reason::INTERNAL_ERROR),
            "14",
            "upstream_reset",
        ),
        (
            "silence behind a message",
            head().with_body("\0\0\0\0\x01a").holds_its_end(),
            "4",
            "upstream_stalled",
        ),
    ];
    for (why, script, code, reason) in cases {
        let app = script.start().await;
        let proxy = over(&[&app]).plain().upstream("timeout.stream_idle = \"300ms\"").start().await;
        let whole = call(&proxy).await;
        assert_eq!((whole.head.status, whole.body.len()), (http::StatusCode::OK, 6), "{why}");
        assert_eq!(status(&whole), (Some(code.to_owned()), false), "{why}");
        let outcome = format!("outrigger_attempts_total{{outcome={reason}}}");
        assert_eq!(proxy.metric(&outcome).await, 1.0, "{why}");
        proxy.metric_becomes("outrigger_requests_total{outcome=failed}", 1.0).await;
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_status_in_the_head_stays_there_and_one_behind_it_may_be_retried() {
    let app = Http2Upstream::that().refuses_grpc(5).start().await;
    let proxy = over(&[&app]).plain().start().await;
    assert_eq!(status(&call(&proxy).await), (Some("5".to_owned()), true));

    let config = |app: &Http2Upstream| over(&[app]).upstream("retry.grpc_methods = [\"pkg.Echo/*\"]");
    let empty = Http2Upstream::that()
        .answers(200)
        .with_field("content-type", "application/grpc")
        .with_trailer("grpc-status", "14")
        .answers_grpc(1, 0)
        .start()
        .await;
    let proxy = config(&empty).start().await;
    assert_eq!(status(&call(&proxy).await), (Some("0".to_owned()), false));
    assert_eq!(empty.seen(), 2, "no message has been seen");

    let begun = Http2Upstream::that().answers_grpc(1, 14).start().await;
    let proxy = config(&begun).start().await;
    assert_eq!(status(&call(&proxy).await), (Some("14".to_owned()), false));
    assert_eq!(begun.seen(), 1, "a message went to the client");
}

#[tokio::test]
async fn a_call_is_a_stream_once_it_shows_it() {
    let app = Http2Upstream::that()
        .answers(200)
        .with_field("content-type", "application/grpc")
        .echoes()
        .with_trailer("grpc-status", "0")
        .start()
        .await;
    let proxy = over(&[&app]).plain().start().await;
    let mut client = Http2::connect(proxy.listener()).await;
    let (feed, body) = fed();
    let head = client.request("POST", "/pkg.Echo/Talk").header("content-type", "application/grpc");
    let response = client.send(head.body(body).expect("a request")).await.expect("a head at once");
    proxy.metric_becomes("outrigger_streams", 1.0).await;
    // It gives its slot back.
    proxy.metric_becomes("outrigger_concurrency_in_flight", 0.0).await;
    feed.send(Frame::data(Bytes::from_static(b"\0\0\0\0\x01a"))).await.expect("it is taken");
    drop(feed);
    let whole = read(response).await.expect("it ends well");
    assert_eq!(whole.body.as_ref(), b"\0\0\0\0\x01a");
    proxy.rests().await;

    // Two messages are no unary answer.
    let app = Http2Upstream::that()
        .answers(200)
        .with_field("content-type", "application/grpc")
        .with_body("\0\0\0\0\x01a\0\0\0\0\x01b")
        .holds_its_end()
        .with_trailer("grpc-status", "0")
        .start()
        .await;
    let proxy = over(&[&app]).plain().start().await;
    let asking = tokio::spawn(async move { (call(&proxy).await, proxy) });
    app.has_seen(1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    app.release(1);
    let (whole, proxy) = asking.await.expect("no panic");
    assert_eq!(status(&whole), (Some("0".to_owned()), false));
    proxy.rests().await;
}

#[tokio::test]
async fn a_quiet_call_that_nothing_bounds_is_a_stream_after_a_while() {
    let app = Http2Upstream::that().answers_grpc(1, 0).holds().answers_grpc(2, 0).start().await;
    let one = "concurrency = { limit = { kind = \"fixed\", max = 1 }, queue = { size = 0 }, stream_after = \"200ms\" }";
    let proxy = over(&[&app]).plain().upstream(one).start().await;
    let mut watch = Http2::connect(proxy.listener()).await;
    let head = watch.request("POST", "/pkg.Echo/Watch").header("content-type", "application/grpc");
    let watches = tokio::spawn(async move { watch.exchange(head, "\0\0\0\0\0").await });
    app.has_seen(1).await;

    proxy.metric_becomes("outrigger_streams", 1.0).await;
    assert_eq!(proxy.metric("outrigger_concurrency_in_flight").await, 0.0);
    assert_eq!(call(&proxy).await.body.len(), 7, "its slot is another's now");

    app.release(1);
    let whole = watches.await.expect("no panic");
    assert_eq!((status(&whole), whole.body.len()), ((Some("0".to_owned()), false), 6));
    proxy.rests().await;
}

#[tokio::test]
async fn a_quiet_call_with_a_deadline_or_without_room_for_a_stream_keeps_its_slot() {
    let cases = [("it is bounded", ("grpc-timeout", "10S"), 1), ("no room", ("te", "trailers"), 2)];
    for (why, field, calls) in cases {
        let app = Http2Upstream::that().answers_grpc(1, 0).holds().start().await;
        let few = "concurrency = { limit = { kind = \"fixed\", max = 2 }, stream_after = \"100ms\" }";
        let one = "connections.max_streams = 1";
        let proxy = over(&[&app]).plain().upstream(few).upstream(one).start().await;
        let asking: Vec<_> = (0..calls)
            .map(|_| {
                let address = proxy.listener();
                tokio::spawn(async move {
                    let mut client = Http2::connect(address).await;
                    let head =
                        client.request("POST", "/pkg.Echo/Get").header("content-type", "application/grpc");
                    client.exchange(head.header(field.0, field.1), "\0\0\0\0\0").await
                })
            })
            .collect();
        app.has_seen(calls).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let metrics = proxy.metrics().await;
        let both = [metrics.sum("outrigger_concurrency_in_flight"), metrics.sum("outrigger_streams")];
        assert_eq!(both, [1.0, calls as f64 - 1.0], "{why}");
        app.release(calls);
        for call in asking {
            assert_eq!(status(&call.await.expect("no panic")).0.as_deref(), Some("0"), "{why}");
        }
        proxy.rests().await;
    }
}

#[tokio::test]
async fn a_quiet_call_is_bounded_by_stream_idle_alone() {
    let app = Http2Upstream::that().answers_grpc(1, 0).holds().start().await;
    let quiet = "timeout.idle = \"100ms\"\ntimeout.stream_idle = \"600ms\"";
    let proxy = over(&[&app]).plain().upstream(quiet).start().await;
    let start = std::time::Instant::now();
    let whole = call(&proxy).await;
    assert_eq!(status(&whole), (Some("4".to_owned()), true));
    assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
}
