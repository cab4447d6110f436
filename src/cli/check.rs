//! `outrigger check`: whether a file can run, and everything that is wrong with it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::exit::{FAILED, UNUSABLE};
use crate::config::{self, Diagnostic, Problems, Severity};

/// Check configuration files without running them
///
/// Prints everything that is wrong with a file in one go, each mistake with its place and its cure. Exits with 0
/// if nothing is wrong, with 1 if there are warnings and `--strict`, with 2 if a file cannot run.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Warnings count as well.
    #[arg(long)]
    strict: bool,
    /// `text` for people, `json` for editors and CI: one array with all that was found in all files.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Runs the subcommand. What is wrong goes to stderr as text, to stdout as JSON.
pub(super) fn run(args: &Args) -> ExitCode {
    let mut found = Vec::new();
    for file in &args.files {
        match config::load(file) {
            Ok(loaded) => found.extend(loaded.warnings),
            Err(Problems(problems)) => found.extend(problems),
        }
    }
    // Nobody is left to be told when the reader of the output has gone.
    let _ = match args.format {
        Format::Text => print_text(&found, &args.files),
        Format::Json => writeln!(std::io::stdout(), "{:#}", Problems(found.clone()).json()),
    };
    let is = |severity| found.iter().any(|diagnostic| diagnostic.severity == severity);
    match (is(Severity::Error), is(Severity::Warning)) {
        (true, _) => ExitCode::from(UNUSABLE),
        (false, true) if args.strict => ExitCode::from(FAILED),
        _ => ExitCode::SUCCESS,
    }
}

fn print_text(found: &[Diagnostic], files: &[PathBuf]) -> std::io::Result<()> {
    let mut out = std::io::stderr().lock();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for diagnostic in found {
        let behind = if diagnostic.line > 0 { "\n" } else { "" };
        writeln!(out, "{}{behind}", diagnostic.render(colour))?;
    }
    let unread = |file: &str| found.iter().any(|found| found.line == 0 && *found.file == *file);
    for file in files.iter().map(|file| file.display().to_string()).filter(|file| !unread(file)) {
        let count = |severity| {
            found.iter().filter(|found| *found.file == *file && found.severity == severity).count()
        };
        match (count(Severity::Error), count(Severity::Warning)) {
            (0, 0) => writeln!(out, "{file}: ok")?,
            (0, warnings) => writeln!(out, "{file}: ok, with {}", plural(warnings, "warning"))?,
            (errors, 0) => writeln!(out, "{file}: {}", plural(errors, "error"))?,
            (errors, warnings) => {
                writeln!(out, "{file}: {}, {}", plural(errors, "error"), plural(warnings, "warning"))?;
            }
        }
    }
    Ok(())
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
