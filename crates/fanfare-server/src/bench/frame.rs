//! WebSocket frames (RFC 6455, section 5.2) on the client's side: only the parts that a benchmark needs.

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// A complete frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
    /// Length of the frame in the buffer.
    pub(crate) length: usize,
}

/// A frame that a server must not send, or that this parser does not support.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame that starts with {0:02x} {1:02x}: expected whole messages, unmasked and without extensions")]
pub(crate) struct BadFrame(u8, u8);

/// Parses the frame at the start of `buffer`. Returns `None` if it is not complete.
pub(crate) fn parse(buffer: &[u8]) -> Result<Option<Frame<'_>>, BadFrame> {
    let &[first, second, ref rest @ ..] = buffer else {
        return Ok(None);
    };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(BadFrame(first, second));
    }
    let (header, length) = match (second, rest) {
        (126, &[a, b, ..]) => (4, usize::from(u16::from_be_bytes([a, b]))),
        (127, &[a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            (10, usize::try_from(length).map_err(|_| BadFrame(first, second))?)
        }
        (126 | 127, _) => return Ok(None),
        (short, _) => (2, usize::from(short)),
    };
    let length = header + length;
    Ok(buffer.get(header..length).map(|payload| Frame { opcode: first & 0x0f, payload, length }))
}

/// A frame from a server: unmasked. The payload must be shorter than 64 KiB.
pub(crate) fn unmasked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    push_length(&mut frame, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

/// A frame from a client, masked with zeros: valid, and as costly to read as any mask.
pub(crate) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    push_length(&mut frame, payload.len(), 0x80);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

fn push_length(frame: &mut Vec<u8>, length: usize, mask: u8) {
    match u16::try_from(length).expect("a payload shorter than 64 KiB").to_be_bytes() {
        [0, short @ 0..=125] => frame.push(mask | short),
        long => frame.extend([mask | 126, long[0], long[1]]),
    }
}
