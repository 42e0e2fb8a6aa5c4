//! `fanfare why`: prints the deliveries of one event, or the state of one client, as reported by all nodes.

use crate::{
    access::Access,
    api_client::{HubResponse, Server},
    settings::Settings,
    terminal,
    util::{print, print_json},
};
use anyhow::{Context, bail};
use clap::ArgMatches;
use fanfare::{
    auth::Claims,
    why::{ClientDetails, ClientFate, EventOnNode, InAudience, Journey},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::fmt::Write;

pub(super) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let server = Server::parse(text("url").unwrap_or_default())?;
    let claims = Claims { sub: "fanfare why".to_owned(), admin: true, ..Claims::default() };
    let token = Access::new(matches, settings, claims)?.token()?;
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = match (text("event"), text("connection")) {
        (Some(event), _) => {
            let user = text("user").map_or_else(String::new, |user| format!("?user={}", encoded(user)));
            format!("/events/{}{user}", encoded(event))
        }
        (None, connection) => format!("/connections/{}", encoded(connection.unwrap_or_default())),
    };
    let response = server.get(&path, Some(&token)).await.with_context(|| format!("failed to query {server}"))?;
    if !response.status.is_success() {
        bail!("{}", rejection(&response));
    }
    if matches.get_flag("json") {
        let value: Value = serde_json::from_slice(&response.body).context("failed to parse the hub's response")?;
        return print_json(&format!("{value:#}\n"));
    }
    let unread = "failed to parse the hub's response; --json prints it unparsed";
    match text("event") {
        Some(_) => print(&journey(&serde_json::from_slice(&response.body).context(unread)?, text("user"))),
        None => print(&client(&serde_json::from_slice(&response.body).context(unread)?)),
    }
}

fn rejection(response: &HubResponse) -> String {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let detail = body["detail"].as_str().map(|detail| terminal::line(detail).into_owned());
    detail.unwrap_or_else(|| format!("the hub responded with {}", response.status))
}

fn journey(journey: &Journey, user: Option<&str>) -> String {
    let Journey {
        event_id, event_type, audience, position, accepted_at, publisher, bytes, nodes, silent_nodes, ..
    } = journey;
    let [event_id, event_type, audience] = [event_id, event_type, audience].map(|text| terminal::line(text));
    let mut out = format!("{event_id}: {event_type} for {audience}, {bytes} bytes\n");
    let from = publisher.as_ref().map_or_else(String::new, |publisher| format!(" from {}", terminal::line(publisher)));
    let _ = writeln!(out, "accepted {accepted_at}{from}, at {position}\n");
    let _ = writeln!(
        out,
        "{:<16} {:>9} {:>8} {:>8} {:>8} {:>8} {:>15} {:>11}",
        "node", "connected", "matched", "written", "waiting", "acked", "not in audience", "came later"
    );
    for node in nodes {
        out += &line(node);
    }
    if *silent_nodes > 0 {
        let _ = writeln!(out, "{silent_nodes} more nodes did not respond in time");
    }
    let Some(user) = user else { return out };
    out + &of_user(journey, user)
}

fn of_user(journey: &Journey, user: &str) -> String {
    let Journey { audience, nodes, user_in_audience, .. } = journey;
    let (user, audience) = (terminal::line(user), terminal::line(audience));
    let mut out = format!("\nconnections of {user}\n");
    let clients = nodes.iter().flat_map(|node| node.of_user.iter().map(move |client| (&node.node, client)));
    for (node, client) in clients {
        // The topics that a client had at the time of the event are not recorded.
        let by_then = *user_in_audience == Some(InAudience::Subscribers) && client.fate == ClientFate::Written;
        let by_then = if by_then { ", if it was subscribed at that time" } else { "" };
        let _ = writeln!(out, "{} on {node}: {}{by_then}", client.connection_id, client.fate);
    }
    if *user_in_audience == Some(InAudience::No) {
        let _ = writeln!(out, "{user} is not in the audience ({audience}): no client of {user} receives this event");
    } else if nodes.iter().all(|node| node.of_user.is_empty()) {
        let subscribes = if audience.starts_with("topic:") { " and subscribes to the topic" } else { "" };
        let _ = writeln!(
            out,
            "no connections; a client of {user} that reconnects with a cursor before the event{subscribes}\n\
             receives it as long as it is retained, and a client without a cursor does not"
        );
    }
    out
}

fn line(node: &EventOnNode) -> String {
    let EventOnNode { node: name, held, connected, matched, written, waiting, acknowledged, skipped, .. } = node;
    if !held {
        return format!("{name:<16} {connected:>9} does not retain it: it has not arrived, or was evicted\n");
    }
    let (other, later) = (skipped.not_in_audience, skipped.came_later);
    format!(
        "{name:<16} {connected:>9} {matched:>8} {written:>8} {waiting:>8} {acknowledged:>8} {other:>15} {later:>11}\n"
    )
}

