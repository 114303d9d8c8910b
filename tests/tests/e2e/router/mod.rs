//! What the client forwards for the machine behind it.

mod bounds;
mod captured;
mod life;

use anyhow::{Result, ensure};
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Host, Lab, Method, Options, Run, Shuttle, addr};

use crate::{MISTAKE, TARGET, TARGET6, in_a_tunnel, refuses};

const ALL: [&str; 2] = ["10.78.0.0/24", "fd78::/64"];
const LAN: [&str; 2] = ["--lan", "lan"];

/// Probes `target` from `host`. What is captured must come from the server.
fn expect(lab: &Lab, host: &Host, target: &str, args: &[&str], outcome: Outcome) -> Result<()> {
    let probe: Probe = lab.measure_on(host, &[&["probe", target, "--limit-ms", "1500"], args].concat())?;
    ensure!(probe.outcome == outcome, "{target} {args:?}: expected {outcome:?}, got {probe:?}");
    let from_server =
        probe.seen_as.is_some_and(|seen| seen.ip() == addr::SERVER_INNER || seen.ip() == addr::SERVER_INNER6);
    ensure!(from_server == (outcome == Outcome::Captured), "{target}: {probe:?}");
    Ok(())
}

fn expect_both(lab: &Lab, host: &Host, outcome: Outcome) -> Result<()> {
    [TARGET, TARGET6].into_iter().try_for_each(|target| expect(lab, host, target, &[], outcome))
}

fn lab() -> Result<Lab> {
    Lab::with(Options { lan: true, ..Options::default() })
}

/// Runs `check` in a tunnel in `lab`, ends the tunnel, and checks that nothing remains. A method that can't do what
/// `args` request must refuse it instead.
fn with_router(
    method: Method,
    lab: Lab,
    args: &[&str],
    check: impl FnOnce(&Lab, &Shuttle) -> Result<()>,
) -> Result<()> {
    let args = [&ALL, args].concat();
    let run = Run::remote(&args).by(method);
    if is_refused(&lab, run)? {
        return Ok(());
    }
    in_a_tunnel(&lab, run, |shuttle| check(&lab, shuttle))
}

/// Returns whether the method can't capture the forwarded traffic that is requested. It must then refuse, and change
/// nothing.
fn is_refused(lab: &Lab, run: Run) -> Result<bool> {
    let forwards = run.args.iter().any(|option| ["--lan", "-l"].contains(option));
    let refusal = run.method.and_then(|method| method.row().forwarded.err());
    let Some(words) = refusal.filter(|_| forwards) else { return Ok(false) };
    refuses(lab, run, MISTAKE, words)?;
    Ok(true)
}

/// Returns `--lan` with each of the method's options that choose how forwarded traffic is captured, and without any.
fn every_way(method: Method) -> Vec<Vec<&'static str>> {
    let options = method.row().forwarded.unwrap_or_default();
    let with_option = options.iter().map(|option| [&LAN[..], &[option]].concat());
    [LAN.to_vec()].into_iter().chain(with_option).collect()
}
