//! Tokens: who somebody is and what they may do (JSON Web Tokens, RFC 7519). Knows keys and claims, and neither the
//! clock nor connections.
//!
//! A hub verifies with one algorithm, which its own settings name: what a token's header says is compared with it and
//! never chooses (RFC 8725 section 3.1).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_core::{Grant, audience::MAX_USER_BYTES, time::iso_8601};
use jsonwebtoken::{DecodingKey, EncodingKey, crypto};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

/// The longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The shortest secret that can't be found by trying, in bytes (RFC 7518 section 3.2, for HS256).
pub const MIN_SECRET_BYTES: usize = 32;

macro_rules! algorithms {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $jwt:ident;)+) => {
        /// How tokens are signed (RFC 7518 section 3.1).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Algorithm { $($(#[doc = $doc])+ $name,)+ }

        impl Algorithm {
            /// Every algorithm there is here.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in a token's header and in settings.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            const fn jwt(self) -> jsonwebtoken::Algorithm {
                match self { $(Self::$name => jsonwebtoken::Algorithm::$jwt),+ }
            }
        }
    };
}

algorithms! {
    /// HMAC with SHA-256.
    Hs256 = "HS256", HS256;
    /// HMAC with SHA-384.
    Hs384 = "HS384", HS384;
    /// HMAC with SHA-512.
    Hs512 = "HS512", HS512;
}

/// Verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    key: Arc<DecodingKey>,
    algorithm: Algorithm,
    leeway_secs: u64,
}

/// Signs tokens.
#[derive(Clone)]
pub struct Minter {
    key: EncodingKey,
    algorithm: Algorithm,
}

/// What a token says. Times are in seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Claims {
    /// The user; 1 to [`MAX_USER_BYTES`] bytes.
    pub sub: String,
    /// When the token ends. None: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// The token's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// The bearer may publish.
    pub publish: bool,
    /// The bearer may do everything.
    pub admin: bool,
    /// Patterns of the topics that the bearer may subscribe to; `*` stands for any run of characters.
    pub topics: Vec<String>,
}

/// Why a key can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Anybody could sign with it.
    #[error("the secret that signs tokens is empty; use at least {MIN_SECRET_BYTES} random bytes")]
    Empty,
}

/// The text names no algorithm of [`Algorithm::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an algorithm that signs tokens here: expected {}", names(", "))]
pub struct NotAnAlgorithm;

/// Why somebody was not let in. No message contains any part of the token, and each fits into a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is no token.
    #[error("a token is needed, as ?token=, as Authorization: Bearer or as a WebSocket subprotocol")]
    Missing,
    /// The token was valid.
    #[error("the token expired at {}; get a new one", iso_8601(expired_at.saturating_mul(1_000)))]
    Expired {
        /// When it ended, in seconds since 1970-01-01T00:00:00Z.
        expired_at: u64,
    },
    /// The token will be valid.
    #[error("the token is valid from {} on; compare the clocks", iso_8601(valid_from.saturating_mul(1_000)))]
    NotYetValid {
        /// When it begins, in seconds since 1970-01-01T00:00:00Z.
        valid_from: u64,
    },
    /// The token can't be believed.
    #[error("the token is not valid: {0}")]
    Invalid(#[from] Flaw),
    /// A connection was shown the token of another user.
    #[error("the token is another user's; connect anew to change the user")]
    WrongUser,
    /// The token is valid and does not allow this.
    #[error("the token does not allow this; it needs {needs}")]
    Forbidden {
        /// The claim that would allow it.
        needs: &'static str,
    },
}

