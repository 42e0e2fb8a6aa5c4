//! Failures of a log in Redis: interruptions, losses, foreign entries, and unsupported servers.

use crate::{
    node::{BOUNDS, Metrics, Node, append, append_with_retries, ids, linked, linked_as, linked_with, record, until},
    suite::until_listed,
};
use fanfare_core::{
    Audience, ConnectionId, Draft, Position, Revocation, Revocations,
    lineage::{Place, tag},
    window::{Bounds, GapReason},
};
use fanfare_log::{
    BrokerError, ControlMessage, ControlPlane, Log, LogFollower, Record,
    metrics::LogCounter,
    presence::{ConnectionInfo, Presence},
    redis::{Durability, LinkError, RedisBroker, RedisOptions},
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

/// The connection ID of a client without one.
const NO_ID: ConnectionId = ConnectionId(0);

/// IDs are copied to the current generation when they are queried.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_remembered_in_generations() {
    let server = RedisServer::start();
    let bounds = Bounds { events: 10, ids: 100, ..BOUNDS };
    let (broker, node) = linked_with(RedisOptions::new(server.url().parse().unwrap()), bounds).await.unwrap();
    append(&*broker, ids("e", 1..=60)).await;
    let known = |key: &str| server.cli(&["HLEN", key]).parse::<usize>().unwrap();
    assert_eq!((known("ws:ids"), known("ws:ids:1"), known("ws:ids:2")), (10, 50, 0));
    assert_eq!(server.cli(&["HGET", "ws:ids", "e3"]), "");
    // In one batch with other events, some of them new.
    let mixed = ["e3", "f1", "e60", "f1", "e4"].map(|id| record(id, Audience::Everyone));
    let places = broker.append(mixed.to_vec()).await.unwrap();
    let places: Vec<_> = places.iter().map(|appended| (appended.position.sequence, appended.duplicate)).collect();
    assert_eq!(places, [(3, true), (61, false), (60, true), (61, true), (4, true)]);
    assert_eq!(server.cli(&["HGET", "ws:ids", "e3"]), "3");
    append(&*broker, ids("g", 1..=190)).await;
    let all = known("ws:ids") + known("ws:ids:1") + known("ws:ids:2");
    assert!((100..=150).contains(&all), "{all}");
    let again = broker.append(vec![record("e1", Audience::Everyone)]).await.unwrap();
    assert!(!again[0].duplicate, "IDs beyond the limit are forgotten");
    broker.catch_up().await.unwrap();
    assert_eq!(node.head(), 252);
    until("the status has the remaining horizon", || broker.status().horizon > Duration::ZERO).await;
    assert!(broker.status().horizon < Duration::from_secs(7_200));
}

