//! One process of Redis: its connections, its scripts, what it keeps over a restart. Knows nothing of other servers.

use crate::{
    lua,
    net::Conn,
    store::{Bytes, Command, Data, Facts, Reply, Store, bytes, text, xread_options},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

/// What survives the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// Nothing.
    None,
    /// An append-only file, synced to disk every second: the machine's end costs up to a second.
    EverySecond,
    /// An append-only file that is synced before each answer.
    Always,
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The process alone: what it wrote to its file is there.
    Killed,
    /// The whole machine: what was not synced is cut anywhere.
    PowerLoss,
}

/// The commands that one command made, atomic.
pub(crate) type Unit = Rc<Vec<Command>>;

/// A client's connection.
#[derive(Debug, Default)]
struct Session {
    input: Vec<u8>,
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    blocked: Option<Blocked>,
    /// The offset behind its last write.
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

/// What a server has done for its clients.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Answers, by connection.
    pub(crate) answers: Vec<(Conn, Vec<u8>)>,
    /// What is to be replicated, with the offset behind it.
    pub(crate) units: Vec<(u64, Unit)>,
    /// Commands that wait at most so long, in milliseconds.
    pub(crate) timeouts: Vec<(Conn, u64, u64)>,
    /// Commands that were run.
    pub(crate) commands: u64,
}

/// A process, or the machine on which there will be one.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) up: bool,
    /// When its process began.
    pub(crate) started: u64,
    pub(crate) persistence: Persistence,
    pub(crate) clock_offset: i64,
    sessions: BTreeMap<Conn, Session>,
    scripts: BTreeSet<String>,
    /// What is on disk for sure.
    synced: Data,
    /// What is written behind that.
    unsynced: Vec<Unit>,
    /// Older copies of the data, oldest first.
    pub(crate) copies: VecDeque<Data>,
    tokens: u64,
    /// How many commands are answered with a break of the connection instead, though they are run.
    pub(crate) lose_answers: u32,
    /// Offsets that the replicas have said they have.
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

    /// Ends all connections. Returns them.
    pub(crate) fn hang_up_all(&mut self) -> Vec<Conn> {
        std::mem::take(&mut self.sessions).into_keys().collect()
    }

    /// Takes bytes of a client.
    pub(crate) fn feed(&mut self, conn: Conn, input: &[u8], done: &mut Done) {
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.input.extend_from_slice(input);
        }
        self.work(conn, done);
    }

    /// Runs what a client sent, as far as it does not wait.
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

    /// Brings on what a command changed: to those who wait for it, to the file, and to the replicas.
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

    /// Answers a read that waits, if there is something for it now.
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

    /// A command has waited as long as it may.
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

    /// Replicas have said what they have.
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

    /// Ends every wait because the server is a replica now.
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

    /// `None`: the command waits.
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

    /// A replica takes over what its master did.
    pub(crate) fn apply(&mut self, unit: &Unit, offset: u64) {
        self.store.replicate(unit);
        self.store.facts.offset = offset;
        self.keep(unit);
    }

    /// The data set is another one now.
    pub(crate) fn take_over(&mut self, data: Data) {
        self.store.data = data;
        self.sync();
    }

    /// Brings what was written to disk.
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

/// A command, and of how many bytes it was, once all of them are there.
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

/// Whether a channel fits a pattern, which has one `*` at its end.
fn fits(pattern: &[u8], channel: &[u8]) -> bool {
    pattern.strip_suffix(b"*").map_or(pattern == channel, |prefix| channel.starts_with(prefix))
}

/// A sentinel's or a server's name of 40 hexadecimal digits.
pub(crate) fn fresh_name(random: &mut fastrand::Rng) -> String {
    (0..5).map(|_| format!("{:08x}", random.u32(..))).collect()
}

/// Reads whole commands of a connection that keeps no state.
pub(crate) fn take_commands(input: &mut Vec<u8>) -> Vec<Command> {
    let mut commands = Vec::new();
    while let Some((command, used)) = parse(input) {
        input.drain(..used);
        commands.push(command);
    }
    commands
}

/// What a sentinel tells of a master, as far as it is asked for.
pub(crate) fn epoch_reply(config_epoch: u64) -> Reply {
    Reply::Array(vec![Reply::Bulk(bytes("config-epoch")), Reply::Bulk(bytes(&config_epoch.to_string()))])
}

/// The address of a master, as a sentinel tells it.
pub(crate) fn address_reply(port: u16) -> Reply {
    Reply::Array(vec![Reply::Bulk(bytes("sim")), Reply::Bulk(bytes(&port.to_string()))])
}
