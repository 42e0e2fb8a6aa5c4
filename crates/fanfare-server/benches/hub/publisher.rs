//! The publisher: a keep-alive HTTP connection with at most one request in flight.

use anyhow::{Context, Result, ensure};
use mio::{Interest, Registry, Token, net::TcpStream};
use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
};

/// A keep-alive HTTP connection with at most one request in flight.
#[derive(Debug)]
pub(crate) struct Publisher {
    stream: TcpStream,
    head: String,
    request: Vec<u8>,
    written: usize,
    answer: Vec<u8>,
}

impl Publisher {
    pub(crate) fn connect(address: SocketAddr, bearer: &str, registry: &Registry, token: Token) -> Result<Self> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let head = format!("Host: {address}\r\nAuthorization: Bearer {bearer}\r\nContent-Type: application/json\r\n");
        Ok(Self { stream, head, request: vec![], written: 0, answer: vec![] })
    }

    /// Whether the last request has been answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.request.is_empty()
    }

    /// Sends a request. The publisher must be idle.
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<()> {
        let head = format!("POST {path} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n", self.head, body.len());
        self.request = [head.as_bytes(), body].concat();
        self.written = 0;
        self.drive()
    }

    /// Writes and reads as far as the socket allows.
    pub(crate) fn drive(&mut self) -> Result<()> {
        while self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the publisher's connection"),
            }
        }
        let mut scratch = [0; 16 << 10];
        loop {
            match self.stream.read(&mut scratch) {
                Ok(0) => anyhow::bail!("the publisher's connection was closed"),
                Ok(count) => self.answer.extend_from_slice(&scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the publisher's connection"),
            }
        }
        if answered(&self.answer)? {
            self.answer.clear();
            self.request.clear();
        }
        Ok(())
    }
}

/// Whether the response is complete.
fn answered(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
    let text = String::from_utf8_lossy(answer);
    ensure!(head.starts_with("http/1.1 2"), "an event was rejected: {text}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.with_context(|| format!("a response without content-length: {text}"))?.trim().parse()?;
    Ok(answer.len() >= end + 4 + length)
}