/// What is wrong with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("it has {bytes} bytes; at most {MAX_TOKEN_BYTES} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Not three parts with dots between them.
    #[error("expected three parts with dots between them")]
    Parts,
    /// The first part can't be read.
    #[error("its header is not a JSON object with `alg`, in base64url")]
    Header,
    /// Signed by another algorithm than the hub's, or not at all.
    #[error("it is signed with {found}; the hub takes only {expected}")]
    Algorithm {
        /// What its header says, if that is the name of an algorithm.
        found: &'static str,
        /// What the hub takes.
        expected: &'static str,
    },
    /// The header demands something that must not be ignored (RFC 7515 section 4.1.11).
    #[error("its header has `crit`, which the hub does not support")]
    Critical,
    /// Signed with another key, or changed.
    #[error("its signature is wrong: it was changed, or signed with another secret")]
    Signature,
    /// The second part can't be read.
    #[error("its claims are not a JSON object in base64url, each claim once")]
    Claims,
    /// A claim has a value that it can't have, or is missing.
    #[error("the claim `{name}` must be {expected}")]
    Claim {
        /// The claim.
        name: &'static str,
        /// What it must be, as the rest of a sentence.
        expected: &'static str,
    },
    /// The token is for somebody else (RFC 7519 section 4.1.3).
    #[error("it is made out to an audience (`aud`), and the hub has none")]
    Audience,
}

impl Verifier {
    /// A verifier for tokens that are signed with `secret`.
    ///
    /// `leeway_secs` is how far the clock of whoever makes the tokens may differ, in seconds.
    ///
    /// # Errors
    /// If the secret is empty.
    pub fn new(algorithm: Algorithm, secret: &[u8], leeway_secs: u64) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self { key: Arc::new(DecodingKey::from_secret(secret)), algorithm, leeway_secs })
    }

    /// A verifier for HS256 without leeway.
    ///
    /// # Errors
    /// If the secret is empty.
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        Self::new(Algorithm::Hs256, secret.as_bytes(), 0)
    }

    /// What a token allows at `unix_secs`, in seconds since 1970-01-01T00:00:00Z.
    ///
    /// The signature is checked before anything that the token says; `exp` and `nbf` come last, so that
    /// [`AuthError::Expired`] and [`AuthError::NotYetValid`] tell of a token that is genuine.
    ///
    /// # Errors
    /// If it allows nothing.
    pub fn verify(&self, token: &str, unix_secs: u64) -> Result<Grant, AuthError> {
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        let payload = self.signed_payload(token)?;
        let claims: RawClaims<'_> = serde_json::from_slice(&payload).map_err(|_| Flaw::Claims)?;
        let (grant, valid_from) = claims.read()?;
        self.check_time(grant, valid_from, unix_secs)
    }

    /// The decoded claims of a token whose signature is right.
    fn signed_payload(&self, token: &str) -> Result<Vec<u8>, Flaw> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Flaw::TooLong { bytes: token.len() });
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Flaw::Parts)?;
        let (header, payload) = message.split_once('.').ok_or(Flaw::Parts)?;
        if payload.contains('.') {
            return Err(Flaw::Parts);
        }
        self.check_header(header)?;
        match crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm.jwt()) {
            Ok(true) => URL_SAFE_NO_PAD.decode(payload).map_err(|_| Flaw::Claims),
            Ok(false) | Err(_) => Err(Flaw::Signature),
        }
    }

    fn check_header(&self, header: &str) -> Result<(), Flaw> {
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Flaw::Header)?;
        let header: RawHeader<'_> = serde_json::from_slice(&header).map_err(|_| Flaw::Header)?;
        let expected = self.algorithm.name();
        if header.alg != expected {
            return Err(Flaw::Algorithm { found: known_name(&header.alg), expected });
        }
        if header.crit.is_some() { Err(Flaw::Critical) } else { Ok(()) }
    }

    fn check_time(&self, mut grant: Grant, valid_from: u64, unix_secs: u64) -> Result<Grant, AuthError> {
        if let Some(expired_at) = grant.expires_at {
            let end = expired_at.saturating_add(self.leeway_secs);
            if unix_secs >= end {
                return Err(AuthError::Expired { expired_at });
            }
            grant.expires_at = Some(end);
        }
        if unix_secs.saturating_add(self.leeway_secs) < valid_from {
            return Err(AuthError::NotYetValid { valid_from });
        }
        Ok(grant)
    }
}

