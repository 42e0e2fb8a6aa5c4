//! The header of a client frame (RFC 6455 section 5.2), and the checks that need only its bytes.

use super::{DecodeError, MAX_CONTROL_PAYLOAD};

/// The opcode of a frame (RFC 6455 section 11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further part of a fragmented message.
    Continuation = 0,
    /// A text message, or the first part of one.
    Text = 1,
    /// A binary message, or the first part of one.
    Binary = 2,
    /// A close of the connection.
    Close = 8,
    /// A request for a `Pong` with the same payload.
    Ping = 9,
    /// An answer to a `Ping`, or an unsolicited pong.
    Pong = 10,
}

impl Opcode {
    /// Returns whether this is the opcode of a control frame: close, ping or pong.
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

/// The header of a client frame. A length beyond the address space of the machine is `usize::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: [u8; 4],
    pub(super) len: usize,
}

impl Header {
    /// Parses the header at the start of `bytes`. Returns the header and its length, or `None` if it is incomplete.
    ///
    /// # Errors
    /// If no continuation of `bytes` can be a valid client frame.
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

/// Parses the payload length, and returns it with the bytes after it. Section 5.2 requires the shortest of the three
/// forms.
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
