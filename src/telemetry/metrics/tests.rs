//! What the page promises: the names, the zeros, the bounds, the lines that parse.

use super::*;
use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

/// Some labels of a series: name and value.
type Labels<'a> = &'a [(&'a str, &'a str)];

fn words() -> Words {
    Words {
        retries: vec!["upstream_reset", "503"],
        retries_skipped: vec!["budget", "yield"],
        hedges_skipped: vec!["saturated", "wins"],
    }
}

fn metrics() -> Arc<Metrics> {
    Metrics::new(2, "0.1.0", "abc", words())
}

/// A line of the page.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Reads a page as strictly as the text format is written; panics at the first line that does not fit.
fn parse(page: &str) -> Vec<Sample> {
    assert!(page.ends_with('\n'));
    let (mut samples, mut family, mut seen) = (Vec::new(), String::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let (kind, rest) = comment.split_once(' ').expect(line);
            let (name, text) = rest.split_once(' ').expect(line);
            match kind {
                "HELP" => {
                    assert!(seen.insert(name.to_owned()), "{name} stands there twice");
                    assert!(!text.is_empty());
                    family = name.to_owned();
                }
                "TYPE" => {
                    assert!(name == family && ["counter", "gauge", "histogram"].contains(&text), "{line}")
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
            None => (series, ""),
        };
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(name == family || base == family, "{line} stands under {family}");
        let value = if value == "+Inf" { f64::INFINITY } else { value.parse().expect(line) };
        samples.push(Sample { name: name.to_owned(), labels: parse_labels(labels), value });
    }
    samples
}

fn parse_labels(mut text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect(text);
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().expect("a value ends") {
                (index, '"') => break index,
                (_, '\\') => match chars.next().expect("an escape ends").1 {
                    'n' => value.push('\n'),
                    char @ ('"' | '\\') => value.push(char),
                    char => panic!("escape {char}"),
                },
                (_, char) => value.push(char),
            }
        };
        labels.push((name.to_owned(), value));
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    labels
}

/// The value of the series of this name that has (at least) these labels; `None` if there is none.
fn value(page: &str, name: &str, labels: Labels<'_>) -> Option<f64> {
    let has = |sample: &Sample, (key, value): &(&str, &str)| {
        sample.labels.iter().any(|(have, is)| have == key && is == value)
    };
    let found = |sample: &&Sample| sample.name == name && labels.iter().all(|label| has(sample, label));
    parse(page).iter().find(found).map(|sample| sample.value)
}

#[test]
fn every_line_of_the_page_parses_whatever_the_names_are() {
    let metrics = metrics();
    let nasty = "a\"b\\c\nd{e=\"f\"} é";
    let upstream = metrics.upstream(nasty);
    let route = metrics.route("egress", nasty, nasty);
    let listener = metrics.listener(nasty);
    let endpoint = metrics.endpoint(nasty, "127.0.0.1:1");
    route.shard(0).requests(200, RequestOutcome::Ok).inc();
    endpoint.shard(1).attempts(AttemptOutcome::Ok).inc();
    endpoint.set_healthy(true);
    endpoint.ejections(Ejection::Slow).inc();
    listener.connections.inc();
    upstream.dns_age.set(1500);
    listener.expect_handshakes();
    metrics.set_certificates([(nasty.to_owned(), 1_800_000_000)].into());
    upstream.shard(1).attempt_duration.observe(Duration::from_millis(3));
    metrics.set_config("abc", SystemTime::now());

    let page = metrics.render();

    assert_eq!(value(&page, "outrigger_requests_total", &[("upstream", nasty), ("code", "200")]), Some(1.0));
    let names: BTreeSet<_> = parse(&page).into_iter().map(|sample| sample.name).collect();
    for family in page::FAMILIES {
        let name = match family.kind {
            crate::telemetry::exposition::Kind::Histogram => format!("{}_count", family.name),
            _ => family.name.to_owned(),
        };
        assert!(names.contains(&name), "{name} is not on the page");
    }
}

