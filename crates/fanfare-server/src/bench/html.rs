//! Writes an outcome as a single HTML file that needs no network.

use super::{
    outcome::{Outcome, QUANTILES},
    report::{beside, short},
};
use serde_json::json;

const PAGE: &str = include_str!("../../assets/bench.html");
const PLOT: &str = include_str!("../../assets/uplot/uPlot.iife.min.js");
const PLOT_STYLE: &str = include_str!("../../assets/uplot/uPlot.min.css");

pub(crate) fn page(outcome: &Outcome, earlier: Option<&Outcome>) -> anyhow::Result<String> {
    let Outcome { tally, spread, published, .. } = outcome;
    let times = [
        ("connect to ack", &tally.connects),
        ("publish to receipt", &tally.latency),
        ("publish to the last receiver", spread),
        ("reconnect to ack", &tally.resumes),
        ("publish to the hub's answer", &published.answers),
    ];
    let times = times.into_iter().filter(|(_, times)| times.count() > 0).map(|(name, times)| {
        let quantiles: Vec<_> = QUANTILES.iter().map(|(_, share)| times.quantile(*share)).collect();
        json!({ "name": name, "count": times.count(), "us": quantiles, "max": times.max(), "pairs": times })
    });
    let figures = beside(outcome, earlier.unwrap_or(outcome)).into_iter().map(|(name, [now, before], unit)| {
        json!({ "name": name, "now": now.map(short), "before": earlier.and(before).map(short), "unit": unit })
    });
    let data = json!({
        "version": outcome.version,
        "began_at": outcome.began_at,
        "interrupted": outcome.interrupted,
        "machine": outcome.machine,
        "plan": outcome.plan,
        "flawless": outcome.is_flawless(),
        "checks": { "lost": tally.lost, "doubled": tally.doubled, "reordered": tally.reordered, "gaps": tally.gaps,
            "absent": tally.absent },
        "errors": tally.errors,
        "times": times.collect::<Vec<_>>(),
        "figures": figures.collect::<Vec<_>>(),
        "timeline": outcome.timeline,
        "before": earlier.map(|earlier| json!({ "timeline": earlier.timeline, "latency": earlier.tally.latency })),
    });
    // Text must not close the script element that contains it.
    let data = serde_json::to_string(&data)?.replace("</", "<\\/");
    let parts = PAGE.split("%%").map(|part| match part {
        "PLOT_STYLE" => PLOT_STYLE,
        "PLOT" => PLOT,
        "DATA" => &data,
        text => text,
    });
    Ok(parts.collect())
}
