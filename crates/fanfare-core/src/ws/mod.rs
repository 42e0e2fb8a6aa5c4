//! WebSocket frames as RFC 6455 defines them, for the server's end: bytes in, messages out, and back.
//!
//! Owns the frame format, its checks and what is left of a frame or message that has not wholly arrived. Knows no
//! socket, no handshake, no session, and nothing of what a message says. Extensions (compression) are not negotiated,
//! so reserved bits are errors.

mod decode;
mod encode;
mod error;
mod header;
mod mask;
mod message;

pub use decode::{Decoder, Incoming, Limits};
pub use encode::{frame, push_client_frame, push_close, push_frame};
pub use error::DecodeError;
pub use header::Opcode;

/// Largest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// Most bytes that a frame's header takes: two, eight of length, four of mask.
const MAX_HEADER: usize = 14;
