//! Traces the delivery of an event, and the state of a client. Every node is queried and reports its own state. Nothing
//! here changes state.

use fanfare_core::{CloseCode, ConnectionId, Lineage, Position, lineage::Place, time::iso_8601};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, net::IpAddr, sync::Arc};
use utoipa::ToSchema;

/// Number of recently closed connections that a node remembers.
const MAX_RECENTLY_CLOSED: usize = 1_000;

/// A query to all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The delivery of an event.
    Event {
        /// The event's ID.
        event_id: String,
        /// Also report the delivery state for each connection of this user.
        user: Option<String>,
    },
    /// The node's metrics.
    Figures,
    /// The state of a client, or of its last connection.
    Client {
        /// The connection's ID.
        connection: String,
    },
}

/// The delivery of one event on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Journey {
    /// The event's ID.
    #[schema(example = "order-7")]
    pub event_id: String,
    /// The event's type.
    #[schema(example = "note")]
    pub event_type: String,
    /// The audience: `everyone`, `user:ID`, `connection:ID` or `topic:NAME`.
    #[schema(example = "user:ann")]
    pub audience: String,
    /// The event's position in the log.
    #[schema(example = "pos-1f00c3-42")]
    pub position: String,
    /// When the log accepted the event, in ISO 8601, by the log's clock.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    pub accepted_at: String,
    /// The publisher: `user:ID` (over HTTP, by its token), `channel:NAME` (on Redis) or `application`.
    #[schema(example = "user:backend", nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// Size of the event's JSON, in bytes.
    pub bytes: usize,
    /// The delivery on each node that responded.
    pub nodes: Vec<EventOnNode>,
    /// Number of nodes that did not respond in time.
    pub silent_nodes: usize,
    /// Whether the queried user is in the audience, connected or not. Absent if no user was given.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_in_audience: Option<InAudience>,
}

/// Whether a user is in the audience of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InAudience {
    /// The user is in the audience. A client of the user that resumes with a cursor before the event receives it, as
    /// long as it is retained.
    Yes,
    /// The audience is a topic: the user's clients that subscribe to it receive the event.
    Subscribers,
    /// The user is not in the audience. No client of the user is sent the event.
    No,
}

impl InAudience {
    /// Compares a user with an audience in its text form. `is_of_user` returns whether a connection belongs to the
    /// user.
    pub(crate) fn of(audience: &str, user: &str, is_of_user: impl Fn(ConnectionId) -> bool) -> Self {
        let is_in = match audience.split_once(':') {
            None => true,
            Some(("user", name)) => name == user,
            Some(("connection", id)) => id.parse().is_ok_and(is_of_user),
            Some(_) => return Self::Subscribers,
        };
        if is_in { Self::Yes } else { Self::No }
    }
}

/// The delivery of an event on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventOnNode {
    /// The node's name.
    #[schema(example = "5af7e6e8e4c2f20b")]
    pub node: String,
    /// Whether the event is in the node's window. It is not before the event arrives on the node, nor after it is
    /// evicted.
    pub held: bool,
    /// Number of clients that are connected to the node now.
    pub connected: usize,
    /// Number of those clients that are in the audience.
    pub matched: usize,
    /// Number of clients that the event was written to, including clients that have disconnected since.
    pub written: usize,
    /// Number of clients that the event is not written to yet, because their sockets currently accept no more data.
    pub waiting: usize,
    /// Number of clients that acknowledged the event (`ack`).
    pub acknowledged: usize,
    /// Clients that were not sent the event, by reason.
    pub skipped: Skipped,
    /// The queried user's connections on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of_user: Vec<ClientAndEvent>,
}

/// Numbers of a node's clients that were not sent an event, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Skipped {
    /// Clients outside the audience.
    pub not_in_audience: usize,
    /// Clients that connected or resumed after the event, without a cursor or with a cursor after it.
    pub came_later: usize,
}

/// The delivery state of an event for one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientAndEvent {
    /// The client's connection ID.
    #[schema(format = "uuid")]
    pub connection_id: String,
    /// The delivery state.
    pub fate: ClientFate,
}

