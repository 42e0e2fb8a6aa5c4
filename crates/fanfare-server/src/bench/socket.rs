//! Non-blocking connections to a hub, plain or over TLS, from chosen source addresses.

use super::plan::Plan;
use crate::util::UsageError;
use anyhow::Context;
use mio::net::TcpStream;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::ServerName};
use socket2::{Domain, Protocol, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};
use url::Url;

/// The address of a hub.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// The `Host` of requests.
    pub(crate) host: String,
    /// The path of the endpoint.
    pub(crate) path: String,
    /// The name in the certificate, if the hub is reached over TLS.
    name: Option<String>,
}

/// Opens connections.
pub(crate) struct Connector {
    address: SocketAddr,
    pub(crate) host: String,
    pub(crate) path: String,
    sources: Vec<IpAddr>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Self, UsageError> {
        let wrong = |why: &str| UsageError(format!("--url: {text:?} is not a valid URL: {why}"));
        let url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
        let tls = match url.scheme() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(wrong("it must begin with http://, https://, ws:// or wss://")),
        };
        let name = url.host_str().ok_or_else(|| wrong("it has no host"))?.trim_matches(['[', ']']).to_owned();
        let port = url.port().unwrap_or(if tls { 443 } else { 80 });
        let found = (name.as_str(), port).to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
        let mut found: Vec<_> = found.collect();
        // A hub on `localhost` more often listens on the IPv4 address.
        found.sort_by_key(SocketAddr::is_ipv6);
        let path = url.path().trim_end_matches('/');
        let suffix = if path.ends_with("/ws") { "" } else { "/ws" };
        Ok(Self {
            address: found.first().copied().ok_or_else(|| wrong("its host has no address"))?,
            host: url.authority().to_owned(),
            path: format!("{path}{suffix}"),
            name: tls.then_some(name),
        })
    }
}

impl Connector {
    pub(crate) fn new(plan: &Plan) -> anyhow::Result<Self> {
        let Target { address, host, path, name } = Target::parse(&plan.url)?;
        let tls = match name {
            None => None,
            Some(name) => Some((trusting_the_system()?, ServerName::try_from(name)?)),
        };
        Ok(Self { address, host, path, sources: plan.sources.clone(), tls })
    }

    /// Begins the connection of the client with this number. `narrow` is the size of its receive buffer, in bytes.
    pub(crate) fn connect(&self, client: usize, narrow: Option<usize>) -> io::Result<Socket> {
        let socket = socket2::Socket::new(Domain::for_address(self.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = narrow {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(&source) = self.sources.get(client % self.sources.len().max(1)) {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from_std(socket.into());
        match &self.tls {
            None => Ok(Socket::Plain(stream)),
            Some((config, name)) => {
                let connection = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
                Ok(Socket::Tls(Box::new(StreamOwned::new(connection, stream))))
            }
        }
    }
}

impl Socket {
    pub(crate) fn tcp(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => &mut tls.sock,
        }
    }

    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// The certificates that the system trusts, and those in SSL_CERT_FILE.
fn trusting_the_system() -> anyhow::Result<Arc<ClientConfig>> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    anyhow::ensure!(added > 0, "the system has no trusted certificates: set SSL_CERT_FILE");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("failed to set up TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_and_its_endpoint_are_the_same_place() {
        for url in ["http://127.0.0.1:81/hub", "ws://127.0.0.1:81/hub/ws", "http://127.0.0.1:81/hub/"] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.address.port(), target.path.as_str(), target.name.is_some()), (81, "/hub/ws", false));
        }
        let target = Target::parse("wss://[::1]").unwrap();
        assert_eq!((target.address, target.host.as_str()), ("[::1]:443".parse().unwrap(), "[::1]"));
        assert!(Target::parse("ftp://h").is_err() && Target::parse("").is_err());
    }
}
