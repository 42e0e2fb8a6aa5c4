//! What happens to a log in Redis: interruptions, losses, strangers, and servers that are not what they should be.

use crate::{
    node::{BOUNDS, Node, append, append_patiently, ids, linked, linked_as, linked_with, record, until},
    suite::list,
};
use fanfare::{
    Audience, ConnectionId,
    broker::{
        Broker, BrokerError, ControlMessage, LogFollower,
        redis::{Durability, LinkError, RedisBroker, RedisOptions},
    },
    metrics::{Counter, Metrics},
    presence::{ConnectionInfo, Presence},
    why::Question,
};
use fanfare_core::{
    Revocation, Revocations,
    lineage::{Place, tag},
    window::{Bounds, GapReason},
};
use futures_util::FutureExt;
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::Arc,
    thread,
    time::Duration,
};
use testbed::{RedisServer, Sentinels};

/// A client that has no name of this log.
const NAMELESS: ConnectionId = ConnectionId(0);

/// Ids go on from one generation to the next, and are known in the current one, where publishers look, once they were
/// asked for.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_remembered_in_generations() {
    let server = RedisServer::start();
    let bounds = Bounds { events: 10, ids: 100, ..BOUNDS };
    let (broker, node) = linked_with(RedisOptions::new(server.url().parse().unwrap()), bounds).await.unwrap();
    append(&*broker, ids("e", 1..=60)).await;
    let known = |key: &str| server.cli(&["HLEN", key]).parse::<usize>().unwrap();
    assert_eq!((known("ws:ids"), known("ws:ids:1"), known("ws:ids:2")), (10, 50, 0));
    assert_eq!(server.cli(&["HGET", "ws:ids", "e3"]), "");
    // In one batch with others, some of them new.
    let mixed = ["e3", "f1", "e60", "f1", "e4"].map(|id| record(id, Audience::Everyone));
    let places = broker.append(mixed.to_vec()).await.unwrap();
    let places: Vec<_> = places.iter().map(|appended| (appended.position.sequence, appended.duplicate)).collect();
    assert_eq!(places, [(3, true), (61, false), (60, true), (61, true), (4, true)]);
    assert_eq!(server.cli(&["HGET", "ws:ids", "e3"]), "3");
    append(&*broker, ids("g", 1..=190)).await;
    let all = known("ws:ids") + known("ws:ids:1") + known("ws:ids:2");
    assert!((100..=150).contains(&all), "{all}");
    let again = broker.append(vec![record("e1", Audience::Everyone)]).await.unwrap();
    assert!(!again[0].duplicate, "beyond the bound an id is forgotten");
    broker.catch_up().await.unwrap();
    assert_eq!(node.head(), 252);
    until("the horizon that is left is told", || broker.status().horizon > Duration::ZERO).await;
    assert!(broker.status().horizon < Duration::from_secs(7_200));
}

