//! Logging in: a password, or a refresh token, for an access token.

use super::{
    Store, StoreError, User, email,
    password::{MAX_BYTES, Passwords},
    store::{Renewal, hex},
};
use crate::{commands::access::random_id, settings::Settings};
use aws_lc_rs::{digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare::{Hub, Minter, auth::Claims};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What a refresh token begins with, so that it is told from others, and found where it leaked.
const RENEWAL_PREFIX: &str = "ffr_";

/// How long a used refresh token may be shown again, in seconds.
const GRACE_SECS: u64 = 10;

/// How many attempts are remembered here before those that no longer matter are dropped.
const MANY: usize = 10_000;

/// Lets people in.
#[derive(Debug)]
pub(crate) struct Logins {
    store: Arc<Store>,
    passwords: Passwords,
    minter: Minter,
    hub: Hub,
    settings: Settings,
    /// The attempts that this process has seen, so that a flood of them does not reach the database.
    attempts: Mutex<HashMap<String, u64>>,
}

/// Somebody was let in.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) access_token: String,
    pub(crate) expires_in: u64,
    pub(crate) refresh_token: String,
    pub(crate) refresh_expires_in: u64,
    pub(crate) user: User,
}

/// Somebody was not let in. None says whether there is such an account.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("the e-mail address or the password is wrong")]
    Wrong,
    #[error("the refresh token has ended, or was used before; log in again")]
    WrongRenewal,
    #[error("too many attempts; try again in {} s", retry_after.as_secs().max(1))]
    TooMany { retry_after: Duration },
    #[error("too many people log in at this moment; try again")]
    Busy,
    #[error("nobody can log in now: {0}")]
    Unavailable(#[from] StoreError),
    #[error("nobody can log in now: {0}")]
    Failed(#[from] anyhow::Error),
}

impl Logins {
    pub(crate) fn new(store: Arc<Store>, minter: Minter, hub: Hub, settings: Settings) -> Self {
        Self { store, passwords: Passwords::new(), minter, hub, settings, attempts: Mutex::default() }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Lets somebody in by password. It takes as long for an account that is not there.
    pub(crate) async fn login(&self, from: IpAddr, address: &str, password: String) -> Result<Session, LoginError> {
        // What can be no address is none of anybody's account, and counts as one.
        let account = email(address).unwrap_or_default();
        self.limit(from, Some(&account)).await?;
        let user = self.store.user(&account).await?;
        if password.len() > MAX_BYTES {
            return Err(LoginError::Wrong);
        }
        let kept = user.as_ref().map(|user| user.password.clone());
        let right = self.passwords.check(password, kept).await.map_err(|_| LoginError::Busy)?;
        match user.filter(|user| right && !user.disabled) {
            Some(user) => self.session(user, &random_id()?).await?.ok_or(LoginError::Wrong),
            None => Err(LoginError::Wrong),
        }
    }

    /// Lets somebody in who was let in before.
    pub(crate) async fn renew(&self, from: IpAddr, token: &str) -> Result<Session, LoginError> {
        self.limit(from, None).await?;
        match self.store.use_renewal(&digest_of(token), now_ms() / 1_000, GRACE_SECS).await? {
            Renewal::Of { email, family } => {
                let user = self.store.user(&email).await?.filter(|user| !user.disabled);
                let session = self.session(user.ok_or(LoginError::WrongRenewal)?, &family).await?;
                session.ok_or(LoginError::WrongRenewal)
            }
            Renewal::Replayed => {
                tracing::warn!(%from, "a refresh token was used twice: all that came of its login have ended");
                Err(LoginError::WrongRenewal)
            }
            Renewal::Unknown => Err(LoginError::WrongRenewal),
        }
    }

    /// Ends what a login has given, except access tokens, which end by themselves.
    pub(crate) async fn logout(&self, from: IpAddr, token: &str) -> Result<(), LoginError> {
        self.limit(from, None).await?;
        if let Some(family) = self.store.family_of(&digest_of(token)).await? {
            self.store.end_family(&family).await?;
        }
        Ok(())
    }

    /// None: whoever it is was changed or disabled since, and what that ended would live on in these tokens.
    async fn session(&self, user: User, family: &str) -> Result<Option<Session>, LoginError> {
        let now = now_ms() / 1_000;
        let expires_in = self.settings.access_token_expire_minutes.saturating_mul(60);
        let refresh_expires_in = self.settings.refresh_token_expire_days.saturating_mul(86_400);
        // A token of the second in which older ones were revoked would count as one of them.
        let issued_at = now.max(self.hub.believed_from(&user.email));
        let claims = Claims {
            sub: user.email.clone(),
            iat: Some(issued_at),
            exp: Some(now.saturating_add(expires_in)),
            jti: Some(random_id()?),
            iss: self.settings.token_issuer.clone(),
            aud: self.settings.token_audience.clone(),
            publish: user.role.may_publish(),
            admin: user.role == super::Role::Admin,
            topics: user.topics.clone(),
        };
        let refresh_token = renewal()?;
        let ends = now.saturating_add(refresh_expires_in);
        if !self.store.add_renewal(&digest_of(&refresh_token), family, &user, ends).await? {
            return Ok(None);
        }
        let access_token = self.minter.mint(&claims);
        Ok(Some(Session { access_token, expires_in, refresh_token, refresh_expires_in, user }))
    }

    /// Counts an attempt against its address and its account.
    async fn limit(&self, from: IpAddr, account: Option<&str>) -> Result<(), LoginError> {
        let now = now_ms();
        let by_address = (format!("address {from}"), self.settings.logins_per_minute_per_address);
        let by_account =
            account.map(|account| (format!("account {account}"), self.settings.logins_per_minute_per_account));
        for (who, rate) in [by_address].into_iter().chain(by_account).filter(|(_, rate)| *rate > 0) {
            let (every_ms, burst_ms) = ((60_000 / u64::from(rate)).max(1), 60_000);
            let mut wait_ms = self.attempt_here(&who, now, every_ms, burst_ms);
            if wait_ms.is_none() {
                wait_ms = self.store.attempt(&who, now, every_ms, burst_ms).await?;
            }
            if let Some(ms) = wait_ms {
                return Err(LoginError::TooMany { retry_after: Duration::from_millis(ms.next_multiple_of(1_000)) });
            }
        }
        Ok(())
    }

    fn attempt_here(&self, who: &str, now: u64, every_ms: u64, burst_ms: u64) -> Option<u64> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() >= MANY {
            attempts.retain(|_, pace| *pace > now);
        }
        let pace = attempts.get(who).copied().unwrap_or(0).max(now) + every_ms;
        if pace > now + burst_ms {
            return Some(pace - now - burst_ms);
        }
        attempts.insert(who.to_owned(), pace);
        None
    }
}

/// A new refresh token.
fn renewal() -> anyhow::Result<String> {
    let mut secret = [0; 32];
    rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    Ok(format!("{RENEWAL_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)))
}

fn digest_of(token: &str) -> String {
    hex(digest::digest(&digest::SHA256, token.as_bytes()).as_ref())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
