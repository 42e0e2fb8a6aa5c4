//! What the run showed: a line for each item of the plan as it ends, and a table at the end of all.

use crate::{
    fault::{self, Fault},
    load::Figures,
    plan::Item,
};
use anyhow::Context;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

/// When a fault began and ended, from the beginning of its item.
type Span = Option<(Duration, Duration)>;

/// What one item of the plan showed.
#[derive(Debug)]
pub(crate) struct Row {
    item: Item,
    /// When it began, from the beginning of the run.
    at: Duration,
    spans: Vec<Span>,
    figures: Figures,
    /// What must not be.
    problems: Vec<String>,
}

/// All that was shown.
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
    "doubled",
    "reordered",
    "conflicts",
    "late",
    "put back",
    "expired",
    "reset",
    "over budget",
    "resume p50",
    "resume p99",
    "outage p50",
    "outage max",
];

impl Row {
    /// `small_window`: the hub holds so little that it can't put back everything, and clients find gaps.
    pub(crate) fn new(item: &Item, at: Duration, spans: Vec<Span>, figures: Figures, small_window: bool) -> Self {
        let problems = problems(&item.faults(), &figures, small_window);
        Self { item: item.clone(), at, spans, figures, problems }
    }

    /// Whether anything is wrong.
    pub(crate) fn has_failed(&self) -> bool {
        !self.problems.is_empty()
    }

    fn is_over_budget(&self) -> bool {
        self.problems.iter().any(|problem| problem.starts_with(OVER_BUDGET))
    }

    /// The row in words: as it is told while the run goes on.
    pub(crate) fn line(&self) -> String {
        let Figures { wrong, delivered, gaps_expired, gaps_reset, resumes, outages, largest_wave, put_back, .. } =
            &self.figures;
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
            " {delivered:>7} delivered, {} lost, {} doubled, {} reordered, {} conflicts, {put_back} put back, gaps: \
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
            text += &format!(", at most {largest_wave} told to go in a second");
        }
        if wrong.late > 0 {
            text += &format!(", {} late on a channel", wrong.late);
        }
        for problem in &self.problems {
            text += &format!("\n           FAILED: {problem}");
        }
        for (example, clients) in self.figures.examples.iter().take(5) {
            text += &format!("\n           {clients} times: {example}");
        }
        if self.has_failed() {
            text += &format!("\n           again: scripts/chaos --repeat {}", self.item);
        }
        text
    }
}

const OVER_BUDGET: &str = "over budget";

/// What must not be, of faults that happened together.
fn problems(faults: &[Fault], figures: &Figures, small_window: bool) -> Vec<String> {
    let mut problems = Vec::new();
    let wrong = figures.wrong;
    let late = if faults.iter().any(|fault| fault.cuts_channels()) { 0 } else { wrong.late };
    for (count, what) in [
        (wrong.lost, "lost in silence"),
        (wrong.doubled, "doubled"),
        (wrong.reordered, "reordered"),
        (wrong.conflicts, "places or events that name two"),
        (late, "late on a channel"),
    ] {
        if count > 0 {
            problems.push(format!("{count} {what}"));
        }
    }
    let budget = fault::budget(faults, small_window);
    let names: Vec<_> = faults.iter().map(|fault| fault.word()).collect();
    let names = names.join(" + ");
    if figures.most_resets > budget {
        let (most, told) = (figures.most_resets, figures.most_told.join(", "));
        problems.push(format!("{OVER_BUDGET}: a client was told of {most} resets ({told}), {names} has {budget}"));
    }
    // A cursor that is an id is doubtful after every loss.
    if figures.most_resets_by_id > budget && !figures.doubts_ids {
        let most = figures.most_resets_by_id;
        problems.push(format!("{OVER_BUDGET}: a client with an id was told of {most} resets, {names} has {budget}"));
    }
    if figures.gaps_expired > 0 && !small_window {
        let expired = figures.gaps_expired;
        problems.push(format!("{OVER_BUDGET}: {expired} gaps because of a window that holds everything"));
    }
    if let [fault] = faults
        && fault.has_to_be_put_back()
        && figures.put_back == 0
    {
        problems.push(format!("nothing was put back, so {names} tried nothing"));
    }
    problems.extend(figures.odd.iter().map(|(what, n)| format!("{n} times: {what}")));
    problems
}

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Notes what could not be tried, loudly.
    pub(crate) fn skip(&mut self, what: &str) {
        let line = format!("SKIPPED: {what}");
        if !self.skipped.contains(&line) {
            println!("{line}");
            self.skipped.push(line);
        }
    }

    /// Whether nothing went wrong, and something was done.
    pub(crate) fn is_clean(&self) -> bool {
        !self.rows.is_empty() && !self.rows.iter().any(Row::has_failed)
    }

    /// A table in Markdown, which is readable as it is.
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
            let figures = &row.figures;
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
                "published": figures.published,
                "delivered": figures.delivered,
                "wrong": figures.wrong,
                "put_back": figures.put_back,
                "losses_told": figures.losses,
                "gaps": { "expired": figures.gaps_expired, "reset": figures.gaps_reset },
                "most_resets_of_a_client": figures.most_resets,
                "resume_ms": { "p50": ms(percentile(&figures.resumes, 50)), "p99": ms(percentile(&figures.resumes, 99)) },
                "outage_ms": ms(percentile(&figures.outages, 100)),
                "largest_wave": figures.largest_wave,
                "problems": row.problems,
                "examples": figures.examples,
            })
        };
        json!({ "items": self.rows.iter().map(row).collect::<Vec<_>>(), "skipped": self.skipped })
    }

    /// Writes all figures to a file: each time, so that a run that is broken off leaves what it has.
    pub(crate) fn write(&self, path: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, serde_json::to_string_pretty(&self.json())?)
            .with_context(|| format!("{} can't be written", path.display()))
    }
}

