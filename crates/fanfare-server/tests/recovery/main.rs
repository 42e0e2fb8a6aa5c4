//! Two faults in close succession. Whatever happens to hubs and Redis, every client of every surviving hub receives
//! each acknowledged event or a `gap`.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

mod harness;

use harness::{Client, Publisher, Received, conclude, launch, start};
use nix::sys::signal::Signal;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use testbed::{Cluster, HubProcess, RedisServer, Relay, Sentinels, until};

#[test]
fn an_event_acknowledged_by_a_killed_node_is_a_gap_if_redis_returns_empty() {
    let mut redis = RedisServer::start();
    let (mut a, b) = (start(&redis.url(), &[]), start(&redis.url(), &[]));
    let (client, mut publisher) = (Client::connect(&b, "ann"), Publisher::default());
    publisher.publish(&a, "a", 6);
    client.await_event("a-6");
    b.signal(Signal::SIGSTOP);
    publisher.publish(&a, "a", 10);
    a.kill();
    redis.restart();
    b.signal(Signal::SIGCONT);
    conclude(&mut publisher, &[&b], &[&client]);
}

#[test]
fn an_event_acknowledged_by_a_paused_node_reaches_all_clients_if_redis_returns_empty() {
    let mut redis = RedisServer::start();
    let (a, b) = (start(&redis.url(), &[]), start(&redis.url(), &[]));
    let (ann, bob, mut publisher) = (Client::connect(&a, "ann"), Client::connect(&b, "bob"), Publisher::default());
    publisher.publish(&a, "a", 6);
    bob.await_event("a-6");
    b.signal(Signal::SIGSTOP);
    publisher.publish(&a, "a", 10);
    a.signal(Signal::SIGSTOP);
    redis.restart();
    b.signal(Signal::SIGCONT);
    // Time for the other node to continue alone, if it does not wait for this one.
    thread::sleep(Duration::from_millis(1_500));
    a.signal(Signal::SIGCONT);
    conclude(&mut publisher, &[&a, &b], &[&ann, &bob]);
}

