//! Access keys: what a publisher shows instead of a token, valid until it is revoked. Only their hashes are kept.

use aws_lc_rs::{digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_core::Grant;
use std::{collections::HashMap, fmt};

/// The access keys that are believed.
#[derive(Default)]
pub struct AccessKeys {
    grants: HashMap<[u8; 32], Grant>,
}

/// An access key that is believed.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// The SHA-256 of the key. A key is 256 random bits, which no dictionary holds, so that a fast hash is enough.
    pub digest: [u8; 32],
    /// What it is called. Its bearer's user is `key:` and this.
    pub name: String,
    /// Its bearer may publish.
    pub publish: bool,
    /// Its bearer may do everything.
    pub admin: bool,
    /// When it was made, in seconds since 1970-01-01T00:00:00Z: what is older is not replayed to its bearer, which may have
    /// the name of an earlier key. 0: not known.
    pub created_at: u64,
}

/// A key that was just made. Nobody can read it again later.
#[derive(Clone)]
pub struct NewAccessKey {
    /// What its bearer shows.
    pub text: String,
    /// What is kept of it: its SHA-256.
    pub digest: [u8; 32],
}

impl AccessKeys {
    /// What every access key begins with, so that it is told from a token, and found where it leaked.
    pub const PREFIX: &str = "ffk_";

    /// Makes a key.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn generate() -> std::io::Result<NewAccessKey> {
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| std::io::Error::other("the system gives no randomness"))?;
        let text = format!("{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(secret));
        Ok(NewAccessKey { digest: digest_of(&text), text })
    }

    /// What a key is revoked by, as a token is by its `jti` ([`Grant::token`]): the first 64 bits of its digest.
    pub fn token_of(digest: &[u8; 32]) -> u64 {
        digest.iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte))
    }

    /// Whether a text has the form of a key.
    pub(super) fn could_be(text: &str) -> bool {
        let secret = text.strip_prefix(Self::PREFIX).map(|secret| URL_SAFE_NO_PAD.decode(secret));
        secret.is_some_and(|secret| secret.is_ok_and(|secret| secret.len() == 32))
    }

    /// What a key allows.
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
            // It is revoked by itself, and not with tokens by their age.
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
