//! Nodes, servers and clients, and the effect of each step on them.

use crate::log::{Epoch, Event, Log, ResumePoint, Sequence};
use std::collections::{BTreeMap, BTreeSet};

/// The identity of a node, or a name under which it acknowledges. A killed node does not return; another one is
/// started.
pub(crate) type Name = u8;

/// The name of a server, as a node sees it: its process, its history, and the number of masters named before it.
pub(crate) type Server = (u8, u8, u8);

/// A process and the history that it holds (`run_id` and `master_replid`).
type History = (u8, u8);

type Members = BTreeMap<Name, u8>;

/// The rules of the protocol that are in force. Each rule is needed: with most of them removed, the walks find a
/// violation. The exceptions say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule that a test removes")]
pub struct Rules {
    /// A server is identified by its history too, and not only by its process.
    pub history: bool,
    /// Nodes remember the members. Otherwise only the server does.
    pub remembered_members: bool,
    /// A report counts only while its node is informed: while no node can have become a member without its knowledge.
    pub informed: bool,
    /// Only the reports of nodes that follow an epoch of this log count as informed.
    pub informed_of_this_log: bool,
    /// A joining node becomes a member only once a member has read a list that contains it.
    pub witness: bool,
    /// A report states whether its node holds entries that have no place in the log.
    pub lossy: bool,
    /// Reports count only once they are complete: their nodes know all other nodes that reported. The walks find no
    /// loss without this rule.
    pub complete: bool,
    /// A node acknowledges only during its lease.
    pub lease: bool,
    /// A server that is named again is another server.
    pub named: bool,
    /// A name reports to one server only: a node that reported to one server acknowledges at another under another
    /// name. With the rule before, the walks find no loss without this one. It covers cases that the model lacks: late
    /// reports, and failovers that are not counted.
    pub one_server: bool,
    /// Entries contain their epoch. The walks find no loss without this rule: it only ends a link that reads another
    /// history earlier than the fence of the next heartbeat does.
    pub entry_epochs: bool,
}

impl Rules {
    /// The complete protocol.
    pub const ALL: Self = Self {
        history: true,
        remembered_members: true,
        informed: true,
        informed_of_this_log: true,
        witness: true,
        lossy: true,
        complete: true,
        lease: true,
        named: true,
        one_server: true,
        entry_epochs: true,
    };
}

