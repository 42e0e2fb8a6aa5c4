//! Logins: exchange a password or a refresh token for an access token.

use super::{
    Store, StoreError, User, email,
    password::{MAX_BYTES, Passwords},
    store::{Login, LoginRow, Renewal, Renewed, hex},
};
use crate::{settings::Settings, util::random_id};
use aws_lc_rs::{digest, hmac, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare::{
    Grant, Hub, Minter, Revocation,
    auth::{CLOCK_TOLERANCE_SECS, Claims, token_id},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The prefix of refresh tokens, which distinguishes them from other tokens and makes leaked ones searchable.
const RENEWAL_PREFIX: &str = "ffr_";

/// How long a used refresh token may be presented again, in seconds.
const GRACE_SECS: u64 = 10;

/// The limit of an account from all addresses together, as a multiple of its limit from one address.
const ALL_ADDRESSES_FACTOR: u32 = 10;

/// How long an address from which an account has logged in is remembered.
const KNOWN_MS: u64 = 30 * 86_400_000;

/// Number of attempts in memory beyond which expired ones are dropped.
const MAX_ATTEMPTS: usize = 10_000;

/// Performs logins.
#[derive(Debug)]
pub(crate) struct Logins {
    store: Arc<Store>,
    passwords: Passwords,
    minter: Minter,
    hub: Hub,
    settings: Settings,
    /// The attempts that this process has counted, so that a flood does not reach the database.
    attempts: Mutex<HashMap<String, u64>>,
}

/// The result of a login.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) access_token: String,
    pub(crate) expires_in: u64,
    pub(crate) refresh_token: String,
    pub(crate) refresh_expires_in: u64,
    pub(crate) user: User,
}

/// A failed login. No error reveals whether the account exists.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("the e-mail address or the password is wrong")]
    Wrong,
    #[error("the refresh token has expired or was used before; log in again")]
    WrongRenewal,
    #[error("too many attempts; try again in {} s", retry_after.as_secs().max(1))]
    TooMany { retry_after: Duration },
    #[error("too many logins at this moment; try again")]
    Busy,
    #[error("logins are currently unavailable: {0}")]
    Unavailable(#[from] StoreError),
    #[error("logins are currently unavailable: {0}")]
    Failed(#[from] anyhow::Error),
}

impl Logins {
    pub(crate) fn new(store: Arc<Store>, minter: Minter, hub: Hub, settings: Settings) -> Self {
        Self { store, passwords: Passwords::new(), minter, hub, settings, attempts: Mutex::default() }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Logs in by password. It takes the same time for an unknown account.
    pub(crate) async fn login(&self, from: IpAddr, address: &str, password: String) -> Result<Session, LoginError> {
        // Invalid addresses share one limit. No account has the empty address.
        let account = email(address).unwrap_or_default();
        self.limit(from, Some(&account)).await?;
        let user = self.store.user(&account).await?;
        if password.len() > MAX_BYTES {
            return Err(LoginError::Wrong);
        }
        let hash = user.as_ref().map(|user| user.password.clone());
        let correct = self.passwords.check(password, hash).await.map_err(|_| LoginError::Busy)?;
        let user = user.filter(|user| correct && !user.disabled).ok_or(LoginError::Wrong)?;
        let (token, family, now) = (renewal()?, random_id()?, now_ms() / 1_000);
        let ends = [self.access_expires_at(now), self.refresh_expires_at(now)];
        // None: the account was changed or disabled in the meantime. These tokens would outlive that change.
        let login = self.store.begin_login(&digest_of(&token), &family, &user, now, ends).await?;
        let login = login.ok_or(LoginError::Wrong)?;
        self.store.remember(&known_address(from, &account), now_ms() + KNOWN_MS).await?;
        self.session(login, token, now)
    }

    /// Logs in by refresh token.
    pub(crate) async fn renew(&self, from: IpAddr, token: &str) -> Result<Session, LoginError> {
        self.limit(from, None).await?;
        let (digest, now) = (digest_of(token), now_ms() / 1_000);
        let Some(row) = self.store.login_of(&digest).await? else { return Err(LoginError::WrongRenewal) };
        if self.hub.is_revoked(&row.as_grant()) {
            // A hub with another database may have sent the revocation through the log only.
            self.store.end_login(&row.family).await?;
            return Err(LoginError::WrongRenewal);
        }
        let renewal = Renewal {
            digest: &digest,
            successor: &|salt| digest_of(&successor(token, salt)),
            salt: salt()?,
            now,
            expires_at: self.refresh_expires_at(now),
            access_expires_at: self.access_expires_at(now),
            grace_secs: GRACE_SECS,
        };
        match self.store.renew(&renewal).await? {
            Renewed::Good(login) => {
                let token = successor(token, &login.salt);
                self.session(*login, token, now)
            }
            Renewed::Replayed { .. } => {
                tracing::warn!(%from, "a refresh token was used twice; its login and all of its tokens are revoked");
                self.end(&row).await?;
                Err(LoginError::WrongRenewal)
            }
            Renewed::Unknown => Err(LoginError::WrongRenewal),
        }
    }

    /// Ends a login: its refresh tokens, its access tokens, and the connections that were opened with them.
    pub(crate) async fn logout(&self, from: IpAddr, token: &str) -> Result<(), LoginError> {
        self.limit(from, None).await?;
        match self.store.login_of(&digest_of(token)).await? {
            Some(login) => self.end(&login).await,
            None => Ok(()),
        }
    }

    async fn end(&self, login: &LoginRow) -> Result<(), LoginError> {
        self.store.end_login(&login.family).await?;
        // A concurrent renewal may still issue an access token.
        let last = login.access_expires_at.max(self.access_expires_at(now_ms() / 1_000));
        let until = last + self.settings.leeway.as_secs() + CLOCK_TOLERANCE_SECS;
        let revocation = Revocation::Session { session: token_id(&login.family), until };
        self.hub.revoke(revocation).await.map_err(|error| LoginError::Failed(error.into()))
    }

    fn session(&self, login: Login, refresh_token: String, now: u64) -> Result<Session, LoginError> {
        let Login { user, family, valid_from, refresh_expires_at, .. } = login;
        let expires_at = self.access_expires_at(now);
        let claims = Claims {
            sub: user.email.clone(),
            // Never in the second of a revocation, which would revoke the new token too.
            iat: Some(now.max(valid_from).max(self.hub.tokens_valid_from(&user.email))),
            exp: Some(expires_at),
            jti: Some(random_id()?),
            sid: Some(family),
            // Earlier events belong to a previous account with the same address.
            replay_from: Some(user.created_at + 1),
            iss: self.settings.token_issuer.clone(),
            aud: self.settings.token_audience.clone(),
            publish: user.role.may_publish(),
            admin: user.role == super::Role::Admin,
            topics: user.topics.clone(),
        };
        let (expires_in, refresh_expires_in) = (expires_at - now, refresh_expires_at.saturating_sub(now));
        Ok(Session { access_token: self.minter.mint(&claims), expires_in, refresh_token, refresh_expires_in, user })
    }

    fn access_expires_at(&self, now: u64) -> u64 {
        now.saturating_add(self.settings.access_token_expire_minutes.saturating_mul(60))
    }

    fn refresh_expires_at(&self, now: u64) -> u64 {
        now.saturating_add(self.settings.refresh_token_expire_days.saturating_mul(86_400))
    }

    /// Counts an attempt for its address, for its account from this address, and for its account from all unknown
    /// addresses. Addresses from which the account has logged in are exempt from the last limit, so that attempts from
    /// elsewhere do not lock the owner out.
    async fn limit(&self, from: IpAddr, account: Option<&str>) -> Result<(), LoginError> {
        let (per_address, per_account) =
            (self.settings.logins_per_minute_per_address, self.settings.logins_per_minute_per_account);
        self.count(format!("address {from}"), per_address).await?;
        let Some(account) = account else { return Ok(()) };
        self.count(format!("account {account} from {from}"), per_account).await?;
        if per_account > 0 && !self.store.remembers(&known_address(from, account), now_ms()).await? {
            self.count(format!("account {account}"), per_account.saturating_mul(ALL_ADDRESSES_FACTOR)).await?;
        }
        Ok(())
    }

    /// `rate` is in attempts a minute. 0: no limit.
    async fn count(&self, key: String, rate: u32) -> Result<(), LoginError> {
        if rate == 0 {
            return Ok(());
        }
        let (now, every_ms, burst_ms) = (now_ms(), (60_000 / u64::from(rate)).max(1), 60_000);
        let mut wait_ms = self.attempt_in_memory(&key, now, every_ms, burst_ms);
        if wait_ms.is_none() {
            wait_ms = self.store.attempt(&key, now, every_ms, burst_ms).await?;
        }
        match wait_ms {
            Some(ms) => Err(LoginError::TooMany { retry_after: Duration::from_millis(ms.next_multiple_of(1_000)) }),
            None => Ok(()),
        }
    }

    fn attempt_in_memory(&self, key: &str, now: u64, every_ms: u64, burst_ms: u64) -> Option<u64> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() >= MAX_ATTEMPTS {
            attempts.retain(|_, next_allowed| *next_allowed > now);
        }
        let next_allowed = attempts.get(key).copied().unwrap_or(0).max(now) + every_ms;
        if next_allowed > now + burst_ms {
            return Some(next_allowed - now - burst_ms);
        }
        attempts.insert(key.to_owned(), next_allowed);
        None
    }
}

/// The first refresh token of a login.
fn renewal() -> anyhow::Result<String> {
    Ok(format!("{RENEWAL_PREFIX}{}", URL_SAFE_NO_PAD.encode(random()?)))
}

/// Derives the next refresh token from a token and a salt. The database stores the salt and no token, so neither of the
/// two suffices alone.
fn successor(token: &str, salt: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    let tag = hmac::sign(&key, format!("fanfare refresh token {salt}").as_bytes());
    format!("{RENEWAL_PREFIX}{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn salt() -> anyhow::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random()?))
}

fn random() -> anyhow::Result<[u8; 32]> {
    let mut secret = [0; 32];
    rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("failed to generate a random secret"))?;
    Ok(secret)
}

/// The key of a known address. The hash hides both the address and the account.
fn known_address(from: IpAddr, account: &str) -> String {
    format!("known {}", digest_of(&format!("{account} {from}")))
}

impl LoginRow {
    /// The grant of a token as old as the login, to check it against revocations.
    fn as_grant(&self) -> Grant {
        Grant {
            user: self.email.as_str().into(),
            issued_at: Some(self.began_at),
            session: Some(token_id(&self.family)),
            ..Grant::default()
        }
    }
}

fn digest_of(token: &str) -> String {
    hex(digest::digest(&digest::SHA256, token.as_bytes()).as_ref())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
