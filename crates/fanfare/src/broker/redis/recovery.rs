//! What happens before a server's log is used: each node puts back what the log lost and its window still holds; then
//! the server is confirmed, and the log goes on under a new epoch. Until then nobody can append.

use super::{
    link::{Link, LinkError, read},
    record::audience_text,
    scripts::Script,
    shared::Shared,
};
use crate::{identity::random, metrics::Counter};
use fanfare_core::{Lineage, window::Entry};
use redis::{Value, cmd};
use std::{sync::Arc, time::Duration};

/// How long a log that goes on gives the other nodes to find the server, in milliseconds.
const SETTLE_MS: u64 = 1_000;

/// How long nodes are waited for that were there just before, in milliseconds.
const GRACE_MS: u64 = 5_000;

/// How long a node that says nothing counts as there, in milliseconds.
pub(super) const ALIVE_MS: u64 = 10_000;

/// A node is waited for that was heard of so long before the last beat of any, in milliseconds: what one acknowledged
/// that ended earlier, the others had read by then.
const RECENT_MS: u64 = 5_000;

/// How often it is asked whether all others are done.
const AGAIN: Duration = Duration::from_millis(100);

/// The most of what is put back in one command.
const MAX_ENTRIES: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// What a server says of its log.
struct Found {
    confirmed: bool,
    lineage: Option<Lineage>,
    /// The lineage as it is written there.
    text: String,
    head: u64,
    /// There is no log at all.
    empty: bool,
}

/// Makes the window the tail of the server's log, as far as they agree, and returns the log's head. `since`: when this
/// node began to hear the server's channels, in milliseconds of its clock.
pub(super) async fn settle(shared: &Shared, link: &Link, since: u64, fresh: bool) -> Result<u64, LinkError> {
    loop {
        let found = look(shared, link).await?;
        match &found.lineage {
            Some(lineage) if found.confirmed => {
                adopt(shared, lineage, found.head, fresh);
                return Ok(found.head);
            }
            _ => {}
        }
        // After anything was put back it is looked again: another node may have been at it too.
        let done = fresh || put_back(shared, link, &found).await?;
        if done && !confirm(shared, link, since).await? {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn look(shared: &Shared, link: &Link) -> Result<Found, LinkError> {
    let asked = link.call(cmd("HMGET").arg(&shared.keys.epoch).arg(&["server", "lineage", "head"])).await?;
    let (server, text, head): (Option<String>, Option<String>, Option<u64>) = read(asked)?;
    let text = text.unwrap_or_default();
    let lineage = match &*text {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            LinkError::NotOurs(format!("the key {} has a lineage that can't be read: {text:?}", shared.keys.epoch))
        })?),
    };
    let entries: u64 = read(link.call(cmd("EXISTS").arg(&shared.keys.log)).await?)?;
    let empty = lineage.is_none() && entries == 0;
    let confirmed = server.as_deref() == Some(&link.server);
    Ok(Found { confirmed, lineage, text, head: head.unwrap_or(0), empty })
}

/// Puts back what the log lost, as long as nobody else changes it. Returns whether there was nothing.
async fn put_back(shared: &Shared, link: &Link, found: &Found) -> Result<bool, LinkError> {
    let (lineage, mut lost) = what_is_lost(shared, found);
    let (lineage, mut before) = (lineage.to_string(), found.text.clone());
    let (mut restored, nothing) = (0, lost.is_empty());
    while !lost.is_empty() {
        let mut bytes = 0;
        let fits = lost.iter().take(MAX_ENTRIES).take_while(|entry| {
            bytes += entry.frame.len();
            bytes < MAX_BYTES
        });
        let rest = lost.split_off(fits.count().max(1).min(lost.len()));
        let (keys, first) = (&shared.keys, lost[0].sequence);
        let mut command = link.script(Script::Restore, &[&keys.log, &keys.epoch, &keys.ids, &keys.nodes]);
        command.arg(&link.server).arg(&lineage).arg(&before).arg(first).arg(&shared.node);
        for entry in &lost {
            command.arg(entry.appended_ms).arg(&*entry.event_id).arg(audience_text(&entry.audience)).arg(entry.json());
            command.arg(entry.publisher.as_deref().unwrap_or_default()).arg(entry.trace.as_deref().unwrap_or_default());
        }
        if read::<i64>(link.call(&command).await?)? < 0 {
            break;
        }
        restored += lost.len() as u64;
        before.clone_from(&lineage);
        lost = rest;
    }
    if restored > 0 {
        tracing::warn!(events = restored, "the log had lost events; they were put back");
        shared.metrics.add(Counter::EventsRestored, restored);
    }
    Ok(nothing)
}

/// The entries that this node holds behind the log's head, if they are what came next.
fn what_is_lost(shared: &Shared, found: &Found) -> (Lineage, Vec<Arc<Entry>>) {
    let window = shared.tail.window().read();
    let ours = window.lineage().clone();
    let unseen = shared.unseen();
    let head = unseen.back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    let after = match &found.lineage {
        None if found.empty => Some(window.floor()),
        Some(theirs) if ours.extends(theirs) => ours.shared_with(head, theirs, found.head),
        _ => None,
    };
    let mut lost = Vec::new();
    if let Some(after) = after.filter(|after| *after >= window.floor()) {
        lost.extend(window.since(after).cloned());
        let mut next = after.max(window.head()) + 1;
        for entry in unseen.iter() {
            if entry.sequence == next {
                lost.push(entry.clone());
                next += 1;
            }
        }
    }
    (ours, lost)
}

/// Says that this node is done. Returns whether the server is confirmed.
async fn confirm(shared: &Shared, link: &Link, since: u64) -> Result<bool, LinkError> {
    let keys = &shared.keys;
    let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.nodes, &keys.recovery, &keys.ears];
    let mut command = link.script(Script::Confirm, &names);
    let epoch = format!("{:x}", u64::from_be_bytes(random()));
    command.arg(&link.server).arg(&shared.node).arg(epoch).arg(SETTLE_MS).arg(GRACE_MS).arg(RECENT_MS).arg(since);
    Ok(!matches!(link.call(&command).await?, Value::Int(_)))
}

/// Keeps of the window what the log has too.
fn adopt(shared: &Shared, lineage: &Lineage, head: u64, fresh: bool) {
    let mut window = shared.tail.window().write();
    let ours = window.head();
    let same = if fresh { None } else { window.lineage().shared_with(ours, lineage, head) };
    match same {
        Some(same) => {
            if same < ours {
                let lost = ours - same;
                tracing::error!(events = lost, "the log has lost events that this node can't put back");
                shared.metrics.add(Counter::EventsLost, lost);
            }
            window.adopt(lineage.clone(), same);
        }
        None => {
            if !fresh {
                tracing::error!("the log is another one now: every client is told");
            }
            window.adopt(lineage.clone(), 0);
            window.jump(0);
        }
    }
    shared.head.send_replace(window.head());
    drop(window);
    shared.unseen().clear();
}
