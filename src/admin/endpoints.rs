//! The pages of the admin API: one table of them, and what each answers.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::control::Control;
use super::faults::{self, Unfit};
use super::guard::{Asked, Guard, Header, Refusal, Scope};
use crate::telemetry::metrics;

/// What is sent back.
pub(super) type Answer = Response<Full<Bytes>>;

/// What an address serves, and to whom.
pub(super) struct Site {
    pub(super) scope: Scope,
    pub(super) guard: Guard,
    pub(super) control: Arc<dyn Control>,
}

/// A page, or a button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Live,
    Ready,
    Metrics,
    Config,
    Upstreams,
    Faults,
    Fault,
    Reload,
    Drain,
    Quit,
}

/// Who may see a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Everybody,
    /// Whom the guard admits.
    Admitted,
}

/// All pages: path, whether it is asked for (GET), pressed (POST) or changed (PUT, DELETE), for whom, and what it is about.
#[rustfmt::skip]
const PAGES: [(&str, Page, Use, For, &str); 10] = [
    ("/livez",     Page::Live,      Use::Ask,   For::Everybody, "whether the process works"),
    ("/readyz",    Page::Ready,     Use::Ask,   For::Everybody, "whether traffic should come; ?verbose lists the upstreams"),
    ("/metrics",   Page::Metrics,   Use::Ask,   For::Everybody, "metrics for Prometheus"),
    ("/config",    Page::Config,    Use::Ask,   For::Admitted,  "the configuration that runs"),
    ("/upstreams", Page::Upstreams, Use::Ask,   For::Admitted,  "endpoints, breakers, limits, budgets"),
    ("/faults",    Page::Faults,    Use::Ask,   For::Admitted,  "faults that are injected on purpose, by upstream"),
    (FAULT,        Page::Fault,     Use::Change, For::Admitted, "injects a fault; GET shows them, DELETE ends all of the upstream's"),
    ("/reload",    Page::Reload,    Use::Press, For::Admitted,  "reads the configuration anew"),
    ("/drain",     Page::Drain,     Use::Press, For::Admitted,  "stops taking new work"),
    ("/quit",      Page::Quit,      Use::Press, For::Admitted,  "drains and ends the process"),
];

/// The page of one upstream's faults.
const FAULT: &str = "/faults/{upstream}";

/// How a page is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Ask,
    Press,
    Change,
}

impl Use {
    const fn allow(self) -> &'static str {
        match self {
            Use::Ask => "GET, HEAD",
            Use::Press => "POST",
            Use::Change => "GET, HEAD, PUT, DELETE",
        }
    }

    /// The method that the list of pages shows.
    const fn first(self) -> &'static str {
        match self {
            Use::Ask => "GET",
            Use::Press => "POST",
            Use::Change => "PUT",
        }
    }

    fn takes(self, method: &Method) -> bool {
        match self {
            Use::Ask => method == Method::GET || method == Method::HEAD,
            Use::Press => method == Method::POST,
            Use::Change => Use::Ask.takes(method) || method == Method::PUT || method == Method::DELETE,
        }
    }
}