#[test]
fn events_acknowledged_between_two_failovers_reach_all_clients() {
    let mut servers = [RedisServer::start(), RedisServer::start()];
    let ports = servers.each_ref().map(RedisServer::port);
    let follow = |server: &RedisServer, port: u16| {
        assert_eq!(server.cli(&["REPLICAOF", "127.0.0.1", &port.to_string()]), "OK");
        until("the replica is in sync", || server.cli(&["INFO", "replication"]).contains("master_link_status:up"));
    };
    let promote = |server: &RedisServer| assert_eq!(server.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    for server in &servers {
        server.cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    }
    follow(&servers[1], ports[0]);
    let (a, b) = (start(&servers[0].url(), &[]), start(&servers[0].url(), &[]));
    let (ann, bob, mut publisher) = (Client::connect(&a, "ann"), Client::connect(&b, "bob"), Publisher::default());
    publisher.publish(&a, "a", 5);
    until("the replica has the events", || servers[1].cli(&["XLEN", "ws:log"]) == "5");
    // Only the first server has the events published from here on.
    promote(&servers[1]);
    publisher.publish(&a, "a", 5);
    for client in [&ann, &bob] {
        client.await_event("a-10");
    }
    follow(&servers[0], ports[1]);
    until("the hubs detect the failover", || !a.is_ready() && !b.is_ready());
    promote(&servers[0]);
    for _ in 0..5 {
        publisher.publish_surely(&b, "b");
    }
    servers[1].kill();
    conclude(&mut publisher, &[&a, &b], &[&ann, &bob]);
}

#[test]
fn a_node_without_sentinels_stops_acknowledging_at_a_deposed_master() {
    let mut sentinels = Sentinels::start_with_relay();
    let relays: Vec<Relay> = sentinels.ports().into_iter().map(Relay::to).collect();
    let ports: Vec<u16> = relays.iter().map(Relay::port).collect();
    let (a, b) = (start(&sentinels.url_at(&ports), &[]), start(&sentinels.url(), &[]));
    let (ann, bob, mut publisher) = (Client::connect(&a, "ann"), Client::connect(&b, "bob"), Publisher::default());
    publisher.publish(&a, "a", 5);
    bob.await_event("a-5");
    let master = sentinels.master().port();
    // One side of the partition: the master and A. The other side: everything else.
    sentinels.relay().cut_all_but(&[a.id()]);
    relays.iter().for_each(Relay::cut);
    let begun = Instant::now();
    let mut last_acknowledged = Duration::ZERO;
    let mut promoted = None;
    while begun.elapsed() < Duration::from_secs(25) {
        if publisher.try_next(&a, "a") {
            last_acknowledged = begun.elapsed();
        }
        if promoted.is_none() && sentinels.master().port() != master {
            promoted = Some(begun.elapsed());
        }
        if promoted.is_some() {
            publisher.try_next(&b, "b");
        }
        thread::sleep(Duration::from_millis(50));
    }
    eprintln!(
        "promoted after {promoted:?}, the last event was acknowledged by the cut node after {last_acknowledged:?}"
    );
    sentinels.relay().restore();
    relays.iter().for_each(Relay::restore);
    conclude(&mut publisher, &[&a, &b], &[&ann, &bob]);
    assert!(last_acknowledged < Duration::from_secs(15), "it acknowledged events for {last_acknowledged:?}");
}

#[test]
fn a_new_node_with_an_empty_redis_waits_for_the_windows_of_the_others() {
    let mut redis = RedisServer::start();
    let a = start(&redis.url(), &[]);
    let (ann, mut publisher) = (Client::connect(&a, "ann"), Publisher::default());
    publisher.publish(&a, "a", 10);
    ann.await_event("a-10");
    a.signal(Signal::SIGSTOP);
    redis.kill();
    let fresh = launch(&redis.url(), &[]);
    until("the fresh node tries to connect", || fresh.log().contains("no link to Redis"));
    redis.restart();
    // The fresh node connects first, unless that takes as long as half of the time that it has to wait.
    let (linked, begun) = (|| redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).contains("id="), Instant::now());
    until("the fresh node is connected to Redis", || linked() || begun.elapsed() > Duration::from_secs(1));
    a.signal(Signal::SIGCONT);
    let fresh = fresh.wait_until_ready(&[]);
    let late = Client::resume(&fresh, "late", Some(&ann.position_of("a-4")));
    conclude(&mut publisher, &[&a, &fresh], &[&ann]);
    assert_eq!((ann.gaps(), late.gaps()), (0, 0), "the window of the surviving node is restored");
    let replayed: Vec<_> = late.received().into_iter().take(6).collect();
    assert_eq!(replayed, (5..=10).map(|n| Received::Event(format!("a-{n}"))).collect::<Vec<_>>());
}

/// Windows that retain only the newest of the events that `publish_beyond_windows` publishes.
const SMALL_WINDOWS: [&str; 2] = ["--window-events", "64"];

/// Hubs, each with a client, that received more events than their windows retain since `older` was copied.
struct Beyond {
    hubs: [HubProcess; 2],
    clients: [Client; 2],
    publisher: Publisher,
    older: Vec<u8>,
}

fn publish_beyond_windows(redis: &RedisServer) -> Beyond {
    let hubs = [(); 2].map(|()| start(&redis.url(), &SMALL_WINDOWS));
    let clients = [Client::connect(&hubs[0], "ann"), Client::connect(&hubs[1], "bob")];
    let mut publisher = Publisher::default();
    publisher.publish(&hubs[0], "a", 10);
    let older = redis.snapshot();
    publisher.publish(&hubs[0], "a", 250);
    for client in &clients {
        client.await_event("a-260");
    }
    Beyond { hubs, clients, publisher, older }
}

