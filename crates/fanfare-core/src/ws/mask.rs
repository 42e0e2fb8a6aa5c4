//! Masking of client payloads (RFC 6455 section 5.3). Masking a payload twice restores it.

/// Masks or unmasks `payload` in place. `mask[0]` applies to its first byte.
pub(super) fn apply(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

/// Returns the mask for the part of a payload that begins at `offset`, in bytes.
pub(super) fn at(mut mask: [u8; 4], offset: usize) -> [u8; 4] {
    mask.rotate_left(offset % 4);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_offset_is_masked_as_in_the_rfc() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let plain: Vec<u8> = (0..=255).cycle().take(300).collect();
        let expected: Vec<u8> = plain.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
        for start in 0..20 {
            for end in start..plain.len() {
                let mut part = plain[start..end].to_vec();
                apply(&mut part, at(mask, start));
                assert_eq!(part, expected[start..end], "{start}..{end}");
            }
        }
    }
}
