//! Tokens for the commands: given, or made with the configured secret.

use super::Usage;
use crate::settings::Settings;
use aws_lc_rs::rand;
use clap::ArgMatches;
use fanfare::{ConnectionId, Minter, auth::Claims};
use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// Where a command gets the token that it shows.
pub(crate) enum Access {
    Given(String),
    /// Made anew for each use, so that none expires in the middle.
    Made {
        minter: Minter,
        claims: Claims,
        ttl: Duration,
    },
}

impl Access {
    /// The token of the command line or the environment, or one that says `claims`.
    pub(crate) fn new(matches: &ArgMatches, settings: &Settings, claims: Claims) -> anyhow::Result<Self> {
        if let Some(token) = matches.get_one::<String>("token") {
            return Ok(Self::Given(token.trim().to_owned()));
        }
        let ttl = Duration::from_secs(settings.access_token_expire_minutes.saturating_mul(60));
        Ok(Self::Made { minter: minter(settings, "give --token, set FANFARE_TOKEN, or")?, claims, ttl })
    }

    pub(crate) fn token(&self) -> anyhow::Result<String> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::Made { minter, claims, ttl } => Ok(minter.mint(&dated(claims.clone(), *ttl)?)),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access(..)")
    }
}

/// A minter with the configured secret. `otherwise` begins the sentence that says what to do without one.
pub(crate) fn minter(settings: &Settings, otherwise: &str) -> anyhow::Result<Minter> {
    let Some(secret) = &settings.secret_key else {
        let text = format!(
            "there is no secret to sign a token with: {otherwise} set SECRET_KEY to the hub's secret \
             (in the environment, in .env, or as secret_key in fanfare.toml)"
        );
        return Err(Usage(text.trim_start().to_owned()).into());
    };
    Ok(Minter::new(settings.algorithm, secret.bytes())?)
}

/// The claims with a beginning, an end and an id of their own.
pub(crate) fn dated(claims: Claims, ttl: Duration) -> anyhow::Result<Claims> {
    let now = unix_secs();
    Ok(Claims {
        exp: Some(now.saturating_add(ttl.as_secs().max(1))),
        iat: Some(now),
        jti: Some(random_id()?),
        ..claims
    })
}

/// Seconds since 1970-01-01T00:00:00Z.
pub(crate) fn unix_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A random UUID (RFC 9562 version 4).
pub(crate) fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(ConnectionId(u128::from_be_bytes(bytes)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_is_a_uuid_of_version_4() {
        let id = random_id().unwrap();
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'));
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn without_a_secret_it_says_what_to_do() {
        let error = minter(&Settings::default(), "").expect_err("no secret");
        assert!(error.is::<Usage>() && error.to_string().contains("SECRET_KEY"), "{error}");
    }
}
