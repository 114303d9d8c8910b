//! The tunnel where destinations are rewritten: what kernels without sk_lookup get.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::shuttle::send;
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::probe::Outcome::{Captured, Direct};
use shuttle_tests::traffic::udp::Echoes;
use shuttle_tests::{Lab, Options, Role, Run, Shuttle};

use crate::{END, TARGET, TARGET6, expect, nothing_stays, with_tunnel};

const ARGS: &[&str] =
    &["--method=ebpf", "--ebpf-steering=rewrite", "10.78.0.0/24", "fd78::/64", "-x", "10.78.0.3"];
const ECHO: &str = "10.78.0.2:7000";
const ECHO6: &str = "[fd78::2]:7000";

#[test]
fn connections_and_datagrams_pass() -> Result<()> {
    with_tunnel(Options::default(), Run::remote(ARGS), |lab, shuttle| {
        ensure!(shuttle.stderr().contains("capturing by ebpf: rewrite"), "{}", shuttle.stderr());
        for (target, args, outcome) in [
            (TARGET, &[][..], Captured),
            (TARGET6, &[], Captured),
            (TARGET, &["--mapped"], Captured),
            ("10.78.0.3:7004", &[], Direct),
        ] {
            let probe = expect(lab, target, args, outcome)?;
            ensure!(probe.peer == Some(target.parse()?), "{target} {args:?}: {probe:?}");
        }
        for address in ["10.78.0.2:7003", "[fd78::2]:7003"] {
            lab.measure::<Exchanged>(&["exchange", address, "8388608"])?;
        }
        let connects: Connects = lab.measure(&["connects", ECHO, "2000", "64"])?;
        ensure!(connects.lost == 0 && connects.time.count == 2_000, "{connects:?}");
        for (args, least) in [
            (&["--to", ECHO][..], 0.999),
            (&["--to", ECHO, "--connected"], 0.999),
            (&["--to", ECHO6], 0.999),
            (&["--to", ECHO6, "--connected"], 0.999),
            (&["--to", ECHO, "--from", "10.77.0.1:0"], 0.999),
            (&["--to", ECHO6, "--from", "[fd77::1]:0"], 0.999),
            // The other one is excluded.
            (&["--to", ECHO, "--to", "10.78.0.3:7000", "--window", "2"], 0.999),
            (&["--to", ECHO, "--length", "65507"], 0.99),
            (&["--to", ECHO6, "--length", "65527"], 0.99),
            (&["--to", ECHO, "--length", "1200", "--batch", "10", "--window", "20"], 0.99),
        ] {
            let echoes: Echoes = lab.measure(&[&["udp", "--seconds", "0.5"], args].concat())?;
            println!("{args:?}: {echoes:?}");
            ensure!(echoes.wrong == 0, "{args:?}: {echoes:?}");
            ensure!(echoes.received as f64 >= least * echoes.sent as f64, "{args:?}: {echoes:?}");
        }
        Ok(())
    })
}

#[test]
fn the_local_agent_is_not_captured_itself() -> Result<()> {
    let args = ["--method=ebpf", "--ebpf-steering=rewrite", "0/0", "::/0"];
    with_tunnel(Options::default(), Run::local(&args), |lab, _| {
        [TARGET, TARGET6].into_iter().try_for_each(|target| expect(lab, target, &[], Captured).map(drop))
    })
}

/// Also where all of it is killed, and without `shuttle cleanup`: all that captures dies with the helper.
#[test]
fn however_it_ends_nothing_stays() -> Result<()> {
    for role in [None, Some(Role::Helper)] {
        let lab = Lab::with(Options::default())?;
        let mut shuttle = Shuttle::connect(&lab, Run::remote(ARGS))?;
        expect(&lab, TARGET, &[], Captured)?;
        match role {
            None => shuttle.signal(Signal::SIGKILL)?,
            Some(role) => {
                shuttle.find(role).into_iter().try_for_each(|it| send(it, Signal::SIGKILL))?;
            }
        }
        shuttle.wait(END)?;
        for target in [TARGET, TARGET6] {
            expect(&lab, target, &[], Direct)?;
        }
        if role.is_some() {
            // The client's own cgroup is the next start's to remove, as ever.
            let cleanup = Shuttle::command(&lab, Run { args: &["cleanup"], ..Run::local(&[]) })?.output()?;
            let removed = String::from_utf8_lossy(&cleanup.stdout).into_owned();
            ensure!(!removed.contains("rule"), "{removed}");
        }
        nothing_stays(&lab).with_context(|| format!("{role:?} killed"))?;
    }
    Ok(())
}
