//! The events whose `data` has a known shape, for applications that build or read them as types.
//!
//! Nothing here decides what may be published: only [`Draft::validate`] and the conversions below apply these checks.

use super::{Draft, EventError, data_object, invalid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// Checks the `data` of a known type; other types may have any.
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

/// What a task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// Known, and not begun.
    Pending,
    /// Waiting for its turn.
    Queued,
    /// Being done.
    Running,
    /// Being done; the word some publishers use.
    InProgress,
    /// Stopped, to go on later.
    Paused,
    /// Done.
    Completed,
    /// Ended without success.
    Failed,
    /// Ended by somebody's wish.
    Cancelled,
}

impl TaskStatus {
    /// Every status as it is written.
    pub const NAMES: &[&str] =
        &["pending", "queued", "running", "in_progress", "paused", "completed", "failed", "cancelled"];
}

/// The data of a `task_status_update`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskStatusUpdate {
    /// Which task.
    pub task_id: String,
    /// What it is doing.
    pub status: TaskStatus,
    /// How much is done, in percent: 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// Whatever else there is to say.
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
    /// Which agent.
    pub agent_id: String,
    /// Whatever else there is to say: `action`, `status` and the like.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

impl AgentActivityUpdate {
    /// The event's `type`.
    pub const TYPE: &str = "agent_activity_update";

    /// The reference sends notifications under this type too, so `agent_id` may be missing.
    fn check(data: &serde_json::Map<String, Value>) -> Result<(), EventError> {
        text_field(data, "agent_id", "data.agent_id").map(drop)
    }
}

/// The data of a `calendar_event_created`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalendarEventCreated {
    /// The calendar's own id of the event; not the `event_id` of the message.
    pub event_id: String,
    /// What it is called.
    pub title: String,
    /// When it begins, as ISO 8601.
    pub start_time: String,
    /// Whatever else there is to say.
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

/// A field that must be a string with something in it where it is there.
fn text_field<'a>(
    data: &'a serde_json::Map<String, Value>,
    key: &str,
    field: &'static str,
) -> Result<Option<&'a str>, EventError> {
    match data.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(invalid(field, "must be a string with something in it")),
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
