//! What a request must be for a route or a fault to take it: its methods and headers, as the configuration writes them.
//!
//! Parsed here and matched there: a value that no request could have is refused. Not here: hosts and paths, which only
//! routes look at (`proxy::route`).

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Whether `text` can be a method or the name of a header (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

/// One of a list; reads one element, so that a mistake is found where it stands.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Method(String);

impl TryFrom<String> for Method {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let capitals = text.to_ascii_uppercase();
        if !is_token(&text) || text.len() > 32 {
            return Err(format!("{text:?} is not a method; give one such as \"GET\""));
        }
        if matches!(capitals.as_str(), "CONNECT" | "TRACE") {
            return Err(format!("{text} is never forwarded; leave it out"));
        }
        if text != capitals {
            return Err(format!("{text:?} matches nothing, methods have case; write {capitals:?}"));
        }
        Ok(Self(text))
    }
}

/// Reads methods as requests write them: in capitals.
///
/// # Errors
/// What is no method that a proxy forwards, with the cure.
pub fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let methods = Vec::<Method>::deserialize(deserializer)?;
    Ok(methods.into_iter().map(|method| method.0).collect())
}

/// The value that a header must have.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct HeaderValue(String);

impl TryFrom<String> for HeaderValue {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.trim() != text {
            return Err(format!(
                "{text:?} matches nothing; headers come without spaces around: {:?}",
                text.trim()
            ));
        }
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(format!("{text:?} matches nothing; leave the control characters out"));
        }
        Ok(Self(text))
    }
}

/// Reads headers with the values that they must have.
///
/// # Errors
/// What no header could be called, and what no header could say, with the cure.
pub fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let headers = BTreeMap::<String, HeaderValue>::deserialize(deserializer)?;
    if let Some(name) = headers.keys().find(|name| !is_token(name)) {
        return Err(D::Error::custom(format!(
            "`{name}` is not the name of a header; give one such as `x-tenant`"
        )));
    }
    Ok(headers.into_iter().map(|(name, value)| (name, value.0)).collect())
}
