//! Authentication with JSON Web Tokens (RFC 7519) and access keys. Knows keys and claims, and neither the clock nor
//! connections.
//!
//! A hub verifies tokens with the one algorithm that its settings name. The `alg` of a token's header must equal it,
//! and never selects an algorithm (RFC 8725 section 3.1).

mod access_keys;
mod algorithm;
mod claims;
mod keys;
mod lookups;
mod mint;
mod source;

pub use access_keys::{AccessKey, AccessKeys, NewAccessKey};
pub use algorithm::{Algorithm, Family, NotAnAlgorithm};
pub use claims::{Claims, token_id};
pub use keys::{KeyError, Keys};
pub use lookups::AccessKeySource;
pub use mint::Minter;
pub use source::KeySource;

use algorithm::known_name;
use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use claims::RawClaims;
use fanfare_core::{Grant, time::iso_8601};
use lookups::Lookups;
use serde::{Deserialize, de::IgnoredAny};
use source::Source;
use std::{borrow::Cow, fmt, sync::Arc};

/// How far in the future a token's `iat` may be, beyond the leeway, in seconds. It allows for clock skew, and for
/// tokens issued in the second of a revocation, which are dated after it.
pub const CLOCK_TOLERANCE_SECS: u64 = 60;

/// The last second of the year 9999. A later value is not a time in seconds, and probably one in milliseconds.
const LAST_SECOND: u64 = 253_402_300_799;

/// The maximum length of a token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Verifies tokens. Cheap to clone; clones share their keys.
///
/// ```
/// use fanfare::{AuthError, Minter, Verifier, auth::Claims};
///
/// let secret = "a secret of thirty-two bytes, ok";
/// let verifier = Verifier::from_secret(secret)?.leeway(5).require_exp(true);
///
/// // Usually your backend issues the tokens, with any JWT library.
/// let (now, expiry) = (1_800_000_000, 1_800_003_600);
/// let topics = vec!["project:*".to_owned()];
/// let claims = Claims { sub: "ann".to_owned(), exp: Some(expiry), topics, ..Claims::default() };
/// let token = Minter::from_secret(secret)?.mint(&claims);
///
/// let grant = verifier.verify(&token, now)?;
/// assert_eq!(&*grant.user, "ann");
/// assert!(grant.may_subscribe("project:7"));
/// assert!(!grant.may_publish());
///
/// let later = verifier.verify(&token, expiry + 60);
/// assert_eq!(later, Err(AuthError::Expired { expired_at: expiry }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Verifier {
    algorithm: Algorithm,
    keys: Arc<ArcSwap<Keys>>,
    access_keys: Arc<ArcSwap<AccessKeys>>,
    lookups: Option<Arc<Lookups>>,
    source: Option<Arc<Source>>,
    expected: Expected,
}

/// The claims that tokens must have.
#[derive(Debug, Clone, Default)]
struct Expected {
    leeway_secs: u64,
    expiry: bool,
    issuer: Option<Arc<str>>,
    audience: Option<Arc<str>>,
}

/// The reason why a token was rejected. No message contains any part of the token, and each fits into a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The request has no token.
    #[error("no token: send one as ?token=, as Authorization: Bearer or as a WebSocket subprotocol")]
    Missing,
    /// The token has expired.
    #[error("the token expired at {}; get a new one", iso_8601(expired_at.saturating_mul(1_000)))]
    Expired {
        /// When it expired, in seconds since 1970-01-01T00:00:00Z.
        expired_at: u64,
    },
    /// The token is not valid yet.
    #[error("the token is not valid before {}; compare the clocks", iso_8601(valid_from.saturating_mul(1_000)))]
    NotYetValid {
        /// When it becomes valid, in seconds since 1970-01-01T00:00:00Z.
        valid_from: u64,
    },
    /// The token is not valid.
    #[error("the token is not valid: {0}")]
    Invalid(#[from] Flaw),
    /// The token was revoked.
    #[error("the token was revoked; get a new one")]
    Revoked,
    /// The keys that verify tokens are currently unavailable, so the token was not verified.
    #[error("the keys that verify tokens are currently unavailable; try again later")]
    KeysUnavailable,
}