/// The delivery state of an event for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientFate {
    /// The event was written to the client's socket. For a topic: if the client was subscribed at that time.
    Written,
    /// The event is not written yet, because the client's socket currently accepts no more data.
    Waiting,
    /// The client connected after the event, without a cursor or with a cursor after it.
    CameLater,
    /// The client is not in the audience.
    NotInAudience,
}

/// A client, connected or disconnected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientDetails {
    /// The connection ID.
    #[schema(format = "uuid")]
    pub connection_id: String,
    /// The user of its token.
    pub user_id: String,
    /// The node that the client is or was connected to.
    #[schema(example = "5af7e6e8e4c2f20b")]
    pub node: String,
    /// When the client connected, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    pub connected_at: String,
    /// The client's address.
    #[schema(example = "203.0.113.7")]
    pub address: String,
    /// The client's cursor: its position in the log. All events of its audience up to here were sent.
    #[schema(example = "pos-1f00c3-42")]
    pub cursor: String,
    /// Number of events in the log between the cursor and the head.
    pub behind_events: u64,
    /// Round trip time of the last answered ping, in milliseconds.
    pub round_trip_ms: u32,
    /// Further details of a connected client.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveDetails>,
    /// How a disconnected client was closed.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<ClosedDetails>,
}

/// Details of a connected client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LiveDetails {
    /// Whether the client has an administrator's token.
    pub admin: bool,
    /// The topics that the client subscribes to.
    pub topics: Vec<String>,
    /// Time since its last frame, in milliseconds.
    pub last_frame_ms_ago: u64,
    /// Whether it has not answered the last ping yet.
    pub overdue: bool,
    /// Bytes that its socket has not accepted yet: the rest of a frame.
    pub waiting_bytes: usize,
    /// The newest event that it was sent, if this node still has it in its window.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_id: Option<String>,
}

/// How a client was closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClosedDetails {
    /// When it was closed, in ISO 8601.
    #[schema(example = "2026-11-23T09:40:00.125Z")]
    pub at: String,
    /// The close code; 1006 if the socket ended without a close frame.
    #[schema(example = 4000)]
    pub code: u16,
    /// What the code means.
    #[schema(example = "The client was silent for longer than the heartbeat timeout.")]
    pub meaning: String,
}

/// A connection that was closed.
#[derive(Debug)]
pub(crate) struct ClosedConnection {
    pub(crate) connection: ConnectionId,
    pub(crate) user: Arc<str>,
    pub(crate) since_ms: u64,
    pub(crate) until_ms: u64,
    pub(crate) address: IpAddr,
    /// A position in the log as it was at that time.
    pub(crate) cursor: Position,
    pub(crate) round_trip_ms: u32,
    pub(crate) code: Option<CloseCode>,
}

/// The recently closed connections of a node, newest last.
#[derive(Debug, Default)]
pub(crate) struct RecentlyClosed(VecDeque<ClosedConnection>);

impl RecentlyClosed {
    pub(crate) fn add(&mut self, closed_connection: ClosedConnection) {
        if self.0.len() == MAX_RECENTLY_CLOSED {
            self.0.pop_front();
        }
        self.0.push_back(closed_connection);
    }

    /// The most recent close of a connection.
    pub(crate) fn find(&self, connection: ConnectionId) -> Option<&ClosedConnection> {
        self.0.iter().rev().find(|closed_connection| closed_connection.connection == connection)
    }
}

impl ClosedConnection {
    /// The details of the connection on `node`, whose log has `lineage` and `head`.
    pub(crate) fn details(&self, node: &str, lineage: &Lineage, head: u64) -> ClientDetails {
        let served = match lineage.place(self.cursor, head) {
            Place::At(sequence) | Place::Broken(sequence) => sequence,
            // The client received no event of this log.
            Place::Unknown => 0,
        };
        let (code, meaning) = match self.code {
            Some(code) => (code.number(), code.meaning()),
            None => (1006, "The socket ended without a close frame."),
        };
        ClientDetails {
            connection_id: self.connection.to_string(),
            user_id: self.user.to_string(),
            node: node.to_owned(),
            connected_at: iso_8601(self.since_ms),
            address: self.address.to_string(),
            cursor: self.cursor.to_string(),
            behind_events: head.saturating_sub(served),
            round_trip_ms: self.round_trip_ms,
            live: None,
            closed: Some(ClosedDetails { at: iso_8601(self.until_ms), code, meaning: meaning.to_owned() }),
        }
    }
}

