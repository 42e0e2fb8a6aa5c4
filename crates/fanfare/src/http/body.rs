//! Request bodies as text and as fields, within their limits. Knows the syntax of JSON, and not the meaning of the
//! fields.

use super::{
    BodyTimeout,
    error::{ApiError, ErrorCode},
};
use crate::{Config, Draft, EventError, Hub};
use axum::{
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use fanfare_core::{
    event::MAX_DEPTH,
    json::{self, Object},
};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// Allowance for the audience and the white space of formatted JSON, beyond the event itself.
const ENVELOPE_BYTES: usize = 4 << 10;

/// Maximum size of a batch, regardless of the settings.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// The JSON text of one event.
pub(super) struct EventText(pub(super) String);

/// The JSON text of a batch.
pub(super) struct BatchText(pub(super) String);

/// The fields of a JSON object, in order.
pub(super) struct Fields(Object);

/// The fields of a JSON object, if there is one. An empty body and `null` count as absent.
pub(super) struct OptionalFields(pub(super) Option<Fields>);

struct Limit {
    bytes: usize,
    code: ErrorCode,
    setting: &'static str,
}

impl Limit {
    fn of_event(config: &Config) -> Self {
        let bytes = config.max_event_bytes.saturating_add(ENVELOPE_BYTES);
        Self { bytes, code: ErrorCode::BodyTooLarge, setting: "max_event_bytes" }
    }

    fn of_batch(config: &Config) -> Self {
        let bytes = config.max_event_bytes.saturating_mul(config.max_batch_events).min(MAX_BATCH_BYTES);
        let bytes = bytes.saturating_add(ENVELOPE_BYTES);
        Self { bytes, code: ErrorCode::BatchTooLarge, setting: "max_batch_events x max_event_bytes, at most 8 MiB" }
    }

    fn exceeded(&self) -> ApiError {
        let Self { bytes, code, setting } = self;
        ApiError::new(*code, format!("the body may have at most {bytes} bytes ({setting})"))
    }
}

impl FromRequest<Hub> for EventText {
    type Rejection = ApiError;

    async fn from_request(request: Request, hub: &Hub) -> Result<Self, ApiError> {
        let text = read(request, Limit::of_event(hub.config())).await?;
        text.map(Self).ok_or_else(|| empty("a JSON object"))
    }
}

impl FromRequest<Hub> for BatchText {
    type Rejection = ApiError;

    async fn from_request(request: Request, hub: &Hub) -> Result<Self, ApiError> {
        let text = read(request, Limit::of_batch(hub.config())).await?;
        text.map(Self).ok_or_else(|| empty("a JSON array of events"))
    }
}

impl FromRequest<Hub> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, hub: &Hub) -> Result<Self, ApiError> {
        let EventText(text) = EventText::from_request(request, hub).await?;
        Self::parse(&text)
    }
}

impl FromRequest<Hub> for OptionalFields {
    type Rejection = ApiError;

    async fn from_request(request: Request, hub: &Hub) -> Result<Self, ApiError> {
        let text = read(request, Limit::of_event(hub.config())).await?;
        let text = text.filter(|text| text.trim_ascii() != "null");
        text.map(|text| Fields::parse(&text)).transpose().map(Self)
    }
}

impl Fields {
    fn parse(text: &str) -> Result<Self, ApiError> {
        // The fields become an event's `data`, one level deeper.
        let depth = json::depth(text) + 1;
        if depth > MAX_DEPTH {
            return Err(EventError::TooDeep { depth }.into());
        }
        let fields = serde_json::from_str(text);
        fields.map(Self).map_err(|error| ApiError::of_text(text, EventError::Json(error.to_string())))
    }

    pub(super) fn empty() -> Self {
        Self(Object::default())
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    pub(super) fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.0.take(name)
    }

    /// The fields as an event.
    pub(super) fn into_draft(self) -> Result<Draft, EventError> {
        let text = serde_json::to_string(&self).map_err(|error| EventError::Json(error.to_string()))?;
        Draft::parse(&text)
    }

    /// Inserts a field before all others.
    pub(super) fn put_first<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), EventError> {
        let raw = serde_json::value::to_raw_value(value).map_err(|error| EventError::Json(error.to_string()))?;
        self.0.0.insert(0, (name.to_owned(), raw));
        Ok(())
    }

    /// Inserts the ID of the path as the first field. A different ID in the body is an error, or is ignored if
    /// `lenient`.
    pub(super) fn put_path_id(&mut self, name: &'static str, id: &str, lenient: bool) -> Result<(), ApiError> {
        if let Some(own) = self.take(name)
            && !lenient
            && json::number(&own) != Some(id)
            && serde_json::from_str::<String>(own.get()).ok().as_deref() != Some(id)
        {
            return Err(invalid(format!("the field `{name}` does not match the path: remove it")));
        }
        Ok(self.put_first(name, &id)?)
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.0.iter().map(|(name, value)| (name, value)))
    }
}

pub(super) fn invalid(detail: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Invalid, detail)
}

fn empty(expected: &str) -> ApiError {
    ApiError::new(ErrorCode::NotJson, format!("the body is empty: expected {expected}"))
}

/// The body as text; `None` if it is empty.
async fn read(mut request: Request, limit: Limit) -> Result<Option<String>, ApiError> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|bytes: usize| bytes > limit.bytes) {
        return Err(limit.exceeded());
    }
    let media_type = check_media_type(request.headers());
    DefaultBodyLimit::max(limit.bytes).apply(&mut request);
    let bytes = Bytes::from_request(request, &()).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => limit.exceeded(),
        _ if BodyTimeout::caused(&rejection) => ApiError::new(ErrorCode::RequestTimeout, BodyTimeout.to_string()),
        _ => ApiError::new(ErrorCode::BadRequest, rejection.body_text()),
    })?;
    if bytes.is_empty() {
        // An empty body has no relevant type: `curl -d ''` declares a form.
        return Ok(None);
    }
    media_type?;
    String::from_utf8(bytes.into())
        .map(Some)
        .map_err(|error| ApiError::new(ErrorCode::NotJson, format!("not JSON: {}", error.utf8_error())))
}

/// Accepts JSON media types, and requests without a media type.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(declared) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let declared = String::from_utf8_lossy(declared.as_bytes());
    let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        let detail = format!("expected Content-Type: application/json, not {declared:?}");
        Err(ApiError::new(ErrorCode::UnsupportedMediaType, detail))
    }
}
