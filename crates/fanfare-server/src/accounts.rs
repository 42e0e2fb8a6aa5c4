//! Accounts and access keys: the users and programs that may connect, with their rights, in a database.
//!
//! All workers and commands share the database. Every change in it increments its revision, which each hub polls once a
//! second.

mod follow;
pub(crate) mod http;
mod login;
mod password;
mod store;

pub(crate) use follow::follow;
pub(crate) use login::Logins;
pub(crate) use password::{check_password, hash};
pub(crate) use store::{Key, Store, StoreError, User};

use std::{fmt, str::FromStr};

/// The longest e-mail address (RFC 5321 section 4.5.3.1.3), in bytes.
const MAX_EMAIL_BYTES: usize = 254;

/// The rights of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Receives events.
    Viewer,
    /// Also publishes events.
    Publisher,
    /// Has all rights.
    Admin,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Viewer, Self::Publisher, Self::Admin];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Publisher => "publisher",
            Self::Admin => "admin",
        }
    }

    pub(crate) const fn may_publish(self) -> bool {
        matches!(self, Self::Publisher | Self::Admin)
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Normalises an e-mail address to lower case, so that each account exists once. `None` if the address is not valid.
pub(crate) fn email(text: &str) -> Option<String> {
    let text = text.trim();
    let (name, host) = text.rsplit_once('@')?;
    let invalid = |c: char| c.is_whitespace() || c.is_control();
    let fits = !name.is_empty() && !host.is_empty() && text.len() <= MAX_EMAIL_BYTES && !text.contains(invalid);
    fits.then(|| text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e_mail_addresses_are_normalised() {
        assert_eq!(email(" Ann@Example.org\n").as_deref(), Some("ann@example.org"));
        for text in ["", "ann", "@example.org", "ann@", "ann @example.org", "ann@exa\u{7}mple.org", &"a@".repeat(200)] {
            assert_eq!(email(text), None, "{text}");
        }
    }

    #[test]
    fn roles_are_parsed_by_name() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert_eq!("root".parse::<Role>(), Err(()));
    }
}
