//! `fanfare check`: tests the settings against this machine and the servers that they name. It loads the same settings
//! as `serve`, and connects to the same servers.

mod machine;
mod network;
mod services;
mod setup;

use crate::{
    settings::{Exposed, Settings},
    terminal::without_credentials,
    util::{print, print_json},
};
use clap::ArgMatches;
use serde::Serialize;
use std::{fmt::Write as _, time::Duration};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// No problem was found.
    Ok,
    /// It could not be determined.
    Unknown,
    /// It works, but is a risk in production.
    Warn,
    /// It does not work, or it is not secure.
    Fail,
}

/// One finding of a check.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    /// The state that was found.
    what: String,
    /// Why the check matters. Empty if the finding is `ok` or unknown.
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'static str,
    /// Commands and lines of configuration that fix it.
    #[serde(rename = "fix", skip_serializing_if = "Vec::is_empty")]
    fixes: Vec<String>,
}

/// A check: its name, and why it matters.
struct Check {
    name: &'static str,
    why: &'static str,
}

impl Check {
    fn ok(&self, what: impl Into<String>) -> Finding {
        let what = without_credentials(&what.into()).into_owned();
        Finding { check: self.name, level: Level::Ok, what, why: "", fixes: Vec::new() }
    }

    fn unknown(&self, what: impl Into<String>) -> Finding {
        Finding { level: Level::Unknown, ..self.ok(what) }
    }

    fn warn(&self, what: impl Into<String>, fixes: &[&str]) -> Finding {
        self.bad(Level::Warn, &what.into(), fixes)
    }

    fn fail(&self, what: impl Into<String>, fixes: &[&str]) -> Finding {
        self.bad(Level::Fail, &what.into(), fixes)
    }

    fn bad(&self, level: Level, what: &str, fixes: &[&str]) -> Finding {
        let fixes = fixes.iter().map(|line| without_credentials(line).into_owned()).collect();
        Finding { check: self.name, level, what: without_credentials(what).into_owned(), why: self.why, fixes }
    }
}

/// At least one check failed.
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
        print(&if matches.get_flag("fix") { fix_lines(&findings) } else { table(&findings) })?;
    }
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if failed > 0 { Err(Failed { failed, all: findings.len() }.into()) } else { Ok(()) }
}

/// The findings as text. Problems are followed by why they matter and how to fix them.
fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let (mut text, mut counts) = (String::new(), [0; 4]);
    for Finding { check, level, what, why, fixes } in findings {
        counts[*level as usize] += 1;
        // Writing to a string never fails.
        let _ = writeln!(text, "{:<4}  {check:<width$}  {what}", level.word());
        for line in [*why].into_iter().filter(|why| !why.is_empty()) {
            let _ = writeln!(text, "      {:width$}  why   {line}", "");
        }
        for (i, line) in fixes.iter().enumerate() {
            let _ = writeln!(text, "      {:width$}  {}  {line}", "", if i == 0 { "fix " } else { "    " });
        }
    }
    let [ok, unknown, warn, fail] = counts;
    let _ = writeln!(text, "\n{ok} ok, {warn} warnings, {fail} failed, {unknown} not determined");
    text
}

/// Only the commands and lines, each group after the finding that it fixes.
fn fix_lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings.iter().filter(|finding| !finding.fixes.is_empty()) {
        let _ = writeln!(text, "# {}: {}", finding.check, finding.what);
        for line in &finding.fixes {
            let _ = writeln!(text, "{line}");
        }
        text.push('\n');
    }
    if text.is_empty() { "# nothing to fix\n".to_owned() } else { text }
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
    fn findings_are_printed_with_their_fixes() {
        let findings =
            [CHECK.ok("enough"), CHECK.warn("few", &["ulimit -n 9", "and so on"]), CHECK.unknown("unreadable")];
        assert_eq!(
            table(&findings),
            "ok    files  enough\n\
             warn  files  few\n             why   Each connection is a file.\n             fix   ulimit -n 9\n\
             \x20                  and so on\n\
             -     files  unreadable\n\n\
             1 ok, 1 warnings, 0 failed, 1 not determined\n"
        );
        assert_eq!(fix_lines(&findings), "# files: few\nulimit -n 9\nand so on\n\n");
        assert_eq!(fix_lines(&findings[..1]), "# nothing to fix\n");
        let json = serde_json::to_value(&findings).unwrap();
        assert_eq!(json[0], serde_json::json!({"check": "files", "level": "ok", "what": "enough"}));
        assert_eq!(json[1]["fix"][0], "ulimit -n 9");
    }
}
