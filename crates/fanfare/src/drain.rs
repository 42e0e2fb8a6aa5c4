//! The pace at which clients are told to go, so that they don't all come to the next node at once. Knows neither
//! clients nor clocks.

/// How often a wave goes out, in milliseconds.
pub(crate) const WAVE_MS: u64 = 100;

/// How many clients each wave may hold.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Clients a second; 0: all at once.
    rate: u32,
    /// What is left over of a client, in thousandths.
    rest: u64,
}

impl Pace {
    pub(crate) fn new(rate: u32) -> Self {
        Self { rate, rest: 0 }
    }

    /// How many clients the next wave may hold. What one wave leaves is not added to the next.
    pub(crate) fn wave(&mut self) -> usize {
        if self.rate == 0 {
            return usize::MAX;
        }
        self.rest += u64::from(self.rate) * WAVE_MS;
        let whole = self.rest / 1_000;
        self.rest %= 1_000;
        usize::try_from(whole).unwrap_or(usize::MAX)
    }
}

/// Shares a wave out: each shard gets what it can use, as long as there is something.
pub(crate) fn share_out(wave: usize, waiting: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    waiting.scan(wave, |left, waiting| {
        let share = waiting.min(*left);
        *left -= share;
        Some(share)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_hold_what_was_asked_for() {
        for rate in [1, 7, 10, 99, 1_000, 12_345] {
            let mut pace = Pace::new(rate);
            let waves: Vec<usize> = (0..100).map(|_| pace.wave()).collect();
            assert_eq!(waves.iter().sum::<usize>(), rate as usize * 10, "in ten seconds");
            assert!(waves.iter().all(|&wave| wave <= rate.div_ceil(10) as usize), "{waves:?}");
            let second = waves.windows(10).map(|second| second.iter().sum::<usize>()).max();
            assert!(second.unwrap() <= rate as usize + 1, "{second:?} in a second of {rate}");
        }
        assert_eq!(Pace::new(0).wave(), usize::MAX);
    }

    #[test]
    fn shards_share_one_wave() {
        let shares: Vec<_> = share_out(100, [30, 0, 90, 50].into_iter()).collect();
        assert_eq!(shares, [30, 0, 70, 0]);
    }
}
