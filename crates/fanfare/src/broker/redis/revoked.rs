//! The list of tokens that nobody believes any more: a sorted set, so that a later time wins over an earlier one whoever
//! writes it.

use super::{
    link::{Link, LinkError, read as read_answer},
    shared::Shared,
};
use crate::broker::Order;
use fanfare_core::Revocation;
use redis::cmd;

/// A revocation as a member of the set, and its score: the time before which tokens were issued.
pub(super) fn text(revocation: &Revocation) -> (String, u64) {
    match revocation {
        Revocation::User { user, before } => (format!("u:{user}"), *before),
        Revocation::Token { token } => (format!("t:{token:016x}"), 0),
        Revocation::Everyone { before } => ("*".to_owned(), *before),
    }
}

pub(super) fn read(member: &str, before: u64) -> Option<Revocation> {
    match member.split_once(':') {
        None => (member == "*").then_some(Revocation::Everyone { before }),
        Some(("u", user)) => Some(Revocation::User { user: user.into(), before }),
        Some(("t", token)) => Some(Revocation::Token { token: u64::from_str_radix(token, 16).ok()? }),
        Some(_) => None,
    }
}

/// Writes revocations down for nodes that come later. None takes an earlier one back.
pub(super) async fn keep(link: &Link, key: &str, revocations: &[Revocation]) -> Result<(), LinkError> {
    for part in revocations.chunks(1_000) {
        let mut command = cmd("ZADD");
        command.arg(key).arg("GT");
        for revocation in part {
            let (member, before) = text(revocation);
            command.arg(before).arg(member);
        }
        link.call(&command).await?;
    }
    Ok(())
}

/// Takes over what was revoked while this node was cut off or not there, and writes down what Redis may have lost.
pub(super) async fn level(shared: &Shared, link: &Link) -> Result<(), LinkError> {
    keep(link, &shared.keys.revoked, &shared.tail.revocations()).await?;
    let all = cmd("ZRANGE").arg(&shared.keys.revoked).arg(0).arg(-1).arg("WITHSCORES").take();
    let all: Vec<(String, u64)> = read_answer(link.call(&all).await?)?;
    for revocation in all.iter().filter_map(|(member, before)| read(member, *before)) {
        shared.tail.obey(Order::Revoke(revocation));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_comes_back() {
        for revocation in [
            Revocation::User { user: "a:b".into(), before: 1_800_000_000 },
            Revocation::Token { token: u64::MAX },
            Revocation::Everyone { before: 1 },
        ] {
            let (member, before) = text(&revocation);
            assert_eq!(read(&member, before), Some(revocation));
        }
        assert_eq!((read("", 1), read("x:1", 1), read("t:x", 1)), (None, None, None));
    }
}
