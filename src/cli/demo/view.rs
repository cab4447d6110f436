//! What the demo shows while it runs, as lines of styled text: a pure function of the numbers.
//!
//! Not here: escape sequences and the terminal's size (`terminal`).

use std::net::SocketAddr;
use std::time::Duration;

use super::latency::Histogram;
use super::policies::{Breaker, Counts, Policies};
use super::score::{POINTS, Score, Tally};
use super::timeline::Timeline;
use super::upstream::{Fault, REPLICAS};

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Fair,
    Bad,
}

/// One line of the screen: pieces of text from left to right.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(pub(super) Vec<(Style, String)>);

impl Line {
    fn with(mut self, style: Style, text: impl Into<String>) -> Line {
        self.0.push((style, text.into()));
        self
    }

    /// Cuts what does not fit.
    fn cut(mut self, width: usize) -> Line {
        let mut left = width;
        for (_, text) in &mut self.0 {
            if let Some((end, _)) = text.char_indices().nth(left) {
                text.truncate(end);
            }
            left -= text.chars().count();
        }
        self
    }
}

/// One side of the comparison at this moment.
pub(super) struct Side<'a> {
    pub(super) score: &'a Score,
    /// Requests under way.
    pub(super) in_flight: usize,
    /// What its replicas have taken in and not finished.
    pub(super) backlogs: [usize; 3],
}

/// Everything that a screen shows.
pub(super) struct Frame<'a> {
    pub(super) elapsed: Duration,
    pub(super) timeline: &'a Timeline,
    pub(super) without: Side<'a>,
    pub(super) with: Side<'a>,
    pub(super) policies: &'a Policies,
    pub(super) listener: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Outrigger's configuration, for screens with room below.
    pub(super) config: &'a str,
}

/// The column in which curves begin.
const INDENT: usize = 11;

/// The configuration is shown only where at least so many lines of it fit: those of the upstream.
const CONFIG_LINES: usize = 10;
/// The column in which the counts of the policies begin.
const NAMES: usize = 20;

/// The screen, `height` lines of at most `width` columns.
pub(super) fn screen(frame: &Frame<'_>, width: usize, height: usize) -> Vec<Line> {
    let curve = width.saturating_sub(INDENT + 1).clamp(10, POINTS);
    let mut lines = vec![
        Line::default()
            .with(Style::Bold, " Outrigger demo")
            .with(Style::Plain, format!("   {}   ", clock(frame)))
            .with(Style::Dim, "Ctrl-C ends it"),
        Line::default()
            .with(Style::Dim, " try  ")
            .with(Style::Plain, format!("curl http://{}/", frame.listener))
            .with(Style::Dim, "  and  ")
            .with(Style::Plain, format!("http://{}/metrics", frame.admin)),
        Line::default(),
        now(frame),
        Line::default(),
        Line::default().with(
            Style::Dim,
            format!(
                "{:19}{:>8} {:>8} {:>8} {:>9} {:>9}   {}",
                "", "success", "p50", "p99", "answers/s", "under way", "at a, b, c"
            ),
        ),
    ];
    lines.extend(side(" without Outrigger", &frame.without, frame, curve));
    lines.extend(side(" with Outrigger", &frame.with, frame, curve));
    lines.push(ruler(frame, curve));
    lines.push(Line::default());
    lines.extend(policies(frame.policies, width));
    lines.extend(failures(frame, width));
    let config: Vec<_> = frame.config.trim().lines().collect();
    let room = height.saturating_sub(lines.len() + 2);
    if room >= config.len().min(CONFIG_LINES) {
        lines.push(Line::default());
        lines.push(Line::default().with(Style::Bold, " ITS CONFIGURATION"));
        let shown = config.iter().take(room);
        lines.extend(shown.map(|line| Line::default().with(Style::Dim, format!("   {line}"))));
    }
    lines.truncate(height);
    lines.into_iter().map(|line| line.cut(width)).collect()
}

/// What the columns of [`ticker`] are.
pub(super) const TICKER_HEAD: &str = "                            without Outrigger         with Outrigger
  time  now                 success     p50     p99   success     p50     p99  retries rejected breaker";

