//! A deterministic simulation of hubs, clients and Redis. The hub's own code (backend, scripts, window, sessions) runs
//! in one thread against a model of Redis, of the network and of time. A seed determines the schedule of events and
//! faults: the same seed produces the same run. An oracle reports what was lost, duplicated or reordered.

#![forbid(unsafe_code)]
#![expect(clippy::cast_possible_truncation, reason = "the numbers of one simulation are small")]

mod client;
mod lua;
mod net;
mod node;
mod oracle;
mod plan;
mod server;
mod store;
#[cfg(test)]
mod tests;
mod world;

use clap::{Parser, ValueEnum};
use plan::{Case, Plan, Size};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::{runtime::Builder, task::LocalSet};
use world::{Outcome, World};

/// Runs schedules of faults against simulated hubs, and reports violations.
#[derive(Debug, Parser)]
#[command(name = "fanfare-sim", version)]
struct Options {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of seeds.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Runs further seeds for this many minutes instead.
    #[arg(long)]
    minutes: Option<f64>,
    /// The number of faults in a group.
    #[arg(long, value_enum, default_value_t = Together::Pairs)]
    faults: Together,
    /// Clients of each node.
    #[arg(long, default_value_t = 20)]
    clients: usize,
    /// A named schedule instead of the seed's own faults.
    #[arg(long, value_enum)]
    case: Option<Case>,
    /// Only those of a seed's faults that have these numbers.
    #[arg(long, value_delimiter = ',')]
    keep: Option<Vec<usize>>,
    /// Omits faults of each failing seed as long as it still fails.
    #[arg(long)]
    shrink: bool,
    /// Prints every step.
    #[arg(long)]
    trace: bool,
    /// Stops at the first seed that fails.
    #[arg(long)]
    first: bool,
    /// Counts only violations of these kinds (lost, twice, order, position, audience, busy, "not ready", presence,
    /// budget).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// The number of faults in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Together {
    None,
    Single,
    Pairs,
    Triples,
}

impl Together {
    fn number(self) -> usize {
        self as usize
    }

    fn word(self) -> &'static str {
        ["none", "single", "pairs", "triples"][self as usize]
    }
}

/// Runs a plan in a new world.
fn run(plan: Plan, verbose: bool) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => LocalSet::new().block_on(&runtime, World::run(plan, verbose)),
        Err(error) => {
            Outcome { violations: vec![format!("failed to start the runtime: {error}")], ..Outcome::default() }
        }
    }
}

/// The kind of a violation: the words before its colon.
fn kind(violation: &str) -> &str {
    violation.split_once(':').map_or(violation, |(kind, _)| kind)
}

impl Options {
    fn plan(&self, seed: u64) -> Plan {
        let mut plan = match self.case {
            Some(case) => Plan::case(case, seed, self.clients),
            None => Plan::new(seed, Size { faults: self.faults.number(), clients: self.clients }),
        };
        if let Some(keep) = &self.keep {
            plan.keep_faults(|number| keep.contains(&number));
        }
        plan
    }

    /// The violations of a run that `only` counts.
    fn counted(&self, outcome: &Outcome) -> Vec<String> {
        let counts = |violation: &&String| self.only.is_empty() || self.only.iter().any(|only| only == kind(violation));
        outcome.violations.iter().filter(counts).cloned().collect()
    }

    fn command(&self, seed: u64, keep: Option<&[usize]>) -> String {
        let mut command =
            format!("fanfare-sim --seed {seed} --faults {} --clients {}", self.faults.word(), self.clients);
        if let Some(case) = self.case.and_then(|case| case.to_possible_value()) {
            command += &format!(" --case {}", case.get_name());
        }
        if let Some(keep) = keep {
            let keep: Vec<String> = keep.iter().map(usize::to_string).collect();
            command += &format!(" --keep {}", keep.join(","));
        }
        command
    }

    /// The faults without which a seed no longer fails with one of these kinds.
    fn shrink(&self, seed: u64, kinds: &BTreeSet<String>) -> Vec<usize> {
        let mut keep: Vec<usize> = (0..self.plan(seed).faults.len()).collect();
        let fails = |keep: &[usize]| {
            let mut plan = self.plan(seed);
            plan.keep_faults(|number| keep.contains(&number));
            self.counted(&run(plan, false)).iter().any(|violation| kinds.contains(kind(violation)))
        };
        let mut at = 0;
        while at < keep.len() && keep.len() > 1 {
            let mut fewer = keep.clone();
            fewer.remove(at);
            if fails(&fewer) {
                keep = fewer;
            } else {
                at += 1;
            }
        }
        keep
    }
}

