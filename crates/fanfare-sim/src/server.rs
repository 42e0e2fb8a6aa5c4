//! A process of Redis: its connections, its scripts, and its persistence. Knows nothing of other servers.

use crate::{
    lua,
    net::Conn,
    store::{Bytes, Command, Data, Facts, Reply, Store, bytes, text, xread_options},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

/// The persistence of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// No persistence.
    None,
    /// An append-only file that is synced every second: a power loss costs up to a second of writes.
    EverySecond,
    /// An append-only file that is synced before each response.
    Always,
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Only the process ends: everything that it wrote to its file remains.
    Killed,
    /// The machine loses power: the writes that were not synced are cut at a random point.
    PowerLoss,
}

/// The commands that one command caused, applied atomically.
pub(crate) type Unit = Rc<Vec<Command>>;

/// A client's connection.
#[derive(Debug, Default)]
struct Session {
    input: Vec<u8>,
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    blocked: Option<Blocked>,
    /// The replication offset after its last write.
    written: u64,
}

#[derive(Debug)]
struct Blocked {
    token: u64,
    kind: Waits,
}

#[derive(Debug)]
enum Waits {
    Read(Command),
    Replicas { wanted: usize, offset: u64 },
}

/// The effects of a server's work.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Responses, by connection.
    pub(crate) answers: Vec<(Conn, Vec<u8>)>,
    /// Commands to replicate, with the offset after them.
    pub(crate) units: Vec<(u64, Unit)>,
    /// Blocking commands: the connection, a token, and the timeout in milliseconds.
    pub(crate) timeouts: Vec<(Conn, u64, u64)>,
    /// The number of commands that were run.
    pub(crate) commands: u64,
}

/// A server: a process of Redis, or the machine on which it will be started.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) up: bool,
    /// When its process started.
    pub(crate) started: u64,
    pub(crate) persistence: Persistence,
    pub(crate) clock_offset: i64,
    sessions: BTreeMap<Conn, Session>,
    scripts: BTreeSet<String>,
    /// The data on disk.
    synced: Data,
    /// The writes after that, not synced yet.
    unsynced: Vec<Unit>,
    /// Older copies of the data, oldest first.
    pub(crate) copies: VecDeque<Data>,
    tokens: u64,
    /// The number of commands that still run, but whose connection is closed instead of a response.
    pub(crate) lose_answers: u32,
    /// Offsets that the replicas have acknowledged.
    pub(crate) acked: BTreeMap<usize, u64>,
}

impl Server {
    pub(crate) fn new(facts: Facts, persistence: Persistence, random: fastrand::Rng) -> Self {
        Self {
            store: Store::new(facts, random),
            up: true,
            started: 0,
            persistence,
            clock_offset: 0,
            sessions: BTreeMap::new(),
            scripts: BTreeSet::new(),
            synced: Data::default(),
            unsynced: Vec::new(),
            copies: VecDeque::new(),
            tokens: 0,
            lose_answers: 0,
            acked: BTreeMap::new(),
        }
    }

    pub(crate) fn accept(&mut self, conn: Conn) {
        self.sessions.insert(conn, Session::default());
    }

    pub(crate) fn knows(&self, conn: Conn) -> bool {
        self.sessions.contains_key(&conn)
    }

    pub(crate) fn hang_up(&mut self, conn: Conn) {
        self.sessions.remove(&conn);
    }

    /// Closes all connections. Returns them.
    pub(crate) fn close_all(&mut self) -> Vec<Conn> {
        std::mem::take(&mut self.sessions).into_keys().collect()
    }

