//! Revoked tokens. This module reads no clock and does not verify tokens.

use crate::Grant;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// A revocation of one or more tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Revocation {
    /// All tokens of a user that were issued before a time. A token without `iat` counts as older than any other.
    User {
        /// The user, from the claim `sub`.
        user: Arc<str>,
        /// Tokens issued before this time are revoked, in seconds since 1970-01-01T00:00:00Z.
        before: u64,
    },
    /// One token.
    Token {
        /// The token, as in [`Grant::token`].
        token: u64,
    },
    /// All tokens of one login.
    Session {
        /// The login, as in [`Grant::session`].
        session: u64,
        /// When the last token of the login expires, in seconds since 1970-01-01T00:00:00Z. The revocation is dropped
        /// after that time.
        until: u64,
    },
    /// All tokens of all users that were issued before a time.
    Everyone {
        /// Tokens issued before this time are revoked, in seconds since 1970-01-01T00:00:00Z.
        before: u64,
    },
}

/// The set of all revocations.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    /// By user: tokens issued before this time are revoked, in seconds since 1970-01-01T00:00:00Z.
    users: HashMap<Arc<str>, u64>,
    tokens: HashSet<u64>,
    /// By login: when its last token expires, in seconds since 1970-01-01T00:00:00Z.
    sessions: HashMap<u64, u64>,
    everyone: u64,
}

impl Revocation {
    /// Returns whether this revocation applies to the token behind `grant`.
    pub fn concerns(&self, grant: &Grant) -> bool {
        self.covers(&grant.user, grant.token, grant.session, grant.issued_at)
    }

    /// Returns whether this revocation applies to a token of `user` with the given ID, login and time of issue.
    ///
    /// `issued_at` is in seconds since 1970-01-01T00:00:00Z. A token without it counts as older than any other.
    pub fn covers(&self, user: &str, token: Option<u64>, session: Option<u64>, issued_at: Option<u64>) -> bool {
        let issued_at = issued_at.unwrap_or(0);
        match self {
            Self::User { user: whose, before } => **whose == *user && issued_at < *before,
            Self::Token { token: which } => token == Some(*which),
            Self::Session { session: which, .. } => session == Some(*which),
            Self::Everyone { before } => issued_at < *before,
        }
    }
}

impl Revocations {
    /// Adds a revocation. Returns whether it revokes tokens that were not revoked before.
    pub fn add(&mut self, revocation: Revocation) -> bool {
        match revocation {
            Revocation::User { user, before } => {
                let held = self.users.entry(user).or_insert(0);
                raise(held, before)
            }
            Revocation::Token { token } => self.tokens.insert(token),
            Revocation::Session { session, until } => raise(self.sessions.entry(session).or_insert(0), until),
            Revocation::Everyone { before } => raise(&mut self.everyone, before),
        }
    }

    /// Returns whether the token behind `grant` is revoked.
    pub fn concern(&self, grant: &Grant) -> bool {
        let issued_at = grant.issued_at.unwrap_or(0);
        issued_at < self.everyone
            || self.users.get(&grant.user).is_some_and(|before| issued_at < *before)
            || grant.token.is_some_and(|token| self.tokens.contains(&token))
            || grant.session.is_some_and(|session| self.sessions.contains_key(&session))
    }

    /// Drops the revocations of logins whose tokens have all expired at `unix_secs`.
    pub fn drop_expired(&mut self, unix_secs: u64) {
        self.sessions.retain(|_, until| *until >= unix_secs);
    }

    /// Returns whether this revocation is covered by the set.
    pub fn contains(&self, revocation: &Revocation) -> bool {
        match revocation {
            Revocation::User { user, before } => self.users.get(user).is_some_and(|held| held >= before),
            Revocation::Token { token } => self.tokens.contains(token),
            Revocation::Session { session, until } => self.sessions.get(session).is_some_and(|held| held >= until),
            Revocation::Everyone { before } => self.everyone >= *before,
        }
    }

