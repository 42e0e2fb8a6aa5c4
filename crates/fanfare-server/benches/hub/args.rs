//! The benchmark's command line, and the `name=value` arguments that it passes to its children.

use anyhow::{Context, Result, bail};
use std::{collections::HashMap, path::PathBuf, str::FromStr};

pub(crate) const USAGE: &str = "\
Measures the hub against the floor: a bare epoll loop that writes the same frames.

  cargo bench -p fanfare-server -- [--only NAME]... [--json FILE] [--self-check]

  --only NAME  measure only this: quiet, saturated, fairness, connect, publish, redis
  --json FILE  also write the results to this file, as JSON
  --self-check measure the floor instead of the hub: the deviation of its ratios from 1 is the error of all ratios";

/// The values of `--only`.
pub(crate) const NAMES: &[&str] = &["quiet", "saturated", "fairness", "connect", "publish", "redis"];

/// The options of the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Run only these; all if empty.
    pub(crate) only: Vec<String>,
    /// The file for the results as JSON.
    pub(crate) json: Option<PathBuf>,
    /// Measure the floor against itself.
    pub(crate) self_check: bool,
    /// Print the usage and exit.
    pub(crate) help: bool,
    /// Started by `cargo bench`. `cargo test` runs benches without this flag.
    pub(crate) bench: bool,
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => options.bench = true,
                "--self-check" => options.self_check = true,
                "--help" | "-h" => options.help = true,
                "--json" => options.json = Some(value()?.into()),
                "--only" => options.only.push(value()?),
                _ => bail!("unknown argument {arg}\n\n{USAGE}"),
            }
        }
        if let Some(name) = options.only.iter().find(|name| !NAMES.contains(&name.as_str())) {
            bail!("--only {name}: expected one of {}", NAMES.join(", "));
        }
        Ok(options)
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Arguments of the form `name=value`.
#[derive(Debug)]
pub(crate) struct Values(HashMap<String, String>);

impl Values {
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let pair = |arg: String| arg.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        args.map(|arg| pair(arg).context("expected name=value")).collect::<Result<_>>().map(Self)
    }

    pub(crate) fn get<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self, name: &str) -> Result<T> {
        let value = self.0.get(name).with_context(|| format!("{name}= is missing"))?;
        value.parse().with_context(|| format!("{name}={value}"))
    }
}
