//! The database: its tables, and all SQL statements. Knows rows, and not what they mean for a hub.

use super::Role;
use crate::settings::DatabaseUrl;
use fanfare::{
    Revocation,
    auth::{AccessKeys, token_id},
};
use rustix::fs::Access;
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, Connection, Row, SqlSafeStr, Transaction,
    any::{AnyPoolOptions, AnyRow, install_default_drivers},
    migrate::{Migration, MigrationType, Migrator},
};
use std::{
    borrow::Cow,
    fmt::Display,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::OnceCell, time::timeout};

/// SQL for a time of creation: a parameter, or a later time if a row with the same name (`$1`) was removed since.
macro_rules! created_at {
    ($kind:literal, $at:literal) => {
        concat!(
            "(SELECT CASE WHEN COALESCE(MAX(before_secs), 0) > ",
            $at,
            " THEN MAX(before_secs) ELSE ",
            $at,
            " END FROM fanfare_revocations WHERE kind = '",
            $kind,
            "' AND whose = $1)"
        )
    };
}

/// The migrations. A released one is never changed, not even in a comment: the database stores its checksum.
const MIGRATIONS: &[(i64, &str, &str)] =
    &[(1, "accounts", include_str!("tables.sql")), (2, "sessions", include_str!("sessions.sql"))];

/// Revocations further ahead than this, in seconds, are treated as errors of earlier versions. See [`repair`].
const MAX_AHEAD_SECS: u64 = 86_400;

/// Separate from the application's own migrations, because the database may be the application's.
const MIGRATIONS_TABLE: &str = "fanfare_migrations";

/// The time limit for a connection to the database.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The database, opened on first use.
#[derive(Debug)]
pub(crate) struct Store {
    url: DatabaseUrl,
    pool: OnceCell<AnyPool>,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) email: String,
    /// Argon2id, as a PHC string.
    pub(crate) password: String,
    pub(crate) role: Role,
    /// Topic patterns that it may subscribe to.
    pub(crate) topics: Vec<String>,
    pub(crate) disabled: bool,
    /// In seconds since 1970-01-01T00:00:00Z.
    pub(crate) created_at: u64,
}

/// An access key. Only its hash is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) digest: [u8; 32],
    pub(crate) admin: bool,
    /// In seconds since 1970-01-01T00:00:00Z.
    pub(crate) created_at: u64,
}

/// A new or renewed login, from which its next access token is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: User,
    /// Identifies the login. All of its tokens have it in common.
    pub(crate) family: String,
    /// Tokens of the user issued before this time count as revoked. Unix time in seconds.
    pub(crate) valid_from: u64,
    /// When the refresh token expires, in seconds since 1970-01-01T00:00:00Z.
    pub(crate) refresh_expires_at: u64,
    /// The salt of the refresh token, as used by [`Renewal::successor`].
    pub(crate) salt: String,
}

/// A refresh token that was presented, and how its successor is derived.
pub(crate) struct Renewal<'a> {
    pub(crate) digest: &'a str,
    /// Derives the digest of the token's successor from a salt.
    pub(crate) successor: &'a (dyn Fn(&str) -> String + Sync),
    /// The salt of a new successor.
    pub(crate) salt: String,
    /// In seconds since 1970-01-01T00:00:00Z.
    pub(crate) now: u64,
    pub(crate) expires_at: u64,
    /// When the access token that is issued with it expires.
    pub(crate) access_expires_at: u64,
    /// How long a used token may be presented again for the same successor.
    pub(crate) grace_secs: u64,
}

/// The result of a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Renewed {
    Good(Box<Login>),
    /// The token was used before and may be stolen, so all tokens of its login must be revoked.
    Replayed {
        family: String,
    },
    Unknown,
}

/// A login in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoginRow {
    pub(crate) email: String,
    pub(crate) family: String,
    /// Unix time in seconds. 0: the login is older than this column.
    pub(crate) began_at: u64,
    /// When the last of its access tokens expires. Unix time in seconds; 0: unknown.
    pub(crate) access_expires_at: u64,
}

/// An error of the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("accounts are disabled: database_url (FANFARE_DATABASE_URL) is none")]
    Off,
    #[error("failed to open {place}: {error}; check database_url (FANFARE_DATABASE_URL)")]
    Open { place: String, error: String },
    #[error("failed to migrate the database {url}: {error}")]
    Migrate { url: DatabaseUrl, error: sqlx::migrate::MigrateError },
    #[error("failed to create the file {}: {error}; check database_url (FANFARE_DATABASE_URL)", path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("database error: {}", failure(.0))]
    Failed(#[from] sqlx::Error),
}

