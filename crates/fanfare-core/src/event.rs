//! What is published: a JSON object of which fanfare reads a few fields and passes on every one as it came.

mod typed;

pub use typed::{AgentActivityUpdate, CalendarEventCreated, TaskStatus, TaskStatusUpdate};

use crate::{
    Position,
    json::{self, Object},
    time::iso_8601,
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

/// The longest `event_id`, in bytes.
pub const MAX_EVENT_ID_BYTES: usize = 128;

/// The longest `type`, in bytes.
pub const MAX_TYPE_BYTES: usize = 256;

/// The longest `type` that [`Draft::validate`] accepts, in bytes.
pub const MAX_STRICT_TYPE_BYTES: usize = 64;

/// The first character of the types that are reserved for the hub; no event may have one of them.
pub const RESERVED_TYPE_PREFIX: char = '$';

/// The field in which a hub says where an event stands in the log. What a publisher sends under this name is dropped.
pub const LOG_POSITION: &str = "log_position";

/// How deep an event's arrays and objects may be nested.
pub const MAX_DEPTH: usize = 64;

/// The types of the frames that a hub or a client makes itself; no event may have one of them.
pub const RESERVED_TYPES: &[&str] =
    &["ack", "ping", "pong", "error", "gap", "goaway", "subscribe", "unsubscribe", "auth", "auth_expiring"];

/// An event, checked and complete: the JSON text that clients get, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    event_type: Box<str>,
    event_id: Box<str>,
    json: Box<str>,
}

/// An event on its way in: `event_id` and `timestamp` may still be missing.
#[derive(Debug, Clone)]
pub struct Draft {
    fields: Object,
}

/// Why an object can't be an event. Each message names the field and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not a JSON object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested {depth} deep; at most {MAX_DEPTH} are allowed")]
    TooDeep {
        /// How deep it is.
        depth: usize,
    },
    /// A field is missing that must be there.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A field's value can't be used.
    #[error("the field `{field}` {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it must be, as the rest of a sentence.
        expected: String,
    },
}

impl Event {
    /// The value of `type`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The value of `event_id`: no two events of a log have the same.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// The whole event as clients get it.
    pub fn json(&self) -> &str {
        &self.json
    }
}

impl Draft {
    /// Starts an event of the given type from its `data`.
    ///
    /// # Errors
    /// If `data` can't be written as JSON.
    pub fn new<T: Serialize>(event_type: &str, data: &T) -> Result<Self, EventError> {
        let draft = Self { fields: Object::default() };
        draft.with("type", &event_type)?.with("data", data)
    }

