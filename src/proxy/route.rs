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

use crate::policy::condition::{headers, methods};
use crate::policy::key::Key;
use crate::policy::priority::Priority;
use crate::policy::{fallback, fault, hedge, retry, timeout};
use crate::units::{Ratio, within};
use crate::upstream::check_authority;

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
    /// The upstream it goes to. Either this or `split`.
    #[serde(default)]
    pub upstream: Option<String>,
    /// Several upstreams, each with its share: `[{ upstream = "app", weight = 95 }, { upstream = "next", weight = 5 }]`.
    /// Default: none, all goes to `upstream`.
    #[serde(default)]
    pub split: Vec<Arm>,
    /// What of a request keeps it with one upstream of `split`: `"header:NAME"`, `"cookie:NAME"`, `"path"` or
    /// `"client_ip"`. Default: none, each request is drawn.
    #[serde(default)]
    pub split_by: Option<Key>,
    /// Shadow traffic: a share of the requests is sent to this upstream too, and its answers are thrown away.
    /// Default: none.
    #[serde(default)]
    pub mirror: Option<Mirror>,
    /// How much its requests matter where their callers do not say: `critical`, `high`, `normal` or `low`.
    /// Default `normal`.
    #[serde(default)]
    pub priority: Priority,
    /// What of the request is changed on its way up. Default: nothing.
    #[serde(default)]
    pub rewrite: Rewrite,
    /// The timeouts in force on this route, where it says any: the upstream's with the route's keys over them.
    #[serde(default)]
    pub timeout: Option<timeout::Settings>,
    /// The retries in force on this route, where it says any: the upstream's with the route's keys over them.
    #[serde(default)]
    pub retry: Option<retry::Settings>,
    /// What clients get in place of a failure on this route, where it says any: the upstream's with the route's keys over
    /// them.
    #[serde(default)]
    pub fallback: Option<fallback::Settings>,
    /// The hedges in force on this route, where it says any: the upstream's with the route's keys over them.
    #[serde(default)]
    pub hedge: Option<hedge::Settings>,
    /// The fault that is injected into this route's requests, where it says any: the upstream's with the route's keys over
    /// it.
    #[serde(default)]
    pub fault: Option<fault::Settings>,
}

/// An entry of `split`: an upstream and its share.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// The upstream.
    pub upstream: String,
    /// Its share of the requests, against the others'. From 1 to 10,000. Default 1.
    #[serde(default = "one", deserialize_with = "within::<_, 1, 10_000>")]
    #[schemars(range(min = 1, max = 10_000))]
    pub weight: u32,
    /// The timeouts in force there, where the route says any.
    #[serde(skip)]
    pub timeout: Option<timeout::Settings>,
    /// The retries in force there, where the route says any.
    #[serde(skip)]
    pub retry: Option<retry::Settings>,
    /// What clients get in place of a failure there, where the route says any.
    #[serde(skip)]
    pub fallback: Option<fallback::Settings>,
    /// The hedges in force there, where the route says any.
    #[serde(skip)]
    pub hedge: Option<hedge::Settings>,
    /// The fault that is injected there, where the route says any.
    #[serde(skip)]
    pub fault: Option<fault::Settings>,
}

/// `mirror`: shadow traffic.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Who gets the copies.
    pub upstream: String,
    /// The share of requests that is copied. Default 1.0.
    #[serde(default = "all")]
    pub ratio: Ratio,
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

impl Settings {
    /// The route that a listener's own `upstream` stands for: it takes what is left.
    pub fn any(upstream: &str) -> Self {
        Self {
            name: default_name(),
            matches: Match::default(),
            upstream: Some(upstream.to_owned()),
            split: Vec::new(),
            split_by: None,
            mirror: None,
            priority: Priority::Normal,
            rewrite: Rewrite::default(),
            timeout: None,
            retry: None,
            fallback: None,
            hedge: None,
            fault: None,
        }
    }

