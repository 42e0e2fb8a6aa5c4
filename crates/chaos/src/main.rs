//! Faults under load: real processes, real servers, and an oracle that compares what was published with what was read.

mod client;
mod flood;
mod hold;
mod load;
mod oracle;
mod publisher;
mod report;
mod stage;
mod storm;
mod world;

use anyhow::{Context, bail};
use clap::Parser;
use fanfare::{Minter, auth::Claims};
use report::Report;
use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};
use world::{Fault, Topology};

/// What one address and one user may do is not what these runs are about: all their clients are one of each.
const UNLIMITED: [&str; 6] = [
    "--connects-per-second-per-address",
    "0",
    "--connects-per-second-per-user",
    "0",
    "--max-connections-per-address",
    "0",
];

const SECRET: &str = "the secret of a chaos run, not of anything else";

/// Faults under load: starts Redis (alone, under Sentinel, as a Cluster) and a hub with workers, publishes to clients,
/// injects faults, and says what was lost, doubled or reordered. Exit code 1 if anything was.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  scripts/chaos --short\n  scripts/chaos --times 20 --json chaos.json\n  \
                        scripts/chaos --hours 8 --faults kill-redis,sentinel-kill")]
struct Options {
    /// The hub's program [default: the one beside this].
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Faults to inject, with commas between; --list shows them all.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// How often each fault is injected.
    #[arg(long, default_value_t = 1)]
    times: usize,
    /// Goes on for so many hours instead.
    #[arg(long)]
    hours: Option<f64>,
    /// Each fault once, with a small load: what the tests run.
    #[arg(long)]
    short: bool,
    /// Processes of the hub.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Clients.
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Events a second of each publisher.
    #[arg(long, default_value_t = 25)]
    rate: u32,
    /// Makes the same random choices again.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes the figures to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Instead of faults: so many clients resume at once on another node, for each number given.
    #[arg(long, value_delimiter = ',')]
    storm: Vec<usize>,
    /// Instead of faults: so many connections at once, all of which get every event.
    #[arg(long)]
    hold: Option<usize>,
    /// Instead of faults: so many refused connects a second for ten seconds, while others are served.
    #[arg(long)]
    flood: Option<usize>,
    /// For --hold's own use: clients of one process.
    #[arg(long, hide = true, requires = "address")]
    hold_part: Option<usize>,
    #[arg(long, hide = true)]
    address: Option<SocketAddr>,
    /// Shows all faults.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = Options::parse();
    if options.list {
        for fault in Fault::ALL {
            println!("{:<18} {}", fault.word(), fault.help());
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
    let faults = chosen(&options.faults)?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    fastrand::seed(seed);
    println!(
        "{} workers, {} clients, {} publishers of {} events a second; seed {seed}",
        options.workers,
        options.clients,
        stage::PUBLISHERS,
        options.rate
    );
    let report = run(&options, &faults, &mut fastrand::Rng::with_seed(seed))?;
    println!("\n{}", report.table());
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(words: &[String]) -> anyhow::Result<Vec<Fault>> {
    let find = |word: &String| {
        let fault = Fault::ALL.iter().find(|fault| fault.word() == word.trim());
        fault.copied().with_context(|| format!("there is no fault {word:?}; --list shows them all"))
    };
    if words.is_empty() { Ok(Fault::ALL.to_vec()) } else { words.iter().map(find).collect() }
}

fn run(options: &Options, faults: &[Fault], random: &mut fastrand::Rng) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let begun = Instant::now();
    let end = options.hours.map(|hours| begun + Duration::from_secs_f64(hours * 3_600.0));
    loop {
        for topology in [Topology::Standalone, Topology::Sentinel, Topology::Cluster] {
            let mut plan: Vec<Fault> = faults.iter().filter(|fault| fault.topology() == topology).copied().collect();
            plan = plan.iter().flat_map(|fault| std::iter::repeat_n(*fault, options.times)).collect();
            random.shuffle(&mut plan);
            if !plan.is_empty() {
                println!("\n== {topology:?}");
                stage::run(options, topology, &plan, random, begun, &mut report)?;
            }
        }
        if end.is_none_or(|end| Instant::now() >= end) {
            return Ok(report);
        }
    }
}

/// The hub's program.
fn program(options: &Options) -> anyhow::Result<PathBuf> {
    let program = match &options.bin {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("fanfare"),
    };
    if !program.exists() {
        bail!("there is no {}: build it with cargo build --release, or name it with --bin", program.display());
    }
    // The hub is started in a directory of its own.
    Ok(program.canonicalize()?)
}

/// A token that outlives the run.
fn mint(sub: String, publish: bool) -> anyhow::Result<String> {
    let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 7 * 86_400;
    let claims = Claims { sub, publish, topics: vec!["*".to_owned()], exp: Some(expires), ..Claims::default() };
    Ok(Minter::from_secret(SECRET)?.mint(&claims))
}
