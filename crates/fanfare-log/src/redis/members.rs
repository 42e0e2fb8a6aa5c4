//! The members of the log, as this node knows them: the nodes that may acknowledge events. After a loss of data the
//! recovery waits for every member that may have acknowledged an event which no other node has. Therefore no node
//! becomes a member without the knowledge of another member (docs/recovery.md).

use super::{
    link::{Link, LinkError, read},
    scripts::Script,
    shared::Shared,
};
use crate::{clock, environment};
use redis::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    sync::atomic::Ordering,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How long a node is informed after its last successful heartbeat: no node can become a member without its knowledge
/// in that time.
pub(super) const INFORMED: Duration = Duration::from_secs(12);

/// How long a joining node watches silent members before it removes them. Longer than [`INFORMED`], to allow for clock
/// drift.
const WATCH: Duration = Duration::from_secs(13);

/// Any node removes a member that has been silent for this time by the server's clock, in milliseconds.
pub(super) const REMOVED_MS: u64 = 30_000;

/// A member that has been silent for this time by the server's clock has certainly failed, regardless of adjustments of
/// that clock, in milliseconds.
const GONE_MS: u64 = 600_000;

/// The interval between the attempts of a joining node: at first, and at most.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(250);

/// How long the start of a link waits until the node is a member. After that, joining continues in the background.
const FIRST: Duration = Duration::from_secs(1);

/// Members by name, each with the version of the list at which it became a member.
type List = BTreeMap<String, u64>;

/// The number of former names that a node remembers.
const FORMER: usize = 16;

/// The knowledge of a node about the members.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// The name under which this node acknowledges. A name reports to one server at most: a report covers everything
    /// that was acknowledged under the name, and may be processed at any later time, regardless of what the node has
    /// acknowledged at another server since.
    name: String,
    /// The former names, oldest first. The node acknowledges nothing under them any more.
    former: Vec<String>,
    /// The number of former names so far.
    names: u32,
    /// The server that this name has reported to.
    reported_at: Option<String>,
    list: List,
    version: u64,
    /// The newest list, and the head of the log when it was read. A node that is no longer on it can have acknowledged
    /// events only up to that head. The list replaces `list` once the window reaches that head.
    newer: Option<(u64, List)>,
    /// The head of the log when this node became a member, until its window has reached that head. Members that were
    /// removed earlier may have acknowledged events up to there.
    behind: Option<u64>,
    /// The last time at which this node was certainly a member, or at which no node could have joined, in milliseconds
    /// on the monotonic clock.
    informed_ms: Option<u64>,
}

impl Members {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The name under which this node acknowledges.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The former names, under which this node acknowledges nothing any more.
    pub(super) fn former(&self) -> &[String] {
        &self.former
    }

    /// Takes a new name if the current one has reported to a server other than `server`. Returns whether it did.
    pub(super) fn rename_for(&mut self, server: &str) -> bool {
        if self.reported_at.as_deref().is_none_or(|at| at == server) {
            return false;
        }
        let base = self.name.split('~').next().unwrap_or_default();
        self.names += 1;
        let name = format!("{base}~{}", self.names);
        self.former.push(std::mem::replace(&mut self.name, name));
        if self.former.len() > FORMER {
            self.former.remove(0);
        }
        self.reported_at = None;
        true
    }

    /// Records that this node reports to `server`, after taking a new name if necessary.
    pub(super) fn reports_to(&mut self, server: &str) {
        self.rename_for(server);
        self.reported_at = Some(server.to_owned());
    }

    /// The version of the list that this node has read.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The version of the list for which this node speaks in a report: its window has everything that nodes which are
    /// no longer on that list acknowledged. 0 if it does not speak for removed members yet.
    pub(super) fn vouched_version(&self) -> u64 {
        if self.behind.is_some() { 0 } else { self.version }
    }

    /// Records that this node became a member when the head of the log was at `log_head`. The window's head is at
    /// `head`.
    pub(super) fn joins(&mut self, log_head: u64, head: u64) {
        self.behind = Some(log_head);
        self.covered(head);
    }

