//! What Outrigger's policies have done, read from its real `/metrics` text.

use std::net::SocketAddr;

/// Events and how often each came, the commonest first; none that never came.
pub(super) type Counts = Vec<(String, u64)>;

/// The state of the upstream's policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Policies {
    pub(super) breaker: Breaker,
    /// How often the breaker has opened.
    pub(super) trips: u64,
    /// Retries by their cause.
    pub(super) retries: Counts,
    /// Retries that were not made, by reason.
    pub(super) skipped: Counts,
    /// Requests that were refused, by reason.
    pub(super) rejected: Counts,
    /// Attempts under way, and the limit of them.
    pub(super) in_flight: u64,
    pub(super) limit: u64,
    pub(super) queued: u64,
    /// Attempts at each replica: all, and those that failed.
    pub(super) attempts: [(u64, u64); 3],
}

/// Where the breaker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Breaker {
    #[default]
    Closed,
    /// Half-open or ramping: some requests pass.
    Probing,
    Open,
}

impl Breaker {
    pub(super) fn label(self) -> &'static str {
        match self {
            Breaker::Closed => "closed",
            Breaker::Probing => "probing",
            Breaker::Open => "OPEN",
        }
    }
}

impl Policies {
    /// Reads the Prometheus text of an Outrigger with one upstream, whose endpoints are `replicas`.
    pub(super) fn read(text: &str, replicas: &[SocketAddr]) -> Policies {
        let mut policies = Policies::default();
        for Series { name, labels, value } in text.lines().filter_map(series) {
            let label =
                |key: &str| labels.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value);
            let count = value as u64;
            match name {
                "outrigger_breaker_state" if value >= 2.0 => policies.breaker = Breaker::Open,
                "outrigger_breaker_state" if value >= 1.0 && policies.breaker == Breaker::Closed => {
                    policies.breaker = Breaker::Probing;
                }
                "outrigger_breaker_transitions_total" if label("to") == "open" => policies.trips += count,
                "outrigger_retries_total" => note(&mut policies.retries, label("reason"), count),
                "outrigger_retries_skipped_total" => note(&mut policies.skipped, label("reason"), count),
                "outrigger_rejected_total" => note(&mut policies.rejected, label("reason"), count),
                "outrigger_concurrency_in_flight" => policies.in_flight += count,
                "outrigger_concurrency_limit" => policies.limit += count,
                "outrigger_queue_depth" => policies.queued += count,
                "outrigger_endpoint_attempts_total" => {
                    let endpoint = label("endpoint");
                    let replica = replicas.iter().position(|address| address.to_string() == endpoint);
                    if let Some((all, failed)) = replica.and_then(|index| policies.attempts.get_mut(index)) {
                        *all += count;
                        *failed += if label("outcome") == "ok" { 0 } else { count };
                    }
                }
                _ => {}
            }
        }
        for counts in [&mut policies.retries, &mut policies.skipped, &mut policies.rejected] {
            counts.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        }
        policies
    }
}

/// One line of the Prometheus text.
struct Series<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
}

/// A line that holds a series; `None` for comments. Label values with a quote in them do not occur here.
fn series(line: &str) -> Option<Series<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels
        .trim_end_matches('}')
        .split("\",")
        .filter_map(|label| label.split_once("=\""))
        .map(|(key, value)| (key, value.trim_end_matches('"')))
        .collect();
    Some(Series { name, labels, value: value.parse().ok()? })
}

/// Adds to the count of `what`, where there is something to add.
fn note(counts: &mut Counts, what: &str, count: u64) {
    if count == 0 {
        return;
    }
    match counts.iter_mut().find(|(known, _)| known == what) {
        Some((_, sum)) => *sum += count,
        None => counts.push((what.to_owned(), count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_are_read_from_the_metrics_text() {
        let text = r#"
# HELP outrigger_retries_total Retries by cause.
# TYPE outrigger_retries_total counter
outrigger_retries_total{upstream="payments",reason="500"} 7
outrigger_retries_total{upstream="payments",reason="attempt_timeout"} 12
outrigger_retries_total{upstream="payments",reason="tls_error"} 0
outrigger_retries_skipped_total{upstream="payments",reason="method"} 3
outrigger_breaker_state{upstream="payments",mode="enforce"} 2
outrigger_breaker_state{upstream="payments",mode="shadow"} 0
outrigger_breaker_transitions_total{upstream="payments",to="open"} 2
outrigger_breaker_transitions_total{upstream="payments",to="closed"} 1
outrigger_concurrency_limit{upstream="payments"} 18
outrigger_concurrency_in_flight{upstream="payments"} 9
outrigger_queue_depth{upstream="payments"} 4
outrigger_rejected_total{upstream="payments",reason="breaker_open",mode="enforce"} 20
outrigger_endpoint_attempts_total{upstream="payments",endpoint="127.0.0.1:9101",outcome="ok"} 100
outrigger_endpoint_attempts_total{upstream="payments",endpoint="127.0.0.1:9102",outcome="ok"} 90
outrigger_endpoint_attempts_total{upstream="payments",endpoint="127.0.0.1:9102",outcome="5xx"} 5
process_open_fds 12
"#;
        let replicas: Vec<SocketAddr> =
            [9101, 9102, 9103].map(|port| SocketAddr::from(([127, 0, 0, 1], port))).into();
        let expected = Policies {
            breaker: Breaker::Open,
            trips: 2,
            retries: vec![("attempt_timeout".into(), 12), ("500".into(), 7)],
            skipped: vec![("method".into(), 3)],
            rejected: vec![("breaker_open".into(), 20)],
            in_flight: 9,
            limit: 18,
            queued: 4,
            attempts: [(100, 0), (95, 5), (0, 0)],
        };
        assert_eq!(Policies::read(text, &replicas), expected);
    }

    #[test]
    fn a_text_without_them_reads_as_nothing_done() {
        assert_eq!(Policies::read("", &[]), Policies::default());
        assert_eq!(Policies::read("nonsense\n# a\n{} x", &[]), Policies::default());
    }
}
