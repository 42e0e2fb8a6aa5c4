//! Tokens for the commands: given, or made with the configured secret.

use super::Usage;
use crate::{keyring::Keyring, settings::Settings};
use aws_lc_rs::rand;
use clap::ArgMatches;
use fanfare::{
    ConnectionId, Minter,
    auth::{Claims, Family},
};
use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// Where a command gets the token that it shows.
pub(crate) enum Access {
    Given(String),
    /// Made anew for each use, so that none expires in the middle.
    Made(Box<Maker>),
}

/// Makes tokens that all say the same.
pub(crate) struct Maker {
    minter: Minter,
    claims: Claims,
    ttl: Duration,
    settings: Settings,
}

impl Access {
    /// The token of the command line or the environment, or one that says `claims`.
    pub(crate) fn new(matches: &ArgMatches, settings: &Settings, claims: Claims) -> anyhow::Result<Self> {
        if let Some(token) = matches.get_one::<String>("token") {
            return Ok(Self::Given(checked(token)?.to_owned()));
        }
        Self::made(settings, claims)
    }

    /// Tokens that say `claims`, made with the configured key.
    pub(crate) fn made(settings: &Settings, claims: Claims) -> anyhow::Result<Self> {
        let ttl = Duration::from_secs(settings.access_token_expire_minutes.saturating_mul(60));
        Ok(Self::Made(Box::new(Maker::new(settings, claims, ttl)?)))
    }

    pub(crate) fn token(&self) -> anyhow::Result<String> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::Made(maker) => maker.token_of(&maker.claims.sub),
        }
    }
}

/// A token that can be sent in a header. The error never repeats any of it.
pub(crate) fn checked(token: &str) -> Result<&str, Usage> {
    let token = token.trim();
    let wrong = token.chars().enumerate().find(|(_, c)| !c.is_ascii_graphic());
    let Some((at, wrong)) = wrong else { return Ok(token) };
    let what = match wrong {
        '\n' | '\r' => "a line break",
        c if c.is_whitespace() => "white space",
        c if c.is_control() => "a control character",
        _ => "a character beyond ASCII",
    };
    let hint = if token.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("bearer ")) {
        "leave out the word Bearer"
    } else {
        "give the JWT or the access key alone"
    };
    Err(Usage(format!("the token (--token, FANFARE_TOKEN) has {what} at character {}: {hint}", at + 1)))
}

impl Maker {
    /// Makes tokens that say `claims` and are valid for `ttl`, with the configured key.
    pub(crate) fn new(settings: &Settings, claims: Claims, ttl: Duration) -> anyhow::Result<Self> {
        let minter = minter(settings, "give --token, set FANFARE_TOKEN, or")?;
        Ok(Self { minter, claims, ttl, settings: settings.clone() })
    }

    /// One that says the same of another user.
    pub(crate) fn token_of(&self, user: &str) -> anyhow::Result<String> {
        let claims = Claims { sub: user.to_owned(), ..self.claims.clone() };
        Ok(self.minter.mint(&dated(claims, self.ttl, &self.settings)?))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access(..)")
    }
}

/// A minter with the configured key. `otherwise` begins the sentence that says what to do without one.
pub(crate) fn minter(settings: &Settings, otherwise: &str) -> anyhow::Result<Minter> {
    let missing = || match settings.algorithm.family() {
        Family::Secret => Usage(format!(
            "there is no secret to sign a token with: {otherwise} set SECRET_KEY to the hub's secret \
             (in the environment, in .env, or as secret_key in fanfare.toml)"
        )),
        _ => Usage(format!("there is no key to sign a token with: {otherwise} set private_key_file")),
    };
    Ok(Keyring::load(settings)?.minter.ok_or_else(missing)?)
}

/// The claims with a beginning, an end and an id of their own, for the hub of these settings.
pub(crate) fn dated(claims: Claims, ttl: Duration, settings: &Settings) -> anyhow::Result<Claims> {
    let now = unix_secs();
    Ok(Claims {
        iss: settings.token_issuer.clone(),
        aud: settings.token_audience.clone(),
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

    // attack: reading a mistyped token from the error message of a command => the message never repeats it
    #[test]
    fn a_token_that_no_header_can_carry_is_described_and_not_repeated() {
        assert_eq!(checked(" aa.bb.cc\n").ok(), Some("aa.bb.cc"));
        for (token, says) in [
            ("Bearer hush", "leave out the word Bearer"),
            ("hu\nsh", "a line break at character 3"),
            ("hu\tsh", "white space at character 3"),
            ("hush\u{e9}", "a character beyond ASCII at character 5"),
            ("hu\0sh", "a control character"),
        ] {
            let error = checked(token).err().map(|Usage(text)| text).unwrap();
            assert!(error.contains(says) && !error.contains("hush"), "{error}");
        }
    }
}
