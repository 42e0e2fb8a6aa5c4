//! A data set of Redis and the commands on it. Knows no connections, no network and no other servers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    rc::Rc,
};

pub(crate) type Bytes = Rc<[u8]>;

/// A command, as received or as replicated.
pub(crate) type Command = Vec<Bytes>;

/// The reply to a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Nil,
    NilArray,
    Int(i64),
    Status(&'static str),
    Error(String),
    Bulk(Bytes),
    Array(Vec<Self>),
}

impl Reply {
    pub(crate) fn text(text: &str) -> Self {
        Self::Bulk(text.as_bytes().into())
    }

    /// Writes the reply in RESP2.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nil => out.extend_from_slice(b"$-1\r\n"),
            Self::NilArray => out.extend_from_slice(b"*-1\r\n"),
            Self::Int(n) => line(out, b':', &n.to_string()),
            Self::Status(text) => line(out, b'+', text),
            Self::Error(text) => line(out, b'-', text),
            Self::Bulk(bytes) => {
                line(out, b'$', &bytes.len().to_string());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Array(items) => {
                line(out, b'*', &items.len().to_string());
                items.iter().for_each(|item| item.write(out));
            }
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(crate) type Id = (u64, u64);

#[derive(Debug, Clone, Default)]
pub(crate) struct Stream {
    entries: BTreeMap<Id, Rc<[Bytes]>>,
    last: Id,
    /// The newest entry that was deleted by its ID.
    max_deleted: Id,
}

#[derive(Debug, Clone)]
enum Value {
    Text(Bytes),
    Hash(BTreeMap<Bytes, Bytes>),
    Set(BTreeSet<Bytes>),
    Sorted(BTreeMap<Bytes, f64>),
    Stream(Stream),
    List(VecDeque<Bytes>),
}

impl Value {
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(_) | Self::Stream(_) => false,
            Self::Hash(map) => map.is_empty(),
            Self::Set(set) => set.is_empty(),
            Self::Sorted(map) => map.is_empty(),
            Self::List(list) => list.is_empty(),
        }
    }
}

#[derive(Debug, Clone)]
struct Key {
    value: Rc<Value>,
    expires_ms: Option<u64>,
}

/// All keys. Cloning is cheap: values are shared until one of them is written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data(BTreeMap<Bytes, Key>);

/// The state that a server reports about itself, and that decides which commands it accepts.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) run_id: String,
    pub(crate) version: (u32, u32),
    pub(crate) replica: bool,
    pub(crate) master: (String, u16),
    pub(crate) link_up: bool,
    pub(crate) replid: String,
    pub(crate) replid2: String,
    pub(crate) offset: u64,
    pub(crate) second_offset: i64,
    pub(crate) replicas: usize,
    pub(crate) aof: bool,
    pub(crate) uptime_ms: u64,
    /// The error with which writes are rejected, its code first.
    pub(crate) refuses_writes: Option<String>,
}

/// A data set that executes commands.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) data: Data,
    pub(crate) facts: Facts,
    /// The server's wall clock.
    pub(crate) now_ms: u64,
    pub(crate) random: fastrand::Rng,
    /// The changes to the data, as the commands that are replicated.
    pub(crate) effects: Vec<Command>,
    /// The published messages, by channel.
    pub(crate) published: Vec<(Bytes, Bytes)>,
    /// The number of commands, including those of scripts.
    pub(crate) calls: u64,
    dirty: bool,
}

type Answer = Result<Reply, String>;

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const SYNTAX: &str = "ERR syntax error";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const BAD_ID: &str = "ERR Invalid stream ID specified as stream command argument";

/// The commands that change data. `false`: the command is accepted when memory is full.
fn writes(name: &str) -> Option<bool> {
    Some(match name {
        "XADD" | "HSET" | "HINCRBY" | "ZADD" | "SADD" | "SUNIONSTORE" | "RPUSH" | "LPUSH" | "SET" | "INCR"
        | "INCRBY" | "HSETNX" | "SETEX" | "APPEND" | "XSETID" => true,
        "XTRIM" | "XDEL" | "HDEL" | "ZREM" | "ZREMRANGEBYSCORE" | "ZREMRANGEBYRANK" | "SREM" | "SPOP" | "DEL"
        | "UNLINK" | "EXPIRE" | "PEXPIRE" | "PEXPIREAT" | "EXPIREAT" | "PERSIST" | "LPOP" | "LTRIM" | "FLUSHALL"
        | "RENAME" => false,
        _ => return None,
    })
}

impl Store {
    pub(crate) fn new(facts: Facts, random: fastrand::Rng) -> Self {
        Self {
            data: Data::default(),
            facts,
            now_ms: 0,
            random,
            effects: Vec::new(),
            published: Vec::new(),
            calls: 0,
            dirty: false,
        }
    }

