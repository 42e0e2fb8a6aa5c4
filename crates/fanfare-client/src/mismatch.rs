//! Detection of a scheme mismatch: a URL with TLS for a server without TLS, or the reverse. Retrying cannot fix it.

use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use std::{error::Error, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use url::Url;

/// How long a server may take to answer the start of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns a message if a connect failed with `error` because the scheme of `url` does not match the server.
///
/// For a URL without TLS, the server is probed with the start of a TLS handshake.
pub async fn scheme_mismatch(url: &Url, error: &(dyn Error + Send + Sync + 'static)) -> Option<String> {
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    if matches!(url.scheme(), "wss" | "https") {
        return speaks_no_tls(error)
            .then(|| format!("the server at {host}:{port} does not speak TLS: use ws:// or http:// in its URL"));
    }
    let speaks_tls = speaks_tls(host, port).await;
    speaks_tls.then(|| format!("the server at {host}:{port} speaks TLS: use wss:// or https:// in its URL"))
}

/// Returns whether an error, or one of its sources, means that the server's response was not TLS.
fn speaks_no_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref() {
            return true;
        }
        // `source` of an I/O error skips the inner error.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map_or_else(|| error.source(), |inner| Some(inner));
    }
    false
}

/// Returns whether a server answers the start of a TLS handshake with a TLS record (RFC 8446 section 5.1). Its
/// certificate is not verified.
async fn speaks_tls(host: &str, port: u16) -> bool {
    let host = host.trim_matches(['[', ']']);
    let Some(hello) = client_hello(host) else { return false };
    let probe = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(&hello).await?;
        let mut head = [0; 2];
        stream.read_exact(&mut head).await?;
        // A handshake or alert record.
        Ok::<_, io::Error>(matches!(head, [0x15 | 0x16, 3]))
    };
    matches!(timeout(HANDSHAKE_TIMEOUT, probe).await, Ok(Ok(true)))
}

fn client_hello(host: &str) -> Option<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).ok()?;
    Some(hello)
}
