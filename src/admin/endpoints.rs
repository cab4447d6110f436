//! The pages of the admin API: one table of them, and what each answers.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::control::Control;
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

/// All pages: path, whether it is asked for (GET) or pressed (POST), for whom, and what it is about.
#[rustfmt::skip]
const PAGES: [(&str, Page, Use, For, &str); 8] = [
    ("/livez",     Page::Live,      Use::Ask,   For::Everybody, "whether the process works"),
    ("/readyz",    Page::Ready,     Use::Ask,   For::Everybody, "whether traffic should come; ?verbose lists the upstreams"),
    ("/metrics",   Page::Metrics,   Use::Ask,   For::Everybody, "metrics for Prometheus"),
    ("/config",    Page::Config,    Use::Ask,   For::Admitted,  "the configuration that runs"),
    ("/upstreams", Page::Upstreams, Use::Ask,   For::Admitted,  "endpoints, breakers, limits, budgets"),
    ("/reload",    Page::Reload,    Use::Press, For::Admitted,  "reads the configuration anew"),
    ("/drain",     Page::Drain,     Use::Press, For::Admitted,  "stops taking new work"),
    ("/quit",      Page::Quit,      Use::Press, For::Admitted,  "drains and ends the process"),
];

/// How a page is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Ask,
    Press,
}

impl Use {
    const fn allow(self) -> &'static str {
        match self {
            Use::Ask => "GET, HEAD",
            Use::Press => "POST",
        }
    }

    fn takes(self, method: &Method) -> bool {
        match self {
            Use::Ask => method == Method::GET || method == Method::HEAD,
            Use::Press => method == Method::POST,
        }
    }
}

impl Site {
    fn pages(&self) -> impl Iterator<Item = &'static (&'static str, Page, Use, For, &'static str)> {
        let scope = self.scope;
        PAGES.iter().filter(move |(_, _, _, whom, _)| scope == Scope::All || *whom == For::Everybody)
    }

    /// Answers a request; its body has been read and means nothing.
    pub(super) async fn answer(&self, request: &Parts) -> Answer {
        let Some((_, page, usage, whom, _)) = self.pages().find(|(path, ..)| *path == request.uri.path())
        else {
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
            let method = if *usage == Use::Ask { "GET" } else { "POST" };
            writeln!(list, "  {method:4} {path:10} {about}").expect("memory takes every write");
        }
        list
    }
}

/// 413 or 408: what cannot be answered for its body. The connection ends, since more of it may come.
pub(super) fn broken_body(status: StatusCode, why: &'static str) -> Answer {
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
