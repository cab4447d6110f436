//! The closing table, and what happened in a few sentences that hold for the numbers above them.

use std::fmt::Write;

use super::policies::Policies;
use super::score::{Score, Tally};
use super::timeline::{Phase, Timeline};
use super::upstream::Fault;
use super::view::{Quantiles, failure_counts, listed, percent, sum, times};

/// Both sides at the end.
pub(super) struct Closing<'a> {
    pub(super) timeline: &'a Timeline,
    pub(super) without: &'a Score,
    pub(super) with: &'a Score,
    pub(super) policies: &'a Policies,
    /// Requests without and with Outrigger that were still under way when it was interrupted.
    pub(super) unfinished: [usize; 2],
}

/// The table and the sentences, at most 80 columns wide.
pub(super) fn closing(closing: &Closing<'_>) -> String {
    let mut out = String::new();
    let Closing { timeline, without, with, policies, .. } = closing;
    let (all_without, all_with) = (without.overall(), with.overall());
    if all_without.requests() + all_with.requests() == 0 {
        return "It ended before the first answer.\n".to_owned();
    }
    let _ = writeln!(out, "{:30}{:27}with Outrigger", "", "without Outrigger");
    let heads = format!("{:>6}{:>7}{:>7}{:>7}", "ok %", "p50", "p99", "worst");
    let _ = writeln!(out, "{:19}{:>6}{heads}{heads}", "phase", "sent");
    for (index, phase) in timeline.phases().iter().enumerate() {
        let (without, with) = (&without.phases[index], &with.phases[index]);
        if without.requests() + with.requests() > 0 {
            out.push_str(&row(phase.name, without, with));
        }
    }
    out.push_str(&row("overall", &all_without, &all_with));
    out.push('\n');
    for sentence in sentences(closing, &all_without, &all_with) {
        out.push_str(&wrapped(&sentence));
    }
    for (what, counts) in [
        ("Failed without Outrigger", &failure_counts(without)),
        ("Failed with Outrigger", &failure_counts(with)),
        ("Retries", &policies.retries),
        ("Retries not made", &policies.skipped),
        ("Refused", &policies.rejected),
    ] {
        out.push_str(&wrapped(&format!("{what}: {}.", listed(counts))));
    }
    out
}

fn row(name: &str, without: &Tally, with: &Tally) -> String {
    let side = |tally: &Tally| {
        let Quantiles { p50, p99, worst } = Quantiles::of(&tally.latency);
        let success = percent(tally.success());
        let tight = [p50, p99, worst].map(|text| format!("{:>7}", text.replace(' ', ""))).concat();
        format!("{:>6}{tight}", success.trim_end_matches(" %"))
    };
    let sent = without.requests().max(with.requests());
    format!("{name:19}{sent:>6}{}{}\n", side(without), side(with))
}

/// What can be said of these numbers, whichever way they went.
fn sentences(closing: &Closing<'_>, without: &Tally, with: &Tally) -> Vec<String> {
    let Closing { policies, unfinished, .. } = closing;
    let quantiles = |tally: &Tally| Quantiles::of(&tally.latency);
    let verdict = match with.failed.cmp(&without.failed) {
        std::cmp::Ordering::Less => "",
        std::cmp::Ordering::Equal => " It made no difference to the failures.",
        std::cmp::Ordering::Greater => " It made things worse this time.",
    };
    let mut said = vec![format!(
        "Of the same {} requests {} failed without Outrigger (p99 {}) and {} with it (p99 {}).{verdict}",
        without.requests().max(with.requests()),
        without.failed,
        quantiles(without).p99,
        with.failed,
        quantiles(with).p99,
    )];
    let mut effort = format!(
        "For that it sent {} retries and refused {} requests; its breaker opened {}.",
        sum(&policies.retries),
        sum(&policies.rejected),
        times(policies.trips)
    );
    if policies.skipped.iter().any(|(reason, _)| reason == "method") {
        effort.push_str(" A POST is never sent twice unless it surely was not processed.");
    }
    said.push(effort);
    said.extend(while_some_were_well(closing));
    said.extend(hardest(closing));
    if *unfinished != [0, 0] {
        let [without, with] = unfinished;
        said.push(format!(
            "Still under way when it was interrupted, and not counted: {without} requests without it, {with} with it."
        ));
    }
    said
}

/// The phases with a trouble that an intact replica could have made up for.
fn while_some_were_well(closing: &Closing<'_>) -> Option<String> {
    let is_partial = |phase: &Phase| !phase.mark.is_empty() && phase.faults.contains(&Fault::Healthy);
    let (mut without, mut with) = (Tally::new(), Tally::new());
    for (index, phase) in closing.timeline.phases().iter().enumerate() {
        if is_partial(phase) {
            without.add(&closing.without.phases[index]);
            with.add(&closing.with.phases[index]);
        }
    }
    Some(format!(
        "While one replica was in trouble and the others well, {} succeeded with Outrigger, {} without.",
        percent(Some(with.success()?)),
        percent(Some(without.success()?)),
    ))
}

