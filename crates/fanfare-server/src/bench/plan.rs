//! The plan of a load: a preset, changed by flags, divided among processes and source addresses.

use crate::{settings::kind::parse_duration, util::UsageError};
use clap::ArgMatches;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

/// Files that a process needs in addition to its connections.
const SPARE_FILES: u64 = 64;
/// The largest number of connections in one process; more of them gain nothing.
const MAX_IN_A_PROCESS: u64 = 16_000;
/// A hub with default settings accepts 1,000 connections from one address, and 100 new ones a second.
const CONNECTIONS_PER_SOURCE: u64 = 500;
const RATE_PER_SOURCE: f64 = 50.0;
/// Clients of each topic.
const PER_TOPIC: u64 = 100;

/// A named load.
pub(crate) struct Preset {
    pub(crate) name: &'static str,
    connections: u64,
    /// Connects a second.
    ramp: f64,
    hold: Duration,
    /// Events a second.
    rate: f64,
}

const fn preset(name: &'static str, connections: u64, ramp: f64, hold_secs: u64, rate: f64) -> Preset {
    Preset { name, connections, ramp, hold: Duration::from_secs(hold_secs), rate }
}

/// The rates are low enough for two cores that also run the clients.
pub(crate) const PRESETS: &[Preset] = &[
    preset("small", 1_000, 500.0, 10, 20.0),
    preset("medium", 10_000, 1_000.0, 30, 10.0),
    preset("target", 50_000, 1_000.0, 300, 5.0),
    preset("large", 100_000, 1_000.0, 300, 2.0),
    preset("million", 1_000_000, 4_000.0, 60, 0.1),
];

/// The audience of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Everyone,
    Topic,
    User,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Everyone, Self::Topic, Self::User];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::Topic => "topic",
            Self::User => "user",
        }
    }
}

/// The load to generate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) url: String,
    pub(crate) connections: u64,
    /// Connects a second.
    pub(crate) ramp: f64,
    pub(crate) hold: Duration,
    /// Events a second.
    pub(crate) rate: f64,
    /// The relative frequency of each audience, in the order of [`Kind::ALL`].
    pub(crate) mix: [u32; 3],
    /// Approximate size of an event's `data`, in bytes.
    pub(crate) payload: usize,
    /// Clients a second that disconnect and reconnect, continuously.
    #[serde(default)]
    pub(crate) churn: f64,
    /// Number of reconnect storms.
    pub(crate) storms: u32,
    /// The time over which clients reconnect after a storm.
    pub(crate) storm_spread: Duration,
    /// Percentage of clients that read slowly.
    pub(crate) slow_percent: u32,
    /// Number of topics. 0: the clients subscribe to none.
    pub(crate) topics: u64,
    pub(crate) processes: u64,
    /// Source addresses of connections. Empty: the system chooses.
    pub(crate) sources: Vec<IpAddr>,
    /// Connections to the bare write loop on the same machine. 0: none.
    pub(crate) floor: u64,
}

impl Plan {
    /// Parses the flags. `target` is the hub; `files` is the limit on open files of a process.
    pub(crate) fn read(matches: &ArgMatches, target: IpAddr, files: u64) -> Result<Self, UsageError> {
        let name = matches.get_one::<String>("preset").map_or("small", String::as_str);
        let preset = PRESETS.iter().find(|preset| preset.name == name).unwrap_or(&PRESETS[0]);
        let connections = matches.get_one("connections").copied().unwrap_or(preset.connections);
        let ramp = matches.get_one("ramp").copied().unwrap_or(preset.ramp);
        let storm_spread = duration(matches, "storm-spread")?.unwrap_or(Duration::from_secs(10));
        let storms = matches.get_one("storms").copied().unwrap_or(0);
        let usable = files.saturating_sub(SPARE_FILES).max(1);
        let fewest = connections.div_ceil(usable.min(MAX_IN_A_PROCESS));
        let processes = matches.get_one("processes").copied().unwrap_or(fewest).clamp(1, connections.max(1));
        if connections.div_ceil(processes) > usable {
            let most = usable * processes;
            return Err(UsageError(format!(
                "{processes} processes can open {most} connections, because each may open {files} files: use \
                 --processes {fewest}, or a higher `ulimit -n`"
            )));
        }
        let fastest =
            if storms > 0 { ramp.max(connections as f64 / storm_spread.as_secs_f64().max(0.1)) } else { ramp };
        let floor = matches.get_flag("floor");
        let (mix, rate) = match matches.get_one::<String>("mix") {
            Some(text) if floor && mix(text)?[1..] != [0, 0] => {
                return Err(UsageError(
                    "the bare write loop supports only one audience: use --floor with --mix everyone=1".to_owned(),
                ));
            }
            Some(text) => (mix(text)?, preset.rate),
            // The same rate of events to everyone as with the default mix.
            None if floor => ([1, 0, 0], preset.rate / 10.0),
            None => ([1, 2, 7], preset.rate),
        };
        Ok(Self {
            url: matches.get_one::<String>("url").cloned().unwrap_or_default(),
            connections,
            ramp,
            hold: duration(matches, "hold")?.unwrap_or(preset.hold),
            rate: matches.get_one("rate").copied().unwrap_or(rate),
            mix,
            payload: matches.get_one::<u32>("payload").map_or(200, |&bytes| bytes as usize),
            churn: matches.get_one("churn").copied().unwrap_or(0.0),
            storms,
            storm_spread,
            slow_percent: matches.get_one("slow").copied().unwrap_or(0),
            topics: connections.div_ceil(PER_TOPIC).max(1),
            processes,
            sources: sources(matches, target, connections, fastest)?,
            floor: if floor { connections.min(usable) } else { 0 },
        })
    }

