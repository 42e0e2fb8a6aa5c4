//! Encoding of frames. Each frame is a whole message: a server need not fragment a message that is in memory.

use super::{MAX_CONTROL_PAYLOAD, Opcode, mask};

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Appends a server frame: final, unmasked, with the shortest form of the length.
///
/// The payload of a control frame must not exceed [`MAX_CONTROL_PAYLOAD`].
pub fn push_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    push_header(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

/// Builds a server frame from the `parts` of its payload.
///
/// The allocation has exactly the size of the frame, because all recipients share it.
pub fn frame(opcode: Opcode, parts: &[&[u8]]) -> Box<[u8]> {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(header_len(length) + length);
    push_header(&mut out, opcode, length, 0);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.into_boxed_slice()
}

/// Appends a server's close frame. `reason` is truncated at a character boundary to the 123 bytes that fit beside the
/// code.
pub fn push_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut len = reason.len().min(MAX_CONTROL_PAYLOAD - 2);
    while !reason.is_char_boundary(len) {
        len -= 1;
    }
    let reason = &reason[..len];
    push_header(out, Opcode::Close, 2 + len, 0);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends a masked client frame. It is meant for load generators and tests, which need no random mask.
pub fn push_client_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    push_header(out, opcode, payload.len(), MASKED);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    mask::apply(&mut out[start..], mask);
}

fn push_header(out: &mut Vec<u8>, opcode: Opcode, len: usize, masked: u8) {
    debug_assert!(!opcode.is_control() || len <= MAX_CONTROL_PAYLOAD, "{opcode:?} of {len} bytes");
    out.push(FIN | opcode as u8);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ ..126), _) => out.push(masked | short),
        (_, Ok(middle)) => {
            out.push(masked | 126);
            out.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Returns the length of a server frame's header for a payload of `len` bytes.
const fn header_len(len: usize) -> usize {
    match len {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_encoded_as_in_the_examples_of_section_5_7() {
        assert_eq!(*frame(Opcode::Text, &[b"Hel", b"lo"]), *b"\x81\x05Hello");
        assert_eq!(*frame(Opcode::Ping, &[b"Hello"]), *b"\x89\x05Hello");
        assert_eq!(frame(Opcode::Binary, &[&[7; 256]])[..5], *b"\x82\x7e\x01\x00\x07");
        assert_eq!(frame(Opcode::Binary, &[&[7; 65536]])[..11], *b"\x82\x7f\0\0\0\0\0\x01\0\0\x07");
        let mut out = Vec::new();
        push_client_frame(&mut out, Opcode::Text, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    }

    #[test]
    fn the_length_is_encoded_in_its_shortest_form() {
        for (len, header) in [
            (0, &b"\x82\x00"[..]),
            (125, b"\x82\x7d"),
            (126, b"\x82\x7e\x00\x7e"),
            (65535, b"\x82\x7e\xff\xff"),
            (65536, b"\x82\x7f\0\0\0\0\0\x01\0\0"),
        ] {
            let bytes = frame(Opcode::Binary, &[&vec![1; len]]);
            assert!(bytes.starts_with(header), "{len}");
            assert_eq!(bytes.len(), header.len() + len, "{len}");
            assert_eq!(header_len(len), header.len(), "{len}");
        }
    }

    #[test]
    fn a_close_reason_is_truncated_at_a_character_boundary() {
        let ascii = "x".repeat(130);
        let umlauts = "ü".repeat(70);
        for (reason, kept) in [("", ""), ("bye", "bye"), (&ascii[..], &ascii[..123]), (&umlauts[..], &umlauts[..122])] {
            let mut out = Vec::new();
            push_close(&mut out, 4001, reason);
            let expected = [&[0x88, u8::try_from(2 + kept.len()).unwrap(), 0x0f, 0xa1], kept.as_bytes()].concat();
            assert_eq!(out, expected, "{reason}");
        }
    }
}
