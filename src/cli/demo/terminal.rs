//! The terminal while the view stands: alternate screen, no cursor, no echo; all of it given back at the end,
//! a panic included.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::view::{Line, Style};

/// Alternate screen on, cursor hidden, lines not wrapped.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The opposite, and all colours off.
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Terminals that know it show what stands between these two at once.
const BEGIN_UPDATE: &str = "\x1b[?2026h";
const END_UPDATE: &str = "\x1b[?2026l";

/// The terminal in our hands. It is given back when this is dropped.
pub(super) struct Terminal {
    colours: bool,
    /// Whether the screen is still ours; a panic gives it back before it reports.
    is_ours: Arc<AtomicBool>,
    /// As standard input was, where that is a terminal too.
    before: Option<Termios>,
}

impl Terminal {
    /// Takes the terminal; `None` where standard output is none, or is too plain for a screen.
    pub(super) fn take() -> Option<Terminal> {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !io::stdout().is_terminal() || is_dumb {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            // What is typed meanwhile must not push the screen up. Ctrl-C still makes its signal.
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
        }
        let is_ours = Arc::new(AtomicBool::new(true));
        // A panic's message shall stand on the ordinary screen.
        let (report, given_back) = (std::panic::take_hook(), is_ours.clone());
        let this_thread = std::thread::current().id();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() == this_thread && given_back.swap(false, Ordering::Relaxed) {
                write(LEAVE);
            }
            report(panic);
        }));
        write(ENTER);
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Some(Terminal { colours, is_ours, before })
    }

    /// Columns and rows, as they are now.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Shows these lines and nothing else.
    pub(super) fn show(&self, lines: &[Line]) {
        if self.is_ours.load(Ordering::Relaxed) {
            write(&painted(lines, self.colours));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.is_ours.swap(false, Ordering::Relaxed) {
            write(LEAVE);
        }
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The bytes that put `lines` on the screen, whatever stood there.
fn painted(lines: &[Line], colours: bool) -> String {
    let mut out = format!("{BEGIN_UPDATE}\x1b[H");
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push_str("\r\n");
        }
        for (style, text) in &line.0 {
            let code = match style {
                Style::Plain => "",
                Style::Bold => "\x1b[1m",
                Style::Dim => "\x1b[2m",
                Style::Good => "\x1b[32m",
                Style::Fair => "\x1b[33m",
                Style::Bad => "\x1b[31m",
            };
            let is_styled = colours && !code.is_empty();
            if is_styled {
                out.push_str(code);
            }
            out.push_str(text);
            if is_styled {
                out.push_str("\x1b[0m");
            }
        }
        out.push_str("\x1b[K"); // the rest of the line
    }
    out.push_str("\x1b[J"); // what is below
    out.push_str(END_UPDATE);
    out
}

/// Writes at once. A terminal that is gone is no reason to stop.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_overwrites_whatever_stood_there() {
        let lines =
            [Line(vec![(Style::Bold, "now".into()), (Style::Plain, " calm".into())]), Line::default()];
        let bare = "\x1b[?2026h\x1b[Hnow calm\x1b[K\r\n\x1b[K\x1b[J\x1b[?2026l";
        assert_eq!(painted(&lines, false), bare);
        let coloured = "\x1b[?2026h\x1b[H\x1b[1mnow\x1b[0m calm\x1b[K\r\n\x1b[K\x1b[J\x1b[?2026l";
        assert_eq!(painted(&lines, true), coloured);
    }
}
