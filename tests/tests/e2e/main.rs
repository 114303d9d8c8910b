//! The real shuttle against a real sshd, in a lab. Needs root; without it every test fails and says so.
#![allow(clippy::disallowed_methods, reason = "tests start programs and measure time")]

mod capture;
mod containers;
mod control;
mod dns;
mod endings;
mod failures;
mod lanes;
mod memory;
mod method;
mod privilege;
mod quic;
mod refusals;
mod router;
mod transfer;
mod udp;
mod web;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::shuttle::exit_code;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Method, Options, Run, Shuttle};

/// The time limit for a tunnel to end in any way, helper and remote side included.
const END: Duration = Duration::from_secs(10);
const TARGET: &str = "10.78.0.2:7004";
const TARGET6: &str = "[fd78::2]:7004";

/// Runs `check` in a tunnel in a lab of its own, ends the tunnel as Ctrl-C does, and checks that nothing remains.
fn with_tunnel(options: Options, run: Run, check: impl FnOnce(&Lab, &Shuttle) -> Result<()>) -> Result<()> {
    let lab = Lab::with(options)?;
    let mut shuttle = connect(&lab, run)?;
    let checked =
        check(&lab, &shuttle).with_context(|| format!("{run:?}\nshuttle says:\n{}", shuttle.stderr()));
    shuttle.signal(Signal::SIGINT)?;
    let code = exit_code(shuttle.wait(END)?);
    checked?;
    ensure!(code == 0, "{run:?}: exit code {code} after Ctrl-C\n{}", shuttle.stderr());
    nothing_stays(&lab).with_context(|| format!("{run:?}"))
}

/// Runs `check` in a tunnel in a lab that may contain things of others, ends the tunnel, and checks that all is as
/// before.
fn in_a_tunnel(lab: &Lab, run: Run, check: impl FnOnce(&Shuttle) -> Result<()>) -> Result<()> {
    let before = lab.leftovers()?;
    let mut shuttle = connect(lab, run)?;
    let checked = check(&shuttle);
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END)?;
    checked.with_context(|| format!("{run:?}\nshuttle says:\n{}", shuttle.stderr()))?;
    wait_until("nothing stays", || lab.leftovers().is_ok_and(|left| left == before))
        .with_context(|| format!("{run:?}: {:?}, {before:?} before", lab.leftovers()))
}

/// Starts a tunnel, and checks that it captures by the method that was requested.
fn connect(lab: &Lab, run: Run) -> Result<Shuttle> {
    let shuttle = Shuttle::connect(lab, run).with_context(|| format!("{run:?}"))?;
    if let Some(method) = run.method {
        let says = shuttle.stderr();
        ensure!(says.contains(&format!("capturing by {}", method.row().called)), "{method:?}: {says}");
    }
    Ok(shuttle)
}

/// The exit code of a failure, and that of a mistake in the arguments.
const FAILURE: i32 = 1;
const MISTAKE: i32 = 2;

/// Sees that shuttle refuses, by one line with these words and this exit code, and changes nothing.
fn refuses(lab: &Lab, run: Run, refusal: i32, words: &str) -> Result<()> {
    let before = lab.leftovers()?;
    let mut shuttle = Shuttle::start(lab, run)?;
    let code = exit_code(shuttle.wait(END)?);
    let said = shuttle.stderr();
    let in_a_line = said.contains(words) && said.lines().count() == 1;
    let as_expected = code == refusal && in_a_line;
    ensure!(as_expected, "{run:?}: exit code {code}, not {refusal} and {words:?}:\n{said}");
    wait_until("nothing stays", || lab.leftovers().is_ok_and(|left| left == before))
        .with_context(|| format!("{run:?}: {:?}, {before:?} before", lab.leftovers()))
}

/// Turns br_netfilter off for the client, if it is on and the method refuses that.
fn without_bridge_filter(lab: &Lab, run: Run) -> Result<()> {
    const OFF: &str = "for file in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do echo 0 > $file; done\n";
    const IS_ON: &str = "cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true";
    let refusal = run.method.and_then(|method| method.row().filtered_bridges.err());
    match refusal {
        Some(words) if lab.client.output("sh", &["-c", IS_ON])?.trim() == "1" => {
            refuses(lab, run, FAILURE, words)?;
            lab.client.script(OFF)
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the arguments for also capturing forwarded traffic, if the method can.
fn lan_if_possible(method: Method) -> &'static [&'static str] {
    if method.row().forwarded.is_ok() { &["--lan", "lan"] } else { &[] }
}

/// Waits until `what` has happened.
fn wait_until(what: &str, mut has_come: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !has_come() {
        ensure!(started.elapsed() < END, "in vain: {what}");
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Checks that nothing is captured any more and nothing is left.
fn nothing_stays(lab: &Lab) -> Result<()> {
    // The next verb removes the control socket of a killed client.
    lab.client.command_as(&lab.users.local, lab.program("shuttle")?).arg("status").output()?;
    let left = lab.wait_clean(END)?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    for target in [TARGET, TARGET6] {
        expect(lab, target, &[], Outcome::Direct)?;
    }
    Ok(())
}

/// Probes `target`, and returns the report if the outcome is the expected one.
fn expect(lab: &Lab, target: &str, args: &[&str], outcome: Outcome) -> Result<Probe> {
    let probe: Probe = lab.measure(&[&["probe", target], args].concat())?;
    ensure!(probe.outcome == outcome, "{target} {args:?}: expected {outcome:?}, got {probe:?}");
    Ok(probe)
}
