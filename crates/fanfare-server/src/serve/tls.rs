//! TLS: the certificate and its key, read from files, and again when they change. Who is connected keeps its connection.

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

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What is shown to clients.
#[derive(Debug)]
struct Certificate {
    files: Files,
    current: ArcSwap<CertifiedKey>,
    end: CertificateEnd,
}

impl Certificate {
    /// Notes when it ends, for the figures. One that can't be read is not told to end.
    fn note_end(&self) {
        let current = self.current.load();
        let parsed = current.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
        self.end.store(parsed.map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp()), Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What tells one state of the files from another: inode, size and time of change of each.
type Mark = [Option<(u64, u64, i64, i64)>; 2];

/// What makes TLS of connections, if a certificate is set. Its files are followed in the background.
pub(super) fn acceptor(settings: &Settings, end: &CertificateEnd) -> Result<Option<TlsAcceptor>, SettingsError> {
    let Some(files) = Files::of(settings) else { return Ok(None) };
    let mark = files.mark();
    let certificate = Arc::new(Certificate { current: ArcSwap::from_pointee(files.load()?), files, end: end.clone() });
    certificate.note_end();
    tokio::spawn(follow(certificate.clone(), mark));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| SettingsError::key("tls_certificate_file", "", error))?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Reads the certificate and its key, and checks that they belong together.
pub(crate) fn load(settings: &Settings) -> Result<(), SettingsError> {
    Files::of(settings).map_or(Ok(()), |files| files.load().map(drop))
}

async fn follow(certificate: Arc<Certificate>, mut known: Mark) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mark = certificate.files.mark();
        if mark == known {
            continue;
        }
        known = mark;
        match certificate.files.load() {
            Ok(key) => {
                certificate.current.store(Arc::new(key));
                certificate.note_end();
                tracing::info!("the certificate was read anew");
            }
            // Both are seldom written in one moment; whatever comes next is a change too.
            Err(error) => tracing::warn!("the certificate stays as it was: {error}"),
        }
    }
}

impl Files {
    fn of(settings: &Settings) -> Option<Self> {
        Some(Self { certificate: settings.tls_certificate_file.clone()?, key: settings.tls_key_file.clone()? })
    }

    fn mark(&self) -> Mark {
        let mark = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        };
        [mark(&self.certificate), mark(&self.key)]
    }

    /// Reads both, and checks that they belong together.
    fn load(&self) -> Result<CertifiedKey, SettingsError> {
        let wrong = |text: &str| SettingsError::key("tls_certificate_file", self.certificate.display(), text);
        let chain = CertificateDer::pem_file_iter(&self.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| wrong(&error.to_string()))?;
        if chain.is_empty() {
            return Err(wrong("there is no certificate in PEM form in it"));
        }
        let of_key = |error: &dyn ToString| SettingsError::key("tls_key_file", self.key.display(), error.to_string());
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| of_key(&error))?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => of_key(&"the key is not the one of tls_certificate_file"),
            other => of_key(&other),
        })
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}
