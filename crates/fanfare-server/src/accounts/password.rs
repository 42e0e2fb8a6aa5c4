//! Passwords: stored as Argon2id hashes, and checked in a time that does not reveal whether an account exists.

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier},
};
use std::sync::{Arc, LazyLock};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// The shortest password in characters (NIST SP 800-63B section 5.1.1.2), and the longest in bytes.
const MIN_CHARACTERS: usize = 8;
pub(super) const MAX_BYTES: usize = 1_024;

/// How long a login waits for a free slot to check its password.
const QUEUE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// The hash that passwords of unknown accounts are compared with.
static UNKNOWN_ACCOUNT_HASH: LazyLock<String> = LazyLock::new(|| hash("nobody's password").unwrap_or_default());

/// Checks passwords, a few at a time: each check takes 19 MiB and some milliseconds of a core.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    slots: Arc<Semaphore>,
}

/// Too many checks are waiting.
#[derive(Debug)]
pub(super) struct Busy;

impl Passwords {
    pub(super) fn new() -> Self {
        LazyLock::force(&UNKNOWN_ACCOUNT_HASH);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { slots: Arc::new(Semaphore::new(cores.div_ceil(2))) }
    }

    /// Checks a password against a hash. Without a hash the result is false, in the same time.
    pub(super) async fn check(&self, password: String, stored: Option<String>) -> Result<bool, Busy> {
        let slot = timeout(QUEUE_TIMEOUT, self.slots.clone().acquire_owned()).await;
        let slot = slot.map_err(|_| Busy)?.map_err(|_| Busy)?;
        let checked = spawn_blocking(move || {
            let _place = slot;
            let matches = Argon2::default()
                .verify_password(password.as_bytes(), stored.as_ref().unwrap_or(&UNKNOWN_ACCOUNT_HASH).as_str());
            matches.is_ok() && stored.is_some()
        });
        // A panic must not accept a password.
        Ok(checked.await.unwrap_or(false))
    }
}

/// Hashes a password with Argon2id and a random salt, as a PHC string.
pub(crate) fn hash(password: &str) -> anyhow::Result<String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|error| anyhow::anyhow!("failed to hash the password: {error}"))?.to_string())
}

/// Checks a new password.
pub(crate) fn check_password(password: &str, email: &str) -> Result<(), String> {
    if password.chars().count() < MIN_CHARACTERS {
        Err(format!("the password must have at least {MIN_CHARACTERS} characters"))
    } else if password.len() > MAX_BYTES {
        Err(format!("the password must have at most {MAX_BYTES} bytes"))
    } else if password.eq_ignore_ascii_case(email) {
        Err("the password must not be the e-mail address".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_hashed_password_is_accepted() {
        let passwords = Passwords::new();
        let stored = hash("correct horse").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && !stored.contains("horse"), "{stored}");
        assert_ne!(stored, hash("correct horse").unwrap(), "each has its own salt");
        for (password, stored, matches) in [
            ("correct horse", Some(stored.clone()), true),
            ("correct horsf", Some(stored.clone()), false),
            ("", Some(stored), false),
            ("correct horse", Some("no hash".to_owned()), false),
            ("correct horse", None, false),
            ("nobody's password", None, false),
        ] {
            assert_eq!(passwords.check(password.to_owned(), stored).await.unwrap(), matches, "{password}");
        }
    }

    #[test]
    fn unsuitable_passwords_are_rejected() {
        for (password, good) in [("1234567", false), ("12345678", true), ("ann@example.org", false), ("éééééééé", true)]
        {
            assert_eq!(check_password(password, "ann@example.org").is_ok(), good, "{password}");
        }
        assert!(check_password(&"x".repeat(MAX_BYTES + 1), "a@b").is_err());
    }
}
