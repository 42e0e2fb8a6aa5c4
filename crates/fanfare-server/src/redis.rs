//! The Redis URL with its certificates. The files are read when a process starts, so a rolling restart (SIGHUP) loads
//! renewed ones.

use crate::settings::Settings;
use anyhow::Context;
use fanfare::broker::redis::{RedisTls, RedisUrl};
use std::{fs, path::Path};

/// The URL with its certificates, if the log is in Redis.
pub(crate) fn url(settings: &Settings) -> anyhow::Result<Option<RedisUrl>> {
    let Some(url) = settings.redis_url.clone() else { return Ok(None) };
    if !url.ignored().is_empty() {
        tracing::warn!("redis_url (REDIS_URL) has parts that the hub ignores: {}", url.ignored().join(", "));
    }
    let authorities = read("redis_ca_file", settings.redis_ca_file.as_deref())?;
    let certificate = read("redis_certificate_file", settings.redis_certificate_file.as_deref())?;
    let key = read("redis_key_file", settings.redis_key_file.as_deref())?;
    let identity = certificate.as_deref().zip(key.as_deref());
    if authorities.is_none() && identity.is_none() {
        return Ok(Some(url));
    }
    let tls = RedisTls::new(authorities.as_deref(), identity)
        .context("redis_ca_file, redis_certificate_file and redis_key_file")?;
    Ok(Some(url.with_tls(tls)))
}

fn read(setting: &str, path: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("{setting}: {}", path.display()));
    path.map(read).transpose()
}
