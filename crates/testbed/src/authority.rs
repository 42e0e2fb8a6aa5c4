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
        let mut server = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let now = time::OffsetDateTime::now_utc();
        server.not_before = now - time::Duration::days(400);
        server.not_after = now + time::Duration::days(days);
        let server = server.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        write("ca.pem", self.pem.clone());
        write("server.key", key.serialize_pem());
        write("server.pem", server.pem());
    }
}
