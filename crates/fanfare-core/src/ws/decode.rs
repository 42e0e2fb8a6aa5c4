//! Incremental decoder of client frames.

use std::{mem, ops::ControlFlow, str};

use super::{
    DecodeError, MAX_CONTROL_PAYLOAD, MAX_HEADER, Opcode,
    header::Header,
    mask,
    message::{Message, Text},
};

/// Limits on the size of client frames and messages. A frame beyond a limit is rejected as soon as its header is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum payload of a data frame, in bytes.
    pub max_frame_bytes: usize,
    /// Maximum size of a message, over all its fragments, in bytes.
    pub max_message_bytes: usize,
}

/// The result of a complete frame. Each frame yields exactly one, so their number is the number of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A complete text message.
    Text(&'a str),
    /// A complete binary message.
    Binary(&'a [u8]),
    /// A frame of a fragmented message other than its last frame.
    Fragment,
    /// A ping, which the server answers with a pong of the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping, or an unsolicited pong.
    Pong(&'a [u8]),
    /// A close frame, with its code and reason if it has them. Frames after it are to be ignored.
    Close(Option<(u16, &'a str)>),
}

/// Decodes the client frames of one connection.
///
/// The decoder allocates memory only for a partial frame or message, and only for the bytes that have arrived.
///
/// ```
/// use std::ops::ControlFlow;
/// use fanfare_core::ws::{Decoder, Incoming, Limits};
///
/// let limits = Limits { max_frame_bytes: 1024, max_message_bytes: 1024 };
/// let mut bytes = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
/// let mut decoder = Decoder::default();
/// decoder.feed(&mut bytes, &limits, &mut |incoming| {
///     assert_eq!(incoming, Incoming::Text("Hello"));
///     ControlFlow::Continue(())
/// })?;
/// # Ok::<(), fanfare_core::ws::DecodeError>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// A partial frame or message.
#[derive(Debug, Default)]
struct Partial {
    /// The first `header_len` bytes of an incomplete header.
    header: [u8; MAX_HEADER],
    header_len: usize,
    /// A frame with a complete header and an incomplete payload.
    frame: Option<Frame>,
    /// The unmasked payload of `frame` so far, if it is a control frame.
    control: Vec<u8>,
    /// The unmasked payload of a data message so far.
    message: Option<Message>,
}

/// A frame whose header is complete.
#[derive(Debug, Clone, Copy)]
struct Frame {
    header: Header,
    /// Number of payload bytes already processed.
    received: usize,
}

impl Decoder {
    /// Decodes bytes from a socket and calls `on` for each complete frame, in order.
    ///
    /// Payloads are unmasked in place, and a message that is contained in `input` is passed on without a copy. If `on`
    /// returns [`ControlFlow::Break`], the rest of `input` is dropped. After a break or an error, `feed` must not be
    /// called again.
    ///
    /// # Errors
    /// At the first byte that violates the protocol, after `on` was called for all frames before it.
    pub fn feed(
        &mut self,
        mut input: &mut [u8],
        limits: &Limits,
        on: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<(), DecodeError> {
        while let Some(mut frame) = self.next_frame(&mut input, limits)? {
            let arrived = input.len().min(frame.header.len - frame.received);
            let (payload, rest) = mem::take(&mut input).split_at_mut(arrived);
            input = rest;
            mask::apply(payload, mask::at(frame.header.mask, frame.received));

            let whole = frame.received == 0 && arrived == frame.header.len;
            frame.received += arrived;
            let flow = match (whole, frame.header.opcode.is_control()) {
                (true, true) => on(control(frame.header.opcode, payload)?),
                (false, true) => self.part_of_control(frame, payload, on)?,
                (true, false) if self.begins_and_ends_message(&frame.header) => {
                    on(message(frame.header.opcode, payload)?)
                }
                (_, false) => self.part_of_message(frame, payload, on)?,
            };
            if flow.is_break() || frame.received < frame.header.len {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns whether the decoder has no partial frame or message, and so holds no memory.
    pub const fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Returns the heap memory held for a partial frame or message, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, Message::capacity);
            size_of::<Partial>() + partial.control.capacity() + message
        })
    }

    /// Returns the frame at the start of `input`, and removes its header from `input`; `None` if the header is
    /// incomplete.
    fn next_frame(&mut self, input: &mut &mut [u8], limits: &Limits) -> Result<Option<Frame>, DecodeError> {
        if let Some(frame) = self.partial.as_mut().and_then(|partial| partial.frame.take()) {
            self.release();
            return Ok(Some(frame));
        }
        let Some(header) = self.next_header(input)? else { return Ok(None) };
        self.check_header(&header, limits)?;
        Ok(Some(Frame { header, received: 0 }))
    }

    fn next_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, DecodeError> {
        if let Some(partial) = self.partial.as_mut().filter(|partial| partial.header_len > 0) {
            let header = partial.rest_of_header(input)?;
            self.release();
            return Ok(header);
        }
        let Some((header, len)) = Header::parse(input)? else {
            if !input.is_empty() {
                let partial = self.partial();
                partial.header[..input.len()].copy_from_slice(input);
                partial.header_len = input.len();
            }
            return Ok(None);
        };
        *input = &mut mem::take(input)[len..];
        Ok(Some(header))
    }

    /// Checks a header against the limits and the current message.
    fn check_header(&self, header: &Header, limits: &Limits) -> Result<(), DecodeError> {
        let &Header { opcode, len, .. } = header;
        if opcode.is_control() {
            return Ok(());
        }
        let so_far = match (self.message(), opcode) {
            (None, Opcode::Continuation) => return Err(DecodeError::UnexpectedContinuation),
            (Some(message), Opcode::Continuation) => message.len(),
            (Some(_), _) => return Err(DecodeError::InterruptedMessage { opcode }),
            (None, _) => 0,
        };
        if len > limits.max_frame_bytes {
            return Err(DecodeError::FrameTooBig { len, limit: limits.max_frame_bytes });
        }
        let len = len.saturating_add(so_far);
        if len > limits.max_message_bytes {
            return Err(DecodeError::MessageTooBig { len, limit: limits.max_message_bytes });
        }
        Ok(())
    }

    fn begins_and_ends_message(&self, header: &Header) -> bool {
        header.fin && self.message().is_none()
    }

    fn part_of_control(
        &mut self,
        frame: Frame,
        payload: &[u8],
        on: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DecodeError> {
        let partial = self.partial();
        partial.control.extend_from_slice(payload);
        if frame.received < frame.header.len {
            partial.frame = Some(frame);
            return Ok(ControlFlow::Continue(()));
        }
        let payload = mem::take(&mut partial.control);
        self.release();
        Ok(on(control(frame.header.opcode, &payload)?))
    }

    fn part_of_message(
        &mut self,
        frame: Frame,
        payload: &[u8],
        on: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DecodeError> {
        let partial = self.partial();
        let message = partial.message.get_or_insert_with(|| Message::begin(frame.header.opcode));
        message.push(payload)?;
        if frame.received < frame.header.len {
            partial.frame = Some(frame);
            return Ok(ControlFlow::Continue(()));
        }
        if !frame.header.fin {
            return Ok(on(Incoming::Fragment));
        }
        let message = partial.message.take();
        self.release();
        Ok(match message {
            Some(Message::Text(text)) => on(Incoming::Text(&Text::finish(text)?)),
            Some(Message::Binary(bytes)) => on(Incoming::Binary(&bytes)),
            None => ControlFlow::Continue(()),
        })
    }

    fn message(&self) -> Option<&Message> {
        self.partial.as_ref().and_then(|partial| partial.message.as_ref())
    }

    fn partial(&mut self) -> &mut Partial {
        self.partial.get_or_insert_default()
    }

    /// Frees the memory if no partial frame or message is left.
    fn release(&mut self) {
        self.partial.take_if(|partial| {
            partial.header_len == 0
                && partial.frame.is_none()
                && partial.message.is_none()
                && partial.control.is_empty()
        });
    }
}

impl Partial {
    /// Completes a header byte by byte, so that an invalid header fails at the same byte as in one piece.
    fn rest_of_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, DecodeError> {
        while let Some(byte) = input.first().copied() {
            *input = &mut mem::take(input)[1..];
            self.header[self.header_len] = byte;
            self.header_len += 1;
            if let Some((header, _)) = Header::parse(&self.header[..self.header_len])? {
                self.header_len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }
}

/// Builds the message of an unfragmented data frame.
fn message(opcode: Opcode, payload: &[u8]) -> Result<Incoming<'_>, DecodeError> {
    if opcode == Opcode::Text {
        str::from_utf8(payload).map(Incoming::Text).map_err(|_| DecodeError::InvalidText)
    } else {
        Ok(Incoming::Binary(payload))
    }
}

fn control(opcode: Opcode, payload: &[u8]) -> Result<Incoming<'_>, DecodeError> {
    debug_assert!(payload.len() <= MAX_CONTROL_PAYLOAD, "the header was checked");
    Ok(match opcode {
        Opcode::Ping => Incoming::Ping(payload),
        Opcode::Pong => Incoming::Pong(payload),
        _ => Incoming::Close(close(payload)?),
    })
}

/// Parses the code and reason of a close frame (RFC 6455 section 5.5.1).
fn close(payload: &[u8]) -> Result<Option<(u16, &str)>, DecodeError> {
    let Some((&code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(DecodeError::ShortClose) };
    };
    let code = u16::from_be_bytes(code);
    let reason = str::from_utf8(reason).map_err(|_| DecodeError::InvalidCloseReason)?;
    if may_be_sent(code) { Ok(Some((code, reason))) } else { Err(DecodeError::InvalidCloseCode { code }) }
}

/// Returns whether a close frame may have this code: the codes registered with IANA for that purpose (section 7.4.1 and
/// later registrations), and those reserved for libraries and applications (section 7.4.2).
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::{super::push_client_frame, *};
    use crate::CloseCode;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const LIMITS: Limits = Limits { max_frame_bytes: 70_000, max_message_bytes: 80_000 };

    /// Returns all decoded frames as text, and the decoder or its error.
    fn decode(chunks: &mut [Vec<u8>], limits: &Limits) -> (Vec<String>, Result<Decoder, DecodeError>) {
        let mut decoder = Decoder::default();
        let mut decoded = Vec::new();
        for chunk in chunks {
            let result = decoder.feed(chunk, limits, &mut |incoming| {
                decoded.push(format!("{incoming:?}"));
                ControlFlow::Continue(())
            });
            if let Err(error) = result {
                return (decoded, Err(error));
            }
        }
        (decoded, Ok(decoder))
    }

    fn decode_whole(bytes: &[u8]) -> (Vec<String>, Result<Decoder, DecodeError>) {
        decode(&mut [bytes.to_vec()], &LIMITS)
    }

    /// A client frame with any first byte.
    fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_client_frame(&mut out, Opcode::Binary, payload, MASK);
        out[0] = first;
        out
    }

    #[test]
    fn an_idle_decoder_takes_one_word() {
        assert_eq!(size_of::<Decoder>(), 8);
    }

    #[test]
    fn frames_are_decoded_as_in_the_examples_of_section_5_7() {
        for (bytes, expected) in [
            (&b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"[..], Incoming::Text("Hello")),
            (b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", Incoming::Pong(b"Hello")),
            (&raw(0x89, b"Hello"), Incoming::Ping(b"Hello")),
            (&raw(0x82, &[5; 256]), Incoming::Binary(&[5; 256])),
            (&raw(0x82, &[5; 65536]), Incoming::Binary(&[5; 65536])),
            (&raw(0x88, b""), Incoming::Close(None)),
            (&raw(0x88, b"\x03\xe8"), Incoming::Close(Some((1000, "")))),
            (&raw(0x88, b"\x0f\xa1bye"), Incoming::Close(Some((4001, "bye")))),
        ] {
            let (decoded, result) = decode_whole(bytes);
            assert_eq!(decoded, [format!("{expected:?}")]);
            assert!(result.unwrap().is_idle());
        }
    }

    #[test]
    fn the_result_is_the_same_for_every_split_of_the_bytes() {
        let big = "€".repeat(100);
        let bytes = [
            raw(0x81, "ein paar Wörter".as_bytes()),
            raw(0x01, &"€🎉".as_bytes()[..5]),
            raw(0x89, b"between"),
            raw(0x00, b""),
            raw(0x8a, b""),
            raw(0x80, &"€🎉".as_bytes()[5..]),
            raw(0x82, &[9; 126]),
            raw(0x81, big.as_bytes()),
            raw(0x02, b"ab"),
            raw(0x80, b""),
            raw(0x88, b"\x03\xe9away"),
        ]
        .concat();
        let (expected, result) = decode_whole(&bytes);
        assert_eq!(expected.len(), 11);
        assert_eq!(expected[5], "Text(\"€🎉\")");
        assert!(result.unwrap().is_idle());
        for cut in 0..=bytes.len() {
            let (front, back) = bytes.split_at(cut);
            let (decoded, result) = decode(&mut [front.to_vec(), back.to_vec()], &LIMITS);
            assert_eq!(decoded, expected, "cut at {cut}");
            assert!(result.unwrap().is_idle(), "cut at {cut}");
        }
        let mut single: Vec<_> = bytes.iter().map(|&byte| vec![byte]).collect();
        assert_eq!(decode(&mut single, &LIMITS).0, expected);
    }

    #[test]
    fn lengths_at_the_boundaries_of_the_length_forms_are_decoded() {
        for len in [0, 1, 125, 126, 127, 65535, 65536, 70_000] {
            let (decoded, _) = decode_whole(&raw(0x82, &vec![3; len]));
            assert_eq!(decoded, [format!("{:?}", Incoming::Binary(&vec![3; len]))]);
        }
    }

    #[test]
    fn each_violation_fails_at_its_first_byte_with_its_error_and_close_code() {
        use DecodeError as E;
        let reserved = |bits| E::ReservedBits { bits };
        for (bytes, error, code) in [
            (&b"\xc1"[..], reserved(0b100), CloseCode::Protocol),
            (b"\x91", reserved(0b001), CloseCode::Protocol),
            (b"\x83", E::UnknownOpcode { opcode: 3 }, CloseCode::Protocol),
            (b"\x8f", E::UnknownOpcode { opcode: 15 }, CloseCode::Protocol),
            (b"\x09", E::FragmentedControl { opcode: Opcode::Ping }, CloseCode::Protocol),
            (b"\x81\x05", E::Unmasked, CloseCode::Protocol),
            (b"\x89\xfe", E::LongControl { opcode: Opcode::Ping }, CloseCode::Protocol),
            (b"\x82\xfe\x00\x7d", E::LongLengthForm { len: 125 }, CloseCode::Protocol),
            (b"\x82\xff\0\0\0\0\0\0\xff\xff", E::LongLengthForm { len: 65535 }, CloseCode::Protocol),
            (b"\x82\xff\x80\0\0\0\0\0\0\0", E::LengthTopBit { len: 1 << 63 }, CloseCode::Protocol),
            (&raw(0x80, b"")[..6], E::UnexpectedContinuation, CloseCode::Protocol),
            (
                b"\x01\x80\0\0\0\0\x82\x81\0\0\0\0",
                E::InterruptedMessage { opcode: Opcode::Binary },
                CloseCode::Protocol,
            ),
            (&raw(0x88, b"\x03"), E::ShortClose, CloseCode::Protocol),
            (&raw(0x88, b"\x03\xed"), E::InvalidCloseCode { code: 1005 }, CloseCode::Protocol),
            (&raw(0x88, b"\x03\xe8\xff"), E::InvalidCloseReason, CloseCode::InvalidText),
            (&raw(0x81, b"\xff"), E::InvalidText, CloseCode::InvalidText),
            (&raw(0x81, b"\xe2\x82"), E::InvalidText, CloseCode::InvalidText),
            (&raw(0x81, b"ab\xed\xa0cdef")[..10], E::InvalidText, CloseCode::InvalidText),
        ] {
            assert_eq!(decode_whole(bytes).1.unwrap_err(), error, "{bytes:x?}");
            assert_eq!(error.close_code(), code, "{error}");
            let mut single: Vec<_> = bytes.iter().map(|&byte| vec![byte]).collect();
            assert_eq!(decode(&mut single, &LIMITS).1.unwrap_err(), error, "{bytes:x?} in single bytes");
            let before = &bytes[..bytes.len() - 1];
            assert!(decode_whole(before).1.is_ok(), "{before:x?}");
        }
    }

    #[test]
    fn only_close_codes_that_may_be_sent_are_accepted() {
        let allowed: Vec<_> = (0..=u16::MAX).filter(|&code| may_be_sent(code)).collect();
        let expected = (1000..=1003).chain(1007..=1014).chain(3000..=4999);
        assert_eq!(allowed, expected.collect::<Vec<_>>());
        assert!(CloseCode::ALL.iter().all(|code| may_be_sent(code.number())));
    }

    // attack: a frame over max_frame_bytes => closed at its header, before its payload is read
    #[test]
    fn a_frame_or_message_that_is_too_large_is_rejected_at_its_header() {
        let limits = Limits { max_frame_bytes: 200, max_message_bytes: 300 };
        let header = |first, len: u16| [&[first, 0xfe][..], &len.to_be_bytes(), &MASK].concat();
        for (bytes, error) in [
            (header(0x82, 201), DecodeError::FrameTooBig { len: 201, limit: 200 }),
            (header(0x01, 201), DecodeError::FrameTooBig { len: 201, limit: 200 }),
            (
                [&raw(0x02, &[0; 150])[..], &header(0x80, 151)].concat(),
                DecodeError::MessageTooBig { len: 301, limit: 300 },
            ),
            (
                b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".to_vec(),
                DecodeError::FrameTooBig { len: 0x7fff_ffff_ffff_ffff, limit: 200 },
            ),
        ] {
            assert_eq!(decode(&mut [bytes], &limits).1.unwrap_err(), error);
            assert_eq!(error.close_code(), CloseCode::TooBig);
        }
        let at_the_limit = [raw(0x02, &[0; 200]), raw(0x80, &[0; 100])].concat();
        assert_eq!(decode(&mut [at_the_limit], &limits).0.len(), 2);
    }

    // attack: a frame header that announces a huge length => no memory is allocated for it
    #[test]
    fn an_announced_length_allocates_no_memory() {
        let mut decoder = Decoder::default();
        let header = &raw(0x82, &[0; 65536])[..14];
        let nothing = &mut |_: Incoming<'_>| ControlFlow::Continue(());
        decoder.feed(&mut header.to_vec(), &LIMITS, nothing).unwrap();
        assert!(decoder.held_bytes() < 200, "{}", decoder.held_bytes());
        decoder.feed(&mut [0; 100], &LIMITS, nothing).unwrap();
        assert!(decoder.held_bytes() < 400, "{}", decoder.held_bytes());
        decoder.feed(&mut [0; 65436], &LIMITS, nothing).unwrap();
        assert_eq!(decoder.held_bytes(), 0);
    }

    #[test]
    fn a_break_drops_the_rest_of_the_input() {
        for size in [usize::MAX, 3] {
            let bytes = [raw(0x89, b"one"), raw(0x89, b"two"), raw(0x83, b"bad")].concat();
            let mut decoder = Decoder::default();
            let mut calls = 0;
            for chunk in bytes.chunks(size.min(bytes.len())) {
                let stop = &mut |_: Incoming<'_>| {
                    calls += 1;
                    ControlFlow::Break(())
                };
                decoder.feed(&mut chunk.to_vec(), &LIMITS, stop).unwrap();
                if calls > 0 {
                    break;
                }
            }
            assert_eq!(calls, 1);
        }
    }
}
