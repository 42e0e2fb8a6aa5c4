//! The list of connected clients on all nodes. It knows connections and their nodes, and nothing about events.

use crate::BrokerFuture;
use fanfare_core::ConnectionId;
use std::{fmt, net::IpAddr, sync::Arc};

/// A connected client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its connection ID.
    pub connection: ConnectionId,
    /// The user of its token.
    pub user: Arc<str>,
    /// The node that it is connected to.
    pub node: Arc<str>,
    /// When it connected, in milliseconds since 1970-01-01T00:00:00Z.
    pub since_ms: u64,
    /// When it connected, in milliseconds of its node's monotonic clock. Distinguishes it from an earlier connection
    /// with the same ID on that node.
    pub came_ms: u64,
    /// The address of the client.
    pub address: IpAddr,
    /// The limit on connections of a user does not apply, as for administrators.
    pub unlimited: bool,
}

/// The list of connected clients.
pub trait Presence: Send + Sync + fmt::Debug {
    /// Adds a client that connected to this node. Must not block.
    fn arrived(&self, client: ConnectionInfo);

    /// Removes a client that disconnected from this node. `came_ms` is its [`ConnectionInfo::came_ms`], so that a newer
    /// connection with the same ID stays in the list. Must not block.
    fn left(&self, connection: ConnectionId, user: &Arc<str>, came_ms: u64);

    /// The clients of a user on all nodes, the oldest connection first.
    fn of_user(&self, user: &str) -> BrokerFuture<'_, Vec<ConnectionInfo>>;

    /// Finds a client on any node.
    fn find(&self, connection: ConnectionId) -> BrokerFuture<'_, Option<ConnectionInfo>>;
}
