//! What holds for the settings of every policy: they come back as they were written, and what cannot be in force
//! cannot be parsed. Below: what they do together.

mod metastability;

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{breaker, concurrency, failure, retry, timeout};

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(settings: &T) {
    let text = toml::to_string(settings).expect("settings are a table");
    assert_eq!(&toml::from_str::<T>(&text).expect(&text), settings, "{text}");
}

#[test]
fn settings_come_back_as_they_were_written() {
    comes_back(&breaker::Settings::default());
    comes_back(&concurrency::Settings::default());
    comes_back(&failure::Settings::default());
    comes_back(&retry::Settings::default());
    comes_back(&timeout::Settings::default());

    let text = r#"
        on = ["5xx", "!501", "429", "dns_error", "grpc:ABORTED"]
        methods = ["GET", "PURGE"]
        grpc_methods = ["shop.Catalog/Get", "shop.Catalog/List*", "shop.Search/*"]
    "#;
    comes_back(&toml::from_str::<retry::Settings>(text).expect("all of it is right"));
    let text = "window = { kind = \"count\", size = 50 }\nkind = \"graded\"\nslow_request = \"2s\"";
    comes_back(&toml::from_str::<breaker::Settings>(text).expect("all of it is right"));
}

#[test]
fn the_defaults_are_what_the_reference_says() {
    let written: retry::Settings = toml::from_str(
        r#"on = ["connect_error", "tls_error", "upstream_reset", "attempt_timeout", "500", "502", "503", "504", "grpc:UNAVAILABLE"]
           methods = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]"#,
    )
    .expect("the defaults");
    assert_eq!(written, retry::Settings::default());
    let written: failure::Settings = toml::from_str(
        r#"status = ["5xx", "!501", "!505"]
           grpc = ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"]"#,
    )
    .expect("the defaults");
    assert_eq!(written, failure::Settings::default());
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its errors are looked at")]
struct Upstream {
    breaker: Option<breaker::Settings>,
    concurrency: Option<concurrency::Settings>,
    failure: Option<failure::Settings>,
    retry: Option<retry::Settings>,
    timeout: Option<timeout::Settings>,
}

#[test]
fn what_is_out_of_range_cannot_be_parsed_and_the_message_says_what_to_write() {
    let cases = [
        // what is written                             what the message says
        ("retry.attempts = 0", "0 is out of range; give a whole number from 1 to 20"),
        ("retry.attempts = 21", "21 is out of range; give a whole number from 1 to 20"),
        ("retry.attempts = -1", "-1 is out of range; give a whole number from 1 to 20"),
        ("retry.budget.window = \"500ms\"", "\"500ms\" is out of range; give a time from \"1s\" to \"1m\""),
        ("retry.budget.ratio = 1.5", "1.5 is not a ratio; give a number from 0 to 1"),
        ("retry.budget.min_per_second = 10001", "give a whole number from 0 to 10000"),
        ("retry.backoff.base = \"0s\"", "the shortest is \"1ms\""),
        ("retry.on = [\"conect_error\"]", "did you mean \"connect_error\"?"),
        ("retry.on = [\"UNAVAILABLE\"]", "write \"grpc:UNAVAILABLE\""),
        ("retry.on = [\"grpc:UNAVAILBLE\"]", "did you mean \"UNAVAILABLE\"?"),
        ("retry.on = [\"breaker_open\"]", "no attempt fails with \"breaker_open\""),
        ("retry.on = [\"600\"]", "from 200 to 599"),
        ("retry.on = [\"gateway-error\"]", "write one of \"connect_error\""),
        ("retry.methods = [\"get\"]", "\"get\" should be \"GET\""),
        ("retry.methods = [\"GET POST\"]", "\"GET POST\" is not a method; write a word such as \"GET\""),
        ("retry.methods = [\"\"]", "is not a method"),
        ("retry.grpc_methods = [\"/shop.Cart/Get\"]", "begins with a slash; write \"shop.Cart/Get\""),
        ("retry.grpc_methods = [\"shop.Cart\"]", "write \"pkg.Service/Method\""),
        ("retry.grpc_methods = [\"shop.*/Get\"]", "write \"pkg.Service/Method\""),
        ("breaker.min_requests = 0", "0 is out of range; give a whole number from 1 to"),
        ("breaker.half_open_requests = 101", "give a whole number from 1 to 100"),
        ("breaker.window = { kind = \"time\", size = \"11m\" }", "give a time from \"1s\" to \"10m\""),
        ("breaker.window = { kind = \"count\", size = 0 }", "give a whole number from 1 to 10000"),
        ("breaker.failure_ratio = -0.1", "is not a ratio"),
        ("concurrency.limit = { kind = \"fixed\", max = 0 }", "give a whole number from 1 to 1000000"),
        ("concurrency.queue.size = 100001", "give a whole number from 0 to 100000"),
        ("failure.status = [\"5x\"]", "\"5x\" is not a status; write a status (\"503\")"),
        ("failure.status = [\"!!501\"]", "is not a status"),
        ("failure.status = [\"1xx\"]", "from 200 to 599"),
        ("failure.status = [\"5ß\"]", "is not a status"),
        ("failure.grpc = [\"OK\"]", "\"OK\" is no failure"),
        ("failure.grpc = [\"unavailable\"]", "did you mean \"UNAVAILABLE\"?"),
        ("timeout.request = \"15\"", "write a whole number and ms, s, m, h or d"),
    ];
    for (text, says) in cases {
        let error = toml::from_str::<Upstream>(text).expect_err(text);
        assert!(error.message().contains(says), "{text}: {}", error.message());
    }
}
