//! Mistakes and what is said about them; layers; the environment; and that the reference, the doc comments, the
//! schema and the code say the same.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::tls::testing::{Authority, Folder, Leaf};
use crate::units::Span;

const REFERENCE: &str = include_str!("../../config/reference.toml");
const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:8080\"\nupstream = \"app\"\n";
const UPSTREAM: &str = "[upstream.app]\nendpoints = [\"127.0.0.1:9000\"]\n";

fn environment(name: &str) -> Option<String> {
    match name {
        "FIVE" => Some("5".to_owned()),
        "RATIO" => Some("0.25".to_owned()),
        "YES" => Some("true".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        _ => None,
    }
}

fn parsed(text: &str) -> Loaded {
    parse(text, "t.toml", &environment).unwrap_or_else(|problems| panic!("{problems}"))
}

/// What is said about `text`, each problem in a line.
fn said(text: &str) -> Vec<String> {
    let found = match parse(text, "t.toml", &environment) {
        Ok(loaded) => loaded.warnings,
        Err(Problems(problems)) => problems,
    };
    found.iter().map(Diagnostic::to_string).collect()
}

/// A file with a good listener and a good upstream, and `more` behind them.
fn with(more: &str) -> String {
    format!("{LISTENER}{UPSTREAM}{more}\n")
}

#[test]
fn five_lines_are_a_whole_configuration() {
    let loaded = parsed(&with(""));
    assert_eq!(loaded.config.listener[0].name(), "127.0.0.1:8080");
    assert_eq!(loaded.config.upstream["app"].retry.attempts, 4);
    assert!(loaded.warnings.is_empty());
    assert_eq!(parsed(include_str!("../../config/outrigger.toml")).config, loaded.config);
}

#[test]
fn the_examples_run_without_a_warning() {
    let directory = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let files = std::fs::read_dir(directory).expect("the examples").map(|entry| entry.expect("one").path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "toml")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("an example");
        let said = said(&text);
        assert!(said.is_empty(), "{}: {said:#?}", file.display());
    }
}