    /// Processes bytes of a client.
    pub(crate) fn feed(&mut self, conn: Conn, input: &[u8], done: &mut Done) {
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.input.extend_from_slice(input);
        }
        self.work(conn, done);
    }

    /// Runs the commands of a client until one blocks.
    fn work(&mut self, conn: Conn, done: &mut Done) {
        loop {
            let Some(session) = self.sessions.get_mut(&conn).filter(|session| session.blocked.is_none()) else {
                return;
            };
            let Some((command, used)) = parse(&session.input) else { return };
            session.input.drain(..used);
            done.commands += 1;
            let mut out = Vec::new();
            if let Some(replies) = self.run(conn, &command, done) {
                replies.iter().for_each(|reply| reply.write(&mut out));
            }
            self.after(Some(conn), done);
            if !out.is_empty() {
                done.answers.push((conn, out));
            }
        }
    }

    /// Propagates the effects of a command: to blocked clients, to the file, and to the replicas.
    fn after(&mut self, conn: Option<Conn>, done: &mut Done) {
        let published = std::mem::take(&mut self.store.published);
        for (channel, payload) in published {
            for (conn, session) in &self.sessions {
                let mut out = Vec::new();
                let item = |text: &[u8]| Reply::Bulk(text.into());
                if session.channels.contains(&channel) {
                    Reply::Array(vec![item(b"message"), item(&channel), item(&payload)]).write(&mut out);
                }
                for pattern in session.patterns.iter().filter(|pattern| fits(pattern, &channel)) {
                    Reply::Array(vec![item(b"pmessage"), item(pattern), item(&channel), item(&payload)])
                        .write(&mut out);
                }
                if !out.is_empty() {
                    done.answers.push((*conn, out));
                }
            }
        }
        let effects = std::mem::take(&mut self.store.effects);
        if effects.is_empty() {
            return;
        }
        let size: usize = effects.iter().flatten().map(|arg| arg.len() + 8).sum();
        self.store.facts.offset += size as u64;
        let (offset, unit) = (self.store.facts.offset, Rc::new(effects));
        if let Some(session) = conn.and_then(|conn| self.sessions.get_mut(&conn)) {
            session.written = offset;
        }
        self.keep(&unit);
        done.units.push((offset, unit));
        let waiting: Vec<Conn> =
            self.sessions.iter().filter(|(_, s)| s.blocked.is_some()).map(|(conn, _)| *conn).collect();
        for conn in waiting {
            self.try_read(conn, done);
        }
    }

    fn keep(&mut self, unit: &Unit) {
        match self.persistence {
            Persistence::None => {}
            Persistence::EverySecond => self.unsynced.push(unit.clone()),
            Persistence::Always => {}
        }
    }

    /// Answers a blocked read, if there are entries for it now.
    fn try_read(&mut self, conn: Conn, done: &mut Done) {
        let Some(session) = self.sessions.get(&conn) else { return };
        let Some(Blocked { kind: Waits::Read(command), .. }) = &session.blocked else { return };
        let command = command.clone();
        let reply = self.store.call(&command);
        if reply != Reply::NilArray {
            self.answer(conn, &reply, done);
        }
    }

    fn answer(&mut self, conn: Conn, reply: &Reply, done: &mut Done) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        session.blocked = None;
        let mut out = Vec::new();
        reply.write(&mut out);
        done.answers.push((conn, out));
        self.work(conn, done);
    }

    /// A blocking command timed out.
    pub(crate) fn time_out(&mut self, conn: Conn, token: u64, done: &mut Done) {
        let blocked = self.sessions.get(&conn).and_then(|session| session.blocked.as_ref());
        let reply = match blocked {
            Some(Blocked { token: held, kind }) if *held == token => match kind {
                Waits::Read(_) => Reply::NilArray,
                Waits::Replicas { offset, .. } => Reply::Int(self.replicas_at(*offset) as i64),
            },
            _ => return,
        };
        self.answer(conn, &reply, done);
    }

    /// Replicas have acknowledged offsets.
    pub(crate) fn check_waits(&mut self, done: &mut Done) {
        let ready: Vec<(Conn, usize)> = self
            .sessions
            .iter()
            .filter_map(|(conn, session)| match &session.blocked {
                Some(Blocked { kind: Waits::Replicas { wanted, offset }, .. }) => {
                    let there = self.replicas_at(*offset);
                    (there >= *wanted).then_some((*conn, there))
                }
                _ => None,
            })
            .collect();
        for (conn, there) in ready {
            self.answer(conn, &Reply::Int(there as i64), done);
        }
    }

    /// Ends all blocking commands, because the server is a replica now.
    pub(crate) fn unblock_all(&mut self, done: &mut Done) {
        let waiting: Vec<Conn> =
            self.sessions.iter().filter(|(_, s)| s.blocked.is_some()).map(|(conn, _)| *conn).collect();
        let text = "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)";
        for conn in waiting {
            self.answer(conn, &Reply::Error(text.to_owned()), done);
        }
    }

    fn replicas_at(&self, offset: u64) -> usize {
        self.acked.values().filter(|acked| **acked >= offset).count()
    }

    /// Runs a command. `None`: it blocks.
    fn run(&mut self, conn: Conn, command: &[Bytes], done: &mut Done) -> Option<Vec<Reply>> {
        let name = text(&command[0]).to_ascii_uppercase();
        let part = |at: usize| command.get(at).map(|part| text(part).to_ascii_uppercase()).unwrap_or_default();
        let ok = || Some(vec![Reply::Status("OK")]);
        match name.as_str() {
            "CLIENT" | "SELECT" | "AUTH" | "READONLY" => ok(),
            "HELLO" => Some(vec![Reply::Error("ERR unknown command 'HELLO'".to_owned())]),
            "SCRIPT" if part(1) == "LOAD" && command.len() == 3 => Some(vec![match lua::load(&command[2]) {
                Ok(hash) => {
                    self.scripts.insert(hash.clone());
                    Reply::text(&hash)
                }
                Err(error) => Reply::Error(error),
            }]),
            "EVAL" | "EVALSHA" => Some(vec![self.script(name == "EVAL", command)]),
            "SUBSCRIBE" | "PSUBSCRIBE" => {
                let session = self.sessions.get_mut(&conn)?;
                let mut replies = Vec::new();
                for channel in &command[1..] {
                    if name == "SUBSCRIBE" { &mut session.channels } else { &mut session.patterns }
                        .insert(channel.clone());
                    let count = session.channels.len() + session.patterns.len();
                    let kind = Reply::text(&name.to_ascii_lowercase());
                    replies.push(Reply::Array(vec![kind, Reply::Bulk(channel.clone()), Reply::Int(count as i64)]));
                }
                Some(replies)
            }
            "WAIT" => {
                let number = |at: usize| command.get(at).and_then(|n| text(n).parse::<u64>().ok()).unwrap_or(0);
                let (wanted, ms) = (number(1) as usize, number(2));
                let offset = self.sessions.get(&conn)?.written;
                let there = self.replicas_at(offset);
                if there >= wanted {
                    return Some(vec![Reply::Int(there as i64)]);
                }
                self.block(conn, Waits::Replicas { wanted, offset }, ms, done)
            }
            "XREAD" => match xread_options(command) {
                Err(error) => Some(vec![Reply::Error(error)]),
                Ok((_, _, block)) => match (self.store.call(command), block) {
                    (Reply::NilArray, Some(ms)) if !self.store.facts.replica => {
                        self.block(conn, Waits::Read(command.to_vec()), ms, done)
                    }
                    (reply, _) => Some(vec![reply]),
                },
            },
            _ => Some(vec![self.store.call(command)]),
        }
    }

    fn block(&mut self, conn: Conn, kind: Waits, ms: u64, done: &mut Done) -> Option<Vec<Reply>> {
        self.tokens += 1;
        let token = self.tokens;
        self.sessions.get_mut(&conn)?.blocked = Some(Blocked { token, kind });
        if ms > 0 {
            done.timeouts.push((conn, token, ms));
        }
        None
    }

    fn script(&mut self, whole: bool, command: &[Bytes]) -> Reply {
        let wrong = || Reply::Error("ERR wrong number of arguments for 'eval' command".to_owned());
        let Some(count) = command.get(2).and_then(|n| text(n).parse::<usize>().ok()) else { return wrong() };
        let Some((keys, args)) = command.get(3..).and_then(|rest| rest.split_at_checked(count)) else { return wrong() };
        let name = if whole {
            match lua::load(&command[1]) {
                Ok(name) => name,
                Err(error) => return Reply::Error(error),
            }
        } else {
            let name = text(&command[1]).to_ascii_lowercase();
            if !self.scripts.contains(&name) {
                return Reply::Error("NOSCRIPT No matching script. Please use EVAL.".to_owned());
            }
            name
        };
        lua::run(&mut self.store, &name, keys, args)
    }

    /// A replica applies commands of its master.
    pub(crate) fn apply(&mut self, unit: &Unit, offset: u64) {
        self.store.replicate(unit);
        self.store.facts.offset = offset;
        self.keep(unit);
    }

    /// Replaces the data set.
    pub(crate) fn take_over(&mut self, data: Data) {
        self.store.data = data;
        self.sync();
    }

    /// Syncs the writes to disk.
    pub(crate) fn sync(&mut self) {
        if self.persistence == Persistence::EverySecond {
            self.synced = self.store.data.clone();
            self.unsynced.clear();
        }
    }

    /// Ends the process.
    pub(crate) fn end(&mut self, how: End, random: &mut fastrand::Rng) {
        self.up = false;
        self.sessions.clear();
        self.scripts.clear();
        match (self.persistence, how) {
            (Persistence::None, _) => self.store.data = Data::default(),
            (Persistence::Always, _) | (_, End::Killed) => {}
            (Persistence::EverySecond, End::PowerLoss) => {
                let kept = random.usize(0..=self.unsynced.len());
                self.store.data = std::mem::take(&mut self.synced);
                for unit in std::mem::take(&mut self.unsynced).into_iter().take(kept) {
                    self.store.replicate(&unit);
                }
            }
        }
        self.sync();
    }
}

