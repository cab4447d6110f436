//! What a line says, and that nothing in a request can make it say something else.

use super::*;
use crate::units::Ratio;
use proptest::prelude::*;
use std::time::UNIX_EPOCH;

fn line() -> Line<'static> {
    Line {
        at: UNIX_EPOCH + Duration::from_millis(1_709_164_801_007),
        request_id: b"id-1",
        client: "10.0.0.7:4711".parse().expect("an address"),
        listener: "egress",
        route: "payments",
        upstream: "payments",
        endpoint: "127.0.0.1:9101",
        method: b"GET",
        target: b"/payments/42?x=1",
        status: 503,
        outcome: RequestOutcome::Rejected,
        reason: Some(Reason::BreakerOpen),
        fallback: None,
        rate_limit: "",
        attempts: 2,
        hedge: None,
        head: Duration::from_micros(12_034),
        total: Duration::from_millis(1200),
        queue: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 231,
    }
}

fn json(line: &Line<'_>) -> String {
    let mut out = Vec::new();
    line.write_json(&mut out, &mut Stamps::default());
    String::from_utf8(out).expect("text")
}

fn text(line: &Line<'_>) -> String {
    let mut out = Vec::new();
    line.write_text(&mut out, &mut Stamps::default());
    String::from_utf8(out).expect("text")
}

