//! The behaviour that all backends share.

use crate::node::{BOUNDS, Node, append, ids, linked, linked_with, record, until};
use fanfare_core::{
    Audience, ConnectionId, Revocation,
    window::{Bounds, Gap, GapReason},
};
use fanfare_log::{
    Broker, ControlMessage, Log, MemoryBroker,
    presence::{ConnectionInfo, Presence},
    redis::RedisOptions,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use testbed::{Cluster, RedisServer, Sentinels, redis_programs};

pub(crate) async fn suite<B: Broker + Presence>(broker: Arc<B>, node: Arc<Node>) {
    appends_in_order_and_each_event_id_once(&*broker, &node).await;
    preserves_audiences(&*broker, &node).await;
    returns_ranges(&*broker).await;
    delivers_commands(&*broker, &node).await;
    delivers_questions(&*broker, &node).await;
    serves_concurrent_publishers(&broker, &node).await;
    lists_connected_clients(&*broker, &node).await;
    assert_eq!(broker.status().problem, None);
}

async fn appends_in_order_and_each_event_id_once(broker: &dyn Broker, node: &Node) {
    let everyone = |id: &str| record(id, Audience::Everyone);
    let first = broker.append(vec![everyone("a"), everyone("b"), everyone("a")]).await.unwrap();
    let places: Vec<_> = first.iter().map(|appended| (appended.position.sequence, appended.duplicate)).collect();
    assert_eq!(places, [(1, false), (2, false), (1, true)]);
    let again = broker.append(vec![everyone("b"), everyone("c")]).await.unwrap();
    let places: Vec<_> = again.iter().map(|appended| (appended.position.sequence, appended.duplicate)).collect();
    assert_eq!(places, [(2, true), (3, false)]);
    assert_eq!(broker.append(Vec::new()).await, Ok(Vec::new()));
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ["a", "b", "c"]);
    assert_eq!(node.window.read().epoch(), first[0].position.epoch);
}

async fn preserves_audiences(broker: &dyn Broker, node: &Node) {
    let audiences = [
        Audience::Everyone,
        Audience::User("ann:1".into()),
        Audience::Connection(ConnectionId(7)),
        Audience::Topic("project:7".into()),
    ];
    let records = audiences.iter().enumerate().map(|(i, audience)| record(&format!("to-{i}"), audience.clone()));
    broker.append(records.collect()).await.unwrap();
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    let seen: Vec<_> = window.since(3).map(|entry| entry.audience.clone()).collect();
    assert_eq!(seen, audiences);
    let json: serde_json::Value = serde_json::from_slice(&window.since(3).next().unwrap().json()).unwrap();
    assert_eq!((&json["event_id"], &json["data"]["id"]), (&"to-0".into(), &"to-0".into()));
}

async fn returns_ranges(broker: &dyn Broker) {
    let range = broker.range(1, 2).await.unwrap();
    let range: Vec<_> = range.iter().map(|entry| (entry.sequence, &*entry.event_id)).collect();
    assert_eq!(range, [(2, "b"), (3, "c")]);
    assert_eq!(broker.range(7, 10).await.unwrap().len(), 0);
}

async fn delivers_commands(broker: &dyn Broker, node: &Node) {
    let commands = [
        ControlMessage::Revoke(Revocation::User { user: "ann".into(), before: 1_800_000_000 }),
        ControlMessage::Revoke(Revocation::Token { token: 7 }),
        ControlMessage::Revoke(Revocation::Everyone { before: 1_700_000_000 }),
        ControlMessage::Disconnect { connection: ConnectionId(9), reason: "bye".to_owned() },
        ControlMessage::DisconnectUser { user: "ann".into(), reason: "an odd \"reason\"".to_owned() },
    ];
    for command in &commands {
        broker.send(command.clone()).await.unwrap();
    }
    until("the node receives the commands", || node.commands.lock().unwrap().len() == commands.len()).await;
    assert_eq!(*node.commands.lock().unwrap(), commands);
}

async fn delivers_questions(broker: &dyn Broker, node: &Node) {
    let question = r#"{"event":"an odd \"id\"","user":"ann"}"#.to_owned();
    let (answers, asked) = broker.survey(question.clone()).await.unwrap();
    assert_eq!((answers, asked), (vec![format!("{} heard {question:?}", node.name)], 1));
}