#[test]
fn an_event_lost_with_its_node_after_an_orderly_shutdown_is_a_gap() {
    let mut redis = RedisServer::setup().persistent().start();
    let mut a = start(&redis.url(), &[]);
    let (client, mut publisher) = (Client::connect(&a, "ann"), Publisher::default());
    publisher.publish(&a, "a", 6);
    client.await_event("a-6");
    let place = client.position_of("a-6");
    drop(client);
    a.signal(Signal::SIGTERM);
    assert!(a.wait().success());
    let orderly = redis.files();
    let mut b = start(&redis.url(), &[]);
    publisher.publish(&b, "b", 5);
    // As after a power failure, or if the server had no time to write.
    b.kill();
    redis.kill();
    redis.restart_with(&orderly);
    let c = start(&redis.url(), &[]);
    let client = Client::resume(&c, "ann", Some(&place));
    conclude(&mut publisher, &[&c], &[&client]);
}

#[test]
fn a_redis_restored_from_an_old_copy_receives_the_windows_of_the_nodes() {
    let mut redis = RedisServer::start();
    let Beyond { hubs: [a, b], clients: [ann, bob], mut publisher, older } = publish_beyond_windows(&redis);
    redis.restart_from(&older);
    publisher.publish_surely(&b, "b");
    let late = Client::resume(&b, "late", Some(&ann.position_of("a-255")));
    conclude(&mut publisher, &[&a, &b], &[&ann, &bob]);
    assert_eq!(late.gaps(), 0, "the windows are restored");
    let replayed: Vec<_> = late.received().into_iter().take(5).collect();
    assert_eq!(replayed, (256..=260).map(|n| Received::Event(format!("a-{n}"))).collect::<Vec<_>>());
}

#[test]
fn a_redis_restored_from_an_older_and_then_a_newer_copy_is_used_again() {
    let mut redis = RedisServer::start();
    let Beyond { hubs: [a, b], clients: [ann, bob], mut publisher, older } = publish_beyond_windows(&redis);
    let newer = redis.snapshot();
    redis.restart_from(&older);
    publisher.publish_surely(&b, "b");
    publisher.publish(&b, "b", 5);
    for client in [&ann, &bob] {
        client.await_event("b-6");
    }
    redis.restart_from(&newer);
    let calls = || {
        let stats = redis.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        line.split(['=', ',']).nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    until("a hub has found the server", || calls() > 0);
    let (before, begun) = (calls(), Instant::now());
    // A rate is measured, so this takes a fixed time.
    thread::sleep(Duration::from_secs(3));
    let a_second = (calls() - before) as f64 / begun.elapsed().as_secs_f64();
    eprintln!("{a_second:.0} script calls a second");
    conclude(&mut publisher, &[&a, &b], &[&ann, &bob]);
    assert!(a_second < 300.0, "{a_second:.0} script calls a second");
}

#[test]
fn a_log_of_large_events_is_followed_over_a_slow_link() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port());
    // An event takes 12 ms, and all of them far longer than the timeout of a response.
    relay.limit(5_000_000);
    let a = start(&redis.url(), &[]);
    let (ann, mut publisher) = (Client::connect(&a, "ann"), Publisher::padded(60_000));
    publisher.publish(&a, "a", 300);
    ann.await_event("a-300");
    let b = start(&format!("redis://127.0.0.1:{}", relay.port()), &[]);
    let late = Client::resume(&b, "late", Some(&ann.position_of("a-1")));
    late.await_event("a-300");
    b.signal(Signal::SIGSTOP);
    publisher.publish(&a, "a", 300);
    b.signal(Signal::SIGCONT);
    late.await_event("a-600");
    let replayed: Vec<_> = late.received();
    assert_eq!(replayed, (2..=600).map(|n| Received::Event(format!("a-{n}"))).collect::<Vec<_>>());
    let mut publisher = Publisher::default();
    conclude(&mut publisher, &[&a, &b], &[&ann, &late]);
}

/// The key whose slot holds the log.
const LOG: &str = "{ws}:log";

