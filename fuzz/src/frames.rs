//! The frame decoder against tungstenite in the server role. For any bytes, split in any way, both decode the same
//! messages in the same order, and both reject the same frame for the same kind of reason.
//!
//! Intentional differences:
//! - Our decoder rejects a frame at its first invalid byte, tungstenite once the frame is complete. tungstenite is
//!   therefore given the rejected frame up to its end, padded with zeros.
//! - Our decoder requires the shortest form of a length (RFC 6455 section 5.2), tungstenite accepts any form.
//! - A frame over the limit that has another fault too is `TooBig` for tungstenite, and often the other fault for our
//!   decoder.
//! - A close code that must not be sent is an error of our decoder. tungstenite reports a close with 1002 instead.
//! - Our decoder accepts close code 1014, which was registered with IANA after the RFC. tungstenite does not.

use std::{
    io::{self, Cursor, Read, Write},
    ops::ControlFlow,
};

use fanfare_core::ws::{DecodeError, Decoder, Incoming, Limits};
use tungstenite::{
    Error, Message, WebSocket,
    protocol::{Role, WebSocketConfig},
};

const SMALL: Limits = Limits { max_frame_bytes: 300, max_message_bytes: 400 };
const LARGE: Limits = Limits { max_frame_bytes: 1 << 17, max_message_bytes: 1 << 17 };

/// Maximum memory of a decoder beside the bytes of the message, in bytes.
const OVERHEAD: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WsMessage {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// The state of a decoder at the end of its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End<E> {
    Open,
    Closed,
    Failed(E),
}

/// Why tungstenite rejected a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Protocol,
    Text,
    TooBig,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ours {
    pub(crate) messages: Vec<WsMessage>,
    /// Number of complete frames, including fragments and excluding a rejected frame.
    frames: usize,
    pub(crate) end: End<DecodeError>,
}

/// Panics if the two decoders disagree on `input`.
///
/// The lowest bit of the first byte of `input` selects the limits, and the other bits are a number n. n sizes of reads
/// follow, then the bytes from the client.
#[allow(unreachable_pub, reason = "a test includes this file as a private module")]
pub fn check(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    let limits = if first & 1 == 0 { LARGE } else { SMALL };
    let (sizes, bytes) = rest.split_at(rest.len().min(usize::from(first >> 1)));
    let ours = decode(bytes, sizes, &limits);
    assert_eq!(ours, decode(bytes, &[], &limits), "split into reads of {sizes:?}");
    compare(&ours, bytes, &limits);
}

fn compare(ours: &Ours, bytes: &[u8], limits: &Limits) {
    if is_long_length_form(ours, bytes) {
        let (before, _) = frame(bytes, ours.frames);
        assert_eq!(decode_with_tungstenite(before.to_vec(), limits), (ours.messages.clone(), End::Open));
        return;
    }
    let (messages, end) = match ours.end {
        End::Failed(_) => decode_with_tungstenite(up_to_rejected(bytes, ours.frames, limits), limits),
        End::Open | End::Closed => decode_with_tungstenite(bytes.to_vec(), limits),
    };
    let (expected, expected_end) = as_tungstenite(ours);
    assert_eq!(messages, expected);
    if !is_too_big_for_tungstenite(&end, bytes, ours, limits) {
        assert_eq!(end, expected_end, "{:?}", ours.end);
    }
}

/// Returns whether our decoder rejected a frame because of the form of its length. A control frame with a longer form
/// is rejected as too long.
fn is_long_length_form(ours: &Ours, bytes: &[u8]) -> bool {
    match ours.end {
        End::Failed(DecodeError::LongLengthForm { .. }) => true,
        End::Failed(DecodeError::LongControl { .. }) => frame(bytes, ours.frames).1.len <= 125,
        _ => false,
    }
}

/// Converts the result of our decoder to the result that tungstenite must have.
fn as_tungstenite(ours: &Ours) -> (Vec<WsMessage>, End<Fault>) {
    let mut messages = ours.messages.clone();
    let not_allowed = || WsMessage::Close(Some((1002, "Protocol violation".to_owned())));
    if let Some(close @ WsMessage::Close(Some((1014, _)))) = messages.last_mut() {
        *close = not_allowed();
    }
    let end = match &ours.end {
        End::Open => End::Open,
        End::Closed => End::Closed,
        End::Failed(DecodeError::InvalidCloseCode { .. }) => {
            messages.push(not_allowed());
            End::Closed
        }
        End::Failed(error) => End::Failed(match error.close_code().number() {
            1002 => Fault::Protocol,
            1007 => Fault::Text,
            1009 => Fault::TooBig,
            other => panic!("{error:?} closes with {other}"),
        }),
    };
    (messages, end)
}

/// Returns whether tungstenite rejected a frame for its length that our decoder rejected for another reason.
fn is_too_big_for_tungstenite(end: &End<Fault>, bytes: &[u8], ours: &Ours, limits: &Limits) -> bool {
    let (_, header) = frame(bytes, ours.frames);
    let rejected = matches!(ours.end, End::Failed(_));
    rejected && *end == End::Failed(Fault::TooBig) && header.len > limits.max_frame_bytes as u64
}

