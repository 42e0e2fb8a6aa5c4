//! Certificates for tests, issued by an authority that only the tests trust.

use std::{fs, path::Path};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    parameters: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    pem: String,
}

impl Authority {
    /// Creates an authority with a new key.
    #[expect(clippy::new_without_default, reason = "each authority has a new key")]
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // The authority needs a name of its own: an issuer with the name of the certificate counts as self-signed.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { parameters, key, pem }
    }

    /// Writes `ca.pem`, a certificate for this machine (`server.pem`) and its key (`server.key`), valid for `days` days
    /// from now.
    pub fn issue(&self, directory: &Path, days: i64) {
        let issuer = rcgen::Issuer::from_params(&self.parameters, &self.key);
        let key = rcgen::KeyPair::generate().unwrap();
        let server = of_this_machine(days).signed_by(&key, &issuer).unwrap();
        write(directory, "ca.pem", &self.pem);
        write(directory, "server.key", &key.serialize_pem());
        write(directory, "server.pem", &server.pem());
    }

    /// Writes a client certificate (`client.pem`) and its key (`client.key`).
    pub fn issue_client(&self, directory: &Path) {
        let issuer = rcgen::Issuer::from_params(&self.parameters, &self.key);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut client = rcgen::CertificateParams::default();
        client.distinguished_name.push(rcgen::DnType::CommonName, "test client");
        write(directory, "client.key", &key.serialize_pem());
        write(directory, "client.pem", &client.signed_by(&key, &issuer).unwrap().pem());
    }

    /// Writes a self-signed certificate for this machine (`server.pem`) and its key (`server.key`), and the same
    /// certificate as `ca.pem`.
    pub fn self_signed(directory: &Path, is_authority: bool, days: i64) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut server = of_this_machine(days);
        if is_authority {
            server.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        let server = server.self_signed(&key).unwrap();
        write(directory, "ca.pem", &server.pem());
        write(directory, "server.key", &key.serialize_pem());
        write(directory, "server.pem", &server.pem());
    }
}

/// The parameters of a certificate for this machine, valid for `days` days from now.
fn of_this_machine(days: i64) -> rcgen::CertificateParams {
    let mut server = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let now = time::OffsetDateTime::now_utc();
    server.not_before = now - time::Duration::days(400);
    server.not_after = now + time::Duration::days(days);
    server
}

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).unwrap();
}
