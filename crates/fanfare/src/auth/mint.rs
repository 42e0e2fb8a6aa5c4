//! Issues tokens.

use super::{
    algorithm::{Algorithm, Family},
    claims::Claims,
    keys::{KeyError, Keys, check_secret},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    EncodingKey, crypto,
    jwk::{Jwk, ThumbprintHash},
};
use std::fmt;

/// Signs tokens.
#[derive(Clone)]
pub struct Minter {
    key: EncodingKey,
    algorithm: Algorithm,
    /// The public key of a private key; empty for a secret.
    keys: Keys,
    /// The key's `kid`.
    id: Option<String>,
}

impl Minter {
    /// Creates a minter that signs with `secret`.
    ///
    /// # Errors
    /// If the secret is not suitable for the algorithm.
    pub fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(algorithm, secret)?;
        Ok(Self { key: EncodingKey::from_secret(secret), algorithm, keys: Keys::none(algorithm), id: None })
    }

    /// Creates a minter for HS256.
    ///
    /// # Errors
    /// If the secret is not suitable for HS256.
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        Self::new(Algorithm::Hs256, secret.as_bytes())
    }

    /// Creates a minter that signs with a private key in PEM form: PKCS#8, or PKCS#1 for RSA. The `kid` of its tokens
    /// is the key's thumbprint (RFC 7638).
    ///
    /// # Errors
    /// If the text is not a private key for the algorithm.
    pub fn from_pem(algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        if !pem.contains("PRIVATE KEY-----") {
            return Err(KeyError::Unreadable { private: true });
        }
        let wrong = KeyError::WrongKind { algorithm };
        let key = match algorithm.family() {
            Family::Secret => return Err(wrong),
            Family::Rsa => EncodingKey::from_rsa_pem(pem.as_bytes()),
            Family::P256 | Family::P384 => EncodingKey::from_ec_pem(pem.as_bytes()),
            Family::Ed25519 => EncodingKey::from_ed_pem(pem.as_bytes()).map(plain_ed25519),
        };
        let key = key.map_err(|_| wrong)?;
        let mut public = Jwk::from_encoding_key(&key, algorithm.jwt()).map_err(|_| wrong)?;
        let id = Some(public.thumbprint(ThumbprintHash::SHA256).map_err(|_| wrong)?);
        public.common.key_id.clone_from(&id);
        let keys = Keys::of_private(algorithm, public)?;
        // A key that cannot sign, or is too short, must fail here rather than at the first token.
        let signature = crypto::sign(b"a trial", &key, algorithm.jwt()).map_err(|_| wrong)?;
        keys.verify("a trial", &signature, id.as_deref()).map_err(|_| wrong)?;
        Ok(Self { key, algorithm, keys, id })
    }

    /// The public key that verifies this minter's tokens; empty for a secret.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Issues a token with `claims`.
    pub fn mint(&self, claims: &Claims) -> String {
        let mut header = serde_json::json!({ "alg": self.algorithm.name(), "typ": "JWT" });
        if let Some(id) = &self.id {
            header["kid"] = id.as_str().into();
        }
        // Strings, numbers and booleans can always be serialised.
        let claims = serde_json::to_string(claims).expect("claims are serialisable");
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature =
            crypto::sign(token.as_bytes(), &self.key, self.algorithm.jwt()).expect("the key has signed before");
        token.push('.');
        token.push_str(&signature);
        token
    }
}

/// The private key alone. PKCS#8 version 2 appends the public key to it (RFC 8410 section 7), which not every parser
/// supports.
fn plain_ed25519(key: EncodingKey) -> EncodingKey {
    const HEADER: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    match key.as_bytes() {
        // The same header, except for the length and the version.
        long if long.len() > 48 && long[5..16] == HEADER[5..] => {
            EncodingKey::from_ed_der(&[&HEADER, &long[16..48]].concat())
        }
        _ => key,
    }
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}
