//! The frame decoder against tungstenite in the server's role: on any bytes, cut anywhere, both hear the same
//! messages in the same order, and both refuse the same frame for the same kind of reason.
//!
//! Where they differ on purpose:
//! - We refuse a frame as soon as its bytes tell, tungstenite once it is complete. So it is given the refused frame to
//!   its end, filled up with zeros.
//! - We demand the shortest form of a length (RFC 6455 section 5.2), tungstenite takes any.
//! - A frame over the limit that has another fault too is `TooBig` for tungstenite, and for us often the other fault.
//! - A close code that must not be sent is an error to us. tungstenite reports a close with 1002 in its place.
//! - We accept close code 1014, which IANA has registered since the RFC; tungstenite does not.

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

/// Most memory that a decoder holds beside a message's own bytes.
const OVERHEAD: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// How a decoder came to the end of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End<E> {
    Open,
    Closed,
    Failed(E),
}

/// Why tungstenite refused a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Protocol,
    Text,
    TooBig,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ours {
    pub(crate) said: Vec<Said>,
    /// Complete frames, fragments among them; the frame that was refused is not.
    frames: usize,
    pub(crate) end: End<DecodeError>,
}

/// Panics if the two disagree on `input`: a byte whose lowest bit chooses the limits and whose others say how many
/// sizes of reads follow, those sizes, and what the client sends.
#[allow(unreachable_pub, reason = "a test includes this file as a private module")]
pub fn check(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    let limits = if first & 1 == 0 { LARGE } else { SMALL };
    let (sizes, bytes) = rest.split_at(rest.len().min(usize::from(first >> 1)));
    let ours = hear(bytes, sizes, &limits);
    assert_eq!(ours, hear(bytes, &[], &limits), "cut into reads of {sizes:?}");
    compare(&ours, bytes, &limits);
}

fn compare(ours: &Ours, bytes: &[u8], limits: &Limits) {
    if is_long_length_form(ours, bytes) {
        let (before, _) = frame(bytes, ours.frames);
        assert_eq!(hear_theirs(before.to_vec(), limits), (ours.said.clone(), End::Open));
        return;
    }
    let (said, end) = match ours.end {
        End::Failed(_) => hear_theirs(up_to_refused(bytes, ours.frames, limits), limits),
        End::Open | End::Closed => hear_theirs(bytes.to_vec(), limits),
    };
    let (expected, expected_end) = as_they_say(ours);
    assert_eq!(said, expected);
    if !is_too_big_for_them(&end, bytes, ours, limits) {
        assert_eq!(end, expected_end, "{:?}", ours.end);
    }
}

/// Whether we refused a frame for the form of its length. A control frame in a longer form counts as too long.
fn is_long_length_form(ours: &Ours, bytes: &[u8]) -> bool {
    match ours.end {
        End::Failed(DecodeError::LongLengthForm { .. }) => true,
        End::Failed(DecodeError::LongControl { .. }) => frame(bytes, ours.frames).1.len <= 125,
        _ => false,
    }
}

/// What we heard, put as tungstenite puts it.
fn as_they_say(ours: &Ours) -> (Vec<Said>, End<Fault>) {
    let mut said = ours.said.clone();
    let not_allowed = || Said::Close(Some((1002, "Protocol violation".to_owned())));
    if let Some(close @ Said::Close(Some((1014, _)))) = said.last_mut() {
        *close = not_allowed();
    }
    let end = match &ours.end {
        End::Open => End::Open,
        End::Closed => End::Closed,
        End::Failed(DecodeError::InvalidCloseCode { .. }) => {
            said.push(not_allowed());
            End::Closed
        }
        End::Failed(error) => End::Failed(match error.close_code().number() {
            1002 => Fault::Protocol,
            1007 => Fault::Text,
            1009 => Fault::TooBig,
            other => panic!("{error:?} closes with {other}"),
        }),
    };
    (said, end)
}

/// Whether tungstenite looked no further than the length of the frame that we refused for another reason.
fn is_too_big_for_them(end: &End<Fault>, bytes: &[u8], ours: &Ours, limits: &Limits) -> bool {
    let (_, header) = frame(bytes, ours.frames);
    let refused = matches!(ours.end, End::Failed(_));
    refused && *end == End::Failed(Fault::TooBig) && header.len > limits.max_frame_bytes as u64
}

pub(crate) fn hear(bytes: &[u8], sizes: &[u8], limits: &Limits) -> Ours {
    let mut ours = Ours { said: Vec::new(), frames: 0, end: End::Open };
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
        self.said.push(match incoming {
            Incoming::Text(text) => Said::Text(text.to_owned()),
            Incoming::Binary(bytes) => Said::Binary(bytes.to_vec()),
            Incoming::Ping(bytes) => Said::Ping(bytes.to_vec()),
            Incoming::Pong(bytes) => Said::Pong(bytes.to_vec()),
            Incoming::Close(close) => {
                self.said.push(Said::Close(close.map(|(code, reason)| (code, reason.to_owned()))));
                self.end = End::Closed;
                return ControlFlow::Break(());
            }
            Incoming::Fragment => return ControlFlow::Continue(()),
        });
        ControlFlow::Continue(())
    }
}

fn hear_theirs(bytes: Vec<u8>, limits: &Limits) -> (Vec<Said>, End<Fault>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_frame_size(Some(limits.max_frame_bytes))
        .max_message_size(Some(limits.max_message_bytes));
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(bytes)), Role::Server, Some(config));
    let mut said = Vec::new();
    loop {
        said.push(match socket.read() {
            Ok(Message::Text(text)) => Said::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Said::Binary(bytes.into()),
            Ok(Message::Ping(bytes)) => Said::Ping(bytes.into()),
            Ok(Message::Pong(bytes)) => Said::Pong(bytes.into()),
            Ok(Message::Close(close)) => {
                let close = close.map(|close| (close.code.into(), close.reason.as_str().to_owned()));
                said.push(Said::Close(close));
                return (said, End::Closed);
            }
            Ok(Message::Frame(frame)) => panic!("tungstenite read a raw frame: {frame}"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (said, End::Open),
            Err(Error::Protocol(_)) => return (said, End::Failed(Fault::Protocol)),
            Err(Error::Utf8(_)) => return (said, End::Failed(Fault::Text)),
            Err(Error::Capacity(_)) => return (said, End::Failed(Fault::TooBig)),
            Err(other) => panic!("tungstenite failed: {other}"),
        });
    }
}

/// A socket that delivers the bytes, then has no more for now, and takes whatever is written.
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

/// What the harness itself reads of a frame: how long its header and its payload are.
struct Shape {
    header_len: usize,
    len: u64,
}

/// The bytes up to and with frame number `refused`, which is completed so that it has no more faults than it has now.
fn up_to_refused(bytes: &[u8], refused: usize, limits: &Limits) -> Vec<u8> {
    let (before, shape) = frame(bytes, refused);
    let mut all = bytes.to_vec();
    if all.len() == before.len() + 1 {
        all.push(0x80);
    }
    let len = usize::try_from(shape.len).unwrap_or(usize::MAX).min(limits.max_frame_bytes);
    all.resize(before.len() + shape.header_len + len, 0);
    all
}

/// The bytes before frame number `wanted`, and the shape of that frame; bytes that are missing count as zeros.
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
