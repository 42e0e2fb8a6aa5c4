//! The table of results, as text and as JSON.

use crate::stats::Spread;
use serde_json::{Value, json};

/// The target of a result.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    measured: Spread,
    floor: Option<Spread>,
    ratio: Option<Spread>,
    /// Applies to the ratio if there is one, otherwise to the measured value.
    target: Option<Target>,
}

impl Row {
    /// The result of one measurement.
    pub(crate) fn single(name: String, unit: &'static str, value: f64, target: Option<Target>) -> Self {
        Self::rounds(name, unit, Spread { median: value, min: value, max: value }, target)
    }

    /// The result of several rounds.
    pub(crate) fn rounds(name: String, unit: &'static str, measured: Spread, target: Option<Target>) -> Self {
        Self { name, unit, measured, floor: None, ratio: None, target }
    }

    /// A result compared with the floor's. The target applies to the ratio.
    pub(crate) fn against(mut self, floor: Spread, ratio: Spread) -> Self {
        (self.floor, self.ratio) = (Some(floor), Some(ratio));
        self
    }

    fn is_met(&self) -> Option<bool> {
        let value = self.ratio.unwrap_or(self.measured).median;
        self.target.map(|target| match target {
            Target::AtMost(limit) => value <= limit,
            Target::AtLeast(limit) => value >= limit,
        })
    }

    fn cells(&self) -> [String; 6] {
        let unit = if self.ratio.is_some() { "x" } else { self.unit };
        let target = self.target.map(|target| match target {
            Target::AtMost(limit) => format!("at most {} {unit}", digits(limit)),
            Target::AtLeast(limit) => format!("at least {} {unit}", digits(limit)),
        });
        let met = self.is_met().map(|met| if met { "ok" } else { "MISSED" });
        [
            self.name.clone(),
            format_spread(self.measured, self.unit),
            self.floor.map(|floor| format_spread(floor, self.unit)).unwrap_or_default(),
            self.ratio.map(|ratio| format_spread(ratio, "x")).unwrap_or_default(),
            target.unwrap_or_default(),
            met.unwrap_or_default().to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let spread = |s: Spread| json!({"median": s.median, "min": s.min, "max": s.max});
        json!({
            "name": self.name,
            "unit": self.unit,
            "measured": spread(self.measured),
            "floor": self.floor.map(spread),
            "ratio": self.ratio.map(spread),
            "target": self.target.map(|target| match target {
                Target::AtMost(limit) => json!({"at_most": limit}),
                Target::AtLeast(limit) => json!({"at_least": limit}),
            }),
            "met": self.is_met(),
        })
    }
}

/// The rows as JSON.
pub(crate) fn json(rows: &[Row]) -> String {
    format!("{:#}\n", rows.iter().map(Row::json).collect::<Value>())
}

/// The rows as a Markdown table, aligned for reading as text.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["name", "measured", "floor", "ratio", "target", ""].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let widths: [usize; 6] =
        std::array::from_fn(|column| lines.iter().map(|cells| cells[column].len()).max().unwrap_or(0));
    let line = |cells: &[String; 6]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule = line(&widths.map(|width| "-".repeat(width)));
    let mut text: String = lines.iter().map(line).collect();
    text.insert_str(rule.len(), &rule);
    text
}

/// A median with its unit, and its range if it has one.
fn format_spread(spread: Spread, unit: &str) -> String {
    let median = digits(spread.median);
    if spread.min < spread.max {
        format!("{median} {unit} ({} to {})", digits(spread.min), digits(spread.max))
    } else {
        format!("{median} {unit}")
    }
}

/// Formats a value with three significant digits, and all digits before the decimal point.
fn digits(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
