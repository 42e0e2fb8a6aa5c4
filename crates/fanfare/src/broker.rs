//! Where the log lives. Knows events and positions, and not who is connected.

mod ids;
mod memory;
pub mod redis;
mod window;

pub use memory::MemoryBroker;
pub use window::SharedWindow;

use crate::{presence::ConnectionInfo, why::Question};
use fanfare_core::{Audience, ConnectionId, Event, Position, Revocation, window::Entry};
use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// A future that a broker answers with.
pub type BrokerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// An event and whom it is for, on its way into the log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The event, complete.
    pub event: Event,
    /// Whom it is for.
    pub audience: Audience,
    /// Who published it, as a text for people.
    pub publisher: Option<Arc<str>>,
    /// What its publish is traced as ([`Publishing::context`](crate::trace::Publishing::context)).
    pub trace: Option<Arc<str>>,
}

/// An event's place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The place.
    pub position: Position,
    /// The log had an event of this id already, at this place; nothing was appended.
    pub duplicate: bool,
}

/// Why the log could not take or give an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The log can't be reached. Whether it holds the event is not known; publishing it again under the same `event_id`
    /// publishes it once.
    #[error("the log can't be reached: {0}")]
    Unavailable(String),
    /// The event is in the log, but not yet where a failover would find it. Publishing it again under the same
    /// `event_id` waits again.
    #[error("the event is in the log, but not on a replica yet ({replicas} of {wanted} answered in time)")]
    NotReplicated {
        /// Replicas that have it.
        replicas: u64,
        /// Replicas that were asked for.
        wanted: u64,
    },
    /// A revocation is in force, as far as the nodes could be told, but a restart would forget it.
    #[error("the revocation is in force until the hub restarts, because it can't be kept: {0}")]
    NotKept(String),
}

/// What one node has all nodes do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    /// End a connection.
    Disconnect {
        /// Which.
        connection: ConnectionId,
        /// What its client reads.
        reason: String,
    },
    /// End a connection, because its client is on another node since.
    Replaced {
        /// Which.
        connection: ConnectionId,
        /// When it came, by the clock of the node that has it ([`ConnectionInfo::came_ms`](crate::registry::Present::came_ms)): a later one of
        /// the same name stays.
        came_ms: u64,
        /// The other connection is the newer one for certain. If not, the clients of both have to be able to come back: the newer
        /// one does.
        sure: bool,
    },
    /// End a connection that is one too many of its user, over all nodes.
    OverUserLimit {
        /// Which.
        connection: ConnectionId,
    },
    /// Believe some tokens no longer, and end the connections that they opened.
    Revoke(Revocation),
    /// Have a node see its clients off and end.
    Drain {
        /// Which.
        node: String,
    },
    /// Log so much from now on.
    LogLevel {
        /// As the application's log understands it.
        filter: String,
    },
    /// End every connection of a user.
    DisconnectUser {
        /// Whose.
        user: Arc<str>,
        /// What its clients read.
        reason: String,
    },
}

/// How the log stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendStatus {
    /// What is wrong, as a sentence; `None`: the log takes and gives events.
    pub problem: Option<String>,
    /// Redis answers. Always false for a log in memory, which has none.
    pub connected: bool,
    /// What publishers `PUBLISH` on Redis' channels is heard.
    pub listening: bool,
    /// How long the newest probe took from its append to its return.
    pub lag: Option<Duration>,
    /// How many events the log holds.
    pub events: usize,
    /// How many bytes of events the log holds.
    pub bytes: usize,
    /// How far back the log knows all ids of events: an event that is published again within that time is a duplicate.
    pub horizon: Duration,
    /// Connections on all nodes together and how many nodes there are, where others than this one are known.
    pub cluster: Option<(usize, usize)>,
}

/// Follows a log: a node.
pub trait LogFollower: Send + Sync + fmt::Debug {
    /// The node's window, into which the broker writes.
    fn window(&self) -> &SharedWindow;

    /// Says that the window has changed, once no lock is held any more. Must not block.
    fn wake(&self);

    /// Carries out what a node ordered. Must not block.
    fn handle_control(&self, order: ControlMessage);

    /// The tokens that the node believes no longer.
    fn revocations(&self) -> Vec<Revocation>;

    /// How many clients the node has.
    fn connections(&self) -> usize;

    /// The node's clients, or those of one user.
    fn clients(&self, of_user: Option<&str>) -> BrokerFuture<'_, Vec<ConnectionInfo>>;

    /// About `count` of the node's clients from a place on, and the next place if there are more. A place is 0, or what
    /// the call before gave; clients that come meanwhile may be left out.
    fn clients_from(&self, place: u64, count: usize) -> BrokerFuture<'_, (Vec<ConnectionInfo>, Option<u64>)>;

    /// What the node has to say to a question, as JSON; `None`: nothing.
    fn answer(&self, question: Question) -> BrokerFuture<'_, Option<String>>;
}

/// A log: one order for all events of all publishers.
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// What holds the log, as `/ws/health` names it.
    fn name(&self) -> &'static str;

    /// How it stands now.
    fn status(&self) -> BackendStatus;

    /// Appends records in their order. A record whose `event_id` the log knows is not appended again: it remembers ids
    /// for longer than events ([`Bounds::ids_ms`](fanfare_core::window::Bounds::ids_ms)).
    ///
    /// An answer means that every record is in the log; an error, that none of them was acknowledged.
    fn append(&self, records: Vec<Record>) -> BrokerFuture<'_, Vec<Appended>>;

    /// Returns once every node's window that follows this broker here has all that was in the log at the call, or at
    /// its return to a log that was away: callers limit how long they wait.
    fn catch_up(&self) -> BrokerFuture<'_, ()>;

    /// The entries behind a place, oldest first, at most `limit`.
    fn range(&self, after: u64, limit: usize) -> BrokerFuture<'_, Vec<Arc<Entry>>>;

    /// Has every node carry something out, those included that are cut off now and come back within minutes.
    fn order(&self, order: ControlMessage) -> BrokerFuture<'_, ()>;

    /// Asks every node, and gives what those said that answered in time, and how many were asked.
    fn ask(&self, question: Question) -> BrokerFuture<'_, (Vec<String>, usize)>;

    /// Lets go of what is too old at `unix_ms`.
    fn expire(&self, unix_ms: u64);

    /// Ends what the broker does in the background, once this node has no clients any more.
    fn stop(&self);
}

/// Says that so many events are published that their ids are not remembered for as long as they should be.
fn warn_of_short_horizon(covered_ms: u64, horizon_ms: u64) {
    tracing::warn!(
        "an event that is published again is recognised for {} s, not for {} s (idempotency_horizon): more than \
         idempotency_events were published in that time; raise it, or publishers must not repeat an event later",
        covered_ms / 1_000,
        horizon_ms / 1_000
    );
}
