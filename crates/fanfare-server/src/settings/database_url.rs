//! The URL of the accounts database.

use sqlx::postgres::PgConnectOptions;
use std::{fmt, path::PathBuf, str::FromStr};

/// A database, or none.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum DatabaseUrl {
    /// No accounts.
    None,
    /// SQLite in one file.
    File(PathBuf),
    /// PostgreSQL, with user and password.
    Postgres(String),
}

impl FromStr for DatabaseUrl {
    type Err = ();

    /// Accepts `sqlite+aiosqlite://` and `postgresql+asyncpg://`, because Python applications write the driver's name.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (scheme, rest) = text.split_once("://").ok_or(())?;
        match scheme.split_once('+').map_or(scheme, |(scheme, _)| scheme) {
            "sqlite" if !rest.is_empty() && !rest.contains('?') => Ok(Self::File(rest.into())),
            "postgres" | "postgresql" if !rest.is_empty() && !rest.starts_with('/') => {
                Ok(Self::Postgres(format!("postgres://{rest}")))
            }
            _ => Err(()),
        }
    }
}

impl DatabaseUrl {
    /// The same URL with an absolute path, for messages.
    pub(crate) fn absolute(&self) -> Self {
        match self {
            Self::File(path) => Self::File(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            other => other.clone(),
        }
    }

    /// Describes the database without credentials.
    pub(crate) fn place(&self) -> String {
        let Self::Postgres(url) = self else { return format!("the database {self}") };
        let Ok(options) = url.parse::<PgConnectOptions>() else { return format!("the database {self}") };
        let (host, port) = (options.get_host(), options.get_port());
        let database = options.get_database().unwrap_or(options.get_username());
        format!("the PostgreSQL database {database:?} on host {host}, port {port}")
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => match url.rsplit_once('@') {
                Some((_, place)) => write!(f, "postgres://***@{}", without_query(place)),
                None => f.write_str(without_query(url)),
            },
        }
    }
}

/// Removes the query, which may contain a password.
fn without_query(url: &str) -> &str {
    url.split_once('?').map_or(url, |(url, _)| url)
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_shown_without_secrets() {
        for (text, shown) in [
            ("none", "none"),
            ("sqlite://fanfare.db", "sqlite://fanfare.db"),
            ("sqlite:///var/lib/fanfare.db", "sqlite:///var/lib/fanfare.db"),
            ("sqlite+aiosqlite:///./app.db", "sqlite:///./app.db"),
            ("postgres://me:hush@host:5432/hub", "postgres://***@host:5432/hub"),
            ("postgresql+asyncpg://me:hush@host/hub", "postgres://***@host/hub"),
            ("postgres://host/hub?user=me&password=hush", "postgres://host/hub"),
            ("postgres://me:hu@sh@host/hub?sslmode=require", "postgres://***@host/hub"),
        ] {
            let url: DatabaseUrl = text.parse().expect(text);
            assert_eq!((url.to_string().as_str(), format!("{url:?}").as_str()), (shown, shown));
        }
        let place = |text: &str| text.parse::<DatabaseUrl>().unwrap().place();
        let shown = "the PostgreSQL database \"hub\" on host db.example.org, port 5432";
        assert_eq!(place("postgres://me:hush@db.example.org/hub"), shown);
        assert_eq!(place("sqlite://fanfare.db"), "the database sqlite://fanfare.db");
        for text in ["", "fanfare.db", "sqlite://", "sqlite://a.db?mode=ro", "mysql://host/hub", "postgres://"] {
            assert_eq!(text.parse::<DatabaseUrl>(), Err(()), "{text}");
        }
    }
}
