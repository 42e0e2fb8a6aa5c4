//! Brings the log's news into the window, in order and without a hole, and what nodes order each other.

use super::{
    link::{BLOCK, Link, LinkError},
    questions,
    record::{self, stream_id, text},
    revoked,
    shared::Shared,
};
use crate::{broker::Order, clock};
use fanfare_core::window::Entry;
use redis::{Value, aio::MultiplexedConnection, cmd};
use std::{collections::HashMap, convert::Infallible, sync::Arc};

/// The most entries in one answer.
const COUNT: usize = 512;

/// Fills the window up to the log's head.
pub(super) async fn catch_up(shared: &Shared, link: &Link, head: u64) -> Result<(), LinkError> {
    loop {
        let from = shared.tail.window().read().head() + 1;
        let page = cmd("XRANGE").arg(&shared.keys.log).arg(stream_id(from)).arg("+").arg("COUNT").arg(COUNT).take();
        let entries = record::entries(link.call(&page).await?)?;
        let more = entries.len() == COUNT;
        take(shared, entries);
        if !more {
            break;
        }
    }
    let behind = shared.tail.window().read().head() < head;
    if behind {
        // The log no longer has what came before its head.
        shared.tail.window().write().jump(head);
    }
    shared.head.send_replace(shared.tail.window().read().head());
    shared.tail.wake();
    Ok(())
}

/// Follows the log and the nodes' orders until the link ends. `orders` is the place up to which orders were read.
pub(super) async fn run(
    shared: &Arc<Shared>,
    mut connection: MultiplexedConnection,
    orders: &mut String,
) -> Result<Infallible, LinkError> {
    let (keys, block) = (&shared.keys, clock::millis(BLOCK));
    loop {
        let head = *shared.head.borrow();
        let mut read = cmd("XREAD");
        read.arg("BLOCK").arg(block).arg("COUNT").arg(COUNT).arg("STREAMS");
        read.arg(&keys.log).arg(&keys.control).arg(stream_id(head)).arg(&*orders);
        let answer = super::link::counted(&mut connection, &read, &shared.metrics).await?;
        let mut streams = streams(answer)?;
        let entries = streams.remove(&*keys.log).map_or_else(|| Ok(Vec::new()), record::entries)?;
        let all = entries.len() < COUNT;
        if !entries.is_empty() {
            take(shared, entries);
            shared.tail.wake();
        }
        if let Some(Value::Array(items)) = streams.remove(&*keys.control) {
            for item in &items {
                obey(shared, item, orders, all)?;
            }
        }
    }
}

/// The entries of each stream that has some.
fn streams(answer: Value) -> Result<HashMap<String, Value>, LinkError> {
    if answer == Value::Nil {
        return Ok(HashMap::new());
    }
    Ok(super::link::read::<Vec<(String, Value)>>(answer)?.into_iter().collect())
}

/// Puts entries into the window that the log has behind its head.
fn take(shared: &Shared, entries: Vec<Arc<Entry>>) {
    let mut unseen = shared.unseen();
    let mut window = shared.tail.window().write();
    for entry in entries {
        let head = window.head();
        if entry.sequence <= head {
            continue;
        }
        if entry.sequence > head + 1 {
            // The log was trimmed, or cut into, faster than this node read.
            tracing::warn!(from = head + 1, to = entry.sequence - 1, "events were gone before this node read them");
            window.jump(entry.sequence - 1);
        }
        while unseen.pop_front_if(|own| own.sequence < entry.sequence).is_some() {}
        let own = unseen.pop_front_if(|own| own.sequence == entry.sequence && own.event_id == entry.event_id);
        window.push(own.unwrap_or(entry));
    }
    let head = window.head();
    drop(window);
    shared.head.send_replace(head);
}

/// Reads one message of the control stream. `all`: the window has all that the log had at the time of the answer.
fn obey(shared: &Arc<Shared>, item: &Value, orders: &mut String, all: bool) -> Result<(), LinkError> {
    let Value::Array(parts) = item else { return Ok(()) };
    let [id, Value::Array(fields)] = &parts[..] else { return Ok(()) };
    let fields: HashMap<&str, &str> =
        fields.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?))).collect();
    if let Some(id) = text(id) {
        id.clone_into(orders);
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
                return Err(LinkError::Answer(format!("the log was at {head} and gave nothing behind {ours}")));
            }
        }
        "disconnect" => {
            if let Ok(connection) = field("c").parse() {
                shared.tail.obey(Order::Disconnect { connection, reason });
            }
        }
        "replaced" if field("n") == shared.node => {
            if let (Ok(connection), Ok(before_ms)) = (field("c").parse(), field("s").parse()) {
                shared.tail.obey(Order::Replaced { connection, before_ms });
            }
        }
        "revoke" => {
            if let Some(revocation) = revoked::read(field("w"), field("s").parse().unwrap_or(0)) {
                shared.tail.obey(Order::Revoke(revocation));
            }
        }
        "surplus" if field("n") == shared.node => {
            if let Ok(connection) = field("c").parse() {
                shared.tail.obey(Order::Surplus { connection });
            }
        }
        "log_level" => shared.tail.obey(Order::LogLevel { filter: field("f").to_owned() }),
        "drain" => shared.tail.obey(Order::Drain { node: field("n").to_owned() }),
        "ask" => questions::answer(shared, field("i"), field("q"), field("s").parse().unwrap_or(0)),
        "disconnect_user" => shared.tail.obey(Order::DisconnectUser { user: field("u").into(), reason }),
        _ => {}
    }
    Ok(())
}

/// An order as the control stream holds it.
pub(super) fn order_fields(order: &Order) -> Vec<(&'static str, String)> {
    match order {
        Order::Disconnect { connection, reason } => {
            vec![("k", "disconnect".to_owned()), ("c", connection.to_string()), ("r", reason.clone())]
        }
        Order::Replaced { connection, before_ms } => {
            vec![("k", "replaced".to_owned()), ("c", connection.to_string()), ("s", before_ms.to_string())]
        }
        Order::Revoke(revocation) => {
            let (which, before) = revoked::text(revocation);
            vec![("k", "revoke".to_owned()), ("w", which), ("s", before.to_string())]
        }
        Order::LogLevel { filter } => vec![("k", "log_level".to_owned()), ("f", filter.clone())],
        Order::Drain { node } => vec![("k", "drain".to_owned()), ("n", node.clone())],
        Order::Surplus { connection } => vec![("k", "surplus".to_owned()), ("c", connection.to_string())],
        Order::DisconnectUser { user, reason } => {
            vec![("k", "disconnect_user".to_owned()), ("u", user.to_string()), ("r", reason.clone())]
        }
    }
}
