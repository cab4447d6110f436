//! `/faults/{upstream}`: what a request with a body says there, and who it is about.
//!
//! Pure: bytes in, a fault or the reason why it is none out. Not here: who may ask (`guard`), and what becomes of it
//! (`Control`).

use hyper::{HeaderMap, StatusCode, header};
use serde::de::IgnoredAny;

use crate::config::{self, NoFault};
use crate::policy::fault::Settings;

/// How large the body of a `PUT` may be.
pub(super) const MAX_BODY_BYTES: usize = 16 << 10;

/// Why a body is no fault.
pub(super) struct Unfit {
    /// 400 for what cannot be read, 422 for what cannot be done.
    pub(super) status: StatusCode,
    /// What is wrong, where, and what to do.
    pub(super) text: String,
}

/// The fault that `body` says for `upstream`: JSON where the request says so or it looks like JSON, else TOML.
pub(super) fn read(headers: &HeaderMap, body: &[u8], upstream: &str) -> Result<Settings, Unfit> {
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(Unfit {
            status: StatusCode::BAD_REQUEST,
            text: "the body is no text in UTF-8".to_owned(),
        });
    };
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // What begins with a bracket is a table of TOML, unless it is a list of JSON.
    let is_json = content_type.contains("json")
        || text.trim_start().starts_with('{')
        || text.trim_start().starts_with('[') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    let fault = if is_json { config::fault_of_json(text, upstream) } else { config::fault(text, upstream) };
    fault.map_err(|unfit| {
        let (status, problems) = match unfit {
            NoFault::Unreadable(problems) => (StatusCode::BAD_REQUEST, problems),
            NoFault::Unfit(problems) => (StatusCode::UNPROCESSABLE_ENTITY, problems),
        };
        Unfit { status, text: problems.to_string() }
    })
}

/// The upstream whose name is this segment of a path; names hold no `%` but that of an escape.
pub(super) fn upstream(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped =
            digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_out_of_a_path() {
        for (segment, name) in [
            ("app", "app"),
            ("a%3Ab", "a:b"),
            ("%61pp", "app"),
            ("100%", "100%"),
            ("%zz", "%zz"),
            ("%c3%a4", "ä"),
        ] {
            assert_eq!(upstream(segment), name, "{segment}");
        }
    }

    fn said(content_type: &str, body: &str) -> Result<Settings, (u16, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().expect("a value"));
        read(&headers, body.as_bytes(), "app").map_err(|unfit| (unfit.status.as_u16(), unfit.text))
    }

    #[test]
    fn json_and_toml_say_the_same() {
        let toml =
            "abort = { ratio = 0.1, status = 504 }\nfor = \"1m\"\nmatch.headers = { x-chaos = \"on\" }";
        let json = r#"{"abort": {"ratio": 0.1, "status": 504}, "for": "1m", "match": {"headers": {"x-chaos": "on"}}}"#;
        let fault = said("application/toml", toml).expect("a fault");
        assert_eq!(said("application/json", json).expect("a fault"), fault);
        assert_eq!(said("text/plain", json).expect("a fault"), fault, "it begins as JSON does");
        assert_eq!(fault.abort.expect("it is there").status, 504);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_its_cure() {
        let cases = [
            // why              type            body                          status  what is said
            ("no TOML", "application/toml", "reset = ", 400, "body:1"),
            ("no JSON", "application/json", "{", 400, "this is no JSON"),
            ("no object", "application/json", "[1]", 400, "this is no JSON object"),
            ("a list", "application/x-www-form-urlencoded", " []", 400, "this is no JSON object"),
            ("a table of TOML", "application/toml", "[abort]\nratio = 0.3", 422, "hits 30 %"),
            (
                "a key twice",
                "application/json",
                r#"{"reset": {"ratio": 0.1}, "reset": {"ratio": 0.2}}"#,
                400,
                "duplicate key: `reset` at line 1 column",
            ),
            (
                "a key twice within",
                "application/json",
                r#"{"reset": {"ratio": 0.1, "ratio": 0.2}}"#,
                400,
                "duplicate key: `ratio` at line 1 column",
            ),
            ("a null", "application/json", "{\"reset\": null}", 400, "leave out what is null"),
            ("a typing error", "application/toml", "delya = \"1s\"", 422, "did you mean `delay`?"),
            ("another unit", "application/toml", "\n delay = \"1 s\"\n bandwidth = \"1KiB\"", 422, "body:3:"),
            ("nothing", "application/toml", "", 422, "it injects nothing"),
            (
                "nothing that holds",
                "application/toml",
                "mode = \"off\"\nreset = true",
                422,
                "DELETE switches faults off",
            ),
            ("too wide", "application/json", "{\"reset\": true}", 422, "allow_wide = true"),
            ("too wide", "application/toml", "abort.ratio = 0.3", 422, "hits 30 % of the requests"),
        ];
        for (why, content_type, body, status, text) in cases {
            let (found, said) = said(content_type, body).expect_err(why);
            assert_eq!(found, status, "{why}: {said}");
            assert!(said.contains(text), "{why}: {said}");
        }
    }
}
