//! Certificates for tests, by an authority that nobody else trusts.

use std::{fs, path::Path};

/// An authority of its own.
#[derive(Debug)]
pub struct Authority {
    parameters: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    pem: String,
}

impl Authority {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // Of one that has its own name the issuer would be taken for itself.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { parameters, key, pem }
    }

    /// Writes `ca.pem`, and a certificate for this machine with its key, `server.pem` and `server.key`, valid for so many days
    /// from now.
    pub fn issue(&self, directory: &Path, days: i64) {
        let issuer = rcgen::Issuer::from_params(&self.parameters, &self.key);
        let key = rcgen::KeyPair::generate().unwrap();
        let server = of_this_machine(days).signed_by(&key, &issuer).unwrap();
        write(directory, "ca.pem", &self.pem);
        write(directory, "server.key", &key.serialize_pem());
        write(directory, "server.pem", &server.pem());
    }

    /// Writes a client's certificate with its key, `client.pem` and `client.key`.
    pub fn issue_client(&self, directory: &Path) {
        let issuer = rcgen::Issuer::from_params(&self.parameters, &self.key);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut client = rcgen::CertificateParams::default();
        client.distinguished_name.push(rcgen::DnType::CommonName, "test client");
        write(directory, "client.key", &key.serialize_pem());
        write(directory, "client.pem", &client.signed_by(&key, &issuer).unwrap().pem());
    }

    /// Writes a certificate for this machine that is signed by itself, `server.pem` with `server.key`, and the same as `ca.pem`.
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

/// Valid for so many days from now.
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