async fn serves_concurrent_publishers<B: Broker>(broker: &Arc<B>, node: &Node) {
    const PUBLISHERS: u64 = 8;
    const EVENTS: u64 = 200;
    let before = node.head();
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|p| {
            let broker = broker.clone();
            tokio::spawn(async move { append(&*broker, ids(&format!("p{p}-"), 1..=EVENTS)).await })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    broker.catch_up().await.unwrap();
    assert_eq!(node.head(), before + PUBLISHERS * EVENTS);
    let seen: Vec<String> = node.ids().split_off(usize::try_from(before).unwrap());
    for p in 0..PUBLISHERS {
        let prefix = format!("p{p}-");
        let own: Vec<_> = seen.iter().filter(|id| id.starts_with(&prefix)).cloned().collect();
        assert_eq!(own, ids(&prefix, 1..=EVENTS), "the events of each publisher keep their order");
    }
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
}

async fn lists_connected_clients<B: Presence>(broker: &B, node: &Node) {
    let client = |n: u128, user: &str| ConnectionInfo {
        connection: ConnectionId(n),
        user: user.into(),
        node: node.name.as_str().into(),
        since_ms: u64::try_from(n).unwrap(),
        came_ms: u64::try_from(n).unwrap(),
        address: [127, 0, 0, 1].into(),
        unlimited: false,
    };
    let all = [client(1, "ann"), client(2, "bob"), client(3, "ann")];
    for client in &all {
        node.clients.lock().unwrap().push(client.clone());
        broker.arrived(client.clone());
    }
    until_listed(broker, "ann", &[all[0].clone(), all[2].clone()]).await;
    assert_eq!(broker.find(ConnectionId(2)).await.unwrap(), Some(all[1].clone()));
    assert_eq!(broker.find(ConnectionId(4)).await.unwrap(), None);
    node.clients.lock().unwrap().remove(0);
    broker.left(ConnectionId(1), &"ann".into(), 1);
    until_listed(broker, "ann", &[all[2].clone()]).await;
    until_listed(broker, "nobody", &[]).await;
}

/// Waits until the list of a user's clients is as expected.
pub(crate) async fn until_listed<B: Presence>(broker: &B, user: &str, expected: &[ConnectionInfo]) {
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        let found = broker.of_user(user).await.unwrap();
        if found == expected {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?} is not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes X, many other events, and X again: the log recognises X, and a cursor that is its ID receives a gap.
async fn an_evicted_event_is_recognised(broker: &dyn Broker, node: &Node) {
    let x = || vec![record("x", Audience::Everyone)];
    let first = broker.append(x()).await.unwrap();
    append(broker, ids("e", 1..=400)).await;
    let again = broker.append(x()).await.unwrap();
    assert_eq!((again[0].position, again[0].duplicate), (first[0].position, true));
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    assert_eq!((window.head(), window.find("x")), (401, None));
    let missed = window.floor() - 1;
    for (cursor, missed) in [("x".to_owned(), None), (first[0].position.to_string(), Some(missed))] {
        let gap = window.start(Some(&cursor), ConnectionId(0)).gap;
        assert_eq!(gap, Some(Gap { reason: GapReason::Expired, missed }), "{cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_of_evicted_events_are_recognised_in_memory_and_in_redis() {
    let bounds = Bounds { events: 100, ..BOUNDS };
    let node = Node::new(bounds);
    let broker = MemoryBroker::new(7, bounds);
    broker.follow(node.clone());
    an_evicted_event_is_recognised(&broker, &node).await;
    let server = RedisServer::start();
    let options = RedisOptions::new(server.url().parse().unwrap());
    let (broker, node) = linked_with(options, bounds).await.unwrap();
    an_evicted_event_is_recognised(&*broker, &node).await;
}

#[tokio::test]
async fn in_memory() {
    let node = Node::new(BOUNDS);
    let broker = Arc::new(MemoryBroker::new(7, BOUNDS));
    broker.follow(node.clone());
    suite(broker, node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_redis_with_a_password() {
    let server = RedisServer::setup().password("p@ss word:/").start();
    let url = format!("redis://:p%40ss%20word%3A%2F@127.0.0.1:{}/3", server.port());
    let (broker, node) = linked(&url).await;
    suite(broker, node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_redis_with_an_acl_user() {
    let server = RedisServer::setup()
        .line(
            "user hub on >hush ~ws:* resetchannels &ws:broadcast &ws:user:* &ws:connection:* &ws:topic:* &ws:node:* \
             +@all -@dangerous +info",
        )
        .line("user default on nopass ~* &* +ping")
        .start();
    let (broker, node) = linked(&format!("redis://hub:hush@127.0.0.1:{}", server.port())).await;
    suite(broker, node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_every_compatible_server() {
    for program in redis_programs() {
        println!("{}", program.display());
        let server = RedisServer::setup().program(&program).start();
        let (broker, node) = linked(&server.url()).await;
        suite(broker, node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel() {
    let sentinels = Sentinels::start();
    let (broker, node) = linked(&sentinels.url()).await;
    suite(broker, node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster() {
    let cluster = Cluster::start();
    let (broker, node) = linked(&cluster.url()).await;
    suite(broker, node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_bounded_by_events_bytes_and_age() {
    let server = RedisServer::start();
    for (namespace, bounds, most) in [
        ("events", Bounds { events: 100, ..BOUNDS }, 164),
        ("bytes", Bounds { bytes: 20_000, ..BOUNDS }, 200),
        ("age", Bounds { age_ms: 1, ..BOUNDS }, 64),
    ] {
        let options =
            RedisOptions { namespace: namespace.to_owned(), ..RedisOptions::new(server.url().parse().unwrap()) };
        let (broker, _node) = linked_with(options, bounds).await.unwrap();
        append(&*broker, ids("e", 1..=640)).await;
        let held: usize = server.cli(&["XLEN", &format!("{namespace}:log")]).parse().unwrap();
        assert!((1..=most).contains(&held), "{namespace}: {held}");
        let known: usize = server.cli(&["HLEN", &format!("{namespace}:ids")]).parse().unwrap();
        assert_eq!(known, 640, "ids are remembered for longer than events are retained");
        let bytes: usize = server.cli(&["HGET", &format!("{namespace}:epoch"), "bytes"]).parse().unwrap();
        assert!(bytes > 0 && bytes < 400 * held, "{namespace}: {bytes}");
        let last = broker.range(639, 10).await.unwrap();
        assert_eq!(&*last[0].event_id, "e640", "the newest event is retained");
    }
}
