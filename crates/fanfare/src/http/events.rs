//! Publishing events as they are: one, or a batch in which all are valid or none is published.

use super::{
    access::Publisher,
    body::{BatchText, EventText, invalid},
    error::{ApiError, ErrorCode},
    responses::{BatchErrors, PublishErrors},
};
use crate::{Audience, ConnectionId, Draft, Hub, PublishError, Published};
use axum::{Json, extract::State, http::StatusCode};
use fanfare_core::audience::{MAX_TOPIC_BYTES, MAX_USER_BYTES, OWN_TOPICS, check_topic};
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
    /// What happened, as clients switch on it; not one of the protocol's own frames.
    #[schema(min_length = 1, max_length = 64, example = "note")]
    #[schema(
        pattern = "^(?!(?:ack|ping|pong|error|gap|goaway|subscribe|unsubscribe|auth|auth_expiring)$)[A-Za-z0-9_\\-.:/$]+$"
    )]
    r#type: String,
    /// The particulars. The types `task_status_update`, `agent_activity_update` and `calendar_event_created` check
    /// the fields that they know.
    #[schema(value_type = Option<Object>, nullable = false, example = json!({"text": "hello"}))]
    data: Option<Value>,
    /// Publishing again under the same id publishes nothing and answers with the first one's position. Made if left
    /// out. Not of the form `pos-…-…`, which the hub gives.
    #[schema(nullable = false, min_length = 1, max_length = 128, pattern = "^(?!pos-)[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    event_id: Option<String>,
    /// When it happened, in ISO 8601. Now, if left out.
    #[schema(nullable = false)]
    timestamp: Option<String>,
    /// Who gets it. Everyone, if left out.
    #[schema(schema_with = audience_schema)]
    audience: Option<AudienceInput>,
    /// Anything else.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// Who gets an event.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AudienceInput {
    Everyone,
    User(String),
    Connection(String),
    Topic(String),
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
        .description(Some("Who gets it. Everyone, if left out."))
        .item(id().enum_values(Some(["everyone"])).description(Some("Every connection.")))
        .item(object(
            "user",
            id().min_length(Some(1)).max_length(Some(MAX_USER_BYTES)),
            "Every connection of one user.",
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
/// An answer of success means that the event stands in the log: every client that may know gets it.
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
        ("array" = (value = json!([{"type": "note", "data": {"n": 1}}, {"type": "note", "audience": {"user": "u1"}}]))),
        ("object" = (value = json!({"events": [{"type": "note", "event_id": "n-1", "data": {"n": 1}}]}))),
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
    let published = hub.publish_all_by(drafts, publisher.origin()).await.map_err(|(index, error)| match error {
        // What holds the log back is no event's fault.
        error @ PublishError::Broker(_) => error.into(),
        error => ApiError::from(error).in_batch(index),
    })?;
    Ok(Json(BatchBody { results: published.into_iter().map(PublishedBody::from).collect() }))
}

/// Reads an event and whom it is for.
fn parse(text: &str) -> Result<(Draft, Audience), ApiError> {
    let mut draft = Draft::parse(text).map_err(|error| ApiError::of_text(text, error))?;
    let audience = draft.take("audience").map_or(Ok(Audience::Everyone), |raw| audience(&raw))?;
    Ok((draft, audience))
}

fn audience(raw: &RawValue) -> Result<Audience, ApiError> {
    // `null` is no audience: who lost a user's id on the way must not reach everyone.
    let input = serde_json::from_str(raw.get()).map_err(|_| {
        invalid(
            "the field `audience` must be \"everyone\", {\"user\": ID}, {\"connection\": UUID} or {\"topic\": NAME}",
        )
    })?;
    match input {
        AudienceInput::Everyone => Ok(Audience::Everyone),
        AudienceInput::User(id) => user(&id),
        AudienceInput::Connection(id) => id
            .parse::<ConnectionId>()
            .map(Audience::Connection)
            .map_err(|error| invalid(format!("the field `audience.connection` is {error}"))),
        AudienceInput::Topic(name) if name.starts_with(OWN_TOPICS) => {
            Err(invalid("the field `audience.topic` can't be used: topics that begin with $ are the hub's own"))
        }
        AudienceInput::Topic(name) => check_topic(&name)
            .map(|()| Audience::Topic(Arc::from(name)))
            .map_err(|error| invalid(format!("the field `audience.topic` can't be used: {error}"))),
    }
}

/// The audience of one user.
pub(super) fn user(id: &str) -> Result<Audience, ApiError> {
    if id.is_empty() || id.len() > MAX_USER_BYTES {
        return Err(invalid(format!("a user's id must have 1 to {MAX_USER_BYTES} bytes")));
    }
    Ok(Audience::User(Arc::from(id)))
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