    /// The upstreams it leads to, each with its share and what is in force there: those of `split`, or the one.
    pub fn arms(&self) -> Vec<Arm> {
        let only = self.upstream.iter().map(|upstream| Arm {
            fallback: self.fallback.clone(),
            hedge: self.hedge.clone(),
            fault: self.fault.clone(),
            ..Arm::of(upstream, self.timeout.clone(), self.retry.clone())
        });
        if self.split.is_empty() { only.collect() } else { self.split.clone() }
    }
}

impl Arm {
    /// All that goes to `upstream`, with what is in force there over its own.
    pub fn of(upstream: &str, timeout: Option<timeout::Settings>, retry: Option<retry::Settings>) -> Self {
        Self {
            upstream: upstream.to_owned(),
            weight: 1,
            timeout,
            retry,
            hedge: None,
            fallback: None,
            fault: None,
        }
    }
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

const fn one() -> u32 {
    1
}

const fn all() -> Ratio {
    Ratio::ONE
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A route that takes what `edit` says.
    fn route(edit: impl FnOnce(&mut Settings)) -> Route {
        let mut settings = Settings::any("app");
        edit(&mut settings);
        Route::new(&settings)
    }

    fn prefixed(prefix: &str) -> Route {
        route(|settings| settings.matches.path_prefix = Some(prefix.to_owned()))
    }

    fn hosted(host: &str) -> Route {
        route(|settings| settings.matches.host = Some(host.to_owned()))
    }

    fn takes(route: &Route, method: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> bool {
        route.matches(&Request {
            method: method.as_bytes(),
            host: host.as_bytes(),
            normal_path: &normal_path(target.as_bytes()),
            has_header: &|name, value| {
                headers.iter().any(|(known, v)| known.eq_ignore_ascii_case(name) && *v == value)
            },
        })
    }

    #[test]
    fn paths_become_normal() {
        let cases = [
            // why                                  path                    normal
            ("nothing to do", "/a/b", "/a/b"),
            ("the query is no part of the path", "/a?b=/../c", "/a"),
            ("an empty query", "/a?", "/a"),
            ("a dot segment", "/a/./b", "/a/b"),
            ("a dot segment at the end", "/a/.", "/a/"),
            ("two dots take a segment back", "/a/b/../c", "/a/c"),
            ("two dots at the end", "/a/b/..", "/a/"),
            ("nothing stands above the root", "/../../a", "/a"),
            ("only the root is left", "/a/..", "/"),
            ("dots in names are no segments", "/a.b/..c/d..", "/a.b/..c/d.."),
            ("unreserved characters are decoded", "/%61%2Db%7e", "/a-b~"),
            ("dots may come encoded", "/a/%2e%2E/b", "/b"),
            ("half a dot segment encoded", "/a/.%2e/b", "/b"),
            ("a slash stays encoded", "/a%2Fb", "/a%2Fb"),
            ("an encoded percent is not decoded twice", "/%2561", "/%2561"),
            ("a broken code stays", "/%6", "/%6"),
            ("a broken code stays at the end", "/a%", "/a%"),
            ("empty segments stay", "//a//b", "//a//b"),
            ("an empty segment is a segment", "/a//../b", "/a/b"),
            ("a star is no path", "*", "*"),
            ("nothing", "", ""),
        ];
        for (why, path, normal) in cases {
            let found = normal_path(path.as_bytes());
            assert_eq!(String::from_utf8_lossy(&found), normal, "{why}: {path}");
        }
        assert!(matches!(normal_path(b"/a.b/c?d=%41/../"), Cow::Borrowed(_)), "most paths are not copied");
    }

    #[test]
    fn prefixes_end_at_a_segment() {
        let cases = [
            // why                             prefix      target            taken
            ("the path itself", "/pay", "/pay", true),
            ("what stands below", "/pay", "/pay/1", true),
            ("a longer word is another path", "/pay", "/payments", false),
            ("a query may follow", "/pay", "/pay?x", true),
            ("a slash at the end means the same", "/pay/", "/pay", true),
            ("a slash at the end, below", "/pay/", "/pay/1", true),
            ("a slash at the end, longer word", "/pay/", "/payments", false),
            ("the root takes all", "/", "/any/thing", true),
            ("case matters in paths", "/pay", "/Pay", false),
            ("encoded is the same", "/pay", "/p%61y/1", true),
            ("encoded in the prefix is the same", "/p%61y", "/pay/1", true),
            ("nobody gets around by dots", "/admin", "/public/../admin/x", true),
            ("nobody gets in by dots", "/public", "/public/../admin/x", false),
            ("nor by encoded dots", "/public", "/public/%2e%2e/admin", false),
            ("a star is no path", "/", "*", false),
        ];
        for (why, prefix, target, taken) in cases {
            assert_eq!(takes(&prefixed(prefix), "GET", "h", target, &[]), taken, "{why}");
        }
    }

    #[test]
    fn hosts_match_without_case_and_port() {
        let cases = [
            // why                          match               host                        taken
            ("the same", "payments.internal", "payments.internal", true),
            ("another case", "Payments.internal", "PAYMENTS.Internal", true),
            ("with a port", "payments.internal", "payments.internal:8080", true),
            ("with the dot of a full name", "payments.internal", "payments.internal.", true),
            ("dot and port", "payments.internal", "payments.internal.:80", true),
            ("another name", "payments.internal", "orders.internal", false),
            ("a name above", "payments.internal", "internal", false),
            ("no host", "payments.internal", "", false),
            ("an address", "10.0.0.1", "10.0.0.1:80", true),
            ("an IPv6 address", "[::1]", "[::1]:80", true),
            ("an IPv6 address without port", "[::1]", "[::1]", true),
            ("a name below", "*.example.org", "a.example.org", true),
            ("two names below", "*.example.org", "a.b.Example.org:1", true),
            ("not the name itself", "*.example.org", "example.org", false),
            ("not an empty name", "*.example.org", ".example.org", false),
            ("not a longer word", "*.example.org", "badexample.org", false),
        ];
        for (why, wanted, host, taken) in cases {
            assert_eq!(takes(&hosted(wanted), "GET", host, "/", &[]), taken, "{why}");
        }
    }

    #[test]
    fn all_that_is_written_must_hold() {
        let route = route(|settings| {
            settings.matches = Match {
                host: Some("h".to_owned()),
                path_prefix: Some("/p".to_owned()),
                methods: vec!["GET".to_owned(), "PUT".to_owned()],
                headers: [("X-Tenant".to_owned(), "blue".to_owned())].into(),
            };
        });
        let blue = [("x-tenant", "blue")];
        assert!(takes(&route, "GET", "h", "/p", &blue));
        assert!(takes(&route, "PUT", "h", "/p", &[("a", "b"), ("x-tenant", "red"), ("x-tenant", "blue")]));
        assert!(!takes(&route, "POST", "h", "/p", &blue), "another method");
        assert!(!takes(&route, "get", "h", "/p", &blue), "methods have case");
        assert!(!takes(&route, "GET", "i", "/p", &blue), "another host");
        assert!(!takes(&route, "GET", "h", "/q", &blue), "another path");
        assert!(!takes(&route, "GET", "h", "/p", &[]), "no header");
        assert!(!takes(&route, "GET", "h", "/p", &[("x-tenant", "Blue")]), "values have case");
    }

    #[test]
    fn a_rewrite_replaces_what_matched() {
        let cases = [
            // why                              prefix      new      target                  goes up
            ("the prefix is cut off", "/payments/", "/", "/payments/42", "/42"),
            ("the query stays as it came", "/payments", "/", "/payments/42?a=%41/../b", "/42?a=%41/../b"),
            ("nothing is left but the root", "/payments", "/", "/payments", "/"),
            ("nor with a slash", "/payments", "/", "/payments/", "/"),
            ("a query behind nothing", "/payments", "/", "/payments?a", "/?a"),
            ("another prefix", "/payments", "/v2", "/payments/42", "/v2/42"),
            ("another prefix with a slash", "/payments", "/v2/", "/payments/42", "/v2/42"),
            ("another prefix alone", "/payments", "/v2", "/payments", "/v2"),
            ("a slash at the end stays one", "/payments", "/v2", "/payments/", "/v2/"),
            ("a path never becomes a host", "/payments", "/", "/payments//evil.org", "/evil.org"),
            ("the normal path is rewritten", "/payments", "/", "/x/../p%61yments/./42", "/42"),
            ("what need not be decoded stays", "/payments", "/", "/payments/a%2Fb", "/a%2Fb"),
            ("a star has no prefix", "/", "/v2", "*", "*"),
        ];
        for (why, prefix, new, target, up) in cases {
            let route = route(|settings| {
                settings.matches.path_prefix = Some(prefix.to_owned());
                settings.rewrite.prefix = Some(new.to_owned());
            });
            let mut out = Vec::new();
            route.rewritten(target.as_bytes(), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), up, "{why}");
        }
        let (plain, mut out) = (prefixed("/a"), Vec::new());
        plain.rewritten(b"/x/../a/%61?b", &mut out);
        assert_eq!(out, b"/x/../a/%61?b", "without a rewrite all goes up as it came");
    }

    #[test]
    fn a_route_covers_what_it_takes_whole() {
        let methods = |methods: &[&str]| {
            route(|settings| settings.matches.methods = methods.iter().map(|m| (*m).to_owned()).collect())
        };
        let headers = |headers: &[(&str, &str)]| {
            route(|settings| {
                let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                settings.matches.headers = headers.collect();
            })
        };
        let any = || route(|_| ());
        let cases = [
            ("any takes all", any(), prefixed("/a"), true),
            ("a narrower one does not", prefixed("/a"), any(), false),
            ("a shorter prefix", prefixed("/a"), prefixed("/a/b/"), true),
            ("the same prefix", prefixed("/a/"), prefixed("/a"), true),
            ("a longer prefix", prefixed("/a/b"), prefixed("/a"), false),
            ("half a segment", prefixed("/a"), prefixed("/ab"), false),
            ("a wildcard over a name", hosted("*.b.c"), hosted("A.B.c"), true),
            ("a wildcard over a narrower one", hosted("*.c"), hosted("*.b.c"), true),
            ("not over a wider one", hosted("*.b.c"), hosted("*.c"), false),
            ("not over the name itself", hosted("*.b.c"), hosted("b.c"), false),
            ("a name not over another", hosted("a"), hosted("b"), false),
            ("more methods", methods(&["GET", "PUT"]), methods(&["PUT"]), true),
            ("fewer methods", methods(&["GET"]), methods(&["GET", "PUT"]), false),
            ("some methods not over any", methods(&["GET"]), any(), false),
            ("fewer headers", headers(&[("a", "1")]), headers(&[("b", "2"), ("A", "1")]), true),
            ("more headers", headers(&[("a", "1"), ("b", "2")]), headers(&[("a", "1")]), false),
            ("another value", headers(&[("a", "1")]), headers(&[("a", "2")]), false),
        ];
        for (why, wide, narrow, covered) in cases {
            assert_eq!(wide.covers(&narrow), covered, "{why}");
        }
    }

    proptest! {
        /// Normalizing is done at once: what is normal stays as it is, and no dot segment is left.
        #[test]
        fn a_normal_path_stays_normal(path in "/[a./%2eE]{0,20}") {
            let once = normal_path(path.as_bytes()).into_owned();
            prop_assert!(!once.split(|b| *b == b'/').any(|segment| segment == b"." || segment == b".."));
            prop_assert!(once.starts_with(b"/"));
        }

        /// Whatever comes in, a rewritten path begins with one slash.
        #[test]
        fn a_rewritten_path_never_names_a_host(path in "/a[b./%2f?]{0,20}", new in "/[v/]{0,3}") {
            prop_assume!(!new.starts_with("//"));
            let route = route(|settings| {
                settings.matches.path_prefix = Some("/a".to_owned());
                settings.rewrite.prefix = Some(new.clone());
            });
            let mut out = Vec::new();
            route.rewritten(path.as_bytes(), &mut out);
            prop_assert!(out.starts_with(b"/") && !out.starts_with(b"//"), "{:?}", String::from_utf8_lossy(&out));
        }
    }
}
