//! The listening socket, and advice for when it can't be opened.

use anyhow::Context;
use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};
use tokio::net::{TcpListener, TcpStream};

/// The length of the accept queue, sized for all clients reconnecting at once after a restart. The kernel may limit it.
const BACKLOG: i32 = 4096;

/// Listens on an address. The error states the cause and the remedy.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    open(address, false).and_then(listen).map_err(|error| explain(address, error))
}

/// The socket that a service manager opened for this program (sd_listen_fds(3)), and its address.
pub(super) fn inherited() -> anyhow::Result<Option<(Socket, SocketAddr)>> {
    let listener =
        ListenFd::from_env().take_tcp_listener(0).context("the socket of the service manager is not a TCP socket")?;
    let Some(listener) = listener else { return Ok(None) };
    let socket = Socket::from(listener);
    let address = socket.local_addr()?.as_socket().context("the socket of the service manager has no address")?;
    // Not inherited by any program that this process starts.
    socket.set_cloexec(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(Some((socket, address)))
}

/// Opens a socket on an address that other sockets of the same system user may share. It gets no connections until it
/// listens.
pub(super) fn open_shared(address: SocketAddr) -> anyhow::Result<Socket> {
    open(address, true).map_err(|error| explain(address, error))
}

fn explain(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let advice = advice(address, &error);
    anyhow::Error::new(error).context(advice)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the previous process in TIME_WAIT must not prevent a restart on the same port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted sockets inherit it. An event is one write, which must not wait for the acknowledgement of the previous
    // one.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Starts to accept connections on a socket that may be listening already.
pub(super) fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts all connections in the queue of a listening socket, and closes it.
pub(super) fn queued_connections(listener: TcpListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let listener = listener.into_std()?;
    let mut queued = Vec::new();
    for _ in 0..BACKLOG {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                queued.push((TcpStream::from_std(stream)?, peer));
            }
            Err(error) if concerns_one_connection(&error) => {}
            // The queue is empty, or the limit on open files is reached.
            Err(_) => break,
        }
    }
    Ok(queued)
}

fn advice(address: SocketAddr, error: &io::Error) -> String {
    let with_port = |port: u16| SocketAddr::new(address.ip(), port);
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is in use by another program; stop it, or use another port, such as --listen {}",
            with_port(address.port().checked_add(1).unwrap_or(8000))
        ),
        io::ErrorKind::PermissionDenied => format!(
            "permission to listen on {address} was denied; ports below 1024 need the capability \
             CAP_NET_BIND_SERVICE: grant it, or use a higher port, such as --listen {}",
            with_port(8000)
        ),
        io::ErrorKind::AddrNotAvailable => {
            let every = if address.is_ipv6() { "[::]" } else { "0.0.0.0" };
            format!(
                "this machine has no address {}; use one of its own, or {every}:{} for all of them",
                address.ip(),
                address.port()
            )
        }
        _ => format!("failed to listen on {address}"),
    }
}

/// Whether an error of `accept` concerns only one connection, which its client closed in the meantime.
pub(super) fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// The address at which a browser on this machine reaches the listener.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_advice() {
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        for (kind, says) in [
            (io::ErrorKind::AddrInUse, "--listen 10.0.0.1:81"),
            (io::ErrorKind::PermissionDenied, "--listen 10.0.0.1:8000"),
            (io::ErrorKind::AddrNotAvailable, "0.0.0.0:80 for all"),
            (io::ErrorKind::Other, "failed to listen on 10.0.0.1:80"),
        ] {
            let text = advice(address, &kind.into());
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        for (listener, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reachable(listener.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
