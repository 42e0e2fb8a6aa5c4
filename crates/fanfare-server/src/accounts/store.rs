//! The database: its tables, and every statement. Knows rows, and not what they mean for a hub.

use super::{DatabaseUrl, Role};
use fanfare::{Revocation, auth::AccessKeys};
use sqlx::{
    Any, AnyPool, Row, SqlSafeStr, Transaction,
    any::{AnyPoolOptions, AnyRow, install_default_drivers},
    migrate::{Migration, MigrationType, Migrator},
};
use std::{borrow::Cow, io, path::PathBuf, time::Duration};
use tokio::sync::OnceCell;

/// The tables, as they came to be. What was released is never changed.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "accounts", include_str!("tables.sql"))];

/// Apart from the application's own, whose database it may be.
const MIGRATIONS_TABLE: &str = "fanfare_migrations";

/// How long a connection may be waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The database, opened when it is needed.
#[derive(Debug)]
pub(crate) struct Store {
    url: DatabaseUrl,
    pool: OnceCell<AnyPool>,
}

/// Somebody who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) email: String,
    /// Argon2id, as a PHC string.
    pub(crate) password: String,
    pub(crate) role: Role,
    /// Patterns of topics.
    pub(crate) topics: Vec<String>,
    pub(crate) disabled: bool,
    /// In seconds since 1970-01-01T00:00:00Z.
    pub(crate) created_at: u64,
}

/// An access key, of which only the hash is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) digest: [u8; 32],
    pub(crate) admin: bool,
    /// In seconds since 1970-01-01T00:00:00Z.
    pub(crate) created_at: u64,
}

/// What became of a token that a client shows to get a new access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// It is good, for the first time or again within moments.
    Of {
        email: String,
        family: String,
    },
    /// It was used before: somebody else may have it, so that it and all that came of it are worth nothing any more.
    Replayed,
    Unknown,
}

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there are no accounts: database_url (DATABASE_URL) is none")]
    Off,
    #[error("the database {url} can't be opened: {error}; check database_url (DATABASE_URL)")]
    Open { url: DatabaseUrl, error: sqlx::Error },
    #[error("the database {url} can't be brought up to date: {error}")]
    Migrate { url: DatabaseUrl, error: sqlx::migrate::MigrateError },
    #[error("the file {} can't be made: {error}; check database_url (DATABASE_URL)", path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("the database failed: {0}")]
    Failed(#[from] sqlx::Error),
}

impl Store {
    pub(crate) fn new(url: DatabaseUrl) -> Self {
        Self { url, pool: OnceCell::new() }
    }

    /// Opens the database if it is there, and brings it up to date. Returns whether it is: a file that nobody has written
    /// an account to is not made.
    pub(crate) async fn open(&self) -> Result<bool, StoreError> {
        match &self.url {
            DatabaseUrl::None => Ok(false),
            DatabaseUrl::File(path) if !path.exists() => Ok(false),
            _ => self.pool().await.map(|_| true),
        }
    }

    /// The database; a file that is not there yet is made.
    async fn pool(&self) -> Result<&AnyPool, StoreError> {
        self.pool.get_or_try_init(|| self.connect()).await
    }

    /// The database, if there is one.
    async fn existing(&self) -> Result<Option<&AnyPool>, StoreError> {
        Ok(if self.open().await? { Some(self.pool().await?) } else { None })
    }

    async fn connect(&self) -> Result<AnyPool, StoreError> {
        install_default_drivers();
        let url = match &self.url {
            DatabaseUrl::None => return Err(StoreError::Off),
            DatabaseUrl::File(path) => {
                make_private(path).map_err(|error| StoreError::Create { path: path.clone(), error })?;
                format!("sqlite://{}", path.display())
            }
            DatabaseUrl::Postgres(url) => url.clone(),
        };
        let open = |error| StoreError::Open { url: self.url.clone(), error };
        let options = AnyPoolOptions::new().max_connections(4).acquire_timeout(PATIENCE);
        let pool = options.connect(&url).await.map_err(open)?;
        if matches!(self.url, DatabaseUrl::File(_)) {
            // Readers then don't wait for writers, nor the other way round.
            sqlx::query("PRAGMA journal_mode = WAL").execute(&pool).await.map_err(open)?;
        }
        self.migrate(&pool).await?;
        Ok(pool)
    }