/// The phase in which fewest succeeded, if there was one that Outrigger could not hide.
fn hardest(closing: &Closing<'_>) -> Option<String> {
    let tallies = closing.with.phases.iter().enumerate();
    let (index, with, success) = tallies
        .filter_map(|(index, tally)| Some((index, tally, tally.success()?)))
        .min_by(|one, other| one.2.total_cmp(&other.2))?;
    let without = &closing.without.phases[index];
    if success >= 0.9 || without.success().is_none() {
        return None;
    }
    let mut sentence = format!(
        "It could not hide \"{}\": {} succeeded with it, {} without",
        closing.timeline.phases()[index].name,
        percent(Some(success)),
        percent(without.success()),
    );
    if with.latency.quantile(0.5) < without.latency.quantile(0.5).map(|median| median / 2) {
        let (with, without) = (Quantiles::of(&with.latency).p50, Quantiles::of(&without.latency).p50);
        let _ = write!(sentence, "; but half of the callers knew after {with} instead of {without}");
    }
    Some(sentence + ".")
}

/// The sentence in lines of at most 80 columns.
fn wrapped(sentence: &str) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for word in sentence.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > 80 {
            out.push('\n');
            column = 0;
        }
        if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{busy, score};
    use super::*;
    use std::time::Duration;

    /// The closing words where the phases that `without` and `with` name had trouble.
    fn closing_of(
        without: impl Fn(&str) -> bool,
        with: impl Fn(&str) -> bool,
        unfinished: [usize; 2],
    ) -> String {
        let timeline = Timeline::over(Duration::from_secs(30));
        let (without, with) = (score(&timeline, 30_000, without), score(&timeline, 30_000, with));
        let text = closing(&Closing {
            timeline: &timeline,
            without: &without,
            with: &with,
            policies: &busy(),
            unfinished,
        });
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line:?} is wider than 80");
        }
        text
    }

    #[test]
    fn the_table_compares_each_phase() {
        let text = closing_of(|mark| !mark.is_empty(), |mark| mark == "all slow", [0, 0]);
        let expected = r#"                              without Outrigger          with Outrigger
phase                sent  ok %    p50    p99  worst  ok %    p50    p99  worst
all is well            93   100   40ms   40ms   40ms   100   40ms   40ms   40ms
a is slow             138  66.6   41ms  2.00s  2.00s   100   40ms   40ms   40ms
a is well again        69   100   40ms   40ms   40ms   100   40ms   40ms   40ms
b answers 500, 503    116  66.3   41ms  2.00s  2.00s   100   40ms   40ms   40ms
b is well again        46   100   40ms   40ms   40ms   100   40ms   40ms   40ms
c stalls              115  66.0   41ms  2.00s  2.00s   100   40ms   40ms   40ms
c is well again        70   100   40ms   40ms   40ms   100   40ms   40ms   40ms
a refuses connects    115  66.9   41ms  2.00s  2.00s   100   40ms   40ms   40ms
a is back              46   100   40ms   40ms   40ms   100   40ms   40ms   40ms
b resets mid-body     116  67.2   41ms  2.00s  2.00s   100   40ms   40ms   40ms
b is well again        46   100   40ms   40ms   40ms   100   40ms   40ms   40ms
all three are slow    161  67.0   41ms  2.00s  2.00s  67.0   41ms  2.00s  2.00s
all are well again    116   100   40ms   40ms   40ms   100   40ms   40ms   40ms
all three crawl       115  66.9   41ms  2.00s  2.00s   100   40ms   40ms   40ms
all are well again    138   100   40ms   40ms   40ms   100   40ms   40ms   40ms
overall              1500  80.6   41ms  2.00s  2.00s  96.4   41ms  2.00s  2.00s

Of the same 1500 requests 291 failed without Outrigger (p99 2.00 s) and 53 with
it (p99 2.00 s).
For that it sent 43 retries and refused 0 requests; its breaker opened once. A
POST is never sent twice unless it surely was not processed.
While one replica was in trouble and the others well, 100 % succeeded with
Outrigger, 66.6 % without.
It could not hide "all three are slow": 67.0 % succeeded with it, 67.0 %
without.
Failed without Outrigger: 291: timeout 291.
Failed with Outrigger: 53: timeout 53.
Retries: 43: attempt_timeout 31, 500 12.
Retries not made: 2: method 2.
Refused: 0.
"#;
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn the_words_follow_the_numbers() {
        let none = |_: &str| false;
        let slow = |mark: &str| mark == "slow";
        let cases = [
            // why                                  text                                     said
            ("it helped", closing_of(slow, none, [0, 0]), "100 % succeeded with Outrigger, 92.3 % without."),
            ("it did harm", closing_of(none, slow, [0, 0]), "It made things worse this time."),
            ("it did nothing", closing_of(slow, slow, [0, 0]), "It made no difference to the failures."),
            ("it failed too", closing_of(slow, slow, [0, 0]), "It could not hide \"a is slow\""),
            ("Ctrl-C", closing_of(none, none, [7, 1]), "not counted: 7 requests without it, 1 with it."),
        ];
        for (why, text, said) in cases {
            assert!(text.replace('\n', " ").contains(said), "{why}: {text}");
        }
    }

    #[test]
    fn nothing_measured_nothing_said() {
        let timeline = Timeline::over(Duration::from_secs(30));
        let (without, with) = (Score::new(&timeline), Score::new(&timeline));
        let policies = Policies::default();
        let nothing = Closing {
            timeline: &timeline,
            without: &without,
            with: &with,
            policies: &policies,
            unfinished: [0, 0],
        };
        assert_eq!(closing(&nothing), "It ended before the first answer.\n");
    }
}