    /// Reads an event from the JSON object that a publisher sent.
    ///
    /// # Errors
    /// If the text isn't a JSON object, has a field twice or is nested too deep.
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let depth = json::depth(text);
        if depth > MAX_DEPTH {
            return Err(EventError::TooDeep { depth });
        }
        let fields = serde_json::from_str(text).map_err(|error| EventError::Json(error.to_string()))?;
        Ok(Self { fields })
    }

    /// Adds a field, or replaces its value.
    ///
    /// # Errors
    /// If the value can't be written as JSON.
    pub fn with<T: Serialize>(mut self, field: &str, value: &T) -> Result<Self, EventError> {
        let raw = serde_json::value::to_raw_value(value).map_err(|error| EventError::Json(error.to_string()))?;
        match self.fields.0.iter_mut().find(|(name, _)| name == field) {
            Some((_, old)) => *old = raw,
            None => self.fields.0.push((field.to_owned(), raw)),
        }
        Ok(self)
    }

    /// The JSON text of a field.
    pub fn field(&self, name: &str) -> Option<&RawValue> {
        self.fields.get(name)
    }

    /// Takes a field out of the event, such as one that is for the hub and not for the clients.
    pub fn take(&mut self, field: &str) -> Option<Box<RawValue>> {
        self.fields.take(field)
    }

    /// Checks the fields as strictly as `validate_events` asks for: `event_id` and `timestamp` are strings, `data` is
    /// an object, the type is a plain word, and the data of a known type has the shape of that type.
    ///
    /// # Errors
    /// The first field that does not comply.
    pub fn validate(&self) -> Result<(), EventError> {
        let event_type = self.text("type")?.ok_or(EventError::Missing("type"))?;
        if event_type.len() > MAX_STRICT_TYPE_BYTES {
            return Err(invalid("type", format!("must have 1 to {MAX_STRICT_TYPE_BYTES} bytes")));
        }
        if !event_type.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:/".contains(&b)) {
            return Err(invalid("type", "may have only letters, digits and _ - . : /"));
        }
        self.text("event_id")?;
        self.text("timestamp")?;
        let data = self.fields.get("data");
        if data.is_some_and(|raw| !raw.get().starts_with('{')) {
            return Err(invalid("data", "must be a JSON object"));
        }
        typed::check(&event_type, data)
    }

    /// Completes the event: a missing `event_id` is taken from `fresh_id`, a missing `timestamp` is `unix_ms`, a
    /// missing `data` is `{}` unless there is a `payload`. An `event_id` that is a number becomes the text of that
    /// number, and an `event_id` or `timestamp` of null counts as missing, as does an `event_id` that [`is_absent`]. A
    /// [`LOG_POSITION`], as in a frame that the publisher received and forwards, is dropped. All other fields stay as
    /// they came and in their order.
    ///
    /// # Errors
    /// If `type` is missing or reserved, or `event_id` cannot be a cursor.
    pub fn finish(mut self, unix_ms: u64, fresh_id: impl FnOnce() -> String) -> Result<Event, EventError> {
        let event_type = self.text("type")?.ok_or(EventError::Missing("type"))?;
        check_type(&event_type)?;
        self.drop_null("event_id");
        self.drop_null("timestamp");
        self.drop_absent_id();
        self.fields.take(LOG_POSITION);
        let event_id = self.id("event_id")?;
        if let Some(id) = &event_id {
            check_event_id(id)?;
        }

        let made_id = event_id.is_none();
        let event_id = event_id.unwrap_or_else(fresh_id);
        let json = self.compose(made_id.then_some(event_id.as_str()), unix_ms);
        Ok(Event { event_type: event_type.into(), event_id: event_id.into(), json: json.into() })
    }

    /// Writes the fields in their order, what was missing behind `type`.
    fn compose(&self, made_id: Option<&str>, unix_ms: u64) -> String {
        let length: usize = self.fields.0.iter().map(|(key, value)| key.len() + value.get().len() + 4).sum();
        let mut json = String::with_capacity(length + 128);
        for (key, value) in &self.fields.0 {
            push_field(&mut json, key, value.get());
            if key == "type" {
                if let Some(id) = made_id {
                    push_field(&mut json, "event_id", &quoted(id));
                }
                if self.fields.get("timestamp").is_none() {
                    push_field(&mut json, "timestamp", &quoted(&iso_8601(unix_ms)));
                }
            }
        }
        if self.fields.get("data").is_none() && self.fields.get("payload").is_none() {
            push_field(&mut json, "data", "{}");
        }
        json.push('}');
        json
    }

    /// A field that must be a string where it is there.
    fn text(&self, field: &'static str) -> Result<Option<String>, EventError> {
        let Some(raw) = self.fields.get(field) else {
            return Ok(None);
        };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| invalid(field, "must be a string"))
    }

    /// A field that names something: a string, or a number, which is replaced by its digits as a string.
    fn id(&mut self, field: &'static str) -> Result<Option<String>, EventError> {
        let Some((_, raw)) = self.fields.0.iter_mut().find(|(name, _)| name == field) else {
            return Ok(None);
        };
        if let Some(digits) = json::number(raw) {
            let text = digits.to_owned();
            *raw = serde_json::value::to_raw_value(&text).map_err(|error| EventError::Json(error.to_string()))?;
            return Ok(Some(text));
        }
        let text = serde_json::from_str(raw.get());
        text.map(Some).map_err(|_| invalid(field, "must be a string or a number"))
    }

    fn drop_absent_id(&mut self) {
        let absent = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).is_ok_and(|id| is_absent(&id));
        self.fields.0.retain(|(name, raw)| name != "event_id" || !absent(raw));
    }

    fn drop_null(&mut self, field: &str) {
        self.fields.0.retain(|(name, raw)| name != field || raw.get() != "null");
    }
}