impl Minter {
    /// A minter that signs with `secret`.
    ///
    /// # Errors
    /// If the secret is empty.
    pub fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self { key: EncodingKey::from_secret(secret), algorithm })
    }

    /// A minter for HS256.
    ///
    /// # Errors
    /// If the secret is empty.
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        Self::new(Algorithm::Hs256, secret.as_bytes())
    }

    /// The token that says `claims`.
    pub fn mint(&self, claims: &Claims) -> String {
        let header = format!(r#"{{"alg":"{}","typ":"JWT"}}"#, self.algorithm.name());
        // Strings, numbers and booleans always have a JSON text, and an HMAC can be made of any text.
        let claims = serde_json::to_string(claims).expect("claims have a JSON text");
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = crypto::sign(token.as_bytes(), &self.key, self.algorithm.jwt()).expect("an HMAC");
        token.push('.');
        token.push_str(&signature);
        token
    }
}

impl AuthError {
    /// Every word that [`AuthError::code`] can be.
    pub const CODES: &[&str] = &["token_missing", "token_expired", "token_not_yet_valid", "token_invalid", "forbidden"];

    /// What went wrong, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Expired { .. } => "token_expired",
            Self::NotYetValid { .. } => "token_not_yet_valid",
            Self::Invalid(_) => "token_invalid",
            Self::WrongUser | Self::Forbidden { .. } => "forbidden",
        }
    }
}

/// Says what is wrong with a secret that works and is too short to withstand guessing.
pub fn weakness(secret: &[u8]) -> Option<String> {
    let bytes = secret.len();
    (bytes < MIN_SECRET_BYTES).then(|| {
        format!(
            "the secret that signs tokens has {bytes} bytes, and can be found by trying; use at least \
             {MIN_SECRET_BYTES} random bytes"
        )
    })
}

#[derive(Deserialize)]
struct RawHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    crit: Option<IgnoredAny>,
}

/// The claims that the hub reads, not looked at yet. A claim that is null counts as left out.
#[derive(Deserialize)]
struct RawClaims<'a> {
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
    aud: Option<&'a RawValue>,
    #[serde(borrow)]
    publish: Option<&'a RawValue>,
    #[serde(borrow)]
    admin: Option<&'a RawValue>,
    #[serde(borrow)]
    topics: Option<&'a RawValue>,
}

/// A name: some publishers number their users.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(Box<str>),
    Many(Vec<Box<str>>),
}

impl RawClaims<'_> {
    /// What the claims grant, and from when on.
    fn read(&self) -> Result<(Grant, u64), Flaw> {
        if self.aud.is_some() {
            return Err(Flaw::Audience);
        }
        claim::<String>("jti", self.jti, "a string")?;
        instant("iat", self.iat, f64::floor)?;
        let grant = Grant {
            user: self.user()?.into(),
            topics: self.topics()?,
            publish: claim("publish", self.publish, "true or false")?.unwrap_or(false),
            admin: claim("admin", self.admin, "true or false")?.unwrap_or(false),
            expires_at: instant("exp", self.exp, f64::floor)?,
        };
        Ok((grant, instant("nbf", self.nbf, f64::ceil)?.unwrap_or(0)))
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

    fn topics(&self) -> Result<Vec<Box<str>>, Flaw> {
        Ok(match claim("topics", self.topics, "a list of patterns, or one pattern")? {
            Some(Patterns::One(pattern)) => vec![pattern],
            Some(Patterns::Many(patterns)) => patterns,
            None => Vec::new(),
        })
    }
}

/// The value of a claim, if it is there.
fn claim<'a, T: Deserialize<'a>>(
    name: &'static str,
    raw: Option<&'a RawValue>,
    expected: &'static str,
) -> Result<Option<T>, Flaw> {
    raw.map(|raw| serde_json::from_str(raw.get()).map_err(|_| Flaw::Claim { name, expected })).transpose()
}

