//! The recovery of the log, before it is used at a server. Each node restores the entries that the log lost and its
//! window still has. Then the server is confirmed, and the log continues in a new epoch. No node can append before
//! that. docs/recovery.md describes the protocol and argues why it is safe.

use super::{
    connection::read,
    error::LinkError,
    limits::LEASE,
    link::Link,
    record::{MAX_SEQUENCE, audience_text},
    scripts::Script,
    shared::Shared,
    url::RedisUrl,
};
use crate::{clock, metrics::LogCounter, random::random};
use fanfare_core::{Lineage, window::Entry};
use redis::{Value, cmd};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The time for which an unconfirmed server waits for all nodes to find it, in milliseconds.
const SETTLE_MS: u64 = 1_000;

/// The time for which a new log waits for nodes that hold an older one, because the server may have lost it, in
/// milliseconds since the server's start.
const EMPTY_MS: u64 = 2_000;

/// The time for which missing members are waited for, in milliseconds. Longer than
/// [`members::INFORMED`](super::members::INFORMED): none of them is informed any more after it. Longer than [`LEASE`]
/// too: none of them acknowledges anything at a server that was replaced after it.
const GRACE_MS: u64 = 13_000;

/// The version of the data format in Redis. A confirmation records it. A node rejects a log of a newer version, and
/// recovers one of an older version before it uses it.
const FORMAT: u32 = 3;

/// The interval between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// The maximum number and size of the entries that are restored in one command.
const MAX_ENTRIES: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// The state of the log at a server.
struct Found {
    confirmed: bool,
    lineage: Option<Lineage>,
    /// The lineage as the server has it, as text.
    text: String,
    head: u64,
    /// The server has neither a lineage nor entries.
    empty: bool,
    /// The data format is older than that of this node.
    old: bool,
}

