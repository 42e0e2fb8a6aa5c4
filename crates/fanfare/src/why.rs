//! What a node knows of one event or one client, for whoever asks why something came or did not. Every node is asked, and
//! answers for itself; nothing here changes anything.

use fanfare_core::{CloseCode, ConnectionId, Lineage, Position, lineage::Place, time::iso_8601};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, net::IpAddr, sync::Arc};
use utoipa::ToSchema;

/// How many clients that have left a node remembers.
const MAX_DEPARTED: usize = 1_000;

/// What all nodes are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// What became of an event.
    Event {
        /// Which.
        event_id: String,
        /// Tell too how it stands with each connection of this user.
        user: Option<String>,
    },
    /// How the node stands.
    Figures,
    /// How a client stands, or why it left.
    Client {
        /// Which.
        connection: String,
    },
}

/// The journey of one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Journey {
    /// Its id.
    #[schema(example = "order-7")]
    pub event_id: String,
    /// Its type.
    #[schema(example = "note")]
    pub event_type: String,
    /// Whom it is for: `everyone`, `user:ID`, `connection:ID` or `topic:NAME`.
    #[schema(example = "user:ann")]
    pub audience: String,
    /// Where it stands in the log.
    #[schema(example = "pos-1f00c3-42")]
    pub position: String,
    /// When the log took it, in ISO 8601, by the log's clock.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    pub accepted_at: String,
    /// Who published it: `user:ID` (over HTTP, by its token), `channel:NAME` (on Redis) or `application`.
    #[schema(example = "user:backend", nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// Its JSON, in bytes.
    pub bytes: usize,
    /// What became of it on each node that answered.
    pub nodes: Vec<EventOnNode>,
    /// How many nodes did not answer in time.
    pub silent_nodes: usize,
    /// Whether the event is for the user, connected or not, where one was asked about.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_in_audience: Option<InAudience>,
}

/// Whether an event is for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InAudience {
    /// It is. A client of the user that returns with a cursor from before the event receives it while it is held.
    Yes,
    /// It is for a topic: for those clients of the user that subscribe to it.
    Subscribers,
    /// It is not: no client of the user is ever sent it.
    No,
}

impl InAudience {
    /// As `audience`, in its text form, and `user` have it. `is_of_user`: whether a connection is the user's.
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

/// What became of an event on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventOnNode {
    /// The node's name.
    #[schema(example = "5af7e6e8e4c2f20b")]
    pub node: String,
    /// Whether the node holds it: it does not before the event has come there, nor once it is too old.
    pub held: bool,
    /// Clients that are connected there now.
    pub connected: usize,
    /// Of those, the ones that it is for.
    pub matched: usize,
    /// How many clients it was written to, those that have left since included.
    pub written: usize,
    /// Clients that have not come to it yet, because they take no more for now.
    pub waiting: usize,
    /// How often a client said that it has handled it (`ack`).
    pub acknowledged: usize,
    /// Those that it was not sent to, by reason.
    pub skipped: Skipped,
    /// The user's connections there, where one was asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of_user: Vec<ClientAndEvent>,
}

/// Clients of a node that were not sent an event, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Skipped {
    /// It is not for them.
    pub not_in_audience: usize,
    /// They came, or came back, after it, with a cursor behind it or with none.
    pub came_later: usize,
}

/// How an event stands with one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientAndEvent {
    /// The client.
    #[schema(format = "uuid")]
    pub connection_id: String,
    /// How it stands.
    pub fate: ClientFate,
}

/// How an event stands with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientFate {
    /// It was written to the client's socket. Of a topic: if the client was subscribed by then.
    Written,
    /// The client takes no more for now and has not come to it.
    Waiting,
    /// The client came after it, with a cursor behind it or with none.
    CameLater,
    /// It is not for this client.
    NotInAudience,
}

/// A client, connected or gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientDetails {
    /// Its name.
    #[schema(format = "uuid")]
    pub connection_id: String,
    /// The user of its token.
    pub user_id: String,
    /// The node that it is, or was, connected to.
    #[schema(example = "5af7e6e8e4c2f20b")]
    pub node: String,
    /// Since when, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    pub connected_at: String,
    /// Where it comes from.
    #[schema(example = "203.0.113.7")]
    pub address: String,
    /// Its cursor: up to here it was sent all that it may see.
    #[schema(example = "pos-1f00c3-42")]
    pub cursor: String,
    /// How many events of the log lie between its cursor and the head.
    pub behind_events: u64,
    /// From its last ping that was answered to the answer, in milliseconds.
    pub round_trip_ms: u32,
    /// What only a client has that is still there.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveDetails>,
    /// How it ended, of one that has.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<ClosedDetails>,
}

