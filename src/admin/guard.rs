//! Who may ask the admin API: a pure decision about one request.
//!
//! Three pages are for everybody, since probes and scrapers come under any name and carry no secret. The rest obey
//! these rules:
//!
//! - On a non-loopback address they need the bearer token; without `token_file` there is no way in.
//! - `Host` must be an IP address or `localhost`. A web page can make a browser send requests to 127.0.0.1 under a
//!   name of its own whose address it changes (DNS rebinding); it cannot make it say an address.
//! - `Origin`, if there is one, must be the API itself: another site's page may send a POST that it cannot read the
//!   answer of, but the browser says where it comes from (CSRF).
//!
//! Rejected: a secret in a custom header for loopback too. Whoever has a shell on the machine could read it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::http::uri::Authority;

/// Which pages an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them (`admin.address`).
    All,
    /// Only those for everybody (`admin.metrics_address`).
    Public,
}

/// What is known of an address that is asked.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    is_loopback: bool,
    token: Option<Arc<str>>,
}

/// What is known of a request. A header that came twice, or is no text, is told as such: it fits no rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) host: Header<'a>,
    pub(super) origin: Header<'a>,
    pub(super) authorization: Header<'a>,
}

/// A header of which there should be at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header<'a> {
    Missing,
    Once(&'a str),
    Unreadable,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 401: the token is missing or wrong.
    Token,
    /// 403: there is no token, so nobody gets in.
    NoTokenFile,
    /// 403: `Host` is a name.
    Host,
    /// 403: another site's page asks.
    Origin,
}

impl Guard {
    /// The guard of the address `local`. An empty token is none.
    pub(super) fn new(local: SocketAddr, token: Option<Arc<str>>) -> Self {
        let is_loopback = local.ip().to_canonical().is_loopback();
        Self { is_loopback, token: token.filter(|token| !token.is_empty()) }
    }

    /// Whether a page that is not for everybody may be shown.
    pub(super) fn admit(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        let host = match asked.host {
            Header::Once(host) if is_address_or_localhost(host) => host,
            _ => return Err(Refusal::Host),
        };
        match asked.origin {
            Header::Missing => {}
            Header::Once(origin) if is_own(origin, host) => {}
            _ => return Err(Refusal::Origin),
        }
        if self.is_loopback {
            return Ok(());
        }
        let token = self.token.as_ref().ok_or(Refusal::NoTokenFile)?;
        match asked.authorization {
            Header::Once(value) if bearer(value).is_some_and(|given| is_equal(given, token)) => Ok(()),
            _ => Err(Refusal::Token),
        }
    }
}

impl Refusal {
    /// What to tell the one who asked.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Refusal::Token => {
                "this address needs `Authorization: Bearer TOKEN` with the token of admin.token_file"
            }
            Refusal::NoTokenFile => {
                "on a non-loopback address this needs a token, and there is none: set admin.token_file"
            }
            Refusal::Host => "the Host of the request must be an IP address or localhost",
            Refusal::Origin => "requests from other sites' pages are refused",
        }
    }
}

