//! The endpoints of the FastAPI hub, with the same paths, inputs and responses. Each builds an event and publishes it.
//! The headers `fanfare-event-id` and `fanfare-position` identify the published event.

use super::{
    access::{CompatPublisher, Publisher},
    body::{Fields, OptionalFields, invalid},
    error::ApiError,
    events,
    responses::PublishErrors,
};
use crate::{
    AgentActivityUpdate, Audience, CalendarEventCreated, Draft, Hub, Published, TaskStatus, TaskStatusUpdate,
    identity::fresh_event_id,
};
use axum::{
    Json,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use std::collections::BTreeMap;
use utoipa::{
    IntoParams, ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

/// The routes that need no token with `compat`.
pub(super) const OPEN_WITH_COMPAT: [&str; 3] =
    ["/tasks/{task_id}/update", "/users/{user_id}/notify", "/agents/{agent_id}/activity"];

/// The ID in the path.
pub(super) struct PathId(pub(super) String);

impl FromRequestParts<Hub> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        let Path(id) = Path::from_request_parts(parts, hub).await?;
        Ok(Self(id))
    }
}

/// The query. Unknown parameters are ignored.
pub(super) struct Params<T>(pub(super) T);

impl<T: serde::de::DeserializeOwned> FromRequestParts<Hub> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        let Query(params) = Query::from_request_parts(parts, hub).await?;
        Ok(Self(params))
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TaskParams {
    /// The task's status. Required here or in the body; the body takes precedence.
    #[param(schema_with = status_schema, required = false)]
    status: Option<String>,
    /// The progress in percent; the body takes precedence.
    #[param(nullable = false, value_type = Option<f64>)]
    progress: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NotifyParams {
    /// The message, used if there is no body.
    #[param(nullable = false)]
    message: Option<String>,
}

fn status_schema() -> Object {
    let names = TaskStatus::NAMES.join(", ");
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(format!("The task's status: {names}, or any other text unless `validate_events` is set.")))
        .examples(["running"])
        .build()
}

/// The status of a task. Further fields are added to the event's `data`.
#[derive(ToSchema)]
#[schema(example = json!({"status": "in_progress", "progress": 40, "step": "upload"}))]
#[expect(dead_code, reason = "it documents the fields, which themselves pass through as text")]
pub(super) struct TaskInput {
    /// The task's status. Required here or in the query.
    #[schema(schema_with = status_schema, required = false)]
    status: Option<String>,
    /// The progress in percent; 0 to 100 with `validate_events`.
    progress: Option<f64>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// A calendar event. All fields become the `data` of the published event.
#[derive(ToSchema)]
#[schema(example = json!({"title": "Review", "start_time": "2026-12-01T10:00:00Z"}))]
#[expect(dead_code, reason = "it documents the fields, which themselves pass through as text")]
pub(super) struct CalendarInput {
    /// The ID of the calendar event; generated if missing.
    #[schema(nullable = false, min_length = 1)]
    event_id: Option<String>,
    /// The title.
    #[schema(nullable = false, min_length = 1)]
    title: Option<String>,
    /// The start time, in ISO 8601.
    #[schema(nullable = false, min_length = 1)]
    start_time: Option<String>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// The result, as one word.
#[derive(Serialize, ToSchema)]
pub(super) struct StatusBody {
    #[schema(example = "sent")]
    status: &'static str,
}

/// The result of a task update.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskBody {
    #[schema(example = "Task update broadcasted")]
    message: &'static str,
    task_id: String,
}

/// The result of a notification.
#[derive(Serialize, ToSchema)]
pub(super) struct UserBody {
    #[schema(example = "Notification sent")]
    message: &'static str,
    user_id: String,
}

/// The result of creating a calendar event.
#[derive(Serialize, ToSchema)]
pub(super) struct CalendarBody {
    #[schema(example = "Calendar event created")]
    message: &'static str,
    /// The ID of the calendar event. The ID of the published event is in `fanfare-event-id`.
    event_id: String,
}

type ApiResult<T> = Result<(HeaderMap, Json<T>), ApiError>;

/// Broadcast a task's status
#[utoipa::path(
    post,
    path = "/tasks/{task_id}/update",
    tag = "reference",
    operation_id = "update_task",
    security(("bearer" = [])),
    params(("task_id" = String, Path, description = "The task.", example = "task-7"), TaskParams),
    request_body(content = Option<TaskInput>, description = "Optional if the query has the status."),
    responses(
        (status = 200, description = "A `task_status_update` was published to everyone.", body = StatusBody,
            headers(("fanfare-event-id" = String), ("fanfare-position" = String)),
            example = json!({"status": "updated"})),
        PublishErrors,
    )
)]
pub(super) async fn update_task(
    CompatPublisher(publisher): CompatPublisher,
    State(hub): State<Hub>,
    PathId(task_id): PathId,
    Params(params): Params<TaskParams>,
    OptionalFields(fields): OptionalFields,
) -> ApiResult<StatusBody> {
    let published = publish_task(&hub, publisher, &task_id, params, fields).await?;
    Ok(answer(&published, StatusBody { status: "updated" }))
}