pub(crate) fn decode(bytes: &[u8], sizes: &[u8], limits: &Limits) -> Ours {
    let mut ours = Ours { messages: Vec::new(), frames: 0, end: End::Open };
    let mut decoder = Decoder::default();
    let mut bytes = bytes.to_vec();
    let mut rest = &mut bytes[..];
    let mut sizes = sizes.iter();
    let mut fed = 0;
    while !rest.is_empty() && ours.end == End::Open {
        let size = sizes.next().map_or(rest.len(), |&size| rest.len().min(size.into()));
        let (chunk, behind) = rest.split_at_mut(size);
        rest = behind;
        fed += size;
        if let Err(error) = decoder.feed(chunk, limits, &mut |incoming| ours.take(incoming)) {
            ours.end = End::Failed(error);
        }
        assert!(decoder.held_bytes() <= OVERHEAD + 2 * fed, "{} bytes held after {fed}", decoder.held_bytes());
    }
    ours
}

impl Ours {
    fn take(&mut self, incoming: Incoming<'_>) -> ControlFlow<()> {
        assert_eq!(self.end, End::Open, "called after a break");
        self.frames += 1;
        self.messages.push(match incoming {
            Incoming::Text(text) => WsMessage::Text(text.to_owned()),
            Incoming::Binary(bytes) => WsMessage::Binary(bytes.to_vec()),
            Incoming::Ping(bytes) => WsMessage::Ping(bytes.to_vec()),
            Incoming::Pong(bytes) => WsMessage::Pong(bytes.to_vec()),
            Incoming::Close(close) => {
                self.messages.push(WsMessage::Close(close.map(|(code, reason)| (code, reason.to_owned()))));
                self.end = End::Closed;
                return ControlFlow::Break(());
            }
            Incoming::Fragment => return ControlFlow::Continue(()),
        });
        ControlFlow::Continue(())
    }
}

fn decode_with_tungstenite(bytes: Vec<u8>, limits: &Limits) -> (Vec<WsMessage>, End<Fault>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_frame_size(Some(limits.max_frame_bytes))
        .max_message_size(Some(limits.max_message_bytes));
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(bytes)), Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        messages.push(match socket.read() {
            Ok(Message::Text(text)) => WsMessage::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => WsMessage::Binary(bytes.into()),
            Ok(Message::Ping(bytes)) => WsMessage::Ping(bytes.into()),
            Ok(Message::Pong(bytes)) => WsMessage::Pong(bytes.into()),
            Ok(Message::Close(close)) => {
                let close = close.map(|close| (close.code.into(), close.reason.as_str().to_owned()));
                messages.push(WsMessage::Close(close));
                return (messages, End::Closed);
            }
            Ok(Message::Frame(frame)) => panic!("tungstenite read a raw frame: {frame}"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (messages, End::Open),
            Err(Error::Protocol(_)) => return (messages, End::Failed(Fault::Protocol)),
            Err(Error::Utf8(_)) => return (messages, End::Failed(Fault::Text)),
            Err(Error::Capacity(_)) => return (messages, End::Failed(Fault::TooBig)),
            Err(other) => panic!("tungstenite failed: {other}"),
        });
    }
}

/// A socket that delivers the given bytes, then blocks, and accepts all writes.
#[derive(Debug)]
pub(crate) struct Wire(pub(crate) Cursor<Vec<u8>>);

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            size => Ok(size),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lengths of a frame's header and payload, as parsed by the harness itself.
struct Shape {
    header_len: usize,
    len: u64,
}

/// Returns the bytes up to the end of frame number `rejected`, which is completed without adding faults.
fn up_to_rejected(bytes: &[u8], rejected: usize, limits: &Limits) -> Vec<u8> {
    let (before, shape) = frame(bytes, rejected);
    let mut all = bytes.to_vec();
    if all.len() == before.len() + 1 {
        all.push(0x80);
    }
    let len = usize::try_from(shape.len).unwrap_or(usize::MAX).min(limits.max_frame_bytes);
    all.resize(before.len() + shape.header_len + len, 0);
    all
}

/// Returns the bytes before frame number `wanted`, and the shape of that frame. Missing bytes count as zeros.
fn frame(bytes: &[u8], wanted: usize) -> (&[u8], Shape) {
    let mut start = 0;
    for _ in 0..wanted {
        let shape = shape(&bytes[start..]);
        start += shape.header_len + usize::try_from(shape.len).expect("a frame that was accepted");
    }
    (&bytes[..start], shape(&bytes[start..]))
}

fn shape(bytes: &[u8]) -> Shape {
    let number = |from, len| {
        bytes.iter().copied().chain([0; 10]).skip(from).take(len).fold(0, |n, byte| n << 8 | u64::from(byte))
    };
    let second = bytes.get(1).copied().unwrap_or(0x80);
    let mask_len = if second & 0x80 == 0 { 0 } else { 4 };
    match second & 0x7f {
        126 => Shape { header_len: 4 + mask_len, len: number(2, 2) },
        127 => Shape { header_len: 10 + mask_len, len: number(2, 8) },
        short => Shape { header_len: 2 + mask_len, len: short.into() },
    }
}
