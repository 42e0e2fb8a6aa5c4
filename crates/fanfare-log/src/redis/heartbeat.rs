//! The heartbeat of a node. It shows that the node is alive, and sends probes through the log and the channels. A probe
//! that does not return in time means that events are not delivered either, even if the connections seem healthy.

use super::{
    connection::read,
    error::LinkError,
    limits::{ALIVE_MS, REMOVED_MS},
    link::Link,
    members,
    scripts::Script,
    shared::{HeartbeatAnswer, Shared},
};
use crate::clock;
use redis::Value;
use std::{convert::Infallible, sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, sleep_until};

/// The heartbeat interval.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often overdue probes are checked.
const CHECK: Duration = Duration::from_millis(250);

/// Sends heartbeats until the link ends or a probe is overdue.
pub(super) async fn run(shared: &Shared, link: &Link, since: u64, number: &mut u64) -> Result<Infallible, LinkError> {
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next && !shared.listed.load(Ordering::Relaxed) {
            // Redis rejected writes when this node tried to join. The heartbeat script accepts only nodes that are in
            // the list of members.
            next = Instant::now() + CHECK;
        }
        if Instant::now() >= next {
            *number += 1;
            next = Instant::now() + INTERVAL;
            if send_heartbeat(shared, link, since, *number).await? {
                next = Instant::now();
            }
        }
        let (tail, pubsub) = shared.overdue();
        let limit = shared.options.lag_limit;
        for (overdue, what) in [(tail, "the log stream"), (pubsub, "the channels")] {
            if overdue > limit {
                let ms = overdue.as_millis();
                return Err(LinkError::Silent(format!("no probe returned through {what} for {ms} ms")));
            }
        }
        let wanted = next.min(Instant::now() + CHECK);
        tokio::select! {
            () = sleep_until(wanted) => {}
            () = shared.heartbeat_now.notified() => next = Instant::now(),
        }
        // A process that was stopped could not read the probes that returned in the meantime.
        let late = Instant::now().saturating_duration_since(wanted);
        if late > limit / 2 {
            shared.extend_probes(late);
            next = next.min(Instant::now());
        }
    }
}

/// Sends one heartbeat. Returns whether the list of members has changed. In that case the next heartbeat must follow
/// immediately: it confirms that this node has read the list, and a joining node waits for that.
async fn send_heartbeat(shared: &Shared, link: &Link, since: u64, number: u64) -> Result<bool, LinkError> {
    let keys = &shared.keys;
    let own = format!("{}{}", keys.node, shared.node);
    let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.nodes, &keys.control, &own, &keys.pubsub, &keys.members];
    let mut command = link.script(Script::Beat, &names);
    command.arg(&link.server).arg(&shared.node).arg(number).arg(shared.follower.connections()).arg(ALIVE_MS);
    command.arg(&keys.node).arg(keys.probe_channel(&shared.node)).arg(shared.bounds.age_ms).arg(since);
    let epoch = shared.epoch();
    let seen = shared.members().version();
    command.arg(format!("{epoch:x}")).arg(seen).arg(REMOVED_MS).arg(shared.members().name());
    let (before, at) = (*shared.head.borrow(), clock::now().mono_ms);
    shared.probe_sent(number);
    match link.call(&command).await {
        Ok(answer) => {
            let (head, nodes, connections, first, events, bytes, version, names, ids_ms, forgotten, new) =
                read::<(u64, usize, usize, bool, usize, usize, u64, Vec<Value>, u64, bool, bool)>(answer)?;
            let answer = HeartbeatAnswer { head, nodes, connections, first, events, bytes, ids_ms };
            if new {
                shared.unlisted.store(true, Ordering::Relaxed);
            }
            shared.note_horizon(ids_ms, forgotten);
            shared.is_channel_leader.store(answer.first, Ordering::Relaxed);
            shared.note_heartbeat();
            shared.note_heartbeat_answer(&answer);
            if answer.head < before {
                return Err(LinkError::Answer(format!(
                    "the log's head moved backwards from {before} to {}",
                    answer.head
                )));
            }
            let mut members = shared.members();
            if *shared.joined.borrow() {
                shared.informed(&mut members, at);
            }
            if version != seen {
                members.learn(version, members::list(&names, 2)?, head, *shared.head.borrow());
            }
            Ok(version != seen)
        }
        Err(LinkError::Full(why)) => {
            shared.probe_failed(number);
            shared.note_full(&why);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
