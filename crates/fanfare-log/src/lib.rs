//! The log: its traits and its backends. It handles events and positions, and has no knowledge of sessions.

#![forbid(unsafe_code)]

pub mod clock;
#[doc(hidden)]
pub mod environment;
mod ids;
mod memory;
pub mod metrics;
pub mod presence;
#[doc(hidden)]
pub mod random;
pub mod redis;
mod window;

pub use memory::MemoryBroker;
pub use window::SharedWindow;

use crate::presence::ConnectionInfo;
use fanfare_core::{Audience, ConnectionId, Event, Position, Revocation, window::Entry};
use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// The future that broker methods return.
pub type BrokerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// An event with its audience, to be appended to the log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The event, with all fields that the hub adds.
    pub event: Event,
    /// The clients that may receive it.
    pub audience: Audience,
    /// The publisher, as a display name.
    pub publisher: Option<Arc<str>>,
    /// The trace context of its publish (for example `traceparent` of W3C Trace Context).
    pub trace: Option<Arc<str>>,
}

/// The result of an append: the position of the event in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The position.
    pub position: Position,
    /// The log already knew the `event_id`, at this position. Nothing was appended.
    pub duplicate: bool,
}

/// Why an operation of the log failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The log is unavailable. It is unknown whether the log has the event; publishing it again under the same
    /// `event_id` appends it at most once.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// The event is in the log, but no replica has acknowledged it, so a failover may lose it. Publishing it again
    /// under the same `event_id` waits for the replicas again.
    #[error("the event is in the log, but {replicas} of {wanted} replicas acknowledged it in time; publish it again")]
    NotReplicated {
        /// Replicas that acknowledged it.
        replicas: u64,
        /// Replicas that have to acknowledge it.
        wanted: u64,
    },
    /// The revocation was sent to the nodes, but not stored: a node that restarts does not know it.
    #[error("the revocation could not be stored, so it is in force only until the hub restarts: {0}")]
    NotKept(String),
}

/// A command that one node sends to all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    /// Close a connection.
    Disconnect {
        /// The connection.
        connection: ConnectionId,
        /// The reason in the close frame.
        reason: String,
    },
    /// Close a connection whose client has reconnected to another node.
    Replaced {
        /// The connection.
        connection: ConnectionId,
        /// When it connected, by the monotonic clock of its node ([`ConnectionInfo::came_ms`]). A later connection with
        /// the same ID stays open.
        came_ms: u64,
        /// The other connection is certainly the newer one. If this is `false`, the clients of both connections must be
        /// able to reconnect, because it is unknown which of them is still in use.
        sure: bool,
    },
    /// Close a connection that exceeds the limit of its user over all nodes.
    OverUserLimit {
        /// The connection.
        connection: ConnectionId,
    },
    /// Reject the revoked tokens, and close the connections that they authenticated.
    Revoke(Revocation),
    /// Drain a node and end its process.
    Drain {
        /// The name of the node.
        node: String,
    },
    /// Set the log level.
    LogLevel {
        /// A filter in the format of the application's logger.
        filter: String,
    },
    /// Close all connections of a user.
    DisconnectUser {
        /// The user.
        user: Arc<str>,
        /// The reason in the close frames.
        reason: String,
    },
}

/// The status of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendStatus {
    /// The problem, as a sentence. `None` if events can be appended and are delivered.
    pub problem: Option<String>,
    /// The node is connected to Redis. Always `false` for the in-memory log.
    pub connected: bool,
    /// The node receives what publishers `PUBLISH` on Redis channels.
    pub listening: bool,
    /// The time from the append of the newest probe to its delivery.
    pub lag: Option<Duration>,
    /// The number of events in the log.
    pub events: usize,
    /// The size of the events in the log, in bytes.
    pub bytes: usize,
    /// How far back the log remembers all event IDs. An event that is published again within that time is a duplicate.
    pub horizon: Duration,
    /// The connections on all nodes and the number of nodes. `None` if other nodes are unknown.
    pub cluster: Option<(usize, usize)>,
}

