//! Partial data messages.

use std::str;

use super::{DecodeError, Opcode};

/// An incomplete message. It grows with the bytes that arrive, never with the announced length.
#[derive(Debug)]
pub(super) enum Message {
    Text(Text),
    Binary(Vec<u8>),
}

impl Message {
    /// Creates an empty message: text or binary, by the `opcode` of its first frame.
    pub(super) fn begin(opcode: Opcode) -> Self {
        if opcode == Opcode::Text { Self::Text(Text::default()) } else { Self::Binary(Vec::new()) }
    }

    /// Returns the number of bytes so far.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.whole.len() + text.tail_len,
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Returns the heap memory of the message, in bytes.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Text(text) => text.whole.capacity(),
            Self::Binary(bytes) => bytes.capacity(),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        match self {
            Self::Text(text) => text.push(bytes),
            Self::Binary(all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// Text that may end inside a character: the complete characters, and the first bytes of the next one.
#[derive(Debug, Default)]
pub(super) struct Text {
    whole: String,
    tail: [u8; 4],
    tail_len: usize,
}

impl Text {
    /// Returns the text. Fails if it ends inside a character.
    pub(super) fn finish(self) -> Result<String, DecodeError> {
        if self.tail_len == 0 { Ok(self.whole) } else { Err(DecodeError::InvalidText) }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let bytes = self.fill_tail(bytes)?;
        let whole = match str::from_utf8(bytes) {
            Ok(whole) => whole,
            Err(fault) if fault.error_len().is_some() => return Err(DecodeError::InvalidText),
            Err(fault) => {
                let (whole, tail) = bytes.split_at(fault.valid_up_to());
                self.tail[..tail.len()].copy_from_slice(tail);
                self.tail_len = tail.len();
                str::from_utf8(whole).map_err(|_| DecodeError::InvalidText)?
            }
        };
        self.whole.push_str(whole);
        Ok(())
    }

    /// Completes the partial character with the first bytes of `bytes`, and returns the other bytes.
    fn fill_tail<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        while self.tail_len > 0
            && let Some((&byte, rest)) = bytes.split_first()
        {
            bytes = rest;
            self.tail[self.tail_len] = byte;
            self.tail_len += 1;
            match str::from_utf8(&self.tail[..self.tail_len]) {
                Ok(character) => {
                    self.whole.push_str(character);
                    self.tail_len = 0;
                }
                Err(fault) if fault.error_len().is_some() => return Err(DecodeError::InvalidText),
                Err(_) => {}
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte sequences that no continuation makes valid (Unicode 15, table 3-7).
    const INVALID: &[&[u8]] = &[
        b"\x80",
        b"a\xc0",
        b"\xc1",
        b"\xc3a",
        b"\xe0\x9f",
        b"\xed\xa0",
        b"\xe2\x82\xff",
        b"\xf0\x8f",
        b"\xf4\x90",
        b"\xf5",
        b"\xff",
        b"\xf0\x9f\x8e\xff",
    ];

    fn push_bytewise(bytes: &[u8]) -> Result<Text, DecodeError> {
        let mut text = Text::default();
        bytes.iter().try_for_each(|&byte| text.push(&[byte]))?;
        Ok(text)
    }

    #[test]
    fn invalid_text_fails_at_its_first_invalid_byte() {
        for bytes in INVALID {
            assert_eq!(Text::default().push(bytes), Err(DecodeError::InvalidText), "{bytes:x?}");
            assert!(push_bytewise(bytes).is_err(), "{bytes:x?}");
            let (_, before) = bytes.split_last().unwrap();
            assert!(push_bytewise(before).is_ok(), "{before:x?}");
        }
    }

    #[test]
    fn text_may_be_split_but_not_end_inside_a_character() {
        let all = "aß€🎉\u{10ffff}\u{0}z";
        for cut in 0..=all.len() {
            let mut text = Text::default();
            text.push(&all.as_bytes()[..cut]).unwrap();
            text.push(&all.as_bytes()[cut..]).unwrap();
            assert_eq!(text.finish().unwrap(), all, "{cut}");
            let ends_well = push_bytewise(&all.as_bytes()[..cut]).unwrap().finish().is_ok();
            assert_eq!(ends_well, all.is_char_boundary(cut), "{cut}");
        }
    }
}
