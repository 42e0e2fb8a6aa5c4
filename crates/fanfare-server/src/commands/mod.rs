//! The commands, one module each, and what they share.

pub(crate) mod access;
mod backoff;
mod http;
mod publish;
mod tail;
mod token;

use crate::{
    cli, serve,
    settings::{Loaded, load, print},
};
use anyhow::Context;
use aws_lc_rs::rand;
use clap::ArgMatches;
use std::io::{self, Write};

/// What was asked for can't be done that way. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Does what the command line says.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let (name, matches) = matches.subcommand().unwrap_or(("serve", matches));
    let loaded = load(&cli::sources(matches)?)?;
    match name {
        "settings" => settings(matches, &loaded),
        "token" => token::run(matches, &loaded.settings),
        "publish" => runtime()?.block_on(publish::run(matches, &loaded.settings)),
        "tail" => runtime()?.block_on(tail::run(matches, &loaded.settings)),
        _ => serve::run(&loaded.settings),
    }
}

fn settings(matches: &ArgMatches, loaded: &Loaded) -> anyhow::Result<()> {
    let text = if matches.get_flag("json") {
        print::json(loaded)?
    } else if matches.get_flag("markdown") {
        print::markdown()
    } else {
        print::table(loaded)
    };
    print(&text)
}

/// Writes data to the standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Says something to whoever watches.
fn say(text: &str) {
    // Nobody may be watching.
    let _ = writeln!(io::stderr(), "fanfare: {text}");
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the system gives no event loop")
}

/// The values of a flag that may be given again.
fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    let texts = matches.get_many::<String>(name).into_iter().flatten();
    texts.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

/// A random number from 0 to 1.
fn random() -> anyhow::Result<f64> {
    let mut bytes = [0; 4];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    Ok(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}
