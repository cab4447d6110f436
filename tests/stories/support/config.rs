//! Configurations of the stories: one listener on port 0, one upstream `app`, and what a story adds.

use super::{Proxy, Upstream};

/// A configuration that grows by lines of TOML.
#[derive(Clone, Default)]
pub struct Config {
    endpoints: Vec<String>,
    listener: String,
    upstream: String,
    rest: String,
    routes_only: bool,
}

impl Config {
    /// The listener `main` over the upstream `app` with these endpoints.
    pub fn over<'a>(endpoints: impl IntoIterator<Item = &'a Upstream>) -> Self {
        let endpoints = endpoints.into_iter().map(|upstream| format!("\"{}\"", upstream.address())).collect();
        Self { endpoints, ..Self::default() }
    }

    /// The same over addresses as the configuration writes them.
    pub fn over_addresses(endpoints: &[String]) -> Self {
        let endpoints = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
        Self { endpoints, ..Self::default() }
    }

    /// One worker, so that all clients share its connections to endpoints.
    #[must_use]
    pub fn one_worker(self) -> Self {
        self.and("[server]\nworkers = 1")
    }

    /// A line inside `[[listener]]`.
    #[must_use]
    pub fn listener(mut self, line: &str) -> Self {
        self.listener = format!("{}{line}\n", self.listener);
        self
    }

    /// A line inside `[upstream.app]`, such as `retry.attempts = 1`.
    #[must_use]
    pub fn upstream(mut self, line: &str) -> Self {
        self.upstream = format!("{}{line}\n", self.upstream);
        self
    }

    /// `timeout.request`, and `timeout.connect` with it, which may not be longer.
    #[must_use]
    pub fn within(self, request: &str) -> Self {
        self.upstream(&format!("timeout.request = \"{request}\"\ntimeout.connect = \"{request}\""))
    }

    /// Tables at the end: more upstreams, routes written as `[[listener.route]]`, defaults.
    #[must_use]
    pub fn and(mut self, tables: &str) -> Self {
        self.rest = format!("{}{tables}\n", self.rest);
        self
    }

    /// The listener has no upstream of its own: what no route takes has none.
    #[must_use]
    pub fn routes_only(mut self) -> Self {
        self.routes_only = true;
        self
    }

    /// Only what the story names may happen: one attempt, no breaker.
    #[must_use]
    pub fn plain(self) -> Self {
        self.upstream("retry.attempts = 1").upstream("breaker.mode = \"off\"")
    }

    /// A thousand attempts may be in flight from the start: what the story is about comes in crowds.
    #[must_use]
    pub fn wide(self) -> Self {
        self.upstream("concurrency.limit = { kind = \"fixed\", max = 1000 }")
    }

    /// The upstream speaks HTTP/1.1, whatever a request asks for.
    #[must_use]
    pub fn http1(self) -> Self {
        self.upstream("protocol = \"http1\"")
    }

    /// The upstream speaks HTTP/2.
    #[must_use]
    pub fn http2(self) -> Self {
        self.upstream("protocol = \"http2\"")
    }

    /// The whole text. Routes of `and` belong to the listener, so it stands before them and the upstream first.
    pub fn text(&self) -> String {
        let Self { endpoints, listener, upstream, rest, routes_only } = self;
        let default = if *routes_only { "" } else { "upstream = \"app\"" };
        format!(
            r#"[admin]
address = "127.0.0.1:0"
[telemetry]
log = {{ level = "info", format = "json" }}
access_log = {{ path = "stdout", only = "all" }}
[upstream.app]
endpoints = [{}]
{upstream}
[[listener]]
name = "main"
address = "127.0.0.1:0"
{default}
{listener}
{rest}
"#,
            endpoints.join(", ")
        )
    }

    /// Runs the proxy with it.
    pub async fn start(&self) -> Proxy {
        Proxy::start(&self.text()).await
    }
}
