//! What the server says when it starts: where it is, and how to try it out.
//!
//! Tokens are printed only if they are worthless after this run: what a configured secret signs must not end up in a
//! log.

use super::listener::reachable;
use crate::{commands::access::dated, keyring::Keyring, settings::Settings};
use fanfare::auth::Claims;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

/// Longer than anybody tries something out; the secret ends with the process anyway.
const TRIAL: Duration = Duration::from_secs(24 * 3_600);

const SAMPLE: &str = r#"{"type":"task_status_update","audience":"everyone","data":{"task_id":"t1","status":"in_progress","progress":50}}"#;

pub(super) struct Banner<'a> {
    pub(super) address: SocketAddr,
    pub(super) settings: &'a Settings,
    pub(super) keyring: &'a Keyring,
}

impl Banner<'_> {
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let text = self.text()?;
        // Whoever started the server may not be listening any more.
        let _ = io::stderr().write_all(text.as_bytes());
        Ok(())
    }

    fn text(&self) -> anyhow::Result<String> {
        let scheme = if self.settings.tls_certificate_file.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", reachable(self.address));
        let version = env!("CARGO_PKG_VERSION");
        let log = self.settings.redis_url.as_ref().map_or_else(|| "memory".to_owned(), |url| format!("Redis at {url}"));
        let mut text = format!("fanfare {version} listens on {}. The log is in {log}.\n\n", self.address);
        // Writing to a string can't fail.
        let _ = match (&self.keyring.made, &self.keyring.minter) {
            (Some(_), Some(minter)) => {
                let all = vec!["*".to_owned()];
                let page = Claims { sub: "demo".to_owned(), publish: true, topics: all, ..Claims::default() };
                let curl = Claims { sub: "curl".to_owned(), publish: true, ..Claims::default() };
                let page = minter.mint(&dated(page, TRIAL, self.settings)?);
                let curl = minter.mint(&dated(curl, TRIAL, self.settings)?);
                write!(
                    text,
                    "Open the live page:\n\n  {url}/#token={page}\n\n\
                     Publish an event, and see it there:\n\n  {}\n\n\
                     There is no SECRET_KEY, so a random secret was made for this run: these tokens are worth nothing after \
                     it.\nTo make tokens of your own, set one: SECRET_KEY=$(openssl rand -hex 32)\n\n",
                    curl_line(&url, &curl)
                )
            }
            (_, None) => write!(text, "Tokens are made elsewhere, and verified with the configured public keys.\n\n"),
            (None, Some(_)) => write!(
                text,
                "Tokens are signed with the configured key. Make one for the live page at {url}/\n\
                 and for publishing, with the same settings:\n\n  \
                 TOKEN=$(fanfare token --sub demo --publish --topics '*')\n  \
                 echo \"{url}/#token=$TOKEN\"\n  {}\n\n",
                curl_line(&url, "'\"$TOKEN\"'")
            ),
        };
        let _ = writeln!(text, "HTTP API: {url}/docs   Health: {url}/ws/health   Settings: fanfare settings\n");
        Ok(text)
    }
}

fn curl_line(url: &str, token: &str) -> String {
    format!(
        "curl -X POST {url}/events -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d '{SAMPLE}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::kind::Secret;

    #[test]
    fn a_secret_of_this_run_gives_tokens() {
        let (address, settings) = ("0.0.0.0:8000".parse().unwrap(), Settings::default());
        let keyring = Keyring::load_or_make(&settings).unwrap();
        let text = Banner { address, settings: &settings, keyring: &keyring }.text().unwrap();
        assert!(text.contains("http://127.0.0.1:8000/#token=ey"), "{text}");
        assert!(text.contains("curl -X POST http://127.0.0.1:8000/events -H 'Authorization: Bearer ey"), "{text}");
        assert!(text.contains("random secret was made for this run"), "{text}");
    }

    #[test]
    fn a_configured_secret_gives_none() {
        let settings = Settings { secret_key: Some(Secret::new(&"hush".repeat(8))), ..Settings::default() };
        let address = "127.0.0.1:8000".parse().unwrap();
        let keyring = Keyring::load_or_make(&settings).unwrap();
        let text = Banner { address, settings: &settings, keyring: &keyring }.text().unwrap();
        assert!(!text.contains("ey") || !text.contains("=ey") && !text.contains("Bearer ey"), "{text}");
        assert!(!text.contains("hush") && text.contains("fanfare token --sub demo"), "{text}");
    }
}
