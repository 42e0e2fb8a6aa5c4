//! Tokens that are no longer believed, and the keys that tokens are verified with.

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

/// The last second of the year 9999: nothing says when the last token of a login expires that others issue.
const FOR_GOOD: u64 = 253_402_300_799;

/// How far ahead a revocation may be, in seconds: less than a time of issue, so that tokens dated behind it are good.
const AHEAD_SECS: u64 = CLOCK_TOLERANCE_SECS / 2;

/// Which tokens are believed no longer: those of a user, one token, those of a login, or all that were issued before a time.
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
    /// Those with this `sid`: all of one login, with its refresh tokens.
    #[schema(nullable = false, min_length = 1)]
    sid: Option<String>,
    /// Those that were issued before this time, in seconds since 1970-01-01T00:00:00Z; at most 30 s from now. A token without
    /// `iat` counts as the oldest.
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
    fn read(self, unix_secs: u64, tokens_valid_from: impl Fn(&str) -> u64) -> Result<Revocation, ApiError> {
        // A time that is far ahead would revoke every token until then, and no later revocation takes it back.
        let latest = unix_secs + AHEAD_SECS;
        if self.issued_before.is_some_and(|before| before > latest) {
            return Err(invalid(format!(
                "the field `issued_before` is in the future: it is a time in seconds since 1970, at most {latest}, \
                 {AHEAD_SECS} s from now"
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
                "name a `user`, with or without `issued_before`, or a `jti`, a `sid`, or `issued_before` alone",
            )),
        }
    }
}

/// Revoke tokens
///
/// Takes effect at once and on all nodes: connections that were opened with such a token are closed with code 1008, and it
/// opens no new one. By user, all tokens that were issued up to now, so that a new login works. Logins at this hub that began
/// before the time are ended with their refresh tokens; a `jti` ends one token alone, and its login goes on.
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
    let revocation = input.read(clock::now().unix_ms / 1_000, |user| hub.tokens_valid_from(user))?;
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