/// A node's reply to [`Question::Event`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventAnswer {
    pub(crate) node: EventOnNode,
    /// The event, if it is in the node's window.
    pub(crate) event: Option<EventFacts>,
}

/// The properties of an event that are the same on every node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventFacts {
    pub(crate) event_type: String,
    pub(crate) audience: String,
    pub(crate) position: String,
    pub(crate) accepted_ms: u64,
    pub(crate) publisher: Option<String>,
    pub(crate) bytes: usize,
}

/// Merges the replies of the nodes. `None` if no node has the event in its window.
pub(crate) fn journey(event_id: String, answers: Vec<EventAnswer>, asked: usize) -> Option<Journey> {
    let silent_nodes = asked.saturating_sub(answers.len());
    let (mut nodes, mut facts) = (Vec::with_capacity(answers.len()), None);
    for EventAnswer { node, event } in answers {
        nodes.push(node);
        facts = facts.or(event);
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let EventFacts { event_type, audience, position, accepted_ms, publisher, bytes } = facts?;
    let accepted_at = iso_8601(accepted_ms);
    Some(Journey {
        event_id,
        event_type,
        audience,
        position,
        accepted_at,
        publisher,
        bytes,
        nodes,
        silent_nodes,
        user_in_audience: None,
    })
}

/// The connected client if a node has it, otherwise the most recent close.
pub(crate) fn client(answers: Vec<ClientDetails>) -> Option<ClientDetails> {
    let ended = |details: &ClientDetails| details.closed.as_ref().map(|closed| closed.at.clone());
    // A connected client precedes any closed connection.
    answers.into_iter().max_by_key(|details| (details.live.is_some(), ended(details)))
}

impl fmt::Display for ClientFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Written => "written",
            Self::Waiting => "waiting",
            Self::CameLater => "came later",
            Self::NotInAudience => "not in the audience",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed_connection(n: u128) -> ClosedConnection {
        ClosedConnection {
            connection: ConnectionId(n),
            user: "ann".into(),
            since_ms: 0,
            until_ms: 1_000,
            address: [127, 0, 0, 1].into(),
            cursor: Position { epoch: 1, sequence: 3 },
            round_trip_ms: 2,
            code: None,
        }
    }

    #[test]
    fn only_the_newest_closed_connections_are_remembered() {
        let mut recently_closed = RecentlyClosed::default();
        for n in 0..MAX_RECENTLY_CLOSED as u128 + 5 {
            recently_closed.add(closed_connection(n));
        }
        assert!(recently_closed.find(ConnectionId(4)).is_none() && recently_closed.find(ConnectionId(5)).is_some());
        assert_eq!(recently_closed.0.len(), MAX_RECENTLY_CLOSED);
    }

    #[test]
    fn the_cursor_of_a_closed_connection_keeps_its_epoch() {
        let mut shortened = Lineage::new(1);
        shortened.begin(2, 2, fanfare_core::lineage::Loss::Nothing);
        for (lineage, behind) in [(Lineage::new(1), 6), (shortened, 7), (Lineage::new(2), 9)] {
            let gone = closed_connection(7).details("a", &lineage, 9);
            assert_eq!((&*gone.cursor, gone.behind_events), ("pos-1-3", behind), "{lineage}");
        }
    }

    #[test]
    fn a_connected_client_precedes_a_closed_connection() {
        let gone = closed_connection(7).details("a", &Lineage::new(1), 9);
        assert_eq!((gone.behind_events, gone.closed.as_ref().unwrap().code), (6, 1006));
        let live = LiveDetails {
            admin: false,
            topics: Vec::new(),
            last_frame_ms_ago: 1,
            overdue: false,
            waiting_bytes: 0,
            last_event_id: None,
        };
        let there = ClientDetails { live: Some(live), closed: None, node: "b".to_owned(), ..gone.clone() };
        assert_eq!(client(vec![gone.clone(), there.clone()]), Some(there.clone()));
        assert_eq!(client(vec![there.clone(), gone]), Some(there));
        assert_eq!(client(Vec::new()), None);
    }
}
