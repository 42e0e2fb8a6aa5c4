//! The members of the log, as this node knows them: the nodes that may acknowledge events. After a loss of data the
//! recovery waits for every member that may have acknowledged an event which no other node has. Therefore no node
//! becomes a member without the knowledge of another member (docs/recovery.md).

use super::{connection::read, error::LinkError};
use crate::clock;
use redis::Value;
use std::{collections::BTreeMap, time::Duration};

/// How long a node is informed after its last successful heartbeat: no node can become a member without its knowledge
/// in that time.
pub(super) const INFORMED: Duration = Duration::from_secs(12);

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
}