fn failure(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => {
            format!(
                "no connection within {} s; check that the database is running and reachable",
                CONNECT_TIMEOUT.as_secs()
            )
        }
        other => other.to_string(),
    }
}

/// The error of one connection attempt.
async fn cause(url: &str) -> String {
    match timeout(CONNECT_TIMEOUT, AnyConnection::connect(url)).await {
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(_)) | Err(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
    }
}

impl Store {
    pub(crate) fn new(url: DatabaseUrl) -> Self {
        Self { url, pool: OnceCell::new() }
    }

    /// Opens the database if it exists, and migrates it. Returns whether it exists. A SQLite file is created only for
    /// the first account or key.
    pub(crate) async fn open(&self) -> Result<bool, StoreError> {
        match &self.url {
            DatabaseUrl::None => Ok(false),
            DatabaseUrl::File(path) if !path.exists() => Ok(false),
            _ => self.pool().await.map(|_| true),
        }
    }

    /// Checks whether a missing SQLite file could be created.
    pub(crate) fn creation_error(&self) -> Option<StoreError> {
        let DatabaseUrl::File(path) = &self.url else { return None };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let access =
            if path.exists() { Ok(()) } else { rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK) };
        access.err().map(|error| StoreError::Create { path: path.clone(), error: error.into() })
    }

    /// Opens the database. Creates a missing SQLite file.
    async fn pool(&self) -> Result<&AnyPool, StoreError> {
        self.pool.get_or_try_init(|| self.connect()).await
    }

    /// The database, if it exists.
    async fn existing(&self) -> Result<Option<&AnyPool>, StoreError> {
        Ok(if self.open().await? { Some(self.pool().await?) } else { None })
    }

    async fn connect(&self) -> Result<AnyPool, StoreError> {
        install_default_drivers();
        let url = match &self.url {
            DatabaseUrl::None => return Err(StoreError::Off),
            DatabaseUrl::File(path) => {
                create_private(path).map_err(|error| StoreError::Create { path: path.clone(), error })?;
                format!("sqlite://{}", path.display())
            }
            DatabaseUrl::Postgres(url) => url.clone(),
        };
        let open = |error: &dyn Display| StoreError::Open { place: self.url.place(), error: error.to_string() };
        let options = AnyPoolOptions::new().max_connections(4).acquire_timeout(CONNECT_TIMEOUT);
        let pool = match options.connect(&url).await {
            // The pool retries, and does not report the error.
            Err(sqlx::Error::PoolTimedOut) => return Err(open(&cause(&url).await)),
            opened => opened.map_err(|error| open(&error))?,
        };
        if matches!(self.url, DatabaseUrl::File(_)) {
            // With a write-ahead log, readers and writers do not block each other.
            sqlx::query("PRAGMA journal_mode = WAL").execute(&pool).await.map_err(|error| open(&error))?;
        }
        self.migrate(&pool).await?;
        repair(&pool).await?;
        Ok(pool)
    }

    async fn migrate(&self, pool: &AnyPool) -> Result<(), StoreError> {
        let migrations = MIGRATIONS.iter().map(|&(version, name, sql)| {
            Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(migrations.collect());
        migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
        let run = match migrator.run(pool).await {
            // Another process may have migrated it at the same time; sqlx does not lock SQLite for migrations.
            Err(_) => migrator.run(pool).await,
            done => done,
        };
        run.map_err(|error| StoreError::Migrate { url: self.url.clone(), error })
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.pool().await?.begin().await?)
    }

    /// Adds a user. Returns false if the address exists already. A new account is created in a later second than a
    /// removed one with the same address, because the time of creation distinguishes them.
    pub(crate) async fn add_user(&self, user: &User) -> Result<bool, StoreError> {
        let added = sqlx::query(concat!(
            "INSERT INTO fanfare_users (email, password, role, topics, disabled, created_at) VALUES ($1, $2, $3, $4, \
             0, ",
            created_at!("user", "$5"),
            ") ON CONFLICT (email) DO NOTHING",
        ));
        let added = added.bind(&user.email).bind(&user.password).bind(user.role.name()).bind(user.topics.join("\n"));
        let added = added.bind(seconds(user.created_at)).execute(self.pool().await?).await?;
        Ok(added.rows_affected() == 1)
    }

    pub(crate) async fn users(&self) -> Result<Vec<User>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(Vec::new()) };
        let rows = sqlx::query("SELECT * FROM fanfare_users ORDER BY email").fetch_all(pool).await?;
        rows.iter().map(user).collect()
    }

    /// Number of users, if the database exists.
    pub(crate) async fn users_now(&self) -> Result<Option<usize>, StoreError> {
        Ok(if self.open().await? { Some(self.users().await?.len()) } else { None })
    }

    pub(crate) async fn user(&self, email: &str) -> Result<Option<User>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(None) };
        let row = sqlx::query("SELECT * FROM fanfare_users WHERE email = $1").bind(email).fetch_optional(pool).await?;
        row.as_ref().map(user).transpose()
    }

    /// Updates all fields of a user, and revokes everything issued earlier: tokens issued before `before`, and the
    /// user's refresh tokens. Returns whether the user exists.
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

    /// Removes a user, and revokes everything issued earlier, as [`Self::change_user`] does.
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
        // A token of a login after an earlier change in the same second has `before` as its time, and must be revoked
        // too.
        revoke_past(&mut transaction, "user", email, before).await?;
        for table in
            ["DELETE FROM fanfare_sessions WHERE email = $1", "DELETE FROM fanfare_refresh_tokens WHERE email = $1"]
        {
            sqlx::query(table).bind(email).execute(&mut *transaction).await?;
        }
        increment_revision(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Stores a revocation, and ends the logins that it concerns with their refresh tokens. A revocation earlier than
    /// the stored one has no effect.
    pub(crate) async fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let is_new = revoke(&mut transaction, revocation).await?;
        if end_logins(&mut transaction, revocation).await? || is_new {
            increment_revision(&mut transaction).await?;
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
                "session" => {
                    let session = u64::from_str_radix(&whose, 16).ok();
                    session.map(|session| Revocation::Session { session, until: before })
                }
                "everyone" => Some(Revocation::Everyone { before }),
                _ => None,
            })
        });
        Ok(revocations.collect::<Result<Vec<_>, sqlx::Error>>()?.into_iter().flatten().collect())
    }

    /// Adds an access key. Returns false if the name exists already. For its time of creation see [`Self::add_user`].
    pub(crate) async fn add_key(&self, key: &Key) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let added = sqlx::query(concat!(
            "INSERT INTO fanfare_access_keys (name, digest, admin, created_at) VALUES ($1, $2, $3, ",
            created_at!("key", "$4"),
            ") ON CONFLICT (name) DO NOTHING",
        ));
        let added =
            added.bind(&key.name).bind(hex(&key.digest)).bind(i64::from(key.admin)).bind(seconds(key.created_at));
        let added = added.execute(&mut *transaction).await?.rows_affected();
        increment_revision(&mut transaction).await?;
        transaction.commit().await?;
        Ok(added == 1)
    }

    pub(crate) async fn keys(&self) -> Result<Vec<Key>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(Vec::new()) };
        let statement = "SELECT name, digest, admin, created_at FROM fanfare_access_keys ORDER BY name";
        let rows = sqlx::query(statement).fetch_all(pool).await?;
        let keys = rows.iter().map(|row| {
            let digest = unhex(&row.try_get::<String, _>(1)?).ok_or_else(|| unexpected_value("digest"))?;
            Ok(Key { name: row.try_get(0)?, digest, admin: count(row, 2)? != 0, created_at: count(row, 3)? })
        });
        keys.collect()
    }

    /// Removes an access key, and revokes it, which closes its connections. Returns whether it existed.
    pub(crate) async fn remove_key(&self, name: &str) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let held = sqlx::query("DELETE FROM fanfare_access_keys WHERE name = $1 RETURNING digest, created_at");
        let Some(held) = held.bind(name).fetch_optional(&mut *transaction).await? else { return Ok(false) };
        let digest = unhex(&held.try_get::<String, _>(0)?).ok_or_else(|| unexpected_value("digest"))?;
        // No token is revoked by this row. It makes the next key of the name a later one.
        revoke_past(&mut transaction, "key", name, count(&held, 1)? + 1).await?;
        revoke(&mut transaction, &Revocation::Token { token: AccessKeys::token_of(&digest) }).await?;
        increment_revision(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// The revision, which every change that concerns hubs increments. 0: the database does not exist.
    pub(crate) async fn revision(&self) -> Result<u64, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(0) };
        let row = sqlx::query("SELECT revision FROM fanfare_revision").fetch_one(pool).await?;
        Ok(count(&row, 0)?)
    }

    /// Counts an attempt under `who`, which may make one every `every_ms`, and `burst_ms / every_ms` at once (a generic
    /// cell rate algorithm over all processes). Returns the milliseconds until the next allowed attempt if this one is
    /// not.
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

    /// Stores a key until a time.
    pub(crate) async fn remember(&self, key: &str, until_ms: u64) -> Result<(), StoreError> {
        let remembered = sqlx::query(
            "INSERT INTO fanfare_attempts (who, pace_ms) VALUES ($1, $2) ON CONFLICT (who) DO UPDATE SET pace_ms = $2",
        );
        remembered.bind(key).bind(seconds(until_ms)).execute(self.pool().await?).await?;
        Ok(())
    }

    /// Whether a key is stored.
    pub(crate) async fn remembers(&self, key: &str, now_ms: u64) -> Result<bool, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(false) };
        let row = sqlx::query("SELECT 1 FROM fanfare_attempts WHERE who = $1 AND pace_ms > $2");
        Ok(row.bind(key).bind(seconds(now_ms)).fetch_optional(pool).await?.is_some())
    }

    /// Deletes expired rows: attempts, refresh tokens, logins and revocations of logins.
    pub(crate) async fn purge(&self, now_ms: u64) -> Result<(), StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(()) };
        sqlx::query("DELETE FROM fanfare_attempts WHERE pace_ms < $1").bind(seconds(now_ms)).execute(pool).await?;
        for expired in [
            "DELETE FROM fanfare_refresh_tokens WHERE expires_at < $1",
            "DELETE FROM fanfare_sessions WHERE expires_at < $1",
            "DELETE FROM fanfare_revocations WHERE kind = 'session' AND before_secs < $1",
        ] {
            sqlx::query(expired).bind(seconds(now_ms / 1_000)).execute(pool).await?;
        }
        Ok(())
    }

    /// Begins a login with its first refresh token, unless `user` was changed since the password was checked.
    pub(crate) async fn begin_login(
        &self,
        digest: &str,
        family: &str,
        user: &User,
        now: u64,
        [access_expires_at, expires_at]: [u64; 2],
    ) -> Result<Option<Login>, StoreError> {
        let mut transaction = self.begin().await?;
        // This changes no value, but locks the row. A concurrent change of the user is seen here, or ends this login
        // later.
        let same = sqlx::query(
            "UPDATE fanfare_users SET disabled = 0 WHERE email = $1 AND password = $2 AND role = $3 AND topics = $4 \
             AND created_at = $5 AND disabled = 0",
        );
        let same = same.bind(&user.email).bind(&user.password).bind(user.role.name()).bind(user.topics.join("\n"));
        if same.bind(seconds(user.created_at)).execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(None);
        }
        let valid_from = valid_from(&mut transaction, &user.email).await?;
        let began = sqlx::query(
            "INSERT INTO fanfare_sessions \
             (family, email, sid, began_at, renewed_at, expires_at, access_expires_at, salt) \
             VALUES ($1, $2, $3, $4, $4, $5, $6, '')",
        );
        // Not before a revocation in the same second, which does not concern this login.
        let began = began.bind(family).bind(&user.email).bind(sid(family)).bind(seconds(now.max(valid_from)));
        let began = began.bind(seconds(expires_at)).bind(seconds(access_expires_at));
        began.execute(&mut *transaction).await?;
        add_renewal(&mut transaction, digest, family, &user.email, expires_at).await?;
        transaction.commit().await?;
        let (user, family) = (user.clone(), family.to_owned());
        Ok(Some(Login { user, family, valid_from, refresh_expires_at: expires_at, salt: String::new() }))
    }

    /// Uses a refresh token. A token that is presented again within the grace period gets the same successor, unless
    /// the successor was used already.
    pub(crate) async fn renew(&self, renewal: &Renewal<'_>) -> Result<Renewed, StoreError> {
        let (digest, now) = (renewal.digest, seconds(renewal.now));
        if self.existing().await?.is_none() {
            return Ok(Renewed::Unknown);
        }
        let mut transaction = self.begin().await?;
        // These change no values, but lock the rows. The order matters: first the user, as in `change_user`, then the
        // login.
        let held = sqlx::query(
            "UPDATE fanfare_users SET disabled = 0 WHERE disabled = 0 AND email = \
             (SELECT email FROM fanfare_refresh_tokens WHERE digest = $1 AND expires_at > $2)",
        );
        if held.bind(digest).bind(now).execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(Renewed::Unknown);
        }
        let held = sqlx::query(
            "UPDATE fanfare_sessions SET access_expires_at = CASE WHEN access_expires_at < $2 THEN $2 ELSE \
             access_expires_at END WHERE family = (SELECT family FROM fanfare_refresh_tokens WHERE digest = $1)",
        );
        let held = held.bind(digest).bind(seconds(renewal.access_expires_at));
        if held.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(Renewed::Unknown);
        }
        let row = sqlx::query(
            "SELECT s.email, s.family, s.salt, t.used_at, s.began_at FROM fanfare_refresh_tokens t \
             JOIN fanfare_sessions s ON s.family = t.family WHERE t.digest = $1",
        );
        let row = row.bind(digest).fetch_one(&mut *transaction).await?;
        let (email, family): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (salt, used_at): (String, u64) = (row.try_get(2)?, count(&row, 3)?);
        let valid_from = valid_from(&mut transaction, &email).await?;
        if count(&row, 4)? < valid_from {
            // A revocation was stored while this login was being created.
            return Ok(Renewed::Unknown);
        }
        let (salt, refresh_expires_at) = if used_at == 0 {
            use_token(&mut transaction, renewal, &email, &family).await?;
            (renewal.salt.clone(), renewal.expires_at)
        } else {
            let unused = sqlx::query(
                "SELECT expires_at FROM fanfare_refresh_tokens WHERE digest = $1 AND family = $2 AND used_at = 0",
            );
            let unused =
                unused.bind((renewal.successor)(&salt)).bind(&family).fetch_optional(&mut *transaction).await?;
            match unused.filter(|_| used_at.saturating_add(renewal.grace_secs) >= renewal.now) {
                Some(row) => (salt, count(&row, 0)?),
                None => return Ok(Renewed::Replayed { family }),
            }
        };
        let renewed = sqlx::query("UPDATE fanfare_sessions SET renewed_at = $2, sid = $3 WHERE family = $1");
        let renewed = renewed.bind(&family).bind(seconds(renewal.now.max(valid_from))).bind(sid(&family));
        renewed.execute(&mut *transaction).await?;
        let row = sqlx::query("SELECT * FROM fanfare_users WHERE email = $1").bind(&email);
        let user = user(&row.fetch_one(&mut *transaction).await?)?;
        transaction.commit().await?;
        Ok(Renewed::Good(Box::new(Login { user, family, valid_from, refresh_expires_at, salt })))
    }

    /// The login of a refresh token, if it exists.
    pub(crate) async fn login_of(&self, digest: &str) -> Result<Option<LoginRow>, StoreError> {
        let Some(pool) = self.existing().await? else { return Ok(None) };
        let row = sqlx::query(
            "SELECT s.email, s.family, s.began_at, s.access_expires_at FROM fanfare_refresh_tokens t \
             JOIN fanfare_sessions s ON s.family = t.family WHERE t.digest = $1",
        );
        let Some(row) = row.bind(digest).fetch_optional(pool).await? else { return Ok(None) };
        let (began_at, access_expires_at) = (count(&row, 2)?, count(&row, 3)?);
        Ok(Some(LoginRow { email: row.try_get(0)?, family: row.try_get(1)?, began_at, access_expires_at }))
    }

    /// Ends a login: deletes it and its refresh tokens.
    pub(crate) async fn end_login(&self, family: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let ended = sqlx::query("DELETE FROM fanfare_sessions WHERE family = $1").bind(family);
        ended.execute(&mut *transaction).await?;
        drop_renewals(&mut transaction, family).await?;
        Ok(transaction.commit().await?)
    }
}