/// One line for each second where there is no screen: the last two seconds, and what the policies did so far.
pub(super) fn ticker(frame: &Frame<'_>) -> String {
    let side = |side: &Side<'_>| {
        let (tally, _) = side.score.just_now(frame.elapsed);
        let Quantiles { p50, p99, .. } = Quantiles::of(&tally.latency);
        format!("{:>7} {p50:>7} {p99:>7}", percent(tally.success()))
    };
    let Policies { breaker, retries, rejected, .. } = frame.policies;
    format!(
        "{:5.1}s  {:20}{}   {}  {:7}  {:7} {}",
        frame.elapsed.as_secs_f64(),
        frame.timeline.phases()[frame.timeline.at(frame.elapsed)].name,
        side(&frame.without),
        side(&frame.with),
        sum(retries),
        sum(rejected),
        breaker.label(),
    )
}

/// How far the story is told.
fn clock(frame: &Frame<'_>) -> String {
    let (elapsed, length) = (frame.elapsed.as_secs_f64(), frame.timeline.length().as_secs_f64());
    match elapsed < length {
        true => format!("{elapsed:.0} s of {length:.0} s"),
        false => "waiting for the last answers".to_owned(),
    }
}

/// What is broken now.
fn now(frame: &Frame<'_>) -> Line {
    let phase = &frame.timeline.phases()[frame.timeline.at(frame.elapsed)];
    let style = if phase.mark.is_empty() { Style::Good } else { Style::Bad };
    let mut line = Line::default().with(Style::Bold, " NOW   ").with(style, format!("{:21}", phase.name));
    for (name, fault) in REPLICAS.iter().zip(phase.faults) {
        let (style, word) = match fault {
            Fault::Healthy => (Style::Good, "well"),
            Fault::Slow(_) => (Style::Bad, "SLOW"),
            Fault::Errors => (Style::Bad, "FAILS"),
            Fault::Stalled => (Style::Bad, "STALLS"),
            Fault::Refusing => (Style::Bad, "REFUSES"),
            Fault::Resetting => (Style::Bad, "RESETS"),
        };
        line = line.with(Style::Plain, format!("  {name} ")).with(style, format!("{word:8}"));
    }
    line
}

/// A side's numbers of the last two seconds, and its curves since the start.
fn side(name: &str, side: &Side<'_>, frame: &Frame<'_>, curve: usize) -> [Line; 3] {
    let (tally, span) = side.score.just_now(frame.elapsed);
    let Quantiles { p50, p99, .. } = Quantiles::of(&tally.latency);
    let answers = match span.as_secs_f64() {
        0.0 => "-".to_owned(),
        seconds => format!("{:.0}", tally.requests() as f64 / seconds),
    };
    let backlogs = side.backlogs.map(|backlog| format!("{backlog:>4}")).concat();
    let numbers = Line::default()
        .with(Style::Bold, format!("{name:19}"))
        .with(success_style(tally.success()), format!("{:>8}", percent(tally.success())))
        .with(Style::Plain, format!(" {p50:>8}"))
        .with(latency_style(tally.latency.quantile(0.99)), format!(" {p99:>8}"))
        .with(Style::Plain, format!(" {answers:>9} {:>9}  {backlogs}", side.in_flight));
    let shown =
        (frame.elapsed.as_secs_f64() / frame.timeline.length().as_secs_f64() * POINTS as f64) as usize;
    let points = &side.score.points[..(shown + 1).min(POINTS)];
    [
        numbers,
        spark("success", points, curve, |tally| {
            let success = tally.success()?;
            Some((success, success_style(Some(success))))
        }),
        spark("p99", points, curve, |tally| {
            let p99 = tally.latency.quantile(0.99)?;
            // From 20 ms at the bottom to 1.28 s at the top, in doublings.
            let height = (p99.as_secs_f64() / 0.02).log2() / 6.0;
            Some((height, latency_style(Some(p99))))
        }),
    ]
}

/// A curve: each column's height from 0 to 1 and its style, from the points that fall into it.
fn spark(name: &str, points: &[Tally], width: usize, value: impl Fn(&Tally) -> Option<(f64, Style)>) -> Line {
    const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    let mut line = Line::default().with(Style::Dim, format!("   {name:0$}", INDENT - 3));
    for column in 0..width {
        let (from, to) = (column * POINTS / width, (column + 1) * POINTS / width);
        if from >= points.len() {
            break;
        }
        let mut sum = Tally::new();
        points[from..to.min(points.len())].iter().for_each(|point| sum.add(point));
        let (bar, style) = match value(&sum) {
            Some((height, style)) => (BARS[(height.clamp(0.0, 1.0) * 7.0).round() as usize], style),
            None => (" ", Style::Plain),
        };
        match line.0.last_mut() {
            Some((last, text)) if *last == style => text.push_str(bar),
            _ => line = line.with(style, bar),
        }
    }
    line
}

