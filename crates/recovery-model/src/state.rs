//! Nodes, servers and clients, and what each step does to them.

use crate::log::{Epoch, Event, Log, Place, Sequence};
use std::collections::{BTreeMap, BTreeSet};

/// Names a node, or what it acknowledges under. A node that is killed never comes back; another takes its place.
pub(crate) type Name = u8;

/// A server: which process it is, which history it holds, and how many masters had been named when it was.
pub(crate) type Server = (u8, u8, u8);

/// Which process a server is, and which history it holds.
type History = (u8, u8);

type Members = BTreeMap<Name, u8>;

/// What of the protocol is in force. Without any of these it has to fail, which shows that the exploration sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule that a test takes away")]
pub struct Rules {
    /// A server is named by its history too, not by its process alone.
    pub history: bool,
    /// Nodes remember the members; otherwise only the server does.
    pub remembered_members: bool,
    /// A report counts only for as long as its node takes for granted that it knows everybody.
    pub informed: bool,
    /// Only what a node that follows this log takes for granted counts.
    pub informed_of_this_log: bool,
    /// A node that joins waits for a member that knows of it.
    pub witness: bool,
    /// What could not be put back is reported.
    pub lossy: bool,
    /// Who reported has to know of the others. The walks find no loss without it.
    pub aware: bool,
    /// A node acknowledges only while a majority confirms its server.
    pub lease: bool,
    /// A server that is named again is another one.
    pub named: bool,
    /// A name reports to one server: a node that has reported to one acknowledges at another under another name. With the rule before the
    /// walks find no loss without it: it is for what is not here, reports that are late and failovers that are not counted.
    pub one_server: bool,
    /// Entries say their epoch. The walks find no loss without it: it ends a link that reads another history sooner, and
    /// the fence of the next beat would end it too.
    pub entry_epochs: bool,
}

impl Rules {
    /// The protocol as it is.
    pub const ALL: Self = Self {
        history: true,
        remembered_members: true,
        informed: true,
        informed_of_this_log: true,
        witness: true,
        lossy: true,
        aware: true,
        lease: true,
        named: true,
        one_server: true,
        entry_epochs: true,
    };
}

/// How much may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Nodes at the start.
    pub nodes: u8,
    /// Further nodes that may start.
    pub starts: u8,
    /// Events that may be published.
    pub events: u8,
    /// Nodes that may be killed.
    pub kills: u8,
    /// Restarts of the master from what it has, from a copy or empty.
    pub restarts: u8,
    /// Promotions of the other server.
    pub promotions: u8,
    /// Times at which a master that was given up and not demoted since is named again.
    pub returns: u8,
    /// Copies of the master's data that may be kept for a restart.
    pub copies: u8,
    /// Times at which a node ceases to take for granted that it knows everybody, or loses the word of the majority.
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
    /// What it acknowledges under, and did before.
    alias: Name,
    former: BTreeSet<Name>,
    /// Where it has reported under this name.
    reported_at: Option<Server>,
    /// Acknowledged, and not read yet.
    unseen: BTreeMap<Sequence, (Epoch, Event)>,
    link: Option<(usize, Server)>,
    settled: bool,
    joined: bool,
    fresh: bool,
    informed: bool,
    lease: bool,
    members: Members,
    version: u8,
    newer: Option<(Sequence, Members)>,
    /// The log's head when it joined, until it has read up to there: who was removed before may have acknowledged that.
    behind: Option<Sequence>,
    knows: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Client {
    node: Option<Name>,
    cursor: Option<(Epoch, Sequence)>,
    received: BTreeSet<Event>,
    /// Told a gap after their publish began.
    told: BTreeSet<Event>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    left: Budget,
    servers: [(History, Data); 2],
    master: usize,
    /// How many masters were named before it.
    named: u8,
    /// Which servers have been the master, and were not demoted since.
    undemoted: [bool; 2],
    copies: Vec<Data>,
    nodes: BTreeMap<Name, Node>,
    clients: Vec<Client>,
    next: [u8; 3],
    published: u8,
    acknowledged: BTreeSet<Event>,
    /// Which event each position has ever named.
    places: BTreeMap<(Epoch, Sequence), Event>,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Link(Name),
    /// Look, put back, report, confirm or follow. Whether the time for the missing has run out.
    Settle(Name, bool),
    /// Whether it has watched the silent for long enough.
    Join(Name, bool),
    Beat(Name),
    Read(Name),
    Publish(Name),
    Kill(Name),
    Start,
    Uninformed(Name),
    LeaseEnds(Name),
    Copy,
    /// From a copy, or from what it has (the number of copies), or empty (one more).
    Restart(usize),
    Replicate,
    Promote,
    /// The master before is named again, before it was demoted.
    Return,
    Attach(usize, Name),
}