async fn add_renewal(
    transaction: &mut Transaction<'static, Any>,
    digest: &str,
    family: &str,
    email: &str,
    expires_at: u64,
) -> Result<(), sqlx::Error> {
    let added = sqlx::query(
        "INSERT INTO fanfare_refresh_tokens (digest, family, email, expires_at, used_at) VALUES ($1, $2, $3, $4, 0)",
    );
    let added = added.bind(digest).bind(family).bind(email).bind(seconds(expires_at));
    added.execute(&mut **transaction).await?;
    Ok(())
}

/// Creates the successor of a token that is used for the first time. Only the newest salt is stored: an older token
/// and the database do not suffice to derive a newer token.
async fn use_token(
    transaction: &mut Transaction<'static, Any>,
    renewal: &Renewal<'_>,
    email: &str,
    family: &str,
) -> Result<(), sqlx::Error> {
    let used = sqlx::query("UPDATE fanfare_refresh_tokens SET used_at = $2 WHERE digest = $1");
    used.bind(renewal.digest).bind(seconds(renewal.now)).execute(&mut **transaction).await?;
    let successor = (renewal.successor)(&renewal.salt);
    add_renewal(transaction, &successor, family, email, renewal.expires_at).await?;
    let salted = sqlx::query("UPDATE fanfare_sessions SET salt = $2, expires_at = $3 WHERE family = $1");
    salted.bind(family).bind(&renewal.salt).bind(seconds(renewal.expires_at)).execute(&mut **transaction).await?;
    Ok(())
}

