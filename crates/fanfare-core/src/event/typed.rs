//! Typed `data` for well-known event types, for applications that build or parse such events.
//!
//! These checks apply only in [`Draft::validate`] and in the conversions below. Without `validate_events`, events of
//! these types may have any `data`.

use super::{Draft, EventError, data_object, invalid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// Checks the `data` of a known type. Other types may have any `data`.
pub(super) fn check(event_type: &str, raw: Option<&RawValue>) -> Result<(), EventError> {
    let Some(raw) = raw else {
        return match event_type {
            TaskStatusUpdate::TYPE => Err(EventError::Missing("data")),
            _ => Ok(()),
        };
    };
    let check = match event_type {
        TaskStatusUpdate::TYPE => TaskStatusUpdate::check,
        AgentActivityUpdate::TYPE => AgentActivityUpdate::check,
        CalendarEventCreated::TYPE => CalendarEventCreated::check,
        _ => return Ok(()),
    };
    check(&data_object(raw)?)
}

/// The status of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// Created, but not started.
    Pending,
    /// Waiting to be started.
    Queued,
    /// Being executed.
    Running,
    /// Being executed. Some publishers use this value instead of `running`.
    InProgress,
    /// Suspended, to be continued later.
    Paused,
    /// Finished successfully.
    Completed,
    /// Finished with an error.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl TaskStatus {
    /// All values of the field `status`.
    pub const NAMES: &[&str] =
        &["pending", "queued", "running", "in_progress", "paused", "completed", "failed", "cancelled"];
}

/// The data of a `task_status_update`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskStatusUpdate {
    /// The ID of the task.
    pub task_id: String,
    /// The status of the task.
    pub status: TaskStatus,
    /// The progress in percent, from 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// Further fields.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

impl TaskStatusUpdate {
    /// The event's `type`.
    pub const TYPE: &str = "task_status_update";

    fn check(data: &serde_json::Map<String, Value>) -> Result<(), EventError> {
        text_field(data, "task_id", "data.task_id")?.ok_or(EventError::Missing("data.task_id"))?;
        if let Some(status) = text_field(data, "status", "data.status")?
            && !TaskStatus::NAMES.contains(&status)
        {
            return Err(invalid("data.status", format!("must be one of {}", TaskStatus::NAMES.join(", "))));
        }
        match data.get("progress") {
            None | Some(Value::Null) => Ok(()),
            Some(progress) if progress.as_f64().is_some_and(|p| (0.0..=100.0).contains(&p)) => Ok(()),
            Some(_) => Err(invalid("data.progress", "must be a number from 0 to 100")),
        }
    }
}

/// The data of an `agent_activity_update`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentActivityUpdate {
    /// The ID of the agent.
    pub agent_id: String,
    /// Further fields, such as `action` and `status`.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

impl AgentActivityUpdate {
    /// The event's `type`.
    pub const TYPE: &str = "agent_activity_update";

    /// The FastAPI hub also sends notifications with this type, so `agent_id` may be missing.
    fn check(data: &serde_json::Map<String, Value>) -> Result<(), EventError> {
        text_field(data, "agent_id", "data.agent_id").map(drop)
    }
}

/// The data of a `calendar_event_created`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalendarEventCreated {
    /// The ID of the calendar entry, which is not the `event_id` of the message.
    pub event_id: String,
    /// The title of the calendar entry.
    pub title: String,
    /// When the calendar entry starts, in ISO 8601.
    pub start_time: String,
    /// Further fields.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

impl CalendarEventCreated {
    /// The event's `type`.
    pub const TYPE: &str = "calendar_event_created";

    fn check(data: &serde_json::Map<String, Value>) -> Result<(), EventError> {
        text_field(data, "event_id", "data.event_id")?;
        text_field(data, "title", "data.title")?;
        text_field(data, "start_time", "data.start_time").map(drop)
    }
}

/// Reads an optional field that must be a non-empty string.
fn text_field<'a>(
    data: &'a serde_json::Map<String, Value>,
    key: &str,
    field: &'static str,
) -> Result<Option<&'a str>, EventError> {
    match data.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(invalid(field, "must be a string that is not empty")),
    }
}

macro_rules! typed {
    ($($kind:ident),+) => {$(
        impl TryFrom<&$kind> for Draft {
            type Error = EventError;

            fn try_from(data: &$kind) -> Result<Self, EventError> {
                let draft = Self::new($kind::TYPE, data)?;
                check($kind::TYPE, draft.fields.get("data"))?;
                Ok(draft)
            }
        }
    )+};
}
typed!(TaskStatusUpdate, AgentActivityUpdate, CalendarEventCreated);
