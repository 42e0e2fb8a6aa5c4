//! The errors of the API: one table of codes, from which the responses, the counters and the documentation are
//! generated.

use crate::{
    AudienceError, AuthError, BrokerError, EventError, Hub, PublishError, metrics::Counter, problem::ErrorBody,
};
use axum::{
    Json,
    extract::{
        Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Default for `Retry-After`, in seconds.
const RETRY_AFTER_SECS: u64 = 1;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $status:literal, $word:literal $(, $counter:ident)?;)+) => {
        /// An error code, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum ErrorCode { $($(#[doc = $doc])+ $name,)+ }

        impl ErrorCode {
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$name),+];

            pub(super) const fn status(self) -> u16 {
                match self { $(Self::$name => $status),+ }
            }

            /// The value of `code` in the response.
            pub(super) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            pub(super) const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            const fn counter(self) -> Option<Counter> {
                match self { $(Self::$name => error_codes!(@counter $($counter)?)),+ }
            }
        }
    };
    (@counter $counter:ident) => { Some(Counter::$counter) };
    (@counter) => { None };
}

error_codes! {
    /// The body is not JSON.
    NotJson = 400, "not_json", BadEvents;
    /// The body is truncated, or the request is malformed.
    BadRequest = 400, "bad_request";
    /// The request has no bearer token.
    TokenMissing = 401, "token_missing", AuthMissing;
    /// The token has expired.
    TokenExpired = 401, "token_expired", AuthExpired;
    /// The token is not valid yet.
    TokenNotYetValid = 401, "token_not_yet_valid", AuthNotYetValid;
    /// The token is not valid.
    TokenInvalid = 401, "token_invalid", AuthInvalid;
    /// The token was revoked.
    TokenRevoked = 401, "token_revoked", AuthRevoked;
    /// The token does not allow this request.
    Forbidden = 403, "forbidden", AuthForbidden;
    /// No route has this path, or the resource does not exist.
    NotFound = 404, "not_found";
    /// The route does not support this method; `Allow` lists the methods that it supports.
    MethodNotAllowed = 405, "method_not_allowed";
    /// The body was not received in time (`handshake_timeout`).
    RequestTimeout = 408, "request_timeout", LimitHandshake;
    /// The body exceeds the size limit of an event (`max_event_bytes`).
    BodyTooLarge = 413, "body_too_large", LimitEventBytes;
    /// The event exceeds the size limit (`max_event_bytes`).
    EventTooLarge = 413, "event_too_large", LimitEventBytes;
    /// The batch exceeds the limit (`max_batch_events`).
    BatchTooLarge = 413, "batch_too_large", LimitBatch;
    /// The media type of the body is not JSON.
    UnsupportedMediaType = 415, "unsupported_media_type", BadEvents;
    /// A field is missing, or its value is not valid; `detail` names the field.
    Invalid = 422, "invalid", BadEvents;
    /// The publisher exceeds its rate (`publishes_per_second`); retry after the time in `Retry-After`.
    TooManyEvents = 429, "too_many_events", LimitPublishes;
    /// The keys that verify tokens are currently unavailable; retry.
    KeysUnavailable = 503, "keys_unavailable", AuthUnavailable;
    /// The log is currently unavailable, and nothing was published; retry.
    LogUnavailable = 503, "log_unavailable";
    /// The event is in the log, but not on a replica yet (`durability`); publish it again with the same `event_id`.
    NotReplicated = 503, "not_replicated";
    /// The revocation is in force, but could not be stored in the accounts database, so a restart would lose it; retry.
    NotKept = 503, "not_kept";
}

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError {
    code: ErrorCode,
    body: ErrorBody,
    /// Whether the hub already counted the error.
    counted: bool,
    /// The value of `Retry-After`, in seconds.
    retry_after: u64,
}