/// The results of all runs.
#[derive(Debug, Default)]
struct Summary {
    runs: u64,
    failed: u64,
    lossy: u64,
    total: Outcome,
    kinds: BTreeMap<String, u64>,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome, violations: &[String]) {
        self.runs += 1;
        self.failed += u64::from(!violations.is_empty());
        self.lossy += u64::from(outcome.lossy);
        for kind in violations.iter().map(|violation| kind(violation)).collect::<BTreeSet<_>>() {
            *self.kinds.entry(kind.to_owned()).or_insert(0) += 1;
        }
        let total = &mut self.total;
        total.deliveries += outcome.deliveries;
        total.published += outcome.published;
        total.acknowledged += outcome.acknowledged;
        total.duplicates += outcome.duplicates;
        total.gaps_expired += outcome.gaps_expired;
        total.gaps_reset += outcome.gaps_reset;
        total.restored += outcome.restored;
        total.lost += outcome.lost;
        total.failovers += outcome.failovers;
        total.commands += outcome.commands;
        total.commands_in_a_second = total.commands_in_a_second.max(outcome.commands_in_a_second);
        total.ready_after = total.ready_after.max(outcome.ready_after);
        total.simulated_ms += outcome.simulated_ms;
        for (fault, count) in &outcome.faults {
            *total.faults.entry(fault).or_insert(0) += count;
        }
    }

    fn print(&self, took: Duration) {
        let Self { runs, failed, lossy, total, kinds } = self;
        let secs = took.as_secs_f64();
        println!(
            "{runs} runs in {secs:.1} s, {failed} failed; {} s simulated; {} deliveries ({:.0} a second)",
            total.simulated_ms / 1_000,
            total.deliveries,
            total.deliveries as f64 / secs.max(0.001)
        );
        println!(
            "{} events published, {} acknowledged, {} of them as duplicates; {} restored, {} reported lost by a node",
            total.published, total.acknowledged, total.duplicates, total.restored, total.lost
        );
        println!(
            "{} gaps (reset), {} gaps (expired); {} failovers; Redis lost data in {lossy} runs",
            total.gaps_reset, total.gaps_expired, total.failovers
        );
        println!(
            "{} commands at masters, at most {} in a second; nodes ready at most {} ms after the last fault",
            total.commands, total.commands_in_a_second, total.ready_after
        );
        for (fault, count) in &total.faults {
            println!("  fault: {fault}: {count}");
        }
        for (kind, count) in kinds {
            println!("  violated: {kind}: in {count} runs");
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.trace {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stdout).init();
    }
    let (began, mut last_progress) = (Instant::now(), Instant::now());
    let mut summary = Summary::default();
    let limit = options.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    for number in 0.. {
        let over = limit.map_or(number >= options.runs, |limit| began.elapsed() >= limit);
        if over {
            break;
        }
        let seed = options.seed + number;
        let plan = options.plan(seed);
        let outcome = run(plan.clone(), options.trace);
        let violations = options.counted(&outcome);
        summary.add(&outcome, &violations);
        if !violations.is_empty() {
            println!("FAILED {plan}");
            violations.iter().for_each(|violation| println!("  {violation}"));
            let keep = options.shrink.then(|| {
                let kinds = violations.iter().map(|violation| kind(violation).to_owned()).collect();
                options.shrink(seed, &kinds)
            });
            let keep = keep.as_deref().or(options.keep.as_deref());
            println!("  repeat: {}", options.command(seed, keep));
            if options.first {
                break;
            }
        }
        if last_progress.elapsed() >= Duration::from_secs(20) {
            last_progress = Instant::now();
            eprintln!(
                "{} runs, {} failed, {} deliveries after {:.0} s",
                summary.runs,
                summary.failed,
                summary.total.deliveries,
                began.elapsed().as_secs_f64()
            );
        }
        if options.runs == 1 && limit.is_none() {
            println!("trace {:016x}", outcome.trace);
        }
    }
    summary.print(began.elapsed());
    if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
