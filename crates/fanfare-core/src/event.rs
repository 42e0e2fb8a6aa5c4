//! Published events: JSON objects of which fanfare reads a few fields and passes on every field unchanged.

mod typed;

pub use typed::{AgentActivityUpdate, CalendarEventCreated, TaskStatus, TaskStatusUpdate};

use crate::{
    Position,
    json::{self, Object},
    time::iso_8601,
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

/// Maximum length of an `event_id`, in bytes.
pub const MAX_EVENT_ID_BYTES: usize = 128;

/// Maximum length of a `type`, in bytes.
pub const MAX_TYPE_BYTES: usize = 256;

/// Maximum length of a `type` that [`Draft::validate`] accepts, in bytes.
pub const MAX_STRICT_TYPE_BYTES: usize = 64;

/// First character of the types that are reserved for the hub. No event can have such a type.
pub const RESERVED_TYPE_PREFIX: char = '$';

/// The field that holds the position of an event in the log. If a publisher sends it at the top level, it is dropped.
pub const LOG_POSITION: &str = "log_position";

/// Maximum nesting depth of arrays and objects in an event.
pub const MAX_DEPTH: usize = 64;

/// The types of the protocol's own messages. No event can have such a type.
pub const RESERVED_TYPES: &[&str] =
    &["ack", "ping", "pong", "error", "gap", "goaway", "subscribe", "unsubscribe", "auth", "auth_expiring"];

/// A checked and complete event: its type, its ID and the JSON text that clients receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    event_type: Box<str>,
    event_id: Box<str>,
    json: Box<str>,
}

/// An incomplete event: `event_id`, `timestamp` and `data` may be missing. [`finish`](Self::finish) completes it.
///
/// ```
/// use fanfare_core::{Draft, EventError};
///
/// // From a type and any serialisable value, or from the JSON text of a publisher.
/// let draft = Draft::new("order_placed", &["bell"])?.with("event_id", &"order-17")?;
/// let parsed = Draft::parse(r#"{"type":"order_placed","data":["bell"],"event_id":"order-17"}"#)?;
///
/// let event = draft.finish(1_800_000_000_000, || unreachable!("the draft has an ID"))?;
/// assert_eq!(event.event_id(), "order-17");
/// assert_eq!(
///     event.json(),
///     r#"{"type":"order_placed","timestamp":"2027-01-15T08:00:00.000Z","data":["bell"],"event_id":"order-17"}"#
/// );
/// assert_eq!(parsed.finish(1_800_000_000_000, || unreachable!("the draft has an ID"))?, event);
///
/// // The types of the protocol's own messages are reserved.
/// let reserved = Draft::new("gap", &())?.finish(0, || "e1".to_owned());
/// assert!(matches!(reserved, Err(EventError::Field { field: "type", .. })));
/// # Ok::<(), EventError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Draft {
    fields: Object,
}

/// Why a JSON text is not a valid event. Each message names the field and the rule that it violates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The text is not a JSON object, or has a duplicate field.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// The object is nested deeper than [`MAX_DEPTH`].
    #[error("nested {depth} levels deep; at most {MAX_DEPTH} are allowed")]
    TooDeep {
        /// The nesting depth of the object.
        depth: usize,
    },
    /// A required field is missing.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// The value of a field is not valid.
    #[error("the field `{field}` {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// The violated rule, as the predicate of a sentence whose subject is the field.
        expected: String,
    },
}

impl Event {
    /// Returns the value of `type`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the value of `event_id`, which identifies the event within its log.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// Returns the JSON text of the event, without its position.
    pub fn json(&self) -> &str {
        &self.json
    }
}

impl Draft {
    /// Creates an event of the given type with the given `data`.
    ///
    /// # Errors
    /// If `data` cannot be serialised as JSON.
    pub fn new<T: Serialize>(event_type: &str, data: &T) -> Result<Self, EventError> {
        let draft = Self { fields: Object::default() };
        draft.with("type", &event_type)?.with("data", data)
    }

