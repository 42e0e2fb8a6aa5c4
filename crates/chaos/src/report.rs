//! What the run showed: a line for each fault while it runs, and a table at its end.

use crate::{load::Figures, world::Fault};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// The figures of each fault.
#[derive(Debug, Default)]
pub(crate) struct Report(BTreeMap<Fault, (u64, Figures)>);

const HEAD: [&str; 15] = [
    "fault",
    "times",
    "published",
    "delivered",
    "lost",
    "doubled",
    "reordered",
    "conflicts",
    "late",
    "expired",
    "reset",
    "resume p50",
    "resume p99",
    "outage p50",
    "outage max",
];

impl Report {
    pub(crate) fn add(&mut self, fault: Fault, figures: Figures) {
        let (times, all) = self.0.entry(fault).or_default();
        *times += 1;
        all.add(figures);
    }

    /// Whether nothing was lost, doubled or reordered, and nothing odd was seen.
    pub(crate) fn is_clean(&self) -> bool {
        let clean = |(fault, (_, figures)): (&Fault, &(u64, Figures))| {
            figures.wrong.is_nothing(fault.cuts_channels()) && figures.odd.is_empty()
        };
        !self.0.is_empty() && self.0.iter().all(clean)
    }

    /// A table in Markdown, which is readable as it is.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<[String; HEAD.len()]> = vec![HEAD.map(str::to_owned)];
        let mut all = (0, Figures::default());
        for (fault, (times, figures)) in &self.0 {
            rows.push(row(fault.word(), *times, figures));
            all.0 += times;
            all.1.add(figures.clone());
        }
        rows.push(row("all", all.0, &all.1));
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
        for (what, n) in &all.1.odd {
            text += &format!("\nodd, {n} times: {what}");
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let faults = self.0.iter().map(|(fault, (times, figures))| {
            let body = json!({
                "times": times,
                "published": figures.published,
                "delivered": figures.delivered,
                "lost": figures.wrong.lost,
                "doubled": figures.wrong.doubled,
                "reordered": figures.wrong.reordered,
                "conflicts": figures.wrong.conflicts,
                "late_on_channels": figures.wrong.late,
                "gaps": { "expired": figures.gaps_expired, "reset": figures.gaps_reset },
                "losses_told": figures.losses,
                "resume_ms": { "p50": ms(percentile(&figures.resumes, 50)), "p99": ms(percentile(&figures.resumes, 99)) },
                "outage_ms": { "p50": ms(percentile(&figures.outages, 50)), "max": ms(percentile(&figures.outages, 100)) },
                "largest_wave": figures.largest_wave,
                "odd": figures.odd,
            });
            (fault.word().to_owned(), body)
        });
        Value::Object(faults.collect())
    }
}

/// One fault, as it is told while the run goes on.
pub(crate) fn line(fault: Fault, figures: &Figures) -> String {
    let Figures { wrong, delivered, gaps_expired, gaps_reset, resumes, outages, largest_wave, .. } = figures;
    let late = if wrong.late > 0 { format!(", {} late on a channel", wrong.late) } else { String::new() };
    let waves =
        if *largest_wave > 0 { format!(", at most {largest_wave} told to go in a second") } else { String::new() };
    format!(
        "{:<18} {delivered:>7} delivered, {} lost, {} doubled, {} reordered, {} conflicts, {} gaps, {} resumes (p99 {}), outage {}{waves}{late}",
        fault.word(),
        wrong.lost,
        wrong.doubled,
        wrong.reordered,
        wrong.conflicts,
        gaps_expired + gaps_reset,
        resumes.len(),
        show(percentile(resumes, 99)),
        show(percentile(outages, 100)),
    )
}

fn row(name: &str, times: u64, figures: &Figures) -> [String; HEAD.len()] {
    [
        name.to_owned(),
        times.to_string(),
        figures.published.to_string(),
        figures.delivered.to_string(),
        figures.wrong.lost.to_string(),
        figures.wrong.doubled.to_string(),
        figures.wrong.reordered.to_string(),
        figures.wrong.conflicts.to_string(),
        figures.wrong.late.to_string(),
        figures.gaps_expired.to_string(),
        figures.gaps_reset.to_string(),
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
    use crate::oracle::Wrong;

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
        report.add(Fault::Cut, Figures::default());
        assert!(report.is_clean());
        for wrong in [
            Wrong { lost: 1, ..Wrong::default() },
            Wrong { doubled: 1, ..Wrong::default() },
            Wrong { reordered: 1, ..Wrong::default() },
            Wrong { conflicts: 1, ..Wrong::default() },
            Wrong { late: 1, ..Wrong::default() },
        ] {
            let mut report = Report::default();
            report.add(Fault::Cut, Figures { wrong, ..Figures::default() });
            assert!(!report.is_clean(), "{wrong:?}");
        }
    }
}