impl Site {
    fn pages(&self) -> impl Iterator<Item = &'static (&'static str, Page, Use, For, &'static str)> {
        let scope = self.scope;
        PAGES.iter().filter(move |(_, _, _, whom, _)| scope == Scope::All || *whom == For::Everybody)
    }

    /// Answers a request; its body has been read, and mostly means nothing.
    pub(super) async fn answer(&self, request: &Parts, body: &[u8]) -> Answer {
        let path = request.uri.path();
        let Some((_, page, usage, whom, _)) = self.pages().find(|(known, ..)| is_at(known, path)) else {
            return text(StatusCode::NOT_FOUND, self.list());
        };
        if *whom == For::Admitted
            && let Err(refusal) = self.guard.admit(&asked(request))
        {
            return refuse(refusal);
        }
        if !usage.takes(&request.method) {
            let answer = format!("{} is for {}\n", request.uri.path(), usage.allow());
            let answer = text(StatusCode::METHOD_NOT_ALLOWED, answer);
            return with(answer, header::ALLOW, usage.allow());
        }
        if *page == Page::Fault {
            return self.fault(request, body);
        }
        self.show(*page, request.uri.query().unwrap_or_default()).await
    }

    async fn show(&self, page: Page, query: &str) -> Answer {
        let control = &self.control;
        match page {
            Page::Live => match control.live() {
                Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
                Err(what) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
            },
            Page::Ready => {
                ready(&**control, query.split('&').any(|pair| pair.split('=').next() == Some("verbose")))
            }
            Page::Metrics => typed(metrics::CONTENT_TYPE, control.metrics()),
            Page::Config => typed("application/toml", control.config()),
            Page::Upstreams => typed("application/json", format!("{:#}\n", control.upstreams())),
            Page::Faults | Page::Fault => typed("application/json", format!("{:#}\n", control.faults())),
            Page::Reload => self.reload().await,
            Page::Drain => {
                control.drain();
                text(StatusCode::OK, "draining\n".to_owned())
            }
            Page::Quit => {
                control.quit();
                text(StatusCode::OK, "draining, then ending\n".to_owned())
            }
        }
    }

    /// What there is of an upstream's faults, after what the request does to them.
    fn fault(&self, request: &Parts, body: &[u8]) -> Answer {
        let name = faults::upstream(last_segment(request.uri.path()));
        let is_known = match request.method {
            Method::PUT => match faults::read(&request.headers, body, &name) {
                Ok(fault) => self.control.put_fault(&name, fault),
                // Whoever mistypes the upstream too learns that first.
                Err(Unfit { status, text: problems }) if self.control.faults().get(&name).is_some() => {
                    return text(status, ended(problems));
                }
                Err(_) => false,
            },
            Method::DELETE => self.control.end_faults(&name),
            _ => true,
        };
        let faults = self.control.faults();
        match faults.get(&name).filter(|_| is_known) {
            Some(of_upstream) => typed("application/json", format!("{of_upstream:#}\n")),
            None => {
                let names: Vec<&String> = faults.as_object().into_iter().flat_map(|all| all.keys()).collect();
                text(StatusCode::NOT_FOUND, format!("there is no upstream {name:?}; there are {names:?}\n"))
            }
        }
    }

    async fn reload(&self) -> Answer {
        let control = self.control.clone();
        // A task of its own: a client that leaves must not stop a reload halfway.
        match tokio::spawn(async move { control.reload().await }).await {
            Ok(Ok(outcome)) => text(StatusCode::OK, ended(outcome)),
            Ok(Err(problems)) => text(StatusCode::UNPROCESSABLE_ENTITY, ended(problems)),
            Err(_) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, "the reload broke off; see the log\n".to_owned())
            }
        }
    }

    /// What there is, for somebody who asked for what there is not.
    fn list(&self) -> String {
        let mut list = "there is no such page; there are\n".to_owned();
        for (path, _, usage, _, about) in self.pages() {
            writeln!(list, "  {:4} {path:18} {about}", usage.first()).expect("memory takes every write");
        }
        list
    }
}

/// How large the body of this request may be. Mostly none is needed; some clients send an empty JSON object.
pub(super) fn max_body_bytes(request: &Parts) -> usize {
    if request.method == Method::PUT && is_at(FAULT, request.uri.path()) {
        faults::MAX_BODY_BYTES
    } else {
        1 << 10
    }
}

/// Whether a page that is known by `known` stands at `path`.
fn is_at(known: &str, path: &str) -> bool {
    match known.strip_suffix("{upstream}") {
        Some(start) => path.strip_prefix(start).is_some_and(|name| !name.is_empty() && !name.contains('/')),
        None => known == path,
    }
}

fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// 413 or 408: what cannot be answered for its body. The connection ends, since more of it may come.
pub(super) fn broken_body(status: StatusCode, why: &str) -> Answer {
    with(text(status, format!("{why}\n")), header::CONNECTION, "close")
}

fn ready(control: &dyn Control, is_verbose: bool) -> Answer {
    let readiness = control.ready();
    let (status, mut answer) = if readiness.ready {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", readiness.reasons.join("; ")))
    };
    if is_verbose {
        for (name, health) in readiness.upstreams {
            writeln!(answer, "upstream {name}: {health}").expect("memory takes every write");
        }
    }
    text(status, answer)
}

fn refuse(refusal: Refusal) -> Answer {
    let answer = |status| text(status, format!("{}\n", refusal.text()));
    match refusal {
        Refusal::Token => with(answer(StatusCode::UNAUTHORIZED), header::WWW_AUTHENTICATE, "Bearer"),
        Refusal::NoTokenFile | Refusal::Host | Refusal::Origin => answer(StatusCode::FORBIDDEN),
    }
}

/// What the guard wants to know. The authority of an absolute target stands in for `Host` (RFC 9112 §3.2.2).
fn asked(request: &Parts) -> Asked<'_> {
    let host = match request.uri.authority() {
        Some(authority) => Header::Once(authority.as_str()),
        None => once(&request.headers, header::HOST),
    };
    Asked {
        host,
        origin: once(&request.headers, header::ORIGIN),
        authorization: once(&request.headers, header::AUTHORIZATION),
    }
}

fn once(headers: &HeaderMap, name: HeaderName) -> Header<'_> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Header::Missing,
        (Some(value), None) => value.to_str().map_or(Header::Unreadable, Header::Once),
        (Some(_), Some(_)) => Header::Unreadable,
    }
}

fn text(status: StatusCode, text: String) -> Answer {
    let mut answer = typed("text/plain; charset=utf-8", text);
    *answer.status_mut() = status;
    answer
}

fn typed(content_type: &'static str, body: String) -> Answer {
    let answer = Response::new(Full::new(Bytes::from(body)));
    let answer = with(answer, header::CONTENT_TYPE, content_type);
    let answer = with(answer, header::CACHE_CONTROL, "no-store");
    // No browser may take a label's value for a page.
    with(answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff")
}

fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

/// `text`, ending its last line.
fn ended(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
