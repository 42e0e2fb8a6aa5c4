//! The encoding of log entries in their stream.

use super::error::LinkError;
use fanfare_core::{Audience, ConnectionId, Position, event::check_type, window::Entry};
use redis::Value;
use serde::Deserialize;
use std::{borrow::Cow, sync::Arc};

/// Encodes an audience.
pub(super) fn audience_text(audience: &Audience) -> String {
    match audience {
        Audience::Everyone => "*".to_owned(),
        Audience::User(user) => format!("u:{user}"),
        Audience::Connection(id) => format!("c:{id}"),
        Audience::Topic(topic) => format!("t:{topic}"),
    }
}

fn audience(text: &str) -> Option<Audience> {
    match text.split_once(':') {
        None => (text == "*").then_some(Audience::Everyone),
        Some(("u", user)) => Some(Audience::User(user.into())),
        Some(("c", id)) => id.parse().ok().map(Audience::Connection),
        Some(("t", topic)) => Some(Audience::Topic(topic.into())),
        Some(_) => None,
    }
}

/// The stream ID of a sequence.
pub(super) fn stream_id(sequence: u64) -> String {
    format!("0-{sequence}")
}

/// An entry of the stream.
#[derive(Debug)]
pub(super) enum Item {
    /// An event, and the epoch in which it was appended, if the entry has one.
    Event(Arc<Entry>, Option<u64>),
    /// An entry that no node can have written.
    Foreign(Foreign),
}

impl Item {
    /// The size of the event's frame in bytes. 0 for a foreign entry.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Event(entry, _) => entry.frame.len(),
            Self::Foreign(_) => 0,
        }
    }
}

/// An entry that is not an event.
#[derive(Debug)]
pub(super) struct Foreign {
    /// Its sequence, if its ID has the form of one.
    pub(super) sequence: Option<u64>,
    /// Its stream ID.
    pub(super) id: String,
    /// Why it is not an event, as part of a log message.
    pub(super) why: &'static str,
}

/// Decodes the entries in a response. `epoch` is the epoch of the positions that they receive.
pub(super) fn items(answer: Value, epoch: u64) -> Result<Vec<Item>, LinkError> {
    let Value::Array(items) = answer else {
        return if answer == Value::Nil {
            Ok(Vec::new())
        } else {
            Err(LinkError::Answer("not a list of entries".to_owned()))
        };
    };
    let mut publisher = None;
    Ok(items.iter().map(|item| read(item, epoch, &mut publisher)).collect())
}

/// The entry that replaces a foreign one in the window. No client is in its audience.
pub(super) fn placeholder(place: Position) -> Arc<Entry> {
    Arc::new(Entry::from_parts(place, 0, NOBODY, &stream_id(place.sequence), b"{}"))
}

const NOBODY: Audience = Audience::Connection(ConnectionId(0));

fn read(item: &Value, epoch: u64, publisher: &mut Option<Arc<str>>) -> Item {
    let (id, fields) = match item {
        Value::Array(parts) => match &parts[..] {
            [id, Value::Array(fields)] => (text(id).unwrap_or_default(), &fields[..]),
            _ => ("", &[][..]),
        },
        _ => ("", &[][..]),
    };
    let sequence = id.strip_prefix("0-").and_then(|n| n.parse().ok()).filter(|n| *n <= MAX_SEQUENCE);
    let entry = match sequence {
        Some(sequence) => entry(Position { epoch, sequence }, fields, publisher),
        None => Err("its id is not 0- and a sequence"),
    };
    match entry {
        Ok(entry) => Item::Event(Arc::new(entry), epoch_of(fields)),
        Err(why) => Item::Foreign(Foreign { sequence, id: id.to_owned(), why }),
    }
}

/// The largest sequence: the scripts count in double-precision numbers, which are exact up to here.
pub(super) const MAX_SEQUENCE: u64 = 1 << 53;

/// Decodes and validates an entry. `publisher` is that of the previous entry: there are few publishers, so entries
/// share their names.
fn entry(place: Position, fields: &[Value], publisher: &mut Option<Arc<str>>) -> Result<Entry, &'static str> {
    let field = |name: &str| {
        let mut pairs = fields.chunks_exact(2);
        pairs.find(|pair| text(&pair[0]) == Some(name)).map(|pair| &pair[1])
    };
    let value = |name| field(name).and_then(text).filter(|text| !text.is_empty());
    let id = value("i").ok_or("it has no event_id (i)")?;
    let to = value("a").and_then(audience).filter(|to| to.check().is_ok()).ok_or("it has no valid audience (a)")?;
    let ms = value("t").and_then(|ms| ms.parse().ok()).ok_or("it has no time (t)")?;
    let json = value("d").ok_or("it has no event (d)")?;
    if to != NOBODY {
        check_json(json, id)?;
    }
    let by = value("p");
    if publisher.as_deref() != by {
        *publisher = by.map(Arc::from);
    }
    let entry = Entry::from_parts(place, ms, to, id, json.as_bytes());
    Ok(entry.by(publisher.clone(), value("x").map(Arc::from)))
}

