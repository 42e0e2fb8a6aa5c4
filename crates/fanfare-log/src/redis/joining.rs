//! How a node becomes a member of the log: the state of a node that joins, and the detection of members whose process has
//! exited.

use super::{connection::read, error::LinkError, link::Link, members::list, scripts::Script, shared::Shared};
use crate::{clock, environment};
use redis::Value;
use std::{collections::BTreeSet, convert::Infallible, fs, sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How long a joining node watches silent members before it removes them. Longer than [`INFORMED`](super::members::INFORMED), to allow for clock
/// drift.
const WATCH: Duration = Duration::from_secs(13);

/// A member that has been silent for this time by the server's clock has certainly failed, regardless of adjustments of
/// that clock, in milliseconds.
const GONE_MS: u64 = 600_000;

/// How long the start of a link waits until the node is a member. After that, joining continues in the background.
const FIRST: Duration = Duration::from_secs(1);

/// The interval between the attempts of a joining node: at first, and at most.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(250);

/// The state of a node that joins.
pub(super) struct Joining {
    /// The other members with their last heartbeats, and since when none of them has changed.
    watched: (String, Instant),
    pause: Duration,
    process: Option<String>,
    /// The node was not a member when it first asked.
    was_none: bool,
}

impl Joining {
    pub(super) fn new() -> Self {
        Self { watched: (String::new(), Instant::now()), pause: SOON, process: process(), was_none: false }
    }

    /// Joins, unless that takes longer than [`FIRST`].
    pub(super) async fn first(&mut self, shared: &Shared, link: &Link) -> Result<(), LinkError> {
        timeout(FIRST, self.join(shared, link)).await.unwrap_or(Ok(()))
    }

    /// Joins, unless the node is a member, and then waits until the link ends.
    pub(super) async fn run(mut self, shared: &Shared, link: &Link) -> Result<Infallible, LinkError> {
        if !*shared.joined.borrow() {
            if !shared.is_full() {
                tracing::warn!(
                    "other members of the log do not respond but may still run; publishing pauses for up to {} s",
                    WATCH.as_secs()
                );
            }
            self.join(shared, link).await?;
            tracing::info!("this node joined the log and accepts events");
        }
        std::future::pending().await
    }

    async fn join(&mut self, shared: &Shared, link: &Link) -> Result<(), LinkError> {
        let mut ended = BTreeSet::new();
        loop {
            match self.ask(shared, link, &mut ended).await {
                Ok(true) => break,
                Ok(false) => {}
                // The node continues to read the log, and joins once Redis accepts writes again.
                Err(LinkError::Full(why)) => shared.note_full(&why),
                Err(error) => return Err(error),
            }
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LATER);
        }
        shared.note_writable();
        shared.joined.send_replace(true);
        Ok(())
    }

    async fn ask(&mut self, shared: &Shared, link: &Link, ended: &mut BTreeSet<String>) -> Result<bool, LinkError> {
        let keys = &shared.keys;
        let (head, epoch) = {
            let window = shared.follower.window().read();
            (window.head(), window.epoch())
        };
        let at = clock::now().mono_ms;
        let mut command = link.script(Script::Join, &[&keys.log, &keys.epoch, &keys.ids, &keys.members, &keys.control]);
        command.arg(&link.server).arg(format!("{epoch:x}"));
        {
            let members = shared.members();
            command.arg(members.name()).arg(members.version());
            ended.extend(members.former().iter().cloned());
        }
        command.arg(self.process.as_deref().unwrap_or("-"));
        command.arg(if self.watched.1.elapsed() >= WATCH { &self.watched.0 } else { "" }).arg(GONE_MS).arg(&*ended);
        let answer: Vec<Value> = read(link.call(&command).await?)?;
        let [state, version, log_head, watched, members @ ..] = &answer[..] else {
            return Err(LinkError::Answer("the join script returned too few values".to_owned()));
        };
        shared.listed.store(true, Ordering::Relaxed);
        let watched: String = read(watched.clone())?;
        if watched != self.watched.0 {
            self.watched = (watched, Instant::now());
        }
        let joined = read::<String>(state.clone())? == "i";
        let (version, log_head) = (read(version.clone())?, read(log_head.clone())?);
        let mut known = shared.members();
        known.learn(version, list(members, 3)?, log_head, head);
        // A node that was a member throughout has missed nothing. Any other node must first read up to the head that
        // the log had when it joined.
        if !joined {
            known.not_informed();
            self.was_none = true;
        }
        if self.was_none || known.never_informed() {
            known.joins(log_head, head);
        }
        if joined {
            shared.informed(&mut known, at);
        }
        drop(known);
        for member in members.chunks_exact(3) {
            let (name, process): (String, String) = (read(member[0].clone())?, read(member[2].clone())?);
            if has_ended(&process, self.process.as_deref()) {
                ended.insert(name);
            }
        }
        Ok(joined)
    }
}

/// Identifies this process, so that another one on the same machine can detect that it has exited: boot ID, PID
/// namespace, process ID and start time. `None` where the system does not provide them, and in a simulation, where all
/// nodes are one process.
fn process() -> Option<String> {
    if environment::current().is_some() {
        return None;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = fs::read_link("/proc/self/ns/pid").ok()?;
    let space = space.to_str()?.trim_start_matches("pid:[").trim_end_matches(']').to_owned();
    let id = std::process::id();
    Some(format!("{}/{space}/{id}/{}", boot.trim(), start_of(id)?))
}

/// The start time of a process, in clock ticks since boot (proc(5), `stat`, field 22). `None` if it has exited.
fn start_of(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The command name may contain spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    // A zombie executes nothing any more.
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

/// Whether a process has certainly exited: it belongs to the same boot and PID namespace as this one, and no longer
/// exists.
fn has_ended(process: &str, own: Option<&str>) -> bool {
    let Some((place, _)) = own.and_then(|own| own.rsplit_once('/')?.0.rsplit_once('/')) else { return false };
    let Some(rest) = process.strip_prefix(place).and_then(|rest| rest.strip_prefix('/')) else { return false };
    let Some((id, start)) = rest.split_once('/') else { return false };
    let (Ok(id), Ok(start)) = (id.parse(), start.parse()) else { return false };
    start_of(id) != Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_exit_of_a_process_on_this_machine_is_detected() {
        let own = process().unwrap();
        assert!(!has_ended(&own, Some(&own)));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (place, start) = (own.rsplitn(3, '/').nth(2).unwrap(), start_of(child.id()).unwrap());
        let other = format!("{place}/{}/{start}", child.id());
        assert!(!has_ended(&other, Some(&own)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(&other, Some(&own)));
        assert!(!has_ended(&other.replacen(place, "another/1", 1), Some(&own)) && !has_ended("-", Some(&own)));
    }
}
