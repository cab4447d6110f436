//! `outrigger explain`: what would become of a request, without sending it.
//!
//! Shows the route that takes it, the chain in its fixed order with every value in force and the line that says
//! so, and what that comes to at worst. Routes are asked by the code that asks them when a request comes
//! (`proxy::route`), so the answer cannot drift from it.

mod target;
mod way;

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use self::target::{Target, reaches};
use self::way::{InForce, Policy, Way, WorstCase};
use super::exit::{UNUSABLE, fail};
use crate::config::{self, Loaded};
use crate::proxy::listener;
use crate::proxy::route::{self, Match};

/// Show which way a request would take, what is in force there, and its worst case
///
/// That is: the listener, route and upstream that would take it, the chain it would pass with every value in force
/// and the line that says so, the longest it can take, and the most attempts it can come to.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the client asks for, such as `http://127.0.0.1:8080/payments/42`.
    #[arg(long)]
    url: http::Uri,
    /// The method.
    #[arg(long, short = 'X', default_value = "GET")]
    method: http::Method,
    /// A header of the request, such as `-H 'x-tenant: blue'`; may be given several times.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The listener that gets it. Default: the one whose address the URL names, else the first that has a route
    /// for it.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// `text` for people, `json` for programs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"name: value\"")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// Runs the subcommand.
pub(super) fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(&args.file) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}\n\nthere is nothing to explain before `outrigger check` is content");
            return ExitCode::from(UNUSABLE);
        }
    };
    let explanation = match explain(&loaded, args) {
        Ok(explanation) => explanation,
        Err(message) => return fail(UNUSABLE, message),
    };
    let printed = match args.format {
        Format::Text => write!(std::io::stdout(), "{explanation}"),
        Format::Json => {
            let json = serde_json::to_string_pretty(&explanation).expect("strings and numbers serialize");
            writeln!(std::io::stdout(), "{json}")
        }
    };
    if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What would become of a request.
#[derive(Debug, Serialize)]
struct Explanation {
    request: String,
    listener: Part,
    /// `None`: nothing takes it, and the client gets `no_route`.
    route: Option<Part>,
    /// The routes above that do not take it, and why.
    passed_over: Vec<Part>,
    upstream: Option<Part>,
    mirror: Option<Part>,
    /// The request line and the Host that go up.
    goes_up: Option<String>,
    /// In the order in which a request meets them.
    chain: Vec<Policy>,
    worst_case: Option<WorstCase>,
}

/// A listener, a route or an upstream.
#[derive(Debug, Serialize)]
struct Part {
    name: String,
    /// Where it stands in the file.
    line: Option<usize>,
    /// What it is, or why it was taken or passed over.
    what: String,
}

