//! Protocol violations in a client's bytes, and the close code of each.

use super::Opcode;
use crate::CloseCode;

/// Why a client's bytes are rejected. The connection is closed with [`DecodeError::close_code`], and the text of the
/// error is the close reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A client must mask every frame (RFC 6455 section 5.1).
    #[error("the client frame is not masked")]
    Unmasked,
    /// A reserved bit is set, although no extension was negotiated (section 5.2).
    #[error("reserved bits {bits:#05b} are set")]
    ReservedBits {
        /// RSV1 to RSV3, RSV1 first.
        bits: u8,
    },
    /// The opcode is reserved for future use (section 5.2).
    #[error("unknown opcode {opcode}")]
    UnknownOpcode {
        /// The opcode of the frame.
        opcode: u8,
    },
    /// A control frame must not be fragmented (section 5.5).
    #[error("fragmented {opcode:?} frame")]
    FragmentedControl {
        /// The opcode of the control frame.
        opcode: Opcode,
    },
    /// The payload of a control frame must not exceed 125 bytes (section 5.5).
    #[error("{opcode:?} frame longer than 125 bytes")]
    LongControl {
        /// The opcode of the control frame.
        opcode: Opcode,
    },
    /// The length is not encoded in its shortest form (section 5.2).
    #[error("length {len} is not in its shortest form")]
    LongLengthForm {
        /// The length in the frame.
        len: u64,
    },
    /// The top bit of a 64-bit length must not be set (section 5.2).
    #[error("top bit of length {len:#x} is set")]
    LengthTopBit {
        /// The length in the frame.
        len: u64,
    },
    /// A continuation frame outside of a fragmented message (section 5.4).
    #[error("continuation frame outside of a fragmented message")]
    UnexpectedContinuation,
    /// A new message before the end of a fragmented message (section 5.4).
    #[error("{opcode:?} frame inside a fragmented message")]
    InterruptedMessage {
        /// The opcode of the new frame.
        opcode: Opcode,
    },
    /// The text of a message is not UTF-8 (section 8.1). It is detected at the first invalid byte.
    #[error("text is not UTF-8")]
    InvalidText,
    /// The header announces more than [`Limits::max_frame_bytes`](super::Limits::max_frame_bytes).
    #[error("the frame has {len} bytes; at most {limit} are allowed")]
    FrameTooBig {
        /// The announced payload, in bytes.
        len: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The message, including the announced frame, exceeds
    /// [`Limits::max_message_bytes`](super::Limits::max_message_bytes).
    #[error("the message has {len} bytes; at most {limit} are allowed")]
    MessageTooBig {
        /// The size of the message, including the announced payload, in bytes.
        len: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The payload of a close frame is shorter than a code (section 5.5.1).
    #[error("close frame with a payload of one byte")]
    ShortClose,
    /// The close code must not be sent (section 7.4).
    #[error("close code {code} must not be sent")]
    InvalidCloseCode {
        /// The code in the frame.
        code: u16,
    },
    /// The close reason is not UTF-8 (section 5.5.1).
    #[error("close reason is not UTF-8")]
    InvalidCloseReason,
}

impl DecodeError {
    /// Returns the code that the connection is closed with.
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::InvalidText | Self::InvalidCloseReason => CloseCode::InvalidText,
            Self::FrameTooBig { .. } | Self::MessageTooBig { .. } => CloseCode::TooBig,
            Self::Unmasked
            | Self::ReservedBits { .. }
            | Self::UnknownOpcode { .. }
            | Self::FragmentedControl { .. }
            | Self::LongControl { .. }
            | Self::LongLengthForm { .. }
            | Self::LengthTopBit { .. }
            | Self::UnexpectedContinuation
            | Self::InterruptedMessage { .. }
            | Self::ShortClose
            | Self::InvalidCloseCode { .. } => CloseCode::Protocol,
        }
    }
}