/// What went wrong.
pub(crate) type Wrong = String;

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
            // Names, epochs, and processes or histories.
            next: [0, 1, 2],
            published: 0,
            acknowledged: BTreeSet::new(),
            places: BTreeMap::new(),
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

    /// Everything that can happen next.
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
                            steps.push(Step::Beat(name));
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

    /// Whether nobody who has not reported, or does not know the others, can take anything for granted or acknowledge elsewhere.
    fn grace_is_over(&self, at: usize, rules: Rules) -> bool {
        // What was reported elsewhere may have been replicated.
        let (data, none) = (&self.servers[at].1, BTreeMap::new());
        let recovering = data.recovering.is_some_and(|server| self.is(at, server, rules));
        let reports = if recovering { &data.reports } else { &none };
        let count = reports.len();
        self.nodes.values().all(|node| {
            let aware = reports.get(&node.alias).is_some_and(|report| usize::from(report.knows) >= count || count == 1);
            let elsewhere = rules.lease && node.lease && node.link.is_some_and(|(other, _)| other != at);
            aware || (!node.informed && !elsewhere)
        })
    }

    /// Whether nobody takes anything for granted, or acknowledges, at another server.
    fn nobody_is_sure_elsewhere(&self, at: usize, data: &Data, rules: Rules) -> bool {
        self.nodes.values().all(|node| {
            let elsewhere = rules.lease && node.lease && node.link.is_some_and(|(other, _)| other != at);
            data.reports.contains_key(&node.alias) || !(elsewhere || node.informed && rules.informed)
        })
    }

    /// Takes a step. An error: an invariant is broken.
    pub(crate) fn take(&mut self, step: Step, rules: Rules) -> Result<(), Wrong> {
        match step {
            Step::Link(name) => {
                let link = (self.master, self.name_of_master(rules));
                let node = self.node(name);
                node.link = Some(link);
                (node.settled, node.joined, node.lease, node.knows) = (false, false, true, 0);
            }
            Step::Settle(name, late) => self.settle(name, late, rules)?,
            Step::Join(name, watched) => self.join(name, watched, rules),
            Step::Beat(name) => self.beat(name, rules),
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
                // It holds another one's data, as a replica.
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

    /// What a node that links now calls the master.
    fn name_of_master(&self, rules: Rules) -> Server {
        let (process, history) = self.servers[self.master].0;
        (process, if rules.history { history } else { 0 }, if rules.named { self.named } else { 0 })
    }

    /// Whether a server holds the history that a node linked to. It does not know whether it was named again since.
    fn is(&self, at: usize, (process, history, _): Server, rules: Rules) -> bool {
        let is = self.servers[at].0;
        is.0 == process && (is.1 == history || !rules.history)
    }

    /// The server of a node's link, unless that has become another one.
    fn linked(&mut self, name: Name, rules: Rules) -> Option<(usize, Server)> {
        let (at, server) = self.nodes.get(&name)?.link?;
        // A replica takes no writes.
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

    /// Takes another name, if this one has reported to another server. Returns whether it did.
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

    /// A server on which the node's epoch goes on.
    fn fenced(&mut self, name: Name, rules: Rules) -> Option<usize> {
        let (at, server) = self.linked(name, rules)?;
        let data = &self.servers[at].1;
        if data.confirmed == Some(server) && data.log.epoch() == self.nodes[&name].log.epoch() {
            return Some(at);
        }
        self.unlink(name);
        None
    }

    fn settle(&mut self, name: Name, late: bool, rules: Rules) -> Result<(), Wrong> {
        let Some((at, server)) = self.linked(name, rules) else { return Ok(()) };
        let (mut node, mut data) = (self.nodes[&name].clone(), self.servers[at].1.clone());
        let known = node.unseen.last_key_value().map_or(node.log.head, |(last, _)| node.log.head.max(*last));
        if data.confirmed == Some(server) {
            let gone_back = !node.fresh
                && node.log.extends(&data.log)
                && (node.log.epoch() != data.log.epoch() || data.log.head < known);
            if gone_back {
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
            match put_back(&node, &data.log, known) {
                Ok(Some(log)) => {
                    for (sequence, (epoch, event)) in &log.entries {
                        self.note_place(*epoch, *sequence, *event)?;
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
        let aware = |report: &Report| !rules.aware || count == 1 || usize::from(report.knows) >= count;
        let all_aware = data.reports.values().all(aware);
        // Who begins a log waits until the word for another server has run out everywhere.
        let follower = data.reports.values().any(|report| report.follows);
        let sure = is_sure(&data, rules);
        // A log that begins is another one to everybody.
        let begins = data.log.lineage.is_empty() && !follower && self.nobody_is_sure_elsewhere(at, &data, rules);
        if (sure && all_aware) || begins || late {
            let epoch = self.fresh(1);
            let began = data.log.lineage.is_empty();
            data.log.lineage.push((epoch, data.log.head, sure && !began));
            data.version = data.reports.values().map(|report| report.version).fold(data.version, u8::max) + 1;
            let version = data.version;
            let members = data.reports.iter().filter(|(_, report)| aware(report));
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

    /// Keeps of the window what the log has too.
    fn follow(&mut self, name: Name, known: Sequence, log: &Log) -> Result<(), Wrong> {
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
        // What survived and was not read yet stands nowhere else in this node.
        node.unseen.retain(|sequence, _| same.is_some_and(|same| *sequence <= same));
        (node.settled, node.fresh) = (true, false);
        let log = node.log.clone();
        for client in 0..self.clients.len() {
            if self.clients[client].node == Some(name) {
                self.restart(client, &log, same.is_some());
            }
        }
        Ok(())
    }

    /// Where a connected client goes on when its node's log has changed.
    fn restart(&mut self, client: usize, log: &Log, kept: bool) {
        let published = self.published;
        let client = &mut self.clients[client];
        let Some(cursor) = client.cursor else {
            // It connects now, and nothing before is for it.
            client.cursor = log.epoch().map(|epoch| (epoch, log.head));
            client.told.extend(0..published);
            return;
        };
        let place = match log.place(cursor) {
            // The window begins anew, with what the log still has.
            Place::At(sequence) if !kept && sequence < log.head => Place::Broken(sequence),
            place => place,
        };
        let at = match place {
            Place::At(at) => at,
            Place::Broken(at) => {
                client.told.extend(0..published);
                at.max(log.floor())
            }
            Place::Unknown => {
                client.told.extend(0..published);
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
                client.told.extend(0..published);
            }
            let missed: Vec<_> = log.entries.range(sequence + 1..).map(|(_, (_, event))| *event).collect();
            client.received.extend(missed);
            client.cursor = log.epoch().map(|epoch| (epoch, log.head));
        } else {
            self.clients[at].told.extend(0..self.published);
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
        covered(node);
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
        covered(node);
        node.informed = joins && node.behind.is_none() && (node.lease || !rules.lease);
        if !node.informed {
            self.uninformed(name);
        }
    }

    fn beat(&mut self, name: Name, rules: Rules) {
        let Some(at) = self.fenced(name, rules) else { return };
        let (seen, alias) = (self.nodes[&name].version, self.nodes[&name].alias);
        let Some(member) = self.servers[at].1.members.get_mut(&alias) else { return self.unlink(name) };
        member.seen = seen;
        self.learn(name, at);
        let node = self.node(name);
        node.informed = node.joined && node.behind.is_none() && (node.lease || !rules.lease);
    }

    fn read(&mut self, name: Name, rules: Rules) -> Result<(), Wrong> {
        let Some((at, server)) = self.nodes[&name].link else { return Ok(()) };
        // The connection is to a process, whatever history that holds by now.
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
        node.unseen.retain(|unseen, _| *unseen > sequence);
        covered(node);
        let own = node.log.epoch();
        for client in self.clients.iter_mut().filter(|client| client.node == Some(name)) {
            if hole {
                client.told.extend(0..published);
            }
            if client.received.contains(&event) && !client.told.contains(&event) {
                return Err(format!("a client received event {event} twice"));
            }
            client.received.insert(event);
            client.cursor = own.map(|epoch| (epoch, sequence));
        }
        Ok(())
    }

    fn publish(&mut self, name: Name, rules: Rules) -> Result<(), Wrong> {
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
        self.note_place(epoch, sequence, event)?;
        self.acknowledged.insert(event);
        self.node(name).unseen.insert(sequence, (epoch, event));
        Ok(())
    }

    fn note_place(&mut self, epoch: Epoch, sequence: Sequence, event: Event) -> Result<(), Wrong> {
        match self.places.insert((epoch, sequence), event) {
            Some(other) if other != event => {
                Err(format!("position {epoch}-{sequence} names the events {other} and {event}"))
            }
            _ => Ok(()),
        }
    }

    /// At rest every client has received, or was told of, everything that was acknowledged.
    fn check(&self, rules: Rules) -> Result<(), Wrong> {
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
                !client.received.contains(event) && !client.told.contains(event) && client.cursor.is_some()
            });
            if let Some(event) = lost {
                return Err(format!("event {event} was acknowledged, and client {at} was told nothing of it"));
            }
        }
        Ok(())
    }
}

/// Takes members off a node's list once it has read what they acknowledged.
fn covered(node: &mut Node) {
    if let Some((_, list)) = node.newer.take_if(|(head, _)| *head <= node.log.head) {
        node.members = list;
    }
    node.behind.take_if(|head| *head <= node.log.head);
}

/// The server's log with what a node puts back; `None`: there is nothing; an error: it can't be, and whether nobody is told.
fn put_back(node: &Node, found: &Log, known: Sequence) -> Result<Option<Log>, bool> {
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
    for (sequence, entry) in &node.unseen {
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
    // Acknowledged behind something that this node has not read: another one may put that back yet.
    let stranded = node.unseen.last_key_value().is_some_and(|(last, _)| *last >= next && *last > after);
    if stranded { Err(true) } else { Ok(None) }
}

/// Whether nothing acknowledged can be missing.
fn is_sure(data: &Data, rules: Rules) -> bool {
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
    let wanted = sources().flat_map(|source| {
        source.members.iter().filter(move |(_, joined)| {
            std::ptr::eq(source, newest) || rank(source).is_none() || **joined > newest.version
        })
    });
    // A node speaks for its former names too.
    let reported = |name: &Name| {
        data.reports.contains_key(name) || data.reports.values().any(|report| report.former.contains(name))
    };
    let missing = wanted.into_iter().any(|(name, _)| !reported(name));
    let mut reports = data.reports.values();
    // Who follows another log knows who wrote to that one.
    let informed =
        data.reports.values().any(|report| report.informed && (rank(report).is_some() || !rules.informed_of_this_log));
    let lossy = reports.any(|report| report.lossy);
    !missing && !lossy && (informed || !rules.informed)
}