/// Whether `host` names an IP address or `localhost`, with or without a port.
fn is_address_or_localhost(host: &str) -> bool {
    // What could be a user name in front of a host is no host.
    let Some(authority) = host.parse::<Authority>().ok().filter(|_| !host.contains('@')) else {
        return false;
    };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whether `origin` is the API's own, as it was asked under `host`.
fn is_own(origin: &str, host: &str) -> bool {
    let without_port = |text: &str| text.strip_suffix(":80").unwrap_or(text).to_ascii_lowercase();
    // RFC 6454 §6.2: scheme, host, and the port unless it is the scheme's own.
    origin.strip_prefix("http://").is_some_and(|origin| without_port(origin) == without_port(host))
}

/// The token of `Bearer TOKEN` (RFC 6750 §2.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether both are the same, in a time that does not tell how much of them is.
fn is_equal(given: &str, token: &str) -> bool {
    let differences = given.bytes().zip(token.bytes()).fold(0, |seen, (a, b)| seen | (a ^ b));
    // The length may show.
    given.len() == token.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Asked<'static> = Asked {
        host: Header::Once("127.0.0.1:9900"),
        origin: Header::Missing,
        authorization: Header::Missing,
    };

    fn guard(address: &str, token: Option<&str>) -> Guard {
        Guard::new(address.parse().expect("an address"), token.map(Arc::from))
    }

    #[test]
    fn a_non_loopback_address_needs_the_token() {
        let bearer = |value| Asked { authorization: Header::Once(value), ..OPEN };
        let (token, none) = (Err(Refusal::Token), Err(Refusal::NoTokenFile));
        let cases = [
            // why                               address            token           asked                     answer
            ("loopback is for everybody here", "127.0.0.1:9900", None, OPEN, Ok(())),
            ("with a token too", "127.0.0.1:9900", Some("s3cret"), OPEN, Ok(())),
            ("all of 127/8 is loopback", "127.3.2.1:9900", None, OPEN, Ok(())),
            ("IPv6", "[::1]:9900", None, OPEN, Ok(())),
            ("IPv4 in IPv6", "[::ffff:127.0.0.1]:9900", None, OPEN, Ok(())),
            ("no token, no way in", "0.0.0.0:9900", None, OPEN, none),
            ("whatever one says", "0.0.0.0:9900", None, bearer("Bearer "), none),
            ("an empty token is none", "0.0.0.0:9900", Some(""), bearer("Bearer "), none),
            ("an address of the machine", "10.1.2.3:9900", Some("s3cret"), OPEN, token),
            ("the token", "10.1.2.3:9900", Some("s3cret"), bearer("Bearer s3cret"), Ok(())),
            ("schemes have no case", "10.1.2.3:9900", Some("s3cret"), bearer("bearer s3cret"), Ok(())),
            ("a wrong one", "10.1.2.3:9900", Some("s3cret"), bearer("Bearer s3creT"), token),
            ("a part of it", "10.1.2.3:9900", Some("s3cret"), bearer("Bearer s3cre"), token),
            ("more than it", "10.1.2.3:9900", Some("s3cret"), bearer("Bearer s3cret2"), token),
            ("nothing", "10.1.2.3:9900", Some("s3cret"), bearer("Bearer "), token),
            ("another scheme", "10.1.2.3:9900", Some("s3cret"), bearer("Basic s3cret"), token),
            ("no scheme", "10.1.2.3:9900", Some("s3cret"), bearer("s3cret"), token),
            (
                "two tokens",
                "10.1.2.3:9900",
                Some("s3cret"),
                Asked { authorization: Header::Unreadable, ..OPEN },
                token,
            ),
        ];
        for (why, address, token, asked, answer) in cases {
            assert_eq!(guard(address, token).admit(&asked), answer, "{why}");
        }
    }

    #[test]
    fn the_host_is_an_address_or_localhost() {
        let fine = [
            "127.0.0.1",
            "127.0.0.1:9900",
            "10.0.0.7:80",
            "localhost",
            "LocalHost:9900",
            "[::1]",
            "[::1]:9900",
        ];
        let names = [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1.nip.io:9900",
            "evil@127.0.0.1",
            "[::1",
            "::1",
            "0x7f.1",
            "127.0.0.1/x",
            "localhost localhost",
        ];
        let admit = |host| guard("127.0.0.1:9900", None).admit(&Asked { host, ..OPEN });
        fine.iter().for_each(|host| assert_eq!(admit(Header::Once(host)), Ok(()), "{host}"));
        names.iter().for_each(|host| assert_eq!(admit(Header::Once(host)), Err(Refusal::Host), "{host:?}"));
        assert_eq!(admit(Header::Missing), Err(Refusal::Host));
        assert_eq!(admit(Header::Unreadable), Err(Refusal::Host));
        let bearer = Header::Once("Bearer t");
        let asked = Asked { host: Header::Once("proxy.example"), authorization: bearer, ..OPEN };
        assert_eq!(guard("0.0.0.0:1", Some("t")).admit(&asked), Err(Refusal::Host), "with the token too");
    }

    #[test]
    fn another_sites_page_is_refused() {
        let cases = [
            // host            origin                        own
            ("127.0.0.1:9900", "http://127.0.0.1:9900", true),
            ("localhost:9900", "http://LOCALHOST:9900", true),
            ("127.0.0.1:80", "http://127.0.0.1", true),
            ("127.0.0.1", "http://127.0.0.1:80", true),
            ("[::1]:9900", "http://[::1]:9900", true),
            ("127.0.0.1:9900", "http://127.0.0.1:3000", false),
            ("127.0.0.1:9900", "http://localhost:9900", false),
            ("127.0.0.1:9900", "https://127.0.0.1:9900", false),
            ("127.0.0.1:9900", "http://evil.example", false),
            ("127.0.0.1:9900", "null", false),
            ("127.0.0.1:9900", "", false),
        ];
        for (host, origin, own) in cases {
            let asked = Asked { host: Header::Once(host), origin: Header::Once(origin), ..OPEN };
            let answer = if own { Ok(()) } else { Err(Refusal::Origin) };
            assert_eq!(guard("127.0.0.1:9900", None).admit(&asked), answer, "{origin} at {host}");
        }
        let twice = Asked { origin: Header::Unreadable, ..OPEN };
        assert_eq!(guard("127.0.0.1:9900", None).admit(&twice), Err(Refusal::Origin));
    }
}
