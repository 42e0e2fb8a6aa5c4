//! What happens before a server's log is used: each node puts back what the log lost and its window still holds; then
//! the server is confirmed, and the log goes on under a new epoch. Until then nobody can append.

use super::{
    bus::LEASE,
    link::{Link, LinkError, read},
    record::{MAX_SEQUENCE, audience_text},
    scripts::Script,
    shared::Shared,
    url::RedisUrl,
};
use crate::{clock, identity::random, metrics::Counter};
use fanfare_core::{Lineage, window::Entry};
use redis::{Value, cmd};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a server that is not confirmed gives all nodes to find it, in milliseconds.
const SETTLE_MS: u64 = 1_000;

/// How long a log that begins, in a server that may just have lost one, gives nodes that hold it to find the server, in
/// milliseconds since the server's start.
const EMPTY_MS: u64 = 2_000;

/// How long members that are missing are waited for, in milliseconds. Longer than [`members::INFORMED`], because by then
/// none of them takes it for granted that nothing was acknowledged without it; longer than [`bus::LEASE`] too, because by then none of
/// them acknowledges anything at a server that was replaced.
const GRACE_MS: u64 = 13_000;

/// How long a node that says nothing counts as there, in milliseconds.
pub(super) const ALIVE_MS: u64 = 10_000;

/// The version of what stands in Redis. Nodes of another one take no part in a log: a confirmation says which one it is of.
const FORMAT: u32 = 3;

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
    /// It is of an older version than this node.
    old: bool,
}

/// Makes the window the tail of the server's log, as far as they agree, and returns the log's head. `since`: when this
/// node began to hear the server's channels, in milliseconds of its clock. `fresh`: this node followed no log yet, and the
/// server has run for so many seconds.
pub(super) async fn settle(shared: &Shared, link: &Link, since: u64, fresh: Option<u64>) -> Result<u64, LinkError> {
    let (began, mut known, mut told) = (Instant::now(), 0, false);
    loop {
        let found = look(shared, link).await?;
        match &found.lineage {
            Some(lineage) if found.confirmed => {
                let regressed = fresh.is_none() && has_regressed(shared, lineage, found.head);
                if regressed || found.old {
                    if regressed {
                        tracing::error!(head = found.head, "the log has gone back; all nodes put back what they hold");
                    } else {
                        tracing::warn!(
                            "the log is of an older version; nodes of that version take no part in it any more"
                        );
                    }
                    doubt(shared, link, &found, if regressed { found.head } else { MAX_SEQUENCE }).await?;
                    sleep(AGAIN).await;
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
                // After anything was put back it is looked again: another node may have been at it too.
                RestoreOutcome::Changed => continue,
                RestoreOutcome::Later => {
                    sleep(AGAIN).await;
                    continue;
                }
            }
        }
        shared.check_lease()?;
        match confirm(shared, link, since, fresh, fresh.is_some() && found.lineage.is_none(), known, lossy).await? {
            Confirmed::Yes => {}
            Confirmed::Missing { nodes, reported } => {
                known = reported;
                if !told && began.elapsed() > Duration::from_secs(3) {
                    told = true;
                    tracing::warn!(
                        nodes,
                        "the log's server is new or has lost data: waiting for nodes that may know more"
                    );
                }
                sleep(AGAIN).await;
            }
        }
    }
}

/// Whether the server has less than this node knows to have been there.
fn has_regressed(shared: &Shared, lineage: &Lineage, head: u64) -> bool {
    let window = shared.follower.window().read();
    let ours = window.lineage();
    let known = shared.unseen().back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    ours.extends(lineage) && (ours.current() != lineage.current() || head < known)
}

/// Takes the server's confirmation back, unless its head has gone beyond `head`.
async fn doubt(shared: &Shared, link: &Link, found: &Found, head: u64) -> Result<(), LinkError> {
    let keys = &shared.keys;
    let mut command = link.script(Script::Doubt, &[&keys.log, &keys.epoch, &keys.ids]);
    link.call(command.arg(&link.server).arg(&found.text).arg(head)).await?;
    Ok(())
}

async fn look(shared: &Shared, link: &Link) -> Result<Found, LinkError> {
    let asked = link.call(cmd("HMGET").arg(&shared.keys.epoch).arg(&["server", "lineage", "head", "format"])).await?;
    let (server, text, head, format): (Option<String>, Option<String>, Option<u64>, Option<u32>) = read(asked)?;
    let format = format.unwrap_or(1);
    if format > FORMAT {
        return Err(LinkError::NotOurs(format!(
            "the log (key {}) is of a newer version of fanfare, format {format}, and this one knows format {FORMAT}: upgrade this node",
            shared.keys.epoch
        )));
    }
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
    Ok(Found { confirmed, lineage, text, head: head.unwrap_or(0), empty, old: format < FORMAT })
}

/// What came of putting back.
enum RestoreOutcome {
    /// There is nothing to put back. `lossy`: this node holds entries that have no place in the log any more.
    Done {
        /// See above.
        lossy: bool,
    },
    /// The log was changed, here or by another node meanwhile.
    Changed,
    /// Other nodes may fill what lies between the log and what this node holds.
    Later,
}

/// What the log lacks.
struct Lost {
    /// Up to where the log and this node hold the same; `None`: as far as the log goes.
    cut: Option<u64>,
    entries: Vec<Arc<Entry>>,
    /// The entries begin behind a hole.
    jumps: bool,
    /// This node acknowledged something behind what it has not read. Another one may put that back yet.
    stranded: bool,
}

/// Puts back what the log lost, as long as nobody else changes it.
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
        tracing::warn!(events = restored, "the log had lost events; they were put back");
        shared.metrics.add(Counter::EventsRestored, restored);
    }
    Ok(RestoreOutcome::Changed)
}