/// The nodes restore the events in their windows to a Redis that lost its data, but not the IDs of evicted events.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_is_an_event_id_receives_a_gap_after_redis_lost_its_ids() {
    let mut server = RedisServer::start();
    let bounds = Bounds { events: 10, ..BOUNDS };
    let (broker, node) = linked_with(RedisOptions::new(server.url().parse().unwrap()), bounds).await.unwrap();
    append(&*broker, ids("e", 1..=50)).await;
    broker.catch_up().await.unwrap();
    let epoch = node.window.read().epoch();
    server.kill();
    server.restart();
    append_with_retries(&*broker, "e7").await;
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    assert_ne!(window.epoch(), epoch);
    assert_eq!(window.find("e7"), Some(51), "its id was lost");
    let [before, after] = [epoch, window.epoch()].map(|epoch| ConnectionId(u128::from(tag(epoch)) << 108));
    for connection in [before, NO_ID] {
        let start = window.start(Some("e7"), connection);
        assert_eq!(
            (start.cursor, start.gap.map(|gap| gap.reason)),
            (51, Some(GapReason::Reset)),
            "its first position was 7"
        );
    }
    let place = format!("pos-{epoch:x}-50");
    for (cursor, connection) in [("e7", after), ("e50", before), (&place, NO_ID)] {
        assert_eq!(window.start(Some(cursor), connection).gap, None, "{cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_fills_its_window_from_the_log() {
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
async fn all_nodes_receive_events_in_the_same_order() {
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
async fn a_question_reaches_every_node_and_a_crashed_node_is_counted_as_silent() {
    let server = RedisServer::start();
    let (first, one) = linked(&server.url()).await;
    let (second, other) = linked(&server.url()).await;
    until("both nodes are counted", || first.status().cluster.is_some_and(|(_, nodes)| nodes == 2)).await;
    let question = r#"{"client":"c1"}"#.to_owned();
    let (answers, asked) = first.survey(question.clone()).await.unwrap();
    let expected = [&one, &other].map(|node| format!("{} heard {question:?}", node.name));
    assert_eq!((answers.iter().collect::<BTreeSet<_>>(), asked), (expected.iter().collect(), 2));
    // A crashed node: questions count it until its heartbeat is too old.
    server.cli(&["HSET", "ws:node:ghost", "connections", "0"]);
    server.cli(&["ZADD", "ws:nodes", "9999999999999", "ghost"]);
    until("the crashed node is counted", || first.status().cluster.is_some_and(|(_, nodes)| nodes == 3)).await;
    let (answers, asked) = first.survey(question).await.unwrap();
    assert_eq!((answers.len(), asked), (2, 3));
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_resumes_reading_after_its_connections_were_killed() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let (_other, second) = linked(&server.url()).await;
    for round in 0..5 {
        append_with_retries(&*broker, &format!("a{round}")).await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        append_with_retries(&*broker, &format!("b{round}")).await;
    }
    let expected: Vec<_> = (0..5).flat_map(|round| [format!("a{round}"), format!("b{round}")]).collect();
    for node in [&node, &second] {
        until("the node has all events", || node.ids() == expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_restore_the_log_after_a_crash_of_redis_even_without_its_data() {
    let mut server = RedisServer::setup().persistent().start();
    let (broker, node) = linked(&server.url()).await;
    let (other, second) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=300)).await;
    broker.catch_up().await.unwrap();
    other.catch_up().await.unwrap();
    let seventh = Position { epoch: node.window.read().epoch(), sequence: 7 };
    for forget in [false, true] {
        let (epoch, head) = (node.window.read().epoch(), node.head());
        server.kill();
        until("the node detects the crash", || broker.status().problem.is_some()).await;
        let refused = broker.append(vec![record("rejected", Audience::Everyone)]).now_or_never();
        let refused = refused.expect("rejected immediately").unwrap_err();
        assert!(matches!(refused, BrokerError::Unavailable(_)), "{refused}");
        if forget {
            server.forget();
        }
        server.restart();
        until("both nodes are connected again", || {
            [&broker, &other].iter().all(|broker| broker.status().problem.is_none())
        })
        .await;
        {
            let window = node.window.read();
            assert_ne!(window.epoch(), epoch, "the log continues in a new epoch");
            assert_eq!(window.head(), head, "no event is missing");
            let place = window.lineage().place(Position { epoch, sequence: head }, head);
            assert_eq!(place, Place::At(head), "cursors remain valid");
        }
        append_with_retries(&*other, &format!("after-{forget}")).await;
        broker.catch_up().await.unwrap();
    }
    let expected: Vec<_> = ids("e", 1..=300).into_iter().chain(["after-false".into(), "after-true".into()]).collect();
    assert_eq!(node.ids(), expected);
    until("the other node has all events", || second.ids() == expected).await;
    assert_eq!(broker.range(0, 1_000).await.unwrap().len(), 302, "the log has all events");
    let again = broker.append(vec![record("e7", Audience::Everyone)]).await.unwrap();
    assert_eq!((again[0].duplicate, again[0].position), (true, seventh), "the log knows every ID and its position");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_log_is_restored_completely_before_it_continues() {
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
            let draft = Draft::new("note", &serde_json::json!({ "pad": pad })).unwrap();
            let event = draft.finish(0, || format!("e{i}")).unwrap();
            Record { event, audience: Audience::Everyone, publisher: None, trace: None }
        });
        nodes[0].0.append(batch.collect()).await.unwrap();
    }
    for (broker, _) in &nodes {
        broker.catch_up().await.unwrap();
    }
    let epoch = nodes[0].1.window.read().epoch();
    // The server is not persistent, so it loses all data.
    server.restart();
    for (broker, node) in &nodes {
        until("the node is connected again", || node.window.read().epoch() != epoch).await;
        until("the node is healthy", || broker.status().problem.is_none()).await;
        let window = node.window.read();
        assert_eq!((window.head(), window.len() as u64), (EVENTS, EVENTS));
        let place = window.lineage().place(Position { epoch, sequence: EVENTS }, EVENTS);
        assert_eq!(place, Place::At(EVENTS), "cursors remain valid");
    }
    assert_eq!(server.cli(&["XLEN", "ws:log"]), EVENTS.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_lineage_is_a_new_log() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=5)).await;
    broker.catch_up().await.unwrap();
    let epoch = node.window.read().epoch();
    server.cli(&["DEL", "ws:epoch"]);
    append_with_retries(&*broker, "e6").await;
    broker.catch_up().await.unwrap();
    let window = node.window.read();
    assert_eq!(window.head(), 6);
    assert_ne!(window.epoch(), epoch);
    assert_eq!(window.start(Some(&format!("pos-{epoch:x}-3")), NO_ID).gap.unwrap().reason, GapReason::Reset);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_of_a_lost_log_receive_a_reset() {
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
        let gap = window.start(Some(&id), NO_ID).gap.unwrap();
        assert_eq!(gap.reason, GapReason::Reset, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_member_during_a_restart_causes_a_reset() {
    let mut server = RedisServer::setup().persistent().start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=10)).await;
    broker.catch_up().await.unwrap();
    // Another member that was alive until now, and may have acknowledged events that no other node has.
    let now: f64 = server.cli(&["ZSCORE", "ws:nodes", &node.name]).parse().unwrap();
    server.cli(&["HSET", "ws:members", "gone", &format!("9 9 {now:.0} - i")]);
    server.cli(&["HSET", "ws:epoch", "version", "9"]);
    let epoch = node.window.read().epoch();
    server.restart();
    until("the node is connected again", || node.window.read().epoch() != epoch).await;
    until("the node is healthy", || broker.status().problem.is_none()).await;
    let window = node.window.read();
    assert_eq!(window.head(), 10);
    let start = window.start(Some(&format!("pos-{epoch:x}-10")), NO_ID);
    assert_eq!((start.cursor, start.gap.unwrap().reason), (10, GapReason::Reset), "a possible loss causes a gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_is_detected_and_recovers() {
    let server = RedisServer::start();
    let options =
        RedisOptions { lag_limit: Duration::from_secs(2), ..RedisOptions::new(server.url().parse().unwrap()) };
    let (broker, node) = linked_with(options, BOUNDS).await.unwrap();
    append(&*broker, ids("e", 1..=3)).await;
    server.stop();
    until("the node detects the failure", || broker.status().problem.is_some()).await;
    assert!(!broker.status().connected);
    assert!(broker.append(vec![record("x", Audience::Everyone)]).await.is_err());
    server.cont();
    until("the node is healthy again", || broker.status().problem.is_none()).await;
    append_with_retries(&*broker, "e4").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_streams_are_detected_and_recovered() {
    let server = RedisServer::start();
    let options =
        RedisOptions { lag_limit: Duration::from_secs(2), ..RedisOptions::new(server.url().parse().unwrap()) };
    let (broker, node) = linked_with(options, BOUNDS).await.unwrap();
    let (_other, second) = linked(&server.url()).await;
    // All commands succeed, but the node blocks on streams that were replaced, so it receives nothing.
    append(&*broker, ids("e", 1..=3)).await;
    server.cli(&["RENAME", "ws:control", "ws:elsewhere"]);
    server.cli(&["XADD", "ws:control", "99999999999999-0", "k", "odd"]);
    append_with_retries(&*broker, "e4").await;
    server.cli(&["DEL", "ws:log", "ws:epoch", "ws:ids"]);
    append_with_retries(&*broker, "e5").await;
    for node in [&node, &second] {
        until("the node has all events", || node.ids() == ids("e", 1..=5)).await;
    }
    until("the node is healthy", || broker.status().problem.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_compatible_publishers_are_appended_once() {
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
        assert_eq!(server.cli(&["PUBLISH", channel, text]), "2", "both nodes are subscribed");
    }
    until("the last event is in the window", || node.ids().last().is_some_and(|id| id == "u2")).await;
    let heard: Vec<_> = node.ids();
    assert_eq!(heard.len(), 5, "{heard:?}");
    assert!(heard[3].starts_with("heard-"), "{heard:?}");
    assert_eq!((&heard[..3], &*heard[4]), (&["b1".to_owned(), "u1".to_owned(), "c1".to_owned()][..], "u2"));
    until("the other node has the same events", || second.ids() == heard).await;
    let window = node.window.read();
    let audiences: Vec<_> = window.since(0).take(3).map(|entry| entry.audience.clone()).collect();
    assert_eq!(audiences, [Audience::Everyone, Audience::User("ann".into()), Audience::Connection(id)]);
    let kept: serde_json::Value = serde_json::from_slice(&window.since(0).next().unwrap().json()).unwrap();
    assert_eq!((&kept["timestamp"], &kept["data"]["n"]), (&"2026-01-01T00:00:00".into(), &1.into()));
    drop(window);
    assert_eq!(broker.status().problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_on_channels_match_the_wire_vectors() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../../tests/wire/events.json")).unwrap();
    let server = RedisServer::start();
    let (_broker, node) = linked(&server.url()).await;
    let mut delivered = Vec::new();
    for case in vectors["cases"].as_array().unwrap() {
        assert_eq!(server.cli(&["PUBLISH", "ws:broadcast", case["published"].as_str().unwrap()]), "1");
        // The hub generates the ID and the timestamp.
        let made = case["delivered"].as_str().is_some_and(|text| text.contains("fresh"));
        delivered.extend(
            case["delivered"]
                .as_str()
                .filter(|_| !made)
                .map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap()),
        );
    }
    server.cli(&["PUBLISH", "ws:broadcast", r#"{"type":"note","event_id":"last"}"#]);
    until("the last event is in the window", || node.ids().last().is_some_and(|id| id == "last")).await;
    let window = node.window.read();
    let events = window.since(0).map(|entry| serde_json::from_slice::<serde_json::Value>(&entry.json()).unwrap());
    let mut events: Vec<_> = events.filter(|event| event["event_id"] != "last").collect();
    events.retain(|event| !event["event_id"].as_str().unwrap().starts_with("heard-"));
    let unseen: Vec<_> = delivered.iter().filter(|event| !events.contains(event)).collect();
    // The hub sets the current time in one of them.
    assert!(unseen.iter().all(|event| event["timestamp"] == "1970-01-01T00:00:00.000Z"), "{unseen:?}");
    assert_eq!(events.len(), delivered.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_channel_provides_the_type_of_its_events() {
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
    until("the last event is in the window", || node.ids().last().is_some_and(|id| id == "b1")).await;
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

// attack: entries written straight into the log's stream => removed or skipped, counted, no node stops
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_in_the_stream_are_not_delivered_and_stop_no_node() {
    let server = RedisServer::start();
    let metrics = Arc::new(Metrics::default());
    let (node, counting) = (Node::new(BOUNDS), Node::new(BOUNDS));
    let link = async |node: &Arc<Node>| {
        let options = RedisOptions::new(server.url().parse().unwrap());
        RedisBroker::connect(options, BOUNDS, node.name.clone(), node.clone(), metrics.clone()).await.unwrap()
    };
    let (broker, _other) = (Arc::new(link(&node).await), link(&counting).await);
    append(&*broker, ids("a", 1..=3)).await;
    until("both nodes have the events", || node.head() == 3 && counting.head() == 3).await;

    let forged = r#"{"type":"ack","event_id":"f","connection_id":"x"}"#;
    // More fields than a script can pass to a command.
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
        let seen = metrics.get(LogCounter::BadLogEntries);
        server.cli(&[&["XADD", "ws:log", &id], fields].concat());
        until(&format!("{id} is detected"), || metrics.get(LogCounter::BadLogEntries) > seen).await;
        append_with_retries(&*broker, &format!("b{n}")).await;
        published.push(format!("b{n}"));
        let own = |node: &Node| node.ids().into_iter().filter(|id| !id.starts_with("0-")).collect::<Vec<_>>();
        until("both nodes have the published events", || own(&node) == published && own(&counting) == published).await;
        until("the node is healthy", || broker.status().problem.is_none()).await;
        assert_eq!(node.window.read().floor(), 0, "no hole, so no client receives a gap");
    }

    // The append finds the foreign entry before a node has read it.
    server.cli(&["XADD", "ws:log", "*", "x", "y"]);
    append_with_retries(&*broker, "c").await;
    until("the event is in the window", || node.ids().last().is_some_and(|id| id == "c")).await;
    let (_late, late) = linked(&server.url()).await;
    assert_eq!(late.ids().last().map(String::as_str), Some("c"), "a node that starts later reads the log too");
    let seen = late.window.read();
    let frames: Vec<_> = seen.since(0).map(|entry| String::from_utf8_lossy(&entry.json()).into_owned()).collect();
    assert!(!frames.iter().any(|json| json.contains("ack") || json.contains("$sys")), "{frames:?}");
}

// attack: entries written straight into the control stream, also at its last possible id => removed, counted, no node
// stops
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_in_the_control_stream_stop_no_node() {
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
        let seen = metrics.get(LogCounter::BadLogEntries);
        server.cli(&["XADD", "ws:control", id, key, "y"]);
        until(&format!("{id} is removed"), || metrics.get(LogCounter::BadLogEntries) > seen).await;
        let before = server.cli(&["XREVRANGE", "ws:control", "+", "-", "COUNT", "1"]);
        append_with_retries(&*broker, &format!("e{n}")).await;
        testbed::until("the node sends a heartbeat", || {
            let newest = server.cli(&["XREVRANGE", "ws:control", "+", "-", "COUNT", "1"]);
            newest.contains("probe") && newest != before
        });
        until("the node is healthy", || broker.status().problem.is_none()).await;
    }
    assert_eq!(node.ids(), ids("e", 0..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_retained_for_ten_minutes_of_probes_of_five_hundred_nodes() {
    const PROBES: &str = "for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'k', 'probe', 'n', 'x') end";
    let server = RedisServer::start();
    let (_broker, node) = linked(&server.url()).await;
    let command = server.cli(&["XADD", "ws:control", "*", "k", "disconnect", "c", "x"]);
    let kept = || !server.cli(&["XRANGE", "ws:control", &command, &command]).is_empty();
    let beats = || server.cli(&["HGET", &format!("ws:node:{}", node.name), "beat"]);
    for (probes, is_kept) in [("150000", true), ("50000", false)] {
        server.cli(&["EVAL", PROBES, "1", "ws:control", probes]);
        let before = beats();
        // Each heartbeat trims the stream.
        testbed::until("the node sends a heartbeat", || beats() != before);
        assert_eq!(kept(), is_kept, "after {probes} more probes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_waits_for_a_replica() {
    let master = RedisServer::start();
    let options = RedisOptions { durability: Durability::Replica, ..RedisOptions::new(master.url().parse().unwrap()) };
    let (broker, node) = linked_with(options, BOUNDS).await.unwrap();
    let refused = broker.append(vec![record("e1", Audience::Everyone)]).await;
    assert_eq!(refused, Err(BrokerError::NotReplicated { replicas: 0, wanted: 1 }));
    let replica = RedisServer::setup()
        .line(&format!("replicaof 127.0.0.1 {}", master.port()))
        .line("repl-diskless-sync-delay 0")
        .start();
    testbed::until("the replica is in sync", || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
    });
    // The event is published again. It is in the log already, but the publish must still wait for a replica.
    let taken = broker.append(vec![record("e1", Audience::Everyone)]).await.unwrap();
    assert!(taken[0].duplicate);
    assert_eq!(replica.cli(&["XLEN", "ws:log"]), "1");
    replica.stop();
    let refused = broker.append(vec![record("e1", Audience::Everyone)]).await;
    assert_eq!(refused, Err(BrokerError::NotReplicated { replicas: 0, wanted: 1 }));
    replica.cont();
    append_with_retries(&*broker, "e2").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_restore_events_that_a_failover_lost() {
    let mut sentinels = Sentinels::start();
    let (broker, node) = linked(&sentinels.url()).await;
    let (other, second) = linked(&sentinels.url()).await;
    append(&*broker, ids("e", 1..=50)).await;
    let master = sentinels.master().port();
    // The replicas are stopped, so only the master has the following events.
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
    append_with_retries(&*broker, "e61").await;
    for node in [&node, &second] {
        until("the node has all events in order", || node.ids() == ids("e", 1..=61)).await;
        let window = node.window.read();
        let place = window.lineage().place(Position { epoch, sequence: 60 }, 61);
        assert_eq!(place, Place::At(60), "cursors remain valid");
    }
    assert_eq!(broker.range(0, 100).await.unwrap().len(), 61, "the new master has all events");
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_reach_later_nodes_and_are_restored_to_a_redis_that_lost_them() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    let revocations = [
        Revocation::User { user: "ann".into(), before: 200 },
        Revocation::Token { token: 7 },
        Revocation::Everyone { before: 100 },
    ];
    for revocation in &revocations {
        broker.send(ControlMessage::Revoke(revocation.clone())).await.unwrap();
    }
    // An earlier time does not weaken the revocation.
    broker.send(ControlMessage::Revoke(Revocation::User { user: "ann".into(), before: 150 })).await.unwrap();
    until("the node receives the commands", || node.revocations().len() == 4).await;
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
    until("Redis has the revocations again", || server.cli(&["ZCARD", "ws:revoked"]) == "3").await;
    let (_last, third) = linked(&server.url()).await;
    assert!(known(&third));
}

// attack: an account is disabled while the one hub with its database is down => all nodes learn it when that one
// returns
#[tokio::test(flavor = "multi_thread")]
async fn revocations_of_a_connecting_node_are_announced_to_all_others() {
    let server = RedisServer::start();
    let (_broker, node) = linked(&server.url()).await;
    let session = |session| Revocation::Session { session, until: 253_402_300_799 };
    // The second list is too long for a command each.
    for (known, all) in [
        (vec![Revocation::User { user: "ann".into(), before: 200 }, session(0)], 2),
        ((1..=2_000).map(session).collect(), 2_002),
    ] {
        let second = Node::new(BOUNDS);
        second.commands.lock().unwrap().extend(known.iter().cloned().map(ControlMessage::Revoke));
        let (_second, _) = linked_as(RedisOptions::new(server.url().parse().unwrap()), second, BOUNDS).await.unwrap();
        until("the other node receives all revocations", || {
            let received = node.revocations();
            known.iter().all(|revocation| received.contains(revocation))
        })
        .await;
        let kept: u64 = ["ws:revoked", "ws:revoked-sessions"]
            .iter()
            .map(|key| server.cli(&["ZCARD", key]).parse::<u64>().unwrap())
            .sum();
        assert_eq!(kept, all);
    }
    let announced = || server.cli(&["XRANGE", "ws:control", "-", "+"]).matches("revo").count();
    let before = announced();
    let (_third, third) = linked(&server.url()).await;
    assert_eq!(
        (third.revocations().len(), announced()),
        (2_002, before),
        "revocations that Redis has are not announced"
    );
}

// attack: entries written straight into the list of revocations, also bytes that are not text => skipped, no node stops
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_among_the_revocations_stop_no_node() {
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
    assert_eq!(metrics.get(LogCounter::BadLogEntries), 8);
}

/// As after a pause of the old master: it continues, and has not been demoted yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_a_master_that_sentinel_no_longer_names() {
    let sentinels = Sentinels::start();
    let next = RedisServer::start();
    let (broker, node) = linked(&sentinels.url()).await;
    append(&*broker, ids("e", 1..=5)).await;
    sentinels.name_another(next.port());
    until("the log is on the master that Sentinel names", || next.cli(&["XLEN", "ws:log"]) == "5").await;
    append_with_retries(&*broker, "e6").await;
    until("the node has all events in order", || node.ids() == ids("e", 1..=6)).await;
    assert_eq!(next.cli(&["XLEN", "ws:log"]), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_a_stopped_node_are_removed() {
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
    until_listed(&*broker, "ann", &[client]).await;
    let ttl: i64 = server.cli(&["TTL", &format!("ws:connection:{}", ConnectionId(1))]).parse().unwrap();
    let encoding = server.cli(&["OBJECT", "ENCODING", &format!("ws:connection:{}", ConnectionId(1))]);
    assert_ne!(encoding, "hashtable", "a connection takes twice the memory");
    assert!((3_500..=3_600).contains(&ttl), "{ttl}");
    let (other, _node) = linked(&server.url()).await;
    until("the other node counts both", || other.status().cluster == Some((1, 2))).await;
    // It stops before it has removed its connections from the list.
    broker.stop();
    until_listed(&*other, "ann", &[]).await;
    let gone = || server.cli(&["EXISTS", &format!("ws:connection:{}", ConnectionId(1)), "ws:user:ann:connections"]);
    until("the keys are deleted", || gone() == "0").await;
    until("the node is removed", || server.cli(&["ZCARD", "ws:nodes"]) == "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_connection_wins_regardless_of_the_wall_clocks() {
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
    // The wall clock of the first node is an hour ahead. Both nodes run in this process and share a monotonic clock.
    let left = client(&node_before, 400, 1_790_003_600_000);
    let came = client(&node_after, 500, 1_790_000_000_000);
    before.arrived(left.clone());
    until_listed(&*before, "ann", std::slice::from_ref(&left)).await;
    after.arrived(came.clone());
    until_listed(&*before, "ann", std::slice::from_ref(&came)).await;
    let replaced = ControlMessage::Replaced { connection: ConnectionId(1), came_ms: 400, sure: true };
    until("the first node closes its connection", || node_before.commands.lock().unwrap().contains(&replaced)).await;
    // The order of the writes does not matter.
    before.arrived(left);
    let again = || node_before.commands.lock().unwrap().iter().filter(|command| **command == replaced).count();
    until("the older connection is rejected", || again() == 2).await;
    until_listed(&*before, "ann", &[came]).await;
    let commands = node_after.commands.lock().unwrap().clone();
    assert!(!commands.iter().any(|command| matches!(command, ControlMessage::Replaced { .. })), "{commands:?}");
    // The server's clock is known to a millisecond at best, so the order of connections a millisecond apart is
    // uncertain.
    before.arrived(client(&node_before, 501, 1_790_000_000_000));
    let undecided = |node: &Node, came_ms| {
        let command = ControlMessage::Replaced { connection: ConnectionId(1), came_ms, sure: false };
        node.commands.lock().unwrap().contains(&command)
    };
    until("one node closes its connection with an uncertain order", || {
        undecided(&node_after, 500) || undecided(&node_before, 501)
    })
    .await;
    // A claim by another server's clock, which was ahead, cannot be compared.
    let key = format!("ws:connection:{}", ConnectionId(1));
    let claim = ["node", "gone", "came", "1", "at", "9999999999999", "spread", "2", "server", "another"];
    server.cli(&[&["HSET", &key][..], &claim].concat());
    let back = client(&node_after, 900, 1_790_000_000_000);
    after.arrived(back.clone());
    until_listed(&*before, "ann", &[back]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_of_many_batches_rewrites_the_list_without_disconnected_clients() {
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
    until_listed(&*broker, "ann", &of("ann")).await;
    // The clients of one user disconnect without a notification, and a part of the list is lost. The next link corrects
    // both.
    node.clients.lock().unwrap().retain(|client| &*client.user == "ann");
    server.cli(&["DEL", "ws:user:ann:connections"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let count = |key: &str| server.cli(&["SCARD", key]);
    until("the disconnected clients are removed", || count("ws:user:bob:connections") == "0").await;
    until("the other clients are listed", || count("ws:user:ann:connections") == (CLIENTS / 2).to_string()).await;
    let own = format!("ws:node:{}:connections", node.name);
    until("the node's own list is complete", || count(&own) == (CLIENTS / 2).to_string()).await;
    until_listed(&*broker, "ann", &of("ann")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_rejects_only_events() {
    let server = RedisServer::setup().line("maxmemory-policy noeviction").start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=3)).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "100kb"]);
    let refused = broker.append(vec![record("e4", Audience::Everyone)]).await.unwrap_err();
    assert!(refused.to_string().contains("rejects writes"), "{refused}");
    let problem = broker.status().problem.unwrap();
    assert!(problem.contains("maxmemory"), "{problem}");
    assert!(broker.status().connected);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    append_with_retries(&*broker, "e4").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
    assert_eq!(broker.status().problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_reconnects_to_a_full_redis_reads_and_joins_once_there_is_room() {
    let server = RedisServer::setup().line("maxmemory-policy noeviction").start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=3)).await;
    broker.catch_up().await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "100kb"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("the node is connected and reports why it rejects events", || {
        let status = broker.status();
        status.connected && status.problem.is_some_and(|problem| problem.contains("maxmemory"))
    })
    .await;
    let refused = broker.append(vec![record("e4", Audience::Everyone)]).now_or_never().expect("rejected immediately");
    assert!(refused.unwrap_err().to_string().contains("rejects writes"));
    let read = broker.range(0, 10).await.unwrap();
    assert_eq!(read.len(), 3, "the log is readable");
    let links = || -> BTreeSet<String> {
        let clients = server.cli(&["CLIENT", "LIST", "TYPE", "normal"]);
        let ids = clients.lines().filter(|line| !line.contains("cmd=client")).filter_map(|line| line.split(' ').next());
        ids.map(str::to_owned).collect()
    };
    let before = links();
    // Longer than a heartbeat interval: the connections must not change meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(links(), before, "the link remains open");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    append_with_retries(&*broker, "e4").await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
    assert_eq!(broker.status().problem, None);
}

async fn connect_error(url: &str) -> LinkError {
    linked_with(RedisOptions::new(url.parse().unwrap()), BOUNDS).await.expect_err("the connection fails")
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_about_unusable_servers_say_what_to_do() {
    let server = RedisServer::setup().password("hush").start();
    for url in [format!("redis://:wrong@127.0.0.1:{}", server.port()), format!("redis://127.0.0.1:{}", server.port())] {
        let error = connect_error(&url).await;
        assert!(matches!(error, LinkError::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("REDIS_URL") && !text.contains("wrong"), "{text}");
    }
    server.cli(&["SET", "ws:log", "mine"]);
    let error = connect_error(&server.url()).await;
    assert!(matches!(&error, LinkError::NotOurs(why) if why.contains("ws:log holds a string")), "{error:?}");
    server.cli(&["DEL", "ws:log"]);
    server.cli(&["XADD", "ws:log", "*", "another", "program"]);
    let error = connect_error(&server.url()).await;
    assert!(matches!(&error, LinkError::NotOurs(_)), "{error:?}");
    assert!(error.to_string().contains("redis_namespace"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_newer_version_is_rejected_and_one_of_an_older_version_is_upgraded() {
    let server = RedisServer::start();
    let (broker, node) = linked(&server.url()).await;
    append(&*broker, ids("e", 1..=3)).await;
    broker.catch_up().await.unwrap();
    server.cli(&["HSET", "ws:epoch", "format", "4"]);
    let error = connect_error(&server.url()).await;
    let says = "newer version of fanfare, format 4";
    assert!(matches!(&error, LinkError::NotOurs(why) if why.contains(says)), "{error:?}");
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("the node rejects events", || broker.status().problem.is_some_and(|why| why.contains(says))).await;
    server.cli(&["HDEL", "ws:epoch", "format"]);
    until("the node accepts events again", || broker.status().problem.is_none()).await;
    assert_eq!(server.cli(&["HGET", "ws:epoch", "format"]).trim(), "3");
    append(&*broker, ids("e", 4..=4)).await;
    broker.catch_up().await.unwrap();
    assert_eq!(node.ids(), ids("e", 1..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_of_the_wrong_topology_is_rejected() {
    let server = RedisServer::start();
    let error = connect_error(&format!("redis+cluster://127.0.0.1:{}", server.port())).await;
    assert!(error.to_string().contains("cluster support disabled"), "{error}");
    let error = connect_error(&format!("redis+sentinel://127.0.0.1:{}/hub", server.port())).await;
    assert!(error.to_string().to_lowercase().contains("sentinel"), "{error}");
    let lone = RedisServer::setup().line("cluster-enabled yes").start();
    let error = connect_error(&lone.url()).await;
    assert!(error.to_string().ends_with("is part of a Cluster: use redis+cluster://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_servers_are_rejected() {
    let error = error_with_info("redis_version:5.0.14\r\nrole:master\r\nrun_id:x\r\n").await;
    assert!(matches!(&error, LinkError::TooOld { found, .. } if found == "5.0.14"), "{error:?}");
    let error = error_with_info("redis_version:7.4.0\r\ndragonfly_version:df-v1.30.0\r\nrole:master\r\n").await;
    assert!(error.to_string().contains("is Dragonfly df-v1.30.0"), "{error:?}");
}

/// The error of connecting to a server that reports this `INFO`.
async fn error_with_info(info: &'static str) -> LinkError {
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
                    // The handshake of the client.
                    "SETINFO" => write!(stream, "+OK\r\n").unwrap(),
                    _ => {}
                }
            }
        }
    });
    connect_error(&format!("redis://127.0.0.1:{port}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_is_reported_after_a_while() {
    let error = connect_error(&format!("redis://127.0.0.1:{}", testbed::free_port())).await;
    assert!(matches!(&error, LinkError::Down(why) if why.contains("can't be reached")), "{error:?}");
}
