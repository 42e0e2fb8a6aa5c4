//! The plan: which faults occur, and when; alone, or two or three that overlap. A seed determines the plan.

use crate::fault::{Fault, Topology};
use anyhow::Context;
use std::{fmt, str::FromStr, time::Duration};

/// The approximate time that the nodes and clients take to recover.
const SETTLES: Duration = Duration::from_secs(6);

/// Faults that occur together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) topology: Topology,
    /// Each fault, and when it begins in milliseconds.
    pub(crate) faults: Vec<(Fault, u64)>,
    /// The seed of the random choices within the faults.
    pub(crate) seed: u64,
}

impl Item {
    pub(crate) fn alone(fault: Fault, topology: Topology, seed: u64) -> Self {
        Self { topology, faults: vec![(fault, 0)], seed }
    }

    /// `count` random faults of one topology; each begins at a random moment within the first.
    pub(crate) fn random(topology: Topology, count: usize, random: &mut fastrand::Rng) -> Self {
        let all: Vec<Fault> =
            Fault::ALL.iter().filter(|fault| fault.topologies().contains(&topology)).copied().collect();
        loop {
            let first = all[random.usize(..all.len())];
            let mut faults = vec![(first, 0)];
            while faults.len() < count {
                faults.push((all[random.usize(..all.len())], random.u64(0..first.lasts_ms())));
            }
            // Two faults of clients test nothing that one of them does not.
            if faults.iter().all(|(fault, _)| matches!(fault, Fault::CutClients | Fault::StopReading)) {
                continue;
            }
            return Self { topology, faults, seed: random.u64(0..1_000_000) };
        }
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        self.faults.iter().map(|(fault, _)| *fault).collect()
    }

    /// The names of the faults.
    pub(crate) fn name(&self) -> String {
        self.faults.iter().map(|(fault, _)| fault.word()).collect::<Vec<_>>().join(" + ")
    }

    fn lasts(&self) -> Duration {
        let ends = self.faults.iter().map(|(fault, start)| start + fault.lasts_ms());
        Duration::from_millis(ends.max().unwrap_or(0)) + SETTLES
    }
}

/// Random combinations of `count` faults for `minutes`, topology by topology.
pub(crate) fn combinations(
    topologies: &[Topology],
    count: usize,
    lasts: Duration,
    random: &mut fastrand::Rng,
) -> Vec<Item> {
    let share = lasts / u32::try_from(topologies.len().max(1)).unwrap_or(1);
    let mut plan = Vec::new();
    for &topology in topologies {
        let mut sum = Duration::ZERO;
        while sum < share {
            let item = Item::random(topology, count, random);
            sum += item.lasts();
            plan.push(item);
        }
    }
    plan
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = |(fault, start): &(Fault, u64)| format!("{}@{start}", fault.word());
        let faults: Vec<_> = self.faults.iter().map(fault).collect();
        write!(f, "{}/{}/{}", self.topology.word(), faults.join("+"), self.seed)
    }
}

impl FromStr for Item {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wrong = || {
            format!(
                "{text:?} is not a valid item; the format is TOPOLOGY/FAULT@MS+FAULT@MS/SEED, as in \
                 standalone/kill-redis@0/7"
            )
        };
        let parts: Vec<&str> = text.split('/').collect();
        let [topology, faults, seed] = parts[..] else { anyhow::bail!(wrong()) };
        let topology = *Topology::ALL.iter().find(|known| known.word() == topology).with_context(wrong)?;
        let fault = |text: &str| {
            let (word, start) = text.split_once('@').with_context(wrong)?;
            let fault = find(word)?;
            anyhow::ensure!(
                fault.topologies().contains(&topology),
                "the fault {word} does not apply to the topology {}",
                topology.word()
            );
            Ok((fault, start.parse().with_context(wrong)?))
        };
        let faults: Vec<_> = faults.split('+').map(fault).collect::<anyhow::Result<_>>()?;
        Ok(Self { topology, faults, seed: seed.parse().with_context(wrong)? })
    }
}

/// The fault with a name.
pub(crate) fn find(word: &str) -> anyhow::Result<Fault> {
    let found = Fault::ALL.iter().find(|fault| fault.word() == word.trim());
    found.copied().with_context(|| format!("unknown fault {word:?}; --list prints all faults"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_plan_and_item_names_parse() {
        let plan = || combinations(&Topology::ALL, 2, Duration::from_secs(600), &mut fastrand::Rng::with_seed(7));
        let items = plan();
        assert_eq!(items, plan());
        for topology in Topology::ALL {
            assert!(items.iter().any(|item| item.topology == topology), "{topology:?}");
        }
        for item in &items {
            assert_eq!(item.to_string().parse::<Item>().unwrap(), *item);
            let [(first, 0), (second, start)] = item.faults[..] else { panic!("{item}") };
            assert!(start < first.lasts_ms(), "{item}");
            assert!([first, second].iter().all(|fault| fault.topologies().contains(&item.topology)), "{item}");
        }
    }

    #[test]
    fn invalid_items_are_rejected() {
        for text in ["", "standalone", "standalone/kill-redis/1", "nowhere/kill-redis@0/1", "cluster/kill-redis@0/1"] {
            assert!(text.parse::<Item>().is_err(), "{text}");
        }
    }
}
