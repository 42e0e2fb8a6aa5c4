//! The wire vectors of `tests/wire`, which the TypeScript, Python and Rust clients also run.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare_core::{
    Audience, CloseCode, Draft, Position,
    close::Reconnect,
    window::{Entry, Gap, GapReason},
    wire::{self, Ack, ErrorFrame, Incoming, Outgoing, RejectedMessage},
};
use serde_json::{Value, json};

const AT: Position = Position { epoch: 0xab, sequence: 5 };

fn cases(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    let cases = file["cases"].as_array().unwrap().clone();
    assert!(cases.len() > 5, "{file}");
    cases
}

#[test]
fn close_codes_have_the_reconnect_policy_of_the_vectors() {
    let cases = cases(include_str!("../../../tests/wire/closes.json"));
    for case in &cases {
        let code = CloseCode::ALL.iter().find(|code| json!(**code as u16) == case["code"]);
        let then = match code.map(|code| code.reconnect()) {
            None => "lost",
            Some(Reconnect::Never) => "never",
            Some(Reconnect::Now) => "now",
            Some(Reconnect::Later) => "later",
            // docs/protocol.md specifies which reasons of 1008 are final.
            Some(Reconnect::WithNewToken) if case["then"] == "never" => continue,
            Some(Reconnect::WithNewToken) => "new token",
        };
        assert_eq!(case["then"], then, "{case}");
    }
    for code in CloseCode::ALL {
        assert!(cases.iter().any(|case| case["code"] == *code as u16), "{code:?}");
    }
}

#[test]
fn hub_messages_are_serialised_as_in_the_vectors() {
    for case in cases(include_str!("../../../tests/wire/frames.json")) {
        let say = &case["say"];
        let text = |field: &str| say[field].as_str().unwrap();
        let number = |field: &str| say[field].as_u64().unwrap();
        let message = match text("type") {
            "ack" => Outgoing::Ack(Ack {
                event_id: say["event_id"].as_str(),
                ack_event_id: text("ack_event_id"),
                connection_id: text("connection_id").parse().unwrap(),
                resumed: say["resumed"].as_bool().unwrap(),
                replayed: usize::try_from(number("replayed")).unwrap(),
                heartbeat_ms: number("heartbeat_ms"),
                topic: say["topic"].as_str(),
            }),
            "ping" => Outgoing::Ping,
            "pong" => Outgoing::Pong,
            "error" => Outgoing::Error(ErrorFrame {
                error: text("error"),
                message: text("message"),
                ack_event_id: say["ack_event_id"].as_str(),
                topic: say["topic"].as_str(),
            }),
            "gap" => Outgoing::Gap(Gap {
                reason: [GapReason::Expired, GapReason::Reset]
                    .into_iter()
                    .find(|reason| reason.as_str() == text("reason"))
                    .unwrap(),
                missed: say["missed"].as_u64(),
            }),
            "auth_expiring" => Outgoing::AuthExpiring { expires_in_ms: number("expires_in_ms") },
            "goaway" => Outgoing::Goaway { reconnect_after_ms: number("reconnect_after_ms"), reason: text("reason") },
            other => panic!("not a message of the hub: {other}"),
        };
        assert_eq!(message.to_json(AT, 0), case["text"].as_str().unwrap());
    }
}

#[test]
fn client_messages_are_parsed_as_in_the_vectors() {
    for case in cases(include_str!("../../../tests/wire/messages.json")) {
        match wire::read(case["text"].as_str().unwrap()) {
            Err(RejectedMessage { reason, ack_event_id }) => {
                assert_eq!(case["refused"], reason.code(), "{case}");
                assert_eq!(case["ack_event_id"].as_str(), ack_event_id.as_deref(), "{case}");
            }
            Ok((message, id)) => {
                let mut read = match message {
                    Incoming::Ping => json!({"type": "ping"}),
                    Incoming::Pong => json!({"type": "pong"}),
                    Incoming::Ack { .. } => json!({"type": "ack"}),
                    Incoming::Subscribe { topic } => json!({"type": "subscribe", "topic": topic}),
                    Incoming::Unsubscribe { topic } => json!({"type": "unsubscribe", "topic": topic}),
                    Incoming::Auth { token } => json!({"type": "auth", "token": token}),
                };
                if let Some(id) = id {
                    read["event_id"] = json!(id);
                }
                assert_eq!(case["read"], read, "{case}");
            }
        }
    }
}

#[test]
fn events_are_accepted_or_rejected_as_in_the_vectors() {
    for case in cases(include_str!("../../../tests/wire/events.json")) {
        let published = Draft::parse(case["published"].as_str().unwrap());
        if let (Ok(draft), true) = (&published, case["delivered"].is_string()) {
            assert_eq!(draft.validate().is_err(), case["strict"] == "refused", "{case}");
        }
        match published.and_then(|draft| draft.finish(0, || "fresh".to_owned())) {
            Ok(event) => assert_eq!(
                serde_json::from_str::<Value>(event.json()).unwrap(),
                serde_json::from_str::<Value>(case["delivered"].as_str().unwrap()).unwrap(),
                "{case}"
            ),
            Err(error) => assert_eq!(case["refused"], true, "{case}: {error}"),
        }
    }
}

#[test]
fn frames_of_events_are_encoded_as_in_the_vectors() {
    let place = Position { epoch: 0xab, sequence: 7 };
    for case in cases(include_str!("../../../tests/wire/cursors.json")) {
        let Some(event) = case["event"].as_str() else { continue };
        let published = Draft::parse(event).and_then(|draft| draft.finish(0, String::new)).unwrap();
        let made = Entry::new(place, 0, Audience::Everyone, &published);
        let read = Entry::from_parts(place, 0, Audience::Everyone, published.event_id(), event.as_bytes());
        for entry in [made, read] {
            assert_eq!(str::from_utf8(entry.payload()).unwrap(), case["frame"], "{case}");
            assert_eq!(String::from_utf8(entry.json()).unwrap(), event, "{case}");
        }
    }
}
