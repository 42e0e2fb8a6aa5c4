//! `fanfare check`: whether a hub with these settings would hold what is asked of it, on this machine and with these
//! servers. It reads what `serve` reads, and really tries.

mod machine;
mod network;
mod services;
mod setup;

use crate::{
    commands::{print, print_json},
    settings::{Exposed, Settings},
    terminal::without_credentials,
};
use clap::ArgMatches;
use serde::Serialize;
use std::{fmt::Write as _, time::Duration};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// It can't be told here.
    Unknown,
    /// It works, and will hurt one day.
    Warn,
    /// It does not work, or is not safe.
    Fail,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    /// What is so.
    what: String,
    /// Why it matters; empty where all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'static str,
    /// Commands and lines of configuration that mend it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mend: Vec<String>,
}

/// Something to check, in the order of the output: its name, and why it matters.
struct Check {
    name: &'static str,
    why: &'static str,
}

impl Check {
    fn ok(&self, what: impl Into<String>) -> Finding {
        let what = without_credentials(&what.into()).into_owned();
        Finding { check: self.name, level: Level::Ok, what, why: "", mend: Vec::new() }
    }

    fn unknown(&self, what: impl Into<String>) -> Finding {
        Finding { level: Level::Unknown, ..self.ok(what) }
    }

    fn warn(&self, what: impl Into<String>, mend: &[&str]) -> Finding {
        self.bad(Level::Warn, &what.into(), mend)
    }

    fn fail(&self, what: impl Into<String>, mend: &[&str]) -> Finding {
        self.bad(Level::Fail, &what.into(), mend)
    }

    fn bad(&self, level: Level, what: &str, mend: &[&str]) -> Finding {
        let mend = mend.iter().map(|line| without_credentials(line).into_owned()).collect();
        Finding { check: self.name, level, what: without_credentials(what).into_owned(), why: self.why, mend }
    }
}

/// There is something that does not work, or is not safe.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {all} checks failed")]
struct Failed {
    failed: usize,
    all: usize,
}

pub(crate) async fn run(matches: &ArgMatches, settings: &Settings, exposed: &Exposed) -> anyhow::Result<()> {
    let mut findings = machine::check(settings);
    findings.extend(setup::check(settings, exposed));
    findings.extend(services::check(settings).await);
    if let Some(url) = matches.get_one::<String>("url") {
        let hold = matches.get_one::<String>("hold").and_then(|text| crate::settings::kind::parse_duration(text));
        findings.extend(network::check(url, hold.unwrap_or(Duration::from_secs(70)), settings).await?);
    }
    if matches.get_flag("json") {
        print_json(&(serde_json::to_string_pretty(&findings)? + "\n"))?;
    } else {
        print(&if matches.get_flag("fix") { fixes(&findings) } else { table(&findings) })?;
    }
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if failed > 0 { Err(Failed { failed, all: findings.len() }.into()) } else { Ok(()) }
}

/// What was found, and below what is not well why it matters and what to do.
fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let (mut text, mut counts) = (String::new(), [0; 4]);
    for Finding { check, level, what, why, mend } in findings {
        counts[*level as usize] += 1;
        // Writing to a string can't fail.
        let _ = writeln!(text, "{:<4}  {check:<width$}  {what}", level.word());
        for line in [*why].into_iter().filter(|why| !why.is_empty()) {
            let _ = writeln!(text, "      {:width$}  why   {line}", "");
        }
        for (i, line) in mend.iter().enumerate() {
            let _ = writeln!(text, "      {:width$}  {}  {line}", "", if i == 0 { "mend" } else { "    " });
        }
    }
    let [ok, unknown, warn, fail] = counts;
    let _ = writeln!(text, "\n{ok} ok, {warn} to look at, {fail} failed, {unknown} that can't be told here");
    text
}

/// The commands and lines alone, each group under what it mends.
fn fixes(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings.iter().filter(|finding| !finding.mend.is_empty()) {
        let _ = writeln!(text, "# {}: {}", finding.check, finding.what);
        for line in &finding.mend {
            let _ = writeln!(text, "{line}");
        }
        text.push('\n');
    }
    if text.is_empty() { "# nothing to mend\n".to_owned() } else { text }
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "-",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: Check = Check { name: "files", why: "Each connection is a file." };

    #[test]
    fn findings_are_told_with_what_to_do() {
        let findings =
            [CHECK.ok("enough"), CHECK.warn("few", &["ulimit -n 9", "and so on"]), CHECK.unknown("who knows")];
        assert_eq!(
            table(&findings),
            "ok    files  enough\n\
             warn  files  few\n             why   Each connection is a file.\n             mend  ulimit -n 9\n                   and so on\n\
             -     files  who knows\n\n\
             1 ok, 1 to look at, 0 failed, 1 that can't be told here\n"
        );
        assert_eq!(fixes(&findings), "# files: few\nulimit -n 9\nand so on\n\n");
        assert_eq!(fixes(&findings[..1]), "# nothing to mend\n");
        let json = serde_json::to_value(&findings).unwrap();
        assert_eq!(json[0], serde_json::json!({"check": "files", "level": "ok", "what": "enough"}));
        assert_eq!(json[1]["mend"][0], "ulimit -n 9");
    }
}
