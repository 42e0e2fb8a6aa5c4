//! `fanfare token`: creates a token, or explains one.

use crate::{
    access::{dated, minter, parts},
    keyring::Keyring,
    settings::{Settings, kind},
    util::{UsageError, print, unix_secs},
};
use anyhow::Context;
use clap::ArgMatches;
use fanfare::{
    AuthError,
    auth::{Claims, Flaw},
};
use serde_json::Value;
use std::{fmt::Write as _, io::Read, time::Duration};

pub(crate) fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    match matches.get_one::<String>("explain") {
        Some(token) => explain(token, settings),
        None => mint(matches, settings),
    }
}

fn mint(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let minter = minter(settings, "")?;
    let sub = matches.get_one::<String>("sub").cloned().unwrap_or_default();
    if sub.is_empty() || sub.len() > 256 {
        return Err(UsageError("--sub must be the user's ID, of 1 to 256 bytes".to_owned()).into());
    }
    let topics = super::patterns(matches)?;
    let claims = Claims {
        sub,
        publish: matches.get_flag("publish"),
        admin: matches.get_flag("admin"),
        topics,
        ..Claims::default()
    };
    let token = minter.mint(&dated(claims, ttl(matches, settings)?, settings)?);
    if token.len() > fanfare::auth::MAX_TOKEN_BYTES {
        return Err(UsageError(format!(
            "the token would have {} bytes, which is too long: use fewer topics",
            token.len()
        ))
        .into());
    }
    print(&format!("{token}\n"))
}

fn ttl(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<Duration> {
    let Some(text) = matches.get_one::<String>("ttl") else {
        return Ok(Duration::from_secs(settings.access_token_expire_minutes.saturating_mul(60)));
    };
    let ttl = kind::duration::parse(text).filter(|ttl| ttl.as_secs() > 0);
    Ok(ttl.ok_or_else(|| {
        UsageError(format!(
            "--ttl: {text:?} is not a valid lifetime; expected a duration of at least a second, such as 30m"
        ))
    })?)
}

fn explain(token: &str, settings: &Settings) -> anyhow::Result<()> {
    let mut text = token.to_owned();
    if token == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text).context("failed to read standard input")?;
    }
    let text = text.trim();
    let text = text.strip_prefix("Bearer ").unwrap_or(text);
    let (header, claims) = parts(text).ok_or_else(|| {
        anyhow::anyhow!("this is not a JSON Web Token: expected three parts in base64url, separated by dots")
    })?;
    print(&explanation(text, &header, &claims, settings, unix_secs()))
}

fn explanation(token: &str, header: &Value, claims: &Value, settings: &Settings, now: u64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string never fails.
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("user", plain(&claims["sub"]).unwrap_or_else(|| "none: the claim `sub` is missing".to_owned()));
    line("may publish", yes(&claims["publish"], &claims["admin"]));
    line("admin", yes(&claims["admin"], &Value::Null));
    line("topics", topics(claims));
    for (name, key) in [("issued", "iat"), ("valid from", "nbf"), ("expires", "exp")] {
        match claims[key].as_f64() {
            Some(secs) => line(name, instant(secs, now)),
            None if key == "exp" => line(name, "never".to_owned()),
            None => {}
        }
    }
    if let Some(id) = plain(&claims["jti"]) {
        line("token id", id);
    }
    line("algorithm", plain(&header["alg"]).unwrap_or_else(|| "none".to_owned()));
    let (signature, verdict) = verdict(token, settings, now);
    line("signature", signature);
    line("verdict", verdict);
    text
}

fn verdict(token: &str, settings: &Settings, now: u64) -> (String, String) {
    let keyring = match Keyring::load(settings) {
        Ok(keyring) if keyring.is_empty() => {
            let signature = "not checked: no secret is configured; set SECRET_KEY to the hub's secret".to_owned();
            return (signature, "unknown: the lines above are unverified claims".to_owned());
        }
        Ok(keyring) => keyring,
        Err(error) => return ("not checked".to_owned(), error.to_string()),
    };
    match keyring.verifier(settings).verify(token, now) {
        Ok(_) => ("valid".to_owned(), "the hub accepts it".to_owned()),
        Err(error) => {
            let signature = match error {
                AuthError::Invalid(Flaw::Signature) => "invalid",
                AuthError::Invalid(
                    Flaw::TooLong { .. }
                    | Flaw::Parts
                    | Flaw::Header
                    | Flaw::Algorithm { .. }
                    | Flaw::Critical
                    | Flaw::UnknownKey,
                ) => "not checked",
                _ => "valid",
            };
            (signature.to_owned(), format!("the hub rejects it: {error} ({})", error.code()))
        }
    }
}