#[test]
fn what_the_client_got_instead_stands_behind_the_reason() {
    let line = Line { fallback: Some(Substitute::Stale), outcome: RequestOutcome::Ok, status: 200, ..line() };
    assert!(
        json(&line).contains(r#""outcome":"ok","reason":"breaker_open","fallback":"stale","attempts":2,"#)
    );
    assert!(text(&line).contains(" 200 ok reason=breaker_open fallback=stale upstream="));
    assert!(Line { reason: None, attempts: 1, ..line }.is_failure(), "a failure it was");
}

#[test]
fn a_line_for_machines() {
    let expected = concat!(
        r#"{"ts":"2024-02-29T00:00:01.007Z","request_id":"id-1","client":"10.0.0.7:4711","listener":"egress","#,
        r#""route":"payments","upstream":"payments","endpoint":"127.0.0.1:9101","method":"GET","#,
        r#""path":"/payments/42?x=1","status":503,"outcome":"rejected","reason":"breaker_open","attempts":2,"#,
        r#""head_ms":12.034,"total_ms":1200.000,"queue_ms":0.000,"bytes_in":0,"bytes_out":231}"#,
        "\n"
    );
    assert_eq!(json(&line()), expected);
    let unrouted =
        Line { reason: None, route: "", client: "[::1]:80".parse().expect("an address"), ..line() };
    let value: serde_json::Value = serde_json::from_str(&json(&unrouted)).expect("JSON");
    assert_eq!(value["reason"], serde_json::Value::Null);
    assert_eq!(value["client"], "[::1]:80");
}

#[test]
fn a_line_names_the_rate_limit_that_refused() {
    let line = Line { reason: Some(Reason::RateLimited), rate_limit: "tenant", ..line() };
    assert!(json(&line).contains(r#""reason":"rate_limited","rate_limit":"tenant","attempts":"#));
    assert!(text(&line).contains(" reason=rate_limited rate_limit=tenant upstream="));
}

#[test]
fn a_line_for_people() {
    let expected = "2024-02-29T00:00:01.007Z GET /payments/42?x=1 503 rejected reason=breaker_open \
        upstream=payments endpoint=127.0.0.1:9101 route=payments listener=egress attempts=2 head=12.034ms \
        total=1200.000ms queue=0.000ms in=0B out=231B client=10.0.0.7:4711 id=id-1\n";
    assert_eq!(text(&line()), expected);
}

#[test]
fn what_a_client_chose_is_escaped_and_bounded() {
    let long = "é".repeat(300);
    let cases: [(&str, &[u8], &str); 8] = [
        ("plain", b"/a?b=c&d=%20", "/a?b=c&d=%20"),
        ("quotes end no string", b"/\",\"status\":\"200", r#"/\",\"status\":\"200"#),
        ("a backslash escapes nothing", b"/\\", r"/\\"),
        ("no line ends early", b"/a\r\nb\t\0", r"/a\u000d\u000ab\u0009\u0000"),
        ("terminals obey nothing", b"/\x1b[2J\x7f\xc2\x9b", r"/\u001b[2J\u007f\u009b"),
        ("UTF-8 stays", "/é€😀".as_bytes(), "/é€😀"),
        ("what is none does not", b"/\xff\xc3(\xe2\x82", "/\u{fffd}\u{fffd}(\u{fffd}"),
        ("long ones are cut", long.as_bytes(), &format!("{}...", "é".repeat(256))),
    ];
    for (why, target, expected) in cases {
        let mut out = Vec::new();
        escape(&mut out, target, PATH_BYTES);
        assert_eq!(String::from_utf8(out).as_deref(), Ok(expected), "{why}");
    }
    let mut out = Vec::new();
    escape(&mut out, "/aé".as_bytes(), 3);
    assert_eq!(String::from_utf8(out).as_deref(), Ok("/a..."), "a cut character is left out");
}

proptest! {
    /// Whatever bytes come in, a line is one line, valid JSON of the same shape, and bounded.
    #[test]
    fn a_line_stays_a_line(
        target in prop::collection::vec(any::<u8>(), 0..2000),
        method in prop::collection::vec(any::<u8>(), 0..300),
        id in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let line = Line { target: &target, method: &method, request_id: &id, ..line() };
        let json = json(&line);
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(value.as_object().map(serde_json::Map::len), Some(18));
        prop_assert_eq!(&value["outcome"], "rejected");
        for line in [json, text(&line)] {
            prop_assert!(line.ends_with('\n'));
            prop_assert!(!line[..line.len() - 1].contains(char::is_control));
            prop_assert!(line.len() < 8192);
        }
    }
}

#[test]
fn failures_are_what_did_not_just_work() {
    use RequestOutcome::*;
    let cases = [
        ("all is well", Ok, None, 1, false),
        ("the client's own fault", ClientError, None, 1, false),
        ("refused for what it is", ClientError, Some(Reason::BadRequest), 0, true),
        ("saved by a retry", Ok, None, 2, true),
        ("cut after its head", Ok, Some(Reason::UpstreamStalled), 1, true),
        ("the upstream's fault", ServerError, None, 1, true),
        ("rejected", Rejected, Some(Reason::QueueFull), 0, true),
        ("the client left", Cancelled, Some(Reason::ClientDisconnected), 1, true),
    ];
    for (why, outcome, reason, attempts, expected) in cases {
        assert_eq!(is_failure(outcome, reason, attempts), expected, "{why}");
    }
}

#[test]
fn a_reload_changes_who_gets_a_line_and_where() {
    let directory = std::env::temp_dir().join(format!("outrigger-access-log-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for temporary files");
    let path = |name: &str| directory.join(name).to_str().expect("text").to_owned();
    let settings =
        |name: &str, only, sample| AccessLogSettings { path: path(name), only, sample: Ratio::new(sample) };
    let log =
        AccessLog::start(&settings("a", Only::Failures, 0.0), Format::Auto, Arc::default()).expect("a file");
    let worker = log.worker_log();
    assert!(worker.wants(true, 0.9) && !worker.wants(false, 0.0));

    log.reload(&settings("b", Only::Failures, 0.5), Format::Text).expect("a file");
    assert!(worker.wants(true, 0.9) && worker.wants(false, 0.4) && !worker.wants(false, 0.5));
    worker.write(&line());
    drop(worker);
    let worker = log.worker_log();

    assert!(log.reload(&settings("missing/c", Only::All, 0.0), Format::Json).is_err());
    assert!(!worker.wants(false, 0.9), "nothing has changed");
    log.reload(&settings("b", Only::All, 0.0), Format::Text).expect("a file");
    assert!(worker.wants(false, 0.9));
    log.reload(&settings("b", Only::Off, 1.0), Format::Text).expect("a file");
    assert!(!worker.wants(true, 0.0));

    drop((worker, log));
    assert_eq!(std::fs::read_to_string(path("b")).expect("written"), text(&line()));
    std::fs::remove_dir_all(directory).expect("removed");
}

#[test]
fn a_worker_hands_over_in_batches() {
    let path = std::env::temp_dir().join(format!("outrigger-batches-{}", std::process::id()));
    let settings = AccessLogSettings {
        path: path.to_str().expect("text").to_owned(),
        only: Only::All,
        sample: Ratio::new(0.0),
    };
    let log = AccessLog::start(&settings, Format::Json, Arc::default()).expect("a file");
    let worker = log.worker_log();
    for _ in 0..500 {
        worker.write(&line());
        assert!(
            worker.batch.borrow().lines.len() < BATCH_BYTES + 1024,
            "a buffer that is full is handed over"
        );
    }
    worker.flush();
    assert_eq!(worker.batch.borrow().count, 0);
    drop(log);
    let written = std::fs::read_to_string(&path).expect("written");
    assert_eq!(written.lines().count(), 500);
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn whose_answer_a_hedged_request_got_is_told_and_of_others_nothing() {
    let hedged = Line { hedge: Some(Winner::Hedge), ..line() };
    assert!(json(&hedged).contains(r#""attempts":2,"hedge":"hedge","head_ms""#), "{}", json(&hedged));
    assert!(text(&hedged).contains(" attempts=2 hedge=hedge head="), "{}", text(&hedged));
    assert!(!json(&line()).contains("hedge"));
}
