//! Writes the figures as a table and as a file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use shuttle_tests::{Link, Method};

use super::measure::{START, metrics};
use super::peers::Peer;
use super::{Column, median, start};
use crate::run::{output, root};

/// The medians of `link`, one column per peer, and the reasons for missing figures.
pub(crate) fn markdown(link: Link, columns: &[Column]) -> String {
    let columns: Vec<_> = columns.iter().filter(|column| column.link == link).collect();
    let cells = |of: &dyn Fn(&Column) -> String| {
        columns.iter().map(|column| of(column)).collect::<Vec<_>>().join(" | ")
    };
    let mut table =
        format!("\n### {}\n\n| | {} |\n", link.name(), cells(&|column| column.peer.name().into()));
    table += &format!("|---|{}\n", "---:|".repeat(columns.len()));
    let measured = |metric: &&str| columns.iter().any(|column| column.median(metric).is_some());
    for metric in metrics().filter(measured) {
        table +=
            &format!("| {metric} | {} |\n", cells(&|column| column.median(metric).map_or("-".into(), short)));
    }
    table += &start_goal(link, &columns).unwrap_or_default();
    let reasons: Vec<_> = columns.iter().flat_map(|column| column.reasons()).collect();
    if !reasons.is_empty() {
        table += &format!("\nMissing:\n{}", reasons.concat());
    }
    table
}

/// Whether shuttle's start meets its goal.
fn start_goal(link: Link, columns: &[&Column]) -> Option<String> {
    let median = |peer| columns.iter().find(|column| column.peer == peer)?.median(START);
    let (ssh, shuttle) = (median(Peer::Ssh)?, median(Peer::Shuttle(Method::Lookup))?);
    let goal = start::goal(link, ssh)?;
    let word = if shuttle <= goal { "kept" } else { "MISSED" };
    Some(format!(
        "\nStart: {shuttle:.0} ms, {:.0} after ssh; {goal:.0} are allowed: {word}.\n",
        shuttle - ssh
    ))
}

/// Writes all figures to `bench-results/<date>.json`.
pub(crate) fn write_json(columns: &[Column]) -> Result<PathBuf> {
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%dT%H%M%S"]))?.trim().to_owned();
    let commit =
        output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root())).unwrap_or_default();
    let columns: Vec<_> = columns.iter().map(Column::json).collect();
    let dir = root().join("bench-results");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{date}.json"));
    let all = json!({ "date": date, "commit": commit.trim(), "columns": columns });
    fs::write(&path, serde_json::to_string_pretty(&all)?)?;
    Ok(path)
}

impl Column {
    fn values(&self, metric: &str) -> Vec<f64> {
        let runs = self.runs.iter().filter_map(|run| run.as_ref().ok());
        runs.filter_map(|figures| figures.get(metric)?.as_ref().ok().copied()).collect()
    }

    pub(crate) fn median(&self, metric: &str) -> Option<f64> {
        median(self.values(metric))
    }

    /// One line for each distinct reason of a missing figure.
    fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for run in &self.runs {
            match run {
                Ok(figures) => reasons.extend(figures.values().filter_map(|value| value.as_ref().err())),
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.sort();
        reasons.dedup();
        let first_lines = |reason: &String| reason.lines().take(6).collect::<Vec<_>>().join("; ");
        reasons
            .into_iter()
            .map(|reason| format!("- {}: {}\n", self.peer.name(), first_lines(reason)))
            .collect()
    }

    fn json(&self) -> Value {
        let values: BTreeMap<_, _> = metrics().map(|metric| (metric, self.values(metric))).collect();
        json!({ "link": self.link.name(), "peer": self.peer.name(), "values": values, "missing": self.reasons() })
    }
}

/// Three significant figures.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
