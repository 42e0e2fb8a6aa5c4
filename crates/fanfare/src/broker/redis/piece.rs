//! How many entries of the log are read at once: so many that they are about a megabyte.

/// The entries of a first piece, and of each while the log is followed.
const FIRST: usize = 64;

/// The most entries of a piece.
const MOST: usize = 512;

/// What a piece should have, in bytes of events.
const BYTES: usize = 1 << 20;

/// The size of the next piece, which follows from that of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    count: usize,
}

impl Default for Piece {
    fn default() -> Self {
        Self { count: FIRST }
    }
}

impl Piece {
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
        let mut piece = Piece::default();
        let mut sizes = Vec::new();
        for _ in 0..5 {
            sizes.push(piece.count());
            piece.was(piece.count(), piece.count() * 100);
        }
        assert_eq!(sizes, [64, 128, 256, 512, 512], "small events come in larger pieces");
        piece.was(512, 512 * 64_000);
        assert_eq!(piece.count(), 16, "large ones in smaller");
        piece.was(16, 16 * 4_000_000);
        assert_eq!(piece.count(), 1, "and never in none");
        piece.was(1, 100);
        piece.was(2, 200);
        assert_eq!(piece.count(), 4, "there may be small ones behind them");
        piece.was(3, 300);
        assert_eq!(piece.count(), FIRST, "a log that is followed is read as a new one");
        piece.was(0, 0);
        assert_eq!(piece.count(), FIRST);
    }
}
