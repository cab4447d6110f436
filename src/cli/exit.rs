//! How a command ends: its exit code, and the one line that says what went wrong.

use std::fmt::Display;
use std::process::ExitCode;

/// Bad usage or a bad configuration.
pub(super) const UNUSABLE: u8 = 2;
/// Anything else that went wrong.
pub(super) const FAILED: u8 = 1;

/// Says on stderr what went wrong, and gives the exit code for it.
pub(super) fn fail(code: u8, message: impl Display) -> ExitCode {
    eprintln!("outrigger: {message}");
    ExitCode::from(code)
}