fn explain(loaded: &Loaded, args: &Args) -> Result<Explanation, String> {
    let target = target_of(args)?;
    let (index, why) = choose_listener(loaded, args, &target)?;
    let settings = &loaded.config.listener[index];
    let base = format!("listener[{index}]");
    let mut explanation = Explanation {
        request: format!("{} {}", args.method, args.url),
        listener: Part {
            name: settings.name(),
            line: loaded.origins.first_line(&base),
            what: format!("{} ({why})", settings.address),
        },
        route: None,
        passed_over: Vec::new(),
        upstream: None,
        mirror: None,
        goes_up: None,
        chain: Vec::new(),
        worst_case: None,
    };
    let last = settings.upstream.as_deref().map(route::Settings::any);
    for (number, settings) in settings.route.iter().chain(last.as_ref()).enumerate() {
        let written = number < loaded.config.listener[index].route.len();
        let path = if written { format!("{base}.route[{number}]") } else { format!("{base}.upstream") };
        let mut part =
            Part { name: settings.name.clone(), line: loaded.origins.first_line(&path), what: String::new() };
        let differs = target.differs(&settings.matches);
        if !differs.is_empty() {
            part.what = format!("not taken: {}", differs.join(", "));
            explanation.passed_over.push(part);
            continue;
        }
        part.what =
            if written { conditions(&settings.matches) } else { "the listener's own upstream".to_owned() };
        explanation.route = Some(part);
        let arms = settings.arms();
        let arm = arms.iter().max_by_key(|arm| arm.weight).expect("a checked route leads somewhere");
        let upstream = &loaded.config.upstream[&arm.upstream];
        let way = Way {
            loaded,
            listener: &loaded.config.listener[index],
            base: &base,
            route: settings,
            arm,
            path,
            upstream,
        };
        let upstream_path = format!("upstream.{}", arm.upstream);
        let endpoints = loaded.origins.get(&format!("{upstream_path}.endpoints"));
        let discovery = &upstream.discovery;
        let discovered = loaded.origins.get(&format!("{upstream_path}.discovery"));
        let addresses = upstream.endpoints.iter().map(|endpoint| endpoint.address.to_string());
        let addresses: Vec<String> = addresses.chain(discovery.source()).collect();
        explanation.upstream = Some(Part {
            name: arm.upstream.clone(),
            line: loaded.origins.first_line(&upstream_path),
            what: if [endpoints, discovered].iter().flatten().any(|origin| origin.secret) {
                "***".to_owned()
            } else {
                addresses.join(", ")
            } + &shares(&arms, arm),
        });
        explanation.mirror = settings.mirror.as_ref().map(|mirror| Part {
            name: mirror.upstream.clone(),
            line: loaded.origins.first_line(&format!("upstream.{}", mirror.upstream)),
            what: format!(
                "gets a copy of {} of the requests, its answers are thrown away",
                mirror.ratio.get()
            ),
        });
        explanation.goes_up = Some(way.goes_up(&target));
        explanation.chain = way.chain();
        explanation.worst_case = Some(way.worst_case(&target));
        break;
    }
    Ok(explanation)
}

/// The request that `args` ask about.
fn target_of(args: &Args) -> Result<Target<'_>, String> {
    let authority = args.url.authority().ok_or_else(|| {
        format!("--url {} names no host; write it like \"http://127.0.0.1:8080/path\"", args.url)
    })?;
    if args.url.scheme_str() == Some("https") {
        return Err("listeners of this version speak plain HTTP; write \"http://\" in --url".to_owned());
    }
    let host = args.headers.iter().find(|(name, _)| name == "host");
    Ok(Target {
        method: args.method.as_str(),
        host: host.map_or_else(|| authority.to_string(), |(_, value)| value.clone()),
        path_and_query: args.url.path_and_query().map_or("/", |path| path.as_str()),
        headers: &args.headers,
    })
}

/// The shares of a split route, of which `chosen` is explained.
fn shares(arms: &[route::Arm], chosen: &route::Arm) -> String {
    let total: u32 = arms.iter().map(|arm| arm.weight).sum();
    let others: Vec<String> = arms
        .iter()
        .filter(|arm| !std::ptr::eq(*arm, chosen))
        .map(|arm| format!("{} {}", arm.upstream, arm.weight))
        .collect();
    if others.is_empty() {
        return String::new();
    }
    format!(" ({} of {total} requests; the others: {})", chosen.weight, others.join(", "))
}

/// What a route's `match` says, in words.
fn conditions(matches: &Match) -> String {
    let mut all = Vec::new();
    all.extend(matches.host.as_ref().map(|host| format!("host {host}")));
    all.extend(matches.path_prefix.as_ref().map(|prefix| format!("path below {prefix}")));
    if !matches.methods.is_empty() {
        all.push(format!("method {}", matches.methods.join(" or ")));
    }
    all.extend(matches.headers.iter().map(|(name, value)| format!("header {name}: {value}")));
    if all.is_empty() { "takes every request".to_owned() } else { all.join(", ") }
}