/// What this node holds that the log lacks, and the lineage that the log then has; if it can't be put back, whether anything is
/// lost by that.
fn lost_entries(shared: &Shared, found: &Found) -> Result<(Lineage, Lost), bool> {
    let window = shared.follower.window().read();
    let ours = window.lineage().clone();
    let unseen = shared.unseen();
    let head = unseen.back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    let (after, cut) = match &found.lineage {
        None if found.empty => (0, None),
        // To clients of this node's log another one is new in any case.
        None => return Err(false),
        Some(theirs) if ours.extends(theirs) => {
            let cut = ours.cut_of(theirs);
            (cut.map_or(found.head, |cut| cut.min(found.head)), cut)
        }
        Some(theirs) => {
            // An epoch of that log may tell a loss already, but perhaps one before this node acknowledged.
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

/// How long a node that followed no log gives others to find a server that has run for `secs`, in milliseconds. What a node
/// that lives on takes for granted, it does since before the server took over: the time of a single server counts from its start.
fn settle_of_fresh(url: &RedisUrl, secs: u64, empty: bool) -> u64 {
    let since = |ms: u64| ms.saturating_sub(secs * 1_000);
    match (empty, url.is_sentinel(), url.is_cluster()) {
        (true, true, _) => clock::millis(LEASE) + SETTLE_MS,
        (true, ..) => since(EMPTY_MS),
        (false, false, false) => since(GRACE_MS).max(SETTLE_MS),
        (false, ..) => GRACE_MS,
    }
}

/// What came of a confirmation.
enum Confirmed {
    Yes,
    /// So many nodes are waited for, and so many have reported.
    Missing {
        nodes: u64,
        reported: usize,
    },
}

/// Reports what this node knows. `known`: of how many reports.
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

/// Keeps of the window what the log has too.
fn adopt(shared: &Shared, lineage: &Lineage, head: u64, fresh: bool) {
    let mut unseen = shared.unseen();
    let mut window = shared.follower.window().write();
    let ours = unseen.back().map_or(window.head(), |entry| entry.sequence.max(window.head()));
    let same = if fresh { None } else { window.lineage().shared_with(ours, lineage, head) };
    match same {
        Some(same) => {
            if same < ours {
                let lost = ours - same;
                tracing::error!(events = lost, "the log has lost events that this node can't put back");
                shared.metrics.add(Counter::EventsLost, lost);
            }
            let kept = same.min(window.head());
            window.adopt(lineage.clone(), kept);
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
    // What survived and was not read yet stands nowhere else in this node.
    unseen.retain(|entry| same.is_some_and(|same| entry.sequence <= same));
}
