//! The text that the hub prints at startup: its address, and commands to try it.
//!
//! Tokens are printed only if they become invalid with this run. Tokens of a configured secret must not reach a log.

use super::listener::reachable;
use crate::{access::dated, keyring::Keyring, settings::Settings};
use fanfare::auth::Claims;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

/// Lifetime of the printed tokens. The secret is discarded with the process in any case.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3_600);

const SAMPLE: &str = concat!(
    r#"{"type":"task_status_update","audience":"everyone","#,
    r#""data":{"task_id":"t1","status":"in_progress","progress":50}}"#
);

pub(super) struct Banner<'a> {
    pub(super) address: SocketAddr,
    pub(super) settings: &'a Settings,
    pub(super) keyring: &'a Keyring,
}

impl Banner<'_> {
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let text = self.text()?;
        // Standard error may be closed already.
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
        let _ = match (&self.keyring.generated, &self.keyring.minter) {
            (Some(_), Some(minter)) => {
                let all = vec!["*".to_owned()];
                let page = Claims { sub: "demo".to_owned(), publish: true, topics: all, ..Claims::default() };
                let curl = Claims { sub: "curl".to_owned(), publish: true, ..Claims::default() };
                let page = minter.mint(&dated(page, TOKEN_LIFETIME, self.settings)?);
                let curl = minter.mint(&dated(curl, TOKEN_LIFETIME, self.settings)?);
                write!(
                    text,
                    "Open the live page:\n\n  {url}/#token={page}\n\n\
                     Publish an event to it:\n\n  {}\n\n\
                     SECRET_KEY is not set: a random secret was generated for this run. These tokens expire with it.\n\
                     To create tokens yourself, set a secret: SECRET_KEY=$(openssl rand -hex 32)\n\n",
                    curl_line(&url, &curl)
                )
            }
            (_, None) => write!(text, "Tokens are issued elsewhere, and verified with the configured public keys.\n\n"),
            (None, Some(_)) => write!(
                text,
                "Tokens are signed with the configured key. Create one for the live page at {url}/\n\
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
    fn tokens_of_a_generated_secret_are_printed() {
        let (address, settings) = ("0.0.0.0:8000".parse().unwrap(), Settings::default());
        let keyring = Keyring::load_or_generate(&settings).unwrap();
        let text = Banner { address, settings: &settings, keyring: &keyring }.text().unwrap();
        assert!(text.contains("http://127.0.0.1:8000/#token=ey"), "{text}");
        assert!(text.contains("curl -X POST http://127.0.0.1:8000/events -H 'Authorization: Bearer ey"), "{text}");
        assert!(text.contains("random secret was generated for this run"), "{text}");
    }

    #[test]
    fn tokens_of_a_configured_secret_are_not_printed() {
        let settings = Settings { secret_key: Some(Secret::new(&"hush".repeat(8))), ..Settings::default() };
        let address = "127.0.0.1:8000".parse().unwrap();
        let keyring = Keyring::load_or_generate(&settings).unwrap();
        let text = Banner { address, settings: &settings, keyring: &keyring }.text().unwrap();
        assert!(!text.contains("ey") || !text.contains("=ey") && !text.contains("Bearer ey"), "{text}");
        assert!(!text.contains("hush") && text.contains("fanfare token --sub demo"), "{text}");
    }
}