/// The earliest time of issue at which tokens of a user are not revoked.
async fn valid_from(transaction: &mut Transaction<'static, Any>, email: &str) -> Result<u64, sqlx::Error> {
    let row = sqlx::query(
        "SELECT COALESCE(MAX(before_secs), 0) FROM fanfare_revocations \
         WHERE (kind = 'user' AND whose = $1) OR kind = 'everyone'",
    );
    count(&row.bind(email).fetch_one(&mut **transaction).await?, 0)
}

/// Ends the logins that a revocation concerns, because their refresh tokens would outlive it. Returns whether
/// revocations were added that hubs must read.
async fn end_logins(transaction: &mut Transaction<'static, Any>, revocation: &Revocation) -> Result<bool, sqlx::Error> {
    const RETURNING: &str = "RETURNING family, renewed_at, access_expires_at";
    // A login counts with the time of its beginning: all of its later tokens derive from a revoked one.
    let (condition, before) = match revocation {
        Revocation::Token { .. } => return Ok(false),
        Revocation::User { before, .. } => ("began_at < $2 AND email = $1", *before),
        Revocation::Everyone { before } => ("began_at < $2 AND email <> $1", *before),
        Revocation::Session { .. } => ("began_at < $2 AND sid = $1", u64::MAX),
    };
    let whose = match revocation {
        Revocation::User { user, .. } => user.to_string(),
        Revocation::Session { session, .. } => format!("{session:016x}"),
        _ => String::new(),
    };
    let statement = AssertSqlSafe(format!("DELETE FROM fanfare_sessions WHERE {condition} {RETURNING}"));
    let ended = sqlx::query(statement).bind(whose).bind(seconds(before)).fetch_all(&mut **transaction).await?;
    let mut is_new = false;
    for row in ended {
        let family: String = row.try_get(0)?;
        drop_renewals(transaction, &family).await?;
        // Access tokens that were issued at or after `before` are not revoked by their age, so the login is revoked
        // too.
        if count(&row, 1)? >= before {
            let until = count(&row, 2)?.saturating_add(MAX_AHEAD_SECS);
            is_new |= revoke(transaction, &Revocation::Session { session: token_id(&family), until }).await?;
        }
    }
    Ok(is_new)
}

