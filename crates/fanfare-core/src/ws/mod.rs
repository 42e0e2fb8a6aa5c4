//! WebSocket framing (RFC 6455) for the server side: decoding of client frames and encoding of server frames.
//!
//! This module owns the frame format, its checks, and the partial frames and messages of a connection. It knows nothing
//! of sockets, handshakes, sessions or the content of messages. Extensions (compression) are not negotiated, so
//! reserved bits are errors.

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

/// Maximum payload of a control frame, in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// Maximum length of a client frame's header, in bytes: 2, 8 for the length and 4 for the mask.
const MAX_HEADER: usize = 14;
