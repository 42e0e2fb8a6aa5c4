//! A WebSocket client of the load: reads frames, checks that every event arrives once and in order, and responds to
//! pings.

use crate::{event, frame};
use anyhow::{Context, Result, bail, ensure};
use mio::{Interest, Registry, Token, net::TcpStream};
use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::Instant,
};

/// A WebSocket client.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    started: Instant,
    upgraded: bool,
    live: bool,
    /// The beginning of an incomplete frame.
    rest: Vec<u8>,
    /// The counter of the last event; 0 before the first.
    pub(crate) last: u64,
}

/// The result of one read.
#[derive(Debug, Default)]
pub(crate) struct Got {
    /// Frames other than the `ack`.
    pub(crate) frames: u64,
    /// Events among these frames.
    pub(crate) events: u64,
    /// The time from the start of the connect to the `ack`, if the `ack` arrived in this read.
    pub(crate) ack_us: Option<u64>,
}

impl Client {
    /// Connects and requests the upgrade. The next event that the client receives must have the number `last` + 1.
    pub(crate) fn connect(
        address: SocketAddr,
        request: &[u8],
        registry: &Registry,
        at: Token,
        last: u64,
    ) -> Result<Self> {
        let started = Instant::now();
        let mut stream = std::net::TcpStream::connect(address).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, at, Interest::READABLE)?;
        Ok(Self { stream, started, upgraded: false, live: false, rest: vec![], last })
    }

    /// Reads until the socket is empty. Calls `on_event` with the payload of each event.
    pub(crate) fn read(&mut self, scratch: &mut [u8], on_event: &mut dyn FnMut(&[u8])) -> Result<Got> {
        let mut got = Got::default();
        loop {
            let kept = self.rest.len();
            scratch[..kept].copy_from_slice(&self.rest);
            let filled = match self.stream.read(&mut scratch[kept..]) {
                Ok(0) => bail!("the server closed a connection without a close frame"),
                Ok(count) => kept + count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(got),
                Err(error) => return Err(error).context("reading from the server"),
            };
            let used = self.take(&scratch[..filled], &mut got, on_event)?;
            self.rest.clear();
            self.rest.extend_from_slice(&scratch[used..filled]);
            // On Linux, a read that leaves room in the buffer has emptied the socket, and epoll reports later data.
            if filled < scratch.len() {
                return Ok(got);
            }
        }
    }

    /// Processes the complete frames in `bytes`, and returns their length.
    fn take(&mut self, bytes: &[u8], got: &mut Got, on_event: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut used = 0;
        if !self.upgraded {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                return Ok(0);
            };
            let head = String::from_utf8_lossy(&bytes[..end]);
            ensure!(head.starts_with("HTTP/1.1 101"), "the server did not upgrade: {head}");
            self.upgraded = true;
            used = end + 4;
        }
        while let Some(frame) = frame::parse(&bytes[used..])? {
            used += frame.length;
            match event::counter(frame.payload) {
                Some(counter) => self.event(counter, frame.payload, got, on_event)?,
                None => self.other(&frame, got)?,
            }
        }
        Ok(used)
    }

    fn event(&mut self, counter: u64, payload: &[u8], got: &mut Got, on_event: &mut dyn FnMut(&[u8])) -> Result<()> {
        let due = self.last + 1;
        ensure!(self.live, "event {counter} arrived before the ack");
        ensure!(counter == due, "LOST, DUPLICATED OR REORDERED: event {counter} arrived instead of {due}");
        self.last = counter;
        got.frames += 1;
        got.events += 1;
        on_event(payload);
        Ok(())
    }

    fn other(&mut self, frame: &frame::Frame<'_>, got: &mut Got) -> Result<()> {
        if frame.opcode == frame::PING {
            return self.send(&frame::masked(frame::PONG, frame.payload));
        }
        if let (frame::CLOSE, &[high, low, ref reason @ ..]) = (frame.opcode, frame.payload) {
            let code = u16::from_be_bytes([high, low]);
            bail!("the server closed a connection: {code} {}", String::from_utf8_lossy(reason));
        }
        let text = String::from_utf8_lossy(frame.payload);
        ensure!(frame.opcode == frame::TEXT, "a frame with opcode {:#x} ({text})", frame.opcode);
        match kind(frame.payload)? {
            "ack" => {
                self.live = true;
                got.ack_us = Some(u64::try_from(self.started.elapsed().as_micros())?);
            }
            "ping" => {
                got.frames += 1;
                self.send(&frame::masked(frame::TEXT, br#"{"type":"pong"}"#))?;
            }
            _ => bail!("an unexpected message: {text}"),
        }
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let count = self.stream.write(frame).context("responding to a ping")?;
        ensure!(count == frame.len(), "the server does not read from its clients");
        Ok(())
    }
}

/// The `type` of a message.
pub(crate) fn kind(message: &[u8]) -> Result<&str> {
    #[derive(serde::Deserialize)]
    struct Message<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
    }
    let message: Message<'_> = serde_json::from_slice(message)?;
    Ok(message.kind)
}

/// The upgrade request.
pub(crate) fn upgrade(address: SocketAddr, token: &str) -> Vec<u8> {
    format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}
