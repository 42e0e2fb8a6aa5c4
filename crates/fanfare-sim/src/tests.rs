//! The model responds as Redis does, and a seed determines a run.

use crate::{
    plan::{Case, Plan, Size},
    run,
    server::{Done, Persistence, Server},
    store::Facts,
};
use clap::ValueEnum;
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{SystemTime, UNIX_EPOCH},
};
use testbed::RedisServer;

const APPEND: &str = concat!(
    include_str!("../../fanfare-log/src/redis/scripts/put.lua"),
    "\n",
    include_str!("../../fanfare-log/src/redis/scripts/append.lua")
);
const REMOVE: &str = concat!(
    include_str!("../../fanfare-log/src/redis/scripts/put.lua"),
    "\n",
    include_str!("../../fanfare-log/src/redis/scripts/remove.lua")
);

fn model(version: (u32, u32)) -> Server {
    let facts = Facts {
        run_id: "r".to_owned(),
        version,
        replica: false,
        master: (String::new(), 0),
        link_up: true,
        replid: "a".to_owned(),
        replid2: "b".to_owned(),
        offset: 0,
        second_offset: -1,
        replicas: 0,
        aof: false,
        uptime_ms: 0,
        refuses_writes: None,
    };
    let mut server = Server::new(facts, Persistence::None, fastrand::Rng::with_seed(1));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    server.store.now_ms = u64::try_from(now.as_millis()).unwrap();
    server.accept(1);
    server
}

fn resp(command: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        out.extend_from_slice(format!("${}\r\n{part}\r\n", part.len()).as_bytes());
    }
    out
}

/// A reply as text, without what differs between any two servers: times, and the place of an error in a script.
fn read_reply(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let line = line.trim_end();
    let (kind, rest) = line.split_at(1);
    match kind {
        "$" if rest != "-1" => {
            let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
            from.read_exact(&mut bytes).unwrap();
            without_time(&String::from_utf8_lossy(&bytes[..bytes.len() - 2]))
        }
        "*" if rest != "-1" => {
            let items: Vec<String> = (0..rest.parse().unwrap()).map(|_| read_reply(from)).collect();
            format!("[{}]", items.join(" "))
        }
        "-" => line.split(" script: ").next().unwrap_or_default().to_owned(),
        _ => without_time(line),
    }
}

fn without_time(text: &str) -> String {
    let digits = text.trim_start_matches(':');
    let is_time = digits.len() == 13 && digits.starts_with('1') && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_time { "TIME".to_owned() } else { text.to_owned() }
}

/// A field of `INFO`.
fn info(stream: &mut TcpStream, section: &str, field: &str) -> String {
    stream.write_all(&resp(&["INFO", section])).unwrap();
    let info = read_reply(&mut BufReader::new(stream));
    info.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}

