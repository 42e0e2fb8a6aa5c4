//! The number of entries that are read from the log at once: about a megabyte.

/// The number of entries of the first page, and of each page while the log is followed.
const FIRST: usize = 64;

/// The maximum number of entries of a page.
const MOST: usize = 512;

/// The target size of a page, in bytes of events.
const BYTES: usize = 1 << 20;

/// The size of the next page, derived from that of the previous one.
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
    /// The number of entries to request.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// Adapts to the previous page. The size doubles while pages are full and entries are small, and shrinks
    /// immediately if they are large.
    pub(super) fn adapt(&mut self, entries: usize, bytes: usize) {
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
    fn a_page_is_about_a_megabyte() {
        let mut page_size = PageSize::default();
        let mut sizes = Vec::new();
        for _ in 0..5 {
            sizes.push(page_size.count());
            page_size.adapt(page_size.count(), page_size.count() * 100);
        }
        assert_eq!(sizes, [64, 128, 256, 512, 512], "small events are read in larger pages");
        page_size.adapt(512, 512 * 64_000);
        assert_eq!(page_size.count(), 16, "large events are read in smaller pages");
        page_size.adapt(16, 16 * 4_000_000);
        assert_eq!(page_size.count(), 1, "a page has at least one entry");
        page_size.adapt(1, 100);
        page_size.adapt(2, 200);
        assert_eq!(page_size.count(), 4, "the size grows again after large events");
        page_size.adapt(3, 300);
        assert_eq!(page_size.count(), FIRST, "a partial page resets the size");
        page_size.adapt(0, 0);
        assert_eq!(page_size.count(), FIRST);
    }
}
