//! Which requests go to which upstream: what a route says, and whether a request matches it.
//!
//! Matching looks at the path after its dot segments are removed and its unreserved characters decoded
//! (RFC 3986 §6.2.2), so that `/a/../admin` and `/%61dmin` are taken by the route of `/admin`, whatever the
//! upstream makes of them. What goes up is what came, unless `rewrite` says otherwise.
//!
//! PERF: on every request's way. A path that needs no normalising, nearly every one, is borrowed; hosts and
//! prefixes are prepared at load; nothing is allocated. Rejected: a tree over all routes; a sidecar has a
//! handful, and the first match must win.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::policy::{retry, timeout};

/// `[[listener.route]]`: which requests go to which upstream.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its name in metrics and log. Default `"default"`.
    #[serde(default = "default_name", deserialize_with = "name")]
    pub name: String,
    /// What a request must be. Default: any request.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// The upstream it goes to.
    pub upstream: String,
    /// What of the request is changed on its way up. Default: nothing.
    #[serde(default)]
    pub rewrite: Rewrite,
    /// The timeouts in force on this route, where it says any: the upstream's with the route's keys over them.
    #[serde(default)]
    pub timeout: Option<timeout::Settings>,
    /// The retries in force on this route, where it says any: the upstream's with the route's keys over them.
    #[serde(default)]
    pub retry: Option<retry::Settings>,
}

/// `match`: what a request must be; all that is written must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The host, without case and port; `"*.example.org"` takes every name below it. Default: any.
    #[serde(deserialize_with = "host")]
    pub host: Option<String>,
    /// The beginning of the path; ends at a segment, so `"/pay"` takes `/pay` and `/pay/1`, not `/payments`.
    /// A slash at its end makes no difference. Default: any.
    #[serde(deserialize_with = "prefix")]
    pub path_prefix: Option<String>,
    /// The methods, as requests write them: in capitals. Default: any.
    #[serde(deserialize_with = "methods")]
    pub methods: Vec<String>,
    /// Headers that must have exactly these values. Default: none.
    #[serde(deserialize_with = "headers")]
    pub headers: BTreeMap<String, String>,
}

/// `rewrite`: what of the request is changed on its way up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    /// Stands in place of `match.path_prefix`, or before the path if there is none. Default: the path goes up
    /// as it came.
    #[serde(deserialize_with = "prefix")]
    pub prefix: Option<String>,
    /// The Host sent up, over the upstream's `host`. Default: the upstream's.
    #[serde(deserialize_with = "some_authority")]
    pub host: Option<String>,
}

/// A route, prepared for matching.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in metrics and log.
    pub name: Arc<str>,
    /// What it says.
    pub settings: Settings,
    host: Host,
    /// Without the slash at its end, so `""` takes every path.
    prefix: Option<Box<[u8]>>,
}

/// The hosts that a route takes, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    Name(Box<[u8]>),
    /// `.example.org`: every name that ends so.
    Below(Box<[u8]>),
}

/// What of a request decides which route takes it.
pub struct Request<'a> {
    /// As it came.
    pub method: &'a [u8],
    /// Its authority: may have a port, may be empty.
    pub host: &'a [u8],
    /// What [`normal_path`] made of its path.
    pub normal_path: &'a [u8],
    /// Whether it has a field of this name (in any case) with exactly this value.
    pub has_header: &'a dyn Fn(&str, &str) -> bool,
}

impl Route {
    /// Prepares what `settings` say.
    pub fn new(settings: &Settings) -> Self {
        let host = match settings.matches.host.as_deref().map(str::to_ascii_lowercase) {
            None => Host::Any,
            Some(host) => match host.strip_prefix('*') {
                Some(below) => Host::Below(below.as_bytes().into()),
                None => Host::Name(host.as_bytes().into()),
            },
        };
        let prefix = settings.matches.path_prefix.as_deref().map(|prefix| {
            let prefix = normal_path(prefix.as_bytes());
            Box::from(prefix.strip_suffix(b"/").unwrap_or(&prefix))
        });
        Self { name: settings.name.as_str().into(), settings: settings.clone(), host, prefix }
    }

