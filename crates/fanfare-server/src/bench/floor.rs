//! The floor: a bare epoll loop that writes each event to each socket, one `write()` for each frame, and does nothing
//! else.
//!
//! It accepts upgrades like a hub and events from the same publisher, so that the load is the same for both. It checks
//! nothing, stores nothing and has one thread.

use super::frame;
use anyhow::{Context, Result, ensure};
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::value::RawValue;
use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    os::fd::AsFd,
};

const LISTENER: Token = Token(usize::MAX);

const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const PUBLISHED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
/// The end of an event whose audience is its last field. A hub does not deliver the audience.
const EVERYONE: &[u8] = br#","audience":"everyone"}"#;
const ACK: &[u8] = br#"{"type":"ack"}"#;

struct Floor {
    poll: Poll,
    listener: TcpListener,
    subscribers: Vec<TcpStream>,
    /// Connections that are not upgraded, with the bytes of their requests so far.
    requests: HashMap<Token, (TcpStream, Vec<u8>)>,
    accepted: usize,
    scratch: Vec<u8>,
}

/// Runs until the process is killed.
pub(crate) fn serve(mut listener: TcpListener) -> Result<()> {
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let scratch = vec![0; 1 << 20];
    let mut floor = Floor { poll, listener, subscribers: vec![], requests: HashMap::new(), accepted: 0, scratch };
    let mut events = Events::with_capacity(1024);
    loop {
        match floor.poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            match event.token() {
                LISTENER => floor.accept()?,
                token => floor.read(token)?,
            }
        }
    }
}

impl Floor {
    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nodelay(true)?;
                    let token = Token(self.accepted);
                    self.accepted += 1;
                    self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    self.requests.insert(token, (stream, vec![]));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads from a connection until its request is complete. Messages of subscribers are ignored.
    fn read(&mut self, token: Token) -> Result<()> {
        let Some((mut stream, mut request)) = self.requests.remove(&token) else {
            return Ok(());
        };
        loop {
            match stream.read(&mut self.scratch) {
                Ok(0) => return Ok(()),
                Ok(count) => request.extend_from_slice(&self.scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The client has disconnected.
                Err(_) => return Ok(()),
            }
        }
        if request.starts_with(b"GET ") && request.ends_with(b"\r\n\r\n") {
            write_all(&mut stream, UPGRADED)?;
            write_all(&mut stream, &frame::unmasked(frame::TEXT, ACK))?;
            self.subscribers.push(stream);
            return Ok(());
        }
        if let Some(body) = body(&request)? {
            self.publish(body)?;
            request.clear();
            write_all(&mut stream, PUBLISHED)?;
        }
        self.requests.insert(token, (stream, request));
        Ok(())
    }

    fn publish(&mut self, body: &[u8]) -> Result<()> {
        if !body.starts_with(b"[") {
            return self.broadcast(body);
        }
        let events: Vec<&RawValue> = serde_json::from_slice(body)?;
        events.into_iter().try_for_each(|event| self.broadcast(event.get().as_bytes()))
    }

    fn broadcast(&mut self, event: &[u8]) -> Result<()> {
        let frame = match event.strip_suffix(EVERYONE) {
            Some(rest) => frame::unmasked(frame::TEXT, &[rest, b"}"].concat()),
            None => frame::unmasked(frame::TEXT, event),
        };
        self.subscribers.iter_mut().try_for_each(|stream| write_all(stream, &frame))
    }
}

/// The body of a complete publish request.
fn body(request: &[u8]) -> Result<Option<&[u8]>> {
    let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&request[..end])?;
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.context("floor: a request without Content-Length")?.1.trim().parse()?;
    Ok(request.get(end + 4..end + 4 + length))
}

/// Writes all of `bytes`, waiting while the socket is full.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut writable = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                ensure!(nix::poll::poll(&mut writable, PollTimeout::from(10_000u16))? > 0, "floor: a socket is stuck");
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