    async fn migrate(&self, pool: &AnyPool) -> Result<(), StoreError> {
        let migrations = MIGRATIONS.iter().map(|&(version, name, sql)| {
            Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(migrations.collect());
        migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
        let run = match migrator.run(pool).await {
            // Another process may have been at it at the same time: SQLite has no lock for that.
            Err(_) => migrator.run(pool).await,
            done => done,
        };
        run.map_err(|error| StoreError::Migrate { url: self.url.clone(), error })
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.pool().await?.begin().await?)
    }

    /// Adds a user. Returns whether the address was free.
    pub(crate) async fn add_user(&self, user: &User) -> Result<bool, StoreError> {
        let added = sqlx::query(
            "INSERT INTO fanfare_users (email, password, role, topics, disabled, created_at) VALUES ($1, $2, $3, $4, 0, $5) \
             ON CONFLICT (email) DO NOTHING",
        );
        let added = added.bind(&user.email).bind(&user.password).bind(user.role.name()).bind(user.topics.join("\n"));
        let added = added.bind(seconds(user.created_at)).execute(self.pool().await?).await?;
        Ok(added.rows_affected() == 1)
    }

    pub(crate) async fn users(&self) -> Result<Vec<User>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(Vec::new()) };
        let rows = sqlx::query("SELECT * FROM fanfare_users ORDER BY email").fetch_all(pool).await?;
        rows.iter().map(user).collect()
    }

    /// How many users there are, if the database is there.
    pub(crate) async fn users_now(&self) -> Result<Option<usize>, StoreError> {
        Ok(if self.open().await? { Some(self.users().await?.len()) } else { None })
    }

    pub(crate) async fn user(&self, email: &str) -> Result<Option<User>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(None) };
        let row = sqlx::query("SELECT * FROM fanfare_users WHERE email = $1").bind(email).fetch_optional(pool).await?;
        row.as_ref().map(user).transpose()
    }

    /// Changes a user as a whole, and ends what was allowed before: tokens that were issued before a time, and all that new
    /// ones could be had for. Returns whether there is such a user.
    pub(crate) async fn change_user(&self, user: &User, before: u64) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE fanfare_users SET password = $2, role = $3, topics = $4, disabled = $5 WHERE email = $1",
        );
        let changed = changed.bind(&user.email).bind(&user.password).bind(user.role.name());
        let changed = changed.bind(user.topics.join("\n")).bind(i64::from(user.disabled));
        let changed = changed.execute(&mut *transaction).await?.rows_affected();
        self.end_sessions(transaction, &user.email, before).await?;
        Ok(changed == 1)
    }

    /// Removes a user, likewise.
    pub(crate) async fn remove_user(&self, email: &str, before: u64) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let removed = sqlx::query("DELETE FROM fanfare_users WHERE email = $1").bind(email);
        let removed = removed.execute(&mut *transaction).await?.rows_affected();
        self.end_sessions(transaction, email, before).await?;
        Ok(removed == 1)
    }

    async fn end_sessions(
        &self,
        mut transaction: Transaction<'static, Any>,
        email: &str,
        before: u64,
    ) -> Result<(), StoreError> {
        let renewals = sqlx::query("DELETE FROM fanfare_refresh_tokens WHERE email = $1").bind(email);
        renewals.execute(&mut *transaction).await?;
        // A login after an earlier change of this second was issued at `before` itself, and has to end too.
        let revoked = sqlx::query(
            "INSERT INTO fanfare_revocations (kind, whose, before_secs) VALUES ('user', $1, $2) \
             ON CONFLICT (kind, whose) DO UPDATE SET before_secs = \
             CASE WHEN fanfare_revocations.before_secs < $2 THEN $2 ELSE fanfare_revocations.before_secs + 1 END",
        );
        revoked.bind(email).bind(seconds(before)).execute(&mut *transaction).await?;
        count_up(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Writes a revocation down; an earlier time changes nothing.
    pub(crate) async fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        if revoke(&mut transaction, revocation).await? {
            count_up(&mut transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    pub(crate) async fn revocations(&self) -> Result<Vec<Revocation>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(Vec::new()) };
        let rows = sqlx::query("SELECT kind, whose, before_secs FROM fanfare_revocations").fetch_all(pool).await?;
        let revocations = rows.iter().map(|row| {
            let (kind, whose, before) = (row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?, count(row, 2)?);
            Ok(match &*kind {
                "user" => Some(Revocation::User { user: whose.into(), before }),
                "token" => u64::from_str_radix(&whose, 16).ok().map(|token| Revocation::Token { token }),
                "everyone" => Some(Revocation::Everyone { before }),
                _ => None,
            })
        });
        Ok(revocations.collect::<Result<Vec<_>, sqlx::Error>>()?.into_iter().flatten().collect())
    }

    /// Adds an access key. Returns whether the name was free.
    pub(crate) async fn add_key(&self, key: &Key) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let added = sqlx::query(
            "INSERT INTO fanfare_access_keys (name, digest, admin, created_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO NOTHING",
        );
        let added =
            added.bind(&key.name).bind(hex(&key.digest)).bind(i64::from(key.admin)).bind(seconds(key.created_at));
        let added = added.execute(&mut *transaction).await?.rows_affected();
        count_up(&mut transaction).await?;
        transaction.commit().await?;
        Ok(added == 1)
    }

    pub(crate) async fn keys(&self) -> Result<Vec<Key>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(Vec::new()) };
        let statement = "SELECT name, digest, admin, created_at FROM fanfare_access_keys ORDER BY name";
        let rows = sqlx::query(statement).fetch_all(pool).await?;
        let keys = rows.iter().map(|row| {
            let digest = unhex(&row.try_get::<String, _>(1)?).ok_or_else(|| odd("digest"))?;
            Ok(Key { name: row.try_get(0)?, digest, admin: count(row, 2)? != 0, created_at: count(row, 3)? })
        });
        keys.collect()
    }

    /// Takes an access key away, and ends the connections that were opened with it. Returns whether there was one of the name.
    pub(crate) async fn remove_key(&self, name: &str) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let held = sqlx::query("DELETE FROM fanfare_access_keys WHERE name = $1 RETURNING digest").bind(name);
        let Some(held) = held.fetch_optional(&mut *transaction).await? else { return Ok(false) };
        let digest = unhex(&held.try_get::<String, _>(0)?).ok_or_else(|| odd("digest"))?;
        revoke(&mut transaction, &Revocation::Token { token: AccessKeys::token_of(&digest) }).await?;
        count_up(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Counts up with every change that a hub must know of. 0: nothing was ever written.
    pub(crate) async fn revision(&self) -> Result<u64, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(0) };
        let row = sqlx::query("SELECT revision FROM fanfare_revision").fetch_one(pool).await?;
        Ok(count(&row, 0)?)
    }

    /// Notes an attempt of somebody who may make one every `every_ms`, and `burst_ms / every_ms` at once (a generic cell
    /// rate algorithm, over all processes). Returns in how many milliseconds the next one is all right, if this one is not.
    pub(crate) async fn attempt(
        &self,
        who: &str,
        now_ms: u64,
        every_ms: u64,
        burst_ms: u64,
    ) -> Result<Option<u64>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(None) };
        let taken = sqlx::query(
            "INSERT INTO fanfare_attempts (who, pace_ms) VALUES ($1, $2 + $3) ON CONFLICT (who) DO UPDATE SET \
             pace_ms = (CASE WHEN fanfare_attempts.pace_ms > $2 THEN fanfare_attempts.pace_ms ELSE $2 END) + $3 \
             WHERE fanfare_attempts.pace_ms + $3 <= $2 + $4",
        );
        let taken = taken.bind(who).bind(seconds(now_ms)).bind(seconds(every_ms)).bind(seconds(burst_ms));
        if taken.execute(pool).await?.rows_affected() == 1 {
            return Ok(None);
        }
        let row =
            sqlx::query("SELECT pace_ms FROM fanfare_attempts WHERE who = $1").bind(who).fetch_optional(pool).await?;
        let pace = row.map(|row| count(&row, 0)).transpose()?.unwrap_or(now_ms);
        Ok(Some((pace + every_ms).saturating_sub(now_ms + burst_ms).max(1)))
    }

    /// Forgets attempts that no longer matter, and refresh tokens that have ended.
    pub(crate) async fn sweep(&self, now_ms: u64) -> Result<(), StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(()) };
        sqlx::query("DELETE FROM fanfare_attempts WHERE pace_ms < $1").bind(seconds(now_ms)).execute(pool).await?;
        let ended = sqlx::query("DELETE FROM fanfare_refresh_tokens WHERE expires_at < $1");
        ended.bind(seconds(now_ms / 1_000)).execute(pool).await?;
        Ok(())
    }

    /// Keeps the hash of a refresh token, if `user` still is as it was when it was let in. All that come of one login are a
    /// family. Returns whether it is kept.
    pub(crate) async fn add_renewal(
        &self,
        digest: &str,
        family: &str,
        user: &User,
        expires_at: u64,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        // It changes nothing but holds the row: a change of the user comes before and is seen here, or after and ends this too.
        let same = sqlx::query(
            "UPDATE fanfare_users SET disabled = 0 WHERE email = $1 AND password = $2 AND role = $3 AND topics = $4 \
             AND disabled = 0",
        );
        let same = same.bind(&user.email).bind(&user.password).bind(user.role.name()).bind(user.topics.join("\n"));
        if same.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(false);
        }
        let added = sqlx::query(
            "INSERT INTO fanfare_refresh_tokens (digest, family, email, expires_at, used_at) VALUES ($1, $2, $3, $4, 0)",
        );
        let added = added.bind(digest).bind(family).bind(&user.email).bind(seconds(expires_at));
        added.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Uses a refresh token up. Within `grace_secs` it may be used again: two tabs do so.
    pub(crate) async fn use_renewal(&self, digest: &str, now: u64, grace_secs: u64) -> Result<Renewal, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(Renewal::Unknown) };
        let first = sqlx::query("UPDATE fanfare_refresh_tokens SET used_at = $2 WHERE digest = $1 AND used_at = 0");
        first.bind(digest).bind(seconds(now)).execute(pool).await?;
        let row = sqlx::query(
            "SELECT email, family, expires_at, used_at FROM fanfare_refresh_tokens WHERE digest = $1 AND expires_at > $2",
        );
        let Some(row) = row.bind(digest).bind(seconds(now)).fetch_optional(pool).await? else {
            return Ok(Renewal::Unknown);
        };
        let (email, family): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if count(&row, 3)?.saturating_add(grace_secs) < now {
            self.end_family(&family).await?;
            return Ok(Renewal::Replayed);
        }
        Ok(Renewal::Of { email, family })
    }

    /// The family of a refresh token, if it is known.
    pub(crate) async fn family_of(&self, digest: &str) -> Result<Option<String>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(None) };
        let row = sqlx::query("SELECT family FROM fanfare_refresh_tokens WHERE digest = $1").bind(digest);
        Ok(row.fetch_optional(pool).await?.map(|row| row.try_get(0)).transpose()?)
    }

    /// Ends all refresh tokens of one login.
    pub(crate) async fn end_family(&self, family: &str) -> Result<(), StoreError> {
        let ended = sqlx::query("DELETE FROM fanfare_refresh_tokens WHERE family = $1").bind(family);
        ended.execute(self.pool().await?).await?;
        Ok(())
    }
}

