//! The keys that verify tokens: secrets, or public keys as PEM, JWK or JWKS (RFC 7517). All keys are for one algorithm,
//! so a public key can never be used as a secret.

use super::{
    Flaw,
    algorithm::{Algorithm, Family},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    DecodingKey, crypto,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse, ThumbprintHash},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;

/// Maximum number of keys used from a set. A token without a `kid` may cost one signature verification for each.
const MAX_KEYS: usize = 32;

/// Minimum length of an RSA modulus, in bytes.
const MIN_RSA_BYTES: usize = 2_048 / 8;

/// Keys that verify tokens of one algorithm. Any of them may have signed a token, so two keys are valid during a
/// rotation.
#[derive(Clone)]
pub struct Keys {
    algorithm: Algorithm,
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    /// The key's `kid`. `None`: the key is tried for every token.
    id: Option<String>,
    key: DecodingKey,
    /// The public key, for the JWKS; `None` for a secret.
    public: Option<Jwk>,
}

/// The reason why a key was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The secret can be brute-forced.
    #[error(
        "the secret has {bytes} bytes; {algorithm} needs at least {needed}. Generate one with: \
         openssl rand -hex {needed}"
    )]
    Short {
        /// Its length, in bytes.
        bytes: usize,
        /// The minimum length, in bytes.
        needed: usize,
        /// The algorithm that it is for.
        algorithm: Algorithm,
    },
    /// The secret is a PEM key. If it were public, any client could sign tokens with it.
    #[error("the secret is a key in PEM form: configure it as a public or private key, with its algorithm")]
    KeyAsSecret,
    /// The key is not of the kind that the algorithm needs.
    #[error("not a key for {algorithm}, which needs {expected}", expected = .algorithm.family().describe())]
    WrongKind {
        /// The algorithm.
        algorithm: Algorithm,
    },
    /// A private key was configured as a public key.
    #[error("this is a private key; use its public key here")]
    Private,
    /// The text is not a key.
    #[error("not a {expected}", expected = match .private {
        true => "private key in PEM form (PKCS#8)",
        false => "key in PEM form, JWK or JWKS",
    })]
    Unreadable {
        /// Whether a private key was expected.
        private: bool,
    },
    /// The set has no key for the algorithm.
    #[error("none of the {keys} keys is for {algorithm}")]
    NoneFits {
        /// Number of keys in the set.
        keys: usize,
        /// The algorithm.
        algorithm: Algorithm,
    },
}

impl Keys {
    /// An empty set of keys. All tokens are rejected until keys are added.
    pub fn none(algorithm: Algorithm) -> Self {
        Self { algorithm, keys: Vec::new() }
    }

    /// A set with one secret.
    ///
    /// # Errors
    /// If the secret is not suitable for the algorithm.
    pub fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(algorithm, secret)?;
        Ok(Self { algorithm, keys: vec![Key { id: None, key: DecodingKey::from_secret(secret), public: None }] })
    }

    /// Public keys, as PEM, JWK or JWKS. Keys of a JWKS that are not for the algorithm are ignored.
    ///
    /// # Errors
    /// If the text is malformed, or has no key for the algorithm.
    pub fn from_text(algorithm: Algorithm, text: &str) -> Result<Self, KeyError> {
        if algorithm.family() == Family::Secret {
            return Err(KeyError::WrongKind { algorithm });
        }
        let text = text.trim();
        let keys = if text.starts_with('{') { from_json(algorithm, text)? } else { from_pem(algorithm, text)? };
        Ok(Self { algorithm, keys })
    }

    /// The public key of a private key, with the `kid` that its tokens have.
    pub(super) fn of_private(algorithm: Algorithm, public: Jwk) -> Result<Self, KeyError> {
        let id = public.common.key_id.clone();
        Ok(Self { algorithm, keys: vec![Key::of_jwk(algorithm, public, id)?] })
    }

    /// Adds other keys of the same algorithm.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        debug_assert_eq!(self.algorithm, others.algorithm, "keys of one algorithm");
        self.keys.extend(others.keys);
        self
    }

    /// The algorithm of the keys.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The public keys as a JWKS (RFC 7517 section 5). Secrets are never included.
    pub fn to_jwks(&self) -> Value {
        let public = self.keys.iter().filter_map(|key| {
            let mut jwk = key.public.clone()?;
            jwk.common.public_key_use = Some(PublicKeyUse::Signature);
            jwk.common.key_id = key.id.clone().or_else(|| jwk.thumbprint(ThumbprintHash::SHA256).ok());
            serde_json::to_value(jwk).ok()
        });
        json!({ "keys": public.collect::<Vec<_>>() })
    }

    /// Verifies a signature with every key that may have made it.
    pub(super) fn verify(&self, message: &str, signature: &str, id: Option<&str>) -> Result<(), Flaw> {
        let mut fitting = self.keys.iter().filter(|key| match (&key.id, id) {
            (Some(name), Some(id)) => name == id,
            _ => true,
        });
        let verifies = |key: &Key| {
            let algorithm = self.algorithm.jwt();
            crypto::verify(signature, message.as_bytes(), &key.key, algorithm).unwrap_or(false)
        };
        let Some(first) = fitting.next() else { return Err(Flaw::UnknownKey) };
        if verifies(first) || fitting.any(verifies) { Ok(()) } else { Err(Flaw::Signature) }
    }
}

