//! Signature algorithms of tokens.

use std::{fmt, str::FromStr};

macro_rules! algorithms {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $jwt:ident;)+) => {
        /// A signature algorithm of tokens (RFC 7518 section 3.1).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Algorithm { $($(#[doc = $doc])+ $name,)+ }

        impl Algorithm {
            /// Every supported algorithm.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name used in token headers and settings.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            pub(super) const fn jwt(self) -> jsonwebtoken::Algorithm {
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
    /// RSA (PKCS#1 version 1.5) with SHA-256.
    Rs256 = "RS256", RS256;
    /// RSA (PKCS#1 version 1.5) with SHA-384.
    Rs384 = "RS384", RS384;
    /// RSA (PKCS#1 version 1.5) with SHA-512.
    Rs512 = "RS512", RS512;
    /// RSA (PSS) with SHA-256.
    Ps256 = "PS256", PS256;
    /// ECDSA on the curve P-256 with SHA-256.
    Es256 = "ES256", ES256;
    /// ECDSA on the curve P-384 with SHA-384.
    Es384 = "ES384", ES384;
    /// Ed25519 (RFC 8037).
    EdDsa = "EdDSA", EdDSA;
}

/// The kind of key that an algorithm needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A secret, which signs and verifies.
    Secret,
    /// An RSA key of at least 2,048 bits.
    Rsa,
    /// A key on the curve P-256.
    P256,
    /// A key on the curve P-384.
    P384,
    /// An Ed25519 key.
    Ed25519,
}

impl Algorithm {
    /// The kind of key that the algorithm needs.
    pub const fn family(self) -> Family {
        match self {
            Self::Hs256 | Self::Hs384 | Self::Hs512 => Family::Secret,
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 => Family::Rsa,
            Self::Es256 => Family::P256,
            Self::Es384 => Family::P384,
            Self::EdDsa => Family::Ed25519,
        }
    }

    /// The minimum length of a secret in bytes, which is the length of the hash (RFC 7518 section 3.2). 0 for
    /// algorithms that use no secret.
    pub const fn min_secret_bytes(self) -> usize {
        match self {
            Self::Hs256 => 32,
            Self::Hs384 => 48,
            Self::Hs512 => 64,
            _ => 0,
        }
    }
}

impl Family {
    /// A description of such a key, as a noun phrase.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Secret => "a secret",
            Self::Rsa => "an RSA key of 2048 bits or more",
            Self::P256 => "an EC key on the curve P-256",
            Self::P384 => "an EC key on the curve P-384",
            Self::Ed25519 => "an Ed25519 key",
        }
    }
}

/// The text does not name an algorithm of [`Algorithm::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unsupported algorithm: expected one of {}", names(", "))]
pub struct NotAnAlgorithm;

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

fn names(separator: &str) -> String {
    Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(separator)
}

/// The name of an algorithm, as a static text. Text from an unverified token is never repeated in a message.
pub(super) fn known_name(alg: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
        "EdDSA",
    ];
    let found = KNOWN.iter().find(|name| **name == alg);
    found.copied().unwrap_or(if alg.eq_ignore_ascii_case("none") {
        "no algorithm (alg: none)"
    } else {
        "an unknown algorithm"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_parsed_from_their_names() {
        for &algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
            assert_eq!(known_name(algorithm.name()), algorithm.name());
        }
        let error = "none".parse::<Algorithm>().expect_err("none");
        assert!(error.to_string().contains("HS256, HS384, HS512, RS256"), "{error}");
    }
}
