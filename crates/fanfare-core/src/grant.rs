//! What a verified token allows. Knows nothing of how a token is verified.

use crate::audience::OWN_TOPICS;
use std::sync::Arc;

/// What a verified token allows its bearer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// The user, from the claim `sub`. Never empty.
    pub user: Arc<str>,
    /// Patterns of the topics that may be subscribed to, from the claim `topics`; `*` stands for any run of
    /// characters.
    pub topics: Vec<Box<str>>,
    /// May publish, from the claim `publish`.
    pub publish: bool,
    /// May do everything, from the claim `admin`.
    pub admin: bool,
    /// When the token ends, in seconds since 1970-01-01T00:00:00Z, from the claim `exp`.
    pub expires_at: Option<u64>,
    /// When the token was issued, in seconds since 1970-01-01T00:00:00Z, from the claim `iat`.
    pub issued_at: Option<u64>,
    /// The token's own id, from the claim `jti`: the first 64 bits of its SHA-256.
    pub token: Option<u64>,
    /// The login that the token comes from, from the claim `sid`: the first 64 bits of its SHA-256.
    pub session: Option<u64>,
    /// Events appended before this time, in seconds since 1970-01-01T00:00:00Z, are not replayed to the bearer.
    pub replay_from: Option<u64>,
}

impl Grant {
    /// Whether the bearer may publish.
    pub fn may_publish(&self) -> bool {
        self.publish || self.admin
    }

    /// Whether the bearer may subscribe to `topic`.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.admin || allows(&self.topics, topic)
    }
}

/// Whether one of the patterns fits `topic`. The hub's own topics fit none.
pub(crate) fn allows(patterns: &[Box<str>], topic: &str) -> bool {
    !topic.starts_with(OWN_TOPICS) && patterns.iter().any(|pattern| matches_pattern(pattern, topic))
}

/// Whether `text` fits `pattern`, where `*` stands for any run of characters.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let Some((head, mut pattern)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    // The shortest match of each inner piece leaves the most for the rest, so taking the first is enough.
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
    fn patterns() {
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
    fn an_administrator_may_do_everything() {
        let grant = Grant { admin: true, ..Grant::default() };
        assert!(grant.may_publish() && grant.may_subscribe("anything"));
        assert!(!Grant::default().may_publish() && !Grant::default().may_subscribe("anything"));
    }

    // attack: subscribing to the hub's own topics with a topic pattern such as * => only administrators may
    #[test]
    fn the_hubs_own_topics_are_for_administrators() {
        let everything = Grant { topics: vec!["*".into(), "$sys".into()], ..Grant::default() };
        assert!(everything.may_subscribe("anything") && !everything.may_subscribe("$sys"));
        assert!(Grant { admin: true, ..Grant::default() }.may_subscribe("$sys"));
    }
}
