//! The list of tokens that nobody believes any more: a sorted set, so that a later time wins over an earlier one whoever
//! writes it.

use super::{
    keys::Keys,
    link::{Link, LinkError, read as read_answer},
    scripts::Script,
    shared::Shared,
};
use crate::{broker::ControlMessage, clock, metrics::Counter};
use fanfare_core::Revocation;
use redis::cmd;

/// A time of revocation that lies further ahead than any clock is wrong was never meant, in seconds.
const FAR_SECS: u64 = 86_400;

/// A revocation as a member of the set, and its score: the time before which tokens were issued.
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

/// Which revocations all nodes are ordered to obey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ordered {
    All,
    /// Those that Redis did not have: whoever wrote the others down ordered them.
    News,
}

/// Writes revocations down for nodes that come later, and orders those that are linked to obey them. None takes an earlier
/// one back.
pub(super) async fn keep(
    link: &Link,
    keys: &Keys,
    revocations: &[Revocation],
    ordered: Ordered,
) -> Result<(), LinkError> {
    let ordered = if ordered == Ordered::All { "all" } else { "news" };
    let of_session = |revocation: &&Revocation| matches!(revocation, Revocation::Session { .. });
    let (sessions, others): (Vec<_>, Vec<_>) = revocations.iter().partition(of_session);
    for (key, revocations) in [(&keys.revoked, others), (&keys.revoked_sessions, sessions)] {
        for part in revocations.chunks(1_000) {
            let mut command = link.script(Script::Revoke, &[key, &keys.control]);
            command.arg(ordered);
            for revocation in part {
                let (member, score) = text(revocation);
                command.arg(score).arg(member);
            }
            link.call(&command).await?;
            if *key == keys.revoked_sessions {
                // Their tokens have expired, so that the list stays as long as the logins of a token's lifetime.
                let now = clock::now().unix_ms / 1_000;
                let expired = cmd("ZREMRANGEBYSCORE").arg(key).arg("-inf").arg(format!("({now}")).take();
                link.call(&expired).await?;
            }
        }
    }
    Ok(())
}

/// Takes over what was revoked while this node was cut off or not there, and writes down what Redis may have lost. What
/// this node alone knew, of its accounts' database, reaches the other nodes by that.
pub(super) async fn level(shared: &Shared, link: &Link) -> Result<(), LinkError> {
    keep(link, &shared.keys, &shared.tail.revocations(), Ordered::News).await?;
    repair(link, &shared.keys.revoked).await?;
    take_over(shared, link).await
}

/// Obeys all that Redis has.
pub(super) async fn take_over(shared: &Shared, link: &Link) -> Result<(), LinkError> {
    for key in [&shared.keys.revoked, &shared.keys.revoked_sessions] {
        let all = cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES").take();
        // Anything can stand there, and must not keep the node from its log.
        let all: Vec<(Vec<u8>, f64)> = read_answer(link.call(&all).await?)?;
        for (member, score) in all {
            match str::from_utf8(&member).ok().and_then(|member| read(member, whole(score))) {
                Some(revocation) => shared.tail.handle_control(ControlMessage::Revoke(revocation)),
                None => {
                    shared.metrics.add(Counter::BadLogEntries, 1);
                    let member = member.escape_ascii();
                    tracing::error!("{key} holds an entry that is no revocation, and it is skipped: {member}");
                }
            }
        }
    }
    Ok(())
}

/// Earlier versions accepted times in the far future, which locked a user out for good: they become the present.
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
    fn a_revocation_comes_back() {
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
