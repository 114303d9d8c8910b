//! Measures what many rules cost: at the start, for each new connection, and to change one of them.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::port;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Link, Method, Run, Shuttle, addr};

use super::lab;
use super::peers::{self, Peer};

const COUNTS: [u32; 3] = [10, 10_000, 100_000];
/// How long a peer may take to load its rules.
const LIMIT: Duration = Duration::from_secs(60);
const CONNECTS: &str = "2000";

/// The peers that load rules.
#[derive(Clone, Copy)]
enum Loader {
    Shuttle(Method),
    Sshuttle(&'static str),
}

impl Loader {
    /// Those of a peer.
    fn of(peer: Peer) -> Vec<Loader> {
        match peer {
            Peer::Shuttle(method) => vec![Loader::Shuttle(method)],
            Peer::Sshuttle => vec![Loader::Sshuttle("nft"), Loader::Sshuttle("nat")],
            Peer::Direct | Peer::Ssh | Peer::SshGcm => Vec::new(),
        }
    }

    fn name(self) -> String {
        match self {
            Loader::Shuttle(method) => Peer::Shuttle(method).name().into(),
            Loader::Sshuttle(method) => format!("sshuttle, {method}"),
        }
    }

    /// A command that captures the target's network and excludes the networks in `file`.
    fn command(self, lab: &Lab, file: &str) -> Result<Command> {
        let run = ["10.78.0.0/24", "-X", file];
        match self {
            Loader::Shuttle(method) => Shuttle::command(lab, Run::remote(&run).by(method)),
            Loader::Sshuttle(method) => {
                let program = peers::sshuttle_venv().join("bin/sshuttle");
                ensure!(program.exists(), "no sshuttle in {}", program.display());
                let mut command = lab.client.tool(&lab.users.root, program);
                command.args(["--method", method, "--disable-ipv6", "-r", "shut-remote@server"]).args(run);
                Ok(command)
            }
        }
    }
}

/// Prints a table with a line for each number of rules and each of `peers` that loads rules.
pub(super) fn run(peers: &[Peer]) -> Result<()> {
    println!(
        "| rules | by | from exec to captured, ms | connect+echo p50, ms | p99, ms | one more excluded, ms |"
    );
    println!("|---:|---|---:|---:|---:|---:|");
    for loader in peers.iter().copied().flat_map(Loader::of) {
        for count in COUNTS {
            let figures = measure(loader, count).unwrap_or_else(|error| format!("{error:#} | - | - | -"));
            println!("| {count} | {} | {figures} |", loader.name());
        }
    }
    Ok(())
}

fn measure(loader: Loader, count: u32) -> Result<String> {
    // If a peer was killed, its leftovers end with its lab.
    let lab = lab(Link::Lan)?;
    let file = lab.users.local.home.join("excluded");
    fs::write(&file, networks(count))?;
    let mut command = loader.command(&lab, &file.to_string_lossy())?;
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let captured = wait_until_captured(&lab, &mut child, started);
    let figures = captured.and_then(|ready| {
        let target = format!("{}:{}", addr::TARGET, port::ECHO);
        let connects: Connects = lab.measure(&["connects", &target, CONNECTS, "1"])?;
        ensure!(connects.lost == 0, "{} connections lost: {:?}", connects.lost, connects.first_error);
        let change = match loader {
            Loader::Shuttle(_) => format!("{:.0}", exclude_one_more(&lab)?.as_secs_f64() * 1e3),
            Loader::Sshuttle(_) => "-".into(),
        };
        let millis = |micros: u64| format!("{:.2}", micros as f64 / 1e3);
        let (p50, p99) = (millis(connects.time.p50_us), millis(connects.time.p99_us));
        Ok(format!("{:.0} | {p50} | {p99} | {change}", ready.as_secs_f64() * 1e3))
    });
    peers::stop(&lab, child)?;
    figures
}

/// Networks that are not adjacent, so that they can't be merged, and that don't touch the lab's.
fn networks(count: u32) -> String {
    let network = |index: u32| {
        let [a, b, c, _] = ((16 << 24) + (index << 10)).to_be_bytes();
        format!("{a}.{b}.{c}.0/24\n")
    };
    (0..count).map(network).collect()
}

fn wait_until_captured(lab: &Lab, child: &mut Child, started: Instant) -> Result<Duration> {
    let target = format!("{}:{}", addr::TARGET, port::WHO[0]);
    while started.elapsed() < LIMIT {
        let probed = started.elapsed();
        let probe: Probe = lab.measure(&["probe", &target, "--limit-ms", "1000"])?;
        if probe.outcome == Outcome::Captured {
            return Ok(probed);
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended: {status}");
        }
        sleep(Duration::from_millis(5));
    }
    bail!("not within {} s", LIMIT.as_secs())
}

fn exclude_one_more(lab: &Lab) -> Result<Duration> {
    let mut command = lab.client.tool(&lab.users.local, lab.program("shuttle")?);
    command.args(["exclude", "10.78.0.3"]).stdout(Stdio::null());
    let started = Instant::now();
    let status = command.status().context("run shuttle exclude")?;
    ensure!(status.success(), "shuttle exclude: {status}");
    Ok(started.elapsed())
}