/// Below the curves: what was broken where.
fn ruler(frame: &Frame<'_>, curve: usize) -> Line {
    let mut text = " ".repeat(INDENT);
    let whole = frame.timeline.length().as_secs_f64();
    let column = |phase| (frame.timeline.begin(phase).as_secs_f64() / whole * curve as f64) as usize + INDENT;
    for (index, phase) in frame.timeline.phases().iter().enumerate() {
        let end = match index + 1 < frame.timeline.phases().len() {
            true => column(index + 1),
            false => INDENT + curve,
        };
        let room = end.saturating_sub(text.chars().count());
        match phase.mark.is_empty() {
            true => text.push_str(&" ".repeat(room)),
            false => text.push_str(&format!("{:─<room$}", &phase.mark[..phase.mark.len().min(room)])),
        }
    }
    Line::default().with(Style::Dim, text)
}

/// What the policies did since the start.
fn policies(policies: &Policies, width: usize) -> Vec<Line> {
    let listed = |counts| shortened(counts, width.saturating_sub(NAMES));
    let breaker = match policies.breaker {
        Breaker::Closed => Style::Good,
        Breaker::Probing => Style::Fair,
        Breaker::Open => Style::Bad,
    };
    let row = |name: &str| Line::default().with(Style::Dim, format!("   {name:0$}", NAMES - 3));
    let attempts = REPLICAS.iter().zip(policies.attempts).map(|(name, (all, failed))| match failed {
        0 => format!("{name} {all}"),
        _ => format!("{name} {all}, {failed} failed"),
    });
    vec![
        Line::default()
            .with(Style::Bold, " WHAT OUTRIGGER DOES")
            .with(Style::Dim, "   since the start, from its /metrics"),
        row("breaker")
            .with(breaker, policies.breaker.label())
            .with(Style::Plain, format!("   opened {}", times(policies.trips))),
        row("retries").with(Style::Plain, listed(&policies.retries)),
        row("retries not made").with(Style::Plain, listed(&policies.skipped)),
        row("rejected").with(Style::Plain, listed(&policies.rejected)),
        row("in flight").with(
            Style::Plain,
            format!("{} of at most {}, {} queued", policies.in_flight, policies.limit, policies.queued),
        ),
        row("attempts").with(Style::Plain, attempts.collect::<Vec<_>>().join("   ")),
    ]
}

/// Why requests failed, on both sides.
fn failures(frame: &Frame<'_>, width: usize) -> [Line; 2] {
    [(" FAILED without it", &frame.without), (" FAILED with it", &frame.with)].map(|(name, side)| {
        let counts = shortened(&failure_counts(side.score), width.saturating_sub(NAMES));
        Line::default().with(Style::Bold, format!("{name:NAMES$}")).with(Style::Plain, counts)
    })
}

/// A score's failures, the commonest first.
pub(super) fn failure_counts(score: &Score) -> Counts {
    let mut counts: Counts = super::client::Failure::ALL
        .into_iter()
        .map(|failure| (failure.label().to_owned(), score.failures[failure as usize]))
        .filter(|(_, count)| *count > 0)
        .collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// `19: attempt_timeout 12, 500 7`, or `0`.
pub(super) fn listed(counts: &Counts) -> String {
    let each: Vec<_> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    match each.is_empty() {
        true => "0".to_owned(),
        false => format!("{}: {}", sum(counts), each.join(", ")),
    }
}

/// The same in at most `room` columns: the rarest are left out where it would be longer.
fn shortened(counts: &Counts, room: usize) -> String {
    let text = listed(counts);
    if text.chars().count() <= room {
        return text;
    }
    let cut: String = text.chars().take(room.saturating_sub(3)).collect();
    match cut.rsplit_once(", ") {
        Some((whole, _)) => format!("{whole}, …"),
        None => format!("{}: …", sum(counts)),
    }
}

pub(super) fn sum(counts: &Counts) -> u64 {
    counts.iter().map(|(_, count)| count).sum()
}

/// `once`, `twice`, `3 times`.
pub(super) fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{count} times"),
    }
}

/// A histogram's three numbers as text.
pub(super) struct Quantiles {
    pub(super) p50: String,
    pub(super) p99: String,
    pub(super) worst: String,
}