    /// Runs a command of a client or a script.
    pub(crate) fn call(&mut self, args: &[Bytes]) -> Reply {
        let name = args.first().map(|name| String::from_utf8_lossy(name).to_ascii_uppercase()).unwrap_or_default();
        self.calls += 1;
        if let Some(grows) = writes(&name) {
            if self.facts.replica {
                return Reply::Error("READONLY You can't write against a read only replica.".to_owned());
            }
            if let Some(why) = &self.facts.refuses_writes
                && (grows || !why.starts_with("OOM"))
            {
                return Reply::Error(why.clone());
            }
        }
        self.dirty = false;
        let before = self.effects.len();
        let reply = self.run(&name, args).unwrap_or_else(Reply::Error);
        if self.dirty && self.effects.len() == before {
            self.effects.push(args.to_vec());
        }
        reply
    }

    /// Applies the commands of a master.
    pub(crate) fn replicate(&mut self, unit: &[Command]) {
        for command in unit {
            let name = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
            // The command succeeded at the master.
            let _ = self.run(&name, command);
        }
        self.effects.clear();
        self.published.clear();
    }

    fn run(&mut self, name: &str, args: &[Bytes]) -> Answer {
        let a = Args(args);
        match name {
            "PING" => Ok(Reply::Status("PONG")),
            "TIME" => {
                let (secs, micros) = (self.now_ms / 1_000, self.now_ms % 1_000 * 1_000);
                Ok(Reply::Array(vec![Reply::text(&secs.to_string()), Reply::text(&micros.to_string())]))
            }
            "INFO" => Ok(Reply::text(&self.info(args.get(1).map(|section| text(section))))),
            "PUBLISH" => {
                self.published.push((a.get(1)?.clone(), a.get(2)?.clone()));
                Ok(Reply::Int(0))
            }
            "EXISTS" => Ok(Reply::Int(args[1..].iter().filter(|key| self.value(key).is_some()).count() as i64)),
            "TYPE" => Ok(Reply::Status(match self.value(a.get(1)?) {
                None => "none",
                Some(Value::Text(_)) => "string",
                Some(Value::Hash(_)) => "hash",
                Some(Value::Set(_)) => "set",
                Some(Value::Sorted(_)) => "zset",
                Some(Value::Stream(_)) => "stream",
                Some(Value::List(_)) => "list",
            })),
            "DEL" | "UNLINK" => {
                let mut gone = 0;
                for key in &args[1..] {
                    self.drop_expired(key);
                    gone += i64::from(self.data.0.remove(key).is_some());
                }
                self.dirty = gone > 0;
                Ok(Reply::Int(gone))
            }
            "RENAME" => {
                let (from, to) = (a.get(1)?, a.get(2)?);
                self.drop_expired(from);
                let key = self.data.0.remove(from).ok_or("ERR no such key")?;
                self.data.0.insert(to.clone(), key);
                self.dirty = true;
                Ok(Reply::Status("OK"))
            }
            "FLUSHALL" => {
                self.data.0.clear();
                self.dirty = true;
                Ok(Reply::Status("OK"))
            }
            "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => self.expire(name, &a),
            "TTL" | "PTTL" => {
                self.drop_expired(a.get(1)?);
                let unit = if name == "TTL" { 1_000 } else { 1 };
                Ok(Reply::Int(match self.data.0.get(a.get(1)?) {
                    None => -2,
                    Some(Key { expires_ms: None, .. }) => -1,
                    Some(Key { expires_ms: Some(at), .. }) => (at.saturating_sub(self.now_ms) / unit) as i64,
                }))
            }
            "PERSIST" => {
                let held = self.data.0.get_mut(a.get(1)?);
                self.dirty = held.is_some_and(|key| key.expires_ms.take().is_some());
                Ok(Reply::Int(self.dirty.into()))
            }
            _ if name.starts_with('X') => self.stream_command(name, &a),
            _ if name.starts_with('H') => self.hash_command(name, &a),
            _ if name.starts_with('Z') => self.sorted_command(name, &a),
            "SADD" | "SREM" | "SCARD" | "SISMEMBER" | "SMEMBERS" | "SPOP" | "SUNIONSTORE" => self.set_command(name, &a),
            "RPUSH" | "LPUSH" | "LLEN" | "LRANGE" => self.list_command(name, &a),
            "SET" | "GET" | "INCR" | "INCRBY" => self.text_command(name, &a),
            _ => Err(format!("ERR unknown command '{name}', with args beginning with: ")),
        }
    }

    fn drop_expired(&mut self, key: &Bytes) {
        if self.data.0.get(key).is_some_and(|held| held.expires_ms.is_some_and(|at| at <= self.now_ms)) {
            self.data.0.remove(key);
        }
    }

    fn value(&mut self, key: &Bytes) -> Option<&Value> {
        self.drop_expired(key);
        self.data.0.get(key).map(|key| &*key.value)
    }

