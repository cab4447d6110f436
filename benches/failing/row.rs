//! The rows of the table: failing replicas, and too much load.

use std::io;

use crate::Phases;
use crate::fails::Fails;
use crate::overload::Overload;
use crate::report::Report;
use crate::sidecar::Proxy;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// One of three replicas, or all.
    Fails(Fails),
    /// More load than can be served, or a tail that is slow.
    Overload(Overload),
}

impl Row {
    /// All, in the order of the table.
    pub(crate) fn all() -> Vec<Row> {
        let fails = Fails::ALL.into_iter().map(Row::Fails);
        fails.chain(Overload::ALL.into_iter().map(Row::Overload)).collect()
    }

    /// The row of that name, or all of a kind: `fails`, `overload`.
    pub(crate) fn named(name: &str) -> Result<Vec<Row>, String> {
        let is_meant = |row: &Row| {
            let kind = if matches!(row, Row::Fails(_)) { "fails" } else { "overload" };
            name == row.name() || name == kind
        };
        let meant: Vec<_> = Row::all().into_iter().filter(is_meant).collect();
        if meant.is_empty() {
            let names: Vec<_> = Row::all().iter().map(|row| row.name()).collect();
            return Err(format!(
                "no row {name:?}; there are {}; fails and overload are all of a kind",
                names.join(", ")
            ));
        }
        Ok(meant)
    }

    /// What `--row` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Row::Fails(row) => row.name(),
            Row::Overload(row) => row.name(),
        }
    }

    /// What goes wrong.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Row::Fails(row) => row.title(),
            Row::Overload(row) => row.title(),
        }
    }

    /// Runs it against `proxy`, and judges it.
    pub(crate) fn run(self, phases: &Phases, proxy: &Proxy) -> io::Result<Report> {
        match self {
            Row::Fails(row) => row.run(phases, proxy),
            Row::Overload(row) => row.run(phases, proxy),
        }
    }
}