/// Broadcast a task's status, with a message in the response
#[utoipa::path(
    post,
    path = "/tasks/{task_id}/broadcast-update",
    tag = "reference",
    operation_id = "broadcast_task_update",
    security(("bearer" = [])),
    params(("task_id" = String, Path, description = "The task.", example = "task-7"), TaskParams),
    request_body(content = Option<TaskInput>, description = "Optional if the query has the status."),
    responses(
        (status = 200, description = "A `task_status_update` was published to everyone.", body = TaskBody,
            headers(("fanfare-event-id" = String), ("fanfare-position" = String))),
        PublishErrors,
    )
)]
pub(super) async fn broadcast_task_update(
    publisher: Publisher,
    State(hub): State<Hub>,
    PathId(task_id): PathId,
    Params(params): Params<TaskParams>,
    OptionalFields(fields): OptionalFields,
) -> ApiResult<TaskBody> {
    let published = publish_task(&hub, publisher, &task_id, params, fields).await?;
    Ok(answer(&published, TaskBody { message: "Task update broadcasted", task_id }))
}

/// Notify a user
///
/// The body becomes the `data` of an `agent_activity_update` to the user. A body that has both `type` and `data` is
/// published as that event.
#[utoipa::path(
    post,
    path = "/users/{user_id}/notify",
    tag = "reference",
    operation_id = "notify_user",
    security(("bearer" = [])),
    params(("user_id" = String, Path, description = "The user.", example = "alice"), NotifyParams),
    request_body(content = Option<BTreeMap<String, Value>>, description = "Optional if the query has a message.",
        example = json!({"message": "Your report is ready"})),
    responses(
        (status = 200, description = "Published to the user.", body = StatusBody,
            headers(("fanfare-event-id" = String), ("fanfare-position" = String)), example = json!({"status": "sent"})),
        PublishErrors,
    )
)]
pub(super) async fn notify_user(
    CompatPublisher(publisher): CompatPublisher,
    State(hub): State<Hub>,
    PathId(user_id): PathId,
    Params(params): Params<NotifyParams>,
    OptionalFields(fields): OptionalFields,
) -> ApiResult<StatusBody> {
    let draft = notification(params, fields)?;
    let published = hub.publish_by(draft, events::user(&user_id)?, publisher.origin()).await?;
    Ok(answer(&published, StatusBody { status: "sent" }))
}

/// Notify a user, with a message in the response
#[utoipa::path(
    post,
    path = "/users/{user_id}/send-notification",
    tag = "reference",
    operation_id = "send_notification",
    security(("bearer" = [])),
    params(("user_id" = String, Path, description = "The user.", example = "alice")),
    request_body(content = BTreeMap<String, Value>, description = "The `data` of an `agent_activity_update`.",
        example = json!({"title": "Report", "message": "Your report is ready"})),
    responses(
        (status = 200, description = "Published to the user.", body = UserBody,
            headers(("fanfare-event-id" = String), ("fanfare-position" = String))),
        PublishErrors,
    )
)]
pub(super) async fn send_notification(
    publisher: Publisher,
    State(hub): State<Hub>,
    PathId(user_id): PathId,
    fields: Fields,
) -> ApiResult<UserBody> {
    let draft = Draft::new(AgentActivityUpdate::TYPE, &fields)?;
    let published = hub.publish_by(draft, events::user(&user_id)?, publisher.origin()).await?;
    Ok(answer(&published, UserBody { message: "Notification sent", user_id }))
}

/// Broadcast a new calendar event
#[utoipa::path(
    post,
    path = "/calendar/events/create",
    tag = "reference",
    operation_id = "create_calendar_event",
    security(("bearer" = [])),
    request_body = CalendarInput,
    responses(
        (status = 200, description = "A `calendar_event_created` was published to everyone.", body = CalendarBody,
            headers(("fanfare-event-id" = String), ("fanfare-position" = String))),
        PublishErrors,
    )
)]
pub(super) async fn create_calendar_event(
    publisher: Publisher,
    State(hub): State<Hub>,
    mut fields: Fields,
) -> ApiResult<CalendarBody> {
    let event_id = match fields.get("event_id").filter(|own| own.get() != "null") {
        Some(own) => serde_json::from_str(own.get()).unwrap_or_else(|_| own.get().to_owned()),
        None => {
            let fresh = fresh_event_id();
            fields.take("event_id");
            fields.put_first("event_id", &fresh)?;
            fresh
        }
    };
    let draft = Draft::new(CalendarEventCreated::TYPE, &fields)?;
    let published = hub.publish_by(draft, Audience::Everyone, publisher.origin()).await?;
    Ok(answer(&published, CalendarBody { message: "Calendar event created", event_id }))
}