#[test]
fn series_exist_from_load_on_but_those_with_a_code_or_an_endpoint() {
    let metrics = metrics();
    let _held = (
        metrics.upstream("app"),
        metrics.route("egress", "default", "app"),
        metrics.listener("egress"),
        metrics.endpoint("app", "127.0.0.1:1"),
    );
    let page = metrics.render();
    let app = ("upstream", "app");
    let zeros: &[(&str, Labels)] = &[
        ("outrigger_request_duration_seconds_count", &[app, ("outcome", "rejected")]),
        ("outrigger_request_duration_seconds_bucket", &[("upstream", ""), ("le", "+Inf")]),
        ("outrigger_response_duration_seconds_sum", &[app]),
        ("outrigger_attempts_total", &[app, ("outcome", "ok")]),
        ("outrigger_attempts_total", &[app, ("outcome", "5xx")]),
        ("outrigger_attempts_total", &[app, ("outcome", "attempt_timeout")]),
        ("outrigger_attempt_duration_seconds_bucket", &[app, ("le", "0.0025")]),
        ("outrigger_retries_total", &[app, ("reason", "503")]),
        ("outrigger_retries_skipped_total", &[app, ("reason", "yield")]),
        ("outrigger_hedges_total", &[app, ("winner", "none")]),
        ("outrigger_hedges_skipped_total", &[app, ("reason", "wins")]),
        ("outrigger_breaker_state", &[app, ("mode", "enforce")]),
        ("outrigger_breaker_transitions_total", &[app, ("to", "half_open")]),
        ("outrigger_concurrency_limit", &[app]),
        ("outrigger_concurrency_in_flight", &[app]),
        ("outrigger_streams", &[app]),
        ("outrigger_queue_depth", &[app]),
        ("outrigger_queue_wait_seconds_count", &[app]),
        ("outrigger_rejected_total", &[app, ("reason", "breaker_open"), ("mode", "shadow")]),
        ("outrigger_rejected_total", &[("upstream", ""), ("reason", "no_route"), ("mode", "enforce")]),
        ("outrigger_limit_reached_total", &[("what", "max_connections")]),
        ("outrigger_upstream_connects_total", &[app, ("result", "timeout")]),
        ("outrigger_client_connections", &[("listener", "egress")]),
        ("outrigger_config_reloads_total", &[("result", "failure")]),
        ("outrigger_log_dropped_total", &[]),
        ("outrigger_panics_total", &[]),
        ("outrigger_overhead_seconds_bucket", &[("le", "0.00001")]),
    ];
    for (name, labels) in zeros {
        assert_eq!(value(&page, name, labels), Some(0.0), "{name} {labels:?}");
    }
    for later in
        ["outrigger_requests_total", "outrigger_endpoint_attempts_total", "outrigger_upstream_connections"]
    {
        assert_eq!(value(&page, later, &[]), None, "{later} begins with its first event");
    }
}

#[test]
fn the_page_shows_the_sum_of_all_workers() {
    let metrics = metrics();
    let upstream = metrics.upstream("app");
    let endpoint = metrics.endpoint("app", "127.0.0.1:1");
    for worker in 0..2 {
        let shard = upstream.shard(worker);
        shard.request_duration(RequestOutcome::Ok).observe(Duration::from_millis(4));
        shard.rejected(Reason::QueueFull, Effect::Shadowed).inc();
        shard.rejected(Reason::LoopDetected, Effect::Enforced).inc();
        shard.retries(1).add(2);
        metrics.overhead(worker).observe(Duration::from_micros(30));
    }
    // A connection that one worker opened and another counts as gone: the sum is right.
    endpoint.shard(0).connections_idle.add(2);
    endpoint.shard(1).connections_idle.dec();
    upstream.breaker_moved(BreakerState::Open);
    upstream.set_breaker_mode("shadow");

    let page = metrics.render();

    let app = ("upstream", "app");
    let counts: &[(&str, Labels, f64)] = &[
        ("outrigger_request_duration_seconds_bucket", &[app, ("outcome", "ok"), ("le", "0.0025")], 0.0),
        ("outrigger_request_duration_seconds_bucket", &[app, ("outcome", "ok"), ("le", "0.005")], 2.0),
        ("outrigger_request_duration_seconds_sum", &[app, ("outcome", "ok")], 0.008),
        ("outrigger_rejected_total", &[app, ("reason", "queue_full"), ("mode", "shadow")], 2.0),
        ("outrigger_rejected_total", &[app, ("reason", "loop_detected"), ("mode", "enforce")], 2.0),
        ("outrigger_retries_total", &[app, ("reason", "503")], 4.0),
        ("outrigger_overhead_seconds_bucket", &[("le", "0.00005")], 2.0),
        ("outrigger_upstream_connections", &[("endpoint", "127.0.0.1:1"), ("state", "idle")], 1.0),
        ("outrigger_breaker_state", &[app, ("mode", "shadow")], 2.0),
        ("outrigger_breaker_transitions_total", &[app, ("to", "open")], 1.0),
    ];
    for (name, labels, expected) in counts {
        assert_eq!(value(&page, name, labels), Some(*expected), "{name} {labels:?}");
    }
}