/// The listener that gets the request, and why.
fn choose_listener(
    loaded: &Loaded,
    args: &Args,
    target: &Target<'_>,
) -> Result<(usize, &'static str), String> {
    let listeners = &loaded.config.listener;
    if let Some(name) = &args.listener {
        let names: Vec<String> = listeners.iter().map(listener::Settings::name).collect();
        return match names.iter().position(|known| known == name) {
            Some(index) => Ok((index, "named by --listener")),
            None => Err(format!("there is no listener {name:?}; there are {}", names.join(", "))),
        };
    }
    if let [_] = listeners.as_slice() {
        return Ok((0, "the only one"));
    }
    let port = args.url.port_u16().unwrap_or(80);
    let host = args.url.host().unwrap_or_default().trim_matches(['[', ']']);
    let ip: Option<IpAddr> = if host == "localhost" { "127.0.0.1".parse().ok() } else { host.parse().ok() };
    let addressed =
        ip.and_then(|ip| listeners.iter().position(|listener| reaches(&listener.address, ip, port)));
    let takes = |listener: &listener::Settings| {
        listener.upstream.is_some()
            || listener.route.iter().any(|route| target.differs(&route.matches).is_empty())
    };
    Ok(match (addressed, listeners.iter().position(takes)) {
        (Some(index), _) => (index, "its address is in the URL"),
        (None, Some(index)) => (index, "the first that has a route for it; --listener names another"),
        (None, None) => (0, "the first; --listener names another"),
    })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |f: &mut fmt::Formatter<'_>, label: &str, part: &Part| {
            let line = part.line.map(|line| format!("line {line}")).unwrap_or_default();
            writeln!(f, "{label:<10}{:<24}{line:<10}{}", part.name, part.what)
        };
        writeln!(f, "{}\n", self.request)?;
        part(f, "listener", &self.listener)?;
        for (number, passed) in self.passed_over.iter().enumerate() {
            part(f, if number == 0 { "routes" } else { "" }, passed)?;
        }
        let Some(route) = &self.route else {
            return writeln!(f, "\nNothing takes it: the client gets 404 `no_route`.");
        };
        part(f, "route", route)?;
        self.upstream.iter().try_for_each(|upstream| part(f, "upstream", upstream))?;
        self.mirror.iter().try_for_each(|mirror| part(f, "mirror", mirror))?;
        self.goes_up.iter().try_for_each(|up| writeln!(f, "{:<10}{up}", "goes up"))?;
        writeln!(f, "\nThe chain, in its order:")?;
        for (number, policy) in self.chain.iter().enumerate() {
            let mode = policy.mode.as_ref().map(|mode| format!(" ({mode})")).unwrap_or_default();
            writeln!(f, "\n{}. {}{mode}: {}", number + 1, policy.name, policy.what)?;
            let width = |of: fn(&InForce) -> &str| {
                policy.values.iter().map(|v| of(v).len()).filter(|l| *l < 40).max().unwrap_or(0)
            };
            let (key, value) = (width(|value| &value.key), width(|value| &value.value));
            for InForce { key: name, value: text, from } in &policy.values {
                writeln!(f, "   {name:key$}  {text:value$}  {from}")?;
            }
        }
        let Some(worst) = &self.worst_case else { return Ok(()) };
        let mut text = String::new();
        match worst.latency_ms {
            Some(millis) => {
                writeln!(text, "\nWorst case to the response's head: {:?}", Duration::from_millis(millis))?
            }
            None => writeln!(text, "\nWorst case to the response's head: unbounded")?,
        }
        worst.latency.iter().try_for_each(|why| writeln!(text, "   {why}"))?;
        writeln!(text, "Most attempts: {}", worst.attempts)?;
        worst.attempts_why.iter().try_for_each(|why| writeln!(text, "   {why}"))?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// The arguments as they are typed.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    const FILE: &str = r#"
[defaults.timeout]
request = "5s"
[[listener]]
name = "egress"
address = "127.0.0.1:8080"
  [[listener.route]]
  name = "orders"
  match = { host = "orders.internal", methods = ["POST"] }
  upstream = "app"
  [[listener.route]]
  name = "payments"
  match = { path_prefix = "/payments" }
  upstream = "payments"
  rewrite = { prefix = "/" }
  retry = { attempts = 3 }
