//! The closing table, and what happened in a few sentences that hold for the numbers above them.

use std::fmt::Write;

use super::policies::Policies;
use super::score::{Score, Tally};
use super::timeline::{Phase, Timeline};
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
    let _ = writeln!(out, "{:26}{:^27}{:^27}", "", "without Outrigger", "with Outrigger");
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
    let _ = writeln!(out, "Failed without Outrigger: {}.", listed(&failure_counts(without)));
    let _ = writeln!(out, "Failed with Outrigger: {}.", listed(&failure_counts(with)));
    let _ = writeln!(out, "Retries: {}. Not made: {}.", listed(&policies.retries), listed(&policies.skipped));
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
    let Closing { timeline, policies, unfinished, .. } = closing;
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
    let phases = || timeline.phases().iter().enumerate();
    let gap = |index: usize| {
        let success = |score: &Score| score.phases[index].success();
        Some(success(closing.with)? - success(closing.without)?)
    };
    let by_gap = |one: &(usize, &Phase), other: &(usize, &Phase)| gap(one.0).partial_cmp(&gap(other.0));
    let widest = phases()
        .filter(|(index, _)| gap(*index).is_some_and(|gap| gap > 0.01))
        .max_by(|one, other| by_gap(one, other).expect("numbers"));
    if let Some((index, phase)) = widest {
        said.push(format!(
            "It helped most while \"{}\": {} against {} succeeded.",
            phase.name,
            percent(closing.with.phases[index].success()),
            percent(closing.without.phases[index].success()),
        ));
    }
    let hardest = phases()
        .filter(|(index, _)| closing.with.phases[*index].success().is_some_and(|success| success < 0.9))
        .min_by(|one, other| {
            let success = |index: usize| closing.with.phases[index].success();
            success(one.0).partial_cmp(&success(other.0)).expect("numbers")
        });
    if let Some((index, phase)) = hardest {
        let (without, with) = (&closing.without.phases[index], &closing.with.phases[index]);
        let mut sentence = format!(
            "It could not hide \"{}\": {} succeeded with it, {} without",
            phase.name,
            percent(with.success()),
            percent(without.success()),
        );
        if with.latency.quantile(0.5) < without.latency.quantile(0.5).map(|median| median / 2) {
            let (with, without) = (quantiles(with).p50, quantiles(without).p50);
            let _ = write!(sentence, "; but half of the callers knew after {with} instead of {without}");
        }
        said.push(sentence + ".");
    }
    if *unfinished != [0, 0] {
        let [without, with] = unfinished;
        said.push(format!(
            "Still under way at the end, and not counted: {without} requests without it, {with} with it."
        ));
    }
    said
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
        for line in text.lines().filter(|line| !line.starts_with("Failed") && !line.starts_with("Retries")) {
            assert!(line.chars().count() <= 80, "{line:?} is wider than 80");
        }
        text
    }

    #[test]
    fn the_table_compares_each_phase() {
        let text = closing_of(|mark| !mark.is_empty(), |mark| mark == "all slow", [0, 0]);
        let expected = r#"                               without Outrigger           with Outrigger       
phase                sent  ok %    p50    p99  worst  ok %    p50    p99  worst
all is well           100   100   40ms   40ms   40ms   100   40ms   40ms   40ms
a is slow             150  66.6   41ms  2.00s  2.00s   100   40ms   40ms   40ms
a is well again        75   100   40ms   40ms   40ms   100   40ms   40ms   40ms
b answers 500, 503    125  67.2   41ms  2.00s  2.00s   100   40ms   40ms   40ms
b is well again        50   100   40ms   40ms   40ms   100   40ms   40ms   40ms
c stalls              150  66.6   41ms  2.00s  2.00s   100   40ms   40ms   40ms
c is well again        75   100   40ms   40ms   40ms   100   40ms   40ms   40ms
a refuses connects    125  66.4   41ms  2.00s  2.00s   100   40ms   40ms   40ms
a is back              50   100   40ms   40ms   40ms   100   40ms   40ms   40ms
b resets mid-body     125  66.4   41ms  2.00s  2.00s   100   40ms   40ms   40ms
b is well again        50   100   40ms   40ms   40ms   100   40ms   40ms   40ms
all three are slow    200  67.0   41ms  2.00s  2.00s  67.0   41ms  2.00s  2.00s
all are well again    225   100   40ms   40ms   40ms   100   40ms   40ms   40ms
overall              1500  80.6   41ms  2.00s  2.00s  95.6   41ms  2.00s  2.00s

Of the same 1500 requests 291 failed without Outrigger (p99 2.00 s) and 66 with
it (p99 2.00 s).
For that it sent 43 retries and refused 0 requests; its breaker opened once. A
POST is never sent twice unless it surely was not processed.
It helped most while "b resets mid-body": 100 % against 66.4 % succeeded.
It could not hide "all three are slow": 67.0 % succeeded with it, 67.0 %
without.
Failed without Outrigger: 291: timeout 291.
Failed with Outrigger: 66: timeout 66.
Retries: 43: attempt_timeout 31, 500 12. Not made: 2: method 2.
"#;
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn the_words_follow_the_numbers() {
        let none = |_: &str| false;
        let slow = |mark: &str| mark == "slow";
        let cases = [
            // why                                  text                                     said
            ("it helped", closing_of(slow, none, [0, 0]), "It helped most while \"a is slow\""),
            ("it did harm", closing_of(none, slow, [0, 0]), "It made things worse this time."),
            ("it did nothing", closing_of(slow, slow, [0, 0]), "It made no difference to the failures."),
            ("it failed too", closing_of(slow, slow, [0, 0]), "It could not hide \"a is slow\""),
            ("Ctrl-C", closing_of(none, none, [7, 1]), "not counted: 7 requests without it, 1 with it."),
        ];
        for (why, text, said) in cases {
            assert!(text.replace('\n', " ").contains(said), "{why}: {text}");
        }
        assert!(!closing_of(none, slow, [0, 0]).contains("helped"), "no praise for harm");
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
