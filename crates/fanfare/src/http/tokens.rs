//! Revocation of tokens, and the keys that verify tokens.

use super::{
    access::Admin,
    body::{EventText, invalid},
    error::ApiError,
    responses::RevokeErrors,
};
use crate::{
    Hub,
    auth::{CLOCK_TOLERANCE_SECS, token_id},
    clock,
};
use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use fanfare_core::{Revocation, audience::MAX_USER_BYTES};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The last second of the year 9999. The expiry of the last token of a login is unknown if another issuer issues its
/// tokens.
const FOR_GOOD: u64 = 253_402_300_799;

/// How far in the future a revocation may be, in seconds. It is less than the tolerance for `iat`, so tokens issued
/// after the revocation are dated after it.
const AHEAD_SECS: u64 = CLOCK_TOLERANCE_SECS / 2;

/// The tokens to revoke: those of a user, one token, those of a login, or all that were issued before a time.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"user": "alice"}))]
pub(super) struct RevokeInput {
    /// Revokes the tokens of this user that were issued before now, or before `issued_before`.
    #[schema(nullable = false, min_length = 1, max_length = 256)]
    user: Option<String>,
    /// Revokes the token with this `jti`.
    #[schema(nullable = false, min_length = 1)]
    jti: Option<String>,
    /// Revokes the tokens with this `sid`: all tokens of one login, including its refresh tokens.
    #[schema(nullable = false, min_length = 1)]
    sid: Option<String>,
    /// Revokes the tokens that were issued before this time, in seconds since 1970-01-01T00:00:00Z; at most 30 s from
    /// now. A token without `iat` counts as the oldest.
    #[schema(nullable = false, example = 1_800_000_000)]
    issued_before: Option<u64>,
}

/// The result of a revocation.
#[derive(Serialize, ToSchema)]
pub(super) struct RevokedBody {
    #[schema(example = "revoked")]
    status: &'static str,
}

/// The public keys that verify tokens (RFC 7517 section 5).
#[derive(Serialize, ToSchema)]
pub(super) struct JwksBody {
    keys: Vec<serde_json::Map<String, serde_json::Value>>,
}

impl RevokeInput {
    /// The revocation, as of `unix_secs`. Times of issue are whole seconds. The revocation therefore includes tokens of
    /// the current second, and tokens issued since an earlier revocation in this second, which are dated after it.
    fn read(self, unix_secs: u64, tokens_valid_from: impl Fn(&str) -> u64) -> Result<Revocation, ApiError> {
        // A later time would revoke every token until then, and a revocation cannot be undone.
        let latest = unix_secs + AHEAD_SECS;
        if self.issued_before.is_some_and(|before| before > latest) {
            return Err(invalid(format!(
                "the field `issued_before` is too far in the future: it is a time in seconds since 1970, at most \
                 {latest} ({AHEAD_SECS} s from now)"
            )));
        }
        match (self.user, self.jti, self.sid, self.issued_before) {
            (Some(user), None, None, before) if (1..=MAX_USER_BYTES).contains(&user.len()) => {
                let before = before.unwrap_or_else(|| unix_secs.max(tokens_valid_from(&user)) + 1);
                Ok(Revocation::User { user: user.into(), before })
            }
            (Some(_), None, None, _) => Err(invalid("the field `user` must be a user's id, 1 to 256 bytes")),
            (None, Some(jti), None, None) if !jti.is_empty() => Ok(Revocation::Token { token: token_id(&jti) }),
            (None, Some(_), None, None) => Err(invalid("the field `jti` must be a token's id")),
            (None, None, Some(sid), None) if !sid.is_empty() => {
                Ok(Revocation::Session { session: token_id(&sid), until: FOR_GOOD })
            }
            (None, None, Some(_), None) => Err(invalid("the field `sid` must be the id of a login")),
            (None, None, None, Some(before)) => Ok(Revocation::Everyone { before }),
            _ => Err(invalid(
                "expected one of `user` (with or without `issued_before`), `jti`, `sid`, or `issued_before` alone",
            )),
        }
    }
}

/// Revoke tokens
///
/// Takes effect immediately and on all nodes. Connections that were opened with a revoked token are closed with code
/// 1008, and the token opens no new one. A revocation by user includes all tokens issued up to now; a new login works.
/// Logins at this hub that began before the time are ended, including their refresh tokens. A revocation by `jti`
/// revokes one token only; its login continues.
#[utoipa::path(
    post,
    path = "/tokens/revoke",
    tag = "operate",
    operation_id = "revoke_tokens",
    security(("bearer" = [])),
    request_body = RevokeInput,
    responses((status = 200, description = "All nodes reject the tokens.", body = RevokedBody), RevokeErrors)
)]
pub(super) async fn revoke(
    _: Admin,
    State(hub): State<Hub>,
    EventText(text): EventText,
) -> Result<Json<RevokedBody>, ApiError> {
    let input: RevokeInput =
        serde_json::from_str(&text).map_err(|error| ApiError::of_text(&text, invalid(error.to_string())))?;
    let revocation = input.read(clock::now().unix_ms / 1_000, |user| hub.tokens_valid_from(user))?;
    hub.revoke(revocation).await?;
    Ok(Json(RevokedBody { status: "revoked" }))
}

/// The keys that verify tokens
///
/// As a JWKS, for other services that verify this hub's tokens. Empty if tokens are signed with a secret.
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
