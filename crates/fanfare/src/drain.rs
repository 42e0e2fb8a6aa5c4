//! The rate at which a drain disconnects clients, so that they do not all reconnect to another node at the same time.
//! Knows neither clients nor clocks.

/// Interval between waves, in milliseconds.
pub(crate) const WAVE_MS: u64 = 100;

/// Computes the size of each wave.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Clients a second; 0: all in one wave.
    rate: u32,
    /// The fraction of a client carried over to the next wave, in thousandths.
    rest: u64,
}

impl Pace {
    pub(crate) fn new(rate: u32) -> Self {
        Self { rate, rest: 0 }
    }

    /// The maximum number of clients in the next wave. Unused capacity of a wave is not carried over.
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

/// Distributes a wave over the shards: each shard receives up to its number of waiting clients while capacity is left.
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
    fn waves_follow_the_drain_rate() {
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
    fn a_wave_is_shared_between_the_shards() {
        let shares: Vec<_> = share_out(100, [30, 0, 90, 50].into_iter()).collect();
        assert_eq!(shares, [30, 0, 70, 0]);
    }
}
