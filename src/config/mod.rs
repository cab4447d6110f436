//! TOML text to checked values.
//!
//! A file becomes a tree with places (`syntax`, `document`), references to the environment are filled in (`environment`),
//! what is not built is set aside (`unbuilt`), layers are merged (`layers`), serde reads the settings of each
//! room (`read`), and what only shows between two keys is checked (`lint`). Each step reports all that it finds
//! and goes on with the rest, so that one run shows every mistake (`diagnostic`).
//!
//! Settings live with what they set, in the rooms below; nobody there knows this one.

mod diagnostic;
mod document;
mod environment;
mod fault;
mod layers;
mod lint;
mod origin;
mod read;
mod schema;
mod settings;
mod syntax;
mod unbuilt;

use std::io::Read;
use std::path::Path as FilePath;

pub use diagnostic::{Diagnostic, Problems, Severity};
pub use document::Layer;
pub use fault::{NoFault, fault, fault_of_json};
pub use origin::{Origin, Origins};
pub use schema::schema;
pub use settings::{Admin, Config, Server};

use diagnostic::{Problem, Report};
use document::{Node, Path, Value};

/// The largest file that is read, in bytes.
pub const MAX_FILE_SIZE: usize = 1 << 20;

/// A configuration that can run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// What is hardly meant as it stands.
    pub warnings: Vec<Diagnostic>,
    /// A hash of the file's text, in hex: the same text has the same digest.
    pub digest: String,
    /// What is in force as TOML; what came from the environment shows as `***`.
    pub redacted: String,
    /// Where each value comes from.
    pub origins: Origins,
}

/// Reads and checks the file at `path`, with the environment of this process.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &FilePath) -> Result<Loaded, Problems> {
    let file = path.display().to_string();
    let unreadable = |message: &str, cure: &str| Problems(vec![Diagnostic::of_file(&file, message, cure)]);
    let mut bytes = Vec::new();
    // A pipe would keep whoever opens it waiting for its other end.
    let is_special = std::fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir());
    if is_special {
        return Err(unreadable("is not a regular file", "name a file that holds the configuration"));
    }
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_SIZE as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            use std::io::ErrorKind as Kind;
            let cure = match error.kind() {
                Kind::NotFound => "check the path",
                Kind::PermissionDenied => "let the user that runs Outrigger read it (`chmod a+r`)",
                Kind::IsADirectory => "name the file in it",
                _ => "check that it is a readable file",
            };
            unreadable(&format!("cannot be read: {error}"), cure)
        })?;
    if bytes.len() > MAX_FILE_SIZE {
        return Err(unreadable("is larger than 1 MiB", "a configuration is a few KiB; check the path"));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, &file, &|name| std::env::var(name).ok()),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = format!("is not UTF-8 (line {line})");
            Err(unreadable(&message, "save it as UTF-8; a configuration is a text file"))
        }
    }
}

/// Checks `text`, which stands in `file`. `environment` answers for the variables it names.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(
    text: &str,
    file: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let mut report = Report::new(file, text);
    let mut root = syntax::document(text, &mut report);
    // What seems to be missing may only be unreadable: then it is no problem of its own.
    let whole = !report.has_errors();
    fill(&mut root, &mut Path::default(), environment, &mut report);
    unbuilt::take_out(&mut root, &mut report);
    let config = layers::assemble(&mut root, &mut report);
    lint::check(&config, &root, whole, &mut report);
    if report.has_errors() {
        return Err(Problems(report.finish()));
    }
    let origins = Origins::of(&root, text);
    let redacted = origins.redact(&config);
    let digest = format!("{:016x}", fnv(text.as_bytes()));
    Ok(Loaded { config, warnings: report.finish(), digest, redacted, origins })
}

/// Fills in the references to the environment in all strings.
fn fill(node: &mut Node, path: &mut Path, environment: &dyn Fn(&str) -> Option<String>, report: &mut Report) {
    let problem = match &mut node.value {
        Value::String(text) => match environment::fill(text, environment) {
            Ok(None) => None,
            Ok(Some(filled)) => {
                *text = filled.text;
                (node.secret, node.reference) = (filled.secret, filled.reference);
                None
            }
            Err(message) => Some(Problem::of_text(&message)),
        },
        Value::List(elements) => {
            for (index, node) in elements.iter_mut().enumerate() {
                fill(node, &mut path.index(index), environment, report);
            }
            None
        }
        Value::Table(entries) => {
            for (key, node) in entries {
                fill(node, &mut path.key(key), environment, report);
            }
            None
        }
        _ => None,
    };
    if let Some(problem) = problem {
        report.add(problem.at(path, node));
        node.removed = true;
    }
}

/// FNV-1a: tells texts apart; not against somebody who wants them to collide.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
