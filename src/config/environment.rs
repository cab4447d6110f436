//! `${NAME}` and `${NAME:-default}` inside string values.
//!
//! Done after parsing, so that no value from the environment can write TOML. `$${` is a literal `${`. As in a
//! shell, the default of `:-` also stands in for an empty variable.

/// A string with its references filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filled {
    /// What it says now.
    pub(super) text: String,
    /// A part of it came from the environment, not from the file.
    pub(super) secret: bool,
    /// It was one reference and nothing else.
    pub(super) reference: bool,
}

/// Fills in the references in `text`; nothing if it has none.
///
/// # Errors
/// What is wrong with one of them, with the cure after `; `.
pub(super) fn fill(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Filled>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let (mut filled, mut secret, mut references) = (String::new(), false, 0);
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            filled.push_str(&rest[..at - 1]);
            filled.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        filled.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner
            .find('}')
            .ok_or("this `${` is never closed; close it with `}`, or write `$${` for a literal `${`")?;
        let (name, default) =
            inner[..end].split_once(":-").map_or((&inner[..end], None), |(n, d)| (n, Some(d)));
        check(name, default)?;
        references += 1;
        match (environment(name), default) {
            (Some(value), None) => {
                secret = true;
                filled.push_str(&value);
            }
            (Some(value), Some(_)) if !value.is_empty() => {
                secret = true;
                filled.push_str(&value);
            }
            (_, Some(default)) => filled.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment has no {name}; set it, or give a default: `${{{name}:-…}}`"
                ));
            }
        }
        rest = &inner[end + 1..];
    }
    filled.push_str(rest);
    let reference = references == 1 && text.starts_with("${") && text.find('}') == Some(text.len() - 1);
    Ok(Some(Filled { text: filled, secret, reference }))
}

fn check(name: &str, default: Option<&str>) -> Result<(), String> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(format!(
            "{name:?} is not the name of a variable; write `${{NAME}}` or `${{NAME:-default}}`, \
             or `$${{` for a literal `${{`"
        ));
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(format!(
            "the default of {name} holds another `${{`; one inside the other is not possible"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db".to_owned()),
            "PORT" => Some("5432".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn references_are_filled_in() {
        let cases = [
            // why                               text                     becomes         secret reference
            ("one reference is the whole value", "${PORT}", "5432", true, true),
            ("several stand in one value", "${HOST}:${PORT}", "db:5432", true, false),
            ("a default stands in", "${NONE:-5s}", "5s", false, true),
            ("a default may be empty", "a${NONE:-}b", "ab", false, false),
            ("empty counts as missing for a default", "${EMPTY:-x}", "x", false, true),
            ("without a default, empty is empty", "a${EMPTY}b", "ab", true, false),
            ("two dollars are a literal", "$${PORT}", "${PORT}", false, false),
            ("literal and reference", "$${PORT}=${PORT}", "${PORT}=5432", true, false),
            ("a default may hold dashes and colons", "${NONE:-a:-b}", "a:-b", false, true),
            ("text that looks like one reference", "${HOST}${PORT}", "db5432", true, false),
        ];
        for (why, text, becomes, secret, reference) in cases {
            let filled = Filled { text: becomes.to_owned(), secret, reference };
            assert_eq!(fill(text, &environment), Ok(Some(filled)), "{why}");
        }
        for text in ["", "$", "$PORT", "{PORT}", "a $ b"] {
            assert_eq!(fill(text, &environment), Ok(None), "{text:?} has no reference");
        }
    }

    #[test]
    fn values_of_the_environment_are_not_filled_in_again() {
        let environment = |_: &str| Some("${PORT}".to_owned());
        let filled = fill("${A}", &environment).expect("fills").expect("has a reference");
        assert_eq!(filled.text, "${PORT}");
    }

    #[test]
    fn broken_references_say_what_is_wrong() {
        let cases = [
            ("${NONE}", "the environment has no NONE; set it, or give a default: `${NONE:-…}`"),
            ("${PORT", "this `${` is never closed; close it with `}`, or write `$${` for a literal `${`"),
            ("${}", "\"\" is not the name of a variable"),
            ("${A-B}", "\"A-B\" is not the name of a variable"),
            ("${1}", "\"1\" is not the name of a variable"),
            ("${A:-${B}}", "the default of A holds another `${`"),
        ];
        for (text, message) in cases {
            let error = fill(text, &environment).expect_err(text);
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }
}
