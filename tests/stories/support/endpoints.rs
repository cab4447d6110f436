//! What the proxy tells of an endpoint: in `/upstreams`, in the log, and in its series. Endpoints go by the label that
//! they have there: their socket.

use serde_json::Value;

use super::{Proxy, eventually};

/// What `/upstreams` says of an endpoint in the upstream `app`.
pub async fn shown(proxy: &Proxy, endpoint: impl ToString) -> Value {
    let page: Value = serde_json::from_str(&proxy.admin_get("/upstreams").await.text()).expect("JSON");
    let endpoints = page["app"]["endpoints"].as_array().expect("a list").clone();
    let label = endpoint.to_string();
    endpoints.into_iter().find(|shown| shown["endpoint"] == label.as_str()).expect("it is listed")
}

/// The events of the log whose message begins so, about an endpoint, when there are any.
pub async fn told(proxy: &Proxy, message: &str, endpoint: impl ToString) -> Vec<Value> {
    let label = endpoint.to_string();
    let is_meant = |line: &Value| {
        let text = line["message"].as_str().unwrap_or_default();
        line["endpoint"] == label.as_str() && text.starts_with(message)
    };
    let mut events: Vec<Value> = Vec::new();
    eventually(&format!("{message}: {label}"), async || {
        let lines = proxy.lines().into_iter().filter_map(|line| serde_json::from_str(&line).ok());
        events = lines.filter(is_meant).collect();
        !events.is_empty()
    })
    .await;
    events
}

/// The series that counts how often an endpoint was taken out for this.
pub fn ejections(endpoint: impl ToString, reason: &str) -> String {
    let label = endpoint.to_string();
    format!("outrigger_endpoint_ejections_total{{upstream=app,endpoint={label},reason={reason}}}")
}

/// The series that says whether an endpoint is in service.
pub fn healthy(endpoint: impl ToString) -> String {
    format!("outrigger_endpoint_healthy{{upstream=app,endpoint={}}}", endpoint.to_string())
}
