//! Reads the log into the window, in order and without holes, and the commands of other nodes from the control stream.

use super::{
    connection::{Connection, read},
    error::LinkError,
    limits::BLOCK,
    link::Link,
    page_size::PageSize,
    questions,
    record::{self, Foreign, Item, stream_id, text},
    revoked,
    scripts::Script,
    shared::Shared,
};
use crate::{ControlMessage, clock, metrics::LogCounter};
use fanfare_core::{Lineage, Position, window::Entry};
use redis::{Value, cmd};
use std::{collections::HashMap, convert::Infallible, sync::Arc};

/// The maximum distance of the next entry from the window's head. An entry farther away is suspect. The scripts follow
/// foreign entries up to the same distance.
const MAX_JUMP: u64 = 1 << 20;

/// Reads until the window has reached the head of the log.
pub(super) async fn catch_up(shared: &Shared, link: &Link, head: u64) -> Result<(), LinkError> {
    let mut page_size = PageSize::default();
    loop {
        let from = shared.follower.window().read().head() + 1;
        let page = cmd("XRANGE")
            .arg(&shared.keys.log)
            .arg(stream_id(from))
            .arg("+")
            .arg("COUNT")
            .arg(page_size.count())
            .take();
        let items = record::items(link.call(&page).await?, shared.epoch())?;
        if take_items(shared, link, items, &mut page_size, false).await? == Taken::All {
            break;
        }
    }
    let behind = shared.follower.window().read().head() < head;
    if behind {
        // The log has already evicted the entries before its head.
        shared.follower.window().write().jump(head);
    }
    shared.head.send_replace(shared.follower.window().read().head());
    shared.follower.wake();
    Ok(())
}

/// Whether the window has everything that the log had at the time of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    All,
    /// There may be further entries after the window's head.
    Part,
}

/// Pushes entries into the window, up to the first suspect one, and examines that one. While the link is in use
/// (`in_use`), an entry of another epoch means that the server has another history by now. When a link begins, the log
/// has just been confirmed, so such an entry is foreign.
async fn take_items(
    shared: &Shared,
    link: &Link,
    items: Vec<Item>,
    page_size: &mut PageSize,
    in_use: bool,
) -> Result<Taken, LinkError> {
    let taken = if items.len() < page_size.count() { Taken::All } else { Taken::Part };
    page_size.adapt(items.len(), items.iter().map(Item::weight).sum());
    let (mut entries, mut suspect) = (Vec::with_capacity(items.len()), None);
    let (lineage, mut next) = {
        let window = shared.follower.window().read();
        (window.lineage().clone(), window.head() + 1)
    };
    for item in items {
        match item {
            Item::Event(entry, epoch) if epoch.is_some_and(|epoch| !is_of(&lineage, &entry, epoch)) => {
                if in_use {
                    take(shared, entries);
                    return Err(LinkError::NotMaster("the log continues in another epoch".to_owned()));
                }
                let (sequence, id) = (Some(entry.sequence), stream_id(entry.sequence));
                suspect = Some(Foreign { sequence, id, why: "its epoch (e) is not that of the log" });
            }
            Item::Event(entry, _) if entry.sequence <= next.saturating_add(MAX_JUMP) => {
                next = next.max(entry.sequence + 1);
                entries.push(entry);
            }
            Item::Event(entry, _) => {
                let (sequence, id) = (Some(entry.sequence), stream_id(entry.sequence));
                suspect = Some(Foreign { sequence, id, why: "its sequence is far beyond the head of the log" });
            }
            Item::Foreign(foreign) => suspect = Some(foreign),
        }
        if suspect.is_some() {
            break;
        }
    }
    take(shared, entries);
    match suspect {
        Some(suspect) => examine(shared, link, suspect).await.map(|()| Taken::Part),
        None => Ok(taken),
    }
}

/// Examines a suspect entry. Behind the log's head it is removed, so that the log can continue. At a sequence that the
/// log has assigned, it is read again. If it is not an event, a placeholder takes its sequence.
async fn examine(shared: &Shared, link: &Link, suspect: Foreign) -> Result<(), LinkError> {
    let keys = &shared.keys;
    let (lineage, ours) = {
        let window = shared.follower.window().read();
        (window.lineage().clone(), window.head())
    };
    let mut remove = link.script(Script::Remove, &[&keys.log, &keys.epoch, &keys.ids]);
    let head: u64 = read(link.call(remove.arg(&link.server).arg(format!("{:x}", lineage.current())).arg(ours)).await?)?;
    let mut entry = None;
    if let Some(sequence) = suspect.sequence.filter(|sequence| *sequence <= head) {
        let again = cmd("XRANGE").arg(&keys.log).arg(&suspect.id).arg(&suspect.id).take();
        match record::items(link.call(&again).await?, shared.epoch())?.pop() {
            // The entry was replaced by an event in the meantime, or the log was trimmed far ahead.
            Some(Item::Event(event, epoch)) if epoch.is_none_or(|epoch| is_of(&lineage, &event, epoch)) => {
                take(shared, vec![event]);
                return Ok(());
            }
            Some(_) => entry = Some(record::placeholder(Position { epoch: shared.epoch(), sequence })),
            None => return Ok(()),
        }
    }
    shared.metrics.add(LogCounter::BadLogEntries, 1);
    let what = if entry.is_some() { "skipped" } else { "removed" };
    let Foreign { id, why, .. } = &suspect;
    tracing::error!(
        "{what} an entry of the stream {} that is not an event: {id}: {why}; check what else writes to this key",
        keys.log
    );
    take(shared, entry.into_iter().collect());
    Ok(())
}

