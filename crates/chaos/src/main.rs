//! Faults under load: real processes, real servers, and an oracle that compares what was published with what was read.

mod client;
mod flood;
mod hold;
mod load;
mod oracle;
mod publisher;
mod report;
mod storm;
mod world;

use anyhow::{Context, bail};
use clap::Parser;
use fanfare::{Minter, auth::Claims};
use load::{Figures, Load, Reader};
use oracle::Ledger;
use publisher::Way;
use report::Report;
use serde_json::json;
use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};
use tokio::runtime::Runtime;
use world::{Fault, Topology, World};

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

/// How long clients may take to be level again after a fault.
const LEVEL: Duration = Duration::from_secs(180);

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
        "{} workers, {} clients, 6 publishers of {} events a second; seed {seed}",
        options.workers, options.clients, options.rate
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
                stage(options, topology, &plan, random, begun, &mut report)?;
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

/// Runs faults against one topology.
fn stage(
    options: &Options,
    topology: Topology,
    plan: &[Fault],
    random: &mut fastrand::Rng,
    begun: Instant,
    report: &mut Report,
) -> anyhow::Result<()> {
    let program = program(options)?;
    let mut world = World::start(topology, &program, options.workers, SECRET);
    let runtime = Runtime::new()?;
    let load = begin(options, &mut world, &runtime)?;
    for &fault in plan {
        thread::sleep(Duration::from_millis(random.u64(300..1_500)));
        inject(fault, &mut world, &load, random)?;
        let figures = settle(&load, &world);
        println!("{:>7.1} s  {}", begun.elapsed().as_secs_f64(), report::line(fault, &figures));
        for (example, clients) in figures.examples.iter().take(5) {
            println!("           {clients} clients: {example}");
        }
        report.add(fault, figures);
        if let Some(path) = &options.json {
            // Each time, so that a run that is broken off leaves what it has.
            std::fs::write(path, serde_json::to_string_pretty(&report.json())?)
                .with_context(|| format!("{} can't be written", path.display()))?;
        }
        load.redis_port.store(world.redis_port(), Ordering::Relaxed);
    }
    load.ended.store(true, Ordering::Relaxed);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// A token that outlives the run.
fn mint(sub: String, publish: bool) -> anyhow::Result<String> {
    let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 7 * 86_400;
    let claims = Claims { sub, publish, topics: vec!["*".to_owned()], exp: Some(expires), ..Claims::default() };
    Ok(Minter::from_secret(SECRET)?.mint(&claims))
}

/// Starts clients and publishers, and waits until the first events are everywhere.
fn begin(options: &Options, world: &mut World, runtime: &Runtime) -> anyhow::Result<Arc<Load>> {
    let run = format!("{:08x}", fastrand::u32(..));
    let mut load = Load::new(run, world.hub.address(), mint("publisher".to_owned(), true)?, options.rate);
    load.published.resize_with(6, Default::default);
    for i in 0..options.clients {
        let mut ledger = Ledger::default();
        for publisher in [0, 2, 4] {
            ledger.expect(publisher, 1, true);
        }
        if i % 3 == 0 {
            ledger.expect(1, 1, true);
        }
        if i == 0 {
            ledger.expect(3, 1, true);
        }
        ledger.expect(5, 1, false);
        let user = if i % 3 == 0 { "ann".to_owned() } else { format!("user-{i}") };
        load.readers.push(Arc::new(Reader::new(mint(user, false)?, i % 5 != 1, ledger)));
    }
    load.redis_port.store(world.redis_port(), Ordering::Relaxed);
    let load = Arc::new(load);
    for reader in &load.readers {
        runtime.spawn(client::run(load.clone(), reader.clone()));
    }
    testbed::until("all clients are connected", || {
        load.readers.iter().all(|reader| reader.live.load(Ordering::Relaxed))
    });
    let first = load.readers[0].name().context("the first client has a name")?;
    for (publisher, way) in [
        Way::Http { audience: json!("everyone"), twice: false },
        Way::Http { audience: json!({ "user": "ann" }), twice: false },
        Way::Http { audience: json!({ "topic": "chaos" }), twice: false },
        Way::Http { audience: json!({ "connection": first }), twice: false },
        Way::Http { audience: json!("everyone"), twice: true },
        Way::Channel,
    ]
    .into_iter()
    .enumerate()
    {
        runtime.spawn(publisher::run(load.clone(), publisher, way));
    }
    let begun = settle(&load, world);
    anyhow::ensure!(
        begun.delivered > 0 && begun.wrong == oracle::Wrong::default(),
        "the load does not start: {begun:?}"
    );
    Ok(load)
}

fn inject(fault: Fault, world: &mut World, load: &Load, random: &mut fastrand::Rng) -> anyhow::Result<()> {
    if world.suffer(fault, random).is_some() {
        return Ok(());
    }
    let mut some = || -> Vec<&Arc<Reader>> { load.readers.iter().filter(|_| random.u8(0..3) == 0).collect() };
    match fault {
        Fault::Cut => {
            for _ in 0..3 {
                some().iter().for_each(|reader| reader.cut.notify_one());
                thread::sleep(Duration::from_millis(700));
            }
        }
        Fault::Halt => {
            let halted = some();
            halted.iter().for_each(|reader| reader.halted.store(true, Ordering::Relaxed));
            thread::sleep(Duration::from_secs(6));
            halted.iter().for_each(|reader| reader.halted.store(false, Ordering::Relaxed));
        }
        other => bail!("{} is for another topology", other.word()),
    }
    Ok(())
}

/// Waits until every publisher is acknowledged again and every client has all of it, and takes the figures.
fn settle(load: &Load, world: &World) -> Figures {
    let deadline = Instant::now() + LEVEL;
    let wait = |done: &dyn Fn() -> bool| {
        while !done() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        done()
    };
    let before = load.targets();
    let taken = wait(&|| load.targets().iter().zip(&before).all(|(now, before)| now > before));
    if !taken {
        load.note_odd("publishing did not work again in time");
    }
    let live = || load.readers.iter().all(|reader| reader.live.load(Ordering::Relaxed));
    let targets = load.targets();
    if !wait(&|| live() && load.behind(&targets) == 0) {
        println!(
            "           {} clients are behind; the hub says:\n{}",
            load.behind(&targets),
            last_lines(&world.hub.log())
        );
        load.give_up(&targets);
    }
    let forgotten = load.forgotten.swap(0, Ordering::Relaxed);
    if forgotten > 0 {
        load.note_odd(&format!("the log took {forgotten} events a second time"));
    }
    load.take_figures()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