/// A `NumericDate` in whole seconds: the RFC allows fractions, which `round` cuts in the safe direction. Before 1970
/// is 1970.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn instant(name: &'static str, raw: Option<&RawValue>, round: fn(f64) -> f64) -> Result<Option<u64>, Flaw> {
    if let Some(secs) = raw.and_then(|raw| raw.get().parse().ok()) {
        return Ok(Some(secs));
    }
    Ok(claim::<f64>(name, raw, "a number of seconds since 1970")?.map(|secs| round(secs) as u64))
}

fn check_secret(secret: &[u8]) -> Result<(), KeyError> {
    if secret.is_empty() { Err(KeyError::Empty) } else { Ok(()) }
}

fn names(separator: &str) -> String {
    Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(separator)
}

/// The name of an algorithm, as text of our own: what a stranger wrote is not repeated.
fn known_name(alg: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
        "EdDSA",
    ];
    let found = KNOWN.iter().find(|name| **name == alg);
    found.copied().unwrap_or(if alg.eq_ignore_ascii_case("none") { "nothing (alg: none)" } else { "something unknown" })
}

impl FromStr for Algorithm {
    type Err = NotAnAlgorithm;

    fn from_str(text: &str) -> Result<Self, NotAnAlgorithm> {
        Self::ALL.iter().find(|algorithm| algorithm.name() == text).copied().ok_or(NotAnAlgorithm)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("algorithm", &self.algorithm)
            .field("leeway_secs", &self.leeway_secs)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_800_000_000;

    /// A token of any header and claims, signed with HS256 over whatever it says.
    fn token(header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    fn with_claims(claims: &Value) -> String {
        token(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string())
    }

    fn verify(token: &str) -> Result<Grant, AuthError> {
        Verifier::from_secret(SECRET).unwrap().verify(token, NOW)
    }

    #[test]
    fn a_minted_token_comes_back() {
        let claims = Claims {
            sub: "ann".to_owned(),
            exp: Some(NOW + 60),
            iat: Some(NOW),
            jti: Some("j".to_owned()),
            publish: true,
            admin: false,
            topics: vec!["project:*".to_owned(), "news".to_owned()],
        };
        for &algorithm in Algorithm::ALL {
            let token = Minter::new(algorithm, SECRET.as_bytes()).unwrap().mint(&claims);
            let grant = Verifier::new(algorithm, SECRET.as_bytes(), 0).unwrap().verify(&token, NOW).unwrap();
            assert_eq!((&*grant.user, grant.publish, grant.admin), ("ann", true, false));
            assert_eq!(grant.topics, ["project:*", "news"].map(Box::<str>::from));
            assert_eq!(grant.expires_at, Some(NOW + 60));
        }
    }

    #[test]
    fn a_minted_token_is_a_token_to_others() {
        let claims = Claims { sub: "ann".to_owned(), exp: Some(u64::MAX >> 1), ..Claims::default() };
        let token = Minter::from_secret(SECRET).unwrap().mint(&claims);
        let key = DecodingKey::from_secret(SECRET.as_bytes());
        let read = jsonwebtoken::decode::<Value>(&token, &key, &jsonwebtoken::Validation::default()).unwrap();
        assert_eq!(read.claims["sub"], "ann");
        assert_eq!(read.claims["topics"], json!([]));
    }

    #[test]
    fn tokens_of_the_reference_connect() {
        for claims in [json!({"sub": "ann"}), json!({"sub": "ann", "exp": NOW + 1}), json!({"sub": "ann", "more": [1]})]
        {
            let grant = verify(&with_claims(&claims)).unwrap();
            assert_eq!(&*grant.user, "ann", "{claims}");
            assert!(!grant.may_publish() && !grant.may_subscribe("a"), "{claims}");
        }
    }

    #[test]
    fn claims_take_the_forms_that_publishers_use() {
        assert_eq!(&*verify(&with_claims(&json!({"sub": 42}))).unwrap().user, "42");
        let one = verify(&with_claims(&json!({"sub": "a", "topics": "news:*"}))).unwrap();
        assert!(one.may_subscribe("news:7") && !one.may_subscribe("other"));
        let fraction = verify(&with_claims(&json!({"sub": "a", "exp": NOW as f64 + 1.5, "nbf": NOW as f64}))).unwrap();
        assert_eq!(fraction.expires_at, Some(NOW + 1));
        assert!(verify(&with_claims(&json!({"sub": "a", "exp": null, "topics": null}))).is_ok());
    }

    #[test]
    fn every_refusal_has_its_word_and_sentence() {
        let good = with_claims(&json!({"sub": "ann"}));
        let (message, _) = good.rsplit_once('.').unwrap();
        let hs256 = r#"{"alg":"HS256"}"#;
        let claims = |claims: Value| with_claims(&claims);
        for (token, code, says) in [
            (String::new(), "token_missing", "Authorization: Bearer"),
            (claims(json!({"sub": "a", "exp": NOW})), "token_expired", "expired at 2027-01-15T08:00:00.000Z"),
            (claims(json!({"sub": "a", "exp": -5})), "token_expired", "1970"),
            (claims(json!({"sub": "a", "nbf": NOW + 1})), "token_not_yet_valid", "from 2027-01-15T08:00:01.000Z on"),
            (claims(json!({"sub": "a", "nbf": NOW as f64 + 0.5})), "token_not_yet_valid", "clocks"),
            ("abc".to_owned(), "token_invalid", "three parts"),
            ("a.b".to_owned(), "token_invalid", "three parts"),
            (format!("{good}.x"), "token_invalid", "three parts"),
            ("..".to_owned(), "token_invalid", "header"),
            (format!("{message}."), "token_invalid", "signature is wrong"),
            (format!("{message}.AAAA"), "token_invalid", "signature is wrong"),
            (format!("{good}="), "token_invalid", "signature is wrong"),
            (format!("{message}.!"), "token_invalid", "signature is wrong"),
            ("x".repeat(MAX_TOKEN_BYTES + 1), "token_invalid", "at most 8192"),
            (token(r#"{"alg":"none"}"#, r#"{"sub":"a"}"#), "token_invalid", "nothing (alg: none)"),
            (token(r#"{"alg":"NoNe"}"#, r#"{"sub":"a"}"#), "token_invalid", "nothing (alg: none)"),
            (token(r#"{"alg":"HS512"}"#, r#"{"sub":"a"}"#), "token_invalid", "HS512; the hub takes only HS256"),
            (token(r#"{"alg":"RS256"}"#, r#"{"sub":"a"}"#), "token_invalid", "RS256; the hub takes only HS256"),
            (token(r#"{"alg":"hs256"}"#, r#"{"sub":"a"}"#), "token_invalid", "something unknown"),
            (token(r#"{"typ":"JWT"}"#, r#"{"sub":"a"}"#), "token_invalid", "header"),
            (token(r#"{"alg":"HS256","crit":["exp"]}"#, r#"{"sub":"a"}"#), "token_invalid", "crit"),
            (token("[]", r#"{"sub":"a"}"#), "token_invalid", "header"),
            (token(hs256, "[]"), "token_invalid", "JSON object"),
            (token(hs256, r#"{"sub":"a","sub":"b"}"#), "token_invalid", "each claim once"),
            (token(hs256, "not json"), "token_invalid", "JSON object"),
            (claims(json!({})), "token_invalid", "`sub` must be"),
            (claims(json!({"sub": ""})), "token_invalid", "`sub` must be"),
            (claims(json!({"sub": null})), "token_invalid", "`sub` must be"),
            (claims(json!({"sub": ["a"]})), "token_invalid", "`sub` must be"),
            (claims(json!({"sub": 1.5})), "token_invalid", "`sub` must be"),
            (claims(json!({"sub": "x".repeat(257)})), "token_invalid", "`sub` must be"),
            (claims(json!({"sub": "a", "exp": "soon"})), "token_invalid", "`exp` must be a number"),
            (claims(json!({"sub": "a", "nbf": true})), "token_invalid", "`nbf` must be a number"),
            (claims(json!({"sub": "a", "iat": {}})), "token_invalid", "`iat` must be a number"),
            (claims(json!({"sub": "a", "jti": 1})), "token_invalid", "`jti` must be a string"),
            (claims(json!({"sub": "a", "aud": "x"})), "token_invalid", "audience"),
            (claims(json!({"sub": "a", "publish": "yes"})), "token_invalid", "`publish` must be true or false"),
            (claims(json!({"sub": "a", "admin": 1})), "token_invalid", "`admin` must be true or false"),
            (claims(json!({"sub": "a", "topics": [1]})), "token_invalid", "`topics` must be a list"),
        ] {
            let error = verify(&token).expect_err(&token);
            let text = error.to_string();
            assert!(error.code() == code && text.contains(says), "{token}: {}: {text}", error.code());
            assert!(AuthError::CODES.contains(&code));
            assert!(code.len() + 2 + text.len() <= 123, "fits into a close frame: {text}");
            assert!(token.len() < 20 || !text.contains(&token[..20]), "{text}");
        }
    }

    #[test]
    fn every_bit_of_a_token_counts() {
        let good = with_claims(&json!({"sub": "ann"}));
        for at in (0..good.len()).filter(|&at| good.as_bytes()[at] != b'.') {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(verify(&changed).map_err(|error| error.code()), Err("token_invalid"), "byte {at}");
        }
        let other = Verifier::from_secret("another secret").unwrap();
        assert_eq!(other.verify(&good, NOW), Err(Flaw::Signature.into()));
    }

    #[test]
    fn leeway_bridges_clocks() {
        let verifier = Verifier::new(Algorithm::Hs256, SECRET.as_bytes(), 10).unwrap();
        let (late, early) = (json!({"sub": "a", "exp": NOW - 9}), json!({"sub": "a", "nbf": NOW + 10}));
        assert_eq!(verifier.verify(&with_claims(&late), NOW).unwrap().expires_at, Some(NOW + 1));
        assert!(verifier.verify(&with_claims(&early), NOW).is_ok());
        assert_eq!(verifier.verify(&with_claims(&late), NOW + 1), Err(AuthError::Expired { expired_at: NOW - 9 }));
        assert!(verifier.verify(&with_claims(&early), NOW - 1).is_err());
    }

    #[test]
    fn what_a_token_does_not_allow_is_forbidden() {
        for error in [AuthError::WrongUser, AuthError::Forbidden { needs: "the claim `publish`" }] {
            assert_eq!(error.code(), "forbidden");
            assert!(AuthError::CODES.contains(&error.code()));
        }
    }

    #[test]
    fn secrets_are_checked_and_never_shown() {
        assert_eq!(Verifier::from_secret("").map(drop), Err(KeyError::Empty));
        assert_eq!(Minter::from_secret("").map(drop), Err(KeyError::Empty));
        assert!(weakness(b"short").is_some_and(|text| text.contains("5 bytes")));
        assert_eq!(weakness(SECRET.as_bytes()), None);
        let shown = format!("{:?} {:?}", Verifier::from_secret(SECRET), Minter::from_secret(SECRET));
        assert!(!shown.contains("0123") && !shown.contains("48, 49") && shown.contains("Hs256"), "{shown}");
    }

    #[test]
    fn algorithms_have_names() {
        for &algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        }
        let error = "none".parse::<Algorithm>().expect_err("none");
        assert!(error.to_string().contains("HS256, HS384, HS512"), "{error}");
    }
}
