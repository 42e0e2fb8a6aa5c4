//! Authorisation: extractors that accept a request or answer it with 401 or 403. They know tokens only by their grant.

use super::error::{ApiError, ErrorCode};
use crate::{Grant, Hub, hub::Origin, upgrade::bearer};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use std::sync::Arc;

/// A request whose token allows publishing.
pub(super) struct Publisher {
    /// The user that the publish rate is counted for.
    user: Arc<str>,
    /// The `traceparent` of the request.
    trace: Option<String>,
}

/// As [`Publisher`]. With `compat`, also a request without a token.
pub(super) struct CompatPublisher(pub(super) Publisher);

/// A request with an administrator's token.
pub(super) struct Admin;

/// The user that all requests without a token are counted for. No token can have this user, because `$` is reserved for
/// the hub.
const ANONYMOUS: &str = "$compat";

impl FromRequestParts<Hub> for Publisher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        let grant = grant(&parts.headers, hub).await?;
        if !grant.may_publish() {
            return Err(forbidden("the token does not allow publishing; it needs the claim \"publish\": true"));
        }
        Self::counted(grant.user, &parts.headers, hub)
    }
}

impl FromRequestParts<Hub> for CompatPublisher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        if hub.config().compat && !parts.headers.contains_key(header::AUTHORIZATION) {
            return Publisher::counted(ANONYMOUS.into(), &parts.headers, hub).map(Self);
        }
        Publisher::from_request_parts(parts, hub).await.map(Self)
    }
}

impl Publisher {
    fn counted(user: Arc<str>, headers: &HeaderMap, hub: &Hub) -> Result<Self, ApiError> {
        let trace = headers.get("traceparent").and_then(|text| text.to_str().ok()).map(str::to_owned);
        let publisher = Self { user, trace };
        publisher.count(1, hub)?;
        Ok(publisher)
    }

    /// The publisher as recorded in the log, and its trace context.
    pub(super) fn origin(self) -> Origin {
        Origin { publisher: format!("user:{}", self.user).into(), trace: self.trace }
    }

    /// Counts further events of a request against the publisher's rate. The request itself already counts as one.
    pub(super) fn count(&self, events: usize, hub: &Hub) -> Result<(), ApiError> {
        hub.check_publish_rate(&self.user, events).map_err(|ms| {
            let detail = format!("publishes_per_second: publish less often; try again in {} ms", ms.max(1));
            ApiError::new(ErrorCode::TooManyEvents, detail).retry_after(ms.div_ceil(1_000))
        })
    }
}

impl FromRequestParts<Hub> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        if grant(&parts.headers, hub).await?.admin {
            Ok(Self)
        } else {
            Err(forbidden("this needs an administrator's token, with the claim \"admin\": true"))
        }
    }
}

fn forbidden(detail: &str) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, detail)
}

async fn grant(headers: &HeaderMap, hub: &Hub) -> Result<Grant, ApiError> {
    Ok(hub.authenticate(bearer(headers).unwrap_or_default()).await?)
}
