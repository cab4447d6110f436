//! Who can answer: what the configuration writes, and what names and files say of it.

use std::net::SocketAddr;

use super::endpoint::{Address, Socket};

/// An endpoint as discovery found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the configuration or discovery writes it.
    pub address: Address,
    /// What is connected to.
    pub socket: Socket,
    /// The same host under addresses of its other family, the first to try first.
    pub others: Vec<SocketAddr>,
    /// From 1 to 1000.
    pub weight: u32,
    /// From 0 to 9; the lowest first.
    pub priority: u8,
}