async fn drop_renewals(transaction: &mut Transaction<'static, Any>, family: &str) -> Result<(), sqlx::Error> {
    let dropped = sqlx::query("DELETE FROM fanfare_refresh_tokens WHERE family = $1").bind(family);
    dropped.execute(&mut **transaction).await?;
    Ok(())
}

/// The ID of a login in revocations.
fn sid(family: &str) -> String {
    format!("{:016x}", token_id(family))
}

/// Earlier versions accepted revocations in the far future, which locked a user out forever. Sets them to the present.
async fn repair(pool: &AnyPool) -> Result<(), sqlx::Error> {
    let now = crate::util::unix_secs();
    let repaired = sqlx::query(
        "UPDATE fanfare_revocations SET before_secs = $1 WHERE kind IN ('user', 'everyone') AND before_secs > $2",
    );
    repaired.bind(seconds(now + 1)).bind(seconds(now + MAX_AHEAD_SECS)).execute(pool).await?;
    Ok(())
}

/// Creates a file that only its owner can read.
fn create_private(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// Stores a revocation. Returns whether that changed anything.
async fn revoke(transaction: &mut Transaction<'static, Any>, revocation: &Revocation) -> Result<bool, sqlx::Error> {
    let (kind, whose, before) = match revocation {
        Revocation::User { user, before } => ("user", user.to_string(), *before),
        Revocation::Token { token } => ("token", format!("{token:016x}"), 0),
        Revocation::Session { session, until } => ("session", format!("{session:016x}"), *until),
        Revocation::Everyone { before } => ("everyone", String::new(), *before),
    };
    let kept = sqlx::query(
        "INSERT INTO fanfare_revocations (kind, whose, before_secs) VALUES ($1, $2, $3) ON CONFLICT (kind, whose) DO \
         UPDATE SET before_secs = $3 WHERE fanfare_revocations.before_secs < $3",
    );
    let kept = kept.bind(kind).bind(whose).bind(seconds(before)).execute(&mut **transaction).await?;
    Ok(kept.rows_affected() > 0)
}

/// Revokes tokens issued before a time. If they are revoked already, revokes one more second.
async fn revoke_past(
    transaction: &mut Transaction<'static, Any>,
    kind: &str,
    whose: &str,
    before: u64,
) -> Result<(), sqlx::Error> {
    let revoked = sqlx::query(
        "INSERT INTO fanfare_revocations (kind, whose, before_secs) VALUES ($1, $2, $3) \
         ON CONFLICT (kind, whose) DO UPDATE SET before_secs = \
         CASE WHEN fanfare_revocations.before_secs < $3 THEN $3 ELSE fanfare_revocations.before_secs + 1 END",
    );
    revoked.bind(kind).bind(whose).bind(seconds(before)).execute(&mut **transaction).await?;
    Ok(())
}

async fn increment_revision(transaction: &mut Transaction<'static, Any>) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE fanfare_revision SET revision = revision + 1").execute(&mut **transaction).await?;
    Ok(())
}

fn user(row: &AnyRow) -> Result<User, StoreError> {
    let role: String = row.try_get("role")?;
    let topics: String = row.try_get("topics")?;
    Ok(User {
        email: row.try_get("email")?,
        password: row.try_get("password")?,
        role: role.parse().map_err(|()| unexpected_value("role"))?,
        topics: topics.lines().map(str::to_owned).collect(),
        disabled: row.try_get::<i64, _>("disabled")? != 0,
        created_at: u64::try_from(row.try_get::<i64, _>("created_at")?).unwrap_or(0),
    })
}

fn unexpected_value(column: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the column {column} has a value that fanfare did not write").into())
}

fn count(row: &AnyRow, column: usize) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

/// Converts to the signed integers of SQL.
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

    fn ann() -> User {
        User {
            email: "ann@example.org".to_owned(),
            password: "the hash of one".to_owned(),
            role: Role::Publisher,
            topics: vec!["a".to_owned(), "b*".to_owned()],
            disabled: false,
            created_at: 1,
        }
    }

    async fn with(user: &User) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(DatabaseUrl::File(directory.path().join("accounts.db")));
        assert!(store.add_user(user).await.unwrap());
        (directory, store)
    }

    async fn renew(store: &Store, digest: &str, salt: &str, now: u64) -> Renewed {
        let successor = |salt: &str| format!("{digest}+{salt}");
        let salt = salt.to_owned();
        let renewal = Renewal {
            digest,
            successor: &successor,
            salt,
            now,
            expires_at: 100,
            access_expires_at: 50,
            grace_secs: 10,
        };
        store.renew(&renewal).await.unwrap()
    }

    fn salt(renewed: Renewed) -> String {
        match renewed {
            Renewed::Good(login) => login.salt,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_login_fails_if_the_account_changed_meanwhile() {
        let user = ann();
        let (_home, store) = with(&user).await;
        let begin = async |digest: &str| store.begin_login(digest, digest, &user, 1, [50, 100]).await.unwrap();
        assert!(begin("1").await.is_some());
        for change in [
            User { password: "the hash of another".to_owned(), ..user.clone() },
            User { role: Role::Viewer, ..user.clone() },
            User { topics: vec!["a".to_owned()], ..user.clone() },
            User { disabled: true, ..user.clone() },
        ] {
            assert!(store.change_user(&change, 1).await.unwrap());
            assert_eq!(begin("2").await, None, "{change:?}");
            for token in ["1", "2"] {
                assert_eq!(renew(&store, token, "s", 5).await, Renewed::Unknown, "{change:?}");
            }
            // Unchanged again, so a new login succeeds.
            assert!(store.change_user(&user, 1).await.unwrap());
            assert!(begin("1").await.is_some());
        }
        assert!(store.remove_user(&user.email, 1).await.unwrap());
        assert_eq!(begin("2").await, None);
        // Each of the nine changes revoked the tokens issued after the previous one, all in one second.
        let user: std::sync::Arc<str> = user.email.as_str().into();
        assert_eq!(store.revocations().await.unwrap(), [Revocation::User { user: user.clone(), before: 9 }]);
        assert!(!store.remove_user(&user, 100).await.unwrap());
        assert_eq!(store.revocations().await.unwrap(), [Revocation::User { user, before: 100 }]);
    }

    // attack: make an account or an access key of a removed one's name within the same second => told apart by its time
    #[tokio::test]
    async fn a_recreated_account_or_key_has_a_later_time_of_creation() {
        let user = ann();
        let (_home, store) = with(&user).await;
        let key = |digest| Key { name: "root".to_owned(), digest: [digest; 32], admin: false, created_at: 1 };
        let (mut users, mut keys) = (Vec::new(), Vec::new());
        for round in 0..4 {
            assert!(store.add_key(&key(round)).await.unwrap());
            users.push(store.user(&user.email).await.unwrap().unwrap().created_at);
            keys.push(store.keys().await.unwrap()[0].created_at);
            assert!(store.remove_key("root").await.unwrap());
            assert!(store.remove_user(&user.email, 2).await.unwrap());
            assert!(store.add_user(&user).await.unwrap());
        }
        assert_eq!((users, keys), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
        let revocations = store.revocations().await.unwrap();
        let of_keys = |revocation: &&Revocation| matches!(revocation, Revocation::Token { .. });
        assert_eq!((revocations.len(), revocations.iter().filter(of_keys).count()), (5, 4));
        let later = User { created_at: 9, ..user };
        assert!(store.remove_user(&later.email, 9).await.unwrap() && store.add_user(&later).await.unwrap());
        assert_eq!(store.user(&later.email).await.unwrap(), Some(later));
    }

    // attack: present a used refresh token to fork its login => the same successor within 10 s, the end of the login otherwise
    #[tokio::test]
    async fn a_refresh_token_has_one_successor() {
        let user = ann();
        let (_home, store) = with(&user).await;
        store.begin_login("1", "f", &user, 1, [50, 100]).await.unwrap().unwrap();
        assert_eq!(salt(renew(&store, "1", "a", 20).await), "a");
        assert_eq!(salt(renew(&store, "1", "b", 30).await), "a", "the same within the grace period");
        let replayed = Renewed::Replayed { family: "f".to_owned() };
        assert_eq!(renew(&store, "1", "c", 31).await, replayed, "not after the grace period");
        assert_eq!(salt(renew(&store, "1+a", "d", 30).await), "d");
        assert_eq!(renew(&store, "1", "e", 30).await, replayed, "not once the successor was used");
        assert_eq!(renew(&store, "1+b", "e", 30).await, Renewed::Unknown, "no other successor exists");
        store.end_login("f").await.unwrap();
        for token in ["1", "1+a", "1+a+d"] {
            assert_eq!(renew(&store, token, "g", 31).await, Renewed::Unknown, "{token}");
        }
    }

    // attack: refresh a login that began before a revocation => refused, and what was issued since is revoked with it
    #[tokio::test]
    async fn a_revocation_ends_earlier_logins() {
        let of_user = |before| Revocation::User { user: ann().email.into(), before };
        let session = Revocation::Session { session: token_id("f"), until: 50 + MAX_AHEAD_SECS };
        for (revocation, ends, more) in [
            (of_user(30), true, None),
            (of_user(11), true, Some(session.clone())),
            (of_user(10), false, None),
            (Revocation::User { user: "bob".into(), before: 30 }, false, None),
            (Revocation::Everyone { before: 11 }, true, Some(session.clone())),
            (Revocation::Everyone { before: 10 }, false, None),
            (Revocation::Session { session: token_id("f"), until: 60 }, true, None),
            (Revocation::Session { session: token_id("g"), until: 60 }, false, None),
            (Revocation::Token { token: 7 }, false, None),
        ] {
            let user = ann();
            let (_home, store) = with(&user).await;
            store.begin_login("1", "f", &user, 10, [50, 100]).await.unwrap().unwrap();
            assert_eq!(salt(renew(&store, "1", "a", 20).await), "a");
            let revision = store.revision().await.unwrap();
            store.revoke(&revocation).await.unwrap();
            assert!(store.revision().await.unwrap() > revision, "hubs must read it");
            let renewed = renew(&store, "1+a", "b", 21).await;
            assert_eq!(renewed == Renewed::Unknown, ends, "{revocation:?} {renewed:?}");
            let kept = store.revocations().await.unwrap();
            assert!(kept.contains(&revocation) && kept.len() == 1 + usize::from(more.is_some()), "{kept:?}");
            assert!(more.is_none_or(|more| kept.contains(&more)), "{kept:?}");
        }
    }

    // attack: a login that is written down just as its user's tokens are revoked => cannot be refreshed
    #[tokio::test]
    async fn a_login_older_than_a_revocation_is_not_renewed_even_if_its_row_exists() {
        let user = ann();
        let (_home, store) = with(&user).await;
        store.revoke(&Revocation::User { user: user.email.as_str().into(), before: 30 }).await.unwrap();
        let login = store.begin_login("1", "f", &user, 10, [50, 100]).await.unwrap().unwrap();
        assert_eq!(login.valid_from, 30, "a new login counts as later");
        assert_eq!(salt(renew(&store, "1", "a", 31).await), "a");
        let older = sqlx::query("UPDATE fanfare_sessions SET began_at = 29");
        older.execute(store.pool().await.unwrap()).await.unwrap();
        assert_eq!(renew(&store, "1+a", "b", 32).await, Renewed::Unknown);
    }

    #[tokio::test]
    async fn a_revocation_in_the_far_future_is_set_to_the_present_at_startup() {
        let user = ann();
        let (home, store) = with(&user).await;
        let ann: std::sync::Arc<str> = user.email.into();
        store.revoke(&Revocation::User { user: ann, before: 9_999_999_999 }).await.unwrap();
        let store = Store::new(DatabaseUrl::File(home.path().join("accounts.db")));
        let now = crate::util::unix_secs();
        match &store.revocations().await.unwrap()[..] {
            [Revocation::User { before, .. }] => assert!(before.abs_diff(now) < 600, "{before}"),
            other => panic!("{other:?}"),
        }
    }
}
