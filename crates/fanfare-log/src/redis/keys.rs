//! The names of all keys and channels in Redis.

use fanfare_core::{
    Audience, ConnectionId,
    audience::{MAX_USER_BYTES, OWN_TOPICS, check_topic},
};
use std::sync::Arc;

/// The maximum length of the control stream. The scripts have the same number. It suffices for ten minutes of 500 nodes
/// that write a probe every two seconds, so a node that is disconnected for less receives every command. The stream
/// takes about ten megabytes.
pub(super) const CONTROL_ENTRIES: usize = 163_840;

/// The names in one namespace.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) log: String,
    pub(super) epoch: String,
    /// Event IDs with their sequences: the current generation, in which the append script looks.
    pub(super) ids: String,
    /// The two previous generations.
    pub(super) older_ids: [String; 2],
    pub(super) nodes: String,
    /// The members: the nodes that may acknowledge events.
    pub(super) members: String,
    /// The reports of nodes during a recovery.
    pub(super) reports: String,
    pub(super) pubsub: String,
    pub(super) control: String,
    /// Revoked users and tokens, scored by the time before which tokens were issued.
    pub(super) revoked: String,
    /// Revoked logins, scored by the expiry of their last token.
    pub(super) revoked_sessions: String,
    /// The prefix of the keys for answers to questions.
    answers: String,
    /// The prefix of the keys for reasons of rejected messages.
    refused: String,
    /// The prefix of the keys of nodes.
    pub(super) node: String,
    /// The prefix of the keys of connections.
    pub(super) connection: String,
    /// The prefix of the keys for the connections of a user. The suffix is [`USER_SUFFIX`](Self::USER_SUFFIX).
    pub(super) user: String,
    /// The prefix of the channels. Channels have no hash slot, so it is the same in a Cluster.
    channels: String,
}

impl Keys {
    pub(super) const USER_SUFFIX: &str = ":connections";

    /// In a Cluster the namespace is a hash tag: scripts can use several keys only if all are in the same slot.
    pub(super) fn new(namespace: &str, cluster: bool) -> Self {
        let prefix = if cluster { format!("{{{namespace}}}") } else { namespace.to_owned() };
        let key = |name: &str| format!("{prefix}:{name}");
        Self {
            log: key("log"),
            epoch: key("epoch"),
            ids: key("ids"),
            older_ids: [key("ids:1"), key("ids:2")],
            nodes: key("nodes"),
            members: key("members"),
            reports: key("reports"),
            pubsub: key("pubsub"),
            control: key("control"),
            revoked: key("revoked"),
            revoked_sessions: key("revoked-sessions"),
            answers: key("answers:"),
            refused: key("refused:"),
            node: key("node:"),
            connection: key("connection:"),
            user: key("user:"),
            channels: namespace.to_owned(),
        }
    }

    /// The key for the answers to a question.
    pub(super) fn answers(&self, question: &str) -> String {
        format!("{}{question}", self.answers)
    }

    /// The key for the reason why the message with this `event_id` was rejected.
    pub(super) fn refused(&self, event_id: &str) -> String {
        format!("{}{event_id}", self.refused)
    }

    /// The key for the connections of a node.
    pub(super) fn connections_of_node(&self, node: &str) -> String {
        format!("{}{node}:connections", self.node)
    }

    /// The key for the connections of a user.
    pub(super) fn connections_of_user(&self, user: &str) -> String {
        format!("{}{user}{}", self.user, Self::USER_SUFFIX)
    }

    /// The channel on which compatible publishers publish events for everyone.
    pub(super) fn broadcast_channel(&self) -> String {
        format!("{}:broadcast", self.channels)
    }

    /// The patterns of the channels on which compatible publishers publish events for users, connections and topics.
    pub(super) fn addressed_channels(&self) -> [String; 3] {
        ["user", "connection", "topic"].map(|kind| format!("{}:{kind}:*", self.channels))
    }

    /// The channel on which a node receives its own probes.
    pub(super) fn probe_channel(&self, node: &str) -> String {
        format!("{}:node:{node}", self.channels)
    }

    /// The audience of messages on a channel. `None` if the name of the channel is not valid.
    pub(super) fn audience_of(&self, channel: &str) -> Option<Audience> {
        let name = channel.strip_prefix(&self.channels)?.strip_prefix(':')?;
        match name.split_once(':') {
            None => (name == "broadcast").then_some(Audience::Everyone),
            Some(("user", id)) if !id.is_empty() && id.len() <= MAX_USER_BYTES => Some(Audience::User(Arc::from(id))),
            Some(("topic", name)) if check_topic(name).is_ok() && !name.starts_with(OWN_TOPICS) => {
                Some(Audience::Topic(Arc::from(name)))
            }
            Some(("connection", id)) => id.parse::<ConnectionId>().ok().map(Audience::Connection),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_share_a_slot_in_a_cluster() {
        let (alone, cluster) = (Keys::new("ws", false), Keys::new("ws", true));
        assert_eq!((&*alone.log, &*cluster.log), ("ws:log", "{ws}:log"));
        assert_eq!(cluster.broadcast_channel(), "ws:broadcast");
    }

    #[test]
    fn the_audience_follows_from_the_channel() {
        let keys = Keys::new("ws", true);
        let id = ConnectionId(7);
        for (channel, audience) in [
            ("ws:broadcast", Some(Audience::Everyone)),
            ("ws:user:a:b", Some(Audience::User("a:b".into()))),
            (&format!("ws:connection:{id}"), Some(Audience::Connection(id))),
            ("ws:topic:project:7", Some(Audience::Topic("project:7".into()))),
            ("ws:topic:a b", None),
            ("ws:topic:$sys", None),
            ("ws:user:", None),
            ("ws:connection:7", None),
            ("ws:node:x", None),
            ("other:broadcast", None),
        ] {
            assert_eq!(keys.audience_of(channel), audience, "{channel}");
        }
    }
}