    /// Records a list that was read when the head of the log was at `log_head`. The window's head is at `head`. Members
    /// that are no longer on the list are kept until the window has reached `log_head`.
    pub(super) fn learn(&mut self, version: u64, list: List, log_head: u64, head: u64) {
        self.version = version;
        self.list.extend(list.iter().map(|(name, joined)| (name.clone(), *joined)));
        self.newer = Some((log_head, list));
        self.covered(head);
    }

    /// Records that the window has everything up to `head`.
    pub(super) fn covered(&mut self, head: u64) {
        if let Some((_, list)) = self.newer.take_if(|(log_head, _)| *log_head <= head) {
            self.list = list;
        }
        self.behind.take_if(|log_head| *log_head <= head);
    }

    /// Adds the nodes that have reported to the same recovery: they are members after it.
    pub(super) fn add_reported(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.list.entry(name).or_insert(self.version + 1);
        }
    }

    /// Records that this node was a member at `ms` on the monotonic clock. Ignored until the window has everything from
    /// before the join.
    pub(super) fn informed(&mut self, ms: u64) {
        if self.behind.is_none() {
            self.informed_ms = Some(ms);
        }
    }

    /// Whether this node is not a member, or never was.
    pub(super) fn never_informed(&self) -> bool {
        self.informed_ms.is_none()
    }

    /// Records that this node is not a member.
    pub(super) fn not_informed(&mut self) {
        self.informed_ms = None;
    }

    /// Records that no node could write to the server at `ms`. Therefore no node became a member until then, provided
    /// that this node was still informed.
    pub(super) fn no_joins_until(&mut self, ms: u64) {
        if self.informed_left(ms) > 0 {
            self.informed_ms = Some(ms);
        }
    }

    /// How long this node remains informed, in milliseconds from `now_ms`: no node can become a member without its
    /// knowledge in that time.
    pub(super) fn informed_left(&self, now_ms: u64) -> u64 {
        self.informed_ms.map_or(0, |at| (at + clock::millis(INFORMED)).saturating_sub(now_ms))
    }

    /// The nodes that may have acknowledged events that this node does not have.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, u64)> {
        self.list.iter().map(|(name, joined)| (&**name, *joined))
    }
}

/// Decodes a list of members with `fields` values each, of which the first two are the name and the version.
pub(super) fn list(values: &[Value], fields: usize) -> Result<List, LinkError> {
    let pair = |member: &[Value]| Ok((read(member[0].clone())?, read(member[1].clone())?));
    values.chunks_exact(fields).map(pair).collect()
}

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

    fn names(members: &Members) -> Vec<&str> {
        members.list().map(|(name, _)| name).collect()
    }

    fn of(names: &[&str]) -> List {
        names.iter().map(|name| ((*name).to_owned(), 1)).collect()
    }

    #[test]
    fn a_name_reports_to_one_server() {
        let mut members = Members::new("a");
        assert!(!members.rename_for("s1"));
        members.reports_to("s1");
        assert!(!members.rename_for("s1") && members.rename_for("s2") && !members.rename_for("s1"));
        assert_eq!((members.name(), members.former()), ("a~1", &["a".to_owned()][..]));
        members.reports_to("s2");
        members.reports_to("s1");
        assert_eq!((members.name(), members.former()), ("a~2", &["a".to_owned(), "a~1".to_owned()][..]));
    }

    #[test]
    fn a_removed_member_is_kept_until_the_window_has_what_it_acknowledged() {
        let mut members = Members::default();
        members.learn(1, of(&["a", "b"]), 5, 5);
        members.learn(2, of(&["b", "c"]), 9, 7);
        assert_eq!((names(&members), members.version()), (vec!["a", "b", "c"], 2));
        members.covered(8);
        assert_eq!(names(&members), ["a", "b", "c"]);
        members.covered(9);
        assert_eq!(names(&members), ["b", "c"]);
    }

    #[test]
    fn a_node_without_heartbeats_is_no_longer_informed() {
        let mut members = Members::default();
        assert_eq!(members.informed_left(5), 0);
        members.informed(1_000);
        assert_eq!(members.informed_left(2_000), 11_000);
        members.no_joins_until(12_000);
        assert_eq!(members.informed_left(20_000), 4_000);
        members.no_joins_until(30_000);
        assert_eq!(members.informed_left(30_000), 0);
    }

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
