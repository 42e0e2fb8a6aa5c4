//! The list of revocations in Redis. It is a sorted set, so a later time overrides an earlier one regardless of the
//! order of the writes.

use super::{
    connection::read as read_answer, error::LinkError, keys::Keys, link::Link, scripts::Script, shared::Shared,
};
use crate::{ControlMessage, clock, metrics::LogCounter};
use fanfare_core::Revocation;
use redis::cmd;

/// A revocation that lies further in the future than this is a mistake and not clock skew, in seconds.
const FAR_SECS: u64 = 86_400;

/// A revocation as a member of the set and its score: the time before which tokens were issued.
pub(super) fn text(revocation: &Revocation) -> (String, u64) {
    match revocation {
        Revocation::User { user, before } => (format!("u:{user}"), *before),
        Revocation::Token { token } => (format!("t:{token:016x}"), 0),
        Revocation::Session { session, until } => (format!("s:{session:016x}"), *until),
        Revocation::Everyone { before } => ("*".to_owned(), *before),
    }
}

pub(super) fn read(member: &str, before: u64) -> Option<Revocation> {
    let id = |hex: &str| u64::from_str_radix(hex, 16).ok();
    match member.split_once(':') {
        None => (member == "*").then_some(Revocation::Everyone { before }),
        Some(("u", user)) => Some(Revocation::User { user: user.into(), before }),
        Some(("t", token)) => Some(Revocation::Token { token: id(token)? }),
        Some(("s", session)) => Some(Revocation::Session { session: id(session)?, until: before }),
        Some(_) => None,
    }
}

/// The revocations that are announced to all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announce {
    All,
    /// Only those that Redis did not have yet. The others were announced by the node that stored them.
    New,
}

/// Stores revocations for nodes that connect later, and announces them to the connected nodes. A revocation never
/// weakens an earlier one.
pub(super) async fn store(
    link: &Link,
    keys: &Keys,
    revocations: &[Revocation],
    announce: Announce,
) -> Result<(), LinkError> {
    let announce = if announce == Announce::All { "all" } else { "news" };
    let of_session = |revocation: &&Revocation| matches!(revocation, Revocation::Session { .. });
    let (sessions, others): (Vec<_>, Vec<_>) = revocations.iter().partition(of_session);
    for (key, revocations) in [(&keys.revoked, others), (&keys.revoked_sessions, sessions)] {
        for part in revocations.chunks(1_000) {
            let mut command = link.script(Script::Revoke, &[key, &keys.control]);
            command.arg(announce);
            for revocation in part {
                let (member, score) = text(revocation);
                command.arg(score).arg(member);
            }
            link.call(&command).await?;
            if *key == keys.revoked_sessions {
                // Tokens of these logins have expired. Removing them bounds the list by the number of logins within the
                // lifetime of a token.
                let now = clock::now().unix_ms / 1_000;
                let expired = cmd("ZREMRANGEBYSCORE").arg(key).arg("-inf").arg(format!("({now}")).take();
                link.call(&expired).await?;
            }
        }
    }
    Ok(())
}

/// Synchronises the revocations of this node and of Redis. First it stores those that Redis lacks, such as those that
/// Redis lost, or that only this node knew from its accounts database; the other nodes receive them as announcements.
/// Then it reads those that were added while this node was disconnected.
pub(super) async fn synchronise(shared: &Shared, link: &Link) -> Result<(), LinkError> {
    store(link, &shared.keys, &shared.follower.revocations(), Announce::New).await?;
    repair(link, &shared.keys.revoked).await?;
    apply_all(shared, link).await
}

/// Applies all revocations in Redis.
pub(super) async fn apply_all(shared: &Shared, link: &Link) -> Result<(), LinkError> {
    for key in [&shared.keys.revoked, &shared.keys.revoked_sessions] {
        let all = cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES").take();
        // The set may contain arbitrary bytes, which must not prevent the node from connecting.
        let all: Vec<(Vec<u8>, f64)> = read_answer(link.call(&all).await?)?;
        for (member, score) in all {
            match str::from_utf8(&member).ok().and_then(|member| read(member, whole(score))) {
                Some(revocation) => shared.follower.handle_control(ControlMessage::Revoke(revocation)),
                None => {
                    shared.metrics.add(LogCounter::BadLogEntries, 1);
                    let member = member.escape_ascii();
                    tracing::error!(
                        "skipped an entry of {key} that is not a revocation: {member}; check what else writes to it"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Resets times in the far future to the current time. Earlier versions accepted such times, which locked a user out
/// permanently.
async fn repair(link: &Link, key: &str) -> Result<(), LinkError> {
    let now = clock::now().unix_ms / 1_000;
    let far = format!("({}", now + FAR_SECS);
    let all = cmd("ZRANGEBYSCORE").arg(key).arg(far).arg("+inf").take();
    let all: Vec<Vec<u8>> = read_answer(link.call(&all).await?)?;
    for member in all {
        link.call(cmd("ZADD").arg(key).arg("XX").arg(now + 1).arg(member)).await?;
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn whole(score: f64) -> u64 {
    score as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_survives_encoding() {
        for revocation in [
            Revocation::User { user: "a:b".into(), before: 1_800_000_000 },
            Revocation::Token { token: u64::MAX },
            Revocation::Session { session: 1, until: 1_800_000_000 },
            Revocation::Everyone { before: 1 },
        ] {
            let (member, before) = text(&revocation);
            assert_eq!(read(&member, before), Some(revocation));
        }
        assert_eq!((read("", 1), read("x:1", 1), read("t:x", 1), read("s:x", 1)), (None, None, None, None));
    }
}
