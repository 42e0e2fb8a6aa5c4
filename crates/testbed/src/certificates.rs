//! Certificates as files, for servers that share them.

use crate::Authority;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// The certificates of servers, and of their clients where the servers require some.
#[derive(Debug, Clone)]
pub struct Certificates {
    home: Arc<TempDir>,
    /// Clients must present a certificate.
    clients: bool,
    /// The certificates have expired.
    expired: bool,
}

impl Certificates {
    /// Certificates issued by a new authority. `clients`: whether clients must present one too.
    pub fn issued(clients: bool) -> Self {
        let home = home();
        let authority = Authority::new();
        authority.issue(home.path(), 90);
        authority.issue_client(home.path());
        Self { home, clients, expired: false }
    }

    /// A self-signed certificate that is also its own authority. `is_authority`: as created by `openssl req -x509`.
    pub fn self_signed(is_authority: bool, days: i64) -> Self {
        let home = home();
        Authority::self_signed(home.path(), is_authority, days);
        Self { home, clients: false, expired: days < 0 }
    }

    /// The path of the authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// The path of the client certificate.
    pub fn client(&self) -> PathBuf {
        self.file("client.pem")
    }

    /// The path of the client's key.
    pub fn client_key(&self) -> PathBuf {
        self.file("client.key")
    }

    /// The configuration of a Redis or a sentinel that accepts only TLS.
    pub(crate) fn lines(&self, port: u16) -> String {
        let file = |name| self.file(name).display().to_string();
        format!(
            "port 0\ntls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients {}\n\
             tls-replication yes\n",
            file("server.pem"),
            file("server.key"),
            file("ca.pem"),
            if self.clients { "yes" } else { "no" }
        )
    }

    /// The arguments with which `redis-cli` connects to it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--tls".to_owned(), "--cacert".to_owned(), self.authority().display().to_string()];
        if self.expired {
            arguments.push("--insecure".to_owned());
        }
        if self.clients {
            for (flag, file) in [("--cert", self.client()), ("--key", self.client_key())] {
                arguments.extend([flag.to_owned(), file.display().to_string()]);
            }
        }
        arguments
    }

    fn file(&self, name: &str) -> PathBuf {
        let home: &Path = self.home.path();
        home.join(name)
    }
}

fn home() -> Arc<TempDir> {
    Arc::new(tempfile::Builder::new().prefix("certificates-").tempdir().unwrap())
}
