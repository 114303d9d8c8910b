//! Demonstrates shuttle in half a minute, in a network of its own that is removed afterwards.

use anyhow::{Context, Result, ensure};
use shuttle_tests::traffic::bulk::Rate;
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::traffic::{Spread, port};
use shuttle_tests::{Lab, Link, Method, Run, Shuttle};
use std::time::Duration;

use crate::bench::peers::Peer;
use crate::bench::{build_programs, lab};
use crate::packages;

pub(crate) fn run() -> Result<()> {
    packages::install(packages::LAB)?;
    build_programs()?;
    let lab = lab(Link::Lan)?;
    println!(
        "A client, an ssh server, and a target that only the server reaches, each in a namespace of its own."
    );
    println!("\n$ sudo shuttle --method=ebpf -r shut-remote@server 0/0 ::/0");
    let mut shuttle = Shuttle::connect(&lab, Run::remote(&["0/0", "::/0"]))?;
    show_both_families(&lab).with_context(|| shuttle.stderr())?;
    let ours = Speed::of(&lab, Peer::Shuttle(Method::Lookup))?;
    shuttle.signal(nix::sys::signal::Signal::SIGINT)?;
    shuttle.wait(Duration::from_secs(10))?;
    let left = lab.wait_clean(Duration::from_secs(10))?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    println!("\nCtrl-C: nothing is captured any more, and nothing is left on either side.");
    let forward = Peer::Ssh.start(&lab)?;
    let theirs = Speed::of(&lab, Peer::Ssh)?;
    forward.stop(&lab)?;
    print_beside(&ours, &theirs);
    Ok(())
}

fn show_both_families(lab: &Lab) -> Result<()> {
    for (family, target) in [("IPv4", "10.78.0.2"), ("IPv6", "[fd78::2]")] {
        let probe: Probe = lab.measure(&["probe", &format!("{target}:{}", port::WHO[0])])?;
        ensure!(probe.outcome == Outcome::Captured, "{target}: {probe:?}");
        let exchanged: Exchanged =
            lab.measure(&["exchange", &format!("{target}:{}", port::EXCHANGE), "67108864"])?;
        let (peer, seen_as) = (probe.peer.context("no peer")?, probe.seen_as.context("seen by nobody")?);
        println!(
            "{family}: connected to {peer}, which sees {}; {} MiB each way at once in {:.2} s, hashes equal",
            seen_as.ip(),
            exchanged.bytes >> 20,
            exchanged.seconds
        );
    }
    Ok(())
}

struct Speed([f64; 4]);

impl Speed {
    fn of(lab: &Lab, peer: Peer) -> Result<Speed> {
        let address = peer.address().to_string();
        let bulk = |direction| lab.measure::<Rate>(&["bulk", &address, direction, "--seconds", "3"]);
        let echo = format!("{address}:{}", port::ECHO);
        let rtt: Spread = lab.measure(&["rtt", &echo, "--seconds", "1"])?;
        let connects: Connects = lab.measure(&["connects", &echo, "2000", "32"])?;
        ensure!(connects.lost == 0, "{}: {connects:?}", peer.name());
        Ok(Speed([bulk("down")?.mbits, bulk("up")?.mbits, rtt.p50_us as f64, connects.per_second]))
    }
}

fn print_beside(ours: &Speed, theirs: &Speed) {
    let rows = ["1 flow down, Mbit/s", "1 flow up, Mbit/s", "round trip, µs", "connect+echo, 1/s"];
    println!("\n{:<22}{:>10}{:>10}{:>8}", "", "shuttle", "ssh -L", "ratio");
    for (row, (our, their)) in rows.iter().zip(ours.0.iter().zip(theirs.0)) {
        println!("{row:<22}{our:>10.0}{their:>10.0}{:>8.2}", our / their);
    }
}
