//! Sets of dense numbers.

/// A set of numbers, as a bitmap.
#[derive(Debug, Clone, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn has(&self, number: u64) -> bool {
        self.0.get(index(number)).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Adds a number. Returns whether it is new.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let at = index(number);
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        let (word, bit) = (&mut self.0[at], 1 << (number % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number / 64).unwrap_or(usize::MAX)
}
