//! Writes an outcome as text and to files.

use super::{
    outcome::{Outcome, QUANTILES},
    tally::Times,
    usage::Usage,
};
use anyhow::Context;
use std::{collections::BTreeMap, fmt::Write, fs};

/// The report of a successful run fits a screen. All other results are in the JSON.
pub(crate) fn table(outcome: &Outcome, earlier: Option<&Outcome>) -> String {
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = write(&mut text, outcome);
    if let Some(earlier) = earlier {
        let _ = compare(&mut text, outcome, earlier);
    }
    text
}

fn write(text: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let Outcome { plan, tally, spread, published, server, machine, .. } = outcome;
    let processes = if plan.processes == 1 { String::new() } else { format!(", from {} processes", plan.processes) };
    writeln!(text, "{} connections to {}{processes}", grouped(plan.connections), plan.url)?;
    writeln!(text, "{} cores, {} GiB, {}", machine.cores, machine.memory_gib, machine.system)?;
    if outcome.interrupted {
        writeln!(text, "INTERRUPTED before the end")?;
    }
    writeln!(text, "\n{:<28}{:>11}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "count", "p50", "p90", "p99", "p99.9", "max")?;
    let rows = [
        ("connect to ack", &tally.connects),
        ("publish to receipt", &tally.latency),
        ("publish to last receiver", spread),
        ("reconnect to ack", &tally.resumes),
        ("publish to the hub's answer", &published.answers),
    ];
    for (name, times) in rows {
        if times.count() > 0 {
            writeln!(text, "{name:<28}{}", row(times))?;
        }
    }
    if let Some(floor) = &outcome.floor {
        writeln!(text, "{:<28}{}", "floor: to receipt", row(&floor.latency))?;
        writeln!(text, "{:<28}{}", "floor: to last receiver", row(&floor.spread))?;
    }
    writeln!(text)?;
    let mut line = |name: &str, said: String| writeln!(text, "{name:<12}{said}");
    let live = plan.connections - tally.absent.min(plan.connections);
    line(
        "connected",
        format!("{} of {}, {} failed, {} broken", grouped(live), grouped(plan.connections), tally.failed, tally.broken),
    )?;
    let audiences: Vec<_> =
        published.by_audience.iter().map(|(kind, count)| format!("{count} to {}", kind.name())).collect();
    line("published", format!("{} events{}", grouped(published.events), listed(&audiences)))?;
    let figure = |name: &str| outcome.figure(name).map_or(0.0, |figure| figure.value);
    let best = (figure("deliveries in the best second"), figure("most bytes in a second"));
    line(
        "delivered",
        format!("{}, at most {} a second and {:.1} MB", grouped(tally.deliveries), grouped(best.0 as u64), best.1),
    )?;
    if !tally.storms.is_empty() {
        let storms: Vec<_> = tally.storms.iter().map(|us| format!("{:.1} s", *us as f64 / 1e6)).collect();
        line(
            "storms",
            format!("all reconnected after {}; {} deliveries replayed", storms.join(", "), grouped(tally.replayed)),
        )?;
    }
    if plan.churn > 0.0 {
        line("churn", format!("{} disconnected and reconnected", grouped(tally.churned)))?;
    }
    line(
        "checked",
        format!(
            "{} lost, {} doubled, {} reordered; {} gaps{}",
            tally.lost,
            tally.doubled,
            tally.reordered,
            tally.gaps,
            if tally.told > 0 { format!(" for {} missing events", tally.told) } else { String::new() }
        ),
    )?;
    if let Some(refused) = &published.refused {
        line("rejected", format!("the hub rejects events: {refused}"))?;
    }
    for (name, counts) in [("errors", &tally.errors), ("retries", &published.retries)] {
        if !counts.is_empty() {
            line(name, errors(counts))?;
        }
    }
    if let Some(server) = server {
        let processes =
            if server.processes == 1 { "1 process".to_owned() } else { format!("{} processes", server.processes) };
        let mut said = format!(
            "{processes}, {:.2} KiB a connection, {:.1} us of CPU a connect",
            figure("hub: user memory a connection"),
            figure("hub: CPU a connect")
        );
        if let Some(cpu) = outcome.figure("hub: CPU a delivery") {
            let _ = write!(said, " and {:.2} us a delivery", cpu.value);
        }
        if let Some(floors) = outcome.figure("hub's CPU a delivery in floors") {
            let _ = write!(said, " ({:.2} x the floor)", floors.value);
        }
        line("hub", said)?;
        if let (Some(slope), Some((_, first)), Some((_, last))) =
            (server.memory_kib_a_minute(), server.samples.first(), server.samples.last())
        {
            let mib = |usage: &Usage| usage.memory_kib / 1_024.0;
            line(
                "over time",
                format!(
                    "memory {:.2} to {:.2} MiB, {slope:+.1} KiB a minute in the second half; files {} to {}; threads \
                     {} to {}",
                    mib(first),
                    mib(last),
                    grouped(first.files),
                    grouped(last.files),
                    first.threads,
                    last.threads
                ),
            )?;
        }
    }
    if let Some(advice) = advice(outcome) {
        line("", advice)?;
    }
    Ok(())
}

/// Advice for the limits that a load reaches most often.
fn advice(outcome: &Outcome) -> Option<String> {
    let met = |what: &str| outcome.tally.errors.keys().any(|error| error.contains(what));
    let limit = [
        "max_connections_per_user",
        "max_connections_per_address",
        "connects_per_second_per_user",
        "connects_per_second_per_address",
    ]
    .into_iter()
    .find(|limit| met(limit));
    match limit {
        Some(limit) if limit.ends_with("user") => Some(format!(
            "All clients share one user, whose connections {limit} limits: use SECRET_KEY instead of --token,\n\
             \x20           so that each client is a user of its own, use an administrator's token, or raise the limit."
        )),
        Some(limit) => {
            Some(format!("The hub's {limit} rejects clients: raise it, or connect from more addresses (--source)."))
        }
        None if met("max_connections") => Some("The hub is full: raise max_connections.".to_owned()),
        None if met("HTTP status 429") => Some(
            "The hub limits connects by address: raise connects_per_second_per_address, or lower --ramp.".to_owned(),
        ),
        None => None,
    }
}

fn row(times: &Times) -> String {
    let mut text = format!("{:>11}", grouped(times.count()));
    for us in QUANTILES.map(|(_, share)| times.quantile(share)).into_iter().chain([times.max()]) {
        let _ = write!(text, "{:>10}", milliseconds(us));
    }
    text
}

fn milliseconds(us: u64) -> String {
    let ms = us as f64 / 1e3;
    match us {
        0..10_000 => format!("{ms:.2} ms"),
        10_000..10_000_000 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// A number with thousands separators.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn listed(parts: &[String]) -> String {
    if parts.len() > 1 { format!(": {}", parts.join(", ")) } else { String::new() }
}

fn errors(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts.into_iter().map(|(what, count)| format!("{what}: {}", grouped(*count))).collect::<Vec<_>>().join("; ")
}

/// Compares two outcomes.
fn compare(text: &mut String, outcome: &Outcome, earlier: &Outcome) -> std::fmt::Result {
    writeln!(text, "\n{:<46}{:>14}{:>14}{:>12}", "", "now", "before", "now/before")?;
    for (name, [now, before], unit) in beside(outcome, earlier) {
        let ratio = match (now, before) {
            (Some(now), Some(before)) if before != 0.0 => format!("{:.2}", now / before),
            _ => String::new(),
        };
        let show = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{} {unit}", short(value)).trim().to_owned())
        };
        writeln!(text, "{name:<46}{:>14}{:>14}{ratio:>12}", show(now), show(before))?;
    }
    Ok(())
}

/// All results that one of them has: name, both values, and unit.
pub(crate) fn beside<'a>(outcome: &'a Outcome, earlier: &'a Outcome) -> Vec<(&'a str, [Option<f64>; 2], &'a str)> {
    let only_before = earlier.figures.iter().filter(|figure| outcome.figure(&figure.name).is_none());
    let all = outcome.figures.iter().chain(only_before);
    let value = |outcome: &Outcome, name: &str| outcome.figure(name).map(|figure| figure.value);
    all.map(|figure| {
        let name = figure.name.as_str();
        (name, [value(outcome, name), value(earlier, name)], figure.unit.as_str())
    })
    .collect()
}

/// Formats with three significant digits, without a redundant fraction.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 1_000.0 || value.fract() == 0.0 => grouped(value.round() as u64),
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Reads the JSON of an earlier run.
pub(crate) fn read(path: &str) -> anyhow::Result<Outcome> {
    let text = fs::read_to_string(path).with_context(|| format!("--compare: failed to read {path}"))?;
    serde_json::from_str(&text).with_context(|| format!("--compare: {path} was not written by --json"))
}

/// Writes to a file, or to standard output for `-`.
pub(crate) fn write_file(path: &str, text: &str) -> anyhow::Result<()> {
    if path == "-" {
        return crate::util::print(&format!("{text}\n"));
    }
    fs::write(path, text).with_context(|| format!("failed to write {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.333, 12.34, 123.4, 5_678.9, 7.0].map(short), ["0.33", "12.3", "123", "5,679", "7"]);
        assert_eq!([90, 9_994, 12_345, 12_345_678].map(milliseconds), ["0.09 ms", "9.99 ms", "12 ms", "12.3 s"]);
    }
}
