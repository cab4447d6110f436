//! A part of a request by which requests are told apart: what `balance.hash.key`, `split_by` and a rate limit's
//! `key` take from it.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Key {
    /// `header:NAME`: the field's first value.
    Header(Box<str>),
    /// `cookie:NAME`: the cookie's value.
    Cookie(Box<str>),
    /// `path`: the path, without the query.
    Path,
    /// `client_ip`: the client's address.
    ClientIp,
}

const KEYS: &str = "give \"header:NAME\", \"cookie:NAME\", \"path\" or \"client_ip\"";

impl TryFrom<String> for Key {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let name = |name: &str, what: &str| {
            let fits = is_token(name.as_bytes()).then(|| Box::from(name));
            fits.ok_or_else(|| format!("{text:?} does not name a {what}; {KEYS}"))
        };
        match text.split_once(':') {
            Some(("header", rest)) => Ok(Key::Header(name(&rest.to_ascii_lowercase(), "header")?)),
            Some(("cookie", rest)) => Ok(Key::Cookie(name(rest, "cookie")?)),
            None if text == "path" => Ok(Key::Path),
            None if text == "client_ip" => Ok(Key::ClientIp),
            _ => Err(format!("{text:?} is no part of a request that can be a key; {KEYS}")),
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        match key {
            Key::Header(name) => format!("header:{name}"),
            Key::Cookie(name) => format!("cookie:{name}"),
            Key::Path => "path".to_owned(),
            Key::ClientIp => "client_ip".to_owned(),
        }
    }
}

impl JsonSchema for Key {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HashKey".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(header:.+|cookie:.+|path|client_ip)$",
            "description": "`header:NAME`, `cookie:NAME`, `path` or `client_ip`"
        })
    }
}

/// Whether `text` can be the name of a field or of a cookie (RFC 9110 §5.6.2).
fn is_token(text: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(fits)
}

/// The value of the cookie `name` in a Cookie field (RFC 6265 §4.2).
pub fn cookie<'a>(field: &'a [u8], name: &str) -> Option<&'a [u8]> {
    field.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
    })
}

/// The hash of a key's value: the same in every process.
pub fn hash(value: &[u8]) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
    hasher.write(value);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_of_four() {
        let parsed = |text: &str| Key::try_from(text.to_owned());
        for text in ["header:x-user", "cookie:Session", "path", "client_ip"] {
            assert_eq!(parsed(text).map(String::from), Ok(text.to_owned()));
        }
        assert_eq!(parsed("header:X-User"), Ok(Key::Header("x-user".into())));
        for text in ["", "header", "header:", "header:a b", "cookie:", "query:id", "path:/x"] {
            assert!(parsed(text).expect_err(text).contains("give \"header:NAME\""), "{text}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let cases = [
            ("session=1", Some("1")),
            ("a=b; session=x=y; c=d", Some("x=y")),
            ("xsession=1;session=2", Some("2")),
            ("session", None),
            ("sessions=1", None),
            ("", None),
        ];
        for (field, expected) in cases {
            assert_eq!(cookie(field.as_bytes(), "session"), expected.map(str::as_bytes), "{field}");
        }
    }
}