    /// The value of a key for a change; created with `make` if there is none.
    fn change(&mut self, key: &Bytes, make: impl FnOnce() -> Value) -> &mut Value {
        self.drop_expired(key);
        let held = self.data.0.entry(key.clone()).or_insert_with(|| Key { value: Rc::new(make()), expires_ms: None });
        Rc::make_mut(&mut held.value)
    }

    /// Removes a value that has become empty.
    fn tidy(&mut self, key: &Bytes) {
        if self.data.0.get(key).is_some_and(|key| key.value.is_empty()) {
            self.data.0.remove(key);
        }
    }

    fn expire(&mut self, name: &str, a: &Args<'_>) -> Answer {
        let key = a.get(1)?;
        let n = a.int(2)?;
        let ms = if name.starts_with('P') { n } else { n.saturating_mul(1_000) };
        let at = if name.ends_with("AT") { ms } else { ms.saturating_add(self.now_ms.cast_signed()) };
        self.drop_expired(key);
        let Some(held) = self.data.0.get_mut(key) else { return Ok(Reply::Int(0)) };
        if at <= self.now_ms.cast_signed() {
            self.data.0.remove(key);
            self.effects.push(vec![bytes("DEL"), key.clone()]);
        } else {
            held.expires_ms = Some(at.cast_unsigned());
            self.effects.push(vec![bytes("PEXPIREAT"), key.clone(), bytes(&at.to_string())]);
        }
        self.dirty = true;
        Ok(Reply::Int(1))
    }

    fn text_command(&mut self, name: &str, a: &Args<'_>) -> Answer {
        let key = a.get(1)?;
        match name {
            "GET" => match self.value(key) {
                None => Ok(Reply::Nil),
                Some(Value::Text(text)) => Ok(Reply::Bulk(text.clone())),
                Some(_) => Err(WRONG_TYPE.to_owned()),
            },
            "SET" => {
                let value = a.get(2)?.clone();
                let (mut expires_ms, mut only_new, mut only_held) = (None, false, false);
                let mut i = 3;
                while let Some(option) = a.0.get(i) {
                    match text(option).to_ascii_uppercase().as_str() {
                        "EX" => expires_ms = Some(self.now_ms + a.int(i + 1)?.cast_unsigned() * 1_000),
                        "PX" => expires_ms = Some(self.now_ms + a.int(i + 1)?.cast_unsigned()),
                        "PXAT" => expires_ms = Some(a.int(i + 1)?.cast_unsigned()),
                        "NX" => (only_new, i) = (true, i - 1),
                        "XX" => (only_held, i) = (true, i - 1),
                        _ => return Err(SYNTAX.to_owned()),
                    }
                    i += 2;
                }
                let held = self.value(key).is_some();
                if only_new && held || only_held && !held {
                    return Ok(Reply::Nil);
                }
                let mut effect = vec![bytes("SET"), key.clone(), value.clone()];
                if let Some(at) = expires_ms {
                    effect.extend([bytes("PXAT"), bytes(&at.to_string())]);
                }
                self.data.0.insert(key.clone(), Key { value: Rc::new(Value::Text(value)), expires_ms });
                self.effects.push(effect);
                self.dirty = true;
                Ok(Reply::Status("OK"))
            }
            _ => {
                let by = if name == "INCR" { 1 } else { a.int(2)? };
                let Value::Text(held) = self.change(key, || Value::Text(bytes("0"))) else {
                    return Err(WRONG_TYPE.to_owned());
                };
                let now = text(held).parse::<i64>().map_err(|_| NOT_AN_INTEGER)? + by;
                *held = bytes(&now.to_string());
                self.dirty = true;
                Ok(Reply::Int(now))
            }
        }
    }

    fn list_command(&mut self, name: &str, a: &Args<'_>) -> Answer {
        let key = a.get(1)?;
        if name.ends_with("PUSH") {
            let Value::List(list) = self.change(key, || Value::List(VecDeque::new())) else {
                return Err(WRONG_TYPE.to_owned());
            };
            for item in &a.0[2..] {
                if name == "RPUSH" { list.push_back(item.clone()) } else { list.push_front(item.clone()) }
            }
            let length = list.len();
            self.dirty = true;
            return Ok(Reply::Int(length as i64));
        }
        let list = match self.value(key) {
            None => &VecDeque::new(),
            Some(Value::List(list)) => list,
            Some(_) => return Err(WRONG_TYPE.to_owned()),
        };
        if name == "LLEN" {
            return Ok(Reply::Int(list.len() as i64));
        }
        let (first, last) = range(a.int(2)?, a.int(3)?, list.len());
        Ok(Reply::Array(list.iter().skip(first).take(last.saturating_sub(first)).cloned().map(Reply::Bulk).collect()))
    }