/// A Redis that lost everything is given back what the node holds, and not the ids of what came before that.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_a_redis_lost_make_bare_cursors_doubtful() {
    let mut server = RedisServer::start();
    let bounds = Bounds { events: 10, ..BOUNDS };
    let (broker, node) = linked_with(RedisOptions::new(server.url().parse().unwrap()), bounds).await.unwrap();
    append(&*broker, ids("e", 1..=50)).await;
    broker.catch_up().await.unwrap();
    let epoch = node.window.read().epoch();
    server.kill();
    server.restart();
    append_patiently(&*broker, "e7").await;
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    assert_ne!(window.epoch(), epoch);
    assert_eq!(window.find("e7"), Some(51), "its id was lost");
    let [before, after] = [epoch, window.epoch()].map(|epoch| ConnectionId(u128::from(tag(epoch)) << 108));
    for connection in [before, NAMELESS] {
        let start = window.start(Some("e7"), connection);
        assert_eq!(
            (start.cursor, start.gap.map(|gap| gap.reason)),
            (51, Some(GapReason::Reset)),
            "it stood at 7 before"
        );
    }
    let place = format!("pos-{epoch:x}-50");
    for (cursor, connection) in [("e7", after), ("e50", before), (&place, NAMELESS)] {
        assert_eq!(window.start(Some(cursor), connection).gap, None, "{cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_warmed_from_the_log() {
    let server = RedisServer::start();
    let (first, _) = linked(&server.url()).await;
    append(&*first, ids("e", 1..=1_500)).await;
    let (_second, node) = linked(&server.url()).await;
    assert_eq!(node.ids(), ids("e", 1..=1_500));
    let (_third, node) =
        linked_with(RedisOptions::new(server.url().parse().unwrap()), Bounds { events: 10, ..BOUNDS }).await.unwrap();
    assert_eq!(node.ids(), ids("e", 1_491..=1_500));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_see_one_order() {
    let server = RedisServer::start();
    let (first, one) = linked(&server.url()).await;
    let (second, other) = linked(&server.url()).await;
    let both = [first.clone(), second.clone()].map(|broker| {
        tokio::spawn(async move {
            let prefix = format!("{:p}-", Arc::as_ptr(&broker));
            append(&*broker, ids(&prefix, 1..=500)).await;
        })
    });
    for publisher in both {
        publisher.await.unwrap();
    }
    first.catch_up().await.unwrap();
    second.catch_up().await.unwrap();
    assert_eq!((one.head(), one.ids()), (1_000, other.ids()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_is_asked_and_one_that_is_gone_is_missed() {
    let server = RedisServer::start();
    let (first, one) = linked(&server.url()).await;
    let (second, other) = linked(&server.url()).await;
    until("both are known", || first.status().cluster.is_some_and(|(_, nodes)| nodes == 2)).await;
    let question = Question::Client { connection: "c1".to_owned() };
    let (answers, asked) = first.ask(question.clone()).await.unwrap();
    let expected = [&one, &other].map(|node| format!("{} heard {question:?}", node.name));
    assert_eq!((answers.iter().collect::<BTreeSet<_>>(), asked), (expected.iter().collect(), 2));
    // Gone without a word, as by a crash: it is asked until its beat is old.
    server.cli(&["HSET", "ws:node:ghost", "connections", "0"]);
    server.cli(&["ZADD", "ws:nodes", "9999999999999", "ghost"]);
    until("the ghost is known", || first.status().cluster.is_some_and(|(_, nodes)| nodes == 3)).await;
    let (answers, asked) = first.ask(question).await.unwrap();
    assert_eq!((answers.len(), asked), (2, 3));
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_goes_on_where_it_was_cut() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let (_other, second) = linked(&server.url()).await;
    for round in 0..5 {
        append_patiently(&*broker, &format!("a{round}")).await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        append_patiently(&*broker, &format!("b{round}")).await;
    }
    let expected: Vec<_> = (0..5).flat_map(|round| [format!("a{round}"), format!("b{round}")]).collect();
    for node in [&node, &second] {
        until("all events are there", || node.ids() == expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_redis_loses_nothing_even_if_it_forgets_everything() {
    let mut server = RedisServer::setup().persistent().start();
    let (broker, node) = linked(&server.url()).await;
    let (other, second) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=300)).await;
    broker.catch_up().await.unwrap();
    other.catch_up().await.unwrap();
    let seventh = fanfare::Position { epoch: node.window.read().epoch(), sequence: 7 };
    for forget in [false, true] {
        let (epoch, head) = (node.window.read().epoch(), node.head());
        server.kill();
        until("the node knows", || broker.status().problem.is_some()).await;
        let refused = broker.append(vec![record("refused", Audience::Everyone)]).now_or_never();
        let refused = refused.expect("refused at once").unwrap_err();
        assert!(matches!(refused, BrokerError::Unavailable(_)), "{refused}");
        if forget {
            server.forget();
        }
        server.restart();
        until("both nodes are linked again", || {
            [&broker, &other].iter().all(|broker| broker.status().problem.is_none())
        })
        .await;
        {
            let window = node.window.read();
            assert_ne!(window.epoch(), epoch, "the log goes on under a new epoch");
            assert_eq!(window.head(), head, "with all that it had");
            let place = window.lineage().place(fanfare::Position { epoch, sequence: head }, head);
            assert_eq!(place, Place::At(head), "and cursors stay good");
        }
        append_patiently(&*other, &format!("after-{forget}")).await;
        broker.catch_up().await.unwrap();
    }
    let expected: Vec<_> = ids("e", 1..=300).into_iter().chain(["after-false".into(), "after-true".into()]).collect();
    assert_eq!(node.ids(), expected);
    until("the other has all", || second.ids() == expected).await;
    assert_eq!(broker.range(0, 1_000).await.unwrap().len(), 302, "the log itself has all");
    let again = broker.append(vec![record("e7", Audience::Everyone)]).await.unwrap();
    assert_eq!((again[0].duplicate, again[0].position), (true, seventh), "and knows every id, and where it stood");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_log_is_put_back_whole_before_anyone_goes_on() {
    const EVENTS: u64 = 3_000;
    let mut server = RedisServer::start();
    let bounds = Bounds { events: 10_000, bytes: 64 << 20, ..BOUNDS };
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(linked_with(RedisOptions::new(server.url().parse().unwrap()), bounds).await.unwrap());
    }
    let pad = "x".repeat(10_000);
    for n in 1..=EVENTS / 100 {
        let batch = ((n - 1) * 100 + 1..=n * 100).map(|i| {
            let draft = fanfare::Draft::new("note", &serde_json::json!({ "pad": pad })).unwrap();
            let event = draft.finish(0, || format!("e{i}")).unwrap();
            fanfare::broker::Record { event, audience: Audience::Everyone, publisher: None, trace: None }
        });
        nodes[0].0.append(batch.collect()).await.unwrap();
    }
    for (broker, _) in &nodes {
        broker.catch_up().await.unwrap();
    }
    let epoch = nodes[0].1.window.read().epoch();
    // Nothing was ever written to a file.
    server.restart();
    for (broker, node) in &nodes {
        until("the node is linked again", || node.window.read().epoch() != epoch).await;
        until("all is well", || broker.status().problem.is_none()).await;
        let window = node.window.read();
        assert_eq!((window.head(), window.len() as u64), (EVENTS, EVENTS));
        let place = window.lineage().place(fanfare::Position { epoch, sequence: EVENTS }, EVENTS);
        assert_eq!(place, Place::At(EVENTS), "no client notices");
    }
    assert_eq!(server.cli(&["XLEN", "ws:log"]), EVENTS.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_lineage_is_gone_is_another_log() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=5)).await;
    broker.catch_up().await.unwrap();
    let epoch = node.window.read().epoch();
    server.cli(&["DEL", "ws:epoch"]);
    append_patiently(&*broker, "e6").await;
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    assert_eq!(window.head(), 6);
    assert_ne!(window.epoch(), epoch);
    assert_eq!(window.start(Some(&format!("pos-{epoch:x}-3")), NAMELESS).gap.unwrap().reason, GapReason::Reset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone_for_good_resets_every_cursor() {
    let mut server = RedisServer::start();
    let old = {
        let (broker, node) = linked(&server.url()).await;
        append(&*broker, ids("e", 1..=10)).await;
        broker.catch_up().await.unwrap();
        broker.stop();
        node.window.read().epoch()
    };
    server.kill();
    server.restart();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("f", 1..=3)).await;
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    for id in [format!("pos-{old:x}-10"), format!("pos-{old:x}-2")] {
        let gap = window.start(Some(&id), NAMELESS).gap.unwrap();
        assert_eq!(gap.reason, GapReason::Reset, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_heard_of_makes_a_restart_doubtful() {
    let mut server = RedisServer::setup().persistent().start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=10)).await;
    broker.catch_up().await.unwrap();
    // Another node that lived just now, and may have acknowledged what no other has seen.
    let now: f64 = server.cli(&["ZSCORE", "ws:nodes", &node.name]).parse().unwrap();
    server.cli(&["HSET", "ws:members", "gone", &format!("9 9 {now:.0} - i")]);
    server.cli(&["HSET", "ws:epoch", "version", "9"]);
    let epoch = node.window.read().epoch();
    server.restart();
    until("the node is linked again", || node.window.read().epoch() != epoch).await;
    until("all is well", || broker.status().problem.is_none()).await;
    let window = node.window.read();
    assert_eq!(window.head(), 10);
    let start = window.start(Some(&format!("pos-{epoch:x}-10")), NAMELESS);
    assert_eq!((start.cursor, start.gap.unwrap().reason), (10, GapReason::Reset), "what could be lost is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_is_noticed_and_comes_back() {
    let server = RedisServer::start();
    let options =
        RedisOptions { lag_limit: Duration::from_secs(2), ..RedisOptions::new(server.url().parse().unwrap()) };
    let (broker, node) = linked_with(options, BOUNDS).await.unwrap();
    append(&*broker, ids("e", 1..=3)).await;
    server.stop();
    until("the node notices", || broker.status().problem.is_some()).await;
    assert!(!broker.status().connected);
    assert!(broker.append(vec![record("x", Audience::Everyone)]).await.is_err());
    server.cont();
    until("the node recovers", || broker.status().problem.is_none()).await;
    append_patiently(&*broker, "e4").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_silently_dead_is_found_and_mended() {
    let server = RedisServer::start();
    let options =
        RedisOptions { lag_limit: Duration::from_secs(2), ..RedisOptions::new(server.url().parse().unwrap()) };
    let (broker, node) = linked_with(options, BOUNDS).await.unwrap();
    let (_other, second) = linked(&server.url()).await;
    // Everything answers, only that what a reader waits for never comes: its stream is another one now.
    append(&*broker, ids("e", 1..=3)).await;
    server.cli(&["RENAME", "ws:control", "ws:elsewhere"]);
    server.cli(&["XADD", "ws:control", "99999999999999-0", "k", "odd"]);
    append_patiently(&*broker, "e4").await;
    server.cli(&["DEL", "ws:log", "ws:epoch", "ws:ids"]);
    append_patiently(&*broker, "e5").await;
    for node in [&node, &second] {
        until("all events are there", || node.ids() == ids("e", 1..=5)).await;
    }
    until("all is well", || broker.status().problem.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_references_publishers_publish_is_kept_once() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let (_other, second) = linked(&server.url()).await;
    let id = ConnectionId(7);
    for (channel, text) in [
        ("ws:broadcast", r#"{"type":"note","event_id":"b1","timestamp":"2026-01-01T00:00:00","data":{"n":1}}"#),
        ("ws:user:ann", r#"{"type":"note","event_id":"u1","data":{}}"#),
        (&*format!("ws:connection:{id}"), r#"{"type":"note","event_id":"c1"}"#),
        ("ws:broadcast", "no json"),
        ("ws:broadcast", r#"{"type":"ping","event_id":"p1"}"#),
        ("ws:connection:7", r#"{"type":"note","event_id":"c2"}"#),
        ("ws:broadcast", r#"{"type":"note","data":{"without":"an id"}}"#),
        ("ws:broadcast", r#"{"type":"note","event_id":"b1","data":{"n":2}}"#),
        ("ws:user:ann", r#"{"type":"note","event_id":"u2"}"#),
    ] {
        assert_eq!(server.cli(&["PUBLISH", channel, text]), "2", "both nodes listen");
    }
    until("the last one is there", || node.ids().last().is_some_and(|id| id == "u2")).await;
    let heard: Vec<_> = node.ids();
    assert_eq!(heard.len(), 5, "{heard:?}");
    assert!(heard[3].starts_with("heard-"), "{heard:?}");
    assert_eq!((&heard[..3], &*heard[4]), (&["b1".to_owned(), "u1".to_owned(), "c1".to_owned()][..], "u2"));
    until("the other node has the same", || second.ids() == heard).await;
    let window = node.window.read();
    let audiences: Vec<_> = window.since(0).take(3).map(|entry| entry.audience.clone()).collect();
    assert_eq!(audiences, [Audience::Everyone, Audience::User("ann".into()), Audience::Connection(id)]);
    let kept: serde_json::Value = serde_json::from_slice(&window.since(0).next().unwrap().json()).unwrap();
    assert_eq!((&kept["timestamp"], &kept["data"]["n"]), (&"2026-01-01T00:00:00".into(), &1.into()));
    drop(window);
    assert_eq!(broker.status().problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_on_a_channel_passes_as_the_wire_vectors_say() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../../tests/wire/events.json")).unwrap();
    let server = RedisServer::start();
    let (_broker, node) = linked(&server.url()).await;
    let mut delivered = Vec::new();
    for case in vectors["cases"].as_array().unwrap() {
        assert_eq!(server.cli(&["PUBLISH", "ws:broadcast", case["published"].as_str().unwrap()]), "1");
        // Its id and its time are made by the hub.
        let made = case["delivered"].as_str().is_some_and(|text| text.contains("fresh"));
        delivered.extend(
            case["delivered"]
                .as_str()
                .filter(|_| !made)
                .map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap()),
        );
    }
    server.cli(&["PUBLISH", "ws:broadcast", r#"{"type":"note","event_id":"last"}"#]);
    until("the last one is there", || node.ids().last().is_some_and(|id| id == "last")).await;
    let window = node.window.read();
    let events = window.since(0).map(|entry| serde_json::from_slice::<serde_json::Value>(&entry.json()).unwrap());
    let mut events: Vec<_> = events.filter(|event| event["event_id"] != "last").collect();
    events.retain(|event| !event["event_id"].as_str().unwrap().starts_with("heard-"));
    let unseen: Vec<_> = delivered.iter().filter(|event| !events.contains(event)).collect();
    // One is completed with the present time.
    assert!(unseen.iter().all(|event| event["timestamp"] == "1970-01-01T00:00:00.000Z"), "{unseen:?}");
    assert_eq!(events.len(), delivered.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_named_by_the_message_type_is_heard_if_it_is_listed() {
    let server = RedisServer::start();
    let channels = ["task_status_update", "news"].map(str::to_owned).to_vec();
    let options = RedisOptions { channels, ..RedisOptions::new(server.url().parse().unwrap()) };
    let (_broker, node) = linked_with(options, BOUNDS).await.unwrap();
    for (channel, text, heard) in [
        ("task_status_update", r#"{"type":"task_status_update","event_id":"t1","payload":{"task_id":7}}"#, "1"),
        ("task_status_update", r#"{"event_id":"t2","data":{"task_id":7}}"#, "1"),
        ("news", r#"{"type":"note","event_id":"n1","audience":{"user":42}}"#, "1"),
        ("news", r#"{"type":"note","event_id":"n2","audience":{"topic":"$sys"}}"#, "1"),
        ("news", r#"{"type":"$sys","event_id":"n3"}"#, "1"),
        ("agent_activity_update", r#"{"type":"note","event_id":"a1"}"#, "0"),
        ("ws:broadcast", r#"{"type":"note","event_id":"b1","audience":{"user":"ann"}}"#, "1"),
    ] {
        assert_eq!(server.cli(&["PUBLISH", channel, text]), heard, "{channel} {text}");
    }
    until("the last one is there", || node.ids().last().is_some_and(|id| id == "b1")).await;
    let window = node.window.read();
    let got: Vec<_> =
        window.since(0).map(|entry| (&*entry.event_id, &*entry.event_type, entry.audience.clone())).collect();
    let task = "task_status_update";
    assert_eq!(
        got,
        [
            ("t1", task, Audience::Everyone),
            ("t2", task, Audience::Everyone),
            ("n1", "note", Audience::User("42".into())),
            ("b1", "note", Audience::Everyone),
        ]
    );
    let first = window.since(0).next().unwrap();
    let first: serde_json::Value = serde_json::from_slice(&first.json()).unwrap();
    assert_eq!((&first["payload"]["task_id"], first.get("data")), (&7.into(), None));
}

// attack: entries written straight into the log's stream => removed or skipped, counted, and every node goes on
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_in_the_stream_reach_nobody_and_stop_nothing() {
    let server = RedisServer::start();
    let metrics = Arc::new(Metrics::default());
    let (node, counting) = (Node::new(BOUNDS), Node::new(BOUNDS));
    let link = async |node: &Arc<Node>| {
        let options = RedisOptions::new(server.url().parse().unwrap());
        RedisBroker::connect(options, BOUNDS, node.name.clone(), node.clone(), metrics.clone()).await.unwrap()
    };
    let (broker, _other) = (Arc::new(link(&node).await), link(&counting).await);
    append(&*broker, ids("a", 1..=3)).await;
    until("both have them", || node.head() == 3 && counting.head() == 3).await;

    let forged = r#"{"type":"ack","event_id":"f","connection_id":"x"}"#;
    // More fields than a script can pass on.
    let many = ["x"; 20_000];
    let mut published = ids("a", 1..=3);
    for (n, (id, fields)) in [
        ("0-next", &["x", "y"][..]),
        ("0-next", &["i", "f", "a", "*", "t", "1", "d", forged]),
        ("0-next", &["i", "f", "a", "t:$sys", "t", "never", "d", r#"{"type":"$sys","event_id":"f"}"#]),
        ("0-next", &many),
        ("*", &["x", "y"]),
        ("0-9007199254740000", &["x", "y"]),
        ("0-18446744073709551615", &["x", "y"]),
    ]
    .into_iter()
    .enumerate()
    {
        let id = id.replace("next", &(counting.head() + 1).to_string());
        let seen = metrics.get(Counter::BadLogEntries);
        server.cli(&[&["XADD", "ws:log", &id], fields].concat());
        until(&format!("{id} is found"), || metrics.get(Counter::BadLogEntries) > seen).await;
        append_patiently(&*broker, &format!("b{n}")).await;
        published.push(format!("b{n}"));
        let own = |node: &Node| node.ids().into_iter().filter(|id| !id.starts_with("0-")).collect::<Vec<_>>();
        until("both nodes have what was published", || own(&node) == published && own(&counting) == published).await;
        until("healthy", || broker.status().problem.is_none()).await;
        assert_eq!(node.window.read().floor(), 0, "no hole: nobody is told of a gap");
    }

    // Nobody reads what is written while this one goes to the stream first.
    server.cli(&["XADD", "ws:log", "*", "x", "y"]);
    append_patiently(&*broker, "c").await;
    until("it has come", || node.ids().last().is_some_and(|id| id == "c")).await;
    let (_late, late) = linked(&server.url()).await;
    assert_eq!(late.ids().last().map(String::as_str), Some("c"), "a node that starts now reads the log too");
    let seen = late.window.read();
    let frames: Vec<_> = seen.since(0).map(|entry| String::from_utf8_lossy(&entry.json()).into_owned()).collect();
    assert!(!frames.iter().any(|json| json.contains("ack") || json.contains("$sys")), "{frames:?}");
}

// attack: entries written straight into the nodes' control stream, at its last possible id too => removed, counted, and every node goes on
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_in_the_control_stream_stop_nothing() {
    let server = RedisServer::start();
    let metrics = Arc::new(Metrics::default());
    let node = Node::new(BOUNDS);
    let options = RedisOptions::new(server.url().parse().unwrap());
    let link = RedisBroker::connect(options, BOUNDS, node.name.clone(), node.clone(), metrics.clone()).await;
    let broker = Arc::new(link.unwrap());
    let last = u64::MAX.to_string();
    for (n, (id, key)) in
        [("*", "x"), (&*format!("{last}-7"), "k"), (&*format!("{last}-{last}"), "x")].into_iter().enumerate()
    {
        let seen = metrics.get(Counter::BadLogEntries);
        server.cli(&["XADD", "ws:control", id, key, "y"]);
        until(&format!("{id} is removed"), || metrics.get(Counter::BadLogEntries) > seen).await;
        let before = server.cli(&["XREVRANGE", "ws:control", "+", "-", "COUNT", "1"]);
        append_patiently(&*broker, &format!("e{n}")).await;
        testbed::until("the node beats", || {
            let newest = server.cli(&["XREVRANGE", "ws:control", "+", "-", "COUNT", "1"]);
            newest.contains("probe") && newest != before
        });
        until("healthy", || broker.status().problem.is_none()).await;
    }
    assert_eq!(node.ids(), ids("e", 0..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_kept_behind_ten_minutes_of_probes_of_five_hundred_nodes() {
    const PROBES: &str = "for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'k', 'probe', 'n', 'x') end";
    let server = RedisServer::start();
    let (_broker, node) = linked(&server.url()).await;
    let order = server.cli(&["XADD", "ws:control", "*", "k", "disconnect", "c", "x"]);
    let kept = || !server.cli(&["XRANGE", "ws:control", &order, &order]).is_empty();
    let beats = || server.cli(&["HGET", &format!("ws:node:{}", node.name), "beat"]);
    for (probes, is_kept) in [("150000", true), ("50000", false)] {
        server.cli(&["EVAL", PROBES, "1", "ws:control", probes]);
        let before = beats();
        // Each beat trims the stream.
        testbed::until("the node beats", || beats() != before);
        assert_eq!(kept(), is_kept, "behind {probes} more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_waited_for() {
    let master = RedisServer::start();
    let options = RedisOptions { durability: Durability::Replica, ..RedisOptions::new(master.url().parse().unwrap()) };
    let (broker, node) = linked_with(options, BOUNDS).await.unwrap();
    let refused = broker.append(vec![record("e1", Audience::Everyone)]).await;
    assert_eq!(refused, Err(BrokerError::NotReplicated { replicas: 0, wanted: 1 }));
    let replica = RedisServer::setup()
        .line(&format!("replicaof 127.0.0.1 {}", master.port()))
        .line("repl-diskless-sync-delay 0")
        .start();
    testbed::until("the replica follows", || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
    // The same event again: it is in the log already, and must be waited for all the same.
    let taken = broker.append(vec![record("e1", Audience::Everyone)]).await.unwrap();
    assert!(taken[0].duplicate);
    assert_eq!(replica.cli(&["XLEN", "ws:log"]), "1");
    replica.stop();
    let refused = broker.append(vec![record("e1", Audience::Everyone)]).await;
    assert_eq!(refused, Err(BrokerError::NotReplicated { replicas: 0, wanted: 1 }));
    replica.cont();
    append_patiently(&*broker, "e2").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_loses_the_newest_is_mended_by_those_who_saw_them() {
    let mut sentinels = Sentinels::start();
    let (broker, node) = linked(&sentinels.url()).await;
    let (other, second) = linked(&sentinels.url()).await;
    append(&*broker, ids("e", 1..=50)).await;
    let master = sentinels.master().port();
    // The replicas get nothing more, so whatever comes now is the master's alone.
    for server in sentinels.servers().iter().filter(|server| server.port() != master) {
        server.stop();
    }
    append(&*broker, ids("e", 51..=60)).await;
    other.catch_up().await.unwrap();
    let epoch = node.window.read().epoch();
    sentinels.master().kill();
    for server in sentinels.servers().iter().filter(|server| server.port() != master) {
        server.cont();
    }
    sentinels.until_master_is_not(master);
    append_patiently(&*broker, "e61").await;
    for node in [&node, &second] {
        until("all events are there, in order", || node.ids() == ids("e", 1..=61)).await;
        let window = node.window.read();
        let place = window.lineage().place(fanfare::Position { epoch, sequence: 60 }, 61);
        assert_eq!(place, Place::At(60), "no client notices");
    }
    assert_eq!(broker.range(0, 100).await.unwrap().len(), 61, "the new master has them all");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_is_known_to_nodes_that_come_later_and_to_a_redis_that_forgot() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let revocations = [
        Revocation::User { user: "ann".into(), before: 200 },
        Revocation::Token { token: 7 },
        Revocation::Everyone { before: 100 },
    ];
    for revocation in &revocations {
        broker.order(ControlMessage::Revoke(revocation.clone())).await.unwrap();
    }
    // An earlier time takes nothing back.
    broker.order(ControlMessage::Revoke(Revocation::User { user: "ann".into(), before: 150 })).await.unwrap();
    until("the orders arrive", || node.revocations().len() == 4).await;
    let known = |node: &Node| {
        let mut all = Revocations::default();
        for revocation in node.revocations() {
            all.add(revocation);
        }
        revocations.iter().all(|revocation| !all.add(revocation.clone()))
    };
    let (_later, second) = linked(&server.url()).await;
    assert!(known(&second));
    server.cli(&["FLUSHALL"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until("Redis has them again", || server.cli(&["ZCARD", "ws:revoked"]) == "3").await;
    let (_last, third) = linked(&server.url()).await;
    assert!(known(&third));
}

// attack: an account is disabled while the one hub with its database is down => all other nodes hear of it when that one is back
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knows_as_it_links_is_ordered_to_all_others() {
    let server = RedisServer::start();
    let (_broker, node) = linked(&server.url()).await;
    let session = |session| Revocation::Session { session, until: 253_402_300_799 };
    // The latter are more than are ordered one by one.
    for (known, all) in [
        (vec![Revocation::User { user: "ann".into(), before: 200 }, session(0)], 2),
        ((1..=2_000).map(session).collect(), 2_002),
    ] {
        let second = Node::new(BOUNDS);
        second.orders.lock().unwrap().extend(known.iter().cloned().map(ControlMessage::Revoke));
        let (_second, _) = linked_as(RedisOptions::new(server.url().parse().unwrap()), second, BOUNDS).await.unwrap();
        until("the other node hears of all", || {
            let heard = node.revocations();
            known.iter().all(|revocation| heard.contains(revocation))
        })
        .await;
        let kept: u64 = ["ws:revoked", "ws:revoked-sessions"]
            .iter()
            .map(|key| server.cli(&["ZCARD", key]).parse::<u64>().unwrap())
            .sum();
        assert_eq!(kept, all);
    }
    let orders = || server.cli(&["XRANGE", "ws:control", "-", "+"]).matches("revo").count();
    let before = orders();
    let (_third, third) = linked(&server.url()).await;
    assert_eq!((third.revocations().len(), orders()), (2_002, before), "what is known to Redis is ordered to nobody");
}

// attack: entries written straight into the list of revocations, also of bytes that are no text => skipped, counted, and every node links
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_among_the_revocations_stop_nothing() {
    let server = RedisServer::start();
    for key in ["ws:revoked", "ws:revoked-sessions"] {
        for (member, score) in [("'\\255\\254'", "5"), ("'zzz'", "1e308"), ("'s:'", "5"), ("''", "-1")] {
            let add = format!("return redis.call('ZADD', KEYS[1], '{score}', {member})");
            assert_eq!(server.cli(&["EVAL", &add, "1", key]), "1");
        }
    }
    server.cli(&["ZADD", "ws:revoked", "200", "u:ann"]);
    let node = Node::new(BOUNDS);
    let metrics = Arc::new(Metrics::default());
    let options = RedisOptions::new(server.url().parse().unwrap());
    let broker = RedisBroker::connect(options, BOUNDS, node.name.clone(), node.clone(), metrics.clone()).await.unwrap();
    append(&broker, ids("e", 1..=2)).await;
    assert_eq!(node.revocations(), [Revocation::User { user: "ann".into(), before: 200 }]);
    assert_eq!(metrics.get(Counter::BadLogEntries), 8);
}

/// As after a halt of the old master: it goes on, and does not know yet that it is none any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_sentinel_no_longer_names_is_left() {
    let sentinels = Sentinels::start();
    let next = RedisServer::start();
    let (broker, node) = linked(&sentinels.url()).await;
    append(&*broker, ids("e", 1..=5)).await;
    sentinels.name_another(next.port());
    until("the log is on the master that Sentinel names", || next.cli(&["XLEN", "ws:log"]) == "5").await;
    append_patiently(&*broker, "e6").await;
    until("all events are there, in order", || node.ids() == ids("e", 1..=6)).await;
    assert_eq!(next.cli(&["XLEN", "ws:log"]), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ended_leaves_no_ghosts() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let client = ConnectionInfo {
        connection: ConnectionId(1),
        user: "ann".into(),
        node: node.name.as_str().into(),
        since_ms: 1,
        came_ms: 0,
        address: [127, 0, 0, 1].into(),
        unlimited: false,
    };
    node.clients.lock().unwrap().push(client.clone());
    broker.arrived(client.clone());
    list(&*broker, "ann", &[client]).await;
    let ttl: i64 = server.cli(&["TTL", &format!("ws:connection:{}", ConnectionId(1))]).parse().unwrap();
    assert!((3_500..=3_600).contains(&ttl), "{ttl}");
    let (other, _node) = linked(&server.url()).await;
    until("the other knows of both", || other.status().cluster == Some((1, 2))).await;
    // It ends before it has removed any connection from the list.
    broker.stop();
    list(&*other, "ann", &[]).await;
    let gone = || server.cli(&["EXISTS", &format!("ws:connection:{}", ConnectionId(1)), "ws:user:ann:connections"]);
    until("the keys are gone", || gone() == "0").await;
    until("the node is forgotten", || server.cli(&["ZCARD", "ws:nodes"]) == "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_connection_wins_whatever_time_nodes_think_it_is() {
    let server = RedisServer::start();
    let (before, node_before) = linked(&server.url()).await;
    let (after, node_after) = linked(&server.url()).await;
    let client = |node: &Node, came_ms: u64, since_ms: u64| ConnectionInfo {
        connection: ConnectionId(1),
        user: "ann".into(),
        node: node.name.as_str().into(),
        since_ms,
        came_ms,
        address: [127, 0, 0, 1].into(),
        unlimited: false,
    };
    // The clock of the node that it left is an hour ahead. Both nodes are of this process, and so of one clock that is never set.
    let left = client(&node_before, 400, 1_790_003_600_000);
    let came = client(&node_after, 500, 1_790_000_000_000);
    before.arrived(left.clone());
    list(&*before, "ann", std::slice::from_ref(&left)).await;
    after.arrived(came.clone());
    list(&*before, "ann", std::slice::from_ref(&came)).await;
    let replaced = ControlMessage::Replaced { connection: ConnectionId(1), came_ms: 400, sure: true };
    until("the node that it left lets it go", || node_before.orders.lock().unwrap().contains(&replaced)).await;
    // What is written last is not what came last.
    before.arrived(left);
    let again = || node_before.orders.lock().unwrap().iter().filter(|order| **order == replaced).count();
    until("the older claim is refused", || again() == 2).await;
    list(&*before, "ann", &[came]).await;
    let orders = node_after.orders.lock().unwrap().clone();
    assert!(!orders.iter().any(|order| matches!(order, ControlMessage::Replaced { .. })), "{orders:?}");
    // The server's clock is known to a millisecond at best, so one that came a millisecond later may be the older one.
    before.arrived(client(&node_before, 501, 1_790_000_000_000));
    let undecided = |node: &Node, came_ms| {
        let order = ControlMessage::Replaced { connection: ConnectionId(1), came_ms, sure: false };
        node.orders.lock().unwrap().contains(&order)
    };
    until("one of them may come back", || undecided(&node_after, 500) || undecided(&node_before, 501)).await;
    // Another server's clock was ahead: what it said can't be compared.
    let key = format!("ws:connection:{}", ConnectionId(1));
    let claim = ["node", "gone", "came", "1", "at", "9999999999999", "spread", "2", "server", "another"];
    server.cli(&[&["HSET", &key][..], &claim].concat());
    let back = client(&node_after, 900, 1_790_000_000_000);
    after.arrived(back.clone());
    list(&*before, "ann", &[back]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_pieces_is_written_anew_whole_and_without_those_who_left() {
    const CLIENTS: u128 = 700;
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let client = |n: u128, user: &str| ConnectionInfo {
        connection: ConnectionId(n),
        user: user.into(),
        node: node.name.as_str().into(),
        since_ms: 1,
        came_ms: 0,
        address: [127, 0, 0, 1].into(),
        unlimited: false,
    };
    let all: Vec<_> = (1..=CLIENTS).map(|n| client(n, if n % 2 == 0 { "ann" } else { "bob" })).collect();
    all.iter().for_each(|client| broker.arrived(client.clone()));
    node.clients.lock().unwrap().clone_from(&all);
    let of = |user: &str| all.iter().filter(|client| &*client.user == user).cloned().collect::<Vec<_>>();
    list(&*broker, "ann", &of("ann")).await;
    // Nobody is told that one user's clients left, nor that the list was lost in part; the next link sets both right.
    node.clients.lock().unwrap().retain(|client| &*client.user == "ann");
    server.cli(&["DEL", "ws:user:ann:connections"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let count = |key: &str| server.cli(&["SCARD", key]);
    until("those who left are gone", || count("ws:user:bob:connections") == "0").await;
    until("the others are there", || count("ws:user:ann:connections") == (CLIENTS / 2).to_string()).await;
    let own = format!("ws:node:{}:connections", node.name);
    until("the node's own list is whole", || count(&own) == (CLIENTS / 2).to_string()).await;
    list(&*broker, "ann", &of("ann")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_refuses_events_and_nothing_else() {
    let server = RedisServer::setup().line("maxmemory-policy noeviction").start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=3)).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "100kb"]);
    let refused = broker.append(vec![record("e4", Audience::Everyone)]).await.unwrap_err();
    assert!(refused.to_string().contains("takes no writes"), "{refused}");
    let problem = broker.status().problem.unwrap();
    assert!(problem.contains("maxmemory"), "{problem}");
    assert!(broker.status().connected);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    append_patiently(&*broker, "e4").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
    assert_eq!(broker.status().problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_link_breaks_while_redis_is_full_reads_on_and_joins_when_there_is_room() {
    let server = RedisServer::setup().line("maxmemory-policy noeviction").start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=3)).await;
    broker.catch_up().await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "100kb"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("it is linked, and says why it takes no events", || {
        let status = broker.status();
        status.connected && status.problem.is_some_and(|problem| problem.contains("maxmemory"))
    })
    .await;
    let refused = broker.append(vec![record("e4", Audience::Everyone)]).now_or_never().expect("refused at once");
    assert!(refused.unwrap_err().to_string().contains("takes no writes"));
    let read = broker.range(0, 10).await.unwrap();
    assert_eq!(read.len(), 3, "the log can be read");
    let links = || -> BTreeSet<String> {
        let list = server.cli(&["CLIENT", "LIST", "TYPE", "normal"]);
        let ids = list.lines().filter(|line| !line.contains("cmd=client")).filter_map(|line| line.split(' ').next());
        ids.map(str::to_owned).collect()
    };
    let before = links();
    // What is watched is that nothing happens: longer than a beat.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(links(), before, "the link stays");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    append_patiently(&*broker, "e4").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
    assert_eq!(broker.status().problem, None);
}

async fn refused(url: &str) -> LinkError {
    linked_with(RedisOptions::new(url.parse().unwrap()), BOUNDS).await.expect_err("it can't be used")
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_hold_the_log_are_named_with_what_to_do() {
    let server = RedisServer::setup().password("hush").start();
    for url in [format!("redis://:wrong@127.0.0.1:{}", server.port()), format!("redis://127.0.0.1:{}", server.port())] {
        let error = refused(&url).await;
        assert!(matches!(error, LinkError::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("REDIS_URL") && !text.contains("wrong"), "{text}");
    }
    server.cli(&["SET", "ws:log", "mine"]);
    let error = refused(&server.url()).await;
    assert!(matches!(&error, LinkError::NotOurs(why) if why.contains("ws:log holds a string")), "{error:?}");
    server.cli(&["DEL", "ws:log"]);
    server.cli(&["XADD", "ws:log", "*", "somebody", "elses"]);
    let error = refused(&server.url()).await;
    assert!(matches!(&error, LinkError::NotOurs(_)), "{error:?}");
    assert!(error.to_string().contains("redis_namespace"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_another_version_is_left_to_its_nodes_or_taken_over() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=3)).await;
    broker.catch_up().await.unwrap();
    server.cli(&["HSET", "ws:epoch", "format", "4"]);
    let error = refused(&server.url()).await;
    let says = "newer version of fanfare, format 4";
    assert!(matches!(&error, LinkError::NotOurs(why) if why.contains(says)), "{error:?}");
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("it takes no events any more", || broker.status().problem.is_some_and(|why| why.contains(says))).await;
    server.cli(&["HDEL", "ws:epoch", "format"]);
    until("it takes events again", || broker.status().problem.is_none()).await;
    assert_eq!(server.cli(&["HGET", "ws:epoch", "format"]).trim(), "3");
    append(&*broker, ids("e", 4..=4)).await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_of_another_topology_is_refused_with_the_right_one() {
    let server = RedisServer::start();
    let error = refused(&format!("redis+cluster://127.0.0.1:{}", server.port())).await;
    assert!(error.to_string().contains("cluster support disabled"), "{error}");
    let error = refused(&format!("redis+sentinel://127.0.0.1:{}/hub", server.port())).await;
    assert!(error.to_string().to_lowercase().contains("sentinel"), "{error}");
    let lone = RedisServer::setup().line("cluster-enabled yes").start();
    let error = refused(&lone.url()).await;
    assert!(error.to_string().ends_with("is part of a Cluster: use redis+cluster://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_hold_no_log_is_refused() {
    let error = refused_with("redis_version:5.0.14\r\nrole:master\r\nrun_id:x\r\n").await;
    assert!(matches!(&error, LinkError::TooOld { found, .. } if found == "5.0.14"), "{error:?}");
    let error = refused_with("redis_version:7.4.0\r\ndragonfly_version:df-v1.30.0\r\nrole:master\r\n").await;
    assert!(error.to_string().contains("is Dragonfly df-v1.30.0"), "{error:?}");
}

/// What comes of a server that describes itself so.
async fn refused_with(info: &'static str) -> LinkError {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                match line.unwrap_or_default().as_str() {
                    "INFO" => {
                        write!(stream, "${}\r\n{info}\r\n", info.len()).unwrap();
                    }
                    // Whatever the client introduces itself with.
                    "SETINFO" => write!(stream, "+OK\r\n").unwrap(),
                    _ => {}
                }
            }
        }
    });
    refused(&format!("redis://127.0.0.1:{port}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named_after_a_while() {
    let error = refused(&format!("redis://127.0.0.1:{}", testbed::free_port())).await;
    assert!(matches!(&error, LinkError::Down(why) if why.contains("can't be reached")), "{error:?}");
}
