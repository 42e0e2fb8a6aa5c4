//! Runs one topology under load: starts it, injects the faults, and waits after each item until everything has
//! recovered.

use crate::{
    Options, SECRET,
    client::{self, CHANGING_TOPIC},
    load::{Behaviour, Load, Reader, Results},
    mint,
    oracle::{Kind, Ledger, Lineage, Wrong},
    plan::Item,
    program,
    publisher::{self, Style, Way},
    report::{Report, Row},
    steps,
    world::World,
};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// The time within which clients must have caught up after a fault.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// The number of publishers.
pub(crate) const PUBLISHERS: usize = 9;

/// The conditions that end a run before its plan is complete.
pub(crate) struct End<'a> {
    pub(crate) at: Option<Instant>,
    pub(crate) interrupted: &'a dyn Fn() -> bool,
}

impl End<'_> {
    fn has_come(&self) -> bool {
        (self.interrupted)() || self.at.is_some_and(|at| Instant::now() >= at)
    }
}

/// Injects the faults of one topology, one item of the plan after the other.
pub(crate) fn run(
    options: &Options,
    plan: &[&Item],
    begun: Instant,
    end: &End<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(first) = plan.first() else { return Ok(()) };
    println!("\n== {}", first.topology.word());
    let started = World::start(first.topology, &program(options)?, options.workers, options.window, SECRET);
    let mut world = match started {
        Ok(world) => world,
        Err(why) => {
            report.skip(&format!("all faults of the topology {}: {why}", first.topology.word()));
            return Ok(());
        }
    };
    let runtime = Runtime::new()?;
    let load = begin(options, &mut world, &runtime, end.interrupted)?;
    for item in plan {
        if end.has_come() {
            break;
        }
        let mut random = fastrand::Rng::with_seed(item.seed);
        thread::sleep(Duration::from_millis(random.u64(300..1_500)));
        let steps = item.faults.iter().map(|&(fault, start)| {
            let steps = world.steps(fault, &mut random).map_err(|why| format!("{}: {why}", fault.word()))?;
            Ok((Duration::from_millis(start), steps))
        });
        let steps = match steps.collect::<Result<Vec<_>, String>>() {
            Ok(steps) => steps,
            Err(why) => {
                report.skip(&why);
                continue;
            }
        };
        let at = begun.elapsed();
        let spans = steps::run(steps, &mut world, &load, end.interrupted);
        if (end.interrupted)() {
            break;
        }
        world.heal();
        let results = settle(&load, &mut world, end.interrupted);
        if (end.interrupted)() {
            break;
        }
        let row = Row::new(item, at, spans, results, options.window.is_some());
        println!("{}", row.line());
        if row.has_failed()
            && let Some(folder) = &options.logs
        {
            let path = folder.join(format!("{}.log", item.to_string().replace('/', "_")));
            std::fs::create_dir_all(folder)?;
            std::fs::write(path, world.logs().join("\n---\n"))?;
        }
        report.add(row);
        report.write(options.json.as_deref())?;
        load.redis_port.store(world.redis_port(), Ordering::Relaxed);
    }
    load.ended.store(true, Ordering::Relaxed);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// The audience and the method of each publisher. `first` is the `connection_id` of the first client.
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

/// The kind of each publisher, in the order of [`ways`].
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

/// Creates client number `i`.
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
    // A client with a new `connection_id` and an event ID as its cursor receives a gap at each reconnect, so none has
    // both.
    let behaviour =
        Behaviour { keeps_connection_id: i % 5 != 1, by_id: i % 5 == 3, changes_topic: (i % 4 == 2).then_some(8) };
    if let Some(publisher) = behaviour.changes_topic {
        ledger.expect_topic(publisher);
    }
    let user = if i.is_multiple_of(3) { "ann".to_owned() } else { format!("user-{i}") };
    Ok(Reader::new(mint(user, false)?, behaviour, ledger))
}

/// Starts clients and publishers, and waits until every client has received the first events.
fn begin(
    options: &Options,
    world: &mut World,
    runtime: &Runtime,
    interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<Arc<Load>> {
    let run = format!("{:08x}", fastrand::u32(..));
    let token = mint("publisher".to_owned(), true)?;
    let mut load = Load::new(run, world.addresses(), token, options.rate, &KINDS);
    load.readers = (0..options.clients).map(|i| reader(i).map(Arc::new)).collect::<anyhow::Result<_>>()?;
    load.redis_port.store(world.redis_port(), Ordering::Relaxed);
    let load = Arc::new(load);
    for reader in &load.readers {
        runtime.spawn(client::run(load.clone(), reader.clone()));
    }
    testbed::until("all clients are connected", || load.live() == load.readers.len());
    let first = load.readers[0].name().context("the first client has no connection_id")?;
    for (publisher, way) in ways(&first).into_iter().enumerate() {
        runtime.spawn(publisher::run(load.clone(), publisher, way));
    }
    let begun = settle(&load, world, interrupted);
    let works = begun.delivered > 0 && begun.wrong == Wrong::default();
    ensure!(works || interrupted(), "the load did not start: {begun:?}");
    Ok(load)
}

/// Waits until every publisher's events are acknowledged again and every client has caught up, and takes the results.
fn settle(load: &Load, world: &mut World, interrupted: &dyn Fn() -> bool) -> Results {
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    let wait = |done: &mut dyn FnMut() -> bool| {
        while !done() && Instant::now() < deadline && !interrupted() {
            thread::sleep(Duration::from_millis(200));
        }
        done()
    };
    let (before, acknowledged) = (load.targets(), load.acknowledged_publishers());
    if !wait(&mut || {
        let now = load.targets();
        acknowledged.iter().all(|&publisher| now[publisher] > before[publisher])
    }) {
        load.note_anomaly("publishing did not work again in time");
    }
    let targets = load.targets();
    let known = world.known.clone();
    let mut lineage = Lineage::default();
    let level = wait(&mut || {
        // What the log lost is known only once the log continues.
        lineage = world.lineage();
        load.live() == load.readers.len() && load.behind(&targets, &lineage) == 0
    });
    if !level && !interrupted() {
        let behind = load.behind(&targets, &lineage);
        println!("           {behind} clients lag; the last log lines of the hub:\n{}", world.last_lines());
    }
    let mut results = load.take_results(&targets, &lineage);
    results.losses = known.map_or(0, |known| lineage.losses_since(&known));
    results.ids_uncertain = lineage.ids_uncertain();
    results.restored = world.restored();
    world.known = Some(lineage);
    results
}