    fn set_command(&mut self, name: &str, a: &Args<'_>) -> Answer {
        let key = a.get(1)?;
        match name {
            "SADD" => {
                let Value::Set(set) = self.change(key, || Value::Set(BTreeSet::new())) else {
                    return Err(WRONG_TYPE.to_owned());
                };
                let added = a.0[2..].iter().filter(|member| set.insert((*member).clone())).count();
                self.dirty = added > 0;
                Ok(Reply::Int(added as i64))
            }
            "SREM" | "SPOP" => {
                let Some(Value::Set(held)) = self.value(key) else {
                    return if self.value(key).is_some() {
                        Err(WRONG_TYPE.to_owned())
                    } else if name == "SREM" {
                        Ok(Reply::Int(0))
                    } else if a.0.len() > 2 {
                        Ok(Reply::Array(Vec::new()))
                    } else {
                        Ok(Reply::Nil)
                    };
                };
                let gone: Vec<Bytes> = if name == "SREM" {
                    a.0[2..].iter().filter(|member| held.contains(*member)).cloned().collect()
                } else {
                    let mut members: Vec<Bytes> = held.iter().cloned().collect();
                    self.random.shuffle(&mut members);
                    let count = if a.0.len() > 2 { a.int(2)? } else { 1 };
                    members.truncate(usize::try_from(count).unwrap_or(0));
                    members
                };
                let Value::Set(set) = self.change(key, || Value::Set(BTreeSet::new())) else { unreachable!() };
                for member in &gone {
                    set.remove(member);
                }
                self.tidy(key);
                self.dirty = !gone.is_empty();
                if name == "SREM" {
                    return Ok(Reply::Int(gone.len() as i64));
                }
                if self.dirty {
                    self.effects.push([bytes("SREM"), key.clone()].into_iter().chain(gone.iter().cloned()).collect());
                }
                let mut gone = gone.into_iter().map(Reply::Bulk);
                Ok(if a.0.len() > 2 { Reply::Array(gone.collect()) } else { gone.next().unwrap_or(Reply::Nil) })
            }
            "SUNIONSTORE" => {
                let mut all = BTreeSet::new();
                for key in &a.0[2..] {
                    match self.value(key) {
                        None => {}
                        Some(Value::Set(set)) => all.extend(set.iter().cloned()),
                        Some(_) => return Err(WRONG_TYPE.to_owned()),
                    }
                }
                let count = all.len();
                let held = self.data.0.remove(key).is_some();
                if count > 0 {
                    self.data.0.insert(key.clone(), Key { value: Rc::new(Value::Set(all)), expires_ms: None });
                }
                self.dirty = held || count > 0;
                Ok(Reply::Int(count as i64))
            }
            _ => {
                let nothing = BTreeSet::new();
                let set = match self.value(key) {
                    None => &nothing,
                    Some(Value::Set(set)) => set,
                    Some(_) => return Err(WRONG_TYPE.to_owned()),
                };
                Ok(match name {
                    "SCARD" => Reply::Int(set.len() as i64),
                    "SISMEMBER" => Reply::Int(set.contains(a.get(2)?).into()),
                    _ => Reply::Array(set.iter().cloned().map(Reply::Bulk).collect()),
                })
            }
        }
    }

    fn hash_command(&mut self, name: &str, a: &Args<'_>) -> Answer {
        let key = a.get(1)?;
        match name {
            "HSET" | "HSETNX" => {
                if a.0.len() < 4 || !a.0.len().is_multiple_of(2) {
                    return Err(format!("ERR wrong number of arguments for '{}' command", name.to_lowercase()));
                }
                let Value::Hash(hash) = self.change(key, || Value::Hash(BTreeMap::new())) else {
                    return Err(WRONG_TYPE.to_owned());
                };
                if name == "HSETNX" && hash.contains_key(&a.0[2]) {
                    return Ok(Reply::Int(0));
                }
                let mut added = 0;
                for pair in a.0[2..].chunks_exact(2) {
                    added += i64::from(hash.insert(pair[0].clone(), pair[1].clone()).is_none());
                }
                self.dirty = true;
                Ok(Reply::Int(added))
            }
            "HINCRBY" => {
                let by = a.int(3)?;
                let Value::Hash(hash) = self.change(key, || Value::Hash(BTreeMap::new())) else {
                    return Err(WRONG_TYPE.to_owned());
                };
                let held = hash.get(&a.0[2]).map_or(Ok(0), |held| text(held).parse::<i64>());
                let now = held.map_err(|_| "ERR hash value is not an integer")? + by;
                hash.insert(a.0[2].clone(), bytes(&now.to_string()));
                self.dirty = true;
                Ok(Reply::Int(now))
            }
            "HDEL" => {
                match self.value(key) {
                    None => return Ok(Reply::Int(0)),
                    Some(Value::Hash(_)) => {}
                    Some(_) => return Err(WRONG_TYPE.to_owned()),
                }
                let Value::Hash(hash) = self.change(key, || Value::Hash(BTreeMap::new())) else { unreachable!() };
                let gone = a.0[2..].iter().filter(|field| hash.remove(*field).is_some()).count();
                self.tidy(key);
                self.dirty = gone > 0;
                Ok(Reply::Int(gone as i64))
            }
            _ => {
                let nothing = BTreeMap::new();
                let hash = match self.value(key) {
                    None => &nothing,
                    Some(Value::Hash(hash)) => hash,
                    Some(_) => return Err(WRONG_TYPE.to_owned()),
                };
                let field = |field: &Bytes| hash.get(field).cloned().map_or(Reply::Nil, Reply::Bulk);
                Ok(match name {
                    "HGET" => field(a.get(2)?),
                    "HMGET" => Reply::Array(a.0[2..].iter().map(field).collect()),
                    "HEXISTS" => Reply::Int(hash.contains_key(a.get(2)?).into()),
                    "HLEN" => Reply::Int(hash.len() as i64),
                    "HKEYS" => Reply::Array(hash.keys().cloned().map(Reply::Bulk).collect()),
                    "HGETALL" => Reply::Array(
                        hash.iter()
                            .flat_map(|(field, value)| [field.clone(), value.clone()])
                            .map(Reply::Bulk)
                            .collect(),
                    ),
                    _ => return Err(format!("ERR unknown command '{name}', with args beginning with: ")),
                })
            }
        }
    }

