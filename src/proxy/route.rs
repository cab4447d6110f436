//! settings only so far
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{retry, timeout};

/// `[[listener.route]]`: which requests go to which upstream.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its name in metrics and log. Default `"default"`.
    #[serde(default = "default_name")]
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

fn default_name() -> String {
    "default".to_owned()
}

/// `match`: what a request must be; all that is written must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The host, without case and port; `"*.example.org"` takes every name below it. Default: any.
    pub host: Option<String>,
    /// The beginning of the path; ends at a segment. Default: any.
    pub path_prefix: Option<String>,
    /// The methods. Default: any.
    pub methods: Vec<String>,
    /// Headers that must have these values. Default: none.
    pub headers: BTreeMap<String, String>,
}

/// `rewrite`: what of the request is changed on its way up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    /// Stands in place of `match.path_prefix`. Default: the path goes up as it came.
    pub prefix: Option<String>,
    /// The Host sent up, over the upstream's `host`. Default: the upstream's.
    pub host: Option<String>,
}
