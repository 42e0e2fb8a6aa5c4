//! Faults under load: real processes, real servers, and an oracle that compares what was published with what was
//! received.

mod client;
mod fault;
mod flood;
mod hold;
mod interrupt;
mod load;
mod oracle;
mod plan;
mod publisher;
mod report;
mod stage;
mod steps;
mod storm;
mod world;

use anyhow::{Context, bail};
use clap::Parser;
use fanfare::{Minter, auth::Claims};
use fault::{Fault, Topology};
use plan::Item;
use report::Report;
use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

/// All clients have one address and one user, so the limits of these do not apply.
const UNLIMITED: [&str; 6] = [
    "--connects-per-second-per-address",
    "0",
    "--connects-per-second-per-user",
    "0",
    "--max-connections-per-address",
    "0",
];

/// What the tests run: faults that affect each part once, and some pairs that failed in earlier versions.
const SHORT: &[&str] = &[
    "standalone/kill-worker@0/1",
    "standalone/rolling-restart@0/2",
    "standalone/cut-clients@0+kill-redis@500/3",
    "standalone/forget-redis@0/4",
    "standalone/old-then-new@0/5",
    "standalone/alone-then-killed@0/6",
    "standalone/alone-then-stopped@0/7",
    "standalone/stop-reading@0+client-pause@500/8",
    "standalone/disk-full@0+kill-worker@2000/9",
    "standalone/client-kill@0/10",
    "networks/partition-there@0+power-loss@3000/11",
    "sentinel/sentinel-kill@0/12",
    "sentinel/sentinel-there-and-back@0/13",
    "cluster/cluster-kill@0+kill-worker@1000/14",
];

const SECRET: &str = "the secret of a chaos run, used nowhere else";

/// Faults under load. Starts Redis (alone, under Sentinel, as a Cluster) and a hub with workers, publishes to clients,
/// injects faults one after the other or several at once, and prints what was lost, duplicated or reordered. The exit
/// code is 1 if anything was, or if clients received gaps that the faults do not explain.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  scripts/chaos --short                             what the tests run, about three minutes
  scripts/chaos --times 20 --json chaos.json        every fault twenty times
  scripts/chaos --hours 8 --faults kill-redis,sentinel-kill
  scripts/chaos --pairs --minutes 30 --seed 7       two faults that overlap, again and again
  scripts/chaos --triples --minutes 10 --topologies sentinel
  scripts/chaos --window 100 --faults stop-reading,old-copy
  scripts/chaos --repeat standalone/kill-redis@0+stop-worker@1200/42")]