fn is_of(lineage: &Lineage, entry: &Entry, epoch: u64) -> bool {
    lineage.epoch_at(entry.sequence).is_none_or(|ours| ours == epoch)
}

/// Follows the log and the control stream until the link ends. `control_id` is the ID of the last entry that was read
/// from the control stream.
pub(super) async fn run(
    shared: &Arc<Shared>,
    link: &Link,
    mut connection: Connection,
    control_id: &mut String,
) -> Result<Infallible, LinkError> {
    let (keys, block, mut page_size) = (&shared.keys, clock::millis(BLOCK), PageSize::default());
    loop {
        let head = *shared.head.borrow();
        let mut xread = cmd("XREAD");
        xread.arg("BLOCK").arg(block).arg("COUNT").arg(page_size.count()).arg("STREAMS");
        xread.arg(&keys.log).arg(&keys.control).arg(stream_id(head)).arg(&*control_id);
        let answer = super::link::counted(&mut connection, &xread, &*shared.metrics).await?;
        let mut streams = streams(answer)?;
        let mut all = true;
        if let Some(answer) = streams.remove(&*keys.log) {
            let items = record::items(answer, shared.epoch())?;
            all = take_items(shared, link, items, &mut page_size, true).await? == Taken::All;
            shared.follower.wake();
        }
        if let Some(Value::Array(items)) = streams.remove(&*keys.control) {
            for item in &items {
                match foreign_control_entry(item) {
                    Some(id) => remove_control_entry(shared, link, id).await?,
                    None => handle_control(shared, item, control_id, all)?,
                }
            }
            if items.iter().any(announces_revocations) {
                revoked::apply_all(shared, link).await?;
            }
        }
    }
}

/// Splits a response into the entries of each stream.
fn streams(answer: Value) -> Result<HashMap<String, Value>, LinkError> {
    if answer == Value::Nil {
        return Ok(HashMap::new());
    }
    Ok(read::<Vec<(String, Value)>>(answer)?.into_iter().collect())
}

/// Pushes entries after the window's head into the window. An entry that this node acknowledged itself is taken from
/// the list of unread entries, so that it is stored once. Locks the list before the window.
fn take(shared: &Shared, entries: Vec<Arc<Entry>>) {
    let mut unseen = shared.unseen();
    let mut window = shared.follower.window().write();
    for entry in entries {
        let head = window.head();
        if entry.sequence <= head {
            continue;
        }
        if entry.sequence > head + 1 {
            // The log was trimmed, or entries were deleted from it, before this node read them.
            tracing::warn!(
                from = head + 1,
                to = entry.sequence - 1,
                "events were removed from the log before this node read them"
            );
            window.jump(entry.sequence - 1);
        }
        while unseen.pop_front_if(|own| own.sequence < entry.sequence).is_some() {}
        let own = unseen.pop_front_if(|own| own.sequence == entry.sequence && own.event_id == entry.event_id);
        window.push(own.unwrap_or(entry));
    }
    let head = window.head();
    drop(window);
    shared.head.send_replace(head);
    shared.members().covered(head);
}

/// The ID of an entry of the control stream that no node can have written: it has no command, or its ID has the last
/// possible time.
fn foreign_control_entry(item: &Value) -> Option<&str> {
    let Value::Array(parts) = item else { return None };
    let [id, fields] = &parts[..] else { return None };
    let id = text(id)?;
    let has_command =
        matches!(fields, Value::Array(fields) if fields.chunks_exact(2).any(|pair| text(&pair[0]) == Some("k")));
    (!has_command || is_at_the_end(id)).then_some(id)
}

/// Whether an entry of the control stream requests that all revocations are read, because there are too many for a
/// command each.
fn announces_revocations(item: &Value) -> bool {
    let Value::Array(parts) = item else { return false };
    let Some(Value::Array(fields)) = parts.get(1) else { return false };
    fields.chunks_exact(2).any(|pair| text(&pair[0]) == Some("k") && text(&pair[1]) == Some("revocations"))
}

