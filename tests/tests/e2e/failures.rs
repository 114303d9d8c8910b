//! What fails before anything is captured: one line that names the failure and a remedy, and no change.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use shuttle_tests::shuttle::exit_code;
use shuttle_tests::{Lab, Options, Run, Server, Shuttle};

use crate::nothing_stays;

struct Case {
    server: Server,
    args: &'static [&'static str],
    /// The words that shuttle's line must contain.
    names: &'static [&'static str],
}

const TO_SERVER: &[&str] = &["-r", "shut-remote@server", "10.78.0.0/24"];

const CASES: &[Case] = &[
    Case {
        server: Server::Plain,
        args: &["-r", "shut-remote@10.77.0.99", "10.78.0.0/24"],
        names: &["10.77.0.99"],
    },
    Case { server: Server::NotListening, args: TO_SERVER, names: &["server"] },
    Case { server: Server::KeyRefused, args: TO_SERVER, names: &["server"] },
    Case { server: Server::HostKeyChanged, args: TO_SERVER, names: &["server"] },
    Case { server: Server::NoShell, args: TO_SERVER, names: &["server"] },
    Case {
        server: Server::UnknownMachine,
        args: &["-r", "shut-remote@server", "10.78.0.0/24"],
        names: &["pdp11"],
    },
];

#[test]
fn a_failure_before_capture_is_one_line_and_changes_nothing() -> Result<()> {
    for case in CASES {
        let lab = Lab::with(Options { server: case.server, ..Options::default() })?;
        let output = run(&lab, Run::local(case.args))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let what = format!("{:?} {:?}:\n{stderr}", case.server, case.args);
        ensure!(exit_code(output.status) == 1, "exit code {} for {what}", exit_code(output.status));
        let own: Vec<_> = stderr.lines().filter(|line| line.starts_with("shuttle: ")).collect();
        ensure!(own.len() == 1, "{} lines of shuttle's for {what}", own.len());
        ensure!(case.names.iter().all(|name| own[0].contains(name)), "{:?} not named by {what}", case.names);
        nothing_stays(&lab).context(what.clone())?;
    }
    Ok(())
}

#[test]
fn a_bad_argument_is_named() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    for (args, names) in [
        (&["10.0.0.0/33"][..], &["10.0.0.0/33"][..]),
        (&["host.invalid"], &["host.invalid"]),
        (&["1.2.3.4:99999"], &["1.2.3.4:99999"]),
        (&["fd00::/129"], &["fd00::/129"]),
        (&["10.0.0.0/8:90-80"], &["10.0.0.0/8:90-80"]),
        (&[""], &["'' for '[SUBNET]...'", "`` is neither an address nor a host name"]),
        (&["--method=carrier-pigeon", "0/0"], &["carrier-pigeon", "--method"]),
        // Options that contradict each other.
        (&["--method=nft", "--ebpf-steering=rewrite", "0/0"], &["--method=nft", "--ebpf-steering"]),
        (&["--method=nft", "--ebpf-steering=auto", "0/0"], &["--method=nft", "--ebpf-steering"]),
        (&["--method=nft", "--ebpf-ingress=tcx", "0/0"], &["--method=nft", "--ebpf-ingress"]),
        (&["--method=auto", "--ebpf-steering=rewrite", "--lan", "x0", "0/0"], &["rewrite", "--lan"]),
        (&["--ebpf-steering=rewrite", "-l", "0.0.0.0", "0/0"], &["rewrite", "-l"]),
        (&["--dry-run", "--ebpf-steering=rewrite", "--lan", "x0", "0/0"], &["rewrite", "--lan"]),
    ] {
        let output = run(&lab, Run { method: None, ..Run::remote(args) })?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(exit_code(output.status) == 2, "{args:?}: {}\n{stderr}", output.status);
        let in_a_line = stderr.lines().count() == 1 && names.iter().all(|name| stderr.contains(name));
        ensure!(in_a_line, "{args:?}: {names:?} are not named in a line:\n{stderr}");
    }
    nothing_stays(&lab)
}

fn run(lab: &Lab, run: Run) -> Result<Output> {
    Shuttle::command(lab, run)?.stdin(Stdio::null()).output().context("run shuttle")
}
