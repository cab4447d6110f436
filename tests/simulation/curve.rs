//! Curves as snapshots: `curves/NAME.txt` for the diff, `curves/NAME.svg` to look at.
//!
//! A run is the same on every machine, so what a change does to a curve shows in the change. Where it is meant:
//! `OUTRIGGER_CURVES=write cargo test --test simulation` writes them anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::record::Record;

/// Points of a curve, at most.
const POINTS: f64 = 120.0;

/// Of a moment of a run.
struct Point {
    time: f64,
    /// In the order of [`PANELS`].
    values: [f64; 5],
}

const PANELS: [(&str, &str); 5] = [
    ("limit", "#1f77b4"),
    ("in flight", "#2ca02c"),
    ("p50 of attempts, ms", "#d62728"),
    ("goodput, 1/s", "#9467bd"),
    ("refused, 1/s", "#8c564b"),
];

/// Holds `record` to the curves that are in the tree, or writes them.
pub(crate) fn compare(name: &str, record: &Record) {
    let points = points(record);
    for (end, now) in [("txt", text(&points)), ("svg", svg(name, &points))] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/simulation/curves")
            .join(format!("{name}.{end}"));
        if std::env::var_os("OUTRIGGER_CURVES").is_some_and(|value| value == "write") {
            std::fs::write(&path, now).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            continue;
        }
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some((line, (before, now))) =
            before.lines().zip(now.lines()).enumerate().find(|(_, (before, now))| before != now)
        {
            panic!(
                "{name}.{end} has changed from line {}:\n  {before}\n  {now}\nif it is meant, write it anew with OUTRIGGER_CURVES=write",
                line + 1
            );
        }
        assert_eq!(
            before.lines().count(),
            now.lines().count(),
            "{name}.{end}: write it with OUTRIGGER_CURVES=write"
        );
    }
}

fn points(record: &Record) -> Vec<Point> {
    let seconds = record.seconds();
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0].into_iter().find(|step| seconds / step <= POINTS);
    let step = step.unwrap_or(60.0);
    (0..(seconds / step) as usize)
        .map(|n| {
            let time = n as f64 * step;
            let span = || time..time + step;
            let values = [
                record.limit(span()),
                record.in_flight(span()),
                record.p50(span()),
                record.goodput(span()),
                record.refused(span()) / step,
            ];
            Point { time, values }
        })
        .collect()
}

fn text(points: &[Point]) -> String {
    let mut text = String::from("   time    limit in flight      p50  goodput  refused\n");
    for Point { time, values: [limit, in_flight, p50, goodput, refused] } in points {
        writeln!(text, "{time:7.1} {limit:8.1} {in_flight:9.1} {p50:8.1} {goodput:8.0} {refused:8.0}")
            .expect("a string takes all");
    }
    text
}

fn svg(name: &str, points: &[Point]) -> String {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 120.0;
    const LEFT: f64 = 60.0;
    const GAP: f64 = 34.0;
    let last = points.last().map_or(1.0, |point| point.time);
    let whole = GAP + (HEIGHT + GAP) * PANELS.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {whole}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"18\" font-size=\"15\">{}</text>\n",
        name.replace('_', " ")
    );
    for (panel, (title, colour)) in PANELS.iter().enumerate() {
        let top = GAP + panel as f64 * (HEIGHT + GAP) + 14.0;
        let most = points.iter().map(|point| point.values[panel]).fold(1.0, f64::max);
        let y = |value: f64| top + HEIGHT * (1.0 - value / most);
        let x = |time: f64| LEFT + (WIDTH - LEFT - 20.0) * time / last;
        let line: Vec<String> = points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.time), y(point.values[panel])))
            .collect();
        writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.0}\">{title}</text><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{most:.0}</text><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">0</text>",
            top - 4.0,
            LEFT - 6.0,
            top + 10.0,
            LEFT - 6.0,
            top + HEIGHT
        )
        .expect("a string takes all");
        writeln!(
            svg,
            "<path d=\"M{LEFT},{top:.0}V{bottom:.0}H{:.0}\" fill=\"none\" stroke=\"#999\"/><polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            WIDTH - 20.0,
            line.join(" "),
            bottom = top + HEIGHT,
        )
        .expect("a string takes all");
        for tick in 0..=6 {
            let time = last * f64::from(tick) / 6.0;
            writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#666\" font-size=\"10\">{time:.0} s</text>",
                x(time),
                top + HEIGHT + 12.0
            )
            .expect("a string takes all");
        }
    }
    svg.push_str("</svg>\n");
    svg
}