[[listener]]
name = "other"
address = "127.0.0.1:8081"
upstream = "app"
[upstream.app]
endpoints = ["127.0.0.1:9000"]
retry.mode = "shadow"
timeout.mode = "off"
[upstream.payments]
endpoints = ["127.0.0.1:9001", "p.internal:80"]
timeout.attempt = "1s"
retry.backoff = { base = "100ms", jitter = "none" }
hedge.mode = "enforce"
shed.caller = "header:x-user"
"#;

    fn asked(line: &str) -> Result<Explanation, String> {
        let loaded = config::parse(FILE, "t.toml", &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        let line = ["explain", "t.toml"].into_iter().chain(line.split('|'));
        explain(&loaded, &Line::try_parse_from(line).expect("a good command line").args)
    }

    fn answer(line: &str) -> Explanation {
        asked(line).expect("an answer")
    }

    #[test]
    fn the_first_route_that_matches_takes_the_request() {
        let cases = [
            // why                         asked                                                    listener  route       goes up
            (
                "by path",
                "--url|http://127.0.0.1:8080/payments/42?a",
                "egress",
                "payments",
                "GET /42?a, Host: the endpoint's address",
            ),
            ("by another host", "--url|http://pay/payments", "egress", "payments", "GET /, Host: pay"),
            (
                "by host and method",
                "--url|http://orders.internal/x|-X|POST",
                "egress",
                "orders",
                "POST /x, Host: orders.internal",
            ),
            (
                "a Host of its own",
                "--url|http://127.0.0.1:8080/x|-X|POST|-H|Host: orders.internal",
                "egress",
                "orders",
                "POST /x, Host: orders.internal",
            ),
            (
                "the address names the listener",
                "--url|http://127.0.0.1:8081/payments",
                "other",
                "default",
                "GET /payments, Host: the endpoint's address",
            ),
            (
                "so does its name",
                "--url|http://h/payments|--listener|other",
                "other",
                "default",
                "GET /payments, Host: h",
            ),
            (
                "the first that has a route",
                "--url|http://h/nothing",
                "other",
                "default",
                "GET /nothing, Host: h",
            ),
        ];
        for (why, line, listener, route, goes_up) in cases {
            let answer = answer(line);
            assert_eq!(answer.listener.name, listener, "{why}");
            assert_eq!(answer.route.map(|route| route.name).as_deref(), Some(route), "{why}");
            assert_eq!(answer.goes_up.as_deref(), Some(goes_up), "{why}");
        }
        let nothing = answer("--url|http://127.0.0.1:8080/x");
        assert!(nothing.route.is_none() && nothing.to_string().contains("404 `no_route`"));
        let why: Vec<_> = nothing.passed_over.iter().map(|part| part.what.as_str()).collect();
        assert_eq!(
            why,
            [
                "not taken: host is not orders.internal, method is not POST",
                "not taken: path is not below /payments",
            ]
        );
        assert!(asked("--url|/x").is_err_and(|message| message.contains("names no host")));
        assert!(
            asked("--url|http://h/|--listener|none")
                .is_err_and(|message| message.contains("there are egress, other"))
        );
    }

    #[test]
    fn each_value_names_the_line_that_says_it() {
        let answer = answer("--url|http://h/payments");
        let from = |policy: &str, key: &str| {
            let policy = answer.chain.iter().find(|step| step.name == policy).expect("a step of the chain");
            let value = policy.values.iter().find(|value| value.key == key).expect("a key of it");
            (value.value.clone(), value.from.clone())
        };
        let said = |value: &str, from: &str| (value.to_owned(), from.to_owned());
        assert_eq!(from("timeout", "request"), said("\"5s\"", "[defaults.timeout] line 3"));
        assert_eq!(from("timeout", "attempt"), said("\"1s\"", "[upstream.payments] line 27"));
        assert_eq!(from("retry", "attempts"), said("3", "route \"payments\" line 16"));
        assert_eq!(from("retry", "backoff.base"), said("\"100ms\"", "[upstream.payments] line 28"));
        assert_eq!(from("retry", "backoff.max"), said("\"1s\"", "built in"));
        assert_eq!(from("shed", "caller"), said("\"header:x-user\"", "[upstream.payments] line 30"));
        assert_eq!(from("shed", "memory"), said("0.9", "built in"));
        let order: Vec<_> = answer.chain.iter().map(|step| step.name).collect();
        let chain = [
            "limits",
            "timeout",
            "shed",
            "retry",
            "hedge",
            "breaker",
            "concurrency",
            "balance",
            "outlier",
            "health",
            "fault",
            "connections",
            "failure",
        ];
        assert_eq!(order, chain);
    }

    #[test]
    fn rate_limits_stand_in_front() {
        let text = format!(
            "{FILE}[[upstream.payments.rate_limit]]\nname = \"tenant\"\nrate = \"100/s\"\n[[defaults.rate_limit]]\nmode = \"shadow\"\nrate = \"6000/m\"\n"
        );
        let loaded =
            config::parse(&text, "t.toml", &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        let line = Line::try_parse_from(["explain", "t.toml", "--url", "http://h/payments"]);
        let answer = explain(&loaded, &line.expect("a good command line").args).expect("an answer");
        let names: Vec<_> = answer.chain.iter().take(4).map(|step| step.name).collect();
        assert_eq!(names, ["limits", "timeout", "rate_limit", "rate_limit"]);
        let of = |step: usize, key: &str| {
            let value = answer.chain[step].values.iter().find(|value| value.key == key).expect("a key of it");
            (value.value.clone(), value.from.clone())
        };
        let said = |value: &str, from: &str| (value.to_owned(), from.to_owned());
        let lines = FILE.lines().count();
        assert_eq!(of(2, "rate"), said("\"100/s\"", &format!("[upstream.payments] line {}", lines + 3)));
        assert_eq!(of(2, "burst"), said("100", "built in"));
        assert_eq!(of(3, "rate"), said("\"6000/m\"", &format!("[defaults.rate_limit] line {}", lines + 6)));
        assert_eq!(of(3, "key"), said("all requests share one", "built in"));
        assert!(answer.chain[3].mode.as_deref().is_some_and(|mode| mode.starts_with("shadow")));
    }

    #[test]
    fn the_worst_case_follows_from_what_is_in_force() {
        let cases = [
            // why                          asked                                                            ms           attempts  says
            (
                "the request's own timeout",
                "--url|http://h/payments",
                Some(5000),
                3,
                "500ms in the queue + 3 x 1s for attempts + 300ms of back-off = 3.8s",
            ),
            (
                "the caller has less time",
                "--url|http://h/payments|-H|x-request-timeout-ms: 300",
                Some(300),
                3,
                "the caller's deadline (300ms)",
            ),
            (
                "the caller retries",
                "--url|http://h/payments|-H|x-retry-attempt: 1",
                Some(5000),
                1,
                "the caller retries itself",
            ),
            (
                "a method that is not idempotent",
                "--url|http://h/payments|-X|POST",
                Some(5000),
                3,
                "the method is not in retry.methods",
            ),
            (
                "a hedge is one of them",
                "--url|http://h/payments",
                Some(5000),
                3,
                "one of them may be a hedge; over all requests, hedges add at most 5 % of the load",
            ),
            (
                "what is not safe gets none",
                "--url|http://h/payments|-X|DELETE",
                Some(5000),
                3,
                "no hedge: only what is safe",
            ),
            (
                "a gRPC call by itself",
                "--url|http://h/payments|-H|content-type: application/grpc",
                Some(5000),
                3,
                "not in retry.grpc_methods",
            ),
            ("neither is enforced", "--url|http://h/|--listener|other", None, 1, "timeout is off"),
        ];
        for (why, line, latency_ms, attempts, says) in cases {
            let worst = answer(line).worst_case.expect("a route takes it");
            assert_eq!((worst.latency_ms, worst.attempts), (latency_ms, attempts), "{why}");
            let all = [worst.latency, worst.attempts_why].concat().join("\n");
            assert!(all.contains(says), "{why}: {all}");
        }
    }
}