    /// Whether it takes `request`.
    pub fn matches(&self, request: &Request<'_>) -> bool {
        let wanted = &self.settings.matches;
        self.host.takes(request.host)
            && self.prefix.as_ref().is_none_or(|prefix| behind(prefix, request.normal_path).is_some())
            && (wanted.methods.is_empty()
                || wanted.methods.iter().any(|method| method.as_bytes() == request.method))
            && wanted.headers.iter().all(|(name, value)| (request.has_header)(name, value))
    }

    /// Whether it takes every request that `other` would take.
    pub fn covers(&self, other: &Route) -> bool {
        let (mine, theirs) = (&self.settings.matches, &other.settings.matches);
        let hosts = match (&self.host, &other.host) {
            (Host::Any, _) => true,
            (Host::Name(mine), Host::Name(theirs)) => mine == theirs,
            (Host::Below(mine), Host::Name(theirs)) => theirs.len() > mine.len() && theirs.ends_with(mine),
            (Host::Below(mine), Host::Below(theirs)) => theirs.ends_with(mine),
            _ => false,
        };
        let paths = match (&self.prefix, &other.prefix) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => behind(mine, theirs).is_some(),
            (Some(_), None) => false,
        };
        let methods = mine.methods.is_empty()
            || !theirs.methods.is_empty()
                && theirs.methods.iter().all(|method| mine.methods.contains(method));
        let headers = mine.headers.iter().all(|(name, value)| {
            theirs.headers.iter().any(|(other, theirs)| name.eq_ignore_ascii_case(other) && value == theirs)
        });
        hosts && paths && methods && headers
    }

    /// Whether it takes every request.
    pub fn takes_all(&self) -> bool {
        self.settings.matches == Match::default()
    }

    /// Whether the path goes up other than it came.
    pub fn rewrites(&self) -> bool {
        self.settings.rewrite.prefix.is_some()
    }

    /// Appends what goes up in place of `path_and_query`, which this route has taken: `rewrite.prefix` for the
    /// prefix that matched, the rest of the normal path, and the query as it came. Never begins with `//`,
    /// which an upstream could take for a host.
    pub fn rewritten(&self, path_and_query: &[u8], out: &mut Vec<u8>) {
        let Some(new) = &self.settings.rewrite.prefix else { return out.extend_from_slice(path_and_query) };
        if !path_and_query.starts_with(b"/") {
            return out.extend_from_slice(path_and_query); // `OPTIONS *` has no path
        }
        let path = normal_path(path_and_query);
        let rest = behind(self.prefix.as_deref().unwrap_or_default(), &path).unwrap_or(&path);
        let segments = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
        match (&rest[..segments], &rest[segments..]) {
            (b"", b"") => out.extend_from_slice(new.as_bytes()),
            (_, rest) => {
                out.extend_from_slice(new.strip_suffix('/').unwrap_or(new).as_bytes());
                out.push(b'/');
                out.extend_from_slice(rest);
            }
        }
        out.extend_from_slice(&path_and_query[path_end(path_and_query)..]);
    }
}

impl Host {
    fn takes(&self, authority: &[u8]) -> bool {
        match self {
            Host::Any => true,
            Host::Name(name) => without_port(authority).eq_ignore_ascii_case(name),
            Host::Below(end) => {
                let host = without_port(authority);
                host.len() > end.len() && host[host.len() - end.len()..].eq_ignore_ascii_case(end)
            }
        }
    }
}

/// A host without its port, without the dot that may end a full name.
fn without_port(authority: &[u8]) -> &[u8] {
    let host = match authority.iter().rposition(|byte| *byte == b':') {
        // The colons of an IPv6 address stand in brackets.
        Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
        _ => authority,
    };
    host.strip_suffix(b".").unwrap_or(host)
}

/// What of `path` stands behind `prefix`, if that ends at a segment; `prefix` has no slash at its end.
fn behind<'a>(prefix: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Where the path of a target ends, and its query begins.
fn path_end(target: &[u8]) -> usize {
    target.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len())
}

