//! One request's way: accept, route, the chain, attempts, bodies, the response.

pub mod listener;
pub mod route;
