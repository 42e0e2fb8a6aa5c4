//! The documentation of error responses, generated from the table of error codes.

use super::error::{ErrorCode, challenge};
use crate::problem::ErrorBody;
use std::collections::BTreeMap;
use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{ContentBuilder, Header, RefOr, ResponseBuilder, example::ExampleBuilder},
};

/// Errors of requests that need an administrator's token.
pub(super) struct AdminErrors;

/// Errors of requests for the list of connections.
pub(super) struct RegistryErrors;

/// Errors of requests for one connection.
pub(super) struct ConnectionErrors;

/// Errors of revoking tokens.
pub(super) struct RevokeErrors;

/// Errors of changing the log level.
pub(super) struct LogErrors;

/// Errors of publishing.
pub(super) struct PublishErrors;

/// Errors of publishing a batch.
pub(super) struct BatchErrors;

const ADMIN: &[ErrorCode] = &[
    ErrorCode::TokenMissing,
    ErrorCode::TokenExpired,
    ErrorCode::TokenNotYetValid,
    ErrorCode::TokenInvalid,
    ErrorCode::TokenRevoked,
    ErrorCode::Forbidden,
    ErrorCode::KeysUnavailable,
];

const PUBLISH: &[ErrorCode] = &[
    ErrorCode::NotJson,
    ErrorCode::BadRequest,
    ErrorCode::RequestTimeout,
    ErrorCode::BodyTooLarge,
    ErrorCode::EventTooLarge,
    ErrorCode::UnsupportedMediaType,
    ErrorCode::Invalid,
    ErrorCode::TooManyEvents,
    ErrorCode::LogUnavailable,
    ErrorCode::NotReplicated,
];

const REVOKE: &[ErrorCode] = &[
    ErrorCode::NotJson,
    ErrorCode::BadRequest,
    ErrorCode::RequestTimeout,
    ErrorCode::BodyTooLarge,
    ErrorCode::UnsupportedMediaType,
    ErrorCode::Invalid,
    ErrorCode::LogUnavailable,
];

const REGISTRY: &[ErrorCode] = &[ErrorCode::BadRequest, ErrorCode::Invalid, ErrorCode::LogUnavailable];

type Responses = BTreeMap<String, RefOr<utoipa::openapi::response::Response>>;

impl IntoResponses for AdminErrors {
    fn responses() -> Responses {
        responses(ADMIN)
    }
}

impl IntoResponses for RegistryErrors {
    fn responses() -> Responses {
        responses(&[ADMIN, REGISTRY].concat())
    }
}

impl IntoResponses for ConnectionErrors {
    fn responses() -> Responses {
        responses(&[ADMIN, REGISTRY, &[ErrorCode::NotFound]].concat())
    }
}

impl IntoResponses for RevokeErrors {
    fn responses() -> Responses {
        responses(&[ADMIN, REVOKE, &[ErrorCode::NotKept]].concat())
    }
}

impl IntoResponses for LogErrors {
    fn responses() -> Responses {
        responses(&[ADMIN, REVOKE, &[ErrorCode::NotFound]].concat())
    }
}

impl IntoResponses for PublishErrors {
    fn responses() -> Responses {
        responses(&[ADMIN, PUBLISH].concat())
    }
}

impl IntoResponses for BatchErrors {
    fn responses() -> Responses {
        responses(&[ADMIN, PUBLISH, &[ErrorCode::BatchTooLarge]].concat())
    }
}

/// One response for each status, with an example for each code.
fn responses(codes: &[ErrorCode]) -> Responses {
    let mut by_status: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for &code in codes {
        by_status.entry(code.status()).or_default().push(code);
    }
    by_status.into_iter().map(|(status, codes)| (status.to_string(), response(&codes).into())).collect()
}

fn response(codes: &[ErrorCode]) -> utoipa::openapi::response::Response {
    let examples = codes.iter().map(|code| {
        let value = serde_json::json!({ "detail": code.meaning(), "code": code.word() });
        (code.word(), ExampleBuilder::new().summary(code.meaning()).value(Some(value)).build())
    });
    let schema = utoipa::openapi::Ref::from_schema_name(ErrorBody::name());
    let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples).build();
    let meaning = codes.iter().map(|code| code.meaning()).collect::<Vec<_>>().join(" ");
    let mut response = ResponseBuilder::new().description(meaning).content("application/json", content);
    if codes.iter().any(|&code| challenge(code).is_some()) {
        response = response.header("WWW-Authenticate", Header::new(String::schema()));
    }
    if codes.iter().any(|code| code.is_for_later()) {
        response = response.header("Retry-After", Header::new(u32::schema()));
    }
    response.build()
}