impl Key {
    fn of_jwk(algorithm: Algorithm, jwk: Jwk, id: Option<String>) -> Result<Self, KeyError> {
        let wrong = KeyError::WrongKind { algorithm };
        let fits = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).unwrap_or_default();
                let bytes = modulus.iter().skip_while(|byte| **byte == 0).count();
                algorithm.family() == Family::Rsa && bytes >= MIN_RSA_BYTES
            }
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => {
                    algorithm.family() == Family::P256 && is_coordinate(&ec.x, 32) && is_coordinate(&ec.y, 32)
                }
                EllipticCurve::P384 => {
                    algorithm.family() == Family::P384 && is_coordinate(&ec.x, 48) && is_coordinate(&ec.y, 48)
                }
                _ => false,
            },
            AlgorithmParameters::OctetKeyPair(okp) => {
                algorithm.family() == Family::Ed25519
                    && okp.curve == EllipticCurve::Ed25519
                    && is_coordinate(&okp.x, 32)
            }
            // Secrets and unknown kinds.
            _ => false,
        };
        if !fits {
            return Err(wrong);
        }
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| wrong)?;
        Ok(Self { id, key, public: Some(jwk) })
    }
}

fn is_coordinate(text: &str, bytes: usize) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|decoded| decoded.len() == bytes)
}

/// Whether a key of a set may be used for signatures of the algorithm (RFC 7517 section 4).
fn is_for(algorithm: Algorithm, jwk: &Jwk) -> bool {
    let common = &jwk.common;
    let used = common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let operations = common.key_operations.as_ref();
    used && operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|own| own.to_string() == algorithm.name())
}

fn from_json(algorithm: Algorithm, text: &str) -> Result<Vec<Key>, KeyError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let unreadable = KeyError::Unreadable { private: false };
    let set: Vec<Value> = match serde_json::from_str::<Set>(text) {
        Ok(set) => set.keys,
        Err(_) => vec![serde_json::from_str(text).map_err(|_| unreadable)?],
    };
    if set.iter().any(|key| key.get("d").is_some()) {
        return Err(KeyError::Private);
    }
    // Keys of unknown kinds are ignored, so that the others can be used (RFC 7517 section 5).
    let known = set.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
    let fitting = known.filter(|jwk| is_for(algorithm, jwk));
    let keys: Vec<Key> = fitting
        .filter_map(|jwk| {
            let id = jwk.common.key_id.clone();
            Key::of_jwk(algorithm, jwk, id).ok()
        })
        .take(MAX_KEYS)
        .collect();
    if keys.is_empty() { Err(KeyError::NoneFits { keys: set.len(), algorithm }) } else { Ok(keys) }
}

/// One or several concatenated public keys.
fn from_pem(algorithm: Algorithm, text: &str) -> Result<Vec<Key>, KeyError> {
    if text.contains("PRIVATE KEY-----") {
        return Err(KeyError::Private);
    }
    let starts: Vec<usize> = text.match_indices("-----BEGIN").map(|(at, _)| at).collect();
    if starts.is_empty() {
        return Err(KeyError::Unreadable { private: false });
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let keys = starts.iter().zip(ends).take(MAX_KEYS);
    keys.map(|(&start, end)| {
        let pem = text[start..end].trim().as_bytes();
        let key = match algorithm.family() {
            Family::Secret => return Err(KeyError::WrongKind { algorithm }),
            Family::Rsa => DecodingKey::from_rsa_pem(pem),
            Family::P256 | Family::P384 => DecodingKey::from_ec_pem(pem),
            Family::Ed25519 => DecodingKey::from_ed_pem(pem),
        };
        let jwk = key.and_then(|key| Jwk::from_decoding_key(&key, Some(algorithm.jwt())));
        Key::of_jwk(algorithm, jwk.map_err(|_| KeyError::WrongKind { algorithm })?, None)
    })
    .collect()
}

/// Checks that a secret is suitable for an algorithm.
pub(super) fn check_secret(algorithm: Algorithm, secret: &[u8]) -> Result<(), KeyError> {
    let (bytes, needed) = (secret.len(), algorithm.min_secret_bytes());
    if algorithm.family() != Family::Secret {
        Err(KeyError::WrongKind { algorithm })
    } else if secret.windows(11).any(|window| window == b"-----BEGIN ") {
        Err(KeyError::KeyAsSecret)
    } else if bytes < needed {
        Err(KeyError::Short { bytes, needed, algorithm })
    } else {
        Ok(())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|key| key.id.as_deref()).collect();
        f.debug_struct("Keys").field("algorithm", &self.algorithm).field("ids", &ids).finish_non_exhaustive()
    }
}
