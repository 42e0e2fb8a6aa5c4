//! The documentation of what can go wrong, made from the table of codes.

use super::error::{ErrorBody, ErrorCode, challenge};
use std::collections::BTreeMap;
use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{ContentBuilder, Header, RefOr, ResponseBuilder, example::ExampleBuilder},
};

/// What can go wrong with a request that needs a token, for the documentation.
pub(super) struct AdminErrors;

/// What can go wrong with the list of who is connected.
pub(super) struct RegistryErrors;

/// What can go wrong with one connection of it.
pub(super) struct ConnectionErrors;

/// What can go wrong with revoking tokens.
pub(super) struct RevokeErrors;

/// What can go wrong with switching what is logged.
pub(super) struct LogErrors;

/// What can go wrong with publishing.
pub(super) struct PublishErrors;

/// What can go wrong with publishing a batch.
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

/// One answer for each status, with an example for each code.
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
