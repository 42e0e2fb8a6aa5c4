//! `cargo bench -p fanfare-server`: the cost of the hub, compared with a bare epoll loop that writes the same frames
//! (the floor).
//!
//! Hub, floor and load are separate processes, so that the work of each is measured separately: this program runs
//! itself with a hidden sub-command for each. It is not a test: a missed target is printed, and does not change the
//! exit code.

mod args;
mod broadcast;
mod child;
mod client;
mod clock;
mod connect;
mod event;
#[path = "../../src/bench/floor.rs"]
mod floor;
#[path = "../../src/bench/frame.rs"]
mod frame;
mod inside;
mod join;
mod load;
mod measure;
#[path = "../../src/proc.rs"]
mod proc;
mod publish;
mod publisher;
mod report;
mod stats;
mod token;

use anyhow::{Context, Result};
use args::{Options, Values};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next().unwrap_or_default();
    if first == "exec" {
        return child::exec(args);
    }
    let first = first.into_string().unwrap_or_default();
    let rest = std::env::args().skip(2);
    let part: fn(&Values) -> Result<serde_json::Value> = match first.as_str() {
        "floor" => return floor::serve(mio::net::TcpListener::bind(Values::parse(rest)?.get("listen")?)?),
        "inside" => return inside::run(&Values::parse(rest)?),
        "broadcast" => broadcast::run,
        "connect" => connect::run,
        "publish" => publish::run,
        "join" => join::run,
        _ => return benchmark(&Options::parse(std::env::args().skip(1))?),
    };
    println!("{}", part(&Values::parse(rest)?)?);
    Ok(())
}

fn benchmark(options: &Options) -> Result<()> {
    if options.help || !options.bench {
        println!("{}", args::USAGE);
        return Ok(());
    }
    let rows = measure::all(options)?;
    println!("{}", report::table(&rows));
    if let Some(path) = &options.json {
        std::fs::write(path, report::json(&rows)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