/// Broadcast an agent's activity
#[utoipa::path(
    post,
    path = "/agents/{agent_id}/activity",
    tag = "reference",
    operation_id = "record_agent_activity",
    security(("bearer" = [])),
    params(("agent_id" = String, Path, description = "The agent.", example = "agent-7")),
    request_body(content = BTreeMap<String, Value>,
        description = "The `data` of an `agent_activity_update`, without `agent_id`.",
        example = json!({"action": "searching", "status": "active"})),
    responses(
        (status = 200, description = "An `agent_activity_update` was published to everyone.", body = StatusBody,
            headers(("fanfare-event-id" = String), ("fanfare-position" = String)), example = json!({"status": "sent"})),
        PublishErrors,
    )
)]
pub(super) async fn record_agent_activity(
    CompatPublisher(publisher): CompatPublisher,
    State(hub): State<Hub>,
    PathId(agent_id): PathId,
    mut fields: Fields,
) -> ApiResult<StatusBody> {
    fields.put_path_id("agent_id", &agent_id, hub.config().compat)?;
    let draft = Draft::new(AgentActivityUpdate::TYPE, &fields)?;
    let published = hub.publish_by(draft, Audience::Everyone, publisher.origin()).await?;
    Ok(answer(&published, StatusBody { status: "sent" }))
}

async fn publish_task(
    hub: &Hub,
    publisher: Publisher,
    task_id: &str,
    params: TaskParams,
    fields: Option<Fields>,
) -> Result<Published, ApiError> {
    let fields = task_data(task_id, &params, fields.unwrap_or_else(Fields::empty), hub.config().compat)?;
    let draft = Draft::new(TaskStatusUpdate::TYPE, &fields)?;
    Ok(hub.publish_by(draft, Audience::Everyone, publisher.origin()).await?)
}

/// The event's `data`: `task_id`, `status` and `progress` in this order, followed by the other fields of the body.
/// `status` is optional if `lenient`.
fn task_data(task_id: &str, params: &TaskParams, mut fields: Fields, lenient: bool) -> Result<Fields, ApiError> {
    let status = params.status.as_deref().map(raw).transpose()?;
    let progress = params.progress.as_deref().map(number_or_text).transpose()?;
    if let Some(progress) = fields.take("progress").or(progress) {
        fields.put_first("progress", &progress)?;
    }
    match fields.take("status").or(status) {
        Some(status) => fields.put_first("status", &status)?,
        None if lenient => {}
        None => {
            let names = TaskStatus::NAMES.join(", ");
            return Err(invalid(format!("the field `status` is missing: send a text such as {names}")));
        }
    }
    fields.put_path_id("task_id", task_id, lenient)?;
    Ok(fields)
}

/// The query's `progress` as JSON: a number with its original digits, or a string if it is not a number.
fn number_or_text(param: &str) -> Result<Box<RawValue>, ApiError> {
    match serde_json::from_str::<f64>(param) {
        Ok(_) => RawValue::from_string(param.trim().to_owned()).map_err(|error| invalid(error.to_string())),
        Err(_) => raw(param),
    }
}

fn raw(text: &str) -> Result<Box<RawValue>, ApiError> {
    serde_json::value::to_raw_value(text).map_err(|error| invalid(error.to_string()))
}

fn notification(params: NotifyParams, fields: Option<Fields>) -> Result<Draft, ApiError> {
    let Some(fields) = fields else {
        let message = params
            .message
            .ok_or_else(|| invalid("no notification: send a JSON object, or the parameter `message` in the query"))?;
        return Ok(Draft::new(AgentActivityUpdate::TYPE, &serde_json::json!({ "message": message }))?);
    };
    if !(fields.contains("type") && fields.contains("data")) {
        return Ok(Draft::new(AgentActivityUpdate::TYPE, &fields)?);
    }
    if fields.contains("audience") {
        return Err(invalid("the field `audience` must be left out: the path names the user"));
    }
    Ok(fields.into_draft()?)
}

fn answer<T>(published: &Published, body: T) -> (HeaderMap, Json<T>) {
    let marks =
        [("fanfare-event-id", published.event_id.clone()), ("fanfare-position", published.position.to_string())];
    // An event ID may have characters beyond ASCII, which a header carries as bytes (RFC 9110 section 5.5).
    let headers = marks.into_iter().filter_map(|(name, value)| {
        Some((HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).ok()?))
    });
    (headers.collect(), Json(body))
}