struct Options {
    /// The fanfare program [default: in the directory of this program].
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Faults to inject one after the other, separated by commas; --list prints them.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// The number of times that each fault is injected.
    #[arg(long, default_value_t = 1)]
    times: usize,
    /// Repeats the faults for this many hours instead.
    #[arg(long)]
    hours: Option<f64>,
    /// Random pairs of faults that overlap, for --minutes.
    #[arg(long, conflicts_with_all = ["faults", "hours", "short"])]
    pairs: bool,
    /// Random triples of faults that overlap, for --minutes.
    #[arg(long, conflicts_with_all = ["faults", "hours", "short", "pairs"])]
    triples: bool,
    /// The duration of --pairs and --triples.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// The topologies of --pairs and --triples, separated by commas: standalone, networks, sentinel, cluster [default:
    /// all].
    #[arg(long, value_delimiter = ',')]
    topologies: Vec<String>,
    /// Repeats an item of a plan by its name, such as standalone/kill-redis@0+stop-worker@1200/42; may be given several
    /// times.
    #[arg(long)]
    repeat: Vec<Item>,
    /// Some faults and a few pairs, with a small load: what the tests run.
    #[arg(long)]
    short: bool,
    /// Worker processes of the hub.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Clients.
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Events a second of each publisher.
    #[arg(long, default_value_t = 25)]
    rate: u32,
    /// The number of events that the hub retains [default: all of the run]. With a small window, clients receive gaps.
    #[arg(long)]
    window: Option<usize>,
    /// The seed of all random choices [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// Writes the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keeps the nodes' logs of each item that fails, in this directory.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Instead of faults: a node fails, and this many clients resume at once on another; for each number given.
    #[arg(long, value_delimiter = ',')]
    storm: Vec<usize>,
    /// Instead of faults: this many connections at once, each of which receives every event.
    #[arg(long)]
    hold: Option<usize>,
    /// Instead of faults: this many rejected connects a second for ten seconds, while other clients are served.
    #[arg(long)]
    flood: Option<usize>,
    /// For internal use by --hold: the clients of one process.
    #[arg(long, hide = true, requires = "address")]
    hold_part: Option<usize>,
    #[arg(long, hide = true)]
    address: Option<SocketAddr>,
    /// Prints all faults.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = Options::parse();
    if options.list {
        for fault in Fault::ALL {
            let topologies: Vec<_> = fault.topologies().iter().map(|topology| topology.word()).collect();
            println!("{:<24} {} ({})", fault.word(), fault.help(), topologies.join(", "));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(count), Some(address)) = (options.hold_part, options.address) {
        return hold::part(count, options.rate, address);
    }
    if let Some(rate) = options.flood {
        return flood::run(&options, rate);
    }
    if let Some(connections) = options.hold {
        return hold::run(&options, connections);
    }
    if !options.storm.is_empty() {
        return storm::run(&options);
    }
    if options.short {
        (options.clients, options.rate) = (options.clients.min(60), options.rate.min(20));
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    fastrand::seed(seed);
    println!(
        "{} workers, {} clients, {} publishers of {} events a second; seed {seed}",
        options.workers,
        options.clients,
        stage::PUBLISHERS,
        options.rate
    );
    let interrupted = interrupt::watch()?;
    let report = run(&options, &mut fastrand::Rng::with_seed(seed), &interrupted)?;
    println!("\n{}", report.table());
    if interrupted() {
        println!("\ninterrupted");
        return Ok(ExitCode::from(130));
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The faults to inject.
fn plan(options: &Options, random: &mut fastrand::Rng) -> anyhow::Result<Vec<Item>> {
    if !options.repeat.is_empty() {
        return Ok(options.repeat.clone());
    }
    if options.short {
        return SHORT.iter().map(|item| item.parse()).collect();
    }
    if options.pairs || options.triples {
        let known = |word: &String| {
            let found = Topology::ALL.into_iter().find(|topology| topology.word() == word);
            found.with_context(|| format!("unknown topology {word:?}; use standalone, networks, sentinel or cluster"))
        };
        let topologies = match &options.topologies[..] {
            [] => Topology::ALL.to_vec(),
            words => words.iter().map(known).collect::<anyhow::Result<_>>()?,
        };
        let (count, lasts) = (if options.triples { 3 } else { 2 }, Duration::from_secs_f64(options.minutes * 60.0));
        let items = plan::combinations(&topologies, count, lasts, random);
        println!("\nthe plan (the last items of each topology may not fit into the time):");
        items.iter().for_each(|item| println!("  {item}"));
        return Ok(items);
    }
    let faults: Vec<Fault> = match &options.faults[..] {
        [] => Fault::ALL.to_vec(),
        words => words.iter().map(|word| plan::find(word)).collect::<anyhow::Result<_>>()?,
    };
    let mut items: Vec<Item> = Vec::new();
    for fault in faults {
        for _ in 0..options.times {
            items.push(Item::alone(fault, fault.topologies()[0], random.u64(0..1_000_000)));
        }
    }
    random.shuffle(&mut items);
    Ok(items)
}

fn run(options: &Options, random: &mut fastrand::Rng, interrupted: &dyn Fn() -> bool) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let begun = Instant::now();
    let hours = options.hours.map(|hours| begun + Duration::from_secs_f64(hours * 3_600.0));
    loop {
        let plan = plan(options, random)?;
        let topologies: Vec<_> =
            Topology::ALL.into_iter().filter(|topology| plan.iter().any(|item| item.topology == *topology)).collect();
        for (i, topology) in topologies.iter().enumerate() {
            let items: Vec<&Item> = plan.iter().filter(|item| item.topology == *topology).collect();
            // Topologies share the remaining time equally.
            let limited = options.pairs || options.triples;
            let left = Duration::from_secs_f64(options.minutes * 60.0).saturating_sub(begun.elapsed());
            let share = left / u32::try_from(topologies.len() - i).unwrap_or(1);
            let end = stage::End { at: limited.then(|| Instant::now() + share), interrupted };
            stage::run(options, &items, begun, &end, &mut report)?;
        }
        if interrupted() || hours.is_none_or(|end| Instant::now() >= end) {
            return Ok(report);
        }
    }
}

/// The path of the fanfare program.
fn program(options: &Options) -> anyhow::Result<PathBuf> {
    let program = match &options.bin {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("fanfare"),
    };
    if !program.exists() {
        bail!("{} does not exist: build it with cargo build --release, or set --bin", program.display());
    }
    // An absolute path, because the hub is started in another directory.
    Ok(program.canonicalize()?)
}

/// A token that is valid for longer than the run.
fn mint(sub: String, publish: bool) -> anyhow::Result<String> {
    let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 7 * 86_400;
    let claims = Claims { sub, publish, topics: vec!["*".to_owned()], exp: Some(expires), ..Claims::default() };
    Ok(Minter::from_secret(SECRET)?.mint(&claims))
}