fn version_of(stream: &mut TcpStream) -> (u32, u32) {
    let version = info(stream, "server", "redis_version:");
    let mut parts = version.split('.').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

#[test]
fn the_model_responds_as_redis() {
    let redis = RedisServer::start();
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    let mut server = model(version_of(&mut stream));
    // The scripts compare the replication ID.
    server.store.facts.replid = info(&mut stream, "replication", "master_replid:");
    let (name, member) = (format!("s:{}", server.store.facts.replid), "1 1 0 - i");
    let mut from_redis = BufReader::new(stream.try_clone().unwrap());
    let append = |id: &'static str| {
        let keys = ["6", "log", "epoch", "ids", "members", "ids:1", "ids:2"];
        // The log remembers few IDs, so that their generations are replaced.
        let bounds = [&*name, "e", "n", "0", "3", "100000", "100000", "0", "4", "100000"];
        [&["EVAL", APPEND][..], &keys, &bounds, &[id, "*", "{}", "", ""]].concat()
    };
    let commands: Vec<Vec<&str>> = vec![
        vec!["XADD", "x", "0-1", "a", "1"],
        vec!["XADD", "x", "0-1", "a", "1"],
        vec!["XADD", "x", "0-0", "a", "1"],
        vec!["XADD", "x", "0-5", "a", "5", "b", "6"],
        vec!["XADD", "x", "0-6", "a"],
        vec!["XADD", "x", "nonsense", "a", "1"],
        vec!["XRANGE", "x", "-", "+"],
        vec!["XRANGE", "x", "(0-1", "+"],
        vec!["XRANGE", "x", "0-2", "0-1"],
        vec!["XRANGE", "x", "-", "+", "COUNT", "1"],
        vec!["XREVRANGE", "x", "+", "-", "COUNT", "1"],
        vec!["XREVRANGE", "x", "0-4", "0-1", "COUNT", "1"],
        vec!["XLEN", "x"],
        vec!["XREAD", "COUNT", "1", "STREAMS", "x", "0-1"],
        vec!["XREAD", "STREAMS", "x", "none", "0-5", "0-0"],
        vec!["XSETID", "x", "0-3"],
        vec!["XDEL", "x", "0-5", "0-9"],
        vec!["XSETID", "x", "0-3"],
        vec!["XSETID", "x", "0-1"],
        vec!["XSETID", "nothing", "0-1"],
        vec!["XADD", "x", "0-4", "a", "4"],
        vec!["XADD", "x", "0-9", "a", "9"],
        vec!["XTRIM", "x", "MAXLEN", "1"],
        vec!["XRANGE", "x", "-", "+"],
        vec!["XDEL", "x", "0-9"],
        vec!["EXISTS", "x"],
        vec!["XADD", "end", "18446744073709551615-18446744073709551615", "a", "1"],
        vec!["XADD", "end", "*", "a", "1"],
        vec!["HSET", "h", "a", "1", "b", "2"],
        vec!["HSET", "h", "a"],
        vec!["HMGET", "h", "a", "c", "b"],
        vec!["HGET", "h", "c"],
        vec!["HEXISTS", "h", "a"],
        vec!["HDEL", "h", "a", "b"],
        vec!["EXISTS", "h"],
        vec!["TYPE", "x"],
        vec!["TYPE", "h"],
        vec!["ZADD", "z", "1", "a", "2", "b", "2.5", "c"],
        vec!["ZADD", "z", "GT", "CH", "1", "b", "9", "a"],
        vec!["ZADD", "z", "XX", "7", "new"],
        vec!["ZRANGE", "z", "0", "-1", "WITHSCORES"],
        vec!["ZRANGEBYSCORE", "z", "(2", "+inf"],
        vec!["ZREMRANGEBYSCORE", "z", "-inf", "(2.5"],
        vec!["ZSCORE", "z", "c"],
        vec!["ZSCORE", "z", "b"],
        vec!["ZCOUNT", "z", "0", "+inf"],
        vec!["ZREM", "z", "a", "c", "d"],
        vec!["TYPE", "z"],
        vec!["SADD", "s", "a", "b", "a"],
        vec!["SCARD", "s"],
        vec!["SISMEMBER", "s", "c"],
        vec!["SREM", "s", "a"],
        vec!["SMEMBERS", "s"],
        vec!["SUNIONSTORE", "t", "s", "t"],
        vec!["SPOP", "t", "5"],
        vec!["SPOP", "t", "5"],
        vec!["SPOP", "t"],
        vec!["RPUSH", "l", "a", "b", "c"],
        vec!["LRANGE", "l", "0", "-1"],
        vec!["LRANGE", "l", "-2", "1"],
        vec!["LLEN", "l"],
        vec!["HGET", "l", "a"],
        vec!["XADD", "l", "0-1", "a", "1"],
        vec!["SADD", "l", "a"],
        vec!["SET", "text", "a", "EX", "100"],
        vec!["GET", "text"],
        vec!["TTL", "text"],
        vec!["EXPIRE", "text", "0"],
        vec!["EXISTS", "text"],
        vec!["EXPIRE", "nothing", "1"],
        vec!["DEL", "l", "nothing"],
        vec!["NONSENSE"],
        vec!["EVALSHA", "0123456789012345678901234567890123456789", "0"],
        vec!["EVAL", "return {1, 'a', false, nil, 2}", "0"],
        vec!["EVAL", "return 3.9", "0"],
        vec!["EVAL", "return redis.call('HGET', 's', 'a')", "0"],
        vec!["EVAL", "return redis.pcall('HGET', 's', 'a').err", "0"],
        vec!["EVAL", "return redis.error_reply('FENCED no')", "0"],
        vec!["EVAL", "return redis.call('HSET', KEYS[1], 'n', 12)", "1", "h"],
        vec!["HGET", "h", "n"],
        vec!["EVAL", "return redis.call('XRANGE', 'x', '-', '+')", "0"],
        // The scripts themselves: a server that is not confirmed, appends, a repeated ID, trimming.
        append("e0"),
        vec!["HSET", "epoch", "server", &name, "epoch", "e", "head", "0", "bytes", "0"],
        append("e0"),
        vec!["HSET", "members", "n", member],
        append("e1"),
        append("e2"),
        append("e1"),
        append("e3"),
        append("e4"),
        append("e5"),
        vec!["HMGET", "epoch", "head", "bytes"],
        vec!["XLEN", "log"],
        // An entry of another writer after the head.
        vec!["XADD", "log", "0-7", "i", "foreign"],
        append("e6"),
        append("e7"),
        vec!["XADD", "log", "5-5", "i", "foreign"],
        append("e8"),
        vec!["XADD", "log", "6-6", "i", "foreign"],
        vec!["EVAL", REMOVE, "3", "log", "epoch", "ids", &name, "e", "3"],
        append("e9"),
        vec!["HMGET", "epoch", "head", "bytes"],
        vec!["XRANGE", "log", "-", "+"],
        vec!["HMGET", "ids", "e1", "e6", "e9"],
        vec!["HMGET", "ids:1", "e1", "e7", "e8"],
        append("e7"),
        vec!["HLEN", "ids:2"],
        vec!["RENAME", "ids:2", "ids"],
        vec!["HLEN", "ids"],
        vec!["RENAME", "nothing", "ids"],
    ];
    for command in commands {
        let bytes = resp(&command);
        stream.write_all(&bytes).unwrap();
        let wanted = read_reply(&mut from_redis);
        let mut done = Done::default();
        server.feed(1, &bytes, &mut done);
        let given: Vec<u8> = done.answers.into_iter().flat_map(|(_, answer)| answer).collect();
        let shown: Vec<&str> = command.iter().map(|part| part.lines().last().unwrap_or_default()).collect();
        assert_eq!(read_reply(&mut &given[..]), wanted, "{shown:?}");
    }
}

#[test]
fn a_seed_determines_a_run() {
    let plan = || Plan::new(5, Size { faults: 1, clients: 2 });
    let (first, second) = (run(plan(), false), run(plan(), false));
    assert!(first.deliveries > 100 && first.acknowledged > 100);
    assert_eq!((first.trace, first.deliveries), (second.trace, second.deliveries));
}

/// The named schedules: an earlier version of the hub failed in each.
#[test]
fn no_named_schedule_violates_a_rule() {
    for case in Case::value_variants() {
        // An earlier version did not fail with every seed of a case.
        let (clients, seeds) = match case {
            Case::Waver => (3, [16, 22]),
            Case::NamedAgain => (1, [1, 369]),
            Case::OrderlyEnd => (5, [1, 2]),
            _ => (1, [1, 2]),
        };
        for seed in seeds {
            let outcome = run(Plan::case(*case, seed, clients), false);
            assert_eq!(outcome.violations, Vec::<String>::new(), "{case:?}, seed {seed}");
            assert!(outcome.acknowledged > 100);
            assert!(
                *case != Case::FreshNode || outcome.restored > 0,
                "the node that keeps running restores its events"
            );
        }
    }
}
