//! Passwords: kept as Argon2id, checked in a time that does not tell whether there is such a user.

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier},
};
use std::sync::{Arc, LazyLock};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// The shortest password, in characters (NIST SP 800-63B section 5.1.1.2), and the longest, in bytes.
const MIN_CHARACTERS: usize = 8;
pub(super) const MAX_BYTES: usize = 1_024;

/// How long somebody may wait until a password is looked at.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What a password is compared with where there is no user.
static NOBODYS: LazyLock<String> = LazyLock::new(|| hash("nobody's password").unwrap_or_default());

/// Checks passwords, a few at a time: each takes 19 MiB and some milliseconds of a core.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    places: Arc<Semaphore>,
}

/// Too many wait.
#[derive(Debug)]
pub(super) struct Busy;

impl Passwords {
    pub(super) fn new() -> Self {
        LazyLock::force(&NOBODYS);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { places: Arc::new(Semaphore::new(cores.div_ceil(2))) }
    }

    /// Whether a password is the one that was hashed. Without a hash it isn't, which takes as long.
    pub(super) async fn check(&self, password: String, kept: Option<String>) -> Result<bool, Busy> {
        let place = timeout(PATIENCE, self.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| Busy)?.map_err(|_| Busy)?;
        let checked = spawn_blocking(move || {
            let _place = place;
            let right =
                Argon2::default().verify_password(password.as_bytes(), kept.as_ref().unwrap_or(&NOBODYS).as_str());
            right.is_ok() && kept.is_some()
        });
        // A panic is none of the user's doing, and no right password either.
        Ok(checked.await.unwrap_or(false))
    }
}

/// What is kept of a password: Argon2id with a salt of its own, as a PHC string.
pub(crate) fn hash(password: &str) -> anyhow::Result<String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|error| anyhow::anyhow!("the password can't be hashed: {error}"))?.to_string())
}

/// Says what is wrong with a password that somebody wants.
pub(crate) fn check_password(password: &str, email: &str) -> Result<(), String> {
    if password.chars().count() < MIN_CHARACTERS {
        Err(format!("the password needs at least {MIN_CHARACTERS} characters"))
    } else if password.len() > MAX_BYTES {
        Err(format!("the password may have at most {MAX_BYTES} bytes"))
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
    async fn only_the_right_password_is_right() {
        let passwords = Passwords::new();
        let kept = hash("correct horse").unwrap();
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && !kept.contains("horse"), "{kept}");
        assert_ne!(kept, hash("correct horse").unwrap(), "each has its own salt");
        for (password, kept, right) in [
            ("correct horse", Some(kept.clone()), true),
            ("correct horsf", Some(kept.clone()), false),
            ("", Some(kept), false),
            ("correct horse", Some("no hash".to_owned()), false),
            ("correct horse", None, false),
            ("nobody's password", None, false),
        ] {
            assert_eq!(passwords.check(password.to_owned(), kept).await.unwrap(), right, "{password}");
        }
    }

    #[test]
    fn passwords_that_are_none_are_refused() {
        for (password, good) in [("1234567", false), ("12345678", true), ("ann@example.org", false), ("éééééééé", true)]
        {
            assert_eq!(check_password(password, "ann@example.org").is_ok(), good, "{password}");
        }
        assert!(check_password(&"x".repeat(MAX_BYTES + 1), "a@b").is_err());
    }
}
