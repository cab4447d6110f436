//! `/metrics` as the stories ask it.

use std::collections::BTreeMap;

/// One reading of all series.
pub struct Metrics {
    series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Reads the Prometheus text format; panics at what is none.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            let number = number.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
            let (name, labels) = selector(series);
            (name, labels, number)
        });
        Self { series: series.collect() }
    }

    /// The sum over all series of this name that have these labels: `outrigger_requests_total{code=200}`.
    /// 0 where there are none.
    pub fn sum(&self, wanted: &str) -> f64 {
        self.matching(wanted).sum()
    }

    /// How many series have this name and these labels.
    pub fn count(&self, wanted: &str) -> usize {
        self.matching(wanted).count()
    }

    fn matching(&self, wanted: &str) -> impl Iterator<Item = f64> {
        let (wanted_name, wanted_labels) = selector(wanted);
        self.series.iter().filter_map(move |(name, labels, number)| {
            let all = wanted_labels.iter().all(|(label, value)| labels.get(label) == Some(value));
            (*name == wanted_name && all).then_some(*number)
        })
    }
}

/// `name{label="value",other=value}`: quotes may be left out.
fn selector(text: &str) -> (String, BTreeMap<String, String>) {
    let Some((name, labels)) = text.split_once('{') else { return (text.to_owned(), BTreeMap::new()) };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("labels without an end: {text}"));
    let pairs = labels.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (label, value) = pair.split_once('=').unwrap_or_else(|| panic!("not a label: {pair} in {text}"));
        (label.to_owned(), value.trim_matches('"').to_owned())
    });
    (name.to_owned(), pairs.collect())
}
