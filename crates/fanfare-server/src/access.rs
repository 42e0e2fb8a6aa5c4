//! Tokens for the commands: given by the user, or signed with the configured secret.

use crate::{
    keyring::Keyring,
    settings::Settings,
    util::{UsageError, random_id, unix_secs},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::ArgMatches;
use fanfare::{
    Minter,
    auth::{Claims, Family},
};
use serde_json::Value;
use std::{fmt, time::Duration};

/// The source of a command's token.
pub(crate) enum Access {
    Given(String),
    /// A new token for each use, so that none expires while the command runs.
    Signed(Box<TokenSigner>),
}

/// Signs tokens with the same claims.
pub(crate) struct TokenSigner {
    minter: Minter,
    claims: Claims,
    ttl: Duration,
    settings: Settings,
}

impl Access {
    /// The token of the command line or the environment, or else signed tokens with `claims`.
    pub(crate) fn new(matches: &ArgMatches, settings: &Settings, claims: Claims) -> anyhow::Result<Self> {
        if let Some(token) = matches.get_one::<String>("token") {
            return Ok(Self::Given(checked(token)?.to_owned()));
        }
        Self::signed(settings, claims)
    }

    /// Tokens with `claims`, signed with the configured key.
    pub(crate) fn signed(settings: &Settings, claims: Claims) -> anyhow::Result<Self> {
        let ttl = Duration::from_secs(settings.access_token_expire_minutes.saturating_mul(60));
        Ok(Self::Signed(Box::new(TokenSigner::new(settings, claims, ttl)?)))
    }

    pub(crate) fn token(&self) -> anyhow::Result<String> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::Signed(signer) => signer.token_of(&signer.claims.sub),
        }
    }
}

/// Checks that a token can be sent in a header. The error never contains any part of it.
pub(crate) fn checked(token: &str) -> Result<&str, UsageError> {
    let token = token.trim();
    let wrong = token.chars().enumerate().find(|(_, c)| !c.is_ascii_graphic());
    let Some((at, wrong)) = wrong else { return Ok(token) };
    let what = match wrong {
        '\n' | '\r' => "a line break",
        c if c.is_whitespace() => "white space",
        c if c.is_control() => "a control character",
        _ => "a character that is not ASCII",
    };
    let hint = if token.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("bearer ")) {
        "remove the word Bearer"
    } else {
        "expected only the JWT or the access key"
    };
    Err(UsageError(format!("the token (--token, FANFARE_TOKEN) has {what} at character {}: {hint}", at + 1)))
}

impl TokenSigner {
    /// Signs tokens with `claims` and a lifetime of `ttl`, with the configured key.
    pub(crate) fn new(settings: &Settings, claims: Claims, ttl: Duration) -> anyhow::Result<Self> {
        let minter = minter(settings, "give --token, set FANFARE_TOKEN, or")?;
        Ok(Self { minter, claims, ttl, settings: settings.clone() })
    }

    /// A token with the same claims for another user.
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

/// The minter of the configured key. `otherwise` begins the advice in the error if there is none.
pub(crate) fn minter(settings: &Settings, otherwise: &str) -> anyhow::Result<Minter> {
    let missing = || match settings.algorithm.family() {
        Family::Secret => UsageError(format!(
            "no secret is configured to sign a token: {otherwise} set SECRET_KEY to the hub's secret \
             (in the environment, in .env, or as secret_key in fanfare.toml)"
        )),
        _ => UsageError(format!("no key is configured to sign a token: {otherwise} set private_key_file")),
    };
    Ok(Keyring::load(settings)?.minter.ok_or_else(missing)?)
}

/// The claims with issue time, expiry, a random ID, and the issuer and audience of the settings.
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

/// Header and claims of a token, unverified.
pub(crate) fn parts(token: &str) -> Option<(Value, Value)> {
    let mut parts = token.split('.');
    let mut object = || {
        let bytes = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
    };
    let both = (object()?, object()?);
    (parts.next().is_some() && parts.next().is_none()).then_some(both)
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
    fn without_a_secret_the_error_names_the_setting() {
        let error = minter(&Settings::default(), "").expect_err("no secret");
        assert!(error.is::<UsageError>() && error.to_string().contains("SECRET_KEY"), "{error}");
    }

    // attack: reading a mistyped token from the error message of a command => the message never repeats it
    #[test]
    fn the_error_for_a_malformed_token_does_not_contain_it() {
        assert_eq!(checked(" aa.bb.cc\n").ok(), Some("aa.bb.cc"));
        for (token, says) in [
            ("Bearer hush", "remove the word Bearer"),
            ("hu\nsh", "a line break at character 3"),
            ("hu\tsh", "white space at character 3"),
            ("hush\u{e9}", "a character that is not ASCII at character 5"),
            ("hu\0sh", "a control character"),
        ] {
            let error = checked(token).err().map(|UsageError(text)| text).unwrap();
            assert!(error.contains(says) && !error.contains("hush"), "{error}");
        }
    }
}
