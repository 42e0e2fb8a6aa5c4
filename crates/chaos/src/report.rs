//! The report: a line for each item of the plan when it ends, and a table at the end.

use crate::{
    fault::{self, Fault},
    load::Results,
    plan::Item,
};
use anyhow::Context;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

/// When a fault began and ended, from the start of its item; `None` if it did not occur.
type Span = Option<(Duration, Duration)>;

/// The results of one item of the plan.
#[derive(Debug)]
pub(crate) struct Row {
    item: Item,
    /// When it began, from the start of the run.
    at: Duration,
    spans: Vec<Span>,
    results: Results,
    /// The violations.
    problems: Vec<String>,
}

/// The results of all items.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    skipped: Vec<String>,
}

const HEAD: [&str; 17] = [
    "fault",
    "times",
    "published",
    "delivered",
    "lost",
    "duplicated",
    "reordered",
    "conflicts",
    "late",
    "restored",
    "expired",
    "reset",
    "over budget",
    "resume p50",
    "resume p99",
    "outage p50",
    "outage max",
];

impl Row {
    /// `small_window`: the hub retains too few events to restore everything, and clients receive gaps.
    pub(crate) fn new(item: &Item, at: Duration, spans: Vec<Span>, results: Results, small_window: bool) -> Self {
        let problems = problems(&item.faults(), &results, small_window);
        Self { item: item.clone(), at, spans, results, problems }
    }

    /// Whether any rule was violated.
    pub(crate) fn has_failed(&self) -> bool {
        !self.problems.is_empty()
    }

    fn is_over_budget(&self) -> bool {
        self.problems.iter().any(|problem| problem.starts_with(OVER_BUDGET))
    }

    /// The row as a line of text, printed when the item ends.
    pub(crate) fn line(&self) -> String {
        let Results { wrong, delivered, gaps_expired, gaps_reset, resumes, outages, largest_wave, restored, .. } =
            &self.results;
        let mut text = format!("{:>7.1} s  {:<18}", self.at.as_secs_f64(), self.item.name());
        if self.item.faults.len() > 1 {
            let span = |span: &Span| {
                span.map_or_else(
                    || "never".to_owned(),
                    |(from, to)| format!("{:.1} to {:.1} s", from.as_secs_f64(), to.as_secs_f64()),
                )
            };
            text += &format!(" ({})", self.spans.iter().map(span).collect::<Vec<_>>().join(", "));
        }
        text += &format!(
            " {delivered:>7} delivered, {} lost, {} duplicated, {} reordered, {} conflicts, {restored} restored, gaps: \
             {gaps_expired} expired, {gaps_reset} reset; {} resumes (p99 {}), outage {}",
            wrong.lost,
            wrong.doubled,
            wrong.reordered,
            wrong.conflicts,
            resumes.len(),
            show(percentile(resumes, 99)),
            show(percentile(outages, 100)),
        );
        if *largest_wave > 0 {
            text += &format!(", at most {largest_wave} goaways in a second");
        }
        if wrong.late > 0 {
            text += &format!(", {} late on a channel", wrong.late);
        }
        for problem in &self.problems {
            text += &format!("\n           FAILED: {problem}");
        }
        for (example, clients) in self.results.examples.iter().take(5) {
            text += &format!("\n           {clients} times: {example}");
        }
        if self.has_failed() {
            text += &format!("\n           repeat with: scripts/chaos --repeat {}", self.item);
        }
        text
    }
}

const OVER_BUDGET: &str = "over budget";

