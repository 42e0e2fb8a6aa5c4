//! A node's beat: it says that the node lives, and sends probes through the log and the channels. One that does not
//! come back in time means that news don't either, whatever the connections look like.

use super::{
    link::{Link, LinkError, read},
    members::{self, REMOVED_MS},
    recovery::ALIVE_MS,
    scripts::Script,
    shared::Shared,
};
use crate::clock;
use redis::Value;
use std::{convert::Infallible, sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, sleep_until};

/// How often a node says that it lives.
const BEAT: Duration = Duration::from_secs(2);

/// How often it is looked whether a probe is overdue.
const LOOK: Duration = Duration::from_millis(250);

/// What the script of a beat returns.
pub(super) struct BeatAnswer {
    head: u64,
    pub(super) nodes: usize,
    pub(super) connections: usize,
    first: bool,
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// For how long back all ids of events are known.
    pub(super) ids_ms: u64,
}

/// Beats until the link ends, or until news no longer come.
pub(super) async fn run(shared: &Shared, link: &Link, since: u64, number: &mut u64) -> Result<Infallible, LinkError> {
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next && !shared.listed.load(Ordering::Relaxed) {
            // Redis took no writes when this node asked to join: a beat is for those that are listed.
            next = Instant::now() + LOOK;
        }
        if Instant::now() >= next {
            *number += 1;
            next = Instant::now() + BEAT;
            if beat(shared, link, since, *number).await? {
                next = Instant::now();
            }
        }
        let (tail, pubsub) = shared.overdue();
        let limit = shared.options.lag_limit;
        for (overdue, what) in [(tail, "the log"), (pubsub, "the channels")] {
            if overdue > limit {
                let ms = overdue.as_millis();
                return Err(LinkError::Silent(format!(
                    "nothing comes from {what} any more: a probe is away for {ms} ms"
                )));
            }
        }
        let wanted = next.min(Instant::now() + LOOK);
        tokio::select! {
            () = sleep_until(wanted) => {}
            () = shared.beat_now.notified() => next = Instant::now(),
        }
        // A process that was stopped has not read what came back meanwhile.
        let late = Instant::now().saturating_duration_since(wanted);
        if late > limit / 2 {
            shared.excuse_probes(late);
            next = next.min(Instant::now());
        }
    }
}

/// Returns whether the members have changed: whoever joins waits until the next beat says that this node knows.
async fn beat(shared: &Shared, link: &Link, since: u64, number: u64) -> Result<bool, LinkError> {
    let keys = &shared.keys;
    let own = format!("{}{}", keys.node, shared.node);
    let names = [&*keys.log, &keys.epoch, &keys.ids, &keys.nodes, &keys.control, &own, &keys.pubsub, &keys.members];
    let mut command = link.script(Script::Beat, &names);
    command.arg(&link.server).arg(&shared.node).arg(number).arg(shared.tail.connections()).arg(ALIVE_MS);
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
            let answer = BeatAnswer { head, nodes, connections, first, events, bytes, ids_ms };
            if new {
                shared.unlisted.store(true, Ordering::Relaxed);
            }
            shared.note_horizon(ids_ms, forgotten);
            shared.is_channel_leader.store(answer.first, Ordering::Relaxed);
            shared.note_beat();
            shared.note_beat_answer(&answer);
            if answer.head < before {
                return Err(LinkError::Answer(format!("the log went back from {before} to {}", answer.head)));
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
