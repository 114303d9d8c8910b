//! `--method=auto`: which method it takes, and what it says of those that it passes over.

use anyhow::{Result, ensure};
use shuttle_tests::traffic::probe::Outcome;
use shuttle_tests::{Identity, Options, Run};

use crate::{TARGET, TARGET6, expect, with_tunnel};

#[test]
fn auto_says_which_methods_it_passes_over() -> Result<()> {
    const FIRST: Identity = Identity::Root;
    const WITHOUT_EBPF: Identity = Identity::RootWithoutEbpf;
    // Without eBPF, no program marks the sockets of ssh, and the bypass that is left needs a packet filter.
    const REASON: &str =
        "not by ebpf: --method=ebpf can't keep shuttle's own connections out of the capture by cgroup";
    for (identity, verbose, method, reason) in [
        (FIRST, true, "ebpf: lookup", None),
        (WITHOUT_EBPF, true, "nft: table shuttle_0", Some(REASON)),
        // The reason is a step of the start.
        (WITHOUT_EBPF, false, "nft: table shuttle_0", None),
    ] {
        let args = ["--method=auto", "10.78.0.0/24", "fd78::/64", "-v"];
        let args = if verbose { &args[..] } else { &args[..3] };
        let run = Run { identity, method: None, ..Run::remote(args) };
        with_tunnel(Options::default(), run, |lab, shuttle| {
            let said = shuttle.stderr();
            let called = format!("capturing by {method}");
            ensure!(said.lines().any(|line| line.contains(&called)), "not {called:?}:\n{said}");
            let passed_over: Vec<_> = said.lines().filter(|line| line.contains("not by ")).collect();
            match (passed_over.as_slice(), reason) {
                ([], None) => {}
                ([line], Some(reason)) if line.contains(reason) => {}
                _ => anyhow::bail!("{reason:?} is not what it says: {passed_over:?}"),
            }
            expect(lab, TARGET, &[], Outcome::Captured)?;
            expect(lab, TARGET6, &[], Outcome::Captured).map(drop)
        })?;
    }
    Ok(())
}
