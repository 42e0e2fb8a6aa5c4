//! How an entry of the log is written in its stream, and read again.

use super::link::LinkError;
use fanfare_core::{Audience, ConnectionId, window::Entry};
use redis::Value;
use std::sync::Arc;

/// An audience as one word.
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

/// The id in the stream of a sequence.
pub(super) fn stream_id(sequence: u64) -> String {
    format!("0-{sequence}")
}

/// Reads the entries of a stream's answer.
pub(super) fn entries(answer: Value) -> Result<Vec<Arc<Entry>>, LinkError> {
    let Value::Array(items) = answer else {
        return if answer == Value::Nil { Ok(Vec::new()) } else { Err(foreign(&answer)) };
    };
    let mut publisher = None;
    items.iter().map(|item| entry(item, &mut publisher).map(Arc::new)).collect()
}

/// Reads an entry. `publisher` is that of the one before: there are few, and each has its name once.
fn entry(item: &Value, publisher: &mut Option<Arc<str>>) -> Result<Entry, LinkError> {
    let Value::Array(parts) = item else { return Err(foreign(item)) };
    let [id, Value::Array(fields)] = &parts[..] else { return Err(foreign(item)) };
    let sequence = text(id).and_then(|id| id.strip_prefix("0-")?.parse().ok()).ok_or_else(|| foreign(id))?;
    let field = |name: &str| {
        let mut pairs = fields.chunks_exact(2);
        pairs.find(|pair| text(&pair[0]) == Some(name)).map(|pair| &pair[1])
    };
    let known = || {
        let (id, to, ms) = (text(field("i")?)?, audience(text(field("a")?)?)?, text(field("t")?)?.parse().ok()?);
        Some((id, to, ms, bytes(field("d")?)?))
    };
    let said = |name| field(name).and_then(text).filter(|text| !text.is_empty());
    let by = said("p");
    if publisher.as_deref() != by {
        *publisher = by.map(Arc::from);
    }
    Ok(match known() {
        Some((id, to, ms, json)) => {
            Entry::from_parts(sequence, ms, to, id, json).by(publisher.clone(), said("x").map(Arc::from))
        }
        // Whatever it is, it has a place in the log, and is for nobody.
        None => Entry::from_parts(sequence, 0, Audience::Connection(ConnectionId(0)), &stream_id(sequence), b"{}"),
    })
}

fn foreign(value: &Value) -> LinkError {
    let id = text(value).map_or_else(String::new, |id| format!(" ({id})"));
    LinkError::NotOurs(format!("the log's stream holds an entry that is not fanfare's{id}"))
}

/// A text of an answer.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
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
    fn an_audience_comes_back() {
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

    #[test]
    fn an_entry_is_read() {
        let answer = Value::Array(vec![item(
            "0-7",
            &["i", "e7", "a", "u:ann", "t", "12", "d", "{\"a\":1}", "p", "user:ann", "x", "00-1"],
        )]);
        let entry = &entries(answer).unwrap()[0];
        assert_eq!((entry.sequence, &*entry.event_id, entry.appended_ms), (7, "e7", 12));
        assert_eq!((&entry.audience, entry.json()), (&Audience::User("ann".into()), &b"{\"a\":1}"[..]));
        assert_eq!((entry.publisher.as_deref(), entry.trace.as_deref()), (Some("user:ann"), Some("00-1")));
    }

    #[test]
    fn what_is_not_ours_has_its_place_or_is_refused() {
        let odd = entries(Value::Array(vec![item("0-7", &["x", "y"])])).unwrap();
        assert_eq!((odd[0].sequence, &odd[0].audience), (7, &Audience::Connection(ConnectionId(0))));
        assert!(matches!(entries(Value::Array(vec![item("1700-0", &["x", "y"])])), Err(LinkError::NotOurs(_))));
    }
}
