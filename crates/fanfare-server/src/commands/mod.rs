//! The commands, one module each, and what only commands share.

mod backoff;
mod health;
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
    settings::{self, Exposed, Loaded, load},
    util::{UsageError, print, print_json, print_status},
};
use anyhow::Context;
use clap::ArgMatches;

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
        return print_json(&settings::print::json(loaded)?);
    } else if matches.get_flag("markdown") {
        settings::print::markdown()
    } else {
        settings::print::table(loaded)
    };
    print(&text)
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
fn patterns(matches: &ArgMatches) -> Result<Vec<String>, UsageError> {
    let fits = |pattern: &str| {
        (1..=128).contains(&pattern.len()) && !pattern.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    let patterns = texts(matches, "topics");
    match patterns.iter().find(|pattern| !fits(pattern)) {
        Some(pattern) => Err(UsageError(format!(
            "--topics: {pattern:?} is not a valid pattern; expected 1 to 128 bytes without white space"
        ))),
        None => Ok(patterns),
    }
}