impl ErrorCode {
    /// Whether the request may succeed later. The response then has `Retry-After`.
    pub(super) const fn is_for_later(self) -> bool {
        matches!(
            self,
            Self::LogUnavailable | Self::NotReplicated | Self::NotKept | Self::KeysUnavailable | Self::TooManyEvents
        )
    }
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let body = ErrorBody { detail: detail.into(), code: code.word(), index: None };
        Self { code, body, counted: false, retry_after: RETRY_AFTER_SECS }
    }

    /// Sets `Retry-After`, in seconds.
    pub(super) fn retry_after(mut self, secs: u64) -> Self {
        self.retry_after = secs.max(1);
        self
    }

    /// Marks the error as that of one event of a batch.
    pub(super) fn in_batch(mut self, index: usize) -> Self {
        self.body.detail = format!("events[{index}]: {}", self.body.detail);
        self.body.index = Some(index);
        self
    }

    /// The error of `text`: a JSON syntax error if it has one, else `otherwise`.
    pub(super) fn of_text(text: &str, otherwise: impl Into<Self>) -> Self {
        match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Err(error) => Self::new(ErrorCode::NotJson, format!("not JSON: {error}")),
            Ok(_) => otherwise.into(),
        }
    }
}

impl From<EventError> for ApiError {
    fn from(error: EventError) -> Self {
        Self::new(ErrorCode::Invalid, error.to_string())
    }
}

impl From<AudienceError> for ApiError {
    fn from(error: AudienceError) -> Self {
        Self::new(ErrorCode::Invalid, format!("the field `audience` {error}"))
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let code = match &error {
            PublishError::Invalid(_) | PublishError::Audience(_) => ErrorCode::Invalid,
            PublishError::TooLarge { .. } => ErrorCode::EventTooLarge,
            PublishError::Broker(error) => error.into(),
        };
        Self { counted: true, ..Self::new(code, error.to_string()) }
    }
}

impl From<&BrokerError> for ErrorCode {
    fn from(error: &BrokerError) -> Self {
        match error {
            BrokerError::Unavailable(_) => Self::LogUnavailable,
            BrokerError::NotReplicated { .. } => Self::NotReplicated,
            BrokerError::NotKept(_) => Self::NotKept,
        }
    }
}

impl From<BrokerError> for ApiError {
    fn from(error: BrokerError) -> Self {
        Self::new((&error).into(), error.to_string())
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        let code = match error.code() {
            "token_missing" => ErrorCode::TokenMissing,
            "token_expired" => ErrorCode::TokenExpired,
            "token_not_yet_valid" => ErrorCode::TokenNotYetValid,
            "token_revoked" => ErrorCode::TokenRevoked,
            "keys_unavailable" => ErrorCode::KeysUnavailable,
            _ => ErrorCode::TokenInvalid,
        };
        Self::new(code, error.to_string())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(ErrorCode::BadRequest, rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(ErrorCode::Invalid, rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.body)).into_response();
        let headers = response.headers_mut();
        if let Some(challenge) = challenge(self.code) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.code.is_for_later() {
            headers.insert(header::RETRY_AFTER, self.retry_after.into());
        }
        if !self.counted {
            response.extensions_mut().insert(self.code);
        }
        response
    }
}

/// The value of `WWW-Authenticate` (RFC 6750 section 3). A request without a token receives no error code.
pub(super) const fn challenge(code: ErrorCode) -> Option<&'static str> {
    match code.status() {
        401 => Some(match code {
            ErrorCode::TokenMissing => "Bearer",
            _ => "Bearer error=\"invalid_token\"",
        }),
        403 => Some("Bearer error=\"insufficient_scope\""),
        _ => None,
    }
}

/// Counts the error responses of the handlers.
pub(super) async fn count(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(counter) = response.extensions().get::<ErrorCode>().and_then(|code| code.counter()) {
        hub.metrics().add(counter, 1);
    }
    response
}

/// The API's 404 response, for an application that uses it as its fallback. It suggests the right path if the request's
/// path only has extra slashes.
pub async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    let hint = super::paths::without_extra_slashes(path).map(|path| format!("; did you mean {path}?"));
    let detail = format!("no route {path}{}", hint.unwrap_or_default());
    ApiError::new(ErrorCode::NotFound, detail).into_response()
}

pub(super) async fn method_not_allowed(request: Request) -> Response {
    let detail = format!("{} does not support {}", request.uri().path(), request.method());
    ApiError::new(ErrorCode::MethodNotAllowed, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_code_once_and_only_error_statuses() {
        let mut words: Vec<_> = ErrorCode::ALL.iter().map(|code| code.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.status()) && code.meaning().ends_with('.'), "{code:?}");
        }
    }

    #[test]
    fn an_unavailable_log_is_answered_with_retry_after() {
        let response =
            ApiError::from(PublishError::Broker(BrokerError::Unavailable("gone".to_owned()))).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