#[test]
fn each_mistake_is_told_with_its_place_and_its_cure() {
    // Line 6 is the first behind the good part.
    let cases = [
        // what is written                             what is said
        (
            "[server]\nworkers = 65",
            "t.toml:7:11: error: 65 is out of range (server.workers); give a whole number from 0 to 64",
        ),
        (
            "[server]\nworkers = \"4\"",
            "t.toml:7:11: error: `workers` is the string \"4\", but a whole number is needed (server.workers); leave the quotes out: 4",
        ),
        (
            "[server]\ndrain_timeout = 5",
            "t.toml:7:17: error: `drain_timeout` is 5, but a length of time such as \"250ms\" is needed (server.drain_timeout); give it a unit, in quotes: \"5s\" or \"5ms\"",
        ),
        (
            "[server]\nmax_buffer = 5",
            "t.toml:7:14: error: `max_buffer` is 5, but a size such as \"64KiB\" is needed (server.max_buffer); give it a unit, in quotes: \"5B\" or \"5KiB\"",
        ),
        (
            "[server]\nwatch = \"true\"",
            "t.toml:7:9: error: `watch` is the string \"true\", but true or false is needed (server.watch); leave the quotes out: true",
        ),
        (
            "[server]\nwatch = 1979-05-27",
            "t.toml:7:9: error: `watch` is a date, but true or false is needed (server.watch); give true or false",
        ),
        (
            "[server]\nworker = 4",
            "t.toml:7:1: error: unknown key `worker` (server.worker); did you mean `workers`?",
        ),
        (
            "[server]\nattempts = 4",
            "t.toml:7:1: error: unknown key `attempts` (server.attempts); the keys here are `workers`, `drain_timeout`, `upgrade_drain_timeout`, `max_connections`, `max_buffer`, `watch`, `service`",
        ),
        (
            "attempts = 4",
            "t.toml:6:1: error: unknown key `attempts` (upstream.app.attempts); `attempts` stands in `upstream.app.retry`",
        ),
        ("[sever]", "t.toml:6:2: error: unknown key `sever`; did you mean `server`?"),
        (
            "[server]\nstate_dir = \"/x\"",
            "t.toml:7:1: error: `state_dir` is not part of this version (server.state_dir); remove it",
        ),
        (
            "balance.kind = \"hash\"",
            "t.toml:6:16: error: `upstream.app.balance.kind` is \"hash\", but there is no key; add `hash = { key = \"header:NAME\" }`; it may also be \"cookie:NAME\", \"path\" or \"client_ip\"",
        ),
        (
            "balance.hash = { key = \"path\" }",
            "t.toml:6:9: error: `upstream.app.balance.hash` is used by `kind = \"hash\"` alone, and this kind is another; add `kind = \"hash\"`, or remove `hash`",
        ),
        (
            "balance = { kind = \"hash\", hash = { key = \"query:id\" } }",
            "t.toml:6:43: error: \"query:id\" is no part of a request that can be a key (upstream.app.balance.hash.key); give \"header:NAME\", \"cookie:NAME\", \"path\" or \"client_ip\"",
        ),
        (
            "balance.kind = \"least_requests\"",
            "t.toml:6:16: error: \"least_requests\" is not one of \"least_loaded\", \"least_request\", \"round_robin\", \"random\", \"hash\" (upstream.app.balance.kind); did you mean \"least_request\"?",
        ),
        ("[defaults.slo]", "t.toml:6:11: error: `slo` is not part of this version (defaults.slo); remove it"),
        (
            "discovery = { kind = \"kubernetes\" }",
            "t.toml:6:22: error: `kind = \"kubernetes\"` is not part of this version (upstream.app.discovery.kind); give \"dns\", \"dns_srv\" or \"file\"",
        ),
        (
            "discovery = { kind = \"dsn\" }",
            "t.toml:6:22: error: \"dsn\" is not one of \"none\", \"dns\", \"dns_srv\", \"file\" (upstream.app.discovery.kind); did you mean \"dns\"?",
        ),
        (
            "discovery = { kind = \"dns_srv\" }",
            "t.toml:6:1: error: `name` is missing (upstream.app.discovery); add `name = …`",
        ),
        (
            "discovery = { kind = \"dns_srv\", name = \"a b\" }",
            "t.toml:6:40: error: \"a b\" is not a name of DNS (upstream.app.discovery.name); give one such as \"_http._tcp.payments.internal\"",
        ),
        (
            "discovery = { kind = \"dns\", refresh = \"2h\" }",
            "t.toml:6:39: error: \"2h\" is out of range (upstream.app.discovery.refresh); give a time from \"1s\" to \"1h\", or \"auto\"",
        ),
        (
            "discovery = { kind = \"file\", path = \"x\", name = \"y\" }",
            "t.toml:6:42: error: unknown key `name` (upstream.app.discovery.name); the keys here are `path`, `refresh`, `server`",
        ),
        (
            "discovery = { kind = \"dns\" }",
            "t.toml:6:1: warning: `discovery.kind` is \"dns\", and no endpoint is a name (upstream.app.discovery); remove it, or give a name in `endpoints`",
        ),
        (
            "[defaults.retries]",
            "t.toml:6:11: error: unknown key `retries` (defaults.retries); did you mean `retry`?",
        ),
        (
            "[upstream.app.rate_limit]",
            "t.toml:6:15: error: `rate_limit` is a table, but a list is needed (upstream.app.rate_limit); write it with two brackets: [[…]]",
        ),
        (
            "rate_limit = [{ rate = \"1/s\", burst = 0 }]",
            "t.toml:6:39: error: 0 lets nothing through (upstream.app.rate_limit[0].burst); give at least 1",
        ),
        (
            "rate_limit = [{ rate = \"1/s\", key = \"header:\" }]",
            "t.toml:6:37: error: \"header:\" does not name a header (upstream.app.rate_limit[0].key); give \"header:NAME\", \"cookie:NAME\", \"path\", \"client_ip\" or \"route\"",
        ),
        (
            "rate_limit = [{ rate = \"1/s\", burst = \"200\" }]",
            "t.toml:6:39: error: `burst` is the string \"200\", but a whole number is needed (upstream.app.rate_limit[0].burst); leave the quotes out: 200",
        ),
        (
            "rate_limit = [{ rate = 100 }]",
            "t.toml:6:24: error: `rate` is 100, but a rate such as \"100/s\" is needed (upstream.app.rate_limit[0].rate); give a rate such as \"100/s\"",
        ),
        (
            "rate_limit = [{ rate = \"100\" }]",
            "t.toml:6:24: error: \"100\" is not a rate (upstream.app.rate_limit[0].rate); write a number or a size, and for which time, such as \"100/s\", \"6000/m\" or \"1MiB/s\"",
        ),
        (
            "rate_limit = [{ name = \"x\" }]",
            "t.toml:6:15: error: `rate` is missing (upstream.app.rate_limit[0]); add `rate = …`",
        ),
        (
            "rate_limit = [{ rate = \"1/s\" }, { rate = \"2/s\" }]",
            "t.toml:6:33: error: two rate limits have the name \"default\" (upstream.app.rate_limit[1].name); give each a `name` of its own: answers and log tell them apart by it",
        ),
        (
            "rate_limit = [{ rate = \"1/s\", burst = \"1KiB\" }]",
            "t.toml:6:39: error: `burst` (1KiB) counts bytes, and `rate` (\"1/s\") counts requests (upstream.app.rate_limit[0].burst); give a number of requests, such as 200",
        ),
        (
            "[[defaults.rate_limit]]\nrate = \"1B/s\"\nburst = 5",
            "t.toml:8:9: error: `burst` (5) counts requests, and `rate` (\"1B/s\") counts bytes (defaults.rate_limit[0].burst); give a size, such as \"1MiB\"",
        ),
        (
            "rate_limit = [{ rate = \"1/d\", burst = 4000 }]",
            "t.toml:6:39: error: a burst of 4000 takes more than ten years at \"1/d\" (upstream.app.rate_limit[0].burst); lower `burst`, or raise `rate`",
        ),
        (
            "rate_limit = [{ rate = \"1/s\", max_keys = 5 }]",
            "t.toml:6:42: warning: `max_keys` bounds the keys, and there is no `key` (upstream.app.rate_limit[0].max_keys); add `key = \"header:NAME\"`, or remove it",
        ),
        (
            "breaker.failure_ratio = 1.5",
            "t.toml:6:25: error: 1.5 is not a ratio (upstream.app.breaker.failure_ratio); give a number from 0 to 1",
        ),
        (
            "shed.memory = 0",
            "t.toml:6:15: error: 0 is no memory at all (upstream.app.shed.memory); give a ratio such as 0.9, or \"none\"",
        ),
        (
            "shed.memory = 1.5",
            "t.toml:6:15: error: 1.5 is not a ratio (upstream.app.shed.memory); give a number from 0 to 1",
        ),
        (
            "shed.memory = \"64 apples\"",
            "t.toml:6:15: error: \"64 apples\" is not a size (upstream.app.shed.memory); write a whole number and B, KiB, MiB or GiB, such as \"64KiB\", a ratio such as 0.9, or \"none\"",
        ),
        (
            "shed.memory = true",
            "t.toml:6:15: error: a ratio such as 0.9, a size such as \"64MiB\", or \"none\" is needed (upstream.app.shed.memory)",
        ),
        (
            "shed.caller = \"query:id\"",
            "t.toml:6:15: error: \"query:id\" is no part of a request that can be a key (upstream.app.shed.caller); give \"header:NAME\", \"cookie:NAME\", \"path\" or \"client_ip\"",
        ),
        (
            "shed.lag = \"0s\"",
            "t.toml:6:12: error: \"0s\" is no time at all (upstream.app.shed.lag); the shortest is \"1ms\", or \"none\"",
        ),
        (
            "breaker.failure_ratio = nan",
            "t.toml:6:25: error: NaN is not a ratio (upstream.app.breaker.failure_ratio); give a number from 0 to 1",
        ),
        (
            "breaker.window = { kind = \"time\", size = \"1ms\" }",
            "t.toml:6:42: error: \"1ms\" is out of range (upstream.app.breaker.window.size); give a time from \"1s\" to \"10m\"",
        ),
        (
            "breaker.window = { size = \"10s\" }",
            "t.toml:6:9: error: `kind` is missing (upstream.app.breaker.window); add `kind = …`",
        ),
        (
            "retry = 3",
            "t.toml:6:9: error: `retry` is 3, but a table is needed (upstream.app.retry); write it as a table: { key = … }",
        ),
        (
            "hedge.after = \"p101\"",
            "t.toml:6:15: error: \"p101\" is not a percentile (upstream.app.hedge.after); write one from \"p50\" to \"p99.9\", such as \"p95\"",
        ),
        (
            "hedge.after = \"95\"",
            "t.toml:6:15: error: \"95\" is neither a percentile nor a length of time (upstream.app.hedge.after); write one such as \"p95\" or \"50ms\"",
        ),
        (
            "hedge.budget = 1.5",
            "t.toml:6:16: error: 1.5 is not a ratio (upstream.app.hedge.budget); give a number from 0 to 1",
        ),
        (
            "retry.attempts = -1",
            "t.toml:6:18: error: -1 is out of range (upstream.app.retry.attempts); give a whole number from 1 to 20",
        ),
        (
            "retry.attempts = 99999999999999999999",
            "t.toml:6:18: error: this number is too large; no setting takes one like it",
        ),
        (
            "retry.methods = \"GET\"",
            "t.toml:6:17: error: `methods` is the string \"GET\", but a list is needed (upstream.app.retry.methods); put it in brackets: [ … ]",
        ),
        (
            "host = \"a b\"",
            "t.toml:6:8: error: \"a b\" is not a host (upstream.app.host); give a name such as \"payments.internal\"",
        ),
        (
            "connections.max = 0",
            "t.toml:6:19: error: 0 is out of range (upstream.app.connections.max); give a whole number from 1 to 1000000",
        ),
        (
            "[upstream.\"a b\"]\nendpoints = [\"a:1\"]",
            "t.toml:6:11: error: \"a b\" cannot be a name (upstream.\"a b\"); give 1 to 63 letters, digits, or any of \"-\", \"_\", \".\", \":\"",
        ),
        (
            "[admin]\naddress = \"localhost:1\"",
            "t.toml:7:11: error: \"localhost:1\" is not an address to listen on (admin.address); write \"127.0.0.1:1\"",
        ),
        (
            "[admin]\naddress = \":1\"",
            "t.toml:7:11: error: \":1\" is not an address to listen on (admin.address); write the address too: \"127.0.0.1:1\"",
        ),
        (
            "[telemetry]\nlog = { level = \"information\" }",
            "t.toml:7:17: error: \"information\" is not one of \"error\", \"warn\", \"info\", \"debug\" (telemetry.log.level); did you mean \"info\"?",
        ),
        (
            "retry.request_buffer = \"${NOPE}\"",
            "t.toml:6:24: error: the environment has no NOPE (upstream.app.retry.request_buffer); set it, or give a default: `${NOPE:-…}`",
        ),
        (
            "retry.request_buffer = \"${SECRET}\"",
            "t.toml:6:24: error: \"***\" is not a size (upstream.app.retry.request_buffer); write a whole number and B, KiB, MiB or GiB, such as \"64KiB\"",
        ),
    ];
    for (more, expected) in cases {
        assert_eq!(said(&with(more)), [expected], "{more}");
    }
}