    /// Returns the earliest time of issue of a new token of `user` that is not revoked, in seconds since
    /// 1970-01-01T00:00:00Z.
    pub fn tokens_valid_from(&self, user: &str) -> u64 {
        self.users.get(user).copied().unwrap_or(0).max(self.everyone)
    }

    /// Iterates over all revocations.
    pub fn iter(&self) -> impl Iterator<Item = Revocation> {
        let users = self.users.iter().map(|(user, &before)| Revocation::User { user: user.clone(), before });
        let tokens = self.tokens.iter().map(|&token| Revocation::Token { token });
        let sessions = self.sessions.iter().map(|(&session, &until)| Revocation::Session { session, until });
        let everyone = (self.everyone > 0).then_some(Revocation::Everyone { before: self.everyone });
        users.chain(tokens).chain(sessions).chain(everyone)
    }
}

/// Moves a time forward, never back. Returns whether it moved.
fn raise(held: &mut u64, to: u64) -> bool {
    let later = to > *held;
    *held = to.max(*held);
    later
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(user: &str, token: Option<u64>, issued_at: Option<u64>) -> Grant {
        Grant { user: user.into(), token, issued_at, ..Grant::default() }
    }

    #[test]
    fn each_kind_of_revocation_applies_only_to_its_tokens() {
        let ann = Revocation::User { user: "ann".into(), before: 100 };
        let one = Revocation::Token { token: 7 };
        let all = Revocation::Everyone { before: 50 };
        for (grant, concerned) in [
            (grant("ann", None, Some(99)), [true, false, false]),
            (grant("ann", None, Some(100)), [false, false, false]),
            (grant("ann", Some(7), Some(100)), [false, true, false]),
            (grant("bob", Some(8), Some(49)), [false, false, true]),
            (grant("bob", None, Some(50)), [false, false, false]),
            (grant("bob", None, None), [false, false, true]),
            (grant("ann", None, None), [true, false, true]),
        ] {
            let mut together = Revocations::default();
            for (revocation, concerned) in [&ann, &one, &all].into_iter().zip(concerned) {
                assert_eq!(revocation.concerns(&grant), concerned, "{revocation:?} {grant:?}");
                let mut alone = Revocations::default();
                assert!(!alone.contains(revocation) && alone.add(revocation.clone()), "new");
                assert!(alone.contains(revocation) && !alone.add(revocation.clone()), "only once");
                assert_eq!(alone.concern(&grant), concerned, "{revocation:?} {grant:?}");
                assert!(alone.iter().eq([revocation.clone()]));
                together.add(revocation.clone());
            }
            assert_eq!(together.concern(&grant), concerned.contains(&true), "{grant:?}");
        }
    }

    #[test]
    fn a_login_is_revoked_until_its_tokens_have_expired() {
        let revocation = Revocation::Session { session: 3, until: 100 };
        let of = |session| Grant { session, issued_at: Some(u64::MAX), ..grant("ann", Some(3), None) };
        let mut revocations = Revocations::default();
        assert!(revocations.add(revocation.clone()) && !revocations.add(revocation.clone()), "only once");
        for (grant, concerned) in [(of(Some(3)), true), (of(Some(4)), false), (of(None), false)] {
            assert_eq!((revocation.concerns(&grant), revocations.concern(&grant)), (concerned, concerned), "{grant:?}");
        }
        revocations.drop_expired(100);
        assert!(revocations.contains(&revocation) && revocations.iter().eq([revocation.clone()]));
        revocations.drop_expired(101);
        assert!(!revocations.contains(&revocation) && revocations.iter().next().is_none());
    }

    #[test]
    fn an_earlier_time_does_not_lift_a_revocation() {
        let mut revocations = Revocations::default();
        assert!(revocations.add(Revocation::User { user: "ann".into(), before: 100 }));
        assert!(!revocations.add(Revocation::User { user: "ann".into(), before: 90 }));
        assert!(revocations.concern(&grant("ann", None, Some(99))));
        assert_eq!((revocations.tokens_valid_from("ann"), revocations.tokens_valid_from("bob")), (100, 0));
    }
}
