//! How many entries of the log are read at once: so many that they are about a megabyte.

/// The entries of a first piece, and of each while the log is followed.
const FIRST: usize = 64;

/// The most entries of a piece.
const MOST: usize = 512;

/// What a piece should have, in bytes of events.
const BYTES: usize = 1 << 20;

/// The size of the next piece, which follows from that of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageSize {
    count: usize,
}

impl Default for PageSize {
    fn default() -> Self {
        Self { count: FIRST }
    }
}

impl PageSize {
    /// How many entries to ask for.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// Learns what the last piece was. It doubles while there are more entries and they are small, and shrinks at once.
    pub(super) fn was(&mut self, entries: usize, bytes: usize) {
        if entries == 0 {
            return;
        }
        let most = if entries >= self.count { (2 * self.count).min(MOST) } else { FIRST };
        self.count = (BYTES.saturating_mul(entries) / bytes.max(1)).clamp(1, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_about_a_megabyte() {
        let mut page_size = PageSize::default();
        let mut sizes = Vec::new();
        for _ in 0..5 {
            sizes.push(page_size.count());
            page_size.was(page_size.count(), page_size.count() * 100);
        }
        assert_eq!(sizes, [64, 128, 256, 512, 512], "small events come in larger pieces");
        page_size.was(512, 512 * 64_000);
        assert_eq!(page_size.count(), 16, "large ones in smaller");
        page_size.was(16, 16 * 4_000_000);
        assert_eq!(page_size.count(), 1, "and never in none");
        page_size.was(1, 100);
        page_size.was(2, 200);
        assert_eq!(page_size.count(), 4, "there may be small ones behind them");
        page_size.was(3, 300);
        assert_eq!(page_size.count(), FIRST, "a log that is followed is read as a new one");
        page_size.was(0, 0);
        assert_eq!(page_size.count(), FIRST);
    }
}
