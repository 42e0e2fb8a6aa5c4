//! The header of a client's frame (RFC 6455 section 5.2), and the checks that need nothing but its bytes.

use super::{DecodeError, MAX_CONTROL_PAYLOAD};

/// What a frame is (RFC 6455 section 11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further part of a fragmented message.
    Continuation = 0,
    /// A text message, or the first part of one.
    Text = 1,
    /// A binary message, or the first part of one.
    Binary = 2,
    /// The sender ends the connection.
    Close = 8,
    /// A question for a `Pong` with the same payload.
    Ping = 9,
    /// The answer to a `Ping`, or a sign of life.
    Pong = 10,
}

impl Opcode {
    /// Whether the frame stands outside of messages: close, ping and pong.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn from_number(number: u8) -> Result<Self, DecodeError> {
        Ok(match number {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return Err(DecodeError::UnknownOpcode { opcode: number }),
        })
    }
}

/// A client frame's header. A payload longer than this machine can address counts as `usize::MAX` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: [u8; 4],
    pub(super) len: usize,
}

impl Header {
    /// Reads a header off the front of `bytes`, with the number of bytes it takes; none while it is incomplete.
    ///
    /// # Errors
    /// As soon as the bytes that are there cannot become a client's frame any more.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let (fin, opcode) = parse_first(first)?;
        let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
        check_second(second, opcode)?;
        let Some((len, rest)) = parse_len(second & 0x7f, rest)? else { return Ok(None) };
        let Some((&mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(Some((Self { fin, opcode, mask, len }, bytes.len() - rest.len())))
    }
}

fn parse_first(byte: u8) -> Result<(bool, Opcode), DecodeError> {
    let (fin, reserved) = (byte & 0x80 != 0, byte >> 4 & 0b111);
    if reserved != 0 {
        return Err(DecodeError::ReservedBits { bits: reserved });
    }
    let opcode = Opcode::from_number(byte & 0x0f)?;
    if opcode.is_control() && !fin {
        return Err(DecodeError::FragmentedControl { opcode });
    }
    Ok((fin, opcode))
}

fn check_second(byte: u8, opcode: Opcode) -> Result<(), DecodeError> {
    if byte & 0x80 == 0 {
        return Err(DecodeError::Unmasked);
    }
    if opcode.is_control() && usize::from(byte & 0x7f) > MAX_CONTROL_PAYLOAD {
        return Err(DecodeError::LongControl { opcode });
    }
    Ok(())
}

/// The payload's length and the bytes after it. Section 5.2 wants the shortest of the three forms.
fn parse_len(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, DecodeError> {
    let (len, least, rest) = match short {
        126 => {
            let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*bytes)), 126, rest)
        }
        127 => {
            let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*bytes), 1 << 16, rest)
        }
        _ => (u64::from(short), 0, rest),
    };
    if len < least {
        return Err(DecodeError::LongLengthForm { len });
    }
    if len >> 63 != 0 {
        return Err(DecodeError::LengthTopBit { len });
    }
    Ok(Some((len, rest)))
}
