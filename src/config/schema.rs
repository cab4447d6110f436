//! The JSON Schema of a file as it is written, for editors; and what messages need to know from it.
//!
//! Made from the settings types and their doc comments. A file is not shaped like `Config`: it has `[defaults]`,
//! its tables are partial, and `"${NAME}"` may stand where a number is wanted.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::document::{Path, Step};
use super::settings::{Admin, Server};
use crate::policy::{breaker, concurrency, failure, fault, hedge, rate_limit, retry, shed, timeout};
use crate::proxy::listener;
use crate::telemetry;
use crate::upstream::{self, balance, health, outlier};

/// The JSON Schema of a configuration file.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(build)
}

fn build() -> Value {
    // Draft 7 is what editors' TOML plugins understand.
    let mut generator = SchemaSettings::draft07().into_generator();
    let of = &mut generator;
    let defaults = object([
        ("failure", table::<failure::Settings>(of, "What is an upstream's fault.")),
        ("timeout", table::<timeout::Settings>(of, "How long each part may take.")),
        ("retry", table::<retry::Settings>(of, "Which failed attempts are followed by another.")),
        ("hedge", table::<hedge::Settings>(of, "A second sending beside a slow one.")),
        ("rate_limit", table::<Vec<rate_limit::Settings>>(of, "How much each key may have in a time.")),
        ("breaker", table::<breaker::Settings>(of, "When to stop sending.")),
        ("concurrency", table::<concurrency::Settings>(of, "How many attempts may be in flight.")),
        ("shed", table::<shed::Settings>(of, "Who is refused first when there is too much.")),
        ("balance", table::<balance::Settings>(of, "Which endpoint is next.")),
        (
            "outlier",
            table::<outlier::Settings>(of, "When an endpoint that is worse than its peers is taken out."),
        ),
        ("health", table::<health::Settings>(of, "Checks of endpoints whose traffic says nothing.")),
        ("fault", table::<fault::Settings>(of, "What is done to requests on purpose.")),
    ]);
    let mut schema = object([
        ("server", table::<Server>(of, "The process as a whole.")),
        ("admin", table::<Admin>(of, "The admin HTTP API.")),
        ("telemetry", table::<telemetry::Settings>(of, "The log, and the access log.")),
        ("defaults", described(defaults, "Policies of every upstream that does not say otherwise itself.")),
        ("listener", table::<Vec<listener::Settings>>(of, "Where clients connect.")),
        (
            "upstream",
            table::<BTreeMap<String, upstream::Settings>>(of, "Services that requests go to, by name."),
        ),
    ]);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Outrigger");
    schema["description"] = json!("The configuration of Outrigger, a resilience sidecar.");
    schema["required"] = json!(["listener", "upstream"]);
    schema["definitions"] = Value::Object(generator.take_definitions(true).into_iter().collect());
    without_null(&mut schema);
    with_references(&mut schema);
    schema["definitions"]["Reference"] = json!({
        "description": "a value from the environment",
        "type": "string",
        "pattern": r"\$\{",
    });
    schema
}

fn object<const N: usize>(properties: [(&str, Value); N]) -> Value {
    let properties: Map<String, Value> =
        properties.into_iter().map(|(key, schema)| (key.to_owned(), schema)).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn table<T: JsonSchema>(generator: &mut SchemaGenerator, description: &str) -> Value {
    let schema = generator.subschema_for::<T>().to_value();
    // Draft 7 ignores what stands beside a `$ref`.
    let schema = if schema.get("$ref").is_some() { json!({ "allOf": [schema] }) } else { schema };
    described(schema, description)
}

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

/// Calls `change` with every schema in `schema`, innermost first.
fn each(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(map) = schema else { return };
    for key in ["properties", "definitions"] {
        if let Some(Value::Object(inner)) = map.get_mut(key) {
            inner.values_mut().for_each(|schema| each(schema, change));
        }
    }
    for key in ["items", "additionalProperties"] {
        map.get_mut(key).into_iter().for_each(|schema| each(schema, change));
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(inner)) = map.get_mut(key) {
            inner.iter_mut().for_each(|schema| each(schema, change));
        }
    }
    change(map);
}

