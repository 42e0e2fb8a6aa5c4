//! Who may log in, and which access keys there are: people and programs with their rights, in a database.
//!
//! The database is shared by all workers and by the commands. Whatever is changed in it counts its revision up, which
//! every hub looks at each second.

mod follow;
pub(crate) mod http;
mod login;
mod password;
mod store;
mod url;

pub(crate) use follow::follow;
pub(crate) use login::Logins;
pub(crate) use password::{check_password, hash};
pub(crate) use store::{Key, Store, StoreError, User};
pub(crate) use url::DatabaseUrl;

use std::{fmt, str::FromStr};

/// The longest e-mail address (RFC 5321 section 4.5.3.1.3), in bytes.
const MAX_EMAIL_BYTES: usize = 254;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Read what is for them.
    Viewer,
    /// Publish, too.
    Publisher,
    /// Everything.
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

/// An address as it is kept: in small letters, because nobody means two people by them. `None`: it can't be one.
pub(crate) fn email(text: &str) -> Option<String> {
    let text = text.trim();
    let (name, host) = text.rsplit_once('@')?;
    let odd = |c: char| c.is_whitespace() || c.is_control();
    let fits = !name.is_empty() && !host.is_empty() && text.len() <= MAX_EMAIL_BYTES && !text.contains(odd);
    fits.then(|| text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(email(" Ann@Example.org\n").as_deref(), Some("ann@example.org"));
        for text in ["", "ann", "@example.org", "ann@", "ann @example.org", "ann@exa\u{7}mple.org", &"a@".repeat(200)] {
            assert_eq!(email(text), None, "{text}");
        }
    }

    #[test]
    fn roles_have_names() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert_eq!("root".parse::<Role>(), Err(()));
    }
}
