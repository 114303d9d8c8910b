//! Compares what shuttle costs: processor time per GB and per connection, by several methods and two builds in turns.
//!
//! Rates drown in the noise of a shared machine; processor time much less so.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use shuttle_tests::traffic::bulk::Rate;
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::port;
use shuttle_tests::{Lab, Link, Method, Options, Run, Shuttle, addr};

use super::measure::Cpu;
use super::median;
use super::peers::{Peer, Running};
use crate::run::{built, root};

/// How long each flow of a measurement lasts, in seconds.
const BULK: &str = "4";
/// How many connections one measurement makes, 32 at a time.
const CONNECTS: usize = 3_000;

/// What is measured of each build and method, with the unit.
const METRICS: [&str; 8] = [
    "client, s/GB",
    "server, s/GB",
    "ssh at the client, s/GB",
    "sshd, s/GB",
    "client, µs a connection",
    "server, µs a connection",
    "ssh at the client, µs a connection",
    "sshd, µs a connection",
];

/// A build and a method, its lab, and the figures of each round.
struct Column {
    name: String,
    method: Method,
    lab: Lab,
    rounds: Vec<[f64; METRICS.len()]>,
}

/// Prints a table of medians, and for each further column the median of its ratios to the first, round by round.
///
/// `before` is another build's `shuttle`, which is measured as the first of `peers`: it need not know the others.
pub(super) fn run(peers: &[Peer], before: Option<&Path>, rounds: usize) -> Result<()> {
    let programs = built("release");
    let mut columns = columns(peers, "", &programs)?;
    if let Some(shuttle) = before {
        let programs = beside(shuttle, &programs)?;
        columns.extend(self::columns(peers.get(..1).unwrap_or_default(), " before", &programs)?);
    }
    ensure!(!columns.is_empty(), "no peer to compare: name shuttle, shuttle-nft or shuttle-rewrite");
    for round in 0..rounds {
        eprintln!("round {}", round + 1);
        for column in &mut columns {
            let figures = column.measure().with_context(|| column.name.clone())?;
            column.rounds.push(figures);
        }
        // A machine that grows slower or faster favours none.
        columns.reverse();
    }
    if rounds % 2 == 1 {
        columns.reverse();
    }
    print!("{}", table(&columns));
    Ok(())
}

fn columns(peers: &[Peer], suffix: &str, programs: &Path) -> Result<Vec<Column>> {
    let column = |peer: &Peer| {
        let Peer::Shuttle(method) = *peer else { return None };
        let options = Options { link: Link::Lan, programs: Some(programs.to_owned()), ..Options::default() };
        let lab = Lab::with(options).map(|lab| Column {
            name: format!("{}{suffix}", peer.name()),
            method,
            lab,
            rounds: Vec::new(),
        });
        Some(lab)
    };
    peers.iter().filter_map(column).collect()
}

/// A folder with another build's `shuttle`, and with the programs of this build that measure it.
fn beside(shuttle: &Path, programs: &Path) -> Result<PathBuf> {
    let folder = root().join("target/bench-before");
    fs::create_dir_all(&folder)?;
    for (from, name) in [(shuttle, "shuttle"), (&programs.join("lab-tool"), "lab-tool")] {
        fs::copy(from, folder.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(folder)
}

impl Column {
    /// Starts it anew, so that one start's luck (addresses, allocations) weighs one round only.
    fn measure(&self) -> Result<[f64; METRICS.len()]> {
        let run = Run::remote(&["10.78.0.0/24"]).by(self.method);
        let shuttle = Shuttle::connect(&self.lab, run)?;
        let gigabyte = self.cost(|| Ok((self.bulk("down")? + self.bulk("up")?) / 1e9))?;
        let connection = self.cost(|| Ok(self.connects()? / 1e6))?;
        Running::Shuttle(shuttle).stop(&self.lab)?;
        let mut figures = [0.0; METRICS.len()];
        figures
            .iter_mut()
            .zip(gigabyte.into_iter().chain(connection))
            .for_each(|(figure, cost)| *figure = cost);
        Ok(figures)
    }

    /// The processor seconds of `work`, for each of the units that it returns.
    fn cost(&self, work: impl FnOnce() -> Result<f64>) -> Result<[f64; 4]> {
        let before = Cpu::now(&self.lab)?;
        let units = work()?;
        Ok(Cpu::now(&self.lab)?.since(before).map(|seconds| seconds / units))
    }

    fn bulk(&self, direction: &str) -> Result<f64> {
        let target = addr::TARGET.to_string();
        let rate: Rate =
            self.lab.measure(&["bulk", &target, direction, "--flows", "1", "--seconds", BULK])?;
        Ok(rate.bytes as f64)
    }

    fn connects(&self) -> Result<f64> {
        let target = format!("{}:{}", addr::TARGET, port::ECHO);
        let made: Connects = self.lab.measure(&["connects", &target, &CONNECTS.to_string(), "32"])?;
        ensure!(made.lost == 0, "{} connections lost: {:?}", made.lost, made.first_error);
        Ok(CONNECTS as f64)
    }
}

fn table(columns: &[Column]) -> String {
    let (first, others) = columns.split_first().expect("run() has checked that there is one");
    let heads = columns.iter().map(|column| format!(" {} |", column.name));
    let ratios = others.iter().map(|column| format!(" {} / {} |", first.name, column.name));
    let heads: Vec<_> = heads.chain(ratios).collect();
    let mut table = format!("\n| processor time |{}\n|---|{}\n", heads.concat(), "---:|".repeat(heads.len()));
    for (place, metric) in METRICS.iter().enumerate() {
        let values = columns.iter().map(|column| median(column.rounds.iter().map(|round| round[place])));
        let ratios = others.iter().map(|column| {
            let pairs = first.rounds.iter().zip(&column.rounds);
            median(pairs.map(|(of, to)| of[place] / to[place]))
        });
        let cells = values.chain(ratios).map(|value| format!(" {:.3} |", value.unwrap_or(f64::NAN)));
        table += &format!("| {metric} |{}\n", cells.collect::<String>());
    }
    table
}