fn client(client: &ClientDetails) -> String {
    let ClientDetails {
        connection_id, user_id, node, connected_at, address, cursor, behind_events, round_trip_ms, ..
    } = client;
    let user_id = terminal::line(user_id);
    let mut out = format!("{connection_id} of {user_id}, from {address}, on {node}\n");
    let _ = writeln!(out, "connected    {connected_at}");
    let behind =
        if *behind_events == 0 { "at the head".to_owned() } else { format!("{behind_events} behind the head") };
    let _ = writeln!(out, "cursor       {cursor}, {behind}");
    let _ = writeln!(out, "round trip   {round_trip_ms} ms");
    if let Some(live) = &client.live {
        let overdue = if live.overdue { ", and it has not answered a ping" } else { "" };
        let _ = writeln!(out, "last frame   {:.1} s ago{overdue}", live.last_frame_ms_ago as f64 / 1e3);
        let _ = writeln!(
            out,
            "last event   {}",
            live.last_event_id.as_deref().map_or("none that is retained".into(), terminal::line)
        );
        if live.waiting_bytes > 0 {
            let _ = writeln!(out, "waiting      {} bytes, because its socket accepts no data", live.waiting_bytes);
        }
        if !live.topics.is_empty() {
            let _ = writeln!(out, "topics       {}", terminal::line(&live.topics.join(", ")));
        }
        if live.admin {
            out += "token        administrator\n";
        }
    }
    if let Some(closed) = &client.closed {
        let _ = writeln!(out, "closed       {} with {}: {}", closed.at, closed.code, closed.meaning);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_deliveries_of_an_event_are_printed() {
        let parsed: Journey = serde_json::from_value(json!({
            "event_id": "order-7", "event_type": "note", "audience": "user:ann", "position": "pos-1f-42",
            "accepted_at": "2026-11-23T09:30:00.125Z", "publisher": "user:backend", "bytes": 187, "silent_nodes": 1,
            "nodes": [
                {"node": "a", "held": true, "connected": 1204, "matched": 2, "written": 2, "waiting": 0, "acknowledged": 1,
                    "skipped": {"not_in_audience": 1202, "came_later": 0},
                    "of_user": [{"connection_id": "c1", "fate": "written"}]},
                {"node": "b", "held": false, "connected": 7, "matched": 0, "written": 0, "waiting": 0, "acknowledged": 0,
                    "skipped": {"not_in_audience": 0, "came_later": 0}}
            ]
        }))
        .unwrap();
        let text = journey(&parsed, Some("ann"));
        for says in [
            "order-7: note for user:ann, 187 bytes\n",
            "accepted 2026-11-23T09:30:00.125Z from user:backend, at pos-1f-42\n",
            "a                     1204        2        2        0        1            1202           0\n",
            "b                        7 does not retain it",
            "1 more nodes did not respond in time\n",
            "c1 on a: written\n",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(journey(&parsed, Some("bob")).contains("c1"), "the hub selects the connections of the user");
    }

    // attack: an event or a user whose name has terminal escapes or line breaks => `fanfare why` shows them as escapes
    #[test]
    fn names_with_terminal_escapes_are_shown_as_escapes() {
        let evil = "\u{1b}[2J\u{9b}m\u{202e}\nfake: line";
        let parsed: Journey = serde_json::from_value(json!({
            "event_id": evil, "event_type": evil, "audience": format!("user:{evil}"), "position": "pos-1f-42",
            "accepted_at": "", "publisher": evil, "bytes": 1, "silent_nodes": 0, "nodes": [], "user_in_audience": "no",
        }))
        .unwrap();
        let details = json!({
            "connection_id": "c1", "user_id": evil, "node": "a", "connected_at": "", "address": "203.0.113.7",
            "cursor": "pos-1f-42", "behind_events": 0, "round_trip_ms": 1,
            "live": {"admin": false, "topics": [evil], "last_frame_ms_ago": 1, "overdue": false, "waiting_bytes": 0,
                "last_event_id": evil}
        });
        for text in [journey(&parsed, Some(evil)), client(&serde_json::from_value(details).unwrap())] {
            assert!(!text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
            assert!(text.contains("\\u{1b}[2J\\u{9b}m\\u{202e}\\u{a}fake"), "{text}");
            assert!(!text.lines().any(|line| line.starts_with("fake")), "{text}");
        }
    }

    #[test]
    fn a_user_outside_the_audience_is_reported_as_such() {
        let output = |audience: &str, is_in: &str| {
            let parsed: Journey = serde_json::from_value(json!({
                "event_id": "e", "event_type": "note", "audience": audience, "position": "pos-1f-42",
                "accepted_at": "", "bytes": 1, "silent_nodes": 0, "nodes": [], "user_in_audience": is_in,
            }))
            .unwrap();
            journey(&parsed, Some("bob"))
        };
        let no = output("user:ann", "no");
        assert!(no.ends_with("bob is not in the audience (user:ann): no client of bob receives this event\n"), "{no}");
        assert!(!no.contains("reconnects"), "{no}");
        let yes = output("user:bob", "yes");
        assert!(yes.contains("a client of bob that reconnects with a cursor before the event\nreceives it"), "{yes}");
        let topic = output("topic:t", "subscribers");
        assert!(topic.contains("cursor before the event and subscribes to the topic\nreceives it"), "{topic}");
    }

    #[test]
    fn connected_and_disconnected_clients_are_printed() {
        let mut parsed = json!({
            "connection_id": "c1", "user_id": "ann", "node": "a", "connected_at": "2026-11-23T09:30:00.125Z",
            "address": "203.0.113.7", "cursor": "pos-1f-42", "behind_events": 3, "round_trip_ms": 12,
            "live": {"admin": false, "topics": ["t"], "last_frame_ms_ago": 1500, "overdue": true, "waiting_bytes": 10}
        });
        let text = client(&serde_json::from_value(parsed.clone()).unwrap());
        for says in [
            "c1 of ann, from 203.0.113.7, on a",
            "3 behind the head",
            "1.5 s ago, and it has not answered",
            "10 bytes",
            "topics       t",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
        parsed["live"].take();
        parsed["closed"] = json!({"at": "2026-11-23T09:40:00.125Z", "code": 4000, "meaning": "It was silent."});
        let text = client(&serde_json::from_value(parsed).unwrap());
        assert!(text.contains("closed       2026-11-23T09:40:00.125Z with 4000: It was silent.\n"), "{text}");
    }
}
