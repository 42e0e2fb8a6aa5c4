//! Randomness.

/// Random bytes of cryptographic quality.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if crate::environment::fill(&mut bytes) {
        return bytes;
    }
    // The generator fails only if the system has no source of randomness, and there is no safe alternative then.
    #[expect(clippy::expect_used, reason = "IDs and keys must not be generated without randomness")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has a source of randomness");
    bytes
}
