//! Names for connections and events. Knows a key and randomness, and nothing of who is connected.

use aws_lc_rs::hmac;
use fanfare_core::{ConnectionId, Grant, audience::TAG_BITS};
use std::fmt;

/// Gives connections names that prove whose they are.
///
/// Half of a name is random behind a tag of the log's epoch, the other half is a code over it and the user
/// (HMAC-SHA-256, cut to 64 bits). So any node with the same key knows a name and its user again after a reconnect, a
/// restart or a crash, without keeping a list, and nobody can come back under another user's name. The tag proves that
/// a client came after a loss of the log, without a clock that all nodes would have to share.
pub(crate) struct ConnectionIdIssuer {
    key: hmac::Key,
}

/// Whose a connection is: a user, and, where an account of the name may have been removed and made again, since when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bearer<'a> {
    user: &'a str,
    since: Option<u64>,
}

impl<'a> From<&'a Grant> for Bearer<'a> {
    fn from(grant: &'a Grant) -> Self {
        Self { user: &grant.user, since: grant.replay_from }
    }
}

impl ConnectionIdIssuer {
    pub(crate) fn new(secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let own = hmac::sign(&root, b"fanfare connection names");
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, own.as_ref()) }
    }

    /// A name for a new connection, given in the epoch of the [`tag`](fanfare_core::lineage::tag), or in none for 0.
    pub(crate) fn issue(&self, bearer: Bearer<'_>, tag: u32) -> ConnectionId {
        let random = u64::from_be_bytes(random()) >> TAG_BITS;
        self.complete(u64::from(tag) << (u64::BITS - TAG_BITS) | random, bearer)
    }

    /// Whether a name was given to `bearer`.
    pub(crate) fn belongs_to(&self, id: ConnectionId, bearer: Bearer<'_>) -> bool {
        self.complete(id.halves()[0], bearer) == id
    }

    /// Whether a name was given to `user`, or to an earlier account of that name.
    pub(crate) fn is_of_user(&self, id: ConnectionId, user: &str) -> bool {
        let [random, code] = self.complete(id.halves()[0], Bearer { user, since: None }).halves();
        [random, code & OF_USER] == [id.halves()[0], id.halves()[1] & OF_USER]
    }

    /// Puts the code behind the random half. Version 8 (a layout of one's own) and variant of RFC 9562 make the name
    /// a UUID to everyone else.
    fn complete(&self, random: u64, bearer: Bearer<'_>) -> ConnectionId {
        let random = random & !0xf000 | 0x8000;
        let mut signer = hmac::Context::with_key(&self.key);
        signer.update(&random.to_be_bytes());
        signer.update(bearer.user.as_bytes());
        let mut code = cut(&signer.clone().sign()) >> 2 | 1 << 63;
        if let Some(since) = bearer.since {
            // A byte that no text has keeps user and time apart.
            signer.update(&[0xff]);
            signer.update(&since.to_be_bytes());
            code = code & OF_USER | cut(&signer.sign()) & !OF_USER;
        }
        ConnectionId::from_halves([random, code])
    }
}

/// The part of a code that is the same for all accounts of one name.
const OF_USER: u64 = !0xffff_ffff;

fn cut(code: &hmac::Tag) -> u64 {
    code.as_ref().iter().take(8).fold(0, |cut, &byte| cut << 8 | u64::from(byte))
}

/// A random UUID (RFC 9562 version 4), as the id of an event that came without one.
pub(crate) fn fresh_event_id() -> String {
    let id = u128::from_be_bytes(random());
    ConnectionId(id & !(0xf000 << 64) & !(3 << 62) | 0x4000 << 64 | 2 << 62).to_string()
}

/// Random bytes of cryptographic quality.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if crate::environment::fill(&mut bytes) {
        return bytes;
    }
    // The generator fails only where the system has no randomness at all; nothing safe can be done then.
    #[expect(clippy::expect_used, reason = "no name or key may be made without randomness")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives randomness");
    bytes
}

impl fmt::Debug for ConnectionIdIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // attack: a forged or foreign connection_id => not accepted; the client gets a fresh one
    #[test]
    fn a_name_belongs_to_its_user_alone() {
        let names = ConnectionIdIssuer::new(b"one");
        let of = |user: &'static str, since| Bearer { user, since };
        let (ann, bob) = (of("ann", None), of("bob", None));
        let id = names.issue(ann, 0xfffff);
        assert_eq!((id.epoch_tag(), names.issue(ann, 0).epoch_tag()), (0xfffff, 0));
        assert!(names.belongs_to(id, ann));
        assert!(!names.belongs_to(id, bob));
        assert!(!names.belongs_to(ConnectionId(id.0 ^ 1), ann));
        assert!(!ConnectionIdIssuer::new(b"two").belongs_to(id, ann));
        assert_ne!(names.issue(ann, 0xfffff), id);
        // An account that was removed and made again is another one.
        let earlier = names.issue(of("ann", Some(7)), 1);
        assert!(names.belongs_to(earlier, of("ann", Some(7))));
        assert!(!names.belongs_to(earlier, of("ann", Some(8))) && !names.belongs_to(earlier, ann));
        assert!(names.is_of_user(earlier, "ann") && names.is_of_user(id, "ann") && !names.is_of_user(earlier, "bob"));
        assert_eq!(id.to_string().as_bytes()[14], b'8');
        assert!(matches!(id.to_string().as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn an_event_id_is_a_random_uuid() {
        let id = fresh_event_id();
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'));
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_ne!(id, fresh_event_id());
    }
}
