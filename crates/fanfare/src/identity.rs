//! Connection IDs and event IDs. This module knows a key and a source of randomness, and keeps no list of connections.

use aws_lc_rs::hmac;
use fanfare_core::{ConnectionId, Grant, audience::TAG_BITS};
use fanfare_log::random::random;
use std::fmt;

/// Issues connection IDs that are bound to a user.
///
/// The first half of an ID has random bits after a tag of the log's epoch. The second half is a message authentication
/// code over the first half and the user (HMAC-SHA-256, truncated to 64 bits). Any node with the same key can therefore
/// verify the user of an ID after a reconnect, a restart or a crash without a list of IDs, and a client cannot take
/// over the ID of another user. The tag proves that an ID was issued after a loss of the log, without a clock that all
/// nodes share.
pub(crate) struct ConnectionIdIssuer {
    key: hmac::Key,
}

/// The owner of a connection: a user and, if an account of that name may have been deleted and created again, the time
/// from which the current account exists.
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

    /// Issues an ID in the epoch with this [`tag`](fanfare_core::lineage::tag). The tag is 0 if there is no epoch.
    pub(crate) fn issue(&self, bearer: Bearer<'_>, tag: u32) -> ConnectionId {
        let random = u64::from_be_bytes(random()) >> TAG_BITS;
        self.complete(u64::from(tag) << (u64::BITS - TAG_BITS) | random, bearer)
    }

    /// Whether an ID was issued to `bearer`.
    pub(crate) fn belongs_to(&self, id: ConnectionId, bearer: Bearer<'_>) -> bool {
        self.complete(id.halves()[0], bearer) == id
    }

    /// Whether an ID was issued to `user`, or to an earlier account of that name.
    pub(crate) fn is_of_user(&self, id: ConnectionId, user: &str) -> bool {
        let [random, code] = self.complete(id.halves()[0], Bearer { user, since: None }).halves();
        [random, code & OF_USER] == [id.halves()[0], id.halves()[1] & OF_USER]
    }

    /// Appends the code to the random half. The version 8 (custom layout) and the variant of RFC 9562 make the result a
    /// valid UUID.
    fn complete(&self, random: u64, bearer: Bearer<'_>) -> ConnectionId {
        let random = random & !0xf000 | 0x8000;
        let mut signer = hmac::Context::with_key(&self.key);
        signer.update(&random.to_be_bytes());
        signer.update(bearer.user.as_bytes());
        let mut code = cut(&signer.clone().sign()) >> 2 | 1 << 63;
        if let Some(since) = bearer.since {
            // 0xff does not occur in UTF-8, so it separates the user from the time unambiguously.
            signer.update(&[0xff]);
            signer.update(&since.to_be_bytes());
            code = code & OF_USER | cut(&signer.sign()) & !OF_USER;
        }
        ConnectionId::from_halves([random, code])
    }
}

/// The bits of a code that are the same for all accounts of one name.
const OF_USER: u64 = !0xffff_ffff;

fn cut(code: &hmac::Tag) -> u64 {
    code.as_ref().iter().take(8).fold(0, |cut, &byte| cut << 8 | u64::from(byte))
}

/// A random UUID (RFC 9562, version 4): the ID of an event that was published without one.
pub(crate) fn fresh_event_id() -> String {
    let id = u128::from_be_bytes(random());
    ConnectionId(id & !(0xf000 << 64) & !(3 << 62) | 0x4000 << 64 | 2 << 62).to_string()
}

impl fmt::Debug for ConnectionIdIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionIdIssuer(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // attack: a forged or foreign connection_id => not accepted; the client gets a fresh one
    #[test]
    fn a_connection_id_is_accepted_only_from_its_user() {
        let issuer = ConnectionIdIssuer::new(b"one");
        let of = |user: &'static str, since| Bearer { user, since };
        let (ann, bob) = (of("ann", None), of("bob", None));
        let id = issuer.issue(ann, 0xfffff);
        assert_eq!((id.epoch_tag(), issuer.issue(ann, 0).epoch_tag()), (0xfffff, 0));
        assert!(issuer.belongs_to(id, ann));
        assert!(!issuer.belongs_to(id, bob));
        assert!(!issuer.belongs_to(ConnectionId(id.0 ^ 1), ann));
        assert!(!ConnectionIdIssuer::new(b"two").belongs_to(id, ann));
        assert_ne!(issuer.issue(ann, 0xfffff), id);
        // An account that was deleted and created again is a different owner.
        let earlier = issuer.issue(of("ann", Some(7)), 1);
        assert!(issuer.belongs_to(earlier, of("ann", Some(7))));
        assert!(!issuer.belongs_to(earlier, of("ann", Some(8))) && !issuer.belongs_to(earlier, ann));
        assert!(
            issuer.is_of_user(earlier, "ann") && issuer.is_of_user(id, "ann") && !issuer.is_of_user(earlier, "bob")
        );
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
