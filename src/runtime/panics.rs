//! A panic is one line of the log, where std would write several on stderr. What it costs: `proxy::panics`.

use std::panic::PanicHookInfo;

/// From now on each panic of this process is one line of the log.
pub(super) fn log_them() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(thread = std::thread::current().name().unwrap_or("unnamed"), "{}", line(panic));
    }));
}

fn line(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("without a message").replace('\n', " ");
    match panic.location() {
        Some(place) => format!(
            "panicked at {}:{}: {message}; this is a bug, please report it",
            place.file(),
            place.line()
        ),
        None => format!("panicked: {message}; this is a bug, please report it"),
    }
}
