//! Publishing events as they are: one, or a batch in which all are valid or none is published.

use super::{
    access::Publisher,
    body::{BatchText, EventText, invalid},
    error::{ApiError, ErrorCode},
    responses::{BatchErrors, PublishErrors},
};
use crate::{Audience, BatchError, Draft, Hub, Published};
use axum::{Json, extract::State, http::StatusCode};
use fanfare_core::audience::{MAX_TOPIC_BYTES, MAX_USER_BYTES};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use std::{collections::BTreeMap, sync::Arc};
use utoipa::{
    ToSchema,
    openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, Type},
};

/// An event to publish. Fields beyond the named ones reach the clients unchanged and in order.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it documents the fields, which themselves pass through as text")]
pub(super) struct EventInput {
    /// What happened, as clients switch on it. The types of the protocol's own frames and types that begin with `$` are
    /// reserved.
    #[schema(min_length = 1, max_length = 256, example = "note")]
    #[schema(
        pattern = "^(?!(?:ack|ping|pong|error|gap|goaway|subscribe|unsubscribe|auth|auth_expiring)$)(?!\\$)[^\\x00-\\x1f\\x7f-\\x9f]+$"
    )]
    r#type: String,
    /// The content, usually an object. With `validate_events` it must be one, and the types `task_status_update`,
    /// `agent_activity_update` and `calendar_event_created` check the fields that they know.
    #[schema(example = json!({"text": "hello"}))]
    data: Option<Value>,
    /// Publishing again under the same id publishes nothing and answers with the first one's position. Generated if
    /// missing. Not of the form `pos-…-…`, which is reserved for the hub. A number becomes a string.
    #[schema(nullable = false, min_length = 1, max_length = 128, pattern = "^(?!pos-)[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    event_id: Option<String>,
    /// When it happened, in ISO 8601. The current time if missing.
    #[schema(nullable = false)]
    timestamp: Option<String>,
    /// Who receives it.
    #[schema(schema_with = audience_schema)]
    audience: Value,
    /// Anything else.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

fn audience_schema() -> Schema {
    let id = || ObjectBuilder::new().schema_type(Type::String);
    let uuid = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$";
    let topic = "^(?!\\$)[^,*\\s\\x00-\\x1f\\x7f-\\x9f]+$";
    let object = |name: &str, id: ObjectBuilder, what: &str| {
        let only = AdditionalProperties::FreeForm(false);
        ObjectBuilder::new().description(Some(what)).property(name, id).required(name).additional_properties(Some(only))
    };
    OneOfBuilder::new()
        .description(Some("Who receives it."))
        .item(id().enum_values(Some(["everyone"])).description(Some("Every connection.")))
        .item(object(
            "user",
            id().min_length(Some(1)).max_length(Some(MAX_USER_BYTES)),
            "Every connection of one user. A number is taken as its digits.",
        ))
        .item(object("connection", id().pattern(Some(uuid)), "One connection."))
        .item(object(
            "topic",
            id().pattern(Some(topic)).max_length(Some(MAX_TOPIC_BYTES)),
            "Every connection that subscribed to the topic.",
        ))
        .examples([serde_json::json!({ "user": "alice" })])
        .into()
}

/// Events to publish, in their order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// Events to publish, in their order: as an array, or as an object that holds one.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it documents two shapes, of which the text is read")]
pub(super) enum BatchInput {
    /// The events themselves.
    Array(Vec<EventInput>),
    /// The events in an object.
    Object(EventsInput),
}

/// Events in an object.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it documents the object, of which the text is read")]
pub(super) struct EventsInput {
    events: Vec<EventInput>,
}

/// An event that stands in the log.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct PublishedBody {
    /// The event's id, as given or as made.
    #[schema(example = "3f0c9d8e-6a8e-4d0c-9b7e-2f4f6f1f2a3b")]
    event_id: String,
    /// Where it stands in the log.
    #[schema(example = "pos-1f00c3-42")]
    position: String,
    /// The log had an event of this id before; this one was not published again.
    duplicate: bool,
}

/// What became of a batch, event by event.
#[derive(Serialize, ToSchema)]
pub(super) struct BatchBody {
    results: Vec<PublishedBody>,
}

impl From<Published> for PublishedBody {
    fn from(published: Published) -> Self {
        Self { event_id: published.event_id, position: published.position.to_string(), duplicate: published.duplicate }
    }
}

/// Publish one event
///
/// An answer of success means that the event is in the log: every authorised client receives it. `audience` is required;
/// fields such as `user` or `topic` beside it are rejected, because they choose nobody.
#[utoipa::path(
    post,
    path = "/events",
    tag = "publish",
    operation_id = "publish",
    security(("bearer" = [])),
    request_body = EventInput,
    responses(
        (status = 201, description = "Published.", body = PublishedBody),
        (status = 200, description = "The log already had an event of this id.", body = PublishedBody,
            example = json!({"event_id": "order-7", "position": "pos-1f00c3-42", "duplicate": true})),
        PublishErrors,
    )
)]
pub(super) async fn publish(
    publisher: Publisher,
    State(hub): State<Hub>,
    EventText(text): EventText,
) -> Result<(StatusCode, Json<PublishedBody>), ApiError> {
    let (draft, audience) = parse(&text)?;
    let published = hub.publish_by(draft, audience, publisher.origin()).await?;
    let status = if published.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(published.into())))
}