/// Parses a command, once it is complete. Returns it with its length in bytes.
fn parse(input: &[u8]) -> Option<(Command, usize)> {
    let line = |from: usize| -> Option<(i64, usize)> {
        let end = from + input.get(from..)?.windows(2).position(|pair| pair == b"\r\n")?;
        let number = str::from_utf8(input.get(from + 1..end)?).ok()?.parse().ok()?;
        Some((number, end + 2))
    };
    let (count, mut at) = line(0)?;
    let mut command = Vec::with_capacity(usize::try_from(count).ok()?);
    for _ in 0..count {
        let (length, begin) = line(at)?;
        let end = begin + usize::try_from(length).ok()?;
        command.push(Bytes::from(input.get(begin..end)?));
        at = end + 2;
        if at > input.len() {
            return None;
        }
    }
    Some((command, at))
}

/// Whether a channel matches a pattern, which has one `*` at its end.
fn fits(pattern: &[u8], channel: &[u8]) -> bool {
    pattern.strip_suffix(b"*").map_or(pattern == channel, |prefix| channel.starts_with(prefix))
}

/// The name of a sentinel or a server: 40 hexadecimal digits.
pub(crate) fn fresh_name(random: &mut fastrand::Rng) -> String {
    (0..5).map(|_| format!("{:08x}", random.u32(..))).collect()
}

/// Takes the complete commands of a connection without state.
pub(crate) fn take_commands(input: &mut Vec<u8>) -> Vec<Command> {
    let mut commands = Vec::new();
    while let Some((command, used)) = parse(input) {
        input.drain(..used);
        commands.push(command);
    }
    commands
}

/// The part of a sentinel's view of a master that the hub reads.
pub(crate) fn epoch_reply(config_epoch: u64) -> Reply {
    Reply::Array(vec![Reply::Bulk(bytes("config-epoch")), Reply::Bulk(bytes(&config_epoch.to_string()))])
}

/// The address of a master, as a sentinel reports it.
pub(crate) fn address_reply(port: u16) -> Reply {
    Reply::Array(vec![Reply::Bulk(bytes("sim")), Reply::Bulk(bytes(&port.to_string()))])
}
