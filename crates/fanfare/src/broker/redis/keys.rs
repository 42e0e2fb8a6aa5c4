//! The names of everything that fanfare has in Redis.

use fanfare_core::{
    Audience, ConnectionId,
    audience::{MAX_USER_BYTES, OWN_TOPICS, check_topic},
};
use std::sync::Arc;

/// The entries of the control stream, as in the scripts: what 500 nodes write in ten minutes, each a probe every two seconds.
/// A node that was away for less receives every order. They are about ten megabytes.
pub(super) const CONTROL_ENTRIES: usize = 163_840;

/// The names under one namespace.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) log: String,
    pub(super) epoch: String,
    /// The ids of events with their sequences: the current generation, in which publishers look.
    pub(super) ids: String,
    /// The generations before.
    pub(super) older_ids: [String; 2],
    pub(super) nodes: String,
    /// The nodes that may acknowledge.
    pub(super) members: String,
    /// What nodes report during a recovery.
    pub(super) reports: String,
    pub(super) pubsub: String,
    pub(super) control: String,
    /// Users and tokens, by the time before which tokens were issued.
    pub(super) revoked: String,
    /// Logins, by the time when their last token has expired.
    pub(super) revoked_sessions: String,
    /// What the key of the answers to a question begins with.
    answers: String,
    /// What the key of the reason for a rejected message begins with.
    refused: String,
    /// What a node's key begins with.
    pub(super) node: String,
    /// What a connection's key begins with.
    pub(super) connection: String,
    /// What the key of a user's connections begins with; it ends with [`USER_SUFFIX`](Self::USER_SUFFIX).
    pub(super) user: String,
    /// What the channels begin with. Channels have no slot, so they look the same on a Cluster.
    channels: String,
}

impl Keys {
    pub(super) const USER_SUFFIX: &str = ":connections";

    /// On a Cluster the namespace is a hash tag, so that all keys are on one shard and scripts may use them together.
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

    /// The answers to a question.
    pub(super) fn answers(&self, question: &str) -> String {
        format!("{}{question}", self.answers)
    }

    /// Why the message that was to be this event was rejected.
    pub(super) fn refused(&self, event_id: &str) -> String {
        format!("{}{event_id}", self.refused)
    }

    /// The connections of a node.
    pub(super) fn connections_of_node(&self, node: &str) -> String {
        format!("{}{node}:connections", self.node)
    }

    /// The connections of a user.
    pub(super) fn connections_of_user(&self, user: &str) -> String {
        format!("{}{user}{}", self.user, Self::USER_SUFFIX)
    }

    /// The channel that the reference's publishers use for everyone.
    pub(super) fn broadcast_channel(&self) -> String {
        format!("{}:broadcast", self.channels)
    }

    /// The patterns of the channels that the reference's publishers use for users and connections, and of those for topics.
    pub(super) fn addressed_channels(&self) -> [String; 3] {
        ["user", "connection", "topic"].map(|kind| format!("{}:{kind}:*", self.channels))
    }

    /// The channel on which a node hears its own probes.
    pub(super) fn probe_channel(&self, node: &str) -> String {
        format!("{}:node:{node}", self.channels)
    }

    /// Whom a message on a channel is for.
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
    fn a_cluster_keeps_all_keys_in_one_slot() {
        let (alone, cluster) = (Keys::new("ws", false), Keys::new("ws", true));
        assert_eq!((&*alone.log, &*cluster.log), ("ws:log", "{ws}:log"));
        assert_eq!(cluster.broadcast_channel(), "ws:broadcast");
    }

    #[test]
    fn channels_say_whom_a_message_is_for() {
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