/// Recovers the log at a server that is not confirmed, or takes over the log of a confirmed one. Afterwards every entry
/// of the window is in the server's log. Returns the head of the log.
///
/// `since` is when this node subscribed to the server's channels, in milliseconds of the server's clock. `fresh` is the
/// uptime of the server in seconds if this node has not followed a log yet.
pub(super) async fn settle(shared: &Shared, link: &Link, since: u64, fresh: Option<u64>) -> Result<u64, LinkError> {
    let (began, mut known, mut warned) = (Instant::now(), 0, false);
    loop {
        let found = inspect(shared, link).await?;
        match &found.lineage {
            Some(lineage) if found.confirmed => {
                let regressed = fresh.is_none() && has_regressed(shared, lineage, found.head);
                if regressed || found.old {
                    if regressed {
                        tracing::error!(
                            head = found.head,
                            "the log's head moved backwards; all nodes restore their entries"
                        );
                    } else {
                        tracing::warn!(
                            "upgrading a log of an older version; nodes of that version can no longer use it"
                        );
                    }
                    revoke_confirmation(shared, link, &found, if regressed { found.head } else { MAX_SEQUENCE })
                        .await?;
                    sleep(RETRY).await;
                    continue;
                }
                let mut members = shared.members();
                if members.rename_for(&link.server) {
                    members.not_informed();
                }
                drop(members);
                adopt(shared, lineage, found.head, fresh.is_some());
                shared.stop_reporting();
                return Ok(found.head);
            }
            _ => {}
        }
        let mut lossy = false;
        if fresh.is_none() {
            let may_jump = clock::millis(began.elapsed()) >= SETTLE_MS;
            match restore(shared, link, &found, may_jump).await? {
                RestoreOutcome::Done { lossy: more } => lossy = more,
                // The state is read again after every change, because other nodes may have changed it too.
                RestoreOutcome::Changed => continue,
                RestoreOutcome::Later => {
                    sleep(RETRY).await;
                    continue;
                }
            }
        }
        shared.check_lease()?;
        match confirm(shared, link, since, fresh, fresh.is_some() && found.lineage.is_none(), known, lossy).await? {
            Confirmed::Yes => {}
            Confirmed::Missing { nodes, reported } => {
                known = reported;
                if !warned && began.elapsed() > Duration::from_secs(3) {
                    warned = true;
                    tracing::warn!(
                        nodes,
                        "the log's server is new or has lost data; waiting for other nodes to report"
                    );
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// Whether the server lacks data that this node knows it had: the log's head moved backwards, or an epoch is missing.
fn has_regressed(shared: &Shared, lineage: &Lineage, head: u64) -> bool {
    let window = shared.follower.window().read();
    let ours = window.lineage();
    let known = shared.unseen().back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    ours.extends(lineage) && (ours.current() != lineage.current() || head < known)
}

/// Revokes the server's confirmation, unless its head is beyond `head`. All nodes then restore their entries.
async fn revoke_confirmation(shared: &Shared, link: &Link, found: &Found, head: u64) -> Result<(), LinkError> {
    let keys = &shared.keys;
    let mut command = link.script(Script::Doubt, &[&keys.log, &keys.epoch, &keys.ids]);
    link.call(command.arg(&link.server).arg(&found.text).arg(head)).await?;
    Ok(())
}

async fn inspect(shared: &Shared, link: &Link) -> Result<Found, LinkError> {
    let asked = link.call(cmd("HMGET").arg(&shared.keys.epoch).arg(&["server", "lineage", "head", "format"])).await?;
    let (server, text, head, format): (Option<String>, Option<String>, Option<u64>, Option<u32>) = read(asked)?;
    let format = format.unwrap_or(1);
    if format > FORMAT {
        return Err(LinkError::NotOurs(format!(
            "the log (key {}) is of a newer version of fanfare, format {format}; this one supports format {FORMAT}: \
             upgrade this node",
            shared.keys.epoch
        )));
    }
    let text = text.unwrap_or_default();
    let lineage = match &*text {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            LinkError::NotOurs(format!("the key {} has a malformed lineage: {text:?}", shared.keys.epoch))
        })?),
    };
    let entries: u64 = read(link.call(cmd("EXISTS").arg(&shared.keys.log)).await?)?;
    let empty = lineage.is_none() && entries == 0;
    let confirmed = server.as_deref() == Some(&link.server);
    Ok(Found { confirmed, lineage, text, head: head.unwrap_or(0), empty, old: format < FORMAT })
}

/// The result of [`restore`].
enum RestoreOutcome {
    /// There is nothing to restore.
    Done {
        /// This node has entries that can no longer be restored.
        lossy: bool,
    },
    /// The log was changed, by this node or by another one.
    Changed,
    /// There is a hole between the log and the entries of this node, which other nodes may fill.
    Later,
}

/// What the log lacks, according to this node.
struct Lost {
    /// The sequence up to which the log and this node have the same entries. `None`: the whole log.
    cut: Option<u64>,
    entries: Vec<Arc<Entry>>,
    /// There is a hole between the log and the entries.
    jumps: bool,
    /// This node acknowledged entries after one that it has not read. Another node may still restore that one.
    stranded: bool,
}

/// Restores the entries and epochs that the log lost. Stops if another node changes the log at the same time.
async fn restore(shared: &Shared, link: &Link, found: &Found, may_jump: bool) -> Result<RestoreOutcome, LinkError> {
    let (ours, lost) = match lost_entries(shared, found) {
        Ok(lost) => lost,
        Err(lossy) => return Ok(RestoreOutcome::Done { lossy }),
    };
    let Lost { mut cut, entries: mut lost, jumps, stranded } = lost;
    if jumps && !may_jump {
        return Ok(RestoreOutcome::Later);
    }
    let (lineage, newest, mut before, mut head) =
        (ours.to_string(), format!("{:x}", ours.current()), found.text.clone(), found.head);
    if lost.is_empty() && before == lineage && cut.is_none_or(|cut| head <= cut) {
        return Ok(RestoreOutcome::Done { lossy: stranded });
    }
    let mut restored = 0;
    loop {
        let mut bytes = 0;
        let fits = lost.iter().take(MAX_ENTRIES).take_while(|entry| {
            bytes += entry.frame.len();
            bytes < MAX_BYTES
        });
        let rest = lost.split_off(fits.count().max(1).min(lost.len()));
        let (keys, [older, oldest]) = (&shared.keys, &shared.keys.older_ids);
        let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.reports, older, oldest];
        let mut command = link.script(Script::Restore, &names);
        command.arg(&link.server).arg(&lineage).arg(&newest).arg(&before).arg(head).arg(cut.unwrap_or(MAX_SEQUENCE));
        if let Some(first) = lost.first() {
            command.arg(first.sequence);
        }
        for entry in &lost {
            let epoch = ours.epoch_at(entry.sequence).unwrap_or(0);
            command.arg(format!("{epoch:x}")).arg(entry.appended_ms).arg(&*entry.event_id);
            command.arg(audience_text(&entry.audience)).arg(entry.json());
            command.arg(entry.publisher.as_deref().unwrap_or_default()).arg(entry.trace.as_deref().unwrap_or_default());
        }
        let after = read::<i64>(link.call(&command).await?)?;
        let Ok(after) = u64::try_from(after) else { break };
        restored += lost.len() as u64;
        before.clone_from(&lineage);
        (head, cut, lost) = (after, None, rest);
        if lost.is_empty() {
            break;
        }
    }
    if restored > 0 {
        tracing::warn!(events = restored, "the log had lost events; this node restored them");
        shared.metrics.add(LogCounter::EventsRestored, restored);
    }
    Ok(RestoreOutcome::Changed)
}

/// The entries of this node that the log lacks, and the lineage that the log has after they are restored. The error
/// means that nothing can be restored; its value says whether entries are lost by that.
fn lost_entries(shared: &Shared, found: &Found) -> Result<(Lineage, Lost), bool> {
    let window = shared.follower.window().read();
    let ours = window.lineage().clone();
    let unseen = shared.unseen();
    let head = unseen.back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    let (after, cut) = match &found.lineage {
        None if found.empty => (0, None),
        // The log is a different one, so clients of this node receive a `gap` in any case.
        None => return Err(false),
        Some(theirs) if ours.extends(theirs) => {
            let cut = ours.cut_of(theirs);
            (cut.map_or(found.head, |cut| cut.min(found.head)), cut)
        }
        Some(theirs) => {
            // An epoch of that log may be marked as a loss, but possibly one before this node acknowledged its entries.
            return Err(ours.shared_with(head, theirs, found.head).unwrap_or(0) < head);
        }
    };
    let mut entries: Vec<_> = window.since(after.max(window.floor())).cloned().collect();
    let mut next = after.max(window.head()) + 1;
    for entry in unseen.iter() {
        if entry.sequence == next {
            entries.push(entry.clone());
            next += 1;
        }
    }
    let jumps = !found.empty && entries.first().is_some_and(|first| first.sequence > after + 1);
    let stranded = unseen.back().is_some_and(|last| last.sequence >= next);
    Ok((ours, Lost { cut, entries, jumps, stranded }))
}

/// The time for which a node that has not followed a log waits for other nodes to find a server, in milliseconds.
/// `secs` is the uptime of the server. With a single server the time counts from its start: the other nodes were last
/// informed before that.
fn settle_of_fresh(url: &RedisUrl, secs: u64, empty: bool) -> u64 {
    let since = |ms: u64| ms.saturating_sub(secs * 1_000);
    match (empty, url.is_sentinel(), url.is_cluster()) {
        (true, true, _) => clock::millis(LEASE) + SETTLE_MS,
        (true, ..) => since(EMPTY_MS),
        (false, false, false) => since(GRACE_MS).max(SETTLE_MS),
        (false, ..) => GRACE_MS,
    }
}

/// The result of [`confirm`].
enum Confirmed {
    Yes,
    /// The server waits for further nodes.
    Missing {
        nodes: u64,
        reported: usize,
    },
}

/// Reports to the server, and confirms it if all conditions are met. `known` is the number of reports that this node
/// has seen.
async fn confirm(
    shared: &Shared,
    link: &Link,
    since: u64,
    fresh: Option<u64>,
    empty: bool,
    known: usize,
    lossy: bool,
) -> Result<Confirmed, LinkError> {
    let keys = &shared.keys;
    let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.nodes, &keys.reports, &keys.pubsub, &keys.members];
    let mut command = link.script(Script::Confirm, &names);
    let epoch = format!("{:x}", u64::from_be_bytes(random()));
    let settle = fresh.map_or(SETTLE_MS, |secs| settle_of_fresh(&shared.options.url, secs, empty));
    command.arg(&link.server).arg(&shared.node).arg(epoch).arg(since).arg(settle).arg(GRACE_MS).arg(known);
    {
        let (mut members, window) = (shared.members(), shared.follower.window().read());
        members.reports_to(&link.server);
        command.arg(members.informed_left(clock::now().mono_ms)).arg(u8::from(lossy));
        match window.epoch() {
            0 => command.arg("-"),
            epoch => command.arg(format!("{epoch:x}")),
        };
        command.arg(shared.reporting_ms(&link.server)).arg(FORMAT).arg(members.name());
        let former = members.former().join(",");
        command.arg(if former.is_empty() { "-" } else { &former }).arg(members.vouched_version());
        for (name, joined) in members.list() {
            command.arg(name).arg(joined);
        }
    }
    let answer: Vec<Value> = read(link.call(&command).await?)?;
    let Some(Value::Int(nodes)) = answer.first() else { return Ok(Confirmed::Yes) };
    let reported: Vec<String> = read(Value::Array(answer[1..].to_vec()))?;
    let count = reported.len();
    shared.members().add_reported(reported);
    Ok(Confirmed::Missing { nodes: nodes.unsigned_abs(), reported: count })
}

/// Truncates the window to what the confirmed log has too, and takes over its lineage.
fn adopt(shared: &Shared, lineage: &Lineage, head: u64, fresh: bool) {
    let mut unseen = shared.unseen();
    let mut window = shared.follower.window().write();
    let ours = unseen.back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    let same = if fresh { None } else { window.lineage().shared_with(ours, lineage, head) };
    match same {
        Some(same) => {
            if same < ours {
                let lost = ours - same;
                tracing::error!(events = lost, "the log lost events that this node cannot restore");
                shared.metrics.add(LogCounter::EventsLost, lost);
            }
            let kept = same.min(window.head());
            window.adopt(lineage.clone(), kept);
        }
        None => {
            if !fresh {
                tracing::error!("the log was replaced by another one; every client receives a gap");
            }
            window.adopt(lineage.clone(), 0);
            window.jump(0);
        }
    }
    shared.head.send_replace(window.head());
    // Unread entries that the log still has are retained: this node has no other copy of them.
    unseen.retain(|entry| same.is_some_and(|same| entry.sequence <= same));
}