/// How often each kind of step may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Nodes in the initial state.
    pub nodes: u8,
    /// Further nodes that may start.
    pub starts: u8,
    /// Publishes.
    pub events: u8,
    /// Kills of nodes.
    pub kills: u8,
    /// Restarts of the master with its data, with a copy, or empty.
    pub restarts: u8,
    /// Promotions of the other server.
    pub promotions: u8,
    /// Times that a replaced master, not demoted yet, is named again.
    pub returns: u8,
    /// Copies of the master's data for later restarts.
    pub copies: u8,
    /// Times that a node stops being informed, or that its lease ends.
    pub lapses: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Report {
    knows: u8,
    informed: bool,
    lossy: bool,
    follows: bool,
    epoch: Option<Epoch>,
    version: u8,
    members: Members,
    former: BTreeSet<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Member {
    joined: u8,
    seen: u8,
    may_acknowledge: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Data {
    log: Log,
    confirmed: Option<Server>,
    recovering: Option<Server>,
    version: u8,
    members: BTreeMap<Name, Member>,
    reports: BTreeMap<Name, Report>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Node {
    log: Log,
    /// The name under which it acknowledges, and its former names.
    alias: Name,
    former: BTreeSet<Name>,
    /// The server to which it reported under this name.
    reported_at: Option<Server>,
    /// Entries that it acknowledged and has not read yet.
    unread: BTreeMap<Sequence, (Epoch, Event)>,
    link: Option<(usize, Server)>,
    settled: bool,
    joined: bool,
    fresh: bool,
    informed: bool,
    lease: bool,
    members: Members,
    version: u8,
    newer: Option<(Sequence, Members)>,
    /// The head of the log when this node joined, until it has read up to there. Removed members may have acknowledged
    /// entries up to that head, so the node cannot speak for them yet.
    behind: Option<Sequence>,
    knows: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Client {
    node: Option<Name>,
    cursor: Option<(Epoch, Sequence)>,
    received: BTreeSet<Event>,
    /// Events that were published before a gap that the client received. The gap explains their absence.
    explained: BTreeSet<Event>,
}

/// The state of the model. Its hash identifies it during the exploration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    left: Budget,
    servers: [(History, Data); 2],
    master: usize,
    /// The number of masters that were named before the current one.
    named: u8,
    /// Which servers were a master and were not demoted since.
    undemoted: [bool; 2],
    copies: Vec<Data>,
    nodes: BTreeMap<Name, Node>,
    clients: Vec<Client>,
    next: [u8; 3],
    published: u8,
    acknowledged: BTreeSet<Event>,
    /// The event at each position. An entry is never removed, so a reused position is detected.
    positions: BTreeMap<(Epoch, Sequence), Event>,
}

/// An atomic step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Link(Name),
    /// Looks up the log, restores, reports, confirms or follows. The flag: the wait for missing nodes has timed out.
    Settle(Name, bool),
    /// The flag: the node has watched the silent members for long enough.
    Join(Name, bool),
    Heartbeat(Name),
    Read(Name),
    Publish(Name),
    Kill(Name),
    Start,
    Uninformed(Name),
    LeaseEnds(Name),
    Copy,
    /// From the copy of this index, from its own data (the number of copies), or empty (one more).
    Restart(usize),
    Replicate,
    Promote,
    /// The previous master is named again before it was demoted.
    Return,
    Attach(usize, Name),
}

/// A violated invariant.
pub(crate) type Violated = String;

impl State {
    pub(crate) fn new(budget: Budget) -> Self {
        let server = |n: u8| ((n, n), Data::default());
        let mut state = Self {
            left: budget,
            servers: [server(0), server(1)],
            master: 0,
            named: 0,
            undemoted: [true, false],
            copies: Vec::new(),
            nodes: BTreeMap::new(),
            clients: Vec::new(),
            // The next name, the next epoch, and the next process or history.
            next: [0, 1, 2],
            published: 0,
            acknowledged: BTreeSet::new(),
            positions: BTreeMap::new(),
        };
        for _ in 0..budget.nodes {
            let name = state.start();
            state.clients.push(Client { node: Some(name), ..Client::default() });
        }
        state
    }

    fn fresh(&mut self, what: usize) -> u8 {
        self.next[what] += 1;
        self.next[what] - 1
    }

    fn start(&mut self) -> Name {
        let name = self.fresh(0);
        self.nodes.insert(name, Node { alias: name, fresh: true, ..Node::default() });
        name
    }

    /// All steps that are possible in this state.
    pub(crate) fn steps(&self, rules: Rules) -> Vec<Step> {
        let mut steps = Vec::with_capacity(16);
        for (&name, node) in &self.nodes {
            match node.link {
                None => steps.push(Step::Link(name)),
                Some((at, server)) => {
                    if node.settled {
                        if !node.joined {
                            steps.push(Step::Join(name, false));
                            if self.nodes.iter().all(|(other, n)| *other == name || !n.informed) {
                                steps.push(Step::Join(name, true));
                            }
                        }
                        if self.published < self.left.events && node.joined {
                            steps.push(Step::Publish(name));
                        }
                        let data = &self.servers[at].1;
                        let renamed = self.servers[at].0 != (server.0, server.1)
                            || (at == self.master && rules.named && self.named != server.2);
                        if data.version != node.version
                            || data.members.get(&node.alias).is_some_and(|m| m.seen != node.version)
                            || (node.joined && !node.informed && node.lease && node.behind.is_none())
                            || renamed
                        {
                            steps.push(Step::Heartbeat(name));
                        }
                        if self.servers[at].0.0 != server.0
                            || data.log.entries.range(node.log.head + 1..).next().is_some()
                        {
                            steps.push(Step::Read(name));
                        }
                    } else {
                        steps.push(Step::Settle(name, false));
                        if self.grace_is_over(at, rules) {
                            steps.push(Step::Settle(name, true));
                        }
                    }
                    if self.left.lapses > 0 && node.lease && at != self.master {
                        steps.push(Step::LeaseEnds(name));
                    }
                }
            }
            if self.left.kills > 0 {
                steps.push(Step::Kill(name));
            }
            if self.left.lapses > 0 && node.informed {
                steps.push(Step::Uninformed(name));
            }
        }
        if self.left.starts > 0 {
            steps.push(Step::Start);
        }
        if self.left.restarts > 0 {
            if self.left.copies > 0 && !self.copies.contains(&self.servers[self.master].1) {
                steps.push(Step::Copy);
            }
            steps.extend((0..self.copies.len() + 2).map(Step::Restart));
        }
        if self.left.promotions > 0 {
            steps.push(Step::Promote);
        }
        if self.left.returns > 0 && self.undemoted[1 - self.master] {
            steps.push(Step::Return);
        }
        if self.servers[1 - self.master].1 != self.servers[self.master].1 && self.next[2] > 2
            || self.left.promotions > 0
        {
            steps.push(Step::Replicate);
        }
        for (at, client) in self.clients.iter().enumerate() {
            if client.node.is_none() {
                for (&name, node) in &self.nodes {
                    if node.settled && node.log.head == self.servers[node.link.map_or(0, |(at, _)| at)].1.log.head {
                        steps.push(Step::Attach(at, name));
                    }
                }
            }
        }
        steps
    }

    /// Whether every node whose report is missing or not complete is no longer informed, and acknowledges at no other
    /// server.
    fn grace_is_over(&self, at: usize, rules: Rules) -> bool {
        // Reports to another server may have been replicated to this one.
        let (data, none) = (&self.servers[at].1, BTreeMap::new());
        let recovering = data.recovering.is_some_and(|server| self.is(at, server, rules));
        let reports = if recovering { &data.reports } else { &none };
        let count = reports.len();
        self.nodes.values().all(|node| {
            let complete =
                reports.get(&node.alias).is_some_and(|report| usize::from(report.knows) >= count || count == 1);
            let elsewhere = rules.lease && node.lease && node.link.is_some_and(|(other, _)| other != at);
            complete || (!node.informed && !elsewhere)
        })
    }

    /// Whether every node that has not reported is not informed, and acknowledges at no other server.
    fn none_informed_elsewhere(&self, at: usize, data: &Data, rules: Rules) -> bool {
        self.nodes.values().all(|node| {
            let elsewhere = rules.lease && node.lease && node.link.is_some_and(|(other, _)| other != at);
            data.reports.contains_key(&node.alias) || !(elsewhere || node.informed && rules.informed)
        })
    }

    /// Takes a step.
    ///
    /// # Errors
    /// If an invariant is violated.
    pub(crate) fn take(&mut self, step: Step, rules: Rules) -> Result<(), Violated> {
        match step {
            Step::Link(name) => {
                let link = (self.master, self.name_of_master(rules));
                let node = self.node(name);
                node.link = Some(link);
                (node.settled, node.joined, node.lease, node.knows) = (false, false, true, 0);
            }
            Step::Settle(name, late) => self.settle(name, late, rules)?,
            Step::Join(name, watched) => self.join(name, watched, rules),
            Step::Heartbeat(name) => self.heartbeat(name, rules),
            Step::Read(name) => self.read(name, rules)?,
            Step::Publish(name) => self.publish(name, rules)?,
            Step::Kill(name) => {
                self.left.kills -= 1;
                self.nodes.remove(&name);
                for client in self.clients.iter_mut().filter(|client| client.node == Some(name)) {
                    client.node = None;
                }
            }
            Step::Start => {
                self.left.starts -= 1;
                self.start();
            }
            Step::Uninformed(name) => {
                self.left.lapses -= 1;
                self.uninformed(name);
            }
            Step::LeaseEnds(name) => {
                self.left.lapses -= 1;
                self.node(name).lease = false;
            }
            Step::Copy => {
                self.left.copies -= 1;
                let copy = self.servers[self.master].1.clone();
                self.copies.push(copy);
            }
            Step::Restart(from) => {
                self.left.restarts -= 1;
                let kept = self.servers[self.master].1.clone();
                let data = match from.checked_sub(self.copies.len()) {
                    None => self.copies[from].clone(),
                    Some(0) => kept,
                    Some(_) => Data::default(),
                };
                let (process, history) = (self.fresh(2), self.fresh(2));
                self.servers[self.master] = ((process, history), data);
            }
            Step::Replicate => {
                // A replica has the history of its master.
                let ((_, history), data) = self.servers[self.master].clone();
                let replica = &mut self.servers[1 - self.master];
                *replica = ((replica.0.0, history), data);
                self.undemoted[1 - self.master] = false;
            }
            Step::Promote => {
                self.left.promotions -= 1;
                self.named += 1;
                self.master = 1 - self.master;
                let history = self.fresh(2);
                self.servers[self.master].0.1 = history;
                self.undemoted[self.master] = true;
            }
            Step::Return => {
                self.left.returns -= 1;
                self.named += 1;
                self.master = 1 - self.master;
            }
            Step::Attach(client, name) => self.attach(client, name),
        }
        self.check(rules)
    }

    fn node(&mut self, name: Name) -> &mut Node {
        self.nodes.entry(name).or_default()
    }

    fn uninformed(&mut self, name: Name) {
        let node = self.node(name);
        node.informed = false;
        let names: Vec<_> = node.former.iter().copied().chain([node.alias]).collect();
        for (_, data) in &mut self.servers {
            for name in &names {
                if let Some(report) = data.reports.get_mut(name) {
                    report.informed = false;
                }
            }
        }
    }

    /// The name of the current master for a node that connects now.
    fn name_of_master(&self, rules: Rules) -> Server {
        let (process, history) = self.servers[self.master].0;
        (process, if rules.history { history } else { 0 }, if rules.named { self.named } else { 0 })
    }

    /// Whether a server has the process and history that a node connected to. A server does not know whether it was
    /// named again.
    fn is(&self, at: usize, (process, history, _): Server, rules: Rules) -> bool {
        let is = self.servers[at].0;
        is.0 == process && (is.1 == history || !rules.history)
    }

    /// The server of a node's link. Ends the link if that server is another one by now.
    fn linked(&mut self, name: Name, rules: Rules) -> Option<(usize, Server)> {
        let (at, server) = self.nodes.get(&name)?.link?;
        // A replica accepts no writes.
        let is = self.is(at, server, rules);
        let replica = at != self.master && self.servers[at].0.1 == self.servers[self.master].0.1;
        if is && !replica {
            return Some((at, server));
        }
        self.unlink(name);
        None
    }

    fn unlink(&mut self, name: Name) {
        let node = self.node(name);
        (node.link, node.settled, node.joined) = (None, false, false);
    }

    /// Takes another name if this one has reported to another server. Returns whether it did.
    fn rename_for(&mut self, name: Name, server: Server, rules: Rules) -> bool {
        if !rules.one_server || self.nodes[&name].reported_at.is_none_or(|at| at == server) {
            return false;
        }
        let alias = self.fresh(0);
        let node = self.node(name);
        node.former.insert(std::mem::replace(&mut node.alias, alias));
        node.reported_at = None;
        true
    }

    /// The server of a node's link, if it is confirmed under that name and is in the node's epoch. Ends the link
    /// otherwise.
    fn fenced(&mut self, name: Name, rules: Rules) -> Option<usize> {
        let (at, server) = self.linked(name, rules)?;
        let data = &self.servers[at].1;
        if data.confirmed == Some(server) && data.log.epoch() == self.nodes[&name].log.epoch() {
            return Some(at);
        }
        self.unlink(name);
        None
    }

    fn settle(&mut self, name: Name, late: bool, rules: Rules) -> Result<(), Violated> {
        let Some((at, server)) = self.linked(name, rules) else { return Ok(()) };
        let (mut node, mut data) = (self.nodes[&name].clone(), self.servers[at].1.clone());
        let known = node.unread.last_key_value().map_or(node.log.head, |(last, _)| node.log.head.max(*last));
        if data.confirmed == Some(server) {
            let lost_entries = !node.fresh
                && node.log.extends(&data.log)
                && (node.log.epoch() != data.log.epoch() || data.log.head < known);
            if lost_entries {
                self.servers[at].1.confirmed = None;
                return Ok(());
            }
            if self.rename_for(name, server, rules) {
                self.uninformed(name);
            }
            return self.follow(name, known, &data.log);
        }
        let mut lossy = false;
        if !node.fresh {
            match restore(&node, &data.log, known) {
                Ok(Some(log)) => {
                    for (sequence, (epoch, event)) in &log.entries {
                        self.note_position(*epoch, *sequence, *event)?;
                    }
                    if log.head < data.log.head {
                        data.reports.clear();
                    }
                    data.log = log;
                    self.servers[at].1 = data;
                    return Ok(());
                }
                Ok(None) => {}
                Err(more) => lossy = more && rules.lossy,
            }
        }
        if data.recovering != Some(server) {
            data.reports.clear();
            data.recovering = Some(server);
        }
        self.rename_for(name, server, rules);
        (node.alias, node.former) = (self.nodes[&name].alias, self.nodes[&name].former.clone());
        node.reported_at = Some(server);
        data.reports.retain(|reported, _| !node.former.contains(reported));
        let report = Report {
            knows: node.knows,
            informed: (node.informed || !rules.informed) && !node.fresh,
            lossy,
            follows: !node.fresh,
            epoch: node.log.epoch(),
            version: if node.behind.is_some() { 0 } else { node.version },
            members: if rules.remembered_members { node.members.clone() } else { Members::new() },
            former: node.former.clone(),
        };
        data.reports.insert(node.alias, report);
        let count = data.reports.len();
        let complete = |report: &Report| !rules.complete || count == 1 || usize::from(report.knows) >= count;
        let all_complete = data.reports.values().all(complete);
        // A fresh node that begins a log waits until the leases for another server have expired.
        let follower = data.reports.values().any(|report| report.follows);
        let certain = none_missing(&data, rules);
        // A log that begins has no earlier positions: its clients receive a gap in any case.
        let begins = data.log.lineage.is_empty() && !follower && self.none_informed_elsewhere(at, &data, rules);
        if (certain && all_complete) || begins || late {
            let epoch = self.fresh(1);
            let began = data.log.lineage.is_empty();
            data.log.lineage.push((epoch, data.log.head, certain && !began));
            data.version = data.reports.values().map(|report| report.version).fold(data.version, u8::max) + 1;
            let version = data.version;
            let members = data.reports.iter().filter(|(_, report)| complete(report));
            let member = Member { joined: version, seen: version, may_acknowledge: true };
            data.members = members.map(|(name, _)| (*name, member)).collect();
            data.confirmed = Some(server);
            data.recovering = None;
            data.reports.clear();
            self.nodes.insert(name, node);
        } else {
            for reported in data.reports.keys() {
                node.members.entry(*reported).or_insert(node.version + 1);
            }
            node.knows = u8::try_from(count).unwrap_or(u8::MAX);
            self.nodes.insert(name, node);
        }
        self.servers[at].1 = data;
        Ok(())
    }

    /// Retains the part of the window that the log has too.
    fn follow(&mut self, name: Name, known: Sequence, log: &Log) -> Result<(), Violated> {
        let node = self.node(name);
        let same = if node.fresh { None } else { node.log.shared_with(known, log) };
        match same {
            Some(same) => {
                let kept = same.min(node.log.head);
                node.log.cut(kept);
                node.log.head = kept;
            }
            None => node.log = Log { head: log.floor(), ..Log::default() },
        }
        node.log.lineage.clone_from(&log.lineage);
        // An unread entry that the log lacks is not restorable from here on, so it must not be reported.
        node.unread.retain(|sequence, _| same.is_some_and(|same| *sequence <= same));
        (node.settled, node.fresh) = (true, false);
        let log = node.log.clone();
        for client in 0..self.clients.len() {
            if self.clients[client].node == Some(name) {
                self.restart(client, &log, same.is_some());
            }
        }
        Ok(())
    }

    /// Moves the cursor of a connected client after its node's log has changed.
    fn restart(&mut self, client: usize, log: &Log, kept: bool) {
        let published = self.published;
        let client = &mut self.clients[client];
        let Some(cursor) = client.cursor else {
            // It connects now: the events published before are not for it.
            client.cursor = log.epoch().map(|epoch| (epoch, log.head));
            client.explained.extend(0..published);
            return;
        };
        let resume = match log.resume_point(cursor) {
            // The window was discarded: the node retains only entries after the head of the log.
            ResumePoint::At(sequence) if !kept && sequence < log.head => ResumePoint::Lost(sequence),
            resume => resume,
        };
        let at = match resume {
            ResumePoint::At(at) => at,
            ResumePoint::Lost(at) => {
                client.explained.extend(0..published);
                at.max(log.floor())
            }
            ResumePoint::Unknown => {
                client.explained.extend(0..published);
                log.floor()
            }
        };
        client.cursor = log.epoch().map(|epoch| (epoch, at.min(log.head)));
    }

    fn attach(&mut self, at: usize, name: Name) {
        let log = self.nodes[&name].log.clone();
        self.clients[at].node = Some(name);
        let floor = log.floor();
        if self.clients[at].cursor.is_some() {
            self.restart(at, &log, true);
            let published = self.published;
            let client = &mut self.clients[at];
            let sequence = client.cursor.map_or(0, |(_, sequence)| sequence);
            if sequence < floor {
                client.explained.extend(0..published);
            }
            let missed: Vec<_> = log.entries.range(sequence + 1..).map(|(_, (_, event))| *event).collect();
            client.received.extend(missed);
            client.cursor = log.epoch().map(|epoch| (epoch, log.head));
        } else {
            self.clients[at].explained.extend(0..self.published);
            self.clients[at].cursor = log.epoch().map(|epoch| (epoch, log.head));
        }
    }

    fn learn(&mut self, name: Name, at: usize) {
        let data = &self.servers[at].1;
        let list: Members = data.members.iter().map(|(name, member)| (*name, member.joined)).collect();
        let (version, head) = (data.version, data.log.head);
        let node = self.node(name);
        node.version = version;
        node.members.extend(list.iter().map(|(name, joined)| (*name, *joined)));
        node.newer = Some((head, list));
        prune_members(node);
    }

    fn join(&mut self, name: Name, watched: bool, rules: Rules) {
        let Some(at) = self.fenced(name, rules) else { return };
        let (seen, former) = (self.nodes[&name].version, self.nodes[&name].former.clone());
        let (node, name) = (name, self.nodes[&name].alias);
        let data = &mut self.servers[at].1;
        if former.iter().any(|former| data.members.remove(former).is_some()) {
            data.version += 1;
        }
        if !data.members.contains_key(&name) {
            data.version += 1;
            data.members.insert(name, Member { joined: data.version, seen: 0, may_acknowledge: false });
        }
        let own = data.members[&name];
        let log_head = data.log.head;
        let others = || data.members.iter().filter(|(other, member)| **other != name && member.may_acknowledge);
        let known = others().any(|(_, member)| member.seen >= own.joined);
        let alone = others().next().is_none();
        let joins = own.may_acknowledge || alone || known || watched || !rules.witness;
        if !own.may_acknowledge && joins && watched && !alone && !known {
            data.members.retain(|other, member| *other == name || !member.may_acknowledge);
            data.version += 1;
        }
        if let Some(member) = data.members.get_mut(&name) {
            (member.seen, member.may_acknowledge) = (seen, joins);
        }
        let joins_now = joins && !own.may_acknowledge;
        let name = node;
        self.learn(name, at);
        let node = self.node(name);
        node.joined = joins;
        if joins_now || !joins {
            node.behind = Some(log_head);
        }
        prune_members(node);
        node.informed = joins && node.behind.is_none() && (node.lease || !rules.lease);
        if !node.informed {
            self.uninformed(name);
        }
    }

    fn heartbeat(&mut self, name: Name, rules: Rules) {
        let Some(at) = self.fenced(name, rules) else { return };
        let (seen, alias) = (self.nodes[&name].version, self.nodes[&name].alias);
        let Some(member) = self.servers[at].1.members.get_mut(&alias) else { return self.unlink(name) };
        member.seen = seen;
        self.learn(name, at);
        let node = self.node(name);
        node.informed = node.joined && node.behind.is_none() && (node.lease || !rules.lease);
    }

    fn read(&mut self, name: Name, rules: Rules) -> Result<(), Violated> {
        let Some((at, server)) = self.nodes[&name].link else { return Ok(()) };
        // A connection is to a process, regardless of the history that the process has by now.
        if self.servers[at].0.0 != server.0 {
            self.unlink(name);
            return Ok(());
        }
        let head = self.nodes[&name].log.head;
        let next = self.servers[at].1.log.entries.range(head + 1..).next().map(|(s, e)| (*s, *e));
        let Some((sequence, (epoch, event))) = next else { return Ok(()) };
        if rules.entry_epochs && self.nodes[&name].log.epoch_at(sequence) != Some(epoch) {
            self.unlink(name);
            return Ok(());
        }
        let published = self.published;
        let node = self.node(name);
        let hole = sequence > head + 1;
        if hole {
            node.log.entries.clear();
        }
        node.log.entries.insert(sequence, (epoch, event));
        node.log.head = sequence;
        node.unread.retain(|unread, _| *unread > sequence);
        prune_members(node);
        let own = node.log.epoch();
        for client in self.clients.iter_mut().filter(|client| client.node == Some(name)) {
            if hole {
                client.explained.extend(0..published);
            }
            if client.received.contains(&event) && !client.explained.contains(&event) {
                return Err(format!("a client received event {event} twice"));
            }
            client.received.insert(event);
            client.cursor = own.map(|epoch| (epoch, sequence));
        }
        Ok(())
    }

    fn publish(&mut self, name: Name, rules: Rules) -> Result<(), Violated> {
        let event = self.published;
        self.published += 1;
        if rules.lease && !self.nodes[&name].lease {
            return Ok(());
        }
        let Some(at) = self.fenced(name, rules) else { return Ok(()) };
        let data = &mut self.servers[at].1;
        let member = data.members.get(&self.nodes[&name].alias).is_some_and(|member| member.may_acknowledge);
        if !member || data.log.head < self.nodes[&name].log.head {
            self.unlink(name);
            return Ok(());
        }
        let Some(epoch) = data.log.epoch() else { return Ok(()) };
        data.log.head += 1;
        let sequence = data.log.head;
        data.log.entries.insert(sequence, (epoch, event));
        self.note_position(epoch, sequence, event)?;
        self.acknowledged.insert(event);
        self.node(name).unread.insert(sequence, (epoch, event));
        Ok(())
    }

    fn note_position(&mut self, epoch: Epoch, sequence: Sequence, event: Event) -> Result<(), Violated> {
        match self.positions.insert((epoch, sequence), event) {
            Some(other) if other != event => {
                Err(format!("position {epoch}-{sequence} names the events {other} and {event}"))
            }
            _ => Ok(()),
        }
    }

    /// When no step is outstanding, every client has received each acknowledged event, or a gap that explains it.
    fn check(&self, rules: Rules) -> Result<(), Violated> {
        let (server, name) = (&self.servers[self.master].1, self.name_of_master(rules));
        let at_rest = !self.nodes.is_empty()
            && self.nodes.values().all(|node| {
                node.settled
                    && node.joined
                    && node.link == Some((self.master, name))
                    && server.confirmed == Some(name)
                    && node.log.lineage == server.log.lineage
                    && node.log.head == server.log.head
            })
            && self.clients.iter().all(|client| client.node.is_some());
        if !at_rest {
            return Ok(());
        }
        for (at, client) in self.clients.iter().enumerate() {
            let lost = self.acknowledged.iter().find(|event| {
                !client.received.contains(event) && !client.explained.contains(event) && client.cursor.is_some()
            });
            if let Some(event) = lost {
                return Err(format!(
                    "event {event} was acknowledged, but client {at} received neither the event nor a gap"
                ));
            }
        }
        Ok(())
    }
}

/// Removes members from a node's list once the node has read everything that they acknowledged.
fn prune_members(node: &mut Node) {
    if let Some((_, list)) = node.newer.take_if(|(head, _)| *head <= node.log.head) {
        node.members = list;
    }
    node.behind.take_if(|head| *head <= node.log.head);
}

/// The server's log with the entries that a node restores; `None` if there are none.
///
/// # Errors
/// If the node's entries have no place in the log. The value: whether the report of the node is lossy.
fn restore(node: &Node, found: &Log, known: Sequence) -> Result<Option<Log>, bool> {
    let empty = found.lineage.is_empty() && found.entries.is_empty();
    if !empty && !node.log.extends(found) {
        return Err(node.log.shared_with(known, found).unwrap_or(0) < known);
    }
    let mut log = found.clone();
    if let Some(cut) = node.log.cut_of(found).filter(|_| !empty) {
        log.cut(cut);
    }
    let after = log.head;
    let held = node.log.entries.range(after.max(node.log.floor()) + 1..).map(|(s, e)| (*s, *e));
    let mut next = after.max(node.log.head) + 1;
    let mut entries: Vec<_> = held.collect();
    for (sequence, entry) in &node.unread {
        if *sequence == next {
            entries.push((*sequence, *entry));
            next += 1;
        }
    }
    if let Some((last, _)) = entries.last() {
        log.head = *last;
    }
    log.entries.extend(entries.iter().copied());
    log.lineage.clone_from(&node.log.lineage);
    if log != *found {
        return Ok(Some(log));
    }
    // An entry of another node is missing before an acknowledged one: that node may still restore it.
    let blocked = node.unread.last_key_value().is_some_and(|(last, _)| *last >= next && *last > after);
    if blocked { Err(true) } else { Ok(None) }
}

/// Whether no acknowledged event can be missing (the new epoch has no `!`).
fn none_missing(data: &Data, rules: Rules) -> bool {
    let here = Report {
        epoch: data.log.epoch(),
        version: data.version,
        members: data.members.iter().map(|(name, member)| (*name, member.joined)).collect(),
        ..Report::default()
    };
    let rank = |report: &Report| data.log.rank(report.epoch);
    let sources = || std::iter::once(&here).chain(data.reports.values().filter(|report| report.follows));
    let Some(newest) = sources()
        .filter(|report| rank(report).is_some() || std::ptr::eq(*report, &raw const here))
        .max_by_key(|report| (rank(report), report.version))
    else {
        return false;
    };
    let expected = sources().flat_map(|source| {
        source.members.iter().filter(move |(_, joined)| {
            std::ptr::eq(source, newest) || rank(source).is_none() || **joined > newest.version
        })
    });
    // A report also covers the former names of its node.
    let reported = |name: &Name| {
        data.reports.contains_key(name) || data.reports.values().any(|report| report.former.contains(name))
    };
    let missing = expected.into_iter().any(|(name, _)| !reported(name));
    let mut reports = data.reports.values();
    // A node that follows another log is informed only about the members of that log.
    let informed =
        data.reports.values().any(|report| report.informed && (rank(report).is_some() || !rules.informed_of_this_log));
    let lossy = reports.any(|report| report.lossy);
    !missing && !lossy && (informed || !rules.informed)
}
