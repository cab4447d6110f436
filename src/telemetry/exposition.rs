//! The page that Prometheus reads: metric families filled with series, written by the prometheus crate's encoder.
//!
//! Not here: which metrics there are (`metrics`), nor how they are counted (`cells`).

use prometheus::proto;
use prometheus::{Encoder, TextEncoder};

use super::cells::Distribution;

/// What a metric is called, what it means, which labels it has. Declared once, as a constant.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) kind: Kind,
}

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Family {
    /// The family, still without series.
    pub(super) fn series(&'static self) -> Series {
        Series { family: self, metrics: Vec::new() }
    }
}

/// A family with its series.
pub(super) struct Series {
    family: &'static Family,
    metrics: Vec<proto::Metric>,
}

impl Series {
    /// Adds a counter or a gauge; `values` are its labels' values, in their order.
    pub(super) fn value(&mut self, values: &[&str], number: f64) {
        let mut metric = proto::Metric::from_label(self.labels(values));
        match self.family.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(number);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(number);
                metric.set_gauge(gauge);
            }
            Kind::Histogram => unreachable!("{} is a histogram", self.family.name),
        }
        self.metrics.push(metric);
    }

    /// Adds a histogram.
    pub(super) fn distribution(&mut self, values: &[&str], seen: &Distribution) {
        let mut histogram = proto::Histogram::default();
        histogram.set_sample_count(seen.count());
        histogram.set_sample_sum(seen.sum_seconds());
        let buckets = seen.cumulative().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        let mut metric = proto::Metric::from_label(self.labels(values));
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn labels(&self, values: &[&str]) -> Vec<proto::LabelPair> {
        debug_assert_eq!(self.family.labels.len(), values.len(), "{}", self.family.name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        self.family.labels.iter().zip(values).map(pair).collect()
    }
}

/// All families, in the order in which they are shown.
#[derive(Default)]
pub(super) struct Page(Vec<proto::MetricFamily>);

impl Page {
    /// Adds a family; one without series is left out, as the format wants it.
    pub(super) fn push(&mut self, series: Series) {
        if series.metrics.is_empty() {
            return;
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(series.family.name.to_owned());
        family.set_help(series.family.help.to_owned());
        family.set_field_type(match series.family.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(series.metrics);
        self.0.push(family);
    }

    /// The page's text.
    pub(super) fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.0, &mut text)
            .expect("no family is empty, and memory takes every write");
        String::from_utf8(text).expect("names, labels and numbers are text")
    }
}