/// The violations of faults that occurred together.
fn problems(faults: &[Fault], results: &Results, small_window: bool) -> Vec<String> {
    let mut problems = Vec::new();
    let wrong = results.wrong;
    let late = if faults.iter().any(|fault| fault.cuts_channels()) { 0 } else { wrong.late };
    for (count, what) in [
        (wrong.lost, "lost silently"),
        (wrong.doubled, "duplicated"),
        (wrong.reordered, "reordered"),
        (wrong.conflicts, "positions with two events or events with two positions"),
        (late, "late on a channel"),
    ] {
        if count > 0 {
            problems.push(format!("{count} {what}"));
        }
    }
    let budget = fault::budget(faults, small_window);
    let names: Vec<_> = faults.iter().map(|fault| fault.word()).collect();
    let names = names.join(" + ");
    if results.most_resets > budget {
        let (most, gaps) = (results.most_resets, results.most_gaps.join(", "));
        problems.push(format!("{OVER_BUDGET}: a client received {most} resets ({gaps}), {names} allows {budget}"));
    }
    // A cursor that is an event ID is uncertain after every loss.
    if results.most_resets_by_id > budget && !results.ids_uncertain {
        let most = results.most_resets_by_id;
        problems.push(format!(
            "{OVER_BUDGET}: a client with an event ID as its cursor received {most} resets, {names} allows {budget}"
        ));
    }
    if results.gaps_expired > 0 && !small_window {
        let expired = results.gaps_expired;
        problems.push(format!(
            "{OVER_BUDGET}: {expired} gaps with the reason expired, although the window holds everything"
        ));
    }
    if let [fault] = faults
        && fault.requires_restore()
        && results.restored == 0
    {
        problems.push(format!("nothing was restored, so {names} tested nothing"));
    }
    problems.extend(results.anomalies.iter().map(|(what, n)| format!("{n} times: {what}")));
    problems
}

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Records and prints what was skipped.
    pub(crate) fn skip(&mut self, what: &str) {
        let line = format!("SKIPPED: {what}");
        if !self.skipped.contains(&line) {
            println!("{line}");
            self.skipped.push(line);
        }
    }

    /// Whether at least one item ran, and none failed.
    pub(crate) fn is_clean(&self) -> bool {
        !self.rows.is_empty() && !self.rows.iter().any(Row::has_failed)
    }

    /// A table in Markdown, aligned for reading as text.
    pub(crate) fn table(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for row in &self.rows {
            let name = row.item.name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut rows = vec![HEAD.map(str::to_owned)];
        for name in names {
            let of: Vec<&Row> = self.rows.iter().filter(|row| row.item.name() == name).collect();
            rows.push(cells(&name, &of));
        }
        rows.push(cells("all", &self.rows.iter().collect::<Vec<_>>()));
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let mut text = String::new();
        for (i, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            text += &format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
            if i == 0 {
                let rules = widths.iter().enumerate().map(|(column, &width)| {
                    if column == 0 { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
                });
                text += &format!("| {} |\n", rules.collect::<Vec<_>>().join(" | "));
            }
        }
        let failed: Vec<_> = self.rows.iter().filter(|row| row.has_failed()).collect();
        for row in &failed {
            text += &format!("\nFAILED: {}: {}", row.item, row.problems.join("; "));
        }
        for line in &self.skipped {
            text += &format!("\n{line}");
        }
        text
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let results = &row.results;
            let fault = |((fault, start), span): (&(Fault, u64), &Span)| {
                let [from, to] = match span {
                    Some((from, to)) => [ms(Some(*from)), ms(Some(*to))],
                    None => [None, None],
                };
                json!({ "fault": fault.word(), "planned_ms": start, "began_ms": from, "ended_ms": to })
            };
            json!({
                "repeat": row.item.to_string(),
                "topology": row.item.topology.word(),
                "faults": row.item.faults.iter().zip(&row.spans).map(fault).collect::<Vec<_>>(),
                "at_ms": ms(Some(row.at)),
                "published": results.published,
                "delivered": results.delivered,
                "wrong": results.wrong,
                "put_back": results.restored,
                "losses_told": results.losses,
                "gaps": { "expired": results.gaps_expired, "reset": results.gaps_reset },
                "most_resets_of_a_client": results.most_resets,
                "resume_ms": {
                    "p50": ms(percentile(&results.resumes, 50)),
                    "p99": ms(percentile(&results.resumes, 99)),
                },
                "outage_ms": ms(percentile(&results.outages, 100)),
                "largest_wave": results.largest_wave,
                "problems": row.problems,
                "examples": results.examples,
            })
        };
        json!({ "items": self.rows.iter().map(row).collect::<Vec<_>>(), "skipped": self.skipped })
    }

    /// Writes all results to a file. Called after each item, so that an interrupted run leaves its results.
    pub(crate) fn write(&self, path: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, serde_json::to_string_pretty(&self.json())?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn cells(name: &str, rows: &[&Row]) -> [String; HEAD.len()] {
    let mut results = Results::default();
    rows.iter().for_each(|row| results.add(row.results.clone()));
    let over = rows.iter().filter(|row| row.is_over_budget()).count();
    [
        name.to_owned(),
        rows.len().to_string(),
        results.published.to_string(),
        results.delivered.to_string(),
        results.wrong.lost.to_string(),
        results.wrong.doubled.to_string(),
        results.wrong.reordered.to_string(),
        results.wrong.conflicts.to_string(),
        results.wrong.late.to_string(),
        results.restored.to_string(),
        results.gaps_expired.to_string(),
        results.gaps_reset.to_string(),
        over.to_string(),
        show(percentile(&results.resumes, 50)),
        show(percentile(&results.resumes, 99)),
        show(percentile(&results.outages, 50)),
        show(percentile(&results.outages, 100)),
    ]
}

fn percentile(samples: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last * percent).div_ceil(100)).copied()
}