#[test]
fn series_live_as_long_as_their_handles() {
    let metrics = metrics();
    let of_old = metrics.upstream("app");
    of_old.shard(0).attempts(AttemptOutcome::Ok).inc();
    let of_new = metrics.upstream("app");
    drop(of_old);
    let ok = [("upstream", "app"), ("outcome", "ok")];
    assert_eq!(value(&metrics.render(), "outrigger_attempts_total", &ok), Some(1.0), "carried over");

    drop(of_new);
    assert_eq!(value(&metrics.render(), "outrigger_attempts_total", &ok), None, "gone with the last handle");
    let again = metrics.upstream("app");
    assert_eq!(again.shard(0).attempts(AttemptOutcome::Ok).get(), 0);
}

#[test]
fn an_endpoint_stays_five_minutes_after_it_left() {
    let metrics = metrics();
    drop(metrics.endpoint("app", "127.0.0.1:1"));
    let held = metrics.endpoint("app", "127.0.0.1:2");
    let now = Instant::now();
    let count_at = |seconds| {
        let mut series = metrics.series();
        series.forget(now + Duration::from_secs(seconds));
        series.endpoints.len()
    };
    assert_eq!(count_at(0), 2);
    assert_eq!(count_at(299), 2);
    assert_eq!(count_at(301), 1);
    drop(held);
    assert_eq!(count_at(1000), 1, "it left now");
    drop(metrics.endpoint("app", "127.0.0.1:2"));
    assert_eq!(count_at(1301), 1, "it was back in between");
}

#[test]
fn endpoints_beyond_the_cap_share_one_series() {
    let metrics = metrics();
    let held: Vec<_> =
        (0..MAX_ENDPOINTS + 2).map(|port| metrics.endpoint("app", &format!("h:{port}"))).collect();
    held.iter().for_each(|endpoint| endpoint.shard(0).attempts(AttemptOutcome::Ok).inc());
    let page = metrics.render();
    assert_eq!(value(&page, "outrigger_endpoint_attempts_total", &[("endpoint", "h:0")]), Some(1.0));
    assert_eq!(value(&page, "outrigger_endpoint_attempts_total", &[("endpoint", "other")]), Some(2.0));
    assert_eq!(value(&page, "outrigger_limit_reached_total", &[("what", "endpoint_series")]), Some(2.0));
}

#[test]
fn a_reload_shows_whether_it_succeeded() {
    let metrics = metrics();
    metrics.set_config("d1", UNIX_EPOCH + Duration::from_secs(1000));
    metrics.reloaded(false);
    let page = metrics.render();
    assert_eq!(value(&page, "outrigger_config_info", &[("digest", "d1")]), Some(1.0));
    assert_eq!(value(&page, "outrigger_config_last_reload_successful", &[]), Some(0.0));
    assert_eq!(value(&page, "outrigger_config_last_reload_success_timestamp_seconds", &[]), Some(1000.0));

    metrics.reloaded(true);
    metrics.set_config("d2", UNIX_EPOCH + Duration::from_secs(2000));
    let page = metrics.render();
    assert_eq!(value(&page, "outrigger_config_info", &[("digest", "d1")]), None);
    assert_eq!(value(&page, "outrigger_config_reloads_total", &[("result", "success")]), Some(1.0));
    assert_eq!(value(&page, "outrigger_config_last_reload_successful", &[]), Some(1.0));
}