fn topics(claims: &Value) -> String {
    if claims["admin"] == true {
        return "all, as an admin".to_owned();
    }
    let patterns = match &claims["topics"] {
        Value::Array(patterns) => patterns.iter().filter_map(plain).collect::<Vec<_>>().join(", "),
        one => plain(one).unwrap_or_default(),
    };
    if patterns.is_empty() { "none".to_owned() } else { patterns }
}

fn yes(claim: &Value, or: &Value) -> String {
    if *claim == true {
        "yes"
    } else if *or == true {
        "yes, as an admin"
    } else {
        "no"
    }
    .to_owned()
}

/// A text or number, with control characters escaped.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(
            text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect(),
        ),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn instant(secs: f64, now: u64) -> String {
    let secs = secs as u64;
    let at = time::OffsetDateTime::from_unix_timestamp(i64::try_from(secs).unwrap_or(i64::MAX));
    let at = at.map_or_else(
        |_| format!("{secs} seconds after 1970"),
        |at| format!("{} {:02}:{:02}:{:02} UTC", at.date(), at.hour(), at.minute(), at.second()),
    );
    let away = ago(secs.abs_diff(now));
    if secs > now { format!("{at}, in {away}") } else { format!("{at}, {away} ago") }
}

/// A duration in its one or two largest units.
fn ago(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3_600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, _) => format!("{minutes} min {} s", secs % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::kind::Secret;
    use fanfare::Minter;

    const NOW: u64 = 1_800_000_000;

    fn explained(claims: &Claims, secret: Option<&str>) -> String {
        let token = Minter::from_secret(&"right".repeat(8)).unwrap().mint(claims);
        let settings =
            Settings { secret_key: secret.map(|secret| Secret::new(&secret.repeat(8))), ..Settings::default() };
        let (header, claims) = parts(&token).unwrap();
        explanation(&token, &header, &claims, &settings, NOW)
    }

    #[test]
    fn a_token_is_explained() {
        let claims = Claims {
            sub: "al\u{1b}ice".to_owned(),
            exp: Some(NOW + 90),
            publish: true,
            topics: vec!["a".to_owned(), "b:*".to_owned()],
            ..Claims::default()
        };
        let text = explained(&claims, Some("right"));
        for part in [
            "user        al\\u{1b}ice\n",
            "may publish yes\n",
            "admin       no\n",
            "topics      a, b:*\n",
            "expires     2027-01-15 08:01:30 UTC, in 1 min 30 s\n",
            "algorithm   HS256\n",
            "signature   valid\n",
            "verdict     the hub accepts it\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_verdict_names_the_cause_of_a_rejection() {
        let claims = Claims { sub: "a".to_owned(), exp: Some(NOW - 7_260), admin: true, ..Claims::default() };
        let text = explained(&claims, Some("right"));
        assert!(text.contains("signature   valid") && text.contains("(token_expired)"), "{text}");
        assert!(text.contains("2 h 1 min ago") && text.contains("all, as an admin"), "{text}");
        let text = explained(&claims, Some("other"));
        assert!(text.contains("signature   invalid") && text.contains("(token_invalid)"), "{text}");
        let text = explained(&claims, None);
        assert!(text.contains("not checked") && text.contains("SECRET_KEY"), "{text}");
    }

    #[test]
    fn other_texts_are_not_parsed_as_tokens() {
        for text in ["", "abc", "a.b.c", "e30.e30", "e30.e30.x.y", "W10.W10.x"] {
            assert!(parts(text).is_none(), "{text}");
        }
        assert!(parts("e30.e30.").is_some());
    }
}