/// A client that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LiveDetails {
    /// Whether its token is an administrator's.
    pub admin: bool,
    /// The topics that it holds.
    pub topics: Vec<String>,
    /// How long ago its last frame came, in milliseconds.
    pub last_frame_ms_ago: u64,
    /// It owes an answer to a ping.
    pub overdue: bool,
    /// Bytes that its socket has not taken: the rest of a frame.
    pub waiting_bytes: usize,
    /// The newest event that it was sent, if this node still holds it.
    #[schema(nullable = false)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_id: Option<String>,
}

/// How a client ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClosedDetails {
    /// When, in ISO 8601.
    #[schema(example = "2026-11-23T09:40:00.125Z")]
    pub at: String,
    /// The close code; 1006 where the socket ended without a close.
    #[schema(example = 4000)]
    pub code: u16,
    /// What the code means.
    #[schema(example = "The client was silent for longer than the heartbeat timeout.")]
    pub meaning: String,
}

/// A client that has left.
#[derive(Debug)]
pub(crate) struct ClosedConnection {
    pub(crate) connection: ConnectionId,
    pub(crate) user: Arc<str>,
    pub(crate) since_ms: u64,
    pub(crate) until_ms: u64,
    pub(crate) address: IpAddr,
    /// A place of the log as it was then.
    pub(crate) cursor: Position,
    pub(crate) round_trip_ms: u32,
    pub(crate) code: Option<CloseCode>,
}

/// The clients that have left a node, the newest last.
#[derive(Debug, Default)]
pub(crate) struct RecentlyClosed(VecDeque<ClosedConnection>);

impl RecentlyClosed {
    pub(crate) fn add(&mut self, closed_connection: ClosedConnection) {
        if self.0.len() == MAX_DEPARTED {
            self.0.pop_front();
        }
        self.0.push_back(closed_connection);
    }

    /// How a connection ended the last time.
    pub(crate) fn find(&self, connection: ConnectionId) -> Option<&ClosedConnection> {
        self.0.iter().rev().find(|closed_connection| closed_connection.connection == connection)
    }
}

impl ClosedConnection {
    /// How it ended on `node`, which serves this log up to `head`.
    pub(crate) fn details(&self, node: &str, lineage: &Lineage, head: u64) -> ClientDetails {
        let served = match lineage.place(self.cursor, head) {
            Place::At(sequence) | Place::Broken(sequence) => sequence,
            // All of this log is new to it.
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

/// What a node says to [`Question::Event`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventAnswer {
    pub(crate) node: EventOnNode,
    /// The event itself, where the node holds it.
    pub(crate) event: Option<EventFacts>,
}

/// What is the same on every node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventFacts {
    pub(crate) event_type: String,
    pub(crate) audience: String,
    pub(crate) position: String,
    pub(crate) accepted_ms: u64,
    pub(crate) publisher: Option<String>,
    pub(crate) bytes: usize,
}

/// Puts together what the nodes said. `None`: none of them holds the event.
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

/// The client itself if a node has it, else how it ended the last time.
pub(crate) fn client(answers: Vec<ClientDetails>) -> Option<ClientDetails> {
    let ended = |details: &ClientDetails| details.closed.as_ref().map(|closed| closed.at.clone());
    // Who is there has not ended, and counts as the newest.
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
    fn only_the_newest_of_those_who_left_are_remembered() {
        let mut recently_closed = RecentlyClosed::default();
        for n in 0..MAX_DEPARTED as u128 + 5 {
            recently_closed.add(closed_connection(n));
        }
        assert!(recently_closed.find(ConnectionId(4)).is_none() && recently_closed.find(ConnectionId(5)).is_some());
        assert_eq!(recently_closed.0.len(), MAX_DEPARTED);
    }

    #[test]
    fn the_cursor_of_a_client_that_left_keeps_the_epoch_that_it_is_of() {
        let mut shortened = Lineage::new(1);
        shortened.begin(2, 2, fanfare_core::lineage::Loss::Nothing);
        for (lineage, behind) in [(Lineage::new(1), 6), (shortened, 7), (Lineage::new(2), 9)] {
            let gone = closed_connection(7).details("a", &lineage, 9);
            assert_eq!((&*gone.cursor, gone.behind_events), ("pos-1-3", behind), "{lineage}");
        }
    }

    #[test]
    fn who_is_there_counts_more_than_who_was() {
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