    /// The range of client numbers of a process.
    pub(crate) fn part(&self, process: u64) -> std::ops::Range<u64> {
        let (each, more) = (self.connections / self.processes, self.connections % self.processes);
        let first = process * each + process.min(more);
        first..first + each + u64::from(process < more)
    }

    pub(crate) fn topic_of(&self, client: u64) -> u64 {
        client % self.topics.max(1)
    }

    pub(crate) fn is_slow(&self, client: u64) -> bool {
        client % 100 < u64::from(self.slow_percent)
    }
}

/// Loopback offers many source addresses. For other hubs the system chooses, unless addresses are named.
fn sources(matches: &ArgMatches, target: IpAddr, connections: u64, fastest: f64) -> Result<Vec<IpAddr>, UsageError> {
    let named = matches.get_many::<IpAddr>("source").into_iter().flatten().copied().collect::<Vec<_>>();
    if named.iter().any(|source| source.is_ipv4() != target.is_ipv4()) {
        return Err(UsageError("--source and the hub's address must both be IPv4, or both IPv6".to_owned()));
    }
    if !named.is_empty() || !target.is_ipv4() || !target.is_loopback() {
        return Ok(named);
    }
    let wanted = connections.div_ceil(CONNECTIONS_PER_SOURCE).max((fastest / RATE_PER_SOURCE).ceil() as u64);
    // From 127.1.0.1 on, separate from other connections at 127.0.0.1.
    let address = |n: u64| IpAddr::from((0x7f01_0001_u32 + u32::try_from(n).unwrap_or(0)).to_be_bytes());
    Ok((0..wanted.clamp(1, 60_000)).map(address).collect())
}

fn mix(text: &str) -> Result<[u32; 3], UsageError> {
    let wrong = || {
        UsageError(format!(
            "--mix: {text:?} is not a valid mix; expected weights of audiences, such as everyone=1,topic=2,user=7"
        ))
    };
    let mut mix = [0; 3];
    for part in text.split(',') {
        let (name, weight) = part.split_once('=').ok_or_else(wrong)?;
        let at = Kind::ALL.iter().position(|kind| kind.name() == name.trim()).ok_or_else(wrong)?;
        mix[at] = weight.trim().parse().map_err(|_| wrong())?;
    }
    if mix.iter().all(|&weight| weight == 0) { Err(wrong()) } else { Ok(mix) }
}

fn duration(matches: &ArgMatches, name: &str) -> Result<Option<Duration>, UsageError> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    let parsed = parse_duration(text).map(Some);
    parsed.ok_or_else(|| {
        UsageError(format!("--{name}: {text:?} is not a valid duration; expected one such as 500ms, 30s or 5m"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn plan(line: &str) -> Result<Plan, String> {
        let words = ["fanfare", "bench"].into_iter().chain(line.split_whitespace());
        let matches = cli::command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        let (_, matches) = matches.subcommand().unwrap();
        Plan::read(matches, IpAddr::from([127, 0, 0, 1]), 20_000).map_err(|error| error.to_string())
    }

    #[test]
    fn every_preset_fits_the_limits_of_its_processes() {
        for preset in PRESETS {
            let plan = plan(&format!("--preset {}", preset.name)).unwrap();
            assert_eq!(plan.connections, preset.connections);
            let parts: Vec<_> = (0..plan.processes).map(|process| plan.part(process)).collect();
            assert!(parts.iter().all(|part| (1..=16_000).contains(&(part.end - part.start))), "{parts:?}");
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{parts:?}");
            assert_eq!((parts[0].start, parts.last().unwrap().end), (0, plan.connections));
            assert!(plan.sources.len() as u64 * CONNECTIONS_PER_SOURCE >= plan.connections);
        }
    }

    #[test]
    fn flags_change_a_preset() {
        let plan =
            plan("--preset medium --connections 70 --hold 5s --ramp 2.5 --mix user=3 --slow 10 --storms 1 --churn 7")
                .unwrap();
        assert_eq!((plan.connections, plan.hold, plan.ramp), (70, Duration::from_secs(5), 2.5));
        assert_eq!((plan.mix, plan.slow_percent, plan.processes, plan.rate), ([0, 0, 3], 10, 1, 10.0));
        assert_eq!((plan.storms, plan.churn), (1, 7.0));
        assert_eq!((0..100).filter(|&client| plan.is_slow(client)).count(), 10);
    }

    #[test]
    fn what_can_not_be_done_is_said() {
        for (line, says) in [
            ("--mix all=1", "everyone=1"),
            ("--mix everyone=0", "everyone=1"),
            ("--hold soon", "--hold: \"soon\" is not a valid duration"),
            ("--connections 50000 --processes 2", "--processes 4"),
            ("--preset huge", "small"),
            ("--source ::1", "both be IPv4"),
            ("--floor --mix user=1", "--mix everyone=1"),
        ] {
            let said = plan(line).expect_err(line);
            assert!(said.contains(says), "{line}: {said}");
        }
    }
}