/// A node that follows a log.
///
/// The broker pushes entries into [`window`](Self::window) and calls [`wake`](Self::wake) after it has released the
/// window's lock.
pub trait LogFollower: Send + Sync + fmt::Debug {
    /// The node's window, which the broker fills.
    fn window(&self) -> &SharedWindow;

    /// Notifies the node that its window has changed. Called without any lock held. Must not block.
    fn wake(&self);

    /// Executes a command of a node. Must not block.
    fn handle_control(&self, message: ControlMessage);

    /// The revocations that the node knows.
    fn revocations(&self) -> Vec<Revocation>;

    /// The number of clients that are connected to the node.
    fn connections(&self) -> usize;

    /// The clients that are connected to the node, or those of one user.
    fn clients(&self, of_user: Option<&str>) -> BrokerFuture<'_, Vec<ConnectionInfo>>;

    /// One page of about `count` of the node's clients, and the place of the next page if there is one. `place` is 0,
    /// or the next place that the previous call returned. Clients that connect during the iteration may be missing.
    fn clients_from(&self, place: u64, count: usize) -> BrokerFuture<'_, (Vec<ConnectionInfo>, Option<u64>)>;

    /// The node's answer to a question, as JSON. `None` if it knows nothing about the subject.
    fn answer(&self, question: String) -> BrokerFuture<'_, Option<String>>;
}

/// A log: a total order of all events of all publishers.
pub trait Log: Send + Sync + fmt::Debug + 'static {
    /// The name of the backend in `/ws/health`.
    fn name(&self) -> &'static str;

    /// The current status.
    fn status(&self) -> BackendStatus;

    /// Appends records in their order. A record whose `event_id` the log knows is not appended again. The log remembers
    /// IDs for longer than it retains events ([`Bounds::ids_ms`](fanfare_core::window::Bounds::ids_ms)).
    ///
    /// On success every record is in the log. After an error none of them is acknowledged.
    fn append(&self, records: Vec<Record>) -> BrokerFuture<'_, Vec<Appended>>;

    /// Waits until the windows of all nodes that follow this broker in this process have every event that was in the
    /// log at the time of the call, or at the time when an unavailable log was reached again. It has no timeout:
    /// callers limit how long they wait.
    fn catch_up(&self) -> BrokerFuture<'_, ()>;

    /// The entries with a sequence greater than `after`, oldest first, at most `limit`.
    fn range(&self, after: u64, limit: usize) -> BrokerFuture<'_, Vec<Arc<Entry>>>;

    /// Evicts the events that are too old at `unix_ms`, in milliseconds since 1970-01-01T00:00:00Z.
    fn expire(&self, unix_ms: u64);

    /// Stops the background work of the backend. Must be called after the node has drained its clients.
    fn stop(&self);
}

/// Commands and questions from one node to all nodes.
pub trait ControlPlane: Send + Sync + fmt::Debug {
    /// Sends a command to all nodes. Nodes that are disconnected and return within minutes execute it too.
    fn send(&self, message: ControlMessage) -> BrokerFuture<'_, ()>;

    /// Asks all nodes. Returns the answers that arrived in time, and the number of nodes that were asked. The format of
    /// questions and answers is the application's ([`LogFollower::answer`]).
    fn survey(&self, question: String) -> BrokerFuture<'_, (Vec<String>, usize)>;
}

/// A backend: a log and the control plane of the nodes that follow it.
pub trait Broker: Log + ControlPlane {}

impl<T: Log + ControlPlane> Broker for T {}

/// Warns that event IDs are forgotten before `idempotency_horizon`, because too many events are published.
fn warn_of_short_horizon(covered_ms: u64, horizon_ms: u64) {
    tracing::warn!(
        "duplicate events are recognised for {} s instead of {} s (idempotency_horizon), because more than \
         idempotency_events were published in that time; increase idempotency_events, or make sure that publishers \
         do not retry an event later than that",
        covered_ms / 1_000,
        horizon_ms / 1_000
    );
}
