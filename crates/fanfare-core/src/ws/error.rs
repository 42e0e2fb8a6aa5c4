//! What can be wrong with a client's bytes, and the close code that each fault ends the connection with.

use super::Opcode;
use crate::CloseCode;

/// Why a client's bytes are refused. The connection ends with [`DecodeError::close_code`]; the text of the error suits
/// as its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A client must mask every frame (RFC 6455 section 5.1).
    #[error("client frame without mask")]
    Unmasked,
    /// No extension was negotiated that gives these bits a meaning (section 5.2).
    #[error("reserved bits {bits:#05b} are set")]
    ReservedBits {
        /// RSV1 to RSV3, RSV1 first.
        bits: u8,
    },
    /// The opcode is one of those kept for the future (section 5.2).
    #[error("unknown opcode {opcode}")]
    UnknownOpcode {
        /// The number in the frame.
        opcode: u8,
    },
    /// A control frame must not be fragmented (section 5.5).
    #[error("fragmented {opcode:?} frame")]
    FragmentedControl {
        /// Which control frame.
        opcode: Opcode,
    },
    /// A control frame's payload is at most 125 bytes (section 5.5).
    #[error("{opcode:?} frame longer than 125 bytes")]
    LongControl {
        /// Which control frame.
        opcode: Opcode,
    },
    /// The length is not in its shortest form (section 5.2).
    #[error("length {len} is not in its shortest form")]
    LongLengthForm {
        /// The length as it was sent.
        len: u64,
    },
    /// A 64-bit length must leave its top bit clear (section 5.2).
    #[error("top bit of length {len:#x} is set")]
    LengthTopBit {
        /// The length as it was sent.
        len: u64,
    },
    /// A continuation without a message to continue (section 5.4).
    #[error("continuation without a message")]
    UnexpectedContinuation,
    /// A new message before the fragmented one ended (section 5.4).
    #[error("{opcode:?} frame inside a fragmented message")]
    InterruptedMessage {
        /// What the new frame is.
        opcode: Opcode,
    },
    /// A text message that is not UTF-8, found as early as its bytes tell (section 8.1).
    #[error("text is not UTF-8")]
    InvalidText,
    /// The header announces more than [`Limits::max_frame_bytes`](super::Limits::max_frame_bytes).
    #[error("frame of {len} bytes, at most {limit}")]
    FrameTooBig {
        /// Announced payload, in bytes.
        len: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The message so far and the announced frame exceed
    /// [`Limits::max_message_bytes`](super::Limits::max_message_bytes).
    #[error("message of {len} bytes, at most {limit}")]
    MessageTooBig {
        /// Message so far and announced payload, in bytes.
        len: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A close frame with half a code (section 5.5.1).
    #[error("close frame of one byte")]
    ShortClose,
    /// A code that must not be sent (section 7.4).
    #[error("close code {code} must not be sent")]
    InvalidCloseCode {
        /// The number in the frame.
        code: u16,
    },
    /// A close reason that is not UTF-8 (section 5.5.1).
    #[error("close reason is not UTF-8")]
    InvalidCloseReason,
}

impl DecodeError {
    /// The code to close the connection with.
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