#[test]
fn a_slot_migration_loses_nothing() {
    let cluster = Cluster::start();
    let (a, b) = (start(&cluster.url(), &[]), start(&cluster.url(), &[]));
    let (ann, bob, mut publisher) = (Client::connect(&a, "ann"), Client::connect(&b, "bob"), Publisher::default());
    let over = AtomicBool::new(false);
    let mut longest = Duration::ZERO;
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                publisher.publish_surely(&a, "a");
                longest = longest.max(begun.elapsed());
            }
        });
        for _ in 0..2 {
            let begun = Instant::now();
            // As on servers on different machines.
            cluster.migrate(LOG, || thread::sleep(Duration::from_millis(100)));
            eprintln!("migrated within {:.1} s", begun.elapsed().as_secs_f64());
            // The time until publishing works again counts too.
            thread::sleep(Duration::from_secs(3));
            until("the hubs are ready again", || a.is_ready() && b.is_ready());
        }
        over.store(true, Ordering::Relaxed);
        publishing.join().unwrap();
    });
    eprintln!("the longest pause of a publisher: {:.2} s", longest.as_secs_f64());
    assert!(longest < Duration::from_secs(30), "{longest:?}");
    conclude(&mut publisher, &[&a, &b], &[&ann, &bob]);
    assert_eq!((ann.gaps(), bob.gaps()), (0, 0), "nothing was lost, and no client received a gap");
}

/// Sentinels name a second server, then the first one again, which was never demoted and is still confirmed, then the
/// second one. A node that has reported to the second server acknowledges at the first in the meantime, and its report
/// is still there.
#[test]
fn a_report_of_a_node_that_returned_to_the_previous_server_does_not_count() {
    let mut sentinels = Sentinels::start_with_relay();
    let first = sentinels.master().port();
    let hubs = [(); 3].map(|()| start(&sentinels.url(), &[]));
    let [a, b, x] = &hubs;
    let clients = [Client::connect(a, "ann"), Client::connect(b, "bob"), Client::connect(x, "xia")];
    let mut publisher = Publisher::default();
    publisher.publish(a, "a", 5);
    clients.iter().for_each(|client| client.await_event("a-5"));
    let second = sentinels.servers().iter().find(|server| server.port() != first).unwrap().port();
    let relays = [first, second].map(|port| sentinels.relay_of(port).unwrap().port());
    let ask = |sentinels: &mut Sentinels, arguments: &[&str]| {
        sentinels.servers().iter().find(|server| server.port() == second).unwrap().cli(arguments)
    };
    until("the replica has the events", || ask(&mut sentinels, &["XLEN", "ws:log"]) == "5");
    assert_eq!(ask(&mut sentinels, &["REPLICAOF", "NO", "ONE"]), "OK");
    sentinels.name_another(relays[1]);
    until("all reports are complete", || {
        let reports = ask(&mut sentinels, &["HVALS", "ws:reports"]);
        reports.lines().filter(|report| report.starts_with("3 ")).count() == 3
    });
    // Before the second has passed that a confirmation takes at least.
    hubs.iter().for_each(|hub| hub.signal(Signal::SIGSTOP));
    assert_eq!(ask(&mut sentinels, &["HEXISTS", "ws:epoch", "recovering"]), "1", "too late: the server is confirmed");
    // The first server is the master again, and only one node reaches it.
    sentinels.relay_of(first).unwrap().cut_all_but(&[x.id()]);
    sentinels.name_another(relays[0]);
    // Longer than a lease.
    thread::sleep(Duration::from_secs(5));
    x.signal(Signal::SIGCONT);
    until("the node acknowledges", || publisher.try_next(x, "x"));
    publisher.publish(x, "x", 5);
    x.signal(Signal::SIGSTOP);
    sentinels.name_another(relays[1]);
    [a, b].iter().for_each(|hub| hub.signal(Signal::SIGCONT));
    until("the second server is confirmed", || a.is_ready() && b.is_ready());
    x.signal(Signal::SIGCONT);
    sentinels.relay_of(first).unwrap().restore();
    conclude(&mut publisher, &[a, b, x], &clients.each_ref());
}