/// TOML has no null: what may be absent is left out.
fn without_null(schema: &mut Value) {
    each(schema, &mut |map| {
        if let Some(Value::Array(types)) = map.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                map.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(any)) = map.get_mut("anyOf") {
            any.retain(|schema| schema.get("type") != Some(&json!("null")));
            if let [only] = any.as_slice() {
                let only = json!([only.clone()]);
                map.remove("anyOf");
                map.insert("allOf".to_owned(), only);
            }
        }
        if map.get("default") == Some(&Value::Null) {
            map.remove("default");
        }
    });
}

/// Wherever something other than any string is wanted, a `"${NAME}"` may stand for it.
fn with_references(schema: &mut Value) {
    each(schema, &mut |map| {
        let is = |key: &str, words: &[&str]| {
            map.get(key).and_then(Value::as_str).is_some_and(|v| words.contains(&v))
        };
        let limited = map.contains_key("enum") || map.contains_key("pattern") || map.contains_key("oneOf");
        let words = map
            .get("oneOf")
            .and_then(Value::as_array)
            .is_some_and(|one_of| one_of.iter().all(|schema| schema.get("type") == Some(&json!("string"))));
        if is("type", &["integer", "number", "boolean"]) || is("type", &["string"]) && limited || words {
            let notes = ["description", "default", "title"];
            let (kept, strict): (Map<_, _>, Map<_, _>) =
                std::mem::take(map).into_iter().partition(|(key, _)| notes.contains(&key.as_str()));
            *map = kept;
            map.insert("anyOf".to_owned(), json!([strict, { "$ref": "#/definitions/Reference" }]));
        }
    });
}

/// What the key at `path` means: its doc comment.
pub(super) fn describe(path: &Path) -> Option<String> {
    let (mut at, mut description) = (schema(), None);
    for step in &path.0 {
        at = step_into(at, step)?;
        if matches!(step, Step::Key(_)) {
            description = at.get("description").and_then(Value::as_str);
        }
    }
    description.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Where a key that is unknown at `path` would be known: the table nearest to there that has it.
pub(super) fn home(path: &Path) -> Option<Path> {
    let (Step::Key(key), from) = path.0.split_last()? else { return None };
    // From its own table outwards; the nearest tables below each are looked into.
    (0..=from.len()).rev().find_map(|length| {
        let above = Path(from[..length].to_vec());
        let table = above.0.iter().try_fold(schema(), step_into)?;
        let inside = properties(table).find(|(_, inner)| properties(inner).any(|(name, _)| name == key));
        let here = properties(table).any(|(name, _)| name == key);
        match inside {
            _ if here => Some(above),
            Some((name, _)) => Some(above.key(name)),
            None => None,
        }
    })
}

/// Every schema that must or may hold where `schema` stands.
fn parts(schema: &'static Value) -> Vec<&'static Value> {
    let mut all = vec![schema];
    if let Some(name) =
        schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/definitions/"))
    {
        all.extend(parts(&self::schema()["definitions"][name]));
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        let inner = schema.get(key).and_then(Value::as_array);
        all.extend(inner.into_iter().flatten().flat_map(parts));
    }
    all
}

fn properties(schema: &'static Value) -> impl Iterator<Item = (&'static String, &'static Value)> {
    parts(schema).into_iter().filter_map(|part| part.get("properties")?.as_object()).flatten()
}

fn step_into(schema: &'static Value, step: &Step) -> Option<&'static Value> {
    match step {
        Step::Key(key) => {
            properties(schema).find(|(name, _)| *name == key).map(|(_, schema)| schema).or_else(|| {
                parts(schema)
                    .into_iter()
                    .find_map(|part| part.get("additionalProperties").filter(|s| s.is_object()))
            })
        }
        Step::Index(_) => parts(schema).into_iter().find_map(|part| part.get("items")),
    }
}