    fn sorted_command(&mut self, name: &str, a: &Args<'_>) -> Answer {
        let key = a.get(1)?;
        match name {
            "ZADD" => self.zadd(key, a),
            "ZREM" | "ZREMRANGEBYSCORE" => {
                let Some(held) = self.sorted(key)? else { return Ok(Reply::Int(0)) };
                let gone: Vec<Bytes> = if name == "ZREM" {
                    a.0[2..].iter().filter(|member| held.contains_key(*member)).cloned().collect()
                } else {
                    let (low, high) = (score_bound(a.get(2)?)?, score_bound(a.get(3)?)?);
                    held.iter().filter(|(_, s)| within(**s, low, high)).map(|(member, _)| member.clone()).collect()
                };
                let Value::Sorted(set) = self.change(key, || Value::Sorted(BTreeMap::new())) else { unreachable!() };
                for member in &gone {
                    set.remove(member);
                }
                self.tidy(key);
                self.dirty = !gone.is_empty();
                Ok(Reply::Int(gone.len() as i64))
            }
            _ => {
                let nothing = BTreeMap::new();
                let set = self.sorted(key)?.unwrap_or(&nothing);
                let mut all: Vec<(f64, &Bytes)> = set.iter().map(|(member, score)| (*score, member)).collect();
                all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
                let list = |chosen: &[(f64, &Bytes)], scores: bool| {
                    let pair = |(score, member): &(f64, &Bytes)| {
                        let score = scores.then(|| Reply::text(&number(*score)));
                        std::iter::once(Reply::Bulk((*member).clone())).chain(score)
                    };
                    Reply::Array(chosen.iter().flat_map(pair).collect())
                };
                let with_scores = a.0.iter().skip(4).any(|option| text(option).eq_ignore_ascii_case("WITHSCORES"));
                Ok(match name {
                    "ZCARD" => Reply::Int(all.len() as i64),
                    "ZSCORE" => set.get(a.get(2)?).map_or(Reply::Nil, |score| Reply::text(&number(*score))),
                    "ZCOUNT" => {
                        let (low, high) = (score_bound(a.get(2)?)?, score_bound(a.get(3)?)?);
                        Reply::Int(all.iter().filter(|(score, _)| within(*score, low, high)).count() as i64)
                    }
                    "ZRANGEBYSCORE" => {
                        let (low, high) = (score_bound(a.get(2)?)?, score_bound(a.get(3)?)?);
                        all.retain(|(score, _)| within(*score, low, high));
                        list(&all, with_scores)
                    }
                    "ZRANGE" => {
                        let (first, last) = range(a.int(2)?, a.int(3)?, all.len());
                        list(all.get(first..last).unwrap_or_default(), with_scores)
                    }
                    _ => return Err(format!("ERR unknown command '{name}', with args beginning with: ")),
                })
            }
        }
    }

