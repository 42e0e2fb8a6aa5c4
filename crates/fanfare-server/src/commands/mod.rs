//! The commands, one module each, and their shared helpers.

pub(crate) mod access;
mod backoff;
mod health;
pub(crate) mod http;
mod key;
mod log_level;
mod plan;
mod publish;
mod tail;
pub(crate) mod token;
mod user;
mod why;

use crate::{
    bench, check, cli, logging, serve,
    settings::{Exposed, Loaded, load, print},
    terminal,
};
use anyhow::Context;
use aws_lc_rs::rand;
use clap::ArgMatches;
use std::io::{self, Write};

/// A wrong command line. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Runs the command of the command line.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let (name, matches) = matches.subcommand().unwrap_or(("serve", matches));
    if name == "health" {
        // A probe needs no settings, and must not fail because of them.
        return runtime()?.block_on(health::run(matches));
    }
    if name == "plan" {
        return plan::run(matches);
    }
    let sources = cli::sources(matches)?;
    let (loaded, exposed) = (load(&sources)?, Exposed::find(&sources)?);
    if name == "serve" {
        logging::start(&loaded.settings);
        exposed.on_command_line().for_each(|warning| tracing::warn!("{warning}"));
    } else {
        exposed.on_command_line().for_each(|warning| print_status(&warning));
    }
    match name {
        "settings" => settings(matches, &loaded),
        "token" => token::run(matches, &loaded.settings),
        "publish" => runtime()?.block_on(publish::run(matches, &loaded.settings)),
        "check" => runtime()?.block_on(check::run(matches, &loaded.settings, &exposed)),
        "user" => runtime()?.block_on(user::run(matches, &loaded.settings)),
        "key" => runtime()?.block_on(key::run(matches, &loaded.settings)),
        "log-level" => runtime()?.block_on(log_level::run(matches, &loaded.settings)),
        "why" => runtime()?.block_on(why::run(matches, &loaded.settings)),
        "bench" => bench::run(matches, &loaded.settings),
        "tail" => runtime()?.block_on(tail::run(matches, &loaded.settings)),
        _ => serve::run(&loaded),
    }
}

fn settings(matches: &ArgMatches, loaded: &Loaded) -> anyhow::Result<()> {
    let text = if matches.get_flag("json") {
        return print_json(&print::json(loaded)?);
    } else if matches.get_flag("markdown") {
        print::markdown()
    } else {
        print::table(loaded)
    };
    print(&text)
}

/// Writes text to standard output, with control characters escaped.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    write(&terminal::text(text))
}

/// Writes JSON to standard output, with control characters escaped inside it.
pub(crate) fn print_json(text: &str) -> anyhow::Result<()> {
    write(&terminal::json(text))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Writes a status message to standard error.
pub(crate) fn print_status(text: &str) {
    // Standard error may be closed.
    let _ = writeln!(io::stderr(), "fanfare: {}", terminal::text(&terminal::without_credentials(text)));
}

/// Prints the URL of the accounts database, which depends on the working directory and the environment.
pub(crate) fn print_database(settings: &crate::settings::Settings) {
    print_status(&format!("the database is {} (database_url, FANFARE_DATABASE_URL)", settings.database_url.absolute()));
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start the event loop")
}

/// The values of a flag that may be repeated.
fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    let texts = matches.get_many::<String>(name).into_iter().flatten();
    texts.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

/// The topic patterns of a flag.
fn patterns(matches: &ArgMatches) -> Result<Vec<String>, Usage> {
    let fits = |pattern: &str| {
        (1..=128).contains(&pattern.len()) && !pattern.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    let patterns = texts(matches, "topics");
    match patterns.iter().find(|pattern| !fits(pattern)) {
        Some(pattern) => Err(Usage(format!(
            "--topics: {pattern:?} is not a valid pattern; expected 1 to 128 bytes without white space"
        ))),
        None => Ok(patterns),
    }
}

/// A table with aligned columns.
pub(crate) fn columns<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A time in ISO 8601.
fn date(unix_secs: u64) -> String {
    fanfare::iso_8601(unix_secs.saturating_mul(1_000))
}

/// A random number from 0 to 1.
fn random() -> anyhow::Result<f64> {
    let mut bytes = [0; 4];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("failed to generate a random number"))?;
    Ok(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}
