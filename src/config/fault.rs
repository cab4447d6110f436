//! One fault by itself, as the admin API takes it: read and checked as if it stood in the file.
//!
//! It has no layers below it, so what it does not say is built in; and no environment, which whoever may reach the admin
//! API need not be allowed to read.

use super::diagnostic::{Problem, Report};
use super::document::{Node, Path, Step};
use super::{Problems, lint, read, syntax};
use crate::policy::fault::{Settings, Switch};

/// Why a text is no fault that can be injected.
#[derive(Clone, Debug)]
pub enum NoFault {
    /// It is no TOML, or no JSON.
    Unreadable(Problems),
    /// It says what cannot be done.
    Unfit(Problems),
}

/// Reads the fault of the upstream `name` from `text`, TOML.
///
/// # Errors
/// All that is wrong with it.
pub fn fault(text: &str, name: &str) -> Result<Settings, NoFault> {
    let mut report = Report::new("body", text);
    let written = syntax::document(text, &mut report);
    if report.has_errors() {
        return Err(NoFault::Unreadable(Problems(report.finish())));
    }
    let path = Path::of(&["upstream", name, "fault"]);
    let mut root = written;
    for key in path.0.iter().rev() {
        let Step::Key(key) = key else { continue };
        let mut outer = Node::empty(&root);
        outer.set(key, root);
        root = outer;
    }
    let settings: Option<Settings> = read::read(&mut root, &Path::default(), &path.0, &mut report);
    if let Some(settings) = &settings {
        let (node, _) = root.follow(&path.0);
        let idle = match settings.mode {
            Switch::Off => Some(("it is switched off", "leave `mode` out; DELETE switches faults off")),
            Switch::Enforce if settings.kinds().next().is_none() && !node.is_torn() => Some((
                "it injects nothing",
                "add one of `delay`, `abort`, `reset`, `truncate`, `slow_first_byte` or `bandwidth`",
            )),
            Switch::Enforce => None,
        };
        if let Some((message, cure)) = idle {
            report.add(Problem::new(message, cure).at(&path, node));
        }
        lint::fault(&root, &path, settings, &mut report);
    }
    match settings {
        Some(settings) if !report.has_errors() => Ok(settings),
        _ => Err(NoFault::Unfit(Problems(report.finish()))),
    }
}

/// The same from `text`, JSON.
///
/// # Errors
/// All that is wrong with it. Its places are those in the same fault as TOML.
pub fn fault_of_json(text: &str, name: &str) -> Result<Settings, NoFault> {
    let unreadable = |message: String, cure: &str| {
        let mut report = Report::new("body", text);
        report.add(Problem::new(message, cure).at_place(0..0));
        NoFault::Unreadable(Problems(report.finish()))
    };
    let value: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| unreadable(format!("this is no JSON: {error}"), "send a JSON object, or TOML"))?;
    if !value.is_object() {
        return Err(unreadable("this is no JSON object".to_owned(), "send one such as { \"reset\": true }"));
    }
    // What TOML cannot say, such as null, no setting takes either.
    let toml = toml::to_string(&value)
        .map_err(|error| unreadable(error.to_string(), "leave out what is null: it has its default then"))?;
    // Of what stands twice the above has kept the last; a table of TOML takes none twice, and says which.
    serde_json::from_str::<toml::Value>(text)
        .map_err(|error| unreadable(error.to_string(), "a key stands once in its object; remove one"))?;
    fault(&toml, name)
}