    fn sorted(&mut self, key: &Bytes) -> Result<Option<&BTreeMap<Bytes, f64>>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Sorted(set)) => Ok(Some(set)),
            Some(_) => Err(WRONG_TYPE.to_owned()),
        }
    }

    fn zadd(&mut self, key: &Bytes, a: &Args<'_>) -> Answer {
        let (mut only_held, mut only_new, mut greater, mut lower, mut changed) = (false, false, false, false, false);
        let mut at = 2;
        while let Some(option) = a.0.get(at) {
            match text(option).to_ascii_uppercase().as_str() {
                "XX" => only_held = true,
                "NX" => only_new = true,
                "GT" => greater = true,
                "LT" => lower = true,
                "CH" => changed = true,
                _ => break,
            }
            at += 1;
        }
        let mut pairs = Vec::new();
        for pair in a.0[at..].chunks(2) {
            let [score, member] = pair else { return Err(SYNTAX.to_owned()) };
            let score: f64 = text(score).parse().map_err(|_| "ERR value is not a valid float")?;
            pairs.push((score, member.clone()));
        }
        self.sorted(key)?;
        let Value::Sorted(set) = self.change(key, || Value::Sorted(BTreeMap::new())) else { unreachable!() };
        let (mut added, mut updated) = (0, 0);
        for (score, member) in pairs {
            match set.get_mut(&member) {
                Some(held) => {
                    let moves = !only_new && (!greater || score > *held) && (!lower || score < *held);
                    if moves && score != *held {
                        *held = score;
                        updated += 1;
                    }
                }
                None if only_held => {}
                None => {
                    set.insert(member, score);
                    added += 1;
                }
            }
        }
        self.tidy(key);
        self.dirty = added + updated > 0;
        Ok(Reply::Int(if changed { added + updated } else { added }))
    }

    fn stream_command(&mut self, name: &str, a: &Args<'_>) -> Answer {
        if name == "XREAD" {
            return self.xread(a);
        }
        let key = a.get(1)?;
        match name {
            "XADD" => self.xadd(key, a),
            "XLEN" => Ok(Reply::Int(self.stream(key)?.map_or(0, |stream| stream.entries.len()) as i64)),
            "XRANGE" | "XREVRANGE" => {
                let backwards = name == "XREVRANGE";
                let (low, high) = if backwards { (a.get(3)?, a.get(2)?) } else { (a.get(2)?, a.get(3)?) };
                let (low, high) = (stream_bound(low, false)?, stream_bound(high, true)?);
                let count = match a.0.get(4) {
                    Some(option) if text(option).eq_ignore_ascii_case("COUNT") => a.int(5)?,
                    Some(_) => return Err(SYNTAX.to_owned()),
                    None => i64::MAX,
                };
                let count = usize::try_from(count).unwrap_or(0);
                let Some(stream) = self.stream(key)? else { return Ok(Reply::Array(Vec::new())) };
                if is_empty_range(low, high) {
                    return Ok(Reply::Array(Vec::new()));
                }
                let range = stream.entries.range((low, high));
                Ok(Reply::Array(if backwards {
                    range.rev().take(count).map(entry).collect()
                } else {
                    range.take(count).map(entry).collect()
                }))
            }
            "XTRIM" => {
                let (strategy, mut at) = (text(a.get(2)?).to_ascii_uppercase(), 3);
                let about = text(a.get(at)?) == "~";
                at += usize::from(about || text(a.get(at)?) == "=");
                if strategy != "MAXLEN" {
                    return Err(SYNTAX.to_owned());
                }
                let most = usize::try_from(a.int(at)?).map_err(|_| "ERR The MAXLEN argument must be >= 0.")?;
                if self.stream(key)?.is_none() {
                    return Ok(Reply::Int(0));
                }
                let gone = self.held_stream(key).trim(most, about);
                self.dirty = gone > 0;
                Ok(Reply::Int(gone as i64))
            }
            "XDEL" => {
                if self.stream(key)?.is_none() {
                    return Ok(Reply::Int(0));
                }
                let ids = a.0[2..].iter().map(|id| stream_id(id, 0)).collect::<Result<Vec<_>, _>>()?;
                let stream = self.held_stream(key);
                let mut gone = 0;
                for id in ids {
                    if stream.entries.remove(&id).is_some() {
                        stream.max_deleted = stream.max_deleted.max(id);
                        gone += 1;
                    }
                }
                self.dirty = gone > 0;
                Ok(Reply::Int(gone))
            }
            "XSETID" => {
                let id = stream_id(a.get(2)?, 0)?;
                let newer = self.facts.version >= (7, 2);
                if self.stream(key)?.is_none() {
                    return Err("ERR no such key".to_owned());
                }
                let stream = self.held_stream(key);
                let top = stream.entries.last_key_value().map(|(id, _)| *id);
                if newer && id < stream.max_deleted {
                    return Err(
                        "ERR The ID specified in XSETID is smaller than current max_deleted_entry_id".to_owned()
                    );
                }
                if top.is_some_and(|top| id < top) {
                    return Err("ERR The ID specified in XSETID is smaller than the target stream top item".to_owned());
                }
                stream.last = id;
                self.dirty = true;
                Ok(Reply::Status("OK"))
            }
            _ => Err(format!("ERR unknown command '{name}', with args beginning with: ")),
        }
    }

    fn stream(&mut self, key: &Bytes) -> Result<Option<&Stream>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Stream(stream)) => Ok(Some(stream)),
            Some(_) => Err(WRONG_TYPE.to_owned()),
        }
    }

    /// The stream of a key that is known to hold one.
    fn held_stream(&mut self, key: &Bytes) -> &mut Stream {
        match self.change(key, || Value::Stream(Stream::default())) {
            Value::Stream(stream) => stream,
            _ => unreachable!("the type was checked before"),
        }
    }

    fn xadd(&mut self, key: &Bytes, a: &Args<'_>) -> Answer {
        let (mut at, mut most, mut about, mut make) = (2, None, false, true);
        loop {
            match text(a.get(at)?).to_ascii_uppercase().as_str() {
                "NOMKSTREAM" => (make, at) = (false, at + 1),
                "MAXLEN" => {
                    at += 1;
                    about = text(a.get(at)?) == "~";
                    at += usize::from(about || text(a.get(at)?) == "=");
                    most = Some(usize::try_from(a.int(at)?).map_err(|_| "ERR The MAXLEN argument must be >= 0.")?);
                    at += 1;
                }
                _ => break,
            }
        }
        let (id_at, fields) = (at, &a.0[at + 1..]);
        if fields.is_empty() || fields.len() % 2 == 1 {
            return Err("ERR wrong number of arguments for 'xadd' command".to_owned());
        }
        let asked = text(&a.0[id_at]).to_owned();
        let wanted = if asked == "*" { None } else { Some(stream_id(&a.0[id_at], 0)?) };
        if wanted == Some((0, 0)) {
            return Err("ERR The ID specified in XADD must be greater than 0-0".to_owned());
        }
        let last = self.stream(key)?.map(|stream| stream.last);
        if last.is_none() && !make {
            return Ok(Reply::Nil);
        }
        let last = last.unwrap_or_default();
        if last == (u64::MAX, u64::MAX) {
            return Err("ERR The stream has exhausted the last possible ID, unable to add more items".to_owned());
        }
        let id = match wanted {
            Some(id) => id,
            None if self.now_ms > last.0 => (self.now_ms, 0),
            None if last.1 == u64::MAX => (last.0 + 1, 0),
            None => (last.0, last.1 + 1),
        };
        if id <= last {
            return Err("ERR The ID specified in XADD is equal or smaller than the target stream top item".to_owned());
        }
        let stream = self.held_stream(key);
        stream.entries.insert(id, fields.into());
        stream.last = id;
        if let Some(most) = most {
            stream.trim(most, about);
        }
        let name = bytes(&format!("{}-{}", id.0, id.1));
        let mut effect = a.0.to_vec();
        effect[id_at] = name.clone();
        self.effects.push(effect);
        self.dirty = true;
        Ok(Reply::Bulk(name))
    }

    fn xread(&mut self, a: &Args<'_>) -> Answer {
        let (at, count, _) = xread_options(a.0)?;
        let streams = (a.0.len() - at) / 2;
        let mut found = Vec::new();
        for i in 0..streams {
            let key = &a.0[at + i];
            let Some(stream) = self.stream(key)? else { continue };
            let from = &a.0[at + streams + i];
            let from = if text(from) == "$" { stream.last } else { stream_id(from, 0)? };
            let behind = stream.entries.range((Bound::Excluded(from), Bound::Unbounded));
            let entries: Vec<Reply> = behind.take(count).map(entry).collect();
            if !entries.is_empty() {
                found.push(Reply::Array(vec![Reply::Bulk(key.clone()), Reply::Array(entries)]));
            }
        }
        Ok(if found.is_empty() { Reply::NilArray } else { Reply::Array(found) })
    }

    fn info(&self, section: Option<&str>) -> String {
        let Facts { run_id, version, replica, master, replid, replid2, offset, second_offset, aof, .. } = &self.facts;
        let section = section.map(str::to_ascii_lowercase);
        let wanted = |name: &str| section.as_deref().is_none_or(|section| section == name || section == "all");
        let mut out = String::new();
        if wanted("server") {
            out += &format!(
                "# Server\r\nredis_version:{}.{}.0\r\nredis_mode:standalone\r\nrun_id:{run_id}\r\ntcp_port:6379\r\n\
                 uptime_in_seconds:{}\r\n\r\n",
                version.0,
                version.1,
                self.facts.uptime_ms / 1_000
            );
        }
        if wanted("memory") {
            out += "# Memory\r\nused_memory:1000000\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n\r\n";
        }
        if wanted("persistence") {
            out += &format!("# Persistence\r\nloading:0\r\naof_enabled:{}\r\n\r\n", u8::from(*aof));
        }
        if wanted("replication") {
            out += &format!("# Replication\r\nrole:{}\r\n", if *replica { "slave" } else { "master" });
            if *replica {
                out += &format!(
                    "master_host:{}\r\nmaster_port:{}\r\nmaster_link_status:{}\r\n",
                    master.0,
                    master.1,
                    if self.facts.link_up { "up" } else { "down" }
                );
            }
            out += &format!(
                "connected_slaves:{}\r\nmaster_failover_state:no-failover\r\nmaster_replid:{replid}\r\n\
                 master_replid2:{replid2}\r\nmaster_repl_offset:{offset}\r\nsecond_repl_offset:{second_offset}\r\n\r\n",
                self.facts.replicas
            );
        }
        out
    }
}

