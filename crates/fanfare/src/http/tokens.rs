//! Tokens that are no longer believed, and the keys that tokens are verified with.

use super::{
    access::Admin,
    body::{EventText, invalid},
    error::ApiError,
    responses::RevokeErrors,
};
use crate::{Hub, auth::token_id, clock};
use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use fanfare_core::{Revocation, audience::MAX_USER_BYTES};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which tokens are believed no longer: those of a user, one token, or all that were issued before a time.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"user": "alice"}))]
pub(super) struct RevokeInput {
    /// Those of this user that were issued before now, or before `issued_before`.
    #[schema(nullable = false, min_length = 1, max_length = 256)]
    user: Option<String>,
    /// The one with this `jti`.
    #[schema(nullable = false, min_length = 1)]
    jti: Option<String>,
    /// Those that were issued before this time, in seconds since 1970-01-01T00:00:00Z. A token without `iat` counts as the
    /// oldest.
    #[schema(nullable = false, example = 1_800_000_000)]
    issued_before: Option<u64>,
}

/// What was done.
#[derive(Serialize, ToSchema)]
pub(super) struct RevokedBody {
    #[schema(example = "revoked")]
    status: &'static str,
}

/// The public keys that tokens are verified with (RFC 7517 section 5).
#[derive(Serialize, ToSchema)]
pub(super) struct JwksBody {
    keys: Vec<serde_json::Map<String, serde_json::Value>>,
}

impl RevokeInput {
    /// Tokens tell their time of issue in whole seconds: those of the running second are among them, and those that were
    /// issued since an earlier revocation of this second, which count as later than it.
    fn read(self, unix_secs: u64, believed_from: impl Fn(&str) -> u64) -> Result<Revocation, ApiError> {
        match (self.user, self.jti, self.issued_before) {
            (Some(user), None, before) if (1..=MAX_USER_BYTES).contains(&user.len()) => {
                let before = before.unwrap_or_else(|| unix_secs.max(believed_from(&user)) + 1);
                Ok(Revocation::User { user: user.into(), before })
            }
            (Some(_), None, _) => Err(invalid("the field `user` must be a user's id, 1 to 256 bytes")),
            (None, Some(jti), None) if !jti.is_empty() => Ok(Revocation::Token { token: token_id(&jti) }),
            (None, Some(_), None) => Err(invalid("the field `jti` must be a token's id")),
            (None, None, Some(before)) if before <= unix_secs + 1 => Ok(Revocation::Everyone { before }),
            (None, None, Some(_)) => Err(invalid("the field `issued_before` lies in the future")),
            _ => Err(invalid("name a `user`, with or without `issued_before`, or a `jti`, or `issued_before` alone")),
        }
    }
}

/// Revoke tokens
///
/// Takes effect at once and on all nodes: connections that were opened with such a token are closed with code 1008, and it
/// opens no new one. By user, all tokens that were issued up to now, so that a new login works.
#[utoipa::path(
    post,
    path = "/tokens/revoke",
    tag = "operate",
    operation_id = "revoke_tokens",
    security(("bearer" = [])),
    request_body = RevokeInput,
    responses((status = 200, description = "No node believes them any more.", body = RevokedBody), RevokeErrors)
)]
pub(super) async fn revoke(
    _: Admin,
    State(hub): State<Hub>,
    EventText(text): EventText,
) -> Result<Json<RevokedBody>, ApiError> {
    let input: RevokeInput =
        serde_json::from_str(&text).map_err(|error| ApiError::of_text(&text, invalid(error.to_string())))?;
    let revocation = input.read(clock::now().unix_ms / 1_000, |user| hub.believed_from(user))?;
    hub.revoke(revocation).await?;
    Ok(Json(RevokedBody { status: "revoked" }))
}

/// The keys that tokens are verified with
///
/// As a JWKS, for others that verify this hub's tokens. Empty where tokens are signed with a secret.
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    tag = "operate",
    operation_id = "jwks",
    security(()),
    responses((status = 200, description = "The public keys.", body = JwksBody))
)]
pub(super) async fn jwks(State(hub): State<Hub>) -> Response {
    let mut response = Json(hub.verifier().to_jwks()).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}