/// The path of `path_and_query` as it is matched: unreserved characters decoded first, since `%2e%2e` is `..`,
/// then dot segments removed (RFC 3986 §6.2.2.2, §5.2.4). Borrowed if that changes nothing.
pub fn normal_path(path_and_query: &[u8]) -> Cow<'_, [u8]> {
    let path = &path_and_query[..path_end(path_and_query)];
    let odd = |(at, byte): (usize, &u8)| *byte == b'%' || *byte == b'.' && at > 0 && path[at - 1] == b'/';
    if !path.iter().enumerate().any(odd) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(without_dot_segments(&decoded(path)))
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut at = 0;
    while at < path.len() {
        let code =
            (path[at] == b'%').then(|| Some((hex(path.get(at + 1))? * 16 + hex(path.get(at + 2))?) as u8));
        match code.flatten() {
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    if !path.starts_with(b"/") {
        return path.to_vec();
    }
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if is_last {
            out.push(b'/');
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

fn default_name() -> String {
    "default".to_owned()
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_name(&name).map_err(D::Error::custom)?;
    Ok(name)
}

/// Checks a name that becomes a label of metrics, a word in the log, and a part of paths in messages.
///
/// # Errors
/// What is not such a name, with the cure.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) {
        let cure = "give 1 to 63 letters, digits, or any of \"-\", \"_\", \".\", \":\"";
        return Err(format!("{name:?} cannot be a name; {cure}"));
    }
    Ok(())
}

/// Whether `text` can be a method or the name of a header (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

/// Checks a host as it stands in a Host field: a name or an address, with a port or without.
///
/// # Errors
/// What is not such a host, with the cure.
pub fn check_authority(text: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let host = without_port(text.as_bytes());
    let port = text.get(host.len()..).unwrap_or_default().trim_start_matches('.');
    let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let ip = text.strip_prefix('[').and_then(|ip| ip.split_once(']')).map(|(ip, _)| ip);
    let host_fits = match ip {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.iter().all(|byte| fits(*byte)),
    };
    if text.len() > 255 || !host_fits || !port_fits {
        return Err(format!("{text:?} is not a host; give a name such as \"payments.internal\""));
    }
    Ok(())
}

fn some_authority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    check_authority(&text).map_err(D::Error::custom)?;
    Ok(Some(text))
}

fn host<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let name = text.strip_prefix("*.").unwrap_or(&text);
    if name.contains('*') {
        let cure = "a \"*\" stands only at the beginning, as in \"*.example.org\"";
        return Err(D::Error::custom(format!("{text:?} is not a host to match; {cure}")));
    }
    check_authority(name).map_err(D::Error::custom)?;
    let host = String::from_utf8_lossy(without_port(name.as_bytes())).into_owned();
    if host.len() != name.strip_suffix('.').unwrap_or(name).len() {
        let cure = format!("leave the port out: {:?}", &text[..text.len() - name.len() + host.len()]);
        return Err(D::Error::custom(format!("hosts match without their port; {cure}")));
    }
    Ok(Some(text[..text.len() - name.len()].to_owned() + &host))
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let cure = if !text.starts_with('/') {
        format!("begin it with \"/\": \"/{text}\"")
    } else if text.contains(['?', '#']) {
        "leave the query out; only the path is looked at".to_owned()
    } else if text.contains('*') {
        "leave the \"*\" out; everything below the prefix is taken".to_owned()
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        "write other characters as requests do, such as \"%20\"".to_owned()
    } else if text.starts_with("//") {
        "begin it with a single \"/\"".to_owned()
    } else {
        return Ok(Some(text));
    };
    Err(D::Error::custom(format!("{text:?} is not the beginning of a path; {cure}")))
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

fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
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

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let headers = BTreeMap::<String, HeaderValue>::deserialize(deserializer)?;
    if let Some(name) = headers.keys().find(|name| !is_token(name)) {
        return Err(D::Error::custom(format!(
            "`{name}` is not the name of a header; give one such as `x-tenant`"
        )));
    }
    Ok(headers.into_iter().map(|(name, value)| (name, value.0)).collect())
}