impl Stream {
    /// Removes the oldest entries beyond `most`. `about`: only whole nodes of the tree, which hold 100 entries.
    fn trim(&mut self, most: usize, about: bool) -> usize {
        let mut surplus = self.entries.len().saturating_sub(most);
        if about {
            surplus -= surplus % 100;
        }
        for _ in 0..surplus {
            self.entries.pop_first();
        }
        surplus
    }
}

/// The options of an `XREAD`: the index of the first key, the number of entries for each, and the timeout in
/// milliseconds.
pub(crate) fn xread_options(args: &[Bytes]) -> Result<(usize, usize, Option<u64>), String> {
    let a = Args(args);
    let (mut at, mut count, mut block) = (1, usize::MAX, None);
    loop {
        match text(a.get(at)?).to_ascii_uppercase().as_str() {
            "COUNT" => count = usize::try_from(a.int(at + 1)?).unwrap_or(usize::MAX),
            "BLOCK" => block = Some(u64::try_from(a.int(at + 1)?).map_err(|_| "ERR timeout is negative")?),
            "STREAMS" => return Ok((at + 1, count, block)),
            _ => return Err(SYNTAX.to_owned()),
        }
        at += 2;
    }
}

struct Args<'a>(&'a [Bytes]);

impl Args<'_> {
    fn get(&self, at: usize) -> Result<&Bytes, String> {
        self.0.get(at).ok_or_else(|| {
            let name = self.0.first().map(|name| text(name).to_lowercase()).unwrap_or_default();
            format!("ERR wrong number of arguments for '{name}' command")
        })
    }

    fn int(&self, at: usize) -> Result<i64, String> {
        text(self.get(at)?).parse().map_err(|_| NOT_AN_INTEGER.to_owned())
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    text.as_bytes().into()
}

