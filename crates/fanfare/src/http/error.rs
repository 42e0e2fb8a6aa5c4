//! What goes wrong in a request: one table of codes, from which the answers, the counters and the documentation come.

use crate::{AudienceError, AuthError, BrokerError, EventError, Hub, PublishError, metrics::Counter};
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
use serde::Serialize;
use utoipa::ToSchema;

/// What a publisher should wait before it tries again, in seconds.
const RETRY_AFTER_SECS: u64 = 1;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $status:literal, $word:literal $(, $counter:ident)?;)+) => {
        /// What went wrong, as a program reads it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum ErrorCode { $($(#[doc = $doc])+ $name,)+ }

        impl ErrorCode {
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$name),+];

            pub(super) const fn status(self) -> u16 {
                match self { $(Self::$name => $status),+ }
            }

            /// The word in the answer's `code`.
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
    /// The body ended before its end, or the request can't be read.
    BadRequest = 400, "bad_request";
    /// There is no bearer token.
    TokenMissing = 401, "token_missing", AuthMissing;
    /// The token has expired.
    TokenExpired = 401, "token_expired", AuthExpired;
    /// The token is not valid yet.
    TokenNotYetValid = 401, "token_not_yet_valid", AuthNotYetValid;
    /// The token is not valid.
    TokenInvalid = 401, "token_invalid", AuthInvalid;
    /// The token was revoked.
    TokenRevoked = 401, "token_revoked", AuthRevoked;
    /// The token does not allow this.
    Forbidden = 403, "forbidden", AuthForbidden;
    /// There is nothing under this path.
    NotFound = 404, "not_found";
    /// The path exists, but not for this method; `Allow` names the methods it has.
    MethodNotAllowed = 405, "method_not_allowed";
    /// The body did not come in time (`handshake_timeout`).
    RequestTimeout = 408, "request_timeout", LimitHandshake;
    /// The body is larger than an event may be (`max_event_bytes`).
    BodyTooLarge = 413, "body_too_large", LimitEventBytes;
    /// The event is larger than it may be (`max_event_bytes`).
    EventTooLarge = 413, "event_too_large", LimitEventBytes;
    /// The batch is larger than it may be (`max_batch_events`).
    BatchTooLarge = 413, "batch_too_large", LimitBatch;
    /// The body is declared to be something other than JSON.
    UnsupportedMediaType = 415, "unsupported_media_type", BadEvents;
    /// A field is missing or has a value that it can't have; `detail` names it.
    Invalid = 422, "invalid", BadEvents;
    /// More events a second than this publisher may (`publishes_per_second`); `Retry-After` says when to try again.
    TooManyEvents = 429, "too_many_events", LimitPublishes;
    /// The keys that tokens are verified with can't be had now; try again.
    KeysUnavailable = 503, "keys_unavailable", AuthUnavailable;
    /// The log can't be reached, and nothing was published; try again.
    LogUnavailable = 503, "log_unavailable";
    /// The event is in the log, and no replica has it yet (`durability`); publish it again under the same `event_id`.
    NotReplicated = 503, "not_replicated";
    /// The revocation is in force, but the accounts' database can't be written, and a restart would forget it.
    NotKept = 503, "not_kept";
}

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError {
    code: ErrorCode,
    body: ErrorBody,
    /// The hub counted it already.
    counted: bool,
    /// What to wait before the next attempt, in seconds.
    retry_after: u64,
}

/// The answer to a request that failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What was wrong, and where, as a sentence.
    detail: String,
    /// The same as one word for a program.
    code: &'static str,
    /// Which event of a batch it was, counted from 0.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

impl ErrorCode {
    /// The same request may go well a moment later: `Retry-After` says when.
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

    /// Says when to try again, in seconds.
    pub(super) fn retry_after(mut self, secs: u64) -> Self {
        self.retry_after = secs.max(1);
        self
    }

    /// The error is that of one event of a batch.
    pub(super) fn in_batch(mut self, index: usize) -> Self {
        self.body.detail = format!("events[{index}]: {}", self.body.detail);
        self.body.index = Some(index);
        self
    }

    /// What is wrong with `text`: if it isn't broken JSON, then it is `otherwise`.
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

/// An error in the API's form, for an application's own routes: what was wrong as a word and as a sentence.
pub fn problem(status: StatusCode, code: &'static str, detail: &str) -> Response {
    (status, Json(ErrorBody { detail: detail.to_owned(), code, index: None })).into_response()
}

/// `WWW-Authenticate` by RFC 6750 section 3: a request without a token is told no error.
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

/// Counts the errors that the handlers answered with.
pub(super) async fn count(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(counter) = response.extensions().get::<ErrorCode>().and_then(|code| code.counter()) {
        hub.metrics().add(counter, 1);
    }
    response
}

/// Answers 404 as the API does, for an application that wants it as its fallback. A path with a slash too many is told
/// the right one.
pub async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    let hint = super::paths::without_extra_slashes(path).map(|path| format!("; did you mean {path}?"));
    let detail = format!("there is nothing at {path}{}", hint.unwrap_or_default());
    ApiError::new(ErrorCode::NotFound, detail).into_response()
}

pub(super) async fn method_not_allowed(request: Request) -> Response {
    let detail = format!("{} can't be done to {}", request.method(), request.uri().path());
    ApiError::new(ErrorCode::MethodNotAllowed, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_word_once_and_only_error_statuses() {
        let mut words: Vec<_> = ErrorCode::ALL.iter().map(|code| code.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.status()) && code.meaning().ends_with('.'), "{code:?}");
        }
    }

    #[test]
    fn a_log_that_is_away_is_to_be_tried_again() {
        let response =
            ApiError::from(PublishError::Broker(BrokerError::Unavailable("gone".to_owned()))).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
