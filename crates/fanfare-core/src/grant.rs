//! The permissions of a verified token. This module does not verify tokens.

use crate::audience::OWN_TOPICS;
use std::sync::Arc;

/// The permissions that a verified token gives its bearer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// The user, from the claim `sub`. Never empty.
    pub user: Arc<str>,
    /// Patterns of the topics that the bearer may subscribe to, from the claim `topics`. `*` matches any sequence of
    /// characters.
    pub topics: Vec<Box<str>>,
    /// Whether the bearer may publish, from the claim `publish`.
    pub publish: bool,
    /// Whether the bearer has all permissions, from the claim `admin`.
    pub admin: bool,
    /// When the token expires, in seconds since 1970-01-01T00:00:00Z, from the claim `exp`.
    pub expires_at: Option<u64>,
    /// When the token was issued, in seconds since 1970-01-01T00:00:00Z, from the claim `iat`.
    pub issued_at: Option<u64>,
    /// The token's ID, from the claim `jti`: the first 64 bits of its SHA-256.
    pub token: Option<u64>,
    /// The login that the token belongs to, from the claim `sid`: the first 64 bits of its SHA-256.
    pub session: Option<u64>,
    /// Events appended before this time, in seconds since 1970-01-01T00:00:00Z, are not replayed to the bearer.
    pub replay_from: Option<u64>,
}

impl Grant {
    /// Returns whether the bearer may publish.
    pub fn may_publish(&self) -> bool {
        self.publish || self.admin
    }

    /// Returns whether the bearer may subscribe to `topic`.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.admin || allows(&self.topics, topic)
    }
}

/// Returns whether a pattern matches `topic`. No pattern matches a topic that is reserved for the hub.
pub(crate) fn allows(patterns: &[Box<str>], topic: &str) -> bool {
    !topic.starts_with(OWN_TOPICS) && patterns.iter().any(|pattern| matches_pattern(pattern, topic))
}

/// Returns whether `pattern` matches `text`. `*` matches any sequence of characters.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let Some((head, mut pattern)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    // The first match of each inner piece leaves the longest rest, so no backtracking is necessary.
    while let Some((piece, rest)) = pattern.split_once('*') {
        let Some(at) = text.find(piece) else {
            return false;
        };
        text = &text[at + piece.len()..];
        pattern = rest;
    }
    text.ends_with(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_matches_any_sequence_of_characters() {
        for (pattern, text, fits) in [
            ("project:*", "project:7", true),
            ("project:*", "project:", true),
            ("project:*", "projects", false),
            ("*", "anything", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*:7", "project:7", true),
            ("a*a", "a", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("", "x", false),
        ] {
            assert_eq!(matches_pattern(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn an_administrator_has_all_permissions() {
        let grant = Grant { admin: true, ..Grant::default() };
        assert!(grant.may_publish() && grant.may_subscribe("anything"));
        assert!(!Grant::default().may_publish() && !Grant::default().may_subscribe("anything"));
    }

    // attack: subscribing to a topic reserved for the hub with a pattern such as * => only administrators can
    #[test]
    fn only_administrators_may_subscribe_to_reserved_topics() {
        let everything = Grant { topics: vec!["*".into(), "$sys".into()], ..Grant::default() };
        assert!(everything.may_subscribe("anything") && !everything.may_subscribe("$sys"));
        assert!(Grant { admin: true, ..Grant::default() }.may_subscribe("$sys"));
    }
}