/// The epoch in which an entry was appended. Entries before version 2 of the format do not have one.
fn epoch_of(fields: &[Value]) -> Option<u64> {
    let named = fields.chunks_exact(2).find(|pair| text(&pair[0]) == Some("e"))?;
    u64::from_str_radix(text(&named[1])?, 16).ok()
}

/// Checks that the JSON is a valid event with the `event_id` of the entry, because it is delivered to clients
/// unchanged.
fn check_json(json: &str, id: &str) -> Result<(), &'static str> {
    #[derive(Deserialize)]
    struct Names<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
        #[serde(borrow)]
        event_id: Cow<'a, str>,
    }
    // serde would decode an array as the fields in their order.
    if !json.starts_with('{') {
        return Err("its event (d) is not a JSON object");
    }
    let names: Names<'_> =
        serde_json::from_str(json).map_err(|_| "its event (d) is not JSON with a type and an event_id")?;
    check_type(&names.r#type).map_err(|_| "its event (d) has a type that is reserved or not valid")?;
    if names.event_id == id { Ok(()) } else { Err("its event (d) has another event_id than the entry (i)") }
}

/// The text of a value.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn item(id: &str, fields: &[&str]) -> Value {
        Value::Array(vec![bulk(id), Value::Array(fields.iter().map(|field| bulk(field)).collect())])
    }

    #[test]
    fn an_audience_survives_encoding() {
        for who in [
            Audience::Everyone,
            Audience::User("a:b".into()),
            Audience::Connection(ConnectionId(7)),
            Audience::Topic("t:1".into()),
        ] {
            assert_eq!(audience(&audience_text(&who)), Some(who));
        }
        assert_eq!((audience(""), audience("x:1"), audience("c:1")), (None, None, None));
    }

    fn entry(id: &str, fields: &[&str]) -> Result<Arc<Entry>, Foreign> {
        match items(Value::Array(vec![item(id, fields)]), 0xab).unwrap().remove(0) {
            Item::Event(entry, _) => Ok(entry),
            Item::Foreign(foreign) => Err(foreign),
        }
    }

    #[test]
    fn an_entry_is_decoded() {
        let json = r#"{"type":"a","event_id":"e7"}"#;
        let fields = ["i", "e7", "a", "u:ann", "t", "12", "d", json, "p", "user:ann", "x", "00-1"];
        let entry = entry("0-7", &fields).unwrap();
        assert_eq!((entry.sequence, &*entry.event_id, entry.appended_ms), (7, "e7", 12));
        assert_eq!((&entry.audience, entry.json()), (&Audience::User("ann".into()), json.as_bytes().to_vec()));
        assert_eq!((entry.publisher.as_deref(), entry.trace.as_deref()), (Some("user:ann"), Some("00-1")));
    }

    // attack: entries written straight into the log's stream, including forged frames and $ types => skipped
    #[test]
    fn an_entry_that_is_not_a_valid_event_is_foreign() {
        let with = |name: &str, value: &str| {
            let mut fields = ["i", "e7", "a", "*", "t", "12", "d", r#"{"type":"a","event_id":"e7"}"#, "p", ""];
            let at = fields.iter().position(|field| *field == name).unwrap();
            fields[at + 1] = value;
            entry("0-7", &fields.map(|field| field)).map_err(|foreign| (foreign.sequence, foreign.why))
        };
        assert!(with("p", "").is_ok());
        for (name, value) in [
            ("i", ""),
            ("i", "e8"),
            ("a", ""),
            ("a", "t:$sys"),
            ("a", "u:"),
            ("t", "x"),
            ("d", "hello"),
            ("d", r#"["a","e7"]"#),
            ("d", r#"{"type":"a"}"#),
            ("d", r#"{"type":"ack","event_id":"e7"}"#),
            ("d", r#"{"type":"$sys","event_id":"e7"}"#),
            ("d", r#"{"type":"a","event_id":"e7"} {}"#),
        ] {
            let (sequence, _) = with(name, value).expect_err(value);
            assert_eq!(sequence, Some(7), "{name} {value}");
        }
        assert_eq!(entry("0-7", &["x", "y"]).unwrap_err().sequence, Some(7));
        for id in ["1700-0", "0-18446744073709551615", ""] {
            assert_eq!(entry(id, &["x", "y"]).unwrap_err().sequence, None, "{id}");
        }
        let nobody = placeholder(Position { epoch: 0xab, sequence: 7 });
        assert_eq!((nobody.sequence, &nobody.audience), (7, &NOBODY));
    }
}