fn cells(name: &str, rows: &[&Row]) -> [String; HEAD.len()] {
    let mut figures = Figures::default();
    rows.iter().for_each(|row| figures.add(row.figures.clone()));
    let over = rows.iter().filter(|row| row.is_over_budget()).count();
    [
        name.to_owned(),
        rows.len().to_string(),
        figures.published.to_string(),
        figures.delivered.to_string(),
        figures.wrong.lost.to_string(),
        figures.wrong.doubled.to_string(),
        figures.wrong.reordered.to_string(),
        figures.wrong.conflicts.to_string(),
        figures.wrong.late.to_string(),
        figures.put_back.to_string(),
        figures.gaps_expired.to_string(),
        figures.gaps_reset.to_string(),
        over.to_string(),
        show(percentile(&figures.resumes, 50)),
        show(percentile(&figures.resumes, 99)),
        show(percentile(&figures.outages, 50)),
        show(percentile(&figures.outages, 100)),
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

    fn row(fault: Fault, figures: Figures) -> Row {
        let item = Item::alone(fault, fault.topologies()[0], 1);
        Row::new(&item, Duration::ZERO, vec![None], figures, false)
    }

    #[test]
    fn percentiles() {
        let samples: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&samples, 50), Some(Duration::from_millis(51)));
        assert_eq!(percentile(&samples, 99), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_run_is_clean_only_if_something_was_done_and_nothing_is_wrong() {
        let mut report = Report::default();
        assert!(!report.is_clean());
        report.add(row(Fault::CutClients, Figures::default()));
        assert!(report.is_clean());
        let wrong = |wrong| Figures { wrong, ..Figures::default() };
        for figures in [
            wrong(Wrong { lost: 1, ..Wrong::default() }),
            wrong(Wrong { doubled: 1, ..Wrong::default() }),
            wrong(Wrong { reordered: 1, ..Wrong::default() }),
            wrong(Wrong { conflicts: 1, ..Wrong::default() }),
            wrong(Wrong { late: 1, ..Wrong::default() }),
            Figures { odd: [("something".to_owned(), 1)].into(), ..Figures::default() },
            Figures { most_resets: 1, ..Figures::default() },
            Figures { most_resets_by_id: 1, ..Figures::default() },
            Figures { gaps_expired: 1, ..Figures::default() },
        ] {
            let mut report = Report::default();
            report.add(row(Fault::CutClients, figures.clone()));
            assert!(!report.is_clean(), "{figures:?}");
        }
    }

    #[test]
    fn what_exceeds_a_budget_says_which_fault_did() {
        let resets = |most_resets| Figures { most_resets, put_back: 1, ..Figures::default() };
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
    fn a_loss_that_nobody_puts_back_is_no_loss() {
        let problems = row(Fault::SentinelKill, Figures::default()).problems;
        assert!(problems[0].contains("nothing was put back"), "{problems:?}");
    }

    #[test]
    fn late_events_of_a_channel_count_only_where_no_channel_was_cut() {
        let late = Figures { wrong: Wrong { late: 1, ..Wrong::default() }, ..Figures::default() };
        assert!(row(Fault::ClientKill, late.clone()).problems.is_empty());
        assert!(!row(Fault::KillWorker, late).problems.is_empty());
    }
}
