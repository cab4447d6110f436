//! Which configuration file is meant, for `run` and for the commands that talk to a running sidecar.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment variable that names the file.
const VARIABLE: &str = "OUTRIGGER_CONFIG";
/// Where it is looked for when nobody names one.
const PLACES: [&str; 2] = ["/etc/outrigger/outrigger.toml", "config/outrigger.toml"];

/// `-c FILE`, shared by the subcommands.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigFile {
    /// Configuration file [default: $OUTRIGGER_CONFIG, /etc/outrigger/outrigger.toml, config/outrigger.toml]
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file that is meant; one that is named need not exist.
    pub(super) fn find(&self) -> Result<PathBuf, String> {
        find(self.config.as_deref(), std::env::var_os(VARIABLE), Path::exists)
    }
}

fn find(
    given: Option<&Path>,
    variable: Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Result<PathBuf, String> {
    let named = given.map(Path::to_owned);
    let named = named.or_else(|| variable.filter(|name| !name.is_empty()).map(PathBuf::from));
    named.or_else(|| PLACES.iter().map(PathBuf::from).find(|place| exists(place))).ok_or_else(|| {
        let [first, second] = PLACES;
        format!("no configuration: neither {first} nor {second} exists; name one with -c FILE or {VARIABLE}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_names_the_file() {
        let [etc, here] = PLACES;
        #[rustfmt::skip]
        let cases = [
            // why                                -c         variable      existing          found
            ("-c comes first",                    Some("a"), Some("b"),    &[etc, here][..], Some("a")),
            ("then the variable",                 None,      Some("b"),    &[etc, here],     Some("b")),
            ("an empty variable names nothing",   None,      Some(""),     &[etc, here],     Some(etc)),
            ("the system's file",                 None,      None,         &[etc, here],     Some(etc)),
            ("the project's file",                None,      None,         &[here],          Some(here)),
            ("what is named need not exist",      Some("a"), None,         &[],              Some("a")),
            ("nothing there",                     None,      None,         &[],              None),
        ];
        for (why, given, variable, existing, expected) in cases {
            let exists = |path: &Path| existing.iter().any(|place| path == Path::new(place));
            let found = find(given.map(Path::new), variable.map(OsString::from), exists).ok();
            assert_eq!(found.as_deref(), expected.map(Path::new), "{why}");
        }
    }
}
