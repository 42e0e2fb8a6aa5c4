//! Access keys: credentials for publishers that are valid until they are revoked. Only their hashes are stored.

use aws_lc_rs::{digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_core::Grant;
use std::{collections::HashMap, fmt};

/// The access keys that a verifier accepts.
#[derive(Default)]
pub struct AccessKeys {
    grants: HashMap<[u8; 32], Grant>,
}

/// An access key that is accepted.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// The SHA-256 of the key. A fast hash suffices, because a key has 256 random bits and cannot be guessed.
    pub digest: [u8; 32],
    /// Its name. The user of its bearer is `key:` followed by the name.
    pub name: String,
    /// Whether its bearer may publish.
    pub publish: bool,
    /// Whether its bearer has all permissions.
    pub admin: bool,
    /// When it was created, in seconds since 1970-01-01T00:00:00Z; 0 if unknown. Older events are not replayed to its
    /// bearer, because an earlier key may have had the same name.
    pub created_at: u64,
}

/// A newly created key. Its text cannot be recovered later.
#[derive(Clone)]
pub struct NewAccessKey {
    /// The key that its bearer presents.
    pub text: String,
    /// The SHA-256 of the key, which is stored.
    pub digest: [u8; 32],
}

impl AccessKeys {
    /// Prefix of every access key. It distinguishes keys from tokens, and lets secret scanners find leaked keys.
    pub const PREFIX: &str = "ffk_";

    /// Generates a key.
    ///
    /// # Errors
    /// If the system's random number generator fails.
    pub fn generate() -> std::io::Result<NewAccessKey> {
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| std::io::Error::other("the system's random number generator failed"))?;
        let text = format!("{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(secret));
        Ok(NewAccessKey { digest: digest_of(&text), text })
    }

    /// The identifier that a key is revoked by, as a token is by its `jti` ([`Grant::token`]): the first 64 bits of its
    /// digest.
    pub fn token_of(digest: &[u8; 32]) -> u64 {
        digest.iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte))
    }

    /// Whether a text has the format of a key.
    pub(super) fn could_be(text: &str) -> bool {
        let secret = text.strip_prefix(Self::PREFIX).map(|secret| URL_SAFE_NO_PAD.decode(secret));
        secret.is_some_and(|secret| secret.is_ok_and(|secret| secret.len() == 32))
    }

    /// The grant of a key.
    pub(super) fn grant(&self, key: &str) -> Option<Grant> {
        self.grants.get(&digest_of(key)).cloned()
    }
}

impl FromIterator<AccessKey> for AccessKeys {
    fn from_iter<T: IntoIterator<Item = AccessKey>>(keys: T) -> Self {
        let grant = |key: &AccessKey| Grant {
            user: format!("key:{}", key.name).into(),
            publish: key.publish,
            admin: key.admin,
            // A key is revoked individually, and never together with tokens by age.
            issued_at: Some(u64::MAX),
            token: Some(Self::token_of(&key.digest)),
            replay_from: (key.created_at > 0).then(|| key.created_at + 1),
            ..Grant::default()
        };
        Self { grants: keys.into_iter().map(|key| (key.digest, grant(&key))).collect() }
    }
}

fn digest_of(key: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, key.as_bytes()).as_ref());
    bytes
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKeys").field("len", &self.grants.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for NewAccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewAccessKey(..)")
    }
}
