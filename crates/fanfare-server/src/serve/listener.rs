//! The listening socket, and what to do when there can't be one.

use anyhow::Context;
use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};
use tokio::net::{TcpListener, TcpStream};

/// Clients that come all at once, as after a restart, wait here for their turn. The kernel may allow fewer.
const BACKLOG: i32 = 4096;

/// Listens at an address. The error says what is in the way, and what to do.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    open(address, false).and_then(listen).map_err(|error| explain(address, error))
}

/// The socket that a service manager holds for this program (sd_listen_fds(3)), and its address.
pub(super) fn given() -> anyhow::Result<Option<(Socket, SocketAddr)>> {
    let listener = ListenFd::from_env().take_tcp_listener(0).context("the socket that was given is none of TCP")?;
    let Some(listener) = listener else { return Ok(None) };
    let socket = Socket::from(listener);
    let address = socket.local_addr()?.as_socket().context("the socket that was given has no address")?;
    // Nobody else is to have it, not even the programs that this one starts.
    socket.set_cloexec(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(Some((socket, address)))
}

/// Opens a socket for an address that others of this user's may share. Until it listens, it gets no clients.
pub(super) fn open_shared(address: SocketAddr) -> anyhow::Result<Socket> {
    open(address, true).map_err(|error| explain(address, error))
}

fn explain(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let advice = advice(address, &error);
    anyhow::Error::new(error).context(advice)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a server that just ended must not keep the next one from its port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted sockets inherit it: an event is one write, and must not wait for the answer to the one before.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Takes clients at a socket, whether it listened before or not.
pub(super) fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whoever waits at a listening socket that is about to be closed.
pub(super) fn those_who_wait(listener: TcpListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let listener = listener.into_std()?;
    let mut waiting = Vec::new();
    for _ in 0..BACKLOG {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                waiting.push((TcpStream::from_std(stream)?, peer));
            }
            Err(error) if is_of_one_connection(&error) => {}
            // Nobody, or the system gives no more.
            Err(_) => break,
        }
    }
    Ok(waiting)
}

fn advice(address: SocketAddr, error: &io::Error) -> String {
    let with_port = |port: u16| SocketAddr::new(address.ip(), port);
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is in use by another program; end that one, or listen elsewhere, such as --listen {}",
            with_port(address.port().checked_add(1).unwrap_or(8000))
        ),
        io::ErrorKind::PermissionDenied => format!(
            "there is no permission to listen on {address}; ports below 1024 need the capability \
             CAP_NET_BIND_SERVICE, others don't, such as --listen {}",
            with_port(8000)
        ),
        io::ErrorKind::AddrNotAvailable => {
            let every = if address.is_ipv6() { "[::]" } else { "0.0.0.0" };
            format!(
                "this machine has no address {}; {every}:{} stands for all of its own",
                address.ip(),
                address.port()
            )
        }
        _ => format!("{address} can't be listened on"),
    }
}

/// Errors of `accept` that concern one connection, which its client ended meanwhile.
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Where a browser on this machine finds the listener.
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
    fn each_failure_has_its_advice() {
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        for (kind, says) in [
            (io::ErrorKind::AddrInUse, "--listen 10.0.0.1:81"),
            (io::ErrorKind::PermissionDenied, "--listen 10.0.0.1:8000"),
            (io::ErrorKind::AddrNotAvailable, "0.0.0.0:80 stands for all"),
            (io::ErrorKind::Other, "10.0.0.1:80 can't be listened on"),
        ] {
            let text = advice(address, &kind.into());
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn a_listener_on_every_address_is_reached_at_home() {
        for (listener, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reachable(listener.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