    /// Parses an event from the JSON object that a publisher sent.
    ///
    /// # Errors
    /// If the text is not a JSON object, has a duplicate field or is nested too deep.
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
    /// If the value cannot be serialised as JSON.
    pub fn with<T: Serialize>(mut self, field: &str, value: &T) -> Result<Self, EventError> {
        let raw = serde_json::value::to_raw_value(value).map_err(|error| EventError::Json(error.to_string()))?;
        match self.fields.0.iter_mut().find(|(name, _)| name == field) {
            Some((_, old)) => *old = raw,
            None => self.fields.0.push((field.to_owned(), raw)),
        }
        Ok(self)
    }

    /// Returns the JSON text of a field's value.
    pub fn field(&self, name: &str) -> Option<&RawValue> {
        self.fields.get(name)
    }

    /// Removes a field and returns its value, such as a field for the hub that clients must not receive.
    pub fn take(&mut self, field: &str) -> Option<Box<RawValue>> {
        self.fields.take(field)
    }

    /// Checks the event against the rules of the setting `validate_events`: `event_id` and `timestamp` are strings,
    /// `data` is an object, `type` has 1 to [`MAX_STRICT_TYPE_BYTES`] letters, digits and `_ - . : /`, and the `data`
    /// of a known type has the fields of that type.
    ///
    /// # Errors
    /// The first field that violates a rule.
    pub fn validate(&self) -> Result<(), EventError> {
        let event_type = self.text("type")?.ok_or(EventError::Missing("type"))?;
        if event_type.len() > MAX_STRICT_TYPE_BYTES {
            return Err(invalid("type", format!("must have 1 to {MAX_STRICT_TYPE_BYTES} bytes")));
        }
        if !event_type.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:/".contains(&b)) {
            return Err(invalid("type", "must contain only letters, digits and _ - . : /"));
        }
        self.text("event_id")?;
        self.text("timestamp")?;
        let data = self.fields.get("data");
        if data.is_some_and(|raw| !raw.get().starts_with('{')) {
            return Err(invalid("data", "must be a JSON object"));
        }
        typed::check(&event_type, data)
    }

    /// Completes the event:
    ///
    /// - A missing `event_id` is generated by `fresh_id`. An `event_id` that is null or [absent](is_absent) counts as
    ///   missing; a number is converted to its digits.
    /// - A missing or null `timestamp` is set to `unix_ms`, in milliseconds since 1970-01-01T00:00:00Z.
    /// - A missing `data` is set to `{}`, unless the event has a `payload`.
    /// - A [`LOG_POSITION`] is dropped, so that a received message can be published again as it is.
    ///
    /// All other fields keep their order and their text.
    ///
    /// # Errors
    /// If `type` is missing or reserved, or `event_id` is not valid as a cursor.
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

        let generated = event_id.is_none();
        let event_id = event_id.unwrap_or_else(fresh_id);
        let json = self.compose(generated.then_some(event_id.as_str()), unix_ms);
        Ok(Event { event_type: event_type.into(), event_id: event_id.into(), json: json.into() })
    }

    /// Writes the fields in their order, with a missing `event_id` and `timestamp` after `type`.
    fn compose(&self, generated_id: Option<&str>, unix_ms: u64) -> String {
        let length: usize = self.fields.0.iter().map(|(key, value)| key.len() + value.get().len() + 4).sum();
        let mut json = String::with_capacity(length + 128);
        for (key, value) in &self.fields.0 {
            push_field(&mut json, key, value.get());
            if key == "type" {
                if let Some(id) = generated_id {
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

    /// Reads an optional field that must be a string.
    fn text(&self, field: &'static str) -> Result<Option<String>, EventError> {
        let Some(raw) = self.fields.get(field) else {
            return Ok(None);
        };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| invalid(field, "must be a string"))
    }

    /// Reads an optional field that is an ID: a string or a number. A number is replaced by its digits as a string.
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

/// Returns whether a text counts as an absent value: empty, white space, `null`, `undefined`, `NaN` or `None`.
///
/// Scripts write such texts for a missing value. A cursor with such a text counts as absent, so no event can have it as
/// its `event_id`: a client with that cursor would miss the events after it.
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

/// Checks whether an event can have this type.
///
/// # Errors
/// If the type is empty, longer than [`MAX_TYPE_BYTES`], reserved, or contains control characters.
pub fn check_type(event_type: &str) -> Result<(), EventError> {
    if event_type.is_empty() || event_type.len() > MAX_TYPE_BYTES {
        return Err(invalid("type", format!("must have 1 to {MAX_TYPE_BYTES} bytes")));
    }
    if event_type.chars().any(char::is_control) {
        return Err(invalid("type", "must not contain control characters"));
    }
    if event_type.starts_with(RESERVED_TYPE_PREFIX) {
        return Err(invalid(
            "type",
            format!("must not be `{event_type}`: types that begin with $ are reserved for the hub"),
        ));
    }
    if RESERVED_TYPES.contains(&event_type) {
        return Err(invalid("type", format!("must not be `{event_type}`: this type belongs to the protocol")));
    }
    Ok(())
}

fn check_event_id(id: &str) -> Result<(), EventError> {
    if id.is_empty() || id.len() > MAX_EVENT_ID_BYTES {
        return Err(invalid("event_id", format!("must have 1 to {MAX_EVENT_ID_BYTES} bytes")));
    }
    if id.chars().any(char::is_control) {
        return Err(invalid("event_id", "must not contain control characters"));
    }
    if id.parse::<Position>().is_ok() {
        return Err(invalid(
            "event_id",
            "must not have the form of a position (pos-EPOCH-SEQUENCE): positions are reserved for the hub",
        ));
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
    fn all_fields_keep_their_order_and_text() {
        let text = concat!(
            r#"{"z":[1.0, 2e5],"type":"note","event_id":"n1","timestamp":"2026-01-01T00:00:00","#,
            r#""data":{"b":1,"a":12345678901234567890},"a":null}"#
        );
        let event = finish(text).expect("valid");
        assert_eq!(event.json(), text);
        assert_eq!((event.event_type(), event.event_id()), ("note", "n1"));
    }

    #[test]
    fn missing_fields_are_added_after_the_type() {
        let event = finish(r#"{"type":"note","extra":true}"#).expect("valid");
        assert_eq!(
            event.json(),
            r#"{"type":"note","event_id":"fresh","timestamp":"1970-01-01T00:00:00.000Z","extra":true,"data":{}}"#
        );
    }

    #[test]
    fn the_log_position_of_a_forwarded_event_is_dropped() {
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
    fn an_invalid_event_is_rejected_with_the_name_of_the_field() {
        let deep = format!(r#"{{"type":"note","data":{{"a":{}{}}}}}"#, "[".repeat(70), "]".repeat(70));
        for (text, says) in [
            ("[]", "not a JSON object"),
            ("{", "not a JSON object"),
            (r#"{"data":{}}"#, "`type` is missing"),
            (r#"{"type":7}"#, "`type` must be a string"),
            (r#"{"type":""}"#, "`type` must have 1 to 256"),
            (r#"{"type":"a\u001bb"}"#, "`type` must not contain control"),
            (r#"{"type":"$sys"}"#, "reserved for the hub"),
            (r#"{"type":"ping"}"#, "belongs to the protocol"),
            (r#"{"type":"a","type":"b"}"#, "duplicate field"),
            (r#"{"type":"note","event_id":"a\nb"}"#, "`event_id` must not contain control"),
            (r#"{"type":"note","event_id":"pos-1-2"}"#, "form of a position"),
            (r#"{"type":"note","event_id":{}}"#, "`event_id` must be a string or a number"),
            (&deep, "nested 72 levels deep"),
        ] {
            let error = finish(text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn an_event_id_that_counts_as_an_absent_cursor_is_replaced() {
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
            (r#"{"type":"a b"}"#, "`type` must contain only"),
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
            assert!(finish(text).is_ok(), "{text}: it is valid without strict validation");
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
            concat!(
                r#"{"type":"task_status_update","event_id":"e","timestamp":"1970-01-01T00:00:00.000Z","#,
                r#""data":{"task_id":"t1","status":"in_progress","progress":50.0}}"#
            )
        );
        update.progress = Some(100.5);
        assert!(Draft::try_from(&update).is_err());
    }

    #[test]
    fn every_name_of_a_status_is_parsed() {
        for name in TaskStatus::NAMES {
            let status: TaskStatus = serde_json::from_value(Value::from(*name)).expect(name);
            assert_eq!(serde_json::to_value(status).expect("a string"), *name);
        }
    }
}