fn ms(duration: Option<Duration>) -> Option<u128> {
    duration.map(|duration| duration.as_millis())
}

fn show(duration: Option<Duration>) -> String {
    match duration {
        None => "-".to_owned(),
        Some(duration) if duration < Duration::from_secs(1) => format!("{} ms", duration.as_millis()),
        Some(duration) => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Topology, oracle::Wrong};

    fn row(fault: Fault, results: Results) -> Row {
        let item = Item::alone(fault, fault.topologies()[0], 1);
        Row::new(&item, Duration::ZERO, vec![None], results, false)
    }

    #[test]
    fn percentiles() {
        let samples: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&samples, 50), Some(Duration::from_millis(51)));
        assert_eq!(percentile(&samples, 99), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_run_passes_only_if_an_item_ran_and_none_failed() {
        let mut report = Report::default();
        assert!(!report.is_clean());
        report.add(row(Fault::CutClients, Results::default()));
        assert!(report.is_clean());
        let wrong = |wrong| Results { wrong, ..Results::default() };
        for results in [
            wrong(Wrong { lost: 1, ..Wrong::default() }),
            wrong(Wrong { doubled: 1, ..Wrong::default() }),
            wrong(Wrong { reordered: 1, ..Wrong::default() }),
            wrong(Wrong { conflicts: 1, ..Wrong::default() }),
            wrong(Wrong { late: 1, ..Wrong::default() }),
            Results { anomalies: [("something".to_owned(), 1)].into(), ..Results::default() },
            Results { most_resets: 1, ..Results::default() },
            Results { most_resets_by_id: 1, ..Results::default() },
            Results { gaps_expired: 1, ..Results::default() },
        ] {
            let mut report = Report::default();
            report.add(row(Fault::CutClients, results.clone()));
            assert!(!report.is_clean(), "{results:?}");
        }
    }

    #[test]
    fn an_exceeded_budget_names_the_fault() {
        let resets = |most_resets| Results { most_resets, restored: 1, ..Results::default() };
        let problems = row(Fault::ForgetRedis, resets(1)).problems;
        assert!(problems[0].contains("over budget") && problems[0].contains("forget-redis"), "{problems:?}");
        let item = Item { topology: Topology::Standalone, ..Item::alone(Fault::ForgetRedis, Topology::Standalone, 1) };
        let both = Item { faults: vec![(Fault::ForgetRedis, 0), (Fault::StopRedis, 1)], ..item };
        for (most, clean) in [(1, true), (2, false)] {
            let row = Row::new(&both, Duration::ZERO, vec![None, None], resets(most), false);
            assert_eq!(row.problems.is_empty(), clean, "{most}: {:?}", row.problems);
        }
    }

    #[test]
    fn a_fault_that_requires_a_restore_fails_without_one() {
        let problems = row(Fault::SentinelKill, Results::default()).problems;
        assert!(problems[0].contains("nothing was restored"), "{problems:?}");
    }

    #[test]
    fn late_events_of_a_channel_count_only_if_no_channel_was_cut() {
        let late = Results { wrong: Wrong { late: 1, ..Wrong::default() }, ..Results::default() };
        assert!(row(Fault::ClientKill, late.clone()).problems.is_empty());
        assert!(!row(Fault::KillWorker, late).problems.is_empty());
    }
}