/// The reason why a token is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error("it has {bytes} bytes; at most {MAX_TOKEN_BYTES} are allowed")]
    TooLong {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// The token does not consist of three parts separated by dots.
    #[error("expected three parts separated by dots")]
    Parts,
    /// The header is malformed.
    #[error("its header is not a JSON object with `alg`, in base64url")]
    Header,
    /// The token is signed with another algorithm than the hub's, or not signed.
    #[error("it is signed with {found}; the hub accepts only {expected}")]
    Algorithm {
        /// The algorithm that its header names, if it is a known one.
        found: &'static str,
        /// The algorithm that the hub accepts.
        expected: &'static str,
    },
    /// The header requires an extension (RFC 7515 section 4.1.11).
    #[error("its header has `crit`, which the hub does not support")]
    Critical,
    /// The signature does not match: the token was modified, or signed with another key.
    #[error("its signature is wrong: it was modified, or signed with another key")]
    Signature,
    /// The token names a key that the hub does not have.
    #[error("it names a key (`kid`) that the hub does not have")]
    UnknownKey,
    /// The access key is unknown.
    #[error("the access key is unknown or was revoked")]
    AccessKey,
    /// The claims are malformed.
    #[error("its claims are not a JSON object in base64url, each claim once")]
    Claims,
    /// A claim is missing, or its value is not valid.
    #[error("the claim `{name}` must be {expected}")]
    Claim {
        /// The claim.
        name: &'static str,
        /// The expected value, as the rest of a sentence.
        expected: &'static str,
    },
    /// A time is not in seconds.
    #[error("its `{name}` is not in seconds since 1970, but probably in milliseconds")]
    NotSeconds {
        /// The claim.
        name: &'static str,
    },
    /// The token was issued in the future, so no revocation by age would reach it.
    #[error("its `iat` ({}) is in the future; compare the clocks", iso_8601(issued_at.saturating_mul(1_000)))]
    IssuedLater {
        /// Its time of issue, in seconds since 1970-01-01T00:00:00Z.
        issued_at: u64,
    },
    /// The token never expires.
    #[error("it has no `exp`, which this hub requires (require_exp)")]
    NoExpiry,
    /// The token has another issuer (RFC 7519 section 4.1.1).
    #[error("its issuer (`iss`) is not the hub's token_issuer")]
    Issuer,
    /// The token is for another audience (RFC 7519 section 4.1.3).
    #[error("its audience (`aud`) does not match the hub's token_audience")]
    Audience,
}

impl Verifier {
    /// Creates a verifier for tokens signed with one of `keys`.
    pub fn new(keys: Keys) -> Self {
        let algorithm = keys.algorithm();
        Self {
            algorithm,
            keys: Arc::new(ArcSwap::from_pointee(keys)),
            access_keys: Arc::default(),
            lookups: None,
            source: None,
            expected: Expected::default(),
        }
    }