/// The bytes as text; empty if they are not UTF-8, which no number and no option is.
pub(crate) fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

/// A score in Redis' format.
fn number(score: f64) -> String {
    if score.fract() == 0.0 && score.abs() < 1e17 { format!("{score:.0}") } else { score.to_string() }
}

#[derive(Clone, Copy)]
struct Score {
    at: f64,
    excluded: bool,
}

fn score_bound(text_of: &Bytes) -> Result<Score, String> {
    let shown = text(text_of);
    let (shown, excluded) = shown.strip_prefix('(').map_or((shown, false), |rest| (rest, true));
    let at = match shown {
        "-inf" => f64::NEG_INFINITY,
        "+inf" | "inf" => f64::INFINITY,
        shown => shown.parse().map_err(|_| "ERR min or max is not a float")?,
    };
    Ok(Score { at, excluded })
}

fn within(score: f64, low: Score, high: Score) -> bool {
    let above = if low.excluded { score > low.at } else { score >= low.at };
    let below = if high.excluded { score < high.at } else { score <= high.at };
    above && below
}

/// A range of indexes that may count from the end, as its first index and the one after its last.
fn range(first: i64, last: i64, length: usize) -> (usize, usize) {
    let length = length.cast_signed() as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let (first, last) = (place(first), if last < 0 { last + length } else { last.min(length - 1) });
    if last < first { (0, 0) } else { (first as usize, (last + 1) as usize) }
}

fn stream_id(text_of: &Bytes, missing: u64) -> Result<Id, String> {
    let shown = text(text_of);
    let (ms, n) = match shown.split_once('-') {
        Some((ms, n)) => (ms, n.parse().map_err(|_| BAD_ID)?),
        None => (shown, missing),
    };
    Ok((ms.parse().map_err(|_| BAD_ID)?, n))
}

fn stream_bound(text_of: &Bytes, high: bool) -> Result<Bound<Id>, String> {
    let missing = if high { u64::MAX } else { 0 };
    match text(text_of) {
        "-" => Ok(Bound::Included((0, 0))),
        "+" => Ok(Bound::Included((u64::MAX, u64::MAX))),
        shown => match shown.strip_prefix('(') {
            Some(rest) => Ok(Bound::Excluded(stream_id(&bytes(rest), missing)?)),
            None => Ok(Bound::Included(stream_id(text_of, missing)?)),
        },
    }
}

fn is_empty_range(low: Bound<Id>, high: Bound<Id>) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}

fn entry((id, fields): (&Id, &Rc<[Bytes]>)) -> Reply {
    let fields = Reply::Array(fields.iter().cloned().map(Reply::Bulk).collect());
    Reply::Array(vec![Reply::text(&format!("{}-{}", id.0, id.1)), fields])
}
