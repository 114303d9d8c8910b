//! Measures shuttle beside its peers, in one run: links x peers x metrics, as medians.

mod cost;
mod measure;
pub(crate) mod peers;
mod report;
mod rules;
mod start;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use shuttle_tests::{Lab, Link, Options};

use self::measure::{Effort, Figures};
use self::peers::Peer;
use crate::packages;
use crate::run::{built, cargo, output, root, run as run_program};

/// How often processor time is compared.
const COST_ROUNDS: usize = 10;

/// What to measure.
#[derive(Args)]
pub(crate) struct Bench {
    /// The links, of lan, wan, fat, slow and lossy.
    #[arg(long, value_delimiter = ',', default_value = "lan,wan,fat,slow,lossy")]
    links: Vec<Link>,
    /// The peers, of direct, ssh, ssh-gcm, sshuttle, shuttle, shuttle-nft and shuttle-rewrite.
    #[arg(long, value_delimiter = ',', default_value = "direct,ssh,ssh-gcm,sshuttle,shuttle,shuttle-nft")]
    peers: Vec<Peer>,
    /// Shorter measurements, once.
    #[arg(long)]
    quick: bool,
    /// Only how long each takes to start.
    #[arg(long)]
    start_only: bool,
    /// Only what many rules cost those peers that load rules.
    #[arg(long)]
    rules_only: bool,
    /// Only the processor time of shuttle, of those peers that are shuttle, on lan.
    #[arg(long)]
    cost_only: bool,
    /// Another build's `shuttle`, to compare the processor time with.
    #[arg(long, requires = "cost_only", value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// How often each is measured; the table has the medians.
    #[arg(long)]
    runs: Option<usize>,
}

/// All figures of one peer on one link, or the error of each run.
pub(crate) struct Column {
    link: Link,
    peer: Peer,
    runs: Vec<Result<Figures, String>>,
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    packages::install(packages::LAB)?;
    build_programs()?;
    if bench.peers.contains(&Peer::Sshuttle) {
        install_sshuttle()?;
    }
    if bench.rules_only {
        return rules::run(&bench.peers);
    }
    if bench.cost_only {
        return cost::run(&bench.peers, bench.before.as_deref(), bench.runs.unwrap_or(COST_ROUNDS));
    }
    let mut columns = Vec::new();
    for &link in &bench.links {
        columns.extend(measure_link(link, bench)?);
        print!("{}", report::markdown(link, &columns));
    }
    let path = report::write_json(&columns)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// Release builds: what a user runs.
pub(crate) fn build_programs() -> Result<()> {
    packages::add_musl();
    run_program(cargo().args(["build", "--release", "--bins", "-p", "shuttle", "-p", "shuttle-tests"]))
}

/// A lab with the release programs.
pub(crate) fn lab(link: Link) -> Result<Lab> {
    Lab::with(Options { link, lan: true, programs: Some(built("release")), ..Options::default() })
}

/// The peers are measured alternately, so that a machine that slows down affects all of them.
fn measure_link(link: Link, bench: &Bench) -> Result<Vec<Column>> {
    let lab = lab(link)?;
    let mut columns: Vec<_> =
        bench.peers.iter().map(|&peer| Column { link, peer, runs: Vec::new() }).collect();
    for number in 0..bench.runs.unwrap_or(if bench.quick { 1 } else { 3 }) {
        for column in &mut columns {
            eprintln!("{} {} run {}", link.name(), column.peer.name(), number + 1);
            let effort = Effort::new(link, bench.quick, number == 0);
            let figures = measure_peer(&lab, column.peer, effort, bench.start_only);
            column.runs.push(figures.map_err(|error| format!("{error:#}")));
        }
    }
    Ok(columns)
}

fn measure_peer(lab: &Lab, peer: Peer, effort: Effort, start_only: bool) -> Result<Figures> {
    let start = start::measure(lab, peer, effort.starts).map_err(|error| format!("{error:#}")).transpose();
    let start = start.map(|start| (measure::START, start));
    if start_only {
        return Ok(start.into_iter().collect());
    }
    let running = peer.start(lab)?;
    let mut figures = measure::all(lab, peer, effort);
    figures.extend(start);
    running.stop(lab)?;
    // Removes what one peer left, so that it doesn't affect the next.
    let left = lab.wait_clean(Duration::from_secs(10))?;
    if !left.is_empty() {
        eprintln!("{} leaves {left:#?}", peer.name());
    }
    Ok(figures)
}

/// Installs the newest sshuttle from PyPI, beside the builds.
fn install_sshuttle() -> Result<()> {
    packages::install(packages::PEERS)?;
    let venv = peers::sshuttle_venv();
    if !venv.join("bin/sshuttle").exists() {
        run_program(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    output(pip.args(["install", "--quiet", "--upgrade", "sshuttle"]).current_dir(root()))
        .context("install sshuttle")?;
    Ok(())
}

/// The upper median.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