/// Whether an ID has the last possible time, after which the stream accepts no further entries.
fn is_at_the_end(id: &str) -> bool {
    id.split_once('-').is_some_and(|(ms, _)| ms.parse() == Ok(u64::MAX))
}

/// Removes a foreign entry of the control stream. If its ID would prevent further entries, the whole stream is deleted.
async fn remove_control_entry(shared: &Shared, link: &Link, id: &str) -> Result<(), LinkError> {
    let control = &shared.keys.control;
    let removed: u64 = read(link.call(cmd("XDEL").arg(control).arg(id)).await?)?;
    // Only the node that removed the entry deletes the stream, so that commands of other nodes are not lost after that.
    if removed > 0 {
        if is_at_the_end(id) {
            link.call(cmd("DEL").arg(control)).await?;
        }
        shared.metrics.add(LogCounter::BadLogEntries, 1);
        tracing::error!(
            "removed an entry of the stream {control} that no node wrote: {id}; check what else writes to this key"
        );
    }
    Ok(())
}

/// Executes one command of the control stream. `all`: the window has everything that the log had at the time of the
/// response.
fn handle_control(shared: &Arc<Shared>, item: &Value, control_id: &mut String, all: bool) -> Result<(), LinkError> {
    let Value::Array(parts) = item else { return Ok(()) };
    let [id, Value::Array(fields)] = &parts[..] else { return Ok(()) };
    let fields: HashMap<&str, &str> =
        fields.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?))).collect();
    if let Some(id) = text(id) {
        id.clone_into(control_id);
    }
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    let reason = field("r").to_owned();
    match field("k") {
        "probe" => {
            if field("n") == shared.node {
                shared.probe_returned(field("b").parse().unwrap_or(0));
            }
            let (head, ours) = (field("h").parse().unwrap_or(0), *shared.head.borrow());
            if all && head > ours {
                let why = format!("the log's head is at {head}, but it has no entries after {ours}");
                return Err(LinkError::Answer(why));
            }
        }
        // A joining node waits until the heartbeat of a member shows that it has read the new list.
        "joined" => shared.heartbeat_now.notify_one(),
        "disconnect" => {
            if let Ok(connection) = field("c").parse() {
                shared.follower.handle_control(ControlMessage::Disconnect { connection, reason });
            }
        }
        "replaced" if field("n") == shared.node => {
            if let (Ok(connection), Ok(came_ms)) = (field("c").parse(), field("s").parse()) {
                shared.follower.handle_control(ControlMessage::Replaced {
                    connection,
                    came_ms,
                    sure: field("d").is_empty(),
                });
            }
        }
        "revoke" => {
            if let Some(revocation) = revoked::read(field("w"), field("s").parse().unwrap_or(0)) {
                shared.follower.handle_control(ControlMessage::Revoke(revocation));
            }
        }
        "surplus" if field("n") == shared.node => {
            if let Ok(connection) = field("c").parse() {
                shared.follower.handle_control(ControlMessage::OverUserLimit { connection });
            }
        }
        "log_level" => shared.follower.handle_control(ControlMessage::LogLevel { filter: field("f").to_owned() }),
        "drain" => shared.follower.handle_control(ControlMessage::Drain { node: field("n").to_owned() }),
        "ask" => questions::answer(shared, field("i"), field("q"), field("s").parse().unwrap_or(0)),
        "disconnect_user" => {
            shared.follower.handle_control(ControlMessage::DisconnectUser { user: field("u").into(), reason });
        }
        _ => {}
    }
    Ok(())
}

/// Encodes a command for the control stream.
pub(super) fn control_fields(message: &ControlMessage) -> Vec<(&'static str, String)> {
    match message {
        ControlMessage::Disconnect { connection, reason } => {
            vec![("k", "disconnect".to_owned()), ("c", connection.to_string()), ("r", reason.clone())]
        }
        ControlMessage::Replaced { connection, came_ms, sure } => {
            let doubt = if *sure { "" } else { "1" };
            let (connection, came) = (connection.to_string(), came_ms.to_string());
            vec![("k", "replaced".to_owned()), ("c", connection), ("s", came), ("d", doubt.to_owned())]
        }
        ControlMessage::Revoke(revocation) => {
            let (which, before) = revoked::text(revocation);
            vec![("k", "revoke".to_owned()), ("w", which), ("s", before.to_string())]
        }
        ControlMessage::LogLevel { filter } => vec![("k", "log_level".to_owned()), ("f", filter.clone())],
        ControlMessage::Drain { node } => vec![("k", "drain".to_owned()), ("n", node.clone())],
        ControlMessage::OverUserLimit { connection } => {
            vec![("k", "surplus".to_owned()), ("c", connection.to_string())]
        }
        ControlMessage::DisconnectUser { user, reason } => {
            vec![("k", "disconnect_user".to_owned()), ("u", user.to_string()), ("r", reason.clone())]
        }
    }
}
