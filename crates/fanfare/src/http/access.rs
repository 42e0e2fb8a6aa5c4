//! Who may call: extractors that let a request pass or answer 401 and 403. Knows tokens only by what they grant.

use super::error::{ApiError, ErrorCode};
use crate::{AuthError, Grant, Hub, clock};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};

/// The request's token allows publishing.
pub(super) struct Publisher;

/// The request's token allows everything.
pub(super) struct Admin;

impl FromRequestParts<Hub> for Publisher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        if grant(&parts.headers, hub)?.may_publish() {
            Ok(Self)
        } else {
            Err(forbidden("the token does not allow publishing: it needs the claim \"publish\": true"))
        }
    }
}

impl FromRequestParts<Hub> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, ApiError> {
        if grant(&parts.headers, hub)?.admin {
            Ok(Self)
        } else {
            Err(forbidden("this needs an administrator's token: one with the claim \"admin\": true"))
        }
    }
}

fn forbidden(detail: &str) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, detail)
}

fn grant(headers: &HeaderMap, hub: &Hub) -> Result<Grant, ApiError> {
    let token = bearer(headers).ok_or(AuthError::Missing)?;
    Ok(hub.verifier().verify(token, clock::now().unix_ms / 1_000)?)
}

/// The token of `Authorization: Bearer`, whose scheme is read without regard to case (RFC 9110 section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_one() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, header.parse().unwrap())]);
            assert_eq!(bearer(&headers), token, "{header}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
