//! The claims of a token.

use super::{Expected, Flaw};
use aws_lc_rs::digest;
use fanfare_core::{Grant, audience::MAX_USER_BYTES};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The claims of a token. Times are in seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Claims {
    /// The user; 1 to [`MAX_USER_BYTES`] bytes.
    pub sub: String,
    /// When the token expires. `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When the token was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// The token's ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// The login that the token belongs to. All tokens of a login can be revoked together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// Events before this time are not replayed to the bearer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_from: Option<u64>,
    /// The issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The audience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// Whether the bearer may publish.
    pub publish: bool,
    /// Whether the bearer has all permissions.
    pub admin: bool,
    /// Patterns of the topics that the bearer may subscribe to. `*` matches any sequence of characters.
    pub topics: Vec<String>,
}

/// The claims that the hub reads, before validation. A claim that is null counts as absent.
#[derive(Deserialize)]
pub(super) struct RawClaims<'a> {
    #[serde(borrow)]
    sub: Option<&'a RawValue>,
    #[serde(borrow)]
    exp: Option<&'a RawValue>,
    #[serde(borrow)]
    nbf: Option<&'a RawValue>,
    #[serde(borrow)]
    iat: Option<&'a RawValue>,
    #[serde(borrow)]
    jti: Option<&'a RawValue>,
    #[serde(borrow)]
    sid: Option<&'a RawValue>,
    #[serde(borrow)]
    replay_from: Option<&'a RawValue>,
    #[serde(borrow)]
    iss: Option<&'a RawValue>,
    #[serde(borrow)]
    aud: Option<&'a RawValue>,
    #[serde(borrow)]
    publish: Option<&'a RawValue>,
    #[serde(borrow)]
    admin: Option<&'a RawValue>,
    #[serde(borrow)]
    topics: Option<&'a RawValue>,
}

/// A name, as a string or a number: some issuers number their users.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(Box<str>),
    Many(Vec<Box<str>>),
}

impl Texts {
    fn list(self) -> Vec<Box<str>> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// The 64-bit identifier of a token or a login: the first 64 bits of the SHA-256 of its `jti` or `sid`.
pub fn token_id(jti: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, jti.as_bytes());
    digest.as_ref().iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte))
}

impl RawClaims<'_> {
    /// The grant of the claims, and the time from which it is valid (`nbf`).
    pub(super) fn read(&self, expected: &Expected) -> Result<(Grant, u64), Flaw> {
        self.check_issuer(expected)?;
        self.check_audience(expected)?;
        let id = claim::<Cow<'_, str>>("jti", self.jti, "a string")?;
        let grant = Grant {
            user: self.user()?.into(),
            topics: self.topics()?,
            publish: claim("publish", self.publish, "true or false")?.unwrap_or(false),
            admin: claim("admin", self.admin, "true or false")?.unwrap_or(false),
            expires_at: instant("exp", self.exp, f64::floor)?,
            issued_at: instant("iat", self.iat, f64::floor)?,
            token: id.map(|id| token_id(&id)),
            session: self.session(),
            replay_from: instant("replay_from", self.replay_from, f64::ceil)?,
        };
        Ok((grant, instant("nbf", self.nbf, f64::ceil)?.unwrap_or(0)))
    }

    fn check_issuer(&self, expected: &Expected) -> Result<(), Flaw> {
        let Some(issuer) = &expected.issuer else { return Ok(()) };
        let found = claim::<Cow<'_, str>>("iss", self.iss, "a string")?;
        if found.as_deref() == Some(issuer) { Ok(()) } else { Err(Flaw::Issuer) }
    }

    /// A token with an audience is rejected even if the hub expects none (RFC 7519 section 4.1.3).
    fn check_audience(&self, expected: &Expected) -> Result<(), Flaw> {
        let found: Option<Texts> = claim("aud", self.aud, "a string or a list of strings")?;
        match (found, &expected.audience) {
            (None, None) => Ok(()),
            (Some(found), Some(audience)) => {
                let matches = found.list().iter().any(|name| **name == **audience);
                if matches { Ok(()) } else { Err(Flaw::Audience) }
            }
            _ => Err(Flaw::Audience),
        }
    }

    fn user(&self) -> Result<String, Flaw> {
        const EXPECTED: &str = "the user's id, a string of 1 to 256 bytes";
        let user = match claim("sub", self.sub, EXPECTED)? {
            Some(Name::Text(text)) => text,
            Some(Name::Number(number)) => number.to_string(),
            None => String::new(),
        };
        if user.is_empty() || user.len() > MAX_USER_BYTES {
            return Err(Flaw::Claim { name: "sub", expected: EXPECTED });
        }
        Ok(user)
    }

    /// Identity providers use `sid` for sessions of their own, in any format. Other formats are ignored.
    fn session(&self) -> Option<u64> {
        match serde_json::from_str(self.sid?.get()).ok()? {
            Name::Text(id) => Some(token_id(&id)),
            Name::Number(id) => Some(token_id(&id.to_string())),
        }
    }

    fn topics(&self) -> Result<Vec<Box<str>>, Flaw> {
        let topics: Option<Texts> = claim("topics", self.topics, "a list of patterns, or one pattern")?;
        Ok(topics.map_or_else(Vec::new, Texts::list))
    }
}

/// The value of a claim, if present.
fn claim<'a, T: Deserialize<'a>>(
    name: &'static str,
    raw: Option<&'a RawValue>,
    expected: &'static str,
) -> Result<Option<T>, Flaw> {
    raw.map(|raw| serde_json::from_str(raw.get()).map_err(|_| Flaw::Claim { name, expected })).transpose()
}

/// A `NumericDate` in whole seconds. RFC 7519 allows fractions, which `round` rounds in the safe direction. Times
/// before 1970 become 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn instant(name: &'static str, raw: Option<&RawValue>, round: fn(f64) -> f64) -> Result<Option<u64>, Flaw> {
    if let Some(secs) = raw.and_then(|raw| raw.get().parse().ok()) {
        return Ok(Some(secs));
    }
    Ok(claim::<f64>(name, raw, "a number of seconds since 1970")?.map(|secs| round(secs) as u64))
}
