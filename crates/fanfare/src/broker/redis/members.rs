//! The nodes that may acknowledge, as this node knows them. After a loss each is waited for that may have acknowledged
//! something which nobody else has, so nobody becomes a member without a member's knowledge (docs/recovery.md).

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

/// For how long after its last sign of life a node may take it for granted that nobody became a member without its
/// knowledge.
pub(super) const INFORMED: Duration = Duration::from_secs(12);

/// For how long a node that joins watches members that are silent before it goes on without them. Longer than
/// [`INFORMED`] by what clocks may differ meanwhile.
const WATCH: Duration = Duration::from_secs(13);

/// A member that has been silent for so long by the server's clock is removed by any other, in milliseconds.
pub(super) const REMOVED_MS: u64 = 30_000;

/// A member that has been silent for so long by the server's clock is gone, whatever jumps that clock makes, in
/// milliseconds.
const GONE_MS: u64 = 600_000;

/// How often a node that joins asks: at first, and at most.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(250);

/// How long the start of a link waits for the node to become a member; after that it goes on in the background.
const FIRST: Duration = Duration::from_secs(1);

/// Who a node knows, by name, with the version of the list at which each became a member.
type List = BTreeMap<String, u64>;

/// How many of its former names a node remembers.
const FORMER: usize = 16;

/// What a node knows of the members.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// The name under which this node acknowledges. It has reported to one server at most: a report says what was acknowledged
    /// under that name, and may be counted at any time, whatever its node did since at another server.
    name: String,
    /// The names before, newest last. Under these nothing will be acknowledged any more.
    former: Vec<String>,
    /// How many names there were.
    names: u32,
    /// Which server this name has reported to.
    reported_at: Option<String>,
    list: List,
    version: u64,
    /// The newest list, and the log's head when it was made: who is not on it any more can have acknowledged only what
    /// stands up to there.
    newer: Option<(u64, List)>,
    /// The log's head when this node became a member, until its window has that: who was removed before may have
    /// acknowledged what stands up to there.
    behind: Option<u64>,
    /// When this node was last a member for sure, or nobody could have been one, on the monotonic clock in milliseconds.
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

    /// The names under which it will not acknowledge anything any more.
    pub(super) fn former(&self) -> &[String] {
        &self.former
    }

    /// Takes another name, if this one has reported to another server than this. Returns whether it did.
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

    /// This node reports to a server.
    pub(super) fn reports_to(&mut self, server: &str) {
        self.rename_for(server);
        self.reported_at = Some(server.to_owned());
    }

    /// The version of the list that this node has read.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The version of the list for whose absentees this node's window speaks.
    pub(super) fn vouched_version(&self) -> u64 {
        if self.behind.is_some() { 0 } else { self.version }
    }

    /// This node becomes a member of a log whose head is at `log_head`; its own is at `head`.
    pub(super) fn joins(&mut self, log_head: u64, head: u64) {
        self.behind = Some(log_head);
        self.covered(head);
    }

    /// Takes a list that the server gave when the log's head was `log_head`; this node's is at `head`.
    pub(super) fn learn(&mut self, version: u64, list: List, log_head: u64, head: u64) {
        self.version = version;
        self.list.extend(list.iter().map(|(name, joined)| (name.clone(), *joined)));
        self.newer = Some((log_head, list));
        self.covered(head);
    }

    /// The window has everything up to `head`.
    pub(super) fn covered(&mut self, head: u64) {
        if let Some((_, list)) = self.newer.take_if(|(log_head, _)| *log_head <= head) {
            self.list = list;
        }
        self.behind.take_if(|log_head| *log_head <= head);
    }

    /// Those that take part in the same recovery are members afterwards.
    pub(super) fn add_reported(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.list.entry(name).or_insert(self.version + 1);
        }
    }

    /// This node was a member at `ms` on the monotonic clock.
    pub(super) fn informed(&mut self, ms: u64) {
        if self.behind.is_none() {
            self.informed_ms = Some(ms);
        }
    }

    /// This node has never been a member, or is none any more.
    pub(super) fn never_informed(&self) -> bool {
        self.informed_ms.is_none()
    }

    /// This node is no member (any more).
    pub(super) fn not_informed(&mut self) {
        self.informed_ms = None;
    }

    /// Nobody could write to the server at `ms`: no one became a member until then, if this node knew of all before.
    pub(super) fn no_joins_until(&mut self, ms: u64) {
        if self.informed_left(ms) > 0 {
            self.informed_ms = Some(ms);
        }
    }

    /// For how many milliseconds from `now_ms` on nobody can have become a member without this node's knowledge.
    pub(super) fn informed_left(&self, now_ms: u64) -> u64 {
        self.informed_ms.map_or(0, |at| (at + clock::millis(INFORMED)).saturating_sub(now_ms))
    }

    /// All who may have acknowledged something that this node does not have.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, u64)> {
        self.list.iter().map(|(name, joined)| (&**name, *joined))
    }
}

/// Reads names and versions, `fields` values each.
pub(super) fn list(values: &[Value], fields: usize) -> Result<List, LinkError> {
    let pair = |member: &[Value]| Ok((read(member[0].clone())?, read(member[1].clone())?));
    values.chunks_exact(fields).map(pair).collect()
}

/// What a node that joins has seen so far.
pub(super) struct Joining {
    /// Those that may acknowledge and have been silent since then.
    watched: (String, Instant),
    pause: Duration,
    process: Option<String>,
    /// It was no member when it first asked.
    was_none: bool,
}

impl Joining {
    pub(super) fn new() -> Self {
        Self { watched: (String::new(), Instant::now()), pause: SOON, process: process(), was_none: false }
    }

    /// Makes the node a member, if that takes no longer than a moment.
    pub(super) async fn first(&mut self, shared: &Shared, link: &Link) -> Result<(), LinkError> {
        timeout(FIRST, self.join(shared, link)).await.unwrap_or(Ok(()))
    }

    /// Makes the node a member, unless it is one, and stays until the link ends.
    pub(super) async fn run(mut self, shared: &Shared, link: &Link) -> Result<Infallible, LinkError> {
        if !*shared.joined.borrow() {
            if !shared.is_full() {
                tracing::warn!(
                    "other nodes of the log are silent and may still live, so this one takes no events for up to {} s",
                    WATCH.as_secs()
                );
            }
            self.join(shared, link).await?;
            tracing::info!("this node takes events now");
        }
        std::future::pending().await
    }

    async fn join(&mut self, shared: &Shared, link: &Link) -> Result<(), LinkError> {
        let mut ended = BTreeSet::new();
        loop {
            match self.ask(shared, link, &mut ended).await {
                Ok(true) => break,
                Ok(false) => {}
                // It reads on, and joins once Redis takes writes again.
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
            return Err(LinkError::Answer("a join without an answer".to_owned()));
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
        // A node that was a member all along has missed nothing.
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

/// Which process this is, so that another on the same machine can see that it has ended: boot, process namespace, id and
/// start. `None` where the system does not say, and in a simulated world, where all nodes are one process.
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

/// When a process began, in ticks since the boot (proc(5), `stat`, field 22).
fn start_of(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before may hold spaces and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    // A process that has ended and was not waited for does nothing any more.
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

/// Whether the process that was called so has ended for sure: it can be seen from here, and is not there.
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
    fn who_left_is_waited_for_until_the_window_has_what_it_acknowledged() {
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
    fn a_node_that_was_away_for_long_does_not_know_who_came() {
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
    fn a_process_of_this_machine_is_known_to_have_ended() {
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
