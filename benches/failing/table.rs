//! The table that a person reads.

use std::fmt::Write;

use crate::report::Report;

/// All rows, each with its figures beside what is required, and below them what else was seen.
pub(crate) fn draw(reports: &[Report]) -> String {
    let figures = || reports.iter().flat_map(|report| &report.figures);
    let what = figures().map(|figure| figure.what.len()).max().unwrap_or(0);
    let measured = figures().map(|figure| figure.measured.len()).max().unwrap_or(0).max("measured".len());
    let required = figures().map(|figure| figure.required.len()).max().unwrap_or(0);
    let mut text = format!("  {:what$}  {:>measured$}  {:required$}\n", "", "measured", "required");
    for report in reports {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{}: {}", report.name, report.title);
        for figure in &report.figures {
            let _ = writeln!(
                text,
                "  {:what$}  {:>measured$}  {:required$}  {}",
                figure.what,
                figure.measured,
                figure.required,
                if figure.passes { "pass" } else { "MISS" },
            );
        }
        for (about, note) in &report.notes {
            let _ = writeln!(text, "    {about:17}  {note}");
        }
    }
    let missing: Vec<_> = reports.iter().filter(|report| report.misses()).map(|report| report.name).collect();
    let _ = match missing.as_slice() {
        [] => writeln!(text, "\nAll {} rows are as required.", reports.len()),
        missing => {
            writeln!(text, "\n{} of {} rows miss: {}", missing.len(), reports.len(), missing.join(", "))
        }
    };
    text
}