/// Whether a text is what scripts write for a value that they do not have. A client's cursor with such a text counts as
/// no cursor, so no event may have it as its id: who saw it last would lose what follows.
pub fn is_absent(text: &str) -> bool {
    ["", "null", "undefined", "NaN", "None"].contains(&text.trim())
}

fn data_object(raw: &RawValue) -> Result<serde_json::Map<String, Value>, EventError> {
    serde_json::from_str(raw.get()).map_err(|error| EventError::Json(error.to_string()))
}

fn push_field(json: &mut String, key: &str, value: &str) {
    json.push(if json.is_empty() { '{' } else { ',' });
    json.push_str(&quoted(key));
    json.push(':');
    json.push_str(value);
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn invalid(field: &'static str, expected: impl Into<String>) -> EventError {
    EventError::Field { field, expected: expected.into() }
}

/// Whether an event may have this type.
///
/// # Errors
/// If it is empty, too long, reserved or has control characters.
pub fn check_type(event_type: &str) -> Result<(), EventError> {
    if event_type.is_empty() || event_type.len() > MAX_TYPE_BYTES {
        return Err(invalid("type", format!("must have 1 to {MAX_TYPE_BYTES} bytes")));
    }
    if event_type.chars().any(char::is_control) {
        return Err(invalid("type", "must have no control characters"));
    }
    if event_type.starts_with(RESERVED_TYPE_PREFIX) {
        return Err(invalid(
            "type",
            format!("can't be `{event_type}`: types that begin with $ are reserved for the hub"),
        ));
    }
    if RESERVED_TYPES.contains(&event_type) {
        return Err(invalid("type", format!("can't be `{event_type}`: that type belongs to the protocol")));
    }
    Ok(())
}

fn check_event_id(id: &str) -> Result<(), EventError> {
    if id.is_empty() || id.len() > MAX_EVENT_ID_BYTES {
        return Err(invalid("event_id", format!("must have 1 to {MAX_EVENT_ID_BYTES} bytes")));
    }
    if id.chars().any(char::is_control) {
        return Err(invalid("event_id", "must have no control characters"));
    }
    if id.parse::<Position>().is_ok() {
        return Err(invalid("event_id", "has the form of a position, which only the hub gives"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(text: &str) -> Result<Event, EventError> {
        Draft::parse(text)?.finish(0, || "fresh".to_owned())
    }

    #[test]
    fn everything_passes_through_in_order() {
        let text = r#"{"z":[1.0, 2e5],"type":"note","event_id":"n1","timestamp":"2026-01-01T00:00:00","data":{"b":1,"a":12345678901234567890},"a":null}"#;
        let event = finish(text).expect("valid");
        assert_eq!(event.json(), text);
        assert_eq!((event.event_type(), event.event_id()), ("note", "n1"));
    }

    #[test]
    fn what_is_missing_is_added_behind_the_type() {
        let event = finish(r#"{"type":"note","extra":true}"#).expect("valid");
        assert_eq!(
            event.json(),
            r#"{"type":"note","event_id":"fresh","timestamp":"1970-01-01T00:00:00.000Z","extra":true,"data":{}}"#
        );
    }

    #[test]
    fn a_position_of_a_frame_that_is_forwarded_is_dropped() {
        let event = finish(r#"{"type":"note","event_id":"n","timestamp":"t","data":{},"log_position":"pos-1-2"}"#);
        assert_eq!(event.expect("valid").json(), r#"{"type":"note","event_id":"n","timestamp":"t","data":{}}"#);
    }

    #[test]
    fn null_counts_as_missing() {
        let event = finish(r#"{"type":"note","event_id":null,"timestamp":null,"data":null}"#).expect("valid");
        assert_eq!(
            event.json(),
            r#"{"type":"note","event_id":"fresh","timestamp":"1970-01-01T00:00:00.000Z","data":null}"#
        );
    }

    #[test]
    fn what_cannot_be_an_event_is_refused_by_name() {
        let deep = format!(r#"{{"type":"note","data":{{"a":{}{}}}}}"#, "[".repeat(70), "]".repeat(70));
        for (text, says) in [
            ("[]", "not a JSON object"),
            ("{", "not a JSON object"),
            (r#"{"data":{}}"#, "`type` is missing"),
            (r#"{"type":7}"#, "`type` must be a string"),
            (r#"{"type":""}"#, "`type` must have 1 to 256"),
            (r#"{"type":"a\u001bb"}"#, "`type` must have no control"),
            (r#"{"type":"$sys"}"#, "reserved for the hub"),
            (r#"{"type":"ping"}"#, "belongs to the protocol"),
            (r#"{"type":"a","type":"b"}"#, "stands twice"),
            (r#"{"type":"note","event_id":"a\nb"}"#, "`event_id` must have no control"),
            (r#"{"type":"note","event_id":"pos-1-2"}"#, "form of a position"),
            (r#"{"type":"note","event_id":{}}"#, "`event_id` must be a string or a number"),
            (&deep, "nested 72 deep"),
        ] {
            let error = finish(text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn an_id_that_could_not_be_a_cursor_is_replaced() {
        for absent in ["", " ", "null", "undefined", "NaN", "None", " None\u{a0}"] {
            let event = finish(&format!(r#"{{"type":"note","event_id":"{absent}"}}"#)).expect(absent);
            assert_eq!(event.event_id(), "fresh", "{absent:?}");
            let json: Value = serde_json::from_str(event.json()).expect("JSON");
            assert_eq!(json["event_id"], "fresh", "{absent:?}");
        }
        assert_eq!(finish(r#"{"type":"note","event_id":"nullable"}"#).expect("valid").event_id(), "nullable");
    }

    #[test]
    fn strict_validation_applies_to_types_and_known_data() {
        let long = format!(r#"{{"type":"{}"}}"#, "x".repeat(65));
        for (text, says) in [
            (long.as_str(), "`type` must have 1 to 64"),
            (r#"{"type":"a b"}"#, "`type` may have only"),
            (r#"{"type":"note","event_id":5}"#, "`event_id` must be a string"),
            (r#"{"type":"note","timestamp":5}"#, "`timestamp` must be a string"),
            (r#"{"type":"note","data":[]}"#, "`data` must be a JSON object"),
            (r#"{"type":"task_status_update"}"#, "`data` is missing"),
            (r#"{"type":"task_status_update","data":{}}"#, "`data.task_id` is missing"),
            (r#"{"type":"task_status_update","data":{"task_id":"t","status":"lazy"}}"#, "one of pending, queued"),
            (r#"{"type":"task_status_update","data":{"task_id":"t","progress":101}}"#, "from 0 to 100"),
            (r#"{"type":"task_status_update","data":{"task_id":"t","progress":"1"}}"#, "from 0 to 100"),
            (r#"{"type":"agent_activity_update","data":{"agent_id":1}}"#, "`data.agent_id` must be a string"),
            (r#"{"type":"calendar_event_created","data":{"title":""}}"#, "`data.title` must be a string"),
        ] {
            let draft = Draft::parse(text).expect(text);
            let error = draft.validate().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(finish(text).is_ok(), "{text}: it is an event all the same");
        }
    }

    #[test]
    fn typed_events_are_built_and_checked() {
        let mut update = TaskStatusUpdate {
            task_id: "t1".to_owned(),
            status: TaskStatus::InProgress,
            progress: Some(50.0),
            more: serde_json::Map::new(),
        };
        let event = Draft::try_from(&update).and_then(|draft| draft.finish(0, || "e".to_owned())).expect("valid");
        assert_eq!(
            event.json(),
            r#"{"type":"task_status_update","event_id":"e","timestamp":"1970-01-01T00:00:00.000Z","data":{"task_id":"t1","status":"in_progress","progress":50.0}}"#
        );
        update.progress = Some(100.5);
        assert!(Draft::try_from(&update).is_err());
    }

    #[test]
    fn every_status_is_in_the_list_of_names() {
        for name in TaskStatus::NAMES {
            let status: TaskStatus = serde_json::from_value(Value::from(*name)).expect(name);
            assert_eq!(serde_json::to_value(status).expect("a string"), *name);
        }
    }
}
