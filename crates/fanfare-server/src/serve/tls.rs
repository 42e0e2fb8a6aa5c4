//! TLS: loads the certificate and its key from files, and reloads them on change. Existing connections are unaffected.

use super::vitals::CertificateEnd;
use crate::settings::{Settings, SettingsError};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often the files are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The current certificate.
#[derive(Debug)]
struct Certificate {
    files: Files,
    current: ArcSwap<CertifiedKey>,
    expiry: CertificateEnd,
}

impl Certificate {
    /// Records its expiry for the metrics. A certificate that can't be parsed has none.
    fn record_expiry(&self) {
        let current = self.current.load();
        let parsed = current.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
        self.expiry.store(parsed.map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp()), Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// Identifies the state of both files: inode, size and time of the last change of each.
type FileStates = [Option<(u64, u64, i64, i64)>; 2];

/// Returns the TLS acceptor, if a certificate is configured. Reloads its files in the background.
pub(super) fn acceptor(settings: &Settings, expiry: &CertificateEnd) -> Result<Option<TlsAcceptor>, SettingsError> {
    let Some(files) = Files::of(settings) else { return Ok(None) };
    let states = files.states();
    let certificate =
        Arc::new(Certificate { current: ArcSwap::from_pointee(files.load()?), files, expiry: expiry.clone() });
    certificate.record_expiry();
    tokio::spawn(follow(certificate.clone(), states));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| SettingsError::key("tls_certificate_file", "", error))?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Loads the certificate and its key, and checks that they match.
pub(crate) fn load(settings: &Settings) -> Result<(), SettingsError> {
    Files::of(settings).map_or(Ok(()), |files| files.load().map(drop))
}

async fn follow(certificate: Arc<Certificate>, mut known: FileStates) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let states = certificate.files.states();
        if states == known {
            continue;
        }
        known = states;
        match certificate.files.load() {
            Ok(key) => {
                certificate.current.store(Arc::new(key));
                certificate.record_expiry();
                tracing::info!("the certificate was reloaded");
            }
            // Expected while only one of the two files is written. The write of the other one is a change too.
            Err(error) => {
                tracing::warn!("the certificate was not reloaded, and the current one remains in use: {error}");
            }
        }
    }
}

impl Files {
    fn of(settings: &Settings) -> Option<Self> {
        Some(Self { certificate: settings.tls_certificate_file.clone()?, key: settings.tls_key_file.clone()? })
    }

    fn states(&self) -> FileStates {
        let states = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        };
        [states(&self.certificate), states(&self.key)]
    }

    /// Loads both files, and checks that they match.
    fn load(&self) -> Result<CertifiedKey, SettingsError> {
        let wrong = |text: &str| SettingsError::key("tls_certificate_file", self.certificate.display(), text);
        let chain = CertificateDer::pem_file_iter(&self.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| wrong(&error.to_string()))?;
        if chain.is_empty() {
            return Err(wrong("the file contains no certificate in PEM form"));
        }
        let of_key = |error: &dyn ToString| SettingsError::key("tls_key_file", self.key.display(), error.to_string());
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| of_key(&error))?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => of_key(&"the key does not match tls_certificate_file"),
            other => of_key(&other),
        })
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}
