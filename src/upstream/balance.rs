//! Which endpoint is next: power of two choices on requests in flight (Mitzenmacher 2001).
//!
//! Two are drawn by weight, and the one with fewer requests in flight for its weight takes the request: close to
//! the best of all without looking at all, and without the herd that runs to a single best. A pick costs
//! nanoseconds and takes no lock.
//!
//! Endpoints that this request has tried are left out while there is another; where all are tried, the one that
//! failed least recently is next. Rejected: drawing anew until an untried one comes (it gives up by chance).

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;

/// `[upstream.NAME.balance]`: which endpoint is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `least_request`: of two drawn at random the one with fewer requests in flight for its weight.
    /// Default `least_request`.
    pub kind: Kind,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Of two drawn at random the one with fewer requests in flight for its weight.
    #[default]
    LeastRequest,
}

/// An endpoint and its share.
#[derive(Clone)]
pub struct Weighted {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// From 1 to 1000.
    pub weight: u32,
    /// From 0 to 9; the lowest comes first.
    pub priority: u8,
}

/// The next endpoint; none where the list is empty. `draw` is random; `tried` are the ids of those that this
/// request has tried.
pub fn pick<'a>(endpoints: &'a [Weighted], tried: &[u64], draw: u64) -> Option<&'a Arc<Endpoint>> {
    match endpoints {
        [] => return None,
        [only] => return Some(&only.endpoint),
        _ => {}
    }
    let is_open =
        |choice: &&Weighted| choice.endpoint.standing.is_in_service() && !tried.contains(&choice.endpoint.id);
    let all_out = !endpoints.iter().any(|choice| is_open(&choice));
    let untried = |choice: &&Weighted| is_open(choice) || all_out && !tried.contains(&choice.endpoint.id);
    let total = endpoints.iter().filter(untried).map(|choice| choice.weight).sum::<u32>();
    if total == 0 {
        return endpoints
            .iter()
            .map(|choice| &choice.endpoint)
            .min_by_key(|endpoint| endpoint.last_failure());
    }
    let draw_one = |draw: u32, without: Option<u64>| {
        let open = |choice: &&Weighted| untried(choice) && Some(choice.endpoint.id) != without;
        let total = endpoints.iter().filter(open).map(|choice| choice.weight).sum::<u32>();
        let mut place = ((u64::from(draw) * u64::from(total)) >> 32) as u32;
        endpoints.iter().filter(open).find(|choice| {
            let found = place < choice.weight;
            place = place.wrapping_sub(choice.weight);
            found
        })
    };
    let first = draw_one(draw as u32, None)?;
    let Some(second) = draw_one((draw >> 32) as u32, Some(first.endpoint.id)) else {
        return Some(&first.endpoint);
    };
    // In flight / weight, compared without dividing. Equal: the first, so that an idle upstream is shared by
    // weight.
    let load = |choice: &Weighted, other: &Weighted| {
        u64::from(choice.endpoint.in_flight()) * u64::from(other.weight)
    };
    let better = if load(second, first) < load(first, second) { second } else { first };
    Some(&better.endpoint)
}

/// Whether another endpoint than those of `tried` exists.
pub fn has_untried(endpoints: &[Weighted], tried: &[u64]) -> bool {
    endpoints.iter().any(|choice| !tried.contains(&choice.endpoint.id))
}
