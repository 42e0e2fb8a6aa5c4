//! Tests of the test bed: its servers respond, restart with their data, and leave no process behind.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use testbed::{Cluster, RedisServer, Relay, Sentinels, Ways, until};

#[test]
fn a_persistent_server_keeps_its_data_after_a_crash() {
    let mut server = RedisServer::setup().persistent().password("hush").start();
    assert_eq!(server.cli(&["SET", "a", "1"]), "OK");
    server.kill();
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    server.restart();
    assert_eq!(server.cli(&["GET", "a"]), "1");
    server.kill();
    server.forget();
    server.restart();
    assert_eq!(server.cli(&["GET", "a"]), "");
}

#[test]
fn a_server_ends_when_its_value_is_dropped_even_if_it_is_stopped() {
    let server = RedisServer::start();
    let port = server.port();
    server.stop();
    drop(server);
    until("the port is closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_server_accepts_tls() {
    let server = RedisServer::setup().tls().start();
    assert_eq!(server.cli(&["PING"]), "PONG");
    assert!(server.url().starts_with("rediss://localhost:"));
}

#[test]
fn sentinels_replace_a_killed_master() {
    let mut sentinels = Sentinels::start();
    let port = sentinels.master().port();
    assert_eq!(sentinels.master().cli(&["SET", "a", "1"]), "OK");
    sentinels.master().kill();
    sentinels.until_master_is_not(port);
    let old = sentinels.servers().iter_mut().find(|server| server.port() == port).expect("the old master");
    old.restart();
    sentinels.until_settled();
    assert_eq!(sentinels.master().cli(&["GET", "a"]), "1");
}

#[test]
fn a_cluster_moves_a_key_to_a_replica() {
    let mut cluster = Cluster::start();
    let before = cluster.owner("{ws}:log").port();
    cluster.failover("{ws}:log");
    let after = cluster.owner("{ws}:log").port();
    assert_ne!(before, after);
    cluster.until_settled();
    cluster.node(after).kill();
    cluster.until_owner_is_not("{ws}:log", after);
    cluster.node(after).restart();
    cluster.until_settled();
    for n in 0..3 {
        assert_eq!(cluster.owner("{ws}:log").cli(&["SET", &format!("{{ws}}:{n}"), "x"]), "OK");
    }
    let (before, mut keys) = (cluster.owner("{ws}:log").port(), 0);
    cluster.migrate("{ws}:log", || keys += 1);
    let after = cluster.owner("{ws}:log");
    assert_ne!(before, after.port());
    assert_eq!((keys, &*after.cli(&["GET", "{ws}:2"])), (3, "x"));
}

/// Whether a server responds within half a second.
fn answers(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    stream.write_all(b"PING\r\n").expect("a connection");
    matches!(stream.read(&mut [0; 64]), Ok(read) if read > 0)
}

#[test]
fn a_relay_cuts_restores_and_limits_a_link() {
    let server = RedisServer::start();
    let relay = Relay::to(server.port());
    let connect = || TcpStream::connect(("127.0.0.1", relay.port())).unwrap();
    let mut early = connect();
    assert!(answers(&mut early));
    relay.cut();
    let mut late = connect();
    assert!(!answers(&mut early) && !answers(&mut late), "a cut link is silent");
    relay.restore();
    relay.cut_all_but(&[std::process::id()]);
    assert!(answers(&mut early) && answers(&mut late), "the data arrives after the cut");
    relay.cut_all_but(&[1]);
    // Responses to commands sent while the link was cut may still arrive on the other connections.
    let mut last = connect();
    assert!(!answers(&mut last));
    relay.restore();
    assert!(answers(&mut last));
    relay.reset();
    early.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Responses that were not read yet come before the end.
    let ended = early.read_to_end(&mut Vec::new());
    let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    assert!(ended.as_ref().err().is_none_or(reset), "a reset closes connections: {ended:?}");

    server.cli(&["SET", "a", &"x".repeat(100_000)]);
    relay.limit(100_000);
    let (mut slow, begun) = (connect(), Instant::now());
    slow.write_all(b"GET a\r\n").unwrap();
    slow.read_exact(&mut [0; 100_000]).unwrap();
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
}

#[test]
fn a_relay_cuts_one_direction_of_one_process() {
    let server = RedisServer::start();
    let relay = Relay::to(server.port());
    let mut own = TcpStream::connect(("127.0.0.1", relay.port())).unwrap();
    let calls = || server.cli(&["INFO", "commandstats"]).matches("cmdstat_ping:calls=").count();
    assert!(answers(&mut own));
    server.cli(&["CONFIG", "RESETSTAT"]);
    let other = relay.cut_for(&[1], Ways::Both);
    assert!(answers(&mut own), "another process is cut off");
    let back = relay.cut_for(&[std::process::id()], Ways::Back);
    server.cli(&["CONFIG", "RESETSTAT"]);
    assert!(!answers(&mut own));
    assert_eq!(calls(), 1, "the command arrives, the response does not");
    relay.lift(back);
    assert!(answers(&mut own), "the response arrives after the cut");
    let there = relay.cut_for(&[std::process::id()], Ways::There);
    server.cli(&["CONFIG", "RESETSTAT"]);
    let mut new = TcpStream::connect(("127.0.0.1", relay.port())).unwrap();
    assert!(!answers(&mut new));
    assert_eq!(calls(), 0, "the command does not arrive");
    relay.lift(there);
    relay.lift(other);
    assert!(answers(&mut new));
}

#[test]
fn a_server_restarts_from_a_copy_of_its_files() {
    let mut server = RedisServer::setup().persistent().start();
    server.cli(&["SET", "a", "1"]);
    let files = server.files();
    server.cli(&["SET", "a", "2"]);
    server.kill();
    server.restart_with(&files);
    assert_eq!(server.cli(&["GET", "a"]), "1");
}

#[test]
fn a_server_restarts_from_a_snapshot() {
    let mut server = RedisServer::start();
    server.cli(&["SET", "a", "1"]);
    let snapshot = server.snapshot();
    server.cli(&["SET", "a", "2"]);
    server.kill();
    server.restart_from(&snapshot);
    assert_eq!(server.cli(&["GET", "a"]), "1");
}
