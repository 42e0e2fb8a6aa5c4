//! TLS connections to Redis with configured certificates: the trusted authorities and the client certificate.

use super::address::Address;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use std::{
    fmt, io,
    sync::{Arc, OnceLock},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The TLS configuration for Redis: the trusted authorities and the client certificate.
#[derive(Clone)]
pub struct RedisTls(Arc<ClientConfig>);

/// Why certificates or keys are not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRedisTls {
    /// The file of authorities has no certificate.
    #[error("there is no certificate in PEM form")]
    NoAuthority,
    /// A certificate is not valid as an authority.
    #[error("a certificate is not valid as an authority: {0}")]
    Authority(String),
    /// The system has no trusted authorities.
    #[error("the system has no trusted authorities: set redis_ca_file to the authority of Redis' certificate")]
    NoneTrusted,
    /// The file of the client certificate has no certificate.
    #[error("the client certificate has no certificate in PEM form")]
    NoCertificate,
    /// The file of the client key has no key.
    #[error("the client key has no private key in PEM form")]
    NoKey,
    /// The client certificate and its key do not match, or have an unsupported type.
    #[error("the client certificate and its key do not match: {0}")]
    Mismatch(String),
}

impl RedisTls {
    /// Creates a configuration.
    ///
    /// `authorities` are certificates in PEM format, either of authorities or of the server itself. Without them the
    /// authorities of the operating system are trusted. `identity` is the client certificate, followed by its chain,
    /// and its key, in PEM format.
    ///
    /// # Errors
    /// If a certificate or key is not usable.
    pub fn new(authorities: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Self, BadRedisTls> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trusted = match authorities {
            Some(pem) => certificates(pem, &BadRedisTls::NoAuthority)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| BadRedisTls::Mismatch(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(trusted, authorities.is_some(), provider)?));
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = certificates(chain, &BadRedisTls::NoCertificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BadRedisTls::NoKey)?;
                let mismatch = |error: rustls::Error| BadRedisTls::Mismatch(error.to_string());
                config.with_client_auth_cert(chain, key).map_err(mismatch)?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// The configuration with the authorities of the operating system, which are read at the first use.
    pub(super) fn system() -> Result<&'static Self, BadRedisTls> {
        static SYSTEM: OnceLock<Result<RedisTls, BadRedisTls>> = OnceLock::new();
        SYSTEM.get_or_init(|| Self::new(None, None)).as_ref().map_err(Clone::clone)
    }

    pub(super) async fn dial(&self, at: &Address) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((at.host.as_str(), at.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(at.host.clone()).map_err(io::Error::other)?;
        TlsConnector::from(self.0.clone()).connect(name, stream).await
    }
}

fn certificates(pem: &[u8], none: &BadRedisTls) -> Result<Vec<CertificateDer<'static>>, BadRedisTls> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| none.clone())
}

/// Trusts certificates that the authorities have issued, and a server certificate that is itself listed as an
/// authority.
#[derive(Debug)]
struct Verifier {
    issued: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(
        trusted: Vec<CertificateDer<'static>>,
        named: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, BadRedisTls> {
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            let added = roots.add(certificate.clone());
            if named {
                // Only the configured authorities must be valid: the operating system may have unusable ones.
                added.map_err(|error| BadRedisTls::Authority(error.to_string()))?;
            }
        }
        let issued = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let issued = issued.map_err(|_| BadRedisTls::NoneTrusted)?;
        Ok(Self { issued, named: if named { trusted } else { Vec::new() } })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.issued.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // `openssl req -x509` marks its certificates as authorities, which webpki rejects for servers. webpki has
            // checked the validity period before it returns this error.
            Err(error) if is_authority_itself(&error) => {
                if !self.named.contains(end_entity) {
                    return Err(CertificateError::UnknownIssuer.into());
                }
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

fn is_authority_itself(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error else { return false };
    error.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// Compares identity: two configurations with the same content are not equal.
impl PartialEq for RedisTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for RedisTls {}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisTls(..)")
    }
}
