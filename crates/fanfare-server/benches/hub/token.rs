//! Tokens of the load's users and of its publisher.

use anyhow::Result;
use jsonwebtoken::{EncodingKey, Header, encode};
use std::time::SystemTime;

/// The secret of the servers under measurement.
pub(crate) const SECRET: &str = "a secret for benchmarks only, 32 bytes and more";

#[derive(serde::Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    iat: u64,
    jti: &'a str,
    publish: bool,
}

/// A new HS256 token that is valid for an hour.
///
pub(crate) fn mint(user: &str, publish: bool) -> Result<String> {
    let iat = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let claims = Claims { sub: user, exp: iat + 3600, iat, jti: user, publish };
    Ok(encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))?)
}
