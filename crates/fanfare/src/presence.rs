//! Who is connected, here and on other nodes. Knows names and places, and not what anyone is sent.

use crate::broker::BrokerFuture;
use fanfare_core::ConnectionId;
use std::{fmt, net::IpAddr, sync::Arc};

/// A client that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its name.
    pub connection: ConnectionId,
    /// The user of its token.
    pub user: Arc<str>,
    /// The node that it is connected to.
    pub node: Arc<str>,
    /// Since when, in milliseconds since 1970-01-01T00:00:00Z.
    pub since_ms: u64,
    /// When it connected, in milliseconds of its node's monotonic clock: distinguishes it from an earlier connection of the same
    /// name.
    pub came_ms: u64,
    /// Where it comes from.
    pub address: IpAddr,
    /// Whether its user may have any number of connections, as administrators may.
    pub unlimited: bool,
}

/// The list of who is connected.
pub trait Presence: Send + Sync + fmt::Debug {
    /// Notes a client that came to this node. Must not block.
    fn arrived(&self, client: ConnectionInfo);

    /// Notes that a client left this node that came at `came_ms`. Must not block.
    fn left(&self, connection: ConnectionId, user: &Arc<str>, came_ms: u64);

    /// A user's clients on all nodes, the longest connected first.
    fn of_user(&self, user: &str) -> BrokerFuture<'_, Vec<ConnectionInfo>>;

    /// One client, on whichever node it is.
    fn find(&self, connection: ConnectionId) -> BrokerFuture<'_, Option<ConnectionInfo>>;
}