    /// Creates a verifier for HS256.
    ///
    /// # Errors
    /// If the secret is not suitable for HS256.
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        Ok(Self::new(Keys::from_secret(Algorithm::Hs256, secret.as_bytes())?))
    }

    /// Tolerates clock skew between the issuer and the hub of up to `secs` seconds.
    #[must_use]
    pub fn leeway(mut self, secs: u64) -> Self {
        self.expected.leeway_secs = secs;
        self
    }

    /// Rejects tokens without the claim `exp`.
    #[must_use]
    pub fn require_exp(mut self, required: bool) -> Self {
        self.expected.expiry = required;
        self
    }

    /// Rejects tokens whose claim `iss` is not `issuer`.
    #[must_use]
    pub fn issuer(mut self, issuer: &str) -> Self {
        self.expected.issuer = Some(issuer.into());
        self
    }

    /// Rejects tokens whose claim `aud` neither is nor contains `audience`. Without this setting, tokens with an `aud`
    /// are rejected.
    #[must_use]
    pub fn audience(mut self, audience: &str) -> Self {
        self.expected.audience = Some(audience.into());
        self
    }

    /// Adds a source of further keys, such as a JWKS. The caller feeds it.
    #[must_use]
    pub fn with_source(mut self) -> (Self, KeySource) {
        let source = Arc::new(Source::default());
        self.source = Some(source.clone());
        let handle = KeySource::new(source, self.keys.clone());
        (self, handle)
    }

    /// Adds a source of access keys, which is queried for unknown keys. The caller feeds it.
    #[must_use]
    pub fn with_access_key_source(mut self) -> (Self, AccessKeySource) {
        let lookups = Arc::new(Lookups::default());
        self.lookups = Some(lookups.clone());
        (self, AccessKeySource::new(lookups))
    }

    /// The signature algorithm of tokens.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The public keys that verify tokens, as a JWKS.
    pub fn to_jwks(&self) -> serde_json::Value {
        self.keys.load().to_jwks()
    }

    /// Replaces the access keys that are accepted besides tokens.
    pub fn replace_access_keys(&self, keys: AccessKeys) {
        self.access_keys.store(Arc::new(keys));
    }

    /// Verifies a token as [`verify`](Self::verify) does. If it names an unknown key, or is an unknown access key, the
    /// source of such keys is queried first.
    ///
    /// # Errors
    /// If the token is rejected.
    pub async fn verify_or_refresh(&self, token: &str, unix_secs: u64) -> Result<Grant, AuthError> {
        let result = self.verify(token, unix_secs);
        match (&self.source, &result) {
            (Some(source), Err(AuthError::KeysUnavailable | AuthError::Invalid(Flaw::UnknownKey))) => {
                source.refresh().await;
                self.verify(token, unix_secs)
            }
            (_, Err(AuthError::Invalid(Flaw::AccessKey))) => self.look_up(token, unix_secs).await,
            _ => result,
        }
    }

    async fn look_up(&self, key: &str, unix_secs: u64) -> Result<Grant, AuthError> {
        let unknown = Err(Flaw::AccessKey.into());
        let Some(lookups) = self.lookups.as_ref().filter(|_| AccessKeys::could_be(key)) else { return unknown };
        lookups.ask().await;
        match self.verify(key, unix_secs) {
            Err(_) if lookups.is_down() => Err(AuthError::KeysUnavailable),
            result => result,
        }
    }

    /// Queries the source for an unknown access key, without waiting for the result.
    pub(crate) fn look_up_soon(&self, key: &str) {
        if let Some(lookups) = self.lookups.as_ref().filter(|_| AccessKeys::could_be(key)) {
            lookups.ask_soon();
        }
    }

    /// Verifies a token and returns its grant. `unix_secs` is the current time in seconds since 1970-01-01T00:00:00Z.
    ///
    /// The signature is verified before any claim is read. `exp` and `nbf` are checked last, so [`AuthError::Expired`]
    /// and [`AuthError::NotYetValid`] are returned for genuine tokens only.
    ///
    /// # Errors
    /// If the token is rejected.
    pub fn verify(&self, token: &str, unix_secs: u64) -> Result<Grant, AuthError> {
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        if token.starts_with(AccessKeys::PREFIX) {
            return self.access_keys.load().grant(token).ok_or(Flaw::AccessKey.into());
        }
        let payload = self.signed_payload(token)?;
        let claims: RawClaims<'_> = serde_json::from_slice(&payload).map_err(|_| Flaw::Claims)?;
        let (grant, valid_from) = claims.read(&self.expected)?;
        self.check_plausible(&grant, unix_secs)?;
        self.check_time(grant, valid_from, unix_secs)
    }

    /// The user of a genuine token, even if the token has expired or is not valid yet.
    pub(crate) fn genuine_user(&self, token: &str) -> Option<Arc<str>> {
        let payload = self.signed_payload(token).ok()?;
        let claims: RawClaims<'_> = serde_json::from_slice(&payload).ok()?;
        claims.read(&self.expected).ok().map(|(grant, _)| grant.user)
    }

    /// The decoded claims of a token whose signature is valid.
    fn signed_payload(&self, token: &str) -> Result<Vec<u8>, AuthError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Flaw::TooLong { bytes: token.len() }.into());
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Flaw::Parts)?;
        let (header, payload) = message.split_once('.').ok_or(Flaw::Parts)?;
        if payload.contains('.') {
            return Err(Flaw::Parts.into());
        }
        let id = self.check_header(header)?;
        match self.keys.load().verify(message, signature, id.as_deref()) {
            Err(Flaw::UnknownKey) if self.source.as_ref().is_some_and(|source| source.is_down()) => {
                return Err(AuthError::KeysUnavailable);
            }
            result => result?,
        }
        Ok(URL_SAFE_NO_PAD.decode(payload).map_err(|_| Flaw::Claims)?)
    }

    /// Checks the header, and returns the `kid` of the key that signed the token, if any. Other key parameters (`jku`,
    /// `jwk`, `x5u`, `x5c`) are chosen by the token's creator, and ignored (RFC 8725 section 3.10).
    fn check_header(&self, header: &str) -> Result<Option<String>, Flaw> {
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Flaw::Header)?;
        let header: RawHeader<'_> = serde_json::from_slice(&header).map_err(|_| Flaw::Header)?;
        let expected = self.algorithm.name();
        if header.alg != expected {
            return Err(Flaw::Algorithm { found: known_name(&header.alg), expected });
        }
        if header.crit.is_some() { Err(Flaw::Critical) } else { Ok(header.kid.map(Cow::into_owned)) }
    }

    /// Rejects times that no revocation and no expiry would ever reach.
    fn check_plausible(&self, grant: &Grant, unix_secs: u64) -> Result<(), Flaw> {
        let latest = unix_secs.saturating_add(self.expected.leeway_secs).saturating_add(CLOCK_TOLERANCE_SECS);
        match (grant.issued_at, grant.expires_at) {
            (Some(issued_at), _) if issued_at > LAST_SECOND => Err(Flaw::NotSeconds { name: "iat" }),
            (Some(issued_at), _) if issued_at > latest => Err(Flaw::IssuedLater { issued_at }),
            (_, None) if self.expected.expiry => Err(Flaw::NoExpiry),
            (_, Some(end)) if self.expected.expiry && end > LAST_SECOND => Err(Flaw::NotSeconds { name: "exp" }),
            _ => Ok(()),
        }
    }

    fn check_time(&self, mut grant: Grant, valid_from: u64, unix_secs: u64) -> Result<Grant, AuthError> {
        if let Some(expired_at) = grant.expires_at {
            let end = expired_at.saturating_add(self.expected.leeway_secs);
            if unix_secs >= end {
                return Err(AuthError::Expired { expired_at });
            }
            grant.expires_at = Some(end);
        }
        if unix_secs.saturating_add(self.expected.leeway_secs) < valid_from {
            return Err(AuthError::NotYetValid { valid_from });
        }
        Ok(grant)
    }
}