impl Quantiles {
    pub(super) fn of(latency: &Histogram) -> Quantiles {
        Quantiles {
            p50: span(latency.quantile(0.5)),
            p99: span(latency.quantile(0.99)),
            worst: span(latency.worst()),
        }
    }
}

/// `41 ms`, `2.01 s`, `-` where nothing was measured.
pub(super) fn span(length: Option<Duration>) -> String {
    match length.map(|length| length.as_secs_f64() * 1e3) {
        None => "-".to_owned(),
        Some(millis) if millis < 9.95 => format!("{millis:.1} ms"),
        Some(millis) if millis < 999.5 => format!("{millis:.0} ms"),
        Some(millis) => format!("{:.2} s", millis / 1e3),
    }
}

/// `99.9 %`; 100 only if nothing failed, `-` without requests.
pub(super) fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share < 1.0 => format!("{:.1} %", (share * 1000.0).floor() / 10.0),
        Some(_) => "100 %".to_owned(),
    }
}

fn success_style(success: Option<f64>) -> Style {
    match success {
        None => Style::Dim,
        Some(success) if success >= 0.99 => Style::Good,
        Some(success) if success >= 0.9 => Style::Fair,
        Some(_) => Style::Bad,
    }
}

fn latency_style(latency: Option<Duration>) -> Style {
    match latency.map(|latency| latency.as_millis()) {
        None => Style::Dim,
        Some(..=150) => Style::Good,
        Some(..=600) => Style::Fair,
        Some(_) => Style::Bad,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::client::Failure;
    use super::super::load::Sample;
    use super::*;

    /// A request each 20 ms until `until`, answered in 40 ms; the trouble that `trouble` sees in a phase
    /// makes every third time out.
    pub(in super::super) fn score(timeline: &Timeline, until: u64, trouble: impl Fn(&str) -> bool) -> Score {
        let mut samples = Vec::new();
        for (index, due) in (0..until).step_by(20).enumerate() {
            let due = Duration::from_millis(due);
            let is_hit = index % 3 == 0 && trouble(timeline.phases()[timeline.at(due)].mark);
            let (latency, result) = match is_hit {
                true => (Duration::from_secs(2), Err(Failure::Timeout)),
                false => (Duration::from_millis(40), Ok(())),
            };
            samples.push(Sample { due, latency, result });
        }
        samples.sort_by_key(|sample| sample.due + sample.latency); // as they come in
        let mut score = Score::new(timeline);
        samples.iter().for_each(|sample| score.record(sample, timeline));
        score
    }

    /// What the policies of such a run could have done.
    pub(in super::super) fn busy() -> Policies {
        Policies {
            breaker: Breaker::Closed,
            trips: 1,
            retries: vec![("attempt_timeout".into(), 31), ("500".into(), 12)],
            skipped: vec![("method".into(), 2)],
            rejected: vec![],
            in_flight: 9,
            limit: 18,
            queued: 0,
            attempts: [(300, 0), (280, 12), (250, 31)],
        }
    }

    /// Shows a frame at 13 s of 30 s.
    fn shown<T>(show: impl FnOnce(&Frame<'_>) -> T) -> T {
        let timeline = Timeline::over(Duration::from_secs(30));
        let (without, with) =
            (score(&timeline, 11_000, |mark| !mark.is_empty()), score(&timeline, 13_000, |_| false));
        let side = |score, in_flight, backlogs| Side { score, in_flight, backlogs };
        show(&Frame {
            elapsed: Duration::from_secs(13),
            timeline: &timeline,
            without: side(&without, 141, [3, 2, 130]),
            with: side(&with, 9, [3, 2, 4]),
            policies: &busy(),
            listener: "127.0.0.1:8080".parse().expect("an address"),
            admin: "127.0.0.1:9900".parse().expect("an address"),
            config: "[[listener]]\naddress = \"127.0.0.1:8080\"\n",
        })
    }

    /// The text of a screen, without its styles and the blanks at line ends.
    fn text(width: usize, height: usize) -> String {
        let mut text = String::new();
        for line in shown(|frame| screen(frame, width, height)) {
            let line: String = line.0.into_iter().map(|(_, text)| text).collect();
            assert!(line.chars().count() <= width, "{line:?} is wider than {width}");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    #[test]
    fn a_screen_of_80_by_24() {
        let expected = " Outrigger demo   13 s of 30 s   Ctrl-C ends it
 try  curl http://127.0.0.1:8080/  and  http://127.0.0.1:9900/metrics

 NOW   a refuses connects     a REFUSES   b well      c well

                    success      p50      p99 answers/s under way   at a, b, c
 without Outrigger    0.0 %   2.00 s   2.00 s        17       141     3   2 130
   success ████▆▆▆▅▆▆▆███▅▆▆▅▆██▆▆▆▅
   p99     ▂▂▂▂███████▂▂▂███████████
 with Outrigger       100 %    40 ms    40 ms        50         9     3   2   4
   success ██████████████████████████████
   p99     ▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂
               slow──   5xx──  stall─   gone─  reset  all slow     crawl

 WHAT OUTRIGGER DOES   since the start, from its /metrics
   breaker          closed   opened once
   retries          43: attempt_timeout 31, 500 12
   retries not made 2: method 2
   rejected         0
   in flight        9 of at most 18, 0 queued
   attempts         a 300   b 280, 12 failed   c 250, 31 failed
 FAILED without it  115: timeout 115
 FAILED with it     0
";
        assert_eq!(text(80, 24), expected, "\n{}", text(80, 24));
    }

    #[test]
    fn a_large_screen_shows_the_configuration_too_and_wider_curves() {
        let expected = r#" Outrigger demo   13 s of 30 s   Ctrl-C ends it
 try  curl http://127.0.0.1:8080/  and  http://127.0.0.1:9900/metrics

 NOW   a refuses connects     a REFUSES   b well      c well

                    success      p50      p99 answers/s under way   at a, b, c
 without Outrigger    0.0 %   2.00 s   2.00 s        17       141     3   2 130
   success ███████▆▆▆▆▅▆▆▆▆▆▇████▅▆▆▆▆▅▆▆▇██▇▆▆▆▆▅▆
   p99     ▂▂▂▂▂▂▂███████████▂▂▂▂█████████▂▂███████
 with Outrigger       100 %    40 ms    40 ms        50         9     3   2   4
   success ███████████████████████████████████████████████
   p99     ▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂
                 slow──────     5xx─────    stall───     gone────    reset───   all slow────        crawl────

 WHAT OUTRIGGER DOES   since the start, from its /metrics
   breaker          closed   opened once
   retries          43: attempt_timeout 31, 500 12
   retries not made 2: method 2
   rejected         0
   in flight        9 of at most 18, 0 queued
   attempts         a 300   b 280, 12 failed   c 250, 31 failed
 FAILED without it  115: timeout 115
 FAILED with it     0

 ITS CONFIGURATION
   [[listener]]
   address = "127.0.0.1:8080"
"#;
        assert_eq!(text(120, 40), expected, "\n{}", text(120, 40));
    }

    #[test]
    fn a_line_a_second_stands_below_its_head() {
        let expected = "                            without Outrigger         with Outrigger
  time  now                 success     p50     p99   success     p50     p99  retries rejected breaker
 13.0s  a refuses connects    0.0 %  2.00 s  2.00 s     100 %   40 ms   40 ms       43        0 closed
";
        let text = format!("{TICKER_HEAD}\n{}\n", shown(ticker));
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_long_list_ends_at_a_whole_word() {
        let counts = vec![("connect_error".into(), 316), ("attempt_timeout".into(), 80), ("500".into(), 7)];
        for (room, text) in [
            (60, "403: connect_error 316, attempt_timeout 80, 500 7"),
            (48, "403: connect_error 316, attempt_timeout 80, …"),
            (40, "403: connect_error 316, …"),
            (9, "403: …"),
        ] {
            assert_eq!(shortened(&counts, room), text, "{room}");
        }
    }

    #[test]
    fn any_size_is_kept_within() {
        for (width, height) in [(1, 1), (10, 3), (40, 12), (79, 23), (300, 100)] {
            let text = text(width, height);
            assert!(text.lines().count() <= height, "{width} x {height}");
        }
    }

    #[test]
    fn shares_and_times_are_never_rounded_to_something_better() {
        for (share, text) in
            [(None, "-"), (Some(1.0), "100 %"), (Some(0.9999), "99.9 %"), (Some(0.0), "0.0 %")]
        {
            assert_eq!(percent(share), text);
        }
        for (micros, text) in
            [(1_234, "1.2 ms"), (40_000, "40 ms"), (999_900, "1.00 s"), (2_013_000, "2.01 s")]
        {
            assert_eq!(span(Some(Duration::from_micros(micros))), text);
        }
        assert_eq!(span(None), "-");
    }
}