#[test]
fn mistakes_in_listeners_and_routes_are_told_too() {
    let cases = [
        // what the listener says                       what is said
        (
            "limits = { max_headers = 0 }",
            "t.toml:4:26: error: 0 is out of range (listener[0].limits.max_headers); give a whole number from 1 to 1000",
        ),
        (
            "limits = { max_header_size = \"2MiB\" }",
            "t.toml:4:30: error: a head of 2MiB is out of range (listener[0].limits.max_header_size); give a size from \"1KiB\" to \"1MiB\"",
        ),
        (
            "trust = [\"10.0.0.0/33\"]",
            "t.toml:4:9: error: \"10.0.0.0/33\" is not a network (listener[0].trust); write an address or \"10.0.0.0/8\"",
        ),
        (
            "tls = {}",
            "t.toml:4:1: error: `tls` has no certificate (listener[0].tls); add `cert = \"…\"` and `key = \"…\"`",
        ),
        (
            "tls = { cert = \"/nowhere/x.pem\" }",
            "t.toml:4:16: error: /nowhere/x.pem cannot be read: No such file or directory (os error 2) (listener[0].tls.cert); check the path",
        ),
        (
            "proxy_protocol = \"v2\"",
            "t.toml:4:18: error: `proxy_protocol` is the string \"v2\", but true or false is needed (listener[0].proxy_protocol); give true or false",
        ),
        (
            "name = \"a b\"",
            "t.toml:4:8: error: \"a b\" cannot be a name (listener[0].name); give 1 to 63 letters, digits, or any of \"-\", \"_\", \".\", \":\"",
        ),
        (
            "[[listener.route]]\nmatch = { host = \"a:80\" }\nupstream = \"app\"",
            "t.toml:5:18: error: hosts match without their port (listener[0].route[0].match.host); leave the port out: \"a\"",
        ),
        (
            "[[listener.route]]\nmatch = { host = \"a.*\" }\nupstream = \"app\"",
            "t.toml:5:18: error: \"a.*\" is not a host to match (listener[0].route[0].match.host); a \"*\" stands only at the beginning, as in \"*.example.org\"",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"a\" }\nupstream = \"app\"",
            "t.toml:5:25: error: \"a\" is not the beginning of a path (listener[0].route[0].match.path_prefix); begin it with \"/\": \"/a\"",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a*\" }\nupstream = \"app\"",
            "t.toml:5:25: error: \"/a*\" is not the beginning of a path (listener[0].route[0].match.path_prefix); leave the \"*\" out; everything below the prefix is taken",
        ),
        (
            "[[listener.route]]\nmatch = { methods = [\"GET\", \"post\"] }\nupstream = \"app\"",
            "t.toml:5:29: error: \"post\" matches nothing, methods have case (listener[0].route[0].match.methods[1]); write \"POST\"",
        ),
        (
            "[[listener.route]]\nmatch = { headers = { a = 1 } }\nupstream = \"app\"",
            "t.toml:5:27: error: `a` is 1, but a string is needed (listener[0].route[0].match.headers.a); put it in quotes: \"1\"",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }",
            "t.toml:4:1: error: this route leads nowhere: it has neither `upstream` nor `split` (listener[0].route[0]); add `upstream = \"…\"`",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nupstraem = \"app\"",
            "t.toml:6:1: error: unknown key `upstraem` (listener[0].route[0].upstraem); did you mean `upstream`?",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nsplit = []",
            "t.toml:4:1: error: this route leads nowhere: it has neither `upstream` nor `split` (listener[0].route[0]); add `upstream = \"…\"`",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nupstream = \"app\"\nsplit = [{ upstream = \"app\" }]",
            "t.toml:7:1: error: a route has either `upstream` or `split`, not both (listener[0].route[0].split); leave one of the two out",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nsplit = [{ upstream = \"ap\" }]",
            "t.toml:6:23: error: there is no upstream \"ap\" (listener[0].route[0].split[0].upstream); did you mean \"app\"?",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nsplit = [{ upstream = \"app\", weight = 0 }]",
            "t.toml:6:39: error: 0 is out of range (listener[0].route[0].split[0].weight); give a whole number from 1 to 10000",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nupstream = \"app\"\nmirror = { upstream = \"ap\" }",
            "t.toml:7:23: error: there is no upstream \"ap\" (listener[0].route[0].mirror.upstream); did you mean \"app\"?",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nupstream = \"ap\"",
            "t.toml:6:12: error: there is no upstream \"ap\" (listener[0].route[0].upstream); did you mean \"app\"?",
        ),
        (
            "[[listener.route]]\nmatch = { path_prefix = \"/a\" }\nupstream = \"app\"\ntimeout = { idel = \"1s\" }",
            "t.toml:7:13: error: unknown key `idel` (listener[0].route[0].timeout.idel); did you mean `idle`?",
        ),
    ];
    for (more, expected) in cases {
        assert_eq!(said(&format!("{LISTENER}{more}\n{UPSTREAM}")), [expected], "{more}");
    }
}

#[test]
fn mistakes_with_unix_sockets_are_told() {
    let listener = |address: &str, more: &str| {
        said(&format!("[[listener]]\naddress = \"{address}\"\nupstream = \"app\"\n{more}\n{UPSTREAM}"))
    };
    assert_eq!(
        listener("unix:run/a", ""),
        [
            "t.toml:2:11: error: \"unix:run/a\" is not a socket (listener[0].address); write \"unix:/path\", with at most 107 bytes"
        ]
    );
    assert_eq!(
        listener("unix:/run/a", "[[listener]]\naddress = \"unix:/run/a\"\nname = \"b\"\nupstream = \"app\""),
        [
            "t.toml:5:11: error: `listener[1].address` (unix:/run/a) is taken by `listener[0].address` (unix:/run/a); \
             give each its own path"
        ]
    );
    assert_eq!(
        listener("unix:/run/a", "trust = [\"10.0.0.0/8\"]"),
        [
            "t.toml:4:9: warning: `listener[0].trust` holds for nobody: clients at a Unix socket count as 127.0.0.1; \
             give \"all\" or \"none\": whoever may open the socket decides"
        ]
    );
    assert!(listener("unix:/run/a", "trust = [\"10.0.0.0/8\"]\nproxy_protocol = true").is_empty());
    let own = "[[listener]]\naddress = \"unix:/run/a\"\nupstream = \"app\"\n[upstream.app]\nendpoints = [\"unix:/run/a\"]";
    assert_eq!(
        said(own),
        [
            "t.toml:5:14: error: the endpoint unix:/run/a is the listener \"unix:/run/a\" of this file: a loop \
             (upstream.app.endpoints[0]); give the address of the service itself"
        ]
    );
}

#[test]
fn mistakes_in_files_of_certificates_are_told_at_their_keys() {
    let folder = Folder::new();
    let authority = Authority::new("Test CA");
    let (app, other) = (authority.issue_for(&["app.internal"]), authority.issue_for(&["other.internal"]));
    folder.write("ca.pem", authority.pem());
    folder.write_pair("app", &app);
    folder.write_pair("other", &other);
    folder.write_pair("old", &authority.issue(&Leaf::of(&["old.internal"]).expired()));
    folder.write("empty.pem", "");
    folder.write("cut.pem", &app.cert[..app.cert.len() / 2]);
    folder.write("der.pem", [0x30, 0x82, 1, 2]);
    folder.write("encrypted.pem", app.key.replace("PRIVATE", "ENCRYPTED PRIVATE"));
    let at = folder.path().display().to_string();
    #[rustfmt::skip]
    let cases = [
        // what the upstream's tls says                     what is said of it
        ("cert = \"A/app.pem\"",                            "error: `cert` stands without `key` (upstream.app.tls); add `key = \"…\"`"),
        ("cert = \"A/app.pem\", key = \"A/other-key.pem\"", "error: `key` (A/other-key.pem) does not belong to the certificate in `cert` (A/app.pem), \"app.internal\" (issued by \"Test CA\") (upstream.app.tls); give the key that this certificate was made with"),
        ("cert = \"A/app.pem\", key = \"A/none.pem\"",      "error: A/none.pem cannot be read: No such file or directory (os error 2) (upstream.app.tls.key); check the path"),
        ("cert = \"A/app.pem\", key = \"A/encrypted.pem\"", "error: A/encrypted.pem holds an encrypted key (upstream.app.tls.key); decrypt it: `openssl pkey -in FILE -out NEW`"),
        ("cert = \"A/app.pem\", key = \"A/app.pem\"",       "error: A/app.pem holds a certificate, but no private key (upstream.app.tls.key); name the key's own file"),
        ("cert = \"A/app-key.pem\", key = \"A/app-key.pem\"",   "error: A/app-key.pem holds a private key, but no certificate (upstream.app.tls.cert); name the certificate's own file"),
        ("cert = \"A/old.pem\", key = \"A/old-key.pem\"",   "warning: the certificate \"old.internal\" (issued by \"Test CA\") expired on 2021-01-01 (upstream.app.tls.cert); renew it: peers refuse one that is not valid"),
        ("ca = \"A/none.pem\"",                             "error: A/none.pem cannot be read: No such file or directory (os error 2) (upstream.app.tls.ca); check the path"),
        ("ca = \"A\"",                                      "error: A is not a regular file (upstream.app.tls.ca); name a file in PEM"),
        ("ca = \"A/empty.pem\"",                            "error: A/empty.pem holds no certificate in PEM (upstream.app.tls.ca); it must have a line \"-----BEGIN …-----\""),
        ("ca = \"A/cut.pem\"",                              "error: A/cut.pem holds a certificate that is cut short or damaged (upstream.app.tls.ca); copy it again"),
        ("ca = \"A/der.pem\"",                              "error: A/der.pem holds no certificate in PEM (it seems to be DER) (upstream.app.tls.ca); it must have a line \"-----BEGIN …-----\""),
        ("server_name = \"app:443\"",                       "error: this is no name of a server (upstream.app.tls.server_name); give a DNS name or an IP address, without a port"),
        ("san = [\"a b\"]",                                 "error: \"a b\" is no name that a certificate can have (upstream.app.tls.san[0]); give a DNS name, an IP address or a URI such as \"spiffe://example.org/app\""),
        ("sans = [\"app\"]",                                   "error: unknown key `sans` (upstream.app.tls.sans); did you mean `san`?"),
        ("ca = \"A/ca.pem\"",                               ""),
    ];
    for (tls, expected) in cases {
        let said = said(&with(&format!("tls = {{ {} }}", tls.replace('A', &at))));
        let said: Vec<String> = said.iter().map(|line| line.replace(&at, "A")).collect();
        let said: Vec<&str> =
            said.iter().filter_map(|line| line.splitn(4, ':').nth(3)).map(str::trim).collect();
        let expected: Vec<&str> = Some(expected).filter(|text| !text.is_empty()).into_iter().collect();
        assert_eq!(said, expected, "{tls}");
    }
    let listener = format!(
        "tls = {{ cert = \"{at}/app.pem\", key = \"{at}/app-key.pem\", certificates = [{{ cert = \"{at}/old.pem\", key = \"{at}/old-key.pem\" }}] }}"
    );
    let said = said(&format!("{LISTENER}{listener}\n{UPSTREAM}"));
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("(listener[0].tls.certificates[0].cert)"), "{said:#?}");
}

#[test]
fn all_mistakes_of_a_file_are_told_in_one_go() {
    let text = with(
        "host = 5\nretry.attempts = 0\n[upstream.app.breaker]\nkind = 1\nx = 2\n[serve]\n[defaults.retry]\non = [\"500\", 500, \"nope\"]",
    );
    let lines: Vec<String> =
        said(&text).iter().map(|line| line.split("; ").next().unwrap_or_default().to_owned()).collect();
    assert_eq!(
        lines,
        [
            "t.toml:6:8: error: `host` is 5, but a string is needed (upstream.app.host)",
            "t.toml:7:18: error: 0 is out of range (upstream.app.retry.attempts)",
            "t.toml:9:8: error: `kind` is 1, but a string is needed (upstream.app.breaker.kind)",
            "t.toml:10:1: error: unknown key `x` (upstream.app.breaker.x)",
            "t.toml:11:2: error: unknown key `serve`",
            "t.toml:13:14: error: `on` is 500, but a string is needed (defaults.retry.on[1])",
            "t.toml:13:19: error: \"nope\" is not a reason, a status (\"503\", \"5xx\") or a gRPC status (\"grpc:UNAVAILABLE\") (defaults.retry.on[2])",
        ]
    );
}

#[test]
fn a_mistake_in_defaults_is_told_once_however_many_upstreams_it_reaches() {
    let text = format!(
        "{LISTENER}route = [{{ upstream = \"b\", match = {{ path_prefix = \"/b\" }} }}]\n{UPSTREAM}[upstream.b]\nendpoints = [\"b:1\"]\n[defaults.retry]\nattempts = 21\nbackoff.base = \"2s\"\n"
    );
    assert_eq!(
        said(&text),
        [
            "t.toml:10:12: error: 21 is out of range (defaults.retry.attempts); give a whole number from 1 to 20",
            "t.toml:11:16: error: `defaults.retry.backoff.base` (\"2s\") is longer than `defaults.retry.backoff.max` (\"1s\", built in); raise `max`, or lower `base`",
        ]
    );
}

#[test]
fn syntax_errors_are_told_with_the_rest_but_without_their_echoes() {
    let cases: [(&str, &str, &[&str]); 7] = [
        (
            "an open list",
            "[[listener]]\naddress = \"127.0.0.1:8080\"\nupstream = \"app\"\n[upstream.app]\nendpoints = [\"a:1\"\nretry = { attempts = 5\nfoo = 1\n[server]\nworker = 1\n",
            &[
                "t.toml:6:1: error: missing comma between array elements; close the list with `]`, or put a comma between its elements",
                "t.toml:9:1: error: unknown key `worker` (server.worker); did you mean `workers`?",
            ],
        ),
        (
            "no quotes",
            "[[listener]]\naddress = \"127.0.0.1:8080\"\nupstream = app\n[upstream.app]\nendpoints = [\"a:1\"]\nfoo = 1\n",
            &[
                "t.toml:3:12: error: string values must be quoted; put it in quotes: \"app\"",
                "t.toml:6:1: error: unknown key `foo` (upstream.app.foo); the keys here are",
            ],
        ),
        (
            "two at once",
            "[server]\nwatch = \nworkers == 3\n[[listener]]\n",
            &["t.toml:2:", "t.toml:3:", "t.toml:4:1: error: `address` is missing"],
        ),
        (
            "a key twice",
            "[server]\nwatch = true\nwatch = false\n",
            &["t.toml:3:1: error: `watch` stands here twice; "],
        ),
        (
            "a header that stays open",
            "[[listener]\naddress = \"127.0.0.1:8080\"\n",
            &["t.toml:1:12: error: unclosed array table; close it with `]]`"],
        ),
        (
            "a single table",
            "[listener]\naddress = \"127.0.0.1:8080\"\nupstream = \"app\"\n[upstream.app]\nendpoints = [\"a:1\"]\n",
            &[
                "t.toml:1:2: error: `listener` is a table, but a list of tables is needed; write `[[listener]]`, with two brackets",
            ],
        ),
        (
            "an upstream without a name",
            "[[listener]]\naddress = \"127.0.0.1:8080\"\nupstream = \"app\"\n[upstream]\nendpoints = [\"a:1\"]\n",
            &[
                "t.toml:3:12: error: there is no upstream \"app\"",
                "t.toml:5:1: error: `upstream.endpoints` is a list, but each upstream is a table; give it a name: `[upstream.NAME]`",
            ],
        ),
    ];
    for (why, text, expected) in cases {
        let said = said(text);
        assert_eq!(said.len(), expected.len(), "{why}: {said:#?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.starts_with(expected), "{why}: {said}");
        }
    }
}

#[test]
fn what_contradicts_itself_is_told_by_both_paths() {
    let cases = [
        (
            "retry.backoff = { base = \"2s\", max = \"1s\" }",
            "error: `upstream.app.retry.backoff.base` (\"2s\") is longer than `upstream.app.retry.backoff.max` (\"1s\")",
        ),
        (
            "timeout.attempt = \"16s\"",
            "error: `upstream.app.timeout.attempt` (\"16s\") is longer than `upstream.app.timeout.request` (\"15s\", built in)",
        ),
        (
            "timeout = { connect = \"2s\", request = \"900ms\" }",
            "error: `upstream.app.timeout.connect` (\"2s\") is longer than `upstream.app.timeout.request` (\"900ms\")",
        ),
        (
            "timeout = { connect = \"1s\", attempt = \"500ms\" }",
            "warning: `upstream.app.timeout.connect` (\"1s\") is longer than `upstream.app.timeout.attempt` (\"500ms\")",
        ),
        (
            "timeout.stream_idle = \"1s\"",
            "warning: `upstream.app.timeout.stream_idle` (\"1s\") is shorter than `upstream.app.timeout.idle` (\"30s\", built in)",
        ),
        (
            "timeout.request = \"30s\"",
            "warning: `upstream.app.timeout.request` (\"30s\") is longer than `server.drain_timeout` (\"20s\", built in)",
        ),
        (
            "hedge = { mode = \"enforce\", after = \"7500ms\" }",
            "error: `upstream.app.hedge.after` (\"7500ms\") is not below `upstream.app.timeout.attempt` (7.5s, built in)",
        ),
        (
            "hedge = { mode = \"shadow\", after = \"1s\" }\ntimeout.attempt = \"1s\"",
            "error: `upstream.app.hedge.after` (\"1s\") is not below `upstream.app.timeout.attempt` (\"1s\")",
        ),
        (
            "hedge.mode = \"enforce\"\nretry.methods = [\"GET\", \"PUT\", \"POST\"]",
            "error: `upstream.app.retry.methods[2]` (\"POST\") is not safe, and hedged by `upstream.app.hedge.mode` (\"enforce\")",
        ),
        (
            "hedge = { mode = \"enforce\", after = \"p90\" }",
            "warning: `upstream.app.hedge.after` (\"p90\") is earlier than can be paid for by `upstream.app.hedge.budget` (0.05, built in)",
        ),
        (
            "hedge.budget = 0.1",
            "warning: `upstream.app.hedge.budget` says how to hedge, but nothing is hedged",
        ),
        (
            "hedge = { mode = \"enforce\", budget = 0.0 }",
            "warning: `upstream.app.hedge.budget` is 0: nothing is ever hedged",
        ),
        (
            "breaker.slow_request = \"7500ms\"",
            "error: `upstream.app.breaker.slow_request` (\"7500ms\") is not below `upstream.app.timeout.attempt` (7.5s, built in)",
        ),
        (
            "outlier.eject_for = { base = \"2m\" }",
            "error: `upstream.app.outlier.eject_for.base` (\"2m\") is longer than `upstream.app.outlier.eject_for.max` (\"1m\", built in)",
        ),
        (
            "fault.reset = true",
            "error: `upstream.app.fault.reset` hits 100 % of the requests, and no header asks for it",
        ),
        (
            "fault.abort = { ratio = 0.3, status = 500 }",
            "error: `upstream.app.fault.abort.ratio` hits 30 % of the requests, and no header asks for it",
        ),
        (
            "fault = { abort = { ratio = 0.15 }, delay = { ratio = 0.1, for = \"1s\" } }",
            "error: `upstream.app.fault.abort.ratio` and the other kinds hit 23.5 % of the requests together, and no header asks for it",
        ),
        (
            "[defaults.fault]\nbandwidth = \"1KiB/s\"",
            "error: `defaults.fault.bandwidth` hits 100 % of the requests, and no header asks for it",
        ),
        (
            "shed = {}\nconcurrency.mode = \"shadow\"",
            "warning: `upstream.app.shed` is written, but `upstream.app.concurrency.mode` is not \"enforce\": nothing finds out how much is too much",
        ),
        (
            "health.path = \"/up\"",
            "warning: `upstream.app.health.path` says how to check endpoints, but nobody is checked",
        ),
        (
            "health = { mode = \"enforce\", kind = \"tcp\", path = \"/up\" }",
            "warning: `upstream.app.health.path` is only for checks of `kind = \"http\"`",
        ),
        (
            "breaker.open_for = { base = \"1m\" }",
            "error: `upstream.app.breaker.open_for.base` (\"1m\") is longer than `upstream.app.breaker.open_for.max` (\"30s\", built in)",
        ),
        (
            "breaker.window = { kind = \"count\", size = 10 }",
            "error: `upstream.app.breaker.min_requests` (20, built in) is more than `upstream.app.breaker.window.size` (10)",
        ),
        (
            "concurrency.queue.timeout = \"15s\"",
            "warning: `upstream.app.concurrency.queue.timeout` (\"15s\") is not below `upstream.app.timeout.request` (\"15s\", built in)",
        ),
        (
            "concurrency.limit = { kind = \"gradient\", min = 200, max = 100 }",
            "error: `upstream.app.concurrency.limit.min` (200) is more than `upstream.app.concurrency.limit.max` (100)",
        ),
        (
            "concurrency.limit = { kind = \"vegas\", max = 3 }",
            "error: `upstream.app.concurrency.limit.min` (4, built in) is more than `upstream.app.concurrency.limit.max` (3)",
        ),
        (
            "concurrency.limit = { kind = \"aimd\", initial = 2 }",
            "error: `upstream.app.concurrency.limit.initial` (2) is less than `upstream.app.concurrency.limit.min` (4, built in)",
        ),
        (
            "connections.max = 10",
            "warning: `upstream.app.concurrency.limit.max` (1000, built in) is more than `upstream.app.connections.max` (10)",
        ),
        (
            "retry.request_buffer = \"64MiB\"",
            "warning: `upstream.app.retry.request_buffer` (\"64MiB\") is more than `server.max_buffer` (\"32MiB\", built in)",
        ),
        (
            "[admin]\naddress = \"127.0.0.1:8080\"",
            "error: `listener[0].address` (127.0.0.1:8080) is taken by `admin.address` (127.0.0.1:8080)",
        ),
        (
            "[admin]\nmetrics_address = \"0.0.0.0:8080\"",
            "error: `listener[0].address` (127.0.0.1:8080) is taken by `admin.metrics_address` (0.0.0.0:8080)",
        ),
        ("[admin]\naddress = \"0.0.0.0:9900\"", "warning: `admin.address` (0.0.0.0:9900) is not loopback"),
        ("[admin]\nready_requires = [\"apq\"]", "error: there is no upstream \"apq\""),
        (
            "[server]\nservice = \"127.0.0.1:8080\"",
            "error: `server.service` (127.0.0.1:8080) is the listener \"127.0.0.1:8080\" of this file",
        ),
        (
            "fallback.upstream = \"ap\"",
            "error: there is no upstream \"ap\" (upstream.app.fallback.upstream); did you mean \"app\"?",
        ),
        (
            "[defaults.fallback]\nupstream = \"ap\"",
            "error: there is no upstream \"ap\" (defaults.fallback.upstream)",
        ),
        (
            "fallback.upstream = \"app\"",
            "error: `upstream.app.fallback.upstream` is \"app\" itself, which has just failed",
        ),
        (
            "fallback.upstream = \"b\"\n[upstream.b]\nendpoints = [\"b:1\"]\nfallback.upstream = \"app\"",
            "warning: \"app\" and \"b\" stand in for each other",
        ),
        (
            "fallback.on = [\"503\"]",
            "warning: `upstream.app.fallback.on` names failures, and nothing stands in for them",
        ),
        (
            "fallback.key = [\"header:a\"]",
            "warning: `upstream.app.fallback.key` tells requests apart for `stale` and `coalesce`",
        ),
        (
            "fallback.coalesce = true\nrate_limit = [{ rate = \"9/s\", key = \"header:X-Tenant\" }]",
            "warning: `upstream.app.fallback.key` lacks \"header:x-tenant\", by which `upstream.app.rate_limit` tells",
        ),
        (
            "fallback.stale = {}\nshed.caller = \"header:x-tenant\"",
            "warning: `upstream.app.fallback.key` lacks \"header:x-tenant\", by which `upstream.app.shed.caller` tells",
        ),
        (
            "fallback.stale = {}\n[[listener.route]]\nmatch.headers = { X-Tenant = \"a\" }\nupstream = \"app\"",
            "warning: `upstream.app.fallback.key` lacks \"header:x-tenant\", by which `listener[0].route[0].match.headers`",
        ),
        (
            "fallback.response = { status = 204, body = \"x\" }",
            "error: `upstream.app.fallback.response` has a body, and an answer with status 204 has none",
        ),
        ("fallback.stale = { max_size = \"1KiB\" }", "error: 1KiB is no size for kept answers"),
        ("fallback.on = [\"no_route\"]", "error: \"no_route\" is the client's own doing"),
        ("[upstream.b]\nendpoints = [\"a:1\"]", "warning: no listener and no route uses the upstream \"b\""),
        (
            "[[listener]]\naddress = \"127.0.0.1:8080\"\nupstream = \"app\"",
            "error: `listener[1].address` (127.0.0.1:8080) is taken by `listener[0].address` (127.0.0.1:8080)",
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:8081\"\nupstream = \"app\"\nname = \"127.0.0.1:8080\"",
            "error: `listener[1].name` (127.0.0.1:8080) is also the name at `listener[0].address` (127.0.0.1:8080)",
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:8081\"",
            "error: this listener leads nowhere: it has neither `upstream` nor `[[listener.route]]`",
        ),
        (
            "[[listener]]\naddress = \"0.0.0.0:8081\"\nupstream = \"app\"\ndirection = \"ingress\"\ntrust = \"all\"",
            "warning: `listener[1].trust` is \"all\": whoever can reach 0.0.0.0:8081 sets deadlines and retries",
        ),
    ];
    for (more, expected) in cases {
        let said = said(&with(more));
        assert_eq!(said.len(), 1, "{more}: {said:#?}");
        assert!(said[0].contains(expected), "{more}: {}", said[0]);
    }
    assert!(said("")[0].contains("there is no `[[listener]]`"));
}

#[test]
fn a_short_timeout_alone_contradicts_nothing_that_is_built_in() {
    for more in ["timeout.attempt = \"400ms\"", "timeout.request = \"300ms\"", "timeout.request = \"10ms\""] {
        assert_eq!(said(&with(more)), [""; 0], "{more}");
    }
}

#[test]
fn connections_bound_attempts_only_where_each_has_its_own() {
    let cases = [
        ("protocol = \"http1\"", 1),
        ("protocol = \"http1\"\ntls = {}", 1),
        ("protocol = \"auto\"", 1),
        ("tls = {}", 0),
        ("protocol = \"http2\"", 0),
    ];
    for (protocol, expected) in cases {
        let said = said(&with(&format!("connections.max = 10\n{protocol}")));
        assert_eq!(said.len(), expected, "{protocol}: {said:#?}");
    }
}

#[test]
fn endpoints_are_looked_at_together() {
    let cases = [
        (
            "endpoints = []",
            "t.toml:5:13: error: there are no endpoints (upstream.app.endpoints); give at least one \"host:port\"",
        ),
        (
            "",
            "t.toml:4:11: error: the upstream \"app\" has no endpoints (upstream.app); add `endpoints = [\"host:port\"]`",
        ),
        (
            "endpoints = [\"10.0.0.1:1\", \"app.internal:1\"]\ndiscovery = { kind = \"none\" }",
            "t.toml:5:28: error: the endpoint app.internal:1 is a name, and `discovery.kind` is \"none\" (upstream.app.endpoints[1]); give an address, or say `discovery = { kind = \"dns\" }`",
        ),
        (
            "endpoints = [\"a\"]",
            "t.toml:5:14: error: \"a\" is not an address: the port is missing (upstream.app.endpoints[0]); write \"host:port\" or \"[ipv6]:port\"",
        ),
        (
            "endpoints = [\"a:1\", \"a:1\"]",
            "t.toml:5:21: warning: the endpoint a:1 stands here twice (upstream.app.endpoints[1]); remove one of them; `weight` gives an endpoint more",
        ),
        (
            "endpoints = [\"10.0.0.1:1\", \"10.0.0.2:1\"]\noutlier.max_ejected = 0.4",
            "t.toml:6:23: warning: `upstream.app.outlier.max_ejected` (0.4) of 2 endpoints is less than one: none is ever ejected; give at least 0.50",
        ),
        (
            "endpoints = [\"a:1\", { address = \"b:1\", priority = 2 }]",
            "t.toml:5:51: error: this endpoint has priority 2, and none has 1 (upstream.app.endpoints[1].priority); priorities count from 0 without a gap: give it 1",
        ),
        (
            "endpoints = [{ address = \"a:1\", priority = 1 }]",
            "t.toml:5:44: error: this endpoint has priority 1, and none has 0 (upstream.app.endpoints[0].priority); priorities count from 0 without a gap: give it 0",
        ),
        (
            "endpoints = [\"127.0.0.1:8080\"]",
            "t.toml:5:14: error: the endpoint 127.0.0.1:8080 is the listener \"127.0.0.1:8080\" of this file: a loop (upstream.app.endpoints[0]); give the address of the service itself",
        ),
        (
            "endpoints = [{ address = \"a:1\", weight = 0 }]",
            "t.toml:5:42: error: 0 is out of range (upstream.app.endpoints[0].weight); give a whole number from 1 to 1000",
        ),
        (
            "endpoints = [{ address = \"a:1\", priority = 10 }]",
            "t.toml:5:44: error: 10 is out of range (upstream.app.endpoints[0].priority); give a whole number from 0 to 9",
        ),
        (
            "endpoints = [{ weight = 1 }]",
            "t.toml:5:14: error: `address` is missing (upstream.app.endpoints[0]); add `address = …`",
        ),
    ];
    for (endpoints, expected) in cases {
        assert_eq!(said(&format!("{LISTENER}[upstream.app]\n{endpoints}\n")), [expected], "{endpoints}");
    }
    for brings in [
        "{ kind = \"dns_srv\", name = \"_http._tcp.app\" }",
        "{ kind = \"file\", path = \"endpoints.json\" }",
    ] {
        let standby = "endpoints = [{ address = \"10.0.0.1:1\", priority = 1 }]\n";
        for endpoints in ["", "endpoints = []\n", "endpoints = [\"10.0.0.1:1\"]\n", standby] {
            let text = format!("{LISTENER}[upstream.app]\n{endpoints}discovery = {brings}\n");
            assert_eq!(said(&text), [""; 0], "{text}");
        }
    }
}

#[test]
fn a_route_that_never_matches_is_told() {
    let never = |said: &[String]| said.iter().filter(|line| line.contains("never matches")).count();
    let cases = [
        // why                                    above                                        below                       never
        ("nothing is left", "", "match = { host = \"a\" }", 1),
        (
            "a shorter prefix with any host",
            "match = { path_prefix = \"/a\" }",
            "match = { path_prefix = \"/a/b\", host = \"h\" }",
            1,
        ),
        (
            "a shorter prefix of another host",
            "match = { path_prefix = \"/a\", host = \"i\" }",
            "match = { path_prefix = \"/a/b\", host = \"h\" }",
            0,
        ),
        (
            "a longer prefix first",
            "match = { path_prefix = \"/a/b\" }",
            "match = { path_prefix = \"/a\" }",
            0,
        ),
        ("more methods", "match = { methods = [\"GET\", \"PUT\"] }", "match = { methods = [\"GET\"] }", 1),
        ("other methods", "match = { methods = [\"GET\"] }", "match = { methods = [\"PUT\"] }", 0),
    ];
    for (why, above, below, count) in cases {
        let route = |keys: &str| format!("[[listener.route]]\nupstream = \"app\"\n{keys}\n");
        let text =
            format!("[[listener]]\naddress = \"127.0.0.1:8080\"\n{}{}{UPSTREAM}", route(above), route(below));
        assert_eq!(never(&said(&text)), count, "{why}: {:#?}", said(&text));
    }
    let text = format!("{LISTENER}[[listener.route]]\nupstream = \"app\"\n{UPSTREAM}");
    assert_eq!(
        said(&text),
        [
            "t.toml:3:12: warning: `listener[0].upstream` gets no requests: `listener[0].route[0]` takes all of them; leave one of the two out, or give the route a `match`"
        ]
    );
}

#[test]
fn faults_are_written_at_length_or_in_short() {
    let fault = "[upstream.app.fault]
        mode = \"enforce\"
        delay = { ratio = 0.1, for = \"300ms\", jitter = \"50ms\" }
        abort = { ratio = 0.01, status = 503 }
        match = { headers = { x-chaos = \"on\" } }
        for = \"10m\"
        max_active = 50
        allow_wide = false";
    for (in_short, kinds) in [
        ("", vec!["delay", "abort"]),
        ("reset = true", vec!["delay", "abort", "reset"]),
        ("truncate = \"1KiB\"", vec!["delay", "abort", "truncate"]),
        (
            "bandwidth = \"1KiB/s\"\nslow_first_byte = \"1s\"",
            vec!["delay", "abort", "slow_first_byte", "bandwidth"],
        ),
    ] {
        let loaded = parsed(&with(&format!("{fault}\n{in_short}")));
        assert!(loaded.warnings.is_empty());
        let written: Vec<_> = loaded.config.upstream["app"].fault.kinds().map(|(kind, _)| kind).collect();
        assert_eq!(written, kinds, "{in_short}");
        let again = parse(&loaded.redacted, "t.toml", &environment).expect("what is shown can be run");
        assert_eq!(again.config.upstream["app"].fault, loaded.config.upstream["app"].fault, "{in_short}");
    }
    for (text, expected) in [
        ("fault.abort = { status = 200 }", "give a whole number from 400 to 599"),
        ("fault.abort = { reset = true }", "unknown key `reset`"),
        ("fault.delay = { ratio = 0.1 }", "`for` is missing"),
        (
            "fault.delay = 3",
            "`delay` is 3, but a time such as \"300ms\", or a table { ratio, for, jitter } is needed",
        ),
        ("fault.truncate = \"1 parsec\"", "\"1 parsec\" is not a size"),
        ("fault.match = { header = { a = \"b\" } }", "did you mean `headers`?"),
        (
            "fault.match = { priority = [\"urgent\"] }",
            "\"urgent\" is not one of \"critical\", \"high\", \"normal\", \"low\"",
        ),
        ("fault.mode = \"shadow\"", "\"shadow\" is not one of \"enforce\", \"off\""),
        ("fault.for = \"2d\"", "give a time from \"1ms\" to \"1d\""),
    ] {
        let said = said(&with(text));
        assert!(
            matches!(said.as_slice(), [only] if only.starts_with("t.toml:6:") && only.contains(expected)),
            "{text}: {said:#?}"
        );
    }
}

#[test]
fn a_fault_that_nobody_can_ask_for_is_told() {
    let ingress = LISTENER.replace("8080\"", "8080\"\ndirection = \"ingress\"");
    let fault = "fault = { reset = true, match = { headers = { x-chaos = \"on\" } } }";
    let text = format!("{ingress}{UPSTREAM}{fault}\n");
    let expected = "warning: `upstream.app.fault.match.headers` asks for nothing at the listener \"127.0.0.1:8080\", which trusts none of its callers";
    assert!(matches!(said(&text).as_slice(), [only] if only.contains(expected)), "{:#?}", said(&text));
    let trusted = text.replace("\"ingress\"", "\"ingress\"\ntrust = [\"10.0.0.0/8\"]");
    assert!(said(&trusted).is_empty(), "{:#?}", said(&trusted));
}

#[test]
fn layers_replace_key_by_key_and_tables_below_a_key_as_a_whole() {
    let text = "
        [defaults.retry]
        attempts = 2
        backoff = { base = \"10ms\", max = \"500ms\" }
        request_buffer = \"1KiB\"
        [defaults.timeout]
        connect = \"2s\"
        [[listener]]
        address = \"127.0.0.1:8080\"
        upstream = \"plain\"
        [[listener.route]]
        match = { path_prefix = \"/a\" }
        upstream = \"own\"
        retry = { attempts = 5 }
        [upstream.plain]
        endpoints = [\"a:1\"]
        [upstream.own]
        endpoints = [\"b:1\"]
        [upstream.own.retry]
        attempts = 3
        request_buffer = \"2KiB\"
        [upstream.own.retry.backoff]
        base = \"20ms\"
        [upstream.inline]
        endpoints = [\"c:1\"]
        retry.backoff = { base = \"20ms\" }
    ";
    let loaded = parsed(text);
    let (plain, own, inline) =
        (&loaded.config.upstream["plain"], &loaded.config.upstream["own"], &loaded.config.upstream["inline"]);
    assert_eq!((plain.retry.attempts, plain.retry.backoff.base), (2, Span::from_millis(10)));
    assert_eq!(*plain.timeout.connect, *Span::from_secs(2));
    assert_eq!((own.retry.attempts, own.retry.request_buffer.bytes()), (3, 2048));
    assert_eq!(own.retry.backoff.base, Span::from_millis(20));
    assert_eq!(own.retry.backoff.max, Span::from_secs(1), "what a table leaves out is built in");
    assert_eq!(inline.retry.backoff, own.retry.backoff, "a table with a header acts as one in braces");
    let route =
        loaded.config.listener[0].route[0].retry.as_ref().expect("the route says something of retries");
    assert_eq!((route.attempts, route.request_buffer.bytes()), (5, 2048));
    assert_eq!(loaded.config.listener[0].route[0].timeout, None, "it says nothing of timeouts");

    let from = |path: &str| loaded.origins.get(path).map(|origin| (origin.layer, origin.line));
    assert_eq!(from("upstream.plain.retry.attempts"), Some((Layer::Defaults, 3)));
    assert_eq!(from("upstream.own.retry.attempts"), Some((Layer::Written, 20)));
    assert_eq!(from("listener[0].route[0].retry.attempts"), Some((Layer::Route, 14)));
    assert_eq!(from("listener[0].route[0].retry.request_buffer"), Some((Layer::Written, 21)));
    assert_eq!(from("upstream.plain.retry.on"), None);
}

#[test]
fn rate_limits_add_up_by_their_names() {
    let text = "
        [[defaults.rate_limit]]
        rate = \"1/s\"
        [[defaults.rate_limit]]
        name = \"tenant\"
        rate = \"2/s\"
        key = \"header:x-tenant\"
        [[listener]]
        address = \"127.0.0.1:8080\"
        upstream = \"plain\"
        [[listener.route]]
        match = { path_prefix = \"/a\" }
        upstream = \"own\"
        [upstream.plain]
        endpoints = [\"a:1\"]
        [upstream.own]
        endpoints = [\"b:1\"]
        [[upstream.own.rate_limit]]
        name = \"more\"
        rate = \"${FIVE}/s\"
        burst = \"${FIVE}\"
        [[upstream.own.rate_limit]]
        name = \"tenant\"
        rate = \"20/s\"
    ";
    let loaded = parsed(text);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let limits = |name: &str| -> Vec<String> {
        let limits = loaded.config.upstream[name].rate_limit.iter();
        limits
            .map(|limit| format!("{} {} {} {}", limit.name, limit.rate, limit.burst(), limit.key.is_some()))
            .collect()
    };
    assert_eq!(limits("plain"), ["default 1/s 1 false", "tenant 2/s 2 true"]);
    assert_eq!(limits("own"), ["more 5/s 5 false", "tenant 20/s 20 false", "default 1/s 1 false"]);
    let from = |path: &str| loaded.origins.get(path).map(|origin| (origin.layer, origin.line));
    assert_eq!(from("upstream.own.rate_limit[1].rate"), Some((Layer::Written, 24)));
    assert_eq!(from("upstream.own.rate_limit[2].rate"), Some((Layer::Defaults, 3)));
    let many: String = (0..9).map(|n| format!("{{ name = \"{n}\", rate = \"1/s\" }}, ")).collect();
    let said = said(&with(&format!("rate_limit = [{many}]")));
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(
        said[0].contains("there are 9 rate limits (upstream.app.rate_limit); give at most 8"),
        "{}",
        said[0]
    );
}

#[test]
fn only_a_written_request_timeout_counts_for_grpc() {
    let written = |more: &str| parsed(&with(more)).config.upstream["app"].timeout.request_is_written;
    assert!(!written(""));
    assert!(!written("timeout.connect = \"1s\""));
    assert!(written("timeout.request = \"15s\""));
    assert!(written("[defaults.timeout]\nrequest = \"15s\""));
    let route =
        "route = [{ upstream = \"app\", timeout = { request = \"9s\" }, match = { host = \"h\" } }]\n";
    let loaded = parsed(&format!("{LISTENER}{route}{UPSTREAM}"));
    assert!(!loaded.config.upstream["app"].timeout.request_is_written);
    assert!(
        loaded.config.listener[0].route[0].timeout.as_ref().is_some_and(|timeout| timeout.request_is_written)
    );
}

#[test]
fn the_environment_fills_strings_numbers_and_booleans() {
    let loaded = parsed(&format!(
        "{LISTENER}name = \"${{FIVE}}\"\n{UPSTREAM}retry.attempts = \"${{FIVE}}\"\nretry.idempotency_key = \"${{YES}}\"\n\
         breaker.failure_ratio = \"${{RATIO}}\"\nbreaker.min_requests = \"${{NONE:-7}}\"\n\
         breaker.window = {{ kind = \"count\", size = \"${{NONE:-70}}\" }}\n\
         host = \"${{SECRET}}.internal\"\n"
    ));
    let app = &loaded.config.upstream["app"];
    assert_eq!(loaded.config.listener[0].name(), "5", "where a string is wanted it stays one");
    assert_eq!((app.retry.attempts, app.retry.idempotency_key), (5, true));
    assert_eq!((app.breaker.failure_ratio.get(), app.breaker.min_requests), (0.25, 7));
    assert!(loaded.redacted.contains("host = \"***\""), "{}", loaded.redacted);
    assert!(loaded.redacted.contains("attempts = \"***\""), "{}", loaded.redacted);
    assert!(loaded.redacted.contains("min_requests = 7"), "a default stands in the file, it is no secret");
    assert!(!loaded.redacted.contains("hunter2"));
}

#[test]
fn what_runs_is_shown_as_toml_that_could_be_run() {
    let loaded = parsed(REFERENCE);
    let again = parsed(&loaded.redacted);
    assert_eq!(again.redacted, loaded.redacted);
    assert_ne!(loaded.digest, parsed(&with("")).digest);
    assert_eq!(loaded.digest, parsed(REFERENCE).digest);
}

#[test]
fn a_file_that_cannot_be_read_is_told_in_one_line() {
    let directory = std::env::temp_dir().join(format!("outrigger-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the test");
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).expect("a file for the test");
        path
    };
    let cases = [
        (directory.join("none.toml"), "cannot be read: No such file or directory"),
        (directory.clone(), "cannot be read: Is a directory"),
        (write("latin.toml", b"# fine\n# \xe4\n"), "is not UTF-8 (line 2)"),
        (write("large.toml", &vec![b'#'; MAX_FILE_SIZE + 1]), "is larger than 1 MiB"),
    ];
    for (path, expected) in cases {
        let problems = load(&path).expect_err("cannot be read");
        let text = problems.to_string();
        assert!(text.contains(expected) && text.lines().count() == 1, "{text}");
    }
    std::fs::remove_dir_all(directory).expect("the test's own directory");
}

#[test]
fn a_problem_is_drawn_with_its_line_a_caret_and_the_cure() {
    let problems = parse(&with("retry.attempts = 50"), "t.toml", &environment).expect_err("50 is too many");
    let expected = "\
error: 50 is out of range
 --> t.toml:6:18
  |
6 | retry.attempts = 50
  |                  ^^
  |
  = key: upstream.app.retry.attempts
  = note: Attempts in all, the first included. From 1 to 20. Default 4.
  = help: give a whole number from 1 to 20";
    assert_eq!(problems.to_string(), expected);
    let json = problems.json();
    let first = &json[0];
    assert_eq!((&first["line"], &first["column"], &first["end_column"]), (&6.into(), &18.into(), &20.into()));
    assert_eq!(first["severity"], "error");
    assert_eq!(first["path"], "upstream.app.retry.attempts");
}

/// The reference with the examples of keys that have no default. Its certificates are in `folder`.
fn with_examples(folder: &Folder) -> String {
    let authority = Authority::new("Example CA");
    folder.write("ca.pem", authority.pem());
    let issued = authority.issue_for(&["app.internal"]);
    folder.write("cert.pem", &issued.cert);
    folder.write("key.pem", &issued.key);
    folder.write_pair("other", &issued);
    let reference = REFERENCE.replace("/etc/outrigger/tls", &folder.path().display().to_string());

    let uncommented = |line: &str| {
        let inner = line.trim_start().strip_prefix("# ")?;
        let key = inner.split_once(" = ")?.0;
        key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then(|| inner.to_owned())
    };
    let text: String =
        reference.lines().map(|line| uncommented(line).unwrap_or_else(|| line.to_owned()) + "\n").collect();
    // A key is an example for one kind alone.
    let text = text.replace("kind = \"least_loaded\"", "kind = \"hash\"");
    text + "[upstream.app_dr]\nendpoints = [\"127.0.0.1:9001\"]\n"
}

#[test]
fn the_reference_says_the_defaults() {
    let mut reference = parsed(REFERENCE).config;
    assert_eq!(reference.server, Server::default());
    assert_eq!(reference.admin, Admin::default());
    assert_eq!(reference.telemetry, Default::default());
    let listener = &reference.listener[0];
    assert_eq!(listener.limits, Default::default());
    let bare = "[[listener]]\naddress = \"127.0.0.1:8080\"\nupstream = \"app\"\n[[listener.route]]\nupstream = \"app\"\n[upstream.app]\nendpoints = [\"a:1\"]\n";
    let mut built_in = parsed(bare).config;
    built_in.listener[0].route[0].matches = listener.route[0].matches.clone();
    // The others are examples.
    built_in.listener[0].route.extend_from_slice(&listener.route[1..]);
    assert_eq!(*listener, built_in.listener[0]);
    let app = reference.upstream.get_mut("app").expect("the reference's upstream");
    built_in.upstream.get_mut("app").expect("it stands above").endpoints = app.endpoints.clone();
    app.timeout.request_is_written = false;
    assert_eq!(*app, built_in.upstream["app"]);
}

#[test]
fn the_reference_has_every_key_and_its_examples_hold() {
    let folder = Folder::new();
    let text = with_examples(&folder);
    assert!(said(&text).is_empty(), "{:#?}", said(&text));
    let value: Json = toml::from_str(&text).expect("it was parsed above");
    let mut missing = BTreeSet::new();
    let mut seen = BTreeSet::new();
    every_key(schema(), "", Some(&value), &mut seen, &mut missing);
    assert!(missing.is_empty(), "keys of the schema that the reference does not have: {missing:#?}");
}

/// Collects the keys of `schema` that `value` lacks. A table that stands in several places (a route's timeout,
/// `[defaults]`) is looked at in one that is written out.
fn every_key(
    schema: &'static Json,
    path: &str,
    value: Option<&Json>,
    seen: &mut BTreeSet<String>,
    missing: &mut BTreeSet<String>,
) {
    if let Some(name) = schema["$ref"].as_str() {
        let of_route =
            ["timeout", "retry", "hedge", "fallback", "fault"].map(|policy| format!("/route/{policy}"));
        let elsewhere = path.starts_with("/defaults") || of_route.iter().any(|table| path.contains(table));
        if !elsewhere && seen.insert(format!("{name} at {path}")) {
            let name = name.trim_start_matches("#/definitions/");
            every_key(&self::schema()["definitions"][name], path, value, seen, missing);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for part in schema[key].as_array().into_iter().flatten() {
            // Of a table that its `kind` shapes, the reference writes out one shape.
            let kind = part["properties"]["kind"]["const"].as_str();
            let written = value.and_then(|value| value["kind"].as_str());
            if kind.is_none() || written.is_none() || kind == written {
                every_key(part, path, value, seen, missing);
            }
        }
    }
    if schema["items"].is_object() {
        // What one element lacks (a shape of its own, a key that excludes another), a later one may have.
        let elements = value.and_then(Json::as_array).into_iter().flatten().rev().filter_map(Json::as_object);
        let keys: serde_json::Map<String, Json> =
            elements.flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        every_key(&schema["items"], path, Some(&Json::Object(keys)), seen, missing);
    }
    if schema["additionalProperties"].is_object() {
        let entry = value.and_then(Json::as_object).and_then(|all| all.values().next());
        every_key(&schema["additionalProperties"], path, entry, seen, missing);
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        let entry = value.and_then(|value| value.get(key));
        if entry.is_none() {
            missing.insert(path.clone());
        }
        every_key(inner, &path, entry, seen, missing);
    }
}

#[test]
fn doc_comments_state_the_defaults_of_the_code() {
    let mut stated = 0;
    let definitions = schema()["definitions"].as_object().expect("the settings types");
    for (name, definition) in definitions {
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            let description = property["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{name}.{key} has no doc comment");
            let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
            let Some((_, rest)) = description.split_once("Default ") else { continue };
            let text = match rest.strip_prefix('`') {
                Some(rest) => rest.split('`').next().unwrap_or_default(),
                None => rest.split(['.', ':', ',']).next().unwrap_or_default(),
            };
            // `1.0` has a dot of its own.
            let text = if rest.starts_with(|c: char| c.is_ascii_digit()) {
                rest.trim_end_matches('.').split(". ").next().unwrap_or_default()
            } else {
                text
            };
            let code = &property["default"];
            if code.is_null() && rest.contains(", for ") {
                continue; // depends on another key; the reference says it
            }
            let says: Json = toml::from_str(&format!("x = {text}"))
                .map(|value: toml::Table| serde_json::to_value(&value["x"]).expect("TOML is JSON here"))
                .unwrap_or_else(|_| Json::from(text));
            assert_eq!(says, *code, "{name}.{key}: {description}");
            stated += 1;
        }
    }
    assert!(stated > 50, "only {stated} doc comments state a default");
}

#[test]
fn what_is_not_built_is_known_by_its_place() {
    let mut seen = BTreeSet::new();
    let text = "
        server.state_dir = \"x\"
        telemetry.tracing = {}
        [[listener]]
        address = \"127.0.0.1:1\"
        [[listener.route]]
        upstream = \"a\"
        slo = {}
        [upstream.a]
        endpoints = [\"a:1\"]
        discovery = { kind = \"etcd\" }
        slo = {}
    ";
    for line in said(text) {
        assert!(line.contains("is not part of this version"), "{line}");
        seen.insert(line);
    }
    assert_eq!(seen.len(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Nothing that a file can hold makes it panic, and every problem lies in the file.
    #[test]
    fn any_text_is_either_read_or_explained(text in "\\PC{0,200}") {
        every_problem_lies_in(&text)?;
    }

    /// The same for files that are nearly right: the reference with a hole, or with something put in.
    #[test]
    fn a_reference_with_a_hole_is_either_read_or_explained(
        from in 0..REFERENCE.len(), length in 0usize..80, put in "[\\[\\]{}=\"',#.$ \n0-9a-z\u{e9}]{0,6}"
    ) {
        let floor = |at: usize| (0..=at.min(REFERENCE.len())).rev().find(|at| REFERENCE.is_char_boundary(*at)).unwrap_or(0);
        let text = format!("{}{put}{}", &REFERENCE[..floor(from)], &REFERENCE[floor(from + length)..]);
        every_problem_lies_in(&text)?;
    }
}

fn every_problem_lies_in(text: &str) -> Result<(), TestCaseError> {
    let Err(Problems(problems)) = parse(text, "t.toml", &environment) else { return Ok(()) };
    prop_assert!(!problems.is_empty());
    for problem in problems {
        prop_assert!(text.get(problem.span.clone()).is_some(), "{problem:?}");
        prop_assert!(problem.line >= 1 && problem.column >= 1);
        prop_assert!(!problem.message.is_empty() && !problem.render(true).is_empty());
    }
    Ok(())
}
