//! One topology under load: starts it, injects faults, and waits after each until everything is level again.

use crate::{
    Options, SECRET,
    client::{self, CHANGING_TOPIC},
    load::{Figures, Habits, Load, Reader},
    mint,
    oracle::{Kind, Ledger, Lineage, Wrong},
    program,
    publisher::{self, Style, Way},
    report::{self, Report},
    world::{Fault, Topology, World},
};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// How long clients may take to be level again after a fault.
const LEVEL: Duration = Duration::from_secs(180);

/// How many publishers there are.
pub(crate) const PUBLISHERS: usize = 9;

/// Runs faults against one topology.
pub(crate) fn run(
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
        let figures = settle(&load, &mut world);
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

/// To whom each publisher publishes, and how. `first` is the name of the first client's connection.
fn ways(first: &str) -> [Way; PUBLISHERS] {
    let everyone = || json!("everyone");
    let http = |audience: Value, style: Style| Way::Http { audience, style };
    [
        http(everyone(), Style::InTurn),
        http(json!({ "user": "ann" }), Style::InTurn),
        http(json!({ "topic": "chaos" }), Style::Large),
        http(json!({ "connection": first }), Style::InTurn),
        http(everyone(), Style::Again),
        Way::Channel,
        http(everyone(), Style::Batches),
        http(everyone(), Style::Pipelined),
        http(json!({ "topic": CHANGING_TOPIC }), Style::InTurn),
    ]
}

/// Whose events can be expected in which order; as [`ways`].
const KINDS: [Kind; PUBLISHERS] = [
    Kind::InTurn,
    Kind::InTurn,
    Kind::InTurn,
    Kind::InTurn,
    Kind::InTurn,
    Kind::Unacknowledged,
    Kind::InTurn,
    Kind::Pipelined,
    Kind::InTurn,
];

/// The client of a number.
fn reader(i: usize) -> anyhow::Result<Reader> {
    let mut ledger = Ledger::default();
    for publisher in [0, 2, 4, 5, 6, 7] {
        ledger.expect(publisher);
    }
    if i.is_multiple_of(3) {
        ledger.expect(1);
    }
    if i == 0 {
        ledger.expect(3);
    }
    // A client that comes back under another name and with an id as its cursor is told of a gap each time.
    let habits = Habits { keeps_name: i % 5 != 1, by_id: i % 5 == 3, changes_topic: (i % 4 == 2).then_some(8) };
    if let Some(publisher) = habits.changes_topic {
        ledger.expect_topic(publisher);
    }
    let user = if i.is_multiple_of(3) { "ann".to_owned() } else { format!("user-{i}") };
    Ok(Reader::new(mint(user, false)?, habits, ledger))
}

/// Starts clients and publishers, and waits until the first events are everywhere.
fn begin(options: &Options, world: &mut World, runtime: &Runtime) -> anyhow::Result<Arc<Load>> {
    let run = format!("{:08x}", fastrand::u32(..));
    let token = mint("publisher".to_owned(), true)?;
    let mut load = Load::new(run, vec![world.hub.address()], token, options.rate, &KINDS);
    load.readers = (0..options.clients).map(|i| reader(i).map(Arc::new)).collect::<anyhow::Result<_>>()?;
    load.redis_port.store(world.redis_port(), Ordering::Relaxed);
    let load = Arc::new(load);
    for reader in &load.readers {
        runtime.spawn(client::run(load.clone(), reader.clone()));
    }
    testbed::until("all clients are connected", || load.live() == load.readers.len());
    let first = load.readers[0].name().context("the first client has a name")?;
    for (publisher, way) in ways(&first).into_iter().enumerate() {
        runtime.spawn(publisher::run(load.clone(), publisher, way));
    }
    let begun = settle(&load, world);
    ensure!(begun.delivered > 0 && begun.wrong == Wrong::default(), "the load does not start: {begun:?}");
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
fn settle(load: &Load, world: &mut World) -> Figures {
    let deadline = Instant::now() + LEVEL;
    let wait = |done: &mut dyn FnMut() -> bool| {
        while !done() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(200));
        }
        done()
    };
    let (before, acknowledged) = (load.targets(), load.acknowledged_publishers());
    if !wait(&mut || {
        let now = load.targets();
        acknowledged.iter().all(|&publisher| now[publisher] > before[publisher])
    }) {
        load.note_odd("publishing did not work again in time");
    }
    let targets = load.targets();
    let known = world.known.clone();
    let mut lineage = Lineage::default();
    let level = wait(&mut || {
        // What the log lost can be known once it goes on.
        lineage = world.lineage();
        load.live() == load.readers.len() && load.behind(&targets, &lineage) == 0
    });
    if !level {
        let behind = load.behind(&targets, &lineage);
        println!("           {behind} clients are behind; the hub says:\n{}", last_lines(&world.hub.log()));
    }
    let mut figures = load.take_figures(&targets, &lineage);
    figures.losses = known.map_or(0, |known| lineage.losses_since(&known));
    world.known = Some(lineage);
    figures
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