/// Nobody else on the machine may read what is in it.
fn make_private(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// Returns whether that changed anything.
async fn revoke(transaction: &mut Transaction<'static, Any>, revocation: &Revocation) -> Result<bool, sqlx::Error> {
    let (kind, whose, before) = match revocation {
        Revocation::User { user, before } => ("user", user.to_string(), *before),
        Revocation::Token { token } => ("token", format!("{token:016x}"), 0),
        Revocation::Everyone { before } => ("everyone", String::new(), *before),
    };
    let kept = sqlx::query(
        "INSERT INTO fanfare_revocations (kind, whose, before_secs) VALUES ($1, $2, $3) ON CONFLICT (kind, whose) DO UPDATE \
         SET before_secs = $3 WHERE fanfare_revocations.before_secs < $3",
    );
    let kept = kept.bind(kind).bind(whose).bind(seconds(before)).execute(&mut **transaction).await?;
    Ok(kept.rows_affected() > 0)
}

async fn count_up(transaction: &mut Transaction<'static, Any>) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE fanfare_revision SET revision = revision + 1").execute(&mut **transaction).await?;
    Ok(())
}

fn user(row: &AnyRow) -> Result<User, StoreError> {
    let role: String = row.try_get("role")?;
    let topics: String = row.try_get("topics")?;
    Ok(User {
        email: row.try_get("email")?,
        password: row.try_get("password")?,
        role: role.parse().map_err(|()| odd("role"))?,
        topics: topics.lines().map(str::to_owned).collect(),
        disabled: row.try_get::<i64, _>("disabled")? != 0,
        created_at: u64::try_from(row.try_get::<i64, _>("created_at")?).unwrap_or(0),
    })
}

fn odd(column: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the column {column} holds what was not written there by fanfare").into())
}

fn count(row: &AnyRow, column: usize) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

/// Databases count in signed numbers.
fn seconds(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Role;

    #[tokio::test]
    async fn a_login_that_a_change_overtook_gives_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(DatabaseUrl::File(directory.path().join("accounts.db")));
        let user = User {
            email: "ann@example.org".to_owned(),
            password: "the hash of one".to_owned(),
            role: Role::Publisher,
            topics: vec!["a".to_owned(), "b*".to_owned()],
            disabled: false,
            created_at: 1,
        };
        assert!(store.add_user(&user).await.unwrap());
        assert!(store.add_renewal("1", "f", &user, 100).await.unwrap());
        for change in [
            User { password: "the hash of another".to_owned(), ..user.clone() },
            User { role: Role::Viewer, ..user.clone() },
            User { topics: vec!["a".to_owned()], ..user.clone() },
            User { disabled: true, ..user.clone() },
        ] {
            assert!(store.change_user(&change, 1).await.unwrap());
            assert!(!store.add_renewal("2", "f", &user, 100).await.unwrap(), "{change:?}");
            for token in ["1", "2"] {
                assert!(matches!(store.use_renewal(token, 5, 10).await.unwrap(), Renewal::Unknown), "{change:?}");
            }
            // As it was: whoever logs in now is let in.
            assert!(store.change_user(&user, 1).await.unwrap());
            assert!(store.add_renewal("1", "f", &user, 100).await.unwrap());
        }
        assert!(store.remove_user(&user.email, 1).await.unwrap());
        assert!(!store.add_renewal("2", "f", &user, 100).await.unwrap());
        // Each of the nine changes ended what was issued after the one before it, all in one second.
        let user: std::sync::Arc<str> = user.email.as_str().into();
        assert_eq!(store.revocations().await.unwrap(), [Revocation::User { user: user.clone(), before: 9 }]);
        assert!(!store.remove_user(&user, 100).await.unwrap());
        assert_eq!(store.revocations().await.unwrap(), [Revocation::User { user, before: 100 }]);
    }
}