/// Publish many events
///
/// They are published in their order, all or none: if one is not valid, the answer's `index` says which it is.
#[utoipa::path(
    post,
    path = "/events/batch",
    tag = "publish",
    operation_id = "publish_batch",
    security(("bearer" = [])),
    request_body(content = BatchInput, examples(
        ("array" = (value = json!([
            {"type": "note", "audience": "everyone", "data": {"n": 1}},
            {"type": "note", "audience": {"user": "u1"}},
        ]))),
        ("object" = (value = json!({
            "events": [{"type": "note", "event_id": "n-1", "audience": "everyone", "data": {"n": 1}}],
        }))),
    )),
    responses((status = 200, description = "All stand in the log.", body = BatchBody), BatchErrors)
)]
pub(super) async fn publish_batch(
    publisher: Publisher,
    State(hub): State<Hub>,
    BatchText(text): BatchText,
) -> Result<Json<BatchBody>, ApiError> {
    let drafts = parse_batch(&text, hub.config().max_batch_events)?;
    publisher.count(drafts.len().saturating_sub(1), &hub)?;
    let published = hub.publish_all_by(drafts, publisher.origin()).await.map_err(|BatchError { index, error }| {
        let error = ApiError::from(error);
        match index {
            Some(index) => error.in_batch(index),
            None => error,
        }
    })?;
    Ok(Json(BatchBody { results: published.into_iter().map(PublishedBody::from).collect() }))
}

/// Fields that other APIs name an audience with. As fields of an event they would be passed on, and the event would reach
/// whomever `audience` names.
const MISPLACED: &[(&str, &str)] = &[
    ("user", "user"),
    ("users", "user"),
    ("connection", "connection"),
    ("connections", "connection"),
    ("topic", "topic"),
    ("topics", "topic"),
    ("channel", "topic"),
    ("channels", "topic"),
    ("audiences", "user"),
];

/// Reads an event and its audience.
fn parse(text: &str) -> Result<(Draft, Audience), ApiError> {
    let mut draft = Draft::parse(text).map_err(|error| ApiError::of_text(text, error))?;
    if let Some(&(field, kind)) = MISPLACED.iter().find(|(field, _)| draft.field(field).is_some()) {
        return Err(misplaced(field, kind, draft.field(field)));
    }
    let audience = draft.take("audience").ok_or_else(|| {
        invalid(
            "the field `audience` is missing: send \"audience\": \"everyone\" to reach every connection, or {\"user\": ID}, \
             {\"connection\": UUID} or {\"topic\": NAME}",
        )
    })?;
    Ok((draft, Audience::from_json(&audience)?))
}

/// Names the right form, with the value if it is one name.
fn misplaced(field: &str, kind: &str, value: Option<&RawValue>) -> ApiError {
    let name = value.map_or("", RawValue::get);
    let single = name.len() <= 64 && name.starts_with(|c: char| c == '"' || c.is_ascii_digit());
    let name = if single { name } else { "..." };
    let several = if field.ends_with('s') { ", one event for each" } else { "" };
    invalid(format!(
        "the field `{field}` does not choose who receives the event: send \"audience\": {{\"{kind}\": {name}}}{several}; if it \
         belongs to the event, put it into `data`"
    ))
}

/// The audience of one user.
pub(super) fn user(id: &str) -> Result<Audience, ApiError> {
    let audience = Audience::User(Arc::from(id));
    audience.check()?;
    Ok(audience)
}

fn parse_batch(text: &str, limit: usize) -> Result<Vec<(Draft, Audience)>, ApiError> {
    let no_batch = |error: serde_json::Error| {
        let detail = format!("expected an array of events, or {{\"events\": [...]}}: {error}");
        ApiError::of_text(text, invalid(detail))
    };
    let events: Vec<&RawValue> = if text.trim_ascii_start().starts_with('{') {
        serde_json::from_str::<Batch<'_>>(text).map_err(no_batch)?.events
    } else {
        serde_json::from_str(text).map_err(no_batch)?
    };
    let count = events.len();
    if count > limit {
        let detail = format!("the batch has {count} events; at most {limit} are allowed (max_batch_events)");
        return Err(ApiError::new(ErrorCode::BatchTooLarge, detail));
    }
    let events = events.into_iter().enumerate();
    events.map(|(index, event)| parse(event.get()).map_err(|error| error.in_batch(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_core::event::RESERVED_TYPES;
    use utoipa::PartialSchema;

    #[test]
    fn the_documented_pattern_excludes_the_protocols_types() {
        let schema = serde_json::to_value(EventInput::schema()).unwrap();
        let pattern = schema["properties"]["type"]["pattern"].as_str().unwrap();
        assert!(pattern.starts_with(&format!("^(?!(?:{})$)", RESERVED_TYPES.join("|"))), "{pattern}");
    }
}