impl AuthError {
    /// Every value of [`AuthError::code`].
    pub const CODES: &[&str] = &[
        "token_missing",
        "token_expired",
        "token_not_yet_valid",
        "token_invalid",
        "token_revoked",
        "keys_unavailable",
    ];

    /// The error code, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Expired { .. } => "token_expired",
            Self::NotYetValid { .. } => "token_not_yet_valid",
            Self::Invalid(_) => "token_invalid",
            Self::Revoked => "token_revoked",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }
}

#[derive(Deserialize)]
struct RawHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    crit: Option<IgnoredAny>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.keys.load())
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, EncodingKey, crypto};
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_800_000_000;

    /// A token with any header and claims, signed with HS256 whatever its header says.
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
    fn a_minted_token_is_accepted() {
        let claims = Claims {
            sub: "ann".to_owned(),
            exp: Some(NOW + 60),
            iat: Some(NOW),
            jti: Some("j".to_owned()),
            publish: true,
            topics: vec!["project:*".to_owned(), "news".to_owned()],
            ..Claims::default()
        };
        for algorithm in [Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512] {
            let secret = SECRET.repeat(2);
            let token = Minter::new(algorithm, secret.as_bytes()).unwrap().mint(&claims);
            let keys = Keys::from_secret(algorithm, secret.as_bytes()).unwrap();
            let grant = Verifier::new(keys).verify(&token, NOW).unwrap();
            assert_eq!((&*grant.user, grant.publish, grant.admin), ("ann", true, false));
            assert_eq!(grant.topics, ["project:*", "news"].map(Box::<str>::from));
            assert_eq!((grant.expires_at, grant.issued_at), (Some(NOW + 60), Some(NOW)));
            assert_eq!(grant.token, Some(token_id("j")));
        }
    }

    #[test]
    fn a_minted_token_is_accepted_by_another_library() {
        let claims = Claims { sub: "ann".to_owned(), exp: Some(u64::MAX >> 1), ..Claims::default() };
        let token = Minter::from_secret(SECRET).unwrap().mint(&claims);
        let key = DecodingKey::from_secret(SECRET.as_bytes());
        let read = jsonwebtoken::decode::<Value>(&token, &key, &jsonwebtoken::Validation::default()).unwrap();
        assert_eq!(read.claims["sub"], "ann");
        assert_eq!(read.claims["topics"], json!([]));
    }

    #[test]
    fn tokens_of_the_fastapi_hub_are_accepted() {
        for claims in [json!({"sub": "ann"}), json!({"sub": "ann", "exp": NOW + 1}), json!({"sub": "ann", "more": [1]})]
        {
            let grant = verify(&with_claims(&claims)).unwrap();
            assert_eq!(&*grant.user, "ann", "{claims}");
            assert!(!grant.may_publish() && !grant.may_subscribe("a"), "{claims}");
        }
    }

    #[test]
    fn claims_are_accepted_in_the_forms_that_issuers_use() {
        assert_eq!(&*verify(&with_claims(&json!({"sub": 42}))).unwrap().user, "42");
        let one = verify(&with_claims(&json!({"sub": "a", "topics": "news:*"}))).unwrap();
        assert!(one.may_subscribe("news:7") && !one.may_subscribe("other"));
        let fraction = verify(&with_claims(&json!({"sub": "a", "exp": NOW as f64 + 1.5, "nbf": NOW as f64}))).unwrap();
        assert_eq!(fraction.expires_at, Some(NOW + 1));
        assert!(verify(&with_claims(&json!({"sub": "a", "exp": null, "topics": null}))).is_ok());
    }

    #[test]
    fn every_rejection_has_its_code_and_sentence() {
        let good = with_claims(&json!({"sub": "ann"}));
        let (message, _) = good.rsplit_once('.').unwrap();
        let hs256 = r#"{"alg":"HS256"}"#;
        let claims = |claims: Value| with_claims(&claims);
        for (token, code, says) in [
            (String::new(), "token_missing", "Authorization: Bearer"),
            (claims(json!({"sub": "a", "exp": NOW})), "token_expired", "expired at 2027-01-15T08:00:00.000Z"),
            (claims(json!({"sub": "a", "exp": -5})), "token_expired", "1970"),
            (
                claims(json!({"sub": "a", "nbf": NOW + 1})),
                "token_not_yet_valid",
                "not valid before 2027-01-15T08:00:01.000Z",
            ),
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
            (token(r#"{"alg":"none"}"#, r#"{"sub":"a"}"#), "token_invalid", "no algorithm (alg: none)"),
            (token(r#"{"alg":"NoNe"}"#, r#"{"sub":"a"}"#), "token_invalid", "no algorithm (alg: none)"),
            (token(r#"{"alg":"HS512"}"#, r#"{"sub":"a"}"#), "token_invalid", "HS512; the hub accepts only HS256"),
            (token(r#"{"alg":"RS256"}"#, r#"{"sub":"a"}"#), "token_invalid", "RS256; the hub accepts only HS256"),
            (token(r#"{"alg":"hs256"}"#, r#"{"sub":"a"}"#), "token_invalid", "an unknown algorithm"),
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
            (claims(json!({"sub": "a", "aud": "x"})), "token_invalid", "`aud`"),
            (claims(json!({"sub": "a", "aud": {}})), "token_invalid", "`aud` must be a string"),
            ("ffk_unknown".to_owned(), "token_invalid", "access key is unknown"),
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

    // attack: flipping any bit of a token => rejected
    #[test]
    fn a_token_with_any_byte_changed_is_rejected() {
        let good = with_claims(&json!({"sub": "ann"}));
        for at in (0..good.len()).filter(|&at| good.as_bytes()[at] != b'.') {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(verify(&changed).map_err(|error| error.code()), Err("token_invalid"), "byte {at}");
        }
        let other = Verifier::from_secret(&SECRET.replace('0', "x")).unwrap();
        assert_eq!(other.verify(&good, NOW), Err(Flaw::Signature.into()));
    }

    #[test]
    fn leeway_tolerates_clock_skew() {
        let verifier = Verifier::from_secret(SECRET).unwrap().leeway(10);
        let (late, early) = (json!({"sub": "a", "exp": NOW - 9}), json!({"sub": "a", "nbf": NOW + 10}));
        assert_eq!(verifier.verify(&with_claims(&late), NOW).unwrap().expires_at, Some(NOW + 1));
        assert!(verifier.verify(&with_claims(&early), NOW).is_ok());
        assert_eq!(verifier.verify(&with_claims(&late), NOW + 1), Err(AuthError::Expired { expired_at: NOW - 9 }));
        assert!(verifier.verify(&with_claims(&early), NOW - 1).is_err());
    }

    // attack: a token whose `iat` is in milliseconds or in the future, to escape revocation => token_invalid
    #[test]
    fn a_time_of_issue_that_no_revocation_would_reach_is_rejected() {
        let verifier = Verifier::from_secret(SECRET).unwrap().leeway(10);
        let verify = |iat: Value| verifier.verify(&with_claims(&json!({"sub": "a", "iat": iat})), NOW);
        let latest = NOW + 10 + CLOCK_TOLERANCE_SECS;
        for iat in [json!(null), json!(0), json!(-5), json!(NOW), json!(latest)] {
            assert!(verify(iat.clone()).is_ok(), "{iat}");
        }
        assert_eq!(verify(json!(latest + 1)), Err(Flaw::IssuedLater { issued_at: latest + 1 }.into()));
        for iat in [json!(NOW * 1_000), json!(u64::MAX), json!(1e300)] {
            let error = verify(iat.clone()).unwrap_err();
            assert_eq!(error, Flaw::NotSeconds { name: "iat" }.into(), "{iat}");
            assert!(error.to_string().contains("milliseconds"), "{error}");
        }
        let later = Flaw::IssuedLater { issued_at: latest };
        assert!(later.to_string().contains("in the future"), "{later}");
        for error in [AuthError::from(later), Flaw::NotSeconds { name: "iat" }.into(), Flaw::NoExpiry.into()] {
            assert!(error.code().len() + 2 + error.to_string().len() <= 123, "fits into a close frame: {error}");
        }
    }

    #[test]
    fn a_sid_of_an_unexpected_type_is_ignored() {
        for (sid, session) in [
            (json!("7"), Some(token_id("7"))),
            (json!(7), Some(token_id("7"))),
            (json!(null), None),
            (json!({"of": "a provider"}), None),
        ] {
            let grant = verify(&with_claims(&json!({"sub": "a", "sid": sid}))).unwrap();
            assert_eq!(grant.session, session, "{sid}");
        }
    }

    // attack: a token without `exp`, if require_exp is set => rejected as token_invalid
    #[test]
    fn a_token_without_expiry_is_rejected_with_require_exp() {
        let verifier = Verifier::from_secret(SECRET).unwrap().require_exp(true);
        let verify = |claims: Value| verifier.verify(&with_claims(&claims), NOW);
        for claims in [json!({"sub": "a"}), json!({"sub": "a", "exp": null})] {
            assert_eq!(verify(claims), Err(Flaw::NoExpiry.into()));
        }
        let endless = json!({"sub": "a", "exp": NOW * 1_000});
        assert_eq!(verify(endless.clone()), Err(Flaw::NotSeconds { name: "exp" }.into()));
        assert!(verify(json!({"sub": "a", "exp": NOW + 1})).is_ok());
        assert!(
            super::tests::verify(&with_claims(&endless)).is_ok()
                && super::tests::verify(&with_claims(&json!({"sub": "a"}))).is_ok()
        );
    }

    #[test]
    fn short_secrets_are_rejected_and_secrets_never_appear_in_debug_output() {
        for (algorithm, bytes, enough) in [
            (Algorithm::Hs256, 0, false),
            (Algorithm::Hs256, 31, false),
            (Algorithm::Hs256, 32, true),
            (Algorithm::Hs384, 47, false),
            (Algorithm::Hs384, 48, true),
            (Algorithm::Hs512, 63, false),
            (Algorithm::Hs512, 64, true),
        ] {
            let (secret, needed) = ("x".repeat(bytes), algorithm.min_secret_bytes());
            let expected = if enough { Ok(()) } else { Err(KeyError::Short { bytes, needed, algorithm }) };
            assert_eq!(Keys::from_secret(algorithm, secret.as_bytes()).map(drop), expected);
            assert_eq!(Minter::new(algorithm, secret.as_bytes()).map(drop), expected);
        }
        let shown = format!("{:?} {:?}", Verifier::from_secret(SECRET), Minter::from_secret(SECRET));
        assert!(!shown.contains("0123") && !shown.contains("48, 49") && shown.contains("Hs256"), "{shown}");
    }

    // attack: a token of another issuer or for another audience => rejected
    #[test]
    fn issuer_and_audience_are_checked() {
        let strict = Verifier::from_secret(SECRET).unwrap().issuer("us").audience("hub");
        let token = |claims: Value| with_claims(&claims);
        for (claims, says) in [
            (json!({"sub": "a", "iss": "us", "aud": "hub"}), Ok(())),
            (json!({"sub": "a", "iss": "us", "aud": ["other", "hub"]}), Ok(())),
            (json!({"sub": "a", "aud": "hub"}), Err(Flaw::Issuer)),
            (json!({"sub": "a", "iss": "them", "aud": "hub"}), Err(Flaw::Issuer)),
            (json!({"sub": "a", "iss": "US", "aud": "hub"}), Err(Flaw::Issuer)),
            (json!({"sub": "a", "iss": "us"}), Err(Flaw::Audience)),
            (json!({"sub": "a", "iss": "us", "aud": []}), Err(Flaw::Audience)),
            (json!({"sub": "a", "iss": "us", "aud": "hub2"}), Err(Flaw::Audience)),
        ] {
            let result = strict.verify(&token(claims.clone()), NOW).map(drop);
            assert_eq!(result, says.map_err(AuthError::from), "{claims}");
        }
        let lax = Verifier::from_secret(SECRET).unwrap();
        assert!(lax.verify(&token(json!({"sub": "a", "iss": "any"})), NOW).is_ok());
    }

    #[test]
    fn an_access_key_is_accepted_until_it_is_removed() {
        let verifier = Verifier::from_secret(SECRET).unwrap();
        let key = AccessKeys::generate().unwrap();
        let kept = AccessKey { digest: key.digest, name: "ci".to_owned(), publish: true, admin: false, created_at: 0 };
        verifier.replace_access_keys([kept].into_iter().collect());
        let grant = verifier.verify(&key.text, NOW).unwrap();
        assert_eq!((&*grant.user, grant.publish, grant.admin), ("key:ci", true, false));
        let changed = format!("{}x", key.text);
        for wrong in [&changed, "ffk_", &key.text[..key.text.len() - 1]] {
            assert_eq!(verifier.verify(wrong, NOW), Err(Flaw::AccessKey.into()));
        }
        verifier.replace_access_keys(AccessKeys::default());
        assert_eq!(verifier.verify(&key.text, NOW), Err(Flaw::AccessKey.into()));
        assert!(!format!("{key:?}{verifier:?}").contains(&key.text[8..]));
    }
}
