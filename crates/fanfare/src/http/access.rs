//! Who may call: extractors that let a request pass or answer 401 and 403. Knows tokens only by what they grant.

use super::error::{ApiError, ErrorCode};
use crate::{Grant, Hub, upgrade::bearer};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};

/// The request's token allows publishing.
pub(super) struct Publisher;

/// The request's token allows everything.
pub(super) struct Admin;

impl FromRequestParts<Hub> for Publisher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        if grant(&parts.headers, hub).await?.may_publish() {
            Ok(Self)
        } else {
            Err(forbidden("the token does not allow publishing: it needs the claim \"publish\": true"))
        }
    }
}

impl FromRequestParts<Hub> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        if grant(&parts.headers, hub).await?.admin {
            Ok(Self)
        } else {
            Err(forbidden("this needs an administrator's token: one with the claim \"admin\": true"))
        }
    }
}

fn forbidden(detail: &str) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, detail)
}

async fn grant(headers: &HeaderMap, hub: &Hub) -> Result<Grant, ApiError> {
    Ok(hub.authenticate(bearer(headers).unwrap_or_default()).await?)
}
